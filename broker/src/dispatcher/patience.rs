//! Mallocs that wait for room (002 FIG. 5): the queue, and who gets what comes free.
//!
//! ```text
//!   no room            room comes back: tried in order          made: the session is rung
//!  ---------> Queued ------------------------------------> Making -------------------> standing
//!               |  ^                                          |
//!               |  +------- the daemon refuses: rests --------+
//!               +--> its time is over, given up, its session ended: forgotten
//! ```
//!
//! # Invariants
//!
//! 1. Who waits keeps its place, whatever happens, until it is served or forgotten; one for which
//!    there is no room does not hold up those behind it.
//! 2. A step tries [`TRIES_A_STEP`] of them at most; a timer brings the next step, so no change is
//!    missed by those behind.
//! 3. Who lacks room and was passed over [`PASSES_MAX`] times is *due*: what comes free where it
//!    could lie is set aside for it, and counts as its user's. So it is not starved, and nobody is
//!    kept from memory by a request that could not have it at once as well.
//! 4. One that is due has its turn at a time, for [`TURN_GRANTS`] grants to others or [`TURN_MS`];
//!    then it has to be passed over again. So memory does not lie idle for one that cannot be
//!    served. Who could not have it if all were free, or lacks quota, has no turn.
//! 5. A session and a user have no more waiting requests than [`OF_USER_MAX`], and all together no
//!    more than [`ALL_MAX`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{DaemonId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{ClientReply, ClientRequest, MallocKind, MallocWith};

use super::Dispatcher;
use super::blocks::TicketKey;
use super::clients::ReplyTo;
use super::event::{ClientConn, Millis, RequestId};
use super::making::Wanted;
use super::requests::{Failure, Outcome, Served, refuse};
use super::timers::Timer;

/// Requests that are tried in one step.
const TRIES_A_STEP: usize = 32;

/// How often others are granted something before what comes free is kept for the oldest.
const PASSES_MAX: u64 = 64;

/// Grants to others, after which nothing is set aside any more for the one whose turn it was.
const TURN_GRANTS: u64 = 4 * PASSES_MAX;

/// How long that is done at most.
const TURN_MS: u64 = 5_000;

/// How long a request rests whose daemon had no room although it should have had.
const REST_MS: u64 = 100;

/// Requests of one user that wait.
const OF_USER_MAX: usize = 4096;

/// Requests that wait.
const ALL_MAX: usize = 4 * OF_USER_MAX;

/// Where the answer goes of what nobody waits for: the shell numbers connections from 1.
pub(super) const NOBODY: ReplyTo = ReplyTo { conn: ClientConn(0), request_id: RequestId(0) };

/// A request that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patient {
    /// Its place.
    pub place: u64,
    /// Whose it is.
    pub session: SessionId,
    /// Which of the session's requests.
    pub ticket: TicketKey,
    /// Who pays.
    pub uid: u32,
    /// What is wanted.
    pub request: MallocWith,
    /// Copies of it.
    copies: u32,
    /// What had been granted to all when it came, or had its turn.
    came_at: u64,
    /// It is not tried before.
    rests_until: Millis,
    /// What it lacks.
    lacks: Lack,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    /// Memory that others hold.
    Room,
    /// Something of its own user's, or daemons that are not here.
    Else,
}

impl Patient {
    /// Bytes of one copy.
    const fn bytes(&self) -> u64 {
        match self.request.malloc.kind {
            MallocKind::Heap { committed } => committed,
            MallocKind::Span { bytes } => bytes,
        }
    }

    /// Bytes of all copies.
    fn bytes_of_all(&self) -> u64 {
        self.bytes().saturating_mul(self.copies.into())
    }
}

/// All that wait.
#[derive(Debug, Default)]
pub(super) struct Patients {
    by_place: BTreeMap<u64, Patient>,
    by_ticket: BTreeMap<TicketKey, u64>,
    by_session: BTreeSet<(SessionId, u64)>,
    by_user: BTreeMap<u32, usize>,
    /// By when they came, or had their turn.
    lacking_room: BTreeSet<(u64, u64)>,
    places: u64,
    /// From which place the present round goes on, if there is one.
    round: Option<u64>,
    /// Whether another has to follow it.
    again: bool,
    /// Whose turn it is.
    turn: Option<Turn>,
}

/// Room is set aside for a request.
#[derive(Clone, Copy, Debug)]
struct Turn {
    place: u64,
    /// What had been granted when it began.
    since: u64,
    until: Millis,
}

impl Patients {
    fn put(&mut self, patient: Patient) {
        let place = patient.place;
        self.by_ticket.insert(patient.ticket, place);
        self.by_session.insert((patient.session, place));
        *self.by_user.entry(patient.uid).or_default() += 1;
        if patient.lacks == Lack::Room {
            self.lacking_room.insert((patient.came_at, place));
        }
        self.by_place.insert(place, patient);
    }

    fn take(&mut self, place: u64) -> Option<Patient> {
        let patient = self.by_place.remove(&place)?;
        self.by_ticket.remove(&patient.ticket);
        self.by_session.remove(&(patient.session, place));
        self.lacking_room.remove(&(patient.came_at, place));
        if let Some(own) = self.by_user.get_mut(&patient.uid) {
            *own -= 1;
            if *own == 0 {
                self.by_user.remove(&patient.uid);
            }
        }
        Some(patient)
    }

    fn of_session(&self, session: SessionId) -> Vec<u64> {
        let own = self.by_session.range((session, 0)..=(session, u64::MAX));
        own.map(|(_, place)| *place).collect()
    }

    /// Who is due, if anybody is.
    fn due(&self, granted: u64) -> Option<u64> {
        let (came_at, place) = *self.lacking_room.first()?;
        (granted - came_at >= PASSES_MAX).then_some(place)
    }

    /// Begins a turn of one that is due, or goes on with it. `None` if its turn is over.
    fn go_on_with_turn(&mut self, place: u64, granted: u64, now: Millis) -> Option<Turn> {
        let begun = self.turn.filter(|turn| turn.place == place);
        let turn = begun.unwrap_or(Turn { place, since: granted, until: now.after(TURN_MS) });
        if granted - turn.since < TURN_GRANTS && now < turn.until {
            self.turn = Some(turn);
            return Some(turn);
        }
        self.turn = None;
        if let Some(patient) = self.take(place) {
            self.put(Patient { came_at: granted, ..patient });
        }
        None
    }

    /// Those that wait, for tests.
    pub(super) fn all(&self) -> impl Iterator<Item = &Patient> {
        self.by_place.values()
    }
}

impl Dispatcher {
    /// Blocks for a session as a policy says, at once or when there is room.
    pub(super) fn malloc_with(&mut self, to: ReplyTo, id: SessionId, with: MallocWith) -> Served {
        let Some(session) = self.sessions.get(id) else { return Ok(Outcome::Later) };
        let ticket = (session.record.guid, with.malloc.ticket);
        let default = session.record.copies;
        let wanted = self.wanted(with)?;
        let copies = self.copies([with.malloc.copies, wanted.policy.told.copies, default])?;
        let Some(wait_ms) = with.wait_ms else {
            self.wait_no_more(ticket);
            return self.malloc(to, id, &wanted);
        };
        if ticket.1 == 0 {
            return refuse(Status::Invalid, "a request that waits needs a ticket");
        }
        if let Some(&place) = self.patients.by_ticket.get(&ticket) {
            self.limit_patience(place, wait_ms);
            return Ok(ClientReply::Queued.into());
        }
        self.patients.places += 1;
        let patient = Patient {
            place: self.patients.places,
            session: id,
            ticket,
            uid: session.record.uid,
            request: with,
            copies,
            came_at: self.granted,
            rests_until: Millis(0),
            lacks: Lack::Else,
        };
        let wanted = Wanted { patient: Some(patient), ..wanted };
        match self.malloc(to, id, &wanted) {
            Err(Failure::NoRoom(refusal) | Failure::OverQuota(refusal)) => {
                self.let_wait(patient, wait_ms, refusal)
            }
            served => served,
        }
    }

    /// What a request asks for, with its policy.
    fn wanted(&self, with: MallocWith) -> Result<Wanted, Refusal> {
        let bytes = match with.malloc.kind {
            MallocKind::Heap { .. } => None,
            MallocKind::Span { bytes } => Some(bytes),
        };
        let policy = self.policy(with.policy, bytes)?;
        let request = ClientRequest::MallocWith(with);
        Ok(Wanted { request, malloc: with.malloc, policy, patient: None })
    }

    fn let_wait(&mut self, patient: Patient, wait_ms: u32, refusal: Refusal) -> Served {
        let quota = self.ledger.quota(patient.uid);
        let blocks = patient.bytes().div_ceil(self.config.layout.block_bytes());
        let copies = blocks.saturating_mul(patient.copies.into());
        if patient.bytes_of_all() > quota.bytes || copies > quota.blocks {
            return Err(refusal.into());
        }
        let own = self.patients.by_user.get(&patient.uid).copied().unwrap_or(0);
        let all = self.patients.by_place.len();
        if own >= OF_USER_MAX || all >= ALL_MAX {
            let text = format!(
                "{all} requests wait for room, {own} of user {}; limits {ALL_MAX}, {OF_USER_MAX}",
                patient.uid
            );
            return refuse(Status::Busy, text);
        }
        self.put_patient(patient);
        self.limit_patience(patient.place, wait_ms);
        Ok(ClientReply::Queued.into())
    }

    fn limit_patience(&mut self, place: u64, wait_ms: u32) {
        let timer = Timer::Patience(place);
        match wait_ms {
            0 => self.timers.cancel(timer),
            ms => self.timers.set(timer, self.now.millis.after(ms.into())),
        }
    }

    /// A span that was to be made for a request that waits could not be: it waits on. Whoever asks
    /// in the meantime is told so.
    pub(super) fn wait_on(&mut self, patient: Patient, to: ReplyTo, rest: bool) {
        if self.sessions.get(patient.session).is_none() {
            return;
        }
        let rests_until = if rest { self.now.millis.after(REST_MS) } else { Millis(0) };
        self.put_patient(Patient { rests_until, ..patient });
        if rest {
            self.timers.set(Timer::Rested(patient.place), rests_until);
        }
        self.room_changed = true;
        self.reply(to, Ok(ClientReply::Queued), Vec::new());
    }

    /// A request that waited has what it wanted.
    pub(super) fn patience_ends(&mut self, patient: &Patient) {
        self.timers.cancel(Timer::Patience(patient.place));
        self.timers.cancel(Timer::Rested(patient.place));
        self.notices.ring(patient.session);
    }

    /// The time of a request that waits is over. Its client has its own clock; if it waits on, it
    /// asks again.
    pub(super) fn patience_is_over(&mut self, place: u64) {
        if let Some(patient) = self.patients.take(place) {
            self.forgotten(&patient);
        }
    }

    /// Nobody waits any more for what a ticket was to make.
    pub(super) fn forget_patient(&mut self, ticket: TicketKey) {
        if let Some(&place) = self.patients.by_ticket.get(&ticket) {
            self.patience_is_over(place);
        }
    }

    /// A ticket is asked for without waiting: if it waited before, it does no more.
    pub(super) fn wait_no_more(&mut self, ticket: TicketKey) {
        self.forget_patient(ticket);
        let making = self.made_by(ticket).and_then(|first| self.makings.get_mut(&first));
        if let Some(patient) = making.and_then(|making| making.patient.take()) {
            self.patience_ends(&patient);
        }
    }

    /// A session ends.
    pub(super) fn forget_patients_of(&mut self, session: SessionId) {
        for place in self.patients.of_session(session) {
            self.patience_is_over(place);
        }
    }

    fn forgotten(&mut self, patient: &Patient) {
        self.patience_ends(patient);
        // What was set aside for it may be what others lack.
        self.room_changed = true;
    }

    /// Room came back, or quota: all are to be tried, oldest first.
    pub(super) fn begin_patience_round(&mut self) {
        self.ledger.take_back_aside();
        if let Some(place) = self.patients.due(self.granted)
            && !self.try_patient(place)
            && let Some(turn) = self.patients.go_on_with_turn(place, self.granted, self.now.millis)
        {
            self.set_aside(place);
            self.timers.set(Timer::Rested(place), turn.until);
        }
        // One that is under way is not begun anew, or those at its end would never be tried.
        match self.patients.round {
            Some(_) => self.patients.again = true,
            None => self.patients.round = Some(0),
        }
    }

    /// Goes on with the round. Whether there is more to do.
    pub(super) fn go_on_with_patience(&mut self) -> bool {
        for _ in 0..TRIES_A_STEP {
            let Some(from) = self.patients.round else { return false };
            let next = self.patients.by_place.range(from..).next().map(|(place, _)| *place);
            self.patients.round = next.map(|place| place + 1);
            match next {
                Some(place) if !self.has_chance(place) => {}
                Some(place) => _ = self.try_patient(place),
                None if std::mem::take(&mut self.patients.again) => self.patients.round = Some(0),
                None => {}
            }
        }
        self.patients.round.is_some()
    }

    /// Whether it is worth to try a request: not if too few daemons have room for one block of it.
    /// Where very many wait, this is what each of them costs.
    fn has_chance(&self, place: u64) -> bool {
        let Some(patient) = self.patients.by_place.get(&place) else { return false };
        let session = self.sessions.get(patient.session);
        let account = session.map(|session| session.account);
        if patient.lacks == Lack::Else || self.ledger.reservation(account).is_some() {
            return true;
        }
        let (each, _) = self.blocks_of(patient);
        let fits = |daemon: &DaemonId| self.ledger.store(*daemon).free() >= each;
        let last = patient.copies.saturating_sub(1) as usize;
        self.daemons.up_in_turn().filter(fits).nth(last).is_some()
    }

    /// Tries to serve a request that waits. Whether it waits no more.
    fn try_patient(&mut self, place: u64) -> bool {
        let Some(patient) = self.patients.take(place) else { return true };
        if patient.rests_until > self.now.millis {
            self.patients.put(patient);
            return false;
        }
        let wanted = self.wanted(patient.request).map_err(Failure::from);
        let wanted = wanted.map(|wanted| Wanted { patient: Some(patient), ..wanted });
        match wanted.and_then(|wanted| self.malloc(NOBODY, patient.session, &wanted)) {
            Ok(_) => true,
            Err(Failure::NoRoom(_) | Failure::OverQuota(_)) => {
                self.put_patient(patient);
                false
            }
            Err(Failure::Refused(_) | Failure::Unsettled) => {
                // Asked again, it is told why.
                self.forgotten(&patient);
                true
            }
        }
    }

    /// Lets a request wait that was tried in vain.
    fn put_patient(&mut self, patient: Patient) {
        let has_quota = self.ledger.quota_left(patient.uid) >= patient.bytes_of_all();
        let (each, blocks) = self.blocks_of(&patient);
        let could_hold = |id| (self.ledger.store(id).capacity / each).min(blocks);
        let could_hold = self.daemons.up_in_turn().map(could_hold).sum::<u64>();
        let lacks_room = has_quota && could_hold >= blocks.saturating_mul(patient.copies.into());
        let lacks = if lacks_room { Lack::Room } else { Lack::Else };
        self.patients.put(Patient { lacks, ..patient });
    }

    /// Bytes of each block of a request but the last, and how many blocks there are.
    fn blocks_of(&self, patient: &Patient) -> (u64, u64) {
        let full = self.config.layout.block_bytes();
        let bytes = patient.bytes().max(1).next_multiple_of(PAGE_BYTES);
        (bytes.min(full), bytes.div_ceil(full))
    }

    /// Sets aside what is free where a request that is due could lie.
    fn set_aside(&mut self, place: u64) {
        let Some(patient) = self.patients.by_place.get(&place) else { return };
        let uid = patient.uid;
        let (each, blocks) = self.blocks_of(patient);
        let mut copies = blocks.saturating_mul(patient.copies.into());
        let mut daemons: Vec<DaemonId> = self.daemons.up_in_turn().collect();
        daemons.sort_by_key(|daemon| Reverse(self.ledger.store(*daemon).free()));
        let mut allowed = self.ledger.quota_left(uid);
        let mut pieces = BTreeMap::new();
        for daemon in daemons {
            let store = self.ledger.store(daemon);
            let fit = (store.capacity / each).min(blocks).min(copies);
            let piece = store.free().min(fit * each).min(allowed);
            if piece > 0 {
                pieces.insert(daemon, piece);
            }
            allowed -= piece;
            copies -= fit;
        }
        self.ledger.set_aside(uid, pieces);
    }
}

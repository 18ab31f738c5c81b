//! How sessions begin and end: Setup, Attach, Disconnect, hang-up, death.
//!
//! # Invariants
//!
//! 1. A session that was refused leaves nothing. Its objects are made first, and its process is
//!    watched, before its client is answered.
//! 2. Only the process that opened a session takes it up again, and only with its GUID.
//! 3. A session ends in one step. Its record goes before its blocks: a broker that comes back in
//!    between does not believe in the session, and destroys what is left of it. Only what it may
//!    have left half written of regions keeps the record (`repairs`).

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{DaemonId, SessionId};
use dmce_abi::limits::{COPIES_MAX, PAGE_BYTES};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{Attach, ClientReply, OpeningId, Ready, Setup};

use super::Dispatcher;
use super::action::{Action, Descriptor, LogLevel};
use super::clients::ReplyTo;
use super::event::{Peer, SessionRecord};
use super::requests::{Failure, Outcome, Served, refuse};
use super::sessions::{Session, SessionLink};
use super::timers::Timer;

/// Ids whose names may turn out to be taken, before a Setup is refused.
const NAMES_TRIED_MAX: u32 = 32;

impl Dispatcher {
    /// Opens a session (FIG. 13).
    pub(super) fn setup(&mut self, to: ReplyTo, setup: &Setup) -> Served {
        let Some(client) = self.clients.get(&to.conn) else { return Ok(Outcome::Later) };
        if let Some(session) = client.session {
            return refuse(Status::Invalid, format!("this connection has session {session}"));
        }
        let peer = client.peer.clone();
        let copies = self.copies([setup.copies, self.config.copies])?;
        let limit = self.config.limits.sessions_max;
        if self.sessions_held() >= limit {
            let text = format!("there are {limit} sessions, limit {limit}");
            return refuse(Status::NoSpace, text);
        }
        let pieces = self.reservable(&peer, setup, copies)?;
        let (bytes, last) = (pieces.values().sum(), pieces.keys().next_back().copied());
        let account = self.ledger.open_account(peer.uid, pieces)?;
        let Some((id, guid)) = self.next_session() else {
            self.ledger.close_account(account);
            return refuse(Status::NoSpace, "no session id is free");
        };
        let record = SessionRecord {
            session: id,
            guid,
            pid: peer.pid,
            lived_at: peer.lived_at,
            uid: peer.uid,
            gid: peer.gid,
            reserved: bytes,
            created_at: self.now.unix_s,
            pointer_bits: setup.pointer_bits,
            copies,
            name: setup.name.clone(),
        };
        self.out.push(Action::CreateSession { record: record.clone() });
        let mut session = Session::new(record, SessionLink::Opening(to), account);
        session.groups = peer.groups;
        self.sessions.add(session);
        if let Some(daemon) = last {
            self.daemons.placed(daemon);
        }
        if let Some(client) = self.clients.get_mut(&to.conn) {
            client.session = Some(id);
        }
        Ok(Outcome::Later)
    }

    /// The shell has made the session's objects, or could not.
    pub(super) fn session_created(&mut self, id: SessionId, result: Result<(), Refusal>) {
        if let Some(daemon) = self.seats.daemon_of(id) {
            return self.seat_made(daemon, result);
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        let SessionLink::Opening(to) = session.link else { return };
        if let Err(mut refusal) = result {
            if refusal.status == Status::Exists {
                if self.open_under_another_id(id) {
                    return;
                }
                refusal.status = Status::NoSpace;
            }
            let reason = format!("no session: {}", refusal.text);
            self.reply(to, Err(refusal), Vec::new());
            self.close_client(to.conn, reason.clone());
            self.end_session(id, &reason);
            return;
        }
        session.link = SessionLink::Attached(to.conn);
        let record = &session.record;
        let text = format!(
            "session {id} of user {}, process {}, {} bytes reserved, name {:?}",
            record.uid, record.pid, record.reserved, record.name
        );
        let (pid, lived_at) = (record.pid, record.lived_at);
        let conn = Some(to.conn);
        // Before the answer: for want of a descriptor the session ends.
        self.out.push(Action::WatchProcess { session: id, pid, lived_at, conn });
        self.reply_ready(to, id, BTreeSet::new());
        self.log(LogLevel::Info, text);
    }

    /// Something has the name of a session's object: the session gets another id. `false` if that
    /// was tried often enough.
    fn open_under_another_id(&mut self, old: SessionId) -> bool {
        let tried = self.sessions.get(old).map_or(NAMES_TRIED_MAX, |session| session.names_taken);
        if tried >= NAMES_TRIED_MAX {
            return false;
        }
        let Some(new) = self.next_session_id() else { return false };
        let Some(mut session) = self.sessions.remove(old) else { return false };
        self.log(LogLevel::Warn, format!("session {old} cannot be named: it is {new} now"));
        self.out.push(Action::EndSession { session: old });
        session.names_taken += 1;
        session.record.session = new;
        let record = session.record.clone();
        if let SessionLink::Opening(to) = session.link
            && let Some(client) = self.clients.get_mut(&to.conn)
        {
            client.session = Some(new);
        }
        self.sessions.add(session);
        self.out.push(Action::CreateSession { record });
        true
    }

    /// Takes up a session again. Of its openings it has those that its client knows; which of them
    /// it does not have, its client is told.
    pub(super) fn attach(&mut self, to: ReplyTo, attach: &Attach) -> Served {
        let Some(client) = self.clients.get(&to.conn) else { return Ok(Outcome::Later) };
        if let Some(session) = client.session {
            return refuse(Status::Invalid, format!("this connection has session {session}"));
        }
        let (peer, started) = (client.peer.clone(), client.started);
        let id = attach.session;
        let known = self.sessions.get(id).filter(|session| session.record.guid == attach.guid);
        let Some(session) = known else {
            return refuse(Status::NotFound, format!("there is no session {id} of that guid"));
        };
        let record = &session.record;
        // Who has the pid of a process that died has started after it lived.
        let is_that_process = started.is_some_and(|at| at <= record.lived_at);
        if (record.pid, record.uid) != (peer.pid, peer.uid) || !is_that_process {
            return refuse(Status::Denied, format!("session {id} is another process's"));
        }
        match session.link {
            SessionLink::Opening(_) => {
                return refuse(Status::Busy, format!("session {id} is being opened"));
            }
            // The client knows that its old connection is gone; this side does not yet.
            SessionLink::Attached(old) => {
                self.close_client(old, format!("session {id} has another connection"));
            }
            SessionLink::Detached(_) => self.timers.cancel(Timer::Reattach(id)),
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.link = SessionLink::Attached(to.conn);
            session.groups = peer.groups;
        }
        if let Some(client) = self.clients.get_mut(&to.conn) {
            client.session = Some(id);
        }
        let unknown = self.settle_openings(id, &attach.openings);
        self.log(LogLevel::Info, format!("session {id} is attached again"));
        self.reply_ready(to, id, unknown);
        Ok(Outcome::Later)
    }

    /// Ends a session at its client's wish (FIG. 18).
    pub(super) fn disconnect(&mut self, to: ReplyTo, session: SessionId) -> Outcome {
        self.reply(to, Ok(ClientReply::Done), Vec::new());
        self.close_client(to.conn, "disconnected");
        self.end_session(session, "disconnected");
        Outcome::Later
    }

    /// A session's connection is gone. Its process may live: it has time to come back.
    pub(super) fn detach(&mut self, id: SessionId) {
        let deadline = self.now.millis.after(self.config.reattach_ms);
        let Some(session) = self.sessions.get_mut(id) else { return };
        if matches!(session.link, SessionLink::Opening(_)) {
            self.end_session(id, "its client hung up before it was open");
            return;
        }
        session.link = SessionLink::Detached(deadline);
        self.timers.set(Timer::Reattach(id), deadline);
        self.log(LogLevel::Info, format!("session {id} is detached"));
    }

    /// A session's process is gone.
    pub(super) fn died(&mut self, id: SessionId) {
        if let Some(SessionLink::Attached(conn)) = self.sessions.get(id).map(|s| s.link) {
            self.close_client(conn, "its process died");
        }
        if self.wrecks.has(id) {
            // It was in an operation when it ended, and is no more.
            return self.read_intents(id);
        }
        self.end_session(id, "its process died");
    }

    /// Ends a session: nothing of it stays but what daemons have yet to destroy, and what it may
    /// have left half written.
    pub(super) fn end_session(&mut self, id: SessionId, reason: &str) {
        let Some(mut session) = self.sessions.remove(id) else { return };
        self.timers.cancel(Timer::Reattach(id));
        self.moved.remove(&id);
        self.notices.forget(id);
        self.forget_patients_of(id);
        self.unlink_session(id);
        self.wreck(&mut session);
        for first in session.making_regions.iter().chain(&session.spans) {
            self.makings.remove(first);
            self.give_up(*first);
        }
        // Not before: no table is made anew of what is given up.
        self.locks_nothing(id);
        for first in session.untold {
            self.told(id, first);
        }
        self.ledger.close_account(session.account);
        self.room_changed = true;
        self.log(LogLevel::Info, format!("session {id} ends: {reason}"));
    }

    fn reply_ready(&mut self, to: ReplyTo, id: SessionId, unknown: BTreeSet<OpeningId>) {
        let Some(session) = self.sessions.get(id) else { return };
        let layout = self.config.layout;
        let ready = Ready {
            session: id,
            guid: session.record.guid,
            instance: self.config.instance.as_str().to_owned(),
            layout: [layout.server_bits(), layout.block_bits(), layout.cell_bits()],
            block_ids: self.config.block_ids(),
            block_bytes_max: self.block_bytes_max(),
            reserved: self.reserved(session),
            quota: self.ledger.quota(session.record.uid).bytes,
            copies: session.record.copies,
            idle_s: self.config.idle_s,
            has_policies: !self.config.policies.is_empty(),
            unknown_openings: unknown.into_iter().collect(),
        };
        let descriptors = vec![Descriptor::SessionObject(id), Descriptor::Doorbell(id)];
        self.reply(to, Ok(ClientReply::Ready(ready)), descriptors);
    }

    /// Bytes of a session's reservation. One that an earlier broker made is made again when all
    /// daemons have reported; until then the record tells.
    pub(super) fn reserved(&self, session: &Session) -> u64 {
        if session.restored && !self.tables_complete() {
            return session.record.reserved;
        }
        self.ledger.account(session.account).map_or(0, |account| account.total)
    }

    /// Bytes that the largest block can have: of a cell's range, what the largest daemon may hold.
    fn block_bytes_max(&self) -> u64 {
        let known = self.daemons.servers.keys().map(|&daemon| self.ledger.store(daemon).capacity);
        let range = self.config.layout.block_bytes();
        match known.max() {
            None | Some(0) => range,
            Some(capacity) => range.min(capacity - capacity % PAGE_BYTES),
        }
    }

    /// What of that which Setup asks for is reserved ([0083] to [0085]), and where: all, or, where
    /// that is accepted, what there is. Every copy takes bytes.
    fn reservable(
        &mut self,
        peer: &Peer,
        setup: &Setup,
        copies: u32,
    ) -> Result<BTreeMap<DaemonId, u64>, Failure> {
        if !self.config.static_reservation || setup.bytes == 0 {
            return Ok(BTreeMap::new());
        }
        let most = u64::MAX - u64::MAX % PAGE_BYTES;
        let wanted = setup.bytes.checked_next_multiple_of(PAGE_BYTES).unwrap_or(most);
        let wanted = wanted.saturating_mul(copies.into());
        let quota = self.ledger.quota_left(peer.uid);
        let quota = quota - quota % PAGE_BYTES;
        let pieces = self.place_reservation(wanted, copies);
        let room: u64 = pieces.values().sum();
        if wanted > quota && (!setup.accept_partial || quota == 0) {
            let text = format!("{wanted} bytes wanted, quota leaves user {} {quota}", peer.uid);
            return refuse(Status::Quota, text);
        }
        // Bytes on their way back are waited for, even by who would take less.
        let returning = self.daemons.bytes_return();
        if room < wanted.min(quota) && (!setup.accept_partial || room == 0 || returning) {
            let text = format!("{wanted} bytes wanted, the daemons have {room} left");
            return Err(Failure::NoRoom(Refusal::new(Status::NoSpace, text)));
        }
        Ok(if room <= quota { pieces } else { self.place_reservation(quota, copies) })
    }

    /// The copies that are asked for: the first of these that is not 0.
    ///
    /// # Errors
    ///
    /// `INVALID` beyond [`COPIES_MAX`], `UNSUPPORTED` beyond what this broker keeps.
    pub(super) fn copies<const N: usize>(&self, asked: [u32; N]) -> Result<u32, Refusal> {
        let copies = asked.into_iter().find(|copies| *copies != 0).unwrap_or(1);
        if copies > COPIES_MAX {
            return refuse(Status::Invalid, format!("{copies} copies, limit {COPIES_MAX}"));
        }
        let kept = self.config.copies_max;
        if copies > kept {
            return refuse(
                Status::Unsupported,
                format!("{copies} copies, this broker keeps {kept}"),
            );
        }
        Ok(copies)
    }
}

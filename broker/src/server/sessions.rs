//! The objects, doorbells and processes of sessions.
//!
//! # Invariants
//!
//! 1. A session's objects are made before it is told of, and believed by nobody after its end
//!    ([`super::session_objects`]).
//! 2. A process is watched by a pidfd that its socket told, or that was found by its pid and then
//!    checked against a moment at which it lived ([`find`]).
//! 3. What a client adds to its session object is found by [`Sessions::check`], which looks at a
//!    few objects a second, each in its turn, and takes it away again.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::Refusal;
use dmce_broker::dispatcher::{
    BelievedSession, Event, FoundIntents, Grant, Millis, Rights, SessionRecord,
};
use dmce_shm::fence::Fence;
use dmce_shm::record::{self, ProcessIdentity, RecordError};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::{SessionError, SessionObject};
use dmce_shm::session::pin::PinClaim;
use dmce_shm::slot::Marks;
use dmce_sys::poll::{Interest, Poller};
use dmce_sys::process::ProcessError;
use dmce_sys::{pidfd, process};
use tracing::{debug, error, info, warn};

use super::objects::{BROKER, Objects};
use super::session_objects::{Leaving, Made, remove_leftovers};
use super::{Source, now};

/// Session objects that one check looks at, and how often there is one.
const CHECKS_A_TURN: usize = 256;
const CHECK_MS: u64 = 1_000;

struct Session {
    made: Made,
    process: Option<OwnedFd>,
    /// Whether its undo buffers are committed, as far as this broker knows.
    has_undo: Cell<bool>,
}

impl Session {
    const fn new(made: Made) -> Self {
        Self { made, process: None, has_undo: Cell::new(false) }
    }
}

/// Why a session of an earlier broker is not taken up.
#[derive(Debug, thiserror::Error)]
enum Dead {
    /// It was being opened, or nobody had it yet, or it had ended.
    #[error("it was nobody's")]
    Nobodys,
    /// It is over.
    #[error("{0}")]
    Over(String),
}

impl Dead {
    fn of(error: &dyn std::error::Error) -> Self {
        Self::Over(error.to_string())
    }
}

/// All sessions that have objects.
pub struct Sessions {
    boot_id: [u8; 16],
    fence: Fence,
    all: BTreeMap<SessionId, Session>,
    /// Those that nobody has yet.
    prepared: BTreeMap<SessionId, (Guid, Made)>,
    leaving: Leaving,
    /// The last session that was checked, if there may be others after it.
    checked: Option<SessionId>,
    check_at: Millis,
}

impl Sessions {
    /// None yet.
    pub fn new(boot_id: [u8; 16]) -> Self {
        Self {
            boot_id,
            fence: Fence::register(),
            all: BTreeMap::new(),
            prepared: BTreeMap::new(),
            leaving: Leaving::default(),
            checked: None,
            check_at: Millis(0),
        }
    }

    /// Takes up the sessions of an earlier broker, those included whose processes are gone: they
    /// may have left something half written. Removes what is left of the others. `kinds` are the
    /// broker's own objects.
    pub fn take_up(
        &mut self,
        objects: &Objects,
        kinds: &BTreeSet<ObjectKind>,
    ) -> Vec<BelievedSession> {
        let ids: BTreeSet<u32> = kinds
            .iter()
            .filter_map(|kind| match *kind {
                ObjectKind::Session(id) | ObjectKind::Record(id) => Some(id),
                _ => None,
            })
            .collect();
        let mut believed = Vec::new();
        for id in ids {
            match self.take_up_one(objects, id) {
                Ok(session) => believed.push(session),
                Err(dead) => {
                    match dead {
                        Dead::Nobodys => debug!(session = id, "its objects are removed: {dead}"),
                        Dead::Over(why) => info!(session = id, "recovered as dead: {why}"),
                    }
                    remove_leftovers(objects, id);
                }
            }
        }
        believed
    }

    fn take_up_one(&mut self, objects: &Objects, id: u32) -> Result<BelievedSession, Dead> {
        let open = |kind| match objects.open(BROKER, kind, true) {
            Ok((fd, _)) => Ok(fd),
            Err(failure) if failure.is_absence() => Err(Dead::Nobodys),
            Err(failure) => Err(Dead::of(&failure)),
        };
        let record_fd = open(ObjectKind::Record(id))?;
        let record = record::read(record_fd.as_fd()).map_err(|error| match error {
            RecordError::NeverReady => Dead::Nobodys,
            error => Dead::of(&error),
        })?;
        let grants = record::grants(record_fd.as_fd()).map_err(|error| Dead::of(&error))?;
        let session = record.identity.session;
        if session.get() != id {
            return Err(Dead::Over(format!("its record is that of session {session}")));
        }
        let who = record.process;
        if who.boot_id != self.boot_id {
            return Err(Dead::Over(format!("process {} was of another boot", who.pid)));
        }
        let lives = !is_gone(who.pid, who.lived_at).map_err(|error| Dead::of(&error))?;
        // Nobody relies on barriers any more whose process is gone.
        let fence = if lives { self.fence } else { Fence::Asymmetric };
        let object = SessionObject::open(open(ObjectKind::Session(id))?, fence)
            .map_err(|error| Dead::of(&error))?;
        let generation = object.generation().map_err(|error| Dead::of(&error))?;
        let made = Made::found(object, record_fd);
        self.all.insert(session, Session::new(made));
        let grants = grants.into_iter().map(|(place, grant)| to_grant(place, grant)).collect();
        if !lives {
            info!(session = id, "process {} is gone", who.pid);
        }
        Ok(BelievedSession { record: to_record(record), generation, grants, lives })
    }

    /// Makes the objects of a session that nobody has yet.
    pub fn prepare(&mut self, objects: &Objects, identity: SessionIdentity) -> Result<(), Refusal> {
        self.leaving.give_way(objects, identity.session);
        let made = Made::ahead(objects, identity, self.fence)?;
        self.prepared.insert(identity.session, (identity.guid, made));
        Ok(())
    }

    /// Makes the objects of a session, or takes those that were made ahead. What a failure leaves
    /// is removed by [`Self::end`].
    pub fn create(&mut self, objects: &Objects, record: &SessionRecord) -> Result<(), Refusal> {
        let identity = SessionIdentity { session: record.session, guid: record.guid };
        let process =
            ProcessIdentity { pid: record.pid, lived_at: record.lived_at, boot_id: self.boot_id };
        let made = if let Some((guid, made)) = self.prepared.remove(&record.session) {
            assert!(guid == record.guid, "session {} was prepared as another", record.session);
            made
        } else {
            self.leaving.give_way(objects, record.session);
            Made::new(objects, identity, self.fence)?
        };
        made.write(&from_record(record, identity, process))?;
        self.all.insert(record.session, Session::new(made));
        Ok(())
    }

    /// Watches the process of a session. `false`: that cannot be done. One that is gone already is
    /// reported like one that goes.
    pub fn watch(&mut self, poller: &Poller, id: SessionId, fd: OwnedFd) -> bool {
        let Some(session) = self.all.get_mut(&id) else { return false };
        let token = Source::Process.token(id.get().into());
        if let Err(error) = poller.add(fd.as_fd(), token, Interest::READ) {
            error!(session = id.get(), "its process cannot be watched: {error}");
            return false;
        }
        if let Some(earlier) = session.process.replace(fd) {
            let _ = poller.remove(earlier.as_fd());
        }
        true
    }

    /// Takes in that a watched process is gone.
    pub fn died(&mut self, poller: &Poller, number: u64, events: &mut VecDeque<Event>) {
        let id = u32::try_from(number).ok().and_then(|id| SessionId::try_from(id).ok());
        let Some(id) = id else { return };
        if let Some(fd) = self.all.get_mut(&id).and_then(|session| session.process.take()) {
            let _ = poller.remove(fd.as_fd());
            events.push_back(Event::Died { session: id });
        }
    }

    /// When something is to be done here: what ended goes, and what is there is checked.
    pub fn due_at(&self) -> Option<Millis> {
        let check_at = (!self.all.is_empty()).then_some(self.check_at);
        check_at.into_iter().chain(self.leaving.at()).min()
    }

    /// Does what is due.
    pub fn tend(&mut self, objects: &Objects, now: Millis, events: &mut VecDeque<Event>) {
        if self.leaving.at().is_some_and(|at| at <= now) {
            self.leaving.clear(objects);
        }
        if !self.all.is_empty() && self.check_at <= now {
            self.check(now, events);
        }
    }

    /// Removes what nobody has, or has any more. The rest is for the next broker.
    pub fn leave(&mut self, objects: &Objects) {
        self.leaving.clear(objects);
        for id in std::mem::take(&mut self.prepared).into_keys() {
            remove_leftovers(objects, id.get());
        }
    }

    /// Looks whether clients made their session objects larger, or smaller: their sessions end.
    fn check(&mut self, now: Millis, events: &mut VecDeque<Event>) {
        self.check_at = now.after(CHECK_MS);
        let from = self.checked.take().map_or(Unbounded, Excluded);
        for (id, session) in self.all.range((from, Unbounded)).take(CHECKS_A_TURN) {
            self.checked = Some(*id);
            let Err(error) = session.made.object.check_size() else { continue };
            if let SessionError::Resized { .. } = error {
                if let Err(error) = session.made.object.cut() {
                    warn!(session = id.get(), "its object keeps what was added: {error}");
                }
                events.push_back(Event::Misused { session: *id, reason: error.to_string() });
            } else {
                warn!(session = id.get(), "its object was not looked at: {error}");
            }
        }
        if self.all.last_key_value().map(|(last, _)| *last) == self.checked {
            self.checked = None;
        }
    }

    /// Ends a session: nobody believes in it any more, and what there is of it goes soon.
    pub fn end(&mut self, objects: &Objects, id: SessionId) {
        let Some(session) = self.all.remove(&id) else {
            // It was not made to the end, or is nobody's.
            self.prepared.remove(&id);
            return remove_leftovers(objects, id.get());
        };
        // The pidfd was this process's alone: closed, it is not polled any more.
        self.leaving.add(objects, id, &session.made, now().millis);
    }

    /// Writes a grant into the record.
    pub fn store_grant(&self, id: SessionId, grant: Grant) {
        let Some(session) = self.all.get(&id) else { return };
        let Some(rights) = record::Rights::of(grant.rights.read, grant.rights.write) else {
            return;
        };
        let stored = record::Grant { block: grant.block, rights };
        if let Err(error) = record::grant(session.made.record.as_fd(), index(grant.place), stored) {
            error!(session = id.get(), "a grant is not in the record: {error}");
        }
    }

    /// Frees a grant's place in the record.
    pub fn revoke_grant(&self, id: SessionId, place: u32) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = record::revoke(session.made.record.as_fd(), index(place)) {
            error!(session = id.get(), "a grant stays in the record: {error}");
        }
    }

    /// Publishes a generation and wakes the session's service thread.
    pub fn publish(&self, id: SessionId, generation: u64) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = session.made.object.publish(generation) {
            // Its client cut its own object: only that client misses the change.
            warn!(session = id.get(), "its generation is not published: {error}");
        }
        // It fails only for want of memory, and nothing may be read off the marks without it.
        while self.fence.heavy_host().is_err() {
            std::thread::yield_now();
        }
        self.ring(id);
    }

    /// Commits the undo buffers of a session, if that was not done: before it can write a block of
    /// several copies.
    ///
    /// # Errors
    ///
    /// What its client is to be told.
    pub fn commit_undo(&self, id: SessionId) -> Result<(), Refusal> {
        let Some(session) = self.all.get(&id).filter(|session| !session.has_undo.get()) else {
            return Ok(());
        };
        session.made.object.commit_undo().map_err(|error| {
            let text = format!("undo buffers of session {id}: {error}");
            Refusal::new(Status::NoSpace, text)
        })?;
        session.has_undo.set(true);
        Ok(())
    }

    /// The marks of a session's slots; `None` if there is no such session.
    pub fn marks(&self, id: SessionId) -> Option<Result<Marks, SessionError>> {
        self.all.get(&id).map(|session| session.made.object.marks())
    }

    /// Whether a session has pointers into a range of addresses; `None` if there is no such one.
    pub fn find_pointers(
        &self,
        session: SessionId,
        (block, epoch): (BlockId, u64),
        addrs: &Range<u64>,
    ) -> Option<Event> {
        let is_in = |pin: &PinClaim| {
            let range = pin.range;
            range.addr < addrs.end && addrs.start < range.addr.saturating_add(range.bytes)
        };
        Some(match self.all.get(&session)?.made.object.pins() {
            Ok(pins) => {
                Event::PointersFound { session, block, epoch, has_some: pins.iter().any(is_in) }
            }
            Err(error) => Event::Misused { session, reason: error.to_string() },
        })
    }

    /// What the slots of a session that has ended were changing, and where its pointers could
    /// store; `None` if there is no such session. If its process is not known to be gone, slots in
    /// an operation are left out.
    pub fn intents(
        &self,
        id: SessionId,
        (pid, lived_at): (u32, u64),
    ) -> Option<Result<FoundIntents, SessionError>> {
        let object = &self.all.get(&id)?.made.object;
        let is_gone = is_gone(pid, lived_at).unwrap_or(false);
        let found = if is_gone {
            object.intents().map(|claims| (claims, true))
        } else {
            object.abandoned_intents()
        };
        Some(found.and_then(|(claims, is_all)| {
            let mut pins = object.pins()?;
            pins.retain(|pin| pin.range.writable);
            Ok(FoundIntents { claims, is_all, pins, is_gone })
        }))
    }

    /// Says in a slot that bytes are brought from the copy of `first` to the others.
    pub fn intend_to_carry(
        &self,
        id: SessionId,
        slot: u8,
        (range, first): ((u64, u64), DaemonId),
    ) -> Option<Result<(), SessionError>> {
        self.all.get(&id).map(|session| session.made.object.intend_to_carry(slot, range, first))
    }

    /// Frees a pin.
    pub fn free_pin(&self, id: SessionId, pin: u16) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = session.made.object.free_pin(pin) {
            warn!(session = id.get(), pin, "it stays: {error}");
        }
    }

    /// Takes the intent of a slot away.
    pub fn clear_intent(&self, id: SessionId, slot: u8) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = session.made.object.clear_intent(slot) {
            warn!(session = id.get(), slot, "its intent stays: {error}");
        }
    }

    /// The beginning of a slot's undo buffer; `None` if there is no such session.
    pub fn undo(
        &self,
        id: SessionId,
        slot: u8,
        into: &mut [u8],
    ) -> Option<Result<(), SessionError>> {
        self.all.get(&id).map(|session| session.made.object.undo(slot, into))
    }

    /// Wakes the session's service thread.
    pub fn ring(&self, id: SessionId) {
        if let Some(Err(error)) = self.all.get(&id).map(|session| session.made.ring()) {
            warn!(session = id.get(), "its doorbell: {error}");
        }
    }

    /// The session object, open to read and write.
    pub fn object(&self, id: SessionId) -> io::Result<BorrowedFd<'_>> {
        Ok(self.get(id)?.made.object.as_fd())
    }

    /// The session's doorbell.
    pub fn doorbell(&self, id: SessionId) -> io::Result<BorrowedFd<'_>> {
        self.get(id)?.made.doorbell()
    }

    fn get(&self, id: SessionId) -> io::Result<&Session> {
        self.all.get(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// Whether the process that had a pid and lived at that moment has ended, with all of its threads.
fn is_gone(pid: u32, lived_at: u64) -> Result<bool, ProcessError> {
    let fd = match pidfd::open(pid) {
        Ok(fd) => fd,
        Err(ProcessError::Gone { .. }) => return Ok(true),
        Err(error) => return Err(error),
    };
    // Looked at with the pidfd in hand: that the first thread has ended says nothing of others.
    match process::start_time(pid) {
        Ok(started) if started <= lived_at => pidfd::has_ended(fd.as_fd()),
        Ok(_) | Err(ProcessError::Gone { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The process that has a pid and lived at that moment, if it does still.
pub fn find(pid: u32, lived_at: u64) -> Option<OwnedFd> {
    let fd = pidfd::open(pid).ok()?;
    // Looked at with the pidfd in hand, the answer cannot be about a later process.
    process::is_alive(pid, lived_at).unwrap_or(false).then_some(fd)
}

fn index(place: u32) -> usize {
    usize::try_from(place).unwrap_or(usize::MAX)
}

fn to_grant(place: usize, grant: record::Grant) -> Grant {
    let rights = Rights { read: grant.rights.can_read(), write: grant.rights.can_write() };
    let place = u32::try_from(place).expect("a record has few places");
    Grant { place, block: grant.block, rights }
}

fn to_record(of: record::SessionRecord) -> SessionRecord {
    SessionRecord {
        session: of.identity.session,
        guid: of.identity.guid,
        pid: of.process.pid,
        lived_at: of.process.lived_at,
        uid: of.uid,
        gid: of.gid,
        reserved: of.reserved,
        created_at: of.created_at,
        pointer_bits: u8::try_from(of.pointer_bits).unwrap_or(0),
        copies: of.copies,
        name: of.name,
    }
}

fn from_record(
    of: &SessionRecord,
    identity: SessionIdentity,
    process: ProcessIdentity,
) -> record::SessionRecord {
    record::SessionRecord {
        identity,
        process,
        uid: of.uid,
        gid: of.gid,
        reserved: of.reserved,
        created_at: of.created_at,
        pointer_bits: of.pointer_bits.into(),
        copies: of.copies,
        name: of.name.clone(),
    }
}

#[cfg(test)]
mod tests;

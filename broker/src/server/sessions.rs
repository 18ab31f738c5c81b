//! The objects, doorbells and processes of sessions.
//!
//! # Invariants
//!
//! 1. Made in the order object, record; removed in the order object, record. So a record without an
//!    object, or the other way round, belongs to nobody and is removed at the next start.
//! 2. What a client can write is read by `pread` and written by `pwrite` alone ([`SessionObject`]).
//! 3. A process is watched by a pidfd that its socket told, or that was found by its pid and then
//!    checked against a moment at which it lived ([`find`]).
//! 4. What a client adds to its session object is found by [`Sessions::check`], which looks at a
//!    few objects a second, each in its turn, and takes it away again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::Status;
use dmce_abi::block::SessionId;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::Refusal;
use dmce_broker::dispatcher::{BelievedSession, Event, Grant, Millis, Rights, SessionRecord};
use dmce_shm::fence::Fence;
use dmce_shm::record::{self, ProcessIdentity};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::{SessionError, SessionObject};
use dmce_sys::object::ObjectError;
use dmce_sys::poll::{EventFd, Interest, Poller};
use dmce_sys::{pidfd, process};
use tracing::{error, info, warn};

use super::Source;
use super::objects::{BROKER, Objects};

/// Session objects that one check looks at, and how often there is one.
const CHECKS_A_TURN: usize = 256;
const CHECK_MS: u64 = 1_000;

struct Session {
    object: SessionObject,
    record: OwnedFd,
    doorbell: Option<EventFd>,
    process: Option<OwnedFd>,
}

/// All sessions that have objects.
pub struct Sessions {
    boot_id: [u8; 16],
    fence: Fence,
    all: BTreeMap<SessionId, Session>,
    /// The last session that was checked, if there may be others after it.
    checked: Option<SessionId>,
    check_at: Millis,
}

impl Sessions {
    /// None yet.
    pub fn new(boot_id: [u8; 16]) -> Self {
        let (all, fence) = (BTreeMap::new(), Fence::register());
        Self { boot_id, fence, all, checked: None, check_at: Millis(0) }
    }

    /// Takes up the sessions of an earlier broker whose processes live; removes what is left of
    /// the others. `kinds` are the broker's own objects.
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
                Err(why) => {
                    info!(session = id, "recovered as dead: {why}");
                    remove_leftovers(objects, id);
                }
            }
        }
        believed
    }

    fn take_up_one(&mut self, objects: &Objects, id: u32) -> Result<BelievedSession, String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let open = |kind| match objects.open(BROKER, kind, true) {
            Ok((fd, _)) => Ok(fd),
            Err(error) => Err(text(&error)),
        };
        let record_fd = open(ObjectKind::Record(id))?;
        let record = record::read(record_fd.as_fd()).map_err(|error| text(&error))?;
        let grants = record::grants(record_fd.as_fd()).map_err(|error| text(&error))?;
        let session = record.identity.session;
        if session.get() != id {
            return Err(format!("its record is that of session {session}"));
        }
        let who = record.process;
        let alive = process::is_alive(who.pid, who.lived_at).map_err(|error| text(&error))?;
        if who.boot_id != self.boot_id || !alive {
            return Err(format!("process {} is gone", who.pid));
        }
        let object = SessionObject::open(open(ObjectKind::Session(id))?, self.fence)
            .map_err(|error| text(&error))?;
        let generation = object.generation().map_err(|error| text(&error))?;
        let kept = Session { object, record: record_fd, doorbell: None, process: None };
        self.all.insert(session, kept);
        let grants = grants.into_iter().map(|(place, grant)| to_grant(place, grant)).collect();
        Ok(BelievedSession { record: to_record(record), generation, grants })
    }

    /// Makes the objects of a session. What a failure leaves is removed by [`Self::end`].
    pub fn create(&mut self, objects: &Objects, record: &SessionRecord) -> Result<(), Refusal> {
        let refusal = |error: &dyn std::error::Error| {
            let text = format!("the session's objects: {error}");
            Refusal::new(Status::NoSpace, text)
        };
        let identity = SessionIdentity { session: record.session, guid: record.guid };
        let process =
            ProcessIdentity { pid: record.pid, lived_at: record.lived_at, boot_id: self.boot_id };
        let id = record.session.get();
        let new = |kind| {
            let create = || objects.folder().create(&objects.name(BROKER, kind));
            let made = match create() {
                // What is left of a session that this broker does not know.
                Err(ObjectError::Exists { .. }) => {
                    remove_leftover(objects, kind);
                    create()
                }
                made => made,
            };
            made.map_err(|error| match error {
                // Another user's: it could not be removed.
                ObjectError::Exists { .. } => Refusal::new(Status::Exists, error.to_string()),
                error => refusal(&error),
            })
        };
        let fd = new(ObjectKind::Session(id))?;
        let object =
            SessionObject::create(fd, identity, self.fence).map_err(|error| refusal(&error))?;
        let fd = new(ObjectKind::Record(id))?;
        record::create(fd.as_fd(), &from_record(record, identity, process))
            .map_err(|error| refusal(&error))?;
        let session = Session { object, record: fd, doorbell: None, process: None };
        self.all.insert(record.session, session);
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

    /// When the next session objects are to be checked; never, while there are none.
    pub fn check_at(&self) -> Option<Millis> {
        (!self.all.is_empty()).then_some(self.check_at)
    }

    /// Looks whether clients made their session objects larger, or smaller: their sessions end.
    pub fn check(&mut self, now: Millis, events: &mut VecDeque<Event>) {
        self.check_at = now.after(CHECK_MS);
        let from = self.checked.take().map_or(Unbounded, Excluded);
        for (id, session) in self.all.range((from, Unbounded)).take(CHECKS_A_TURN) {
            self.checked = Some(*id);
            let Err(error) = session.object.check_size() else { continue };
            if let SessionError::Resized { .. } = error {
                if let Err(error) = session.object.cut() {
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

    /// Removes all that there is of a session.
    pub fn end(&mut self, poller: &Poller, objects: &Objects, id: SessionId) {
        let Some(session) = self.all.remove(&id) else {
            // It was not made to the end.
            return remove_leftovers(objects, id.get());
        };
        if let Some(fd) = session.process {
            let _ = poller.remove(fd.as_fd());
        }
        for kind in kinds(id.get()) {
            unlink(objects, kind);
        }
    }

    /// Writes a grant into the record.
    pub fn store_grant(&self, id: SessionId, grant: Grant) {
        let Some(session) = self.all.get(&id) else { return };
        let Some(rights) = record::Rights::of(grant.rights.read, grant.rights.write) else {
            return;
        };
        let stored = record::Grant { block: grant.block, rights };
        if let Err(error) = record::grant(session.record.as_fd(), index(grant.place), stored) {
            error!(session = id.get(), "a grant is not in the record: {error}");
        }
    }

    /// Frees a grant's place in the record.
    pub fn revoke_grant(&self, id: SessionId, place: u32) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = record::revoke(session.record.as_fd(), index(place)) {
            error!(session = id.get(), "a grant stays in the record: {error}");
        }
    }

    /// Publishes a generation and wakes the session's service thread.
    pub fn publish(&self, id: SessionId, generation: u64) {
        let Some(session) = self.all.get(&id) else { return };
        if let Err(error) = session.object.publish(generation) {
            // Its client cut its own object: only that client misses the change.
            warn!(session = id.get(), "its generation is not published: {error}");
        }
        // It fails only for want of memory, and nothing may be read off the marks without it.
        while self.fence.heavy_host().is_err() {
            std::thread::yield_now();
        }
        self.ring(id);
    }

    /// Wakes the session's service thread.
    pub fn ring(&self, id: SessionId) {
        let doorbell = self.all.get(&id).and_then(|session| session.doorbell.as_ref());
        if let Some(doorbell) = doorbell
            && let Err(error) = doorbell.signal()
        {
            warn!(session = id.get(), "its doorbell: {error}");
        }
    }

    /// A descriptor of the session object, to read and write.
    pub fn object(&self, id: SessionId) -> io::Result<OwnedFd> {
        self.get(id)?.object.as_fd().try_clone_to_owned()
    }

    /// A descriptor of the session's doorbell, which is made at the first use.
    pub fn doorbell(&mut self, id: SessionId) -> io::Result<OwnedFd> {
        let session = self.all.get_mut(&id).ok_or(io::ErrorKind::NotFound)?;
        let doorbell = match &mut session.doorbell {
            Some(doorbell) => doorbell,
            none => none.insert(EventFd::new()?),
        };
        doorbell.as_fd().try_clone_to_owned()
    }

    fn get(&self, id: SessionId) -> io::Result<&Session> {
        self.all.get(&id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// The process that has a pid and lived at that moment, if it does still.
pub fn find(pid: u32, lived_at: u64) -> Option<OwnedFd> {
    let fd = pidfd::open(pid).ok()?;
    // Looked at with the pidfd in hand, the answer cannot be about a later process.
    process::is_alive(pid, lived_at).unwrap_or(false).then_some(fd)
}

/// The objects of a session, in the order in which they are removed: a session object without a
/// record belongs to nobody.
const fn kinds(id: u32) -> [ObjectKind; 2] {
    [ObjectKind::Record(id), ObjectKind::Session(id)]
}

fn remove_leftovers(objects: &Objects, id: u32) {
    for kind in kinds(id) {
        remove_leftover(objects, kind);
    }
}

/// Removes an object that this broker may not have made. What is not ours is left.
fn remove_leftover(objects: &Objects, kind: ObjectKind) {
    if objects.is_foreign(BROKER, kind) {
        warn!(object = objects.name(BROKER, kind), "it is not ours: left as it is");
    } else {
        unlink(objects, kind);
    }
}

fn unlink(objects: &Objects, kind: ObjectKind) {
    let name = objects.name(BROKER, kind);
    match objects.folder().unlink(&name) {
        Ok(()) | Err(ObjectError::NotFound { .. }) => {}
        Err(error) => warn!(object = name, "it stays behind: {error}"),
    }
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
mod tests {
    use std::process::{Child, Command};

    use dmce_sys::clock::boot_ticks;

    use super::*;

    /// A process that runs until it is dropped.
    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_is_found_by_its_pid_unless_it_has_the_pid_of_one_that_lived_before() {
        let mut sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
        let pid = sleeper.0.id();
        assert!(find(pid, boot_ticks()).is_some());
        let started = process::start_time(pid).unwrap();
        assert!(find(pid, started).is_some(), "it was taken in within the tick of its start");
        assert!(find(pid, started - 1).is_none(), "the pid was another's then");
        sleeper.0.kill().unwrap();
        let mut ended = Vec::new();
        let fd = pidfd::open(pid).unwrap();
        let poller = Poller::new().unwrap();
        poller.add(fd.as_fd(), 0, Interest::READ).unwrap();
        while ended.is_empty() {
            poller.wait(None, &mut ended).unwrap();
        }
        assert!(find(pid, boot_ticks()).is_none(), "it is a zombie");
    }
}

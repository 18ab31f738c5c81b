//! What a session is made of: object, record and doorbell; how they come and how they go.
//!
//! | step | if the broker dies right after it |
//! |---|---|
//! | the session object is made and written | no record: removed by the next broker |
//! | the record is made, and, ahead of a Setup, committed | it is not ready: both are removed |
//! | Setup: the record is written, but for `ready` | the same |
//! | `ready` | believed while its process lives, until `reattach_ms` are over without Attach |
//! | end: `ready` is cleared | both are removed |
//! | the record is unlinked, then the session object | no record, or nothing |
//!
//! # Invariants
//!
//! 1. A record without an object, or the other way round, belongs to nobody; so does a record that
//!    is not ready.
//! 2. What a client can write is read by `pread` and written by `pwrite` alone ([`SessionObject`]).
//! 3. The objects of sessions that ended go a few together, and not while somebody waits: each name
//!    that goes wakes all who watch the folder, which is every daemon. They are believed by nobody
//!    from the moment that their session ends.

use std::cell::OnceCell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dmce_abi::Status;
use dmce_abi::block::SessionId;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::Refusal;
use dmce_broker::dispatcher::Millis;
use dmce_shm::fence::Fence;
use dmce_shm::record::{self, SessionRecord};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::SessionObject;
use dmce_sys::crash::{Point, point};
use dmce_sys::object::ObjectError;
use dmce_sys::poll::EventFd;
use tracing::warn;

use super::objects::{BROKER, Objects};

/// Sessions that ended whose objects may be there still, and how long after the last of them.
pub const LEAVING_MAX: usize = 16;
const LEAVING_MS: u64 = 2;

/// The objects and the doorbell of a session.
pub struct Made {
    /// The session object.
    pub object: SessionObject,
    /// The record.
    pub record: OwnedFd,
    doorbell: OnceCell<EventFd>,
}

impl Made {
    /// Takes up the objects that an earlier broker made.
    pub const fn found(object: SessionObject, record: OwnedFd) -> Self {
        Self { object, record, doorbell: OnceCell::new() }
    }

    /// Makes both objects. The record is empty.
    pub fn new(
        objects: &Objects,
        identity: SessionIdentity,
        fence: Fence,
    ) -> Result<Self, Refusal> {
        let id = identity.session.get();
        let fd = new(objects, ObjectKind::Session(id))?;
        point(Point::SessionCreated);
        let object = SessionObject::create(fd, identity, fence).map_err(|e| refusal(&e))?;
        let record = new(objects, ObjectKind::Record(id))?;
        point(Point::RecordCreated);
        Ok(Self { object, record, doorbell: OnceCell::new() })
    }

    /// Makes them for a session that nobody has yet: all is there but what the record says.
    pub fn ahead(
        objects: &Objects,
        identity: SessionIdentity,
        fence: Fence,
    ) -> Result<Self, Refusal> {
        let made = Self::new(objects, identity, fence)?;
        record::prepare(made.record.as_fd()).map_err(|e| refusal(&e))?;
        made.doorbell().map_err(|e| refusal(&e))?;
        Ok(made)
    }

    /// Writes the record: from now on the session is believed.
    pub fn write(&self, record: &SessionRecord) -> Result<(), Refusal> {
        record::create(self.record.as_fd(), record).map_err(|e| refusal(&e))
    }

    /// The doorbell, which is made at the first use.
    pub fn doorbell(&self) -> io::Result<BorrowedFd<'_>> {
        if self.doorbell.get().is_none() {
            // Nobody else sets it: this is the only thread.
            let _ = self.doorbell.set(EventFd::new()?);
        }
        self.doorbell.get().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Rings the doorbell, if there is one.
    pub fn ring(&self) -> io::Result<()> {
        self.doorbell.get().map_or(Ok(()), EventFd::signal)
    }
}

/// Sessions that ended, and whose objects have yet to go.
#[derive(Default)]
pub struct Leaving {
    all: Vec<SessionId>,
    at: Millis,
}

impl Leaving {
    /// Has the objects of a session go. It is believed no more when this returns.
    pub fn add(&mut self, objects: &Objects, id: SessionId, made: &Made, now: Millis) {
        if let Err(error) = record::end(made.record.as_fd()) {
            warn!(session = id.get(), "its record goes at once: {error}");
            return remove_leftovers(objects, id.get());
        }
        self.all.push(id);
        self.at = now.after(LEAVING_MS);
        if self.all.len() >= LEAVING_MAX {
            self.clear(objects);
        }
    }

    /// When they are to go, if there are any.
    pub fn at(&self) -> Option<Millis> {
        (!self.all.is_empty()).then_some(self.at)
    }

    /// Makes room for a session whose id is given again.
    pub fn give_way(&mut self, objects: &Objects, id: SessionId) {
        if self.all.contains(&id) {
            self.clear(objects);
        }
    }

    /// Removes them.
    pub fn clear(&mut self, objects: &Objects) {
        for id in self.all.drain(..) {
            let points = [Point::RecordUnlinked, Point::SessionUnlinked];
            for (kind, passed) in kinds(id.get()).into_iter().zip(points) {
                unlink(objects, kind);
                point(passed);
            }
        }
    }
}

/// A new object; what is left of a session that this broker does not know goes for it.
fn new(objects: &Objects, kind: ObjectKind) -> Result<OwnedFd, Refusal> {
    let name = objects.name(BROKER, kind);
    let made = match objects.folder().create(&name) {
        Err(ObjectError::Exists { .. }) => {
            remove_leftover(objects, kind);
            objects.folder().create(&name)
        }
        made => made,
    };
    made.map_err(|error| match error {
        // Another user's: it could not be removed.
        ObjectError::Exists { .. } => Refusal::new(Status::Exists, error.to_string()),
        error => refusal(&error),
    })
}

fn refusal(error: &dyn std::error::Error) -> Refusal {
    Refusal::new(Status::NoSpace, format!("the session's objects: {error}"))
}

/// The objects of a session, in the order in which they are removed: a session object without a
/// record belongs to nobody.
const fn kinds(id: u32) -> [ObjectKind; 2] {
    [ObjectKind::Record(id), ObjectKind::Session(id)]
}

/// Removes what there may be of a session that was not made to the end.
pub fn remove_leftovers(objects: &Objects, id: u32) {
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

//! The sessions that live, as their records and objects say.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;

use dmce_abi::block::{Guid, SessionId};
use dmce_abi::name::ObjectKind;
use dmce_shm::fence::Fence;
use dmce_shm::record::{self, RecordError};
use dmce_shm::session::object::SessionObject;
use dmce_sys::object::ObjectError;

use super::Difference;
use super::objects::{BROKER, Objects};

/// Why what is left of a session is nobody's that was not ended.
pub const DEAD: &str = "its process is gone";

/// A session that lives.
struct Session {
    guid: Guid,
    /// Its slots that have an intent.
    intents: BTreeSet<u8>,
}

/// All that live.
pub struct Sessions(BTreeMap<u32, Session>);

impl Sessions {
    /// Reads all records and objects. A record that is not ready, with its object, is nobody's yet
    /// or any more, and is left out.
    pub fn read(objects: &Objects, differences: &mut Vec<Difference>) -> Result<Self, ObjectError> {
        let mut all = BTreeMap::new();
        for kind in objects.of(BROKER) {
            match kind {
                ObjectKind::Record(id) if !objects.has(BROKER, ObjectKind::Session(id)) => {
                    differences.push(objects.leftover(BROKER, kind, "there is no session object"));
                }
                ObjectKind::Session(id) if !objects.has(BROKER, ObjectKind::Record(id)) => {
                    differences.push(objects.leftover(BROKER, kind, "there is no record"));
                }
                ObjectKind::Session(id) => match read(objects, id)? {
                    Ok(Some(session)) => _ = all.insert(id, session),
                    Ok(None) => {}
                    Err(difference) => differences.push(difference),
                },
                ObjectKind::Record(_)
                | ObjectKind::LockTable(_)
                | ObjectKind::Drain(_)
                | ObjectKind::Lock => {}
                ObjectKind::Pool(_) | ObjectKind::Data(_) | ObjectKind::Header(_) => {
                    differences.push(objects.leftover(BROKER, kind, "no broker makes one"));
                }
            }
        }
        Ok(Self(all))
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// How many intents they have.
    pub fn intents(&self) -> u64 {
        self.0.values().map(|session| session.intents.len() as u64).sum()
    }

    /// Whether a session of that id and GUID lives.
    pub fn has(&self, id: SessionId, guid: Guid) -> bool {
        self.0.get(&id.get()).is_some_and(|session| session.guid == guid)
    }

    /// Whether a slot of a session has an intent; `None` if the session does not live.
    pub fn has_intent(&self, id: u32, slot: u8) -> Option<bool> {
        Some(self.0.get(&id)?.intents.contains(&slot))
    }
}

/// A session that lives, or none if it is nobody's or has gone meanwhile.
fn read(objects: &Objects, id: u32) -> Result<Result<Option<Session>, Difference>, ObjectError> {
    let kind = ObjectKind::Record(id);
    let Some(fd) = objects.open(BROKER, kind)? else { return Ok(Ok(None)) };
    let record = match record::read(fd.as_fd()) {
        Ok(record) => record,
        Err(RecordError::NeverReady) => return Ok(Ok(None)),
        Err(RecordError::Object(error)) => return Err(error),
        Err(error) => return Ok(Err(objects.unsound(BROKER, kind, &error))),
    };
    if record.identity.session.get() != id {
        return Ok(Err(objects.unsound(BROKER, kind, &"it is another session's")));
    }
    match record.process.is_alive() {
        Ok(true) => {}
        Ok(false) => return Ok(Err(objects.leftover(BROKER, kind, DEAD))),
        Err(error) => return Ok(Err(objects.unsound(BROKER, kind, &error))),
    }
    let kind = ObjectKind::Session(id);
    let Some(fd) = objects.open(BROKER, kind)? else { return Ok(Ok(None)) };
    let intents = SessionObject::open(fd, Fence::Asymmetric).and_then(|object| object.intents());
    Ok(match intents {
        Ok(intents) => {
            let intents = intents.into_iter().map(|(slot, _)| slot).collect();
            Ok(Some(Session { guid: record.identity.guid, intents }))
        }
        Err(error) => Err(objects.unsound(BROKER, kind, &error)),
    })
}

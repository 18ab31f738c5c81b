//! The shared memory objects of an instance: who serves them, and their removal.
//!
//! # Invariants
//!
//! 1. That somebody serves is said by the lock that they hold, never by a name, socket or pid.
//! 2. Objects are removed only while the lock of their server is held here, and, if all are, all
//!    locks of the instance: nobody serves them.
//! 3. Only names with the prefix of the instance are touched. No instance's prefix begins that of
//!    another, because names of instances have no dot.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::path::Path;

use dmce_abi::name::{Instance, ObjectKind, ObjectName};
use dmce_sys::lock::{self, LockError, OfdLock};
use dmce_sys::object::{ObjectDir, ObjectError};

/// The broker's place among the daemons of object names.
const BROKER: u32 = 0;

/// The objects of one instance.
#[derive(Debug)]
pub struct Objects {
    dir: ObjectDir,
    instance: Instance,
}

/// Why objects could not be looked at or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum ObjectsError {
    /// The folder or an object in it.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel's answer about a lock.
    #[error("the lock {name} cannot be asked")]
    Lock { name: String, source: LockError },
    /// Somebody serves the instance.
    #[error("instance {instance} is served, {name} is locked: nothing was removed")]
    Served { instance: Instance, name: String },
}

impl Objects {
    /// The objects of `instance` in `folder`.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`] if there is no such folder.
    pub fn open(folder: &Path, instance: Instance) -> Result<Self, ObjectsError> {
        Ok(Self { dir: ObjectDir::open(folder)?, instance })
    }

    /// The folder.
    pub fn dir(&self) -> &ObjectDir {
        &self.dir
    }

    /// Whose objects these are.
    pub fn instance(&self) -> &Instance {
        &self.instance
    }

    /// The names of all objects, sorted.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`].
    pub fn names(&self) -> Result<Vec<String>, ObjectsError> {
        Ok(self.dir.names(&self.instance.prefix())?)
    }

    /// Whether a broker serves.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`], [`ObjectsError::Lock`].
    pub fn has_broker(&self) -> Result<bool, ObjectsError> {
        self.is_served(BROKER)
    }

    /// The daemons that serve.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`], [`ObjectsError::Lock`].
    pub fn served_daemons(&self) -> Result<BTreeSet<u32>, ObjectsError> {
        let mut served = BTreeSet::new();
        for name in self.locks()? {
            if name.daemon != BROKER && self.is_served(name.daemon)? {
                served.insert(name.daemon);
            }
        }
        Ok(served)
    }

    /// Whether a process holds the lock of a daemon, or of the broker, 0.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`], [`ObjectsError::Lock`].
    pub fn is_served(&self, daemon: u32) -> Result<bool, ObjectsError> {
        let name = self.lock_of(daemon).to_string();
        match self.dir.open_read_only(&name) {
            Ok(fd) => lock::holder_exists(fd.as_fd())
                .map_err(|source| ObjectsError::Lock { name, source }),
            Err(ObjectError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes every object, if nobody serves. Memory that a process still has mapped is freed when
    /// that process ends; its bytes stay as they are until then.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Served`], and nothing was removed. [`ObjectsError::Object`]: what could be
    /// removed was removed, and this is the first that could not.
    pub fn remove(&self) -> Result<(), ObjectsError> {
        let _held = self.take_locks()?;
        self.unlink(self.names()?.into_iter())
    }

    /// Whether there are blocks: memory that a server would find again.
    ///
    /// # Errors
    ///
    /// [`ObjectsError::Object`].
    pub fn has_blocks(&self) -> Result<bool, ObjectsError> {
        Ok(self.names()?.iter().any(|name| is_of_block(name)))
    }

    /// Removes what was made since the names were `before`, but for what is of a process that
    /// serves. If there were blocks, those that came to them stay: clients of then may have come
    /// back for a moment.
    ///
    /// # Errors
    ///
    /// As [`Objects::remove`], but what is served is no error.
    pub fn remove_since(&self, before: &BTreeSet<String>) -> Result<(), ObjectsError> {
        let keeps_blocks = before.iter().any(|name| is_of_block(name));
        let stays = |name: &String| before.contains(name) || keeps_blocks && is_of_block(name);
        let names = self.names()?.into_iter().filter(|name| !stays(name));
        let parsed: Vec<_> = names.filter_map(|name| ObjectName::parse(&name).ok()).collect();
        let servers: BTreeSet<u32> = parsed.iter().map(|name| name.daemon).collect();
        for server in servers {
            let _held = match self.take_lock(&self.lock_of(server)) {
                Ok(held) => Some(held),
                Err(ObjectsError::Object(ObjectError::NotFound { .. })) => None,
                Err(ObjectsError::Served { .. }) => continue,
                Err(error) => return Err(error),
            };
            let of_server = parsed.iter().filter(|name| name.daemon == server);
            self.unlink(of_server.map(ObjectName::to_string))?;
        }
        Ok(())
    }

    /// Unlinks all of `names` that can be; the locks last: until then a server that starts finds
    /// them held.
    fn unlink(&self, names: impl Iterator<Item = String>) -> Result<(), ObjectsError> {
        let (locks, others): (Vec<_>, Vec<_>) = names.partition(|name| is_lock(name));
        let mut refused = None;
        for name in others.iter().chain(&locks) {
            match self.dir.unlink(name) {
                Ok(()) | Err(ObjectError::NotFound { .. }) => {}
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }

    fn take_locks(&self) -> Result<Vec<OfdLock>, ObjectsError> {
        self.locks()?.iter().map(|lock| self.take_lock(lock)).collect()
    }

    fn take_lock(&self, lock: &ObjectName) -> Result<OfdLock, ObjectsError> {
        let name = lock.to_string();
        match OfdLock::try_exclusive(self.dir.open_read_write(&name)?) {
            Ok(lock) => Ok(lock),
            Err(LockError::Held) => {
                Err(ObjectsError::Served { instance: self.instance.clone(), name })
            }
            Err(source) => Err(ObjectsError::Lock { name, source }),
        }
    }

    fn locks(&self) -> Result<Vec<ObjectName>, ObjectsError> {
        let names = self.names()?.into_iter();
        let parsed = names.filter_map(|name| ObjectName::parse(&name).ok());
        Ok(parsed.filter(|name| name.kind == ObjectKind::Lock).collect())
    }

    fn lock_of(&self, daemon: u32) -> ObjectName {
        ObjectName { instance: self.instance.clone(), daemon, kind: ObjectKind::Lock }
    }
}

/// The instances that have objects in a folder.
///
/// # Errors
///
/// [`ObjectsError::Object`].
pub fn instances_in(folder: &Path) -> Result<BTreeSet<Instance>, ObjectsError> {
    let names = ObjectDir::open(folder)?.names("dmce.")?;
    Ok(names.iter().filter_map(|name| Some(ObjectName::parse(name).ok()?.instance)).collect())
}

fn is_lock(name: &str) -> bool {
    ObjectName::parse(name).is_ok_and(|name| name.kind == ObjectKind::Lock)
}

/// What has no name that is known may be a block of another release.
fn is_of_block(name: &str) -> bool {
    ObjectName::parse(name)
        .map_or(true, |name| matches!(name.kind, ObjectKind::Data(_) | ObjectKind::Header(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmce_sys::object::DEFAULT_DIR;

    /// Objects of a test, removed whatever happens.
    struct Scratch(Objects);

    impl Scratch {
        fn new(name: &str) -> Self {
            let instance = Instance::new(&format!("test{}-{name}", std::process::id())).unwrap();
            Self(Objects::open(Path::new(DEFAULT_DIR), instance).unwrap())
        }

        fn make(&self, daemon: u32, kind: ObjectKind) -> std::os::fd::OwnedFd {
            let name = ObjectName { instance: self.0.instance.clone(), daemon, kind };
            self.0.dir.create(&name.to_string()).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            for name in self.0.names().unwrap() {
                let _ = self.0.dir.unlink(&name);
            }
        }
    }

    #[test]
    fn a_lock_says_who_serves_and_a_name_does_not() {
        let scratch = Scratch::new("who");
        assert!(!scratch.0.has_broker().unwrap(), "no object, nobody");
        let broker = scratch.make(0, ObjectKind::Lock);
        drop(scratch.make(1, ObjectKind::Lock));
        let daemon = OfdLock::try_exclusive(scratch.make(2, ObjectKind::Lock)).unwrap();
        assert!(!scratch.0.has_broker().unwrap());
        assert_eq!(scratch.0.served_daemons().unwrap(), BTreeSet::from([2]));
        let broker = OfdLock::try_exclusive(broker).unwrap();
        assert!(scratch.0.has_broker().unwrap());
        drop((broker, daemon));
        assert!(!scratch.0.has_broker().unwrap());
        assert!(scratch.0.served_daemons().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_removed_while_anybody_serves() {
        let scratch = Scratch::new("served");
        scratch.make(1, ObjectKind::Data(7));
        scratch.make(1, ObjectKind::Lock);
        let daemon = OfdLock::try_exclusive(scratch.make(2, ObjectKind::Lock)).unwrap();
        let error = scratch.0.remove().unwrap_err();
        assert!(matches!(&error, ObjectsError::Served { name, .. } if name.ends_with(".2.lock")));
        assert_eq!(scratch.0.names().unwrap().len(), 3);
        drop(daemon);
        scratch.0.remove().unwrap();
        assert!(scratch.0.names().unwrap().is_empty());
    }

    #[test]
    fn what_came_since_goes_but_for_what_is_served_and_for_blocks_beside_blocks() {
        let scratch = Scratch::new("since");
        scratch.make(1, ObjectKind::Lock);
        let before: BTreeSet<_> = scratch.0.names().unwrap().into_iter().collect();
        scratch.make(0, ObjectKind::Lock);
        scratch.make(0, ObjectKind::Record(3));
        scratch.make(1, ObjectKind::Data(7));
        scratch.make(2, ObjectKind::Pool(1));
        let daemon = OfdLock::try_exclusive(scratch.make(2, ObjectKind::Lock)).unwrap();
        assert!(scratch.0.has_blocks().unwrap());
        scratch.0.remove_since(&before).unwrap();
        assert_eq!(scratch.0.names().unwrap().len(), 3, "the old lock, and two of daemon 2");
        assert!(!scratch.0.has_blocks().unwrap());

        drop(daemon);
        scratch.make(1, ObjectKind::Data(7));
        let before: BTreeSet<_> = scratch.0.names().unwrap().into_iter().collect();
        scratch.make(1, ObjectKind::Data(8));
        scratch.make(1, ObjectKind::Pool(2));
        scratch.0.remove_since(&before).unwrap();
        assert_eq!(scratch.0.names().unwrap().len(), before.len() + 1, "the new block is left");
    }

    #[test]
    fn objects_of_an_instance_whose_name_is_longer_stay() {
        let (ours, longer) = (Scratch::new("n"), Scratch::new("nn"));
        ours.make(3, ObjectKind::Header(1));
        let unknown = format!("{}1.data-of-a-later-release", ours.0.instance.prefix());
        ours.0.dir.create(&unknown).unwrap();
        longer.make(3, ObjectKind::Header(1));
        let all = instances_in(Path::new(DEFAULT_DIR)).unwrap();
        assert!(all.contains(&ours.0.instance) && all.contains(&longer.0.instance));
        ours.0.remove().unwrap();
        assert!(ours.0.names().unwrap().is_empty());
        assert_eq!(longer.0.names().unwrap().len(), 1);
    }
}

//! The objects of one daemon: their names, and whether one is what it should be.
//!
//! # Invariants
//!
//! 1. An object is used only if it is a regular file of this user, mode 0600, with one name, opened
//!    without following a link. What is not is *foreign*: left as it is.
//! 2. "It is not there", "it is not ours" and "it could not be looked at" are three answers. Only
//!    the first two say something about the object.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use dmce_abi::block::DaemonId;
use dmce_abi::name::{Instance, ObjectKind, ObjectName};
use dmce_abi::wire::daemon::PoolPlace;
use dmce_sys::identity;
use dmce_sys::lock::{LockError, OfdLock};
use dmce_sys::object::{self, ObjectDir, ObjectError, ObjectStat};

/// Whose name the broker's objects have.
pub const BROKER: u32 = 0;

/// The folder, and whose objects in it are meant.
#[derive(Debug)]
pub struct Folder {
    dir: ObjectDir,
    instance: Instance,
    daemon: DaemonId,
    uid: u32,
    next_place: AtomicU32,
    huge_pages: bool,
}

/// An open object that passed the checks.
#[derive(Debug)]
pub struct Own {
    fd: OwnedFd,
    /// What it was when it was checked.
    pub stat: ObjectStat,
}

/// What there is under a name.
#[derive(Debug)]
pub enum Found {
    /// Ours.
    Own(Own),
    /// Something that is not what we made: to be left.
    Foreign {
        /// Why.
        reason: &'static str,
    },
    /// Nothing.
    Missing,
}

/// Why the daemon is not the one that serves its id.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is one already.
    #[error("daemon {daemon} of instance {instance} is served by another process")]
    Served {
        /// The id.
        daemon: DaemonId,
        /// The instance.
        instance: Instance,
    },
    /// The lock object is not ours.
    #[error("{name} cannot be locked: {reason}")]
    Foreign {
        /// The object.
        name: String,
        /// Why.
        reason: &'static str,
    },
    /// The lock cannot be taken.
    #[error(transparent)]
    Lock(LockError),
    /// The lock object cannot be opened or made.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

impl Folder {
    /// Opens the folder at `path`.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::open`].
    pub fn open(path: &Path, instance: Instance, daemon: DaemonId) -> Result<Self, ObjectError> {
        let dir = ObjectDir::open(path)?;
        let (uid, next_place) = (identity::effective_uid(), AtomicU32::new(0));
        Ok(Self { dir, instance, daemon, uid, next_place, huge_pages: false })
    }

    /// The same, whose objects get huge pages where the kernel has some.
    #[must_use]
    pub fn with_huge_pages(self, huge_pages: bool) -> Self {
        Self { huge_pages, ..self }
    }

    /// Whether objects get huge pages.
    pub fn huge_pages(&self) -> bool {
        self.huge_pages
    }

    /// Makes this process the only one that serves the daemon, as long as the lock lives.
    ///
    /// # Errors
    ///
    /// [`ServeError`].
    pub fn lock(&self) -> Result<OfdLock, ServeError> {
        let name = self.name(ObjectKind::Lock);
        loop {
            let own = match self.look(ObjectKind::Lock)? {
                Found::Own(own) => own,
                Found::Foreign { reason } => return Err(ServeError::Foreign { name, reason }),
                Found::Missing => match self.dir.create(&name) {
                    Ok(_) | Err(ObjectError::Exists { .. }) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            let inode = own.stat.inode;
            let lock = OfdLock::try_exclusive(own.fd).map_err(|error| match error {
                LockError::Held => {
                    ServeError::Served { daemon: self.daemon, instance: self.instance.clone() }
                }
                other => ServeError::Lock(other),
            })?;
            // Another process may have removed the name between our look and our lock, and then
            // the next would lock a new object: only the lock on the name counts.
            if matches!(self.look(ObjectKind::Lock)?, Found::Own(own) if own.stat.inode == inode) {
                return Ok(lock);
            }
        }
    }

    /// The folder itself.
    pub fn dir(&self) -> &ObjectDir {
        &self.dir
    }

    /// A place in the pool that this process has not named before; an object may be there still.
    pub fn next_place(&self) -> PoolPlace {
        PoolPlace(self.next_place.fetch_add(1, Ordering::Relaxed))
    }

    /// Whose objects are meant.
    pub fn daemon(&self) -> DaemonId {
        self.daemon
    }

    /// The name of an object.
    pub fn name(&self, kind: ObjectKind) -> String {
        self.name_at(self.daemon.get(), kind)
    }

    fn name_at(&self, daemon: u32, kind: ObjectKind) -> String {
        ObjectName { instance: self.instance.clone(), daemon, kind }.to_string()
    }

    /// What this daemon's name says an object is; `None` for another's name, or no name of ours.
    pub fn kind_of(&self, name: &str) -> Option<ObjectKind> {
        let parsed = ObjectName::parse(name).ok()?;
        let ours = parsed.instance == self.instance && parsed.daemon == self.daemon.get();
        ours.then_some(parsed.kind)
    }

    /// All names that begin as this daemon's do, sorted.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::names`].
    pub fn names(&self) -> Result<Vec<String>, ObjectError> {
        self.dir.names(&self.instance.daemon_prefix(self.daemon.get()))
    }

    /// The ids of all session objects of the instance, as they are named.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::names`].
    pub fn sessions(&self) -> Result<Vec<u32>, ObjectError> {
        let names = self.dir.names(&self.instance.daemon_prefix(BROKER))?;
        let kinds = names.iter().filter_map(|name| ObjectName::parse(name).ok());
        let id = |name: ObjectName| match name.kind {
            ObjectKind::Session(id) => Some(id),
            _ => None,
        };
        Ok(kinds.filter_map(id).collect())
    }

    /// Opens an object for reading and writing, and checks it.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if the object could not be looked at: no descriptor is left, for example.
    pub fn look(&self, kind: ObjectKind) -> Result<Found, ObjectError> {
        self.look_at(self.daemon.get(), kind)
    }

    /// The same of an object of another daemon of the instance, or of the [`BROKER`].
    ///
    /// # Errors
    ///
    /// As [`Folder::look`].
    pub fn look_at(&self, daemon: u32, kind: ObjectKind) -> Result<Found, ObjectError> {
        let fd = match self.dir.open_read_write(&self.name_at(daemon, kind)) {
            Ok(fd) => fd,
            Err(ObjectError::NotFound { .. }) => return Ok(Found::Missing),
            Err(ObjectError::Denied { .. }) => {
                return Ok(Found::Foreign { reason: "it is a link or denies access" });
            }
            Err(ObjectError::Io { source, .. }) if is_no_file(&source) => {
                return Ok(Found::Foreign { reason: "it is no regular file" });
            }
            Err(error) => return Err(error),
        };
        let stat = object::stat(fd.as_fd())?;
        Ok(match fault(&stat, self.uid) {
            None => Found::Own(Own { fd, stat }),
            Some(reason) => Found::Foreign { reason },
        })
    }

    /// Removes a name, if it is there.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::unlink`], apart from its absence.
    pub fn unlink(&self, kind: ObjectKind) -> Result<(), ObjectError> {
        match self.dir.unlink(&self.name(kind)) {
            Ok(()) | Err(ObjectError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl Own {
    /// The object alone.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl AsFd for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What keeps an open object from being ours.
fn fault(stat: &ObjectStat, uid: u32) -> Option<&'static str> {
    match *stat {
        ObjectStat { regular: false, .. } => Some("it is no regular file"),
        ObjectStat { uid: owner, .. } if owner != uid => Some("it belongs to another user"),
        ObjectStat { mode, .. } if mode != 0o600 => Some("its mode is not 0600"),
        ObjectStat { links: 0, .. } => Some("it was removed"),
        ObjectStat { links, .. } if links != 1 => Some("it has another link"),
        _ => None,
    }
}

/// What opening a directory, a socket or a device answers.
fn is_no_file(error: &io::Error) -> bool {
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    error.kind() == io::ErrorKind::IsADirectory
        || matches!(error.raw_os_error(), Some(ENXIO | ENODEV))
}

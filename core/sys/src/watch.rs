//! Being told when an object's name is removed by somebody else.
//!
//! # Invariants
//!
//! 1. Every removal after [`Watch::begin`] is reported, or [`Removals::overflowed`] says that some
//!    were not and the directory has to be listed.
//! 2. Nothing here waits; the descriptor is readable when there is something to fetch.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::object::{ObjectDir, proc_path};

/// Why a directory cannot be watched (any longer).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WatchError {
    /// The directory itself was removed or its file system unmounted.
    #[error("the watched directory is gone")]
    Gone,
    /// Anything else that the kernel answered, as too many watches for this user.
    #[error("watching a directory failed")]
    Io(#[source] io::Error),
}

/// What was removed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removals {
    /// The names, in the order of their removal. Names that are not UTF-8 are left out.
    pub names: Vec<String>,
    /// The kernel's queue was full: names are missing.
    pub overflowed: bool,
}

/// A watch on a directory of objects.
///
/// The kernel takes milliseconds to release one, on a busy machine seconds, and what a dead process
/// has opened it releases from the last descriptor on: whoever has locks and sockets that others
/// wait for makes its watch before these.
#[derive(Debug)]
pub struct Watch {
    fd: OwnedFd,
}

impl Watch {
    /// A watch on nothing yet.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`].
    pub fn new() -> Result<Self, WatchError> {
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let fd = inotify::init(flags).map_err(|errno| WatchError::Io(errno.into()))?;
        Ok(Self { fd })
    }

    /// Watches a directory from now on.
    ///
    /// # Errors
    ///
    /// [`WatchError::Io`].
    pub fn begin(&self, dir: &ObjectDir) -> Result<(), WatchError> {
        // By descriptor, so that it is the directory that was opened, whatever its path is now.
        let path = proc_path(dir.as_fd());
        let flags = WatchFlags::DELETE | WatchFlags::ONLYDIR;
        match inotify::add_watch(&self.fd, path, flags) {
            Ok(_) => Ok(()),
            Err(errno) => Err(WatchError::Io(errno.into())),
        }
    }

    /// What was removed since the last call.
    ///
    /// # Errors
    ///
    /// [`WatchError::Gone`], [`WatchError::Io`].
    pub fn deleted(&self) -> Result<Removals, WatchError> {
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut space);
        let mut removals = Removals::default();
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::AGAIN) => return Ok(removals),
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(WatchError::Io(errno.into())),
            };
            let flags = event.events();
            if flags.intersects(ReadFlags::IGNORED | ReadFlags::UNMOUNT) {
                return Err(WatchError::Gone);
            }
            removals.overflowed |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            let name = event.file_name().and_then(|name| name.to_str().ok());
            if let Some(name) = name.filter(|_| flags.contains(ReadFlags::DELETE)) {
                removals.names.push(name.to_owned());
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::poll::wait_readable;
    use crate::testing::TestObjects;

    #[test]
    fn reports_removed_names_once() {
        let objects = TestObjects::new("watch");
        let watch = Watch::new().unwrap();
        watch.begin(&objects.dir).unwrap();
        let (a, b) = (objects.name("a"), objects.name("b"));
        objects.dir.create(&a).unwrap();
        objects.dir.create(&b).unwrap();
        objects.dir.unlink(&b).unwrap();
        objects.dir.unlink(&a).unwrap();
        assert!(wait_readable(watch.as_fd(), Some(Duration::from_secs(60))).unwrap());
        let mut found = watch.deleted().unwrap();
        assert!(!found.overflowed);
        // Other tests remove objects of theirs meanwhile.
        found.names.retain(|name| name.starts_with(objects.prefix()));
        assert_eq!(found.names, [b, a]);
        let again = watch.deleted().unwrap().names;
        assert!(!again.iter().any(|name| name.starts_with(objects.prefix())));
    }

    #[test]
    fn says_so_when_the_directory_itself_is_removed() {
        let path = std::env::temp_dir().join(format!("dmce.test-{}-watch", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        let watch = Watch::new().unwrap();
        watch.begin(&dir).unwrap();
        // An open directory is removed only when it is closed.
        drop(dir);
        std::fs::remove_dir(&path).unwrap();
        assert!(wait_readable(watch.as_fd(), Some(Duration::from_secs(60))).unwrap());
        assert!(matches!(watch.deleted(), Err(WatchError::Gone)));
    }
}

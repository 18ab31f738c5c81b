//! A lock on a file that makes a daemon or a broker the only one of its instance.
//!
//! # Invariants
//!
//! 1. The lock belongs to the open file description: it is released when the last descriptor of it
//!    is closed, so at the latest when the process is dead and no child has inherited it.
//! 2. It is advisory and covers the whole file; the file's content and size do not matter.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Why the lock is not held.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Somebody else holds it.
    #[error("the lock is held by another process")]
    Held,
    /// Anything else that the kernel answered; a read-only descriptor is one reason.
    #[error("locking failed")]
    Io(#[source] io::Error),
}

/// An exclusive lock, held as long as this value (or a copy of its descriptor) lives.
#[derive(Debug)]
pub struct OfdLock {
    fd: OwnedFd,
}

impl OfdLock {
    /// Takes the lock on the whole file, without waiting.
    ///
    /// # Errors
    ///
    /// [`LockError::Held`], [`LockError::Io`] (the descriptor must be writable). The descriptor is
    /// closed then.
    pub fn try_exclusive(fd: OwnedFd) -> Result<Self, LockError> {
        let mut lock = whole_file();
        match fcntl(fd.as_fd(), libc::F_OFD_SETLK, &mut lock) {
            Ok(()) => Ok(Self { fd }),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
                Err(LockError::Held)
            }
            Err(error) => Err(LockError::Io(error)),
        }
    }
}

impl AsFd for OfdLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether somebody holds the lock through another open file description.
///
/// # Errors
///
/// [`LockError::Io`].
pub fn holder_exists(fd: BorrowedFd<'_>) -> Result<bool, LockError> {
    let mut lock = whole_file();
    fcntl(fd, libc::F_OFD_GETLK, &mut lock).map_err(LockError::Io)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

// The kernel's structure with 64-bit offsets, and the call that takes it, on either width: what the
// C library's `fcntl` makes of an OFD lock in a 32-bit process depends on its version.
#[cfg(target_pointer_width = "64")]
const SYS_FCNTL: libc::c_long = libc::SYS_fcntl;
#[cfg(target_pointer_width = "32")]
const SYS_FCNTL: libc::c_long = libc::SYS_fcntl64;

#[allow(clippy::cast_possible_truncation, reason = "the constants fit a short")]
fn whole_file() -> libc::flock64 {
    libc::flock64 {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn fcntl(fd: BorrowedFd<'_>, command: i32, lock: &mut libc::flock64) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the lock is a live structure of the kind that both
    // commands take.
    let result = unsafe { libc::syscall(SYS_FCNTL, fd.as_raw_fd(), command, &raw mut *lock) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestObjects;

    #[test]
    fn a_second_holder_is_refused_until_the_first_is_gone() {
        let objects = TestObjects::new("lock");
        let name = objects.name("a");
        let open = || objects.dir.open_read_write(&name).unwrap();
        let first = OfdLock::try_exclusive(objects.dir.create(&name).unwrap()).unwrap();
        assert!(matches!(OfdLock::try_exclusive(open()), Err(LockError::Held)));
        assert!(holder_exists(open().as_fd()).unwrap());
        assert!(!holder_exists(first.as_fd()).unwrap(), "one's own lock is no obstacle");
        drop(first);
        assert!(!holder_exists(open().as_fd()).unwrap());
        OfdLock::try_exclusive(open()).unwrap();
    }

    #[test]
    fn a_read_only_descriptor_cannot_hold_it() {
        let objects = TestObjects::new("lockro");
        let name = objects.name("a");
        objects.dir.create(&name).unwrap();
        let fd = objects.dir.open_read_only(&name).unwrap();
        assert!(matches!(OfdLock::try_exclusive(fd), Err(LockError::Io(_))));
    }
}

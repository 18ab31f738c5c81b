//! Waiting on a 32-bit word, also one in memory that several processes share.
//!
//! # Invariants
//!
//! 1. Waits are never `FUTEX_PRIVATE`: the kernel finds the word by its page, so every process that
//!    maps it, at whatever address and of whatever width, waits on the same queue.
//! 2. A wait may end for no reason. Whoever waits looks at the word again.
//! 3. A word on a page that was lost is [`FutexError::Lost`], not a signal.

use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Flags};

use crate::clock::timespec;

pub mod wide;

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitOutcome {
    /// Woken by [`wake`], or for no reason.
    Woken,
    /// The word did not hold the expected value; nobody waited.
    Changed,
    /// The time is up.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Why a wait or a wake could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FutexError {
    /// The word lies on a page that its object no longer has.
    #[error("the memory of a futex word is gone")]
    Lost,
    /// Anything else that the kernel answered.
    #[error("futex operation failed")]
    Io(#[source] std::io::Error),
}

impl From<Errno> for FutexError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::FAULT => Self::Lost,
            other => Self::Io(other.into()),
        }
    }
}

/// Sleeps while `word` holds `expected`, at most for `timeout`.
///
/// # Errors
///
/// [`FutexError::Lost`], [`FutexError::Io`].
pub fn wait(
    word: &AtomicU32,
    expected: u32,
    timeout: Option<Duration>,
) -> Result<WaitOutcome, FutexError> {
    let timeout = timeout.map(timespec);
    match futex::wait(word, Flags::empty(), expected, timeout.as_ref()) {
        Ok(()) => Ok(WaitOutcome::Woken),
        Err(Errno::AGAIN) => Ok(WaitOutcome::Changed),
        Err(Errno::TIMEDOUT) => Ok(WaitOutcome::TimedOut),
        Err(Errno::INTR) => Ok(WaitOutcome::Interrupted),
        Err(errno) => Err(errno.into()),
    }
}

/// Wakes at most `count` waiters; returns how many there were.
///
/// # Errors
///
/// [`FutexError::Lost`], [`FutexError::Io`].
pub fn wake(word: &AtomicU32, count: u32) -> Result<u32, FutexError> {
    // The kernel takes a signed count: all of them is `i32::MAX`.
    let woken = futex::wake(word, Flags::empty(), count.min(i32::MAX.unsigned_abs()))?;
    Ok(u32::try_from(woken).unwrap_or(u32::MAX))
}

/// [`wait`] on a word in shared memory that is known by its address.
///
/// # Errors
///
/// As [`wait`].
///
/// # Safety
///
/// `word` is aligned to 4 and lies in memory that stays mapped during the call, and that Rust code
/// accesses only through atomics or volatile accesses.
pub unsafe fn wait_at(
    word: *const AtomicU32,
    expected: u32,
    timeout: Option<Duration>,
) -> Result<WaitOutcome, FutexError> {
    // SAFETY: aligned, mapped and accessed only as an atomic for the call, by this function's own
    // contract; another process may write an atomic at any time.
    let word = unsafe { &*word };
    wait(word, expected, timeout)
}

/// [`wake`] on a word in shared memory that is known by its address.
///
/// # Errors
///
/// As [`wake`].
///
/// # Safety
///
/// As [`wait_at`].
pub unsafe fn wake_at(word: *const AtomicU32, count: u32) -> Result<u32, FutexError> {
    // SAFETY: as in `wait_at`.
    let word = unsafe { &*word };
    wake(word, count)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::map::{FileRange, Mapping, Populate, Protection, page_bytes};
    use crate::object;
    use crate::testing::TestObjects;

    #[test]
    fn a_wait_ends_by_value_by_time_or_by_wake() {
        let word = AtomicU32::new(1);
        assert_eq!(wait(&word, 0, None).unwrap(), WaitOutcome::Changed);
        let short = Some(Duration::from_millis(1));
        assert_eq!(wait(&word, 1, short).unwrap(), WaitOutcome::TimedOut);
        assert_eq!(wake(&word, u32::MAX).unwrap(), 0);
    }

    #[test]
    fn a_word_is_one_word_through_two_mappings() {
        let objects = TestObjects::new("futex");
        let fd = objects.dir.create(&objects.name("a")).unwrap();
        let bytes = page_bytes() as u64;
        object::commit(fd.as_fd(), 0, bytes).unwrap();
        let range = FileRange { offset: 0, bytes };
        let map = || Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes);
        let (here, there) = (map().unwrap(), map().unwrap());
        let word = |mapping: &Mapping| mapping.as_ptr().addr();
        let (here_addr, there_addr) = (word(&here), word(&there));
        assert_ne!(here_addr, there_addr);

        std::thread::scope(|scope| {
            scope.spawn(|| {
                let word = std::ptr::with_exposed_provenance::<AtomicU32>(here_addr);
                // SAFETY: page aligned, mapped until the scope ends, accessed as an atomic only.
                while unsafe { &*word }.load(Ordering::Acquire) == 0 {
                    // SAFETY: as above.
                    unsafe { wait_at(word, 0, None) }.unwrap();
                }
            });
            let word = std::ptr::with_exposed_provenance::<AtomicU32>(there_addr);
            // SAFETY: page aligned, mapped until the scope ends, accessed as an atomic only.
            unsafe { &*word }.store(1, Ordering::Release);
            // SAFETY: as above.
            unsafe { wake_at(word, 1) }.unwrap();
        });
    }

    #[test]
    fn a_word_whose_page_is_gone_is_an_error() {
        let objects = TestObjects::new("futexlost");
        let fd = objects.dir.create(&objects.name("a")).unwrap();
        let bytes = page_bytes() as u64;
        object::commit(fd.as_fd(), 0, bytes).unwrap();
        let range = FileRange { offset: 0, bytes };
        let mapping =
            Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes).unwrap();
        object::truncate(fd.as_fd(), 0).unwrap();
        let word = std::ptr::with_exposed_provenance::<AtomicU32>(mapping.as_ptr().addr());
        // SAFETY: page aligned and mapped; only the kernel looks at it.
        let waited = unsafe { wait_at(word, 0, None) };
        assert!(matches!(waited, Err(FutexError::Lost)), "{waited:?}");
        // SAFETY: as above.
        let woken = unsafe { wake_at(word, 1) };
        assert!(matches!(woken, Err(FutexError::Lost)), "{woken:?}");
    }
}

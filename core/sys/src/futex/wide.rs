//! Waiting on a 64-bit word of shared memory, and on a private bell at the same time.
//!
//! The kernel waits on words of 32 bits. A 64-bit word is waited on by both of its halves, the low
//! one first:
//!
//! ```text
//!   who waits                      who changes the word
//!     queue at low, if as expected    store
//!     queue at high, if as expected   wake those at low
//!     queue at bell, if as expected
//!     sleep
//! ```
//!
//! # Invariants
//!
//! 1. Nobody sleeps over a change: if the store came before one of the looks, that look has met it;
//!    if it came after, the waiter was in the queue of the low half by then, where it is woken.
//! 2. A wait may end for no reason. Whoever waits looks at the word again.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::thread::futex::{self, Wait, WaitFlags, WaitPtr, WaitvFlags};
use rustix::time::ClockId;

use super::{FutexError, WaitOutcome, wait_at};
use crate::clock::{monotonic_ns, timespec};
use crate::transfer::word::Word;

/// How long a wait sleeps where the kernel cannot wait for several words.
const NAP: Duration = Duration::from_millis(10);

/// Set where the kernel, or a filter before it, does not know how to wait for several words.
static NAPS: AtomicBool = AtomicBool::new(false);

/// A private word that ends waits when it changes, with the value that it had.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The word.
    pub bell: &'a AtomicU32,
    /// What it held before the shared word was looked at.
    pub value: u32,
}

/// Sleeps while `word` holds `expected` and the bell what it held, until a moment of the monotonic
/// clock.
///
/// Where the kernel cannot wait for several words at once, it is [`WaitOutcome::Woken`] for no
/// reason after 10 ms at the latest.
///
/// # Errors
///
/// [`FutexError::Lost`], [`FutexError::Io`].
pub fn wait(
    word: Word<'_>,
    expected: u64,
    heard: Heard<'_>,
    deadline_ns: Option<u64>,
) -> Result<WaitOutcome, FutexError> {
    if NAPS.load(Ordering::Relaxed) {
        return nap(word, expected, deadline_ns);
    }
    let [low, high] = word.halves();
    let waits = [
        entry(low, expected & u64::from(u32::MAX)),
        entry(high, expected >> 32),
        entry(heard.bell.as_ptr(), heard.value.into()),
    ];
    let deadline = deadline_ns.map(|at| timespec(Duration::from_nanos(at)));
    let clock = ClockId::Monotonic;
    match futex::waitv(&waits, WaitvFlags::empty(), deadline.as_ref(), clock) {
        Ok(_) => Ok(WaitOutcome::Woken),
        Err(Errno::AGAIN) => Ok(WaitOutcome::Changed),
        Err(Errno::TIMEDOUT) => Ok(WaitOutcome::TimedOut),
        Err(Errno::INTR) => Ok(WaitOutcome::Interrupted),
        Err(Errno::NOSYS | Errno::PERM) => {
            NAPS.store(true, Ordering::Relaxed);
            nap(word, expected, deadline_ns)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Wakes at most `count` of those who wait for `word`; returns how many there were.
///
/// # Errors
///
/// [`FutexError::Lost`], [`FutexError::Io`].
pub fn wake(word: Word<'_>, count: u32) -> Result<u32, FutexError> {
    // SAFETY: a word is aligned, and mapped as long as it is borrowed.
    unsafe { super::wake_at(low_half(word), count) }
}

/// Waits for the low half alone, briefly: a change of the high one is not noticed.
fn nap(word: Word<'_>, expected: u64, deadline_ns: Option<u64>) -> Result<WaitOutcome, FutexError> {
    let left = deadline_ns.map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())));
    let (timeout, is_last) = match left {
        Some(left) if left <= NAP => (left, true),
        _ => (NAP, false),
    };
    #[expect(clippy::cast_possible_truncation, reason = "the low half")]
    let low = expected as u32;
    // SAFETY: as in `wake`.
    match unsafe { wait_at(low_half(word), low, Some(timeout)) } {
        Ok(WaitOutcome::TimedOut) if !is_last => Ok(WaitOutcome::Woken),
        ended => ended,
    }
}

fn low_half(word: Word<'_>) -> *const AtomicU32 {
    let [low, _] = word.halves();
    low.cast::<AtomicU32>().cast_const()
}

/// What the kernel takes for a word that other processes may share.
fn entry(word: *mut u32, expected: u64) -> Wait {
    let mut wait = Wait::new();
    wait.val = expected;
    wait.uaddr = WaitPtr::new(word.cast());
    wait.flags = WaitFlags::SIZE_U32;
    wait
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::map::Mapping;
    use crate::testing::lend;

    const EXPECTED: u64 = 0x7_0000_0003;
    type Waiting = fn(Word<'_>, u64, Heard<'_>, Option<u64>) -> Result<WaitOutcome, FutexError>;
    const BOTH: [(&str, Waiting); 2] =
        [("several", wait), ("naps", |word, expected, _, deadline| nap(word, expected, deadline))];

    fn word_of(mapping: &Mapping) -> Word<'_> {
        let word = Word::new(mapping.range(8, 8).unwrap()).unwrap();
        // SAFETY: mapped writable.
        unsafe { word.compare_exchange(0, EXPECTED) }.unwrap();
        word
    }

    fn silent(bell: &AtomicU32) -> Heard<'_> {
        Heard { bell, value: bell.load(Ordering::SeqCst) }
    }

    /// Waits until the word changes.
    fn wait_for_change(waiting: Waiting, word: Word<'_>, bell: &AtomicU32) {
        while word.load().unwrap() == EXPECTED {
            waiting(word, EXPECTED, silent(bell), None).unwrap();
        }
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
        let word = word_of(&lent.mapping);
        for (name, waiting) in BOTH {
            let deadline = monotonic_ns() + 30_000_000;
            let mut begin = monotonic_ns();
            while waiting(word, EXPECTED, silent(&bell), Some(deadline)).unwrap()
                != WaitOutcome::TimedOut
            {
                assert!(begin < deadline, "{name}: passed, and not said so");
                begin = monotonic_ns();
            }
            assert!(monotonic_ns() >= deadline, "{name}");
            let ended = waiting(word, EXPECTED, silent(&bell), Some(1)).unwrap();
            assert_eq!(ended, WaitOutcome::TimedOut, "{name}: a deadline that has passed");
        }
    }

    #[test]
    fn a_change_of_either_half_before_the_wait_is_met() {
        let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
        let word = word_of(&lent.mapping);
        for other in [EXPECTED + 1, EXPECTED + (1 << 32)] {
            assert_eq!(wait(word, other, silent(&bell), None).unwrap(), WaitOutcome::Changed);
        }
        let rung = Heard { bell: &bell, value: 1 };
        assert_eq!(wait(word, EXPECTED, rung, None).unwrap(), WaitOutcome::Changed);
    }

    #[test]
    fn whoever_waits_sees_a_change_of_either_half() {
        for (name, waiting) in BOTH {
            for add in [1, 1 << 32] {
                let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
                let word = word_of(&lent.mapping);
                thread::scope(|scope| {
                    let waiters: Vec<_> = (0..3)
                        .map(|_| {
                            scope.spawn(|| wait_for_change(waiting, word_of(&lent.mapping), &bell))
                        })
                        .collect();
                    // SAFETY: mapped writable.
                    unsafe { word.fetch_add(add) }.unwrap();
                    wake(word, u32::MAX).unwrap();
                    for waiter in waiters {
                        waiter.join().unwrap_or_else(|_| panic!("{name}: {add:#x}"));
                    }
                });
            }
        }
    }

    #[test]
    fn so_many_are_woken_as_is_said_and_the_bell_wakes_the_rest() {
        let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
        let word = word_of(&lent.mapping);
        thread::scope(|scope| {
            let wait_once = || wait(word_of(&lent.mapping), EXPECTED, silent(&bell), None).unwrap();
            let waiters: Vec<_> = (0..3).map(|_| scope.spawn(wait_once)).collect();
            // Until two of them sleep and are woken, by ones.
            for _ in 0..2 {
                while wake(word, 1).unwrap() == 0 {
                    thread::yield_now();
                }
            }
            assert!(waiters.iter().any(|waiter| !waiter.is_finished()));
            while waiters.iter().any(|waiter| !waiter.is_finished()) {
                super::super::wake(&bell, u32::MAX).unwrap();
                thread::yield_now();
            }
        });
    }

    #[test]
    fn who_waits_in_a_mapping_made_again_is_woken_through_the_first() {
        let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
        let word = word_of(&lent.mapping);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let again = Mapping::again(lent.mapping.whole()).unwrap();
                wait_for_change(wait, Word::new(again.range(8, 8).unwrap()).unwrap(), &bell);
            });
            while wake(word, 1).unwrap() == 0 {
                thread::yield_now();
            }
            // SAFETY: mapped writable.
            unsafe { word.fetch_add(1) }.unwrap();
            wake(word, 1).unwrap();
            waiter.join().unwrap();
        });
    }

    #[test]
    fn a_word_that_is_gone_is_told() {
        let (lent, bell) = (lend(1, 0), AtomicU32::new(0));
        let word = word_of(&lent.mapping);
        lent.keep_pages(0);
        for (name, waiting) in BOTH {
            let ended = waiting(word, EXPECTED, silent(&bell), None);
            assert!(matches!(ended, Err(FutexError::Lost)), "{name}: {ended:?}");
        }
        assert!(matches!(wake(word, 1), Err(FutexError::Lost)));
    }
}

//! Waiting for a lock word: by the kernel's futex, or by the model of one.
//!
//! # Invariants
//!
//! 1. [`Parking::park`] does not sleep on a half that is not the expected one, and a
//!    [`Parking::wake`] after the half was changed reaches whoever slept on the old one.
//! 2. A caller that was woken is told so, even at its deadline: the wake-up may be another's too.

use dmce_sys::futex::FutexError;

use crate::atomic::AtomicU32;

/// How a thread waits for a half and wakes others.
pub trait Parking {
    /// Sleeps while `half` holds `expected`, at most until `deadline`; may return for no reason.
    ///
    /// # Errors
    ///
    /// [`FutexError`].
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        deadline: Deadline,
    ) -> Result<Parked, FutexError>;

    /// Wakes one of those who sleep on `half`, or all.
    ///
    /// # Errors
    ///
    /// [`FutexError`].
    fn wake(&self, half: &AtomicU32, whom: Wake) -> Result<(), FutexError>;

    /// Rests a little and says true; false when it was done often enough and sleeping is better.
    fn spin(&self, round: u32) -> bool;
}

/// What a sleep ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    /// Look again.
    Awake,
    /// The deadline has passed.
    TimedOut,
}

/// Who is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Wake {
    One,
    All,
}

/// Until when a caller waits, on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// Nanoseconds since boot; none is for ever.
    at_ns: Option<u64>,
}

impl Deadline {
    /// For ever.
    pub const NEVER: Self = Self { at_ns: None };
    /// Not at all.
    pub const PASSED: Self = Self { at_ns: Some(0) };
}

#[cfg(not(loom))]
pub use kernel::Kernel;

#[cfg(not(loom))]
mod kernel {
    use std::hint;
    use std::thread;
    use std::time::Duration;

    use dmce_sys::clock::monotonic_ns;
    use dmce_sys::futex::{self, FutexError, WaitOutcome};

    use super::{Deadline, Parked, Parking, Wake};
    use crate::atomic::AtomicU32;

    /// Spinning pays while the holder runs on another processor and is about to release; with both
    /// on one processor it only keeps the holder from running. About 20 microseconds in all, with
    /// the processor offered to others in between, is near the best of both.
    const SPIN_ROUNDS: u32 = 8;
    const PAUSES_PER_ROUND: u32 = 64;

    /// So long at most nobody looks at the word: whoever cut the object that it lies in wakes
    /// nobody.
    const SLICE: Duration = Duration::from_millis(20);

    /// The kernel's futexes, shared between processes.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct Kernel;

    impl Parking for Kernel {
        fn park(
            &self,
            half: &AtomicU32,
            expected: u32,
            deadline: Deadline,
        ) -> Result<Parked, FutexError> {
            let rest = deadline.rest();
            if rest.is_some_and(|rest| rest.is_zero()) {
                return Ok(Parked::TimedOut);
            }
            let slice = rest.map_or(SLICE, |rest| rest.min(SLICE));
            match futex::wait(half, expected, Some(slice))? {
                WaitOutcome::TimedOut if rest == Some(slice) => Ok(Parked::TimedOut),
                WaitOutcome::TimedOut
                | WaitOutcome::Woken
                | WaitOutcome::Changed
                | WaitOutcome::Interrupted => Ok(Parked::Awake),
            }
        }

        fn wake(&self, half: &AtomicU32, whom: Wake) -> Result<(), FutexError> {
            let count = match whom {
                Wake::One => 1,
                Wake::All => u32::MAX,
            };
            futex::wake(half, count).map(drop)
        }

        fn spin(&self, round: u32) -> bool {
            if round >= SPIN_ROUNDS {
                return false;
            }
            for _ in 0..PAUSES_PER_ROUND {
                hint::spin_loop();
            }
            thread::yield_now();
            true
        }
    }

    impl Deadline {
        /// So long from now; a time beyond the clock is for ever.
        #[must_use]
        pub fn after(time: Duration) -> Self {
            let ns = u64::try_from(time.as_nanos()).ok();
            Self { at_ns: ns.and_then(|ns| monotonic_ns().checked_add(ns)) }
        }

        /// A moment of the monotonic clock.
        #[must_use]
        pub const fn at(ns: u64) -> Self {
            Self { at_ns: Some(ns) }
        }

        /// What is left of it; none for ever.
        #[must_use]
        pub fn rest(self) -> Option<Duration> {
            let at_ns = self.at_ns?;
            Some(Duration::from_nanos(at_ns.saturating_sub(monotonic_ns())))
        }
    }
}

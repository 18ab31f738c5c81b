//! Clocks: the monotonic one for intervals and deadlines, the real one for people.
//!
//! # Invariants
//!
//! 1. The monotonic clock is the same in every process of the host and never goes back.
//! 2. Clock ticks since boot are those of the start times in `/proc`, as this process reads them:
//!    the same clock, the same time namespace, rounded in the same way.
//! 3. 64-bit seconds: 32-bit processes see the right time after 2038.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

const NS_PER_S: u64 = 1_000_000_000;
const NS_PER_MS: u64 = 1_000_000;

/// Nanoseconds since boot, without the time spent suspended.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    seconds(now) * NS_PER_S + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Milliseconds since boot, without the time spent suspended.
#[must_use]
pub fn monotonic_ms() -> u64 {
    monotonic_ns() / NS_PER_MS
}

/// Clock ticks since boot, with the time spent suspended: what `/proc` tells the start of a process
/// in.
#[must_use]
pub fn boot_ticks() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let tick_ns = NS_PER_S / rustix::param::clock_ticks_per_second();
    (seconds(now) * NS_PER_S + u64::try_from(now.tv_nsec).unwrap_or(0)) / tick_ns
}

/// Seconds since 1970, UTC; 0 if the clock is set before that.
#[must_use]
pub fn realtime_s() -> u64 {
    seconds(clock_gettime(ClockId::Realtime))
}

/// A duration as the kernel takes it; what does not fit is as good as for ever.
#[allow(clippy::useless_conversion, reason = "`tv_nsec` is 32 bits wide on some targets")]
pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn seconds(time: Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn monotonic_time_does_not_go_back() {
        let first = monotonic_ns();
        let second = monotonic_ns();
        assert!(first > 0);
        assert!(second >= first);
        assert!(monotonic_ms() >= first / NS_PER_MS);
    }

    #[test]
    fn ticks_since_boot_are_those_of_the_start_of_processes() {
        let before = boot_ticks();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let started = crate::process::start_time(child.id()).unwrap();
        let after = boot_ticks();
        child.wait().unwrap();
        assert!((before..=after).contains(&started), "{before} {started} {after}");
    }

    #[test]
    fn real_time_is_after_this_was_written() {
        assert!(realtime_s() > 1_700_000_000);
    }
}

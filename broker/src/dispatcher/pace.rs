//! How fast copies are made: what is allowed, and what is reached.
//!
//! # Invariants
//!
//! 1. Over any time no more bytes are asked for than the rate allows, and a part at the beginning;
//!    what was asked for and not copied does not count. Who asks first is served first.
//! 2. What is reached is said of the last second or two; of a time in which nothing was copied it
//!    is 0.

use super::event::Millis;

/// How long is counted by.
const WINDOW_MS: u64 = 1_000;

/// A rate, and what is made of it.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes a second that are allowed; 0 for as many as can be.
    limit: u64,
    /// From when on something may be asked for, in microseconds.
    free_us: u64,
    /// When what is counted now was begun, its bytes, and those of the second before.
    since: Millis,
    bytes: u64,
    before: u64,
}

impl Pace {
    /// With a limit in bytes a second; 0 for none.
    pub(super) const fn new(limit: u64) -> Self {
        Self { limit, free_us: 0, since: Millis(0), bytes: 0, before: 0 }
    }

    /// When so many bytes may be asked for, which are the next: behind all that were booked before.
    pub(super) fn book(&mut self, now: Millis, bytes: u64) -> Millis {
        let Some(us) = self.cost_us(bytes) else { return now };
        let from_us = self.free_us.max(now.0.saturating_mul(1000));
        self.free_us = from_us.saturating_add(us);
        Millis(from_us.div_ceil(1000))
    }

    /// So many bytes of what was booked were not copied.
    pub(super) fn give_back(&mut self, bytes: u64) {
        let us = self.cost_us(bytes).unwrap_or(0);
        self.free_us = self.free_us.saturating_sub(us);
    }

    fn cost_us(&self, bytes: u64) -> Option<u64> {
        bytes.saturating_mul(1_000_000).checked_div(self.limit)
    }

    /// So many bytes were copied.
    pub(super) fn note(&mut self, now: Millis, bytes: u64) {
        self.turn(now);
        self.bytes += bytes;
    }

    /// Bytes a second that are copied.
    pub(super) fn rate(&self, now: Millis) -> u64 {
        match now.0.saturating_sub(self.since.0) {
            elapsed @ ..WINDOW_MS => {
                (self.before + self.bytes).saturating_mul(1000) / (WINDOW_MS + elapsed)
            }
            elapsed if elapsed < 2 * WINDOW_MS => self.bytes.saturating_mul(1000) / elapsed,
            _ => 0,
        }
    }

    /// Begins to count again when a window is over.
    fn turn(&mut self, now: Millis) {
        let elapsed = now.0.saturating_sub(self.since.0);
        if elapsed >= WINDOW_MS {
            self.before = if elapsed < 2 * WINDOW_MS { self.bytes } else { 0 };
            (self.since, self.bytes) = (now, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_asked_for_than_is_allowed() {
        let mut pace = Pace::new(1 << 20);
        let begin = Millis(5_000);
        let times: Vec<Millis> = (0..40).map(|_| pace.book(begin, 262_144)).collect();
        assert_eq!((times[0], times[4], times[39]), (begin, Millis(6_000), Millis(14_750)));
        pace.give_back(262_144);
        assert_eq!(pace.book(begin, 1), times[39]);
        // What was not used in an hour is not made up for.
        let later = Millis(3_600_000);
        assert_eq!([0; 2].map(|_| pace.book(later, 1 << 20)), [later, Millis(3_601_000)]);
        assert_eq!([0; 2].map(|_| Pace::new(0).book(later, u64::MAX)), [later; 2]);
    }

    #[test]
    fn what_is_reached_is_of_the_last_seconds() {
        let mut pace = Pace::new(0);
        for at in 0..40 {
            pace.note(Millis(10_000 + 100 * at), 1_000);
        }
        assert!((9_000..=11_000).contains(&pace.rate(Millis(14_000))));
        assert_eq!(pace.rate(Millis(20_000)), 0);
    }
}

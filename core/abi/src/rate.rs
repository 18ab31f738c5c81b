//! How much a user may ask for: a bucket of tokens, which a rate fills.
//!
//! ```text
//!     per_s ------> [ level, up to burst ] ------> one for each 4 KiB begun that a message moves,
//!                                                  and one at least
//! ```
//!
//! # Invariants
//!
//! 1. Whoever has a bucket looks at the clock: time comes in milliseconds of one that never goes
//!    back, and no more is filled in than has passed.
//! 2. A message is paid for in full when it is read. It may cost more than there is: then nothing
//!    is there until that is made up for.

use serde::{Deserialize, Serialize};

/// A token, in the unit of a level: what a rate of one a second brings in a millisecond.
const TOKEN: i64 = 1_000;

/// Bytes that are moved for one token.
const TOKEN_BYTES: usize = 4096;

/// How many tokens a user gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Each second, in the long run; 0 for a user whose requests are not limited.
    pub per_s: u32,
    /// At once, after a pause; at least one, whatever this says.
    pub burst: u32,
}

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self { per_s: 0, burst: 0 };

    /// Whether tokens are counted at all.
    #[must_use]
    pub const fn is_limited(self) -> bool {
        self.per_s > 0
    }

    fn full(self) -> i64 {
        i64::from(self.burst.max(1)) * TOKEN
    }
}

/// The tokens of one user. The rate is told anew each time: it may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    level: i64,
    at_ms: u64,
}

impl Bucket {
    /// As many as the burst.
    #[must_use]
    pub fn full(rate: Rate, now_ms: u64) -> Self {
        Self { level: rate.full(), at_ms: now_ms }
    }

    /// What time has brought.
    pub fn fill(&mut self, rate: Rate, now_ms: u64) {
        let millis = i64::try_from(now_ms.saturating_sub(self.at_ms)).unwrap_or(i64::MAX);
        let brought = millis.saturating_mul(rate.per_s.into());
        self.level = self.level.saturating_add(brought).min(rate.full());
        self.at_ms = self.at_ms.max(now_ms);
    }

    /// Pays for a message that moves so many bytes.
    pub fn spend(&mut self, bytes: usize) {
        let tokens = i64::try_from(bytes.div_ceil(TOKEN_BYTES).max(1)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_sub(tokens.saturating_mul(TOKEN));
    }

    /// Whole tokens that there are.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        u64::try_from(self.level / TOKEN).unwrap_or(0)
    }

    /// Whether more was paid than there was.
    #[must_use]
    pub const fn is_overdrawn(&self) -> bool {
        self.level < 0
    }

    /// Whether time brings nothing more: a new bucket would be the same.
    #[must_use]
    pub fn is_full(&self, rate: Rate) -> bool {
        self.level >= rate.full()
    }

    /// When there are so many whole tokens, if none are spent until then; a millisecond after the
    /// last filling at the earliest. Never, at a rate without a limit and for more than the burst.
    #[must_use]
    pub fn ready_at_ms(&self, rate: Rate, tokens: u64) -> u64 {
        let wanted = i64::try_from(tokens).unwrap_or(i64::MAX).saturating_mul(TOKEN);
        if !rate.is_limited() || wanted > rate.full() {
            return u64::MAX;
        }
        let lacks = u64::try_from(wanted.saturating_sub(self.level)).unwrap_or(0);
        self.at_ms.saturating_add(lacks.div_ceil(rate.per_s.into()).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_s: 100, burst: 10 };

    #[test]
    fn as_many_as_the_burst_are_there_at_first_and_after_a_pause_and_never_more() {
        let mut bucket = Bucket::full(RATE, 1_000);
        for now_ms in [1_000, 1_000_000, u64::MAX] {
            bucket.fill(RATE, now_ms);
            assert!(bucket.is_full(RATE));
            for left in (0..10).rev() {
                bucket.spend(0);
                assert_eq!(bucket.tokens(), left);
            }
            assert!(!bucket.is_overdrawn() && !bucket.is_full(RATE));
        }
    }

    #[test]
    fn bytes_that_are_moved_cost_a_token_for_every_4_kib_that_they_begin() {
        let rate = Rate { per_s: 1, burst: 100 };
        for (bytes, tokens) in [(0, 1), (1, 1), (4096, 1), (4097, 2), (60 << 10, 15)] {
            let mut bucket = Bucket::full(rate, 0);
            bucket.spend(bytes);
            assert_eq!(bucket.tokens(), 100 - tokens, "{bytes}");
        }
    }

    #[test]
    fn a_token_is_there_when_it_was_said_and_no_millisecond_before() {
        for per_s in [1, 3, 7, 100, 999, 1_000, 1_001, 20_000, u32::MAX] {
            let rate = Rate { per_s, burst: 40 };
            for (spent, tokens) in [(40, 1), (40, 40), (55, 1), (55, 3), (31, 10)] {
                let mut bucket = Bucket::full(rate, 500);
                bucket.spend(spent * TOKEN_BYTES);
                let ready_ms = bucket.ready_at_ms(rate, tokens);
                assert!(ready_ms > 500);
                let mut before = bucket;
                before.fill(rate, ready_ms - 1);
                assert!(before.tokens() < tokens, "{per_s} a second, {spent} spent");
                bucket.fill(rate, ready_ms);
                assert!(bucket.tokens() >= tokens, "{per_s} a second, {spent} spent");
            }
        }
    }

    #[test]
    fn what_was_spent_beyond_the_last_token_is_made_up_for_first() {
        let mut bucket = Bucket::full(RATE, 0);
        bucket.spend(60 << 10);
        assert!(bucket.is_overdrawn());
        // Five tokens, and one.
        assert_eq!(bucket.ready_at_ms(RATE, 1), 60);
        bucket.fill(RATE, 50);
        assert!(!bucket.is_overdrawn());
        assert_eq!((bucket.tokens(), bucket.ready_at_ms(RATE, 1)), (0, 60));
    }

    /// Parts of a token are not lost, however often is looked.
    #[test]
    fn filled_often_or_once_it_is_as_full() {
        let rate = Rate { per_s: 3, burst: 1_000 };
        let mut often = Bucket::full(rate, 0);
        often.spend(1_000 * TOKEN_BYTES);
        let mut once = often;
        for now_ms in 1..=10_000 {
            often.fill(rate, now_ms);
        }
        once.fill(rate, 10_000);
        assert_eq!((often, once.tokens()), (once, 30));
    }

    #[test]
    fn a_clock_that_went_back_and_numbers_that_are_too_large_bring_nothing() {
        let mut bucket = Bucket::full(RATE, 1_000);
        bucket.spend(usize::MAX);
        let empty = bucket;
        bucket.fill(RATE, 0);
        assert_eq!(bucket, empty);
        assert_eq!(bucket.tokens(), 0);
        for _ in 0..3 {
            bucket.spend(usize::MAX);
        }
        assert!(bucket.is_overdrawn());
        assert_eq!(bucket.ready_at_ms(RATE, 11), u64::MAX, "there are never so many");
        assert_eq!(bucket.ready_at_ms(RATE, u64::MAX), u64::MAX);
        assert_eq!(bucket.ready_at_ms(Rate::UNLIMITED, 1), u64::MAX);
    }

    #[test]
    fn a_rate_that_has_changed_holds_from_then_on() {
        let mut bucket = Bucket::full(RATE, 0);
        let smaller = Rate { per_s: 1, burst: 0 };
        bucket.fill(smaller, 1_000);
        assert_eq!(bucket.tokens(), 1, "a burst of none is one of one");
        bucket.fill(RATE, 1_050);
        assert_eq!(bucket.tokens(), 6);
    }
}

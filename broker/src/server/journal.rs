//! The broker's log, which no client can fill a disk with.
//!
//! Every session and every hostile frame leaves a line, and a client may open sessions and send
//! frames without end. So lines are let through as tokens come, and the rest is counted.
//!
//! # Invariants
//!
//! 1. No number of other lines keeps an error from being written: errors have tokens of their own.
//! 2. What is left out is said, with its number, before the next line.

use dmce_broker::dispatcher::{LogLevel, Millis};
use tracing::{debug, error, info, warn};

/// Lines that may come at once.
const BURST: u64 = 1_000;

/// Lines a second in the long run.
const PER_S: u64 = 50;

const TOKENS_PER_LINE: u64 = 1_000;

/// Lets lines through.
#[derive(Debug)]
pub struct Journal {
    errors: Bucket,
    others: Bucket,
    left_out: u64,
}

/// Tokens that come with time.
#[derive(Debug)]
struct Bucket {
    /// Thousandths of a line.
    tokens: u64,
    counted_at: Millis,
}

impl Journal {
    /// One that was silent.
    pub const fn new(now: Millis) -> Self {
        Self { errors: Bucket::new(now), others: Bucket::new(now), left_out: 0 }
    }

    /// Writes a line, or counts it.
    pub fn log(&mut self, now: Millis, level: LogLevel, text: &str) {
        let has_token = match level {
            LogLevel::Error => self.errors.take(now),
            LogLevel::Warn | LogLevel::Info => self.others.take(now),
            // Nobody who has these written wants some of them.
            LogLevel::Debug => true,
        };
        if !has_token {
            self.left_out += 1;
            return;
        }
        if level != LogLevel::Debug
            && let left_out @ 1.. = std::mem::take(&mut self.left_out)
        {
            warn!("{left_out} lines were left out");
        }
        match level {
            LogLevel::Error => error!("{text}"),
            LogLevel::Warn => warn!("{text}"),
            LogLevel::Info => info!("{text}"),
            LogLevel::Debug => debug!("{text}"),
        }
    }
}

impl Bucket {
    const fn new(now: Millis) -> Self {
        Self { tokens: BURST * TOKENS_PER_LINE, counted_at: now }
    }

    /// Takes a line's tokens, if they are there.
    fn take(&mut self, now: Millis) -> bool {
        let elapsed = now.0.saturating_sub(self.counted_at.0);
        let come = elapsed.saturating_mul(PER_S * TOKENS_PER_LINE / 1_000);
        self.tokens = self.tokens.saturating_add(come).min(BURST * TOKENS_PER_LINE);
        self.counted_at = now;
        let rest = self.tokens.checked_sub(TOKENS_PER_LINE);
        self.tokens = rest.unwrap_or(self.tokens);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_a_burst_and_then_so_many_lines_a_second() {
        let mut bucket = Bucket::new(Millis(0));
        let mut written = |from: u64, to: u64| {
            (from..to).flat_map(|ms| [ms; 10]).filter(|ms| bucket.take(Millis(*ms))).count()
        };
        let first = written(0, 1_000) as u64;
        assert!((BURST + PER_S - 1..=BURST + PER_S).contains(&first), "{first}");
        assert_eq!(written(1_000, 11_000) as u64, 10 * PER_S);
        // Who was silent long enough may write as much again, and no more.
        assert_eq!(written(1_000_000, 1_000_001), 10);
        let after = written(1_000_001, 1_001_000) as u64;
        assert!((BURST + PER_S - 12..=BURST + PER_S).contains(&after), "{after}");
    }

    #[test]
    fn what_is_left_out_is_counted_until_a_line_is_written() {
        let mut journal = Journal::new(Millis(0));
        for _ in 0..BURST + 7 {
            journal.log(Millis(0), LogLevel::Info, "a line");
        }
        assert_eq!(journal.left_out, 7);
        journal.log(Millis(0), LogLevel::Debug, "a detail");
        assert_eq!(journal.left_out, 7);
        journal.log(Millis(0), LogLevel::Error, "an error");
        assert_eq!(journal.left_out, 0);
    }
}

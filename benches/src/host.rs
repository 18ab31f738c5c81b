//! Which slow operations of a thread were the host's doing: that of a virtual machine stops its
//! processors for a while, and the kernel counts the time.
//!
//! ```text
//!   look        slow operation        look              look
//!   --|--------|===============|------|----------------|-->
//!     count before it                          count after it: has it grown?
//! ```
//!
//! # Invariants
//!
//! 1. An operation is the host's if the count has grown between the last look before it and the
//!    first one [`SETTLED`] after it: the kernel counts late, in ticks.
//! 2. What was not judged yet when the thread ends is its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the count is looked at.
const LOOK: Duration = Duration::from_millis(4);
/// When the kernel has counted what was taken.
const SETTLED: Duration = Duration::from_millis(20);
/// What takes less is nobody's doing: a tick of the count is longer.
pub const SLOW: Duration = Duration::from_millis(5);

/// A slow operation of which it is not known yet.
#[derive(Clone, Copy, Debug)]
struct Slow {
    taken: Duration,
    ended: Instant,
    before: Duration,
}

/// What is known of a slow operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// It took so long by itself.
    Own(Duration),
    /// The host took a processor meanwhile.
    Host,
}

/// Slow operations of one thread.
#[derive(Debug)]
pub struct Judge<C> {
    /// What the host took of all processors since the machine was started.
    count: C,
    counted: Duration,
    looked: Instant,
    open: VecDeque<Slow>,
}

impl<C: FnMut() -> Duration> Judge<C> {
    /// Begins to look at a count.
    pub fn new(mut count: C) -> Self {
        let counted = count();
        Self { count, counted, looked: Instant::now(), open: VecDeque::new() }
    }

    /// An operation has ended that was slow.
    pub fn slow(&mut self, taken: Duration, ended: Instant) {
        self.open.push_back(Slow { taken, ended, before: self.counted });
    }

    /// What is known by now, to be asked after each operation.
    pub fn look(&mut self, now: Instant) -> impl Iterator<Item = Whose> + '_ {
        if now - self.looked >= LOOK {
            (self.counted, self.looked) = ((self.count)(), now);
        }
        let settled = self.open.iter().take_while(|slow| self.looked >= slow.ended + SETTLED);
        let settled = settled.count();
        let counted = self.counted;
        self.open.drain(..settled).map(move |slow| {
            if slow.before == counted { Whose::Own(slow.taken) } else { Whose::Host }
        })
    }

    /// How many are not judged.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// What was not judged.
    pub fn end(self) -> impl Iterator<Item = Duration> {
        self.open.into_iter().map(|slow| slow.taken)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn an_operation_is_the_hosts_if_the_count_grew_around_it() {
        let count = Cell::new(0);
        let mut judge = Judge::new(|| MS * count.get());
        let begin = judge.looked;
        let at = |ms: u32| begin + MS * ms;
        let known = |judge: &mut Judge<_>, ms| judge.look(at(ms)).collect::<Vec<_>>();
        assert_eq!(known(&mut judge, 4), []);
        judge.slow(MS * 10, at(14));
        assert_eq!(known(&mut judge, 14), []);
        judge.slow(MS * 30, at(44));
        assert_eq!(known(&mut judge, 44), [Whose::Own(MS * 10)]);
        // It is told late.
        count.set(30);
        assert_eq!(known(&mut judge, 63), []);
        assert_eq!(judge.open(), 1);
        assert_eq!(known(&mut judge, 67), [Whose::Host]);
        judge.slow(MS * 8, at(80));
        assert_eq!(known(&mut judge, 101), [Whose::Own(MS * 8)]);
        judge.slow(MS * 9, at(110));
        assert!(judge.end().eq([MS * 9]));
    }
}

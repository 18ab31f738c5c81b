//! How long slow operations of a thread were by themselves: the host of a virtual machine stops its
//! processors for a while, and the kernel counts the time.
//!
//! ```text
//!   look        slow operation        look              look
//!   --|--------|===============|------|----------------|-->
//!     count before it                          count after it: how much has it grown?
//! ```
//!
//! # Invariants
//!
//! 1. What the host took of any processor between the last look before an operation and the first
//!    one [`SETTLED`] after it, and a tick, for the kernel counts in these and late, is taken off.
//!    So an operation that is longer than what the host took stays long.
//! 2. What was not judged when the thread ends is its own.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often the count is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// What the kernel counts in.
const TICK: Duration = Duration::from_millis(10);
/// When the kernel has counted what was taken.
const SETTLED: Duration = Duration::from_millis(20);
/// What takes less is taken as it is: a tick of the count is longer.
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
pub struct Judged {
    /// How long it took by itself.
    pub own: Duration,
    /// Whether the host took a processor meanwhile.
    pub was_disturbed: bool,
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
    pub fn look(&mut self, now: Instant) -> impl Iterator<Item = Judged> + '_ {
        if now - self.looked >= LOOK {
            (self.counted, self.looked) = ((self.count)(), now);
        }
        let (looked, counted) = (self.looked, self.counted);
        let settled = self.open.iter().take_while(|slow| looked >= slow.ended + SETTLED);
        let settled = settled.count();
        self.open.drain(..settled).map(move |slow| {
            let taken = counted.saturating_sub(slow.before);
            let was_disturbed = taken > Duration::ZERO;
            let off = if was_disturbed { taken + TICK } else { Duration::ZERO };
            Judged { own: slow.taken.saturating_sub(off), was_disturbed }
        })
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
    fn what_the_host_took_around_an_operation_is_taken_off_and_no_more() {
        let count = Cell::new(0);
        let mut judge = Judge::new(|| MS * count.get());
        let begin = judge.looked;
        let at = |ms: u32| begin + MS * ms;
        let known = |judge: &mut Judge<_>, ms| judge.look(at(ms)).collect::<Vec<_>>();
        let own = |ms: u32| Judged { own: MS * ms, was_disturbed: false };
        let disturbed = |ms: u32| Judged { own: MS * ms, was_disturbed: true };
        assert_eq!(known(&mut judge, 10), []);
        judge.slow(MS * 10, at(24));
        assert_eq!(known(&mut judge, 24), []);
        judge.slow(MS * 30, at(54));
        assert_eq!(known(&mut judge, 54), [own(10)]);
        // It is told late.
        count.set(30);
        assert_eq!(known(&mut judge, 73), []);
        assert_eq!(known(&mut judge, 83), [disturbed(0)]);
        // It took longer than the host did.
        judge.slow(MS * 300, at(400));
        count.set(40);
        assert_eq!(known(&mut judge, 425), [disturbed(280)]);
        judge.slow(MS * 9, at(440));
        assert!(judge.end().eq([MS * 9]));
        // A count that cannot be read is 0.
        let mut judge = Judge::new(|| MS * count.get());
        let begin = judge.looked;
        judge.slow(MS * 50, begin);
        count.set(0);
        let known: Vec<_> = judge.look(begin + SETTLED).collect();
        assert_eq!(known, [own(50)]);
    }
}

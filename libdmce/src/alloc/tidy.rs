//! Giving memory back that heaps keep for their threads, and telling what is allocated.
//!
//! ```text
//!   a call --> the gate is shut, and opened --> the service thread is woken, once
//!   the service thread, or dmce_poll:  a look, at most every 100 ms:  shut the gates, and take
//!                                      returned objects in
//!                                      tidying, at most every half of the idle time:
//!       heap that was used since the last one    its empty slabs go back to their blocks
//!       heap that was not, or has no thread      all slabs with room go to the depot
//! ```
//!
//! # Invariants
//!
//! 1. A look waits for nobody: a heap whose owner is inside at that moment is left for the next.
//! 2. After a look that passed every heap the sums are right, or some gate was opened since, and
//!    the service thread is woken again.
//! 3. When a session has been quiet for two tidyings, no heap of a thread has a slab with room, and
//!    no block has an empty slab.

use super::class::Class;
use super::depot::{At, Depot};
use super::gate;
use super::heap::{Heap, Since};

/// How long after a look the next one is at the earliest.
pub(crate) const LOOK_MS: u64 = 100;

/// When was looked and tidied last.
#[derive(Debug, Default)]
pub(crate) struct Calendar {
    /// On the caller's clock.
    looked: Option<u64>,
    tidied: Option<u64>,
    /// Whether nothing had been used since the tidying before.
    was_quiet: bool,
    /// Whether a heap was passed over at the last look.
    has_missed: bool,
}

/// A moment, and how long what is idle is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    /// On the caller's clock.
    pub now: u64,
    /// In its milliseconds.
    pub idle_ms: u64,
}

impl Calendar {
    /// Looks at all heaps if it is time to. Returns when it will be, if anything is to be done.
    pub(crate) fn look(&mut self, depot: &mut Depot, moment: Moment, at: At<'_>) -> Option<u64> {
        let Moment { now, idle_ms } = moment;
        let due = |last: Option<u64>, pause: u64| last.map_or(now, |last| last + pause);
        let next_look = due(self.looked, LOOK_MS);
        if next_look > now {
            return Some(next_look);
        }
        let tidies = due(self.tidied, LOOK_MS.max(idle_ms / 2)) <= now;
        self.looked = Some(now);
        let is_quiet = !at.heaps.threads().any(|heap| heap.is_used(Since::Tidied));
        let is_quiet = is_quiet && !std::mem::take(&mut depot.was_used);
        self.visit(depot, tidies, now, at);
        self.was_quiet = is_quiet && (tidies || self.was_quiet);
        if tidies {
            self.tidied = Some(now);
        }
        if !depot.limbo.settle(at.heaps, at.fence) || self.has_missed {
            return Some(now + LOOK_MS);
        }
        (!self.was_quiet).then(|| due(self.tidied, LOOK_MS.max(idle_ms / 2)))
    }

    /// Passes every heap whose owner is outside.
    fn visit(&mut self, depot: &mut Depot, tidies: bool, now: u64, at: At<'_>) {
        at.heaps.threads().for_each(Heap::shut);
        gate::heavy(at.fence);
        self.has_missed = false;
        for heap in at.heaps.threads() {
            if !heap.mark().is_outside() {
                self.has_missed = true;
                continue;
            }
            heap.set_used(Since::SummedUp, false);
            heap.collect(at.heaps, at.held);
            if tidies {
                tidy(heap, !heap.set_used(Since::Tidied, false), at);
            }
            depot.drain(heap, now, at);
        }
        depot.drain_pools(tidies, now, at);
    }
}

impl Depot {
    /// Has every heap give back what it keeps, whoever uses it: memory is short.
    pub(crate) fn reclaim(&mut self, now: u64, at: At<'_>) {
        at.shut_all();
        for heap in at.heaps.threads() {
            heap.collect(at.heaps, at.held);
            tidy(heap, true, at);
            self.drain(heap, now, at);
        }
        self.drain_pools(true, now, at);
    }

    /// Takes in what the pools of the kinds keep.
    fn drain_pools(&mut self, tidies: bool, now: u64, at: At<'_>) {
        for pool in (0..self.kinds()).map(|kind| at.heaps.of_kind(kind)) {
            pool.collect(at.heaps, at.held);
            if tidies {
                tidy(pool, false, at);
            }
            self.drain(pool, now, at);
        }
    }
}

/// Lets go of a heap's empty slabs; of all with room if it is idle.
fn tidy(heap: &Heap, is_idle: bool, at: At<'_>) {
    let pool = at.heaps.of_kind(0);
    for class in Class::all() {
        heap.forget_ended(class);
        let mut next = heap.first(class, at.held);
        while let Some(slab) = next {
            next = slab.next.get(at.held);
            if slab.is_empty() {
                heap.discard(slab, at.held);
            } else if is_idle && slab.has_room() {
                heap.release(slab, at.held);
                at.take_home(slab, pool);
            }
        }
    }
}

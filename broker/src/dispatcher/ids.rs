//! Which block ids are free: runs of consecutive ids, rounded up to a power of two.
//!
//! ```text
//!  free (buddies, lowest first) -- take --> in use -- give_back --> resting (oldest first)
//!    ^                                                                  |
//!    +------------------------------------------------------------------+
//!       when more than an eighth of all ids rest, or nothing else fits
//! ```
//!
//! # Invariants
//!
//! 1. An id is in exactly one of: free, in use, resting. Id 0 is always in use.
//! 2. A free run of order `n` starts at a multiple of `2^n`, and its buddy is not free.
//! 3. Ids rest before they are used again, and the one that was given back first goes first: an id
//!    that somebody remembers by mistake stays an error for as long as possible.

use std::collections::{BTreeSet, VecDeque};

use dmce_abi::block::BlockId;

/// Consecutive ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdRange {
    /// The first of them.
    pub first: BlockId,
    /// How many there are.
    pub count: u32,
}

/// The ids of an instance.
#[derive(Debug)]
pub(super) struct BlockIds {
    /// Starts of free runs, by order.
    free: Vec<BTreeSet<u32>>,
    resting: VecDeque<IdRange>,
    resting_ids: u32,
    resting_max: u32,
}

impl BlockIds {
    /// All ids from 1 to `ids - 1` are free.
    pub(super) fn new(ids: u32) -> Self {
        let orders = ids.ilog2() as usize + 1;
        let mut table = Self {
            free: vec![BTreeSet::new(); orders],
            resting: VecDeque::new(),
            resting_ids: 0,
            resting_max: ids / 8,
        };
        table.release(1, ids - 1);
        table
    }

    /// Takes a run that starts at a multiple of its length.
    ///
    /// `None` if no run is long enough, although there may be as many single ids.
    pub(super) fn take(&mut self, count: u32) -> Option<IdRange> {
        let count = count.checked_next_power_of_two()?;
        let order = count.trailing_zeros() as usize;
        loop {
            let longer = (order..self.free.len()).find(|&order| !self.free[order].is_empty());
            if let Some(longer) = longer {
                let start = self.free[longer].pop_first()?;
                self.keep_rest(start, longer, order);
                return Some(IdRange { first: BlockId::try_from(start).ok()?, count });
            }
            let oldest = self.wake_oldest()?;
            self.release(oldest.first.get(), oldest.count);
        }
    }

    /// Takes one id that an object was found to have. `false` if it is in use.
    pub(super) fn claim(&mut self, id: BlockId) -> bool {
        if self.claim_free(id.get()) {
            return true;
        }
        // It may rest. Only a broker that comes back claims, and then nothing rests yet.
        while let Some(oldest) = self.wake_oldest() {
            self.release(oldest.first.get(), oldest.count);
        }
        self.claim_free(id.get())
    }

    /// Gives back ids that were taken or claimed.
    pub(super) fn give_back(&mut self, range: IdRange) {
        self.resting_ids += range.count;
        self.resting.push_back(range);
        while self.resting_ids > self.resting_max {
            let Some(oldest) = self.wake_oldest() else { return };
            self.release(oldest.first.get(), oldest.count);
        }
    }

    /// Ids that are free or rest: what `audit` compares with what is in use.
    pub(super) fn unused(&self) -> u64 {
        let free = (0u64..).zip(&self.free).map(|(order, runs)| (runs.len() as u64) << order);
        free.sum::<u64>() + u64::from(self.resting_ids)
    }

    fn wake_oldest(&mut self) -> Option<IdRange> {
        let oldest = self.resting.pop_front()?;
        self.resting_ids -= oldest.count;
        Some(oldest)
    }

    fn claim_free(&mut self, id: u32) -> bool {
        for order in 0..self.free.len() {
            let start = id & !low_mask(order);
            if self.free[order].remove(&start) {
                self.release(start, id - start);
                self.release(id + 1, start + (1 << order) - id - 1);
                return true;
            }
        }
        false
    }

    /// Of a run of order `longer`, frees all but its first `2^order` ids.
    fn keep_rest(&mut self, start: u32, longer: usize, order: usize) {
        for half in (order..longer).rev() {
            self.free[half].insert(start + (1 << half));
        }
    }

    /// Frees any run: as the largest aligned pieces, each joined with its buddy while that is free.
    fn release(&mut self, mut start: u32, mut count: u32) {
        while count > 0 {
            let aligned = if start == 0 { u32::BITS } else { start.trailing_zeros() };
            let order = aligned.min(count.ilog2());
            self.join(start, order as usize);
            start += 1 << order;
            count -= 1 << order;
        }
    }

    fn join(&mut self, mut start: u32, mut order: usize) {
        while order + 1 < self.free.len() && self.free[order].remove(&(start ^ (1 << order))) {
            start &= !(1 << order);
            order += 1;
        }
        self.free[order].insert(start);
    }
}

const fn low_mask(bits: usize) -> u32 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::test_random::Random;

    fn id(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    #[test]
    fn runs_are_aligned_and_rounded_up_and_id_0_is_never_given() {
        let mut ids = BlockIds::new(64);
        let run = ids.take(5).unwrap();
        assert_eq!((run.first.get() % 8, run.count), (0, 8));
        assert_eq!(ids.take(64), None);
        let singles = std::iter::from_fn(|| ids.take(1)).count();
        assert_eq!(singles, 64 - 8 - 1);
    }

    #[test]
    fn an_id_that_was_given_back_first_is_used_first_and_not_at_once() {
        let mut ids = BlockIds::new(64);
        let all: Vec<_> = std::iter::from_fn(|| ids.take(1)).collect();
        for &range in &[all[9], all[4], all[30]] {
            ids.give_back(range);
        }
        let again: Vec<_> = std::iter::from_fn(|| ids.take(1)).collect();
        assert_eq!(again, [all[9], all[4], all[30]]);

        let mut fresh = BlockIds::new(64);
        let first = fresh.take(1).unwrap();
        fresh.give_back(first);
        assert_ne!(fresh.take(1), Some(first));
    }

    #[test]
    fn a_claimed_id_is_in_use_even_if_it_was_resting() {
        let mut ids = BlockIds::new(64);
        assert!(ids.claim(id(33)) && !ids.claim(id(33)));
        ids.give_back(IdRange { first: id(33), count: 1 });
        assert!(ids.claim(id(33)));
        assert_eq!(ids.unused(), 62);
        let all: Vec<_> = std::iter::from_fn(|| ids.take(1)).collect();
        assert!(all.iter().all(|range| range.first != id(33)));
    }

    /// Against a plain table of who has what.
    #[test]
    fn no_id_is_given_twice_and_none_is_lost() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let total = 1 << (4 + random.below(6));
            let mut ids = BlockIds::new(total);
            let mut used = vec![false; total as usize];
            let mut held: Vec<IdRange> = Vec::new();
            used[0] = true;
            for _ in 0..400 {
                match random.below(5) {
                    0 | 1 => {
                        let count = 1 + random.below(9);
                        let Some(range) = ids.take(count) else { continue };
                        assert!(range.count >= count);
                        mark(&mut used, range, true);
                        held.push(range);
                    }
                    2 => {
                        let one = id(1 + random.below(total - 1));
                        let range = IdRange { first: one, count: 1 };
                        let was_used = used[one.index()];
                        assert_eq!(ids.claim(one), !was_used);
                        if !was_used {
                            mark(&mut used, range, true);
                            held.push(range);
                        }
                    }
                    _ if held.is_empty() => {}
                    _ => {
                        let range = held.swap_remove(random.index(held.len()));
                        mark(&mut used, range, false);
                        ids.give_back(range);
                    }
                }
                let unused = used.iter().filter(|used| !**used).count() as u64;
                assert_eq!(ids.unused(), unused, "seed {seed}");
            }
        }
    }

    fn mark(used: &mut [bool], range: IdRange, value: bool) {
        for id in range.first.get()..range.first.get() + range.count {
            assert_ne!(used[id as usize], value, "id {id}");
            used[id as usize] = value;
        }
    }
}

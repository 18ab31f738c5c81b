//! Who holds something of which there is little, and who of them used it of late.
//!
//! A clock: the oldest holder is asked first; one that was touched since it was asked last goes to
//! the end of the queue.
//!
//! # Invariants
//!
//! 1. Every holder that lives is in the queue. One that is gone may be as well, so there are never
//!    more holders than entries; nor many fewer than half as many.
//! 2. Each entry is looked at a few times for being added and once for being touched: the cost does
//!    not depend on how many there are.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

/// The fewest entries among which those are looked for that are gone.
const SWEEP_MIN: usize = 64;

/// The holders, the one first that was asked longest ago.
#[derive(Debug)]
pub(crate) struct Holders<T> {
    queue: VecDeque<Weak<T>>,
    /// At so many entries those are taken out that are gone.
    sweep_at: usize,
}

impl<T> Default for Holders<T> {
    fn default() -> Self {
        Self { queue: VecDeque::new(), sweep_at: SWEEP_MIN }
    }
}

impl<T> Holders<T> {
    /// Takes a new holder in.
    pub(crate) fn add(&mut self, holder: &Arc<T>) {
        if self.queue.len() >= self.sweep_at {
            self.queue.retain(|entry| entry.strong_count() > 0);
            self.sweep_at = SWEEP_MIN.max(2 * self.queue.len());
        }
        self.queue.push_back(Arc::downgrade(holder));
    }

    /// Takes out who has to give up, so that with one more there are no more than `limit`.
    /// `take_touched` says whether a holder was used since it was asked last.
    pub(crate) fn make_room(
        &mut self,
        limit: usize,
        take_touched: impl Fn(&T) -> bool,
    ) -> Vec<Arc<T>> {
        let mut out = Vec::new();
        // Where all are in use, the oldest gives up.
        let mut chances = self.queue.len();
        while self.queue.len() >= limit.max(1) {
            let Some(oldest) = self.queue.pop_front() else { break };
            let Some(holder) = oldest.upgrade() else { continue };
            if chances > 0 && take_touched(&holder) {
                chances -= 1;
                self.queue.push_back(oldest);
            } else {
                out.push(holder);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    struct Holder {
        number: u32,
        touched: Cell<bool>,
    }

    fn holder(number: u32) -> Arc<Holder> {
        #[allow(clippy::arc_with_non_send_sync, reason = "no thread but this one")]
        Arc::new(Holder { number, touched: Cell::new(false) })
    }

    fn numbers(out: &[Arc<Holder>]) -> Vec<u32> {
        out.iter().map(|holder| holder.number).collect()
    }

    #[test]
    fn who_was_touched_stays_and_who_is_gone_does_not_count() {
        let all: Vec<_> = (0..4).map(holder).collect();
        let mut holders = Holders::default();
        for one in &all {
            holders.add(one);
        }
        let take = |one: &Holder| one.touched.replace(false);
        assert_eq!(numbers(&holders.make_room(5, take)), []);
        all[0].touched.set(true);
        assert_eq!(numbers(&holders.make_room(4, take)), [1]);
        for one in &all {
            one.touched.set(true);
        }
        assert_eq!(numbers(&holders.make_room(3, take)), [2], "all in use: the oldest");
        let mut all = all;
        all.remove(3);
        assert_eq!(numbers(&holders.make_room(2, take)), [], "0 is left");
        assert_eq!(numbers(&holders.make_room(1, take)), [0]);
        assert_eq!(numbers(&holders.make_room(0, take)), []);
    }

    #[test]
    fn those_that_are_gone_do_not_pile_up() {
        let lasting: Vec<_> = (0..100).map(holder).collect();
        let mut holders = Holders::default();
        for one in &lasting {
            holders.add(one);
        }
        for number in 0..10_000 {
            assert_eq!(numbers(&holders.make_room(usize::MAX, |_| true)), []);
            holders.add(&holder(number));
            assert!(holders.queue.len() <= 2 * lasting.len() + 1, "{}", holders.queue.len());
        }
    }

    #[test]
    fn room_costs_the_same_however_many_there_are() {
        const COUNT: u32 = 50_000;
        const LIMIT: usize = 10_000;
        let looks = Cell::new(0);
        let take = |one: &Holder| {
            looks.set(looks.get() + 1);
            one.touched.replace(false)
        };
        let mut holders = Holders::default();
        let mut all = Vec::new();
        for number in 0..COUNT {
            let _out = holders.make_room(LIMIT, take);
            all.push(holder(number));
            holders.add(&all[all.len() - 1]);
            all[number as usize / 2].touched.set(true);
            assert!(holders.queue.len() <= LIMIT);
        }
        // One look for each that was added, and one for each touch.
        assert!(looks.get() <= 2 * COUNT, "{} looks", looks.get());
    }
}

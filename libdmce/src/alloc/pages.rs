//! The pages of one block: which are free, which begin an allocation, which belong to a slab.
//!
//! ```text
//! one word a page:   | value (30 bits) | tag |
//!
//!   FREE run         FREE(n) . . . FREE(n)            n pages; only its two ends are looked at
//!   allocated run    HEAD(n) INNER(1) .. INNER(n-1)   n pages
//!   slab             SLAB(0) SLAB(1) .. SLAB(n-1)     n pages
//! ```
//!
//! # Invariants
//!
//! 1. The page before a run and the page after it are ends of their own runs, so two looks find the
//!    free neighbours.
//! 2. No two free runs touch.
//! 3. Every word of an allocated run and of a slab is right, so an address inside is never taken
//!    for the start of an allocation, and the start is found from anywhere inside.
//! 4. A page whose `used` bit is clear has never been given out: it is zero.

use std::collections::BTreeSet;

/// Pages that one map can hold: 4 TiB of them.
pub(crate) const PAGES_MAX: u32 = 1 << 30;

/// A run of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Its first page.
    pub first: u32,
    /// Its pages.
    pub count: u32,
}

impl Run {
    /// Each of them.
    pub(crate) fn pages(self) -> impl Iterator<Item = u32> {
        self.first..self.first + self.count
    }
}

/// What a page is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Page {
    /// The first page of an allocated run of so many.
    Head(u32),
    /// So many pages behind the first page of an allocated run.
    Inner(u32),
    /// So many pages behind the first page of a slab.
    Slab(u32),
    /// Of nothing.
    Free,
}

/// The pages of one block.
#[derive(Debug, Default)]
pub(crate) struct PageMap {
    words: Vec<u32>,
    used: Vec<u64>,
    /// Free runs as (pages, first page): the best fit is the first that is large enough.
    free: BTreeSet<(u32, u32)>,
}

const TAG_BITS: u32 = 2;
const TAG_MASK: u32 = (1 << TAG_BITS) - 1;
const FREE: u32 = 0;
const HEAD: u32 = 1;
const INNER: u32 = 2;
const SLAB: u32 = 3;

impl PageMap {
    /// How many pages there are.
    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.words.len()).expect("no more than PAGES_MAX are ever added")
    }

    /// Pages of the longest free run.
    pub(crate) fn longest_free(&self) -> u32 {
        self.free.last().map_or(0, |&(count, _)| count)
    }

    /// Pages of the free run at the end.
    pub(crate) fn free_at_end(&self) -> u32 {
        match self.words.last() {
            Some(word) if word & TAG_MASK == FREE => word >> TAG_BITS,
            _ => 0,
        }
    }

    /// Adds fresh pages until there are `count`; fewer than there are changes nothing.
    pub(crate) fn extend_to(&mut self, count: u32) {
        let first = self.len();
        let count = count.min(PAGES_MAX);
        if count <= first {
            return;
        }
        self.words.resize(count as usize, FREE);
        self.used.resize((count as usize).div_ceil(64), 0);
        self.give(Run { first, count: count - first });
    }

    /// Takes the best fitting run of `count` pages at a multiple of `align` pages; with it, whether
    /// all of it is zero. The caller says what it is by [`PageMap::set_slab`], else it is
    /// allocated.
    pub(crate) fn take(&mut self, count: u32, align: u32) -> Option<(Run, bool)> {
        let fit = |&(pages, first): &(u32, u32)| {
            let start = first.checked_next_multiple_of(align)?;
            let end = start.checked_add(count)?;
            (end <= first + pages).then_some((Run { first, count: pages }, start))
        };
        let (hole, start) = self.free.range((count, 0)..).find_map(fit)?;
        let run = Run { first: start, count };
        self.free.remove(&(hole.count, hole.first));
        self.insert_free(Run { first: hole.first, count: start - hole.first });
        let end = start + count;
        self.insert_free(Run { first: end, count: hole.first + hole.count - end });
        self.set_allocated(run);
        Some((run, self.use_pages(run)))
    }

    /// Gives a run back.
    pub(crate) fn give(&mut self, run: Run) {
        for page in run.first..run.first + run.count {
            self.words[page as usize] = FREE;
        }
        let mut merged = run;
        if let Some(before) = run.first.checked_sub(1)
            && let Some(count) = self.free_run_at(before)
        {
            self.free.remove(&(count, run.first - count));
            merged = Run { first: run.first - count, count: merged.count + count };
        }
        if let Some(count) = self.free_run_at(run.first + run.count) {
            self.free.remove(&(count, run.first + run.count));
            merged.count += count;
        }
        self.insert_free(merged);
    }

    /// Makes an allocated run `count` pages long where it is: its end is given back, or the free
    /// pages behind it are taken. False, and nothing changed, if those are not enough.
    pub(crate) fn resize(&mut self, run: Run, count: u32) -> bool {
        if count < run.count {
            self.words[run.first as usize] = count << TAG_BITS | HEAD;
            self.give(Run { first: run.first + count, count: run.count - count });
            return true;
        }
        let (more, end) = (count - run.count, run.first + run.count);
        if more == 0 {
            return true;
        }
        let Some(behind) = self.free_run_at(end).filter(|&behind| behind >= more) else {
            return false;
        };
        self.free.remove(&(behind, end));
        self.insert_free(Run { first: end + more, count: behind - more });
        self.set_allocated(Run { count, ..run });
        self.use_pages(Run { first: end, count: more });
        true
    }

    /// Says that a run that was taken is a slab.
    pub(crate) fn set_slab(&mut self, run: Run) {
        for behind in 0..run.count {
            self.words[(run.first + behind) as usize] = behind << TAG_BITS | SLAB;
        }
    }

    /// The first pages of all slabs.
    pub(crate) fn slabs(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.words).filter(|&(_, &word)| word == SLAB).map(|(page, _)| page)
    }

    /// What a page is part of.
    pub(crate) fn page(&self, page: u64) -> Page {
        let word = usize::try_from(page).ok().and_then(|page| self.words.get(page));
        let Some(&word) = word else { return Page::Free };
        let value = word >> TAG_BITS;
        match word & TAG_MASK {
            HEAD => Page::Head(value),
            INNER => Page::Inner(value),
            SLAB => Page::Slab(value),
            _ => Page::Free,
        }
    }

    /// The length of the free run that has an end at `page`.
    fn free_run_at(&self, page: u32) -> Option<u32> {
        let word = *self.words.get(page as usize)?;
        (word & TAG_MASK == FREE).then_some(word >> TAG_BITS).filter(|&count| count > 0)
    }

    fn insert_free(&mut self, run: Run) {
        if run.count == 0 {
            return;
        }
        let word = run.count << TAG_BITS | FREE;
        self.words[run.first as usize] = word;
        self.words[(run.first + run.count) as usize - 1] = word;
        self.free.insert((run.count, run.first));
    }

    fn set_allocated(&mut self, run: Run) {
        self.words[run.first as usize] = run.count << TAG_BITS | HEAD;
        for inner in 1..run.count {
            self.words[(run.first + inner) as usize] = inner << TAG_BITS | INNER;
        }
    }

    /// Marks a run as used; true if no page of it was.
    fn use_pages(&mut self, run: Run) -> bool {
        let mut fresh = true;
        let (mut page, end) = (run.first, run.first + run.count);
        while page < end {
            let (word, bit) = ((page / 64) as usize, page % 64);
            let bits = (64 - bit).min(end - page);
            let mask = (u64::MAX >> (64 - bits)) << bit;
            fresh &= self.used[word] & mask == 0;
            self.used[word] |= mask;
            page += bits;
        }
        fresh
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pages: u32) -> PageMap {
        let mut map = PageMap::default();
        map.extend_to(pages);
        map
    }

    fn take(map: &mut PageMap, count: u32) -> Run {
        map.take(count, 1).unwrap().0
    }

    #[test]
    fn neighbours_that_are_freed_become_one_run() {
        let mut map = map(100);
        let runs: Vec<Run> = (0..10).map(|_| take(&mut map, 10)).collect();
        assert_eq!(map.longest_free(), 0);
        for run in [runs[3], runs[5], runs[4]] {
            map.give(run);
        }
        assert_eq!(map.longest_free(), 30);
        for place in [0, 9, 1, 8, 2, 7, 6] {
            map.give(runs[place]);
        }
        assert_eq!(map.longest_free(), 100);
        assert_eq!(map.free_at_end(), 100);
    }

    #[test]
    fn takes_the_smallest_hole_that_is_aligned() {
        let mut map = map(64);
        let first = take(&mut map, 3);
        let _between = take(&mut map, 1);
        let hole = take(&mut map, 5);
        let _last = take(&mut map, 1);
        map.give(first);
        map.give(hole);
        assert_eq!(take(&mut map, 2), Run { first: 0, count: 2 });
        let (aligned, _) = map.take(2, 8).unwrap();
        assert_eq!(aligned.first % 8, 0);
        let (far, _) = map.take(16, 16).unwrap();
        assert_eq!(far.first % 16, 0);
        assert_eq!(map.take(40, 1), None);
    }

    #[test]
    fn only_pages_that_were_never_used_are_zero() {
        let mut map = map(200);
        let (run, zero) = map.take(130, 1).unwrap();
        assert!(zero);
        map.give(run);
        assert!(!map.take(130, 1).unwrap().1);
        assert!(map.take(70, 1).unwrap().1);
        map.extend_to(201);
        assert!(map.take(1, 1).unwrap().1);
    }

    #[test]
    fn an_address_inside_a_run_is_no_allocation_whatever_was_there_before() {
        let mut map = map(16);
        let small: Vec<Run> = (0..16).map(|_| take(&mut map, 1)).collect();
        for run in small {
            map.give(run);
        }
        let run = take(&mut map, 16);
        assert_eq!(map.page(0), Page::Head(16));
        for page in 1..17 {
            assert!(!matches!(map.page(page), Page::Head(_)), "{page}");
        }
        assert_eq!(map.page(15), Page::Inner(15));
        map.give(run);
        assert_eq!(map.page(0), Page::Free);
    }

    #[test]
    fn a_run_grows_into_free_pages_behind_it_and_shrinks() {
        let mut map = map(20);
        let run = take(&mut map, 4);
        assert!(map.resize(run, 10));
        assert_eq!(map.page(0), Page::Head(10));
        assert_eq!(map.page(9), Page::Inner(9));
        let behind = take(&mut map, 10);
        let run = Run { first: 0, count: 10 };
        assert!(!map.resize(run, 11));
        assert!(map.resize(run, 2));
        assert_eq!(map.longest_free(), 8);
        map.give(behind);
        map.give(Run { first: 0, count: 2 });
        assert_eq!(map.longest_free(), 20);
    }

    #[test]
    fn fresh_pages_join_a_free_end() {
        let mut map = map(8);
        take(&mut map, 6);
        map.extend_to(16);
        // The pages before and after the old end are one run.
        assert_eq!((map.free_at_end(), map.longest_free()), (10, 10));
    }
}

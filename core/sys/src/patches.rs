//! Which pages of this process hold garbage because the memory behind them was lost.
//!
//! The SIGBUS handler puts an anonymous page where a guarded access found none, so that the access
//! can end. From then on nothing tells that page from data, so it is recorded here.
//!
//! ```text
//!             63                          20 19              0
//! table slot  |        first page          |  pages in a row  |   0 = free
//! ```
//!
//! # Invariants
//!
//! 1. A page is in the table before garbage is mapped there, and until something else is mapped
//!    there: [`record`] before the handler's `mmap`, removal after [`replacing`]'s, both under the
//!    lock. What is unmapped leaves the table before ([`unmapping`]), while no guard is over it.
//! 2. [`count`] rises before garbage is mapped. After the rise every running thread passes a full
//!    barrier (the handler's `membarrier`), so whoever touched the garbage sees the new count.
//! 3. Lookups take no lock: a slot changes by one store, and an entry that is cut in two is never
//!    missing in between.
//! 4. Nothing here allocates or panics: it runs in a signal handler. It waits for the lock alone,
//!    whose holders are inside one or two system calls (see [`lock`]).
//! 5. A forked child may have inherited the table from the middle of a change. Every step leaves
//!    it knowing too much, never too little: an entry is counted before it is there, and not
//!    counted any more only after it is gone.
//! 6. A full table is not forgotten: from then on every guard answers that it does not know.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

pub(crate) use self::lock::{Held, lock_in_handler, prepare};
use crate::map::{MappedRange, page_bytes};

mod lock;

const SLOTS: usize = 256;
const PAGES_BITS: u32 = 20;
const PAGES_MAX: u64 = (1 << PAGES_BITS) - 1;

static TABLE: Table = Table::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// How many pages were ever patched, modulo 2^32.
#[inline]
pub(crate) fn count() -> u32 {
    // Acquire: what is read after a guard began is read after this.
    COUNT.load(Ordering::Acquire)
}

/// Whether any page is patched now. The answer is one load as long as nothing was ever lost.
#[inline]
pub(crate) fn any() -> bool {
    TABLE.used_slots.load(Ordering::Acquire) != 0
}

/// Whether pages were lost that the table has no room for.
pub(crate) fn is_overflowed() -> bool {
    TABLE.overflowed.load(Ordering::Acquire)
}

/// The first patched byte address in a range.
#[cold]
pub(crate) fn first_in(start: usize, bytes: usize) -> Option<usize> {
    let found = TABLE.first_in(Pages::around(start, bytes)?)?;
    let page_start = usize::try_from(found).ok()?.checked_mul(page_bytes())?;
    Some(page_start.max(start))
}

/// Notes that the page of `addr` is about to hold garbage, and raises [`count`].
pub(crate) fn record(_held: &Held, addr: usize) {
    if let Some(page) = Pages::around(addr, 1) {
        TABLE.insert(page);
    }
    // Release: who sees the new count sees the entry. Acquire: pairs with nothing, but keeps what
    // the handler does next behind it.
    COUNT.fetch_add(1, Ordering::AcqRel);
}

/// Runs `change`, which maps something else over `range`, and forgets what was lost there.
pub(crate) fn replacing<T, E>(
    range: MappedRange<'_>,
    change: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let _held = lock::lock();
    let changed = change();
    if changed.is_ok() {
        forget(range);
    }
    changed
}

/// Runs `change`, which takes the mapping of `range` away. Nobody is inside a guard over it.
///
/// Forgotten first: the next mapping at these addresses is another's, also in a child that is
/// forked in between.
pub(crate) fn unmapping<T>(range: MappedRange<'_>, change: impl FnOnce() -> T) -> T {
    let _held = lock::lock();
    forget(range);
    change()
}

/// Under the lock.
fn forget(range: MappedRange<'_>) {
    let pages = Pages::around(range.as_ptr().addr(), range.len());
    if let Some(pages) = pages.filter(|_| any()) {
        TABLE.forget(pages);
    }
}

/// A run of pages; `count` is at least 1, and at most [`PAGES_MAX`] in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pages {
    first: u64,
    count: u64,
}

impl Pages {
    /// The pages that a range of bytes touches.
    fn around(start: usize, bytes: usize) -> Option<Self> {
        let page_bytes = page_bytes();
        let last = start.checked_add(bytes.checked_sub(1)?)? / page_bytes;
        let first = start / page_bytes;
        Some(Self { first: first as u64, count: (last - first) as u64 + 1 })
    }

    fn end(self) -> u64 {
        self.first + self.count
    }

    fn common(self, other: Self) -> Option<Self> {
        let first = self.first.max(other.first);
        let end = self.end().min(other.end());
        (first < end).then(|| Self { first, count: end - first })
    }

    fn from_slot(slot: u64) -> Option<Self> {
        (slot != 0).then_some(Self { first: slot >> PAGES_BITS, count: slot & PAGES_MAX })
    }

    fn to_slot(self) -> u64 {
        self.first << PAGES_BITS | self.count
    }
}

/// The patched pages. Written under the lock; read by every guard without it. Slots are stored with
/// release and loaded with acquire, so that who finds an entry gone sees what replaced the pages.
struct Table {
    slots: [AtomicU64; SLOTS],
    used_slots: AtomicU32,
    overflowed: AtomicBool,
}

impl Table {
    const fn new() -> Self {
        Self {
            slots: [const { AtomicU64::new(0) }; SLOTS],
            used_slots: AtomicU32::new(0),
            overflowed: AtomicBool::new(false),
        }
    }

    fn entries(&self) -> impl Iterator<Item = (&AtomicU64, Pages)> {
        self.slots.iter().filter_map(|slot| {
            Pages::from_slot(slot.load(Ordering::Acquire)).map(|pages| (slot, pages))
        })
    }

    fn first_in(&self, wanted: Pages) -> Option<u64> {
        self.entries().filter_map(|(_, entry)| entry.common(wanted)).map(|pages| pages.first).min()
    }

    fn insert(&self, page: Pages) {
        if self.first_in(page).is_some() {
            return;
        }
        for (slot, entry) in self.entries() {
            let touches = entry.end() == page.first || page.end() == entry.first;
            if touches && entry.count < PAGES_MAX {
                let first = entry.first.min(page.first);
                let grown = Pages { first, count: entry.count + 1 };
                slot.store(grown.to_slot(), Ordering::Release);
                return;
            }
        }
        if !self.add(page) {
            // `any` has to be true from now on, and no forgetting may change that.
            self.used_slots.fetch_add(1, Ordering::AcqRel);
            self.overflowed.store(true, Ordering::Release);
        }
    }

    fn add(&self, pages: Pages) -> bool {
        let Some(slot) = self.slots.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) else {
            return false;
        };
        self.used_slots.fetch_add(1, Ordering::AcqRel);
        slot.store(pages.to_slot(), Ordering::Release);
        true
    }

    fn forget(&self, gone: Pages) {
        for (slot, entry) in self.entries() {
            let Some(common) = entry.common(gone) else { continue };
            let head = Pages { first: entry.first, count: common.first - entry.first };
            let tail = Pages { first: common.end(), count: entry.end() - common.end() };
            match (head.count > 0, tail.count > 0) {
                (false, false) => {
                    slot.store(0, Ordering::Release);
                    self.used_slots.fetch_sub(1, Ordering::AcqRel);
                }
                (true, false) => slot.store(head.to_slot(), Ordering::Release),
                (false, true) => slot.store(tail.to_slot(), Ordering::Release),
                // The tail first, so that a lookup in between misses neither. Without room for it
                // the entry stays whole: too much is called lost until the next change, never too
                // little.
                (true, true) if self.add(tail) => slot.store(head.to_slot(), Ordering::Release),
                (true, true) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn pages(first: u64, count: u64) -> Pages {
        Pages { first, count }
    }

    /// Numbers that depend on the seed only.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (self.0 >> 33) % limit
        }
    }

    #[test]
    fn agrees_with_a_set_of_pages() {
        for seed in 0..50 {
            let (mut dice, table) = (Dice(seed), Table::new());
            let mut model = BTreeSet::new();
            for step in 0..2000 {
                let at = 1 + dice.below(300);
                if dice.below(3) > 0 {
                    table.insert(pages(at, 1));
                    model.insert(at);
                } else {
                    let gone = pages(at, 1 + dice.below(20));
                    table.forget(gone);
                    model.retain(|&page| page < gone.first || page >= gone.end());
                }
                let wanted = pages(1 + dice.below(300), 1 + dice.below(20));
                let expected = model.range(wanted.first..wanted.end()).next().copied();
                assert_eq!(table.first_in(wanted), expected, "seed {seed} step {step}");
                let is_used = table.used_slots.load(Ordering::Relaxed) != 0;
                assert_eq!(is_used, !model.is_empty(), "seed {seed} step {step}");
            }
            assert!(!table.overflowed.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn a_full_table_stays_suspect_for_ever() {
        let table = Table::new();
        for page in 0..=SLOTS as u64 {
            assert!(!table.overflowed.load(Ordering::Relaxed));
            table.insert(pages(10 + 2 * page, 1));
        }
        assert!(table.overflowed.load(Ordering::Relaxed));
        table.forget(pages(0, 10_000));
        assert_eq!(table.first_in(pages(0, 10_000)), None);
        assert!(table.used_slots.load(Ordering::Relaxed) > 0);
    }

    #[test]
    fn pages_are_those_that_bytes_touch() {
        let size = page_bytes();
        assert_eq!(Pages::around(size, size), Some(pages(1, 1)));
        assert_eq!(Pages::around(2 * size - 1, 2), Some(pages(1, 2)));
        assert_eq!(Pages::around(size, 0), None);
        assert_eq!(Pages::around(usize::MAX, 2), None);
        let high = pages((1 << 44) - 1, PAGES_MAX);
        assert_eq!(Pages::from_slot(high.to_slot()), Some(high));
    }
}

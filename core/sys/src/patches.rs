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
//!    there: [`record`] before the handler's `mmap`, removal after [`replacing`]'s, both under the lock.
//! 2. [`count`] rises before garbage is mapped. After the rise every running thread passes a full
//!    barrier (the handler's `membarrier`), so whoever touched the garbage sees the new count.
//! 3. Lookups take no lock: a slot changes by one store, and an entry that is cut in two is never
//!    missing in between.
//! 4. Nothing here allocates, blocks for ever, or panics: it runs in a signal handler. A lock whose
//!    holder does not go on (a forked child has inherited it) is taken by force after a while.
//! 5. A full table is not forgotten: from then on every guard answers that it does not know.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::map::{MappedRange, page_bytes};

const SLOTS: usize = 256;
const PAGES_BITS: u32 = 20;
const PAGES_MAX: u64 = (1 << PAGES_BITS) - 1;
const YIELDS_BEFORE_FORCE: u32 = 20_000;

static TABLE: [AtomicU64; SLOTS] = [const { AtomicU64::new(0) }; SLOTS];
static USED_SLOTS: AtomicU32 = AtomicU32::new(0);
static COUNT: AtomicU32 = AtomicU32::new(0);
static OVERFLOWED: AtomicBool = AtomicBool::new(false);
static LOCK: AtomicBool = AtomicBool::new(false);

/// How many pages were ever patched, modulo 2^32.
#[inline]
pub(crate) fn count() -> u32 {
    // Acquire: what is read after a guard began is read after this.
    COUNT.load(Ordering::Acquire)
}

/// Whether any page is patched now. The answer is one load as long as nothing was ever lost.
#[inline]
pub(crate) fn any() -> bool {
    USED_SLOTS.load(Ordering::Acquire) != 0
}

/// Whether pages were lost that the table has no room for.
pub(crate) fn is_overflowed() -> bool {
    OVERFLOWED.load(Ordering::Acquire)
}

/// The first patched byte address in a range.
#[cold]
pub(crate) fn first_in(start: usize, bytes: usize) -> Option<usize> {
    let wanted = Pages::around(start, bytes)?;
    let found = entries().filter_map(|(_, entry)| entry.common(wanted)).map(|c| c.first).min()?;
    let page_start = usize::try_from(found).ok()?.checked_mul(page_bytes())?;
    Some(page_start.max(start))
}

/// Notes that the page of `addr` is about to hold garbage, and raises [`count`]. Under the lock.
pub(crate) fn record(_held: &Held, addr: usize) {
    if let Some(page) = Pages::around(addr, 1) {
        insert(page);
    }
    COUNT.fetch_add(1, Ordering::AcqRel);
}

/// Runs `change`, which maps something else over `range`, and forgets what was lost there.
pub(crate) fn replacing<T, E>(
    range: MappedRange<'_>,
    change: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    let held = lock();
    let changed = change();
    if changed.is_ok() && any() {
        forget(&held, range.as_ptr().addr(), range.len());
    }
    changed
}

/// Keeps patching and replacing apart.
pub(crate) struct Held(());

/// Takes the lock; held over one or two system calls that change mappings.
pub(crate) fn lock() -> Held {
    let mut yields = 0;
    // Acquire: pairs with the release in `Held::drop`.
    while LOCK.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        yields += 1;
        if yields > YIELDS_BEFORE_FORCE {
            LOCK.store(true, Ordering::Release);
            break;
        }
        rustix::thread::sched_yield();
    }
    Held(())
}

impl Drop for Held {
    fn drop(&mut self) {
        LOCK.store(false, Ordering::Release);
    }
}

/// A run of pages; `count` is at least 1 and at most [`PAGES_MAX`] in the table.
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

fn entries() -> impl Iterator<Item = (&'static AtomicU64, Pages)> {
    TABLE.iter().filter_map(|slot| {
        // Acquire: pairs with the release of `set`.
        Pages::from_slot(slot.load(Ordering::Acquire)).map(|pages| (slot, pages))
    })
}

fn insert(page: Pages) {
    for (slot, entry) in entries() {
        if entry.common(page).is_some() {
            return;
        }
        let grown = Pages { first: entry.first.min(page.first), count: entry.count + 1 };
        let touches = entry.end() == page.first || page.end() == entry.first;
        if touches && grown.count <= PAGES_MAX {
            slot.store(grown.to_slot(), Ordering::Release);
            return;
        }
    }
    if !add(page) {
        OVERFLOWED.store(true, Ordering::Release);
    }
}

fn add(pages: Pages) -> bool {
    let Some(slot) = TABLE.iter().find(|slot| slot.load(Ordering::Relaxed) == 0) else {
        return false;
    };
    slot.store(pages.to_slot(), Ordering::Release);
    USED_SLOTS.fetch_add(1, Ordering::AcqRel);
    true
}

fn forget(_held: &Held, start: usize, bytes: usize) {
    let Some(gone) = Pages::around(start, bytes) else { return };
    for (slot, entry) in entries() {
        let Some(common) = entry.common(gone) else { continue };
        let head = Pages { first: entry.first, count: common.first - entry.first };
        let tail = Pages { first: common.end(), count: entry.end() - common.end() };
        match (head.count > 0, tail.count > 0) {
            (false, false) => {
                slot.store(0, Ordering::Release);
                USED_SLOTS.fetch_sub(1, Ordering::AcqRel);
            }
            (true, false) => slot.store(head.to_slot(), Ordering::Release),
            (false, true) => slot.store(tail.to_slot(), Ordering::Release),
            // The tail first, so that a lookup in between misses neither. Without room for it the
            // entry stays whole: too much is called lost until the next change, never too little.
            (true, true) if add(tail) => slot.store(head.to_slot(), Ordering::Release),
            (true, true) => {}
        }
    }
}

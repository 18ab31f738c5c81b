//! Where what is mapped for good is: from OS addresses to DMCE addresses, and back, each by a table
//! of two levels (FIG. 3, 11).
//!
//! ```text
//!   pointer / 2 MiB = | root, 13 bits | leaf, 13 bits |     address = | block id | cell |
//!                         |               |                                 |
//!                         v               v                       the same, by block id
//!                   roots[..] ----> leaf[..] = Entry { value, bytes }
//!
//!   address = value + pointer % 2 MiB, if that is below bytes
//!   pointer = value + cell,            if that is below bytes
//! ```
//!
//! # Invariants
//!
//! 1. An entry is of one range: a granule that another mapping may share has none, and is looked
//!    up elsewhere.
//! 2. An entry is changed under the lock of `changing`; its version is odd meanwhile, so a reader
//!    gets a value and the bytes that belong to it, or nothing.
//! 3. A leaf, once made, stays as long as the table.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

/// The unit of OS addresses: a huge page.
pub(crate) const GRANULE_BYTES: u64 = 2 << 20;
const GRANULE_BITS: u32 = GRANULE_BYTES.trailing_zeros();

/// Width of what a process of this width can map at all; what lies beyond is looked up elsewhere.
const OS_BITS: u32 = if cfg!(target_pointer_width = "64") { 47 } else { 32 };

const GRANULE_LEAF_BITS: u32 = if cfg!(target_pointer_width = "64") { 13 } else { 11 };
const BLOCK_LEAF_BITS: u32 = 9;

/// A contiguous range that is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    /// The first OS address, page aligned.
    pub os: u64,
    /// The DMCE address there, which is cell 0 of a block.
    pub addr: u64,
    /// Bytes.
    pub bytes: u64,
    /// Bytes from `os` on that no other mapping can have.
    pub own_bytes: u64,
}

/// Both directions, for one session.
#[derive(Debug)]
pub(crate) struct Places {
    granules: Sparse,
    blocks: Sparse,
    cell_bits: u8,
    changing: Mutex<()>,
}

impl Places {
    /// Without an entry, for blocks with cells of so many bits and ids below `ids`.
    pub(crate) const fn new(cell_bits: u8, ids: u32) -> Self {
        Self {
            granules: Sparse::new(1 << (OS_BITS - GRANULE_BITS), GRANULE_LEAF_BITS),
            blocks: Sparse::new(ids as u64, BLOCK_LEAF_BITS),
            cell_bits,
            changing: Mutex::new(()),
        }
    }

    /// The DMCE address of a byte that is known to be mapped.
    #[inline]
    pub(crate) fn addr_of(&self, os: u64) -> Option<u64> {
        self.granules.find(os >> GRANULE_BITS, os & (GRANULE_BYTES - 1))
    }

    /// The OS address of a byte that is known to be mapped.
    #[inline]
    pub(crate) fn os_of(&self, addr: u64) -> Option<u64> {
        self.blocks.find(addr >> self.cell_bits, addr & ((1 << self.cell_bits) - 1))
    }

    /// Enters a range, which is mapped.
    pub(crate) fn enter(&self, range: Range) {
        self.each_entry(range, Entry::set);
    }

    /// Takes a range out, before it is unmapped.
    pub(crate) fn leave(&self, range: Range) {
        self.each_entry(range, |entry, _, _| entry.set(0, 0));
    }

    fn each_entry(&self, range: Range, act: impl Fn(&Entry, u64, u64)) {
        let Range { os, addr, bytes, own_bytes } = range;
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = os.next_multiple_of(GRANULE_BYTES) - os;
        while at + GRANULE_BYTES <= own_bytes && at < bytes {
            if let Some(entry) = self.granules.entry((os + at) >> GRANULE_BITS) {
                act(entry, addr + at, GRANULE_BYTES.min(bytes - at));
            }
            at += GRANULE_BYTES;
        }
        let (block_bytes, mut at) = (1 << self.cell_bits, 0);
        while at < bytes {
            if let Some(entry) = self.blocks.entry((addr + at) >> self.cell_bits) {
                act(entry, os + at, block_bytes.min(bytes - at));
            }
            at += block_bytes;
        }
    }
}

/// Made when the first of its entries is.
type Leaf = OnceLock<Box<[Entry]>>;

/// Entries by number, of which few are used.
#[derive(Debug)]
struct Sparse {
    roots: OnceLock<Box<[Leaf]>>,
    entries: u64,
    leaf_bits: u32,
}

/// What a number stands for. Nothing while `bytes` is 0.
#[derive(Debug, Default)]
#[repr(align(32))]
struct Entry {
    value: AtomicU64,
    bytes: AtomicU64,
    version: AtomicU32,
}

impl Sparse {
    const fn new(entries: u64, leaf_bits: u32) -> Self {
        Self { roots: OnceLock::new(), entries, leaf_bits }
    }

    /// The value of an entry and so many bytes from there on, if that is less than it has.
    #[inline]
    fn find(&self, number: u64, offset: u64) -> Option<u64> {
        let root = usize::try_from(number >> self.leaf_bits).ok()?;
        let leaf = self.roots.get()?.get(root)?.get()?;
        let (value, bytes) = leaf.get(self.place(number))?.get()?;
        (offset < bytes).then(|| value + offset)
    }

    /// An entry, to be changed. `None` for a number that there is not.
    fn entry(&self, number: u64) -> Option<&Entry> {
        let place = self.place(number);
        let root = usize::try_from(number >> self.leaf_bits).ok().filter(|_| number < self.entries);
        let roots = self.roots.get_or_init(|| {
            let roots = self.entries.div_ceil(1 << self.leaf_bits);
            (0..roots).map(|_| OnceLock::new()).collect()
        });
        let make = || (0..1 << self.leaf_bits).map(|_| Entry::default()).collect();
        roots.get(root?)?.get_or_init(make).get(place)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are wanted")]
    const fn place(&self, number: u64) -> usize {
        number as usize & ((1 << self.leaf_bits) - 1)
    }
}

impl Entry {
    /// `None` while it is being changed, too: who is asked then has the lock.
    #[inline]
    fn get(&self) -> Option<(u64, u64)> {
        // Acquire pairs with the last store in `set`.
        let version = self.version.load(Ordering::Acquire);
        let found = (self.value.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        // What was loaded is not of a later change, if the version is the same.
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        is_whole.then_some(found)
    }

    /// Under the lock of `changing`.
    fn set(&self, value: u64, bytes: u64) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Pairs with the fence in `get`: who sees what follows sees the odd version.
        fence(Ordering::Release);
        self.value.store(value, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;

    const CELL_BITS: u8 = 22;
    const PAGE: u64 = 4096;

    fn places() -> Places {
        Places::new(CELL_BITS, 1 << 12)
    }

    /// A range of whole granules, from a granule on and with the blocks from an id on.
    fn range(granule: u64, block: u64, bytes: u64) -> Range {
        let own_bytes = bytes.next_multiple_of(GRANULE_BYTES);
        Range { os: granule << GRANULE_BITS, addr: block << CELL_BITS, bytes, own_bytes }
    }

    #[test]
    fn a_byte_is_found_both_ways_and_the_next_after_the_last_is_not() {
        let places = places();
        let one = range(700, 3, (9 << 20) + 5);
        places.enter(one);
        for offset in [0, 1, GRANULE_BYTES - 1, GRANULE_BYTES, 5 << 20, one.bytes - 1] {
            assert_eq!(places.addr_of(one.os + offset), Some(one.addr + offset));
            assert_eq!(places.os_of(one.addr + offset), Some(one.os + offset));
        }
        for offset in [one.bytes, one.own_bytes, 1 << 40] {
            assert_eq!(places.addr_of(one.os + offset), None, "{offset}");
            assert_eq!(places.os_of(one.addr + offset), None, "{offset}");
        }
        for nowhere in [0, one.os - 1, u64::MAX, 1 << OS_BITS] {
            assert_eq!(places.addr_of(nowhere), None);
        }
        for nowhere in [0, one.addr - 1, u64::MAX, 1 << 60] {
            assert_eq!(places.os_of(nowhere), None);
        }
        places.leave(one);
        assert_eq!((places.addr_of(one.os), places.os_of(one.addr)), (None, None));
    }

    #[test]
    fn a_granule_that_others_may_share_has_no_entry() {
        let places = places();
        let os = (700 << GRANULE_BITS) + PAGE;
        let odd = Range { os, addr: 3 << CELL_BITS, bytes: 5 << 20, own_bytes: 5 << 20 };
        places.enter(odd);
        let inner = GRANULE_BYTES - PAGE;
        for (offset, is_found) in
            [(0, false), (inner - 1, false), (inner, true), (inner + GRANULE_BYTES - 1, true)]
        {
            assert_eq!(places.addr_of(os + offset).is_some(), is_found, "{offset}");
            assert_eq!(places.os_of(odd.addr + offset), Some(os + offset));
        }
        assert_eq!(places.addr_of(os + inner + GRANULE_BYTES), None);
        places.leave(odd);
        assert_eq!(places.addr_of(os + inner), None);
    }

    /// Against a map of every granule and block.
    #[test]
    fn ranges_that_come_and_go_are_found_as_in_a_plain_map() {
        let places = places();
        let mut live: BTreeMap<u64, Range> = BTreeMap::new();
        let mut state = 1_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..2000 {
            let place = random(40);
            if let Some(gone) = live.remove(&place) {
                places.leave(gone);
            } else {
                // Each place has room for 16 MiB of both kinds of addresses.
                let new = range(place * 8, 1 + place * 4, 1 + random(16 << 20));
                places.enter(new);
                live.insert(place, new);
            }
            let offset = random(16 << 20);
            let place = random(40);
            let found = live.get(&place).filter(|range| offset < range.bytes);
            let (os, addr) =
                (((place * 8) << GRANULE_BITS) + offset, ((1 + place * 4) << CELL_BITS) + offset);
            assert_eq!(places.addr_of(os), found.map(|_| addr));
            assert_eq!(places.os_of(addr), found.map(|_| os));
        }
    }

    #[test]
    fn who_looks_while_ranges_change_gets_one_of_them_or_nothing() {
        let places = places();
        let (one, other) = (range(8, 4, GRANULE_BYTES), range(8, 9, GRANULE_BYTES / 2));
        let is_over = AtomicBool::new(false);
        let seen = thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = [0_u64; 3];
                while !is_over.load(Ordering::Relaxed) || seen.contains(&0) {
                    let offset = GRANULE_BYTES / 2 + 7;
                    match places.addr_of(one.os + offset) {
                        None => seen[0] += 1,
                        Some(addr) => assert_eq!(addr, one.addr + offset, "bytes of another"),
                    }
                    match places.addr_of(one.os + 7) {
                        Some(addr) if addr == one.addr + 7 => seen[1] += 1,
                        Some(addr) => {
                            assert_eq!(addr, other.addr + 7);
                            seen[2] += 1;
                        }
                        None => {}
                    }
                }
                seen
            });
            for round in 0_u64.. {
                for range in [one, other] {
                    places.enter(range);
                    if round.is_multiple_of(64) {
                        thread::yield_now();
                    }
                    places.leave(range);
                }
                is_over.store(round > 20_000, Ordering::Relaxed);
                if reader.is_finished() {
                    break;
                }
            }
            reader.join().unwrap()
        });
        assert!(!seen.contains(&0));
    }
}

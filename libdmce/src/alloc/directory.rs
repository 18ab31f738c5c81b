//! From an address to the slab that it is in, without a lock.
//!
//! ```text
//!   address -> block -> leaves[block / 1024] -> entry -> chunk of the block's pages -> slab
//!                          |                     |        |
//!                          made once             swapped  made once, as long as the entry
//! ```
//!
//! Runs and spans are not here: who frees those takes the depot's lock anyway.
//!
//! # Invariants
//!
//! 1. The directory owns the slabs that it names. It is stored to under the depot's lock.
//! 2. What is taken out is freed by [`super::limbo`], so that who is [`Held`] may go on using it.

use std::ptr;
use std::sync::OnceLock;

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::atomic::{AtomicPtr, Ordering};

use super::blocks::Place;
use super::link::{Held, Link};
use super::slab::Slab;

const LEAF: usize = 1024;
/// Pages of a chunk: what a block is committed of at first. Blocks of many have larger chunks.
const CHUNK_BITS_MIN: u32 = 9;
/// Chunks that a block may have.
const CHUNKS_BITS_MAX: u32 = 12;

/// The slabs of all blocks.
#[derive(Debug)]
pub(crate) struct Directory {
    leaves: Box<[OnceLock<Leaf>]>,
    cell_bits: u8,
}

type Leaf = Box<[AtomicPtr<BlockSlabs>]>;

/// The slabs of one block, by its pages.
#[derive(Debug)]
pub(crate) struct BlockSlabs {
    chunks: Box<[OnceLock<Box<[Link]>>]>,
    chunk_bits: u32,
}

impl BlockSlabs {
    fn new(pages_max: u32) -> Self {
        let bits = u32::BITS - pages_max.saturating_sub(1).leading_zeros();
        let chunk_bits = bits.saturating_sub(CHUNKS_BITS_MAX).max(CHUNK_BITS_MIN);
        let chunks = u64::from(pages_max).div_ceil(1 << chunk_bits);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), chunk_bits }
    }

    #[inline]
    fn get<'a>(&self, page: u64, held: Held<'a>) -> Option<&'a Slab> {
        let chunk = usize::try_from(page >> self.chunk_bits).ok()?;
        let chunk = self.chunks.get(chunk)?.get()?;
        chunk[self.place(page)].get(held)
    }

    fn set(&self, page: u32, slab: Option<&Slab>) {
        let Some(chunk) = self.chunks.get((page >> self.chunk_bits) as usize) else { return };
        let links = || (0..1 << self.chunk_bits).map(|_| Link::none()).collect();
        chunk.get_or_init(links)[self.place(page.into())].set(slab);
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low bits are meant")]
    const fn place(&self, page: u64) -> usize {
        page as usize & ((1 << self.chunk_bits) - 1)
    }
}

impl BlockSlabs {
    /// Frees the slabs with the directory.
    fn free_slabs(&self) {
        // SAFETY: nobody else has the directory, and nothing is freed before all have been found.
        let held = unsafe { Held::locked() };
        let links = self.chunks.iter().filter_map(OnceLock::get).flatten();
        let slabs = links.filter_map(|link| link.get(held));
        let mut owned: Vec<*mut Slab> = slabs.map(|s| s.own.load(Ordering::Relaxed)).collect();
        // The pages of a slab are neighbours.
        owned.dedup();
        for slab in owned {
            // SAFETY: made by `Box::into_raw` in `insert`, and not taken out since.
            drop(unsafe { Box::from_raw(slab) });
        }
    }
}

impl Directory {
    /// For blocks below `ids`, whose cells have so many bits.
    pub(crate) fn new(ids: u32, cell_bits: u8) -> Self {
        let leaves = (ids as usize).div_ceil(LEAF);
        Self { leaves: (0..leaves).map(|_| OnceLock::new()).collect(), cell_bits }
    }

    /// The slab that an address is in.
    #[inline]
    pub(crate) fn find<'a>(&self, addr: u64, held: Held<'a>) -> Option<&'a Slab> {
        let cell = addr & ((1 << self.cell_bits) - 1);
        self.entry(addr >> self.cell_bits, held)?.get(cell / PAGE_BYTES, held)
    }

    /// Takes in a block.
    pub(crate) fn add_block(&self, block: BlockId, pages_max: u32) {
        let Some(leaf) = self.leaves.get(block.index() / LEAF) else { return };
        let empty = || (0..LEAF).map(|_| AtomicPtr::new(ptr::null_mut())).collect();
        let leaf = leaf.get_or_init(empty);
        let entry = &leaf[block.index() % LEAF];
        debug_assert!(entry.load(Ordering::Relaxed).is_null(), "a block is added once");
        // Release pairs with the acquire in `entry`.
        entry.store(Box::into_raw(Box::new(BlockSlabs::new(pages_max))), Ordering::Release);
    }

    /// Takes a block out, of which no slab is left.
    #[must_use]
    pub(crate) fn remove_block(&self, block: BlockId) -> Option<Box<BlockSlabs>> {
        let leaf = self.leaves.get(block.index() / LEAF)?.get()?;
        let entry = leaf[block.index() % LEAF].swap(ptr::null_mut(), Ordering::AcqRel);
        // SAFETY: made by `Box::into_raw` in `add_block`, and taken out once. The caller keeps it
        // until everybody has left that found it.
        (!entry.is_null()).then(|| unsafe { Box::from_raw(entry) })
    }

    /// Takes in a slab of a block that is here.
    pub(crate) fn insert<'a>(&self, slab: Slab, held: Held<'a>) -> Option<&'a Slab> {
        let entry = self.entry(slab.site().block.get().into(), held)?;
        let slab = Box::into_raw(Box::new(slab));
        // SAFETY: just made, and freed by `remove` or `drop` alone, later than `held` ends.
        let published: &'a Slab = unsafe { &*slab };
        published.own.store(slab, Ordering::Relaxed);
        published.site().run.pages().for_each(|page| entry.set(page, Some(published)));
        Some(published)
    }

    /// Takes out a slab that no link names.
    #[must_use]
    pub(crate) fn remove(&self, slab: &Slab, held: Held<'_>) -> Option<Box<Slab>> {
        let entry = self.entry(slab.site().block.get().into(), held)?;
        slab.site().run.pages().for_each(|page| entry.set(page, None));
        let own = slab.own.swap(ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: made by `Box::into_raw` in `insert`, and taken out once. The caller keeps it
        // until everybody has left that found it.
        (!own.is_null()).then(|| unsafe { Box::from_raw(own) })
    }

    /// The address of a place.
    pub(crate) const fn addr(&self, place: Place) -> u64 {
        (place.block.get() as u64) << self.cell_bits | place.cell
    }

    #[inline]
    fn entry<'a>(&self, block: u64, _held: Held<'a>) -> Option<&'a BlockSlabs> {
        let block = usize::try_from(block).ok()?;
        let leaf = self.leaves.get(block / LEAF)?.get()?;
        // Acquire pairs with the release in `add_block`.
        let entry = leaf[block % LEAF].load(Ordering::Acquire);
        // SAFETY: null, or one that lives at least as long as `_held` (invariant 2).
        unsafe { entry.as_ref() }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        for entry in self.leaves.iter().filter_map(OnceLock::get).flatten() {
            let entry = entry.load(Ordering::Relaxed);
            if !entry.is_null() {
                // SAFETY: made by `Box::into_raw` in `add_block`; nobody else has the directory.
                unsafe { Box::from_raw(entry) }.free_slabs();
            }
        }
    }
}

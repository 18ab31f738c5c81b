//! Blocks of one kind, and which of their pages are in use: by runs, which are allocations of their
//! own, and by slabs.
//!
//! # Invariants
//!
//! 1. `in_use` of a block counts its runs and slabs. At 0 all of its pages are free.
//! 2. A frozen block gives no pages out.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;

use super::class::Class;
use super::pages::{PAGES_MAX, Page, PageMap, Run};

/// The place of a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// The block.
    pub block: BlockId,
    /// The offset in it.
    pub cell: u64,
}

/// What an allocation of some size is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// An object of a slab.
    Object(Class),
    /// Pages of its own, at a multiple of so many.
    Run {
        /// How many.
        pages: u32,
        /// The unit of its first page.
        align: u32,
    },
}

impl Shape {
    /// The shape for `bytes` at a multiple of `align`; `None` if no block has so many pages.
    pub(crate) fn of(bytes: u64, align: u64) -> Option<Self> {
        Class::of(bytes, align).map(Self::Object).or_else(|| Self::run(bytes, align))
    }

    /// The shape in blocks of at most `block_bytes`; `None` for what is better off in blocks of its
    /// own. Where a block is too small for a slab, an object is a run.
    pub(crate) fn within(bytes: u64, align: u64, block_bytes: u64) -> Option<Self> {
        if bytes > block_bytes / 2 {
            return None;
        }
        let fits = |shape: &Self| shape.bytes_needed() <= block_bytes;
        Self::of(bytes, align).filter(fits).or_else(|| Self::run(bytes, align).filter(fits))
    }

    fn run(bytes: u64, align: u64) -> Option<Self> {
        let pages = u32::try_from(bytes.div_ceil(PAGE_BYTES)).ok()?;
        let align = u32::try_from(align.div_ceil(PAGE_BYTES)).ok()?;
        (pages <= PAGES_MAX).then_some(Self::Run { pages, align })
    }

    /// Pages that have to be free in a row, and the unit of the first.
    fn room(self) -> (u32, u32) {
        match self {
            Self::Object(class) => (class.slab_pages(), 1),
            Self::Run { pages, align } => (pages, align),
        }
    }

    /// Bytes that a fresh block must have for it.
    fn bytes_needed(self) -> u64 {
        u64::from(self.room().0) * PAGE_BYTES
    }
}

/// What has to be asked for before a shape fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    /// More of a block that is there.
    Block {
        /// Which.
        block: BlockId,
        /// Bytes that it must have in all.
        at_least: u64,
        /// Bytes that it should have in all.
        wanted: u64,
    },
    /// A new block.
    Fresh {
        /// Bytes that it must have at first.
        at_least: u64,
        /// Bytes that it should have at first.
        wanted: u64,
    },
}

/// What the first commitment of a block is, and the smallest step of its growth.
const FIRST_BYTES: u64 = 2 << 20;
/// The largest step of a block's growth.
const STEP_BYTES_MAX: u64 = 64 << 20;

/// Pages that were taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// Their block.
    pub block: BlockId,
    /// Which they are.
    pub run: Run,
    /// Whether none was ever used.
    pub zeroed: bool,
}

impl Pages {
    /// Where they begin.
    pub(crate) fn place(self) -> Place {
        Place { block: self.block, cell: u64::from(self.run.first) * PAGE_BYTES }
    }

    /// How many bytes they have.
    pub(crate) fn bytes(self) -> u64 {
        u64::from(self.run.count) * PAGE_BYTES
    }
}

/// Blocks of one kind.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    all: BTreeMap<BlockId, OneBlock>,
    committed: u64,
}

#[derive(Debug)]
struct OneBlock {
    pages: PageMap,
    bytes_max: u64,
    in_use: u64,
    /// Since when nothing of it is in use, on the caller's clock.
    empty_since: Option<u64>,
    is_frozen: bool,
}

impl OneBlock {
    fn new(bytes_max: u64, now: u64) -> Self {
        Self {
            pages: PageMap::default(),
            bytes_max: bytes_max.min(u64::from(PAGES_MAX) * PAGE_BYTES),
            in_use: 0,
            empty_since: Some(now),
            is_frozen: false,
        }
    }

    fn committed(&self) -> u64 {
        u64::from(self.pages.len()) * PAGE_BYTES
    }
}

impl Blocks {
    /// Adds a block, or tells of more bytes of one that is there. Returns how many pages it may
    /// have if it is new.
    pub(crate) fn commit(
        &mut self,
        block: BlockId,
        committed: u64,
        bytes_max: u64,
        now: u64,
    ) -> Option<u32> {
        let is_new = !self.all.contains_key(&block);
        let block = self.all.entry(block).or_insert_with(|| OneBlock::new(bytes_max, now));
        let pages = u32::try_from(committed / PAGE_BYTES).unwrap_or(PAGES_MAX);
        let before = block.committed();
        block.pages.extend_to(pages);
        self.committed += block.committed() - before;
        let pages_max = u32::try_from(block.bytes_max.div_ceil(PAGE_BYTES)).unwrap_or(PAGES_MAX);
        is_new.then_some(pages_max.max(block.pages.len()))
    }

    /// Takes pages of the first block that has them.
    pub(crate) fn take(&mut self, pages: u32, align: u32) -> Option<Pages> {
        self.all.iter_mut().find_map(|(&id, block)| {
            if block.is_frozen || block.pages.longest_free() < pages {
                return None;
            }
            let (run, zeroed) = block.pages.take(pages, align)?;
            block.in_use += 1;
            block.empty_since = None;
            Some(Pages { block: id, run, zeroed })
        })
    }

    /// Takes pages for a slab.
    pub(crate) fn take_slab(&mut self, class: Class) -> Option<Pages> {
        let pages = self.take(class.slab_pages(), 1)?;
        self.all.get_mut(&pages.block)?.pages.set_slab(pages.run);
        Some(pages)
    }

    /// Gives the pages of a run or a slab back.
    pub(crate) fn give(&mut self, block: BlockId, run: Run, now: u64) {
        let Some(block) = self.all.get_mut(&block) else { return };
        block.pages.give(run);
        block.in_use -= 1;
        if block.in_use == 0 {
            block.empty_since = Some(now);
        }
    }

    /// What the page of a place is part of, and the page's number.
    pub(crate) fn page(&self, place: Place) -> (Page, u32) {
        let page = place.cell / PAGE_BYTES;
        let found = self.all.get(&place.block).map(|block| block.pages.page(page));
        // A page that is part of something has a number that fits.
        (found.unwrap_or(Page::Free), u32::try_from(page).unwrap_or(0))
    }

    /// Makes a run `count` pages long where it is. False if it has to move.
    pub(crate) fn resize(&mut self, block: BlockId, run: Run, count: u32) -> bool {
        self.all.get_mut(&block).is_some_and(|block| block.pages.resize(run, count))
    }

    /// What has to be asked for before `shape` fits. Blocks in `full` can get no more.
    pub(crate) fn growth(&self, shape: Shape, full: &[BlockId]) -> Growth {
        let (pages, align) = shape.room();
        for (&id, block) in &self.all {
            let there = block.pages.len();
            let tail = there - block.pages.free_at_end();
            let end = tail.checked_next_multiple_of(align).and_then(|at| at.checked_add(pages));
            let at_least = end.map_or(u64::MAX, |end| u64::from(end) * PAGE_BYTES);
            if at_least <= block.bytes_max && !block.is_frozen && !full.contains(&id) {
                let committed = block.committed();
                let step = committed.clamp(FIRST_BYTES, STEP_BYTES_MAX);
                let wanted = (committed + step).max(at_least).min(block.bytes_max);
                return Growth::Block { block: id, at_least, wanted };
            }
        }
        let at_least = shape.bytes_needed();
        Growth::Fresh { at_least, wanted: at_least.max(FIRST_BYTES) }
    }

    /// Takes out the blocks that have been empty since before `limit`, but for those in `kept`.
    pub(crate) fn take_empty(
        &mut self,
        limit: u64,
        mut kept: impl FnMut(BlockId) -> bool,
    ) -> Vec<BlockId> {
        let is_due = |block: &OneBlock| block.empty_since.is_some_and(|since| since <= limit);
        let blocks = self.all.iter();
        let due = blocks.filter(|(id, block)| is_due(block) && !kept(**id)).map(|(&id, _)| id);
        let due: Vec<BlockId> = due.collect();
        for id in &due {
            let gone = self.all.remove(id);
            self.committed -= gone.map_or(0, |block| block.committed());
        }
        due
    }

    /// Gives nothing more of a block out. Returns the first pages of its slabs.
    pub(crate) fn freeze(&mut self, block: BlockId) -> Vec<u32> {
        let Some(frozen) = self.all.get_mut(&block) else { return Vec::new() };
        frozen.is_frozen = true;
        frozen.pages.slabs().collect()
    }

    /// Since when the longest empty block is empty.
    pub(crate) fn empty_since(&self) -> Option<u64> {
        self.all.values().filter_map(|block| block.empty_since).min()
    }

    /// Bytes that the blocks have.
    pub(crate) const fn committed(&self) -> u64 {
        self.committed
    }

    /// How many blocks there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether the block is one of these.
    pub(crate) fn has(&self, block: BlockId) -> bool {
        self.all.contains_key(&block)
    }
}

//! A heap: blocks of one kind, and what is allocated in them.
//!
//! Small sizes are objects of slabs, larger ones runs of pages. All that is known about them is
//! here, in private memory: the bytes of a block are the application's alone, and a block need not
//! be mapped to allocate in it.
//!
//! # Invariants
//!
//! 1. An address is an allocation exactly if [`Heap::find`] finds it: free, realloc and usable size
//!    go through it, so a second free, an address inside and an address of nobody are told apart
//!    from what is live.
//! 2. `live` of a block counts its allocations. At 0 the block holds nothing but empty slabs.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;

use super::class::Class;
use super::pages::{PAGES_MAX, Page, PageMap, Run};
use super::slab::Slabs;

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
        if let Some(class) = Class::of(bytes, align) {
            return Some(Self::Object(class));
        }
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
    pub(crate) fn bytes_needed(self) -> u64 {
        u64::from(self.room().0) * PAGE_BYTES
    }
}

/// An allocation that was made or found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Its first byte.
    pub place: Place,
    /// Bytes that may be used.
    pub bytes: u64,
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

/// Blocks of one kind.
#[derive(Debug)]
pub(crate) struct Heap {
    blocks: BTreeMap<BlockId, HeapBlock>,
    slabs: Slabs,
    committed: u64,
}

#[derive(Debug)]
struct HeapBlock {
    pages: PageMap,
    bytes_max: u64,
    live: u64,
    /// Since when nothing of it is live, on the caller's clock.
    empty_since: Option<u64>,
    /// Whether nothing more is to be allocated in it.
    is_frozen: bool,
}

impl HeapBlock {
    fn committed(&self) -> u64 {
        u64::from(self.pages.len()) * PAGE_BYTES
    }
}

impl Heap {
    /// One without blocks.
    pub(crate) fn new() -> Self {
        Self { blocks: BTreeMap::new(), slabs: Slabs::new(), committed: 0 }
    }

    /// Adds a block, or tells of more bytes of one that is there.
    pub(crate) fn commit(&mut self, block: BlockId, committed: u64, bytes_max: u64, now: u64) {
        let fresh = || HeapBlock {
            pages: PageMap::default(),
            bytes_max: bytes_max.min(u64::from(PAGES_MAX) * PAGE_BYTES),
            live: 0,
            empty_since: Some(now),
            is_frozen: false,
        };
        let block = self.blocks.entry(block).or_insert_with(fresh);
        let pages = u32::try_from(committed / PAGE_BYTES).unwrap_or(PAGES_MAX);
        let before = block.committed();
        block.pages.extend_to(pages);
        self.committed += block.committed() - before;
    }

    /// Allocates, if there is room; with the allocation, whether it is zero.
    pub(crate) fn allocate(&mut self, shape: Shape) -> Option<(Allocation, bool)> {
        match shape {
            Shape::Object(class) => self.allocate_object(class),
            Shape::Run { pages, align } => {
                let (block, run, zeroed) = self.take_run(pages, align)?;
                self.count_in(block);
                let place = Place { block, cell: first_cell(run) };
                Some((Allocation { place, bytes: u64::from(pages) * PAGE_BYTES }, zeroed))
            }
        }
    }

    /// The allocation that begins at a place.
    pub(crate) fn find(&self, place: Place) -> Option<Allocation> {
        let block = self.blocks.get(&place.block)?;
        let bytes = match block.pages.page(place.cell / PAGE_BYTES) {
            Page::Head(pages) if place.cell.is_multiple_of(PAGE_BYTES) => {
                u64::from(pages) * PAGE_BYTES
            }
            Page::Slab(id) => {
                self.slabs.find(id, place.cell)?;
                self.slabs.get(id)?.class.object_bytes().into()
            }
            _ => return None,
        };
        Some(Allocation { place, bytes })
    }

    /// Frees the allocation that begins at a place; `None` if none does.
    pub(crate) fn free(&mut self, place: Place, now: u64) -> Option<Allocation> {
        let found = self.find(place)?;
        let block = self.blocks.get_mut(&place.block)?;
        match block.pages.page(place.cell / PAGE_BYTES) {
            Page::Head(count) => {
                let first = u32::try_from(place.cell / PAGE_BYTES).ok()?;
                block.pages.give(Run { first, count });
            }
            Page::Slab(id) => {
                let index = self.slabs.find(id, place.cell)?;
                if self.slabs.give(id, index)
                    && let Some(slab) = self.slabs.remove(id)
                {
                    block.pages.give(slab.run);
                }
            }
            Page::Inner(_) | Page::Free => return None,
        }
        block.live -= 1;
        if block.live == 0 {
            block.empty_since = Some(now);
        }
        Some(found)
    }

    /// Changes an allocation's size where it is. `None` if it has to move.
    pub(crate) fn resize(&mut self, place: Place, bytes: u64) -> Option<Allocation> {
        let found = self.find(place)?;
        let block = self.blocks.get_mut(&place.block)?;
        let first = u32::try_from(place.cell / PAGE_BYTES).ok()?;
        match (block.pages.page(u64::from(first)), Shape::of(bytes, 1)?) {
            (Page::Slab(id), Shape::Object(class)) => {
                (self.slabs.get(id)?.class == class).then_some(found)
            }
            (Page::Head(count), Shape::Run { pages, .. }) => {
                let bytes = u64::from(pages) * PAGE_BYTES;
                let resized = block.pages.resize(Run { first, count }, pages);
                resized.then_some(Allocation { place, bytes })
            }
            _ => None,
        }
    }

    /// Whether `bytes` from a place on lie in one allocation.
    pub(crate) fn covers(&self, place: Place, bytes: u64) -> bool {
        let Some(block) = self.blocks.get(&place.block) else { return false };
        let page = place.cell / PAGE_BYTES;
        let start = match block.pages.page(page) {
            Page::Slab(id) => {
                let Some(slab) = self.slabs.get(id) else { return false };
                let object = u64::from(slab.class.object_bytes());
                let first = first_cell(slab.run);
                first + (place.cell - first) / object * object
            }
            Page::Head(_) => page * PAGE_BYTES,
            Page::Inner(behind) => (page - u64::from(behind)) * PAGE_BYTES,
            Page::Free => return false,
        };
        let found = self.find(Place { cell: start, ..place });
        found.is_some_and(|found| place.cell.saturating_add(bytes) <= start + found.bytes)
    }

    /// What has to be asked for before `shape` fits. Blocks in `full` can get no more.
    pub(crate) fn growth(&self, shape: Shape, full: &[BlockId]) -> Growth {
        let (pages, align) = shape.room();
        for (&id, block) in &self.blocks {
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
        let is_due = |block: &HeapBlock| block.empty_since.is_some_and(|since| since <= limit);
        let due: Vec<BlockId> = self
            .blocks
            .iter()
            .filter(|(id, block)| is_due(block) && !kept(**id))
            .map(|(&id, _)| id)
            .collect();
        for &id in &due {
            for slab in self.slabs.of_block(id) {
                self.slabs.remove(slab);
            }
            let gone = self.blocks.remove(&id);
            self.committed -= gone.map_or(0, |block| block.committed());
        }
        due
    }

    /// Lets nothing more be allocated in a block. What is live in it can be freed.
    pub(crate) fn freeze(&mut self, block: BlockId) {
        if let Some(frozen) = self.blocks.get_mut(&block) {
            frozen.is_frozen = true;
            for slab in self.slabs.of_block(block) {
                self.slabs.freeze(slab);
            }
        }
    }

    /// Since when the longest empty block is empty.
    pub(crate) fn empty_since(&self) -> Option<u64> {
        self.blocks.values().filter_map(|block| block.empty_since).min()
    }

    /// Bytes that the blocks have.
    pub(crate) const fn committed(&self) -> u64 {
        self.committed
    }

    /// How many blocks there are.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the block is of this heap.
    pub(crate) fn has(&self, block: BlockId) -> bool {
        self.blocks.contains_key(&block)
    }

    fn allocate_object(&mut self, class: Class) -> Option<(Allocation, bool)> {
        let taken = if let Some(taken) = self.slabs.take(class) {
            taken
        } else {
            let (block, run, zeroed) = self.take_run(class.slab_pages(), 1)?;
            let id = self.slabs.add(block, run, class, zeroed);
            self.blocks.get_mut(&block)?.pages.set_slab(run, id);
            self.slabs.take(class)?
        };
        let slab = self.slabs.get(taken.slab)?;
        let bytes = u64::from(class.object_bytes());
        let cell = first_cell(slab.run) + u64::from(taken.index) * bytes;
        let place = Place { block: slab.block, cell };
        self.count_in(place.block);
        Some((Allocation { place, bytes }, taken.zeroed))
    }

    /// Takes pages of the first block that has them.
    fn take_run(&mut self, pages: u32, align: u32) -> Option<(BlockId, Run, bool)> {
        self.blocks.iter_mut().find_map(|(&id, block)| {
            if block.is_frozen || block.pages.longest_free() < pages {
                return None;
            }
            block.pages.take(pages, align).map(|(run, zeroed)| (id, run, zeroed))
        })
    }

    fn count_in(&mut self, block: BlockId) {
        if let Some(block) = self.blocks.get_mut(&block) {
            block.live += 1;
            block.empty_since = None;
        }
    }
}

fn first_cell(run: Run) -> u64 {
    u64::from(run.first) * PAGE_BYTES
}

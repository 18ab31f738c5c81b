//! Allocation inside the session's blocks.
//!
//! ```text
//!   1 B .. 32 KiB              an object of a slab        \  heap blocks: one block serves many,
//!   .. half of a block         a run of pages             /  and grows with its use
//!   more                       a span: blocks of its own, from the broker and back to it at once
//! ```
//!
//! [`Allocator`] knows and decides; it asks nobody. What has to be asked of the broker it says as a
//! [`Growth`], so that its lock is never held over a message.
//!
//! # Invariants
//!
//! 1. Two live allocations never overlap; each is aligned as asked.
//! 2. All metadata is private memory of the process: nothing that the application writes into a
//!    block, and nothing another process writes there, can damage it.

#![forbid(unsafe_code)]

mod class;
mod heap;
#[cfg(test)]
mod model;
mod pages;
mod slab;

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;

use heap::Heap;
pub(crate) use heap::{Allocation, Growth, Place, Shape};

/// What tells blocks apart that do not serve each other's allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    /// 0 for the default.
    pub page_size: u32,
    /// 0 for the default.
    pub copies: u32,
}

/// An allocation on blocks of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanAllocation {
    /// Its first block.
    pub first: BlockId,
    /// Its blocks.
    pub count: u32,
    /// Bytes that may be used: all that its blocks have.
    pub bytes: u64,
    /// What was asked for, and is asked for again when it moves.
    pub kind: Kind,
}

/// Something that is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// In a block that serves many.
    InBlock(Allocation),
    /// On blocks of its own.
    Span(SpanAllocation),
}

impl Found {
    /// Bytes that may be used.
    pub(crate) const fn bytes(self) -> u64 {
        match self {
            Self::InBlock(allocation) => allocation.bytes,
            Self::Span(span) => span.bytes,
        }
    }
}

/// All that a session has allocated.
#[derive(Debug, Default)]
pub(crate) struct Allocator {
    heaps: Vec<(Kind, Heap)>,
    spans: BTreeMap<BlockId, SpanAllocation>,
    span_bytes: u64,
    in_use: u64,
    live: u64,
}

impl Allocator {
    /// The heap of a kind.
    pub(crate) fn heap(&mut self, kind: Kind) -> &mut Heap {
        let place = self.heaps.iter().position(|(other, _)| *other == kind);
        let place = place.unwrap_or_else(|| {
            self.heaps.push((kind, Heap::new()));
            self.heaps.len() - 1
        });
        &mut self.heaps[place].1
    }

    /// Allocates in the blocks of a kind, if there is room; with it, whether it is zero.
    pub(crate) fn allocate(&mut self, kind: Kind, shape: Shape) -> Option<(Allocation, bool)> {
        let (allocation, zeroed) = self.heap(kind).allocate(shape)?;
        self.in_use += allocation.bytes;
        self.live += 1;
        Some((allocation, zeroed))
    }

    /// Takes in a span that was granted.
    pub(crate) fn add_span(&mut self, span: SpanAllocation) {
        self.spans.insert(span.first, span);
        self.span_bytes += span.bytes;
        self.in_use += span.bytes;
        self.live += 1;
    }

    /// The allocation that begins at a place.
    pub(crate) fn find(&self, place: Place) -> Option<Found> {
        if let Some(span) = self.spans.get(&place.block) {
            return (place.cell == 0).then_some(Found::Span(*span));
        }
        self.heaps.iter().find_map(|(_, heap)| heap.find(place)).map(Found::InBlock)
    }

    /// Frees the allocation that begins at a place. A span's blocks are the caller's to give back.
    pub(crate) fn free(&mut self, place: Place, now: u64) -> Option<Found> {
        let found = match self.find(place)? {
            Found::Span(span) => {
                self.spans.remove(&span.first);
                self.span_bytes -= span.bytes;
                Found::Span(span)
            }
            Found::InBlock(_) => {
                let heap = self.heap_of(place.block)?;
                Found::InBlock(heap.free(place, now)?)
            }
        };
        self.in_use -= found.bytes();
        self.live -= 1;
        Some(found)
    }

    /// Changes an allocation's size where it is. `None` if it has to move.
    pub(crate) fn resize(&mut self, place: Place, bytes: u64) -> Option<Found> {
        let found = self.find(place)?;
        let resized = match found {
            // The blocks of a span stay; a much smaller rest is better off elsewhere.
            Found::Span(span) => (span.bytes / 2..=span.bytes).contains(&bytes).then_some(found)?,
            Found::InBlock(_) => Found::InBlock(self.heap_of(place.block)?.resize(place, bytes)?),
        };
        self.in_use = self.in_use - found.bytes() + resized.bytes();
        Some(resized)
    }

    /// Whether `bytes` from a place on lie in one allocation; `None` where nothing is allocated
    /// from, as in a region.
    pub(crate) fn covers(&self, place: Place, bytes: u64) -> Option<bool> {
        let heap = self.heaps.iter().find(|(_, heap)| heap.has(place.block));
        heap.map(|(_, heap)| heap.covers(place, bytes))
    }

    /// Takes out the heap blocks that are empty since before `limit`, but for those in `kept`.
    pub(crate) fn take_empty(
        &mut self,
        limit: u64,
        mut kept: impl FnMut(BlockId) -> bool,
    ) -> Vec<BlockId> {
        self.heaps.iter_mut().flat_map(|(_, heap)| heap.take_empty(limit, &mut kept)).collect()
    }

    /// Since when the longest empty heap block is empty.
    pub(crate) fn empty_since(&self) -> Option<u64> {
        self.heaps.iter().filter_map(|(_, heap)| heap.empty_since()).min()
    }

    /// Lets nothing more be allocated in a block, whose bytes are lost.
    pub(crate) fn freeze(&mut self, block: BlockId) {
        if let Some(heap) = self.heap_of(block) {
            heap.freeze(block);
        }
    }

    /// The kind of the block that a place is in.
    pub(crate) fn kind_of(&self, place: Place) -> Kind {
        if let Some(span) = self.spans.get(&place.block) {
            return span.kind;
        }
        let heap = self.heaps.iter().find(|(_, heap)| heap.has(place.block));
        heap.map_or_else(Kind::default, |(kind, _)| *kind)
    }

    /// Bytes that the blocks have.
    pub(crate) fn committed(&self) -> u64 {
        self.span_bytes + self.heaps.iter().map(|(_, heap)| heap.committed()).sum::<u64>()
    }

    /// Blocks.
    pub(crate) fn blocks(&self) -> u64 {
        let in_heaps: usize = self.heaps.iter().map(|(_, heap)| heap.blocks()).sum();
        let in_spans = self.spans.values().map(|span| u64::from(span.count)).sum::<u64>();
        in_heaps as u64 + in_spans
    }

    /// Bytes of live allocations.
    pub(crate) const fn in_use(&self) -> u64 {
        self.in_use
    }

    /// Live allocations.
    pub(crate) const fn live(&self) -> u64 {
        self.live
    }

    fn heap_of(&mut self, block: BlockId) -> Option<&mut Heap> {
        self.heaps.iter_mut().map(|(_, heap)| heap).find(|heap| heap.has(block))
    }
}

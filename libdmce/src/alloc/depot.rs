//! What all threads share under one lock: the blocks, runs and spans, and slabs of nobody.
//!
//! # Invariants
//!
//! 1. Who has the lock is inside no gate. So whoever has it may wait for gates.
//! 2. A slab that is given back to its block is empty, in no list, and out of the directory.
//! 3. The slabs of a kind that is not the default are at home in the depot, and shared.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::Fence;

use super::blocks::{Blocks, Growth, Pages, Place, Shape};
use super::class::Class;
use super::gate;
use super::heap::Heap;
use super::heaps::{Heaps, KINDS_MAX};
use super::limbo::{Gone, Limbo};
use super::link::Held;
use super::pages::{Page, Run};
use super::slab::{Site, Slab, Taken};
use super::{Found, Kind, SpanAllocation};

/// What the depot works on besides what its lock protects.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    /// All heaps, and the directory.
    pub heaps: &'a Heaps,
    /// How gates are passed.
    pub fence: Fence,
    /// By the lock.
    pub held: Held<'a>,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct Depot {
    kinds: Vec<(Kind, Blocks)>,
    spans: BTreeMap<BlockId, SpanAllocation>,
    span_bytes: u64,
    run_bytes: u64,
    runs: u64,
    /// Whether slabs of the depot were used since this was taken last.
    pub was_used: bool,
    /// What waits to be freed.
    pub limbo: Limbo,
}

impl At<'_> {
    /// Lets anybody free from the slab that an address is in.
    pub(crate) fn share(self, addr: u64) {
        let slab = self.heaps.directory.find(addr, self.held).filter(|slab| !slab.is_shared());
        let Some(slab) = slab else { return };
        let home = self.heaps.at(slab.home());
        if let Some(home) = home {
            home.shut();
            gate::heavy(self.fence);
            home.wait_outside();
            home.count_ended(slab.class());
            home.forget(slab);
        }
        slab.share();
    }

    /// Shuts the gates of all threads, and waits until nobody is inside.
    pub(crate) fn shut_all(self) {
        self.heaps.threads().for_each(Heap::shut);
        gate::heavy(self.fence);
        self.heaps.threads().for_each(Heap::wait_outside);
    }

    /// Makes a slab that its home has let go of, and whose gate is shut, one of the depot.
    pub(crate) fn take_home(self, slab: &Slab, pool: &Heap) {
        slab.share();
        slab.move_to(pool.index);
        if slab.is_empty() {
            pool.discard(slab, self.held);
        } else {
            pool.adopt(slab, self.held);
        }
    }
}

impl Depot {
    /// Without blocks.
    pub(crate) fn new() -> Self {
        Self {
            kinds: vec![(Kind::default(), Blocks::default())],
            spans: BTreeMap::new(),
            span_bytes: 0,
            run_bytes: 0,
            runs: 0,
            was_used: false,
            limbo: Limbo::default(),
        }
    }

    /// Has the owner's heap have room for a class: gives it a slab of the depot, or a new one.
    /// False if there are no pages for one.
    pub(crate) fn stock(&mut self, heap: &Heap, class: Class, now: u64, at: At<'_>) -> bool {
        if self.renew(heap, class, now, at) {
            return true;
        }
        let pool = at.heaps.of_kind(0);
        if self.renew(pool, class, now, at)
            && let Some(slab) = pool.first(class, at.held)
        {
            pool.release(slab, at.held);
            slab.move_to(heap.index);
            heap.adopt(slab, at.held);
            return true;
        }
        self.add_slab(0, heap, class, at)
    }

    /// Allocates in blocks of a kind, if there is room, without a thread's heap.
    pub(crate) fn allocate(
        &mut self,
        kind: Kind,
        shape: Shape,
        now: u64,
        at: At<'_>,
    ) -> Option<Taken> {
        let kind = self.kind(kind)?;
        match shape {
            Shape::Object(class) => {
                self.was_used = true;
                let pool = at.heaps.of_kind(kind);
                let has_room = self.renew(pool, class, now, at);
                if !has_room && !self.add_slab(kind, pool, class, at) {
                    return None;
                }
                pool.take_at_once(class, at.held)
            }
            Shape::Run { pages, align } => {
                let run = self.kinds[kind].1.take(pages, align)?;
                self.run_bytes += run.bytes();
                self.runs += 1;
                let addr = at.heaps.directory.addr(run.place());
                Some(Taken { addr, zeroed: run.zeroed })
            }
        }
    }

    /// Takes in a span that was granted.
    pub(crate) fn add_span(&mut self, span: SpanAllocation) {
        self.spans.insert(span.first, span);
        self.span_bytes += span.bytes;
    }

    /// The allocation that begins at a place.
    pub(crate) fn find(&self, place: Place, at: At<'_>) -> Option<Found> {
        if let Some(span) = self.spans.get(&place.block) {
            return (place.cell == 0).then_some(Found::Span(*span));
        }
        match self.page(place) {
            (Page::Head(count), first) if place.cell.is_multiple_of(PAGE_BYTES) => {
                Some(Found::Run(Run { first, count }))
            }
            (Page::Slab(_), _) => {
                let addr = at.heaps.directory.addr(place);
                let slab = at.heaps.directory.find(addr, at.held)?;
                let index = slab.index_at(addr)?;
                slab.is_live(index).then(|| Found::Object(slab.class()))
            }
            _ => None,
        }
    }

    /// Frees the allocation that begins at a place. A span's blocks are the caller's to give back.
    pub(crate) fn free(&mut self, place: Place, now: u64, at: At<'_>) -> Option<Found> {
        let found = self.find(place, at)?;
        match found {
            Found::Span(span) => {
                self.spans.remove(&span.first);
                self.span_bytes -= span.bytes;
            }
            Found::Run(run) => {
                self.blocks_of(place.block)?.give(place.block, run, now);
                self.run_bytes -= found.bytes();
                self.runs -= 1;
            }
            Found::Object(class) => {
                self.was_used = true;
                let addr = at.heaps.directory.addr(place);
                at.share(addr);
                let slab = at.heaps.directory.find(addr, at.held)?;
                let index = slab.index_at(addr).filter(|&index| slab.claim(index))?;
                at.heaps.of_kind(0).count(class, -1);
                if slab.put_back(index) {
                    at.heaps.tell(slab);
                }
            }
        }
        Some(found)
    }

    /// Changes an allocation's size where it is. `None` if it has to move.
    pub(crate) fn resize(&mut self, place: Place, bytes: u64, at: At<'_>) -> Option<Found> {
        let found = self.find(place, at)?;
        let whole = found.bytes();
        let stays = (whole / 2..=whole).contains(&bytes);
        match found {
            // The blocks of a span stay, as an object does; a much smaller rest is better off
            // elsewhere.
            Found::Span(_) | Found::Object(_) => stays.then_some(found),
            Found::Run(run) => {
                let Shape::Run { pages: count, .. } = Shape::of(bytes, 1)? else {
                    // So small, it has pages of its own for their alignment.
                    return stays.then_some(found);
                };
                let resized = Found::Run(Run { count, ..run });
                if !self.blocks_of(place.block)?.resize(place.block, run, count) {
                    return None;
                }
                self.run_bytes = self.run_bytes - found.bytes() + resized.bytes();
                Some(resized)
            }
        }
    }

    /// Whether `bytes` from a place on lie in one allocation; `None` where nothing is allocated
    /// from, as in a region.
    pub(crate) fn covers(&self, place: Place, bytes: u64, at: At<'_>) -> Option<bool> {
        self.kinds.iter().find(|(_, blocks)| blocks.has(place.block))?;
        let addr = at.heaps.directory.addr(place);
        let start = match self.page(place) {
            (Page::Head(_), page) => u64::from(page) * PAGE_BYTES,
            (Page::Inner(behind), page) => u64::from(page - behind) * PAGE_BYTES,
            (Page::Slab(_), _) => {
                let slab = at.heaps.directory.find(addr, at.held);
                let Some(first) = slab.and_then(|slab| slab.live_around(addr)) else {
                    return Some(false);
                };
                place.cell - (addr - first)
            }
            (Page::Free, _) => return Some(false),
        };
        let found = self.find(Place { cell: start, ..place }, at);
        Some(found.is_some_and(|found| place.cell.saturating_add(bytes) <= start + found.bytes()))
    }

    /// Adds a block to those of a kind, or tells of more bytes of one that is there.
    pub(crate) fn commit(&mut self, kind: Kind, grown: Grown, now: u64, at: At<'_>) {
        let Some(kind) = self.kind(kind) else { return };
        let Grown { block, committed, bytes_max } = grown;
        if let Some(pages) = self.kinds[kind].1.commit(block, committed, bytes_max, now) {
            at.heaps.directory.add_block(block, pages);
        }
    }

    /// What has to be asked for before a shape fits into blocks of a kind.
    pub(crate) fn growth(&mut self, kind: Kind, shape: Shape, full: &[BlockId]) -> Option<Growth> {
        let kind = self.kind(kind)?;
        Some(self.kinds[kind].1.growth(shape, full))
    }

    /// Takes out the blocks that are empty since before `limit`, but for those in `kept`.
    pub(crate) fn take_empty(
        &mut self,
        limit: u64,
        mut kept: impl FnMut(BlockId) -> bool,
        at: At<'_>,
    ) -> Vec<BlockId> {
        let kinds = self.kinds.iter_mut();
        let taken: Vec<BlockId> =
            kinds.flat_map(|(_, blocks)| blocks.take_empty(limit, &mut kept)).collect();
        for entry in taken.iter().filter_map(|&block| at.heaps.directory.remove_block(block)) {
            self.limbo.bury(Gone::Block(entry), at.heaps, at.fence);
        }
        taken
    }

    /// Gives nothing more of a block out, whose bytes are lost. What is live in it can be freed.
    pub(crate) fn freeze(&mut self, block: BlockId, now: u64, at: At<'_>) {
        let Some(kind) = self.kinds.iter().position(|(_, blocks)| blocks.has(block)) else {
            return;
        };
        let pool = at.heaps.of_kind(kind);
        at.shut_all();
        for heap in at.heaps.threads() {
            self.drain(heap, now, at);
        }
        self.drain(pool, now, at);
        for first in self.kinds[kind].1.freeze(block) {
            let cell = u64::from(first) * PAGE_BYTES;
            let addr = at.heaps.directory.addr(Place { block, cell });
            let Some(slab) = at.heaps.directory.find(addr, at.held) else { continue };
            if let Some(home) = at.heaps.at(slab.home()) {
                home.release(slab, at.held);
            }
            slab.freeze();
            at.take_home(slab, pool);
        }
        self.drain(pool, now, at);
    }

    /// Gives the pages back of the slabs that a heap has too many.
    pub(crate) fn drain(&mut self, heap: &Heap, now: u64, at: At<'_>) {
        while let Some(slab) = heap.take_surplus(at.held) {
            let Site { block, run, .. } = slab.site();
            if let Some(blocks) = self.blocks_of(block) {
                blocks.give(block, run, now);
            }
            if let Some(gone) = at.heaps.directory.remove(slab, at.held) {
                self.limbo.bury(Gone::Slab(gone), at.heaps, at.fence);
            }
        }
    }

    /// Since when the longest empty block is empty.
    pub(crate) fn empty_since(&self) -> Option<u64> {
        self.kinds.iter().filter_map(|(_, blocks)| blocks.empty_since()).min()
    }

    /// The kind of the block that a place is in.
    pub(crate) fn kind_of(&self, place: Place) -> Kind {
        if let Some(span) = self.spans.get(&place.block) {
            return span.kind;
        }
        let kind = self.kinds.iter().find(|(_, blocks)| blocks.has(place.block));
        kind.map_or_else(Kind::default, |(kind, _)| *kind)
    }

    /// Bytes that the blocks have.
    pub(crate) fn committed(&self) -> u64 {
        self.span_bytes + self.kinds.iter().map(|(_, blocks)| blocks.committed()).sum::<u64>()
    }

    /// Blocks.
    pub(crate) fn blocks(&self) -> u64 {
        let serving: usize = self.kinds.iter().map(|(_, blocks)| blocks.len()).sum();
        let in_spans = self.spans.values().map(|span| u64::from(span.count)).sum::<u64>();
        serving as u64 + in_spans
    }

    /// Runs and spans that are allocated, and their bytes.
    pub(crate) fn live(&self) -> (u64, u64) {
        (self.runs + self.spans.len() as u64, self.run_bytes + self.span_bytes)
    }

    /// How many kinds there are.
    pub(crate) fn kinds(&self) -> usize {
        self.kinds.len()
    }

    /// Looks for room among what a heap has, and gives back what it then has too much.
    fn renew(&mut self, heap: &Heap, class: Class, now: u64, at: At<'_>) -> bool {
        let has_room = heap.renew(class, at.heaps, at.held);
        self.drain(heap, now, at);
        has_room
    }

    /// Adds a slab to a heap.
    fn add_slab(&mut self, kind: usize, heap: &Heap, class: Class, at: At<'_>) -> bool {
        let Some(pages) = self.kinds[kind].1.take_slab(class) else { return false };
        let Pages { block, run, zeroed } = pages;
        let site = Site { start: at.heaps.directory.addr(pages.place()), block, run, zeroed };
        let biased = heap.is_of_thread() && heap.is_biased_to(class);
        let slab = Slab::new(site, class, heap.index, biased);
        let slab = at.heaps.directory.insert(slab, at.held);
        if let Some(slab) = slab {
            heap.adopt(slab, at.held);
        }
        slab.is_some()
    }

    fn page(&self, place: Place) -> (Page, u32) {
        let blocks = self.kinds.iter().find(|(_, blocks)| blocks.has(place.block));
        blocks.map_or((Page::Free, 0), |(_, blocks)| blocks.page(place))
    }

    fn blocks_of(&mut self, block: BlockId) -> Option<&mut Blocks> {
        self.kinds.iter_mut().map(|(_, blocks)| blocks).find(|blocks| blocks.has(block))
    }

    /// The place of a kind; `None` if there are too many.
    fn kind(&mut self, kind: Kind) -> Option<usize> {
        let place = self.kinds.iter().position(|(other, _)| *other == kind);
        if place.is_none() && self.kinds.len() < KINDS_MAX {
            self.kinds.push((kind, Blocks::default()));
            return Some(self.kinds.len() - 1);
        }
        place
    }
}

/// A block that is new, or has more bytes now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grown {
    /// Which block.
    pub block: BlockId,
    /// Bytes that may be used.
    pub committed: u64,
    /// Bytes that it may grow to.
    pub bytes_max: u64,
}

//! Allocation inside the session's blocks.
//!
//! ```text
//!   1 B .. 32 KiB          an object of a slab     \  heap blocks: one block serves many,
//!   .. half of a block     a run of pages          /  and grows with its use
//!   more                   a span: blocks of its own, from the broker and back to it at once
//!
//!   thread -> gate -> heap -> slab     no lock, and no atomic but plain loads and stores
//!                      |  ^
//!                      v  |            a slab at a time, and what is returned by others
//!              depot, under a lock: blocks, their pages; runs, spans; slabs of nobody
//! ```
//!
//! [`quick`] is all of that way that most calls need. [`Allocator`] knows and decides; it asks
//! nobody. What has to be asked of the broker it says as a [`Growth`], so that its lock is never
//! held over a message.
//!
//! # Invariants
//!
//! 1. Two live allocations never overlap; each is aligned as asked.
//! 2. All metadata is private memory of the process: nothing that the application writes into a
//!    block, and nothing another process writes there, can damage it. No byte of a block is touched
//!    to allocate or to free, so a block need not be mapped for it.
//! 3. An address is an allocation exactly if its page or its word in a slab says so. Of several
//!    threads that free it exactly one succeeds ([`slab`]).
//! 4. Nobody waits inside a gate ([`gate`]), and whoever has the depot's lock is inside none.
//!
//! Why it is quick: a thread's heap and its slabs are its own until another thread frees from one
//! of them or somebody shuts the gate, and who does that pays for the barrier. All that could be in
//! the way shuts the gate, so the gate is all that is looked at.
//!
//! What it costs: two bytes an object, some hundred a slab, and a pointer and four bytes a page.

mod blocks;
mod class;
mod depot;
mod directory;
mod gate;
#[cfg(not(loom))]
pub(crate) mod gates;
mod heap;
mod heaps;
#[cfg(test)]
#[cfg(loom)]
mod interleavings;
mod limbo;
mod link;
#[cfg(test)]
#[cfg(not(loom))]
mod model;
mod pages;
#[cfg(not(loom))]
pub mod quick;
mod slab;
#[cfg(test)]
#[cfg(not(loom))]
mod threads;
mod tidy;
#[cfg(test)]
#[cfg(not(loom))]
mod users;

use std::sync::{Mutex, PoisonError};

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::Fence;

pub(crate) use blocks::{Growth, Place, Shape};
pub(crate) use class::Class;
pub(crate) use depot::Grown;
use depot::{At, Depot};
use directory::Directory;
use gate::Errand;
pub(crate) use gate::{Gate, KIND_BITS, Key, Permits, heavy, pause};
pub(crate) use heap::{Given, Heap, Owner};
use heaps::Heaps;
use link::Held;
use pages::Run;
pub(crate) use slab::Taken;
use tidy::Calendar;
pub(crate) use tidy::{LOOK_MS, Moment};

/// What tells blocks apart that do not serve each other's allocations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Kind {
    /// 0 for the default.
    pub page_size: u32,
    /// 0 for the default.
    pub copies: u32,
    /// A number of the policy table; 0 for none.
    pub policy: u32,
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
    /// An object of a slab.
    Object(Class),
    /// Pages of a block.
    Run(Run),
    /// Blocks of its own.
    Span(SpanAllocation),
}

impl Found {
    /// Bytes that may be used.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Object(class) => class.object_bytes().into(),
            Self::Run(run) => u64::from(run.count) * PAGE_BYTES,
            Self::Span(span) => span.bytes,
        }
    }
}

/// What is allocated, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Bytes of allocations.
    pub in_use: u64,
    /// Allocations.
    pub live: u64,
    /// Bytes that the blocks have.
    pub committed: u64,
    /// Blocks.
    pub blocks: u64,
}

/// What came of an allocation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated {
    /// `None` if there is no room.
    pub taken: Option<Taken>,
    /// Whether somebody has to be told that the sums change.
    pub is_news: bool,
}

/// What came of a free.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Freed {
    /// Neither [`Given::Biased`] nor [`Given::Surplus`]: that was dealt with.
    pub given: Given,
    /// As in [`Allocated`].
    pub is_news: bool,
}

/// All that a session has allocated.
#[derive(Debug)]
pub(crate) struct Allocator {
    heaps: Heaps,
    fence: Fence,
    locked: Mutex<Locked>,
}

#[derive(Debug)]
struct Locked {
    depot: Depot,
    calendar: Calendar,
}

impl Allocator {
    /// With no blocks, of ids below `ids`, whose cells have so many bits. `fence` is what this
    /// process has registered for.
    pub(crate) fn new(ids: u32, cell_bits: u8, fence: Fence) -> Self {
        let locked = Locked { depot: Depot::new(), calendar: Calendar::default() };
        let heaps = Heaps::new(Directory::new(ids, cell_bits));
        Self { heaps, fence, locked: Mutex::new(locked) }
    }

    /// The heap of the thread that has a slot, for that thread alone.
    #[inline]
    pub(crate) fn heap(&self, slot: usize) -> &Heap {
        self.heaps.of_slot(slot)
    }

    /// Allocates from the slabs behind the gate, if one of them has room and the gate is open.
    pub(crate) fn take(&self, gate: &Gate, key: Key, class: Class) -> Option<Taken> {
        let inside = gate.enter(key, Errand::Take, self.fence)?;
        inside.heap().take(class, &self.heaps, Held::inside(&inside))
    }

    /// Frees an object. `None` if the gate is shut.
    pub(crate) fn give(&self, gate: &Gate, key: Key, addr: u64) -> Option<Given> {
        let inside = gate.enter(key, Errand::Give, self.fence)?;
        Some(inside.heap().give(addr, &self.heaps, Held::inside(&inside)))
    }

    /// Shuts the gates of all threads, and waits until nobody is inside. What was stored before,
    /// those see who open them.
    pub(crate) fn shut_gates(&self) {
        self.lock(|_, at| at.shut_all());
    }

    /// Allocates by way of the depot, if there is room: from the owner's heap, if objects of the
    /// kind are for that, whose gate is opened then as `permits` says.
    pub(crate) fn allocate(
        &self,
        owner: Option<Owner<'_>>,
        (kind, shape): (Kind, Shape),
        permits: impl FnOnce() -> Permits,
        now: u64,
    ) -> Allocated {
        let owner = owner.filter(|_| kind == Kind::default());
        self.lock(|locked, at| match (owner, shape) {
            (Some(owner), Shape::Object(class)) => {
                let is_news = owner.heap.open(&owner, permits(), at.fence);
                let is_stocked = locked.depot.stock(owner.heap, class, now, at);
                let taken = is_stocked.then(|| owner.heap.take_at_once(class, at.held)).flatten();
                Allocated { taken, is_news }
            }
            _ => Allocated { taken: locked.depot.allocate(kind, shape, now, at), is_news: true },
        })
    }

    /// Frees an object by way of the depot, and opens the owner's gate as `permits` says. `None` if
    /// that does not permit to free, and `is_held` is not true: that what begins at the address may
    /// be freed all the same, and will be so until this returns.
    pub(crate) fn free_object(
        &self,
        owner: Owner<'_>,
        (addr, is_held): (u64, bool),
        permits: impl FnOnce() -> Permits,
        now: u64,
    ) -> Option<Freed> {
        self.lock(|locked, at| {
            let permits = permits();
            let is_news = owner.heap.open(&owner, permits, at.fence);
            if !permits.give && !is_held {
                return None;
            }
            let give = || owner.heap.give(addr, at.heaps, at.held);
            let mut given = give();
            if given == Given::Biased {
                at.share(addr);
                given = give();
            }
            if given == Given::Surplus {
                locked.depot.drain(owner.heap, now, at);
                given = Given::Done;
            }
            Some(Freed { given, is_news })
        })
    }

    /// Gives the slabs back to their blocks that a heap, the thread's own, has too many.
    pub(crate) fn drain(&self, heap: &Heap, now: u64) {
        self.lock(|locked, at| locked.depot.drain(heap, now, at));
    }

    /// Takes in a span that was granted.
    pub(crate) fn add_span(&self, span: SpanAllocation) {
        self.lock(|locked, _| locked.depot.add_span(span));
    }

    /// The allocation that begins at a place, and the kind of its block.
    pub(crate) fn find(&self, place: Place) -> Option<(Found, Kind)> {
        self.lock(|locked, at| {
            let found = locked.depot.find(place, at)?;
            Some((found, locked.depot.kind_of(place)))
        })
    }

    /// Frees the allocation that begins at a place. A span's blocks are the caller's to give back.
    pub(crate) fn free(&self, place: Place, now: u64) -> Option<Found> {
        self.lock(|locked, at| locked.depot.free(place, now, at))
    }

    /// Changes an allocation's size where it is. `None` if it has to move.
    pub(crate) fn resize(&self, place: Place, bytes: u64) -> Option<Found> {
        self.lock(|locked, at| locked.depot.resize(place, bytes, at))
    }

    /// Whether `bytes` from a place on lie in one allocation; `None` where nothing is allocated
    /// from, as in a region.
    pub(crate) fn covers(&self, place: Place, bytes: u64) -> Option<bool> {
        self.lock(|locked, at| locked.depot.covers(place, bytes, at))
    }

    /// Adds a block to those of a kind, or tells of more bytes of one that is there.
    pub(crate) fn commit(&self, kind: Kind, grown: Grown, now: u64) {
        self.lock(|locked, at| locked.depot.commit(kind, grown, now, at));
    }

    /// What has to be asked for before a shape fits into blocks of a kind. Blocks in `full` can get
    /// no more. `None` if there are too many kinds.
    pub(crate) fn growth(&self, kind: Kind, shape: Shape, full: &[BlockId]) -> Option<Growth> {
        self.lock(|locked, _| locked.depot.growth(kind, shape, full))
    }

    /// Takes out the heap blocks that are empty since before `limit`, but for those in `kept`.
    pub(crate) fn take_empty(&self, limit: u64, kept: impl FnMut(BlockId) -> bool) -> Vec<BlockId> {
        self.lock(|locked, at| locked.depot.take_empty(limit, kept, at))
    }

    /// Since when the longest empty heap block is empty.
    pub(crate) fn empty_since(&self) -> Option<u64> {
        self.lock(|locked, _| locked.depot.empty_since())
    }

    /// Lets nothing more be allocated in a block, whose bytes are lost.
    pub(crate) fn freeze(&self, block: BlockId, now: u64) {
        self.lock(|locked, at| locked.depot.freeze(block, now, at));
    }

    /// Looks at all heaps, if it is time to, and has those give back what they do not use. Returns
    /// when to look again.
    pub(crate) fn look(&self, moment: Moment) -> Option<u64> {
        self.lock(|locked, at| locked.calendar.look(&mut locked.depot, moment, at))
    }

    /// Has every heap give back what it keeps.
    pub(crate) fn reclaim(&self, now: u64) {
        self.lock(|locked, at| locked.depot.reclaim(now, at));
    }

    /// What is allocated. What other threads do at this moment may be in it or not.
    pub(crate) fn usage(&self) -> Usage {
        self.lock(|locked, at| {
            let (live, in_use) = locked.depot.live();
            let (committed, blocks) = (locked.depot.committed(), locked.depot.blocks());
            let mut usage = Usage { in_use, live, committed, blocks };
            let heaps: Vec<_> = at.heaps.all().map(|heap| heap.live(at.held)).collect();
            for class in Class::all() {
                let sums = heaps.iter().map(|live| live[class.index()]);
                // Of an object that moves on at this moment the free may be seen, and not the rest.
                let objects = sums.fold(0_usize, usize::wrapping_add).cast_signed().max(0);
                let objects = objects.unsigned_abs() as u64;
                usage.live += objects;
                usage.in_use += objects * u64::from(class.object_bytes());
            }
            usage
        })
    }

    /// With the depot's lock. Not from inside a gate.
    fn lock<R>(&self, body: impl FnOnce(&mut Locked, At<'_>) -> R) -> R {
        let mut locked = self.locked.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `body` cannot keep what it is given beyond the lock: it takes any lifetime.
        let held = unsafe { Held::locked() };
        body(&mut locked, At { heaps: &self.heaps, fence: self.fence, held })
    }
}

impl Drop for Allocator {
    fn drop(&mut self) {
        // A thread may still hold a gate that leads to a heap of this one.
        self.shut_gates();
    }
}

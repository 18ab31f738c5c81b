//! What the tests of the allocator have in common: numbers from seeds, and threads that allocate.

use std::sync::atomic::{AtomicUsize, Ordering};

use dmce_abi::block::BlockId;
use dmce_shm::Fence;

use super::gates::Set;
use super::{
    Allocator, Given, Grown, KIND_BITS, Key, Kind, Owner, Permits, Place, Shape, Taken, quick,
};
use crate::thread;

pub(super) const BLOCK_BYTES_MAX: u64 = 32 << 20;
pub(super) const CELL_BITS: u8 = 25;

/// Numbers that a seed decides (splitmix64).
pub(super) struct Seeded(pub u64);

impl Seeded {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A place among so many.
    pub(super) fn place(&mut self, count: usize) -> usize {
        usize::try_from(self.below(count as u64)).unwrap()
    }

    /// Small sizes mostly, and every power of two now and then.
    pub(super) fn size(&mut self) -> u64 {
        let bits_max = if self.below(8) == 0 { 23 } else { 12 };
        let bits = 1 + self.below(bits_max);
        1 + self.below(1 << bits)
    }
}

/// How many seeds are tried: `DMCE_TEST_SEEDS`, or the given number.
pub(super) fn seeds(default: u64) -> std::ops::Range<u64> {
    let set = std::env::var("DMCE_TEST_SEEDS").ok();
    0..set.and_then(|seeds| seeds.parse().ok()).unwrap_or(default)
}

/// Threads, by their slots.
const USERS: usize = 4;

/// Nothing is in the way.
pub(super) const ALL: Permits = Permits { take: true, give: true };

pub(super) fn new_allocator() -> Allocator {
    Allocator::new(1 << 12, CELL_BITS, Fence::register())
}

pub(super) fn addr(place: Place) -> u64 {
    u64::from(place.block.get()) << CELL_BITS | place.cell
}

pub(super) fn place(addr: u64) -> Place {
    let block = u32::try_from(addr >> CELL_BITS).unwrap();
    let block = BlockId::try_from(block).unwrap();
    Place { block, cell: addr & ((1 << CELL_BITS) - 1) }
}

/// Has a block of 2 MiB, as if the broker had granted it.
pub(super) fn add_block(allocator: &Allocator) {
    let block = BlockId::try_from(1).unwrap();
    let grown = Grown { block, committed: 2 << 20, bytes_max: 2 << 20 };
    allocator.commit(Kind::default(), grown, 0);
}

/// An allocator and those who allocate, each with a slot and gates.
pub(super) struct Users {
    pub allocator: Allocator,
    pub key: Key,
    sets: [&'static Set; USERS],
}

impl Users {
    pub(super) fn new() -> Self {
        Self::with(Fence::register())
    }

    pub(super) fn with(fence: Fence) -> Self {
        static SESSIONS: AtomicUsize = AtomicUsize::new(1);
        let session = SESSIONS.fetch_add(1, Ordering::Relaxed);
        Self {
            allocator: Allocator::new(1 << 12, CELL_BITS, fence),
            key: Key::new(session << KIND_BITS).unwrap(),
            sets: [(); USERS].map(|()| Set::take().unwrap()),
        }
    }

    /// A thread, by its slot.
    pub(super) fn owner(&self, slot: usize) -> Owner<'_> {
        let gate = &self.sets[slot].gates().of(self.key).gate;
        Owner { heap: self.allocator.heap(slot), gate, key: self.key }
    }

    /// Allocates as a thread with a slot does, if there is room; else as one without.
    pub(super) fn try_malloc(
        &self,
        slot: Option<usize>,
        kind: Kind,
        shape: Shape,
        now: u64,
    ) -> Option<Taken> {
        let owner = slot.map(|slot| self.owner(slot));
        let inside = match (owner, shape) {
            (Some(Owner { gate, key, .. }), Shape::Object(class)) if kind == Kind::default() => {
                self.quickly(slot, |key| quick::malloc(key, class.object_bytes().into()))
                    .filter(|&addr| addr != 0)
                    .map(|addr| Taken { addr, zeroed: false })
                    .or_else(|| self.allocator.take(gate, key, class))
            }
            _ => None,
        };
        inside.or_else(|| self.allocator.allocate(owner, (kind, shape), || ALL, now).taken)
    }

    /// Frees as a thread with a slot does; false if nothing that is allocated begins there.
    pub(super) fn free(&self, slot: usize, addr: u64, now: u64) -> bool {
        let quickly = |key| quick::free(key, addr) || quick::free_rest(key, addr);
        if self.quickly(Some(slot), quickly) == Some(true) {
            return true;
        }
        let owner = self.owner(slot);
        let given = match self.allocator.give(owner.gate, owner.key, addr) {
            Some(Given::Surplus) => {
                self.allocator.drain(owner.heap, now);
                Given::Done
            }
            None | Some(Given::Biased) => {
                let freed = self.allocator.free_object(owner, (addr, false), || ALL, now);
                freed.unwrap().given
            }
            Some(given) => given,
        };
        match given {
            Given::Elsewhere => self.allocator.free(place(addr), now).is_some(),
            given => given == Given::Done,
        }
    }

    /// Has this thread call as the one that has a slot.
    pub(super) fn quickly<R>(
        &self,
        slot: Option<usize>,
        call: impl FnOnce(usize) -> R,
    ) -> Option<R> {
        thread::set_gates(Some(self.sets[slot?].gates()));
        // The shortest calls find the gate of a thread that has been the long way.
        let _ = thread::gate(self.key);
        let called = call(self.key.number());
        thread::set_gates(None);
        Some(called)
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        self.sets.iter().for_each(|set| set.give());
    }
}

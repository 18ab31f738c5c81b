//! The allocator against a plain map, from seeds: several heaps, as if of several threads, take
//! turns, and each frees what the others allocated.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;
use dmce_shm::Fence;

use super::users::{ALL, BLOCK_BYTES_MAX, Seeded, Users, addr, new_allocator, place, seeds};
use super::{
    Class, Found, Given, Grown, Growth, Kind, Moment, Permits, Place, Shape, SpanAllocation, Usage,
};

const SLOTS: usize = 3;

/// What is live, by its first byte: how many bytes, and of which kind.
type Model = BTreeMap<u64, (u64, Kind)>;

struct Harness {
    users: Users,
    model: Model,
    committed: BTreeMap<BlockId, u64>,
    next_block: u32,
    clock: u64,
}

const OTHER: Kind = Kind { page_size: 65_536, copies: 0, policy: 0 };

impl Harness {
    fn new() -> Self {
        Self::with(Fence::register())
    }

    fn with(fence: Fence) -> Self {
        Self {
            users: Users::with(fence),
            model: Model::new(),
            committed: BTreeMap::new(),
            next_block: 1,
            clock: 0,
        }
    }

    fn malloc(&mut self, slot: usize, bytes: u64, align: u64) -> Place {
        self.malloc_of(Some(slot), Kind::default(), bytes, align)
    }

    fn malloc_of(&mut self, slot: Option<usize>, kind: Kind, bytes: u64, align: u64) -> Place {
        let shape = Shape::of(bytes, align).unwrap();
        let addr = loop {
            if let Some(taken) = self.users.try_malloc(slot, kind, shape, self.clock) {
                break taken.addr;
            }
            self.grow(kind, shape);
        };
        let made = place(addr);
        let found = self.users.allocator.find(made).unwrap();
        assert_eq!(found.1, kind);
        assert!(found.0.bytes() >= bytes);
        assert!(made.cell.is_multiple_of(align), "{made:?} at {align}");
        if bytes >= 4096 {
            assert!(made.cell.is_multiple_of(4096));
        }
        assert!(made.cell + found.0.bytes() <= self.committed[&made.block]);
        self.enter(made, found.0.bytes(), kind);
        made
    }

    /// What the broker would do.
    fn grow(&mut self, kind: Kind, shape: Shape) {
        let (block, committed) = match self.users.allocator.growth(kind, shape, &[]).unwrap() {
            Growth::Block { block, at_least, wanted } => {
                assert!(at_least <= wanted && wanted <= BLOCK_BYTES_MAX);
                assert!(wanted > self.committed[&block]);
                (block, wanted)
            }
            Growth::Fresh { at_least, wanted } => {
                assert!(at_least <= wanted && wanted <= BLOCK_BYTES_MAX);
                self.next_block += 1;
                (BlockId::try_from(self.next_block).unwrap(), wanted)
            }
        };
        self.committed.insert(block, committed);
        let grown = Grown { block, committed, bytes_max: BLOCK_BYTES_MAX };
        self.users.allocator.commit(kind, grown, self.clock);
    }

    /// Notes what is live, and that it overlaps nothing.
    fn enter(&mut self, place: Place, bytes: u64, kind: Kind) {
        let start = addr(place);
        if let Some((other, (length, _))) = self.model.range(..=start).next_back() {
            assert!(other + length <= start, "{start:#x} overlaps {other:#x}");
        }
        if let Some((other, _)) = self.model.range(start..).next() {
            assert!(start + bytes <= *other, "{start:#x} overlaps {other:#x}");
        }
        self.model.insert(start, (bytes, kind));
    }

    fn free(&mut self, slot: Option<usize>, place: Place) {
        self.model.remove(&addr(place)).unwrap();
        self.clock += 1;
        let free = |slot: Option<usize>| match slot {
            Some(slot) => self.users.free(slot, addr(place), self.clock),
            None => self.users.allocator.free(place, self.clock).is_some(),
        };
        assert!(free(slot));
        assert!(!free(slot), "{place:?} was freed twice");
        assert!(!free(None), "{place:?} was freed twice");
    }

    fn resize(&mut self, place: Place, bytes: u64) {
        let (before, kind) = self.model.remove(&addr(place)).unwrap();
        let now = match self.users.allocator.resize(place, bytes) {
            Some(found) => {
                assert!(found.bytes() >= bytes);
                found.bytes()
            }
            None => before,
        };
        self.enter(place, now, kind);
        assert_eq!(self.users.allocator.find(place).unwrap().0.bytes(), now);
    }

    /// Any address that is not the start of something live is refused and changes nothing.
    fn probe(&mut self, slot: usize, place: Place) {
        if !self.model.contains_key(&addr(place)) {
            assert!(self.users.allocator.find(place).is_none(), "{place:?} is nothing live");
            assert!(self.users.allocator.free(place, 0).is_none());
            assert!(!self.users.free(slot, addr(place), 0));
        }
        let around = self.model.range(..=addr(place)).next_back();
        let inside = around.is_some_and(|(start, (bytes, _))| addr(place) < start + bytes);
        assert_eq!(self.users.allocator.covers(place, 1), Some(inside), "{place:?}");
    }

    fn check_sums(&self) {
        let usage = Usage {
            in_use: self.model.values().map(|(bytes, _)| bytes).sum(),
            live: self.model.len() as u64,
            committed: self.committed.values().sum(),
            blocks: self.committed.len() as u64,
        };
        assert_eq!(self.users.allocator.usage(), usage);
    }

    fn nth(&self, random: &mut Seeded) -> Place {
        let nth = random.place(self.model.len());
        place(*self.model.keys().nth(nth).unwrap())
    }

    fn step(&mut self, random: &mut Seeded) {
        let slot = random.place(SLOTS);
        let has_slot = (random.below(8) > 0).then_some(slot);
        let is_empty = self.model.is_empty();
        match random.below(64) {
            0..30 => {
                let align = [16, 16, 16, 64, 4096, 65536, 2 << 20];
                let align = align[random.place(7)];
                let kind = if random.below(16) == 0 { OTHER } else { Kind::default() };
                self.malloc_of(has_slot, kind, random.size(), align);
            }
            30 => self.users.allocator.reclaim(self.clock),
            31 => {
                self.clock += random.below(2_000);
                let moment = Moment { now: self.clock, idle_ms: 1_000 };
                self.users.allocator.look(moment);
            }
            32..50 if !is_empty => {
                let place = self.nth(random);
                self.free(has_slot, place);
            }
            50..56 if !is_empty => {
                let place = self.nth(random);
                self.resize(place, random.size());
            }
            _ if !is_empty => {
                let near = self.nth(random);
                let cell = near.cell + random.below(70_000);
                if cell < BLOCK_BYTES_MAX {
                    self.probe(slot, Place { cell, ..near });
                }
            }
            _ => {}
        }
    }
}

#[test]
fn keeps_apart_what_is_live_and_gives_everything_back() {
    for seed in seeds(24) {
        let mut random = Seeded(seed);
        let fences = [Fence::register(), Fence::Full];
        let mut harness = Harness::with(fences[random.place(fences.len())]);
        for step in 0..4_000 {
            harness.step(&mut random);
            if step % 64 == 0 {
                harness.check_sums();
            }
        }
        let places: Vec<Place> = harness.model.keys().map(|addr| place(*addr)).collect();
        for place in places {
            harness.free(Some(random.place(SLOTS)), place);
        }
        harness.check_sums();
        let empty = settle(&mut harness);
        let blocks: Vec<BlockId> = harness.committed.keys().copied().collect();
        assert_eq!(empty, blocks, "seed {seed}");
        assert_eq!(harness.users.allocator.empty_since(), None);
    }
}

/// Looks as long as there is a reason to, then takes what is empty.
fn settle(harness: &mut Harness) -> Vec<BlockId> {
    let mut looks = 0;
    harness.clock += 1_000;
    while let Some(next) =
        harness.users.allocator.look(Moment { now: harness.clock, idle_ms: 1_000 })
    {
        assert!(next > harness.clock);
        (harness.clock, looks) = (next, looks + 1);
        assert!(looks < 10, "it never ends");
    }
    let mut empty = harness.users.allocator.take_empty(harness.clock, |_| false);
    empty.sort_unstable();
    empty
}

#[test]
fn an_empty_block_goes_back_only_when_it_has_been_empty_long_enough() {
    let mut harness = Harness::new();
    harness.clock = 10;
    let place = harness.malloc(0, 100_000, 16);
    assert_eq!(harness.users.allocator.empty_since(), None);
    harness.free(Some(0), place);
    assert_eq!(harness.users.allocator.empty_since(), Some(11));
    assert!(harness.users.allocator.take_empty(10, |_| false).is_empty());
    assert!(harness.users.allocator.take_empty(11, |_| true).is_empty());
    assert_eq!(harness.users.allocator.take_empty(11, |_| false), vec![place.block]);
    assert!(harness.users.allocator.find(place).is_none());
}

#[test]
fn objects_that_only_a_thread_keeps_hold_no_block() {
    let mut harness = Harness::new();
    let place = harness.malloc(0, 100, 16);
    let kept = harness.malloc(1, 100, 16);
    harness.free(Some(0), place);
    harness.free(Some(2), kept);
    assert_eq!(harness.users.allocator.empty_since(), None, "the slabs are the threads' yet");
    assert_eq!(settle(&mut harness), [place.block]);
}

#[test]
fn what_an_idle_thread_has_left_of_a_slab_is_for_others() {
    let mut harness = Harness::new();
    let first = harness.malloc(0, 4096, 16);
    settle(&mut harness);
    let second = harness.malloc(1, 4096, 16);
    assert_eq!(second.cell, first.cell + 4096);
    harness.free(Some(0), first);
    harness.free(Some(0), second);
}

#[test]
fn what_others_free_is_allocated_again() {
    for (slot, kind) in [(Some(0), Kind::default()), (None, Kind::default()), (Some(0), OTHER)] {
        let mut harness = Harness::new();
        for _ in 0..20 {
            for bytes in [1_000, 32_000] {
                let malloc = |_| harness.malloc_of(slot, kind, bytes, 16);
                let places: Vec<Place> = (0..100).map(malloc).collect();
                for place in places {
                    harness.free(Some(1), place);
                }
            }
        }
        let committed = harness.committed.values().sum::<u64>();
        assert!(committed <= 8 << 20, "{committed} for 3.3 MB that were live at once");
    }
}

#[test]
fn where_others_free_often_slabs_are_shared_from_the_first_for_a_while() {
    let mut harness = Harness::new();
    let is_biased = |harness: &mut Harness| {
        let slab: Vec<Place> = (0..8).map(|_| harness.malloc(0, 32_000, 16)).collect();
        // The last one is in the newest slab.
        let (users, start) = (&harness.users, addr(slab[7]));
        let owner = users.owner(1);
        let none = Permits { take: false, give: false };
        let freed = users.allocator.free_object(owner, (start, false), || none, 0);
        assert!(freed.is_none(), "it may not");
        assert_eq!(users.allocator.give(owner.gate, owner.key, start), None, "it may not");
        // To have the gate open.
        users.allocator.free_object(owner, (0, false), || ALL, 0);
        let given = users.allocator.give(owner.gate, owner.key, start);
        let is_biased = given == Some(Given::Biased);
        if is_biased {
            assert!(users.free(1, start, 0));
        }
        harness.model.remove(&start).unwrap();
        is_biased
    };
    let biased: Vec<bool> = (0..6).map(|_| is_biased(&mut harness)).collect();
    assert_eq!(biased, [true, true, true, true, false, false]);
    settle(&mut harness);
    // What the older slabs have left is used first.
    assert!((0..3).any(|_| is_biased(&mut harness)));
}

#[test]
fn a_heap_keeps_a_bounded_number_of_empty_slabs() {
    let mut harness = Harness::new();
    let many = (16 << 20) / 512;
    let places: Vec<Place> = (0..many).map(|_| harness.malloc(0, 512, 16)).collect();
    let committed = harness.users.allocator.usage().committed;
    for place in places {
        harness.free(Some(0), place);
    }
    // What it does not keep has room for a run, without anything being asked for.
    let shape = Shape::of(committed - (6 << 20), 16).unwrap();
    assert!(harness.users.try_malloc(None, Kind::default(), shape, 0).is_some());
}

#[test]
fn fresh_memory_is_known_to_be_zero_and_reused_memory_not() {
    let mut harness = Harness::new();
    for (bytes, align) in [(64, 16), (8192, 16), (300_000, 16)] {
        let shape = Shape::of(bytes, align).unwrap();
        harness.malloc(0, bytes, align);
        let (users, wish) = (&harness.users, (Kind::default(), shape));
        let malloc = || users.allocator.allocate(Some(users.owner(0)), wish, || ALL, 0).taken;
        let first = malloc().unwrap();
        assert!(first.zeroed, "{bytes}");
        assert!(users.free(0, first.addr, 0));
        let again = malloc().unwrap();
        assert_eq!(again.addr, first.addr);
        assert!(!again.zeroed, "{bytes}");
    }
}

#[test]
fn an_object_stays_where_it_is_as_long_as_it_fits_well() {
    let mut harness = Harness::new();
    let place = harness.malloc(0, 200, 16);
    for (bytes, stays) in [(224, true), (112, true), (225, false), (111, false)] {
        assert_eq!(harness.users.allocator.resize(place, bytes).is_some(), stays, "{bytes}");
    }
    let page = harness.malloc(0, 8192, 16);
    assert_eq!(
        harness.users.allocator.resize(page, 4096),
        Some(Found::Object(Class::natural(8192).unwrap()))
    );
}

#[test]
fn a_block_that_can_get_no_more_is_passed_over() {
    let mut harness = Harness::new();
    let place = harness.malloc(0, 1 << 20, 16);
    let shape = Shape::of(4 << 20, 16).unwrap();
    let growth =
        |full: &[BlockId]| harness.users.allocator.growth(Kind::default(), shape, full).unwrap();
    assert!(matches!(growth(&[]), Growth::Block { block, .. } if block == place.block));
    let fresh = Growth::Fresh { at_least: 4 << 20, wanted: 4 << 20 };
    assert_eq!(growth(&[place.block]), fresh);
}

#[test]
fn a_span_is_found_by_its_first_byte_alone() {
    let allocator = new_allocator();
    let first = BlockId::try_from(8).unwrap();
    let span = SpanAllocation { first, count: 3, bytes: 3 << 30, kind: Kind::default() };
    allocator.add_span(span);
    let place = Place { block: first, cell: 0 };
    assert_eq!(allocator.find(place), Some((Found::Span(span), Kind::default())));
    assert_eq!(allocator.find(Place { cell: 4096, ..place }), None);
    assert_eq!(allocator.find(Place { block: BlockId::try_from(9).unwrap(), cell: 0 }), None);
    assert_eq!(allocator.resize(place, 2 << 30), Some(Found::Span(span)));
    assert_eq!(allocator.resize(place, 1 << 30), None);
    assert_eq!(allocator.free(place, 0), Some(Found::Span(span)));
    assert_eq!(allocator.free(place, 0), None);
    assert_eq!(allocator.usage(), Usage::default());
}

#[test]
fn nothing_more_is_allocated_in_a_block_that_is_lost() {
    let mut harness = Harness::new();
    let (small, large) = (harness.malloc(0, 100, 16), harness.malloc(0, 300_000, 16));
    let gone = harness.malloc(0, 2000, 16);
    harness.free(Some(0), gone);
    assert_eq!(small.block, large.block);
    harness.users.allocator.freeze(small.block, harness.clock);
    for bytes in [100, 2000, 300_000] {
        assert_ne!(harness.malloc(0, bytes, 16).block, small.block);
    }
    harness.free(Some(0), small);
    harness.free(Some(1), large);
    assert_ne!(harness.malloc(0, 100, 16).block, small.block);
    assert_eq!(settle(&mut harness), [small.block]);
}

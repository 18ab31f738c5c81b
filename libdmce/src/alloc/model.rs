//! The allocator against a plain map, from seeds.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;

use super::{Allocator, Found, Growth, Kind, Place, Shape, SpanAllocation};

const BLOCK_BYTES_MAX: u64 = 32 << 20;

/// Numbers that a seed decides (splitmix64).
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Small sizes mostly, and every power of two now and then.
    fn size(&mut self) -> u64 {
        let bits_max = if self.below(8) == 0 { 23 } else { 12 };
        let bits = 1 + self.below(bits_max);
        1 + self.below(1 << bits)
    }
}

/// What is live, by its first byte.
type Model = BTreeMap<Place, u64>;

struct Harness {
    allocator: Allocator,
    model: Model,
    committed: BTreeMap<BlockId, u64>,
    next_block: u32,
    clock: u64,
}

impl Harness {
    fn new() -> Self {
        Self {
            allocator: Allocator::default(),
            model: Model::new(),
            committed: BTreeMap::new(),
            next_block: 1,
            clock: 0,
        }
    }

    fn malloc(&mut self, bytes: u64, align: u64) -> Place {
        let shape = Shape::of(bytes, align).unwrap();
        let found = loop {
            if let Some((found, _)) = self.allocator.allocate(Kind::default(), shape) {
                break found;
            }
            self.grow(shape);
        };
        assert!(found.bytes >= bytes);
        assert!(found.place.cell.is_multiple_of(align), "{found:?} at {align}");
        if bytes >= 4096 {
            assert!(found.place.cell.is_multiple_of(4096));
        }
        assert!(found.place.cell + found.bytes <= self.committed[&found.place.block]);
        self.enter(found.place, found.bytes);
        found.place
    }

    /// What the broker would do.
    fn grow(&mut self, shape: Shape) {
        let (block, committed) = match self.allocator.heap(Kind::default()).growth(shape, &[]) {
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
        let clock = self.clock;
        let heap = self.allocator.heap(Kind::default());
        heap.commit(block, committed, BLOCK_BYTES_MAX, clock);
    }

    /// Notes what is live, and that it overlaps nothing.
    fn enter(&mut self, place: Place, bytes: u64) {
        let before = self.model.range(..=place).next_back();
        if let Some((other, length)) = before.filter(|(other, _)| other.block == place.block) {
            assert!(other.cell + length <= place.cell, "{place:?} overlaps {other:?}");
        }
        let after = self.model.range(place..).next();
        if let Some((other, _)) = after.filter(|(other, _)| other.block == place.block) {
            assert!(place.cell + bytes <= other.cell, "{place:?} overlaps {other:?}");
        }
        self.model.insert(place, bytes);
    }

    fn free(&mut self, place: Place) {
        let bytes = self.model.remove(&place).unwrap();
        self.clock += 1;
        let freed = self.allocator.free(place, self.clock).unwrap();
        assert_eq!(freed.bytes(), bytes);
        assert!(self.allocator.free(place, self.clock).is_none(), "{place:?} was freed twice");
    }

    fn resize(&mut self, place: Place, bytes: u64) {
        let before = self.model.remove(&place).unwrap();
        let now = match self.allocator.resize(place, bytes) {
            Some(found) => {
                assert!(found.bytes() >= bytes);
                found.bytes()
            }
            None => before,
        };
        self.enter(place, now);
        assert_eq!(self.allocator.find(place).unwrap().bytes(), now);
    }

    /// Any address that is not the start of something live is refused and changes nothing.
    fn probe(&mut self, place: Place) {
        if !self.model.contains_key(&place) {
            assert!(self.allocator.find(place).is_none(), "{place:?} is nothing live");
            assert!(self.allocator.free(place, 0).is_none());
        }
        let around = self.model.range(..=place).next_back();
        let inside = around.filter(|(start, bytes)| {
            start.block == place.block && place.cell < start.cell + **bytes
        });
        let covered = self.allocator.covers(place, 1);
        assert_eq!(covered, Some(inside.is_some()), "{place:?}");
    }

    fn check_sums(&self) {
        assert_eq!(self.allocator.in_use(), self.model.values().sum::<u64>());
        assert_eq!(self.allocator.live(), self.model.len() as u64);
        assert_eq!(self.allocator.committed(), self.committed.values().sum::<u64>());
        assert_eq!(self.allocator.blocks(), self.committed.len() as u64);
    }
}

#[test]
fn keeps_apart_what_is_live_and_gives_everything_back() {
    for seed in 0..24 {
        let mut random = Seeded(seed);
        let mut harness = Harness::new();
        for step in 0..4_000 {
            let live: u64 = harness.model.len() as u64;
            match random.below(10) {
                0..5 => {
                    let align = [16, 16, 16, 64, 4096, 65536, 2 << 20];
                    let align = align[usize::try_from(random.below(7)).unwrap()];
                    harness.malloc(random.size(), align);
                }
                5..8 if live > 0 => {
                    let place = nth(&harness.model, random.below(live));
                    harness.free(place);
                }
                8 if live > 0 => {
                    let place = nth(&harness.model, random.below(live));
                    harness.resize(place, random.size());
                }
                _ if live > 0 => {
                    let near = nth(&harness.model, random.below(live));
                    let cell = near.cell + random.below(70_000);
                    harness.probe(Place { cell, ..near });
                }
                _ => {}
            }
            if step % 64 == 0 {
                harness.check_sums();
            }
        }
        let places: Vec<Place> = harness.model.keys().copied().collect();
        for place in places {
            harness.free(place);
        }
        harness.check_sums();
        let mut empty = harness.allocator.take_empty(harness.clock, |_| false);
        empty.sort_unstable();
        let blocks: Vec<BlockId> = harness.committed.keys().copied().collect();
        assert_eq!(empty, blocks, "seed {seed}");
        assert_eq!(harness.allocator.empty_since(), None);
    }
}

fn nth(model: &Model, place: u64) -> Place {
    *model.keys().nth(usize::try_from(place).unwrap()).unwrap()
}

#[test]
fn an_empty_block_goes_back_only_when_it_has_been_empty_long_enough() {
    let mut harness = Harness::new();
    harness.clock = 10;
    let place = harness.malloc(100, 16);
    assert_eq!(harness.allocator.empty_since(), None);
    harness.free(place);
    assert_eq!(harness.allocator.empty_since(), Some(11));
    assert!(harness.allocator.take_empty(10, |_| false).is_empty());
    assert!(harness.allocator.take_empty(11, |_| true).is_empty());
    assert_eq!(harness.allocator.take_empty(11, |_| false), vec![place.block]);
    assert!(harness.allocator.find(place).is_none());
}

#[test]
fn fresh_memory_is_known_to_be_zero_and_reused_memory_not() {
    let mut harness = Harness::new();
    for (bytes, align) in [(64, 16), (8192, 16), (300_000, 16)] {
        let shape = Shape::of(bytes, align).unwrap();
        harness.malloc(bytes, align);
        let (first, zeroed) = harness.allocator.allocate(Kind::default(), shape).unwrap();
        assert!(zeroed, "{bytes}");
        harness.allocator.free(first.place, 0);
        let (again, zeroed) = harness.allocator.allocate(Kind::default(), shape).unwrap();
        assert_eq!(again.place, first.place);
        assert!(!zeroed, "{bytes}");
    }
}

#[test]
fn a_block_that_can_get_no_more_is_passed_over() {
    let mut harness = Harness::new();
    let place = harness.malloc(1 << 20, 16);
    let shape = Shape::of(4 << 20, 16).unwrap();
    let heap = harness.allocator.heap(Kind::default());
    assert!(matches!(heap.growth(shape, &[]), Growth::Block { block, .. } if block == place.block));
    let fresh = Growth::Fresh { at_least: 4 << 20, wanted: 4 << 20 };
    assert_eq!(heap.growth(shape, &[place.block]), fresh);
}

#[test]
fn a_span_is_found_by_its_first_byte_alone() {
    let mut allocator = Allocator::default();
    let first = BlockId::try_from(8).unwrap();
    let span = SpanAllocation { first, count: 3, bytes: 3 << 30, kind: Kind::default() };
    allocator.add_span(span);
    let place = Place { block: first, cell: 0 };
    assert_eq!(allocator.find(place), Some(Found::Span(span)));
    assert_eq!(allocator.find(Place { cell: 4096, ..place }), None);
    assert_eq!(allocator.find(Place { block: BlockId::try_from(9).unwrap(), cell: 0 }), None);
    assert_eq!(allocator.resize(place, 2 << 30), Some(Found::Span(span)));
    assert_eq!(allocator.resize(place, 1 << 30), None);
    assert_eq!(allocator.free(place, 0), Some(Found::Span(span)));
    assert_eq!(allocator.free(place, 0), None);
    assert_eq!((allocator.in_use(), allocator.committed()), (0, 0));
}

#[test]
fn nothing_more_is_allocated_in_a_block_that_is_lost() {
    let mut harness = Harness::new();
    let (small, large) = (harness.malloc(100, 16), harness.malloc(300_000, 16));
    assert_eq!(small.block, large.block);
    harness.allocator.freeze(small.block);
    for bytes in [100, 300_000] {
        assert_ne!(harness.malloc(bytes, 16).block, small.block);
    }
    harness.free(small);
    harness.free(large);
    assert_ne!(harness.malloc(100, 16).block, small.block);
    assert_eq!(harness.allocator.take_empty(harness.clock, |_| false), [small.block]);
}

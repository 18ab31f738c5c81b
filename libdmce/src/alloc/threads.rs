//! The allocator under real threads, each with a heap of its own, from seeds.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dmce_abi::block::BlockId;

use super::users::{ALL, BLOCK_BYTES_MAX, Seeded, Users, addr, new_allocator, place, seeds};
use super::{Grown, Growth, Kind, Moment, Shape};

const THREADS: usize = 3;

/// An allocator with who would ask the broker.
struct World {
    users: Users,
    growing: Mutex<u32>,
    clock: AtomicU64,
}

impl World {
    fn new() -> Self {
        Self { users: Users::new(), growing: Mutex::new(1), clock: AtomicU64::new(0) }
    }

    fn malloc(&self, slot: usize, bytes: u64) -> u64 {
        let shape = Shape::of(bytes, 16).unwrap();
        loop {
            if let Some(taken) = self.users.try_malloc(Some(slot), Kind::default(), shape, 0) {
                return taken.addr;
            }
            self.grow(shape);
        }
    }

    fn grow(&self, shape: Shape) {
        let mut last = self.growing.lock().unwrap();
        let (block, committed) =
            match self.users.allocator.growth(Kind::default(), shape, &[]).unwrap() {
                Growth::Block { block, wanted, .. } => (block, wanted),
                Growth::Fresh { wanted, .. } => {
                    *last += 1;
                    (BlockId::try_from(*last).unwrap(), wanted)
                }
            };
        let grown = Grown { block, committed, bytes_max: BLOCK_BYTES_MAX };
        self.users.allocator.commit(Kind::default(), grown, 0);
    }

    /// What a service thread does, and now and then somebody who is short of memory.
    fn tend(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let now = self.clock.fetch_add(100, Ordering::Relaxed);
            self.users.allocator.look(Moment { now, idle_ms: 400 });
            if now.is_multiple_of(1_000) {
                self.users.allocator.reclaim(now);
            }
            thread::yield_now();
        }
    }

    /// Runs a thread of the allocator on each slot, beside one that tends it.
    fn run(&self, body: impl Fn(usize) + Sync) {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let tending = scope.spawn(|| self.tend(&stop));
            let run = |slot| {
                scope.spawn({
                    let body = &body;
                    move || body(slot)
                })
            };
            let threads: Vec<_> = (0..THREADS).map(run).collect();
            let ended: Vec<_> = threads.into_iter().map(thread::ScopedJoinHandle::join).collect();
            stop.store(true, Ordering::Relaxed);
            tending.join().unwrap();
            for ended in ended {
                ended.unwrap();
            }
        });
    }
}

/// What is live, by its first byte. Entered after it was allocated and taken out before it is
/// freed, so whatever overlaps is a defect.
#[derive(Default)]
struct Live(Mutex<BTreeMap<u64, u64>>);

impl Live {
    fn enter(&self, start: u64, bytes: u64) {
        let mut live = self.0.lock().unwrap();
        if let Some((other, length)) = live.range(..=start).next_back() {
            assert!(other + length <= start, "{start:#x} overlaps {other:#x}");
        }
        if let Some((other, _)) = live.range(start..).next() {
            assert!(start + bytes <= *other, "{start:#x} overlaps {other:#x}");
        }
        live.insert(start, bytes);
    }

    /// Takes out one at or behind a place, whoever allocated it.
    fn leave(&self, from: u64) -> Option<u64> {
        let mut live = self.0.lock().unwrap();
        let found = live.range(from..).next().or_else(|| live.iter().next());
        let start = *found?.0;
        live.remove(&start);
        Some(start)
    }
}

#[test]
fn threads_that_free_what_others_allocated_never_share_a_byte() {
    for seed in seeds(6) {
        let (world, live) = (World::new(), Live::default());
        world.run(|slot| {
            let mut random = Seeded(seed << 8 | slot as u64);
            for _ in 0..4_000 {
                if random.below(100) < 55 {
                    let limit = [64, 200, 1_000, 5_000, 40_000][random.place(5)];
                    let bytes = 1 + random.below(limit);
                    let start = world.malloc(slot, bytes);
                    live.enter(start, bytes);
                } else if let Some(start) = live.leave(random.below(BLOCK_BYTES_MAX * 2)) {
                    assert!(world.users.free(slot, start, 0), "{start:#x}");
                }
            }
        });
        while let Some(start) = live.leave(0) {
            assert!(world.users.free(0, start, 0));
        }
        let usage = world.users.allocator.usage();
        assert_eq!((usage.live, usage.in_use), (0, 0), "seed {seed}");
        world.users.allocator.reclaim(1);
        assert_eq!(world.users.allocator.take_empty(1, |_| false).len() as u64, usage.blocks);
    }
}

#[test]
fn of_all_who_free_an_address_at_once_exactly_one_succeeds() {
    for seed in seeds(40) {
        let world = World::new();
        let mut random = Seeded(seed);
        let bytes = [16, 64, 700, 4_096, 40_000][random.place(5)];
        // Biased to a thread that frees as well, or to one that does not.
        let home = random.place(THREADS + 1);
        let starts: Vec<u64> = (0..300).map(|_| world.malloc(home, bytes)).collect();
        let wins = AtomicU64::new(0);
        world.run(|slot| {
            let mut own = Seeded(seed << 8 | slot as u64);
            let turn = own.place(8);
            for at in 0..starts.len() {
                let start = starts[(at + turn) % starts.len()];
                let freed = world.users.free(slot, start, 0);
                wins.fetch_add(u64::from(freed), Ordering::Relaxed);
            }
        });
        assert_eq!(wins.into_inner(), starts.len() as u64, "seed {seed}");
        assert_eq!(world.users.allocator.usage().live, 0);
        assert!(starts.iter().all(|&start| world.users.allocator.find(place(start)).is_none()));
        assert!(starts.iter().all(|&start| addr(place(start)) == start));
    }
}

#[test]
fn what_is_allocated_is_told_right_however_often_one_slab_is_used() {
    let allocator = new_allocator();
    let kind = Kind { policy: 1, ..Kind::default() };
    let grown =
        Grown { block: BlockId::try_from(1).unwrap(), committed: 2 << 20, bytes_max: 2 << 20 };
    // The kind is known when something of it was wanted.
    let shape = Shape::of(64, 16).unwrap();
    assert!(allocator.growth(kind, shape, &[]).is_some());
    allocator.commit(kind, grown, 0);
    let malloc = || allocator.allocate(None, (kind, shape), || ALL, 0).taken.unwrap().addr;
    malloc();
    for _ in 0..70_000 {
        assert!(allocator.free(place(malloc()), 0).is_some());
    }
    assert_eq!((allocator.usage().live, allocator.usage().in_use), (1, 64));
}

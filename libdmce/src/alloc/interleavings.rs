//! The gate and the words of a slab over every interleaving and every value that the memory model
//! allows (`make test-loom`). The light half of a fence is a full one here, as the kernel makes it.

use dmce_abi::block::BlockId;
use dmce_shm::Fence;
use dmce_shm::atomic::{AtomicU32, Ordering};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::Mutex;
use loom::thread;

use super::class::Class;
use super::gate::{self, Gate, SHUT};
use super::pages::Run;
use super::slab::{Site, Slab};

/// A slab of eight objects, its home's gate, and what a lock of the depot orders.
struct World {
    gate: Gate,
    slab: Slab,
    depot: Mutex<()>,
    pinned: AtomicU32,
}

fn world(biased: bool) -> Arc<World> {
    let site = Site {
        start: 0,
        block: BlockId::try_from(1).unwrap(),
        run: Run { first: 0, count: 64 },
        zeroed: false,
    };
    Arc::new(World {
        gate: Gate::new(0),
        slab: Slab::new(site, Class::natural(32 << 10).unwrap(), 0, biased),
        depot: Mutex::new(()),
        pinned: AtomicU32::new(0),
    })
}

impl World {
    fn take(&self) -> u16 {
        let taken = self.slab.take().unwrap();
        self.slab.index_at(taken.addr).unwrap()
    }

    /// As the home's thread frees.
    fn free_at_home(&self, index: u16) -> bool {
        loop {
            if let Some(_inside) = self.gate.enter(Fence::Full) {
                return self.slab.give(index);
            }
            drop(self.depot.lock().unwrap());
        }
    }

    /// As any other thread frees; true for the second if it has to tell the home.
    fn free_elsewhere(&self, index: u16, waits: bool) -> (bool, bool) {
        if !self.slab.is_shared() {
            let _depot = self.depot.lock().unwrap();
            if !self.slab.is_shared() {
                self.slab.end_bias();
                gate::heavy(Fence::Full);
                if waits {
                    gate::wait_outside(&self.gate);
                }
                self.slab.share();
            }
        }
        let won = self.slab.claim(index);
        (won, won && self.slab.put_back(index))
    }
}

fn races_with_the_home(waits: bool) {
    loom::model(move || {
        let world = world(true);
        let index = world.take();
        let other = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.free_elsewhere(index, waits).0)
        };
        let home = world.free_at_home(index);
        let other = other.join().unwrap();
        assert!(home != other, "home {home}, other {other}");
        if other {
            world.slab.collect();
        }
        assert!(world.slab.is_empty());
    });
}

#[test]
fn of_the_home_and_another_thread_exactly_one_frees() {
    races_with_the_home(true);
}

#[test]
#[should_panic = "home true, other true"]
fn without_the_wait_both_would() {
    races_with_the_home(false);
}

#[test]
fn of_two_other_threads_exactly_one_frees() {
    loom::model(|| {
        let world = world(true);
        let index = world.take();
        let free = |world: Arc<World>| thread::spawn(move || world.free_elsewhere(index, true));
        let (a, b) = (free(Arc::clone(&world)), free(Arc::clone(&world)));
        let (a, b) = (a.join().unwrap(), b.join().unwrap());
        assert!(a.0 != b.0);
        assert!(a.1 != b.1, "who freed tells");
        world.slab.collect();
        assert!(world.slab.is_empty());
    });
}

/// Two threads bring objects back while the home takes in what it is told of, and allocates.
#[test]
fn what_others_bring_back_is_taken_in_once_and_nothing_is_lost() {
    loom::model(|| {
        let world = world(false);
        let indexes = [world.take(), world.take()];
        let told = Arc::new(AtomicU32::new(0));
        let threads = indexes.map(|index| {
            let (world, told) = (Arc::clone(&world), Arc::clone(&told));
            thread::spawn(move || {
                let (won, tells) = world.free_elsewhere(index, true);
                assert!(won);
                if tells {
                    told.fetch_add(1, Ordering::Release);
                }
            })
        });
        let mut heard = 0;
        if told.load(Ordering::Acquire) > heard {
            heard += 1;
            world.slab.collect();
            let again = world.take();
            assert!(world.slab.give(again));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        if told.load(Ordering::Acquire) > heard {
            world.slab.collect();
        }
        assert!(world.slab.is_empty(), "an object was left behind");
        let both = [world.take(), world.take()];
        assert!(both[0] != both[1] && both.iter().all(|index| indexes.contains(index)));
    });
}

#[test]
fn nobody_else_is_behind_a_shut_gate() {
    loom::model(|| {
        let world = world(true);
        let behind = Arc::new(UnsafeCell::new(0_u32));
        let other = {
            let (world, behind) = (Arc::clone(&world), Arc::clone(&behind));
            thread::spawn(move || {
                let _depot = world.depot.lock().unwrap();
                world.gate.raise(SHUT);
                gate::heavy(Fence::Full);
                if world.gate.mark().is_outside() {
                    // SAFETY: what this test is about: loom fails if another access is not ordered.
                    behind.with_mut(|behind| unsafe { *behind += 1 });
                }
                world.gate.lower(SHUT);
            })
        };
        for _ in 0..2 {
            if let Some(_inside) = world.gate.enter(Fence::Full) {
                // SAFETY: as above.
                behind.with_mut(|behind| unsafe { *behind += 1 });
            }
        }
        other.join().unwrap();
    });
}

#[test]
fn of_a_free_and_a_pin_at_most_one_succeeds() {
    loom::model(|| {
        let world = world(true);
        let index = world.take();
        let pin = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                world.pinned.store(1, Ordering::Relaxed);
                gate::heavy(Fence::Full);
                gate::wait_outside(&world.gate);
                world.slab.is_live(index)
            })
        };
        let freed = world.gate.enter(Fence::Full).is_some_and(|_inside| {
            world.pinned.load(Ordering::Relaxed) == 0 && world.slab.give(index)
        });
        assert!(freed != pin.join().unwrap());
    });
}

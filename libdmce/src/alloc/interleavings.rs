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
use super::gate::{self, Errand, Gate, Inside, Key, Permits};
use super::pages::Run;
use super::slab::{Site, Slab};

const ALL: Permits = Permits { take: true, give: true };

fn key(session: usize) -> Key {
    Key::new(session).unwrap()
}

/// What this model calls the session that is not named otherwise.
const SESSION: usize = 1;

fn enter(gate: &Gate, errand: Errand) -> Option<Inside<'_>> {
    gate.enter(key(SESSION), errand, Fence::Full)
}

/// As the owner does under the depot's lock. Nobody follows where it leads.
fn open(gate: &Gate, permits: Permits) {
    gate.open(key(SESSION), std::ptr::null(), permits, Fence::Full);
}

/// A slab of eight objects, its home's gate, and what a lock of the depot orders.
struct World {
    gate: Gate,
    slab: Slab,
    depot: Mutex<()>,
    pinned: AtomicU32,
    /// Whether the home's heap knows the slab as one to free from by plain stores.
    recent: AtomicU32,
}

fn world(biased: bool) -> Arc<World> {
    let site = Site {
        start: 0,
        block: BlockId::try_from(1).unwrap(),
        run: Run { first: 0, count: 64 },
        zeroed: false,
    };
    let gate = Gate::new();
    open(&gate, ALL);
    Arc::new(World {
        gate,
        slab: Slab::new(site, Class::natural(32 << 10).unwrap(), 0, biased),
        depot: Mutex::new(()),
        pinned: AtomicU32::new(0),
        recent: AtomicU32::new(biased.into()),
    })
}

impl World {
    fn take(&self) -> u16 {
        let taken = self.slab.take().unwrap();
        self.slab.index_at(taken.addr).unwrap()
    }

    /// As the home's thread frees.
    fn free_at_home(&self, index: u16) -> bool {
        let addr = u64::from(index) * (32 << 10);
        if let Some(_inside) = enter(&self.gate, Errand::Give) {
            if self.recent.load(Ordering::Relaxed) != 0 {
                return self.slab.give_plainly(addr);
            }
            return self.slab.give(index);
        }
        let _depot = self.depot.lock().unwrap();
        open(&self.gate, ALL);
        self.slab.give(index)
    }

    /// As any other thread frees; true for the second if it has to tell the home.
    fn free_elsewhere(&self, index: u16, waits: bool) -> (bool, bool) {
        if !self.slab.is_shared() {
            let _depot = self.depot.lock().unwrap();
            if !self.slab.is_shared() {
                self.gate.shut();
                gate::heavy(Fence::Full);
                if waits {
                    gate::wait_outside(&self.gate);
                }
                self.recent.store(0, Ordering::Relaxed);
                self.slab.share();
            }
        }
        let won = self.slab.claim(index);
        (won, won && self.slab.put_back(index))
    }

    /// As somebody who works on the home's heap, unless the home is inside of its gate.
    fn behind_the_gate(&self, body: impl FnOnce()) {
        let _depot = self.depot.lock().unwrap();
        self.gate.shut();
        gate::heavy(Fence::Full);
        if self.gate.mark().is_outside() {
            body();
        }
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

/// What loom finds two threads at that are not ordered.
fn touch(behind: &UnsafeCell<u32>) {
    // SAFETY: what these tests are about: loom fails if another access is not ordered.
    behind.with_mut(|behind| unsafe { *behind += 1 });
}

fn opens_while_another_works(takes_the_lock: bool) {
    loom::model(move || {
        let world = world(true);
        let behind = Arc::new(UnsafeCell::new(0_u32));
        let other = {
            let (world, behind) = (Arc::clone(&world), Arc::clone(&behind));
            thread::spawn(move || world.behind_the_gate(|| touch(&behind)))
        };
        for _ in 0..2 {
            if let Some(_inside) = enter(&world.gate, Errand::Take) {
                touch(&behind);
                continue;
            }
            let _depot = takes_the_lock.then(|| world.depot.lock().unwrap());
            open(&world.gate, ALL);
        }
        other.join().unwrap();
    });
}

#[test]
fn nobody_else_is_behind_a_shut_gate() {
    opens_while_another_works(true);
}

#[test]
#[should_panic = "Causality violation"]
fn opened_without_the_lock_it_would_let_two_in() {
    opens_while_another_works(false);
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
                {
                    let _depot = world.depot.lock().unwrap();
                    world.gate.shut();
                    gate::heavy(Fence::Full);
                    gate::wait_outside(&world.gate);
                }
                world.slab.is_live(index)
            })
        };
        let mut freed = enter(&world.gate, Errand::Give).is_some_and(|_in| world.slab.give(index));
        if !freed {
            let _depot = world.depot.lock().unwrap();
            let give = world.pinned.load(Ordering::Relaxed) == 0;
            open(&world.gate, Permits { take: true, give });
            freed = give && world.slab.give(index);
        }
        assert!(freed != pin.join().unwrap());
    });
}

/// The end of a session: what it had is freed, and its key opens nothing.
#[test]
fn a_session_ends_when_nobody_is_inside_and_then_nobody_comes_in() {
    loom::model(|| {
        let world = world(true);
        let (closed, freed) = (Arc::new(AtomicU32::new(0)), Arc::new(UnsafeCell::new(0_u32)));
        let closer = {
            let (world, closed) = (Arc::clone(&world), Arc::clone(&closed));
            let freed = Arc::clone(&freed);
            thread::spawn(move || {
                closed.store(1, Ordering::Relaxed);
                {
                    let _depot = world.depot.lock().unwrap();
                    world.gate.shut();
                    gate::heavy(Fence::Full);
                    gate::wait_outside(&world.gate);
                }
                touch(&freed);
            })
        };
        for _ in 0..2 {
            if let Some(_inside) = enter(&world.gate, Errand::Take) {
                // SAFETY: as in `touch`: loom fails if it is not before the end.
                freed.with(|freed| assert_eq!(unsafe { *freed }, 0));
            } else {
                let _depot = world.depot.lock().unwrap();
                let is_open = closed.load(Ordering::Relaxed) == 0;
                open(&world.gate, Permits { take: is_open, give: is_open });
            }
        }
        closer.join().unwrap();
        assert!(enter(&world.gate, Errand::Take).is_none());
    });
}

/// [`loom::model`] of threads that store a lot: all histories in which no more than three times a
/// thread has to wait for others in the middle of what it does.
fn model_in_part(body: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(body);
}

/// A thread uses two sessions by one gate while the first of them ends, under another lock than
/// that under which the gate is opened for the second.
#[test]
fn who_ends_a_session_may_shut_the_gate_of_another_and_does_no_harm() {
    model_in_part(|| {
        let world = world(true);
        let freed = Arc::new(UnsafeCell::new(0_u32));
        let second = Mutex::new(());
        let closer = {
            let (world, freed) = (Arc::clone(&world), Arc::clone(&freed));
            thread::spawn(move || {
                {
                    let _depot = world.depot.lock().unwrap();
                    world.gate.shut();
                    gate::heavy(Fence::Full);
                    gate::wait_outside(&world.gate);
                }
                touch(&freed);
            })
        };
        if let Some(_inside) = enter(&world.gate, Errand::Take) {
            // SAFETY: as in `touch`.
            freed.with(|freed| assert_eq!(unsafe { *freed }, 0));
        }
        {
            let _depot = second.lock().unwrap();
            world.gate.open(key(SESSION + 1), std::ptr::null(), ALL, Fence::Full);
        }
        let by_second = world.gate.enter(key(SESSION + 1), Errand::Take, Fence::Full);
        drop(by_second);
        assert!(enter(&world.gate, Errand::Take).is_none(), "it is the second's");
        closer.join().unwrap();
    });
}

/// A thread ends and another one goes on with its slot and heap, while somebody works on that.
#[test]
fn a_heap_that_is_handed_on_has_one_owner_at_a_time() {
    model_in_part(|| {
        let gates = Arc::new([Gate::new(), Gate::new()]);
        open(&gates[0], ALL);
        let depot = Arc::new(Mutex::new(0_usize));
        let (slot, behind) = (Arc::new(AtomicU32::new(1)), Arc::new(UnsafeCell::new(0_u32)));
        let heir = {
            let (gates, depot) = (Arc::clone(&gates), Arc::clone(&depot));
            let (slot, behind) = (Arc::clone(&slot), Arc::clone(&behind));
            thread::spawn(move || {
                if slot.load(Ordering::Acquire) == 1 {
                    return;
                }
                {
                    let mut gate = depot.lock().unwrap();
                    *gate = 1;
                    open(&gates[1], ALL);
                    touch(&behind);
                }
                if let Some(_inside) = enter(&gates[1], Errand::Take) {
                    touch(&behind);
                }
            })
        };
        let other = {
            let (gates, behind) = (Arc::clone(&gates), Arc::clone(&behind));
            let depot = Arc::clone(&depot);
            thread::spawn(move || {
                let gate = depot.lock().unwrap();
                gates[*gate].shut();
                gate::heavy(Fence::Full);
                if gates[*gate].mark().is_outside() {
                    touch(&behind);
                }
            })
        };
        if let Some(_inside) = enter(&gates[0], Errand::Take) {
            touch(&behind);
        }
        gates[0].shut();
        slot.store(0, Ordering::Release);
        assert!(enter(&gates[0], Errand::Take).is_none());
        heir.join().unwrap();
        other.join().unwrap();
    });
}

//! The door with the slot behind it, over every interleaving and every value that the memory model
//! allows (`make test-loom`). The light half of a fence is a full one here, as the kernel makes it.

use dmce_shm::slot::Marks;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::alloc::heavy;

/// What a session has, and what is taken from under doors: loom finds an access that is not ordered
/// with who takes it.
struct Session {
    slot: Slot,
    generation: AtomicU64,
    known: AtomicU64,
    table: UnsafeCell<u64>,
}

struct World {
    door: Door<UnsafeCell<u64>>,
    sessions: [Session; 2],
}

const THERE: u64 = 0;
const GONE: u64 = 99;
const FIRST: usize = 0;
const SECOND: usize = 1;

fn key(session: usize) -> Key {
    Key::new(session + 1).unwrap()
}

impl Session {
    fn new() -> Self {
        Self {
            slot: Slot::default(),
            generation: AtomicU64::new(1),
            known: AtomicU64::new(1),
            table: UnsafeCell::new(THERE),
        }
    }

    fn take_away(&self) {
        self.table.with_mut(|table| {
            // SAFETY: what these tests are about: loom fails if another access is not ordered.
            unsafe { *table = GONE };
        });
    }
}

impl World {
    /// With a door that is open to the first session.
    fn new() -> Arc<Self> {
        let sessions = [Session::new(), Session::new()];
        let world = Arc::new(Self { door: Door::new(), sessions });
        assert!(world.open(FIRST));
        world
    }

    fn open(&self, session: usize) -> bool {
        let Session { slot, generation, known, table } = &self.sessions[session];
        let look = Look { generation, known, fence: Fence::Full };
        let ways = Ways { slot, look, table, cell_bits: 1 };
        // SAFETY: the sessions stay as long as the door; what is taken away is a number.
        unsafe { self.door.open(key(session), true, &ways) }
    }

    /// As a read of the owner. False: it was not done.
    fn read(&self, session: usize) -> bool {
        let Some(inside) = self.door.enter(key(session), Wish::Read, Fence::Full) else {
            return false;
        };
        let Some(_operation) = inside.begin(Fence::Full) else { return false };
        inside.table().with(|table| {
            // SAFETY: as in `take_away`.
            assert_eq!(unsafe { *table }, THERE);
        });
        true
    }

    /// As who ends a session.
    fn end(&self, session: usize, waits: bool) {
        self.door.shut();
        heavy(Fence::Full);
        if waits {
            self.door.wait_outside();
        }
        self.sessions[session].take_away();
    }
}

fn ends_while_its_owner_reads(waits: bool) {
    loom::model(move || {
        let world = World::new();
        let ender = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.end(FIRST, waits))
        };
        world.read(FIRST);
        ender.join().unwrap();
        assert!(!world.read(FIRST));
    });
}

#[test]
fn a_session_ends_when_nobody_is_inside() {
    ends_while_its_owner_reads(true);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn a_session_that_does_not_wait_is_found() {
    ends_while_its_owner_reads(false);
}

#[test]
fn what_the_slot_protects_goes_when_no_operation_uses_it() {
    loom::model(|| {
        let world = World::new();
        let reclaimer = {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let session = &world.sessions[FIRST];
                session.generation.store(2, Ordering::Relaxed);
                heavy(Fence::Full);
                let marks = || Marks::look(std::slice::from_ref(&session.slot));
                let before = marks();
                while !before.quiesced(&marks()) {
                    thread::yield_now();
                }
                session.take_away();
            })
        };
        world.read(FIRST);
        world.read(FIRST);
        reclaimer.join().unwrap();
        assert!(!world.read(FIRST));
    });
}

#[test]
fn a_door_turns_to_another_session_while_the_first_ends() {
    loom::model(|| {
        let world = World::new();
        let ender = {
            let world = Arc::clone(&world);
            thread::spawn(move || world.end(FIRST, true))
        };
        world.read(FIRST);
        assert!(world.open(SECOND));
        // Shut for nothing, perhaps.
        world.read(SECOND);
        ender.join().unwrap();
        assert!(world.open(SECOND) && world.read(SECOND) && !world.read(FIRST));
    });
}

#[test]
fn who_is_inside_neither_enters_nor_opens() {
    loom::model(|| {
        let world = World::new();
        let inside = world.door.enter(key(FIRST), Wish::Write, Fence::Full).unwrap();
        assert!(!world.read(FIRST) && !world.open(SECOND));
        drop(inside);
        assert!(world.read(FIRST) && world.open(SECOND) && !world.read(FIRST));
        world.door.shut();
        assert!(!world.read(SECOND) && world.open(FIRST) && world.read(FIRST));
    });
}

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;
use crate::parking::Parking;

/// A futex as the kernel makes it: the look at the word and the sleep are one step towards a wake.
#[derive(Default)]
struct ModelFutex {
    queue: Mutex<()>,
    sleepers: Condvar,
}

/// Three records, and what they are about: accessed by holders alone, so that loom finds two.
struct Shared {
    head: PointersHead,
    records: [PointerRecord; 3],
    futex: ModelFutex,
    rings: AtomicU32,
    bytes: UnsafeCell<u32>,
}

impl Parking for Shared {
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        deadline: Deadline,
    ) -> Result<Parked, FutexError> {
        let queue = self.futex.queue.lock().unwrap();
        if half.load(Ordering::Relaxed) != expected {
            return Ok(Parked::Awake);
        }
        if deadline == Deadline::PASSED {
            return Ok(Parked::TimedOut);
        }
        drop(self.futex.sleepers.wait(queue).unwrap());
        Ok(Parked::Awake)
    }

    fn wake(&self, _half: &AtomicU32, _whom: Wake) -> Result<(), FutexError> {
        let _queue = self.futex.queue.lock().unwrap();
        // All sleepers have one queue here, and may return for no reason.
        self.futex.sleepers.notify_all();
        Ok(())
    }

    fn spin(&self, _round: u32) -> bool {
        false
    }
}

impl Turns for Shared {
    fn ring(&self) {
        let _queue = self.futex.queue.lock().unwrap();
        self.rings.fetch_add(1, Ordering::Relaxed);
        self.futex.sleepers.notify_all();
    }
}

impl Shared {
    fn new() -> Self {
        Self {
            head: PointersHead::default(),
            records: [(); 3].map(|()| PointerRecord::default()),
            futex: ModelFutex::default(),
            rings: AtomicU32::new(0),
            bytes: UnsafeCell::new(0),
        }
    }

    fn pointers(&self) -> Pointers<'_> {
        Pointers::new(&self.head, &self.records)
    }

    /// A record for each, claimed before the threads begin: that is explored apart.
    fn claimed() -> Arc<Self> {
        let shared = Self::new();
        for number in 0..3 {
            let claimed = shared.pointers().claim(owner(number + 1), number);
            assert_eq!(claimed, Some(RecordIndex(number)));
        }
        Arc::new(shared)
    }

    fn touch(&self, wanted: Wanted) {
        if wanted.exclusive {
            self.bytes.with_mut(|bytes| {
                // SAFETY: what the tests are about: loom fails if two holders are not ordered.
                unsafe { *bytes += 1 };
            });
        } else {
            self.bytes.with(|bytes| {
                // SAFETY: as above.
                let _ = unsafe { *bytes };
            });
        }
    }

    /// Takes, touches and gives back; false if it was not had.
    fn go(&self, number: u32, wanted: Wanted, terms: Terms) -> bool {
        let index = RecordIndex(number);
        match self.pointers().acquire(index, wanted, terms, self) {
            Ok(()) => {}
            Err(PointerError::Busy | PointerError::Timeout) => return false,
            Err(error) => panic!("{error}"),
        }
        self.touch(wanted);
        self.pointers().release(index, self).unwrap();
        true
    }
}

fn explore(bound: usize, test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(bound);
    model.check(test);
}

fn with(shared: &Arc<Shared>, act: impl FnOnce(&Shared) + 'static) -> thread::JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || act(&shared))
}

fn all_free(shared: &Shared) -> bool {
    shared.records.iter().all(|record| {
        let word = Word(record.word.load(Ordering::Relaxed));
        word.state() == FREE
    })
}

#[test]
fn two_writers_exclude_each_other_and_nobody_sleeps_for_ever() {
    explore(4, || {
        let shared = Shared::claimed();
        let other = with(&shared, |shared| assert!(shared.go(1, write(0, 8), WAITS)));
        assert!(shared.go(0, write(4, 8), WAITS));
        other.join().unwrap();
        assert!(all_free(&shared));
    });
}

#[test]
fn a_reader_and_two_writers_exclude_each_other_and_nobody_sleeps_for_ever() {
    explore(2, || {
        let shared = Shared::claimed();
        let others = [(1, write(0, 8)), (2, read(0, 8))].map(|(number, wanted)| {
            with(&shared, move |shared| assert!(shared.go(number, wanted, WAITS)))
        });
        assert!(shared.go(0, write(4, 8), WAITS));
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(all_free(&shared));
    });
}

#[test]
fn those_behind_one_that_goes_have_their_turns() {
    explore(3, || {
        let shared = Shared::claimed();
        let first = RecordIndex(0);
        shared.pointers().acquire(first, write(0, 8), NO_WAIT, &*shared).unwrap();
        let others = [(1, write(4, 8)), (2, read(4, 8))].map(|(number, wanted)| {
            with(&shared, move |shared| assert!(shared.go(number, wanted, WAITS)))
        });
        shared.pointers().release(first, &*shared).unwrap();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(all_free(&shared));
    });
}

#[test]
fn a_read_inside_another_and_a_writer_exclude_each_other_when_that_goes() {
    explore(3, || {
        let shared = Shared::new();
        // The inner one first in the row; it and the outer one are one owner's.
        for (number, of) in [(0, 1), (1, 1), (2, 2)] {
            assert_eq!(shared.pointers().claim(owner(of), number), Some(RecordIndex(number)));
        }
        let (shared, outer) = (Arc::new(shared), RecordIndex(1));
        shared.pointers().acquire(outer, read(0, 8), NO_WAIT, &*shared).unwrap();
        let inner = with(&shared, |shared| assert!(shared.go(0, read(0, 8), WAITS)));
        let writer = with(&shared, |shared| assert!(shared.go(2, write(0, 8), WAITS)));
        shared.pointers().release(outer, &*shared).unwrap();
        inner.join().unwrap();
        writer.join().unwrap();
        assert!(all_free(&shared));
    });
}

#[test]
fn who_gives_up_leaves_nobody_asleep() {
    explore(2, || {
        let shared = Shared::claimed();
        let passed = Terms { deadline: Deadline::PASSED, ..WAITS };
        let others = [(1, passed), (2, WAITS)].map(|(number, terms)| {
            with(&shared, move |shared| {
                let had = shared.go(number, write(0, 8), terms);
                assert!(had || terms == passed);
            })
        });
        assert!(shared.go(0, write(4, 8), WAITS));
        others.into_iter().for_each(|other| other.join().unwrap());
        assert!(all_free(&shared));
    });
}

#[test]
fn of_two_that_do_not_wait_at_least_one_has_it() {
    explore(4, || {
        let shared = Shared::claimed();
        let had = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&had);
        let other = with(&shared, move |shared| {
            count.fetch_add(u32::from(shared.go(1, write(0, 8), NO_WAIT)), Ordering::Relaxed);
        });
        had.fetch_add(u32::from(shared.go(0, write(0, 8), NO_WAIT)), Ordering::Relaxed);
        other.join().unwrap();
        assert_ne!(had.load(Ordering::Relaxed), 0);
        assert!(all_free(&shared));
    });
}

#[test]
fn who_queues_is_told_of_its_turn() {
    explore(3, || {
        let shared = Shared::claimed();
        let other = with(&shared, |shared| assert!(shared.go(1, write(0, 8), WAITS)));
        let (pointers, index) = (shared.pointers(), RecordIndex(0));
        match pointers.acquire(index, write(0, 8), QUEUES, &*shared) {
            Ok(()) => {}
            Err(PointerError::Queued) => {
                // As somebody does that is told each time, and of nothing else.
                let mut told = 0;
                while !pointers.ring_for(index) {
                    let mut queue = shared.futex.queue.lock().unwrap();
                    while shared.rings.load(Ordering::Relaxed) == told {
                        queue = shared.futex.sleepers.wait(queue).unwrap();
                    }
                    told = shared.rings.load(Ordering::Relaxed);
                }
                pointers.take_turn(index, write(0, 8), WAITS, &*shared).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
        shared.touch(write(0, 8));
        pointers.release(index, &*shared).unwrap();
        other.join().unwrap();
        assert!(all_free(&shared));
    });
}

#[test]
fn a_record_is_claimed_by_one_and_seen_by_all() {
    explore(3, || {
        let shared = Arc::new(Shared::new());
        let go = |shared: &Shared, number| {
            let index = shared.pointers().claim(owner(number), 0).unwrap();
            let wanted = write(0, 8);
            shared.pointers().acquire(index, wanted, WAITS, shared).unwrap();
            shared.touch(wanted);
            shared.pointers().release(index, shared).unwrap();
            shared.pointers().disclaim(index);
        };
        let other = with(&shared, move |shared| go(shared, 1));
        go(&shared, 2);
        other.join().unwrap();
        assert!(all_free(&shared));
    });
}

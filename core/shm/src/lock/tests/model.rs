use loom::cell::UnsafeCell;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use super::*;

/// A futex as the kernel makes it: the look at the word and the sleep are one step towards a wake.
#[derive(Default)]
struct ModelFutex {
    queue: Mutex<()>,
    sleepers: Condvar,
}

impl Parking for &ModelFutex {
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        deadline: Deadline,
    ) -> Result<Parked, FutexError> {
        let queue = self.queue.lock().unwrap();
        if half.load(Ordering::Relaxed) != expected {
            return Ok(Parked::Awake);
        }
        if deadline == Deadline::PASSED {
            return Ok(Parked::TimedOut);
        }
        drop(self.sleepers.wait(queue).unwrap());
        Ok(Parked::Awake)
    }

    fn wake(&self, _half: &AtomicU32, whom: Wake) -> Result<(), FutexError> {
        let _queue = self.queue.lock().unwrap();
        match whom {
            Wake::One => self.sleepers.notify_one(),
            Wake::All => self.sleepers.notify_all(),
        }
        Ok(())
    }

    fn spin(&self, _round: u32) -> bool {
        false
    }
}

/// A page of two words under a lock; `copy` is the other copy, from which repair makes it whole.
#[derive(Default)]
struct Page {
    lock: PageLock,
    futex: ModelFutex,
    words: [AtomicU32; 2],
    /// Accessed by the holder alone: loom finds two holders.
    held: UnsafeCell<u32>,
}

impl Page {
    fn lock(&self, owner: LockOwner) {
        self.lock.lock(owner, Deadline::NEVER, &&self.futex).unwrap();
        self.touch();
    }

    fn unlock(&self, owner: LockOwner) {
        self.lock.unlock(owner, &&self.futex).unwrap();
    }

    fn touch(&self) {
        self.held.with_mut(|held| {
            // SAFETY: what the tests are about: loom fails if two holders are not ordered.
            unsafe { *held += 1 };
        });
    }

    fn store(&self, value: u32) {
        self.words[0].store(value, Ordering::Relaxed);
        self.words[1].store(value, Ordering::Relaxed);
    }

    fn load(&self) -> [u32; 2] {
        [self.words[0].load(Ordering::Relaxed), self.words[1].load(Ordering::Relaxed)]
    }
}

fn explore(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(4);
    model.check(test);
}

fn with(page: &Arc<Page>, act: impl FnOnce(&Page) + 'static) -> thread::JoinHandle<()> {
    let page = Arc::clone(page);
    thread::spawn(move || act(&page))
}

#[test]
fn two_sleeping_and_one_releasing_exclude_each_other_and_nobody_sleeps_for_ever() {
    explore(|| {
        let page = Arc::new(Page::default());
        let others = [1, 2].map(|slot| {
            with(&page, move |page| {
                page.lock(owner(1, slot));
                page.unlock(owner(1, slot));
            })
        });
        page.lock(owner(1, 0));
        page.unlock(owner(1, 0));
        for other in others {
            other.join().unwrap();
        }
        assert_eq!(page.lock.state(), LockState::Free);
    });
}

#[test]
fn who_gives_up_leaves_the_wake_up_to_the_others() {
    explore(|| {
        let page = Arc::new(Page::default());
        page.lock(owner(1, 0));
        let sleeper = with(&page, |page| {
            page.lock(owner(1, 1));
            page.unlock(owner(1, 1));
        });
        let gives_up =
            with(&page, |page| match page.lock.lock(owner(1, 2), Deadline::PASSED, &&page.futex) {
                Ok(()) => page.unlock(owner(1, 2)),
                Err(error) => assert!(matches!(error, LockError::Timeout)),
            });
        page.unlock(owner(1, 0));
        sleeper.join().unwrap();
        gives_up.join().unwrap();
    });
}

#[test]
fn a_reader_never_accepts_a_torn_page() {
    explore(|| {
        let page = Arc::new(Page::default());
        let writer = with(&page, |page| {
            for value in 1..3 {
                page.lock(owner(1, 0));
                page.lock.begin_write();
                page.store(value);
                page.lock.end_write();
                page.unlock(owner(1, 0));
            }
        });
        if let Some(sequence) = page.lock.begin_read() {
            let [first, second] = page.load();
            if page.lock.is_unchanged(sequence) {
                assert_eq!(first, second, "torn");
            }
        }
        writer.join().unwrap();
    });
}

/// The model finds a writer that does not step the sequence before it stores.
#[test]
#[should_panic(expected = "torn")]
fn the_model_finds_a_write_outside_of_the_sequence() {
    explore(|| {
        let page = Arc::new(Page::default());
        let writer = with(&page, |page| {
            page.store(1);
            page.lock.begin_write();
            page.lock.end_write();
        });
        if let Some(sequence) = page.lock.begin_read() {
            let [first, second] = page.load();
            if page.lock.is_unchanged(sequence) {
                assert_eq!(first, second, "torn");
            }
        }
        writer.join().unwrap();
    });
}

/// The steps of a writer; it dies before the one whose number it is given.
const STEPS: u32 = 7;

fn write_until(page: &Page, dies_at: u32, writer: LockOwner) {
    let steps: [&dyn Fn(); STEPS as usize] = [
        &|| page.lock(writer),
        &|| page.lock.begin_write(),
        &|| page.words[0].store(1, Ordering::Relaxed),
        &|| page.words[1].store(1, Ordering::Relaxed),
        &|| page.lock.end_write(),
        // The two halves of an unlock: the release, and the wake-up.
        &|| assert_ne!(page.lock.half.swap(FREE, Ordering::Release), FREE),
        &|| page.lock.wake_all(&&page.futex).unwrap(),
    ];
    for (_, step) in (0..dies_at).zip(steps) {
        step();
    }
}

/// The broker, after the kernel has said that the writer is dead.
fn repair(page: &Page, dead: LockOwner) {
    match page.lock.take_over(dead) {
        Ok(PageCondition::Torn) => {
            page.touch();
            // As from the intent: the first copy decides.
            let value = page.words[0].load(Ordering::Relaxed);
            page.store(value);
            page.lock.release_repaired(Left::Whole, &&page.futex).unwrap();
        }
        Ok(PageCondition::Whole) => page.lock.release_repaired(Left::Whole, &&page.futex).unwrap(),
        Err(_) => page.lock.wake_all(&&page.futex).unwrap(),
    }
}

fn a_writer_dies_at(step: u32) {
    explore(move || {
        let page = Arc::new(Page::default());
        let waiter = with(&page, |page| {
            page.lock(owner(2, 0));
            let [first, second] = page.load();
            assert_eq!(first, second, "the next holder found a torn page");
            assert_eq!(page.lock.condition(), PageCondition::Whole);
            page.unlock(owner(2, 0));
        });
        let writer = with(&page, move |page| write_until(page, step, owner(1, 0)));
        // The kernel tells of a death when nothing of the process can follow: the join.
        writer.join().unwrap();
        repair(&page, owner(1, 0));
        waiter.join().unwrap();
        assert_eq!(page.lock.state(), LockState::Free);
    });
}

#[test]
fn a_writer_that_dies_at_any_step_leaves_a_page_that_repair_makes_whole() {
    for step in 0..=STEPS {
        a_writer_dies_at(step);
    }
}

#[test]
fn a_reader_beside_death_and_repair_never_accepts_a_torn_page() {
    explore(|| {
        let page = Arc::new(Page::default());
        let reader = with(&page, |page| {
            if let Some(sequence) = page.lock.begin_read() {
                let [first, second] = page.load();
                if page.lock.is_unchanged(sequence) {
                    assert_eq!(first, second, "torn");
                }
            }
        });
        let writer = with(&page, |page| write_until(page, 3, owner(1, 0)));
        writer.join().unwrap();
        repair(&page, owner(1, 0));
        reader.join().unwrap();
    });
}

/// A waiter that was woken and dies before it takes the lock has the wake-up of another.
#[test]
fn the_death_of_a_woken_waiter_does_not_leave_another_asleep() {
    explore(|| {
        let page = Arc::new(Page::default());
        page.lock(owner(1, 0));
        let dies = with(&page, |page| {
            // As `lock_contended` up to the sleep, and dead after it.
            let held = page.lock.half.load(Ordering::Relaxed);
            if held != FREE && page.lock.ask_to_be_woken(held).is_some() {
                let _ = (&page.futex).park(&page.lock.half, held | WAITERS, Deadline::NEVER);
            }
        });
        let sleeper = with(&page, |page| {
            page.lock(owner(2, 0));
            page.unlock(owner(2, 0));
        });
        page.unlock(owner(1, 0));
        // It may sleep on if the other one was woken; then that one wakes it.
        dies.join().unwrap();
        page.lock.wake_all(&&page.futex).unwrap();
        sleeper.join().unwrap();
    });
}

/// A page that is lost is rewritten, and then written as any other.
#[test]
fn a_reader_takes_no_page_for_lost_that_was_rewritten() {
    const SECOND_WRITE: u32 = 5;
    explore(|| {
        let page = Arc::new(Page { lock: PageLock::of_words(LOST, 1), ..Page::default() });
        let writer = with(&page, |page| {
            page.lock.lock_to_rewrite(owner(1, 0), Deadline::NEVER, &&page.futex).unwrap();
            page.lock.begin_write();
            page.store(1);
            page.lock.end_write();
            page.unlock(owner(1, 0));
            page.lock(owner(1, 0));
            page.lock.begin_write();
            assert_eq!(page.lock.sequence.load(Ordering::Relaxed), SECOND_WRITE);
        });
        let sequence = page.lock.sequence.load(Ordering::Acquire);
        if sequence == SECOND_WRITE {
            assert!(!page.lock.is_lost(), "what is being written is called lost");
        }
        writer.join().unwrap();
    });
}

/// Who waits for a page that is given up hears of it.
#[test]
fn nobody_sleeps_on_a_page_that_repair_calls_lost() {
    explore(|| {
        let page = Arc::new(Page::default());
        page.lock(owner(1, 0));
        page.lock.begin_write();
        let sleepers = [2, 3].map(|session| {
            with(&page, move |page| {
                let taken = page.lock.lock(owner(session, 0), Deadline::NEVER, &&page.futex);
                assert!(matches!(taken, Err(LockError::Lost)), "{taken:?}");
            })
        });
        assert_eq!(page.lock.take_over(owner(1, 0)).unwrap(), PageCondition::Torn);
        page.lock.release_repaired(Left::Lost, &&page.futex).unwrap();
        for sleeper in sleepers {
            sleeper.join().unwrap();
        }
        assert!(page.lock.is_lost() && page.lock.begin_read().is_none());
    });
}

/// Who waits for a page whose holder calls it lost hears of it, and no reader takes it for whole.
#[test]
fn nobody_sleeps_on_a_page_that_its_holder_calls_lost() {
    explore(|| {
        let page = Arc::new(Page::default());
        page.lock(owner(1, 0));
        let sleeper = with(&page, move |page| {
            let taken = page.lock.lock(owner(2, 0), Deadline::NEVER, &&page.futex);
            assert!(matches!(taken, Err(LockError::Lost)), "{taken:?}");
        });
        let reader = with(&page, |page| {
            assert!(page.lock.begin_read().is_some() || page.lock.is_lost());
        });
        page.lock.lose();
        page.unlock(owner(1, 0));
        sleeper.join().unwrap();
        reader.join().unwrap();
        assert!(page.lock.is_lost() && page.lock.begin_read().is_none());
    });
}

use std::cell::UnsafeCell;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::thread;
use std::time::Duration;

use super::*;
use crate::parking::Kernel;

fn half(lock: &PageLock) -> u32 {
    lock.half.load(Ordering::Relaxed)
}

fn scribbled(half: u32, sequence: u32) -> PageLock {
    PageLock { half: AtomicU32::new(half), sequence: AtomicU32::new(sequence) }
}

#[test]
fn an_owner_is_its_session_and_slot_and_never_free() {
    for (session, slot) in [(1, 0), (1, 255), (SessionId::MAX, 0), (SessionId::MAX, 255)] {
        let owner = owner(session, slot);
        assert_eq!(owner.session().map(SessionId::get), Some(session));
        assert_eq!(owner.slot(), slot);
        assert_ne!(state_of(owner.0), LockState::Free);
        assert_eq!(state_of(owner.0 | WAITERS), LockState::Held(owner));
    }
}

#[test]
fn a_lock_is_held_by_one_and_given_back_by_that_one() {
    let lock = PageLock::default();
    let (one, other) = (owner(1, 0), owner(1, 1));
    lock.try_lock(one).unwrap();
    assert_eq!(lock.state(), LockState::Held(one));
    assert!(matches!(lock.try_lock(other), Err(LockError::Busy)));
    assert!(matches!(lock.try_lock(one), Err(LockError::Busy)), "not recursive");
    assert!(matches!(lock.unlock(other, &Kernel), Err(LockError::NotHeld)));
    lock.unlock(one, &Kernel).unwrap();
    assert!(matches!(lock.unlock(one, &Kernel), Err(LockError::NotHeld)));
    assert_eq!(half(&lock), 0);
}

#[test]
fn waiting_for_a_stopped_holder_ends_with_the_deadline() {
    let lock = PageLock::default();
    lock.try_lock(owner(1, 0)).unwrap();
    for deadline in [Deadline::PASSED, Deadline::after(Duration::from_millis(5))] {
        let waited = lock.lock(owner(2, 0), deadline, &Kernel);
        assert!(matches!(waited, Err(LockError::Timeout)), "{waited:?}");
    }
    // It left `waiters` behind, which costs the holder a needless wake-up and no more.
    lock.unlock(owner(1, 0), &Kernel).unwrap();
    lock.lock(owner(2, 0), Deadline::PASSED, &Kernel).unwrap();
}

#[test]
fn the_sequence_tells_a_reader_of_every_write() {
    let lock = PageLock::default();
    let before = lock.begin_read().unwrap();
    assert!(lock.is_unchanged(before));
    lock.try_lock(owner(1, 0)).unwrap();
    assert!(lock.is_unchanged(before), "a lock alone changes nothing");
    lock.begin_write();
    assert!(lock.begin_read().is_none());
    assert!(!lock.is_unchanged(before));
    lock.end_write();
    assert!(!lock.is_unchanged(before));
    assert!(lock.is_unchanged(lock.begin_read().unwrap()));
}

#[test]
fn the_sequence_goes_round() {
    let lock = scribbled(0, u32::MAX - 1);
    lock.begin_write();
    lock.end_write();
    assert_eq!(lock.sequence.load(Ordering::Relaxed), 0);
}

#[test]
fn repair_takes_over_from_the_dead_alone() {
    let lock = PageLock::default();
    let (dead, other) = (owner(1, 3), owner(2, 3));
    assert!(matches!(lock.take_over(dead), Err(LockError::NotHeld)));
    lock.try_lock(dead).unwrap();
    assert!(matches!(lock.take_over(other), Err(LockError::NotHeld)));
    assert!(matches!(lock.release_repaired(Left::Whole, &Kernel), Err(LockError::NotHeld)));
    assert_eq!(lock.take_over(dead).unwrap(), PageCondition::Whole);
    assert_eq!(lock.state(), LockState::Repair);
    assert!(matches!(lock.try_lock(other), Err(LockError::Busy)));
    assert!(matches!(lock.unlock(dead, &Kernel), Err(LockError::NotHeld)));
    lock.release_repaired(Left::Whole, &Kernel).unwrap();
    assert_eq!(lock.state(), LockState::Free);
}

#[test]
fn a_page_whose_writer_died_is_torn_until_repair_releases_it() {
    let lock = PageLock::default();
    lock.try_lock(owner(1, 0)).unwrap();
    lock.begin_write();
    assert_eq!(lock.take_over(owner(1, 0)).unwrap(), PageCondition::Torn);
    assert!(lock.begin_read().is_none());
    lock.release_repaired(Left::Whole, &Kernel).unwrap();
    assert_eq!(lock.condition(), PageCondition::Whole);
    assert!(lock.begin_read().is_some());
}

#[test]
fn a_page_that_its_holder_calls_lost_is_so_from_when_it_is_given_back() {
    let (holder, other) = (owner(1, 0), owner(2, 0));
    for detached in [false, true] {
        let lock = PageLock::default();
        lock.try_lock(holder).unwrap();
        lock.set_detached(detached);
        lock.lose();
        assert_eq!(lock.state(), LockState::Held(holder));
        assert!(lock.is_lost() && lock.begin_read().is_none(), "a reader is told already");
        lock.unlock(holder, &Kernel).unwrap();
        assert_eq!((lock.state(), lock.is_detached()), (LockState::Lost, detached));
        let refused = lock.lock(other, Deadline::PASSED, &Kernel);
        assert!(matches!(refused, Err(LockError::Lost)));
        lock.lock_to_rewrite(other, Deadline::PASSED, &Kernel).unwrap();
        lock.begin_write();
        lock.end_write();
        lock.unlock(other, &Kernel).unwrap();
        assert!(lock.begin_read().is_some_and(|sequence| sequence.number() == 4));
    }
}

/// Died before the sequence is odd, the page is what it was; died after it, it is lost.
#[test]
fn who_dies_over_a_page_that_it_calls_lost_leaves_it_as_it_was_or_lost() {
    let dead = owner(1, 0);
    for (sequence, left, is_lost) in
        [(6, Left::Whole, false), (6, Left::Lost, false), (7, Left::Lost, true)]
    {
        let lock = scribbled(dead.0 | LOST, sequence);
        lock.take_over(dead).unwrap();
        lock.release_repaired(left, &Kernel).unwrap();
        assert_eq!(lock.state() == LockState::Lost, is_lost);
        assert_eq!(lock.begin_read().map(Sequence::number), (!is_lost).then_some(6));
    }
}

#[test]
fn no_word_that_somebody_scribbled_makes_a_panic_or_a_hang() {
    let edges = [0, 1, 0xff, OWNER_MASK, 1 << 28, LOST, REPAIR, WAITERS, u32::MAX];
    for (half, sequence) in edges.into_iter().flat_map(|half| edges.map(|seq| (half, seq))) {
        let word = || scribbled(half, sequence);
        let _ = word().state();
        let _ = word().try_lock(owner(1, 0));
        let _ = word().lock(owner(1, 0), Deadline::PASSED, &Kernel);
        let _ = word().unlock(owner(1, 0), &Kernel);
        let _ = word().take_over(owner(1, 0));
        let _ = word().release_repaired(Left::Whole, &Kernel);
        let lock = word();
        lock.begin_write();
        assert!(lock.begin_read().is_none(), "a writer is seen, whatever the sequence was");
        lock.end_write();
        assert!(lock.begin_read().is_some());
    }
}

/// Four threads write a page and one reads it, with real futexes.
#[test]
fn writers_exclude_each_other_and_readers_see_whole_pages() {
    const WRITES: u64 = 20_000;
    let lock = PageLock::default();
    let page = [const { AtomicU64::new(0) }; 8];
    let running = AtomicUsize::new(4);
    thread::scope(|scope| {
        for slot in 0..4 {
            let (lock, page, running) = (&lock, &page, &running);
            scope.spawn(move || {
                for _ in 0..WRITES {
                    lock.lock(owner(1, slot), Deadline::NEVER, &Kernel).unwrap();
                    lock.begin_write();
                    for word in page {
                        word.store(word.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    }
                    lock.end_write();
                    lock.unlock(owner(1, slot), &Kernel).unwrap();
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while running.load(Ordering::Relaxed) > 0 {
            let Some(sequence) = lock.begin_read() else {
                thread::yield_now();
                continue;
            };
            let copy = page.each_ref().map(|word| word.load(Ordering::Relaxed));
            if lock.is_unchanged(sequence) {
                assert_eq!(copy, [copy[0]; 8], "a torn page was accepted");
            }
        }
    });
    assert!(page.iter().all(|word| word.load(Ordering::Relaxed) == 4 * WRITES));
    assert_eq!(half(&lock), 0);
}

/// Sleepers are woken one after the other: the last one would hang for ever.
#[test]
fn every_sleeper_gets_its_turn() {
    struct Turns(UnsafeCell<u32>);
    // SAFETY: accessed under the lock alone, which is what the test is about.
    unsafe impl Sync for Turns {}

    let lock = PageLock::default();
    let turns = Turns(UnsafeCell::new(0));
    lock.try_lock(owner(1, 0)).unwrap();
    thread::scope(|scope| {
        for slot in 1..9 {
            let (lock, turns) = (&lock, &turns);
            scope.spawn(move || {
                lock.lock(owner(1, slot), Deadline::NEVER, &Kernel).unwrap();
                // SAFETY: the lock is held.
                unsafe { *turns.0.get() += 1 };
                lock.unlock(owner(1, slot), &Kernel).unwrap();
            });
        }
        while half(&lock) & WAITERS == 0 {
            thread::yield_now();
        }
        lock.unlock(owner(1, 0), &Kernel).unwrap();
    });
    assert_eq!(turns.0.into_inner(), 8);
}

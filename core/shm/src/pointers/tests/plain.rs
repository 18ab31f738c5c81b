use std::cell::Cell;
use std::sync::atomic::AtomicU64 as Plain;
use std::thread;
use std::time::Duration;

use super::*;
use crate::parking::{Kernel, Parking};

/// Real futexes; counts what is to be told.
#[derive(Default)]
struct Counting {
    rings: Cell<u32>,
}

impl Parking for Counting {
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        deadline: Deadline,
    ) -> Result<Parked, FutexError> {
        Kernel.park(half, expected, deadline)
    }

    fn wake(&self, half: &AtomicU32, whom: Wake) -> Result<(), FutexError> {
        Kernel.wake(half, whom)
    }

    fn spin(&self, round: u32) -> bool {
        Kernel.spin(round)
    }
}

impl Turns for Counting {
    fn ring(&self) {
        self.rings.set(self.rings.get() + 1);
    }
}

/// The records of a test.
struct Table {
    head: PointersHead,
    records: Vec<PointerRecord>,
}

impl Table {
    fn new(records: usize) -> Self {
        let records = std::iter::repeat_with(PointerRecord::default).take(records).collect();
        Self { head: PointersHead::default(), records }
    }

    fn pointers(&self) -> Pointers<'_> {
        Pointers::new(&self.head, &self.records)
    }
}

fn terms(terms: Terms, after: Duration) -> Terms {
    Terms { deadline: Deadline::after(after), ..terms }
}

/// Makes what an owner held that died without a copy to roll back from.
fn die_dirty(pointers: Pointers<'_>, index: RecordIndex) {
    let record = pointers.of(index);
    let word = Word(record.word.load(Ordering::Relaxed));
    record.word.store(word.in_state(DIRTY).0, Ordering::SeqCst);
    record.owner.store(NOBODY_LIVING, Ordering::Release);
}

#[test]
fn a_record_is_claimed_once_and_all_of_them_can_be() {
    let table = Table::new(3);
    let pointers = table.pointers();
    let one = pointers.claim(owner(1), 2).unwrap();
    assert_eq!(one, RecordIndex(2));
    assert_eq!(pointers.claim(owner(1), 2), Some(RecordIndex(0)));
    assert_eq!(pointers.claim(owner(2), 7), Some(RecordIndex(1)));
    assert_eq!(pointers.claim(owner(2), 1), None);
    pointers.disclaim(one);
    assert_eq!(pointers.claim(owner(2), 0), Some(one));
    assert_eq!(pointers.end(), 3);
    assert!(PointerOwner::new(0).is_none() && PointerOwner::new(u32::MAX).is_none());
}

#[test]
fn readers_share_writers_do_not_and_neighbours_are_apart_to_the_byte() {
    let (table, turns) = (Table::new(8), Counting::default());
    let pointers = table.pointers();
    let claim = || pointers.claim(owner(1), 0).unwrap();
    let (a, b, c) = (claim(), claim(), claim());
    let take = |index, wanted| pointers.acquire(index, wanted, NO_WAIT, &turns);
    take(a, read(100, 50)).unwrap();
    take(b, read(100, 50)).unwrap();
    for taken in [write(149, 1), write(0, 101), write(0, u64::MAX), write(120, 1)] {
        assert!(matches!(take(c, taken), Err(PointerError::Busy)), "{taken:?}");
    }
    for free in [write(150, 1), write(0, 100), write(u64::MAX, 9), read(120, 1)] {
        take(c, free).unwrap();
        pointers.release(c, &turns).unwrap();
    }
    pointers.release(a, &turns).unwrap();
    assert!(matches!(take(c, write(120, 1)), Err(PointerError::Busy)), "b still reads");
    pointers.release(b, &turns).unwrap();
    take(c, write(120, 1)).unwrap();
    assert!(matches!(take(a, read(100, 50)), Err(PointerError::Busy)));
    pointers.begin_release(c).unwrap();
    assert!(matches!(take(a, read(100, 50)), Err(PointerError::Busy)), "until it is released");
    pointers.release(c, &turns).unwrap();
    assert!(matches!(pointers.release(c, &turns), Err(PointerError::NotHeld)));
    assert!(matches!(pointers.begin_release(c), Err(PointerError::NotHeld)));
    assert_eq!(turns.rings.get(), 0);
}

#[test]
fn waiting_ends_with_the_deadline_and_leaves_nothing() {
    let (table, turns) = (Table::new(4), Counting::default());
    let pointers = table.pointers();
    let claim = || pointers.claim(owner(1), 0).unwrap();
    let (a, b) = (claim(), claim());
    pointers.acquire(a, write(0, 8), WAITS, &turns).unwrap();
    let waits = terms(WAITS, Duration::from_millis(5));
    for wanted in [read(0, 8), write(4, 8)] {
        let waited = pointers.acquire(b, wanted, waits, &turns);
        assert!(matches!(waited, Err(PointerError::Timeout)), "{waited:?}");
    }
    pointers.release(a, &turns).unwrap();
    pointers.acquire(b, write(4, 8), NO_WAIT, &turns).unwrap();
}

#[test]
fn who_queues_is_told_when_it_has_its_turn_and_nobody_overtakes_it() {
    let (table, turns) = (Table::new(8), Counting::default());
    let pointers = table.pointers();
    let claim = || pointers.claim(owner(1), 0).unwrap();
    let (a, b, c, late) = (claim(), claim(), claim(), claim());
    let queue = |index, wanted| pointers.acquire(index, wanted, QUEUES, &turns);
    pointers.acquire(a, read(0, 8), NO_WAIT, &turns).unwrap();
    assert!(matches!(queue(b, write(0, 8)), Err(PointerError::Queued)));
    assert!(matches!(queue(c, write(0, 8)), Err(PointerError::Queued)));
    assert!(!pointers.ring_for(b) && !pointers.ring_for(c));
    let overtake = pointers.acquire(late, read(0, 9), NO_WAIT, &turns);
    assert!(matches!(overtake, Err(PointerError::Busy)), "behind the writers");
    assert_eq!(turns.rings.get(), 0);
    pointers.release(a, &turns).unwrap();
    assert_eq!(turns.rings.get(), 1);
    assert!(pointers.ring_for(b) && !pointers.ring_for(c));
    // It may take its time.
    let overtake = pointers.acquire(late, write(0, 1), NO_WAIT, &turns);
    assert!(matches!(overtake, Err(PointerError::Busy)));
    pointers.take_turn(b, write(0, 8), NO_WAIT, &turns).unwrap();
    assert!(matches!(
        pointers.take_turn(b, write(0, 8), NO_WAIT, &turns),
        Err(PointerError::NotHeld)
    ));
    let taken = pointers.take_turn(c, write(0, 8), QUEUES, &turns);
    assert!(matches!(taken, Err(PointerError::Queued)), "not its turn: it keeps its place");
    pointers.release(b, &turns).unwrap();
    assert!(pointers.ring_for(c));
    pointers.cancel(c, &turns).unwrap();
    assert!(matches!(pointers.cancel(c, &turns), Err(PointerError::NotHeld)));
    pointers.acquire(late, write(0, 1), NO_WAIT, &turns).unwrap();
}

#[test]
fn a_read_within_a_read_of_the_same_owner_does_not_wait_for_who_waits_for_that() {
    let (table, turns) = (Table::new(8), Counting::default());
    let pointers = table.pointers();
    let claim = |number| pointers.claim(owner(number), 0).unwrap();
    let (outer, inner, writer, other) = (claim(1), claim(1), claim(2), claim(3));
    pointers.acquire(outer, read(0, 100), NO_WAIT, &turns).unwrap();
    let queued = pointers.acquire(writer, write(50, 10), QUEUES, &turns);
    assert!(matches!(queued, Err(PointerError::Queued)));
    for (index, wanted) in [(inner, read(50, 51)), (other, read(50, 1)), (inner, write(50, 1))] {
        let refused = pointers.acquire(index, wanted, NO_WAIT, &turns);
        assert!(matches!(refused, Err(PointerError::Busy)), "{wanted:?}: {refused:?}");
    }
    pointers.acquire(inner, read(50, 50), WAITS, &turns).unwrap();
    pointers.release(outer, &turns).unwrap();
    assert!(!pointers.ring_for(writer));
    pointers.release(inner, &turns).unwrap();
    assert!(pointers.ring_for(writer));
}

#[test]
fn one_that_is_cancelled_lets_those_behind_it_go_on() {
    let (table, turns) = (Table::new(8), Counting::default());
    let pointers = table.pointers();
    let claim = |number| pointers.claim(owner(number), 0).unwrap();
    let (a, b, c) = (claim(1), claim(2), claim(3));
    pointers.acquire(a, read(0, 8), NO_WAIT, &turns).unwrap();
    let queue = |index, wanted| pointers.acquire(index, wanted, QUEUES, &turns);
    assert!(matches!(queue(b, write(0, 8)), Err(PointerError::Queued)));
    assert!(matches!(queue(c, read(0, 8)), Err(PointerError::Queued)), "behind the writer");
    pointers.cancel(b, &turns).unwrap();
    assert_eq!(turns.rings.get(), 1);
    assert!(pointers.ring_for(c), "beside the other reader");
}

#[test]
fn what_the_dead_left_half_written_is_refused_until_it_is_taken_as_it_is() {
    let (table, turns) = (Table::new(8), Counting::default());
    let pointers = table.pointers();
    let claim = |number| pointers.claim(owner(number), 0).unwrap();
    let (dead, a, part) = (claim(1), claim(2), claim(2));
    pointers.acquire(dead, write(100, 50), NO_WAIT, &turns).unwrap();
    die_dirty(pointers, dead);
    for wanted in [read(100, 1), write(149, 10), read(0, 101)] {
        let refused = pointers.acquire(a, wanted, WAITS, &turns);
        assert!(matches!(refused, Err(PointerError::OwnerDied)), "{wanted:?} {refused:?}");
    }
    pointers.acquire(a, write(150, 1), WAITS, &turns).unwrap();
    pointers.release(a, &turns).unwrap();
    assert_ne!(pointers.claim(owner(3), 0), Some(dead), "the mark stays");
    let takes = Terms { take_dirty: true, ..NO_WAIT };
    pointers.acquire(part, write(100, 49), takes, &turns).unwrap();
    pointers.clear_dirty(write(100, 49));
    pointers.release(part, &turns).unwrap();
    let refused = pointers.acquire(a, read(149, 1), WAITS, &turns);
    assert!(matches!(refused, Err(PointerError::OwnerDied)), "not all of it was made whole");
    pointers.acquire(a, write(0, 1000), takes, &turns).unwrap();
    let busy = pointers.acquire(part, read(100, 1), takes, &turns);
    assert!(matches!(busy, Err(PointerError::Busy)), "somebody has it: {busy:?}");
    pointers.clear_dirty(write(0, 1000));
    pointers.release(a, &turns).unwrap();
    pointers.acquire(a, read(100, 50), NO_WAIT, &turns).unwrap();
    assert_eq!(pointers.claim(owner(3), 0), Some(dead));
}

#[test]
fn whatever_somebody_scribbled_gives_an_answer() {
    let (table, turns) = (Table::new(4), Counting::default());
    let pointers = table.pointers();
    let own = pointers.claim(owner(1), 0).unwrap();
    let other = pointers.claim(owner(2), 1).unwrap();
    table.head.end.store(u32::MAX, Ordering::Relaxed);
    let soon = |of| terms(of, Duration::from_millis(1));
    for word in (0..8_u32).flat_map(|low| {
        (0..32).map(move |bit| 1 << bit | low).chain([low | 0x8, low | 0x18, !0x7 | low])
    }) {
        for (cell, bytes) in [(0, 8), (u64::MAX, u64::MAX), (4, 0)] {
            let record = pointers.of(other);
            record.cell.store(cell, Ordering::Relaxed);
            record.bytes.store(bytes, Ordering::Relaxed);
            record.word.store(word, Ordering::Relaxed);
            for terms in [soon(WAITS), soon(NO_WAIT)] {
                if pointers.acquire(own, write(0, 8), terms, &turns).is_ok() {
                    pointers.release(own, &turns).unwrap();
                }
            }
            let _ = pointers.acquire(own, read(0, 8), soon(QUEUES), &turns);
            let _ = (pointers.ring_for(own), pointers.ring_for(other));
            if pointers.take_turn(own, read(0, 8), soon(WAITS), &turns).is_ok() {
                pointers.release(own, &turns).unwrap();
            }
            let _ = (pointers.release(other, &turns), pointers.begin_release(other));
            pointers.clear_dirty(write(0, 8));
            pointers.of(own).word.store(0, Ordering::Relaxed);
        }
    }
    // Declared dead while it waited: its own steps change nothing.
    pointers.of(other).word.store(0, Ordering::Relaxed);
    pointers.acquire(own, write(0, 8), NO_WAIT, &turns).unwrap();
    pointers.of(own).word.store(0, Ordering::Relaxed);
    assert!(matches!(pointers.release(own, &turns), Err(PointerError::NotHeld)));
}

/// Threads take ranges of a row of cells in all ways; each cell knows who has it.
#[test]
fn threads_that_take_ranges_in_all_ways_exclude_each_other() {
    const THREADS: u32 = 6;
    const CELLS: u64 = 12;
    const ROUNDS: u32 = 1_500;
    const WAYS: [Terms; 4] = [WAITS, WAITS, NO_WAIT, QUEUES];
    let table = Table::new(THREADS as usize);
    // Writers in the high half, readers in the low.
    let cells: Vec<Plain> = (0..CELLS).map(|_| Plain::new(0)).collect();
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (table, cells) = (&table, &cells);
            scope.spawn(move || {
                let (pointers, turns) = (table.pointers(), Counting::default());
                let index = pointers.claim(owner(number + 1), number).unwrap();
                let mut seed = u64::from(number) * 0x9e37_79b9 + 1;
                for _ in 0..ROUNDS {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let cell = seed % CELLS;
                    let bytes = 1 + (seed >> 8) % (CELLS - cell);
                    let exclusive = (seed >> 16).is_multiple_of(3);
                    let wanted = Wanted { cell, bytes, exclusive };
                    let way = WAYS[usize::try_from((seed >> 20) % 4).unwrap()];
                    match pointers.acquire(index, wanted, way, &turns) {
                        Ok(()) => {}
                        Err(PointerError::Busy) => continue,
                        Err(PointerError::Queued) if (seed >> 24).is_multiple_of(2) => {
                            pointers.cancel(index, &turns).unwrap();
                            continue;
                        }
                        Err(PointerError::Queued) => {
                            pointers.take_turn(index, wanted, WAITS, &turns).unwrap();
                        }
                        Err(error) => panic!("{error}"),
                    }
                    hold(cells_of(cells, wanted), exclusive);
                    pointers.release(index, &turns).unwrap();
                }
            });
        }
    });
    assert!(
        table
            .records
            .iter()
            .all(|record| { Word(record.word.load(Ordering::Relaxed)).state() == FREE })
    );
}

fn hold(cells: &[Plain], exclusive: bool) {
    let one = if exclusive { 1 << 32 } else { 1 };
    for cell in cells {
        let before = cell.fetch_add(one, Ordering::Relaxed);
        assert!(before == 0 || (!exclusive && before < 1 << 32), "{before:#x}");
    }
    thread::yield_now();
    for cell in cells {
        cell.fetch_sub(one, Ordering::Relaxed);
    }
}

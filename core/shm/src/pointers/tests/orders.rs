//! In orders of steps that seeds give, with sleepers that nothing but a wake-up ends.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64 as Plain;

use super::*;
use crate::parking::Parking;
use crate::stepped::{Access, Part, interleave, step};

const SEEDS: u64 = 400;
const THREADS: u32 = 4;
const ROUNDS: u32 = 4;
const WAYS: [Terms; 3] = [WAITS, NO_WAIT, QUEUES];
/// Nobody takes so many steps of sleep while others go on.
const ASLEEP_MAX: u32 = 50_000;

/// A futex of steps; and who is to be told.
#[derive(Default)]
struct Steps {
    woken: Mutex<BTreeMap<usize, u64>>,
    rung: Plain,
}

struct Caller<'a> {
    steps: &'a Steps,
    heard: Cell<u64>,
}

fn place(half: &AtomicU32) -> usize {
    std::ptr::from_ref(half).addr()
}

impl Steps {
    fn woken(&self, half: &AtomicU32) -> u64 {
        self.woken.lock().unwrap().get(&place(half)).copied().unwrap_or_default()
    }
}

/// Steps until something is so.
fn sleep_until(is_so: impl Fn() -> bool) {
    let mut steps = 0;
    while !is_so() {
        step(Access::Load);
        steps += 1;
        assert!(steps < ASLEEP_MAX, "asleep for ever");
    }
}

impl Parking for Caller<'_> {
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        _deadline: Deadline,
    ) -> Result<Parked, FutexError> {
        // The look and the sleep are one step.
        let before = self.steps.woken(half);
        if half.load(Ordering::SeqCst) == expected {
            sleep_until(|| self.steps.woken(half) != before);
        }
        Ok(Parked::Awake)
    }

    fn wake(&self, half: &AtomicU32, _whom: Wake) -> Result<(), FutexError> {
        step(Access::Load);
        *self.steps.woken.lock().unwrap().entry(place(half)).or_default() += 1;
        Ok(())
    }

    fn spin(&self, _round: u32) -> bool {
        false
    }
}

impl Turns for Caller<'_> {
    fn ring(&self) {
        self.steps.rung.fetch_add(1, Ordering::SeqCst);
    }
}

impl Caller<'_> {
    /// Takes a queued record's turn, told by nothing but the bell.
    fn take_queued(&self, pointers: Pointers<'_>, index: RecordIndex, wanted: Wanted) {
        loop {
            let rung = self.steps.rung.load(Ordering::SeqCst);
            if pointers.ring_for(index) {
                return pointers.take_turn(index, wanted, WAITS, self).unwrap();
            }
            sleep_until(|| self.steps.rung.load(Ordering::SeqCst) != rung);
            self.heard.set(self.heard.get() + 1);
        }
    }
}

#[test]
fn in_every_order_holders_exclude_each_other_and_all_have_their_turn() {
    let told: u64 = (0..SEEDS).map(go_through).sum();
    assert!(told > SEEDS / 10, "{told} queued pointers were told of");
}

fn go_through(seed: u64) -> u64 {
    let head = PointersHead::default();
    let records: Vec<_> = (0..THREADS).map(|_| PointerRecord::default()).collect();
    let (pointers, steps) = (Pointers::new(&head, &records), Steps::default());
    let (cells, told) = ([(); 4].map(|()| Plain::new(0)), Plain::new(0));
    let part = |number: u32| -> Part<'_> {
        let (steps, cells, told) = (&steps, &cells, &told);
        let act = move || {
            let caller = Caller { steps, heard: Cell::new(0) };
            let mut chance = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            chance = (chance ^ u64::from(number) << 32) | 1;
            let index = pointers.claim(owner(number + 1), number).unwrap();
            for _ in 0..ROUNDS {
                chance ^= chance << 13;
                chance ^= chance >> 7;
                chance ^= chance << 17;
                go(&caller, (pointers, index), chance, cells);
            }
            told.fetch_add(caller.heard.get(), Ordering::Relaxed);
        };
        (None, Box::new(act))
    };
    interleave(seed * 2 + 1, (0..THREADS).map(part).collect());
    assert!(records.iter().all(|record| {
        let word = Word((*record.word).load(Ordering::Relaxed));
        word.state() == FREE
    }));
    told.into_inner()
}

fn go(
    caller: &Caller<'_>,
    (pointers, index): (Pointers<'_>, RecordIndex),
    chance: u64,
    cells: &[Plain; 4],
) {
    let cell = chance % 4;
    let wanted = Wanted {
        cell,
        bytes: 1 + (chance >> 8) % (4 - cell),
        exclusive: !(chance >> 16).is_multiple_of(3),
    };
    let terms = WAYS[usize::try_from((chance >> 24) % 3).unwrap()];
    match pointers.acquire(index, wanted, terms, caller) {
        Ok(()) => {}
        Err(PointerError::Busy) => return,
        Err(PointerError::Queued) if (chance >> 32).is_multiple_of(4) => {
            return pointers.cancel(index, caller).unwrap();
        }
        Err(PointerError::Queued) => caller.take_queued(pointers, index, wanted),
        Err(error) => panic!("{error}"),
    }
    let one = if wanted.exclusive { 1 << 32 } else { 1 };
    let range = cells_of(cells, wanted);
    for cell in range {
        let before = cell.fetch_add(one, Ordering::Relaxed);
        assert!(before == 0 || (!wanted.exclusive && before < 1 << 32), "{before:#x}");
    }
    step(Access::Load);
    if wanted.exclusive && (chance >> 40).is_multiple_of(2) {
        pointers.begin_release(index).unwrap();
    }
    for cell in range {
        cell.fetch_sub(one, Ordering::Relaxed);
    }
    pointers.release(index, caller).unwrap();
}

//! Two writers, a reader and the broker, step by step in orders that seeds give; a writer may die
//! anywhere.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::stepped::{Part, interleave};

const SEEDS: u64 = 150;
const WRITERS: usize = 2;
const WRITES: u64 = 2;

/// Says at the end of its thread, whichever end it is, that nothing of it can follow.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// What is known of a writer.
#[derive(Default)]
struct Known {
    ended: AtomicBool,
    repaired: AtomicBool,
    /// The last value whose write was acknowledged.
    acknowledged: std::sync::atomic::AtomicU64,
}

struct World {
    block: Block,
    batches: [Batch; WRITERS],
    known: [Known; WRITERS],
}

/// The value of a writer's write, which tells both.
const fn value(writer: usize, write: u64) -> u64 {
    100 * (writer as u64 + 1) + write
}

impl World {
    fn new(copies: usize) -> Self {
        let batch = |pages: Range<u64>| Batch {
            cell: pages.start * PAGE_BYTES,
            bytes: (pages.end - pages.start) * PAGE_BYTES,
            end: END,
        };
        let known = array::from_fn(|_| Known::default());
        // They have a page in common. With one copy it is all they write, since an undo buffer
        // holds no more.
        let batches = if copies == 1 { [1..2, 1..2] } else { [0..2, 1..3] };
        Self { block: Block::new(copies), batches: batches.map(batch), known }
    }

    fn write(&self, writer: usize) {
        let _ended = Ended(&self.known[writer].ended);
        for write in 1..=WRITES {
            let batch = self.batches[writer];
            let stores = Stores::new(&self.block, writer, batch, value(writer, write));
            // With one copy it has to save what it overwrites.
            let mut stores = Stores { saves: self.block.copies.len() == 1, ..stores };
            let written = self.block.write(writer, batch, &mut stores, Deadline::NEVER);
            written.expect("nothing is cut, and nobody waits for ever");
            self.known[writer].acknowledged.store(value(writer, write), Ordering::Release);
        }
    }

    fn read(&self, rounds: usize) {
        for round in 0..rounds {
            let (copy, page) = (round % self.block.copies.len(), round % PAGES);
            let Some(found) = self.block.read(copy, page) else { continue };
            assert_eq!(found, [found[0]; WORDS.len()], "a torn page was accepted");
        }
    }

    /// Repairs what the dead left, while the others go on.
    fn broker(&self, dies: [bool; WRITERS]) {
        let good: Vec<_> = (0..self.block.copies.len()).map(daemon).collect();
        while !self.known.iter().all(|known| known.repaired.load(Ordering::Relaxed)) {
            stepped::step(Access::Load);
            for (writer, known) in self.known.iter().enumerate() {
                if known.ended.load(Ordering::Acquire) && !known.repaired.load(Ordering::Relaxed) {
                    if dies[writer] {
                        self.block.repair(writer, &good);
                    }
                    known.repaired.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    fn check(&self, seed: u64) {
        for page in 0..PAGES {
            let number = page as u64;
            let found = self.block.read(0, page).expect("nobody writes it any more");
            assert_eq!(found, [found[0]; WORDS.len()], "seed {seed}: page {page} is torn");
            assert_eq!(self.block.locks[page].state(), LockState::Free, "seed {seed}");
            for copy in 1..self.block.copies.len() {
                assert_eq!(self.block.page(copy, page), found, "seed {seed}: copies differ");
            }
            self.check_value(seed, number, found[0]);
        }
    }

    /// The value of a page is the last acknowledged one of somebody, or a later one that was not.
    fn check_value(&self, seed: u64, page: u64, found: u64) {
        let writers = (0..WRITERS).filter(|writer| self.batches[*writer].pages().contains(&page));
        let acknowledged: Vec<u64> = writers
            .clone()
            .map(|writer| self.known[writer].acknowledged.load(Ordering::Acquire))
            .collect();
        let of_writer = |writer: usize| {
            let last = self.known[writer].acknowledged.load(Ordering::Acquire);
            (last.max(value(writer, 1))..=value(writer, WRITES)).contains(&found)
        };
        let is_old = found == OLD && acknowledged.iter().all(|last| *last == 0);
        assert!(is_old || writers.clone().any(of_writer), "seed {seed}: page {page} is {found}");
    }
}

fn explore(copies: usize, seed: u64) -> Vec<bool> {
    let world = World::new(copies);
    // Each writer makes some 60 stores with two copies; about half of them die.
    let dies_after = |shift: u32| {
        let number = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> shift & 0x7f;
        (number < 64).then_some(number)
    };
    let lives = [dies_after(20), dies_after(40)];
    let dies = lives.map(|stores| stores.is_some());
    let world = &world;
    let writer =
        |writer: usize| -> Part<'_> { (lives[writer], Box::new(move || world.write(writer))) };
    let parts = vec![
        writer(0),
        writer(1),
        (None, Box::new(move || world.read(12))),
        (None, Box::new(move || world.broker(dies))),
    ];
    let ended = interleave(seed.wrapping_mul(0xd134_2543_de82_ef95), parts);
    world.check(seed);
    ended
}

#[test]
fn in_any_order_of_steps_readers_see_whole_pages_and_no_acknowledged_write_is_lost() {
    let mut deaths = 0;
    for seed in 1..=SEEDS {
        for copies in 1..=3 {
            deaths += explore(copies, seed).into_iter().filter(|died| *died).count();
        }
    }
    assert!(deaths > 100, "{deaths} writers died");
}

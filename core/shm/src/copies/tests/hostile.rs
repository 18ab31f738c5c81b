//! Whatever a client stored, repair changes nothing but what its dead slot held.

use super::*;
use crate::lock::{Left, LockBits};
use crate::slot::intent::Progress;

const SEEDS: u64 = 20_000;

/// A random number for each call.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 20) % limit
    }

    /// A half of a lock word: mostly of an owner that there is, with any flags.
    fn half(&mut self) -> u64 {
        let clients = [owner(0), owner(1)].map(|owner| LockBits::held(owner).word());
        let owner = [0, clients[0], clients[0], clients[1], self.next() & 0xffff_ffff];
        let flags = [0, 0, 1 << 28, 1 << 29, 1 << 30, 1 << 31, 7 << 29];
        let any = |random: &mut Self, of: &[u64]| {
            of[usize::try_from(random.below(of.len() as u64)).unwrap()]
        };
        any(self, &owner) | any(self, &flags)
    }

    fn claim(&mut self) -> (IntentClaim, u64) {
        let places = [0, 8, 4088, PAGE_BYTES, END - 8, END, u64::MAX, self.below(END)];
        let place = |random: &mut Self| places[usize::try_from(random.below(8)).unwrap()];
        let (cell, bytes) = (place(self), place(self));
        let first = u32::try_from(self.below(5)).unwrap();
        let undo = if self.below(2) == 0 { Undo::Saved } else { Undo::Absent };
        let progress = match self.below(6) {
            0 => Progress::Settled,
            1 => Progress::First { first, undo },
            2 => Progress::Others { first, undo },
            3 => Progress::Alone { first, undo },
            4 => Progress::Pages { first },
            _ => Progress::Nonsense,
        };
        (IntentClaim { addr: BASE.wrapping_add(cell), bytes, progress }, cell)
    }
}

/// All that there is of a block: the words of its locks, and the bytes of its copies.
fn picture(block: &Block) -> (Vec<u64>, Vec<Page>) {
    let pages = |copy| (0..PAGES).map(move |page| block.page(copy, page));
    let bytes = (0..block.copies.len()).flat_map(pages).collect();
    (block.locks.iter().map(PageLock::word).collect(), bytes)
}

#[test]
fn repair_changes_nothing_but_pages_of_the_intent_that_the_dead_held() {
    let (mut done, mut refused) = (0, 0);
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let block = Block::new(3);
        for (page, lock) in block.locks.iter().enumerate() {
            lock.set_word(random.below(4) << 32 | random.half());
            for copy in &block.copies {
                copy[page].iter().for_each(|word| word.store(random.next(), Ordering::Relaxed));
            }
        }
        let (claim, cell) = random.claim();
        let Some(wreck) = Wreck::new(owner(0), &claim, cell, END) else {
            refused += 1;
            continue;
        };
        assert!(cell + claim.bytes <= END && claim.bytes > 0, "seed {seed}");
        let good: Vec<_> = (0..3).filter(|_| random.below(3) > 0).map(daemon).collect();
        let before = picture(&block);
        // The undo buffer is found by the slot's own claim.
        let slot = &block.clients[0].slot;
        slot.claim_for_test(claim.addr, claim.bytes);
        let repaired = repair(&wreck, &good, &mut Table { block: &block, client: 0 }).unwrap();
        done += 1;

        let batch = Batch { cell, bytes: claim.bytes, end: END };
        let after = picture(&block);
        let mut held = 0;
        for page in 0..PAGES {
            let bits = LockBits::of_word(before.0[page]);
            let is_held =
                batch.pages().contains(&(page as u64)) && bits.taken_over(owner(0)).is_some();
            held += u32::from(is_held);
            if is_held {
                let left =
                    if repaired.lost.contains(&(page as u64)) { Left::Lost } else { Left::Whole };
                let given = bits.taken_over(owner(0)).unwrap().released(left).unwrap();
                assert_eq!(after.0[page], given.word(), "seed {seed}");
            } else {
                assert_eq!(after.0[page], before.0[page], "seed {seed}: the word of page {page}");
            }
            for copy in 0..3 {
                let place = copy * PAGES + page;
                let is_good = good.contains(&daemon(copy));
                let is_torn = bits.condition() == PageCondition::Torn;
                for (word, offset) in WORDS.into_iter().enumerate() {
                    let cell = page as u64 * PAGE_BYTES + offset;
                    let may_change = is_held && is_torn && is_good && cells(batch).contains(&cell);
                    let is_same = after.1[place][word] == before.1[place][word];
                    assert!(may_change || is_same, "seed {seed}: copy {copy}, page {page}");
                }
            }
        }
        assert_eq!(repaired.held, held, "seed {seed}");
    }
    assert!(done > SEEDS / 8 && refused > SEEDS / 8, "{done} repaired, {refused} refused");
}

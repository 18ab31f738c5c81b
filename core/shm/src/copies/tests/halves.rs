//! Writes to one copy alone, and to all of pages whose copies differ: the writer dies before each
//! of its stores.

use super::*;
use crate::stepped::{End, run};

/// What one half was given before.
const OTHER: u64 = 77;
const COPIES: usize = 2;
/// Where a write that nobody stops ends, it has been stopped everywhere.
const STORES_MAX: u64 = 200;

fn batch(cell: u64, bytes: u64) -> Batch {
    Batch { cell, bytes, end: END }
}

/// Writes to one half, or to all, until the writer dies. None if it did.
fn write(block: &Block, batch: Batch, alone: Option<usize>, stores_left: u64) -> Option<()> {
    let mut stores = Stores { alone, ..Stores::new(block, 0, batch, NEW) };
    let write = || block.write(0, batch, &mut stores, Deadline::PASSED);
    match run(Some(stores_left), write) {
        End::Dead => None,
        End::Done(written, _) => {
            written.expect("nothing is in the way");
            Some(())
        }
    }
}

/// Each copy's page, which has its old bytes, or the new ones in all of the batch.
fn written(block: &Block, page: usize, batch: Batch, old: [u64; COPIES]) -> [bool; COPIES] {
    std::array::from_fn(|copy| {
        let found = block.page(copy, page);
        let mut new = [old[copy]; WORDS.len()];
        words(cells(batch)).filter(|at| at.0 == page).for_each(|at| new[at.1] = NEW);
        assert!(found == new || found == [old[copy]; WORDS.len()], "copy {copy}: {found:?}");
        found == new
    })
}

fn is_detached(block: &Block, page: usize) -> bool {
    let lock = &block.locks[page];
    assert_eq!((lock.state(), lock.condition()), (LockState::Free, PageCondition::Whole));
    lock.is_detached()
}

/// A block of which one half has other bytes in the first page.
fn detached(half: usize) -> Block {
    let block = Block::new(COPIES);
    let all = batch(0, PAGE_BYTES);
    let mut stores = Stores { alone: Some(half), ..Stores::new(&block, 1, all, OTHER) };
    block.write(1, all, &mut stores, Deadline::PASSED).unwrap();
    block
}

#[test]
fn a_write_to_one_half_is_there_as_a_whole_or_not_at_all_and_never_in_the_other() {
    for half in 0..COPIES {
        for batch in [batch(0, 8), batch(2048, 2048), batch(0, PAGE_BYTES), batch(4088, 8)] {
            for stores_left in 0.. {
                assert!(stores_left < STORES_MAX, "a write that does not end");
                let block = Block::new(COPIES);
                let done = write(&block, batch, Some(half), stores_left);
                block.repair(0, &[daemon(0), daemon(1)]);
                let has = written(&block, 0, batch, [OLD; COPIES]);
                assert!(!has[1 - half], "the other half was written");
                assert!(done.is_none() || has[half], "it was acknowledged");
                assert!(!has[half] || is_detached(&block, 0), "the halves differ");
                if done.is_some() {
                    break;
                }
            }
        }
    }
}

/// What is left has its own old bytes, or the new ones, or says that it is lost: never those of the
/// half that went.
#[test]
fn a_half_that_is_left_is_not_rolled_back_to_what_the_other_was() {
    let batch = batch(0, 8);
    let mut lost = 0;
    for stores_left in 0.. {
        assert!(stores_left < STORES_MAX, "a write that does not end");
        let block = detached(0);
        let done = write(&block, batch, None, stores_left);
        block.repair(0, &[daemon(1)]);
        if block.locks[0].state() == LockState::Lost {
            lost += 1;
            continue;
        }
        let found = block.page(1, 0);
        let mut new = [OLD; WORDS.len()];
        words(cells(batch)).for_each(|at| new[at.1] = NEW);
        assert!(found == new || found == [OLD; WORDS.len()], "{stores_left}: {found:?}");
        if done.is_some() {
            break;
        }
    }
    assert!(lost > 0, "it is half written at some time");
}

#[test]
fn a_write_to_both_halves_that_differ_leaves_each_as_it_was_or_both_written() {
    for half in 0..COPIES {
        for batch in [batch(0, 8), batch(2048, 2048), batch(0, PAGE_BYTES)] {
            for stores_left in 0.. {
                assert!(stores_left < STORES_MAX, "a write that does not end");
                let block = detached(half);
                let done = write(&block, batch, None, stores_left);
                block.repair(0, &[daemon(0), daemon(1)]);
                let old = std::array::from_fn(|copy| if copy == half { OTHER } else { OLD });
                let has = written(&block, 0, batch, old);
                assert_eq!(has[0], has[1], "one half is ahead");
                assert!(done.is_none() || has[0], "it was acknowledged");
                // Only who has written all of a page has ended the difference.
                let is_even = block.page(0, 0) == block.page(1, 0);
                assert!(is_even || is_detached(&block, 0), "they differ, and nobody says so");
                if done.is_some() {
                    assert_eq!(is_detached(&block, 0), batch.bytes < PAGE_BYTES);
                    break;
                }
            }
        }
    }
}

//! What a plain pointer of the dead stored, and a broker that dies before each of its stores.

use super::*;
use crate::slot::intent::Progress;
use crate::stepped::{End, run};

/// The intent of the broker, and what it does by that.
fn carry_all(block: &Block, copies: &[DaemonId]) -> Result<Carried, RepairError<()>> {
    let claim = IntentClaim { addr: BASE, bytes: END, progress: Progress::Settled };
    let wreck = Wreck::new(owner(0), &claim, 0, END).unwrap().brought_from(copies[0]);
    carry(&wreck, copies, &mut Table { block, client: 0 })
}

/// A pointer has stored to the first copy.
fn stored(copies: usize) -> (Block, Vec<DaemonId>) {
    let block = Block::new(copies);
    for (page, word) in words(0..END) {
        block.copies[0][page][word].store(NEW, Ordering::Relaxed);
    }
    (block, (0..copies).map(daemon).collect())
}

fn is_free(block: &Block, page: usize) -> bool {
    let lock = &block.locks[page];
    (lock.state(), lock.condition()) == (LockState::Free, PageCondition::Whole)
}

#[test]
fn whenever_a_broker_dies_the_next_one_brings_it_to_its_end() {
    for copies in 1..=3 {
        for stores_left in 0.. {
            let (block, good) = stored(copies);
            let end = run(Some(stores_left), || carry_all(&block, &good));
            // The intent is there all the time: what the next one finds is the wreck of a slot.
            let claim =
                IntentClaim { addr: BASE, bytes: END, progress: Progress::Pages { first: 1 } };
            let wreck = Wreck::new(owner(0), &claim, 0, END).unwrap();
            repair(&wreck, &good, &mut Table { block: &block, client: 0 }).unwrap();
            assert!((0..PAGES).all(|page| is_free(&block, page)), "{stores_left}");
            // What was not begun is as it was; and it is carried by the next broker.
            assert!(matches!(carry_all(&block, &good), Ok(Carried::Done(_))));
            for (copy, page) in (0..copies).flat_map(|copy| (0..PAGES).map(move |p| (copy, p))) {
                assert_eq!(block.page(copy, page), [NEW; WORDS.len()], "{stores_left}");
            }
            assert!((0..PAGES).all(|page| is_free(&block, page)), "{stores_left}");
            if let End::Done(carried, _) = end {
                assert!(matches!(carried, Ok(Carried::Done(_))));
                break;
            }
        }
    }
}

#[test]
fn a_broker_that_dies_and_the_copy_that_it_brought_along_leave_no_page_half_written_or_lost() {
    for copies in 2..=3 {
        for stores_left in 0.. {
            let (block, good) = stored(copies);
            let end = run(Some(stores_left), || carry_all(&block, &good));
            let claim =
                IntentClaim { addr: BASE, bytes: END, progress: Progress::Pages { first: 1 } };
            let wreck = Wreck::new(owner(0), &claim, 0, END).unwrap();
            repair(&wreck, &good[1..], &mut Table { block: &block, client: 0 }).unwrap();
            for page in 0..PAGES {
                assert!(is_free(&block, page), "{stores_left}");
                let left = block.page(1, page);
                let of = |value| left == [value; WORDS.len()];
                assert!(of(OLD) || of(NEW), "{stores_left}: {left:?}");
                assert!((2..copies).all(|copy| block.page(copy, page) == left), "{stores_left}");
            }
            if let End::Done(..) = end {
                break;
            }
        }
    }
}

#[test]
fn a_page_that_is_held_ends_it_and_those_before_are_given_back() {
    let (block, good) = stored(2);
    block.locks[2].try_lock(owner(1)).unwrap();
    assert!(matches!(carry_all(&block, &good), Ok(Carried::Busy { page: 2 })));
    assert!(is_free(&block, 0) && is_free(&block, 1));
    assert_eq!(block.locks[2].state(), LockState::Held(owner(1)));
    assert_eq!(block.page(1, 0), [OLD; WORDS.len()]);
}

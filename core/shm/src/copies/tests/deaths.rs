//! A writer that dies before each of its stores, and a broker that does.

use super::*;
use crate::lock::LockError;
use crate::stepped::{End, run};

/// What is written, and what happens beside it.
#[derive(Clone, Debug)]
struct Case {
    copies: usize,
    batch: Batch,
    saves: bool,
    /// A copy that the writer cannot reach.
    cut: Option<(usize, Fate)>,
    /// A copy that goes after the writer's death.
    lost: Option<usize>,
}

fn batches() -> [Batch; 4] {
    [(0, 8), (2048, 2048), (0, END), (4088, 4104)].map(|(cell, bytes)| Batch {
        cell,
        bytes,
        end: END,
    })
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for batch in batches() {
        for copies in 1..=3 {
            let saves: &[bool] = if batch.bytes <= PAGE_BYTES { &[false, true] } else { &[false] };
            let cuts = (0..copies).flat_map(|copy| {
                [Fate::Dropped, Fate::Back, Fate::Undecided].map(|fate| Some((copy, fate)))
            });
            for (cut, saves) in
                cuts.chain([None]).flat_map(|cut| saves.iter().map(move |s| (cut, *s)))
            {
                for lost in (0..copies).map(Some).chain([None]) {
                    cases.push(Case { copies, batch, saves, cut, lost });
                }
            }
        }
    }
    cases
}

impl Case {
    fn stores<'a>(&self, block: &'a Block) -> Stores<'a> {
        let stores = Stores::new(block, 0, self.batch, NEW);
        Stores { saves: self.saves, cut: self.cut, ..stores }
    }

    /// The copies that are good when the repair begins.
    fn good(&self, writer_has: &[usize]) -> Vec<DaemonId> {
        let is_good = |copy: &&usize| Some(**copy) != self.lost;
        writer_has.iter().filter(is_good).map(|copy| daemon(*copy)).collect()
    }

    /// Whether something is left that the pages can be made whole from, whenever the writer died.
    fn can_be_whole(&self, writer_has: &[usize]) -> bool {
        let is_alone = writer_has.len() == 1;
        let has_lost = self.lost.is_some_and(|lost| writer_has.contains(&lost));
        let is_left = !self.good(writer_has).is_empty();
        // The last copy that is left is saved before it is written.
        let is_last = self.copies > 1 && is_alone && self.batch.bytes <= PAGE_BYTES;
        is_left && (self.saves || is_last || !(is_alone || has_lost))
    }

    fn check(&self, block: &Block, good: &[DaemonId], is_acknowledged: bool, may_be_lost: bool) {
        assert_eq!(block.claim(0), None, "{self:?}");
        for page in 0..PAGES {
            let lock = &block.locks[page];
            let is_lost = lock.state() == LockState::Lost;
            assert!(is_lost || lock.state() == LockState::Free, "{self:?}");
            assert_eq!(lock.condition() == PageCondition::Torn, is_lost, "{self:?}");
            assert!(!is_lost || (may_be_lost && !is_acknowledged), "page {page}: {self:?}");
            if !is_lost {
                self.check_page(block, page, good, is_acknowledged);
            }
        }
    }

    fn check_page(&self, block: &Block, page: usize, good: &[DaemonId], is_acknowledged: bool) {
        let Some(first) = good.first() else { return };
        let found = block.read(copy_of(*first), page).expect("the page is whole");
        let mut new = [OLD; WORDS.len()];
        words(cells(self.batch)).filter(|at| at.0 == page).for_each(|at| new[at.1] = NEW);
        let is_old = found == [OLD; WORDS.len()] && !is_acknowledged;
        assert!(found == new || is_old, "page {page} is {found:?}: {self:?}");
        for copy in good {
            assert_eq!(block.page(copy_of(*copy), page), found, "copies differ: {self:?}");
        }
    }

    /// Writes until the writer dies. None if it came to its end before that.
    fn write(&self, block: &Block, stores_left: u64) -> (Vec<usize>, Option<bool>) {
        let mut stores = self.stores(block);
        let written =
            run(Some(stores_left), || block.write(0, self.batch, &mut stores, Deadline::PASSED));
        let done = match written {
            End::Dead | End::Done(Err(WriteError::Abandoned(_)), _) => None,
            End::Done(written, _) => Some(written.is_ok()),
        };
        (stores.copies, done)
    }
}

/// Where a write that nobody stops ends, it has been stopped everywhere.
const STORES_MAX: u64 = 200;

#[test]
fn whenever_a_writer_dies_the_copies_are_equal_and_whole_after_repair() {
    for case in cases() {
        for stores_left in 0.. {
            assert!(stores_left < STORES_MAX, "a write that does not end");
            let block = Block::new(case.copies);
            let (writer_has, done) = case.write(&block, stores_left);
            let good = case.good(&writer_has);
            let may_be_lost = !case.can_be_whole(&writer_has);
            block.repair(0, &good);
            case.check(&block, &good, done == Some(true), may_be_lost);
            // What nothing more can happen to was stopped after every store.
            let is_abandoned = matches!(case.cut, Some((_, Fate::Undecided)));
            if done.is_some() || (is_abandoned && stores_left > 100) {
                break;
            }
        }
    }
}

#[test]
fn whenever_the_broker_dies_over_a_repair_the_next_one_ends_it() {
    for case in cases().into_iter().filter(|case| case.cut.is_none()) {
        for stores_left in 0.. {
            let mut is_over = false;
            for repair_left in 0.. {
                let block = Block::new(case.copies);
                let (writer_has, done) = case.write(&block, stores_left);
                let good = case.good(&writer_has);
                let ended = run(Some(repair_left), || block.repair(0, &good));
                block.repair(0, &good);
                let may_be_lost = !case.can_be_whole(&writer_has);
                case.check(&block, &good, done == Some(true), may_be_lost);
                is_over = done.is_some();
                if ended != End::Dead {
                    break;
                }
            }
            if is_over {
                break;
            }
        }
    }
}

/// Another client goes on with the pages that the first broker gave back, before the second one
/// comes.
#[test]
fn a_repair_that_is_done_again_touches_nothing_that_was_given_back() {
    let batch = Batch { cell: 0, bytes: END, end: END };
    let case = Case { copies: 2, batch, saves: false, cut: None, lost: None };
    let mut written_between = 0;
    for repair_left in 0..40 {
        let block = Block::new(case.copies);
        // In the middle of the first copy.
        let (writer_has, done) = case.write(&block, 20);
        assert_eq!(done, None);
        let good = case.good(&writer_has);
        run(Some(repair_left), || block.repair(0, &good));
        let mut values = [OLD; PAGES];
        for (page, value) in values.iter_mut().enumerate() {
            let batch = Batch { cell: page as u64 * PAGE_BYTES, bytes: PAGE_BYTES, end: END };
            let mut stores = Stores::new(&block, 1, batch, 7);
            if block.write(1, batch, &mut stores, Deadline::PASSED).is_ok() {
                *value = 7;
                written_between += 1;
            }
        }
        block.repair(0, &good);
        for (page, value) in values.into_iter().enumerate() {
            for copy in 0..case.copies {
                assert_eq!(block.read(copy, page), Some([value; WORDS.len()]), "{repair_left}");
            }
        }
    }
    assert!(written_between > PAGES, "some pages were given back in between");
}

/// Nobody else has written since, and nothing tells which pages the dead held.
#[test]
fn without_the_lock_table_the_copies_are_equal_as_well() {
    for case in cases() {
        for stores_left in 0..STORES_MAX {
            let block = Block::new(case.copies);
            let (writer_has, done) = case.write(&block, stores_left);
            let good = case.good(&writer_has);
            let Some(claim) = block.claim(0) else {
                if done.is_some() {
                    break;
                }
                continue;
            };
            let wreck = Wreck::new(owner(0), &claim, claim.addr - BASE, END).unwrap();
            let lost = level(&wreck, &good, &mut Table { block: &block, client: 0 }).unwrap();
            assert!(lost.is_empty() || !case.can_be_whole(&writer_has), "{case:?}");
            for page in (0..PAGES).filter(|page| !lost.contains(&(*page as u64))) {
                let first = good.first().map(|copy| block.page(copy_of(*copy), page));
                for copy in &good {
                    let found = Some(block.page(copy_of(*copy), page));
                    assert_eq!(found, first, "copies differ: {case:?}");
                }
            }
        }
    }
}

/// Of one copy without undo a page is lost, and only who writes all of it makes it whole.
#[test]
fn a_lost_page_is_told_to_readers_and_writers_until_it_is_written_again() {
    let whole = Batch { cell: 0, bytes: PAGE_BYTES, end: END };
    let part = Batch { cell: 8, bytes: PAGE_BYTES - 8, end: END };
    let case = Case { copies: 1, batch: whole, saves: false, cut: None, lost: None };
    let block = Block::new(1);
    let lost = (0..STORES_MAX).find(|stores_left| {
        let block = Block::new(1);
        case.write(&block, *stores_left);
        block.repair(0, &[daemon(0)]).is_some_and(|repaired| repaired.lost == [0])
    });
    case.write(&block, lost.expect("it was being written once"));
    let repaired = block.repair(0, &[daemon(0)]).unwrap();
    assert_eq!((repaired.held, repaired.restored, repaired.lost), (1, 0, vec![0]));
    assert_eq!(block.read(0, 0), None);
    assert!(block.locks[0].is_lost());

    let write = |client, batch, stores_left| {
        let mut stores = Stores { saves: true, ..Stores::new(&block, client, batch, 3) };
        run(stores_left, || block.write(client, batch, &mut stores, Deadline::PASSED))
    };
    let refused = write(1, part, None);
    assert!(matches!(refused, End::Done(Err(WriteError::Lock(LockError::Lost)), _)), "{refused:?}");
    assert!(block.locks[0].is_lost());
    // Whoever dies over writing all of it leaves it lost.
    for stores_left in 0..STORES_MAX {
        if !matches!(write(2, whole, Some(stores_left)), End::Dead) {
            break;
        }
        block.repair(2, &[daemon(0)]);
        assert!(block.locks[0].is_lost() || block.read(0, 0) == Some([3; WORDS.len()]));
    }
    assert_eq!(block.read(0, 0), Some([3; WORDS.len()]));
    assert_eq!(block.locks[0].state(), LockState::Free);
}

/// Its copies differ, and nothing says which is right.
#[test]
fn whenever_who_calls_a_page_lost_dies_it_is_so_or_as_it_was() {
    let batch = Batch { cell: 0, bytes: PAGE_BYTES, end: END };
    let mut left_lost = [0, 0];
    for stores_left in 0.. {
        assert!(stores_left < STORES_MAX, "it does not end");
        let block = Block::new(2);
        block.copies[1][0][0].store(NEW, Ordering::Relaxed);
        let ended = run(Some(stores_left), || {
            let _operation = block.begin(0);
            block.writer(0, Deadline::PASSED).hold(batch, || block.locks[0].lose())
        });
        block.repair(0, &[daemon(0), daemon(1)]);
        let lock = &block.locks[0];
        let is_lost = lock.state() == LockState::Lost;
        assert!(is_lost || lock.state() == LockState::Free);
        assert_eq!((block.read(0, 0).is_none(), lock.is_lost()), (is_lost, is_lost));
        let copies = [0, 1].map(|copy| block.page(copy, 0));
        assert_eq!(copies, [[OLD; WORDS.len()], [NEW, OLD, OLD]], "nothing is stored");
        assert_eq!(block.claim(0), None);
        left_lost[usize::from(is_lost)] += 1;
        if !matches!(ended, End::Dead) {
            assert!(is_lost, "it came to its end");
            break;
        }
    }
    assert!(left_lost.iter().all(|times| *times > 2), "{left_lost:?}");
}

//! What happens between two steps of a scrub.

use std::fs;
use std::os::fd::AsFd;

use dmce_abi::name::ObjectKind;
use dmce_shm::session::pin::PinnedRange;
use dmce_shm::table::{TABLE_HEADER_BYTES, word_offset};
use dmce_sys::object;

use super::differing::{mend, right_of};
use super::*;
use crate::store::tests::scrub::rig::{BYTES, PAGES, Rig, addr, cell};

const PAGE: u64 = 8;
const WRITTEN: [u8; 4096] = [5; 4096];

/// What comes of a page that was seen to differ, of a block whose pages were all seen before, when
/// something happens then.
fn resolved(rig: &mut Rig, then: impl FnOnce()) -> Result<Seen, Failure> {
    assert_eq!(rig.write(PAGE, &WRITTEN), Status::Ok);
    assert_eq!(rig.scrub(), ScrubFound::default());
    rig.flip(2, PAGE);
    let (folder, block) = (Arc::clone(&rig.store.folder), rig.at(0).block);
    let quiet = mem::take(&mut rig.store.blocks.get_mut(&block).unwrap().quiet);
    let done = rig.store.at_desk(block, |desk| {
        let mut scrub = Scrub::begin(desk, (&folder, &quiet), (block, PAGES))?;
        scrub.pointers = scrub.find_pointers();
        assert_eq!(scrub.look(scrub.batch_of(PAGE))?, [Seen::Differing]);
        then();
        scrub.resolve(PAGE)
    });
    done?.0
}

#[test]
fn a_page_that_differs_is_repaired_if_nothing_happens() {
    let mut rig = Rig::new(&[1, 2]);
    assert!(matches!(resolved(&mut rig, || ()), Ok(Seen::Repaired(..))));
    assert_eq!(rig.page_of(2, PAGE), WRITTEN);
}

#[test]
fn a_pointer_that_was_taken_after_the_look_explains_what_the_copies_have_by_then() {
    let mut rig = Rig::new(&[1, 2]);
    let (_object, map) = rig.session();
    let range = PinnedRange { addr: addr(PAGE), bytes: 8, writable: true };
    let pin = || drop(map.take_pin(range).unwrap());
    assert!(matches!(resolved(&mut rig, pin), Ok(Seen::Pinned)));
    assert_ne!(rig.page_of(2, PAGE), WRITTEN);
}

#[test]
fn a_page_that_was_detached_taken_or_lost_after_the_look_is_left() {
    let half_and_sequence = |half: u64, sequence: u64| sequence << 32 | half;
    for (word, seen) in [
        (half_and_sequence(1 << 28, 2), Seen::Detached),
        (half_and_sequence(77 << 8, 2), Seen::Busy),
        (half_and_sequence(0, 3), Seen::Busy),
        (half_and_sequence(1 << 29, 3), Seen::Lost),
    ] {
        let mut rig = Rig::new(&[1, 2]);
        let table = rig.table();
        let set = || {
            let at = word_offset(cell(PAGE));
            object::write_at(table.as_fd(), &word.to_le_bytes(), at).unwrap();
        };
        assert_eq!(resolved(&mut rig, set).unwrap(), seen);
        assert_ne!(rig.page_of(2, PAGE), WRITTEN);
    }
}

#[test]
fn a_page_that_is_equal_by_then_is_checked() {
    let mut rig = Rig::new(&[1, 2]);
    let data = rig.data(2);
    let set = || object::write_at(data.as_fd(), &WRITTEN, cell(PAGE)).unwrap();
    assert!(matches!(resolved(&mut rig, set), Ok(Seen::Equal(..))));
}

/// What the page is by then may have been written without one of the copies.
#[test]
fn nothing_is_judged_when_the_copies_are_others_by_then() {
    let mut rig = Rig::new(&[1, 2]);
    let seat = rig.seat();
    let publish = || seat.publish(1).unwrap();
    assert!(matches!(resolved(&mut rig, publish), Err(Failure::Busy(_))));
    let mut rig = Rig::new(&[1, 2]);
    let header = rig.fixture.path_at(2, ObjectKind::Header(1));
    let remove = || fs::remove_file(header).unwrap();
    assert!(matches!(resolved(&mut rig, remove), Err(Failure::Busy(_))));
    assert_ne!(rig.page_of(2, PAGE), WRITTEN);
}

/// The bytes that are there again are zeros, and nobody's: they must not make a page lost.
#[test]
fn nothing_is_judged_by_a_copy_that_was_cut_and_made_longer_again() {
    for harmed in [1, 2] {
        let mut rig = Rig::new(&[1, 2]);
        let data = rig.data(harmed);
        let cut = || {
            object::truncate(data.as_fd(), cell(PAGE)).unwrap();
            object::truncate(data.as_fd(), BYTES).unwrap();
        };
        assert!(matches!(resolved(&mut rig, cut), Err(Failure::Damaged(_))));
        assert_eq!(rig.word(PAGE), (0, 2), "and the lock is given back");
    }
}

/// A lock that is taken where the table was cut keeps nobody out.
#[test]
fn nothing_is_judged_under_a_lock_table_that_is_gone() {
    let mut rig = Rig::new(&[1, 2]);
    let table = rig.table();
    let cut = || object::truncate(table.as_fd(), TABLE_HEADER_BYTES).unwrap();
    assert_eq!(resolved(&mut rig, cut).unwrap(), Seen::Busy);
    assert_ne!(rig.page_of(2, PAGE), WRITTEN);
}

#[test]
fn a_part_in_which_a_copy_was_cut_and_made_longer_again_counts_nothing() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), ScrubFound::default());
    let (folder, block) = (Arc::clone(&rig.store.folder), rig.at(0).block);
    let (data, quiet) = (rig.data(2), Quiet::default());
    let done = rig.store.at_desk(block, |desk| {
        let mut scrub = Scrub::begin(desk, (&folder, &quiet), (block, PAGES))?;
        // All of it was zeros before.
        object::truncate(data.as_fd(), cell(PAGE)).unwrap();
        object::truncate(data.as_fd(), BYTES).unwrap();
        Ok::<_, Failure>(scrub.go(0..PAGES))
    });
    let failed = matches!(done, Ok((Ok((_, Some(Failure::Damaged(_)))), Table::Whole)));
    assert!(failed, "{done:?}");
}

#[test]
fn what_was_done_before_a_part_failed_is_told_and_what_was_seen_is_not() {
    let found = ScrubFound { checked: 5, repaired: 1, quarantined: 2, ..ScrubFound::default() };
    let part = Scrubbed { bytes: 8 * 4096, found, seen: (7, vec![(3, None)]), failure: None };
    let told = part.in_doubt();
    let done = ScrubFound { busy: 5, repaired: 1, quarantined: 2, ..ScrubFound::default() };
    assert_eq!((told.bytes, told.found, told.seen.1), (8 * 4096, done, vec![]));
    let found = ScrubFound { checked: 8, ..ScrubFound::default() };
    let part = Scrubbed { bytes: 8 * 4096, found, seen: (7, Vec::new()), failure: None };
    assert_eq!((part.in_doubt().bytes, ScrubFound::default().pages()), (0, 0));
}

#[test]
fn words_that_were_stored_since_they_were_read_are_not_overwritten() {
    let rig = Rig::new(&[1, 2]);
    let (found, right) = (rig.page_of(2, 3), [7; 4096]);
    // A pointer stores after the look.
    object::write_at(rig.data(2).as_fd(), b"stored", cell(3) + 801).unwrap();
    mend(rig.data(2).as_fd(), (cell(3), &found), &right).unwrap();
    let mut after = [7; 4096];
    after[800..808].copy_from_slice(b"\0stored\0");
    assert_eq!(rig.page_of(2, 3), after);
    assert_eq!((rig.page_of(2, 2), rig.page_of(2, 4)), (vec![0; 4096], vec![0; 4096]));
    // What is right already is not stored to.
    let before = rig.page_of(1, 3);
    mend(rig.data(1).as_fd(), (cell(3), &[1; 4096]), &[1; 4096]).unwrap();
    assert_eq!(rig.page_of(1, 3), before);
}

#[test]
fn one_checksum_of_two_copies_that_differ_says_nothing() {
    // The polynomial itself, the highest power first: what it is added to keeps its checksum.
    let polynomial = (1 | 0x82f6_3b78_u64 << 1).to_le_bytes();
    let page = vec![9; 4096];
    let mut other = page.clone();
    other.iter_mut().zip(polynomial).for_each(|(byte, add)| *byte ^= add);
    let crc = crc32c::crc32c(&page);
    assert_eq!(crc32c::crc32c(&other), crc);
    assert_eq!(right_of(&[page.clone(), other.clone()], Some(crc)), None);
    assert_eq!(right_of(&[page.clone(), vec![0; 4096], page.clone()], Some(crc)), Some(0));
    assert_eq!(right_of(&[other, page.clone(), page.clone()], None), Some(1));
    // What is known counts more than what most have.
    assert_eq!(right_of(&[vec![0; 4096], vec![0; 4096], page], Some(crc)), Some(2));
    // None has the checksum: what was known is of another time.
    assert_eq!(right_of(&[vec![0; 4096], vec![1; 4096], vec![1; 4096]], Some(crc)), Some(1));
    assert_eq!(right_of(&[vec![0; 4096], vec![1; 4096], vec![2; 4096]], Some(crc)), None);
}

//! Copies that differ, why ever, and what becomes of them.

mod pointers;
pub mod rig;

use dmce_abi::block::{Half, Role};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::data::{Bytes as Data, DataReply, DataRequest};
use dmce_abi::wire::scrub::ScrubFound;

use super::super::folder::BROKER;
use super::*;
use rig::{BYTES, PAGES, Rig, cell};

const NOTHING: ScrubFound = ScrubFound {
    checked: 0,
    busy: 0,
    pinned: 0,
    detached: 0,
    lost: 0,
    unchecked: 0,
    repaired: 0,
    quarantined: 0,
};
const BUSY: ScrubFound = ScrubFound { busy: 1, ..NOTHING };
const PINNED: ScrubFound = ScrubFound { pinned: 1, ..NOTHING };
const DETACHED: ScrubFound = ScrubFound { detached: 1, ..NOTHING };
const LOST: ScrubFound = ScrubFound { lost: 1, ..NOTHING };
const REPAIRED: ScrubFound = ScrubFound { repaired: 1, ..NOTHING };
const QUARANTINED: ScrubFound = ScrubFound { quarantined: 1, ..NOTHING };

/// The half of a word that slot 3 of another session has locked.
const OF_OTHER: u32 = 77 << 8 | 3;

#[test]
fn a_bit_that_changes_in_a_copy_of_a_page_that_was_seen_is_changed_back() {
    for daemons in [&[1, 2][..], &[1, 2, 3]] {
        let mut rig = Rig::new(daemons);
        assert_eq!(rig.write(17, b"something"), Status::Ok);
        assert_eq!(rig.scrub(), NOTHING);
        for (wrong, page) in daemons.iter().flat_map(|wrong| [(wrong, 3), (wrong, 17)]) {
            let (before, word) = (rig.page_of(1, page), rig.word(page));
            rig.flip(*wrong, page);
            assert_eq!(rig.scrub(), REPAIRED, "daemon {wrong} of {daemons:?}, page {page}");
            for daemon in daemons {
                assert_eq!(rig.page_of(*daemon, page), before);
            }
            assert_eq!(rig.word(page), word, "no reader has to come again");
            assert_eq!(rig.scrub(), NOTHING);
        }
        // Two of three that are wrong do not make it right.
        if daemons.len() == 3 {
            rig.flip(1, 17);
            rig.flip(2, 17);
            assert_eq!(rig.scrub(), REPAIRED);
        }
        assert_eq!(rig.read(17, 9).unwrap(), b"something");
    }
}

#[test]
fn a_page_that_nothing_is_known_of_is_lost_until_all_of_it_is_written() {
    let mut rig = Rig::new(&[1, 2]);
    rig.flip(2, 5);
    let copies = [1, 2].map(|daemon| rig.page_of(daemon, 5));
    assert_eq!(rig.scrub(), QUARANTINED);
    assert_eq!([1, 2].map(|daemon| rig.page_of(daemon, 5)), copies, "the bytes stay");
    assert_eq!(rig.read(5, 8), Err(Status::Lost));
    assert_eq!(rig.write(5, b"a part"), Status::Lost);
    assert_eq!(rig.scrub(), LOST);
    assert_eq!(rig.write(5, &[9; 4096]), Status::Ok);
    assert_eq!(rig.read(5, 4096).unwrap(), [9; 4096]);
    assert_eq!(rig.page_of(2, 5), [9; 4096]);
    assert_eq!(rig.scrub(), NOTHING);
    rig.flip(1, 5);
    assert_eq!(rig.scrub(), REPAIRED);
    assert_eq!(rig.page_of(1, 5), [9; 4096]);
}

#[test]
fn most_of_three_copies_are_right_where_nothing_is_known() {
    for wrong in [1, 2, 3] {
        let mut rig = Rig::new(&[1, 2, 3]);
        assert_eq!(rig.write(7, &[5; 5000]), Status::Ok);
        rig.flip(wrong, 7);
        assert_eq!(rig.scrub(), REPAIRED);
        for daemon in [1, 2, 3] {
            assert_eq!(rig.page_of(daemon, 7), [5; 4096]);
        }
    }
    let mut rig = Rig::new(&[1, 2, 3]);
    rig.flip(1, 7);
    object::write_at(rig.data(2).as_fd(), b"another", cell(7)).unwrap();
    assert_eq!(rig.scrub(), QUARANTINED, "three that differ");
}

/// What was there when all agreed is not what was acknowledged since.
#[test]
fn a_page_that_was_written_since_it_was_seen_is_not_made_what_it_was() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), NOTHING);
    let old = rig.page_of(2, 4);
    assert_eq!(rig.write(4, b"new"), Status::Ok);
    object::write_at(rig.data(2).as_fd(), &old, cell(4)).unwrap();
    assert_eq!(rig.scrub(), QUARANTINED);
    assert_eq!(rig.read(4, 3), Err(Status::Lost));
    assert_eq!(&rig.page_of(1, 4)[..3], b"new");
    // Of a third copy that agrees with the first, it is known.
    let mut rig = Rig::new(&[1, 2, 3]);
    assert_eq!(rig.scrub(), NOTHING);
    assert_eq!(rig.write(4, b"new"), Status::Ok);
    object::write_at(rig.data(2).as_fd(), &old, cell(4)).unwrap();
    assert_eq!(rig.scrub(), REPAIRED);
    assert_eq!(&rig.page_of(2, 4)[..3], b"new");
}

#[test]
fn what_was_seen_under_another_lock_table_is_not_believed() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), NOTHING);
    rig.say(&[1, 2], None);
    rig.flip(2, 9);
    rig.make_table();
    assert_eq!(rig.scrub(), QUARANTINED);
    // The same table, with other copies, counts on.
    assert_eq!(rig.scrub(), LOST);
    rig.say(&[1, 2, 3], None);
    rig.flip(1, 8);
    rig.flip(2, 8);
    let zeros = rig.page_of(3, 8);
    assert_eq!(rig.scrub(), ScrubFound { repaired: 1, lost: 1, ..NOTHING });
    assert_eq!([1, 2].map(|daemon| rig.page_of(daemon, 8)), [zeros.clone(), zeros]);
}

#[test]
fn what_is_equal_by_now_is_right_whatever_it_was() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), NOTHING);
    // As a pointer's store that was carried to another copy while that was made.
    rig.flip(1, 6);
    rig.flip(2, 6);
    assert_eq!(rig.scrub(), NOTHING);
    let flipped = rig.page_of(1, 6);
    rig.flip(2, 6);
    assert_eq!(rig.scrub(), REPAIRED);
    assert_eq!(rig.page_of(2, 6), flipped);
}

#[test]
fn a_page_that_somebody_has_is_left() {
    let mut rig = Rig::new(&[1, 2, 3]);
    assert_eq!(rig.scrub(), NOTHING);
    rig.flip(2, 6);
    let flipped = rig.page_of(2, 6);
    for word in [(OF_OTHER, 0), (OF_OTHER, 1), (0, 1), (1 << 30 | OF_OTHER, 0)] {
        rig.set_word(6, word);
        assert_eq!(rig.scrub(), BUSY, "{word:?}");
        let (half, sequence) = rig.word(6);
        assert_eq!((half & !(1 << 31), sequence), word, "apart from a waiter");
        assert_eq!(rig.page_of(2, 6), flipped);
    }
    rig.set_word(6, (0, 0));
    assert_eq!(rig.scrub(), REPAIRED);
    // Who has taken the lock and not begun to write keeps nobody from looking.
    rig.set_word(6, (OF_OTHER, 0));
    assert_eq!(rig.scrub(), NOTHING);
}

#[test]
fn copies_that_differ_on_purpose_are_left() {
    let mut rig = Rig::new(&[1, 2, 3]);
    assert_eq!(rig.scrub(), NOTHING);
    let data = Data(b"one half".to_vec());
    let write = DataRequest::WriteHalf { at: rig.at(2), data, half: Half::MIRROR };
    assert_eq!(rig.store.access(&write), Ok(DataReply::Done));
    let copies = [1, 2, 3].map(|daemon| rig.page_of(daemon, 2));
    assert_eq!(rig.scrub(), DETACHED);
    assert_eq!([1, 2, 3].map(|daemon| rig.page_of(daemon, 2)), copies);
    assert_ne!(copies[0], copies[1]);
    // They are so also where they happen to be equal.
    let write = DataRequest::WriteHalf { at: rig.at(3), data: Data(vec![0]), half: Half::MIRROR };
    assert_eq!(rig.store.access(&write), Ok(DataReply::Done));
    assert_eq!(rig.scrub(), ScrubFound { detached: 2, ..NOTHING });
}

#[test]
fn a_copy_that_is_syncing_is_not_looked_at() {
    let mut rig = Rig::new(&[1, 2]);
    rig.say(&[1, 2], Some(3));
    rig.flip(3, 1);
    let of_syncing = rig.page_of(3, 1);
    assert_eq!(rig.scrub(), NOTHING);
    // What is repaired now would be copied there no more.
    rig.flip(2, 1);
    assert_eq!(rig.scrub(), ScrubFound { busy: 1, ..NOTHING });
    assert_eq!(rig.page_of(3, 1), of_syncing);
    rig.say(&[1, 2], None);
    assert_eq!(rig.scrub(), REPAIRED);
    // With one good copy there is nothing to compare it with.
    rig.say(&[1], Some(3));
    assert_eq!(rig.scrub(), ScrubFound { unchecked: PAGES, ..NOTHING });
}

#[test]
fn nothing_counts_where_something_of_the_block_is_gone() {
    let damaged = [DaemonNotice::Damaged { block: id(1) }];
    let harm: [fn(&Rig); 6] = [
        // It was zeros before it was begun with.
        |rig| {
            object::truncate(rig.data(2).as_fd(), 0).unwrap();
            object::truncate(rig.data(2).as_fd(), BYTES).unwrap();
        },
        |rig| object::truncate(rig.data(2).as_fd(), BYTES - PAGE_BYTES).unwrap(),
        |rig| rig.dir.unlink(&rig.name(2, ObjectKind::Data(1))).unwrap(),
        |rig| rig.dir.unlink(&rig.name(2, ObjectKind::Header(1))).unwrap(),
        |rig| rig.dir.unlink(&rig.name(BROKER, ObjectKind::LockTable(1))).unwrap(),
        |rig| object::truncate(rig.table().as_fd(), 4096).unwrap(),
    ];
    for (number, harm) in harm.into_iter().enumerate() {
        for is_open in [false, true] {
            let mut rig = Rig::new(&[1, 2]);
            rig.flip(2, 0);
            if is_open {
                assert_eq!(rig.scrub(), QUARANTINED);
            }
            harm(&rig);
            // Of a view that is open the lock table's name is not looked at; nor is its end.
            if is_open && number == 4 {
                assert_eq!(rig.part(0, 4096), (4096, LOST));
                continue;
            }
            let all = u32::try_from(BYTES).unwrap();
            rig.store.take_notices();
            assert_eq!(rig.part(0, all), (0, NOTHING), "{number} {is_open}");
            // A header that is another is looked at with the next view.
            if is_open && number == 3 {
                assert_eq!(rig.part(0, all), (0, NOTHING));
            }
            assert_eq!(rig.store.take_notices(), damaged, "{number} {is_open}");
        }
    }
}

/// Another daemon may have written by what the headers say next.
#[test]
fn nothing_is_repaired_by_headers_that_are_others_by_now() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.scrub(), NOTHING);
    let seen = rig.page_of(2, 0);
    // The view is open, and this daemon hears of it later: page 0 was written without daemon 2.
    let description = rig.raise_behind(&[1, 3]);
    rig.flip(1, 0);
    rig.flip(3, 0);
    assert_eq!(rig.put_off(), []);
    assert_eq!(rig.page_of(2, 0), seen);
    ask(&mut rig.store, DaemonRequest::Rewritten { description }).unwrap();
    assert_eq!(rig.scrub(), NOTHING);
    assert_ne!(rig.page_of(1, 0), seen);
}

#[test]
fn a_part_is_of_what_the_block_has_and_ends_after_some_pages_that_differ() {
    let mut rig = Rig::new(&[1, 2]);
    assert_eq!(rig.part(cell(1), 8192), (8192, ScrubFound { checked: 2, ..NOTHING }));
    assert_eq!(rig.part(BYTES - 4096, u32::MAX), (4096, ScrubFound { checked: 1, ..NOTHING }));
    // In the middle of pages.
    assert_eq!(rig.part(4095, 2), (2, ScrubFound { checked: 2, ..NOTHING }));
    for (at, bytes) in [(BYTES, 4096), (u64::MAX, 4096), (0, 0)] {
        assert_eq!(rig.part(at, bytes), (0, NOTHING));
    }
    // What was seen of other pages is known still.
    rig.flip(2, 2);
    assert_eq!(rig.part(cell(2), 4096), (4096, REPAIRED));
    for page in 10..30 {
        rig.flip(1, page);
    }
    // Sixteen, or fewer where that takes long.
    let all = u32::try_from(BYTES).unwrap();
    let (bytes, found) = rig.part(0, all);
    let lost = found.quarantined;
    assert_eq!(u64::from(bytes), (10 + lost) * 4096);
    assert_eq!(found, ScrubFound { checked: 10, quarantined: lost, ..NOTHING });
    assert!((1..=16).contains(&lost), "{lost}");
    assert_eq!(rig.scrub(), ScrubFound { lost, quarantined: 20 - lost, ..NOTHING });
}

#[test]
fn who_has_no_primary_of_it_scrubs_nothing() {
    let mut rig = Rig::new(&[1, 2]);
    let (block, guid) = (id(1), Guid([8; 16]));
    let scrub = DaemonRequest::Scrub { block, guid, cell: 0, bytes: 4096 };
    assert_eq!(ask(&mut rig.store, scrub).unwrap_err().status, Status::NotFound);
    rig.say(&[2, 1], None);
    assert_eq!(rig.ask_part(0, 4096).unwrap_err().status, Status::NotFound);
    rig.say(&[2], Some(1));
    assert_eq!(rig.ask_part(0, 4096).unwrap_err().status, Status::NotFound);
    rig.say(&[1, 2], None);
    // Its headers say so, and it was not told yet.
    let told = rig.raise_behind(&[2, 1]);
    assert_eq!(rig.ask_part(0, 4096).unwrap_err().status, Status::NotFound);
    assert_eq!(told.membership.role, Role::Copy);
    rig.say(&[1, 2], None);
    assert_eq!(rig.scrub(), NOTHING);
    rig.store.unseat();
    assert_eq!(rig.put_off(), [DaemonNotice::Unseated { left: None }]);
    ask(&mut rig.store, destroy(1)).unwrap();
    assert_eq!(rig.ask_part(0, 4096).unwrap_err().status, Status::NotFound);
}

#[test]
fn an_only_copy_is_looked_at_and_its_pages_are_not() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, BYTES)).unwrap();
    let scrub = |store: &mut Store, cell, bytes| {
        let guid = description(1).guid;
        ask(store, DaemonRequest::Scrub { block: id(1), guid, cell, bytes }).unwrap()
    };
    let scrubbed = |bytes, unchecked| {
        let found = ScrubFound { unchecked, ..NOTHING };
        DaemonAnswer::Scrubbed { bytes, found }
    };
    let all = u32::try_from(BYTES).unwrap();
    assert_eq!(scrub(&mut store, 0, u32::MAX), scrubbed(all, PAGES));
    assert_eq!(scrub(&mut store, 4096, 8192), scrubbed(8192, 2));
    assert_eq!(scrub(&mut store, BYTES, 8192), scrubbed(0, 0));
    // A header that somebody removed is written again.
    std::fs::remove_file(fixture.path(ObjectKind::Header(1))).unwrap();
    assert_eq!(scrub(&mut store, 0, all), scrubbed(all, PAGES));
    assert!(fixture.path(ObjectKind::Header(1)).exists());
    // Its broker has it moved, and this daemon was not told yet.
    let mut moving = header(1);
    moving.description.epoch = 2;
    moving.description.membership.locked = true;
    let fd = open_own(&fixture.folder(), ObjectKind::Header(1));
    dmce_shm::header::update(fd.as_fd(), &moving).unwrap();
    assert_eq!(scrub(&mut store, 0, all), scrubbed(0, 0));
    moving.description.epoch = 3;
    moving.description.membership.locked = false;
    let description = moving.description.clone();
    ask(&mut store, DaemonRequest::Rewritten { description }).unwrap();
    assert_eq!(scrub(&mut store, 0, all), scrubbed(all, PAGES));
    store.take_notices();
    object::truncate(open_data(&store, 1).as_fd(), BYTES - 4096).unwrap();
    assert_eq!(scrub(&mut store, 0, all), scrubbed(0, 0));
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1) }]);
}

//! What others do to copies, lock tables and pages of a session while it uses them: they take them
//! away, cut them, stop with their locks, and answer late.

mod fake;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dmce_sys::object::word::ObjectWord;
use fake::{Fake, Finds, status, wait_until};
use libdmce::{DmceAddr, Mirror, Options, Prot, Region, RegionOptions, Session, Status};

/// The half of a lock word that another session's slot has.
const OTHER: u32 = 2 << 8;
/// That of a page which is lost.
const LOST: u32 = 1 << 29;

fn open_for(timeout_ms: u32) -> (Fake, Session) {
    let fake = Fake::start();
    fake.state().copies = 2;
    let session = Session::open(&Options { timeout_ms, ..fake.options() });
    (fake, session.expect("the broker serves"))
}

/// An allocation of the first block, and its cell.
fn allocated(session: &Session, bytes: u64) -> (DmceAddr, u64) {
    let addr = session.malloc(bytes).expect("there is room");
    (addr, addr.to_raw() & (fake::BLOCK_BYTES - 1))
}

fn region(session: &Session, bytes: u64) -> (Region, u64) {
    session.region_create("v", "r", bytes, &RegionOptions::default()).expect("there is room");
    let region = session.region_open("v", "r", Prot::READ_WRITE).expect("it is there");
    let base = region.info().expect("it is open").base_pointer;
    (region, base)
}

/// Stores by a pointer of [`Session::map`].
fn store(pointer: *mut u8, data: &[u8]) {
    // SAFETY: the pointer is to as many bytes that may be written.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), pointer, data.len()) };
}

/// Takes the lock of a page from another session, and says that the page was written.
fn release(fake: &Fake, page: u64) {
    let table = fake.table(1);
    let word = ObjectWord::map(table.as_fd(), 4096 + 8 * page).expect("the table is there");
    loop {
        let held = word.load().expect("the table is there");
        if word.compare_exchange(held, 4 << 32).is_ok_and(|before| before == held) {
            break;
        }
    }
    word.wake(u32::MAX).expect("the table is there");
}

#[test]
fn a_word_is_changed_once_though_its_lock_table_is_cut_again_and_again() {
    let (fake, session) = open_for(20_000);
    fake.state().finds = Finds::HarmedTable;
    let (addr, _) = allocated(&session, 10_000);
    session.write(addr, &[0; 8]).unwrap();
    let is_over = AtomicBool::new(false);
    let mut calls = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..100 {
                fake.cut_table(1);
                let cut = fake.asked("Damaged");
                wait_until("it is made anew", || fake.asked("Damaged") > cut);
            }
            is_over.store(true, Ordering::SeqCst);
        });
        while !is_over.load(Ordering::SeqCst) {
            assert_eq!(session.add64(addr, 1), Ok(calls));
            calls += 1;
        }
    });
    assert_eq!(session.add64(addr, 0), Ok(calls));
}

#[test]
fn who_sleeps_for_a_page_whose_table_is_cut_goes_on() {
    let (fake, session) = open_for(60_000);
    fake.state().finds = Finds::HarmedTable;
    let (addr, cell) = allocated(&session, 10_000);
    session.write(addr, &[1; 100]).unwrap();
    fake.set_word(1, cell / 4096, OTHER, 3);
    thread::scope(|scope| {
        let writer = scope.spawn(|| session.write(addr, &[2; 100]));
        wait_until("it sleeps", || fake.word(1, cell / 4096) >> 31 & 1 == 1);
        let cut = Instant::now();
        fake.cut_table(1);
        writer.join().unwrap().unwrap();
        assert!(cut.elapsed() < Duration::from_secs(50), "it slept to its deadline");
    });
}

/// Another session has gone on under the next epoch: what a copy that was removed has is old.
#[test]
fn what_began_before_its_first_copy_was_removed_sees_what_others_wrote_since() {
    for what in ["add", "cas", "unmap"] {
        let (fake, session) = open_for(20_000);
        let (addr, cell) = allocated(&session, 10_000);
        let page = cell / 4096;
        session.write(addr, &[0; 4096]).unwrap();
        let pointer = session.map(addr, 4096, Prot::READ_WRITE).unwrap().expose_provenance();
        fake.set_word(1, page, OTHER, 3);
        let seen = thread::scope(|scope| {
            let changer = scope.spawn(|| match what {
                "add" => session.add64(addr, 1),
                "cas" => session.cas64(addr, 0, 1),
                _ => session.unmap(std::ptr::with_exposed_provenance(pointer)).map(|()| 5),
            });
            wait_until("it sleeps", || fake.word(1, page) >> 31 & 1 == 1);
            fake.remove_copy(1, 1);
            fake.put_copy(1, 2, cell, &5_u64.to_le_bytes());
            release(&fake, page);
            changer.join().unwrap()
        });
        assert_eq!(seen, Ok(5), "{what}");
        let now = u64::from_le_bytes(fake.copy_of(1, 2, cell, 8).try_into().unwrap());
        assert_eq!(now, if what == "add" { 6 } else { 5 }, "{what}");
    }
}

#[test]
fn a_pointer_into_a_copy_that_was_removed_goes_on_with_the_next_primary() {
    let (fake, session) = open_for(20_000);
    let (addr, cell) = allocated(&session, 10_000);
    session.write(addr, &[1; 10_000]).unwrap();
    let [pointer, reader] =
        [Prot::READ_WRITE, Prot::READ].map(|rights| session.map(addr, 10_000, rights).unwrap());
    fake.remove_copy(1, 1);
    session.write(addr, &[2; 100]).unwrap();
    let seen = || {
        // SAFETY: the pointers are to as many bytes, which only this thread writes.
        [pointer, reader].map(|pointer| unsafe { pointer.read_volatile() })
    };
    wait_until("the pointers are laid again", || seen() == [2; 2]);
    store(pointer, &[7; 5_000]);
    assert_eq!(seen(), [7; 2]);
    session.unmap(pointer).unwrap();
    assert_eq!(fake.copy_of(1, 2, cell, 5_000), [7; 5_000]);
    session.unmap(reader).unwrap();
}

#[test]
fn an_answer_that_is_older_than_what_was_taken_in_is_not_used() {
    let (fake, session) = open_for(20_000);
    session.region_create("v", "r", 20_000, &RegionOptions::default()).unwrap();
    fake.state().holds = Some("RegionOpen");
    thread::scope(|scope| {
        let opener = scope.spawn(|| session.region_open("v", "r", Prot::READ_WRITE).unwrap());
        wait_until("it is asked for", || fake.asked("RegionOpen") > 0);
        // It is answered, and the answer is on its way.
        fake.remove_copy(1, 1);
        wait_until("the answer may be sent", || fake.is_holding());
        fake.answer_held();
        let region = opener.join().unwrap();
        wait_until("it is taken in", || fake.asked("Changes") > 0);
        fake.put_copy(1, 2, 0, b"NEW");
        let base = region.info().unwrap().base_pointer;
        let mut found = [0; 3];
        region.read(base, &mut found, Mirror::Any).unwrap();
        assert_eq!(found, *b"NEW");
    });
}

#[test]
fn of_a_pointer_into_two_blocks_what_is_left_is_carried() {
    for gone in [1, 2] {
        let (fake, session) = open_for(20_000);
        let (region, base) = region(&session, 2 * fake::BLOCK_BYTES);
        let edge = region.addr(base + fake::BLOCK_BYTES - 4096).unwrap();
        session.write(edge, &[1; 8192]).unwrap();
        let pointer = session.map(edge, 8192, Prot::READ_WRITE).unwrap();
        store(pointer, &[7; 8192]);
        fake.tell_all_gone(gone);
        assert_eq!(status(session.unmap(pointer)), Status::Lost);
        assert_eq!(status(session.unmap(pointer)), Status::NotFound, "it is unmapped");
        let (left, cell) = if gone == 1 { (2, 0) } else { (1, fake::BLOCK_BYTES - 4096) };
        assert_eq!([1, 2].map(|daemon| fake.copy_of(left, daemon, cell, 1)), [[7], [7]]);
    }
}

#[test]
fn what_a_pointer_stored_behind_a_lost_page_is_carried() {
    const LOST_PAGE: u64 = 17;
    let (fake, session) = open_for(20_000);
    let (region, base) = region(&session, 100_000);
    let addr = region.addr(base).unwrap();
    region.write(base, &vec![1; 81_920], Mirror::Both).unwrap();
    let pointer = session.map(addr, 81_920, Prot::READ_WRITE).unwrap();
    store(pointer, &vec![7; 81_920]);
    fake.set_word(1, LOST_PAGE, LOST, 1);
    assert_eq!(status(session.unmap(pointer)), Status::Lost);
    assert_eq!(status(session.unmap(pointer)), Status::NotFound, "it is unmapped");
    for page in [0, LOST_PAGE - 1, LOST_PAGE + 1] {
        assert_eq!([1, 2].map(|daemon| fake.copy_of(1, daemon, page * 4096, 1)), [[7], [7]]);
    }
}

#[test]
fn a_failed_write_has_changed_nothing_or_says_that_it_has() {
    const HELD_PAGE: u64 = 40;
    let (fake, session) = open_for(300);
    let (region, base) = region(&session, 400_000);
    let write = |from: u64, bytes| region.write(base + from, &vec![2; bytes], Mirror::Both);
    region.write(base, &vec![1; 400_000], Mirror::Both).unwrap();
    fake.set_word(1, HELD_PAGE, OTHER, 2);
    assert_eq!(status(write(HELD_PAGE * 4096 + 1, 100_000)), Status::Timeout);
    let mut found = vec![0; 400_000];
    let at_rest = [0..HELD_PAGE * 4096, (HELD_PAGE + 1) * 4096..400_000];
    let mut all_are = |byte| {
        at_rest.clone().into_iter().all(|range| {
            let found = &mut found[..usize::try_from(range.end - range.start).unwrap()];
            region.read(base + range.start, found, Mirror::Any).unwrap();
            found.iter().all(|it| *it == byte)
        })
    };
    assert!(all_are(1), "a write that timed out has changed something");
    assert_eq!(status(write(0, 300_000)), Status::Io);
    assert!(!all_are(1));
}

#[test]
fn a_page_that_is_lost_stays_so_until_it_is_written() {
    let (fake, session) = open_for(20_000);
    let (region, base) = region(&session, 40_000);
    let addr = region.addr(base).unwrap();
    let lose = || fake.set_word(1, 0, LOST, 1);
    let is_lost = || region.read(base, &mut [0; 4], Mirror::Any).is_err();
    session.write(addr, &[1; 16_384]).unwrap();
    let pointer = session.map(addr, 8192, Prot::READ_WRITE).unwrap();
    store(pointer.wrapping_add(4096), &[9; 100]);
    lose();
    assert_eq!(status(session.unmap(pointer)), Status::Lost);
    assert!(is_lost(), "a pointer wrote no page");
    assert_eq!([1, 2].map(|daemon| fake.copy_of(1, daemon, 4096, 1)), [[9], [9]]);
    assert_eq!(status(region.resync(Mirror::Primary)), Status::Lost);
    assert!(is_lost(), "nor did a resync");
    assert_eq!(status(region.write(base, &[5; 4096], Mirror::Primary)), Status::Lost);
    assert!(is_lost(), "one half alone is no page");
    region.write(base, &[5; 4096], Mirror::Both).unwrap();
    assert!(!is_lost());
}

#[test]
fn what_differs_on_purpose_is_not_carried_away() {
    let (_fake, session) = open_for(20_000);
    let (region, base) = region(&session, 20_000);
    region.write(base, &[1; 8192], Mirror::Both).unwrap();
    let pointer = session.map(region.addr(base).unwrap(), 8192, Prot::READ_WRITE).unwrap();
    region.write(base, &[2; 100], Mirror::Mirror).unwrap();
    store(pointer.wrapping_add(5000), &[3; 10]);
    session.unmap(pointer).unwrap();
    let mut found = [0; 1];
    region.read(base, &mut found, Mirror::Mirror).unwrap();
    assert_eq!(found, [2]);
    region.read(base + 5000, &mut found, Mirror::Mirror).unwrap();
    assert_eq!(found, [3], "the page beside it is carried");
}

/// Far below the time of other calls, and far above what a machine may be late.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_short_wait_for_a_word_of_a_page_that_is_held_is_short() {
    let (fake, session) = open_for(60_000);
    let (addr, cell) = allocated(&session, 10_000);
    session.write(addr, &[0; 100]).unwrap();
    fake.set_word(1, cell / 4096, OTHER, 3);
    let began = Instant::now();
    assert_eq!(status(session.wait64(addr, 0, 50)), Status::Timeout);
    assert!(began.elapsed() < SOON);
}

#[test]
fn a_close_waits_for_pages_that_are_held_as_long_as_one_call() {
    let (fake, session) = open_for(1_000);
    let (addr, cell) = allocated(&session, 100_000);
    session.write(addr, &[0; 100]).unwrap();
    for _ in 0..60 {
        session.map(addr, 100, Prot::READ_WRITE).unwrap();
    }
    fake.set_word(1, cell / 4096, OTHER, 3);
    let began = Instant::now();
    session.close().unwrap();
    assert!(began.elapsed() < SOON, "not a second for each");
}

#[test]
fn a_session_that_gave_up_while_the_broker_was_away_tells_it_later() {
    let (mut fake, session) = open_for(300);
    let (addr, _) = allocated(&session, 5_000);
    session.write(addr, &[7; 5_000]).unwrap();
    fake.die();
    fake.truncate_copy(1, 2);
    assert_eq!(status(session.write(addr, &[8; 5_000])), Status::Closed);
    fake.restart();
    wait_until("it is told", || fake.asked("Disconnect") == 1);
    session.close().unwrap();
    assert_eq!(fake.asked("Disconnect"), 1);
}

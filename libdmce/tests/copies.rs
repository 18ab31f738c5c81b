//! Blocks with copies, as a session sees them: what it does about copies that it cannot reach, and
//! what the broker's answers make of that.

mod fake;

use fake::{Fake, Finds, status, wait_until};
use libdmce::{DmceAddr, Mirror, Options, Prot, RegionOptions, Session, Status};

/// Blocks that are mapped whole, and behind windows; with a service thread, and without.
fn with_each_kind(options: &Options, mut test: impl FnMut(&mut Fake, &Session)) {
    for window_budget in [0, 4 << 20] {
        for no_thread in [false, true] {
            let mut fake = Fake::start();
            fake.state().copies = 2;
            let own = Options {
                socket: fake.options().socket,
                window_budget,
                no_thread,
                ..options.clone()
            };
            let session = Session::open(&own).expect("the broker serves");
            test(&mut fake, &session);
        }
    }
}

fn patient() -> Options {
    Options { timeout_ms: 20_000, ..Options::default() }
}

fn read(session: &Session, at: DmceAddr, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    session.read(at, &mut found).expect("it may be read");
    found
}

/// An allocation of the first block, and its cell.
fn allocated(session: &Session, bytes: u64) -> (DmceAddr, u64) {
    let addr = session.malloc(bytes).expect("there is room");
    (addr, addr.to_raw() & (fake::BLOCK_BYTES - 1))
}

#[test]
fn what_is_written_is_on_all_copies() {
    for copies in [2, 3] {
        with_each_kind(&patient(), |fake, session| {
            fake.state().copies = copies;
            let (addr, cell) = allocated(session, 10_000);
            session.write(addr, &[7; 10_000]).unwrap();
            assert_eq!(session.add64(addr, 1), Ok(0x0707_0707_0707_0707));
            for daemon in 1..=copies {
                let found = fake.copy_of(1, daemon, cell, 10_000);
                assert_eq!((found[0], &found[1..]), (8, &[7; 9_999][..]), "daemon {daemon}");
            }
        });
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_reported_and_the_other_is_read() {
    with_each_kind(&patient(), |fake, session| {
        let (addr, cell) = allocated(session, 10_000);
        session.write(addr, &[7; 10_000]).unwrap();
        fake.state().finds = Finds::Gone(1);
        fake.truncate_copy(1, 1);
        assert_eq!(read(session, addr, 10_000), [7; 10_000]);
        wait_until("it is reported", || {
            session.poll().unwrap();
            fake.asked("Damaged") > 0
        });
        session.write(addr, &[8; 100]).unwrap();
        assert_eq!(read(session, addr, 100), [8; 100]);
        assert_eq!(fake.copy_of(1, 2, cell, 100), [8; 100]);
        assert_eq!(fake.asked("Damaged"), 1, "once");
    });
}

#[test]
fn a_write_goes_on_without_the_copy_that_is_gone() {
    for gone in [1, 2] {
        with_each_kind(&patient(), |fake, session| {
            const BYTES: usize = 300_000;
            let [seven, eight, nine] = [7, 8, 9].map(|byte| vec![byte; BYTES]);
            let (addr, cell) = allocated(session, BYTES as u64);
            session.write(addr, &seven).unwrap();
            fake.state().finds = Finds::Gone(gone);
            fake.truncate_copy(1, gone);
            session.write(addr, &eight).unwrap();
            assert!(read(session, addr, BYTES) == eight);
            assert!(fake.copy_of(1, 3 - gone, cell, BYTES) == eight);
            session.fill(addr, 9, BYTES as u64).unwrap();
            assert!(fake.copy_of(1, 3 - gone, cell, BYTES) == nine);
        });
    }
}

#[test]
fn a_copy_that_is_there_again_is_written_again() {
    with_each_kind(&patient(), |fake, session| {
        let (addr, cell) = allocated(session, 5_000);
        session.write(addr, &[7; 5_000]).unwrap();
        fake.state().finds = Finds::Mended;
        fake.truncate_copy(1, 2);
        session.write(addr, &[8; 5_000]).unwrap();
        for daemon in [1, 2] {
            assert_eq!(fake.copy_of(1, daemon, cell, 5_000), [8; 5_000], "daemon {daemon}");
        }
    });
}

#[test]
fn when_all_copies_are_gone_that_memory_is_lost_and_no_other() {
    with_each_kind(&patient(), |fake, session| {
        let (addr, _) = allocated(session, 5_000);
        session.write(addr, &[7; 5_000]).unwrap();
        for gone in [1, 2] {
            fake.state().finds = Finds::Gone(gone);
            fake.truncate_copy(1, gone);
            let written = session.write(addr, &[8; 5_000]);
            assert_eq!(written.is_ok(), gone == 1, "{written:?}");
        }
        assert_eq!(status(session.write(addr, &[8; 10])), Status::Lost);
        let (other, _) = allocated(session, 3 << 20);
        session.write(other, &[1; 100]).unwrap();
    });
}

#[test]
fn a_write_that_nobody_judges_ends_the_session_and_the_broker_is_told() {
    let hasty = Options { timeout_ms: 300, ..Options::default() };
    with_each_kind(&hasty, |fake, session| {
        let (addr, _) = allocated(session, 5_000);
        session.write(addr, &[7; 5_000]).unwrap();
        fake.state().holds = Some("Damaged");
        fake.truncate_copy(1, 2);
        assert_eq!(status(session.write(addr, &[8; 5_000])), Status::Closed);
        assert_eq!(status(session.read(addr, &mut [0; 10])), Status::Closed);
        wait_until("the broker is told", || fake.asked("Disconnect") == 1);
        assert_eq!(status(session.malloc(100)), Status::Closed);
        session.close().unwrap();
        assert_eq!(fake.asked("Disconnect"), 1, "once");
    });
}

/// A broker that calls a copy good which cannot be reached is not asked for ever.
#[test]
fn a_copy_that_is_called_good_and_is_not_ends_the_session() {
    with_each_kind(&patient(), |fake, session| {
        let (addr, _) = allocated(session, 5_000);
        session.write(addr, &[7; 5_000]).unwrap();
        fake.truncate_copy(1, 2);
        assert_eq!(status(session.write(addr, &[8; 5_000])), Status::Closed);
        assert!((2..10).contains(&fake.asked("Damaged")));
    });
}

#[test]
fn a_harmed_lock_table_is_made_anew_before_the_block_is_reached() {
    with_each_kind(&patient(), |fake, session| {
        fake.state().finds = Finds::HarmedTable;
        session.region_create("v", "r", 10_000, &RegionOptions::default()).unwrap();
        fake.cut_table(1);
        let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
        region.write(1000, &[7; 5_000], Mirror::Both).unwrap();
        assert_eq!(fake.copy_of(1, 2, 0, 5_000), [7; 5_000]);
        assert!(fake.asked("Damaged") > 0);
    });
}

#[test]
fn what_was_written_while_the_lock_table_went_is_written_again() {
    with_each_kind(&patient(), |fake, session| {
        fake.state().finds = Finds::HarmedTable;
        let (addr, cell) = allocated(session, 10_000);
        session.write(addr, &[7; 10_000]).unwrap();
        for access in 0..4_u8 {
            fake.cut_table(1);
            match access {
                0 => session.write(addr, &[8; 10_000]).unwrap(),
                1 => assert_eq!(read(session, addr, 10_000), [8; 10_000]),
                2 => session.fill(addr, 9, 10_000).unwrap(),
                _ => assert_eq!(session.add64(addr, 1), Ok(0x0909_0909_0909_0909)),
            }
            let looked = u32::from(access) + 1;
            wait_until("the broker looks", || {
                session.poll().unwrap();
                fake.asked("Damaged") >= looked
            });
        }
        for daemon in [1, 2] {
            let found = fake.copy_of(1, daemon, cell, 10_000);
            assert_eq!((found[0], &found[1..]), (10, &[9; 9_999][..]), "daemon {daemon}");
        }
    });
}

/// Stores by a pointer of [`Session::map`].
fn store(pointer: *mut u8, data: &[u8]) {
    // SAFETY: the pointer is to as many bytes that may be written.
    unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), pointer, data.len()) };
}

/// Loads by one.
fn load(pointer: *const u8, bytes: usize) -> Vec<u8> {
    // SAFETY: the pointer is to as many bytes, which only this thread writes.
    unsafe { std::slice::from_raw_parts(pointer, bytes) }.to_vec()
}

#[test]
fn what_a_pointer_stored_is_on_all_copies_when_it_is_given_back() {
    with_each_kind(&patient(), |fake, session| {
        fake.state().copies = 3;
        let (addr, cell) = allocated(session, 200_000);
        session.fill(addr, 1, 200_000).unwrap();
        let from = addr.checked_add(session.layout(), 100).unwrap();
        let pointer = session.map(from, 150_000, Prot::READ_WRITE).unwrap();
        let data: Vec<u8> = (0..150_000_u32).map(|at| (at % 251).to_le_bytes()[0]).collect();
        store(pointer, &data);
        assert!(read(session, from, 150_000) == data, "others see it at once");
        assert_eq!(fake.copy_of(1, 2, cell + 100, 10), [1; 10]);
        session.unmap(pointer).unwrap();
        for daemon in 1..=3 {
            assert!(fake.copy_of(1, daemon, cell + 100, 150_000) == data, "daemon {daemon}");
            assert_eq!(fake.copy_of(1, daemon, cell + 150_100, 10), [1; 10]);
        }
    });
}

#[test]
fn what_a_pointer_stored_is_on_all_copies_when_the_session_is_closed() {
    with_each_kind(&patient(), |fake, session| {
        session.region_create("v", "r", 100_000, &RegionOptions::default()).unwrap();
        let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
        let from = region.addr(1000).unwrap();
        store(session.map(from, 5_000, Prot::READ_WRITE).unwrap(), &[7; 5_000]);
        session.close().unwrap();
        assert_eq!(fake.copy_of(1, 2, 0, 5_000), [7; 5_000]);
    });
}

#[test]
fn beneath_a_pointer_whose_copy_goes_there_is_the_other() {
    with_each_kind(&patient(), |fake, session| {
        fake.state().copies = 3;
        let (addr, cell) = allocated(session, 200_000);
        session.fill(addr, 1, 200_000).unwrap();
        let from = addr.checked_add(session.layout(), 5_000).unwrap();
        let pointer = session.map(from, 100_000, Prot::READ_WRITE).unwrap();
        let reader = session.map(from, 100_000, Prot::READ).unwrap();
        for gone in [1, 2] {
            fake.state().finds = Finds::Gone(gone);
            fake.truncate_copy(1, gone);
            assert_eq!(load(reader, 10), if gone == 1 { [1; 10] } else { [2; 10] });
            store(pointer, &vec![3; 100_000]);
            session.fill(from, 2, 100_000).unwrap();
            assert_eq!(load(pointer, 10), [2; 10]);
        }
        store(pointer, &[4; 100]);
        session.unmap(pointer).unwrap();
        session.unmap(reader).unwrap();
        assert_eq!(fake.copy_of(1, 3, cell + 5_000, 100), [4; 100]);
    });
}

#[test]
fn the_right_to_write_stays_as_long_as_a_pointer_needs_it() {
    with_each_kind(&patient(), |_fake, session| {
        session.region_create("v", "r", 100_000, &RegionOptions::default()).unwrap();
        let open = |prot| session.region_open("v", "r", prot).unwrap();
        let (reader, writer) = (open(Prot::READ), open(Prot::READ_WRITE));
        let from = reader.addr(1000).unwrap();
        let pointer = session.map(from, 100, Prot::READ_WRITE).unwrap();
        assert_eq!(status(writer.close()), Status::Busy);
        store(pointer, &[7; 100]);
        session.unmap(pointer).unwrap();
        let looked_at = session.map(from, 100, Prot::READ).unwrap();
        writer.close().unwrap();
        assert_eq!(load(looked_at, 100), [7; 100]);
        session.unmap(looked_at).unwrap();
    });
}

#[test]
fn each_half_is_read_and_written_by_its_name() {
    with_each_kind(&patient(), |fake, session| {
        session.region_create("v", "r", 100_000, &RegionOptions::default()).unwrap();
        let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
        let base = region.info().unwrap().base_pointer;
        let found = |mirror| {
            let mut found = [0; 3];
            region.read(base + 5_000, &mut found, mirror).unwrap();
            found
        };
        region.write(base + 4_000, &vec![1; 20_000], Mirror::Both).unwrap();
        region.write(base + 5_000, &[2; 10_000], Mirror::Primary).unwrap();
        region.write(base + 5_000, &[3; 10_000], Mirror::Mirror).unwrap();
        assert_eq!([Mirror::Primary, Mirror::Mirror].map(found), [[2; 3], [3; 3]]);
        assert_eq!(found(Mirror::Any), [2; 3]);
        // Both, in part: the rest stays as each half has it.
        region.write(base + 5_001, &[4; 9_000], Mirror::Both).unwrap();
        assert_eq!([Mirror::Primary, Mirror::Mirror].map(found), [[2, 4, 4], [3, 4, 4]]);
        region.resync(Mirror::Mirror).unwrap();
        assert_eq!([Mirror::Primary, Mirror::Mirror].map(found), [[3, 4, 4]; 2]);
        let [one, other] = [1, 2].map(|daemon| fake.copy_of(1, daemon, 0, 98_304));
        assert!(one == other, "the halves are equal");
        assert_eq!(status(region.resync(Mirror::Both)), Status::Invalid);
    });
}

#[test]
fn a_half_that_is_away_is_named_and_the_other_is_there() {
    for gone in [1, 2] {
        with_each_kind(&patient(), |fake, session| {
            session.region_create("v", "r", 100_000, &RegionOptions::default()).unwrap();
            let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
            let base = region.info().unwrap().base_pointer;
            region.write(base, &[1; 10_000], Mirror::Both).unwrap();
            let halves = [Mirror::Primary, Mirror::Mirror];
            let (away, left) = (halves[gone as usize - 1], halves[2 - gone as usize]);
            fake.state().finds = Finds::Gone(gone);
            fake.truncate_copy(1, gone);
            let mut found = [0; 10];
            assert_eq!(status(region.read(base, &mut found, away)), Status::NoCopy);
            assert_eq!(status(region.write(base, &[2; 10], away)), Status::NoCopy);
            assert_eq!(status(region.resync(away)), Status::NoCopy);
            region.write(base, &[2; 10], left).unwrap();
            region.write(base + 5, &[3; 5], Mirror::Both).unwrap();
            for mirror in [left, Mirror::Any] {
                region.read(base, &mut found, mirror).unwrap();
                assert_eq!(found, [2, 2, 2, 2, 2, 3, 3, 3, 3, 3]);
            }
        });
    }
}

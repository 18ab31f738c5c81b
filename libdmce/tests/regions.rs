//! Regions, as a session sees them.

mod fake;

use std::cmp::Ordering;

use fake::{BLOCK_BYTES, Fake, status, wait_until};
use libdmce::{Mirror, Prot, RegionOptions, Status};

/// Where the fake broker's regions begin.
const BASE: u64 = 1000;
/// What the fake broker leaves of the last page.
const TAIL: u64 = 96;

#[test]
fn a_region_is_reached_by_its_pointers_to_the_byte() {
    Fake::with_each_mode(|fake, session| {
        let bytes = 2 * BLOCK_BYTES + 4096;
        session.region_create("v", "r", bytes, &RegionOptions::default()).unwrap();
        let region = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
        let info = region.info().unwrap();
        assert_eq!((info.region_size, info.base_pointer), (bytes - TAIL, BASE));
        let end = BASE + info.region_size;
        let across = BASE + BLOCK_BYTES - 3;
        region.write(across, b"across", Mirror::Both).unwrap();
        region.write(end - 3, b"end", Mirror::Primary).unwrap();
        let mut found = [0; 6];
        region.read(across, &mut found, Mirror::Any).unwrap();
        assert_eq!(&found, b"across");
        for pointer in [0, BASE - 1, end - 5, end, u64::MAX] {
            let read = region.read(pointer, &mut found, Mirror::Any);
            assert_eq!(status(read), Status::Address, "{pointer}");
        }
        assert_eq!(status(region.addr(end)), Status::Address);
        // The same bytes by their address.
        let addr = region.addr(across).unwrap();
        assert_eq!(session.compare(addr, b"across"), Ok(Ordering::Equal));
        assert_eq!(fake.bytes_of(1, BLOCK_BYTES - 3, 3), b"acr");
        // The end by its address: no byte more, though the page is there.
        let last = region.addr(end - 3).unwrap();
        assert_eq!(session.compare(last, b"end"), Ok(Ordering::Equal));
        assert_eq!(status(session.read(last, &mut found[..4])), Status::Address);
        assert_eq!(status(session.write(last, b"ends")), Status::Address);
        assert_eq!(status(session.fill(last, 0, 4)), Status::Address);
        assert_eq!(status(session.copy(addr, last, 4)), Status::Address);
        assert_eq!(status(session.map(last, 4, Prot::READ)), Status::Address);
        session.unmap(session.map(last, 3, Prot::READ | Prot::WRITE).unwrap()).unwrap();
    });
}

#[test]
fn halves_that_are_not_there_are_named_as_such() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
    let mut byte = [0];
    assert_eq!(status(region.read(BASE, &mut byte, Mirror::Mirror)), Status::NoCopy);
    assert_eq!(status(region.write(BASE, &byte, Mirror::Mirror)), Status::NoCopy);
    assert_eq!(status(region.read(BASE, &mut byte, Mirror::Both)), Status::Invalid);
    assert_eq!(status(region.write(BASE, &byte, Mirror::Any)), Status::Invalid);
    region.read(BASE, &mut byte, Mirror::Primary).unwrap();
}

#[test]
fn the_right_to_write_goes_with_the_last_handle_that_has_it() {
    Fake::with_each_mode(|_fake, session| {
        session.region_create("v", "r", 2 * BLOCK_BYTES, &RegionOptions::default()).unwrap();
        let reader = session.region_open("v", "r", Prot::READ).unwrap();
        let addr = reader.addr(BASE + 8).unwrap();
        let writers =
            [(); 2].map(|()| session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap());
        session.write(addr, b"here").unwrap();
        writers[0].close().unwrap();
        session.write(addr, b"here").unwrap();
        writers[1].close().unwrap();
        assert_eq!(status(session.write(addr, b"gone")), Status::Denied);
        assert_eq!(status(session.fill(addr, 0, BLOCK_BYTES)), Status::Denied);
        assert_eq!(session.compare(addr, b"here"), Ok(Ordering::Equal));
        let again = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
        session.write(addr, b"back").unwrap();
        again.close().unwrap();
        reader.close().unwrap();
    });
}

#[test]
fn who_may_only_read_cannot_write_by_any_call() {
    Fake::with_each_mode(|_fake, session| {
        session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
        let region = session.region_open("v", "r", Prot::READ).unwrap();
        let addr = region.addr(BASE).unwrap();
        assert_eq!(status(region.write(BASE, &[1], Mirror::Both)), Status::Denied);
        assert_eq!(status(session.write(addr, &[1])), Status::Denied);
        assert_eq!(status(session.fill(addr, 1, 1)), Status::Denied);
        assert_eq!(status(session.copy(addr, addr, 1)), Status::Denied);
        assert_eq!(status(session.map(addr, 1, Prot::READ | Prot::WRITE)), Status::Denied);
        let pointer = session.map(addr, 8000, Prot::READ).unwrap();
        // SAFETY: mapped for reading, and nobody writes it.
        assert_eq!(unsafe { pointer.read() }, 0);
        assert_eq!(status(region.close()), Status::Busy);
        session.unmap(pointer).unwrap();
        // A second handle with more rights: the first keeps its own.
        let writer = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
        writer.write(BASE, &[5], Mirror::Both).unwrap();
        assert_eq!(status(region.write(BASE, &[1], Mirror::Both)), Status::Denied);
        assert_eq!(session.compare(addr, &[5]), Ok(Ordering::Equal));
    });
}

#[test]
fn a_handle_ends_with_close_with_the_region_and_with_the_session() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let open = || session.region_open("v", "r", Prot::READ).unwrap();
    let (first, second, third) = (open(), open(), open());
    let addr = first.addr(BASE).unwrap();
    first.close().unwrap();
    assert_eq!(status(first.close()), Status::Closed);
    assert_eq!(status(first.read(BASE, &mut [0], Mirror::Any)), Status::Closed);
    drop(second);
    third.read(BASE, &mut [0], Mirror::Any).unwrap();
    assert_eq!(fake.state().closes.len(), 2);
    session.region_delete("v", "r").unwrap();
    assert_eq!(status(third.read(BASE, &mut [0], Mirror::Any)), Status::Closed);
    assert_eq!(status(third.info()), Status::Closed);
    assert_eq!(status(third.close()), Status::Closed);
    assert_eq!(status(session.read(addr, &mut [0])), Status::Address);
    assert_eq!(status(session.region_open("v", "r", Prot::READ)), Status::NotFound);
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let last = open();
    session.close().unwrap();
    assert_eq!(status(last.read(BASE, &mut [0], Mirror::Any)), Status::Closed);
    assert_eq!(status(last.close()), Status::Closed);
}

#[test]
fn a_region_that_another_session_deleted_answers_closed() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
    region.write(BASE, &[1], Mirror::Both).unwrap();
    let first = u32::try_from(region.info().unwrap().first.to_raw() / BLOCK_BYTES).unwrap();
    {
        let mut state = fake.state();
        state.blocks.clear();
        state.publish(&[first]);
    }
    let gone = |error: libdmce::Error| error.status() == Status::Closed;
    wait_until("the end is noticed", || region.write(BASE, &[2], Mirror::Both).is_err_and(gone));
}

#[test]
fn handles_that_a_broker_does_not_know_are_closed_and_no_others() {
    Fake::with_and_without_thread(|fake, session| {
        session.region_create("v", "r", 2 * BLOCK_BYTES, &RegionOptions::default()).unwrap();
        let open = |prot| session.region_open("v", "r", prot).unwrap();
        let reader = open(Prot::READ);
        let addr = reader.addr(BASE).unwrap();
        let writer = open(Prot::READ_WRITE);
        writer.write(BASE, b"here", Mirror::Both).unwrap();
        let pointer = session.map(addr, 4, Prot::READ).unwrap();
        fake.die();
        // Of the two, the one that may write.
        fake.state().openings.pop_last().unwrap();
        fake.restart();
        // The broker is needed for this, so it is attached to by now.
        let later = open(Prot::READ);
        assert_eq!(status(writer.info()), Status::Closed);
        assert_eq!(status(writer.write(BASE, b"gone", Mirror::Both)), Status::Closed);
        assert_eq!(status(writer.close()), Status::Closed);
        assert_eq!(status(session.write(addr, b"gone")), Status::Denied);
        assert_eq!(session.compare(addr, b"here"), Ok(Ordering::Equal));
        session.unmap(pointer).unwrap();
        reader.close().unwrap();
        later.close().unwrap();
        assert_eq!(status(session.read(addr, &mut [0])), Status::Address);
        // Nothing is left to be closed, or told to the next broker.
        assert_eq!(fake.state().closes.len(), 2);
        fake.die();
        fake.restart();
        session.region_list("v").unwrap();
        assert_eq!(fake.state().attached.as_ref().unwrap().openings, []);
    });
}

#[test]
fn a_handle_that_is_over_does_not_come_back_with_its_region() {
    Fake::with_and_without_thread(|fake, session| {
        session.region_create("v", "r", 2 * BLOCK_BYTES, &RegionOptions::default()).unwrap();
        let open = || session.region_open("v", "r", Prot::READ_WRITE).unwrap();
        let old = open();
        let addr = old.addr(BASE).unwrap();
        old.write(BASE, b"kept", Mirror::Both).unwrap();
        let pointer = session.map(addr, 4, Prot::READ).unwrap();
        fake.die();
        fake.state().openings.clear();
        fake.restart();
        let new = open();
        assert_eq!(status(old.read(BASE, &mut [0], Mirror::Any)), Status::Closed);
        assert_eq!(session.compare(addr, b"kept"), Ok(Ordering::Equal));
        // SAFETY: what a pointer is into stays mapped until it is given back.
        assert_eq!(unsafe { pointer.read() }, b'k');
        session.unmap(pointer).unwrap();
        drop(old);
        new.read(BASE, &mut [0], Mirror::Any).unwrap();
        new.close().unwrap();
        assert_eq!(status(session.read(addr, &mut [0])), Status::Address);
    });
}

/// With a thread nobody has to ask for anything.
#[test]
fn a_session_looks_by_itself_what_a_broker_that_came_back_has_open() {
    let mut fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "r", Prot::READ).unwrap();
    fake.die();
    fake.state().openings.clear();
    fake.restart();
    wait_until("the handle is told", || region.info().is_err());
    assert_eq!(status(region.info()), Status::Closed);
}

#[test]
fn a_deletion_that_has_begun_ends_the_handles_whatever_becomes_of_it() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "r", Prot::READ).unwrap();
    fake.state().postpones_begun = Some(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| session.region_delete("v", "r"));
        let asked = fake.asked("RegionDelete");
        wait_until("nothing has begun", || fake.asked("RegionDelete") > asked + 1);
        region.info().unwrap();
        fake.state().postpones_begun = Some(true);
        wait_until("it is told", || region.info().is_err());
        // As if a broker had come back that knows nothing of it.
        fake.state().postpones_begun = Some(false);
        wait_until("it has not begun any more", || fake.asked("RegionDelete") > asked + 3);
        fake.state().postpones_begun = None;
        deleting.join().unwrap().unwrap();
    });
    assert_eq!(status(region.read(BASE, &mut [0], Mirror::Any)), Status::Closed);
    assert_eq!(status(region.close()), Status::Closed);
}

/// The answer to an open is on its way when another thread deletes the region.
#[test]
fn a_region_that_is_deleted_while_it_is_opened_gives_a_handle_that_is_closed() {
    let mut fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    for round in 0..20 {
        let name = format!("r{round}");
        session.region_create("v", &name, 2 * BLOCK_BYTES, &RegionOptions::default()).unwrap();
        let opened = std::thread::scope(|scope| {
            let opening = scope.spawn(|| session.region_open("v", &name, Prot::READ));
            let deleting = scope.spawn(|| session.region_delete("v", &name));
            deleting.join().unwrap().unwrap();
            opening.join().unwrap()
        });
        match opened {
            Ok(region) => assert_eq!(status(region.info()), Status::Closed),
            Err(error) => assert_eq!(error.status(), Status::NotFound),
        }
    }
    fake.die();
    fake.restart();
    session.region_list("v").unwrap();
    assert_eq!(fake.state().attached.as_ref().unwrap().openings, []);
}

#[test]
fn names_come_sorted_and_all_of_them() {
    let fake = Fake::start();
    let session = fake.open();
    assert_eq!(session.region_list("v").unwrap(), Vec::<String>::new());
    for name in ["e", "b", "d", "a", "c"] {
        session.region_create("v", name, 4096, &RegionOptions::default()).unwrap();
        session.region_create("w", name, 4096, &RegionOptions::default()).unwrap();
    }
    assert_eq!(session.region_list("v").unwrap(), ["a", "b", "c", "d", "e"]);
    let create = |volume, name, bytes| {
        status(session.region_create(volume, name, bytes, &RegionOptions::default()))
    };
    assert_eq!(create("v", "f", 0), Status::Invalid);
    assert_eq!(create("v", "", 4096), Status::Invalid);
    assert_eq!(create("v", "a/b", 4096), Status::Invalid);
    assert_eq!(create("", "a", 4096), Status::Invalid);
    assert_eq!(create("v", &"x".repeat(128), 4096), Status::Invalid);
    assert_eq!(status(session.region_open("v", "a", Prot::default())), Status::Invalid);
}

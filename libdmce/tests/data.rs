//! Reading, writing, copying and mapping, against a plain buffer.

mod fake;

use std::cmp::Ordering;

use fake::{BLOCK_BYTES, Fake, Seeded, status, wait_until};
use libdmce::{DmceAddr, Options, Prot, Session, Status};

/// A span of several blocks, the last of them not full.
const BYTES: u64 = 3 * BLOCK_BYTES + 123 * 4096;

fn at(session: &Session, start: DmceAddr, offset: u64) -> DmceAddr {
    start.checked_add(session.layout(), offset).expect("tests stay inside")
}

#[test]
fn a_span_is_like_one_buffer() {
    Fake::with_each_mode(|_fake, session| {
        let span = session.malloc(BYTES).unwrap();
        let mut model = vec![0_u8; usize::try_from(BYTES).unwrap()];
        let mut random = Seeded(3);
        for step in 0..600 {
            // Near a block's end as often as anywhere.
            let near = random.below(2) == 0;
            let bytes = 1 + random.below(if step % 50 == 0 { 5 << 20 } else { 9_000 });
            let place = |random: &mut Seeded| {
                let start = random.below(BYTES - bytes);
                if near { (start / BLOCK_BYTES + 1) * BLOCK_BYTES - bytes / 2 } else { start }
            };
            let (a, b) = (place(&mut random).min(BYTES - bytes), place(&mut random));
            let b = if random.below(3) == 0 { a + random.below(bytes) } else { b };
            let b = b.min(BYTES - bytes);
            let range = |start: u64| {
                let start = usize::try_from(start).unwrap();
                start..start + usize::try_from(bytes).unwrap()
            };
            let addr = at(&session, span, a);
            match random.below(5) {
                0 => {
                    let data = random.bytes(range(a).len());
                    session.write(addr, &data).unwrap();
                    model[range(a)].copy_from_slice(&data);
                }
                1 => {
                    let byte = random.bits().to_le_bytes()[0];
                    session.fill(addr, byte, bytes).unwrap();
                    model[range(a)].fill(byte);
                }
                2 => {
                    session.copy(at(&session, span, b), addr, bytes).unwrap();
                    model.copy_within(range(a), range(b).start);
                }
                3 => {
                    let expected = model[range(b)].cmp(&model[range(a)]);
                    let found = session.compare(at(&session, span, b), &model[range(a)]).unwrap();
                    assert_eq!(found, expected, "step {step}");
                }
                _ => {
                    let mut found = vec![0; range(a).len()];
                    session.read(addr, &mut found).unwrap();
                    assert!(found == model[range(a)], "step {step}: {bytes} bytes at {a}");
                }
            }
        }
        let mut found = vec![0; model.len()];
        session.read(span, &mut found).unwrap();
        assert!(found == model);
    });
}

#[test]
fn crossing_an_end_is_refused_and_changes_nothing() {
    Fake::with_each_mode(|_fake, session| {
        let span = session.malloc(BYTES).unwrap();
        let neighbour = session.malloc(2 * BLOCK_BYTES).unwrap();
        session.fill(neighbour, 7, 2 * BLOCK_BYTES).unwrap();
        let end = at(&session, span, BYTES - 10);
        assert_eq!(status(session.write(end, &[1; 11])), Status::Address);
        assert_eq!(status(session.fill(span, 1, BYTES + 1)), Status::Address);
        assert_eq!(status(session.copy(end, neighbour, 11)), Status::Address);
        assert_eq!(status(session.copy(neighbour, end, 11)), Status::Address);
        assert_eq!(status(session.read(end, &mut [0; 11])), Status::Address);
        assert_eq!(status(session.map(end, 11, Prot::READ)), Status::Address);
        let zeros = vec![0; usize::try_from(BYTES).unwrap()];
        assert_eq!(session.compare(span, &zeros), Ok(Ordering::Equal));
        // Another server's address, and one of a block that nobody has.
        let far = session.addr(1 << 48 | span.to_raw()).unwrap();
        assert_eq!(status(session.read(far, &mut [0])), Status::Address);
        let none = session.addr(4000 * BLOCK_BYTES).unwrap();
        assert_eq!(status(session.read(none, &mut [0])), Status::Address);
        // No bytes cross no end.
        session.read(end, &mut []).unwrap();
        session.write(at(&session, span, BYTES - 1), &[]).unwrap();
    });
}

#[test]
fn small_allocations_are_checked_to_their_end_in_debug_builds() {
    let fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(64).unwrap();
    let beyond = session.write(at(&session, addr, 60), &[1; 8]);
    assert_eq!(beyond.is_err(), cfg!(debug_assertions), "{beyond:?}");
}

#[test]
fn pointers_show_what_is_written_and_write_what_is_read() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(BYTES).unwrap();
        // Across two ends of blocks, from the middle of a page.
        let (start, bytes) = (BLOCK_BYTES - 5_000, 2 * BLOCK_BYTES);
        let addr = at(&session, span, start);
        let len = usize::try_from(bytes).unwrap();
        let pointer = session.map(addr, len, Prot::READ | Prot::WRITE).unwrap();
        let data = Seeded(9).bytes(len);
        session.write(addr, &data).unwrap();
        // SAFETY: mapped for so many bytes, and nobody writes them now.
        assert!(unsafe { std::slice::from_raw_parts(pointer, len) } == data);
        // SAFETY: mapped for writing.
        unsafe { pointer.wrapping_add(7_000).write_bytes(0x77, 100) };
        assert_eq!(session.compare(at(&session, addr, 7_000), &[0x77; 100]), Ok(Ordering::Equal));
        assert_eq!(status(session.free(span)), Status::Busy);
        wait_until("the broker knows of it", || {
            let state = fake.state();
            state.maps.values().any(|map| map.os_address == pointer as u64 && map.bytes == bytes)
        });
        session.unmap(pointer).unwrap();
        assert_eq!(status(session.unmap(pointer)), Status::NotFound);
        wait_until("the broker knows of that, too", || fake.state().maps.is_empty());
        session.free(span).unwrap();
    });
}

#[test]
fn a_pointer_that_was_given_twice_ends_with_the_second_unmap() {
    let fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(4096).unwrap();
    let first = session.map(addr, 4096, Prot::READ).unwrap();
    let second = session.map(addr, 100, Prot::READ | Prot::WRITE).unwrap();
    session.unmap(first).unwrap();
    assert_eq!(status(session.free(addr)), Status::Busy);
    session.unmap(second).unwrap();
    session.free(addr).unwrap();
    assert_eq!(status(session.map(addr, 0, Prot::READ)), Status::Invalid);
    assert_eq!(status(session.map(addr, 1, Prot::default())), Status::Invalid);
}

#[test]
fn there_are_as_many_pins_as_the_session_object_holds() {
    let fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(1 << 20).unwrap();
    let mut pointers = Vec::new();
    for place in 0..512 {
        let addr = at(&session, addr, place * 1024);
        pointers.push(session.map(addr, 1024, Prot::READ).unwrap());
    }
    assert_eq!(status(session.map(addr, 1, Prot::READ)), Status::NoMem);
    for pointer in pointers {
        session.unmap(pointer).unwrap();
    }
    session.map(addr, 1, Prot::READ).unwrap();
}

#[test]
fn verified_writes_read_back_what_was_written() {
    let fake = Fake::start();
    let session = Session::open(&Options { verify: true, ..fake.options() }).unwrap();
    let span = session.malloc(BYTES).unwrap();
    let data = Seeded(4).bytes(3 << 20);
    let addr = at(&session, span, BLOCK_BYTES - 77);
    session.write(addr, &data).unwrap();
    assert_eq!(session.compare(addr, &data), Ok(Ordering::Equal));
}

#[test]
fn more_threads_than_slots_read_and_write() {
    Fake::with_each_mode(|_fake, session| {
        let addr = session.malloc(300 * 64).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..300_u64 {
                let session = &session;
                scope.spawn(move || {
                    let mine = at(session, addr, thread * 64);
                    for round in 0..50_u64 {
                        let data = [thread.to_le_bytes(), round.to_le_bytes()].concat();
                        session.write(mine, &data).unwrap();
                        assert_eq!(session.compare(mine, &data), Ok(Ordering::Equal));
                    }
                });
            }
        });
    });
}

#[test]
fn a_window_budget_is_kept() {
    let fake = Fake::start();
    let options = Options { window_budget: 8 << 20, ..fake.options() };
    let session = Session::open(&options).unwrap();
    let span = session.malloc(12 * BLOCK_BYTES).unwrap();
    session.fill(span, 3, 12 * BLOCK_BYTES).unwrap();
    let stat = session.stat().unwrap();
    assert_eq!(stat.window_bytes, 8 << 20);
    assert!(stat.windows > 0 && stat.windows <= 4, "{stat:?}");
    // A mapping of one's own is not a window.
    let len = usize::try_from(12 * BLOCK_BYTES).unwrap();
    let pointer = session.map(span, len, Prot::READ).unwrap();
    // SAFETY: mapped for so many bytes, and nobody writes them now.
    let mapped = unsafe { std::slice::from_raw_parts(pointer, len) };
    assert!(mapped.iter().all(|&byte| byte == 3));
}

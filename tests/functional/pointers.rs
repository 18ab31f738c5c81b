//! Pointers that lock their range, over real servers.

use std::os::unix::fs::FileExt;
use std::sync::{Mutex, mpsc};
use std::time::Duration;
use std::{fs, thread};

use dmce_abi::wire::admin::{AdminRequest, BlockRow, CopyState};
use dmce_abi::wire::client::ClientRequest;
use dmce_abi::{DmceAddr, Status};
use dmce_sys::poll::wait_readable;
use dmce_tests::{Instance, wait_until};
use libdmce::connection::Connection;
use libdmce::{AllocOptions, Event, Options, PointerOptions, PointerWait, Session};

const WAITS: PointerOptions = PointerOptions { wait: PointerWait::InCall, take_dirty: false };
const NO_WAIT: PointerOptions = PointerOptions { wait: PointerWait::Never, take_dirty: false };
const QUEUES: PointerOptions = PointerOptions { wait: PointerWait::Queued, take_dirty: false };

fn two_copies() -> AllocOptions {
    AllocOptions { copies: 2, ..AllocOptions::default() }
}

fn byte(addr: DmceAddr, offset: u64, session: &Session) -> DmceAddr {
    session.addr(addr.to_raw() + offset).unwrap()
}

/// The block that an address is in.
fn block_of(instance: &Instance, session: &Session, addr: DmceAddr) -> BlockRow {
    let id = addr.to_raw() >> session.layout().cell_bits();
    let row = instance.blocks().into_iter().find(|row| u64::from(row.block) == id);
    row.expect("the block is known")
}

/// What each good copy has at an address: the primary's first.
fn on_copies(instance: &Instance, session: &Session, addr: DmceAddr, bytes: usize) -> Vec<Vec<u8>> {
    let row = block_of(instance, session, addr);
    let cell = addr.to_raw() & ((1 << session.layout().cell_bits()) - 1);
    let of_daemon = |daemon: u32| {
        let name = format!("dmce.{}.{daemon}.data-{:08x}", instance.name(), row.block);
        let file = fs::File::open(instance.object(&name)).unwrap();
        let mut found = vec![0; bytes];
        file.read_exact_at(&mut found, cell).unwrap();
        found
    };
    let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
    good.map(|copy| of_daemon(copy.daemon)).collect()
}

/// This process's memory, for plain stores and loads.
fn own_memory() -> fs::File {
    fs::File::options().read(true).write(true).open("/proc/self/mem").unwrap()
}

/// Stores by a plain pointer, as an application does.
fn store(pointer: *mut u8, data: &[u8]) {
    own_memory().write_all_at(data, pointer.addr() as u64).unwrap();
}

/// Loads by a plain pointer.
fn load(pointer: *const u8, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    own_memory().read_exact_at(&mut found, pointer.addr() as u64).unwrap();
    found
}

#[test]
fn readers_share_writers_do_not_and_neighbours_are_apart_to_the_byte() {
    let instance = Instance::start(2);
    for budget in [0, 8 << 20] {
        let session = Session::open(&Options { window_budget: budget, ..instance.options() });
        let session = session.unwrap();
        let addr = session.malloc(100_000).unwrap();
        session.write(addr, b"what was there").unwrap();
        let busy = |offset, bytes| {
            let at = byte(addr, offset, &session);
            let refused = session.write_ptr(at, bytes, NO_WAIT).unwrap_err();
            assert_eq!(refused.status(), Status::Busy, "{offset} {bytes}: {refused}");
        };
        let one = session.read_ptr(addr, 50, NO_WAIT).unwrap();
        let two = session.read_ptr(addr, 50, NO_WAIT).unwrap();
        assert_eq!(load(one.as_ptr(), 14), b"what was there");
        busy(49, 10);
        one.release().unwrap();
        busy(0, 1);
        let beside = session.write_ptr(byte(addr, 50, &session), 50, NO_WAIT).unwrap();
        drop(two);
        let own = session.write_ptr(addr, 50, WAITS).unwrap();
        busy(0, 1);
        assert_eq!(session.read_ptr(addr, 1, NO_WAIT).unwrap_err().status(), Status::Busy);
        store(own.as_ptr(), b"by pointer");
        // The owner's own calls pass.
        session.write(byte(addr, 10, &session), b"!").unwrap();
        own.release().unwrap();
        let mut found = [0; 14];
        session.read(addr, &mut found).unwrap();
        assert_eq!(&found, b"by pointer!ere");
        let aborted = beside.abort().unwrap_err();
        assert_eq!(aborted.status(), Status::Unsupported, "one copy: {aborted}");
        session.close().unwrap();
    }
    instance.wait_empty();
}

#[test]
fn a_pointer_is_for_memory_of_the_session_and_ends_once() {
    let instance = Instance::start(1);
    let session = instance.open();
    let addr = session.malloc(4096).unwrap();
    let status = |of: Result<libdmce::WriteGuard, libdmce::Error>| of.unwrap_err().status();
    assert_eq!(status(session.write_ptr(addr, 0, WAITS)), Status::Invalid);
    let beyond = session.addr(addr.to_raw() + (1 << 40)).unwrap();
    assert_eq!(status(session.write_ptr(beyond, 1, WAITS)), Status::Address);
    let pointer = session.write_ptr(addr, 4096, WAITS).unwrap().into_raw();
    assert_eq!(session.free(addr).unwrap_err().status(), Status::Busy);
    assert_eq!(session.unmap(pointer).unwrap_err().status(), Status::NotFound, "it locks");
    let inside = session.release_ptr(pointer.wrapping_add(1)).unwrap_err();
    assert_eq!(inside.status(), Status::NotFound);
    let mapped = session.map(addr, 4096, libdmce::Prot::READ).unwrap();
    session.release_ptr(pointer).unwrap();
    assert_eq!(session.release_ptr(pointer).unwrap_err().status(), Status::NotFound);
    assert_eq!(session.abort_ptr(pointer).unwrap_err().status(), Status::NotFound);
    assert_eq!(session.free(addr).unwrap_err().status(), Status::Busy, "it is mapped");
    session.unmap(mapped).unwrap();
    session.free(addr).unwrap();
    // As many as there are pins for, and all of them again.
    let addr = session.malloc(1 << 20).unwrap();
    for _ in 0..2 {
        let at = |number: u64| byte(addr, number * 8, &session);
        let guards: Vec<_> =
            (0..512).map(|number| session.write_ptr(at(number), 8, WAITS).unwrap()).collect();
        assert_eq!(status(session.write_ptr(at(512), 8, WAITS)), Status::NoMem);
        drop(guards);
    }
    // Regions are another's as well.
    session.region_create("volume", "name", 4096, &libdmce::RegionOptions::default()).unwrap();
    let region = session.region_open("volume", "name", libdmce::Prot::READ_WRITE).unwrap();
    let in_region = region.addr(0).unwrap();
    assert_eq!(status(session.write_ptr(in_region, 8, WAITS)), Status::Unsupported);
    // With a pointer that was not released.
    let _left = session.write_ptr(addr, 8, WAITS).unwrap().into_raw();
    drop(region);
    session.close().unwrap();
}

#[test]
fn threads_take_turns_and_count_right() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 400;
    let instance = Instance::start(2);
    let session = instance.open();
    for copies in [1, 2] {
        let options = AllocOptions { copies, ..AllocOptions::default() };
        let addr = session.malloc_with(64, &options).unwrap();
        session.fill(addr, 0, 64).unwrap();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..ROUNDS {
                        let guard = session.write_ptr(addr, 8, WAITS).unwrap();
                        let before = load(guard.as_ptr(), 8).try_into().unwrap();
                        thread::yield_now();
                        let next = u64::from_le_bytes(before) + 1;
                        store(guard.as_ptr(), &next.to_le_bytes());
                        guard.release().unwrap();
                    }
                });
            }
        });
        let mut count = [0; 8];
        session.read(addr, &mut count).unwrap();
        assert_eq!(u64::from_le_bytes(count), THREADS * ROUNDS);
        for copy in on_copies(&instance, &session, addr, 8) {
            assert_eq!(copy, count);
        }
    }
}

#[test]
fn what_is_released_is_on_both_copies_and_what_is_aborted_on_none() {
    let instance = Instance::start(2);
    let session = instance.open();
    let addr = session.malloc_with(300_000, &two_copies()).unwrap();
    session.fill(addr, b'o', 300_000).unwrap();
    let all = |expected: &dyn Fn(usize) -> u8| {
        let copies = on_copies(&instance, &session, addr, 300_000);
        assert_eq!(copies.len(), 2);
        for copy in copies {
            let wrong = (0..300_000).find(|&at| copy[at] != expected(at));
            assert_eq!(wrong, None);
        }
    };
    // In the midst of pages, over several batches.
    let range = 5_000..205_003;
    let guard = session.write_ptr(byte(addr, 5_000, &session), 200_003, WAITS).unwrap();
    store(guard.as_ptr(), &[b'a'; 200_003]);
    assert_eq!(on_copies(&instance, &session, addr, 9_000)[1], [b'o'; 9_000]);
    guard.abort().unwrap();
    all(&|_| b'o');
    let guard = session.write_ptr(byte(addr, 5_000, &session), 200_003, WAITS).unwrap();
    store(guard.as_ptr(), &[b'r'; 200_003]);
    session.write(byte(addr, 6_000, &session), b"w").unwrap();
    guard.release().unwrap();
    let released = |at| match at {
        6_000 => b'w',
        at if range.contains(&at) => b'r',
        _ => b'o',
    };
    all(&released);
    // What a call has written is there whatever becomes of the pointer.
    let guard = session.write_ptr(addr, 300_000, WAITS).unwrap();
    store(guard.as_ptr(), &[b'x'; 4_000]);
    session.write(byte(addr, 4_096, &session), b"W").unwrap();
    guard.abort().unwrap();
    all(&|at| if at == 4_096 { b'W' } else { released(at) });
    // Who unwinds aborts.
    let unwound = thread::scope(|scope| {
        let unwinds = || {
            let guard = session.write_ptr(addr, 8, WAITS).unwrap();
            store(guard.as_ptr(), b"unwound!");
            panic!("on purpose");
        };
        scope.spawn(unwinds).join()
    });
    assert!(unwound.is_err());
    all(&|at| if at == 4_096 { b'W' } else { released(at) });
    let guard = session.write_ptr(addr, 8, WAITS).unwrap();
    store(guard.as_ptr(), b"dropped.");
    drop(guard);
    for copy in on_copies(&instance, &session, addr, 9) {
        assert_eq!(copy, b"dropped.o");
    }
}

#[test]
fn what_a_write_pointer_stored_outlives_the_copy_beneath_it() {
    for end in ["release", "abort"] {
        let mut instance = Instance::start(2);
        let session = instance.open();
        let addr = session.malloc_with(100_000, &two_copies()).unwrap();
        session.fill(addr, b'o', 100_000).unwrap();
        let guard = session.write_ptr(addr, 100_000, WAITS).unwrap();
        store(guard.as_ptr(), &[b'1'; 40_000]);
        let primary = block_of(&instance, &session, addr).copies[0].daemon;
        for name in instance.objects() {
            if name.starts_with(&format!("dmce.{}.{primary}.data-", instance.name())) {
                fs::remove_file(instance.object(&name)).unwrap();
            }
        }
        instance.kill_daemon(primary);
        wait_until("the copy is lost", || {
            session.poll().unwrap();
            let copies = block_of(&instance, &session, addr).copies;
            copies.iter().filter(|copy| copy.state == CopyState::Good).count() == 1
        });
        // The others are told, and this session has taken it in.
        session.write(byte(addr, 99_000, &session), b"w").unwrap();
        assert_eq!(load(guard.as_ptr(), 40_000), [b'1'; 40_000]);
        let by_pointer = guard.as_ptr().wrapping_add(50_000);
        store(by_pointer, &[b'2'; 1_000]);
        let refused = session.read_ptr(addr, 1, NO_WAIT).unwrap_err();
        assert_eq!(refused.status(), Status::Busy, "it is exclusive still");
        if end == "release" {
            guard.release().unwrap();
        } else {
            guard.abort().unwrap();
        }
        let mut found = vec![0; 100_000];
        session.read(addr, &mut found).unwrap();
        let expected = |at| match at {
            99_000 => b'w',
            0..40_000 if end == "release" => b'1',
            50_000..51_000 if end == "release" => b'2',
            _ => b'o',
        };
        assert_eq!((0..100_000).find(|&at| found[at] != expected(at)), None, "{end}");
        let again = session.write_ptr(addr, 8, WAITS).unwrap();
        let aborted = again.abort().unwrap_err();
        assert_eq!(aborted.status(), Status::Unsupported, "one copy is left: {aborted}");
    }
}

#[test]
fn what_a_write_pointer_stored_is_lost_with_an_object_that_is_cut_and_the_copies_are_equal() {
    let instance = Instance::start(2);
    let session = instance.open();
    let addr = session.malloc_with(100_000, &two_copies()).unwrap();
    session.fill(addr, b'o', 100_000).unwrap();
    let guard = session.write_ptr(addr, 100_000, WAITS).unwrap();
    store(guard.as_ptr(), &[b'1'; 40_000]);
    let row = block_of(&instance, &session, addr);
    let primary = row.copies[0].daemon;
    let name = format!("dmce.{}.{primary}.data-{:08x}", instance.name(), row.block);
    fs::File::options().write(true).open(instance.object(&name)).unwrap().set_len(0).unwrap();
    let pointer = guard.as_ptr();
    let released = guard.release().unwrap_err();
    assert_eq!(released.status(), Status::Lost, "{released}");
    assert_eq!(session.release_ptr(pointer).unwrap_err().status(), Status::NotFound);
    let mut found = vec![0; 100_000];
    session.read(addr, &mut found).unwrap();
    session.write_ptr(addr, 100_000, NO_WAIT).unwrap().release().unwrap();
    let good = on_copies(&instance, &session, addr, 100_000);
    assert!(good.iter().all(|copy| *copy == found));
}

#[test]
fn a_call_waits_as_long_as_its_session_says() {
    let instance = Instance::start(1);
    let session = Session::open(&Options { timeout_ms: 30, ..instance.options() }).unwrap();
    let addr = session.malloc(64).unwrap();
    let guard = session.write_ptr(addr, 64, WAITS).unwrap();
    let late = session.read_ptr(addr, 8, WAITS).unwrap_err();
    assert_eq!(late.status(), Status::Timeout);
    drop(guard);
    session.read_ptr(addr, 8, WAITS).unwrap().release().unwrap();
    session.close().unwrap();
    // For ever, but for a close.
    let session = instance.open();
    let addr = session.malloc(64).unwrap();
    let _held = session.write_ptr(addr, 64, WAITS).unwrap().into_raw();
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let session = &session;
        let waits = move || tell.send(session.read_ptr(addr, 8, WAITS).unwrap_err().status());
        scope.spawn(move || waits().unwrap());
        assert!(told.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
        session.close().unwrap();
        assert_eq!(told.recv().unwrap(), Status::Closed);
    });
}

/// The next event, as a program waits for it.
fn event(session: &Session) -> Event {
    let fd = session.event_fd().unwrap();
    assert!(wait_readable(fd, Some(Duration::from_secs(60))).unwrap(), "no event came");
    session.next_event().unwrap().expect("the descriptor was readable")
}

#[test]
fn who_queues_is_told_of_its_turn_which_lapses_if_nobody_takes_it() {
    let instance = Instance::start(1);
    let session = Session::open(&Options { timeout_ms: 300, ..instance.options() }).unwrap();
    let addr = session.malloc(64).unwrap();
    assert_eq!(session.next_event().unwrap(), None);
    let status = |of: Result<libdmce::WriteGuard, libdmce::Error>| of.unwrap_err().status();
    let granted = Event::Granted { addr, bytes: 8 };
    for _ in 0..2 {
        let holder = session.read_ptr(addr, 64, WAITS).unwrap();
        assert_eq!(session.cancel_ptr(addr, 8).unwrap_err().status(), Status::NotFound);
        assert_eq!(status(session.write_ptr(addr, 8, QUEUES)), Status::Busy);
        assert_eq!(status(session.write_ptr(addr, 8, QUEUES)), Status::Busy, "it has its place");
        // Not behind who waits for it, but so beside it.
        session.read_ptr(addr, 1, NO_WAIT).unwrap().release().unwrap();
        holder.release().unwrap();
        assert_eq!(event(&session), granted);
        // Its place is kept, and the turn is taken by the next call.
        assert_eq!(session.read_ptr(addr, 1, NO_WAIT).unwrap_err().status(), Status::Busy);
        session.write_ptr(addr, 8, QUEUES).unwrap().release().unwrap();
    }
    // Given up.
    let holder = session.read_ptr(addr, 64, WAITS).unwrap();
    assert_eq!(status(session.write_ptr(addr, 8, QUEUES)), Status::Busy);
    session.cancel_ptr(addr, 8).unwrap();
    session.read_ptr(addr, 1, NO_WAIT).unwrap().release().unwrap();
    // Not taken.
    assert_eq!(status(session.write_ptr(addr, 8, QUEUES)), Status::Busy);
    holder.release().unwrap();
    assert_eq!(event(&session), granted);
    wait_until("the turn has lapsed", || {
        session.poll().unwrap();
        session.read_ptr(addr, 1, NO_WAIT).is_ok_and(|guard| guard.release().is_ok())
    });
    assert_eq!(session.cancel_ptr(addr, 8).unwrap_err().status(), Status::NotFound);
    assert_eq!(session.next_event().unwrap(), None);
    // With nothing in the way it is had at once.
    session.write_ptr(addr, 8, QUEUES).unwrap().release().unwrap();
}

/// Which daemons have a good copy of a block.
fn good(row: &BlockRow) -> Vec<u32> {
    let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
    good.map(|copy| copy.daemon).collect()
}

#[test]
fn what_a_pointer_stores_while_its_block_moves_is_there_after_it() {
    let instance = Instance::start(2);
    for budget in [0, 8 << 20] {
        let options = Options { window_budget: budget, ..instance.options() };
        let session = Session::open(&options).unwrap();
        let addr = session.malloc(1 << 20).unwrap();
        session.fill(addr, b'o', 1 << 20).unwrap();
        let guard = session.write_ptr(addr, 1 << 20, WAITS).unwrap();
        let row = block_of(&instance, &session, addr);
        let from = good(&row)[0];
        let request = AdminRequest::Migrate { block: row.block, from: 0, to: 3 - from };
        // It is answered when it is done.
        let socket = instance.socket();
        let asks = move || {
            let mut broker = Connection::connect(socket).unwrap();
            let _ = broker.request(&ClientRequest::Admin(request));
        };
        let asker = thread::spawn(asks);
        // It waits for the pointer alone, when all of it is copied.
        wait_until("the move waits", || {
            session.poll().unwrap();
            let copies = block_of(&instance, &session, addr).copies;
            copies.iter().any(|copy| copy.state == CopyState::Syncing)
        });
        for _ in 0..200 {
            store(guard.as_ptr(), &[b'p'; 100_000]);
            session.poll().unwrap();
        }
        assert_eq!(good(&block_of(&instance, &session, addr)), [from]);
        guard.release().unwrap();
        wait_until("it has moved", || good(&block_of(&instance, &session, addr)) == [3 - from]);
        let mut found = vec![0; 1 << 20];
        session.read(addr, &mut found).unwrap();
        let wrong = (0..1 << 20).find(|&at| found[at] != if at < 100_000 { b'p' } else { b'o' });
        assert_eq!(wrong, None, "budget {budget}");
        asker.join().unwrap();
        session.close().unwrap();
    }
}

#[test]
fn a_pointer_outlives_changes_of_the_copies_that_come_one_after_the_other() {
    let instance = Instance::builder().daemons(3).sync_blocks(4).start();
    let session = instance.open();
    let addr = session.malloc_with(100_000, &two_copies()).unwrap();
    session.fill(addr, b'o', 100_000).unwrap();
    let guard = session.write_ptr(addr, 100_000, WAITS).unwrap();
    store(guard.as_ptr(), b"stored before");
    // Loses a copy of those that are good, and waits until there is another.
    let lose = |which: usize| {
        let row = block_of(&instance, &session, addr);
        let name = format!("dmce.{}.{}.data-{:08x}", instance.name(), good(&row)[which], row.block);
        fs::remove_file(instance.object(&name)).unwrap();
        wait_until("there are two copies again", || {
            session.poll().unwrap();
            let now = block_of(&instance, &session, addr);
            now.epoch > row.epoch && good(&now).len() == 2
        });
    };
    for _ in 0..3 {
        lose(0);
    }
    store(guard.as_ptr().wrapping_add(50_000), b"stored after");
    guard.release().unwrap();
    let mut found = vec![0; 100_000];
    session.read(addr, &mut found).unwrap();
    assert_eq!(
        (&found[..14], &found[49_999..50_013]),
        (&b"stored beforeo"[..], &b"ostored aftero"[..])
    );
    for copy in on_copies(&instance, &session, addr, 100_000) {
        assert!(copy == found);
    }
    // A second copy that was made since says nothing of what was there before.
    let guard = session.write_ptr(addr, 100_000, WAITS).unwrap();
    store(guard.as_ptr(), b"not to be");
    lose(1);
    let pointer = guard.as_ptr();
    let refused = guard.abort().unwrap_err();
    assert_eq!(refused.status(), Status::Unsupported, "{refused}");
    session.release_ptr(pointer).unwrap();
    let mut found = [0; 9];
    session.read(addr, &mut found).unwrap();
    assert_eq!(&found, b"not to be");
}

#[test]
fn a_pointer_that_locks_changes_nothing_of_transparent_memory_around_it() {
    let instance = Instance::start(2);
    let session = instance.open();
    let memory = session.vmalloc(8 << 20, &two_copies()).unwrap();
    let inside = byte(memory.addr(), 5_000, &session);
    let at = || session.ptr_of(inside).unwrap().addr();
    let before = at();
    assert_eq!(before, memory.as_ptr().addr() + 5_000);
    let other = session.write_ptr(inside, 10, WAITS).unwrap();
    assert_ne!(other.as_ptr().addr(), before);
    let unknown = session.addr_of(other.as_ptr()).unwrap_err();
    assert_eq!(unknown.status(), Status::Address);
    session.write_ptr(byte(inside, 10, &session), 10, WAITS).unwrap().release().unwrap();
    assert_eq!(at(), before);
    other.release().unwrap();
    assert_eq!((at(), session.addr_of(memory.as_ptr()).unwrap()), (before, memory.addr()));
    // What was stored without a lock, and not synced, was there before.
    store(memory.as_ptr().wrapping_add(5_000), b"plain");
    let guard = session.write_ptr(inside, 10, WAITS).unwrap();
    store(guard.as_ptr(), b"locked");
    guard.abort().unwrap();
    for copy in on_copies(&instance, &session, inside, 6) {
        assert_eq!(copy, b"plain\0");
    }
}

#[test]
fn threads_that_queue_for_one_range_never_have_it_together() {
    let instance = Instance::start(1);
    let session = Session::open(&Options { timeout_ms: 20, ..instance.options() }).unwrap();
    let addr = session.malloc(64).unwrap();
    session.fill(addr, 0, 64).unwrap();
    let had = Mutex::new(0_u64);
    thread::scope(|scope| {
        for number in 0..4 {
            let (session, had) = (&session, &had);
            scope.spawn(move || {
                for round in 0..400 {
                    let way = [QUEUES, NO_WAIT, WAITS][(round + number) % 3];
                    if (round + number) % 7 == 0 {
                        let _ = session.cancel_ptr(addr, 8);
                    }
                    match session.write_ptr(addr, 8, way) {
                        Ok(guard) => {
                            let mut had = had.try_lock().expect("nobody else has it");
                            *had += 1;
                            drop(had);
                            guard.release().unwrap();
                        }
                        Err(error) => {
                            let status = error.status();
                            assert!(matches!(status, Status::Busy | Status::Timeout), "{error}");
                        }
                    }
                }
            });
        }
    });
    assert!(*had.lock().unwrap() > 0);
    let _ = session.cancel_ptr(addr, 8);
    session.write_ptr(addr, 64, WAITS).unwrap().release().unwrap();
}

//! Transparent memory: allocations and regions that are mapped as a whole, and where they are.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

mod fake;

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use fake::{BLOCK_BYTES, Fake, Seeded, status, wait_until};
use libdmce::{AllocOptions, Error, Options, Prot, Region, RegionOptions, Session, Status};

const MIB: u64 = 1 << 20;
const GRANULE: usize = 2 << 20;
/// Three blocks and a part of a page, of a fourth.
const BYTES: u64 = 3 * BLOCK_BYTES + 5;

fn allocate(session: &Session, bytes: u64) -> Result<*mut u8, Error> {
    session.vmalloc(bytes, &AllocOptions::default()).map(libdmce::VirtualMemory::into_raw)
}

/// The pointer to a byte of memory that the tests have.
fn at(pointer: *mut u8, offset: u64) -> *mut u8 {
    pointer.wrapping_add(usize::try_from(offset).expect("it is mapped"))
}

fn store(pointer: *mut u8, data: &[u8]) {
    // SAFETY: the pointer is to as many bytes that may be written.
    unsafe { ptr::copy_nonoverlapping(data.as_ptr(), pointer, data.len()) };
}

fn load(pointer: *const u8, bytes: usize) -> Vec<u8> {
    let mut found = vec![0; bytes];
    // SAFETY: the pointer is to as many bytes that may be read.
    unsafe { ptr::copy_nonoverlapping(pointer, found.as_mut_ptr(), bytes) };
    found
}

/// Nothing is held by the broker or the session of what was.
fn is_all_gone(fake: &Fake, session: &Session) {
    wait_until("all went back", || fake.state().blocks.is_empty() && fake.state().maps.is_empty());
    assert_eq!(session.stat().unwrap().allocated_bytes, 0);
}

#[test]
fn plain_stores_and_calls_meet_over_blocks_that_lie_one_behind_the_other() {
    Fake::with_each_mode(|fake, session| {
        let windows = session.stat().unwrap().window_bytes;
        let pointer = allocate(&session, BYTES).unwrap();
        assert!(pointer.addr().is_multiple_of(GRANULE));
        assert!(load(pointer, usize::try_from(BYTES).unwrap()).iter().all(|&byte| byte == 0));
        let first = session.addr_of(pointer).unwrap();
        let addr_of = |offset| session.addr_of(at(pointer, offset));
        for offset in [0, 1, 4095, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 7, BYTES - 1] {
            let addr = addr_of(offset).unwrap();
            assert_eq!(addr.to_raw(), first.to_raw() + offset);
            assert_eq!(session.ptr_of(addr), Ok(at(pointer, offset)));
        }
        for offset in [BYTES, BYTES + 4096, 4 * BLOCK_BYTES, u64::MAX / 2 - GRANULE as u64] {
            let addr = session.addr(first.to_raw() + offset).unwrap();
            assert_eq!(status(session.ptr_of(addr)), Status::Address, "{offset}");
        }
        for outside in [at(pointer, BYTES), pointer.wrapping_sub(1), ptr::without_provenance_mut(1)]
        {
            assert_eq!(status(session.addr_of(outside)), Status::Address, "{outside:p}");
        }
        // Over the ends of blocks, both ways.
        let data = Seeded(7).bytes(200_000);
        for from in [BLOCK_BYTES - 100_000, BYTES - 200_000] {
            store(at(pointer, from), &data);
            let mut found = vec![0; data.len()];
            session.read(addr_of(from).unwrap(), &mut found).unwrap();
            assert!(found == data);
            session.fill(addr_of(from).unwrap(), 0xee, 200_000).unwrap();
            assert!(load(at(pointer, from), data.len()).iter().all(|&byte| byte == 0xee));
        }
        assert_eq!(session.add64(first, 5), Ok(0));
        assert_eq!(load(pointer, 8), 5_u64.to_le_bytes());
        assert_eq!(session.stat().unwrap().window_bytes, windows);
        let told = fake.state().maps[&(pointer.addr() as u64)];
        assert_eq!((told.addr, told.bytes, told.writable), (first.to_raw(), BYTES, true));
        session.vfree(pointer).unwrap();
        is_all_gone(fake, &session);
    });
}

#[test]
fn it_ends_by_its_own_call_alone_and_once() {
    Fake::with_each_mode(|fake, session| {
        let pointer = allocate(&session, BYTES).unwrap();
        let addr = session.addr_of(pointer).unwrap();
        assert_eq!(status(session.free(addr)), Status::Busy);
        assert_eq!(status(session.realloc(addr, 1)), Status::Busy);
        assert_eq!(status(session.unmap(pointer)), Status::NotFound);
        assert_eq!(session.usable_size(addr), Ok(BYTES.next_multiple_of(4096)));
        let other = session.malloc(5000).unwrap();
        let mapped = session.map(other, 5000, Prot::READ).unwrap();
        for wrong in [at(pointer, 1), at(pointer, 4096), mapped, ptr::null_mut()] {
            assert_eq!(status(session.vfree(wrong)), Status::Address, "{wrong:p}");
            assert_eq!(session.addr_of(pointer), Ok(addr));
        }
        assert_eq!(status(session.addr_of(mapped)), Status::Address, "it is a pointer of map");
        let within = session.map(addr, 10, Prot::READ).unwrap();
        assert_eq!(status(session.vfree(pointer)), Status::Busy);
        session.unmap(within).unwrap();
        session.unmap(mapped).unwrap();
        session.free(other).unwrap();
        session.vfree(pointer).unwrap();
        assert_eq!(status(session.vfree(pointer)), Status::Address);
        assert_eq!(status(session.addr_of(pointer)), Status::Address);
        assert_eq!(status(session.ptr_of(addr)), Status::Address);
        assert_eq!(status(session.sync(pointer, 1)), Status::Address);
        assert!(!fake.state().maps.contains_key(&(pointer.addr() as u64)));
        // The next may be where it was, and is found as itself.
        let next = allocate(&session, BYTES).unwrap();
        assert_eq!(session.ptr_of(session.addr_of(next).unwrap()), Ok(next));
    });
}

#[test]
fn small_ones_share_neither_a_block_nor_a_huge_page() {
    Fake::with_each_mode(|fake, session| {
        let mut all = Vec::new();
        for bytes in [1, 4096, 4097, MIB, BLOCK_BYTES] {
            let memory = session.vmalloc(bytes, &AllocOptions::default()).unwrap();
            assert_eq!((memory.len(), memory.is_empty()), (bytes, false));
            store(at(memory.as_ptr(), bytes - 1), &[9]);
            assert_eq!(memory.addr().to_raw() % BLOCK_BYTES, 0);
            all.push(memory);
        }
        let places: std::collections::BTreeSet<usize> =
            all.iter().map(|memory| memory.as_ptr().addr() / GRANULE).collect();
        assert_eq!(places.len(), all.len());
        // They hold up no free of others past the gates, and end with their values.
        drop(all);
        is_all_gone(fake, &session);
    });
}

#[test]
fn what_is_refused_leaves_nothing() {
    Fake::with_each_mode(|fake, session| {
        assert_eq!(status(allocate(&session, 0)), Status::Invalid);
        assert_eq!(status(allocate(&session, u64::MAX)), Status::NoSpace);
        assert_eq!(status(allocate(&session, 1 << 60)), Status::NoSpace);
        fake.state().capacity = 8 * MIB;
        assert_eq!(status(allocate(&session, 9 * MIB)), Status::NoSpace);
        let options = AllocOptions { copies: 9, ..AllocOptions::default() };
        assert_eq!(status(session.vmalloc(1, &options)), Status::Invalid);
        is_all_gone(fake, &session);
        store(allocate(&session, 8 * MIB).unwrap(), &[1]);
    });
}

#[test]
fn there_are_512_pointers_and_what_is_one_too_many_goes_back() {
    let fake = Fake::start();
    let session = fake.open();
    let pointers: Vec<*mut u8> = (0..512).map(|_| allocate(&session, 1).unwrap()).collect();
    let refused = allocate(&session, 1).unwrap_err();
    assert_eq!(refused.status(), Status::NoMem, "{refused}");
    assert_eq!(fake.state().blocks.len(), 512);
    session.vfree(pointers[77]).unwrap();
    allocate(&session, 1).unwrap();
    session.close().unwrap();
    assert_eq!(status(session.addr_of(pointers[0])), Status::Closed);
}

#[test]
fn nothing_is_mapped_on_the_message_path() {
    let fake = Fake::start();
    let session = Session::open(&Options { message_path: true, ..fake.options() }).unwrap();
    assert_eq!(status(allocate(&session, 1)), Status::Unsupported);
    assert!(fake.state().blocks.is_empty());
}

#[test]
fn what_was_stored_is_on_every_copy_after_sync_and_stays_when_one_is_gone() {
    for window_budget in [0, 4 << 20] {
        let fake = Fake::start();
        fake.state().copies = 2;
        let session = Session::open(&Options { window_budget, ..fake.options() }).unwrap();
        let memory = session.vmalloc(BYTES, &AllocOptions::default()).unwrap();
        let end = at(memory.as_ptr(), BLOCK_BYTES);
        store(end.wrapping_sub(3), &[7; 6]);
        assert_eq!(fake.copy_of(2, 2, 0, 3), [0; 3], "it is on one of them until then");
        memory.sync(BLOCK_BYTES - 3, 6).unwrap();
        for daemon in [1, 2] {
            assert_eq!(fake.copy_of(1, daemon, BLOCK_BYTES - 3, 3), [7; 3], "daemon {daemon}");
            assert_eq!(fake.copy_of(2, daemon, 0, 3), [7; 3], "daemon {daemon}");
        }
        for (offset, bytes) in [(0, 0), (BYTES, 0), (0, BYTES), (BYTES - 1, 1)] {
            memory.sync(offset, bytes).unwrap();
        }
        for (offset, bytes) in [(BYTES + 1, 0), (BYTES, 1), (1, BYTES), (0, u64::MAX)] {
            assert_eq!(status(memory.sync(offset, bytes)), Status::Address, "{offset} {bytes}");
        }
        // Without a call: the page is gone beneath the pointer.
        fake.truncate_copy(2, 1);
        assert_eq!(load(end, 3), [7; 3]);
        store(end, &[8; 3]);
        assert_eq!(fake.copy_of(2, 2, 0, 3), [8; 3]);
    }
}

#[test]
fn who_translates_while_others_allocate_and_free_gets_what_was_there() {
    let fake = Fake::start();
    let session = fake.open();
    let stays = session.vmalloc(BYTES, &AllocOptions::default()).unwrap();
    let (start, addr) = (stays.as_ptr().addr(), stays.addr());
    let (is_over, goes) = (AtomicBool::new(false), AtomicUsize::new(start));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut found, mut gone) = (0_u64, 0_u64);
            while !is_over.load(Ordering::Relaxed) || found == 0 {
                let own = ptr::without_provenance(start + 12_345);
                assert_eq!(session.addr_of(own).unwrap().to_raw(), addr.to_raw() + 12_345);
                let other = ptr::without_provenance(goes.load(Ordering::Relaxed) + 7);
                match session.addr_of(other) {
                    Ok(addr) => {
                        // The next may begin elsewhere, and this be in its midst.
                        assert_eq!(addr.to_raw() % GRANULE as u64, 7);
                        found += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.status(), Status::Address);
                        gone += 1;
                    }
                }
            }
            (found, gone)
        });
        for _ in 0..300 {
            let memory = session.vmalloc(5 * MIB, &AllocOptions::default()).unwrap();
            goes.store(memory.as_ptr().addr(), Ordering::Relaxed);
            assert_eq!(session.addr_of(memory.as_ptr()), Ok(memory.addr()));
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap().0 > 0);
    });
}

#[test]
fn a_broker_that_comes_back_is_told_again_of_what_is_mapped() {
    Fake::with_and_without_thread(|fake, session| {
        let memory = session.vmalloc(BYTES, &AllocOptions::default()).unwrap();
        store(memory.as_ptr(), &[7; 100]);
        fake.die();
        fake.state().maps.clear();
        fake.restart();
        let os_address = memory.as_ptr().addr() as u64;
        wait_until("it is told", || {
            session.poll().unwrap();
            fake.state().maps.get(&os_address).is_some_and(|map| map.bytes == BYTES)
        });
        assert_eq!(load(memory.as_ptr(), 100), [7; 100]);
    });
}

#[test]
fn what_outlives_its_session_is_gone_and_says_so() {
    let fake = Fake::start();
    let session = fake.open();
    let memory = session.vmalloc(1, &AllocOptions::default()).unwrap();
    session.close().unwrap();
    assert_eq!(status(session.addr_of(memory.as_ptr())), Status::Closed);
    assert_eq!(status(memory.sync(0, 1)), Status::Closed);
    drop(memory);
    assert_eq!(fake.asked("Disconnect"), 1);
}

/// A region of so many bytes, less 96: not a whole number of pages.
fn region(fake: &Fake, session: &Session, name: &str, base: u64, bytes: u64) -> Region {
    fake.state().base_pointer = base;
    session.region_create("v", name, bytes, &RegionOptions::default()).unwrap();
    session.region_open("v", name, Prot::READ_WRITE).unwrap()
}

/// Address space that nobody else has: the kernel gives none there by itself.
fn free_space() -> u64 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let first = if cfg!(target_pointer_width = "64") { 0x1000 << 32 } else { 0x1000_0000 };
    first + NEXT.fetch_add(1, Ordering::Relaxed) as u64 * 32 * MIB
}

#[test]
fn a_region_is_mapped_to_the_byte_at_its_base_pointer_or_anywhere() {
    Fake::with_each_mode(|fake, session| {
        let base = free_space() + 4096;
        for (name, base) in [("anywhere", 0), ("based", base)] {
            let region = region(fake, &session, name, base, BYTES);
            let size = region.info().unwrap().region_size;
            let pointer = region.map(Prot::READ_WRITE).unwrap();
            assert!(base == 0 || pointer.addr() as u64 == base);
            for offset in [0, 4095, BLOCK_BYTES - 4096, 2 * BLOCK_BYTES, size - 1] {
                let addr = region.addr(base + offset).unwrap();
                assert_eq!(session.addr_of(at(pointer, offset)), Ok(addr), "{offset}");
                assert_eq!(session.ptr_of(addr), Ok(at(pointer, offset)), "{offset}");
            }
            assert_eq!(status(session.addr_of(at(pointer, size))), Status::Address);
            store(at(pointer, BLOCK_BYTES - 2), &[7; 4]);
            let mut found = [0; 4];
            region.read(base + BLOCK_BYTES - 2, &mut found, libdmce::Mirror::Any).unwrap();
            assert_eq!(found, [7; 4]);
            session.sync(pointer, size).unwrap();
            assert_eq!(status(session.sync(pointer, size + 1)), Status::Address);
            assert_eq!(status(session.vfree(pointer)), Status::Address);
            assert_eq!(status(region.close()), Status::Busy);
            session.unmap(pointer).unwrap();
            assert_eq!(status(session.unmap(pointer)), Status::NotFound);
            assert_eq!(status(session.addr_of(at(pointer, 5 * MIB))), Status::Address);
            region.close().unwrap();
        }
    });
}

#[test]
fn where_something_is_no_region_is_mapped_over_it() {
    let fake = Fake::start();
    let session = fake.open();
    let memory = session.vmalloc(4 * MIB, &AllocOptions::default()).unwrap();
    let there = memory.as_ptr().addr() as u64;
    let beyond = u64::MAX - (1 << 30);
    for (place, base) in [there, there - 4096, there + 3 * MIB, 4097, 8, beyond].iter().enumerate()
    {
        let region = region(&fake, &session, &place.to_string(), *base, 3 * MIB);
        let refused = region.map(Prot::READ_WRITE).unwrap_err();
        assert_eq!(refused.status(), Status::NoMem, "{base:#x} {refused}");
        region.close().unwrap();
    }
    assert_eq!(load(memory.as_ptr(), 4 << 20), vec![0; 4 << 20]);
}

/// Their ends are in one granule, so they are looked up with a lock.
#[test]
fn regions_that_lie_side_by_side_are_told_apart() {
    let fake = Fake::start();
    let session = fake.open();
    let base = free_space();
    let bytes = 3 * MIB;
    let regions: Vec<Region> =
        (0..3).map(|n| region(&fake, &session, &n.to_string(), base + n * bytes, bytes)).collect();
    for region in &regions {
        region.map(Prot::READ_WRITE).unwrap();
    }
    for (n, region) in (0..).zip(&regions) {
        for offset in (0..bytes - 96).step_by(4096).chain([bytes - 97]) {
            let pointer = base + n * bytes + offset;
            let os = ptr::without_provenance_mut(usize::try_from(pointer).unwrap());
            let addr = region.addr(pointer).unwrap();
            assert_eq!((session.addr_of(os), session.ptr_of(addr)), (Ok(addr), Ok(os)));
        }
    }
}

#[test]
fn mapped_again_it_is_the_same_pointer_until_it_was_unmapped_as_often() {
    Fake::with_each_mode(|fake, session| {
        let base = free_space();
        for (name, base) in [("anywhere", 0), ("based", base)] {
            let region = region(fake, &session, name, base, BYTES);
            let other = session.region_open("v", name, Prot::READ).unwrap();
            let pointer = other.map(Prot::READ).unwrap();
            assert_eq!(region.map(Prot::READ), Ok(pointer));
            assert_eq!(status(region.map(Prot::READ_WRITE)), Status::Busy);
            session.unmap(pointer).unwrap();
            assert_eq!(load(at(pointer, BYTES - 200), 8), [0; 8]);
            let addr = region.addr(base).unwrap();
            assert_eq!(session.addr_of(pointer), Ok(addr));
            session.unmap(pointer).unwrap();
            assert_eq!(status(session.addr_of(pointer)), Status::Address);
            let pointer = region.map(Prot::READ_WRITE).unwrap();
            store(pointer, &[1]);
            session.unmap(pointer).unwrap();
        }
    });
}

#[test]
fn a_region_is_mapped_with_the_rights_of_its_handle() {
    let fake = Fake::start();
    let session = fake.open();
    let own = region(&fake, &session, "r", 0, BYTES);
    own.close().unwrap();
    let reader = session.region_open("v", "r", Prot::READ).unwrap();
    assert_eq!(status(reader.map(Prot::READ_WRITE)), Status::Denied);
    assert_eq!(status(reader.map(Prot::WRITE)), Status::Invalid);
    assert_eq!(status(reader.map(Prot::default())), Status::Invalid);
    let pointer = reader.map(Prot::READ).unwrap();
    assert_eq!(load(pointer, 10), [0; 10]);
    session.sync(pointer, 10).unwrap();
    session.unmap(pointer).unwrap();
    // As `dmce_region_open` says: what may be written can be read.
    let writer = session.region_open("v", "r", Prot::WRITE).unwrap();
    reader.close().unwrap();
    let pointer = writer.map(Prot::READ_WRITE).unwrap();
    store(pointer, &[3; 10]);
    session.unmap(pointer).unwrap();
    assert_eq!(fake.bytes_of(1, 0, 10), [3; 10]);
    writer.close().unwrap();
    assert_eq!(status(writer.map(Prot::READ)), Status::Closed);
}

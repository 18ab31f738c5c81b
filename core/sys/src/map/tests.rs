//! Mappings, reservations and advice against the real kernel.

use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::object;
use crate::testing::TestObjects;

const PAGES: u64 = 4;

fn object(objects: &TestObjects) -> (OwnedFd, FileRange) {
    let bytes = PAGES * page_bytes() as u64;
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    object::commit(fd.as_fd(), 0, bytes).unwrap();
    (fd, FileRange { offset: 0, bytes })
}

fn shared(fd: &OwnedFd, range: FileRange) -> Mapping {
    Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes).unwrap()
}

fn load(range: MappedRange<'_>) -> u8 {
    // SAFETY: mapped and readable in every test that calls this.
    unsafe { range.as_ptr().read_volatile() }
}

fn store(range: MappedRange<'_>, value: u8) {
    // SAFETY: mapped and writable in every test that calls this.
    unsafe { range.as_ptr().write_volatile(value) }
}

/// The `VmFlags` of the mapping that begins at an address.
fn flags_at(start: *mut u8) -> Option<String> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let head = format!("{:x}-", start.addr());
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
    lines.find(|line| line.starts_with("VmFlags:")).map(str::to_owned)
}

#[test]
fn a_store_is_seen_through_another_mapping_and_the_file() {
    let objects = TestObjects::new("map");
    let (fd, range) = object(&objects);
    let (a, b) = (shared(&fd, range), shared(&fd, range));
    store(a.range(5, 1).unwrap(), 7);
    assert_eq!(load(b.range(5, 1).unwrap()), 7);
    let mut byte = [0];
    object::read_at(fd.as_fd(), &mut byte, 5).unwrap();
    assert_eq!(byte, [7]);
    assert_eq!(a.len() as u64, range.bytes);
}

#[test]
fn mappings_are_left_out_of_core_dumps() {
    let objects = TestObjects::new("dump");
    let (fd, range) = object(&objects);
    let mapping = shared(&fd, range);
    assert!(flags_at(mapping.as_ptr()).unwrap().contains(" dd"));
    let reservation = Reservation::new(range.bytes).unwrap();
    reservation.map_at(0, fd.as_fd(), range, Protection::Read, Populate::No).unwrap();
    assert!(flags_at(reservation.as_ptr()).unwrap().contains(" dd"));
}

#[test]
fn a_read_only_descriptor_is_not_mapped_for_writing() {
    let objects = TestObjects::new("mapro");
    let (fd, range) = object(&objects);
    let reader = object::reopen_read_only(fd.as_fd()).unwrap();
    let map = |protection| Mapping::shared(reader.as_fd(), range, protection, Populate::No);
    assert!(matches!(map(Protection::ReadWrite), Err(MapError::Denied)));
    let mapping = map(Protection::Read).unwrap();
    assert!(matches!(mapping.protect(Protection::ReadWrite), Err(MapError::Denied)));
    assert!(populate_write(mapping.whole()).is_err());
    populate_read(mapping.whole()).unwrap();
}

#[test]
fn what_no_address_space_can_hold_is_refused() {
    let objects = TestObjects::new("space");
    let (fd, _) = object(&objects);
    let range = FileRange { offset: 0, bytes: 1 << 62 };
    let map = Mapping::shared(fd.as_fd(), range, Protection::Read, Populate::No);
    assert!(matches!(map, Err(MapError::AddressSpace { .. })), "{map:?}");
    let reserved = Reservation::new(1 << 62);
    assert!(matches!(reserved, Err(MapError::AddressSpace { .. })), "{reserved:?}");
    let reserved = Reservation::aligned(u64::MAX, 1 << 21);
    assert!(matches!(reserved, Err(MapError::AddressSpace { .. })), "{reserved:?}");
}

#[test]
fn populating_what_the_object_has_not_is_lost_and_no_signal() {
    let objects = TestObjects::new("poplost");
    let (fd, range) = object(&objects);
    let mapping = shared(&fd, range);
    object::truncate(fd.as_fd(), page_bytes() as u64).unwrap();
    assert!(matches!(populate_read(mapping.whole()), Err(MapError::Lost)));
    assert!(matches!(populate_write(mapping.whole()), Err(MapError::Lost)));
    let mapped = Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::Yes);
    assert!(matches!(mapped, Err(MapError::Lost)), "{mapped:?}");
}

#[test]
fn a_reservation_is_aligned_and_replaces_only_inside_itself() {
    let objects = TestObjects::new("reserve");
    let (fd, _) = object(&objects);
    let page = page_bytes() as u64;
    let align = 2 << 20;
    let reservation = Reservation::aligned(8 * page, align).unwrap();
    assert_eq!(reservation.as_ptr().addr() as u64 % align, 0);
    object::write_at(fd.as_fd(), b"0", 0).unwrap();
    object::write_at(fd.as_fd(), b"1", page).unwrap();

    let map = |at, offset, bytes| {
        let part = FileRange { offset, bytes };
        reservation.map_at(at, fd.as_fd(), part, Protection::ReadWrite, Populate::Yes)
    };
    assert_eq!(load(map(6 * page, 0, 2 * page).unwrap()), b'0');
    assert_eq!(load(map(6 * page, page, 2 * page).unwrap()), b'1', "replaced in place");
    for (at, bytes) in [(7 * page, 2 * page), (1, page), (0, 0), (8 * page, 1), (0, u64::MAX)] {
        let mapped = map(at, 0, bytes);
        assert!(matches!(mapped, Err(MapError::OutOfRange { .. })), "{at} {bytes}");
    }
    reservation.clear_at(6 * page, 2 * page).unwrap();
    let cleared = reservation.range(6 * page, page).unwrap();
    assert!(populate_read(cleared).is_err(), "nothing can be read there");
}

#[test]
fn a_reservation_at_an_address_is_there_or_not_made_and_replaces_nothing() {
    let page = page_bytes() as u64;
    // The kernel gives no address there by itself, so nobody takes it meanwhile.
    let start = if cfg!(target_pointer_width = "64") { 0x1000 << 32 } else { 0x1000_0000 };
    let there = Reservation::at(start, 2 * page - 1).unwrap();
    assert_eq!((there.as_ptr().addr() as u64, there.len() as u64), (start, 2 * page));
    for (at, bytes) in [
        (start, page),
        (start + page, 3 * page),
        (start + 1, page),
        (start + 2 * page, 0),
        (0, page),
        (u64::MAX - page + 1, page),
        (start + 2 * page, u64::MAX),
    ] {
        let taken = Reservation::at(at, bytes);
        assert!(matches!(taken, Err(MapError::AddressSpace { .. })), "{at:#x} {bytes} {taken:?}");
    }
    Reservation::at(start + 2 * page, 2 * page).unwrap();
}

#[test]
fn what_is_mapped_in_one_call_is_aligned_wherever_there_is_room() {
    let objects = TestObjects::new("mapped");
    let (fd, range) = object(&objects);
    let align = 2 << 20;
    let map = || Reservation::mapped(fd.as_fd(), range, align, Protection::ReadWrite).unwrap();
    object::write_at(fd.as_fd(), b"0", 0).unwrap();
    // The place below the last is taken by turns: by what was mapped before, and by nobody.
    let mut kept = Vec::new();
    for _ in 0..8 {
        let (stays, goes) = (map(), map());
        drop(goes);
        kept.push(stays);
    }
    for mapped in &kept {
        assert_eq!(mapped.as_ptr().addr() as u64 % align, 0);
        assert_eq!((mapped.len() as u64, load(mapped.whole())), (range.bytes, b'0'));
        let flags = flags_at(mapped.as_ptr()).unwrap();
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }
    let mut starts: Vec<_> = kept.iter().map(|mapped| mapped.as_ptr().addr()).collect();
    starts.sort_unstable();
    assert!(starts.windows(2).all(|pair| pair[0] + kept[0].len() <= pair[1]), "{starts:x?}");
    store(kept[3].whole(), b'3');
    assert!(kept.iter().all(|mapped| load(mapped.whole()) == b'3'));
}

#[test]
fn collapsing_makes_huge_pages_or_says_why_not() {
    const HUGE: u64 = 2 << 20;
    let objects = TestObjects::new("collapse");
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    object::commit(fd.as_fd(), 0, HUGE).unwrap();
    let reservation = Reservation::aligned(HUGE, HUGE).unwrap();
    let range = FileRange { offset: 0, bytes: HUGE };
    let place =
        reservation.map_at(0, fd.as_fd(), range, Protection::ReadWrite, Populate::No).unwrap();
    populate_write(place).unwrap();
    store(place, 3);
    match collapse(place) {
        Ok(()) | Err(MapError::NoHugePage | MapError::Busy | MapError::Unsupported { .. }) => {}
        Err(other) => panic!("{other:?}"),
    }
    assert_eq!(load(place), 3);
}

#[test]
fn only_a_forked_child_sees_the_page_wiped() {
    let page = WipeOnForkPage::new().unwrap();
    assert!(!page.is_forked());
    // SAFETY: the child only loads, stores and exits: nothing that a lock of another thread
    // could hold up.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let code = i32::from(page.is_forked());
        // SAFETY: ends the child at once, without running anything of the parent's.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    assert_eq!(libc::WEXITSTATUS(status), 1);
    assert!(!page.is_forked());
}

#[test]
fn a_mapping_made_again_outlives_the_first_and_shows_the_same() {
    let page = page_bytes() as u64;
    let objects = TestObjects::new("again");
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    object::commit(fd.as_fd(), 0, 2 * page).unwrap();
    let range = FileRange { offset: 0, bytes: 2 * page };
    let first = Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::No).unwrap();
    let (second_page, part) = (first.range(page, page).unwrap(), first.range(1, page).unwrap());
    assert!(matches!(Mapping::again(part), Err(MapError::OutOfRange { .. })));
    let again = Mapping::again(second_page).unwrap();
    store(second_page, 7);
    assert_eq!(load(again.whole()), 7);
    drop(first);
    store(again.whole(), 8);
    let mut byte = [0];
    object::read_at(fd.as_fd(), &mut byte, page).unwrap();
    assert_eq!(byte, [8]);
}

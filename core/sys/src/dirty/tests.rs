//! Tracking against the real kernel.

use std::os::fd::{AsFd, OwnedFd};

use super::*;
use crate::map::{
    FileRange, Mapping, Populate, Protection, Reservation, collapse, populate_read, populate_write,
};
use crate::object;
use crate::testing::TestObjects;

mod huge;
mod mapped_anew;
mod racing;
mod rights;

const HUGE_BYTES: u64 = 2 << 20;

/// A tracker that tracks. Where the kernel has it, that nothing is left out is itself tested.
fn tracker() -> Option<Tracker> {
    tracker_of(Grain::Small)
}

fn tracker_of(grain: Grain) -> Option<Tracker> {
    let tracker = Tracker::open(grain);
    let Some(reason) = tracker.reason() else { return Some(tracker) };
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let version: (u32, u32) = (numbers.next().unwrap(), numbers.next().unwrap());
    let is_refused = matches!(reason, Unavailable::Refused | Unavailable::PageMap(_));
    assert!(version < (6, 7) || is_refused, "Linux {release} tracks stores: {reason:?}");
    assert!(std::env::var_os("CI").is_none(), "left out on CI: {reason}");
    eprintln!("left out: {reason}");
    None
}

/// An object that is mapped whole, at a multiple of the size of a huge page.
struct Placed {
    fd: OwnedFd,
    place: Reservation,
    _objects: TestObjects,
}

impl Placed {
    fn new(pages: u64, populate: Populate) -> Self {
        let objects = TestObjects::new("dirty");
        let fd = objects.dir.create(&objects.name("a")).unwrap();
        let range = FileRange { offset: 0, bytes: bytes_of(pages) };
        object::commit(fd.as_fd(), 0, range.bytes).unwrap();
        let place = Reservation::aligned(range.bytes, HUGE_BYTES).unwrap();
        place.map_at(0, fd.as_fd(), range, Protection::ReadWrite, populate).unwrap();
        Self { fd, place, _objects: objects }
    }

    fn pages(&self, first: u64, pages: u64) -> MappedRange<'_> {
        self.place.range(bytes_of(first), bytes_of(pages)).unwrap()
    }

    fn store(&self, page: u64) {
        store(self.pages(page, 1));
    }
}

fn bytes_of(pages: u64) -> u64 {
    pages * page_bytes() as u64
}

fn store(range: MappedRange<'_>) {
    // SAFETY: mapped and writable in every test that calls this.
    unsafe { range.as_ptr().write_volatile(1) }
}

fn load(range: MappedRange<'_>) -> u8 {
    // SAFETY: mapped and readable in every test that calls this.
    unsafe { range.as_ptr().read_volatile() }
}

/// All runs that a scan lists, as first pages and numbers of pages.
fn taken(mut scan: Scan<'_>) -> Vec<(u64, u64)> {
    let mut all = Vec::new();
    while let Some(runs) = scan.next_runs().unwrap() {
        assert!(!runs.is_empty());
        all.extend(runs.iter().map(|run| (run.offset / bytes_of(1), run.bytes / bytes_of(1))));
    }
    assert_eq!(scan.next_runs().unwrap(), None, "it stays at its end");
    all
}

fn dirty(tracker: &Tracker, range: MappedRange<'_>) -> Vec<(u64, u64)> {
    taken(tracker.scan(range).unwrap())
}

#[test]
fn a_page_that_is_stored_to_is_listed_once_and_one_that_is_loaded_is_not() {
    let Some(tracker) = tracker() else { return };
    assert_eq!(tracker.kind(), Kind::WriteProtect);
    let placed = Placed::new(16, Populate::Yes);
    placed.store(9);
    tracker.track(placed.place.whole()).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), [], "what was before is forgotten");
    for page in [3, 4, 12] {
        placed.store(page);
    }
    load(placed.pages(7, 1));
    assert_eq!(dirty(&tracker, placed.pages(4, 12)), [(0, 1), (8, 1)], "of the range alone");
    assert_eq!(dirty(&tracker, placed.place.whole()), [(3, 1)]);
    placed.store(12);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(12, 1)]);
    placed.store(1);
    tracker.track(placed.place.whole()).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), [], "as by the first time");
}

#[test]
fn pages_without_an_entry_are_clean_until_they_are_stored_to() {
    let Some(tracker) = tracker() else { return };
    // More than the page tables of two huge pages.
    let placed = Placed::new(1300, Populate::No);
    tracker.track(placed.place.whole()).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    load(placed.pages(600, 1));
    placed.store(700);
    populate_read(placed.pages(0, 512)).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), [(700, 1)]);
    populate_write(placed.pages(1024, 8)).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), [(1024, 8)], "as good as stored to");
}

#[test]
fn stores_of_system_calls_are_listed() {
    let Some(tracker) = tracker() else { return };
    for populate in [Populate::Yes, Populate::No] {
        let placed = Placed::new(16, populate);
        tracker.track(placed.place.whole()).unwrap();
        let source = Placed::new(4, Populate::Yes);
        let (to, bytes) = (placed.pages(5, 2).as_ptr(), placed.pages(5, 2).len());
        // SAFETY: both pages are mapped and writable, and nobody else looks at them.
        let read = unsafe {
            libc::pread(std::os::fd::AsRawFd::as_raw_fd(&source.fd), to.cast(), bytes, 0)
        };
        assert_eq!(usize::try_from(read), Ok(bytes));
        assert_eq!(dirty(&tracker, placed.place.whole()), [(5, 2)], "{populate:?}");
    }
}

#[test]
fn what_finds_no_room_in_a_batch_is_in_the_next_and_what_is_not_asked_for_stays_dirty() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(1200, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    let expected: Vec<(u64, u64)> = (0..1200).step_by(2).map(|page| (page, 1)).collect();
    for runs_max in [0, 1, 2, 3, 64, 511, 512, 5000] {
        (0..1200).step_by(2).for_each(|page| placed.store(page));
        let whole = placed.place.whole();
        let mut scan = tracker.scan_by(whole, runs_max).unwrap();
        let first = scan.next_runs().unwrap().unwrap();
        assert!(first.len() <= runs_max.max(1));
        let first = first.len();
        drop(scan);
        let rest = taken(tracker.scan_by(whole, runs_max).unwrap());
        assert_eq!(rest, expected[first..], "room for {runs_max}");
        assert_eq!(dirty(&tracker, whole), []);
    }
    (0..1200).for_each(|page| placed.store(page));
    assert_eq!(dirty(&tracker, placed.place.whole()), [(0, 1200)], "neighbours are one run");
}

#[test]
fn of_scans_at_once_each_page_is_in_one() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(1200, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    (0..1200).step_by(2).for_each(|page| placed.store(page));
    let mut found: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let scans = [(); 4]
            .map(|()| scope.spawn(|| taken(tracker.scan_by(placed.place.whole(), 7).unwrap())));
        scans.into_iter().flat_map(|scan| scan.join().unwrap()).collect()
    });
    found.sort_unstable();
    assert_eq!(found, (0..1200).step_by(2).map(|page| (page, 1)).collect::<Vec<_>>());
}

#[test]
fn ranges_that_are_no_pages_are_refused() {
    for tracker in [Tracker::open(Grain::Small), Tracker::comparing()] {
        let placed = Placed::new(4, Populate::Yes);
        let part = |offset, bytes| placed.place.range(offset, bytes).unwrap();
        for range in [part(1, bytes_of(1)), part(0, bytes_of(1) - 1), part(bytes_of(4), 0)] {
            let found = [
                tracker.track(range).err(),
                tracker.untrack(range).err(),
                tracker.scan(range).err(),
            ];
            let is_refused = |error| matches!(error, Some(DirtyError::NotPages { .. }));
            assert!(found.into_iter().all(is_refused), "{range:?}");
        }
    }
}

#[test]
fn without_tracking_every_page_may_be_dirty() {
    let tracker = Tracker::comparing();
    assert_eq!(tracker.kind(), Kind::Compare);
    assert!(matches!(tracker.reason(), Some(Unavailable::Chosen)));
    let placed = Placed::new(16, Populate::No);
    tracker.track(placed.place.whole()).unwrap();
    for _ in 0..2 {
        assert_eq!(dirty(&tracker, placed.place.whole()), [(0, 16)]);
        assert_eq!(dirty(&tracker, placed.pages(3, 2)), [(0, 2)]);
    }
    tracker.untrack(placed.place.whole()).unwrap();
}

#[test]
fn what_is_given_back_can_be_tracked_by_another() {
    let (Some(first), Some(second)) = (tracker(), tracker()) else { return };
    let placed = Placed::new(8, Populate::Yes);
    first.track(placed.place.whole()).unwrap();
    let refused = second.track(placed.pages(2, 2));
    assert!(matches!(refused, Err(DirtyError::Taken { .. })), "{refused:?}");
    first.untrack(placed.pages(2, 2)).unwrap();
    second.track(placed.pages(2, 2)).unwrap();
    placed.store(2);
    placed.store(5);
    assert_eq!(dirty(&second, placed.pages(2, 2)), [(0, 1)]);
    assert_eq!(dirty(&first, placed.pages(4, 4)), [(1, 1)]);
    drop(first);
    second.track(placed.place.whole()).unwrap();
    placed.store(0);
    assert_eq!(dirty(&second, placed.place.whole()), [(0, 1)]);
}

#[test]
fn a_mapping_that_can_never_be_written_is_refused() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(4, Populate::Yes);
    let reader = object::reopen_read_only(placed.fd.as_fd()).unwrap();
    let range = FileRange { offset: 0, bytes: bytes_of(4) };
    let mapping = Mapping::shared(reader.as_fd(), range, Protection::Read, Populate::Yes).unwrap();
    let refused = tracker.track(mapping.whole());
    assert!(matches!(refused, Err(DirtyError::ReadOnly { .. })), "{refused:?}");
}

//! Ranges of huge pages.

use super::*;

/// Small pages of a huge one, on the machines that this is tested on.
const PAGES: u64 = HUGE_BYTES / 4096;

/// Whether the kernel has collapsed the range, and maps it so here. A try may find pages busy.
fn is_collapsed(range: MappedRange<'_>) -> bool {
    (0..100).any(|_| collapse(range).is_ok()) && huge_kib(range.as_ptr()) > 0
}

/// A tracker of huge pages, and an object of so many huge pages, mapped as such.
fn huge(pages: u64) -> Option<(Tracker, Placed)> {
    let tracker = tracker_of(Grain::Huge)?;
    if tracker.grain() == Grain::Small {
        eprintln!("left out: this kernel forgets stores to huge pages");
        return None;
    }
    let placed = Placed::new(pages * PAGES, Populate::Yes);
    populate_write(placed.place.whole()).unwrap();
    let whole = pages * (HUGE_BYTES >> 10);
    if is_collapsed(placed.place.whole()) && huge_kib(placed.place.as_ptr()) == whole {
        return Some((tracker, placed));
    }
    eprintln!("left out: no huge page is to be had");
    None
}

/// How much of the mapping that begins there is mapped by huge pages.
pub(super) fn huge_kib(start: *mut u8) -> u64 {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let head = format!("{:x}-", start.addr());
    let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&head));
    let line = lines.find_map(|line| line.strip_prefix("ShmemPmdMapped:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

fn second_mapping(placed: &Placed) -> Reservation {
    let range = FileRange { offset: 0, bytes: placed.place.len() as u64 };
    let fd = placed.fd.as_fd();
    Reservation::mapped(fd, range, HUGE_BYTES, Protection::ReadWrite).unwrap()
}

#[test]
fn a_huge_page_is_tracked_by_small_ones_and_stays_huge_for_others() {
    let Some(tracker) = tracker() else { return };
    let pages = PAGES;
    let placed = Placed::new(pages, Populate::Yes);
    populate_write(placed.place.whole()).unwrap();
    if !is_collapsed(placed.place.whole()) {
        eprintln!("left out: no huge page is to be had");
        return;
    }
    let other = second_mapping(&placed);
    load(other.whole());
    assert!(huge_kib(other.as_ptr()) > 0);
    tracker.track(placed.place.whole()).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    placed.store(7);
    load(placed.pages(8, 1));
    assert_eq!(dirty(&tracker, placed.place.whole()), [(7, 1)]);
    assert_eq!(huge_kib(placed.place.as_ptr()), 0);
    assert_eq!(huge_kib(other.as_ptr()), HUGE_BYTES >> 10, "the object keeps its huge page");
    tracker.untrack(placed.place.whole()).unwrap();
    assert!(is_collapsed(placed.place.whole()), "it may be mapped so again");
}

#[test]
fn pages_stay_dirty_when_they_become_a_huge_one() {
    let Some(tracker) = tracker() else { return };
    let pages = PAGES;
    for stored in [vec![(7, 1)], vec![(0, pages)]] {
        let placed = Placed::new(pages, Populate::Yes);
        tracker.track(placed.place.whole()).unwrap();
        for (first, count) in &stored {
            (*first..first + count).for_each(|page| placed.store(page));
        }
        // As a daemon does it: by a mapping of its own.
        let other = second_mapping(&placed);
        populate_write(other.whole()).unwrap();
        if !is_collapsed(other.whole()) {
            eprintln!("left out: no huge page is to be had");
            return;
        }
        // All that were stored to are there; of the others the kernel may be unsure.
        let found = dirty(&tracker, placed.place.whole());
        let is_listed =
            |page| found.iter().any(|(first, count)| (*first..first + count).contains(&page));
        let all = stored.iter().flat_map(|(first, count)| *first..first + count);
        assert!(all.clone().all(is_listed), "{found:?} without some of {stored:?}");
        assert!(!dirty(&tracker, placed.place.whole()).iter().any(|run| run.1 == pages));
        placed.store(9);
        assert!(dirty(&tracker, placed.place.whole()).contains(&(9, 1)));
    }
}

#[test]
fn what_is_only_read_stays_huge_and_what_is_stored_to_is_listed_by_small_pages_from_then_on() {
    let Some((tracker, placed)) = huge(3) else { return };
    let start = placed.place.as_ptr();
    tracker.track(placed.place.whole()).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    for page in (0..3 * PAGES).step_by(7) {
        load(placed.pages(page, 1));
    }
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    assert_eq!(huge_kib(start), 3 * (HUGE_BYTES >> 10));
    placed.store(PAGES + 5);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(PAGES, PAGES)]);
    assert_eq!(huge_kib(start), 2 * (HUGE_BYTES >> 10));
    load(placed.pages(PAGES + 6, 1));
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    placed.store(PAGES + 9);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(PAGES + 9, 1)]);
}

#[test]
fn a_scan_of_a_part_of_a_huge_page_leaves_the_rest_dirty() {
    let Some((tracker, placed)) = huge(1) else { return };
    tracker.track(placed.place.whole()).unwrap();
    placed.store(400);
    assert_eq!(dirty(&tracker, placed.pages(10, 20)), [(0, 20)], "not known to be clean");
    assert_eq!(dirty(&tracker, placed.pages(390, 20)), [(0, 20)]);
    placed.store(401);
    assert_eq!(dirty(&tracker, placed.pages(390, 20)), [(11, 1)]);
    let rest = [(0, 10), (30, 360), (410, 102)];
    assert_eq!(dirty(&tracker, placed.place.whole()), rest);
}

#[test]
fn a_huge_page_whose_entry_is_taken_away_stays_dirty() {
    let Some((tracker, placed)) = huge(2) else { return };
    tracker.track(placed.place.whole()).unwrap();
    placed.store(7);
    // The kernel takes the entry away when it splits the huge page of the object.
    object::punch_hole(placed.fd.as_fd(), bytes_of(100), bytes_of(1)).unwrap();
    let found = dirty(&tracker, placed.place.whole());
    assert!(found.iter().any(|(first, pages)| (*first..first + pages).contains(&7)), "{found:?}");
    placed.store(8);
    let range = placed.pages(PAGES, PAGES);
    placed.store(PAGES + 3);
    // SAFETY: the object keeps what was stored.
    let taken = unsafe {
        let advice = rustix::mm::Advice::LinuxDontNeed;
        rustix::mm::madvise(range.as_ptr().cast(), range.len(), advice)
    };
    taken.unwrap();
    let found = dirty(&tracker, placed.place.whole());
    for page in [8, PAGES + 3] {
        let is_in = |(first, pages): &(u64, u64)| (*first..first + pages).contains(&page);
        assert!(found.iter().any(is_in), "{page} is not in {found:?}");
    }
}

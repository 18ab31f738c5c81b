//! Ranges in which something else is mapped while they are tracked.

use rustix::mm::{MremapFlags, mremap_fixed};

use super::*;

const PAGES: u64 = 16;

fn other() -> (OwnedFd, FileRange, TestObjects) {
    let objects = TestObjects::new("anew");
    let fd = objects.dir.create(&objects.name("b")).unwrap();
    let range = FileRange { offset: 0, bytes: bytes_of(4) };
    object::commit(fd.as_fd(), 0, range.bytes).unwrap();
    (fd, range, objects)
}

fn is_not_tracked(tracker: &Tracker, range: MappedRange<'_>) -> bool {
    let mut scan = tracker.scan(range).unwrap();
    loop {
        match scan.next_runs() {
            Ok(Some(_)) => {}
            Ok(None) => return false,
            Err(DirtyError::NotTracked { .. }) => {
                assert!(scan.next_runs().unwrap().is_none(), "it ends with the error");
                return true;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
}

#[test]
fn an_object_that_is_mapped_over_a_part_is_untracked_until_it_is_tracked_again() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(PAGES, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    placed.store(2);
    placed.store(9);
    let (fd, range, _objects) = other();
    let at = bytes_of(8);
    let part =
        placed.place.map_at(at, fd.as_fd(), range, Protection::ReadWrite, Populate::Yes).unwrap();
    store(part);
    assert!(is_not_tracked(&tracker, part));
    assert!(is_not_tracked(&tracker, placed.place.whole()));
    tracker.track(part).unwrap();
    assert_eq!(dirty(&tracker, part), []);
    placed.store(1);
    placed.store(11);
    assert_eq!(dirty(&tracker, placed.pages(8, 8)), [(3, 1)], "over the end of an object");
    // Of what was scanned before the error, page 2 among it, nothing is known.
    let rest = dirty(&tracker, placed.pages(0, 8));
    assert!(rest.contains(&(1, 1)) || rest.contains(&(1, 2)), "{rest:?}");
}

#[test]
fn what_is_cleared_is_not_tracked_and_what_lies_beside_it_is() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(PAGES, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    placed.place.clear_at(bytes_of(4), bytes_of(4)).unwrap();
    placed.store(3);
    placed.store(8);
    assert!(is_not_tracked(&tracker, placed.pages(4, 4)));
    assert_eq!(dirty(&tracker, placed.pages(0, 4)), [(3, 1)]);
    assert_eq!(dirty(&tracker, placed.pages(8, 8)), [(0, 1)]);
    tracker.untrack(placed.place.whole()).unwrap();
}

#[test]
fn a_prepared_mapping_that_is_moved_over_a_part_is_untracked_even_if_it_was_tracked() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(PAGES, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    let (fd, range, _objects) = other();
    let prepared = Reservation::new(range.bytes).unwrap();
    let rights = Protection::ReadWrite;
    let from = prepared.map_at(0, fd.as_fd(), range, rights, Populate::Yes).unwrap();
    tracker.track(from).unwrap();
    let part = placed.pages(4, 4);
    // SAFETY: both are ranges of reservations of this test; nothing of the first is used again but
    // its place, which is unmapped once more when it is dropped.
    let moved = unsafe {
        let (from, to) = (from.as_ptr().cast(), part.as_ptr().cast());
        mremap_fixed(from, part.len(), part.len(), MremapFlags::MAYMOVE, to)
    };
    moved.unwrap();
    store(part);
    assert!(is_not_tracked(&tracker, part));
    tracker.track(part).unwrap();
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
    placed.store(5);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(5, 1)]);
}

#[test]
fn a_mapping_made_again_is_not_tracked_and_the_first_goes_on() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(PAGES, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    let again = Mapping::again(placed.place.whole()).unwrap();
    assert!(is_not_tracked(&tracker, again.whole()));
    store(again.whole());
    placed.store(6);
    assert_eq!(dirty(&tracker, placed.place.whole()), [(6, 1)], "by this mapping alone");
}

#[test]
fn pages_of_an_object_that_was_cut_are_listed_when_they_are_stored_to_again() {
    let Some(tracker) = tracker() else { return };
    let placed = Placed::new(PAGES, Populate::Yes);
    tracker.track(placed.place.whole()).unwrap();
    placed.store(10);
    object::truncate(placed.fd.as_fd(), bytes_of(4)).unwrap();
    object::commit(placed.fd.as_fd(), 0, bytes_of(PAGES)).unwrap();
    let listed = |page: u64| {
        let found = dirty(&tracker, placed.place.whole());
        found.iter().any(|(first, count)| (*first..first + count).contains(&page))
    };
    assert!(listed(10), "what was stored is gone, and the page is another");
    placed.store(12);
    assert!(listed(12));
    // Whether the rest is listed as well is the kernel's to know, once.
    assert_eq!(dirty(&tracker, placed.place.whole()), []);
}

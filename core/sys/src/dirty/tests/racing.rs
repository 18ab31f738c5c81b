//! Stores at every moment, beside scans and copies: after one last scan the copy equals.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::huge::huge_kib;
use super::*;
use crate::transfer::{Store, copy};

const PAGES: u64 = 1536;
/// In each, threads store to some pages while the range is scanned and copied. A store that was
/// missed would be healed by a later one to its page, so they are few in each.
const ROUNDS: u64 = 60;
/// The same where the kernel makes huge pages before each, which takes its time.
const HUGE_ROUNDS: u64 = 24;
const WORDS: u64 = 3000;
const CALLS: u64 = 300;
/// In one of so many rounds the object is mapped anew over a part.
const ANEW_EACH: u64 = 8;

/// Places from a seed.
struct Places(u64);

impl Places {
    fn below(&mut self, count: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 33) % count
    }
}

fn at(range: MappedRange<'_>, offset: u64, bytes: u64) -> MappedRange<'_> {
    range.part(offset, bytes).unwrap()
}

/// Stores words anywhere.
fn store_words(range: MappedRange<'_>, seed: u64) {
    let (mut places, words) = (Places(seed), range.len() as u64 / 8);
    for number in 1..=WORDS {
        #[allow(clippy::cast_ptr_alignment, reason = "a multiple of 8 in a page")]
        let word = at(range, places.below(words) * 8, 8).as_ptr().cast::<u64>();
        // SAFETY: an aligned word of the mapping, which everybody here touches by such accesses.
        unsafe { word.write_volatile(number << 32 | seed) };
    }
}

/// Stores to one page after the other, as fast as can be.
fn store_pages(range: MappedRange<'_>, seed: u64) {
    for page in 0..PAGES {
        #[allow(clippy::cast_ptr_alignment, reason = "the start of a page")]
        let word = at(range, bytes_of(page), 8).as_ptr().cast::<u64>();
        // SAFETY: as in `store_words`.
        unsafe { word.write_volatile(page << 32 | seed) };
    }
}

/// Has the kernel store pieces of a file anywhere.
fn store_by_calls(range: MappedRange<'_>, seed: u64) {
    const BYTES: u64 = 6000;
    let random = File::open("/dev/urandom").unwrap();
    let mut places = Places(seed);
    for _ in 0..CALLS {
        let to = at(range, places.below(range.len() as u64 - BYTES), BYTES);
        // SAFETY: mapped and writable.
        let read = unsafe { libc::read(random.as_raw_fd(), to.as_ptr().cast(), to.len()) };
        assert_eq!(usize::try_from(read), Ok(to.len()), "no store of the kernel is refused");
    }
}

/// An object, and what its pages are copied to.
struct Sides {
    from: Placed,
    to: Placed,
}

impl Sides {
    fn new() -> Self {
        Self { from: Placed::new(PAGES, Populate::Yes), to: Placed::new(PAGES, Populate::Yes) }
    }

    fn bring(&self, run: Run) {
        let (from, to) = (self.from.place.whole(), self.to.place.whole());
        let (from, to) = (at(from, run.offset, run.bytes), at(to, run.offset, run.bytes));
        // SAFETY: both are mapped, the second is writable, and they are of two objects.
        unsafe { copy(to, from, Store::Cached) }.unwrap();
    }

    fn scan_and_copy(&self, tracker: &Tracker, runs_max: usize) {
        let mut scan = tracker.scan_by(self.from.place.whole(), runs_max).unwrap();
        while let Some(runs) = scan.next_runs().unwrap() {
            for &run in runs {
                self.bring(run);
            }
        }
    }

    /// Maps the object anew over a part while others store there, and does what that asks for.
    fn map_anew(&self, tracker: &Tracker, first: u64) {
        let (offset, bytes) = (bytes_of(first), bytes_of(PAGES / 8));
        let (range, place) = (FileRange { offset, bytes }, &self.from.place);
        let (fd, rights) = (self.from.fd.as_fd(), Protection::ReadWrite);
        let part = place.map_at(offset, fd, range, rights, Populate::No).unwrap();
        if tracker.kind() == Kind::WriteProtect {
            assert!(tracker.scan(part).unwrap().next_runs().is_err());
        }
        tracker.track(part).unwrap();
        self.bring(Run { offset, bytes });
    }

    /// Has the object mapped by huge pages again, and says whether any are to be had.
    fn make_huge(&self, tracker: &Tracker) -> bool {
        let range = self.from.place.whole();
        tracker.untrack(range).unwrap();
        let _ = collapse(range);
        populate_read(range).unwrap();
        tracker.track(range).unwrap();
        self.bring(Run { offset: 0, bytes: range.len() as u64 });
        huge_kib(range.as_ptr()) > 0
    }

    /// The pages that differ, with the objects read and not by the mappings.
    fn different(&self) -> Vec<usize> {
        let [from, to] = [&self.from, &self.to].map(|side| {
            let mut bytes = vec![0; side.place.len()];
            object::read_at(side.fd.as_fd(), &mut bytes, 0).unwrap();
            bytes
        });
        let pages = from.chunks(page_bytes()).zip(to.chunks(page_bytes()));
        pages.enumerate().filter(|(_, (from, to))| from != to).map(|(page, _)| page).collect()
    }
}

fn run(tracker: &Tracker, rounds: u64) {
    crate::fault::install().unwrap();
    let sides = Sides::new();
    let range = sides.from.place.whole();
    tracker.track(range).unwrap();
    let (start, bytes) = (range.as_ptr().expose_provenance(), range.len());
    let mut places = Places(7);
    for round in 1..=rounds {
        let runs_max = [1, 7, 64, pages::RUNS_MAX][usize::try_from(round % 4).unwrap()];
        if tracker.grain() == Grain::Huge && !sides.make_huge(tracker) {
            eprintln!("no huge page is to be had in round {round}");
        }
        std::thread::scope(|scope| {
            let stores = [store_words, store_pages, store_by_calls].map(|store| {
                scope.spawn(move || {
                    let start = std::ptr::with_exposed_provenance_mut(start);
                    // SAFETY: the reservation outlives the threads.
                    store(unsafe { MappedRange::new(start, bytes) }, round);
                })
            });
            if round % ANEW_EACH == 0 {
                sides.map_anew(tracker, places.below(PAGES - PAGES / 8));
            }
            while !stores.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                sides.scan_and_copy(tracker, runs_max);
            }
        });
        sides.scan_and_copy(tracker, runs_max);
        let different = sides.different();
        assert_eq!(different, [0; 0], "stores that round {round} has not seen");
    }
}

#[test]
fn a_store_at_any_moment_is_seen_by_that_scan_or_the_next() {
    let Some(tracker) = tracker() else { return };
    run(&tracker, ROUNDS);
}

#[test]
fn a_store_to_a_huge_page_is_seen_as_well() {
    let Some(tracker) = tracker_of(Grain::Huge) else { return };
    run(&tracker, HUGE_ROUNDS);
}

#[test]
fn without_tracking_the_copy_equals_as_well() {
    run(&Tracker::comparing(), ROUNDS);
}

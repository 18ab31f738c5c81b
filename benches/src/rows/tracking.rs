//! Stores by plain pointers that the kernel notes, and what it costs to copy their pages.
//!
//! No instance is asked: this is what the library does to a mapping, on objects that the measuring
//! program made and mapped itself. Where the kernel does not note stores the group has no rows.

use dmce_sys::dirty::{Grain, Kind, Tracker};
use dmce_sys::map;

use crate::measure::{Pair, alternate, time};
use crate::memory::{Area, OwnObject, PAGE_BYTES, StoredPages, copy};
use crate::places::Places;
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit, size};
use crate::{Error, Result, huge};

/// Who mostly reads stores to one page of so many.
const PAGES_PER_STORED: u64 = 64;
/// One page of so many is dirty when copies are brought up to date.
const PAGES_PER_DIRTY: u64 = 100;

/// Who mostly reads, and how.
#[derive(Clone, Copy)]
struct Reader {
    /// Whether both objects have huge pages, and are mapped so before one is tracked.
    is_huge: bool,
    grain: Grain,
    /// Whether the pages that are stored to lie side by side.
    is_dense: bool,
    goal: Goal,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let tracker = Tracker::open(Grain::Small);
    if tracker.kind() == Kind::Compare {
        eprintln!("no rows: stores are not noted here");
        return Ok(Vec::new());
    }
    let mut rows = Vec::new();
    let goal = Goal::AtLeast(0.95);
    let small = Reader { is_huge: false, grain: Grain::Small, is_dense: false, goal };
    let huge = Reader { is_huge: true, grain: Grain::Huge, is_dense: true, goal };
    let split = Reader { is_huge: true, grain: Grain::Small, is_dense: true, goal: Goal::None };
    for reader in [small, huge, split] {
        rows.push(reader.measure(setting)?);
    }
    rows.extend(synced(setting, &tracker)?);
    Ok(rows)
}

impl Reader {
    /// Loads at random with some stores, then a scan, against the same without tracking.
    fn measure(self, setting: &Setting) -> Result<Row> {
        let (bytes, count, rounds) =
            setting.effort.pick((1 << 30, 1 << 25, 11), (64_usize << 20, 1 << 20, 2));
        let tracker = Tracker::open(self.grain);
        let [ours, theirs] = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
        for object in [&ours, &theirs] {
            if self.is_huge {
                object.collapse()?;
            }
            populate(object)?;
        }
        tracker.track(ours.range()).map_err(failed)?;
        populate(&ours)?;
        let pages = (bytes / PAGE_BYTES) as u64;
        let stride = if self.is_dense { 1 } else { PAGES_PER_STORED };
        let stored = StoredPages { count: pages / PAGES_PER_STORED, stride };
        let run = |area: Area, round| area.mostly_read(round, count, stored);
        let noted = |round| {
            time(count, || {
                run(ours.area(), round);
                take(&tracker, &ours, |_, _| {})
            })
        };
        let alone = |round| {
            time(count, || {
                run(theirs.area(), round);
                Ok(())
            })
        };
        let pair = alternate(rounds, noted, alone)?;
        // When all is over: what was stored to has small pages by then.
        let [own, other] = [huge::percent(ours.area())?, huge::percent(theirs.area())?];
        let where_stored = if self.is_dense { "to the first 64th" } else { "to each 64th page" };
        let state = format!(
            "random in {}, 1 % stores, {where_stored}; huge pages {own} % and {other} %",
            size(bytes as u64),
        );
        let quantity = "plain pointer: mostly loads, then a scan";
        Ok(row(quantity, state, "not tracked", self.goal, &pair))
    }
}

fn populate(object: &OwnObject) -> Result<()> {
    map::populate_read(object.range()).map_err(|e| Error::of("touching the object", e))
}

/// The pages that were stored to are copied, against who knows them, and who compares all.
fn synced(setting: &Setting, tracker: &Tracker) -> Result<[Row; 2]> {
    let (bytes, rounds) = setting.effort.pick((2 << 30, 11), (128_usize << 20, 2));
    let [from, to] = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
    tracker.track(from.range()).map_err(failed)?;
    let pages = |round| stored_pages(bytes, round);
    let sides = [from.area(), to.area()];
    let ours = |round| {
        let pages = pages(round);
        store_to(from.area(), &pages, round);
        let mut copied = 0;
        let seconds = time(1, || {
            take(tracker, &from, |offset, bytes| {
                copied += bytes / PAGE_BYTES;
                copy_part(sides, offset, bytes);
            })
        })?;
        // More if the kernel had to reclaim pages.
        assert!(copied >= pages.len(), "{copied} of {} pages were found", pages.len());
        Ok(seconds)
    };
    let by_list = |round| {
        let pages = pages(round);
        store_to(from.area(), &pages, round);
        take(tracker, &from, |_, _| {})?;
        time(1, || {
            for &page in &pages {
                copy_part(sides, page * PAGE_BYTES, PAGE_BYTES);
            }
            take(tracker, &from, |_, _| {})
        })
    };
    let compared = |round| {
        store_to(from.area(), &pages(round), round);
        let seconds = time(1, || {
            (0..bytes).step_by(PAGE_BYTES).for_each(|offset| bring_over(sides, offset));
            Ok(())
        })?;
        take(tracker, &from, |_, _| {})?;
        Ok(seconds)
    };
    let state = format!("{}, 1 % of the pages dirty", size(bytes as u64));
    let by_list = alternate(rounds, ours, by_list)?;
    let compared = alternate(rounds / 2, ours, compared)?;
    let quantity = "dirty pages are found and copied";
    Ok([
        row(
            quantity,
            state.clone(),
            "copying those pages, and a scan of clean ones",
            Goal::AtLeast(0.5),
            &by_list,
        ),
        row(quantity, state, "every page is compared (no tracking)", Goal::None, &compared),
    ])
}

fn row(quantity: &str, state: String, against: &'static str, goal: Goal, pair: &Pair) -> Row {
    let subject = Subject { quantity: quantity.to_owned(), state, against, unit: Unit::Time, goal };
    super::told(Row::new(subject, pair))
}

/// Takes the dirty pages; `each` gets the offset and the length of every run.
fn take(tracker: &Tracker, object: &OwnObject, mut each: impl FnMut(usize, usize)) -> Result<()> {
    let fits = |bytes: u64| usize::try_from(bytes).expect("a run lies in a mapping");
    let mut scan = tracker.scan(object.range()).map_err(failed)?;
    while let Some(runs) = scan.next_runs().map_err(failed)? {
        for run in runs {
            each(fits(run.offset), fits(run.bytes));
        }
    }
    Ok(())
}

/// The pages that a round stores to, in order.
fn stored_pages(bytes: usize, round: u64) -> Vec<usize> {
    let pages = (bytes / PAGE_BYTES) as u64;
    let mut places = Places::below(pages, round);
    let drawn = (0..pages / PAGES_PER_DIRTY).map(|_| places.next());
    let mut drawn: Vec<usize> = drawn.filter_map(|page| usize::try_from(page).ok()).collect();
    drawn.sort_unstable();
    drawn.dedup();
    drawn
}

fn store_to(area: Area, pages: &[usize], value: u64) {
    for &page in pages {
        debug_assert!((page + 1) * PAGE_BYTES <= area.bytes());
        #[allow(clippy::cast_ptr_alignment, reason = "the start of a page")]
        let word = area.start().wrapping_add(page * PAGE_BYTES).cast::<u64>();
        // SAFETY: the first word of a page inside the area, which is this thread's.
        unsafe { word.write_volatile(value) };
    }
}

fn copy_part([from, to]: [Area; 2], offset: usize, bytes: usize) {
    assert!(offset + bytes <= from.bytes().min(to.bytes()));
    let (from, to) = (from.start().wrapping_add(offset), to.start().wrapping_add(offset));
    // SAFETY: inside both areas, which are two objects, and this thread's.
    unsafe { copy(from, to, bytes) };
}

/// Copies a page if it differs.
fn bring_over([from, to]: [Area; 2], offset: usize) {
    assert!(offset + PAGE_BYTES <= from.bytes().min(to.bytes()));
    let both = [from, to].map(|area| area.start().wrapping_add(offset));
    // SAFETY: inside both areas, which nobody changes meanwhile.
    let order = unsafe { libc::memcmp(both[0].cast(), both[1].cast(), PAGE_BYTES) };
    if order != 0 {
        copy_part([from, to], offset, PAGE_BYTES);
    }
}

fn failed(error: dmce_sys::dirty::DirtyError) -> Error {
    Error::of("tracking stores", error)
}

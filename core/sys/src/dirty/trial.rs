//! Tries tracking out on a few pages, because a version or a feature list promises less than what
//! copies depend on.
//!
//! ```text
//! page  0      1      2       3       4                5
//!       was touched   was not         was touched
//!       stored loaded stored  loaded  stored; entry    left alone
//!                                     taken away
//! ```

use rustix::mm::{self, Advice};

use super::{DirtyError, Kernel, Run, Scan, Unavailable, pages};
use crate::map::{MapError, MappedRange, Mapping, page_bytes, populate_write};

const PAGES: usize = 6;

/// Tracks, stores and scans. Everything is unmapped again afterwards.
pub(super) fn run(kernel: &Kernel) -> Result<(), Unavailable> {
    let bytes = page_bytes() as u64;
    let mapping = Mapping::shared_anonymous(PAGES as u64 * bytes)?;
    let page = |number: u64| mapping.range(number * bytes, bytes);
    for touched in [0, 1, 4, 5] {
        populate_write(page(touched)?)?;
    }
    kernel.faults.register(mapping.whole()).map_err(Unavailable::Trial)?;
    kernel.faults.protect(mapping.whole()).map_err(Unavailable::Trial)?;
    let run = |number: u64| Run { offset: number * bytes, bytes };
    for stored in [0, 2, 4] {
        store(page(stored)?);
    }
    for loaded in [1, 3] {
        load(page(loaded)?);
    }
    take_entry_away(page(4)?)?;
    expect(kernel, &mapping, &[run(0), run(2), run(4)])?;
    store(page(4)?);
    expect(kernel, &mapping, &[run(4)])
}

/// Whether a huge page that was stored to is listed although its entry was taken away: the kernel
/// does so before it reclaims a huge page or moves it, and leaves no page table in its place. Seen
/// by a range without page tables, all of which has to be listed.
pub(super) fn remembers_huge(kernel: &Kernel) -> Result<bool, Unavailable> {
    let huge = pages::huge_bytes();
    // A huge page lies in it, wherever it is.
    let mapping = Mapping::shared_anonymous(2 * huge as u64)?;
    kernel.faults.register(mapping.whole()).map_err(Unavailable::Trial)?;
    let start = mapping.as_ptr().addr();
    let whole = mapping.range((start.next_multiple_of(huge) - start) as u64, huge as u64)?;
    let found = all(kernel, whole).map_err(Unavailable::Trial)?;
    Ok(found == [Run { offset: 0, bytes: huge as u64 }])
}

/// What was stored to has to be found. More may be: the kernel may have reclaimed a page meanwhile,
/// and is not sure of it then.
fn expect(kernel: &Kernel, mapping: &Mapping, expected: &[Run]) -> Result<(), Unavailable> {
    let found = all(kernel, mapping.whole()).map_err(Unavailable::Trial)?;
    let is_in = |run: &Run, other: &Run| {
        other.offset <= run.offset && run.offset + run.bytes <= other.offset + other.bytes
    };
    if expected.iter().all(|run| found.iter().any(|other| is_in(run, other))) {
        return Ok(());
    }
    Err(Unavailable::Wrong { pages: PAGES, found, expected: expected.to_vec() })
}

fn all(kernel: &Kernel, range: MappedRange<'_>) -> Result<Vec<Run>, DirtyError> {
    let (mut scan, mut found) = (Scan::new(kernel, range, pages::RUNS_MAX), Vec::new());
    while let Some(runs) = scan.next_runs()? {
        found.extend_from_slice(runs);
    }
    Ok(found)
}

fn store(page: MappedRange<'_>) {
    // SAFETY: a page of the trial's mapping, writable, and used by this thread alone.
    unsafe { page.as_ptr().write_volatile(1) };
}

fn load(page: MappedRange<'_>) {
    // SAFETY: as in `store`.
    unsafe { page.as_ptr().read_volatile() };
}

/// As the kernel does when it reclaims a page: the shared memory keeps its content.
fn take_entry_away(page: MappedRange<'_>) -> Result<(), MapError> {
    // SAFETY: the page is shared memory that the trial alone uses: nothing is lost with the entry.
    unsafe { mm::madvise(page.as_ptr().cast(), page.len(), Advice::LinuxDontNeed) }
        .map_err(|errno| MapError::Io { action: "taking an entry away", source: errno.into() })
}

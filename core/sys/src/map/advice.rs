//! Advice about mapped ranges, with an error where the kernel could not follow it.
//!
//! # Invariants
//!
//! 1. No advice changes what is stored in a range.
//! 2. A page that cannot be had is [`MapError::Lost`], never a signal.

use std::ffi::c_void;
use std::io;

use rustix::io::Errno;
use rustix::mm::{self, Advice};

use super::{MapError, MappedRange};

/// Fills the page table for stores: every page is allocated and writable.
///
/// # Errors
///
/// [`MapError::Lost`] where the object has no page and can get none, [`MapError::Unsupported`] for
/// a read-only mapping or an old kernel, [`MapError::Io`].
pub fn populate_write(range: MappedRange<'_>) -> Result<(), MapError> {
    advise(range, Advice::LinuxPopulateWrite, "populating for stores")
}

/// Fills the page table for loads.
///
/// # Errors
///
/// As [`populate_write`].
pub fn populate_read(range: MappedRange<'_>) -> Result<(), MapError> {
    advise(range, Advice::LinuxPopulateRead, "populating for loads")
}

/// Asks that faults use huge pages where the file system allows it.
///
/// # Errors
///
/// [`MapError::Unsupported`], [`MapError::Io`].
pub fn huge(range: MappedRange<'_>) -> Result<(), MapError> {
    advise(range, Advice::LinuxHugepage, "huge pages")
}

/// Copies the pages that are there into huge ones now, whatever the file system's setting.
///
/// Works on the 2 MiB-aligned parts of the range. Seconds per GiB when the memory is fragmented:
/// call it piece by piece, not while a caller waits.
///
/// # Errors
///
/// [`MapError::NoHugePage`], [`MapError::Busy`], [`MapError::Unsupported`] (nothing to collapse, or
/// a kernel before 6.1), [`MapError::Io`].
pub fn collapse(range: MappedRange<'_>) -> Result<(), MapError> {
    // SAFETY: the advice moves pages and changes no content; the range is mapped by the contract of
    // `MappedRange`.
    let failed =
        unsafe { libc::madvise(range.start.cast::<c_void>(), range.bytes, libc::MADV_COLLAPSE) };
    if failed == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match Errno::from_io_error(&error) {
        Some(Errno::NOMEM) => Err(MapError::NoHugePage),
        Some(errno) => Err(MapError::of_advice("collapsing", errno)),
        None => Err(MapError::Io { action: "collapsing", source: error }),
    }
}

pub(super) fn advise(
    range: MappedRange<'_>,
    advice: Advice,
    action: &'static str,
) -> Result<(), MapError> {
    // SAFETY: every advice that is passed here leaves the content as it is (wiping on fork concerns
    // a child's copy of a private page), and the range is mapped by the contract of `MappedRange`.
    unsafe { mm::madvise(range.start.cast(), range.bytes, advice) }
        .map_err(|errno| MapError::of_advice(action, errno))
}

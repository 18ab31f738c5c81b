//! Mappings of shared memory objects, reservations of address space, and advice about both.
//!
//! # Invariants
//!
//! 1. A [`Mapping`] and a [`Reservation`] own their address range until they are dropped; nothing
//!    outside is ever mapped over or unmapped.
//! 2. What is inside is known by raw pointer only. Other processes write it, the page may be gone
//!    when it is touched: accesses go through [`crate::transfer`], atomics and volatile views.
//! 3. Everything that is mapped here is left out of core dumps.
//! 4. Offsets and sizes are `u64`; what does not fit this process's pointers is
//!    [`MapError::AddressSpace`], as when the kernel finds no room.
//!
//! ```text
//! reservation  |....PROT_NONE....|  window 0  |....PROT_NONE....|  window 1  |......|
//!              ^ as_ptr          ^ map_at     ^ clear_at
//! ```

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

mod advice;
mod fork;
mod reservation;

pub use advice::{collapse, huge, populate_read, populate_write};
pub use fork::{WipeOnForkPage, WipedPage};
pub use reservation::Reservation;

use advice::advise;

/// What a process may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Loads only.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Whether the page table is filled at once, which is several times cheaper than fault by fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populate {
    /// Fill it, and say so if the object has not all of the pages.
    Yes,
    /// Leave it to the faults.
    No,
}

/// A part of an object. Both fields are bytes; the offset is page aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct FileRange {
    pub offset: u64,
    pub bytes: u64,
}

/// Why memory could not be mapped, or advice not be followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum MapError {
    /// No room for it in this process: address space, `RLIMIT_AS`, or the number of mappings.
    #[error("no address space for {bytes} bytes")]
    AddressSpace { bytes: u64 },
    /// Outside of the mapping or reservation, empty, or not page aligned where it has to be.
    #[error("{bytes} bytes at {offset:#x} do not fit a mapping of {len} bytes")]
    OutOfRange { offset: u64, bytes: u64, len: usize },
    /// The descriptor does not allow the access that was asked for.
    #[error("the descriptor does not allow this mapping")]
    Denied,
    /// The object does not have all of the pages (or the hardware lost one).
    #[error("pages of the mapped object are gone")]
    Lost,
    /// The kernel has no huge page to give at the moment.
    #[error("no huge page is free")]
    NoHugePage,
    /// The kernel could not do it now; another try may succeed.
    #[error("the pages are busy")]
    Busy,
    /// This kernel, file system or range does not take the advice.
    #[error("{action} is not supported here")]
    Unsupported { action: &'static str },
    /// Anything else that the kernel answered.
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
}

impl MapError {
    fn of_map(action: &'static str, bytes: u64, errno: Errno) -> Self {
        match errno {
            Errno::NOMEM | Errno::OVERFLOW => Self::AddressSpace { bytes },
            Errno::ACCESS | Errno::PERM => Self::Denied,
            other => Self::Io { action, source: other.into() },
        }
    }

    fn of_advice(action: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::FAULT | Errno::HWPOISON => Self::Lost,
            Errno::AGAIN | Errno::BUSY => Self::Busy,
            Errno::INVAL | Errno::OPNOTSUPP => Self::Unsupported { action },
            other => Self::Io { action, source: other.into() },
        }
    }
}

/// A range of mapped memory, borrowed from its owner.
#[derive(Clone, Copy, Debug)]
pub struct MappedRange<'a> {
    start: *mut u8,
    bytes: usize,
    owner: PhantomData<&'a Mapping>,
}

impl MappedRange<'_> {
    /// A range that is known by its address.
    ///
    /// # Safety
    ///
    /// For the lifetime of the value, all of it lies in one [`Mapping`] or [`Reservation`] of this
    /// process, or it is empty.
    #[inline]
    #[must_use]
    pub const unsafe fn new(start: *mut u8, bytes: usize) -> Self {
        Self { start, bytes, owner: PhantomData }
    }

    /// The first byte.
    #[inline]
    #[must_use]
    pub const fn as_ptr(self) -> *mut u8 {
        self.start
    }

    /// The length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(self) -> usize {
        self.bytes
    }

    /// Whether there is no byte in it.
    #[inline]
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.bytes == 0
    }
}

/// Mapped memory that is unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the type owns an address range, which belongs to the process and not to a thread; it
// gives out raw pointers only, whose accesses are their user's to order.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method changes the mapping through `&self`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a part of an object, shared with every other process that maps it.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`], [`MapError::Denied`], [`MapError::Lost`] if it was to be
    /// populated and the object ends before that, [`MapError::Io`].
    pub fn shared(
        fd: BorrowedFd<'_>,
        range: FileRange,
        protection: Protection,
        populate: Populate,
    ) -> Result<Self, MapError> {
        let bytes = in_pointer(range.bytes)?;
        // SAFETY: no address is asked for, so the kernel takes free space and nothing is replaced.
        let start = unsafe {
            mm::mmap(ptr::null_mut(), bytes, prot(protection), MapFlags::SHARED, fd, range.offset)
        }
        .map_err(|errno| MapError::of_map("mmap", range.bytes, errno))?;
        let mapping = Self { start: start.cast(), bytes };
        finish(mapping.whole(), populate)?;
        Ok(mapping)
    }

    /// Maps once more what a range of a shared mapping shows, whole pages, to outlive that one.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`] if the range is empty or not of pages, [`MapError::AddressSpace`],
    /// [`MapError::Io`].
    pub fn again(range: MappedRange<'_>) -> Result<Self, MapError> {
        let (start, bytes) = (range.as_ptr(), range.len());
        let is_pages = |number: usize| number.is_multiple_of(page_bytes());
        if bytes == 0 || !is_pages(start.addr()) || !is_pages(bytes) {
            let offset = (start.addr() % page_bytes()) as u64;
            return Err(MapError::OutOfRange { offset, bytes: bytes as u64, len: bytes });
        }
        // SAFETY: an old size of 0 leaves the old mapping, which is shared, as it is, and makes
        // another where there is free space, with its rights and flags.
        let again = unsafe { mm::mremap(start.cast(), 0, bytes, MremapFlags::MAYMOVE) };
        let again = again.map_err(|errno| MapError::of_map("mremap", bytes as u64, errno))?;
        Ok(Self { start: again.cast(), bytes })
    }

    /// Maps private zeroed memory, for caches and buffers that are to stay out of core dumps.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`], [`MapError::Io`].
    pub fn private(bytes: u64) -> Result<Self, MapError> {
        let len = in_pointer(bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel takes free space and nothing is replaced.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::PRIVATE) }
            .map_err(|errno| MapError::of_map("mmap", bytes, errno))?;
        let mapping = Self { start: start.cast(), bytes: len };
        finish(mapping.whole(), Populate::No)?;
        Ok(mapping)
    }

    /// Maps zeroed memory that is shared with children alone: an object of its own without a name.
    pub(crate) fn shared_anonymous(bytes: u64) -> Result<Self, MapError> {
        let len = in_pointer(bytes)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel takes free space and nothing is replaced.
        let start = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, prot, MapFlags::SHARED) }
            .map_err(|errno| MapError::of_map("mmap", bytes, errno))?;
        let mapping = Self { start: start.cast(), bytes: len };
        finish(mapping.whole(), Populate::No)?;
        Ok(mapping)
    }

    /// The first byte.
    #[inline]
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.start
    }

    /// The length in bytes.
    #[inline]
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Never: an empty mapping cannot be made.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// All of it.
    #[inline]
    #[must_use]
    pub const fn whole(&self) -> MappedRange<'_> {
        MappedRange { start: self.start, bytes: self.bytes, owner: PhantomData }
    }

    /// A part of it.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`].
    #[inline]
    pub fn range(&self, offset: u64, bytes: u64) -> Result<MappedRange<'_>, MapError> {
        self.whole().part(offset, bytes)
    }

    /// Changes what may be done with all of it.
    ///
    /// # Errors
    ///
    /// [`MapError::Denied`] if the object was opened for reading only, [`MapError::Io`].
    pub fn protect(&self, protection: Protection) -> Result<(), MapError> {
        let flags = match protection {
            Protection::Read => MprotectFlags::READ,
            Protection::ReadWrite => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        // SAFETY: the range is this mapping's own; who holds pointers into it reckons with faults
        // (invariant 2 of the module).
        unsafe { mm::mprotect(self.start.cast(), self.bytes, flags) }
            .map_err(|errno| MapError::of_map("mprotect", self.bytes as u64, errno))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

impl<'a> MappedRange<'a> {
    /// A part of the range.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`].
    #[inline]
    pub fn part(self, offset: u64, bytes: u64) -> Result<MappedRange<'a>, MapError> {
        let out_of_range = MapError::OutOfRange { offset, bytes, len: self.bytes };
        let (Ok(start), Ok(len)) = (usize::try_from(offset), usize::try_from(bytes)) else {
            return Err(out_of_range);
        };
        if start.checked_add(len).is_none_or(|end| end > self.bytes) {
            return Err(out_of_range);
        }
        // Within the range by the check above; no dereference is made here.
        Ok(Self { start: self.start.wrapping_add(start), bytes: len, owner: PhantomData })
    }
}

/// Bytes of a page of the processor.
#[inline]
#[must_use]
pub fn page_bytes() -> usize {
    rustix::param::page_size()
}

fn prot(protection: Protection) -> ProtFlags {
    match protection {
        Protection::Read => ProtFlags::READ,
        Protection::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
    }
}

/// What every new mapping gets: no part in core dumps, and its pages if wanted.
fn finish(range: MappedRange<'_>, populate: Populate) -> Result<(), MapError> {
    advise(range, Advice::LinuxDontDump, "leaving out of core dumps")?;
    match populate {
        // Not MAP_POPULATE: that hides a missing page.
        Populate::Yes => populate_read(range),
        Populate::No => Ok(()),
    }
}

fn unmap(start: *mut u8, bytes: usize) {
    // SAFETY: callers pass a range that they own and give up.
    let unmapped = unsafe { mm::munmap(start.cast(), bytes) };
    // It fails only where splitting a mapping exceeds the limit of mappings: then it stays mapped.
    debug_assert!(unmapped.is_ok(), "munmap of an owned range failed: {unmapped:?}");
}

fn in_pointer(bytes: u64) -> Result<usize, MapError> {
    usize::try_from(bytes).map_err(|_| MapError::AddressSpace { bytes })
}

fn round_up_to_page(bytes: usize) -> Option<usize> {
    bytes.checked_next_multiple_of(page_bytes())
}

#[cfg(test)]
mod tests;

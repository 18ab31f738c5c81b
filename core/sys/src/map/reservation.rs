//! An arena of address space whose parts are mapped, replaced and cleared in place.
//!
//! # Invariants
//!
//! 1. The whole range stays this reservation's until it is dropped: what is not mapped is
//!    `PROT_NONE`, so no other mapping of the process can get in between.
//! 2. A part is replaced by one system call. Another thread that touches it meets the old or the
//!    new mapping, never a hole.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{self, MapFlags, ProtFlags};

use super::{
    FileRange, MapError, MappedRange, Populate, Protection, finish, in_pointer, page_bytes, prot,
    round_up_to_page, unmap,
};

/// The start of what [`Reservation::mapped`] mapped last: right below there is often room. A wish,
/// and nothing depends on it.
static BELOW: AtomicUsize = AtomicUsize::new(0);

const RESERVE_FLAGS: MapFlags = MapFlags::PRIVATE.union(MapFlags::NORESERVE);

/// An arena of address space in which mappings are placed and replaced.
///
/// What is not mapped is `PROT_NONE`: touching it is a SIGSEGV, as for any stray pointer.
#[derive(Debug)]
pub struct Reservation {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: as for `Mapping`.
unsafe impl Send for Reservation {}
// SAFETY: the methods that change mappings through `&self` are single system calls, which the
// kernel orders; what a replaced range means to a holder of pointers is the holder's to know.
unsafe impl Sync for Reservation {}

impl Reservation {
    /// Reserves `bytes` of address space, page aligned.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`], [`MapError::Io`].
    pub fn new(bytes: u64) -> Result<Self, MapError> {
        Self::aligned(bytes, page_bytes() as u64)
    }

    /// Reserves `bytes` of address space at a multiple of `align_bytes`, a power of two.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`], [`MapError::Io`].
    ///
    /// # Panics
    ///
    /// If `align_bytes` is not a power of two.
    pub fn aligned(bytes: u64, align_bytes: u64) -> Result<Self, MapError> {
        assert!(align_bytes.is_power_of_two(), "alignment {align_bytes} is no power of two");
        let len = round_up_to_page(in_pointer(bytes)?).ok_or(MapError::AddressSpace { bytes })?;
        let align = in_pointer(align_bytes)?.max(page_bytes());
        // With this much more there is an aligned start, whatever page the kernel begins at.
        let slack = align - page_bytes();
        let asked = len.checked_add(slack).ok_or(MapError::AddressSpace { bytes })?;
        // SAFETY: no address is asked for, so the kernel takes free space and nothing is replaced.
        let raw = unsafe {
            mm::mmap_anonymous(ptr::null_mut(), asked, ProtFlags::empty(), RESERVE_FLAGS)
        }
        .map_err(|errno| MapError::of_map("reserve", bytes, errno))?;
        let raw = raw.cast::<u8>();
        let head = raw.addr().next_multiple_of(align) - raw.addr();
        let reservation = Self { start: raw.wrapping_add(head), bytes: len };
        if head > 0 {
            unmap(raw, head);
        }
        if slack > head {
            unmap(reservation.start.wrapping_add(len), slack - head);
        }
        // It has no pages, so nothing of it would be in a core dump.
        Ok(reservation)
    }

    /// Reserves `bytes` of address space that begin at `start`, if all of it is free.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`] if something is there, or if no process has memory there.
    pub fn at(start: u64, bytes: u64) -> Result<Self, MapError> {
        let taken = MapError::AddressSpace { bytes };
        let len = round_up_to_page(in_pointer(bytes)?).filter(|&len| len > 0);
        let wish = usize::try_from(start).ok();
        // At 0 there is nothing, though some users may have it.
        let wish = wish.filter(|start| *start > 0 && start.is_multiple_of(page_bytes()));
        let (Some(len), Some(wish)) = (len, wish) else { return Err(taken) };
        let flags = RESERVE_FLAGS | MapFlags::FIXED_NOREPLACE;
        // SAFETY: replaces nothing: where something is mapped the call fails.
        let mapped = unsafe {
            mm::mmap_anonymous(ptr::without_provenance_mut(wish), len, ProtFlags::empty(), flags)
        };
        let Ok(mapped) = mapped else { return Err(taken) };
        let reservation = Self { start: mapped.cast(), bytes: len };
        // Dropped, if a kernel took the address for a wish.
        if reservation.start.addr() == wish { Ok(reservation) } else { Err(taken) }
    }

    /// Reserves as many bytes as a part of an object has, at a multiple of `align_bytes`, with that
    /// part mapped there.
    ///
    /// # Errors
    ///
    /// As [`Reservation::aligned`] and [`Reservation::map_at`].
    ///
    /// # Panics
    ///
    /// As [`Reservation::aligned`].
    pub fn mapped(
        fd: BorrowedFd<'_>,
        range: FileRange,
        align_bytes: u64,
        protection: Protection,
    ) -> Result<Self, MapError> {
        let below = BELOW.load(Ordering::Relaxed);
        let mapped = Self::mapped_below(below, fd, range, align_bytes, protection)?;
        let reservation = if let Some(mapped) = mapped {
            mapped
        } else {
            let reservation = Self::aligned(range.bytes, align_bytes)?;
            reservation.map_at(0, fd, range, protection, Populate::No)?;
            reservation
        };
        BELOW.store(reservation.start.addr(), Ordering::Relaxed);
        Ok(reservation)
    }

    /// The same right below an address, in one call, if there is room. Two threads may try the same
    /// place: the kernel gives it to one of them.
    fn mapped_below(
        below: usize,
        fd: BorrowedFd<'_>,
        range: FileRange,
        align_bytes: u64,
        protection: Protection,
    ) -> Result<Option<Self>, MapError> {
        assert!(align_bytes.is_power_of_two(), "alignment {align_bytes} is no power of two");
        let bytes = range.bytes;
        let len = round_up_to_page(in_pointer(bytes)?).ok_or(MapError::AddressSpace { bytes })?;
        let align = in_pointer(align_bytes)?.max(page_bytes());
        let Some(place) = below.checked_sub(len).map(|end| end - end % align) else {
            return Ok(None);
        };
        if place == 0 {
            return Ok(None);
        }
        // SAFETY: the address is a wish only, so the kernel takes free space and nothing is
        // replaced.
        let mapped = unsafe {
            let wish = ptr::without_provenance_mut(place);
            mm::mmap(wish, len, prot(protection), MapFlags::SHARED, fd, range.offset)
        };
        let start = mapped.map_err(|errno| MapError::of_map("mmap", bytes, errno))?.cast::<u8>();
        let reservation = Self { start, bytes: len };
        if !start.addr().is_multiple_of(align) {
            // Dropped: it lies elsewhere.
            return Ok(None);
        }
        finish(reservation.whole(), Populate::No)?;
        Ok(Some(reservation))
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

    /// Never: an empty reservation cannot be made.
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

    /// Maps a part of an object at `at` bytes from the start, in place of what was there.
    ///
    /// Threads that touch the range meanwhile see the old or the new mapping, never a hole.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`], [`MapError::AddressSpace`] (too many mappings),
    /// [`MapError::Denied`]: what was there is still there. [`MapError::Lost`] if it was to be
    /// populated and the object has not the pages: the new mapping is in place. [`MapError::Io`].
    pub fn map_at(
        &self,
        at: u64,
        fd: BorrowedFd<'_>,
        range: FileRange,
        protection: Protection,
        populate: Populate,
    ) -> Result<MappedRange<'_>, MapError> {
        let place = self.place(at, range.bytes)?;
        let flags = MapFlags::SHARED | MapFlags::FIXED;
        // SAFETY: `place` is inside this reservation, so what is replaced is its own.
        let mapped = unsafe {
            let start = place.start.cast();
            mm::mmap(start, place.bytes, prot(protection), flags, fd, range.offset)
        };
        mapped.map_err(|errno| {
            reserve_again(place);
            MapError::of_map("mmap", range.bytes, errno)
        })?;
        finish(place, populate)?;
        Ok(place)
    }

    /// Takes what is mapped there away; the address space stays reserved.
    ///
    /// # Errors
    ///
    /// [`MapError::OutOfRange`], [`MapError::AddressSpace`], [`MapError::Io`].
    pub fn clear_at(&self, at: u64, bytes: u64) -> Result<(), MapError> {
        let place = self.place(at, bytes)?;
        let flags = RESERVE_FLAGS | MapFlags::FIXED;
        let start = place.start.cast();
        // SAFETY: `place` is inside this reservation, so what is replaced is its own.
        unsafe { mm::mmap_anonymous(start, place.bytes, ProtFlags::empty(), flags) }
            .map_err(|errno| MapError::of_map("reserve", bytes, errno))?;
        finish(place, Populate::No)
    }

    /// The pages of a range, checked to lie inside.
    fn place(&self, at: u64, bytes: u64) -> Result<MappedRange<'_>, MapError> {
        let out_of_range = || MapError::OutOfRange { offset: at, bytes, len: self.bytes };
        // The kernel maps whole pages, and the rest of the last one is not a neighbour's.
        let pages = usize::try_from(bytes).ok().and_then(round_up_to_page);
        let pages = pages.filter(|&pages| pages > 0).ok_or_else(out_of_range)?;
        if !at.is_multiple_of(page_bytes() as u64) {
            return Err(out_of_range());
        }
        self.range(at, pages as u64)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        unmap(self.start, self.bytes);
    }
}

/// Closes the hole that a failed replacement may have left: the kernel takes the old mapping away
/// before the last of its own checks.
fn reserve_again(place: MappedRange<'_>) {
    let flags = RESERVE_FLAGS | MapFlags::FIXED_NOREPLACE;
    // SAFETY: replaces nothing: where something is mapped the call fails, and that is as good.
    let _ =
        unsafe { mm::mmap_anonymous(place.start.cast(), place.bytes, ProtFlags::empty(), flags) };
}

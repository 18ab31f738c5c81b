//! A block that is mapped whole: its bytes are a pointer away.
//!
//! # Invariants
//!
//! 1. The mapping is as long as the block may ever be. What is committed later appears in it
//!    without a further call.
//! 2. It starts at a multiple of a huge page, as the object does, so that the kernel can use huge
//!    pages where the object has them.

use std::cmp::Ordering;
use std::os::fd::BorrowedFd;

use dmce_sys::fault::{guarded, guarded2};
use dmce_sys::map::{FileRange, MapError, MappedRange, Populate, Protection, Reservation};

use super::transfer::{self, Store};
use super::{Piece, Reach, Trouble};

/// The alignment of mappings: a huge page.
pub(crate) const HUGE_BYTES: u64 = 2 << 20;

/// A guard is over so many bytes at most: a lost object is noticed after that much.
const GUARD_BYTES: usize = 1 << 20;

/// A mapped block.
#[derive(Debug)]
pub(crate) struct MappedBlock {
    mapping: Reservation,
}

impl MappedBlock {
    /// Maps the object, for `bytes_max` bytes. The descriptor is not needed afterwards.
    pub(crate) fn new(
        fd: BorrowedFd<'_>,
        bytes_max: u64,
        protection: Protection,
    ) -> Result<Self, MapError> {
        let mapping = Reservation::aligned(bytes_max, HUGE_BYTES)?;
        let all = FileRange { offset: 0, bytes: bytes_max };
        mapping.map_at(0, fd, all, protection, Populate::No)?;
        Ok(Self { mapping })
    }

    /// The pointer to a byte, which lies inside.
    #[inline]
    pub(crate) fn pointer(&self, cell: u64) -> *mut u8 {
        // A cell inside the mapping fits a pointer.
        #[expect(clippy::cast_possible_truncation, reason = "inside the mapping")]
        let offset = cell as usize;
        self.mapping.as_ptr().wrapping_add(offset)
    }

    /// Copies between two mapped blocks, or inside one; the ranges do not overlap.
    pub(crate) fn copy(&self, to: Piece, from_block: &Self, from_cell: u64) -> Result<(), Trouble> {
        let store = Store::into_block(to.bytes);
        each_guarded(to, |done, part| {
            let target = self.range(part);
            let source = from_block.range(Piece { cell: from_cell + done as u64, ..part });
            // SAFETY: both ranges lie in mappings, target's writable, and do not overlap.
            let copy = || unsafe {
                transfer::copy(target.as_ptr(), source.as_ptr(), part.bytes, store);
            };
            Ok(guarded2(target, source, copy)?)
        })
    }

    /// # Safety
    ///
    /// As [`Reach::read`].
    #[inline(never)]
    unsafe fn read_large(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        let store = Store::out_of_block(piece.bytes);
        each_guarded(piece, |done, part| {
            let (range, buffer) = (self.range(part), buffer.wrapping_add(done));
            // SAFETY: the range is mapped, the buffer is the caller's, and no part of a block.
            let copy = || unsafe { transfer::copy(buffer, range.as_ptr(), part.bytes, store) };
            Ok(guarded(range, copy)?)
        })
    }

    /// # Safety
    ///
    /// As [`Reach::write`].
    #[inline(never)]
    unsafe fn write_large(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        let store = Store::into_block(piece.bytes);
        each_guarded(piece, |done, part| {
            let (range, data) = (self.range(part), data.wrapping_add(done));
            // SAFETY: the range is mapped and writable, the data is the caller's, and no part of a
            // block.
            let copy = || unsafe { transfer::copy(range.as_ptr(), data, part.bytes, store) };
            Ok(guarded(range, copy)?)
        })
    }

    /// The mapped bytes of a piece.
    #[inline]
    fn range(&self, piece: Piece) -> MappedRange<'_> {
        debug_assert!(piece.cell + piece.bytes as u64 <= self.mapping.len() as u64);
        // SAFETY: what is committed is inside the mapping, and a piece inside what is committed.
        unsafe { MappedRange::new(self.pointer(piece.cell), piece.bytes) }
    }
}

impl Reach for MappedBlock {
    #[inline]
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        if piece.bytes > GUARD_BYTES {
            // SAFETY: as the caller promises.
            return unsafe { self.read_large(piece, buffer) };
        }
        let range = self.range(piece);
        // SAFETY: the range is mapped, the buffer is the caller's, and no part of a block.
        let copy = || unsafe { transfer::copy(buffer, range.as_ptr(), piece.bytes, Store::Cached) };
        Ok(guarded(range, copy)?)
    }

    #[inline]
    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        if piece.bytes > GUARD_BYTES {
            // SAFETY: as the caller promises.
            return unsafe { self.write_large(piece, data) };
        }
        let range = self.range(piece);
        // SAFETY: the range is mapped and writable, the data is the caller's, and no part of a
        // block.
        let copy = || unsafe { transfer::copy(range.as_ptr(), data, piece.bytes, Store::Cached) };
        Ok(guarded(range, copy)?)
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        let store = Store::into_block(piece.bytes);
        each_guarded(piece, |_, part| {
            let range = self.range(part);
            // SAFETY: the range is mapped and writable.
            let fill = || unsafe { transfer::fill(range.as_ptr(), byte, part.bytes, store) };
            Ok(guarded(range, fill)?)
        })
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        let mut order = Ordering::Equal;
        each_guarded(piece, |done, part| {
            let (range, data) = (self.range(part), data.wrapping_add(done));
            if order == Ordering::Equal {
                // SAFETY: the range is mapped, the data is the caller's.
                let compare = || unsafe { transfer::compare(range.as_ptr(), data, part.bytes) };
                order = guarded(range, compare)?;
            }
            Ok(())
        })?;
        Ok(order)
    }
}

/// Runs `access` on parts that one guard may cover.
fn each_guarded(
    piece: Piece,
    mut access: impl FnMut(usize, Piece) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut done = 0;
    while done < piece.bytes {
        let bytes = GUARD_BYTES.min(piece.bytes - done);
        access(done, piece.part(done, bytes))?;
        done += bytes;
    }
    Ok(())
}

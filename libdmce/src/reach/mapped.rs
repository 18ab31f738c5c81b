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

use dmce_sys::map::{FileRange, MapError, MappedRange, Protection, Reservation};
use dmce_sys::transfer::{self, Gone, Store};

use super::word::{self, Change, Watch};
use super::{Piece, Reach, Trouble, store};

/// The alignment of mappings: a huge page.
pub(crate) const HUGE_BYTES: u64 = 2 << 20;

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
        let all = FileRange { offset: 0, bytes: bytes_max };
        Ok(Self { mapping: Reservation::mapped(fd, all, HUGE_BYTES, protection)? })
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
    pub(crate) fn copy(&self, to: Piece, from_block: &Self, from_cell: u64) -> Result<(), Gone> {
        let source = from_block.range(Piece { cell: from_cell, ..to });
        // SAFETY: both ranges lie in mappings, target's writable, and do not overlap.
        unsafe { transfer::copy(self.range(to), source, store::into_block(to.bytes)) }
    }

    /// [`Reach::read`], past the caches or not.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    #[inline]
    pub(super) unsafe fn load(
        &self,
        piece: Piece,
        buffer: *mut u8,
        store: Store,
    ) -> Result<(), Trouble> {
        // SAFETY: the buffer is the caller's, and no part of a block.
        Ok(unsafe { transfer::load(self.range(piece), buffer, store) }?)
    }

    /// [`Reach::write`], past the caches or not.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`].
    #[inline]
    pub(super) unsafe fn store(
        &self,
        piece: Piece,
        data: *const u8,
        store: Store,
    ) -> Result<(), Trouble> {
        // SAFETY: the range is writable, the data is the caller's, and no part of a block.
        Ok(unsafe { transfer::store(self.range(piece), data, store) }?)
    }

    /// [`Reach::fill`], past the caches or not.
    pub(super) fn fill_by(&self, piece: Piece, byte: u8, store: Store) -> Result<(), Trouble> {
        // SAFETY: the range is writable.
        Ok(unsafe { transfer::fill(self.range(piece), byte, store) }?)
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
        // SAFETY: as the caller promises.
        unsafe { self.load(piece, buffer, store::out_of_block(piece.bytes)) }
    }

    #[inline]
    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        // SAFETY: as the caller promises.
        unsafe { self.store(piece, data, store::into_block(piece.bytes)) }
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        self.fill_by(piece, byte, store::into_block(piece.bytes))
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        // SAFETY: the data is the caller's, and written by nobody.
        Ok(unsafe { transfer::compare(self.range(piece), data) }?)
    }

    #[inline]
    fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble> {
        let word = word::word_of(self.range(piece))?;
        // SAFETY: the block is writable, unless the word is only looked at.
        unsafe { change.apply(word) }
    }

    fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble> {
        word::wake(word::word_of(self.range(piece))?, count)
    }

    fn watch(&self, piece: Piece) -> Result<Watch, Trouble> {
        Watch::of(word::word_of(self.range(piece))?)
    }
}

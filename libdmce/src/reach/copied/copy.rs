//! One copy of a block, mapped or behind windows.

use std::cmp::Ordering;

use dmce_abi::block::{DaemonId, Half};
use dmce_sys::prefetch;
use dmce_sys::transfer::Store;

use crate::reach::mapped::MappedBlock;
use crate::reach::windowed::WindowedBlock;
use crate::reach::word::{Change, Watch};
use crate::reach::{Piece, Reach, Trouble};

/// A copy.
#[derive(Debug)]
pub(crate) struct Copy {
    /// Whose it is.
    pub daemon: DaemonId,
    /// What it was made as.
    pub half: Half,
    pub way: Way,
}

/// How its bytes are reached.
#[derive(Debug)]
pub(crate) enum Way {
    Mapped(MappedBlock),
    Windowed(WindowedBlock),
}

impl Copy {
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
        match &self.way {
            // SAFETY: as the caller promises.
            Way::Mapped(block) => unsafe { block.load(piece, buffer, store) },
            // SAFETY: as the caller promises.
            Way::Windowed(block) => unsafe { block.load(piece, buffer, store) },
        }
    }

    /// A piece is about to be written.
    #[inline]
    pub(super) fn expect_write(&self, piece: Piece) {
        // What windows show has to be found first.
        if let Way::Mapped(block) = &self.way {
            prefetch::for_write(block.pointer(piece.cell), piece.bytes);
        }
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
        match &self.way {
            // SAFETY: as the caller promises.
            Way::Mapped(block) => unsafe { block.store(piece, data, store) },
            // SAFETY: as the caller promises.
            Way::Windowed(block) => unsafe { block.store(piece, data, store) },
        }
    }

    /// [`Reach::fill`], past the caches or not.
    pub(super) fn fill(&self, piece: Piece, byte: u8, store: Store) -> Result<(), Trouble> {
        match &self.way {
            Way::Mapped(block) => block.fill_by(piece, byte, store),
            Way::Windowed(block) => block.fill_by(piece, byte, store),
        }
    }

    /// [`Reach::compare`].
    ///
    /// # Safety
    ///
    /// As [`Reach::compare`].
    pub(super) unsafe fn compare(
        &self,
        piece: Piece,
        data: *const u8,
    ) -> Result<Ordering, Trouble> {
        match &self.way {
            // SAFETY: as the caller promises.
            Way::Mapped(block) => unsafe { block.compare(piece, data) },
            // SAFETY: as the caller promises.
            Way::Windowed(block) => unsafe { block.compare(piece, data) },
        }
    }

    /// [`Reach::change`].
    #[inline]
    pub(super) fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble> {
        match &self.way {
            Way::Mapped(block) => block.change(piece, change),
            Way::Windowed(block) => block.change(piece, change),
        }
    }

    /// [`Reach::wake`].
    pub(super) fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble> {
        match &self.way {
            Way::Mapped(block) => block.wake(piece, count),
            Way::Windowed(block) => block.wake(piece, count),
        }
    }

    /// [`Reach::watch`].
    pub(super) fn watch(&self, piece: Piece) -> Result<Watch, Trouble> {
        match &self.way {
            Way::Mapped(block) => block.watch(piece),
            Way::Windowed(block) => block.watch(piece),
        }
    }
}

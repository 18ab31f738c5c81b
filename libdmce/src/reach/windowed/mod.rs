//! A block that is reached through windows, and by `pread` and `pwrite` where a window does not
//! pay.
//!
//! ```text
//!   is there a window?   yes: copy, as in a mapped block
//!                        no:  large, or goes on where the last one ended: map a window, filled
//!                             touched again and again, more than what would have to go: map one
//!                             else: pread, pwrite (a microsecond; a window costs several)
//! ```
//!
//! # Invariants
//!
//! 1. Whatever the cache has room for, every piece can be read and written: without a window by
//!    system call.
//! 2. A `pwrite` never makes a truncated object look whole: the object's end is checked around it.

mod cache;
mod policy;

use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use dmce_sys::fault::guarded;
use dmce_sys::map::{MapError, MappedRange, Protection};
use dmce_sys::object::{self, ObjectError};

use super::transfer::{self, Store};
use super::{Piece, Reach, Trouble};
use cache::{Demand, Key};
pub(crate) use cache::{WINDOW_BYTES, WindowCache};

/// From this size on an access is worth a window by itself.
const LARGE_BYTES: usize = 128 << 10;
/// From this size on the rest of the window will probably be wanted too.
const HUGE_BYTES: usize = 512 << 10;

/// A block behind windows.
#[derive(Debug)]
pub(crate) struct WindowedBlock {
    cache: Arc<WindowCache>,
    fd: OwnedFd,
    protection: Protection,
    /// Tells blocks of the process apart, towards the cache.
    serial: u32,
    /// For each window of the block the cache's place that shows it, plus 1; 0 for none.
    places: Arc<[AtomicU32]>,
    /// Where the last access ended that found no window: what begins there goes on in order.
    next_cell: AtomicU64,
    /// Whether the descriptor was used since somebody last asked.
    touched: AtomicBool,
}

impl WindowedBlock {
    /// Takes a block of at most `bytes_max` bytes in. Nothing is mapped yet.
    pub(crate) fn new(
        cache: Arc<WindowCache>,
        fd: OwnedFd,
        bytes_max: u64,
        protection: Protection,
    ) -> Result<Self, MapError> {
        static NEXT_SERIAL: AtomicU32 = AtomicU32::new(0);
        let no_memory = MapError::AddressSpace { bytes: bytes_max };
        let mut places = Vec::new();
        let windows = usize::try_from(bytes_max.div_ceil(WINDOW_BYTES));
        if windows.is_err() || places.try_reserve_exact(windows.unwrap_or(0)).is_err() {
            return Err(no_memory);
        }
        places.resize_with(windows.unwrap_or(0), || AtomicU32::new(0));
        Ok(Self {
            cache,
            fd,
            protection,
            serial: NEXT_SERIAL.fetch_add(1, Relaxed),
            places: places.into(),
            next_cell: AtomicU64::new(u64::MAX),
            touched: AtomicBool::new(true),
        })
    }

    /// The object's descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Whether the descriptor was used since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        self.touched.swap(false, Relaxed)
    }

    /// The mapped bytes of a small piece that lies in one window, if that is mapped.
    #[inline]
    fn window_of(&self, piece: Piece) -> Option<(cache::View<'_>, MappedRange<'_>)> {
        let (window, offset) = split(piece.cell);
        // Strictly less: who reaches a window's end is watched for what follows.
        if piece.bytes >= in_window(offset) {
            return None;
        }
        let view = self.cache.find(&self.places, window)?;
        let start = view.start().wrapping_add(offset);
        // SAFETY: the window is mapped as long as the view pins it, which the caller keeps as long.
        let range = unsafe { MappedRange::new(start, piece.bytes) };
        Some((view, range))
    }

    /// Runs `mapped` on every part of a piece that has a window, and `direct` on the others.
    fn each_part(
        &self,
        piece: Piece,
        mut mapped: impl FnMut(usize, MappedRange<'_>) -> Result<(), Trouble>,
        mut direct: impl FnMut(usize, Piece) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let mut done = 0;
        while done < piece.bytes {
            let cell = piece.cell + done as u64;
            let (window, offset) = split(cell);
            let bytes = in_window(offset).min(piece.bytes - done);
            let part = piece.part(done, bytes);
            let view = self.cache.find(&self.places, window);
            if let Some(view) = view.or_else(|| self.demand(piece, part, window)) {
                let start = view.start().wrapping_add(offset);
                // SAFETY: the window is mapped as long as `view` pins it, and the part is in it.
                mapped(done, unsafe { MappedRange::new(start, bytes) })?;
                if bytes == in_window(offset) {
                    self.next_cell.store(cell + bytes as u64, Relaxed);
                }
            } else {
                self.touched.store(true, Relaxed);
                direct(done, part)?;
            }
            done += bytes;
        }
        Ok(())
    }

    /// A window for a part that has none, if one pays.
    #[cold]
    fn demand(&self, piece: Piece, part: Piece, window: u32) -> Option<cache::View<'_>> {
        let end = part.cell + part.bytes as u64;
        let goes_on = self.next_cell.swap(end, Relaxed) == part.cell;
        let key = Key { serial: self.serial, window };
        let rest = (WINDOW_BYTES - part.cell % WINDOW_BYTES).min(piece.committed - part.cell);
        let demand = if goes_on || piece.bytes >= HUGE_BYTES {
            // What follows will be wanted too.
            Demand::Now { populate: part.cell..part.cell + rest }
        } else if piece.bytes >= LARGE_BYTES {
            Demand::Now { populate: part.cell..end }
        } else {
            Demand::IfItPays
        };
        self.cache.demand(&self.places, key, self.fd(), self.protection, &demand)
    }

    fn read_direct(&self, part: Piece, buffer: &mut [u8]) -> Result<(), Trouble> {
        match object::read_at(self.fd(), buffer, part.cell) {
            Ok(()) => Ok(()),
            Err(ObjectError::Short { .. }) => Err(Trouble::Lost),
            Err(error) => Err(io_trouble("read", &error)),
        }
    }

    fn write_direct(&self, part: Piece, data: &[u8]) -> Result<(), Trouble> {
        let check_end = || match object::end(self.fd()) {
            Ok(end) if end >= part.committed => Ok(()),
            Ok(_) => Err(Trouble::Lost),
            Err(error) => Err(io_trouble("measure", &error)),
        };
        // Before, so that a truncated object is not made longer; after, because it may have been
        // truncated in between.
        check_end()?;
        match object::write_at(self.fd(), data, part.cell) {
            Ok(()) => check_end(),
            // A page that was committed is there: only one of a truncated object has to be had.
            Err(ObjectError::NoSpace { .. } | ObjectError::Short { .. }) => Err(Trouble::Lost),
            Err(error) => Err(io_trouble("write", &error)),
        }
    }
}

impl Drop for WindowedBlock {
    fn drop(&mut self) {
        self.cache.forget(&self.places, self.serial);
    }
}

impl Reach for WindowedBlock {
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        if let Some((_view, range)) = self.window_of(piece) {
            // SAFETY: the range is mapped, the buffer is the caller's, and no part of a block.
            let copy = || unsafe { buffer.copy_from_nonoverlapping(range.as_ptr(), range.len()) };
            return Ok(guarded(range, copy)?);
        }
        let store = Store::for_bytes(piece.bytes);
        let mapped = |done: usize, range: MappedRange<'_>| {
            let buffer = buffer.wrapping_add(done);
            // SAFETY: the range is mapped, the buffer is the caller's, and no part of a block.
            let copy = || unsafe { transfer::copy(buffer, range.as_ptr(), range.len(), store) };
            Ok(guarded(range, copy)?)
        };
        self.each_part(piece, mapped, |done, part| {
            let start = buffer.wrapping_add(done);
            // SAFETY: the caller's buffer, writable for the piece's bytes and nobody else's.
            self.read_direct(part, unsafe { slice::from_raw_parts_mut(start, part.bytes) })
        })
    }

    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        if let Some((_view, range)) = self.window_of(piece) {
            // SAFETY: the range is mapped and writable, the data is the caller's.
            let copy = || unsafe { range.as_ptr().copy_from_nonoverlapping(data, range.len()) };
            return Ok(guarded(range, copy)?);
        }
        let store = Store::for_bytes(piece.bytes);
        let mapped = |done: usize, range: MappedRange<'_>| {
            let data = data.wrapping_add(done);
            // SAFETY: the range is mapped and writable, the data is the caller's.
            let copy = || unsafe { transfer::copy(range.as_ptr(), data, range.len(), store) };
            Ok(guarded(range, copy)?)
        };
        self.each_part(piece, mapped, |done, part| {
            let start = data.wrapping_add(done);
            // SAFETY: the caller's data, readable for the piece's bytes.
            self.write_direct(part, unsafe { slice::from_raw_parts(start, part.bytes) })
        })
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        const STEP: usize = 4096;
        let store = Store::for_bytes(piece.bytes);
        let mapped = |_: usize, range: MappedRange<'_>| {
            // SAFETY: the range is mapped and writable.
            let fill = || unsafe { transfer::fill(range.as_ptr(), byte, range.len(), store) };
            Ok(guarded(range, fill)?)
        };
        self.each_part(piece, mapped, |_, part| {
            let content = [byte; STEP];
            let mut done = 0;
            while done < part.bytes {
                let bytes = STEP.min(part.bytes - done);
                self.write_direct(part.part(done, bytes), &content[..bytes])?;
                done += bytes;
            }
            Ok(())
        })
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        const STEP: usize = 4096;
        let order = std::cell::Cell::new(Ordering::Equal);
        let mapped = |done: usize, range: MappedRange<'_>| {
            let data = data.wrapping_add(done);
            if order.get() == Ordering::Equal {
                // SAFETY: the range is mapped, the data is the caller's.
                let compare = || unsafe { transfer::compare(range.as_ptr(), data, range.len()) };
                order.set(guarded(range, compare)?);
            }
            Ok(())
        };
        self.each_part(piece, mapped, |done, part| {
            let mut found = [0; STEP];
            let mut compared = 0;
            while compared < part.bytes && order.get() == Ordering::Equal {
                let bytes = STEP.min(part.bytes - compared);
                self.read_direct(part.part(compared, bytes), &mut found[..bytes])?;
                let start = data.wrapping_add(done + compared);
                // SAFETY: the caller's data, readable for the piece's bytes, written by nobody.
                let expected = unsafe { slice::from_raw_parts(start, bytes) };
                order.set(found[..bytes].cmp(expected));
                compared += bytes;
            }
            Ok(())
        })?;
        Ok(order.get())
    }
}

/// The window of a cell, and the offset in it.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "windows are small, and so is their number")]
const fn split(cell: u64) -> (u32, usize) {
    ((cell / WINDOW_BYTES) as u32, (cell % WINDOW_BYTES) as usize)
}

/// Bytes from an offset to the window's end.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "windows are small")]
const fn in_window(offset: usize) -> usize {
    WINDOW_BYTES as usize - offset
}

#[cold]
fn io_trouble(action: &str, error: &ObjectError) -> Trouble {
    tracing::warn!(action, error = %error, "a block's object cannot be reached");
    Trouble::Io
}

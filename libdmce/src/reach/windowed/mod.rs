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
//! A word that is changed atomically has to be mapped: where a window does not pay, its page alone
//! is, for as long as that takes.
//!
//! # Invariants
//!
//! 1. Whatever the cache has room for, every piece can be read and written: without a window by
//!    system call.
//! 2. A `pwrite` to a truncated object is an error: the object's end is checked before it, and
//!    after. Who truncates it just in between, when the last page is written, is not found out: the
//!    rest is zeros then, which he could have written as well.

mod cache;
mod end;
mod policy;

use std::cmp::Ordering;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use dmce_sys::map::{FileRange, MapError, MappedRange, Mapping, Populate, Protection, page_bytes};
use dmce_sys::object::{self, ObjectError};
use dmce_sys::transfer::word::Word;
use dmce_sys::transfer::{self, Store};

use super::word::{self, Change, Watch};
use super::{Piece, Reach, Trouble, store};
#[cfg(test)]
pub(crate) use cache::BUDGET_MAX;
use cache::{Demand, Key};
pub(crate) use cache::{WINDOW_BYTES, WindowCache};
use end::End;

/// From this size on an access is worth a window by itself.
const LARGE_BYTES: usize = 128 << 10;
/// From this size on the rest of the window will probably be wanted too.
const HUGE_BYTES: usize = 512 << 10;

/// How much is compared or filled at a time without a window.
const STEP_BYTES: usize = 4096;

/// How a part of a piece is reached.
enum Way<'a> {
    /// By load and store.
    Window(MappedRange<'a>),
    /// By a call of the kernel.
    Direct,
}

/// A block behind windows.
#[derive(Debug)]
pub(crate) struct WindowedBlock {
    cache: Arc<WindowCache>,
    fd: OwnedFd,
    protection: Protection,
    end: End,
    /// Tells blocks of the process apart, towards the cache.
    serial: u32,
    /// For each window of the block the cache's place that shows it, plus 1; 0 for none.
    entries: Arc<[AtomicU32]>,
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
        let mut entries = Vec::new();
        let windows = usize::try_from(bytes_max.div_ceil(WINDOW_BYTES));
        if windows.is_err() || entries.try_reserve_exact(windows.unwrap_or(0)).is_err() {
            return Err(no_memory);
        }
        entries.resize_with(windows.unwrap_or(0), || AtomicU32::new(0));
        Ok(Self {
            cache,
            fd,
            protection,
            end: End::default(),
            serial: NEXT_SERIAL.fetch_add(1, Relaxed),
            entries: entries.into(),
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

    /// Where a cell is mapped, if a window shows so many bytes from there and some more just now.
    /// It does until the caller's operation is over.
    #[inline]
    pub(crate) fn shown(&self, cell: u64, bytes: usize) -> Option<*mut u8> {
        let (window, offset) = split(cell);
        // Who reaches the window's end leaves word of it in `each_part`.
        if bytes >= in_window(offset) {
            return None;
        }
        Some(self.cache.find(&self.entries, window)?.wrapping_add(offset))
    }

    /// Runs `access` on every part of a piece, with the way to reach it.
    #[inline]
    fn each_part(
        &self,
        piece: Piece,
        mut access: impl FnMut(usize, Piece, Way<'_>) -> Result<(), Trouble>,
    ) -> Result<(), Trouble> {
        let mut done = 0;
        while done < piece.bytes {
            let cell = piece.cell + done as u64;
            let (window, offset) = split(cell);
            let bytes = in_window(offset).min(piece.bytes - done);
            let part = piece.part(done, bytes);
            let found = self.cache.find(&self.entries, window);
            let way = match found.or_else(|| self.miss(piece, part, window)) {
                Some(start) => {
                    if bytes == in_window(offset) {
                        // What follows begins another window.
                        self.next_cell.store(cell + bytes as u64, Relaxed);
                    }
                    // SAFETY: a window stays until the caller's operation is over; the part is in
                    // it.
                    Way::Window(unsafe { MappedRange::new(start.wrapping_add(offset), bytes) })
                }
                None => Way::Direct,
            };
            access(done, part, way)?;
            done += bytes;
        }
        Ok(())
    }

    /// A window for a part that has none, if one pays.
    #[cold]
    fn miss(&self, piece: Piece, part: Piece, window: u32) -> Option<*mut u8> {
        let end = part.cell + part.bytes as u64;
        let goes_on = self.next_cell.load(Relaxed) == part.cell;
        self.next_cell.store(end, Relaxed);
        if !self.touched.load(Relaxed) {
            self.touched.store(true, Relaxed);
        }
        let key = Key { serial: self.serial, window };
        let demand = if goes_on || piece.bytes >= HUGE_BYTES {
            // What follows will be wanted too.
            let rest = WINDOW_BYTES - part.cell % WINDOW_BYTES;
            Demand::Now { populate: part.cell..(part.cell + rest).min(piece.committed) }
        } else if piece.bytes >= LARGE_BYTES {
            Demand::Now { populate: part.cell..end }
        } else {
            self.cache.touch(key)?
        };
        self.cache.show(&self.entries, key, (self.fd(), self.protection), &demand)
    }

    /// Runs `access` on the word that a piece is.
    #[inline]
    fn with_word<T>(
        &self,
        piece: Piece,
        access: impl FnOnce(Word<'_>) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let (window, offset) = split(piece.cell);
        let found = self.cache.find(&self.entries, window);
        let Some(start) = found.or_else(|| self.miss(piece, piece, window)) else {
            return self.with_word_alone(piece, access);
        };
        // SAFETY: a window stays until the caller's operation is over; an aligned word is in one.
        let range = unsafe { MappedRange::new(start.wrapping_add(offset), piece.bytes) };
        access(word::word_of(range)?)
    }

    /// [`Self::with_word`] without a window.
    #[cold]
    fn with_word_alone<T>(
        &self,
        piece: Piece,
        access: impl FnOnce(Word<'_>) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let offset = piece.cell % page_bytes() as u64;
        let page = FileRange { offset: piece.cell - offset, bytes: page_bytes() as u64 };
        let page = Mapping::shared(self.fd(), page, self.protection, Populate::No);
        let page = page.map_err(|error| word::of_map(&error))?;
        let range = page.range(offset, piece.bytes as u64).map_err(|error| word::of_map(&error))?;
        access(word::word_of(range)?)
    }

    /// [`Reach::read`], past the caches or not.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    pub(super) unsafe fn load(
        &self,
        piece: Piece,
        buffer: *mut u8,
        store: Store,
    ) -> Result<(), Trouble> {
        self.each_part(piece, |done, part, way| {
            let buffer = buffer.wrapping_add(done);
            let Way::Window(range) = way else {
                // SAFETY: the caller's buffer, writable for the piece's bytes and nobody else's.
                let buffer = unsafe { slice::from_raw_parts_mut(buffer, part.bytes) };
                return self.read_direct(part, buffer);
            };
            // SAFETY: the buffer is the caller's, and no part of a block.
            Ok(unsafe { transfer::load(range, buffer, store) }?)
        })
    }

    /// [`Reach::write`], past the caches or not.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`].
    pub(super) unsafe fn store(
        &self,
        piece: Piece,
        data: *const u8,
        store: Store,
    ) -> Result<(), Trouble> {
        self.each_part(piece, |done, part, way| {
            let data = data.wrapping_add(done);
            let Way::Window(range) = way else {
                // SAFETY: the caller's data, readable for the piece's bytes.
                let data = unsafe { slice::from_raw_parts(data, part.bytes) };
                return self.write_direct(part, data);
            };
            // SAFETY: the range is writable, the data is the caller's, and no part of a block.
            Ok(unsafe { transfer::store(range, data, store) }?)
        })
    }

    /// [`Reach::fill`], past the caches or not.
    pub(super) fn fill_by(&self, piece: Piece, byte: u8, store: Store) -> Result<(), Trouble> {
        let content = [byte; STEP_BYTES];
        self.each_part(piece, |_, part, way| {
            let Way::Window(range) = way else {
                return each_step(part, |_, step| self.write_direct(step, &content[..step.bytes]));
            };
            // SAFETY: the range is writable.
            Ok(unsafe { transfer::fill(range, byte, store) }?)
        })
    }

    fn read_direct(&self, part: Piece, buffer: &mut [u8]) -> Result<(), Trouble> {
        match object::read_at(self.fd(), buffer, part.cell) {
            Ok(()) => Ok(()),
            Err(ObjectError::Short { .. }) => Err(Trouble::Lost),
            Err(error) => Err(io_trouble("read", &error)),
        }
    }

    fn write_direct(&self, part: Piece, data: &[u8]) -> Result<(), Trouble> {
        let check_end = || self.end.check(self.fd(), part.committed);
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
        self.cache.forget(&self.entries);
    }
}

impl Reach for WindowedBlock {
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        // SAFETY: as the caller promises.
        unsafe { self.load(piece, buffer, store::out_of_block(piece.bytes)) }
    }

    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        // SAFETY: as the caller promises.
        unsafe { self.store(piece, data, store::into_block(piece.bytes)) }
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        self.fill_by(piece, byte, store::into_block(piece.bytes))
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        let mut order = Ordering::Equal;
        self.each_part(piece, |done, part, way| {
            let data = data.wrapping_add(done);
            if order != Ordering::Equal {
                return Ok(());
            }
            if let Way::Window(range) = way {
                // SAFETY: the data is the caller's, and written by nobody.
                order = unsafe { transfer::compare(range, data) }?;
                return Ok(());
            }
            let mut found = [0; STEP_BYTES];
            each_step(part, |done, step| {
                let found = &mut found[..step.bytes];
                self.read_direct(step, found)?;
                // SAFETY: the caller's data, readable for the piece's bytes, written by nobody.
                let expected =
                    unsafe { slice::from_raw_parts(data.wrapping_add(done), step.bytes) };
                order = order.then_with(|| (*found).cmp(expected));
                Ok(())
            })
        })?;
        Ok(order)
    }

    fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble> {
        // SAFETY: the block is writable, unless the word is only looked at.
        self.with_word(piece, |word| unsafe { change.apply(word) })
    }

    fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble> {
        self.with_word(piece, |word| word::wake(word, count))
    }

    fn watch(&self, piece: Piece) -> Result<Watch, Trouble> {
        self.with_word(piece, Watch::of)
    }
}

/// Runs `access` on steps that a buffer on the stack holds.
fn each_step(
    part: Piece,
    mut access: impl FnMut(usize, Piece) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let mut done = 0;
    while done < part.bytes {
        let bytes = STEP_BYTES.min(part.bytes - done);
        access(done, part.part(done, bytes))?;
        done += bytes;
    }
    Ok(())
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

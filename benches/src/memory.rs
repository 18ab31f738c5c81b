//! Memory that is measured: areas by pointer, the accesses, and the memory that DMCE is compared
//! with.
//!
//! # Invariants
//!
//! 1. Both sides of a row run the same compiled function on two [`Area`]s.
//! 2. No other process touches an area while it is measured.

use std::hint::black_box;
use std::os::fd::AsFd;
use std::ptr;

use dmce_sys::map::{self, FileRange, MapError, MappedRange, Populate, Protection, Reservation};
use dmce_sys::object::{self, DEFAULT_DIR, ObjectDir};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::places::{Places, permuted};
use crate::{Error, Result};

/// Bytes of a cache line: the unit of random accesses.
pub const LINE_BYTES: usize = 64;
/// Bytes of a page of the processor.
pub const PAGE_BYTES: usize = 4096;
/// Bytes of a huge page.
pub const HUGE_BYTES: usize = 2 << 20;
const WORD_BYTES: usize = 8;

const PAGE_LINES: u64 = (PAGE_BYTES / LINE_BYTES) as u64;

/// The pages that are stored to by who mostly reads: a power of two of them, each so many pages
/// behind the one before.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct StoredPages {
    pub count: u64,
    pub stride: u64,
}

/// A range of mapped memory.
#[derive(Clone, Copy, Debug)]
pub struct Area {
    start: *mut u8,
    bytes: usize,
}

impl Area {
    /// A range by its address; a power of two of bytes, aligned to a cache line.
    ///
    /// # Safety
    ///
    /// As long as the value is used, the range is mapped for loads and stores, and no other thread
    /// or process uses it.
    #[must_use]
    pub const unsafe fn new(start: *mut u8, bytes: usize) -> Self {
        Self { start, bytes }
    }

    /// The first byte.
    #[must_use]
    pub const fn start(self) -> *mut u8 {
        self.start
    }

    /// The length.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    const fn lines(self) -> u64 {
        (self.bytes / LINE_BYTES) as u64
    }

    /// A word at an offset, which is inside and aligned.
    #[inline]
    fn word(self, offset: usize) -> *mut u64 {
        debug_assert!(offset + WORD_BYTES <= self.bytes && offset.is_multiple_of(WORD_BYTES));
        self.start.wrapping_add(offset).cast()
    }

    #[inline]
    fn load(self, offset: usize) -> u64 {
        // SAFETY: inside the range by the callers' arithmetic, mapped by the contract of `new`.
        unsafe { self.word(offset).read() }
    }

    #[inline]
    fn store(self, offset: usize, value: u64) {
        // SAFETY: as in `load`.
        unsafe { self.word(offset).write(value) }
    }

    /// Stores to every page, so that each is there.
    pub fn touch(self) {
        for offset in (0..self.bytes).step_by(PAGE_BYTES) {
            // SAFETY: inside the range. Volatile: the value is the same, the store is the point.
            unsafe { self.word(offset).write_volatile(self.load(offset)) };
        }
    }

    /// Loads from every huge page, so that each is mapped.
    pub fn touch_huge(self) {
        for offset in (0..self.bytes).step_by(HUGE_BYTES) {
            // SAFETY: inside the range. Volatile: the value is not needed, the load is the point.
            unsafe { self.word(offset).read_volatile() };
        }
    }

    /// Loads every word, in order.
    #[inline(never)]
    pub fn scan_loads(self) {
        let mut sum = 0_u64;
        for word in 0..self.bytes / WORD_BYTES {
            sum = sum.wrapping_add(self.load(word * WORD_BYTES));
        }
        black_box(sum);
    }

    /// Stores every word, in order.
    #[inline(never)]
    pub fn scan_stores(self) {
        let value = black_box(0x0123_4567_89ab_cdef);
        for word in 0..self.bytes / WORD_BYTES {
            self.store(word * WORD_BYTES, value);
        }
    }

    /// The triad of STREAM: of four parts of the area, each word of the first becomes that of the
    /// second and three times that of the third.
    #[inline(never)]
    pub fn triad(self) {
        let part = self.bytes / 4;
        let factor = black_box(3_u64);
        for offset in (0..part).step_by(WORD_BYTES) {
            let product = self.load(2 * part + offset).wrapping_mul(factor);
            self.store(offset, self.load(part + offset).wrapping_add(product));
        }
    }

    /// Loads a word of `count` random lines; no load waits for another.
    #[inline(never)]
    pub fn random_loads(self, seed: u64, count: u64) {
        let mut places = Places::below(self.lines(), seed);
        let mut sum = 0_u64;
        for _ in 0..count {
            sum = sum.wrapping_add(self.load(line(places.next())));
        }
        black_box(sum);
    }

    /// Stores a word of `count` random lines.
    #[inline(never)]
    pub fn random_stores(self, seed: u64, count: u64) {
        let mut places = Places::below(self.lines(), seed);
        for value in 0..count {
            self.store(line(places.next()), value);
        }
    }

    /// Loads words of random lines, and stores to a random one of some pages for each hundredth.
    #[inline(never)]
    pub fn mostly_read(self, seed: u64, count: u64, stored: StoredPages) {
        let mut places = Places::below(self.lines(), seed);
        let mut pages = Places::below(stored.count, seed);
        let mut sum = 0_u64;
        for value in 0..count / 100 {
            for _ in 1..100 {
                sum = sum.wrapping_add(self.load(line(places.next())));
            }
            self.store(line(pages.next() * stored.stride * PAGE_LINES), value);
        }
        black_box(sum);
    }

    /// Makes every line say which line comes after it, in one random cycle through all.
    pub fn lay_chain(self) {
        let (lines, bits) = (self.lines(), self.lines().trailing_zeros());
        for place in 0..lines {
            let next = permuted((place + 1) % lines, bits);
            self.store(line(permuted(place, bits)), line(next) as u64);
        }
    }

    /// Follows the chain for `count` loads, each of which has to wait for the one before.
    #[inline(never)]
    pub fn follow_chain(self, seed: u64, count: u64) {
        let mut offset = line(Places::below(self.lines(), seed).next());
        for _ in 0..count {
            offset = usize::try_from(self.load(offset)).unwrap_or(0);
        }
        black_box(offset);
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation, reason = "a line of an area, whose bytes fit in usize")]
fn line(place: u64) -> usize {
    place as usize * LINE_BYTES
}

/// `memcpy`; of 64 bytes in registers, as C compilers do it.
///
/// # Safety
///
/// `bytes` bytes at `from` may be read and at `to` be written, and the ranges do not overlap.
#[inline]
pub unsafe fn copy(from: *const u8, to: *mut u8, bytes: usize) {
    if bytes == LINE_BYTES {
        // SAFETY: the caller's contract.
        unsafe { ptr::copy_nonoverlapping(from, to, LINE_BYTES) };
    } else {
        // SAFETY: the caller's contract.
        unsafe { ptr::copy_nonoverlapping(from, to, bytes) };
    }
}

/// Anonymous memory with pages of 4 KiB, as malloc gives it, or with huge ones. All of it has been
/// touched.
#[derive(Debug)]
pub struct Anonymous {
    area: Area,
    /// All that is mapped.
    mapped: (*mut u8, usize),
}

impl Anonymous {
    /// Maps and touches `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn new(bytes: usize) -> Result<Self> {
        Self::advised(bytes, Advice::LinuxNoHugepage)
    }

    /// The same with huge pages, as many as the kernel has.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn huge(bytes: usize) -> Result<Self> {
        Self::advised(bytes, Advice::LinuxHugepage)
    }

    fn advised(bytes: usize, advice: Advice) -> Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let all = bytes + HUGE_BYTES;
        // SAFETY: no address is asked for, so nothing is replaced.
        let mapped = unsafe { mm::mmap_anonymous(ptr::null_mut(), all, rights, MapFlags::PRIVATE) }
            .map_err(|errno| Error::system("mapping anonymous memory")(errno.into()))?;
        let mapped: *mut u8 = mapped.cast();
        let lead = mapped.addr().next_multiple_of(HUGE_BYTES) - mapped.addr();
        // SAFETY: inside of what was just mapped, and known to nobody else.
        let area = unsafe { Area::new(mapped.wrapping_add(lead), bytes) };
        let anonymous = Self { area, mapped: (mapped, all) };
        // SAFETY: the advice changes no content, and the range is this value's own.
        unsafe { mm::madvise(mapped.cast(), all, advice) }
            .map_err(|errno| Error::system("asking for a size of pages")(errno.into()))?;
        area.touch();
        Ok(anonymous)
    }

    /// Where it is.
    #[must_use]
    pub const fn area(&self) -> Area {
        self.area
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: the range is this value's own and not used any more. It cannot fail for a whole
        // mapping; if it did, the memory would stay until the process ends.
        let _ = unsafe { mm::munmap(self.mapped.0.cast(), self.mapped.1) };
    }
}

/// Shared memory of our own, mapped by hand: what a program without DMCE would use.
#[derive(Debug)]
pub struct OwnObject {
    mapping: Reservation,
}

impl OwnObject {
    /// Commits, maps and touches `bytes`. The object has no name already.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn new(bytes: usize) -> Result<Self> {
        let dir = ObjectDir::open(DEFAULT_DIR).map_err(|e| Error::of("opening a folder", e))?;
        let name = format!("dmce.testbench{}.0.own", std::process::id());
        let fd = dir.create(&name).map_err(|e| Error::of("making an object", e))?;
        dir.unlink(&name).map_err(|e| Error::of("taking the object's name away", e))?;
        let range = FileRange { offset: 0, bytes: bytes as u64 };
        object::commit(fd.as_fd(), 0, range.bytes)
            .map_err(|e| Error::of("committing memory", e))?;
        let failed = |error| Error::of("mapping the object", error);
        let mapping = Reservation::aligned(range.bytes, HUGE_BYTES as u64).map_err(failed)?;
        let (rights, populate) = (Protection::ReadWrite, Populate::No);
        mapping.map_at(0, fd.as_fd(), range, rights, populate).map_err(failed)?;
        map::populate_write(mapping.whole()).map_err(|e| Error::of("touching the object", e))?;
        Ok(Self { mapping })
    }

    /// Where it is mapped.
    #[must_use]
    pub const fn area(&self) -> Area {
        // SAFETY: mapped for as long as this value lives; the object has no name and this process
        // has the only mapping of it.
        unsafe { Area::new(self.mapping.as_ptr(), self.mapping.len()) }
    }

    /// Where it is mapped, for calls of the kernel.
    #[must_use]
    pub const fn range(&self) -> MappedRange<'_> {
        self.mapping.whole()
    }

    /// Makes its pages huge, as many as the kernel can now.
    ///
    /// # Errors
    ///
    /// [`Error::System`] where the kernel does not know how.
    pub fn collapse(&self) -> Result<()> {
        let failed = |error| Error::of("making huge pages", error);
        for offset in (0..self.mapping.len()).step_by(HUGE_BYTES) {
            let part = self.mapping.range(offset as u64, HUGE_BYTES as u64).map_err(failed)?;
            match map::collapse(part) {
                Ok(()) | Err(MapError::NoHugePage | MapError::Busy) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_chain_goes_through_every_line_once() {
        let anonymous = Anonymous::new(1 << 16).unwrap();
        let area = anonymous.area();
        area.lay_chain();
        let (mut seen, mut offset) = (BTreeSet::new(), 0);
        while seen.insert(offset) {
            offset = usize::try_from(area.load(offset)).unwrap();
        }
        assert_eq!(offset, 0);
        assert_eq!(seen.len(), (1 << 16) / LINE_BYTES);
    }

    #[test]
    fn an_own_object_is_memory_without_a_name() {
        let own = OwnObject::new(HUGE_BYTES).unwrap();
        own.area().store(HUGE_BYTES - 8, 7);
        assert_eq!(own.area().load(HUGE_BYTES - 8), 7);
        let dir = ObjectDir::open(DEFAULT_DIR).unwrap();
        let prefix = format!("dmce.testbench{}", std::process::id());
        assert_eq!(dir.names(&prefix).unwrap(), Vec::<String>::new());
    }
}

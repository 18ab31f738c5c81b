//! The list of dirty pages, taken from the kernel batch by batch.
//!
//! # Invariants
//!
//! 1. A page is protected again in the same step in which it is listed: what did not find room in
//!    a batch is not, and is listed by the next.
//! 2. The categories that are asked for are `PAGE_IS_WRITTEN` alone. So an entry that was taken
//!    away from a page table that is there counts as written.

use std::fs::File;
use std::io;
use std::mem::offset_of;

use rustix::io::Errno;
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, opcode};

use super::faults::{Faults, of_range};
use super::{DirtyError, Grain, Kernel, Unavailable};
use crate::map::{MappedRange, page_bytes, populate_read};

/// How many runs a batch has at most. The kernel gathers as many at a time.
pub(super) const RUNS_MAX: usize = 512;

/// Neighbouring pages. Both fields are bytes, in whole pages; the offset is from the start of the
/// range that was scanned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Run {
    pub offset: u64,
    pub bytes: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Request {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<Region>() == 24 && offset_of!(Region, categories) == 16);
const _: () = assert!(size_of::<Request>() == 96 && offset_of!(Request, walk_end) == 32);
const _: () = assert!(offset_of!(Request, vec_len) == 48 && offset_of!(Request, return_mask) == 88);

const PAGEMAP_SCAN: Opcode = opcode::read_write::<Request>(b'f', 16);
// As the C compiler has it, on x86 and ARM.
const _: () = assert!(PAGEMAP_SCAN == 0xc060_6610_u32);

const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Protect again what is listed.
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
/// Fail where a mapping is not tracked, instead of passing over it.
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;
const FLAGS: u64 = PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;

/// The page tables of this process. The kernel looked at the right to them when it was opened.
#[derive(Debug)]
pub(super) struct PageMap {
    file: File,
}

impl PageMap {
    pub(super) fn open() -> Result<Self, Unavailable> {
        let file = File::open("/proc/self/pagemap").map_err(Unavailable::PageMap)?;
        let pages = Self { file };
        // Nothing is looked at; a kernel that does not know the command says so.
        let nothing = Request::new(0..0, PAGE_IS_WRITTEN, 0, &mut []);
        match pages.ask(nothing) {
            Ok(_) => Ok(pages),
            Err(Errno::NOTTY) => Err(Unavailable::NoScan),
            Err(errno) => Err(Unavailable::Io { action: "scanning", source: errno.into() }),
        }
    }

    /// Protects every page of a tracked range, and lists none: a huge page as one.
    pub(super) fn protect(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        let start = range.as_ptr().addr() as u64;
        let addresses = start..start + range.len() as u64;
        self.ask(Request::new(addresses, PAGE_IS_WRITTEN, FLAGS, &mut []))
            .map(drop)
            .map_err(|errno| of_scan(range, errno))
    }

    /// How many regions were filled in, and where the kernel stopped.
    fn ask(&self, request: Request) -> Result<(usize, u64), Errno> {
        loop {
            let command = Command { request };
            // SAFETY: the request names a buffer of its own scan for as many regions as it says,
            // which nobody else uses meanwhile; beside that the kernel changes no content.
            match unsafe { ioctl::ioctl(&self.file, command) } {
                // Only what ends the process interrupts it, before anything was listed.
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

/// The dirty pages of a range, which are taken batch by batch.
#[derive(Debug)]
pub struct Scan<'a> {
    /// None if every page may be dirty.
    kernel: Option<&'a Kernel>,
    range: MappedRange<'a>,
    /// Where the next batch begins, in bytes from the start of the range.
    next: usize,
    regions: Vec<Region>,
    runs: Vec<Run>,
}

impl<'a> Scan<'a> {
    /// Begins one with room for so many runs a batch, at least one.
    pub(super) fn new(kernel: &'a Kernel, range: MappedRange<'a>, runs_max: usize) -> Self {
        let regions = vec![Region { start: 0, end: 0, categories: 0 }; runs_max.max(1)];
        Self { kernel: Some(kernel), range, next: 0, regions, runs: Vec::new() }
    }

    /// Lists all of the range.
    pub(super) const fn of_all(range: MappedRange<'a>) -> Self {
        Self { kernel: None, range, next: 0, regions: Vec::new(), runs: Vec::new() }
    }

    /// The next runs in the order of their offsets, at least one, or none if there are no more.
    /// They are protected again: what is stored from now on is for the next scan.
    ///
    /// # Errors
    ///
    /// [`DirtyError::NotTracked`], [`DirtyError::NoMemory`], [`DirtyError::Io`]. The scan ends with
    /// it, and all pages of the range may be dirty: the kernel does not say how far it came.
    pub fn next_runs(&mut self) -> Result<Option<&[Run]>, DirtyError> {
        self.runs.clear();
        while self.runs.is_empty() && self.next < self.range.len() {
            let from = std::mem::replace(&mut self.next, self.range.len());
            match self.kernel {
                Some(kernel) => self.next = self.batch(kernel, from)?,
                None => self.runs.push(Run { offset: 0, bytes: self.range.len() as u64 }),
            }
        }
        Ok((!self.runs.is_empty()).then_some(&*self.runs))
    }

    /// Takes one batch. Returns where the next begins.
    fn batch(&mut self, kernel: &Kernel, from: usize) -> Result<usize, DirtyError> {
        let start = self.range.as_ptr().addr() as u64;
        let (at, end) = (start + from as u64, start + self.range.len() as u64);
        let request = Request::new(at..end, PAGE_IS_WRITTEN, FLAGS, &mut self.regions);
        let asked = kernel.pages.ask(request);
        let (count, stopped) = asked.map_err(|errno| of_scan(self.range, errno))?;
        for region in self.regions.iter().take(count) {
            let run = Run { offset: region.start - start, bytes: region.end - region.start };
            match self.runs.last_mut() {
                Some(last) if last.offset + last.bytes == run.offset => last.bytes += run.bytes,
                _ => self.runs.push(run),
            }
        }
        if kernel.grain == Grain::Huge {
            self.split(&kernel.faults)?;
        }
        // Inside the range, so it fits; a kernel that made no step would be asked for ever.
        let next = usize::try_from(stopped.saturating_sub(start)).unwrap_or(0);
        if next > from && next <= self.range.len() {
            return Ok(next);
        }
        Err(DirtyError::Io { action: ACTION, source: io::ErrorKind::InvalidData.into() })
    }

    /// Protects by small entries what was listed by whole huge pages, and fills these entries for
    /// who copies next. What is stored meanwhile is there when the runs are returned.
    fn split(&self, faults: &Faults) -> Result<(), DirtyError> {
        let (start, huge) = (self.range.as_ptr().addr(), huge_bytes());
        for run in &self.runs {
            // Inside the range, so it fits.
            let [from, bytes] = [run.offset, run.bytes].map(|n| usize::try_from(n).unwrap_or(0));
            let end = (start + from + bytes) / huge * huge;
            let first = (start + from).next_multiple_of(huge);
            if first >= end {
                continue;
            }
            let whole = self.range.part((first - start) as u64, (end - first) as u64);
            let whole = whole.expect("a run lies in the range that was scanned");
            faults.protect(whole)?;
            // Where the object was cut there is nothing to fill.
            let _ = populate_read(whole);
        }
        Ok(())
    }
}

/// Bytes of a huge page: what a page of page table entries covers.
pub(super) fn huge_bytes() -> usize {
    page_bytes() / size_of::<u64>() * page_bytes()
}

const ACTION: &str = "scanning for dirty pages";

fn of_scan(range: MappedRange<'_>, errno: Errno) -> DirtyError {
    let (addr, bytes) = (range.as_ptr().addr(), range.len());
    match errno {
        Errno::PERM => DirtyError::NotTracked { addr, bytes },
        errno => of_range(ACTION, range, errno),
    }
}

impl Request {
    fn new(
        addresses: std::ops::Range<u64>,
        categories: u64,
        flags: u64,
        regions: &mut [Region],
    ) -> Self {
        Self {
            size: size_of::<Self>() as u64,
            flags,
            start: addresses.start,
            end: addresses.end,
            walk_end: 0,
            vec: if regions.is_empty() {
                0
            } else {
                regions.as_mut_ptr().expose_provenance() as u64
            },
            vec_len: regions.len() as u64,
            max_pages: 0,
            category_inverted: 0,
            category_mask: categories,
            category_anyof_mask: 0,
            return_mask: categories,
        }
    }
}

/// The command: its answer is a count besides what it writes back.
struct Command {
    request: Request,
}

// SAFETY: the opcode is made of the struct that the pointer leads to, which the kernel reads and
// writes in its size; the count that it answers is at most `vec_len`, and is read as one.
unsafe impl Ioctl for Command {
    type Output = (usize, u64);

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        (&raw mut self.request).cast()
    }

    unsafe fn output_from_ptr(
        count: IoctlOutput,
        request: *mut std::ffi::c_void,
    ) -> rustix::io::Result<Self::Output> {
        // SAFETY: what `as_ptr` returned, which lives as long as the command.
        let request = unsafe { request.cast::<Request>().read() };
        let count = usize::try_from(count).map_err(|_| Errno::RANGE)?;
        Ok((count, request.walk_end))
    }
}

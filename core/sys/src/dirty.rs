//! Which pages of its shared mappings this process has stored to since it last looked, for stores
//! by plain pointers that nobody announces.
//!
//! # Invariants
//!
//! 1. A store to a tracked range, by an instruction or by the kernel for a system call, puts its
//!    page into a run of the scan that is under way or of the next one. Where it is a scan under
//!    way, the bytes are there when [`Scan::next_runs`] has returned the page: who copies after
//!    that has them, or meets the page again in the next scan.
//! 2. A page is in a run without having been stored to where the kernel is not sure (its entry was
//!    taken away). It is never left out for that.
//! 3. What is mapped anew over a tracked range, by [`Reservation::map_at`] or by `mremap`, is not
//!    tracked: scans say so ([`DirtyError::NotTracked`]) until it is tracked again.
//! 4. After an error of a scan nothing is known: all pages of its range may be dirty.
//! 5. A forked child is not tracked, and a tracker that it inherited answers with
//!    [`DirtyError::Forked`] and touches nothing.
//! 6. What [`Kind::Compare`] cannot know it does not claim: every page may be dirty.
//!
//! ```text
//!   track            store             scan                        store
//!   all protected -> page 3 is not --> run: page 3; protected  --> page 3 is not
//!                                      copy page 3
//! ```
//!
//! The kernel protects the entries of this process's page tables, 4 KiB each, and lifts the
//! protection itself in the fault of the first store to a page (`UFFD_FEATURE_WP_ASYNC`); nobody
//! waits for another thread, and no right is needed. `PAGEMAP_SCAN` lists the pages whose
//! protection is lifted, and protects them again in the same step. Both came with Linux 6.7. What
//! becomes of huge pages is told by [`Grain`]; the object keeps them in either case, and other
//! processes their mappings of them.
//!
//! What it does not do:
//!
//! - See stores by other ways: another mapping of the same object, another process, `pwrite`.
//! - See stores to memory that the kernel or a device took hold of before a scan and writes later:
//!   a direct read (`O_DIRECT`) and buffers registered with `io_uring`, `process_vm_writev` and a
//!   debugger's stores. Who uses those copies their ranges after they have ended.
//! - Promise anything for page tables that the application itself takes away (`MADV_DONTNEED` of
//!   2 MiB and more): Linux 6.18 lists their pages, an older kernel may forget them.
//!
//! [`Reservation::map_at`]: crate::map::Reservation::map_at

use std::io;

use crate::map::{MapError, MappedRange, WipeOnForkPage, page_bytes};

mod faults;
mod pages;
mod trial;

pub use faults::{Access, Features};
pub use pages::{Run, Scan};

use faults::Faults;
use pages::PageMap;

/// How dirty pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel notes the first store to each page.
    WriteProtect,
    /// Nobody does: every page may be dirty, and who syncs compares it with another copy.
    Compare,
}

/// How fine stores are noted where the range maps huge pages. Elsewhere both are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grain {
    /// By pages of 4 KiB. What was huge is mapped by small entries, in this process, from the
    /// moment that it is tracked.
    Small,
    /// A huge page stays mapped as one, and loads as fast, until it is stored to. The next scan
    /// lists all of it, and has it mapped by small entries from then on: what is only read stays
    /// huge, and what is written is listed by small pages from the second time on. Only what is
    /// mapped by a huge page when it is tracked: [`crate::map::populate_read`] before that.
    Huge,
}

/// Why pages can only be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum Unavailable {
    /// The caller wanted no more.
    #[error("comparing was asked for")]
    Chosen,
    /// The kernel was built without it.
    #[error("this kernel has no userfaultfd")]
    NoUserfaultfd,
    /// The kernel has it, and something keeps it from this process.
    #[error("userfaultfd is refused, by a filter of system calls or a security module")]
    Refused,
    /// The kernel is too old, or an architecture lacks it.
    #[error("userfaultfd lacks {missing}, which come with Linux 6.7")]
    Features { missing: Features },
    /// The kernel is too old.
    #[error("there is no PAGEMAP_SCAN, which comes with Linux 6.7")]
    NoScan,
    /// A process that changed its user may not look at itself, until it makes itself dumpable.
    #[error("/proc/self/pagemap cannot be opened")]
    PageMap(#[source] io::Error),
    /// It was tried, and what was found is wrong.
    #[error("a trial of {pages} pages found {found:?} dirty instead of {expected:?}")]
    Wrong { pages: usize, found: Vec<Run>, expected: Vec<Run> },
    /// It was tried, and a call failed.
    #[error("a trial failed")]
    Trial(#[source] DirtyError),
    /// No memory to try it with, or to tell a forked child by.
    #[error("mapping a few pages failed")]
    Map(#[from] MapError),
    /// Anything else that the kernel answered.
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
}

/// Why a range is not tracked, or was not scanned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum DirtyError {
    /// Empty, or not of whole pages.
    #[error("{bytes} bytes at {addr:#x} are not whole pages of {page_bytes}")]
    NotPages { addr: usize, bytes: usize, page_bytes: usize },
    /// Nothing can be stored there by this process: it cannot become dirty.
    #[error("what is mapped at {addr:#x} can never be written")]
    ReadOnly { addr: usize },
    /// A part is tracked by another tracker, or another userfaultfd of this process.
    #[error("{bytes} bytes at {addr:#x} are in the hands of another userfaultfd")]
    Taken { addr: usize, bytes: usize },
    /// Nothing is mapped there, or something of a kind that the kernel does not track.
    #[error("nothing that can be tracked is mapped at {addr:#x}")]
    NotTrackable { addr: usize },
    /// A part was not tracked, or something else was mapped there since.
    #[error("not all of {bytes} bytes at {addr:#x} is tracked")]
    NotTracked { addr: usize, bytes: usize },
    /// No memory for page tables, or too many mappings (`vm.max_map_count`).
    #[error("no memory or mapping is left to track {bytes} bytes")]
    NoMemory { bytes: usize },
    /// The tracker is of the process that forked this one.
    #[error("the tracker is another process's")]
    Forked,
    /// Anything else that the kernel answered.
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
}

/// Tracks the ranges of one process. One is enough: it has two descriptors, however many ranges it
/// tracks, and neighbouring ranges stay one mapping only if they are of one tracker.
///
/// A range is tracked until it is unmapped, mapped anew, given back ([`Tracker::untrack`]), or
/// until the tracker is dropped. While a forked child lives that has not started a program, it
/// keeps the descriptors, so ranges that were not given back cost faults after that, too.
#[derive(Debug)]
pub struct Tracker {
    way: Way,
}

#[derive(Debug)]
enum Way {
    WriteProtect(Kernel),
    Compare(Unavailable),
}

/// What the kernel tracks with.
#[derive(Debug)]
struct Kernel {
    faults: Faults,
    pages: PageMap,
    grain: Grain,
    /// Both descriptors mean the memory of the process that opened them, in a child as well.
    origin: WipeOnForkPage,
}

/// Tries once for real whether stores can be tracked, and says by which access or why not.
///
/// # Errors
///
/// [`Unavailable`].
pub fn probe() -> Result<Access, Unavailable> {
    Ok(Kernel::open_by(&Access::ALL, Grain::Small)?.faults.access())
}

impl Tracker {
    /// The best that this process may use, tried on a few pages of its own. A filter of system
    /// calls that kills for `userfaultfd` kills here.
    #[must_use]
    pub fn open(grain: Grain) -> Self {
        match Kernel::open_by(&Access::ALL, grain) {
            Ok(kernel) => Self { way: Way::WriteProtect(kernel) },
            Err(reason) => Self { way: Way::Compare(reason) },
        }
    }

    /// One that tracks nothing, whatever the kernel has.
    #[must_use]
    pub const fn comparing() -> Self {
        Self { way: Way::Compare(Unavailable::Chosen) }
    }

    /// How dirty pages are found.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.way {
            Way::WriteProtect(_) => Kind::WriteProtect,
            Way::Compare(_) => Kind::Compare,
        }
    }

    /// How fine it is: [`Grain::Small`] where the kernel could lose a store to a huge page.
    #[must_use]
    pub const fn grain(&self) -> Grain {
        match &self.way {
            Way::WriteProtect(kernel) => kernel.grain,
            Way::Compare(_) => Grain::Small,
        }
    }

    /// Why it is no better than [`Kind::Compare`].
    #[must_use]
    pub const fn reason(&self) -> Option<&Unavailable> {
        match &self.way {
            Way::WriteProtect(_) => None,
            Way::Compare(reason) => Some(reason),
        }
    }

    /// Tracks a range of shared mappings, also one that is tracked already. When it returns, no
    /// page of it is dirty: what was stored before, or meanwhile, is forgotten. So it is called
    /// before anybody has a pointer into the range, or all of the range is copied afterwards.
    ///
    /// By small entries it takes 10 to 20 ms for a GiB, also of pages that have not been touched;
    /// huge pages that stay huge, a hundredth of that. What gets small entries in the place of a
    /// huge one gets each as it is touched, by a fault of 1 us, without the neighbours that a fault
    /// brings elsewhere. [`crate::map::populate_read`] afterwards is cheaper, and leaves all as
    /// clean as it is.
    ///
    /// # Errors
    ///
    /// [`DirtyError`]; none of the range is tracked then.
    pub fn track(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        whole_pages(range)?;
        let Way::WriteProtect(kernel) = &self.way else { return Ok(()) };
        kernel.check_origin()?;
        kernel.faults.register(range)?;
        let protected = match kernel.grain {
            Grain::Small => kernel.faults.protect(range),
            Grain::Huge => kernel.pages.protect(range),
        };
        protected.inspect_err(|_| {
            // What is not protected must not look tracked. What fails here is not registered.
            let _ = kernel.faults.unregister(range);
        })
    }

    /// Ends the tracking of a range, and what it costs. What is dirty there is forgotten.
    ///
    /// # Errors
    ///
    /// [`DirtyError`] but [`DirtyError::NotTracked`]: a range that is mapped anew is as good.
    pub fn untrack(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        whole_pages(range)?;
        let Way::WriteProtect(kernel) = &self.way else { return Ok(()) };
        kernel.check_origin()?;
        kernel.faults.unregister(range)
    }

    /// Begins to take the dirty pages of a tracked range. A page is clean again, and protected,
    /// from the moment that it is in a run; what is not asked for stays dirty. Of two scans at once
    /// a page is in the runs of one alone: who has to know that all is copied waits for the other.
    ///
    /// # Errors
    ///
    /// [`DirtyError::NotPages`], [`DirtyError::Forked`].
    pub fn scan<'a>(&'a self, range: MappedRange<'a>) -> Result<Scan<'a>, DirtyError> {
        self.scan_by(range, pages::RUNS_MAX)
    }

    /// The same with room for so many runs a call.
    fn scan_by<'a>(
        &'a self,
        range: MappedRange<'a>,
        runs_max: usize,
    ) -> Result<Scan<'a>, DirtyError> {
        whole_pages(range)?;
        let Way::WriteProtect(kernel) = &self.way else { return Ok(Scan::of_all(range)) };
        kernel.check_origin()?;
        Ok(Scan::new(kernel, range, runs_max))
    }
}

impl Kernel {
    /// Opens it by the first of some accesses that works.
    fn open_by(accesses: &[Access], grain: Grain) -> Result<Self, Unavailable> {
        let faults = Faults::open(accesses)?;
        let pages = PageMap::open()?;
        let mut kernel =
            Self { faults, pages, grain: Grain::Small, origin: WipeOnForkPage::new()? };
        trial::run(&kernel)?;
        if grain == Grain::Huge && trial::remembers_huge(&kernel)? {
            kernel.grain = grain;
        }
        Ok(kernel)
    }

    fn check_origin(&self) -> Result<(), DirtyError> {
        if self.origin.is_forked() { Err(DirtyError::Forked) } else { Ok(()) }
    }
}

fn whole_pages(range: MappedRange<'_>) -> Result<(), DirtyError> {
    let (addr, bytes, page_bytes) = (range.as_ptr().addr(), range.len(), page_bytes());
    let is_pages = addr.is_multiple_of(page_bytes) && bytes.is_multiple_of(page_bytes);
    if bytes > 0 && is_pages {
        return Ok(());
    }
    Err(DirtyError::NotPages { addr, bytes, page_bytes })
}

#[cfg(test)]
mod tests;

//! What takes the place of pages that are gone, beneath those who cannot be given an error: plain
//! pointers of an application, and atomics.
//!
//! ```text
//!   access -- SIGBUS --> is the address in a range that has a stand-in?
//!                          zeros:    all of the range becomes private memory, once
//!                          objects:  all of it becomes the next one's that has the page
//!                          none, or nobody has the page: as if we were not here
//! ```
//!
//! # Invariants
//!
//! 1. A place in the list is changed by who has it, and found again only when it is whole: its
//!    version is odd meanwhile.
//! 2. What a range has for a stand-in stays as long as the range is in use.
//! 3. The handler waits for nobody but another handler, which makes system calls and ends.
//! 4. A range gets each stand-in once: what faults beneath the last of them is as if we were not
//!    here, whatever an object says of its length.
//! 5. Lists only grow: as many places as were ever in use at a time.

use std::hint;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::map::{MappedRange, Protection, page_bytes};

/// A range that has a stand-in, until this is dropped.
#[derive(Debug)]
#[must_use = "the range has its stand-in as long as this lives"]
pub struct StandIn {
    place: &'static Place,
    what: *mut What,
}

// SAFETY: the pointer is to what this value owns, and is read by handlers in any thread.
unsafe impl Send for StandIn {}
// SAFETY: as above; `&self` gives a flag that is atomic.
unsafe impl Sync for StandIn {}

/// A part of an object that can stand in for a range.
#[derive(Debug)]
pub struct Other {
    /// The object.
    pub fd: OwnedFd,
    /// Where in it the range begins; page aligned.
    pub offset: u64,
}

#[derive(Debug)]
struct What {
    protection: Protection,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Zeros,
    Objects(Vec<Other>),
}

/// A place in the list of ranges.
#[derive(Debug)]
struct Place {
    version: AtomicU32,
    /// The range; empty while nobody has the place.
    start: AtomicUsize,
    end: AtomicUsize,
    what: AtomicPtr<What>,
    /// Whether the stand-in is beneath, or will be in a moment: so who sees what it gave sees this.
    was_used: AtomicBool,
    /// So many of the sources were beneath; the last of them is.
    tried: AtomicUsize,
}

const PLACES: usize = 64;

#[derive(Debug)]
struct Part {
    places: [Place; PLACES],
    next: AtomicPtr<Part>,
}

static FIRST: Part = Part::new();
static FREE: Mutex<Free> = Mutex::new(Free { given: Vec::new(), unused: 0 });
static IS_REPLACING: AtomicBool = AtomicBool::new(false);

/// The places that nobody has.
struct Free {
    given: Vec<&'static Place>,
    /// So many were ever taken, in the order of the list.
    unused: usize,
}

impl StandIn {
    /// Private zeros take the place of the range when any page of it is gone.
    pub fn zeros(range: MappedRange<'_>, protection: Protection) -> Self {
        Self::new(range, What { protection, source: Source::Zeros })
    }

    /// The first of the objects that has a page takes the place of the range when that is gone.
    pub fn objects(range: MappedRange<'_>, protection: Protection, others: Vec<Other>) -> Self {
        Self::new(range, What { protection, source: Source::Objects(others) })
    }

    fn new(range: MappedRange<'_>, what: What) -> Self {
        let place = FREE.lock().unwrap_or_else(PoisonError::into_inner).take();
        let what = Box::into_raw(Box::new(what));
        place.set(range.as_ptr().addr(), range.len(), what);
        Self { place, what }
    }

    /// Whether the stand-in was needed.
    #[inline]
    #[must_use]
    pub fn was_used(&self) -> bool {
        self.place.was_used.load(Ordering::Relaxed)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.place.set(0, 0, ptr::null_mut());
        // SAFETY: made by `new`, and found by nobody any more: who accesses the range at this
        // moment would access it after its end.
        drop(unsafe { Box::from_raw(self.what) });
        FREE.lock().unwrap_or_else(PoisonError::into_inner).given.push(self.place);
    }
}

impl Free {
    fn take(&mut self) -> &'static Place {
        if let Some(place) = self.given.pop() {
            return place;
        }
        let (part, place) = (self.unused / PLACES, self.unused % PLACES);
        self.unused += 1;
        let mut at = &FIRST;
        for _ in 0..part {
            at = at.next_or_new();
        }
        &at.places[place]
    }
}

impl Part {
    const fn new() -> Self {
        Self { places: [const { Place::new() }; PLACES], next: AtomicPtr::new(ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: null, or made by `next_or_new`, and never freed.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// Under the lock of `FREE`.
    fn next_or_new(&self) -> &'static Self {
        self.next().unwrap_or_else(|| {
            let made: &'static Self = Box::leak(Box::new(Self::new()));
            self.next.store(ptr::from_ref(made).cast_mut(), Ordering::Release);
            made
        })
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            version: AtomicU32::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            what: AtomicPtr::new(ptr::null_mut()),
            was_used: AtomicBool::new(false),
            tried: AtomicUsize::new(0),
        }
    }

    /// For who has it.
    fn set(&self, start: usize, bytes: usize, what: *mut What) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.end.store(start.wrapping_add(bytes), Ordering::SeqCst);
        self.what.store(what, Ordering::SeqCst);
        self.was_used.store(false, Ordering::SeqCst);
        self.tried.store(0, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The range and its stand-in, if an address is in it.
    fn look(&self, addr: usize) -> Option<(usize, usize, *const What)> {
        let version = self.version.load(Ordering::SeqCst);
        let (start, end) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        let what = self.what.load(Ordering::SeqCst);
        // One that is being changed is not this access's: that has its range as long as it lasts.
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        (is_whole && (start..end).contains(&addr)).then_some((start, end, what.cast_const()))
    }
}

/// Puts the stand-in of the range that an address is in beneath it. False if there is none.
///
/// # Safety
///
/// In the handler of SIGBUS, with the address of the access: so the range is in use.
pub(super) unsafe fn put_beneath(addr: usize) -> bool {
    let mut part = Some(&FIRST);
    while let Some(Part { places, next: _ }) = part {
        for place in places {
            if let Some((start, end, what)) = place.look(addr) {
                // SAFETY: it stays as long as the range is in use, and a thread is accessing it.
                let what = unsafe { &*what };
                return replace(place, (start, end), what, addr);
            }
        }
        part = part.and_then(Part::next);
    }
    false
}

fn replace(place: &Place, (start, end): (usize, usize), what: &What, addr: usize) -> bool {
    // Another thread may be at it: what is stored to its stand-in is not to be wiped.
    while IS_REPLACING.swap(true, Ordering::SeqCst) {
        hint::spin_loop();
    }
    let replaced = replace_alone(place, start..end, what, addr);
    IS_REPLACING.store(false, Ordering::SeqCst);
    replaced
}

fn replace_alone(place: &Place, range: Range<usize>, what: &What, addr: usize) -> bool {
    if is_there(addr) {
        // Another thread has done it.
        return true;
    }
    let page = (addr - range.start) as u64 & !(page_bytes() as u64 - 1);
    let sources = match &what.source {
        Source::Zeros => 1,
        Source::Objects(others) => others.len(),
    };
    for source in place.tried.load(Ordering::SeqCst)..sources {
        place.tried.store(source + 1, Ordering::SeqCst);
        place.was_used.store(true, Ordering::SeqCst);
        let object = match &what.source {
            Source::Zeros => None,
            Source::Objects(others) => {
                let Other { fd, offset } = &others[source];
                Some((fd.as_raw_fd(), *offset))
            }
        };
        let is_whole = object.is_none_or(|(fd, offset)| has(fd, offset + page));
        if is_whole && map(range.clone(), what.protection, object) {
            return true;
        }
    }
    false
}

/// Whether a page can be touched now.
fn is_there(addr: usize) -> bool {
    let page = ptr::with_exposed_provenance_mut(addr & !(page_bytes() - 1));
    // SAFETY: looks whether the page can be read, and changes nothing but the page table. Where
    // the kernel does not know it the answer is no.
    unsafe { libc::madvise(page, page_bytes(), libc::MADV_POPULATE_READ) == 0 }
}

/// Whether an object has a byte.
fn has(fd: RawFd, offset: u64) -> bool {
    let mut stat = std::mem::MaybeUninit::<libc::stat64>::zeroed();
    // SAFETY: the pointer is to a local.
    let failed = unsafe { libc::fstat64(fd, stat.as_mut_ptr()) } != 0;
    // SAFETY: all zeros is a value, and the call may have filled it.
    let bytes = unsafe { stat.assume_init() }.st_size;
    !failed && u64::try_from(bytes).is_ok_and(|bytes| offset < bytes)
}

/// Maps an object, or zeros, over a range of this process's.
fn map(range: Range<usize>, protection: Protection, object: Option<(RawFd, u64)>) -> bool {
    let prot = match protection {
        Protection::Read => libc::PROT_READ,
        Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    let (start, bytes) = (ptr::with_exposed_provenance_mut(range.start), range.end - range.start);
    let (fd, flags, offset) = match object {
        Some((fd, offset)) => (fd, libc::MAP_SHARED, offset),
        None => (-1, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, 0),
    };
    let Ok(offset) = libc::off64_t::try_from(offset) else { return false };
    let flags = flags | libc::MAP_FIXED;
    // SAFETY: the range is one that its owner has given a stand-in, and is mapped as long as that.
    let mapped = unsafe { libc::mmap64(start, bytes, prot, flags, fd, offset) };
    if mapped == libc::MAP_FAILED {
        return false;
    }
    // What is mapped is the application's memory, and none of it is to be in a core dump.
    // SAFETY: the range was just mapped.
    unsafe { libc::madvise(start, bytes, libc::MADV_DONTDUMP) };
    true
}

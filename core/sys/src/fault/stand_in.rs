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
//! 2. What a range has for a stand-in stays as long as the range is in use, or is changed while no
//!    handler looks ([`StandIn::renew`]).
//! 3. The handler waits for nobody but another handler, or who renews a stand-in: they make system
//!    calls and end.
//! 4. A range gets each stand-in once: what faults beneath the last of them is as if we were not
//!    here, whatever an object says of its length.
//! 5. Lists only grow: by about as many places as were ever in use at a time.
//! 6. There is nothing here that a thread could take into a fork of another: a child meets no lock
//!    whose holder is not in it.

use std::hint;
use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::map::{MappedRange, Protection, page_bytes};
use crate::process::without_signals;

/// A range that has a stand-in, until this is dropped.
#[derive(Debug)]
#[must_use = "the range has its stand-in as long as this lives"]
pub struct StandIn {
    part: &'static Part,
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
    /// Whether somebody has it.
    is_taken: AtomicBool,
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
    /// At most so many of them are taken, or about to be.
    taken: AtomicUsize,
    next: AtomicPtr<Part>,
}

static FIRST: Part = Part::new();
/// The process in which a handler, or [`StandIn::renew`], is replacing a range; 0 if none is. A
/// fork may bring that of its parent along.
static REPLACING: AtomicU32 = AtomicU32::new(0);

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
        let (part, place) = take();
        let what = Box::into_raw(Box::new(what));
        place.set(range.as_ptr().addr(), range.len(), what);
        Self { part, place, what }
    }

    /// Maps the range anew, and has other objects stand in for it from then on. Who accesses it
    /// meanwhile finds what was there with its stand-in, or what is there now with its own.
    ///
    /// `map` is told whether the stand-in was needed, and touches no range that has one.
    ///
    /// # Errors
    ///
    /// What `map` says: the stand-in is the one before.
    pub fn renew<E>(
        &mut self,
        others: Vec<Other>,
        map: impl FnOnce(bool) -> Result<(), E>,
    ) -> Result<(), E> {
        // SAFETY: made by `new`, and freed by this alone, or by the end of this value.
        let protection = unsafe { &*self.what }.protection;
        let what = What { protection, source: Source::Objects(others) };
        let what = Box::into_raw(Box::new(what));
        // A handler of a signal in this thread might access a range, and wait for this for ever.
        let mapped = without_signals(|| {
            begin_replacing();
            let mapped = map(self.was_used());
            if mapped.is_ok() {
                self.place.change(what);
            }
            end_replacing();
            mapped
        });
        let unused = if mapped.is_ok() { mem::replace(&mut self.what, what) } else { what };
        // SAFETY: made by `new` or above; handlers look it up while nothing is replaced, and it is
        // not in the list any more, or never was.
        drop(unsafe { Box::from_raw(unused) });
        mapped
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
        self.part.give(self.place);
    }
}

/// A place that nobody has: the caller's from now on.
fn take() -> (&'static Part, &'static Place) {
    let mut part = &FIRST;
    loop {
        if let Some(place) = part.take() {
            return (part, place);
        }
        part = part.next_or_new();
    }
}

impl Part {
    const fn new() -> Self {
        Self {
            places: [const { Place::new() }; PLACES],
            taken: AtomicUsize::new(0),
            next: AtomicPtr::new(ptr::null_mut()),
        }
    }

    fn take(&self) -> Option<&Place> {
        if self.taken.fetch_add(1, Ordering::Acquire) < PLACES {
            // Acquire pairs with the release of who had it before.
            let place = |place: &&Place| !place.is_taken.swap(true, Ordering::Acquire);
            if let Some(place) = self.places.iter().find(place) {
                return Some(place);
            }
        }
        self.taken.fetch_sub(1, Ordering::Release);
        None
    }

    fn give(&self, place: &Place) {
        place.is_taken.store(false, Ordering::Release);
        self.taken.fetch_sub(1, Ordering::Release);
    }

    fn next(&self) -> Option<&'static Self> {
        // SAFETY: null, or made by `next_or_new`, and never freed.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    fn next_or_new(&self) -> &'static Self {
        self.next().unwrap_or_else(|| {
            let made = Box::into_raw(Box::new(Self::new()));
            let linked = self.next.compare_exchange(
                ptr::null_mut(),
                made,
                Ordering::AcqRel,
                Ordering::Acquire,
            );
            let next = linked.map_or_else(
                |others| {
                    // SAFETY: just made, and seen by nobody.
                    drop(unsafe { Box::from_raw(made) });
                    others
                },
                |_| made,
            );
            // SAFETY: it is in the list, from which nothing is ever taken.
            unsafe { &*next }
        })
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            is_taken: AtomicBool::new(false),
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

    /// Another stand-in for the same range, which was not needed yet: for who has the place, while
    /// no handler looks.
    fn change(&self, what: *mut What) {
        self.what.store(what, Ordering::SeqCst);
        self.was_used.store(false, Ordering::SeqCst);
        self.tried.store(0, Ordering::SeqCst);
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
    // Another thread may be at it: what is stored to its stand-in is not to be wiped.
    begin_replacing();
    let found = find(addr);
    let replaced = found.is_some_and(|(place, range, what)| {
        // SAFETY: it stays while nobody else replaces, and a thread is accessing the range.
        let what = unsafe { &*what };
        replace(place, range, what, addr)
    });
    end_replacing();
    replaced
}

/// The range that an address is in, and its stand-in.
fn find(addr: usize) -> Option<(&'static Place, Range<usize>, *const What)> {
    let mut part = Some(&FIRST);
    while let Some(Part { places, .. }) = part {
        for place in places {
            if let Some((start, end, what)) = place.look(addr) {
                return Some((place, start..end, what));
            }
        }
        part = part.and_then(Part::next);
    }
    None
}

/// Waits until no other thread of this process is replacing a range.
fn begin_replacing() {
    let own = std::process::id();
    let mut before = 0;
    while let Err(at_it) =
        REPLACING.compare_exchange(before, own, Ordering::SeqCst, Ordering::SeqCst)
    {
        // One of another process is the parent's, and was in the midst of it at the fork.
        before = if at_it == own { 0 } else { at_it };
        hint::spin_loop();
    }
}

fn end_replacing() {
    REPLACING.store(0, Ordering::SeqCst);
}

fn replace(place: &Place, range: Range<usize>, what: &What, addr: usize) -> bool {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    /// How long a child may take that should take no time.
    const PATIENCE_S: u32 = 60;

    #[test]
    fn a_replacement_that_the_parent_was_at_is_not_waited_for() {
        // SAFETY: the child takes no lock, and ends without running anything of the parent's.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            // SAFETY: nobody handles the signal, so it ends who waits in vain.
            unsafe { libc::alarm(PATIENCE_S) };
            // SAFETY: it cannot fail.
            let parent = unsafe { libc::getppid() };
            REPLACING.store(parent.cast_unsigned(), Ordering::SeqCst);
            begin_replacing();
            let is_own = REPLACING.load(Ordering::SeqCst) == std::process::id();
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(is_own)) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "{status:#x}");
    }

    #[test]
    fn a_place_has_one_owner_at_a_time_and_is_given_again() {
        const THREADS: usize = 4;
        let begin = Barrier::new(THREADS);
        let taken = || {
            begin.wait();
            (0..2 * PLACES).map(|_| take()).collect::<Vec<_>>()
        };
        let all: Vec<(&Part, &Place)> = thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(taken)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        let distinct: BTreeSet<usize> =
            all.iter().map(|&(_, place)| ptr::from_ref(place).addr()).collect();
        assert_eq!(distinct.len(), THREADS * 2 * PLACES);
        for (part, place) in all {
            part.give(place);
        }
        // Other tests take and give some meanwhile, and never so many.
        let again: Vec<(&Part, &Place)> = (0..2 * PLACES).map(|_| take()).collect();
        assert!(again.iter().any(|&(_, place)| distinct.contains(&ptr::from_ref(place).addr())));
        for (part, place) in again {
            part.give(place);
        }
    }
}

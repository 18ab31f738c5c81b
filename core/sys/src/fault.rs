//! The SIGBUS guard: accesses to shared memory that may be gone end with an error, not a signal.
//!
//! A page of a shared object is gone when somebody truncated the file, or when the hardware lost
//! it. A guarded access that meets such a page goes on over an anonymous page of garbage, and the
//! guard then says that it did.
//!
//! ```text
//! guarded(range, copy)                    handler, on the same thread
//!   count, table: is it lost already?
//!   thread: ranges = {range}
//!   copy() ------- SIGBUS at addr ------> in the thread's ranges?    no: as if we were not there
//!                                         lock; good again (remapped meanwhile)? then retry
//!                                         record page, raise count, membarrier
//!          <---- goes on, on garbage ---- map an anonymous page; thread: fault = addr
//!   thread: fault? count changed?
//! ```
//!
//! # Invariants
//!
//! 1. `Ok` means that no byte of the range was garbage during the closure, whichever thread met the
//!    loss. [`Fault::Lost`] means that some was; [`Fault::Maybe`], that something was lost in this
//!    process meanwhile, which is rare: verify or try again.
//! 2. Every SIGBUS that is not of a guarded range has the effect that it would have without us: the
//!    earlier handler runs with its own mask and flags, or the process dies of it.
//! 3. The handler allocates nothing, takes no lock for long, keeps `errno`, and touches no
//!    thread-local that needs a constructor.
//! 4. A lost page stays replaced in this process until its range is mapped anew
//!    ([`crate::map::Reservation::map_at`]) or unmapped; the object itself is not touched. Until
//!    then every guard over it answers [`Fault::Lost`] at once.
//! 5. A guard costs a few loads and stores (about 4 ns) and no system call.
//!
//! Each page that is met costs a signal (microseconds), so guard copies piece by piece and stop at
//! the first error. Unguarded accesses (an application's plain pointers) are not covered.

use std::ffi::{c_int, c_void};
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering, compiler_fence, fence};
use std::sync::{Mutex, PoisonError};

use rustix::mm::{self, Advice, MapFlags, ProtFlags};
use rustix::thread::MembarrierCommand;

use crate::map::{MappedRange, page_bytes};
use crate::patches;

mod action;

/// What a guarded access met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum Fault {
    /// A page of the range was gone; reads gave garbage, writes went nowhere.
    #[error("the memory at {addr:#x} is gone")]
    Lost { addr: usize },
    /// Another thread met a loss meanwhile, somewhere: what this one did has to be verified.
    #[error("memory of this process was lost during the access")]
    Maybe,
}

/// Why the guard is not in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The kernel did not take the signal handler.
    #[error("installing the handler of SIGBUS failed")]
    Install(#[source] io::Error),
}

/// Installs the handler, once for the process; later calls find it done.
///
/// # Errors
///
/// [`FaultError::Install`].
pub fn install() -> Result<(), FaultError> {
    static INSTALLED: Mutex<bool> = Mutex::new(false);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        return Ok(());
    }
    // What the handler uses is initialised now, not in the handler.
    let _ = page_bytes();
    patches::prepare().map_err(FaultError::Install)?;
    // Without it (no such kernel is supported) only invariant 1's last nanoseconds are weaker.
    let _ = rustix::thread::membarrier(MembarrierCommand::RegisterPrivateExpedited);
    action::replace(on_sigbus).map_err(FaultError::Install)?;
    *installed = true;
    Ok(())
}

/// Whether the process's handler of SIGBUS is ours; a program may have set its own since.
#[must_use]
pub fn is_installed() -> bool {
    action::is(on_sigbus)
}

/// How many lost pages guarded accesses of this process have met, modulo 2^32.
///
/// Rises before garbage can be read, so a value that did not change during an unguarded access says
/// that no *new* garbage was mapped in between.
#[must_use]
pub fn fault_count() -> u32 {
    patches::count()
}

/// Runs `copy`, which may touch `range`, and says whether all of the range was there.
///
/// [`install`] has to have been called. Guards nest, and only the innermost is in force: its
/// closure touches its own ranges and no outer one's.
///
/// # Errors
///
/// [`Fault::Lost`], [`Fault::Maybe`]; what `copy` returned and wrote is to be thrown away.
#[inline]
pub fn guarded<R>(range: MappedRange<'_>, copy: impl FnOnce() -> R) -> Result<R, Fault> {
    guard([Span::of(range), Span::EMPTY], copy)
}

/// [`guarded`] for two ranges, as source and destination of one copy.
///
/// # Errors
///
/// As [`guarded`].
#[inline]
pub fn guarded2<R>(
    first: MappedRange<'_>,
    second: MappedRange<'_>,
    copy: impl FnOnce() -> R,
) -> Result<R, Fault> {
    guard([Span::of(first), Span::of(second)], copy)
}

#[inline]
fn guard<R>(spans: [Span; 2], copy: impl FnOnce() -> R) -> Result<R, Fault> {
    let count_before = patches::count();
    if patches::any() {
        find_known_loss(spans)?;
    }
    let frame = Frame::new(spans);
    let in_force = InForce::new(&frame);
    // The handler runs on this thread: program order is all that it needs.
    compiler_fence(Ordering::SeqCst);
    let result = copy();
    compiler_fence(Ordering::SeqCst);
    drop(in_force);
    let fault = frame.fault.load(Ordering::Relaxed);
    // The accesses of `copy` before the second count; with the handler's membarrier this is enough
    // for stores too.
    fence(Ordering::Acquire);
    if fault != 0 {
        return Err(Fault::Lost { addr: fault });
    }
    if patches::count() != count_before {
        find_known_loss(spans)?;
        return Err(Fault::Maybe);
    }
    Ok(result)
}

#[cold]
fn find_known_loss(spans: [Span; 2]) -> Result<(), Fault> {
    for span in spans {
        if let Some(addr) = patches::first_in(span.start, span.bytes) {
            return Err(Fault::Lost { addr });
        }
    }
    if patches::is_overflowed() { Err(Fault::Maybe) } else { Ok(()) }
}

#[derive(Clone, Copy)]
struct Span {
    start: usize,
    bytes: usize,
}

impl Span {
    const EMPTY: Self = Self { start: 0, bytes: 0 };

    #[inline]
    fn of(range: MappedRange<'_>) -> Self {
        Self { start: range.as_ptr().addr(), bytes: range.len() }
    }
}

/// One guard, on the stack of its thread. The handler runs on the same thread and writes the
/// atomics, which are relaxed for that reason.
struct Frame {
    spans: [Span; 2],
    /// The address of the first fault, 0 for none.
    fault: AtomicUsize,
    /// The page whose access was tried again because it looked good.
    retried_page: AtomicUsize,
}

thread_local! {
    /// The innermost guard of this thread, null for none. Constant initialisation and no
    /// destructor: the handler may look at it at any time.
    static CURRENT: AtomicPtr<Frame> = const { AtomicPtr::new(ptr::null_mut()) };
}

/// A frame in force; dropping it, also by a panic of the closure, puts the outer one back.
struct InForce<'a> {
    outer: *mut Frame,
    frame: PhantomData<&'a Frame>,
}

impl<'a> InForce<'a> {
    #[inline]
    fn new(frame: &'a Frame) -> Self {
        let outer = CURRENT.with(|current| {
            let outer = current.load(Ordering::Relaxed);
            current.store(ptr::from_ref(frame).cast_mut(), Ordering::Relaxed);
            outer
        });
        Self { outer, frame: PhantomData }
    }
}

impl Drop for InForce<'_> {
    #[inline]
    fn drop(&mut self) {
        CURRENT.with(|current| current.store(self.outer, Ordering::Relaxed));
    }
}

impl Frame {
    #[inline]
    fn new(spans: [Span; 2]) -> Self {
        Self { spans, fault: AtomicUsize::new(0), retried_page: AtomicUsize::new(0) }
    }

    /// Keeps the first fault.
    fn note(&self, addr: usize) {
        if self.fault.load(Ordering::Relaxed) == 0 {
            self.fault.store(addr, Ordering::Relaxed);
        }
    }

    /// Whether the page at `page` is one of those that the guarded ranges touch.
    fn covers(&self, page: usize) -> bool {
        self.spans.into_iter().any(|span| {
            let page_end = page.saturating_add(page_bytes());
            span.bytes > 0 && page < span.start.saturating_add(span.bytes) && page_end > span.start
        })
    }
}

/// Makes a guarded access to `addr` able to go on. False: it is not ours, or cannot be helped.
///
/// Runs in the handler: no allocation, no panic, nothing but atomics and plain system calls.
fn repair(addr: usize) -> bool {
    let current = CURRENT.with(|current| current.load(Ordering::Relaxed));
    // SAFETY: null, or a frame of this thread that is borrowed as long as it is in force; it is
    // only read, but for its atomics.
    let Some(frame) = (unsafe { current.as_ref() }) else { return false };
    let page = addr & !(page_bytes() - 1);
    if !frame.covers(page) {
        return false;
    }
    let held = patches::lock_in_handler();
    // Another thread may have mapped something good there while this one waited. One try per page:
    // a page that can be populated and still faults is lost all the same.
    let tried = frame.retried_page.swap(page, Ordering::Relaxed) == page;
    if !tried && populates(page) {
        if patches::first_in(page, page_bytes()).is_some() {
            frame.note(addr);
        }
        return true;
    }
    patches::record(&held, addr);
    // All threads that run now pass a barrier: an access of theirs that comes later, and might meet
    // the garbage, is followed by a look at the new count.
    let _ = rustix::thread::membarrier(MembarrierCommand::PrivateExpedited);
    let mapped = map_garbage(page);
    if mapped {
        frame.note(addr);
    }
    mapped
}

fn populates(page: usize) -> bool {
    let start = ptr::without_provenance_mut::<c_void>(page);
    // SAFETY: populating changes no content; the page is of a guarded range, which is mapped.
    unsafe { mm::madvise(start, page_bytes(), Advice::LinuxPopulateRead) }.is_ok()
}

fn map_garbage(page: usize) -> bool {
    let start = ptr::without_provenance_mut::<c_void>(page);
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the page belongs to a guarded range, so to a mapping of this crate (`MappedRange`),
    // and has no content to lose. Rust holds no reference to shared bytes.
    unsafe { mm::mmap_anonymous(start, page_bytes(), prot, flags) }.is_ok()
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: `errno` of this thread, which lives as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as said above.
    let saved = unsafe { errno.read() };
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    let is_of_access = matches!(code, libc::BUS_ADRERR | action::BUS_MCEERR_AR);
    let repaired = is_of_access && {
        // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
        let info = unsafe { &*info };
        // SAFETY: for these codes the kernel fills the address.
        let addr = unsafe { info.si_addr() };
        repair(addr.addr())
    };
    // SAFETY: valid as said above; before the chained handler, which sees what it would have seen.
    unsafe { errno.write(saved) };
    if !repaired {
        action::chain(signal, info, context);
    }
}

#[cfg(test)]
mod tests;

//! New objects get huge pages from the beginning, step by step.
//!
//! What that takes is mostly the zeroing of memory. Of a large object a second thread does a part
//! of the steps, unless others want the processor that it has.
//!
//! # Invariants
//!
//! 1. The object is nobody's yet but the caller's: nothing here is seen by anyone half done.
//! 2. A step that fails leaves small pages, or none: what the object lacks then is committed as
//!    that of any other.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dmce_abi::limits::PAGE_BYTES;
use dmce_sys::map::{self, FileRange, MapError, Populate, Protection, Reservation};
use dmce_sys::{clock, object, sched};
use tracing::debug;

use super::prepare::STEP_BYTES;

/// An object of fewer bytes is not worth another thread.
const SHARED_BYTES: u64 = 32 << 20;
/// A second thread ends when it has waited for a processor for longer than this and one part of so
/// many of its time, together.
const WAIT_NS: u64 = 2_000_000;
const WAIT_PART: u64 = 8;

/// Gives an object that nobody has seen, and that has no pages, huge ones from its beginning on, as
/// far as the kernel has some, and as many bytes as it is to have. True if it lacks nothing.
pub fn lay_huge(fd: BorrowedFd<'_>, bytes: u64, cancelled: &AtomicBool) -> bool {
    let steps = bytes / STEP_BYTES;
    if steps == 0 || object::truncate(fd, bytes).is_err() {
        return false;
    }
    let laying = Laying { fd, steps, next: AtomicU64::new(0), cancelled };
    let laid = if bytes < SHARED_BYTES { laying.lay_all() } else { laying.lay_all_by_two() };
    laid.unwrap_or_else(|error| {
        debug!(%error, "the rest gets small pages");
        false
    }) && bytes.is_multiple_of(STEP_BYTES)
}

/// Steps that are laid, each by one of those who are at it.
struct Laying<'a> {
    fd: BorrowedFd<'a>,
    steps: u64,
    /// The first that nobody has begun with.
    next: AtomicU64,
    cancelled: &'a AtomicBool,
}

impl Laying<'_> {
    /// False if nobody wants it any more.
    fn lay_all(&self) -> Result<bool, MapError> {
        self.lay_while(&window()?, || true)?;
        Ok(!self.cancelled.load(Ordering::Relaxed))
    }

    fn lay_all_by_two(&self) -> Result<bool, MapError> {
        let Ok(second) = window() else { return self.lay_all() };
        thread::scope(|scope| {
            let lay = || self.lay_while(&second, is_spare());
            let second = thread::Builder::new().name("lay".to_owned()).spawn_scoped(scope, lay);
            let laid = self.lay_all();
            // Where there is no thread, one does all.
            let second = second.map_or(Ok(()), |second| match second.join() {
                Ok(laid) => laid,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            second.and(laid)
        })
    }

    /// Lays steps until none is left, or something else says so.
    fn lay_while(&self, by: &Reservation, goes_on: impl Fn() -> bool) -> Result<(), MapError> {
        while goes_on() && !self.cancelled.load(Ordering::Relaxed) {
            let step = self.next.fetch_add(1, Ordering::Relaxed);
            if step >= self.steps {
                break;
            }
            // The other one has none to begin with, either.
            let laid = self.lay(by, step * STEP_BYTES);
            laid.inspect_err(|_| self.next.store(self.steps, Ordering::Relaxed))?;
        }
        Ok(())
    }

    fn lay(&self, window: &Reservation, offset: u64) -> Result<(), MapError> {
        let step = FileRange { offset, bytes: STEP_BYTES };
        let range = window.map_at(0, self.fd, step, Protection::ReadWrite, Populate::No)?;
        // There has to be one page for the kernel to begin with.
        map::populate_write(window.range(0, PAGE_BYTES)?)?;
        map::collapse(range)
    }
}

/// A place of its own in the address space, for a step.
fn window() -> Result<Reservation, MapError> {
    Reservation::aligned(STEP_BYTES, STEP_BYTES)
}

/// Whether nobody else wants the processor of the calling thread, from now on.
fn is_spare() -> impl Fn() -> bool {
    let (begun, before) = (clock::monotonic_ns(), sched::waited_ns());
    move || {
        let may_wait = WAIT_NS + (clock::monotonic_ns() - begun) / WAIT_PART;
        let waited = before.as_ref().ok().zip(sched::waited_ns().ok());
        waited.is_some_and(|(before, now)| now - before <= may_wait)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use dmce_sys::object::{DEFAULT_DIR, ObjectDir};

    use super::*;

    #[test]
    fn a_new_object_has_whole_steps_and_their_zeros_at_once() {
        let fd = unseen("huge");
        let bytes = 3 * STEP_BYTES + PAGE_BYTES;
        assert!(!lay_huge(fd.as_fd(), bytes, &AtomicBool::new(true)));
        let stat = object::stat(fd.as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.allocated_bytes), (bytes, 0), "nobody waits for it");
        assert!(!lay_huge(fd.as_fd(), bytes, &AtomicBool::new(false)), "a page is left");
        let stat = object::stat(fd.as_fd()).unwrap();
        // As many as there are; on a machine that is long up there may be none.
        assert!(stat.bytes == bytes && stat.allocated_bytes <= 3 * STEP_BYTES, "{stat:?}");
        let mut page = [1; 4096];
        for step in 0..3 {
            object::read_at(fd.as_fd(), &mut page, step * STEP_BYTES).unwrap();
            assert_eq!(page, [0; 4096]);
        }
    }

    #[test]
    fn two_lay_what_one_would_have_and_each_step_once() {
        let fd = unseen("two");
        let steps = SHARED_BYTES / STEP_BYTES;
        object::truncate(fd.as_fd(), SHARED_BYTES).unwrap();
        let gone = AtomicBool::new(false);
        let laying = Laying { fd: fd.as_fd(), steps, next: AtomicU64::new(0), cancelled: &gone };
        // Both go on, whoever else wants the processor.
        let laid = thread::scope(|scope| {
            let lay = || laying.lay_while(&window().unwrap(), || true).is_ok();
            [(); 2].map(|()| scope.spawn(lay)).map(|one| one.join().unwrap())
        });
        let stat = object::stat(fd.as_fd()).unwrap();
        assert!(stat.bytes == SHARED_BYTES && stat.allocated_bytes <= SHARED_BYTES, "{stat:?}");
        // On a machine that is long up there may be no huge pages.
        if laid == [true, true] {
            assert_eq!(stat.allocated_bytes, SHARED_BYTES);
            // Each has looked once for one more.
            assert_eq!(laying.next.load(Ordering::Relaxed), steps + 2);
        }
    }

    #[test]
    fn one_lays_what_the_other_leaves() {
        let fd = unseen("rest");
        let steps = SHARED_BYTES / STEP_BYTES;
        object::truncate(fd.as_fd(), SHARED_BYTES).unwrap();
        let gone = AtomicBool::new(false);
        let laying = Laying { fd: fd.as_fd(), steps, next: AtomicU64::new(0), cancelled: &gone };
        let left = AtomicU64::new(3);
        let goes_on = || left.fetch_sub(1, Ordering::Relaxed) > 0;
        let first = laying.lay_while(&window().unwrap(), goes_on).is_ok();
        if first {
            assert_eq!(laying.next.load(Ordering::Relaxed), 3);
        }
        if laying.lay_all().unwrap_or(false) && first {
            let stat = object::stat(fd.as_fd()).unwrap();
            assert_eq!(stat.allocated_bytes, SHARED_BYTES);
        }
    }

    #[test]
    fn a_large_object_is_laid_as_a_small_one_is() {
        let fd = unseen("large");
        let bytes = SHARED_BYTES + PAGE_BYTES;
        assert!(!lay_huge(fd.as_fd(), bytes, &AtomicBool::new(true)));
        let stat = object::stat(fd.as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.allocated_bytes), (bytes, 0), "nobody waits for it");
        assert!(!lay_huge(fd.as_fd(), bytes, &AtomicBool::new(false)), "a page is left");
        let stat = object::stat(fd.as_fd()).unwrap();
        assert!(stat.bytes == bytes && stat.allocated_bytes <= SHARED_BYTES, "{stat:?}");
    }

    fn unseen(name: &str) -> OwnedFd {
        let dir = ObjectDir::open(DEFAULT_DIR).unwrap();
        let name = format!("dmce.test-{}-{name}", std::process::id());
        let fd = dir.create(&name).unwrap();
        dir.unlink(&name).unwrap();
        fd
    }
}

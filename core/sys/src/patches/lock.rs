//! The lock that keeps patching and replacing apart: one that a fork cannot leave taken.
//!
//! ```text
//!   word    0 free    1 held    2 held, and others may sleep
//! ```
//!
//! # Invariants
//!
//! 1. The word lies on a page that the kernel zeroes in a forked child before the child runs, so a
//!    holder that was not copied has left it free there. In the process itself the lock ends with
//!    its holder's [`Held`] alone, however long that thread does not run.
//! 2. A holder runs no signal handler, so a guarded access of a handler never waits for its own
//!    thread, and no thread forks while it holds the lock.
//! 3. A child that shares this memory (`vfork`) shares the lock, which is right: the mappings are
//!    shared too, and the other threads of the parent go on.
//! 4. Without the page (the process has no address space left) there is no lock, and no handler
//!    either: [`prepare`] comes before the handler, and nothing is patched that had to be kept
//!    apart.

use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::futex;
use crate::map::page_bytes;

const FREE: u32 = 0;
const HELD: u32 = 1;
const CONTENDED: u32 = 2;

/// The word's page, null before it is made. Never unmapped.
static WORD: AtomicPtr<AtomicU32> = AtomicPtr::new(ptr::null_mut());

/// The lock, taken.
pub(crate) struct Held {
    word: Option<&'static AtomicU32>,
    /// The thread's signal mask before, where it was changed.
    earlier_mask: Option<libc::sigset_t>,
}

/// Makes the lock, so that [`lock_in_handler`] finds it.
///
/// # Errors
///
/// The process cannot map another page.
pub(crate) fn prepare() -> io::Result<()> {
    word().map(|_| ()).map_err(io::Error::from)
}

/// Takes the lock, with every signal blocked until it is given back.
pub(crate) fn lock() -> Held {
    let earlier_mask = block_signals();
    let word = word().ok();
    if let Some(word) = word {
        acquire(word);
    }
    Held { word, earlier_mask }
}

/// Takes the lock where every signal is blocked already.
pub(crate) fn lock_in_handler() -> Held {
    // SAFETY: null, or a page that stays.
    let word = unsafe { WORD.load(Ordering::Acquire).as_ref() };
    if let Some(word) = word {
        acquire(word);
    }
    Held { word, earlier_mask: None }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(word) = self.word {
            release(word);
        }
        if let Some(mask) = &self.earlier_mask {
            // SAFETY: the mask that this thread had, filled by `block_signals`.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, ptr::null_mut()) };
        }
    }
}

fn acquire(word: &AtomicU32) {
    // Acquire, here and below: pairs with the release in `release`.
    if word.compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    // Who has slept takes it as contended: others may sleep still.
    while word.swap(CONTENDED, Ordering::Acquire) != FREE {
        // An error would be a defect of the kernel; then this loop looks without sleeping.
        let _ = futex::wait(word, CONTENDED, None);
    }
}

fn release(word: &AtomicU32) {
    if word.swap(FREE, Ordering::Release) == CONTENDED {
        let _ = futex::wake(word, 1);
    }
}

fn block_signals() -> Option<libc::sigset_t> {
    let mut every = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut earlier = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigfillset(every.as_mut_ptr()) };
    // SAFETY: the set is filled, and the other pointer is to a local.
    let failed =
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, every.as_ptr(), earlier.as_mut_ptr()) };
    // SAFETY: all zeros is a valid set; the call filled it.
    (failed == 0).then(|| unsafe { earlier.assume_init() })
}

fn word() -> Result<&'static AtomicU32, Errno> {
    // Acquire pairs with the release in `make`.
    // SAFETY: null, or a page that stays.
    match unsafe { WORD.load(Ordering::Acquire).as_ref() } {
        Some(word) => Ok(word),
        None => make(),
    }
}

/// Not by the types of [`crate::map`]: dropping those takes this lock.
#[cold]
fn make() -> Result<&'static AtomicU32, Errno> {
    let (bytes, prot) = (page_bytes(), ProtFlags::READ | ProtFlags::WRITE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let page = unsafe { mm::mmap_anonymous(ptr::null_mut(), bytes, prot, MapFlags::PRIVATE) }?;
    // SAFETY: the page was mapped above, and nobody else knows it.
    if let Err(errno) = unsafe { mm::madvise(page, bytes, Advice::LinuxWipeOnFork) } {
        unmap(page, bytes);
        return Err(errno);
    }
    let made = page.cast::<AtomicU32>();
    let first = WORD.compare_exchange(ptr::null_mut(), made, Ordering::AcqRel, Ordering::Acquire);
    let word = first.map_or_else(
        |others| {
            unmap(page, bytes);
            others
        },
        |_| made,
    );
    // SAFETY: zeroes are a free lock; a page that was published stays.
    Ok(unsafe { &*word })
}

fn unmap(page: *mut c_void, bytes: usize) {
    // SAFETY: a page that `make` has mapped and published to nobody.
    let _ = unsafe { mm::munmap(page, bytes) };
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64};
    use std::sync::mpsc;

    use super::*;

    /// Runs `child` in a forked process; whether it came to its end. It may only do what a signal
    /// handler may, and is ended by a signal if it waits for ever.
    fn in_child(child: impl FnOnce()) -> bool {
        // SAFETY: the child calls nothing but what is async-signal-safe, and ends itself.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // SAFETY: a plain system call.
            unsafe { libc::alarm(20) };
            child();
            // SAFETY: ends the process at once.
            unsafe { libc::_exit(0) };
        }
        let mut status = -1;
        // SAFETY: waits for our own child; the pointer is to a local.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status == 0
    }

    /// Whether a thread of this process sleeps.
    fn sleeps(thread: i32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/self/task/{thread}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('S')
    }

    #[test]
    fn a_holder_that_does_not_go_on_keeps_the_lock() {
        let inside = AtomicBool::new(false);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let held = lock();
            scope.spawn(|| {
                tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                let _held = lock();
                inside.store(true, Ordering::SeqCst);
            });
            let other = told.recv().unwrap();
            while !inside.load(Ordering::SeqCst) && !sleeps(other) {
                std::thread::yield_now();
            }
            assert!(!inside.load(Ordering::SeqCst), "the lock was taken from its holder");
            drop(held);
        });
        assert!(inside.load(Ordering::SeqCst));
    }

    #[test]
    fn a_forked_child_finds_it_free_and_the_parent_keeps_it() {
        let (tell, told) = mpsc::channel();
        let (let_go, may_go) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let _held = lock();
                tell.send(()).unwrap();
                // Ends with the other end, also by a panic.
                let _ = may_go.recv();
            });
            told.recv().unwrap();
            assert!(in_child(|| drop(lock_in_handler())));
            assert_ne!(word().unwrap().load(Ordering::SeqCst), FREE);
            drop(let_go);
        });
    }

    #[test]
    fn one_thread_at_a_time_is_inside_while_the_process_forks() {
        const ROUNDS: u64 = 20_000;
        let inside = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let worker = || {
                for _ in 0..ROUNDS {
                    let _held = lock();
                    // Not atomic as a whole: two at a time lose a count.
                    let before = inside.load(Ordering::Relaxed);
                    std::hint::spin_loop();
                    inside.store(before + 1, Ordering::Relaxed);
                }
            };
            let workers = [scope.spawn(worker), scope.spawn(worker), scope.spawn(worker)];
            while !workers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                assert!(in_child(|| (0..100).for_each(|_| drop(lock_in_handler()))));
            }
        });
        assert_eq!(inside.load(Ordering::Relaxed), 3 * ROUNDS);
    }

    #[test]
    fn no_handler_runs_on_the_thread_that_holds_it() {
        static HANDLED: AtomicBool = AtomicBool::new(false);
        extern "C" fn handler(_signal: i32) {
            drop(lock_in_handler());
            HANDLED.store(true, Ordering::SeqCst);
        }
        let mut action = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: all zeros is a valid action with an empty mask.
        let action = unsafe { action.assume_init_mut() };
        action.sa_sigaction = handler as *const () as usize;
        // SAFETY: the handler does what handlers may.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR2, action, ptr::null_mut()) }, 0);
        let held = lock();
        // SAFETY: a plain system call; the signal goes to this thread.
        unsafe { libc::raise(libc::SIGUSR2) };
        assert!(!HANDLED.load(Ordering::SeqCst));
        drop(held);
        assert!(HANDLED.load(Ordering::SeqCst));
    }
}

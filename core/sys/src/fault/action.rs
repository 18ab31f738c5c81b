//! The process's action for SIGBUS: ours put in force, and the earlier one done when it is not
//! ours.
//!
//! # Invariants
//!
//! 1. The earlier handler runs with the arguments, the mask and the stack that it would have had.
//! 2. The default action stays deadly, with the siginfo of the access where an access raised it.
//! 3. Everything here but [`replace`] runs in a signal handler: no allocation, no lock, no panic.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

/// A handler with `SA_SIGINFO`.
pub(super) type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// A memory error of the hardware that the thread ran into.
pub(super) const BUS_MCEERR_AR: c_int = 4;
/// One that was found in passing; sent, not raised.
const BUS_MCEERR_AO: c_int = 5;

/// The action that was in force before ours. Written before the handler can run, then read only.
struct Earlier(UnsafeCell<MaybeUninit<libc::sigaction>>);

// SAFETY: the one write happens before the handler is installed, and every read is in the handler.
unsafe impl Sync for Earlier {}

static EARLIER: Earlier = Earlier(UnsafeCell::new(MaybeUninit::zeroed()));
/// An earlier handler with `SA_RESETHAND` has run; from then on the default action is in force.
static EARLIER_IS_SPENT: AtomicBool = AtomicBool::new(false);

/// Puts `handler` in force, with everything blocked while it runs, and keeps what was before.
///
/// To be called once.
pub(super) fn replace(handler: Handler) -> io::Result<()> {
    let earlier = current_action()?;
    // SAFETY: the caller is the only one, and our handler is not installed, so nobody else accesses
    // it.
    unsafe { (*EARLIER.0.get()).write(earlier) };
    let has_handler = ![libc::SIG_DFL, libc::SIG_IGN].contains(&earlier.sa_sigaction);
    let mut action = earlier;
    action.sa_sigaction = handler as usize;
    // An earlier handler runs on the stack that it asked for. Where there is none, the alternate
    // stack is right if the thread has one, as runtimes with small stacks demand.
    let kept = libc::SA_ONSTACK | libc::SA_RESTART;
    let flags = if has_handler { earlier.sa_flags & kept } else { libc::SA_ONSTACK };
    action.sa_flags = flags | libc::SA_SIGINFO;
    // Everything is blocked while ours runs, so that it cannot be interrupted holding the lock.
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigfillset(&raw mut action.sa_mask) };
    // SAFETY: the handler is async-signal-safe and has the signature that SA_SIGINFO asks for.
    let failed = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Does what would have happened without us.
pub(super) fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: written before the handler was installed, never again.
    let cell = unsafe { &*EARLIER.0.get() };
    // SAFETY: as above, so initialised.
    let earlier = unsafe { cell.assume_init_ref() };
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    // Raised by an instruction, which raises it again if nothing changes; else it was sent.
    let is_of_access = code > 0 && code != BUS_MCEERR_AO;
    let is_spent = EARLIER_IS_SPENT.load(Ordering::Relaxed);
    match earlier.sa_sigaction {
        libc::SIG_IGN if !is_of_access && !is_spent => {}
        // The kernel does not let a faulting access ignore the signal either.
        libc::SIG_DFL | libc::SIG_IGN => die(signal, is_of_access),
        _ if is_spent => die(signal, is_of_access),
        handler => {
            if earlier.sa_flags & libc::SA_RESETHAND != 0 {
                EARLIER_IS_SPENT.store(true, Ordering::Relaxed);
            }
            set_mask_of(earlier, signal, context);
            call(handler, earlier.sa_flags, (signal, info, context));
        }
    }
}

/// The default action: the faulting access is repeated without a handler, or the signal sent again.
fn die(signal: c_int, is_of_access: bool) {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is SIG_DFL, no flags, an empty mask.
    let default = unsafe { action.assume_init_mut() };
    default.sa_sigaction = libc::SIG_DFL;
    // SAFETY: sets the default action, which has no code to run.
    unsafe { libc::sigaction(signal, default, ptr::null_mut()) };
    if !is_of_access {
        // It is blocked until this handler returns, and then kills.
        // SAFETY: a plain system call.
        unsafe { libc::raise(signal) };
    }
}

/// Sets the mask that the earlier handler would run with: the interrupted one and its own.
fn set_mask_of(earlier: &libc::sigaction, signal: c_int, context: *mut c_void) {
    const SIGNALS: c_int = 64;
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the kernel passes a valid context; only the address of a field is made.
    let interrupted = unsafe { &raw const (*context).uc_sigmask };
    let mut mask = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    for number in 1..=SIGNALS {
        let is_itself = number == signal && earlier.sa_flags & libc::SA_NODEFER == 0;
        // SAFETY: a valid set of the earlier action.
        let of_earlier = unsafe { libc::sigismember(&raw const earlier.sa_mask, number) } == 1;
        // SAFETY: the kernel fills the 64 signals of the context's set, and no more are asked for.
        let of_thread = unsafe { libc::sigismember(interrupted, number) } == 1;
        if is_itself || of_earlier || of_thread {
            // SAFETY: the pointer is to a local; it refuses numbers that the C library keeps.
            unsafe { libc::sigaddset(mask.as_mut_ptr(), number) };
        }
    }
    // SAFETY: the set was initialised above. Returning from our handler restores the thread's own.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask.as_ptr(), ptr::null_mut()) };
}

fn current_action() -> io::Result<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only fills the old one.
    let failed = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), action.as_mut_ptr()) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, and all zeros is a valid value anyway.
    Ok(unsafe { action.assume_init() })
}

type Arguments = (c_int, *mut libc::siginfo_t, *mut c_void);

fn call(handler: usize, flags: c_int, (signal, info, context): Arguments) {
    let handler = ptr::with_exposed_provenance::<c_void>(handler);
    if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: neither SIG_DFL nor SIG_IGN, so the address of a function of this signature by
        // the rules of `sigaction` with SA_SIGINFO.
        let handler = unsafe { std::mem::transmute::<*const c_void, Handler>(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: as above, without SA_SIGINFO.
        let handler =
            unsafe { std::mem::transmute::<*const c_void, extern "C" fn(c_int)>(handler) };
        handler(signal);
    }
}

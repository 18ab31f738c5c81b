//! The process's handler of SIGBUS, which lets [`crate::transfer`] end with an error, and puts
//! something else beneath pointers whose pages are gone ([`StandIn`]).
//!
//! # Invariants
//!
//! 1. A SIGBUS that is neither of a transfer's shared range nor of one with a stand-in has the
//!    effect that it would have without us ([`action`]).
//! 2. The handler allocates nothing, takes no lock that a thread outside of it may have, keeps
//!    `errno`, and makes no call of the kernel for a transfer.
//! 3. It runs in threads that do not block the signal ([`unblock`]): in any other the kernel ends
//!    the process without asking it.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use crate::map::page_bytes;
use crate::transfer;

mod action;
mod stand_in;

pub use stand_in::{Other, StandIn};

/// Why the handler is not in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FaultError {
    /// The kernel did not take it.
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
    action::replace(on_sigbus).map_err(FaultError::Install)?;
    *installed = true;
    Ok(())
}

/// Lets SIGBUS reach the handler in this thread, which may have blocked every signal.
pub fn unblock() {
    let mut own = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigemptyset(own.as_mut_ptr()) };
    // SAFETY: the set was initialised above.
    unsafe { libc::sigaddset(own.as_mut_ptr(), libc::SIGBUS) };
    // SAFETY: as above; nothing is written back. It cannot fail for valid arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, own.as_ptr(), ptr::null_mut()) };
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: `errno` of this thread, which lives as long as the thread.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: valid as said above.
    let saved = unsafe { errno.read() };
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
    let code = unsafe { (*info).si_code };
    let is_of_access = matches!(code, libc::BUS_ADRERR | action::BUS_MCEERR_AR);
    let recovered = is_of_access && {
        // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO.
        let info = unsafe { &*info };
        // SAFETY: for these codes the kernel fills the address.
        let addr = unsafe { info.si_addr() };
        // SAFETY: the kernel's context and the address of the access, in the handler.
        let was_transfer = unsafe { transfer::recover(context, addr.addr()) };
        // SAFETY: in the handler, with the address of the access.
        was_transfer || unsafe { stand_in::put_beneath(addr.addr()) }
    };
    // SAFETY: valid as said above; before the chained handler, which sees what it would have seen.
    unsafe { errno.write(saved) };
    if !recovered {
        action::chain(signal, info, context);
    }
}

#[cfg(test)]
mod tests;

//! Barriers that one side pays for: the slow side makes every running thread pass a full barrier.
//!
//! # Invariants
//!
//! 1. [`global`] reaches the running threads of every process that has called [`register_global`];
//!    a process that has not pays for its own fences.
//! 2. [`private`] reaches the threads of this process, after [`register_private`].
//! 3. The expedited forms: microseconds, by interrupts to the processors concerned.

use std::io;

use rustix::io::Errno;
use rustix::thread::{self, MembarrierCommand, MembarrierQuery};

/// Which barriers this kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Membarrier {
    pub global: bool,
    pub private: bool,
}

/// Asks the kernel which barriers it has.
#[must_use]
pub fn probe() -> Membarrier {
    let found = thread::membarrier_query();
    let has = |query| found.contains(query);
    Membarrier {
        global: has(MembarrierQuery::GLOBAL_EXPEDITED)
            && has(MembarrierQuery::REGISTER_GLOBAL_EXPEDITED),
        private: has(MembarrierQuery::PRIVATE_EXPEDITED)
            && has(MembarrierQuery::REGISTER_PRIVATE_EXPEDITED),
    }
}

/// Lets the barriers of other processes reach this one's threads. Lasts until exec, also in a
/// forked child.
///
/// # Errors
///
/// `Unsupported` where the kernel lacks it: then every operation needs a fence of its own.
pub fn register_global() -> io::Result<()> {
    run(MembarrierCommand::RegisterGlobalExpedited)
}

/// Allows [`private`] in this process. Lasts until exec, also in a forked child.
///
/// # Errors
///
/// As [`register_global`].
pub fn register_private() -> io::Result<()> {
    run(MembarrierCommand::RegisterPrivateExpedited)
}

/// A full barrier on every running thread of every registered process.
///
/// # Errors
///
/// As [`register_global`].
pub fn global() -> io::Result<()> {
    run(MembarrierCommand::GlobalExpedited)
}

/// A full barrier on every running thread of this process.
///
/// # Errors
///
/// As [`register_global`]; `PermissionDenied` before [`register_private`].
pub fn private() -> io::Result<()> {
    run(MembarrierCommand::PrivateExpedited)
}

fn run(command: MembarrierCommand) -> io::Result<()> {
    match thread::membarrier(command) {
        Ok(()) => Ok(()),
        Err(Errno::NOSYS | Errno::INVAL) => Err(io::ErrorKind::Unsupported.into()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_has_works_after_registering() {
        let found = probe();
        assert_eq!(register_private().is_ok(), found.private);
        assert_eq!(private().is_ok(), found.private);
        assert_eq!(register_global().is_ok(), found.global);
        assert_eq!(global().is_ok(), found.global);
    }

    #[test]
    fn a_forked_child_is_registered_like_its_parent() {
        if !probe().private {
            return;
        }
        register_private().unwrap();
        // SAFETY: the child makes two calls of the kernel and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let status = i32::from(private().is_err());
            // SAFETY: it ends the process, without what runs at exit.
            unsafe { libc::_exit(status) };
        }
        let mut status = -1;
        // SAFETY: the pointer is to a local.
        let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
        assert_eq!((waited, status), (child, 0));
    }
}

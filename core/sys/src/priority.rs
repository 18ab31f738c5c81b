//! The share of the processor that a thread gets.
//!
//! # Invariants
//!
//! 1. A priority is only lowered, which needs no privilege, and only the calling thread's.

use std::io;

use rustix::process::setpriority_process;
use rustix::thread::gettid;

/// The least that an ordinary thread can have.
const LEAST: i32 = 19;

/// Lowers the calling thread to what nobody else wants, for work that nobody waits for.
///
/// # Errors
///
/// An error of the kernel; the priority is then as before.
pub fn lower_own_thread() -> io::Result<()> {
    // On Linux this system call means one thread, whatever its name says.
    Ok(setpriority_process(Some(gettid()), LEAST)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_calling_thread_is_lowered() {
        let own = |tid| rustix::process::getpriority_process(Some(tid)).unwrap();
        let before = own(gettid());
        let lowered = std::thread::spawn(move || {
            lower_own_thread().unwrap();
            own(gettid())
        });
        assert_eq!(lowered.join().unwrap(), LEAST);
        assert_eq!(own(gettid()), before);
    }
}

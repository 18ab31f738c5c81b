//! How soon a thread gets its share of the processor.
//!
//! # Invariants
//!
//! 1. Only the calling thread is changed, and what it starts later.
//! 2. Nothing here needs a privilege: a turn is only shortened.

use std::io;
use std::mem;

/// The shortest turn that the kernel grants.
const SHORT_TURN_NS: u64 = 100_000;

/// The calling thread, in a system call that takes a thread.
const OWN: libc::pid_t = 0;

/// Has the calling thread run as soon as it wakes, in turns of 0.1 ms, where others would take
/// their turns of some milliseconds to the end first. Its share of the processor stays the same.
/// It is for threads that others wait for, and that do little at a time.
///
/// Kernels before 6.12, and threads of other scheduling policies, are left as they are. Filters of
/// system calls that programs have may kill for it: it is for processes of our own.
///
/// # Errors
///
/// An error of the kernel; all is then as before.
pub fn take_short_turns() -> io::Result<()> {
    let mut attributes = own_attributes()?;
    if attributes.sched_policy == libc::SCHED_OTHER.cast_unsigned() {
        attributes.sched_runtime = SHORT_TURN_NS;
        set_own_attributes(&attributes)?;
    }
    Ok(())
}

fn own_attributes() -> io::Result<libc::sched_attr> {
    // SAFETY: all zeros is a value of this struct of integers.
    let mut attributes: libc::sched_attr = unsafe { mem::zeroed() };
    let size = size_of_val(&attributes);
    // SAFETY: the kernel fills in at most `size` bytes, which the struct has.
    let result =
        unsafe { libc::syscall(libc::SYS_sched_getattr, OWN, &raw mut attributes, size, 0) };
    if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
}

fn set_own_attributes(attributes: &libc::sched_attr) -> io::Result<()> {
    // SAFETY: the kernel reads the struct alone, whose size is in its first field.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, OWN, &raw const *attributes, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn turns_are_short_and_all_else_stays() {
        let before = own_attributes().unwrap();
        let (lowered, after) = thread::spawn(|| {
            let mut lowered = own_attributes().unwrap();
            lowered.sched_nice = 7;
            set_own_attributes(&lowered).unwrap();
            take_short_turns().unwrap();
            (lowered, own_attributes().unwrap())
        })
        .join()
        .unwrap();
        assert_eq!((after.sched_policy, after.sched_nice), (lowered.sched_policy, 7));
        // Older kernels tell nothing of turns.
        if lowered.sched_runtime > 0 {
            assert_eq!(after.sched_runtime, SHORT_TURN_NS);
        }
        assert_eq!(own_attributes().unwrap().sched_runtime, before.sched_runtime);
    }
}

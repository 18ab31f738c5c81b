//! Processes held by descriptor, so that a pid which is used again cannot be mistaken.
//!
//! # Invariants
//!
//! 1. A pidfd means one process for ever; it becomes readable when that process ends
//!    ([`crate::poll`]), and a signal through it reaches that process or nobody.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::process::ProcessError;

pub use rustix::process::Signal;

/// A descriptor of the process that has the pid now.
///
/// To be sure that it is the one that was meant, compare its start time *after* this call
/// ([`crate::process::is_alive`]).
///
/// # Errors
///
/// [`ProcessError::Gone`], [`ProcessError::Io`].
pub fn open(pid: u32) -> Result<OwnedFd, ProcessError> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let raw = raw.ok_or(ProcessError::Gone { pid })?;
    pidfd_open(raw, PidfdFlags::empty()).map_err(|errno| match errno {
        Errno::SRCH => ProcessError::Gone { pid },
        other => ProcessError::Io { action: "pidfd_open", source: other.into() },
    })
}

/// Whether the process has ended: all of its threads, and not the first alone.
///
/// # Errors
///
/// [`ProcessError::Io`].
pub fn has_ended(pidfd: BorrowedFd<'_>) -> Result<bool, ProcessError> {
    let failed = |source| ProcessError::Io { action: "polling a pidfd", source };
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = retry_on_intr(|| poll(&mut fds, Some(&now)));
    Ok(ready.map_err(|errno| failed(errno.into()))? > 0)
}

/// Sends a signal.
///
/// # Errors
///
/// [`ProcessError::Ended`] if the process has ended, [`ProcessError::Io`] (no permission).
pub fn signal(pidfd: BorrowedFd<'_>, signal: Signal) -> Result<(), ProcessError> {
    pidfd_send_signal(pidfd, signal).map_err(|errno| match errno {
        Errno::SRCH => ProcessError::Ended,
        other => ProcessError::Io { action: "pidfd_send_signal", source: other.into() },
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_has_ended_when_it_was_killed_and_not_before() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let fd = open(child.id()).unwrap();
        let before = has_ended(fd.as_fd()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!before && has_ended(fd.as_fd()).unwrap());
    }
}

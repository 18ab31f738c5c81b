//! Committing bytes: making sure of memory before anyone may use it.
//!
//! # Invariants
//!
//! 1. After success no store to the bytes can fail for lack of memory in the file system.
//! 2. Nothing is taken back: after a failure the object ends where it did, or further on, and what
//!    it has is committed. Who knows that nobody was told of it may cut it.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_config::Bytes;
use dmce_sys::map::FileRange;
use dmce_sys::object::{self, ObjectError};

use super::ledger::Shortage;

/// Committed at a time, so that a block's end does not wait for all of a large commitment.
const STEP_BYTES: u64 = 64 << 20;

/// Where an object's committed bytes end, and where they are to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    /// Bytes that it has.
    pub from: u64,
    /// Bytes that it is to have.
    pub to: u64,
}

impl Growth {
    /// How much it is.
    pub fn bytes(self) -> u64 {
        self.to.saturating_sub(self.from)
    }
}

/// Why bytes were not committed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// There is no room.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// Nobody wants them any more.
    #[error("nobody waits for it any more")]
    Cancelled,
    /// The object could not be changed.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// A commitment that has not come to its end.
#[derive(Debug, thiserror::Error)]
#[error("{at} bytes are committed")]
pub struct Halted {
    /// Bytes that the object has.
    pub at: u64,
    /// Why they are not more.
    #[source]
    pub error: CommitError,
}

impl From<Halted> for CommitError {
    fn from(halted: Halted) -> Self {
        halted.error
    }
}

/// Commits the bytes of `growth`, unless `cancelled` is set before all are.
///
/// # Errors
///
/// [`Halted`].
pub fn commit(fd: BorrowedFd<'_>, growth: Growth, cancelled: &AtomicBool) -> Result<(), Halted> {
    let mut at = growth.from;
    while at < growth.to {
        if cancelled.load(Ordering::Relaxed) {
            return Err(Halted { at, error: CommitError::Cancelled });
        }
        let bytes = (growth.to - at).min(STEP_BYTES);
        let done = commit_part(fd, FileRange { offset: at, bytes }, growth);
        done.map_err(|error| Halted { at, error })?;
        at += bytes;
    }
    Ok(())
}

fn commit_part(fd: BorrowedFd<'_>, part: FileRange, growth: Growth) -> Result<(), CommitError> {
    object::commit(fd, part.offset, part.bytes).map_err(|error| match error {
        ObjectError::NoSpace { .. } => {
            CommitError::Shortage(Shortage::Full { wanted: Bytes(growth.bytes()) })
        }
        other => CommitError::Object(other),
    })
}

//! Committing bytes: making sure of memory before anyone may use it.
//!
//! # Invariants
//!
//! 1. After success no store to the bytes can fail for lack of memory in the file system.
//! 2. After a failure the object ends where it did.

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
    #[error("the block was destroyed meanwhile")]
    Cancelled,
    /// The object could not be changed.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// Commits the bytes of `growth`, unless `cancelled` is set before all are.
///
/// # Errors
///
/// [`CommitError`]: the object ends where it did.
pub fn commit(
    fd: BorrowedFd<'_>,
    growth: Growth,
    cancelled: &AtomicBool,
) -> Result<(), CommitError> {
    commit_by(fd, growth, cancelled, |fd, part| commit_part(fd, part, growth))
}

/// Commits a part of `growth`.
///
/// # Errors
///
/// As [`commit`]: the object may end elsewhere.
pub fn commit_part(fd: BorrowedFd<'_>, part: FileRange, growth: Growth) -> Result<(), CommitError> {
    object::commit(fd, part.offset, part.bytes).map_err(|error| match error {
        ObjectError::NoSpace { .. } => {
            CommitError::Shortage(Shortage::Full { wanted: Bytes(growth.bytes()) })
        }
        other => CommitError::Object(other),
    })
}

/// The same, where `part` commits a part at a time.
///
/// # Errors
///
/// As [`commit`]; those of `part`.
pub fn commit_by(
    fd: BorrowedFd<'_>,
    growth: Growth,
    cancelled: &AtomicBool,
    part: impl FnMut(BorrowedFd<'_>, FileRange) -> Result<(), CommitError>,
) -> Result<(), CommitError> {
    let done = commit_parts(fd, growth, cancelled, part);
    if done.is_err() {
        object::truncate(fd, growth.from)?;
    }
    done
}

fn commit_parts(
    fd: BorrowedFd<'_>,
    growth: Growth,
    cancelled: &AtomicBool,
    mut commit: impl FnMut(BorrowedFd<'_>, FileRange) -> Result<(), CommitError>,
) -> Result<(), CommitError> {
    let mut at = growth.from;
    while at < growth.to {
        if cancelled.load(Ordering::Relaxed) {
            return Err(CommitError::Cancelled);
        }
        let bytes = (growth.to - at).min(STEP_BYTES);
        commit(fd, FileRange { offset: at, bytes })?;
        at += bytes;
    }
    Ok(())
}

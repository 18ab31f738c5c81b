//! Pages before they are needed: committed memory is zeroed and made of huge pages in advance.
//!
//! # Invariants
//!
//! 1. No content changes: a page that is there stays, one that is not there comes as zeros, which
//!    is what its reader would have got.
//! 2. Nothing is mapped beyond a step, so a block that ends gives its memory back at once.
//! 3. A client may empty the object meanwhile: then the kernel answers with an error, and the rest
//!    is left.
//!
//! `MADV_COLLAPSE` makes huge pages of ordinary shared memory, whatever the file system's setting.
//! They are a gift: where there is none to be had, the memory is as good without. It copies what is
//! there and fills the rest with zeros: of an object that has nothing yet, huge pages come in a
//! fifth of the time that it takes to have small ones and to collapse those ([`super::lay`]).
//!
//! Nobody waits for what a [`Task`] does, and yet it is no thread of a low priority that does it.
//! Preempted in the kernel, that would hold the locks of pages until the processors have nothing
//! better to do, and clients that touch those pages would wait for it; and the last thread of a
//! killed daemon gives its sockets and its lock back at its own priority.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_abi::block::BlockId;
use dmce_sys::map::{self, FileRange, MapError, Populate, Protection, Reservation};
use tracing::debug;

use super::block::Spare;
use super::commit::{CommitError, Growth};
use super::folder::Folder;
use super::ledger::Promise;

/// Bytes of a huge page, and of a step.
pub const STEP_BYTES: u64 = 2 << 20;

/// Something to be done when there is time.
#[derive(Debug)]
pub enum Task {
    /// An object for the pool.
    Refill {
        /// Its bytes.
        bytes: u64,
        /// They.
        promise: Promise,
    },
    /// The pages of a part of a block.
    Prepare(Preparation),
}

/// A part of a block whose pages are being prepared.
#[derive(Debug)]
pub struct Preparation {
    /// The block.
    pub block: BlockId,
    /// Its data.
    pub data: OwnedFd,
    /// What is left to do.
    pub rest: Growth,
    /// Set when the block ends.
    pub gone: Arc<AtomicBool>,
    /// Pages that a client gave back and that are to come again.
    pub promise: Option<Promise>,
}

impl Preparation {
    /// What is said of it when it is done, or given up.
    pub fn end(self) -> TaskDone {
        let Self { block, gone, promise, .. } = self;
        TaskDone::Prepared { block, gone, promise }
    }
}

/// What came of a [`Task`].
#[derive(Debug)]
pub enum TaskDone {
    /// Of [`Task::Refill`].
    Refilled {
        /// The object.
        result: Result<Spare, CommitError>,
        /// Its bytes.
        promise: Promise,
    },
    /// Of [`Task::Prepare`].
    Prepared {
        /// The block.
        block: BlockId,
        /// Which of the blocks that had this id.
        gone: Arc<AtomicBool>,
        /// What was promised.
        promise: Option<Promise>,
    },
}

/// Prepares pages, one step at a time, in a place of its own in the address space.
#[derive(Debug)]
pub struct Preparer {
    window: Reservation,
    huge_pages: bool,
}

impl Preparer {
    /// With a place for a step.
    ///
    /// # Errors
    ///
    /// As [`Reservation::aligned`].
    pub fn new(huge_pages: bool) -> Result<Self, MapError> {
        Ok(Self { window: Reservation::aligned(STEP_BYTES, STEP_BYTES)?, huge_pages })
    }

    /// Makes an object for the pool, with all its pages.
    ///
    /// # Errors
    ///
    /// As [`Spare::make`].
    pub fn refill(&self, folder: &Folder, bytes: u64) -> Result<Spare, CommitError> {
        let spare = Spare::make(folder, bytes, &AtomicBool::new(false))?;
        let mut rest = Growth { from: 0, to: bytes };
        while let Some(step) = next_step(&mut rest) {
            if !self.prepare(spare.as_fd(), step) {
                debug!("a pool object is offered without all of its pages");
                return Ok(spare);
            }
        }
        Ok(spare.with_pages())
    }

    /// Prepares the next step of a block's pages; false when there is none.
    pub fn step(&self, task: &mut Preparation) -> bool {
        if task.gone.load(Ordering::Relaxed) {
            return false;
        }
        let Some(step) = next_step(&mut task.rest) else { return false };
        self.prepare(task.data.as_fd(), step)
    }

    fn prepare(&self, fd: BorrowedFd<'_>, step: FileRange) -> bool {
        let mapped = self.prepare_mapped(fd, step);
        let done = self.window.clear_at(0, STEP_BYTES).and(mapped);
        if let Err(error) = &done {
            debug!(at = step.offset, %error, "pages are not prepared");
        }
        done.is_ok()
    }

    fn prepare_mapped(&self, fd: BorrowedFd<'_>, step: FileRange) -> Result<(), MapError> {
        let range = self.window.map_at(0, fd, step, Protection::ReadWrite, Populate::No)?;
        map::populate_write(range)?;
        if !self.huge_pages || step.bytes < STEP_BYTES {
            return Ok(());
        }
        match map::collapse(range) {
            Err(MapError::NoHugePage | MapError::Busy | MapError::Unsupported { .. }) => Ok(()),
            other => other,
        }
    }
}

/// The next step of `rest`, which ends at a multiple of a step. Begins at one too, so that the part
/// of a huge page that was prepared alone becomes whole with what follows it.
fn next_step(rest: &mut Growth) -> Option<FileRange> {
    if rest.from >= rest.to {
        return None;
    }
    let offset = rest.from - rest.from % STEP_BYTES;
    let end = rest.to.min(offset + STEP_BYTES);
    rest.from = end;
    Some(FileRange { offset, bytes: end - offset })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_cover_the_rest_and_keep_to_huge_pages() {
        const KIB: u64 = 1 << 10;
        let mut rest = Growth { from: 1024 * KIB, to: 5 * 1024 * KIB + 64 * KIB };
        let steps: Vec<_> = std::iter::from_fn(|| next_step(&mut rest)).collect();
        let step = |offset, bytes| FileRange { offset: offset * KIB, bytes: bytes * KIB };
        assert_eq!(steps, [step(0, 2048), step(2048, 2048), step(4096, 1088)]);
        assert_eq!(next_step(&mut Growth { from: 4096, to: 4096 }), None);
    }
}

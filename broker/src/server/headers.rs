//! Headers of blocks: their objects are made ahead, since that takes longer than to write them.
//!
//! # Invariants
//!
//! 1. An object that is made ahead has no name, so nobody finds it, and it goes with this process.
//! 2. Nothing depends on there being one: a header is made from nothing else.

use std::os::fd::{AsFd, OwnedFd};

use dmce_broker::dispatcher::Millis;
use dmce_shm::header::{self, BlockHeader, HeaderError};
use dmce_sys::object::{ObjectDir, ObjectError};
use tracing::debug;

use super::now;

/// How many are kept ready: as many as a service may ask for at once when it starts. Each has a
/// descriptor and a page.
pub const BLANKS_MAX: usize = 16;

/// How many are made before others have their turn.
const MADE_A_TURN: usize = 4;

/// How long no block has to have been made before more are: who asks for several in a row is not
/// kept waiting for those that nobody may want.
const QUIET_MS: u64 = 2;

/// The objects that are made ahead.
#[derive(Debug)]
pub struct Headers {
    blanks: Vec<OwnedFd>,
    /// When there are to be more.
    due_at: Option<Millis>,
    /// Whether they can be named, as far as is known.
    are_of_use: bool,
}

impl Default for Headers {
    fn default() -> Self {
        Self { blanks: Vec::new(), due_at: Some(Millis(0)), are_of_use: true }
    }
}

impl Headers {
    /// Makes the header of a block whose data has its name, or none.
    ///
    /// # Errors
    ///
    /// As [`header::make`].
    pub fn make(
        &mut self,
        dir: &ObjectDir,
        name: &str,
        header: &BlockHeader,
    ) -> Result<(), HeaderError> {
        self.due_at = self.are_of_use.then(|| now().millis.after(QUIET_MS));
        let Some(blank) = self.blanks.pop() else { return header::make(dir, name, header) };
        match header::make_of(blank.as_fd(), dir, name, header) {
            Err(HeaderError::Object(error)) if !matches!(error, ObjectError::Exists { .. }) => {
                debug!("no headers are made ahead any more: {error}");
                (self.are_of_use, self.due_at) = (false, None);
                self.blanks.clear();
                header::make(dir, name, header)
            }
            made => made,
        }
    }

    /// When more are to be made.
    pub const fn due_at(&self) -> Option<Millis> {
        self.due_at
    }

    /// Makes some, if it is time to.
    pub fn tend(&mut self, dir: &ObjectDir, now: Millis) {
        if self.due_at.is_none_or(|at| now < at) {
            return;
        }
        for _ in 0..MADE_A_TURN {
            if self.blanks.len() >= BLANKS_MAX {
                self.due_at = None;
                return;
            }
            match header::blank(dir) {
                Ok(blank) => self.blanks.push(blank),
                Err(error) => {
                    // Tried again after the next block.
                    debug!("no header is made ahead: {error}");
                    self.due_at = None;
                    return;
                }
            }
        }
        self.due_at = Some(now);
    }
}

#[cfg(test)]
mod tests;

//! The parts of requests that may take long, so that they can be carried out elsewhere.
//!
//! # Invariants
//!
//! 1. A [`Job`] touches the objects of its own block, or one that nobody else knows. So jobs of
//!    different blocks run side by side; for one block there is one at a time.
//! 2. What a job has done becomes known to the store by [`super::Store::finish`] alone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::AtomicBool;

use dmce_abi::block::{BlockDescription, BlockId};
use dmce_sys::object::ObjectError;

use super::block::{self, Data, Spare};
use super::commit::{self, CommitError, Growth, Halted};
use super::folder::Folder;
use super::ledger::Promise;
use super::prepare::STEP_BYTES;

/// Work of at most these bytes takes less time than giving it to somebody: what gets no huge page.
const BRIEF_BYTES: u64 = STEP_BYTES - 1;

/// What is to be done for a block.
#[derive(Debug)]
pub enum Job {
    /// An object that is to become a block.
    Make {
        /// The block.
        description: Box<BlockDescription>,
        /// Bytes.
        committed: u64,
        /// The bytes.
        promise: Promise,
    },
    /// More bytes.
    Extend {
        /// The block.
        block: BlockId,
        /// Its data.
        data: OwnedFd,
        /// How much.
        growth: Growth,
        /// The bytes.
        promise: Promise,
    },
    /// The end of a block whose header is gone.
    Clear {
        /// Its data.
        remains: Remains,
    },
}

/// What is left of a block whose header is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The block that it was.
    pub block: BlockId,
    /// The object.
    pub data: Data,
}

/// What came of a [`Job`].
#[derive(Debug)]
pub enum Done {
    /// Of [`Job::Make`].
    Made {
        /// The block.
        description: Box<BlockDescription>,
        /// The object.
        result: Result<Spare, CommitError>,
        /// The bytes.
        promise: Promise,
    },
    /// Of [`Job::Extend`].
    Extended {
        /// The block.
        block: BlockId,
        /// Its data.
        data: OwnedFd,
        /// How much.
        growth: Growth,
        /// Whether it has them, or how many.
        result: Result<(), Halted>,
        /// The bytes.
        promise: Promise,
    },
    /// Of [`Job::Clear`].
    Cleared {
        /// What was left.
        remains: Remains,
        /// Whether it is gone.
        result: Result<(), ObjectError>,
    },
}

impl Job {
    /// Whose it is.
    pub fn block(&self) -> BlockId {
        match self {
            Self::Make { description, .. } => description.block,
            Self::Extend { block, .. } => *block,
            Self::Clear { remains } => remains.block,
        }
    }

    /// Whether it is done sooner than somebody else could begin with it.
    pub fn is_brief(&self) -> bool {
        let bytes = match self {
            Self::Make { committed, .. } => *committed,
            Self::Clear { remains } => remains.data.bytes,
            Self::Extend { growth, .. } => growth.bytes(),
        };
        bytes <= BRIEF_BYTES
    }

    /// Does it, unless `cancelled` is set before it is done.
    pub fn run(self, folder: &Folder, cancelled: &AtomicBool) -> Done {
        match self {
            Self::Make { description, committed, promise } => {
                let result = Spare::make(folder, committed, cancelled);
                Done::Made { description, result, promise }
            }
            Self::Extend { block, data, growth, promise } => {
                let result = commit::commit(data.as_fd(), growth, cancelled);
                Done::Extended { block, data, growth, result, promise }
            }
            Self::Clear { remains } => {
                let result = block::clear(folder, remains.block, remains.data.inode);
                Done::Cleared { remains, result }
            }
        }
    }
}

impl Done {
    /// Whose it is.
    pub fn block(&self) -> BlockId {
        match self {
            Self::Made { description, .. } => description.block,
            Self::Extended { block, .. } => *block,
            Self::Cleared { remains, .. } => remains.block,
        }
    }
}

//! What a block's data object is now, against what was committed.
//!
//! Whoever may write a block can also change its object's size and give pages back. That hurts
//! those whom they share it with, and is to be noticed; it must never take memory that nobody
//! counts.

use std::os::fd::AsFd;

use dmce_abi::block::BlockId;
use dmce_abi::name::ObjectKind;
use dmce_sys::object::{self, ObjectError};

use super::block::Data;
use super::folder::{Folder, Found, Own};
use super::prepare::STEP_BYTES;

/// What there is.
#[derive(Debug)]
pub enum Finding {
    /// All is as it should be.
    Whole(Own),
    /// More than was committed; it has been cut back.
    Excess {
        /// The object.
        data: Own,
        /// Bytes that it had.
        bytes: u64,
    },
    /// The size is right, but pages were given back.
    Holes {
        /// The object.
        data: Own,
        /// Bytes that are missing.
        missing: u64,
    },
    /// Less than was committed, or nothing that is ours.
    Lost {
        /// What happened, for the log.
        reason: String,
    },
}

/// Looks at the data of `block`, which is to be `expected`.
///
/// # Errors
///
/// [`ObjectError`] if it could not be looked at; that says nothing about the block.
pub fn examine(folder: &Folder, block: BlockId, expected: Data) -> Result<Finding, ObjectError> {
    let data = match folder.look(ObjectKind::Data(block.get()))? {
        Found::Own(own) if own.stat.inode == expected.inode => own,
        Found::Own(_) => return Ok(lost("another object has taken its name")),
        Found::Foreign { reason } => return Ok(lost(reason)),
        Found::Missing => return Ok(lost("its object was removed")),
    };
    let (bytes, allocated) = (data.stat.bytes, data.stat.allocated_bytes);
    if bytes < expected.bytes {
        let reason = format!("it has {bytes} of {} bytes", expected.bytes);
        return Ok(Finding::Lost { reason });
    }
    // A file system that uses huge pages by itself may hold one more than half filled at the end.
    let allocated_max = expected.bytes.next_multiple_of(STEP_BYTES);
    if bytes > expected.bytes || allocated > allocated_max {
        object::truncate(data.as_fd(), expected.bytes)?;
        return Ok(Finding::Excess { data, bytes: bytes.max(allocated) });
    }
    match expected.bytes.checked_sub(allocated) {
        Some(missing @ 1..) => Ok(Finding::Holes { data, missing }),
        _ => Ok(Finding::Whole(data)),
    }
}

fn lost(reason: &str) -> Finding {
    Finding::Lost { reason: reason.to_owned() }
}

//! The lock tables of blocks, by name: made, given more words, looked at, removed
//! (docs/shared-memory.md, section 6).
//!
//! | step of making one | if the broker dies right after it |
//! |---|---|
//! | what this user has under the name is cut and removed | none: the next broker makes it anew |
//! | it is made and committed; words of lost pages say so | it says of no block that it is its |
//! | its first page is written | its block has it; that of no block is removed by the next broker |
//!
//! # Invariants
//!
//! 1. A table is committed as far as there are words of it to use: who stores to one meets no full
//!    file system.
//! 2. What is not this user's is neither used nor removed.
//! 3. Tables are read and written by `pread` and `pwrite` alone: clients can write all of them.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_broker::dispatcher::{FoundTable, Made};
use dmce_shm::lock::LockBits;
use dmce_shm::table::{self, LockTableHeader, TableError, TableIdentity};
use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectError};
use tracing::warn;

use super::objects::{BROKER, ObjectFailure, Objects};

/// Why a table is not one that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Unsound {
    /// It could not be opened.
    #[error(transparent)]
    Object(#[from] ObjectFailure),
    /// It is none.
    #[error(transparent)]
    Table(#[from] TableError),
    /// It is another block's.
    #[error("the lock table is of another block, with guid {guid}")]
    Other {
        /// Whose.
        guid: Guid,
    },
}

impl From<ObjectError> for Unsound {
    fn from(error: ObjectError) -> Self {
        Self::Object(error.into())
    }
}

/// Makes the table of a block, with words for so many bytes of it, of which some say that their
/// page is lost.
pub fn make(objects: &Objects, identity: TableIdentity, bytes: u64, lost: &[u64]) -> Made {
    let block = identity.block;
    remove(objects, block);
    let fd = match objects.folder().create(&name(objects, block)) {
        Ok(fd) => fd,
        Err(error @ ObjectError::Exists { .. }) => {
            return Made::NameTaken { reason: error.to_string() };
        }
        Err(error) => return Made::Unusable { reason: error.to_string() },
    };
    point(Point::TableCreated);
    match write(&fd, identity, bytes, lost) {
        Ok(()) => Made::Whole,
        Err(error) => {
            remove(objects, block);
            Made::Unusable { reason: error.to_string() }
        }
    }
}

fn write(
    fd: &OwnedFd,
    identity: TableIdentity,
    bytes: u64,
    lost: &[u64],
) -> Result<(), ObjectError> {
    object::commit(fd.as_fd(), 0, table::object_bytes(bytes))?;
    point(Point::TableCommitted);
    for page in lost.iter().filter(|page| **page < bytes.div_ceil(PAGE_BYTES)) {
        let word = LockBits::LOST.word().to_le_bytes();
        object::write_at(fd.as_fd(), &word, table::word_offset(page * PAGE_BYTES))?;
    }
    LockTableHeader::new(identity).write(fd.as_fd())?;
    point(Point::TableWritten);
    Ok(())
}

/// Gives the table of a block words for so many bytes of it.
pub fn grow(objects: &Objects, (block, guid): (BlockId, Guid), bytes: u64) -> Made {
    let grown = open(objects, block, true).and_then(|(fd, identity, _)| {
        if identity.guid != guid {
            return Err(Unsound::Other { guid: identity.guid });
        }
        // All of it: a client may have lengthened it, or given pages of it back.
        Ok(object::commit(fd.as_fd(), 0, table::object_bytes(bytes))?)
    });
    match grown {
        Ok(()) => {
            point(Point::TableGrown);
            Made::Whole
        }
        Err(error) => Made::Unusable { reason: format!("lock table of block {block}: {error}") },
    }
}

/// Removes the table of a block, if there is one of this user's.
pub fn remove(objects: &Objects, block: BlockId) {
    let name = name(objects, block);
    match objects.open(BROKER, ObjectKind::LockTable(block.get()), true) {
        Ok((fd, _)) => {
            // Who has it mapped keeps no memory with it.
            match object::truncate(fd.as_fd(), 0) {
                Ok(()) => point(Point::TableCut),
                Err(error) => warn!(object = name, "it keeps its memory: {error}"),
            }
        }
        Err(failure) if failure.is_absence() => return,
        Err(failure) => warn!(object = name, "it is removed as it is: {failure}"),
    }
    match objects.folder().unlink(&name) {
        Ok(()) => point(Point::TableUnlinked),
        Err(ObjectError::NotFound { .. }) => {}
        Err(error) => warn!(object = name, "it stays behind: {error}"),
    }
}

/// What there is of the table of a block.
///
/// # Errors
///
/// It could not be looked at, which says nothing about it.
pub fn look(objects: &Objects, block: BlockId) -> Result<Option<FoundTable>, ObjectFailure> {
    match open(objects, block, false) {
        Ok((_, TableIdentity { guid, .. }, length)) => {
            let bytes = table::covered_bytes(length);
            Ok(Some(FoundTable { block, guid: Some(guid), bytes }))
        }
        Err(Unsound::Object(failure)) if failure.is_absence() => Ok(None),
        Err(
            Unsound::Object(ObjectFailure::Object(ObjectError::Short { .. }))
            | Unsound::Table(_)
            | Unsound::Other { .. },
        ) => Ok(Some(FoundTable { block, guid: None, bytes: 0 })),
        Err(Unsound::Object(failure)) => Err(failure),
    }
}

/// The tables of this user among the names of the broker. One that could not be looked at counts as
/// one that says nothing: it is made anew where a block needs it.
pub fn all(objects: &Objects, kinds: &BTreeSet<ObjectKind>) -> Vec<FoundTable> {
    let blocks = kinds.iter().filter_map(|kind| match *kind {
        ObjectKind::LockTable(id) => BlockId::try_from(id).ok(),
        _ => None,
    });
    let found = blocks.filter_map(|block| match look(objects, block) {
        Ok(found) => found,
        Err(failure) => {
            warn!(%block, "its lock table: {failure}");
            Some(FoundTable { block, guid: None, bytes: 0 })
        }
    });
    found.collect()
}

/// Opens a table; which it is by its own words, and its bytes.
///
/// # Errors
///
/// There is none, or it is not that of a block with this id.
pub fn open(
    objects: &Objects,
    block: BlockId,
    writable: bool,
) -> Result<(OwnedFd, TableIdentity, u64), Unsound> {
    let (fd, stat) = objects.open(BROKER, ObjectKind::LockTable(block.get()), writable)?;
    let identity = LockTableHeader::read(fd.as_fd())?.identity()?;
    if identity.block != block {
        return Err(Unsound::Other { guid: identity.guid });
    }
    Ok((fd, identity, stat.bytes))
}

fn name(objects: &Objects, block: BlockId) -> String {
    objects.name(BROKER, ObjectKind::LockTable(block.get()))
}

#[cfg(test)]
mod tests;

//! The lock table of a block: a page that says whose it is, then one word per page (section 6).
//!
//! ```text
//! 0                       4096
//! | magic, block, epoch   | word of page 0 | word of page 1 | ...
//! ```
//!
//! # Invariants
//!
//! 1. The table belongs to the block and not to a copy: it outlives any copy.
//! 2. The broker writes the first page before any client has the object. Clients may write all of
//!    it afterwards, so to the broker it is a claim.
//!
//! There is none of a block that was asked for with one copy.

use std::os::fd::BorrowedFd;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_sys::object::{self, ObjectError};

use crate::layout::{Field, fingerprint, layout};
use crate::lock::PageLock;

mod mapped;

pub use mapped::{LockTable, Size, TableFault};

/// Bytes before the first word.
pub const TABLE_HEADER_BYTES: u64 = 4096;

const WORD_BYTES: u64 = size_of::<PageLock>() as u64;
const MAGIC: [u8; 8] = *b"DMCELOCK";
/// The tables in `docs/shared-memory.md`: header, word.
pub(crate) const TABLES: [&[Field]; 2] = [LockTableHeader::FIELDS, PageLock::FIELDS];
const FINGERPRINT: u32 = fingerprint(&TABLES);

/// Which block's pages a table locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableIdentity {
    /// The block.
    pub block: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// Its epoch when the table was made.
    pub epoch: u64,
}

layout! {
    /// The first page of a table.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub struct LockTableHeader, 4096 bytes {
        0 => magic: [u8; 8],
        8 => version: U32,
        12 => fingerprint: U32,
        16 => block: U32,
        20 => reserved: [u8; 4],
        24 => guid: [u8; 16],
        40 => epoch: U64,
        48 => reserved_behind_epoch: [u8; 4048],
    }
}

/// A table that is not the one that was announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum TableError {
    /// Made by another version.
    #[error("the lock table is of segment version {theirs}, this release uses {ours}")]
    OtherVersion { theirs: u32, ours: u32 },
    /// It names no block.
    #[error("the lock table names no block")]
    NoTable,
    /// Not the table of this block.
    #[error("the lock table is not that of block {}: {field} differs", identity.block)]
    Foreign { identity: TableIdentity, field: &'static str },
}

impl LockTableHeader {
    /// The first page of the table of a block.
    #[must_use]
    pub fn new(identity: TableIdentity) -> Self {
        let mut header = Self::new_zeroed();
        header.magic = MAGIC;
        header.version = SEGMENT_VERSION.into();
        header.fingerprint = FINGERPRINT.into();
        header.block = identity.block.get().into();
        header.guid = identity.guid.0;
        header.epoch = identity.epoch.into();
        header
    }

    /// Checks a private copy of the first page.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn check(&self, identity: TableIdentity) -> Result<(), TableError> {
        let same = |field, same: bool| {
            if same { Ok(()) } else { Err(TableError::Foreign { identity, field }) }
        };
        same("the magic", self.magic == MAGIC)?;
        if self.version != SEGMENT_VERSION {
            let theirs = self.version.get();
            return Err(TableError::OtherVersion { theirs, ours: SEGMENT_VERSION });
        }
        let expected = Self::new(identity);
        same("the fingerprint", self.fingerprint == expected.fingerprint)?;
        same("the block", self.block == expected.block)?;
        same("the GUID", self.guid == expected.guid)?;
        same("the epoch", self.epoch == expected.epoch)
    }
}

impl LockTableHeader {
    /// Which block's table it says that it is: a claim, since clients can write it.
    ///
    /// # Errors
    ///
    /// [`TableError`] if it is no table of this version.
    pub fn identity(&self) -> Result<TableIdentity, TableError> {
        let block = BlockId::try_from(self.block.get()).map_err(|_| TableError::NoTable)?;
        let identity = TableIdentity { block, guid: Guid(self.guid), epoch: self.epoch.get() };
        self.check(identity).map(|()| identity)
    }

    /// A private copy of the first page of a table.
    ///
    /// # Errors
    ///
    /// [`ObjectError`]; [`ObjectError::Short`] of one that was cut.
    pub fn read(fd: BorrowedFd<'_>) -> Result<Self, ObjectError> {
        let mut header = Self::new_zeroed();
        object::read_at(fd, header.as_mut_bytes(), 0)?;
        Ok(header)
    }

    /// Writes the first page of a table.
    ///
    /// # Errors
    ///
    /// [`ObjectError`].
    pub fn write(&self, fd: BorrowedFd<'_>) -> Result<(), ObjectError> {
        object::write_at(fd, self.as_bytes(), 0)
    }
}

/// Bytes of the table of a block that may grow to `bytes_max`.
#[must_use]
pub const fn table_bytes(bytes_max: u64) -> u64 {
    TABLE_HEADER_BYTES + bytes_max.div_ceil(PAGE_BYTES) * WORD_BYTES
}

/// Bytes of a table's object that has words for so many bytes of its block: whole pages.
#[must_use]
pub const fn object_bytes(bytes: u64) -> u64 {
    table_bytes(bytes).next_multiple_of(PAGE_BYTES)
}

/// Bytes of a block that a table's object of `length` bytes has words for. Clients can give it any
/// length.
#[must_use]
pub const fn covered_bytes(length: u64) -> u64 {
    (length.saturating_sub(TABLE_HEADER_BYTES) / WORD_BYTES).saturating_mul(PAGE_BYTES)
}

/// Where in its block's table the word of the page lies that holds `cell`.
#[must_use]
pub const fn word_offset(cell: u64) -> u64 {
    TABLE_HEADER_BYTES + cell / PAGE_BYTES * WORD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> TableIdentity {
        TableIdentity { block: BlockId::try_from(9).unwrap(), guid: Guid([3; 16]), epoch: 2 }
    }

    #[test]
    fn every_cell_has_the_word_of_its_page_and_the_last_one_ends_the_table() {
        assert_eq!(word_offset(0), 4096);
        assert_eq!(word_offset(4095), 4096);
        assert_eq!(word_offset(4096), 4104);
        let bytes_max = 1 << 30;
        assert_eq!(word_offset(bytes_max - 1) + WORD_BYTES, table_bytes(bytes_max));
        assert_eq!([0, 1, 2 << 20, (2 << 20) + 1].map(object_bytes), [4096, 8192, 8192, 12288]);
        assert_eq!([0, 4096, 8192, 12288].map(covered_bytes), [0, 0, 2 << 20, 4 << 20]);
        assert_eq!(covered_bytes(i64::MAX.unsigned_abs()), u64::MAX);
    }

    #[test]
    fn a_header_of_another_block_epoch_or_version_is_refused() {
        let header = LockTableHeader::new(identity());
        assert_eq!(header.check(identity()), Ok(()));
        let refused = |identity| header.check(identity).unwrap_err().to_string();
        assert_eq!(
            refused(TableIdentity { epoch: 3, ..identity() }),
            "the lock table is not that of block 9: the epoch differs"
        );
        assert!(refused(TableIdentity { guid: Guid([4; 16]), ..identity() }).contains("GUID"));
        assert_eq!(header.identity(), Ok(identity()));
        assert_eq!(LockTableHeader::new_zeroed().identity(), Err(TableError::NoTable));
        let mut other = LockTableHeader::new(identity());
        other.version = 7.into();
        let ours = SEGMENT_VERSION;
        assert_eq!(other.check(identity()), Err(TableError::OtherVersion { theirs: 7, ours }));
    }
}

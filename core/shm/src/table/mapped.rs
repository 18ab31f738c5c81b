//! The lock table of a block, mapped by who writes the block.
//!
//! # Invariants
//!
//! 1. The mapping has room for the words of all pages that the block may have, and lasts as long as
//!    they are borrowed. The object has those of what is committed, and no others are touched.
//! 2. The words are atomics: everybody who may write the block stores to them at any time.
//! 3. Where somebody cut the object, the words are zeros of this process alone from then on: they
//!    keep nobody out, and who has used them does it again under the table's successor.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::slice;

use dmce_abi::block::{BlockId, Guid};
use dmce_abi::limits::PAGE_BYTES;
use dmce_sys::fault::StandIn;
use dmce_sys::map::{FileRange, MapError, Mapping, Populate, Protection};
use dmce_sys::object::{self, ObjectError};

use super::{LockTableHeader, TABLE_HEADER_BYTES, TableError, TableIdentity, table_bytes};
use crate::lock::PageLock;

/// The words of a block's pages.
#[derive(Debug)]
pub struct LockTable {
    /// Before what it stands in for.
    stand_in: StandIn,
    mapping: Mapping,
    pages: usize,
    is_writable: bool,
}

/// How large a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes that may be used.
    pub committed: u64,
    /// Bytes that it may grow to.
    pub bytes_max: u64,
}

/// Why a lock table is not the one of its block, or could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableFault {
    /// It has another's words, or another's form.
    #[error(transparent)]
    Foreign(#[from] TableError),
    /// It was made later than the block's epoch that came with it.
    #[error("the lock table is of epoch {theirs}, the block of {ours}")]
    Later {
        /// The table's.
        theirs: u64,
        /// The block's.
        ours: u64,
    },
    /// It ends before what may be used of the block does.
    #[error("the lock table has {bytes} bytes, {wanted} are its block's")]
    Short {
        /// Its own.
        bytes: u64,
        /// Those of a whole one.
        wanted: u64,
    },
    /// It could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl LockTable {
    /// Checks and maps the table of a block.
    ///
    /// # Errors
    ///
    /// [`TableFault`].
    pub fn map(
        fd: BorrowedFd<'_>,
        (block, guid, epoch): (BlockId, Guid, u64),
        size: Size,
        protection: Protection,
    ) -> Result<Self, TableFault> {
        let header = LockTableHeader::read(fd)?;
        // The epoch may have risen since it was made.
        let made = header.identity()?.epoch;
        header.check(TableIdentity { block, guid, epoch: made })?;
        if made > epoch {
            return Err(TableFault::Later { theirs: made, ours: epoch });
        }
        let (bytes, wanted) = (object::end(fd)?, table_bytes(size.committed));
        if bytes < wanted {
            return Err(TableFault::Short { bytes, wanted });
        }
        let range = FileRange { offset: 0, bytes: table_bytes(size.bytes_max) };
        let mapping = Mapping::shared(fd, range, protection, Populate::No)?;
        let pages = usize::try_from(size.bytes_max.div_ceil(PAGE_BYTES))
            .map_err(|_| MapError::AddressSpace { bytes: range.bytes })?;
        let stand_in = StandIn::zeros(mapping.whole(), protection);
        let is_writable = protection == Protection::ReadWrite;
        Ok(Self { stand_in, mapping, pages, is_writable })
    }

    /// Whether a part of it is gone, as somebody who used it has found.
    #[inline]
    #[must_use]
    pub fn is_harmed(&self) -> bool {
        self.stand_in.was_used()
    }

    /// Whether this process may lock pages.
    #[inline]
    #[must_use]
    pub const fn is_writable(&self) -> bool {
        self.is_writable
    }

    /// The words of all pages.
    #[inline]
    #[must_use]
    pub fn all(&self) -> &[PageLock] {
        const HEADER: usize = 4096;
        const _: () = assert!(HEADER as u64 == TABLE_HEADER_BYTES);
        let first = self.mapping.as_ptr().wrapping_add(HEADER).cast_const();
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping is page aligned, and so is this")]
        let first = first.cast::<PageLock>();
        // SAFETY: the mapping holds as many words from there on, page aligned, for as long as it is
        // borrowed; a word is atomics of any bit pattern, which any process may store to. Where the
        // mapping is only readable they are only loaded (`is_writable`).
        unsafe { slice::from_raw_parts(first, self.pages) }
    }

    /// The words of pages, which the block has.
    ///
    /// # Panics
    ///
    /// If it has not so many.
    #[inline]
    #[must_use]
    pub fn words(&self, pages: Range<u64>) -> &[PageLock] {
        let index = |page| usize::try_from(page).unwrap_or(usize::MAX);
        &self.all()[index(pages.start)..index(pages.end)]
    }
}

//! Writing to all copies of a block, and repairing what a dead writer left (sections 4.1 and 6).
//!
//! ```text
//!   intent  locks, odd  save, phase 1  first copy  phase 2  others  phase 0  even, free, gone
//!  ----|---------|------------|------------|----------|--------|-------|-------------|---->
//!      `------ released ------'----- rolled back -----'- forward ------'- released --'
//! ```
//!
//! [`Writer`] runs in the client, on words that it has mapped; how it reaches the copies' bytes is
//! its caller's ([`Copies`]). [`repair`] runs in the broker, on copies of words and by exchanges
//! that end with an error where there is no page ([`Site`]). [`carry`] is a write of the broker's
//! own, for a pointer of the dead.
//!
//! # Invariants
//!
//! 1. *Good copies are equal wherever no page is locked*, but for pages that are lost, or detached
//!    (004).
//! 2. A page is given back only when it is equal on all good copies: by its writer, or by repair.
//!    Who can do neither keeps it.
//! 3. What was acknowledged is on every copy that was good then. A write that was not is there as a
//!    whole or not at all, page by page.
//! 4. Repair can be done again from the beginning, whoever died over it: a page that it gave back
//!    it does not touch a second time.
//! 5. To repair every word is a claim. Whatever a client stored, repair writes to nothing but the
//!    pages that its dead slot holds, of one batch, inside the block; and it comes to an end.

use std::ops::Range;

use dmce_abi::limits::PAGE_BYTES;

mod carry;
mod repair;
mod write;

pub use carry::{Carried, carry};
pub use repair::{RepairError, Repaired, Site, Wreck, level, repair};
pub use write::{Beginning, Copies, Pages, Verdict, WriteError, Writer};

/// Pages of one block that are written at a time.
pub const BATCH_PAGES: u64 = 16;

/// The bytes of a block that are written at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The first.
    pub cell: u64,
    /// How many, in at most [`BATCH_PAGES`] pages.
    pub bytes: u64,
    /// Bytes that the block has: its last page may end before that of the object.
    pub end: u64,
}

impl Batch {
    /// As much as one batch holds, of what is from `cell` to `until`.
    #[inline]
    #[must_use]
    pub const fn first_of(cell: u64, until: u64, end: u64) -> Self {
        let limit = (cell / PAGE_BYTES + BATCH_PAGES) * PAGE_BYTES;
        let until = if until < limit { until } else { limit };
        Self { cell, bytes: until - cell, end }
    }

    /// Numbers of its pages.
    #[inline]
    #[must_use]
    pub const fn pages(self) -> Range<u64> {
        self.cell / PAGE_BYTES..(self.cell + self.bytes).div_ceil(PAGE_BYTES)
    }

    /// Whether it has every byte of a page that the block has.
    #[inline]
    #[must_use]
    pub const fn covers(self, page: u64) -> bool {
        let (start, until) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        let until = if until < self.end { until } else { self.end };
        self.cell <= start && until <= self.cell + self.bytes
    }

    /// Its cells that lie in a page.
    #[must_use]
    const fn cells_in(self, page: u64) -> Range<u64> {
        let (start, until) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
        let end = self.cell + self.bytes;
        let start = if start > self.cell { start } else { self.cell };
        start..if until < end { until } else { end }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

//! Two copies of a block, mapped around a part that goes from one to the other.
//!
//! # Invariants
//!
//! 1. Whether a copy was cut, and made longer again, is looked at when the part is done: what was
//!    read of it may have been zeros.

use std::ops::Range;
use std::os::fd::AsFd;

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::SYNC_BYTES_MAX;
use dmce_shm::copies::Batch;
use dmce_sys::map::{FileRange, MapError};
use dmce_sys::object::watched::Watched;
use dmce_sys::transfer::between::Between;

use super::view::{Copy, Gone};

/// What is mapped at a time ends at a multiple of this, as huge pages do.
const WINDOW_BYTES: u64 = SYNC_BYTES_MAX as u64;

/// A part of two copies.
#[derive(Debug)]
pub(super) struct Window<'a> {
    /// Where it comes from, and where it goes to.
    sides: [(&'a Copy, Watched<'a>); 2],
    between: Between,
    start: u64,
    end: u64,
}

/// Why nothing was carried.
#[derive(Debug, thiserror::Error)]
pub(super) enum Shut {
    #[error(transparent)]
    Gone(#[from] Gone),
    /// For want of address space, for example.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl<'a> Window<'a> {
    /// Where the window around a cell ends.
    pub(super) const fn end_of(cell: u64) -> u64 {
        (cell / WINDOW_BYTES + 1) * WINDOW_BYTES
    }

    /// Maps the pages from a cell to another one.
    pub(super) fn on(
        Range { start, end }: Range<u64>,
        [from, to]: [&'a Copy; 2],
    ) -> Result<Self, Shut> {
        let start = start - start % PAGE_BYTES;
        let sides = [(from, from.watched(end)?), (to, to.watched(end)?)];
        let range = FileRange { offset: start, bytes: end - start };
        let mapped = Between::map(from.as_fd(), to.as_fd(), range, WINDOW_BYTES);
        let between = mapped.map_err(|error| match error {
            // It was there a moment ago.
            MapError::Lost => Shut::Gone(cut_of([from, to], end)),
            error => Shut::Map(error),
        })?;
        Ok(Self { sides, between, start, end })
    }

    /// Brings a batch from one copy to the other. False if other bytes are there afterwards.
    pub(super) fn carry(&self, batch: Batch) -> Result<bool, Gone> {
        let bytes = usize::try_from(batch.bytes).expect("a batch is some pages");
        let carried = self.between.carry(batch.cell - self.start, bytes);
        carried.map_err(|_| cut_of(self.sides.map(|(copy, _)| copy), self.end))
    }

    /// Looks whether both copies were whole all the time.
    pub(super) fn confirm(&self) -> Result<(), Gone> {
        let confirm = |(copy, watched): (&Copy, Watched<'_>)| {
            watched.confirm().map_err(|error| copy.gone(error))
        };
        self.sides.into_iter().try_for_each(confirm)
    }
}

/// Which of two copies was cut, that have to have so many bytes. If it is whole again, the first.
fn cut_of(copies: [&Copy; 2], needs: u64) -> Gone {
    let cut = copies.iter().find(|copy| copy.check(needs).is_err());
    Gone::Cut { daemon: cut.unwrap_or(&copies[0]).daemon }
}

//! What is wanted of a range, by whom, on which terms, and what it ends with.

use dmce_sys::futex::FutexError;

use super::NOBODY_LIVING;
use crate::parking::{Deadline, Parking};

/// Whose a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PointerOwner(pub(super) u32);

/// What a pointer is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its first byte.
    pub cell: u64,
    /// How many bytes, which end in the block.
    pub bytes: u64,
    /// Whether it is a write pointer.
    pub exclusive: bool,
}

/// What is done when others are in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How a turn is waited for.
    pub wait: Wait,
    /// Until when, and for another that looks at the same time, which takes it no time.
    pub deadline: Deadline,
    /// Whether a range is taken whose owner died while writing it.
    pub take_dirty: bool,
}

/// How a turn is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// In the call.
    InTurn,
    /// Not at all.
    Never,
    /// Outside: the record keeps its place.
    Queued,
}

/// How a caller waits, and tells who does not wait in a call.
pub trait Turns: Parking {
    /// Somebody has to look which queued pointers have their turn by now.
    fn ring(&self);
}

/// Why a pointer was not had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PointerError {
    /// Another is in the way.
    #[error("another pointer is in the range")]
    Busy,
    /// Another is in the way, and the record keeps its place behind it.
    #[error("the pointer waits for its turn")]
    Queued,
    /// Not within the time that the caller allowed.
    #[error("another pointer was in the range until the deadline")]
    Timeout,
    /// Who had a write pointer there died, and nothing says what was there before.
    #[error("the owner of a write pointer died in the range")]
    OwnerDied,
    /// The record says something else: its owner was declared dead, or somebody scribbled.
    #[error("the record of the pointer is not its owner's")]
    NotHeld,
    /// The word could not be waited for, or its memory is gone.
    #[error(transparent)]
    Parking(#[from] FutexError),
}

impl PointerOwner {
    /// For a number that is not 0, and not 2^32 - 1.
    #[must_use]
    pub const fn new(number: u32) -> Option<Self> {
        if number == 0 || number == NOBODY_LIVING { None } else { Some(Self(number)) }
    }
}

impl Wanted {
    pub(super) const fn end(self) -> u64 {
        self.cell.saturating_add(self.bytes)
    }

    pub(super) const fn overlaps(self, other: Self) -> bool {
        self.cell < other.end() && other.cell < self.end()
    }

    pub(super) const fn is_in_the_way_of(self, other: Self) -> bool {
        (self.exclusive || other.exclusive) && self.overlaps(other)
    }

    pub(super) const fn is_within(self, other: Self) -> bool {
        other.cell <= self.cell && self.end() <= other.end()
    }
}

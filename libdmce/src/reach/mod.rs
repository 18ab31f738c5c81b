//! How the bytes of a block are reached: mapped whole, through windows, or by message. Of a block
//! with copies each copy is mapped or behind windows ([`copied`]).
//!
//! All are the same to who asks: one conformance suite runs against each ([`Reach`]).
//!
//! | | [`mapped`] | [`windowed`] | [`message`] |
//! |---|---|---|---|
//! | address space | all that the block may grow to | a share of a budget |
//! | access | load and store | load and store in a window; `pread` and `pwrite` beside it |
//! | for | 64-bit processes | 32-bit ones, and whoever sets a budget |
//!
//! # Invariants
//!
//! 1. No access raises a signal because of what another process did: what is gone is
//!    [`Trouble::Lost`].
//! 2. The caller has checked the range against what is committed. For what is mapped it has marked
//!    its slot; for what is asked for it has not.

#[cfg(test)]
pub(crate) mod conformance;
pub(crate) mod copied;
pub(crate) mod given;
pub(crate) mod mapped;
pub(crate) mod message;
mod store;
pub(crate) mod ways;
pub(crate) mod windowed;
pub(crate) mod word;

use std::cmp::Ordering;

use dmce_abi::Status;
use dmce_abi::limits::PAGE_BYTES;
use dmce_sys::transfer::Gone;

use word::{Change, Watch};

/// A range of a block that an operation is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Its first byte.
    pub cell: u64,
    /// Its bytes.
    pub bytes: usize,
    /// Bytes that the block has: the object is never shorter.
    pub committed: u64,
}

impl Piece {
    /// The part from `done` on, of `bytes`.
    fn part(self, done: usize, bytes: usize) -> Self {
        Self { cell: self.cell + done as u64, bytes, committed: self.committed }
    }
}

/// Why a block could not be read or written just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Trouble {
    /// Bytes of the object are gone.
    #[error("bytes of the object are gone")]
    Lost,
    /// What was written is not what was to be written.
    #[error("written data reads back different")]
    Differs,
    /// This process has no address space left for it.
    #[error("no address space is left")]
    NoAddressSpace,
    /// The way to its daemon is gone: the broker knows another.
    #[error("the link to its daemon has ended")]
    Unlinked,
    /// Its daemon, or who was to pass the request on, does not do it.
    #[error("it is not done: {0}")]
    Refused(Status),
    /// The way to its daemon has ended after that was asked to change a word, and before an answer.
    #[error("no answer will come any more; the word may have been changed")]
    Unsure,
    /// Its daemon was asked to change a word, and has not answered for longer than it should take.
    #[error("the daemon does not answer; the word may have been changed")]
    Silent,
    /// Its daemon was asked to change something, and has not answered in the caller's time.
    #[error("no answer came in time; it may be done yet")]
    Late,
    /// Its daemon was asked to write, and has done a part of it in the caller's time, or may have.
    #[error("its time is over, and a part of it may be done")]
    Partly,
    /// Another writes the page, or was stopped while it did, for longer than the caller's time.
    #[error("a page stayed locked")]
    Held,
    /// A write that never ended is all that is left of a page. It is whole again when all of it is
    /// written.
    #[error("its bytes are those of a write that was not brought to its end")]
    Unwritten,
    /// The first part of it is written, and something is in the way of the rest.
    #[error("a part of it is written; of the rest: {0}")]
    Begun(Status),
    /// The half that was asked for is away.
    #[error("the half that is asked for is away")]
    NoHalf,
    /// The session was told of a change since the operation began: what it knows of the copies may
    /// not be true any more.
    #[error("the session was told of a change")]
    Moved,
    /// The copies of a page differ, as somebody wanted it: it is written page by page.
    #[error("its copies differ")]
    Detached,
    /// The page locks are gone: what was done was done without them.
    #[error("its lock table is gone")]
    Unlocked,
    /// A copy could not be written after another was, and nobody said what became of it: the
    /// session is over.
    #[error("a copy could not be written, and the session has ended over it")]
    Abandoned,
    /// The kernel answered with an error that means none of these.
    #[error("input or output failed")]
    Io,
}

impl Trouble {
    /// What the caller of an access gets.
    pub(crate) const fn status(self) -> Status {
        match self {
            Self::Lost | Self::Unwritten => Status::Lost,
            Self::NoAddressSpace => Status::NoMem,
            Self::Refused(status) | Self::Begun(status) => status,
            Self::NoHalf => Status::NoCopy,
            Self::Late | Self::Partly | Self::Held => Status::Timeout,
            Self::Abandoned => Status::Closed,
            Self::Differs
            | Self::Detached
            | Self::Moved
            | Self::Unlinked
            | Self::Unlocked
            | Self::Unsure
            | Self::Silent
            | Self::Io => Status::Io,
        }
    }

    /// What it is to a write of which a part is done. What is lost as a whole is nobody's to read,
    /// and what is tried again comes to an end of its own.
    pub(crate) const fn behind_a_part(self) -> Self {
        match self {
            Self::Held | Self::Unwritten => Self::Begun(self.status()),
            other => other,
        }
    }

    /// Whether a write of a piece that met this may have changed bytes that can be read.
    pub(crate) const fn may_be_behind_a_part(self, piece: Piece) -> bool {
        match self {
            Self::Begun(_) | Self::Unlocked => true,
            // One page is written as a whole, or is not.
            Self::Moved => piece.cell % PAGE_BYTES + piece.bytes as u64 > PAGE_BYTES,
            _ => false,
        }
    }
}

impl From<Gone> for Trouble {
    fn from(_: Gone) -> Self {
        Self::Lost
    }
}

/// Access to the bytes of one block.
///
/// Pieces lie inside what is committed. An error leaves the rest of the piece as it was or written,
/// in no order.
pub(crate) trait Reach {
    /// Copies a piece out.
    ///
    /// # Safety
    ///
    /// `buffer` is writable for the piece's bytes, and not part of a block.
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble>;

    /// Copies a piece in.
    ///
    /// # Safety
    ///
    /// `data` is readable for the piece's bytes, and not part of a block. The block is writable.
    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble>;

    /// Fills a piece. The block is writable.
    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble>;

    /// Compares a piece with private bytes.
    ///
    /// # Safety
    ///
    /// `data` is readable for the piece's bytes, and written by nobody meanwhile.
    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble>;

    /// Changes the aligned word that a piece is, atomically among all processes; returns what it
    /// was. The block is writable, unless the word is only looked at.
    fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble>;

    /// Wakes at most so many of those who wait for the aligned word that a piece is.
    fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble>;

    /// The aligned word that a piece is, to be waited for outside of operations.
    fn watch(&self, piece: Piece) -> Result<Watch, Trouble>;
}

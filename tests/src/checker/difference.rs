//! What can be wrong.

use dmce_abi::block::{BlockId, DaemonId};

/// Something that is not as it must be when nothing is under way.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// An object that cannot be read as what it is.
    #[error("{object}: {why}")]
    Unsound {
        /// Its name.
        object: String,
        /// Why.
        why: String,
    },
    /// An object that belongs to nobody.
    #[error("{object} belongs to nobody: {why}")]
    Leftover {
        /// Its name.
        object: String,
        /// Why.
        why: &'static str,
    },
    /// Headers of one epoch name different copies, or describe different blocks.
    #[error("block {block}: the headers of daemons {one} and {other} contradict each other")]
    Contradiction {
        /// The block.
        block: BlockId,
        /// Whose header.
        one: DaemonId,
        /// And whose other one.
        other: DaemonId,
    },
    /// The highest epoch names a copy that is not there.
    #[error("block {block}: epoch {epoch} names a copy of daemon {daemon}, which is not there")]
    Missing {
        /// The block.
        block: BlockId,
        /// The epoch.
        epoch: u64,
        /// Whose copy.
        daemon: DaemonId,
    },
    /// Good copies of a region's block have different lengths.
    #[error(
        "block {block}: daemon {} has {} bytes, daemon {} has {}", one.0, one.1, other.0, other.1
    )]
    Length {
        /// The block.
        block: BlockId,
        /// Whose copy has how many bytes.
        one: (DaemonId, u64),
        /// And another one.
        other: (DaemonId, u64),
    },
    /// Good copies of a page that nobody holds differ.
    #[error("block {block}, page {page}: daemons {one} and {other} have different bytes")]
    Bytes {
        /// The block.
        block: BlockId,
        /// The page.
        page: u64,
        /// Whose copy.
        one: DaemonId,
        /// And whose other one.
        other: DaemonId,
    },
    /// A block was asked for with copies, and has no lock table that is its own.
    #[error("block {block}: its lock table: {why}")]
    Table {
        /// The block.
        block: BlockId,
        /// Why.
        why: String,
    },
    /// A lock word is not that of a page which is at rest.
    #[error("block {block}, page {page}: {condition}")]
    Lock {
        /// The block.
        block: BlockId,
        /// The page.
        page: u64,
        /// How it is.
        condition: LockFault,
    },
}

/// What can be wrong with a lock word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LockFault {
    /// Its owner is no session that lives.
    #[error("it is locked by slot {slot} of session {session}, which is dead")]
    Dead {
        /// The session.
        session: u32,
        /// The slot.
        slot: u8,
    },
    /// Its owner lives, and says nothing of it.
    #[error("it is locked by slot {slot} of session {session}, which has no intent")]
    NoIntent {
        /// The session.
        session: u32,
        /// The slot.
        slot: u8,
    },
    /// Repair has not come to its end.
    #[error("it is being repaired")]
    UnderRepair,
    /// Nobody holds it, and its sequence is odd.
    #[error("it may be half written, and nobody holds it")]
    Odd,
    /// Nothing could make it whole.
    #[error("its bytes are lost")]
    Lost,
}

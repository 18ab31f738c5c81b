//! What the broker and a daemon say to each other. The daemon connects.
//!
//! ```text
//! daemon                                   broker
//!   | -- Register -----------------------> |    who I am
//!   | -- Holds, Holds, .. last ----------> |    what I adopted
//!   | <------------- Create, Grow, .. ---- |    from here on, requests with ids
//!   | -- Reply --------------------------> |    with the request's id
//!   | -- Notice -------------------------> |    id 0, at any time
//!   | <---------------------- Taken, .. -- |    id 0, at any time from there on
//! ```

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::Refusal;
use super::data::{DataReply, DataRequest, LinkGrant, LinkId};
use super::scrub::ScrubFound;
use crate::block::{BlockDescription, BlockId, DaemonId, Guid, SessionId};
use crate::rate::Rate;

/// The number in the name of a pool object. No two that a daemon lends have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PoolPlace(pub u32);

impl fmt::Display for PoolPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What the broker asks of a daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DaemonRequest {
    /// A block with so many bytes committed. Answered by [`DaemonAnswer::Committed`].
    Create {
        /// What its header is to say.
        description: BlockDescription,
        /// Bytes.
        committed: u64,
    },
    /// More bytes. Answered by [`DaemonAnswer::Committed`].
    Grow {
        /// The block.
        block: BlockId,
        /// Bytes in all.
        committed: u64,
    },
    /// Its end: header first, then truncated and removed. Done also if there is none.
    Destroy {
        /// The block.
        block: BlockId,
    },
    /// Are you there (002 FIG. 10, sense)? Answered by [`DaemonAnswer::Sensed`].
    Sense,
    /// The blocks that the broker knows of: any other that was reported is to be removed.
    /// Sent once, after the last [`DaemonMessage::Holds`] was taken in.
    Settled,
    /// A client's end of a connection is with the client; this daemon's comes with the message
    /// (FIG. 3). Not answered.
    Link {
        /// Its number. No two of one broker have the same.
        link: LinkId,
        /// Whose it is.
        session: SessionId,
        /// The user of that session: users have their turns.
        uid: u32,
        /// How much that user may ask for over all links to this daemon.
        rate: Rate,
        /// The first block that may be reached over it.
        grant: LinkGrant,
    },
    /// A link ends, with all that was granted over it. Not answered.
    Unlink {
        /// Which.
        link: LinkId,
    },
    /// A block may be reached over a link; again, with these rights. Not answered.
    Grant {
        /// The link.
        link: LinkId,
        /// The block.
        grant: LinkGrant,
    },
    /// A block may not be reached any more. Not answered.
    Revoke {
        /// The link.
        link: LinkId,
        /// The block.
        block: BlockId,
    },
    /// What a client asks for through the broker, which has checked its rights (FIG. 2). Answered
    /// by [`DaemonAnswer::Data`].
    Data(DataRequest),
    /// What was lent is not in the pool any more: it is a block, or it could not be used. Not
    /// answered.
    Taken {
        /// Which of the objects that were lent.
        place: PoolPlace,
        /// The block that it was to become.
        block: BlockId,
        /// Bytes of it that the block has; 0 if there is no block.
        committed: u64,
    },
    /// The broker has written the header of a copy anew: so it is to be written again, if somebody
    /// removes it. Not answered.
    Rewritten {
        /// What it says.
        description: BlockDescription,
    },
    /// A session object of the daemon's own, to write blocks of several copies by. Not answered.
    Seat {
        /// Its session.
        session: SessionId,
        /// The GUID of that session.
        guid: Guid,
        /// Bits of a cell in an address: an intent names addresses.
        cell_bits: u8,
    },
    /// A part of the daemon's copy of a block, which is syncing, gets what the first good copy
    /// has. Answered by [`DaemonAnswer::Synced`].
    Sync {
        /// The block.
        block: BlockId,
        /// Its GUID.
        guid: Guid,
        /// Where the part begins.
        cell: u64,
        /// Bytes of it, at most [`SYNC_BYTES_MAX`].
        bytes: u32,
    },
    /// The daemon compares the good copies of a part of a block whose primary it has. Answered by
    /// [`DaemonAnswer::Scrubbed`].
    Scrub {
        /// The block.
        block: BlockId,
        /// Its GUID.
        guid: Guid,
        /// Where the part begins.
        cell: u64,
        /// Bytes of it, at most [`SYNC_BYTES_MAX`].
        bytes: u32,
    },
}

/// The most that a daemon is asked to sync or to scrub at once, in bytes: it does nothing else
/// meanwhile. A huge page of `x86_64`, of which it syncs none in two parts.
pub const SYNC_BYTES_MAX: u32 = 2 << 20;

/// What a daemon tells the broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DaemonMessage {
    /// The first message of a connection.
    Register(Register),
    /// Blocks that the daemon holds, a page at a time.
    Holds {
        /// Some of them.
        blocks: Vec<HeldBlock>,
        /// Blocks that were made once, and whose objects are not right: they are not served.
        damaged: Vec<BlockId>,
        /// Whether these are the last.
        last: bool,
    },
    /// To a request, with its id.
    Reply(Result<DaemonAnswer, Refusal>),
    /// Unasked.
    Notice(DaemonNotice),
}

/// Who a daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Register {
    /// Its id.
    pub daemon: DaemonId,
    /// The instance that it serves.
    pub instance: String,
    /// [`crate::version::SEGMENT_VERSION`] of the daemon.
    pub segment_version: u32,
    /// Bytes that it may hold.
    pub capacity: u64,
}

/// A block as its daemon found it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBlock {
    /// What its header says.
    pub description: BlockDescription,
    /// Bytes that the object has.
    pub committed: u64,
}

/// A daemon's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DaemonAnswer {
    /// The bytes that the block has now.
    Committed {
        /// Bytes.
        committed: u64,
    },
    /// Done, with nothing to say.
    Done,
    /// What was asked by [`DaemonRequest::Sense`].
    Sensed {
        /// Bytes in the pool.
        pool: u64,
        /// Bytes that could still be committed on this host.
        headroom: u64,
    },
    /// To [`DaemonRequest::Data`].
    Data(DataReply),
    /// So many bytes of the part are as those of the good copies, and were compared. 0: somebody
    /// has its pages, or the daemon has no session object yet; the broker asks again.
    Synced {
        /// Bytes.
        bytes: u32,
    },
    /// So many bytes of the part were gone through, not all of them where many pages differ. 0: not
    /// now, since the headers do not agree, something is gone, or the daemon has no session object
    /// yet; the broker asks again.
    Scrubbed {
        /// Bytes.
        bytes: u32,
        /// What their pages were found to be.
        found: ScrubFound,
    },
}

/// What a daemon says unasked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DaemonNotice {
    /// The object of a block is gone, or shorter than what was committed.
    Lost {
        /// The block.
        block: BlockId,
    },
    /// A client made a block larger than what was committed. It was cut back.
    Excess {
        /// The block.
        block: BlockId,
        /// Bytes that it had.
        bytes: u64,
    },
    /// An object of this daemon's name that it did not adopt, and why: left as it is.
    Foreign {
        /// The object.
        object: String,
        /// Why.
        reason: String,
    },
    /// An object of the pool. The broker may make a block of it, as long as this connection lasts.
    Lent {
        /// Which.
        place: PoolPlace,
        /// Bytes that are committed.
        bytes: u64,
    },
    /// Objects of a block of several copies are not as they should be: those of any of its copies,
    /// or its lock table.
    Damaged {
        /// The block.
        block: BlockId,
    },
    /// The daemon needs a session object, to write blocks of several copies by.
    Unseated {
        /// The one that it had on this connection and does not use any more: what it was writing is
        /// to be repaired.
        left: Option<SessionId>,
    },
}

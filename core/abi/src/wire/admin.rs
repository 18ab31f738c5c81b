//! What the administrator's command asks, and the rows that it gets.
//!
//! A user who is neither root nor the service's own sees counts, daemons, and what is theirs.
//! Listings come a page at a time: ask again after the last row while `more` is set.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::client::RegionName;
use super::scrub::ScrubFound;
use crate::block::{Guid, Half};

/// Asks for a listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AdminRequest {
    /// The instance as a whole.
    Status,
    /// Daemons after this id.
    Daemons {
        /// 0 for the first.
        after: u32,
    },
    /// Blocks after this id.
    Blocks {
        /// 0 for the first.
        after: u32,
    },
    /// Sessions after this id.
    Sessions {
        /// 0 for the first.
        after: u32,
    },
    /// Regions after this one, by volume and name.
    Regions {
        /// Two empty names for the first.
        after: RegionName,
    },
    /// Who has a byte, and where.
    WhereIs {
        /// A DMCE address.
        addr: u64,
    },
    /// Samples of the usage history [0068] after this one.
    Usage {
        /// Zeros for the first.
        after: SampleKey,
    },
    /// Not a listing: a block that is lost goes on with a stale copy. For those who see everything.
    AdoptStale {
        /// The block.
        block: u32,
        /// Whose copy; 0 for the only one.
        from: u32,
    },
    /// Not a listing: a copy of a block moves. Answered when it has moved. For those who see
    /// everything; it is given up if their connection ends before.
    Migrate {
        /// The block.
        block: u32,
        /// Whose copy; 0 for the primary.
        from: u32,
        /// The daemon that gets it.
        to: u32,
    },
    /// Not a listing: copies of two blocks change places, the primaries if they can. Answered when
    /// they have. For those who see everything; what has not begun is given up if their connection
    /// ends before.
    Swap {
        /// A block.
        one: u32,
        /// The other.
        other: u32,
    },
    /// Not a listing: all that a daemon has moves to others, and it gets nothing new; or it may get
    /// something again. Answered at once. For those who see everything.
    Drain {
        /// The daemon.
        daemon: u32,
        /// Whether it is drained from now on.
        is_draining: bool,
    },
    /// Not a listing: so many copies of a region are asked for from now on. Answered at once; its
    /// blocks get or lose copies then, while they are used. For those who see everything, and the
    /// region's owner.
    SetCopies {
        /// The region.
        region: RegionName,
        /// Copies, from 1 on.
        copies: u32,
    },
    /// Not a listing: the copies of a block are compared, or of all. Answered when they were. For
    /// those who see everything; it is given up if their connection ends before.
    Scrub {
        /// The block; 0 for all.
        block: u32,
    },
    /// Entries of the OS-to-DMCE table after this one, by session and OS address: what processes
    /// say that they have mapped. Who does not see everything is shown those of their own sessions;
    /// with an address, those of all sessions, if it is in memory of theirs.
    Mappings {
        /// A DMCE address, for the entries that contain it; 0 for all.
        addr: u64,
        /// A session, for its entries; 0 for all.
        session: u32,
        /// Zeros for the first.
        after: MappingKey,
    },
}

/// A listing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "rows and more, as the module says")]
pub enum AdminReply {
    Status(StatusReport),
    Daemons { rows: Vec<DaemonRow>, more: bool },
    Blocks { rows: Vec<BlockRow>, more: bool },
    Sessions { rows: Vec<SessionRow>, more: bool },
    Regions { rows: Vec<RegionRow>, more: bool },
    WhereIs(Location),
    Usage { rows: Vec<UsageRow>, more: bool },
    Adopted { daemon: u32, epoch: u64 },
    Moved { from: u32, to: u32, epoch: u64 },
    Draining { is_draining: bool },
    CopiesSet { first: u32, count: u32 },
    Scrubbed { blocks: u32, found: ScrubFound },
    Mappings { rows: Vec<MappedRow>, more: bool },
}

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Health {
    /// All copies are there and served.
    Ok,
    /// Usable, but a daemon or a copy is away.
    Degraded,
    /// Something is lost.
    Damaged,
}

/// The instance as a whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// Its name.
    pub instance: String,
    /// Its address layout, as text.
    pub layout: String,
    /// The broker's release.
    pub version: String,
    /// The broker's process.
    pub pid: u32,
    /// Daemons that are known.
    pub daemons: u32,
    /// Daemons that serve.
    pub daemons_up: u32,
    /// Sessions.
    pub sessions: u32,
    /// Blocks.
    pub blocks: u32,
    /// Regions.
    pub regions: u32,
    /// Bytes that the daemons may hold.
    pub capacity: u64,
    /// Bytes that their blocks hold.
    pub committed: u64,
    /// Bytes that are reserved and not yet committed.
    pub reserved: u64,
    /// How it is.
    pub state: Health,
    /// What is being made again.
    pub repair: Repair,
    /// What is being compared, and was.
    pub scrub: Scrub,
}

/// Copies that are made again after some were lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repair {
    /// Blocks that have fewer good copies than were asked for.
    pub lacking: u32,
    /// Copies that are being made.
    pub syncing: u32,
    /// Bytes that the blocks lack, in all copies.
    pub left: u64,
    /// Bytes that were copied a second, of late.
    pub rate: u64,
}

/// Copies that are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Passes that are to be made, the one included that is being made.
    pub passes: u32,
    /// Bytes that this one has compared, and is to compare in all, in all copies.
    pub done: u64,
    /// Nearly: blocks grow, come and go meanwhile.
    pub all: u64,
    /// Bytes that were compared a second, of late.
    pub rate: u64,
    /// When all blocks were gone through last, in seconds since 1970; 0 if this broker never did.
    pub last_at: u64,
    /// What was found then.
    pub last: ScrubFound,
}

/// What a daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DaemonState {
    /// Serves.
    Up,
    /// Is reporting what it holds.
    Joining,
    /// Its process does not answer; its memory is used on.
    Suspected,
    /// Its process is gone; its memory is used on while the objects are there.
    Away,
}

/// One daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonRow {
    /// Its id.
    pub daemon: u32,
    /// What it is doing.
    pub state: DaemonState,
    /// Its process; 0 if there is none.
    pub pid: u32,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes that its blocks hold.
    pub committed: u64,
    /// Bytes that are reserved there and not yet committed.
    pub reserved: u64,
    /// Bytes in its pool.
    pub pool: u64,
    /// Its blocks.
    pub blocks: u32,
    /// Whether all that it has moves to others, and it gets nothing new.
    pub is_draining: bool,
}

/// How well a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "design.md, table of section 10")]
pub enum BlockState {
    Ok,
    Degraded,
    Lost,
}

/// How well a copy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[allow(missing_docs, reason = "design.md, section 8")]
pub enum CopyState {
    Good,
    Syncing,
    Stale,
    Lost,
}

/// One copy of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyRow {
    /// Where it is.
    pub daemon: u32,
    /// How it is.
    pub state: CopyState,
    /// What it was made as.
    pub half: Half,
}

/// Whose something is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerRow {
    /// A session's.
    Session {
        /// Its id.
        session: u32,
        /// Its process.
        pid: u32,
        /// Its user.
        uid: u32,
    },
    /// A region's.
    Region {
        /// Its name.
        region: RegionName,
        /// Its user.
        uid: u32,
    },
}

/// One block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockRow {
    /// Its id.
    pub block: u32,
    /// Its GUID.
    pub guid: Guid,
    /// Bytes that it may grow to.
    pub bytes: u64,
    /// Bytes that it has.
    pub committed: u64,
    /// Its page size.
    pub page_size: u32,
    /// Its epoch.
    pub epoch: u64,
    /// Whose it is.
    pub owner: OwnerRow,
    /// How it is.
    pub state: BlockState,
    /// Where it is; the primary first.
    pub copies: Vec<CopyRow>,
    /// The first block of its span.
    pub span_first: u32,
    /// Blocks of its span.
    pub span_count: u32,
    /// Bytes that the copy lacks which is syncing; 0 if none is.
    pub left: u64,
    /// Who holds back what is to become of its copies; at most [`HOLDERS_MAX`] of them.
    pub held_by: Vec<Holder>,
}

/// So many of those who hold back a block are told of.
pub const HOLDERS_MAX: usize = 8;

/// Who holds back what is to become of a block's copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The session, or that of a daemon.
    pub session: u32,
    /// Its process; 0 if that is not known.
    pub pid: u32,
    /// By what.
    pub by: HeldBy,
}

/// How somebody holds back what is to become of a block's copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum HeldBy {
    /// An operation that began before it was told does not end.
    Operation,
    /// It has a pointer.
    Pointer,
    /// It has ended, and what it left is to be repaired.
    Remains,
}

/// One session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRow {
    /// Its id.
    pub session: u32,
    /// Its process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub name: String,
    /// Width of its pointers.
    pub pointer_bits: u8,
    /// Whether its connection is there.
    pub attached: bool,
    /// Bytes that were reserved at setup.
    pub reserved: u64,
    /// Committed bytes of its blocks.
    pub committed: u64,
    /// Its blocks.
    pub blocks: u32,
    /// Regions that it has open.
    pub regions: u32,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionRow {
    /// Its name.
    pub region: RegionName,
    /// Bytes.
    pub region_size: u64,
    /// What a pointer to its first byte reads.
    pub base_pointer: u64,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Nine permission bits.
    pub mode: u32,
    /// Copies there are.
    pub copies: u32,
    /// Its page size.
    pub page_size: u32,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Sessions that have it open.
    pub opens: u32,
    /// Its first address.
    pub first: u64,
    /// How it is.
    pub state: BlockState,
}

/// Where a byte is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Location {
    /// The server: 0, this host.
    pub server: u32,
    /// The offset in the block.
    pub cell: u64,
    /// The block.
    pub block: BlockRow,
    /// The processes that say they have it mapped, and where that byte is in each.
    pub mappings: Vec<MappingRow>,
}

/// A process that has a byte mapped: an entry of the OS-to-DMCE table. It is the client's claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappingRow {
    /// The session.
    pub session: u32,
    /// Its process.
    pub pid: u32,
    /// Where the byte is in that process.
    pub os_address: u64,
    /// Whether it can be written there.
    pub writable: bool,
}

/// Which entry of the OS-to-DMCE table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MappingKey {
    /// Whose.
    pub session: u32,
    /// Where it begins in that process.
    pub os_address: u64,
}

/// An entry of the OS-to-DMCE table [0058]: what a process says that it has mapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MappedRow {
    /// Which.
    pub key: MappingKey,
    /// The process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// What the session calls itself.
    pub name: String,
    /// The first DMCE address.
    pub addr: u64,
    /// Bytes.
    pub bytes: u64,
    /// Whether it can be written there.
    pub writable: bool,
}

/// Which sample, by daemon and age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SampleKey {
    /// Whose.
    pub daemon: u32,
    /// Counted from 1, for each daemon by itself.
    pub sample: u64,
}

/// A sample of a daemon's usage: what it had at a time, and what it did since the sample before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRow {
    /// Which.
    pub key: SampleKey,
    /// When it was taken, in seconds since 1970.
    pub at: u64,
    /// Bytes that the daemon may hold.
    pub capacity: u64,
    /// Bytes that its blocks hold.
    pub committed: u64,
    /// Bytes that are reserved there and not yet committed.
    pub reserved: u64,
    /// Its blocks.
    pub blocks: u32,
    /// Operations since.
    pub operations: Operations,
}

/// Memory operations of a daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
    /// Blocks made.
    pub creates: u64,
    /// Blocks made larger.
    pub grows: u64,
    /// Blocks destroyed.
    pub destroys: u64,
    /// Creates and grows that the daemon refused.
    pub refusals: u64,
}

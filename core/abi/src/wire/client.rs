//! What clients ask of the broker, and what it answers.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::admin::{AdminReply, AdminRequest};
use super::data::{DataReply, DataRequest, LinkId};
use crate::block::{BlockId, DaemonId, Guid, Half, SessionId};
use crate::limits::COPIES_MAX;

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ClientRequest {
    /// Opens a session (FIG. 13). Must be the first request that is not an [`AdminRequest`].
    Setup(Setup),
    /// Takes up a session again after the broker came back.
    Attach(Attach),
    /// Blocks for the session (FIG. 14).
    Malloc(Malloc),
    /// Gives up a [`ClientRequest::Malloc`] or [`ClientRequest::RegionCreate`] whose answer nobody
    /// waits for any more: what its ticket made, or is making, is deleted; but a region that is
    /// there stays. Done, too, if there is nothing.
    Abandon(Abandon),
    /// More committed bytes at the end of a block.
    Grow(Grow),
    /// Gives blocks back (FIG. 17).
    Delete(Delete),
    /// A descriptor of a block that the session may use.
    Fetch(Fetch),
    /// An entry of the OS-to-DMCE table (FIG. 3, 11).
    Map(Map),
    /// Takes that entry back.
    Unmap(Unmap),
    /// What became of the session's blocks since a generation.
    Changes(Changes),
    /// A block that the session cannot read any more: the broker looks for itself.
    Damaged(BlockId),
    /// What the session holds and may hold.
    Stat,
    /// Ends the session (FIG. 18).
    Disconnect,
    /// Makes a region (004).
    RegionCreate(RegionCreate),
    /// Opens a region.
    RegionOpen(RegionOpen),
    /// Ends one opening of a region. Done, too, if the session has no such opening.
    RegionClose(OpeningId),
    /// Which region has a name: what [`ClientRequest::RegionDelete`] takes.
    RegionFind(RegionName),
    /// Deletes a region (004, delete): an old key deletes none that came after it.
    RegionDelete(RegionKey),
    /// The names of the regions of a volume, sorted, a page at a time.
    RegionList(RegionList),
    /// A listing for the administrator. Needs no session.
    Admin(AdminRequest),
    /// The spans that the session has, a page at a time: who was attached anew gives back those of
    /// which it does not know.
    Spans(SpanList),
    /// The policy table.
    Policies,
    /// A [`ClientRequest::Malloc`] as a policy says, or one that waits for room.
    MallocWith(MallocWith),
    /// What has happened to the session's memory since it asked last; from then on the doorbell
    /// rings for it.
    Events,
    /// A way to the bytes of a block for who maps nothing (FIG. 2, 3).
    Reach(Reach),
    /// Something to be done to bytes by the daemon that holds them (FIG. 2).
    Data(DataRequest),
}

/// The broker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ClientReply {
    /// To [`ClientRequest::Setup`] and [`ClientRequest::Attach`]. With two descriptors: the
    /// session object, and the doorbell (an eventfd that the broker writes when the session's
    /// generation has moved).
    Ready(Ready),
    /// To [`ClientRequest::Malloc`]. With the descriptors of the first block, readable and
    /// writable.
    Granted(Granted),
    /// To [`ClientRequest::Grow`]: the block's committed bytes, at least those asked for.
    Grown {
        /// Bytes.
        committed: u64,
    },
    /// To [`ClientRequest::Fetch`]. With the descriptors of the block.
    Fetched(BlockInfo),
    /// To [`ClientRequest::Changes`].
    Changed(Changed),
    /// To [`ClientRequest::Stat`].
    Stat(SessionStat),
    /// To [`ClientRequest::RegionOpen`]. With the descriptors of the first block.
    Opened(Opened),
    /// To [`ClientRequest::RegionFind`].
    Found(RegionKey),
    /// To [`ClientRequest::RegionList`].
    Names {
        /// Sorted names.
        names: Vec<String>,
        /// Whether others follow the last of these.
        more: bool,
    },
    /// To [`ClientRequest::Admin`].
    Admin(AdminReply),
    /// Done, with nothing to say.
    Done,
    /// To [`ClientRequest::Spans`].
    Spans {
        /// By first block, rising; at most [`crate::limits::SPANS_LISTED`].
        spans: Vec<SpanKey>,
        /// Whether others follow the last of these.
        more: bool,
    },
    /// To [`ClientRequest::RegionDelete`]: the region's first block is there still, and its daemon
    /// does not answer. To be asked again.
    NotYet {
        /// That daemon.
        daemon: DaemonId,
        /// Whether the region is given up, and goes when the daemon is back. Else nothing is done,
        /// and nothing will be.
        begun: bool,
    },
    /// To [`ClientRequest::Policies`]: the table, by number from 1; at most
    /// [`crate::limits::POLICIES_MAX`].
    Policies(Vec<Policy>),
    /// To [`ClientRequest::MallocWith`]: there is no room yet. The doorbell rings when it is worth
    /// to ask again with the same ticket.
    Queued,
    /// To [`ClientRequest::Events`], the oldest first; at most
    /// [`crate::limits::EVENTS_QUEUED`].
    Events(Vec<SessionEvent>),
    /// To [`ClientRequest::Reach`]. With one descriptor, if the link is a new one: its socket.
    Reached(Reached),
    /// To [`ClientRequest::Data`].
    Data(DataReply),
}

/// Asks for a session (FIG. 13, [0083]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setup {
    /// [`crate::version::SEGMENT_VERSION`] of the client.
    pub segment_version: u32,
    /// Width of the client's pointers, for the administrator: 32 or 64.
    pub pointer_bits: u8,
    /// Bytes to reserve; 0 for none.
    pub bytes: u64,
    /// Whether a smaller reservation is fine (`DMCE_ACCEPT_PARTIAL`).
    pub accept_partial: bool,
    /// Copies of what is reserved and allocated; 0 for the instance's default.
    pub copies: u32,
    /// What the client calls itself; may be empty.
    pub name: String,
}

/// Takes up a session. The GUID is what only its client knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attach {
    /// The session's id.
    pub session: SessionId,
    /// Its GUID.
    pub guid: Guid,
    /// The openings of regions that the client was told of and has not closed. The broker closes
    /// all others, opens none, and names those that it does not have.
    pub openings: Vec<Opening>,
}

/// The session's number for an opening of a region: it has one at most with it at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OpeningId(pub u64);

/// An opening, as the client tells it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// Its number.
    pub opening: OpeningId,
    /// The region's first block.
    pub first: BlockId,
    /// Whether it was opened to be read.
    pub read: bool,
    /// Whether it was opened to be written.
    pub write: bool,
}

/// A session, ready for use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// The session's id.
    pub session: SessionId,
    /// Its GUID: what [`Attach`] must show.
    pub guid: Guid,
    /// The instance's name.
    pub instance: String,
    /// Widths of server, block and cell.
    pub layout: [u8; 3],
    /// Block ids in use are below this.
    pub block_ids: u32,
    /// Bytes that the largest block of the instance can have.
    pub block_bytes_max: u64,
    /// Bytes reserved.
    pub reserved: u64,
    /// Bytes that the user may hold in all; `u64::MAX` without a limit.
    pub quota: u64,
    /// Copies of an allocation that does not say.
    pub copies: u32,
    /// Seconds that a block may lie empty before it goes back.
    pub idle_s: u32,
    /// Whether there is a table of policies, to be asked for before the first allocation.
    pub has_policies: bool,
    /// Of the openings that [`Attach`] told, those that there are not: the client has those regions
    /// open no more. Never more than it told.
    pub unknown_openings: Vec<OpeningId>,
}

/// Asks for blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Malloc {
    /// The session's number for this request: repeated, it gives the same blocks again.
    pub ticket: u64,
    /// What is wanted.
    pub kind: MallocKind,
    /// 0 for the default; else as [`crate::block::is_page_size`] allows.
    pub page_size: u32,
    /// 0 for the session's default.
    pub copies: u32,
}

/// A [`Malloc`] with what that has no field for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MallocWith {
    /// What is wanted. Where it says 0, its policy does.
    pub malloc: Malloc,
    /// A number of the policy table; 0 for the one of its size, where it is a span.
    pub policy: u32,
    /// Whether to wait for room, and for how many milliseconds; 0 is for ever.
    pub wait_ms: Option<u32>,
}

/// How allocations of some sizes are made (002 [20]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Meant for allocations of at most so many bytes that name none; 0: only for those that name
    /// it.
    pub up_to: u64,
    /// Copies; 0 for the session's default.
    pub copies: u32,
    /// The page size; 0 for the default.
    pub page_size: u32,
    /// Bytes that a block with several allocations may grow to [0074]; 0 for as many as there is
    /// room for.
    pub block_bytes: u64,
    /// The alignment of what does not say; 0 for the default.
    pub align: u32,
    /// Whether what does not say waits for room, and for how many milliseconds; 0 is for ever.
    pub wait_ms: Option<u32>,
}

/// What happened to the memory of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SessionEvent {
    /// A daemon, or the whole instance, is nearly full.
    Pressure {
        /// Bytes that all daemons together have left.
        left: u64,
    },
    /// There is room again for what was refused (003, the resource available signal).
    Available {
        /// Bytes that the session could have in one block.
        bytes: u64,
    },
    /// Memory of the session is lost, or of a region that it has open.
    Lost {
        /// The first address of the block.
        addr: u64,
        /// Bytes that it had.
        bytes: u64,
    },
    /// A copy of such memory is lost, and another is not: nothing is missing.
    CopyLost {
        /// The first address of the block.
        addr: u64,
        /// Bytes that it has.
        bytes: u64,
    },
    /// Such memory has all its copies again.
    CopiesRestored {
        /// The first address of the block.
        addr: u64,
        /// Bytes that it has.
        bytes: u64,
    },
}

/// Gives a [`Malloc`] or a [`RegionCreate`] up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Abandon {
    /// Its ticket.
    pub ticket: u64,
}

/// One growing block, or a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MallocKind {
    /// A block of the largest size there is room for, with so many bytes committed at first.
    Heap {
        /// Bytes.
        committed: u64,
    },
    /// So many bytes, committed, on consecutive blocks; each but the last is full.
    Span {
        /// Bytes.
        bytes: u64,
    },
}

/// The blocks of a [`Malloc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// The first block. The others of the span follow by id, and are fetched when they are used.
    pub first: BlockInfo,
    /// Bytes that are committed in the last block of the span.
    pub last_committed: u64,
}

/// What a client knows of a block.
#[expect(clippy::struct_excessive_bools, reason = "each says something else of the block")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockInfo {
    /// The block.
    pub block: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// Its epoch.
    pub epoch: u64,
    /// Bytes that may be used.
    pub committed: u64,
    /// Bytes that it may grow to.
    pub bytes_max: u64,
    /// The span that it is part of.
    pub span_first: BlockId,
    /// Blocks of that span.
    pub span_count: u32,
    /// Its page size.
    pub page_size: u32,
    /// Whether the descriptors that came with this can write.
    pub writable: bool,
    /// Whether its bytes are gone. Then no descriptor came.
    pub lost: bool,
    /// Its good copies, the primary first, and then nothing. None of a lost block.
    pub copies: [Option<CopyInfo>; COPIES_MAX as usize],
    /// Another that is syncing: it is written, and not read.
    pub syncing: Option<CopyInfo>,
    /// Whether it has a lock table, which a lost block has not.
    pub has_locks: bool,
    /// Whether its primary is about to be another: no pointer into it is given until the session is
    /// told of the next change.
    pub is_moving: bool,
}

impl BlockInfo {
    /// Descriptors that come with this: one of the data of each copy that is written, then one of
    /// the lock table. With [`Reached`] none of them comes.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        self.written().count() + usize::from(self.has_locks)
    }

    /// Its good copies, the primary first.
    pub fn good(&self) -> impl Iterator<Item = CopyInfo> {
        self.copies.into_iter().flatten()
    }

    /// The copies that a write goes to: the good ones, and then that which is syncing.
    pub fn written(&self) -> impl Iterator<Item = CopyInfo> {
        self.good().chain(self.syncing)
    }

    /// The daemons of those.
    pub fn daemons(&self) -> impl Iterator<Item = DaemonId> {
        self.good().map(|copy| copy.daemon)
    }
}

/// A copy of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyInfo {
    /// Whose it is: what intents call a copy.
    pub daemon: DaemonId,
    /// The first epoch in which it was written; 0 if it was made with the block.
    pub since: u64,
    /// What it was made as.
    pub half: Half,
}

/// Asks for more bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grow {
    /// The block.
    pub block: BlockId,
    /// Bytes that it is to have in all.
    pub committed: u64,
}

/// Gives a block or a span back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delete {
    /// The address of its first byte.
    pub addr: u64,
    /// Its GUID, as [`BlockInfo`] or the span told it: an old handle frees nobody else's block.
    pub guid: Guid,
}

/// Asks for the session's own spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanList {
    /// Spans that begin behind this block; 0 for the first.
    pub after: u32,
}

/// Names a span of a session for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpanKey {
    /// Its first block.
    pub first: BlockId,
    /// The GUID of that block, as [`Granted`] told it.
    pub guid: Guid,
}

/// Asks for a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fetch {
    /// The block.
    pub block: BlockId,
    /// Whether it is to be written.
    pub writable: bool,
}

/// Asks for a way to the bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// The block.
    pub block: BlockId,
    /// Whether it is to be written.
    pub writable: bool,
    /// Whether a link to its daemon is wanted (FIG. 3). Else the bytes are reached by
    /// [`ClientRequest::Data`].
    pub direct: bool,
    /// A link that is of no more use to the client; 0 for none.
    pub broken: LinkId,
}

/// A way to the bytes of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reached {
    /// The block.
    pub info: BlockInfo,
    /// The link over which the block is granted; 0 if there is none.
    pub link: LinkId,
}

/// Says where a range of addresses is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Map {
    /// The first DMCE address.
    pub addr: u64,
    /// Bytes.
    pub bytes: u64,
    /// The first OS address in the client's process.
    pub os_address: u64,
    /// Whether it can be written there.
    pub writable: bool,
}

/// Says that a mapping is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unmap {
    /// The first OS address, as [`Map`] told it.
    pub os_address: u64,
}

/// Asks what changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The generation up to which the client knows all.
    pub since: u64,
}

/// What changed. The client drops what it knows of these blocks and fetches them again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The generation up to which this tells all.
    pub upto: u64,
    /// The blocks.
    pub blocks: Vec<BlockId>,
    /// Too much changed, or too long ago: drop everything.
    pub all: bool,
}

/// What a session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStat {
    /// Bytes that were reserved at setup.
    pub reserved: u64,
    /// Committed bytes of its blocks.
    pub committed: u64,
    /// Its blocks.
    pub blocks: u64,
    /// Bytes that the user may hold in all; `u64::MAX` without a limit.
    pub quota: u64,
}

/// A region's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RegionName {
    /// The volume.
    pub volume: String,
    /// The region.
    pub name: String,
}

/// Makes a region (004, create).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionCreate {
    /// The session's number for this request: repeated, it finds the region made.
    pub ticket: u64,
    /// What it is to be called.
    pub region: RegionName,
    /// Bytes.
    pub region_size: u64,
    /// What a pointer to its first byte reads.
    pub base_pointer: u64,
    /// Nine permission bits; 0 for the default, 0600.
    pub mode: u32,
    /// 0 for the instance's default.
    pub copies: u32,
    /// 0 for the default.
    pub page_size: u32,
}

/// Opens a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionOpen {
    /// The session's number for this opening: repeated, it gives the same opening again.
    pub opening: OpeningId,
    /// Which.
    pub region: RegionName,
    /// Whether it is to be read.
    pub read: bool,
    /// Whether it is to be written.
    pub write: bool,
}

/// Names a region for ever: ids are used again, GUIDs are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionKey {
    /// Its first block.
    pub first: BlockId,
    /// Its GUID.
    pub guid: Guid,
}

/// An open region (004 [84]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its first block, as a Fetch would tell it. Its descriptors come along.
    pub first: BlockInfo,
    /// Names this region for ever.
    pub guid: Guid,
    /// Bytes.
    pub region_size: u64,
    /// What a pointer to its first byte reads.
    pub base_pointer: u64,
    /// Copies there are.
    pub copies: u32,
    /// The daemon of the first block's primary copy.
    pub primary_daemon: u32,
    /// The daemon of its mirror; 0 for none.
    pub mirror_daemon: u32,
}

/// Asks for names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionList {
    /// The volume.
    pub volume: String,
    /// Names after this one; empty for the first.
    pub after: String,
}

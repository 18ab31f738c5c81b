//! What happens: everything that the dispatcher learns, it learns from an [`Event`].
//!
//! # Invariants
//!
//! 1. An event is a fact or a peer's claim, never a decision. What a peer says has been decoded,
//!    and nothing else about it has been checked.
//! 2. The shell delivers the events of one connection in the order in which they happened, and none
//!    for a connection after its hang-up or after the dispatcher closed it.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::ClientRequest;
use dmce_abi::wire::daemon::{DaemonMessage, HeldBlock, PoolPlace};
use dmce_shm::session::pin::PinClaim;
use dmce_shm::slot::intent::IntentClaim;

/// Milliseconds of a clock that never goes back. Its start means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `millis` later; at the end of time, the end of time.
    #[must_use]
    pub const fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }
}

/// What the clocks show at an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines.
    pub millis: Millis,
    /// Seconds since 1970, for what people read.
    pub unix_s: u64,
}

/// A connection of a client. The shell numbers them and never gives a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientConn(pub u64);

/// A connection of a daemon. The shell numbers them and never gives a number twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DaemonConn(pub u64);

/// The number of a request on its connection; 0 wants no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// The number of an [`super::Action::Inspect`], which its [`Event::Inspected`] repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InspectId(pub u64);

/// The number of an [`super::Action::RaiseEpoch`], which its [`Event::EpochRaised`] repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RaiseId(pub u64);

/// Who a peer is, as the kernel says (`SO_PEERCRED`, `SO_PEERGROUPS`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its process.
    pub pid: u32,
    /// When it was taken in, in clock ticks since boot. The process had started by then; another
    /// that gets the pid later starts later.
    pub lived_at: u64,
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Its supplementary groups.
    pub groups: Vec<u32>,
}

/// Rights on a region, as a session record stores them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rights {
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

impl Rights {
    /// Both.
    pub const ALL: Self = Self { read: true, write: true };

    /// The rights of either.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self { read: self.read || other.read, write: self.write || other.write }
    }

    /// Whether there is any.
    #[must_use]
    pub const fn any(self) -> bool {
        self.read || self.write
    }

    /// Whether `self` has all of `other`.
    #[must_use]
    pub const fn covers(self, other: Self) -> bool {
        (self.read || !other.read) && (self.write || !other.write)
    }
}

/// What a session record says (docs/shared-memory.md, section 5), boot id and grants apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRecord {
    /// The session's id.
    pub session: SessionId,
    /// Its GUID.
    pub guid: Guid,
    /// Its process.
    pub pid: u32,
    /// A moment at which that process lived, in clock ticks since boot.
    pub lived_at: u64,
    /// Its user.
    pub uid: u32,
    /// Its primary group.
    pub gid: u32,
    /// Bytes of its reservation.
    pub reserved: u64,
    /// Seconds since 1970.
    pub created_at: u64,
    /// Width of its pointers; [`SessionRecord::OF_DAEMON`] of one that is no client's.
    pub pointer_bits: u8,
    /// Copies of what it allocates.
    pub copies: u32,
    /// What it calls itself.
    pub name: String,
}

impl SessionRecord {
    /// The `pointer_bits` of a daemon's session, by which it writes blocks of several copies.
    pub const OF_DAEMON: u8 = 0;

    /// Whether it is a daemon's.
    #[must_use]
    pub const fn is_of_daemon(&self) -> bool {
        self.pointer_bits == Self::OF_DAEMON
    }
}

/// A grant in a session record: one opening of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Its place among the grants of the record.
    pub place: u32,
    /// The region's first block.
    pub block: BlockId,
    /// What the session may do with the region.
    pub rights: Rights,
}

/// A session that lived under the broker before this one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BelievedSession {
    /// Its record.
    pub record: SessionRecord,
    /// The generation word of its session object: a claim, since the session can write it.
    pub generation: u64,
    /// The grants of its record.
    pub grants: Vec<Grant>,
    /// Whether its process still lives (the same boot id, and a process of that pid that had
    /// started by then).
    pub lives: bool,
}

/// What the slots of a session that has ended were changing, and its pointers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FoundIntents {
    /// By slot, of those that are in no operation any more: claims.
    pub claims: Vec<(u8, IntentClaim)>,
    /// Whether that are all slots: none is in an operation.
    pub is_all: bool,
    /// Where its pointers could store: claims.
    pub pins: Vec<PinClaim>,
    /// Whether its process is gone, and stores nothing any more.
    pub is_gone: bool,
}

impl FoundIntents {
    /// Nothing, and nothing can be any more.
    #[must_use]
    pub const fn none() -> Self {
        Self { claims: Vec::new(), is_all: true, pins: Vec::new(), is_gone: true }
    }
}

/// What became of an [`super::Action::Repair`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// All good copies are equal there, and nobody is kept waiting by the dead slot.
    Done {
        /// Pages of the block that are lost: nothing could be made whole from. With a lock table
        /// this is said there.
        lost: Vec<u64>,
    },
    /// A copy could not be read or written.
    Copy {
        /// Whose.
        daemon: DaemonId,
        /// Why, for the log.
        reason: String,
    },
    /// Somebody holds a page that is to be carried: nothing was done.
    Busy,
    /// The lock table could not be.
    Table {
        /// Why, for the log.
        reason: String,
    },
}

/// An object of a daemon's pool that the broker may make a block of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    /// Which of the daemon's.
    pub place: PoolPlace,
    /// Bytes that are committed.
    pub bytes: u64,
}

/// What became of an [`super::Action::MakeBlock`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// The block was whole while its daemon lived.
    Whole,
    /// Something else has its name.
    NameTaken {
        /// What was found, for the log.
        reason: String,
    },
    /// The object cannot be used. Nothing of the block is there.
    Unusable {
        /// Why, for the log.
        reason: String,
    },
}

/// A lock table that the broker found when it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FoundTable {
    /// The block, as its name says.
    pub block: BlockId,
    /// Which block of that id it is of; `None` if it does not say so, or cannot be read.
    pub guid: Option<Guid>,
    /// Bytes of the block that it has words for.
    pub bytes: u64,
}

/// What became of a header that was to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// It says what it was to say.
    Written,
    /// What has its name is no sound header of that block, or there are no data: the copy is lost.
    Gone {
        /// What was found, for the log.
        reason: String,
    },
    /// It could not be written now. Which of the two it says is not known.
    Failed {
        /// Why, for the log.
        reason: String,
    },
}

/// What the names in the shared memory folder say about one daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundDaemon {
    /// The daemon.
    pub daemon: DaemonId,
    /// The blocks of every `data-` and `head-` name, valid or not.
    pub blocks: Vec<BlockId>,
    /// Of these, the blocks that have a `head-` name, and no sound header and data: they were made,
    /// and are damaged.
    pub damaged: Vec<BlockId>,
    /// What is known of its blocks now.
    pub content: FoundContent,
}

/// The headers of a daemon, as the shell has read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// What the sound ones say, with the size of the data.
    pub held: Vec<HeldBlock>,
    /// Blocks that were made, and whose objects could not be read or are not sound.
    pub damaged: Vec<BlockId>,
}

/// How the broker learns what a daemon's objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundContent {
    /// Its lock is held: it will report.
    Expected,
    /// Its lock is free: these are the valid headers, read by the shell, with the data's size.
    Read(Vec<HeldBlock>),
}

/// What the shell found when the broker started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Sessions to believe in, and those whose processes are gone, and that may have to be
    /// repaired. The shell removed the objects of all others.
    pub sessions: Vec<BelievedSession>,
    /// Every daemon of which there is a name.
    pub daemons: Vec<FoundDaemon>,
    /// The lock tables of this user, sound or not.
    pub tables: Vec<FoundTable>,
    /// Daemons that are drained.
    pub draining: BTreeSet<DaemonId>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker serves. Once, before all other events.
    Started(Started),

    /// A client connected.
    Connected {
        /// Its connection.
        conn: ClientConn,
        /// Who it is.
        peer: Peer,
    },
    /// When the process of a client started, in clock ticks since boot. It comes before a request
    /// to attach, if the process is there.
    ProcessStarted {
        /// The client's connection.
        conn: ClientConn,
        /// The time.
        at: u64,
    },
    /// A client asked for something.
    Request {
        /// Its connection.
        conn: ClientConn,
        /// What the reply must repeat.
        request_id: RequestId,
        /// What it asked for.
        request: ClientRequest,
    },
    /// A client sent something that is no message, or another version's: its session ends.
    Hostile {
        /// Its connection.
        conn: ClientConn,
        /// For the log.
        reason: String,
    },
    /// A client's connection is gone, or the shell dropped it because the client did not read.
    HungUp {
        /// The connection.
        conn: ClientConn,
    },
    /// The process of a session is gone (pidfd), or was gone when it was to be watched.
    Died {
        /// The session.
        session: SessionId,
    },
    /// A client changed the size of its session object: its session ends.
    Misused {
        /// The session.
        session: SessionId,
        /// For the log.
        reason: String,
    },
    /// Answers [`super::Action::CreateSession`].
    SessionCreated {
        /// The session.
        session: SessionId,
        /// What a client is to be told if its objects could not be made.
        result: Result<(), Refusal>,
    },

    /// Answers [`super::Action::PrepareSession`].
    SessionPrepared {
        /// The session.
        session: SessionId,
        /// Why its objects could not be made.
        result: Result<(), Refusal>,
    },

    /// A daemon connected.
    DaemonConnected {
        /// Its connection.
        conn: DaemonConn,
        /// Who it is.
        peer: Peer,
    },
    /// A daemon sent a message.
    DaemonMessage {
        /// Its connection.
        conn: DaemonConn,
        /// For a reply: the request's number. Else 0.
        request_id: RequestId,
        /// What it sent.
        message: DaemonMessage,
    },
    /// A daemon sent something that is no message.
    DaemonHostile {
        /// Its connection.
        conn: DaemonConn,
        /// For the log.
        reason: String,
    },
    /// A daemon's connection is gone.
    DaemonHungUp {
        /// The connection.
        conn: DaemonConn,
    },
    /// Answers [`super::Action::MakeBlock`].
    BlockMade {
        /// The daemon that has lent the object.
        daemon: DaemonId,
        /// The number of the action.
        request_id: RequestId,
        /// What became of it.
        made: Made,
    },
    /// Answers [`super::Action::RaiseEpoch`].
    EpochRaised {
        /// The number of the action.
        raise: RaiseId,
        /// The block.
        block: BlockId,
        /// Each header that was to be written.
        headers: Vec<(DaemonId, Rewritten)>,
    },
    /// Answers [`super::Action::MakeLocks`].
    LocksMade {
        /// The block.
        block: BlockId,
        /// The epoch that the action named.
        epoch: u64,
        /// What became of it.
        made: Made,
    },
    /// Answers [`super::Action::GrowLocks`].
    LocksGrown {
        /// The number of the action.
        request_id: RequestId,
        /// What became of it.
        made: Made,
    },
    /// Answers [`super::Action::InspectLocks`], and tells of a table that could not be opened for a
    /// reply, since there is none.
    LocksInspected {
        /// The block.
        block: BlockId,
        /// The table, as far as there is one.
        found: Option<FoundTable>,
    },
    /// Answers [`super::Action::AwaitIdle`]: no operation of the session is in flight any more that
    /// was when its generation was published last.
    Idle {
        /// The session.
        session: SessionId,
        /// The block of the action.
        block: BlockId,
        /// The epoch of the action.
        epoch: u64,
    },
    /// Answers [`super::Action::FindPointers`].
    PointersFound {
        /// The session.
        session: SessionId,
        /// The block of the action.
        block: BlockId,
        /// The epoch of the action.
        epoch: u64,
        /// Whether it has pointers there.
        has_some: bool,
    },
    /// Answers [`super::Action::ReadIntents`].
    IntentsRead {
        /// The session.
        session: SessionId,
        /// What was found; or why nothing can be: its client cut its object.
        found: Result<FoundIntents, String>,
    },
    /// Answers [`super::Action::Repair`].
    Repaired {
        /// The session.
        session: SessionId,
        /// The slot.
        slot: u8,
        /// What became of it.
        repaired: Repaired,
    },
    /// Answers [`super::Action::AwaitLock`]: nobody serves the daemon, and this is what it left.
    LockFree {
        /// The daemon.
        daemon: DaemonId,
        /// What it left.
        headers: Headers,
    },
    /// Answers [`super::Action::ReadHeaders`]: what a daemon holds that does not report.
    HeadersRead {
        /// The daemon.
        daemon: DaemonId,
        /// What it held when they were read. It lives, and may change that.
        headers: Headers,
    },
    /// Answers [`super::Action::Inspect`].
    Inspected {
        /// The number of the question.
        inspect: InspectId,
        /// Whose objects they are.
        daemon: DaemonId,
        /// For some of the blocks the size of the data object, or `None` if there is no object of
        /// the right kind. A block whose object could not be looked at is in no part.
        found: Vec<(BlockId, Option<u64>)>,
    },
    /// A descriptor of a [`super::Action::Reply`] could not be opened, since there is no such
    /// object: the dispatcher looks at the block.
    OpenFailed {
        /// Whose object it is.
        daemon: DaemonId,
        /// The block.
        block: BlockId,
    },
    /// Behind that: the answer was not sent, and the request is to be served again.
    NotOpened {
        /// The client's connection.
        conn: ClientConn,
        /// The request's number.
        request_id: RequestId,
        /// What was asked.
        request: Box<ClientRequest>,
    },
    /// The time of the last [`super::Action::WakeAt`] has come. One that comes early does no harm.
    Tick,
}

//! What is to be done: the dispatcher acts through [`Action`]s alone.
//!
//! # Invariants
//!
//! 1. The shell executes the actions of a step in their order, and all of them before the next
//!    step.
//! 2. What the order protects: grants are stored before the opener is answered, a generation is
//!    published before the blocks it speaks of are destroyed, a session's record goes before its
//!    blocks are destroyed, headers are written before a generation speaks of them, a generation is
//!    published before the marks are looked at.
//! 3. All generations of a step are published before anybody is answered: who is told which copies
//!    a block has meets nobody who was not told that these are others.
//! 4. An action on a connection that has hung up meanwhile does nothing.

use std::ops::Range;

use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, SessionId};
use dmce_abi::rate::Rate;
use dmce_abi::wire;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::daemon::DaemonRequest;
use dmce_abi::wire::data::{LinkGrant, LinkId};
use dmce_shm::copies::Wreck;

use super::event::{
    ClientConn, DaemonConn, Grant, InspectId, Lent, Millis, RaiseId, RequestId, SessionRecord,
};

/// A descriptor that travels with a reply. The shell opens it by name, at the time of the reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// The data of a block. If there is no such object, the shell delivers
    /// [`super::Event::OpenFailed`], and then [`super::Event::NotOpened`]; if that cannot be, or
    /// the object cannot be opened otherwise, it answers the request with a refusal.
    Block {
        /// Whose object it is.
        daemon: DaemonId,
        /// The block.
        block: BlockId,
        /// Whether it is opened for writing too.
        writable: bool,
    },
    /// The lock table of a block. If there is none, the shell delivers
    /// [`super::Event::LocksInspected`], and goes on as with data.
    Locks {
        /// The block.
        block: BlockId,
        /// Whether it is opened for writing too.
        writable: bool,
        /// Who gets it. If it is to write, its undo buffers are committed before; without room for
        /// them the request is refused.
        session: SessionId,
    },
    /// The session object, to read and write.
    SessionObject(SessionId),
    /// The session's eventfd; the shell makes it at the first use.
    Doorbell(SessionId),
    /// The client's end of a new link. The shell sends the other end to the daemon with a
    /// [`DaemonRequest::Link`], or refuses the request with `BUSY`.
    Link {
        /// The daemon's connection.
        conn: DaemonConn,
        /// The link's number.
        link: LinkId,
        /// Whose it is.
        session: SessionId,
        /// The user of that session.
        uid: u32,
        /// How much that user may ask for over links to this daemon.
        rate: Rate,
        /// The first grant.
        grant: LinkGrant,
    },
}

/// How grave a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogLevel {
    /// Memory is lost, or state contradicts itself.
    Error,
    /// A peer misbehaved, or something runs with less than it should.
    Warn,
    /// Who came and went.
    Info,
    /// What a developer wants to know.
    Debug,
}

/// What a slot of a session that has ended was writing: the good copies of a block are made equal
/// there, the locks of that slot given back, and those woken who wait for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// The session.
    pub session: SessionId,
    /// The slot.
    pub slot: u8,
    /// What it was writing, as far as that can be true.
    pub wreck: Wreck,
    /// The block.
    pub block: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// The daemons of its good copies, the primary's first; behind them that of one which goes, in
    /// whose place another is: who was not told yet may have written that first.
    pub copies: Vec<DaemonId>,
    /// Bytes that all of these have.
    pub committed: u64,
    /// Whether it has a lock table. Without one nobody writes to the block, and all that the slot
    /// may have been writing is made equal.
    pub has_locks: bool,
    /// If a pointer stored there, and no slot was writing: address and bytes. The slot gets an
    /// intent that says so, and the locks, unless somebody holds one.
    pub carried: Option<(u64, u64)>,
}

/// Something that the shell does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answers a client. A client that does not read its answers is dropped:
    /// [`super::Event::HungUp`].
    Reply {
        /// The client's connection.
        conn: ClientConn,
        /// The request's number; never 0.
        request_id: RequestId,
        /// The answer.
        reply: wire::Reply<ClientReply>,
        /// What travels with it, in this order: all of it, or the answer is not sent.
        descriptors: Vec<Descriptor>,
        /// What was asked, where it can be served again: for [`super::Event::NotOpened`].
        again: Option<Box<ClientRequest>>,
    },
    /// Ends a client's connection, after what was sent. No event follows for it.
    CloseClient {
        /// The connection.
        conn: ClientConn,
        /// For the log.
        reason: String,
    },

    /// Does not read a client's connection any more, until [`Action::ReadClient`]. What was read of
    /// it before is delivered, and so is its hang-up; what was not read then is lost with it.
    HoldClient {
        /// The connection.
        conn: ClientConn,
    },
    /// Reads a client's connection again.
    ReadClient {
        /// The connection.
        conn: ClientConn,
    },

    /// Makes the session object (generation 0) and a record that is not ready, of a session that
    /// nobody has yet; then delivers [`super::Event::SessionPrepared`]. What failed half-way is
    /// removed by `EndSession`.
    PrepareSession {
        /// The session.
        session: SessionId,
        /// Its GUID.
        guid: Guid,
    },
    /// Makes the session object (generation 0), then the record, then delivers
    /// [`super::Event::SessionCreated`]. Of a session that was prepared only the record is left to
    /// be written. What failed half-way is removed by `EndSession`.
    CreateSession {
        /// What the record is to say.
        record: SessionRecord,
    },
    /// Watches the process by a pidfd until `EndSession`: [`super::Event::Died`]. If the process
    /// is gone, or who has its pid started later, that event comes at once.
    WatchProcess {
        /// The session whose process it is.
        session: SessionId,
        /// The process.
        pid: u32,
        /// When it lived, in clock ticks since boot.
        lived_at: u64,
        /// Its connection, where there is one: the socket may know the pidfd.
        conn: Option<ClientConn>,
    },
    /// Ends what there is of a session: its watch, and its record, so that no broker believes in it
    /// any more. Record, session object and doorbell are removed now or a little later.
    EndSession {
        /// The session.
        session: SessionId,
    },
    /// Writes a grant into a session record.
    StoreGrant {
        /// The session.
        session: SessionId,
        /// The grant and its place.
        grant: Grant,
    },
    /// Frees a place among the grants of a session record.
    RevokeGrant {
        /// The session.
        session: SessionId,
        /// The place.
        place: u32,
    },
    /// Makes a block of an object that a daemon has lent: its name, its size, its header (section
    /// 2 of `docs/shared-memory.md`). Then [`super::Event::BlockMade`], unless the daemon's
    /// connection has ended by then: its hang-up is on its way.
    MakeBlock {
        /// Whose object it is.
        daemon: DaemonId,
        /// That daemon's connection.
        conn: DaemonConn,
        /// What the event repeats.
        request_id: RequestId,
        /// The object.
        lent: Lent,
        /// What the header is to say.
        description: Box<BlockDescription>,
        /// Bytes that the block is to have; at most those of the object.
        committed: u64,
    },
    /// Writes the headers of a block's copies anew, be their daemons there or not, in place of a
    /// header of the same block and GUID, or of none; then [`super::Event::EpochRaised`]. A copy
    /// whose object is gone, or shorter than it must be, is gone.
    RaiseEpoch {
        /// What the event repeats.
        raise: RaiseId,
        /// The block.
        block: BlockId,
        /// Bytes that each copy has.
        committed: u64,
        /// Of each copy the daemon, and what the header is to say.
        headers: Vec<(DaemonId, BlockDescription)>,
    },
    /// Removes the header of a copy that is not one of its block's any more, if nobody serves its
    /// daemon: without it, that daemon removes the rest when it starts.
    RemoveHeader {
        /// Whose object it is.
        daemon: DaemonId,
        /// The block.
        block: BlockId,
        /// Its GUID.
        guid: Guid,
    },
    /// Makes the lock table of a block, in place of what this user has under its name, with words
    /// for so many bytes of the block; then [`super::Event::LocksMade`].
    MakeLocks {
        /// The session that is to have the block, if it is one's: its undo buffers are committed
        /// before.
        session: Option<SessionId>,
        /// The block.
        block: BlockId,
        /// Its GUID.
        guid: Guid,
        /// Its epoch.
        epoch: u64,
        /// Bytes of the block.
        bytes: u64,
        /// Pages that it says are lost.
        lost: Vec<u64>,
    },
    /// Gives a lock table words for more bytes of its block; then [`super::Event::LocksGrown`].
    GrowLocks {
        /// What the event repeats.
        request_id: RequestId,
        /// The block.
        block: BlockId,
        /// Its GUID.
        guid: Guid,
        /// Bytes of the block in all.
        bytes: u64,
    },
    /// Removes the lock table of a block, if there is one.
    RemoveLocks {
        /// The block.
        block: BlockId,
    },
    /// Looks at the lock table of a block and delivers [`super::Event::LocksInspected`].
    InspectLocks {
        /// The block.
        block: BlockId,
    },
    /// Delivers [`super::Event::Idle`] when each slot of the session that is marked now was not,
    /// or was marked anew. What cannot be looked at is [`super::Event::Misused`].
    AwaitIdle {
        /// The session. Its generation has been published.
        session: SessionId,
        /// What the event repeats.
        block: BlockId,
        /// What the event repeats.
        epoch: u64,
    },
    /// Looks whether a session has pointers into a range of addresses; then
    /// [`super::Event::PointersFound`]. What cannot be looked at is [`super::Event::Misused`].
    FindPointers {
        /// The session, which was found idle since it was told that none are given.
        session: SessionId,
        /// What the event repeats.
        block: BlockId,
        /// What the event repeats.
        epoch: u64,
        /// The addresses.
        addrs: Range<u64>,
    },
    /// Looks what the slots of a session were changing that has ended: of all slots, if its process
    /// is gone, else of those that are in no operation. Then [`super::Event::IntentsRead`].
    ReadIntents {
        /// The session. Its generation was published after its end.
        session: SessionId,
        /// Its process.
        pid: u32,
        /// When that lived, in clock ticks since boot.
        lived_at: u64,
    },
    /// Makes copies of a block equal; then [`super::Event::Repaired`], after others have had their
    /// turn.
    Repair(Repair),
    /// Takes the intent of a slot away that was repaired.
    ClearIntent {
        /// The session.
        session: SessionId,
        /// The slot.
        slot: u8,
    },
    /// Frees a pin of a session that has ended.
    FreePin {
        /// The session.
        session: SessionId,
        /// Which.
        pin: u16,
    },
    /// Stores the generation word of a session object, issues the `membarrier`, rings the doorbell.
    Publish {
        /// The session.
        session: SessionId,
        /// The word.
        generation: u64,
    },
    /// Rings the doorbell of a session, whose generation has not moved.
    Ring {
        /// The session.
        session: SessionId,
    },

    /// Remembers that a daemon is drained, or not any more: [`super::Started::draining`].
    RememberDrain {
        /// The daemon.
        daemon: DaemonId,
        /// Whether it is.
        is_draining: bool,
    },
    /// Asks a daemon for something.
    ToDaemon {
        /// Its connection.
        conn: DaemonConn,
        /// What its reply must repeat; 0 for [`DaemonRequest::Settled`], which has none.
        request_id: RequestId,
        /// What is asked.
        request: DaemonRequest,
    },
    /// Ends a daemon's connection. No event follows for it.
    CloseDaemon {
        /// The connection.
        conn: DaemonConn,
        /// For the log.
        reason: String,
    },
    /// Delivers [`super::Event::LockFree`] when nobody holds the daemon's lock any more.
    AwaitLock {
        /// The daemon.
        daemon: DaemonId,
    },
    /// The lock of that daemon is not waited for any more: the daemon has reported.
    ForgetLock {
        /// The daemon.
        daemon: DaemonId,
    },
    /// Reads the headers of a daemon that lives and does not report, and delivers
    /// [`super::Event::HeadersRead`]. Its lock is waited for as before.
    ReadHeaders {
        /// The daemon.
        daemon: DaemonId,
    },
    /// Looks at data objects by name and delivers [`super::Event::Inspected`], for many of them in
    /// several parts.
    Inspect {
        /// The number that the event must repeat.
        inspect: InspectId,
        /// Whose objects they are.
        daemon: DaemonId,
        /// The blocks; may be all of a daemon.
        blocks: Vec<BlockId>,
    },

    /// Writes a line to the log.
    Log {
        /// How grave it is.
        level: LogLevel,
        /// The line.
        text: String,
    },
    /// Delivers [`super::Event::Tick`] at that time. Replaces the time that was said before.
    WakeAt(Millis),
}

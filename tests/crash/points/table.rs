//! Which process dies at which point, and over what.
//!
//! Each point has a row, or stands in [`UNTRIED`] until there is one for it.

use dmce_sys::crash::Point;

/// What is done until somebody dies over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A client writes to a region, to which another one writes as well.
    Writes,
    /// The same, with writes of so few bytes that they are always saved.
    SmallWrites,
    /// As [`Work::Writes`], when all copies but one are lost.
    LastCopy,
    /// A client writes to one half of a region, to both of which another one writes.
    OneHalf,
    /// A client has pointers made.
    Pointers,
    /// Sessions do all that they ask servers for.
    Sessions,
    /// A client that maps nothing writes to a region, to which a mapped one writes as well.
    Relays,
    /// A server starts, with what the one before has left.
    Start,
    /// The same, with an object that is longer than it may be.
    StartWithExcess,
    /// Somebody removes a header.
    LostHeader,
    /// A daemon that lives loses what it holds.
    LostCopies,
    /// One that lives loses the primary of a region that a session has mapped.
    LostPrimary,
    /// One that lives loses what it holds, and that is made again on others.
    Syncing,
    /// Regions are deleted, and a daemon is away that has lost its copies of them.
    Deletions,
    /// A client has died when one copy was written: its bytes are taken back.
    RollBack,
    /// A client has died with a pointer by which it has stored.
    Carry,
    /// A client has died when the other copies were being written: they get its bytes.
    RollForward,
}

/// A death.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Where.
    pub point: Point,
    /// At which time that it is passed.
    pub time: u64,
    /// Over what.
    pub work: Work,
    /// Copies of all regions and allocations.
    pub copies: u32,
}

/// With one copy of everything.
const fn at(point: Point, time: u64, work: Work) -> Row {
    Row { point, time, work, copies: 1 }
}

impl Row {
    /// With two of everything.
    const fn with_copies(self) -> Self {
        Self { copies: 2, ..self }
    }

    /// With three of everything.
    const fn with_three(self) -> Self {
        Self { copies: 3, ..self }
    }
}

/// Deaths of a client.
pub const CLIENT: &[Row] = &[
    at(Point::SlotMarked, 60, Work::Writes),
    at(Point::SlotUnmarked, 60, Work::Writes),
    at(Point::PinTaken, 1, Work::Pointers),
    at(Point::PinTaken, 7, Work::Pointers),
    at(Point::PinFreed, 1, Work::Pointers),
    at(Point::SlotMarked, 60, Work::Writes).with_copies(),
    at(Point::IntentSet, 40, Work::Writes).with_copies(),
    at(Point::PageLocked, 40, Work::Writes).with_copies(),
    at(Point::PageLocked, 41, Work::Writes).with_copies(),
    at(Point::SequenceOdd, 40, Work::Writes).with_copies(),
    at(Point::SequenceOdd, 41, Work::Writes).with_copies(),
    at(Point::UndoSaved, 1, Work::Writes).with_copies(),
    at(Point::UndoSaved, 30, Work::Writes).with_copies(),
    at(Point::PhaseFirst, 1, Work::Writes).with_copies(),
    at(Point::PhaseFirst, 30, Work::Writes).with_copies(),
    at(Point::FirstStored, 30, Work::Writes).with_copies(),
    at(Point::PhaseOthers, 1, Work::Writes).with_copies(),
    at(Point::PhaseOthers, 30, Work::Writes).with_copies(),
    at(Point::OthersStored, 30, Work::Writes).with_copies(),
    at(Point::PhaseSettled, 30, Work::Writes).with_copies(),
    at(Point::SequenceEven, 40, Work::Writes).with_copies(),
    at(Point::SequenceEven, 41, Work::Writes).with_copies(),
    at(Point::PageFreed, 40, Work::Writes).with_copies(),
    at(Point::PageFreed, 41, Work::Writes).with_copies(),
    at(Point::IntentCleared, 40, Work::Writes).with_copies(),
    at(Point::UndoSaved, 30, Work::SmallWrites).with_copies(),
    at(Point::PhaseFirst, 30, Work::SmallWrites).with_copies(),
    at(Point::FirstStored, 30, Work::SmallWrites).with_copies(),
    at(Point::PhaseOthers, 30, Work::SmallWrites).with_copies(),
    at(Point::OthersStored, 30, Work::SmallWrites).with_copies(),
    at(Point::FirstStored, 30, Work::Writes).with_three(),
    at(Point::PhaseOthers, 30, Work::Writes).with_three(),
    at(Point::OthersStored, 30, Work::Writes).with_three(),
    at(Point::PhaseOthers, 30, Work::SmallWrites).with_three(),
    at(Point::UndoSaved, 30, Work::OneHalf).with_copies(),
    at(Point::PagesDetached, 1, Work::OneHalf).with_copies(),
    at(Point::PagesDetached, 30, Work::OneHalf).with_copies(),
    at(Point::PhaseAlone, 1, Work::OneHalf).with_copies(),
    at(Point::PhaseAlone, 30, Work::OneHalf).with_copies(),
    at(Point::AloneStored, 1, Work::OneHalf).with_copies(),
    at(Point::AloneStored, 30, Work::OneHalf).with_copies(),
    at(Point::PhaseSettled, 30, Work::OneHalf).with_copies(),
    at(Point::PageLocked, 4, Work::Pointers).with_copies(),
    at(Point::PhaseOthers, 3, Work::Pointers).with_copies(),
    at(Point::OthersStored, 3, Work::Pointers).with_copies(),
    at(Point::PhaseSettled, 3, Work::Pointers).with_copies(),
    at(Point::PinFreed, 2, Work::Pointers).with_copies(),
    at(Point::PhaseFirst, 40, Work::LastCopy).with_copies(),
    at(Point::FirstStored, 40, Work::LastCopy).with_copies(),
    at(Point::OthersStored, 40, Work::LastCopy).with_copies(),
];

/// Deaths of the first of two daemons, which lends nothing: it makes each block itself.
pub const DAEMON: &[Row] = &[
    at(Point::PoolCreated, 1, Work::Sessions),
    at(Point::PoolCommitted, 1, Work::Sessions),
    at(Point::DataNamed, 1, Work::Sessions),
    at(Point::HeaderCreated, 1, Work::Sessions),
    at(Point::HeaderWritten, 1, Work::Sessions),
    at(Point::HeaderReady, 1, Work::Sessions),
    at(Point::HeaderReady, 2, Work::Sessions),
    at(Point::GrowthCommitted, 1, Work::Sessions),
    at(Point::HeaderUnlinked, 1, Work::Sessions),
    at(Point::DataEmptied, 1, Work::Sessions),
    at(Point::DataUnlinked, 1, Work::Sessions),
    at(Point::BlockAdopted, 1, Work::Start),
    at(Point::ExcessCut, 1, Work::StartWithExcess),
    at(Point::HeaderRestored, 1, Work::LostHeader),
    at(Point::DataNamed, 1, Work::Sessions).with_copies(),
    at(Point::HeaderReady, 1, Work::Sessions).with_copies(),
    at(Point::GrowthCommitted, 1, Work::Sessions).with_copies(),
    at(Point::HeaderUnlinked, 1, Work::Sessions).with_copies(),
    at(Point::DataUnlinked, 1, Work::Sessions).with_copies(),
    at(Point::BlockAdopted, 2, Work::Start).with_copies(),
    at(Point::SlotMarked, 20, Work::Relays).with_copies(),
    at(Point::IntentSet, 20, Work::Relays).with_copies(),
    at(Point::PageLocked, 20, Work::Relays).with_copies(),
    at(Point::SequenceOdd, 21, Work::Relays).with_copies(),
    at(Point::PhaseFirst, 20, Work::Relays).with_copies(),
    at(Point::FirstStored, 20, Work::Relays).with_copies(),
    at(Point::PhaseOthers, 20, Work::Relays).with_copies(),
    at(Point::OthersStored, 20, Work::Relays).with_copies(),
    at(Point::PhaseSettled, 20, Work::Relays).with_copies(),
    at(Point::SequenceEven, 21, Work::Relays).with_copies(),
    at(Point::PageFreed, 20, Work::Relays).with_copies(),
    at(Point::IntentCleared, 20, Work::Relays).with_copies(),
    at(Point::SlotUnmarked, 20, Work::Relays).with_copies(),
    at(Point::PoolCommitted, 1, Work::Syncing).with_copies(),
    at(Point::DataNamed, 1, Work::Syncing).with_copies(),
    at(Point::HeaderReady, 1, Work::Syncing).with_copies(),
    at(Point::IntentSet, 1, Work::Syncing).with_copies(),
    at(Point::PageLocked, 3, Work::Syncing).with_copies(),
    at(Point::SyncStored, 1, Work::Syncing).with_copies(),
    at(Point::SyncStored, 3, Work::Syncing).with_copies(),
    at(Point::PageFreed, 3, Work::Syncing).with_copies(),
    at(Point::IntentCleared, 1, Work::Syncing).with_copies(),
    at(Point::SlotUnmarked, 1, Work::Syncing).with_copies(),
    at(Point::SyncStored, 2, Work::Syncing).with_three(),
];

/// Deaths of a daemon that has lent objects.
pub const LENDER: &[Row] =
    &[at(Point::PoolRemoved, 1, Work::Start), at(Point::PoolLaid, 1, Work::Start)];

/// Deaths of the broker.
pub const BROKER: &[Row] = &[
    at(Point::DataNamed, 1, Work::Sessions),
    at(Point::DataCut, 1, Work::Sessions),
    at(Point::HeaderNamed, 1, Work::Sessions),
    at(Point::SessionCreated, 1, Work::Sessions),
    at(Point::SessionWritten, 1, Work::Sessions),
    at(Point::RecordCreated, 1, Work::Sessions),
    at(Point::RecordWritten, 1, Work::Sessions),
    at(Point::RecordReady, 1, Work::Sessions),
    at(Point::GrantStored, 1, Work::Sessions),
    at(Point::GrantRevoked, 1, Work::Sessions),
    at(Point::GenerationPublished, 1, Work::Sessions),
    at(Point::RecordEnded, 1, Work::Sessions),
    at(Point::RecordUnlinked, 1, Work::Sessions),
    at(Point::SessionUnlinked, 1, Work::Sessions),
    at(Point::AnswerDue, 1, Work::Sessions),
    at(Point::AnswerDue, 4, Work::Sessions),
    at(Point::AnswerSent, 1, Work::Sessions),
    at(Point::AnswerSent, 4, Work::Sessions),
    at(Point::DataNamed, 1, Work::Sessions).with_copies(),
    at(Point::DataNamed, 2, Work::Sessions).with_copies(),
    at(Point::HeaderNamed, 1, Work::Sessions).with_copies(),
    at(Point::HeaderNamed, 2, Work::Sessions).with_copies(),
    at(Point::UndoCommitted, 1, Work::Sessions).with_copies(),
    at(Point::UndoReady, 1, Work::Sessions).with_copies(),
    at(Point::TableCreated, 1, Work::Sessions).with_copies(),
    at(Point::TableCommitted, 1, Work::Sessions).with_copies(),
    at(Point::TableWritten, 1, Work::Sessions).with_copies(),
    at(Point::TableGrown, 1, Work::Sessions).with_copies(),
    at(Point::TableCut, 1, Work::Sessions).with_copies(),
    at(Point::TableUnlinked, 1, Work::Sessions).with_copies(),
    at(Point::HeaderCleared, 1, Work::LostCopies).with_copies(),
    at(Point::HeaderFilled, 1, Work::LostCopies).with_copies(),
    at(Point::HeaderRaised, 1, Work::LostCopies).with_copies(),
    at(Point::HeaderRaised, 3, Work::LostCopies).with_copies(),
    at(Point::GenerationPublished, 1, Work::Start).with_copies(),
    at(Point::GenerationPublished, 1, Work::LostCopies).with_copies(),
    at(Point::HeaderCleared, 2, Work::LostCopies).with_three(),
    at(Point::HeaderFilled, 2, Work::LostCopies).with_three(),
    at(Point::HeaderRaised, 1, Work::LostCopies).with_three(),
    at(Point::HeaderRaised, 2, Work::LostCopies).with_three(),
    at(Point::HeaderRaised, 3, Work::LostCopies).with_three(),
    at(Point::HeaderRaised, 2, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 3, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 4, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 5, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 6, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 7, Work::Syncing).with_copies(),
    at(Point::GenerationPublished, 2, Work::Syncing).with_copies(),
    at(Point::GenerationPublished, 4, Work::Syncing).with_copies(),
    at(Point::GenerationPublished, 6, Work::Syncing).with_copies(),
    at(Point::HeaderRaised, 4, Work::Syncing).with_three(),
    at(Point::HeaderRaised, 6, Work::Syncing).with_three(),
    // Daemons that join have session objects of their own.
    at(Point::SessionCreated, 2, Work::Start).with_copies(),
    at(Point::SessionWritten, 2, Work::Start).with_copies(),
    at(Point::HeaderRaised, 1, Work::LostPrimary).with_copies(),
    at(Point::GenerationPublished, 2, Work::LostPrimary).with_copies(),
    at(Point::StaleHeaderRemoved, 1, Work::Deletions).with_copies(),
    at(Point::RepairBegun, 1, Work::RollBack).with_copies(),
    at(Point::RepairBegun, 3, Work::RollForward).with_copies(),
    at(Point::RepairStored, 1, Work::RollBack).with_copies(),
    at(Point::RepairStored, 2, Work::RollBack).with_copies(),
    at(Point::RepairStored, 1, Work::RollForward).with_copies(),
    at(Point::RepairStored, 3, Work::RollForward).with_copies(),
    at(Point::RepairStored, 1, Work::RollBack).with_three(),
    at(Point::RepairStored, 3, Work::RollForward).with_three(),
    at(Point::RepairReleased, 1, Work::RollBack).with_copies(),
    at(Point::RepairReleased, 3, Work::RollForward).with_copies(),
    at(Point::RepairWoken, 1, Work::RollBack).with_copies(),
    at(Point::RepairWoken, 1, Work::RollForward).with_copies(),
    at(Point::RepairEnded, 1, Work::RollBack).with_copies(),
    at(Point::RepairEnded, 1, Work::RollForward).with_copies(),
    at(Point::CarryIntended, 1, Work::Carry).with_copies(),
    at(Point::CarryIntended, 3, Work::Carry).with_copies(),
    at(Point::CarryLocked, 1, Work::Carry).with_copies(),
    at(Point::CarryLocked, 20, Work::Carry).with_copies(),
    at(Point::RepairStored, 20, Work::Carry).with_copies(),
    at(Point::RepairReleased, 20, Work::Carry).with_copies(),
    at(Point::RepairEnded, 2, Work::Carry).with_copies(),
    at(Point::PinCarried, 1, Work::Carry).with_copies(),
];

/// Points without a row, and why.
pub const UNTRIED: &[(Point, &str)] = &[
    (Point::WaiterEnlisted, "who waits spins first, so a page has to be held for long by chance"),
    (Point::WaitersUnwoken, "the same"),
];

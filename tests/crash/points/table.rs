//! Which process dies at which point, and over what.
//!
//! Each point has a row, or stands in [`NOT_PASSED`] or [`LEAVES_A_TABLE`] until there is one for
//! it: `at(Point::PhaseFirst, 3, Work::Writes).with_copies()`.

use dmce_sys::crash::Point;

/// What is done until somebody dies over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A client writes to a region, to which another one writes as well.
    Writes,
    /// A client has pointers made.
    Pointers,
    /// Sessions do all that they ask servers for.
    Sessions,
    /// A server starts, with what the one before has left.
    Start,
    /// The same, with an object that is longer than it may be.
    StartWithExcess,
    /// Somebody removes a header.
    LostHeader,
    /// A daemon that lives loses what it holds.
    LostCopies,
    /// A client has died while it wrote to several copies.
    Repairs,
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
    at(Point::IntentCleared, 40, Work::Writes).with_copies(),
    at(Point::PageLocked, 40, Work::Writes).with_copies(),
    at(Point::SequenceOdd, 40, Work::Writes).with_copies(),
    at(Point::UndoSaved, 1, Work::Writes).with_copies(),
    at(Point::PhaseFirst, 1, Work::Writes).with_copies(),
    at(Point::PhaseFirst, 40, Work::Writes).with_copies(),
    at(Point::FirstStored, 40, Work::Writes).with_copies(),
    at(Point::PhaseOthers, 1, Work::Writes).with_copies(),
    at(Point::PhaseOthers, 40, Work::Writes).with_copies(),
    at(Point::OthersStored, 40, Work::Writes).with_copies(),
    at(Point::PhaseSettled, 40, Work::Writes).with_copies(),
    at(Point::SequenceEven, 40, Work::Writes).with_copies(),
    at(Point::PageFreed, 40, Work::Writes).with_copies(),
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
    at(Point::HeaderReady, 1, Work::Sessions).with_copies(),
    at(Point::GrowthCommitted, 1, Work::Sessions).with_copies(),
    at(Point::HeaderUnlinked, 1, Work::Sessions).with_copies(),
    at(Point::DataUnlinked, 1, Work::Sessions).with_copies(),
    at(Point::BlockAdopted, 2, Work::Start).with_copies(),
];

/// Deaths of a daemon that has lent objects.
pub const LENDER: &[Row] = &[at(Point::PoolRemoved, 1, Work::Start)];

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
    at(Point::GenerationPublished, 1, Work::LostCopies).with_copies(),
    at(Point::RepairBegun, 1, Work::Repairs).with_copies(),
    at(Point::RepairBegun, 3, Work::Repairs).with_copies(),
    at(Point::RepairStored, 1, Work::Repairs).with_copies(),
    at(Point::RepairStored, 3, Work::Repairs).with_copies(),
    at(Point::RepairReleased, 1, Work::Repairs).with_copies(),
    at(Point::RepairReleased, 3, Work::Repairs).with_copies(),
    at(Point::RepairWoken, 1, Work::Repairs).with_copies(),
    at(Point::RepairEnded, 1, Work::Repairs).with_copies(),
];

/// Points that no work here is sure to pass: they need two who wait for one page at a moment, or a
/// write to one half.
pub const NOT_PASSED: &[Point] = &[Point::WaiterEnlisted, Point::WaitersUnwoken, Point::PhaseAlone];

/// A broker that dies there leaves the lock table of a block that was deleted: the next one finds
/// a name of the block still, and keeps what it cannot tell whose it is.
pub const LEAVES_A_TABLE: &[Point] = &[Point::StaleHeaderRemoved];

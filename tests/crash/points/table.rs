//! Which process dies at which point, and over what.
//!
//! The rows are those that the copies which a broker serves let be reached. What waits for more has
//! its point in [`NEED_COPIES`], and becomes a row: `at(Point::PhaseFirst, 3, Work::Writes)`.

use dmce_sys::crash::Point;

/// Copies of the regions and allocations of all rows.
pub const COPIES: u32 = 1;

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
}

const fn at(point: Point, time: u64, work: Work) -> Row {
    Row { point, time, work }
}

/// Deaths of a client.
pub const CLIENT: &[Row] = &[
    at(Point::SlotMarked, 60, Work::Writes),
    at(Point::SlotUnmarked, 60, Work::Writes),
    at(Point::PinTaken, 1, Work::Pointers),
    at(Point::PinTaken, 7, Work::Pointers),
    at(Point::PinFreed, 1, Work::Pointers),
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
];

/// Points that nobody passes with one copy.
pub const NEED_COPIES: &[Point] = &[
    Point::IntentSet,
    Point::PageLocked,
    Point::WaiterEnlisted,
    Point::SequenceOdd,
    Point::UndoSaved,
    Point::PhaseFirst,
    Point::FirstStored,
    Point::PhaseAlone,
    Point::PhaseOthers,
    Point::OthersStored,
    Point::PhaseSettled,
    Point::SequenceEven,
    Point::PageFreed,
    Point::WaitersUnwoken,
    Point::IntentCleared,
    Point::HeaderCleared,
    Point::HeaderFilled,
    Point::HeaderRaised,
    Point::StaleHeaderRemoved,
    Point::UndoCommitted,
    Point::UndoReady,
    Point::TableCreated,
    Point::TableCommitted,
    Point::TableWritten,
    Point::TableGrown,
    Point::TableCut,
    Point::TableUnlinked,
    Point::RepairBegun,
    Point::RepairStored,
    Point::RepairReleased,
    Point::RepairWoken,
    Point::RepairEnded,
];

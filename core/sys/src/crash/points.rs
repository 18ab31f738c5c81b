//! A death at a point that has a name: between two stores of a protocol.
//!
//! Steps ([`crash`](super)) are what the kernel is asked for, and their numbers change with the
//! code. A *point* is a place in a protocol, also between two stores to a mapping. With
//! `DMCE_CRASH_POINT=NAME`, or `NAME:N` for the Nth time, a process says so on its standard error
//! and kills itself (`SIGKILL`) when it passes that point.
//!
//! This is the list of all points. In release builds [`point`] is empty.

/// Where a debug build reads at which point it ends.
pub const POINT_VARIABLE: &str = "DMCE_CRASH_POINT";

macro_rules! points {
    ($($(#[doc = $what:literal])+ $point:ident = $name:literal,)+) => {
        /// A place in a protocol. Each says which store to shared memory it stands behind.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point {
            $($(#[doc = $what])+ $point,)+
        }

        impl Point {
            /// All points.
            pub const ALL: &[Self] = &[$(Self::$point,)+];

            /// As the environment names it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)+
                }
            }
        }
    };
}

points! {
    // A client's operation (docs/shared-memory.md, section 4.1).
    /// The mark of a slot became odd; the generation was not looked at.
    SlotMarked = "slot-marked",
    /// The mark of a slot became even: the operation is over.
    SlotUnmarked = "slot-unmarked",
    /// An intent has its address and bytes; no lock was waited for.
    IntentSet = "intent-set",
    /// The lock word of a page has its owner: once for each page.
    PageLocked = "page-locked",
    /// `waiters` was set in the lock word of a page; nobody sleeps yet.
    WaiterEnlisted = "waiter-enlisted",
    /// The sequence of a page became odd: once for each page.
    SequenceOdd = "sequence-odd",
    /// The undo buffer has the old bytes, where they are saved; the phase is 0.
    UndoSaved = "undo-saved",
    /// The phase is 1 or 5; no byte was stored.
    PhaseFirst = "phase-first",
    /// The first copy has the bytes; the phase is 1 or 5.
    FirstStored = "first-stored",
    /// The pages are detached; the phase is 0.
    PagesDetached = "pages-detached",
    /// The phase is 3 or 7: one copy alone is to be written; the pages are detached.
    PhaseAlone = "phase-alone",
    /// One copy alone has the bytes; the phase is 3 or 7.
    AloneStored = "alone-stored",
    /// The phase is 2 or 6; no other copy has a byte.
    PhaseOthers = "phase-others",
    /// All copies have the bytes; the phase is 2 or 6.
    OthersStored = "others-stored",
    /// The phase is 0 again; all sequences are odd.
    PhaseSettled = "phase-settled",
    /// The sequence of a page became even: once for each page.
    SequenceEven = "sequence-even",
    /// The lock word of a page is free, and who waits for it was woken: once for each page.
    PageFreed = "page-freed",
    /// The lock word of a page is free; nobody of those who wait for it was woken.
    WaitersUnwoken = "waiters-unwoken",
    /// All locks are free, and the intent is gone.
    IntentCleared = "intent-cleared",
    /// A pin is taken; nobody has its pointer.
    PinTaken = "pin-taken",
    /// A pin is free; its mapping was gone before.
    PinFreed = "pin-freed",

    // The objects of a block, made by its daemon or its broker (sections 2 and 3).
    /// A `pool-` name is there; nothing of its object is committed.
    PoolCreated = "pool-created",
    /// A pool object has its length and huge pages, if it gets some; not all of it is committed.
    PoolLaid = "pool-laid",
    /// A pool object is committed.
    PoolCommitted = "pool-committed",
    /// A pool object was renamed to `data-`; there is no header.
    DataNamed = "data-named",
    /// What a lent object has beyond its block's bytes was cut off; there is no header.
    DataCut = "data-cut",
    /// A `head-` name is there; its object is empty.
    HeaderCreated = "header-created",
    /// A first header is written; it is not ready.
    HeaderWritten = "header-written",
    /// A first header is ready.
    HeaderReady = "header-ready",
    /// A header that was whole before got its `head-` name.
    HeaderNamed = "header-named",
    /// `ready` was cleared in the slot of a header that is not in force.
    HeaderCleared = "header-cleared",
    /// The slot of a header that is not in force was written; it is not ready.
    HeaderFilled = "header-filled",
    /// The slot of a header that was not in force is ready, and in force: once for each copy.
    HeaderRaised = "header-raised",
    /// A `head-` name that somebody removed was written again.
    HeaderRestored = "header-restored",
    /// The bytes by which a block grows are committed; nobody was told.
    GrowthCommitted = "growth-committed",
    /// A copy that is syncing has the bytes of a batch; its pages are locked.
    SyncStored = "sync-stored",
    /// The `head-` name of a block that goes was unlinked; its data is whole.
    HeaderUnlinked = "header-unlinked",
    /// The data of a block that goes was truncated to nothing.
    DataEmptied = "data-emptied",
    /// The `data-` name of a block that goes was unlinked.
    DataUnlinked = "data-unlinked",
    /// The header of a stale copy whose daemon is away was unlinked.
    StaleHeaderRemoved = "stale-header-removed",

    // A daemon that starts (section 7).
    /// A pool object of the daemon before was unlinked.
    PoolRemoved = "pool-removed",
    /// What an object has beyond its block's bytes was cut off.
    ExcessCut = "excess-cut",
    /// A block was adopted; no broker was told.
    BlockAdopted = "block-adopted",

    // A session's objects, made by the broker (sections 4 and 5).
    /// A `session-` name is there; its object is empty.
    SessionCreated = "session-created",
    /// A session object is written and committed; there is no record.
    SessionWritten = "session-written",
    /// A `record-` name is there; its object is empty.
    RecordCreated = "record-created",
    /// A record is written; it is not ready.
    RecordWritten = "record-written",
    /// A record is ready; its session was not answered.
    RecordReady = "record-ready",
    /// A grant is in the record; who opens the region was not answered.
    GrantStored = "grant-stored",
    /// A grant is in the record no more.
    GrantRevoked = "grant-revoked",
    /// The generation is stored; the marks were not looked at.
    GenerationPublished = "generation-published",
    /// The undo buffers are committed; *undo ready* is not stored.
    UndoCommitted = "undo-committed",
    /// *Undo ready* is stored.
    UndoReady = "undo-ready",
    /// `ready` of the record of a session that ends was cleared.
    RecordEnded = "record-ended",
    /// The `record-` name of a session that ended was unlinked; its object is there.
    RecordUnlinked = "record-unlinked",
    /// The `session-` name of a session that ended was unlinked.
    SessionUnlinked = "session-unlinked",

    // A lock table, made by the broker (section 6).
    /// A `locks-` name is there; its object is empty.
    TableCreated = "table-created",
    /// A lock table is committed; it says of no block that it is its.
    TableCommitted = "table-committed",
    /// The first page of a lock table is written; no copy of its block is made yet.
    TableWritten = "table-written",
    /// A lock table has more words; no copy of its block has grown yet.
    TableGrown = "table-grown",
    /// A lock table that goes was cut to nothing.
    TableCut = "table-cut",
    /// The `locks-` name of a table that goes was unlinked.
    TableUnlinked = "table-unlinked",

    // The broker's repair of what the dead left (sections 4.1 and 6).
    /// The lock word of a page has `repair` beside its dead owner: once for each page.
    RepairBegun = "repair-begun",
    /// A page that was half written was stored to a copy: once for each copy of each.
    RepairStored = "repair-stored",
    /// The lock word of a repaired page is free, or lost: once for each page.
    RepairReleased = "repair-released",
    /// All locks of a dead slot are free, and all who wait were woken; its intent is there.
    RepairWoken = "repair-woken",
    /// The intent of a dead slot is gone.
    RepairEnded = "repair-ended",
    /// A slot of a dead session says that what its pointer stored is brought to all copies.
    CarryIntended = "carry-intended",
    /// The lock word of a page has such a slot as its owner; its sequence is odd: once for each.
    CarryLocked = "carry-locked",
    /// A pin of a dead session is free: what its pointer stored is on all copies.
    PinCarried = "pin-carried",

    // The broker towards its clients: what is stored is stored.
    /// An answer is about to be sent.
    AnswerDue = "answer-due",
    /// An answer was sent.
    AnswerSent = "answer-sent",
}

/// This process passes a point.
#[inline]
pub fn point(point: Point) {
    #[cfg(debug_assertions)]
    armed::pass(point);
    #[cfg(not(debug_assertions))]
    let _ = point;
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::{POINT_VARIABLE, Point};
    use crate::crash::end_by_signal;

    /// Where this process dies, and at which time that it passes there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Armed {
        pub point: Point,
        pub time: u64,
    }

    impl Armed {
        /// As the environment says it; `None` if it names no point.
        pub(super) fn parse(text: &str) -> Option<Self> {
            let (name, time) = text.split_once(':').unwrap_or((text, "1"));
            let point = Point::ALL.iter().copied().find(|point| point.name() == name)?;
            Some(Self { point, time: time.parse().ok().filter(|time| *time > 0)? })
        }

        fn of_environment() -> Option<Self> {
            let text = std::env::var(POINT_VARIABLE).ok().filter(|text| !text.is_empty())?;
            let armed = Self::parse(&text);
            if armed.is_none() {
                eprintln!("{POINT_VARIABLE}={text} names no point");
            }
            armed
        }
    }

    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn pass(point: Point) {
        let Some(armed) = ARMED.get_or_init(Armed::of_environment) else { return };
        if armed.point == point && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == armed.time {
            eprintln!("dies at the point {}", point.name());
            end_by_signal();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own_that_the_environment_can_say() {
        let names: BTreeSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        let is_plain = |name: &&str| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(names.iter().all(is_plain), "{names:?}");
    }

    #[cfg(debug_assertions)]
    #[test]
    fn a_point_is_named_alone_or_with_the_time_that_it_is_passed() {
        use armed::Armed;
        let at = |time| Some(Armed { point: Point::PageLocked, time });
        assert_eq!(Armed::parse("page-locked"), at(1));
        assert_eq!(Armed::parse("page-locked:17"), at(17));
        for wrong in ["", "page", "page-locked:", "page-locked:0", "page-locked:x", "page-locked "]
        {
            assert_eq!(Armed::parse(wrong), None, "{wrong:?}");
        }
    }
}

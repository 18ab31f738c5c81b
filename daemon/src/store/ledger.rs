//! What is committed, and who may commit more.
//!
//! # Invariants
//!
//! 1. Bytes are promised before anyone begins to commit them, and every promise ends in exactly one
//!    of [`Ledger::keep`] and [`Ledger::release`]. So two requests never count on the same bytes.
//! 2. The blocks of a daemon never exceed its capacity through requests; adoption counts what it
//!    finds, be it at the start or what the broker made of lent objects.
//!
//! Who pays: the blocks are counted against the capacity. The pool is the daemon's own, bounded by
//! configuration, and like all else leaves the margin free in the file system and on the host; its
//! bytes come out of the capacity when a block is made of them. The header of a block, a page, is
//! counted nowhere.

use dmce_config::{Bytes, DaemonSection};
use dmce_sys::headroom::LimitedBy;
use dmce_sys::object::{ObjectDir, ObjectError};

use super::commit::CommitError;
use super::room::{Room, Surveyor};

/// Who keeps the bytes that are promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A block.
    Block,
    /// Another copy of one, in whose place one may go. Whether the daemon has room for it is the
    /// broker's to say: where two change places it has none for a moment.
    Copy,
    /// The pool, or the pages of a block that somebody gave back.
    Upkeep,
}

/// Bytes that were promised and are not kept or released yet.
#[derive(Debug)]
#[must_use = "a promise is kept or released"]
pub struct Promise {
    bytes: u64,
    purpose: Purpose,
}

/// Counts what is committed and what is promised.
#[derive(Debug)]
pub struct Ledger {
    capacity: u64,
    margin: u64,
    /// Bytes of blocks.
    committed: u64,
    /// Bytes promised to blocks.
    promised: u64,
    /// Bytes promised to the upkeep.
    upkeep: u64,
    surveyor: Surveyor,
}

/// Why bytes are not promised. Goes to the client with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum Shortage {
    /// The blocks of the daemon.
    #[error("{wanted} are wanted, {left} are left of the daemon's capacity of {capacity}")]
    Capacity { wanted: Bytes, left: Bytes, capacity: Bytes },
    /// The file system of the objects.
    #[error("{wanted} are wanted, {left} are left in the file system above the margin of {margin}")]
    FileSystem { wanted: Bytes, left: Bytes, margin: Bytes },
    /// The host, or the control group.
    #[error("{wanted} are wanted, {left} are left {place} above the margin of {margin}")]
    Memory { wanted: Bytes, left: Bytes, margin: Bytes, place: &'static str },
    /// The file system was full before all was committed.
    #[error("{wanted} are wanted, and the file system is full")]
    Full { wanted: Bytes },
}

impl Ledger {
    /// A ledger of nothing.
    pub fn new(section: &DaemonSection) -> Self {
        let (capacity, margin) = (section.capacity.get(), section.margin.get());
        let surveyor = Surveyor::default();
        Self { capacity, margin, committed: 0, promised: 0, upkeep: 0, surveyor }
    }

    /// Promises bytes that are to be committed in `dir`.
    ///
    /// # Errors
    ///
    /// [`CommitError`]: nothing is promised.
    pub fn promise(
        &mut self,
        bytes: u64,
        purpose: Purpose,
        dir: &ObjectDir,
    ) -> Result<Promise, CommitError> {
        let room = self.surveyor.look(bytes, dir)?;
        let promise = match self.promise_in(&room, bytes, purpose) {
            // What was seen a moment ago may have been too little, and be enough now.
            Err(Shortage::Memory { .. }) => {
                let room = self.surveyor.look_again(dir)?;
                self.promise_in(&room, bytes, purpose)?
            }
            other => other?,
        };
        self.surveyor.promised(bytes);
        Ok(promise)
    }

    /// The same in a room that was looked at.
    fn promise_in(
        &mut self,
        room: &Room,
        bytes: u64,
        purpose: Purpose,
    ) -> Result<Promise, Shortage> {
        if purpose == Purpose::Block {
            self.check_capacity(bytes)?;
        }
        let (wanted, margin) = (Bytes(bytes), Bytes(self.margin));
        let file_system = room.file_system.map(|free| self.above_margin(free));
        if let Some(left) = file_system.filter(|left| *left < bytes) {
            return Err(Shortage::FileSystem { wanted, left: Bytes(left), margin });
        }
        let memory = room.memory.map(|(free, by)| (self.above_margin(free), by));
        if let Some((left, by)) = memory.filter(|(left, _)| *left < bytes) {
            let place = match by {
                LimitedBy::Host => "on the host",
                LimitedBy::Cgroup => "in the control group",
            };
            return Err(Shortage::Memory { wanted, left: Bytes(left), margin, place });
        }
        Ok(self.give(bytes, purpose))
    }

    /// The bytes are committed, and a block has them.
    pub fn keep(&mut self, promise: Promise) {
        let bytes = promise.bytes;
        self.keep_part(promise, bytes);
    }

    /// So many of the bytes are, and the rest is not committed.
    pub fn keep_part(&mut self, promise: Promise, bytes: u64) {
        self.release(promise);
        self.adopt(bytes);
    }

    /// The bytes are not committed, or not for a block.
    #[expect(clippy::needless_pass_by_value, reason = "a promise ends here")]
    pub fn release(&mut self, promise: Promise) {
        let counter = self.counter(promise.purpose);
        *counter = counter.checked_sub(promise.bytes).expect("what is released was promised");
    }

    /// A block was found that has these bytes.
    pub fn adopt(&mut self, bytes: u64) {
        self.committed = self.committed.saturating_add(bytes);
    }

    /// A block has gone that had these bytes.
    pub fn refund(&mut self, bytes: u64) {
        let rest = self.committed.checked_sub(bytes);
        self.committed = rest.expect("what is refunded was counted");
    }

    /// Bytes of all blocks.
    pub fn committed(&self) -> u64 {
        self.committed
    }

    /// Bytes that could still be committed in `dir`, whatever the capacity.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::free_bytes`].
    pub fn headroom(&mut self, dir: &ObjectDir) -> Result<u64, ObjectError> {
        let room = self.surveyor.look_again(dir)?;
        Ok(self.headroom_in(&room))
    }

    /// The same in a room that was looked at.
    fn headroom_in(&self, room: &Room) -> u64 {
        let file_system = room.file_system.map_or(u64::MAX, |free| self.above_margin(free));
        let memory = room.memory.map_or(u64::MAX, |(free, _)| self.above_margin(free));
        file_system.min(memory)
    }

    fn check_capacity(&self, bytes: u64) -> Result<(), Shortage> {
        let left = self.capacity.saturating_sub(self.committed.saturating_add(self.promised));
        if bytes <= left {
            return Ok(());
        }
        let (wanted, capacity) = (Bytes(bytes), Bytes(self.capacity));
        Err(Shortage::Capacity { wanted, left: Bytes(left), capacity })
    }

    /// What is left of `free` for a new promise. What is promised and half committed is counted
    /// twice, which errs on the safe side.
    fn above_margin(&self, free: u64) -> u64 {
        free.saturating_sub(self.margin).saturating_sub(self.promised.saturating_add(self.upkeep))
    }

    fn give(&mut self, bytes: u64, purpose: Purpose) -> Promise {
        let counter = self.counter(purpose);
        *counter = counter.saturating_add(bytes);
        Promise { bytes, purpose }
    }

    fn counter(&mut self, purpose: Purpose) -> &mut u64 {
        match purpose {
            Purpose::Block | Purpose::Copy => &mut self.promised,
            Purpose::Upkeep => &mut self.upkeep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ledger() -> Ledger {
        let section = DaemonSection {
            capacity: Bytes::mib(100),
            margin: Bytes::mib(10),
            ..DaemonSection::default()
        };
        Ledger::new(&section)
    }

    fn room(file_system_mib: u64, memory_mib: u64) -> Room {
        Room {
            file_system: Some(file_system_mib * MIB),
            memory: Some((memory_mib * MIB, LimitedBy::Cgroup)),
        }
    }

    #[test]
    fn a_refusal_names_what_is_short_and_by_how_much() {
        let mut ledger = ledger();
        let mut refused = |mib: u64, room: Room| {
            ledger.promise_in(&room, mib * MIB, Purpose::Block).unwrap_err().to_string()
        };
        assert_eq!(
            refused(101, room(900, 900)),
            "101 MiB are wanted, 100 MiB are left of the daemon's capacity of 100 MiB"
        );
        assert_eq!(
            refused(91, room(100, 900)),
            "91 MiB are wanted, 90 MiB are left in the file system above the margin of 10 MiB"
        );
        assert_eq!(
            refused(91, room(900, 100)),
            "91 MiB are wanted, 90 MiB are left in the control group above the margin of 10 MiB"
        );
        assert_eq!(ledger.committed(), 0);
        let all = ledger.promise_in(&room(100, 100), 90 * MIB, Purpose::Block).unwrap();
        ledger.keep(all);
        assert_eq!(ledger.committed(), 90 * MIB);
    }

    #[test]
    fn no_two_requests_count_on_the_same_bytes() {
        let mut ledger = ledger();
        let first = ledger.promise_in(&room(200, 200), 60 * MIB, Purpose::Block).unwrap();
        assert!(matches!(
            ledger.promise_in(&room(200, 200), 41 * MIB, Purpose::Block),
            Err(Shortage::Capacity { .. })
        ));
        let pool = ledger.promise_in(&room(200, 200), 60 * MIB, Purpose::Upkeep).unwrap();
        assert_eq!(ledger.headroom_in(&room(200, 200)), 70 * MIB);
        assert!(matches!(
            ledger.promise_in(&room(169, 900), 40 * MIB, Purpose::Block),
            Err(Shortage::FileSystem { .. })
        ));
        ledger.release(first);
        ledger.release(pool);
        assert_eq!(ledger.headroom_in(&room(200, 200)), 190 * MIB);
        assert_eq!(ledger.committed(), 0);
    }

    #[test]
    fn the_pool_is_not_part_of_the_capacity() {
        let mut ledger = ledger();
        let pool = ledger.promise_in(&room(900, 900), 500 * MIB, Purpose::Upkeep).unwrap();
        let block = ledger.promise_in(&room(900, 900), 100 * MIB, Purpose::Block).unwrap();
        ledger.release(pool);
        ledger.keep(block);
        assert!(ledger.promise_in(&room(900, 900), 1, Purpose::Block).is_err());
        // What the capacity does not hold back, memory does.
        let copy = ledger.promise_in(&room(900, 900), 100 * MIB, Purpose::Copy).unwrap();
        assert!(ledger.promise_in(&room(400, 900), 300 * MIB, Purpose::Copy).is_err());
        ledger.release(copy);
        ledger.refund(100 * MIB);
        assert_eq!(ledger.committed(), 0);
    }

    #[test]
    fn what_is_not_known_limits_nothing() {
        let unlimited = Room { file_system: None, memory: None };
        let mut ledger = ledger();
        assert_eq!(ledger.headroom_in(&unlimited), u64::MAX);
        let promise = ledger.promise_in(&unlimited, 100 * MIB, Purpose::Block).unwrap();
        ledger.release(promise);
    }
}

//! Pointers that lock their range: `read_ptr`, `write_ptr`, and how they end (002).
//!
//! ```text
//!   taken:     its turn among all that want the range -> mapped, with a pin -> the pointer
//!   released:  what was stored goes to all copies -> unmapped -> the range is the next one's
//!   aborted:   the first copy is made what the second is -> as above, with nothing to bring
//! ```
//! Who has which range is said in records ([`dmce_shm::pointers`]). They are this process's own:
//! memory that one session has for itself nobody else asks for.
//!
//! # Invariants
//!
//! 1. A range is mapped after its record holds it, and unmapped before the record lets it go.
//! 2. A write pointer keeps the object that it was laid on, also when that is lost: what was stored
//!    there is brought to the copies that are good by then. Where the object itself is cut, that is
//!    [`Status::Lost`], of which the copies are equal.
//! 3. No lock is held while a turn is waited for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use dmce_abi::block::BlockId;
use dmce_abi::{DmceAddr, Status};
use dmce_shm::atomic::AtomicU32;
use dmce_shm::parking::{self, Kernel, Parked, Parking, Wake};
use dmce_shm::pointers::{
    PointerError, PointerOwner, PointerRecord, Pointers, PointersHead, RecordIndex, Terms, Turns,
    Wait, Wanted,
};
use dmce_shm::session::pin::PinnedRange;
use dmce_sys::clock::monotonic_ms;
use dmce_sys::futex::FutexError;

use super::core::Core;
use super::data::Intent;
use super::mapping::{PinKind, Pinned, is_pinned_to_write, not_mapped};
use crate::error::Error;
use crate::events::Event;
use crate::options::{PointerOptions, PointerWait};
use crate::slots::SHARED_SLOT;

/// Pointers that a session has, or waits for, at a time.
const RECORDS: usize = 1024;

/// What of the session's own memory pointers lock.
pub(crate) struct LockedRanges {
    head: PointersHead,
    /// Made for the first pointer.
    records: OnceLock<Box<[PointerRecord]>>,
    /// Those that are had or queued for.
    known: Mutex<VecDeque<Known>>,
    /// Somebody has to look whose turn it is.
    rung: AtomicBool,
    /// How long a call waits for its turn; `None` is for ever.
    patience_ms: Option<u32>,
    /// How long a turn that was announced is kept.
    lapse_ms: u32,
}

/// A pointer that is had, or queued for.
#[derive(Clone, Copy, Debug)]
struct Known {
    index: RecordIndex,
    wanted: Wanted,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its record is in the queue.
    Queued,
    /// The same, and its owner was told that it has its turn, at a moment.
    Told { at_ms: u64 },
    /// A call has it in its hands.
    Taken,
    /// The application has the pointer.
    Had { pointer: usize },
}

impl fmt::Debug for LockedRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockedRanges").field("known", &self.known()).finish_non_exhaustive()
    }
}

impl LockedRanges {
    /// Nothing is locked. `timeout_ms` is the session's option; 0 is for ever.
    pub(crate) fn new(timeout_ms: u32, lapse_ms: u32) -> Self {
        Self {
            head: PointersHead::default(),
            records: OnceLock::new(),
            known: Mutex::default(),
            rung: AtomicBool::new(false),
            patience_ms: (timeout_ms > 0).then_some(timeout_ms),
            lapse_ms,
        }
    }

    fn table(&self) -> Pointers<'_> {
        let fresh = || (0..RECORDS).map(|_| PointerRecord::default()).collect();
        Pointers::new(&self.head, self.records.get_or_init(fresh))
    }

    fn known(&self) -> MutexGuard<'_, VecDeque<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a record.
    fn set(&self, index: RecordIndex, state: State) {
        if let Some(known) = self.known().iter_mut().find(|known| known.index == index) {
            known.state = state;
        }
    }

    /// Forgets a record, which is nobody's from now on.
    fn forget(&self, index: RecordIndex) {
        self.known().retain(|known| known.index != index);
        self.table().disclaim(index);
    }

    /// Takes the pointer to the fewest bytes at an address: what others there have is longer.
    fn take_had(&self, pointer: usize) -> Option<Known> {
        let mut known = self.known();
        let all = known.iter_mut().filter(|known| known.state == State::Had { pointer });
        let had = all.min_by_key(|known| known.wanted.bytes)?;
        let found = *had;
        had.state = State::Taken;
        Some(found)
    }

    /// Takes the place in the queue that a range has.
    fn take_queued(&self, wanted: Wanted) -> Option<RecordIndex> {
        let is_it = |known: &&mut Known| {
            matches!(known.state, State::Queued | State::Told { .. }) && known.wanted == wanted
        };
        let mut known = self.known();
        let queued = known.iter_mut().find(is_it)?;
        queued.state = State::Taken;
        Some(queued.index)
    }
}

/// A call of a session that waits for its turn.
struct Caller<'a>(&'a Core);

impl Parking for Caller<'_> {
    fn park(
        &self,
        half: &AtomicU32,
        expected: u32,
        deadline: parking::Deadline,
    ) -> Result<Parked, FutexError> {
        if self.0.is_closed() {
            return Ok(Parked::TimedOut);
        }
        // What this call has rung for is not to wait until it is over; nor is a turn that nobody
        // takes, where no thread looks after that.
        self.0.announce_turns();
        self.0.lapse_turns();
        Kernel.park(half, expected, deadline)
    }

    fn wake(&self, half: &AtomicU32, whom: Wake) -> Result<(), FutexError> {
        Kernel.wake(half, whom)
    }

    fn spin(&self, round: u32) -> bool {
        Kernel.spin(round)
    }
}

impl Turns for Caller<'_> {
    fn ring(&self) {
        self.0.locked.rung.store(true, Ordering::SeqCst);
    }
}

impl Core {
    /// A pointer to a range that is this one's until it is released.
    pub(crate) fn take_pointer(
        &self,
        addr: DmceAddr,
        bytes: usize,
        exclusive: bool,
        options: PointerOptions,
    ) -> Result<*mut u8, Error> {
        self.usable()?;
        if bytes == 0 {
            return Err(Error::invalid("a pointer to no bytes"));
        }
        let (raw, bytes) = (addr.to_raw(), bytes as u64);
        self.check_range(addr, bytes, if exclusive { Intent::Write } else { Intent::Read })?;
        if self.ways.route().is_some() {
            return Err(not_mapped());
        }
        if self.is_in_region(addr) {
            return Err(Error::unsupported("pointers into regions that lock are not here yet"));
        }
        let wanted = Wanted { cell: raw, bytes, exclusive };
        let (index, terms) = (self.queue_up(wanted)?, self.terms_of(options));
        let index = match index {
            Place::Fresh(index) => {
                self.settle_turn(
                    index,
                    self.locked.table().acquire(index, wanted, terms, &Caller(self)),
                )?;
                index
            }
            Place::Queued(index) => {
                // Who does not wait keeps its place.
                let wait = if terms.wait == Wait::Never { Wait::Queued } else { terms.wait };
                let terms = Terms { wait, ..terms };
                let taken = self.locked.table().take_turn(index, wanted, terms, &Caller(self));
                self.settle_turn(index, taken)?;
                index
            }
        };
        let range = range_of(wanted);
        // What other pointers have stored is there before this one is, and an abort leaves it.
        let is_shared = exclusive && is_pinned_to_write(&self.pins(), raw, bytes);
        if is_shared && let Err(error) = self.carry(range) {
            self.let_go(index);
            return Err(error);
        }
        match self.map_of_kind(range, PinKind::Locked) {
            Ok(pointer) => {
                self.locked.set(index, State::Had { pointer: pointer.addr() });
                Ok(pointer)
            }
            Err(error) => {
                self.let_go(index);
                Err(error)
            }
        }
    }

    /// A record for a range: the one that has its place in the queue, or a fresh one.
    fn queue_up(&self, wanted: Wanted) -> Result<Place, Error> {
        if let Some(index) = self.locked.take_queued(wanted) {
            return Ok(Place::Queued(index));
        }
        // Reads nest in those of their thread.
        let number = self.slots.own().unwrap_or(SHARED_SLOT) + 1;
        let owner = u32::try_from(number).ok().and_then(PointerOwner::new);
        let owner = owner.expect("slots are few, and this is not 0");
        let index = self.locked.table().claim(owner, 0).ok_or_else(|| {
            let text = format!("all {RECORDS} pointers of the session are in use");
            Error::new(Status::NoMem, text)
        })?;
        self.locked.known().push_back(Known { index, wanted, state: State::Taken });
        Ok(Place::Fresh(index))
    }

    fn terms_of(&self, options: PointerOptions) -> Terms {
        let wait = match options.wait {
            PointerWait::InCall => Wait::InTurn,
            PointerWait::Never => Wait::Never,
            PointerWait::Queued => Wait::Queued,
        };
        let deadline = match self.locked.patience_ms {
            None => parking::Deadline::NEVER,
            Some(ms) => parking::Deadline::after(Duration::from_millis(ms.into())),
        };
        Terms { wait, deadline, take_dirty: options.take_dirty }
    }

    /// What became of a record that was to hold its range.
    fn settle_turn(
        &self,
        index: RecordIndex,
        taken: Result<(), PointerError>,
    ) -> Result<(), Error> {
        let error = match taken {
            Ok(()) => {
                self.locked.set(index, State::Taken);
                self.announce_turns();
                return Ok(());
            }
            Err(PointerError::Queued) => {
                self.locked.set(index, State::Queued);
                // It may have its turn since: who rang before it was known has told nobody.
                self.locked.rung.store(true, Ordering::SeqCst);
                Error::new(Status::Busy, "the pointer waits for its turn")
            }
            Err(error) => {
                self.locked.forget(index);
                self.of_pointer(&error)
            }
        };
        self.announce_turns();
        Err(error)
    }

    fn of_pointer(&self, error: &PointerError) -> Error {
        let status = match error {
            PointerError::Timeout if self.is_closed() => return Error::closed(),
            PointerError::Busy | PointerError::Queued => Status::Busy,
            PointerError::Timeout => Status::Timeout,
            PointerError::OwnerDied => Status::OwnerDied,
            _ => Status::Internal,
        };
        Error::new(status, error.to_string())
    }

    /// Ends a pointer: what a write pointer stored is on every copy.
    pub(crate) fn release_pointer(&self, pointer: *const u8) -> Result<(), Error> {
        self.usable()?;
        let known = self.locked.take_had(pointer.addr()).ok_or_else(|| not_had(pointer))?;
        let lost = if known.wanted.exclusive {
            match self.bring(pointer, known.wanted) {
                // What was given back meanwhile nobody will read.
                Err(error) if error.status() == Status::Address => Ok(()),
                Err(error) if error.status() != Status::Lost => {
                    // It can be released again.
                    self.locked.set(known.index, State::Had { pointer: pointer.addr() });
                    return Err(error);
                }
                brought => brought,
            }
        } else {
            Ok(())
        };
        self.unpin_locked(pointer.addr(), known.wanted);
        self.let_go(known.index);
        lost
    }

    /// Ends a write pointer, with the range as it was.
    pub(crate) fn abort_pointer(&self, pointer: *mut u8) -> Result<(), Error> {
        self.usable()?;
        let known = self.locked.take_had(pointer.addr()).ok_or_else(|| not_had(pointer))?;
        let restored = if known.wanted.exclusive {
            self.restore(pointer, known.wanted)
        } else {
            Err(Error::invalid("a read pointer has stored nothing"))
        };
        if let Err(error) = restored {
            self.locked.set(known.index, State::Had { pointer: pointer.addr() });
            return Err(error);
        }
        self.unpin_locked(pointer.addr(), known.wanted);
        self.let_go(known.index);
        Ok(())
    }

    /// Gives up a place in the queue.
    pub(crate) fn cancel_pointer(&self, addr: DmceAddr, bytes: usize) -> Result<(), Error> {
        self.usable()?;
        let wanted = |exclusive| Wanted { cell: addr.to_raw(), bytes: bytes as u64, exclusive };
        let mut queued =
            [true, false].into_iter().filter_map(|how| self.locked.take_queued(wanted(how)));
        let index = queued.next().ok_or_else(|| {
            let text = format!("{bytes} bytes at {:#x} are not queued for", addr.to_raw());
            Error::new(Status::NotFound, text)
        })?;
        self.drop_queued(index);
        Ok(())
    }

    fn drop_queued(&self, index: RecordIndex) {
        if let Err(error) = self.locked.table().cancel(index, &Caller(self)) {
            tracing::warn!(%error, "a queued pointer was not to be cancelled");
        }
        self.locked.forget(index);
        self.announce_turns();
    }

    fn unpin_locked(&self, pointer: usize, wanted: Wanted) {
        let range = range_of(wanted);
        let is_it = |pin: &Pinned| pin.kind == PinKind::Locked && pin.range == range;
        let was_pinned = self.unpin_last(pointer, is_it);
        debug_assert!(was_pinned || self.is_closed(), "a pointer that was had is pinned");
    }

    /// Lets the next have a range.
    fn let_go(&self, index: RecordIndex) {
        if let Err(error) = self.locked.table().release(index, &Caller(self)) {
            tracing::warn!(%error, "a pointer was not let go");
        }
        self.locked.forget(index);
        self.announce_turns();
    }

    /// Tells the application of queued pointers that have their turn by now.
    fn announce_turns(&self) {
        while self.locked.rung.swap(false, Ordering::SeqCst) {
            let mut is_news = false;
            for known in &mut *self.locked.known() {
                if known.state == State::Queued && self.locked.table().ring_for(known.index) {
                    known.state = State::Told { at_ms: monotonic_ms() };
                    is_news = true;
                    if let Ok(addr) = DmceAddr::from_raw(self.layout, known.wanted.cell) {
                        self.events.push(Event::Granted { addr, bytes: known.wanted.bytes });
                    }
                }
            }
            if is_news {
                // The service thread looks when they lapse.
                self.link.wake();
            }
        }
    }

    /// Gives up turns that nobody took. Returns when the next one lapses.
    pub(super) fn lapse_turns(&self) -> Option<Duration> {
        let (now, lapse_ms) = (monotonic_ms(), u64::from(self.locked.lapse_ms));
        let (mut lapsed, mut next) = (Vec::new(), None);
        for known in &mut *self.locked.known() {
            let State::Told { at_ms } = known.state else { continue };
            let left = (at_ms + lapse_ms).saturating_sub(now);
            if left == 0 {
                known.state = State::Taken;
                lapsed.push(known.index);
            } else {
                next = Some(next.unwrap_or(left).min(left));
            }
        }
        for index in lapsed {
            self.drop_queued(index);
        }
        next.map(Duration::from_millis)
    }

    /// Whether an address is in a region that is open.
    fn is_in_region(&self, addr: DmceAddr) -> bool {
        let (id, _) = self.split(addr);
        let id = u32::try_from(id).ok().and_then(|id| BlockId::try_from(id).ok());
        id.is_some_and(|id| self.is_of_region(id))
    }
}

/// Where a record of a range comes from.
enum Place {
    Fresh(RecordIndex),
    Queued(RecordIndex),
}

pub(super) const fn range_of(wanted: Wanted) -> PinnedRange {
    PinnedRange { addr: wanted.cell, bytes: wanted.bytes, writable: wanted.exclusive }
}

#[cold]
fn not_had(pointer: *const u8) -> Error {
    Error::new(Status::NotFound, format!("no pointer that locks is at {pointer:p}"))
}

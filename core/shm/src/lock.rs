//! The lock word of a page: who writes it, and whether what was read is whole (section 6).
//!
//! ```text
//!  63                        32 31        30       29     28         27         8 7    0
//! |          sequence          | waiters | repair | lost | detached | session id  | slot |
//!                               `---------------- the half: a futex --------------------'
//!
//!                CAS 0 -> owner                    sequence += 1 (odd)
//!     FREE -------------------------> HELD, CLEAN ----------------------> HELD, WRITING
//!      ^ ^                             |      ^                               |
//!      | `-- CAS own half -> 0, wake --'      `-- sequence += 1 (even) -------'
//!      |       if `waiters` was set
//!      |                              CAS owner -> repair + owner
//!      |-- CAS -> 0, wake all --- HELD BY REPAIR <----------------- HELD by a dead owner
//!      |                              |
//!      |   even: CAS own half -> 0    | nothing to make it whole from: CAS -> lost, wake all
//!      `------ HELD, LOST <-------- LOST      (the sequence stays odd)
//!         ^         |   CAS lost -> lost + owner, by who writes the whole page
//!         |         |   odd: CAS own half -> lost, wake all -------> LOST
//!         |
//!   HELD, CLEAN: half |= lost, then sequence += 1 (odd), by who finds that nothing says which of
//!                its copies is right
//! ```
//!
//! # Invariants
//!
//! 1. The half is not 0 while somebody may store to the page; it becomes another owner's only by
//!    way of 0, or of `repair` after the owner died.
//! 2. The sequence is odd while the page may be half written. Only the holder changes it.
//! 3. *No wake-up is lost.* Who sleeps has seen `waiters` set, and who leaves without the lock, or
//!    takes it after a sleep, leaves `waiters` set for the others.
//! 4. Any bit pattern is a state: a word that somebody scribbled on gives an error or a wait that
//!    ends with its deadline, never a panic and never a wrong index.
//! 5. A page that is lost has an odd sequence, and only who writes all of it makes that even.
//! 6. `detached` says that the copies of the page differ, as somebody wants it (004). It stays over
//!    every change of the rest of the word; only a holder changes it.
//!
//! Two 32-bit halves and not one 64-bit word: a futex has 32 bits; a reader's mapping may be
//! read-only, and a 32-bit processor loads 64 bits at once by an instruction that also stores.
//!
//! | the owner dies | sequence | repair |
//! |---|---|---|
//! | after the lock, before the first step of the sequence | even | releases |
//! | between the two steps | odd | makes the page whole, steps the sequence, releases |
//! | after the second step | even | releases |
//! | after `lost` was set in a clean page, before the sequence is odd | even | releases, not lost |
//! | after the sequence of such a page is odd | odd | leaves it lost |
//! | after the unlock, before the wake; or as a waiter that was just woken | any | wakes all |

use dmce_abi::block::SessionId;
use dmce_sys::crash::{Point, point};
use dmce_sys::futex::FutexError;

use crate::atomic::{AtomicU32, Ordering, fence};
use crate::layout::layout;
use crate::parking::{Deadline, Parked, Parking, Wake};

mod bits;

pub use bits::LockBits;

layout! {
    /// The word of one page. Zero is a page that nobody has written.
    #[derive(Debug, Default)]
    #[repr(align(8))]
    pub struct PageLock, 8 bytes {
        /// Written by who may write the page and by repair.
        0 => half: AtomicU32,
        /// Written by the holder, read by every reader.
        4 => sequence: AtomicU32,
    }
}

const FREE: u32 = 0;
const WAITERS: u32 = 1 << 31;
const REPAIR: u32 = 1 << 30;
const LOST: u32 = 1 << 29;
const DETACHED: u32 = 1 << 28;
const OWNER_MASK: u32 = (1 << 28) - 1;
const SLOT_BITS: u32 = 8;
/// What stays with the page, whoever holds it.
const MARKS: u32 = LOST | DETACHED;
const WRITING: u32 = 1;

/// The session and slot that hold a lock. Never 0, because no session's id is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LockOwner(u32);

impl LockOwner {
    /// The owner for a slot of a session.
    #[must_use]
    pub const fn new(session: SessionId, slot: u8) -> Self {
        Self(session.get() << SLOT_BITS | slot as u32)
    }

    /// The session, as far as the word holds an id.
    #[must_use]
    pub fn session(self) -> Option<SessionId> {
        SessionId::try_from(self.0 >> SLOT_BITS).ok()
    }

    /// The slot.
    #[must_use]
    pub const fn slot(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

// Every session id with every slot fits between the flags.
const _: () = assert!(SessionId::MAX << SLOT_BITS | 0xff == OWNER_MASK);

/// What a lock word says, as one look found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// Nobody holds it.
    Free,
    /// A claim: whether the session lives and may write the page is the reader's to check.
    Held(LockOwner),
    /// The broker repairs the page.
    Repair,
    /// Nobody holds it, and its bytes are those of a write that never ended.
    Lost,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Held by another.
    #[error("the page is locked")]
    Busy,
    /// The page is lost, until somebody writes all of it.
    #[error("the bytes of the page are lost")]
    Lost,
    /// Not within the time that the caller allowed.
    #[error("the page stayed locked until the deadline")]
    Timeout,
    /// Not held by who wanted to release it: taken over, or scribbled on.
    #[error("the page is not locked by its releaser")]
    NotHeld,
    /// The word could not be waited for, or its memory is gone.
    #[error(transparent)]
    Parking(#[from] FutexError),
}

impl PageLock {
    /// A word with these bits, as somebody may have left it: no bits are wrong (invariant 4).
    #[must_use]
    pub fn of_words(half: u32, sequence: u32) -> Self {
        Self { half: AtomicU32::new(half), sequence: AtomicU32::new(sequence) }
    }

    /// Takes the lock, or says at once that it is held.
    ///
    /// # Errors
    ///
    /// [`LockError::Busy`].
    #[inline]
    pub fn try_lock(&self, owner: LockOwner) -> Result<(), LockError> {
        // Acquire pairs with the release of whoever set the half to 0.
        let taken = self.half.compare_exchange(FREE, owner.0, Ordering::Acquire, Ordering::Relaxed);
        taken.map(drop).map_err(|_| LockError::Busy)
    }

    /// Takes the lock: spins a little, then sleeps until it is free or the deadline passes.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`], [`LockError::Lost`], [`LockError::Parking`].
    #[inline]
    pub fn lock(
        &self,
        owner: LockOwner,
        deadline: Deadline,
        parking: &impl Parking,
    ) -> Result<(), LockError> {
        if self.try_lock(owner).is_ok() {
            return Ok(());
        }
        self.lock_contended(owner, Lost::Refused, deadline, parking)
    }

    /// [`PageLock::lock`] for who writes the whole page, lost or not. A lost one stays so unless
    /// its sequence is even when it is given back.
    ///
    /// # Errors
    ///
    /// [`LockError::Timeout`], [`LockError::Parking`].
    #[inline]
    pub fn lock_to_rewrite(
        &self,
        owner: LockOwner,
        deadline: Deadline,
        parking: &impl Parking,
    ) -> Result<(), LockError> {
        if self.try_lock(owner).is_ok() {
            return Ok(());
        }
        self.lock_contended(owner, Lost::Taken, deadline, parking)
    }

    #[cold]
    fn lock_contended(
        &self,
        owner: LockOwner,
        lost: Lost,
        deadline: Deadline,
        parking: &impl Parking,
    ) -> Result<(), LockError> {
        let mut round = 0;
        while parking.spin(round) {
            let half = self.half.load(Ordering::Relaxed);
            if half == FREE && self.try_lock(owner).is_ok() {
                return Ok(());
            }
            if matches!(state_of(half), LockState::Lost | LockState::Free) {
                break;
            }
            round += 1;
        }
        // From here on the lock is taken with `waiters`: others may sleep, and the wake-up that
        // came here was theirs as well.
        loop {
            let half = self.half.load(Ordering::Relaxed);
            match state_of(half) {
                LockState::Lost if lost == Lost::Refused => return Err(LockError::Lost),
                LockState::Lost | LockState::Free => {
                    let wanted = owner.0 | WAITERS | half & MARKS;
                    let taken = self.half.compare_exchange(
                        half,
                        wanted,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    );
                    if taken.is_ok() {
                        return Ok(());
                    }
                    continue;
                }
                LockState::Held(_) | LockState::Repair => {}
            }
            let Some(held) = self.ask_to_be_woken(half) else { continue };
            // Only now, with `waiters` set, may this one leave without the lock.
            if parking.park(&self.half, held, deadline)? == Parked::TimedOut {
                return Err(LockError::Timeout);
            }
        }
    }

    /// Sets `waiters` in a half that was seen as `held`; returns the half to sleep on, none if it
    /// changed meanwhile.
    fn ask_to_be_woken(&self, held: u32) -> Option<u32> {
        let asked = held | WAITERS;
        if held == asked {
            return Some(asked);
        }
        // Relaxed: the flag orders nothing, it is the half's own history that counts.
        let set = self.half.compare_exchange(held, asked, Ordering::Relaxed, Ordering::Relaxed);
        set.ok()?;
        point(Point::WaiterEnlisted);
        Some(asked)
    }

    /// Gives the lock back.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if `owner` does not hold it: it was declared dead, or somebody
    /// scribbled; the word is left as it is. [`LockError::Parking`]: released, nobody woken.
    #[inline]
    pub fn unlock(&self, owner: LockOwner, parking: &impl Parking) -> Result<(), LockError> {
        // Release pairs with the acquire of the next holder.
        let given = self.half.compare_exchange(owner.0, FREE, Ordering::Release, Ordering::Relaxed);
        match given {
            Ok(_) => Ok(()),
            Err(half) if state_of(half) == LockState::Held(owner) => {
                self.unlock_contended(owner, parking)
            }
            Err(_) => Err(LockError::NotHeld),
        }
    }

    #[cold]
    fn unlock_contended(&self, owner: LockOwner, parking: &impl Parking) -> Result<(), LockError> {
        let mut half = self.half.load(Ordering::Relaxed);
        while state_of(half) == LockState::Held(owner) {
            // Who took a lost page gives it back whole, or as it was.
            let is_lost = half & LOST != 0 && self.condition() == PageCondition::Torn;
            let given = if is_lost { LOST } else { FREE } | half & DETACHED;
            match self.half.compare_exchange(half, given, Ordering::Release, Ordering::Relaxed) {
                // Those who wait are told of a lost page, and none of them tells the next.
                Ok(_) if is_lost => return self.wake_all(parking),
                Ok(half) if half & WAITERS == 0 => return Ok(()),
                Ok(_) => {
                    point(Point::WaitersUnwoken);
                    return Ok(parking.wake(&self.half, Wake::One)?);
                }
                Err(now) => half = now,
            }
        }
        Err(LockError::NotHeld)
    }

    /// Whether the copies of the page differ, as somebody wants it. For its holder.
    #[inline]
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.half.load(Ordering::Relaxed) & DETACHED != 0
    }

    /// Says that they do, or do not any more. For its holder.
    pub fn set_detached(&self, detached: bool) {
        // Relaxed: it orders nothing; the next holder acquires what this one releases.
        if detached {
            self.half.fetch_or(DETACHED, Ordering::Relaxed);
        } else {
            self.half.fetch_and(!DETACHED, Ordering::Relaxed);
        }
    }

    /// The holder's first step: from here on the page may be half written.
    #[inline]
    pub fn begin_write(&self) {
        // Odd, also if a scribbler left it odd.
        let writing = self.sequence.load(Ordering::Relaxed).wrapping_add(1) | WRITING;
        // Release pairs with the acquire of `begin_read`: who sees it odd sees the half of its
        // writer, and takes no earlier `lost` for its.
        self.sequence.store(writing, Ordering::Release);
        // Release pairs with the acquire fence of `is_unchanged`: who reads a byte that is stored
        // from here on sees the odd sequence at its second look.
        fence(Ordering::Release);
        point(Point::SequenceOdd);
    }

    /// The holder's second step: the page is whole again.
    #[inline]
    pub fn end_write(&self) {
        let written = self.sequence.load(Ordering::Relaxed).wrapping_add(1) & !WRITING;
        // Release pairs with the acquire of `begin_read`.
        self.sequence.store(written, Ordering::Release);
        point(Point::SequenceEven);
    }

    /// Calls a page lost, by its holder, who has written nothing: it is so when it is given back.
    pub fn lose(&self) {
        // Relaxed: the release of the sequence, which follows, orders it.
        self.half.fetch_or(LOST, Ordering::Relaxed);
        self.begin_write();
    }

    /// A reader's look before it reads; none while the page may be half written.
    #[inline]
    #[must_use]
    pub fn begin_read(&self) -> Option<Sequence> {
        // Acquire pairs with the release of `end_write`.
        let sequence = self.sequence.load(Ordering::Acquire);
        (sequence & WRITING == 0).then_some(Sequence(sequence))
    }

    /// Whether the page is lost, for a reader that has just found no sequence to begin with.
    #[inline]
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.half.load(Ordering::Relaxed) & (LOST | REPAIR) == LOST
    }

    /// A reader's look after it has read: whether what it read is whole. If not, all of it is to be
    /// thrown away.
    ///
    /// A reader that sleeps while the page is written 2^31 times is deceived.
    #[inline]
    #[must_use]
    pub fn is_unchanged(&self, since: Sequence) -> bool {
        // Acquire: the loads of the page are done before the second look; pairs with the fence of
        // `begin_write`.
        fence(Ordering::Acquire);
        self.sequence.load(Ordering::Relaxed) == since.0
    }

    /// What the word says now.
    #[must_use]
    pub fn state(&self) -> LockState {
        // Acquire: who sees it free has all writes of the last holder behind it.
        state_of(self.half.load(Ordering::Acquire))
    }

    /// Takes the lock of a dead owner over, for repair. The caller knows that the owner's process
    /// has ended, so nothing of it can follow. Who repaired before and died as well is gone on
    /// after: the half still names whose lock it was.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if the dead does not hold it.
    pub fn take_over(&self, dead: LockOwner) -> Result<PageCondition, LockError> {
        let mut half = self.half.load(Ordering::Relaxed);
        while let Some(taken) = taken_over(half, dead) {
            match self.half.compare_exchange(half, taken, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    // Release pairs with the acquire fence of `is_unchanged`, as the one of
                    // `begin_write` did for the dead: who reads a byte that repair stores sees the
                    // odd sequence at its second look.
                    fence(Ordering::Release);
                    return Ok(self.condition());
                }
                Err(now) => half = now,
            }
        }
        Err(LockError::NotHeld)
    }

    /// Whether the page, held by repair or by the caller, may be half written.
    #[must_use]
    pub fn condition(&self) -> PageCondition {
        condition_of(self.sequence.load(Ordering::Acquire))
    }

    /// Gives the lock back after repair and wakes all who wait. A page that `left` says is whole
    /// has an even sequence then.
    ///
    /// # Errors
    ///
    /// [`LockError::NotHeld`] if repair does not hold it; [`LockError::Parking`]: released, nobody
    /// woken.
    pub fn release_repaired(&self, left: Left, parking: &impl Parking) -> Result<(), LockError> {
        let mut half = self.half.load(Ordering::Relaxed);
        // Nobody but repair takes `repair` away, so this holds until the half is set below.
        let is_repair = state_of(half) == LockState::Repair;
        if is_repair && left == Left::Whole && self.condition() == PageCondition::Torn {
            self.end_write();
        }
        let marks = left.half(self.condition());
        while state_of(half) == LockState::Repair {
            let given = marks | half & DETACHED;
            match self.half.compare_exchange(half, given, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return self.wake_all(parking),
                Err(now) => half = now,
            }
        }
        Err(LockError::NotHeld)
    }

    /// Wakes all who wait: after the death of one who may have been woken in their place, or may
    /// have released the lock and not come to wake them.
    ///
    /// # Errors
    ///
    /// [`LockError::Parking`].
    pub fn wake_all(&self, parking: &impl Parking) -> Result<(), LockError> {
        parking.wake(&self.half, Wake::All)?;
        Ok(())
    }
}

/// A sequence that was even.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence(u32);

impl Sequence {
    /// As it lies in the table.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

/// Whether a page may be half written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageCondition {
    /// Nothing was being written.
    Whole,
    /// Its writer died between the two steps of the sequence.
    Torn,
}

/// How repair leaves a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// All copies have the same bytes, of before the write or after it.
    Whole,
    /// There was nothing to make it whole from.
    Lost,
}

/// Whether a lock is taken with a page that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Refused,
    Taken,
}

impl Left {
    const fn half(self, condition: PageCondition) -> u32 {
        match (self, condition) {
            // A page that nobody was writing is not lost.
            (Self::Lost, PageCondition::Torn) => LOST,
            _ => FREE,
        }
    }
}

const fn condition_of(sequence: u32) -> PageCondition {
    if sequence & WRITING == 0 { PageCondition::Whole } else { PageCondition::Torn }
}

fn state_of(half: u32) -> LockState {
    match half & !(WAITERS | DETACHED) {
        FREE => LockState::Free,
        held if held & REPAIR != 0 => LockState::Repair,
        LOST => LockState::Lost,
        held => LockState::Held(LockOwner(held & OWNER_MASK)),
    }
}

/// The half after repair has taken it over from `dead`; none if that does not hold it, and did not
/// when an earlier repair began. Without `waiters`: repair wakes all in any case.
fn taken_over(half: u32, dead: LockOwner) -> Option<u32> {
    let is_of_dead = half & OWNER_MASK == dead.0;
    let is_taken = matches!(state_of(half), LockState::Held(_) | LockState::Repair);
    (is_of_dead && is_taken).then_some((half & !WAITERS) | REPAIR)
}

#[cfg(test)]
mod tests;

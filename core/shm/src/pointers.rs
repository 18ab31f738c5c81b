//! Pointers that lock: who has which bytes of a block, and who is next (section 6.2; 002).
//!
//! ```text
//!            claim            fields, then TRYING           nobody in the way
//!   (none) --------> FREE --------------------------> TRYING ------------------> HELD
//!                     ^ ^                              |  ^                       |
//!                     | |      gives up                |  | looks again           | release of a
//!                     | +------------------------------+  |                       | write pointer
//!                     | |                 in the way:  v  |                       v
//!                     | +--------------------------- WAITING                  RELEASING
//!                     |        gives up, or cancelled      (has a ticket)         |
//!                     +-----------------------------------------------------------+
//!
//!   the owner of HELD, exclusive, died with nothing to roll back from:
//!   DIRTY, nobody's; FREE when who took it as it is has released that
//! ```
//!
//! There is no lock over the records. Who wants a range says so in a record, and looks at all
//! others after that: of two at the same time at least one sees the other. Who sees that it came
//! second takes a ticket and waits; tickets are served in their order, so nobody is passed by.
//!
//! # Invariants
//!
//! 1. *One of the two sees the other.* A record is TRYING before its owner looks at any other.
//! 2. Of two records that are in each other's way (they overlap, and one is exclusive), only one is
//!    HELD or RELEASING: who is TRYING becomes HELD only when every other in its way is WAITING
//!    behind it, or FREE.
//! 3. Of two that are TRYING the one with the earlier ticket is first; none is later than any;
//!    between two without, the one with the lower index. The other becomes WAITING, so that what
//!    the first waits for always comes; with its ticket it is before who has none. Who reads
//!    within what the same owner reads is behind nobody that is WAITING.
//! 4. *No wake-up is lost.* Who sleeps on a record has set in its word why, while that said what
//!    was found; who changes a word wakes those to whom the change means something.
//! 5. A word that was TRYING never says so again with the same bits: who has seen it with another
//!    ticket, or range, finds it changed.
//! 6. A record belongs to one owner, who alone changes its fields and the state of its word. When
//!    the owner has died, repair does.
//! 7. Any bit pattern is a state: what somebody scribbled gives a wait that ends with its deadline
//!    or an error, never a panic.
//!
//! | the owner dies | the record | repair |
//! |---|---|---|
//! | before TRYING, or after FREE | FREE | nobody's again |
//! | before it has the range | TRYING, WAITING | FREE, wakes all |
//! | with a read pointer | HELD | FREE, wakes all |
//! | with a write pointer | HELD, exclusive | the range is rolled back, or DIRTY; then as above |
//! | while it releases that | RELEASING | the range is rolled forward; then as above |
//! | after FREE, before it has woken those who wait | FREE | wakes all |

use crate::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::layout::layout;
use crate::parking::{Deadline, Parked, Wake};

use dmce_sys::futex::FutexError;

mod terms;
mod word;

pub use terms::{PointerError, PointerOwner, Terms, Turns, Wait, Wanted};

use word::{BELL, DIRTY, FREE, HELD, RELEASING, TRYING, WAITERS, WAITING, WATCHED, Word};

layout! {
    /// What is before the records. Zero is a table that nobody has used.
    #[derive(Debug, Default)]
    #[repr(align(64))]
    pub struct PointersHead, 64 bytes {
        /// The last ticket that was given.
        0 => tickets: AtomicU64,
        /// Records from here on were never claimed. It only rises.
        8 => end: AtomicU32,
        12 => reserved: [AtomicU32; 13],
    }
}

layout! {
    /// A pointer that is held or waited for. Zero is one that nobody has used.
    #[derive(Debug, Default)]
    #[repr(align(64))]
    pub struct PointerRecord, 64 bytes {
        /// A futex; by its owner, but for what it owes.
        0 => word: AtomicU32,
        /// 0 is nobody; taken by compare-and-swap.
        4 => owner: AtomicU32,
        /// From here on by the owner, before the word says TRYING.
        8 => cell: AtomicU64,
        16 => bytes: AtomicU64,
        /// 0 is none, which comes after all others.
        24 => ticket: AtomicU64,
        /// The daemon whose copy is stored to, of a write pointer; 0 is none.
        32 => first: AtomicU32,
        36 => reserved: [AtomicU32; 7],
    }
}

/// The tables in `docs/shared-memory.md`: head, record.
#[cfg(all(test, not(loom)))]
pub(crate) const TABLES: [&[crate::layout::Field]; 2] =
    [PointersHead::FIELDS, PointerRecord::FIELDS];

/// The owner that a [`DIRTY`] record has: no session's.
const NOBODY_LIVING: u32 = u32::MAX;
const NO_TICKET: u64 = u64::MAX;

/// The records of a block, or of the memory that one process has for itself.
#[derive(Clone, Copy, Debug)]
pub struct Pointers<'a> {
    head: &'a PointersHead,
    records: &'a [PointerRecord],
}

/// A record that its user has claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordIndex(u32);

/// What a look at all records has found.
enum Found {
    Nothing,
    /// This is in the way.
    Blocked(Seen),
    /// This one looks as well, and has to go behind.
    Unresolved(Seen),
    Dirty,
}

/// Whether a range to read is within one that its owner reads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Nested {
    Yes,
    No,
}

/// A record, as it was seen.
#[derive(Clone, Copy)]
struct Seen {
    index: usize,
    word: Word,
    range: Wanted,
    ticket: u64,
}

impl<'a> Pointers<'a> {
    /// The records behind a head.
    ///
    /// # Panics
    ///
    /// If there are 2^32 or more.
    #[must_use]
    pub const fn new(head: &'a PointersHead, records: &'a [PointerRecord]) -> Self {
        assert!(records.len() < u32::MAX as usize, "more records than an index counts");
        Self { head, records }
    }

    /// Takes a record that is nobody's: that at `hint` if it can. `None` if all are taken.
    #[must_use]
    pub fn claim(&self, owner: PointerOwner, hint: u32) -> Option<RecordIndex> {
        let (count, hint) = (self.records.len(), hint as usize);
        let mut tried = (hint < count).then_some(hint).into_iter().chain(0..count);
        let index = tried.find(|&index| self.take(index, owner))?;
        Some(RecordIndex(u32::try_from(index).ok()?))
    }

    fn take(&self, index: usize, owner: PointerOwner) -> bool {
        let Some(record) = self.records.get(index) else { return false };
        if record.owner.load(Ordering::Relaxed) != 0 {
            return false;
        }
        let wanted = u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1);
        let mut end = self.head.end.load(Ordering::SeqCst);
        // Before the record can be anybody's: who looks at all of them looks at it.
        while end < wanted {
            let (order, failure) = (Ordering::SeqCst, Ordering::Relaxed);
            match self.head.end.compare_exchange(end, wanted, order, failure) {
                Ok(_) => break,
                Err(now) => end = now,
            }
        }
        // Acquire pairs with the release of `disclaim`.
        let (order, failure) = (Ordering::Acquire, Ordering::Relaxed);
        record.owner.compare_exchange(0, owner.0, order, failure).is_ok()
    }

    /// Gives a record back that is FREE.
    pub fn disclaim(&self, index: RecordIndex) {
        // Release pairs with the acquire of `take`.
        self.of(index).owner.store(0, Ordering::Release);
    }

    /// Takes a range: waits its turn behind all others that are in the way.
    ///
    /// # Errors
    ///
    /// [`PointerError`]. The record is free then, but for [`PointerError::Queued`], with which it
    /// keeps its place: [`Pointers::take_turn`] goes on with it.
    #[inline]
    pub fn acquire(
        &self,
        index: RecordIndex,
        wanted: Wanted,
        terms: Terms,
        turns: &impl Turns,
    ) -> Result<(), PointerError> {
        let record = self.of(index);
        // Who sees one of these sees that the word was free before.
        fence(Ordering::Release);
        record.cell.store(wanted.cell, Ordering::Relaxed);
        record.bytes.store(wanted.bytes, Ordering::Relaxed);
        record.ticket.store(0, Ordering::Relaxed);
        let word = Word(record.word.load(Ordering::Relaxed)).next_try(wanted.exclusive);
        // Release pairs with the acquire of `see`: who sees TRYING sees the range.
        // Sequentially consistent, as all looks at words are (invariant 1).
        record.word.swap(word.0, Ordering::SeqCst);
        publish_fence();
        if matches!(self.look(index, wanted, NO_TICKET, Nested::No), Found::Nothing) {
            return self.resolve(index, word, word.in_state(HELD), turns).map(drop);
        }
        self.acquire_contended(index, (wanted, word), terms, turns)
    }

    /// Goes on with a record that [`Pointers::acquire`] left queued.
    ///
    /// # Errors
    ///
    /// As [`Pointers::acquire`]; [`PointerError::NotHeld`] if it is not queued any more.
    pub fn take_turn(
        &self,
        index: RecordIndex,
        wanted: Wanted,
        terms: Terms,
        turns: &impl Turns,
    ) -> Result<(), PointerError> {
        let word = Word(self.of(index).word.load(Ordering::Relaxed));
        if word.state() != WAITING || !word.is_queued() {
            return Err(PointerError::NotHeld);
        }
        let word = self.try_again(index, Word(word.own()))?;
        self.acquire_contended(index, (wanted, word), terms, turns)
    }

    #[cold]
    fn acquire_contended(
        &self,
        index: RecordIndex,
        (wanted, mut word): (Wanted, Word),
        terms: Terms,
        turns: &impl Turns,
    ) -> Result<(), PointerError> {
        let record = self.of(index);
        let mut spun = 0;
        loop {
            // The record is TRYING.
            let ticket = ticket_of(record);
            let nested = self.nested(index, wanted);
            let (seen, why) = match self.look(index, wanted, ticket, nested) {
                Found::Dirty if !terms.take_dirty => {
                    return self.give_up(index, word, PointerError::OwnerDied, turns);
                }
                Found::Nothing | Found::Dirty => {
                    return self.resolve(index, word, word.in_state(HELD), turns).map(drop);
                }
                Found::Blocked(_) if terms.wait == Wait::Never => {
                    return self.give_up(index, word, PointerError::Busy, turns);
                }
                Found::Unresolved(seen) => (seen, WATCHED),
                Found::Blocked(seen) => {
                    if ticket == NO_TICKET {
                        let next = self.head.tickets.fetch_add(1, Ordering::Relaxed);
                        record.ticket.store(next.wrapping_add(1), Ordering::Relaxed);
                    }
                    let waiting = word.in_state(WAITING);
                    let (waiting, why) = match terms.wait {
                        Wait::Queued => (waiting.queued(), BELL),
                        Wait::InTurn | Wait::Never => (waiting, WAITERS),
                    };
                    word = self.resolve(index, word, waiting, turns)?;
                    (seen, why)
                }
            };
            let slept = match why {
                BELL if self.enlist(seen, BELL).is_some() => return Err(PointerError::Queued),
                BELL => Ok(Parked::Awake),
                _ => self.wait(seen, why, terms.deadline, turns, &mut spun),
            };
            match slept {
                Ok(Parked::Awake) => {}
                Ok(Parked::TimedOut) if terms.wait == Wait::Never => {
                    return self.give_up(index, word, PointerError::Busy, turns);
                }
                Ok(Parked::TimedOut) => {
                    return self.give_up(index, word, PointerError::Timeout, turns);
                }
                Err(error) => return self.give_up(index, word, error.into(), turns),
            }
            if why != WATCHED {
                word = self.try_again(index, word)?;
            }
        }
    }

    /// WAITING to TRYING. Who sleeps until the record is gone sleeps on.
    fn try_again(&self, index: RecordIndex, waiting: Word) -> Result<Word, PointerError> {
        let trying = waiting.next_try(waiting.is_exclusive());
        self.change(index, waiting, trying, WAITERS | BELL)?;
        publish_fence();
        Ok(trying)
    }

    /// Ends TRYING; returns the word that the record has then.
    #[inline]
    fn resolve(
        &self,
        index: RecordIndex,
        trying: Word,
        resolved: Word,
        turns: &impl Turns,
    ) -> Result<Word, PointerError> {
        // Who waits for one that holds goes on waiting. One that waits itself may be behind others
        // by its ticket.
        let kept = if resolved.state() == HELD { WAITERS | BELL } else { 0 };
        let owed = self.change(index, trying, resolved, kept)?;
        self.pay(index, owed, turns)?;
        Ok(resolved)
    }

    #[cold]
    fn give_up(
        &self,
        index: RecordIndex,
        word: Word,
        error: PointerError,
        turns: &impl Turns,
    ) -> Result<(), PointerError> {
        let owed = self.change(index, word, word.in_state(FREE), 0)?;
        self.pay(index, owed, turns)?;
        Err(error)
    }

    /// Says that what a write pointer stored goes to the other copies now: from here on a death of
    /// the owner brings all of it there.
    ///
    /// # Errors
    ///
    /// [`PointerError::NotHeld`].
    pub fn begin_release(&self, index: RecordIndex) -> Result<(), PointerError> {
        let held = self.held(index)?;
        self.change(index, held, held.in_state(RELEASING), WAITERS | BELL).map(drop)
    }

    /// Gives a range back that is held, and is whole on all copies. The record stays its owner's.
    ///
    /// # Errors
    ///
    /// [`PointerError::NotHeld`]; [`PointerError::Parking`]: given back, nobody woken.
    #[inline]
    pub fn release(&self, index: RecordIndex, turns: &impl Turns) -> Result<(), PointerError> {
        let held = self.held(index)?;
        let owed = self.change(index, held, held.in_state(FREE), 0)?;
        self.pay(index, owed, turns)
    }

    /// Gives a place in the queue up.
    ///
    /// # Errors
    ///
    /// [`PointerError::NotHeld`] if the record waits for nothing.
    pub fn cancel(&self, index: RecordIndex, turns: &impl Turns) -> Result<(), PointerError> {
        let word = Word(self.of(index).word.load(Ordering::Relaxed));
        if word.state() != WAITING || !word.is_queued() {
            return Err(PointerError::NotHeld);
        }
        let waiting = Word(word.own());
        let owed = self.change(index, waiting, waiting.in_state(FREE), 0)?;
        self.pay(index, owed, turns)
    }

    /// Frees the marks of owners that died in a range, which its holder has made whole.
    pub fn clear_dirty(&self, whole: Wanted) {
        for index in 0..self.end() {
            let Some(seen) = self.see(index).filter(|seen| seen.word.state() == DIRTY) else {
                continue;
            };
            if seen.range.is_within(whole) {
                let record = &self.records[index];
                let (from, to) = (seen.word.0, seen.word.in_state(FREE).0);
                let freed =
                    record.word.compare_exchange(from, to, Ordering::SeqCst, Ordering::Relaxed);
                if freed.is_ok() {
                    // Release pairs with the acquire of `take`.
                    record.owner.store(0, Ordering::Release);
                }
            }
        }
    }

    /// Has a queued record told of, when what is before it changes. True if it has its turn by now.
    #[must_use]
    pub fn ring_for(&self, index: RecordIndex) -> bool {
        loop {
            let Some(own) = self.see(index.0 as usize) else { return false };
            if own.word.state() != WAITING || !own.word.is_queued() {
                return false;
            }
            match self.look(index, own.range, own.ticket, Nested::No) {
                Found::Nothing | Found::Dirty => return true,
                Found::Blocked(seen) | Found::Unresolved(seen) => {
                    if self.enlist(seen, BELL).is_some() {
                        return false;
                    }
                }
            }
        }
    }

    fn held(&self, index: RecordIndex) -> Result<Word, PointerError> {
        let word = Word(self.of(index).word.load(Ordering::Relaxed));
        match word.state() {
            HELD | RELEASING => Ok(Word(word.own())),
            _ => Err(PointerError::NotHeld),
        }
    }

    /// Puts a word in the place of one that its owner has put there, with what is kept of what it
    /// owes; returns the word that was there.
    #[inline]
    fn change(
        &self,
        index: RecordIndex,
        from: Word,
        to: Word,
        kept: u32,
    ) -> Result<Word, PointerError> {
        let word = &self.of(index).word;
        let mut now = from.0;
        loop {
            // Release pairs with the acquire of `see`: what was done with the range is done before
            // the next holder does something with it.
            match word.compare_exchange(now, to.0 | now & kept, Ordering::SeqCst, Ordering::Relaxed)
            {
                Ok(_) => return Ok(Word(now & !kept)),
                Err(other) if Word(other).own() == from.own() => now = other,
                Err(_) => return Err(PointerError::NotHeld),
            }
        }
    }

    /// Wakes and tells those to whom a record owes it.
    #[inline]
    fn pay(&self, index: RecordIndex, owed: Word, turns: &impl Turns) -> Result<(), PointerError> {
        if owed.owes(BELL) {
            turns.ring();
        }
        if owed.owes(WAITERS | WATCHED) {
            turns.wake(&self.of(index).word, Wake::All)?;
        }
        Ok(())
    }

    /// Waits until a record is not what it was seen as.
    fn wait(
        &self,
        seen: Seen,
        why: u32,
        deadline: Deadline,
        turns: &impl Turns,
        spun: &mut u32,
    ) -> Result<Parked, FutexError> {
        let word = &self.records[seen.index].word;
        while turns.spin(*spun) {
            *spun += 1;
            if Word(word.load(Ordering::Relaxed)).own() != seen.word.own() {
                return Ok(Parked::Awake);
            }
        }
        match self.enlist(seen, why) {
            Some(asleep_on) => turns.park(word, asleep_on, deadline),
            None => Ok(Parked::Awake),
        }
    }

    /// Has a record owe something, if it still is as it was seen; returns its word with that.
    fn enlist(&self, seen: Seen, why: u32) -> Option<u32> {
        let word = &self.records[seen.index].word;
        let mut now = word.load(Ordering::Relaxed);
        while Word(now).own() == seen.word.own() {
            let owing = now | why;
            if now == owing {
                return Some(owing);
            }
            // Relaxed: the flag orders nothing, it is the word's own history that counts.
            match word.compare_exchange(now, owing, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(owing),
                Err(other) => now = other,
            }
        }
        None
    }

    /// Looks at all records for one that is in the way of a range with a ticket.
    #[inline]
    fn look(&self, index: RecordIndex, wanted: Wanted, ticket: u64, nested: Nested) -> Found {
        let (own, mut found) = (index.0 as usize, Found::Nothing);
        for other in 0..self.end() {
            // Sequentially consistent: invariant 1.
            let word = Word(self.records[other].word.load(Ordering::SeqCst));
            if other != own && word.state() != FREE {
                self.weigh(&mut found, (own, wanted, ticket, nested), other);
            }
        }
        found
    }

    /// Whether a range is read by its owner already, who would wait for itself behind a writer.
    fn nested(&self, index: RecordIndex, wanted: Wanted) -> Nested {
        let owner = self.of(index).owner.load(Ordering::Relaxed);
        let is_around = |other: usize| {
            let seen = self.see(other).filter(|seen| seen.word.state() == HELD);
            let around = seen.filter(|seen| !seen.range.exclusive && wanted.is_within(seen.range));
            around.is_some() && self.records[other].owner.load(Ordering::Relaxed) == owner
        };
        if !wanted.exclusive && (0..self.end()).any(is_around) { Nested::Yes } else { Nested::No }
    }

    /// Takes one other record into what was found.
    fn weigh(
        &self,
        found: &mut Found,
        (own, wanted, ticket, nested): (usize, Wanted, u64, Nested),
        other: usize,
    ) {
        let Some(seen) = self.see(other) else { return };
        if !seen.range.is_in_the_way_of(wanted) {
            return;
        }
        let is_before = (seen.ticket, other) < (ticket, own);
        let next = match seen.word.state() {
            HELD | RELEASING => Found::Blocked(Seen { ticket: 0, ..seen }),
            // When it looks again, it sees this one. One that is TRYING may have looked before.
            WAITING if nested == Nested::Yes => return,
            WAITING | TRYING if is_before => Found::Blocked(seen),
            TRYING => Found::Unresolved(seen),
            DIRTY => Found::Dirty,
            _ => return,
        };
        *found = match (&*found, next) {
            // Behind the last of those before it: who goes then wakes one and not all.
            (Found::Blocked(a), Found::Blocked(b)) if a.ticket >= b.ticket => Found::Blocked(*a),
            (_, Found::Blocked(b)) => Found::Blocked(b),
            (Found::Blocked(a), _) => Found::Blocked(*a),
            (Found::Unresolved(a), _) => Found::Unresolved(*a),
            (_, next) => next,
        };
    }

    /// A record as it is. `None` if it is free: who uses it after this look began looks itself.
    fn see(&self, index: usize) -> Option<Seen> {
        let record = self.records.get(index)?;
        loop {
            // Sequentially consistent: invariant 1. It pairs with the release of the word, before
            // which the fields were stored.
            let word = Word(record.word.load(Ordering::SeqCst));
            if matches!(word.state(), FREE) || word.state() > DIRTY {
                return None;
            }
            let cell = record.cell.load(Ordering::Relaxed);
            let bytes = record.bytes.load(Ordering::Relaxed);
            let ticket = ticket_of(record);
            // The fields before the second look at the word.
            fence(Ordering::Acquire);
            if Word(record.word.load(Ordering::Relaxed)).own() == word.own() {
                let range = Wanted { cell, bytes, exclusive: word.is_exclusive() };
                let range = match word.state() {
                    DIRTY => Wanted { exclusive: true, ..range },
                    _ => range,
                };
                return Some(Seen { index, word, range, ticket });
            }
        }
    }

    fn end(&self) -> usize {
        // Sequentially consistent: who claims a record raises this before it is TRYING.
        (self.head.end.load(Ordering::SeqCst) as usize).min(self.records.len())
    }

    fn of(&self, index: RecordIndex) -> &'a PointerRecord {
        &self.records[index.0 as usize]
    }
}

fn ticket_of(record: &PointerRecord) -> u64 {
    match record.ticket.load(Ordering::Relaxed) {
        0 => NO_TICKET,
        ticket => ticket,
    }
}

/// Between a word that says TRYING and the looks at others: on this memory model the word's own
/// order says it, which that of loom does not know.
#[inline]
fn publish_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

#[cfg(test)]
mod tests;

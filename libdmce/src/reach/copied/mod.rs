//! A block with copies: what is written is on all of them, and what is read is whole.
//!
//! ```text
//!   read    sequences even? -> the bytes of the first copy that is there -> the same sequences?
//!   write   in batches of 16 pages: intent, locks, odd -> first copy -> others -> even, free
//! ```
//!
//! The steps of a write, and why they are these, are those of [`dmce_shm::copies`].
//!
//! # Invariants
//!
//! 1. What a read returns was on a good copy at one moment, page by page, and no part of a write
//!    that had not come to its end.
//! 2. A copy that cannot be read is reported, and the next one is read under the same sequences:
//!    nobody is waited for.
//! 3. A copy that cannot be written is judged by who knows ([`Arbiter`]); until then the pages stay
//!    locked. A write that nobody judges ends its session, and is repaired as that of the dead.
//! 4. What was done without page locks, since somebody cut their table, is done again.
//! 5. All accesses are inside an operation of the calling thread's slot, whose intent they use.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::hint;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU8};
use std::thread;
use std::time::Duration;

use dmce_abi::block::{BlockId, DaemonId, Half, SessionId};
use dmce_shm::copies::{BATCH_PAGES, Batch, Writer};
use dmce_shm::lock::{LockError, LockOwner, PageLock, Sequence};
use dmce_shm::parking::{Deadline, Kernel, Parking};
use dmce_shm::session::map::SessionMap;

use super::store;
use super::word::{Change, Watch};
use super::{Piece, Reach, Trouble};
use crate::slots::{SHARED_SLOT, Slots};
use crate::{connection, limit};

mod copy;
mod small;
#[cfg(test)]
mod tests;
mod write;

pub(crate) use copy::{Copy, Way};
pub(crate) use dmce_shm::table::{LockTable, Size, TableFault};
use write::{Content, Where};

/// That the lock table is gone was reported.
const TABLE: u8 = 1 << 7;
/// The most good copies that a block has.
const COPIES_MAX: usize = 3;
/// The most that a write goes to: one of them is syncing.
const WRITTEN_MAX: usize = COPIES_MAX + 1;
/// How long a reader that may not lock a page rests between looks at it.
const PAUSE: Duration = Duration::from_micros(50);
/// How often a reader looks again before it goes another way.
const LOOKS: u32 = 64;

/// What accesses of blocks with copies need of their session.
#[derive(Debug)]
pub(crate) struct Party {
    pub map: Arc<SessionMap>,
    pub slots: Slots,
    pub session: SessionId,
    /// How long who wants a page waits for its holder.
    pub timeout: Duration,
    pub arbiter: Arc<dyn Arbiter>,
}

impl Party {
    /// Until when who begins to wait for a page does.
    fn deadline(&self) -> Deadline {
        let ms = u32::try_from(self.timeout.as_millis()).unwrap_or(u32::MAX);
        let limit = limit::at_most(connection::Deadline::after_ms(ms));
        Deadline::at(limit.at_ns())
    }
}

/// Who decides about copies that cannot be reached: the session, which asks the broker.
pub(crate) trait Arbiter: Debug + Send + Sync {
    /// A copy could not be read, and another was. Inside an operation: nobody is waited for.
    fn report(&self, damage: Damage);

    /// A copy could not be written. Waits, inside an operation and with pages locked, until it is
    /// known what became of it: so whoever brings the answer does not wait for operations to end.
    fn judge(&self, damage: Damage) -> Judgement;

    /// A write was not brought to its end and keeps its locks: the session is over. No operation
    /// begins any more; this says so to everybody else.
    fn give_up(&self, damage: Damage);
}

/// Which copy it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub block: BlockId,
    /// The block's epoch, as this client knows it.
    pub epoch: u64,
    /// Whose copy.
    pub daemon: DaemonId,
}

/// What is known of a copy that could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// It is good, and there again, in the same object.
    Good,
    /// A higher epoch names it no more.
    Dropped,
    /// Nobody has said so in time.
    Unknown,
}

/// Which block it is, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub block: BlockId,
    pub epoch: u64,
    /// The DMCE address of its first cell.
    pub base: u64,
}

/// The copies of a block that are written.
#[derive(Debug)]
pub(crate) struct CopySet {
    /// The good ones, the primary first, and then what is syncing.
    pub copies: Vec<Copy>,
    /// How many of these are good.
    pub good: usize,
}

/// A block with copies, or one that had some.
#[derive(Debug)]
pub(crate) struct CopiedBlock {
    identity: Identity,
    /// Those that are written: the good ones, the primary first, and what is syncing.
    copies: Vec<Copy>,
    /// How many of these are good; one to three. The others are never read.
    good: usize,
    locks: LockTable,
    party: Arc<Party>,
    /// Of each copy a bit, if it could not be read; and [`TABLE`].
    damaged: AtomicU8,
    /// Set before the session says that it has taken in what it was told of.
    is_retired: AtomicBool,
}

/// The pages of a batch, as a reader found them before it read.
type Sequences = [Option<Sequence>; PAGES];

const PAGES: usize = 16;
const _: () = assert!(PAGES as u64 == BATCH_PAGES);

/// Whether all pages of a range are whole just now.
enum Found {
    Whole(Sequences),
    Written,
    Lost,
}

impl CopiedBlock {
    /// Takes the copies and the lock table of a block in.
    ///
    /// # Panics
    ///
    /// If no copy is good, or there are more than a block has.
    pub(crate) fn new(
        identity: Identity,
        CopySet { copies, good }: CopySet,
        locks: LockTable,
        party: Arc<Party>,
    ) -> Self {
        let written = copies.len();
        assert!((1..=COPIES_MAX).contains(&good), "{good} good copies");
        assert!((good..=WRITTEN_MAX).contains(&written), "{written} copies, {good} of them good");
        let (damaged, is_retired) = (AtomicU8::new(0), AtomicBool::new(false));
        Self { identity, copies, good, locks, party, damaged, is_retired }
    }

    /// How many descriptors it keeps.
    pub(crate) fn descriptors(&self) -> usize {
        self.copies.iter().filter(|copy| matches!(copy.way, Way::Windowed(_))).count()
    }

    /// Whether one of those was used since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        let mut ways = self.copies.iter().map(|copy| &copy.way);
        ways.any(|way| matches!(way, Way::Windowed(windowed) if windowed.take_touched()))
    }

    /// Whether something of it was reported.
    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Relaxed) != 0
    }

    /// The pages' words that a piece of one batch lies in.
    #[inline]
    fn words(&self, piece: Piece) -> &[PageLock] {
        let pages = batch_of(piece).pages();
        self.locks.words(pages)
    }

    #[inline]
    fn look(&self, piece: Piece) -> Found {
        let mut sequences = [None; PAGES];
        for (sequence, word) in sequences.iter_mut().zip(self.words(piece)) {
            *sequence = word.begin_read();
            if sequence.is_none() {
                return if word.is_lost() { Found::Lost } else { Found::Written };
            }
        }
        Found::Whole(sequences)
    }

    #[inline]
    fn is_unchanged(&self, piece: Piece, since: &Sequences) -> bool {
        let words = self.words(piece);
        since.iter().zip(words).all(|(since, word)| since.is_some_and(|s| word.is_unchanged(s)))
    }

    /// Does something to a piece of one batch that only reads it, until nobody wrote it meanwhile.
    #[inline]
    fn observe<T>(
        &self,
        piece: Piece,
        mut act: impl FnMut(&Copy) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let observed = match self.words(piece) {
            [word] => self.try_observe_page(word, &mut act),
            _ => self.try_observe(piece, &mut act)?,
        };
        let observed = observed.unwrap_or_else(|| self.observe_again(piece, &mut act));
        self.locked()?;
        observed
    }

    /// Checks that the page locks are those of all who use the block.
    #[inline]
    fn locked(&self) -> Result<(), Trouble> {
        if self.locks.is_harmed() { Err(Trouble::Unlocked) } else { Ok(()) }
    }

    /// Checks, with pages locked, that the session was told of nothing since the operation began:
    /// else the first copy may be one that others have not written since. Whoever has, was told
    /// after this session was, and has had the lock before.
    #[inline]
    fn as_told(&self) -> Result<(), Trouble> {
        // The change may have been taken in already: then this block was retired before.
        let is_told = !self.party.map.has_moved() && !self.is_retired.load(Acquire);
        if is_told { Ok(()) } else { Err(Trouble::Moved) }
    }

    /// It is not in the table any more.
    pub(crate) fn note_retired(&self) {
        self.is_retired.store(true, Release);
    }

    /// Has the broker look at the lock table if it is gone.
    #[inline]
    fn locked_or_reported(&self) {
        if self.locks.is_harmed() && self.damaged.fetch_or(TABLE, Relaxed) & TABLE == 0 {
            self.party.arbiter.report(self.damage_of(0));
        }
    }

    /// [`Self::observe`] once, of a piece of one page; none if somebody writes it, or it is lost.
    #[inline]
    fn try_observe_page<T>(
        &self,
        word: &PageLock,
        act: &mut impl FnMut(&Copy) -> Result<T, Trouble>,
    ) -> Option<Result<T, Trouble>> {
        let since = word.begin_read()?;
        let observed = self.on_first(act);
        word.is_unchanged(since).then_some(observed)
    }

    /// [`Self::observe`] once; none if somebody writes it.
    #[inline]
    fn try_observe<T>(
        &self,
        piece: Piece,
        act: &mut impl FnMut(&Copy) -> Result<T, Trouble>,
    ) -> Result<Option<Result<T, Trouble>>, Trouble> {
        match self.look(piece) {
            Found::Whole(since) => {
                let observed = self.on_first(act);
                Ok(self.is_unchanged(piece, &since).then_some(observed))
            }
            Found::Written => Ok(None),
            Found::Lost => Err(Trouble::Unwritten),
        }
    }

    /// Somebody writes it: looks again some times, then lets nobody write it meanwhile.
    #[cold]
    fn observe_again<T>(
        &self,
        piece: Piece,
        act: &mut impl FnMut(&Copy) -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        let deadline = self.party.deadline();
        for look in 0.. {
            if let Some(observed) = self.try_observe(piece, act)? {
                return observed;
            }
            if look < LOOKS {
                hint::spin_loop();
            } else if self.locks.is_writable() {
                return self.hold(piece, || self.on_first(act));
            } else if !Kernel.spin(look - LOOKS) {
                // Who may not write the words cannot ask to be woken.
                if deadline.rest().is_some_and(|rest| rest.is_zero()) {
                    return Err(Trouble::Held);
                }
                thread::sleep(PAUSE);
            }
        }
        unreachable!("a reader looks for as long as it may")
    }

    /// Does something while nobody writes the pages of a piece.
    fn hold<T>(
        &self,
        piece: Piece,
        act: impl FnOnce() -> Result<T, Trouble>,
    ) -> Result<T, Trouble> {
        self.writer(self.slot()).hold(batch_of(piece), act).map_err(|error| of_lock(&error))?
    }

    /// Does something to the first copy that is there, and to the next one if it is not.
    #[inline]
    fn on_first<T>(&self, act: &mut impl FnMut(&Copy) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let damaged = self.damaged.load(Relaxed);
        if damaged == 0 {
            match act(&self.copies[0]) {
                Err(Trouble::Lost) => self.damage(0),
                other => return other,
            }
        }
        self.on_next(act)
    }

    #[cold]
    fn on_next<T>(&self, act: &mut impl FnMut(&Copy) -> Result<T, Trouble>) -> Result<T, Trouble> {
        let damaged = self.damaged.load(Relaxed);
        let is_there = |copy: &usize| damaged & 1 << copy == 0;
        for copy in (0..self.good).filter(is_there) {
            match act(&self.copies[copy]) {
                Err(Trouble::Lost) => self.damage(copy),
                other => return other,
            }
        }
        Err(Trouble::Lost)
    }

    /// Says that a copy cannot be read.
    #[cold]
    fn damage(&self, copy: usize) {
        if self.damaged.fetch_or(1 << copy, Relaxed) & 1 << copy == 0 {
            self.party.arbiter.report(self.damage_of(copy));
        }
    }

    /// Whose copy is the first.
    pub(crate) fn primary(&self) -> DaemonId {
        self.copies[0].daemon
    }

    /// A half that is good and not the first copy's.
    pub(crate) fn second_half(&self) -> Option<Half> {
        self.copies[..self.good].get(1).map(|copy| copy.half)
    }

    /// Which copy is a half.
    fn place_of(&self, half: Half) -> Result<usize, Trouble> {
        self.copies[..self.good].iter().position(|copy| copy.half == half).ok_or(Trouble::NoHalf)
    }

    /// Copies a piece out of one half.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    pub(crate) unsafe fn read_half(
        &self,
        piece: Piece,
        half: Half,
        buffer: *mut u8,
    ) -> Result<(), Trouble> {
        let (place, store) = (self.place_of(half)?, store::out_of_block(piece.bytes));
        each_batch(piece, |part, done| {
            let buffer = buffer.wrapping_add(done);
            self.observe(part, |_| {
                // SAFETY: a part of the caller's buffer.
                let loaded = unsafe { self.copies[place].load(part, buffer, store) };
                loaded.map_err(|trouble| self.not_of_half(place, trouble))
            })
        })
    }

    /// Where a half is gone no other takes its place.
    fn not_of_half(&self, copy: usize, trouble: Trouble) -> Trouble {
        if trouble != Trouble::Lost {
            return trouble;
        }
        self.damage(copy);
        Trouble::NoHalf
    }

    fn damage_of(&self, copy: usize) -> Damage {
        let Identity { block, epoch, .. } = self.identity;
        Damage { block, epoch, daemon: self.copies[copy].daemon }
    }

    /// The slot of the operation that the caller is in.
    #[inline]
    fn slot(&self) -> u8 {
        let slot = self.party.slots.own().unwrap_or(SHARED_SLOT);
        slot.to_le_bytes()[0]
    }

    #[inline]
    fn writer(&self, slot: u8) -> Writer<'_, Kernel, impl Fn() -> Deadline> {
        self.writer_until(slot, || self.party.deadline())
    }

    /// A writer that waits for locks as long as `deadline` says.
    #[inline]
    fn writer_until<D: Fn() -> Deadline>(&self, slot: u8, deadline: D) -> Writer<'_, Kernel, D> {
        Writer {
            slot: &self.party.map.slots()[usize::from(slot)],
            owner: LockOwner::new(self.party.session, slot),
            base: self.identity.base,
            locks: self.locks.all(),
            parking: Kernel,
            deadline,
        }
    }
}

impl Reach for CopiedBlock {
    #[inline]
    unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Trouble> {
        let store = store::out_of_block(piece.bytes);
        each_batch(piece, |part, done| {
            let buffer = buffer.wrapping_add(done);
            // SAFETY: a part of the caller's buffer.
            self.observe(part, |copy| unsafe { copy.load(part, buffer, store) })
        })
    }

    #[inline]
    unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Trouble> {
        // SAFETY: the caller's data are readable for as long as this lasts.
        let content = unsafe { Content::data(data) };
        self.put(piece, content, Where::All).map(drop)
    }

    fn fill(&self, piece: Piece, byte: u8) -> Result<(), Trouble> {
        self.put(piece, Content::byte(byte), Where::All).map(drop)
    }

    unsafe fn compare(&self, piece: Piece, data: *const u8) -> Result<Ordering, Trouble> {
        let mut order = Ordering::Equal;
        each_batch(piece, |part, done| {
            if order == Ordering::Equal {
                let data = data.wrapping_add(done);
                // SAFETY: a part of the caller's data, which nobody writes.
                order = self.observe(part, |copy| unsafe { copy.compare(part, data) })?;
            }
            Ok(())
        })?;
        Ok(order)
    }

    fn change(&self, piece: Piece, change: Change) -> Result<u64, Trouble> {
        match change {
            Change::None => self.observe(piece, |copy| copy.change(piece, Change::None)),
            change => self.put(piece, Content::change(change), Where::All),
        }
    }

    fn wake(&self, piece: Piece, count: u32) -> Result<(), Trouble> {
        self.on_first(&mut |copy: &Copy| copy.wake(piece, count))
    }

    fn watch(&self, piece: Piece) -> Result<Watch, Trouble> {
        self.on_first(&mut |copy: &Copy| copy.watch(piece))
    }
}

/// Runs `act` on the parts of a piece that are batches.
#[inline]
fn each_batch(
    piece: Piece,
    mut act: impl FnMut(Piece, usize) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let (mut done, until) = (0, piece.cell + piece.bytes as u64);
    while done < piece.bytes {
        let batch = Batch::first_of(piece.cell + done as u64, until, piece.committed);
        let bytes = usize::try_from(batch.bytes).expect("a batch is a part of the piece");
        act(piece.part(done, bytes), done)?;
        done += bytes;
    }
    Ok(())
}

#[inline]
const fn batch_of(piece: Piece) -> Batch {
    Batch { cell: piece.cell, bytes: piece.bytes as u64, end: piece.committed }
}

#[cold]
fn of_lock(error: &LockError) -> Trouble {
    match error {
        LockError::Lost => Trouble::Unwritten,
        LockError::Timeout => Trouble::Held,
        error => {
            tracing::warn!(%error, "the lock of a page cannot be used");
            Trouble::Io
        }
    }
}

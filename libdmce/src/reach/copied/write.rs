//! What is written, and to which copies.

use std::mem::MaybeUninit;

use dmce_abi::block::Half;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::copies::{BATCH_PAGES, Batch, Beginning, Copies, Pages, Verdict, WriteError};
use dmce_shm::session::UNDO_BYTES;
use dmce_shm::slot::intent::Undo;
use dmce_sys::transfer::{self, Store};

use super::{CopiedBlock, Judgement, WRITTEN_MAX, of_lock};
use crate::reach::word::{Change, WORD_BYTES};
use crate::reach::{Piece, Trouble, store};

/// Up to so many bytes that are overwritten are saved although there are other copies: those and
/// the writer may be lost together.
pub(super) const SAVED_BYTES: usize = 256;
/// The most that a batch has.
const BATCH_BYTES: usize = 64 << 10;
const _: () = assert!(BATCH_BYTES as u64 == BATCH_PAGES * PAGE_BYTES);
/// How often a copy may be called good that cannot be reached, in one batch.
const GOOD_MAX: u32 = 3;

/// What is written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// Bytes of the caller.
    Data(*const u8),
    /// One byte everywhere.
    Byte(u8),
    /// What a word is changed to: how, what it was, and what it becomes.
    Word(Change, [u64; 2]),
    /// What the first copy has already, by way of a buffer that has room for a batch.
    Carried(*mut u8),
}

/// Where it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// To all copies.
    All,
    /// To that copy alone, so that the copies differ (004); and to what is made in its place.
    Alone(usize),
    /// To all others.
    From(usize),
}

impl Content {
    /// # Safety
    ///
    /// `data` are readable, and no part of a block, as long as they are written anywhere.
    pub(super) const unsafe fn data(data: *const u8) -> Self {
        Self::Data(data)
    }

    pub(super) const fn byte(byte: u8) -> Self {
        Self::Byte(byte)
    }

    pub(super) const fn change(change: Change) -> Self {
        Self::Word(change, [0; 2])
    }

    /// What remains of it after so many bytes.
    const fn after(self, done: usize) -> Self {
        match self {
            Self::Data(data) => Self::Data(data.wrapping_add(done)),
            other => other,
        }
    }
}

/// The copies that a write goes to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Targets {
    /// Of each copy a bit.
    bits: u8,
    /// How many of all copies, the first ones, are good.
    good: usize,
}

impl Where {
    fn targets(self, block: &CopiedBlock) -> Targets {
        match self {
            Self::All | Self::From(_) => Targets::all(block),
            Self::Alone(copy) => {
                let half = block.copies[copy].half;
                // One that is made in its place is that half soon.
                let is_same = block.copies.get(block.good).is_some_and(|of| of.half == half);
                let syncing = u8::from(is_same) << block.good;
                Targets { bits: 1 << copy | syncing, good: block.good }
            }
        }
    }
}

impl Targets {
    const fn all(block: &CopiedBlock) -> Self {
        Self { bits: (1 << block.copies.len()) - 1, good: block.good }
    }

    const fn has(self, copy: usize) -> bool {
        self.bits & 1 << copy != 0
    }

    /// How many of them are good: what is overwritten can be had from another, or from none.
    const fn good(self) -> u32 {
        (self.bits & ((1 << self.good) - 1)).count_ones()
    }

    /// The first one, which is good; the caller knows that there is one.
    const fn first(self) -> usize {
        self.bits.trailing_zeros() as usize
    }
}

/// One batch of a write.
pub(super) struct Stores<'a> {
    block: &'a CopiedBlock,
    piece: Piece,
    content: Content,
    store: Store,
    targets: Targets,
    place: Where,
    /// The one that is written first.
    first: usize,
    slot: u8,
    /// The copy that could not be reached last.
    pub(super) failed: usize,
    /// How often one was called good.
    good: u32,
}

impl CopiedBlock {
    /// Writes a piece to copies; returns what the word was that was changed.
    #[inline]
    pub(super) fn put(&self, piece: Piece, content: Content, place: Where) -> Result<u64, Trouble> {
        let slot = self.slot();
        let writer = self.writer(slot);
        let mut stores = Stores::new(self, (piece, content), place, slot);
        stores.store = match store::into_block(piece.bytes) {
            Store::Streamed => Store::Unordered,
            store => store,
        };
        let (mut done, until, mut by_pages) = (0, piece.cell + piece.bytes as u64, false);
        while done < piece.bytes {
            let cell = piece.cell + done as u64;
            let until = if by_pages { Stores::page_until(cell, until) } else { until };
            let batch = Batch::first_of(cell, stores.until(cell, until), piece.committed);
            let bytes = usize::try_from(batch.bytes).expect("a batch is a part of the piece");
            stores.piece = piece.part(done, bytes);
            stores.content = content.after(done);
            stores.good = 0;
            match writer.write(batch, &mut stores) {
                Ok(()) => done += bytes,
                Err(WriteError::Untouched(Trouble::Detached)) if !by_pages => by_pages = true,
                Err(WriteError::Unlocked(error)) => {
                    // It was written. If the table was cut, somebody else may have been as well.
                    tracing::warn!(block = %self.identity.block, %error, "page locks were taken");
                    done += bytes;
                }
                Err(error) => {
                    let trouble = self.end_of_write(stores.failed, error);
                    return Err(if done > 0 { trouble.behind_a_part() } else { trouble });
                }
            }
        }
        match content {
            // It cannot be done again.
            Content::Word(..) => self.locked_or_reported(),
            _ => self.locked()?,
        }
        Ok(stores.before())
    }

    /// Brings what the first copy has in a piece to the others: it was stored there by a plain
    /// pointer.
    pub(crate) fn carry(&self, piece: Piece) -> Result<(), Trouble> {
        let mut buffer = vec![0_u8; piece.bytes.min(BATCH_BYTES)];
        self.put(piece, Content::Carried(buffer.as_mut_ptr()), Where::All).map(drop)
    }

    /// Brings what one half has in a piece to the others, so that they differ no more.
    pub(crate) fn resync(&self, piece: Piece, half: Half) -> Result<(), Trouble> {
        let from = Where::From(self.place_of(half)?);
        let mut buffer = vec![0_u8; piece.bytes.min(BATCH_BYTES)];
        self.put(piece, Content::Carried(buffer.as_mut_ptr()), from).map(drop)
    }

    /// Writes a piece to one half alone.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`](crate::reach::Reach::write).
    pub(crate) unsafe fn write_half(
        &self,
        piece: Piece,
        half: Half,
        data: *const u8,
    ) -> Result<(), Trouble> {
        let place = Where::Alone(self.place_of(half)?);
        // SAFETY: the caller's data are readable for as long as this lasts.
        let content = unsafe { Content::data(data) };
        match self.put(piece, content, place) {
            Err(Trouble::Lost) => Err(Trouble::NoHalf),
            put => put.map(drop),
        }
    }

    /// Saves what a copy has in a piece of at most `BYTES` in the undo buffer of a slot, if there
    /// is one.
    #[inline]
    pub(super) fn save<const BYTES: usize>(
        &self,
        copy: usize,
        piece: Piece,
        slot: u8,
    ) -> Result<Undo, Trouble> {
        let undo = self.party.map.undo(slot);
        let undo = undo.and_then(|undo| undo.part(0, piece.bytes as u64).ok());
        let Some(undo) = undo else { return Ok(Undo::Absent) };
        let mut old = [const { MaybeUninit::<u8>::uninit() }; BYTES];
        let old = old.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is this function's, and no shorter than the piece.
        unsafe { self.copies[copy].load(piece, old, Store::Cached) }?;
        // SAFETY: the undo buffer is mapped writable, and this thread's as its slot is; as much of
        // the other was just loaded.
        let saved = unsafe { transfer::store(undo, old, Store::Cached) };
        // It is the session's own object, and no copy.
        saved.map_err(|_| Trouble::Io)?;
        Ok(Undo::Saved)
    }

    #[cold]
    pub(super) fn end_of_write(&self, failed: usize, error: WriteError<Trouble>) -> Trouble {
        match error {
            WriteError::Lock(error) => self.locked().err().unwrap_or_else(|| of_lock(&error)),
            WriteError::Untouched(trouble) => trouble,
            _ => {
                // Nothing of this session may begin: its locks are taken from it.
                self.party.map.settle(u64::MAX);
                self.party.arbiter.give_up(self.damage_of(failed));
                Trouble::Abandoned
            }
        }
    }
}

impl<'a> Stores<'a> {
    /// Those of a piece, in one batch.
    #[inline]
    pub(super) fn new(
        block: &'a CopiedBlock,
        (piece, content): (Piece, Content),
        place: Where,
        slot: u8,
    ) -> Self {
        let (store, targets) = (Store::Cached, place.targets(block));
        Self { block, piece, content, store, targets, place, first: 0, slot, failed: 0, good: 0 }
    }

    /// How far the next batch may go: what is saved has to fit the buffer.
    #[inline]
    fn until(&self, cell: u64, until: u64) -> u64 {
        if self.targets.good() > 1 { until } else { Self::page_until(cell, until) }
    }

    /// How far it may go within one page.
    #[inline]
    fn page_until(cell: u64, until: u64) -> u64 {
        let page = UNDO_BYTES as u64;
        until.min((cell / page + 1) * page)
    }

    /// What the word was.
    #[inline]
    const fn before(&self) -> u64 {
        match self.content {
            Content::Word(_, [before, _]) => before,
            _ => 0,
        }
    }

    /// Stores the content to one copy.
    #[inline]
    fn store_to(&mut self, copy: usize) -> Result<(), Trouble> {
        let target = &self.block.copies[copy];
        if let Content::Word(change, [before, now]) = self.content
            && copy == self.first
        {
            return self.exchange(change, [before, now]);
        }
        let stored = match self.content {
            // SAFETY: the block is writable, as who writes has looked; the data are the caller's,
            // readable for the piece, as `Content::data` was promised.
            Content::Data(data) => unsafe { target.store(self.piece, data, self.store) },
            Content::Byte(byte) => target.fill(self.piece, byte, self.store),
            // SAFETY: as for data: `prepare` has filled the buffer.
            Content::Carried(buffer) => unsafe {
                target.store(self.piece, buffer.cast_const(), Store::Cached)
            },
            Content::Word(_, [_, now]) => {
                let word = now.to_ne_bytes();
                // SAFETY: as above; the data are this function's, and the piece is a word.
                unsafe { target.store(self.piece, word.as_ptr(), Store::Cached) }
            }
        };
        self.met(copy, stored)
    }

    /// Orders what went past the caches before what follows.
    #[inline]
    fn order(&self) {
        if self.store == Store::Unordered {
            transfer::order();
        }
    }

    /// Remembers which copy could not be reached.
    #[inline]
    fn met<T>(&mut self, copy: usize, met: Result<T, Trouble>) -> Result<T, Trouble> {
        if met.is_err() {
            self.failed = copy;
        }
        met
    }

    /// Fills the buffer with what the first copy has.
    #[cold]
    fn take(&mut self, buffer: *mut u8) -> Result<(), Trouble> {
        let first = &self.block.copies[self.first];
        // SAFETY: the buffer has room for a batch, as `Content::Carried` has it.
        let loaded = unsafe { first.load(self.piece, buffer, Store::Cached) };
        self.met(self.first, loaded)
    }

    /// Saves what the first copy has, if it has to be, or costs next to nothing.
    #[inline]
    fn save(&mut self, pages: Pages) -> Result<Undo, Trouble> {
        let bytes = self.piece.bytes;
        if bytes <= SAVED_BYTES {
            return self.save_by::<SAVED_BYTES>();
        }
        let has_to_be = self.targets.good() == 1 || pages == Pages::Detached;
        if has_to_be && bytes <= UNDO_BYTES {
            return self.save_by::<UNDO_BYTES>();
        }
        if pages == Pages::Detached { Err(Trouble::Detached) } else { Ok(Undo::Absent) }
    }

    #[inline]
    fn save_by<const BYTES: usize>(&mut self) -> Result<Undo, Trouble> {
        let saved = self.block.save::<BYTES>(self.first, self.piece, self.slot);
        self.met(self.first, saved)
    }

    /// Changes the word of the first copy, atomically: of an only one that moves, others may change
    /// it who have yet to be told that it takes a lock.
    fn exchange(&mut self, change: Change, [mut before, mut now]: [u64; 2]) -> Result<(), Trouble> {
        loop {
            let exchange = Change::Exchange { expected: before, desired: now };
            let found = self.block.copies[self.first].change(self.piece, exchange);
            let found = self.met(self.first, found)?;
            self.content = Content::Word(change, [before, now]);
            if found == before {
                return Ok(());
            }
            (before, now) = (found, change.of(found));
        }
    }

    /// Works out what the word becomes. False if it stays as it is.
    fn work_out(&mut self, change: Change) -> Result<bool, Trouble> {
        debug_assert_eq!(self.piece.bytes, WORD_BYTES);
        let looked = self.block.copies[self.first].change(self.piece, Change::None);
        let before = self.met(self.first, looked)?;
        let now = change.of(before);
        self.content = Content::Word(change, [before, now]);
        Ok(now != before)
    }
}

impl Copies for Stores<'_> {
    type Trouble = Trouble;

    #[inline]
    fn prepare(&mut self, pages: Pages) -> Result<Beginning, Trouble> {
        self.block.as_told()?;
        self.first = match self.place {
            Where::From(copy) if !self.targets.has(copy) => return Err(Trouble::NoHalf),
            Where::From(copy) => copy,
            Where::All | Where::Alone(_) => self.targets.first(),
        };
        let first = self.block.copies[self.first].daemon;
        let is_changed = match self.content {
            Content::Word(change, _) => self.work_out(change)?,
            Content::Carried(_) if pages == Pages::Detached && self.place == Where::All => {
                // What differs on purpose stays so: page by page, the others are carried.
                let end = self.piece.cell + self.piece.bytes as u64;
                if Self::page_until(self.piece.cell, end) < end {
                    return Err(Trouble::Detached);
                }
                return Ok(Beginning::Nothing);
            }
            Content::Carried(buffer) => {
                self.take(buffer)?;
                return Ok(Beginning::Others(first));
            }
            Content::Data(_) | Content::Byte(_) => true,
        };
        if !is_changed {
            return Ok(Beginning::Nothing);
        }
        let undo = self.save(pages)?;
        Ok(match self.place {
            Where::Alone(_) => Beginning::Alone(first, undo),
            Where::All | Where::From(_) => Beginning::First(first, undo),
        })
    }

    #[inline]
    fn rewrites(&self) -> bool {
        self.place == Where::All && !matches!(self.content, Content::Carried(_))
    }

    #[inline]
    fn store_first(&mut self) -> Result<(), Trouble> {
        // What goes past the caches is not to be seen before the odd sequence.
        self.order();
        self.store_to(self.first)?;
        if matches!(self.place, Where::Alone(_)) {
            // What takes its place has it too, as soon as it has all.
            return self.store_others();
        }
        Ok(())
    }

    #[inline]
    fn store_others(&mut self) -> Result<(), Trouble> {
        for copy in 0..WRITTEN_MAX {
            if copy != self.first && self.targets.has(copy) {
                self.store_to(copy)?;
            }
        }
        self.order();
        Ok(())
    }

    #[cold]
    fn judge(&mut self, trouble: Trouble) -> Verdict<Trouble> {
        if trouble != Trouble::Lost {
            // Nothing that a broker knows better.
            return Verdict::Undecided(trouble);
        }
        match self.block.party.arbiter.judge(self.block.damage_of(self.failed)) {
            Judgement::Good if self.good < GOOD_MAX => {
                self.good += 1;
                Verdict::Again
            }
            Judgement::Good | Judgement::Unknown => Verdict::Undecided(trouble),
            Judgement::Dropped => {
                self.targets.bits &= !(1 << self.failed);
                if self.targets.good() == 0 { Verdict::Over(trouble) } else { Verdict::Without }
            }
        }
    }
}

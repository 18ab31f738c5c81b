//! What is written, to the copies of a view.
//!
//! # Invariants
//!
//! 1. All copies are looked at before the first is stored to: one that is gone by then costs
//!    nothing but another try.
//! 2. Nothing is stored, with the locks held, once the generation has moved.
//! 3. What was stored is read back and compared, copy by copy [0088]. That it differs, because
//!    somebody stores there without the locks, holds up no copy of that page: the client is told
//!    afterwards, and no more is written.
//! 4. What is overwritten is saved first, so of new bytes no more than a page is stored at a time:
//!    the copy that is written first is this process's own, and both may be lost together. What one
//!    copy has is brought to the others by `pwrite`, which leaves no page half written.

use std::ops::Range;

use dmce_abi::block::BlockId;
use dmce_abi::wire::data::Target;
use dmce_shm::copies::{Batch, Beginning, Copies, Pages, Verdict, WriteError, Writer};
use dmce_shm::lock::LockError;
use dmce_shm::parking::{Deadline, Kernel};
use dmce_shm::session::UNDO_BYTES;
use dmce_shm::slot::intent::Undo;
use dmce_sys::transfer::word::WORD_BYTES;
use tracing::warn;

use super::view::{Copy, Gone, View};
use super::{Desk, SLOT};

/// So much is saved at once.
const PAGE: u64 = UNDO_BYTES as u64;

/// How often bytes are stored that another process writes at the same time.
const WRITES_MAX: u32 = 3;

/// How a word is changed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// To `desired`, if it is `expected`.
    Exchange { expected: u64, desired: u64 },
    /// By adding.
    Add(u64),
}

impl Change {
    /// What it makes of a word.
    const fn of(self, before: u64) -> u64 {
        match self {
            Self::Exchange { expected, desired } if expected == before => desired,
            Self::Exchange { .. } => before,
            Self::Add(add) => before.wrapping_add(add),
        }
    }
}

/// Why something was not written.
#[derive(Debug)]
pub(super) enum Unwritten {
    /// Others have the pages.
    Held,
    /// A page is lost, until all of it is written.
    Lost,
    /// A copy is not there; nothing was stored.
    Untouched(String),
    /// A copy failed after one was stored to: locks and intent stay.
    Abandoned(String),
}

/// A write that has not come to its end.
#[derive(Debug)]
pub(super) struct Halted {
    /// Bytes that were written, from the first on.
    pub done: u32,
    /// Why no more.
    pub why: Unwritten,
}

/// Why a batch does not go on.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error("the session object was cut")]
    Unsaved,
    /// The first copy may be one that others have not written since.
    #[error("its copies have changed a moment ago")]
    Moved,
}

/// What is stored.
#[derive(Clone, Debug)]
enum Content<'a> {
    Data(&'a [u8]),
    /// How the word changes, and what it was and becomes.
    Word(Change, [u64; 2]),
    /// What the first copy has.
    Carried(Vec<u8>),
}

/// Where it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Where {
    /// To all copies.
    All,
    /// To the copy of that place alone, so that the copies differ (004); and to what is made in the
    /// place of it.
    Alone(usize),
    /// To all but that one.
    From(usize),
}

/// One batch of a write.
struct Stores<'a> {
    desk: &'a Desk<'a>,
    batch: Batch,
    content: Content<'a>,
    place: Where,
    /// Whether all that was read back was what was stored.
    is_equal: bool,
}

impl Desk<'_> {
    /// Writes to copies. False if what is there afterwards is something else.
    pub(super) fn put(&self, at: Target, data: &[u8], place: Where) -> Result<bool, Halted> {
        self.put_all(at, data.len(), place, |part| Content::Data(&data[part]))
    }

    /// Brings what the copy of a place has to the others.
    pub(super) fn level(&self, at: Target, bytes: usize, from: usize) -> Result<(), Halted> {
        let carried = |part: Range<usize>| Content::Carried(vec![0; part.len()]);
        self.put_all(at, bytes, Where::From(from), carried).map(drop)
    }

    fn put_all<'a>(
        &'a self,
        at: Target,
        bytes: usize,
        place: Where,
        content: impl Fn(Range<usize>) -> Content<'a>,
    ) -> Result<bool, Halted> {
        let mut done = 0;
        let until = at.cell + bytes as u64;
        while done < bytes {
            let cell = at.cell + done as u64;
            let until = match place {
                Where::All | Where::Alone(_) => until.min((cell / PAGE + 1) * PAGE),
                Where::From(_) => until,
            };
            let batch = Batch::first_of(cell, until, self.view.committed);
            let part = usize::try_from(batch.bytes).expect("a batch is a part of the data");
            let stores = self.put_batch(at, batch, content(done..done + part), place);
            let stores = stores.map_err(|error| Halted { done: told(done), why: unwritten(error) });
            // What is carried is nobody's to be told of.
            if !stores?.is_equal && !matches!(place, Where::From(_)) {
                return Ok(false);
            }
            done += part;
        }
        Ok(true)
    }

    /// Changes a word on all copies; what it was.
    pub(super) fn put_word(&self, at: Target, change: Change) -> Result<u64, Unwritten> {
        let until = at.cell + WORD_BYTES as u64;
        let batch = Batch::first_of(at.cell, until, self.view.committed);
        let stores = self.put_batch(at, batch, Content::Word(change, [0; 2]), Where::All);
        match stores.map_err(unwritten)?.content {
            Content::Word(_, [before, _]) => Ok(before),
            Content::Data(_) | Content::Carried(_) => unreachable!("the content stays a word's"),
        }
    }

    fn put_batch<'a>(
        &'a self,
        at: Target,
        batch: Batch,
        content: Content<'a>,
        place: Where,
    ) -> Result<Stores<'a>, WriteError<Trouble>> {
        let mut stores = Stores { desk: self, batch, content, place, is_equal: true };
        match self.writer(at.block).write(batch, &mut stores) {
            Ok(()) => {}
            // It was written. If the table was cut, somebody else may have been as well.
            Err(WriteError::Unlocked(error)) => {
                warn!(block = %at.block, %error, "page locks were taken");
            }
            Err(error) => return Err(error),
        }
        Ok(stores)
    }

    /// Whether the copies may be others than the view says.
    pub(super) fn has_moved(&self) -> bool {
        self.seat.map.has_moved() || !self.view.is_current()
    }

    /// Who writes to a block, and waits for no page: the loop serves others as well.
    pub(super) fn writer(&self, block: BlockId) -> Writer<'_, Kernel, impl Fn() -> Deadline> {
        Writer {
            slot: &self.seat.map.slots()[usize::from(SLOT)],
            owner: self.owner(),
            base: self.base(block),
            locks: self.view.locks.all(),
            parking: Kernel,
            deadline: || Deadline::PASSED,
        }
    }
}

/// Bytes, as an answer says it.
fn told(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("no more than a request has")
}

fn unwritten(error: WriteError<Trouble>) -> Unwritten {
    match error {
        WriteError::Lock(LockError::Lost) => Unwritten::Lost,
        WriteError::Lock(_) | WriteError::Untouched(Trouble::Moved) => Unwritten::Held,
        WriteError::Untouched(trouble) => Unwritten::Untouched(trouble.to_string()),
        WriteError::Abandoned(trouble) => Unwritten::Abandoned(trouble.to_string()),
        other => Unwritten::Abandoned(other.to_string()),
    }
}

impl<'a> Stores<'a> {
    const fn view(&self) -> &'a View {
        self.desk.view
    }

    /// The copy that is written first, or read from.
    fn first(&self) -> &'a Copy {
        match self.place {
            Where::All => self.view().first(),
            Where::Alone(place) | Where::From(place) => &self.view().copies[place],
        }
    }

    /// Stores the content to one copy, and looks whether it is there.
    fn store_to(&mut self, copy: &Copy) -> Result<(), Trouble> {
        let cell = self.batch.cell;
        if let Content::Word(change, [before, now]) = self.content
            && copy.daemon == self.first().daemon
        {
            return self.exchange(copy, change, [before, now]);
        }
        self.is_equal &= match &self.content {
            Content::Data(data) => store(copy, cell, data),
            Content::Word(_, [_, now]) => store(copy, cell, &now.to_le_bytes()),
            Content::Carried(data) => store(copy, cell, data),
        }?;
        Ok(())
    }

    /// Changes a word of the first copy, atomically: of an only one that moves, others may change
    /// it who have yet to be told that it takes a lock.
    fn exchange(
        &mut self,
        copy: &Copy,
        change: Change,
        [mut before, mut now]: [u64; 2],
    ) -> Result<(), Trouble> {
        let cell = self.batch.cell;
        let word = copy.word(cell)?;
        loop {
            let found = word.compare_exchange(before, now).map_err(|_| copy.is_cut())?;
            self.content = Content::Word(change, [before, now]);
            if found == before {
                return Ok(());
            }
            (before, now) = (found, change.of(found));
        }
    }

    /// Works out what the word becomes. False if it stays as it is.
    fn work_out(&mut self, change: Change) -> Result<bool, Trouble> {
        let mut word = [0; WORD_BYTES];
        self.first().read(self.batch.cell, &mut word)?;
        let before = u64::from_le_bytes(word);
        let now = change.of(before);
        self.content = Content::Word(change, [before, now]);
        Ok(now != before)
    }

    /// Saves what the first copy has.
    fn save(&self) -> Result<Undo, Trouble> {
        let bytes = usize::try_from(self.batch.bytes).expect("a batch is a part of a request");
        let mut old = vec![0; bytes];
        self.first().read(self.batch.cell, &mut old)?;
        match self.desk.seat.map.save(SLOT, &old) {
            Ok(true) => Ok(Undo::Saved),
            Ok(false) => Ok(Undo::Absent),
            Err(_) => Err(Trouble::Unsaved),
        }
    }
}

/// Stores bytes to a copy. False if others are there afterwards.
fn store(copy: &Copy, cell: u64, data: &[u8]) -> Result<bool, Gone> {
    let mut found = vec![0; data.len()];
    for _ in 0..WRITES_MAX {
        copy.write(cell, data)?;
        copy.read(cell, &mut found)?;
        if found == data {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Copies for Stores<'_> {
    type Trouble = Trouble;

    fn prepare(&mut self, _: Pages) -> Result<Beginning, Trouble> {
        // Whoever has written without a copy had the locks: a client was told after this daemon
        // was, and another daemon has read the headers.
        if self.desk.has_moved() {
            return Err(Trouble::Moved);
        }
        let until = self.batch.cell + self.batch.bytes;
        let first = self.first();
        if let Where::Alone(_) = self.place {
            first.check(until)?;
            self.view().in_place_of(first).map_or(Ok(()), |copy| copy.check(until).map(drop))?;
        } else {
            self.view().copies.iter().try_for_each(|copy| copy.check(until).map(drop))?;
        }
        match &mut self.content {
            Content::Data(_) => {}
            Content::Word(change, _) => {
                let change = *change;
                if !self.work_out(change)? {
                    return Ok(Beginning::Nothing);
                }
            }
            Content::Carried(data) => first.read(self.batch.cell, data)?,
        }
        Ok(match self.place {
            Where::All => Beginning::First(first.daemon, self.save()?),
            Where::Alone(_) => Beginning::Alone(first.daemon, self.save()?),
            Where::From(_) => Beginning::Pages(first.daemon),
        })
    }

    fn store_first(&mut self) -> Result<(), Trouble> {
        self.store_to(self.first())?;
        if let Where::Alone(_) = self.place
            && let Some(copy) = self.view().in_place_of(self.first())
        {
            self.store_to(copy)?;
        }
        Ok(())
    }

    fn store_others(&mut self) -> Result<(), Trouble> {
        let first = self.first().daemon;
        for copy in self.view().copies.iter().filter(|copy| copy.daemon != first) {
            self.store_to(copy)?;
        }
        Ok(())
    }

    fn rewrites(&self) -> bool {
        self.place == Where::All
    }

    fn judge(&mut self, trouble: Trouble) -> Verdict<Trouble> {
        // Only the broker knows, and it is not waited for here.
        Verdict::Undecided(trouble)
    }
}

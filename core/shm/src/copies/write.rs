//! The writer's side: one batch, to all copies.

use std::slice;

use dmce_abi::block::DaemonId;
use dmce_sys::crash::{Point, point};

use super::{BATCH_PAGES, Batch};
use crate::lock::{LockError, LockOwner, PageLock};
use crate::parking::{Deadline, Parking};
use crate::slot::Slot;
use crate::slot::intent::{Intent, Undo};

/// How the bytes of a batch get to the copies of its block.
///
/// When the last function of a write returns, all of its stores are ordered before later ones of
/// the thread, also those that went past the caches. Between two copies they need not be: who
/// repairs finds all that the dead came to (the module of intents).
pub trait Copies {
    /// Why a copy's bytes could not be had.
    type Trouble;

    /// How the write begins. The pages are locked; whether one of them is detached.
    ///
    /// # Errors
    ///
    /// As the copies have it.
    fn prepare(&mut self, pages: Pages) -> Result<Beginning, Self::Trouble>;

    /// The commonest of all beginnings, [`Beginning::First`], of pages whose copies are equal.
    /// `None` if it is not certain that it is that one: [`Copies::prepare`] is asked then.
    #[inline]
    fn prepare_first(&mut self) -> Option<(DaemonId, Undo)> {
        None
    }

    /// Stores the bytes to the copy that was named.
    ///
    /// # Errors
    ///
    /// As the copies have it.
    fn store_first(&mut self) -> Result<(), Self::Trouble>;

    /// Stores the bytes to all other copies.
    ///
    /// # Errors
    ///
    /// As the copies have it.
    fn store_others(&mut self) -> Result<(), Self::Trouble>;

    /// Whether pages that the batch covers are whole afterwards, also those that were lost: what is
    /// written is new, and goes to all copies.
    fn rewrites(&self) -> bool;

    /// What is to be done about a copy whose bytes cannot be had. Called with the pages locked, and
    /// waits for who decides.
    fn judge(&mut self, trouble: Self::Trouble) -> Verdict<Self::Trouble>;
}

/// What is known of the pages of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pages {
    /// All good copies of them are equal.
    Equal,
    /// Those of one page differ, as somebody wanted it: what is overwritten has to be saved.
    Detached,
}

/// How a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Not at all: nothing is to be written.
    Nothing,
    /// With this daemon's copy. Whether what is overwritten there was saved in the slot's undo
    /// buffer: with one copy left, or of detached pages, it has to be, as there is nothing else to
    /// roll back to.
    First(DaemonId, Undo),
    /// With this daemon's copy, and no other is written: the pages are detached from now on.
    Alone(DaemonId, Undo),
    /// With the others: this daemon's has the bytes, which were stored to it without the locks.
    Others(DaemonId),
    /// As that, and each page is stored at once: who dies over it leaves none half written.
    Pages(DaemonId),
}

/// What was decided about a copy whose bytes could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<T> {
    /// It is good and there: again.
    Again,
    /// It is good no more, and [`Copies`] has left it out: the write goes on with the others.
    Without,
    /// No copy is left to be equal to.
    Over(T),
    /// Nobody decided in time.
    Undecided(T),
}

/// Why a batch was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError<T> {
    /// Its pages could not be locked, and nothing was stored.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It was written to all copies, and then its locks were not its own any more: whoever may
    /// write the block has taken them from it.
    #[error("written, and its pages were unlocked by somebody else")]
    Unlocked(#[source] LockError),
    /// A copy could not be had, and nothing was stored to one that is good.
    #[error("a copy cannot be written")]
    Untouched(T),
    /// A copy could not be had after another was written: the pages stay locked, and the intent
    /// stays, for repair. The session has to end.
    #[error("a copy cannot be written, and another one was")]
    Abandoned(T),
}

/// What of a write has been done, and what comes next.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Prepare,
    First,
    Alone,
    Others,
}

/// A copy that could not be had, and what was being done then.
struct Met<T> {
    stage: Stage,
    trouble: T,
}

impl<T> Met<T> {
    fn at(stage: Stage) -> impl Fn(T) -> Self {
        move |trouble| Self { stage, trouble }
    }
}

/// To which copies a batch was written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrote {
    All,
    /// To one of several, or to none.
    Less,
}

/// Why the stores ended without being done.
enum Stopped<T> {
    /// With all good copies as they were.
    Untouched(T),
    /// With some written.
    Between(T),
}

/// Who writes to a block: a slot with an operation in flight.
#[derive(Debug)]
pub struct Writer<'a, P, D> {
    /// The slot.
    pub slot: &'a Slot,
    /// The slot as the locks know it.
    pub owner: LockOwner,
    /// The DMCE address of the block's first cell.
    pub base: u64,
    /// The words of all pages of the block.
    pub locks: &'a [PageLock],
    /// How it waits for a lock.
    pub parking: P,
    /// Until when, asked for when it has to wait.
    pub deadline: D,
}

impl<P: Parking, D: Fn() -> Deadline> Writer<'_, P, D> {
    /// Writes a batch. When it returns `Ok` all good copies have the bytes.
    ///
    /// # Errors
    ///
    /// [`WriteError`].
    ///
    /// # Panics
    ///
    /// If the batch has no byte, more than [`BATCH_PAGES`] pages, or pages without a word; if the
    /// slot has no operation in flight.
    #[inline]
    pub fn write<C: Copies>(
        &self,
        batch: Batch,
        copies: &mut C,
    ) -> Result<(), WriteError<C::Trouble>> {
        self.write_locked(self.locks_of(batch), batch, copies)
    }

    /// [`Writer::write`] of a batch in one page, whose word is `lock`: without its loops.
    ///
    /// # Errors
    ///
    /// As [`Writer::write`].
    ///
    /// # Panics
    ///
    /// If the slot has no operation in flight.
    #[inline]
    pub fn write_page<C: Copies>(
        &self,
        lock: &PageLock,
        batch: Batch,
        copies: &mut C,
    ) -> Result<(), WriteError<C::Trouble>> {
        debug_assert_eq!(batch.pages().end - batch.pages().start, 1, "a batch in one page");
        self.write_locked(slice::from_ref(lock), batch, copies)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "so that one page is known to be one")]
    fn write_locked<C: Copies>(
        &self,
        locks: &[PageLock],
        batch: Batch,
        copies: &mut C,
    ) -> Result<(), WriteError<C::Trouble>> {
        let intent = self.slot.intend(self.base + batch.cell, batch.bytes);
        let rewrites = copies.rewrites();
        let is_rewritten = |page| rewrites && batch.covers(batch.pages().start + page);
        let marked = match self.lock_all(locks, is_rewritten) {
            Ok(marked) => marked,
            Err(error) => {
                intent.clear();
                return Err(error.into());
            }
        };
        locks.iter().for_each(PageLock::begin_write);
        match store(&intent, (marked, locks), copies) {
            Ok(wrote) => {
                if marked == Pages::Detached && wrote == Wrote::All {
                    attach(locks, |page| batch.covers(batch.pages().start + page));
                }
                locks.iter().for_each(PageLock::end_write);
                let given = self.unlock_all(locks);
                intent.clear();
                given.map_err(WriteError::Unlocked)
            }
            Err(Stopped::Untouched(trouble)) => {
                // What was lost before is lost still.
                locks.iter().filter(|lock| !lock.is_lost()).for_each(PageLock::end_write);
                let given = self.unlock_all(locks);
                intent.clear();
                given?;
                Err(WriteError::Untouched(trouble))
            }
            Err(Stopped::Between(trouble)) => Err(WriteError::Abandoned(trouble)),
        }
    }

    /// Does something while nobody writes the pages, and no reader has to come again for it.
    ///
    /// # Errors
    ///
    /// [`LockError`]: it was not done, or the pages were taken from it.
    ///
    /// # Panics
    ///
    /// As [`Writer::write`].
    pub fn hold<R>(&self, batch: Batch, act: impl FnOnce() -> R) -> Result<R, LockError> {
        let locks = self.locks_of(batch);
        // Whoever repairs finds the locks by it.
        let intent = self.slot.intend(self.base + batch.cell, batch.bytes);
        if let Err(error) = self.lock_all(locks, |_| false) {
            intent.clear();
            return Err(error);
        }
        let done = act();
        let given = self.unlock_all(locks);
        intent.clear();
        given.map(|()| done)
    }

    #[inline]
    fn locks_of(&self, batch: Batch) -> &[PageLock] {
        let pages = batch.pages();
        let count = pages.end - pages.start;
        assert!(batch.bytes > 0 && count <= BATCH_PAGES, "a batch of {count} pages");
        let index = |page| usize::try_from(page).unwrap_or(usize::MAX);
        &self.locks[index(pages.start)..index(pages.end)]
    }

    /// Takes all locks, in order, or none: those of pages that are lost if they are rewritten.
    #[inline]
    fn lock_all(
        &self,
        locks: &[PageLock],
        is_rewritten: impl Fn(u64) -> bool,
    ) -> Result<Pages, LockError> {
        let mut pages = Pages::Equal;
        for (done, lock) in locks.iter().enumerate() {
            if lock.try_lock(self.owner).is_err() {
                if let Err(error) = self.lock_contended(is_rewritten(done as u64), lock) {
                    // Those that were taken were not written; the error says why it ends here.
                    let _ = self.unlock_all(&locks[..done]);
                    return Err(error);
                }
                // The word of a detached page is never the one that is taken at once.
                if lock.is_detached() {
                    pages = Pages::Detached;
                }
            }
            point(Point::PageLocked);
        }
        Ok(pages)
    }

    #[cold]
    fn lock_contended(&self, is_rewritten: bool, lock: &PageLock) -> Result<(), LockError> {
        let deadline = (self.deadline)();
        if is_rewritten {
            lock.lock_to_rewrite(self.owner, deadline, &self.parking)
        } else {
            lock.lock(self.owner, deadline, &self.parking)
        }
    }

    /// Gives all back; the first error, if there was one.
    #[inline]
    fn unlock_all(&self, locks: &[PageLock]) -> Result<(), LockError> {
        let mut all = Ok(());
        for lock in locks {
            all = all.and(lock.unlock(self.owner, &self.parking));
            point(Point::PageFreed);
        }
        all
    }
}

/// The pages of a batch that were written as a whole, to all copies, are detached no more.
#[cold]
fn attach(locks: &[PageLock], is_rewritten: impl Fn(u64) -> bool) {
    for (page, lock) in (0..).zip(locks) {
        if is_rewritten(page) {
            lock.set_detached(false);
        }
    }
}

/// Stores the bytes of a batch, whose pages are locked, to all copies.
#[inline]
fn store<C: Copies>(
    intent: &Intent<'_>,
    pages: (Pages, &[PageLock]),
    copies: &mut C,
) -> Result<Wrote, Stopped<C::Trouble>> {
    match begin(intent, pages, copies) {
        Ok(wrote) => Ok(wrote),
        Err(met) => store_on(intent, pages, copies, met),
    }
}

/// [`store`], after a copy could not be had.
#[cold]
fn store_on<C: Copies>(
    intent: &Intent<'_>,
    pages: (Pages, &[PageLock]),
    copies: &mut C,
    mut met: Met<C::Trouble>,
) -> Result<Wrote, Stopped<C::Trouble>> {
    loop {
        let verdict = copies.judge(met.trouble);
        let stored = match go_on(intent, met.stage, verdict)? {
            Stage::Prepare => begin(intent, pages, copies),
            Stage::First => store_first(intent, copies),
            Stage::Alone => store_alone(intent, copies),
            Stage::Others => store_others(intent, copies),
        };
        match stored {
            Ok(wrote) => return Ok(wrote),
            Err(again) => met = again,
        }
    }
}

#[inline]
fn begin<C: Copies>(
    intent: &Intent<'_>,
    (pages, locks): (Pages, &[PageLock]),
    copies: &mut C,
) -> Result<Wrote, Met<C::Trouble>> {
    // In registers: a `Beginning` would be put together in memory.
    if pages == Pages::Equal
        && let Some((first, undo)) = copies.prepare_first()
    {
        return begin_first(intent, copies, first, undo);
    }
    match copies.prepare(pages).map_err(Met::at(Stage::Prepare))? {
        Beginning::First(first, undo) => begin_first(intent, copies, first, undo),
        Beginning::Alone(first, undo) => {
            point(Point::UndoSaved);
            // Before a byte of it differs.
            for lock in locks {
                lock.set_detached(true);
            }
            point(Point::PagesDetached);
            intent.begin_alone(first, undo);
            store_alone(intent, copies)
        }
        Beginning::Others(first) => {
            intent.begin_others_of(first);
            store_others(intent, copies)
        }
        Beginning::Pages(first) => {
            intent.begin_pages_of(first);
            store_others(intent, copies)
        }
        Beginning::Nothing => Ok(Wrote::Less),
    }
}

#[inline]
fn begin_first<C: Copies>(
    intent: &Intent<'_>,
    copies: &mut C,
    first: DaemonId,
    undo: Undo,
) -> Result<Wrote, Met<C::Trouble>> {
    point(Point::UndoSaved);
    intent.begin_first(first, undo);
    store_first(intent, copies)
}

#[inline]
fn store_first<C: Copies>(intent: &Intent<'_>, copies: &mut C) -> Result<Wrote, Met<C::Trouble>> {
    copies.store_first().map_err(Met::at(Stage::First))?;
    point(Point::FirstStored);
    intent.begin_others();
    store_others(intent, copies)
}

#[inline]
fn store_others<C: Copies>(intent: &Intent<'_>, copies: &mut C) -> Result<Wrote, Met<C::Trouble>> {
    copies.store_others().map_err(Met::at(Stage::Others))?;
    point(Point::OthersStored);
    intent.settle();
    Ok(Wrote::All)
}

fn store_alone<C: Copies>(intent: &Intent<'_>, copies: &mut C) -> Result<Wrote, Met<C::Trouble>> {
    copies.store_first().map_err(Met::at(Stage::Alone))?;
    point(Point::AloneStored);
    intent.settle();
    Ok(Wrote::Less)
}

/// Where a write goes on after a copy could not be had.
#[cold]
fn go_on<T>(intent: &Intent<'_>, stage: Stage, verdict: Verdict<T>) -> Result<Stage, Stopped<T>> {
    match (verdict, stage) {
        (Verdict::Again, stage) => Ok(stage),
        // Only the copy that is good no more was written: there is another first one.
        (Verdict::Without, Stage::Prepare | Stage::First | Stage::Alone) => {
            intent.settle();
            Ok(Stage::Prepare)
        }
        (Verdict::Without, Stage::Others) => Ok(Stage::Others),
        (Verdict::Over(trouble), _) => {
            intent.settle();
            Err(Stopped::Untouched(trouble))
        }
        (Verdict::Undecided(trouble), Stage::Prepare) => Err(Stopped::Untouched(trouble)),
        (Verdict::Undecided(trouble), _) => Err(Stopped::Between(trouble)),
    }
}

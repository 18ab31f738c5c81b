//! The broker's side: what a dead slot left, page by page.

use std::ops::Range;

use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_sys::crash::{Point, point};

use super::{BATCH_PAGES, Batch};
use crate::lock::{Left, LockBits, LockOwner, PageCondition};
use crate::slot::intent::{IntentClaim, Progress, Undo};

/// How often a word may change under the one who wants to change it. Those who wait for a page
/// change it once each; who goes on for longer is up to no good.
const EXCHANGES_MAX: u32 = 10_000;

const PAGE: usize = 4096;
const _: () = assert!(PAGE as u64 == PAGE_BYTES);

/// The words and bytes of the block of a dead slot's intent.
///
/// `pwrite` behind the end of an object makes it longer: who implements this looks at the end
/// before and after, so that a copy that somebody cut stays recognised.
pub trait Site {
    /// Why something could not be had.
    type Error;

    /// The lock word of a page.
    ///
    /// # Errors
    ///
    /// As the table has it.
    fn word(&mut self, page: u64) -> Result<u64, Self::Error>;

    /// Makes the lock word of a page `desired` if it is `expected`, at once; returns what it was.
    ///
    /// # Errors
    ///
    /// As the table has it.
    fn exchange(&mut self, page: u64, expected: u64, desired: u64) -> Result<u64, Self::Error>;

    /// Wakes all who wait for a page.
    ///
    /// # Errors
    ///
    /// As the table has it.
    fn wake(&mut self, page: u64) -> Result<(), Self::Error>;

    /// Reads from a copy.
    ///
    /// # Errors
    ///
    /// As the copy has it.
    fn read(&mut self, copy: DaemonId, cell: u64, into: &mut [u8]) -> Result<(), Self::Error>;

    /// Writes to a copy: what lies in one page at once, also if the writer dies over it.
    ///
    /// # Errors
    ///
    /// As the copy has it.
    fn write(&mut self, copy: DaemonId, cell: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// Reads the beginning of the dead slot's undo buffer.
    ///
    /// # Errors
    ///
    /// As the session object has it.
    fn undo(&mut self, into: &mut [u8]) -> Result<(), Self::Error>;
}

/// What a dead slot left of a block, as far as it can be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wreck {
    owner: LockOwner,
    batch: Batch,
    progress: Progress,
}

/// What was done about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Pages whose lock the dead had.
    pub held: u32,
    /// Of those, pages that may have been half written, and are whole again.
    pub restored: u32,
    /// Pages that nothing could be made whole from: they are lost until somebody writes them.
    pub lost: Vec<u64>,
}

/// Why a repair did not come to its end. All that it did can be done again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError<E> {
    /// A good copy could not be read or written: its pages stay locked until it is good no more, or
    /// there again.
    #[error("the copy of daemon {} cannot be repaired", copy)]
    Copy {
        /// Whose.
        copy: DaemonId,
        /// Why.
        source: E,
    },
    /// The lock table could not be read or changed.
    #[error("the lock table cannot be used")]
    Table(#[source] E),
    /// The undo buffer could not be read.
    #[error("the undo buffer cannot be read")]
    Undo(#[source] E),
    /// Somebody changes the word of a page all the time.
    #[error("the lock of page {page} changes all the time")]
    Contested {
        /// Which.
        page: u64,
    },
}

/// Where the bytes of pages that may be half written come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// They are whole on all good copies.
    Nowhere,
    /// A copy that was written before the others: the write is brought to its end.
    Forward(DaemonId),
    /// A copy that was to be written later.
    Back(DaemonId),
    /// What the writer saved.
    Undo,
    /// There is none.
    Missing,
}

impl Wreck {
    /// Whose slot it was.
    #[must_use]
    pub const fn owner(&self) -> LockOwner {
        self.owner
    }

    /// The pages of its batch.
    #[must_use]
    pub const fn pages(&self) -> Range<u64> {
        self.batch.pages()
    }

    /// The same, of bytes that the copy of `first` has, and the others may lack, page by page.
    #[must_use]
    pub const fn brought_from(self, first: DaemonId) -> Self {
        Self { progress: Progress::Pages { first: first.get() }, ..self }
    }

    /// The same, whose bytes are left as they are: others may have written there without a lock.
    #[must_use]
    pub const fn as_it_is(self) -> Self {
        Self { progress: Progress::Settled, ..self }
    }

    /// The same, as far as it can be true when the undo buffer cannot be read.
    #[must_use]
    pub const fn without_undo(self) -> Self {
        let undo = Undo::Absent;
        let progress = match self.progress {
            Progress::First { first, .. } => Progress::First { first, undo },
            Progress::Others { first, .. } => Progress::Others { first, undo },
            Progress::Alone { first, .. } => Progress::Alone { first, undo },
            other => other,
        };
        Self { progress, ..self }
    }

    /// What `claim` says that `owner` was changing, from `cell` on, in a block of `end` bytes;
    /// `None` if no writer changes that.
    #[must_use]
    pub fn new(owner: LockOwner, claim: &IntentClaim, cell: u64, end: u64) -> Option<Self> {
        let until = cell.checked_add(claim.bytes)?;
        let batch = Batch { cell, bytes: claim.bytes, end };
        let is_batch = claim.bytes > 0 && until <= end;
        let fits = is_batch && batch.pages().end - batch.pages().start <= BATCH_PAGES;
        fits.then_some(Self { owner, batch, progress: claim.progress })
    }

    /// Where its pages' bytes are to come from, with these good copies. If one of the pages was
    /// detached before, the others do not say what was in the first.
    fn source(&self, copies: &[DaemonId], were_equal: bool) -> Source {
        let find = |first: u32| copies.iter().copied().find(|copy| copy.get() == first);
        let saved = |undo| {
            // What is saved lies in one page.
            let is_saved = undo == Undo::Saved && self.batch.bytes <= PAGE_BYTES;
            if is_saved { Source::Undo } else { Source::Missing }
        };
        match self.progress {
            Progress::Settled => Source::Nowhere,
            _ if copies.is_empty() => Source::Missing,
            Progress::First { first, undo } => match find(first) {
                // The others were not touched.
                None => Source::Nowhere,
                Some(first) => match copies.iter().find(|copy| **copy != first) {
                    Some(other) if were_equal => Source::Back(*other),
                    _ => saved(undo),
                },
            },
            Progress::Alone { first, undo } => find(first).map_or(Source::Nowhere, |_| saved(undo)),
            Progress::Others { first, undo } => {
                // What was saved is the first copy's, and of equal pages everybody's.
                let back = || if were_equal { saved(undo) } else { Source::Missing };
                find(first).map_or_else(back, Source::Forward)
            }
            // Each page is on each copy what it was, or what the first one has.
            Progress::Pages { first } => match (find(first), copies) {
                (Some(first), _) => Source::Forward(first),
                (None, [next, _, ..]) => Source::Forward(*next),
                (None, _) => Source::Nowhere,
            },
            Progress::Nonsense => Source::Missing,
        }
    }

    /// Which of the good copies may be half written.
    fn targets(&self, copies: &[DaemonId], source: Source) -> Vec<DaemonId> {
        let is_target = |copy: &DaemonId| match (source, self.progress) {
            (Source::Forward(from), _) => *copy != from,
            (
                Source::Back(_) | Source::Undo,
                Progress::First { first, .. } | Progress::Alone { first, .. },
            ) => copy.get() == first,
            (Source::Undo, _) => true,
            _ => false,
        };
        copies.iter().copied().filter(is_target).collect()
    }
}

/// Makes all good copies equal where a dead slot was writing, gives its locks back, and wakes who
/// waits for them. The caller knows that its process has ended, had the right to write there, and
/// which copies of the block are good now. Afterwards it takes the intent away.
///
/// # Errors
///
/// [`RepairError`].
pub fn repair<S: Site>(
    wreck: &Wreck,
    copies: &[DaemonId],
    site: &mut S,
) -> Result<Repaired, RepairError<S::Error>> {
    let mut held = Vec::new();
    for page in wreck.batch.pages() {
        if let Some(bits) = take_over(site, page, wreck.owner)? {
            held.push((page, bits));
        }
    }
    let source = wreck.source(copies, !held.iter().any(|(_, bits)| bits.is_detached()));
    let targets = wreck.targets(copies, source);
    let mut repaired = Repaired { held: count(held.len()), ..Repaired::default() };
    let mut left = Vec::new();
    for (page, bits) in &held {
        let condition = bits.condition();
        if condition == PageCondition::Torn && !targets.is_empty() {
            restore(wreck, *page, (source, &targets), site)?;
        }
        // What was lost before is whole after a write that came to its end, and no other.
        let is_whole = match source {
            Source::Forward(_) => true,
            Source::Missing => false,
            Source::Nowhere | Source::Back(_) | Source::Undo => !bits.was_lost(),
        };
        match condition {
            PageCondition::Whole => left.push(Left::Whole),
            PageCondition::Torn if is_whole => {
                repaired.restored += 1;
                left.push(Left::Whole);
            }
            PageCondition::Torn => {
                repaired.lost.push(*page);
                left.push(Left::Lost);
            }
        }
    }
    for ((page, _), left) in held.iter().zip(left) {
        release(site, *page, left)?;
        point(Point::RepairReleased);
    }
    // Those as well that the dead may have been woken for, or may have released and not woken.
    for page in wreck.batch.pages() {
        site.wake(page).map_err(RepairError::Table)?;
    }
    point(Point::RepairWoken);
    Ok(repaired)
}

/// Makes all good copies equal where a dead slot was writing, without the lock table, which is
/// gone; returns the pages that nothing could be made whole from. The caller knows what it knows
/// for [`repair`]; and that nobody else writes to the block, or will before it has a new table, in
/// which those pages are lost.
///
/// # Errors
///
/// [`RepairError`], but not of the table.
pub fn level<S: Site>(
    wreck: &Wreck,
    copies: &[DaemonId],
    site: &mut S,
) -> Result<Vec<u64>, RepairError<S::Error>> {
    // What was detached is not known any more: the others say what was in the first.
    let source = wreck.source(copies, true);
    if source == Source::Missing {
        return Ok(wreck.batch.pages().collect());
    }
    let targets = wreck.targets(copies, source);
    if !targets.is_empty() {
        for page in wreck.batch.pages() {
            restore(wreck, page, (source, &targets), site)?;
        }
    }
    Ok(Vec::new())
}

/// Brings the bytes of the dead one's batch in a page to the copies that may have them half.
fn restore<S: Site>(
    wreck: &Wreck,
    page: u64,
    (source, targets): (Source, &[DaemonId]),
    site: &mut S,
) -> Result<(), RepairError<S::Error>> {
    let cells = wreck.batch.cells_in(page);
    let mut buffer = [0; PAGE];
    let bytes = usize::try_from(cells.end - cells.start).unwrap_or(PAGE);
    match source {
        Source::Forward(copy) | Source::Back(copy) => site
            .read(copy, cells.start, &mut buffer[..bytes])
            .map_err(|source| RepairError::Copy { copy, source })?,
        Source::Undo => {
            // The buffer begins with the batch's first byte, which may lie in the page before.
            let skipped = usize::try_from(cells.start - wreck.batch.cell).unwrap_or(PAGE);
            site.undo(&mut buffer[..skipped + bytes]).map_err(RepairError::Undo)?;
            buffer.copy_within(skipped..skipped + bytes, 0);
        }
        Source::Nowhere | Source::Missing => return Ok(()),
    }
    for copy in targets {
        site.write(*copy, cells.start, &buffer[..bytes])
            .map_err(|source| RepairError::Copy { copy: *copy, source })?;
        point(Point::RepairStored);
    }
    Ok(())
}

/// Takes the lock of a page over; returns what the word is then, `None` if the dead has it not.
fn take_over<S: Site>(
    site: &mut S,
    page: u64,
    dead: LockOwner,
) -> Result<Option<LockBits>, RepairError<S::Error>> {
    let taken = change(site, page, |bits| bits.taken_over(dead))?;
    Ok(taken.inspect(|_| point(Point::RepairBegun)))
}

/// Gives the lock of a page back.
fn release<S: Site>(site: &mut S, page: u64, left: Left) -> Result<(), RepairError<S::Error>> {
    // Whoever scribbled over it meanwhile has released it.
    change(site, page, |bits| bits.released(left)).map(drop)
}

/// Changes a word as `next` says; returns what it became, `None` if that says no.
pub(super) fn change<S: Site>(
    site: &mut S,
    page: u64,
    next: impl Fn(LockBits) -> Option<LockBits>,
) -> Result<Option<LockBits>, RepairError<S::Error>> {
    let mut word = site.word(page).map_err(RepairError::Table)?;
    for _ in 0..EXCHANGES_MAX {
        let Some(wanted) = next(LockBits::of_word(word)) else { return Ok(None) };
        let before = site.exchange(page, word, wanted.word()).map_err(RepairError::Table)?;
        if before == word {
            return Ok(Some(wanted));
        }
        word = before;
    }
    Err(RepairError::Contested { page })
}

fn count(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

//! The good copies of a block are compared, page by page, and made equal where it is known how.
//!
//! ```text
//!                 a look, without locks                       under the page lock
//!   page --> equal ------------------------> checked    .---> equal ----------------> checked
//!        |-> differ, a pointer stores there -> pinned   |---> a pointer stores there -> pinned
//!        |-> differ -------------------------------------|--> one is known as right --> repaired
//!        |-> lost, detached -----------------> left     `---> none is ---------------> lost
//!        `-> written each time --------------> busy
//! ```
//!
//! # Invariants
//!
//! 1. *Right* is a copy that has the checksum which the page had when all agreed, if nobody has had
//!    its lock and written it since; of a page that was written since, or never seen, what most of
//!    three copies have. Where neither is there, no copy is written: the page is lost.
//! 2. A copy is judged when its page is locked, no pin explains why it differs, and no copy was cut
//!    since the part was begun with.
//! 3. What is repaired is exchanged word by word, against what was read under the lock: what a
//!    pointer stores that was taken since is never overwritten.
//! 4. A repair moves no sequence, and has no phase. Who dies over it leaves a page of which some
//!    words are right: it differs still, and is found again. A page that is to be lost is so when
//!    it is given back, or it was left as it was ([`PageLock::lose`]).
//! 5. Nobody is waited for. What was seen counts, and is remembered, when the part has ended and no
//!    copy was cut meanwhile.
//! 6. A copy that is syncing is not looked at.

mod differing;

use std::ops::Range;
use std::sync::Arc;
use std::{hint, mem, thread};

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, Guid, Role};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::{DaemonAnswer, SYNC_BYTES_MAX};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_abi::wire::{Refusal, Reply};
use dmce_shm::copies::Batch;
use dmce_shm::lock::{PageLock, Sequence};
use dmce_sys::clock;
use dmce_sys::object::watched::Watched;
use tracing::{debug, warn};

use super::pointers::Pointers;
use super::quiet::{Note, Quiet};
use super::sync::Part;
use super::view::{Copy, View};
use super::{Desk, Failure, LOOKS, LOOKS_AT_ONCE, Table};
use crate::store::Store;
use crate::store::adopt;
use crate::store::folder::Folder;

/// Pages of a part that are locked, at most: each time all session objects are read.
const LOCKED_MAX: u32 = 16;
/// Nor is a page locked, after the first, when a part takes longer than this.
const PART_MS: u64 = 20;

/// How often pages of a part are looked at again that somebody writes, in all.
const AGAIN_MAX: u32 = 16 * LOOKS;

/// What came of a part.
#[derive(Debug, Default)]
struct Scrubbed {
    bytes: u32,
    found: ScrubFound,
    /// The lock table, and what its pages were.
    seen: (u64, Vec<Note>),
    /// Why it has ended before its end, if that is to be told.
    failure: Option<Failure>,
}

impl Scrubbed {
    /// What was done stands; what was seen does not count.
    fn in_doubt(self) -> Self {
        let ScrubFound { repaired, quarantined, .. } = self.found;
        if repaired + quarantined == 0 {
            return Self { failure: self.failure, ..Self::default() };
        }
        let busy = self.found.pages() - repaired - quarantined;
        let found = ScrubFound { busy, repaired, quarantined, ..ScrubFound::default() };
        Self { found, seen: Default::default(), ..self }
    }
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// The same on all good copies.
    Equal(Sequence, u32),
    /// Not the same.
    Differing,
    Busy,
    Pinned,
    Detached,
    Lost,
    Repaired(Sequence, u32),
    Quarantined,
}

impl Store {
    /// Compares the good copies of a part of a block whose primary this daemon has.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`]: it has not.
    pub(in crate::store) fn scrub(&mut self, part: Part) -> Reply<DaemonAnswer> {
        let Part { block, guid, .. } = part;
        let held = self.blocks.get_mut(&block);
        let held = held.filter(|held| is_primary(&held.header.description, guid));
        let held = held.ok_or_else(|| no_primary(block))?;
        if !held.header.description.has_locks() {
            return Ok(self.scrub_only(part).into());
        }
        let mut quiet = mem::take(&mut held.quiet);
        let folder = Arc::clone(&self.folder);
        let scrubbed = self.at_desk(block, |desk| desk.scrub((&folder, &quiet), part));
        let scrubbed = match scrubbed {
            Ok((Ok(scrubbed), Table::Whole)) => {
                quiet.note(scrubbed.seen.0, &scrubbed.seen.1);
                Ok(scrubbed)
            }
            // Whoever locked by another table may have written meanwhile.
            Ok((Ok(scrubbed), Table::Gone)) => Ok(scrubbed.in_doubt()),
            Ok((Err(_), Table::Gone)) => Ok(Scrubbed::default()),
            Ok((Err(failure), Table::Whole)) | Err(failure) => {
                self.put_off(block, failure).map(|()| Scrubbed::default())
            }
        };
        let scrubbed = scrubbed.and_then(|mut scrubbed| {
            let failure = scrubbed.failure.take();
            failure.map_or(Ok(()), |failure| self.put_off(block, failure)).map(|()| scrubbed)
        });
        if let Some(held) = self.blocks.get_mut(&block) {
            held.quiet = quiet;
        }
        scrubbed.map(DaemonAnswer::from)
    }

    /// Looks at the object and the header of an only copy whose pages nobody locks.
    fn scrub_only(&mut self, part: Part) -> Scrubbed {
        let Part { block, cell, bytes, .. } = part;
        match self.check(block) {
            Ok(Some(_)) => {}
            Ok(None) => return Scrubbed::default(),
            Err(error) => {
                warn!(%block, %error, "a block was not looked at");
                return Scrubbed::default();
            }
        }
        self.raise_header(block);
        if let Ok(Some(header)) = adopt::header_of(&self.folder, block)
            && header.description.has_locks()
        {
            // It moves by now.
            self.rewritten(header.description);
            return Scrubbed::default();
        }
        let committed = self.blocks.get(&block).map_or(0, |held| held.data.bytes);
        let Some(pages) = pages_of(cell, bytes, committed) else { return Scrubbed::default() };
        let unchecked = pages.end - pages.start;
        let found = ScrubFound { unchecked, ..ScrubFound::default() };
        Scrubbed { bytes: told(&pages, part, committed), found, ..Scrubbed::default() }
    }
}

impl From<Scrubbed> for DaemonAnswer {
    fn from(Scrubbed { bytes, found, .. }: Scrubbed) -> Self {
        Self::Scrubbed { bytes, found }
    }
}

impl Desk<'_> {
    fn scrub(&self, (folder, quiet): (&Folder, &Quiet), part: Part) -> Result<Scrubbed, Failure> {
        let (view, block) = (self.view, part.block);
        if view.first().daemon != folder.daemon() {
            return Err(Failure::Refused(no_primary(block)));
        }
        let Some(mut pages) = pages_of(part.cell, part.bytes, view.committed) else {
            return Ok(Scrubbed { seen: (view.table, Vec::new()), ..Scrubbed::default() });
        };
        let mut scrub = Scrub::begin(self, (folder, quiet), (block, pages.end))?;
        let (end, failure) = scrub.go(pages.clone());
        pages.end = end;
        let (bytes, found) = (told(&pages, part, view.committed), scrub.found);
        let has_failed = failure.is_some();
        let scrubbed = Scrubbed { bytes, found, seen: (view.table, scrub.notes), failure };
        Ok(if has_failed { scrubbed.in_doubt() } else { scrubbed })
    }
}

/// A part that is gone through.
struct Scrub<'a> {
    desk: &'a Desk<'a>,
    folder: &'a Folder,
    quiet: &'a Quiet,
    block: BlockId,
    /// The good copies, as they were when it was begun with.
    copies: Vec<(&'a Copy, Watched<'a>)>,
    /// What was read of each.
    buffers: Vec<Vec<u8>>,
    /// Where pointers could store when the first page was found that differs.
    pointers: Option<Pointers>,
    begun_ms: u64,
    /// Pages that were locked.
    locked: u32,
    /// Looks at a page after the first.
    again: u32,
    found: ScrubFound,
    notes: Vec<Note>,
}

impl<'a> Scrub<'a> {
    /// Begins with a part that ends before a page.
    fn begin(
        desk: &'a Desk<'a>,
        (folder, quiet): (&'a Folder, &'a Quiet),
        (block, end): (BlockId, u64),
    ) -> Result<Self, Failure> {
        let until = (end * PAGE_BYTES).min(desk.view.committed);
        let watch = |copy| {
            let watched = Copy::watched(copy, until)?;
            // One that was cut, and made longer again, before this was begun with is zeros there.
            let has_all = watched.before.allocated_bytes >= until;
            if has_all { Ok((copy, watched)) } else { Err(copy.is_cut().into()) }
        };
        let copies: Result<Vec<_>, Failure> = desk.view.good().iter().map(watch).collect();
        Ok(Self {
            desk,
            folder,
            quiet,
            block,
            copies: copies?,
            buffers: vec![Vec::new(); desk.view.good().len()],
            pointers: None,
            begun_ms: clock::monotonic_ms(),
            locked: 0,
            again: 0,
            found: ScrubFound::default(),
            notes: Vec::new(),
        })
    }

    /// Goes through pages; where it has ended, and why nothing counts of what was seen.
    fn go(&mut self, pages: Range<u64>) -> (u64, Option<Failure>) {
        let mut page = pages.start;
        while page < pages.end {
            match self.go_on(page..pages.end) {
                Ok(done) => page = done,
                // What was done before the copies changed stands.
                Err((done, Failure::Busy(text))) if done > pages.start => {
                    debug!(block = %self.block, text, "a scrub ends before its part does");
                    page = done;
                    break;
                }
                Err((done, failure)) => return (done, Some(failure)),
            }
            if self.is_enough() {
                break;
            }
        }
        (page, self.confirm().err())
    }

    /// Goes through a batch; where it has ended, also if it fails.
    fn go_on(&mut self, pages: Range<u64>) -> Result<u64, (u64, Failure)> {
        let until = (pages.end * PAGE_BYTES).min(self.view().committed);
        let batch = Batch::first_of(pages.start * PAGE_BYTES, until, self.view().committed);
        let seen = self.look(batch).map_err(|failure| (pages.start, failure))?;
        for (page, seen) in batch.pages().zip(seen) {
            if self.is_enough() {
                return Ok(page);
            }
            let settled = self.settle(page, seen).map_err(|failure| (page, failure))?;
            self.count(page, settled);
        }
        Ok(batch.pages().end)
    }

    /// Whether others are to have their turn, before the part has ended.
    fn is_enough(&self) -> bool {
        let is_late = || clock::monotonic_ms() >= self.begun_ms.saturating_add(PART_MS);
        self.locked >= LOCKED_MAX || self.locked > 0 && is_late()
    }

    const fn view(&self) -> &View {
        self.desk.view
    }

    /// Looks at the copies of a batch once, without its locks.
    fn look(&mut self, batch: Batch) -> Result<Vec<Seen>, Failure> {
        // Another daemon may have written by the next headers, which leave a copy out.
        if !self.view().is_current() {
            return Err(Failure::Busy("its copies have changed a moment ago".to_owned()));
        }
        let words = self.desk.view.locks.words(batch.pages());
        let before: Vec<_> = words.iter().map(|word| (word.begin_read(), word)).collect();
        let mut seen: Vec<Seen> =
            before.iter().map(|(since, word)| seen_of(*since, word)).collect();
        if !seen.contains(&Seen::Differing) {
            return Ok(seen);
        }
        self.read(batch)?;
        for (place, (since, word)) in before.into_iter().enumerate() {
            let Some(since) = since.filter(|_| seen[place] == Seen::Differing) else { continue };
            let equal = self.equal(page_in(place, batch));
            seen[place] = match equal {
                _ if !word.is_unchanged(since) => Seen::Busy,
                Some(crc) => Seen::Equal(since, crc),
                None => Seen::Differing,
            };
        }
        Ok(seen)
    }

    /// What is to be said of a page that was looked at once.
    fn settle(&mut self, page: u64, mut seen: Seen) -> Result<Seen, Failure> {
        for look in 1..LOOKS {
            if seen != Seen::Busy || self.again == AGAIN_MAX {
                break;
            }
            self.again += 1;
            if look < LOOKS_AT_ONCE {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
            let looked = self.look(self.batch_of(page))?;
            seen = looked.first().copied().unwrap_or(Seen::Busy);
        }
        if seen == Seen::Differing { self.resolve(page) } else { Ok(seen) }
    }

    fn count(&mut self, page: u64, seen: Seen) {
        let is_alone = self.copies.len() == 1;
        let found = &mut self.found;
        *match seen {
            Seen::Equal(..) if is_alone => &mut found.unchecked,
            Seen::Equal(..) => &mut found.checked,
            Seen::Differing | Seen::Busy => &mut found.busy,
            Seen::Pinned => &mut found.pinned,
            Seen::Detached => &mut found.detached,
            Seen::Lost => &mut found.lost,
            Seen::Repaired(..) => &mut found.repaired,
            Seen::Quarantined => &mut found.quarantined,
        } += 1;
        match seen {
            // Of an only copy a pointer that nobody carries changes bytes, and no sequence.
            _ if is_alone => self.notes.push((page, None)),
            Seen::Equal(sequence, crc) | Seen::Repaired(sequence, crc) => {
                self.notes.push((page, Some((sequence, crc))));
            }
            // What a pointer stores moves no sequence.
            Seen::Pinned | Seen::Quarantined => self.notes.push((page, None)),
            _ => {}
        }
    }

    /// Reads a batch of all copies.
    fn read(&mut self, batch: Batch) -> Result<(), Failure> {
        let bytes = usize::try_from(batch.bytes).expect("a batch is some pages");
        for ((copy, _), buffer) in self.copies.iter().zip(&mut self.buffers) {
            buffer.resize(bytes, 0);
            copy.read(batch.cell, buffer)?;
        }
        Ok(())
    }

    /// The checksum of what was read there, if all copies have the same.
    fn equal(&self, part: Range<usize>) -> Option<u32> {
        let (first, others) = self.buffers.split_first()?;
        let first = &first[part.clone()];
        let is_equal = others.iter().all(|other| other[part.clone()] == *first);
        is_equal.then(|| crc32c::crc32c(first))
    }

    /// Looks whether all copies were whole since it was begun with.
    fn confirm(&self) -> Result<(), Failure> {
        let confirm = |(copy, watched): &(&Copy, Watched<'_>)| {
            watched.confirm().map_err(|error| copy.gone(error).into())
        };
        self.copies.iter().try_for_each(confirm)
    }

    fn batch_of(&self, page: u64) -> Batch {
        let committed = self.view().committed;
        let until = ((page + 1) * PAGE_BYTES).min(committed);
        Batch::first_of(page * PAGE_BYTES, until, committed)
    }

    fn addrs_of(&self, page: u64) -> Range<u64> {
        let start = self.desk.base(self.block) + page * PAGE_BYTES;
        start..start + PAGE_BYTES
    }
}

/// What a word says of its page: [`Seen::Differing`] if that has to be read.
fn seen_of(since: Option<Sequence>, word: &PageLock) -> Seen {
    match since {
        Some(_) if word.is_detached() => Seen::Detached,
        Some(_) => Seen::Differing,
        None if word.is_lost() => Seen::Lost,
        None => Seen::Busy,
    }
}

/// Where a page of a batch lies in what was read of that.
fn page_in(place: usize, batch: Batch) -> Range<usize> {
    const PAGE: usize = 4096;
    const _: () = assert!(PAGE as u64 == PAGE_BYTES);
    let bytes = usize::try_from(batch.bytes).expect("a batch is some pages");
    place * PAGE..((place + 1) * PAGE).min(bytes)
}

/// The pages of a part, as far as the block has it; none if it has nothing of it.
fn pages_of(cell: u64, bytes: u32, committed: u64) -> Option<Range<u64>> {
    let bytes = u64::from(bytes.min(SYNC_BYTES_MAX));
    let until = cell.saturating_add(bytes).min(committed);
    (cell < until).then(|| cell / PAGE_BYTES..until.div_ceil(PAGE_BYTES))
}

/// Bytes of a part that lie in these pages.
fn told(pages: &Range<u64>, part: Part, committed: u64) -> u32 {
    let until = (pages.end * PAGE_BYTES).min(committed);
    u32::try_from(until.saturating_sub(part.cell)).unwrap_or(u32::MAX).min(part.bytes)
}

fn is_primary(description: &BlockDescription, guid: Guid) -> bool {
    description.guid == guid && description.membership.role == Role::Primary
}

fn no_primary(block: BlockId) -> Refusal {
    Refusal::new(Status::NotFound, format!("the primary of block {block} is not here"))
}

#[cfg(test)]
mod tests;

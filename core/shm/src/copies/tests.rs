//! A block with copies in private memory, of which every access is a step.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::array;

use dmce_abi::block::{DaemonId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_sys::futex::FutexError;

use super::*;
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::fence::Fence;
use crate::lock::{LockOwner, LockState, PageCondition, PageLock};
use crate::parking::{Deadline, Parked, Parking, Wake};
use crate::slot::intent::{IntentClaim, Undo};
use crate::slot::{Look, Operation, Slot};
use crate::stepped::{self, Access};

mod carried;
mod deaths;
mod halves;
mod hostile;
mod interleavings;

const BASE: u64 = 7 << 30;
const PAGES: usize = 3;
const END: u64 = PAGES as u64 * PAGE_BYTES;
/// Where in a page there is a word. The bytes between them are in no copy.
const WORDS: [u64; 3] = [0, 2048, 4088];
const OLD: u64 = 1;
const NEW: u64 = 2;
const SESSIONS: usize = 3;

/// The words of one page.
type Page = [u64; WORDS.len()];

/// The daemon of a copy.
fn daemon(copy: usize) -> DaemonId {
    DaemonId::try_from(u32::try_from(copy + 1).unwrap()).unwrap()
}

fn copy_of(daemon: DaemonId) -> usize {
    daemon.index() - 1
}

/// A client: a slot of its own session, and its undo buffer.
#[derive(Default)]
struct Client {
    slot: Slot,
    generation: AtomicU64,
    undo: [[AtomicU64; WORDS.len()]; PAGES],
}

/// The block, its lock table, and who writes it.
struct Block {
    copies: Vec<[[AtomicU64; WORDS.len()]; PAGES]>,
    locks: [PageLock; PAGES],
    clients: [Client; SESSIONS],
}

/// Sleeps that end at once.
struct NoSleep;

impl Parking for NoSleep {
    fn park(&self, _: &AtomicU32, _: u32, deadline: Deadline) -> Result<Parked, FutexError> {
        stepped::step(Access::Load);
        Ok(if deadline == Deadline::PASSED { Parked::TimedOut } else { Parked::Awake })
    }

    fn wake(&self, _: &AtomicU32, _: Wake) -> Result<(), FutexError> {
        Ok(())
    }

    fn spin(&self, _: u32) -> bool {
        false
    }
}

impl Block {
    fn new(copies: usize) -> Self {
        let page = || array::from_fn(|_| AtomicU64::new(OLD));
        let copy = || array::from_fn(|_| page());
        Self {
            copies: (0..copies).map(|_| copy()).collect(),
            locks: Default::default(),
            clients: Default::default(),
        }
    }

    /// One operation of a client that writes `value` over a range.
    fn write(
        &self,
        client: usize,
        batch: Batch,
        stores: &mut Stores<'_>,
        deadline: Deadline,
    ) -> Result<(), WriteError<Cut>> {
        let operation = self.begin(client);
        let written = self.writer(client, deadline).write(batch, stores);
        if matches!(written, Err(WriteError::Abandoned(_))) {
            // The session ends as if its process had died.
            std::mem::forget(operation);
        }
        written
    }

    fn begin(&self, client: usize) -> Operation<'_> {
        let Client { slot, generation, .. } = &self.clients[client];
        let look = Look { generation, known: generation, fence: Fence::Full };
        slot.begin(look).expect("the generation stays")
    }

    fn writer(
        &self,
        client: usize,
        deadline: Deadline,
    ) -> Writer<'_, NoSleep, impl Fn() -> Deadline> {
        Writer {
            slot: &self.clients[client].slot,
            owner: owner(client),
            base: BASE,
            locks: &self.locks,
            parking: NoSleep,
            deadline: move || deadline,
        }
    }

    /// What a reader gets of a page of a copy; none if it is lost, or being written.
    fn read(&self, copy: usize, page: usize) -> Option<Page> {
        let lock = &self.locks[page];
        let sequence = lock.begin_read()?;
        let words = self.page(copy, page);
        lock.is_unchanged(sequence).then_some(words)
    }

    fn page(&self, copy: usize, page: usize) -> Page {
        array::from_fn(|word| self.copies[copy][page][word].load(Ordering::Relaxed))
    }

    /// What the broker finds of a dead client: its slot, by a copy.
    fn claim(&self, client: usize) -> Option<IntentClaim> {
        IntentClaim::of_copy(&self.clients[client].slot.bytes())
    }

    /// The broker, after a client's death, with these copies good.
    fn repair(&self, client: usize, good: &[DaemonId]) -> Option<Repaired> {
        let Some(claim) = self.claim(client) else {
            self.clients[client].slot.take_intent_away();
            return None;
        };
        let cell = claim.addr - BASE;
        let wreck = Wreck::new(owner(client), &claim, cell, END).expect("no client lies here");
        let mut site = Table { block: self, client };
        let repaired = repair(&wreck, good, &mut site).expect("nothing is cut here");
        if stepped::step(Access::Store) {
            self.clients[client].slot.take_intent_away();
        }
        Some(repaired)
    }
}

fn owner(client: usize) -> LockOwner {
    LockOwner::new(SessionId::try_from(u32::try_from(client + 1).unwrap()).unwrap(), 0)
}

/// The words of a range: page, and place in it.
fn words(cells: Range<u64>) -> impl Iterator<Item = (usize, usize)> {
    let all = (0..PAGES).flat_map(|page| (0..WORDS.len()).map(move |word| (page, word)));
    all.filter(move |(page, word)| cells.contains(&(*page as u64 * PAGE_BYTES + WORDS[*word])))
}

fn cells(batch: Batch) -> Range<u64> {
    batch.cell..batch.cell + batch.bytes
}

/// A copy was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    copy: usize,
}

/// What becomes of a copy that a writer cannot reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The broker raises the epoch without it.
    Dropped,
    /// It is there again.
    Back,
    /// Nobody decides.
    Undecided,
}

/// A client's stores of one value.
struct Stores<'a> {
    block: &'a Block,
    client: usize,
    batch: Batch,
    value: u64,
    saves: bool,
    /// The only copy that it writes.
    alone: Option<usize>,
    /// The copies that its epoch names.
    copies: Vec<usize>,
    first: usize,
    /// A copy that is cut, and what becomes of it.
    cut: Option<(usize, Fate)>,
}

impl<'a> Stores<'a> {
    fn new(block: &'a Block, client: usize, batch: Batch, value: u64) -> Self {
        let copies = (0..block.copies.len()).collect();
        let (saves, alone, first, cut) = (false, None, 0, None);
        Self { block, client, batch, value, saves, alone, copies, first, cut }
    }

    fn store(&self, copy: usize) -> Result<(), Cut> {
        for (done, (page, word)) in words(cells(self.batch)).enumerate() {
            // Whoever meets a page that is gone has written what is before it.
            if done > 0 && self.cut.is_some_and(|(cut, _)| cut == copy) {
                return Err(Cut { copy });
            }
            self.block.copies[copy][page][word].store(self.value, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Copies for Stores<'_> {
    type Trouble = Cut;

    fn prepare(&mut self, pages: Pages) -> Result<Beginning, Cut> {
        self.first = self.alone.unwrap_or(self.copies[0]);
        // With the last one left it has to be.
        let is_last = self.copies.len() == 1 && self.block.copies.len() > 1;
        let has_to_be = is_last || self.alone.is_some() || pages == Pages::Detached;
        if !(self.saves || has_to_be && self.batch.bytes <= PAGE_BYTES) {
            return Ok(Beginning::First(daemon(self.first), Undo::Absent));
        }
        for (page, word) in words(cells(self.batch)) {
            let old = self.block.copies[self.first][page][word].load(Ordering::Relaxed);
            self.block.clients[self.client].undo[page][word].store(old, Ordering::Relaxed);
        }
        let (first, undo) = (daemon(self.first), Undo::Saved);
        Ok(match self.alone {
            Some(_) => Beginning::Alone(first, undo),
            None => Beginning::First(first, undo),
        })
    }

    fn rewrites(&self) -> bool {
        self.alone.is_none()
    }

    fn store_first(&mut self) -> Result<(), Cut> {
        self.store(self.first)
    }

    fn store_others(&mut self) -> Result<(), Cut> {
        let others = self.copies.iter().filter(|copy| **copy != self.first);
        others.copied().try_for_each(|copy| self.store(copy))
    }

    fn judge(&mut self, trouble: Cut) -> Verdict<Cut> {
        let (_, fate) = self.cut.expect("only a copy that is cut is in the way");
        match fate {
            Fate::Back => {
                self.cut = None;
                Verdict::Again
            }
            Fate::Undecided => Verdict::Undecided(trouble),
            Fate::Dropped => {
                self.copies.retain(|copy| *copy != trouble.copy);
                if self.copies.is_empty() { Verdict::Over(trouble) } else { Verdict::Without }
            }
        }
    }
}

/// The block as the broker reaches it, for a dead client.
struct Table<'a> {
    block: &'a Block,
    client: usize,
}

fn put(buffer: &mut [u8], place: u64, word: u64) {
    let place = usize::try_from(place).unwrap();
    buffer[place..place + 8].copy_from_slice(&word.to_le_bytes());
}

impl Site for Table<'_> {
    type Error = ();

    fn word(&mut self, page: u64) -> Result<u64, ()> {
        stepped::step(Access::Load);
        Ok(self.block.locks[usize::try_from(page).unwrap()].word())
    }

    fn exchange(&mut self, page: u64, expected: u64, desired: u64) -> Result<u64, ()> {
        let lock = &self.block.locks[usize::try_from(page).unwrap()];
        if !stepped::step(Access::Store) {
            return Ok(expected);
        }
        let before = lock.word();
        if before == expected {
            lock.set_word(desired);
        }
        Ok(before)
    }

    fn wake(&mut self, _: u64) -> Result<(), ()> {
        Ok(())
    }

    fn read(&mut self, copy: DaemonId, cell: u64, into: &mut [u8]) -> Result<(), ()> {
        for (page, word) in words(cell..cell + into.len() as u64) {
            let place = page as u64 * PAGE_BYTES + WORDS[word] - cell;
            let value = self.block.copies[copy_of(copy)][page][word].load(Ordering::Relaxed);
            put(into, place, value);
        }
        Ok(())
    }

    fn write(&mut self, copy: DaemonId, cell: u64, data: &[u8]) -> Result<(), ()> {
        // A page is stored at once, as the kernel does.
        let mut stored = None;
        for (page, word) in words(cell..cell + data.len() as u64) {
            if stored.replace(page) != Some(page) && !stepped::step(Access::Store) {
                return Ok(());
            }
            let place = usize::try_from(page as u64 * PAGE_BYTES + WORDS[word] - cell).unwrap();
            let value = u64::from_le_bytes(data[place..place + 8].try_into().unwrap());
            (*self.block.copies[copy_of(copy)][page][word]).store(value, Ordering::Relaxed);
        }
        Ok(())
    }

    fn undo(&mut self, into: &mut [u8]) -> Result<(), ()> {
        let claim = self.block.claim(self.client).expect("it is being repaired");
        let cell = claim.addr - BASE;
        for (page, word) in words(cell..cell + into.len() as u64) {
            let place = page as u64 * PAGE_BYTES + WORDS[word] - cell;
            let undo = &self.block.clients[self.client].undo;
            put(into, place, undo[page][word].load(Ordering::Relaxed));
        }
        Ok(())
    }
}

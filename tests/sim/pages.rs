//! What the model has of the bytes of blocks: one page of each, with a value on each copy, its lock
//! word, and what the slots of sessions say that they are changing.
//!
//! An object that is named no more stays to those who have it, unless it was truncated.

use std::collections::BTreeMap;

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_broker::dispatcher::{FoundIntents, Repair, Repaired};
use dmce_shm::copies::{self, RepairError, Site};
use dmce_shm::lock::LockBits;
use dmce_shm::slot::intent::IntentClaim;

use crate::host::{Host, Object};

/// The part of a lock word that says who holds it.
const HALF: u64 = 0xffff_ffff;
const SEQUENCE: u64 = 1 << 32;

/// A slot in a session object.
#[derive(Clone, Debug, Default)]
pub struct Slot {
    /// Odd while an operation is in flight.
    pub mark: u32,
    /// What it is changing.
    pub intent: Option<IntentClaim>,
    /// What the page was, if that was saved.
    pub undo: u64,
}

/// The words and slots of a host.
#[derive(Debug, Default)]
pub struct Pages {
    /// Slots, by the GUID of their session: who has an object has it after its name is another's.
    pub slots: BTreeMap<(Guid, u8), Slot>,
    /// The lock word of each table that somebody may have, by the table's number.
    pub words: BTreeMap<u64, u64>,
    /// The table that has a block's name.
    pub named: BTreeMap<BlockId, u64>,
    tables: u64,
}

impl Pages {
    /// A table gets a block's name.
    pub fn name_table(&mut self, block: BlockId, word: u64) {
        self.truncate_table(block);
        self.tables += 1;
        self.named.insert(block, self.tables);
        self.words.insert(self.tables, word);
    }

    /// The table of a name is cut and removed.
    pub fn truncate_table(&mut self, block: BlockId) {
        if let Some(table) = self.named.remove(&block) {
            self.words.remove(&table);
        }
    }

    /// The lock word of a block that has a table.
    pub fn word_of(&self, block: BlockId) -> Option<LockBits> {
        let table = self.named.get(&block)?;
        self.words.get(table).map(|word| LockBits::of_word(*word))
    }

    /// The slots of a session.
    fn of(&self, session: Guid) -> impl Iterator<Item = (u8, &Slot)> {
        let slots = self.slots.range((session, 0)..=(session, u8::MAX));
        slots.map(|((_, slot), found)| (*slot, found))
    }

    /// The marks of a session.
    pub fn marks(&self, session: Guid) -> BTreeMap<u8, u32> {
        self.of(session).map(|(slot, found)| (slot, found.mark)).collect()
    }

    /// What the slots of a session were changing.
    pub fn intents(&self, session: Guid, lives: bool) -> FoundIntents {
        let idle = self.of(session).filter(|(_, slot)| !lives || slot.mark.is_multiple_of(2));
        let claims = idle.filter_map(|(slot, found)| Some((slot, found.intent?))).collect();
        let is_all = !lives || self.of(session).all(|(_, slot)| slot.mark.is_multiple_of(2));
        FoundIntents { claims, is_all, is_gone: !lives, ..FoundIntents::none() }
    }
}

/// A lock word with an owner, if nobody has it.
pub const fn taken(word: u64, session: SessionId, slot: u8) -> Option<u64> {
    let is_free = matches!(word & HALF, 0) || word & HALF == LockBits::LOST.word() & HALF;
    if is_free { Some(word | (session.get() as u64) << 8 | slot as u64) } else { None }
}

/// A lock word after a step of its sequence, to odd or to even.
pub const fn stepped(word: u64, is_odd: bool) -> u64 {
    let next = word.wrapping_add(SEQUENCE);
    if is_odd { next | SEQUENCE } else { next & !SEQUENCE }
}

/// A lock word that its holder gives back: a page that was lost and is not whole is lost still.
pub const fn given_back(word: u64) -> u64 {
    let lost = LockBits::LOST.word() & HALF;
    let is_lost = word & lost != 0 && word & SEQUENCE != 0;
    (word & !HALF) | if is_lost { lost } else { 0 }
}

/// A free lock word that says from now on that its page is lost.
pub const fn lost(word: u64) -> u64 {
    stepped(word, true) | LockBits::LOST.word() & HALF
}

/// Whether nobody holds the page of a lock word, and it is not lost.
pub const fn is_free(word: u64) -> bool {
    word & HALF == 0
}

/// Whether a page is lost, and nobody writes it.
pub const fn is_lost(word: u64) -> bool {
    word & HALF == LockBits::LOST.word() & HALF
}

impl Host {
    /// The page of a copy, as who has its object finds it: named, or taken away since.
    pub fn page_mut(&mut self, of: (DaemonId, BlockId, Guid)) -> Option<&mut u64> {
        let (daemon, block, guid) = of;
        let is_it =
            |object: &Object| object.description.guid == guid && object.description.block == block;
        let named = self.stores.get_mut(&daemon).and_then(|store| store.get_mut(&block));
        // Of those that were taken away, the last.
        let taken = self.taken.iter_mut().rev().filter(|(of, _)| *of == daemon);
        let all = named.into_iter().chain(taken.map(|(_, object)| object));
        let object = all.into_iter().find(|object| is_it(object))?;
        (object.bytes >= PAGE_BYTES).then_some(&mut object.value)
    }

    /// The page of a copy, as who opens it by name finds it.
    pub fn named_page(&mut self, of: (DaemonId, BlockId, Guid)) -> Option<&mut u64> {
        let (daemon, block, guid) = of;
        let object = self.stores.get_mut(&daemon)?.get_mut(&block)?;
        let is_whole = object.description.guid == guid && object.bytes >= PAGE_BYTES;
        is_whole.then_some(&mut object.value)
    }
}

/// Does what a repair of a session with a GUID asks for; or, if it is to end before, no more than
/// so many steps of it.
pub fn repair(host: &mut Host, repair: &Repair, session: Guid, steps: Option<u64>) -> Repaired {
    let (wreck, copies) = (&repair.wreck, &repair.copies);
    let mut place = Place { host, repair, session, steps };
    let done = if repair.has_locks {
        copies::repair(wreck, copies, &mut place).map(|repaired| repaired.lost)
    } else {
        copies::level(wreck, copies, &mut place)
    };
    match done {
        Ok(lost) => Repaired::Done { lost },
        Err(RepairError::Copy { copy: daemon, source: reason }) => {
            Repaired::Copy { daemon, reason }
        }
        Err(error) => Repaired::Table { reason: error.to_string() },
    }
}

/// Where a repair is done.
struct Place<'a> {
    host: &'a mut Host,
    repair: &'a Repair,
    session: Guid,
    steps: Option<u64>,
}

impl Place<'_> {
    /// One step more, if the broker lives.
    fn step(&mut self) -> Result<(), String> {
        match &mut self.steps {
            Some(0) => Err("the broker is dead".to_owned()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn word_mut(&mut self) -> Result<&mut u64, String> {
        let Repair { block, guid, .. } = *self.repair;
        let found = self.host.tables.get(&block).copied();
        let table = self.host.pages.named.get(&block);
        let word = table.and_then(|table| self.host.pages.words.get_mut(table));
        let is_it = found.is_some_and(|(of, bytes)| of == guid && bytes >= PAGE_BYTES);
        word.filter(|_| is_it).ok_or_else(|| format!("the table is {found:?}"))
    }

    fn page_mut(&mut self, copy: DaemonId) -> Result<&mut u64, String> {
        let Repair { block, guid, .. } = *self.repair;
        self.host.named_page((copy, block, guid)).ok_or_else(|| "it is gone".to_owned())
    }
}

impl Site for Place<'_> {
    type Error = String;

    fn word(&mut self, _: u64) -> Result<u64, String> {
        self.word_mut().copied()
    }

    fn exchange(&mut self, _: u64, expected: u64, desired: u64) -> Result<u64, String> {
        self.step()?;
        let word = self.word_mut()?;
        let before = *word;
        if before == expected {
            *word = desired;
        }
        Ok(before)
    }

    fn wake(&mut self, _: u64) -> Result<(), String> {
        self.word_mut().map(drop)
    }

    fn read(&mut self, copy: DaemonId, _: u64, into: &mut [u8]) -> Result<(), String> {
        into[..8].copy_from_slice(&self.page_mut(copy)?.to_le_bytes());
        Ok(())
    }

    fn write(&mut self, copy: DaemonId, _: u64, data: &[u8]) -> Result<(), String> {
        self.step()?;
        *self.page_mut(copy)? = data.first_chunk().map_or(0, |value| u64::from_le_bytes(*value));
        Ok(())
    }

    fn undo(&mut self, into: &mut [u8]) -> Result<(), String> {
        let of = (self.session, self.repair.slot);
        let undo = self.host.pages.slots.get(&of).map_or(0, |slot| slot.undo);
        into[..8].copy_from_slice(&undo.to_le_bytes());
        Ok(())
    }
}

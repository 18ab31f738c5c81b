//! Pointers of the dead: what they stored to the primary alone is brought to the other copies, a
//! part at a time.
//!
//! ```text
//!  the slots of a WRECK     its process is gone,              a part is equal on all copies:
//!  are repaired             or has left its pointers          the next one, when others had
//!  ---------------------> ---------------------------> PARTS  their turn; at the end of a range
//!                                                        |    its pins are freed; at the end
//!                                                        v    of all, EndSession
//!               each is a claim of one slot of the wreck, and repaired as that (`repairs`)
//! ```
//!
//! # Invariants
//!
//! 1. What a client stored is a claim: nothing is carried but ranges of regions that the session
//!    had open to write when it ended, and that stand since. Each byte is carried once, however
//!    many pins it is in.
//! 2. While a pointer may still be stored by, it is not carried: its wreck waits for the process.
//! 3. What is carried is the bytes of the copy that is the primary when a part is begun.
//! 4. Nobody waits for it: whoever has the region open goes on, and other wrecks are repaired in
//!    between.

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_shm::copies::{self, Batch};
use dmce_shm::lock::LockOwner;
use dmce_shm::session::pin::PinClaim;
use dmce_shm::slot::intent::{IntentClaim, Progress};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::Span;
use super::wrecks::{Claim, Wreck};

/// The slot of a wreck that says what is carried: all were repaired by then.
const CARRYING_SLOT: u8 = 0;

/// A range that is carried.
#[derive(Debug, PartialEq, Eq)]
struct Carry {
    /// What is left of it: the first address, and the one behind the last.
    at: u64,
    end: u64,
    /// The pins that are freed then.
    pins: Vec<u16>,
}

/// The pointers of a wreck.
#[derive(Debug)]
pub(super) struct Pointers {
    /// Ranges, none of which overlaps another, the next one last; `None` until they are known.
    ranges: Option<Vec<Carry>>,
}

impl Pointers {
    /// Those of a wreck that nobody has looked at.
    pub(super) const fn new() -> Self {
        Self { ranges: None }
    }

    /// Whether nothing is left to be carried.
    pub(super) const fn are_carried(&self) -> bool {
        matches!(&self.ranges, Some(ranges) if ranges.is_empty())
    }

    /// Whether it is known what is to be carried.
    pub(super) const fn are_known(&self) -> bool {
        self.ranges.is_some()
    }

    /// There is nothing to be carried.
    pub(super) fn forget(&mut self) {
        self.ranges = Some(Vec::new());
    }

    /// Takes in all of them.
    fn take_in(&mut self, pins: &[PinClaim]) {
        let range = |pin: &PinClaim| {
            let end = pin.range.addr.saturating_add(pin.range.bytes);
            Carry { at: pin.range.addr, end, pins: vec![pin.place] }
        };
        let mut all: Vec<Carry> = pins.iter().map(range).collect();
        all.sort_by_key(|range| range.at);
        let mut merged: Vec<Carry> = Vec::new();
        for range in all {
            match merged.last_mut().filter(|last| range.at <= last.end) {
                Some(last) => {
                    last.end = last.end.max(range.end);
                    last.pins.extend(range.pins);
                }
                None => merged.push(range),
            }
        }
        merged.reverse();
        self.ranges = Some(merged);
    }

    /// What is before an address is carried, or is nobody's.
    fn pass(&mut self, to: u64) {
        if let Some(range) = self.ranges.as_mut().and_then(|ranges| ranges.last_mut()) {
            range.at = range.at.max(to);
        }
    }
}

/// A part of a range, in one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    block: BlockId,
    guid: Guid,
    addr: u64,
    batch: Batch,
}

impl Dispatcher {
    /// The pointers of a wreck were looked at. If one may still be stored by, they are looked at
    /// again.
    pub(super) fn take_pointers(&mut self, id: SessionId, pins: &[PinClaim], is_gone: bool) {
        let Some(wreck) = self.wrecks.get(id) else { return };
        let is_used = |pin: &PinClaim| {
            let end = pin.range.addr.saturating_add(pin.range.bytes);
            !pin.is_left && self.next_part(wreck, pin.range.addr, end).is_some()
        };
        if !is_gone && pins.iter().any(is_used) {
            return;
        }
        if let Some(wreck) = self.wrecks.get_mut(id) {
            wreck.pointers.take_in(pins);
        }
    }

    /// Goes on with the pointers of a wreck of which nothing else is left.
    pub(super) fn carry_on(&mut self, id: SessionId) {
        loop {
            let Some(wreck) = self.wrecks.get(id) else { return };
            if !wreck.is_read || !wreck.claims.is_empty() {
                return;
            }
            let Some(&Carry { at, end, .. }) =
                wreck.pointers.ranges.as_ref().and_then(|r| r.last())
            else {
                return;
            };
            let part = self.next_part(wreck, at, end);
            if let Some(claim) = part.and_then(|part| claim_of(id, part)) {
                return self.wrecks.carry((id, CARRYING_SLOT), claim);
            }
            self.end_range(id);
        }
    }

    /// A range is on all copies, as far as there is anything of it.
    fn end_range(&mut self, session: SessionId) {
        let Some(wreck) = self.wrecks.get_mut(session) else { return };
        let ranges = wreck.pointers.ranges.as_mut();
        let Some(Carry { pins, .. }) = ranges.and_then(Vec::pop) else { return };
        self.out.extend(pins.into_iter().map(|pin| Action::FreePin { session, pin }));
        if wreck.pointers.are_carried() {
            let text = format!("what pointers of session {session} stored is on all copies");
            self.log(LogLevel::Info, text);
        }
    }

    /// A part was carried, or its block is not there any more.
    pub(super) fn part_ended(&mut self, id: SessionId, end: u64) {
        if let Some(wreck) = self.wrecks.get_mut(id) {
            wreck.pointers.pass(end);
        }
    }

    /// The next of what is from `at` to `end` that other copies may lack.
    fn next_part(&self, wreck: &Wreck, at: u64, end: u64) -> Option<Part> {
        // A client may pin as often as it can, and have as much open: only regions that the range
        // reaches are looked at. They are in the order of their addresses.
        let lowest = BlockId::try_from(1).ok()?;
        let from = match self.parts(at).map(|parts| BlockId::try_from(parts.block)) {
            Ok(Ok(block)) => block,
            _ if at < self.address(lowest) => lowest,
            _ => return None,
        };
        let from = self.blocks.span_at(from).unwrap_or(from);
        let regions = wreck.opens()?.regions_from(from);
        let mut reached = regions.take_while(|first| self.address(*first) < end);
        reached.find_map(|first| {
            let span = self.blocks.span(first).filter(|_| self.stands(first))?;
            let is_writable = wreck.may_write(first) && span.copies > 1;
            if is_writable { self.next_part_in((first, span), at, end) } else { None }
        })
    }

    /// The same, in one span.
    fn next_part_in(&self, (first, span): (BlockId, &Span), at: u64, end: u64) -> Option<Part> {
        let from = self.parts(at).ok().and_then(|parts| BlockId::try_from(parts.block).ok());
        let from = from.map_or(first, |from| from.max(first));
        let is_inside = |id: BlockId| id.get() - first.get() < span.count;
        let blocks = self.blocks.from(from).take_while(|(id, _)| is_inside(*id));
        for (block, found) in blocks {
            let base = self.address(block);
            if base >= end {
                return None;
            }
            let (cell, until) = (at.saturating_sub(base), (end - base).min(found.committed));
            if found.is_usable() && cell < until && found.copies.held().count() > 1 {
                let batch = Batch::first_of(cell, until, found.committed);
                return Some(Part { block, guid: found.guid, addr: base + cell, batch });
            }
        }
        None
    }
}

/// A part as a claim of a slot.
fn claim_of(session: SessionId, part: Part) -> Option<Claim> {
    let Part { block, guid, addr, batch: Batch { cell, bytes, end } } = part;
    let owner = LockOwner::new(session, CARRYING_SLOT);
    // Which copy is the first is said when it is begun.
    let intent = IntentClaim { addr, bytes, progress: Progress::Nonsense };
    let wreck = copies::Wreck::new(owner, &intent, cell, end)?;
    Some(Claim { block, guid, wreck, level: None, carried: Some((addr, bytes)) })
}

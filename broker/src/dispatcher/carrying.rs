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
//! A part of which somebody holds a page is passed over. When nothing else is left, those that were
//! are gone over again, in rounds, after a while each.
//!
//! # Invariants
//!
//! 1. What a client stored is a claim: nothing is carried but ranges of regions that the session
//!    had open to write when it ended, and that stand since. Each byte is carried once, however
//!    many pins it is in.
//! 2. While a pointer may still be stored by, it is not carried: its wreck waits for the process.
//! 3. What is carried is the bytes of the copy that is the primary when a part is begun.
//! 4. Nobody waits for it: whoever has the region open goes on, and other wrecks are repaired in
//!    between, before it.
//! 5. A page that is never given back keeps what is elsewhere from being carried only when
//!    `PASSED_MAX` others are held as well. Pins are freed when all of their range is carried.

use std::collections::VecDeque;

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_shm::copies::{self, Batch};
use dmce_shm::lock::LockOwner;
use dmce_shm::session::pin::PinClaim;
use dmce_shm::slot::intent::{IntentClaim, Progress};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, Span};
use super::wrecks::{Claim, Wreck};

/// The slot of a wreck that says what is carried: all were repaired by then.
const CARRYING_SLOT: u8 = 0;

/// Into how many pieces more than there are ranges the pointers of a wreck are cut, where parts of
/// them are passed over: it is what a hostile client can have remembered.
const PASSED_MAX: usize = 64;

/// What is left of a range, or of a piece of it that was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Carry {
    /// The first address, and the one behind the last.
    at: u64,
    end: u64,
    /// Which of the ranges.
    range: usize,
}

/// A range, which is carried in one piece, but for what is passed over.
#[derive(Debug, Default)]
struct Range {
    /// The pins that are freed at its end.
    pins: Vec<u16>,
    /// How many pieces of it are left.
    pieces: usize,
}

/// The pointers of a wreck.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    /// Whether it is known what they are.
    are_known: bool,
    /// None of them overlaps another.
    ranges: Vec<Range>,
    /// What is left in this round, the next one first.
    left: VecDeque<Carry>,
    /// What was passed over in it.
    passed: VecDeque<Carry>,
}

impl Pointers {
    /// Whether nothing is left to be carried.
    pub(super) fn are_carried(&self) -> bool {
        self.are_known && self.left.is_empty() && self.passed.is_empty()
    }

    /// Whether it is known what is to be carried.
    pub(super) const fn are_known(&self) -> bool {
        self.are_known
    }

    /// Whether something of a range of addresses may have to be carried.
    pub(super) fn may_be_in(&self, addrs: &std::ops::Range<u64>) -> bool {
        let is_in = |piece: &Carry| piece.at < addrs.end && addrs.start < piece.end;
        !self.are_known || self.left.iter().chain(&self.passed).any(is_in)
    }

    /// There is nothing to be carried.
    pub(super) fn forget(&mut self) {
        *self = Self { are_known: true, ..Self::default() };
    }

    /// Takes in all of them.
    fn take_in(&mut self, pins: &[PinClaim]) {
        let mut all: Vec<&PinClaim> = pins.iter().collect();
        all.sort_by_key(|pin| pin.range.addr);
        self.forget();
        for pin in all {
            let (at, place) = (pin.range.addr, pin.place);
            let end = at.saturating_add(pin.range.bytes);
            match (self.left.back_mut(), self.ranges.last_mut()) {
                (Some(last), Some(range)) if at <= last.end => {
                    last.end = last.end.max(end);
                    range.pins.push(place);
                }
                _ => {
                    self.left.push_back(Carry { at, end, range: self.ranges.len() });
                    self.ranges.push(Range { pins: vec![place], pieces: 1 });
                }
            }
        }
    }

    /// What is next, unless all that is left was passed over.
    fn next(&self) -> Option<Carry> {
        self.left.front().copied()
    }

    /// Begins the next round, with what was passed over. `false` if nothing was.
    fn begin_round(&mut self) -> bool {
        std::mem::swap(&mut self.left, &mut self.passed);
        !self.left.is_empty()
    }

    /// What is before an address is carried, or is nobody's.
    fn pass(&mut self, to: u64) {
        if let Some(next) = self.left.front_mut() {
            next.at = next.at.max(to);
        }
    }

    /// The part of what is next is passed over: that alone, or with it what is behind it in its
    /// piece, if it was cut often enough.
    fn pass_over(&mut self, at: u64, end: u64) {
        let may_cut = self.left.len() + self.passed.len() < self.ranges.len() + PASSED_MAX;
        let Some(next) = self.left.front_mut() else { return };
        let range = next.range;
        if end < next.end && may_cut {
            next.at = end;
            self.passed.push_back(Carry { at, end, range });
            if let Some(range) = self.ranges.get_mut(range) {
                range.pieces += 1;
            }
        } else {
            next.at = at;
            self.passed.extend(self.left.pop_front());
        }
    }

    /// The piece that is next is carried. At the end of its range, its pins.
    fn end_piece(&mut self) -> Vec<u16> {
        let Some(Carry { range, .. }) = self.left.pop_front() else { return Vec::new() };
        let Some(range) = self.ranges.get_mut(range) else { return Vec::new() };
        range.pieces -= 1;
        if range.pieces == 0 { std::mem::take(&mut range.pins) } else { Vec::new() }
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
        // Also where one copy is left: another one may be made while it is stored by.
        let is_used = |pin: &PinClaim| {
            let end = pin.range.addr.saturating_add(pin.range.bytes);
            let has_locks = |block: &Block| block.locks.is_some();
            !pin.is_left && self.next_part(wreck, (pin.range.addr, end), has_locks).is_some()
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
        let mut is_again = false;
        loop {
            let Some(wreck) = self.wrecks.get_mut(id) else { return };
            if !wreck.is_read || !wreck.claims.is_empty() {
                return;
            }
            let Some(Carry { at, end, .. }) = wreck.pointers.next() else {
                if !wreck.pointers.begin_round() {
                    return;
                }
                is_again = true;
                continue;
            };
            let part = self.wrecks.get(id);
            let part = part.and_then(|wreck| self.next_part(wreck, (at, end), has_others));
            let of = (id, CARRYING_SLOT);
            match part.and_then(|part| claim_of(id, part)) {
                Some(claim) if is_again => {
                    self.wrecks.claim_later(of, claim);
                    return self.try_again_later();
                }
                Some(claim) => return self.wrecks.claim(of, claim),
                None => self.end_piece(id),
            }
        }
    }

    /// A piece is on all copies, as far as there is anything of it.
    fn end_piece(&mut self, session: SessionId) {
        let Some(wreck) = self.wrecks.get_mut(session) else { return };
        let pins = wreck.pointers.end_piece();
        self.out.extend(pins.into_iter().map(|pin| Action::FreePin { session, pin }));
        if wreck.pointers.are_carried() {
            let text = format!("what pointers of session {session} stored is on all copies");
            self.log(LogLevel::Info, text);
        }
    }

    /// Somebody holds a page of the part that was to be carried.
    pub(super) fn part_is_busy(&mut self, id: SessionId, at: u64, end: u64) {
        if let Some(wreck) = self.wrecks.get_mut(id) {
            wreck.pointers.pass_over(at, end);
        }
    }

    /// A part was carried, or its block is not there any more.
    pub(super) fn part_ended(&mut self, id: SessionId, end: u64) {
        if let Some(wreck) = self.wrecks.get_mut(id) {
            wreck.pointers.pass(end);
        }
    }

    /// The next of what is from one address to another, in blocks that are such.
    fn next_part(
        &self,
        wreck: &Wreck,
        (at, end): (u64, u64),
        is_such: impl Fn(&Block) -> bool,
    ) -> Option<Part> {
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
            if wreck.may_write(first) {
                self.next_part_in((first, span), (at, end), &is_such)
            } else {
                None
            }
        })
    }

    /// The same, in one span.
    fn next_part_in(
        &self,
        (first, span): (BlockId, &Span),
        (at, end): (u64, u64),
        is_such: impl Fn(&Block) -> bool,
    ) -> Option<Part> {
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
            if found.is_usable() && cell < until && is_such(found) {
                let batch = Batch::first_of(cell, until, found.committed);
                return Some(Part { block, guid: found.guid, addr: base + cell, batch });
            }
        }
        None
    }
}

/// Whether there are copies that may lack what a pointer stored.
fn has_others(block: &Block) -> bool {
    block.copies.held().chain(block.copies.syncing()).count() > 1
}

/// A part as a claim of a slot.
fn claim_of(session: SessionId, part: Part) -> Option<Claim> {
    let Part { block, guid, addr, batch: Batch { cell, bytes, end } } = part;
    let owner = LockOwner::new(session, CARRYING_SLOT);
    // Which copy is the first is said when it is begun.
    let intent = IntentClaim { addr, bytes, progress: Progress::Nonsense };
    let wreck = copies::Wreck::new(owner, &intent, cell, end)?;
    Some(Claim { block, guid, wreck, level: None, carried: Some((addr, bytes)), is_begun: false })
}

//! Wrecks: sessions that have ended and may have left pages of regions half written, and what each
//! of their slots was changing.
//!
//! # Invariants
//!
//! 1. The id of a wreck is no session's, and its record stays, until nothing of it is left.
//! 2. A claim that waits is in one of four places: looked at next, or behind all those, held up by
//!    its block, or tried again; or the shell is at it.
//! 3. The shell is at one claim at a time.
//! 4. What is carried is never looked at before what a slot left, however often it is tried.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_shm::copies;

use super::carrying::Pointers;
use super::charge::AccountId;
use super::opens::Opens;

/// A slot of a wreck.
pub(super) type ClaimId = (SessionId, u8);

/// What the shell is at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repairing {
    /// Whose.
    pub claim: ClaimId,
    /// Whether it uses the lock table.
    pub has_locks: bool,
}

/// What a slot of a wreck was changing: checked, and to be repaired.
#[derive(Debug)]
pub(super) struct Claim {
    /// The block.
    pub block: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// The pages, and how far the slot was.
    pub wreck: copies::Wreck,
    /// If they were made equal without a lock table, those of them that are lost.
    pub level: Option<Vec<u64>>,
    /// If no slot was changing them, but a pointer may have stored there: address and bytes.
    pub carried: Option<(u64, u64)>,
    /// Whether it was begun and not ended: pages may be held in its name.
    pub is_begun: bool,
}

/// A session that has ended.
#[derive(Debug)]
pub(super) struct Wreck {
    /// Its process.
    pub pid: u32,
    /// When that lived, in clock ticks since boot.
    pub lived_at: u64,
    /// For the count of its user's sessions.
    pub account: AccountId,
    /// What it had open; none of a daemon, which may write whatever has several copies.
    opens: Option<Opens>,
    /// The slots whose intents were looked at.
    pub seen: BTreeSet<u8>,
    /// Whether all were.
    pub is_read: bool,
    /// How long it is waited until the others are looked at again.
    pub again_ms: u64,
    /// What is to be repaired, by slot.
    pub claims: BTreeMap<u8, Claim>,
    /// Its pointers, which come behind that.
    pub pointers: Pointers,
}

impl Wreck {
    /// One of which nothing is known but what it had open; `None` of a daemon.
    pub(super) fn new(
        (pid, lived_at): (u32, u64),
        account: AccountId,
        opens: Option<Opens>,
        again_ms: u64,
    ) -> Self {
        Self {
            pid,
            lived_at,
            account,
            opens,
            seen: BTreeSet::new(),
            is_read: false,
            again_ms,
            claims: BTreeMap::new(),
            pointers: Pointers::default(),
        }
    }

    /// Whether nothing is left to be done about it.
    pub(super) fn is_over(&self) -> bool {
        self.is_read && self.claims.is_empty() && self.pointers.are_carried()
    }

    /// Whether it had a span open to write.
    pub(super) fn may_write(&self, first: BlockId) -> bool {
        self.opens.as_ref().is_none_or(|opens| opens.rights(first).write)
    }

    /// What it had open, if it is a client's.
    pub(super) const fn opens(&self) -> Option<&Opens> {
        self.opens.as_ref()
    }

    /// The same, to close it.
    pub(super) const fn opens_mut(&mut self) -> Option<&mut Opens> {
        self.opens.as_mut()
    }

    /// Whether a pointer of it may have stored in a range of a span, and that is not carried.
    fn may_point_into(&self, first: BlockId, addrs: &Range<u64>) -> bool {
        self.may_write(first) && self.opens.is_some() && self.pointers.may_be_in(addrs)
    }

    /// Whether it may hold pages of a block, whose span begins with `first`, that nobody knows to
    /// be equal.
    fn may_hold(&self, block: BlockId, first: BlockId) -> bool {
        let unequal = |claim: &Claim| claim.block == block && claim.level.is_none();
        self.may_write(first) && (!self.is_read || self.claims.values().any(unequal))
    }
}

/// All wrecks.
#[derive(Debug, Default)]
pub(super) struct Wrecks {
    by_id: BTreeMap<SessionId, Wreck>,
    due: BTreeSet<ClaimId>,
    /// What is carried, in turns: behind what is due.
    carrying: VecDeque<ClaimId>,
    held_up: BTreeSet<(BlockId, ClaimId)>,
    again: BTreeSet<ClaimId>,
    /// What the shell is at.
    pub repairing: Option<Repairing>,
    /// Those that this broker found when it started, and that others wait for.
    pub found: BTreeSet<SessionId>,
}

impl Wrecks {
    /// Whether an id is that of a wreck.
    pub(super) fn has(&self, id: SessionId) -> bool {
        self.by_id.contains_key(&id)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All ids.
    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    /// All.
    pub(super) fn all(&self) -> impl Iterator<Item = (SessionId, &Wreck)> {
        self.by_id.iter().map(|(id, wreck)| (*id, wreck))
    }

    /// Enters one.
    pub(super) fn add(&mut self, id: SessionId, wreck: Wreck) {
        let before = self.by_id.insert(id, wreck);
        assert!(before.is_none(), "session {id} has ended twice");
    }

    /// One of them.
    pub(super) fn get(&self, id: SessionId) -> Option<&Wreck> {
        self.by_id.get(&id)
    }

    /// One of them, to change it.
    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Wreck> {
        self.by_id.get_mut(&id)
    }

    /// A claim, to change it.
    pub(super) fn claim_mut(&mut self, (id, slot): ClaimId) -> Option<&mut Claim> {
        self.by_id.get_mut(&id)?.claims.get_mut(&slot)
    }

    /// Enters a claim, which is looked at next.
    pub(super) fn claim(&mut self, (id, slot): ClaimId, claim: Claim) {
        if let Some(wreck) = self.by_id.get_mut(&id) {
            wreck.claims.insert(slot, claim);
            self.push((id, slot));
        }
    }

    /// Enters a claim that is tried later.
    pub(super) fn claim_later(&mut self, (id, slot): ClaimId, claim: Claim) {
        if let Some(wreck) = self.by_id.get_mut(&id) {
            wreck.claims.insert(slot, claim);
            self.put_off((id, slot));
        }
    }

    /// Takes a claim out that nothing is left to do about.
    pub(super) fn settle(&mut self, (id, slot): ClaimId) -> Option<Claim> {
        let claim = self.by_id.get_mut(&id)?.claims.remove(&slot)?;
        self.due.remove(&(id, slot));
        self.carrying.retain(|of| *of != (id, slot));
        self.again.remove(&(id, slot));
        self.held_up.remove(&(claim.block, (id, slot)));
        Some(claim)
    }

    /// Takes one out of which nothing is left to be repaired.
    pub(super) fn take_over(&mut self, id: SessionId) -> Option<Wreck> {
        if !self.by_id.get(&id)?.is_over() {
            return None;
        }
        self.found.remove(&id);
        self.by_id.remove(&id)
    }

    /// The next claim to be looked at, unless the shell is at one.
    pub(super) fn next(&mut self) -> Option<ClaimId> {
        if self.repairing.is_some() {
            return None;
        }
        self.due.pop_first().or_else(|| self.carrying.pop_front())
    }

    /// A claim waits for what is being decided about its block.
    pub(super) fn hold_up(&mut self, block: BlockId, claim: ClaimId) {
        self.held_up.insert((block, claim));
    }

    /// What was held up by a block, or by any, is looked at.
    pub(super) fn stir(&mut self, block: Option<BlockId>) {
        let is_meant = |of: &(BlockId, ClaimId)| block.is_none_or(|block| of.0 == block);
        let held_up = std::mem::take(&mut self.held_up);
        let (stirred, left): (BTreeSet<_>, _) = held_up.into_iter().partition(is_meant);
        self.held_up = left;
        for (_, claim) in stirred {
            self.push(claim);
        }
    }

    /// A claim is looked at next, or behind all those if it is carried.
    pub(super) fn push(&mut self, claim: ClaimId) {
        if self.claim_mut(claim).is_some_and(|claim| claim.carried.is_some()) {
            self.carrying.push_back(claim);
        } else {
            self.due.insert(claim);
        }
    }

    /// A claim is tried again later.
    pub(super) fn put_off(&mut self, claim: ClaimId) {
        self.again.insert(claim);
    }

    /// What was put off is looked at.
    pub(super) fn try_again(&mut self) {
        for claim in std::mem::take(&mut self.again) {
            self.push(claim);
        }
    }

    /// Whether one may hold pages of a block that nobody knows to be equal.
    pub(super) fn may_hold(&self, block: BlockId, first: BlockId) -> bool {
        self.by_id.values().any(|wreck| wreck.may_hold(block, first))
    }

    /// Those that may hold pages of a block that nobody knows to be equal.
    pub(super) fn holding(
        &self,
        block: BlockId,
        first: BlockId,
    ) -> impl Iterator<Item = SessionId> {
        let all = self.by_id.iter();
        all.filter(move |(_, wreck)| wreck.may_hold(block, first)).map(|(id, _)| *id)
    }

    /// Whether something that one stored by a pointer is not carried, in a range of a span.
    pub(super) fn may_point_into(&self, first: BlockId, addrs: &Range<u64>) -> bool {
        self.by_id.values().any(|wreck| wreck.may_point_into(first, addrs))
    }

    /// Pages of a block that are lost, and that no lock table says yet.
    pub(super) fn lost_pages(&self, block: BlockId) -> Vec<u64> {
        let claims = self.by_id.values().flat_map(|wreck| wreck.claims.values());
        let lost = claims.filter(|claim| claim.block == block).filter_map(|of| of.level.as_ref());
        lost.flatten().copied().collect::<BTreeSet<u64>>().into_iter().collect()
    }

    /// Others do not wait for those of which what is left waits for its block, or is carried.
    pub(super) fn admit(&mut self) {
        if self.found.is_empty() {
            return;
        }
        let (by_id, due) = (&self.by_id, &self.due);
        let at = self.repairing.map(|at| at.claim);
        let is_at = |id: SessionId| {
            let Some(wreck) = by_id.get(&id) else { return false };
            let next = due.range((id, 0)..=(id, u8::MAX)).next().copied();
            let at = at.filter(|at| at.0 == id);
            let is_slots = |claim: &ClaimId| {
                wreck.claims.get(&claim.1).is_some_and(|claim| claim.carried.is_none())
            };
            !wreck.is_read || next.iter().chain(&at).any(is_slots)
        };
        self.found.retain(|id| is_at(*id));
    }

    /// Whether each claim is somewhere, and what is somewhere is a claim.
    pub(super) fn is_sound(&self) -> bool {
        let claims = self.by_id.iter().flat_map(|(id, wreck)| {
            let slots = wreck.claims.iter();
            slots.map(move |(slot, claim)| (claim.block, (*id, *slot)))
        });
        let mut places =
            self.due.len() + self.carrying.len() + self.held_up.len() + self.again.len();
        let at = self.repairing.map(|at| at.claim);
        for (block, claim) in claims {
            let held_up = self.held_up.contains(&(block, claim));
            let next = [self.due.contains(&claim), self.carrying.contains(&claim)];
            let found = [next[0], next[1], self.again.contains(&claim), held_up];
            let found = found.into_iter().filter(|found| *found).count();
            places -= found;
            if found + usize::from(at == Some(claim)) != 1 {
                return false;
            }
        }
        places == 0 && self.found.iter().all(|id| self.by_id.contains_key(id))
    }
}

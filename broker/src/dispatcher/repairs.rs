//! Repair of the dead: what a session that has ended left half written is made equal on all copies,
//! and its page locks are given back.
//!
//! ```text
//!  a session ends that has a region           its slots are in no operation
//!  of several copies open to write            any more, or its process is gone
//!  ---------------------------------> WRECK ---------------------------------> claims
//!                                                                                |
//!        +-- the block is LOSING: waits ----- each, one after another <----------+
//!        |                                        |
//!        |  its table is gone, and nobody         |  Repair: a copy or the table cannot be had:
//!        |  uses the old one any more: made       |  it is looked at, and repaired again
//!        |  equal without it, then the table      v
//!        +------------------------------------> ClearIntent; after the last one what pointers
//!                                               stored (`carrying`), then EndSession
//! ```
//!
//! # Invariants
//!
//! 1. What a client stored is a claim: nothing is repaired but bytes of a region that the session
//!    had open to write when it ended, and that stands since.
//! 2. Of a client that may live, a slot in an operation is not touched.
//! 3. A lock table is not made anew while a wreck may hold pages by the old one that nobody knows
//!    to be equal.
//! 4. Each step can be done again by the broker after this one: until all is done the session's
//!    record, its grants and its intents stay.
//! 5. Of a lost block the locks are given back all the same: its headers may be there again for the
//!    next broker, with the table that the dead had locked.

use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_shm::copies;
use dmce_shm::lock::LockOwner;
use dmce_shm::slot::intent::IntentClaim;

use super::Dispatcher;
use super::action::{Action, LogLevel, Repair};
use super::blocks::BlockState;
use super::event::{FoundIntents, Repaired, SessionRecord};
use super::opens::Opens;
use super::raising::AGAIN_MS;
use super::sessions::Session;
use super::timers::Timer;
use super::wrecks::{Claim, ClaimId, Repairing, Wreck};

/// How long until slots are looked at again that were in an operation: at first, and at most.
const LOOK_MS: u64 = 2;
const LOOK_MS_MAX: u64 = 512;

impl Dispatcher {
    /// Whether a session may leave something half written that others share.
    fn may_leave(&self, opens: &Opens) -> bool {
        let writable = |first: &BlockId| opens.rights(*first).write;
        let mut regions = opens.regions().filter(writable);
        regions.any(|first| !self.tables_complete() || self.blocks.has_locks(first))
    }

    /// A session has ended, and is forgotten. Its id and record stay as long as something of it may
    /// have to be repaired.
    pub(super) fn wreck(&mut self, session: &mut Session) {
        let id = session.record.session;
        let opens = std::mem::take(&mut session.opens);
        for first in opens.regions() {
            if let Some(region) = self.regions.get_mut(first) {
                region.opens.remove(&id);
            }
        }
        if !self.may_leave(&opens) {
            self.out.push(Action::EndSession { session: id });
            return;
        }
        // No operation begins from then on: who sees it asks, and is told that it has ended.
        let generation = session.changes.generation().wrapping_add(1);
        self.out.push(Action::Publish { session: id, generation });
        self.enter_wreck(&session.record, Some(opens));
        self.read_intents(id);
    }

    /// A session whose process has died while there was no broker.
    pub(super) fn find_wreck(&mut self, record: &SessionRecord, opens: Opens) {
        let id = record.session;
        if !opens.regions().any(|first| opens.rights(first).write) {
            self.out.push(Action::EndSession { session: id });
            return;
        }
        self.wrecks.found.insert(id);
        self.enter_wreck(record, Some(opens));
    }

    /// Enters a wreck; `opens` is `None` of a daemon.
    pub(super) fn enter_wreck(&mut self, record: &SessionRecord, opens: Option<Opens>) {
        let account = self.ledger.force_account(record.uid);
        let process = (record.pid, record.lived_at);
        self.wrecks.add(record.session, Wreck::new(process, account, opens, LOOK_MS));
    }

    /// The tables are complete: it is known now which regions there are.
    pub(super) fn read_wrecks(&mut self) {
        for id in self.wrecks.ids() {
            let Some(opens) = self.wrecks.get(id).and_then(Wreck::opens) else {
                self.read_intents(id);
                continue;
            };
            let regions = &self.regions;
            let gone: Vec<BlockId> =
                opens.regions().filter(|first| regions.get(*first).is_none()).collect();
            for first in gone {
                self.close_wrecks(first);
            }
            let opens = self.wrecks.get(id).and_then(Wreck::opens);
            if opens.is_some_and(|opens| self.may_leave(opens)) {
                self.read_intents(id);
            } else if let Some(wreck) = self.wrecks.get_mut(id) {
                wreck.is_read = true;
                wreck.pointers.forget();
                self.bury(id);
            }
        }
    }

    /// Has the slots of a wreck looked at.
    pub(super) fn read_intents(&mut self, session: SessionId) {
        let is_known = |wreck: &&Wreck| wreck.is_read && wreck.pointers.are_known();
        let wreck = self.wrecks.get(session).filter(|wreck| !is_known(wreck));
        if let Some(&Wreck { pid, lived_at, .. }) = wreck.filter(|_| self.tables_complete()) {
            self.out.push(Action::ReadIntents { session, pid, lived_at });
        }
    }

    /// What the slots of a wreck were changing.
    pub(super) fn intents_read(&mut self, id: SessionId, found: Result<FoundIntents, String>) {
        let is_known = |wreck: &&mut Wreck| wreck.is_read && wreck.pointers.are_known();
        let wreck = self.wrecks.get_mut(id).filter(|wreck| !is_known(wreck));
        let Some(wreck) = wreck else { return };
        let FoundIntents { mut claims, is_all, pins, is_gone } = found.unwrap_or_else(|reason| {
            let text = format!("what session {id} was writing is not known: {reason}");
            self.out.push(Action::Log { level: LogLevel::Error, text });
            FoundIntents::none()
        });
        let was_read = wreck.is_read;
        wreck.is_read |= is_all;
        claims.retain(|(slot, _)| !was_read && wreck.seen.insert(*slot));
        let look_at = self.now.millis.after(wreck.again_ms);
        wreck.again_ms = (wreck.again_ms * 2).min(LOOK_MS_MAX);
        if is_all {
            self.take_pointers(id, &pins, is_gone);
        }
        if self.wrecks.get(id).is_some_and(|wreck| wreck.is_read && wreck.pointers.are_known()) {
            self.timers.cancel(Timer::Intents(id));
        } else {
            // Others do not wait for a process that lives.
            self.wrecks.found.remove(&id);
            self.timers.set(Timer::Intents(id), look_at);
        }
        self.take_claims(id, &claims);
        self.bury(id);
        self.relock_all();
    }

    /// Takes in what can be true.
    fn take_claims(&mut self, id: SessionId, claims: &[(u8, IntentClaim)]) {
        let mut refused = 0;
        let mut first = None;
        for (slot, claim) in claims {
            match self.check_claim((id, *slot), claim) {
                Ok(claim) => self.wrecks.claim((id, *slot), claim),
                Err(why) => {
                    refused += 1;
                    first.get_or_insert_with(|| format!("slot {slot}: {why}"));
                }
            }
        }
        if let Some(first) = first {
            let text = format!("session {id} left {refused} intents that cannot be; {first}");
            self.log(LogLevel::Warn, text);
        }
    }

    fn check_claim(&self, (id, slot): ClaimId, claim: &IntentClaim) -> Result<Claim, String> {
        let (addr, bytes) = (claim.addr, claim.bytes);
        let parts = self.parts(addr).map_err(|refusal| refusal.text)?;
        let found = BlockId::try_from(parts.block).ok().and_then(|block| {
            let (entry, wreck) = (self.blocks.get(block)?, self.wrecks.get(id)?);
            let is_its_own = wreck.may_write(entry.span) && self.stands(entry.span);
            (is_its_own && entry.locks.is_some()).then_some((block, entry))
        });
        let Some((block, entry)) = found else {
            return Err(format!("{addr:#x} is in no region that it had open to write"));
        };
        let (owner, end) = (LockOwner::new(id, slot), entry.committed);
        let Some(wreck) = copies::Wreck::new(owner, claim, parts.cell, end) else {
            return Err(format!("{bytes} bytes at {addr:#x}, of a block of {end}"));
        };
        Ok(Claim { block, guid: entry.guid, wreck, level: None, carried: None, is_begun: false })
    }

    /// Goes on with repairs, as far as the shell is not at one.
    pub(super) fn mend(&mut self) {
        if self.settled {
            self.wrecks.stir(None);
        }
        while let Some(claim) = self.wrecks.next() {
            self.look_at_claim(claim);
        }
        self.wrecks.admit();
        self.serve_deferred();
    }

    /// Has a claim repaired, if its block can be, or drops it, if nothing is left of that.
    fn look_at_claim(&mut self, of: ClaimId) {
        let (session, slot) = of;
        let Some(entry) = self.wrecks.get(session) else { return };
        let Some(&Claim { block, guid, wreck, ref level, carried, .. }) = entry.claims.get(&slot)
        else {
            return;
        };
        let is_level = level.is_some();
        let found = self.blocks.get(block).filter(|found| {
            let is_its_own = entry.may_write(found.span) && self.stands(found.span);
            found.guid == guid && is_its_own
        });
        let is_idle = self.is_without_locks(block);
        match found.map(|found| found.state) {
            Some(BlockState::Held) if is_level => self.clear_intent(of),
            Some(BlockState::Losing) if is_level || !is_idle => self.wrecks.hold_up(block, of),
            Some(state @ (BlockState::Held | BlockState::Losing)) => {
                // Who did not know yet that a copy goes may have written that first.
                let goes = self.syncs.goes_good(block).filter(|_| carried.is_none());
                let named = found.map(|found| found.copies.daemons()).unwrap_or_default();
                let copies: Vec<DaemonId> = named.into_iter().chain(goes).collect();
                // What a pointer stored is in the copy that is the primary now.
                let first = copies.first().filter(|_| carried.is_some());
                let wreck = first.map_or(wreck, |first| wreck.brought_from(*first));
                let is_half_locked = self.syncs.is_half_locked(block) && carried.is_none();
                let wreck = if is_half_locked { wreck.as_it_is() } else { wreck };
                self.repair_claim(of, wreck, copies, state == BlockState::Held);
            }
            // The locks alone: the next broker may find the block again, with its table.
            Some(BlockState::Lost) if !is_level && carried.is_none() => {
                self.repair_claim(of, wreck, Vec::new(), true);
            }
            Some(BlockState::Making | BlockState::Lost | BlockState::Going) | None => {
                // Nothing in the record of a daemon says that the block was given up.
                if entry.opens().is_none() { self.clear_intent(of) } else { self.settle_claim(of) }
            }
        }
    }

    /// Has the shell repair a claim, on these copies.
    fn repair_claim(
        &mut self,
        of: ClaimId,
        wreck: copies::Wreck,
        copies: Vec<DaemonId>,
        has_locks: bool,
    ) {
        let (session, slot) = of;
        let Some(&mut Claim { block, guid, carried, .. }) = self.wrecks.claim_mut(of) else {
            return;
        };
        let committed = self.blocks.get(block).map_or(0, |block| block.committed);
        self.wrecks.repairing = Some(Repairing { claim: of, has_locks });
        self.out.push(Action::Repair(Repair {
            session,
            slot,
            wreck,
            block,
            guid,
            copies,
            committed,
            has_locks,
            carried,
        }));
    }

    /// The shell has repaired what a slot left, or could not.
    pub(super) fn repaired(&mut self, of: ClaimId, repaired: Repaired) {
        let at = self.wrecks.repairing.take_if(|at| at.claim == of);
        let Some(Repairing { has_locks, .. }) = at else { return };
        let (session, slot) = of;
        let blocks = &self.blocks;
        let Some(claim) = self.wrecks.claim_mut(of) else { return };
        let is_lost = blocks.get(claim.block).is_some_and(|of| of.state == BlockState::Lost);
        let (block, pages) = (claim.block, claim.wreck.pages());
        let is_begun = claim.is_begun;
        claim.is_begun |= !matches!(repaired, Repaired::Busy);
        match repaired {
            Repaired::Done { lost } => {
                if !lost.is_empty() && !is_lost {
                    let text = format!(
                        "pages {lost:?} of block {block} are lost: session {session} was writing \
                         them, and the copy that they are made whole from is gone"
                    );
                    self.out.push(Action::Log { level: LogLevel::Error, text });
                }
                if !has_locks {
                    // Done again by the next broker, until the new table says what is lost.
                    claim.level = Some(lost);
                }
                self.sync_repaired(block, pages);
                if has_locks {
                    return self.clear_intent(of);
                }
                self.wrecks.push(of);
                self.relock_if_idle(block);
            }
            Repaired::Copy { daemon, reason } => {
                let text = format!("block {block} on daemon {daemon} is not repaired: {reason}");
                self.log(LogLevel::Warn, text);
                self.inspect(daemon, vec![block]);
                self.goes_without(block, daemon);
                self.repair_later(of);
            }
            // Where it was begun, who waits for its pages waits for it alone.
            Repaired::Busy if is_begun => self.repair_later(of),
            Repaired::Busy => self.pass_over(of),
            // No lock of it is left.
            Repaired::Table { .. } if is_lost => self.settle_claim(of),
            Repaired::Table { reason } => {
                let text = format!("slot {slot} of session {session} is not repaired: {reason}");
                self.log(LogLevel::Warn, text);
                self.out.push(Action::InspectLocks { block });
                self.repair_later(of);
            }
        }
    }

    fn repair_later(&mut self, of: ClaimId) {
        self.wrecks.put_off(of);
        self.try_again_later();
    }

    /// What is put off is tried again.
    pub(super) fn try_again_later(&mut self) {
        if !self.timers.is_set(Timer::Repair) {
            self.timers.set(Timer::Repair, self.now.millis.after(AGAIN_MS));
        }
    }

    fn clear_intent(&mut self, of: ClaimId) {
        let (session, slot) = of;
        self.out.push(Action::ClearIntent { session, slot });
        self.settle_claim(of);
    }

    /// Somebody holds a page of what was to be carried: what is behind it comes first.
    fn pass_over(&mut self, of: ClaimId) {
        let carried = self.wrecks.claim_mut(of).and_then(|claim| claim.carried);
        let Some((addr, bytes)) = carried else { return self.repair_later(of) };
        let (session, slot) = of;
        self.out.push(Action::ClearIntent { session, slot });
        self.wrecks.settle(of);
        self.part_is_busy(session, addr, addr + bytes);
        self.bury(session);
        self.relock_all();
    }

    fn settle_claim(&mut self, of: ClaimId) {
        let settled = self.wrecks.settle(of);
        if let Some((addr, bytes)) = settled.and_then(|claim| claim.carried) {
            self.part_ended(of.0, addr + bytes);
        }
        self.bury(of.0);
        self.relock_all();
    }

    /// Goes on with what pointers stored, and forgets a wreck of which nothing is left.
    fn bury(&mut self, session: SessionId) {
        self.carry_on(session);
        let Some(wreck) = self.wrecks.take_over(session) else { return };
        self.timers.cancel(Timer::Intents(session));
        self.ledger.close_account(wreck.account);
        self.room_changed = true;
        self.out.push(Action::EndSession { session });
        if !wreck.seen.is_empty() {
            self.log(LogLevel::Info, format!("what session {session} left is repaired"));
        }
        if wreck.opens().is_none() {
            self.seat_repaired();
        }
    }

    /// A region goes: what was being written there is nobody's.
    pub(super) fn close_wrecks(&mut self, first: BlockId) {
        for session in self.wrecks.ids() {
            let Some(wreck) = self.wrecks.get_mut(session) else { continue };
            let Some(opens) = wreck.opens_mut() else { continue };
            let places = opens.close_all(first);
            if places.is_empty() {
                continue;
            }
            if !opens.regions().any(|first| opens.rights(first).write) {
                wreck.is_read = true;
                wreck.pointers.forget();
            }
            let revoke = |place| Action::RevokeGrant { session, place };
            self.out.extend(places.into_iter().map(revoke));
            self.bury(session);
        }
        // Claims that were held up by its blocks are dropped.
        self.wrecks.stir(None);
    }
}

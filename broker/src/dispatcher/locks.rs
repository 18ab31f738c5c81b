//! Lock tables: a block that was asked for with more than one copy has one, from before its first
//! copy is made to after its last is gone. One that was asked for with one has none, but for as
//! long as that moves, or since more were asked for of its region: it is lent one, which nobody
//! uses before another copy is named, nor after he was told that there is none any more.
//!
//! ```text
//!            MakeLocks            it is there            GrowLocks, before its copies grow
//!  PLANNED ------------> ASKED ------------------> MADE -----------------------------> MADE
//!                          ^ |                      | it is gone, or not the block's any more,
//!                          | | it cannot be:        | as somebody reports, or is found at a start
//!                          | | the span is refused  v
//!                          | +------------------> MISSING: the block is LOSING, and its headers
//!                          |      in AGAIN_MS       |        are written under the next epoch
//!                          |                        v
//!                          +------------------ the generation of each session that may use the
//!                           all are idle, or    block has moved, and its marks are looked at
//!                           have ended
//! ```
//!
//! # Invariants
//!
//! 1. Nobody is granted a block before its table is there, with words for all bytes that may be
//!    used.
//! 2. Of a block that anybody may use there is one table. Who may still lock pages by one that is
//!    to be replaced is waited for: each session that may use the block has to be seen without an
//!    operation that began before it was told, or to end. Until then nothing of the block is
//!    granted.
//! 3. Tables are charged to who pays for the block, as long as that is anybody.

use std::collections::BTreeSet;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::Refusal;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, SpanOwner};
use super::charge::{Payer, TableCharge};
use super::event::{FoundTable, Made, RequestId};
use super::raising::AGAIN_MS;
use super::timers::Timer;

/// Where a lock table is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LocksState {
    /// Nobody was asked for it.
    Planned,
    /// The shell makes it.
    Asked,
    /// It is there.
    Made,
    /// It has to be made anew.
    Missing,
}

/// The lock table of a block.
#[derive(Debug)]
pub(super) struct LockTable {
    state: LocksState,
    /// Bytes of the block that it has words for, once it is there.
    bytes: u64,
    charge: TableCharge,
}

impl LockTable {
    /// One that nobody was asked for, of a block with so many bytes.
    pub(super) const fn planned(charge: TableCharge, bytes: u64) -> Self {
        Self { state: LocksState::Planned, bytes, charge }
    }

    /// Bytes of the block that it has words for.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What it costs.
    pub(super) const fn charge(&self) -> &TableCharge {
        &self.charge
    }

    /// Where it is in its life.
    pub(super) const fn state(&self) -> LocksState {
        self.state
    }

    /// Whether it is there.
    pub(super) fn is_made(&self) -> bool {
        self.state == LocksState::Made
    }

    /// Whether it is there, with words for so many bytes.
    pub(super) fn covers(&self, bytes: u64) -> bool {
        self.state == LocksState::Made && self.bytes >= bytes
    }
}

impl Dispatcher {
    /// Asks for the tables of a span that is being made, if any is still to be asked for. Returns
    /// how many were.
    pub(super) fn ask_for_tables(&mut self, first: BlockId) -> u32 {
        let mut asked = 0;
        for id in self.blocks.members(first) {
            let locks = self.blocks.get(id).and_then(|block| block.locks.as_ref());
            if locks.is_some_and(|locks| locks.state == LocksState::Planned) {
                self.make_locks(id);
                asked += 1;
            }
        }
        asked
    }

    fn make_locks(&mut self, id: BlockId) {
        let Some(Block { span, guid, epoch, locks: Some(locks), .. }) = self.blocks.get_mut(id)
        else {
            return;
        };
        let span = *span;
        locks.state = LocksState::Asked;
        let (block, guid, epoch, bytes) = (id, *guid, *epoch, locks.bytes);
        let session = match self.blocks.span(span).map(|span| span.owner) {
            Some(SpanOwner::Session(session)) => Some(session),
            Some(SpanOwner::Region) | None => None,
        };
        let lost = self.wrecks.lost_pages(id);
        self.out.push(Action::MakeLocks { session, block, guid, epoch, bytes, lost });
    }

    /// A table was made, or could not be.
    pub(super) fn locks_made(&mut self, id: BlockId, epoch: u64, made: Made) {
        let Some(block) = self.blocks.get_mut(id).filter(|block| block.epoch == epoch) else {
            return;
        };
        let (first, state) = (block.span, block.state);
        let asked = block.locks.as_mut().filter(|locks| locks.state == LocksState::Asked);
        let Some(locks) = asked else { return };
        let is_whole = made == Made::Whole;
        locks.state = match state {
            _ if is_whole => LocksState::Made,
            BlockState::Making => LocksState::Planned,
            _ => LocksState::Missing,
        };
        match (state, made) {
            (BlockState::Making, Made::Whole) => self.made_one(first),
            (BlockState::Making, Made::NameTaken { reason }) => {
                let text = format!("the lock table of block {id} cannot be named: {reason}");
                self.withhold_id(id, text);
                self.make_again(first);
            }
            (BlockState::Making, Made::Unusable { reason }) => {
                let text = format!("no lock table of block {id}: {reason}");
                self.give_up_making(first, Refusal::new(Status::NoSpace, text));
            }
            (BlockState::Losing, Made::Whole) => {
                self.relocks.remove(&id);
                self.log(LogLevel::Warn, format!("block {id} has a new lock table"));
                self.scrub_at_once(id);
                self.settle_losing(id);
            }
            (_, Made::Whole) => (self.syncs.lacks.is_due, self.moves.is_due) = (true, true),
            (BlockState::Held, Made::NameTaken { reason } | Made::Unusable { reason })
                if !self.blocks.get(id).is_some_and(|block| block.is_locked) =>
            {
                self.take_locks_back(id);
                self.end_wish(id, &format!("it gets no lock table: {reason}"));
                self.no_copy_for_now(id);
            }
            (_, Made::NameTaken { reason } | Made::Unusable { reason }) => {
                self.log(LogLevel::Error, format!("no lock table of block {id}: {reason}"));
                self.timers.set(Timer::Raise(id), self.now.millis.after(AGAIN_MS));
            }
        }
    }

    /// A block that has none gets one: its only copy is to move, or to have others beside it.
    pub(super) fn lend_locks(&mut self, id: BlockId) {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        let payer = self.payer_of_span(first);
        let Some(block) = self.blocks.get_mut(id) else { return };
        let bytes = block.copies.committed().max(block.committed);
        let charge = self.ledger.charge_table(payer.map(|payer| payer.uid), bytes);
        block.locks = Some(LockTable::planned(charge, bytes));
        self.make_locks(id);
        // Whoever writes it for others needs a name to lock its pages by.
        for daemon in self.daemons.up_in_turn().collect::<Vec<_>>() {
            self.unseated(daemon, None);
        }
    }

    /// Nobody uses the table that was lent to a block.
    pub(super) fn take_locks_back(&mut self, id: BlockId) {
        let locks = self.blocks.get_mut(id).and_then(|block| block.locks.take());
        self.relocks.remove(&id);
        self.remove_locks(id, locks);
    }

    /// Has a table have words for what a block grows to. `true` if the growth waits for that.
    pub(super) fn grow_locks(&mut self, id: BlockId, number: u64, bytes: u64) -> bool {
        let Some(Block { guid, is_locked, locks: Some(locks), .. }) = self.blocks.get_mut(id)
        else {
            return false;
        };
        // One that nobody uses is made anew.
        if locks.bytes >= bytes || !*is_locked {
            return false;
        }
        self.ledger.resize_table(&mut locks.charge, bytes);
        let (block, guid, request_id) = (id, *guid, RequestId(number));
        self.out.push(Action::GrowLocks { request_id, block, guid, bytes });
        true
    }

    /// A table has words for more bytes; or has not, and costs what it did.
    pub(super) fn set_locks(&mut self, id: BlockId, guid: Guid, bytes: u64, has_grown: bool) {
        let block = self.blocks.get_mut(id).filter(|block| block.guid == guid);
        let Some(locks) = block.and_then(|block| block.locks.as_mut()) else { return };
        // One that is made anew by now is made for all that its copies have.
        if has_grown && locks.state == LocksState::Made {
            locks.bytes = locks.bytes.max(bytes);
        }
        self.ledger.resize_table(&mut locks.charge, locks.bytes);
    }

    /// The table of a block was looked at.
    pub(super) fn locks_inspected(&mut self, id: BlockId, found: Option<FoundTable>) {
        // Somebody may wait for it whose answer was not sent.
        self.settled = true;
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(locks) = block.locks.as_mut() else { return };
        let is_it =
            |found: FoundTable| found.guid == Some(block.guid) && found.bytes >= block.committed;
        let is_made = locks.state == LocksState::Made;
        if !block.state.is_usable() || !is_made || found.is_some_and(is_it) {
            return;
        }
        self.lose_locks(id);
    }

    /// The table of a block has to be made anew, under the next epoch.
    fn lose_locks(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let (first, state) = (block.span, block.state);
        let bytes = block.copies.named().map(|copy| copy.charge.bytes()).max().unwrap_or(0);
        let Some(locks) = block.locks.as_mut() else { return };
        locks.state = LocksState::Missing;
        locks.bytes = bytes.max(block.committed);
        self.ledger.resize_table(&mut locks.charge, locks.bytes);
        self.log(LogLevel::Error, format!("the lock table of block {id} is gone"));
        self.revoke_block(first, id);
        // Otherwise the headers are being written already.
        if state == BlockState::Held {
            self.blocks.set_state(id, BlockState::Losing);
            self.raise(id);
        }
    }

    /// What the table of a block says is of bytes that are not the block's any more.
    pub(super) fn renew_locks(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(locks) = block.locks.as_mut() else { return };
        (locks.state, locks.bytes) = (LocksState::Missing, block.committed);
        self.ledger.resize_table(&mut locks.charge, block.committed);
    }

    /// The headers of a block that is LOSING say the next epoch: its table is made anew, if it has
    /// to be, as soon as nobody can use the old one. `false` if it is there.
    pub(super) fn await_locks(&mut self, id: BlockId) -> bool {
        let Some(block) = self.blocks.get_mut(id) else { return false };
        let (first, epoch, committed) = (block.span, block.epoch, block.committed);
        let is_locked = block.is_locked;
        let unsound = block.locks.as_mut().filter(|locks| is_locked && !locks.covers(committed));
        let Some(locks) = unsound else { return false };
        // One that is being made is of an epoch that is over.
        locks.state = LocksState::Missing;
        let mut sessions = self.holders(first);
        // Any daemon may write the block for a client.
        sessions.extend(self.seats.ids());
        self.idles.extend(sessions.iter().map(|session| (*session, id, epoch)));
        self.relocks.insert(id, sessions);
        self.relock_if_idle(id);
        true
    }

    /// A session was seen without an operation that began before it was told.
    pub(super) fn idle(&mut self, session: SessionId, id: BlockId, epoch: u64) {
        if self.blocks.get(id).is_some_and(|block| block.epoch == epoch) {
            self.is_over_at(session, id);
            self.syncs_without(session, id);
        }
    }

    /// A session that has ended locks no more pages.
    pub(super) fn locks_nothing(&mut self, session: SessionId) {
        self.idles.retain(|(of, _, _)| *of != session);
        let waits = self.relocks.iter().filter(|(_, left)| left.contains(&session));
        let waits: Vec<BlockId> = waits.map(|(id, _)| *id).collect();
        for id in waits {
            self.is_over_at(session, id);
        }
        self.all_sync_without(session);
    }

    fn is_over_at(&mut self, session: SessionId, id: BlockId) {
        let left = self.relocks.get_mut(&id);
        if left.is_some_and(|left| left.remove(&session)) {
            self.relock_if_idle(id);
        }
    }

    /// Whether a table is to be made anew, and no session uses the old one any more.
    pub(super) fn is_without_locks(&self, id: BlockId) -> bool {
        let locks = self.blocks.get(id).and_then(|block| block.locks.as_ref());
        let is_missing = locks.is_some_and(|locks| locks.state == LocksState::Missing);
        is_missing && self.relocks.get(&id).is_some_and(BTreeSet::is_empty)
    }

    /// Makes a table anew for which nobody is waited any more. What the dead were writing is made
    /// equal first: nobody else may have those pages before.
    pub(super) fn relock_if_idle(&mut self, id: BlockId) {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        if !self.is_without_locks(id) {
            return;
        }
        if self.wrecks.may_hold(id, first) {
            self.wrecks.stir(Some(id));
        } else {
            self.make_locks(id);
        }
    }

    /// Nothing of a dead session is left to be waited for, at some block: lock tables are made
    /// anew, and copies go on that are being made.
    pub(super) fn relock_all(&mut self) {
        let ids: Vec<BlockId> = self.relocks.keys().copied().collect();
        for id in ids {
            self.relock_if_idle(id);
        }
        self.sync_all();
    }

    /// The table of a block that was reported: the one that was found, if it is that block's.
    pub(super) fn adopt_locks(
        &mut self,
        id: BlockId,
        guid: Guid,
        (payer, bytes): (Option<Payer>, u64),
        bytes_max: u64,
    ) -> LockTable {
        let found = self.restart.tables.remove(&id);
        let own = found.filter(|found| found.guid == Some(guid));
        let state = if own.is_some() { LocksState::Made } else { LocksState::Missing };
        // Its length is what a client says.
        let bytes = own.map_or(bytes, |own| own.bytes.min(bytes_max));
        let charge = self.ledger.charge_table(payer.map(|payer| payer.uid), bytes);
        LockTable { state, bytes, charge }
    }

    /// All have reported: a block that may be used has a table with words for all of its bytes.
    pub(super) fn judge_locks(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id).filter(|block| block.state.is_usable()) else {
            return;
        };
        if let Some(locks) = block.locks.as_mut() {
            // Words for more than its copies have may be there, and may not be committed.
            let most = block.copies.named().map(|copy| copy.charge.bytes()).max().unwrap_or(0);
            locks.bytes = locks.bytes.min(most.max(block.committed));
            self.ledger.resize_table(&mut locks.charge, locks.bytes);
        }
        if block.locks.as_ref().is_some_and(|locks| !locks.covers(block.committed)) {
            self.lose_locks(id);
        }
    }

    /// All have reported, or one more has: tables that were found and are of no block are removed.
    /// Those of blocks of which only a name is known stay until its daemon has said what it holds:
    /// nobody can say before whose they are.
    pub(super) fn remove_stray_tables(&mut self) {
        let (blocks, restart) = (&self.blocks, &self.restart);
        let has_none = |id| blocks.get(id).is_none_or(|block: &Block| block.locks.is_none());
        let is_stray = |id: &BlockId| has_none(*id) && !restart.is_named(*id);
        let strays: Vec<BlockId> = restart.tables.keys().copied().filter(is_stray).collect();
        for block in strays {
            self.restart.tables.remove(&block);
            self.out.push(Action::RemoveLocks { block });
        }
    }

    /// Nobody pays for the table of a block that was given up.
    pub(super) fn retire_locks(&mut self, id: BlockId) {
        let locks = self.blocks.get_mut(id).and_then(|block| block.locks.as_mut());
        if let Some(locks) = locks {
            self.ledger.retire_table(&mut locks.charge);
        }
    }

    /// A block is forgotten: its table goes.
    pub(super) fn remove_locks(&mut self, id: BlockId, locks: Option<LockTable>) {
        let found = self.restart.tables.remove(&id).is_some();
        let Some(mut locks) = locks else {
            if found {
                self.out.push(Action::RemoveLocks { block: id });
            }
            return;
        };
        self.ledger.retire_table(&mut locks.charge);
        if found || locks.state != LocksState::Planned {
            self.out.push(Action::RemoveLocks { block: id });
        }
    }

    /// The id of a block is not given again in this broker's life.
    pub(super) fn withhold_id(&mut self, id: BlockId, text: String) {
        self.log(LogLevel::Warn, text);
        if self.blocks.withhold(id) {
            self.restart.names.insert(id);
        }
    }

    /// Something has the name of a copy that was to be made.
    pub(super) fn withhold(&mut self, id: BlockId, daemon: DaemonId, refusal: &Refusal) {
        self.withhold_id(id, format!("daemon {daemon} cannot name block {id}: {}", refusal.text));
    }
}

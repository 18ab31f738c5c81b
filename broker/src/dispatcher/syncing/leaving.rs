//! Copies that go while their block stays: one that is given up while it was syncing, and one in
//! whose place another has come.
//!
//! # Invariants
//!
//! 1. An object stays as long as somebody may write it who was not told; one that was good, as long
//!    as somebody may read it, and as something of the dead is left that may be whole there alone.
//! 2. What was good and is needed after all, since the other copies are lost, is not destroyed: it
//!    is stale, since others were written without it.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId, SessionId};

use super::super::Dispatcher;
use super::super::action::LogLevel;
use super::super::blocks::{BlockState, News};
use super::super::copies::{Copy, CopyState};
use super::super::daemons::Server;
use super::{Stage, Sync};

impl Dispatcher {
    /// Those who may still use a block by what its headers said before: sessions that may write it,
    /// or all if it is about reading too; and daemons, which do it for any client, but for that
    /// whose own copy goes.
    pub(super) fn users_of(
        &self,
        first: BlockId,
        but: Option<DaemonId>,
        is_read: bool,
    ) -> BTreeSet<SessionId> {
        let mut sessions = if is_read { self.holders(first) } else { self.writers(first) };
        let is_own = |seat: &SessionId| but.is_some() && self.seats.daemon_of(*seat) == but;
        sessions.extend(self.seats.ids().filter(|seat| !is_own(seat)));
        sessions
    }

    /// What was seen of copies while their headers were written did not count.
    pub(super) fn inspect_named(&mut self, id: BlockId) {
        let named = self.blocks.get(id).map(|block| block.copies.daemons());
        for daemon in named.unwrap_or_default() {
            self.inspect(daemon, vec![id]);
        }
    }

    /// Whether headers are being written that name a copy no more which was good, and none of them
    /// is known to be written.
    pub(in crate::dispatcher) fn is_switching(&self, id: BlockId) -> bool {
        let sync = self.syncs.by_block.get(&id);
        let is_unnaming =
            sync.is_some_and(|sync| matches!(sync.stage, Stage::Unnaming { was_good: true }));
        is_unnaming && self.raises.contains_key(&id)
    }

    /// A copy is gone before its header could say that it is good in the place of another: if no
    /// other header says so, that other stays. `false` if it cannot be.
    pub(in crate::dispatcher) fn take_back(
        &mut self,
        id: BlockId,
        lost: DaemonId,
        why: &str,
    ) -> bool {
        if !self.is_switching(id) {
            return false;
        }
        let Some(old) = self.syncs.by_block.get(&id).map(|sync| sync.daemon) else { return false };
        let Some(block) = self.blocks.get_mut(id) else { return false };
        let epoch = block.epoch;
        let is_needed = |copy: &Copy| copy.epoch == epoch || copy.state == CopyState::Held;
        if block.copies.named().any(|copy| copy.daemon != lost && is_needed(copy)) {
            return false;
        }
        let Some([gone, back]) = block.copies.take_back(old, lost) else { return false };
        self.ledger.hand_over(&mut gone.charge, &mut back.charge);
        self.ledger.lose(&mut gone.charge);
        self.room_changed = true;
        block.news = News::None;
        self.end_of_sync(id);
        self.log(LogLevel::Warn, format!("block {id} stays on daemon {old}: {why}"));
        self.rest_from(id, lost);
        self.move_failed(id, why);
        self.raise(id);
        true
    }

    /// A copy that was good, and that no header is to name any more, goes when nobody uses it.
    pub(in crate::dispatcher) fn begin_leaving(&mut self, id: BlockId, daemon: DaemonId) {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        let stage = Stage::Unnaming { was_good: true };
        let (instead_of, was_plain) = (None, false);
        self.syncs.by_block.insert(id, Sync { daemon, instead_of, was_plain, fences: None, stage });
        self.syncs.set_waiting(id, true);
        self.revoke_block(first, id);
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
    }

    /// A copy that is being made because one was lacking is given up.
    pub(in crate::dispatcher) fn drop_lacking(&mut self, id: BlockId, why: &str) {
        let sync = self.syncs.by_block.get(&id).filter(|sync| sync.instead_of.is_none());
        if sync.is_some() && self.syncs.is_made(id) {
            self.drop_sync(id, why);
            self.forget_refusals(id);
        }
    }

    /// The broker before this one had a copy of another daemon take the place of that of `daemon`.
    pub(in crate::dispatcher) fn goes_since_before(&mut self, id: BlockId, daemon: DaemonId) {
        // The headers are written anew, and then it is known who is waited for.
        let stage = Stage::Leaving { was_good: true, left: BTreeSet::new() };
        let (instead_of, was_plain) = (None, false);
        self.syncs.by_block.insert(id, Sync { daemon, instead_of, was_plain, fences: None, stage });
        self.syncs.set_waiting(id, true);
    }

    /// Nobody uses a copy any more that goes.
    pub(super) fn goes(&mut self, id: BlockId, daemon: DaemonId) {
        let sync = self.end_of_sync(id);
        self.destroy(id, daemon);
        if sync.is_some_and(|sync| sync.stage.was_good()) {
            self.moved_from(id);
        }
    }

    /// What the dead have left cannot be repaired on a copy: if it is one that goes, it goes now.
    pub(in crate::dispatcher) fn goes_without(&mut self, id: BlockId, daemon: DaemonId) {
        let is_told = self.blocks.get(id).is_some_and(|block| block.state == BlockState::Held);
        if is_told && self.syncs.goes_good(id) == Some(daemon) {
            self.goes(id, daemon);
        }
    }

    /// A copy that is being made is given up.
    pub(in crate::dispatcher) fn drop_sync(&mut self, id: BlockId, why: &str) {
        let Some(Sync { daemon, stage, .. }) = self.syncs.by_block.get_mut(&id) else { return };
        // What was good goes when its headers say so, and nobody uses it any more; not before.
        if stage.was_good() || matches!(stage, Stage::Unlocking | Stage::Unlocked(_)) {
            return;
        }
        let daemon = *daemon;
        let hears = self.daemons.servers.get(&daemon).is_some_and(Server::hears);
        let is_written = matches!(stage, Stage::Naming | Stage::Telling(_) | Stage::Copying(_));
        match stage {
            Stage::Making => {
                // Its daemon answers first, so that the destroy finds what was made.
                self.end_of_sync(id);
                self.blocks.set_copy(id, daemon, CopyState::Dying);
            }
            Stage::Naming | Stage::Telling(_) | Stage::Copying(_) if hears => {
                *stage = Stage::Unnaming { was_good: false };
                self.syncs.set_waiting(id, true);
                self.blocks.set_copy(id, daemon, CopyState::Leaving);
            }
            // Some may wait for its daemon to come back, and the others have nobody to write to.
            _ if !hears => {
                self.end_of_sync(id);
                self.destroy(id, daemon);
            }
            _ => return,
        }
        if let Some(block) = self.blocks.get_mut(id) {
            block.is_moving = false;
        }
        let text = format!("the new copy of block {id} on daemon {daemon} is given up: {why}");
        self.log(LogLevel::Warn, text);
        self.rest_from(id, daemon);
        self.move_failed(id, why);
        if is_written {
            self.blocks.set_state(id, BlockState::Losing);
            self.raise(id);
        }
    }

    /// A daemon does not answer, or is away: what it was making is given up.
    pub(in crate::dispatcher) fn drop_syncs_of(&mut self, daemon: DaemonId) {
        // What is wished and cannot be is answered.
        self.moves.is_due = true;
        for id in self.syncs_on(daemon) {
            self.drop_sync(id, "its daemon does not answer");
        }
    }

    /// A daemon is to have nothing any more: what is made there goes elsewhere.
    pub(in crate::dispatcher) fn drop_copies_onto(&mut self, daemon: DaemonId) {
        for id in self.syncs_on(daemon) {
            if self.syncs.is_made(id) {
                self.drop_sync(id, "its daemon is drained");
            }
        }
    }

    fn syncs_on(&self, daemon: DaemonId) -> Vec<BlockId> {
        let all = self.syncs.by_block.iter().filter(|(_, sync)| sync.daemon == daemon);
        all.map(|(id, _)| *id).collect()
    }

    /// A block is lost, or was given up: no copy of it is made any more.
    pub(in crate::dispatcher) fn forget_sync(&mut self, id: BlockId, why: &str) {
        self.end_wish(id, why);
        let Some(Sync { daemon, stage, .. }) = self.end_of_sync(id) else { return };
        let is_lost = self.blocks.get(id).is_some_and(|block| block.state == BlockState::Lost);
        match stage {
            Stage::Unlocking | Stage::Unlocked(_) => {}
            Stage::Making => self.blocks.set_copy(id, daemon, CopyState::Dying),
            stage if stage.was_good() && is_lost => {
                self.blocks.set_copy(id, daemon, CopyState::Stale);
            }
            _ => self.destroy(id, daemon),
        }
        if let Some(block) = self.blocks.get_mut(id) {
            block.is_moving = false;
        }
    }
}

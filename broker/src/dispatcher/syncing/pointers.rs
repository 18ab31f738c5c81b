//! Pointers into a block whose primary is about to be another: what they store is on the primary
//! alone, so there must be none when it changes.
//!
//! ```text
//!        all is copied, and nobody      all headers say the next     each was told, is idle,
//!        says that he has one           epoch, and all are told      was looked at, has none
//!  GIVEN ----------------------> RAISING ------------------> WITHHELD ---------------------> (end)
//!    ^                                                           |
//!    +--- somebody has one after all, or does not come to rest --+
//!         all are told that they may have some again
//! ```
//!
//! # Invariants
//!
//! 1. The primary changes when nobody has a pointer into the block: each session that may use it
//!    was told that none is given, was seen without an operation that began before, and had none
//!    recorded then. What pointers of the dead have stored was carried.
//! 2. Nothing but pointers waits for that, and these for [`WITHHELD_MS`] at a time at most.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, SessionId};

use super::super::Dispatcher;
use super::super::action::Action;
use super::super::blocks::{Block, BlockState};
use super::super::event::Millis;
use super::Stage;

/// How long no pointers are given before others have their turn.
const WITHHELD_MS: u64 = 200;
/// How long until it is tried again: at first, and at most.
const AGAIN_MS: u64 = 20;
const AGAIN_MS_MAX: u64 = 2_000;

/// What is known of the pointers into a block.
#[derive(Debug, Default)]
pub(super) struct Pointers {
    state: State,
    /// Who had one, or did not come to rest, when it was looked last.
    pub held_by: BTreeSet<SessionId>,
    /// Until when they are given, and how long that was.
    rests: Option<Millis>,
    pause_ms: u64,
}

/// Whether they are given.
#[derive(Debug, Default)]
enum State {
    #[default]
    Given,
    Raising,
    /// Not before then are they given again. Until then these are waited for: those that may still
    /// give one, and those whose pointers are looked at.
    Withheld {
        until: Millis,
        told: BTreeSet<SessionId>,
        looked_at: BTreeSet<SessionId>,
    },
}

impl Dispatcher {
    /// Whether a copy is made in the place of the primary.
    fn takes_primary(&self, id: BlockId) -> bool {
        let primary = self.blocks.get(id).and_then(Block::primary);
        let sync = self.syncs.by_block.get(&id);
        primary.is_some() && sync.and_then(|sync| sync.instead_of) == primary
    }

    /// Whether a copy that has all bytes may take the place that it is made for: at once, unless
    /// that is the primary's.
    pub(super) fn are_pointers_gone(&mut self, id: BlockId) -> bool {
        if !self.takes_primary(id) {
            return true;
        }
        let now = self.now.millis;
        let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) else { return false };
        match &copying.pointers.state {
            State::Withheld { told, looked_at, .. } => told.is_empty() && looked_at.is_empty(),
            State::Given if copying.pointers.rests.is_none_or(|until| until <= now) => {
                self.withhold_pointers(id);
                false
            }
            State::Given | State::Raising => false,
        }
    }

    /// The sessions that say that they have pointers into a block.
    pub(in crate::dispatcher) fn pointing_into(&self, id: BlockId) -> BTreeSet<SessionId> {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else {
            return BTreeSet::new();
        };
        let (start, addrs) = (self.address(first), self.addresses(id));
        let mut holders = self.holders(first);
        holders.retain(|session| {
            let session = self.sessions.get(*session);
            session.is_some_and(|session| session.mappings.reach(start, &addrs))
        });
        holders
    }

    fn withhold_pointers(&mut self, id: BlockId) {
        let addrs = self.addresses(id);
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        // What they say decides nothing but whether it is worth while to ask them.
        let holders = self.pointing_into(id);
        if !holders.is_empty() || self.wrecks.may_point_into(first, &addrs) {
            return self.give_pointers(id, holders);
        }
        if let Some(block) = self.blocks.get_mut(id) {
            block.is_moving = true;
        }
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) {
            copying.pointers.state = State::Raising;
        }
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
    }

    /// All headers say the epoch since which none is given.
    pub(super) fn await_pointers(&mut self, id: BlockId) {
        let Some((first, epoch)) = self.blocks.get(id).map(|block| (block.span, block.epoch))
        else {
            return;
        };
        let (told, until) = (self.holders(first), self.now.millis.after(WITHHELD_MS));
        let is_wanted = self.takes_primary(id);
        let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) else { return };
        if matches!(copying.pointers.state, State::Given) {
            return;
        }
        if !is_wanted {
            // That copy is lost, or another is the primary: pointers do not matter any more.
            return self.give_pointers(id, BTreeSet::new());
        }
        self.idles.extend(told.iter().map(|session| (*session, id, epoch)));
        let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) else { return };
        copying.pointers.state = State::Withheld { until, told, looked_at: BTreeSet::new() };
        self.sync_at(until, id);
    }

    /// A session is in no operation any more that began before it was told: its pointers are
    /// looked at.
    pub(super) fn gives_no_pointers(&mut self, session: SessionId, id: BlockId) {
        let addrs = self.addresses(id);
        let Some(epoch) = self.blocks.get(id).map(|block| block.epoch) else { return };
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id)
            && let State::Withheld { told, looked_at, .. } = &mut copying.pointers.state
            && told.remove(&session)
        {
            looked_at.insert(session);
            self.out.push(Action::FindPointers { session, block: id, epoch, addrs });
        }
    }

    /// The pointers of a session were looked at.
    pub(in crate::dispatcher) fn pointers_found(
        &mut self,
        session: SessionId,
        (id, epoch): (BlockId, u64),
        has_some: bool,
    ) {
        if self.blocks.get(id).is_none_or(|block| block.epoch != epoch) {
            return;
        }
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id)
            && let State::Withheld { looked_at, .. } = &mut copying.pointers.state
            && looked_at.remove(&session)
        {
            if has_some {
                self.give_pointers(id, BTreeSet::from([session]));
            }
            self.sync_on(id);
        }
    }

    /// A session has ended: what its pointers stored is a wreck's.
    pub(super) fn has_no_pointers(&mut self, session: SessionId, id: BlockId) {
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) {
            copying.pointers.held_by.remove(&session);
            if let State::Withheld { told, looked_at, .. } = &mut copying.pointers.state
                && (told.remove(&session) | looked_at.remove(&session))
            {
                // Its wreck was not there when it was looked last.
                self.give_pointers(id, BTreeSet::new());
            }
        }
    }

    /// Those who keep a primary from changing have taken longer than others wait for a pointer.
    pub(super) fn look_at_pointers(&mut self, id: BlockId) {
        let now = self.now.millis;
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id)
            && let State::Withheld { until, told, looked_at } = &mut copying.pointers.state
            && *until <= now
        {
            let mut holders = std::mem::take(told);
            holders.append(looked_at);
            self.give_pointers(id, holders);
        }
    }

    /// The primary does not change yet: these hold it back. It is tried again in a while.
    fn give_pointers(&mut self, id: BlockId, held_by: BTreeSet<SessionId>) {
        let now = self.now.millis;
        let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) else { return };
        let pointers = &mut copying.pointers;
        pointers.pause_ms = (2 * pointers.pause_ms).clamp(AGAIN_MS, AGAIN_MS_MAX);
        let until = now.after(pointers.pause_ms);
        (pointers.rests, pointers.held_by) = (Some(until), held_by);
        pointers.state = State::Given;
        self.syncs.set_waiting(id, true);
        self.sync_at(until, id);
        let Some(block) = self.blocks.get_mut(id) else { return };
        // While headers are written nobody is granted anything of it, and then all are told.
        let is_told = std::mem::take(&mut block.is_moving) && block.state == BlockState::Held;
        let first = block.span;
        if is_told {
            self.tell_holders(first, id);
        }
    }
}

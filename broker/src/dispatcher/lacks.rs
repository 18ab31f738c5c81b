//! Blocks that lack a copy: which are to get one, and where.
//!
//! # Invariants
//!
//! 1. No more copies are made at once than the configuration says, and of the blocks that lack one
//!    some are looked at in a step.
//! 2. A daemon that has refused a copy of a block, or has had one that was given up, is not asked
//!    for another one for a while, which grows.
//! 3. What a daemon has of a block that is no copy any more stays as long as the block lacks one,
//!    and makes room for that only where no other daemon that is known could have it.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, Half};

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::{Block, BlockState};
use super::charge::Charge;
use super::copies::{Copy, CopyState};
use super::daemons::Server;
use super::event::Millis;
use super::placement::Need;

/// How long a daemon is not asked again that has refused: at first, and at most.
const REFUSED_MS: u64 = 1_000;
const REFUSED_MS_MAX: u64 = 60_000;
/// Blocks that are looked at in a step for whether a copy can be made.
const LOOKS: usize = 64;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Lacks {
    /// Whether some block may get a copy that could not a moment ago.
    pub is_due: bool,
    /// Where the blocks are looked at from.
    from: Option<BlockId>,
    /// Daemons that have refused a copy of a block, as long as that lacks one.
    refused: BTreeMap<BlockId, BTreeMap<DaemonId, Refused>>,
}

/// A copy that was refused.
#[derive(Debug)]
struct Refused {
    /// Until when it is not asked for.
    until: Millis,
    /// How long that was.
    pause_ms: u64,
}

impl Lacks {
    /// Daemons that are not asked for a copy of a block now.
    pub(super) fn refusers_of(&self, id: BlockId, now: Millis) -> impl Iterator<Item = DaemonId> {
        let refused = self.refused.get(&id).into_iter().flatten();
        refused.filter(move |(_, refused)| refused.until > now).map(|(daemon, _)| *daemon)
    }
}

impl Dispatcher {
    /// Has copies made of blocks that lack some, as far as there is a place for them.
    pub(super) fn make_copies(&mut self) {
        if !std::mem::take(&mut self.syncs.lacks.is_due) || !self.tables_complete() {
            return;
        }
        let first = self.syncs.lacks.from.take();
        if first.is_none() {
            self.forget_refused();
        }
        let lacking: Vec<BlockId> = self.blocks.degraded_from(first).take(LOOKS).collect();
        let is_all = lacking.len() < LOOKS;
        for id in lacking {
            if self.syncs.going() >= self.config.syncs_max {
                // When one of them ends, or waits.
                return;
            }
            self.make_copy(id);
            self.syncs.lacks.from = id.checked_add(1).ok();
        }
        if is_all {
            self.syncs.lacks.from = None;
        } else {
            self.sync_later();
        }
    }

    /// Daemons may be asked again that have refused a copy which was made elsewhere; and for one
    /// that was to move, if that was long ago.
    fn forget_refused(&mut self) {
        let (blocks, now) = (&self.blocks, self.now.millis);
        self.syncs.lacks.refused.retain(|id, refused| {
            let is_degraded = blocks.is_degraded(*id, 1);
            let counts = |of: &Refused| is_degraded || now < of.until.after(REFUSED_MS_MAX);
            refused.retain(|_, of| counts(of));
            !refused.is_empty()
        });
    }

    /// Blocks that lack a copy, or have one that is to be elsewhere, may have a place for it.
    pub(super) fn look_for_places(&mut self) {
        let lacks = self.config.syncs_max > 0 && self.blocks.has_degraded();
        if lacks || !self.moves.draining.is_empty() || self.blocks.with_surplus().next().is_some() {
            self.sync_later();
        }
    }

    /// A daemon has not made a copy, or has not come to have all of it.
    pub(super) fn rest_from(&mut self, id: BlockId, daemon: DaemonId) {
        let refused = self.syncs.lacks.refused.entry(id).or_default();
        let before = refused.get(&daemon).map(|before| before.pause_ms);
        let pause_ms = before.map_or(REFUSED_MS, |ms| (2 * ms).min(REFUSED_MS_MAX));
        let until = self.now.millis.after(pause_ms);
        refused.insert(daemon, Refused { until, pause_ms });
        self.sync_at(until, id);
    }

    /// Whether nothing is decided or done about the copies of a block just now.
    pub(super) fn is_quiet(&self, id: BlockId) -> bool {
        if self.syncs.has(id) || self.growths.values().any(|growth| growth.is_of(id)) {
            return false;
        }
        let block = self.blocks.get(id).filter(|block| block.state == BlockState::Held);
        block.is_some_and(|block| self.stands(block.span))
    }

    /// Whether another copy of a block can be begun now.
    pub(super) fn may_get_copy(&self, id: BlockId) -> bool {
        let locks = self.blocks.get(id).map(|block| (block.locks.as_ref(), block.committed));
        let covers = locks.is_some_and(|(locks, bytes)| locks.is_some_and(|of| of.covers(bytes)));
        covers && self.is_quiet(id)
    }

    fn make_copy(&mut self, id: BlockId) {
        if self.waits_for_first(id) {
            return;
        }
        let Some(block) = self.blocks.get(id).filter(|_| self.may_get_copy(id)) else {
            return self.lend_if_none(id);
        };
        let (first, bytes_max, bytes) = (block.span, block.bytes_max, block.copies.committed());
        let mut refused: BTreeSet<DaemonId> = block.copies.iter().map(|copy| copy.daemon).collect();
        let half = lacking_half(block);
        let Some(payer) = self.payer_of_span(first) else { return };
        let placement = self.config.placement;
        refused.extend(self.syncs.lacks.refusers_of(id, self.now.millis));
        // Where the block can grow as far as it could, if there is such a daemon.
        let known = self.daemons.servers.keys().copied();
        let is_small = |daemon: &DaemonId| self.bytes_max(*daemon) < bytes_max;
        let narrow: BTreeSet<DaemonId> =
            refused.iter().copied().chain(known.filter(is_small)).collect();
        let need = |refused| Need { bytes, account: payer.account, refused, placement };
        let place = self.place(&need(&narrow)).or_else(|| self.place(&need(&refused)));
        let Some(daemon) = place else { return self.clear_place(id, bytes) };
        let Ok(charge) = self.ledger.charge(payer, daemon, bytes) else { return };
        self.daemons.placed(daemon);
        self.add_copy(id, ((daemon, half), charge), None);
    }

    /// Nobody refused a copy of a block: it was not asked for any more.
    pub(super) fn forget_refusals(&mut self, id: BlockId) {
        self.syncs.lacks.refused.remove(&id);
    }

    /// A block cannot get a copy just now, wherever that would be.
    pub(super) fn no_copy_for_now(&mut self, id: BlockId) {
        self.sync_at(self.now.millis.after(REFUSED_MS), id);
    }

    /// Begins a copy of a block; in the place of one that goes then, if that is said.
    pub(super) fn add_copy(
        &mut self,
        id: BlockId,
        (of, charge): ((DaemonId, Half), Charge),
        instead_of: Option<DaemonId>,
    ) {
        if let Some(block) = self.blocks.get_mut(id) {
            // Epochs only grow: who knows this one, or an earlier one, knows another object there.
            let (named, since) = (false, block.epoch + 1);
            block.copies.put(usize::MAX, Copy { since, named, ..Copy::planned(of, charge) });
        }
        self.begin_sync(id, of.0, instead_of);
    }

    /// What daemons have of a block beside its copies goes, if none of those is lacking: nothing
    /// could ever be made of it.
    pub(super) fn clear_old(&mut self, id: BlockId) {
        let is_whole = self.config.syncs_max > 0 && !self.blocks.is_degraded(id, 1);
        let Some(block) = self.blocks.get(id).filter(|block| block.state == BlockState::Held)
        else {
            return;
        };
        if !is_whole || !self.stands(block.span) || !self.tables_complete() {
            return;
        }
        let old = block.copies.iter().filter(|copy| is_old(copy)).map(|copy| copy.daemon);
        for daemon in old.collect::<Vec<_>>() {
            if self.daemons.servers.get(&daemon).is_some_and(Server::hears) {
                self.log(LogLevel::Info, format!("what daemon {daemon} had of block {id} goes"));
                self.destroy(id, daemon);
            }
        }
    }

    /// The same of all blocks of a daemon that has reported.
    pub(super) fn clear_old_of(&mut self, daemon: DaemonId) {
        let Some(server) = self.daemons.servers.get(&daemon) else { return };
        let has_old = |id: &BlockId| {
            let copy = self.blocks.get(*id).and_then(|block| block.copies.of(daemon));
            copy.is_some_and(is_old)
        };
        for id in server.blocks.iter().copied().filter(has_old).collect::<Vec<_>>() {
            self.clear_old(id);
        }
    }

    /// No daemon has room but some that have what was a copy once: one of those goes, so that there
    /// is a place. Not where another one may have room soon.
    fn clear_place(&mut self, id: BlockId, bytes: u64) {
        let Some(block) = self.blocks.get(id) else { return };
        let has_room = |daemon: DaemonId, more: u64| {
            self.ledger.store(daemon).free().saturating_add(more) >= bytes
        };
        let servers = self.daemons.servers.iter().filter(|(_, server)| !server.is_draining);
        let mut others = servers.map(|(id, _)| id).filter(|id| block.copies.of(**id).is_none());
        // One that is on its way to nothing makes room already.
        let makes_room = block.copies.iter().any(|copy| copy.state == CopyState::Dying);
        if makes_room || others.any(|daemon| has_room(*daemon, 0)) {
            return;
        }
        let is_up = |daemon| self.daemons.servers.get(&daemon).is_some_and(Server::is_up);
        let is_enough = |copy: &&Copy| has_room(copy.daemon, copy.charge.bytes());
        let old = block.copies.iter().filter(|copy| is_old(copy)).filter(is_enough);
        let daemon = old.map(|copy| copy.daemon).find(|daemon| is_up(*daemon));
        if let Some(daemon) = daemon {
            let text = format!("what daemon {daemon} had of block {id} makes room for a new copy");
            self.log(LogLevel::Info, text);
            self.destroy(id, daemon);
        }
    }
}

/// Whether a copy is none any more.
fn is_old(copy: &Copy) -> bool {
    !copy.named && matches!(copy.state, CopyState::Lost | CopyState::Stale)
}

/// The first half that none of those is that the headers name.
fn lacking_half(block: &Block) -> Half {
    let mut all = (0..).map_while(Half::of);
    let lacks = |half: &Half| block.copies.named().all(|copy| copy.half != *half);
    all.find(lacks).unwrap_or(Half::MIRROR)
}

//! Blocks that move by themselves, from a daemon that has much to one that has little
//! (docs/adr/0012).
//!
//! ```text
//!        in each of the last notes, and now, two daemons have had parts of
//!        their capacity taken that differ by more than the threshold
//!  EVEN --------------------------------------------------------------------> UNEVEN
//!    ^                                                                           |  one by one,
//!    +---------------------------------------------------------------------------+  blocks move
//!        no two differ by more than half of that, or nothing can move
//! ```
//!
//! # Invariants
//!
//! 1. A block moves only where the daemon that gives it has no smaller part taken afterwards than
//!    the one that gets it: so none goes to and fro.
//! 2. What is short-lived moves nothing: of what the usage history [0068] tells, that counts which
//!    makes the difference smallest.
//! 3. Of blocks that could move that does which the fewest sessions use, and of these the largest;
//!    none into which a pointer holds it back.
//! 4. What a decision costs grows with the daemons, and not with the blocks. One that could not
//!    move is not looked at again for a while, unless its copies change.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::limits::REBALANCE_NOTES;

use super::super::Dispatcher;
use super::super::action::LogLevel;
use super::super::charge::Store;
use super::super::daemons::Server;
use super::super::event::Millis;
use super::super::placement::Load;
use super::Wish;

/// Blocks that are looked at for one that moves.
const LOOKS: usize = 32;
/// How long one that could not move is not looked at again.
const ASIDE_MS: u64 = 60_000;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// Whether blocks move until all have about as much.
    is_on: bool,
    /// Blocks that could not move, and until when they are not looked at.
    aside: BTreeMap<BlockId, Millis>,
    by_time: BTreeSet<(Millis, BlockId)>,
    /// Blocks that were looked at in all.
    #[cfg(test)]
    pub looked_at: usize,
}

/// A daemon that could give, or get.
#[derive(Clone, Copy, Debug)]
struct Side {
    daemon: DaemonId,
    load: Load,
}

impl Dispatcher {
    /// Begins what makes the daemons more even, as far as there is a place for it beside copies
    /// that are lacking.
    pub(super) fn rebalance(&mut self) {
        if self.config.rebalance_percent == 0 {
            return;
        }
        self.take_back_aside();
        let spare = usize::from(self.config.syncs_max > 1);
        while self.has_place_beside(self.waiting_wishes() + spare) {
            let Some((id, from, to)) = self.next_to_even() else { return };
            self.moves.wishes.insert(id, Wish::plain(from, to));
            self.begin_move(id);
        }
    }

    /// What the daemons have is to be looked at: it is noted, or has become less.
    pub(in crate::dispatcher) const fn rebalance_soon(&mut self) {
        self.moves.is_due |= self.config.rebalance_percent > 0;
    }

    /// A block that moves next, from where, and to where.
    fn next_to_even(&mut self) -> Option<(BlockId, DaemonId, DaemonId)> {
        let percent = u64::from(self.config.rebalance_percent);
        let least = if self.moves.balance.is_on { percent.div_ceil(2) } else { percent };
        let daemons: Vec<DaemonId> = self.daemons.up_in_turn().collect();
        let mut full: Vec<Side> = daemons.iter().filter_map(|id| self.as_giver(*id)).collect();
        let mut empty: Vec<Side> = daemons.iter().filter_map(|id| self.as_getter(*id)).collect();
        full.sort_by_key(|side| Reverse(side.load));
        empty.sort_by_key(|side| side.load);
        let pairs = full.iter().flat_map(|from| empty.iter().map(move |to| (from, to)));
        let apart = pairs.filter(|(from, to)| from.load.used.is_above(to.load.used, least));
        let apart: Vec<(Side, Side)> = apart.map(|(from, to)| (*from, *to)).collect();
        let next = apart.iter().find_map(|(from, to)| {
            // What goes from there makes place already.
            if self.is_destroying(from.daemon) {
                return None;
            }
            Some((self.find_to_move(*from, *to)?, from.daemon, to.daemon))
        });
        let is_on = next.is_some() || (self.moves.balance.is_on && !apart.is_empty());
        if is_on != std::mem::replace(&mut self.moves.balance.is_on, is_on) {
            let what = if is_on { "blocks move between daemons to" } else { "all daemons" };
            self.log(LogLevel::Info, format!("{what} have about as much of their capacity taken"));
        }
        next
    }

    /// How full a daemon has been at least, but for what moves away.
    fn as_giver(&self, daemon: DaemonId) -> Option<Side> {
        let mut load = self.load(daemon);
        load.used = load
            .used
            .least(self.noted(daemon)?)
            .without(self.bytes_wished(|wish| wish.from == daemon));
        Some(Side { daemon, load })
    }

    /// How full a daemon has been at most, with what is to move there.
    fn as_getter(&self, daemon: DaemonId) -> Option<Side> {
        let mut load = self.load(daemon);
        load.used = load
            .used
            .most(self.noted(daemon)?)
            .with(self.bytes_wished(|wish| wish.to == daemon && !wish.is_begun));
        Some(Side { daemon, load })
    }

    /// What a daemon held in the last notes.
    fn noted(&self, daemon: DaemonId) -> Option<impl Iterator<Item = Store>> {
        self.history.taken_of(daemon, usize::try_from(REBALANCE_NOTES).ok()?)
    }

    fn is_destroying(&self, daemon: DaemonId) -> bool {
        self.daemons.servers.get(&daemon).is_some_and(Server::is_destroying)
    }

    fn bytes_wished(&self, is_one: impl Fn(&Wish) -> bool) -> u64 {
        let wishes = self.moves.wishes.iter().filter(|(_, wish)| is_one(wish));
        wishes.filter_map(|(id, _)| Some(self.blocks.get(*id)?.copies.committed())).sum()
    }

    /// The best block to move from one daemon to another. Those that cannot move now are set aside.
    fn find_to_move(&mut self, from: Side, to: Side) -> Option<BlockId> {
        let room = self.ledger.store(to.daemon).free();
        let bytes = from.load.used.surplus_over(to.load.used).min(room);
        let some = self.blocks.homes.between(from.daemon, to.daemon, bytes, LOOKS);
        #[cfg(test)]
        {
            self.moves.balance.looked_at += some.len();
        }
        let (free, held): (Vec<BlockId>, Vec<BlockId>) =
            some.into_iter().partition(|id| self.may_move(*id, from.daemon, to.daemon));
        if free.is_empty() && held.len() == LOOKS {
            // Others may be behind them.
            self.sync_later();
        }
        for id in held {
            self.look_later(id);
        }
        // The largest come first, and of equals that is found which is first.
        free.into_iter().min_by_key(|id| self.users(*id))
    }

    fn may_move(&self, id: BlockId, from: DaemonId, to: DaemonId) -> bool {
        let Some(block) = self.blocks.get(id).filter(|_| self.is_quiet(id)) else { return false };
        let is_held = block.primary() == Some(from) && !self.pointing_into(id).is_empty();
        let is_refused = self.syncs.lacks.refusers_of(id, self.now.millis).any(|of| of == to);
        let is_wished = self.moves.wishes.contains_key(&id);
        !is_held && !is_refused && !is_wished && self.obstacle_to(block, to, false).is_none()
    }

    /// How many sessions use a block.
    fn users(&self, id: BlockId) -> usize {
        self.blocks.get(id).map_or(0, |block| self.holders(block.span).len())
    }

    fn look_later(&mut self, id: BlockId) {
        let until = self.now.millis.after(ASIDE_MS);
        self.blocks.homes.remove(id);
        if let Some(before) = self.moves.balance.aside.insert(id, until) {
            self.moves.balance.by_time.remove(&(before, id));
        }
        self.moves.balance.by_time.insert((until, id));
    }

    fn take_back_aside(&mut self) {
        while let Some(&(until, id)) = self.moves.balance.by_time.first()
            && until <= self.now.millis
        {
            self.moves.balance.by_time.pop_first();
            self.moves.balance.aside.remove(&id);
            self.blocks.recount(id);
        }
    }

    /// How many blocks were looked at.
    #[cfg(test)]
    pub(in crate::dispatcher) const fn looked_at(&self) -> usize {
        self.moves.balance.looked_at
    }

    /// Whether a block is known where those are looked for that could move, or set aside.
    pub(in crate::dispatcher) fn audit_homes(&self) -> Result<(), String> {
        for (id, block) in self.blocks.all() {
            let mut daemons = block.copies.daemons();
            daemons.sort_unstable();
            let is_whole = daemons.len() == self.copies_asked(id) as usize;
            let is_one = block.state == super::BlockState::Held && is_whole;
            let home = self.blocks.homes.home(id);
            let is_known = match &home {
                Some(home) => is_one && *home == (daemons, block.committed),
                None => !is_one || self.moves.balance.aside.contains_key(&id),
            };
            if !is_known {
                return Err(format!("block {id} is looked for at {home:?}"));
            }
        }
        Ok(())
    }
}

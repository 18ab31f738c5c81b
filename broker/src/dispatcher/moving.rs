//! Copies that are to move: who wishes it, and what becomes of that.
//!
//! ```text
//!          a copy is made in its place      it is good, and nobody uses the other any more
//!  WISHED -----------------------------> BEGUN -------------------------------> (answered)
//!    |                                     |
//!    +-------------------------------------+---> it cannot be, or nobody waits for it any more
//! ```
//!
//! # Invariants
//!
//! 1. Of a block one copy is to move at a time. It moves as a copy is made that is lacking
//!    (`syncing`), and takes a place among as many; those that are lacking come before it.
//! 2. Who wished it is answered once. When he is gone before, what was begun is given up, unless
//!    it is being told already.
//! 3. Nobody pays twice for a copy that moves.
//! 4. A daemon that is drained gets no new block but what is reserved there and nowhere else; that
//!    it is, is remembered as long as there is anything of the instance. Of its blocks some are
//!    looked at in a step.

mod balance;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::wire::admin::AdminReply;
use dmce_abi::wire::client::ClientReply;
use dmce_abi::wire::{Refusal, Reply};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState};
use super::clients::ReplyTo;
use super::copies::{Copy, CopyState};
use super::event::ClientConn;
use super::placement::Need;
use super::requests::{Outcome, Served, refuse};
use balance::Balance;

/// Blocks of a daemon that is drained, or with a lent lock table, that are looked at in a step.
const LOOKS: usize = 64;

/// A copy that is to move.
#[derive(Clone, Copy, Debug)]
struct Wish {
    from: DaemonId,
    to: DaemonId,
    /// Who waits for it; nobody, of one that moves by itself.
    asker: Option<ReplyTo>,
    /// Whether it may go where no room is: another goes from there then.
    is_beyond: bool,
    /// What moves when this has: block, from where, and to where.
    then: Option<(BlockId, DaemonId, DaemonId)>,
    is_begun: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Moves {
    wishes: BTreeMap<BlockId, Wish>,
    /// Blocks of one copy that have a lock table, which is taken back when nothing moves.
    lent: BTreeSet<BlockId>,
    /// Where these are looked at from.
    lent_from: Option<BlockId>,
    /// Daemons that are drained, be they known or not.
    pub draining: BTreeSet<DaemonId>,
    /// Where the blocks of a daemon that is drained are looked at from.
    drained_to: BTreeMap<DaemonId, BlockId>,
    /// What makes the daemons more even.
    balance: Balance,
    /// Whether one may be begun that could not be a moment ago.
    pub is_due: bool,
}

impl Wish {
    const fn plain(from: DaemonId, to: DaemonId) -> Self {
        Self { from, to, asker: None, is_beyond: false, then: None, is_begun: false }
    }
}

impl Moves {
    /// A block of one copy has a lock table.
    pub(super) fn lend(&mut self, id: BlockId) {
        self.lent.insert(id);
        self.is_due = true;
    }

    /// The lock table of a block is its own.
    pub(super) fn keep(&mut self, id: BlockId) {
        self.lent.remove(&id);
    }

    /// Whether a lock table is to be taken back some time.
    pub(super) fn is_lent(&self, id: BlockId) -> bool {
        self.lent.contains(&id)
    }

    /// Whether a copy of a block is to move.
    pub(super) fn is_wished(&self, id: BlockId) -> bool {
        self.wishes.contains_key(&id)
    }

    /// Who waits for an answer.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.wishes.values().filter_map(|wish| wish.asker)
    }
}

impl Dispatcher {
    /// Has a copy of a block move to a daemon: that of another, or the primary if that is 0.
    pub(super) fn migrate(&mut self, to: ReplyTo, (block, from, onto): (u32, u32, u32)) -> Served {
        self.check_mover(to)?;
        let (id, found) = self.find_block(block)?;
        let mut named = found.copies.daemons().into_iter();
        let Some(from) = named.find(|daemon| from == 0 || daemon.get() == from) else {
            let text = format!("daemon {from} has no copy of block {id}");
            return refuse(Status::NotFound, text);
        };
        let onto = self.find_daemon(onto)?;
        if let Some(why) = self.obstacle_to(found, onto, false) {
            let is_there = found.copies.named().any(|copy| copy.daemon == onto);
            return refuse(if is_there { Status::Exists } else { Status::NoSpace }, why);
        }
        self.wish(id, Wish { asker: Some(to), ..Wish::plain(from, onto) });
        Ok(Outcome::Later)
    }

    /// Has copies of two blocks change places, where there may be no room for either.
    pub(super) fn swap(&mut self, to: ReplyTo, one: u32, other: u32) -> Served {
        self.check_mover(to)?;
        let ((one, a), (other, b)) = (self.find_block(one)?, self.find_block(other)?);
        let [of_a, of_b] = [a, b].map(|block| block.copies.daemons());
        let mut pairs = of_a.iter().flat_map(|x| of_b.iter().map(move |y| (*x, *y)));
        let fits = |(x, y): &(DaemonId, DaemonId)| {
            let [onto_y, onto_x] =
                [(a, *y), (b, *x)].map(|(of, to)| self.obstacle_to(of, to, true));
            onto_y.is_none() && onto_x.is_none()
        };
        let Some((x, y)) = pairs.find(fits) else {
            let text = format!("no copies of blocks {one} and {other} can change places");
            return refuse(Status::Exists, text);
        };
        let wish = Wish { asker: Some(to), is_beyond: true, ..Wish::plain(x, y) };
        self.wish(one, Wish { then: Some((other, y, x)), ..wish });
        Ok(Outcome::Later)
    }

    /// Has all that a daemon has move to others, and gives it nothing new; or ends that.
    pub(super) fn drain(&mut self, to: ReplyTo, daemon: u32, is_draining: bool) -> Served {
        self.check_mover(to)?;
        let daemon = self.find_daemon(daemon)?;
        self.set_draining(daemon, is_draining);
        self.out.push(Action::RememberDrain { daemon, is_draining });
        let what = if is_draining { "is drained" } else { "is drained no more" };
        self.log(LogLevel::Info, format!("daemon {daemon} {what}"));
        Ok(ClientReply::Admin(AdminReply::Draining { is_draining }).into())
    }

    /// A daemon is drained, as an administrator said, to this broker or to the one before.
    pub(super) fn set_draining(&mut self, daemon: DaemonId, is_draining: bool) {
        if is_draining {
            self.moves.draining.insert(daemon);
        } else {
            self.moves.draining.remove(&daemon);
        }
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.is_draining = is_draining;
        }
        // It takes blocks again that wait for room.
        (self.moves.is_due, self.room_changed) = (true, true);
        if is_draining {
            self.drop_copies_onto(daemon);
            return self.move_reservations(daemon);
        }
        let of_it = |wish: &Wish| wish.from == daemon && wish.asker.is_none() && !wish.is_begun;
        self.moves.wishes.retain(|_, wish| !of_it(wish));
    }

    /// Whether who asks may have copies move, or be compared.
    pub(super) fn check_mover(&self, to: ReplyTo) -> Result<(), Refusal> {
        let client = self.clients.get(&to.conn);
        if client.is_some_and(|client| self.sees_all(&client.peer)) {
            return Ok(());
        }
        let text = "copies are moved, and compared, by root and by the user of the service";
        Err(Refusal::new(Status::Denied, text))
    }

    fn wish(&mut self, id: BlockId, wish: Wish) {
        self.moves.wishes.insert(id, wish);
        self.moves.is_due = true;
    }

    /// A block that may be moved.
    fn find_block(&self, block: u32) -> Result<(BlockId, &Block), Refusal> {
        let found = BlockId::try_from(block).ok().and_then(|id| Some((id, self.blocks.get(id)?)));
        let Some((id, found)) = found.filter(|(_, found)| self.stands(found.span)) else {
            return Err(Refusal::new(Status::NotFound, format!("there is no block {block}")));
        };
        if !found.is_usable() {
            return Err(Refusal::new(Status::Lost, format!("block {id} is lost")));
        }
        match self.moves.wishes.get(&id) {
            Some(Wish { from, to, .. }) => {
                let text = format!("block {id} is moved from daemon {from} to {to}");
                Err(Refusal::new(Status::Busy, text))
            }
            None => Ok((id, found)),
        }
    }

    fn find_daemon(&self, daemon: u32) -> Result<DaemonId, Refusal> {
        let known = DaemonId::try_from(daemon).ok();
        let known = known.filter(|daemon| self.daemons.servers.contains_key(daemon));
        known.ok_or_else(|| Refusal::new(Status::NotFound, format!("there is no daemon {daemon}")))
    }

    /// Why a block cannot get another copy there.
    fn obstacle_to(&self, block: &Block, onto: DaemonId, is_beyond: bool) -> Option<String> {
        // One that goes is waited for.
        let goes = |copy: &Copy| matches!(copy.state, CopyState::Leaving | CopyState::Dying);
        if block.copies.of(onto).is_some_and(|copy| !goes(copy)) {
            return Some(format!("daemon {onto} has a copy of it"));
        }
        let server = self.daemons.servers.get(&onto)?;
        if !server.is_up() {
            return Some(format!("daemon {onto} does not serve"));
        }
        if server.is_draining {
            return Some(format!("daemon {onto} is drained"));
        }
        let (needs, left) = (block.copies.committed(), self.ledger.store(onto).free());
        let is_full = left < needs && !is_beyond;
        is_full.then(|| format!("daemon {onto} has {left} bytes left of the {needs} needed"))
    }

    /// Begins what is wished, as far as there is a place for it.
    pub(super) fn make_moves(&mut self) {
        if !self.tables_complete() || !std::mem::take(&mut self.moves.is_due) {
            return;
        }
        self.take_back_lent();
        self.drop_surplus();
        let waiting = self.moves.wishes.iter().filter(|(_, wish)| !wish.is_begun);
        for id in waiting.map(|(id, _)| *id).collect::<Vec<_>>() {
            if !self.has_place_beside(0) {
                return;
            }
            self.begin_move(id);
        }
        let draining = self.daemons.servers.iter().filter(|(_, server)| server.is_draining);
        for daemon in draining.map(|(daemon, _)| *daemon).collect::<Vec<_>>() {
            self.drain_on(daemon);
        }
        self.rebalance();
    }

    /// Whether another copy may be made at once beside so many: else when one of them ends, or
    /// waits.
    fn has_place_beside(&self, others: usize) -> bool {
        self.syncs.going() + others < self.config.syncs_max.max(1)
    }

    /// How many that move by themselves wait for a lock table: they are about to begin.
    fn waiting_wishes(&self) -> usize {
        let is_next = |wish: &&Wish| wish.asker.is_none() && !wish.is_begun;
        self.moves.wishes.values().filter(is_next).count()
    }

    /// Looks at some of the blocks that a daemon has which is drained, and has them move.
    fn drain_on(&mut self, daemon: DaemonId) {
        let from = self.moves.drained_to.remove(&daemon);
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let Some(server) = self.daemons.servers.get(&daemon) else { return };
        let behind = server.blocks.range((from, Bound::Unbounded));
        let some: Vec<BlockId> = behind.copied().take(LOOKS).collect();
        let is_all = some.len() < LOOKS;
        for id in some {
            if !self.has_place_beside(self.waiting_wishes()) {
                self.moves.drained_to.insert(daemon, id);
                return;
            }
            self.drain_block(id, daemon);
            if let Ok(next) = id.checked_add(1) {
                self.moves.drained_to.insert(daemon, next);
            }
        }
        if is_all {
            self.moves.drained_to.remove(&daemon);
        } else {
            self.sync_later();
        }
    }

    fn drain_block(&mut self, id: BlockId, daemon: DaemonId) {
        let Some(block) = self.blocks.get(id).filter(|_| self.is_quiet(id)) else { return };
        let is_good = block.copies.named().any(|copy| copy.daemon == daemon);
        // One that pointers hold back would take room for two for as long as there are any.
        let is_held = block.primary() == Some(daemon) && !self.pointing_into(id).is_empty();
        if !is_good || is_held || self.moves.wishes.contains_key(&id) {
            return;
        }
        let bytes = block.copies.committed();
        let mut refused: BTreeSet<DaemonId> = block.copies.iter().map(|copy| copy.daemon).collect();
        refused.extend(self.syncs.lacks.refusers_of(id, self.now.millis));
        // Reservations are for what is allocated yet.
        let placement = self.config.placement;
        let need = Need { bytes, account: None, refused: &refused, placement };
        let Some(to) = self.place(&need) else { return };
        self.daemons.placed(to);
        self.moves.wishes.insert(id, Wish::plain(daemon, to));
        self.begin_move(id);
    }

    /// What sessions have reserved on a daemon that is drained they have elsewhere, as far as there
    /// is room.
    fn move_reservations(&mut self, daemon: DaemonId) {
        for account in self.ledger.reserved_on(daemon) {
            let others: Vec<DaemonId> = self.daemons.up_in_turn().collect();
            for other in others {
                self.ledger.move_reservation(account, daemon, other);
            }
        }
    }

    fn begin_move(&mut self, id: BlockId) {
        let Some(&Wish { from, to, is_beyond, .. }) = self.moves.wishes.get(&id) else { return };
        let Some(block) = self.blocks.get(id) else { return self.end_wish(id, "it is gone") };
        let is_it = |copy: &&Copy| copy.daemon == from && copy.state == CopyState::Held;
        let Some(half) = block.copies.named().find(is_it).map(|of| of.half) else {
            return self.end_wish(id, &format!("daemon {from} has lost its copy"));
        };
        if let Some(why) = self.obstacle_to(block, to, is_beyond) {
            self.rest_from(id, to);
            return self.end_wish(id, &why);
        }
        if !self.may_get_copy(id) {
            return self.lend_if_none(id);
        }
        let Some(block) = self.blocks.get(id) else { return };
        if block.copies.of(to).is_some() {
            return;
        }
        // Who pays for the one that goes pays for this when it is good.
        let charge = self.ledger.force_charge(None, to, block.copies.committed());
        if let Some(wish) = self.moves.wishes.get_mut(&id) {
            wish.is_begun = true;
        }
        self.log(LogLevel::Info, format!("block {id} moves from daemon {from} to {to}"));
        self.add_copy(id, ((to, half), charge), Some(from));
    }

    /// Has a block get a lock table that has none, and could get another copy otherwise. One that
    /// has become too short is made anew.
    pub(super) fn lend_if_none(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get(id).filter(|_| self.is_quiet(id)) else { return };
        let locks = block.locks.as_ref();
        let is_short = locks.is_some_and(|of| of.is_made() && !of.covers(block.committed));
        if block.is_locked || !(locks.is_none() || is_short) {
            return;
        }
        if is_short {
            self.take_locks_back(id);
        }
        if self.copies_asked(id) == 1 {
            self.moves.lend(id);
        }
        self.lend_locks(id);
    }

    /// Takes lock tables back that nothing moves by.
    fn take_back_lent(&mut self) {
        let from = self.moves.lent_from.take();
        let from = from.map_or(Bound::Unbounded, Bound::Included);
        let some = self.moves.lent.range((from, Bound::Unbounded)).copied().take(LOOKS);
        let some: Vec<BlockId> = some.collect();
        if let Some(last) = some.last().filter(|_| some.len() == LOOKS) {
            self.moves.lent_from = last.checked_add(1).ok();
            self.sync_later();
        }
        for id in some {
            let Some(block) = self.blocks.get(id).filter(|block| block.locks.is_some()) else {
                self.moves.lent.remove(&id);
                continue;
            };
            let is_asked = block.locks.as_ref().is_some_and(|locks| !locks.is_made())
                || block.copies.named().count() > 1;
            if self.moves.wishes.contains_key(&id) || !self.is_quiet(id) || is_asked {
                continue;
            }
            if block.is_locked {
                self.begin_unlocking(id);
            } else {
                self.moves.lent.remove(&id);
                self.take_locks_back(id);
            }
        }
    }

    /// Whether the primary of a block is on a daemon that is drained.
    pub(super) fn is_to_move(&self, id: BlockId) -> bool {
        let primary = self.blocks.get(id).and_then(Block::primary);
        let server = primary.and_then(|daemon| self.daemons.servers.get(&daemon));
        server.is_some_and(|server| server.is_draining)
    }

    /// What was begun was not told to anybody, and is to be begun again.
    pub(super) fn move_again(&mut self, id: BlockId) {
        if let Some(wish) = self.moves.wishes.get_mut(&id) {
            wish.is_begun = false;
        }
        self.sync_later();
    }

    /// A copy is where it was to be, and nobody uses the other any more.
    pub(super) fn moved_from(&mut self, id: BlockId) {
        if !self.is_begun(id) {
            return;
        }
        let Some(wish) = self.moves.wishes.remove(&id) else { return };
        let Wish { from, to, asker, .. } = wish;
        if let Some((next, from, to)) = wish.then {
            if self.moves.wishes.contains_key(&next) {
                let text = format!("block {id} is moved, and block {next} is moved by another");
                return self.answer(asker, Err(Refusal::new(Status::Busy, text)));
            }
            return self.wish(next, Wish { asker, is_beyond: true, ..Wish::plain(from, to) });
        }
        let epoch = self.blocks.get(id).map_or(0, |block| block.epoch);
        let moved = AdminReply::Moved { from: from.get(), to: to.get(), epoch };
        self.answer(asker, Ok(ClientReply::Admin(moved)));
    }

    fn answer(&mut self, asker: Option<ReplyTo>, reply: Reply<ClientReply>) {
        if let Some(to) = asker {
            self.reply(to, reply, Vec::new());
        }
    }

    /// A copy is not made any more. If it was to take the place of another, that stays where it is.
    pub(super) fn move_failed(&mut self, id: BlockId, why: &str) {
        if self.is_begun(id) {
            self.end_wish(id, why);
        }
    }

    /// Whether the copy of a block that is made, or goes, is one that moves.
    fn is_begun(&self, id: BlockId) -> bool {
        self.moves.wishes.get(&id).is_some_and(|wish| wish.is_begun)
    }

    /// What is wished cannot be, be it begun or not.
    pub(super) fn end_wish(&mut self, id: BlockId, why: &str) {
        let Some(wish) = self.moves.wishes.remove(&id) else { return };
        self.moves.is_due = true;
        let Wish { from, to, .. } = wish;
        let text = format!("block {id} is not moved from daemon {from} to {to}: {why}");
        self.log(LogLevel::Warn, text.clone());
        self.answer(wish.asker, Err(Refusal::new(Status::NoSpace, text)));
    }

    /// Nobody waits any more for what was wished over a connection.
    pub(super) fn cancel_moves(&mut self, conn: ClientConn) {
        let of_it = self
            .moves
            .wishes
            .iter()
            .filter(|(_, wish)| wish.asker.is_some_and(|asker| asker.conn == conn));
        for id in of_it.map(|(id, _)| *id).collect::<Vec<_>>() {
            let Some(wish) = self.moves.wishes.remove(&id) else { continue };
            if wish.is_begun && self.syncs.is_made(id) {
                self.drop_sync(id, "nobody waits for it any more");
            }
        }
    }
}

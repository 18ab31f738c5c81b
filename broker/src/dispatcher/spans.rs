//! What becomes of blocks: given up, lost, gone, and who is told.
//!
//! # Invariants
//!
//! 1. A copy that a daemon has or may have is destroyed there before its id is used again; a daemon
//!    that is away is asked at its return.
//! 2. Who gives a span up pays nothing for it from then on.
//! 3. A block is lost by what its object is, whoever says so.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId, SessionId};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, News, SpanOwner};
use super::charge::Payer;
use super::copies::{Copy, CopyState};
use super::daemons::{Op, Server};
use super::event::InspectId;
use super::sessions::Session;

impl Dispatcher {
    /// The owner has given a span up, whatever became of it until now. A region goes with it.
    pub(super) fn give_up(&mut self, first: BlockId) {
        self.revoke_all(first);
        let Some(span) = self.blocks.span(first) else { return };
        if span.owner == SpanOwner::Region {
            self.close_wrecks(first);
            self.doom_all_but_first(first);
        } else {
            // Nobody but a daemon may have been writing it.
            self.wrecks.stir(None);
        }
        if let Some(region) = self.regions.remove(first) {
            self.ledger.refund_region(region.attributes.uid);
        }
        self.blocks.disown(first);
        // Its user has quota again, before any daemon has answered.
        self.room_changed = true;
        for block in self.blocks.members(first) {
            self.give_up_block(block);
        }
        self.forget(first);
    }

    /// Gives a span of a session up that stands.
    pub(super) fn unmake(&mut self, first: BlockId) {
        let answers =
            |copy: &Copy| self.daemons.servers.get(&copy.daemon).is_some_and(Server::answers);
        // Memory that can come back at once is not held back by a daemon that does not answer.
        if self.blocks.get(first).is_some_and(|block| block.copies.named().all(answers)) {
            self.doom_all_but_first(first);
        }
        self.give_up(first);
    }

    /// Lets the other blocks of a span stay until the first is gone: where that is, a broker that
    /// comes back takes the span for whole.
    fn doom_all_but_first(&mut self, first: BlockId) {
        if !self.blocks.get(first).is_some_and(|block| block.copies.named().any(Copy::may_exist)) {
            return;
        }
        for id in self.blocks.members(first).into_iter().filter(|id| *id != first) {
            let Some(block) = self.blocks.get_mut(id) else { continue };
            // One that is being made, or is on its way to nothing, is nobody's already.
            let stays = |copy: &&mut Copy| {
                matches!(copy.state, CopyState::Held | CopyState::Lost | CopyState::Stale)
            };
            for copy in block.copies.iter_mut().filter(stays) {
                self.ledger.retire(&mut copy.charge);
                copy.state = CopyState::Doomed;
            }
        }
    }

    fn give_up_block(&mut self, id: BlockId) {
        self.forget_raise(id);
        self.forget_sync(id, "its owner has given it up");
        self.end_adoption(id, Some("its owner has given it up"));
        self.blocks.set_state(id, BlockState::Going);
        self.retire_locks(id);
        let Some(block) = self.blocks.get_mut(id) else { return };
        let mut copies = Vec::new();
        for copy in block.copies.iter_mut() {
            self.ledger.retire(&mut copy.charge);
            copies.push((copy.daemon, copy.state));
        }
        if copies.is_empty() {
            return self.remove_block(id);
        }
        for (daemon, state) in copies {
            match state {
                CopyState::Planned => self.remove_copy(id, daemon),
                // Its daemon answers first, so that the destroy finds what was made.
                CopyState::Asked => self.blocks.set_copy(id, daemon, CopyState::Dying),
                CopyState::Held | CopyState::Lost | CopyState::Stale => {
                    self.destroy(id, daemon);
                }
                // What syncs was given up before.
                CopyState::Syncing | CopyState::Leaving | CopyState::Doomed | CopyState::Dying => {}
            }
        }
    }

    /// Has a copy destroyed that its daemon has, or may have.
    pub(super) fn destroy(&mut self, id: BlockId, daemon: DaemonId) {
        let stamp = self.next_number();
        let hears = self.daemons.servers.get(&daemon).is_some_and(Server::hears);
        if let Some(block) = self.blocks.get_mut(id) {
            block.stamp = stamp;
            let guid = block.guid;
            if let Some(copy) = block.copies.of_mut(daemon) {
                // Its daemon is asked when it is back. The broker after this one could take it for
                // a good one, since those that would tell are gone by then.
                if !copy.named && !hears {
                    self.out.push(Action::RemoveHeader { daemon, block: id, guid });
                }
                copy.state = CopyState::Dying;
                self.ledger.retire(&mut copy.charge);
            }
        }
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            if self.deletions.contains_key(&id) {
                server.push_destroy_first(id);
            } else {
                server.push(Op::Destroy { block: id });
            }
        }
        self.pump(daemon);
    }

    /// A copy is gone, or never was: its bytes are free, and with the last its block is gone.
    pub(super) fn remove_copy(&mut self, id: BlockId, daemon: DaemonId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some((_, copy)) = block.copies.take(daemon) else { return };
        let (first, was_last) = (block.span, block.copies.is_empty());
        let none_is_named = block.copies.named().next().is_none();
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.blocks.remove(&id);
        }
        self.ledger.refund(copy.charge);
        (self.room_changed, self.moves.is_due) = (true, true);
        if was_last {
            self.remove_block(id);
        } else if id == first && none_is_named {
            self.first_is_gone(id);
        }
    }

    /// A block without copies is forgotten: with the last of its span, its ids are free.
    pub(super) fn remove_block(&mut self, id: BlockId) {
        let Some(block) = self.blocks.remove(id) else { return };
        assert!(block.copies.is_empty(), "block {id} is forgotten before its copies");
        self.remove_locks(id, block.locks);
        self.room_changed = true;
        if id == block.span {
            self.first_is_gone(id);
        }
        self.forget(block.span);
    }

    /// The first block of a span is gone: the others follow.
    fn first_is_gone(&mut self, first: BlockId) {
        self.region_is_gone(first);
        for id in self.blocks.members(first) {
            let Some(block) = self.blocks.get(id) else { continue };
            let doomed = block.copies.iter().filter(|copy| copy.state == CopyState::Doomed);
            let daemons: Vec<DaemonId> = doomed.map(|copy| copy.daemon).collect();
            for daemon in daemons {
                self.destroy(id, daemon);
            }
        }
    }

    /// A session knows that a span is gone.
    pub(super) fn told(&mut self, session: SessionId, first: BlockId) {
        if let Some(span) = self.blocks.span_mut(first) {
            span.untold.remove(&session);
        }
        self.forget(first);
    }

    fn forget(&mut self, first: BlockId) {
        for range in self.blocks.forget_span(first) {
            self.ids.give_back(range);
        }
    }

    /// A session has to be told that a block has changed.
    pub(super) fn changed(&mut self, session: SessionId, block: BlockId) -> u64 {
        self.moved.insert(session);
        let session = self.sessions.get_mut(session);
        session.map_or(0, |session| session.changes.push(block))
    }

    /// The bytes of a copy are gone. Where another is good, the block goes on with that, as soon as
    /// its header says so.
    pub(super) fn lose_copy(&mut self, id: BlockId, daemon: DaemonId, why: &str) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let (first, state) = (block.span, block.state);
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        if matches!(copy.state, CopyState::Syncing | CopyState::Leaving) {
            return self.drop_sync(id, why);
        }
        let is_left = block.copies.held().any(|other| other.daemon != daemon);
        if !is_left && self.is_switching(id) {
            // What leaves is as good, unless a header says already that it does: soon it is known.
            return;
        }
        let Some(copy) = self.blocks.get_mut(id).and_then(|block| block.copies.of_mut(daemon))
        else {
            return;
        };
        copy.state = CopyState::Lost;
        self.ledger.lose(&mut copy.charge);
        // Nobody pays for it any more, and the daemon may have another in its place.
        self.room_changed = true;
        let text = format!("block {id} on daemon {daemon} is lost: {why}");
        if self.makings.contains_key(&first) {
            // Nobody has had it.
            self.log(LogLevel::Warn, text);
            return self.make_again(first);
        }
        let Some(block) = self.blocks.get_mut(id) else { return };
        match state {
            BlockState::Held | BlockState::Losing if is_left => {
                if let Some(copy) = block.copies.of_mut(daemon) {
                    self.ledger.retire(&mut copy.charge);
                }
                block.copies.unname(daemon);
                block.news = News::Fewer;
                self.renumber_if_due(id);
                self.blocks.set_state(id, BlockState::Losing);
                self.log(LogLevel::Error, text);
                self.revoke_block(first, id);
                self.raise(id);
            }
            BlockState::Held | BlockState::Losing => {
                self.forget_raise(id);
                self.lose(id, &text);
            }
            BlockState::Making | BlockState::Lost | BlockState::Going => {}
        }
    }

    /// The bytes of a block are gone.
    pub(super) fn lose(&mut self, id: BlockId, text: &str) {
        let Some(block) = self.blocks.get(id) else { return };
        let (first, bytes) = (block.span, block.committed);
        self.blocks.set_state(id, BlockState::Lost);
        self.forget_sync(id, text);
        self.log(LogLevel::Error, text);
        self.revoke_block(first, id);
        self.tell_holders(first, id);
        self.tell_lost(first, id, bytes);
        self.end_adoption(id, Some(text));
    }

    /// Who may use a span has to be told that a block of it has changed.
    pub(super) fn tell_holders(&mut self, first: BlockId, block: BlockId) {
        for session in self.holders(first) {
            self.changed(session, block);
        }
        if self.blocks.get(block).is_some_and(|block| block.locks.is_some()) {
            self.seats.tell();
        }
    }

    /// Who pays for the blocks of a span.
    pub(super) fn payer_of_span(&self, first: BlockId) -> Option<Payer> {
        let span = self.blocks.span(first)?;
        match span.owner {
            SpanOwner::Session(session) => self.sessions.get(session).map(Session::payer),
            SpanOwner::Region => Some(Payer { uid: span.uid, account: None }),
        }
    }

    /// The sessions that may write a span.
    pub(super) fn writers(&self, first: BlockId) -> BTreeSet<SessionId> {
        let mut sessions = self.holders(first);
        if self.blocks.span(first).is_some_and(|span| span.owner == SpanOwner::Region) {
            let may_write = |session: &SessionId| {
                let session = self.sessions.get(*session);
                session.is_none_or(|session| session.opens.rights(first).write)
            };
            sessions.retain(may_write);
        }
        sessions
    }

    /// The sessions that may use a span.
    pub(super) fn holders(&self, first: BlockId) -> BTreeSet<SessionId> {
        match self.blocks.span(first).map(|span| span.owner) {
            Some(SpanOwner::Session(session)) => BTreeSet::from([session]),
            Some(SpanOwner::Region) => {
                self.regions.get(first).map(|region| region.opens.clone()).unwrap_or_default()
            }
            None => BTreeSet::new(),
        }
    }

    /// Has objects of a daemon looked at.
    pub(super) fn inspect(&mut self, daemon: DaemonId, blocks: Vec<BlockId>) {
        if blocks.is_empty() {
            return;
        }
        let inspect = InspectId(self.next_number());
        self.out.push(Action::Inspect { inspect, daemon, blocks });
    }

    /// What the objects of a daemon are.
    pub(super) fn inspected(
        &mut self,
        inspect: InspectId,
        daemon: DaemonId,
        found: &[(BlockId, Option<u64>)],
    ) {
        let mut again = Vec::new();
        // Somebody may wait for it whose answer was not sent.
        self.settled = true;
        for &(id, bytes) in found {
            let Some(block) = self.blocks.get(id) else { continue };
            match block.copies.of(daemon).map(|copy| judge(block, copy, inspect, bytes)) {
                Some(Verdict::Again) => again.push(id),
                Some(Verdict::Lost(why)) => self.lose_copy(id, daemon, &why),
                Some(Verdict::Fine) | None => {}
            }
        }
        self.inspect(daemon, again);
    }
}

/// What an object says about its copy.
enum Verdict {
    Fine,
    Lost(String),
    /// The block has changed since the object was looked at.
    Again,
}

fn judge(block: &Block, copy: &Copy, inspect: InspectId, bytes: Option<u64>) -> Verdict {
    let whole = bytes.is_some_and(|bytes| bytes >= copy.committed);
    if !matches!(copy.state, CopyState::Held | CopyState::Syncing) || whole {
        return Verdict::Fine;
    }
    if block.stamp > inspect.0 {
        return Verdict::Again;
    }
    match bytes {
        None => Verdict::Lost("its object is gone".to_owned()),
        Some(bytes) => Verdict::Lost(format!("its object has {bytes} bytes of {}", copy.committed)),
    }
}

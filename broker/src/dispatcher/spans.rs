//! What becomes of blocks: given up, lost, gone, and who is told.
//!
//! # Invariants
//!
//! 1. A block that a daemon has or may have is destroyed there before its id is used again; a
//!    daemon that is away is asked at its return.
//! 2. Who gives a span up pays nothing for it from then on.
//! 3. A block is lost by what its object is, whoever says so.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId, SessionId};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, SpanOwner};
use super::daemons::{Op, Server};
use super::event::InspectId;

impl Dispatcher {
    /// The owner has given a span up, whatever became of it until now. A region goes with it.
    pub(super) fn give_up(&mut self, first: BlockId) {
        self.revoke_all(first);
        let Some(span) = self.blocks.span(first) else { return };
        if span.owner == SpanOwner::Region {
            self.doom_all_but_first(first);
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
        let daemon = self.blocks.get(first).and_then(|block| block.daemon);
        let server = daemon.and_then(|daemon| self.daemons.servers.get(&daemon));
        // Memory that can come back at once is not held back by a daemon that does not answer.
        if server.is_some_and(Server::answers) {
            self.doom_all_but_first(first);
        }
        self.give_up(first);
    }

    /// Lets the other blocks of a span stay until the first is gone: where that is, a broker that
    /// comes back takes the span for whole.
    fn doom_all_but_first(&mut self, first: BlockId) {
        let may_exist =
            |block: &Block| block.daemon.is_some() && !matches!(block.state, BlockState::Planned);
        if !self.blocks.get(first).is_some_and(may_exist) {
            return;
        }
        for id in self.blocks.members(first).into_iter().filter(|id| *id != first) {
            let Some(block) = self.blocks.get_mut(id).filter(|block| may_exist(block)) else {
                continue;
            };
            if let Some(charge) = &mut block.charge {
                self.ledger.retire(charge);
            }
            self.blocks.set_state(id, BlockState::Doomed);
        }
    }

    fn give_up_block(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        if let Some(charge) = &mut block.charge {
            self.ledger.retire(charge);
        }
        match (block.state, block.daemon) {
            (BlockState::Planned, _) | (BlockState::Lost, None) => self.remove_block(id),
            // Its daemon answers first, so that the destroy finds what was made.
            (BlockState::Asked, _) => self.blocks.set_state(id, BlockState::Dying),
            (BlockState::Held | BlockState::Lost, Some(daemon)) => self.destroy(id, daemon),
            _ => {}
        }
    }

    /// Has a block destroyed that its daemon has, or may have.
    pub(super) fn destroy(&mut self, id: BlockId, daemon: DaemonId) {
        let stamp = self.next_number();
        self.blocks.set_state(id, BlockState::Dying);
        if let Some(block) = self.blocks.get_mut(id) {
            block.stamp = stamp;
            if let Some(charge) = &mut block.charge {
                self.ledger.retire(charge);
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

    /// A block is gone, or never was: its bytes and, with the last of its span, its ids are free.
    pub(super) fn remove_block(&mut self, id: BlockId) {
        let Some(block) = self.blocks.remove(id) else { return };
        if let Some(server) = block.daemon.and_then(|id| self.daemons.servers.get_mut(&id)) {
            server.blocks.remove(&id);
        }
        if let Some(charge) = block.charge {
            self.ledger.refund(charge);
        }
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
            let doomed = self.blocks.get(id).filter(|block| block.state == BlockState::Doomed);
            if let Some(daemon) = doomed.and_then(|block| block.daemon) {
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

    /// The bytes of a block are gone.
    pub(super) fn lose(&mut self, id: BlockId, why: &str) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        if let Some(charge) = &mut block.charge {
            self.ledger.lose(charge);
        }
        let (first, bytes) = (block.span, block.committed);
        let place = block.daemon.map_or(String::new(), |daemon| format!(" on daemon {daemon}"));
        self.blocks.set_state(id, BlockState::Lost);
        self.log(LogLevel::Error, format!("block {id}{place} is lost: {why}"));
        self.revoke_block(first, id);
        self.tell_holders(first, id);
        self.tell_lost(first, id, bytes);
    }

    /// Who may use a span has to be told that a block of it has changed.
    pub(super) fn tell_holders(&mut self, first: BlockId, block: BlockId) {
        for session in self.holders(first) {
            self.changed(session, block);
        }
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
        for &(id, bytes) in found {
            let block = self.blocks.get(id).filter(|block| block.daemon == Some(daemon));
            match block.map(|block| judge(block, inspect, bytes)) {
                Some(Verdict::Again) => again.push(id),
                Some(Verdict::Lost(why)) => self.lose(id, &why),
                Some(Verdict::Fine) | None => {}
            }
        }
        self.inspect(daemon, again);
    }
}

/// What an object says about its block.
enum Verdict {
    Fine,
    Lost(String),
    /// The block has changed since the object was looked at.
    Again,
}

fn judge(block: &Block, inspect: InspectId, bytes: Option<u64>) -> Verdict {
    let whole = bytes.is_some_and(|bytes| bytes >= block.committed);
    if block.state != BlockState::Held || whole {
        return Verdict::Fine;
    }
    if block.stamp > inspect.0 {
        return Verdict::Again;
    }
    match bytes {
        None => Verdict::Lost("its object is gone".to_owned()),
        Some(bytes) => {
            Verdict::Lost(format!("its object has {bytes} bytes of {}", block.committed))
        }
    }
}

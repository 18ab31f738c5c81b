//! More bytes at the end of a block: every copy grows, and the lock table, and then the client is
//! answered.
//!
//! ```text
//!         table, all but the primary      all have grown: that too        it has: Grown
//!  Grow  ---------------------------> o ---------------------------> o ------------------> (done)
//!                                     | one cannot, or is silent     |
//!                                     v                              v
//!                        refused; who has grown stays larger, `committed` is what all have
//! ```
//!
//! # Invariants
//!
//! 1. Before any daemon is asked, the bytes of every copy are charged.
//! 2. A growth ends with the last answer of a daemon, be its client answered or not.
//! 3. The primary grows last, as it is made last: one that is refused leaves it as it was.
//! 4. A copy that is syncing and cannot grow is given up: it keeps nobody else from growing.

use std::collections::BTreeMap;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::client::{ClientReply, Grow};
use dmce_abi::wire::daemon::DaemonAnswer;
use dmce_abi::wire::{self, Refusal};

use super::Dispatcher;
use super::asking::{Answer, lost};
use super::blocks::{Block, BlockState, SpanOwner};
use super::charge::ChargeError;
use super::clients::ReplyTo;
use super::copies::CopyState;
use super::daemons::{Op, Server};
use super::event::Made;
use super::requests::{Outcome, Served, refuse};

/// A block that grows for a client.
#[derive(Debug)]
pub(super) struct Growth {
    block: BlockId,
    guid: Guid,
    /// Bytes in all.
    committed: u64,
    /// Who waits for it, until answered.
    to: Option<ReplyTo>,
    /// The primary's daemon, until it is asked.
    last: Option<DaemonId>,
    /// Daemons that were asked and have yet to answer.
    left: usize,
    /// Why one of them has not grown its copy.
    refusal: Option<Refusal>,
}

/// All growths, by number.
pub(super) type Growths = BTreeMap<u64, Growth>;

impl Growth {
    /// Whether it is a block's.
    pub(super) fn is_of(&self, id: BlockId) -> bool {
        self.block == id
    }

    /// Who waits.
    pub(super) const fn owed(&self) -> Option<ReplyTo> {
        self.to
    }
}

impl Dispatcher {
    /// More bytes at the end of a block.
    pub(super) fn grow(&mut self, to: ReplyTo, session: SessionId, grow: Grow) -> Served {
        let id = grow.block;
        let reached = self.reach(session, id)?;
        if reached.span.owner == SpanOwner::Region {
            return refuse(
                Status::Invalid,
                format!("block {id} is a region's, whose size is fixed"),
            );
        }
        let &Block { committed, bytes_max, guid, .. } = reached.block;
        let page_size = u64::from(reached.span.page_size);
        if reached.block.state == BlockState::Lost {
            return Err(lost(id).into());
        }
        if grow.committed <= committed {
            return Ok(ClientReply::Grown { committed }.into());
        }
        if grow.committed > bytes_max {
            let text = format!("block {id} to {} bytes, limit {bytes_max}", grow.committed);
            return refuse(Status::NoSpace, text);
        }
        let asked = grow.committed.next_multiple_of(page_size).min(bytes_max);
        // The primary's first.
        let mut daemons = reached.block.copies.daemons();
        let syncing = reached.block.copies.syncing().map(|copy| copy.daemon);
        if !daemons.iter().all(|daemon| self.answers(*daemon)) {
            return refuse(Status::NoSpace, format!("the daemon of block {id} does not answer"));
        }
        self.charge_growth(id, &daemons, asked)?;
        if let Some(syncing) = syncing {
            if self.answers(syncing) && self.charge_growth(id, &[syncing], asked).is_ok() {
                daemons.push(syncing);
            } else {
                self.drop_sync(id, "it cannot grow");
            }
        }
        self.granted += 1;
        let number = self.next_number();
        let growth = Growth {
            block: id,
            guid,
            committed: asked,
            to: Some(to),
            last: daemons.first().copied(),
            left: 0,
            refusal: None,
        };
        self.growths.insert(number, growth);
        if self.grow_locks(id, number, asked)
            && let Some(growth) = self.growths.get_mut(&number)
        {
            growth.left += 1;
        }
        for daemon in daemons.into_iter().skip(1) {
            self.ask_to_grow(daemon, number);
        }
        self.go_on_growing(number);
        Ok(Outcome::Later)
    }

    fn answers(&self, daemon: DaemonId) -> bool {
        self.daemons.servers.get(&daemon).is_some_and(Server::answers)
    }

    fn ask_to_grow(&mut self, daemon: DaemonId, number: u64) {
        let Some(growth) = self.growths.get_mut(&number) else { return };
        growth.left += 1;
        let Growth { block, guid, committed, .. } = *growth;
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.push(Op::Grow { block, guid, committed, growth: number });
        }
        self.pump(daemon);
    }

    /// Charges what all copies of a block are to have, or nothing.
    fn charge_growth(
        &mut self,
        id: BlockId,
        daemons: &[DaemonId],
        committed: u64,
    ) -> Result<(), ChargeError> {
        let Some(block) = self.blocks.get_mut(id) else { return Ok(()) };
        let mut before = Vec::new();
        let mut failed = None;
        for &daemon in daemons {
            let Some(copy) = block.copies.of_mut(daemon) else { continue };
            let bytes = copy.charge.bytes();
            let more = committed.saturating_sub(bytes);
            match self.ledger.extend(&mut copy.charge, more) {
                Ok(()) => before.push((daemon, bytes)),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        for (daemon, bytes) in before {
            let Some(copy) = block.copies.of_mut(daemon) else { continue };
            match failed {
                Some(_) => self.ledger.force_bytes(&mut copy.charge, bytes),
                None => copy.grows += 1,
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// A daemon has grown its copy of a block, or has not, or will not answer.
    pub(super) fn grow_answered(&mut self, daemon: DaemonId, number: u64, answer: Answer) {
        let Some(growth) = self.growths.get_mut(&number) else { return };
        growth.left -= 1;
        let (id, guid) = (growth.block, growth.guid);
        let copies = self.blocks.get(id).map(|block| &block.copies);
        let is_named = copies.is_some_and(|copies| copies.daemons().contains(&daemon));
        let committed = match answer {
            Ok(DaemonAnswer::Committed { committed }) => committed,
            Ok(_) => 0,
            Err(refusal) => {
                if is_named {
                    growth.refusal = Some(Refusal::new(Status::NoSpace, refusal.text));
                }
                0
            }
        };
        let copies = self.blocks.get(id).map(|block| &block.copies);
        let syncing = copies.and_then(|copies| copies.syncing()).map(|copy| copy.daemon);
        if committed == 0 && syncing == Some(daemon) {
            self.drop_sync(id, "it does not grow");
        }
        self.growth_ended(id, guid, daemon, committed);
        self.go_on_growing(number);
    }

    /// The lock table of a block has words for what it grows to, or cannot have them.
    pub(super) fn locks_grown(&mut self, number: u64, made: Made) {
        let Some(growth) = self.growths.get_mut(&number) else { return };
        growth.left -= 1;
        let Growth { block, guid, committed, .. } = *growth;
        let has_grown = made == Made::Whole;
        if let Made::NameTaken { reason } | Made::Unusable { reason } = made {
            growth.refusal = Some(Refusal::new(Status::NoSpace, reason));
        }
        self.set_locks(block, guid, committed, has_grown);
        self.go_on_growing(number);
    }

    /// A copy has grown, if it has more bytes than before. What it does not need is not charged.
    fn growth_ended(&mut self, id: BlockId, guid: Guid, daemon: DaemonId, committed: u64) {
        let stamp = self.next_number();
        let Some(block) = self.blocks.get_mut(id).filter(|block| block.guid == guid) else {
            return;
        };
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        copy.committed = copy.committed.max(committed);
        copy.grows = copy.grows.saturating_sub(1);
        // A copy that was lost costs nothing any more, whatever becomes of it.
        if copy.grows == 0 && copy.charge.bytes() > 0 {
            self.ledger.force_bytes(&mut copy.charge, copy.committed);
        }
        block.stamp = stamp;
        block.settle_committed();
        self.blocks.recount(id);
    }

    /// When all who were asked have answered: the primary grows, or the client is answered.
    fn go_on_growing(&mut self, number: u64) {
        let Some(growth) = self.growths.get_mut(&number).filter(|growth| growth.left == 0) else {
            return;
        };
        let (id, guid, last) = (growth.block, growth.guid, growth.last.take());
        if let Some(daemon) = last {
            let block = self.blocks.get(id).filter(|block| block.guid == guid);
            let copy = block.and_then(|block| block.copies.of(daemon));
            let is_held = copy.is_some_and(|copy| copy.state == CopyState::Held);
            let answers = self.daemons.servers.get(&daemon).is_some_and(Server::answers);
            if growth.refusal.is_none() && is_held && answers {
                return self.ask_to_grow(daemon, number);
            }
            if is_held {
                let text = format!("daemon {daemon} does not answer");
                growth.refusal.get_or_insert(Refusal::new(Status::NoSpace, text));
            }
            self.growth_ended(id, guid, daemon, 0);
        }
        let Some(Growth { to, refusal, .. }) = self.growths.remove(&number) else { return };
        // None is made while a block grows.
        self.look_for_places();
        self.moves.is_due = true;
        let Some(to) = to else { return };
        let result = refusal.map_or_else(|| self.grown(id, guid), Err);
        self.reply(to, result, Vec::new());
    }

    /// What who asked for a growth is told when all copies have grown.
    fn grown(&self, id: BlockId, guid: Guid) -> wire::Reply<ClientReply> {
        let block = self.blocks.get(id).filter(|block| block.guid == guid);
        match block.map(|block| (block.state, block.committed)) {
            Some((BlockState::Held | BlockState::Losing, committed)) => {
                Ok(ClientReply::Grown { committed })
            }
            Some((BlockState::Lost, _)) => Err(lost(id)),
            _ => Err(Refusal::new(Status::Address, format!("block {id} is deleted"))),
        }
    }

    /// Who waits for a daemon to grow its copies is refused: it does not answer.
    pub(super) fn refuse_growers_of(&mut self, daemon: DaemonId, refusal: &Refusal) {
        let Some(server) = self.daemons.servers.get(&daemon) else { return };
        for number in server.growths() {
            let growth = self.growths.get_mut(&number);
            if let Some(to) = growth.and_then(|growth| growth.to.take()) {
                self.reply(to, Err(refusal.clone()), Vec::new());
            }
        }
    }
}

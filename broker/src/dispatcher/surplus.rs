//! Regions of which other numbers of copies are asked for while they are used: what a block lacks
//! then is made (`lacks`), and what it has too many goes, one copy after another.
//!
//! ```text
//!            the table is made        all headers name the new copy: from then on
//!  one copy ------------------> lent ---------------------------------------------> several
//!     ^                               the block's pages are locked                   |   |
//!     |  nobody locks pages any more, and the table goes                             |   |
//!     +------------------------------------------------------------------------------+   |
//!     one is left: `moving`                                                  ^           |
//!                                                                            +-- LEAVING-+
//!                              all who use the block were told, and are in no operation
//!                              that began before: `syncing`
//! ```
//!
//! # Invariants
//!
//! 1. What is asked for is what the newest header of the region's first block says: a broker that
//!    comes back goes on with that. Headers of other blocks may say what was asked for before.
//! 2. A block whose pages nobody locks says in its headers that one copy is asked for: who reads
//!    them looks for no lock table.
//! 3. The primary stays. Of the others that goes which was made last, or whose daemon does not
//!    serve. Those that stay are the first halves.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::wire::admin::AdminReply;
use dmce_abi::wire::client::{ClientReply, RegionName};
use dmce_abi::wire::{Refusal, Reply};

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::{BlockState, News};
use super::clients::ReplyTo;
use super::copies::{Copies, Copy};
use super::daemons::Server;
use super::regions::{Caller, may_know};
use super::requests::{Outcome, Served};

/// Blocks that lose a copy in a step.
const DROPS: usize = 16;

impl Dispatcher {
    /// So many copies of a region are asked for from now on.
    pub(super) fn set_copies(&mut self, to: ReplyTo, region: &RegionName, copies: u32) -> Served {
        let Some(client) = self.clients.get(&to.conn) else { return Ok(Outcome::Later) };
        let peer = client.peer.clone();
        let caller = Caller { uid: peer.uid, gid: peer.gid, groups: &peer.groups };
        let found = self.regions.by_name(region).filter(|first| self.stands(*first));
        let known = found.and_then(|first| Some((first, &self.regions.get(first)?.attributes)));
        let sees_all = self.sees_all(&peer);
        let Some((first, attributes)) = known.filter(|(_, of)| sees_all || may_know(of, caller))
        else {
            let RegionName { volume, name } = region;
            let text = format!("no region {name:?} in volume {volume:?}");
            return Err(Refusal::new(Status::NotFound, text).into());
        };
        if !sees_all && attributes.uid != peer.uid {
            let text = format!("region {:?} is another user's", region.name);
            return Err(Refusal::new(Status::Denied, text).into());
        }
        if copies == 0 {
            return Err(Refusal::new(Status::Invalid, "0 copies: use region delete").into());
        }
        let (uid, copies) = (attributes.uid, self.copies([copies])?);
        self.check_more(first, uid, copies)?;
        self.ask_for_copies(first, copies);
        let RegionName { volume, name } = region;
        let text = format!("{copies} copies of region {name:?} of volume {volume:?} are asked for");
        self.log(LogLevel::Info, text);
        let count = self.blocks.span(first).map_or(0, |span| span.count);
        let set: Reply<ClientReply> =
            Ok(ClientReply::Admin(AdminReply::CopiesSet { first: first.get(), count }));
        self.reply(to, set, Vec::new());
        Ok(Outcome::Later)
    }

    /// Whether so many copies could be there: daemons for them, and the owner's quota.
    fn check_more(&self, first: BlockId, uid: u32, copies: u32) -> Result<(), Refusal> {
        let serves = |server: &&Server| server.is_up() && !server.is_draining;
        let there = self.daemons.servers.values().filter(serves).count();
        let lacks = |id: BlockId| {
            let block = self.blocks.get(id).filter(|block| block.is_usable())?;
            let more = (copies as usize).saturating_sub(block.copies.named().count());
            Some((more as u64).saturating_mul(block.committed))
        };
        let members = self.blocks.members(first);
        let needs = members.into_iter().filter_map(lacks).fold(0, u64::saturating_add);
        if needs > 0 && there < copies as usize {
            let text = format!("{copies} copies of a block need as many daemons, {there} serve");
            return Err(Refusal::new(Status::NoSpace, text));
        }
        let left = self.ledger.quota_left(uid);
        if needs > left {
            let text = format!("user {uid} has {left} bytes left of the {needs} needed");
            return Err(Refusal::new(Status::Quota, text));
        }
        Ok(())
    }

    fn ask_for_copies(&mut self, first: BlockId, copies: u32) {
        if let Some(span) = self.blocks.span_mut(first) {
            span.copies = copies;
        }
        if let Some(region) = self.regions.get_mut(first) {
            region.attributes.copies = copies;
        }
        for id in self.blocks.members(first) {
            self.blocks.count_copies(id);
            let Some(block) = self.blocks.get(id) else { continue };
            match (copies, block.locks.is_some()) {
                (1, true) => self.moves.lend(id),
                (1, false) => {}
                _ => self.moves.keep(id),
            }
            if block.copies.named().count() >= copies as usize {
                self.drop_lacking(id, "no more copies are asked for");
            }
        }
        (self.syncs.lacks.is_due, self.moves.is_due) = (true, true);
        // The header of the first block says so for the next broker.
        match self.blocks.get(first).map(|block| block.state) {
            Some(BlockState::Held) => {
                self.blocks.set_state(first, BlockState::Losing);
                self.raise(first);
            }
            Some(BlockState::Losing) if self.raises.contains_key(&first) => self.raise(first),
            _ => {}
        }
    }

    /// How many copies of a block are asked for.
    pub(super) fn copies_asked(&self, id: BlockId) -> u32 {
        let span = self.blocks.get(id).and_then(|block| self.blocks.span(block.span));
        span.map_or(0, |span| span.copies)
    }

    /// Has some blocks lose a copy that have too many.
    pub(super) fn drop_surplus(&mut self) {
        let is_free = |id: &BlockId| self.is_quiet(*id) && !self.moves.is_wished(*id);
        let quiet = self.blocks.with_surplus().filter(is_free);
        let quiet: Vec<BlockId> = quiet.take(DROPS + 1).collect();
        for id in quiet.iter().take(DROPS) {
            self.drop_copy(*id);
        }
        if quiet.len() > DROPS {
            self.sync_later();
        }
    }

    fn drop_copy(&mut self, id: BlockId) {
        let asked = self.copies_asked(id) as usize;
        let Some(block) = self.blocks.get(id) else { return };
        let Some(daemon) = self.one_too_many(&block.copies) else { return };
        let Some(block) = self.blocks.get_mut(id) else { return };
        block.copies.leave(daemon);
        if let Some(copy) = block.copies.of_mut(daemon) {
            self.ledger.retire(&mut copy.charge);
        }
        if block.copies.named().count() == asked {
            block.copies.renumber();
        }
        block.news = News::Moved;
        self.log(LogLevel::Info, format!("block {id} is to have no copy on daemon {daemon}"));
        self.begin_leaving(id, daemon);
    }

    /// The one that goes of too many.
    fn one_too_many(&self, copies: &Copies) -> Option<DaemonId> {
        let serves = |daemon| self.daemons.servers.get(&daemon).is_some_and(Server::is_up);
        let drained = |daemon| self.daemons.servers.get(&daemon).is_some_and(|of| of.is_draining);
        let rank = |copy: &&Copy| {
            let Copy { daemon, half, .. } = **copy;
            (!serves(daemon), drained(daemon), half)
        };
        copies.named().skip(1).max_by_key(rank).map(|copy| copy.daemon)
    }
}

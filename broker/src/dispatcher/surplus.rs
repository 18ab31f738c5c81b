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
//!    Where no block's pages were locked, nothing is made of another before the first one's say so.
//! 2. A block whose pages nobody locks says in its headers that one copy is asked for: who reads
//!    them looks for no lock table.
//! 3. The primary stays, and nothing goes while its daemon does not serve. Of the others that goes
//!    which was made last, or whose daemon does not serve. Those that stay are the first halves.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::admin::AdminReply;
use dmce_abi::wire::client::{ClientReply, RegionName};

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::{Block, BlockState, News};
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
        Ok(ClientReply::Admin(AdminReply::CopiesSet { first: first.get(), count }).into())
    }

    /// Whether so many copies could be there: daemons for them, and the owner's quota.
    fn check_more(&self, first: BlockId, uid: u32, copies: u32) -> Result<(), Refusal> {
        if copies <= self.copies_asked(first) {
            return Ok(());
        }
        if self.config.syncs_max == 0 {
            let text = "this broker makes no copies of blocks that are used: broker.sync_blocks";
            return Err(Refusal::new(Status::Unsupported, text));
        }
        let serves = |server: &&Server| server.is_up() && !server.is_draining;
        let there = self.daemons.servers.values().filter(serves).count();
        let (mut needs, mut count) = (0_u64, 0_u64);
        for id in self.blocks.members(first) {
            let Some(block) = self.blocks.get(id).filter(|block| block.is_usable()) else {
                continue;
            };
            let paid = block.copies.named().chain(block.copies.syncing()).count();
            let more = copies.saturating_sub(u32::try_from(paid).unwrap_or(copies));
            needs = needs.saturating_add(u64::from(more).saturating_mul(block.committed));
            count = count.saturating_add(u64::from(more));
        }
        if there < copies as usize {
            let text = format!("{copies} copies of a block need as many daemons, {there} serve");
            return Err(Refusal::new(Status::NoSpace, text));
        }
        let left = self.ledger.quota_left(uid);
        if needs > left {
            let text = format!("user {uid} has {left} bytes left of the {needs} needed");
            return Err(Refusal::new(Status::Quota, text));
        }
        let left = self.ledger.blocks_left(uid);
        if count > left {
            let text = format!("user {uid} has {left} blocks left of the {count} needed");
            return Err(Refusal::new(Status::Quota, text));
        }
        Ok(())
    }

    /// Whether a block is to get a second copy, and the header of its region's first block does not
    /// say yet that there are to be any.
    pub(super) fn waits_for_first(&self, id: BlockId) -> bool {
        let block = self.blocks.get(id).filter(|block| !block.is_locked && block.span != id);
        let first = block.and_then(|block| self.blocks.get(block.span));
        first.is_some_and(|first| first.is_usable() && !first.is_locked)
    }

    fn ask_for_copies(&mut self, first: BlockId, copies: u32) {
        if let Some(span) = self.blocks.span_mut(first) {
            span.copies = copies;
        }
        if let Some(region) = self.regions.get_mut(first) {
            region.attributes.copies = copies;
        }
        for id in self.blocks.members(first) {
            self.blocks.recount(id);
            let Some(block) = self.blocks.get(id) else { continue };
            match (copies, block.locks.is_some()) {
                (1, true) => self.moves.lend(id),
                (1, false) => {}
                _ => self.moves.keep(id),
            }
            // The header of the first block says so for the next broker.
            let is_said = id == first && (block.is_locked || copies == 1);
            if block.copies.named().count() >= copies as usize {
                self.drop_lacking(id, "no more copies are asked for");
                self.clear_old(id);
            }
            if self.renumber_if_due(id) || is_said {
                self.say_again(id);
            }
        }
        (self.syncs.lacks.is_due, self.moves.is_due) = (true, true);
    }

    /// A block that has as many copies as are asked for has the first halves; when none of them is
    /// about to have another in its place. `true` if some copy is another half from now on.
    pub(super) fn renumber_if_due(&mut self, id: BlockId) -> bool {
        let asked = self.copies_asked(id) as usize;
        let block = self.blocks.get_mut(id).filter(|block| block.is_usable());
        let Some(block) = block.filter(|_| !self.syncs.is_replacing(id)) else { return false };
        block.copies.named().count() == asked && block.copies.renumber()
    }

    /// Has the headers of a block written anew, if nobody is about to.
    fn say_again(&mut self, id: BlockId) {
        match self.blocks.get(id).map(|block| block.state) {
            Some(BlockState::Held) => {
                self.blocks.set_state(id, BlockState::Losing);
                self.raise(id);
            }
            Some(BlockState::Losing) if self.raises.contains_key(&id) => self.raise(id),
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
        let serves = |id: BlockId| {
            let primary = self.blocks.get(id).and_then(Block::primary);
            let server = primary.and_then(|daemon| self.daemons.servers.get(&daemon));
            server.is_some_and(Server::is_up)
        };
        let is_free =
            |id: &BlockId| serves(*id) && self.is_quiet(*id) && !self.moves.is_wished(*id);
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
        let Some(block) = self.blocks.get(id) else { return };
        let Some(daemon) = self.one_too_many(&block.copies) else { return };
        let Some(block) = self.blocks.get_mut(id) else { return };
        block.copies.leave(daemon);
        if let Some(copy) = block.copies.of_mut(daemon) {
            self.ledger.retire(&mut copy.charge);
        }
        block.news = News::Moved;
        self.renumber_if_due(id);
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

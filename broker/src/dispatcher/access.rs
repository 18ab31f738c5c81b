//! What a session does with its blocks once it has them: delete, list, fetch, map, and ask
//! what changed.
//!
//! # Invariants
//!
//! 1. A session reaches its own blocks and those of the regions that it has open, and no others.
//! 2. Rights are checked at each descriptor.

use std::ops::Range;

use dmce_abi::Status;
use dmce_abi::addr::{AddrParts, DmceAddr};
use dmce_abi::block::{BlockId, Guid, Half, SessionId};
use dmce_abi::limits::SPANS_LISTED;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{
    BlockInfo, Changed, ClientReply, CopyInfo, Delete, Fetch, Granted, Map, Opened, SessionStat,
    SpanKey, SpanList, Unmap,
};

use super::Dispatcher;
use super::action::{Action, Descriptor};
use super::asking::lost;
use super::blocks::{Block, BlockState, Span, SpanOwner, SpanState};
use super::copies::Copy;
use super::event::Rights;
use super::mappings::Mapping;
use super::requests::{Failure, Outcome, Served, refuse};

/// A block that a session reaches.
pub(super) struct Reached<'a> {
    id: BlockId,
    session: SessionId,
    /// The block.
    pub block: &'a Block,
    /// Its span.
    pub span: &'a Span,
    /// What the session may do with it.
    pub rights: Rights,
}

impl Reached<'_> {
    /// What the session is told of it.
    pub(super) fn info(&self, writable: bool) -> BlockInfo {
        let mut good = self.good();
        BlockInfo {
            block: self.id,
            guid: self.block.guid,
            epoch: self.block.epoch,
            committed: self.block.committed,
            bytes_max: self.block.bytes_max,
            span_first: self.block.span,
            span_count: self.span.count,
            page_size: self.span.page_size,
            writable,
            lost: self.block.state == BlockState::Lost,
            copies: std::array::from_fn(|_| good.next()),
            syncing: self.syncing(),
            has_locks: self.has_locks(),
            is_moving: self.block.is_moving,
        }
    }

    /// Its good copies, the primary first: none, if it may not be used.
    fn good(&self) -> impl Iterator<Item = CopyInfo> {
        let is_held = self.block.state == BlockState::Held;
        let named = self.block.copies.named().filter(move |_| is_held);
        named.map(Copy::info)
    }

    /// Another that is written.
    fn syncing(&self) -> Option<CopyInfo> {
        let is_held = self.block.state == BlockState::Held;
        self.block.copies.syncing().filter(|_| is_held).map(Copy::info)
    }

    fn has_locks(&self) -> bool {
        self.block.state == BlockState::Held && self.block.is_locked
    }

    /// What travels with that.
    fn descriptors(&self, writable: bool) -> Vec<Descriptor> {
        let block = self.id;
        let daemons = self.good().chain(self.syncing()).map(|copy| copy.daemon);
        let data = daemons.map(|daemon| Descriptor::Block { daemon, block, writable });
        let locks = self.has_locks().then_some(Descriptor::Locks {
            block,
            writable,
            session: self.session,
        });
        data.chain(locks).collect()
    }
}

impl Dispatcher {
    /// Gives a block or a span back (FIG. 17).
    pub(super) fn delete(&mut self, id: SessionId, delete: Delete) -> Served {
        let Delete { addr, guid } = delete;
        let parts = self.parts(addr)?;
        let first = BlockId::try_from(parts.block).ok().filter(|_| parts.cell == 0);
        if let Some(first) = first.filter(|first| self.is_own(id, *first, delete)) {
            self.delete_span(id, first);
            self.remember_deleted(id, guid);
            return Ok(ClientReply::Done.into());
        }
        // Repeated: this broker did it, or the one before it, which remembers nothing.
        let done = self.sessions.get(id).is_some_and(|s| s.restored || s.deleted.contains(&guid));
        if done && first.is_some() {
            return Ok(ClientReply::Done.into());
        }
        refuse(Status::Address, format!("nothing of guid {guid} begins at {addr:#x}"))
    }

    /// Remembers what a session deleted, as long as it may have missed the answer.
    pub(super) fn remember_deleted(&mut self, id: SessionId, guid: Guid) {
        let limit = self.config.limits.outstanding_max;
        if let Some(session) = self.sessions.get_mut(id) {
            session.remember_deleted(guid, limit);
        }
    }

    /// Ends a span of a session.
    pub(super) fn delete_span(&mut self, id: SessionId, first: BlockId) {
        self.unmap_span(id, first);
        if let Some(session) = self.sessions.get_mut(id) {
            session.spans.remove(&first);
        }
        self.unmake(first);
    }

    /// The spans of a session that stand, but for those that it waited for and has yet to ask for:
    /// it would take them for nobody's. One whose first block is lost is not told: if an earlier
    /// broker granted it, its GUID may be unknown here, and the session could not know it again.
    pub(super) fn span_list(&self, id: SessionId, list: SpanList) -> Outcome {
        let Some(session) = self.sessions.get(id) else { return Outcome::Later };
        let firsts = session.spans.iter().filter(|first| first.get() > list.after);
        let mut stands = firsts.filter_map(|&first| {
            let block = self.blocks.get(first)?;
            let is_known = self.blocks.span(first).is_some_and(|span| !span.unclaimed);
            let is_there = is_known && self.stands(first) && block.is_usable();
            is_there.then_some(SpanKey { first, guid: block.guid })
        });
        let spans = stands.by_ref().take(SPANS_LISTED).collect();
        ClientReply::Spans { spans, more: stands.next().is_some() }.into()
    }

    /// A descriptor of a block.
    pub(super) fn fetch(&mut self, session: SessionId, fetch: Fetch) -> Served {
        let reached = self.reach(session, fetch.block)?;
        if fetch.writable && !reached.rights.write {
            let text = format!("block {} is open for reading alone", fetch.block);
            return refuse(Status::Denied, text);
        }
        let descriptors = reached.descriptors(fetch.writable);
        let reply = ClientReply::Fetched(reached.info(fetch.writable));
        Ok(Outcome::Reply(Box::new(reply), descriptors))
    }

    /// The answer to the Malloc that made a span.
    pub(super) fn granted(&self, first: BlockId) -> Option<(ClientReply, Vec<Descriptor>)> {
        let span = self.blocks.span(first)?;
        let block = self.blocks.get(first)?;
        let last = self.blocks.get(first.checked_add(span.count - 1).ok()?)?;
        let SpanOwner::Session(session) = span.owner else { return None };
        let reached = Reached { id: first, session, block, span, rights: Rights::ALL };
        let granted = Granted { first: reached.info(true), last_committed: last.committed };
        Some((ClientReply::Granted(granted), reached.descriptors(true)))
    }

    /// What who opens a region is told, and the first block's descriptors.
    pub(super) fn opened(
        &self,
        session: SessionId,
        first: BlockId,
        writable: bool,
    ) -> Option<(Opened, Vec<Descriptor>)> {
        let region = &self.regions.get(first)?.attributes;
        let reached = self.reach(session, first).ok()?;
        let daemon = |half| {
            let copy = reached.good().find(|copy| copy.half == half);
            copy.map_or(0, |copy| copy.daemon.get())
        };
        let opened = Opened {
            first: reached.info(writable),
            guid: reached.span.guid,
            region_size: region.region_size,
            base_pointer: region.base_pointer,
            copies: region.copies,
            primary_daemon: daemon(Half::PRIMARY),
            mirror_daemon: daemon(Half::MIRROR),
        };
        Some((opened, reached.descriptors(writable)))
    }

    /// An entry of the OS-to-DMCE table.
    pub(super) fn map(&mut self, session: SessionId, map: Map) -> Served {
        let Map { addr, bytes, os_address, writable } = map;
        let parts = self.parts(addr)?;
        let block = BlockId::try_from(parts.block).map_err(|_| illegal(addr))?;
        let reached = self.reach(session, block)?;
        let full = self.config.layout.block_bytes();
        let before = u64::from(block.get() - reached.block.span.get()) * full;
        let last = reached.block.span.checked_add(reached.span.count - 1);
        let last = last.ok().and_then(|last| self.blocks.get(last));
        let end = u64::from(reached.span.count - 1) * full + last.map_or(0, |last| last.bytes_max);
        if before + parts.cell + bytes > end || (writable && !reached.rights.write) {
            return Err(illegal(addr).into());
        }
        let limit = self.config.limits.mappings_max;
        let mapping = Mapping { addr, bytes, os_address, writable };
        let Some(session) = self.sessions.get_mut(session) else { return Ok(Outcome::Later) };
        let added = session.mappings.add(mapping, limit);
        added.map_err(|full| Refusal::new(Status::NoSpace, full.to_string()))?;
        Ok(ClientReply::Done.into())
    }

    /// Takes an entry of the OS-to-DMCE table back.
    pub(super) fn unmap(&mut self, session: SessionId, unmap: Unmap) -> Served {
        let session = self.sessions.get_mut(session);
        // It may have held a block back.
        self.moves.is_due = true;
        if session.is_some_and(|session| session.mappings.remove(unmap.os_address)) {
            return Ok(ClientReply::Done.into());
        }
        refuse(Status::NotFound, format!("nothing is mapped at {:#x}", unmap.os_address))
    }

    /// Takes the entries out that a session has of a span.
    pub(super) fn unmap_span(&mut self, session: SessionId, first: BlockId) {
        let Some(count) = self.blocks.span(first).map(|span| span.count) else { return };
        let start = self.address(first);
        let end = start + u64::from(count) * self.config.layout.block_bytes();
        if let Some(session) = self.sessions.get_mut(session) {
            session.mappings.remove_range(start..end);
        }
    }

    /// What became of the session's blocks. Who is told of a span's end does not hold up its ids.
    pub(super) fn changes(&mut self, id: SessionId, since: u64) -> Outcome {
        let Some(session) = self.sessions.get_mut(id) else { return Outcome::Later };
        let changed: Changed = session.changes.tell(since);
        for first in std::mem::take(&mut session.untold) {
            self.told(id, first);
        }
        ClientReply::Changed(changed).into()
    }

    /// A session cannot read a block: its object is looked at.
    pub(super) fn damaged(&mut self, session: SessionId, id: BlockId) -> Served {
        let copies = self.reach(session, id)?.block.copies.iter();
        let daemons: Vec<_> = copies.map(|copy| copy.daemon).collect();
        for daemon in daemons {
            self.inspect(daemon, vec![id]);
        }
        if self.blocks.get(id).is_some_and(|block| block.locks.is_some()) {
            self.out.push(Action::InspectLocks { block: id });
        }
        Ok(ClientReply::Done.into())
    }

    /// What a session holds.
    pub(super) fn stat(&self, id: SessionId) -> Outcome {
        let Some(session) = self.sessions.get(id) else { return Outcome::Later };
        let account = self.ledger.account(session.account).cloned().unwrap_or_default();
        let stat = SessionStat {
            reserved: self.reserved(session),
            committed: account.bytes,
            blocks: account.blocks,
            quota: self.ledger.quota(session.record.uid).bytes,
        };
        ClientReply::Stat(stat).into()
    }

    /// The first address of a block of this server.
    pub(super) fn address(&self, block: BlockId) -> u64 {
        u64::from(block.get()) << self.config.layout.cell_bits()
    }

    /// The addresses of a block of this server.
    pub(super) fn addresses(&self, block: BlockId) -> Range<u64> {
        let start = self.address(block);
        start..start.saturating_add(self.config.layout.block_bytes())
    }

    /// The fields of an address of this server.
    ///
    /// # Errors
    ///
    /// `ADDRESS` for a reserved one, or another server's.
    pub(super) fn parts(&self, addr: u64) -> Result<AddrParts, Refusal> {
        let layout = self.config.layout;
        let parts = DmceAddr::from_raw(layout, addr).map_err(|_| illegal(addr))?.unpack(layout);
        if parts.server == 0 { Ok(parts) } else { Err(illegal(addr)) }
    }

    /// A block that a session may use.
    pub(super) fn reach(&self, session: SessionId, id: BlockId) -> Result<Reached<'_>, Failure> {
        let reached = self.blocks.get(id).and_then(|block| {
            let span = self.blocks.span(block.span)?;
            let stands = span.state == SpanState::Standing;
            let rights = match span.owner {
                SpanOwner::Session(owner) if owner == session => Rights::ALL,
                SpanOwner::Session(_) => Rights::default(),
                SpanOwner::Region => self.sessions.get(session)?.opens.rights(block.span),
            };
            (stands && rights.any()).then_some(Reached { id, session, block, span, rights })
        });
        if let Some(reached) = reached {
            let is_losing = reached.block.state == BlockState::Losing;
            return if is_losing { Err(Failure::Unsettled) } else { Ok(reached) };
        }
        // The broker before this one may have granted a block whose objects went with it: only the
        // session knows of it now.
        let restored = self.sessions.get(session).is_some_and(|session| session.restored);
        if restored && self.blocks.span_at(id).is_none() {
            return Err(lost(id).into());
        }
        refuse(Status::Address, format!("the session has no block {id}"))
    }

    fn is_own(&self, session: SessionId, first: BlockId, delete: Delete) -> bool {
        let Some(span) = self.blocks.span(first) else { return false };
        let guid = self.blocks.get(first).map(|block| block.guid);
        span.owner == SpanOwner::Session(session)
            && span.state == SpanState::Standing
            && (span.guid == delete.guid || guid == Some(delete.guid))
    }
}

fn illegal(addr: u64) -> Refusal {
    Refusal::new(Status::Address, format!("{addr:#x} is not the session's"))
}

//! What the administrator's command is shown.
//!
//! # Invariants
//!
//! 1. Root and the service's user see everything. Others see counts, daemons, and what is theirs;
//!    of regions, those that they have a right on.
//! 2. A page fits a frame: it ends before its rows could be too long.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::wire::admin::{
    AdminReply, AdminRequest, BlockRow, BlockState as RowState, CopyRow, CopyState as RowCopyState,
    DaemonRow, Health, Holder, Location, MappedRow, MappingRow, OwnerRow, RegionRow, Repair,
    SessionRow, StatusReport,
};
use dmce_abi::wire::client::{ClientReply, RegionName};

use super::Dispatcher;
use super::blocks::{Block, BlockState, SpanOwner, SpanState};
use super::clients::ReplyTo;
use super::copies::CopyState;
use super::daemons::Server;
use super::event::Peer;
use super::regions::{Caller, RegionEntry, may_know};
use super::requests::{Outcome, Served, refuse};
use super::sessions::{Session, SessionLink};

/// Bytes of rows on one page, with room for what stands around them in a frame.
const PAGE_BYTES_MAX: usize = 60_000;

/// Bytes of any row without its texts, at most.
const ROW_BYTES: usize = 128;

/// Mappings of one byte that are shown.
const MAPPINGS_MAX: usize = 1000;

impl Dispatcher {
    pub(super) fn admin(&self, to: ReplyTo, request: &AdminRequest) -> Served {
        let Some(client) = self.clients.get(&to.conn) else { return Ok(Outcome::Later) };
        let peer = &client.peer;
        let reply = match request {
            AdminRequest::Status => AdminReply::Status(self.status()),
            AdminRequest::Daemons { after } => {
                let later = self.daemons.servers.iter().filter(|(id, _)| id.get() > *after);
                let rows = later.map(|(id, server)| self.daemon_row(*id, server));
                let (rows, more) = page(rows, |_| 0);
                AdminReply::Daemons { rows, more }
            }
            AdminRequest::Blocks { after } => {
                let (rows, more) = page(self.blocks_after(peer, *after), block_text);
                AdminReply::Blocks { rows, more }
            }
            AdminRequest::Sessions { after } => {
                let uid = (!self.sees_all(peer)).then_some(peer.uid);
                let open = |s: &&Session| !matches!(s.link, SessionLink::Opening(_));
                let sessions = self.sessions.after(*after, uid).filter(open);
                let rows = sessions.map(|session| self.session_row(session));
                let (rows, more) = page(rows, |row| row.name.len());
                AdminReply::Sessions { rows, more }
            }
            AdminRequest::Regions { after } => {
                let (rows, more) =
                    page(self.regions_after(peer, after), |row| name_bytes(&row.region));
                AdminReply::Regions { rows, more }
            }
            AdminRequest::WhereIs { addr } => return self.where_is(peer, *addr),
            AdminRequest::Usage { after } => {
                let (rows, more) = page(self.usage_after(*after), |_| 0);
                AdminReply::Usage { rows, more }
            }
            AdminRequest::Mappings { addr, session, after } => {
                let (rows, more) = page(self.mapped(peer, (*addr, *session), *after)?, mapped_text);
                AdminReply::Mappings { rows, more }
            }
            _ => return refuse(Status::Unsupported, "this broker does not know the listing"),
        };
        Ok(ClientReply::Admin(reply).into())
    }

    pub(super) fn sees_all(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.config.service_uid
    }

    fn status(&self) -> StatusReport {
        let servers = &self.daemons.servers;
        let stores = servers.keys().map(|&daemon| self.ledger.store(daemon));
        let (mut capacity, mut committed, mut reserved) = (0, 0, 0);
        for store in stores {
            capacity += store.capacity;
            committed += store.committed;
            reserved += store.reserved;
        }
        let up = servers.values().filter(|server| server.is_up()).count();
        // One that was drained may have been stopped for good.
        let is_out = |server: &Server| server.is_draining && server.blocks.is_empty();
        let is_missed = servers.values().any(|server| !server.is_up() && !is_out(server));
        let strange = self.regions.nameless() > 0 || !self.restart.quarantined.is_empty();
        let state = if self.blocks.lost > 0 || strange {
            Health::Damaged
        } else if is_missed || self.blocks.has_degraded() {
            Health::Degraded
        } else {
            Health::Ok
        };
        StatusReport {
            instance: self.config.instance.as_str().to_owned(),
            layout: self.config.layout.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: self.config.pid,
            daemons: count(servers.len()),
            daemons_up: count(up),
            sessions: count(self.sessions.len()),
            blocks: count(self.blocks.len()),
            regions: count(self.regions.len()),
            capacity,
            committed,
            reserved,
            state,
            repair: self.repair(),
            scrub: self.scrub_report(),
        }
    }

    /// What is being made again.
    fn repair(&self) -> Repair {
        let mut repair = Repair {
            syncing: count(self.syncs.len()),
            rate: self.syncs.pace.rate(self.now.millis),
            ..Repair::default()
        };
        for id in self.blocks.degraded_from(None) {
            let Some(block) = self.blocks.get(id) else { continue };
            let asked = self.blocks.span(block.span).map_or(0, |span| span.copies as usize);
            let missing = asked.saturating_sub(block.copies.named().count()) as u64;
            repair.lacking += 1;
            // Of one of them it may have some bytes.
            repair.left += missing.saturating_sub(1).saturating_mul(block.committed);
            repair.left += self.syncs.left(id, block.committed);
        }
        repair
    }

    fn daemon_row(&self, id: DaemonId, server: &Server) -> DaemonRow {
        let store = self.ledger.store(id);
        DaemonRow {
            daemon: id.get(),
            state: server.state(),
            pid: server.pid,
            capacity: store.capacity,
            committed: store.committed,
            reserved: store.reserved,
            pool: server.pool,
            blocks: count(server.blocks.len()),
            is_draining: server.is_draining,
        }
    }

    fn blocks_after<'a>(
        &'a self,
        peer: &Peer,
        after: u32,
    ) -> Box<dyn Iterator<Item = BlockRow> + 'a> {
        let Ok(from) = BlockId::try_from(after.saturating_add(1)) else {
            return Box::new(std::iter::empty());
        };
        if self.sees_all(peer) {
            return Box::new(self.blocks.from(from).filter_map(|(id, b)| self.block_row(id, b)));
        }
        let spans = self.blocks.spans_of(peer.uid, from);
        let own = spans.flat_map(|first| self.blocks.members(first)).filter(move |id| *id >= from);
        Box::new(own.filter_map(|id| self.block_row(id, self.blocks.get(id)?)))
    }

    /// The row of a block that may be used, or is lost.
    fn block_row(&self, id: BlockId, block: &Block) -> Option<BlockRow> {
        let span = self.blocks.span(block.span)?;
        let state = match block.state {
            BlockState::Held if self.blocks.is_degraded(id, 1) => RowState::Degraded,
            BlockState::Held => RowState::Ok,
            BlockState::Losing => RowState::Degraded,
            BlockState::Lost => RowState::Lost,
            BlockState::Making | BlockState::Going => return None,
        };
        let owner = match span.owner {
            SpanOwner::Session(session) => OwnerRow::Session {
                session: session.get(),
                pid: self.sessions.get(session).map_or(0, |session| session.record.pid),
                uid: span.uid,
            },
            SpanOwner::Region => {
                let region = self.regions.get(block.span).map(RegionEntry::name);
                OwnerRow::Region { region: region?, uid: span.uid }
            }
        };
        let copies = block.copies.iter().filter_map(|copy| {
            let state = match copy.state {
                CopyState::Held => RowCopyState::Good,
                CopyState::Lost => RowCopyState::Lost,
                CopyState::Stale => RowCopyState::Stale,
                CopyState::Planned | CopyState::Asked | CopyState::Syncing => RowCopyState::Syncing,
                CopyState::Leaving | CopyState::Doomed | CopyState::Dying => return None,
            };
            Some(CopyRow { daemon: copy.daemon.get(), state, half: copy.half })
        });
        let left = block.copies.syncing().map_or(0, |_| self.syncs.left(id, block.committed));
        (span.state == SpanState::Standing).then(|| BlockRow {
            block: id.get(),
            guid: block.guid,
            bytes: block.bytes_max,
            committed: block.committed,
            page_size: span.page_size,
            epoch: block.epoch,
            owner,
            state,
            copies: copies.collect(),
            span_first: block.span.get(),
            span_count: span.count,
            left,
            held_by: self.holders_back(id),
        })
    }

    fn session_row(&self, session: &Session) -> SessionRow {
        let account = self.ledger.account(session.account).cloned().unwrap_or_default();
        let record = &session.record;
        SessionRow {
            session: record.session.get(),
            pid: record.pid,
            uid: record.uid,
            name: record.name.clone(),
            pointer_bits: record.pointer_bits,
            attached: matches!(session.link, SessionLink::Attached(_)),
            reserved: self.reserved(session),
            committed: account.bytes,
            blocks: u32::try_from(account.blocks).unwrap_or(u32::MAX),
            regions: count(session.opens.len()),
        }
    }

    fn regions_after<'a>(
        &'a self,
        peer: &'a Peer,
        after: &'a RegionName,
    ) -> impl Iterator<Item = RegionRow> + 'a {
        let caller = Caller { uid: peer.uid, gid: peer.gid, groups: &peer.groups };
        let all = self.sees_all(peer);
        let known = self.regions.after(after).filter(move |(first, region)| {
            self.stands(*first) && (all || may_know(&region.attributes, caller))
        });
        known.filter_map(|(first, region)| self.region_row(first, region))
    }

    fn region_row(&self, first: BlockId, region: &RegionEntry) -> Option<RegionRow> {
        let span = self.blocks.span(first)?;
        let attributes = &region.attributes;
        Some(RegionRow {
            region: region.name(),
            region_size: attributes.region_size,
            base_pointer: attributes.base_pointer,
            uid: attributes.uid,
            gid: attributes.gid,
            mode: attributes.mode,
            copies: attributes.copies,
            page_size: span.page_size,
            created_at: attributes.created_at,
            opens: count(region.opens.len()),
            first: self.address(first),
            state: match span.lost {
                0 if self.blocks.is_degraded(first, span.count) => RowState::Degraded,
                0 => RowState::Ok,
                _ => RowState::Lost,
            },
        })
    }

    fn where_is(&self, peer: &Peer, addr: u64) -> Served {
        let parts = self.parts(addr)?;
        let found = BlockId::try_from(parts.block).ok().and_then(|id| {
            let block = self.blocks.get(id)?;
            let span = self.blocks.span(block.span)?;
            let visible = self.sees_all(peer) || span.uid == peer.uid;
            Some((block.span, self.block_row(id, block).filter(|_| visible)?))
        });
        let Some((first, block)) = found else {
            return refuse(Status::Address, format!("no block of yours has {addr:#x}"));
        };
        let start = self.address(first);
        let holders = self.holders(first).into_iter().filter_map(|id| self.sessions.get(id));
        let mappings = holders.flat_map(|session| {
            session.mappings.find(start, addr).map(|mapping| MappingRow {
                session: session.record.session.get(),
                pid: session.record.pid,
                os_address: mapping.os_address + (addr - mapping.addr),
                writable: mapping.writable,
            })
        });
        let mappings = mappings.take(MAPPINGS_MAX).collect();
        let location = Location { server: parts.server, cell: parts.cell, block, mappings };
        Ok(ClientReply::Admin(AdminReply::WhereIs(location)).into())
    }
}

/// As many rows as fit, and whether others follow. `text` is the bytes of a row's texts.
fn page<R>(rows: impl Iterator<Item = R>, text: impl Fn(&R) -> usize) -> (Vec<R>, bool) {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for row in rows {
        bytes += ROW_BYTES + text(&row);
        if bytes > PAGE_BYTES_MAX {
            return (taken, true);
        }
        taken.push(row);
    }
    (taken, false)
}

fn block_text(row: &BlockRow) -> usize {
    let name = match &row.owner {
        OwnerRow::Region { region, .. } => name_bytes(region),
        OwnerRow::Session { .. } => 0,
    };
    name + row.held_by.len() * size_of::<Holder>()
}

fn mapped_text(row: &MappedRow) -> usize {
    row.name.len()
}

fn name_bytes(name: &RegionName) -> usize {
    name.volume.len() + name.name.len()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmce_abi::block::{Guid, Half};
    use dmce_abi::limits::{
        FRAME_BYTES_MAX, REGION_BYTES_MAX, SESSION_NAME_BYTES_MAX, VOLUME_BYTES_MAX,
    };
    use dmce_abi::wire::admin::{HOLDERS_MAX, HeldBy, MappingKey};
    use dmce_abi::wire::{FrameHeader, Reply, encode};

    fn largest_name() -> RegionName {
        RegionName { volume: "v".repeat(VOLUME_BYTES_MAX), name: "n".repeat(REGION_BYTES_MAX) }
    }

    fn largest_block(region: RegionName) -> BlockRow {
        let holder = Holder { session: u32::MAX, pid: u32::MAX, by: HeldBy::Remains };
        BlockRow {
            block: u32::MAX,
            guid: Guid([0xff; 16]),
            bytes: u64::MAX,
            committed: u64::MAX,
            page_size: u32::MAX,
            epoch: u64::MAX,
            owner: OwnerRow::Region { region, uid: u32::MAX },
            state: RowState::Lost,
            copies: vec![
                CopyRow { daemon: u32::MAX, state: RowCopyState::Lost, half: Half::MIRROR };
                3
            ],
            span_first: u32::MAX,
            span_count: u32::MAX,
            left: u64::MAX,
            held_by: vec![holder; HOLDERS_MAX],
        }
    }

    fn encoded(reply: AdminReply) -> usize {
        let reply: Reply<ClientReply> = Ok(ClientReply::Admin(reply));
        encode(FrameHeader { request: u64::MAX, fds: 0 }, &reply).unwrap().len()
    }

    #[test]
    fn the_fullest_page_fits_a_frame() {
        let no_name = RegionName { volume: String::new(), name: String::new() };
        for name in [largest_name(), no_name] {
            let (rows, more) = page(std::iter::repeat(largest_block(name.clone())), block_text);
            assert!(more && encoded(AdminReply::Blocks { rows, more }) < FRAME_BYTES_MAX);

            let row = RegionRow {
                region: name,
                region_size: u64::MAX,
                base_pointer: u64::MAX,
                uid: u32::MAX,
                gid: u32::MAX,
                mode: u32::MAX,
                copies: u32::MAX,
                page_size: u32::MAX,
                created_at: u64::MAX,
                opens: u32::MAX,
                first: u64::MAX,
                state: RowState::Lost,
            };
            let (rows, more) = page(std::iter::repeat(row), |row| name_bytes(&row.region));
            assert!(more && encoded(AdminReply::Regions { rows, more }) < FRAME_BYTES_MAX);
        }
    }

    #[test]
    fn the_fullest_page_of_mappings_fits_a_frame() {
        for bytes in [0, SESSION_NAME_BYTES_MAX] {
            let row = MappedRow {
                key: MappingKey { session: u32::MAX, os_address: u64::MAX },
                pid: u32::MAX,
                uid: u32::MAX,
                name: "n".repeat(bytes),
                addr: u64::MAX,
                bytes: u64::MAX,
                writable: true,
            };
            let (rows, more) = page(std::iter::repeat(row), mapped_text);
            assert!(more && encoded(AdminReply::Mappings { rows, more }) < FRAME_BYTES_MAX);
        }
    }

    #[test]
    fn all_mappings_that_are_shown_of_a_byte_fit_a_frame() {
        let row =
            MappingRow { session: u32::MAX, pid: u32::MAX, os_address: u64::MAX, writable: true };
        let location = Location {
            server: 0,
            cell: u64::MAX,
            block: largest_block(largest_name()),
            mappings: vec![row; MAPPINGS_MAX],
        };
        assert!(encoded(AdminReply::WhereIs(location)) < FRAME_BYTES_MAX);
    }
}

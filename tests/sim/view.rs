//! What a client knows of its session, and whether an answer fits it.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::limits::EVENTS_QUEUED;
use dmce_abi::wire::client::{
    BlockInfo, Changed, ClientReply, ClientRequest, Granted, MallocWith, Opened, OpeningId,
    Reached, RegionKey, RegionOpen,
};
use dmce_abi::wire::data::LinkId;

/// A span of the client's own.
#[derive(Clone, Copy, Debug)]
pub struct OwnSpan {
    /// What a delete must show.
    pub guid: Guid,
    /// Blocks.
    pub count: u32,
    /// Bytes of the first block that it may use.
    pub committed: u64,
}

/// An opening of a region that the client was told of.
#[derive(Clone, Copy, Debug)]
pub struct OpenRegion {
    /// The region's first block.
    pub first: BlockId,
    /// Blocks.
    pub count: u32,
    /// The region's GUID.
    pub guid: Guid,
    /// What was asked for.
    pub read: bool,
    /// What was asked for.
    pub write: bool,
}

/// What a client knows of its session.
#[derive(Clone, Debug)]
pub struct View {
    /// Its session.
    pub session: SessionId,
    /// The secret that attaches to it.
    pub guid: Guid,
    /// Its own spans, by first block.
    pub spans: BTreeMap<BlockId, OwnSpan>,
    /// What it has open.
    pub openings: BTreeMap<OpeningId, OpenRegion>,
    /// Regions that it found or opened once, by their GUID.
    pub keys: BTreeMap<Guid, RegionKey>,
    /// Regions whose deletion it has to ask for again.
    pub not_yet: Vec<RegionKey>,
    /// Links that it was told of.
    pub links: BTreeSet<LinkId>,
    /// OS addresses that it has mapped.
    pub mapped: BTreeSet<u64>,
    /// The generation that it has heard of.
    pub generation: u64,
    /// The last number that it used for a ticket or an opening.
    pub ticket: u64,
    /// Requests whose answer it missed and that it repeats.
    pub again: Vec<ClientRequest>,
    /// What waits for room at the broker, by ticket.
    pub waiting: BTreeMap<u64, MallocWith>,
    /// Blocks that it has mapped to write to all copies.
    pub reach: BTreeMap<BlockId, Reach>,
    /// Whether it could not bring a write to its end: nothing begins any more.
    pub has_given_up: bool,
}

/// A block with several copies, as it was mapped.
#[derive(Clone, Debug)]
pub struct Reach {
    /// Its GUID.
    pub guid: Guid,
    /// The daemons of its good copies, the primary's first.
    pub copies: Vec<DaemonId>,
    /// Whose is syncing.
    pub syncing: Option<DaemonId>,
    /// Its lock table, if who writes it locks its pages.
    pub table: Option<u64>,
}

impl Reach {
    /// The daemon whose copy is written in a place.
    pub fn written(&self, place: usize) -> Option<DaemonId> {
        self.copies.iter().copied().chain(self.syncing).nth(place)
    }

    /// A copy is written no more.
    pub fn leave_out(&mut self, daemon: DaemonId) {
        self.copies.retain(|of| *of != daemon);
        self.syncing.take_if(|of| *of == daemon);
    }
}

/// What the world knows when a client reads.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Ids of blocks of which nothing is left that was not harmed.
    pub harmed_ids: &'a BTreeSet<BlockId>,
    /// Ids of blocks of which some object was harmed: it may be met before the broker knows.
    pub touched_ids: &'a BTreeSet<BlockId>,
    /// Sessions that ended, for a reason.
    pub ended: &'a BTreeSet<Guid>,
}

impl View {
    /// A block was opened, with its lock table if it has one.
    pub fn mapped_copies(&mut self, info: &BlockInfo, table: Option<u64>) {
        let (guid, copies) = (info.guid, info.good().map(|copy| copy.daemon).collect());
        let syncing = info.syncing.map(|copy| copy.daemon);
        if info.writable && !info.lost && info.has_locks == table.is_some() {
            self.reach.insert(info.block, Reach { guid, copies, syncing, table });
        }
    }

    /// Whether a fetch of a block to read must succeed.
    pub fn may_read(&self, block: BlockId, harmed: &BTreeSet<BlockId>) -> bool {
        let home = self.spans.range(..=block).next_back();
        let home = home.map(|(first, span)| members(*first, span.count).collect::<BTreeSet<_>>());
        home.is_some_and(|home| home.contains(&block) && home.is_disjoint(harmed))
    }

    /// Takes in an answer, if it fits what was asked and what is known.
    pub fn answered(
        &mut self,
        request: &ClientRequest,
        reply: ClientReply,
        known: &Known<'_>,
    ) -> Result<(), String> {
        match (request, reply) {
            (ClientRequest::Malloc(_), ClientReply::Granted(granted)) => self.granted(granted),
            (ClientRequest::MallocWith(with), ClientReply::Granted(granted)) => {
                self.waiting.remove(&with.malloc.ticket);
                self.granted(granted)
            }
            (ClientRequest::MallocWith(with), ClientReply::Queued) if with.wait_ms.is_some() => {
                self.waiting.insert(with.malloc.ticket, *with);
                Ok(())
            }
            (ClientRequest::Policies, ClientReply::Policies(table))
                if table.len() as u64 == crate::asking::POLICIES =>
            {
                Ok(())
            }
            (ClientRequest::Events, ClientReply::Events(events))
                if events.len() <= EVENTS_QUEUED =>
            {
                Ok(())
            }
            (ClientRequest::Grow(grow), ClientReply::Grown { committed }) => {
                if committed < grow.committed {
                    return Err(format!("has {committed} bytes"));
                }
                if let Some(span) = self.spans.get_mut(&grow.block) {
                    span.committed = span.committed.max(committed);
                }
                Ok(())
            }
            (ClientRequest::Fetch(fetch), ClientReply::Fetched(info)) => {
                self.fetched(fetch.block, info, known)
            }
            (ClientRequest::Reach(reach), ClientReply::Reached(Reached { info, link })) => {
                if info.block != reach.block || (!reach.direct && link.0 != 0) {
                    return Err(format!("was answered {info:?} by {link:?}"));
                }
                self.links.extend((link.0 != 0).then_some(link));
                Ok(())
            }
            (ClientRequest::Data(asked), ClientReply::Data(reply)) if asked.fits(&reply) => Ok(()),
            (ClientRequest::Map(map), ClientReply::Done) => {
                self.mapped.insert(map.os_address);
                Ok(())
            }
            (ClientRequest::Unmap(unmap), ClientReply::Done) => {
                self.mapped.remove(&unmap.os_address);
                Ok(())
            }
            (ClientRequest::Changes(_), ClientReply::Changed(changed)) => {
                self.changed(&changed);
                Ok(())
            }
            (ClientRequest::RegionOpen(open), ClientReply::Opened(opened)) => {
                self.opened(opened, open);
                Ok(())
            }
            (ClientRequest::RegionFind(_), ClientReply::Found(key)) => {
                self.keys.insert(key.guid, key);
                Ok(())
            }
            (ClientRequest::RegionDelete(key), ClientReply::Done) => {
                // The broker does not remember for ever who deleted it.
                self.keys.remove(&key.guid);
                self.openings.retain(|_, region| region.guid != key.guid);
                Ok(())
            }
            (ClientRequest::RegionDelete(key), ClientReply::NotYet { begun, .. }) => {
                if begun {
                    self.openings.retain(|_, region| region.guid != key.guid);
                }
                self.not_yet.push(*key);
                Ok(())
            }
            (
                ClientRequest::Abandon(_)
                | ClientRequest::Delete(_)
                | ClientRequest::Damaged(_)
                | ClientRequest::RegionCreate(_)
                | ClientRequest::RegionClose(_),
                ClientReply::Done,
            )
            | (ClientRequest::Stat, ClientReply::Stat(_))
            | (ClientRequest::RegionList(_), ClientReply::Names { .. })
            | (ClientRequest::Admin(_), ClientReply::Admin(_)) => Ok(()),
            (_, reply) => Err(format!("was answered {reply:?}")),
        }
    }

    fn granted(&mut self, granted: Granted) -> Result<(), String> {
        let BlockInfo { block, guid, committed, span_first, span_count, lost, .. } = granted.first;
        if block != span_first || lost {
            return Err(format!("was granted {granted:?}"));
        }
        self.spans.insert(block, OwnSpan { guid, count: span_count, committed });
        Ok(())
    }

    fn fetched(&self, asked: BlockId, info: BlockInfo, known: &Known<'_>) -> Result<(), String> {
        if info.block != asked {
            return Err(format!("was given block {}", info.block));
        }
        // Of a block that went while there was no broker, the next knows neither its GUID nor its
        // length, and its id may be another's by now: the client must look.
        if known.harmed_ids.contains(&asked) || known.ended.contains(&self.guid) {
            return Ok(());
        }
        // Of what was being deleted, the copy may be left that was harmed (`World::check_tables`).
        if info.lost && known.touched_ids.contains(&asked) {
            return Ok(());
        }
        if info.lost {
            return Err("is called lost, and nobody touched it".to_owned());
        }
        let own = self.spans.get(&asked);
        if let Some(span) = own.filter(|span| span.guid != info.guid) {
            return Err(format!("has guid {} and not {}", info.guid, span.guid));
        }
        match own {
            // What was cut while there was no broker is not told from what was not grown.
            Some(_) if known.touched_ids.contains(&asked) => Ok(()),
            Some(span) if info.committed < span.committed => {
                Err(format!("has {} bytes of {}", info.committed, span.committed))
            }
            _ => Ok(()),
        }
    }

    fn opened(&mut self, opened: Opened, open: &RegionOpen) {
        let Opened { first: BlockInfo { block: first, span_count: count, .. }, guid, .. } = opened;
        let RegionOpen { opening, read, write, .. } = *open;
        self.keys.insert(guid, RegionKey { first, guid });
        self.openings.insert(opening, OpenRegion { first, count, guid, read, write });
    }

    /// A region of which a block is named may be gone; one that is not will fail when it is used.
    fn changed(&mut self, changed: &Changed) {
        self.generation = changed.upto;
        self.reach.retain(|block, _| !changed.all && !changed.blocks.contains(block));
    }
}

/// The blocks of a span.
pub fn members(first: BlockId, count: u32) -> impl Iterator<Item = BlockId> {
    (0..count).filter_map(move |place| first.checked_add(place).ok())
}

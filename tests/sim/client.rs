//! A client as a model: knows what it was told, asks for whatever it likes, and checks each answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::limits::EVENTS_QUEUED;
use dmce_abi::wire::client::{
    Abandon, Attach, BlockInfo, Changed, ClientReply, ClientRequest, Delete, Granted, MallocWith,
    Opened, Opening, OpeningId, Reached, Ready, RegionKey, RegionOpen, SpanKey, SpanList,
};
use dmce_abi::wire::data::LinkId;
use dmce_abi::wire::{Refusal, Reply};
use dmce_broker::dispatcher::{ClientConn, Peer, RequestId};

use crate::random::Random;

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
}

/// What the world knows when a client reads.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Ids of blocks whose objects were harmed.
    pub harmed_ids: &'a BTreeSet<BlockId>,
    /// Sessions that ended, for a reason.
    pub ended: &'a BTreeSet<Guid>,
}

/// What arrives over a connection.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// An answer.
    Reply(RequestId, Reply<ClientReply>),
    /// The doorbell.
    Ring,
    /// The end.
    Closed,
}

/// One client process.
#[derive(Debug)]
pub struct Client {
    /// Who it is.
    pub peer: Peer,
    /// Whether it lives.
    pub alive: bool,
    /// Whether it is stopped.
    pub stopped: bool,
    /// Its connection, as it knows it.
    pub conn: Option<ClientConn>,
    /// What it has not read yet, of whichever connection.
    pub inbox: VecDeque<(ClientConn, Arrival)>,
    /// What the broker has not read yet.
    pub outbox: VecDeque<(RequestId, ClientRequest)>,
    /// Requests without an answer.
    pub pending: BTreeMap<RequestId, ClientRequest>,
    /// Requests whose answer it does not wait for any more.
    pub given_up: BTreeMap<RequestId, ClientRequest>,
    /// Its session.
    pub view: Option<View>,
    /// Whether the broker has a reason to end its session.
    pub excused: bool,
    /// Tickets of the requests that were asked, and may wait, when the doorbell rang last.
    rung: BTreeSet<u64>,
    /// Width of a cell.
    cell_bits: u8,
    last_request: u64,
}

impl Client {
    /// A process without a connection, in an instance with cells of that width.
    pub fn new(peer: Peer, cell_bits: u8) -> Self {
        Self {
            peer,
            alive: true,
            stopped: false,
            conn: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            pending: BTreeMap::new(),
            given_up: BTreeMap::new(),
            view: None,
            excused: false,
            rung: BTreeSet::new(),
            cell_bits,
            last_request: 0,
        }
    }

    /// Sends a request.
    pub fn ask(&mut self, request: ClientRequest) {
        self.last_request += 1;
        let number = RequestId(self.last_request);
        self.note_asked(&request);
        self.pending.insert(number, request.clone());
        self.outbox.push_back((number, request));
    }

    /// Begins on a new connection: takes its session up again, if it has one.
    pub fn begin(&mut self, conn: ClientConn) {
        self.conn = Some(conn);
        if let Some(view) = &self.view {
            let (session, guid) = (view.session, view.guid);
            let told = |(&opening, region): (&OpeningId, &OpenRegion)| {
                let OpenRegion { first, read, write, .. } = *region;
                Opening { opening, first, read, write }
            };
            let openings = view.openings.iter().map(told).collect();
            self.ask(ClientRequest::Attach(Attach { session, guid, openings }));
        }
    }

    /// Stops to wait for some answer, and has undone what may have been done.
    pub fn give_up(&mut self, random: &mut Random) {
        let can_be = |request: &ClientRequest| {
            matches!(
                request,
                ClientRequest::Malloc(_)
                    | ClientRequest::MallocWith(_)
                    | ClientRequest::RegionCreate(_)
                    | ClientRequest::RegionOpen(_)
                    | ClientRequest::RegionDelete(_)
            )
        };
        let able = self.pending.iter().filter(|(_, request)| can_be(request));
        let Some(number) = random.pick(able.map(|(number, _)| *number)) else { return };
        let Some(request) = self.pending.remove(&number) else { return };
        match &request {
            ClientRequest::Malloc(malloc) => {
                self.ask(ClientRequest::Abandon(Abandon { ticket: malloc.ticket }));
            }
            ClientRequest::MallocWith(with) => {
                let ticket = with.malloc.ticket;
                self.stop_waiting(ticket);
                self.ask(ClientRequest::Abandon(Abandon { ticket }));
            }
            ClientRequest::RegionCreate(create) => {
                self.ask(ClientRequest::Abandon(Abandon { ticket: create.ticket }));
            }
            ClientRequest::RegionOpen(open) => {
                self.ask(ClientRequest::RegionClose(open.opening));
            }
            _ => {}
        }
        self.given_up.insert(number, request);
    }

    /// Asks again for what waits: the broker has rung. Who does not wait for ever asks once more,
    /// and waits no longer.
    fn ask_again(&mut self) {
        let Some(view) = &self.view else { return };
        let is_asked = |ticket: u64| {
            self.pending.values().any(|request| match request {
                ClientRequest::MallocWith(with) => with.malloc.ticket == ticket,
                _ => false,
            })
        };
        let waiting = view.waiting.values().filter(|with| !is_asked(with.malloc.ticket));
        let again: Vec<MallocWith> = waiting.copied().collect();
        for with in again {
            let wait_ms = with.wait_ms.filter(|ms| *ms == 0);
            self.ask(ClientRequest::MallocWith(MallocWith { wait_ms, ..with }));
        }
    }

    fn stop_waiting(&mut self, ticket: u64) {
        if let Some(view) = &mut self.view {
            view.waiting.remove(&ticket);
        }
    }

    /// A request of this connection without an answer, be it awaited or not.
    pub fn asked(&self, number: RequestId) -> Option<&ClientRequest> {
        self.pending.get(&number).or_else(|| self.given_up.get(&number))
    }

    /// Reads the next arrival.
    ///
    /// # Errors
    ///
    /// What the broker said that it must not.
    pub fn read(&mut self, known: &Known<'_>) -> Result<(), String> {
        let Some((conn, arrival)) = self.inbox.pop_front() else { return Ok(()) };
        if self.conn != Some(conn) {
            return Ok(());
        }
        match arrival {
            Arrival::Closed => {
                self.disconnected();
                Ok(())
            }
            Arrival::Ring => {
                let asked = self.pending.values().filter_map(|request| match request {
                    ClientRequest::MallocWith(with) => Some(with.malloc.ticket),
                    _ => None,
                });
                self.rung.extend(asked);
                self.ask_again();
                Ok(())
            }
            Arrival::Reply(number, reply) => {
                if self.given_up.remove(&number).is_some() {
                    return Ok(());
                }
                let Some(request) = self.pending.remove(&number) else {
                    return Err(format!("an answer to {number:?}, which waits for none"));
                };
                self.answered(&request, reply, known)
                    .map_err(|error| format!("process {} to {request:?}: {error}", self.peer.pid))
            }
        }
    }

    /// Blocks that nobody else may have while this client believes that they are its own.
    pub fn own_blocks(&self) -> impl Iterator<Item = BlockId> {
        let spans = self.view.iter().flat_map(|view| &view.spans);
        spans.flat_map(|(first, span)| members(*first, span.count))
    }

    /// The connection is gone. What may be repeated is repeated on the next.
    fn disconnected(&mut self) {
        self.conn = None;
        self.outbox.clear();
        self.given_up.clear();
        let missed = std::mem::take(&mut self.pending);
        let Some(view) = &mut self.view else { return };
        for request in missed.into_values() {
            match request {
                ClientRequest::Malloc(_)
                | ClientRequest::MallocWith(_)
                | ClientRequest::Abandon(_)
                | ClientRequest::RegionCreate(_)
                | ClientRequest::RegionOpen(_)
                | ClientRequest::RegionClose(_)
                | ClientRequest::RegionDelete(_)
                | ClientRequest::Delete(_) => view.again.push(request),
                _ => {}
            }
        }
    }

    /// What the client gives up by asking.
    fn note_asked(&mut self, request: &ClientRequest) {
        let Some(view) = &mut self.view else { return };
        match request {
            ClientRequest::Delete(delete) => {
                let first = view.spans.iter().find(|(_, span)| span.guid == delete.guid);
                if let Some(first) = first.map(|(first, _)| *first) {
                    view.spans.remove(&first);
                }
            }
            ClientRequest::RegionClose(opening) => _ = view.openings.remove(opening),
            _ => {}
        }
    }

    fn answered(
        &mut self,
        request: &ClientRequest,
        reply: Reply<ClientReply>,
        known: &Known<'_>,
    ) -> Result<(), String> {
        let reply = match reply {
            Ok(reply) => reply,
            Err(refusal) => return self.refused(request, &refusal, known),
        };
        match (request, reply) {
            (ClientRequest::Setup(_) | ClientRequest::Attach(_), ClientReply::Ready(ready)) => {
                self.ready(&ready);
                Ok(())
            }
            (ClientRequest::Disconnect, ClientReply::Done) => {
                self.view = None;
                Ok(())
            }
            (ClientRequest::Spans(list), ClientReply::Spans { spans, more }) => {
                self.listed(list.after, &spans, more)
            }
            (ClientRequest::MallocWith(with), ClientReply::Queued)
                if self.rung.remove(&with.malloc.ticket) =>
            {
                // It may have rung for this one, which was asked before.
                let Some(view) = &mut self.view else { return Ok(()) };
                view.answered(request, ClientReply::Queued, known)?;
                self.ask_again();
                Ok(())
            }
            (request, reply) => {
                let Some(view) = &mut self.view else { return Ok(()) };
                view.answered(request, reply, known)
            }
        }
    }

    fn ready(&mut self, ready: &Ready) {
        if let Some(view) = &mut self.view {
            for request in std::mem::take(&mut view.again) {
                self.ask(request);
            }
            self.ask_again();
            // Behind what is repeated: what that was granted is known when the answer comes.
            self.ask(ClientRequest::Spans(SpanList { after: 0 }));
            return;
        }
        self.view = Some(View {
            session: ready.session,
            guid: ready.guid,
            spans: BTreeMap::new(),
            openings: BTreeMap::new(),
            keys: BTreeMap::new(),
            not_yet: Vec::new(),
            links: BTreeSet::new(),
            mapped: BTreeSet::new(),
            generation: 0,
            ticket: 0,
            again: Vec::new(),
            waiting: BTreeMap::new(),
        });
    }

    /// The spans that the broker believes to be the client's: those that are not are deleted.
    fn listed(&mut self, after: u32, spans: &[SpanKey], more: bool) -> Result<(), String> {
        let firsts = std::iter::once(after).chain(spans.iter().map(|span| span.first.get()));
        if !firsts.is_sorted_by(|a, b| a < b) || (more && spans.is_empty()) {
            return Err(format!("was answered {spans:?}"));
        }
        if let Some(last) = spans.last().filter(|_| more) {
            self.ask(ClientRequest::Spans(SpanList { after: last.first.get() }));
        }
        let Some(view) = &self.view else { return Ok(()) };
        let is_going = |guid: Guid| {
            let is_it = |request: &ClientRequest| match request {
                ClientRequest::Delete(delete) => delete.guid == guid,
                _ => false,
            };
            self.pending.values().any(is_it)
        };
        let is_known = |guid: Guid| view.spans.values().any(|span| span.guid == guid);
        let unknown = spans.iter().filter(|span| !is_known(span.guid) && !is_going(span.guid));
        let address = |first: BlockId| u64::from(first.get()) << self.cell_bits;
        let deletes: Vec<_> =
            unknown.map(|&SpanKey { first, guid }| Delete { addr: address(first), guid }).collect();
        for delete in deletes {
            self.ask(ClientRequest::Delete(delete));
        }
        Ok(())
    }

    fn refused(
        &mut self,
        request: &ClientRequest,
        refusal: &Refusal,
        known: &Known<'_>,
    ) -> Result<(), String> {
        if self.view.as_ref().is_some_and(|view| known.ended.contains(&view.guid)) {
            self.view = None;
            return Ok(());
        }
        let Refusal { status, text } = refusal;
        if *status == Status::Busy && self.view.is_some() && is_undoing(request) {
            // Too many wait already.
            self.ask(request.clone());
            return Ok(());
        }
        if let (ClientRequest::Malloc(malloc), Status::Lost) = (request, status) {
            // It was made, and its descriptor could not be opened.
            self.ask(ClientRequest::Abandon(Abandon { ticket: malloc.ticket }));
            return Ok(());
        }
        if let ClientRequest::MallocWith(with) = request {
            let ticket = with.malloc.ticket;
            if *status == Status::Lost {
                self.ask(ClientRequest::Abandon(Abandon { ticket }));
            }
            // It still waits if the broker was too busy to look.
            if *status != Status::Busy {
                self.stop_waiting(ticket);
            } else if self.view.as_ref().is_some_and(|view| view.waiting.contains_key(&ticket)) {
                self.ask(request.clone());
            }
            if *status == Status::Lost {
                return Ok(());
            }
        }
        if let (ClientRequest::RegionOpen(open), Status::Lost) = (request, status) {
            // So was this.
            self.ask(ClientRequest::RegionClose(open.opening));
            return Ok(());
        }
        let allowed: &[Status] = match request {
            ClientRequest::Attach(_) => &[Status::Busy],
            ClientRequest::Malloc(_) => {
                &[Status::NoSpace, Status::Quota, Status::Invalid, Status::Unsupported]
            }
            ClientRequest::MallocWith(_) => &[
                Status::NoSpace,
                Status::Quota,
                Status::Invalid,
                Status::Unsupported,
                Status::NotFound,
            ],
            ClientRequest::Fetch(fetch) => {
                let view = self.view.as_ref();
                if view.is_some_and(|view| view.may_read(fetch.block, known.harmed_ids)) {
                    &[]
                } else {
                    return Ok(());
                }
            }
            ClientRequest::Grow(grow) => {
                let view = self.view.as_ref();
                if view.is_some_and(|view| view.may_read(grow.block, known.harmed_ids)) {
                    &[Status::NoSpace, Status::Quota, Status::Lost]
                } else {
                    return Ok(());
                }
            }
            ClientRequest::Delete(delete) if delete.guid == Guid::default() => return Ok(()),
            ClientRequest::Delete(_)
            | ClientRequest::Abandon(_)
            | ClientRequest::RegionClose(_)
            | ClientRequest::Changes(_)
            | ClientRequest::Spans(_)
            | ClientRequest::Stat
            | ClientRequest::Disconnect => &[],
            _ => return Ok(()),
        };
        if allowed.contains(status) || *status == Status::Busy || self.view.is_none() {
            return Ok(());
        }
        Err(format!("was refused: {status:?} {text}"))
    }
}

impl View {
    /// Whether a fetch of a block to read must succeed.
    pub fn may_read(&self, block: BlockId, harmed: &BTreeSet<BlockId>) -> bool {
        let home = self.spans.range(..=block).next_back();
        let home = home.map(|(first, span)| members(*first, span.count).collect::<BTreeSet<_>>());
        home.is_some_and(|home| home.contains(&block) && home.is_disjoint(harmed))
    }

    fn answered(
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
            (ClientRequest::RegionDelete(key), ClientReply::NotYet { .. }) => {
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
        if known.harmed_ids.contains(&asked) {
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
    }
}

/// Whether a request gives something back, or leads to that, and must be done at some time.
const fn is_undoing(request: &ClientRequest) -> bool {
    matches!(
        request,
        ClientRequest::Abandon(_)
            | ClientRequest::RegionClose(_)
            | ClientRequest::Delete(_)
            | ClientRequest::Spans(_)
    )
}

/// The blocks of a span.
pub fn members(first: BlockId, count: u32) -> impl Iterator<Item = BlockId> {
    (0..count).filter_map(move |place| first.checked_add(place).ok())
}

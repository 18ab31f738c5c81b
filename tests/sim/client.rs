//! A client as a model: knows what it was told, asks for whatever it likes, and checks each answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid};
use dmce_abi::wire::client::{
    Abandon, Attach, ClientReply, ClientRequest, Delete, MallocWith, Opening, OpeningId, Ready,
    SpanKey, SpanList,
};
use dmce_abi::wire::{Refusal, Reply};
use dmce_broker::dispatcher::{ClientConn, Peer, RequestId};

use crate::random::Random;
use crate::view::{Known, OpenRegion, View, members};
use crate::writing::Writing;

/// What arrives over a connection.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// An answer.
    Reply(RequestId, Box<Reply<ClientReply>>),
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
    /// For how many of its sessions the broker has a reason to end them.
    pub excuses: u32,
    /// What it is writing to all copies of a block.
    pub writing: Option<Writing>,
    /// The lock tables that travelled with answers that it has not read.
    pub tables: BTreeMap<RequestId, u64>,
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
            excuses: 0,
            writing: None,
            tables: BTreeMap::new(),
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
        self.tables.clear();
        // Who gave a session up does not take it up again.
        self.view.take_if(|view| view.has_given_up);
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
                let reply = *reply;
                if self.given_up.remove(&number).is_some() {
                    return Ok(());
                }
                let Some(request) = self.pending.remove(&number) else {
                    return Err(format!("an answer to {number:?}, which waits for none"));
                };
                let table = self.tables.remove(&number);
                if let (Some(view), Ok(reply)) = (&mut self.view, &reply) {
                    match reply {
                        ClientReply::Fetched(info) => view.mapped_copies(info, table),
                        ClientReply::Opened(opened) => view.mapped_copies(&opened.first, table),
                        _ => {}
                    }
                }
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
            (ClientRequest::Setup(_), ClientReply::Ready(ready)) => self.ready(&ready, &[]),
            (ClientRequest::Attach(attach), ClientReply::Ready(ready)) => {
                self.ready(&ready, &attach.openings)
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

    /// The session is there, or there again; of what was told to be open, the rest is not.
    fn ready(&mut self, ready: &Ready, told: &[Opening]) -> Result<(), String> {
        let unknown = &ready.unknown_openings;
        let was_told = |number: &OpeningId| told.iter().any(|opening| opening.opening == *number);
        if !unknown.iter().all(was_told) {
            return Err(format!("was answered that it does not have {unknown:?} open"));
        }
        if let Some(view) = &mut self.view {
            view.openings.retain(|opening, _| !unknown.contains(opening));
            for request in std::mem::take(&mut view.again) {
                self.ask(request);
            }
            self.ask_again();
            // Behind what is repeated.
            self.ask(ClientRequest::Spans(SpanList { after: 0 }));
            return Ok(());
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
            reach: BTreeMap::new(),
            has_given_up: false,
        });
        Ok(())
    }

    /// The spans that the broker believes to be the client's: those that are not are deleted.
    fn listed(&mut self, after: u32, spans: &[SpanKey], more: bool) -> Result<(), String> {
        let firsts = std::iter::once(after).chain(spans.iter().map(|span| span.first.get()));
        if !firsts.is_sorted_by(|a, b| a < b) || (more && spans.is_empty()) {
            return Err(format!("was answered {spans:?}"));
        }
        let is_malloc = |of: &ClientRequest| {
            matches!(of, ClientRequest::Malloc(_) | ClientRequest::MallocWith(_))
        };
        if self.pending.values().any(is_malloc) {
            // What that was granted is not known yet: the answer may come behind this one.
            self.ask(ClientRequest::Spans(SpanList { after }));
            return Ok(());
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
                if view.is_some_and(|view| view.may_read(fetch.block, known.touched_ids)) {
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

/// Whether a request gives something back, or leads to that, and must be done at some time.
const fn is_undoing(request: &ClientRequest) -> bool {
    matches!(
        request,
        ClientRequest::Disconnect
            | ClientRequest::Abandon(_)
            | ClientRequest::RegionClose(_)
            | ClientRequest::Delete(_)
            | ClientRequest::Spans(_)
    )
}

//! How spans are made: planned whole, asked of daemons, granted when the last block is there.
//!
//! ```text
//!  plan: ids, places, charges    lock tables; then ask    ask the first     grant
//!  ------------------------->    all but the first   --> ---------------> --------->
//!     no room: refused            refused: the next daemon, or the whole is given up
//!                                 daemon gone, a name taken, a copy lost: the whole is given up
//!                                 and planned again, with other ids
//! ```
//!
//! # Invariants
//!
//! 1. All or nothing: what was made of a span that is refused is destroyed.
//! 2. The first block is asked for last, and of that the primary. So a broker that comes back
//!    knows: a span without any copy of its first block was never granted, and where there is one,
//!    all other blocks had all their copies, and all of them lock tables, if they have any.
//! 3. An id that a daemon was asked for and did not answer is not used again before that daemon has
//!    answered or its objects are known.
//! 4. A ticket is made once, however often it is asked.

use std::collections::BTreeSet;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, SessionId, is_page_size};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{Abandon, ClientReply, ClientRequest, Malloc, MallocKind};

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::{SpanOwner, SpanState, TicketKey};
use super::charge::Payer;
use super::clients::ReplyTo;
use super::config::Policy;
use super::copies::{Copy, CopyState};
use super::daemons::Server;
use super::event::ClientConn;
use super::patience::{NOBODY, Patient};
use super::placement::Need;
use super::planning::Order;
use super::policies::Terms;
use super::requests::{Failure, Outcome, Served, refuse};

/// A span that is being made.
#[derive(Debug)]
pub(super) struct Making {
    /// The request, to be served anew if a daemon goes away.
    pub request: ClientRequest,
    /// Where the answer goes.
    pub to: ReplyTo,
    /// Who asks.
    pub session: SessionId,
    /// Who pays.
    pub payer: Payer,
    /// Creates, or lock tables, that are not answered.
    pub asked: u32,
    /// Daemons that have refused a block of it.
    pub refused: BTreeSet<DaemonId>,
    /// How it is made.
    pub terms: Terms,
    /// Its place among those that wait for room, if it wants to.
    pub patient: Option<Patient>,
}

/// A Malloc, and what it means.
#[derive(Debug)]
pub(super) struct Wanted {
    /// The request.
    pub request: ClientRequest,
    /// What is wanted.
    pub malloc: Malloc,
    /// How.
    pub policy: Policy,
    /// Its place among those that wait for room, if it wants to.
    pub patient: Option<Patient>,
}

impl Dispatcher {
    /// Blocks for a session (FIG. 14), at once or not at all.
    pub(super) fn malloc_plain(&mut self, to: ReplyTo, id: SessionId, malloc: Malloc) -> Served {
        let bytes = match malloc.kind {
            MallocKind::Heap { .. } => None,
            MallocKind::Span { bytes } => Some(bytes),
        };
        let policy = self.policy(0, bytes)?;
        if let Some(session) = self.sessions.get(id) {
            self.wait_no_more((session.record.guid, malloc.ticket));
        }
        let request = ClientRequest::Malloc(malloc);
        self.malloc(to, id, &Wanted { request, malloc, policy, patient: None })
    }

    /// Blocks for a session, as a policy says.
    pub(super) fn malloc(&mut self, to: ReplyTo, id: SessionId, wanted: &Wanted) -> Served {
        let malloc = wanted.malloc;
        let Some(session) = self.sessions.get(id) else { return Ok(Outcome::Later) };
        let ticket = (session.record.guid, malloc.ticket);
        let payer = session.payer();
        let copies = [malloc.copies, wanted.policy.told.copies, session.record.copies];
        let copies = self.copies(copies)?;
        if let Some(first) = self.made_by(ticket) {
            return self.malloc_again(to, id, wanted, first);
        }
        let terms = self.terms(&wanted.policy, malloc.page_size)?;
        let mut terms = Terms { copies, ..terms };
        let bytes = match malloc.kind {
            MallocKind::Heap { committed } => committed.max(1),
            MallocKind::Span { bytes } => bytes,
        };
        match malloc.kind {
            MallocKind::Heap { .. } => Self::check_block_bytes(&terms, bytes)?,
            MallocKind::Span { .. } => terms.block_bytes = u64::MAX,
        }
        let (request, patient) = (wanted.request.clone(), wanted.patient);
        let region = None;
        let order =
            Order { request, to, session: id, ticket, payer, terms, bytes, region, patient };
        self.make(order)
    }

    /// A Malloc whose ticket made something already.
    fn malloc_again(
        &mut self,
        to: ReplyTo,
        id: SessionId,
        wanted: &Wanted,
        first: BlockId,
    ) -> Served {
        let Some(span) = self.blocks.span(first) else { return Ok(Outcome::Later) };
        if span.owner != SpanOwner::Session(id) {
            let text = format!("ticket {} made a region", wanted.malloc.ticket);
            return refuse(Status::Invalid, text);
        }
        if span.state == SpanState::Making {
            let served = self.wait_for(to, first)?;
            // Whether it waits for room is what it says now.
            if let Some(making) = self.makings.get_mut(&first) {
                making.request = wanted.request.clone();
            }
            return Ok(served);
        }
        if self.is_losing(first) {
            return Err(Failure::Unsettled);
        }
        // Who repeats a ticket has not had its answer, so nothing was written there yet. Copies
        // that are missing may never have been made.
        if span.lost > 0 || self.blocks.is_degraded(first, span.count) {
            let guid = self.blocks.get(first).map(|block| block.guid);
            self.delete_span(id, first);
            // Who was told of it by a list of spans may delete it as well.
            if let Some(guid) = guid {
                self.remember_deleted(id, guid);
            }
            return self.malloc(to, id, wanted);
        }
        if let Some(span) = self.blocks.span_mut(first) {
            span.unclaimed = false;
        }
        match self.granted(first) {
            Some((reply, descriptors)) => Ok(Outcome::Reply(Box::new(reply), descriptors)),
            None => refuse(Status::Internal, format!("span {first} has no first block")),
        }
    }

    /// Nobody waits for a Malloc or a `RegionCreate` any more: what its ticket made, or is making,
    /// goes back. A region that stands stays: somebody else may use it already.
    pub(super) fn abandon(
        &mut self,
        conn: ClientConn,
        id: SessionId,
        Abandon { ticket }: Abandon,
    ) -> Outcome {
        let given_up = || Refusal::new(Status::Closed, "the request was given up");
        let is_it = |request: &ClientRequest| match request {
            ClientRequest::Malloc(malloc) => malloc.ticket == ticket,
            ClientRequest::MallocWith(with) => with.malloc.ticket == ticket,
            ClientRequest::RegionCreate(create) => create.ticket == ticket,
            _ => false,
        };
        let parked = self.parked.take_of(conn, is_it);
        for waiter in parked.into_iter().chain(self.unsettled.take_of(conn, is_it)) {
            self.reply(waiter.to, Err(given_up()), Vec::new());
        }
        let session = self.sessions.get(id).map(|session| session.record.guid);
        if let Some(session) = session {
            self.forget_patient((session, ticket));
        }
        let made = session.and_then(|session| self.made_by((session, ticket)));
        let span = made.and_then(|first| Some((first, self.blocks.span(first)?)));
        match span {
            Some((first, span)) if span.state == SpanState::Making => {
                self.give_up_making(first, given_up());
            }
            Some((first, span)) if span.owner == SpanOwner::Session(id) => {
                let guid = self.blocks.get(first).map(|block| block.guid);
                self.delete_span(id, first);
                // Who was told of it by a list of spans may delete it as well.
                if let Some(guid) = guid {
                    self.remember_deleted(id, guid);
                }
            }
            Some(_) | None => {}
        }
        ClientReply::Done.into()
    }

    /// The page size that a request asks for, or the default.
    pub(super) fn page_size(&self, asked: u32) -> Result<u32, Refusal> {
        let page_size = if asked == 0 { self.config.page_size } else { asked };
        if !is_page_size(page_size) {
            let text = format!("a page of {page_size} bytes; powers of two from 4096 to 2097152");
            return refuse(Status::Invalid, text);
        }
        Ok(page_size)
    }

    /// The span that a ticket made. Number 0 is no ticket.
    pub(super) fn made_by(&self, ticket: TicketKey) -> Option<BlockId> {
        if ticket.1 == 0 { None } else { self.blocks.by_ticket(ticket) }
    }

    /// Plans a span and asks daemons for it. The answer follows.
    pub(super) fn make(&mut self, order: Order) -> Served {
        let first = self.plan(&order)?;
        let Order { request, to, session, payer, terms, patient, .. } = order;
        let (asked, refused) = (0, BTreeSet::new());
        let making = Making { request, to, session, payer, asked, refused, terms, patient };
        self.makings.insert(first, making);
        self.ask_for_more(first);
        Ok(Outcome::Later)
    }

    /// Lets the answer of a span that is being made go to a request that repeats its ticket.
    pub(super) fn wait_for(&mut self, to: ReplyTo, first: BlockId) -> Served {
        let Some(making) = self.makings.get_mut(&first) else {
            return refuse(Status::Internal, format!("span {first} is made by nobody"));
        };
        if self.clients.contains_key(&making.to.conn) {
            return refuse(Status::Busy, "a request with this ticket waits already");
        }
        making.to = to;
        Ok(Outcome::Later)
    }

    /// Asks for what is planned of a span and may be asked for now, if nothing is asked for.
    pub(super) fn ask_for_more(&mut self, first: BlockId) {
        if self.makings.get(&first).is_some_and(|making| making.asked > 0) {
            return;
        }
        let tables = self.ask_for_tables(first);
        if let Some(making) = self.makings.get_mut(&first).filter(|_| tables > 0) {
            making.asked = tables;
            return;
        }
        let next = self.next_to_ask(first);
        if next.is_empty() {
            return self.made(first);
        }
        for (id, daemon) in next {
            if !self.ask(first, id, daemon) {
                return;
            }
        }
    }

    /// The copies that come next: those of all blocks but the first, and then of the first all but
    /// the primary, and then that.
    fn next_to_ask(&self, first: BlockId) -> Vec<(BlockId, DaemonId)> {
        let planned = self.blocks.members(first).into_iter().flat_map(|id| {
            let copies = self.blocks.get(id).map(|block| (block.primary(), block.copies.iter()));
            copies.into_iter().flat_map(move |(primary, copies)| {
                let planned = copies.filter(|copy| copy.state == CopyState::Planned);
                planned.map(move |copy| {
                    let turn = match (id == first, primary == Some(copy.daemon)) {
                        (false, _) => 0,
                        (true, false) => 1,
                        (true, true) => 2,
                    };
                    (turn, (id, copy.daemon))
                })
            })
        });
        let planned: Vec<(u32, (BlockId, DaemonId))> = planned.collect();
        let turn = planned.iter().map(|(turn, _)| *turn).min();
        planned.into_iter().filter(|(of, _)| Some(*of) == turn).map(|(_, copy)| copy).collect()
    }

    /// Asks a daemon for a planned copy. `false` if the span was refused instead.
    fn ask(&mut self, first: BlockId, id: BlockId, daemon: DaemonId) -> bool {
        let up = self.daemons.servers.get(&daemon).is_some_and(Server::is_up);
        let place = if up { Some(daemon) } else { self.place_again(first, id, daemon) };
        let Some(daemon) = place else { return false };
        if let Some(making) = self.makings.get_mut(&first) {
            making.asked += 1;
        }
        self.ask_create(id, daemon);
        true
    }

    /// A daemon has refused a copy: the next is asked [0072], or the span is refused.
    pub(super) fn ask_elsewhere(&mut self, id: BlockId, daemon: DaemonId, refusal: &Refusal) {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        if let Some(making) = self.makings.get_mut(&first) {
            making.refused.insert(daemon);
            making.asked -= 1;
        }
        self.unask(id, daemon);
        self.log(LogLevel::Warn, format!("daemon {daemon} refused block {id}: {}", refusal.text));
        if let Some(next) = self.place_again(first, id, daemon) {
            self.ask(first, id, next);
        }
    }

    /// A daemon does not have a copy, and was not asked for it, or has refused.
    pub(super) fn unask(&mut self, id: BlockId, daemon: DaemonId) {
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.blocks.remove(&id);
        }
        self.blocks.set_copy(id, daemon, CopyState::Planned);
    }

    /// A block that could not have its name: its span is planned anew, with other ids.
    pub(super) fn name_anew(&mut self, id: BlockId, daemon: DaemonId) {
        let Some(first) = self.blocks.get(id).map(|block| block.span) else { return };
        self.unask(id, daemon);
        self.make_again(first);
    }

    /// Finds another place for a planned copy. If there is none, the span was refused.
    fn place_again(&mut self, first: BlockId, id: BlockId, daemon: DaemonId) -> Option<DaemonId> {
        let making = self.makings.get(&first)?;
        let (payer, terms, mut refused) = (making.payer, making.terms, making.refused.clone());
        let block = self.blocks.get_mut(id)?;
        let (place, copy) = block.copies.take(daemon)?;
        refused.extend(block.copies.iter().map(|copy| copy.daemon));
        let (bytes, half) = (copy.charge.bytes(), copy.half);
        self.ledger.refund(copy.charge);
        let placement = terms.placement;
        let need = Need { bytes, account: payer.account, refused: &refused, placement };
        let placed = self.place(&need).and_then(|daemon| {
            let charge = self.ledger.charge(payer, daemon, bytes).ok()?;
            Some((daemon, charge))
        });
        let Some((daemon, charge)) = placed else {
            let text = format!("no daemon has {bytes} bytes left that it would give");
            self.give_up_making(first, Refusal::new(Status::NoSpace, text));
            return None;
        };
        let bytes_max = self.bytes_max(daemon).min(terms.block_bytes.max(bytes));
        self.daemons.placed(daemon);
        let block = self.blocks.get_mut(id)?;
        // What other copies have been told that they may grow to, this one has to follow.
        block.bytes_max =
            if block.copies.is_empty() { bytes_max } else { block.bytes_max.min(bytes_max) };
        // What was asked for already says that this one is elsewhere.
        block.epoch += u64::from(block.copies.iter().any(Copy::may_exist));
        block.copies.put(place, Copy::planned((daemon, half), charge));
        Some(daemon)
    }

    /// A copy of a block of a span is there.
    pub(super) fn made_copy(&mut self, id: BlockId) {
        if let Some(first) = self.blocks.get(id).map(|block| block.span) {
            self.made_one(first);
        }
    }

    /// Something of a span is there that was asked for.
    pub(super) fn made_one(&mut self, first: BlockId) {
        if let Some(making) = self.makings.get_mut(&first) {
            making.asked -= 1;
            self.ask_for_more(first);
        }
    }

    /// Gives up a span that is being made and refuses its request.
    pub(super) fn give_up_making(&mut self, first: BlockId, refusal: Refusal) {
        let Some(making) = self.forget_making(first) else { return };
        if refusal.status == Status::NoSpace {
            if let Some(patient) = making.patient {
                return self.wait_on(patient, making.to, true);
            }
            self.note_short(making.session, &making.request);
        }
        self.reply(making.to, Err(refusal), Vec::new());
    }

    /// Gives up a span that is being made and serves its request anew.
    pub(super) fn make_again(&mut self, first: BlockId) {
        let Some(making) = self.forget_making(first) else { return };
        if let Some(patient) = making.patient {
            return self.wait_on(patient, making.to, false);
        }
        // A client that is not connected repeats the request when it is again.
        if self.clients.contains_key(&making.to.conn) {
            self.route(making.to, &making.request, None);
        }
    }

    fn forget_making(&mut self, first: BlockId) -> Option<Making> {
        let making = self.makings.remove(&first)?;
        if let Some(session) = self.sessions.get_mut(making.session) {
            session.spans.remove(&first);
            session.making_regions.remove(&first);
        }
        self.give_up(first);
        Some(making)
    }

    /// All blocks of a span are there: its request is answered.
    fn made(&mut self, first: BlockId) {
        let Some(making) = self.makings.remove(&first) else { return };
        if let Some(span) = self.blocks.span_mut(first) {
            span.state = SpanState::Standing;
            span.unclaimed = making.to == NOBODY;
        }
        self.granted += 1;
        // Its daemons may be drained by now.
        self.moves.is_due = true;
        if let Some(patient) = &making.patient {
            self.patience_ends(patient);
        }
        let session = self.sessions.get_mut(making.session);
        let was_region = session.is_some_and(|session| session.making_regions.remove(&first));
        if was_region {
            self.reply(making.to, Ok(ClientReply::Done), Vec::new());
        } else if let Some((reply, descriptors)) = self.granted(first) {
            self.reply_again(making.to, Ok(reply), (descriptors, &making.request));
        }
    }
}

//! Connections and their requests: what may be asked when, and that each is answered once.

use dmce_abi::Status;
use dmce_abi::block::SessionId;
use dmce_abi::wire::admin::AdminRequest;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::{self, Refusal};

use super::Dispatcher;
use super::action::{Action, Descriptor, LogLevel};
use super::charge::ChargeError;
use super::clients::{Client, ReplyTo};
use super::event::{ClientConn, Peer};
use super::sessions::SessionLink;
use super::timers::Timer;
use super::waiting::text_bytes;

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is answered with this.
    Reply(Box<ClientReply>, Vec<Descriptor>),
    /// The answer follows when a daemon or the shell has done something.
    Later,
}

impl From<ClientReply> for Outcome {
    fn from(reply: ClientReply) -> Self {
        Self::Reply(Box::new(reply), Vec::new())
    }
}

/// Why a request is not done.
#[derive(Debug)]
pub(super) enum Failure {
    /// It is refused.
    Refused(Refusal),
    /// There is no room. If bytes are on their way back, it waits for them; else it is refused.
    NoRoom(Refusal),
    /// Its user holds too much. It is refused, unless it waits for that too.
    OverQuota(Refusal),
    /// It is being decided which copies of a block there are: it waits for that.
    Unsettled,
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ChargeError> for Failure {
    fn from(error: ChargeError) -> Self {
        match error {
            ChargeError::Room { .. } => Self::NoRoom(error.into()),
            ChargeError::Bytes { .. } | ChargeError::Count { .. } => Self::OverQuota(error.into()),
        }
    }
}

/// A refusal, as the error of whatever can fail.
pub(super) fn refuse<T, E: From<Refusal>>(status: Status, text: impl Into<String>) -> Result<T, E> {
    Err(Refusal::new(status, text).into())
}

/// What a request does.
pub(super) type Served = Result<Outcome, Failure>;

impl Dispatcher {
    pub(super) fn connected(&mut self, conn: ClientConn, peer: Peer) {
        let limit = self.config.limits.connections_max;
        if self.clients.len() >= limit {
            let reason = format!("there are {limit} connections, limit {limit}");
            self.log(LogLevel::Info, format!("a client is not taken in: {reason}"));
            self.out.push(Action::CloseClient { conn, reason });
            return;
        }
        let uid = peer.uid;
        if let Err(error) = self.ledger.charge_connection(uid) {
            self.log(LogLevel::Info, format!("a client is not taken in: {error}"));
            self.out.push(Action::CloseClient { conn, reason: error.to_string() });
            return;
        }
        let client = Client { peer, started: None, session: None, outstanding: 0, held: false };
        self.clients.insert(conn, client);
        self.spend(conn, uid, 0);
    }

    pub(super) fn request(&mut self, to: ReplyTo, request: &ClientRequest) {
        let limit = self.config.limits.outstanding_max;
        let Some(client) = self.clients.get_mut(&to.conn) else { return };
        client.outstanding += 1;
        let (uid, outstanding) = (client.peer.uid, client.outstanding);
        self.spend(to.conn, uid, moved_bytes(request));
        if outstanding > limit {
            let text = format!("{limit} requests of this connection wait, limit {limit}");
            self.reply(to, Err(Refusal::new(Status::Busy, text)), Vec::new());
            return;
        }
        self.route(to, request, None);
    }

    /// Serves a request, or lets it wait. `place` is where it waited before.
    pub(super) fn route(&mut self, to: ReplyTo, request: &ClientRequest, place: Option<u64>) {
        let checked = self.check_request(to.conn, request);
        if checked.is_ok() && !self.is_back() && needs_complete_tables(request) {
            let uid = self.uid_of(to.conn);
            if let Err(refusal) = self.deferred.push(to, uid, request, None) {
                self.refused(to, request, refusal);
            }
            return;
        }
        let served = checked.map_err(Failure::from).and_then(|()| self.serve(to, request));
        let refusal = match served {
            Ok(Outcome::Reply(reply, descriptors)) => {
                self.reply_again(to, Ok(*reply), (descriptors, request));
                None
            }
            Ok(Outcome::Later) => None,
            Err(Failure::NoRoom(_)) if self.daemons.bytes_return() => {
                let uid = self.uid_of(to.conn);
                self.parked.push(to, uid, request, place).err()
            }
            Err(Failure::Unsettled) => {
                let uid = self.uid_of(to.conn);
                self.unsettled.push(to, uid, request, None).err()
            }
            Err(
                Failure::NoRoom(refusal) | Failure::OverQuota(refusal) | Failure::Refused(refusal),
            ) => Some(refusal),
        };
        if let Some(refusal) = refusal {
            self.refused(to, request, refusal);
        }
    }

    /// Whose connection it is; nobody's if it is gone, to whom no answer is owed.
    fn uid_of(&self, conn: ClientConn) -> u32 {
        self.clients.get(&conn).map_or(u32::MAX, |client| client.peer.uid)
    }

    fn pid_of(&self, conn: ClientConn) -> u32 {
        self.clients.get(&conn).map_or(0, |client| client.peer.pid)
    }

    /// Answers a request with a refusal. A Setup that is refused ends its connection.
    fn refused(&mut self, to: ReplyTo, request: &ClientRequest, refusal: Refusal) {
        let session = self.clients.get(&to.conn).and_then(|client| client.session);
        let no_session = matches!(request, ClientRequest::Setup(_)) && session.is_none();
        if let Some(session) = session
            && matches!(refusal.status, Status::NoSpace | Status::Quota)
        {
            self.note_short(session, request);
        }
        let reason = format!("no session: {}", refusal.text);
        self.reply(to, Err(refusal), Vec::new());
        if no_session {
            self.log(LogLevel::Info, format!("process {}: {reason}", self.pid_of(to.conn)));
            self.close_client(to.conn, reason);
        }
    }

    /// Does what room is for that came back, and goes on with what is done a part at a time.
    pub(super) fn use_room(&mut self) {
        if std::mem::take(&mut self.room_changed) {
            self.try_parked();
            self.begin_patience_round();
            self.notices.begin_room_round();
        }
        let waits = self.go_on_with_patience();
        self.look_at_pressure();
        if self.go_on_with_notices() || waits {
            self.timers.set(Timer::GoOn, self.now.millis);
        }
    }

    /// Tries what found no room, oldest first, until one of them has to wait on.
    fn try_parked(&mut self) {
        while let Some(waiter) = self.parked.pop() {
            self.route(waiter.to, &waiter.request, Some(waiter.place));
            if self.parked.holds(waiter.place) {
                return;
            }
        }
    }

    fn serve(&mut self, to: ReplyTo, request: &ClientRequest) -> Served {
        match request {
            ClientRequest::Admin(AdminRequest::AdoptStale { block, from }) => {
                return self.adopt_stale(to, *block, *from);
            }
            ClientRequest::Admin(AdminRequest::Migrate { block, from, to: onto }) => {
                return self.migrate(to, (*block, *from, *onto));
            }
            ClientRequest::Admin(AdminRequest::Swap { one, other }) => {
                return self.swap(to, *one, *other);
            }
            ClientRequest::Admin(AdminRequest::Drain { daemon, is_draining }) => {
                return self.drain(to, *daemon, *is_draining);
            }
            ClientRequest::Admin(AdminRequest::SetCopies { region, copies }) => {
                return self.set_copies(to, region, *copies);
            }
            ClientRequest::Admin(AdminRequest::Scrub { block }) => {
                return self.scrub_for(to, *block);
            }
            ClientRequest::Admin(request) => return self.admin(to, request),
            ClientRequest::Setup(setup) => return self.setup(to, setup),
            ClientRequest::Attach(attach) => return self.attach(to, attach),
            _ => {}
        }
        let Some(session) = self.session_of(to.conn) else {
            return refuse(Status::Closed, "this connection has no session");
        };
        match request {
            ClientRequest::Malloc(malloc) => self.malloc_plain(to, session, *malloc),
            ClientRequest::MallocWith(malloc) => self.malloc_with(to, session, *malloc),
            ClientRequest::Policies => Ok(self.policy_table()),
            ClientRequest::Events => Ok(self.events(session)),
            ClientRequest::Abandon(abandon) => Ok(self.abandon(to.conn, session, *abandon)),
            ClientRequest::Grow(grow) => self.grow(to, session, *grow),
            ClientRequest::Delete(delete) => self.delete(session, *delete),
            ClientRequest::Fetch(fetch) => self.fetch(session, *fetch),
            ClientRequest::Map(map) => self.map(session, *map),
            ClientRequest::Unmap(unmap) => self.unmap(session, *unmap),
            ClientRequest::Changes(changes) => Ok(self.changes(session, changes.since)),
            ClientRequest::Damaged(block) => self.damaged(session, *block),
            ClientRequest::Stat => Ok(self.stat(session)),
            ClientRequest::Disconnect => Ok(self.disconnect(to, session)),
            ClientRequest::RegionCreate(create) => self.region_create(to, session, create),
            ClientRequest::RegionOpen(open) => self.region_open(session, open),
            ClientRequest::RegionClose(opening) => {
                Ok(self.region_close(to.conn, session, *opening))
            }
            ClientRequest::RegionFind(name) => self.region_find(session, name),
            ClientRequest::RegionDelete(key) => self.region_delete(to, session, *key),
            ClientRequest::RegionList(list) => Ok(self.region_list(session, list)),
            // What waits may be answered with a span that the list would tell as nobody's.
            ClientRequest::Spans(_) if self.unsettled.has(to.conn) => Err(Failure::Unsettled),
            ClientRequest::Spans(list) => Ok(self.span_list(session, *list)),
            ClientRequest::Reach(reach) => self.way_to(session, *reach),
            ClientRequest::Data(request) => self.relay(to, session, request),
            _ => refuse(Status::Unsupported, "this broker does not know the request"),
        }
    }

    /// The session that may be used over a connection.
    pub(super) fn session_of(&self, conn: ClientConn) -> Option<SessionId> {
        let id = self.clients.get(&conn)?.session?;
        let session = self.sessions.get(id)?;
        (session.link == SessionLink::Attached(conn)).then_some(id)
    }

    /// Answers a request; nobody, if its connection is gone.
    pub(super) fn reply(
        &mut self,
        to: ReplyTo,
        reply: wire::Reply<ClientReply>,
        descriptors: Vec<Descriptor>,
    ) {
        self.send(to, reply, (descriptors, None));
    }

    /// Answers a request that is served again if an object is gone that travels with the answer.
    pub(super) fn reply_again(
        &mut self,
        to: ReplyTo,
        reply: wire::Reply<ClientReply>,
        (descriptors, request): (Vec<Descriptor>, &ClientRequest),
    ) {
        // Served twice, what has no ticket would be made twice.
        let can_be = match request {
            ClientRequest::Malloc(malloc) => malloc.ticket != 0,
            ClientRequest::MallocWith(with) => with.malloc.ticket != 0,
            _ => true,
        };
        let of_block = |descriptor: &Descriptor| {
            matches!(descriptor, Descriptor::Block { .. } | Descriptor::Locks { .. })
        };
        let again = can_be && descriptors.iter().any(of_block);
        let again = again.then(|| Box::new(request.clone()));
        self.send(to, reply, (descriptors, again));
    }

    /// An object is gone that was to travel with an answer. It is being looked at, and then the
    /// request is served again: another copy may be there.
    pub(super) fn not_opened(&mut self, to: ReplyTo, request: &ClientRequest) {
        let Some(client) = self.clients.get_mut(&to.conn) else { return };
        client.outstanding += 1;
        let uid = client.peer.uid;
        if let Err(refusal) = self.unsettled.push(to, uid, request, None) {
            self.refused(to, request, refusal);
        }
    }

    fn send(
        &mut self,
        to: ReplyTo,
        reply: wire::Reply<ClientReply>,
        (descriptors, again): (Vec<Descriptor>, Option<Box<ClientRequest>>),
    ) {
        let ReplyTo { conn, request_id } = to;
        let Some(client) = self.clients.get_mut(&conn) else { return };
        client.outstanding = client.outstanding.saturating_sub(1);
        if request_id.0 != 0 {
            self.out.push(Action::Reply { conn, request_id, reply, descriptors, again });
        }
    }

    /// Ends a connection from this side. Its session, if any, is not touched.
    pub(super) fn close_client(&mut self, conn: ClientConn, reason: impl Into<String>) {
        if self.forget_client(conn).is_some() {
            self.out.push(Action::CloseClient { conn, reason: reason.into() });
        }
    }

    /// Ends a connection and its session, because of what the client did.
    pub(super) fn end_client(&mut self, conn: ClientConn, reason: &str) {
        let Some(client) = self.clients.get(&conn) else { return };
        let text = format!("client process {} is ended: {reason}", client.peer.pid);
        let session = client.session;
        self.log(LogLevel::Warn, text);
        self.close_client(conn, reason);
        if let Some(session) = session {
            self.end_session(session, reason);
        }
    }

    pub(super) fn hung_up(&mut self, conn: ClientConn) {
        let Some(client) = self.forget_client(conn) else { return };
        let Some(session) = client.session else { return };
        self.detach(session);
    }

    fn forget_client(&mut self, conn: ClientConn) -> Option<Client> {
        self.deferred.drop_conn(conn);
        self.parked.drop_conn(conn);
        self.unsettled.drop_conn(conn);
        self.cancel_moves(conn);
        self.cancel_scrubs(conn);
        let client = self.clients.remove(&conn)?;
        self.ledger.refund_connection(client.peer.uid);
        Some(client)
    }
}

/// Bytes that the broker moves for a request, whose number its sender chose.
fn moved_bytes(request: &ClientRequest) -> usize {
    match request {
        ClientRequest::Data(request) => request.moved_bytes(),
        other => text_bytes(other),
    }
}

/// What must wait until every daemon has reported to a broker that came back.
const fn needs_complete_tables(request: &ClientRequest) -> bool {
    if let ClientRequest::Admin(request) = request {
        let changes = matches!(
            request,
            AdminRequest::AdoptStale { .. }
                | AdminRequest::Migrate { .. }
                | AdminRequest::Swap { .. }
                | AdminRequest::Drain { .. }
                | AdminRequest::SetCopies { .. }
                | AdminRequest::Scrub { .. }
        );
        return changes;
    }
    !matches!(
        request,
        ClientRequest::Attach(_)
            | ClientRequest::Stat
            | ClientRequest::Policies
            | ClientRequest::Events
            | ClientRequest::Disconnect
    )
}

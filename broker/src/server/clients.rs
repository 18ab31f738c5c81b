//! Connections of clients.
//!
//! # Invariants
//!
//! 1. A frame that cannot be read whole, or that brings a descriptor, is hostile: no request takes
//!    one.
//! 2. A client that does not read its answers is dropped at the first one that does not fit.
//! 3. In one pass of the loop at most [`ACCEPTED_A_PASS`] connections are taken in, then each user
//!    has one turn, which those of that user are a part of ([`Rounds`]): what waits is reported
//!    again.
//! 4. Nothing that a client has passed, and no connection over which it could, is closed here: that
//!    may take as long as the client likes ([`Closer`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;

use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::rounds::{MESSAGE_BYTES, Rounds, TURN_BYTES};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::{self, FrameHeader, Refusal, Reply, WireError};
use dmce_abi::{Status, wire::peek_request};
use dmce_broker::dispatcher::{ClientConn, Event, Peer, RequestId};
use dmce_config::BrokerSection;
use dmce_sys::closing::Closer;
use dmce_sys::crash::{Point, point};
use dmce_sys::poll::{Interest, Poller, is_hung_up};
use dmce_sys::socket::{Listener, Socket, SocketError};
use dmce_sys::{clock, identity, process};
use tracing::{debug, info, warn};

use super::door::Door;
use super::objects::Passed;
use super::{ServerError, Source, now};

/// Connections that are taken in before the users have their turns: as many as a turn has messages.
///
/// The kernel has one queue for all users. With fewer, who connects would wait for a turn of each
/// other user for each few connections before it; with more, all others for those who connect.
pub const ACCEPTED_A_PASS: usize = TURN_BYTES / MESSAGE_BYTES;

/// A connection.
struct Client {
    socket: Socket,
    uid: u32,
}

/// All connections of clients, and where they come from.
pub struct Clients {
    door: Door,
    /// Whether somebody may be at the door.
    knocked: bool,
    open: BTreeMap<ClientConn, Client>,
    /// Those that have sent something.
    rounds: Rounds<ClientConn>,
    /// Those that are not read for a while.
    held: BTreeSet<ClientConn>,
    next: u64,
    buffer: Vec<u8>,
    closer: Closer,
}

impl Clients {
    /// Listens at `broker.sock` in `dir`.
    pub fn listen(
        poller: &Poller,
        dir: &Path,
        config: &BrokerSection,
    ) -> Result<Self, ServerError> {
        let path = dir.join("broker.sock");
        let listener = Listener::bind(&path, config.socket_mode)?;
        if let Some(name) = &config.socket_group {
            let gid = name.parse().ok().map_or_else(|| identity::gid_of(name), |gid| Ok(Some(gid)));
            let gid = gid?.ok_or_else(|| ServerError::NoGroup { name: name.clone() })?;
            chown(&path, None, Some(gid))?;
        }
        if !listener.refuse_descriptors() {
            debug!("clients can send descriptors; they are closed");
        }
        let door = Door::open(poller, listener, Source::ClientListener.token(0))?;
        let buffer = vec![0; FRAME_BYTES_MAX + 1];
        Ok(Self {
            door,
            knocked: false,
            open: BTreeMap::new(),
            rounds: Rounds::default(),
            held: BTreeSet::new(),
            next: 1,
            buffer,
            closer: Closer::start()?,
        })
    }

    /// Where they come from.
    pub const fn door(&mut self) -> &mut Door {
        &mut self.door
    }

    /// Somebody has connected.
    pub const fn knock(&mut self) {
        self.knocked = true;
    }

    /// Takes in who has connected: some of them, if they are many, and more in the next pass,
    /// whether the poller comes to tell of them again or has more to tell than it can at once.
    pub fn accept(&mut self, poller: &Poller, events: &mut VecDeque<Event>) {
        if !self.knocked {
            return;
        }
        let now = now().millis;
        for taken in 0..ACCEPTED_A_PASS {
            let Some(socket) = self.door.accept(poller, now) else {
                self.knocked = false;
                return;
            };
            // Behind others it may have gone by now: then it takes nobody's place, of which those
            // that are taken in together need as many at once. Alone, it would be found out next.
            let has_gone = taken > 0 && is_hung_up(socket.as_fd()).unwrap_or(false);
            match peer_of(&socket) {
                Some(peer) if has_gone => {
                    self.rounds.charge_before(peer.uid);
                    self.closer.end(socket);
                }
                Some(peer) => {
                    self.rounds.charge_before(peer.uid);
                    self.take_in(poller, socket, peer, events);
                }
                None => self.closer.end(socket),
            }
        }
    }

    fn take_in(
        &mut self,
        poller: &Poller,
        socket: Socket,
        peer: Peer,
        events: &mut VecDeque<Event>,
    ) {
        let conn = ClientConn(self.next);
        let token = Source::Client.token(conn.0);
        if let Err(error) = poller.add(socket.as_fd(), token, Interest::READ) {
            warn!("a client was not taken in: {error}");
            return self.closer.end(socket);
        }
        self.next += 1;
        self.open.insert(conn, Client { socket, uid: peer.uid });
        events.push_back(Event::Connected { conn, peer });
    }

    /// A client has sent something, or has gone.
    pub fn ready(&mut self, poller: &Poller, number: u64, events: &mut VecDeque<Event>) {
        let conn = ClientConn(number);
        if self.held.contains(&conn) {
            // Only a hang-up is told of it. Who sends too much is read no sooner for going.
            self.end(poller, conn);
            return events.push_back(Event::HungUp { conn });
        }
        if let Some(client) = self.open.get(&conn) {
            self.rounds.arrive(client.uid, conn);
        }
    }

    /// Whether somebody waits for the next round.
    pub fn is_waited_for(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Takes in what clients have sent: one turn of each user who has sent something.
    pub fn receive(&mut self, poller: &Poller, events: &mut VecDeque<Event>) {
        self.rounds.begin();
        while let Some(conn) = self.rounds.take() {
            let bytes = self.receive_one(poller, conn, events);
            self.rounds.charge(bytes);
        }
    }

    /// Takes in one frame; the bytes that it moves.
    fn receive_one(
        &mut self,
        poller: &Poller,
        conn: ClientConn,
        events: &mut VecDeque<Event>,
    ) -> usize {
        let Some(client) = self.open.get(&conn) else { return 0 };
        let mut fds = Vec::new();
        let received = match client.socket.try_recv(&mut self.buffer, &mut fds) {
            Ok(received) => received,
            Err(SocketError::WouldBlock { .. }) => return 0,
            Err(_) => {
                self.closer.close(fds);
                self.end(poller, conn);
                events.push_back(Event::HungUp { conn });
                return 0;
            }
        };
        let frame = &self.buffer[..received.bytes];
        let read = read(frame, fds.len(), received.truncated);
        self.closer.close(fds);
        match read {
            Ok((request_id, request)) => {
                let answer_bytes = answer_bytes(&request);
                if let ClientRequest::Attach(_) = request {
                    events.extend(self.process_started(conn));
                }
                events.push_back(Event::Request { conn, request_id, request });
                received.bytes + answer_bytes
            }
            Err(error) => {
                if let WireError::Version { .. } = error {
                    let refusal = Refusal::new(Status::Version, error.to_string());
                    let request_id = RequestId(peek_request(frame));
                    if !self.reply(poller, conn, request_id, &Err(refusal), &[]) {
                        events.push_back(Event::HungUp { conn });
                        return received.bytes;
                    }
                }
                let reason = format!("a frame that is none: {error}");
                events.push_back(Event::Hostile { conn, reason });
                received.bytes
            }
        }
    }

    /// Sends an answer. `false`: the client did not take it, and its connection is gone.
    pub fn reply(
        &mut self,
        poller: &Poller,
        conn: ClientConn,
        request_id: RequestId,
        reply: &Reply<ClientReply>,
        fds: &[Passed<'_>],
    ) -> bool {
        let Some(client) = self.open.get(&conn) else { return true };
        let count = u16::try_from(fds.len()).expect("a reply has few descriptors");
        let header = FrameHeader { request: request_id.0, fds: count };
        let frame = wire::encode(header, reply).or_else(|error| {
            warn!("an answer did not fit: {error}");
            let refusal = Refusal::new(Status::Internal, "the answer did not fit a frame");
            let header = FrameHeader { request: request_id.0, fds: 0 };
            wire::encode::<Reply<ClientReply>>(header, &Err(refusal))
        });
        let frame = frame.expect("a short refusal fits a frame");
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        point(Point::AnswerDue);
        let sent = client.socket.try_send(&frame, &fds);
        point(Point::AnswerSent);
        if let Err(error) = &sent {
            info!(connection = conn.0, "a client did not take its answer: {error}");
            self.end(poller, conn);
        }
        sent.is_ok()
    }

    /// Does not read a connection until [`Clients::read`]: what comes stays with the kernel, and
    /// goes with a hang-up.
    pub fn hold(&mut self, poller: &Poller, conn: ClientConn) {
        self.poll(poller, conn, Interest::NONE);
        if let Some(client) = self.open.get(&conn) {
            self.rounds.forget(client.uid, conn);
        }
        self.held.insert(conn);
    }

    /// Reads a connection again.
    pub fn read(&mut self, poller: &Poller, conn: ClientConn) {
        self.poll(poller, conn, Interest::READ);
        self.held.remove(&conn);
    }

    fn poll(&self, poller: &Poller, conn: ClientConn, interest: Interest) {
        let Some(client) = self.open.get(&conn) else { return };
        let fd = client.socket.as_fd();
        if let Err(error) = poller.modify(fd, Source::Client.token(conn.0), interest) {
            warn!(connection = conn.0, "it is polled as before: {error}");
        }
    }

    /// Ends a connection.
    pub fn close(&mut self, poller: &Poller, conn: ClientConn, reason: &str) {
        if self.end(poller, conn) {
            debug!(connection = conn.0, "closed: {reason}");
        }
    }

    fn end(&mut self, poller: &Poller, conn: ClientConn) -> bool {
        let Some(Client { socket, uid }) = self.open.remove(&conn) else { return false };
        self.held.remove(&conn);
        self.rounds.forget(uid, conn);
        if let Err(error) = poller.remove(socket.as_fd()) {
            debug!(connection = conn.0, "it was not polled any more: {error}");
        }
        self.closer.end(socket);
        true
    }

    /// Whether the connection is there.
    pub fn is_open(&self, conn: ClientConn) -> bool {
        self.open.contains_key(&conn)
    }

    /// The process at the other end, where the kernel tells by the socket.
    ///
    /// # Errors
    ///
    /// That process is gone.
    pub fn pidfd(&self, conn: ClientConn) -> Result<Option<OwnedFd>, SocketError> {
        self.open.get(&conn).map_or(Ok(None), |client| client.socket.peer_pidfd())
    }

    /// When the process started that has the pid of the one at the other end.
    fn process_started(&self, conn: ClientConn) -> Option<Event> {
        let peer = self.open.get(&conn)?.socket.peer().ok()?;
        let at = process::start_time(peer.pid).ok()?;
        Some(Event::ProcessStarted { conn, at })
    }
}

/// Who is at the other end; `None` if its process cannot be seen from here.
pub fn peer_of(socket: &Socket) -> Option<Peer> {
    let peer = match socket.peer() {
        Ok(peer) => peer,
        Err(error) => {
            warn!("a peer was not taken in: {error}");
            return None;
        }
    };
    let (pid, uid, gid, groups) = (peer.pid, peer.uid, peer.gid, peer.groups);
    if pid == 0 {
        info!(uid, "a peer was not taken in: its process is of a namespace that is not seen");
        return None;
    }
    Some(Peer { pid, lived_at: clock::boot_ticks(), uid, gid, groups })
}

/// Bytes that come back for a request.
fn answer_bytes(request: &ClientRequest) -> usize {
    match request {
        ClientRequest::Data(data) => data.answer_bytes(),
        _ => 0,
    }
}

/// Reads a request. The syntax alone is looked at here.
fn read(
    frame: &[u8],
    fds: usize,
    truncated: bool,
) -> Result<(RequestId, ClientRequest), WireError> {
    if truncated {
        return Err(WireError::TooLong { bytes: frame.len() as u64 });
    }
    let header = wire::decode_header(frame, fds)?;
    if header.fds != 0 {
        return Err(WireError::Fds { claimed: header.fds, came: fds as u64 });
    }
    Ok((RequestId(header.request), wire::decode_body(frame)?))
}

#[cfg(test)]
mod tests;

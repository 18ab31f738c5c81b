//! Connections of daemons.
//!
//! # Invariants
//!
//! 1. What a daemon does not take at once waits in a queue of at most [`QUEUE_BYTES_MAX`]; a daemon
//!    that lets it overflow is dropped, and reports again when it comes back.
//! 2. Only the service's own user gets in: the file's mode says so, and the credentials are looked
//!    at.
//! 3. A daemon gets its requests in the order in which they were sent. One that nobody waits for
//!    ([`may_wait`]) goes with the next, or when [`Daemons::due_at`] says, whichever is first.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::daemon::{DaemonMessage, DaemonRequest};
use dmce_abi::wire::{self, FrameHeader, WireError};
use dmce_broker::dispatcher::{DaemonConn, Event, Millis, RequestId};
use dmce_sys::poll::{Interest, Poller, Ready, is_hung_up};
use dmce_sys::socket::{Listener, Socket, SocketError};
use tracing::{info, warn};

use super::clients::peer_of;
use super::door::Door;
use super::{ServerError, Source, now};

/// Bytes that may wait for one daemon: about 100,000 requests to destroy a block.
const QUEUE_BYTES_MAX: usize = 8 << 20;

/// How long a request waits that may: at least one whole millisecond.
const WAIT_MS: u64 = 2;

/// Frames, and bytes of them, taken from one daemon before others have their turn.
const FRAMES_A_TURN: usize = 64;
const BYTES_A_TURN: usize = 4 * FRAME_BYTES_MAX;

struct Connection {
    socket: Socket,
    waiting: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    waiting_bytes: usize,
    /// When what waits is to be sent, if nothing goes before.
    due_at: Option<Millis>,
    /// Whether the poller tells when it takes more.
    blocked: bool,
}

/// All connections of daemons, and where they come from.
pub struct Daemons {
    door: Door,
    open: BTreeMap<DaemonConn, Connection>,
    next: u64,
    buffer: Vec<u8>,
}

impl Connection {
    /// Has the poller tell when the daemon takes more, if something waits for it.
    fn watch(&mut self, poller: &Poller, conn: DaemonConn) -> io::Result<()> {
        let blocked = !self.waiting.is_empty();
        if self.blocked == blocked {
            return Ok(());
        }
        self.blocked = blocked;
        let interest = if blocked { Interest::BOTH } else { Interest::READ };
        poller.modify(self.socket.as_fd(), Source::Daemon.token(conn.0), interest)
    }
}

impl Daemons {
    /// Listens at `daemon.sock` in `dir`.
    pub fn listen(poller: &Poller, dir: &Path) -> Result<Self, ServerError> {
        let listener = Listener::bind(dir.join("daemon.sock"), 0o600)?;
        let door = Door::open(poller, listener, Source::DaemonListener.token(0))?;
        let buffer = vec![0; FRAME_BYTES_MAX + 1];
        Ok(Self { door, open: BTreeMap::new(), next: 1, buffer })
    }

    /// Where they come from.
    pub const fn door(&mut self) -> &mut Door {
        &mut self.door
    }

    /// Takes in who has connected.
    pub fn accept(&mut self, poller: &Poller, events: &mut VecDeque<Event>) {
        while let Some(socket) = self.door.accept(poller, now().millis) {
            let Some(peer) = peer_of(&socket) else { continue };
            let conn = DaemonConn(self.next);
            let token = Source::Daemon.token(conn.0);
            if let Err(error) = poller.add(socket.as_fd(), token, Interest::READ) {
                warn!("a daemon was not taken in: {error}");
                continue;
            }
            self.next += 1;
            let waiting = VecDeque::new();
            let connection =
                Connection { socket, waiting, waiting_bytes: 0, due_at: None, blocked: false };
            self.open.insert(conn, connection);
            events.push_back(Event::DaemonConnected { conn, peer });
        }
    }

    /// Takes in what a daemon has sent, and sends on what waits for it.
    pub fn ready(
        &mut self,
        poller: &Poller,
        ready: Ready,
        number: u64,
        events: &mut VecDeque<Event>,
    ) {
        let conn = DaemonConn(number);
        if ready.writable && !self.flush(poller, conn) {
            return events.push_back(Event::DaemonHungUp { conn });
        }
        if !ready.readable && !ready.hangup {
            return;
        }
        let mut bytes = 0;
        for _ in 0..FRAMES_A_TURN {
            if bytes >= BYTES_A_TURN {
                return;
            }
            let Some(connection) = self.open.get(&conn) else { return };
            let mut fds = Vec::new();
            let received = match connection.socket.try_recv(&mut self.buffer, &mut fds) {
                Ok(received) => received,
                Err(SocketError::WouldBlock { .. }) => return,
                Err(_) => {
                    self.open.remove(&conn);
                    return events.push_back(Event::DaemonHungUp { conn });
                }
            };
            bytes += received.bytes;
            let frame = &self.buffer[..received.bytes];
            let (request_id, message) = match read(frame, fds.len(), received.truncated) {
                Ok(read) => read,
                Err(error) => {
                    let reason = format!("a frame that is none: {error}");
                    return events.push_back(Event::DaemonHostile { conn, reason });
                }
            };
            events.push_back(Event::DaemonMessage { conn, request_id, message });
        }
    }

    /// Sends a request: now, or when the daemon takes it, or, if it may wait, in a moment. `false`:
    /// the connection is gone.
    pub fn send(
        &mut self,
        poller: &Poller,
        conn: DaemonConn,
        request_id: RequestId,
        request: &DaemonRequest,
    ) -> bool {
        if !self.queue(conn, (request_id, request), None) {
            return false;
        }
        match self.open.get_mut(&conn) {
            Some(connection) if may_wait(request) => {
                connection.due_at.get_or_insert_with(|| now().millis.after(WAIT_MS));
                true
            }
            _ => self.flush(poller, conn),
        }
    }

    /// When something is to be sent that waits.
    pub fn due_at(&self) -> Option<Millis> {
        self.open.values().filter_map(|connection| connection.due_at).min()
    }

    /// Sends what has waited long enough.
    pub fn tend(&mut self, poller: &Poller, now: Millis, events: &mut VecDeque<Event>) {
        let is_due = |connection: &Connection| connection.due_at.is_some_and(|at| at <= now);
        let due = self.open.iter().filter(|(_, connection)| is_due(connection));
        let due: Vec<DaemonConn> = due.map(|(conn, _)| *conn).collect();
        for conn in due {
            if !self.flush(poller, conn) {
                events.push_back(Event::DaemonHungUp { conn });
            }
        }
    }

    /// Makes a link and sends the daemon its end; the client's, if the connection is there.
    pub fn link(
        &mut self,
        poller: &Poller,
        conn: DaemonConn,
        request: &DaemonRequest,
    ) -> Result<OwnedFd, SocketError> {
        if !self.is_open(conn) {
            return Err(SocketError::Closed);
        }
        let (client, daemon) = Socket::pair()?;
        if self.queue(conn, (RequestId(0), request), Some(daemon.into_fd()))
            && self.flush(poller, conn)
        {
            Ok(client.into_fd())
        } else {
            Err(SocketError::Closed)
        }
    }

    /// Has a request wait, behind all others. `false`: the connection is gone.
    fn queue(
        &mut self,
        conn: DaemonConn,
        (request_id, request): (RequestId, &DaemonRequest),
        fd: Option<OwnedFd>,
    ) -> bool {
        let Some(connection) = self.open.get_mut(&conn) else { return true };
        let header = FrameHeader { request: request_id.0, fds: u16::from(fd.is_some()) };
        let frame = wire::encode(header, request).expect("every request to a daemon fits a frame");
        connection.waiting_bytes += frame.len();
        connection.waiting.push_back((frame, fd));
        if connection.waiting_bytes > QUEUE_BYTES_MAX {
            warn!(connection = conn.0, "a daemon takes no requests: dropped");
            self.open.remove(&conn);
            return false;
        }
        true
    }

    /// Sends what waits, as far as the daemon takes it. `false`: the connection is gone.
    fn flush(&mut self, poller: &Poller, conn: DaemonConn) -> bool {
        let Some(connection) = self.open.get_mut(&conn) else { return true };
        connection.due_at = None;
        let mut sent = Ok(());
        while let Some((frame, fd)) = connection.waiting.front() {
            let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
            sent = connection.socket.try_send(frame, &fds);
            if sent.is_err() {
                break;
            }
            connection.waiting_bytes -= frame.len();
            connection.waiting.pop_front();
        }
        let watched = connection.watch(poller, conn);
        if matches!(sent, Ok(()) | Err(SocketError::WouldBlock { .. })) && watched.is_ok() {
            return true;
        }
        self.open.remove(&conn);
        false
    }

    /// Ends a connection.
    pub fn close(&mut self, conn: DaemonConn, reason: &str) {
        if self.open.remove(&conn).is_some() {
            info!(connection = conn.0, "daemon closed: {reason}");
        }
    }

    /// Whether the other end of the connection is there: then its daemon has been there until now.
    pub fn lives(&self, conn: DaemonConn) -> bool {
        let connection = self.open.get(&conn);
        connection.is_some_and(|c| !is_hung_up(c.socket.as_fd()).unwrap_or(true))
    }

    /// Whether the connection is there.
    pub fn is_open(&self, conn: DaemonConn) -> bool {
        self.open.contains_key(&conn)
    }
}

/// Whether a request may wait for others, so that they wake the daemon together. Taken is nothing
/// that anybody waits for. Sent at once, it would have the daemon run before the client whom it was
/// answered for, where they share a processor.
const fn may_wait(request: &DaemonRequest) -> bool {
    matches!(request, DaemonRequest::Taken { .. })
}

fn read(
    frame: &[u8],
    fds: usize,
    truncated: bool,
) -> Result<(RequestId, DaemonMessage), WireError> {
    if truncated {
        return Err(WireError::TooLong { bytes: frame.len() as u64 });
    }
    let header = wire::decode_header(frame, fds)?;
    Ok((RequestId(header.request), wire::decode_body(frame)?))
}

#[cfg(test)]
mod tests;

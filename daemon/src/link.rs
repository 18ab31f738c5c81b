//! The connection to the broker: made, lost and made again.
//!
//! ```text
//!            connect                     Settled
//!  AWAY ----------------> CONNECTED ------------------> the pauses between attempts
//!   ^  |  not now: a       |                            are short again
//!   |  +-- pause, longer   | hang-up, a frame that is no message,
//!   |      each time       | a peer that does not read
//!   +----------------------+
//! ```
//!
//! # Invariants
//!
//! 1. Nothing here waits: what does not fit the socket is kept in order and sent when it does.
//! 2. A frame is understood whole or ends the connection; nothing that a peer sends ends more.
//! 3. Connections are numbered, and no number is used twice.
//! 4. The peer is of the daemon's own user: the kernel says so.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::daemon::{DaemonMessage, DaemonRequest};
use dmce_abi::wire::{self, FrameHeader, WireError};
use dmce_sys::identity;
use dmce_sys::object::ObjectError;
use dmce_sys::poll::{Interest, Poller, is_hung_up};
use dmce_sys::socket::{Socket, SocketError};
use tracing::{debug, info, warn};

use crate::turns::TooManyWaiting;

/// The pause after the first attempt that fails, and the longest.
const PAUSE_MS_MIN: u64 = 20;
const PAUSE_MS_MAX: u64 = 500;

/// Frames that wait to be sent: the report of a full daemon, and answers.
const FRAMES_WAITING_MAX: usize = 1 << 17;

/// Why the connection ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The broker is gone, or has closed the connection.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// What came is no message to a daemon.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// What came is longer than a frame.
    #[error("a frame is longer than {FRAME_BYTES_MAX} bytes or came with too many descriptors")]
    Truncated,
    /// The broker does not read.
    #[error("{FRAMES_WAITING_MAX} frames wait to be sent")]
    Congested,
    /// Whoever listens is not the broker of this user.
    #[error("the listener is of user {uid}")]
    Stranger {
        /// Its user.
        uid: u32,
    },
    /// Descriptors came with what takes none, or none with what takes one.
    #[error("{count} descriptors came with a request that takes another number")]
    Descriptors {
        /// How many came.
        count: usize,
    },
    /// The broker asks for more than can wait.
    #[error(transparent)]
    TooManyWaiting(#[from] TooManyWaiting),
    /// What there is to report could not be looked at.
    #[error("the objects could not be looked at")]
    Objects(#[from] ObjectError),
    /// The connection cannot be waited for.
    #[error("the connection cannot be polled")]
    Poll(#[from] io::Error),
}

/// A request, its number, and what came along.
pub type Arrival = (u64, DaemonRequest, Option<OwnedFd>);

/// The connection, or its absence.
#[derive(Debug)]
pub struct Link {
    path: PathBuf,
    token: u64,
    connections: u64,
    pause_ms: u64,
    state: State,
    buffer: Vec<u8>,
}

#[derive(Debug)]
enum State {
    Away { retry_at_ms: u64 },
    Connected { socket: Socket, waiting: VecDeque<Vec<u8>>, blocked: bool },
}

impl Link {
    /// None yet. The listener is at `path`; the poller will report the connection as `token`.
    pub fn new(path: PathBuf, token: u64) -> Self {
        let state = State::Away { retry_at_ms: 0 };
        let buffer = vec![0; FRAME_BYTES_MAX];
        Self { path, token, connections: 0, pause_ms: PAUSE_MS_MIN, state, buffer }
    }

    /// The number of the connection that there is.
    pub fn connection(&self) -> Option<u64> {
        matches!(self.state, State::Connected { .. }).then_some(self.connections)
    }

    /// How long to wait before the next attempt, if there is no connection.
    pub fn pause(&self, now_ms: u64) -> Option<Duration> {
        match self.state {
            State::Away { retry_at_ms } => {
                Some(Duration::from_millis(retry_at_ms.saturating_sub(now_ms)))
            }
            State::Connected { .. } => None,
        }
    }

    /// Connects, if it is time to and there is no connection. True if there is one then.
    pub fn connect(&mut self, now_ms: u64, poller: &Poller) -> bool {
        match self.state {
            State::Away { retry_at_ms } if retry_at_ms <= now_ms => {}
            _ => return false,
        }
        match self.try_connect(poller) {
            Ok(socket) => {
                self.connections += 1;
                self.state = State::Connected { socket, waiting: VecDeque::new(), blocked: false };
                info!(connection = self.connections, "connected to the broker");
                true
            }
            Err(error) => {
                // Once is enough for the log; how often it was tried is for those who look closer.
                match self.pause_ms {
                    PAUSE_MS_MIN => info!(%error, "waiting for the broker"),
                    pause_ms => debug!(%error, pause_ms, "still waiting for the broker"),
                }
                self.stay_away(now_ms);
                false
            }
        }
    }

    /// Takes a message to be sent.
    ///
    /// # Errors
    ///
    /// [`LinkError::Congested`], and a message that no frame holds. Without a connection there is
    /// nobody to tell, and no error.
    pub fn send(&mut self, request: u64, message: &DaemonMessage) -> Result<(), LinkError> {
        let State::Connected { waiting, .. } = &mut self.state else { return Ok(()) };
        if waiting.len() >= FRAMES_WAITING_MAX {
            return Err(LinkError::Congested);
        }
        waiting.push_back(wire::encode(FrameHeader { request, fds: 0 }, message)?);
        Ok(())
    }

    /// Sends what fits the socket now, and asks to be woken for the rest.
    ///
    /// # Errors
    ///
    /// [`LinkError`].
    pub fn flush(&mut self, poller: &Poller) -> Result<(), LinkError> {
        let State::Connected { socket, waiting, blocked } = &mut self.state else { return Ok(()) };
        while let Some(frame) = waiting.front() {
            match socket.try_send(frame, &[]) {
                Ok(()) => _ = waiting.pop_front(),
                Err(SocketError::WouldBlock { .. }) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let rest = !waiting.is_empty();
        if *blocked != rest {
            *blocked = rest;
            let interest = Interest { read: true, write: rest };
            poller.modify(socket.as_fd(), self.token, interest)?;
        }
        Ok(())
    }

    /// Checks that the broker of the connection lives. What a dead one asked for must not be done:
    /// the next may have looked at the names already, and given the same ids to others.
    ///
    /// # Errors
    ///
    /// [`LinkError`] says why the connection has to end.
    pub fn check(&self) -> Result<(), LinkError> {
        let State::Connected { socket, .. } = &self.state else { return Ok(()) };
        if is_hung_up(socket.as_fd())? { Err(SocketError::Closed.into()) } else { Ok(()) }
    }

    /// The next request that has come, with its number, and the socket of a new link.
    ///
    /// # Errors
    ///
    /// As [`Link::check`].
    pub fn receive(&mut self) -> Result<Option<Arrival>, LinkError> {
        let State::Connected { socket, .. } = &self.state else { return Ok(None) };
        self.check()?;
        let mut fds = Vec::new();
        let received = match socket.try_recv(&mut self.buffer, &mut fds) {
            Ok(received) => received,
            Err(SocketError::WouldBlock { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if received.truncated {
            return Err(LinkError::Truncated);
        }
        let frame = &self.buffer[..received.bytes];
        let header = wire::decode_header(frame, fds.len())?;
        let request: DaemonRequest = wire::decode_body(frame)?;
        let count = fds.len();
        if count != usize::from(matches!(request, DaemonRequest::Link { .. })) {
            return Err(LinkError::Descriptors { count });
        }
        Ok(Some((header.request, request, fds.pop())))
    }

    /// The broker has taken the report in: it serves.
    pub fn settled(&mut self) {
        self.pause_ms = PAUSE_MS_MIN;
    }

    /// Ends the connection.
    pub fn disconnect(&mut self, now_ms: u64, poller: &Poller, error: &LinkError) {
        let State::Connected { socket, .. } = &self.state else { return };
        warn!(connection = self.connections, %error, "the connection to the broker ends");
        if let Err(error) = poller.remove(socket.as_fd()) {
            debug!(%error, "the connection was not polled any more");
        }
        self.stay_away(now_ms);
    }

    fn try_connect(&self, poller: &Poller) -> Result<Socket, LinkError> {
        let socket = Socket::try_connect(&self.path)?;
        let uid = socket.peer()?.uid;
        if uid != identity::effective_uid() {
            return Err(LinkError::Stranger { uid });
        }
        poller.add(socket.as_fd(), self.token, Interest::READ)?;
        Ok(socket)
    }

    fn stay_away(&mut self, now_ms: u64) {
        self.state = State::Away { retry_at_ms: now_ms.saturating_add(self.pause_ms) };
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use dmce_abi::wire::daemon::DaemonAnswer;
    use dmce_sys::socket::Listener;

    use super::*;

    const TOKEN: u64 = 1;

    fn path(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("dmce-test-link-{}-{name}", std::process::id()))
    }

    #[test]
    fn the_pause_grows_to_half_a_second_and_is_short_again_after_a_broker_has_settled() {
        let poller = Poller::new().unwrap();
        let mut link = Link::new(path("away"), TOKEN);
        let mut now = 1000;
        for pause in [20, 40, 80, 160, 320, 500, 500] {
            assert!(!link.connect(now, &poller));
            assert_eq!(link.pause(now), Some(Duration::from_millis(pause)));
            assert!(!link.connect(now + pause - 1, &poller), "it is not time yet");
            assert_eq!(link.pause(now + pause), Some(Duration::ZERO));
            now += pause;
        }
        link.settled();
        assert!(!link.connect(now, &poller));
        assert_eq!(link.pause(now), Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_broker_whose_queue_is_full_is_not_waited_for() {
        let path = path("full");
        let listener = Listener::bind(&path, 0o600).unwrap();
        while Socket::try_connect(&path).is_ok() {}
        let (tell, told) = mpsc::channel();
        let its = path.clone();
        thread::spawn(move || {
            let poller = Poller::new().unwrap();
            let mut link = Link::new(its, TOKEN);
            assert!(!link.connect(0, &poller));
            tell.send((link, poller)).unwrap();
        });
        let connected = told.recv_timeout(Duration::from_secs(60));
        let (mut link, poller) = connected.expect("the loop of a daemon waits for nobody");
        assert_eq!(link.pause(0), Some(Duration::from_millis(20)));
        drop(listener.accept_nonblocking().unwrap());
        assert!(link.connect(20, &poller));
        listener.unlink().unwrap();
    }

    #[test]
    fn a_broker_that_does_not_read_is_not_waited_for() {
        let path = path("congested");
        let listener = Listener::bind(&path, 0o600).unwrap();
        let poller = Poller::new().unwrap();
        let mut link = Link::new(path, TOKEN);
        assert!(link.connect(0, &poller));
        assert_eq!(link.connection(), Some(1));
        let done = DaemonMessage::Reply(Ok(DaemonAnswer::Done));
        let mut sent = 0;
        let error = loop {
            if let Err(error) = link.send(7, &done).and_then(|()| link.flush(&poller)) {
                break error;
            }
            sent += 1;
        };
        assert!(matches!(error, LinkError::Congested), "{error}");
        assert!(sent > FRAMES_WAITING_MAX, "what the socket takes is not counted");
        // It reads after all, and gets everything, whole and in order.
        let peer = listener.accept_nonblocking().unwrap();
        let (mut buffer, mut fds, mut received) = (vec![0; FRAME_BYTES_MAX], Vec::new(), 0);
        while received < sent {
            link.flush(&poller).unwrap();
            while peer.try_recv(&mut buffer, &mut fds).is_ok() {
                received += 1;
            }
        }
        link.disconnect(0, &poller, &error);
        assert_eq!((link.connection(), received), (None, sent));
        listener.unlink().unwrap();
    }
}

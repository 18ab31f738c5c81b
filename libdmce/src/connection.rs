//! A connection to a broker or a daemon: one request, one reply, with a time limit.
//!
//! # Invariants
//!
//! 1. A reply is taken only for the request whose id it repeats. One that comes after its asker
//!    gave up is dropped with its descriptors: who gives up undoes what may have been done.
//! 2. After an error that leaves the two sides apart ([`ConnectionError::is_broken`]) the
//!    connection is of no more use; a refusal or a timeout leaves it whole.
//! 3. Nothing here waits longer than the deadline, or when it is interrupted.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::{self, FrameHeader, Refusal, Reply, WireError};
use dmce_sys::clock::monotonic_ns;
use dmce_sys::poll::{EventFd, Interest, wait_readable, wait_unless, wait_writable};
use dmce_sys::socket::{Socket, SocketError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::options::Options;

/// What came with a reply.
pub type Answer = (ClientReply, Vec<OwnedFd>);

/// A connection, by default to a broker.
#[derive(Debug)]
pub struct Connection<Q = ClientRequest, A = ClientReply> {
    socket: Socket,
    messages: PhantomData<fn(&Q) -> A>,
    /// Whether the last request was sent whole.
    was_sent: bool,
    next_request: u64,
    frame: Vec<u8>,
    /// Requests that were given up, and whose answer is still to come.
    owed: u64,
    /// What ends all waiting when it is readable.
    interrupt: Option<Arc<EventFd>>,
}

/// A request that was sent and has no answer yet.
#[derive(Debug)]
pub(crate) struct Asked(u64);

/// A frame from the other end.
struct Received<A> {
    request: u64,
    /// `None` if the descriptors did not fit into this process.
    reply: Option<(Reply<A>, Vec<OwnedFd>)>,
}

impl Connection {
    /// Connects to the broker that listens at `path`, and waits for room in its queue as long as
    /// [`Options::DEFAULT_TIMEOUT_MS`].
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Socket`]; [`ConnectionError::Timeout`] if there was no room in the queue.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectionError> {
        Self::connect_until(path, Deadline::after_ms(Options::DEFAULT_TIMEOUT_MS))
    }

    /// [`Connection::connect`] with a deadline; after that it is tried once.
    ///
    /// # Errors
    ///
    /// As [`Connection::connect`].
    pub fn connect_until(
        path: impl AsRef<Path>,
        deadline: Deadline,
    ) -> Result<Self, ConnectionError> {
        match Socket::connect_within(path, deadline.left().unwrap_or_default()) {
            Err(SocketError::WouldBlock { .. }) => Err(ConnectionError::Timeout),
            connected => Ok(Self::over(connected?)),
        }
    }

    /// A connection to a broker over a socket that is connected already.
    #[must_use]
    pub fn over(socket: Socket) -> Self {
        Self::to(socket)
    }
}

impl<Q: Serialize, A: DeserializeOwned> Connection<Q, A> {
    /// A connection to whoever answers `A` to `Q`.
    pub(crate) fn to(socket: Socket) -> Self {
        let frame = vec![0; FRAME_BYTES_MAX];
        let (messages, was_sent) = (PhantomData, false);
        Self { socket, messages, was_sent, next_request: 1, frame, owed: 0, interrupt: None }
    }

    /// Asks, and waits for the answer as long as [`Options::DEFAULT_TIMEOUT_MS`].
    ///
    /// # Errors
    ///
    /// [`ConnectionError::Refused`] with the broker's reason; else the request may or may not have
    /// been done.
    pub fn request(&mut self, request: &Q) -> Result<(A, Vec<OwnedFd>), ConnectionError> {
        self.request_until(request, Deadline::after_ms(Options::DEFAULT_TIMEOUT_MS))
    }

    /// [`Connection::request`] with a deadline.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`].
    pub fn request_until(
        &mut self,
        request: &Q,
        deadline: Deadline,
    ) -> Result<(A, Vec<OwnedFd>), ConnectionError> {
        let asked = self.ask(request, deadline)?;
        self.answer(asked, deadline)
    }

    /// Asks. The answer is to be taken before anything else is asked.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`], but for a refusal.
    pub(crate) fn ask(
        &mut self,
        request: &Q,
        deadline: Deadline,
    ) -> Result<Asked, ConnectionError> {
        let id = self.next_request;
        self.next_request += 1;
        self.was_sent = false;
        self.send(id, request, deadline)?;
        self.was_sent = true;
        Ok(Asked(id))
    }

    /// Waits for the answer to what was asked.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`].
    pub(crate) fn answer(
        &mut self,
        Asked(id): Asked,
        deadline: Deadline,
    ) -> Result<(A, Vec<OwnedFd>), ConnectionError> {
        loop {
            // The answer is hardly ever there yet: who waits first asks the kernel once less.
            let waited = self.wait(Interest::READ, deadline);
            let received = match waited.and_then(|()| self.receive(deadline)) {
                Err(error) => {
                    self.owed += 1;
                    return Err(error);
                }
                Ok(received) => received,
            };
            if received.request == id {
                let (reply, fds) = received.reply.ok_or(ConnectionError::NoDescriptor)?;
                return Ok((reply.map_err(ConnectionError::Refused)?, fds));
            }
            if received.request == 0 {
                return Err(ConnectionError::Ended);
            }
            self.owed = self.owed.saturating_sub(1);
        }
    }

    /// Whether the last request may have been done, although it ended with this error.
    pub(crate) const fn may_be_done(&self, error: &ConnectionError) -> bool {
        let is_undone =
            matches!(error, ConnectionError::Ended | ConnectionError::Socket(SocketError::Reset));
        self.was_sent && !is_undone
    }

    /// Tells the broker something that it does not answer.
    ///
    /// # Errors
    ///
    /// As [`Connection::request`], but for a refusal.
    pub fn notice(&mut self, notice: &Q, deadline: Deadline) -> Result<(), ConnectionError> {
        self.send(0, notice, deadline)
    }

    /// Whether the other end is there still. Takes in replies that nobody waits for any more.
    pub(crate) fn is_alive(&mut self) -> bool {
        loop {
            match self.receive(Deadline::after_ms(0)) {
                Ok(_) => self.owed = self.owed.saturating_sub(1),
                Err(error) => return !error.is_broken(),
            }
        }
    }

    /// Whether replies are to come that nobody waits for.
    pub(crate) const fn is_owed(&self) -> bool {
        self.owed > 0
    }

    /// Lets a descriptor end all waiting by becoming readable; `None`: nothing but time does.
    pub(crate) fn set_interrupt(&mut self, interrupt: Option<Arc<EventFd>>) {
        self.interrupt = interrupt;
    }

    fn wait(&self, interest: Interest, deadline: Deadline) -> Result<(), ConnectionError> {
        let left = Some(deadline.left().ok_or(ConnectionError::Timeout)?);
        let fd = self.socket.as_fd();
        let interrupted = match &self.interrupt {
            Some(interrupt) => wait_unless(fd, interest, interrupt.as_fd(), left)?,
            None if interest == Interest::WRITE => {
                wait_writable(fd, left)?;
                false
            }
            None => {
                wait_readable(fd, left)?;
                false
            }
        };
        if interrupted { Err(ConnectionError::Interrupted) } else { Ok(()) }
    }

    fn send(&mut self, id: u64, request: &Q, deadline: Deadline) -> Result<(), ConnectionError> {
        let frame = wire::encode(FrameHeader { request: id, fds: 0 }, request)?;
        loop {
            match self.socket.try_send(&frame, &[]) {
                Err(SocketError::WouldBlock { .. }) => {
                    self.wait(Interest::WRITE, deadline)?;
                }
                sent => return Ok(sent?),
            }
        }
    }

    fn receive(&mut self, deadline: Deadline) -> Result<Received<A>, ConnectionError> {
        let mut fds = Vec::new();
        let received = loop {
            match self.socket.try_recv(&mut self.frame, &mut fds) {
                Err(SocketError::WouldBlock { .. }) => {
                    self.wait(Interest::READ, deadline)?;
                }
                received => break received?,
            }
        };
        let frame = &self.frame[..received.bytes];
        if received.truncated {
            return Ok(Received { request: wire::peek_request(frame), reply: None });
        }
        let header = wire::decode_header(frame, fds.len())?;
        Ok(Received { request: header.request, reply: Some((wire::decode_body(frame)?, fds)) })
    }
}

impl<Q, A> AsFd for Connection<Q, A> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The moment at which a call gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    at_ns: u64,
}

impl Deadline {
    /// None.
    pub const NEVER: Self = Self { at_ns: u64::MAX };

    /// The moment `timeout_ms` from now.
    #[must_use]
    pub fn after_ms(timeout_ms: u32) -> Self {
        Self { at_ns: monotonic_ns().saturating_add(u64::from(timeout_ms) * 1_000_000) }
    }

    /// The moment on the monotonic clock.
    pub(crate) const fn at_ns(self) -> u64 {
        self.at_ns
    }

    /// The time until then; `None` if it is over.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        let left_ns = self.at_ns.saturating_sub(monotonic_ns());
        (left_ns > 0).then(|| Duration::from_nanos(left_ns))
    }
}

/// Why a request has no answer, or a refusal for one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The broker's own answer.
    #[error("{}", .0.text)]
    Refused(Refusal),
    /// The other end has said that it ends the connection: the request was not done.
    #[error("the other end closes the connection")]
    Ended,
    /// No answer in time; one that comes later is dropped.
    #[error("the broker did not answer in time")]
    Timeout,
    /// The session is being closed by another call.
    #[error("the session was closed while a call waited for the broker")]
    Interrupted,
    /// The connection could not be made, or has ended.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// What came is no message of this protocol.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The reply's descriptors did not fit into this process.
    #[error("this process has no descriptor left for what the broker sent")]
    NoDescriptor,
    /// The kernel could not wait.
    #[error("waiting for the broker failed")]
    Wait(#[from] std::io::Error),
}

impl ConnectionError {
    /// Whether the connection is of no more use.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        let too_long = Self::is_too_long(self);
        let whole = matches!(
            self,
            Self::Refused(_) | Self::Timeout | Self::Interrupted | Self::NoDescriptor
        );
        !whole && !too_long
    }

    /// Whether the request was certainly not done.
    #[must_use]
    pub(crate) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_)) || self.is_too_long()
    }

    /// The status that a caller gets.
    #[must_use]
    pub const fn status(&self) -> Status {
        match self {
            Self::Refused(refusal) => refusal.status,
            Self::Socket(SocketError::Denied { .. }) => Status::Denied,
            Self::Wire(WireError::Version { .. }) => Status::Version,
            Self::Wire(WireError::TooLong { .. }) => Status::Invalid,
            Self::NoDescriptor => Status::NoMem,
            Self::Interrupted => Status::Closed,
            _ => Status::Unavailable,
        }
    }

    /// Whether the request did not fit a frame; nothing was sent.
    const fn is_too_long(&self) -> bool {
        matches!(self, Self::Wire(WireError::TooLong { .. }))
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::Refused(refusal) => refusal.into(),
            other => Self::new(other.status(), other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmce_abi::block::BlockId;
    use std::thread;

    /// Answers requests by what `answer` makes of them, until the other end closes.
    fn serve(socket: &Socket, mut answer: impl FnMut(FrameHeader, ClientRequest) -> Vec<Vec<u8>>) {
        let (mut frame, mut fds) = (vec![0; FRAME_BYTES_MAX], Vec::new());
        while let Ok(received) = socket.recv(&mut frame, &mut fds) {
            let frame = &frame[..received.bytes];
            let header = wire::decode_header(frame, fds.len()).unwrap();
            for reply in answer(header, wire::decode_body(frame).unwrap()) {
                socket.send(&reply, &[]).unwrap();
            }
        }
    }

    fn reply(request: u64, body: &Reply<ClientReply>) -> Vec<u8> {
        wire::encode(FrameHeader { request, fds: 0 }, body).unwrap()
    }

    #[test]
    fn takes_the_reply_to_its_own_request_alone() {
        let (ours, theirs) = Socket::pair().unwrap();
        let server = thread::spawn(move || {
            serve(&theirs, |header, _| {
                let stale = reply(header.request + 7, &Ok(ClientReply::Grown { committed: 1 }));
                vec![stale, reply(header.request, &Ok(ClientReply::Done))]
            });
        });
        let mut connection = Connection::over(ours);
        for _ in 0..3 {
            let (reply, fds) = connection.request(&ClientRequest::Stat).unwrap();
            assert_eq!(reply, ClientReply::Done);
            assert!(fds.is_empty());
        }
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn a_refusal_leaves_the_connection_whole_and_keeps_its_numbers() {
        let (ours, theirs) = Socket::pair().unwrap();
        let server = thread::spawn(move || {
            serve(&theirs, |header, _| {
                vec![reply(header.request, &Err(Refusal::new(Status::Quota, "8 of 4")))]
            });
        });
        let mut connection = Connection::over(ours);
        let refused =
            connection.request(&ClientRequest::Damaged(BlockId::try_from(3).unwrap())).unwrap_err();
        assert!(!refused.is_broken());
        assert_eq!(Error::from(refused), Error::new(Status::Quota, "8 of 4"));
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn a_broker_of_another_version_is_named_as_such() {
        let (ours, theirs) = Socket::pair().unwrap();
        let server = thread::spawn(move || {
            serve(&theirs, |header, _| {
                let mut frame = reply(header.request, &Ok(ClientReply::Done));
                frame[4..6].copy_from_slice(&9_u16.to_le_bytes());
                vec![frame]
            });
        });
        let mut connection = Connection::over(ours);
        let error = connection.request(&ClientRequest::Stat).unwrap_err();
        assert!(error.is_broken());
        assert_eq!(error.status(), Status::Version);
        drop(connection);
        server.join().unwrap();
    }

    #[test]
    fn a_wait_is_ended_by_an_interrupt_and_the_answer_is_taken_up_later() {
        let (ours, theirs) = Socket::pair().unwrap();
        let mut connection = Connection::over(ours);
        let interrupt = Arc::new(EventFd::new().unwrap());
        connection.set_interrupt(Some(Arc::clone(&interrupt)));
        let waiter = thread::spawn(move || {
            let asked = connection.request(&ClientRequest::Stat);
            (connection, asked)
        });
        interrupt.signal().unwrap();
        let (mut connection, asked) = waiter.join().unwrap();
        let error = asked.unwrap_err();
        assert!(!error.is_broken());
        assert_eq!(error.status(), Status::Closed);
        assert!(connection.is_owed() && connection.is_alive());
        theirs.send(&reply(1, &Ok(ClientReply::Done)), &[]).unwrap();
        assert!(connection.is_alive() && !connection.is_owed());
    }

    #[test]
    fn gives_up_at_the_deadline_and_when_the_peer_is_gone() {
        let (ours, theirs) = Socket::pair().unwrap();
        let mut connection = Connection::over(ours);
        let now = Deadline::after_ms(0);
        let late = connection.request_until(&ClientRequest::Stat, now).unwrap_err();
        assert!(matches!(late, ConnectionError::Timeout));
        drop(theirs);
        let gone = connection.request(&ClientRequest::Stat).unwrap_err();
        assert!(gone.is_broken());
        assert_eq!(gone.status(), Status::Unavailable);
    }
}

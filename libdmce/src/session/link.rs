//! The session's connection to its broker, through the broker's deaths.
//!
//! ```text
//!   ask:  have a connection? -- no --> connect, Attach -- refused --> the session is over
//!            | yes                        |  nobody there: again, until the deadline
//!            v                            v
//!         request -- broken --> drop the connection, and from the beginning with the same request
//! ```
//!
//! # Invariants
//!
//! 1. One request is under way at a time; who waits for its turn does so until its own deadline.
//! 2. A request whose connection broke is repeated as it was. Those that must not be done twice
//!    carry a number, or name what they end by its GUID.
//! 3. An attached session is the one that was set up: same id, same GUID, same session object. The
//!    openings that its client was told of are told to each broker that it attaches to; those that
//!    this one does not have are over. The spans that it was granted are known by the time that the
//!    broker lists them.
//! 4. Who closes the session is not kept waiting by those who wait for the broker.
//! 5. What the broker has to wait for itself is waited for without the turn ([`Link::pause`]).
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::Guid;
use dmce_abi::wire::client::{
    Attach, ClientReply, ClientRequest, Opening, OpeningId, RegionOpen, SpanKey,
};
use dmce_shm::session::SessionIdentity;
use dmce_sys::object;
use dmce_sys::poll::{EventFd, Interest, Poller, wait_readable};

use crate::connection::{Answer, Connection, ConnectionError, Deadline};
use crate::error::Error;
use crate::turn::{Taken, Turn};

/// What the poller reports.
pub(super) mod token {
    pub(crate) const WAKE: u64 = 0;
    pub(crate) const DOORBELL: u64 = 1;
    pub(crate) const CONNECTION: u64 = 2;
}

const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// The connection of a session.
#[derive(Debug)]
pub(super) struct Link {
    path: PathBuf,
    identity: SessionIdentity,
    /// The session object's inode.
    inode: u64,
    state: Turn<State>,
    doorbell: Mutex<Arc<EventFd>>,
    poller: Poller,
    wake: EventFd,
    attached: AtomicBool,
    /// Openings that have ended otherwise than by a close, until their handles are told. Locked for
    /// moments, by who has the turn as well: nobody who only looks has to wait for the broker.
    ended: Mutex<BTreeSet<OpeningId>>,
    /// Set when the session was attached anew: the broker may have forgotten what it was told.
    renewed: AtomicBool,
    closing: AtomicBool,
    /// Readable from the moment `closing` is set.
    interrupt: Arc<EventFd>,
}

/// An opening that the broker told of.
#[derive(Debug)]
struct Known {
    opening: Opening,
    region: Guid,
}

#[derive(Debug)]
struct State {
    connection: Option<Connection>,
    /// The openings of regions that the broker told of and that have not ended since.
    openings: BTreeMap<OpeningId, Known>,
    /// The first blocks of the spans that were granted and not given back since.
    spans: BTreeSet<Guid>,
    /// Whether the service thread is woken by replies.
    is_watched: bool,
}

impl State {
    /// A request is sent: what it ends is not told to the next broker.
    fn sends(&mut self, request: &ClientRequest) {
        match request {
            ClientRequest::RegionClose(opening) => _ = self.openings.remove(opening),
            ClientRequest::Delete(delete) => _ = self.spans.remove(&delete.guid),
            _ => {}
        }
    }

    /// A request was done. Nobody else has had the turn since, so no broker was told less. Returns
    /// the openings that have ended with it.
    fn done(&mut self, request: &ClientRequest, reply: &ClientReply) -> Vec<OpeningId> {
        match (request, reply) {
            (
                ClientRequest::Malloc(_) | ClientRequest::MallocWith(_),
                ClientReply::Granted(granted),
            ) => {
                self.spans.insert(granted.first.guid);
            }
            (ClientRequest::RegionOpen(open), ClientReply::Opened(opened)) => {
                let RegionOpen { opening, read, write, .. } = *open;
                let told = Opening { opening, first: opened.first.block, read, write };
                self.openings.insert(opening, Known { opening: told, region: opened.guid });
            }
            // They go when the deletion begins, whatever becomes of it.
            (
                ClientRequest::RegionDelete(region),
                ClientReply::Done | ClientReply::NotYet { begun: true, .. },
            ) => {
                let all = self.openings.iter();
                let its = all.filter(|(_, known)| known.region == region.guid);
                let ended: Vec<OpeningId> = its.map(|(opening, _)| *opening).collect();
                for opening in &ended {
                    self.openings.remove(opening);
                }
                return ended;
            }
            _ => {}
        }
        Vec::new()
    }

    /// Of the openings that a broker does not have, those that it was told.
    fn disowned(&mut self, unknown: Vec<OpeningId>) -> Vec<OpeningId> {
        let told = unknown.into_iter().filter(|opening| self.openings.remove(opening).is_some());
        told.collect()
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum LinkError {
    /// The broker has refused it.
    Refused(Error),
    /// The request was not done: there is no broker in time.
    Failed(Error),
    /// Nobody waits for the answer any more. The request may have been done, or be done yet.
    GivenUp(Error),
    /// The broker died over a request that must not be done twice, and may have been done.
    Unsure,
    /// The broker does not know the session any more.
    Over(Error),
}

impl LinkError {
    /// Whether the request may have been done.
    pub(super) const fn may_be_done(&self) -> bool {
        match self {
            Self::GivenUp(_) | Self::Unsure => true,
            // It was done, and the broker had no descriptor for the answer.
            Self::Refused(error) => matches!(error.status(), Status::Lost | Status::Internal),
            Self::Failed(_) | Self::Over(_) => false,
        }
    }
}

/// What Setup or Attach brought.
#[derive(Debug)]
pub(super) struct Descriptors {
    /// The session object.
    pub object: OwnedFd,
    /// What the broker rings.
    pub doorbell: OwnedFd,
}

impl Descriptors {
    /// Takes the two descriptors of a Ready.
    pub(super) fn of(fds: Vec<OwnedFd>) -> Result<Self, Error> {
        let count = fds.len();
        let Ok([object, doorbell]) = <[OwnedFd; 2]>::try_from(fds) else {
            let text = format!("the broker sent {count} descriptors with a session, not 2");
            return Err(Error::new(Status::Internal, text));
        };
        Ok(Self { object, doorbell })
    }
}

/// What calls and the service thread wake one another by.
#[derive(Debug)]
pub(super) struct Wires {
    poller: Poller,
    wake: EventFd,
    interrupt: Arc<EventFd>,
}

impl Wires {
    /// Makes them.
    pub(super) fn new() -> Result<Self, Error> {
        let (poller, wake) = (
            Poller::new().map_err(|error| failed(&error))?,
            EventFd::new().map_err(|error| failed(&error))?,
        );
        let interrupt = Arc::new(EventFd::new().map_err(|error| failed(&error))?);
        poller.add(wake.as_fd(), token::WAKE, Interest::READ).map_err(|error| failed(&error))?;
        Ok(Self { poller, wake, interrupt })
    }
}

impl Link {
    /// The link over which the session was set up.
    pub(super) fn new(
        (mut connection, path): (Connection, PathBuf),
        identity: SessionIdentity,
        descriptors: Descriptors,
        Wires { poller, wake, interrupt }: Wires,
    ) -> Result<Self, Error> {
        let inode = inode_of(&descriptors.object)?;
        let doorbell = EventFd::from_fd(descriptors.doorbell).map_err(|error| failed(&error))?;
        connection.set_interrupt(Some(Arc::clone(&interrupt)));
        poller
            .add(doorbell.as_fd(), token::DOORBELL, Interest::READ)
            .map_err(|error| failed(&error))?;
        poller
            .add(connection.as_fd(), token::CONNECTION, Interest::NONE)
            .map_err(|error| failed(&error))?;
        Ok(Self {
            path,
            identity,
            inode,
            state: Turn::new(State {
                connection: Some(connection),
                openings: BTreeMap::new(),
                spans: BTreeSet::new(),
                is_watched: false,
            }),
            doorbell: Mutex::new(Arc::new(doorbell)),
            poller,
            wake,
            attached: AtomicBool::new(true),
            ended: Mutex::default(),
            renewed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            interrupt,
        })
    }

    /// Asks the broker; through its restarts, until the deadline.
    pub(super) fn ask(
        &self,
        request: &ClientRequest,
        deadline: Deadline,
    ) -> Result<Answer, LinkError> {
        let mut state = self.state.take(deadline).ok_or_else(no_turn)?;
        state.sends(request);
        if let ClientRequest::RegionClose(opening) = request {
            self.ended_openings().remove(opening);
        }
        let mut was_sent = false;
        loop {
            let connection = match self.connection(&mut state, deadline) {
                Err(LinkError::Failed(error)) if was_sent => return Err(LinkError::GivenUp(error)),
                connection => connection?,
            };
            let asked = connection.request_until(request, deadline);
            was_sent = true;
            match asked {
                Ok(answer) => {
                    let ended = state.done(request, &answer.0);
                    self.ended_openings().extend(ended);
                    self.watch_replies(&mut state);
                    return Ok(answer);
                }
                Err(error) if error.is_broken() => {
                    tracing::debug!(error = %error, "the connection to the broker has ended");
                    let is_unsure = counts(request) && connection.may_be_done(&error);
                    self.detach(&mut state);
                    if is_unsure {
                        return Err(LinkError::Unsure);
                    }
                    if deadline.left().is_none() {
                        return Err(LinkError::GivenUp(unavailable(&error)));
                    }
                }
                Err(error) if error.is_refusal() => return Err(LinkError::Refused(error.into())),
                Err(error) => {
                    self.watch_replies(&mut state);
                    return Err(LinkError::GivenUp(error.into()));
                }
            }
        }
    }

    /// Of spans that the broker listed, those that were never granted, as far as this side knows,
    /// or were given back. What is granted meanwhile is not in an older list.
    pub(super) fn unknown_of(
        &self,
        listed: Vec<SpanKey>,
        deadline: Deadline,
    ) -> Result<Vec<SpanKey>, LinkError> {
        let state = self.state.take(deadline).ok_or_else(no_turn)?;
        Ok(listed.into_iter().filter(|span| !state.spans.contains(&span.guid)).collect())
    }

    /// Waits before something is asked again. A close ends it.
    pub(super) fn pause(&self, pause: Duration) -> Result<(), LinkError> {
        // Nothing but an interrupt makes it readable.
        match wait_readable(self.interrupt.as_fd(), Some(pause)) {
            Ok(_) => Ok(()),
            Err(error) => Err(LinkError::Failed(unavailable(&error.into()))),
        }
    }

    /// Tells the broker something that it does not answer, if that takes no waiting.
    pub(super) fn try_tell(&self, notice: &ClientRequest) -> bool {
        let Some(mut state) = self.state.try_take() else { return false };
        let Some(connection) = &mut state.connection else { return false };
        match connection.notice(notice, Deadline::after_ms(0)) {
            Ok(()) => true,
            Err(error) => {
                if error.is_broken() {
                    self.detach(&mut state);
                }
                false
            }
        }
    }

    /// Takes the session up again if its connection has ended. One try.
    pub(super) fn reattach(&self, deadline: Deadline) -> Result<(), LinkError> {
        let mut state = self.state.take(deadline).ok_or_else(no_turn)?;
        match &state.connection {
            Some(_) => Ok(()),
            None => self.attach(&mut state, deadline),
        }
    }

    /// Drops the connection if its other end is gone, and takes up replies that nobody waits for.
    pub(super) fn tend(&self) {
        let Some(mut state) = self.state.try_take() else { return };
        if state.connection.as_mut().is_some_and(|connection| !connection.is_alive()) {
            self.detach(&mut state);
        }
        self.watch_replies(&mut state);
    }

    /// Ends all waiting for the broker, for good, but for that of [`Link::disconnect`].
    pub(super) fn interrupt(&self) {
        self.closing.store(true, Ordering::SeqCst);
        if let Err(error) = self.interrupt.signal() {
            tracing::warn!(error = %error, "calls that wait for the broker wait on");
        }
    }

    /// Ends the session, over the connection there is or one more try. After [`Link::interrupt`],
    /// so that the turn comes at once.
    ///
    /// False if the broker was not told, and may be told yet.
    pub(super) fn disconnect(&self, deadline: Deadline) -> bool {
        let Some(mut state) = self.state.take(deadline) else { return false };
        if state.connection.is_none() {
            match self.attach(&mut state, deadline) {
                Ok(()) => {}
                // It does not know the session any more.
                Err(LinkError::Over(_)) => return true,
                Err(_) => return false,
            }
        }
        let mut is_told = true;
        if let Some(connection) = &mut state.connection {
            connection.set_interrupt(None);
            if let Err(error) = connection.request_until(&ClientRequest::Disconnect, deadline) {
                tracing::debug!(error = %error, "the broker was not told of the session's end");
                is_told = error.is_refusal();
            }
        }
        // Nobody waits for it any more, so it need not be taken from the poller.
        state.connection = None;
        self.attached.store(false, Ordering::Release);
        is_told
    }

    /// What is readable from the moment that the session is being closed.
    pub(super) fn interrupt_fd(&self) -> Arc<EventFd> {
        Arc::clone(&self.interrupt)
    }

    /// Whether there is a connection, as far as is known.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.load(Ordering::Acquire)
    }

    /// Whether the session was attached anew since the last call.
    pub(super) fn take_renewed(&self) -> bool {
        self.renewed.swap(false, Ordering::AcqRel)
    }

    /// The openings that have ended otherwise than by a close, and whose handles were not told yet.
    pub(super) fn ended_openings(&self) -> MutexGuard<'_, BTreeSet<OpeningId>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to wait for: [`token`].
    pub(super) const fn poller(&self) -> &Poller {
        &self.poller
    }

    /// Lets the service thread look what there is to do.
    pub(super) fn wake(&self) {
        // A counter that cannot be raised is raised already.
        let _ = self.wake.signal();
    }

    /// Takes the signals of [`Link::wake`] and of the broker back. Whether the broker rang.
    pub(super) fn drain(&self) -> bool {
        let doorbell = Arc::clone(&self.doorbell.lock().unwrap_or_else(PoisonError::into_inner));
        let drained = self.wake.drain().and(doorbell.drain());
        drained.map_or_else(
            |error| {
                // What is no eventfd would be reported for ever.
                tracing::warn!(error = %error, "the doorbell cannot be read");
                let _ = self.poller.remove(doorbell.as_fd());
                false
            },
            |rings| rings > 0,
        )
    }

    fn connection<'a>(
        &self,
        state: &'a mut Taken<'_, State>,
        deadline: Deadline,
    ) -> Result<&'a mut Connection, LinkError> {
        let mut pause = PAUSE_MIN;
        while !self.closing.load(Ordering::SeqCst) {
            if state.connection.is_some() {
                return state.connection.as_mut().ok_or_else(no_turn);
            }
            match self.attach(state, deadline) {
                Err(LinkError::Failed(error)) => {
                    let left = deadline.left().ok_or(LinkError::Failed(error))?;
                    self.pause(pause.min(left))?;
                    pause = PAUSE_MAX.min(pause * 2);
                }
                attached => attached?,
            }
        }
        Err(LinkError::Failed(ConnectionError::Interrupted.into()))
    }

    fn attach(&self, state: &mut State, deadline: Deadline) -> Result<(), LinkError> {
        let failed = |error: ConnectionError| LinkError::Failed(unavailable(&error));
        // Without waiting for room in the queue: who tries again waits so that a close ends it.
        let connected = Connection::connect_until(&self.path, Deadline::after_ms(0));
        let mut connection = connected.map_err(failed)?;
        if !self.closing.load(Ordering::SeqCst) {
            connection.set_interrupt(Some(Arc::clone(&self.interrupt)));
        }
        let SessionIdentity { session, guid } = self.identity;
        let openings = state.openings.values().map(|known| known.opening).collect();
        let request = ClientRequest::Attach(Attach { session, guid, openings });
        let (reply, fds) = match connection.request_until(&request, deadline) {
            Err(ConnectionError::Refused(refusal)) if is_final(refusal.status) => {
                return Err(LinkError::Over(refusal.into()));
            }
            answer => answer.map_err(failed)?,
        };
        let ClientReply::Ready(ready) = reply else {
            return Err(LinkError::Over(Error::unexpected_reply("Attach")));
        };
        let descriptors = Descriptors::of(fds).map_err(LinkError::Over)?;
        let inode = inode_of(&descriptors.object).map_err(LinkError::Failed)?;
        if (ready.session, ready.guid, inode) != (session, guid, self.inode) {
            let text = format!("the broker attached another session in place of {session}");
            return Err(LinkError::Over(Error::new(Status::Internal, text)));
        }
        self.watch(&connection, descriptors.doorbell)
            .map_err(|error| LinkError::Failed(Error::new(Status::NoMem, error.to_string())))?;
        state.connection = Some(connection);
        let disowned = state.disowned(ready.unknown_openings);
        self.ended_openings().extend(disowned);
        state.is_watched = false;
        self.attached.store(true, Ordering::Release);
        self.renewed.store(true, Ordering::Release);
        tracing::debug!(session = %session, "the session is attached again");
        // What was put off while the broker was away, and changes that rang no bell.
        self.wake();
        Ok(())
    }

    fn watch(&self, connection: &Connection, doorbell: OwnedFd) -> std::io::Result<()> {
        let doorbell = Arc::new(EventFd::from_fd(doorbell)?);
        let mut current = self.doorbell.lock().unwrap_or_else(PoisonError::into_inner);
        // Removed before it is closed: a forked child may still hold a copy.
        let _ = self.poller.remove(current.as_fd());
        self.poller.add(doorbell.as_fd(), token::DOORBELL, Interest::READ)?;
        *current = doorbell;
        self.poller.add(connection.as_fd(), token::CONNECTION, Interest::NONE)
    }

    /// Has the service thread woken by replies that nobody waits for, as long as some are to come:
    /// they may hold descriptors.
    fn watch_replies(&self, state: &mut State) {
        let Some(connection) = &state.connection else { return };
        let is_owed = connection.is_owed();
        if is_owed == state.is_watched {
            return;
        }
        let interest = if is_owed { Interest::READ } else { Interest::NONE };
        match self.poller.modify(connection.as_fd(), token::CONNECTION, interest) {
            Ok(()) => state.is_watched = is_owed,
            Err(error) => tracing::warn!(error = %error, "late replies cannot be waited for"),
        }
    }

    fn detach(&self, state: &mut State) {
        if let Some(connection) = state.connection.take() {
            // As for the doorbell.
            let _ = self.poller.remove(connection.as_fd());
            self.attached.store(false, Ordering::Release);
            self.wake();
        }
    }
}

fn inode_of(object: &OwnedFd) -> Result<u64, Error> {
    let stat = object::stat(object.as_fd());
    stat.map(|stat| stat.inode).map_err(|error| Error::new(Status::Io, error.to_string()))
}

fn failed(error: &std::io::Error) -> Error {
    Error::new(Status::NoMem, error.to_string())
}

/// Whether a request must not be done twice, and has no number that would keep it from being.
const fn counts(request: &ClientRequest) -> bool {
    match request {
        ClientRequest::Data(request) => request.counts(),
        _ => false,
    }
}

/// Whether a refused Attach means that the session is over, and not that it may succeed later.
const fn is_final(status: Status) -> bool {
    matches!(
        status,
        Status::NotFound | Status::Denied | Status::Invalid | Status::Closed | Status::Version
    )
}

fn unavailable(error: &ConnectionError) -> Error {
    Error::new(Status::Unavailable, error.to_string())
}

#[cold]
fn no_turn() -> LinkError {
    let text = "the broker is busy with another request of this session";
    LinkError::Failed(Error::new(Status::Unavailable, text))
}

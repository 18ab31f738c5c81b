//! Connections of clients that map nothing, and what may be reached over each (FIG. 3).
//!
//! ```text
//!  broker: Link, Grant, Revoke, Unlink            client: Read, Write, ..
//!            |                                              |
//!            v                                              v
//!  link -- session, grants ---- a grant covers it? ----> store
//!                                    | no
//!                                    what the broker has sent is looked at, then: NOTFOUND
//! ```
//!
//! # Invariants
//!
//! 1. A link reaches what was granted over it and not revoked, and ends with its socket. A grant
//!    names a block by its GUID.
//! 2. What a client sends can end its own link, and no more. Nobody waits for a client: one answer
//!    at most is kept for it, and nothing more is read from it meanwhile.
//! 3. Users have their turns, however many links each has ([`Rounds`]): one request of a link is
//!    done before those of the user's others.
//! 4. A user whose requests are limited is not read faster than that ([`Rates`]). That a client
//!    is gone is noticed meanwhile.
//! 5. No link outlives the broker that made it for longer than until the next one has settled.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::rounds::Rounds;
use dmce_abi::wire::data::{DataAnswer, DataRequest, LinkGrant, LinkId};
use dmce_abi::wire::{self, FrameHeader, Refusal, WireError};
use dmce_sys::closing::Closer;
use dmce_sys::limits;
use dmce_sys::poll::{Interest, Poller, is_hung_up};
use dmce_sys::socket::{Socket, SocketError};
use tracing::{debug, info, warn};

use crate::rates::{Payer, Place, Rates};
use crate::store::Store;

/// Links at one time, where there are descriptors enough. A session has one at most.
const LINKS_MAX: u64 = 65_536;

/// Tokens of links begin here.
pub const FIRST_TOKEN: u64 = 16;

/// Why a link ends.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("a frame is longer than {FRAME_BYTES_MAX} bytes or came with descriptors")]
    Truncated,
    #[error("the link cannot be polled")]
    Poll(#[from] std::io::Error),
}

/// All links.
#[derive(Debug)]
pub struct Links {
    open: BTreeMap<u64, ClientLink>,
    by_id: BTreeMap<LinkId, u64>,
    /// Those that have sent something, or take their answer now.
    rounds: Rounds<u64>,
    rates: Rates,
    next: u64,
    /// No more than this many: half of the descriptors are for the blocks, and what comes.
    limit: usize,
    buffer: Vec<u8>,
    closer: Closer,
}

#[derive(Debug)]
struct ClientLink {
    id: LinkId,
    session: SessionId,
    payer: Payer,
    /// The connection to the broker that made it.
    made_by: u64,
    socket: Socket,
    grants: BTreeMap<BlockId, Granted>,
    /// An answer that the client has not taken.
    waiting: Option<Vec<u8>>,
    /// A request that found no grant.
    unsure: Option<(u64, DataRequest)>,
    /// Where it waits for a token of its user, or was let go and has not been read yet.
    place: Option<Place>,
    /// What the loop is woken by, beside the end.
    interest: Interest,
}

/// What the broker says of a new link.
#[derive(Clone, Copy, Debug)]
pub struct NewLink {
    /// The connection to the broker.
    pub made_by: u64,
    /// Its number.
    pub id: LinkId,
    /// Whose it is.
    pub session: SessionId,
    /// The user of that session, and at which rate.
    pub payer: Payer,
    /// The first grant.
    pub grant: LinkGrant,
}

/// What was moved for one message.
#[derive(Clone, Copy, Debug)]
struct Moved {
    /// With what stands around the bytes of blocks.
    bytes: usize,
    of_blocks: usize,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    guid: Guid,
    writable: bool,
}

impl Links {
    /// None.
    ///
    /// # Errors
    ///
    /// The kernel gives no thread.
    pub fn new() -> std::io::Result<Self> {
        let descriptors = limits::open_files().unwrap_or(u64::MAX) / 2;
        let limit = usize::try_from(descriptors.min(LINKS_MAX)).unwrap_or(usize::MAX);
        Ok(Self {
            limit,
            open: BTreeMap::new(),
            by_id: BTreeMap::new(),
            rounds: Rounds::default(),
            rates: Rates::default(),
            next: FIRST_TOKEN,
            buffer: vec![0; FRAME_BYTES_MAX + 1],
            closer: Closer::start()?,
        })
    }

    /// A new link. What cannot be had is closed: its client asks the broker again.
    pub fn add(&mut self, poller: &Poller, new: NewLink, socket: OwnedFd) {
        let NewLink { made_by, id, session, payer, grant } = new;
        self.remove(poller, id);
        let limit = self.limit;
        if self.open.len() >= limit {
            return warn!(link = id.0, "there are {limit} links, limit {limit}");
        }
        let token = self.next;
        let socket = match Socket::from_fd(socket) {
            Ok(socket) => socket,
            Err(error) => return warn!(link = id.0, %error, "a link that is none"),
        };
        if let Err(error) = poller.add(socket.as_fd(), token, Interest::READ) {
            return warn!(link = id.0, %error, "a link cannot be polled");
        }
        self.next += 1;
        debug!(link = id.0, %session, "linked");
        let mut link = ClientLink {
            id,
            session,
            payer,
            made_by,
            socket,
            grants: BTreeMap::new(),
            waiting: None,
            unsure: None,
            place: None,
            interest: Interest::READ,
        };
        link.grant(grant);
        self.open.insert(token, link);
        self.by_id.insert(id, token);
    }

    /// Ends a link, if it is there.
    pub fn remove(&mut self, poller: &Poller, id: LinkId) {
        if let Some(token) = self.by_id.get(&id).copied() {
            self.end(poller, token);
        }
    }

    /// Ends the links of all connections to a broker but one.
    pub fn keep_those_of(&mut self, poller: &Poller, connection: u64) {
        let older = self.open.iter().filter(|(_, link)| link.made_by != connection);
        let older: Vec<u64> = older.map(|(token, _)| *token).collect();
        for token in older {
            self.end(poller, token);
        }
    }

    /// Lets a block be reached over a link.
    pub fn grant(&mut self, id: LinkId, grant: LinkGrant) {
        if let Some(link) = self.by_id(id) {
            link.grant(grant);
        }
    }

    /// Lets a block be reached no more.
    pub fn revoke(&mut self, id: LinkId, block: BlockId) {
        if let Some(link) = self.by_id(id) {
            link.grants.remove(&block);
        }
    }

    /// A link is ready: it has its turn in the next round.
    pub fn on_ready(&mut self, token: u64) {
        if let Some(link) = self.open.get(&token) {
            self.rounds.arrive(link.payer.uid, token);
        }
    }

    /// When links are to be read again that were held for their users' rates, if any were.
    pub fn due_ms(&self) -> Option<u64> {
        self.rates.due_ms()
    }

    /// Those links whose users have tokens again have their turns in the next round.
    pub fn read_again(&mut self, now_ms: u64) {
        for token in self.rates.let_go(now_ms) {
            self.on_ready(token);
        }
    }

    /// Whether somebody waits for the next round.
    pub fn is_waited_for(&self) -> bool {
        !self.rounds.is_empty()
    }

    /// Begins a round: each user who has sent something has one turn.
    pub fn begin_round(&mut self) {
        self.rounds.begin();
    }

    /// The link whose turn it is; `None` at the end of the round.
    pub fn next_in_round(&mut self) -> Option<u64> {
        self.rounds.take()
    }

    /// Does one thing that was asked for over a link. True if the request has found no grant: it is
    /// to be looked at again ([`Links::look_again`]) when what the broker has sent is known.
    pub fn serve(&mut self, poller: &Poller, token: u64, store: &mut Store, now_ms: u64) -> bool {
        let Some(link) = self.open.get_mut(&token) else { return false };
        let served = link.flush().and_then(|()| {
            let served = if link.is_read(&mut self.rates, token, now_ms)? {
                link.serve(&mut self.buffer, &mut self.closer, store)?
            } else {
                None
            };
            link.watch(poller, token)?;
            Ok(served)
        });
        match served {
            Ok(served) => {
                if let Some(moved) = served {
                    self.rounds.charge(moved.bytes);
                    self.rates.spend(link.payer, moved.of_blocks);
                }
                link.unsure.is_some()
            }
            Err(error) => {
                if !matches!(error, LinkEnd::Socket(SocketError::Closed)) {
                    info!(link = link.id.0, session = %link.session, %error, "a link is ended");
                }
                self.end(poller, token);
                false
            }
        }
    }

    /// Does, or refuses, the request that found no grant.
    pub fn look_again(&mut self, poller: &Poller, token: u64, store: &mut Store) {
        let Some(link) = self.open.get_mut(&token) else { return };
        let Some((request_id, request)) = link.unsure.take() else { return };
        let answer = link.judge(&request).and_then(|()| store.access(&request));
        let sent = link.answer(request_id, &answer).and_then(|()| link.watch(poller, token));
        if sent.is_err() {
            self.end(poller, token);
        }
    }

    fn by_id(&mut self, id: LinkId) -> Option<&mut ClientLink> {
        self.open.get_mut(self.by_id.get(&id)?)
    }

    fn end(&mut self, poller: &Poller, token: u64) {
        let Some(link) = self.open.remove(&token) else { return };
        link.farewell();
        self.rounds.forget(link.payer.uid, token);
        if let Some(place) = link.place {
            self.rates.forget(link.payer.uid, place);
        }
        debug!(link = link.id.0, session = %link.session, "unlinked");
        self.by_id.remove(&link.id);
        if let Err(error) = poller.remove(link.socket.as_fd()) {
            debug!(%error, "the link was not polled any more");
        }
        self.closer.end(link.socket);
    }
}

impl ClientLink {
    fn grant(&mut self, LinkGrant { block, guid, writable }: LinkGrant) {
        self.grants.insert(block, Granted { guid, writable });
    }

    /// Whether what was asked for first is to be done now.
    fn is_read(&mut self, rates: &mut Rates, token: u64, now_ms: u64) -> Result<bool, LinkEnd> {
        if self.waiting.is_some() || self.unsure.is_some() {
            return Ok(false);
        }
        // What a client asked for that gave up is not to be done behind its back.
        if is_hung_up(self.socket.as_fd())? {
            return Err(SocketError::Closed.into());
        }
        Ok(rates.admit(token, self.payer, &mut self.place, now_ms))
    }

    /// Does what was asked for first, if anything was; what this has moved.
    fn serve(
        &mut self,
        buffer: &mut [u8],
        closer: &mut Closer,
        store: &mut Store,
    ) -> Result<Option<Moved>, LinkEnd> {
        let mut fds = Vec::new();
        let received = self.socket.try_recv(buffer, &mut fds);
        let descriptors = fds.len();
        closer.close(fds);
        let received = match received {
            Ok(received) => received,
            Err(SocketError::WouldBlock { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if received.truncated || descriptors > 0 {
            return Err(LinkEnd::Truncated);
        }
        let frame = &buffer[..received.bytes];
        let header = wire::decode_header(frame, descriptors)?;
        let request: DataRequest = wire::decode_body(frame)?;
        let of_blocks = request.moved_bytes();
        let moved = Moved { bytes: received.bytes + of_blocks - request.data_bytes(), of_blocks };
        let answer = match self.judge(&request) {
            Err(refusal) if refusal.status == Status::NotFound => {
                self.unsure = Some((header.request, request));
                return Ok(Some(moved));
            }
            judged => judged.and_then(|()| store.access(&request)),
        };
        self.answer(header.request, &answer)?;
        Ok(Some(moved))
    }

    /// Whether a grant covers a request.
    fn judge(&self, request: &DataRequest) -> Result<(), Refusal> {
        let at = request.target();
        let granted = self.grants.get(&at.block).filter(|granted| granted.guid == at.guid);
        match granted {
            None => {
                let text = format!("block {} is not granted to session {}", at.block, self.session);
                Err(Refusal::new(Status::NotFound, text))
            }
            Some(Granted { writable: false, .. }) if request.writes() => {
                let text = format!("block {} is granted for reading alone", at.block);
                Err(Refusal::new(Status::Denied, text))
            }
            Some(_) => Ok(()),
        }
    }

    /// Tells the client that what has no answer was not done, if that is so and takes no waiting.
    fn farewell(&self) {
        if self.waiting.is_some() {
            return;
        }
        let text = format!("link {} ends", self.id.0);
        let answer: DataAnswer = Err(Refusal::new(Status::Closed, text));
        if let Ok(frame) = wire::encode(FrameHeader { request: 0, fds: 0 }, &answer)
            && let Err(error) = self.socket.try_send(&frame, &[])
        {
            debug!(link = self.id.0, %error, "a client is not told of the end of its link");
        }
    }

    fn answer(&mut self, request: u64, answer: &DataAnswer) -> Result<(), LinkEnd> {
        if request == 0 {
            return Ok(());
        }
        let frame = wire::encode(FrameHeader { request, fds: 0 }, answer)?;
        match self.socket.try_send(&frame, &[]) {
            Err(SocketError::WouldBlock { .. }) => self.waiting = Some(frame),
            sent => sent?,
        }
        Ok(())
    }

    /// Sends the answer that waits, if it is taken now.
    fn flush(&mut self) -> Result<(), LinkEnd> {
        let Some(frame) = self.waiting.take() else { return Ok(()) };
        match self.socket.try_send(&frame, &[]) {
            Err(SocketError::WouldBlock { .. }) => self.waiting = Some(frame),
            sent => sent?,
        }
        Ok(())
    }

    /// Has the loop woken by what this link waits for.
    fn watch(&mut self, poller: &Poller, token: u64) -> Result<(), LinkEnd> {
        let interest = match (&self.waiting, self.place) {
            (Some(_), _) => Interest::WRITE,
            (None, Some(_)) => Interest::NONE,
            (None, None) => Interest::READ,
        };
        if interest != self.interest {
            self.interest = interest;
            poller.modify(self.socket.as_fd(), token, interest)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

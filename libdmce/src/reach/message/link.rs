//! Links to daemons (FIG. 3).
//!
//! # Invariants
//!
//! 1. One request is under way over a link at a time.
//! 2. A link over which something came that is no answer, or nothing in time, is of no more use:
//!    it is closed, so that its daemon does nothing more for who gave up.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dmce_abi::Status;
use dmce_abi::wire::data::{DataReply, DataRequest, LinkId};
use dmce_sys::poll::EventFd;
use dmce_sys::socket::{Socket, SocketError};

use super::{Trouble, of_refusal};
use crate::connection::{Connection, ConnectionError, Deadline};
use crate::turn::Turn;

/// A connection over which data is asked for.
type DataConnection = Connection<DataRequest, DataReply>;

/// A link to a daemon.
#[derive(Debug)]
pub(crate) struct DaemonLink {
    connection: Turn<Option<DataConnection>>,
}

impl DaemonLink {
    /// The link of a socket that the broker has sent. Waiting ends when `interrupt` is readable.
    ///
    /// # Errors
    ///
    /// [`SocketError`] for what is no socket.
    pub(crate) fn new(fd: OwnedFd, interrupt: Arc<EventFd>) -> Result<Self, SocketError> {
        let mut connection = DataConnection::to(Socket::from_fd(fd)?);
        connection.set_interrupt(Some(interrupt));
        Ok(Self { connection: Turn::new(Some(connection)) })
    }

    /// The daemon's answer, which fits the request.
    pub(super) fn ask(
        &self,
        request: &DataRequest,
        deadline: Deadline,
    ) -> Result<DataReply, Trouble> {
        let turn = self.connection.take(deadline);
        let mut turn = turn.ok_or(Trouble::Refused(Status::Timeout))?;
        let Some(connection) = &mut *turn else { return Err(Trouble::Unlinked) };
        let trouble = match connection.request_until(request, deadline) {
            Ok((reply, fds)) if fds.is_empty() && request.fits(&reply) => return Ok(reply),
            Err(ConnectionError::Refused(refusal)) => return Err(of_refusal(refusal.status)),
            Err(error) if request.counts() && connection.may_be_done(&error) => {
                tracing::debug!(%error, "a change of a word has no answer");
                unanswered(&error).unwrap_or(Trouble::Unsure)
            }
            Err(error) => {
                tracing::debug!(%error, "a link has ended");
                unanswered(&error).unwrap_or(Trouble::Unlinked)
            }
            Ok(_) if request.counts() => Trouble::Unsure,
            Ok(_) => {
                tracing::warn!("a daemon sent what is no answer");
                Trouble::Unlinked
            }
        };
        *turn = None;
        Err(trouble)
    }

    /// Whether it may be asked, as far as is known.
    fn stands(&self) -> bool {
        // Somebody who has the turn waits for an answer.
        self.connection.try_take().is_none_or(|connection| connection.is_some())
    }
}

/// What it means that an answer did not come, for a reason of the caller's own.
fn unanswered(error: &ConnectionError) -> Option<Trouble> {
    match error {
        ConnectionError::Timeout => Some(Trouble::Refused(Status::Timeout)),
        ConnectionError::Interrupted => Some(Trouble::Refused(Status::Closed)),
        ConnectionError::NoDescriptor => Some(Trouble::Refused(Status::NoMem)),
        _ => None,
    }
}

/// The links of a session. Those that no block uses are closed.
#[derive(Debug, Default)]
pub(crate) struct LinkTable {
    links: Mutex<BTreeMap<LinkId, Weak<DaemonLink>>>,
}

impl LinkTable {
    /// Takes in a new link.
    pub(crate) fn add(&self, id: LinkId, link: &Arc<DaemonLink>) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(id, Arc::downgrade(link));
    }

    /// The link of that number, if it is here and of use.
    pub(crate) fn get(&self, id: LinkId) -> Option<Arc<DaemonLink>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(&id)?.upgrade().filter(|link| link.stands())
    }
}

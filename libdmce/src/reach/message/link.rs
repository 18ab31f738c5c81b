//! Links to daemons (FIG. 3).
//!
//! # Invariants
//!
//! 1. One request is under way over a link at a time.
//! 2. A link over which something came that is no answer, or nothing in time, is of no more use:
//!    it is closed, so that its daemon does nothing more for who gave up. But for a look at a word:
//!    that does nothing, those who wait give one up often, and a late answer to it is dropped.
//! 3. Where links end before they were of any use, the broker is asked instead, for a while.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use dmce_abi::Status;
use dmce_abi::wire::data::{DataReply, DataRequest, LinkId};
use dmce_sys::clock::monotonic_ms;
use dmce_sys::poll::EventFd;
use dmce_sys::socket::{Socket, SocketError};

use super::{Trouble, is_a_change, of_refusal};
use crate::connection::{Connection, ConnectionError, Deadline};
use crate::turn::Turn;

/// A connection over which data is asked for.
type DataConnection = Connection<DataRequest, DataReply>;

/// Links that end before a first answer, one after the other, after which the broker is asked.
const FAILURES_MAX: u32 = 3;

/// For how long.
const AVOID_MS: u64 = 1_000;

/// A link to a daemon.
#[derive(Debug)]
pub(crate) struct DaemonLink {
    connection: Turn<Option<DataConnection>>,
    has_answered: AtomicBool,
    luck: Arc<Luck>,
}

/// How well the links of a session do: a daemon may have no room for more of them.
#[derive(Debug, Default)]
struct Luck {
    failures: AtomicU32,
    avoid_until_ms: AtomicU64,
}

impl Luck {
    fn answered(&self) {
        self.failures.store(0, Ordering::Relaxed);
    }

    fn failed(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.failures.store(0, Ordering::Relaxed);
            self.avoid_until_ms.store(monotonic_ms() + AVOID_MS, Ordering::Relaxed);
        }
    }
}

impl DaemonLink {
    /// The daemon's answer, which fits the request.
    pub(super) fn ask(
        &self,
        request: &DataRequest,
        deadline: Deadline,
    ) -> Result<DataReply, Trouble> {
        let turn = self.connection.take(deadline);
        let mut turn = turn.ok_or(Trouble::Refused(Status::Timeout))?;
        let Some(connection) = &mut *turn else { return Err(Trouble::Unlinked) };
        let asked = connection.request_until(request, deadline);
        if matches!(asked, Ok(_) | Err(ConnectionError::Refused(_))) {
            self.has_answered.store(true, Ordering::Relaxed);
            self.luck.answered();
        }
        let trouble = match asked {
            Ok((reply, fds)) if fds.is_empty() && request.fits(&reply) => return Ok(reply),
            Err(ConnectionError::Refused(refusal)) => return Err(of_refusal(refusal.status)),
            Err(ConnectionError::Timeout) if matches!(request, DataRequest::Wait64 { .. }) => {
                return Err(Trouble::Refused(Status::Timeout));
            }
            Err(error) => {
                tracing::debug!(%error, "a link has ended");
                let may_be_done = connection.may_be_done(&error);
                let is_unsure = may_be_done && request.counts();
                let ended = if is_unsure { Trouble::Unsure } else { Trouble::Unlinked };
                unanswered(&error, may_be_done && is_a_change(request)).unwrap_or(ended)
            }
            Ok(_) if request.counts() => Trouble::Unsure,
            Ok(_) => {
                tracing::warn!("a daemon sent what is no answer");
                Trouble::Unlinked
            }
        };
        *turn = None;
        if !self.has_answered.load(Ordering::Relaxed) {
            self.luck.failed();
        }
        Err(trouble)
    }

    /// Whether it may be asked, as far as is known.
    fn stands(&self) -> bool {
        // Somebody who has the turn waits for an answer.
        self.connection.try_take().is_none_or(|connection| connection.is_some())
    }
}

/// What it means that an answer did not come, for a reason of the caller's own.
fn unanswered(error: &ConnectionError, may_change: bool) -> Option<Trouble> {
    match error {
        ConnectionError::Timeout if may_change => Some(Trouble::Late),
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
    luck: Arc<Luck>,
}

impl LinkTable {
    /// Takes in the link of a socket that the broker has sent. Waiting ends when `interrupt` is
    /// readable.
    ///
    /// # Errors
    ///
    /// [`SocketError`] for what is no socket.
    pub(crate) fn add(
        &self,
        id: LinkId,
        fd: OwnedFd,
        interrupt: Arc<EventFd>,
    ) -> Result<Arc<DaemonLink>, SocketError> {
        let mut connection = DataConnection::to(Socket::from_fd(fd)?);
        connection.set_interrupt(Some(interrupt));
        let link = Arc::new(DaemonLink {
            connection: Turn::new(Some(connection)),
            has_answered: AtomicBool::new(false),
            luck: Arc::clone(&self.luck),
        });
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|_, link| link.strong_count() > 0);
        links.insert(id, Arc::downgrade(&link));
        Ok(link)
    }

    /// Whether it is worth to ask for links now.
    pub(crate) fn are_of_use(&self) -> bool {
        self.luck.avoid_until_ms.load(Ordering::Relaxed) <= monotonic_ms()
    }

    /// The link of that number, if it is here and of use.
    pub(crate) fn get(&self, id: LinkId) -> Option<Arc<DaemonLink>> {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.get(&id)?.upgrade().filter(|link| link.stands())
    }
}

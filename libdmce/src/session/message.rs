//! The message path: ways to daemons instead of mappings.
//!
//! ```text
//!   fetch:  Reach -> a new link's socket, a link that is here, or none: through the broker
//!             | BUSY: its daemon does not answer; again, until the deadline
//!   access: no grant, the link has ended -> absent, and fetched again
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is mapped, and no descriptor of a block is kept.
//! 2. Who waits for a daemon does not keep others from fetching blocks of the rest.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Reach, Reached};
use dmce_abi::wire::data::{DataReply, DataRequest, LinkId};

use super::core::{Core, busy, unknown};
use super::link::{Link, LinkError};
use crate::block::{Backing, check_info};
use crate::connection::Deadline;
use crate::error::Error;
use crate::reach::Trouble;
use crate::reach::message::{AskedBlock, Carrier, Relay, is_a_change, of_refusal};
use crate::reach::ways::Route;

/// No link.
const NONE: LinkId = LinkId(0);

/// How long to wait before a daemon that does not answer is asked for again.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);

impl Core {
    /// Finds a way to the daemon of a block whose bytes are not reached.
    pub(super) fn fetch_way(&self, id: BlockId, route: Route) -> Result<(), Error> {
        let deadline = self.deadline();
        let mut pause = PAUSE_MIN;
        let mut silence = None;
        loop {
            let tried = self.try_fetch_way(id, route, deadline);
            let left = deadline.left();
            match tried {
                Err(error) if error.status() == Status::Busy => silence = Some(error),
                // There was no time left for the broker to say it again.
                Err(error) if silence.is_some() && left.is_none() && is_away(&error) => {}
                done => return done,
            }
            let Some(left) = left else {
                let text = silence.map_or_else(String::new, |error| error.text().to_owned());
                return Err(Error::new(Status::Timeout, text));
            };
            self.link.pause(pause.min(left)).map_err(|error| self.of_link(error))?;
            self.usable()?;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    fn try_fetch_way(&self, id: BlockId, route: Route, deadline: Deadline) -> Result<(), Error> {
        let _turn = self.changing.take(deadline).ok_or_else(busy)?;
        let Some(absent) = self.table.find(id) else { return Err(unknown(id)) };
        if !matches!(absent.backing, Backing::Absent) {
            return Ok(());
        }
        let direct = route == Route::Direct && self.ways.links().are_of_use();
        let mut broken = NONE;
        loop {
            let reach = Reach { block: id, writable: absent.writable, direct, broken };
            let (reply, mut fds) = match self.ask_until(&ClientRequest::Reach(reach), deadline) {
                Err(error) if error.status() == Status::Address => {
                    self.retire(self.table.remove_same(&absent));
                    return Err(error);
                }
                Err(error) if error.status() == Status::Denied && self.fetch_to_read(&absent) => {
                    return Ok(());
                }
                answer => answer?,
            };
            let ClientReply::Reached(Reached { info, link }) = reply else {
                return Err(Error::unexpected_reply("Reach"));
            };
            check_info(&info, self.layout, self.ready.block_ids)?;
            let Some(carrier) = self.carrier(link, fds.pop())? else {
                // Its socket went to somebody who is here no more.
                if broken == link {
                    return Err(Error::unexpected_reply("Reach"));
                }
                broken = link;
                continue;
            };
            let asked = AskedBlock::new(id, info.guid, carrier, self.timeout_ms);
            let backing = if info.lost { Backing::Lost } else { Backing::Asked(asked) };
            return self.put_fetched(&absent, &info, backing);
        }
    }

    /// How the daemon of a block is asked; `None` if the link is not here.
    fn carrier(&self, link: LinkId, fd: Option<OwnedFd>) -> Result<Option<Carrier>, Error> {
        let links = self.ways.links();
        match (link, fd) {
            (NONE, _) => {
                let relay: Arc<dyn Relay> = Arc::clone(&self.link) as Arc<dyn Relay>;
                Ok(Some(Carrier::Relay(relay)))
            }
            (link, Some(fd)) => {
                let made = links.add(link, fd, self.link.interrupt_fd());
                let made = made.map_err(|error| Error::new(Status::Internal, error.to_string()))?;
                Ok(Some(Carrier::Direct(made)))
            }
            (link, None) => Ok(links.get(link).map(Carrier::Direct)),
        }
    }

    /// The way to a block has ended: another is found at its next use.
    pub(super) fn drop_way(&self, id: BlockId) {
        let Some(block) = self.table.find(id).filter(|block| block.is_asked()) else { return };
        let absent = block.without_bytes(Backing::Absent);
        let retired = self.table.replace(&block, absent).unwrap_or_default();
        drop(block);
        self.retire(retired);
    }
}

impl Relay for Link {
    fn relay(&self, request: &DataRequest, deadline: Deadline) -> Result<DataReply, Trouble> {
        let wrapped = ClientRequest::Data(request.clone());
        let (mut pause, mut passed) = (PAUSE_MIN, Passed::default());
        loop {
            let error = match self.ask(&wrapped, deadline) {
                Ok((ClientReply::Data(reply), _)) if request.fits(&reply) => return Ok(reply),
                Ok(_) if request.counts() => return Err(Trouble::Unsure),
                Ok(_) => return Err(Trouble::Refused(Status::Internal)),
                Err(LinkError::Refused(error)) => error,
                Err(LinkError::Failed(error) | LinkError::GivenUp(error))
                    if error.status() == Status::Closed =>
                {
                    return Err(Trouble::Refused(Status::Closed));
                }
                Err(LinkError::Failed(_)) if passed.is_silent => return Err(passed.late(request)),
                Err(LinkError::Failed(error)) => return Err(of_refusal(error.status())),
                Err(LinkError::GivenUp(_)) => {
                    passed.is_sent = true;
                    return Err(passed.late(request));
                }
                Err(LinkError::Unsure) => return Err(Trouble::Unsure),
                Err(LinkError::Over(_)) => return Err(Trouble::Refused(Status::Closed)),
            };
            let left = passed.refused(request, error.status(), deadline.left())?;
            self.pause(pause.min(left)).map_err(|_| Trouble::Io)?;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }
}

/// What is known of a request for a daemon that does not answer.
#[derive(Debug, Default)]
struct Passed {
    /// The broker has said that the daemon does not answer.
    is_silent: bool,
    /// The request may have been sent to it.
    is_sent: bool,
}

impl Passed {
    /// The time that is left to ask again after a refusal.
    fn refused(
        &mut self,
        request: &DataRequest,
        status: Status,
        left: Option<Duration>,
    ) -> Result<Duration, Trouble> {
        match status {
            Status::Busy => {}
            // It was passed on: the daemon may do it yet.
            Status::Unavailable if request.counts() => return Err(Trouble::Silent),
            Status::Unavailable => self.is_sent = true,
            Status::Closed => return Err(Trouble::Refused(Status::Closed)),
            status => return Err(of_refusal(status)),
        }
        self.is_silent = true;
        left.ok_or_else(|| self.late(request))
    }

    /// What it means that the time is over.
    const fn late(&self, request: &DataRequest) -> Trouble {
        if self.is_sent && is_a_change(request) {
            Trouble::Late
        } else {
            Trouble::Refused(Status::Timeout)
        }
    }
}

/// Whether there was no answer of the broker.
fn is_away(error: &Error) -> bool {
    error.status() == Status::Unavailable
}

#[cfg(test)]
mod tests {
    use dmce_abi::block::Guid;
    use dmce_abi::wire::data::{Bytes, Target};

    use super::*;

    /// Also an answer that comes a moment after the time is over says what is known.
    #[test]
    fn what_was_passed_on_to_a_silent_daemon_is_not_called_undone() {
        let block = BlockId::try_from(1).unwrap();
        let at = Target { block, guid: Guid([1; 16]), cell: 0 };
        let add = DataRequest::Add64 { at, add: 1 };
        let write = DataRequest::Write { at, data: Bytes(vec![1]) };
        let read = DataRequest::Read { at, bytes: 1 };
        let refused = |request: &DataRequest, statuses: &[Status]| {
            let mut passed = Passed::default();
            let (last, first) = statuses.split_last().unwrap();
            for &status in first {
                passed.refused(request, status, Some(PAUSE_MIN)).unwrap();
            }
            passed.refused(request, *last, None)
        };
        let (sent, unsent) = ([Status::Unavailable], [Status::Busy]);
        let timeout = Err(Trouble::Refused(Status::Timeout));
        assert_eq!(refused(&add, &sent), Err(Trouble::Silent));
        assert_eq!(refused(&add, &unsent), timeout);
        assert_eq!(refused(&write, &sent), Err(Trouble::Late));
        assert_eq!(refused(&write, &unsent), timeout);
        assert_eq!(refused(&write, &[Status::Unavailable, Status::Busy]), Err(Trouble::Late));
        assert_eq!(refused(&read, &sent), timeout);
        let soon = Passed::default().refused(&add, Status::Unavailable, Some(PAUSE_MIN));
        assert_eq!(soon, Err(Trouble::Silent));
        let soon = Passed::default().refused(&read, Status::Unavailable, Some(PAUSE_MAX));
        assert_eq!(soon, Ok(PAUSE_MAX));
    }
}

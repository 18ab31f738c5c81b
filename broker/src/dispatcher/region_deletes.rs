//! The deletion of regions, which needs the daemon of the first block.
//!
//! ```text
//!            daemon does not answer                 daemon is back
//!  request ------------------------> POSTPONED -----------------------+
//!     |                                  | wait_ms are over: BUSY     |
//!     |                                                               v
//!     +---- daemon answers ----> given up, destroy asked ----> DELETING --- destroyed ---> Done
//! ```
//!
//! # Invariants
//!
//! 1. A delete is answered when the first block is gone: so a broker that comes back does not find
//!    the region again.
//! 2. Nothing is deleted for somebody who was told that it is not: a delete is postponed as long as
//!    its asker waits for it, and no longer.
//! 3. A key that deleted a region once deletes no other. For its author it is done; a session that
//!    an earlier broker opened may be the author of every deletion that this one does not know.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionDelete, RegionKey};

use super::Dispatcher;
use super::action::Action;
use super::clients::ReplyTo;
use super::daemons::Server;
use super::event::{ClientConn, Millis};
use super::regions::may_know;
use super::requests::{Outcome, Served, refuse};
use super::timers::Timer;

/// Who waits for a region to be gone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletion {
    /// Who asked.
    pub session: SessionId,
    /// Where the answer goes.
    pub to: ReplyTo,
}

/// A delete that waits for a daemon.
#[derive(Clone, Copy, Debug)]
struct Postponed {
    to: ReplyTo,
    region: RegionKey,
    until: Millis,
}

/// The deletes that wait for daemons, by their number.
#[derive(Debug, Default)]
pub(super) struct PostponedDeletes {
    by_number: BTreeMap<u64, Postponed>,
    by_conn: BTreeSet<(ClientConn, u64)>,
}

impl PostponedDeletes {
    fn push(&mut self, number: u64, postponed: Postponed) {
        self.by_conn.insert((postponed.to.conn, number));
        self.by_number.insert(number, postponed);
    }

    fn take(&mut self, number: u64) -> Option<Postponed> {
        let postponed = self.by_number.remove(&number)?;
        self.by_conn.remove(&(postponed.to.conn, number));
        Some(postponed)
    }

    fn numbers(&self) -> Vec<u64> {
        self.by_number.keys().copied().collect()
    }

    fn numbers_of(&self, conn: ClientConn) -> Vec<u64> {
        self.by_conn.range((conn, 0)..=(conn, u64::MAX)).map(|(_, number)| *number).collect()
    }

    /// Where answers are owed.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.by_number.values().map(|postponed| postponed.to)
    }
}

impl Dispatcher {
    pub(super) fn region_delete(
        &mut self,
        to: ReplyTo,
        id: SessionId,
        delete: RegionDelete,
    ) -> Served {
        let RegionKey { first, guid } = delete.region;
        if !self.is_known_region(id, delete.region) {
            return self.region_delete_again(to, id, delete.region);
        }
        let uid = self.sessions.get(id).map(|session| session.record.uid);
        let Some(region) = self.regions.get(first) else { return Ok(Outcome::Later) };
        let name = &region.attributes.name;
        if uid != Some(0) && uid != Some(region.attributes.uid) {
            return refuse(Status::Denied, format!("region {name:?} is another's"));
        }
        let others = region.opens.iter().filter(|session| **session != id).count();
        if others > 0 {
            let text = format!("{others} other sessions have region {name:?} open");
            return refuse(Status::Busy, text);
        }
        let is_open = region.opens.contains(&id);
        let daemon = self.blocks.get(first).and_then(|block| block.daemon);
        let server = daemon.and_then(|daemon| self.daemons.servers.get(&daemon));
        if let Some(daemon) = daemon
            && !server.is_some_and(Server::answers)
        {
            if delete.wait_ms > 0 {
                self.postpone(to, delete);
                return Ok(Outcome::Later);
            }
            let text = format!("daemon {daemon}, which has its first block, does not answer");
            return refuse(Status::Busy, text);
        }
        if is_open {
            self.close_deleted(id, first);
        }
        if daemon.is_none() {
            self.remember_deleted(id, guid);
            self.give_up(first);
            return Ok(ClientReply::Done.into());
        }
        self.deletions.insert(first, Deletion { session: id, to });
        self.give_up(first);
        Ok(Outcome::Later)
    }

    /// The first block of a region is gone: who waits for that is answered.
    pub(super) fn region_is_gone(&mut self, first: BlockId) {
        let Some(Deletion { session, to }) = self.deletions.remove(&first) else { return };
        if let Some(guid) = self.blocks.span(first).map(|span| span.guid) {
            self.remember_deleted(session, guid);
        }
        self.reply(to, Ok(ClientReply::Done), Vec::new());
    }

    /// A delete of what is not there, or not any more.
    fn region_delete_again(&mut self, to: ReplyTo, id: SessionId, region: RegionKey) -> Served {
        let RegionKey { first, guid } = region;
        let span = self.blocks.span(first).filter(|span| span.guid == guid);
        let deletion = self.deletions.get_mut(&first).filter(|deletion| deletion.session == id);
        if let (Some(_), Some(deletion)) = (span, deletion) {
            // Asked again while the daemon is at it: the last who asks is answered.
            let before = std::mem::replace(&mut deletion.to, to);
            let refusal = Refusal::new(Status::Busy, "the delete was asked again");
            self.reply(before, Err(refusal), Vec::new());
            return Ok(Outcome::Later);
        }
        let done = self.sessions.get(id).is_some_and(|s| s.restored || s.deleted.contains(&guid));
        if done {
            return Ok(ClientReply::Done.into());
        }
        refuse(Status::NotFound, format!("no region of guid {guid} begins with block {first}"))
    }

    /// Whether a key is of a region that stands and of which the session may know.
    fn is_known_region(&self, id: SessionId, region: RegionKey) -> bool {
        let RegionKey { first, guid } = region;
        let same = self.blocks.span(first).is_some_and(|span| span.guid == guid);
        let known = self.regions.get(first).zip(self.sessions.get(id));
        same && self.stands(first)
            && known.is_some_and(|(region, session)| may_know(&region.attributes, session.caller()))
    }

    /// The session deletes a region that it has open itself: its handles are told first.
    fn close_deleted(&mut self, id: SessionId, first: BlockId) {
        for block in self.blocks.members(first) {
            self.changed(id, block);
        }
        self.publish();
        self.unmap_span(id, first);
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.untold.insert(first);
        for place in session.opens.close_all(first) {
            self.out.push(Action::RevokeGrant { session: id, place });
        }
        if let Some(span) = self.blocks.span_mut(first) {
            span.untold.insert(id);
        }
    }

    fn postpone(&mut self, to: ReplyTo, delete: RegionDelete) {
        let number = self.next_number();
        let until = self.now.millis.after(delete.wait_ms.into());
        self.timers.set(Timer::Delete(number), until);
        self.postponed.push(number, Postponed { to, region: delete.region, until });
    }

    /// A daemon answers again: what waited for one is tried, oldest first.
    pub(super) fn try_postponed(&mut self) {
        for number in self.postponed.numbers() {
            self.retry_delete(number);
        }
    }

    /// Serves a postponed delete anew; without a daemon it waits on, unless its time is over.
    pub(super) fn retry_delete(&mut self, number: u64) {
        let Some(Postponed { to, region, until }) = self.postponed.take(number) else { return };
        self.timers.cancel(Timer::Delete(number));
        let left = until.0.saturating_sub(self.now.millis.0);
        let wait_ms = u32::try_from(left).unwrap_or(u32::MAX);
        let delete = RegionDelete { region, wait_ms };
        self.route(to, &ClientRequest::RegionDelete(delete), None);
    }

    /// The connection over which they were asked is gone, and with it who waits.
    pub(super) fn drop_postponed(&mut self, conn: ClientConn) {
        for number in self.postponed.numbers_of(conn) {
            self.postponed.take(number);
            self.timers.cancel(Timer::Delete(number));
        }
    }
}

//! The deletion of regions, which needs the daemon of the first block.
//!
//! ```text
//!  request --- daemon does not answer ---> NotYet: nothing is done, and nothing remembered
//!     |
//!     | daemon answers: given up, destroy asked
//!     v
//!  DELETING -- destroyed --> Done
//!     |  ^
//!     |  | asked again, daemon answers
//!     v  |
//!  DELETING, nobody waits: the daemon does not answer, who asks is told NotYet, begun
//! ```
//!
//! # Invariants
//!
//! 1. A delete is done when the first block is gone: so a broker that comes back does not find the
//!    region again.
//! 2. Nothing is deleted for somebody who was told that it is not: what is not begun is not done
//!    unless it is asked again.
//! 3. Nobody waits here for a daemon that does not answer: a client has other things to ask.
//! 4. A key that deleted a region once deletes no other. For its author it is done; a session that
//!    an earlier broker opened may be the author of every deletion that this one does not know.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{ClientReply, RegionKey};

use super::Dispatcher;
use super::action::Action;
use super::clients::ReplyTo;
use super::daemons::Server;
use super::regions::may_know;
use super::requests::{Outcome, Served, refuse};

/// A deletion that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deletion {
    /// Who asked.
    pub session: SessionId,
    /// Where the answer goes, if somebody waits for it.
    pub to: Option<ReplyTo>,
}

impl Dispatcher {
    pub(super) fn region_delete(&mut self, to: ReplyTo, id: SessionId, key: RegionKey) -> Served {
        let RegionKey { first, guid } = key;
        if !self.is_known_region(id, key) {
            return self.region_delete_again(to, id, key);
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
        if let Some(daemon) = self.silent_daemon(first) {
            return Ok(ClientReply::NotYet { daemon, begun: false }.into());
        }
        if is_open {
            self.close_deleted(id, first);
        }
        let nobody_has_it = self.blocks.get(first).is_none_or(|block| block.copies.is_empty());
        if nobody_has_it {
            self.remember_deleted(id, guid);
            self.give_up(first);
            return Ok(ClientReply::Done.into());
        }
        self.deletions.insert(first, Deletion { session: id, to: Some(to) });
        self.give_up(first);
        Ok(Outcome::Later)
    }

    /// The first block of a region is gone: who waits for that is answered.
    pub(super) fn region_is_gone(&mut self, first: BlockId) {
        let Some(Deletion { session, to }) = self.deletions.remove(&first) else { return };
        if let Some(guid) = self.blocks.span(first).map(|span| span.guid) {
            self.remember_deleted(session, guid);
        }
        if let Some(to) = to {
            self.reply(to, Ok(ClientReply::Done), Vec::new());
        }
    }

    /// A daemon does not answer: who waits until it has deleted is not kept.
    pub(super) fn put_deleters_off(&mut self, daemon: DaemonId) {
        let mut waiting = Vec::new();
        for (first, deletion) in &mut self.deletions {
            if self.blocks.get(*first).is_some_and(|block| block.copies.of(daemon).is_some()) {
                waiting.extend(deletion.to.take());
            }
        }
        for to in waiting {
            self.reply(to, Ok(ClientReply::NotYet { daemon, begun: true }), Vec::new());
        }
    }

    /// A daemon with a copy of a block, if one does not answer.
    fn silent_daemon(&self, block: BlockId) -> Option<DaemonId> {
        let answers = |daemon| self.daemons.servers.get(&daemon).is_some_and(Server::answers);
        let mut daemons = self.blocks.get(block)?.copies.named().map(|copy| copy.daemon);
        daemons.find(|daemon| !answers(*daemon))
    }

    /// A delete of what is not there, or not any more.
    fn region_delete_again(&mut self, to: ReplyTo, id: SessionId, region: RegionKey) -> Served {
        let RegionKey { first, guid } = region;
        let silent = self.silent_daemon(first);
        let span = self.blocks.span(first).filter(|span| span.guid == guid);
        let deletion = self.deletions.get_mut(&first).filter(|deletion| deletion.session == id);
        if let (Some(_), Some(deletion)) = (span, deletion) {
            // Asked again while the daemon is at it: the last who asks is answered.
            let before = std::mem::replace(&mut deletion.to, silent.is_none().then_some(to));
            if let Some(before) = before {
                let refusal = Refusal::new(Status::Busy, "the delete was asked again");
                self.reply(before, Err(refusal), Vec::new());
            }
            let not_yet = silent.map(|daemon| ClientReply::NotYet { daemon, begun: true });
            return Ok(not_yet.map_or(Outcome::Later, Outcome::from));
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
}

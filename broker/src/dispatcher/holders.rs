//! Sessions that hold back what is to become of a copy: who they are, and how long they may.
//!
//! # Invariants
//!
//! 1. Nobody's session is ended for it unless the configuration says so (`hold_ms`), and not before
//!    it has held something back for as long without a break.
//! 2. What a session leaves whose process is stopped in the midst of an operation is waited for all
//!    the same: it may go on, and store.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::wire::admin::{HOLDERS_MAX, HeldBy, Holder};

use super::Dispatcher;
use super::event::Millis;
use super::sessions::SessionLink;
use super::timers::Timer;

/// Looks at who holds something back, in the time that he may.
const LOOKS: u64 = 8;

/// Since when sessions hold something back.
#[derive(Debug, Default)]
pub(super) struct Holders {
    since: BTreeMap<SessionId, Millis>,
}

impl Dispatcher {
    /// Who holds back what is to become of the copies of a block.
    pub(super) fn holders_back(&self, id: BlockId) -> Vec<Holder> {
        let first = self.blocks.get(id).map(|block| block.span);
        let remains = first.into_iter().flat_map(|first| self.wrecks.holding(id, first));
        let all = self.holding(id).into_iter();
        let is_waited_for = self.syncs.has(id) || self.is_to_move(id);
        let remains = remains.filter(|_| is_waited_for).map(|session| (session, HeldBy::Remains));
        let holder = |(session, by): (SessionId, HeldBy)| {
            let pid = self.sessions.get(session).map(|session| session.record.pid);
            let pid = pid.or_else(|| self.wrecks.get(session).map(|wreck| wreck.pid));
            let pid = pid.or_else(|| {
                let daemon = self.seats.daemon_of(session)?;
                self.daemons.servers.get(&daemon).map(|server| server.pid)
            });
            Holder { session: session.get(), pid: pid.unwrap_or(0), by }
        };
        all.chain(remains).take(HOLDERS_MAX).map(holder).collect()
    }

    /// The sessions among them that have not ended, and by what.
    fn holding(&self, id: BlockId) -> Vec<(SessionId, HeldBy)> {
        let all = |sessions: BTreeSet<SessionId>, by| {
            sessions.into_iter().map(|session| (session, by)).collect()
        };
        match self.syncs.waits_for(id) {
            Some((sessions, by)) => all(sessions, by),
            None if !self.syncs.has(id) && self.is_to_move(id) => {
                all(self.pointing_into(id), HeldBy::Pointer)
            }
            None => Vec::new(),
        }
    }

    /// Looks again at who holds something back, if that has a limit.
    pub(super) fn watch_holders(&mut self) {
        let limit = self.config.hold_ms;
        let is_busy = self.syncs.len() > 0 || !self.moves.draining.is_empty();
        if limit > 0 && is_busy && !self.timers.is_set(Timer::Hold) {
            let at = self.now.millis.after((limit / LOOKS).max(1));
            self.timers.set(Timer::Hold, at);
        }
    }

    /// Ends the sessions that have held something back for too long.
    pub(super) fn look_at_holders(&mut self) {
        let (now, limit) = (self.now.millis, self.config.hold_ms);
        let mut looked_at: BTreeSet<BlockId> = self.syncs.ids().collect();
        let draining = self.daemons.servers.values().filter(|server| server.is_draining);
        looked_at.extend(draining.flat_map(|server| server.blocks.iter().copied()));
        let holding = looked_at.into_iter().flat_map(|id| self.holding(id));
        let holding: BTreeSet<SessionId> = holding.map(|(session, _)| session).collect();
        let since = &mut self.holders.since;
        since.retain(|session, _| holding.contains(session));
        let mut holding: Vec<SessionId> = holding.into_iter().collect();
        holding.retain(|session| since.entry(*session).or_insert(now).after(limit) <= now);
        for session in holding {
            self.end_holder(session);
        }
    }

    fn end_holder(&mut self, session: SessionId) {
        let reason = "it holds back copies for longer than broker.hold_s";
        match self.sessions.get(session).map(|session| session.link) {
            Some(SessionLink::Attached(conn)) => self.end_client(conn, reason),
            Some(_) => self.end_session(session, reason),
            // A daemon is not ended: it is declared lost by whoever stops it.
            None => {}
        }
    }
}

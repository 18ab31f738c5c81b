//! The session table.
//!
//! ```text
//!           Setup           SessionCreated           hang-up
//!  (none) --------> Opening --------------> Attached -------> Detached
//!                                              ^                 |
//!                                              +---- Attach -----+
//! ```
//! From any of them a session ends at once: its blocks are given up, its regions closed.
//!
//! # Invariant
//!
//! 1. Ids go round: one is used again only when all others were.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::block::{BlockId, Guid, SessionId};

use super::changes::Changes;
use super::charge::{AccountId, Payer};
use super::clients::ReplyTo;
use super::event::{ClientConn, Millis, SessionRecord};
use super::mappings::Mappings;
use super::notices::Events;
use super::opens::Opens;

/// How a session and its client are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionLink {
    /// The shell makes its objects; the client waits here.
    Opening(ReplyTo),
    /// Connected.
    Attached(ClientConn),
    /// Not connected. It ends then.
    Detached(Millis),
}

/// One session.
#[derive(Debug)]
pub(super) struct Session {
    /// What its record says.
    pub record: SessionRecord,
    /// The supplementary groups of its process, as of its last connection.
    pub groups: Vec<u32>,
    /// How it is connected.
    pub link: SessionLink,
    /// Who pays.
    pub account: AccountId,
    /// First blocks of its spans, those that are being made included.
    pub spans: BTreeSet<BlockId>,
    /// First blocks of the regions that it is making.
    pub making_regions: BTreeSet<BlockId>,
    /// The regions that it has open.
    pub opens: Opens,
    /// What it has to be told.
    pub changes: Changes,
    /// Spans that are gone, and of which it has not been told since.
    pub untold: BTreeSet<BlockId>,
    /// GUIDs of what it deleted last, blocks and regions: repeated, the delete is done.
    pub deleted: VecDeque<Guid>,
    /// Whether a broker before this one opened it.
    pub restored: bool,
    /// Ids that it could not have, because something has their names.
    pub names_taken: u32,
    /// Its part of the OS-to-DMCE table.
    pub mappings: Mappings,
    /// What happened to its memory, and it has not asked for yet.
    pub events: Events,
}

impl Session {
    /// A session without anything.
    pub(super) fn new(record: SessionRecord, link: SessionLink, account: AccountId) -> Self {
        Self {
            record,
            groups: Vec::new(),
            link,
            account,
            spans: BTreeSet::new(),
            making_regions: BTreeSet::new(),
            opens: Opens::default(),
            changes: Changes::since(0),
            untold: BTreeSet::new(),
            deleted: VecDeque::new(),
            restored: false,
            names_taken: 0,
            mappings: Mappings::default(),
            events: Events::default(),
        }
    }

    /// A session that a broker before this one opened.
    pub(super) fn restored(
        record: SessionRecord,
        deadline: Millis,
        account: AccountId,
        generation: u64,
    ) -> Self {
        let link = SessionLink::Detached(deadline);
        let changes = Changes::since(generation);
        Self { changes, restored: true, ..Self::new(record, link, account) }
    }

    /// Who pays for its own blocks.
    pub(super) const fn payer(&self) -> Payer {
        Payer { uid: self.record.uid, account: Some(self.account) }
    }

    /// Remembers a delete; at most `limit` of them.
    pub(super) fn remember_deleted(&mut self, guid: Guid, limit: usize) {
        self.deleted.push_back(guid);
        if self.deleted.len() > limit {
            self.deleted.pop_front();
        }
    }
}

/// All sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_id: BTreeMap<SessionId, Session>,
    by_user: BTreeSet<(u32, SessionId)>,
    last: u32,
}

impl Sessions {
    /// The next id that no session has. There is one, since the configured limit is lower.
    pub(super) fn next_id(&mut self) -> Option<SessionId> {
        for _ in 0..=self.by_id.len() {
            self.last = self.last % SessionId::MAX + 1;
            let id = SessionId::try_from(self.last).ok()?;
            if !self.by_id.contains_key(&id) {
                return Some(id);
            }
        }
        None
    }

    /// Enters a session.
    pub(super) fn add(&mut self, session: Session) {
        let id = session.record.session;
        self.last = self.last.max(id.get());
        self.by_user.insert((session.record.uid, id));
        let before = self.by_id.insert(id, session);
        assert!(before.is_none(), "there is a session {id} already");
    }

    /// Takes a session out.
    pub(super) fn remove(&mut self, id: SessionId) -> Option<Session> {
        let session = self.by_id.remove(&id)?;
        self.by_user.remove(&(session.record.uid, id));
        Some(session)
    }

    /// A session.
    pub(super) fn get(&self, id: SessionId) -> Option<&Session> {
        self.by_id.get(&id)
    }

    /// A session, to change it.
    pub(super) fn get_mut(&mut self, id: SessionId) -> Option<&mut Session> {
        self.by_id.get_mut(&id)
    }

    /// Sessions after an id; of one user, or of all.
    pub(super) fn after(
        &self,
        after: u32,
        uid: Option<u32>,
    ) -> Box<dyn Iterator<Item = &Session> + '_> {
        let Ok(first) = SessionId::try_from(after.saturating_add(1)) else {
            return Box::new(std::iter::empty());
        };
        match uid {
            None => Box::new(self.by_id.range(first..).map(|(_, session)| session)),
            Some(uid) => {
                let own = self.by_user.range((uid, first)..);
                let own = own.take_while(move |(owner, _)| *owner == uid);
                Box::new(own.filter_map(|(_, id)| self.by_id.get(id)))
            }
        }
    }

    /// All sessions.
    pub(super) fn all(&self) -> impl Iterator<Item = &Session> {
        self.by_id.values()
    }

    /// The ids of all sessions.
    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.by_id.keys().copied().collect()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_comes_again_only_after_all_others() {
        let mut sessions = Sessions { last: SessionId::MAX - 1, ..Sessions::default() };
        let ids: Vec<u32> = (0..3).map(|_| sessions.next_id().unwrap().get()).collect();
        assert_eq!(ids, [SessionId::MAX, 1, 2]);
    }
}

//! Links between sessions and daemons, for clients that map nothing (FIG. 3), and what is granted
//! over them.
//!
//! ```text
//!  Reach: no link yet?   -> Link, with the first grant and a socket; the client gets the other end
//!         a link?        -> Grant
//!  a span goes, a region is closed, a block is lost -> Revoke
//!  the session ends, its client says that the link is broken -> Unlink
//!  the daemon is away    -> forgotten: its links died with it, or it is told to end them
//! ```
//!
//! # Invariants
//!
//! 1. A grant names a block that the session may use, and its link's daemon holds; it is revoked
//!    before the daemon hears of anything else by that id.
//! 2. A link is a session's that there is, and of a daemon that serves on this broker's connection:
//!    a daemon ends the links of brokers before this one when it has settled.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::wire::client::{ClientReply, Reach, Reached};
use dmce_abi::wire::daemon::DaemonRequest;
use dmce_abi::wire::data::{LinkGrant, LinkId};

use super::Dispatcher;
use super::action::{Action, Descriptor};
use super::daemons::Server;
use super::event::RequestId;
use super::requests::{Outcome, Served, refuse};

/// No link.
const NONE: LinkId = LinkId(0);

/// One link.
#[derive(Debug)]
struct Link {
    id: LinkId,
    grants: BTreeSet<BlockId>,
}

/// All links.
#[derive(Debug, Default)]
pub(super) struct Links {
    all: BTreeMap<(SessionId, DaemonId), Link>,
    by_daemon: BTreeSet<(DaemonId, SessionId)>,
}

impl Links {
    fn add(&mut self, session: SessionId, daemon: DaemonId, link: Link) {
        self.all.insert((session, daemon), link);
        self.by_daemon.insert((daemon, session));
    }

    fn remove(&mut self, session: SessionId, daemon: DaemonId) -> Option<Link> {
        self.by_daemon.remove(&(daemon, session));
        self.all.remove(&(session, daemon))
    }

    /// The daemons that a session has links to, with the number of each.
    fn of(&self, session: SessionId) -> Vec<(DaemonId, LinkId)> {
        let first = DaemonId::try_from(1).expect("1 is a daemon's id");
        let last = DaemonId::try_from(DaemonId::MAX).expect("the largest id is one");
        let own = self.all.range((session, first)..=(session, last));
        own.map(|((_, daemon), link)| (*daemon, link.id)).collect()
    }

    /// Sessions and daemons that are linked, with the blocks that are granted.
    pub(super) fn granted(
        &self,
    ) -> impl Iterator<Item = (SessionId, DaemonId, &BTreeSet<BlockId>)> {
        self.all.iter().map(|((session, daemon), link)| (*session, *daemon, &link.grants))
    }
}

impl Dispatcher {
    /// A way to the bytes of a block, for a client that maps nothing.
    pub(super) fn way_to(&mut self, session: SessionId, wanted: Reach) -> Served {
        let Reach { block, writable, direct, broken } = wanted;
        if broken != NONE {
            self.unlink_broken(session, broken);
        }
        let reached = self.reach(session, block)?;
        if writable && !reached.rights.write {
            return refuse(Status::Denied, format!("block {block} is open for reading alone"));
        }
        let (info, primary) = (reached.info(writable), reached.block.primary());
        let answer = |link| Box::new(ClientReply::Reached(Reached { info, link }));
        let Some(primary) = primary.filter(|_| !info.lost) else {
            return Ok(Outcome::Reply(answer(NONE), Vec::new()));
        };
        let server = self.server_of(block);
        let Some((daemon, conn)) = server.and_then(|(id, server)| Some((id, server.conn()?)))
        else {
            let text = format!("daemon {primary}, which holds block {block}, does not answer");
            return refuse(Status::Busy, text);
        };
        if !direct {
            return Ok(Outcome::Reply(answer(NONE), Vec::new()));
        }
        let grant = LinkGrant { block, guid: info.guid, writable };
        if let Some(link) = self.links.all.get_mut(&(session, daemon)) {
            link.grants.insert(block);
            let id = link.id;
            self.tell_daemon(daemon, DaemonRequest::Grant { link: id, grant });
            return Ok(Outcome::Reply(answer(id), Vec::new()));
        }
        let id = LinkId(self.next_number());
        self.links.add(session, daemon, Link { id, grants: BTreeSet::from([block]) });
        let uid = self.uid_of_session(session);
        let rate = self.rate_of(uid);
        let descriptor = Descriptor::Link { conn, link: id, session, uid, rate, grant };
        Ok(Outcome::Reply(answer(id), vec![descriptor]))
    }

    /// The user of a session; nobody, if it is not there.
    pub(super) fn uid_of_session(&self, session: SessionId) -> u32 {
        self.sessions.get(session).map_or(u32::MAX, |session| session.record.uid)
    }

    /// A session may not reach a span any more, or with other rights.
    pub(super) fn revoke_span(&mut self, session: SessionId, first: BlockId) {
        let last = self.blocks.span(first).map(|span| first.checked_add(span.count - 1));
        if let Some(Ok(last)) = last {
            self.revoke(session, first..=last);
        }
    }

    /// Nobody may reach a span any more.
    pub(super) fn revoke_all(&mut self, first: BlockId) {
        for session in self.holders(first) {
            self.revoke_span(session, first);
        }
    }

    /// The bytes of a block are gone, wherever it is reached.
    pub(super) fn revoke_block(&mut self, first: BlockId, block: BlockId) {
        for session in self.holders(first) {
            self.revoke(session, block..=block);
        }
    }

    fn revoke(&mut self, session: SessionId, blocks: RangeInclusive<BlockId>) {
        for (daemon, link) in self.links.of(session) {
            let Some(entry) = self.links.all.get_mut(&(session, daemon)) else { continue };
            let gone: Vec<BlockId> = entry.grants.range(blocks.clone()).copied().collect();
            for block in gone {
                entry.grants.remove(&block);
                let conn = self.daemons.servers.get(&daemon).and_then(Server::conn);
                if let Some(conn) = conn {
                    let request = DaemonRequest::Revoke { link, block };
                    self.out.push(Action::ToDaemon { conn, request_id: RequestId(0), request });
                }
            }
        }
    }

    /// Ends the links of a session.
    pub(super) fn unlink_session(&mut self, session: SessionId) {
        for (daemon, link) in self.links.of(session) {
            self.links.remove(session, daemon);
            self.tell_daemon(daemon, DaemonRequest::Unlink { link });
        }
    }

    /// The links of a daemon whose connection has ended are known to nobody any more.
    pub(super) fn forget_links_of(&mut self, daemon: DaemonId) {
        let first = SessionId::try_from(1).expect("1 is a session's id");
        let last = SessionId::try_from(SessionId::MAX).expect("the largest id is one");
        let its = self.links.by_daemon.range((daemon, first)..=(daemon, last));
        let its: Vec<SessionId> = its.map(|(_, session)| *session).collect();
        for session in its {
            self.links.remove(session, daemon);
        }
    }

    /// A client says that a link is of no use to it any more.
    fn unlink_broken(&mut self, session: SessionId, broken: LinkId) {
        let links = self.links.of(session);
        let Some((daemon, link)) = links.into_iter().find(|(_, link)| *link == broken) else {
            return;
        };
        self.links.remove(session, daemon);
        self.tell_daemon(daemon, DaemonRequest::Unlink { link });
    }

    /// Tells a daemon something that it does not answer, if it is connected.
    pub(super) fn tell_daemon(&mut self, daemon: DaemonId, request: DaemonRequest) {
        let conn = self.daemons.servers.get(&daemon).and_then(Server::conn);
        if let Some(conn) = conn {
            self.out.push(Action::ToDaemon { conn, request_id: RequestId(0), request });
        }
    }
}

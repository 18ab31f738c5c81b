//! A look at the whole state, for tests: whether the tables agree with each other, and what is in
//! them.
//!
//! Both cost as much as there is in the tables. The broker itself never calls them.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::limits::COPIES_MAX;

use super::Dispatcher;
use super::blocks::{Block, BlockState, SpanOwner, SpanState};
use super::clients::ReplyTo;
use super::copies::{Copy, CopyState};
use super::daemons::{Link, Server};
use super::event::{ClientConn, RequestId};
use super::growing::Growth;
use super::locks::{LockTable, LocksState};
use super::prepared::PREPARED_MAX;
use super::requests::Failure;
use super::sessions::SessionLink;
use super::timers::Timer;

/// A copy that the headers of its block name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotCopy {
    /// Where it is.
    pub daemon: DaemonId,
    /// Bytes that it has.
    pub committed: u64,
}

/// A block that somebody may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotBlock {
    /// Its GUID.
    pub guid: Guid,
    /// The GUID of its span.
    pub span_guid: Guid,
    /// Its epoch.
    pub epoch: u64,
    /// Copies that were asked for.
    pub asked: u32,
    /// Where it is, the primary first.
    pub copies: Vec<SnapshotCopy>,
    /// Whose copy is syncing.
    pub syncing: Option<DaemonId>,
    /// Daemons with a copy that is not one of these any more.
    pub others: Vec<DaemonId>,
    /// Whether its headers, or its lock table, are being made anew.
    pub losing: bool,
    /// Bytes that it has.
    pub committed: u64,
    /// Whether they are gone.
    pub lost: bool,
    /// Whose it is; `None` for a region's.
    pub session: Option<SessionId>,
}

impl SnapshotBlock {
    /// Whether a write goes to the copy of a daemon.
    #[must_use]
    pub fn is_written(&self, daemon: DaemonId) -> bool {
        self.syncing == Some(daemon) || self.copies.iter().any(|copy| copy.daemon == daemon)
    }
}

impl SnapshotCopy {
    fn of(copy: &Copy) -> Self {
        Self { daemon: copy.daemon, committed: copy.committed }
    }
}

/// What is in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Blocks that may be used, and lost ones.
    pub blocks: BTreeMap<BlockId, SnapshotBlock>,
    /// Blocks that are being made or destroyed.
    pub passing: usize,
    /// Blocks that have a lock table, or may have one, and whether they have.
    pub locks: BTreeMap<BlockId, bool>,
    /// Sessions that have ended, and are to be repaired.
    pub wrecks: BTreeSet<SessionId>,
    /// Sessions, and whether their connection is there.
    pub sessions: BTreeMap<SessionId, bool>,
    /// The numbers of the openings of each session, 0 for one that its client has yet to tell.
    pub openings: BTreeMap<SessionId, Vec<u64>>,
    /// First blocks of regions.
    pub regions: BTreeSet<BlockId>,
    /// Requests that wait for an answer, by connection.
    pub outstanding: BTreeMap<ClientConn, usize>,
    /// What waits for room, by session and ticket.
    pub waiting: BTreeSet<(SessionId, u64)>,
    /// Bytes charged and reserved, by daemon.
    pub charged: BTreeMap<DaemonId, (u64, u64)>,
    /// Blocks and regions that contradict others: nobody may use them.
    pub quarantined: usize,
    /// Whether every expected daemon has reported, or is not waited for any longer.
    pub complete: bool,
    /// Daemons of which only headers tell what they hold, while they live.
    pub unconfirmed: BTreeSet<DaemonId>,
}

impl Dispatcher {
    /// What is in the tables.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            quarantined: self.restart.quarantined.len() + self.regions.nameless(),
            complete: self.tables_complete(),
            unconfirmed: self.daemons.unconfirmed.clone(),
            ..Snapshot::default()
        };
        for id in self.restart.tables.keys() {
            snapshot.locks.insert(*id, false);
        }
        for (id, block) in self.blocks.all() {
            let Some(span) = self.blocks.span(block.span) else { continue };
            if let Some(locks) = &block.locks {
                snapshot.locks.insert(id, locks.state() == LocksState::Made);
            }
            let usable = !matches!(block.state, BlockState::Making | BlockState::Going);
            if span.state != SpanState::Standing || !usable {
                snapshot.passing += 1;
                continue;
            }
            let session = match span.owner {
                SpanOwner::Session(session) => Some(session),
                SpanOwner::Region => None,
            };
            let syncing = block.copies.syncing().map(|copy| copy.daemon);
            let is_other = |copy: &&Copy| !copy.named && Some(copy.daemon) != syncing;
            let others = block.copies.iter().filter(is_other);
            let entry = SnapshotBlock {
                guid: block.guid,
                span_guid: span.guid,
                epoch: block.epoch,
                asked: span.copies,
                copies: block.copies.named().map(SnapshotCopy::of).collect(),
                syncing,
                others: others.map(|copy| copy.daemon).collect(),
                losing: block.state == BlockState::Losing,
                committed: block.committed,
                lost: block.state == BlockState::Lost,
                session,
            };
            snapshot.blocks.insert(id, entry);
        }
        snapshot.wrecks = self.wrecks.ids().into_iter().collect();
        let attached = |link| matches!(link, SessionLink::Attached(_));
        snapshot.sessions =
            self.sessions.all().map(|s| (s.record.session, attached(s.link))).collect();
        snapshot.openings =
            self.sessions.all().map(|s| (s.record.session, s.opens.numbers())).collect();
        let waiting = self.patients.all();
        snapshot.waiting = waiting.map(|patient| (patient.session, patient.ticket.1)).collect();
        snapshot.regions = self.regions.all().map(|(first, _)| first).collect();
        snapshot.outstanding =
            self.clients.iter().map(|(conn, client)| (*conn, client.outstanding)).collect();
        for &daemon in self.daemons.servers.keys() {
            let store = self.ledger.store(daemon);
            snapshot.charged.insert(daemon, (store.committed, store.reserved));
        }
        snapshot
    }

    /// Recomputes from the tables what the tables keep, and compares.
    ///
    /// # Errors
    ///
    /// The first contradiction.
    pub fn audit(&self) -> Result<(), String> {
        self.audit_charges()?;
        self.audit_spans()?;
        self.audit_blocks()?;
        self.audit_sessions()?;
        self.audit_wrecks()?;
        self.audit_prepared()?;
        self.audit_patients()?;
        self.audit_rates()?;
        self.audit_links()?;
        self.audit_syncs()?;
        self.audit_homes()?;
        self.audit_scrubs()?;
        self.audit_requests()
    }

    fn audit_charges(&self) -> Result<(), String> {
        let copies = self.blocks.all().flat_map(|(_, block)| block.copies.iter());
        let blocks = copies.map(|copy| &copy.charge);
        let quarantined = self.restart.quarantined.values().map(|block| &block.charge);
        let regions = self.regions.all().map(|(_, region)| region.attributes.uid);
        let connections = self.clients.values().map(|client| client.peer.uid);
        let tables = self.blocks.all().filter_map(|(_, block)| block.locks.as_ref());
        let tables = tables.map(LockTable::charge);
        self.ledger.audit(blocks.chain(quarantined), tables, regions, connections)
    }

    fn audit_spans(&self) -> Result<(), String> {
        let mut ids: u64 = 1;
        let mut end = 0;
        let mut guids = BTreeSet::new();
        for (first, span) in self.blocks.spans() {
            let members = self.blocks.members(first);
            let lost = members.iter().filter(|id| self.state_of(**id) == Some(BlockState::Lost));
            check(first.get() >= end, || format!("span {first} overlaps the one before"))?;
            check(members.len() == span.present as usize, || format!("members of span {first}"))?;
            check(lost.count() == span.lost as usize, || format!("lost blocks of span {first}"))?;
            check(guids.insert(span.guid), || format!("guid of span {first} is used twice"))?;
            let live = matches!(span.state, SpanState::Making | SpanState::Standing);
            if span.owner == SpanOwner::Region && live {
                check(self.regions.get(first).is_some(), || format!("no region {first}"))?;
            }
            check((span.state == SpanState::Making) == self.makings.contains_key(&first), || {
                format!("span {first} is {:?}", span.state)
            })?;
            end = first.get() + span.count;
            ids += span.ids.iter().map(|range| u64::from(range.count)).sum::<u64>();
        }
        let quarantined = self.restart.quarantined.values().filter(|block| block.has_id).count();
        let strays = self.daemons.servers.values().flat_map(|server| server.strays.values());
        let strays = strays.filter(|has_id| **has_id).count();
        ids += (self.restart.names.len() + quarantined + strays) as u64;
        let all = u64::from(self.config.block_ids());
        check(ids + self.ids.unused() == all, || {
            format!("{ids} ids are in use and {} are not, of {all}", self.ids.unused())
        })
    }

    fn audit_blocks(&self) -> Result<(), String> {
        let mut guids = BTreeSet::new();
        let mut lost = 0;
        for (id, block) in self.blocks.all() {
            let Some(span) = self.blocks.span(block.span) else {
                return Err(format!("block {id} has no span"));
            };
            check(id.get() - block.span.get() < span.count, || format!("span of block {id}"))?;
            lost += u32::from(block.state == BlockState::Lost);
            check(block.copies.is_empty() || guids.insert(block.guid), || {
                format!("guid of block {id} is used twice")
            })?;
            check(!block.copies.is_empty() || block.state == BlockState::Lost, || {
                format!("block {id} is {:?} and nowhere", block.state)
            })?;
            self.audit_copies(id, block)?;
        }
        check(lost == self.blocks.lost, || format!("{} lost blocks", self.blocks.lost))?;
        for (daemon, server) in &self.daemons.servers {
            for id in &server.blocks {
                let copy = self.blocks.get(*id).and_then(|block| block.copies.of(*daemon));
                check(copy.is_some(), || format!("block {id} of daemon {daemon}"))?;
            }
            let away = matches!(server.link, Link::Away);
            check(!(away && server.owes()), || format!("daemon {daemon} is away and owes"))?;
        }
        Ok(())
    }

    /// No two copies of a block are on one daemon, and each costs what it has.
    fn audit_copies(&self, id: BlockId, block: &Block) -> Result<(), String> {
        let mut daemons = BTreeSet::new();
        for copy in block.copies.iter() {
            let daemon = copy.daemon;
            check(daemons.insert(daemon), || format!("block {id} is twice on daemon {daemon}"))?;
            let Some(server) = self.daemons.servers.get(&daemon) else {
                return Err(format!("block {id} is on daemon {daemon}, which nobody knows"));
            };
            check(!copy.may_exist() || server.blocks.contains(&id), || {
                format!("daemon {daemon} does not know of its block {id}")
            })?;
            let (bytes, committed) = (copy.charge.bytes(), copy.committed);
            let settled = copy.state == CopyState::Held && copy.grows == 0;
            check(!settled || bytes == committed, || {
                format!("block {id} on {daemon} has {committed} bytes and is charged {bytes}")
            })?;
            let usable = block.state == BlockState::Held && copy.state == CopyState::Held;
            check(!usable || block.committed <= committed, || {
                format!("block {id} has {} bytes, on {daemon} {committed}", block.committed)
            })?;
        }
        self.audit_locks(id, block)?;
        self.audit_copyset(id, block)
    }

    /// A block whose pages are locked has a lock table, and while it may be used that has words for
    /// all of it. One of several copies has one for good.
    fn audit_locks(&self, id: BlockId, block: &Block) -> Result<(), String> {
        let asked = self.blocks.span(block.span).map_or(0, |span| span.copies);
        let (state, committed, locks) = (block.state, block.committed, block.locks.as_ref());
        let needs_one = block.is_locked || block.copies.named().count() > 1;
        check(locks.is_some() || !needs_one || !block.is_usable(), || {
            format!("block {id} of {asked} copies has no lock table")
        })?;
        check(
            locks.is_none() || asked > 1 || !block.is_usable() || self.moves.is_lent(id),
            || format!("block {id} of one copy has the lock table {locks:?} for good"),
        )?;
        let is_there = !block.is_locked || locks.is_none_or(|locks| locks.covers(committed));
        check(is_there || state != BlockState::Held, || {
            format!("block {id} has {committed} bytes, and the lock table {locks:?}")
        })?;
        let is_waited_for = self.relocks.contains_key(&id);
        check(!is_waited_for || state == BlockState::Losing, || {
            format!("block {id} is {state:?}, and its lock table is made anew")
        })
    }

    /// A block that may be used has the copies that all its headers name, and no others. In
    /// between, somebody writes headers.
    fn audit_copyset(&self, id: BlockId, block: &Block) -> Result<(), String> {
        let (copies, epoch) = (&block.copies, block.epoch);
        let named = copies.named().count();
        let is_raised = self.raises.contains_key(&id);
        let most = COPIES_MAX as usize;
        check(named <= most, || format!("block {id} has {named} copies of {most}"))?;
        check(copies.iter().all(|copy| copy.epoch <= epoch), || {
            format!("block {id} has epoch {epoch}, and a copy a later one")
        })?;
        match block.state {
            BlockState::Held => {
                check(named > 0 && copies.all_held() && copies.all_say(epoch) && !is_raised, || {
                    format!("block {id} is held, and its copies are {copies:?}, epoch {epoch}")
                })
            }
            BlockState::Losing => {
                let is_relocked = self.relocks.contains_key(&id);
                check(named > 0 && copies.all_held() && is_raised != is_relocked, || {
                    format!("nobody decides on the copies of block {id}: {copies:?}")
                })
            }
            BlockState::Lost | BlockState::Going => {
                check(!is_raised, || format!("headers of block {id} are written for nobody"))
            }
            BlockState::Making => Ok(()),
        }
    }

    fn audit_sessions(&self) -> Result<(), String> {
        for session in self.sessions.all() {
            let id = session.record.session;
            for first in &session.spans {
                let owner = self.blocks.span(*first).map(|span| span.owner);
                let own = owner == Some(SpanOwner::Session(id));
                check(own, || format!("span {first} of session {id}"))?;
            }
            for first in session.opens.regions().filter(|_| self.tables_complete()) {
                let region = self.regions.get(first);
                let open = region.is_some_and(|region| region.opens.contains(&id));
                check(open, || format!("region {first} of session {id}"))?;
            }
            if let SessionLink::Attached(conn) = session.link {
                let client = self.clients.get(&conn).and_then(|client| client.session);
                check(client == Some(id), || format!("connection of session {id}"))?;
            }
        }
        for (first, span) in self.blocks.spans() {
            let SpanOwner::Session(id) = span.owner else { continue };
            let known = self.sessions.get(id).is_some_and(|s| s.spans.contains(&first));
            check(known || span.state == SpanState::Dying, || format!("owner of span {first}"))?;
        }
        for (ticket, first) in self.blocks.tickets() {
            let made = self.blocks.span(*first).map(|span| span.ticket);
            check(made == Some(*ticket), || format!("ticket of span {first}"))?;
        }
        Ok(())
    }

    /// What has ended is no session's any more, and what is to be repaired is waited for somewhere.
    fn audit_wrecks(&self) -> Result<(), String> {
        let is_seat = |id| self.seats.daemon_of(id).is_some();
        let has_another = |id| self.sessions.get(id).is_some() || is_seat(id);
        let both = self.wrecks.all().find(|(id, _)| has_another(*id));
        check(both.is_none(), || format!("{both:?} has ended and has not"))?;
        check(self.wrecks.is_sound(), || format!("claims are nowhere: {:?}", self.wrecks))?;
        for (id, wreck) in self.wrecks.all().filter(|_| self.tables_complete()) {
            let is_gone = |first: &BlockId| self.regions.get(*first).is_none();
            let gone = wreck.opens().and_then(|opens| opens.regions().find(is_gone));
            check(gone.is_none(), || format!("session {id} left something in {gone:?}"))?;
            check(!wreck.is_over(), || format!("nothing of session {id} is left"))?;
        }
        Ok(())
    }

    /// What is prepared is nobody's, and leaves room for what is asked for.
    fn audit_prepared(&self) -> Result<(), String> {
        let ids = self.sessions.all().map(|session| session.record.session);
        let mut ids = ids.chain(self.wrecks.ids());
        let taken = ids.find(|id| self.prepared.has(*id));
        check(taken.is_none(), || format!("session {taken:?} is prepared and somebody's"))?;
        let (ready, sessions) = (self.prepared.ready(), self.sessions_held());
        // What a daemon has left was no session of a client's before.
        let of_seats = self.wrecks.all().filter(|(_, wreck)| wreck.opens().is_none()).count();
        let most = self.config.limits.sessions_max + of_seats;
        let fits = ready == 0 || ready + sessions <= most;
        let is_bounded = self.prepared.len() <= PREPARED_MAX;
        check(fits && is_bounded, || format!("{ready} prepared beside {sessions}"))
    }

    /// What is granted over a link its session may use, and its daemon holds.
    fn audit_links(&self) -> Result<(), String> {
        for (session, daemon, grants) in self.links.granted() {
            let known = self.sessions.get(session).is_some();
            check(known, || format!("session {session} is gone and linked to daemon {daemon}"))?;
            let hears = self.daemons.servers.get(&daemon).is_some_and(Server::hears);
            check(hears, || format!("daemon {daemon} is away and linked to session {session}"))?;
            for block in grants {
                let is_reached = match self.reach(session, *block) {
                    Ok(_) => true,
                    // It gets or loses a copy, or has done so, and goes on meanwhile.
                    Err(Failure::Unsettled) => self.blocks.get(*block).is_some_and(|found| {
                        let locks = found.locks.as_ref().filter(|_| found.is_locked);
                        locks.is_none_or(|locks| locks.covers(found.committed))
                    }),
                    Err(_) => false,
                };
                let copies = self.blocks.get(*block).map(|block| &block.copies);
                let is_there = copies.is_some_and(|copies| copies.of(daemon).is_some());
                check(is_reached && is_there, || {
                    format!("block {block} is granted to session {session}")
                })?;
            }
        }
        check(self.relays.is_sound(), || "bytes under way are counted wrong".to_owned())
    }

    /// What waits for room is a session's, and is not made already.
    fn audit_patients(&self) -> Result<(), String> {
        for patient in self.patients.all() {
            let known = self.sessions.get(patient.session).is_some();
            check(known, || format!("session {} waits for room", patient.session))?;
            let made = self.made_by(patient.ticket);
            check(made.is_none(), || format!("ticket {} waits and is made", patient.ticket.1))?;
        }
        Ok(())
    }

    /// Every request that is counted as outstanding waits somewhere, and once.
    fn audit_scrubs(&self) -> Result<(), String> {
        let forgotten: Vec<BlockId> = self.scrubs.forgotten().collect();
        check(forgotten.is_empty(), || format!("nobody compares {forgotten:?} again"))?;
        let is_awaited = !self.scrubs.waits() || self.timers.time_of(Timer::Scrub).is_some();
        check(is_awaited, || "no timer for blocks that are compared again".to_owned())
    }

    fn audit_requests(&self) -> Result<(), String> {
        let opening = self.sessions.all().filter_map(|session| match session.link {
            SessionLink::Opening(to) => Some(to),
            _ => None,
        });
        let makings = self.makings.values().map(|making| making.to);
        let grows = self.growths.values().filter_map(Growth::owed);
        let deletions = self.deletions.values().filter_map(|deletion| deletion.to);
        let relays = self.relays.owed().chain(self.adoptions.values().copied());
        let relays = relays.chain(self.moves.owed()).chain(self.scrubs.owed());
        let queues = self.deferred.owed().chain(self.parked.owed()).chain(self.unsettled.owed());
        let mut waiting: BTreeMap<ClientConn, Vec<RequestId>> = BTreeMap::new();
        for ReplyTo { conn, request_id } in
            opening.chain(makings).chain(grows).chain(queues).chain(deletions).chain(relays)
        {
            waiting.entry(conn).or_default().push(request_id);
        }
        for (conn, client) in &self.clients {
            let found = waiting.get(conn).map_or(0, Vec::len);
            check(found == client.outstanding, || {
                format!("{} requests of {conn:?} are outstanding, {found} wait", client.outstanding)
            })?;
        }
        Ok(())
    }

    fn state_of(&self, id: BlockId) -> Option<BlockState> {
        self.blocks.get(id).map(|block| block.state)
    }
}

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

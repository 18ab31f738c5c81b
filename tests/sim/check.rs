//! What must hold: after every step, and when everything has come to rest.

use std::collections::BTreeSet;

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::client::{BlockInfo, ClientRequest, MallocWith, OpeningId, RegionOpen};
use dmce_broker::dispatcher::{Millis, Snapshot, SnapshotCopy};

use crate::client::Client;
use crate::host::{Header, Object};
use crate::pages;
use crate::view::{OwnSpan, View, members};
use crate::world::{Checked, Faults, World};

/// Quiet moves, of 20 ms, after which sessions without a client have ended and daemons were heard.
const LONG: u32 = 300;

/// Quiet moves after which nothing waits for an answer.
const SHORT: u32 = 10;

/// Moves after which everything must have come to rest.
const REST_MOVES: usize = 20_000;

/// Things that the shell does meanwhile between two of them.
const SHELL_STEPS: usize = 8;

impl World {
    /// What must hold after every step, apart from the dispatcher's own audit.
    pub fn check_tables(&self) -> Checked {
        self.host.check_primaries()?;
        let Some(broker) = &self.broker else { return Ok(()) };
        let snapshot = broker.dispatcher.snapshot();
        for (id, block) in &snapshot.blocks {
            let harmed = self.host.harmed.contains(&block.guid)
                || (block.guid == Guid::default() && self.host.harmed_ids.contains(id));
            // What a session gave up while a daemon was away is half gone for the next broker.
            let given_up = block.session.is_some_and(|session| !self.has(session, *id));
            // A deletion that a dead broker began may have left the copy alone that was harmed.
            // So may what it had begun to make, when a daemon does what it was told by that.
            let is_there = |copy: &SnapshotCopy| {
                let object = self.object(copy.daemon, *id);
                object.is_some_and(|object| object.description.guid == block.guid)
            };
            let is_gone = !block.copies.iter().any(is_there);
            let left = (self.host.touched_ids.contains(id) || is_gone)
                && !self.truth.is_promised_whole(block.span_guid)
                && block.session.is_none();
            if block.lost && !harmed && !given_up && !left {
                return Err(format!("block {id} is called lost, and nobody touched it"));
            }
            for SnapshotCopy { daemon, committed } in block.copies.iter().copied() {
                let object = self.object(daemon, *id);
                let there = object.is_some_and(|object| {
                    object.description.guid == block.guid && object.bytes >= committed
                });
                // It may do yet what the broker before this one wanted of it: destroy, above all.
                let may_go = snapshot.unconfirmed.contains(&daemon);
                let harmed = self.host.harmed_copies.contains(&(daemon, block.guid));
                if !block.lost && !there && !harmed && !may_go {
                    let text = format!("object {object:?} of daemon {daemon}");
                    return Err(format!("block {id} is {block:?}, {text}"));
                }
            }
        }
        self.check_locks(&snapshot)?;
        self.check_copysets(&snapshot)?;
        if snapshot.quarantined > 0 {
            return Err("something is quarantined".to_owned());
        }
        for (conn, outstanding) in &snapshot.outstanding {
            let asked = broker.asked.get(conn).map_or(0, BTreeSet::len);
            // A connection that hung up is forgotten when the event arrives.
            if broker.clients.contains_key(conn) && asked != *outstanding {
                return Err(format!("{conn:?} waits for {asked} answers of {outstanding}"));
            }
        }
        self.check_room(&snapshot)
    }

    /// There is a lock table of each block that has one, and of no other.
    fn check_locks(&self, snapshot: &Snapshot) -> Checked {
        let mut tables = self.host.tables.keys();
        if let Some(block) = tables.find(|block| !snapshot.locks.contains_key(*block)) {
            return Err(format!("the lock table of block {block} is nobody's"));
        }
        for (block, _) in snapshot.locks.iter().filter(|(_, made)| **made) {
            let there = self.host.tables.contains_key(block);
            if !there && !self.host.harmed_tables.contains(block) {
                return Err(format!("the lock table of block {block} is not there"));
            }
        }
        Ok(())
    }

    /// A block that may be used has as many copies as were asked for, or one was harmed; and none
    /// of them is of an epoch that is over.
    fn check_copysets(&self, snapshot: &Snapshot) -> Checked {
        for (id, block) in snapshot.blocks.iter().filter(|(_, block)| !block.lost) {
            let harmed = self.host.touched_ids.contains(id);
            let given_up = block.session.is_some_and(|session| !self.has(session, *id));
            let promised = block.session.is_some() || self.truth.is_promised_whole(block.span_guid);
            let few = block.copies.len() < block.asked as usize
                && !self.asked_anew.contains(&block.span_guid);
            if few && promised && !harmed && !given_up {
                return Err(format!("block {id} has too few copies, nobody touched it: {block:?}"));
            }
            let is_old = |copy: &&SnapshotCopy| {
                let object = self.object(copy.daemon, *id);
                let own = object.filter(|object| object.description.guid == block.guid);
                own.is_some_and(|object| object.description.epoch < block.epoch)
            };
            // An earlier object may have been put in its place, and nobody has looked since.
            let is_harmed =
                |copy: &&SnapshotCopy| self.host.harmed_copies.contains(&(copy.daemon, block.guid));
            let mut sound = block.copies.iter().filter(|copy| !is_harmed(copy));
            if let Some(copy) = sound.find(is_old).filter(|_| !block.losing) {
                return Err(format!("block {id} is read from {copy:?}, whose header is old"));
            }
        }
        Ok(())
    }

    /// What is charged and reserved fits the daemon, unless the daemon itself said more: because it
    /// commits more than it was asked for, or has some of what was called lost, still or again.
    fn check_room(&self, snapshot: &Snapshot) -> Checked {
        // One of two that change places may be where it fits only without the other.
        let may_be_over = self.manners.extra_pages > 0 || self.has_swapped;
        if may_be_over || !self.host.harmed_copies.is_empty() {
            return Ok(());
        }
        for daemon in &self.daemons {
            let charged = snapshot.charged.get(&daemon.id).copied().unwrap_or_default();
            if snapshot.complete && charged.0 + charged.1 > daemon.capacity && daemon.conn.is_some()
            {
                return Err(format!("daemon {} of {} has {charged:?}", daemon.id, daemon.capacity));
            }
        }
        Ok(())
    }

    /// What a client is granted exists, and is nobody else's.
    pub fn check_granted(&self, place: usize, first: BlockInfo) -> Checked {
        let span: BTreeSet<BlockId> = members(first.span_first, first.span_count).collect();
        for (other, client) in self.clients.iter().enumerate() {
            let lives = client.view.as_ref().is_some_and(|view| {
                let record = self.host.records.get(&view.session);
                let is_it = record.is_some_and(|record| record.record.guid == view.guid);
                is_it && !self.truth.ended.contains(&view.guid)
            });
            if other == place || !client.alive || !lives {
                continue;
            }
            // Of a span whose first object went while there was no broker, nothing may be left.
            let taken = |id: &BlockId| span.contains(id) && !self.is_harmed(client, *id);
            if let Some(id) = client.own_blocks().find(taken) {
                return Err(format!("block {id} is granted, and is process {}'s", client.peer.pid));
            }
        }
        for id in span {
            let there = self.daemons.iter().any(|daemon| self.object(daemon.id, id).is_some());
            if !there && !self.host.harmed_ids.contains(&id) {
                return Err(format!("block {id} of the granted {first:?} does not exist"));
            }
        }
        Ok(())
    }

    /// Lets everything come to rest, and checks that what was promised is there, and nothing else.
    ///
    /// # Errors
    ///
    /// What was lost, and what was left.
    pub fn rest(&mut self) -> Checked {
        self.faults = Faults::NONE;
        self.manners.refuses = u64::MAX;
        self.manners.lies = u64::MAX;
        if self.broker.is_none() {
            self.start_broker()?;
        }
        for place in 0..self.daemons.len() {
            self.daemons[place].stopped = false;
            if !self.daemons[place].alive {
                self.daemons[place].start(&mut self.host);
            }
        }
        for client in &mut self.clients {
            client.stopped = false;
        }
        self.settle(LONG)?;
        self.undrain_all()?;
        self.settle(LONG)?;
        self.check_promises()?;
        self.check_waiting()?;
        for place in 0..self.clients.len() {
            if self.clients[place].alive {
                self.kill_client(place);
            }
        }
        self.settle(LONG)?;
        self.check_remains()?;
        self.delete_everything()
    }

    /// Delivers all there is until nothing moves.
    fn settle(&mut self, rest: u32) -> Checked {
        let mut quiet = 0;
        for _ in 0..REST_MOVES {
            self.now.millis.0 += 20;
            self.connect_someone()?;
            self.deliver_request()?;
            self.daemon_serves();
            self.deliver_daemon_message()?;
            // What the shell does takes no time beside the rest.
            for _ in 0..SHELL_STEPS {
                self.deliver_soon()?;
            }
            self.client_reads()?;
            self.client_writes(false)?;
            self.tick()?;
            quiet = if self.is_quiet() { quiet + 1 } else { 0 };
            if quiet > rest {
                return Ok(());
            }
        }
        Err("it does not come to rest".to_owned())
    }

    fn is_quiet(&self) -> bool {
        let Some(broker) = &self.broker else { return false };
        let all_read = self.clients.iter().filter(|client| client.alive).all(|client| {
            let is_heard = client.inbox.is_empty() && client.outbox.is_empty();
            is_heard && client.pending.is_empty() && client.writing.is_none()
        });
        let all_heard =
            self.daemons.iter().all(|daemon| daemon.inbox.iter().all(|(number, _)| number.0 != 0));
        let only_sense = self.daemons.iter().all(|daemon| daemon.conn.is_some());
        all_read && all_heard && only_sense && broker.soon.is_empty() && broker.idles.is_empty()
    }

    fn check_promises(&mut self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let snapshot = broker.dispatcher.snapshot();
        if snapshot.passing > 0 || !snapshot.complete {
            return Err(format!("blocks are still on their way: {snapshot:?}"));
        }
        self.check_links(&snapshot)?;
        for client in self.clients.iter().filter(|client| client.alive) {
            let view = client.view.as_ref();
            let view = view.filter(|view| !self.truth.ended.contains(&view.guid));
            let Some(view) = view else { continue };
            let harmed = |span: &OwnSpan, first: BlockId| {
                members(first, span.count).any(|id| self.host.harmed_ids.contains(&id))
            };
            let whole = view.spans.iter().filter(|(first, span)| !harmed(span, **first));
            for id in whole.flat_map(|(first, span)| members(*first, span.count)) {
                let own = snapshot.blocks.get(&id).map(|block| block.session);
                if own != Some(Some(view.session)) {
                    let pid = client.peer.pid;
                    return Err(format!("process {pid} had block {id}, which is {own:?}"));
                }
            }
            self.check_blocks_known(view, &snapshot)?;
            self.check_openings_known(view, &snapshot)?;
        }
        Ok(())
    }

    /// Who waits for room has no room: one of them asks for the same at once, and does not get it.
    fn check_waiting(&mut self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let queued = broker.dispatcher.snapshot().waiting;
        let of = |place: usize| self.clients[place].view.as_ref();
        let lives = |place: usize| {
            let ended = of(place).is_some_and(|view| self.truth.ended.contains(&view.guid));
            self.clients[place].alive && !ended
        };
        let waiting = (0..self.clients.len()).filter(|place| lives(*place)).flat_map(|place| {
            let view = of(place).into_iter();
            view.flat_map(move |v| v.waiting.values().map(move |with| (place, v.session, *with)))
        });
        let waiting: Vec<_> = waiting.collect();
        for (_, session, with) in &waiting {
            let ticket = with.malloc.ticket;
            if !queued.contains(&(*session, ticket)) {
                return Err(format!("session {session} waits for {with:?}, and nobody knows"));
            }
        }
        let Some((place, session, with)) = self.random.pick(waiting) else { return Ok(()) };
        let blocks = |world: &Self| world.clients[place].own_blocks().count();
        let before = blocks(self);
        let at_once = MallocWith { wait_ms: None, ..with };
        self.clients[place].ask(ClientRequest::MallocWith(at_once));
        self.settle(SHORT)?;
        if blocks(self) > before {
            return Err(format!("session {session} waited for {with:?}, and there was room"));
        }
        Ok(())
    }

    /// Of the blocks that a session has, its client knows: nothing that was given up is left.
    fn check_blocks_known(&self, view: &View, snapshot: &Snapshot) -> Checked {
        let session = view.session;
        let known: BTreeSet<BlockId> =
            view.spans.iter().flat_map(|(first, span)| members(*first, span.count)).collect();
        let of_session = snapshot.blocks.iter().filter(|(_, block)| block.session == Some(session));
        for (id, block) in of_session.filter(|(id, _)| !known.contains(id)) {
            let object = block.copies.first().and_then(|copy| self.object(copy.daemon, *id));
            let first = object.map(|object| object.description.span.first);
            // Whose first block is harmed is nobody's that could be told apart.
            if first.is_some_and(|first| !self.host.harmed_ids.contains(&first)) {
                let text = "and its client does not know";
                return Err(format!("session {session} has block {id}, {text}"));
            }
        }
        Ok(())
    }

    /// Daemons let nobody reach what the tables do not give: not a link of a session that is gone,
    /// and over one of a session that there is, no block of another's.
    fn check_links(&self, snapshot: &Snapshot) -> Checked {
        for link in self.daemons.iter().flat_map(|daemon| daemon.links.values()) {
            let session = link.session;
            if !snapshot.sessions.contains_key(&session) {
                return Err(format!("session {session} is gone and linked"));
            }
            let is_anothers = |id: &&BlockId| {
                let block = snapshot.blocks.get(*id);
                block.is_none_or(|block| block.session.is_some_and(|owner| owner != session))
            };
            if let Some(id) = link.grants.iter().find(is_anothers) {
                return Err(format!("session {session} may reach block {id} by message"));
            }
        }
        Ok(())
    }

    /// A session has the openings that its client knows, and no others.
    fn check_openings_known(&self, view: &View, snapshot: &Snapshot) -> Checked {
        let session = view.session;
        let open: BTreeSet<OpeningId> =
            snapshot.openings.get(&session).into_iter().flatten().copied().map(OpeningId).collect();
        let there = view.openings.iter().filter(|(_, region)| {
            let stands = snapshot.regions.contains(&region.first);
            stands && self.host.has_region(region.guid)
        });
        let missing = there.map(|(opening, _)| opening).find(|opening| !open.contains(opening));
        let extra = open.iter().find(|opening| !view.openings.contains_key(opening));
        match missing.or(extra) {
            Some(opening) => {
                let theirs = &view.openings;
                Err(format!(
                    "session {session} has {open:?} open, its client {theirs:?}: {opening:?}"
                ))
            }
            None => Ok(()),
        }
    }

    /// Without clients: no session, and of blocks only those of regions.
    fn check_remains(&self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let snapshot = broker.dispatcher.snapshot();
        let session = snapshot.blocks.iter().find(|(_, block)| block.session.is_some());
        if !snapshot.wrecks.is_empty() {
            return Err(format!("nobody repairs {:?}", snapshot.wrecks));
        }
        if !snapshot.sessions.is_empty() || session.is_some() || snapshot.passing > 0 {
            return Err(format!("something is left: {snapshot:?}"));
        }
        let seats =
            self.host.records.iter().filter(|(_, of)| of.record.is_of_daemon()).map(|(id, _)| id);
        let seats: BTreeSet<&SessionId> = seats.collect();
        let of_clients = self.host.records.keys().chain(self.host.sessions.keys());
        let mut of_clients = of_clients.filter(|id| !seats.contains(id));
        if let Some(id) = of_clients.find(|id| !self.host.prepared.contains_key(id)) {
            return Err(format!("the objects of session {id} are left"));
        }
        self.check_words(&snapshot)?;
        let mut links = self.daemons.iter().flat_map(|daemon| daemon.links.values());
        if let Some(link) = links.next() {
            let (session, grants) = (link.session, &link.grants);
            return Err(format!("session {session} is gone and has granted {grants:?}"));
        }
        for (daemon, (_, reserved)) in &snapshot.charged {
            if *reserved > 0 {
                return Err(format!("{reserved} bytes are reserved on daemon {daemon} by nobody"));
            }
        }
        for (daemon, store) in &self.host.stores {
            for (id, object) in store {
                let known = snapshot.blocks.get(id).is_some_and(|block| {
                    block.is_written(*daemon) || block.others.contains(daemon)
                });
                if object.header == Header::Valid && !known {
                    return Err(format!("daemon {daemon} has {object:?}, which is nobody's"));
                }
            }
        }
        Ok(())
    }

    /// Nobody has a page of a block that may be used.
    fn check_words(&self, snapshot: &Snapshot) -> Checked {
        for (block, table) in &self.host.pages.named {
            let is_used = snapshot.blocks.get(block).is_some_and(|block| !block.lost);
            let word = self.host.pages.words.get(table).copied().unwrap_or_default();
            let is_given_back = pages::is_free(word) || pages::is_lost(word);
            if is_used && !is_given_back && !self.host.harmed_tables.contains(block) {
                return Err(format!("nobody gives back the page of block {block}: {word:#x}"));
            }
        }
        Ok(())
    }

    /// Root finds every region that was promised, deletes what there is, and nothing is left.
    fn delete_everything(&mut self) -> Checked {
        let root = self.clients.len();
        self.add_client();
        self.clients[root].peer.uid = 0;
        self.settle(SHORT)?;
        self.clients[root].ask(crate::asking::plain_setup());
        self.settle(SHORT)?;
        for (number, name) in (1..).zip(self.truth.regions_asked.clone()) {
            let opened = self.opened(root);
            // Who meets a copy that is gone before the broker knows asks again.
            for opening in [number * 2, number * 2 + 1].map(OpeningId) {
                if self.opened(root) == opened {
                    let region = name.clone();
                    let open = RegionOpen { opening, region, read: true, write: true };
                    self.clients[root].ask(ClientRequest::RegionOpen(open));
                    self.settle(SHORT)?;
                }
            }
            let is_open = self.opened(root) > opened;
            let promised = self.truth.regions.contains_key(&name);
            if promised && !is_open && !self.host.harmed_regions.contains(&name) {
                return Err(format!("region {name:?} was acknowledged, and is gone"));
            }
            self.clients[root].ask(ClientRequest::RegionFind(name.clone()));
            self.settle(SHORT)?;
            let keys = self.clients[root].view.as_ref().map(|view| view.keys.clone());
            for (guid, region) in keys.unwrap_or_default() {
                let promised = self.truth.regions.get(&name);
                let kept = promised.is_none_or(|promised| *promised == guid)
                    || self.host.harmed_regions.contains(&name);
                if self.host.name_of(guid).as_ref() == Some(&name) && !kept {
                    return Err(format!("region {name:?} is another than was acknowledged"));
                }
                self.clients[root].ask(ClientRequest::RegionDelete(region));
                self.settle(SHORT)?;
            }
        }
        self.kill_client(root);
        self.settle(SHORT)?;
        self.check_remains()?;
        let Some(broker) = &self.broker else { return Ok(()) };
        let snapshot = broker.dispatcher.snapshot();
        let charged = snapshot.charged.values().any(|charged| *charged != (0, 0));
        if charged || !snapshot.blocks.is_empty() || !snapshot.regions.is_empty() {
            return Err(format!("after all is deleted there is {snapshot:?}"));
        }
        Ok(())
    }

    /// Whether a block of the client's span of `block` was harmed.
    fn is_harmed(&self, client: &Client, block: BlockId) -> bool {
        let view = client.view.as_ref();
        !view.is_some_and(|view| view.may_read(block, &self.host.harmed_ids))
    }

    /// Whether the client of a session believes that it has a block.
    fn has(&self, session: SessionId, block: BlockId) -> bool {
        let of = |client: &&Client| {
            let view = client.view.as_ref().filter(|view| view.session == session);
            client.alive && view.is_some_and(|view| !self.truth.ended.contains(&view.guid))
        };
        self.clients.iter().filter(of).any(|client| client.own_blocks().any(|id| id == block))
    }

    fn opened(&self, place: usize) -> usize {
        self.clients[place].view.as_ref().map_or(0, |view| view.openings.len())
    }

    fn object(&self, daemon: DaemonId, block: BlockId) -> Option<&Object> {
        self.host.stores.get(&daemon)?.get(&block)
    }

    /// The time that passed, for a line of summary.
    pub const fn elapsed(&self) -> Millis {
        self.now.millis
    }
}

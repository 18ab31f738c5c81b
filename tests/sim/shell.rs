//! The model of the broker's shell: does what the dispatcher says, and notices what must not be
//! said.

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::client::{BlockInfo, ClientReply, ClientRequest};
use dmce_abi::wire::daemon::DaemonRequest;
use dmce_abi::wire::{Refusal, Reply};
use dmce_broker::dispatcher::{
    Action, ClientConn, DaemonConn, Descriptor, Event, Lent, Made, RequestId, SessionRecord,
};

use crate::client::Arrival;
use crate::host::{Header, Host, Object, Record};
use crate::moving::{EVENED, MOVED};
use crate::world::{Checked, World};

/// Does one action.
///
/// # Errors
///
/// An action that no dispatcher may ask for.
pub fn act(world: &mut World, action: Action) -> Checked {
    match action {
        Action::Reply { conn, request_id, reply, descriptors, again } => {
            return world.reply((conn, request_id), reply, (&descriptors, again));
        }
        Action::PrepareSession { session, guid } => return world.prepare_session(session, guid),
        Action::CreateSession { record } => return world.create_session(record),
        Action::EndSession { session } => return world.end_session(session),
        Action::StoreGrant { session, grant } => return world.host.store_grant(session, grant),
        Action::RevokeGrant { session, place } => return world.host.revoke_grant(session, place),
        Action::Publish { session, generation } => return world.host.publish(session, generation),
        Action::Ring { session } => world.ring(session),
        Action::Log { ref text, .. } if text.starts_with("blocks move between") => {
            world.count(EVENED);
        }
        _ => {}
    }
    let Some(broker) = &mut world.broker else { return Ok(()) };
    match action {
        Action::HoldClient { conn } => _ = broker.held.insert(conn),
        Action::ReadClient { conn } => _ = broker.held.remove(&conn),
        Action::CloseClient { conn, .. } => {
            broker.admin.take_if(|admin| *admin == conn);
            broker.asked.remove(&conn);
            if let Some(place) = broker.clients.remove(&conn) {
                world.clients[place].inbox.push_back((conn, Arrival::Closed));
            }
        }
        Action::WatchProcess { session, pid, lived_at, .. } => {
            broker.watched.insert(session, pid);
            if world.host.processes.get(&pid).is_none_or(|started| *started > lived_at) {
                broker.soon.push_back(Event::Died { session });
            }
        }
        Action::ToDaemon { conn, request_id, request } => {
            let Some(&place) = broker.daemons.get(&conn) else { return Ok(()) };
            world.daemons[place].inbox.push_back((request_id, request));
        }
        Action::CloseDaemon { conn, .. } => {
            if let Some(place) = broker.daemons.remove(&conn) {
                world.daemons[place].conn = None;
            }
        }
        Action::MakeBlock { daemon, conn, request_id, lent, description, committed } => {
            // Its hang-up is on its way.
            if !broker.daemons.contains_key(&conn) {
                return Ok(());
            }
            let made = make(&mut world.host, daemon, lent, (*description, committed))?;
            broker.soon.push_back(Event::BlockMade { daemon, request_id, made });
        }
        Action::RaiseEpoch { raise, block, committed, headers } => {
            let host = &mut world.host;
            let mut rewritten = Vec::new();
            for (daemon, description) in headers {
                rewritten.push((daemon, host.rewrite(daemon, description, committed)?));
            }
            broker.soon.push_back(Event::EpochRaised { raise, block, headers: rewritten });
        }
        Action::MakeLocks { .. } | Action::GrowLocks { .. } => return world.table(&action),
        Action::RememberDrain { daemon, is_draining: true } => {
            world.host.draining.insert(daemon);
        }
        Action::RememberDrain { daemon, is_draining: false } => {
            world.host.draining.remove(&daemon);
        }
        Action::FindPointers { session, block, epoch, .. } => {
            let has_some = world.random.once_in(4);
            broker.soon.push_back(Event::PointersFound { session, block, epoch, has_some });
        }
        Action::AwaitIdle { .. }
        | Action::ReadIntents { .. }
        | Action::Repair(_)
        | Action::ClearIntent { .. } => return world.mend(&action),
        Action::RemoveHeader { daemon, block, guid } => {
            world.host.remove_header(daemon, block, guid);
        }
        Action::RemoveLocks { block } => {
            broker.idles.retain(|(_, of, _), _| *of != block);
            world.host.remove_table(block);
        }
        Action::InspectLocks { block } => {
            let found = world.host.found_table(block);
            broker.soon.push_back(Event::LocksInspected { block, found });
        }
        Action::AwaitLock { daemon } => _ = broker.locks.insert(daemon),
        Action::ForgetLock { daemon } => _ = broker.locks.remove(&daemon),
        Action::ReadHeaders { daemon } => {
            let headers = world.host.headers(daemon);
            broker.soon.push_back(Event::HeadersRead { daemon, headers });
        }
        Action::Inspect { inspect, daemon, blocks } => {
            let size = |id| (id, world.host.data_bytes(daemon, id));
            let found = blocks.into_iter().map(size).collect();
            broker.soon.push_back(Event::Inspected { inspect, daemon, found });
        }
        Action::WakeAt(at) => broker.wake_at = Some(at),
        _ => {}
    }
    Ok(())
}

/// Begins an action, and does not live to end it.
pub fn begin(world: &mut World, action: Action) {
    match &action {
        // Not yet of any block.
        Action::MakeLocks { block, .. } => {
            return world.host.make_table(*block, (Guid::default(), 0), &[]);
        }
        Action::Repair(_) => {
            return world.begin_repair(&action);
        }
        Action::RaiseEpoch { committed, headers, .. } => {
            let written = world.random.below(headers.len() as u64);
            let written = usize::try_from(written).unwrap_or(0);
            for (daemon, description) in headers.iter().take(written).cloned() {
                // The broker that asks whether it is written is dead.
                let _ = world.host.rewrite(daemon, description, *committed);
            }
            return;
        }
        Action::RemoveLocks { block } => return world.host.remove_table(*block),
        _ => {}
    }
    let Action::MakeBlock { daemon, conn, lent, description, committed, .. } = action else {
        return;
    };
    let is_there = world.broker.as_ref().is_some_and(|broker| broker.daemons.contains_key(&conn));
    let id = description.block;
    let made = is_there.then(|| make(&mut world.host, daemon, lent, (*description, committed)));
    let object = world.host.stores.get_mut(&daemon).and_then(|store| store.get_mut(&id));
    if let (Some(Ok(Made::Whole)), Some(object)) = (made, object)
        && world.random.once_in(2)
    {
        object.header = Header::Missing;
    }
}

/// Makes a block of what a daemon has lent.
///
/// # Errors
///
/// What was not lent, or is too small.
fn make(
    host: &mut Host,
    daemon: DaemonId,
    lent: Lent,
    (description, bytes): (BlockDescription, u64),
) -> Result<Made, String> {
    let id = description.block;
    let pool = host.pools.entry(daemon).or_default();
    if pool.get(&lent.place) != Some(&lent.bytes) || bytes > lent.bytes {
        return Err(format!("{bytes} bytes of {lent:?} of daemon {daemon}, which has {pool:?}"));
    }
    let store = host.stores.entry(daemon).or_default();
    if store.contains_key(&id) || host.squatted.contains(&(daemon, id)) {
        return Ok(Made::NameTaken { reason: "somebody else has an object of that name".into() });
    }
    pool.remove(&lent.place);
    let (header, value) = (Header::Valid, 0);
    store.insert(id, Object { description, bytes, header, value });
    Ok(Made::Whole)
}

/// What a reply says of the block that travels with it.
fn info_of(reply: &Reply<ClientReply>) -> Result<BlockInfo, String> {
    match reply {
        Ok(ClientReply::Granted(granted)) => Ok(granted.first),
        Ok(ClientReply::Fetched(info)) => Ok(*info),
        Ok(ClientReply::Opened(opened)) => Ok(opened.first),
        reply => Err(format!("a block travels with {reply:?}")),
    }
}

impl World {
    /// The doorbell of a session rings: an eventfd that has rung and was not read does not again.
    fn ring(&mut self, session: SessionId) {
        let Some(broker) = &self.broker else { return };
        let Some(record) = self.host.records.get(&session) else { return };
        for (conn, place) in &broker.clients {
            let client = &mut self.clients[*place];
            let is_ring = |(of, arrival): &(ClientConn, Arrival)| {
                of == conn && matches!(arrival, Arrival::Ring)
            };
            let has_rung = client.inbox.iter().any(is_ring);
            if client.peer.pid == record.record.pid && !has_rung {
                client.inbox.push_back((*conn, Arrival::Ring));
            }
        }
    }

    fn reply(
        &mut self,
        (conn, request_id): (ClientConn, RequestId),
        reply: Reply<ClientReply>,
        (descriptors, again): (&[Descriptor], Option<Box<ClientRequest>>),
    ) -> Checked {
        let Some(broker) = &mut self.broker else { return Ok(()) };
        if broker.admin == Some(conn) {
            if reply.is_ok() {
                self.count(MOVED);
            }
            return Ok(());
        }
        let Some(&place) = broker.clients.get(&conn) else { return Ok(()) };
        if !broker.asked.get_mut(&conn).is_some_and(|asked| asked.remove(&request_id)) {
            return Err(format!("{request_id:?} of {conn:?} is answered and was not asked"));
        }
        let mut reply = reply;
        for descriptor in descriptors {
            if let Descriptor::Link { conn, link, session, uid, rate, grant } = *descriptor {
                self.link(conn, DaemonRequest::Link { link, session, uid, rate, grant });
                continue;
            }
            // All or nothing: what comes behind one that fails is not opened.
            let Some(refusal) = self.open(*descriptor, &reply)? else { continue };
            if let (Some(broker), Some(request)) = (&mut self.broker, again) {
                broker.at_once.push_back(Event::NotOpened { conn, request_id, request });
                return Ok(());
            }
            reply = Err(refusal);
            break;
        }
        let client = &self.clients[place];
        if let Some(request) = client.asked(request_id) {
            self.truth.answered((request, &reply), client.peer.pid, &self.host)?;
        }
        match &reply {
            Ok(ClientReply::Ready(ready)) => self.truth.attached(ready.session),
            Ok(ClientReply::Granted(granted)) => {
                self.check_granted(place, granted.first)?;
            }
            _ => {}
        }
        if let Ok(info) = info_of(&reply)
            && let Some(table) = self.host.pages.named.get(&info.block)
            && info.has_locks
        {
            self.clients[place].tables.insert(request_id, *table);
        }
        self.clients[place].inbox.push_back((conn, Arrival::Reply(request_id, Box::new(reply))));
        self.drop_the_silent();
        Ok(())
    }

    /// The daemon's end of a link travels to it.
    fn link(&mut self, conn: DaemonConn, request: DaemonRequest) {
        let Some(broker) = &self.broker else { return };
        if let Some(&place) = broker.daemons.get(&conn) {
            self.daemons[place].inbox.push_back((RequestId(0), request));
        }
    }

    /// Opens a descriptor. A block that is not there was harmed, and the client is told so.
    fn open(
        &mut self,
        descriptor: Descriptor,
        reply: &Reply<ClientReply>,
    ) -> Result<Option<Refusal>, String> {
        let (daemon, block) = match descriptor {
            Descriptor::Block { daemon, block, .. } => (daemon, block),
            Descriptor::Link { .. } => return Ok(None),
            Descriptor::Locks { block, .. } => return self.open_table(block, reply),
            Descriptor::SessionObject(session) | Descriptor::Doorbell(session) => {
                let there = self.host.sessions.contains_key(&session);
                return if there { Ok(None) } else { Err(format!("no session object {session}")) };
            }
        };
        let info = info_of(reply)?;
        let object = self.host.stores.get(&daemon).and_then(|store| store.get(&block));
        let whole = object.is_some_and(|object| {
            object.header == Header::Valid
                && object.description.guid == info.guid
                && object.bytes >= info.committed
        });
        if whole && info.block == block && !info.lost {
            return Ok(None);
        }
        if !self.host.harmed_copies.contains(&(daemon, info.guid)) {
            return Err(format!("{info:?} on daemon {daemon} is {object:?}"));
        }
        if object.is_some() {
            return Ok(None);
        }
        if let Some(broker) = &mut self.broker {
            broker.at_once.push_back(Event::OpenFailed { daemon, block });
        }
        Ok(Some(Refusal::new(Status::Lost, "no such object")))
    }

    /// Opens a lock table. One that is not there was harmed, and the client is told so.
    fn open_table(
        &mut self,
        block: BlockId,
        reply: &Reply<ClientReply>,
    ) -> Result<Option<Refusal>, String> {
        let (info, table) = (info_of(reply)?, self.host.tables.get(&block));
        let is_whole = table.is_some_and(|(guid, bytes)| {
            *guid == info.guid && *bytes >= info.committed && info.has_locks
        });
        if !is_whole && !self.host.harmed_tables.contains(&block) {
            return Err(format!("{info:?} has the lock table {table:?}"));
        }
        let Some(broker) = &mut self.broker else { return Ok(None) };
        if let Some(idle) = broker.waits_for_table(block) {
            return Err(format!("block {block} is granted before {idle:?}"));
        }
        if table.is_some() {
            return Ok(None);
        }
        broker.at_once.push_back(Event::LocksInspected { block, found: None });
        Ok(Some(Refusal::new(Status::Unavailable, "no such table")))
    }

    /// Makes a lock table, or gives it more words; now and then there is no room for it.
    fn table(&mut self, action: &Action) -> Checked {
        let has_room = !self.random.once_in(self.faults.no_session);
        let Some(broker) = &mut self.broker else { return Ok(()) };
        let full = Made::Unusable { reason: "no room for words".to_owned() };
        match *action {
            Action::MakeLocks { block, guid, epoch, bytes, ref lost, .. } => {
                if let Some(idle) = broker.waits_for_table(block) {
                    return Err(format!("the table of block {block} is made before {idle:?}"));
                }
                self.host.remove_table(block);
                if has_room {
                    self.host.make_table(block, (guid, bytes), lost);
                }
                let made = if has_room { Made::Whole } else { full };
                broker.soon.push_back(Event::LocksMade { block, epoch, made });
            }
            Action::GrowLocks { request_id, block, guid, bytes } => {
                let grow = |host: &mut Host| host.grow_table(block, guid, bytes);
                let made = if has_room { grow(&mut self.host) } else { full };
                broker.soon.push_back(Event::LocksGrown { request_id, made });
            }
            _ => {}
        }
        Ok(())
    }

    /// The object is there then, be the record too or not.
    fn prepare_session(&mut self, session: SessionId, guid: Guid) -> Checked {
        if self.host.records.contains_key(&session) || self.host.sessions.contains_key(&session) {
            return Err(format!("session {session} is made twice"));
        }
        self.host.sessions.insert(session, 0);
        let result = if self.random.once_in(self.faults.no_session) {
            Err(Refusal::new(Status::NoSpace, "no room for a record"))
        } else {
            self.host.prepared.insert(session, guid);
            Ok(())
        };
        if let Some(broker) = &mut self.broker {
            broker.soon.push_back(Event::SessionPrepared { session, result });
        }
        Ok(())
    }

    fn create_session(&mut self, record: SessionRecord) -> Checked {
        let session = record.session;
        let is_there =
            self.host.records.contains_key(&session) || self.host.sessions.contains_key(&session);
        match self.host.prepared.remove(&session) {
            Some(guid) if guid == record.guid => {}
            Some(guid) => return Err(format!("session {session} was prepared with {guid}")),
            None if is_there => return Err(format!("session {session} is made twice")),
            None => _ = self.host.sessions.insert(session, 0),
        }
        let result = if self.random.once_in(self.faults.no_session) {
            Err(Refusal::new(Status::NoSpace, "no room for a record"))
        } else {
            let grants = std::collections::BTreeMap::new();
            self.host.records.insert(session, Record { record, grants });
            Ok(())
        };
        if let Some(broker) = &mut self.broker {
            broker.soon.push_back(Event::SessionCreated { session, result });
        }
        Ok(())
    }

    /// A session ends: there must be a reason.
    fn end_session(&mut self, session: SessionId) -> Checked {
        if let Some(broker) = &mut self.broker {
            broker.watched.remove(&session);
            broker.idles.retain(|(of, _, _), _| *of != session);
        }
        self.host.sessions.remove(&session);
        self.host.prepared.remove(&session);
        let Some(Record { record, grants }) = self.host.records.remove(&session) else {
            return Ok(());
        };
        let lives = self.host.lives(&record);
        self.check_left(&record, &grants, lives)?;
        let client = self.clients.iter_mut().find(|client| client.peer.pid == record.pid);
        let patience = self.config.reattach_ms;
        let late = self.truth.is_late(session, self.now.millis, patience);
        let opened = self.truth.is_open(session);
        self.truth.ended(session, record.guid);
        let Some(client) = client else { return Ok(()) };
        // A process may have a session besides, of a connection that it has lost.
        let needs_excuse = lives && opened && !late;
        if needs_excuse {
            let Some(left) = client.excuses.checked_sub(1) else {
                return Err(format!("session {session} of process {} ends", record.pid));
            };
            client.excuses = left;
        }
        Ok(())
    }
}

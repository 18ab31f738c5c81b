//! The shell: does what the dispatcher says, and fails on what it could not do.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::limits::{FRAME_FDS_MAX, GRANTS};
use dmce_abi::wire::client::{BlockInfo, ClientReply};
use dmce_abi::wire::daemon::{DaemonRequest, HeldBlock};
use dmce_abi::wire::{self, FrameHeader, Refusal, Reply};
use dmce_broker::dispatcher::{
    Action, ClientConn, Descriptor, Event, FoundIntents, Made, Repair, Repaired, RequestId,
    Rewritten,
};

use super::world::{BlockToMake, Kept, World, pick};

impl World {
    /// The dispatcher takes in an event, and the shell does what it says.
    pub fn event(&mut self, event: Event) {
        let told = format!("{event:?}");
        let mut actions = Vec::new();
        self.dispatcher.step(self.now, event, &mut actions);
        if let Err(contradiction) = self.dispatcher.audit() {
            panic!("{contradiction}\nafter {told}\n{actions:#?}");
        }
        let owners = self.owners();
        for action in actions {
            self.act(action, &owners);
        }
        self.check_outstanding(&told);
    }

    /// Whose each block is; none for a region's.
    fn owners(&self) -> BTreeMap<BlockId, Option<SessionId>> {
        let blocks = self.dispatcher.snapshot().blocks;
        blocks.into_iter().map(|(block, entry)| (block, entry.session)).collect()
    }

    /// What has no answer is counted, so that its limit holds.
    fn check_outstanding(&self, told: &str) {
        let counted = self.dispatcher.snapshot().outstanding;
        for (conn, client) in &self.clients {
            let asked: usize = client.asked.values().sum();
            let waiting = counted.get(conn).copied().unwrap_or(0);
            assert!(asked <= waiting, "{asked} of {conn:?} wait, {waiting} counted, after {told}");
        }
    }

    fn act(&mut self, action: Action, owners: &BTreeMap<BlockId, Option<SessionId>>) {
        match action {
            Action::Reply { conn, request_id, reply, descriptors, .. } => {
                self.reply((conn, request_id), &reply, &descriptors, owners);
            }
            Action::CloseClient { conn, .. } => _ = self.clients.remove(&conn),
            Action::HoldClient { conn } => self.hold(conn, true),
            Action::ReadClient { conn } => self.hold(conn, false),
            Action::PrepareSession { session, guid } => {
                assert!(!self.sessions.contains_key(&session), "{session} is there");
                assert!(self.prepared.insert(session, guid).is_none(), "{session} is there");
                self.to_prepare.push_back(session);
            }
            Action::CreateSession { record } => {
                let session = record.session;
                let kept = Kept {
                    record,
                    grants: BTreeMap::new(),
                    generation: 0,
                    made: false,
                    lives: true,
                };
                assert!(self.sessions.insert(session, kept).is_none(), "{session} is there");
                let prepared = self.prepared.remove(&session);
                let guid = self.sessions[&session].record.guid;
                assert!(prepared.is_none_or(|drawn| drawn == guid), "{session} has another GUID");
                self.to_make.push_back(session);
            }
            Action::WatchProcess { session, .. } => _ = self.watched.insert(session),
            Action::EndSession { session } => {
                self.sessions.remove(&session);
                self.watched.remove(&session);
                self.to_make.retain(|making| *making != session);
                self.prepared.remove(&session);
            }
            Action::StoreGrant { session, grant } => {
                assert!((grant.place as usize) < GRANTS && grant.rights.any());
                let before = self.kept(session).grants.insert(grant.place, grant);
                assert!(before.is_none(), "{before:?} is overwritten by {grant:?}");
            }
            Action::RevokeGrant { session, place } => {
                let before = self.kept(session).grants.remove(&place);
                assert!(before.is_some(), "place {place} of {session} has no grant");
            }
            Action::Publish { session, generation } => {
                let before = std::mem::replace(&mut self.kept(session).generation, generation);
                assert_ne!(before, generation, "the generation of {session} does not move");
            }
            Action::ToDaemon { conn, request_id, request } => {
                encoded(request_id, 0, &request);
                let numbered = matches!(
                    request,
                    DaemonRequest::Create { .. }
                        | DaemonRequest::Grow { .. }
                        | DaemonRequest::Destroy { .. }
                        | DaemonRequest::Sense
                        | DaemonRequest::Data(_)
                );
                assert_eq!(request_id.0 != 0, numbered, "{request:?}");
                if let Some(inbox) = self.daemons.get_mut(&conn) {
                    inbox.push_back((request_id, request));
                }
            }
            Action::MakeBlock { daemon, conn, request_id, lent, description, committed } => {
                assert!(request_id.0 != 0 && committed <= lent.bytes, "{committed} of {lent:?}");
                assert_eq!(self.serving.get(&conn), Some(&daemon));
                let block = HeldBlock { description: *description, committed };
                self.blocks_to_make.push_back((conn, daemon, request_id, block));
            }
            Action::CloseDaemon { conn, .. } => {
                self.daemons.remove(&conn);
                self.serving.remove(&conn);
            }
            Action::AwaitLock { daemon } => _ = self.locks.insert(daemon),
            Action::ForgetLock { daemon } => _ = self.locks.remove(&daemon),
            Action::ReadHeaders { daemon } => self.headers.push_back(daemon),
            Action::Inspect { inspect, daemon, blocks } => {
                self.inspections.push_back((inspect, daemon, blocks));
            }
            Action::RaiseEpoch { raise, block, headers, .. } => {
                assert!(!headers.is_empty(), "no header of block {block} is to be written");
                self.raises.push_back((raise, block, headers));
            }
            other => self.act_on_pages(other),
        }
    }

    /// Does what concerns lock tables, and what the dead left.
    fn act_on_pages(&mut self, action: Action) {
        match action {
            Action::MakeLocks { block, epoch, .. } => {
                self.tables.push_back(Event::LocksMade { block, epoch, made: Made::Whole });
            }
            Action::GrowLocks { request_id, .. } => {
                self.tables.push_back(Event::LocksGrown { request_id, made: Made::Whole });
            }
            Action::ReadIntents { session, .. } => {
                assert!(self.sessions.contains_key(&session), "no objects of {session}");
                let found = Ok(FoundIntents::none());
                self.tables.push_back(Event::IntentsRead { session, found });
            }
            Action::Repair(Repair { session, slot, copies, .. }) => {
                assert!(!copies.is_empty() && self.sessions.contains_key(&session));
                let repaired = Repaired::Done { lost: Vec::new() };
                self.tables.push_back(Event::Repaired { session, slot, repaired });
            }
            Action::ClearIntent { session, .. } => _ = self.kept(session),
            Action::AwaitIdle { session, block, epoch } => {
                self.tables.push_back(Event::Idle { session, block, epoch });
            }
            Action::FindPointers { session, block, epoch, .. } => {
                let has_some = false;
                self.tables.push_back(Event::PointersFound { session, block, epoch, has_some });
            }
            _ => {}
        }
    }

    fn hold(&mut self, conn: ClientConn, held: bool) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.held = held;
        }
    }

    fn kept(&mut self, session: SessionId) -> &mut Kept {
        self.sessions.get_mut(&session).unwrap_or_else(|| panic!("no objects of {session}"))
    }

    fn reply(
        &mut self,
        (conn, request_id): (ClientConn, RequestId),
        reply: &Reply<ClientReply>,
        descriptors: &[Descriptor],
        owners: &BTreeMap<BlockId, Option<SessionId>>,
    ) {
        assert!(request_id.0 != 0 && descriptors.len() <= FRAME_FDS_MAX);
        encoded(request_id, descriptors.len(), reply);
        let Some(client) = self.clients.get_mut(&conn) else { return };
        let asked = client.asked.get_mut(&request_id).filter(|times| **times > 0);
        *asked.unwrap_or_else(|| panic!("{request_id:?} of {conn:?} was not asked: {reply:?}")) -=
            1;
        if let Ok(ClientReply::Ready(ready)) = reply {
            client.session = Some(ready.session);
        }
        let session = client.session;
        for descriptor in descriptors {
            match *descriptor {
                Descriptor::Block { daemon, block, .. } => {
                    let owner = owners.get(&block).copied().flatten();
                    assert!(owner.is_none() || owner == session, "{block} is not {session:?}'s");
                    self.opened.push_back((daemon, block));
                }
                Descriptor::Locks { block, .. } => {
                    let owner = owners.get(&block).copied().flatten();
                    assert!(owner.is_none() || owner == session, "{block} is not {session:?}'s");
                }
                Descriptor::SessionObject(of) | Descriptor::Doorbell(of) => {
                    assert_eq!(Some(of), session);
                }
                Descriptor::Link { conn, session: of, .. } => {
                    assert!(Some(of) == session && self.daemons.contains_key(&conn));
                }
            }
        }
        self.opened.truncate(8);
        self.remember(reply);
    }

    /// What a peer has seen it may say again, and so may all others.
    fn remember(&mut self, reply: &Reply<ClientReply>) {
        let info: Option<&BlockInfo> = match reply {
            Ok(ClientReply::Granted(granted)) => Some(&granted.first),
            Ok(ClientReply::Fetched(info)) => Some(info),
            Ok(ClientReply::Opened(opened)) => {
                self.seen.blocks.push((opened.first.block, opened.guid));
                Some(&opened.first)
            }
            Ok(ClientReply::Found(key)) => {
                self.seen.blocks.push((key.first, key.guid));
                None
            }
            Ok(ClientReply::Ready(ready)) => {
                self.seen.sessions.push((ready.session, ready.guid));
                None
            }
            _ => None,
        };
        if let Some(info) = info {
            self.seen.blocks.push((info.block, info.guid));
        }
    }

    /// Something that the shell was asked for has come.
    pub fn deliver(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        if !self.to_make.is_empty() {
            self.make_session(!bytes.ratio(1, 8)?);
        } else if let Some(making) = self.blocks_to_make.pop_front() {
            self.make_block(making, bytes)?;
        } else if let Some(session) = self.to_prepare.pop_front() {
            let refusal = Refusal::new(Status::NoSpace, "no room for a session object");
            let result = if bytes.ratio(1, 8)? { Err(refusal) } else { Ok(()) };
            self.event(Event::SessionPrepared { session, result });
        } else if let Some((inspect, daemon, blocks)) = self.inspections.pop_front() {
            let store = self.stores.get(&daemon);
            let bytes_of = |block| store.and_then(|store| store.get(block)).map(|b| b.committed);
            let found = blocks.iter().map(|block| (*block, bytes_of(block))).collect();
            self.event(Event::Inspected { inspect, daemon, found });
        } else if let Some((raise, block, headers)) = self.raises.pop_front() {
            let headers = headers.into_iter().map(|(daemon, description)| {
                let reason = || "as the bytes say".to_owned();
                let held = self.stores.get_mut(&daemon).and_then(|store| store.get_mut(&block));
                let rewritten = match (held, bytes.int_in_range(0..=7)?) {
                    (None, _) | (_, 0) => Rewritten::Gone { reason: reason() },
                    (_, 1) => Rewritten::Failed { reason: reason() },
                    (Some(held), _) => {
                        held.description = description;
                        Rewritten::Written
                    }
                };
                Ok((daemon, rewritten))
            });
            let headers = headers.collect::<Result<_>>()?;
            self.event(Event::EpochRaised { raise, block, headers });
        } else if let Some(mut event) = self.tables.pop_front() {
            if let Event::LocksMade { made, .. } | Event::LocksGrown { made, .. } = &mut event
                && bytes.ratio(1, 8)?
            {
                *made = Made::Unusable { reason: "as the bytes say".to_owned() };
            }
            match &mut event {
                Event::IntentsRead { found, .. } => *found = self.intents(bytes)?,
                Event::Repaired { repaired, .. } => *repaired = repaired_as(bytes)?,
                _ => {}
            }
            self.event(event);
        } else if let Some(daemon) = self.headers.pop_front() {
            let headers = self.headers_of(daemon, bytes)?;
            self.event(Event::HeadersRead { daemon, headers });
        } else if let Some(daemon) = pick(bytes, self.locks.iter().copied())? {
            self.locks.remove(&daemon);
            let headers = self.headers_of(daemon, bytes)?;
            self.event(Event::LockFree { daemon, headers });
        }
        Ok(())
    }

    /// A block is made of what was lent, or cannot be; if its daemon is gone, nobody knows.
    fn make_block(&mut self, making: BlockToMake, bytes: &mut Unstructured<'_>) -> Result<()> {
        let (conn, daemon, request_id, block) = making;
        let reason = || "as the bytes say".to_owned();
        let made = match bytes.int_in_range(0..=7)? {
            0 => Made::NameTaken { reason: reason() },
            1 => Made::Unusable { reason: reason() },
            _ => Made::Whole,
        };
        if made == Made::Whole {
            let store = self.stores.entry(daemon).or_default();
            store.insert(block.description.block, block);
        }
        if self.daemons.contains_key(&conn) {
            self.event(Event::BlockMade { daemon, request_id, made });
        }
        Ok(())
    }

    /// The objects of a session are made, or there is no room for them.
    pub fn make_session(&mut self, made: bool) {
        let Some(session) = self.to_make.pop_front() else { return };
        self.kept(session).made = made;
        let refusal = Refusal::new(Status::NoSpace, "no room for a session object");
        let result = if made { Ok(()) } else { Err(refusal) };
        self.event(Event::SessionCreated { session, result });
    }
}

/// What became of a repair.
fn repaired_as(bytes: &mut Unstructured<'_>) -> Result<Repaired> {
    let reason = "as the bytes say".to_owned();
    Ok(match bytes.int_in_range(0..=5)? {
        0 => Repaired::Table { reason },
        1 => {
            let daemon = DaemonId::try_from(bytes.int_in_range(1..=3)?).expect("a small id");
            Repaired::Copy { daemon, reason }
        }
        2 => Repaired::Done { lost: vec![bytes.int_in_range(0..=7)?] },
        _ => Repaired::Done { lost: Vec::new() },
    })
}

/// What is sent fits a frame and reads the same.
fn encoded<T>(request_id: RequestId, fds: usize, body: &T)
where
    T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let fds = u16::try_from(fds).expect("a few");
    let frame = wire::encode(FrameHeader { request: request_id.0, fds }, body);
    let frame = frame.expect("an answer fits a frame");
    assert_eq!(wire::decode_body::<T>(&frame).as_ref(), Ok(body));
}

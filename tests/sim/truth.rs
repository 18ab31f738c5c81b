//! What was promised: regions that were acknowledged, sessions that are open.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{Guid, SessionId};
use dmce_abi::wire::Reply;
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionName};
use dmce_broker::dispatcher::Millis;

use crate::host::Host;

/// What was promised.
#[derive(Debug, Default)]
pub struct Truth {
    /// Regions whose creation was acknowledged, and that nobody has asked to delete since.
    pub regions: BTreeSet<RegionName>,
    /// Regions that somebody asked for at some time.
    pub regions_asked: BTreeSet<RegionName>,
    /// Requests to delete a region that may be waiting.
    deleting: BTreeMap<RegionName, u32>,
    /// Sessions that ended.
    pub ended: BTreeSet<Guid>,
    /// Sessions that were told that they are open; since when their connection is missing.
    open: BTreeMap<SessionId, Option<Millis>>,
}

impl Truth {
    /// A request reaches the broker.
    pub fn delivered(&mut self, request: &ClientRequest) {
        match request {
            ClientRequest::RegionCreate(create) => {
                self.regions_asked.insert(create.region.clone());
            }
            ClientRequest::RegionDelete(name) => {
                self.regions.remove(name);
                *self.deleting.entry(name.clone()).or_default() += 1;
            }
            _ => {}
        }
    }

    /// A request is answered.
    pub fn answered(&mut self, request: &ClientRequest, reply: &Reply<ClientReply>) {
        match (request, reply) {
            (ClientRequest::RegionCreate(create), Ok(ClientReply::Done)) => {
                self.promised(&create.region);
            }
            (ClientRequest::RegionDelete(name), reply) => {
                if let Some(count) = self.deleting.get_mut(name) {
                    *count -= 1;
                }
                // This says that it is there, and it was not touched.
                if reply.as_ref().is_err_and(|refusal| refusal.status == Status::Denied) {
                    self.promised(name);
                }
            }
            _ => {}
        }
    }

    /// A region is there. Whether it stays is not known while somebody asks to delete it.
    fn promised(&mut self, name: &RegionName) {
        if self.deleting.get(name).is_none_or(|count| *count == 0) {
            self.regions.insert(name.clone());
        }
    }

    /// A session has its connection.
    pub fn attached(&mut self, session: SessionId) {
        self.open.insert(session, None);
    }

    /// A session's connection is gone.
    pub fn detached(&mut self, session: SessionId, now: Millis) {
        if let Some(since) = self.open.get_mut(&session) {
            since.get_or_insert(now);
        }
    }

    /// A broker starts: every session has lost its connection.
    pub fn broker_started(&mut self, now: Millis, host: &Host) {
        self.deleting.clear();
        self.open.retain(|session, _| host.records.contains_key(session));
        for since in self.open.values_mut() {
            *since = Some(now);
        }
    }

    /// A session has ended.
    pub fn ended(&mut self, session: SessionId, guid: Guid) {
        self.ended.insert(guid);
        self.open.remove(&session);
    }

    /// Whether a session was told that it is open.
    pub fn is_open(&self, session: SessionId) -> bool {
        self.open.contains_key(&session)
    }

    /// Whether a session's connection is missing for as long as the broker has patience.
    pub fn is_late(&self, session: SessionId, now: Millis, patience: u64) -> bool {
        let since = self.open.get(&session).copied().flatten();
        since.is_some_and(|since| since.after(patience) <= now)
    }
}

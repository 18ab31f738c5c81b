//! What was promised: regions that were acknowledged, sessions that are open.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{Guid, SessionId};
use dmce_abi::wire::Reply;
use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionKey, RegionName};
use dmce_broker::dispatcher::Millis;

use crate::host::Host;

/// What was promised.
#[derive(Debug, Default)]
pub struct Truth {
    /// Regions whose creation was acknowledged, and that nobody has asked to delete since.
    pub regions: BTreeMap<RegionName, Guid>,
    /// Regions that somebody asked for at some time.
    pub regions_asked: BTreeSet<RegionName>,
    /// Requests to delete a region that may be waiting.
    deleting: BTreeMap<Guid, u32>,
    /// The processes that have asked to delete a region that they had found.
    deleters: BTreeMap<Guid, BTreeSet<u32>>,
    /// Sessions that ended.
    pub ended: BTreeSet<Guid>,
    /// Sessions that were told that they are open; since when their connection is missing.
    open: BTreeMap<SessionId, Option<Millis>>,
}

impl Truth {
    /// A request reaches the broker.
    pub fn delivered(&mut self, request: &ClientRequest, pid: u32) {
        match request {
            ClientRequest::RegionCreate(create) => {
                self.regions_asked.insert(create.region.clone());
            }
            ClientRequest::RegionDelete(RegionKey { guid, .. }) => {
                let guid = *guid;
                self.regions.retain(|_, promised| *promised != guid);
                *self.deleting.entry(guid).or_default() += 1;
                self.deleters.entry(guid).or_default().insert(pid);
            }
            _ => {}
        }
    }

    /// A request is answered.
    ///
    /// # Errors
    ///
    /// Who deleted a region is told that there was none.
    pub fn answered(
        &mut self,
        (request, reply): (&ClientRequest, &Reply<ClientReply>),
        pid: u32,
        host: &Host,
    ) -> Result<(), String> {
        match (request, reply) {
            (ClientRequest::RegionCreate(create), Ok(ClientReply::Done)) => {
                if let Some(guid) = host.newest(&create.region) {
                    self.promised(create.region.clone(), guid);
                }
            }
            (ClientRequest::RegionDelete(RegionKey { guid, .. }), reply) => {
                let guid = *guid;
                if let Some(count) = self.deleting.get_mut(&guid) {
                    *count = count.saturating_sub(1);
                }
                if says_untouched(reply)
                    && let Some(name) = host.name_of(guid)
                {
                    self.promised(name, guid);
                }
                let Err(refusal) = reply else { return Ok(()) };
                let alone = self.deleters.get(&guid).is_some_and(|pids| pids.iter().eq([&pid]));
                if refusal.status == Status::NotFound && alone && host.harmed.is_empty() {
                    return Err(format!("process {pid} alone deletes {guid}: {}", refusal.text));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether a region was acknowledged, and nobody has ever asked to delete it: a deletion that a
    /// broker began and another forgot may have reached one copy.
    pub fn is_promised_whole(&self, guid: Guid) -> bool {
        let is_promised = self.regions.values().any(|promised| *promised == guid);
        is_promised && !self.deleters.contains_key(&guid)
    }

    /// A region is there. Whether it stays is not known while somebody asks to delete it.
    fn promised(&mut self, name: RegionName, guid: Guid) {
        if self.deleting.get(&guid).is_none_or(|count| *count == 0) {
            self.regions.insert(name, guid);
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

/// Whether the answer to a delete says that the region is there, and that nothing was done to it.
fn says_untouched(reply: &Reply<ClientReply>) -> bool {
    match reply {
        Ok(reply) => matches!(reply, ClientReply::NotYet { begun: false, .. }),
        Err(refusal) => refusal.status == Status::Denied,
    }
}

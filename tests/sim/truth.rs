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
    /// Of these, those that had all of their copies then. One that a dead broker half made, and
    /// that somebody has opened since, is acknowledged to its maker as it is.
    whole: BTreeSet<Guid>,
    /// Regions that somebody asked for at some time.
    pub regions_asked: BTreeSet<RegionName>,
    /// Requests to delete a region that may be waiting.
    deleting: BTreeMap<Guid, u32>,
    /// The processes that have asked to delete a region that they had found.
    deleters: BTreeMap<Guid, BTreeSet<u32>>,
    /// Regions whose deletion was acknowledged: a broker remembers that for some time.
    deleted: BTreeSet<Guid>,
    /// Sessions that ended.
    pub ended: BTreeSet<Guid>,
    /// What the pages of blocks may be, by the blocks' GUIDs.
    pages: BTreeMap<Guid, PageTruth>,
    /// The last value that somebody began to write.
    values: u64,
    /// Sessions that were told that they are open; since when their connection is missing.
    open: BTreeMap<SessionId, Option<Millis>>,
}

/// What a page may be that nobody holds.
#[derive(Debug, Default)]
pub struct PageTruth {
    /// What was written last, on all copies.
    stable: u64,
    /// What was begun to be written since.
    begun: BTreeSet<u64>,
    /// Nothing is known of it: what told that it is lost, or where the newest copy is, is gone.
    is_unknown: bool,
}

impl PageTruth {
    /// Whether it may be this.
    pub fn may_be(&self, value: u64) -> bool {
        self.stable == value || self.begun.contains(&value) || self.is_unknown
    }

    /// Whether it may be this; which it stays from now on.
    pub fn check(&mut self, value: u64) -> bool {
        let is_it = self.may_be(value);
        (self.stable, self.is_unknown) = (value, false);
        self.begun.clear();
        is_it
    }
}

impl Truth {
    /// A value that nobody has written.
    pub const fn next_value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// What the page of a block may be.
    pub fn page_of(&mut self, block: Guid) -> &mut PageTruth {
        self.pages.entry(block).or_default()
    }

    /// Somebody who holds the page begins to write.
    pub fn writes(&mut self, block: Guid, value: u64) {
        self.page_of(block).begun.insert(value);
    }

    /// Who holds the page has written it to all copies.
    pub fn wrote(&mut self, block: Guid, value: u64) {
        // That nothing is known stays so until somebody looks: it may be of another copy.
        let page = self.page_of(block);
        page.stable = value;
        page.begun.clear();
    }

    /// Somebody has written it to an only copy, whoever holds the page.
    pub fn wrote_plainly(&mut self, block: Guid, value: u64) {
        let page = self.page_of(block);
        page.stable = value;
        // Of two who write at once either may be the later.
        page.is_unknown |= !page.begun.is_empty();
    }

    /// The table is harmed that said that a page is lost, or nothing tells any more which copy of
    /// it is the newest.
    pub fn knows_nothing_of(&mut self, block: Guid) {
        self.page_of(block).is_unknown = true;
    }

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
                    if host.has_all_copies(guid) {
                        self.whole.insert(guid);
                    }
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
                let Err(refusal) = reply else {
                    if matches!(reply, Ok(ClientReply::Done)) {
                        self.deleted.insert(guid);
                    }
                    return Ok(());
                };
                // One that was half made goes with who was making it.
                let alone = self.deleters.get(&guid).is_some_and(|pids| pids.iter().eq([&pid]))
                    && self.whole.contains(&guid);
                let is_news = alone && !self.deleted.contains(&guid);
                if refusal.status == Status::NotFound && is_news && host.harmed.is_empty() {
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
        let is_promised = self.whole.contains(&guid);
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

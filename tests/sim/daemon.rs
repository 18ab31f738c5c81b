//! A daemon as a model: holds objects, answers, and misbehaves in every way that a daemon can.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid, Membership, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::{
    DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock, PoolPlace, Register,
};
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest, LinkId};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_broker::dispatcher::{DaemonConn, RequestId};

use crate::host::{Header, Host, Object};
use crate::pages;
use crate::random::Random;

/// Objects of a pool.
const POOL_MAX: usize = 3;

/// How a daemon misbehaves: each of these once in so many times.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Refuses to commit.
    pub refuses: u64,
    /// Says the same twice.
    pub repeats: u64,
    /// Answers what nobody asked, or with the wrong answer.
    pub lies: u64,
    /// Commits more than it was asked for, up to so many pages.
    pub extra_pages: u64,
}

impl Manners {
    /// It does not.
    pub const GOOD: Self =
        Self { refuses: u64::MAX, repeats: u64::MAX, lies: u64::MAX, extra_pages: 0 };
}

/// A link of a client.
#[derive(Debug)]
pub struct Linked {
    /// Whose it is.
    pub session: SessionId,
    /// What may be reached over it.
    pub grants: BTreeSet<BlockId>,
    made_by: Option<DaemonConn>,
}

/// One daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its id.
    pub id: DaemonId,
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Whether its process lives.
    pub alive: bool,
    /// Whether it is stopped.
    pub stopped: bool,
    /// Its connection, as it knows it.
    pub conn: Option<DaemonConn>,
    /// Links of clients, with what is granted over each, and the connection that made them.
    pub links: BTreeMap<LinkId, Linked>,
    /// What the broker sent.
    pub inbox: VecDeque<(RequestId, DaemonRequest)>,
    /// What the broker has yet to receive.
    pub outbox: VecDeque<(RequestId, DaemonMessage)>,
    /// The last place of its pool.
    places: u32,
}

impl Daemon {
    /// A daemon that is not running.
    pub fn new(id: DaemonId, capacity: u64) -> Self {
        Self {
            id,
            capacity,
            alive: false,
            stopped: false,
            conn: None,
            links: BTreeMap::new(),
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            places: 0,
        }
    }

    /// Starts the process: it takes its lock, and adopts what is whole.
    pub fn start(&mut self, host: &mut Host) {
        self.alive = true;
        self.stopped = false;
        host.locks.insert(self.id);
        host.pools.remove(&self.id);
        host.adopt(self.id);
    }

    /// Kills the process. What it was asked last may be half done.
    pub fn kill(&mut self, host: &mut Host, random: &mut Random) {
        if random.once_in(2) {
            self.serve_silently(host, random);
        }
        self.alive = false;
        self.stopped = false;
        self.conn = None;
        self.links.clear();
        self.inbox.clear();
        self.outbox.clear();
        host.locks.remove(&self.id);
    }

    /// Connects, and reports what there is: also what a broker that is no more made of what was
    /// lent to it.
    pub fn connect(
        &mut self,
        conn: DaemonConn,
        instance: &str,
        host: &mut Host,
        random: &mut Random,
    ) {
        host.adopt(self.id);
        self.conn = Some(conn);
        self.inbox.clear();
        self.outbox.clear();
        let register = Register {
            daemon: self.id,
            instance: instance.to_owned(),
            segment_version: SEGMENT_VERSION,
            capacity: self.capacity,
        };
        self.say(DaemonMessage::Register(register));
        let mut held: Vec<HeldBlock> = host.held(self.id);
        while !held.is_empty() {
            let page = usize::try_from(1 + random.below(4)).unwrap_or(1).min(held.len());
            let blocks = held.drain(..page).collect();
            self.say(DaemonMessage::Holds { blocks, damaged: Vec::new(), last: false });
        }
        let damaged = host.headers(self.id).damaged;
        self.say(DaemonMessage::Holds { blocks: Vec::new(), damaged, last: true });
        for (&place, &bytes) in host.pools.get(&self.id).into_iter().flatten() {
            self.say(DaemonMessage::Notice(DaemonNotice::Lent { place, bytes }));
        }
    }

    /// Makes an object for its pool, and lends it.
    pub fn lend(&mut self, host: &mut Host, bytes: u64) {
        let pool = host.pools.entry(self.id).or_default();
        if pool.len() < POOL_MAX && self.conn.is_some() {
            self.places += 1;
            let place = PoolPlace(self.places);
            pool.insert(place, bytes);
            self.say(DaemonMessage::Notice(DaemonNotice::Lent { place, bytes }));
        }
    }

    /// Does the oldest request and answers it.
    pub fn serve(&mut self, host: &mut Host, random: &mut Random, manners: Manners) {
        let Some((number, request)) = self.inbox.pop_front() else { return };
        if number.0 == 0 {
            return self.hear(&request, host);
        }
        let mut answer = if refused(&request) && random.once_in(manners.refuses) {
            Err(Refusal::new(Status::NoSpace, "the file system is full"))
        } else {
            self.obey(&request, host, random.below(manners.extra_pages + 1) * 4096)
        };
        if let (DaemonRequest::Sync { block, .. }, Ok(DaemonAnswer::Synced { bytes: 0 })) =
            (&request, &answer)
        {
            // Of a page that somebody holds it would not, and it does no harm.
            self.say(DaemonMessage::Notice(DaemonNotice::Damaged { block: *block }));
        }
        let mut number = number;
        if random.once_in(manners.lies) {
            match random.below(3) {
                0 => number = RequestId(number.0 + 1_000_000),
                1 => answer = Ok(DaemonAnswer::Committed { committed: 12_345 }),
                _ => answer = Ok(DaemonAnswer::Sensed { pool: 1, headroom: 1 }),
            }
        }
        let message = DaemonMessage::Reply(answer);
        if random.once_in(manners.repeats) {
            self.outbox.push_back((number, message.clone()));
        }
        self.outbox.push_back((number, message));
    }

    /// Says that the object of a block is gone.
    pub fn lost(&mut self, block: BlockId) {
        if self.conn.is_some() {
            self.say(DaemonMessage::Notice(DaemonNotice::Lost { block }));
        }
    }

    /// Says something about a block that nobody asked for.
    pub fn notice(&mut self, block: BlockId, random: &mut Random) {
        let notice = match random.below(3) {
            0 => DaemonNotice::Lost { block },
            1 => DaemonNotice::Foreign { object: "dmce.x.1.odd".into(), reason: "mode".into() },
            _ => DaemonNotice::Excess { block, bytes: 1 << 40 },
        };
        self.say(DaemonMessage::Notice(notice));
    }

    /// Takes in what is not answered.
    fn hear(&mut self, request: &DaemonRequest, host: &mut Host) {
        let conn = self.conn;
        match *request {
            // What could not be used is not used again.
            DaemonRequest::Taken { place, .. } => {
                host.pools.get_mut(&self.id).and_then(|pool| pool.remove(&place));
            }
            DaemonRequest::Settled => self.links.retain(|_, link| link.made_by == conn),
            DaemonRequest::Link { link, session, grant, .. } => {
                let grants = BTreeSet::from([grant.block]);
                self.links.insert(link, Linked { session, made_by: conn, grants });
            }
            DaemonRequest::Unlink { link } => _ = self.links.remove(&link),
            DaemonRequest::Grant { link, grant } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.grants.insert(grant.block);
                }
            }
            DaemonRequest::Revoke { link, block } => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.grants.remove(&block);
                }
            }
            _ => {}
        }
    }

    fn say(&mut self, message: DaemonMessage) {
        self.outbox.push_back((RequestId(0), message));
    }

    /// Does the oldest request, perhaps not to its end, and dies before it can answer.
    fn serve_silently(&mut self, host: &mut Host, random: &mut Random) {
        let Some((_, request)) = self.inbox.pop_front() else { return };
        let _ = self.obey(&request, host, 0);
        let DaemonRequest::Create { description, .. } = request else { return };
        let store = host.stores.entry(self.id).or_default();
        if let Some(object) = store.get_mut(&description.block)
            && random.once_in(2)
        {
            object.header = Header::Missing;
        }
    }

    fn obey(
        &self,
        request: &DaemonRequest,
        host: &mut Host,
        extra: u64,
    ) -> Result<DaemonAnswer, Refusal> {
        let squatted = |block| host.squatted.contains(&(self.id, block));
        if let DaemonRequest::Create { description, .. } = request
            && squatted(description.block)
        {
            return Err(Refusal::new(Status::Exists, "somebody else has an object of that name"));
        }
        if let DaemonRequest::Sync { block, guid, bytes, .. } = *request {
            return Ok(self.sync(host, (block, guid), bytes));
        }
        if let DaemonRequest::Scrub { block, guid, bytes, .. } = *request {
            return self.scrub(host, (block, guid), bytes);
        }
        let store = host.stores.entry(self.id).or_default();
        match request {
            DaemonRequest::Create { description, committed } => {
                self.create(store, description.clone(), *committed, extra)
            }
            DaemonRequest::Grow { block, committed } => {
                let Some(object) = store.get_mut(block) else {
                    return Err(Refusal::new(Status::NotFound, "no such block"));
                };
                let most = object.description.bytes_max.max(object.bytes);
                object.bytes = object.bytes.max(*committed);
                object.bytes = (object.bytes + extra).min(most);
                Ok(DaemonAnswer::Committed { committed: object.bytes })
            }
            DaemonRequest::Destroy { block } => {
                store.remove(block);
                Ok(DaemonAnswer::Done)
            }
            DaemonRequest::Data(DataRequest::Read { bytes, .. }) => {
                let bytes = vec![0; usize::try_from(*bytes).unwrap_or(0)];
                Ok(DaemonAnswer::Data(DataReply::Bytes(Bytes(bytes))))
            }
            DaemonRequest::Data(_) => Ok(DaemonAnswer::Data(DataReply::Word(1))),
            DaemonRequest::Sense => Ok(DaemonAnswer::Sensed { pool: 4096, headroom: 1 << 40 }),
            _ => Err(Refusal::new(Status::Unsupported, "what is that?")),
        }
    }

    /// Compares the page of the good copies, if nobody has it: one that differs is lost.
    fn scrub(
        &self,
        host: &mut Host,
        of: (BlockId, Guid),
        bytes: u32,
    ) -> Result<DaemonAnswer, Refusal> {
        let found = host.stores.get(&self.id).and_then(|store| store.get(&of.0));
        let own = found.filter(|found| found.description.guid == of.1 && !found.is_syncing());
        let Some(description) = own.map(|own| own.description.clone()) else {
            return Err(Refusal::new(Status::NotFound, "no such block"));
        };
        let pages = u64::from(bytes).div_ceil(PAGE_BYTES);
        let answer = |found| Ok(DaemonAnswer::Scrubbed { bytes, found });
        let table = host.pages.named.get(&of.0).copied();
        let word = table.and_then(|table| host.pages.words.get(&table)).copied();
        let Some(word) = word.filter(|word| pages::is_free(*word)) else {
            return answer(ScrubFound { busy: pages, ..ScrubFound::default() });
        };
        let daemons = description.membership.daemons(self.id);
        let is_named = |daemon, said: &Membership| said.daemons(daemon) == daemons;
        let is_sound = host.agree(&description, &daemons, is_named);
        let values: Option<Vec<u64>> =
            daemons.iter().map(|daemon| host.named_page((*daemon, of.0, of.1)).copied()).collect();
        let Some(all) = values.filter(|_| is_sound) else {
            return Ok(DaemonAnswer::Scrubbed { bytes: 0, found: ScrubFound::default() });
        };
        host.unmarked.remove(&of.0);
        if all.iter().all(|value| Some(value) == all.first()) {
            return answer(ScrubFound { checked: pages, ..ScrubFound::default() });
        }
        if let Some(word_of) = table.and_then(|table| host.pages.words.get_mut(&table)) {
            *word_of = pages::lost(word);
        }
        let checked = pages.saturating_sub(1);
        answer(ScrubFound { checked, quarantined: 1, ..ScrubFound::default() })
    }

    /// Brings the page of the first good copy to the own one, if nobody has it.
    fn sync(&self, host: &mut Host, of: (BlockId, Guid), bytes: u32) -> DaemonAnswer {
        let nothing = DaemonAnswer::Synced { bytes: 0 };
        let found = host.stores.get(&self.id).and_then(|store| store.get(&of.0));
        let own = found.filter(|found| found.description.guid == of.1 && found.is_syncing());
        let Some(description) = own.map(|own| own.description.clone()) else { return nothing };
        let daemons = description.membership.daemons(self.id);
        let is_own = |daemon, said: &Membership| said.syncing(daemon) == Some(self.id);
        let is_sound = host.tables.get(&of.0).is_some_and(|(guid, bytes)| {
            *guid == of.1 && *bytes >= PAGE_BYTES && host.agree(&description, &daemons, is_own)
        });
        let word = host.pages.named.get(&of.0).and_then(|table| host.pages.words.get(table));
        let Some(&word) = word.filter(|_| is_sound) else { return nothing };
        if pages::is_free(word) {
            let from = host.named_page((daemons[0], of.0, of.1)).copied();
            let to = host.named_page((self.id, of.0, of.1));
            let (Some(value), Some(page)) = (from, to) else { return nothing };
            *page = value;
        } else if !pages::is_lost(word) {
            return nothing;
        }
        DaemonAnswer::Synced { bytes }
    }

    fn create(
        &self,
        store: &mut BTreeMap<BlockId, Object>,
        description: dmce_abi::block::BlockDescription,
        committed: u64,
        extra: u64,
    ) -> Result<DaemonAnswer, Refusal> {
        let id = description.block;
        if let Some(there) = store.get(&id) {
            if there.description == description && there.header == Header::Valid {
                return Ok(DaemonAnswer::Committed { committed: there.bytes });
            }
            // Never over another.
            return Err(Refusal::new(Status::Exists, format!("daemon {} has block {id}", self.id)));
        }
        let bytes = (committed + extra).min(description.bytes_max);
        store.insert(id, Object { description, bytes, header: Header::Valid, value: 0 });
        Ok(DaemonAnswer::Committed { committed: bytes })
    }
}

const fn refused(request: &DaemonRequest) -> bool {
    matches!(request, DaemonRequest::Create { .. } | DaemonRequest::Grow { .. })
}

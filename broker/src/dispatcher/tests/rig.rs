//! A dispatcher with daemons that obey at once, unless a test says otherwise, and clients that ask.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::Instance;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Granted, Malloc, MallocKind, OpeningId, Ready, RegionCreate,
    RegionKey, RegionName, RegionOpen, Setup,
};
use dmce_abi::wire::daemon::{
    DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock, PoolPlace, Register,
};
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_abi::wire::{Refusal, Reply};

use crate::dispatcher::{
    Action, ClientConn, DaemonConn, Descriptor, Dispatcher, DispatcherConfig, Event, FoundIntents,
    Made, Millis, Now, Peer, Repair, Repaired, RequestId, Rewritten, Started,
};

pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

/// What a daemon does with creates and grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Does what it is asked.
    Obeys,
    /// Has no room.
    Refuses,
    /// Keeps what it is asked, for the test to answer.
    Waits,
}

/// A daemon of the rig.
#[derive(Debug)]
pub struct FakeDaemon {
    pub conn: DaemonConn,
    pub mood: Mood,
    pub asked: Vec<(RequestId, DaemonRequest)>,
    /// Creates that were asked for, in their order.
    pub created: Vec<BlockDescription>,
    pub destroyed: Vec<BlockId>,
}

pub struct Rig {
    pub dispatcher: Dispatcher,
    pub now: Now,
    pub daemons: BTreeMap<u32, FakeDaemon>,
    pub actions: Vec<Action>,
    /// Session ids below this one have names that somebody else took.
    pub session_names_taken: u32,
    /// What becomes of blocks that are made of what was lent; never, if there is nothing.
    pub makes: Option<Made>,
    /// What becomes of lock tables; nothing, until the test says so, if there is nothing.
    pub makes_locks: Option<Made>,
    /// Whether no session is ever in an operation.
    pub idles: bool,
    /// Sessions that have a pointer wherever it is looked for one.
    pub pointers: BTreeSet<SessionId>,
    /// What is found in the slots of sessions that have ended; nothing, if it is not said.
    pub intents: BTreeMap<SessionId, FoundIntents>,
    /// Whether slots are looked at at once.
    pub reads: bool,
    /// What becomes of repairs; nothing, until the test says so, if there is nothing.
    pub repairs: Option<Repaired>,
    /// Daemons whose headers are gone when they are to be written anew.
    pub headers_gone: BTreeSet<u32>,
    /// Whether headers are written at once that are to be written anew.
    pub rewrites: bool,
    /// When the processes started that attach; none if they are gone.
    pub started: Option<u64>,
    replies: BTreeMap<(ClientConn, RequestId), (Reply<ClientReply>, Vec<Descriptor>)>,
    numbers: u64,
}

impl Rig {
    /// An instance with `daemons` daemons of 3 GiB.
    pub fn new(daemons: u32) -> Self {
        let mut rig = Self::started(config(), Started::default());
        for id in 1..=daemons {
            rig.daemon(id, 3 * GIB);
        }
        rig
    }

    /// A broker that found something when it started.
    pub fn started(config: DispatcherConfig, started: Started) -> Self {
        Self::started_at(0, config, started)
    }

    /// A broker that starts so many milliseconds after its host.
    pub fn started_at(millis: u64, config: DispatcherConfig, started: Started) -> Self {
        let mut rig = Self {
            dispatcher: Dispatcher::new(config, 42),
            now: Now { millis: Millis(millis), unix_s: 1000 },
            daemons: BTreeMap::new(),
            actions: Vec::new(),
            session_names_taken: 0,
            makes: Some(Made::Whole),
            makes_locks: Some(Made::Whole),
            idles: true,
            pointers: BTreeSet::new(),
            intents: BTreeMap::new(),
            reads: true,
            repairs: Some(Repaired::Done { lost: Vec::new() }),
            headers_gone: BTreeSet::new(),
            rewrites: true,
            replies: BTreeMap::new(),
            started: Some(5),
            numbers: 0,
        };
        rig.event(Event::Started(started));
        rig
    }

    /// Connects a daemon that holds nothing.
    pub fn daemon(&mut self, id: u32, capacity: u64) {
        self.daemon_with(id, capacity, Vec::new());
    }

    /// Connects a daemon that reports what it holds.
    pub fn daemon_with(&mut self, id: u32, capacity: u64, held: Vec<HeldBlock>) {
        self.register(id, capacity);
        self.tell(id, 0, DaemonMessage::Holds { blocks: held, damaged: vec![], last: true });
    }

    /// Connects a daemon that holds nothing, as a process of the service's user.
    pub fn register_as(&mut self, id: u32, capacity: u64, service_uid: u32) {
        self.register_of(id, capacity, service_uid);
        self.tell(id, 0, DaemonMessage::Holds { blocks: vec![], damaged: vec![], last: true });
    }

    pub fn register(&mut self, id: u32, capacity: u64) {
        self.register_of(id, capacity, 0);
    }

    fn register_of(&mut self, id: u32, capacity: u64, uid: u32) {
        self.numbers += 1;
        let conn = DaemonConn(self.numbers);
        let daemon = FakeDaemon {
            conn,
            mood: Mood::Obeys,
            asked: Vec::new(),
            created: Vec::new(),
            destroyed: Vec::new(),
        };
        self.daemons.insert(id, daemon);
        self.event(Event::DaemonConnected { conn, peer: peer(70_000 + id, uid) });
        let register = Register {
            daemon: daemon_id(id),
            instance: "test".into(),
            segment_version: SEGMENT_VERSION,
            capacity,
        };
        self.tell(id, 0, DaemonMessage::Register(register));
    }

    /// A daemon lends an object.
    pub fn lend(&mut self, id: u32, place: u32, bytes: u64) {
        let notice = DaemonNotice::Lent { place: PoolPlace(place), bytes };
        self.tell(id, 0, DaemonMessage::Notice(notice));
    }

    /// A daemon sends something.
    pub fn tell(&mut self, id: u32, number: u64, message: DaemonMessage) {
        let conn = self.daemons[&id].conn;
        self.event(Event::DaemonMessage { conn, request_id: RequestId(number), message });
    }

    pub fn mood(&mut self, id: u32, mood: Mood) {
        self.daemons.get_mut(&id).unwrap().mood = mood;
    }

    /// A daemon that waits does the oldest of what it was asked.
    pub fn obey(&mut self, id: u32) {
        let daemon = self.daemons.get_mut(&id).unwrap();
        let (number, request) = daemon.asked.remove(0);
        let answer = answer_to(daemon, &request);
        self.tell(id, number.0, DaemonMessage::Reply(Ok(answer)));
    }

    pub fn daemon_dies(&mut self, id: u32) {
        let conn = self.daemons[&id].conn;
        self.event(Event::DaemonHungUp { conn });
    }

    /// A process of a user connects.
    pub fn connect(&mut self, pid: u32, uid: u32) -> ClientConn {
        self.numbers += 1;
        let conn = ClientConn(self.numbers);
        self.event(Event::Connected { conn, peer: peer(pid, uid) });
        conn
    }

    /// Asks, and tells the answer if it came.
    pub fn ask(&mut self, conn: ClientConn, request: ClientRequest) -> Option<Reply<ClientReply>> {
        let number = self.ask_later(conn, request);
        self.answer(conn, number).map(|(reply, _)| reply)
    }

    /// Asks.
    pub fn ask_later(&mut self, conn: ClientConn, request: ClientRequest) -> RequestId {
        self.numbers += 1;
        let request_id = RequestId(self.numbers);
        if let (ClientRequest::Attach(_), Some(at)) = (&request, self.started) {
            self.event(Event::ProcessStarted { conn, at });
        }
        self.event(Event::Request { conn, request_id, request });
        request_id
    }

    /// What came for a request.
    pub fn answer(
        &mut self,
        conn: ClientConn,
        number: RequestId,
    ) -> Option<(Reply<ClientReply>, Vec<Descriptor>)> {
        self.replies.remove(&(conn, number))
    }

    pub fn done(&mut self, conn: ClientConn, request: ClientRequest) -> ClientReply {
        self.ask(conn, request).expect("an answer").expect("success")
    }

    pub fn refused(&mut self, conn: ClientConn, request: ClientRequest) -> Refusal {
        self.ask(conn, request).expect("an answer").expect_err("a refusal")
    }

    pub fn status(&mut self, conn: ClientConn, request: ClientRequest) -> Status {
        self.refused(conn, request).status
    }

    /// A session of a new process.
    pub fn session(&mut self, uid: u32) -> (ClientConn, Ready) {
        self.numbers += 1;
        let pid = u32::try_from(self.numbers).unwrap();
        let conn = self.connect(pid, uid);
        match self.done(conn, setup(0, false)) {
            ClientReply::Ready(ready) => (conn, ready),
            other => panic!("{other:?}"),
        }
    }

    pub fn granted(&mut self, conn: ClientConn, request: ClientRequest) -> Granted {
        match self.done(conn, request) {
            ClientReply::Granted(granted) => granted,
            other => panic!("{other:?}"),
        }
    }

    /// The key of a region.
    pub fn key(&mut self, conn: ClientConn, name: &str) -> RegionKey {
        match self.done(conn, ClientRequest::RegionFind(region_name(name))) {
            ClientReply::Found(key) => key,
            other => panic!("{other:?}"),
        }
    }

    /// Time passes, and the shell wakes the dispatcher whenever it wants to be.
    pub fn wait(&mut self, millis: u64) {
        for _ in 0..millis / 100 {
            self.now.millis = self.now.millis.after(100);
            self.event(Event::Tick);
        }
    }

    pub fn event(&mut self, event: Event) {
        let mut actions = Vec::new();
        self.dispatcher.step(self.now, event, &mut actions);
        self.dispatcher.audit().unwrap();
        for action in actions {
            self.actions.push(action.clone());
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply { conn, request_id, reply, descriptors, .. } => {
                let before = self.replies.insert((conn, request_id), (reply, descriptors));
                assert!(before.is_none(), "{request_id:?} is answered twice");
            }
            Action::PrepareSession { session, .. } => {
                let result = self.can_be_named(session);
                self.event(Event::SessionPrepared { session, result });
            }
            Action::CreateSession { record } => {
                let session = record.session;
                let result = self.can_be_named(session);
                self.event(Event::SessionCreated { session, result });
            }
            Action::MakeBlock { daemon, request_id, .. } => {
                if let Some(made) = self.makes.clone() {
                    self.event(Event::BlockMade { daemon, request_id, made });
                }
            }
            Action::RaiseEpoch { raise, block, headers, .. } if self.rewrites => {
                let rewrite = |(daemon, _): (DaemonId, BlockDescription)| {
                    if self.headers_gone.contains(&daemon.get()) {
                        let reason = "there is no header".to_owned();
                        return (daemon, Rewritten::Gone { reason });
                    }
                    (daemon, Rewritten::Written)
                };
                let headers = headers.into_iter().map(rewrite).collect();
                self.event(Event::EpochRaised { raise, block, headers });
            }
            Action::MakeLocks { block, epoch, .. } => {
                if let Some(made) = self.makes_locks.clone() {
                    self.event(Event::LocksMade { block, epoch, made });
                }
            }
            Action::AwaitIdle { session, block, epoch } if self.idles => {
                self.event(Event::Idle { session, block, epoch });
            }
            Action::FindPointers { session, block, epoch, .. } => {
                let has_some = self.pointers.contains(&session);
                self.event(Event::PointersFound { session, block, epoch, has_some });
            }
            Action::ReadIntents { session, .. } if self.reads => {
                let found = self.intents.get(&session).cloned();
                let found = Ok(found.unwrap_or_else(FoundIntents::none));
                self.event(Event::IntentsRead { session, found });
            }
            Action::Repair(Repair { session, slot, .. }) => {
                if let Some(repaired) = self.repairs.clone() {
                    self.event(Event::Repaired { session, slot, repaired });
                }
            }
            Action::ClearIntent { session, slot } => {
                let found = self.intents.get_mut(&session).expect("a session with intents");
                found.claims.retain(|(of, _)| *of != slot);
            }
            Action::GrowLocks { request_id, .. } => {
                if let Some(made) = self.makes_locks.clone() {
                    self.event(Event::LocksGrown { request_id, made });
                }
            }
            Action::ToDaemon { conn, request_id, request } => {
                self.daemon_is_asked(conn, request_id, request);
            }
            _ => {}
        }
    }

    fn can_be_named(&self, session: SessionId) -> Result<(), Refusal> {
        if session.get() < self.session_names_taken {
            return Err(Refusal::new(Status::Exists, "its name is taken"));
        }
        Ok(())
    }

    fn daemon_is_asked(&mut self, conn: DaemonConn, number: RequestId, request: DaemonRequest) {
        let daemon = self.daemons.iter_mut().find(|(_, daemon)| daemon.conn == conn);
        let (&id, daemon) = daemon.expect("a daemon that is connected");
        if let DaemonRequest::Create { description, .. } = &request {
            daemon.created.push(description.clone());
        }
        let answer = match (daemon.mood, &request) {
            // Settled, and what concerns links.
            _ if number.0 == 0 => return,
            (Mood::Waits, _) => {
                daemon.asked.push((number, request));
                return;
            }
            (Mood::Refuses, DaemonRequest::Create { .. } | DaemonRequest::Grow { .. }) => {
                Err(Refusal::new(Status::NoSpace, "the file system is full"))
            }
            (_, request) => Ok(answer_to(daemon, request)),
        };
        self.tell(id, number.0, DaemonMessage::Reply(answer));
    }
}

fn answer_to(daemon: &mut FakeDaemon, request: &DaemonRequest) -> DaemonAnswer {
    match request {
        DaemonRequest::Create { committed, .. } | DaemonRequest::Grow { committed, .. } => {
            DaemonAnswer::Committed { committed: *committed }
        }
        DaemonRequest::Destroy { block } => {
            daemon.destroyed.push(*block);
            DaemonAnswer::Done
        }
        DaemonRequest::Data(DataRequest::Read { bytes, .. }) => {
            let bytes = vec![7; usize::try_from(*bytes).unwrap()];
            DaemonAnswer::Data(DataReply::Bytes(Bytes(bytes)))
        }
        DaemonRequest::Data(_) => DaemonAnswer::Data(DataReply::Done),
        DaemonRequest::Sync { bytes, .. } => DaemonAnswer::Synced { bytes: *bytes },
        DaemonRequest::Scrub { bytes, .. } => {
            let checked = u64::from(*bytes).div_ceil(PAGE_BYTES);
            let found = ScrubFound { checked, ..ScrubFound::default() };
            DaemonAnswer::Scrubbed { bytes: *bytes, found }
        }
        _ => DaemonAnswer::Sensed { pool: 0, headroom: GIB },
    }
}

pub fn config() -> DispatcherConfig {
    DispatcherConfig::new(Instance::new("test").unwrap(), 0)
}

pub fn peer(pid: u32, uid: u32) -> Peer {
    Peer { pid, lived_at: 5, uid, gid: uid, groups: vec![100] }
}

pub fn daemon_id(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

pub fn block_id(id: u32) -> BlockId {
    BlockId::try_from(id).unwrap()
}

pub fn session_id(id: u32) -> SessionId {
    SessionId::try_from(id).unwrap()
}

pub fn guid(byte: u8) -> Guid {
    Guid([byte; 16])
}

pub fn setup(bytes: u64, accept_partial: bool) -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version: SEGMENT_VERSION,
        pointer_bits: 64,
        bytes,
        accept_partial,
        copies: 0,
        name: "a client".into(),
    })
}

pub fn heap(ticket: u64, committed: u64) -> ClientRequest {
    let kind = MallocKind::Heap { committed };
    ClientRequest::Malloc(Malloc { ticket, kind, page_size: 0, copies: 0 })
}

pub fn span(ticket: u64, bytes: u64) -> ClientRequest {
    let kind = MallocKind::Span { bytes };
    ClientRequest::Malloc(Malloc { ticket, kind, page_size: 0, copies: 0 })
}

pub fn region_name(name: &str) -> RegionName {
    RegionName { volume: "v".into(), name: name.into() }
}

pub fn region(name: &str, region_size: u64, mode: u32) -> ClientRequest {
    ClientRequest::RegionCreate(RegionCreate {
        ticket: 0,
        region: region_name(name),
        region_size,
        base_pointer: 0,
        mode,
        copies: 0,
        page_size: 0,
    })
}

/// Opens a region as the session's opening of that number.
pub fn open(number: u64, name: &str, write: bool) -> ClientRequest {
    let (opening, region) = (OpeningId(number), region_name(name));
    ClientRequest::RegionOpen(RegionOpen { opening, region, read: true, write })
}

pub fn close(number: u64) -> ClientRequest {
    ClientRequest::RegionClose(OpeningId(number))
}

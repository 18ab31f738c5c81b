//! Who there is, and what can happen next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use arbitrary::{Result, Unstructured};
use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, SessionId};
use dmce_abi::name::Instance;
use dmce_abi::wire::client::{self, ClientRequest};
use dmce_abi::wire::daemon::{DaemonRequest, HeldBlock, PoolPlace};
use dmce_broker::dispatcher::{
    ClientConn, DaemonConn, Dispatcher, DispatcherConfig, Event, Grant, InspectId, Limits, Millis,
    Now, Peer, Placement, Policy, Quota, RaiseId, RequestId, SessionRecord,
};

use super::{daemons, requests};

/// Daemons that there are; messages may name others.
pub const DAEMONS: u32 = 3;
/// Connections at one time, of clients and of daemons each.
const CONNECTIONS_MAX: usize = 8;
pub const SERVICE_UID: u32 = 999;

/// A session, as the shell keeps it.
pub struct Kept {
    pub record: SessionRecord,
    pub grants: BTreeMap<u32, Grant>,
    pub generation: u64,
    /// Whether its objects were made.
    pub made: bool,
    /// Whether its process lives, to a broker that starts.
    pub lives: bool,
}

/// A connection of a client.
#[derive(Default)]
pub struct Client {
    /// What it asked and has no answer to.
    pub asked: BTreeMap<RequestId, usize>,
    pub session: Option<SessionId>,
    pub held: bool,
    /// When its process started.
    pub started: u64,
}

/// A block that the shell is to make: for whom, of what number, and what it is to be.
pub type BlockToMake = (DaemonConn, DaemonId, RequestId, HeldBlock);

/// The headers of a block that are to be written anew.
pub type HeadersToWrite = (RaiseId, BlockId, Vec<(DaemonId, BlockDescription)>);

/// What a hostile peer has seen, to say again.
#[derive(Default)]
pub struct Seen {
    pub blocks: Vec<(BlockId, Guid)>,
    pub sessions: Vec<(SessionId, Guid)>,
}

pub struct World {
    pub config: DispatcherConfig,
    pub dispatcher: Dispatcher,
    pub now: Now,
    pub clients: BTreeMap<ClientConn, Client>,
    pub daemons: BTreeMap<DaemonConn, VecDeque<(RequestId, DaemonRequest)>>,
    /// What lies in shared memory, by daemon.
    pub stores: BTreeMap<DaemonId, BTreeMap<BlockId, HeldBlock>>,
    /// Which daemon each connection serves, if it told one.
    pub serving: BTreeMap<DaemonConn, DaemonId>,
    pub sessions: BTreeMap<SessionId, Kept>,
    /// Sessions whose objects are to be made.
    pub to_make: VecDeque<SessionId>,
    /// Sessions that nobody has yet.
    pub prepared: BTreeMap<SessionId, Guid>,
    /// Those of them that the dispatcher was told nothing of.
    pub to_prepare: VecDeque<SessionId>,
    pub watched: BTreeSet<SessionId>,
    pub locks: BTreeSet<DaemonId>,
    pub headers: VecDeque<DaemonId>,
    pub inspections: VecDeque<(InspectId, DaemonId, Vec<BlockId>)>,
    /// Headers that are to be written anew.
    pub raises: VecDeque<HeadersToWrite>,
    /// What becomes of lock tables, of who may use an old one, and of what the dead left.
    pub tables: VecDeque<Event>,
    /// Blocks that are to be made of what was lent.
    pub blocks_to_make: VecDeque<BlockToMake>,
    /// Descriptors that the shell is to find missing.
    pub opened: VecDeque<(DaemonId, BlockId)>,
    pub seen: Seen,
    /// The last GUID that was forged.
    pub guids: u64,
    conns: u64,
    starts: u64,
}

impl World {
    /// A broker that starts on nothing.
    pub fn begin(bytes: &mut Unstructured<'_>) -> Result<Self> {
        let config = config(bytes)?;
        let mut world = Self {
            dispatcher: Dispatcher::new(config.clone(), 1),
            config,
            now: Now { millis: Millis(1000), unix_s: 1_700_000_000 },
            clients: BTreeMap::new(),
            daemons: BTreeMap::new(),
            stores: BTreeMap::new(),
            serving: BTreeMap::new(),
            sessions: BTreeMap::new(),
            to_make: VecDeque::new(),
            prepared: BTreeMap::new(),
            to_prepare: VecDeque::new(),
            watched: BTreeSet::new(),
            locks: BTreeSet::new(),
            headers: VecDeque::new(),
            inspections: VecDeque::new(),
            raises: VecDeque::new(),
            tables: VecDeque::new(),
            blocks_to_make: VecDeque::new(),
            opened: VecDeque::new(),
            seen: Seen::default(),
            guids: 0,
            conns: 0,
            starts: 0,
        };
        world.start();
        if bytes.ratio(7, 8)? {
            world.settle();
        }
        Ok(world)
    }

    /// Daemons that serve and clients with sessions: what most of the code needs to be reached.
    fn settle(&mut self) {
        for id in 1..DAEMONS {
            let conn = self.enter_daemon(process(50, SERVICE_UID));
            let daemon = DaemonId::try_from(id).expect("a small id");
            daemons::register_as(self, conn, daemon, 1 << 19);
            daemons::report(self, conn, daemon, true);
            daemons::lend(self, conn, PoolPlace(id), 1 << 16);
        }
        for (pid, uid) in [(100, 1000), (102, 1001)] {
            let conn = self.enter_client(process(pid, uid));
            self.request(conn, RequestId(1), ClientRequest::Setup(requests::sound_setup()));
            self.make_session(true);
        }
    }

    /// Something happens.
    pub fn step(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        match bytes.int_in_range(0..=31)? {
            0 | 1 => self.connect_client(bytes)?,
            2 => self.leave(bytes)?,
            3..=11 => self.ask(bytes)?,
            12 | 13 => self.connect_daemon(bytes)?,
            14..=18 => daemons::serve(self, bytes)?,
            19 => daemons::say_anything(self, bytes)?,
            20 => self.daemon_leaves(bytes)?,
            21..=24 => self.deliver(bytes)?,
            25 | 26 => self.pass_time(bytes)?,
            27 => self.end_process(bytes)?,
            28 => self.lose_a_descriptor(),
            29 => self.harm(bytes)?,
            _ => self.restart(bytes)?,
        }
        Ok(())
    }

    /// A broker starts on what there is.
    fn start(&mut self) {
        self.starts += 1;
        // No two brokers start within a millisecond.
        self.now.millis.0 += 1;
        let seed = u128::from(self.starts) << 64 | 0x5eed;
        self.dispatcher = Dispatcher::new(self.config.clone(), seed);
        let started = self.found();
        self.event(Event::Started(started));
    }

    fn restart(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        // Rarely: a broker that starts has less behind it.
        if !bytes.ratio(1, 4)? {
            return Ok(());
        }
        self.clients.clear();
        self.daemons.clear();
        self.serving.clear();
        self.watched.clear();
        self.headers.clear();
        self.inspections.clear();
        self.raises.clear();
        self.tables.clear();
        self.blocks_to_make.clear();
        self.opened.clear();
        // The records of these were not made ready, so nobody believes in them.
        self.to_make.clear();
        self.prepared.clear();
        self.to_prepare.clear();
        self.sessions.retain(|_, kept| kept.made);
        for kept in self.sessions.values_mut() {
            kept.lives = !bytes.ratio(1, 8)?;
        }
        self.locks.clear();
        for daemon in self.stores.keys() {
            if bytes.arbitrary()? {
                self.locks.insert(*daemon);
            }
        }
        self.start();
        Ok(())
    }

    fn connect_client(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        if self.clients.len() >= CONNECTIONS_MAX {
            return Ok(());
        }
        self.enter_client(peer(bytes)?);
        Ok(())
    }

    fn enter_client(&mut self, peer: Peer) -> ClientConn {
        self.conns += 1;
        let conn = ClientConn(self.conns);
        let started = u64::from(peer.pid);
        self.clients.insert(conn, Client { started, ..Client::default() });
        self.event(Event::Connected { conn, peer });
        conn
    }

    fn leave(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let Some(conn) = pick(bytes, self.clients.keys().copied())? else { return Ok(()) };
        self.clients.remove(&conn);
        let reason = "no message".to_owned();
        let hostile = bytes.arbitrary()?;
        self.event(if hostile { Event::Hostile { conn, reason } } else { Event::HungUp { conn } });
        Ok(())
    }

    fn ask(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let read = self.clients.iter().filter(|(_, client)| !client.held);
        let conns: Vec<ClientConn> = read.map(|(conn, _)| *conn).collect();
        let Some(conn) = pick(bytes, conns)? else { return Ok(()) };
        let number: u64 = bytes.int_in_range(0..=15)?;
        let has_session = self.clients[&conn].session.is_some();
        let request = if has_session || bytes.ratio(1, 4)? {
            requests::request(&self.seen, bytes)?
        } else {
            Some(requests::opening(&self.seen, bytes)?)
        };
        let Some(request) = request else { return Ok(()) };
        // Whose answer tells which session the connection has is always answered.
        let opens = matches!(request, ClientRequest::Setup(_) | ClientRequest::Attach(_));
        let request_id = RequestId(if opens { number.max(1) } else { number });
        self.request(conn, request_id, request);
        Ok(())
    }

    fn request(&mut self, conn: ClientConn, request_id: RequestId, request: ClientRequest) {
        if let (ClientRequest::Attach(_), Some(client)) = (&request, self.clients.get(&conn)) {
            let at = client.started;
            self.event(Event::ProcessStarted { conn, at });
        }
        if request_id.0 != 0
            && let Some(client) = self.clients.get_mut(&conn)
        {
            *client.asked.entry(request_id).or_default() += 1;
        }
        self.event(Event::Request { conn, request_id, request });
    }

    fn connect_daemon(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        if self.daemons.len() >= CONNECTIONS_MAX {
            return Ok(());
        }
        let stranger = bytes.ratio(1, 16)?;
        let conn =
            self.enter_daemon(if stranger { peer(bytes)? } else { process(50, SERVICE_UID) });
        daemons::register(self, conn, bytes)
    }

    fn enter_daemon(&mut self, peer: Peer) -> DaemonConn {
        self.conns += 1;
        let conn = DaemonConn(self.conns);
        self.daemons.insert(conn, VecDeque::new());
        self.event(Event::DaemonConnected { conn, peer });
        conn
    }

    fn daemon_leaves(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let Some(conn) = pick(bytes, self.daemons.keys().copied())? else { return Ok(()) };
        self.daemons.remove(&conn);
        self.serving.remove(&conn);
        let reason = "no message".to_owned();
        let hostile = bytes.arbitrary()?;
        self.event(if hostile {
            Event::DaemonHostile { conn, reason }
        } else {
            Event::DaemonHungUp { conn }
        });
        Ok(())
    }

    fn pass_time(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let millis = [1, 40, 300, 2500, 5000, 40_000];
        self.now.millis.0 += *bytes.choose(&millis)?;
        self.now.unix_s = 1_700_000_000 + self.now.millis.0 / 1000;
        self.event(Event::Tick);
        Ok(())
    }

    fn end_process(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let Some(session) = pick(bytes, self.watched.iter().copied())? else { return Ok(()) };
        let reason = "its size was changed".to_owned();
        let misused = bytes.arbitrary()?;
        self.event(if misused {
            Event::Misused { session, reason }
        } else {
            Event::Died { session }
        });
        Ok(())
    }

    fn lose_a_descriptor(&mut self) {
        if let Some((daemon, block)) = self.opened.pop_front() {
            self.event(Event::OpenFailed { daemon, block });
        }
    }

    /// The object of a block goes, or is another's.
    fn harm(&mut self, bytes: &mut Unstructured<'_>) -> Result<()> {
        let Some(daemon) = pick(bytes, self.stores.keys().copied())? else { return Ok(()) };
        let store = self.stores.get_mut(&daemon).expect("it was picked of these");
        let Some(block) = pick(bytes, store.keys().copied())? else { return Ok(()) };
        if bytes.arbitrary()? {
            store.remove(&block);
        } else if let Some(held) = store.get_mut(&block) {
            held.committed = bytes.int_in_range(0..=8)? * 4096;
        }
        Ok(())
    }
}

/// One of `items`, if there is any.
pub fn pick<T: Copy>(
    bytes: &mut Unstructured<'_>,
    items: impl IntoIterator<Item = T>,
) -> Result<Option<T>> {
    let items: Vec<T> = items.into_iter().collect();
    if items.is_empty() { Ok(None) } else { bytes.choose(&items).copied().map(Some) }
}

/// One of a few processes, of a few users.
fn peer(bytes: &mut Unstructured<'_>) -> Result<Peer> {
    let users = [1000, 1000, 1001, 0, SERVICE_UID];
    let which = bytes.choose_index(users.len())?;
    Ok(process(100 + u32::try_from(which).unwrap_or(0), users[which]))
}

fn process(pid: u32, uid: u32) -> Peer {
    Peer { pid, lived_at: u64::from(pid), uid, gid: uid, groups: vec![100] }
}

fn config(bytes: &mut Unstructured<'_>) -> Result<DispatcherConfig> {
    let instance = Instance::new("test").expect("a plain name");
    let mut config = DispatcherConfig::new(instance, SERVICE_UID);
    // Blocks of 16 KiB: spans are long and still small.
    config.layout = AddrLayout::new(32, 18, 14).expect("they sum to 64");
    config.placement = placement(bytes)?;
    config.static_reservation = bytes.arbitrary()?;
    config.reattach_ms = 4000;
    config.suspect_ms = *bytes.choose(&[200, 2000])?;
    config.limits = Limits {
        connections_max: 6,
        sessions_max: 4,
        blocks_max: 40,
        regions_max: 4,
        daemons_max: 4,
        outstanding_max: 8,
        mappings_max: 4,
    };
    if bytes.arbitrary()? {
        let bytes_max = config.layout.block_bytes() * 6;
        config.quota = Quota { bytes: bytes_max, sessions: 2, blocks: 12, ..Quota::UNLIMITED };
        config.quota.requests_per_s = 50;
        config.quota.requests_burst = 20;
    }
    if bytes.arbitrary()? {
        let told = client::Policy { up_to: 8192, page_size: 8192, ..client::Policy::default() };
        config.policies.push(Policy { told, placement: Some(placement(bytes)?) });
        let told = client::Policy { wait_ms: Some(300), ..client::Policy::default() };
        config.policies.push(Policy { told, placement: None });
    }
    Ok(config)
}

fn placement(bytes: &mut Unstructured<'_>) -> Result<Placement> {
    bytes
        .choose(&[
            Placement::RoundRobin,
            Placement::LeastUsed,
            Placement::PowerOfTwo,
            Placement::Weighted,
        ])
        .copied()
}

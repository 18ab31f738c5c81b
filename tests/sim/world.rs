//! The world around a dispatcher: a host, daemons, clients, and a shell that carries events and
//! actions.
//!
//! Every move is drawn from the seed. Any process, the broker included, may die between any two of
//! them, and the broker also between any two of its actions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;

use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::wire::client::ClientRequest;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonNotice};
use dmce_broker::dispatcher::{
    Action, ClientConn, DaemonConn, Dispatcher, DispatcherConfig, Event, Millis, Now, Peer,
};

use crate::asking::{self, Sizes};
use crate::broker::Broker;
use crate::client::{Arrival, Client};
use crate::daemon::{Daemon, Manners};
use crate::host::Host;
use crate::random::Random;
use crate::settings;
use crate::truth::Truth;
use crate::view::Known;

/// A part of a copy that is made again was copied.
pub const SYNCED: &str = "synced";

/// Lines of the history that a failure shows.
const HISTORY: u64 = 60;

/// The longest inbox of a client before the shell drops it.
const INBOX_MAX: usize = 20;

/// How often things go wrong: each once in so many moves.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// The broker dies in the middle of its actions.
    pub broker_dies: u64,
    /// Something happens to a daemon.
    pub daemon_trouble: u64,
    /// Something happens to a client.
    pub client_trouble: u64,
    /// An object is harmed.
    pub harm: u64,
    /// A session's objects cannot be made: once in so many sessions.
    pub no_session: u64,
    /// A copy is lost of which another is there.
    pub loses_copies: u64,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        loses_copies: u64::MAX,
        broker_dies: u64::MAX,
        daemon_trouble: u64::MAX,
        client_trouble: u64::MAX,
        harm: u64::MAX,
        no_session: u64::MAX,
    };
}

/// Everything.
#[derive(Debug)]
pub struct World {
    /// Where all chance comes from.
    pub random: Random,
    /// What outlives processes.
    pub host: Host,
    /// The daemons.
    pub daemons: Vec<Daemon>,
    /// The clients, dead ones included.
    pub clients: Vec<Client>,
    /// The broker, if it runs.
    pub broker: Option<Broker>,
    /// What must hold whatever happens.
    pub truth: Truth,
    /// The clocks.
    pub now: Now,
    /// The broker's configuration.
    pub config: DispatcherConfig,
    /// What requests are made of.
    pub sizes: Sizes,
    /// How often things go wrong.
    pub faults: Faults,
    /// How daemons misbehave.
    pub manners: Manners,
    /// How often somebody has a copy moved: once in so many moves.
    pub moves: u64,
    /// Whether somebody has had copies change places.
    pub has_swapped: bool,
    /// Regions of which somebody has asked for other numbers of copies.
    pub asked_anew: BTreeSet<Guid>,
    /// Milliseconds of a move, at most.
    pub pace_ms: u64,
    /// What happened last.
    pub history: VecDeque<String>,
    /// How many lines of it are kept.
    pub remember: u64,
    /// How often what is rare has happened.
    pub counts: BTreeMap<&'static str, u64>,
    conns: u64,
    pids: u32,
}

/// A step that must not fail.
pub type Checked = Result<(), String>;

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let bits = [(32, 6, 26), (32, 8, 24), (32, 12, 20)];
        let (server, block, cell) = random.pick(bits).unwrap_or(bits[0]);
        let layout = AddrLayout::new(server, block, cell).expect("widths that sum to 64");
        let mut config = settings::config(&mut random, layout);
        let copies_max = config.copies_max;
        let writes = copies_max > 1 && random.once_in(2);
        let sizes = Sizes { cell_bits: cell, ids: config.block_ids(), copies_max, writes };
        let rough = !random.once_in(4);
        let often = |random: &mut Random, times: u64| {
            if rough && !random.once_in(4) { times } else { u64::MAX }
        };
        let mut faults = Faults {
            loses_copies: u64::MAX,
            broker_dies: often(&mut random, 250),
            daemon_trouble: often(&mut random, 60),
            client_trouble: often(&mut random, 60),
            harm: often(&mut random, 150),
            no_session: often(&mut random, 20),
        };
        let mut manners = Manners {
            refuses: often(&mut random, 12),
            repeats: often(&mut random, 30),
            lies: often(&mut random, 120),
            extra_pages: if random.once_in(2) { 3 } else { 0 },
        };
        // Some are about copies alone: those of regions are lost and made again all the time, while
        // writers stand still between any two steps.
        let loses_copies = writes && random.once_in(2);
        let mut moves = often(&mut random, 100);
        if loses_copies {
            config.syncs_max = 3;
            moves = random.pick([u64::MAX, 15, 60]).unwrap_or(u64::MAX);
            faults = Faults { client_trouble: 20, loses_copies: 50, ..Faults::NONE };
            faults.broker_dies = often(&mut random, 2000);
            manners = Manners::GOOD;
        }
        let pace_ms = random.pick([4, 12, 40]).unwrap_or(12);
        let mut host = Host::default();
        let mut daemons = Vec::new();
        let fewest = if loses_copies { 3 } else { 1 + u32::from(writes) };
        for id in 1..=fewest + u32::try_from(random.below(4)).unwrap_or(0) {
            let id = DaemonId::try_from(id).expect("a small id");
            let capacity = layout.block_bytes() / 2 * (1 + random.below(8));
            let mut daemon = Daemon::new(id, capacity);
            daemon.start(&mut host);
            daemons.push(daemon);
        }
        let mut world = Self {
            random,
            host,
            daemons,
            clients: Vec::new(),
            broker: None,
            truth: Truth::default(),
            now: Now { millis: Millis(1000), unix_s: 1_700_000_000 },
            config,
            sizes,
            faults,
            manners,
            moves,
            has_swapped: false,
            asked_anew: BTreeSet::new(),
            pace_ms,
            history: VecDeque::new(),
            remember: HISTORY,
            counts: BTreeMap::new(),
            conns: 0,
            pids: 100,
        };
        for _ in 0..=world.random.below(5) {
            world.add_client();
        }
        world
    }

    /// Something happens.
    ///
    /// # Errors
    ///
    /// What must never be.
    pub fn step(&mut self) -> Checked {
        self.now.millis.0 += self.random.below(self.pace_ms);
        self.now.unix_s = 1_700_000_000 + self.now.millis.0 / 1000;
        self.client_writes(true)?;
        self.client_reads_page()?;
        self.daemon_changes_page()?;
        if self.broker.is_none() {
            return if self.random.once_in(8) { self.start_broker() } else { self.elsewhere() };
        }
        if self.random.once_in(self.faults.daemon_trouble) {
            self.daemon_trouble();
            return Ok(());
        }
        if self.random.once_in(self.faults.client_trouble) {
            return self.client_trouble();
        }
        if self.random.once_in(self.faults.harm) {
            self.harm();
        }
        if self.random.once_in(self.faults.loses_copies) {
            self.lose_copy();
        }
        if self.random.once_in(self.moves) {
            self.move_copy()?;
        }
        match self.random.below(12) {
            0..=2 => self.deliver_request(),
            3 | 4 => self.deliver_daemon_message(),
            5 | 6 => self.deliver_soon(),
            7 => self.tick(),
            _ => self.elsewhere(),
        }
    }

    /// Something happens that the broker does not see.
    fn elsewhere(&mut self) -> Checked {
        match self.random.below(8) {
            0..=2 => {
                self.client_acts();
                Ok(())
            }
            3 | 4 => self.client_reads(),
            5..=6 => {
                self.daemon_serves();
                Ok(())
            }
            _ => self.connect_someone(),
        }
    }

    /// Delivers the oldest request of some client.
    pub fn deliver_request(&mut self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let clients = &self.clients;
        let is_ready = |conn: &ClientConn, place: usize| {
            !clients[place].outbox.is_empty() && !broker.held.contains(conn)
        };
        let ready = broker.clients.iter().filter(|(conn, place)| is_ready(conn, **place));
        let Some((conn, place)) = self.random.pick(ready.map(|(conn, place)| (*conn, *place)))
        else {
            return Ok(());
        };
        let client = &mut self.clients[place];
        let Some((request_id, request)) = client.outbox.pop_front() else { return Ok(()) };
        if request == ClientRequest::Disconnect {
            client.excuses += 1;
        }
        let pid = client.peer.pid;
        if let (ClientRequest::Attach(_), Some(&at)) = (&request, self.host.processes.get(&pid)) {
            self.event(Event::ProcessStarted { conn, at })?;
        }
        if let Some(broker) = &mut self.broker {
            broker.asked.entry(conn).or_default().insert(request_id);
        }
        self.truth.delivered(&request, self.clients[place].peer.pid);
        self.event(Event::Request { conn, request_id, request })
    }

    /// Delivers the oldest message of some daemon.
    pub fn deliver_daemon_message(&mut self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let daemons = &self.daemons;
        let ready = broker.daemons.iter().filter(|(_, place)| !daemons[**place].outbox.is_empty());
        let Some((conn, place)) = self.random.pick(ready.map(|(conn, place)| (*conn, *place)))
        else {
            return Ok(());
        };
        let Some((request_id, message)) = self.daemons[place].outbox.pop_front() else {
            return Ok(());
        };
        match &message {
            DaemonMessage::Notice(DaemonNotice::Excess { block, .. }) => self.blame(*block),
            DaemonMessage::Reply(Ok(DaemonAnswer::Synced { bytes: 1.. })) => self.count(SYNCED),
            _ => {}
        }
        self.event(Event::DaemonMessage { conn, request_id, message })
    }

    /// Delivers what the shell has found out.
    pub fn deliver_soon(&mut self) -> Checked {
        let host = &self.host;
        let Some(broker) = &mut self.broker else { return Ok(()) };
        if let Some(daemon) = broker.locks.iter().copied().find(|id| !host.locks.contains(id)) {
            broker.locks.remove(&daemon);
            let headers = self.host.headers(daemon);
            return self.event(Event::LockFree { daemon, headers });
        }
        // Operations of other kinds end when they like.
        if let Some(idle) = self.random.pick(broker.idles.keys().copied())
            && self.random.once_in(3)
        {
            let (session, block, epoch) = idle;
            let guid = host.records.get(&session).map(|record| record.record.guid);
            let now = guid.map(|guid| host.pages.marks(guid)).unwrap_or_default();
            let before = broker.idles.get(&idle).into_iter().flat_map(|waited| &waited.marks);
            let mut left = before
                .filter(|(slot, mark)| !mark.is_multiple_of(2) && now.get(slot) == Some(mark));
            let mut abandoned = guid.iter().flat_map(|guid| host.pages.intents(*guid, true).claims);
            if left.next().is_none() && abandoned.next().is_none() {
                let is_over = |of: &(SessionId, BlockId, u64)| {
                    (of.0, of.1) == (session, block) && of.2 <= epoch
                };
                broker.idles.retain(|of, _| !is_over(of));
                return self.event(Event::Idle { session, block, epoch });
            }
        }
        match broker.soon.pop_front() {
            Some(event) => self.event(event),
            None => Ok(()),
        }
    }

    /// Ticks, if it is time.
    pub fn tick(&mut self) -> Checked {
        let early = self.random.once_in(20);
        let Some(broker) = &mut self.broker else { return Ok(()) };
        if !early && broker.wake_at.is_none_or(|at| at > self.now.millis) {
            return Ok(());
        }
        broker.wake_at = None;
        self.event(Event::Tick)
    }

    fn client_acts(&mut self) {
        let able = |client: &Client| {
            client.alive && !client.stopped && client.conn.is_some() && client.pending.len() < 4
        };
        let places = (0..self.clients.len()).filter(|place| able(&self.clients[*place]));
        let Some(place) = self.random.pick(places) else { return };
        let client = &mut self.clients[place];
        if self.random.once_in(12) {
            client.give_up(&mut self.random);
            return;
        }
        let attaching = client.view.is_some() && client.pending.len() == 1;
        let times = if self.random.once_in(50) { 12 } else { 1 };
        for _ in 0..times {
            let request = match &mut client.view {
                Some(view) => asking::request(&mut self.random, view, self.sizes),
                None if client.pending.is_empty() => asking::setup(&mut self.random, self.sizes),
                None => return,
            };
            // While it attaches, a client waits.
            let waits = client
                .pending
                .values()
                .any(|request| matches!(request, dmce_abi::wire::client::ClientRequest::Attach(_)));
            if attaching && waits {
                return;
            }
            // Who gives up what it is writing to waits for the end of that.
            let is_giving_up = matches!(
                request,
                ClientRequest::Disconnect
                    | ClientRequest::RegionClose(_)
                    | ClientRequest::RegionDelete(_)
            );
            if is_giving_up && client.writing.is_some() {
                return;
            }
            client.ask(request);
        }
    }

    /// Some client reads an answer.
    pub fn client_reads(&mut self) -> Checked {
        let able = |client: &Client| client.alive && !client.stopped && !client.inbox.is_empty();
        let places = (0..self.clients.len()).filter(|place| able(&self.clients[*place]));
        match self.random.pick(places) {
            Some(place) => {
                let (harmed_ids, ended) = (&self.host.harmed_ids, &self.truth.ended);
                let touched_ids = &self.host.touched_ids;
                self.clients[place].read(&Known { harmed_ids, touched_ids, ended })
            }
            None => Ok(()),
        }
    }

    /// Some daemon does what it was asked.
    pub fn daemon_serves(&mut self) {
        let able = |daemon: &Daemon| daemon.alive && !daemon.stopped && !daemon.inbox.is_empty();
        let places = (0..self.daemons.len()).filter(|place| able(&self.daemons[*place]));
        if let Some(place) = self.random.pick(places) {
            self.daemons[place].serve(&mut self.host, &mut self.random, self.manners);
            if self.random.once_in(6) {
                let bytes = self.config.layout.block_bytes() >> self.random.below(4);
                self.daemons[place].lend(&mut self.host, bytes);
            }
        }
    }

    /// Somebody who is not connected connects.
    pub fn connect_someone(&mut self) -> Checked {
        if self.broker.is_none() {
            return Ok(());
        }
        let daemons = self.daemons.iter().enumerate();
        let apart = daemons.filter(|(_, d)| d.alive && !d.stopped && d.conn.is_none());
        let clients = self.clients.iter().enumerate();
        let alone = clients.filter(|(_, c)| c.alive && !c.stopped && c.conn.is_none());
        let both = apart.map(|(place, _)| (true, place));
        let both = both.chain(alone.map(|(place, _)| (false, place)));
        match self.random.pick(both.collect::<Vec<_>>()) {
            Some((true, place)) => self.connect_daemon(place),
            Some((false, place)) => self.connect_client(place),
            None => Ok(()),
        }
    }

    fn connect_daemon(&mut self, place: usize) -> Checked {
        self.conns += 1;
        let conn = DaemonConn(self.conns);
        let instance = self.config.instance.as_str();
        self.daemons[place].connect(conn, instance, &mut self.host, &mut self.random);
        let Some(broker) = &mut self.broker else { return Ok(()) };
        broker.daemons.insert(conn, place);
        let uid = self.config.service_uid;
        let peer = Peer { pid: 50, lived_at: 1, uid, gid: 0, groups: Vec::new() };
        self.event(Event::DaemonConnected { conn, peer })
    }

    /// Whoever moves copies, connected.
    pub fn connect_admin(&mut self) -> Result<Option<ClientConn>, String> {
        let conn = ClientConn(self.conns + 1);
        let Some(broker) = &mut self.broker else { return Ok(None) };
        if broker.admin.is_some() {
            return Ok(broker.admin);
        }
        self.conns += 1;
        broker.admin = Some(conn);
        let peer = Peer { pid: 1, lived_at: 1, uid: 0, gid: 0, groups: Vec::new() };
        self.event(Event::Connected { conn, peer })?;
        Ok(Some(conn))
    }

    fn connect_client(&mut self, place: usize) -> Checked {
        self.conns += 1;
        let conn = ClientConn(self.conns);
        self.clients[place].begin(conn);
        let peer = self.clients[place].peer.clone();
        let Some(broker) = &mut self.broker else { return Ok(()) };
        broker.clients.insert(conn, place);
        self.event(Event::Connected { conn, peer })
    }

    /// A new process, of one of a few users.
    pub fn add_client(&mut self) {
        self.pids += 1;
        let uid = [0, 1000, 1000, 1001][usize::try_from(self.random.below(4)).unwrap_or(0)];
        let started = self.random.next();
        let lived_at = started.saturating_add(self.random.below(3));
        let peer = Peer { pid: self.pids, lived_at, uid, gid: uid, groups: vec![100] };
        self.host.processes.insert(peer.pid, started);
        self.clients.push(Client::new(peer, self.sizes.cell_bits));
    }

    /// Starts a broker on what its predecessor left.
    pub fn start_broker(&mut self) -> Checked {
        let seed = u128::from(self.random.next()) << 64 | u128::from(self.random.next());
        // No two brokers start within a millisecond.
        self.now.millis.0 += 1;
        self.note("the broker starts");
        self.broker = Some(Broker {
            dispatcher: Dispatcher::new(self.config.clone(), seed),
            clients: BTreeMap::new(),
            daemons: BTreeMap::new(),
            admin: None,
            asked: BTreeMap::new(),
            held: BTreeSet::new(),
            soon: VecDeque::new(),
            watched: BTreeMap::new(),
            idles: BTreeMap::new(),
            at_once: VecDeque::new(),
            locks: BTreeSet::new(),
            wake_at: None,
        });
        self.hide_newest();
        let started = self.host.found();
        self.truth.broker_started(self.now.millis, &self.host);
        self.event(Event::Started(started))
    }

    /// Kills the broker.
    pub fn kill_broker(&mut self) {
        self.note("the broker dies");
        let Some(broker) = self.broker.take() else { return };
        for (conn, place) in broker.clients {
            self.clients[place].inbox.push_back((conn, Arrival::Closed));
        }
        for place in broker.daemons.into_values() {
            self.daemons[place].conn = None;
            // What it was asked for and has not begun it does not do any more.
            self.daemons[place].inbox.clear();
        }
    }

    /// The dispatcher takes in an event, and the shell does what it says.
    pub fn event(&mut self, event: Event) -> Checked {
        let Some(broker) = &mut self.broker else { return Ok(()) };
        let told = format!("{event:?}");
        let mut actions = Vec::new();
        if let Event::NotOpened { conn, request_id, .. } = event {
            broker.asked.entry(conn).or_default().insert(request_id);
        }
        broker.dispatcher.step(self.now, event, &mut actions);
        let audit = broker.dispatcher.audit();
        self.note(told);
        for action in &actions {
            self.note(format!("    {action:?}"));
        }
        audit?;
        self.note_wrecks();
        let mut dies = self.random.once_in(self.faults.broker_dies);
        let mut last = self.random.below(actions.len() as u64 + 1);
        let is_repair = |action: &Action| matches!(action, Action::Repair(_));
        if let Some(repair) = actions.iter().position(is_repair)
            && self.faults.broker_dies < u64::MAX
            && self.random.once_in(4)
        {
            (dies, last) = (true, repair as u64);
        }
        for (index, action) in (0..).zip(actions) {
            if dies && index == last {
                // In the middle of an action that has steps.
                crate::shell::begin(self, action);
                break;
            }
            self.act(action)?;
        }
        if dies {
            self.kill_broker();
        }
        self.check_tables()?;
        self.check_pages()?;
        let next = self.broker.as_mut().and_then(|broker| broker.at_once.pop_front());
        next.map_or(Ok(()), |event| self.event(event))
    }

    /// Sessions that have ended, and whose records stay until they are repaired.
    fn note_wrecks(&mut self) {
        let Some(broker) = &self.broker else { return };
        for id in broker.dispatcher.snapshot().wrecks {
            if let Some(record) = self.host.records.get(&id) {
                self.truth.ended.insert(record.record.guid);
            }
        }
    }

    /// Drops clients that do not read.
    pub fn drop_the_silent(&mut self) {
        let Some(broker) = &mut self.broker else { return };
        let silent = |place: &usize| self.clients[*place].inbox.len() > INBOX_MAX;
        let conns: Vec<ClientConn> = broker
            .clients
            .iter()
            .filter(|(_, place)| silent(place))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            if let Some(place) = broker.clients.remove(&conn) {
                self.clients[place].inbox.push_back((conn, Arrival::Closed));
                broker.soon.push_back(Event::HungUp { conn });
            }
        }
    }

    /// Counts something that is rare.
    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Adds a line to the history.
    pub fn note(&mut self, line: impl Display) {
        if self.history.len() as u64 >= self.remember {
            self.history.pop_front();
        }
        self.history.push_back(format!("{} {line}", self.now.millis.0));
    }

    /// Does one action of the dispatcher.
    fn act(&mut self, action: Action) -> Checked {
        crate::shell::act(self, action)
    }
}

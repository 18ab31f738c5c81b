//! The pure core: a deterministic state machine that decides everything and does nothing itself.
//!
//! ```text
//!  sockets, pidfds, timers                                   system calls
//!            |                                                    ^
//!            v                                                    |
//!          Event --> Dispatcher::step(now, event, &mut actions) --> Action, Action, ..
//! ```
//!
//! | what | where |
//! |---|---|
//! | the outside | [`event`], [`action`], [`config`] |
//! | tables | `blocks` and their `copies`, `ids`, `charge`, `daemons`, `clients`, `sessions` |
//! | more tables | `regions`, `history` |
//! | tables of a session | `mappings`, `changes`, `opens` |
//! | clients' requests | `requests` (which), `checking`, `opening`, `access`, `admin` |
//! | those on regions | `region_requests`, `region_deletes` |
//! | bytes by message | `links`, `relay` |
//! | how spans are made | `policies`, `planning`, `placement`, `making` |
//! | who waits for room, and who is told | `patience`, `notices` |
//! | how often a user may ask | `rates` |
//! | what is made before it is asked for | `prepared` |
//! | daemons | `link` (messages), `asking` (requests), `lending` (their pools) |
//! | what becomes of blocks | `spans`; their size: `growing`; which copies there are: `raising` |
//! | what an administrator says that becomes of them | `stale` |
//! | copies that are made again, or move | `syncing`, `lacks`, `moving`; compared: `scrubbing` |
//! | lock tables | `locks` |
//! | what the dead left half written | `wrecks`, `repairs`; by pointers: `carrying` |
//! | a broker that comes back | `restart`, `adoption`, `reported_copies`, `silence` |
//!
//! # Invariants
//!
//! 1. No I/O, no clock, no randomness, no table in an order of chance: the same construction and
//!    the same events give the same actions.
//! 2. A request is answered once, or its connection ends.
//! 3. What a peer says is checked against the tables. It is never a reason to panic.
//! 4. The work of a request does not grow with the number of sessions, blocks or regions. What an
//!    event touches (the blocks of a span, of a session that ends, of a daemon) it pays for.
//! 5. Every table has a limit.

pub mod action;
pub mod config;
pub mod event;

mod access;
mod admin;
mod adoption;
mod asking;
mod audit;
mod blocks;
mod carrying;
mod changes;
mod charge;
mod checking;
mod clients;
mod copies;
mod daemons;
mod draws;
mod growing;
mod guid;
mod history;
mod holders;
mod ids;
mod lacks;
mod lending;
mod link;
mod links;
mod locks;
mod making;
mod mapped;
mod mappings;
mod moving;
mod notices;
mod opening;
mod opens;
mod pace;
mod patience;
mod placement;
mod planning;
mod policies;
mod prepared;
mod raising;
mod rates;
mod region_deletes;
mod region_requests;
mod regions;
mod relay;
mod repairs;
mod reported_copies;
mod requests;
mod restart;
mod scrubbing;
mod seats;
mod sessions;
mod silence;
mod spans;
mod stale;
mod surplus;
mod syncing;
#[cfg(test)]
mod test_random;
#[cfg(test)]
mod tests;
mod timers;
mod waiting;
mod wrecks;

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, SessionId};

pub use action::{Action, Descriptor, LogLevel, Repair};
pub use audit::{Snapshot, SnapshotBlock, SnapshotCopy};
pub use config::{DispatcherConfig, Limits, Placement, Policy, Pressure, Quota};
pub use event::{
    BelievedSession, ClientConn, DaemonConn, Event, FoundContent, FoundDaemon, FoundIntents,
    FoundTable, Grant, Headers, InspectId, Lent, Made, Millis, Now, Peer, RaiseId, Repaired,
    RequestId, Rewritten, Rights, SessionRecord, Started,
};
pub use prepared::PREPARED_MAX;

use blocks::Blocks;
use charge::Ledger;
use clients::{Clients, ReplyTo};
use daemons::Daemons;
use draws::Draws;
use growing::Growths;
use guid::Guids;
use history::History;
use ids::BlockIds;
use making::Making;
use notices::Notices;
use patience::Patients;
use prepared::Prepared;
use rates::Rates;
use region_deletes::Deletion;
use regions::Regions;
use restart::Restart;
use sessions::Sessions;
use timers::Timers;
use waiting::Waiting;
use wrecks::Wrecks;

/// The broker's state.
#[derive(Debug)]
pub struct Dispatcher {
    config: DispatcherConfig,
    now: Now,
    /// The actions of the present step.
    out: Vec<Action>,
    guids: Guids,
    draws: Draws,
    /// When this broker started, since the host did: no two of one host have the same, and no block
    /// outlives the host.
    epoch: u64,
    /// The last number given to a request or an inspection.
    number: u64,

    ids: BlockIds,
    blocks: Blocks,
    ledger: Ledger,
    daemons: Daemons,
    clients: Clients,
    sessions: Sessions,
    /// Sessions that have ended, and are to be repaired.
    wrecks: Wrecks,
    prepared: Prepared,
    /// Session objects of daemons.
    seats: seats::Seats,
    regions: Regions,
    history: History,
    rates: Rates,
    timers: Timers,
    /// Links of clients that map nothing.
    links: links::Links,
    /// What is done to bytes for clients through this broker.
    relays: relay::Relays,

    /// Spans that daemons are asked for, by their first block.
    makings: BTreeMap<BlockId, Making>,
    /// Blocks whose headers are being written anew.
    raises: BTreeMap<BlockId, RaiseId>,
    /// Blocks whose lock table is made anew, and the sessions that may still use the old one.
    relocks: BTreeMap<BlockId, BTreeSet<SessionId>>,
    /// Of these, what the shell has to be asked about when generations are published.
    idles: Vec<(SessionId, BlockId, u64)>,
    /// Copies that are made, or go.
    holders: holders::Holders,
    syncs: syncing::Syncs,
    /// Copies that are to move.
    moves: moving::Moves,
    /// Copies that are compared.
    scrubs: scrubbing::Scrubs,
    /// Who has a stale copy of a block adopted.
    adoptions: BTreeMap<BlockId, ReplyTo>,
    /// Blocks that grow.
    growths: Growths,
    /// Requests that need the tables of a broker that came back to be complete.
    deferred: Waiting,
    /// Requests that found no room while bytes were on their way back.
    parked: Waiting,
    /// Requests for blocks of which it is being decided which copies there are.
    unsettled: Waiting,
    /// Whether something was decided for which they wait.
    settled: bool,
    /// Mallocs that wait for room because they want to.
    patients: Patients,
    /// How many spans were granted or grown.
    granted: u64,
    /// Whether those who wait have a reason to be tried again.
    room_changed: bool,
    /// Sessions whose generation has moved and was not published.
    moved: BTreeSet<SessionId>,
    notices: Notices,
    restart: Restart,
    /// The regions that are going, by their first block.
    deletions: BTreeMap<BlockId, Deletion>,
    /// When the last region was created: no two have one time.
    created_last: u64,
}

impl Dispatcher {
    /// An empty dispatcher. `seed` must be unpredictable and another at each start: GUIDs come from
    /// it.
    #[must_use]
    pub fn new(config: DispatcherConfig, seed: u128) -> Self {
        let mut guids = Guids::new(seed);
        Self {
            now: Now::default(),
            out: Vec::new(),
            draws: Draws::new(guids.next_number()),
            guids,
            epoch: 1,
            number: 0,
            ids: BlockIds::new(config.block_ids()),
            blocks: Blocks::default(),
            ledger: Ledger::new(&config),
            daemons: Daemons::default(),
            clients: Clients::default(),
            sessions: Sessions::default(),
            wrecks: Wrecks::default(),
            prepared: Prepared::default(),
            seats: seats::Seats::default(),
            regions: Regions::default(),
            history: History::default(),
            rates: Rates::default(),
            timers: Timers::default(),
            links: links::Links::default(),
            relays: relay::Relays::default(),
            makings: BTreeMap::new(),
            deferred: Waiting::default(),
            parked: Waiting::default(),
            unsettled: Waiting::default(),
            settled: false,
            raises: BTreeMap::new(),
            relocks: BTreeMap::new(),
            idles: Vec::new(),
            syncs: syncing::Syncs::new(config.sync_rate),
            holders: holders::Holders::default(),
            moves: moving::Moves::default(),
            scrubs: scrubbing::Scrubs::new(config.scrub_rate),
            adoptions: BTreeMap::new(),
            growths: Growths::new(),
            patients: Patients::default(),
            granted: 0,
            room_changed: false,
            moved: BTreeSet::new(),
            notices: Notices::default(),
            restart: Restart::default(),
            deletions: BTreeMap::new(),
            created_last: 0,
            config,
        }
    }

    /// Takes in `event` and appends what is to be done to `actions`.
    pub fn step(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        self.now = now;
        self.out = std::mem::take(actions);
        let begun = self.out.len();
        self.take_in(event);
        self.mend();
        self.make_copies();
        self.make_moves();
        self.scrub();
        self.serve_unsettled();
        if self.room_changed {
            self.look_for_places();
        }
        self.use_room();
        self.watch_holders();
        self.publish();
        self.publish_first(begun);
        self.ring_all();
        if let Some(at) = self.timers.news() {
            self.out.push(Action::WakeAt(at));
        }
        *actions = std::mem::take(&mut self.out);
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Started(started) => {
                self.take_samples();
                self.started(started);
                self.prepare_later();
                self.scrub_later();
            }
            Event::Connected { conn, peer } => self.connected(conn, peer),
            Event::ProcessStarted { conn, at } => {
                if let Some(client) = self.clients.get_mut(&conn) {
                    client.started = Some(at);
                }
            }
            Event::Request { conn, request_id, request } => {
                self.request(ReplyTo { conn, request_id }, &request);
            }
            Event::Hostile { conn, reason } => self.end_client(conn, &reason),
            Event::HungUp { conn } => self.hung_up(conn),
            Event::Died { session } => self.died(session),
            Event::Misused { session, reason } => self.misused(session, &reason),
            Event::SessionCreated { session, result } => self.session_created(session, result),
            Event::SessionPrepared { session, result } => self.session_prepared(session, result),
            Event::DaemonConnected { conn, peer } => self.daemon_connected(conn, &peer),
            Event::DaemonMessage { conn, request_id, message } => {
                self.daemon_message(conn, request_id, message);
            }
            Event::DaemonHostile { conn, reason } => self.close_daemon(conn, &reason),
            Event::DaemonHungUp { conn } => self.daemon_hung_up(conn),
            Event::BlockMade { daemon, request_id, made } => {
                self.block_made(daemon, request_id.0, made);
            }
            Event::EpochRaised { raise, block, headers } => {
                self.epoch_raised(raise, block, headers);
            }
            Event::LocksMade { block, epoch, made } => self.locks_made(block, epoch, made),
            Event::LocksGrown { request_id, made } => self.locks_grown(request_id.0, made),
            Event::LocksInspected { block, found } => self.locks_inspected(block, found),
            Event::Idle { session, block, epoch } => self.idle(session, block, epoch),
            Event::PointersFound { session, block, epoch, has_some } => {
                self.pointers_found(session, (block, epoch), has_some);
            }
            Event::IntentsRead { session, found } => self.intents_read(session, found),
            Event::Repaired { session, slot, repaired } => {
                self.repaired((session, slot), repaired);
            }
            Event::LockFree { daemon, headers } => self.lock_free(daemon, headers),
            Event::HeadersRead { daemon, headers } => self.headers_read(daemon, headers),
            Event::Inspected { inspect, daemon, found } => self.inspected(inspect, daemon, &found),
            Event::OpenFailed { daemon, block } => self.inspect(daemon, vec![block]),
            Event::NotOpened { conn, request_id, request } => {
                self.not_opened(ReplyTo { conn, request_id }, &request);
            }
            Event::Tick => self.tick(),
        }
    }

    fn tick(&mut self) {
        self.timers.woken();
        while let Some(timer) = self.timers.pop(self.now.millis) {
            match timer {
                timers::Timer::Reattach(session) => {
                    self.end_session(session, "its client did not come back");
                }
                timers::Timer::Sense(daemon) => self.sense(daemon),
                timers::Timer::Report(daemon) => self.report_overdue(daemon),
                timers::Timer::Raise(block) => self.raise_again(block),
                timers::Timer::Usage => self.take_samples(),
                timers::Timer::Patience(place) => self.patience_is_over(place),
                timers::Timer::Rested(_) => self.room_changed = true,
                timers::Timer::GoOn => {}
                timers::Timer::Rate(uid) => self.read_again(uid),
                timers::Timer::Intents(session) => self.read_intents(session),
                timers::Timer::Repair => self.wrecks.try_again(),
                timers::Timer::Prepare => self.prepare(),
                timers::Timer::Sync => self.sync_again(),
                timers::Timer::Scrub => self.scrub_again(),
                timers::Timer::Pass => self.scrub_now(),
                timers::Timer::Hold => self.look_at_holders(),
            }
        }
    }

    /// Tells sessions that their generation has moved.
    fn publish(&mut self) {
        for session in std::mem::take(&mut self.moved) {
            let Some(changes) = self.sessions.get(session).map(|session| &session.changes) else {
                continue;
            };
            let generation = changes.generation();
            self.out.push(Action::Publish { session, generation });
        }
        self.publish_seats();
        for (session, block, epoch) in std::mem::take(&mut self.idles) {
            self.out.push(Action::AwaitIdle { session, block, epoch });
        }
    }

    /// What a step answers may speak of what it publishes: who is answered must not meet sessions
    /// that were not told yet. Nor must they be met by what is written into headers.
    fn publish_first(&mut self, begun: usize) {
        let step = &mut self.out[begun..];
        let relies_on_it =
            |action: &Action| matches!(action, Action::Reply { .. } | Action::RaiseEpoch { .. });
        if let Some(first) = step.iter().position(relies_on_it) {
            step[first..].sort_by_key(|action| !matches!(action, Action::Publish { .. }));
        }
    }

    fn log(&mut self, level: LogLevel, text: impl Into<String>) {
        self.out.push(Action::Log { level, text: text.into() });
    }

    fn next_number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

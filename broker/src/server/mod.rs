//! The shell: turns readiness into events, and actions into system calls.
//!
//! ```text
//!  listeners, connections, pidfds, signals, time
//!            |  epoll
//!            v
//!         Event queue ----> Dispatcher::step ----> Actions
//!            ^                                        |
//!            +--- what an action found out -----------+
//! ```
//!
//! # Invariants
//!
//! 1. One thread; nothing here waits but [`Poller::wait`].
//! 2. A peer that does not take its frames is dropped (clients) or queued up to a bound (daemons).
//! 3. No event reaches the dispatcher for a connection that it closed or that hung up.

mod clients;
mod config;
mod daemons;
mod door;
mod headers;
mod idles;
mod journal;
mod objects;
mod repairs;
mod session_objects;
mod sessions;
mod start;
mod tables;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::name::Instance;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::daemon::DaemonRequest;
use dmce_abi::wire::{Refusal, Reply};
use dmce_broker::dispatcher::{
    Action, ClientConn, Descriptor, Dispatcher, Event, FoundIntents, InspectId, Made, Millis, Now,
    Repair, RequestId,
};
use dmce_config::Config;
use dmce_shm::session::SessionIdentity;
use dmce_shm::table::TableIdentity;
use dmce_sys::fault::{self, FaultError};
use dmce_sys::lock::{LockError, OfdLock};
use dmce_sys::object::{ObjectDir, ObjectError};
use dmce_sys::poll::{Interest, Notice, Poller, Ready, SignalFd};
use dmce_sys::socket::SocketError;
use dmce_sys::{clock, limits, priority, process, random};
use std::os::fd::{AsFd, OwnedFd};
use tracing::{debug, info, warn};

use crate::args::Place;
use clients::Clients;
use daemons::Daemons;
use idles::Idles;
use journal::Journal;
use objects::{Gone, Objects, OpenFailure, Passed};
use sessions::Sessions;

/// Copies of a block that this release keeps.
const COPIES_SERVED: u32 = 3;

/// How often a lock that is waited for is looked at: the kernel has no notice for it.
const LOCK_POLL_MS: u64 = 20;

/// Objects that are looked at before those who wait have their turn.
const OBJECTS_A_TURN: usize = 256;

/// Objects that the dispatcher wants looked at.
#[derive(Debug)]
struct Inspection {
    inspect: InspectId,
    daemon: DaemonId,
    blocks: Vec<BlockId>,
}

/// What a poller's token says, in its top byte; the rest is a number of that kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Source {
    ClientListener = 1,
    DaemonListener = 2,
    Client = 3,
    Daemon = 4,
    Process = 5,
    Signals = 6,
}

impl Source {
    const ALL: [Self; 6] = [
        Self::ClientListener,
        Self::DaemonListener,
        Self::Client,
        Self::Daemon,
        Self::Process,
        Self::Signals,
    ];

    const fn token(self, number: u64) -> u64 {
        (self as u64) << 56 | number
    }

    fn of(token: u64) -> (Self, u64) {
        let kind = token >> 56;
        let source = Self::ALL.into_iter().find(|source| *source as u64 == kind);
        (source.expect("only tokens of ours are polled"), token & ((1 << 56) - 1))
    }
}

/// What cannot be helped: the broker ends with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// Another broker serves the instance.
    #[error("instance {instance} is served by another broker")]
    InUse {
        /// The instance.
        instance: Instance,
    },
    /// The instance asks by default for what no request would get.
    #[error("the instance asks for {asked} copies of a block, this release keeps {COPIES_SERVED}")]
    Copies {
        /// As configured.
        asked: u32,
    },
    /// Somebody else's object lies where the broker's lock belongs.
    #[error("the broker's lock: {reason}")]
    Foreign {
        /// What it is.
        reason: String,
    },
    /// The objects' folder.
    #[error("the folder of the objects")]
    Objects(#[from] ObjectError),
    /// A socket.
    #[error("the sockets")]
    Socket(#[from] SocketError),
    /// A lock.
    #[error("the broker's lock")]
    Lock(#[source] LockError),
    /// The group of the client's socket.
    #[error("there is no group {name}")]
    NoGroup {
        /// As configured.
        name: String,
    },
    /// The handler of SIGBUS.
    #[error("what clients may cut cannot be touched")]
    Fault(#[from] FaultError),
    /// The process.
    #[error("what the kernel says of this process")]
    Process(#[from] process::ProcessError),
    /// The kernel refused something that a broker cannot do without.
    #[error("the kernel")]
    Kernel(#[from] io::Error),
}

/// The running broker.
pub struct Server {
    dispatcher: Dispatcher,
    poller: Poller,
    signals: SignalFd,
    clients: Clients,
    daemons: Daemons,
    sessions: Sessions,
    objects: Objects,
    events: VecDeque<Event>,
    journal: Journal,
    awaited_locks: BTreeSet<DaemonId>,
    inspections: VecDeque<Inspection>,
    idles: Idles,
    /// Told when others have had their turn.
    later: Vec<Event>,
    wake_at: Option<Millis>,
    /// Held for the life of the process: it makes this broker the only one of its instance.
    _lock: OfdLock,
}

impl Server {
    /// Takes the instance, reads what an earlier broker left, and opens the sockets.
    ///
    /// # Errors
    ///
    /// [`ServerError`], above all [`ServerError::InUse`].
    pub fn start(place: &Place, config: &Config) -> Result<Self, ServerError> {
        let signals = SignalFd::new()?;
        // Words of lock tables are changed in mappings, and clients can cut those objects.
        fault::install()?;
        let open_files = limits::raise_open_files()?;
        let copies = config.policy.iter().filter_map(|policy| policy.copies);
        let asked = copies.fold(config.instance.copies, u32::max);
        if asked > COPIES_SERVED {
            return Err(ServerError::Copies { asked });
        }
        let folder = ObjectDir::open(&config.instance.objects)?;
        let objects = Objects::new(folder, place.instance.clone(), config.instance.layout);
        let lock = objects.lock()?;
        let mut sessions = Sessions::new(process::boot_id()?);
        let started = start::read(&objects, &mut sessions)?;

        let poller = Poller::new()?;
        poller.add(signals.as_fd(), Source::Signals.token(0), Interest::READ)?;
        let clients = Clients::listen(&poller, &place.dir, &config.broker)?;
        let daemons = Daemons::listen(&poller, &place.dir)?;
        let settings = config::dispatcher(&place.instance, config, open_files);
        let dispatcher = Dispatcher::new(settings, random::random_u128()?);
        info!(
            instance = %place.instance,
            socket = %place.dir.join("broker.sock").display(),
            sessions = started.sessions.len(),
            "the broker serves"
        );
        Ok(Self {
            dispatcher,
            poller,
            signals,
            clients,
            daemons,
            sessions,
            objects,
            events: VecDeque::from([Event::Started(started)]),
            journal: Journal::new(now().millis),
            awaited_locks: BTreeSet::new(),
            inspections: VecDeque::new(),
            idles: Idles::default(),
            later: Vec::new(),
            wake_at: None,
            _lock: lock,
        })
    }

    /// Serves until a signal asks it to end. Objects and sessions stay: the next broker finds them.
    ///
    /// # Errors
    ///
    /// [`ServerError`] if the kernel refuses to let it wait.
    pub fn run(&mut self) -> Result<(), ServerError> {
        if let Err(error) = priority::take_short_turns() {
            warn!(%error, "where processors are busy, answers take longer");
        }
        let mut ready = Vec::new();
        let mut actions = Vec::new();
        loop {
            self.drain(&mut actions);
            let timeout = self.timeout();
            self.poller.wait(timeout, &mut ready)?;
            for one in ready.drain(..) {
                if self.take_in(one)?.is_break() {
                    info!("the broker ends; what it served stays in place");
                    self.sessions.leave(&self.objects);
                    self.clients.door().unlink();
                    self.daemons.door().unlink();
                    return Ok(());
                }
            }
            self.clients.accept(&self.poller, &mut self.events);
            self.clients.receive(&self.poller, &mut self.events);
            self.look_at_locks();
            self.look_at_objects();
            self.look_at_clock();
            self.events.extend(self.later.drain(..));
        }
    }

    /// Looks at a few of the objects that are to be looked at: those of a daemon that went away may
    /// be very many, and nobody is to wait for them.
    fn look_at_objects(&mut self) {
        let Some(Inspection { inspect, daemon, mut blocks }) = self.inspections.pop_front() else {
            return;
        };
        let now = blocks.split_off(blocks.len().saturating_sub(OBJECTS_A_TURN));
        let found = self.objects.inspect(daemon, &now);
        self.events.push_back(Event::Inspected { inspect, daemon, found });
        if !blocks.is_empty() {
            self.inspections.push_back(Inspection { inspect, daemon, blocks });
        }
    }

    /// Does what is due.
    fn look_at_clock(&mut self) {
        let now = now().millis;
        self.clients.door().wake(&self.poller, now);
        self.daemons.door().wake(&self.poller, now);
        self.daemons.tend(&self.poller, now, &mut self.events);
        self.sessions.tend(&self.objects, now, &mut self.events);
        self.objects.tend(now);
        self.idles.tend(&self.sessions, now, &mut self.events);
        if self.wake_at.is_some_and(|at| at <= now) {
            self.wake_at = None;
            self.events.push_back(Event::Tick);
        }
    }

    /// Steps until no event is left.
    fn drain(&mut self, actions: &mut Vec<Action>) {
        while let Some(event) = self.events.pop_front() {
            if self.is_stale(&event) {
                continue;
            }
            self.dispatcher.step(now(), event, actions);
            for action in actions.drain(..) {
                self.act(action);
            }
        }
        self.objects.forget_made();
    }

    fn is_stale(&self, event: &Event) -> bool {
        match event {
            Event::Request { conn, .. } | Event::Hostile { conn, .. } => {
                !self.clients.is_open(*conn)
            }
            Event::DaemonMessage { conn, .. } | Event::DaemonHostile { conn, .. } => {
                !self.daemons.is_open(*conn)
            }
            _ => false,
        }
    }

    fn timeout(&mut self) -> Option<Duration> {
        let now = now().millis;
        let lock = (!self.awaited_locks.is_empty()).then_some(now.after(LOCK_POLL_MS));
        let doors = [self.clients.door().rests_until(), self.daemons.door().rests_until()];
        let has_work = !self.inspections.is_empty() || !self.later.is_empty();
        let is_waited_for = has_work || self.clients.is_waited_for();
        let at_once = is_waited_for.then_some(now);
        let shell = [lock, at_once, self.sessions.due_at(), self.daemons.due_at()];
        let due = shell
            .into_iter()
            .chain([self.wake_at, self.objects.due_at(), self.idles.due_at()])
            .chain(doors);
        due.flatten().min().map(|at| Duration::from_millis(at.0.saturating_sub(now.0)))
    }

    /// Turns readiness into events.
    fn take_in(&mut self, ready: Ready) -> Result<std::ops::ControlFlow<()>, ServerError> {
        let (source, number) = Source::of(ready.token);
        match source {
            Source::ClientListener => self.clients.knock(),
            Source::DaemonListener => self.daemons.accept(&self.poller, &mut self.events),
            Source::Client => self.clients.ready(&self.poller, number, &mut self.events),
            Source::Daemon => self.daemons.ready(&self.poller, ready, number, &mut self.events),
            Source::Process => self.sessions.died(&self.poller, number, &mut self.events),
            Source::Signals => {
                while let Some(notice) = self.signals.next()? {
                    if matches!(notice, Notice::Terminate | Notice::Interrupt) {
                        return Ok(std::ops::ControlFlow::Break(()));
                    }
                }
            }
        }
        Ok(std::ops::ControlFlow::Continue(()))
    }

    fn look_at_locks(&mut self) {
        let free: Vec<DaemonId> = self
            .awaited_locks
            .iter()
            .copied()
            .filter(|daemon| !self.objects.is_served(*daemon))
            .collect();
        for daemon in free {
            self.awaited_locks.remove(&daemon);
            let headers = self.objects.read_headers(daemon);
            self.events.push_back(Event::LockFree { daemon, headers });
        }
    }

    /// Executes one action.
    fn act(&mut self, action: Action) {
        match action {
            Action::Reply { conn, request_id, reply, descriptors, again } => {
                self.reply((conn, request_id), reply, (&descriptors, again));
            }
            Action::CloseClient { conn, reason } => self.clients.close(&self.poller, conn, &reason),
            Action::HoldClient { conn } => self.clients.hold(&self.poller, conn),
            Action::ReadClient { conn } => self.clients.read(&self.poller, conn),
            Action::ToDaemon { conn, request_id, request } => {
                if !self.daemons.send(&self.poller, conn, request_id, &request) {
                    self.events.push_back(Event::DaemonHungUp { conn });
                }
            }
            Action::CloseDaemon { conn, reason } => self.daemons.close(conn, &reason),
            Action::AwaitLock { daemon } => {
                self.awaited_locks.insert(daemon);
            }
            Action::ForgetLock { daemon } => _ = self.awaited_locks.remove(&daemon),
            Action::ReadHeaders { daemon } => {
                let headers = self.objects.read_headers(daemon);
                self.events.push_back(Event::HeadersRead { daemon, headers });
            }
            Action::MakeBlock { daemon, conn, request_id, lent, description, committed } => {
                // Its hang-up is on its way, if it is not there any more.
                if !self.daemons.is_open(conn) {
                    return;
                }
                let made = self.objects.make_block(daemon, lent, *description, committed);
                if made != Made::Whole || self.daemons.lives(conn) {
                    self.events.push_back(Event::BlockMade { daemon, request_id, made });
                }
            }
            Action::RaiseEpoch { raise, block, committed, headers } => {
                let rewrite = |(daemon, description)| {
                    (daemon, self.objects.rewrite_header(daemon, description, committed))
                };
                let headers = headers.into_iter().map(rewrite).collect();
                self.events.push_back(Event::EpochRaised { raise, block, headers });
            }
            // One is looked at now: who just met it may ask again before anything else is done.
            Action::Inspect { inspect, daemon, blocks } if blocks.len() == 1 => {
                let found = self.objects.inspect(daemon, &blocks);
                self.events.push_back(Event::Inspected { inspect, daemon, found });
            }
            Action::Inspect { inspect, daemon, blocks } => {
                self.inspections.push_back(Inspection { inspect, daemon, blocks });
            }
            Action::RemoveHeader { daemon, block, guid } => {
                self.objects.remove_header(daemon, (block, guid));
            }
            Action::MakeLocks { session, block, guid, epoch, bytes, lost } => {
                let identity = TableIdentity { block, guid, epoch };
                let undo = session.map_or(Ok(()), |session| self.sessions.commit_undo(session));
                let made = match undo {
                    Ok(()) => tables::make(&self.objects, identity, bytes, &lost),
                    Err(refusal) => Made::Unusable { reason: refusal.text },
                };
                self.events.push_back(Event::LocksMade { block, epoch, made });
            }
            Action::GrowLocks { request_id, block, guid, bytes } => {
                let made = tables::grow(&self.objects, (block, guid), bytes);
                self.events.push_back(Event::LocksGrown { request_id, made });
            }
            Action::RemoveLocks { block } => tables::remove(&self.objects, block),
            Action::InspectLocks { block } => match tables::look(&self.objects, block) {
                Ok(found) => self.events.push_back(Event::LocksInspected { block, found }),
                Err(failure) => warn!(%block, "its lock table is not looked at: {failure}"),
            },
            Action::AwaitIdle { session, block, epoch } => {
                let then = (now().millis, &mut self.events);
                self.idles.add(&self.sessions, (session, block, epoch), then);
            }
            Action::RememberDrain { daemon, is_draining } => {
                self.objects.remember_drain(daemon, is_draining);
            }
            Action::FindPointers { session, block, epoch, addrs } => {
                self.events.extend(self.sessions.find_pointers(session, (block, epoch), &addrs));
            }
            Action::Log { level, text } => self.journal.log(now().millis, level, &text),
            Action::WakeAt(at) => self.wake_at = Some(at),
            other => self.act_on_session(other),
        }
    }

    /// Answers a request, with all that travels with the answer; or has it served again.
    fn reply(
        &mut self,
        (conn, request_id): (ClientConn, RequestId),
        reply: Reply<ClientReply>,
        (descriptors, again): (&[Descriptor], Option<Box<ClientRequest>>),
    ) {
        let opened = match descriptors {
            [link @ Descriptor::Link { .. }] => self.link(*link).map(|fd| vec![Passed::Opened(fd)]),
            _ => self.objects.open_all(&self.sessions, descriptors),
        };
        let (reply, fds) = match (opened, again) {
            (Ok(fds), _) => (reply, fds),
            (Err(OpenFailure { gone: Some(gone), .. }), Some(request)) => {
                let again = Event::NotOpened { conn, request_id, request };
                return self.events.extend([gone.event(), again]);
            }
            (Err(OpenFailure { refusal, gone }), _) => {
                self.events.extend(gone.map(Gone::event));
                (Err(refusal), Vec::new())
            }
        };
        if !self.clients.reply(&self.poller, conn, request_id, &reply, &fds) {
            self.events.push_back(Event::HungUp { conn });
        }
    }

    /// Connects a client with a daemon; the client's end.
    fn link(&mut self, descriptor: Descriptor) -> Result<OwnedFd, OpenFailure> {
        let Descriptor::Link { conn, link, session, uid, rate, grant } = descriptor else {
            unreachable!("only links are made here");
        };
        let request = DaemonRequest::Link { link, session, uid, rate, grant };
        self.daemons.link(&self.poller, conn, &request).map_err(|error| {
            if matches!(error, SocketError::Closed) {
                self.events.push_back(Event::DaemonHungUp { conn });
            }
            let text = format!("no link to the daemon of block {}: {error}", grant.block);
            OpenFailure { refusal: Refusal::new(Status::Busy, text), gone: None }
        })
    }

    /// Executes an action that concerns the objects or the process of a session.
    fn act_on_session(&mut self, action: Action) {
        match action {
            Action::PrepareSession { session, guid } => {
                let identity = SessionIdentity { session, guid };
                let result = self.sessions.prepare(&self.objects, identity);
                self.events.push_back(Event::SessionPrepared { session, result });
            }
            Action::CreateSession { record } => {
                let session = record.session;
                let result = self.sessions.create(&self.objects, &record).and_then(|()| {
                    // A daemon writes what is left of several copies as well.
                    if record.is_of_daemon() { self.sessions.commit_undo(session) } else { Ok(()) }
                });
                self.events.push_back(Event::SessionCreated { session, result });
            }
            Action::WatchProcess { session, pid, lived_at, conn } => {
                let told = conn.map_or(Ok(None), |conn| self.clients.pidfd(conn));
                let pidfd = match told {
                    Ok(Some(pidfd)) => Some(pidfd),
                    Ok(None) => sessions::find(pid, lived_at),
                    Err(error) => {
                        debug!(pid, "no process to watch: {error}");
                        None
                    }
                };
                let is_watched =
                    pidfd.is_some_and(|fd| self.sessions.watch(&self.poller, session, fd));
                if !is_watched {
                    self.events.push_back(Event::Died { session });
                }
            }
            Action::EndSession { session } => {
                self.sessions.end(&self.objects, session);
            }
            Action::StoreGrant { session, grant } => self.sessions.store_grant(session, grant),
            Action::RevokeGrant { session, place } => self.sessions.revoke_grant(session, place),
            Action::ReadIntents { session, pid, lived_at } => {
                let found = self.sessions.intents(session, (pid, lived_at));
                let found = found.unwrap_or_else(|| Ok(FoundIntents::none()));
                let found = found.map_err(|error| error.to_string());
                self.events.push_back(Event::IntentsRead { session, found });
            }
            Action::Repair(repair) => {
                let repaired = repairs::repair(&self.objects, &self.sessions, &repair);
                let Repair { session, slot, .. } = repair;
                self.later.push(Event::Repaired { session, slot, repaired });
            }
            Action::ClearIntent { session, slot } => self.sessions.clear_intent(session, slot),
            Action::FreePin { session, pin } => self.sessions.free_pin(session, pin),
            Action::Publish { session, generation } => self.sessions.publish(session, generation),
            Action::Ring { session } => self.sessions.ring(session),
            other => unreachable!("{other:?} is executed by act"),
        }
    }
}

fn now() -> Now {
    Now { millis: Millis(clock::monotonic_ms()), unix_s: clock::realtime_s() }
}

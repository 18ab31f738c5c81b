//! The supervisor of a private instance: starts the servers, and again each daemon that dies.
//!
//! It runs in the background, in a session of its own, and is the parent of the servers that it
//! starts. Its standard input is a socket to the `up` that started it:
//!
//! ```text
//!  up                                supervisor
//!   |  starts it                         | starts the broker and the missing daemons
//!   |  asks the broker until all serve   |
//!   |-------------- "keep\n" ----------->|
//!   |<------------- "kept\n" ------------|  from here on a daemon that dies is started again
//!
//!   |<------------- one line ------------|  instead: a server ended, or could not be started
//!   |-------------- hang-up ------------>|  instead: `up` gave up, or died
//! ```
//!
//! # Invariants
//!
//! 1. Until it has said "kept", any failure ends all servers that it has started, and none else.
//! 2. It ends when the broker has ended, and leaves the daemons alone: only the next `up` starts a
//!    broker. Before any daemon is started again, the broker is looked at.
//! 3. It waits on descriptors, never on a clock alone, and reaps each of its children.
//! 4. It ends between two steps when it is asked to (SIGTERM), so no server is started by half.
//! 5. No file or folder of the directory stays open here but its log.

mod backoff;
mod servers;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use dmce_sys::poll::{Interest, Notice, Poller, Ready, SignalFd};
use dmce_sys::process::{ProcessError, start_session};

use crate::args::Supervise;
use crate::error::line_of;
use crate::instance::{Home, HomeError, name_of};
use crate::objects::{Objects, ObjectsError};
use crate::processes::{self, Process, ProcessesError, Role};

use backoff::Backoff;
use servers::{Running, Servers, StartError};

pub use servers::last_line;

/// What `up` says when all serve.
pub const KEEP: &[u8] = b"keep\n";
/// What the supervisor answers.
pub const KEPT: &[u8] = b"kept\n";

const SIGNALS: u64 = 0;
const CHANNEL: u64 = 1;
const BROKER: u64 = 2;
const DAEMONS: u64 = 3;

/// Why the supervisor ended before its time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum SuperviseError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Processes(#[from] ProcessesError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Session(#[from] ProcessError),
    #[error("{} is served by a process that cannot be seen from here", name_of(*role))]
    Unseen { role: Role },
    #[error("{} ended at its start ({status}){}", name_of(*role), quoted(line.as_deref()))]
    Early { role: Role, status: String, line: Option<String> },
    #[error("the start was given up")]
    GivenUp,
    #[error("waiting failed")]
    Wait(#[from] io::Error),
}

/// Starts the servers of an instance and watches over them until the broker ends.
///
/// # Errors
///
/// [`SuperviseError`], which `up` has been told in one line.
pub fn run(args: Supervise) -> Result<(), SuperviseError> {
    start_session()?;
    let signals = SignalFd::new()?;
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    let mut channel = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    match Supervisor::start(args, &signals, &mut channel) {
        Ok(mut supervisor) => {
            supervisor.poller.remove(channel.as_fd())?;
            drop(channel);
            supervisor.watch(&signals)
        }
        Err(error) => {
            // If `up` is gone, the log has the line.
            let _ = writeln!(channel, "{}", line_of(&error));
            Err(error)
        }
    }
}

struct Supervisor {
    servers: Servers,
    objects: Objects,
    poller: Poller,
    broker: Option<Running>,
    daemons: BTreeMap<u32, Daemon>,
}

/// A daemon that is to run.
#[derive(Default)]
struct Daemon {
    running: Option<Running>,
    /// When it is to be started again.
    due: Option<Instant>,
    backoff: Backoff,
}

/// Something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A signal asked the supervisor to end.
    Asked,
    /// `up` said something, or is gone.
    Spoken,
    BrokerEnded,
    DaemonEnded(u32),
}

impl Supervisor {
    /// Starts what does not run yet, and returns when `up` is content.
    fn start(
        args: Supervise,
        signals: &SignalFd,
        channel: &mut UnixStream,
    ) -> Result<Self, SuperviseError> {
        let home = Home::find(&args.dir)?;
        let objects = Objects::open(&args.objects, args.instance.clone())?;
        let poller = Poller::new()?;
        poller.add(signals.as_fd(), SIGNALS, Interest::READ)?;
        poller.add(channel.as_fd(), CHANNEL, Interest::READ)?;
        let Supervise { instance, objects: folder, plan, .. } = args;
        let servers = Servers { home, instance, objects: folder, plan };
        let mut supervisor =
            Self { servers, objects, poller, broker: None, daemons: BTreeMap::new() };
        let started = supervisor.start_all().and_then(|()| supervisor.await_word(signals, channel));
        match started {
            Ok(()) => Ok(supervisor),
            Err(error) => {
                supervisor.stop_children();
                Err(error)
            }
        }
    }

    fn start_all(&mut self) -> Result<(), SuperviseError> {
        let broker = self.servers.start(Role::Broker)?;
        tracing::info!("the broker runs as process {}", broker.process.pid);
        let broker = self.broker.insert(broker);
        self.poller.add(broker.process.pidfd(), BROKER, Interest::READ)?;
        let alive = self.objects.served_daemons()?;
        for id in (1..=self.servers.plan.daemons()).chain(alive) {
            if !self.daemons.contains_key(&id) {
                self.start_daemon(id)?;
            }
        }
        Ok(())
    }

    /// Starts a daemon, or takes up the one that runs.
    fn start_daemon(&mut self, id: u32) -> Result<(), SuperviseError> {
        let role = Role::Daemon(id);
        let running = if self.objects.is_served(id)? {
            let found = Process::find(self.servers.home.path())?;
            let process = found.into_iter().find(|process| process.role == role);
            self.servers.adopt(process.ok_or(SuperviseError::Unseen { role })?)?
        } else {
            self.servers.start(role)?
        };
        tracing::info!("daemon {id} runs as process {}", running.process.pid);
        // Known first: whatever fails from here on, it is stopped with the others.
        let running = self.daemons.entry(id).or_default().running.insert(running);
        let token = DAEMONS + u64::from(id);
        Ok(self.poller.add(running.process.pidfd(), token, Interest::READ)?)
    }

    /// Waits until `up` says that all serve. Whoever ends before that makes the start fail.
    fn await_word(
        &mut self,
        signals: &SignalFd,
        channel: &mut UnixStream,
    ) -> Result<(), SuperviseError> {
        loop {
            let events = self.wait(signals, None)?;
            // Bad news first: a word that came with it was said without knowing it.
            let bad = events.iter().find(|event| **event != Event::Spoken);
            match bad.or(events.first()) {
                None => {}
                Some(Event::Asked) => return Err(SuperviseError::GivenUp),
                Some(Event::BrokerEnded) => return Err(self.early_end(Role::Broker)),
                Some(Event::DaemonEnded(id)) => return Err(self.early_end(Role::Daemon(*id))),
                Some(Event::Spoken) => {
                    let mut word = [0; KEEP.len()];
                    let said = channel.read_exact(&mut word);
                    if said.is_err() || word != KEEP {
                        return Err(SuperviseError::GivenUp);
                    }
                    // If `up` has died since it asked, nobody was told of the instance.
                    return channel.write_all(KEPT).map_err(|_| SuperviseError::GivenUp);
                }
            }
        }
    }

    fn early_end(&mut self, role: Role) -> SuperviseError {
        let running = match role {
            Role::Daemon(id) => {
                self.daemons.get_mut(&id).and_then(|daemon| daemon.running.as_mut())
            }
            _ => self.broker.as_mut(),
        };
        let running = running.expect("only what runs is waited for");
        let status = running.reap();
        SuperviseError::Early { role, status, line: running.last_line(&self.servers.home) }
    }

    /// Watches over the daemons until the broker ends or a signal asks for the end.
    fn watch(&mut self, signals: &SignalFd) -> Result<(), SuperviseError> {
        loop {
            let due = self.daemons.values().filter_map(|daemon| daemon.due).min();
            let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
            let events = self.wait(signals, timeout)?;
            if events.contains(&Event::BrokerEnded) {
                let status = self.broker.as_mut().map(Running::reap).unwrap_or_default();
                tracing::info!(
                    "the broker has ended ({status}); the next 'dmce up' starts another"
                );
                self.reap_ended(&events);
                return Ok(());
            }
            if events.contains(&Event::Asked) {
                tracing::info!("asked to end");
                return Ok(());
            }
            self.reap_ended(&events);
            self.restart_due();
        }
    }

    fn reap_ended(&mut self, events: &[Event]) {
        for event in events {
            if let Event::DaemonEnded(id) = *event {
                self.reap_daemon(id);
            }
        }
    }

    fn reap_daemon(&mut self, id: u32) {
        let restart = !self.servers.plan.no_restart;
        let daemon = self.daemons.get_mut(&id).expect("only daemons that are known are watched");
        let Some(mut running) = daemon.running.take() else { return };
        let status = running.reap();
        tracing::warn!("daemon {id}, process {}, has ended ({status})", running.process.pid);
        if restart {
            let delay = daemon.backoff.after(running.since.elapsed());
            daemon.due = Some(Instant::now() + delay);
        } else if let Err(error) = self.servers.home.remove_pid(Role::Daemon(id)) {
            tracing::warn!("{}", line_of(&error));
        }
    }

    fn restart_due(&mut self) {
        let now = Instant::now();
        let is_due = |daemon: &Daemon| daemon.due.is_some_and(|due| due <= now);
        let due: Vec<_> =
            self.daemons.iter().filter(|(_, daemon)| is_due(daemon)).map(|(id, _)| *id).collect();
        for id in due {
            let started = self.start_daemon(id);
            let daemon = self.daemons.entry(id).or_default();
            daemon.due = None;
            if let Err(error) = started {
                tracing::error!("daemon {id} was not started: {}", line_of(&error));
                daemon.due = Some(now + daemon.backoff.after(Duration::ZERO));
            }
        }
    }

    fn wait(
        &mut self,
        signals: &SignalFd,
        timeout: Option<Duration>,
    ) -> Result<Vec<Event>, SuperviseError> {
        let mut ready = Vec::new();
        self.poller.wait(timeout, &mut ready)?;
        let mut events = Vec::new();
        for Ready { token, .. } in ready {
            match token {
                SIGNALS => {
                    while let Some(notice) = signals.next()? {
                        if matches!(notice, Notice::Terminate | Notice::Interrupt) {
                            events.push(Event::Asked);
                        }
                    }
                }
                CHANNEL => events.push(Event::Spoken),
                BROKER => events.push(Event::BrokerEnded),
                daemon => events.extend(self.daemon_ended(daemon)),
            }
        }
        Ok(events)
    }

    fn daemon_ended(&self, token: u64) -> Option<Event> {
        let id = u32::try_from(token - DAEMONS).ok()?;
        let process = &self.daemons.get(&id)?.running.as_ref()?.process;
        // It is readable for ever now, and will be reaped once.
        self.poller.remove(process.pidfd()).ok()?;
        Some(Event::DaemonEnded(id))
    }

    /// Ends the servers that were started here, and no others.
    fn stop_children(&mut self) {
        let daemons = self.daemons.values_mut().filter_map(|daemon| daemon.running.as_mut());
        let mut children: Vec<_> =
            daemons.chain(self.broker.as_mut()).filter(|running| running.is_child()).collect();
        if let Err(error) = processes::end(children.iter().map(|running| &running.process)) {
            tracing::error!("{}", line_of(&error));
            return;
        }
        for running in &mut children {
            running.reap();
            if let Err(error) = self.servers.home.remove_pid(running.process.role) {
                tracing::warn!("{}", line_of(&error));
            }
        }
    }
}

/// The last line of a log as the end of an error.
fn quoted(line: Option<&str>) -> String {
    line.map_or(String::new(), |line| format!(": {line}"))
}

//! `dmce up`: a private instance in the background.
//!
//! # Invariants
//!
//! 1. A directory whose instance has a broker is refused, and so is one where another `up` or
//!    `down` is at work.
//! 2. It succeeds when every daemon that was asked for serves, or leaves nothing running that it
//!    started: the supervisor ends all when this process gives up or dies ([`crate::supervise`]).
//! 3. Memory of an earlier run is found again: the name of the objects comes from the
//!    configuration, else from what the last `up` wrote down, else from the path of the directory.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dmce_abi::name::{Instance, NameError};
use dmce_abi::wire::admin::DaemonState;
use dmce_config::{Config, ConfigError};

use crate::args::{Plan, Up};
use crate::broker::{Broker, BrokerError};
use crate::error::line_of;
use crate::instance::{Home, HomeError, Note};
use crate::objects::{Objects, ObjectsError};
use crate::processes::{Process, ProcessesError, Role, SUPERVISE};
use crate::supervise::{KEEP, KEPT, last_line};

/// How long the servers may take until they serve.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait before the broker is asked again whether all serve.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// How long one such question may take.
const ASK_LIMIT_MS: u32 = 2_000;

/// Why no instance was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum UpError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Objects(#[from] ObjectsError),
    #[error(transparent)]
    Processes(#[from] ProcessesError),
    #[error("{} is in use: instance {instance} is served by {}", dir.display(), by(*pid))]
    InUse { dir: PathBuf, instance: Instance, pid: Option<u32> },
    #[error("{} still has memory of instance {found}: 'dmce down --dir {0}' before {wanted} starts",
            dir.display())]
    OtherInstance { dir: PathBuf, found: String, wanted: Instance },
    #[error("--daemons {daemons} is more than limits.daemons, which is {limit}")]
    TooMany { daemons: u32, limit: u32 },
    #[error("the supervisor cannot be started")]
    Supervisor(#[source] io::Error),
    #[error("{line}")]
    Failed { line: String },
    #[error("not started within {} s: {waiting}", START_LIMIT.as_secs())]
    Late { waiting: String },
}

/// Starts the instance, and returns its socket when it serves.
///
/// # Errors
///
/// [`UpError`]; what was started has been stopped then.
pub fn run(args: &Up) -> Result<PathBuf, UpError> {
    let home = Home::create(&args.dir)?;
    let _turn = home.try_turn()?;
    let mut plan = args.plan.clone();
    let note = home.note()?;
    plan.config = match (plan.config, &note) {
        (Some(config), _) => Some(absolute(config)?),
        (None, note) => note.as_ref().and_then(|note| note.config.clone()),
    };
    let config = Config::load(plan.config.as_deref())?;
    if plan.daemons > config.limits.daemons {
        let (daemons, limit) = (plan.daemons, config.limits.daemons);
        return Err(UpError::TooMany { daemons, limit });
    }
    let instance = name_of_instance(&home, &config, note.as_ref())?;
    let objects = Objects::open(&config.instance.objects, instance)?;
    refuse_other_instance(&home, note.as_ref(), &objects)?;
    refuse_if_served(&home, &objects)?;
    home.write_note(&Note {
        instance: objects.instance().to_string(),
        objects: objects.dir().path().to_owned(),
        config: plan.config.clone(),
    })?;
    let (mut supervisor, stream) = start_supervisor(&home, &objects, &plan)?;
    let mut channel = Channel::new(stream);
    let kept = wait_until_serving(&home, plan.daemons, &mut channel)
        .and_then(|()| keep(&home, &mut channel));
    if kept.is_err() {
        // The hang-up makes it stop what it has started; it ends when that is done.
        drop(channel);
        supervisor.wait().map_err(UpError::Supervisor)?;
    }
    kept.map(|()| home.socket())
}

fn name_of_instance(
    home: &Home,
    config: &Config,
    note: Option<&Note>,
) -> Result<Instance, UpError> {
    match (&config.instance.name, note) {
        (Some(name), _) => Ok(name.clone()),
        (None, Some(note)) => Ok(Instance::new(&note.instance)?),
        (None, None) => Ok(home.derived_name()),
    }
}

/// Memory under another name would be forgotten, and never removed.
fn refuse_other_instance(
    home: &Home,
    note: Option<&Note>,
    objects: &Objects,
) -> Result<(), UpError> {
    let Some(note) = note else { return Ok(()) };
    let same_folder = note.objects == objects.dir().path();
    if same_folder && note.instance == objects.instance().as_str() {
        return Ok(());
    }
    let earlier = Objects::open(&note.objects, Instance::new(&note.instance)?)?;
    if earlier.names()?.is_empty() {
        return Ok(());
    }
    Err(UpError::OtherInstance {
        dir: home.path().to_owned(),
        found: note.instance.clone(),
        wanted: objects.instance().clone(),
    })
}

fn refuse_if_served(home: &Home, objects: &Objects) -> Result<(), UpError> {
    if !objects.has_broker()? {
        return Ok(());
    }
    let here = Process::find(home.path())?.into_iter().find(|found| found.role == Role::Broker);
    let broker = match here {
        Some(broker) => Some(broker),
        None => Process::find_broker(objects.instance().as_str())?,
    };
    Err(UpError::InUse {
        dir: home.path().to_owned(),
        instance: objects.instance().clone(),
        pid: broker.map(|broker| broker.pid),
    })
}

/// Starts the supervisor with one end of a socket as its standard input.
fn start_supervisor(
    home: &Home,
    objects: &Objects,
    plan: &Plan,
) -> Result<(Child, UnixStream), UpError> {
    let failed = UpError::Supervisor;
    let (ours, theirs) = UnixStream::pair().map_err(failed)?;
    let log = home.open_log(Role::Supervisor)?;
    let program = std::env::current_exe().map_err(failed)?;
    let child = Command::new(program)
        .arg(SUPERVISE)
        .arg("--dir")
        .arg(home.path())
        .args(["--instance", objects.instance().as_str()])
        .arg("--objects")
        .arg(objects.dir().path())
        .args(arguments_of(plan))
        // So that it keeps no file system busy.
        .current_dir("/")
        .stdin(OwnedFd::from(theirs))
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(Stdio::from(log))
        .spawn()
        .map_err(failed)?;
    Ok((child, ours))
}

/// A plan as it stands on a command line.
fn arguments_of(plan: &Plan) -> Vec<OsString> {
    let Plan { daemons, capacity, copies, layout, config, no_restart } = plan;
    let mut arguments: Vec<OsString> = vec!["--daemons".into(), daemons.to_string().into()];
    let optional = [
        ("--capacity", capacity.map(|bytes| bytes.exact().to_string().into())),
        ("--copies", copies.map(|copies| copies.to_string().into())),
        ("--layout", layout.map(|layout| layout.to_string().into())),
        ("--config", config.as_ref().map(|path| path.clone().into_os_string())),
    ];
    for (option, value) in optional {
        arguments.extend(value.map(|value| [option.into(), value]).into_iter().flatten());
    }
    if *no_restart {
        arguments.push("--no-restart".into());
    }
    arguments
}

/// Waits until all daemons serve. The pause between two questions is a wait for bad news.
fn wait_until_serving(home: &Home, daemons: u32, channel: &mut Channel) -> Result<(), UpError> {
    let deadline = Instant::now() + START_LIMIT;
    let mut broker = None;
    loop {
        let waiting = match missing(&mut broker, &home.socket(), daemons) {
            Ok(missing) if missing.is_empty() => return Ok(()),
            Ok(missing) => Waiting::Daemons(missing),
            Err(error) => {
                broker = None;
                Waiting::Broker(error)
            }
        };
        if Instant::now() >= deadline {
            return Err(UpError::Late { waiting: waiting.line(home) });
        }
        if let Some(line) = channel.line_within(ASK_EVERY)? {
            return Err(failure(home, line));
        }
    }
}

/// What is not there yet.
enum Waiting {
    Broker(BrokerError),
    Daemons(BTreeSet<u32>),
}

impl Waiting {
    fn line(&self, home: &Home) -> String {
        match self {
            Self::Broker(error) => line_of(error),
            Self::Daemons(missing) => {
                let ids: Vec<_> = missing.iter().map(u32::to_string).collect();
                let said =
                    missing.first().and_then(|id| last_line(&home.log(Role::Daemon(*id)), 0));
                let said = said.map_or(String::new(), |line| format!(": {line}"));
                format!("no daemon {} serves{said}", ids.join(", "))
            }
        }
    }
}

/// The daemons that do not serve yet.
fn missing(
    broker: &mut Option<Broker>,
    socket: &Path,
    daemons: u32,
) -> Result<BTreeSet<u32>, BrokerError> {
    let broker = match broker {
        Some(broker) => broker,
        None => broker.insert(Broker::connect(socket)?.with_patience_ms(ASK_LIMIT_MS)),
    };
    let mut missing: BTreeSet<u32> = (1..=daemons).collect();
    for row in broker.daemons()? {
        if row.state == DaemonState::Up {
            missing.remove(&row.daemon);
        }
    }
    Ok(missing)
}

/// Tells the supervisor that all serve; from its answer on they do not depend on this process.
fn keep(home: &Home, channel: &mut Channel) -> Result<(), UpError> {
    // If nobody hears it, the answer says so.
    let _ = channel.stream.get_mut().write_all(KEEP);
    match channel.line_within(START_LIMIT)? {
        Some(line) if line.as_bytes() == KEPT.trim_ascii_end() => Ok(()),
        Some(line) => Err(failure(home, line)),
        None => Err(UpError::Late { waiting: "the supervisor does not answer".to_owned() }),
    }
}

/// What the supervisor said is wrong; if it died without a word, its log may have one.
fn failure(home: &Home, line: String) -> UpError {
    if !line.is_empty() {
        return UpError::Failed { line };
    }
    let log = home.log(Role::Supervisor);
    let said = last_line(&log, 0).unwrap_or_else(|| format!("{} is empty", log.display()));
    UpError::Failed { line: format!("the supervisor has ended: {said}") }
}

/// The socket to the supervisor, read by lines.
#[derive(Debug)]
struct Channel {
    stream: BufReader<UnixStream>,
    begun: Vec<u8>,
}

impl Channel {
    fn new(stream: UnixStream) -> Self {
        Self { stream: BufReader::new(stream), begun: Vec::new() }
    }

    /// The next line, without its end; empty if the supervisor is gone. `None` if the time is up.
    fn line_within(&mut self, limit: Duration) -> Result<Option<String>, UpError> {
        let failed = UpError::Supervisor;
        self.stream.get_ref().set_read_timeout(Some(limit)).map_err(failed)?;
        match self.stream.read_until(b'\n', &mut self.begun) {
            Ok(_) => {
                let line = std::mem::take(&mut self.begun);
                Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
            }
            // What was read of a line stays for the next call.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Some(String::new())),
            Err(error) => Err(failed(error)),
        }
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, UpError> {
    let resolved = std::path::absolute(&path);
    resolved.map_err(|source| ConfigError::Read { path, source }.into())
}

fn by(pid: Option<u32>) -> String {
    pid.map_or("a process that cannot be seen from here".into(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Args, Command};
    use dmce_abi::AddrLayout;
    use dmce_config::Bytes;

    #[test]
    fn a_plan_reaches_the_supervisor_as_it_was_given() {
        let all = Plan {
            daemons: 2,
            capacity: Some(Bytes::mib(1536)),
            copies: Some(2),
            layout: AddrLayout::new(16, 20, 28).ok(),
            config: Some("/etc/a b.toml".into()),
            no_restart: true,
        };
        let least = Plan {
            daemons: 1,
            capacity: None,
            copies: None,
            layout: None,
            config: None,
            no_restart: false,
        };
        for plan in [all, least] {
            let fixed = ["dmce", SUPERVISE, "--dir=/d", "--instance=x", "--objects=/o"];
            let line = fixed.into_iter().map(OsString::from).chain(arguments_of(&plan));
            let Command::Supervise(read) = Args::read(line).unwrap().command else {
                panic!("not the supervisor")
            };
            assert_eq!(read.plan, plan);
        }
    }

    #[test]
    fn the_name_comes_from_the_configuration_then_the_note_then_the_path() {
        let home = Home::find(Path::new("/nowhere/dmce")).unwrap();
        let mut config = Config::default();
        let note = Note { instance: "noted".into(), objects: "/o".into(), config: None };
        let name = |config: &Config, note: Option<&Note>| {
            name_of_instance(&home, config, note).map(|name| name.to_string())
        };
        assert_eq!(name(&config, None).unwrap(), home.derived_name().as_str());
        assert_eq!(name(&config, Some(&note)).unwrap(), "noted");
        config.instance.name = Instance::new("named").ok();
        assert_eq!(name(&config, Some(&note)).unwrap(), "named");
        let damaged = Note { instance: "a.b".into(), ..note };
        assert!(name(&Config::default(), Some(&damaged)).is_err());
    }

    #[test]
    fn a_line_in_pieces_is_one_line_and_a_dead_supervisor_is_an_empty_one() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours);
        let moment = Duration::from_millis(1);
        assert_eq!(channel.line_within(moment).unwrap(), None);
        theirs.write_all(b"no ro").unwrap();
        assert_eq!(channel.line_within(moment).unwrap(), None);
        theirs.write_all(b"om\n").unwrap();
        assert_eq!(channel.line_within(moment).unwrap().as_deref(), Some("no room"));
        drop(theirs);
        assert_eq!(channel.line_within(moment).unwrap().as_deref(), Some(""));
    }
}

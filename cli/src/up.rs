//! `dmce up`: a private instance in the background.
//!
//! # Invariants
//!
//! 1. A directory whose instance has a broker is refused, and so is one where another `up` or
//!    `down` is at work.
//! 2. It succeeds when every daemon that was asked for serves, or leaves nothing running that it
//!    started: the supervisor ends all when this process gives up or dies ([`crate::supervise`]).
//!    It leaves no file or object either, but logs; only if it was killed, what holds no memory.
//! 3. Memory of an earlier run is found again: the name of the objects comes from the
//!    configuration, else from what the last `up` wrote down, else from the path of the directory.
//!    What the last `up` was told and this one was not holds again.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dmce_abi::AddrLayout;
use dmce_abi::name::{Instance, NameError};
use dmce_abi::wire::admin::DaemonState;
use dmce_config::{Config, ConfigError};
use dmce_sys::object::ObjectError;

use crate::args::{Plan, Up};
use crate::before::{Before, Missing, RestoreError};
use crate::broker::{Broker, BrokerError};
use crate::error::line_of;
use crate::instance::{Home, HomeError, Note, Options};
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
    #[error("{} still has memory of instance {found}, which {wanted} would forget; \
             'dmce down --dir {0}' removes it", dir.display())]
    OtherInstance { dir: PathBuf, found: String, wanted: Instance },
    #[error("{} still has memory of layout {found}, which {wanted} cannot use; \
             'dmce down --dir {0}' removes it", dir.display())]
    OtherLayout { dir: PathBuf, found: AddrLayout, wanted: AddrLayout },
    #[error("{why}; and what was begun is left")]
    Left { why: Box<UpError>, source: RestoreError },
    #[error(transparent)]
    Restore(#[from] RestoreError),
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
/// [`UpError`]; the directory and the shared memory are as they were then.
pub fn run(args: &Up) -> Result<PathBuf, UpError> {
    let missing = Missing::of(&args.dir);
    let home = Home::create(&args.dir)?;
    let turn = home.try_turn()?;
    let started = start(&home, &args.plan);
    if started.is_err() {
        turn.undo()?;
        missing.remove();
    }
    started.map(|()| home.socket())
}

fn start(home: &Home, plan: &Plan) -> Result<(), UpError> {
    let note = home.note()?;
    let plan = taking_over(plan.clone(), note.as_ref())?;
    let config = configuration(&plan)?;
    let instance = name_of_instance(home, &config, note.as_ref())?;
    let objects = Objects::open(&config.instance.objects, instance)?;
    refuse_if_served(home, &objects)?;
    refuse_other_layout(home, note.as_ref(), &objects, config.instance.layout)?;
    forget_other_instance(home, note.as_ref(), &objects)?;
    let before = Before::look(home, note, &objects)?;
    let started = start_servers(home, &objects, &plan, config.instance.layout);
    started.map_err(|why| match before.restore(home, &objects) {
        Ok(()) => why,
        Err(source) => UpError::Left { why: Box::new(why), source },
    })
}

fn start_servers(
    home: &Home,
    objects: &Objects,
    plan: &Plan,
    layout: AddrLayout,
) -> Result<(), UpError> {
    let Plan { daemons, capacity, copies, layout: asked, ref config, no_restart: _ } = *plan;
    home.write_note(&Note {
        instance: objects.instance().to_string(),
        objects: objects.dir().path().to_owned(),
        config: config.clone(),
        layout: Some(layout),
        options: Options { daemons, capacity, copies, layout: asked },
    })?;
    let (mut supervisor, stream) = start_supervisor(home, objects, plan)?;
    let mut channel = Channel::new(stream);
    let kept = wait_until_serving(home, plan.daemons(), &mut channel)
        .and_then(|()| keep(home, &mut channel));
    if kept.is_err() {
        // The hang-up makes it stop what it has started; it ends when that is done.
        drop(channel);
        supervisor.wait().map_err(UpError::Supervisor)?;
    }
    kept
}

/// A plan with what the last `up` on the directory was told, where this one was not. A
/// configuration file that is given says what the options of that `up` said; but how many daemons
/// there are is in no file.
fn taking_over(plan: Plan, note: Option<&Note>) -> Result<Plan, UpError> {
    let last = note.map_or(Options::default(), |note| note.options);
    let daemons = plan.daemons.or(last.daemons);
    if let Some(config) = plan.config {
        return Ok(Plan { daemons, config: Some(absolute(config)?), ..plan });
    }
    Ok(Plan {
        daemons,
        capacity: plan.capacity.or(last.capacity),
        copies: plan.copies.or(last.copies),
        layout: plan.layout.or(last.layout),
        config: note.and_then(|note| note.config.clone()),
        no_restart: plan.no_restart,
    })
}

/// The configuration that the servers will have.
fn configuration(plan: &Plan) -> Result<Config, UpError> {
    let mut config = Config::load(plan.config.as_deref())?;
    if let Some(layout) = plan.layout {
        config.set_layout(layout);
    }
    config.instance.copies = plan.copies.unwrap_or(config.instance.copies);
    config.daemon.capacity = plan.capacity.unwrap_or(config.daemon.capacity);
    config.validate()?;
    let (daemons, limit) = (plan.daemons(), config.limits.daemons);
    if daemons > limit {
        return Err(UpError::TooMany { daemons, limit });
    }
    Ok(config)
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

/// Addresses of two layouts never meet.
fn refuse_other_layout(
    home: &Home,
    note: Option<&Note>,
    objects: &Objects,
    wanted: AddrLayout,
) -> Result<(), UpError> {
    match note.and_then(|note| note.layout) {
        Some(found) if found != wanted && objects.has_blocks()? => {
            Err(UpError::OtherLayout { dir: home.path().to_owned(), found, wanted })
        }
        _ => Ok(()),
    }
}

/// Memory under another name would be forgotten, and never removed: it is refused. What holds none
/// is removed.
fn forget_other_instance(
    home: &Home,
    note: Option<&Note>,
    objects: &Objects,
) -> Result<(), UpError> {
    let Some(note) = note else { return Ok(()) };
    let same_folder = note.objects == objects.dir().path();
    if same_folder && note.instance == objects.instance().as_str() {
        return Ok(());
    }
    let earlier = match Objects::open(&note.objects, Instance::new(&note.instance)?) {
        // A tmpfs that is not mounted any more holds nothing.
        Err(ObjectsError::Object(ObjectError::NotFound { .. })) => return Ok(()),
        opened => opened?,
    };
    if !earlier.has_blocks()? {
        return Ok(earlier.remove()?);
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
    let mut arguments: Vec<OsString> = Vec::new();
    let optional = [
        ("--daemons", daemons.map(|daemons| daemons.to_string().into())),
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
        None => broker.insert(Broker::connect(socket, ASK_LIMIT_MS)?),
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

    fn note() -> Note {
        let options = Options {
            daemons: Some(5),
            capacity: Some(Bytes::gib(5)),
            copies: Some(2),
            layout: Some(AddrLayout::OS32),
        };
        let layout = Some(AddrLayout::OS32);
        let config = Some("/etc/c.toml".into());
        Note { instance: "x".into(), objects: "/o".into(), config, layout, options }
    }

    const NOTHING: Plan = Plan {
        daemons: None,
        capacity: None,
        copies: None,
        layout: None,
        config: None,
        no_restart: false,
    };

    #[test]
    fn what_is_not_said_is_as_it_was_and_a_file_takes_the_place_of_options() {
        assert_eq!(taking_over(NOTHING, None).unwrap(), NOTHING);
        let all = taking_over(NOTHING, Some(&note())).unwrap();
        let expected = Plan {
            daemons: Some(5),
            capacity: Some(Bytes::gib(5)),
            copies: Some(2),
            layout: Some(AddrLayout::OS32),
            config: Some("/etc/c.toml".into()),
            no_restart: false,
        };
        assert_eq!(all, expected);
        let said = Plan { capacity: Some(Bytes::gib(1)), copies: Some(1), ..NOTHING };
        let mixed = taking_over(said.clone(), Some(&note())).unwrap();
        assert_eq!(mixed, Plan { capacity: said.capacity, copies: said.copies, ..expected });
        let file = Plan { config: Some("/f".into()), no_restart: true, ..NOTHING };
        let filed = taking_over(file.clone(), Some(&note())).unwrap();
        assert_eq!(filed, Plan { daemons: Some(5), ..file });
    }

    #[test]
    fn a_plan_reaches_the_supervisor_as_it_was_given() {
        let all = Plan {
            daemons: Some(2),
            capacity: Some(Bytes::mib(1536)),
            copies: Some(2),
            layout: AddrLayout::new(16, 20, 28).ok(),
            config: Some("/etc/a b.toml".into()),
            no_restart: true,
        };
        for plan in [all, NOTHING] {
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
        let note = Note { instance: "noted".into(), ..note() };
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

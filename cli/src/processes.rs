//! The processes of an instance: found, held, ended.
//!
//! # Invariants
//!
//! 1. A process is found by what runs, never by a pid file: those are written for people, may be
//!    years old, and name whoever has the number now.
//! 2. A process is signalled only through a pidfd that was opened before its command line was read.
//!    If the pid was given to another process meanwhile, the signal reaches nobody.
//! 3. Only processes of the caller's own user are looked at; the superuser looks at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use dmce_sys::identity::effective_uid;
use dmce_sys::pidfd::{self, Signal};
use dmce_sys::poll::wait_readable;
use dmce_sys::process::{self, ProcessError};

/// The name of the broker's program.
pub const BROKER: &str = "dmce-broker";
/// The name of a daemon's program.
pub const DAEMON: &str = "dmce-daemon";
/// The name of this program.
const COMMAND: &str = "dmce";
/// The subcommand that makes this program a supervisor.
pub const SUPERVISE: &str = "supervise";

/// How long a process has to end after it was asked to.
const GRACE: Duration = Duration::from_secs(5);
/// How long the kernel has to end a killed process: it may have gigabytes to give back.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// What a process does in an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Watches over the daemons.
    Supervisor,
    /// Is the broker.
    Broker,
    /// Is the daemon of that id.
    Daemon(u32),
}

/// A process of an instance, whatever becomes of its pid.
#[derive(Debug)]
pub struct Process {
    /// What it does.
    pub role: Role,
    /// Its pid, for people.
    pub pid: u32,
    pidfd: OwnedFd,
}

/// Why processes could not be found or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum ProcessesError {
    /// `/proc` cannot be read.
    #[error("the processes of {dir} cannot be found")]
    Find { dir: String, source: ProcessError },
    /// The kernel refused the signal.
    #[error("process {pid} cannot be signalled")]
    Signal { pid: u32, source: ProcessError },
    /// It does not end, whatever is done.
    #[error("process {pid} was killed and has not ended for {seconds} s")]
    Stuck { pid: u32, seconds: u64 },
    /// The kernel could not wait.
    #[error("waiting for a process failed")]
    Wait(#[from] io::Error),
}

impl Process {
    /// The processes that serve the instance of `dir`, which is an absolute path without links.
    ///
    /// # Errors
    ///
    /// [`ProcessesError::Find`].
    pub fn find(dir: &Path) -> Result<Vec<Self>, ProcessesError> {
        let failed = |source| ProcessesError::Find { dir: dir.display().to_string(), source };
        let mut found = Vec::new();
        for pid in process::pids().map_err(failed)? {
            found.extend(Self::identify(pid, |line| role_in(dir, line)));
        }
        found.sort_by_key(|process| process.role);
        Ok(found)
    }

    /// The broker of an instance, in whatever directory it serves.
    ///
    /// # Errors
    ///
    /// [`ProcessesError::Find`].
    pub fn find_broker(instance: &str) -> Result<Option<Self>, ProcessesError> {
        let failed = |source| ProcessesError::Find { dir: instance.to_owned(), source };
        let is_it = |line: &[Vec<u8>]| {
            let named = value_of(line, "--instance") == Some(instance.as_bytes());
            (named && program_of(line) == BROKER.as_bytes()).then_some(Role::Broker)
        };
        let pids = process::pids().map_err(failed)?;
        Ok(pids.into_iter().find_map(|pid| Self::identify(pid, is_it)))
    }

    /// The process of that pid if it is one of ours that `role_of` its command line knows.
    fn identify(pid: u32, role_of: impl Fn(&[Vec<u8>]) -> Option<Role>) -> Option<Self> {
        // Most processes are others: a first look spares them the descriptor.
        role_of(&process::command_line(pid).ok()?)?;
        let pidfd = pidfd::open(pid).ok()?;
        let uid = effective_uid();
        if uid != 0 && process::effective_uid(pid).ok()? != uid {
            return None;
        }
        let role = role_of(&process::command_line(pid).ok()?)?;
        Some(Self { role, pid, pidfd })
    }

    /// A child that has not been waited for, so that its pid is still its own.
    ///
    /// # Errors
    ///
    /// What the kernel says of the descriptor.
    pub fn of_child(role: Role, child: &Child) -> Result<Self, ProcessError> {
        let pid = child.id();
        Ok(Self { role, pid, pidfd: pidfd::open(pid)? })
    }

    /// A descriptor that is readable when the process has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    fn signal(&self, signal: Signal) -> Result<(), ProcessesError> {
        match pidfd::signal(self.pidfd(), signal) {
            Ok(()) | Err(ProcessError::Ended) => Ok(()),
            Err(source) => Err(ProcessesError::Signal { pid: self.pid, source }),
        }
    }
}

/// Asks processes to end, kills those that have not after five seconds, and waits until all have.
///
/// # Errors
///
/// [`ProcessesError::Signal`], [`ProcessesError::Stuck`], [`ProcessesError::Wait`]. Every process
/// was signalled before the first wait.
pub fn end<'p>(processes: impl IntoIterator<Item = &'p Process>) -> Result<(), ProcessesError> {
    end_within(GRACE, &processes.into_iter().collect::<Vec<_>>())
}

fn end_within(grace: Duration, processes: &[&Process]) -> Result<(), ProcessesError> {
    let mut refused = None;
    for process in processes {
        refused = refused.or(process.signal(Signal::TERM).err());
    }
    let deadline = Instant::now() + grace;
    for process in processes {
        if !has_ended_by(process.pidfd(), deadline)? {
            refused = refused.or(process.signal(Signal::KILL).err());
        }
    }
    if let Some(error) = refused {
        return Err(error);
    }
    let deadline = Instant::now() + KILL_LIMIT;
    for process in processes {
        if !has_ended_by(process.pidfd(), deadline)? {
            let (pid, seconds) = (process.pid, KILL_LIMIT.as_secs());
            return Err(ProcessesError::Stuck { pid, seconds });
        }
    }
    Ok(())
}

fn has_ended_by(pidfd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if wait_readable(pidfd, Some(left))? {
            return Ok(true);
        }
        if left.is_zero() {
            return Ok(false);
        }
    }
}

/// What the process of a command line does for the instance of `dir`; `None` for all others.
fn role_in(dir: &Path, line: &[Vec<u8>]) -> Option<Role> {
    let role = match program_of(line) {
        program if program == BROKER.as_bytes() => Role::Broker,
        program if program == DAEMON.as_bytes() => {
            let id = str::from_utf8(value_of(line, "--id")?).ok()?;
            Role::Daemon(id.parse().ok()?)
        }
        program if program == COMMAND.as_bytes() => {
            line.get(1).filter(|subcommand| *subcommand == SUPERVISE.as_bytes())?;
            Role::Supervisor
        }
        _ => return None,
    };
    (value_of(line, "--dir")? == dir.as_os_str().as_bytes()).then_some(role)
}

/// The file name of the program.
fn program_of(line: &[Vec<u8>]) -> &[u8] {
    let path = line.first().map_or(&[][..], Vec::as_slice);
    path.rsplit(|&byte| byte == b'/').next().unwrap_or(path)
}

/// The value of an option, written `--option value` or `--option=value`.
fn value_of<'l>(line: &'l [Vec<u8>], option: &str) -> Option<&'l [u8]> {
    let mut arguments = line.iter().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.strip_prefix(option.as_bytes()) {
            Some([]) => return arguments.next().map(Vec::as_slice),
            Some([b'=', value @ ..]) => return Some(value),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn line(text: &str) -> Vec<Vec<u8>> {
        text.split(' ').map(|argument| argument.as_bytes().to_vec()).collect()
    }

    #[test]
    fn servers_of_the_directory_are_told_from_all_others() {
        let role = |text: &str| role_in(Path::new("/d"), &line(text));
        assert_eq!(role("/bin/dmce-broker --dir /d --instance x"), Some(Role::Broker));
        assert_eq!(role("dmce-daemon --id 7 --dir /d"), Some(Role::Daemon(7)));
        assert_eq!(role("dmce-daemon --dir=/d --id=7"), Some(Role::Daemon(7)));
        assert_eq!(role("/x/dmce supervise --dir /d"), Some(Role::Supervisor));
        for other in [
            "dmce-broker --dir /d2",
            "dmce-broker --dir /d/",
            "dmce-broker --dir",
            "dmce-broker",
            "dmce-broker --direct /d",
            "dmce-daemon --dir /d",
            "dmce-daemon --id x --dir /d",
            "dmce up --dir /d",
            "dmce down --dir /d",
            "vi dmce-broker --dir /d",
            "dmce-broker2 --dir /d",
            "",
        ] {
            assert_eq!(role(other), None, "{other}");
        }
    }

    /// A shell with the arguments of a server, which does what a script says.
    fn pretend(arguments: &[&str], script: &str) -> Child {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new("/bin/sh");
        command.arg0(arguments[0]).args(["-c", script]).args(arguments);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        command.spawn().unwrap()
    }

    fn wait_for_line(child: &mut Child) {
        use std::io::BufRead;
        let mut text = String::new();
        io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut text).unwrap();
        assert_eq!(text, "ready\n");
    }

    #[test]
    fn a_server_is_found_and_one_that_ignores_the_request_is_killed() {
        let dir = format!("/nowhere/dmce-test-{}", std::process::id());
        let arguments = ["dmce-daemon", "--id", "4", "--dir", &dir];
        let mut child = pretend(&arguments, "trap '' TERM; echo ready; while read x; do :; done");
        wait_for_line(&mut child);
        let found = Process::find(Path::new(&dir)).unwrap();
        let [daemon] = &found[..] else { panic!("{found:?}") };
        assert_eq!((daemon.role, daemon.pid), (Role::Daemon(4), child.id()));

        end_within(Duration::from_millis(50), &[daemon]).unwrap();
        assert!(Process::find(Path::new(&dir)).unwrap().is_empty(), "a zombie is nobody");
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}

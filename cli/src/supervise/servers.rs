//! Starting a server: where its program is, what it is told, where it writes.
//!
//! # Invariants
//!
//! 1. A server that was started has a [`Process`] that means it and nobody else, and its pid is in
//!    its file, or it has been killed again.
//! 2. Both kinds of server are told the same directory, name, folder of objects, and configuration
//!    file.

use std::env;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use dmce_abi::name::Instance;
use dmce_sys::process::{ProcessError, unblock_signals};

use crate::args::Plan;
use crate::instance::{Home, HomeError, name_of};
use crate::processes::{BROKER, DAEMON, Process, Role};

/// How much of the end of a log is looked at for its last line.
const TAIL_BYTES: u64 = 16 * 1024;
/// How much of that line is quoted.
const QUOTE_CHARS: usize = 400;

/// What is needed to start any server of an instance.
#[derive(Debug)]
pub struct Servers {
    pub home: Home,
    pub instance: Instance,
    /// The folder of the objects.
    pub objects: PathBuf,
    pub plan: Plan,
}

/// A server that runs, as far as is known.
#[derive(Debug)]
pub struct Running {
    pub process: Process,
    /// Since when it is watched.
    pub since: Instant,
    /// Absent for one that another process started.
    child: Option<Child>,
    /// How long its log was before it wrote.
    log_from: u64,
}

/// Why a server was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum StartError {
    #[error("{program} is neither beside dmce, nor in ../libexec/dmce, nor in PATH")]
    NoProgram { program: &'static str },
    #[error("{} cannot be started", program.display())]
    Spawn { program: PathBuf, source: io::Error },
    #[error("{} cannot be watched", name_of(*role))]
    Watch { role: Role, source: ProcessError },
    #[error(transparent)]
    Home(#[from] HomeError),
}

impl Servers {
    /// Starts the broker or a daemon.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing runs then.
    pub fn start(&self, role: Role) -> Result<Running, StartError> {
        let program = find_program(if role == Role::Broker { BROKER } else { DAEMON })?;
        let mut log = self.home.open_log(role)?;
        // A log that cannot be measured is quoted from its beginning.
        let log_from = log.seek(SeekFrom::End(0)).unwrap_or(0);
        let failed = |source| StartError::Spawn { program: program.clone(), source };
        let mut command = self.command(&program, role);
        // The supervisor takes its signals by descriptor, and so has them blocked.
        let mut child = unblock_signals(&mut command)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .spawn()
            .map_err(failed)?;
        match self.take_note(role, &child) {
            Ok(process) => {
                Ok(Running { process, since: Instant::now(), child: Some(child), log_from })
            }
            Err(error) => {
                // Both can only fail for a child that has ended already.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Watches a server that runs already.
    ///
    /// # Errors
    ///
    /// [`StartError::Home`] if its pid file cannot be written.
    pub fn adopt(&self, process: Process) -> Result<Running, StartError> {
        self.home.write_pid(process.role, process.pid)?;
        Ok(Running { process, since: Instant::now(), child: None, log_from: 0 })
    }

    fn take_note(&self, role: Role, child: &Child) -> Result<Process, StartError> {
        let process =
            Process::of_child(role, child).map_err(|source| StartError::Watch { role, source })?;
        self.home.write_pid(role, process.pid)?;
        Ok(process)
    }

    fn command(&self, program: &Path, role: Role) -> Command {
        let Self { home, instance, objects, plan } = self;
        let mut command = Command::new(program);
        command.arg("--dir").arg(home.path()).args(["--instance", instance.as_str()]);
        command.arg("--objects").arg(objects);
        if let Some(config) = &plan.config {
            command.arg("--config").arg(config);
        }
        if let Some(layout) = plan.layout {
            command.args(["--layout", &layout.to_string()]);
        }
        if let Role::Daemon(id) = role {
            command.args(["--id", &id.to_string()]);
            if let Some(capacity) = plan.capacity {
                command.args(["--capacity", &capacity.exact().to_string()]);
            }
        } else if let Some(copies) = plan.copies {
            command.args(["--copies", &copies.to_string()]);
        }
        command
    }
}

impl Running {
    /// How the process has ended; to be called when its pidfd is readable. A child is reaped.
    pub fn reap(&mut self) -> String {
        match self.child.as_mut().map(Child::wait) {
            Some(Ok(status)) => status.to_string(),
            // Who started it knows.
            Some(Err(_)) | None => "unknown how".to_owned(),
        }
    }

    /// Whether it was started here.
    pub fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// The last line that the process wrote to its log, if it wrote any.
    pub fn last_line(&self, home: &Home) -> Option<String> {
        last_line(&home.log(self.process.role), self.log_from)
    }
}

/// The last line of a log that is not empty, from a place on, shortened.
pub fn last_line(log: &Path, from: u64) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let bytes = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(from.max(bytes.saturating_sub(TAIL_BYTES)))).ok()?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().map(str::trim).find(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(QUOTE_CHARS).collect())
}

/// Where a server's program is: beside this one, where packages put it, or in `PATH`.
fn find_program(name: &'static str) -> Result<PathBuf, StartError> {
    let own = env::current_exe().ok();
    let beside = own.as_deref().and_then(Path::parent);
    let packaged = beside.and_then(Path::parent).map(|prefix| prefix.join("libexec/dmce"));
    let in_path = env::var_os("PATH").unwrap_or_default();
    let folders = beside.map(Path::to_owned).into_iter().chain(packaged);
    folders
        .chain(env::split_paths(&in_path))
        .map(|folder| folder.join(name))
        .find(|program| is_executable(program))
        .ok_or(StartError::NoProgram { program: name })
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_last_line_of_this_run_is_quoted_and_no_earlier_one() {
        let log = std::env::temp_dir().join(format!("dmce-test-{}-log", std::process::id()));
        fs::write(&log, "an earlier run\n").unwrap();
        let from = fs::metadata(&log).unwrap().len();
        assert_eq!(last_line(&log, from), None);
        let this_run = format!("an earlier run\nbegun\n\x1b[31mno \u{e4}{}\n\n", "x".repeat(500));
        fs::write(&log, this_run).unwrap();
        let line = last_line(&log, from).unwrap();
        assert!(line.starts_with("[31mno \u{e4}xx"), "{line}");
        assert_eq!(line.chars().count(), QUOTE_CHARS);
        fs::remove_file(&log).unwrap();
        assert_eq!(last_line(&log, 0), None);
    }
}

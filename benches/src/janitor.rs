//! A process that removes what a run left, however the run ended.
//!
//! It is told of each instance when that starts, and reads on until the other end of its input is
//! gone, which the kernel closes with the run: after `SIGKILL`, too. In an orderly run everything
//! is removed by then and it finds nothing to do.

use std::fs;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use dmce_sys::object::{DEFAULT_DIR, ObjectDir};
use dmce_sys::{pidfd, poll};
use dmce_tests::Instance;

use crate::{Error, Result};

/// How long a server that was killed may take to go before it is killed again.
const PATIENCE: Duration = Duration::from_secs(5);

/// The janitor of this run.
#[derive(Debug)]
pub struct Janitor {
    child: Child,
    input: Option<ChildStdin>,
}

impl Janitor {
    /// Starts `worker` as the janitor.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(worker: &Path) -> Result<Self> {
        let mut command = Command::new(worker);
        // A group of its own: an interrupt from the terminal is for the run alone.
        command.arg("janitor").stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let started = command.spawn();
        let mut child = started.map_err(Error::system(format!("starting {}", worker.display())))?;
        let input = child.stdin.take();
        Ok(Self { child, input })
    }

    /// Tells it of an instance, whose servers are `servers`.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the janitor is gone.
    pub fn watch(&mut self, instance: &Instance, servers: &[u32]) -> Result<()> {
        let Some(input) = &mut self.input else { return Ok(()) };
        let failed = |source| Error::system("telling the janitor")(source);
        writeln!(input, "instance {} {}", instance.name(), instance.dir().display())
            .map_err(failed)?;
        servers.iter().try_for_each(|pid| writeln!(input, "process {pid}").map_err(failed))
    }
}

impl Drop for Janitor {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

/// The janitor's process.
///
/// # Errors
///
/// [`Error::System`] if the input cannot be read.
pub fn serve() -> Result<()> {
    let mut processes: Vec<OwnedFd> = Vec::new();
    let mut instances: Vec<(String, PathBuf)> = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(Error::system("reading what to watch"))?;
        match line.split_once(' ') {
            // A descriptor, since the number may be another's by the time that it is needed.
            Some(("process", pid)) => {
                processes.extend(pid.parse().ok().and_then(|pid| pidfd::open(pid).ok()));
            }
            Some(("instance", rest)) => {
                let (name, dir) = rest.split_once(' ').unwrap_or((rest, ""));
                instances.push((name.to_owned(), PathBuf::from(dir)));
            }
            _ => {}
        }
    }
    for process in &processes {
        end(process);
    }
    for (name, dir) in &instances {
        remove(name, dir);
    }
    Ok(())
}

/// Waits until a process is gone, and sees to it.
fn end(process: &OwnedFd) {
    let gone = poll::wait_readable(process.as_fd(), Some(PATIENCE));
    if !matches!(gone, Ok(true)) && pidfd::signal(process.as_fd(), pidfd::Signal::KILL).is_ok() {
        let _ = poll::wait_readable(process.as_fd(), Some(PATIENCE));
    }
}

/// Removes an instance's objects and its folder. What is gone already is as good.
fn remove(name: &str, dir: &Path) {
    if let Ok(objects) = ObjectDir::open(DEFAULT_DIR) {
        for object in objects.names(&format!("dmce.{name}.")).unwrap_or_default() {
            let _ = objects.unlink(&object);
        }
    }
    let _ = fs::remove_dir_all(dir);
}

//! A directory for an instance of a test, and the command that is tried on it.
//!
//! Whatever a test does, dropping its [`Home`] ends what runs for the directory and removes the
//! objects of its names.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use dmce_sys::pidfd::{self, Signal};
use dmce_sys::poll::wait_readable;
use dmce_sys::process;
use serde_json::Value;

/// After this a test has hung.
const WATCHDOG: Duration = Duration::from_secs(120);

/// The folder of the objects.
const OBJECTS: &str = "/dev/shm";

/// What a run of the command came to.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout.clone()).unwrap(),
            stderr: String::from_utf8(output.stderr.clone()).unwrap(),
        }
    }

    /// The run if it did what it was asked.
    #[track_caller]
    pub fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(self.stderr, "");
        self
    }

    /// The error of a run that ended with `code`: one line, and no answer.
    #[track_caller]
    pub fn failed(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert_eq!(self.stdout, "");
        let line = self.stderr.strip_prefix("dmce: ").unwrap_or_else(|| panic!("{self:?}"));
        assert_eq!(line.matches('\n').count(), 1, "{self:?}");
        line.trim_end().to_owned()
    }

    /// The answer as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A directory, its configuration, and the name of its instance.
pub struct Home {
    scratch: PathBuf,
    pub dir: PathBuf,
    /// Absent: the name comes from the path.
    name: Option<String>,
    program: PathBuf,
}

impl Home {
    /// A directory that is not there yet, for an instance with a name of this test.
    pub fn new(test: &str) -> Self {
        let name = format!("test{}-cli-{test}", std::process::id());
        let mut home = Self::without_name(test);
        fs::write(home.config(), format!("[instance]\nname = \"{name}\"\n")).unwrap();
        home.name = Some(name);
        home
    }

    /// The same without a configuration, so that the name is made of the path.
    pub fn without_name(test: &str) -> Self {
        let temp = fs::canonicalize(std::env::temp_dir()).unwrap();
        let scratch = temp.join(format!("dmce-test-{}-{test}", std::process::id()));
        fs::create_dir(&scratch).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_dmce"));
        Self { dir: scratch.join("home"), scratch, name: None, program }
    }

    /// Where the configuration is.
    pub fn config(&self) -> PathBuf {
        self.scratch.join("dmce.toml")
    }

    /// Uses a copy of the command that stands beside servers of the test's own making: scripts.
    pub fn with_servers(mut self, scripts: &[(&str, &str)]) -> Self {
        let programs = self.scratch.join("programs");
        fs::create_dir(&programs).unwrap();
        for (name, script) in scripts {
            let text = self.scratch.join("script");
            fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
            install(&text, &programs.join(name));
        }
        let copy = programs.join("dmce");
        install(&self.program, &copy);
        self.program = copy;
        self
    }

    /// Starts two small daemons.
    pub fn up(&self, more: &[&str]) -> Run {
        run(&mut self.up_command(more))
    }

    /// Starts so many small daemons.
    pub fn up_with(&self, daemons: u32) -> Run {
        run(&mut self.up_command_of(daemons, &[]))
    }

    pub fn up_command(&self, more: &[&str]) -> Command {
        self.up_command_of(2, more)
    }

    fn up_command_of(&self, daemons: u32, more: &[&str]) -> Command {
        let mut command = self.bare_up_command();
        command.args(["--daemons", &daemons.to_string(), "--capacity", "64MiB"]).args(more);
        if self.name.is_some() {
            command.arg("--config").arg(self.config());
        }
        command
    }

    /// The start that says no more than the directory.
    pub fn bare_up_command(&self) -> Command {
        if self.program == Path::new(env!("CARGO_BIN_EXE_dmce")) {
            server("dmce-broker");
        }
        let mut command = Command::new(&self.program);
        command.arg("up").arg("--dir").arg(&self.dir);
        command
    }

    pub fn down(&self, more: &[&str]) -> Run {
        run(Command::new(&self.program).arg("down").arg("--dir").arg(&self.dir).args(more))
    }

    /// Asks the instance.
    pub fn ask(&self, question: &[&str]) -> Run {
        run(Command::new(&self.program).args(question).env("DMCE_SOCKET", self.socket()))
    }

    /// Asks the instance for a listing.
    pub fn json(&self, question: &str) -> Value {
        self.ask(&[question, "--json"]).json()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("broker.sock")
    }

    /// The process that a pid file names.
    pub fn pid(&self, server: &str) -> u32 {
        let text = fs::read_to_string(self.dir.join(format!("{server}.pid"))).unwrap();
        let pid = text.strip_suffix('\n').unwrap().parse().unwrap();
        assert!(process::is_alive(pid, process::start_time(pid).unwrap()).unwrap());
        pid
    }

    /// Kills a server and waits until it is gone.
    pub fn kill(&self, server: &str) {
        kill(self.pid(server));
    }

    /// The names of the instance's objects.
    pub fn objects(&self) -> Vec<String> {
        self.name.as_ref().map_or_else(Vec::new, |name| objects_of(name))
    }

    /// Everything that runs for the directory.
    pub fn processes(&self) -> Vec<u32> {
        let of_dir = |pid: &u32| {
            let line = process::command_line(*pid).unwrap_or_default();
            let is_dir = |word: &Vec<u8>| word == self.dir.as_os_str().as_encoded_bytes();
            // The second word is the program of a script.
            let programs = line.iter().take(2);
            let mut ours = programs.filter(|word| word.windows(5).any(|part| part == b"/dmce"));
            ours.next().is_some() && line.iter().any(is_dir)
        };
        process::pids().unwrap().into_iter().filter(of_dir).collect()
    }

    #[track_caller]
    pub fn assert_nothing_runs(&self) {
        assert!(self.processes().is_empty(), "{:?}", self.processes());
    }

    /// The names in the directory.
    pub fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What a process has logged.
    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join("log").join(format!("{name}.log"))).unwrap_or_default()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["supervisor", "broker", "daemon-1", "daemon-2"] {
                eprintln!("--- {name}\n{}", self.log(name));
            }
        }
        // Twice: a supervisor that was about to start a daemon has done so by the second look.
        for pid in [self.processes(), self.processes()].concat() {
            let _ = pidfd::open(pid).map(|pidfd| pidfd::signal(pidfd.as_fd(), Signal::KILL));
        }
        for name in self.objects() {
            let _ = fs::remove_file(Path::new(OBJECTS).join(name));
        }
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// Copies a program by another process: a file that this one had open for writing could still be so
/// in a child that another test is just starting, and then nobody can execute it.
fn install(from: &Path, to: &Path) {
    let status = Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap();
    assert!(status.success());
}

/// The names of an instance's objects.
pub fn objects_of(instance: &str) -> Vec<String> {
    let prefix = format!("dmce.{instance}.");
    let entries = fs::read_dir(OBJECTS).unwrap();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&prefix)).collect()
}

/// Runs a command to its end. It ends with its output: what it leaves in the background must not
/// hold its standard output.
pub fn run(command: &mut Command) -> Run {
    let child = command
        .env_remove("DMCE_INSTANCE_NAME")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pidfd = pidfd::open(child.id()).unwrap();
    let watched = std::thread::spawn(move || {
        let ended = wait_readable(pidfd.as_fd(), Some(WATCHDOG)).unwrap();
        if !ended {
            let _ = pidfd::signal(pidfd.as_fd(), Signal::KILL);
        }
        ended
    });
    let output = child.wait_with_output().unwrap();
    let run = Run::of(&output);
    assert!(watched.join().unwrap(), "{command:?} did not end: {run:?}");
    run
}

/// Runs the command with arguments alone.
pub fn dmce<S: AsRef<OsStr>>(arguments: &[S]) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_dmce")).args(arguments).env_remove("DMCE_SOCKET"))
}

/// Kills a process and waits until it has ended.
pub fn kill(pid: u32) {
    let pidfd = pidfd::open(pid).unwrap();
    pidfd::signal(pidfd.as_fd(), Signal::KILL).unwrap();
    assert!(wait_readable(pidfd.as_fd(), Some(WATCHDOG)).unwrap(), "process {pid} does not die");
}

/// Waits until a process has ended by itself.
pub fn wait_gone(pid: u32) {
    if let Ok(pidfd) = pidfd::open(pid) {
        assert!(wait_readable(pidfd.as_fd(), Some(WATCHDOG)).unwrap(), "process {pid} lives on");
    }
}

/// Waits until something holds.
#[track_caller]
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WATCHDOG;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The program of a server. `cargo test -p dmce` builds the command and not the servers.
pub fn server(name: &str) -> PathBuf {
    static BUILT: OnceLock<()> = OnceLock::new();
    let folder = Path::new(env!("CARGO_BIN_EXE_dmce")).parent().unwrap();
    BUILT.get_or_init(|| {
        if folder.join("dmce-broker").exists() && folder.join("dmce-daemon").exists() {
            return;
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "-p", "dmce-broker", "-p", "dmce-daemon"]);
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.arg("--target-dir").arg(folder.parent().unwrap());
        let status = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "the servers do not build");
    });
    folder.join(name)
}

//! A client process under a test's control.
//!
//! The program `dmce-test-client` reads one command a line and answers one line; so a test decides
//! at which point of its work it is killed or stopped, and programs of both widths are driven
//! alike.

use std::fmt::Display;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

use dmce_abi::Status;
pub use dmce_sys::pidfd::Signal;

use crate::Instance;

/// The environment variable that puts a client on the message path.
pub const MESSAGE_PATH: &str = "DMCE_TEST_MESSAGE_PATH";

/// The environments of clients on the message path: over links, and through the broker.
pub const ROUTES: [[(&str, &str); 2]; 2] = [
    [(MESSAGE_PATH, "1"), ("DMCE_MESSAGE_ROUTE", "direct")],
    [(MESSAGE_PATH, "1"), ("DMCE_MESSAGE_ROUTE", "broker")],
];

/// A client process. Dropped, it is killed.
#[derive(Debug)]
pub struct Client {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Client {
    /// Starts a client of this test's width and opens a session.
    ///
    /// # Panics
    ///
    /// If it does not start, or no session opens.
    #[must_use]
    pub fn open(instance: &Instance) -> Self {
        Self::open_with(&own_client(), instance, &[])
    }

    /// The same, from another program, with environment variables.
    ///
    /// # Panics
    ///
    /// If it does not start, or no session opens.
    #[must_use]
    pub fn open_with(program: &Path, instance: &Instance, env: &[(&str, &str)]) -> Self {
        let mut client = Self::start(program, instance, env);
        client.ask("open").expect("a session opens");
        client
    }

    /// Starts a client that has not opened a session yet.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn start(program: &Path, instance: &Instance, env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .env("DMCE_SOCKET", instance.socket())
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test client starts");
        let commands = child.stdin.take().expect("it was piped");
        let answers = BufReader::new(child.stdout.take().expect("it was piped"));
        Self { child, commands, answers }
    }

    /// Gives a command without waiting for its answer.
    ///
    /// # Panics
    ///
    /// If the client is gone.
    pub fn tell(&mut self, command: impl Display) {
        writeln!(self.commands, "{command}").expect("the client reads commands");
        self.commands.flush().expect("the client reads commands");
    }

    /// The next answer: its words, or the status of an error.
    ///
    /// # Errors
    ///
    /// The status that the client's call gave.
    ///
    /// # Panics
    ///
    /// If the client is gone.
    pub fn answer(&mut self) -> Result<String, Status> {
        let mut line = String::new();
        let bytes = self.answers.read_line(&mut line).expect("the client answers in text");
        assert_ne!(bytes, 0, "the client ended");
        understand(line.trim_end())
    }

    /// Gives a command and waits for its answer; `None` if the client ended over it.
    ///
    /// # Panics
    ///
    /// If what it says is no answer.
    pub fn try_ask(&mut self, command: impl Display) -> Option<Result<String, Status>> {
        writeln!(self.commands, "{command}").and_then(|()| self.commands.flush()).ok()?;
        let mut line = String::new();
        let bytes = self.answers.read_line(&mut line).expect("the client answers in text");
        (bytes > 0).then(|| understand(line.trim_end()))
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    ///
    /// The status that the client's call gave.
    pub fn ask(&mut self, command: impl Display) -> Result<String, Status> {
        self.tell(command);
        self.answer()
    }

    /// The same, for a command that answers a number.
    ///
    /// # Errors
    ///
    /// The status that the client's call gave.
    ///
    /// # Panics
    ///
    /// If the answer is no number.
    pub fn number(&mut self, command: impl Display) -> Result<u64, Status> {
        self.ask(command).map(|text| text.parse().expect("the answer is a number"))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stores where one of its pointers points, as itself could at any moment.
    ///
    /// # Panics
    ///
    /// If nothing is mapped there to be written.
    pub fn store(&self, pointer: u64, bytes: &[u8]) {
        let memory = format!("/proc/{}/mem", self.pid());
        let memory = File::options().write(true).open(memory).expect("it is an own child");
        memory.write_all_at(bytes, pointer).expect("it is mapped to be written");
    }

    /// Sends a signal.
    ///
    /// # Panics
    ///
    /// If it cannot be sent.
    pub fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Kills it (`SIGKILL`), waits until it is gone, and tells what it had said that nobody read.
    ///
    /// # Panics
    ///
    /// If that is no text.
    #[must_use]
    pub fn last_words(mut self) -> String {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let mut words = String::new();
        self.answers.read_to_string(&mut words).expect("the client answers in text");
        words
    }

    /// Waits until it has ended of itself.
    ///
    /// # Panics
    ///
    /// If it cannot be waited for.
    #[must_use]
    pub fn end(mut self) -> ExitStatus {
        self.child.wait().expect("an own child can be waited for")
    }

    /// Kills it (`SIGKILL`) and waits until it is gone.
    pub fn kill(self) {
        drop(self);
    }
}

/// What an answer says.
fn understand(line: &str) -> Result<String, Status> {
    if let Some(rest) = line.strip_prefix("ok") {
        return Ok(rest.trim_start().to_owned());
    }
    let code = line.strip_prefix("err ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    Err(Status::from_code(code.unwrap_or_else(|| panic!("the client said {line:?}"))))
}

/// Sends a signal to a process that the test started.
///
/// # Panics
///
/// If it cannot be sent.
pub fn send(pid: u32, signal: Signal) {
    let pidfd = dmce_sys::pidfd::open(pid).expect("an own child has a pidfd");
    dmce_sys::pidfd::signal(pidfd.as_fd(), signal).expect("an own child takes signals");
}

/// Stops a process that the test started, and waits until it does nothing more.
///
/// # Panics
///
/// If it cannot be stopped.
pub fn stop(pid: u32) {
    send(pid, Signal::STOP);
    crate::wait_for("a process is stopped", || {
        dmce_sys::process::is_stopped(pid).expect("an own child is looked at").then_some(())
    });
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The test client of this test's own width.
///
/// # Panics
///
/// If it is not built beside the test.
#[must_use]
pub fn own_client() -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let path =
        test.ancestors().map(|folder| folder.join("dmce-test-client")).find(|path| path.is_file());
    path.expect("the test client is built with the tests")
}

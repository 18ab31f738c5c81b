//! A writer's process, and who listens to it.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::{Ledger, Report};

/// A writer's process. Dropped, it is killed.
#[derive(Debug)]
pub struct Writer {
    child: Child,
    listener: Option<JoinHandle<()>>,
    heard: Arc<Heard>,
    is_by_message: bool,
}

#[derive(Debug)]
struct Heard {
    ledger: Mutex<Ledger>,
    acknowledged: AtomicU64,
    slowest_us: AtomicU64,
    /// What was not as it must be.
    complaints: Mutex<Vec<String>>,
}

impl Writer {
    /// Starts a client that is told the commands `words`, and goes on where the ledger ends.
    pub fn start(mut command: Command, words: &str, is_by_message: bool, ledger: Ledger) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test client starts");
        let mut commands = child.stdin.take().expect("it was piped");
        writeln!(commands, "{words} {}", ledger.next()).expect("the client reads commands");
        let heard = Arc::new(Heard {
            ledger: Mutex::new(ledger),
            acknowledged: AtomicU64::new(0),
            slowest_us: AtomicU64::new(0),
            complaints: Mutex::new(Vec::new()),
        });
        let lines = BufReader::new(child.stdout.take().expect("it was piped"));
        let listener = {
            let heard = Arc::clone(&heard);
            thread::spawn(move || heard.listen(lines))
        };
        Self { child, listener: Some(listener), heard, is_by_message }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether a server does its reads and writes.
    pub const fn is_by_message(&self) -> bool {
        self.is_by_message
    }

    /// Records that were acknowledged since it started.
    ///
    /// # Panics
    ///
    /// If something was not as it must be.
    pub fn acknowledged(&self) -> u64 {
        let complaints = self.heard.complaints.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(complaints.is_empty(), "a writer says: {complaints:?}");
        self.heard.acknowledged.load(Ordering::Relaxed)
    }

    /// The slowest write that was acknowledged since this was asked.
    pub fn take_slowest(&self) -> Duration {
        Duration::from_micros(self.heard.slowest_us.swap(0, Ordering::Relaxed))
    }

    /// Kills it (`SIGKILL`), and waits until it is gone and all that it said was heard.
    pub fn kill(&mut self) {
        // It may have ended of itself.
        let _ = self.child.kill();
        self.child.wait().expect("an own child can be waited for");
        if let Some(listener) = self.listener.take() {
            listener.join().expect("a listener does not panic");
        }
    }

    /// The ledger of a writer that was killed; what else it did goes to the report.
    pub fn take_ledger(&mut self, report: &mut Report) -> Ledger {
        report.acknowledged += self.acknowledged();
        report.slowest = report.slowest.max(self.take_slowest());
        self.heard.ledger.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Heard {
    fn listen(&self, lines: BufReader<ChildStdout>) {
        for line in lines.lines().map_while(Result::ok) {
            let (kind, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let understood = match kind {
                "t" => self.tried(rest),
                "a" => self.acknowledged(rest),
                // What the client says of the commands before.
                "ok" if rest.is_empty() => Some(()),
                _ => None,
            };
            if understood.is_none() {
                let mut complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner);
                complaints.push(line);
            }
        }
    }

    fn tried(&self, rest: &str) -> Option<()> {
        let mut words = rest.split(' ');
        let place = words.next()?.parse().ok()?;
        let mut number = || words.next()?.parse().ok();
        self.ledger().begin(place, number()?, number()?);
        Some(())
    }

    fn acknowledged(&self, rest: &str) -> Option<()> {
        self.slowest_us.fetch_max(rest.parse().ok()?, Ordering::Relaxed);
        self.ledger().acknowledge();
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
        Some(())
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A client process of either width, under the control of a run.
//!
//! It reads one command a line and answers one line, with seconds where it measured:
//!
//! ```text
//! open                                      opens a session with the broker of DMCE_SOCKET
//! malloc BYTES                              allocates
//! records COUNT COPIES SEED                 allocates for so many records of 4 KiB, and writes
//!                                           them again and again until `rest`
//! written -> COUNT                          how many it has written
//! slowest -> SECONDS                        the slowest of them since this was asked last
//! own -> SECONDS                            the same without what the host took meanwhile
//! disturbed -> COUNT                        how many it disturbed since this was asked last
//! rest                                      ends it, and sees that all is what was written last
//! region NAME                               opens a region
//! objects PATH..                            opens its blocks by name, for pread64
//! write BYTES, read BYTES -> SECONDS        all of the region in order, a MiB a call
//! random WAY COUNT SEED BYTES PIECES PIECE_BYTES -> SECONDS
//! ```
//!
//! `random` does `COUNT` accesses of 64 bytes, in an order that the seed chooses, to a working set:
//! so many pieces of so many bytes, scattered over the first `BYTES`, always the same. `WAY` is
//! `read` or `write` for the functions of DMCE, `pread` or `pwrite` for the same places in the
//! objects.

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use crate::calls::Calls;
use crate::memory::LINE_BYTES;
use crate::places::Places;
use crate::records::{self, RECORD_BYTES, Writing};
use crate::session::{Region, RegionName, Session, Wanted};
use crate::working_set::{Shape, WorkingSet};
use crate::{Error, Result};

/// Bytes of one call in a sequential pass.
pub const CALL_BYTES: usize = 1 << 20;

/// The run's end of a worker. Dropped, it ends the process.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker and opens its session.
    ///
    /// # Errors
    ///
    /// [`Error::System`], [`Error::Worker`].
    pub fn open(program: &Path, socket: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("client").env("DMCE_SOCKET", socket);
        let mut worker = Self::run(&mut command)?;
        worker.ask("open")?;
        Ok(worker)
    }

    /// Starts another program that answers commands as a worker does.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(program: &Path) -> Result<Self> {
        Self::start_with(program, &[])
    }

    /// The same, with something in its environment.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start_with(program: &Path, environment: &[(&str, &str)]) -> Result<Self> {
        Self::run(Command::new(program).envs(environment.iter().copied()))
    }

    fn run(command: &mut Command) -> Result<Self> {
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let program = command.get_program().to_string_lossy();
        let mut child = started.map_err(Error::system(format!("starting {program}")))?;
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("it was piped"));
        Ok(Self { child, commands, answers })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives a command and waits for its answer.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`] if it answers an error or nothing.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        let failed = |answer: &str| Error::Worker {
            command: command.to_owned(),
            answer: answer.trim_end().to_owned(),
        };
        let Some(commands) = &mut self.commands else { return Err(failed("")) };
        writeln!(commands, "{command}").map_err(Error::system("telling the worker"))?;
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(Error::system("hearing the worker"))?;
        let answer = line.trim_end().strip_prefix("ok").ok_or_else(|| failed(&line))?;
        Ok(answer.trim_start().to_owned())
    }

    /// The same, for a command that answers seconds.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`].
    pub fn seconds(&mut self, command: &str) -> Result<f64> {
        self.figure(command)
    }

    /// The same, for one that answers how many.
    ///
    /// # Errors
    ///
    /// [`Error::Worker`].
    pub fn count(&mut self, command: &str) -> Result<u64> {
        self.figure(command)
    }

    fn figure<T: FromStr>(&mut self, command: &str) -> Result<T> {
        let answer = self.ask(command)?;
        let failed = |_| Error::Worker { command: command.to_owned(), answer: answer.clone() };
        answer.parse().map_err(failed)
    }
}

impl Worker {
    /// Kills it, and waits until the kernel says that it is gone.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().map_err(Error::system("killing the worker"))?;
        self.child.wait().map(drop).map_err(Error::system("waiting for the worker"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It ends when its input does.
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}

/// The worker's process: runs commands until its input ends.
///
/// # Errors
///
/// [`Error::System`] if nobody hears the answers.
pub fn serve() -> Result<()> {
    let mut client = Client::default();
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.map_err(Error::system("reading a command"))?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match client.run(&words) {
            Ok(answer) => format!("ok {answer}"),
            Err(error) => format!("error: {}", describe(&error)),
        };
        writeln!(answers, "{answer}").map_err(Error::system("answering"))?;
        answers.flush().map_err(Error::system("answering"))?;
    }
    Ok(())
}

/// An error with what caused it, on one line.
#[must_use]
pub fn describe(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// What the commands of a worker have opened.
#[derive(Default)]
struct Client {
    // Before the session, with which it ends.
    region: Option<(Region, u64)>,
    /// What writes, and the address of the first place.
    records: Option<(Writing, u64)>,
    session: Option<Arc<Session>>,
    objects: Vec<File>,
    object_bytes: u64,
}

/// How a worker reaches memory at random.
#[derive(Clone, Copy)]
enum Way {
    Read,
    Write,
    Pread,
    Pwrite,
}

impl Client {
    fn run(&mut self, words: &[&str]) -> Result<String> {
        match *words {
            ["open"] => {
                let socket = PathBuf::from(env::var_os("DMCE_SOCKET").unwrap_or_default());
                self.session = Some(Arc::new(Session::open(Calls::linked(), &socket, 0)?));
                Ok(String::new())
            }
            ["malloc", bytes] => Ok(self.session()?.malloc(number(bytes)?)?.to_string()),
            ["records", count, copies, seed] => {
                let copies = copies.parse().map_err(|_| unknown(copies))?;
                self.start_records(number(count)?, copies, number(seed)?)
            }
            ["written"] => Ok(self.writing()?.written()?.to_string()),
            ["slowest"] => Ok(seconds(self.writing()?.take_slowest().as_secs_f64())),
            ["own"] => Ok(seconds(self.writing()?.take_slowest_own()?.as_secs_f64())),
            ["disturbed"] => Ok(self.writing()?.take_disturbed().to_string()),
            ["rest"] => self.rest(),
            ["region", name] => {
                let region = self.session()?.region_open(&RegionName::new(name)?)?;
                let first = region.first()?;
                self.region = Some((region, first));
                Ok(String::new())
            }
            ["objects", ref paths @ ..] => self.open_objects(paths),
            ["write", bytes] => self.write_all(number(bytes)?).map(seconds),
            ["read", bytes] => self.read_all(number(bytes)?).map(seconds),
            ["random", way, count, seed, bytes, pieces, piece_bytes] => {
                let set = WorkingSet::new(Shape {
                    bytes: number(bytes)?,
                    pieces: number(pieces)?,
                    piece_bytes: number(piece_bytes)?,
                });
                let places = set.places(number(seed)?);
                self.random(parse_way(way)?, &set, places, number(count)?).map(seconds)
            }
            _ => Err(unknown(&words.join(" "))),
        }
    }

    fn session(&self) -> Result<&Arc<Session>> {
        self.session.as_ref().ok_or_else(|| unknown("a command before open"))
    }

    fn writing(&mut self) -> Result<&mut Writing> {
        let records = self.records.as_mut();
        records.map(|(writing, _)| writing).ok_or_else(|| unknown("a command before records"))
    }

    fn start_records(&mut self, count: u64, copies: u32, seed: u64) -> Result<String> {
        if count < 2 || !count.is_power_of_two() {
            return Err(unknown(&format!("records {count}")));
        }
        let session = Arc::clone(self.session()?);
        let wanted = Wanted { copies, page_size: 0 };
        let first = session.malloc_as(count * RECORD_BYTES as u64, wanted)?;
        let writing = Writing::start(Places::below(count, seed), move |place, record| {
            let addr = first + place * RECORD_BYTES as u64;
            // SAFETY: the record is as long as is said.
            unsafe { session.write(addr, record.as_ptr(), record.len()) }
        });
        self.records = Some((writing, first));
        Ok(String::new())
    }

    /// Ends what writes, and reads all of it again.
    fn rest(&mut self) -> Result<String> {
        let records = self.records.take();
        let (writing, first) = records.ok_or_else(|| unknown("rest before records"))?;
        let (last, session) = (writing.finish()?, self.session()?);
        records::check(&last, |place, record| {
            let addr = first + place * RECORD_BYTES as u64;
            // SAFETY: the record is as long as is said.
            unsafe { session.read(addr, record.as_mut_ptr(), record.len()) }
        })?;
        Ok(String::new())
    }

    fn first(&self) -> Result<u64> {
        let region = self.region.as_ref().ok_or_else(|| unknown("a command before region"))?;
        Ok(region.1)
    }

    fn open_objects(&mut self, paths: &[&str]) -> Result<String> {
        for path in paths {
            let file = File::options().read(true).write(true).open(path);
            self.objects.push(file.map_err(Error::system(*path))?);
        }
        if let Some(object) = self.objects.first() {
            self.object_bytes = object.metadata().map_err(Error::system("stat"))?.len();
        }
        Ok(String::new())
    }

    /// Writes every MiB of the region, each beginning with its own offset.
    fn write_all(&self, bytes: u64) -> Result<f64> {
        let (session, first) = (self.session()?, self.first()?);
        let mut buffer = vec![0xa5_u8; CALL_BYTES];
        let begin = Instant::now();
        for offset in (0..bytes).step_by(CALL_BYTES) {
            buffer[..8].copy_from_slice(&offset.to_le_bytes());
            // SAFETY: the buffer is as long as is said.
            unsafe { session.write(first + offset, buffer.as_ptr(), buffer.len())? };
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Reads all that [`Client::write_all`] wrote, and sees that it is that.
    fn read_all(&self, bytes: u64) -> Result<f64> {
        let (session, first) = (self.session()?, self.first()?);
        let mut buffer = vec![0_u8; CALL_BYTES];
        let begin = Instant::now();
        for offset in (0..bytes).step_by(CALL_BYTES) {
            // SAFETY: the buffer is as long as is said.
            unsafe { session.read(first + offset, buffer.as_mut_ptr(), buffer.len())? };
            let found = u64::from_le_bytes(*buffer.first_chunk().expect("a buffer of a MiB"));
            if found != offset {
                return Err(Error::Content { addr: first + offset, found, expected: offset });
            }
        }
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Seconds of one of `count` accesses.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    fn random(&self, way: Way, set: &WorkingSet, mut places: Places, count: u64) -> Result<f64> {
        let (session, first) = (self.session()?, self.first()?);
        let mut line = [0x5a_u8; LINE_BYTES];
        let begin = Instant::now();
        for _ in 0..count {
            let offset = set.offset(places.next());
            match way {
                // SAFETY: the line is as long as is said.
                Way::Read => unsafe {
                    session.read(first + offset, line.as_mut_ptr(), LINE_BYTES)?;
                },
                // SAFETY: the same.
                Way::Write => unsafe { session.write(first + offset, line.as_ptr(), LINE_BYTES)? },
                Way::Pread => self
                    .object(offset)?
                    .read_exact_at(&mut line, offset % self.object_bytes)
                    .map_err(Error::system("pread"))?,
                Way::Pwrite => self
                    .object(offset)?
                    .write_all_at(&line, offset % self.object_bytes)
                    .map_err(Error::system("pwrite"))?,
            }
        }
        Ok(begin.elapsed().as_secs_f64() / count as f64)
    }

    fn object(&self, offset: u64) -> Result<&File> {
        let place = offset.checked_div(self.object_bytes).unwrap_or(0);
        let object = usize::try_from(place).ok().and_then(|place| self.objects.get(place));
        object.ok_or_else(|| unknown("an offset behind the last object"))
    }
}

fn parse_way(text: &str) -> Result<Way> {
    match text {
        "read" => Ok(Way::Read),
        "write" => Ok(Way::Write),
        "pread" => Ok(Way::Pread),
        "pwrite" => Ok(Way::Pwrite),
        _ => Err(unknown(text)),
    }
}

fn number(text: &str) -> Result<u64> {
    text.parse().map_err(|_| unknown(text))
}

#[allow(clippy::needless_pass_by_value, reason = "to be mapped over a result")]
fn seconds(seconds: f64) -> String {
    seconds.to_string()
}

fn unknown(command: &str) -> Error {
    Error::Worker { command: command.to_owned(), answer: "no such command".to_owned() }
}

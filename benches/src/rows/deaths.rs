//! A client or the broker is killed (`SIGKILL`), and memory stays: how long until all is again as
//! it has to be. The design's bound is 100 ms from the moment that the kernel tells of the death,
//! or from the start of the next broker.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dmce_tests::programs;

use crate::measure::{Pair, percentile};
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

const BOUND: f64 = 0.1;
/// What a client has when it dies.
const BYTES: u64 = 256 << 20;
/// What sessions ask for what is in it.
const VOLUME: &str = "bench";
/// How long anything may take before it counts as never.
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures the group.
///
/// # Errors
///
/// Those of the clients, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let rounds = setting.effort.pick(25, 3);
    let sessions = setting.effort.pick(100, 4);
    Ok(vec![super::told(client(setting, rounds)?), super::told(broker(setting, rounds, sessions)?)])
}

/// Until nothing is left of a client: no session, and no byte of it on a daemon.
fn client(setting: &mut Setting, rounds: u32) -> Result<Row> {
    let instance = setting.start(dmce_tests::Instance::builder().daemons(2))?;
    let held = || instance.daemons().iter().map(|daemon| daemon.committed).sum::<u64>();
    let (mut times, mut asks) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let before = held();
        let mut worker = Worker::open(&setting.worker, &instance.socket())?;
        worker.ask(&format!("malloc {BYTES}"))?;
        let asked = Instant::now();
        assert!(held() >= before + BYTES, "the client has its memory");
        asks.push(asked.elapsed().as_secs_f64());
        worker.kill()?;
        let died = Instant::now();
        while held() > before || !instance.sessions().is_empty() {
            in_time(died, "memory that goes back")?;
        }
        times.push(died.elapsed().as_secs_f64());
    }
    let what = "a client dies: until its memory is free, p99";
    Ok(row(
        what,
        format!("256 MiB, {rounds} deaths"),
        "one look at what daemons hold",
        &worst(&times, &asks),
    ))
}

/// From the start of a broker until it has done something for a session that the one before left.
fn broker(setting: &mut Setting, rounds: u32, sessions: u32) -> Result<Row> {
    let mut instance = setting.start(dmce_tests::Instance::builder().daemons(2))?;
    let all: Vec<_> = (0..sessions).map(|_| instance.open()).collect();
    for session in &all {
        session.malloc(4096).map_err(|error| Error::of("allocating", error))?;
    }
    let (mut times, mut starts) = (Vec::new(), Vec::new());
    for round in 0..rounds as usize {
        let started = Instant::now();
        let ended = Command::new(program()).arg("--version").stdout(Stdio::null()).status();
        ended.map_err(Error::system("starting a program"))?;
        starts.push(started.elapsed().as_secs_f64());
        instance.kill_broker();
        let started = Instant::now();
        instance.start_broker();
        let asked = all[round % all.len()].region_list(VOLUME);
        asked.map_err(|error| Error::of("asking the broker", error))?;
        times.push(started.elapsed().as_secs_f64());
        instance.wait_serving();
    }
    let what = "the broker dies: from the next one's start to its first answer, p99";
    Ok(row(
        what,
        format!("{sessions} sessions, {rounds} deaths"),
        "dmce-broker --version",
        &worst(&times, &starts),
    ))
}

fn row(what: &str, state: String, against: &'static str, pair: &Pair) -> Row {
    let (quantity, unit, goal) = (what.to_owned(), Unit::Time, Goal::Within(BOUND));
    Row::new(Subject { quantity, state, against, unit, goal }, pair)
}

fn worst(ours: &[f64], theirs: &[f64]) -> Pair {
    Pair::of_one(percentile(ours, 0.99), percentile(theirs, 0.99))
}

fn program() -> PathBuf {
    programs::program("dmce-broker")
}

fn in_time(since: Instant, what: &str) -> Result<()> {
    if since.elapsed() < PATIENCE {
        return Ok(());
    }
    Err(Error::system(format!("waiting for {what}"))(std::io::ErrorKind::TimedOut.into()))
}

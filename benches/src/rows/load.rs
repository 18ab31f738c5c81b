//! What a request costs the broker, with nobody else there and with a thousand clients that hold
//! 65,000 blocks; and what it keeps in its own memory then.
//!
//! The other side is a server that waits for its connections by epoll and sends back what it gets.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;

use dmce_abi::wire::client::{ClientRequest, Setup};
use dmce_sys::socket::Socket;
use dmce_tests::{Builder, Instance};
use libdmce::connection::Connection;

use crate::echo::{FRAME_BYTES, Switchboard};
use crate::measure::{Pair, alternate, time};
use crate::setting::Setting;
use crate::table::{Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

/// Who asks at the same time.
const ASKING: usize = 4;
/// Blocks of a client in the crowd, of 64 KiB each.
const BLOCKS_EACH: u64 = 65;
const BLOCK_BYTES: u64 = 64 << 10;
/// The design's bounds.
const REQUESTS_PER_S: f64 = 50_000.0;
const BROKER_BYTES_MAX: u64 = 64 << 20;
/// How much longer a request may take in a crowd before something in it is looked at as a whole.
const CROWD_SPEED: f64 = 0.8;

/// Blocks are small, so that there is room for many.
fn builder() -> Builder {
    let config = "[limits]\nblocks = 100000\n[broker]\nusage_ms = 3600000\n";
    Instance::builder().daemons(3).capacity("2GiB").layout("24/24/16").config(config)
}

/// A server of either side, with those who ask it.
struct Side<C> {
    pid: u32,
    asking: Vec<C>,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the clients and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let clients = setting.effort.pick(1_000, 20);
    let (idle, crowded) = (setting.start(builder())?, setting.start(builder())?);
    let switchboard = Switchboard::start(&setting.worker)?;
    let echo = Side { pid: switchboard.pid(), asking: switchboard.connect(ASKING)? };
    let (alone, among) = (asking(&idle)?, asking(&crowded)?);
    let crowd = crowd(setting, &crowded, clients)?;
    let blocks = clients * BLOCKS_EACH;
    let state = format!("{clients} client processes, {blocks} blocks");
    let requests = setting.effort.pick(20_000, 200);
    let rounds = setting.effort.pick(11, 3);
    let of_all = requests * ASKING as u64;
    let asked = alternate(
        rounds,
        |_| time(of_all, || ask(&among.asking, requests)),
        |_| time(of_all, || shout(&echo.asking, requests)),
    )?;
    let spent_on = alternate(
        rounds,
        |_| spent(among.pid, requests, || ask(&among.asking, requests)),
        |_| spent(echo.pid, requests, || shout(&echo.asking, requests)),
    )?;
    let rows = vec![
        row("a request, 4 clients at once", &state, Goal::Within(1.0 / REQUESTS_PER_S), &asked),
        row("the broker's own time for a request", &state, Goal::None, &spent_on),
        Row::new(
            Subject {
                quantity: "the broker's own time for a request".to_owned(),
                state: state.clone(),
                against: "the same, nobody else there",
                unit: Unit::Time,
                goal: Goal::AtLeast(CROWD_SPEED),
            },
            &alternate(
                rounds,
                |_| spent(among.pid, requests, || ask(&among.asking, requests)),
                |_| spent(alone.pid, requests, || ask(&alone.asking, requests)),
            )?,
        ),
        Row::new(
            Subject {
                quantity: "the broker's own memory".to_owned(),
                state,
                against: "its bound",
                unit: Unit::Bytes,
                goal: Goal::AtLeast(1.0),
            },
            &Pair::of_one(resident(among.pid)?, as_figure(BROKER_BYTES_MAX)),
        ),
    ];
    drop(crowd);
    Ok(rows.into_iter().map(super::told).collect())
}

fn row(quantity: &str, state: &str, goal: Goal, pair: &Pair) -> Row {
    let subject = Subject {
        quantity: quantity.to_owned(),
        state: state.to_owned(),
        against: "64 bytes through a bare epoll echo",
        unit: Unit::Time,
        goal,
    };
    Row::new(subject, pair)
}

/// Sessions of this process with a broker.
fn asking(instance: &Instance) -> Result<Side<Mutex<Connection>>> {
    let pid = instance.broker_pid().ok_or_else(|| missing("a broker"))?;
    let open = || {
        let failed = |error| Error::of("opening a session", error);
        let mut connection = Connection::connect(instance.socket()).map_err(failed)?;
        let setup = Setup {
            segment_version: dmce_abi::version::SEGMENT_VERSION,
            pointer_bits: 64,
            bytes: 0,
            accept_partial: false,
            copies: 0,
            name: "bench".to_owned(),
        };
        connection.request(&ClientRequest::Setup(setup)).map_err(failed)?;
        Ok(Mutex::new(connection))
    };
    let asking = std::iter::repeat_with(open).take(ASKING).collect::<Result<_>>()?;
    Ok(Side { pid, asking })
}

/// Processes with a session each, and blocks in it.
fn crowd(setting: &Setting, instance: &Instance, clients: u64) -> Result<Vec<Worker>> {
    let mut crowd = Vec::new();
    for _ in 0..clients {
        let mut worker = Worker::open(&setting.worker, &instance.socket())?;
        worker.ask(&format!("malloc {}", BLOCKS_EACH * BLOCK_BYTES))?;
        crowd.push(worker);
    }
    Ok(crowd)
}

/// Each connection asks what its session holds, so often, all at the same time.
fn ask(connections: &[Mutex<Connection>], requests: u64) -> Result<()> {
    at_once(connections, |connection| {
        let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..requests {
            connection.request(&ClientRequest::Stat).map_err(|e| Error::of("asking", e))?;
        }
        Ok(())
    })
}

/// Each connection sends a frame, and waits for it to come back, so often.
fn shout(connections: &[Socket], requests: u64) -> Result<()> {
    at_once(connections, |socket| {
        let (mut frame, mut fds) = ([0; FRAME_BYTES], Vec::new());
        for _ in 0..requests {
            let echoed = socket.send(&frame, &[]).and_then(|()| socket.recv(&mut frame, &mut fds));
            echoed.map_err(|e| Error::of("echoing", e))?;
        }
        Ok(())
    })
}

fn at_once<C: Sync>(all: &[C], each: impl Fn(&C) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| each(one))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread of these panics"))
    })
}

/// Seconds of processor time that a process spends on one of the requests.
fn spent(pid: u32, requests: u64, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let before = processor_ns(pid)?;
    body()?;
    let spent = processor_ns(pid)? - before;
    Ok(as_figure(spent) / 1e9 / as_figure(requests * ASKING as u64))
}

/// Nanoseconds that the threads of a process have run.
fn processor_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut all = 0;
    for task in fs::read_dir(&tasks).map_err(Error::system(tasks.clone()))? {
        let path = task.map_err(Error::system(tasks.clone()))?.path().join("schedstat");
        // A thread may have ended just now.
        let text = fs::read_to_string(path).unwrap_or_default();
        all += text.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(all)
}

/// Bytes of a process that are in memory and not shared memory.
fn resident(pid: u32) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = fs::read_to_string(&path).map_err(Error::system(path.display().to_string()))?;
    let field = |name| text.lines().find_map(|line: &str| line.strip_prefix(name));
    let kib = |text: &str| text.trim().trim_end_matches(" kB").parse::<u64>().ok();
    let figures = ["RssAnon:", "RssFile:"].map(|name| field(name).and_then(kib));
    let [Some(anonymous), Some(files)] = figures else { return Err(missing("RssAnon")) };
    Ok(as_figure((anonymous + files) << 10))
}

fn missing(what: &str) -> Error {
    Error::system(what)(std::io::Error::from(std::io::ErrorKind::NotFound))
}

#[allow(clippy::cast_precision_loss, reason = "figures are far below 2^52")]
const fn as_figure(count: u64) -> f64 {
    count as f64
}

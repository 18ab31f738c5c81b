//! Blocks move to another daemon while clients write to them: how long the slowest write of any
//! client takes meanwhile. A call that fails ends the run, and every record is read in the end.
//!
//! Every round has an instance of its own, with three daemons, and clients of which each has an
//! allocation of one block. One block of them moves; or all that are on a daemon, which is drained.
//!
//! The other side is the slowest write of as many as before, when nothing moved. What the host took
//! of the processors around a write is taken off it, on both sides; the slowest as it was is told
//! beside.

use std::time::Instant;

use dmce_abi::wire::admin::{AdminReply, AdminRequest, CopyState};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_tests::Instance;
use libdmce::connection::Connection;

use crate::losses::{wait, wait_written};
use crate::measure::{Pair, time};
use crate::memory::{OwnObject, copy};
use crate::records::RECORD_BYTES;
use crate::setting::Setting;
use crate::table::{self, Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

const DAEMONS: u32 = 3;
/// Where all blocks are before a daemon is drained.
const DRAINED: u32 = 1;
/// The design's number of clients.
const CLIENTS: u64 = 4;
/// Clients of the daemon that is drained, each with as much.
const OF_DRAINED: u64 = 3;
/// How long a block that moves may hold up an operation.
const BOUND: f64 = 20e-3;

/// How much a round does.
#[derive(Clone, Copy)]
struct Size {
    clients: u64,
    copies: u32,
    /// Records of each client, a power of two.
    records: u64,
    /// Writes of each client before.
    writes: u64,
    is_drain: bool,
}

/// What a round has measured, in seconds.
#[derive(Clone, Copy)]
struct Round {
    slowest: f64,
    /// With what the host took, and how many writes it disturbed.
    as_it_was: f64,
    disturbed: u64,
    calm: f64,
    moved: f64,
    memcpy: f64,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the clients, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let (rounds, records, writes) = setting.effort.pick((5, 1 << 18, 100_000), (2, 1 << 12, 2_000));
    let size = Size { clients: CLIENTS, copies: 1, records, writes, is_drain: false };
    let drain = Size { clients: OF_DRAINED, is_drain: true, ..size };
    let mut rows = Vec::new();
    // One of them never waits for a processor.
    let alone = Size { clients: 1, ..size };
    let twice = |size| Size { copies: 2, ..size };
    for size in [size, twice(size), alone, twice(alone), drain] {
        let measured: Vec<Round> =
            (0..rounds).map(|_| round(setting, size)).collect::<Result<_>>()?;
        rows.extend(rows_of(size, &measured).into_iter().map(super::told));
    }
    Ok(rows)
}

impl Size {
    const fn block_bytes(self) -> u64 {
        self.records * RECORD_BYTES as u64
    }

    const fn moved_bytes(self) -> u64 {
        if self.is_drain { self.clients * self.block_bytes() } else { self.block_bytes() }
    }
}

fn rows_of(size: Size, rounds: &[Round]) -> Vec<Row> {
    let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let Size { clients, copies, .. } = size;
    let what = if size.is_drain { "a daemon is drained" } else { "a block moves" };
    let bytes = table::size(size.moved_bytes());
    let copies = if copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") };
    let writers = if clients == 1 {
        "1 client writes".to_owned()
    } else {
        format!("{clients} clients write")
    };
    let worst = |of: fn(&Round) -> f64| each(of).into_iter().fold(0.0, f64::max);
    let state = format!("{bytes}, {copies}, {writers}, 0 failed calls");
    let disturbed: u64 = rounds.iter().map(|round| round.disturbed).sum();
    let as_it_was = table::duration(worst(|round| round.as_it_was));
    let stalls = format!("{state}; with the host, that disturbed {disturbed}: {as_it_was}");
    let row = |quantity, state, against, unit, goal, pair: &Pair| {
        Row::new(Subject { quantity, state, against, unit, goal }, pair)
    };
    let stall = Pair::of_one(worst(|round| round.slowest), worst(|round| round.calm));
    let rate = Pair::of_rounds(each(|round| round.moved), each(|round| round.memcpy));
    vec![
        row(
            format!("{what}: slowest dmce_write of all"),
            stalls,
            "the same, nothing moves",
            Unit::Time,
            if size.is_drain { Goal::None } else { Goal::Within(BOUND) },
            &stall,
        ),
        row(
            what.to_owned(),
            state,
            "memcpy, own mappings",
            Unit::Rate(size.moved_bytes()),
            Goal::None,
            &rate,
        ),
    ]
}

fn round(setting: &mut Setting, size: Size) -> Result<Round> {
    let Size { clients, copies, records, writes, is_drain } = size;
    let instance = setting.start(Instance::builder().daemons(DAEMONS).capacity("3GiB"))?;
    let others = (1..=DAEMONS).filter(|daemon| is_drain && *daemon != DRAINED);
    for daemon in others.clone() {
        ask(&instance, AdminRequest::Drain { daemon, is_draining: true })?;
    }
    let mut workers = (0..clients)
        .map(|client| {
            // Where one block moves, that is the first client's.
            let records = if is_drain || client == 0 { records } else { records >> 6 };
            let mut worker = Worker::open(&setting.worker, &instance.socket())?;
            worker.ask(&format!("records {records} {copies} {client}"))?;
            Ok(worker)
        })
        .collect::<Result<Vec<_>>>()?;
    for daemon in others {
        ask(&instance, AdminRequest::Drain { daemon, is_draining: false })?;
    }
    wait_written(&mut workers, writes, written)?;
    own(&mut workers)?;
    wait_written(&mut workers, writes, written)?;
    let (calm, _, _) = own(&mut workers)?;
    let begin = Instant::now();
    if is_drain {
        ask(&instance, AdminRequest::Drain { daemon: DRAINED, is_draining: true })?;
        wait("a daemon that is drained", || Ok(!has_good(&instance, DRAINED)))?;
    } else {
        let moved = instance.blocks().into_iter().max_by_key(|row| row.committed);
        let row = moved.ok_or_else(no_copy)?;
        let is_free = |to: &u32| row.copies.iter().all(|copy| copy.daemon != *to);
        let to = (1..=DAEMONS).find(is_free).ok_or_else(no_copy)?;
        ask(&instance, AdminRequest::Migrate { block: row.block, from: 0, to })?;
    }
    let moved = begin.elapsed().as_secs_f64();
    wait_written(&mut workers, writes / 10, written)?;
    let (slowest, as_it_was, disturbed) = own(&mut workers)?;
    for worker in &mut workers {
        worker.ask("rest")?;
    }
    drop((workers, instance));
    let bytes = usize::try_from(size.moved_bytes()).map_err(|_| no_copy())?;
    let [from, to] = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
    let memcpy = time(1, || {
        // SAFETY: both are as long, and this thread's.
        unsafe { copy(to.area().start(), from.area().start(), bytes) };
        Ok(())
    })?;
    Ok(Round { slowest, as_it_was, disturbed, calm, moved, memcpy })
}

fn ask(instance: &Instance, request: AdminRequest) -> Result<AdminReply> {
    let asked = Connection::connect(instance.socket())
        .and_then(|mut broker: Connection| broker.request(&ClientRequest::Admin(request)));
    match asked {
        Ok((ClientReply::Admin(reply), _)) => Ok(reply),
        other => {
            let error = std::io::Error::other(format!("{other:?}"));
            Err(Error::system("asking the broker")(error))
        }
    }
}

/// Of the writes of all clients since they were asked last: the slowest, without what the host took
/// and as it was, and how many the host disturbed.
fn own(workers: &mut [Worker]) -> Result<(f64, f64, u64)> {
    workers.iter_mut().try_fold((0.0_f64, 0.0_f64, 0), |(own, slowest, disturbed), worker| {
        let own = own.max(worker.seconds("own")?);
        let slowest = slowest.max(worker.seconds("slowest")?);
        Ok((own, slowest, disturbed + worker.count("disturbed")?))
    })
}

fn written(worker: &mut Worker) -> Result<u64> {
    worker.count("written")
}

fn has_good(instance: &Instance, daemon: u32) -> bool {
    let copies = instance.blocks().into_iter().flat_map(|block| block.copies);
    let mut of_it = copies.filter(|copy| copy.daemon == daemon);
    of_it.any(|copy| copy.state == CopyState::Good)
}

fn no_copy() -> Error {
    Error::system("looking for a block that can move")(std::io::ErrorKind::NotFound.into())
}

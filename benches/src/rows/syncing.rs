//! A daemon is lost with its memory, and what it held gets a copy on another one: how long until
//! every block has two good ones again.
//!
//! Every round has an instance of its own, with three daemons and one allocation of two copies.
//! The other side is a `memcpy` of as many bytes between objects that the measuring program made
//! and mapped itself; with *new* it makes the second of them, too, as a daemon does.
//!
//! Where clients write meanwhile, each has records of its own, which lose their copy as well. What
//! they keep of the rate that they had with two copies is a row beside.

use std::time::Instant;

use dmce_abi::wire::admin::CopyState;
use dmce_tests::Instance;

use crate::calls::Calls;
use crate::losses::{lose, wait, wait_written};
use crate::measure::{Pair, time};
use crate::memory::{Anonymous, OwnObject, copy};
use crate::session::{Session, Wanted};
use crate::setting::Setting;
use crate::table::{self, Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

const COPIES: u32 = 2;
const DAEMONS: u32 = 3;
/// As the configuration has it.
const SYNC_BLOCKS: u32 = 4;
/// The design's number of clients.
const CLIENTS: u64 = 4;
/// Records that each has.
pub(super) const RECORDS: u64 = 1 << 12;
const BUFFER_BYTES: usize = 64 << 20;

/// How much a round does.
#[derive(Clone, Copy)]
struct Size {
    clients: u64,
    /// Of the allocation that is not written.
    bytes: usize,
    /// Writes of each client that its rate is taken of.
    writes: u64,
}

/// What a round has measured.
#[derive(Clone, Copy)]
struct Round {
    /// Until all copies were there, in seconds.
    made: f64,
    memcpy: f64,
    memcpy_to_new: f64,
    /// Seconds of one write of any client, meanwhile and before.
    write: Option<[f64; 2]>,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the clients, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let (rounds, bytes, writes) = setting.effort.pick((7, 1 << 30, 50_000), (2, 64 << 20, 2_000));
    let mut rows = Vec::new();
    for clients in [0, CLIENTS] {
        let size = Size { clients, bytes, writes };
        let measured: Vec<Round> =
            (0..rounds).map(|number| round(setting, size, number)).collect::<Result<_>>()?;
        rows.extend(rows_of(size, &measured).into_iter().map(super::told));
    }
    Ok(rows)
}

fn rows_of(Size { clients, bytes, .. }: Size, rounds: &[Round]) -> Vec<Row> {
    let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
    let state = match clients {
        0 => format!("{}, idle", table::size(bytes as u64)),
        clients => format!("{}, {clients} clients write", table::size(bytes as u64)),
    };
    let row = |quantity: &str, against, unit, goal, pair: &Pair| {
        let (quantity, state) = (quantity.to_owned(), state.clone());
        Row::new(Subject { quantity, state, against, unit, goal }, pair)
    };
    let (what, unit) = ("a lost copy is made again", Unit::Rate(bytes as u64));
    let goal = Goal::AtLeast(if clients == 0 { 0.4 } else { 0.2 });
    let made = each(|round| round.made);
    let memcpy = Pair::of_rounds(made.clone(), each(|round| round.memcpy));
    let to_new = Pair::of_rounds(made, each(|round| round.memcpy_to_new));
    let mut rows = vec![
        row(what, "memcpy, own mappings", unit, goal, &memcpy),
        row(what, "memcpy to a new object", unit, Goal::None, &to_new),
    ];
    let writes: Vec<[f64; 2]> = rounds.iter().filter_map(|round| round.write).collect();
    if !writes.is_empty() {
        let side = |side: usize| writes.iter().map(|both| both[side]).collect();
        let pair = Pair::of_rounds(side(0), side(1));
        let what = "dmce_write of 4 KiB meanwhile, all clients";
        rows.push(row(what, "the same before", Unit::Time, Goal::AtLeast(0.7), &pair));
    }
    rows
}

fn round(setting: &mut Setting, size: Size, number: u32) -> Result<Round> {
    let Size { clients, bytes, writes } = size;
    let builder = Instance::builder().daemons(DAEMONS).capacity("3GiB").sync_blocks(SYNC_BLOCKS);
    let mut instance = setting.start(builder)?;
    let session = fill(&instance, bytes)?;
    let mut workers = writers(setting, &instance, clients)?;
    // Each place a few times, so that all memory is there.
    wait_written(&mut workers, RECORDS * 8, written)?;
    let before = rate(&mut workers, |workers| wait_written(workers, writes, written))?;
    let holder = holders(&instance).nth(number as usize % 2).ok_or_else(no_copy)?;
    let begin = Instant::now();
    let meanwhile = rate(&mut workers, |_| {
        lose(&mut instance, holder)?;
        wait("copies that are made again", || Ok(is_whole(&instance, holder)))
    })?;
    let made = begin.elapsed().as_secs_f64();
    for worker in &mut workers {
        worker.ask("rest")?;
    }
    drop((workers, session, instance));
    let [from, to] = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
    let memcpy_between = |to: &OwnObject| {
        // SAFETY: both are as long, and this thread's.
        unsafe { copy(to.area().start(), from.area().start(), bytes) };
        Ok(())
    };
    let memcpy = time(1, || memcpy_between(&to))?;
    drop(to);
    let memcpy_to_new = time(1, || memcpy_between(&OwnObject::new(bytes)?))?;
    let write = meanwhile.zip(before).map(|(meanwhile, before)| [meanwhile, before]);
    Ok(Round { made, memcpy, memcpy_to_new, write })
}

/// Memory of two copies that was written once.
pub(super) fn fill(instance: &Instance, bytes: usize) -> Result<Session> {
    let session = Session::open(Calls::linked(), &instance.socket(), 0)?;
    let addr = session.malloc_as(bytes as u64, Wanted { copies: COPIES, page_size: 0 })?;
    let buffer = Anonymous::new(BUFFER_BYTES)?;
    for offset in (0..bytes as u64).step_by(BUFFER_BYTES) {
        // SAFETY: the buffer is as long as is said.
        unsafe { session.write(addr + offset, buffer.area().start(), BUFFER_BYTES) }?;
    }
    Ok(session)
}

/// Clients that write records of their own, of two copies.
pub(super) fn writers(setting: &Setting, instance: &Instance, clients: u64) -> Result<Vec<Worker>> {
    let open = |client| {
        let mut worker = Worker::open(&setting.worker, &instance.socket())?;
        worker.ask(&format!("records {RECORDS} {COPIES} {client}"))?;
        Ok(worker)
    };
    (0..clients).map(open).collect()
}

/// The seconds of one write of all clients while something is done; `None` if there are none.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub(super) fn rate(
    workers: &mut [Worker],
    act: impl FnOnce(&mut [Worker]) -> Result<()>,
) -> Result<Option<f64>> {
    let all = |workers: &mut [Worker]| workers.iter_mut().map(written).sum::<Result<u64>>();
    let (before, begin) = (all(workers)?, Instant::now());
    act(workers)?;
    let (elapsed, writes) = (begin.elapsed(), all(workers)? - before);
    Ok((writes > 0).then(|| elapsed.as_secs_f64() / writes as f64))
}

pub(super) fn written(worker: &mut Worker) -> Result<u64> {
    worker.count("written")
}

/// Daemons that have a good copy of something, those of the first block first.
fn holders(instance: &Instance) -> impl Iterator<Item = u32> {
    let copies = instance.blocks().into_iter().flat_map(|block| block.copies);
    copies.filter(|copy| copy.state == CopyState::Good).map(|copy| copy.daemon)
}

/// Whether all that was on a daemon is on another one.
fn is_whole(instance: &Instance, lost: u32) -> bool {
    let is_good = |daemon, state| daemon != lost && state == CopyState::Good;
    instance.blocks().iter().all(|block| {
        let good = block.copies.iter().filter(|copy| is_good(copy.daemon, copy.state)).count();
        good == COPIES as usize
    })
}

fn no_copy() -> Error {
    Error::system("looking for a copy")(std::io::ErrorKind::NotFound.into())
}

//! The copies of blocks are compared while clients write, or while nobody does.
//!
//! Every round has an instance of its own, with two daemons, an allocation of two copies that
//! nobody writes, and clients with records of their own, of two copies as well. As fast as can be,
//! the other side is a `memcpy` of as many bytes as the block has, between objects that the
//! measuring program made and mapped itself. At a set rate it is what clients write before and
//! after.

use dmce_abi::wire::admin::{AdminReply, AdminRequest};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_tests::Instance;
use libdmce::connection::{Connection, Deadline};

use super::syncing::{RECORDS, fill, rate, writers, written};
use crate::losses::wait_written;
use crate::measure::{Pair, time};
use crate::memory::{OwnObject, copy};
use crate::records::RECORD_BYTES;
use crate::setting::Setting;
use crate::table::{self, Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

/// The design's number of clients.
const CLIENTS: u64 = 4;
/// What is compared a second where that is set, in all copies.
const RATE: u64 = 256 << 20;

/// Measures the group.
///
/// # Errors
///
/// Those of the clients, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let (rounds, bytes, writes) = setting.effort.pick((7, 1 << 30, 500_000), (2, 64 << 20, 2_000));
    let idle: Vec<[f64; 2]> = (0..rounds).map(|_| idle(setting, bytes)).collect::<Result<_>>()?;
    let beside: Vec<[f64; 2]> =
        (0..rounds).map(|_| beside(setting, bytes / 4, writes)).collect::<Result<_>>()?;
    let side = |of: &[[f64; 2]], side: usize| of.iter().map(|both| both[side]).collect();
    let row = |what: &str, state, against, (unit, goal), measured: &[[f64; 2]]| {
        let subject = Subject { quantity: what.to_owned(), state, against, unit, goal };
        let pair = Pair::of_rounds(side(measured, 0), side(measured, 1));
        super::told(Row::new(subject, &pair))
    };
    let state = format!("{}, 2 copies, idle", table::size(bytes as u64));
    let meanwhile = format!(
        "{}/s are compared, {CLIENTS} clients write {}",
        table::size(RATE),
        table::size(RECORD_BYTES as u64)
    );
    let goal = Goal::AtLeast(1.0 - share(&beside));
    Ok(vec![
        row(
            "the copies of a block are compared",
            state,
            "memcpy, own mappings",
            (Unit::Rate(bytes as u64), Goal::None),
            &idle,
        ),
        row("dmce_write", meanwhile, "the same before and after", (Unit::Time, goal), &beside),
    ])
}

/// The part that the rate is of what clients write otherwise.
#[allow(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
fn share(beside: &[[f64; 2]]) -> f64 {
    let mut before: Vec<f64> = beside.iter().map(|[_, before]| *before).collect();
    before.sort_by(f64::total_cmp);
    RATE as f64 * before[before.len() / 2] / RECORD_BYTES as f64
}

fn start(setting: &mut Setting, rate: u64) -> Result<Instance> {
    let config = format!("[broker]\nscrub_rate = \"{rate}\"\n");
    setting.start(Instance::builder().daemons(2).capacity("3GiB").config(&config))
}

fn idle(setting: &mut Setting, bytes: usize) -> Result<[f64; 2]> {
    let instance = start(setting, 0)?;
    let session = fill(&instance, bytes)?;
    // What is remembered of pages is there from the first time on.
    scrub(&instance)?;
    let compared = time(1, || scrub(&instance))?;
    drop((session, instance));
    let [from, to] = [OwnObject::new(bytes)?, OwnObject::new(bytes)?];
    let memcpy = time(1, || {
        // SAFETY: both are as long, and this thread's.
        unsafe { copy(to.area().start(), from.area().start(), bytes) };
        Ok(())
    })?;
    Ok([compared, memcpy])
}

/// The seconds of one write of all clients, meanwhile, and before and after.
fn beside(setting: &mut Setting, bytes: usize, writes: u64) -> Result<[f64; 2]> {
    let instance = start(setting, RATE)?;
    let _session = fill(&instance, bytes)?;
    let mut workers = writers(setting, &instance, CLIENTS)?;
    wait_written(&mut workers, RECORDS * 8, written)?;
    // As long as the other takes, nearly, and on both sides of it.
    let alone =
        |workers: &mut [Worker]| rate(workers, |workers| wait_written(workers, writes, written));
    let before = alone(&mut workers)?;
    let meanwhile = rate(&mut workers, |_| scrub(&instance))?;
    let after = alone(&mut workers)?;
    for worker in &mut workers {
        worker.ask("rest")?;
    }
    let both = before.zip(after).map(|(before, after)| before.midpoint(after));
    let (meanwhile, alone) = meanwhile.zip(both).ok_or_else(nothing_written)?;
    Ok([meanwhile, alone])
}

fn scrub(instance: &Instance) -> Result<()> {
    let unasked = Error::system("asking for copies to be compared");
    let asked = Connection::connect(instance.socket()).and_then(|mut broker: Connection| {
        let request = ClientRequest::Admin(AdminRequest::Scrub { block: 0 });
        broker.request_until(&request, Deadline::NEVER)
    });
    match asked {
        Ok((ClientReply::Admin(AdminReply::Scrubbed { .. }), _)) => Ok(()),
        _ => Err(unasked(std::io::ErrorKind::Other.into())),
    }
}

fn nothing_written() -> Error {
    Error::system("counting writes")(std::io::ErrorKind::NotFound.into())
}

//! A daemon goes with all that it holds while clients write to memory with two copies: how long the
//! slowest write of a client takes. A call that fails ends the run.
//!
//! Every round has an instance of its own, with two daemons; in turn the one or the other of them
//! is lost. Its objects are cut to nothing, so that also who has them mapped has no more of them,
//! their names go, and then the daemon is killed. What is left is one copy of everything.
//!
//! ```text
//! all clients write --- calm: as many writes ---+--- the loss --- as many writes --- all is read
//!                       the slowest of each     |    the slowest of each
//! ```
//!
//! The other side are as many clients of Redis, whose primary is killed: each sees its connection
//! end, tells the replica that it is the primary now, and writes there. What the replica did not
//! have yet is lost then, and nobody looks; DMCE's clients read all that they have written.
//!
//! Where clients are more than processors, what one waits for a processor is in its slowest write.
//! So there are rows with one client, too, and beside each stands what a write takes when nothing
//! is lost.
//!
//! A host that stops a processor of a virtual machine for a while holds up whoever runs there, and
//! the slowest write of a round is then the host's. The kernel counts such time, and a round with
//! more than little of it is done again.

use std::time::Duration;

use dmce_abi::wire::admin::CopyState;
use dmce_tests::Instance;

use crate::losses::{lose, wait, wait_written};
use crate::machine;
use crate::measure::{Pair, median, percentile};
use crate::places::Places;
use crate::records::{RECORD_BYTES, Writing};
use crate::redis;
use crate::setting::Setting;
use crate::table::{self, Goal, Row, Subject, Unit};
use crate::worker::Worker;
use crate::{Error, Result};

const COPIES: u32 = 2;
/// The design's number of clients, and one that has a processor for itself.
const CLIENTS: [u64; 2] = [4, 1];
/// Records that a client has: a power of two.
const RECORDS: u64 = 1 << 12;
/// The design's bound on what a client may be held up.
const BOUND: f64 = 50e-3;
/// How often a round is done again at most.
const TRIES: u32 = 5;
/// What the host may take of the processors in a round: two ticks of the kernel's count.
const STOLEN_MAX: Duration = Duration::from_millis(20);
/// How often faster DMCE's client writes, so that both sides write for about as long.
const FACTOR: u64 = 10;

const MEDIAN: &str = "a daemon is lost: slowest dmce_write, median";

/// How much a round does.
#[derive(Clone, Copy)]
struct Size {
    clients: u64,
    rounds: u64,
    /// Writes of each client before the loss, and after it.
    writes: u64,
}

/// What a round has measured, in seconds: the slowest write of each client.
struct Round {
    calm: Vec<f64>,
    lost: Vec<f64>,
    redis: Option<Vec<f64>>,
}

/// Measures the group.
///
/// # Errors
///
/// Those of the clients, the servers and the system.
pub fn measure(setting: &mut Setting) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for clients in CLIENTS {
        let (rounds, writes) = setting.effort.pick((25, 20_000), (2, 2_000));
        let size = Size { clients, rounds, writes };
        // It warms up.
        round(setting, size, 0)?;
        let measured: Vec<_> =
            (1..=rounds).map(|number| whole_round(setting, size, number)).collect::<Result<_>>()?;
        rows.push(super::told(slowest(&measured, size)));
        rows.push(super::told(held_up(&measured, size)));
        match redis_row(&measured, size) {
            Some(row) => rows.push(super::told(row)),
            None => eprintln!("left out: redis-server is not installed"),
        }
    }
    Ok(rows)
}

impl Size {
    fn text(self) -> String {
        let clients = if self.clients == 1 { "client writes" } else { "clients write" };
        let (bytes, rounds) = (table::size(RECORD_BYTES as u64), self.rounds);
        // None by construction: the first one ends the run.
        format!("{} {clients} {bytes}, {rounds} losses, 0 failed calls", self.clients)
    }
}

/// How long the slowest writes of all clients in all rounds took.
fn slowest(rounds: &[Round], size: Size) -> Row {
    let worst = |of: fn(&Round) -> &[f64]| {
        let all: Vec<f64> = rounds.iter().flat_map(|round| of(round).iter().copied()).collect();
        percentile(&all, 0.99)
    };
    let subject = Subject {
        quantity: "a daemon is lost: slowest dmce_write, p99".to_owned(),
        state: size.text(),
        against: "the same, nothing lost",
        unit: Unit::Time,
        goal: Goal::Within(BOUND),
    };
    Row::new(subject, &Pair::of_one(worst(|round| &round.lost), worst(|round| &round.calm)))
}

/// What the loss adds to the slowest write of a client. Where clients are more than processors, the
/// slowest one waits for a turn of another client, lost or not.
fn held_up(rounds: &[Round], size: Size) -> Row {
    let each = |of: fn(&Round) -> &[f64]| rounds.iter().map(|round| median(of(round))).collect();
    let subject = Subject {
        quantity: MEDIAN.to_owned(),
        state: size.text(),
        against: "the same, nothing lost",
        unit: Unit::Time,
        goal: Goal::None,
    };
    Row::new(subject, &Pair::of_rounds(each(|round| &round.lost), each(|round| &round.calm)))
}

fn redis_row(rounds: &[Round], size: Size) -> Option<Row> {
    let ours = rounds.iter().map(|round| median(&round.lost)).collect();
    let theirs = rounds.iter().map(|round| round.redis.as_deref().map(median));
    let theirs = theirs.collect::<Option<_>>()?;
    let subject = Subject {
        quantity: MEDIAN.to_owned(),
        state: size.text(),
        against: "Redis replica, promoted by its client",
        unit: Unit::Time,
        goal: Goal::MoreThan(1.0),
    };
    Some(Row::new(subject, &Pair::of_rounds(ours, theirs)))
}

/// A round in which the processors were there; after some tries, one as it comes.
fn whole_round(setting: &mut Setting, size: Size, number: u64) -> Result<Round> {
    for _ in 0..TRIES {
        let before = machine::stolen();
        let measured = round(setting, size, number)?;
        let stolen = machine::stolen().saturating_sub(before);
        if stolen <= STOLEN_MAX {
            return Ok(measured);
        }
        eprintln!("again: the host took {stolen:?} of the processors");
    }
    round(setting, size, number)
}

fn round(setting: &mut Setting, size: Size, number: u64) -> Result<Round> {
    let builder = Instance::builder().daemons(COPIES).capacity("256MiB");
    let mut instance = setting.start(builder)?;
    let mut clients = Vec::new();
    for client in 0..size.clients {
        let mut worker = Worker::open(&setting.worker, &instance.socket())?;
        let seed = number * size.clients + client;
        worker.ask(&format!("records {RECORDS} {COPIES} {seed}"))?;
        clients.push(worker);
    }
    // Each place a few times, so that all memory is there.
    wait_written(&mut clients, RECORDS * 8, written)?;
    slowest_of(&mut clients)?;
    wait_written(&mut clients, size.writes, written)?;
    let calm = slowest_of(&mut clients)?;
    let daemon = u32::from(number % 2 == 1) + 1;
    lose(&mut instance, daemon)?;
    // The next write of each client goes to the copy that is gone as well.
    wait_written(&mut clients, size.writes, written)?;
    let lost = slowest_of(&mut clients)?;
    wait("a loss that is noticed", || Ok(!has_good_copies(&instance, daemon)))?;
    for client in &mut clients {
        client.ask("rest")?;
    }
    drop(clients);
    Ok(Round { calm, lost, redis: promotion(&instance, size)? })
}

fn written(client: &mut Worker) -> Result<u64> {
    client.count("written")
}

/// What every client has taken at most for one write since this was asked last, in seconds.
fn slowest_of(clients: &mut [Worker]) -> Result<Vec<f64>> {
    clients.iter_mut().map(|client| client.seconds("slowest")).collect()
}

fn has_good_copies(instance: &Instance, daemon: u32) -> bool {
    let copies = instance.blocks().into_iter().flat_map(|block| block.copies);
    copies.into_iter().any(|copy| (copy.daemon, copy.state) == (daemon, CopyState::Good))
}

/// The slowest write of each client of Redis when the primary is killed; `None` if there is no
/// Redis.
fn promotion(instance: &Instance, size: Size) -> Result<Option<Vec<f64>>> {
    let Some(mut pair) = redis::Pair::start(instance.dir())? else { return Ok(None) };
    let mut clients = Vec::new();
    for seed in 0..size.clients {
        clients.push(following(&pair, seed)?);
    }
    let writes = size.writes / FACTOR;
    wait_written(&mut clients, writes, Writing::written)?;
    for client in &clients {
        // What it took at most until now is of no interest.
        let _ = client.take_slowest();
    }
    pair.primary.kill()?;
    wait_written(&mut clients, writes, Writing::written)?;
    let slowest = clients.iter().map(|client| client.take_slowest().as_secs_f64()).collect();
    for client in clients {
        client.finish()?;
    }
    Ok(Some(slowest))
}

/// A client that writes to the primary, and when that is gone makes the replica one.
fn following(pair: &redis::Pair, seed: u64) -> Result<Writing> {
    let mut primary = Some(pair.primary.connect()?);
    let mut replica = pair.replica.connect()?;
    Ok(Writing::start(Places::below(RECORDS, seed), move |place, record| {
        let key = format!("record{place}");
        if let Some(client) = &mut primary {
            match client.store(&key, record) {
                // The connection has ended.
                Err(Error::System { .. }) => {}
                answered => return answered,
            }
            primary = None;
            replica.promote()?;
        }
        replica.store(&key, record)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { clients: 4, rounds: 3, writes: 10 };

    fn rounds() -> Vec<Round> {
        let round = |lost: f64| Round {
            calm: vec![1e-3; 4],
            lost: vec![2e-3, 3e-3, lost, 1e-3],
            redis: Some(vec![5e-3; 4]),
        };
        vec![round(4e-3), round(60e-3), round(4e-3)]
    }

    #[test]
    fn one_client_that_is_held_up_misses_the_bound() {
        assert!(slowest(&rounds(), SIZE).missed());
        assert!(!slowest(&rounds()[..1], SIZE).missed());
    }

    #[test]
    fn redis_has_no_row_without_figures_of_each_round() {
        let mut rounds = rounds();
        assert!(!redis_row(&rounds, SIZE).expect("all have some").missed());
        rounds[1].redis = None;
        assert!(redis_row(&rounds, SIZE).is_none());
    }
}

//! The campaign: clients write records and note which were acknowledged, while clients, daemons and
//! the broker are killed and stopped; afterwards every record that was acknowledged is there.
//!
//! ```text
//!   writer process --- "try", "acknowledged" ---> ledger, in the campaign's process
//!        |                                           |
//!        v  records                                  v  what must be there
//!   region of the writer  ------------------------> check, at each death of a writer
//! ```
//!
//! # Invariants
//!
//! 1. A writer says what it tries before it begins, and that it was acknowledged before it tries
//!    the next: so at its death the ledger knows all but whether the last try came through.
//! 2. A place has one writer. It is read by others only when that is dead.
//! 3. Nobody waits for a time: a stopped process goes on, and the next misfortune comes, when the
//!    writers have acknowledged so much more.

mod ledger;
mod record;
mod report;
mod work;
mod writer;

use std::time::{Duration, Instant};

pub use ledger::{Ledger, Loss};
pub use report::Report;
pub use work::work;

use libdmce::{Mirror, Prot, RegionOptions, Session};

use crate::client::{MESSAGE_PATH, Signal, own_client, send, stop};
use crate::programs::other_client;
use crate::{Instance, Seeded, wait_until};
use record::{PLACE_BYTES, PLACES};
use writer::Writer;

/// The volume of the writers' regions.
const VOLUME: &str = "torture";

/// Writers: mapped ones of the test's own width and of the other, if there is a program of that,
/// and one on the message path.
const WRITERS: u32 = 4;

/// Records that are acknowledged between two misfortunes, and while somebody is stopped.
const PROGRESS: u64 = 200;

/// How long a campaign is, and what it draws from.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of all that is drawn.
    pub seed: u64,
    /// How long misfortunes happen.
    pub length: Duration,
    /// Daemons.
    pub daemons: u32,
}

/// A campaign under way.
struct Campaign {
    instance: Instance,
    random: Seeded,
    writers: Vec<Writer>,
    report: Report,
    daemons: u32,
}

/// Runs a campaign.
///
/// # Panics
///
/// If a record is lost, a call failed, or somebody stands still.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let mut campaign = Campaign::start(plan);
    let end = Instant::now() + plan.length;
    while Instant::now() < end {
        campaign.wait_progress(|_| true);
        match campaign.random.below(4) {
            0 => campaign.stop_somebody(),
            _ => campaign.kill_some(),
        }
    }
    campaign.end()
}

impl Campaign {
    fn start(plan: Plan) -> Self {
        let instance = Instance::builder().daemons(plan.daemons).capacity("64MiB").start();
        let session = instance.open();
        for writer in 0..WRITERS {
            let bytes = PLACES * PLACE_BYTES;
            session
                .region_create(VOLUME, &name_of(writer), bytes, &RegionOptions::default())
                .expect("there is room for the writers' regions");
        }
        session.close().expect("the broker serves");
        let mut campaign = Self {
            instance,
            random: Seeded::quiet(plan.seed),
            writers: Vec::new(),
            report: Report::default(),
            daemons: plan.daemons,
        };
        for writer in 0..WRITERS {
            let fresh = campaign.start_writer(writer, Ledger::new(PLACES));
            campaign.writers.push(fresh);
        }
        campaign
    }

    fn start_writer(&mut self, writer: u32, ledger: Ledger) -> Writer {
        let is_other = writer % 2 == 1;
        let program = is_other.then(other_client).flatten().unwrap_or_else(own_client);
        let by_message = writer == WRITERS - 1;
        let environment: &[_] = if by_message { &[(MESSAGE_PATH, "1")] } else { &[] };
        let seed = self.random.bits();
        let mut command = std::process::Command::new(program);
        command.env("DMCE_SOCKET", self.instance.socket()).envs(environment.iter().copied());
        let words = format!("open\ntorture {VOLUME} {} {writer} {seed}", name_of(writer));
        Writer::start(command, &words, by_message, ledger)
    }

    /// Waits until each of some writers has acknowledged more.
    fn wait_progress(&self, of: impl Fn(&Writer) -> bool) {
        let waited: Vec<(&Writer, u64)> = self
            .writers
            .iter()
            .filter(|writer| of(writer))
            .map(|writer| (writer, writer.acknowledged() + PROGRESS))
            .collect();
        wait_until("every writer has acknowledged more", || {
            waited.iter().all(|(writer, goal)| writer.acknowledged() >= *goal)
        });
    }

    /// Stops a client or a server, sees that others go on, and has it go on.
    fn stop_somebody(&mut self) {
        let place = self.random.below(u64::from(WRITERS + self.daemons) + 1);
        let place = u32::try_from(place).expect("there are few processes");
        let (kind, pid) = match place {
            0 => ("stopped brokers", self.instance.broker_pid()),
            1..=WRITERS => ("stopped clients", Some(self.writers[place as usize - 1].pid())),
            _ => ("stopped daemons", self.instance.daemon_pid(place - WRITERS)),
        };
        let pid = pid.expect("everybody runs between two misfortunes");
        stop(pid);
        // Who asks a server for each byte waits for it.
        self.wait_progress(|writer| writer.pid() != pid && !writer.is_by_message());
        send(pid, Signal::CONT);
        self.report.count(kind);
    }

    /// Kills some clients and servers in any order, starts what is missing, and sees what is there.
    fn kill_some(&mut self) {
        let mut victims = vec![Victim::Broker];
        victims.extend((1..=self.daemons).map(Victim::Daemon));
        victims.extend((0..WRITERS as usize).map(Victim::Client));
        let count = match self.random.below(8) {
            0 => victims.len(),
            some => usize::try_from(some).expect("few").div_ceil(3),
        };
        let mut dead = Vec::new();
        for _ in 0..count {
            let place = self.random.below(victims.len() as u64);
            let victim = victims.swap_remove(usize::try_from(place).expect("few"));
            self.report.count(victim.kind());
            match victim {
                Victim::Broker => self.instance.kill_broker(),
                Victim::Daemon(daemon) => self.instance.kill_daemon(daemon),
                Victim::Client(writer) => {
                    self.writers[writer].kill();
                    dead.push(writer);
                }
            }
        }
        self.instance.start_all();
        for writer in dead {
            self.check_and_restart(writer);
        }
    }

    fn check_and_restart(&mut self, writer: usize) {
        let number = u32::try_from(writer).expect("there are few writers");
        let mut ledger = self.writers[writer].take_ledger(&mut self.report);
        self.check(number, &mut ledger);
        self.writers[writer] = self.start_writer(number, ledger);
    }

    /// Compares what a dead writer's region has with what must be there.
    fn check(&mut self, writer: u32, ledger: &mut Ledger) {
        let session: Session = self.instance.open();
        let region = session
            .region_open(VOLUME, &name_of(writer), Prot::READ)
            .expect("a region outlives whoever wrote to it");
        let mut found = vec![0; usize::try_from(PLACE_BYTES).expect("a place is small")];
        for place in 0..PLACES {
            region.read(place * PLACE_BYTES, &mut found, Mirror::Any).expect("it is there");
            match ledger.settle(place, record::find(writer, place, &found)) {
                Ok(is_torn) => self.report.torn += u64::from(is_torn),
                Err(loss) => panic!("writer {writer}, place {place}: {loss}"),
            }
        }
        region.close().expect("the broker serves");
        session.close().expect("the broker serves");
    }

    fn end(mut self) -> Report {
        self.wait_progress(|_| true);
        for writer in 0..self.writers.len() {
            self.writers[writer].kill();
            let mut ledger = self.writers[writer].take_ledger(&mut self.report);
            self.check(u32::try_from(writer).expect("there are few writers"), &mut ledger);
        }
        self.report
    }
}

/// Who may be killed.
#[derive(Clone, Copy, Debug)]
enum Victim {
    Broker,
    Daemon(u32),
    Client(usize),
}

impl Victim {
    const fn kind(self) -> &'static str {
        match self {
            Self::Broker => "killed brokers",
            Self::Daemon(_) => "killed daemons",
            Self::Client(_) => "killed clients",
        }
    }
}

fn name_of(writer: u32) -> String {
    format!("writer-{writer}")
}

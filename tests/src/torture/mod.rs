//! The campaign: clients write records and note which were acknowledged, while copies move, while
//! clients, daemons and the broker are killed and stopped, and daemons lose what they hold;
//! afterwards every record that was acknowledged is there, and all good copies are equal.
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
//! 3. Fewer daemons lose something than a region has copies, until the broker has made again what
//!    was lost. Meanwhile others are killed and stopped.
//! 4. Nobody waits for a time: a stopped process goes on, and the next misfortune comes, when the
//!    writers have acknowledged so much more.

mod damage;
mod ledger;
mod mover;
mod record;
mod report;
mod work;
mod writer;

use std::time::{Duration, Instant};

pub use ledger::{Ledger, Loss, Tear};
pub use report::Report;
pub use work::work;

use dmce_abi::wire::admin::{BlockRow, BlockState, CopyState};
use libdmce::{Mirror, Prot, RegionOptions, Session};

use crate::checker::{self, Checked};
use crate::client::{MESSAGE_PATH, Signal, own_client, send, stop};
use crate::programs::other_client;
use crate::{Instance, Seeded, wait_until};
use damage::Damage;
use mover::Mover;
use record::{LANES, PLACE_BYTES, PLACES, REGION_BYTES};
use writer::Writer;

/// The volume of the writers' regions.
const VOLUME: &str = "torture";

/// Writers: mapped ones of the test's own width and of the other, if there is a program of that,
/// and one on the message path.
const WRITERS: u32 = 4;
const _: () = assert!(LANES == 2 && WRITERS.is_multiple_of(LANES));

/// Blocks that get a copy again at one time.
const SYNC_BLOCKS: u32 = 2;

/// Regions that nobody uses.
const IDLE: u32 = 2;

/// Blocks move by themselves as well, and copies are compared as fast as can be.
const CONFIG: &str = "[broker]\nrebalance_percent = 1\nusage_ms = 100\nscrub_rate = \"0\"\n";

/// Records that are acknowledged between two misfortunes, and while somebody is stopped.
const PROGRESS: u64 = 200;

/// How long a writer waits for an answer, in milliseconds. Who asks daemons has none while all are
/// dead, and the next one of a daemon starts when the kernel has ended the one before: where it has
/// to give back a watch on a folder, a busy machine has taken 42 s for that.
const PATIENCE_MS: u32 = 50_000;

/// Misfortunes of a round.
const MISFORTUNES_MIN: u64 = 4;
const MISFORTUNES_MAX: u64 = 16;

/// How long a campaign is, and what it draws from.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Of all that is drawn.
    pub seed: u64,
    /// How long misfortunes happen.
    pub length: Duration,
    /// Daemons.
    pub daemons: u32,
    /// Copies of the writers' regions: one fewer may be lost, until all are there again.
    pub copies: u32,
}

/// A campaign under way.
struct Campaign {
    instance: Instance,
    random: Seeded,
    writers: Vec<Writer>,
    mover: Mover,
    report: Report,
    plan: Plan,
    end: Instant,
    /// Daemons that may lose something before all copies are there again.
    spare: u32,
}

/// Runs a campaign.
///
/// # Panics
///
/// If a record is lost, copies differ, or somebody stands still.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let builder = Instance::builder().daemons(plan.daemons).capacity("64MiB");
    let instance = builder.sync_blocks(SYNC_BLOCKS).config(CONFIG).start();
    let mover = Mover::new(instance.socket(), (plan.daemons, plan.copies), plan.seed);
    let mut campaign = Campaign {
        instance,
        random: Seeded::quiet(plan.seed),
        writers: Vec::new(),
        mover,
        report: Report::default(),
        plan,
        end: Instant::now() + plan.length,
        spare: 0,
    };
    while Instant::now() < campaign.end {
        campaign.round();
    }
    campaign.report.moves = campaign.mover.counts();
    let log = campaign.instance.log("broker");
    let evened = log.lines().filter(|line| line.contains("blocks move between daemons"));
    campaign.report.moves.insert("times that daemons were evened", evened.count() as u64);
    campaign.report
}

impl Campaign {
    /// New regions, misfortunes, and a look at what is left.
    fn round(&mut self) {
        self.begin_round();
        let count = MISFORTUNES_MIN + self.random.below(MISFORTUNES_MAX - MISFORTUNES_MIN + 1);
        for _ in 0..count {
            // The first round is whole, so that each campaign has all kinds of misfortune.
            if Instant::now() >= self.end && self.report.rounds > 0 {
                break;
            }
            self.wait_progress(|_| true);
            match self.random.below(4) {
                0 => self.stop_somebody(),
                1 if self.plan.copies > 1 => self.lose_copies(),
                _ => self.kill_some(),
            }
        }
        self.wait_progress(|_| true);
        self.mover.pause();
        self.wait_whole();
        self.end_round();
    }

    fn begin_round(&mut self) {
        let options = RegionOptions { copies: self.plan.copies, ..RegionOptions::default() };
        let session = self.instance.open();
        for name in names() {
            session
                .region_create(VOLUME, &name, REGION_BYTES, &options)
                .expect("there is room for the writers' regions");
        }
        session.close().expect("the broker serves");
        let tear = if self.plan.copies > 1 { Tear::Pages } else { Tear::Bytes };
        for writer in 0..WRITERS {
            let fresh = self.start_writer(writer, Ledger::new(writer, PLACES, tear));
            self.writers.push(fresh);
        }
        self.spare = self.plan.copies - 1;
        self.mover.go_on();
    }

    /// Waits until all that was lost was made again.
    fn wait_whole(&mut self) {
        let copies = self.plan.copies as usize;
        if self.spare + 1 == self.plan.copies {
            return;
        }
        let is_whole = |row: &BlockRow| {
            let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
            row.state == BlockState::Ok && good.count() >= copies
        };
        wait_until("all copies are there again", || self.instance.blocks().iter().all(is_whole));
        self.report.count("losses after which all copies were made again");
        self.spare = self.plan.copies - 1;
    }

    /// A daemon loses what it holds, or some of it, and the writers notice nothing but the time.
    ///
    /// A writer that died before is repaired first, and nobody dies until the copies are good no
    /// more and each write that was under way then is done: a page whose writer dies as well as the
    /// copy that it was writing may be lost (docs/adr/0008-two-copies.md). A copy whose name alone
    /// is gone is written to until then.
    fn lose_copies(&mut self) {
        if self.spare == 0 {
            self.wait_whole();
        }
        self.spare -= 1;
        let daemon = 1 + self.random.below(self.plan.daemons.into());
        let daemon = u32::try_from(daemon).expect("there are few daemons");
        wait_until("the dead are repaired", || !self.look().awaits_repair());
        for writer in &self.writers {
            self.report.slowest = self.report.slowest.max(writer.take_slowest());
        }
        let damage = Damage::draw(&mut self.random);
        damage.inflict(&mut self.instance, daemon, &mut self.random);
        self.report.count(damage.kind());
        if let Some(victims) = damage.victims() {
            self.report.count(victims);
        }
        self.wait_redirected();
        self.wait_progress(|_| true);
        let slowest = self.writers.iter().map(Writer::take_slowest).max().unwrap_or_default();
        self.report.slowest_redirect = self.report.slowest_redirect.max(slowest);
        self.report.slowest = self.report.slowest.max(slowest);
    }

    /// Waits until every writer's region is served with the copies that are left.
    fn wait_redirected(&self) {
        wait_until("lost copies are good no more", || !self.look().awaits_redirect());
        // Opened when all who know of a block were told of it, and not before.
        let session = self.instance.open();
        for writer in (0..WRITERS).step_by(LANES as usize) {
            let region = session
                .region_open(VOLUME, &name_of(writer), Prot::READ)
                .expect("a copy of it is left");
            region.close().expect("the broker serves");
        }
        session.close().expect("the broker serves");
    }

    fn look(&self) -> Checked {
        checker::check(self.instance.folder(), self.instance.name())
            .expect("own objects are looked at")
    }

    fn start_writer(&mut self, writer: u32, ledger: Ledger) -> Writer {
        let is_other = writer % 2 == 1;
        let program = is_other.then(other_client).flatten().unwrap_or_else(own_client);
        let by_message = writer == WRITERS - 1;
        let environment: &[_] = if by_message { &[(MESSAGE_PATH, "1")] } else { &[] };
        let seed = self.random.bits();
        let mut command = std::process::Command::new(program);
        command.env("DMCE_SOCKET", self.instance.socket()).envs(environment.iter().copied());
        let words =
            format!("open {PATIENCE_MS}\ntorture {VOLUME} {} {writer} {seed}", name_of(writer));
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
        let place = self.random.below(u64::from(WRITERS + self.plan.daemons) + 1);
        let place = u32::try_from(place).expect("there are few processes");
        let (kind, pid) = match place {
            0 => ("stopped brokers", self.instance.broker_pid()),
            1..=WRITERS => ("stopped clients", Some(self.writers[place as usize - 1].pid())),
            _ => ("stopped daemons", self.instance.daemon_pid(place - WRITERS)),
        };
        let pid = pid.expect("everybody runs between two misfortunes");
        if !(1..=WRITERS).contains(&place) {
            // Who was told of a change asks the broker what it is; and a daemon that copies holds
            // pages.
            self.mover.pause();
            wait_until("no copy is made, or goes", || {
                let repair = self.instance.status().repair;
                (repair.syncing, repair.lacking) == (0, 0)
            });
            self.wait_progress(|_| true);
        }
        stop(pid);
        // Who asks a server for each byte waits for it; and with copies, which any region may have
        // by now, who wants a page that a client has locked, or a daemon for who asks it.
        let holder = match place {
            1..=WRITERS => Some(place as usize - 1),
            0 => None,
            _ => self.writers.iter().position(Writer::is_by_message),
        };
        let neighbour = holder.map(|holder| self.writers[holder ^ 1].pid());
        if place != 0 && self.random.below(4) == 0 {
            self.instance.kill_broker();
            self.instance.start_broker();
            self.report.count(Victim::Broker.kind());
        }
        // Not before: the next broker waits for a daemon that is stopped, and who is told of a
        // change for both.
        self.mover.go_on();
        self.wait_progress(|writer| {
            writer.pid() != pid && !writer.is_by_message() && Some(writer.pid()) != neighbour
        });
        send(pid, Signal::CONT);
        self.instance.wait_serving();
        self.report.count(kind);
    }

    /// Kills some clients and servers in any order, all at once or one after the other, starts what
    /// is missing, and sees what is there.
    fn kill_some(&mut self) {
        let mut victims = vec![Victim::Broker];
        victims.extend((1..=self.plan.daemons).map(Victim::Daemon));
        victims.extend((0..WRITERS as usize).map(Victim::Client));
        let count = match self.random.below(8) {
            0 => victims.len(),
            some => usize::try_from(some).expect("few").div_ceil(3),
        };
        let drawn: Vec<Victim> = (0..count)
            .map(|_| {
                let place = self.random.below(victims.len() as u64);
                victims.swap_remove(usize::try_from(place).expect("few"))
            })
            .collect();
        if self.random.below(2) == 0 {
            for &victim in &drawn {
                send(self.pid_of(victim), Signal::KILL);
            }
        }
        let mut dead = Vec::new();
        for victim in drawn {
            self.report.count(victim.kind());
            // That it ends is waited for, too.
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

    fn pid_of(&self, victim: Victim) -> u32 {
        let pid = match victim {
            Victim::Broker => self.instance.broker_pid(),
            Victim::Daemon(daemon) => self.instance.daemon_pid(daemon),
            Victim::Client(writer) => Some(self.writers[writer].pid()),
        };
        pid.expect("everybody runs between two misfortunes")
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
            region
                .read(record::offset(writer, place), &mut found, Mirror::Any)
                .expect("it is there");
            match ledger.settle(place, &found) {
                Ok(is_torn) => self.report.torn += u64::from(is_torn),
                Err(loss) => panic!("writer {writer}, place {place}: {loss}"),
            }
        }
        region.close().expect("the broker serves");
        session.close().expect("the broker serves");
    }

    /// Sees that all that was acknowledged is there, that the copies are equal, and that nothing
    /// is left when the regions are gone.
    fn end_round(&mut self) {
        for writer in &mut self.writers {
            writer.kill();
        }
        self.report.add(&checker::wait_sound(&self.instance));
        for (number, mut writer) in (0..).zip(std::mem::take(&mut self.writers)) {
            let mut ledger = writer.take_ledger(&mut self.report);
            self.check(number, &mut ledger);
        }
        let session = self.instance.open();
        for name in names() {
            session.region_delete(VOLUME, &name).expect("nobody has it open");
        }
        session.close().expect("the broker serves");
        self.instance.wait_empty();
        assert_eq!(checker::wait_sound(&self.instance).blocks, 0);
        self.report.rounds += 1;
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

/// The region of a writer.
fn name_of(writer: u32) -> String {
    format!("records-{}", writer / LANES)
}

/// All regions: those of the writers, and some that nobody uses, which the daemons hold unevenly
/// when one was drained.
fn names() -> impl Iterator<Item = String> {
    let idle = (0..IDLE).map(|number| format!("idle-{number}"));
    (0..WRITERS).step_by(LANES as usize).map(name_of).chain(idle)
}

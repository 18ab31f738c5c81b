//! Programs that ask for too much, of another user than the one who is to be served.
//!
//! What is compared are counts: how much the flood got through, and that the victim got all of its
//! own through meanwhile.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dmce_sys::identity::effective_uid;
use dmce_tests::client::{MESSAGE_PATH, own_client};
use dmce_tests::programs::folder_of;
use dmce_tests::{Client, Instance, cannot_run, wait_until};
use libdmce::{Mirror, Prot, RegionOptions};

/// The user of the flood, if it can be another: nobody.
const NOBODY: u32 = 65_534;

/// Things that the flood does before the victim begins, so that its effect is there.
const BEFORE: u64 = 2_000;

/// What the victim does, each in a session of its own.
const ROUNDS: u64 = 60;

/// Requests a second of the user whose rate is limited.
const RATE: u64 = 1_000;

/// A flood that runs. Dropped, it is killed.
struct Flood {
    child: Child,
    done: Arc<AtomicU64>,
}

impl Flood {
    /// Starts a flood; of another user, where the test's own is root.
    fn start(instance: &Instance, kind: &str) -> Self {
        let built = folder_of("dmce-tests").join("dmce-test-flood");
        // Nobody may not enter the folder of the build: the program goes where it may.
        let program = instance.dir().join("flood");
        std::fs::copy(built, &program).unwrap();
        let mut command = of_nobody(&program);
        command.arg(kind).env("DMCE_SOCKET", instance.socket());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let done = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done);
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                counter.store(line.parse().unwrap(), Ordering::SeqCst);
            }
        });
        Self { child, done }
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn of_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]);
    if effective_uid() == 0 {
        let user = NOBODY.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    }
    command.arg(program);
    command
}

fn instance(config: &str) -> Instance {
    let config = format!("broker.socket_mode = \"0666\"\n{config}");
    Instance::builder().daemons(2).capacity("64MiB").config(&config).start()
}

/// Opens a session, allocates, writes, reads, makes a region, and gives all of it back.
fn work(instance: &Instance, round: u64) {
    let session = instance.open();
    let addr = session.malloc(64 << 10).unwrap();
    let (written, mut read) = (round.to_le_bytes(), [0; 8]);
    session.write(addr, &written).unwrap();
    session.read(addr, &mut read).unwrap();
    assert_eq!(read, written);
    let name = format!("r{round}");
    session.region_create("victim", &name, 4096, &RegionOptions::default()).unwrap();
    let region = session.region_open("victim", &name, Prot::READ_WRITE).unwrap();
    region.write(0, &written, Mirror::Both).unwrap();
    region.close().unwrap();
    session.region_delete("victim", &name).unwrap();
    session.free(addr).unwrap();
    session.close().unwrap();
}

/// The victim is served in full while the flood goes on.
fn is_outlived(kind: &str, config: &str) {
    let instance = instance(config);
    let flood = Flood::start(&instance, kind);
    wait_until("the flood is there", || flood.done() >= BEFORE);
    for round in 0..ROUNDS {
        work(&instance, round);
    }
    // It has not given up: it was at work while the victim was.
    let meanwhile = flood.done();
    wait_until("the flood goes on", || flood.done() > meanwhile);
    println!("{kind}: {ROUNDS} rounds of the victim, {meanwhile} things of the flood");
    drop(flood);
    wait_until("nothing of the flood is left", || instance.status().sessions == 0);
    work(&instance, ROUNDS);
}

/// A flood that takes what a user can take needs another user than the victim's.
fn is_outlived_by_others(kind: &str, config: &str) {
    if effective_uid() == 0 {
        is_outlived(kind, config);
    } else {
        cannot_run("only root can start a flood of another user");
    }
}

#[test]
fn requests_without_end_leave_others_served() {
    is_outlived("requests", "");
}

#[test]
fn long_requests_leave_others_served() {
    is_outlived("large", "");
}

#[test]
fn garbage_leaves_others_served() {
    is_outlived("garbage", "");
}

#[test]
fn sessions_without_end_leave_others_served() {
    is_outlived_by_others("sessions", "limits.sessions = 200\n");
}

#[test]
fn connections_without_end_leave_others_served() {
    is_outlived_by_others("connections", "limits.sessions = 200\n");
}

#[test]
fn blocks_without_end_leave_others_served() {
    is_outlived_by_others("blocks", "limits.blocks = 400\n[quota]\nbytes = \"32MiB\"\n");
}

#[test]
fn regions_without_end_leave_others_served() {
    let config = "limits.blocks = 400\nlimits.regions = 200\n[quota]\nbytes = \"32MiB\"\n";
    let instance = instance(config);
    if effective_uid() != 0 {
        return cannot_run("only root can start a flood of another user");
    }
    let flood = Flood::start(&instance, "regions");
    wait_until("the flood is there", || flood.done() >= BEFORE);
    for round in 0..ROUNDS {
        work(&instance, round);
    }
    // Half of what there is: regions outlive who made them.
    assert_eq!(instance.status().regions, 100);
}

#[test]
fn waits_without_end_leave_others_served() {
    is_outlived_by_others("waits", "");
}

/// The victim is served by message, on both ways, while another user moves bytes on one of them.
fn moved_bytes_are_outlived(kind: &str) {
    if effective_uid() != 0 {
        return cannot_run("only root can start a flood of another user");
    }
    let instance = instance("");
    let flood = Flood::start(&instance, kind);
    wait_until("the flood is there", || flood.done() >= BEFORE);
    let mut slowest = [Duration::ZERO; 2];
    for (route, slowest) in ["direct", "broker"].into_iter().zip(&mut slowest) {
        let route = ("DMCE_MESSAGE_ROUTE", route);
        let mut victim = Client::open_with(&own_client(), &instance, &[(MESSAGE_PATH, "1"), route]);
        let addr = victim.ask("malloc 4096").unwrap();
        for round in 0..ROUNDS {
            let begin = Instant::now();
            victim.ask(format!("fill {addr} {round} 64")).unwrap();
            victim.ask(format!("check {addr} {round} 64")).unwrap();
            *slowest = begin.elapsed().max(*slowest);
        }
    }
    let meanwhile = flood.done();
    wait_until("the flood goes on", || flood.done() > meanwhile);
    let [direct, broker] = slowest;
    println!("{kind}: {meanwhile} messages of the flood; slowest {direct:?}, {broker:?}");
    drop(flood);
    wait_until("nothing of the flood is left", || instance.status().sessions == 0);
}

#[test]
fn reads_without_end_leave_others_served() {
    moved_bytes_are_outlived("reads");
}

#[test]
fn writes_without_end_leave_others_served() {
    moved_bytes_are_outlived("writes");
}

#[test]
fn reads_over_links_leave_others_served() {
    moved_bytes_are_outlived("linked-reads");
}

#[test]
fn writes_over_links_leave_others_served() {
    moved_bytes_are_outlived("linked-writes");
}

/// Who sends and hangs up is read no sooner than who stays: else a rate would bind nobody. What is
/// read of it ends in the log.
#[test]
fn what_was_sent_too_early_is_not_read_for_a_hang_up() {
    if effective_uid() != 0 {
        return cannot_run("only root can start a flood of another user");
    }
    let config = format!("[quota.uid.{NOBODY}]\nrequests_per_s = 10\nrequests_burst = 100\n");
    let instance = instance(&config);
    let begin = Instant::now();
    let flood = Flood::start(&instance, "garbage");
    wait_until("the flood is there", || flood.done() >= BEFORE);
    let read = instance.log("broker").matches("is ended: a frame that is none").count() as u64;
    let allowed = begin.elapsed().as_millis() as u64 * 10 / 1000;
    assert!(read <= allowed + 100, "{read} were read, {allowed} by the rate");
    work(&instance, 0);
}

/// The rate is the user's over all connections: compared with the time that it had, which is
/// measured and not asserted.
#[test]
fn a_user_with_a_rate_gets_through_no_more_than_that() {
    if effective_uid() != 0 {
        return cannot_run("only root can start a flood of another user");
    }
    let instance =
        instance(&format!("[quota.uid.{NOBODY}]\nrequests_per_s = {RATE}\nrequests_burst = 100\n"));
    let begin = Instant::now();
    let flood = Flood::start(&instance, "requests");
    wait_until("the flood is there", || flood.done() >= BEFORE);
    for round in 0..ROUNDS {
        work(&instance, round);
    }
    let done = flood.done();
    let allowed = begin.elapsed().as_millis() as u64 * RATE / 1000;
    // The burst; what each of eight connections may bring at once; what was counted before.
    assert!(done <= allowed + 100 + 8 * 16 + 100, "{done} requests, {allowed} by the rate");
    println!("rate: {ROUNDS} rounds of the victim, {done} things of the flood, {allowed} allowed");
}

/// Each daemon counts by itself, in tokens of 4 KiB: a message of the flood takes 15 of them.
#[test]
fn a_user_with_a_rate_moves_no_more_than_that_over_links() {
    const BURST: u64 = 100;
    if effective_uid() != 0 {
        return cannot_run("only root can start a flood of another user");
    }
    let quota = format!("requests_per_s = {RATE}\nrequests_burst = {BURST}\n");
    let instance = instance(&format!("[quota.uid.{NOBODY}]\n{quota}"));
    let begin = Instant::now();
    let flood = Flood::start(&instance, "linked-reads");
    wait_until("the flood is there", || flood.done() >= 100);
    let route = ("DMCE_MESSAGE_ROUTE", "direct");
    let mut victim = Client::open_with(&own_client(), &instance, &[(MESSAGE_PATH, "1"), route]);
    let addr = victim.ask("malloc 4096").unwrap();
    for round in 0..ROUNDS * 10 {
        victim.ask(format!("fill {addr} {round} 64")).unwrap();
        victim.ask(format!("check {addr} {round} 64")).unwrap();
    }
    let meanwhile = flood.done();
    wait_until("the flood goes on", || flood.done() > meanwhile);
    let done = flood.done();
    let tokens = BURST + begin.elapsed().as_millis() as u64 * RATE / 1000;
    // On each of two daemons the last message may take more than there is.
    let allowed = 2 * (tokens / 15 + 1);
    assert!(done <= allowed, "{done} messages, {allowed} by the rate");
    println!("rate: {done} messages of the flood over links, {allowed} allowed");
}

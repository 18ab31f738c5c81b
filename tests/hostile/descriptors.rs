//! A broker without a descriptor to spare: what it cannot open is not lost, and whom it cannot take
//! in waits. One that has few promises no more sessions than it has descriptors for.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Command, Stdio};

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch};
use dmce_sys::socket::{FDS_PER_FRAME, Socket};
use dmce_tests::programs::program;
use dmce_tests::{Client, Instance, wait_for, wait_until};
use libdmce::connection::ConnectionError;

use crate::words::{granted, session};

/// What a process may open at most, as it was given before.
const MANY: usize = 4096;

fn limit_open_files(pid: u32, soft: usize) {
    let pid = pid.to_string();
    let status =
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={soft}:")]).status();
    assert!(status.expect("prlimit is there").success());
}

/// Leaves a process no number for another descriptor; to be repeated while it closes some.
fn exhaust(pid: u32) {
    let open = fs::read_dir(format!("/proc/{pid}/fd")).expect("an own child can be looked at");
    let open: BTreeSet<usize> = open
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    let free =
        (0..=open.len()).find(|number| !open.contains(number)).expect("there is a free number");
    limit_open_files(pid, free);
}

fn fetch(block: BlockId) -> ClientRequest {
    ClientRequest::Fetch(Fetch { block, writable: true })
}

#[test]
fn a_block_that_the_broker_cannot_open_for_want_of_a_descriptor_is_not_lost() {
    let instance = Instance::start(1);
    let (mut raw, _object) = session(&instance);
    let (block, _data) = granted(&mut raw);
    let broker = instance.broker_pid().unwrap();
    let refusal = wait_for("the broker has no descriptor", || {
        exhaust(broker);
        match raw.request(&fetch(block)) {
            Err(ConnectionError::Refused(refusal)) => Some(refusal),
            other => other.map(|_| None).unwrap(),
        }
    });
    assert_eq!(refusal.status, Status::Internal);
    // It looks at the object because of that, and again because the client says so.
    raw.request(&ClientRequest::Damaged(block)).unwrap();
    limit_open_files(broker, MANY);
    let (reply, fds) = raw.request(&fetch(block)).unwrap();
    let ClientReply::Fetched(info) = reply else { panic!("{reply:?}") };
    assert!(!info.lost, "{}", instance.log("broker"));
    assert_eq!(fds.len(), 1);
}

#[test]
fn a_broker_that_cannot_take_a_client_in_waits_without_turning() {
    let instance = Instance::start(1);
    let (mut raw, _object) = session(&instance);
    let broker = instance.broker_pid().unwrap();
    let complaints = || instance.log("broker").matches("cannot be taken in").count();
    let mut waiting = Vec::new();
    wait_until("the broker cannot take a client in", || {
        exhaust(broker);
        waiting.push(Socket::connect(instance.socket()).unwrap());
        complaints() > 0
    });
    // Each answer is a turn of its loop, at which the connection that waits would show again.
    for _ in 0..200 {
        raw.request(&ClientRequest::Stat).unwrap();
    }
    assert_eq!(complaints(), 1);
    limit_open_files(broker, MANY);
    drop(waiting);
    let mut client = Client::open(&instance);
    client.ask("hold 1").unwrap();
}

/// A broker that may open few files. Dropped, it is killed.
struct Narrow(Child);

impl Narrow {
    /// In place of the instance's own.
    fn start(instance: &mut Instance, open_files: usize) -> Self {
        instance.kill_broker();
        let dir = instance.dir();
        let log = fs::File::options().append(true).open(dir.join("broker.log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "prlimit"]);
        command.arg(format!("--nofile={open_files}:{open_files}")).arg(program("dmce-broker"));
        command.arg("--dir").arg(dir).args(["--instance", instance.name()]);
        command.arg("--config").arg(dir.join("dmce.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().unwrap())
    }

    /// What its descriptors are of.
    fn open(&self) -> Vec<String> {
        let open = fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap();
        // One may be closed meanwhile.
        let of = open.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        of.map(|path| path.to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Narrow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the broker makes ahead, before anybody asks, takes no descriptor that it has promised.
#[test]
fn what_a_broker_keeps_ready_is_beside_what_its_sessions_may_open() {
    const OPEN_FILES: usize = 1024;
    // A session has five, another connection has one, and so has the one daemon that there may be.
    const OF_A_SESSION: usize = 5;
    const OTHER_CONNECTIONS: usize = 256;
    let mut instance = Instance::builder().daemons(0).config("limits.daemons = 1\n").start();
    let broker = Narrow::start(&mut instance, OPEN_FILES);
    let told = format!("{OPEN_FILES} open files are enough for ");
    let sessions: usize = wait_for("the broker says for how many it has descriptors", || {
        let log = instance.log("broker");
        let rest = log.split(&told).nth(1)?;
        rest.split(' ').next()?.parse().ok()
    });
    let is_ready = |open: &[String]| {
        let count = |part: &str| open.iter().filter(|of| of.contains(part)).count();
        count(".record-") >= 16 && count("(deleted)") >= 16
    };
    let open = wait_for("all is ready", || Some(broker.open()).filter(|open| is_ready(open)));
    let put_aside = OPEN_FILES - sessions * OF_A_SESSION - OTHER_CONNECTIONS - 1;
    // Besides, 64 may connect at once, and a frame may bring some.
    let needed = open.len() + 64 + FDS_PER_FRAME;
    assert!(needed <= put_aside, "{needed} are needed, {put_aside} are left: {open:#?}");
}

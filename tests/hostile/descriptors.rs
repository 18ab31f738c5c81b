//! A broker without a descriptor to spare: what it cannot open is not lost, and whom it cannot take
//! in waits.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch};
use dmce_sys::socket::Socket;
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

//! The broker dies and comes back under working clients.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::clients::delete_all;
use dmce_abi::Status;
use dmce_sys::pidfd;
use dmce_sys::poll::wait_readable;
use dmce_tests::churn::VOLUME;
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{Mirror, Options, Prot, RegionOptions, Session};

#[test]
fn mapped_work_never_notices_and_calls_that_need_it_go_on_after_it_is_back() {
    let mut instance = Instance::builder().daemons(2).capacity("512MiB").start();
    let session = instance.open();
    let addr = session.malloc(1 << 20).unwrap();
    session.fill(addr, 1, 1 << 20).unwrap();
    for round in 1..=5_u8 {
        instance.kill_broker();
        let same = session.compare(addr, &vec![round; 1 << 20]).unwrap();
        assert_eq!(same, std::cmp::Ordering::Equal, "reading without a broker");
        session.fill(addr, round + 1, 1 << 20).unwrap();

        // This needs the broker, so it waits for it.
        let large = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| session.malloc(48 << 20));
            instance.start_broker();
            waiting.join().unwrap().unwrap()
        });
        session.write(large, b"granted by the broker that came back").unwrap();
        session.free(large).unwrap();
        instance.wait_serving();
    }
    assert_eq!(instance.status().sessions, 1);
    session.close().unwrap();
    instance.wait_empty();
}

/// The files of sessions, by their inodes: names come again.
fn inodes_of_sessions(instance: &Instance) -> BTreeSet<u64> {
    let names = instance.objects().into_iter();
    let of_sessions = names.filter(|name| name.contains("session-") || name.contains("record-"));
    of_sessions.filter_map(|name| Some(instance.object(&name).metadata().ok()?.ino())).collect()
}

#[test]
fn what_was_made_for_nobody_goes_with_the_broker_or_is_removed_by_the_next() {
    let mut instance = Instance::start(1);
    wait_until("sessions are made ahead", || inodes_of_sessions(&instance).len() == 32);
    instance.kill_broker();
    let left = inodes_of_sessions(&instance);
    assert_eq!(left.len(), 32);
    instance.start_broker();
    instance.wait_serving();
    let session = instance.open();
    assert!(inodes_of_sessions(&instance).is_disjoint(&left));
    session.close().unwrap();

    let broker = pidfd::open(instance.broker_pid().unwrap()).unwrap();
    pidfd::signal(broker.as_fd(), pidfd::Signal::TERM).unwrap();
    assert!(wait_readable(broker.as_fd(), Some(Duration::from_secs(60))).unwrap());
    assert_eq!(inodes_of_sessions(&instance), BTreeSet::new());
}

#[test]
fn the_tables_are_rebuilt_as_they_were() {
    let mut instance = Instance::builder().daemons(3).capacity("128MiB").start();
    let session = instance.open();
    session.region_create("vol", "kept", 10 << 20, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "kept", Prot::READ_WRITE).unwrap();
    let mut held = Vec::new();
    for place in 0..10_u8 {
        let addr = session.malloc(3 << 20).unwrap();
        session.fill(addr, place, 3 << 20).unwrap();
        held.push(addr);
    }
    let (blocks, sessions, regions) = (instance.blocks(), instance.sessions(), instance.regions());
    instance.kill_broker();
    instance.start_broker();
    instance.wait_serving();
    wait_until("the session is attached again", || instance.sessions()[0].attached);
    assert_eq!(instance.blocks(), blocks);
    assert_eq!(instance.sessions(), sessions);
    assert_eq!(instance.regions(), regions);

    // Another may not delete what this session has open: the grant was remembered.
    let mut other = Client::open(&instance);
    assert_eq!(other.ask("delete vol kept"), Err(Status::Busy));
    region.write(0, b"on", Mirror::Both).unwrap();
    for (place, addr) in held.iter().enumerate() {
        let expected = vec![u8::try_from(place).unwrap(); 3 << 20];
        assert_eq!(session.compare(*addr, &expected).unwrap(), std::cmp::Ordering::Equal);
        session.free(*addr).unwrap();
    }
}

#[test]
fn clients_that_died_while_it_was_away_leave_nothing() {
    let mut instance = Instance::builder().daemons(2).start();
    let mut clients: Vec<Client> = (0..8).map(|_| Client::open(&instance)).collect();
    for client in &mut clients {
        client.ask("hold 3").unwrap();
    }
    let survivor = clients.pop().unwrap();
    instance.kill_broker();
    drop(clients);
    instance.start_broker();
    instance.wait_serving();
    wait_until("only the survivor is left", || instance.status().sessions == 1);
    survivor.kill();
    instance.wait_empty();
}

#[test]
fn working_clients_survive_a_broker_that_dies_again_and_again() {
    let mut instance = Instance::builder().daemons(2).capacity("1GiB").start();
    let mut clients: Vec<Client> = (0..4).map(|_| Client::open(&instance)).collect();
    for (seed, client) in clients.iter_mut().enumerate() {
        client.tell(format!("churn {seed}"));
    }
    for _ in 0..8 {
        instance.kill_broker();
        instance.start_broker();
        instance.wait_serving();
        wait_until("all are attached again", || {
            let sessions = instance.sessions();
            sessions.len() == 4 && sessions.iter().all(|session| session.attached)
        });
    }
    let committed =
        |instance: &Instance| instance.sessions().iter().map(|s| s.committed).sum::<u64>();
    assert!(committed(&instance) > 0);
    // Who finds a wrong byte or a failed call says so, and stops working.
    for client in clients {
        assert_eq!(client.last_words(), "");
    }
    delete_all(&instance, VOLUME);
    instance.wait_empty();
}

#[test]
fn without_a_broker_a_call_that_needs_it_gives_up_after_its_time() {
    let mut instance = Instance::start(1);
    let hurried = Options { timeout_ms: 200, ..instance.options() };
    let session = Session::open(&hurried).unwrap();
    let addr = session.malloc(100).unwrap();
    instance.kill_broker();
    assert_eq!(session.malloc(100 << 20).unwrap_err().status(), Status::Unavailable);
    session.write(addr, b"still here").unwrap();
    assert_eq!(Session::open(&hurried).unwrap_err().status(), Status::Unavailable);
}

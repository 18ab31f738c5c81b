//! Daemons die and come back.

use std::fs;
use std::path::{Path, PathBuf};

use dmce_abi::wire::admin::{DaemonState, Health};
use dmce_tests::client::{Signal, send, stop};
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{AllocOptions, Prot, RegionOptions, Status};

#[test]
fn a_daemon_that_comes_back_adopts_its_blocks_and_no_call_fails() {
    let mut instance = Instance::builder().daemons(2).capacity("512MiB").start();
    let session = instance.open();
    let held: Vec<_> = (0..20).map(|_| session.malloc(2 << 20).unwrap()).collect();
    for round in 0..4_u8 {
        let blocks = instance.blocks();
        for daemon in [1, 2] {
            instance.kill_daemon(daemon);
            for addr in &held {
                session.fill(*addr, round, 2 << 20).unwrap();
            }
            // The other daemon, or a block that has room, gives what is asked for meanwhile.
            let extra = session.malloc(20 << 20).unwrap();
            session.free(extra).unwrap();
            instance.start_daemon(daemon);
            instance.wait_serving();
        }
        for addr in &held {
            let same = session.compare(*addr, &vec![round; 2 << 20]).unwrap();
            assert_eq!(same, std::cmp::Ordering::Equal);
        }
        wait_until("the same blocks are there", || instance.blocks() == blocks);
        assert_eq!(instance.status().state, Health::Ok);
    }
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn what_was_freed_while_it_was_away_is_gone_when_it_is_back() {
    let mut instance = Instance::builder().daemons(1).capacity("256MiB").start();
    let mut client = Client::open(&instance);
    let kept = client.number("malloc 20000000").unwrap();
    let freed = client.number("malloc 150000000").unwrap();
    client.ask(format!("fill {kept} 5 20000000")).unwrap();
    instance.kill_daemon(1);
    client.ask(format!("free {freed}")).unwrap();
    client.ask(format!("check {kept} 5 20000000")).unwrap();
    instance.start_daemon(1);
    instance.wait_serving();
    wait_until("the freed block is gone", || instance.status().committed < 150_000_000);
    client.ask(format!("check {kept} 5 20000000")).unwrap();
    client.kill();
    instance.wait_empty();
}

#[test]
fn a_delete_waits_for_its_daemon_and_other_calls_of_its_session_go_on() {
    let config = "broker.sense_ms = 50\nbroker.suspect_ms = 200\n";
    let mut instance = Instance::builder().daemons(2).config(config).start();
    let session = instance.open();
    // One that is away, and one that falls silent over it.
    for is_killed in [true, false] {
        session.region_create("vol", "r", 1 << 20, &RegionOptions::default()).unwrap();
        let region = session.region_open("vol", "r", Prot::READ).unwrap();
        let daemon = region.info().unwrap().primary_daemon;
        let pid = instance.daemon_pid(daemon).unwrap();
        if is_killed {
            instance.kill_daemon(daemon);
        } else {
            stop(pid);
        }
        std::thread::scope(|scope| {
            let deleting = scope.spawn(|| session.region_delete("vol", "r"));
            wait_until("it has begun", || is_killed || instance.regions().is_empty());
            for _ in 0..4 {
                let large = session.malloc(40 << 20).unwrap();
                session.free(large).unwrap();
            }
            assert!(!deleting.is_finished());
            if is_killed {
                instance.start_daemon(daemon);
            } else {
                send(pid, Signal::CONT);
            }
            deleting.join().unwrap().unwrap();
        });
        assert_eq!(instance.regions(), []);
        assert_eq!(region.info().unwrap_err().status(), Status::Closed);
    }
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn a_stopped_daemon_is_suspected_and_mapped_work_goes_on() {
    let config = "broker.sense_ms = 50\nbroker.suspect_ms = 200\n";
    let instance = Instance::builder().daemons(2).config(config).start();
    let session = instance.open();
    let addr = session.malloc(4 << 20).unwrap();
    let pid = instance.daemon_pid(1).unwrap();
    stop(pid);
    wait_until("daemon 1 is suspected", || instance.daemons()[0].state == DaemonState::Suspected);
    assert_eq!(instance.status().state, Health::Degraded);
    session.fill(addr, 3, 4 << 20).unwrap();
    for _ in 0..4 {
        let large = session.malloc(40 << 20).unwrap();
        session.fill(large, 9, 40 << 20).unwrap();
    }
    send(pid, Signal::CONT);
    wait_until("daemon 1 is back", || instance.daemons()[0].state == DaemonState::Up);
    session.close().unwrap();
    instance.wait_empty();
}

/// The broker makes blocks of what is lent, and the daemon finds them when it goes on.
#[test]
fn a_grant_from_the_pool_waits_for_no_daemon_and_outlives_the_broker() {
    let config = "broker.sense_ms = 50\nbroker.suspect_ms = 400\n";
    let mut instance = Instance::builder().daemons(1).config(config).start();
    let session = instance.open();
    wait_until("the pool is lent", || instance.daemons()[0].pool == 8 << 20);
    let pid = instance.daemon_pid(1).unwrap();
    stop(pid);
    // Each page size has blocks of its own.
    let blocks = [4096, 8192, 16384, 32768].map(|page_size| {
        let options = AllocOptions { page_size, ..AllocOptions::default() };
        session.malloc_with(100_000, &options).unwrap()
    });
    let check = |byte: u8| {
        for addr in blocks {
            let same = session.compare(addr, &vec![byte; 100_000]).unwrap();
            assert_eq!(same, std::cmp::Ordering::Equal);
        }
    };
    for addr in blocks {
        session.fill(addr, 7, 100_000).unwrap();
    }
    assert_eq!(instance.blocks().len(), 4);

    instance.kill_broker();
    instance.start_broker();
    wait_until("the headers were read", || instance.blocks().len() == 4);
    check(7);
    send(pid, Signal::CONT);
    wait_until("daemon 1 is back", || instance.daemons()[0].state == DaemonState::Up);
    assert_eq!(instance.blocks().len(), 4);
    check(7);
    // It has them: they grow.
    let options = AllocOptions { page_size: 4096, ..AllocOptions::default() };
    let grown = session.malloc_with(3 << 20, &options).unwrap();
    session.fill(grown, 9, 3 << 20).unwrap();
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn clients_die_while_their_daemon_is_away() {
    let mut instance = Instance::builder().daemons(2).start();
    let mut clients: Vec<Client> = (0..6).map(|_| Client::open(&instance)).collect();
    for client in &mut clients {
        client.ask("hold 5").unwrap();
    }
    instance.kill_daemon(1);
    drop(clients);
    instance.start_daemon(1);
    instance.wait_serving();
    instance.wait_empty();
}

/// The field of a thread's priority.
const NICE: usize = 19;

/// A field of `/proc/PID/task/TID/stat`, counted as in proc(5).
fn stat_field(path: &Path, field: usize) -> Option<String> {
    let text = fs::read_to_string(path.join("stat")).ok()?;
    // The name may hold spaces.
    let (_, rest) = text.rsplit_once(") ")?;
    rest.split(' ').nth(field - 3).map(str::to_owned)
}

fn entries(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("there is such a folder");
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

#[test]
fn all_threads_of_a_daemon_have_its_own_priority() {
    let instance = Instance::start(1);
    let daemon = instance.daemon_pid(1).unwrap();
    let own = stat_field(Path::new("/proc/self"), NICE);
    assert!(own.is_some());
    // Whichever thread is the last gives back what the process has; and those that prepare pages
    // hold locks of them.
    let threads = entries(&format!("/proc/{daemon}/task"));
    assert!(threads.len() > 1);
    assert!(threads.iter().all(|thread| stat_field(thread, NICE) == own), "{threads:?}");
}

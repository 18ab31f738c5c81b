//! What breaks, with two copies of everything: no call fails that need not, and the copies are
//! equal afterwards.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, Scope, ScopedJoinHandle};

use dmce_abi::Status;
use dmce_abi::wire::admin::{CopyState, DaemonState, Health};
use dmce_shm::lock::{LockBits, LockState};
use dmce_shm::table;
use dmce_tests::checker::wait_sound;
use dmce_tests::client::{Signal, send, stop};
use dmce_tests::{Client, Instance, wait_for, wait_until};
use libdmce::{Mirror, Options, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 4 << 20;
/// Bytes of one write: of several pages, and no whole ones.
const PIECE: usize = 10_000;
const PLACES: u64 = 100;
/// From one to the next: they lie below [`PATTERN_AT`], in both halves of the region.
const PITCH: u64 = 30_000;
/// Where nobody writes who is looked at.
const PATTERN_AT: u64 = 3 << 20;
/// A huge page.
const HUGE_BYTES: u64 = 2 << 20;
const _: () = assert!(PLACES * PITCH < PATTERN_AT && HUGE_BYTES < PATTERN_AT);

fn start() -> Instance {
    let config = "broker.reattach_ms = 2000\nbroker.sense_ms = 100\nbroker.suspect_ms = 400\n";
    let config = format!("{config}instance.copies = 2\n");
    Instance::builder().daemons(2).region_copies(2).config(&config).start()
}

fn region(instance: &Instance) -> (Session, Region) {
    let session = instance.open();
    session.region_create("vol", "two", BYTES, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "two", Prot::READ_WRITE).unwrap();
    (session, region)
}

/// Who writes all the while, and reads what it wrote; no call of it fails.
struct Worker<'a> {
    region: &'a Region,
    is_over: AtomicBool,
    rounds: AtomicU64,
}

impl<'a> Worker<'a> {
    fn new(region: &'a Region) -> Self {
        Self { region, is_over: AtomicBool::new(false), rounds: AtomicU64::new(0) }
    }

    fn start<'s>(&'s self, scope: &'s Scope<'s, '_>) -> Working<'s> {
        let worker = scope.spawn(|| {
            let bytes_of = |round: u64| [u8::try_from(round % 251).unwrap(); PIECE];
            let at = |round: u64| round % PLACES * PITCH + 77;
            while !self.is_over.load(Ordering::Relaxed) {
                let round = self.rounds.load(Ordering::Relaxed);
                self.region.write(at(round), &bytes_of(round), Mirror::Both).unwrap();
                let before = round.saturating_sub(PLACES / 2);
                let mut found = [0; PIECE];
                self.region.read(at(before), &mut found, Mirror::Any).unwrap();
                let [byte, ..] = bytes_of(before);
                let wrong = found.iter().position(|found| *found != byte);
                assert_eq!(wrong, None, "round {round}: a byte that is not of {before}");
                self.rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        Working { is_over: &self.is_over, rounds: &self.rounds, worker: Some(worker) }
    }
}

/// It ends also when a test fails.
struct Working<'s> {
    is_over: &'s AtomicBool,
    rounds: &'s AtomicU64,
    worker: Option<ScopedJoinHandle<'s, ()>>,
}

impl Working<'_> {
    /// Waits until it has done a hundred writes more.
    fn goes_on(&self) {
        let before = self.rounds.load(Ordering::Relaxed);
        let ended = || self.worker.as_ref().is_some_and(ScopedJoinHandle::is_finished);
        wait_until("work goes on", || {
            assert!(!ended(), "the worker has failed");
            self.rounds.load(Ordering::Relaxed) > before + 100
        });
    }

    fn end(mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.worker.take().unwrap().join().unwrap();
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// All copies are there, and equal.
fn check_all_good(instance: &Instance) {
    wait_until("all is well", || instance.status().state == Health::Ok);
    let checked = wait_sound(instance);
    assert_eq!((checked.good, checked.stale), (2, 0));
}

fn states(instance: &Instance) -> Vec<(u32, CopyState)> {
    let block = instance.blocks().into_iter().next().expect("there is one");
    block.copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

/// The objects of a kind that a daemon, or the broker (0), has.
fn objects(instance: &Instance, daemon: u32, kind: &str) -> Vec<String> {
    let prefix = format!("dmce.{}.{daemon}.{kind}-", instance.name());
    instance.objects().into_iter().filter(|name| name.starts_with(&prefix)).collect()
}

#[test]
fn a_daemon_or_a_broker_that_dies_with_its_objects_there_is_missed_by_no_write() {
    let mut instance = start();
    let (_session, region) = region(&instance);
    let worker = Worker::new(&region);
    thread::scope(|scope| {
        let working = worker.start(scope);
        for daemon in [1, 2] {
            instance.kill_daemon(daemon);
            working.goes_on();
            instance.start_daemon(daemon);
            instance.wait_serving();
            working.goes_on();
        }
        instance.kill_broker();
        working.goes_on();
        instance.start_broker();
        instance.wait_serving();
        working.goes_on();
        working.end();
    });
    check_all_good(&instance);
}

#[test]
fn all_die_together_and_come_back_in_any_order() {
    for order in [[0, 1, 2], [1, 2, 0], [2, 0, 1]] {
        let mut instance = start();
        let (session, region) = region(&instance);
        let addr = session.malloc(100_000).unwrap();
        session.fill(addr, 7, 100_000).unwrap();
        let mut client = Client::open(&instance);
        client.ask("ropen vol two rw").unwrap();
        client.ask("rfill 3000000 5 500000").unwrap();
        let worker = Worker::new(&region);
        thread::scope(|scope| {
            let working = worker.start(scope);
            client.tell("rfill 3000000 5 1000000");
            instance.kill_all();
            client.kill();
            working.goes_on();
            for server in order {
                match server {
                    0 => instance.start_broker(),
                    daemon => instance.start_daemon(daemon),
                }
            }
            instance.wait_serving();
            working.goes_on();
            working.end();
        });
        session.fill(addr, 8, 100_000).unwrap();
        wait_until("all is well", || instance.status().state == Health::Ok);
        assert_eq!(wait_sound(&instance).good, 4, "{order:?}");
    }
}

#[test]
fn a_daemon_that_is_stopped_is_missed_by_no_write() {
    let instance = start();
    let (_session, region) = region(&instance);
    let worker = Worker::new(&region);
    thread::scope(|scope| {
        let working = worker.start(scope);
        for daemon in [1, 2] {
            let pid = instance.daemon_pid(daemon).unwrap();
            stop(pid);
            working.goes_on();
            let row = || instance.daemons().into_iter().find(|row| row.daemon == daemon).unwrap();
            wait_until("it is suspected", || row().state == DaemonState::Suspected);
            working.goes_on();
            assert!(states(&instance).iter().all(|(_, state)| *state == CopyState::Good));
            send(pid, Signal::CONT);
            wait_until("it is up", || row().state == DaemonState::Up);
        }
        working.end();
    });
    check_all_good(&instance);
}

/// A page of the block that somebody holds, if there is one.
fn held_page(instance: &Instance) -> Option<u64> {
    let name = objects(instance, 0, "locks").pop().expect("the block has a table");
    let file = File::open(instance.object(&name)).expect("it is our own");
    (0..BYTES / 4096).find(|page| {
        let mut word = [0; 8];
        file.read_exact_at(&mut word, table::word_offset(page * 4096)).unwrap();
        matches!(LockBits::of_word(u64::from_le_bytes(word)).state(), LockState::Held(_))
    })
}

#[test]
fn who_needs_a_page_of_a_stopped_client_waits_for_its_time_and_goes_on_after_it() {
    for goes_on in [true, false] {
        let instance = start();
        let (_session, _region) = region(&instance);
        let patient = Options { timeout_ms: 300, ..instance.options() };
        let patient = Session::open(&patient).unwrap();
        let other = patient.region_open("vol", "two", Prot::READ_WRITE).unwrap();
        let mut client = Client::open(&instance);
        client.ask("ropen vol two rw").unwrap();
        let mut answers = 0;
        let page = wait_for("it is stopped with a page locked", || {
            if answers == 0 {
                for _ in 0..50 {
                    client.tell(format!("rfill 0 9 {BYTES}"));
                }
                answers = 50;
            }
            stop(client.pid());
            let held = held_page(&instance);
            if held.is_none() {
                send(client.pid(), Signal::CONT);
                client.answer().unwrap();
                answers -= 1;
            }
            held
        });
        let write = || other.write(page * 4096 + 8, b"waits", Mirror::Both);
        assert_eq!(write().unwrap_err().status(), Status::Timeout);
        // Nobody waits for it elsewhere.
        let elsewhere = (page + 64) % (BYTES / 4096);
        other.write(elsewhere * 4096 + 8, b"waits", Mirror::Both).unwrap();
        if goes_on {
            send(client.pid(), Signal::CONT);
            for _ in 0..answers {
                client.answer().unwrap();
            }
        } else {
            client.kill();
        }
        wait_until("the page is free", || write().is_ok());
        check_all_good(&instance);
    }
}

#[test]
fn a_block_goes_on_without_the_copy_whose_header_is_damaged_when_a_broker_starts() {
    let mut instance = start();
    let (_session, region) = region(&instance);
    region.write(0, b"whole", Mirror::Both).unwrap();
    instance.kill_all();
    let head = objects(&instance, 1, "head").pop().unwrap();
    let file = File::options().write(true).open(instance.object(&head)).unwrap();
    file.write_all_at(&[0xff; 600], 40).unwrap();
    file.write_all_at(&[0xff; 600], 2048 + 40).unwrap();
    instance.start_all();
    wait_until("it is degraded", || instance.status().state == Health::Degraded);
    assert_eq!(states(&instance)[0], (2, CopyState::Good));
    assert!(!states(&instance).contains(&(1, CopyState::Good)));
    let mut found = [0; 5];
    region.read(0, &mut found, Mirror::Any).unwrap();
    assert_eq!(found, *b"whole");
    region.write(0, b"other", Mirror::Both).unwrap();
    assert!(instance.log("daemon-1").contains(&head), "it is named, and left");
    assert!(fs::exists(instance.object(&head)).unwrap());
}

#[test]
fn an_object_that_is_cut_or_removed_under_clients_is_missed_by_none() {
    // Cut inside a huge page, the kernel may tell nobody.
    let ways = [None, Some(0), Some(HUGE_BYTES)];
    for (daemon, left) in [1, 2].into_iter().flat_map(|daemon| ways.map(|left| (daemon, left))) {
        let instance = start();
        let (session, region) = region(&instance);
        let pattern = vec![3; 100_000];
        region.write(PATTERN_AT, &pattern, Mirror::Both).unwrap();
        let addr = region.addr(PATTERN_AT).unwrap();
        let mut client = Client::open(&instance);
        client.ask("ropen vol two rw").unwrap();
        client.number(format!("map {} 100000 rw", addr.to_raw())).unwrap();
        let worker = Worker::new(&region);
        thread::scope(|scope| {
            let working = worker.start(scope);
            working.goes_on();
            let name = objects(&instance, daemon, "data").pop().unwrap();
            match left {
                None => fs::remove_file(instance.object(&name)).unwrap(),
                Some(left) => {
                    let file = File::options().write(true).open(instance.object(&name));
                    file.unwrap().set_len(left).unwrap();
                }
            }
            working.goes_on();
            wait_until("it is seen", || instance.status().state == Health::Degraded);
            working.goes_on();
            working.end();
        });
        let mut found = vec![0; pattern.len()];
        region.read(PATTERN_AT, &mut found, Mirror::Any).unwrap();
        assert!(found == pattern, "daemon {daemon}, {left:?}");
        assert_eq!(states(&instance)[0], (3 - daemon, CopyState::Good));
        // What has a pointer into it lives.
        client.ask(format!("rfill {PATTERN_AT} 4 1000")).unwrap();
        assert_eq!(session.compare(addr, &pattern[..10]).unwrap(), {
            let mut now = [0; 10];
            region.read(PATTERN_AT, &mut now, Mirror::Any).unwrap();
            now.as_slice().cmp(&pattern[..10])
        });
        assert_eq!(wait_sound(&instance).good, 1);
    }
}

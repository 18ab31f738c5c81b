//! Copies that are lost are made again while all go on writing, and then those that were left may
//! go as well.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::fs::{self, File};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use dmce_abi::wire::admin::{BlockRow, BlockState, CopyState, Health};
use dmce_tests::checker::wait_sound;
use dmce_tests::client::{MESSAGE_PATH, Signal, own_client, send};
use dmce_tests::{Client, Instance, wait_for, wait_until};
use libdmce::{Event, Mirror, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 24 << 20;
const PAGE: u64 = 4096;
/// What [`Writer`] leaves to others.
const BY_OTHER: u64 = WRITTEN;
const BY_MESSAGE: u64 = WRITTEN + (1 << 20);
/// What it writes.
const WRITTEN: u64 = 20 << 20;

fn start(daemons: u32) -> Instance {
    let config = "broker.reattach_ms = 2000\nbroker.sense_ms = 100\nbroker.suspect_ms = 400\n\
                  instance.copies = 2\n";
    let builder = Instance::builder().daemons(daemons).region_copies(2).config(config);
    builder.sync_blocks(2).start()
}

fn region(instance: &Instance) -> (Session, Region) {
    let session = instance.open();
    session.region_create("vol", "again", BYTES, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "again", Prot::READ_WRITE).unwrap();
    (session, region)
}

fn is_whole(row: &BlockRow) -> bool {
    let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good).count();
    row.state == BlockState::Ok && good == 2
}

fn wait_whole(instance: &Instance) {
    wait_until("all copies are there again", || instance.blocks().iter().all(is_whole));
    wait_until("all is well", || instance.status().state == Health::Ok);
}

/// All that a daemon holds is cut to nothing and removed.
fn take_all(instance: &Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.data-", instance.name());
    for name in instance.objects().into_iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(&name);
        // What its daemon has removed meanwhile is gone as well.
        if let Ok(file) = File::options().write(true).open(&path) {
            file.set_len(0).unwrap();
            let _ = fs::remove_file(path);
        }
    }
}

/// Whose copies of the region's blocks are good.
fn good(instance: &Instance) -> Vec<u32> {
    let rows = instance.blocks();
    let copies = rows.iter().flat_map(|row| &row.copies);
    let mut good: Vec<u32> =
        copies.filter(|copy| copy.state == CopyState::Good).map(|copy| copy.daemon).collect();
    good.sort_unstable();
    good.dedup();
    good
}

/// Writes numbers all over most of a region, each higher than the one before, and remembers them.
struct Writer<'a> {
    region: &'a Region,
    is_over: &'a AtomicBool,
    rounds: &'a AtomicU64,
}

impl Writer<'_> {
    fn run(&self) -> Vec<u64> {
        let pages = WRITTEN / PAGE;
        let mut last = vec![0; usize::try_from(pages).unwrap()];
        for round in 1.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            // All pages, in no order that the copying has; over two of them at times.
            let page = round * 2_654_435_761 % pages;
            let number = round.to_le_bytes();
            let bytes = if round % 64 == 0 { 3 * PAGE } else { 64 };
            let bytes = bytes.min((pages - page) * PAGE);
            let data = number.repeat(usize::try_from(bytes / 8).unwrap());
            self.region.write(page * PAGE, &data, Mirror::Both).unwrap();
            for page in page..page + bytes.div_ceil(PAGE) {
                last[usize::try_from(page).unwrap()] = round;
            }
            self.rounds.store(round, Ordering::Relaxed);
        }
        last
    }
}

fn check(region: &Region, last: &[u64]) {
    let mut found = [0; 8];
    for (page, number) in (0..).zip(last) {
        region.read(page * PAGE, &mut found, Mirror::Any).unwrap();
        assert_eq!(u64::from_le_bytes(found), *number, "page {page}");
    }
}

#[test]
fn what_is_lost_is_made_again_under_all_who_write_until_every_daemon_has_lost_all() {
    let mut instance = start(3);
    let (session, region) = region(&instance);
    // From now on it is told.
    assert_eq!(session.next_event().unwrap(), None);
    let own = session.malloc(3 << 20).unwrap();
    session.fill(own, 7, 3 << 20).unwrap();
    let mut by_message = Client::open_with(&own_client(), &instance, &[(MESSAGE_PATH, "1")]);
    by_message.ask("ropen vol again rw").unwrap();
    let mut other = Client::open(&instance);
    other.ask("ropen vol again rw").unwrap();
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let writer = Writer { region: &region, is_over: &is_over, rounds: &rounds };
    let last = thread::scope(|scope| {
        let _over = Over(&is_over);
        let working = scope.spawn(|| writer.run());
        for loss in 0..6 {
            let goes_on = rounds.load(Ordering::Relaxed) + 500;
            wait_until("it writes", || {
                working.is_finished() || rounds.load(Ordering::Relaxed) > goes_on
            });
            let daemon = good(&instance)[loss % 2];
            take_all(&instance, daemon);
            match loss % 3 {
                0 => instance.kill_daemon(daemon),
                1 => instance.kill_broker(),
                _ => {}
            }
            other.tell(format!("rfill {BY_OTHER} {loss} 100"));
            instance.start_all();
            other.answer().unwrap();
            by_message.ask(format!("rfill {BY_MESSAGE} {loss} 5000")).unwrap();
            wait_whole(&instance);
            assert!(good(&instance).len() >= 2);
        }
        is_over.store(true, Ordering::Relaxed);
        working.join().unwrap()
    });
    check(&region, &last);
    // Each sees what the other wrote last.
    by_message.ask(format!("rcheck {BY_OTHER} 5 100")).unwrap();
    other.ask(format!("rcheck {BY_MESSAGE} 5 5000")).unwrap();
    let mut found = vec![0; 3 << 20];
    session.read(own, &mut found).unwrap();
    assert!(found.iter().all(|byte| *byte == 7));
    let events = std::iter::from_fn(|| session.next_event().unwrap());
    assert!(events.into_iter().any(|event| matches!(event, Event::CopiesRestored { .. })));
    assert!(wait_sound(&instance).good >= 4);
}

/// Whoever works ends also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The daemon that is getting a copy, while it does.
fn syncing(instance: &Instance) -> Option<u32> {
    let rows = instance.blocks();
    let mut copies = rows.iter().flat_map(|row| &row.copies);
    copies.find(|copy| copy.state == CopyState::Syncing).map(|copy| copy.daemon)
}

#[test]
fn whoever_dies_over_it_the_copy_is_made_again() {
    for victim in ["the broker", "its daemon", "the other daemon", "who writes"] {
        let mut instance = start(3);
        let (_session, region) = region(&instance);
        region.write(5, &vec![3; 100_000], Mirror::Both).unwrap();
        let mut client = Client::open(&instance);
        client.ask("ropen vol again rw").unwrap();
        let mut met = None;
        // It may be over before anybody looks.
        for attempt in 0..20 {
            let lost = good(&instance)[0];
            for _ in 0..5 {
                client.tell(format!("rfill 200000 {attempt} {}", BYTES - 200_000));
            }
            take_all(&instance, lost);
            met = wait_for("it begins, or is over", || {
                let is_over = instance.blocks().iter().all(is_whole) && good(&instance)[0] != lost;
                syncing(&instance).map(Some).or(is_over.then_some(None))
            });
            for _ in 0..5 {
                if met.is_none() {
                    client.answer().unwrap();
                }
            }
            if met.is_some() {
                break;
            }
        }
        let daemon = met.expect("it is met once");
        let left = good(&instance)[0];
        match victim {
            "the broker" => instance.kill_broker(),
            "its daemon" => instance.kill_daemon(daemon),
            "the other daemon" => instance.kill_daemon(left),
            _ => send(client.pid(), Signal::KILL),
        }
        instance.start_all();
        wait_whole(&instance);
        let mut found = vec![0; 100_000];
        region.read(5, &mut found, Mirror::Any).unwrap();
        assert!(found.iter().all(|byte| *byte == 3), "{victim}");
        drop(client);
        assert_eq!(wait_sound(&instance).good, 2, "{victim}");
    }
}

/// Who could not write the copy that is lost asks about it when its daemon has another already.
#[test]
fn where_there_is_no_third_daemon_the_one_that_lost_it_has_it_again() {
    let mut instance = start(2);
    let (_session, region) = region(&instance);
    let (is_over, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
    let writer = Writer { region: &region, is_over: &is_over, rounds: &rounds };
    let last = thread::scope(|scope| {
        let _over = Over(&is_over);
        let working = scope.spawn(|| writer.run());
        for round in 0..12 {
            let goes_on = rounds.load(Ordering::Relaxed) + 200;
            wait_until("it writes", || {
                working.is_finished() || rounds.load(Ordering::Relaxed) > goes_on
            });
            let daemon = round % 2 + 1;
            take_all(&instance, daemon);
            if round % 3 == 0 {
                instance.kill_daemon(daemon);
                instance.start_daemon(daemon);
            }
            wait_until("it is seen", || {
                working.is_finished()
                    || instance.blocks().iter().any(|row| !is_whole(row))
                    || instance.log("broker").matches("again, epoch").count() > round as usize
            });
            wait_whole(&instance);
            assert_eq!(good(&instance), [1, 2]);
        }
        is_over.store(true, Ordering::Relaxed);
        working.join().unwrap()
    });
    check(&region, &last);
    assert_eq!(wait_sound(&instance).good, 2);
}

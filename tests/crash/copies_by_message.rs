//! Clients that map nothing, and memory with two copies: a daemon goes, with its memory or without,
//! or the broker, and nobody sees it.

use std::fs::{self, File};

use dmce_abi::wire::admin::Health;
use dmce_sys::crash::{POINT_VARIABLE, Point};
use dmce_tests::checker::wait_sound;
use dmce_tests::churn::pattern;
use dmce_tests::client::{ROUTES, Signal, own_client, send, stop};
use dmce_tests::{Client, Instance, wait_for};
use libdmce::{Mirror, Prot, RegionOptions};

const REGION_BYTES: u64 = 4 << 20;

/// A write by message, and how many pages it has.
const EARLIER_BYTES: u64 = 20 * 4096;
const EARLIER_PAGES: u64 = 20;
/// Another one to the same bytes.
const LATER_AT: u64 = 17;
const LATER_BYTES: u64 = 10 * 4096;
const LATER_PAGES: u64 = 11;

/// A daemon goes, and all that it holds.
fn lose(instance: &mut Instance, daemon: u32) {
    // It makes no header again over which it could be killed.
    stop(instance.daemon_pid(daemon).expect("it runs"));
    lose_memory(instance, daemon);
    instance.kill_daemon(daemon);
}

/// All that a daemon holds goes.
fn lose_memory(instance: &Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().into_iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(&name);
        // What is being written at the moment ends here.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).expect("it is our own");
        fs::remove_file(path).expect("it is our own");
    }
}

/// Over links and through the broker.
#[test]
fn who_maps_nothing_misses_no_daemon_and_no_broker() {
    for lost in [1, 2] {
        let mut instance = Instance::start(2);
        let two = RegionOptions { copies: 2, ..RegionOptions::default() };
        instance.open().region_create("vol", "two", REGION_BYTES, &two).unwrap();
        let mut clients = ROUTES.map(|route| Client::open_with(&own_client(), &instance, &route));
        for client in &mut clients {
            client.ask("ropen vol two rw").unwrap();
        }
        let mut seed = 0;
        let mut all_go_on = |what: &str| {
            for writer in 0..clients.len() {
                seed += 1;
                for at in [0, 70_000 + 17] {
                    clients[writer].ask(format!("rfill {at} {seed} 70000")).expect(what);
                    for reader in &mut clients {
                        reader.ask(format!("rcheck {at} {seed} 70000")).expect(what);
                    }
                }
            }
        };
        all_go_on("all are there");
        // The daemon of the primary is away, or that of the other: its copy is there.
        instance.kill_daemon(lost);
        all_go_on("a daemon is away");
        instance.start_daemon(lost);
        all_go_on("it is back");
        instance.kill_broker();
        instance.start_broker();
        all_go_on("another broker serves");
        assert_eq!(wait_sound(&instance).compared, REGION_BYTES / 4096);
        lose(&mut instance, lost);
        all_go_on("a daemon is gone with its memory");
        assert_eq!(instance.status().state, Health::Degraded);
        instance.kill_broker();
        instance.start_broker();
        all_go_on("another broker serves what is left");
        assert_eq!(wait_sound(&instance).good, 1);
    }
}

/// Pages are as they were or as they were to be, and none is lost, although the copy that was
/// written first went with its writer.
#[test]
fn who_dies_with_its_memory_while_it_writes_for_others_takes_nothing_along() {
    let two = RegionOptions { copies: 2, ..RegionOptions::default() };
    for point in [Point::PhaseFirst, Point::FirstStored, Point::PhaseOthers, Point::OthersStored] {
        // In the first page of the second write, which is overwritten in part, in its second, and
        // in its last.
        for page in [1, 2, LATER_PAGES] {
            let what = format!("{} of page {page}", point.name());
            let mut instance = Instance::start(2);
            let session = instance.open();
            session.region_create("vol", "two", REGION_BYTES, &two).unwrap();
            let region = session.region_open("vol", "two", Prot::READ).unwrap();
            let primary = region.info().unwrap().primary_daemon;
            instance.kill_daemon(primary);
            let armed = format!("{}:{}", point.name(), EARLIER_PAGES + page);
            instance.start_daemon_with(primary, &[(POINT_VARIABLE, armed)]);
            instance.wait_serving();
            let mut client = Client::open_with(&own_client(), &instance, &ROUTES[0]);
            client.ask("ropen vol two rw").unwrap();
            client.ask(format!("rfill 0 1 {EARLIER_BYTES}")).unwrap();
            // Nobody repairs before the memory is gone as well.
            let broker = instance.broker_pid().expect("it runs");
            stop(broker);
            client.tell(format!("rfill {LATER_AT} 2 {LATER_BYTES}"));
            let (dead, _) = wait_for(&what, || instance.reap_one());
            assert_eq!(dead, primary, "{what}");
            lose_memory(&instance, primary);
            send(broker, Signal::CONT);
            instance.start_all();
            client.answer().expect(&what);
            let mut expected = pattern(1, EARLIER_BYTES);
            let mut found = vec![0; expected.len()];
            let (at, bytes) = (usize::try_from(LATER_AT).unwrap(), pattern(2, LATER_BYTES));
            expected[at..at + bytes.len()].copy_from_slice(&bytes);
            region.read(0, &mut found, Mirror::Any).expect(&what);
            assert!(found == expected, "{what}");
            assert_eq!(wait_sound(&instance).good, 1, "{what}");
        }
    }
}

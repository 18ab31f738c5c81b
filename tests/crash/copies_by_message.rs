//! Clients that map nothing, and memory with two copies: a daemon goes, with its memory or without,
//! or the broker, and nobody sees it.

use std::fs::{self, File};

use dmce_abi::wire::admin::Health;
use dmce_tests::checker::wait_sound;
use dmce_tests::client::{ROUTES, own_client};
use dmce_tests::{Client, Instance};
use libdmce::RegionOptions;

const REGION_BYTES: u64 = 4 << 20;

/// A daemon goes, and all that it holds.
fn lose(instance: &mut Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().into_iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(&name);
        // What is being written at the moment ends here.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).expect("it is our own");
        fs::remove_file(path).expect("it is our own");
    }
    instance.kill_daemon(daemon);
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

//! Clients that die with pointers into memory of several copies: what they stored, which is in one
//! copy alone until then, is on all of them.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::sync::atomic::{AtomicBool, Ordering};

use dmce_tests::checker::wait_sound;
use dmce_tests::client::own_client;
use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance};
use libdmce::{Mirror, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 8 << 20;
/// Where a pointer begins, and how far it reaches: neither at the end of a page.
const FROM: u64 = 1000;
const POINTED: u64 = 3 << 20;

fn region(instance: &Instance) -> (Session, Region) {
    let session = instance.open();
    let options = RegionOptions { copies: 2, ..RegionOptions::default() };
    session.region_create("vol", "two", BYTES, &options).unwrap();
    let region = session.region_open("vol", "two", Prot::READ_WRITE).unwrap();
    (session, region)
}

/// A client with a pointer into the region.
fn pointing(instance: &Instance, program: &std::path::Path) -> (Client, u64) {
    let mut client = Client::open_with(program, instance, &[]);
    client.ask("ropen vol two rw").unwrap();
    let addr = client.ask(format!("raddr {FROM}")).unwrap();
    let pointer = client.number(format!("map {addr} {POINTED} rw")).unwrap();
    (client, pointer)
}

/// What the client stores: at both ends of its range, and in the middle.
fn stores() -> [(u64, Vec<u8>); 3] {
    [(0, vec![1; 100]), (POINTED / 2 - 3, vec![2; 70_000]), (POINTED - 5, vec![3; 5])]
}

/// The checker has found all copies equal; and both halves have what was stored.
fn check(instance: &Instance, region: &Region) {
    assert!(wait_sound(instance).compared > 0);
    for half in [Mirror::Primary, Mirror::Mirror, Mirror::Any] {
        for (at, stored) in stores() {
            let mut found = vec![0; stored.len()];
            region.read(FROM + at, &mut found, half).unwrap();
            assert!(found == stored, "{half:?} at {at}");
        }
    }
}

#[test]
fn what_a_killed_client_stored_by_a_pointer_is_on_all_copies() {
    for program in other_client().into_iter().chain([own_client()]) {
        let instance = Instance::start(2);
        let (_session, region) = region(&instance);
        let (client, pointer) = pointing(&instance, &program);
        for (at, bytes) in stores() {
            client.store(pointer + at, &bytes);
        }
        let mut found = [9; 100];
        region.read(FROM, &mut found, Mirror::Mirror).unwrap();
        assert_eq!(found, [0; 100], "it is in one copy alone until then");
        client.kill();
        check(&instance, &region);
    }
}

#[test]
fn what_was_stored_by_a_pointer_is_carried_by_the_next_broker() {
    for client_first in [true, false] {
        let mut instance = Instance::start(2);
        let (_session, region) = region(&instance);
        let (client, pointer) = pointing(&instance, &own_client());
        for (at, bytes) in stores() {
            client.store(pointer + at, &bytes);
        }
        if client_first {
            client.kill();
            instance.kill_broker();
        } else {
            instance.kill_broker();
            client.kill();
        }
        instance.start_broker();
        check(&instance, &region);
    }
}

/// Others write in the same pages while they are carried.
#[test]
fn who_writes_where_a_pointer_is_carried_loses_nothing_and_waits_for_nothing() {
    let instance = Instance::start(2);
    let (_session, region) = region(&instance);
    let ours = |round: u64| FROM + POINTED / 4 + round % 64 * 5000;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) || round < 640 {
                round += 1;
                region.write(ours(round), &round.to_le_bytes(), Mirror::Both).unwrap();
            }
            round
        });
        let _is_over = Over(&is_over);
        for _ in 0..5 {
            let (client, pointer) = pointing(&instance, &own_client());
            for (at, bytes) in stores() {
                client.store(pointer + at, &bytes);
            }
            client.kill();
            check_stored(&region);
        }
        is_over.store(true, Ordering::Relaxed);
        let last = writer.join().unwrap();
        for round in last - 63..=last {
            let mut found = [0; 8];
            region.read(ours(round), &mut found, Mirror::Any).unwrap();
            assert_eq!(u64::from_le_bytes(found), round);
        }
    });
    check(&instance, &region);
}

/// Ends the others also when a test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was stored is there at once for who reads the primary.
fn check_stored(region: &Region) {
    for (at, stored) in stores() {
        let mut found = vec![0; stored.len()];
        region.read(FROM + at, &mut found, Mirror::Primary).unwrap();
        assert!(found == stored, "at {at}");
    }
}

/// It is closed in order, and the pointer with it: nothing is left to anybody.
#[test]
fn who_closes_a_session_with_a_pointer_has_its_stores_on_all_copies() {
    let instance = Instance::start(2);
    let (_session, region) = region(&instance);
    let (mut client, pointer) = pointing(&instance, &own_client());
    for (at, bytes) in stores() {
        client.store(pointer + at, &bytes);
    }
    client.ask("close").unwrap();
    check(&instance, &region);
    assert!(!instance.log("broker").contains("what pointers of session"));
}

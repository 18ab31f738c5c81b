//! Clients that map nothing: over links and through the broker, of both widths.

use std::path::PathBuf;

use dmce_tests::client::{ROUTES, own_client};
use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, cannot_run, wait_until};
use libdmce::{Mirror, Options, Prot, RegionOptions, Session, Status};

/// A client for each route and width.
fn clients(instance: &Instance) -> Vec<Client> {
    let mut programs: Vec<PathBuf> = vec![own_client()];
    match other_client() {
        Some(other) => programs.push(other),
        None => cannot_run("DMCE_TEST_OTHER_CLIENT names no test client of the other width"),
    }
    let start = |program: &PathBuf| {
        let program = program.clone();
        ROUTES.map(|route| Client::open_with(&program, instance, &route))
    };
    programs.iter().flat_map(start).collect()
}

fn by_message(instance: &Instance) -> Session {
    Session::open(&Options { message_path: true, ..instance.options() }).unwrap()
}

/// Everything that clients do, checked byte for byte.
#[test]
fn all_that_a_session_does_it_does_by_message() {
    let instance = Instance::builder().capacity("512MiB").layout("32/10/22").start();
    let mut clients = clients(&instance);
    for (seed, client) in clients.iter_mut().enumerate() {
        client.tell(format!("churn {seed} 400"));
    }
    for client in &mut clients {
        client.answer().unwrap();
        assert!(client.ask("stat").unwrap().starts_with("0 "), "no windows");
    }
    drop(clients);
    wait_until("the sessions are gone", || instance.status().sessions == 0);
}

#[test]
fn a_region_is_the_same_bytes_mapped_and_by_message() {
    let instance = Instance::builder().capacity("512MiB").start();
    let mut mapped = Client::open(&instance);
    mapped.ask("create vol shared 314572800 0600").unwrap();
    mapped.ask("ropen vol shared rw").unwrap();
    for mut client in clients(&instance) {
        client.ask("ropen vol shared rw").unwrap();
        for (round, pointer) in
            [0_u64, 4095, (200 << 20) + 17, 314_572_800 - 70_000].into_iter().enumerate()
        {
            mapped.ask(format!("rfill {pointer} {round} 70000")).unwrap();
            client.ask(format!("rcheck {pointer} {round} 70000")).unwrap();
            client.ask(format!("rfill {pointer} {} 70000", round + 100)).unwrap();
            mapped.ask(format!("rcheck {pointer} {} 70000", round + 100)).unwrap();
        }
        let addr = client.number("raddr 4095").unwrap();
        client.ask(format!("check {addr} 101 70000")).unwrap();
        assert_eq!(client.ask(format!("map {addr} 16 r")), Err(Status::Unsupported));
        client.ask("rclose").unwrap();
        assert_eq!(client.ask(format!("check {addr} 101 16")), Err(Status::Address));
    }
}

#[test]
fn a_reader_writes_nothing() {
    let instance = Instance::start(1);
    let mut mapped = Client::open(&instance);
    mapped.ask("create vol kept 100000 0600").unwrap();
    mapped.ask("ropen vol kept rw").unwrap();
    mapped.ask("rfill 0 5 100000").unwrap();
    for mut client in clients(&instance) {
        client.ask("ropen vol kept r").unwrap();
        client.ask("rcheck 0 5 100000").unwrap();
        let addr = client.number("raddr 0").unwrap();
        assert_eq!(client.ask("rfill 0 6 16"), Err(Status::Denied));
        assert_eq!(client.ask(format!("fill {addr} 6 16")), Err(Status::Denied));
        assert_eq!(client.ask(format!("raise {addr} 1")), Err(Status::Denied));
        client.ask("rcheck 0 5 100000").unwrap();
    }
}

#[test]
fn words_are_counted_and_handed_on_between_messages_and_mappings() {
    const TIMES: u64 = 200;
    let instance = Instance::builder().capacity("256MiB").start();
    let mut all = clients(&instance);
    all.push(Client::open(&instance));
    all[0].ask("create vol words 67108864 0600").unwrap();
    for client in &mut all {
        client.ask("ropen vol words rw").unwrap();
    }
    let word = all[0].number("raddr 33554424").unwrap();
    let count = all.len() as u64;
    for (place, client) in all.iter_mut().enumerate() {
        client.tell(format!("count {word} 500 {}", if place % 2 == 0 { "cas" } else { "add" }));
    }
    for client in &mut all {
        client.answer().unwrap();
    }
    assert_eq!(all[0].number(format!("raise {word} 0")), Ok(count * 500));
    let turns = word + 8;
    for (first, client) in all.iter_mut().enumerate() {
        client.tell(format!("turns {turns} {first} {count} {TIMES}"));
    }
    for client in &mut all {
        client.answer().unwrap();
    }
    assert_eq!(all[0].number(format!("raise {turns} 0")), Ok(count * TIMES));
}

/// The other opening of the same region keeps what it may.
#[test]
fn rights_that_go_with_a_handle_are_gone() {
    let instance = Instance::start(1);
    let session = by_message(&instance);
    session.region_create("vol", "r", 1 << 20, &RegionOptions::default()).unwrap();
    let writer = session.region_open("vol", "r", Prot::READ_WRITE).unwrap();
    writer.write(4096, b"here", Mirror::Both).unwrap();
    let reader = session.region_open("vol", "r", Prot::READ).unwrap();
    let mut found = [0; 4];
    reader.read(4096, &mut found, Mirror::Any).unwrap();
    assert_eq!(&found, b"here");
    writer.close().unwrap();
    reader.read(4096, &mut found, Mirror::Any).unwrap();
    let addr = reader.addr(4096).unwrap();
    assert!(session.write(addr, b"x").is_err());
    reader.read(4096, &mut found, Mirror::Any).unwrap();
    assert_eq!(&found, b"here");
    reader.close().unwrap();
    session.region_delete("vol", "r").unwrap();
    assert_eq!(session.read(addr, &mut found).unwrap_err().status(), Status::Address);
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn a_verified_write_and_every_kind_of_access_work() {
    let instance = Instance::start(2);
    let options = Options { message_path: true, verify: true, ..instance.options() };
    let session = Session::open(&options).unwrap();
    let large = session.malloc(20 << 20).unwrap();
    let data: Vec<u8> = (0..5 << 20_u32).map(|place: u32| place.to_le_bytes()[1]).collect();
    session.write(large, &data).unwrap();
    let other = session.calloc(1, 5 << 20).unwrap();
    assert_eq!(session.compare(other, &vec![0; 5 << 20]).unwrap(), std::cmp::Ordering::Equal);
    session.copy(other, large, 5 << 20).unwrap();
    assert_eq!(session.compare(other, &data).unwrap(), std::cmp::Ordering::Equal);
    session.fill(other, 7, 1 << 20).unwrap();
    assert_eq!(session.compare(other, &vec![7; 1 << 20]).unwrap(), std::cmp::Ordering::Equal);
    let grown = session.realloc(other, 9 << 20).unwrap();
    assert_eq!(session.compare(grown, &vec![7; 1 << 20]).unwrap(), std::cmp::Ordering::Equal);
    assert_eq!(session.read(large, &mut []), Ok(()));
    session.free(large).unwrap();
    assert_eq!(session.read(large, &mut [0]).unwrap_err().status(), Status::Address);
    assert_eq!(session.map(grown, 16, Prot::READ).unwrap_err().status(), Status::Unsupported);
}

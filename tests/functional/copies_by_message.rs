//! Clients that map nothing, and memory with several copies: over links and through the broker,
//! beside clients that map it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::thread;

use dmce_tests::client::ROUTES;
use dmce_tests::{Client, Instance, checker, wait_until};
use libdmce::{AllocOptions, Mirror, Options, Prot, Region, RegionOptions, Session, Status};

const REGION_BYTES: u64 = 4 << 20;
const TIMES: u64 = 100;

fn two() -> RegionOptions {
    RegionOptions { copies: 2, ..RegionOptions::default() }
}

fn by_message(instance: &Instance) -> Session {
    Session::open(&Options { message_path: true, ..instance.options() }).unwrap()
}

fn open(session: &Session) -> Region {
    session.region_open("vol", "two", Prot::READ_WRITE).unwrap()
}

/// A mapped client, and one for each route.
fn clients(instance: &Instance) -> Vec<Client> {
    let mut all = vec![Client::open(instance)];
    let program = dmce_tests::client::own_client();
    all.extend(ROUTES.map(|route| Client::open_with(&program, instance, &route)));
    for client in &mut all {
        client.ask("ropen vol two rw").unwrap();
    }
    all
}

#[test]
fn what_anybody_writes_is_on_all_copies_and_read_by_all() {
    let instance = Instance::start(3);
    instance.open().region_create("vol", "two", REGION_BYTES, &two()).unwrap();
    let mut all = clients(&instance);
    let mut seed = 0;
    for writer in 0..all.len() {
        for pointer in [0, 4095, (2 << 20) + 17, REGION_BYTES - 70_000] {
            seed += 1;
            all[writer].ask(format!("rfill {pointer} {seed} 70000")).unwrap();
            for reader in &mut all {
                reader.ask(format!("rcheck {pointer} {seed} 70000")).unwrap();
            }
        }
    }
    let checked = checker::wait_sound(&instance);
    assert_eq!(checked.good, 2);
    assert_eq!(checked.compared, REGION_BYTES / 4096);
}

/// Its first page is on all copies by then.
#[test]
fn a_write_whose_time_is_over_half_way_does_not_say_that_it_is_not_done() {
    const PAGE: usize = 4096;
    let instance = Instance::start(2);
    instance.open().region_create("vol", "two", REGION_BYTES, &two()).unwrap();
    let waits = Options { message_path: true, timeout_ms: 300, ..instance.options() };
    let (waits, mapped) = (Session::open(&waits).unwrap(), instance.open());
    let (region, seen) = (open(&waits), open(&mapped));
    let mut relayed = Client::open_with(&dmce_tests::client::own_client(), &instance, &ROUTES[1]);
    relayed.ask("ropen vol two rw").unwrap();
    region.write(0, &[1; 3 * PAGE], Mirror::Both).unwrap();
    let tables: Vec<String> =
        instance.objects().into_iter().filter(|name| name.contains(".locks-")).collect();
    let [table] = &tables[..] else { panic!("{tables:?}") };
    let table = File::options().write(true).open(instance.object(table)).unwrap();
    // Slot 3 of another session has the second page.
    let second = PAGE as u64 + 8;
    table.write_all_at(&0x4d03_u64.to_le_bytes(), second).unwrap();
    let error = region.write(0, &[2; 3 * PAGE], Mirror::Both).unwrap_err();
    assert_eq!(error.status(), Status::Timeout);
    assert!(!error.text().contains("it is not done"), "{error}");
    let mut found = vec![0; PAGE];
    for (page, byte) in [(0, 2), (2, 1)] {
        seen.read(page * PAGE as u64, &mut found, Mirror::Any).unwrap();
        assert_eq!(found, [byte; PAGE], "page {page}");
    }
    // Who goes on writing does so where it was: this was written meanwhile.
    relayed.tell(format!("rfill 0 7 {}", 3 * PAGE));
    wait_until("its first page is written", || {
        seen.read(0, &mut found, Mirror::Any).unwrap();
        found != [2; PAGE]
    });
    seen.write(0, &[3; PAGE], Mirror::Both).unwrap();
    table.write_all_at(&[0; 8], second).unwrap();
    relayed.answer().unwrap();
    seen.read(0, &mut found, Mirror::Any).unwrap();
    assert_eq!(found, [3; PAGE]);
    assert_eq!(checker::wait_sound(&instance).good, 2);
}

/// Nobody sees half of a page, and no count is lost.
#[test]
fn words_and_pages_are_changed_as_if_by_one() {
    let instance = Instance::start(2);
    instance.open().region_create("vol", "two", REGION_BYTES, &two()).unwrap();
    let mut all = clients(&instance);
    let word = all[0].number("raddr 4096").unwrap();
    for (client, how) in all.iter_mut().zip(["add", "cas", "add"]) {
        client.tell(format!("count {word} {TIMES} {how}"));
    }
    for client in &mut all {
        client.answer().unwrap();
    }
    let count = all.len() as u64;
    assert_eq!(all[0].number(format!("raise {word} 0")), Ok(count * TIMES));
    let turns = word + 8;
    for (first, client) in all.iter_mut().enumerate() {
        client.tell(format!("turns {turns} {first} {count} {TIMES}"));
    }
    for client in &mut all {
        client.answer().unwrap();
    }
    assert_eq!(all[0].number(format!("raise {turns} 0")), Ok(count * TIMES));
    drop(all);

    let sessions = [instance.open(), by_message(&instance), by_message(&instance)];
    thread::scope(|scope| {
        for (seed, session) in (1..).zip(&sessions) {
            scope.spawn(move || {
                let region = open(session);
                let mut found = [0; 4096];
                for round in 0..TIMES {
                    let page = 4096 * (round % 3);
                    region.write(page, &[seed; 4096], Mirror::Both).unwrap();
                    region.read(page, &mut found, Mirror::Any).unwrap();
                    assert!(found.iter().all(|byte| *byte == found[0]), "half of a page");
                }
            });
        }
    });
    let checked = checker::wait_sound(&instance);
    assert_eq!(checked.compared, REGION_BYTES / 4096);
}

#[test]
fn allocations_with_copies_work_without_a_mapping() {
    let instance = Instance::start(3);
    let session = by_message(&instance);
    let options = AllocOptions { copies: 2, ..AllocOptions::default() };
    let small = session.malloc_with(100, &options).unwrap();
    let large = session.malloc_with(3 << 20, &options).unwrap();
    let data: Vec<u8> = (0..3 << 20_u32).map(|place: u32| place.to_le_bytes()[1]).collect();
    session.write(small, &data[..100]).unwrap();
    session.write(large, &data).unwrap();
    assert_eq!(session.compare(large, &data), Ok(std::cmp::Ordering::Equal));
    assert_eq!(session.compare(small, &data[..100]), Ok(std::cmp::Ordering::Equal));
    let checked = checker::wait_sound(&instance);
    assert!(checked.good >= 2 && checked.compared > 700, "{checked:?}");
    session.free(small).unwrap();
    session.free(large).unwrap();
    session.close().unwrap();
    wait_until("nothing is left", || instance.blocks().is_empty());
}

/// As a mapped session sees it, and makes it.
#[test]
fn halves_are_read_and_written_by_their_names() {
    let instance = Instance::start(2);
    let sessions = [by_message(&instance), instance.open()];
    sessions[0].region_create("vol", "two", REGION_BYTES, &two()).unwrap();
    let [asked, mapped] = sessions.each_ref().map(open);
    let read = |region: &Region, mirror| {
        let mut found = vec![0; 6000];
        region.read(4000, &mut found, mirror).unwrap();
        assert!(found.iter().all(|byte| *byte == found[0]), "half of something");
        found[0]
    };
    for (one, other) in [(&asked, &mapped), (&mapped, &asked)] {
        one.write(4000, &[1; 6000], Mirror::Both).unwrap();
        other.write(4000, &[2; 6000], Mirror::Mirror).unwrap();
        for region in [one, other] {
            assert_eq!((read(region, Mirror::Primary), read(region, Mirror::Mirror)), (1, 2));
        }
        one.write(4000, &[3; 6000], Mirror::Primary).unwrap();
        other.resync(Mirror::Mirror).unwrap();
        for region in [one, other] {
            assert_eq!((read(region, Mirror::Primary), read(region, Mirror::Mirror)), (2, 2));
        }
        one.write(4000, &[4; 6000], Mirror::Mirror).unwrap();
        other.write(4000, &[5; 6000], Mirror::Both).unwrap();
        assert_eq!((read(one, Mirror::Primary), read(other, Mirror::Mirror)), (5, 5));
        one.resync(Mirror::Primary).unwrap();
    }
    let checked = checker::wait_sound(&instance);
    assert_eq!(checked.compared, REGION_BYTES / 4096);
}

/// One that was asked for with one copy has one half.
#[test]
fn a_half_that_is_not_there_is_said_to_be_away() {
    let instance = Instance::start(2);
    let session = by_message(&instance);
    let one = RegionOptions { copies: 1, ..RegionOptions::default() };
    session.region_create("vol", "one", 8192, &one).unwrap();
    let region = session.region_open("vol", "one", Prot::READ_WRITE).unwrap();
    region.write(0, b"here", Mirror::Primary).unwrap();
    let mut found = [0; 4];
    region.read(0, &mut found, Mirror::Primary).unwrap();
    assert_eq!(&found, b"here");
    region.resync(Mirror::Primary).unwrap();
    let refused = [
        region.read(0, &mut found, Mirror::Mirror),
        region.write(0, b"none", Mirror::Mirror),
        region.resync(Mirror::Mirror),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().status(), Status::NoCopy);
    }
}

//! Objects that are truncated, removed, or were never ours.

use std::fs::File;
use std::path::Path;

use dmce_abi::Status;
use dmce_abi::wire::admin::{BlockState, Health};
use dmce_tests::client::{Signal, send, stop};
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{Mirror, Options, Prot, RegionOptions, Session};

/// The data objects of the instance: the tests below have one block each.
fn data(instance: &Instance) -> std::path::PathBuf {
    let names = instance.objects();
    let mut data = names.iter().filter(|name| name.contains(".data-"));
    let name = data.next().expect("there is a block");
    assert!(data.next().is_none(), "there is one block");
    instance.object(name)
}

#[test]
fn an_object_truncated_under_a_reader_is_lost_memory_not_a_signal() {
    let instance = Instance::start(1);
    let sessions = [
        instance.open(),
        Session::open(&Options { window_budget: 4 << 20, ..instance.options() }).unwrap(),
    ];
    let plain = RegionOptions::default();
    sessions[0].region_create("vol", "cut", 1 << 20, &plain).unwrap();
    let regions = sessions
        .iter()
        .map(|session| session.region_open("vol", "cut", Prot::READ_WRITE).unwrap())
        .collect::<Vec<_>>();
    let mut buffer = vec![0; 1 << 20];
    for region in &regions {
        region.write(0, &vec![7; 1 << 20], Mirror::Both).unwrap();
        region.read(0, &mut buffer, Mirror::Any).unwrap();
    }
    File::options().write(true).open(data(&instance)).unwrap().set_len(0).unwrap();
    for (session, region) in sessions.iter().zip(&regions) {
        let (addr, beyond) = (region.addr(0).unwrap(), region.addr(8192).unwrap());
        assert_eq!(region.read(0, &mut buffer, Mirror::Any).unwrap_err().status(), Status::Lost);
        assert_eq!(region.write(0, b"x", Mirror::Both).unwrap_err().status(), Status::Lost);
        assert_eq!(session.copy(addr, beyond, 100).unwrap_err().status(), Status::Lost);
        assert_eq!(session.fill(addr, 1, 100).unwrap_err().status(), Status::Lost);
        assert_eq!(session.compare(addr, &[1; 100]).unwrap_err().status(), Status::Lost);
        // Only that memory: the session works on.
        let other = session.malloc(1000).unwrap();
        session.write(other, b"fine").unwrap();
    }
    wait_until("the broker knows", || instance.status().state == Health::Damaged);
}

#[test]
fn an_object_removed_under_a_reader_is_lost_to_the_next_and_named() {
    let instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "gone", 1 << 20, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "gone", Prot::READ_WRITE).unwrap();
    region.write(0, b"here", Mirror::Both).unwrap();
    std::fs::remove_file(data(&instance)).unwrap();
    wait_until("the broker knows", || instance.status().state == Health::Damaged);
    let mut found = [0; 4];
    wait_until("the reader is told", || {
        let read = region.read(0, &mut found, Mirror::Any);
        read.is_err_and(|error| error.status() == Status::Lost)
    });
    let mut other = Client::open(&instance);
    other.ask("ropen vol gone r").unwrap();
    assert_eq!(other.ask("rcheck 0 0 4"), Err(Status::Lost));
}

#[test]
fn a_daemon_that_died_with_its_objects_answers_lost_on_that_memory_only() {
    let mut instance = Instance::builder().daemons(2).start();
    let session = instance.open();
    let plain = RegionOptions::default();
    for name in ["a", "b"] {
        session.region_create("vol", name, 1 << 20, &plain).unwrap();
    }
    let rows = instance.blocks();
    assert_ne!(rows[0].copies[0].daemon, rows[1].copies[0].daemon, "round robin");
    let open = |name| session.region_open("vol", name, Prot::READ_WRITE).unwrap();
    let regions = [open("a"), open("b")];
    for region in &regions {
        region.write(0, &[1; 4096], Mirror::Both).unwrap();
    }
    instance.kill_daemon(1);
    for name in instance.objects() {
        if name.contains(&format!("{}.1.", instance.name())) {
            std::fs::remove_file(instance.object(&name)).unwrap();
        }
    }
    instance.start_daemon(1);
    instance.wait_serving();
    let mut buffer = [0; 4096];
    let statuses: Vec<_> = regions
        .iter()
        .map(|region| region.read(0, &mut buffer, Mirror::Any).map_err(|error| error.status()))
        .collect();
    assert_eq!(statuses.iter().filter(|status| **status == Err(Status::Lost)).count(), 1);
    assert_eq!(statuses.iter().filter(|status| status.is_ok()).count(), 1);
}

#[test]
fn foreign_and_forged_objects_are_left_alone_and_named() {
    let mut instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "real", 1 << 20, &RegionOptions::default()).unwrap();
    session.close().unwrap();
    instance.kill_all();
    let prefix = format!("dmce.{}.1.", instance.name());
    let at = |name: &str| Path::new("/dev/shm").join(format!("{prefix}{name}"));
    std::fs::write(at("head-000000ff"), vec![0x41; 4096]).unwrap();
    std::fs::write(at("data-000000ff"), b"somebody's").unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at("data-000000fe")).unwrap();
    std::fs::write(at("nonsense"), b"somebody's").unwrap();
    // A forged header: that of the real block, under another name.
    let real = instance.objects().into_iter().find(|name| name.contains("head-")).unwrap();
    let real = real.rsplit_once('-').unwrap().1.to_owned();
    std::fs::copy(at(&format!("head-{real}")), at("head-000000fd")).unwrap();
    std::fs::copy(at(&format!("data-{real}")), at("data-000000fd")).unwrap();
    instance.start_all();
    assert_eq!(instance.blocks().len(), 1);
    let session = instance.open();
    assert_eq!(session.region_list("vol").unwrap(), ["real"]);
    for name in ["nonsense", "data-000000fe", "head-000000ff", "head-000000fd"] {
        assert!(at(name).symlink_metadata().is_ok(), "{name} was removed");
        assert!(instance.log("daemon-1").contains(name), "{name} is not in the log");
    }
    // New blocks do not collide with what lies about.
    for place in 0..300 {
        session.region_create("vol", &place.to_string(), 4096, &RegionOptions::default()).unwrap();
    }
}

/// More than the broker looks at in one turn.
#[test]
fn every_object_of_a_daemon_that_died_is_looked_at() {
    const REGIONS: usize = 600;
    let mut instance = Instance::start(1);
    let session = instance.open();
    for number in 0..REGIONS {
        let name = format!("r{number}");
        session.region_create("vol", &name, 4096, &RegionOptions::default()).unwrap();
    }
    let names = instance.objects();
    let data = names.iter().filter(|name| name.contains(".data-")).collect::<Vec<_>>();
    assert_eq!(data.len(), REGIONS);
    // One of them stays, in the middle.
    let kept = data[REGIONS / 2];
    // Stopped first, so that nothing but the broker's look can find the losses.
    stop(instance.daemon_pid(1).expect("the daemon runs"));
    for name in data.iter().filter(|name| **name != kept) {
        std::fs::remove_file(instance.object(name)).unwrap();
    }
    instance.kill_daemon(1);
    let lost = || instance.blocks().iter().filter(|block| block.state == BlockState::Lost).count();
    wait_until("what is gone is known to be lost", || lost() == REGIONS - 1);
}

#[test]
fn a_region_whose_first_block_is_gone_unnoticed_is_opened_for_the_others() {
    let instance = Instance::builder().daemons(1).capacity("128MiB").layout("16/24/24").start();
    let session = instance.open();
    session.region_create("vol", "wide", 20 << 20, &RegionOptions::default()).unwrap();
    let mut names = instance.objects();
    names.retain(|name| name.contains(".data-"));
    names.sort();
    assert_eq!(names.len(), 2);
    // Stopped first, so that nobody tells the broker.
    let daemon = instance.daemon_pid(1).expect("the daemon runs");
    stop(daemon);
    std::fs::remove_file(instance.object(&names[0])).unwrap();
    let region = session.region_open("vol", "wide", Prot::READ_WRITE);
    send(daemon, Signal::CONT);
    let region = region.unwrap();
    let second = 16 << 20;
    region.write(second, b"here", Mirror::Both).unwrap();
    let mut found = [0; 4];
    region.read(second, &mut found, Mirror::Any).unwrap();
    assert_eq!(&found, b"here");
    assert_eq!(region.read(0, &mut found, Mirror::Any).unwrap_err().status(), Status::Lost);
}

//! Copies whose block went on without them: nobody reads them, until an administrator says so.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Output};

use dmce_abi::Status;
use dmce_abi::wire::admin::{BlockState, CopyState, Health};
use dmce_tests::checker::wait_sound;
use dmce_tests::programs::program;
use dmce_tests::{Instance, wait_until};
use libdmce::{Mirror, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 100_000;
const OLD: [u8; 5] = *b"older";
const NEW: [u8; 5] = *b"newer";

/// Objects of a daemon that are not where they were.
struct Aside(Vec<(String, Vec<u8>)>);

/// A daemon dies, and what it had is put aside.
fn put_aside(instance: &mut Instance, daemon: u32) -> Aside {
    instance.kill_daemon(daemon);
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    let is_block = |name: &String| {
        name.starts_with(&prefix) && (name.contains(".data-") || name.contains(".head-"))
    };
    let take = |name: String| {
        let path = instance.object(&name);
        let bytes = fs::read(&path).expect("it is our own");
        // Who has it mapped is to see that it is gone.
        File::options().write(true).open(&path).and_then(|file| file.set_len(0)).unwrap();
        fs::remove_file(path).expect("it is our own");
        (name, bytes)
    };
    Aside(instance.objects().into_iter().filter(is_block).map(take).collect())
}

/// A daemon comes back with what was put aside.
fn put_back(instance: &mut Instance, daemon: u32, aside: Aside) {
    for (name, bytes) in aside.0 {
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o600).open(instance.object(&name));
        file.and_then(|mut file| file.write_all(&bytes)).expect("nothing is there");
    }
    instance.start_daemon(daemon);
}

fn region(instance: &Instance) -> (Session, Region) {
    let session = instance.open();
    let options = RegionOptions { copies: 2, ..RegionOptions::default() };
    session.region_create("vol", "two", BYTES, &options).unwrap();
    let region = session.region_open("vol", "two", Prot::READ_WRITE).unwrap();
    (session, region)
}

fn dmce(instance: &Instance, line: &str) -> Output {
    let mut command = Command::new(program("dmce"));
    command.arg("--socket").arg(instance.socket()).args(line.split(' '));
    command.output().expect("it was built")
}

fn copies(instance: &Instance) -> Vec<(u32, CopyState)> {
    let block = instance.blocks().into_iter().next().expect("there is one");
    block.copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

fn found(region: &Region) -> Result<[u8; 5], Status> {
    let mut found = [0; 5];
    region.read(BYTES - 5, &mut found, Mirror::Any).map_err(|error| error.status())?;
    Ok(found)
}

#[test]
fn a_copy_that_comes_back_late_is_read_by_nobody_also_after_all_have_died() {
    let mut instance = Instance::start(2);
    let (session, region) = region(&instance);
    region.write(BYTES - 5, &OLD, Mirror::Both).unwrap();
    let aside = put_aside(&mut instance, 1);
    region.write(BYTES - 5, &NEW, Mirror::Both).unwrap();
    put_back(&mut instance, 1, aside);
    let stale = [(2, CopyState::Good), (1, CopyState::Stale)];
    wait_until("it is back", || copies(&instance) == stale);
    for _ in 0..2 {
        instance.wait_serving();
        assert_eq!(found(&region), Ok(NEW));
        assert_eq!(copies(&instance), stale);
        assert_eq!(instance.status().state, Health::Degraded);
        let shown = dmce(&instance, "blocks");
        assert!(String::from_utf8_lossy(&shown.stdout).contains("stale"), "{shown:?}");
        assert_eq!(dmce(&instance, "status").status.code(), Some(4));
        assert_eq!(wait_sound(&instance).stale, 1);
        instance.kill_all();
        instance.start_all();
    }
    instance.wait_serving();
    region.close().unwrap();
    session.region_delete("vol", "two").unwrap();
    drop(session);
    instance.wait_empty();
}

#[test]
fn a_lost_block_is_there_again_when_its_stale_copy_is_adopted() {
    let mut instance = Instance::start(2);
    let (session, region) = region(&instance);
    region.write(BYTES - 5, &OLD, Mirror::Both).unwrap();
    let block = instance.blocks()[0].block;
    let adopt = |instance: &Instance, more: &str| {
        let output = dmce(instance, &format!("adopt --stale {block}{more}"));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let refused = |text: &str| (Some(1), format!("dmce: {text}\n"));
    let first = put_aside(&mut instance, 1);
    region.write(BYTES - 5, &NEW, Mirror::Both).unwrap();
    put_aside(&mut instance, 2);
    wait_until("both are lost", || found(&region) == Err(Status::Lost));
    wait_until("it is shown", || instance.blocks()[0].state == BlockState::Lost);
    let none = format!("no daemon has a stale copy of block {block}");
    assert_eq!(adopt(&instance, ""), refused(&none));
    put_back(&mut instance, 1, first);
    let stale = [(2, CopyState::Lost), (1, CopyState::Stale)];
    wait_until("the first is back", || copies(&instance) == stale);
    assert_eq!(found(&region), Err(Status::Lost), "nobody has said that it is to be read");
    let other = format!("daemon 2 has no stale copy of block {block}");
    assert_eq!(adopt(&instance, " --from 2"), refused(&other));

    assert_eq!(adopt(&instance, " --from 1"), (Some(0), String::new()));
    assert_eq!(found(&region), Ok(OLD));
    assert_eq!(copies(&instance), [(1, CopyState::Good), (2, CopyState::Lost)]);
    assert_eq!(instance.blocks()[0].state, BlockState::Degraded);
    let good = format!("block {block} is not lost: it has a good copy on daemon 1");
    assert_eq!(adopt(&instance, ""), refused(&good));
    // It is as any other from then on, also to the next broker.
    region.write(0, &NEW, Mirror::Both).unwrap();
    instance.kill_broker();
    instance.start_broker();
    instance.start_daemon(2);
    instance.wait_serving();
    let mut read = [0; 5];
    region.read(0, &mut read, Mirror::Any).unwrap();
    assert_eq!((read, found(&region)), (NEW, Ok(OLD)));
    assert!(wait_sound(&instance).good == 1);
    region.close().unwrap();
    session.region_delete("vol", "two").unwrap();
    drop(session);
    instance.wait_empty();
}

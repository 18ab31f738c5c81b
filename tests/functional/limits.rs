//! Every limit is an answer from the call that met it.

use std::process::Command;

use dmce_abi::Status;
use dmce_tests::client::own_client;
use dmce_tests::{Client, Instance, cannot_run};
use libdmce::{AllocOptions, Options, RegionOptions, Session};

#[test]
fn a_quota_is_an_answer_and_what_was_held_stays() {
    let quota = "quota.bytes = \"32MiB\"\nquota.sessions = 2\nquota.regions = 1\n";
    let instance = Instance::builder().config(quota).start();
    let session = instance.open();
    let mut held = Vec::new();
    let refused = loop {
        match session.malloc(1 << 20) {
            Ok(addr) => {
                session.write(addr, b"held").unwrap();
                held.push(addr);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(refused.status(), Status::Quota);
    assert!((20..=32).contains(&held.len()), "{} MiB", held.len());
    for addr in &held {
        let mut found = [0; 4];
        session.read(*addr, &mut found).unwrap();
        assert_eq!(&found, b"held");
    }
    let second = instance.open();
    assert_eq!(Session::open(&instance.options()).unwrap_err().status(), Status::Quota);
    second.close().unwrap();
    session.close().unwrap();
    let third = instance.open();
    third.region_create("v", "one", 4096, &libdmce::RegionOptions::default()).unwrap();
    let two = third.region_create("v", "two", 4096, &libdmce::RegionOptions::default());
    assert_eq!(two.unwrap_err().status(), Status::Quota);
}

/// Empty blocks stay with their session for a while, but not when it needs their room.
#[test]
fn memory_that_a_session_holds_empty_is_not_refused_to_itself() {
    for (config, capacity) in [("", "64MiB"), ("quota.bytes = \"64MiB\"\n", "256MiB")] {
        let config = format!("broker.idle_s = 3600\n{config}");
        let instance = Instance::builder().daemons(1).capacity(capacity).config(&config).start();
        let session = instance.open();
        let fill_and_free = || {
            let held: Vec<_> = std::iter::from_fn(|| session.malloc(1 << 20).ok()).collect();
            assert!(held.len() > 40, "{} MiB", held.len());
            for addr in held {
                session.free(addr).unwrap();
            }
        };
        fill_and_free();
        let span = session.malloc(50 << 20).unwrap();
        session.free(span).unwrap();
        fill_and_free();
        let other = AllocOptions { page_size: 65536, ..AllocOptions::default() };
        let addr = session.malloc_with(30 << 20, &other).unwrap();
        session.free(addr).unwrap();
        fill_and_free();
        session.region_create("v", "r", 50 << 20, &RegionOptions::default()).unwrap();
        session.region_delete("v", "r").unwrap();
        fill_and_free();
        let patient = AllocOptions { wait: true, timeout_ms: 60_000, ..AllocOptions::default() };
        session.malloc_with(50 << 20, &patient).unwrap();
    }
}

#[test]
fn full_daemons_are_an_answer_and_space_that_came_back_is_used() {
    let instance = Instance::builder().daemons(2).capacity("24MiB").start();
    let session = instance.open();
    let mut held = Vec::new();
    let refused = loop {
        match session.malloc(2 << 20) {
            Ok(addr) => held.push(addr),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.status(), Status::NoSpace);
    assert!(held.len() >= 16, "{} of 24 fit", held.len());
    let freed = held.split_off(held.len() / 2);
    for addr in freed {
        session.free(addr).unwrap();
    }
    session.malloc(2 << 20).unwrap();
    assert_eq!(session.malloc(1 << 60).unwrap_err().status(), Status::NoSpace);
    assert_eq!(session.malloc(u64::MAX).unwrap_err().status(), Status::NoSpace);
}

/// A tmpfs of the test's own, unmounted at the end.
pub struct SmallFileSystem(pub std::path::PathBuf);

impl SmallFileSystem {
    pub fn mount(name: &str, bytes: &str) -> Option<Self> {
        let folder = std::env::temp_dir().join(format!("dmce-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "dmce-test"]).arg(&folder);
        if mount.status().is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        std::fs::remove_dir(&folder).unwrap();
        cannot_run("a file system of a small size cannot be mounted here");
        None
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").args(["-l"]).arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_full_shared_memory_file_system_is_an_answer_never_a_signal() {
    let Some(small) = SmallFileSystem::mount("full", "48m") else { return };
    let config = "daemon.margin = \"1MiB\"\n";
    let builder = Instance::builder().daemons(2).capacity("1GiB");
    let instance = builder.objects(&small.0).config(config).start();
    let session = instance.open();
    let mut held = Vec::new();
    let refused = loop {
        match session.malloc(1 << 20) {
            Ok(addr) => {
                session.fill(addr, 0x77, 1 << 20).unwrap();
                held.push(addr);
            }
            Err(error) => break error,
        }
    };
    assert_eq!(refused.status(), Status::NoSpace);
    assert!(held.len() >= 8, "{} MiB were granted", held.len());
    for addr in held {
        let same = session.compare(addr, &vec![0x77; 1 << 20]).unwrap();
        assert_eq!(same, std::cmp::Ordering::Equal);
    }
    session.close().unwrap();
    instance.wait_empty();
    let again = instance.open();
    again.malloc(4 << 20).unwrap();
}

#[test]
fn little_address_space_means_fewer_windows_or_an_answer() {
    let instance = Instance::builder().daemons(2).capacity("256MiB").start();
    let program = instance.dir().join("client-with-little");
    let text = format!("#!/bin/sh\nulimit -v 300000\nexec {}\n", own_client().display());
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let budget = [("DMCE_WINDOW_BUDGET", "1GiB")];
    let mut client = Client::open_with(&program, &instance, &budget);
    let addrs = client.ask("hold 300").unwrap();
    let addrs: Vec<&str> = addrs.split(' ').collect();
    for (place, addr) in addrs.iter().enumerate() {
        client.ask(format!("check {addr} {place} 1048576")).unwrap();
    }
    // Pins use it up in the end: an answer, and the rest goes on.
    let refused = addrs.iter().find_map(|addr| client.ask(format!("map {addr} 1048576 r")).err());
    assert_eq!(refused, Some(Status::NoMem));
    for (place, addr) in addrs.iter().enumerate() {
        client.ask(format!("check {addr} {place} 4096")).unwrap();
    }
}

#[test]
fn more_copies_than_there_are_daemons_are_never_silently_fewer() {
    let instance = Instance::start(1);
    let two = Options { copies: 2, ..instance.options() };
    let reserving = Options { reserve_bytes: 1 << 20, ..two.clone() };
    assert_eq!(Session::open(&reserving).unwrap_err().status(), Status::NoSpace);
    let session = Session::open(&two).unwrap();
    assert_eq!(session.malloc(100).unwrap_err().status(), Status::NoSpace);
}

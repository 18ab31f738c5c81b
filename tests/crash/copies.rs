//! Memory with several copies: a daemon goes, with all that it holds, and nobody sees it.

use std::cmp::Ordering;
use std::fs::{self, File};

use dmce_abi::wire::admin::{CopyState, Health};
use dmce_tests::{Instance, wait_until};
use libdmce::{AllocOptions, Event, Mirror, Options, Prot, Region, RegionOptions, Session};

const REGION_BYTES: u64 = 4 << 20;

/// What a daemon holds.
fn objects_of(instance: &Instance, daemon: u32) -> Vec<String> {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    let names = instance.objects().into_iter();
    names.filter(|name| name.starts_with(&prefix)).collect()
}

/// A daemon goes, and its memory with it.
fn lose(instance: &mut Instance, daemon: u32) {
    for name in objects_of(instance, daemon) {
        let path = instance.object(&name);
        // A block that is being written at the moment ends here, also where it is mapped.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).expect("it is our own");
        fs::remove_file(path).expect("it is our own");
    }
    instance.kill_daemon(daemon);
}

fn copies(copies: u32) -> RegionOptions {
    RegionOptions { copies, ..RegionOptions::default() }
}

/// Sessions that map blocks whole, and one behind windows.
fn sessions(instance: &Instance) -> [Session; 2] {
    let windowed = Options { window_budget: 4 << 20, ..instance.options() };
    [instance.open(), Session::open(&windowed).expect("the broker serves")]
}

fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes as u64).map(|at| (at.wrapping_mul(seed | 1) >> 3).to_le_bytes()[0]).collect()
}

fn open(session: &Session) -> Region {
    session.region_open("vol", "two", Prot::READ_WRITE).expect("it is there")
}

#[test]
fn a_daemon_that_goes_with_its_memory_is_not_missed() {
    for lost in [1, 2] {
        let mut instance = Instance::start(2);
        let sessions = sessions(&instance);
        sessions[0].region_create("vol", "two", REGION_BYTES, &copies(2)).unwrap();
        let regions = sessions.each_ref().map(open);
        assert_eq!(sessions[0].next_event().unwrap(), None, "from now on it wants to know");
        let data = pattern(7, 1 << 20);
        regions[0].write(0, &data, Mirror::Both).unwrap();
        regions[1].write(1 << 20, &data, Mirror::Both).unwrap();
        lose(&mut instance, lost);
        let mut found = vec![0; data.len()];
        for (region, other) in regions.iter().zip([1 << 20, 0]) {
            region.read(other, &mut found, Mirror::Any).unwrap();
            assert!(found == data, "daemon {lost}");
            region.write(other + 100, b"after", Mirror::Both).unwrap();
        }
        for (session, region) in sessions.iter().zip(&regions) {
            for at in [100, (1 << 20) + 100] {
                let addr = region.addr(at).unwrap();
                assert_eq!(session.compare(addr, b"after"), Ok(Ordering::Equal));
            }
        }
        let first = regions[0].addr(0).unwrap();
        let lost_copy = |event| matches!(event, Event::CopyLost { addr, .. } if addr == first);
        wait_until("the session is told", || {
            sessions[0].next_event().unwrap().is_some_and(lost_copy)
        });
        let block = instance.blocks().into_iter().next().unwrap();
        let states = block.copies.iter().map(|copy| (copy.daemon, copy.state));
        let left = 3 - lost;
        assert!(states.clone().any(|copy| copy == (left, CopyState::Good)), "{block:?}");
        assert!(!states.clone().any(|copy| copy == (lost, CopyState::Good)), "{block:?}");
        assert_eq!(instance.status().state, Health::Degraded);
    }
}

/// Its broker may not know of the loss, as it has seen nothing but what is left.
#[test]
fn what_is_left_of_a_copy_that_was_cut_goes_with_its_region() {
    for broker_sees_it in [true, false] {
        let mut instance = Instance::start(2);
        instance.open().region_create("vol", "two", REGION_BYTES, &copies(2)).unwrap();
        if !broker_sees_it {
            instance.kill_broker();
        }
        let data = objects_of(&instance, 2).into_iter().filter(|name| name.contains(".data-"));
        for name in data {
            let file = File::options().write(true).open(instance.object(&name));
            file.and_then(|file| file.set_len(0)).expect("it is our own");
        }
        if broker_sees_it {
            wait_until("it is seen", || instance.status().state == Health::Degraded);
            instance.kill_broker();
        }
        instance.start_broker();
        wait_until("it is known", || instance.status().state == Health::Degraded);
        instance.open().region_delete("vol", "two").unwrap();
        instance.wait_empty();
    }
}

#[test]
fn allocations_with_copies_outlive_a_daemon() {
    let mut instance = Instance::start(3);
    let sessions = sessions(&instance);
    let two = AllocOptions { copies: 2, ..AllocOptions::default() };
    let mut kept = Vec::new();
    for (seed, session) in (1..).zip(&sessions) {
        for bytes in [64, 5000, 300_000, 3 << 20] {
            let addr = session.malloc_with(bytes, &two).unwrap();
            let data = pattern(seed + bytes, usize::try_from(bytes).unwrap());
            session.write(addr, &data).unwrap();
            kept.push((session, addr, data));
        }
    }
    lose(&mut instance, 2);
    for (session, addr, data) in &kept {
        assert_eq!(session.compare(*addr, data), Ok(Ordering::Equal));
        session.fill(*addr, 9, data.len() as u64).unwrap();
        assert_eq!(session.add64(*addr, 1), Ok(0x0909_0909_0909_0909));
    }
    lose(&mut instance, 1);
    let lost = kept.iter().filter(|(session, addr, _)| session.add64(*addr, 1).is_err()).count();
    assert!(lost < kept.len(), "those on the third daemon are there");
    for (session, addr, _) in kept {
        session.free(addr).unwrap();
    }
    drop(sessions);
    wait_until("nothing is left", || instance.blocks().is_empty());
}

#[test]
fn what_is_asked_for_is_kept_or_refused() {
    let instance = Instance::builder().region_copies(2).start();
    let session = instance.open();
    let three = AllocOptions { copies: 3, ..AllocOptions::default() };
    let refused = session.malloc_with(4096, &three).unwrap_err();
    assert_eq!(refused.status(), dmce_abi::Status::NoSpace, "{refused}");
    let refused = session.region_create("vol", "r", 4096, &copies(3)).unwrap_err();
    assert_eq!(refused.status(), dmce_abi::Status::NoSpace, "{refused}");
    session.region_create("vol", "r", 4096, &RegionOptions::default()).unwrap();
    let info = session.region_open("vol", "r", Prot::READ).unwrap().info().unwrap();
    assert_eq!(info.copies, 2);
    let mut daemons = [info.primary_daemon, info.mirror_daemon];
    daemons.sort_unstable();
    assert_eq!(daemons, [1, 2]);
}

//! Transparent memory over real servers: plain pointers into blocks of several daemons.

use std::collections::BTreeSet;
use std::fs;

use dmce_abi::Status;
use dmce_tests::client::own_client;
use dmce_tests::{Client, Instance, wait_until};
use libdmce::AllocOptions;

use crate::limits::SmallFileSystem;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Blocks of 16 MiB.
const LAYOUT: &str = "16/24/24";

#[test]
fn one_range_over_several_daemons_has_every_byte_where_it_belongs() {
    let instance = Instance::builder().daemons(4).capacity("64MiB").layout(LAYOUT).start();
    for budget in ["", "8MiB"] {
        let environment = [("DMCE_WINDOW_BUDGET", budget)];
        let mut client = Client::open_with(&own_client(), &instance, &environment);
        let bytes = 120 * MIB + 24;
        let pointer = client.number(format!("vmalloc {bytes}")).unwrap();
        let daemons: BTreeSet<u32> =
            instance.blocks().iter().flat_map(|row| &row.copies).map(|copy| copy.daemon).collect();
        assert!(daemons.len() > 2, "{daemons:?}");
        let pieces = || (0..bytes).step_by(3 << 20).map(|at| (at, (bytes - at).min(3 * MIB)));
        for (at, bytes) in pieces() {
            client.ask(format!("pfill {} {at} {bytes}", pointer + at)).unwrap();
        }
        let addr = client.number(format!("addrof {pointer}")).unwrap();
        for (at, bytes) in pieces() {
            client.ask(format!("check {} {at} {bytes}", addr + at)).unwrap();
            assert_eq!(client.number(format!("addrof {}", pointer + at)), Ok(addr + at));
        }
        client.ask(format!("vfree {pointer}")).unwrap();
        client.ask("close").unwrap();
        instance.wait_empty();
    }
}

#[test]
fn what_there_is_no_room_for_is_refused_early_and_leaves_nothing() {
    let instance = Instance::builder().daemons(2).capacity("256MiB").start();
    let session = instance.open();
    let plain = AllocOptions::default();
    for bytes in [20 * GIB, 600 * MIB, 1 << 45, 1 << 62, u64::MAX] {
        let refused = session.vmalloc(bytes, &plain).unwrap_err();
        assert_eq!(refused.status(), Status::NoSpace, "{bytes}: {refused}");
    }
    let too_many = AllocOptions { copies: 3, ..plain.clone() };
    assert_eq!(session.vmalloc(1, &too_many).unwrap_err().status(), Status::NoSpace);
    assert_eq!((instance.blocks().len(), instance.mappings().len()), (0, 0));
    drop(session.vmalloc(200 * MIB, &plain).unwrap());
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn a_full_shared_memory_file_system_is_an_answer_and_what_is_granted_is_there() {
    let Some(small) = SmallFileSystem::mount("transparent", "48m") else { return };
    let config = "daemon.margin = \"1MiB\"\n";
    let builder = Instance::builder().daemons(2).capacity("1GiB");
    let instance = builder.objects(&small.0).config(config).start();
    let mut client = Client::open(&instance);
    assert_eq!(client.number(format!("vmalloc {}", 64 * MIB)), Err(Status::NoSpace));
    let mut held = Vec::new();
    let refused = loop {
        match client.number(format!("vmalloc {}", 3 * MIB)) {
            Ok(pointer) => held.push(pointer),
            Err(status) => break status,
        }
    };
    assert_eq!(refused, Status::NoSpace);
    assert!(held.len() > 3, "{held:?}");
    for pointer in &held {
        client.ask(format!("pfill {pointer} {pointer} {}", 3 * MIB)).unwrap();
    }
    for pointer in held {
        client.ask(format!("pcheck {pointer} {pointer} {}", 3 * MIB)).unwrap();
        client.ask(format!("vfree {pointer}")).unwrap();
    }
    client.number(format!("vmalloc {}", 3 * MIB)).unwrap();
}

#[test]
fn too_little_address_space_is_an_answer_and_nothing_is_left_of_it() {
    let instance = Instance::builder().daemons(2).capacity("1GiB").start();
    let program = instance.dir().join("client-with-little");
    let text = format!("#!/bin/sh\nulimit -v 400000\nexec {}\n", own_client().display());
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut client = Client::open_with(&program, &instance, &[]);
    for bytes in [500 * MIB, 100 * GIB] {
        let refused = client.number(format!("vmalloc {bytes}"));
        // What no daemon has is known when its address space is there.
        assert_eq!(refused, Err(Status::NoMem), "{bytes}");
    }
    assert_eq!((instance.blocks().len(), instance.mappings().len()), (0, 0));
    for _ in 0..8 {
        let pointer = client.number(format!("vmalloc {}", 100 * MIB)).unwrap();
        client.ask(format!("pfill {pointer} 5 70000")).unwrap();
        client.ask(format!("vfree {pointer}")).unwrap();
    }
    wait_until("all went back", || instance.blocks().is_empty());
}

#[test]
fn what_a_killed_client_had_is_freed_at_once() {
    let instance = Instance::builder().daemons(2).capacity("256MiB").start();
    // Of two copies, what was stored is not carried for nobody.
    let mut client = Client::open(&instance);
    let pointer = client.number(format!("vmalloc {} 2", 200 * MIB)).unwrap();
    client.ask(format!("pfill {pointer} 1 70000")).unwrap();
    client.kill();
    instance.wait_empty();
    let log = instance.log("broker");
    assert!(!log.contains("what pointers of session"), "{log}");
    let mut client = Client::open(&instance);
    let pointer = client.number(format!("vmalloc {}", 200 * MIB)).unwrap();
    client.ask(format!("pfill {pointer} 1 70000")).unwrap();
    let [row] = instance.mappings().try_into().unwrap();
    assert_eq!((row.pid, row.key.os_address), (client.pid(), pointer));
    assert_eq!((row.bytes, row.writable), (200 * MIB, true));
    assert_eq!(client.number(format!("addrof {pointer}")), Ok(row.addr));
    client.kill();
    instance.wait_empty();
    assert!(instance.mappings().is_empty());
    drop(instance.open().vmalloc(200 * MIB, &AllocOptions::default()).unwrap());
}

#[test]
fn the_next_broker_knows_what_is_mapped() {
    let mut instance = Instance::builder().daemons(2).capacity("256MiB").start();
    let mut client = Client::open(&instance);
    let pointer = client.number(format!("vmalloc {}", 20 * MIB)).unwrap();
    client.ask(format!("pfill {pointer} 7 70000")).unwrap();
    let before = instance.mappings();
    instance.kill_broker();
    // Plain memory needs nobody.
    client.ask(format!("pcheck {pointer} 7 70000")).unwrap();
    assert_eq!(client.ask(format!("addrof {pointer}")), Ok(before[0].addr.to_string()));
    instance.start_broker();
    instance.wait_serving();
    wait_until("it is told", || instance.mappings() == before);
    client.ask(format!("pcheck {pointer} 7 70000")).unwrap();
    client.ask(format!("vfree {pointer}")).unwrap();
    wait_until("it is told of the end", || instance.mappings().is_empty());
    client.ask("close").unwrap();
    instance.wait_empty();
}

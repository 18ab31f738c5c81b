//! Transparent memory over real servers: plain pointers into blocks of several daemons.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;

use dmce_abi::Status;
use dmce_abi::wire::admin::{CopyRow, CopyState};
use dmce_tests::client::own_client;
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{AllocOptions, Session};

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
        // A program does not ask for what it could not address, if an instance might have it.
        let is_too_much = bytes < 1 << 48 && usize::try_from(bytes).is_err();
        let expected = if is_too_much { Status::NoMem } else { Status::NoSpace };
        assert_eq!(refused.status(), expected, "{bytes}: {refused}");
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

/// What each good copy of a block has in a range, which is in one block.
fn on_copies(instance: &Instance, session: &Session, addr: u64, bytes: u64) -> Vec<Vec<u8>> {
    let cell_bits = session.layout().cell_bits();
    let (id, cell) = (addr >> cell_bits, addr & ((1 << cell_bits) - 1));
    let blocks = instance.blocks();
    let row = blocks.iter().find(|row| u64::from(row.block) == id).unwrap();
    let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
    let read = |daemon: u32| {
        let name = format!("dmce.{}.{daemon}.data-{:08x}", instance.name(), row.block);
        let mut found = vec![0; usize::try_from(bytes).unwrap()];
        let object = fs::File::open(instance.object(&name)).unwrap();
        object.read_exact_at(&mut found, cell).unwrap();
        found
    };
    good.map(|copy| read(copy.daemon)).collect()
}

#[test]
fn a_sync_brings_what_plain_pointers_stored_whatever_happened_between() {
    let instance = Instance::builder().daemons(3).capacity("256MiB").layout(LAYOUT).start();
    let session = instance.open();
    let own = fs::File::options().read(true).write(true).open("/proc/self/mem").unwrap();
    let two = AllocOptions { copies: 2, ..AllocOptions::default() };
    let bytes = 40 * MIB;
    let memory = session.vmalloc(bytes, &two).unwrap();
    let (start, addr) = (memory.as_ptr().addr() as u64, memory.addr().to_raw());
    // Four pages of each MiB, at other places each time, and in the last of them a few bytes.
    let places = |round: u64| {
        (0..40).flat_map(move |mib| (0..4).map(move |n| mib * MIB + (round * 5 + n * 61) * 4096))
    };
    let mut expected = vec![0_u8; usize::try_from(bytes).unwrap()];
    for round in 0..4_u64 {
        for place in places(round) {
            let data = [u8::try_from(round).unwrap() + 1; 4096];
            let data = if place % 3 == 0 { &data[..100] } else { &data[..] };
            own.write_all_at(data, start + place).unwrap();
            let at = usize::try_from(place).unwrap();
            expected[at..at + data.len()].copy_from_slice(data);
        }
        match round {
            // In parts, of which none begins or ends with a page.
            1 => {
                let step = 7 * MIB + 123;
                for from in (0..bytes).step_by(usize::try_from(step).unwrap()) {
                    memory.sync(from, step.min(bytes - from)).unwrap();
                }
            }
            _ => memory.sync(0, bytes).unwrap(),
        }
        for block in (0..bytes).step_by(usize::try_from(16 * MIB).unwrap()) {
            let of_block = (16 * MIB).min(bytes - block);
            let range = usize::try_from(block).unwrap()..usize::try_from(block + of_block).unwrap();
            let copies = on_copies(&instance, &session, addr + block, of_block);
            assert!(copies.len() >= 2 || round > 2, "round {round}: {} copies", copies.len());
            for copy in copies {
                assert!(copy == expected[range.clone()], "round {round}, block at {block}");
            }
        }
        if round == 2 {
            lose_primary_of(&instance, &session, addr);
        }
    }
}

/// Removes the first copy of a block, and waits until pointers are to another.
fn lose_primary_of(instance: &Instance, session: &Session, addr: u64) {
    let id = addr >> session.layout().cell_bits();
    let row = || instance.blocks().into_iter().find(|row| u64::from(row.block) == id).unwrap();
    let lost = row().copies[0].daemon;
    let name = format!("dmce.{}.{lost}.data-{id:08x}", instance.name());
    fs::remove_file(instance.object(&name)).unwrap();
    wait_until("the copy is lost", || {
        let good = |copy: &CopyRow| copy.state == CopyState::Good && copy.daemon == lost;
        !row().copies.iter().any(good)
    });
    // Until then stores go to what is lost, and with it.
    wait_until("another copy is beneath the pointer", || {
        session.poll().unwrap();
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        !maps.lines().any(|line| line.contains(&name))
    });
}

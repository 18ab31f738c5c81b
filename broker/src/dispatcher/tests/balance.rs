//! Blocks that move by themselves: when, which, and how many are looked at for it.

use std::thread;

use dmce_abi::block::BlockId;
use dmce_abi::wire::admin::AdminRequest;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Delete, Map};

use super::copies::with_copies;
use super::rig::{GIB, MIB, Rig, block_id, config, open, region, span};
use super::syncing::copies;
use crate::dispatcher::{ClientConn, Started};

const NOTE_MS: u64 = 1000;
const PERCENT: u32 = 20;

fn rig(percent: u32) -> Rig {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 4);
    (config.rebalance_percent, config.usage_ms) = (percent, NOTE_MS);
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    rig
}

fn spans(rig: &mut Rig, count: u64, bytes: u64) -> (ClientConn, Vec<BlockId>) {
    let (conn, _) = rig.session(1000);
    let granted = (1..=count).map(|ticket| rig.granted(conn, span(ticket, bytes)).first.block);
    (conn, granted.collect())
}

fn wait(rig: &mut Rig, notes: u64) {
    for _ in 0..notes {
        rig.wait(NOTE_MS);
    }
}

fn mib_on(rig: &Rig, daemons: &[u32]) -> Vec<u64> {
    let charged = rig.dispatcher.snapshot().charged;
    let on = |id: &u32| charged.iter().find(|(daemon, _)| daemon.get() == *id).unwrap().1.0 / MIB;
    daemons.iter().map(on).collect()
}

fn address(block: BlockId) -> u64 {
    u64::from(block.get()) << config().layout.cell_bits()
}

fn primary(rig: &mut Rig, block: BlockId) -> u32 {
    copies(rig, block)[0].0
}

#[test]
fn what_differs_for_long_enough_is_evened_to_half_of_the_threshold_and_then_rests() {
    let mut rig = rig(30);
    spans(&mut rig, 12, 64 * MIB);
    rig.daemon(2, GIB);
    wait(&mut rig, 2);
    assert_eq!(mib_on(&rig, &[1, 2]), [768, 0], "it has not differed for long");
    wait(&mut rig, 30);
    // They differ by 12.5 percent of a GiB; before the last one moved it was 25.
    let after = mib_on(&rig, &[1, 2]);
    assert_eq!(after, [448, 320]);
    assert_eq!(rig.daemons[&2].created.len(), 5);
    wait(&mut rig, 30);
    assert_eq!((mib_on(&rig, &[1, 2]), rig.daemons[&1].created.len()), (after, 12));
}

#[test]
fn nothing_moves_that_nobody_asked_for_or_that_differs_by_less() {
    for (percent, mib) in [(0, 900), (80, 800), (100, 1024)] {
        let mut rig = rig(percent);
        spans(&mut rig, mib / 4, 4 * MIB);
        rig.daemon(2, GIB);
        wait(&mut rig, 20);
        assert_eq!(mib_on(&rig, &[1, 2]), [mib, 0], "{percent}");
    }
}

#[test]
fn what_is_there_for_a_moment_moves_nothing() {
    let mut rig = rig(PERCENT);
    rig.daemon(2, GIB);
    let root = rig.connect(1, 0);
    let drain = |daemon, is_draining| AdminRequest::Drain { daemon, is_draining };
    rig.done(root, ClientRequest::Admin(drain(2, true)));
    for round in 0..5 {
        // Two notes see it, and the next one does not.
        let (conn, _) = rig.session(1000);
        let granted = rig.granted(conn, span(1, 512 * MIB));
        wait(&mut rig, 2);
        rig.done(root, ClientRequest::Admin(drain(2, round % 2 == 1)));
        let first = granted.first;
        let addr = address(first.block);
        rig.done(conn, ClientRequest::Delete(Delete { addr, guid: first.guid }));
        wait(&mut rig, 1);
        rig.done(root, ClientRequest::Admin(drain(2, true)));
    }
    assert_eq!(rig.daemons[&2].created.len(), 0);
}

#[test]
fn what_nobody_uses_moves_first_and_what_pointers_hold_does_not() {
    let mut rig = rig(PERCENT);
    let (owner, _) = rig.session(1000);
    for name in ["used", "held", "free"] {
        rig.done(owner, with_copies(region(name, 200 * MIB, 0o666), 1));
    }
    let (conn, _) = rig.session(1001);
    let mut opened = |number, name| match rig.done(conn, open(number, name, true)) {
        ClientReply::Opened(opened) => opened.first.block,
        other => panic!("{other:?}"),
    };
    let [used, held] = [opened(1, "used"), opened(2, "held")];
    let free = block_id((1..=3).find(|id| ![used.get(), held.get()].contains(id)).unwrap());
    let addr = address(held);
    let map = Map { addr, bytes: 4096, os_address: 0x1000, writable: true };
    rig.done(conn, ClientRequest::Map(map));
    rig.daemon(2, GIB);
    wait(&mut rig, 20);
    // The difference was 60 percent of one, and is 20 after one.
    let all = [used, held, free].map(|id| primary(&mut rig, id));
    assert_eq!(all, [1, 1, 2]);
    rig.daemon(3, GIB);
    wait(&mut rig, 20);
    let all = [used, held, free].map(|id| primary(&mut rig, id));
    assert_eq!(all, [3, 1, 2]);
}

#[test]
fn a_copy_does_not_move_to_where_another_is_and_lacking_ones_are_made_first() {
    let mut rig = rig(PERCENT);
    rig.daemon(2, GIB);
    let (owner, _) = rig.session(1000);
    for name in ["a", "b", "c", "d"] {
        rig.done(owner, with_copies(region(name, 150 * MIB, 0o666), 2));
    }
    rig.daemon(3, 2 * GIB);
    wait(&mut rig, 30);
    for id in 1..=4 {
        let on = copies(&mut rig, block_id(id));
        assert_eq!(on.len(), 2, "{on:?}");
        assert_ne!(on[0].0, on[1].0);
    }
    let on = mib_on(&rig, &[1, 2, 3]);
    assert_eq!((on.iter().sum::<u64>(), on[2]), (1200, 600), "{on:?}");
}

#[test]
fn a_daemon_that_is_drained_neither_gives_nor_gets_for_it() {
    let mut rig = rig(PERCENT);
    rig.daemon(2, GIB);
    let root = rig.connect(1, 0);
    let drain = AdminRequest::Drain { daemon: 2, is_draining: true };
    rig.done(root, ClientRequest::Admin(drain));
    spans(&mut rig, 12, 64 * MIB);
    wait(&mut rig, 20);
    assert_eq!(mib_on(&rig, &[1, 2]), [768, 0]);
}

/// However many of the largest cannot move, those behind them do.
#[test]
fn blocks_that_pointers_hold_do_not_keep_others_from_moving() {
    let mut rig = rig(PERCENT);
    let (conn, held) = spans(&mut rig, 100, 8 * MIB);
    for (id, place) in held.iter().zip(1..) {
        let (addr, os_address) = (address(*id), 0x1000 * place);
        rig.done(conn, ClientRequest::Map(Map { addr, bytes: 4096, os_address, writable: true }));
    }
    let (_other, _) = spans(&mut rig, 40, 4 * MIB);
    rig.daemon(2, GIB);
    wait(&mut rig, 8);
    assert_eq!(mib_on(&rig, &[2]), [160]);
}

/// How full it counts at first is said of its own capacity.
#[test]
fn a_small_daemon_that_is_new_gets_no_more_than_makes_it_even() {
    let mut config = config();
    (config.copies_max, config.syncs_max, config.slow_start_ms) = (3, 4, 60_000);
    (config.rebalance_percent, config.usage_ms) = (10, NOTE_MS);
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    for ticket in 1..=12 {
        rig.granted(conn, span(ticket, 128 * MIB));
    }
    rig.daemon(3, 128 * MIB);
    for _ in 0..100 {
        wait(&mut rig, 1);
        assert_eq!(mib_on(&rig, &[3]), [0], "a block of it all would make it the fullest");
    }
}

/// How many blocks were looked at, and how many moved, where there are so many.
fn looks(count: u64) -> (usize, usize) {
    let mut rig = rig(10);
    // Half of the daemon, be they few or many; of those most are held by a pointer or too large.
    let (conn, blocks) = spans(&mut rig, count, 512 * MIB / count);
    for (id, place) in blocks.iter().zip(0..count).filter(|(_, place)| place % 2 == 0) {
        let addr = address(*id);
        let os_address = 0x1000 * (place + 1);
        rig.done(conn, ClientRequest::Map(Map { addr, bytes: 4096, os_address, writable: true }));
    }
    rig.daemon(2, GIB);
    wait(&mut rig, 8);
    (rig.dispatcher.looked_at(), rig.daemons[&2].created.len())
}

#[test]
fn what_a_move_costs_does_not_grow_with_the_number_of_blocks() {
    let per_move = [64, 256].map(|count| {
        // The rig does what it is told at once: a move begins within the step that ends another.
        let looks = thread::Builder::new().stack_size(1 << 30).spawn(move || looks(count));
        let (looked_at, moved) = looks.unwrap().join().unwrap();
        assert!(moved >= usize::try_from(count / 8).unwrap(), "{moved} of {count}");
        looked_at / moved
    });
    assert!(per_move.iter().all(|looks| (1..=33).contains(looks)), "{per_move:?}");
}

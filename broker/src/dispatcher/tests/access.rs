use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid};
use dmce_abi::wire::admin::{AdminReply, AdminRequest, Health, MappingKey};
use dmce_abi::wire::client::{
    Changed, Changes, ClientReply, ClientRequest, Delete, Fetch, Grow, Map, Unmap,
};

use super::rig::{GIB, MIB, Mood, Rig, block_id, config, heap, region, region_name, span};
use crate::dispatcher::{Action, ClientConn, Event, InspectId, Quota, Started};

fn address(block: BlockId) -> u64 {
    u64::from(block.get()) << 30
}

fn delete(block: BlockId, guid: Guid) -> ClientRequest {
    ClientRequest::Delete(Delete { addr: address(block), guid })
}

fn grow(block: BlockId, committed: u64) -> ClientRequest {
    ClientRequest::Grow(Grow { block, committed })
}

fn fetch(block: BlockId) -> ClientRequest {
    ClientRequest::Fetch(Fetch { block, writable: false })
}

fn map(addr: u64, bytes: u64, os_address: u64) -> ClientRequest {
    ClientRequest::Map(Map { addr, bytes, os_address, writable: true })
}

fn changes(rig: &mut Rig, conn: ClientConn, since: u64) -> Changed {
    match rig.done(conn, ClientRequest::Changes(Changes { since })) {
        ClientReply::Changed(changed) => changed,
        other => panic!("{other:?}"),
    }
}

fn last_inspection(rig: &Rig) -> (InspectId, DaemonId) {
    let mut inspections = rig.actions.iter().rev().filter_map(|action| match action {
        Action::Inspect { inspect, daemon, .. } => Some((*inspect, *daemon)),
        _ => None,
    });
    inspections.next().expect("somebody looked")
}

#[test]
fn a_block_grows_to_its_limit_and_is_paid_for_as_it_grows() {
    let mut config = config();
    config.quota = Quota { bytes: 4 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let (conn, _) = rig.session(1000);
    let block = rig.granted(conn, heap(1, 1)).first.block;
    assert_eq!(rig.done(conn, grow(block, MIB + 1)), ClientReply::Grown { committed: MIB + 4096 });
    assert_eq!(rig.done(conn, grow(block, 5)), ClientReply::Grown { committed: MIB + 4096 });
    assert_eq!(rig.status(conn, grow(block, 5 * MIB)), Status::Quota);
    assert_eq!(rig.status(conn, grow(block, 2 * GIB)), Status::NoSpace);
    // What a daemon refuses costs nothing.
    rig.mood(1, Mood::Refuses);
    assert_eq!(rig.status(conn, grow(block, 2 * MIB)), Status::NoSpace);
    assert_eq!(rig.dispatcher.snapshot().charged.values().next(), Some(&(MIB + 4096, 0)));
    rig.daemon_dies(1);
    assert_eq!(rig.status(conn, grow(block, 2 * MIB)), Status::NoSpace);
}

#[test]
fn another_sessions_block_reads_as_none() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    for request in [
        fetch(first.block),
        grow(first.block, 2 * MIB),
        delete(first.block, first.guid),
        map(address(first.block), 4096, 4096),
        ClientRequest::Damaged(first.block),
    ] {
        assert_eq!(rig.status(other, request), Status::Address);
    }
    assert!(matches!(rig.done(conn, fetch(first.block)), ClientReply::Fetched(_)));
}

#[test]
fn a_delete_may_be_repeated_by_the_session_whose_it_was() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    let first = rig.granted(conn, span(1, 2 * GIB)).first;
    // An old handle or a place inside frees nothing.
    assert_eq!(rig.status(conn, delete(first.block, Guid([1; 16]))), Status::Address);
    let second = first.block.checked_add(1).unwrap();
    assert_eq!(rig.status(conn, delete(second, first.guid)), Status::Address);
    for _ in 0..2 {
        assert_eq!(rig.done(conn, delete(first.block, first.guid)), ClientReply::Done);
    }
    assert_eq!(rig.status(other, delete(first.block, first.guid)), Status::Address);
    assert_eq!(rig.daemons[&1].destroyed.len(), 2);
}

#[test]
fn a_lost_block_is_told_and_fetched_as_lost_and_only_its_object_decides() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    let block = rig.granted(conn, heap(1, MIB)).first.block;
    rig.done(conn, ClientRequest::Damaged(block));
    let (inspect, daemon) = last_inspection(&rig);
    rig.event(Event::Inspected { inspect, daemon, found: vec![(block, Some(MIB))] });
    assert!(changes(&mut rig, conn, 0).blocks.is_empty());

    rig.event(Event::Inspected { inspect, daemon, found: vec![(block, Some(MIB - 4096))] });
    let publish = Action::Publish { session: ready.session, generation: 1 };
    assert!(rig.actions.contains(&publish));
    assert_eq!(changes(&mut rig, conn, 0).blocks, [block]);
    let number = rig.ask_later(conn, fetch(block));
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Fetched(info)) = reply else { panic!("{reply:?}") };
    assert!(info.lost && descriptors.is_empty());
    assert_eq!(rig.status(conn, grow(block, 2 * MIB)), Status::Lost);
    let ClientReply::Admin(AdminReply::Status(status)) =
        rig.done(conn, ClientRequest::Admin(AdminRequest::Status))
    else {
        panic!()
    };
    assert_eq!((status.state, status.committed), (Health::Damaged, 0));
}

#[test]
fn an_inspection_from_before_the_last_change_is_void() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let block = rig.granted(conn, heap(1, MIB)).first.block;
    rig.done(conn, ClientRequest::Damaged(block));
    let (inspect, daemon) = last_inspection(&rig);
    rig.done(conn, grow(block, 2 * MIB));
    rig.event(Event::Inspected { inspect, daemon, found: vec![(block, Some(MIB))] });
    assert!(changes(&mut rig, conn, 0).blocks.is_empty());
    let again = rig.actions.iter().filter(|a| matches!(a, Action::Inspect { .. })).count();
    assert_eq!(again, 2);
}

#[test]
fn mappings_are_found_by_address_and_bounded() {
    let mut config = config();
    config.limits.mappings_max = 2;
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, 3 * GIB);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, span(1, 2 * GIB)).first.block;
    let base = address(first);
    rig.done(conn, map(base + GIB - 4096, 8192, 0x10_0000));
    rig.done(conn, map(base + GIB, 4096, 0x20_0000));
    assert_eq!(rig.status(conn, map(base, 4096, 0x30_0000)), Status::NoSpace);
    let places = |rig: &mut Rig, addr| {
        let request = ClientRequest::Admin(AdminRequest::WhereIs { addr });
        let ClientReply::Admin(AdminReply::WhereIs(found)) = rig.done(conn, request) else {
            panic!()
        };
        found.mappings.iter().map(|mapping| mapping.os_address).collect::<Vec<_>>()
    };
    assert_eq!(places(&mut rig, base + GIB + 5), [0x10_1005, 0x20_0005]);
    assert!(places(&mut rig, base).is_empty());
    let unmap = |os_address| ClientRequest::Unmap(Unmap { os_address });
    assert_eq!(rig.status(conn, unmap(0x10_1000)), Status::NotFound);
    assert_eq!(rig.done(conn, unmap(0x10_0000)), ClientReply::Done);
    // Beyond the span, over the end of the address space, and at nothing.
    assert_eq!(rig.status(conn, map(base + GIB, 3 * GIB, 0x30_0000)), Status::Address);
    assert_eq!(rig.status(conn, map(base, u64::MAX, 0x30_0000)), Status::Invalid);
    assert_eq!(rig.status(conn, map(0, 4096, 0x30_0000)), Status::Address);
    assert_eq!(rig.status(conn, map(1 << 48, 4096, 0x30_0000)), Status::Address);
}

/// What a connection is shown of the table: the sessions with their OS addresses.
fn mapped(rig: &mut Rig, conn: ClientConn, addr: u64, session: u32) -> Vec<(u32, u64)> {
    let (mut found, mut after) = (Vec::new(), MappingKey { session: 0, os_address: 0 });
    loop {
        let request = ClientRequest::Admin(AdminRequest::Mappings { addr, session, after });
        let ClientReply::Admin(AdminReply::Mappings { rows, more }) = rig.done(conn, request)
        else {
            panic!()
        };
        found.extend(rows.iter().map(|row| (row.key.session, row.key.os_address)));
        if !more {
            return found;
        }
        after = rows.last().unwrap().key;
    }
}

#[test]
fn the_table_of_what_is_mapped_is_listed_by_session_and_address_and_to_whom_it_concerns() {
    let mut config = config();
    config.limits.mappings_max = 1000;
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, 3 * GIB);
    let (mine, me) = rig.session(1000);
    let (theirs, them) = rig.session(1001);
    let (root, _) = rig.session(0);
    let own = address(rig.granted(mine, span(1, 2 * GIB)).first.block);
    let other = address(rig.granted(theirs, heap(1, MIB)).first.block);
    let (me, them) = (me.session.get(), them.session.get());
    // More than a page has, from the last to the first.
    for place in (1..=900_u64).rev() {
        rig.done(mine, map(own + place * 4096, 8192, place << 20));
    }
    rig.done(theirs, map(other, 4096, 5 << 20));
    let all: Vec<_> = (1..=900).map(|place| (me, place << 20)).collect();
    assert_eq!(mapped(&mut rig, mine, 0, 0), all);
    assert_eq!(mapped(&mut rig, mine, 0, them), []);
    assert_eq!(mapped(&mut rig, theirs, 0, 0), [(them, 5 << 20)]);
    assert_eq!(mapped(&mut rig, root, 0, 0), [all, vec![(them, 5 << 20)]].concat());
    assert_eq!(mapped(&mut rig, root, 0, them), [(them, 5 << 20)]);
    assert_eq!(mapped(&mut rig, root, 0, 4_000_000), []);
    // Each byte is in two of them.
    let two = [(me, 6 << 20), (me, 7 << 20)];
    assert_eq!(mapped(&mut rig, root, own + 7 * 4096 + 5, 0), two);
    assert_eq!(mapped(&mut rig, mine, own + 7 * 4096 + 5, me), two);
    assert_eq!(mapped(&mut rig, root, own + 7 * 4096 + 5, them), []);
    let after = MappingKey { session: me, os_address: 6 << 20 };
    let of_others = AdminRequest::Mappings { addr: own + 7 * 4096 + 5, session: 0, after };
    let ClientReply::Admin(AdminReply::Mappings { rows, more }) =
        rig.done(root, ClientRequest::Admin(of_others.clone()))
    else {
        panic!()
    };
    assert_eq!((rows.len(), rows[0].key.os_address, more), (1, 7 << 20, false));
    assert_eq!((rows[0].addr, rows[0].bytes), (own + 7 * 4096, 8192));
    assert_eq!(rig.status(theirs, ClientRequest::Admin(of_others)), Status::Address);
}

#[test]
fn a_user_is_shown_what_is_his_and_root_everything() {
    let mut rig = Rig::new(1);
    let (mine, _) = rig.session(1000);
    let (theirs, _) = rig.session(1001);
    let (root, _) = rig.session(0);
    rig.granted(mine, heap(1, MIB));
    rig.granted(theirs, span(1, 2 * GIB));
    rig.done(theirs, region("hidden", 10, 0o600));
    rig.done(theirs, region("shown", 10, 0o604));
    let seen = |rig: &mut Rig, conn| {
        let mut ask = |request| match rig.done(conn, ClientRequest::Admin(request)) {
            ClientReply::Admin(AdminReply::Blocks { rows, .. }) => rows.len(),
            ClientReply::Admin(AdminReply::Sessions { rows, .. }) => rows.len(),
            ClientReply::Admin(AdminReply::Regions { rows, .. }) => rows.len(),
            other => panic!("{other:?}"),
        };
        let none = dmce_abi::wire::client::RegionName { volume: String::new(), ..region_name("") };
        (
            ask(AdminRequest::Blocks { after: 0 }),
            ask(AdminRequest::Sessions { after: 0 }),
            ask(AdminRequest::Regions { after: none }),
        )
    };
    assert_eq!(seen(&mut rig, mine), (1, 1, 1));
    assert_eq!(seen(&mut rig, theirs), (4, 1, 2));
    assert_eq!(seen(&mut rig, root), (5, 3, 2));
    let request = ClientRequest::Admin(AdminRequest::WhereIs { addr: address(block_id(2)) });
    assert_eq!(rig.status(mine, request), Status::Address);
}

#[test]
fn more_changes_than_are_remembered_mean_everything() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    assert_eq!(changes(&mut rig, conn, 0), Changed { upto: 0, blocks: vec![], all: false });
    assert!(changes(&mut rig, conn, 5).all);
}

//! Copies that daemons report to a broker that comes back, or bring back themselves.

use dmce_abi::block::{Half, Membership, Owner, Ticket};
use dmce_abi::wire::admin::{AdminReply, AdminRequest, BlockRow, BlockState, CopyState};
use dmce_abi::wire::client::{Changes, ClientReply, ClientRequest, RegionCreate};
use dmce_abi::wire::daemon::{DaemonMessage, HeldBlock};

use super::rig::{
    GIB, MIB, Rig, block_id, close, config, daemon_id, guid, open, region, session_id,
};
use crate::dispatcher::{
    Action, ClientConn, Event, FoundContent, FoundDaemon, FoundTable, Grant, InspectId, Rights,
    Started,
};

/// What the copy of a daemon was made as.
fn half(daemon: u32) -> Half {
    Half::of(daemon as usize - 1).unwrap()
}

/// Block 9, a region's, on a daemon; the copies are on `daemons`, the primary's first.
pub fn held(daemon: u32, daemons: &[u32], epoch: u64, committed: u64) -> HeldBlock {
    let mut held = super::restart::held_region(9, 0, 1, 5);
    let daemons: Vec<_> = daemons.iter().map(|id| daemon_id(*id)).collect();
    held.description.membership = Membership::of((daemon_id(daemon), half(daemon)), &daemons, None);
    held.description.epoch = epoch;
    if let Owner::Region(region) = &mut held.description.owner {
        (region.copies, region.region_size) = (2, MIB);
    }
    HeldBlock { committed, ..held }
}

/// A broker that finds what daemons left that are not there, with a lock table.
fn found(held: Vec<(u32, HeldBlock)>) -> Rig {
    let tables = held.iter().map(|(_, held)| table_of(held)).collect();
    found_tables(held, tables)
}

fn table_of(held: &HeldBlock) -> FoundTable {
    let (block, guid) = (held.description.block, Some(held.description.guid));
    FoundTable { block, guid, bytes: 2 * MIB }
}

fn found_tables(held: Vec<(u32, HeldBlock)>, tables: Vec<FoundTable>) -> Rig {
    let mut config = config();
    config.copies_max = 3;
    let daemons = held.into_iter().map(|(daemon, held)| FoundDaemon {
        daemon: daemon_id(daemon),
        blocks: vec![held.description.block],
        damaged: Vec::new(),
        content: FoundContent::Read(vec![held]),
    });
    let daemons = daemons.collect();
    Rig::started(config, Started { daemons, tables, ..Started::default() })
}

fn row(rig: &mut Rig) -> BlockRow {
    let root = rig.connect(1, 0);
    match rig.done(root, ClientRequest::Admin(AdminRequest::Blocks { after: 0 })) {
        ClientReply::Admin(AdminReply::Blocks { rows, .. }) => rows[0].clone(),
        other => panic!("{other:?}"),
    }
}

fn copies(row: &BlockRow) -> Vec<(u32, CopyState)> {
    row.copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

fn raises(rig: &Rig) -> usize {
    rig.actions.iter().filter(|action| matches!(action, Action::RaiseEpoch { .. })).count()
}

#[test]
fn copies_that_name_each_other_are_one_block() {
    for turned in [false, true] {
        let mut all = vec![(1, held(1, &[2, 1], 7, MIB)), (2, held(2, &[2, 1], 7, MIB))];
        if turned {
            all.reverse();
        }
        let mut rig = found(all);
        let row = row(&mut rig);
        assert_eq!((row.state, row.epoch, raises(&rig)), (BlockState::Ok, 7, 0));
        assert_eq!(copies(&row), [(2, CopyState::Good), (1, CopyState::Good)]);
    }
}

#[test]
fn a_named_copy_that_nobody_reports_is_lost_before_the_block_is_served() {
    let mut rig = found(vec![(1, held(1, &[2, 1], 7, MIB))]);
    assert_eq!(raises(&rig), 1);
    let now = row(&mut rig);
    assert_eq!((now.state, copies(&now)), (BlockState::Degraded, vec![(1, CopyState::Good)]));
    assert!(now.epoch > 7);
    // What comes back is not what the block is by now.
    rig.daemon_with(2, GIB, vec![held(2, &[2, 1], 7, MIB)]);
    let states = [(1, CopyState::Good), (2, CopyState::Stale)];
    assert_eq!(copies(&row(&mut rig)), states);
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(2)].0, MIB);
    rig.daemon(2, GIB);
    assert_eq!(copies(&row(&mut rig)), [(1, CopyState::Good), (2, CopyState::Lost)]);
}

#[test]
fn a_lost_copy_is_shown_as_the_half_that_no_other_is() {
    for (there, gone) in [(1, 2), (2, 1)] {
        let held = held(there, &[1, 2], 7, MIB);
        let tables = vec![table_of(&held)];
        let found = |daemon, held: Vec<HeldBlock>| FoundDaemon {
            daemon: daemon_id(daemon),
            blocks: held.iter().map(|held| held.description.block).collect(),
            damaged: Vec::new(),
            content: FoundContent::Read(held),
        };
        let daemons = vec![found(there, vec![held]), found(gone, Vec::new())];
        let started = Started { daemons, tables, ..Started::default() };
        let mut rig = Rig::started(config(), started);
        let copies = row(&mut rig).copies.into_iter().map(|copy| (copy.daemon, copy.half));
        assert_eq!(copies.collect::<Vec<_>>(), [(there, half(there)), (gone, half(gone))]);
    }
}

#[test]
fn a_copy_that_the_highest_epoch_does_not_name_is_stale() {
    let mut rig = found(vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[2], 8, MIB))]);
    assert_eq!(raises(&rig), 0);
    let row = row(&mut rig);
    assert_eq!(copies(&row), [(2, CopyState::Good), (1, CopyState::Stale)]);
    assert_eq!((row.state, row.epoch), (BlockState::Degraded, 8));
}

/// The good one was the only one, and its data are gone: the other lacks what was written since.
#[test]
fn a_header_without_data_keeps_an_older_copy_from_being_good() {
    let older = || (1, held(1, &[1, 2], 7, MIB));
    for turned in [false, true] {
        let mut all = vec![older(), (2, held(2, &[2], 8, 0))];
        if turned {
            all.reverse();
        }
        let mut rig = found(all);
        let lost = [(2, CopyState::Lost), (1, CopyState::Stale)];
        assert_eq!((row(&mut rig).state, copies(&row(&mut rig))), (BlockState::Lost, lost.into()));
        // As their daemons say when they are back.
        rig.daemon_with(1, GIB, vec![older().1]);
        rig.daemon_with(2, GIB, vec![held(2, &[2], 8, 0)]);
        assert_eq!((row(&mut rig).state, copies(&row(&mut rig))), (BlockState::Lost, lost.into()));
    }
    let mut rig = found(vec![(1, held(1, &[1], 8, MIB)), (2, held(2, &[1, 2], 7, 0))]);
    let now = [(1, CopyState::Good), (2, CopyState::Lost)];
    for _ in 0..2 {
        assert_eq!(copies(&row(&mut rig)), now);
        rig.daemon_with(2, GIB, vec![held(2, &[1, 2], 7, 0)]);
    }
}

/// The broker died while it raised the epoch of both.
#[test]
fn a_named_copy_whose_header_says_less_is_good_and_its_header_is_written() {
    let mut rig = found(vec![(1, held(1, &[3, 1], 7, MIB)), (2, held(2, &[2, 1], 8, MIB))]);
    assert_eq!(raises(&rig), 1);
    let row = row(&mut rig);
    assert_eq!(copies(&row), [(2, CopyState::Good), (1, CopyState::Good)]);
    assert_eq!(row.state, BlockState::Ok);
    assert!(row.epoch > 8);
}

#[test]
fn a_copy_that_is_shorter_than_the_region_has_lost_something() {
    let mut rig = found(vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[1, 2], 7, MIB / 2))]);
    assert_eq!(copies(&row(&mut rig)), [(1, CopyState::Good), (2, CopyState::Lost)]);
    assert_eq!(row(&mut rig).committed, MIB);
    // One that is longer was grown for nobody.
    let mut rig = found(vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[1, 2], 7, 2 * MIB))]);
    assert_eq!(copies(&row(&mut rig)), [(1, CopyState::Good), (2, CopyState::Good)]);
    assert_eq!((row(&mut rig).committed, raises(&rig)), (MIB, 0));
}

/// Nothing says how long a block is that grows, but it has bytes: a copy that was emptied is not to
/// cost what the others have.
#[test]
fn of_a_block_that_grows_a_copy_without_a_byte_is_lost_and_none_for_its_length() {
    for (lengths, committed, good) in [
        ([MIB, 0], MIB, &[1][..]),
        ([0, MIB], MIB, &[2]),
        ([2 * MIB, MIB], MIB, &[1, 2]),
        ([MIB, 2 * MIB], MIB, &[1, 2]),
        ([MIB, MIB], MIB, &[1, 2]),
    ] {
        let of = |daemon: u32| {
            let mut held = super::restart::held(9, 0, 1, 1);
            let daemons = [daemon_id(1), daemon_id(2)];
            let copy = (daemon_id(daemon), half(daemon));
            held.description.membership = Membership::of(copy, &daemons, None);
            if let Owner::Session { copies, .. } = &mut held.description.owner {
                *copies = 2;
            }
            HeldBlock { committed: lengths[daemon as usize - 1], ..held }
        };
        let daemons = [1, 2].map(|daemon| super::restart::expected(daemon, &[9])).to_vec();
        let sessions = vec![super::restart::believed(0, Vec::new())];
        let tables = vec![table_of(&of(1))];
        let mut rig =
            Rig::started(config(), Started { sessions, daemons, tables, ..Started::default() });
        for daemon in [1, 2] {
            rig.daemon_with(daemon, GIB, vec![of(daemon)]);
        }
        let row = row(&mut rig);
        assert_eq!(row.committed, committed);
        let found = copies(&row).into_iter().filter(|(_, state)| *state == CopyState::Good);
        assert!(found.map(|(daemon, _)| daemon).eq(good.iter().copied()), "{row:?}");
    }
}

/// A daemon had a copy, lost it and got another: the first is in the place of that.
#[test]
fn an_earlier_object_in_the_place_of_a_copy_is_none() {
    let since = |since: u64| {
        let mut held = held(2, &[1, 2], 7, MIB);
        held.description.membership.since = since;
        held
    };
    let mut rig = found(vec![(1, held(1, &[1, 2], 7, MIB)), (2, since(7))]);
    rig.daemon_with(1, GIB, vec![held(1, &[1, 2], 7, MIB)]);
    rig.daemon_with(2, GIB, vec![since(7)]);
    assert_eq!(copies(&row(&mut rig)), [(1, CopyState::Good), (2, CopyState::Good)]);
    rig.daemon_dies(2);
    rig.daemon_with(2, GIB, vec![since(3)]);
    let (left, gone) = ((1, CopyState::Good), (2, CopyState::Good));
    let found = copies(&row(&mut rig));
    assert!(found.contains(&left) && !found.contains(&gone), "{found:?}");
}

#[test]
fn a_copy_that_comes_back_with_an_older_header_is_stale() {
    let mut rig = found(vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[1, 2], 7, MIB))]);
    rig.daemon(1, GIB);
    let epoch = row(&mut rig).epoch;
    rig.daemon_with(2, GIB, vec![held(2, &[2], epoch, MIB)]);
    assert_eq!(copies(&row(&mut rig)), [(2, CopyState::Good), (1, CopyState::Lost)]);
    rig.daemon_with(1, GIB, vec![held(1, &[1, 2], 7, MIB)]);
    assert_eq!(copies(&row(&mut rig)), [(2, CopyState::Good), (1, CopyState::Stale)]);
    // What was read before the header was written says nothing of the copy.
    rig.daemon_with(2, GIB, vec![held(2, &[1, 2], 7, MIB)]);
    assert_eq!(copies(&row(&mut rig)), [(2, CopyState::Good), (1, CopyState::Stale)]);
}

#[test]
fn both_copies_of_a_session_that_is_no_more_are_destroyed() {
    let of = |daemon| {
        let mut held = super::restart::held(9, 0, 1, 1);
        let daemons = [daemon_id(1), daemon_id(2)];
        held.description.membership =
            Membership::of((daemon_id(daemon), half(daemon)), &daemons, None);
        held
    };
    let mut rig = found(vec![(1, of(1)), (2, of(2))]);
    assert!(!rig.dispatcher.snapshot().sessions.contains_key(&session_id(4)));
    for daemon in [1, 2] {
        rig.daemon_with(daemon, GIB, vec![of(daemon)]);
        assert_eq!(rig.daemons[&daemon].destroyed, [block_id(9)]);
    }
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

#[test]
fn a_daemon_that_names_itself_as_its_peer_is_not_believed() {
    let mut rig = found(Vec::new());
    rig.register(1, GIB);
    let mut bad = held(1, &[1, 2], 7, MIB);
    bad.description.membership.peers = vec![daemon_id(1)];
    rig.tell(1, 0, DaemonMessage::Holds { blocks: vec![bad], damaged: vec![], last: true });
    assert!(matches!(
        rig.actions[..],
        [.., Action::CloseDaemon { .. }, _] | [.., Action::CloseDaemon { .. }, _, _]
    ));
}

/// What is left of a session that has the region of block 9 open, and the daemons' copies of it.
fn found_open(held: Vec<(u32, HeldBlock)>) -> Rig {
    let grant = Grant { place: 0, block: block_id(9), rights: Rights::ALL };
    let daemons = held.iter().map(|(daemon, _)| super::restart::expected(*daemon, &[9]));
    let daemons = daemons.collect();
    let sessions = vec![super::restart::believed(0, vec![grant])];
    let tables = vec![table_of(&held[0].1)];
    let mut rig =
        Rig::started(config(), Started { sessions, daemons, tables, ..Started::default() });
    for (daemon, held) in held {
        rig.daemon_with(daemon, GIB, vec![held]);
    }
    rig
}

/// The broker before may have written the headers, and died before it had told anybody: the session
/// could use copies that are stale by now for good.
#[test]
fn who_may_use_a_block_of_several_copies_looks_at_it_anew_under_the_next_broker() {
    for (held, is_told) in [
        (vec![(2, held(2, &[2], 8, MIB))], true),
        (vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[1, 2], 7, MIB))], true),
        (vec![(1, super::restart::held_region(9, 0, 1, 5))], false),
    ] {
        let mut rig = found_open(held);
        assert_eq!(raises(&rig), 0);
        let publish = Action::Publish { session: session_id(4), generation: 11 };
        assert_eq!(rig.actions.contains(&publish), is_told);
        let conn = super::restart::attach(&mut rig);
        let since = ClientRequest::Changes(Changes { since: 10 });
        let ClientReply::Changed(changed) = rig.done(conn, since) else { panic!() };
        assert_eq!((changed.all, changed.upto), (is_told, 10 + u64::from(is_told)));
    }
}

/// Session 4 has had no answer to its request for the region of block 9, of which there are these
/// copies.
fn found_unanswered(held: Vec<(u32, HeldBlock)>) -> (Rig, ClientConn) {
    let of_session = |(daemon, mut held): (u32, HeldBlock)| {
        if let Owner::Region(region) = &mut held.description.owner {
            region.created_by = Ticket { session: guid(4), number: 5 };
        }
        (daemon, held)
    };
    let held: Vec<_> = held.into_iter().map(of_session).collect();
    let sessions = vec![super::restart::believed(0, Vec::new())];
    let daemons = [1, 2].map(|daemon| super::restart::expected(daemon, &[9])).to_vec();
    let tables = vec![table_of(&held[0].1)];
    let mut config = config();
    config.copies_max = 3;
    let mut rig = Rig::started(config, Started { sessions, daemons, tables, ..Started::default() });
    for daemon in [1, 2] {
        let of = held.iter().filter(|(of, _)| *of == daemon).map(|(_, held)| held.clone());
        rig.daemon_with(daemon, GIB, of.collect());
    }
    let conn = super::restart::attach(&mut rig);
    (rig, conn)
}

/// Repeats the request. Whether the region is the one that was found.
fn is_the_same_again(rig: &mut Rig, conn: ClientConn) -> bool {
    let ClientRequest::RegionCreate(create) = region("r", MIB, 0) else { panic!() };
    let create = RegionCreate { ticket: 5, copies: 2, ..create };
    assert_eq!(rig.done(conn, ClientRequest::RegionCreate(create)), ClientReply::Done);
    rig.key(conn, "r").guid == held(1, &[1], 7, MIB).description.guid
}

#[test]
fn a_region_that_was_never_whole_is_made_anew_for_who_repeats_its_ticket() {
    let (mut rig, conn) = found_unanswered(vec![(2, held(2, &[1, 2], 7, MIB))]);
    assert!(!is_the_same_again(&mut rig, conn));
    assert_eq!(rig.daemons[&2].destroyed, [block_id(9)]);
}

/// It was whole once, or somebody has had it: there may be what others wrote.
#[test]
fn a_region_that_others_may_have_written_stands_for_who_repeats_its_ticket() {
    let both = || vec![(1, held(1, &[1, 2], 7, MIB)), (2, held(2, &[1, 2], 7, MIB))];
    let first = || vec![(1, held(1, &[1, 2], 7, MIB))];
    let last = || vec![(2, held(2, &[1, 2], 7, MIB))];
    for (held, is_opened, loses) in [
        (both(), true, true),
        (both(), false, true),
        (first(), false, false),
        (last(), true, false),
    ] {
        let (mut rig, conn) = found_unanswered(held);
        if is_opened {
            let (other, _) = rig.session(1000);
            rig.done(other, open(1, "r", true));
            rig.done(other, close(1));
        }
        if loses {
            let (inspect, found) = (InspectId(u64::MAX), vec![(block_id(9), None)]);
            rig.event(Event::Inspected { inspect, daemon: daemon_id(2), found });
        }
        assert!(is_the_same_again(&mut rig, conn));
        assert_eq!(row(&mut rig).state, BlockState::Degraded);
    }
}

/// Lock tables that were found, and what was done about tables.
fn found_with(tables: Vec<FoundTable>) -> (Rig, Vec<String>) {
    let mut all = Vec::new();
    for daemon in [1, 2] {
        all.push((daemon, held(daemon, &[1, 2], 7, MIB)));
    }
    let rig = found_tables(all, tables);
    let done = rig.actions.iter().filter_map(|action| match action {
        Action::MakeLocks { block, .. } => Some(format!("make {block}")),
        Action::RemoveLocks { block } => Some(format!("remove {block}")),
        _ => None,
    });
    let done = done.collect();
    (rig, done)
}

#[test]
fn a_lock_table_that_is_there_is_used_and_that_of_no_block_is_removed() {
    let guid = held(1, &[1, 2], 7, MIB).description.guid;
    let own = FoundTable { block: block_id(9), guid: Some(guid), bytes: MIB };
    let stray = FoundTable { block: block_id(30), ..own };
    let (mut rig, done) = found_with(vec![own, stray]);
    assert_eq!(done, ["remove 30"]);
    assert_eq!((row(&mut rig).epoch, raises(&rig)), (7, 0));
    let locks = rig.dispatcher.snapshot().locks;
    assert!(locks.into_iter().eq([(block_id(9), true)]));
}

#[test]
fn a_lock_table_of_a_name_stays_until_its_daemon_has_said_what_it_has() {
    let removed = |rig: &Rig| {
        let is_removal = |action: &&Action| matches!(action, Action::RemoveLocks { .. });
        rig.actions.iter().filter(is_removal).count()
    };
    let of = |daemon, content| FoundDaemon {
        daemon: daemon_id(daemon),
        blocks: vec![block_id(9)],
        damaged: Vec::new(),
        content,
    };
    let table = FoundTable { block: block_id(9), guid: None, bytes: MIB };
    for is_damaged in [false, true] {
        let daemons = vec![of(1, FoundContent::Read(Vec::new())), of(2, FoundContent::Expected)];
        let started = Started { daemons, tables: vec![table], ..Started::default() };
        let mut rig = Rig::started(config(), started);
        rig.daemon(2, GIB);
        assert_eq!(removed(&rig), 0, "one has yet to say it");
        let damaged = is_damaged.then_some(block_id(9)).into_iter().collect();
        rig.register(1, GIB);
        rig.tell(1, 0, DaemonMessage::Holds { blocks: vec![], damaged, last: false });
        rig.tell(1, 0, DaemonMessage::Holds { blocks: vec![], damaged: vec![], last: true });
        assert_eq!(removed(&rig), usize::from(!is_damaged));
        rig.daemon(1, GIB);
        assert_eq!(removed(&rig), 1, "it has it no more");
    }
}

#[test]
fn a_lock_table_that_a_client_has_lengthened_costs_its_user_no_more() {
    let guid = held(1, &[1, 2], 7, MIB).description.guid;
    for bytes in [MIB + 4096, u64::MAX] {
        let (rig, done) =
            found_with(vec![FoundTable { block: block_id(9), guid: Some(guid), bytes }]);
        assert_eq!(done, [""; 0]);
        let block = rig.dispatcher.blocks.get(block_id(9)).unwrap();
        assert_eq!(block.locks.as_ref().unwrap().bytes(), MIB);
    }
}

#[test]
fn a_lock_table_that_is_not_there_or_short_or_anothers_is_made_anew_under_the_next_epoch() {
    let guid = held(1, &[1, 2], 7, MIB).description.guid;
    let own = FoundTable { block: block_id(9), guid: Some(guid), bytes: MIB };
    for tables in [
        Vec::new(),
        vec![FoundTable { bytes: MIB - 4096, ..own }],
        vec![FoundTable { guid: None, ..own }],
        vec![FoundTable { guid: Some(dmce_abi::block::Guid([0xee; 16])), ..own }],
    ] {
        let (mut rig, done) = found_with(tables);
        assert_eq!(done, ["make 9"]);
        let row = row(&mut rig);
        assert_eq!((row.state, raises(&rig)), (BlockState::Ok, 1));
        assert!(row.epoch > 7);
        assert_eq!(copies(&row), [(1, CopyState::Good), (2, CopyState::Good)]);
    }
}

//! Which copies a block has: how they are made and destroyed, grow, and are lost.

use dmce_abi::Status;
use dmce_abi::addr::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, Role, SessionId};
use dmce_abi::wire::admin::{AdminReply, AdminRequest, BlockRow, BlockState, CopyState, Health};
use dmce_abi::wire::client::{
    Changes, ClientReply, ClientRequest, Delete, Fetch, Granted, Grow, SessionEvent,
};

use super::copies::{rig, with_copies};
use super::rig::{GIB, MIB, Mood, Rig, daemon_id, heap, open, region, session_id, span};
use crate::dispatcher::{Action, ClientConn, Descriptor, Event, InspectId};

/// What daemons were asked to make, in the order of asking.
fn creates(rig: &Rig) -> Vec<(BlockId, Role)> {
    let asked = rig.actions.iter().filter_map(|action| match action {
        Action::ToDaemon {
            request: dmce_abi::wire::daemon::DaemonRequest::Create { description, .. },
            ..
        } => Some((description.block, description.membership.role)),
        _ => None,
    });
    asked.collect()
}

/// The headers that were to be written anew last.
fn raised(rig: &Rig) -> Vec<(u32, BlockDescription)> {
    let raises = rig.actions.iter().filter_map(|action| match action {
        Action::RaiseEpoch { headers, .. } => Some(headers),
        _ => None,
    });
    let last = raises.into_iter().next_back().into_iter().flatten();
    last.map(|(daemon, description)| (daemon.get(), description.clone())).collect()
}

/// The object of a block is gone from a daemon, and that is seen.
fn take(rig: &mut Rig, daemon: u32, block: BlockId) {
    let (inspect, found) = (InspectId(u64::MAX), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(daemon), found });
}

fn row(rig: &mut Rig, block: BlockId) -> BlockRow {
    let root = rig.connect(1, 0);
    match rig.done(root, ClientRequest::Admin(AdminRequest::Blocks { after: block.get() - 1 })) {
        ClientReply::Admin(AdminReply::Blocks { rows, .. }) => rows[0].clone(),
        other => panic!("{other:?}"),
    }
}

fn copies(row: &BlockRow) -> Vec<(u32, CopyState)> {
    row.copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

fn delete(granted: &Granted) -> ClientRequest {
    let addr = u64::from(granted.first.block.get()) << AddrLayout::IN_SERVER.cell_bits();
    ClientRequest::Delete(Delete { addr, guid: granted.first.guid })
}

/// What travels with the description of a block to who may write it: the good copies, and the lock
/// table.
fn travels(daemons: &[u32], block: BlockId, session: SessionId) -> Vec<Descriptor> {
    let data = daemons.iter().map(|&daemon| {
        let daemon = daemon_id(daemon);
        Descriptor::Block { daemon, block, writable: true }
    });
    data.chain([Descriptor::Locks { block, writable: true, session }]).collect()
}

/// A client with a block that has two copies, the primary on daemon 1.
fn two() -> (Rig, ClientConn, Granted) {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 2));
    (rig, conn, granted)
}

#[test]
fn each_copy_is_told_what_it_is_and_the_primary_of_the_first_block_is_made_last() {
    let mut rig = rig(3);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(span(1, GIB + 5000), 2));
    let first = granted.first.block;
    let second = first.checked_add(1).unwrap();
    let made = creates(&rig);
    assert!(made[..2].iter().all(|(block, _)| *block == second), "{made:?}");
    assert_eq!(made[2..], [(first, Role::Copy), (first, Role::Primary)]);
    for (id, daemon) in &rig.daemons {
        for description in &daemon.created {
            let daemons = description.membership.daemons(daemon_id(*id));
            assert_eq!(daemons.len(), 2);
            assert_eq!(description.owner.copies(), 2);
        }
    }
}

#[test]
fn headers_name_the_copy_that_was_made_elsewhere_before_anybody_has_the_block() {
    let mut rig = rig(3);
    rig.rewrites = false;
    rig.mood(1, Mood::Waits);
    let (conn, _) = rig.session(1000);
    let number = rig.ask_later(conn, with_copies(heap(1, MIB), 2));
    // The copy is made, and then the primary's daemon has no room.
    let (asked, _) = rig.daemons.get_mut(&1).unwrap().asked.remove(0);
    let refusal = dmce_abi::wire::Refusal::new(Status::NoSpace, "full");
    rig.tell(1, asked.0, dmce_abi::wire::daemon::DaemonMessage::Reply(Err(refusal)));
    assert!(rig.answer(conn, number).is_none());
    let headers = raised(&rig);
    assert_eq!(headers.iter().map(|(daemon, _)| *daemon).collect::<Vec<_>>(), [3, 2]);
    let made = rig.daemons[&3].created[0].epoch;
    assert!(headers.iter().all(|(_, description)| description.epoch > made));
    let raise = rig.actions.iter().find_map(|action| match action {
        Action::RaiseEpoch { raise, block, headers, .. } => Some((*raise, *block, headers.clone())),
        _ => None,
    });
    let (raise, block, headers) = raise.unwrap();
    let written = |(daemon, _)| (daemon, crate::dispatcher::Rewritten::Written);
    let headers = headers.into_iter().map(written).collect();
    rig.event(Event::EpochRaised { raise, block, headers });
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    assert!(reply.is_ok());
    assert_eq!(descriptors, travels(&[3, 2], block, session_id(1)));
}

#[test]
fn every_good_copy_travels_and_a_reader_gets_nothing_to_write() {
    let mut rig = rig(3);
    let (conn, _) = rig.session(1000);
    let number = rig.ask_later(conn, with_copies(heap(1, MIB), 3));
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    assert!(granted.first.daemons().eq([1, 2, 3].map(daemon_id)) && granted.first.has_locks);
    assert_eq!(descriptors, travels(&[1, 2, 3], granted.first.block, session_id(1)));
    // One copy is what it always was.
    let number = rig.ask_later(conn, with_copies(heap(2, MIB), 1));
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    assert_eq!((granted.first.good().count(), granted.first.has_locks), (1, false));
    assert_eq!(descriptors.len(), 1);

    rig.done(conn, with_copies(region("r", MIB, 0o600), 2));
    let number = rig.ask_later(conn, open(1, "r", false));
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Opened(opened)) = reply else { panic!("{reply:?}") };
    assert_eq!(descriptors.len(), opened.first.descriptors());
    let writes = |descriptor: &Descriptor| match descriptor {
        Descriptor::Block { writable, .. } | Descriptor::Locks { writable, .. } => *writable,
        _ => true,
    };
    assert!(!descriptors.iter().any(writes), "{descriptors:?}");
}

#[test]
fn a_block_is_as_large_as_its_smallest_copy() {
    let mut rig = rig(3);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 3));
    let block = granted.first.block;
    let grow = |committed| ClientRequest::Grow(Grow { block, committed });
    let charged = |rig: &Rig| {
        let charged = rig.dispatcher.snapshot().charged;
        [1, 2, 3].map(|daemon| charged[&daemon_id(daemon)].0)
    };
    assert_eq!(rig.done(conn, grow(2 * MIB)), ClientReply::Grown { committed: 2 * MIB });
    rig.mood(3, Mood::Refuses);
    assert_eq!(rig.status(conn, grow(4 * MIB)), Status::NoSpace);
    // The primary was not asked: it has what was answered for.
    assert_eq!(charged(&rig), [2 * MIB, 4 * MIB, 2 * MIB]);
    let fetch = ClientRequest::Fetch(Fetch { block, writable: true });
    let ClientReply::Fetched(info) = rig.done(conn, fetch) else { panic!("not fetched") };
    assert_eq!(info.committed, 2 * MIB);
    rig.mood(3, Mood::Obeys);
    assert_eq!(rig.done(conn, grow(3 * MIB)), ClientReply::Grown { committed: 3 * MIB });
    assert_eq!(charged(&rig), [3 * MIB, 4 * MIB, 3 * MIB]);
}

#[test]
fn a_grow_that_a_daemon_has_no_room_for_is_charged_nowhere() {
    let mut rig = rig(1);
    rig.daemon(2, 2 * MIB);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 2));
    let (other, _) = rig.session(1001);
    for ticket in 1..=2 {
        rig.granted(other, heap(ticket, MIB / 2));
    }
    let grow = Grow { block: granted.first.block, committed: 2 * MIB };
    assert_eq!(rig.status(conn, ClientRequest::Grow(grow)), Status::NoSpace);
    let charged = rig.dispatcher.snapshot().charged;
    assert_eq!(charged[&daemon_id(1)].0 + charged[&daemon_id(2)].0, 3 * MIB);
}

#[test]
fn a_span_goes_first_block_first_and_its_ids_come_back_with_the_last_copy() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(span(1, GIB + 4096), 2));
    let first = granted.first.block;
    rig.mood(1, Mood::Waits);
    rig.mood(2, Mood::Waits);
    rig.done(conn, delete(&granted));
    assert_eq!((rig.daemons[&1].asked.len(), rig.daemons[&2].asked.len()), (1, 1));
    rig.obey(1);
    assert_eq!((rig.daemons[&1].asked.len(), rig.daemons[&2].asked.len()), (0, 1));
    rig.obey(2);
    assert_eq!((rig.daemons[&1].destroyed[0], rig.daemons[&2].destroyed[0]), (first, first));
    assert_eq!((rig.daemons[&1].asked.len(), rig.daemons[&2].asked.len()), (1, 1));
    rig.obey(1);
    assert_eq!(rig.dispatcher.snapshot().passing, 1);
    rig.obey(2);
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

/// Who is answered first could write where only a copy reads that another session still has; and so
/// could a daemon that finds the new headers.
#[test]
fn all_who_may_use_a_block_are_told_that_it_changes_before_headers_say_how() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.done(conn, ClientRequest::Events);
    rig.rewrites = false;
    rig.actions.clear();
    take(&mut rig, 1, block);
    let fetch = ClientRequest::Fetch(Fetch { block, writable: true });
    let number = rig.ask_later(conn, fetch);
    let raise = rig.actions.iter().rev().find_map(|action| match action {
        Action::RaiseEpoch { raise, .. } => Some(*raise),
        _ => None,
    });
    let headers = vec![(daemon_id(2), crate::dispatcher::Rewritten::Written)];
    rig.event(Event::EpochRaised { raise: raise.unwrap(), block, headers });
    assert!(rig.answer(conn, number).is_some());
    let done = rig.actions.iter().filter_map(|action| match action {
        Action::Publish { session, .. } => Some(("publish", *session)),
        Action::RaiseEpoch { .. } => Some(("raise", session_id(1))),
        Action::Reply { .. } => Some(("answer", session_id(1))),
        _ => None,
    });
    let done: Vec<_> = done.collect();
    assert_eq!(done, ["publish", "raise", "answer"].map(|what| (what, session_id(1))));
}

#[test]
fn a_block_goes_on_with_the_copy_that_is_left_when_its_header_says_so() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.done(conn, ClientRequest::Events);
    assert_eq!(copies(&row(&mut rig, block)).len(), 2);
    rig.rewrites = false;
    take(&mut rig, 1, block);
    // Nobody is told more than that it changes until the header is written.
    let fetch = ClientRequest::Fetch(Fetch { block, writable: true });
    let number = rig.ask_later(conn, fetch);
    assert!(rig.answer(conn, number).is_none());
    let published = |rig: &Rig| {
        rig.actions.iter().filter(|action| matches!(action, Action::Publish { .. })).count()
    };
    assert_eq!(published(&rig), 1);
    let [(2, header)] = &raised(&rig)[..] else { panic!("{:?}", raised(&rig)) };
    assert!(header.epoch > granted.first.epoch);
    assert_eq!((header.membership.role, header.membership.peers.len()), (Role::Primary, 0));
    let raise = rig.actions.iter().rev().find_map(|action| match action {
        Action::RaiseEpoch { raise, .. } => Some(*raise),
        _ => None,
    });
    let headers = vec![(daemon_id(2), crate::dispatcher::Rewritten::Written)];
    rig.event(Event::EpochRaised { raise: raise.unwrap(), block, headers });
    assert_eq!(published(&rig), 1);
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Fetched(info)) = reply else { panic!("{reply:?}") };
    assert!(!info.lost && info.epoch > granted.first.epoch);
    assert!(info.daemons().eq([daemon_id(2)]) && info.has_locks);
    assert_eq!(descriptors, travels(&[2], block, session_id(1)));
    let changed = rig.done(conn, ClientRequest::Changes(Changes { since: 0 }));
    assert!(matches!(changed, ClientReply::Changed(changed) if changed.blocks == [block]));
    let addr = u64::from(block.get()) << AddrLayout::IN_SERVER.cell_bits();
    let ClientReply::Events(events) = rig.done(conn, ClientRequest::Events) else { panic!() };
    assert_eq!(events, [SessionEvent::CopyLost { addr, bytes: MIB }]);
    let row = row(&mut rig, block);
    assert_eq!(row.state, BlockState::Degraded);
    assert_eq!(copies(&row), [(2, CopyState::Good), (1, CopyState::Lost)]);
    let root = rig.connect(1, 0);
    let status = rig.done(root, ClientRequest::Admin(AdminRequest::Status));
    let ClientReply::Admin(AdminReply::Status(status)) = status else { panic!("{status:?}") };
    assert_eq!(status.state, Health::Degraded);
}

#[test]
fn the_last_copy_that_is_lost_is_the_block() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    take(&mut rig, 2, block);
    take(&mut rig, 1, block);
    let fetch = ClientRequest::Fetch(Fetch { block, writable: false });
    let reply = rig.done(conn, fetch);
    let ClientReply::Fetched(info) = reply else { panic!("{reply:?}") };
    assert!(info.lost && info.descriptors() == 0);
    assert_eq!(row(&mut rig, block).state, BlockState::Lost);
    let charged = rig.dispatcher.snapshot().charged;
    assert!(charged.values().all(|charged| *charged == (0, 0)));
    rig.done(conn, delete(&granted));
    assert!([1, 2].iter().all(|daemon| rig.daemons[daemon].destroyed == [block]));
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

#[test]
fn a_copy_whose_header_is_gone_when_it_is_to_be_written_is_lost_as_well() {
    let mut rig = rig(3);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 3));
    let block = granted.first.block;
    rig.headers_gone.insert(2);
    take(&mut rig, 1, block);
    let [(3, header)] = &raised(&rig)[..] else { panic!("{:?}", raised(&rig)) };
    assert!(header.membership.peers.is_empty());
    let row = row(&mut rig, block);
    let states = [(3, CopyState::Good), (1, CopyState::Lost), (2, CopyState::Lost)];
    assert_eq!(copies(&row), states);
    rig.headers_gone.insert(3);
    take(&mut rig, 3, block);
    let reply = rig.done(conn, ClientRequest::Fetch(Fetch { block, writable: false }));
    assert!(matches!(reply, ClientReply::Fetched(info) if info.lost));
}

#[test]
fn a_header_that_cannot_be_written_is_tried_again() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.rewrites = false;
    take(&mut rig, 2, block);
    let last = |rig: &Rig| {
        rig.actions.iter().rev().find_map(|action| match action {
            Action::RaiseEpoch { raise, .. } => Some(*raise),
            _ => None,
        })
    };
    let raise = last(&rig).unwrap();
    let reason = "no descriptor is left".to_owned();
    let headers = vec![(daemon_id(1), crate::dispatcher::Rewritten::Failed { reason })];
    rig.event(Event::EpochRaised { raise, block, headers });
    rig.rewrites = true;
    rig.wait(200);
    assert_ne!(last(&rig), Some(raise));
    let reply = rig.done(conn, ClientRequest::Fetch(Fetch { block, writable: false }));
    assert!(matches!(reply, ClientReply::Fetched(info) if !info.lost));
}

#[test]
fn a_region_with_a_lost_copy_is_deleted_without_the_daemon_that_had_it() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", MIB, 0o600), 2));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    assert_eq!((opened.copies, opened.primary_daemon, opened.mirror_daemon), (2, 1, 2));
    let block = opened.first.block;
    take(&mut rig, 1, block);
    rig.daemon_dies(1);
    let key = rig.key(conn, "r");
    assert_eq!(rig.done(conn, ClientRequest::RegionDelete(key)), ClientReply::Done);
    assert_eq!(rig.dispatcher.snapshot().passing, 1);
    rig.daemon(1, GIB);
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

/// The broker after this one would find it alone, and take it for the region.
#[test]
fn a_copy_that_is_none_any_more_goes_with_its_region_though_its_daemon_is_away() {
    for is_away in [false, true] {
        let mut rig = rig(2);
        let (conn, _) = rig.session(1000);
        rig.done(conn, with_copies(region("r", MIB, 0o600), 2));
        let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
        let (block, guid) = (opened.first.block, opened.first.guid);
        take(&mut rig, 1, block);
        if is_away {
            rig.daemon_dies(1);
        }
        let key = rig.key(conn, "r");
        assert_eq!(rig.done(conn, ClientRequest::RegionDelete(key)), ClientReply::Done);
        let removed = Action::RemoveHeader { daemon: daemon_id(1), block, guid };
        assert_eq!(rig.actions.contains(&removed), is_away);
        let others = |action: &Action| matches!(action, Action::RemoveHeader { .. });
        assert_eq!(rig.actions.iter().filter(|action| others(action)).count(), is_away.into());
    }
}

/// So that a daemon does not write one again as it was, if somebody removes it.
#[test]
fn a_daemon_is_told_of_the_header_that_was_written_anew() {
    let (mut rig, _, granted) = two();
    take(&mut rig, 1, granted.first.block);
    let told = rig.actions.iter().filter_map(|action| match action {
        Action::ToDaemon {
            conn,
            request_id,
            request: dmce_abi::wire::daemon::DaemonRequest::Rewritten { description },
        } => Some((*conn, request_id.0, description.clone())),
        _ => None,
    });
    let told: Vec<_> = told.collect();
    let [(2, header)] = &raised(&rig)[..] else { panic!("{:?}", raised(&rig)) };
    assert_eq!(told, [(rig.daemons[&2].conn, 0, header.clone())]);
}

/// Somebody took its object away before it was deleted, and brings it back.
#[test]
fn a_copy_of_what_a_session_has_deleted_is_destroyed_when_it_is_back() {
    let (mut rig, conn, granted) = two();
    let description = rig.daemons[&1].created[0].clone();
    rig.done(conn, delete(&granted));
    rig.daemon_dies(1);
    let held = dmce_abi::wire::daemon::HeldBlock { description, committed: MIB };
    rig.daemon_with(1, GIB, vec![held]);
    assert_eq!(rig.daemons[&1].destroyed, [granted.first.block]);
    let list = ClientRequest::Spans(dmce_abi::wire::client::SpanList { after: 0 });
    let spans = rig.done(conn, list);
    assert!(matches!(spans, ClientReply::Spans { spans, .. } if spans.is_empty()));
}

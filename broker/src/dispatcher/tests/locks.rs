//! Lock tables: who makes one when, and how one is made anew.

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{
    Abandon, Changes, ClientReply, ClientRequest, Delete, Fetch, Granted, Grow, SpanList,
};
use dmce_abi::wire::daemon::DaemonRequest;

use super::copies::{rig, with_copies};
use super::rig::{GIB, MIB, Rig, config, daemon_id, heap, open, region, session_id, span};
use crate::dispatcher::{
    Action, ClientConn, Event, FoundTable, Made, Quota, RequestId, Rewritten, Started,
};

fn unusable() -> Made {
    Made::Unusable { reason: "no room for words".to_owned() }
}

/// What was done about lock tables, and about what has to wait for them.
fn history(rig: &Rig) -> Vec<(&'static str, BlockId)> {
    let done = rig.actions.iter().filter_map(|action| match action {
        Action::MakeLocks { block, .. } => Some(("make", *block)),
        Action::GrowLocks { block, .. } => Some(("grow", *block)),
        Action::RemoveLocks { block } => Some(("remove", *block)),
        Action::AwaitIdle { block, .. } => Some(("await", *block)),
        Action::RaiseEpoch { block, .. } => Some(("raise", *block)),
        Action::ToDaemon { request: DaemonRequest::Create { description, .. }, .. } => {
            Some(("create", description.block))
        }
        Action::ToDaemon { request: DaemonRequest::Grow { block, .. }, .. } => {
            Some(("grow a copy", *block))
        }
        Action::ToDaemon { request: DaemonRequest::Destroy { block }, .. } => {
            Some(("destroy", *block))
        }
        _ => None,
    });
    done.collect()
}

fn only(rig: &Rig, what: &[&str]) -> Vec<&'static str> {
    let done = history(rig).into_iter().map(|(done, _)| done);
    done.filter(|done| what.contains(done)).collect()
}

/// A client with a block that has two copies.
fn two() -> (Rig, ClientConn, Granted) {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 2));
    (rig, conn, granted)
}

fn fetch(block: BlockId) -> ClientRequest {
    ClientRequest::Fetch(Fetch { block, writable: true })
}

fn delete(rig: &mut Rig, conn: ClientConn, granted: &Granted) {
    let addr = rig.dispatcher.address(granted.first.block);
    rig.done(conn, ClientRequest::Delete(Delete { addr, guid: granted.first.guid }));
}

/// The table of a block is found gone.
fn take(rig: &mut Rig, block: BlockId) {
    rig.event(Event::LocksInspected { block, found: None });
}

#[test]
fn the_tables_of_a_span_are_there_before_the_first_copy_and_go_with_the_last() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(span(1, GIB + MIB), 2));
    let done: Vec<&str> = history(&rig).into_iter().map(|(done, _)| done).collect();
    assert_eq!(done, ["make", "make", "create", "create", "create", "create"]);
    assert_eq!(rig.dispatcher.snapshot().locks.values().filter(|made| **made).count(), 2);
    rig.actions.clear();
    delete(&mut rig, conn, &granted);
    let (first, last) = (granted.first.block, granted.first.block.checked_add(1).unwrap());
    let done = history(&rig);
    assert_eq!(done.iter().filter(|of| **of == ("destroy", first)).count(), 2);
    for block in [first, last] {
        let at = |what| done.iter().rposition(|of| *of == (what, block)).unwrap();
        assert!(at("destroy") < at("remove"), "{done:?}");
    }
    assert!(rig.dispatcher.snapshot().locks.is_empty());
}

#[test]
fn a_block_of_one_copy_has_none() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, heap(1, MIB));
    let grow = Grow { block: granted.first.block, committed: 2 * MIB };
    rig.done(conn, ClientRequest::Grow(grow));
    rig.done(conn, ClientRequest::Damaged(granted.first.block));
    delete(&mut rig, conn, &granted);
    assert!(only(&rig, &["make", "grow", "remove", "await"]).is_empty());
    let looked = |action: &Action| matches!(action, Action::InspectLocks { .. });
    assert!(!rig.actions.iter().any(looked));
}

#[test]
fn without_room_for_a_table_there_is_no_block_and_nobody_pays() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    rig.makes_locks = Some(unusable());
    let refusal = rig.refused(conn, with_copies(span(1, GIB + MIB), 2));
    assert_eq!(refusal.status, Status::NoSpace);
    assert!(refusal.text.contains("no room for words"), "{}", refusal.text);
    assert!(rig.daemons.values().all(|daemon| daemon.created.is_empty()));
    assert!(rig.dispatcher.snapshot().locks.is_empty());
    rig.makes_locks = Some(Made::Whole);
    rig.granted(conn, with_copies(heap(2, MIB), 2));
}

#[test]
fn a_block_whose_table_has_no_name_gets_another_id() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    rig.makes_locks = None;
    let number = rig.ask_later(conn, with_copies(heap(1, MIB), 2));
    let made = Made::NameTaken { reason: "it is another user's".to_owned() };
    let Some(&("make", block)) = history(&rig).first() else { panic!("{:?}", history(&rig)) };
    rig.makes_locks = Some(Made::Whole);
    rig.event(Event::LocksMade { block, epoch: 1, made });
    let (reply, _) = rig.answer(conn, number).unwrap();
    assert!(matches!(reply, Ok(ClientReply::Granted(granted)) if granted.first.block != block));
}

#[test]
fn words_are_there_before_the_primary_grows() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.makes_locks = None;
    let grow = |committed| ClientRequest::Grow(Grow { block, committed });
    let number = rig.ask_later(conn, grow(4 * MIB));
    assert_eq!(only(&rig, &["grow", "grow a copy"]), ["grow", "grow a copy"]);
    let asked = rig.actions.iter().find_map(|action| match action {
        Action::GrowLocks { request_id, bytes, .. } => Some((*request_id, *bytes)),
        _ => None,
    });
    let (request_id, bytes) = asked.unwrap();
    assert_eq!(bytes, 4 * MIB);
    rig.event(Event::LocksGrown { request_id, made: unusable() });
    let (reply, _) = rig.answer(conn, number).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::NoSpace);
    assert_eq!(only(&rig, &["grow a copy"]).len(), 1, "the primary is not asked");
    rig.event(Event::LocksGrown { request_id: RequestId(999), made: Made::Whole });
    rig.makes_locks = Some(Made::Whole);
    assert_eq!(rig.done(conn, grow(4 * MIB)), ClientReply::Grown { committed: 4 * MIB });
}

#[test]
fn a_table_counts_for_its_user_and_refuses_nothing_by_itself() {
    let mut config = config();
    config.copies_max = 3;
    config.quota = Quota { bytes: 4 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    for id in 1..=2 {
        rig.daemon(id, GIB);
    }
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, 2 * MIB), 2));
    assert_eq!(rig.status(conn, heap(2, 4096)), Status::Quota);
    delete(&mut rig, conn, &granted);
    rig.granted(conn, with_copies(heap(3, MIB), 2));
    // Two pages of words and a page before them.
    assert_eq!(rig.status(conn, heap(4, 2 * MIB)), Status::Quota);
    rig.granted(conn, heap(5, 2 * MIB - 2 * 4096));
}

#[test]
fn a_table_is_made_anew_when_nobody_is_in_an_operation_any_more() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    rig.actions.clear();
    take(&mut rig, block);
    assert_eq!(only(&rig, &["raise", "await", "make"]), ["raise", "await"]);
    // Told first, looked at then.
    let place = |of: fn(&Action) -> bool| rig.actions.iter().position(of).unwrap();
    let published = place(|action| matches!(action, Action::Publish { .. }));
    assert!(published < place(|action| matches!(action, Action::AwaitIdle { .. })));
    let number = rig.ask_later(conn, fetch(block));
    assert!(rig.answer(conn, number).is_none());
    let awaited = rig.actions.iter().find_map(|action| match *action {
        Action::AwaitIdle { session, epoch, .. } => Some((session, epoch)),
        _ => None,
    });
    let (session, epoch) = awaited.unwrap();
    assert!(epoch > granted.first.epoch);
    // Of an earlier time, or another session.
    rig.event(Event::Idle { session, block, epoch: granted.first.epoch });
    rig.event(Event::Idle { session: session_id(99), block, epoch });
    assert!(rig.answer(conn, number).is_none());
    rig.event(Event::Idle { session, block, epoch });
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Fetched(info)) = reply else { panic!("{reply:?}") };
    assert_eq!((info.epoch, info.good().count(), descriptors.len()), (epoch, 2, 3));
    let changed = rig.done(conn, ClientRequest::Changes(Changes { since: 0 }));
    assert!(matches!(changed, ClientReply::Changed(changed) if changed.blocks.contains(&block)));
    take(&mut rig, block);
    rig.event(Event::Idle { session, block, epoch });
    assert_eq!(only(&rig, &["make"]).len(), 1);
}

#[test]
fn who_dies_in_an_operation_is_waited_for_no_more() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", MIB, 0o666), 2));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    let (other, ready) = rig.session(1001);
    rig.done(other, open(1, "r", false));
    let block = opened.first.block;
    rig.idles = false;
    take(&mut rig, block);
    let number = rig.ask_later(conn, fetch(block));
    let awaited = rig.actions.iter().filter_map(|action| match *action {
        Action::AwaitIdle { session, epoch, .. } => Some((session, epoch)),
        _ => None,
    });
    let awaited: Vec<_> = awaited.collect();
    assert_eq!(awaited.len(), 2);
    let (alive, epoch) = *awaited.iter().find(|(of, _)| *of != ready.session).unwrap();
    rig.event(Event::Idle { session: alive, block, epoch });
    assert!(rig.answer(conn, number).is_none());
    rig.event(Event::Died { session: ready.session });
    assert!(rig.answer(conn, number).is_some());
}

#[test]
fn a_table_that_cannot_be_made_anew_is_tried_again() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.makes_locks = Some(unusable());
    take(&mut rig, block);
    let number = rig.ask_later(conn, fetch(block));
    assert!(rig.answer(conn, number).is_none());
    rig.makes_locks = Some(Made::Whole);
    rig.wait(200);
    assert!(rig.answer(conn, number).is_some());
}

#[test]
fn a_copy_that_is_lost_meanwhile_begins_it_anew() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    take(&mut rig, block);
    let (inspect, found) = (crate::dispatcher::InspectId(u64::MAX), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(1), found });
    assert_eq!(only(&rig, &["raise", "await"]), ["raise", "await", "raise", "await"]);
    let number = rig.ask_later(conn, fetch(block));
    let last = rig.actions.iter().rev().find_map(|action| match *action {
        Action::AwaitIdle { session, epoch, .. } => Some(Event::Idle { session, block, epoch }),
        _ => None,
    });
    rig.event(last.unwrap());
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    assert!(matches!(reply, Ok(ClientReply::Fetched(info)) if info.good().count() == 1));
    assert_eq!(descriptors.len(), 2);
}

#[test]
fn a_sound_table_stays_and_one_that_is_cut_or_anothers_does_not() {
    let (mut rig, _, granted) = two();
    let (block, guid) = (granted.first.block, granted.first.guid);
    let found = |guid, bytes| Event::LocksInspected {
        block,
        found: Some(FoundTable { block, guid, bytes }),
    };
    rig.event(found(Some(guid), MIB));
    assert!(only(&rig, &["raise"]).is_empty());
    for (guid, bytes) in [(Some(guid), MIB - 4096), (None, MIB), (Some(rig_guid()), MIB)] {
        rig.actions.clear();
        rig.event(found(guid, bytes));
        assert_eq!(only(&rig, &["raise", "make"]), ["raise", "make"], "{guid:?} {bytes}");
    }
}

fn rig_guid() -> dmce_abi::block::Guid {
    dmce_abi::block::Guid([0xee; 16])
}

/// The other copy is there: nobody is refused.
#[test]
fn what_could_not_be_opened_is_answered_by_the_other_copy() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    let number = rig.ask_later(conn, fetch(block));
    assert!(rig.answer(conn, number).is_some());
    let again = rig.actions.iter().rev().find_map(|action| match action {
        Action::Reply { again, .. } => again.clone(),
        _ => None,
    });
    let request = again.expect("a block travels with it");
    rig.event(Event::OpenFailed { daemon: daemon_id(1), block });
    rig.event(Event::NotOpened { conn, request_id: number, request });
    assert!(rig.answer(conn, number).is_none());
    let inspect = rig.actions.iter().rev().find_map(|action| match action {
        Action::Inspect { inspect, .. } => Some(*inspect),
        _ => None,
    });
    rig.rewrites = false;
    let (inspect, found) = (inspect.unwrap(), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(1), found });
    assert!(rig.answer(conn, number).is_none(), "the headers say otherwise yet");
    let raise = rig.actions.iter().rev().find_map(|action| match action {
        Action::RaiseEpoch { raise, .. } => Some(*raise),
        _ => None,
    });
    let headers = vec![(daemon_id(2), Rewritten::Written)];
    rig.event(Event::EpochRaised { raise: raise.unwrap(), block, headers });
    let (reply, _) = rig.answer(conn, number).unwrap();
    assert!(matches!(reply, Ok(ClientReply::Fetched(info)) if info.daemons().eq([daemon_id(2)])));
}

/// A span that the list told, and whose grant comes later, would be taken for nobody's.
#[test]
fn a_list_of_spans_waits_for_what_was_asked_before_and_abandon_ends_that() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    take(&mut rig, block);
    let malloc = rig.ask_later(conn, with_copies(heap(1, MIB), 2));
    let spans = rig.ask_later(conn, ClientRequest::Spans(SpanList { after: 0 }));
    assert!(rig.answer(conn, malloc).is_none() && rig.answer(conn, spans).is_none());
    rig.done(conn, ClientRequest::Abandon(Abandon { ticket: 1 }));
    let (reply, _) = rig.answer(conn, malloc).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Closed);
    let (reply, _) = rig.answer(conn, spans).unwrap();
    assert!(matches!(reply, Ok(ClientReply::Spans { spans, .. }) if spans.is_empty()));
}

/// The answer of the shell is about an epoch that is over.
#[test]
fn a_copy_that_is_lost_while_the_table_is_being_made_has_it_made_again() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.actions.clear();
    rig.makes_locks = None;
    take(&mut rig, block);
    assert_eq!(only(&rig, &["make"]).len(), 1);
    let (inspect, found) = (crate::dispatcher::InspectId(u64::MAX), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(1), found });
    assert_eq!(only(&rig, &["raise", "make"]), ["raise", "make", "raise", "make"]);
    let epochs = rig.actions.iter().filter_map(|action| match action {
        Action::MakeLocks { epoch, .. } => Some(*epoch),
        _ => None,
    });
    let epochs: Vec<u64> = epochs.collect();
    let number = rig.ask_later(conn, fetch(block));
    rig.event(Event::LocksMade { block, epoch: epochs[0], made: Made::Whole });
    assert!(rig.answer(conn, number).is_none());
    rig.event(Event::LocksMade { block, epoch: epochs[1], made: Made::Whole });
    assert!(rig.answer(conn, number).is_some());
}

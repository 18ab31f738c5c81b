//! Blocks that the broker makes of what daemons lend it.

use dmce_abi::Status;
use dmce_abi::wire::client::ClientReply;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonRequest, PoolPlace};

use super::rig::{GIB, MIB, Mood, Rig, block_id, heap, region, span};
use crate::dispatcher::event::{Lent, Made};
use crate::dispatcher::{Action, Event, RequestId};

/// What was made of lent objects: the place, and the bytes that the block has.
fn makings(rig: &Rig) -> Vec<(u32, u64)> {
    let makings = rig.actions.iter().filter_map(|action| match action {
        Action::MakeBlock { lent, committed, .. } => Some((lent.place.0, *committed)),
        _ => None,
    });
    makings.collect()
}

/// What daemons were told of lent objects.
fn told(rig: &Rig) -> Vec<(u32, u32)> {
    let told = rig.actions.iter().filter_map(|action| match action {
        Action::ToDaemon {
            request: DaemonRequest::Taken { place, block, .. }, request_id, ..
        } => {
            assert_eq!(*request_id, RequestId(0));
            Some((place.0, block.get()))
        }
        _ => None,
    });
    told.collect()
}

fn last_making(rig: &Rig) -> RequestId {
    let makings = rig.actions.iter().rev().filter_map(|action| match action {
        Action::MakeBlock { request_id, .. } => Some(*request_id),
        _ => None,
    });
    makings.into_iter().next().expect("something was made")
}

#[test]
fn what_is_lent_is_used_once_and_asks_no_daemon() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.lend(1, 8, 2 * MIB);
    rig.mood(1, Mood::Waits);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, 2 * MIB));
    assert_eq!((first.first.committed, first.last_committed), (2 * MIB, 2 * MIB));
    // Less than an object is cut; a region is a block like any other.
    assert_eq!(rig.done(conn, region("r", 4096, 0o600)), ClientReply::Done);
    assert_eq!(makings(&rig), [(7, 2 * MIB), (8, 4096)]);
    assert_eq!(told(&rig).len(), 2);
    assert_eq!(rig.daemons[&1].asked, []);
    // There is nothing left: the daemon is asked.
    assert!(rig.ask(conn, heap(2, 2 * MIB)).is_none());
    rig.obey(1);
    assert_eq!(rig.dispatcher.snapshot().blocks.len(), 3);
}

#[test]
fn the_client_is_answered_before_the_daemon_is_told() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    let (conn, _) = rig.session(1000);
    rig.actions.clear();
    rig.granted(conn, heap(1, 2 * MIB));
    let order: Vec<_> = rig
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::MakeBlock { .. } => Some("make"),
            Action::Reply { .. } => Some("answer"),
            Action::ToDaemon { .. } => Some("tell"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["make", "answer", "tell"]);
}

#[test]
fn what_is_too_small_or_lies_elsewhere_is_not_used() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    let (conn, _) = rig.session(1000);
    rig.granted(conn, heap(1, 4 * MIB));
    assert_eq!(makings(&rig), []);
    // What cannot be is not lent, and nothing is lent twice.
    for (place, bytes) in [(8, 0), (9, 5000), (7, 2 * MIB)] {
        rig.lend(1, place, bytes);
    }
    rig.granted(conn, heap(2, 4096));
    rig.granted(conn, heap(3, 4096));
    assert_eq!(makings(&rig), [(7, 4096)]);
}

#[test]
fn the_blocks_of_a_span_are_made_of_what_is_lent_and_the_first_is_the_last() {
    let mut rig = Rig::new(3);
    for daemon in 1..=3 {
        rig.lend(daemon, 1, GIB);
        rig.lend(daemon, 2, GIB);
    }
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, span(1, 3 * GIB));
    let first = granted.first.block.get();
    let made = rig.actions.iter().filter_map(|action| match action {
        Action::MakeBlock { description, .. } => Some(description.block.get()),
        _ => None,
    });
    assert_eq!(made.collect::<Vec<_>>(), [first + 1, first + 2, first]);
    assert_eq!(told(&rig).len(), 3);
    assert!(rig.daemons.values().all(|daemon| daemon.created.is_empty()));
}

#[test]
fn an_object_that_cannot_be_used_costs_nobody_a_grant() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.lend(1, 8, 2 * MIB);
    rig.makes = Some(Made::Unusable { reason: "it is not there".into() });
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, heap(1, 2 * MIB));
    let block = granted.first.block.get();
    // Both were tried, their daemon knows, and made the block itself.
    assert_eq!(told(&rig), [(7, block), (8, block)]);
    assert_eq!(rig.daemons[&1].created.len(), 1);
}

#[test]
fn a_name_that_is_taken_is_not_tried_again() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.makes = Some(Made::NameTaken { reason: "there is another".into() });
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, heap(1, 2 * MIB));
    let [(7, taken)] = told(&rig)[..] else { panic!("{:?}", told(&rig)) };
    assert_ne!(granted.first.block.get(), taken);
}

#[test]
fn a_daemon_that_goes_away_in_the_middle_is_told_to_destroy() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.lend(1, 8, 2 * MIB);
    rig.makes = None;
    let (conn, _) = rig.session(1000);
    let asked = rig.ask_later(conn, heap(1, 2 * MIB));
    let number = last_making(&rig);
    rig.daemon_dies(1);
    let (reply, _) = rig.answer(conn, asked).expect("nobody else is up");
    assert_eq!(reply.unwrap_err().status, Status::NoSpace);
    // What the shell says now is too late, and what was lent is void.
    let (daemon, made) = (super::rig::daemon_id(1), Made::Whole);
    rig.event(Event::BlockMade { daemon, request_id: number, made });
    assert_eq!(told(&rig), []);
    rig.daemon(1, 3 * GIB);
    assert_eq!(rig.daemons[&1].destroyed, [block_id(1)]);
    rig.makes = Some(Made::Whole);
    rig.granted(conn, heap(2, 2 * MIB));
    assert_eq!(makings(&rig).len(), 1);
}

#[test]
fn what_was_given_up_in_the_middle_is_destroyed_when_it_is_there() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.makes = None;
    let (conn, _) = rig.session(1000);
    rig.ask_later(conn, heap(1, 2 * MIB));
    let request_id = last_making(&rig);
    let abandon = dmce_abi::wire::client::Abandon { ticket: 1 };
    rig.done(conn, dmce_abi::wire::client::ClientRequest::Abandon(abandon));
    assert_eq!(rig.daemons[&1].destroyed, []);
    let (daemon, made) = (super::rig::daemon_id(1), Made::Whole);
    rig.event(Event::BlockMade { daemon, request_id, made });
    assert_eq!(rig.daemons[&1].destroyed, [block_id(1)]);
    assert_eq!(rig.dispatcher.snapshot().blocks.len(), 0);
}

#[test]
fn a_daemon_answers_nothing_that_the_broker_makes_itself() {
    let mut rig = Rig::new(1);
    rig.lend(1, 7, 2 * MIB);
    rig.makes = None;
    let (conn, _) = rig.session(1000);
    rig.ask_later(conn, heap(1, 2 * MIB));
    let RequestId(number) = last_making(&rig);
    let answer = DaemonAnswer::Committed { committed: 2 * MIB };
    rig.tell(1, number, DaemonMessage::Reply(Ok(answer)));
    let closed = |action: &Action| matches!(action, Action::CloseDaemon { .. });
    assert!(rig.actions.iter().any(closed));
}

#[test]
fn no_daemon_lends_more_than_it_may_have() {
    let mut rig = Rig::new(1);
    for place in 0..2000 {
        rig.lend(1, place, 4096);
    }
    let daemon = super::rig::daemon_id(1);
    let lent = std::iter::from_fn(|| rig.dispatcher.borrow(daemon, 4096));
    let lent: Vec<Lent> = lent.collect();
    assert_eq!(lent.len(), 1024);
    assert_eq!(lent[0].place, PoolPlace(0));
}

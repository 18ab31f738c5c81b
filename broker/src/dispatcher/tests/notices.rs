use dmce_abi::Status;
use dmce_abi::addr::AddrLayout;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Delete, Granted, SessionEvent};

use super::rig::{GIB, MIB, Rig, config, heap, open, region, span};
use crate::dispatcher::{Action, ClientConn, Event, InspectId, Quota, Started};

fn events(rig: &mut Rig, conn: ClientConn) -> Vec<SessionEvent> {
    match rig.done(conn, ClientRequest::Events) {
        ClientReply::Events(events) => events,
        other => panic!("{other:?}"),
    }
}

fn delete(rig: &mut Rig, conn: ClientConn, granted: &Granted) {
    let addr = u64::from(granted.first.block.get()) << AddrLayout::IN_SERVER.cell_bits();
    rig.done(conn, ClientRequest::Delete(Delete { addr, guid: granted.first.guid }));
}

#[test]
fn pressure_is_told_once_until_there_was_relief_and_to_those_who_ask_alone() {
    let mut rig = Rig::new(1);
    let (watcher, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    assert_eq!(events(&mut rig, watcher), []);
    let first = rig.granted(other, span(1, 2 * GIB));
    assert_eq!(events(&mut rig, watcher), []);
    let second = rig.granted(other, span(2, 900 * MIB));
    let left = 3 * GIB - 2 * GIB - 900 * MIB;
    assert_eq!(events(&mut rig, watcher), [SessionEvent::Pressure { left }]);
    // Between the marks nothing is told, and above the high one nothing again.
    let third = rig.granted(other, span(3, MIB));
    delete(&mut rig, other, &third);
    let fourth = rig.granted(other, span(4, 64 * MIB));
    delete(&mut rig, other, &fourth);
    assert_eq!(events(&mut rig, watcher), []);
    delete(&mut rig, other, &first);
    delete(&mut rig, other, &second);
    rig.granted(other, span(5, 2 * GIB));
    rig.granted(other, span(6, 900 * MIB));
    assert_eq!(events(&mut rig, watcher), [SessionEvent::Pressure { left }]);
    let rings = rig.actions.iter().filter(|action| matches!(action, Action::Ring { .. }));
    assert_eq!(rings.count(), 2);
}

#[test]
fn one_daemon_that_is_nearly_full_is_pressure_too() {
    let mut rig = Rig::new(3);
    let (conn, _) = rig.session(1000);
    events(&mut rig, conn);
    rig.granted(conn, span(1, GIB));
    rig.daemon(4, 64 * MIB);
    for ticket in 2..=5 {
        rig.granted(conn, heap(ticket, 60 * MIB));
    }
    assert!(matches!(events(&mut rig, conn)[..], [SessionEvent::Pressure { .. }]));
}

/// 003, the resource available signal
#[test]
fn who_was_refused_is_told_when_there_is_room_and_not_before() {
    let mut rig = Rig::new(1);
    let (holder, _) = rig.session(1000);
    let (conn, _) = rig.session(1001);
    events(&mut rig, conn);
    let large = rig.granted(holder, span(1, 2 * GIB));
    let small = rig.granted(holder, span(2, GIB - 16 * MIB));
    events(&mut rig, conn);
    assert_eq!(rig.status(conn, span(1, 2 * GIB)), Status::NoSpace);
    delete(&mut rig, holder, &small);
    assert_eq!(events(&mut rig, conn), []);
    delete(&mut rig, holder, &large);
    // The first of its two blocks is gone by then.
    let all = SessionEvent::Available { bytes: 2 * GIB };
    assert_eq!(events(&mut rig, conn), [all]);
    // It was told.
    let again = rig.granted(holder, span(3, MIB));
    delete(&mut rig, holder, &again);
    assert_eq!(events(&mut rig, conn), []);
}

#[test]
fn who_was_over_quota_is_told_when_it_has_given_something_back() {
    let mut config = config();
    config.quota = Quota { bytes: 4 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let (conn, _) = rig.session(1000);
    events(&mut rig, conn);
    let granted = rig.granted(conn, span(1, 3 * MIB));
    assert_eq!(rig.status(conn, heap(2, 2 * MIB)), Status::Quota);
    rig.daemon(2, GIB);
    assert_eq!(events(&mut rig, conn), []);
    delete(&mut rig, conn, &granted);
    assert_eq!(events(&mut rig, conn), [SessionEvent::Available { bytes: 4 * MIB }]);
}

#[test]
fn what_is_lost_is_told_to_all_who_have_it_open() {
    let mut rig = Rig::new(1);
    let (owner, _) = rig.session(1000);
    let (reader, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    rig.done(owner, region("r", MIB, 0));
    for conn in [owner, reader] {
        rig.done(conn, open(1, "r", true));
        events(&mut rig, conn);
    }
    events(&mut rig, other);
    let block = rig.daemons[&1].created[0].block;
    let daemon = super::rig::daemon_id(1);
    let found = vec![(block, None)];
    rig.event(Event::Inspected { inspect: InspectId(u64::MAX), daemon, found });
    let addr = u64::from(block.get()) << AddrLayout::IN_SERVER.cell_bits();
    for conn in [owner, reader] {
        assert_eq!(events(&mut rig, conn), [SessionEvent::Lost { addr, bytes: MIB }]);
    }
    assert_eq!(events(&mut rig, other), []);
}

/// More than one step tells.
#[test]
fn hundreds_of_sessions_are_all_told() {
    let mut rig = Rig::new(1);
    let conns: Vec<ClientConn> = (0..300)
        .map(|user| {
            let (conn, _) = rig.session(2000 + user);
            events(&mut rig, conn);
            conn
        })
        .collect();
    let (holder, _) = rig.session(1000);
    rig.granted(holder, span(1, 2 * GIB));
    rig.granted(holder, span(2, 1000 * MIB));
    rig.wait(1000);
    for conn in conns {
        assert!(matches!(events(&mut rig, conn)[..], [SessionEvent::Pressure { .. }]));
    }
}

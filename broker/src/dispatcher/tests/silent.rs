//! A daemon that lives, and does not report to a broker that came back.

use dmce_abi::Status;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, DaemonState};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Delete, Grow, Opening, OpeningId};
use dmce_abi::wire::daemon::DaemonMessage;

use super::restart::{attach, attach_with, believed, expected, fetched, held, held_region, read};
use super::rig::{GIB, MIB, Rig, block_id, config, daemon_id, guid, heap, open, session_id, setup};
use crate::dispatcher::{Action, ClientConn, Event, Grant, Headers, Rights, Started};

const READ_HEADERS: fn(u32) -> Action = |daemon| Action::ReadHeaders { daemon: daemon_id(daemon) };

/// A broker that came back, of whose daemons the first is silent and the second up.
fn silent_first(names: &[u32], grants: Vec<Grant>) -> Rig {
    let daemons = vec![expected(1, names), expected(2, &[])];
    let started = Started { sessions: vec![believed(0, grants)], daemons, ..Started::default() };
    let mut rig = Rig::started(config(), started);
    rig.daemon(2, 3 * GIB);
    rig
}

/// The shell reads the headers of the first daemon, when it is asked to and not before.
fn give_up_waiting(rig: &mut Rig, found: Headers) {
    let patience = config().suspect_ms;
    rig.wait(patience - 100);
    assert!(!rig.actions.contains(&READ_HEADERS(1)));
    rig.wait(100);
    assert!(rig.actions.contains(&READ_HEADERS(1)));
    rig.event(Event::HeadersRead { daemon: daemon_id(1), headers: found });
    assert!(rig.dispatcher.snapshot().complete);
}

fn daemon_state(rig: &mut Rig, daemon: u32) -> DaemonState {
    let conn = rig.connect(1, 0);
    let request = ClientRequest::Admin(AdminRequest::Daemons { after: daemon - 1 });
    match rig.done(conn, request) {
        ClientReply::Admin(AdminReply::Daemons { rows, .. }) => rows[0].state,
        other => panic!("{other:?}"),
    }
}

fn delete(rig: &mut Rig, conn: ClientConn, block: u32) {
    let delete = Delete { addr: u64::from(block) << 30, guid: guid(u8::try_from(block).unwrap()) };
    assert_eq!(rig.done(conn, ClientRequest::Delete(delete)), ClientReply::Done);
}

#[test]
fn a_daemon_that_does_not_report_is_suspected_and_the_others_serve() {
    let mut rig = silent_first(&[1, 2], vec![]);
    let conn = attach(&mut rig);
    let waiting = rig.ask_later(conn, heap(9, MIB));
    let newcomer = rig.connect(77, 1000);
    let opening = rig.ask_later(newcomer, setup(MIB, false));
    give_up_waiting(&mut rig, read(vec![held(1, 0, 1, 1), held_region(2, 0, 1, 3)]));

    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Suspected);
    let (ready, _) = rig.answer(newcomer, opening).unwrap();
    assert!(matches!(ready, Ok(ClientReply::Ready(_))), "{ready:?}");
    let (granted, _) = rig.answer(conn, waiting).unwrap();
    let Ok(ClientReply::Granted(granted)) = granted else { panic!("{granted:?}") };
    assert!(granted.first.block > block_id(2), "an id that the silent daemon has");
    assert_eq!(rig.daemons[&2].created.len(), 1);

    // What it holds is known and reached; what needs its answer is refused.
    assert_eq!(fetched(&mut rig, conn, 1), Some(false));
    let grow = ClientRequest::Grow(Grow { block: block_id(1), committed: 2 * MIB });
    assert_eq!(rig.status(conn, grow.clone()), Status::NoSpace);
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    assert_eq!(opened.first.block, block_id(2));

    // It goes on, and reports.
    rig.daemon_with(1, 3 * GIB, vec![held(1, 0, 1, 1), held_region(2, 0, 1, 3)]);
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Up);
    assert!(rig.daemons[&1].destroyed.is_empty());
    assert!(matches!(rig.done(conn, grow), ClientReply::Grown { .. }));
    assert_eq!(fetched(&mut rig, conn, 2), Some(false));
}

#[test]
fn what_was_freed_while_it_was_silent_is_destroyed_when_it_reports() {
    let mut rig = silent_first(&[7], vec![]);
    let conn = attach(&mut rig);
    give_up_waiting(&mut rig, read(vec![held(7, 0, 1, 1)]));
    delete(&mut rig, conn, 7);
    assert_eq!(fetched(&mut rig, conn, 7), None);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    assert_eq!(rig.daemons[&1].destroyed, [block_id(7)]);
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(1)], (0, 0));
}

#[test]
fn what_it_made_for_the_broker_before_after_nobody_waited_any_more_is_destroyed() {
    let mut rig = silent_first(&[7], vec![]);
    let conn = attach(&mut rig);
    give_up_waiting(&mut rig, read(vec![held(7, 0, 1, 1)]));
    // The client repeats what that broker did not answer, and gets it from the other daemon.
    let granted = rig.granted(conn, heap(5, MIB)).first.block.get();
    let other = granted + 1;
    let stale = vec![
        held(7, 0, 1, 1),
        held(granted, 0, 1, 5),
        held(other, 0, 1, 6),
        held_region(other + 1, 0, 1, 3),
    ];
    rig.daemon_with(1, 3 * GIB, stale);
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Up);
    assert_eq!(rig.daemons[&1].destroyed, [granted, other, other + 1].map(block_id));
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
    assert_eq!(fetched(&mut rig, conn, granted), Some(false));
    let snapshot = rig.dispatcher.snapshot();
    assert_eq!(snapshot.blocks[&block_id(granted)].copies[0].daemon, daemon_id(2));
    assert_eq!((snapshot.quarantined, snapshot.passing, snapshot.regions.len()), (0, 0, 0));
    assert_eq!(snapshot.charged[&daemon_id(1)], (MIB, 0));
}

/// The broker before this one had asked for it, and found nothing when it looked for it.
#[test]
fn what_has_an_id_that_another_block_has_by_now_goes_whenever_it_is_reported() {
    let daemons = vec![expected(1, &[7]), expected(2, &[])];
    let sessions = vec![believed(0, vec![])];
    let started = Started { sessions, daemons, ..Started::default() };
    let mut rig = Rig::started_at(100, config(), started);
    let conn = attach(&mut rig);
    rig.daemon(2, 3 * GIB);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    rig.daemon_dies(1);
    let granted = rig.granted(conn, heap(5, MIB)).first.block.get();
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1), held(granted, 0, 1, 6)]);
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Up);
    assert_eq!(rig.daemons[&1].destroyed, [block_id(granted)]);
    assert_eq!(fetched(&mut rig, conn, granted), Some(false));
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
}

#[test]
fn what_it_destroyed_for_the_broker_before_is_gone_and_not_lost_unless_a_session_has_it_open() {
    for is_open in [false, true] {
        let grant = Grant { place: 0, block: block_id(8), rights: Rights::ALL };
        let grants = if is_open { vec![grant] } else { vec![] };
        let told = Opening { opening: OpeningId(1), first: block_id(8), read: true, write: true };
        let told = if is_open { vec![told] } else { vec![] };
        let mut rig = silent_first(&[7, 8], grants);
        let conn = attach_with(&mut rig, told);
        give_up_waiting(&mut rig, read(vec![held(7, 0, 1, 1), held_region(8, 0, 1, 3)]));
        rig.actions.clear();
        rig.daemon_with(1, 3 * GIB, vec![]);
        let snapshot = rig.dispatcher.snapshot();
        let lost: Vec<_> = snapshot.blocks.iter().filter(|(_, block)| block.lost).collect();
        assert_eq!((snapshot.regions.len(), lost.len()), if is_open { (1, 1) } else { (0, 0) });
        // The session is told of its block, in case that it did not give it up itself.
        let told = Action::Publish { session: session_id(4), generation: 11 + u64::from(is_open) };
        assert!(rig.actions.contains(&told), "{:?}", rig.actions);
        let fetch = dmce_abi::wire::client::Fetch { block: block_id(7), writable: false };
        assert!(rig.ask(conn, ClientRequest::Fetch(fetch)).unwrap().is_err());
    }
}

#[test]
fn a_block_whose_header_could_not_be_read_is_taken_in_when_it_reports() {
    let mut rig = silent_first(&[7, 8, 9], vec![]);
    let conn = attach(&mut rig);
    let damaged = [7, 8].map(block_id).to_vec();
    give_up_waiting(&mut rig, Headers { held: vec![held_region(8, 1, 2, 3)], damaged });
    // The region's first block was there, and is not given up.
    assert_eq!(rig.dispatcher.snapshot().regions.len(), 1);
    rig.granted(conn, heap(9, MIB));
    rig.daemon_with(
        1,
        3 * GIB,
        vec![held(7, 0, 1, 1), held_region(8, 0, 2, 3), held_region(8, 1, 2, 3)],
    );
    assert!(rig.daemons[&1].destroyed.is_empty());
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
    let lost = rig.dispatcher.snapshot().blocks.values().filter(|block| block.lost).count();
    assert_eq!(lost, 0);
}

#[test]
fn it_is_waited_for_as_long_as_it_reports_and_its_death_is_known_by_its_lock() {
    let started = Started {
        sessions: vec![believed(0, vec![])],
        daemons: vec![expected(1, &[7])],
        ..Started::default()
    };
    let mut rig = Rig::started(config(), started);
    let conn = attach(&mut rig);
    rig.register(1, GIB);
    for _ in 0..4 {
        rig.wait(config().suspect_ms - 100);
        rig.tell(1, 0, DaemonMessage::Holds { blocks: vec![], damaged: vec![], last: false });
        assert!(!rig.actions.contains(&READ_HEADERS(1)));
    }
    give_up_waiting(&mut rig, read(vec![held(7, 0, 1, 1)]));
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Suspected);
    rig.actions.clear();
    rig.daemon_dies(1);
    assert!(rig.actions.contains(&Action::AwaitLock { daemon: daemon_id(1) }));
    // Before it died it did one thing more of what the earlier broker wanted.
    let held = vec![held(7, 0, 1, 1), held(90, 0, 1, 2)];
    rig.event(Event::LockFree { daemon: daemon_id(1), headers: read(held.clone()) });
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Away);
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
    assert_eq!(fetched(&mut rig, conn, 90), None);
    rig.daemon_with(1, GIB, held);
    assert_eq!(rig.daemons[&1].destroyed, [block_id(90)]);
}

/// Each attempt is a sign of life, and none is a report.
#[test]
fn a_daemon_that_reports_in_vain_again_and_again_is_not_waited_for_either() {
    let mut rig = silent_first(&[7], vec![]);
    let mut bad = held(7, 0, 1, 1);
    bad.description.epoch = 0;
    for _ in 0..20 {
        rig.daemon_with(1, 3 * GIB, vec![bad.clone()]);
        rig.wait(config().suspect_ms / 4);
    }
    assert!(rig.actions.contains(&READ_HEADERS(1)));
    rig.event(Event::HeadersRead { daemon: daemon_id(1), headers: read(vec![bad.clone()]) });
    assert!(rig.dispatcher.snapshot().complete);
    rig.session(1000);
}

#[test]
fn headers_that_come_after_the_report_say_nothing() {
    let mut rig = silent_first(&[7], vec![]);
    rig.wait(config().suspect_ms);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    rig.event(Event::HeadersRead { daemon: daemon_id(1), headers: read(vec![]) });
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Up);
    let conn = attach(&mut rig);
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
}

#[test]
fn a_daemon_that_falls_silent_while_it_joins_lets_nobody_wait() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let block = rig.granted(conn, heap(1, MIB)).first.block;
    rig.daemon_dies(1);
    rig.register(1, 3 * GIB);
    let grow = ClientRequest::Grow(Grow { block, committed: 2 * MIB });
    let number = rig.ask_later(conn, grow.clone());
    assert_eq!(rig.answer(conn, number), None, "one that joins answers soon");
    rig.wait(config().suspect_ms);
    let (reply, _) = rig.answer(conn, number).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::NoSpace);
    assert_eq!(daemon_state(&mut rig, 1), DaemonState::Suspected);
    assert_eq!(rig.status(conn, grow), Status::NoSpace);
}

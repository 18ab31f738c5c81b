//! What is asked and told before all daemons have reported.

use dmce_abi::wire::client::Unmap;
use dmce_abi::wire::daemon::{DaemonMessage, DaemonNotice};

use super::*;

#[test]
fn what_needs_the_tables_waits_for_every_daemon_and_listings_do_not() {
    let daemons = vec![expected(1, &[7]), expected(2, &[8])];
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![believed(0, vec![])], daemons, ..Started::default() },
    );
    let conn = attach(&mut rig);
    assert!(rig.ask(conn, ClientRequest::Admin(AdminRequest::Status)).unwrap().is_ok());
    let number = rig.ask_later(conn, heap(1, MIB));
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    assert_eq!(rig.answer(conn, number), None);
    rig.event(Event::LockFree { daemon: daemon_id(2), headers: read(vec![held(8, 0, 1, 2)]) });
    // Ticket 1 was answered into the void by the broker before: it gives the same block.
    let (reply, _) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    assert_eq!(granted.first.block, block_id(7));
    assert_eq!(fetched(&mut rig, conn, 8), Some(false));
}

/// A client tells its pointers without waiting for an answer.
#[test]
fn a_pointer_that_is_told_and_taken_back_before_the_tables_are_complete_is_not_shown() {
    let daemons = vec![expected(1, &[7])];
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![believed(0, vec![])], daemons, ..Started::default() },
    );
    let conn = attach(&mut rig);
    let (addr, os_address) = (7 << 30, 0x10_0000);
    let map = Map { addr, bytes: 4096, os_address, writable: false };
    let told = rig.ask_later(conn, ClientRequest::Map(map));
    let taken_back = rig.ask_later(conn, ClientRequest::Unmap(Unmap { os_address }));
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    for number in [told, taken_back] {
        assert_eq!(rig.answer(conn, number).unwrap().0, Ok(ClientReply::Done));
    }
    let request = ClientRequest::Admin(AdminRequest::WhereIs { addr });
    let ClientReply::Admin(AdminReply::WhereIs(found)) = rig.done(conn, request) else { panic!() };
    assert_eq!(found.mappings, []);
}

#[test]
fn a_block_that_is_called_lost_before_the_tables_are_complete_is_looked_at_when_they_are() {
    let daemons = vec![expected(1, &[7]), expected(2, &[])];
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![believed(0, vec![])], daemons, ..Started::default() },
    );
    let conn = attach(&mut rig);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    rig.tell(1, 0, DaemonMessage::Notice(DaemonNotice::Lost { block: block_id(7) }));
    rig.actions.clear();
    rig.daemon(2, 3 * GIB);
    let is_inspect = |action: &Action| matches!(action, Action::Inspect { .. });
    let inspect = rig.actions.iter().find(|action| is_inspect(action)).cloned();
    let Some(Action::Inspect { inspect, daemon, blocks }) = inspect else { panic!() };
    assert_eq!((daemon, blocks), (daemon_id(1), vec![block_id(7)]));
    rig.event(Event::Inspected { inspect, daemon, found: vec![(block_id(7), None)] });
    assert_eq!(fetched(&mut rig, conn, 7), Some(true));
}

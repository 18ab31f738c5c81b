use dmce_abi::Status;
use dmce_abi::wire::client::{Attach, ClientReply, ClientRequest};

use super::rig::{GIB, MIB, Rig, config, guid, heap, setup};
use crate::dispatcher::{Action, Event, Quota, Started};

/// FIG. 13, as docs/protocol.md reads it.
#[test]
fn a_reservation_is_whole_or_partial_where_that_is_accepted_or_refused() {
    let reserved = |wanted, partial| {
        let mut rig = Rig::new(2);
        let conn = rig.connect(1, 1000);
        match rig.ask(conn, setup(wanted, partial)).unwrap() {
            Ok(ClientReply::Ready(ready)) => Ok(ready.reserved),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err((refusal.status, refusal.text)),
        }
    };
    for partial in [false, true] {
        assert_eq!(reserved(6 * GIB, partial), Ok(6 * GIB));
        assert_eq!(reserved(1, partial), Ok(4096));
    }
    assert_eq!(reserved(7 * GIB, true), Ok(6 * GIB));
    assert_eq!(reserved(u64::MAX, true), Ok(6 * GIB));
    let refused = reserved(u64::MAX, false).unwrap_err();
    assert_eq!(refused.0, Status::NoSpace, "{}", refused.1);
    let text = "7516192768 bytes wanted, the daemons have 6442450944 left".to_owned();
    assert_eq!(reserved(7 * GIB, false), Err((Status::NoSpace, text)));
}

#[test]
fn a_quota_bounds_a_reservation_and_what_lies_beyond_it() {
    let mut config = config();
    config.quota = Quota { bytes: 3 * MIB, sessions: 2, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let conn = rig.connect(1, 1000);
    assert_eq!(rig.status(conn, setup(4 * MIB, false)), Status::Quota);
    let conn = rig.connect(1, 1000);
    assert!(matches!(rig.done(conn, setup(2 * MIB, false)), ClientReply::Ready(_)));
    rig.granted(conn, heap(1, 2 * MIB));
    rig.granted(conn, heap(2, MIB));
    assert_eq!(rig.refused(conn, heap(3, 4096)).text, "user 1000 needs 4096 bytes, quota leaves 0");
    // Another user's quota is another.
    let (other, _) = rig.session(1001);
    rig.granted(other, heap(1, 3 * MIB));
}

#[test]
fn a_refused_session_leaves_nothing_and_its_connection_ends() {
    let mut rig = Rig::new(1);
    let conn = rig.connect(1, 1000);
    rig.refused(conn, setup(4 * GIB, false));
    let last = rig.actions.last();
    assert!(matches!(last, Some(Action::CloseClient { conn: closed, .. }) if *closed == conn));
    assert_eq!(rig.ask(conn, ClientRequest::Stat), None);
    let snapshot = rig.dispatcher.snapshot();
    assert!(snapshot.sessions.is_empty() && snapshot.outstanding.is_empty());
}

#[test]
fn without_a_session_nothing_but_listings_is_answered() {
    let mut rig = Rig::new(1);
    let conn = rig.connect(1, 1000);
    assert_eq!(rig.status(conn, heap(1, 1)), Status::Closed);
    assert_eq!(rig.status(conn, ClientRequest::Disconnect), Status::Closed);
    let (conn, _) = rig.session(1000);
    assert_eq!(rig.status(conn, setup(0, false)), Status::Invalid);
    assert!(rig.ask(conn, ClientRequest::Stat).unwrap().is_ok());
}

#[test]
fn only_the_process_that_opened_a_session_takes_it_up_again() {
    let mut rig = Rig::new(1);
    let first = rig.connect(77, 1000);
    let ClientReply::Ready(ready) = rig.done(first, setup(0, false)) else { panic!() };
    let block = rig.granted(first, heap(1, 4096)).first.block;
    rig.event(Event::HungUp { conn: first });

    let attach =
        |guid| ClientRequest::Attach(Attach { session: ready.session, guid, openings: Vec::new() });
    let stranger = rig.connect(78, 1000);
    assert_eq!(rig.status(stranger, attach(guid(9))), Status::NotFound);
    assert_eq!(rig.status(stranger, attach(ready.guid)), Status::Denied);
    let again = rig.connect(77, 1000);
    assert!(matches!(rig.done(again, attach(ready.guid)), ClientReply::Ready(_)));
    // The same ticket gives the same block.
    assert_eq!(rig.granted(again, heap(1, 4096)).first.block, block);

    // Its pid is another process's by now, or nobody's: that one may know the GUID.
    let recycled = rig.connect(77, 1000);
    for started in [Some(6), None] {
        rig.started = started;
        assert_eq!(rig.status(recycled, attach(ready.guid)), Status::Denied);
    }
    rig.started = Some(5);

    // A newer connection of the process takes the session over.
    let newest = rig.connect(77, 1000);
    assert!(matches!(rig.done(newest, attach(ready.guid)), ClientReply::Ready(_)));
    assert_eq!(rig.ask(again, ClientRequest::Stat), None);
}

#[test]
fn a_session_ends_when_its_client_does_not_come_back_in_time() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    rig.granted(conn, heap(1, MIB));
    rig.event(Event::HungUp { conn });
    rig.wait(29_000);
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 1);
    rig.wait(2_000);
    assert!(rig.actions.contains(&Action::EndSession { session: ready.session }));
    let snapshot = rig.dispatcher.snapshot();
    assert!(snapshot.sessions.is_empty() && snapshot.blocks.is_empty());
    assert!(snapshot.charged.values().all(|charged| *charged == (0, 0)));
}

#[test]
fn more_requests_than_the_limit_are_refused_and_not_kept() {
    let mut config = config();
    config.limits.outstanding_max = 2;
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    rig.mood(1, super::rig::Mood::Waits);
    let (conn, _) = rig.session(1000);
    let first = rig.ask_later(conn, heap(1, 4096));
    rig.ask_later(conn, heap(2, 4096));
    let refusal = rig.refused(conn, heap(3, 4096));
    assert_eq!(refusal.text, "2 requests of this connection wait, limit 2");
    rig.obey(1);
    assert!(rig.answer(conn, first).is_some());
    assert!(rig.ask(conn, ClientRequest::Stat).unwrap().is_ok());
}

#[test]
fn a_hostile_frame_ends_that_session_alone() {
    let mut rig = Rig::new(1);
    let (good, _) = rig.session(1000);
    let (bad, ready) = rig.session(1000);
    rig.granted(bad, heap(1, MIB));
    rig.event(Event::Hostile { conn: bad, reason: "the body is not a message".into() });
    assert!(rig.actions.contains(&Action::EndSession { session: ready.session }));
    assert_eq!(rig.daemons[&1].destroyed.len(), 1);
    rig.granted(good, heap(1, MIB));
}

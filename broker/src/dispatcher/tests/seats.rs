//! Session objects of daemons, which write blocks of several copies by message.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Reach, Reached};
use dmce_abi::wire::daemon::{DaemonMessage, DaemonNotice, DaemonRequest};
use dmce_abi::wire::data::LinkId;
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::copies::{rig, with_copies};
use super::restart::{believed, expected};
use super::rig::{GIB, MIB, Rig, config, daemon_id, open, region, session_id};
use crate::dispatcher::{
    Action, BelievedSession, ClientConn, Event, FoundIntents, InspectId, Repair, Repaired,
    SessionRecord, Started,
};

const ENDED: u64 = u64::MAX;

/// Half of the first copy is written.
const FIRST: Progress = Progress::First { first: 1, undo: Undo::Absent };

fn asks(rig: &mut Rig, daemon: u32, left: Option<SessionId>) {
    rig.tell(daemon, 0, DaemonMessage::Notice(DaemonNotice::Unseated { left }));
}

/// The seats that daemons were told of, in their order.
fn seats(rig: &Rig) -> Vec<SessionId> {
    let told = rig.actions.iter().filter_map(|action| match action {
        Action::ToDaemon { request: DaemonRequest::Seat { session, .. }, .. } => Some(*session),
        _ => None,
    });
    told.collect()
}

fn seated(rig: &mut Rig, daemon: u32) -> SessionId {
    asks(rig, daemon, None);
    *seats(rig).last().expect("a seat")
}

/// What was published to a session, or done about it.
fn history(rig: &Rig, id: SessionId) -> Vec<(&'static str, u64)> {
    let what = |action: &Action| match action {
        Action::Publish { session, generation } if *session == id => Some(("says", *generation)),
        Action::ReadIntents { session, .. } if *session == id => Some(("read", 0)),
        Action::Repair(Repair { session, slot, .. }) if *session == id => {
            Some(("repair", (*slot).into()))
        }
        Action::ClearIntent { session, slot } if *session == id => Some(("clear", (*slot).into())),
        Action::AwaitIdle { session, .. } if *session == id => Some(("await", 0)),
        Action::EndSession { session } if *session == id => Some(("end", 0)),
        _ => None,
    };
    rig.actions.iter().filter_map(what).collect()
}

/// A client with a region of two copies.
fn two(daemons: u32) -> (Rig, ClientConn, BlockId) {
    let mut rig = rig(daemons);
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", MIB, 0o666), 2));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    rig.actions.clear();
    (rig, conn, opened.first.block)
}

/// A slot was writing to a block.
fn writes(rig: &mut Rig, seat: SessionId, block: BlockId) {
    let addr = rig.dispatcher.address(block);
    let claims = vec![(0, IntentClaim { addr, bytes: PAGE_BYTES, progress: FIRST })];
    rig.intents.insert(seat, FoundIntents { claims, ..FoundIntents::none() });
}

const REPAIRED: [(&str, u64); 5] =
    [("says", ENDED), ("read", 0), ("repair", 0), ("clear", 0), ("end", 0)];

#[test]
fn a_daemon_has_one_seat_and_another_when_it_leaves_that() {
    let (mut rig, _, block) = two(2);
    let seat = seated(&mut rig, 1);
    // Its answer and the question have crossed; or it speaks of another's.
    asks(&mut rig, 1, None);
    asks(&mut rig, 1, Some(session_id(999)));
    assert_eq!(seats(&rig), [seat]);
    let other = seated(&mut rig, 2);
    assert_ne!(other, seat);
    writes(&mut rig, seat, block);
    asks(&mut rig, 1, Some(seat));
    assert_eq!(history(&rig, seat), REPAIRED);
    assert_eq!(seats(&rig).len(), 3);
    assert!(history(&rig, other).is_empty());
    assert!(!rig.dispatcher.snapshot().sessions.contains_key(&seat), "it is no session");
}

/// Each of them is a session id, and an object.
#[test]
fn a_daemon_that_leaves_seat_after_seat_waits_until_one_is_repaired() {
    let (mut rig, _, block) = two(2);
    rig.repairs = None;
    let before = rig.dispatcher.snapshot().wrecks.len();
    let mut left = None;
    for _ in 0..20 {
        asks(&mut rig, 1, left);
        left = seats(&rig).last().copied();
        writes(&mut rig, left.unwrap(), block);
    }
    let given = seats(&rig);
    assert_eq!(given.len(), 4);
    assert_eq!(rig.dispatcher.snapshot().wrecks.len() - before, 4);
    let _ = rig.session(1000);
    let other = seated(&mut rig, 2);
    assert_eq!(seats(&rig).len(), 5, "the other daemon has left none");
    // The one that is repaired makes room for one.
    let repaired = Repaired::Done { lost: vec![] };
    rig.event(Event::Repaired { session: given[0], slot: 0, repaired: repaired.clone() });
    assert_eq!(history(&rig, given[0]), REPAIRED);
    let now = seats(&rig);
    assert_eq!(now.len(), 6);
    assert!(now[5] != other && !given[1..].contains(&now[5]));
    rig.event(Event::Repaired { session: given[1], slot: 0, repaired: repaired.clone() });
    assert_eq!(seats(&rig).len(), 6, "it has one");
    // Whose daemon is gone is not waited for any more.
    for _ in 0..2 {
        let left = seats(&rig).last().copied();
        writes(&mut rig, left.unwrap(), block);
        asks(&mut rig, 1, left);
    }
    assert_eq!(seats(&rig).len(), 7);
    rig.daemon_dies(1);
    rig.event(Event::Repaired { session: given[2], slot: 0, repaired });
    assert_eq!((history(&rig, given[2]), seats(&rig).len()), (REPAIRED.to_vec(), 7));
}

#[test]
fn what_a_daemon_left_is_repaired_when_its_connection_ends() {
    let (mut rig, _, block) = two(2);
    let seat = seated(&mut rig, 1);
    writes(&mut rig, seat, block);
    rig.daemon_dies(1);
    assert_eq!(history(&rig, seat), REPAIRED);
    rig.daemon(1, GIB);
    asks(&mut rig, 1, None);
    assert_eq!(seats(&rig).len(), 2);
}

/// Nobody was told of it.
#[test]
fn a_seat_that_cannot_be_made_leaves_nothing_and_is_asked_for_again() {
    let (mut rig, _, _) = two(2);
    rig.session_names_taken = u32::MAX;
    asks(&mut rig, 1, None);
    assert_eq!(seats(&rig), []);
    assert!(rig.actions.iter().any(|action| matches!(action, Action::EndSession { .. })));
    rig.session_names_taken = 0;
    asks(&mut rig, 1, None);
    assert_eq!(seats(&rig).len(), 1);
}

#[test]
fn seats_are_told_with_the_sessions_when_copies_are_others() {
    let (mut rig, _, block) = two(3);
    let seat = seated(&mut rig, 1);
    rig.actions.clear();
    rig.tell(2, 0, DaemonMessage::Notice(DaemonNotice::Damaged { block }));
    let looked = |action: &Action| matches!(action, Action::Inspect { .. });
    assert_eq!(rig.actions.iter().filter(|action| looked(action)).count(), 2);
    assert!(rig.actions.contains(&Action::InspectLocks { block }));
    assert!(history(&rig, seat).is_empty(), "nothing is decided yet");
    let (inspect, found) = (InspectId(u64::MAX), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(2), found });
    assert_eq!(history(&rig, seat), [("says", 1)]);
    let position = |wanted: fn(&Action) -> bool| rig.actions.iter().position(wanted).unwrap();
    let raised = position(|action| matches!(action, Action::RaiseEpoch { .. }));
    let said = position(|action| matches!(action, Action::Publish { generation: 1, .. }));
    assert!(said < raised, "who was not told would find the new headers' bytes elsewhere");
}

#[test]
fn a_lock_table_is_made_anew_when_no_daemon_uses_the_old_one() {
    let (mut rig, _, block) = two(2);
    let seat = seated(&mut rig, 2);
    rig.idles = false;
    rig.actions.clear();
    rig.event(Event::LocksInspected { block, found: None });
    assert_eq!(history(&rig, seat), [("says", 1), ("await", 0)]);
    let is_made =
        |rig: &Rig| rig.actions.iter().any(|action| matches!(action, Action::MakeLocks { .. }));
    let waited: Vec<_> = rig
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::AwaitIdle { session, block, epoch } => Some((*session, *block, *epoch)),
            _ => None,
        })
        .collect();
    for (session, block, epoch) in waited {
        if session != seat {
            rig.event(Event::Idle { session, block, epoch });
        }
    }
    assert!(!is_made(&rig), "the daemon may be in a write");
    rig.daemon_dies(2);
    assert!(is_made(&rig));
}

#[test]
fn a_broker_that_starts_believes_in_no_seat_and_repairs_what_it_left() {
    for lives in [true, false] {
        let BelievedSession { record, generation, grants, .. } = believed(0, Vec::new());
        let record = SessionRecord { pointer_bits: SessionRecord::OF_DAEMON, ..record };
        let sessions = vec![BelievedSession { record, generation, grants, lives }];
        let daemons = vec![expected(1, &[])];
        let started = Started { sessions, daemons, ..Started::default() };
        let mut rig = Rig::started(config(), started);
        let seat = session_id(4);
        assert_eq!(history(&rig, seat), [("says", ENDED)], "{lives}");
        assert!(rig.dispatcher.snapshot().sessions.is_empty());
        rig.daemon(1, GIB);
        assert_eq!(history(&rig, seat)[1..], [("read", 0), ("end", 0)]);
    }
}

#[test]
fn while_the_daemon_of_the_primary_is_away_that_of_another_copy_is_asked() {
    let (mut rig, conn, block) = two(2);
    let broken = LinkId(0);
    let reach = ClientRequest::Reach(Reach { block, writable: true, direct: false, broken });
    rig.daemon_dies(1);
    let reply = rig.done(conn, reach.clone());
    assert!(matches!(reply, ClientReply::Reached(Reached { .. })), "{reply:?}");
    rig.daemon_dies(2);
    assert_eq!(rig.status(conn, reach), Status::Busy);
}

//! The same of sessions that have ended while there was no broker.

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::admin::CopyState;
use dmce_abi::wire::client::ClientReply;
use dmce_abi::wire::daemon::HeldBlock;
use dmce_shm::session::pin::{PinClaim, PinnedRange};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::super::reported_copies::held;
use super::super::restart::{believed, read};
use super::super::rig::{GIB, MIB, Rig, config, daemon_id, session_id, setup};
use super::super::syncing::{copies, raised};
use super::FIRST;
use crate::dispatcher::{
    Action, Event, FoundContent, FoundDaemon, FoundIntents, FoundTable, Grant, Repair, Repaired,
    Rights, Started,
};

/// The two copies of a region.
fn regions_held() -> [(u32, HeldBlock); 2] {
    [1, 2].map(|daemon| (daemon, held(daemon, &[1, 2], 1, MIB)))
}

/// A region of two copies, of which both daemons' headers are read when a broker starts.
fn found_dead(grants: Vec<Grant>) -> Started {
    let daemons = regions_held().map(|(daemon, held)| FoundDaemon {
        daemon: daemon_id(daemon),
        blocks: vec![held.description.block],
        damaged: Vec::new(),
        content: FoundContent::Expected,
    });
    let mut dead = believed(0, grants);
    dead.lives = false;
    let tables = regions_held().map(|(_, held)| {
        let (block, guid) = (held.description.block, Some(held.description.guid));
        FoundTable { block, guid, bytes: MIB }
    });
    let tables = tables[..1].to_vec();
    Started { sessions: vec![dead], daemons: daemons.into(), tables, ..Started::default() }
}

fn found_by_a_broker(rights: Rights) -> Rig {
    let block = regions_held()[0].1.description.block;
    let mut config = config();
    config.copies_max = 3;
    Rig::started(config, found_dead(vec![Grant { place: 3, block, rights }]))
}

#[test]
fn a_broker_that_comes_back_repairs_the_dead_before_it_serves_others() {
    let mut rig = found_by_a_broker(Rights::ALL);
    rig.repairs = None;
    let [(_, held), _] = regions_held();
    let claim = IntentClaim {
        addr: rig.dispatcher.address(held.description.block),
        bytes: 8,
        progress: FIRST,
    };
    let found = FoundIntents { claims: vec![(7, claim)], ..FoundIntents::none() };
    rig.intents.insert(session_id(4), found);
    let (conn, number) = {
        let conn = rig.connect(900, 0);
        (conn, rig.ask_later(conn, setup(0, false)))
    };
    for (daemon, held) in regions_held() {
        let is_read = |action: &Action| matches!(action, Action::ReadIntents { .. });
        assert!(!rig.actions.iter().any(is_read), "the tables are not complete");
        let headers = read(vec![held]);
        rig.event(Event::LockFree { daemon: daemon_id(daemon), headers });
    }
    assert!(rig.answer(conn, number).is_none());
    let is_end = |action: &Action| *action == Action::EndSession { session: session_id(4) };
    assert!(!rig.actions.iter().any(is_end));
    rig.repairs = Some(Repaired::Done { lost: vec![] });
    let repaired = Repaired::Done { lost: vec![] };
    rig.event(Event::Repaired { session: session_id(4), slot: 7, repaired });
    assert!(rig.actions.iter().any(is_end));
    let (reply, _) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Ready(ready)) = reply else { panic!("{reply:?}") };
    assert_ne!(ready.session, session_id(4));
}

/// It may be gibibytes, and who has the region open goes on meanwhile under any broker.
#[test]
fn a_broker_that_comes_back_keeps_nobody_waiting_for_what_pointers_of_the_dead_stored() {
    let mut rig = found_by_a_broker(Rights::ALL);
    rig.repairs = None;
    let [(_, held), _] = regions_held();
    let addr = rig.dispatcher.address(held.description.block);
    let range = PinnedRange { addr, bytes: MIB, writable: true };
    let pins = vec![PinClaim { place: 0, range, is_left: false }];
    let claim = IntentClaim { addr, bytes: 8, progress: FIRST };
    let found = FoundIntents { claims: vec![(7, claim)], pins, ..FoundIntents::none() };
    rig.intents.insert(session_id(4), found);
    let conn = rig.connect(900, 0);
    let number = rig.ask_later(conn, setup(0, false));
    for (daemon, held) in regions_held() {
        let headers = read(vec![held]);
        rig.event(Event::LockFree { daemon: daemon_id(daemon), headers });
    }
    assert!(rig.answer(conn, number).is_none(), "a slot is repaired first");
    let done = |slot| Event::Repaired {
        session: session_id(4),
        slot,
        repaired: Repaired::Done { lost: vec![] },
    };
    rig.event(done(7));
    assert!(rig.answer(conn, number).is_some());
    let carries = |rig: &Rig| {
        let is_carry =
            |action: &&Action| matches!(action, Action::Repair(Repair { carried: Some(_), .. }));
        rig.actions.iter().filter(is_carry).count()
    };
    let is_end = |action: &Action| *action == Action::EndSession { session: session_id(4) };
    for parts in 1..=16 {
        assert!(carries(&rig) == parts && !rig.actions.iter().any(is_end));
        rig.event(done(0));
    }
    assert!(rig.actions.iter().any(is_end));
}

/// What waits for its block does not keep others from the rest.
#[test]
fn a_broker_that_comes_back_serves_others_while_a_block_is_decided_on() {
    let mut rig = found_by_a_broker(Rights::ALL);
    rig.rewrites = false;
    let [(_, held), _] = regions_held();
    let claim = IntentClaim {
        addr: rig.dispatcher.address(held.description.block),
        bytes: 8,
        progress: FIRST,
    };
    let found = FoundIntents { claims: vec![(7, claim)], ..FoundIntents::none() };
    rig.intents.insert(session_id(4), found);
    // The other daemon does not have its copy.
    for (daemon, held) in [(1, vec![held]), (2, vec![])] {
        let headers = read(held);
        rig.event(Event::LockFree { daemon: daemon_id(daemon), headers });
    }
    assert!(rig.dispatcher.snapshot().wrecks.contains(&session_id(4)));
    let conn = rig.connect(900, 0);
    assert!(matches!(rig.done(conn, setup(0, false)), ClientReply::Ready(_)));
}

#[test]
fn the_dead_who_could_write_nothing_are_not_kept() {
    let rig = found_by_a_broker(Rights { read: true, write: false });
    assert!(rig.actions.contains(&Action::EndSession { session: session_id(4) }));
    // Nor are those whose region is gone, when that is known.
    let mut rig = found_by_a_broker(Rights::ALL);
    assert!(rig.dispatcher.snapshot().wrecks.contains(&session_id(4)));
    for daemon in [1, 2] {
        let headers = read(vec![]);
        rig.event(Event::LockFree { daemon: daemon_id(daemon), headers });
    }
    let is_end = |action: &Action| *action == Action::EndSession { session: session_id(4) };
    let revoked = Action::RevokeGrant { session: session_id(4), place: 3 };
    let of = |is: &dyn Fn(&Action) -> bool| rig.actions.iter().position(is);
    assert!(of(&|action| *action == revoked) < of(&is_end) && of(&is_end).is_some());
}

/// The broker before this one had the copy of daemon 3 take the place of that of daemon 1, and died
/// with a client that had yet to hear of it.
#[test]
fn what_the_dead_wrote_first_to_a_copy_that_was_replaced_is_made_whole_from_there() {
    let mut old = held(1, &[1, 2], 7, MIB);
    let mut other = held(2, &[1, 2], 7, MIB);
    for held in [&mut old, &mut other] {
        held.description.membership.syncing = Some(daemon_id(3));
    }
    let mut new = held(3, &[3, 2], 8, MIB);
    new.description.membership.half = old.description.membership.half;
    new.description.membership.since = 7;
    let all = [(1, old), (2, other), (3, new)];
    let (block, guid) = (all[0].1.description.block, Some(all[0].1.description.guid));
    let daemons = [1, 2, 3].map(|daemon| FoundDaemon {
        daemon: daemon_id(daemon),
        blocks: vec![block],
        damaged: Vec::new(),
        content: FoundContent::Expected,
    });
    let mut dead = believed(0, vec![Grant { place: 3, block, rights: Rights::ALL }]);
    dead.lives = false;
    let tables = vec![FoundTable { block, guid, bytes: MIB }];
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 1);
    let started =
        Started { sessions: vec![dead], daemons: daemons.into(), tables, ..Started::default() };
    let mut rig = Rig::started(config, started);
    rig.repairs = None;
    let progress = Progress::Others { first: 1, undo: Undo::Absent };
    let claim = IntentClaim { addr: rig.dispatcher.address(block), bytes: PAGE_BYTES, progress };
    let found = FoundIntents { claims: vec![(0, claim)], ..FoundIntents::none() };
    rig.intents.insert(session_id(4), found);
    for (daemon, held) in all {
        rig.daemon_with(daemon, GIB, vec![held]);
    }
    let [headers] = &raised(&rig)[..] else { panic!("{:?}", raised(&rig)) };
    assert!(headers.iter().map(|(daemon, _)| *daemon).eq([3, 2]), "{headers:?}");
    assert!(headers.iter().all(|(_, said)| said.syncing.is_none()), "{headers:?}");
    let repair = rig.actions.iter().find_map(|action| match action {
        Action::Repair(Repair { copies, slot, .. }) => Some((copies.clone(), *slot)),
        _ => None,
    });
    let (from, slot) = repair.expect("what the dead left is repaired");
    assert_eq!(from, [3, 2, 1].map(daemon_id));
    assert_eq!(rig.daemons[&1].destroyed, []);
    let repaired = Repaired::Done { lost: Vec::new() };
    rig.event(Event::Repaired { session: session_id(4), slot, repaired });
    assert_eq!(rig.daemons[&1].destroyed, [block]);
    assert_eq!(copies(&mut rig, block), [(3, CopyState::Good), (2, CopyState::Good)]);
}

//! Copies that move: who is told when, who pays, and what holds one back.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Half, Membership, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, CopyState, HeldBy};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Delete, Granted, Grow, Map, Unmap};

use super::copies::{rig_that_syncs, with_copies};
use super::rig::{GIB, MIB, Mood, Rig, config, daemon_id, heap, open, region, session_id};
use super::syncing::{copies, fetched, idle, raised, synced, take, two};
use crate::dispatcher::{Action, ClientConn, Event, Made, Quota, RequestId, Started};

const fn migrate(block: BlockId, from: u32, to: u32) -> ClientRequest {
    ClientRequest::Admin(AdminRequest::Migrate { block: block.get(), from, to })
}

/// Root asks for a copy to move.
fn ask(rig: &mut Rig, request: ClientRequest) -> (ClientConn, RequestId) {
    let root = rig.connect(1, 0);
    (root, rig.ask_later(root, request))
}

fn answer(
    rig: &mut Rig,
    (conn, number): (ClientConn, RequestId),
) -> Option<Result<(u32, u32), Refusal>> {
    let (reply, _) = rig.answer(conn, number)?;
    Some(reply.map(|reply| match reply {
        ClientReply::Admin(AdminReply::Moved { from, to, .. }) => (from, to),
        other => panic!("{other:?}"),
    }))
}

fn good(rig: &mut Rig, block: BlockId) -> Vec<u32> {
    let all = copies(rig, block);
    all.iter().filter(|(_, state)| *state == CopyState::Good).map(|(id, _)| *id).collect()
}

fn charged_on(rig: &Rig, daemon: u32) -> u64 {
    rig.dispatcher.snapshot().charged[&daemon_id(daemon)].0
}

fn charged(rig: &Rig) -> [u64; 3] {
    [1, 2, 3].map(|id| charged_on(rig, id))
}

#[test]
fn a_primary_moves_when_its_copy_is_there_and_no_pointer_is() {
    let (mut rig, conn, granted) = two();
    let (block, committed) = (granted.first.block, granted.first.committed);
    let asked = ask(&mut rig, migrate(block, 0, 3));
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
    assert_eq!(copies(&mut rig, block), [(3, CopyState::Good), (2, CopyState::Good)]);
    assert_eq!(rig.daemons[&1].destroyed, [block]);
    assert_eq!(charged(&rig), [0, committed, committed]);
    let said: Vec<_> = raised(&rig)
        .into_iter()
        .map(|headers| {
            let of = |(id, said): (u32, Membership)| {
                let daemon = daemon_id(id);
                let good: Vec<u32> = said.daemons(daemon).iter().map(|of| of.get()).collect();
                (id, good, said.syncing(daemon).map(DaemonId::get))
            };
            headers.into_iter().map(of).collect::<Vec<_>>()
        })
        .collect();
    let with_it = [3, 1, 2].map(|id| (id, vec![1, 2], Some(3))).to_vec();
    let without = [3, 2].map(|id| (id, vec![3, 2], None)).to_vec();
    // The second time no pointer is given any more.
    assert_eq!(said, [with_it.clone(), with_it, without]);
    let [description] = &rig.daemons[&3].created[..] else { panic!("it is made once") };
    assert_eq!(description.membership.half, Half::PRIMARY);
    let info = fetched(&mut rig, conn, block);
    assert!(info.daemons().eq([3, 2].map(daemon_id)) && !info.is_moving);
}

#[test]
fn another_copy_than_the_primary_moves_whoever_has_pointers() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.pointers = (1..10).map(session_id).collect();
    map(&mut rig, conn, &granted);
    let asked = ask(&mut rig, migrate(block, 2, 3));
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((2, 3))));
    assert_eq!(good(&mut rig, block), [1, 3]);
    assert_eq!(raised(&rig).len(), 2);
    assert_eq!(rig.daemons[&3].created[0].membership.half, Half::MIRROR);
}

/// Says that a client has a pointer to the first page.
fn map(rig: &mut Rig, conn: ClientConn, granted: &Granted) {
    let addr = u64::from(granted.first.block.get()) << config().layout.cell_bits();
    let map = Map { addr, bytes: 4096, os_address: 0x1000, writable: true };
    rig.done(conn, ClientRequest::Map(map));
}

#[test]
fn a_pointer_holds_back_a_primary_until_it_is_given_back() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    map(&mut rig, conn, &granted);
    let asked = ask(&mut rig, migrate(block, 0, 3));
    rig.wait(5000);
    // All is copied, nobody asks for pointers in vain, and the place is another's.
    assert_eq!((answer(&mut rig, asked), raised(&rig).len()), (None, 1));
    assert!(!fetched(&mut rig, conn, block).is_moving);
    rig.done(conn, ClientRequest::Unmap(Unmap { os_address: 0x1000 }));
    rig.wait(3000);
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
}

#[test]
fn a_pointer_that_nobody_has_told_of_is_found_and_pointers_are_given_again() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.pointers = (1..10).map(session_id).collect();
    let asked = ask(&mut rig, migrate(block, 0, 3));
    rig.wait(1000);
    assert_eq!(good(&mut rig, block), [1, 2]);
    assert!(raised(&rig).len() > 2, "it is tried again");
    assert!(!fetched(&mut rig, conn, block).is_moving);
    rig.pointers.clear();
    rig.wait(3000);
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
}

#[test]
fn who_does_not_come_to_rest_keeps_others_from_pointers_for_a_moment() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    let asked = ask(&mut rig, migrate(block, 0, 3));
    idle(&mut rig);
    let mut seen = Vec::new();
    for _ in 0..20 {
        seen.push(fetched(&mut rig, conn, block).is_moving);
        rig.wait(100);
    }
    assert!(seen[0] && seen.contains(&false) && seen[1..].contains(&true), "{seen:?}");
    assert_eq!(good(&mut rig, block), [1, 2]);
    while !fetched(&mut rig, conn, block).is_moving {
        rig.wait(100);
    }
    // It comes to rest, and the old copy goes when it does so again.
    for moved in [&[3, 2], &[3, 2]] {
        assert_eq!(answer(&mut rig, asked), None);
        idle(&mut rig);
        assert_eq!(good(&mut rig, block), moved);
    }
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
    assert_eq!(rig.daemons[&1].destroyed, [block]);
}

#[test]
fn a_move_costs_nobody_anything() {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    let mut quota = Quota { bytes: 5 * MIB, blocks: 2, ..Quota::UNLIMITED };
    quota.sessions = 1;
    config.quota = quota;
    let mut rig = Rig::started(config, Started::default());
    (1..=3).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    let block = rig.granted(conn, with_copies(heap(1, 2 * MIB), 2)).first.block;
    for (from, to) in [(1, 3), (2, 1), (3, 2)] {
        let asked = ask(&mut rig, migrate(block, from, to));
        rig.wait(100);
        assert_eq!(answer(&mut rig, asked), Some(Ok((from, to))));
    }
    assert_eq!(charged(&rig), [2 * MIB, 2 * MIB, 0]);
    assert_eq!(rig.status(conn, heap(2, 4096)), Status::Quota);
}

#[test]
fn what_is_reserved_moves_with_what_it_pays_for() {
    let mut rig = rig_that_syncs(3, 2);
    let conn = rig.connect(9, 1000);
    let setup = with_copies(super::rig::setup(4 * MIB, false), 2);
    let reply = rig.done(conn, setup);
    assert!(matches!(reply, ClientReply::Ready(_)), "{reply:?}");
    let granted = rig.granted(conn, with_copies(heap(1, 2 * MIB), 2));
    let of = |rig: &Rig| [1, 2, 3].map(|id| rig.dispatcher.snapshot().charged[&daemon_id(id)]);
    let before = of(&rig);
    let from = (1..=3).find(|id| before[*id as usize - 1].0 > 0).unwrap();
    let to = (1..=3).find(|id| before[*id as usize - 1].0 == 0).unwrap();
    let asked = ask(&mut rig, migrate(granted.first.block, from, to));
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((from, to))));
    let after = of(&rig);
    let sum = |of: [(u64, u64); 3]| of.iter().fold((0, 0), |all, of| (all.0 + of.0, all.1 + of.1));
    assert_eq!((sum(after), after[from as usize - 1].0), (sum(before), 0));
}

#[test]
fn a_copy_that_is_lost_while_it_moves_is_made_where_it_was_to_be() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Waits);
    let asked = ask(&mut rig, migrate(block, 0, 3));
    rig.wait(100);
    rig.obey(3);
    take(&mut rig, 1, block);
    rig.obey(3);
    rig.wait(100);
    rig.obey(3);
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
    assert_eq!(good(&mut rig, block), [2, 3]);
    let committed = granted.first.committed;
    assert_eq!(charged(&rig), [0, committed, committed]);
    rig.done(conn, ClientRequest::Stat);
}

#[test]
fn a_move_whose_new_copy_is_lost_leaves_all_as_it_was() {
    let (mut rig, _, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    let asked = ask(&mut rig, migrate(block, 0, 3));
    rig.daemon_dies(3);
    let refusal = answer(&mut rig, asked).unwrap().unwrap_err();
    assert!(refusal.text.contains("does not answer"), "{}", refusal.text);
    assert_eq!(good(&mut rig, block), [1, 2]);
    assert_eq!(synced(&rig), []);
}

#[test]
fn a_copy_that_leaves_goes_with_its_daemon_and_stays_if_all_others_are_lost() {
    for dies in [true, false] {
        let (mut rig, _, granted) = two();
        let block = granted.first.block;
        rig.idles = false;
        let asked = ask(&mut rig, migrate(block, 0, 3));
        idle(&mut rig);
        idle(&mut rig);
        assert_eq!((good(&mut rig, block), answer(&mut rig, asked)), (vec![3, 2], None));
        if dies {
            // Until the others were told, somebody may read it.
            rig.daemon_dies(1);
            assert_eq!(answer(&mut rig, asked), None);
            idle(&mut rig);
            let removes = |action: &Action| matches!(action, Action::RemoveHeader { .. });
            assert!(rig.actions.iter().any(removes));
            assert_eq!(copies(&mut rig, block).len(), 2);
            assert_eq!(answer(&mut rig, asked), Some(Ok((1, 3))));
        } else {
            take(&mut rig, 2, block);
            take(&mut rig, 3, block);
            assert!(copies(&mut rig, block).contains(&(1, CopyState::Stale)));
            assert!(answer(&mut rig, asked).unwrap().is_err());
        }
    }
}

#[test]
fn what_is_wished_and_not_begun_ends_with_its_block() {
    let mut rig = rig_that_syncs(3, 1);
    let (conn, _) = rig.session(1000);
    let [one, other] = [1, 2].map(|ticket| rig.granted(conn, heap(ticket, MIB)).first.block);
    rig.mood(3, Mood::Waits);
    let first = ask(&mut rig, migrate(one, 0, 3));
    let second = ask(&mut rig, migrate(other, 0, 3));
    assert_eq!(rig.daemons[&3].created.len(), 1);
    let daemon = good(&mut rig, other)[0];
    take(&mut rig, daemon, other);
    assert!(answer(&mut rig, second).unwrap().is_err());
    assert_eq!(answer(&mut rig, first), None);
}

#[test]
fn what_moves_to_a_daemon_that_is_drained_stays() {
    let (mut rig, _, granted) = two();
    rig.idles = false;
    let asked = ask(&mut rig, migrate(granted.first.block, 0, 3));
    drain(&mut rig, 3, true);
    let refusal = answer(&mut rig, asked).unwrap().unwrap_err();
    assert!(refusal.text.contains("is drained"), "{}", refusal.text);
    assert_eq!(good(&mut rig, granted.first.block), [1, 2]);
}

#[test]
fn who_asked_and_is_gone_moves_nothing() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    map(&mut rig, conn, &granted);
    let (root, _) = ask(&mut rig, migrate(block, 0, 3));
    rig.wait(1000);
    assert!(copies(&mut rig, block).contains(&(3, CopyState::Syncing)));
    rig.event(Event::HungUp { conn: root });
    rig.wait(1000);
    assert_eq!(copies(&mut rig, block), [(1, CopyState::Good), (2, CopyState::Good)]);
    assert_eq!(rig.daemons[&3].destroyed, [block]);
}

#[test]
fn what_cannot_move_is_refused() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.daemon(4, MIB);
    rig.daemon(5, GIB);
    rig.daemon_dies(5);
    let other = BlockId::try_from(block.get() + 1).unwrap();
    let root = rig.connect(1, 0);
    for (request, status) in [
        (migrate(other, 0, 3), Status::NotFound),
        (migrate(block, 3, 1), Status::NotFound),
        (migrate(block, 0, 9), Status::NotFound),
        (migrate(block, 0, 0), Status::NotFound),
        (migrate(block, 0, 2), Status::Exists),
        (migrate(block, 0, 1), Status::Exists),
        (migrate(block, 0, 4), Status::NoSpace),
        (migrate(block, 0, 5), Status::NoSpace),
    ] {
        assert_eq!(rig.status(root, request.clone()), status, "{request:?}");
    }
    assert_eq!(rig.status(conn, migrate(block, 0, 3)), Status::Denied);
    rig.mood(3, Mood::Waits);
    let first = ask(&mut rig, migrate(block, 0, 3));
    assert_eq!(rig.status(root, migrate(block, 0, 3)), Status::Busy);
    // What its owner gives up moves nowhere.
    let (addr, guid) = (u64::from(block.get()) << config().layout.cell_bits(), granted.first.guid);
    rig.done(conn, ClientRequest::Delete(Delete { addr, guid }));
    let refusal = answer(&mut rig, first).unwrap().unwrap_err();
    assert!(refusal.text.contains("given it up"), "{}", refusal.text);
}

/// Who was waited for until now.
fn awaited(rig: &Rig) -> Vec<(SessionId, BlockId, u64)> {
    let all = rig.actions.iter().filter_map(|action| match action {
        Action::AwaitIdle { session, block, epoch } => Some((*session, *block, *epoch)),
        _ => None,
    });
    all.collect()
}

#[test]
fn a_region_is_told_of_by_all_who_have_it_open() {
    let mut rig = rig_that_syncs(3, 2);
    let (writer, _) = rig.session(1000);
    rig.done(writer, with_copies(region("r", 2 * MIB, 0o644), 2));
    let ClientReply::Opened(opened) = rig.done(writer, open(1, "r", true)) else { panic!() };
    let block = opened.first.block;
    let (reader, _) = rig.session(1000);
    rig.done(reader, open(1, "r", false));
    rig.idles = false;
    rig.actions.clear();
    let asked = ask(&mut rig, migrate(block, 0, 3));
    let from = opened.first.daemons().next().unwrap().get();
    let to = 3;
    // Who reads does not matter to who writes a copy more; pointers and a copy that goes are all's.
    let mut seen = 0;
    for sessions in [1, 2, 2] {
        let all = awaited(&rig);
        assert_eq!(all.len() - seen, sessions, "{all:?}");
        for (session, block, epoch) in all[seen..].iter().copied() {
            rig.event(Event::Idle { session, block, epoch });
        }
        seen = all.len();
    }
    assert_eq!(answer(&mut rig, asked), Some(Ok((from, to))));
}

/// A client with a block of one copy on daemon 1, and two daemons more.
fn one() -> (Rig, ClientConn, Granted) {
    let mut rig = rig_that_syncs(3, 2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, heap(1, 2 * MIB + 4096));
    rig.actions.clear();
    (rig, conn, granted)
}

/// Whether the lock table of a block is there, as far as anybody was asked for it.
fn tables(rig: &Rig) -> (usize, usize) {
    let count = |is: fn(&Action) -> bool| rig.actions.iter().filter(|of| is(of)).count();
    let made = count(|action| matches!(action, Action::MakeLocks { .. }));
    (made, count(|action| matches!(action, Action::RemoveLocks { .. })))
}

#[test]
fn an_only_copy_moves_under_a_lock_table_that_it_has_no_longer_than_that() {
    let (mut rig, conn, granted) = one();
    let block = granted.first.block;
    assert!(!fetched(&mut rig, conn, block).has_locks);
    rig.idles = false;
    let asked = ask(&mut rig, migrate(block, 0, 2));
    // Told of the copy, of pointers, of its place, and that nobody takes locks any more.
    for (daemons, syncing, has_locks) in
        [(1, Some(2), true), (1, Some(2), true), (2, None, true), (2, None, false)]
    {
        let info = fetched(&mut rig, conn, block);
        let found = (info.daemons().next(), info.syncing.map(|copy| copy.daemon), info.has_locks);
        assert_eq!(found, (Some(daemon_id(daemons)), syncing.map(daemon_id), has_locks));
        assert_eq!(tables(&rig), (1, 0));
        idle(&mut rig);
    }
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 2))));
    assert_eq!((tables(&rig), &rig.daemons[&1].destroyed[..]), ((1, 1), &[block][..]));
    let said = raised(&rig);
    let locked: Vec<bool> = said.iter().map(|headers| headers[0].1.locked).collect();
    assert_eq!(locked, [true, true, true, false]);
    let committed = granted.first.committed;
    assert_eq!(charged(&rig), [0, committed, 0]);
}

#[test]
fn an_only_copy_that_does_not_move_after_all_has_no_lock_table() {
    // There is no room for the table.
    let (mut rig, conn, granted) = one();
    let block = granted.first.block;
    rig.makes_locks = Some(Made::Unusable { reason: "full".to_owned() });
    let asked = ask(&mut rig, migrate(block, 0, 2));
    assert!(answer(&mut rig, asked).unwrap().unwrap_err().text.contains("full"));
    assert_eq!(tables(&rig), (1, 1));
    // The daemon refuses.
    rig.makes_locks = Some(Made::Whole);
    rig.mood(2, Mood::Refuses);
    let asked = ask(&mut rig, migrate(block, 0, 2));
    rig.wait(100);
    assert!(answer(&mut rig, asked).unwrap().is_err());
    assert_eq!(tables(&rig), (2, 2));
    // It is lost over it, after it was told.
    rig.mood(2, Mood::Waits);
    let asked = ask(&mut rig, migrate(block, 0, 2));
    rig.obey(2);
    assert!(fetched(&mut rig, conn, block).has_locks);
    take(&mut rig, 2, block);
    rig.obey(2);
    rig.wait(100);
    assert!(answer(&mut rig, asked).unwrap().is_err());
    assert_eq!((tables(&rig), good(&mut rig, block)), ((3, 3), vec![1]));
    assert!(!fetched(&mut rig, conn, block).has_locks);
}

#[test]
fn an_only_copy_grows_whatever_becomes_of_its_move() {
    let (mut rig, conn, granted) = one();
    let block = granted.first.block;
    let grow = |rig: &mut Rig, committed| {
        let grown = rig.done(conn, ClientRequest::Grow(Grow { block, committed }));
        assert_eq!(grown, ClientReply::Grown { committed });
    };
    // Before the table is there, that nobody uses.
    rig.makes_locks = None;
    let asked = ask(&mut rig, migrate(block, 0, 2));
    grow(&mut rig, 3 * MIB);
    rig.makes_locks = Some(Made::Whole);
    let made = rig.actions.iter().find_map(|action| match action {
        Action::MakeLocks { epoch, .. } => Some(*epoch),
        _ => None,
    });
    rig.event(Event::LocksMade { block, epoch: made.unwrap(), made: Made::Whole });
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((1, 2))));
    assert_eq!(tables(&rig), (2, 2), "it was too short");
    grow(&mut rig, 4 * MIB);
    assert_eq!(charged(&rig), [0, 4 * MIB, 0]);
}

fn drain(rig: &mut Rig, daemon: u32, is_draining: bool) {
    let root = rig.connect(1, 0);
    let request = ClientRequest::Admin(AdminRequest::Drain { daemon, is_draining });
    let draining = ClientReply::Admin(AdminReply::Draining { is_draining });
    assert_eq!(rig.done(root, request), draining);
}

#[test]
fn a_daemon_that_is_drained_has_nothing_in_the_end_and_gets_nothing() {
    let mut rig = rig_that_syncs(3, 2);
    let (conn, _) = rig.session(1000);
    for ticket in 1..=9 {
        let copies = 1 + u32::try_from(ticket % 2).unwrap();
        rig.granted(conn, with_copies(heap(ticket, MIB), copies));
    }
    assert!(charged(&rig)[1] > 0);
    drain(&mut rig, 2, true);
    rig.wait(1000);
    assert_eq!((charged(&rig)[1], charged(&rig).iter().sum::<u64>()), (0, 14 * MIB));
    rig.granted(conn, with_copies(heap(20, MIB), 2));
    assert_eq!(rig.status(conn, with_copies(heap(21, MIB), 3)), Status::NoSpace);
    assert_eq!(charged(&rig)[1], 0);
    let root = rig.connect(1, 0);
    assert_eq!(rig.status(root, migrate(BlockId::try_from(1).unwrap(), 0, 2)), Status::NoSpace);
    drain(&mut rig, 2, false);
    rig.granted(conn, with_copies(heap(22, MIB), 3));
    assert_eq!(charged(&rig)[1], MIB);
    let remembered = rig.actions.iter().filter_map(|action| match action {
        Action::RememberDrain { daemon, is_draining } => Some((daemon.get(), *is_draining)),
        _ => None,
    });
    assert!(remembered.eq([(2, true), (2, false)]));
}

#[test]
fn a_drain_begins_a_few_at_a_time_and_what_cannot_move_stays() {
    let mut config = config();
    config.syncs_max = 2;
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, 70 * MIB));
    let (conn, _) = rig.session(1000);
    let of: Vec<BlockId> =
        (1..=20).map(|ticket| rig.granted(conn, heap(ticket, MIB)).first.block).collect();
    // One has too much for what is left of the other.
    rig.granted(conn, heap(1000, 40 * MIB));
    rig.granted(conn, heap(1001, 40 * MIB));
    rig.idles = false;
    rig.actions.clear();
    drain(&mut rig, 1, true);
    let made = |rig: &Rig| tables(rig).0;
    assert_eq!(made(&rig), 2, "no more tables than copies that are made");
    rig.idles = true;
    for (session, block, epoch) in awaited(&rig) {
        rig.event(Event::Idle { session, block, epoch });
    }
    for _ in 0..20 {
        rig.wait(100);
    }
    let left: Vec<BlockId> = of.iter().copied().filter(|id| good(&mut rig, *id) == [1]).collect();
    assert_eq!(left, []);
    assert_eq!(charged_on(&rig, 1), 40 * MIB);
    assert_eq!(tables(&rig), (10, 10));
    // When there is room it goes.
    rig.daemon(3, 3 * GIB);
    rig.wait(1000);
    assert_eq!(charged_on(&rig, 1), 0);
}

#[test]
fn a_pointer_keeps_a_block_from_being_drained_and_is_named() {
    let (mut rig, conn, granted) = one();
    let block = granted.first.block;
    map(&mut rig, conn, &granted);
    drain(&mut rig, 1, true);
    rig.wait(1000);
    assert_eq!((copies(&mut rig, block).len(), charged(&rig)[1..].iter().sum::<u64>()), (1, 0));
    let root = rig.connect(1, 0);
    let reply =
        rig.done(root, ClientRequest::Admin(AdminRequest::Blocks { after: block.get() - 1 }));
    let ClientReply::Admin(AdminReply::Blocks { rows, .. }) = reply else { panic!("{reply:?}") };
    let by: Vec<HeldBy> = rows[0].held_by.iter().map(|holder| holder.by).collect();
    assert_eq!(by, [HeldBy::Pointer]);
    rig.done(conn, ClientRequest::Unmap(Unmap { os_address: 0x1000 }));
    rig.wait(1000);
    assert_eq!(good(&mut rig, block).len(), 1);
    assert_eq!(charged(&rig)[0], 0);
}

#[test]
fn what_is_reserved_on_a_daemon_that_is_drained_is_elsewhere() {
    let mut rig = rig_that_syncs(3, 2);
    let conn = rig.connect(9, 1000);
    assert!(matches!(rig.done(conn, super::rig::setup(64 * MIB, false)), ClientReply::Ready(_)));
    let of = |rig: &Rig| [1, 2, 3].map(|id| rig.dispatcher.snapshot().charged[&daemon_id(id)].1);
    let on = (1..=3).find(|id| of(&rig)[*id as usize - 1] > 0).unwrap();
    drain(&mut rig, on, true);
    assert_eq!((of(&rig)[on as usize - 1], of(&rig).iter().sum::<u64>()), (0, 64 * MIB));
    rig.granted(conn, heap(1, 64 * MIB));
    assert_eq!(of(&rig), [0; 3]);
}

#[test]
fn a_drain_is_gone_on_with_by_the_next_broker() {
    let draining = [daemon_id(2)].into();
    let mut rig = Rig::started(config(), Started { draining, ..Started::default() });
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    for ticket in 1..=4 {
        rig.granted(conn, heap(ticket, MIB));
    }
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(2)].0, 0);
}

#[test]
fn copies_change_places_where_there_is_no_room() {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, 4 * MIB));
    let (conn, _) = rig.session(1000);
    let one = rig.granted(conn, heap(1, 4 * MIB)).first.block;
    let other = rig.granted(conn, heap(2, 3 * MIB)).first.block;
    assert_eq!((good(&mut rig, one), good(&mut rig, other)), (vec![1], vec![2]));
    let root = rig.connect(1, 0);
    assert_eq!(rig.status(root, migrate(one, 0, 2)), Status::NoSpace);
    let swap = AdminRequest::Swap { one: one.get(), other: other.get() };
    let asked = ask(&mut rig, ClientRequest::Admin(swap));
    rig.wait(100);
    assert_eq!(answer(&mut rig, asked), Some(Ok((2, 1))));
    assert_eq!((good(&mut rig, one), good(&mut rig, other)), (vec![2], vec![1]));
    let swap = AdminRequest::Swap { one: one.get(), other: one.get() };
    assert_eq!(rig.status(root, ClientRequest::Admin(swap)), Status::Exists);
}

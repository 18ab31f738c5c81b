//! Copies that are made again: who is told when, and what becomes of one that is not finished.

use dmce_abi::Status;
use dmce_abi::addr::AddrLayout;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Half, Membership, Role, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, CopyState, Repair};
use dmce_abi::wire::client::{
    BlockInfo, ClientReply, ClientRequest, CopyInfo, Delete, Fetch, Granted, Grow, SessionEvent,
};
use dmce_abi::wire::daemon::{
    DaemonAnswer, DaemonMessage, DaemonRequest, HeldBlock, SYNC_BYTES_MAX,
};
use dmce_shm::session::pin::{PinClaim, PinnedRange};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::copies::{rig_that_syncs, with_copies};
use super::reported_copies::held;
use super::rig::{GIB, MIB, Mood, Rig, daemon_id, heap, open, region, span};
use crate::dispatcher::{
    Action, ClientConn, Event, FoundContent, FoundDaemon, FoundIntents, FoundTable, InspectId,
    Started,
};

/// A client with a block of two copies on daemons 1 and 2, beside which there is a third daemon.
pub(super) fn two() -> (Rig, ClientConn, Granted) {
    let mut rig = rig_that_syncs(3, 2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, 2 * MIB + 4096), 2));
    rig.done(conn, ClientRequest::Events);
    rig.actions.clear();
    (rig, conn, granted)
}

/// The object of a copy is gone, and that is seen.
pub(super) fn take(rig: &mut Rig, daemon: u32, block: BlockId) {
    let (inspect, found) = (InspectId(u64::MAX), vec![(block, None)]);
    rig.event(Event::Inspected { inspect, daemon: daemon_id(daemon), found });
}

pub(super) fn copies(rig: &mut Rig, block: BlockId) -> Vec<(u32, CopyState)> {
    let root = rig.connect(1, 0);
    let reply =
        rig.done(root, ClientRequest::Admin(AdminRequest::Blocks { after: block.get() - 1 }));
    let ClientReply::Admin(AdminReply::Blocks { rows, .. }) = reply else { panic!("{reply:?}") };
    rows[0].copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
}

pub(super) fn fetched(rig: &mut Rig, conn: ClientConn, block: BlockId) -> BlockInfo {
    let reply = rig.done(conn, ClientRequest::Fetch(Fetch { block, writable: true }));
    let ClientReply::Fetched(info) = reply else { panic!("{reply:?}") };
    info
}

/// The headers of each raise: whose, and what they say of the copies.
pub(super) fn raised(rig: &Rig) -> Vec<Vec<(u32, Membership)>> {
    let said = |headers: &Vec<(_, BlockDescription)>| {
        let of = |(daemon, description): &(DaemonId, BlockDescription)| {
            (daemon.get(), description.membership.clone())
        };
        headers.iter().map(of).collect()
    };
    let raises = rig.actions.iter().filter_map(|action| match action {
        Action::RaiseEpoch { headers, .. } => Some(said(headers)),
        _ => None,
    });
    raises.collect()
}

/// What daemons were asked to copy: from where, and how much.
pub(super) fn synced(rig: &Rig) -> Vec<(u64, u32)> {
    let asked = rig.actions.iter().filter_map(|action| match action {
        Action::ToDaemon { request: DaemonRequest::Sync { cell, bytes, .. }, .. } => {
            Some((*cell, *bytes))
        }
        _ => None,
    });
    asked.collect()
}

pub(super) fn idle(rig: &mut Rig) {
    let awaited = rig.actions.iter().filter_map(|action| match action {
        Action::AwaitIdle { session, block, epoch } => Some((*session, (*block, *epoch))),
        _ => None,
    });
    let awaited: Vec<(SessionId, (BlockId, u64))> = awaited.collect();
    let &(_, last) = awaited.last().expect("somebody is waited for");
    for (session, (block, epoch)) in awaited.into_iter().filter(|(_, of)| *of == last) {
        rig.event(Event::Idle { session, block, epoch });
    }
}

#[test]
fn a_copy_that_is_lost_is_made_again_on_another_daemon() {
    let (mut rig, conn, granted) = two();
    let (block, committed) = (granted.first.block, granted.first.committed);
    take(&mut rig, 1, block);
    rig.wait(100);
    assert_eq!(copies(&mut rig, block), [(2, CopyState::Good), (3, CopyState::Good)]);
    assert_eq!(rig.daemons[&1].destroyed, [block], "what it had there is of no use");
    let created = &rig.daemons[&3].created;
    let [description] = &created[..] else { panic!("{created:?}") };
    let Membership { role, half, peers, .. } = &description.membership;
    assert_eq!((*role, *half, &peers[..]), (Role::Syncing, Half::PRIMARY, &[daemon_id(2)][..]));
    // All of it, in parts, one after the other.
    let most = SYNC_BYTES_MAX;
    let parts = [(0, most), (u64::from(most), 4096)];
    assert_eq!((committed, synced(&rig)), (2 * MIB + 4096, parts.to_vec()));
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
    let alone = vec![(2, vec![2], None)];
    let syncing = vec![(3, vec![2], Some(3)), (2, vec![2], Some(3))];
    let both = vec![(2, vec![2, 3], None), (3, vec![2, 3], None)];
    assert_eq!(said, [alone, syncing, both]);
    let info = fetched(&mut rig, conn, block);
    assert!(info.daemons().eq([2, 3].map(daemon_id)) && info.syncing.is_none());
    let addr = u64::from(block.get()) << AddrLayout::IN_SERVER.cell_bits();
    let told = ClientReply::Events(vec![
        SessionEvent::CopyLost { addr, bytes: committed },
        SessionEvent::CopiesRestored { addr, bytes: committed },
    ]);
    assert_eq!(rig.done(conn, ClientRequest::Events), told);
}

#[test]
fn nothing_is_copied_before_all_who_write_have_heard_of_the_copy() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.idles = false;
    take(&mut rig, 1, block);
    rig.wait(100);
    assert_eq!(copies(&mut rig, block)[1..], [(1, CopyState::Lost), (3, CopyState::Syncing)]);
    // Who comes now writes it, and reads the other.
    let info = fetched(&mut rig, conn, block);
    assert!(info.daemons().eq([daemon_id(2)]));
    let CopyInfo { daemon, half, .. } = info.syncing.expect("there is one");
    assert_eq!((daemon, half, info.descriptors()), (daemon_id(3), Half::PRIMARY, 3));
    rig.wait(1000);
    assert_eq!(synced(&rig), []);
    idle(&mut rig);
    assert_eq!(synced(&rig).len(), 2);
    assert_eq!(copies(&mut rig, block)[..2], [(2, CopyState::Good), (3, CopyState::Good)]);
}

#[test]
fn a_part_that_somebody_holds_is_asked_for_again() {
    let (mut rig, _, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Waits);
    take(&mut rig, 1, block);
    rig.wait(100);
    rig.obey(3);
    // Somebody has pages 0 and 2; a daemon goes as far as it can.
    let held = [0, 2 * PAGE_BYTES];
    let next = |rig: &mut Rig| loop {
        match rig.daemons[&3].asked.first().cloned() {
            Some((number, DaemonRequest::Sync { cell, bytes, .. })) => {
                rig.daemons.get_mut(&3).unwrap().asked.remove(0);
                return (number, cell, bytes);
            }
            Some(_) => rig.obey(3),
            None => rig.wait(100),
        }
    };
    let answer = |rig: &mut Rig, held: &[u64]| {
        let (number, cell, bytes) = next(rig);
        let end = cell + u64::from(bytes);
        let until = held.iter().copied().find(|page| (cell..end).contains(page)).unwrap_or(end);
        let bytes = u32::try_from(until - cell).unwrap();
        rig.tell(3, number.0, DaemonMessage::Reply(Ok(DaemonAnswer::Synced { bytes })));
        rig.wait(20);
        (cell, bytes)
    };
    let mut done = 0;
    for _ in 0..40 {
        let is_sync = |asked: &&(_, _)| matches!(asked.1, DaemonRequest::Sync { .. });
        assert!(rig.daemons[&3].asked.iter().filter(is_sync).count() <= 2, "two at a time");
        done += u64::from(answer(&mut rig, &held).1);
    }
    assert_eq!(done, granted.first.committed - 2 * PAGE_BYTES, "what is behind them is done");
    let is_page = |(cell, bytes): &(u64, u32)| held.contains(cell) && *bytes == 4096;
    assert!(synced(&rig)[20..].iter().all(is_page), "{:?}", synced(&rig));
    assert!(copies(&mut rig, block).contains(&(3, CopyState::Syncing)));
    // More than was asked for is no answer.
    let (number, ..) = next(&mut rig);
    let answer = DaemonMessage::Reply(Ok(DaemonAnswer::Synced { bytes: SYNC_BYTES_MAX }));
    rig.tell(3, number.0, answer);
    let is_closed = |action: &Action| matches!(action, Action::CloseDaemon { .. });
    assert!(rig.actions.iter().any(is_closed));
    assert_eq!(copies(&mut rig, block)[0], (2, CopyState::Good));
}

/// What keeps a daemon from it may be a header, of a copy that has all its bytes.
#[test]
fn where_nothing_can_be_copied_the_headers_are_written_anew_once_and_others_have_the_place() {
    for sync_rate in [0, 100 * MIB] {
        let mut config = super::rig::config();
        (config.copies_max, config.syncs_max, config.sync_rate) = (3, 1, sync_rate);
        let mut rig = Rig::started(config, Started::default());
        (1..=3).for_each(|id| rig.daemon(id, GIB));
        let blocks: Vec<BlockId> = [1000, 1001]
            .map(|uid| rig.session(uid).0)
            .map(|conn| rig.granted(conn, with_copies(heap(1, 2 * MIB + 4096), 2)).first.block)
            .into();
        let of = |rig: &mut Rig, at: usize| {
            let of: Vec<u32> = copies(rig, blocks[at]).iter().map(|(of, _)| *of).collect();
            (of[0], (1..=3).find(|daemon| !of.contains(daemon)).unwrap())
        };
        let lost = [0, 1].map(|at| of(&mut rig, at));
        let stuck = lost[0].1;
        rig.mood(stuck, Mood::Waits);
        take(&mut rig, lost[0].0, blocks[0]);
        rig.wait(100);
        rig.obey(stuck);
        let before = raised(&rig).len();
        take(&mut rig, lost[1].0, blocks[1]);
        for _ in 0..600 {
            match rig.daemons[&stuck].asked.first().cloned() {
                Some((number, DaemonRequest::Sync { block, .. })) if block == blocks[0] => {
                    rig.daemons.get_mut(&stuck).unwrap().asked.remove(0);
                    let answer = DaemonMessage::Reply(Ok(DaemonAnswer::Synced { bytes: 0 }));
                    rig.tell(stuck, number.0, answer);
                }
                Some(_) => rig.obey(stuck),
                None => rig.wait(100),
            }
        }
        // The loss of the other block, its copy, and that it is whole; and once for this one.
        assert_eq!(raised(&rig).len(), before + 4, "{sync_rate}");
        assert!(copies(&mut rig, blocks[0]).contains(&(stuck, CopyState::Syncing)));
        let other = copies(&mut rig, blocks[1]);
        assert!(other.iter().all(|(_, state)| *state == CopyState::Good), "{other:?}");
    }
}

#[test]
fn a_copy_is_given_up_with_its_daemon_and_made_on_the_next() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.daemon(4, GIB);
    rig.mood(3, Mood::Waits);
    take(&mut rig, 1, block);
    rig.wait(100);
    let first = if rig.daemons[&3].asked.is_empty() { 4 } else { 3 };
    assert_eq!(first, 3, "daemons take turns");
    rig.obey(3);
    assert_eq!(fetched(&mut rig, conn, block).syncing.map(|copy| copy.daemon), Some(daemon_id(3)));
    rig.idles = false;
    rig.daemon_dies(3);
    let [first, again] = [3, 4].map(|daemon| rig.daemons[&daemon].created[0].clone());
    assert!(again.membership.since > first.membership.since);
    let info = fetched(&mut rig, conn, block);
    assert!(info.syncing.is_some_and(|copy| copy.since == again.membership.since));
    assert!(info.epoch >= again.membership.since && first.epoch < first.membership.since);
    idle(&mut rig);
    assert_eq!(copies(&mut rig, block)[..2], [(2, CopyState::Good), (4, CopyState::Good)]);
}

#[test]
fn a_daemon_that_refuses_is_asked_again_later() {
    let (mut rig, _, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Refuses);
    rig.daemon_dies(1);
    take(&mut rig, 1, block);
    rig.wait(900);
    assert_eq!(rig.daemons[&3].created.len(), 1);
    rig.wait(1000);
    assert_eq!(rig.daemons[&3].created.len(), 2);
    assert!(raised(&rig).len() == 1 && synced(&rig).is_empty());
    rig.mood(3, Mood::Obeys);
    rig.wait(1000);
    assert_eq!(rig.daemons[&3].created.len(), 2, "less and less often");
    rig.wait(1500);
    assert_eq!(copies(&mut rig, block)[..2], [(2, CopyState::Good), (3, CopyState::Good)]);
}

#[test]
fn with_the_last_good_copy_all_is_lost_whatever_was_copied() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Waits);
    take(&mut rig, 1, block);
    rig.wait(100);
    rig.obey(3);
    rig.obey(3);
    assert_eq!(synced(&rig).len(), 2);
    take(&mut rig, 2, block);
    assert!(fetched(&mut rig, conn, block).lost);
    for _ in 0..rig.daemons[&3].asked.len() {
        rig.obey(3);
    }
    assert_eq!(rig.daemons[&3].destroyed, [block]);
}

#[test]
fn a_copy_that_was_given_up_while_it_was_made_goes_when_its_daemon_answers() {
    let mut rig = rig_that_syncs(3, 2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(span(1, GIB + MIB), 2));
    let second = granted.first.block.checked_add(1).unwrap();
    let lost = copies(&mut rig, second)[0].0;
    let third = (1..=3).find(|daemon| copies(&mut rig, second).iter().all(|(of, _)| of != daemon));
    let third = third.expect("there are three daemons");
    rig.mood(third, Mood::Waits);
    take(&mut rig, lost, second);
    rig.wait(100);
    assert_eq!(rig.daemons[&third].created.last().unwrap().block, second);
    // It does not answer.
    rig.wait(3000);
    let addr = u64::from(granted.first.block.get()) << AddrLayout::IN_SERVER.cell_bits();
    let delete = Delete { addr, guid: granted.first.guid };
    rig.done(conn, ClientRequest::Delete(delete));
    while !rig.daemons[&third].asked.is_empty() {
        rig.obey(third);
    }
    assert!(rig.daemons[&third].destroyed.contains(&second));
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

#[test]
fn all_that_is_written_grows_and_what_cannot_is_given_up() {
    for refuses in [false, true] {
        let (mut rig, conn, granted) = two();
        let block = granted.first.block;
        rig.idles = false;
        take(&mut rig, 1, block);
        rig.wait(100);
        if refuses {
            rig.mood(3, Mood::Refuses);
        }
        let grow = ClientRequest::Grow(Grow { block, committed: 4 * MIB });
        assert_eq!(rig.done(conn, grow), ClientReply::Grown { committed: 4 * MIB });
        if refuses {
            assert_eq!(fetched(&mut rig, conn, block).syncing, None);
            continue;
        }
        idle(&mut rig);
        assert_eq!(synced(&rig).len(), 2);
        let charged = rig.dispatcher.snapshot().charged;
        assert_eq!(charged[&daemon_id(3)].0, 4 * MIB);
    }
}

#[test]
fn what_a_daemon_had_of_a_block_makes_room_where_no_other_has_any() {
    let mut rig = rig_that_syncs(2, 2);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, MIB), 2));
    let block = granted.first.block;
    take(&mut rig, 1, block);
    rig.wait(200);
    assert_eq!(rig.daemons[&1].destroyed, [block]);
    assert_eq!(copies(&mut rig, block), [(2, CopyState::Good), (1, CopyState::Good)]);
}

#[test]
fn what_comes_back_stays_until_the_block_has_all_its_copies() {
    let (mut rig, _, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Waits);
    let (description, committed) = (rig.daemons[&1].created[0].clone(), granted.first.committed);
    rig.daemon_dies(1);
    take(&mut rig, 1, block);
    rig.wait(100);
    rig.daemon_with(1, GIB, vec![HeldBlock { description, committed }]);
    let old = (1, CopyState::Stale);
    assert!(copies(&mut rig, block).contains(&old) && rig.daemons[&1].destroyed.is_empty());
    while !rig.daemons[&3].asked.is_empty() {
        rig.obey(3);
    }
    let whole = [(2, CopyState::Good), (3, CopyState::Good)];
    assert_eq!(copies(&mut rig, block), whole);
    assert_eq!(rig.daemons[&1].destroyed, [block]);
}

#[test]
fn what_comes_back_when_the_block_has_all_its_copies_goes_at_once() {
    let (mut rig, _, granted) = two();
    let block = granted.first.block;
    let (description, committed) = (rig.daemons[&1].created[0].clone(), granted.first.committed);
    rig.daemon_dies(1);
    take(&mut rig, 1, block);
    rig.wait(100);
    let whole = [(2, CopyState::Good), (3, CopyState::Good)];
    assert_eq!(copies(&mut rig, block)[..2], whole);
    rig.daemon_with(1, GIB, vec![HeldBlock { description, committed }]);
    assert_eq!(rig.daemons[&1].destroyed, [block]);
    assert_eq!(copies(&mut rig, block), whole);
}

/// A session was killed in the midst of a write, or had stored by a pointer, to the primary alone.
#[test]
fn what_is_repaired_or_carried_is_copied_once_more() {
    for is_carried in [false, true] {
        let mut rig = rig_that_syncs(3, 2);
        let (owner, _) = rig.session(1000);
        rig.done(owner, with_copies(region("r", 3 * MIB, 0o666), 2));
        let (writer, ready) = rig.session(1001);
        let reply = rig.done(writer, open(1, "r", true));
        let ClientReply::Opened(opened) = reply else { panic!("{reply:?}") };
        let block = opened.first.block;
        let lost = opened.first.daemons().next().unwrap().get();
        rig.mood(3, Mood::Waits);
        take(&mut rig, lost, block);
        rig.wait(100);
        rig.obey(3);
        rig.obey(3);
        rig.actions.clear();
        let addr = rig.dispatcher.address(block) + 5 * PAGE_BYTES + 8;
        let (bytes, none) = (PAGE_BYTES, FoundIntents::none());
        let found = if is_carried {
            let range = PinnedRange { addr, bytes, writable: true };
            FoundIntents { pins: vec![PinClaim { place: 0, range, is_left: false }], ..none }
        } else {
            let progress = Progress::First { first: 3 - lost, undo: Undo::Saved };
            FoundIntents { claims: vec![(0, IntentClaim { addr, bytes, progress })], ..none }
        };
        rig.intents.insert(ready.session, found);
        rig.event(Event::Died { session: ready.session });
        while !rig.daemons[&3].asked.is_empty() {
            rig.obey(3);
        }
        assert!(synced(&rig).contains(&(5 * PAGE_BYTES, 8192)), "{:?}", synced(&rig));
        let good = [(3 - lost, CopyState::Good), (3, CopyState::Good)];
        assert_eq!(copies(&mut rig, block)[..2], good);
    }
}

#[test]
fn a_broker_that_comes_back_gives_up_what_was_syncing() {
    let mut good = held(1, &[1], 7, MIB);
    good.description.membership.syncing = Some(daemon_id(3));
    let mut syncing = held(3, &[1], 7, MIB);
    let peers = vec![daemon_id(1)];
    let (role, half) = (Role::Syncing, Half::MIRROR);
    syncing.description.membership =
        Membership { role, half, peers, syncing: None, since: 7, locked: false };
    let (block, guid) = (good.description.block, Some(good.description.guid));
    for is_there in [false, true] {
        let mut config = super::rig::config();
        (config.copies_max, config.syncs_max) = (3, 0);
        let found = |daemon, held| FoundDaemon {
            daemon: daemon_id(daemon),
            blocks: vec![block],
            damaged: Vec::new(),
            content: FoundContent::Read(vec![held]),
        };
        let mut daemons = vec![found(1, good.clone())];
        daemons.extend(is_there.then(|| found(3, syncing.clone())));
        let tables = vec![FoundTable { block, guid, bytes: MIB }];
        let mut rig = Rig::started(config, Started { daemons, tables, ..Started::default() });
        let [headers] = &raised(&rig)[..] else { panic!("{:?}", raised(&rig)) };
        assert!(headers.len() == 1 && headers[0].1.syncing.is_none(), "{headers:?}");
        assert_eq!(copies(&mut rig, block), [(1, CopyState::Good)]);
        rig.daemon_with(3, GIB, vec![syncing.clone()]);
        assert_eq!(rig.daemons[&3].destroyed, [block]);
        assert_eq!(copies(&mut rig, block), [(1, CopyState::Good)]);
    }
}

#[test]
fn a_copy_that_is_given_up_stays_until_nobody_writes_it_and_is_made_again_later() {
    let (mut rig, conn, granted) = two();
    let block = granted.first.block;
    rig.mood(3, Mood::Waits);
    take(&mut rig, 1, block);
    rig.wait(100);
    rig.obey(3);
    rig.idles = false;
    let (number, _) = rig.daemons.get_mut(&3).unwrap().asked.remove(0);
    let refusal = Refusal::new(Status::NotFound, "no copy of it");
    rig.tell(3, number.0, DaemonMessage::Reply(Err(refusal)));
    assert_eq!(fetched(&mut rig, conn, block).syncing, None);
    assert_eq!(copies(&mut rig, block), [(2, CopyState::Good), (1, CopyState::Lost)]);
    rig.mood(3, Mood::Obeys);
    rig.wait(5000);
    assert_eq!(rig.daemons[&3].destroyed, []);
    idle(&mut rig);
    assert_eq!(rig.daemons[&3].destroyed, [block]);
    rig.idles = true;
    rig.wait(100);
    assert_eq!(copies(&mut rig, block)[..2], [(2, CopyState::Good), (3, CopyState::Good)]);
    assert_eq!(rig.daemons[&3].created.len(), 2);
}

#[test]
fn no_more_is_copied_than_the_rate_allows_and_it_is_told_how_far_it_is() {
    let mut config = super::rig::config();
    (config.copies_max, config.syncs_max, config.sync_rate) = (3, 2, MIB);
    let mut rig = Rig::started(config, Started::default());
    (1..=3).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    let block = rig.granted(conn, with_copies(heap(1, 6 * MIB), 2)).first.block;
    let repair = |rig: &mut Rig| {
        let root = rig.connect(1, 0);
        let reply = rig.done(root, ClientRequest::Admin(AdminRequest::Status));
        let ClientReply::Admin(AdminReply::Status(report)) = reply else { panic!("{reply:?}") };
        report.repair
    };
    assert_eq!(repair(&mut rig), Repair::default());
    take(&mut rig, 1, block);
    rig.wait(100);
    assert_eq!(synced(&rig).len(), 1);
    let Repair { lacking, syncing, left, rate } = repair(&mut rig);
    assert_eq!((lacking, syncing, left), (1, 1, 4 * MIB));
    assert!(rate > MIB, "{rate}");
    rig.wait(1800);
    assert_eq!(synced(&rig).len(), 1);
    rig.wait(200);
    assert_eq!(synced(&rig).len(), 2);
    rig.wait(2000);
    assert_eq!(repair(&mut rig).lacking, 0);
}

/// Who stands still holds up copies of blocks that it has open, and no others.
#[test]
fn copies_that_wait_for_somebody_take_no_place() {
    let mut rig = rig_that_syncs(3, 1);
    let (_, ready) = rig.session(1000);
    let blocks: Vec<BlockId> = [1000, 1001]
        .into_iter()
        .map(|uid| {
            let (conn, _) = rig.session(uid);
            rig.granted(conn, with_copies(heap(1, MIB), 2)).first.block
        })
        .collect();
    assert!(ready.session.get() > 0);
    rig.idles = false;
    for &block in &blocks {
        let lost = copies(&mut rig, block)[0].0;
        take(&mut rig, lost, block);
    }
    let is_syncing = |rig: &mut Rig, block| {
        copies(rig, block).iter().any(|(_, state)| *state == CopyState::Syncing)
    };
    rig.wait(500);
    assert_eq!([0, 1].map(|at| is_syncing(&mut rig, blocks[at])), [true, false]);
    rig.wait(1000);
    assert_eq!([0, 1].map(|at| is_syncing(&mut rig, blocks[at])), [true, true]);
    rig.idles = true;
    idle(&mut rig);
    assert!(copies(&mut rig, blocks[1])[..2].iter().all(|(_, state)| *state == CopyState::Good));
}

/// It looks at pages whenever it wants, and does nothing to them.
#[test]
fn who_may_only_read_is_not_waited_for() {
    let mut rig = rig_that_syncs(3, 2);
    let (owner, _) = rig.session(1000);
    rig.done(owner, with_copies(region("r", 3 * MIB, 0o644), 2));
    let (reader, _) = rig.session(1001);
    let reply = rig.done(reader, open(1, "r", false));
    let ClientReply::Opened(opened) = reply else { panic!("{reply:?}") };
    let block = opened.first.block;
    rig.idles = false;
    let lost = opened.first.daemons().next().unwrap().get();
    take(&mut rig, lost, block);
    rig.wait(100);
    assert_eq!(copies(&mut rig, block)[..2], [(3 - lost, CopyState::Good), (3, CopyState::Good)]);
}

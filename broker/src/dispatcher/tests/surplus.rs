//! Regions of which other numbers of copies are asked for: what is made, what goes, and when.

use dmce_abi::Status;
use dmce_abi::addr::AddrLayout;
use dmce_abi::block::{BlockId, DaemonId, Half, Membership, Owner};
use dmce_abi::wire::admin::{AdminReply, AdminRequest, CopyState, RegionRow};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Opened, RegionName};
use dmce_abi::wire::daemon::HeldBlock;

use super::copies::{rig_that_syncs, with_copies};
use super::restart::held_region;
use super::rig::{GIB, MIB, Mood, Rig, config, daemon_id, open, region, region_name};
use super::syncing::{copies, fetched, idle, raised, synced, take};
use crate::dispatcher::{
    Action, ClientConn, Event, FoundContent, FoundDaemon, FoundTable, Quota, Started,
};

fn set(name: &str, copies: u32) -> ClientRequest {
    ClientRequest::Admin(AdminRequest::SetCopies { region: region_name(name), copies })
}

/// Its owner asks for other copies of a region.
fn ask(rig: &mut Rig, name: &str, copies: u32) {
    let conn = rig.connect(7, 1000);
    let reply = rig.done(conn, set(name, copies));
    assert!(matches!(reply, ClientReply::Admin(AdminReply::CopiesSet { .. })), "{reply:?}");
}

/// Somebody who has a region of so many copies open to write, and three daemons.
fn opened(asked: u32) -> (Rig, ClientConn, Opened) {
    let mut rig = rig_that_syncs(3, 2);
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", 2 * MIB, 0o600), asked));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    rig.actions.clear();
    (rig, conn, opened)
}

fn row(rig: &mut Rig) -> RegionRow {
    let root = rig.connect(1, 0);
    let after = RegionName { volume: String::new(), name: String::new() };
    let reply = rig.done(root, ClientRequest::Admin(AdminRequest::Regions { after }));
    let ClientReply::Admin(AdminReply::Regions { rows, .. }) = reply else { panic!("{reply:?}") };
    rows[0].clone()
}

/// What the headers of each raise say is asked for, and whether pages are locked though it is one.
fn said(rig: &Rig) -> Vec<Vec<(u32, bool)>> {
    let raises = rig.actions.iter().filter_map(|action| match action {
        Action::RaiseEpoch { headers, .. } => Some(headers),
        _ => None,
    });
    let each = raises.map(|headers| {
        let of = headers.iter().map(|(_, of)| (of.owner.copies(), of.membership.locked));
        of.collect()
    });
    each.collect()
}

fn good(rig: &mut Rig, block: BlockId) -> Vec<u32> {
    let all = copies(rig, block);
    all.iter().filter(|(_, state)| *state == CopyState::Good).map(|(id, _)| *id).collect()
}

#[test]
fn a_region_gets_a_copy_more_that_its_owner_pays_for() {
    let (mut rig, conn, opened) = opened(2);
    let block = opened.first.block;
    let before = good(&mut rig, block);
    ask(&mut rig, "r", 3);
    rig.wait(100);
    assert_eq!((good(&mut rig, block).len(), row(&mut rig).copies), (3, 3));
    assert_eq!(good(&mut rig, block)[0], before[0]);
    // The first block's header says so before anything is made.
    assert_eq!(said(&rig)[0], [(3, false); 2]);
    let charged = |rig: &Rig| -> u64 {
        rig.dispatcher.snapshot().charged.values().map(|(committed, _)| committed).sum()
    };
    assert_eq!(charged(&rig), 6 * MIB);
    assert_eq!(fetched(&mut rig, conn, block).daemons().count(), 3);
    ask(&mut rig, "r", 3);
    rig.wait(100);
    assert_eq!(good(&mut rig, block).len(), 3);
}

#[test]
fn an_only_copy_gets_another_under_a_lock_table_that_stays() {
    let (mut rig, conn, opened) = opened(1);
    let block = opened.first.block;
    assert!(!opened.first.has_locks);
    rig.idles = false;
    ask(&mut rig, "r", 2);
    // Told of the copy that is made, and of the table. Until then headers ask for one copy.
    let info = fetched(&mut rig, conn, block);
    assert!(info.has_locks && info.syncing.is_some(), "{info:?}");
    assert_eq!(said(&rig), [[(2, false); 2]]);
    let created = rig.daemons.values().flat_map(|daemon| &daemon.created).last().unwrap();
    assert_eq!(created.membership.half, Half::MIRROR);
    idle(&mut rig);
    rig.idles = true;
    rig.wait(100);
    assert_eq!(good(&mut rig, block).len(), 2);
    let removed = |action: &Action| matches!(action, Action::RemoveLocks { .. });
    assert!(!rig.actions.iter().any(removed) && fetched(&mut rig, conn, block).has_locks);
    // It is one that others are made again of.
    let lost = good(&mut rig, block)[0];
    take(&mut rig, lost, block);
    rig.wait(100);
    assert_eq!(good(&mut rig, block).len(), 2);
}

/// It may be storing for a client that maps nothing, without a lock and without a mark.
#[test]
fn nothing_is_copied_before_the_daemon_of_an_only_copy_has_answered_or_is_dead() {
    for dies in [false, true] {
        let (mut rig, _, opened) = opened(1);
        let block = opened.first.block;
        let only = opened.first.daemons().next().unwrap().get();
        rig.mood(only, Mood::Waits);
        ask(&mut rig, "r", 2);
        rig.wait(100);
        assert_eq!((synced(&rig), copies(&mut rig, block).len()), (vec![], 2));
        if dies {
            rig.daemon_dies(only);
        } else {
            rig.mood(only, Mood::Obeys);
            while !rig.daemons[&only].asked.is_empty() {
                rig.obey(only);
            }
        }
        rig.wait(100);
        assert_eq!((synced(&rig).len(), good(&mut rig, block).len()), (1, 2), "{dies}");
    }
}

#[test]
fn where_there_is_no_lock_table_there_is_no_other_copy_until_there_is_one() {
    let (mut rig, conn, opened) = opened(1);
    let block = opened.first.block;
    let reason = "full".to_owned();
    rig.makes_locks = Some(crate::dispatcher::Made::Unusable { reason });
    ask(&mut rig, "r", 2);
    rig.wait(3000);
    assert_eq!((good(&mut rig, block).len(), row(&mut rig).copies), (1, 2));
    assert!(!fetched(&mut rig, conn, block).has_locks);
    let asked = rig.actions.iter().filter(|of| matches!(of, Action::MakeLocks { .. })).count();
    assert!((2..=4).contains(&asked), "asked {asked} times in 3 s");
    rig.makes_locks = Some(crate::dispatcher::Made::Whole);
    rig.wait(2000);
    assert_eq!(good(&mut rig, block).len(), 2);
}

#[test]
fn copies_go_one_after_another_when_nobody_uses_them_and_the_table_with_the_last() {
    let (mut rig, conn, opened) = opened(3);
    let block = opened.first.block;
    let all: Vec<u32> = opened.first.daemons().map(DaemonId::get).collect();
    rig.idles = false;
    ask(&mut rig, "r", 1);
    let destroyed = |rig: &Rig| rig.daemons.values().map(|of| of.destroyed.len()).sum::<usize>();
    for left in [2, 1] {
        // The first header says what is asked for, then each that a copy goes.
        let info = fetched(&mut rig, conn, block);
        let now: Vec<u32> = info.daemons().map(DaemonId::get).collect();
        assert_eq!((&now[..], info.has_locks), (&all[..left], true));
        assert_eq!(destroyed(&rig), 2 - left);
        idle(&mut rig);
        assert_eq!(destroyed(&rig), 3 - left);
    }
    // Nobody locks its pages any more.
    assert!(!fetched(&mut rig, conn, block).has_locks);
    let removed = |rig: &Rig| rig.actions.iter().any(|of| matches!(of, Action::RemoveLocks { .. }));
    assert!(!removed(&rig));
    idle(&mut rig);
    assert!(removed(&rig));
    let locked = [vec![(1, true); 3], vec![(1, true); 2], vec![(1, true)], vec![(1, false)]];
    assert_eq!(said(&rig), locked);
    assert_eq!((good(&mut rig, block), row(&mut rig).copies), (vec![all[0]], 1));
}

/// A broker that comes back takes the number from the first block: what others had would go.
#[test]
fn of_many_blocks_the_first_gets_its_second_copy_first() {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    config.layout = AddrLayout::new(32, 12, 20).unwrap();
    let mut rig = Rig::started(config, Started::default());
    (1..=3).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", 2 * MIB + 4096, 0o600), 1));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    let first = opened.first.block;
    let others = [1, 2].map(|place| first.checked_add(place).unwrap());
    (1..=3).for_each(|id| rig.mood(id, Mood::Waits));
    ask(&mut rig, "r", 2);
    rig.wait(1000);
    let count = |rig: &mut Rig, block| copies(rig, block).len();
    assert_eq!((count(&mut rig, first), others.map(|id| count(&mut rig, id))), (2, [1, 1]));
    (1..=3).for_each(|id| rig.mood(id, Mood::Obeys));
    while (1..=3).any(|id| !rig.daemons[&id].asked.is_empty()) {
        for id in 1..=3 {
            if !rig.daemons[&id].asked.is_empty() {
                rig.obey(id);
            }
        }
    }
    rig.wait(1000);
    let all = [first, others[0], others[1]].map(|id| good(&mut rig, id).len());
    assert_eq!(all, [2; 3]);
}

/// One of three is lost, and two are asked for then: nothing goes, and a half that has a name is
/// lacking.
#[test]
fn what_is_left_is_the_first_halves_when_nothing_has_to_go() {
    for lost in [0, 1, 2] {
        let (mut rig, conn, opened) = opened(3);
        let block = opened.first.block;
        let daemon = opened.first.daemons().nth(lost).unwrap().get();
        take(&mut rig, daemon, block);
        ask(&mut rig, "r", 2);
        rig.wait(100);
        let info = fetched(&mut rig, conn, block);
        let mut halves: Vec<Half> = info.good().map(|copy| copy.half).collect();
        halves.sort_unstable();
        assert_eq!(halves, [Half::PRIMARY, Half::MIRROR], "{lost}");
    }
}

/// The one that comes in the place of another is made as the half that this is, and that is none of
/// the first any more.
#[test]
fn what_is_left_is_the_first_halves_when_one_of_it_moves_meanwhile() {
    let (mut rig, conn, opened) = opened(3);
    rig.daemon(4, 3 * GIB);
    let block = opened.first.block;
    let daemons: Vec<u32> = opened.first.daemons().map(DaemonId::get).collect();
    let [_, mirror, third] = daemons[..] else { panic!("{daemons:?}") };
    rig.mood(4, Mood::Waits);
    let root = rig.connect(1, 0);
    let migrate = AdminRequest::Migrate { block: block.get(), from: third, to: 4 };
    rig.ask_later(root, ClientRequest::Admin(migrate));
    rig.obey(4);
    take(&mut rig, mirror, block);
    ask(&mut rig, "r", 2);
    rig.mood(4, Mood::Obeys);
    while !rig.daemons[&4].asked.is_empty() {
        rig.obey(4);
    }
    rig.wait(1000);
    let info = fetched(&mut rig, conn, block);
    let halves: Vec<Half> = info.good().map(|copy| copy.half).collect();
    assert_eq!(halves, [Half::PRIMARY, Half::MIRROR]);
    assert!(good(&mut rig, block).contains(&4));
}

#[test]
fn while_the_daemon_of_the_primary_is_away_no_copy_goes() {
    let (mut rig, _, opened) = opened(2);
    let block = opened.first.block;
    let primary = opened.first.daemons().next().unwrap().get();
    rig.daemon_dies(primary);
    ask(&mut rig, "r", 1);
    rig.wait(3000);
    assert_eq!(good(&mut rig, block).len(), 2);
    let held: Vec<HeldBlock> = rig.daemons[&primary]
        .created
        .iter()
        .map(|made| HeldBlock { description: made.clone(), committed: 2 * MIB })
        .collect();
    rig.daemon_with(primary, 3 * GIB, held);
    rig.wait(1000);
    assert_eq!(good(&mut rig, block), [primary]);
}

/// A region of two copies whose first half was lost, and is made again on a third daemon.
#[test]
fn an_only_copy_is_the_first_half_whatever_it_was_made_as() {
    let (mut rig, conn, opened) = opened(2);
    let block = opened.first.block;
    let lost = opened.first.daemons().next().unwrap().get();
    take(&mut rig, lost, block);
    rig.wait(100);
    let halves = |rig: &mut Rig| -> Vec<Half> {
        fetched(rig, conn, block).good().map(|copy| copy.half).collect()
    };
    assert_eq!(halves(&mut rig), [Half::MIRROR, Half::PRIMARY]);
    ask(&mut rig, "r", 1);
    rig.wait(100);
    assert_eq!(halves(&mut rig), [Half::PRIMARY]);
}

#[test]
fn what_is_being_made_is_given_up_if_it_is_not_asked_for_any_more() {
    let (mut rig, _, opened) = opened(2);
    let block = opened.first.block;
    rig.mood(3, Mood::Waits);
    ask(&mut rig, "r", 3);
    rig.obey(3);
    assert!(copies(&mut rig, block).contains(&(3, CopyState::Syncing)));
    ask(&mut rig, "r", 2);
    rig.mood(3, Mood::Obeys);
    while !rig.daemons[&3].asked.is_empty() {
        rig.obey(3);
    }
    assert_eq!(good(&mut rig, block).len(), 2);
    assert_eq!((rig.daemons[&3].destroyed.len(), rig.daemons[&3].created.len()), (1, 1));
    rig.wait(2000);
    assert_eq!(rig.daemons[&3].created.len(), 1);
}

#[test]
fn what_cannot_be_asked_for_is_refused_and_nothing_changes() {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    config.quota = Quota { bytes: 5 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    rig.done(conn, with_copies(region("r", 2 * MIB, 0o600), 2));
    let root = rig.connect(1, 0);
    let owner = rig.connect(2, 1000);
    let other = rig.connect(3, 1001);
    for (conn, request, status) in [
        (root, set("q", 1), Status::NotFound),
        (other, set("r", 1), Status::NotFound),
        (owner, set("r", 0), Status::Invalid),
        (owner, set("r", 4), Status::Invalid),
        (root, set("r", 3), Status::NoSpace),
    ] {
        assert_eq!(rig.status(conn, request.clone()), status, "{request:?}");
    }
    rig.daemon(3, GIB);
    assert_eq!(rig.status(owner, set("r", 3)), Status::Quota);
    let (writer, _) = rig.session(1002);
    rig.done(writer, with_copies(region("s", 4096, 0o666), 2));
    assert_eq!(rig.status(owner, set("s", 1)), Status::Denied);
    assert_eq!((row(&mut rig).copies, raised(&rig).len()), (2, 0));
}

/// A region of two blocks, as a broker left it that had begun to ask for other copies: of the first
/// block, and not yet of the second.
fn left(first: (u32, &[u32]), second: (u32, &[u32])) -> Rig {
    let mut held: Vec<(u32, HeldBlock)> = Vec::new();
    for (place, (asked, daemons)) in [(0, first), (1, second)] {
        let ids: Vec<_> = daemons.iter().map(|id| daemon_id(*id)).collect();
        for (at, daemon) in daemons.iter().enumerate() {
            let mut of = held_region(9, place, 2, 5);
            let half = Half::of(at).unwrap();
            of.description.membership = Membership::of((ids[at], half), &ids, None);
            if let Owner::Region(region) = &mut of.description.owner {
                region.copies = asked;
            }
            held.push((*daemon, of));
        }
    }
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    let of = |daemon: u32| {
        held.iter().filter(|(of, _)| *of == daemon).map(|(_, held)| held.clone()).collect()
    };
    let found = [1, 2, 3].map(|daemon| {
        let held: Vec<HeldBlock> = of(daemon);
        FoundDaemon {
            daemon: daemon_id(daemon),
            blocks: held.iter().map(|held| held.description.block).collect(),
            damaged: Vec::new(),
            content: FoundContent::Expected,
        }
    });
    let locked = held.iter().filter(|(_, held)| held.description.has_locks());
    let mut tables: Vec<FoundTable> = Vec::new();
    for (_, HeldBlock { description, committed }) in locked {
        let (block, guid) = (description.block, Some(description.guid));
        if tables.iter().all(|table| table.block != block) {
            tables.push(FoundTable { block, guid, bytes: *committed });
        }
    }
    let started = Started { daemons: found.into(), tables, ..Started::default() };
    let mut rig = Rig::started(config, started);
    for daemon in [1, 2, 3] {
        let held = of(daemon);
        rig.daemon_with(daemon, 3 * GIB, held);
    }
    rig.wait(1000);
    rig
}

#[test]
fn a_broker_that_comes_back_goes_on_with_what_the_first_block_says() {
    let block = |place: u32| BlockId::try_from(9 + place).unwrap();
    for (asked, before) in [(2, (3, &[1, 2, 3][..])), (2, (1, &[3][..])), (1, (2, &[2, 3][..]))] {
        let first = &[1, 2][..asked as usize];
        let mut rig = left((asked, first), before);
        assert_eq!(row(&mut rig).copies, asked);
        let counts = [0, 1].map(|place| good(&mut rig, block(place)).len());
        assert_eq!(counts, [asked as usize; 2], "{before:?}");
        let has_locks = |rig: &Rig| rig.dispatcher.snapshot().locks.len();
        assert_eq!(has_locks(&rig), if asked == 1 { 0 } else { 2 });
        rig.event(Event::Tick);
    }
}

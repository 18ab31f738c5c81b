use dmce_abi::addr::AddrLayout;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{
    Abandon, ClientReply, ClientRequest, Delete, MallocKind, RegionCreate,
};
use dmce_abi::{Status, wire};

use super::rig::{GIB, MIB, Mood, Rig, config, heap, region, setup, span};
use crate::dispatcher::{Descriptor, Placement, Started};

fn delete(
    rig: &mut Rig,
    conn: crate::dispatcher::ClientConn,
    block: BlockId,
    guid: dmce_abi::block::Guid,
) -> wire::Reply<ClientReply> {
    let addr = u64::from(block.get()) << AddrLayout::IN_SERVER.cell_bits();
    rig.ask(conn, ClientRequest::Delete(Delete { addr, guid })).unwrap()
}

/// [0072]
#[test]
fn when_a_daemon_is_full_the_next_is_asked() {
    let mut rig = Rig::new(3);
    rig.mood(1, Mood::Refuses);
    rig.mood(2, Mood::Refuses);
    let (conn, _) = rig.session(1000);
    let number = rig.ask_later(conn, heap(1, MIB));
    let (reply, descriptors) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    let daemon = super::rig::daemon_id(3);
    let block = granted.first.block;
    assert_eq!(descriptors, [Descriptor::Block { daemon, block, writable: true }]);

    rig.mood(3, Mood::Refuses);
    assert_eq!(rig.status(conn, heap(2, MIB)), Status::NoSpace);
    assert_eq!(rig.dispatcher.snapshot().blocks.len(), 1);
}

#[test]
fn blocks_take_turns_or_go_where_there_is_most_room() {
    let places = |placement| {
        let mut config = config();
        config.placement = placement;
        let mut rig = Rig::started(config, Started::default());
        rig.daemon(1, GIB);
        rig.daemon(2, 4 * GIB);
        let (conn, _) = rig.session(1000);
        for ticket in 1..=4 {
            rig.granted(conn, heap(ticket, 256 * MIB));
        }
        (rig.daemons[&1].created.len(), rig.daemons[&2].created.len())
    };
    assert_eq!(places(Placement::RoundRobin), (2, 2));
    assert_eq!(places(Placement::LeastUsed), (1, 3));
}

#[test]
fn a_span_lies_on_consecutive_blocks_full_but_for_the_last_and_its_first_is_made_last() {
    let mut rig = Rig::new(3);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, span(1, 3 * GIB + 5000));
    let first = granted.first;
    assert_eq!((first.span_count, first.committed, granted.last_committed), (4, GIB, 8192));
    let mut created: Vec<_> = rig.daemons.values().flat_map(|daemon| &daemon.created).collect();
    created.sort_by_key(|made| made.block);
    let ids: Vec<u32> = created.iter().map(|made| made.block.get() - first.block.get()).collect();
    assert_eq!(ids, [0, 1, 2, 3]);
    assert!(created.iter().all(|made| made.span == created[0].span));
    let owner = rig.daemons.values().find(|d| d.created.iter().any(|b| b.block == first.block));
    assert_eq!(owner.unwrap().created.last().unwrap().block, first.block);
}

#[test]
fn a_span_is_made_whole_or_not_at_all() {
    let mut rig = Rig::new(2);
    rig.mood(2, Mood::Refuses);
    let (conn, _) = rig.session(1000);
    // Three blocks fit daemon 1, the fourth has only daemon 2.
    assert_eq!(rig.status(conn, span(1, 4 * GIB)), Status::NoSpace);
    let snapshot = rig.dispatcher.snapshot();
    assert!(snapshot.blocks.is_empty() && snapshot.passing == 0);
    assert!(snapshot.charged.values().all(|charged| *charged == (0, 0)));
    assert_eq!(rig.daemons[&1].created.len(), rig.daemons[&1].destroyed.len());
}

#[test]
fn a_span_whose_full_block_no_daemon_holds_is_refused_with_the_reason() {
    let mut config = config();
    config.layout = AddrLayout::OS32;
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, 3 * GIB);
    let (conn, _) = rig.session(1000);
    assert_eq!(
        rig.refused(conn, span(1, 5 * GIB)).text,
        "5368709120 bytes need 2 blocks of 4294967296 bytes, the largest daemon holds 3221225472"
    );
    let granted = rig.granted(conn, span(2, 2 * GIB));
    assert_eq!((granted.first.span_count, granted.first.bytes_max), (1, 3 * GIB));
}

#[test]
fn impossible_sizes_are_refused_at_once() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    for (bytes, status) in
        [(0, Status::Invalid), (u64::MAX, Status::NoSpace), (1 << 47, Status::NoSpace)]
    {
        assert_eq!(rig.status(conn, span(1, bytes)), status, "{bytes}");
    }
    assert_eq!(rig.status(conn, heap(1, 2 * GIB)), Status::Invalid);
    let odd = |page_size, copies| {
        let kind = MallocKind::Heap { committed: 1 };
        let ticket = 9;
        ClientRequest::Malloc(wire::client::Malloc { ticket, kind, page_size, copies })
    };
    assert_eq!(rig.status(conn, odd(5000, 0)), Status::Invalid);
    assert_eq!(rig.status(conn, odd(0, 2)), Status::Unsupported);
    assert_eq!(rig.status(conn, odd(0, 4)), Status::Invalid);
}

#[test]
fn a_ticket_makes_one_span_however_often_it_comes() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(7, MIB)).first;
    assert_eq!(rig.granted(conn, heap(7, MIB)).first, first);
    assert_eq!(rig.daemons[&1].created.len(), 1);
    delete(&mut rig, conn, first.block, first.guid).unwrap();
    assert_ne!(rig.granted(conn, heap(7, MIB)).first.guid, first.guid);
    // Number 0 is no ticket.
    let blocks = [0, 0].map(|ticket| rig.granted(conn, heap(ticket, MIB)).first.block);
    assert_ne!(blocks[0], blocks[1]);
}

#[test]
fn a_block_whose_daemon_dies_before_it_answers_is_made_elsewhere_under_another_id() {
    let mut rig = Rig::new(2);
    rig.mood(1, Mood::Waits);
    let (conn, _) = rig.session(1000);
    let number = rig.ask_later(conn, heap(1, MIB));
    let doubtful = rig.daemons[&1].created[0].block;
    rig.daemon_dies(1);
    let (reply, _) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    assert_ne!(granted.first.block, doubtful);
    assert_eq!(rig.daemons[&2].created[0].block, granted.first.block);
    // At its return it is told to destroy what it may have made.
    rig.daemon(1, 3 * GIB);
    assert_eq!(rig.daemons[&1].destroyed, [doubtful]);
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

#[test]
fn a_daemon_that_does_not_answer_holds_nobody_up() {
    let mut rig = Rig::new(2);
    rig.mood(1, Mood::Waits);
    let (conn, _) = rig.session(1000);
    let number = rig.ask_later(conn, heap(1, MIB));
    rig.wait(3_000);
    assert!(matches!(rig.answer(conn, number), Some((Ok(ClientReply::Granted(_)), _))));
    rig.granted(conn, heap(2, MIB));
    assert_eq!(rig.daemons[&2].created.len(), 2);
    // It answers late, and is told to destroy what nobody waits for.
    rig.mood(1, Mood::Obeys);
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    assert_eq!(rig.daemons[&1].destroyed.len(), 1);
    rig.granted(conn, heap(3, MIB));
    assert_eq!(rig.dispatcher.snapshot().passing, 0);
}

#[test]
fn bytes_on_their_way_back_are_waited_for() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, span(1, 3 * GIB)).first;
    assert_eq!(rig.status(conn, heap(2, MIB)), Status::NoSpace);
    rig.mood(1, Mood::Waits);
    delete(&mut rig, conn, first.block, first.guid).unwrap();
    let number = rig.ask_later(conn, span(3, 2 * GIB));
    assert_eq!(rig.answer(conn, number), None);
    rig.mood(1, Mood::Obeys);
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    assert!(matches!(rig.answer(conn, number), Some((Ok(ClientReply::Granted(_)), _))));
}

#[test]
fn a_reservation_is_drawn_on_where_it_lies() {
    let mut rig = Rig::new(3);
    let conn = rig.connect(1, 1000);
    rig.done(conn, setup(GIB, false));
    let (other, _) = rig.session(1001);
    for ticket in 1..=4 {
        rig.granted(other, heap(ticket, MIB));
        rig.granted(conn, heap(ticket, MIB));
    }
    let reserved = rig.dispatcher.snapshot().charged.values().map(|(_, left)| *left).max();
    assert_eq!(reserved, Some(GIB - 4 * MIB));
    // What nobody reserved is all that others may have.
    assert_eq!(rig.status(other, span(9, 9 * GIB - 900 * MIB)), Status::NoSpace);
}

#[test]
fn a_malloc_that_was_given_up_leaves_nothing_wherever_it_was() {
    let abandon = |ticket| ClientRequest::Abandon(Abandon { ticket });
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let clean = |rig: &Rig| {
        let snapshot = rig.dispatcher.snapshot();
        (snapshot.blocks.len(), snapshot.passing) == (0, 0)
    };
    // It was made.
    rig.granted(conn, span(1, GIB + 1));
    for _ in 0..2 {
        assert_eq!(rig.done(conn, abandon(1)), ClientReply::Done);
        assert!(clean(&rig));
    }
    // It is being made.
    rig.mood(1, Mood::Waits);
    let malloc = rig.ask_later(conn, heap(2, MIB));
    assert_eq!(rig.done(conn, abandon(2)), ClientReply::Done);
    assert!(matches!(rig.answer(conn, malloc), Some((Err(_), _))));
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    assert!(clean(&rig));
    // It waits for room.
    rig.mood(1, Mood::Obeys);
    let all = rig.granted(conn, span(3, 3 * GIB)).first;
    rig.mood(1, Mood::Waits);
    delete(&mut rig, conn, all.block, all.guid).unwrap();
    let malloc = rig.ask_later(conn, heap(4, MIB));
    assert_eq!(rig.answer(conn, malloc), None);
    assert_eq!(rig.done(conn, abandon(4)), ClientReply::Done);
    assert!(matches!(rig.answer(conn, malloc), Some((Err(_), _))));
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    assert!(clean(&rig));
}

#[test]
fn a_region_that_nobody_waits_for_any_more_is_made_no_further_and_stays_once_it_can_be_found() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let create = |ticket| match region("r", MIB, 0o600) {
        ClientRequest::RegionCreate(create) => {
            ClientRequest::RegionCreate(RegionCreate { ticket, ..create })
        }
        other => other,
    };
    let abandon = |ticket| ClientRequest::Abandon(Abandon { ticket });
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, create(1));
    assert_eq!(rig.done(conn, abandon(1)), ClientReply::Done);
    assert!(rig.answer(conn, number).unwrap().0.is_err());
    rig.obey(1);
    rig.obey(1);
    assert_eq!(rig.daemons[&1].destroyed.len(), 1);
    assert!(rig.dispatcher.snapshot().regions.is_empty());

    rig.mood(1, Mood::Obeys);
    rig.done(conn, create(2));
    assert_eq!(rig.done(conn, abandon(2)), ClientReply::Done);
    rig.key(conn, "r");
}

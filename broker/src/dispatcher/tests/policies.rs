use std::collections::BTreeMap;

use dmce_abi::Status;
use dmce_abi::wire::client::{self, ClientReply, ClientRequest, Malloc, MallocKind, MallocWith};

use super::rig::{GIB, MIB, Rig, config, daemon_id, heap, region, setup, span};
use crate::dispatcher::{ClientConn, Placement, Policy, Started};

fn by_policy(ticket: u64, policy: u32, kind: MallocKind) -> ClientRequest {
    let malloc = Malloc { ticket, kind, page_size: 0, copies: 0 };
    ClientRequest::MallocWith(MallocWith { malloc, policy, wait_ms: None })
}

fn table() -> Vec<Policy> {
    let told = client::Policy::default();
    vec![
        Policy {
            told: client::Policy { up_to: MIB, page_size: 16384, ..told },
            placement: Some(Placement::LeastUsed),
        },
        Policy {
            told: client::Policy { page_size: 65536, block_bytes: 4 * MIB, ..told },
            placement: None,
        },
        Policy {
            told: client::Policy { up_to: 4 * MIB, page_size: 32768, ..told },
            placement: None,
        },
    ]
}

/// 002 [20]
#[test]
fn a_size_or_a_number_chooses_the_policy_and_the_request_comes_first() {
    let mut config = config();
    config.policies = table();
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, 3 * GIB);
    let (conn, _) = rig.session(1000);
    let ClientReply::Policies(told) = rig.done(conn, ClientRequest::Policies) else { panic!() };
    assert!(told.iter().eq(table().iter().map(|policy| &policy.told)));
    let mut page = |request| rig.granted(conn, request).first.page_size;
    assert_eq!(page(span(1, MIB)), 16384);
    assert_eq!(page(span(2, MIB + 1)), 32768);
    assert_eq!(page(span(3, 4 * MIB + 1)), 4096);
    assert_eq!(page(heap(4, 4096)), 4096);
    assert_eq!(page(by_policy(5, 2, MallocKind::Span { bytes: 4096 })), 65536);
    assert_eq!(page(by_policy(6, 0, MallocKind::Span { bytes: 4096 })), 16384);
    let malloc =
        Malloc { ticket: 7, kind: MallocKind::Span { bytes: 1 }, page_size: 8192, copies: 0 };
    let own = ClientRequest::MallocWith(MallocWith { malloc, policy: 2, wait_ms: None });
    assert_eq!(page(own), 8192);
    rig.done(conn, region("r", MIB, 0));
    let created = rig.daemons[&1].created.last().unwrap();
    assert_eq!((created.page_size, created.bytes_max), (16384, GIB));

    // A heap block of a policy is no larger than it says.
    let granted = rig.granted(conn, by_policy(8, 2, MallocKind::Heap { committed: MIB }));
    assert_eq!((granted.first.bytes_max, granted.first.page_size), (4 * MIB, 65536));
    let large = MallocKind::Heap { committed: 5 * MIB };
    assert_eq!(rig.status(conn, by_policy(9, 2, large)), Status::NoSpace);
    let unknown = by_policy(10, 4, MallocKind::Span { bytes: 1 });
    let refusal = rig.refused(conn, unknown);
    assert_eq!(refusal.status, Status::NotFound);
    assert_eq!(refusal.text, "policy 4 is not in the table, which has 3");
}

/// Blocks of 1 MiB on daemons of equal size, by daemon.
fn spread(placement: Placement, weights: &[(u32, u32)], daemons: u32, blocks: u64) -> Vec<usize> {
    let mut config = config();
    config.placement = placement;
    config.weights = weights.iter().map(|(id, weight)| (daemon_id(*id), *weight)).collect();
    let mut rig = Rig::started(config, Started::default());
    for id in 1..=daemons {
        rig.daemon(id, 3 * GIB);
    }
    let (conn, _) = rig.session(1000);
    for ticket in 1..=blocks {
        rig.granted(conn, heap(ticket, MIB));
    }
    rig.daemons.values().map(|daemon| daemon.created.len()).collect()
}

#[test]
fn each_algorithm_spreads_blocks_as_it_says() {
    assert_eq!(spread(Placement::RoundRobin, &[], 4, 400), [100; 4]);
    assert_eq!(spread(Placement::LeastUsed, &[], 4, 400), [100; 4]);
    let two = spread(Placement::PowerOfTwo, &[], 4, 400);
    assert!(two.iter().all(|count| (95..=105).contains(count)), "{two:?}");
    let drawn = spread(Placement::Weighted, &[(1, 3), (2, 1), (4, 0)], 4, 1000);
    let expected = [600, 200, 200, 0];
    let near = drawn.iter().zip(expected).all(|(count, of)| count.abs_diff(of) < 60);
    assert!(near && drawn[3] == 0, "{drawn:?}");
    // The same seed draws the same.
    assert_eq!(drawn, spread(Placement::Weighted, &[(1, 3), (2, 1), (4, 0)], 4, 1000));
}

/// Else all that is new would be on the one that has just come.
#[test]
fn a_daemon_that_comes_empty_gets_no_more_than_the_others_at_first() {
    const START_MS: u64 = 60_000;
    let mut config = config();
    (config.placement, config.slow_start_ms) = (Placement::LeastUsed, START_MS);
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (conn, _) = rig.session(1000);
    let mut tickets = 1..;
    let mut place = |rig: &mut Rig, count: usize| {
        let daemon = |ticket| {
            let granted = rig.granted(conn, heap(ticket, MIB));
            granted.first.daemons().next().unwrap().get()
        };
        let placed: Vec<u32> = tickets.by_ref().take(count).map(daemon).collect();
        placed.iter().filter(|daemon| **daemon == 3).count()
    };
    assert_eq!(place(&mut rig, 200), 0);
    rig.wait(START_MS);
    rig.daemon(3, GIB);
    let at_first = place(&mut rig, 30);
    assert!((8..=12).contains(&at_first), "{at_first} of 30");
    rig.wait(START_MS / 2);
    // The other half of what it lacks.
    let later = place(&mut rig, 60);
    assert!((45..=60).contains(&later), "{later} of 60");
    rig.wait(START_MS);
    assert_eq!(place(&mut rig, 20), 20);
}

#[test]
fn a_daemon_without_weight_gets_what_no_other_has_room_for() {
    let mut config = config();
    config.placement = Placement::Weighted;
    config.weights = BTreeMap::from([(daemon_id(1), 0)]);
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    rig.daemon(2, 2 * MIB);
    let (conn, _) = rig.session(1000);
    for ticket in 1..=3 {
        rig.granted(conn, heap(ticket, MIB));
    }
    assert_eq!((rig.daemons[&1].created.len(), rig.daemons[&2].created.len()), (1, 2));
}

#[test]
fn reservations_are_placed_by_the_same_algorithm_on_as_few_daemons_as_can_be() {
    let reserved = |placement, bytes: &[u64]| {
        let mut config = config();
        config.placement = placement;
        config.weights = BTreeMap::from([(daemon_id(1), 0), (daemon_id(2), 0)]);
        let mut rig = Rig::started(config, Started::default());
        for id in 1..=3 {
            rig.daemon(id, 3 * GIB);
        }
        for (pid, &bytes) in (1..).zip(bytes) {
            let conn: ClientConn = rig.connect(pid, 1000);
            assert!(matches!(rig.done(conn, setup(bytes, false)), ClientReply::Ready(_)));
        }
        let charged = rig.dispatcher.snapshot().charged;
        charged.values().map(|(_, reserved)| reserved / MIB).collect::<Vec<_>>()
    };
    let three = [MIB; 3];
    assert_eq!(reserved(Placement::RoundRobin, &three), [1, 1, 1]);
    assert_eq!(reserved(Placement::LeastUsed, &three), [1, 1, 1]);
    assert_eq!(reserved(Placement::Weighted, &three), [0, 0, 3]);
    for placement in [Placement::RoundRobin, Placement::PowerOfTwo, Placement::LeastUsed] {
        // Where one daemon holds all of it, it is not divided.
        let mut found = reserved(placement, &[2 * GIB, 2 * GIB, 2 * GIB]);
        found.sort_unstable();
        assert_eq!(found, [2048; 3], "{placement:?}");
        assert_eq!(reserved(placement, &[9 * GIB]), [3072; 3]);
    }
}

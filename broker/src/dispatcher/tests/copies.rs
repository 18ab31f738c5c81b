use std::collections::BTreeSet;

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Malloc, MallocKind, MallocWith, RegionCreate, Setup,
};

use super::rig::{GIB, MIB, Mood, Rig, config, daemon_id, heap, region, setup, span};
use crate::dispatcher::{Quota, Started};

/// An instance whose blocks may have three copies.
pub fn rig(daemons: u32) -> Rig {
    rig_that_syncs(daemons, 0)
}

/// One in which so many of them get copies again at once.
pub fn rig_that_syncs(daemons: u32, syncs_max: usize) -> Rig {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, syncs_max);
    let mut rig = Rig::started(config, Started::default());
    for id in 1..=daemons {
        rig.daemon(id, 3 * GIB);
    }
    rig
}

/// The request with so many copies.
pub fn with_copies(request: ClientRequest, copies: u32) -> ClientRequest {
    match request {
        ClientRequest::Malloc(malloc) => ClientRequest::Malloc(Malloc { copies, ..malloc }),
        ClientRequest::RegionCreate(create) => {
            ClientRequest::RegionCreate(RegionCreate { copies, ..create })
        }
        ClientRequest::Setup(setup) => ClientRequest::Setup(Setup { copies, ..setup }),
        other => other,
    }
}

fn patient(ticket: u64, bytes: u64, copies: u32) -> ClientRequest {
    let malloc = Malloc { ticket, kind: MallocKind::Span { bytes }, page_size: 0, copies };
    ClientRequest::MallocWith(MallocWith { malloc, policy: 0, wait_ms: Some(0) })
}

fn charged(rig: &Rig, daemon: u32) -> (u64, u64) {
    rig.dispatcher.snapshot().charged[&daemon_id(daemon)]
}

/// The daemons that were asked for a block.
fn daemons_of(rig: &Rig, block: BlockId) -> Vec<u32> {
    let has = |id: &u32| rig.daemons[id].created.iter().any(|made| made.block == block);
    rig.daemons.keys().copied().filter(has).collect()
}

#[test]
fn every_copy_of_a_block_is_on_another_daemon_and_paid_for() {
    let mut config = config();
    config.copies_max = 3;
    config.quota = Quota { bytes: 6 * MIB, blocks: 3, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    for id in 1..=4 {
        rig.daemon(id, GIB);
    }
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(heap(1, 2 * MIB), 3));
    assert_eq!(daemons_of(&rig, granted.first.block).len(), 3);
    let bytes: Vec<u64> = (1..=4).map(|id| charged(&rig, id).0).collect();
    assert_eq!(bytes.iter().sum::<u64>(), 6 * MIB);
    assert_eq!(*bytes.iter().max().unwrap(), 2 * MIB);
    assert_eq!(rig.status(conn, heap(2, 4096)), Status::Quota);
}

#[test]
fn a_span_with_copies_has_no_block_twice_on_a_daemon() {
    let mut rig = rig(3);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, with_copies(span(1, 3 * GIB + 5000), 2));
    let first = granted.first.block;
    for place in 0..granted.first.span_count {
        assert_eq!(daemons_of(&rig, first.checked_add(place).unwrap()).len(), 2);
    }
}

#[test]
fn too_few_daemons_are_a_refusal_with_numbers_and_never_fewer_copies() {
    let mut rig = rig(2);
    let (conn, _) = rig.session(1000);
    let refusal = rig.refused(conn, with_copies(heap(1, MIB), 3));
    assert_eq!(refusal.status, Status::NoSpace);
    let text = "3 copies of a block need as many daemons, 2 have 1048576 bytes left";
    assert_eq!(refusal.text, text);
    assert_eq!((charged(&rig, 1), charged(&rig, 2)), ((0, 0), (0, 0)));
    let text = rig.refused(conn, with_copies(heap(1, MIB), 4)).text;
    assert_eq!(text, "4 copies, limit 3");
}

#[test]
fn what_waits_for_copies_is_made_when_there_are_daemons_for_them() {
    let mut rig = rig(1);
    let (conn, _) = rig.session(1000);
    assert_eq!(rig.done(conn, patient(1, MIB, 2)), ClientReply::Queued);
    rig.daemon(2, GIB);
    let granted = rig.granted(conn, patient(1, MIB, 2));
    assert_eq!(daemons_of(&rig, granted.first.block), [1, 2]);
}

#[test]
fn what_more_copies_would_pass_a_quota_with_does_not_wait() {
    let mut config = config();
    config.copies_max = 3;
    config.quota = Quota { bytes: 4 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let (conn, _) = rig.session(1000);
    assert_eq!(rig.done(conn, patient(1, 2 * MIB, 2)), ClientReply::Queued);
    assert_eq!(rig.status(conn, patient(2, 2 * MIB, 3)), Status::NoSpace);
}

#[test]
fn a_copy_that_a_daemon_refuses_is_made_where_no_other_is() {
    let mut rig = rig(3);
    rig.mood(2, Mood::Refuses);
    let (conn, _) = rig.session(1000);
    for ticket in 1..=3 {
        let granted = rig.granted(conn, with_copies(heap(ticket, MIB), 2));
        let places: BTreeSet<u32> = daemons_of(&rig, granted.first.block).into_iter().collect();
        assert!(places.is_superset(&[1, 3].into()), "{places:?}");
    }
    assert_eq!(charged(&rig, 2), (0, 0));
    rig.mood(3, Mood::Refuses);
    assert_eq!(rig.status(conn, with_copies(heap(9, MIB), 2)), Status::NoSpace);
    let (one, three) = (charged(&rig, 1), charged(&rig, 3));
    assert_eq!((one, three), ((3 * MIB, 0), (3 * MIB, 0)));
}

#[test]
fn a_reservation_is_for_every_copy_and_drawn_on_each_daemon() {
    let mut rig = rig(3);
    let conn = rig.connect(1, 1000);
    let ready = rig.done(conn, with_copies(setup(8 * MIB, false), 2));
    assert!(matches!(ready, ClientReply::Ready(ready) if ready.reserved == 16 * MIB));
    let reserved: Vec<u64> = (1..=3).map(|id| charged(&rig, id).1).collect();
    assert_eq!(reserved.iter().filter(|bytes| **bytes == 8 * MIB).count(), 2);
    // The default of the session is two copies.
    rig.granted(conn, heap(1, 8 * MIB));
    let all: Vec<(u64, u64)> = (1..=3).map(|id| charged(&rig, id)).collect();
    assert_eq!(all.iter().filter(|daemon| **daemon == (8 * MIB, 0)).count(), 2);
}

#[test]
fn a_broker_that_keeps_one_copy_refuses_more() {
    let mut rig = Rig::new(3);
    let (conn, _) = rig.session(1000);
    assert_eq!(rig.status(conn, with_copies(heap(1, MIB), 2)), Status::Unsupported);
    let region = with_copies(region("r", MIB, 0o600), 2);
    assert_eq!(rig.status(conn, region), Status::Unsupported);
    let conn = rig.connect(9, 1000);
    assert_eq!(rig.status(conn, with_copies(setup(0, false), 2)), Status::Unsupported);
}

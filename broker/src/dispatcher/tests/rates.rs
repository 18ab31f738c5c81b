use dmce_abi::wire::client::{ClientReply, ClientRequest, RegionList};
use dmce_abi::wire::data::{Bytes, DataRequest, Target};

use super::rig::{GIB, MIB, Rig, config, heap, setup};
use crate::dispatcher::{Action, ClientConn, Quota, Started};

/// An instance in which a user may ask ten times at once, and a hundred times a second.
fn limited() -> Rig {
    limited_to(10)
}

/// The same with so many at once.
fn limited_to(requests_burst: u64) -> Rig {
    let mut config = config();
    config.quota = Quota { requests_per_s: 100, requests_burst, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    rig
}

fn held(rig: &Rig) -> Vec<ClientConn> {
    let mut held = Vec::new();
    for action in &rig.actions {
        match action {
            Action::HoldClient { conn } => held.push(*conn),
            Action::ReadClient { conn } => held.retain(|other| other != conn),
            _ => {}
        }
    }
    held
}

#[test]
fn a_burst_within_the_limit_is_read_at_once_and_more_is_served_and_read_later() {
    let mut rig = limited();
    // A connection and a Setup.
    let (conn, _) = rig.session(1000);
    for _ in 0..8 {
        rig.done(conn, ClientRequest::Stat);
    }
    assert_eq!(held(&rig), []);
    // What was read too early is answered all the same.
    rig.done(conn, ClientRequest::Stat);
    assert_eq!(held(&rig), [conn]);
    rig.wait(100);
    assert_eq!(held(&rig), []);
}

#[test]
fn no_more_are_served_than_the_rate_allows_and_others_are_not_touched() {
    let mut rig = limited();
    let (flood, _) = rig.session(1000);
    let (victim, _) = rig.session(1001);
    let (mut served, mut victims) = (0, 0);
    for _ in 0..100 {
        // The shell takes up to 16 frames of a connection that it reads.
        for _ in 0..16 {
            if held(&rig).contains(&flood) {
                break;
            }
            rig.done(flood, ClientRequest::Stat);
            served += 1;
        }
        rig.done(victim, ClientRequest::Stat);
        victims += 1;
        assert!(!held(&rig).contains(&victim));
        rig.wait(100);
    }
    // Ten seconds: a hundred each, and the burst.
    assert!((900..=1100).contains(&served), "{served}");
    assert_eq!(victims, 100);
}

/// As a request takes the broker's time by what is moved for it, so it takes tokens.
#[test]
fn bytes_that_are_moved_cost_a_token_for_every_4_kib_that_they_begin() {
    const BURST: u64 = 40;
    let mut rig = limited_to(BURST);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    let at = Target { block: first.block, guid: first.guid, cell: 0 };
    let mut cost = |request: ClientRequest| {
        // All tokens are there again.
        rig.wait(1000);
        rig.ask_later(conn, request);
        let mut left = 0;
        while held(&rig).is_empty() {
            rig.done(conn, ClientRequest::Stat);
            left += 1;
        }
        // The last one was one too many.
        BURST - (left - 1)
    };
    for (bytes, tokens) in [(0, 1), (1, 1), (4096, 1), (4097, 2), (60 << 10, 15)] {
        let data = Bytes(vec![1; bytes as usize]);
        assert_eq!(cost(ClientRequest::Data(DataRequest::Read { at, bytes })), tokens, "{bytes}");
        assert_eq!(cost(ClientRequest::Data(DataRequest::Write { at, data })), tokens, "{bytes}");
    }
    // What is refused was moved all the same, and no number in a message costs more than one can.
    let read = DataRequest::Read { at, bytes: u32::MAX };
    assert_eq!(cost(ClientRequest::Data(read)), 15);
    let (volume, after) = ("x".repeat(4096), "x".repeat(4096));
    assert_eq!(cost(ClientRequest::RegionList(RegionList { volume, after })), 2);
    let add = DataRequest::Add64 { at, add: 1 };
    assert_eq!(cost(ClientRequest::Data(add)), 1);
}

#[test]
fn connections_of_one_user_are_read_again_in_their_turn() {
    let mut rig = limited();
    let conns: Vec<ClientConn> = (0..6).map(|_| rig.session(1000).0).collect();
    // Twelve tokens were needed: the last is held.
    for conn in &conns {
        while !held(&rig).contains(conn) {
            rig.done(*conn, ClientRequest::Stat);
        }
    }
    let mut read = Vec::new();
    for _ in 0..100 {
        let before = held(&rig);
        rig.wait(100);
        let after = held(&rig);
        for conn in before.into_iter().filter(|conn| !after.contains(conn)) {
            read.push(conn);
            while !held(&rig).contains(&conn) {
                rig.done(conn, ClientRequest::Stat);
            }
        }
    }
    let turns = conns.iter().map(|conn| read.iter().filter(|other| *other == conn).count());
    let turns: Vec<usize> = turns.collect();
    let (most, least) = (turns.iter().max().unwrap(), turns.iter().min().unwrap());
    assert!(*least > 0 && most - least <= 1, "{turns:?}");
}

#[test]
fn a_user_has_no_more_connections_than_the_quota_and_not_all_without_one() {
    let closed = |rig: &Rig| {
        let closes = rig.actions.iter().filter(|a| matches!(a, Action::CloseClient { .. }));
        closes.count()
    };
    let mut config = config();
    config.quota = Quota { connections: 2, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config.clone(), Started::default());
    let conns = [rig.connect(1, 1000), rig.connect(2, 1000)];
    rig.connect(3, 1000);
    assert_eq!(closed(&rig), 1);
    rig.connect(4, 1001);
    rig.event(crate::dispatcher::Event::HungUp { conn: conns[0] });
    rig.connect(5, 1000);
    assert_eq!(closed(&rig), 1);

    // Without a quota: half of what there is, but for root and the service's user, who is 7 here.
    config.quota = Quota::UNLIMITED;
    config.limits.connections_max = 10;
    config.service_uid = 7;
    let mut rig = Rig::started(config, Started::default());
    for pid in 0..6 {
        rig.connect(pid, 1000);
    }
    assert_eq!(closed(&rig), 1);
    for pid in 10..15 {
        rig.connect(pid, 7);
    }
    assert_eq!(closed(&rig), 1);
}

#[test]
fn one_user_does_not_take_all_sessions_and_blocks() {
    let mut config = config();
    config.limits.sessions_max = 4;
    config.limits.blocks_max = 8;
    config.service_uid = 7;
    let mut rig = Rig::started(config, Started::default());
    rig.register_as(1, GIB, 7);
    let conns = [rig.session(1000).0, rig.session(1000).0];
    let third = rig.connect(99, 1000);
    assert_eq!(rig.status(third, setup(0, false)), dmce_abi::Status::Quota);
    for ticket in 1..=4 {
        rig.granted(conns[0], heap(ticket, MIB));
    }
    assert_eq!(rig.status(conns[1], heap(1, MIB)), dmce_abi::Status::Quota);
    let (other, _) = rig.session(1001);
    assert!(matches!(rig.done(other, heap(1, MIB)), ClientReply::Granted(_)));
}

use dmce_abi::Status;
use dmce_abi::block::Guid;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, DaemonState, Health, SampleKey, UsageRow};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch};
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock};

use super::rig::{GIB, MIB, Mood, Rig, block_id, config, heap, open, peer, region};
use super::syncing::{copies, two};
use crate::dispatcher::{Action, DaemonConn, DispatcherConfig, Event, InspectId, Started};

fn states(rig: &mut Rig) -> (Vec<DaemonState>, Health) {
    let conn = rig.connect(1, 0);
    let ask = |request| ClientRequest::Admin(request);
    let ClientReply::Admin(AdminReply::Daemons { rows, .. }) =
        rig.done(conn, ask(AdminRequest::Daemons { after: 0 }))
    else {
        panic!()
    };
    let ClientReply::Admin(AdminReply::Status(status)) = rig.done(conn, ask(AdminRequest::Status))
    else {
        panic!()
    };
    (rows.into_iter().map(|row| row.state).collect(), status.state)
}

#[test]
fn a_daemon_is_suspected_by_its_silence_and_up_again_by_any_word() {
    let mut rig = Rig::new(2);
    rig.mood(1, Mood::Waits);
    rig.wait(4_000);
    assert_eq!(states(&mut rig), (vec![DaemonState::Suspected, DaemonState::Up], Health::Degraded));
    rig.obey(1);
    assert_eq!(states(&mut rig), (vec![DaemonState::Up; 2], Health::Ok));
    rig.daemon_dies(2);
    assert_eq!(states(&mut rig), (vec![DaemonState::Up, DaemonState::Away], Health::Degraded));
    rig.register(2, GIB);
    assert_eq!(states(&mut rig).0[1], DaemonState::Joining);
}

#[test]
fn usage_is_told_before_the_first_sample_and_where_none_is_kept() {
    for usage_samples in [360, 0] {
        let config = DispatcherConfig { usage_samples, ..config() };
        let mut rig = Rig::started(config, Started::default());
        for id in [1, 2] {
            rig.daemon(id, GIB);
        }
        let (session, _) = rig.session(1000);
        rig.granted(session, heap(1, MIB));
        let conn = rig.connect(2, 0);
        let ask =
            ClientRequest::Admin(AdminRequest::Usage { after: SampleKey { daemon: 0, sample: 0 } });
        let usage = |rig: &mut Rig| {
            let ClientReply::Admin(AdminReply::Usage { rows, .. }) = rig.done(conn, ask.clone())
            else {
                panic!()
            };
            let told = |row: UsageRow| (row.key.daemon, row.key.sample, row.capacity, row.blocks);
            rows.into_iter().map(told).collect::<Vec<_>>()
        };
        assert_eq!(usage(&mut rig), [(1, 0, GIB, 1), (2, 0, GIB, 0)]);
        rig.wait(10_000);
        let number = u64::from(usage_samples > 0);
        assert_eq!(usage(&mut rig), [(1, number, GIB, 1), (2, number, GIB, 0)]);
    }
}

/// Each of these is a daemon that cannot be believed.
#[test]
fn nonsense_ends_a_daemons_connection() {
    let nonsense: [fn(&mut Rig, HeldBlock); 7] = [
        |rig, held| rig.daemon_with(2, GIB, vec![held.clone(), held]),
        |rig, mut held| {
            held.description.epoch = 0;
            rig.daemon_with(2, GIB, vec![held]);
        },
        |rig, mut held| {
            held.committed = held.description.bytes_max + 4096;
            rig.daemon_with(2, GIB, vec![held]);
        },
        // Block 1 is daemon 1's.
        |rig, mut held| {
            held.description.block = block_id(1);
            held.description.span.first = block_id(1);
            rig.daemon_with(2, GIB, vec![held]);
        },
        |rig, _| {
            rig.daemon(2, GIB);
            rig.tell(2, 0, DaemonMessage::Holds { blocks: vec![], damaged: vec![], last: true });
        },
        |rig, _| {
            rig.daemon(2, GIB);
            let done = DaemonMessage::Reply(Ok(DaemonAnswer::Done));
            rig.tell(2, 1_000_000, done);
        },
        |rig, _| {
            rig.daemon(2, GIB);
            rig.mood(2, Mood::Waits);
            rig.wait(1_000);
            let (number, sense) = rig.daemons[&2].asked[0].clone();
            assert_eq!(sense, DaemonRequest::Sense);
            rig.tell(2, number.0, DaemonMessage::Reply(Ok(DaemonAnswer::Done)));
        },
    ];
    for (index, send) in nonsense.into_iter().enumerate() {
        let mut rig = Rig::new(1);
        let (conn, _) = rig.session(1000);
        rig.granted(conn, heap(1, MIB));
        let mut description = rig.daemons[&1].created[0].clone();
        description.block = block_id(9);
        description.span.first = block_id(9);
        description.guid = Guid([9; 16]);
        send(&mut rig, HeldBlock { description, committed: 4096 });
        let strange = rig.daemons[&2].conn;
        let closed = rig.actions.iter().filter_map(|action| match action {
            Action::CloseDaemon { conn, .. } => Some(*conn),
            _ => None,
        });
        assert_eq!(closed.collect::<Vec<_>>(), [strange], "{index}");
        rig.granted(conn, heap(2, MIB));
    }
}

#[test]
fn an_answer_that_comes_twice_or_too_late_does_nothing() {
    let mut rig = Rig::new(1);
    rig.mood(1, Mood::Waits);
    let (conn, _) = rig.session(1000);
    rig.ask_later(conn, heap(1, MIB));
    let (number, _) = rig.daemons[&1].asked[0].clone();
    let answer = || DaemonMessage::Reply(Ok(DaemonAnswer::Committed { committed: MIB }));
    for _ in 0..3 {
        rig.tell(1, number.0, answer());
    }
    assert_eq!(rig.dispatcher.snapshot().blocks.len(), 1);
    rig.daemon_dies(1);
    rig.daemon(1, GIB);
    rig.tell(1, number.0, answer());
    assert_eq!(states(&mut rig).0, [DaemonState::Up]);
}

#[test]
fn a_strangers_process_is_no_daemon() {
    let mut rig = Rig::new(0);
    let conn = DaemonConn(99);
    rig.event(Event::DaemonConnected { conn, peer: peer(1, 1000) });
    assert!(matches!(&rig.actions[..], [.., Action::CloseDaemon { reason, .. }]
        if reason == "user 1000 is not the service's"));
}

#[test]
fn a_session_that_enlarges_its_block_ends_and_of_a_region_nobody_does() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    let (other, _) = rig.session(1000);
    rig.done(other, region("r", 10, 0o600));
    let own = rig.granted(conn, heap(1, MIB)).first.block;
    let shared = rig.daemons[&1].created[0].block;
    for block in [shared, own] {
        let notice = DaemonNotice::Excess { block, bytes: 2 * MIB };
        rig.tell(1, 0, DaemonMessage::Notice(notice));
    }
    let ended = rig.actions.iter().filter(|a| matches!(a, Action::EndSession { .. })).count();
    assert_eq!(ended, 1);
    assert!(rig.actions.contains(&Action::EndSession { session: ready.session }));
    rig.done(other, open(1, "r", true));
}

#[test]
fn blocks_of_a_daemon_that_is_away_are_used_on_while_their_objects_are_there() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let blocks = [1, 2].map(|ticket| rig.granted(conn, heap(ticket, MIB)).first.block);
    rig.actions.clear();
    rig.daemon_dies(1);
    let asked = rig.actions.iter().find_map(|action| match action {
        Action::Inspect { inspect, daemon, blocks } => Some((*inspect, *daemon, blocks.clone())),
        _ => None,
    });
    let (inspect, daemon, all): (InspectId, _, _) = asked.unwrap();
    assert_eq!(all, blocks);
    let found = vec![(blocks[0], Some(MIB)), (blocks[1], None)];
    rig.event(Event::Inspected { inspect, daemon, found });
    let lost = blocks.map(|block| {
        let fetch = ClientRequest::Fetch(Fetch { block, writable: true });
        match rig.done(conn, fetch) {
            ClientReply::Fetched(info) => info.lost,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(lost, [false, true]);
    assert_eq!(rig.status(conn, heap(3, MIB)), Status::NoSpace);
    // Back with the first: nothing else changes. The second it does not have, and says so.
    let description = rig.daemons[&1].created[0].clone();
    rig.daemon_with(1, 3 * GIB, vec![HeldBlock { description, committed: MIB }]);
    rig.granted(conn, heap(3, MIB));
    assert_eq!(rig.dispatcher.snapshot().blocks.values().filter(|block| block.lost).count(), 1);
}

#[test]
fn a_daemon_that_was_drained_and_has_nothing_is_not_missed_when_it_is_stopped() {
    let (mut rig, _, granted) = two();
    let root = rig.connect(1, 0);
    let drain = AdminRequest::Drain { daemon: 1, is_draining: true };
    rig.done(root, ClientRequest::Admin(drain));
    rig.wait(1000);
    assert_eq!(copies(&mut rig, granted.first.block)[0].0, 3);
    rig.daemon_dies(1);
    assert_eq!(states(&mut rig).1, Health::Ok);
    rig.daemon_dies(2);
    assert_eq!(states(&mut rig).1, Health::Degraded);
}

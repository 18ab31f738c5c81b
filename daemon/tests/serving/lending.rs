//! What a daemon lends, and what a broker that dies has made of it.

use dmce_abi::block::DaemonId;
use dmce_abi::name::ObjectName;
use dmce_abi::wire::daemon::PoolPlace;
use dmce_shm::header::{self, BlockHeader};

use super::*;

const OBJECTS: u32 = 3;
const OBJECT_BYTES: u64 = 2 * MIB;

fn lending() -> Broker {
    let mut broker = Broker::new();
    let objects = OBJECTS.to_string();
    let mut command = broker.command();
    broker.start(command.env("DMCE_DAEMON_POOL_OBJECTS", objects));
    broker.accept();
    broker.receive_lent(OBJECTS as usize);
    broker
}

fn name(broker: &Broker, kind: ObjectKind) -> String {
    ObjectName { instance: broker.instance.clone(), daemon: 1, kind }.to_string()
}

/// What a broker does with a lent object; it is whole after step 2.
fn make_of(broker: &Broker, place: PoolPlace, block: u32, steps: u32) {
    let dir = ObjectDir::open("/dev/shm").unwrap();
    let (pool, data) = (ObjectKind::Pool(place.0), ObjectKind::Data(block));
    dir.rename_new(&name(broker, pool), &name(broker, data)).unwrap();
    if steps >= 2 {
        let daemon = DaemonId::try_from(1).unwrap();
        let header = BlockHeader { daemon, description: description(block) };
        header::make(&dir, &name(broker, ObjectKind::Header(block)), &header).unwrap();
    }
}

#[test]
fn what_is_taken_is_a_block_and_is_replaced() {
    let mut broker = lending();
    let place = broker.lent[0];
    make_of(&broker, place, 1, 2);
    broker.tell(&DaemonRequest::Taken { place, block: id(1), committed: OBJECT_BYTES });
    assert_eq!(broker.ask(&grow(1, 3 * MIB)), committed(3 * MIB));
    broker.receive_lent(OBJECTS as usize + 1);
    assert!(!broker.lent[..OBJECTS as usize].contains(&broker.lent[OBJECTS as usize]));
    assert_eq!(broker.ask(&destroy(1)), Ok(DaemonAnswer::Done));
    assert!(!broker.path(ObjectKind::Data(1)).exists());
}

#[test]
fn a_block_that_was_lost_before_its_daemon_knew_it_is_told() {
    let mut broker = lending();
    let (first, second) = (broker.lent[0], broker.lent[1]);
    make_of(&broker, first, 1, 2);
    std::fs::remove_file(broker.path(ObjectKind::Data(1))).unwrap();
    broker.tell(&DaemonRequest::Taken { place: first, block: id(1), committed: OBJECT_BYTES });
    let lost = DaemonNotice::Lost { block: id(1) };
    assert_eq!(broker.receive(), (0, DaemonMessage::Notice(lost)));
    // What the broker gave up is no block: the next news is of new objects.
    broker.tell(&DaemonRequest::Taken { place: second, block: id(2), committed: 0 });
    broker.receive_lent(OBJECTS as usize + 2);
    assert!(!broker.path(ObjectKind::Pool(second.0)).exists());
}

#[test]
fn what_a_broker_made_before_it_died_is_reported_to_the_next() {
    for daemon_dies in [false, true] {
        let mut broker = lending();
        make_of(&broker, broker.lent[0], 1, 2);
        make_of(&broker, broker.lent[1], 2, 1);
        if daemon_dies {
            broker.kill_daemon();
            broker.restart();
            let objects = OBJECTS.to_string();
            let mut command = broker.command();
            broker.start(command.env("DMCE_DAEMON_POOL_OBJECTS", objects));
        } else {
            broker.restart();
        }
        assert_eq!(held(&broker.accept()), [(1, OBJECT_BYTES)], "the daemon dies: {daemon_dies}");
        assert!(!broker.path(ObjectKind::Data(2)).exists());
        // The pool is lent anew, and filled again.
        broker.receive_lent(OBJECTS as usize);
        for place in &broker.lent {
            assert!(broker.path(ObjectKind::Pool(place.0)).exists());
        }
    }
}

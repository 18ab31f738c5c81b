//! What is lent to the broker, and what it may have made of it when either dies.

use dmce_abi::wire::daemon::PoolPlace;
use dmce_shm::header;

use super::*;

/// What the broker does with a lent object, as far as it lives to: after step 1 the data has its
/// name and size, after 2 there is a header that is not ready, after 3 the block is whole.
fn make_of(folder: &Folder, place: PoolPlace, block: u32, committed: u64, steps: u32) {
    let (pool, data) = (ObjectKind::Pool(place.0), ObjectKind::Data(block));
    if steps >= 1 {
        folder.dir().rename_new(&folder.name(pool), &folder.name(data)).unwrap();
        object::truncate(open_own(folder, data).as_fd(), committed).unwrap();
    }
    let name = folder.name(ObjectKind::Header(block));
    match steps {
        0 | 1 => {}
        2 => drop(folder.dir().create(&name).unwrap()),
        _ => header::make(folder.dir(), &name, &super::header(block)).unwrap(),
    }
}

fn taken(place: PoolPlace, block: u32, committed: u64) -> DaemonRequest {
    DaemonRequest::Taken { place, block: id(block), committed }
}

/// A store whose pool is full, and what it lends.
fn lending(fixture: &Fixture) -> (Store, Vec<PoolPlace>) {
    let mut store = fixture.open();
    run_tasks(&mut store);
    let lent = lent(&mut store);
    (store, lent)
}

fn lent(store: &mut Store) -> Vec<PoolPlace> {
    let notices = store.lend();
    let places = notices.map(|notice| match notice {
        DaemonNotice::Lent { place, bytes } => {
            assert_eq!(bytes, 2 * MIB);
            place
        }
        other => panic!("{other:?} is no loan"),
    });
    places.collect()
}

#[test]
fn what_is_ready_is_lent_to_each_broker_once() {
    let fixture = Fixture::with_pool(2);
    let (mut store, places) = lending(&fixture);
    assert_eq!((places.len(), store.pool.bytes()), (2, 4 * MIB));
    assert_eq!(lent(&mut store), []);
    store.look_again().unwrap();
    assert_eq!(lent(&mut store), places);
    // What somebody removed is not lent again, and another takes its place.
    fixture.folder().unlink(ObjectKind::Pool(places[0].0)).unwrap();
    store.look_again().unwrap();
    assert_eq!(lent(&mut store), places[1..]);
    assert_eq!(run_tasks(&mut store), 1);
    let another = lent(&mut store);
    assert!(another.len() == 1 && !places.contains(&another[0]), "{another:?}");
}

#[test]
fn a_daemon_makes_no_block_of_what_it_has_lent() {
    let fixture = Fixture::with_pool(1);
    let (mut store, _) = lending(&fixture);
    ask(&mut store, create(1, 64 * MIB)).unwrap();
    let refusal = ask(&mut store, create(2, 4096)).unwrap_err();
    assert_eq!((refusal.status, store.pool.bytes()), (Status::NoSpace, 2 * MIB));
    ask(&mut store, destroy(1)).unwrap();
    assert_eq!(ask(&mut store, create(2, 2 * MIB)), committed(2 * MIB));
    assert_eq!(store.pool.bytes(), 2 * MIB);
}

#[test]
fn a_block_that_the_broker_has_made_is_the_daemons() {
    let fixture = Fixture::with_pool(2);
    let (mut store, places) = lending(&fixture);
    make_of(&fixture.folder(), places[0], 1, 2 * MIB, 3);
    make_of(&fixture.folder(), places[1], 2, 64 * KIB, 3);
    ask(&mut store, taken(places[0], 1, 2 * MIB)).unwrap();
    ask(&mut store, taken(places[1], 2, 64 * KIB)).unwrap();
    assert_eq!(held(&store), [(1, 2 * MIB), (2, 64 * KIB)]);
    assert_eq!((store.committed(), store.pool.bytes()), (2 * MIB + 64 * KIB, 0));
    assert_eq!(store.take_notices(), []);
    assert_eq!(run_tasks(&mut store), 2, "both are replaced, and their pages are there");
    assert_eq!(ask(&mut store, grow(1, 3 * MIB)), committed(3 * MIB));
    for block in [1, 2] {
        assert_eq!(ask(&mut store, destroy(block)), Ok(DaemonAnswer::Done));
    }
    assert_eq!((store.committed(), held(&store)), (0, vec![]));
}

#[test]
fn what_a_broker_made_and_did_not_tell_is_found_before_the_next_report() {
    for (steps, whole) in [(0, false), (1, false), (2, false), (3, true)] {
        for restarts in [false, true] {
            let fixture = Fixture::with_pool(2);
            let (mut store, places) = lending(&fixture);
            make_of(&fixture.folder(), places[0], 1, 64 * KIB, steps);
            if restarts {
                drop(store);
                store = fixture.open();
            }
            store.look_again().unwrap();
            let expected = if whole { vec![(1, 64 * KIB)] } else { vec![] };
            assert_eq!(held(&store), expected, "step {steps}, restarted: {restarts}");
            assert_eq!(store.committed(), if whole { 64 * KIB } else { 0 });
            run_tasks(&mut store);
            assert_eq!(store.pool.bytes(), 4 * MIB, "it is full again");
            let pool = fixture.names().into_iter().filter(|name| name.starts_with("pool"));
            let others = fixture.names().into_iter().filter(|name| !name.starts_with("pool"));
            assert_eq!(pool.count(), 2);
            let expected: &[&str] = if whole { &["data-00000001", "head-00000001"] } else { &[] };
            assert_eq!(others.collect::<Vec<_>>(), expected);
            // Nothing is taken in twice.
            store.look_again().unwrap();
            assert_eq!(store.committed(), if whole { 64 * KIB } else { 0 });
        }
    }
}

#[test]
fn what_the_broker_could_not_use_is_replaced() {
    let fixture = Fixture::with_pool(2);
    let (mut store, places) = lending(&fixture);
    // The one is there still, the other was removed.
    fixture.folder().unlink(ObjectKind::Pool(places[1].0)).unwrap();
    for place in &places {
        ask(&mut store, taken(*place, 1, 2 * MIB)).unwrap();
    }
    assert_eq!((held(&store), fixture.names()), (vec![], vec![]));
    assert_eq!(run_tasks(&mut store), 2);
    // A place that was never lent, or is told twice, is nothing.
    ask(&mut store, taken(places[0], 1, 2 * MIB)).unwrap();
    ask(&mut store, taken(PoolPlace(999), 1, 2 * MIB)).unwrap();
    assert_eq!((held(&store), store.pool.bytes()), (vec![], 4 * MIB));
}

#[test]
fn a_client_that_changes_the_size_before_the_daemon_knows_gains_nothing() {
    let fixture = Fixture::with_pool(2);
    let (mut store, places) = lending(&fixture);
    for (place, block, bytes) in [(places[0], 1, 5 * MIB), (places[1], 2, 60 * KIB)] {
        make_of(&fixture.folder(), place, block, 64 * KIB, 3);
        object::truncate(open_data(&store, block).as_fd(), bytes).unwrap();
        ask(&mut store, taken(place, block, 64 * KIB)).unwrap();
    }
    let excess = DaemonNotice::Excess { block: id(1), bytes: 5 * MIB };
    assert_eq!(store.take_notices(), [excess, DaemonNotice::Lost { block: id(2) }]);
    assert_eq!(open_data(&store, 1).stat.bytes, 64 * KIB);
    assert_eq!(held(&store), [(1, 64 * KIB)]);
}

#[test]
fn what_is_given_up_before_the_daemon_knows_it_is_removed() {
    for steps in 1..=3 {
        let fixture = Fixture::with_pool(1);
        let (mut store, places) = lending(&fixture);
        make_of(&fixture.folder(), places[0], 1, 2 * MIB, steps);
        let client = open_data(&store, 1);
        assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
        assert_eq!(fixture.names(), Vec::<String>::new(), "after step {steps}");
        let stat = object::stat(client.as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.links), (0, 0));
        ask(&mut store, taken(places[0], 1, 2 * MIB)).unwrap();
        assert_eq!((held(&store), store.committed()), (vec![], 0));
    }
}

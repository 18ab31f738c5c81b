use dmce_abi::wire::data::{DataRequest, Target};
use dmce_sys::watch::{Removals, Watch};

use super::*;
use crate::store::adopt;

#[test]
fn a_block_that_a_client_made_larger_is_cut_back_and_told_each_time() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let client = open_data(&store, 1);
    store.tick();
    assert_eq!(store.take_notices(), []);
    for _ in 0..2 {
        object::truncate(client.as_fd(), 5 * MIB).unwrap();
        store.tick();
        let excess = DaemonNotice::Excess { block: id(1), bytes: 5 * MIB };
        assert_eq!(store.take_notices(), [excess]);
        assert_eq!(object::stat(client.as_fd()).unwrap().bytes, 64 * KIB);
    }
    object::commit(client.as_fd(), 64 * KIB, 4 * MIB).unwrap();
    assert_eq!(ask(&mut store, grow(1, 128 * KIB)), committed(128 * KIB));
    let bytes = 4 * MIB + 64 * KIB;
    assert_eq!(store.take_notices(), [DaemonNotice::Excess { block: id(1), bytes }]);
    assert_eq!(object::stat(client.as_fd()).unwrap().allocated_bytes, 128 * KIB);
    object::truncate(client.as_fd(), 5 * MIB).unwrap();
    assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
    assert_eq!(store.take_notices(), [DaemonNotice::Excess { block: id(1), bytes: 5 * MIB }]);
}

#[test]
fn a_block_whose_data_were_removed_is_gone_with_its_header_at_the_next_report() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    for block in [1, 2, 3] {
        ask(&mut store, create(block, 64 * KIB)).unwrap();
    }
    std::fs::remove_file(fixture.path(ObjectKind::Data(1))).unwrap();
    object::truncate(open_data(&store, 2).as_fd(), 0).unwrap();
    store.tick();
    let lost = [1, 2].map(|block| DaemonNotice::Lost { block: id(block) });
    assert_eq!(store.take_notices(), lost);
    store.look_again().unwrap();
    let names = ["data-00000002", "data-00000003", "head-00000002", "head-00000003"];
    assert_eq!(fixture.names(), names, "what is short is there for the broker to decide about");
    let told = vec![(2, 64 * KIB), (3, 64 * KIB)];
    assert_eq!((held(&store), store.committed()), (told, 128 * KIB));
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(2) }]);
    assert_eq!(ask(&mut store, create(1, 64 * KIB)), committed(64 * KIB));
    assert_eq!(store.committed(), 3 * 64 * KIB);
}

#[test]
fn a_block_that_is_short_is_lost_whatever_somebody_makes_of_it() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let client = open_data(&store, 1);
    object::truncate(client.as_fd(), 0).unwrap();
    store.tick();
    let lost = [DaemonNotice::Lost { block: id(1) }];
    assert_eq!(store.take_notices(), lost);
    for _ in 0..2 {
        store.look_again().unwrap();
        assert_eq!((held(&store), store.take_notices()), (vec![(1, 64 * KIB)], lost.to_vec()));
        store.tick();
        assert_eq!(store.take_notices(), []);
        assert_eq!(ask(&mut store, grow(1, MIB)).unwrap_err().status, Status::Lost);
    }
    object::truncate(client.as_fd(), 64 * KIB).unwrap();
    store.look_again().unwrap();
    assert_eq!((held(&store), store.take_notices()), (vec![], vec![]));
    assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
    assert_eq!((store.committed(), fixture.names()), (0, vec![]));
}

#[test]
fn a_block_that_a_client_made_shorter_is_lost_once() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    object::truncate(open_data(&store, 1).as_fd(), 60 * KIB).unwrap();
    store.tick();
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1) }]);
    store.tick();
    assert_eq!(store.take_notices(), []);
    assert_eq!(held(&store), []);
    for request in [grow(1, MIB), create(1, 64 * KIB)] {
        assert_eq!(ask(&mut store, request).unwrap_err().status, Status::Lost);
    }
    assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
    assert_eq!((store.committed(), fixture.names()), (0, vec![]));
}

#[test]
fn a_removed_object_is_noticed_by_the_watch_and_by_the_clock() {
    for watched in [true, false] {
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let watch = Watch::new().unwrap();
        watch.begin(store.dir()).unwrap();
        ask(&mut store, create(1, 64 * KIB)).unwrap();
        ask(&mut store, create(2, 64 * KIB)).unwrap();
        fixture.folder().unlink(ObjectKind::Data(2)).unwrap();
        if watched {
            store.removed(&watch.deleted().unwrap());
        } else {
            store.tick();
        }
        assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(2) }]);
        assert_eq!(held(&store), [(1, 64 * KIB)]);
        assert_eq!(ask(&mut store, destroy(2)), Ok(DaemonAnswer::Done));
        // Our own removals are no loss, whenever they are heard of.
        ask(&mut store, destroy(1)).unwrap();
        ask(&mut store, create(1, 64 * KIB)).unwrap();
        store.removed(&watch.deleted().unwrap());
        assert_eq!(store.take_notices(), []);
    }
}

#[test]
fn another_object_under_a_blocks_name_is_not_the_block() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let _client = open_data(&store, 1);
    let folder = fixture.folder();
    folder.unlink(ObjectKind::Data(1)).unwrap();
    let other = folder.dir().create(&folder.name(ObjectKind::Data(1))).unwrap();
    object::commit(other.as_fd(), 0, 64 * KIB).unwrap();
    store.tick();
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1) }]);
    assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
    assert_eq!(object::stat(other.as_fd()).unwrap().bytes, 64 * KIB, "it is not ours to empty");
}

#[test]
fn a_removed_header_is_written_again() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    fixture.folder().unlink(ObjectKind::Header(1)).unwrap();
    let names = vec![fixture.folder().name(ObjectKind::Header(1))];
    store.removed(&Removals { names, overflowed: false });
    assert_eq!(store.take_notices(), []);
    drop(store);
    assert_eq!(held(&fixture.open()), [(1, 64 * KIB)]);
}

/// A block of two copies, as its header says at first, and under the next epoch, alone.
fn copies(number: u32) -> (BlockDescription, BlockDescription) {
    let mut first = header(number).description;
    let Owner::Session { session, ticket, uid, .. } = first.owner else { panic!("{first:?}") };
    first.owner = Owner::Session { session, ticket, uid, copies: 2 };
    first.membership.peers = vec![DaemonId::try_from(9).unwrap()];
    let next = BlockDescription {
        epoch: first.epoch + 1,
        membership: Membership::alone(),
        ..first.clone()
    };
    (first, next)
}

#[test]
fn a_header_that_the_broker_has_written_anew_is_what_is_reported_and_written_again() {
    for is_told in [false, true] {
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let (first, next) = copies(1);
        let create = DaemonRequest::Create { description: first.clone(), committed: 64 * KIB };
        ask(&mut store, create).unwrap();
        let head = open_own(&fixture.folder(), ObjectKind::Header(1));
        let written = BlockHeader { daemon: header(1).daemon, description: next.clone() };
        dmce_shm::header::update(head.as_fd(), &written).unwrap();
        if is_told {
            ask(&mut store, DaemonRequest::Rewritten { description: next.clone() }).unwrap();
            // What is older, or of another block, is no news.
            ask(&mut store, DaemonRequest::Rewritten { description: first.clone() }).unwrap();
            let guid = dmce_abi::block::Guid([0xee; 16]);
            let other = BlockDescription { guid, epoch: 99, ..first };
            ask(&mut store, DaemonRequest::Rewritten { description: other }).unwrap();
        } else {
            store.look_again().unwrap();
        }
        let told: Vec<_> = store.held().map(|held| held.description).collect();
        assert_eq!(told, std::slice::from_ref(&next));
        fixture.folder().unlink(ObjectKind::Header(1)).unwrap();
        store.look_again().unwrap();
        drop(store);
        let told: Vec<_> = fixture.open().held().map(|held| held.description).collect();
        assert_eq!(told, [next]);
    }
}

/// It may be the only one that says that an older copy elsewhere is not good.
#[test]
fn the_header_of_a_copy_whose_data_are_gone_is_reported_without_a_byte_until_it_is_destroyed() {
    for restarts in [false, true] {
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let (description, _) = copies(1);
        ask(&mut store, DaemonRequest::Create { description, committed: 64 * KIB }).unwrap();
        std::fs::remove_file(fixture.path(ObjectKind::Data(1))).unwrap();
        if restarts {
            drop(store);
            store = fixture.open();
        } else {
            store.tick();
        }
        for _ in 0..2 {
            store.look_again().unwrap();
            assert_eq!((held(&store), store.committed()), (vec![(1, 0)], 0));
        }
        ask(&mut store, destroy(1)).unwrap();
        assert_eq!(fixture.names(), [""; 0]);
        store.look_again().unwrap();
        assert_eq!(held(&store), []);
    }
}

/// Who may write a block may also give its pages back; those who share it must find memory there.
#[test]
fn pages_that_a_client_gave_back_come_again() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 4 * MIB)).unwrap();
    run_tasks(&mut store);
    let client = open_data(&store, 1);
    object::write_at(client.as_fd(), &[3; 4096], 0).unwrap();
    object::punch_hole(client.as_fd(), MIB, 2 * MIB).unwrap();
    assert_eq!(object::stat(client.as_fd()).unwrap().allocated_bytes, 2 * MIB);
    store.tick();
    store.tick();
    assert_eq!(run_tasks(&mut store), 1, "once, however often it is seen");
    assert_eq!(object::stat(client.as_fd()).unwrap().allocated_bytes, 4 * MIB);
    assert_eq!(store.take_notices(), []);
    let mut page = [0; 4096];
    object::read_at(client.as_fd(), &mut page, 0).unwrap();
    assert_eq!(page, [3; 4096]);
    store.tick();
    assert_eq!(run_tasks(&mut store), 0);
}

#[test]
fn preparing_pages_changes_no_byte() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let bytes = 5 * MIB + 64 * KIB;
    ask(&mut store, create(1, bytes)).unwrap();
    let client = open_data(&store, 1);
    let pattern: Vec<u8> = (0..bytes).map(|at| (at / 4096 % 251) as u8).collect();
    object::write_at(client.as_fd(), &pattern, 0).unwrap();
    assert_eq!(run_tasks(&mut store), 1);
    let mut found = vec![0; pattern.len()];
    object::read_at(client.as_fd(), &mut found, 0).unwrap();
    assert!(found == pattern);
    let stat = object::stat(client.as_fd()).unwrap();
    assert_eq!((stat.bytes, stat.allocated_bytes), (bytes, bytes));
}

#[test]
fn preparing_ends_with_the_block_and_never_in_a_signal() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let preparer = Preparer::new(true).unwrap();
    ask(&mut store, create(1, 20 * MIB + 64 * KIB)).unwrap();
    let Some(Task::Prepare(mut cut)) = store.take_tasks().pop() else { panic!("it has no pages") };
    assert!(preparer.step(&mut cut));
    object::truncate(open_data(&store, 1).as_fd(), 0).unwrap();
    assert!(!preparer.step(&mut cut), "there is nothing left to prepare");

    ask(&mut store, create(2, 20 * MIB + 64 * KIB)).unwrap();
    let Some(Task::Prepare(mut gone)) = store.take_tasks().pop() else { panic!("it has no pages") };
    assert!(preparer.step(&mut gone));
    ask(&mut store, destroy(2)).unwrap();
    assert!(!preparer.step(&mut gone));
    assert_eq!(object::stat(gone.data.as_fd()).unwrap().allocated_bytes, 0);
}

#[test]
fn one_tick_looks_at_a_bounded_number_of_blocks_and_the_next_goes_on() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    for block in 1..=255 {
        ask(&mut store, create(block, 4096)).unwrap();
    }
    let mut last = description(1);
    last.block = id(1000);
    last.span.first = id(1000);
    for block in [300, 400, 1000] {
        last.block = id(block);
        last.span.first = id(block);
        let request = DaemonRequest::Create { description: last.clone(), committed: 4096 };
        ask(&mut store, request).unwrap();
    }
    for block in [1, 1000] {
        fixture.folder().unlink(ObjectKind::Data(block)).unwrap();
    }
    store.tick();
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1) }]);
    store.tick();
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1000) }]);
}

#[test]
fn a_pool_that_has_no_room_is_filled_when_there_is() {
    let Some(tmpfs) = SmallTmpfs::mount(8 * MIB) else { return };
    let mut fixture = Fixture::at(&tmpfs.path);
    fixture.section.pool_objects = 2;
    fixture.section.margin = Bytes::mib(1);
    let mut store = fixture.open();
    ask(&mut store, create(1, 6 * MIB)).unwrap();
    run_tasks(&mut store);
    assert_eq!(store.pool.bytes(), 0);
    ask(&mut store, destroy(1)).unwrap();
    store.tick();
    run_tasks(&mut store);
    assert_eq!(store.pool.bytes(), 4 * MIB);
}

/// What a client has read by message is kept open; what was removed is to be given back at once.
#[test]
fn a_block_that_is_lost_is_held_by_no_descriptor() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let at = |block| Target { block: id(block), guid: description(block).guid, cell: 0 };
    let held_open = |block| {
        let name = fixture.folder().name(ObjectKind::Data(block));
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let mut links = open.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
        links.any(|link| link.to_string_lossy().contains(&name))
    };
    for block in [1, 2] {
        ask(&mut store, create(block, 64 * KIB)).unwrap();
        store.access(&DataRequest::Read { at: at(block), bytes: 8 }).unwrap();
        drop(store.take_tasks());
        assert!(held_open(block));
    }
    std::fs::remove_file(fixture.path(ObjectKind::Data(1))).unwrap();
    store.tick();
    assert_eq!(store.take_notices(), [DaemonNotice::Lost { block: id(1) }]);
    assert_eq!([1, 2].map(held_open), [false, true]);
}

/// The daemon had not been told of the new one when it wrote the header again.
#[test]
fn a_header_that_was_written_again_too_early_is_what_the_broker_has_written() {
    for is_there in [true, false] {
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let watch = Watch::new().unwrap();
        watch.begin(store.dir()).unwrap();
        let (first, next) = copies(1);
        let create = DaemonRequest::Create { description: first.clone(), committed: 64 * KIB };
        ask(&mut store, create).unwrap();
        let head = open_own(&fixture.folder(), ObjectKind::Header(1));
        let written = BlockHeader { daemon: header(1).daemon, description: next.clone() };
        dmce_shm::header::update(head.as_fd(), &written).unwrap();
        fixture.folder().unlink(ObjectKind::Header(1)).unwrap();
        if is_there {
            store.removed(&watch.deleted().unwrap());
            let found = adopt::header_of(&fixture.folder(), id(1)).unwrap();
            assert_eq!(found.map(|header| header.description), Some(first));
        }
        ask(&mut store, DaemonRequest::Rewritten { description: next.clone() }).unwrap();
        let found = adopt::header_of(&fixture.folder(), id(1)).unwrap();
        assert_eq!(found.map(|header| header.description), Some(next));
    }
}

use super::*;
use crate::store::commit::commit;

#[test]
fn what_is_committed_is_there_and_exactly_that() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    for (block, bytes) in [(1, 4 * KIB), (2, 64 * KIB), (3, 2 * MIB), (4, 20 * MIB)] {
        assert_eq!(ask(&mut store, create(block, bytes)), committed(bytes));
        let stat = object::stat(open_data(&store, block).as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.allocated_bytes), (bytes, bytes), "block {block}");
    }
    assert_eq!(store.committed(), 22 * MIB + 68 * KIB);
}

#[test]
fn a_creation_may_be_repeated_but_not_with_another_guid() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    ask(&mut store, grow(1, 128 * KIB)).unwrap();
    assert_eq!(ask(&mut store, create(1, 64 * KIB)), committed(128 * KIB));
    let mut other = description(1);
    other.guid = Guid([0xee; 16]);
    let request = DaemonRequest::Create { description: other, committed: 64 * KIB };
    let refusal = ask(&mut store, request).unwrap_err();
    assert_eq!(refusal.status, Status::Exists);
    assert!(refusal.text.starts_with("block 1 is there already, with the GUID 0101"));
    assert_eq!(held(&store), [(1, 128 * KIB)]);
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let mut contradicting = description(2);
    contradicting.page_size = 5000;
    let refused = [
        (DaemonRequest::Create { description: contradicting, committed: 4096 }, Status::Invalid),
        (create(2, 0), Status::Invalid),
        (create(2, 5000), Status::Invalid),
        (create(2, (1 << 30) + 4096), Status::Invalid),
        (create(2, 65 * MIB), Status::NoSpace),
        (grow(1, 5000), Status::Invalid),
        (grow(1, (1 << 30) + 4096), Status::Invalid),
        (grow(1, u64::MAX - 4095), Status::Invalid),
        (grow(1, 65 * MIB), Status::NoSpace),
        (grow(2, 64 * KIB), Status::NotFound),
    ];
    for (request, status) in refused {
        let refusal = ask(&mut store, request.clone()).unwrap_err();
        assert_eq!(refusal.status, status, "{request:?} gives {refusal:?}");
    }
    assert_eq!(held(&store), [(1, 64 * KIB)]);
    assert_eq!(store.committed(), 64 * KIB);
    assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
    assert_eq!(ask(&mut store, grow(1, 4096)), committed(64 * KIB));
}

#[test]
fn the_capacity_is_an_answer_with_numbers() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 48 * MIB)).unwrap();
    let refusal = ask(&mut store, create(2, 20 * MIB)).unwrap_err();
    assert_eq!(refusal.status, Status::NoSpace);
    assert_eq!(
        refusal.text,
        "block 2: 20 MiB are wanted, 16 MiB are left of the daemon's capacity of 64 MiB"
    );
    assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
    ask(&mut store, create(2, 64 * MIB)).unwrap();
}

#[test]
fn growth_keeps_the_bytes_and_adds_zeros() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let client = open_data(&store, 1);
    object::write_at(client.as_fd(), &[7; 4096], 60 * KIB).unwrap();
    for bytes in [128 * KIB, 3 * MIB, 30 * MIB] {
        assert_eq!(ask(&mut store, grow(1, bytes)), committed(bytes));
        let stat = object::stat(client.as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.allocated_bytes), (bytes, bytes));
    }
    let mut page = [0; 8192];
    object::read_at(client.as_fd(), &mut page, 60 * KIB).unwrap();
    assert_eq!((&page[..4096], &page[4096..]), (&[7; 4096][..], &[0; 4096][..]));
    assert_eq!(store.committed(), 30 * MIB);
}

#[test]
fn a_destroyed_block_gives_its_memory_back_whoever_holds_it() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    for (block, bytes) in [(1, 64 * KIB), (2, 20 * MIB)] {
        ask(&mut store, create(block, bytes)).unwrap();
        let client = open_data(&store, block);
        assert_eq!(ask(&mut store, destroy(block)), Ok(DaemonAnswer::Done));
        let stat = object::stat(client.as_fd()).unwrap();
        assert_eq!((stat.bytes, stat.allocated_bytes, stat.links), (0, 0, 0));
        assert_eq!(ask(&mut store, destroy(block)), Ok(DaemonAnswer::Done));
    }
    assert_eq!((store.committed(), fixture.names()), (0, vec![]));
}

/// The reuse of an id must not hand the old bytes on.
#[test]
fn a_block_that_takes_an_old_id_has_nothing_of_the_old_one() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let client = open_data(&store, 1);
    object::write_at(client.as_fd(), &[9; 4096], 0).unwrap();
    ask(&mut store, destroy(1)).unwrap();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    assert_ne!(open_data(&store, 1).stat.inode, client.stat.inode);
    let mut page = [1; 4096];
    object::read_at(open_data(&store, 1).as_fd(), &mut page, 0).unwrap();
    assert_eq!(page, [0; 4096]);
    // What the old holder writes now is nobody's.
    object::write_at(client.as_fd(), &[9; 4096], 0).unwrap();
    object::read_at(open_data(&store, 1).as_fd(), &mut page, 0).unwrap();
    assert_eq!(page, [0; 4096]);
}

#[test]
fn an_object_that_nobody_waits_for_is_removed_and_a_growth_stays() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let never = AtomicBool::new(false);
    let Begun::Working(job) = store.begin(create(1, 20 * MIB)) else { panic!("it is not brief") };
    let done = job.run(&store.folder(), &never);
    assert_eq!(store.finish(done, false).unwrap_err().status, Status::Unavailable);
    assert_eq!((store.committed(), fixture.names()), (0, vec![]));

    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let Begun::Working(job) = store.begin(grow(1, 20 * MIB)) else { panic!("it is not brief") };
    // Meanwhile the check does not mistake the growth for a client's doing.
    let done = job.run(&store.folder(), &never);
    store.tick();
    assert_eq!(store.take_notices(), []);
    // A broker that came back has told a client how large it is, and that has written there.
    let client = open_data(&store, 1);
    object::write_at(client.as_fd(), &[7; 4096], 20 * MIB - 4096).unwrap();
    assert!(store.is_growing());
    assert_eq!(store.finish(done, false), committed(20 * MIB));
    assert!(!store.is_growing());
    let mut page = [0; 4096];
    object::read_at(client.as_fd(), &mut page, 20 * MIB - 4096).unwrap();
    assert_eq!(page, [7; 4096]);
    assert_eq!((held(&store), store.committed()), (vec![(1, 20 * MIB)], 20 * MIB));
    store.tick();
    assert_eq!(store.take_notices(), []);
}

#[test]
fn a_growth_that_cannot_be_is_taken_back_only_from_who_waits_for_it() {
    const FIRST_PART: u64 = 4 * MIB + (64 << 20);
    let Some(tmpfs) = SmallTmpfs::mount(100 * MIB) else { return };
    let mut fixture = Fixture::at(&tmpfs.path);
    fixture.section.capacity = Bytes::mib(256);
    let mut store = fixture.open();
    ask(&mut store, create(1, 4 * MIB)).unwrap();
    for (wanted, left) in [(true, 4 * MIB), (false, FIRST_PART)] {
        let Begun::Working(job) = store.begin(grow(1, 90 * MIB)) else { panic!("not brief") };
        // Somebody else takes the room between the look and the commitment.
        let rest = std::fs::File::create(tmpfs.path.join("rest")).unwrap();
        object::commit(rest.as_fd(), 0, 20 * MIB).unwrap();
        let done = job.run(&store.folder(), &AtomicBool::new(false));
        assert_eq!(open_data(&store, 1).stat.bytes, FIRST_PART);
        assert_eq!(store.finish(done, wanted).unwrap_err().status, Status::NoSpace);
        let stat = open_data(&store, 1).stat;
        assert_eq!((stat.bytes, stat.allocated_bytes), (left, left));
        assert_eq!((held(&store), store.committed()), (vec![(1, left)], left));
        object::truncate(rest.as_fd(), 0).unwrap();
    }
    assert_eq!(ask(&mut store, grow(1, 90 * MIB)), committed(90 * MIB));
}

#[test]
fn a_job_ends_early_when_its_block_is_to_go() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    ask(&mut store, create(1, 64 * KIB)).unwrap();
    let cancelled = AtomicBool::new(true);
    for request in [grow(1, 20 * MIB), create(2, 20 * MIB)] {
        let Begun::Working(job) = store.begin(request) else { panic!("it is not brief") };
        let done = job.run(&store.folder(), &cancelled);
        let refusal = store.finish(done, true).unwrap_err();
        assert_eq!(refusal.status, Status::Unavailable);
    }
    assert_eq!(store.committed(), 64 * KIB);
    assert_eq!(open_data(&store, 1).stat.allocated_bytes, 64 * KIB);
    assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
}

#[test]
fn a_full_file_system_is_an_answer_and_leaves_all_as_it_was() {
    let Some(tmpfs) = SmallTmpfs::mount(32 * MIB) else { return };
    let fixture = Fixture::at(&tmpfs.path);
    let mut store = fixture.open();
    ask(&mut store, create(1, 4 * MIB)).unwrap();
    for request in [create(2, 30 * MIB), grow(1, 36 * MIB)] {
        let refusal = ask(&mut store, request).unwrap_err();
        assert_eq!(refusal.status, Status::NoSpace);
        assert!(refusal.text.contains("are left in the file system"), "{}", refusal.text);
    }
    // Somebody else takes the room between the look and the commitment.
    let never = AtomicBool::new(false);
    for request in [create(2, 20 * MIB), grow(1, 24 * MIB)] {
        let Begun::Working(job) = store.begin(request) else { panic!("it is not brief") };
        let rest = std::fs::File::create(tmpfs.path.join("rest")).unwrap();
        object::commit(rest.as_fd(), 0, 16 * MIB).unwrap();
        let done = job.run(&store.folder(), &never);
        let refusal = store.finish(done, true).unwrap_err();
        assert_eq!(refusal.status, Status::NoSpace);
        assert!(refusal.text.contains("the file system is full"), "{}", refusal.text);
        object::truncate(rest.as_fd(), 0).unwrap();
        assert_eq!((held(&store), store.committed()), (vec![(1, 4 * MIB)], 4 * MIB));
        assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
    }
    assert_eq!(ask(&mut store, grow(1, 24 * MIB)), committed(24 * MIB));
}

#[test]
fn a_commitment_that_fails_half_way_gives_everything_back() {
    let Some(tmpfs) = SmallTmpfs::mount(8 * MIB) else { return };
    let fixture = Fixture::at(&tmpfs.path);
    let mut store = fixture.open();
    ask(&mut store, create(1, 4 * MIB)).unwrap();
    let client = open_data(&store, 1);
    object::write_at(client.as_fd(), &[5; 4096], 4 * MIB - 4096).unwrap();
    let free = fixture.free_bytes();
    let never = AtomicBool::new(false);
    let growth = Growth { from: 4 * MIB, to: 100 * MIB };
    let error = commit(client.as_fd(), growth, &never).unwrap_err().error.to_string();
    assert_eq!(error, "96 MiB are wanted, and the file system is full");
    let error = Spare::make(&store.folder(), 100 * MIB, &never).unwrap_err().to_string();
    assert_eq!(error, "100 MiB are wanted, and the file system is full");
    let stat = object::stat(client.as_fd()).unwrap();
    assert_eq!((stat.bytes, stat.allocated_bytes), (4 * MIB, 4 * MIB));
    wait_until("its memory is free", || fixture.free_bytes() == free);
    assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
    let mut page = [0; 4096];
    object::read_at(client.as_fd(), &mut page, 4 * MIB - 4096).unwrap();
    assert_eq!(page, [5; 4096]);
}

#[test]
fn a_block_whose_header_finds_no_room_leaves_nothing() {
    let Some(tmpfs) = SmallTmpfs::mount(4 * MIB) else { return };
    let fixture = Fixture::at(&tmpfs.path);
    let mut store = fixture.open();
    let free = fixture.free_bytes();
    let refusal = ask(&mut store, create(1, free)).unwrap_err();
    assert_eq!(refusal.status, Status::NoSpace);
    assert_eq!((store.committed(), fixture.names()), (0, vec![]));
    wait_until("its memory is free", || fixture.free_bytes() == free);
    assert_eq!(ask(&mut store, create(1, free - 4096)), committed(free - 4096));
}

#[test]
fn sense_tells_the_pool_and_the_room() {
    let fixture = Fixture::with_pool(1);
    let mut store = fixture.open();
    run_tasks(&mut store);
    let answer = ask(&mut store, DaemonRequest::Sense).unwrap();
    let DaemonAnswer::Sensed { pool, headroom } = answer else { panic!("{answer:?}") };
    assert_eq!(pool, 2 * MIB);
    assert!(headroom > 0);
}

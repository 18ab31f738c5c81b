use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use dmce_shm::header;
use dmce_sys::identity;

use super::*;
use crate::store::block::{empty, write_header};

/// Offsets of a slot's fields (docs/shared-memory.md, section 3).
const VERSION_OFFSET: u64 = 8;
const READY_OFFSET: u64 = 16;
const REGION_SIZE_OFFSET: u64 = 152;

fn write_to(folder: &Folder, kind: ObjectKind, bytes: &[u8], offset: u64) {
    object::write_at(open_own(folder, kind).as_fd(), bytes, offset).unwrap();
}

/// Makes block 1 of 64 KiB, and dies after so many steps.
fn create_steps(folder: &Folder, steps: usize) {
    if steps == 0 {
        return;
    }
    let spare = Spare::make(folder, 64 * KIB, &AtomicBool::new(false)).unwrap();
    if steps == 1 {
        return;
    }
    spare.name(folder, id(1)).unwrap();
    match steps {
        2 => {}
        3 => drop(folder.dir().create(&folder.name(ObjectKind::Header(1))).unwrap()),
        4 => {
            write_header(folder, &header(1)).unwrap();
            write_to(folder, ObjectKind::Header(1), &[0; 4], READY_OFFSET);
        }
        _ => write_header(folder, &header(1)).unwrap(),
    }
}

/// Destroys block 1, and dies after so many steps.
fn destroy_steps(folder: &Folder, steps: usize) {
    if steps >= 1 {
        folder.unlink(ObjectKind::Header(1)).unwrap();
    }
    if steps >= 2 {
        empty(&open_own(folder, ObjectKind::Data(1))).unwrap();
    }
    if steps >= 3 {
        folder.unlink(ObjectKind::Data(1)).unwrap();
    }
}

#[test]
fn a_death_after_each_step_of_a_creation_leaves_nothing_or_a_whole_block() {
    let left: [&[&str]; 6] = [
        &[],
        &["pool-00000000"],
        &["data-00000001"],
        &["data-00000001", "head-00000001"],
        &["data-00000001", "head-00000001"],
        &["data-00000001", "head-00000001"],
    ];
    for (steps, left) in left.into_iter().enumerate() {
        let fixture = Fixture::new();
        create_steps(&fixture.folder(), steps);
        assert_eq!(fixture.names(), left, "after {steps} steps");
        let store = fixture.open();
        if steps == 5 {
            assert_eq!(held(&store), [(1, 64 * KIB)]);
            assert_eq!(store.held().next().unwrap().description, description(1));
            assert_eq!(fixture.names(), left);
        } else {
            assert_eq!(held(&store), [], "after {steps} steps");
            assert_eq!(fixture.names(), [""; 0], "after {steps} steps");
        }
        assert_eq!(store.foreign(), []);
        assert_eq!(store.committed(), held(&store).iter().map(|(_, bytes)| bytes).sum::<u64>());
    }
}

#[test]
fn a_death_after_each_step_of_a_destruction_leaves_a_whole_block_or_nothing() {
    for steps in 0..=3 {
        let fixture = Fixture::new();
        create_steps(&fixture.folder(), 5);
        // A client that has the block open, as long as it lives.
        let client = open_own(&fixture.folder(), ObjectKind::Data(1));
        object::write_at(client.as_fd(), b"mine", 0).unwrap();
        destroy_steps(&fixture.folder(), steps);
        let store = fixture.open();
        let whole = steps == 0;
        assert_eq!(held(&store).len(), usize::from(whole), "after {steps} steps");
        assert_eq!(fixture.names().is_empty(), !whole, "after {steps} steps");
        // What was destroyed gives its memory back, whoever holds it.
        let stat = object::stat(client.as_fd()).unwrap();
        assert_eq!(stat.allocated_bytes, if whole { 64 * KIB } else { 0 }, "after {steps} steps");
    }
}

#[test]
fn a_daemon_that_was_killed_finds_its_blocks_and_their_bytes() {
    let fixture = Fixture::with_pool(2);
    let mut store = fixture.open();
    run_tasks(&mut store);
    for (block, byte) in [(1, 1), (2, 2), (3, 3)] {
        ask(&mut store, create(block, 64 * KIB)).unwrap();
        object::write_at(open_data(&store, block).as_fd(), &[byte; 4096], 4096).unwrap();
    }
    ask(&mut store, grow(2, 5 * MIB)).unwrap();
    drop(store);
    let store = fixture.open();
    assert_eq!(held(&store), [(1, 64 * KIB), (2, 5 * MIB), (3, 64 * KIB)]);
    assert_eq!(store.committed(), 5 * MIB + 128 * KIB);
    for (block, byte) in [(1, 1), (2, 2), (3, 3)] {
        let mut bytes = [0; 4096];
        object::read_at(open_data(&store, block).as_fd(), &mut bytes, 4096).unwrap();
        assert_eq!(bytes, [byte; 4096]);
    }
}

/// Where something else than a file of ours has one of our names, it is left and named.
#[test]
fn what_is_not_ours_is_left_and_reported() {
    type Make = fn(&Path);
    let kinds: [(Make, &str); 7] = [
        (|path| symlink("/etc/passwd", path).unwrap(), "it is a link or denies access"),
        (|path| symlink("/nonexistent", path).unwrap(), "it is a link or denies access"),
        (
            |path| run(Command::new("mkfifo").arg("-m").arg("600").arg(path)).unwrap(),
            "it is no regular file",
        ),
        (|path| fs::create_dir(path).unwrap(), "it is no regular file"),
        (|path| drop(UnixListener::bind(path).unwrap()), "it is no regular file"),
        (
            |path| {
                fs::write(path, "x").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
            },
            "its mode is not 0600",
        ),
        (
            |path| {
                fs::write(path, "x").unwrap();
                fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
                fs::hard_link(path, path.with_extension("pool-000000ff")).unwrap();
            },
            "it has another link",
        ),
    ];
    let names = [ObjectKind::Data(9), ObjectKind::Header(9), ObjectKind::Pool(9)];
    for ((make, reason), kind) in kinds.iter().flat_map(|make| names.map(|kind| (*make, kind))) {
        let fixture = Fixture::new();
        let path = fixture.path(kind);
        make(&path);
        let before = fs::symlink_metadata(&path).unwrap();
        let mut store = fixture.open();
        let expected = Foreign { object: fixture.folder().name(kind), reason: reason.to_owned() };
        assert!(store.foreign().contains(&expected), "{:?}", store.foreign());
        let after = fs::symlink_metadata(&path).unwrap();
        assert_eq!((before.permissions(), before.len()), (after.permissions(), after.len()));
        // Its place is taken; another block's is not.
        ask(&mut store, create(8, 64 * KIB)).unwrap();
        let refused = ask(&mut store, create(9, 64 * KIB)).map_err(|refusal| refusal.status);
        match kind {
            ObjectKind::Pool(_) => assert_eq!(refused, committed(64 * KIB).map_err(|r| r.status)),
            _ => assert_eq!(refused, Err(Status::Exists)),
        }
        assert!(fs::symlink_metadata(&path).is_ok());
    }
}

#[test]
fn a_file_of_another_user_is_left_and_reported() {
    let fixture = Fixture::new();
    let path = fixture.path(ObjectKind::Data(1));
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let other = identity::effective_uid() + 1;
    if let Err(error) = std::os::unix::fs::chown(&path, Some(other), None) {
        return skip(&format!("only root can give a file to another user: {error}"));
    }
    let store = fixture.open();
    assert_eq!(store.foreign()[0].reason, "it belongs to another user");
    assert!(path.exists());
}

#[test]
fn a_name_that_no_daemon_makes_is_left_and_reported() {
    let fixture = Fixture::new();
    let prefix = fixture.instance.daemon_prefix(daemon().get());
    let odd = ["", "data", "data-1", "data-0000000g", "session-00000001", "data-00000000"];
    for tail in odd {
        fs::write(fixture.objects.join(format!("{prefix}{tail}")), "x").unwrap();
    }
    let store = fixture.open();
    let mut reported: Vec<_> =
        store.foreign().iter().map(|foreign| &foreign.object[prefix.len()..]).collect();
    reported.sort_unstable();
    let mut expected = odd;
    expected.sort_unstable();
    assert_eq!(reported, expected);
    assert_eq!(fixture.names(), expected);
}

/// A header that was whole once and is not right now: the bytes may be all that is left of
/// someone's data.
#[test]
fn a_damaged_block_is_neither_served_nor_removed() {
    type Damage = fn(&Folder);
    let damages: [(Damage, &str); 4] = [
        (
            |folder| write_to(folder, ObjectKind::Header(1), &[1], REGION_SIZE_OFFSET),
            "the header is damaged: the checksum does not match",
        ),
        (
            |folder| write_to(folder, ObjectKind::Header(1), &[9], VERSION_OFFSET),
            "the header is of segment version 9, this release reads 2",
        ),
        (
            |folder| {
                let own = open_own(folder, ObjectKind::Header(1));
                object::truncate(own.as_fd(), 0).unwrap();
                header::create(own.as_fd(), &header(2)).unwrap();
            },
            "the header is damaged: it is of block 2 of daemon 1",
        ),
        (
            |folder| {
                let own = open_own(folder, ObjectKind::Header(1));
                object::truncate(own.as_fd(), 0).unwrap();
                let other = DaemonId::try_from(2).unwrap();
                header::create(own.as_fd(), &BlockHeader { daemon: other, ..header(1) }).unwrap();
            },
            "the header is damaged: it is of block 1 of daemon 2",
        ),
    ];
    for (damage, reason) in damages {
        let fixture = Fixture::new();
        let folder = fixture.folder();
        create_steps(&folder, 5);
        damage(&folder);
        let mut store = fixture.open();
        assert_eq!(held(&store), []);
        let object = folder.name(ObjectKind::Header(1));
        assert!(
            store.foreign().contains(&Foreign { object, reason: reason.to_owned() }),
            "{:?}",
            store.foreign()
        );
        assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
        assert_eq!(store.damaged(), [id(1)]);
        let refused = ask(&mut store, create(1, 64 * KIB)).unwrap_err();
        assert_eq!(refused.status, Status::Exists);
        assert_eq!(ask(&mut store, destroy(1)), Ok(DaemonAnswer::Done));
        assert_eq!(fixture.names(), ["data-00000001", "head-00000001"]);
    }
}

#[test]
fn a_header_without_data_is_removed() {
    let fixture = Fixture::new();
    write_header(&fixture.folder(), &header(1)).unwrap();
    let store = fixture.open();
    assert_eq!((held(&store), fixture.names()), (vec![], vec![]));
    assert_eq!(store.foreign(), []);
}

#[test]
fn a_block_whose_counterpart_is_foreign_is_left_whole() {
    for (spoilt, other) in
        [(ObjectKind::Header(1), ObjectKind::Data(1)), (ObjectKind::Data(1), ObjectKind::Header(1))]
    {
        let fixture = Fixture::new();
        create_steps(&fixture.folder(), 5);
        let path = fixture.path(spoilt);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let store = fixture.open();
        assert_eq!(held(&store), []);
        assert_eq!(store.foreign().len(), 2);
        assert!(path.exists() && fixture.path(other).exists());
        drop(store);
        // The administrator finds out and puts it right.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(held(&fixture.open()), [(1, 64 * KIB)]);
    }
}

#[test]
fn an_object_that_outgrew_its_block_is_cut_back_to_it() {
    let fixture = Fixture::new();
    create_steps(&fixture.folder(), 5);
    let client = open_own(&fixture.folder(), ObjectKind::Data(1));
    let bytes_max = description(1).bytes_max;
    object::truncate(client.as_fd(), bytes_max + 3 * MIB).unwrap();
    let mut store = fixture.open();
    assert_eq!(held(&store), [(1, bytes_max)]);
    let bytes = bytes_max + 3 * MIB;
    assert_eq!(store.take_notices(), [DaemonNotice::Excess { block: id(1), bytes }]);
    drop(store);
    object::truncate(client.as_fd(), 5000).unwrap();
    assert_eq!(held(&fixture.open()), [(1, 4096)]);
}

#[test]
fn one_daemon_serves_an_id_of_an_instance() {
    let fixture = Fixture::new();
    let first = fixture.open();
    let refused = fixture.try_open().unwrap_err().to_string();
    let instance = &fixture.instance;
    assert_eq!(refused, format!("daemon 1 of instance {instance} is served by another process"));
    drop(first);
    drop(fixture.open());
    fs::remove_file(fixture.path(ObjectKind::Lock)).unwrap();
    symlink("/etc/passwd", fixture.path(ObjectKind::Lock)).unwrap();
    let refused = fixture.try_open().unwrap_err().to_string();
    assert!(refused.ends_with("cannot be locked: it is a link or denies access"), "{refused}");
}

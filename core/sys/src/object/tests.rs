//! Objects against the real kernel.

use super::*;
use crate::testing::TestObjects;

#[test]
fn creates_with_mode_0600_whatever_the_umask() {
    let objects = TestObjects::new("mode");
    let name = objects.name("a");
    // A umask is the process's, so the strictest effect is made by hand: see `create`.
    let fd = objects.dir.create(&name).unwrap();
    let found = stat(fd.as_fd()).unwrap();
    assert_eq!((found.mode, found.bytes, found.links), (0o600, 0, 1));
    assert!(found.regular);
    assert_eq!(found.uid, crate::identity::effective_uid());
    assert!(is_writable(fd.as_fd()));
}

#[test]
fn refuses_to_create_rename_or_open_over_what_is_not_so() {
    let objects = TestObjects::new("exists");
    let (a, b) = (objects.name("a"), objects.name("b"));
    objects.dir.create(&a).unwrap();
    objects.dir.create(&b).unwrap();
    assert!(matches!(objects.dir.create(&a), Err(ObjectError::Exists { .. })));
    let renamed = objects.dir.rename_new(&a, &b).unwrap_err();
    assert_eq!(renamed.to_string(), format!("rename: {b} exists already"));
    objects.dir.unlink(&b).unwrap();
    objects.dir.rename_new(&a, &b).unwrap();
    assert!(matches!(objects.dir.open_read_only(&a), Err(ObjectError::NotFound { .. })));
    assert!(matches!(objects.dir.unlink(&a), Err(ObjectError::NotFound { .. })));
    assert_eq!(objects.dir.names(objects.prefix()).unwrap(), [b]);
}

#[test]
fn refuses_names_that_leave_the_directory() {
    let dir = ObjectDir::open(DEFAULT_DIR).unwrap();
    let long = "x".repeat(256);
    for name in ["", ".", "..", "a/b", "/a", "a/", "a\0b", &long] {
        assert!(matches!(dir.create(name), Err(ObjectError::Name { .. })), "{name:?}");
    }
}

#[test]
fn follows_no_symbolic_link_and_does_not_hang_on_a_fifo() {
    let objects = TestObjects::new("special");
    let (link, fifo) = (objects.name("link"), objects.name("fifo"));
    fs::symlinkat("/etc/passwd", &objects.dir, &link).unwrap();
    let mode = Mode::from_raw_mode(0o600);
    fs::mknodat(&objects.dir, &fifo, fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(objects.dir.open_read_only(&link), Err(ObjectError::Denied { .. })));
    let fd = objects.dir.open_read_only(&fifo).unwrap();
    assert!(!stat(fd.as_fd()).unwrap().regular);
}

#[test]
fn commits_across_steps_and_beyond_two_gib_of_offset() {
    let objects = TestObjects::new("commit");
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    let offset = 3 << 30;
    let bytes = COMMIT_STEP_BYTES + 4096;
    commit(fd.as_fd(), offset, bytes).unwrap();
    let found = stat(fd.as_fd()).unwrap();
    assert_eq!(found.bytes, offset + bytes);
    assert!(found.allocated_bytes >= bytes);

    let last = offset + bytes - 5;
    write_at(fd.as_fd(), b"hello", last).unwrap();
    let mut buf = [0; 5];
    read_at(fd.as_fd(), &mut buf, last).unwrap();
    assert_eq!(&buf, b"hello");
    assert_eq!(read_at_most(fd.as_fd(), &mut buf, last + 2).unwrap(), 3);
    assert!(matches!(
        read_at(fd.as_fd(), &mut buf, last + 2),
        Err(ObjectError::Short { done: 3, wanted: 5, .. })
    ));

    punch_hole(fd.as_fd(), offset, COMMIT_STEP_BYTES).unwrap();
    assert!(stat(fd.as_fd()).unwrap().allocated_bytes <= 1 << 20);
    truncate(fd.as_fd(), 0).unwrap();
    assert_eq!(stat(fd.as_fd()).unwrap().allocated_bytes, 0);
}

#[test]
fn says_no_space_when_more_is_committed_than_the_file_system_holds() {
    let objects = TestObjects::new("nospace");
    let total = objects.dir.total_bytes().unwrap();
    if total == 0 {
        return; // A tmpfs without a limit cannot be filled.
    }
    let fd = objects.dir.create(&objects.name("a")).unwrap();
    // One page beyond the end of what can ever be: nothing is taken before the refusal.
    let error = fs::fallocate(&fd, FallocateFlags::empty(), 0, total + (1 << 20))
        .map_err(|errno| ObjectError::of_fd("commit", errno))
        .unwrap_err();
    assert!(matches!(error, ObjectError::NoSpace { .. }), "{error:?}");
    assert!(objects.dir.free_bytes().unwrap() <= total);
}

#[test]
fn a_read_only_descriptor_changes_nothing() {
    let objects = TestObjects::new("readonly");
    let name = objects.name("a");
    let fd = objects.dir.create(&name).unwrap();
    commit(fd.as_fd(), 0, 4096).unwrap();
    objects.dir.unlink(&name).unwrap();
    let reader = reopen_read_only(fd.as_fd()).unwrap();
    assert_eq!(stat(reader.as_fd()).unwrap().inode, stat(fd.as_fd()).unwrap().inode);
    assert!(!is_writable(reader.as_fd()));
    let denied = |result: Result<(), ObjectError>| {
        assert!(matches!(result, Err(ObjectError::Denied { .. })), "{result:?}");
    };
    denied(truncate(reader.as_fd(), 0));
    denied(commit(reader.as_fd(), 0, 8192));
    denied(punch_hole(reader.as_fd(), 0, 4096));
    denied(write_at(reader.as_fd(), b"x", 0));
    assert_eq!(stat(fd.as_fd()).unwrap().bytes, 4096);
}

#[test]
fn a_directory_that_is_none_is_refused() {
    assert!(matches!(ObjectDir::open("/no/such/dir"), Err(ObjectError::NotFound { .. })));
    assert!(matches!(ObjectDir::open("/etc/passwd"), Err(ObjectError::Io { .. })));
    assert!(ObjectDir::open(DEFAULT_DIR).unwrap().is_tmpfs().unwrap());
    assert!(!ObjectDir::open("/proc").unwrap().is_tmpfs().unwrap());
}

#[test]
fn the_end_is_the_size_beyond_two_gib_too() {
    let objects = TestObjects::new("end");
    let name = objects.name("a");
    let fd = objects.dir.create(&name).unwrap();
    objects.dir.unlink(&name).unwrap();
    let reader = reopen_read_only(fd.as_fd()).unwrap();
    for bytes in [0, 4096, 5 << 30, 8192] {
        truncate(fd.as_fd(), bytes).unwrap();
        assert_eq!(end(fd.as_fd()).unwrap(), bytes);
        assert_eq!(end(reader.as_fd()).unwrap(), bytes);
    }
}

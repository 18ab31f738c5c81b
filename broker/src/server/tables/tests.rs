use std::path::PathBuf;

use dmce_abi::AddrLayout;
use dmce_abi::name::Instance;
use dmce_sys::object::ObjectDir;
use dmce_sys::process;

use super::*;

/// A folder of its own, removed whatever happens.
struct Folder {
    path: PathBuf,
    objects: Objects,
}

impl Folder {
    fn new(label: &str) -> Self {
        let name = format!("dmce-test-tables-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let instance = Instance::new("test-tables").unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        Self { path, objects: Objects::new(dir, instance, AddrLayout::IN_SERVER) }
    }

    fn fd(&self) -> OwnedFd {
        self.objects.open(BROKER, ObjectKind::LockTable(5), true).unwrap().0
    }

    /// What a broker finds that starts now.
    fn found(&self) -> Vec<FoundTable> {
        all(&self.objects, &self.objects.list().unwrap().remove(&BROKER).unwrap_or_default())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn block() -> BlockId {
    BlockId::try_from(5).unwrap()
}

fn identity(guid: u8) -> TableIdentity {
    TableIdentity { block: block(), guid: Guid([guid; 16]), epoch: 3 }
}

fn sound(guid: u8, bytes: u64) -> FoundTable {
    FoundTable { block: block(), guid: Some(Guid([guid; 16])), bytes }
}

#[test]
fn a_table_has_words_for_all_pages_and_is_committed_as_far() {
    let folder = Folder::new("words");
    assert_eq!(make(&folder.objects, identity(1), 512 * 4096, &[]), Made::Whole);
    let stat = object::stat(folder.fd().as_fd()).unwrap();
    assert_eq!((stat.bytes, stat.allocated_bytes), (8192, 8192));
    assert_eq!(folder.found(), [sound(1, 512 * 4096)]);
    let (of, bytes) = ((block(), Guid([1; 16])), 513 * 4096);
    assert_eq!(grow(&folder.objects, of, bytes), Made::Whole);
    let stat = object::stat(folder.fd().as_fd()).unwrap();
    assert_eq!((stat.bytes, stat.allocated_bytes), (12288, 12288));
    // Nothing to do, and nothing done to another block's.
    assert_eq!(grow(&folder.objects, of, bytes), Made::Whole);
    let refused = grow(&folder.objects, (block(), Guid([2; 16])), 1 << 30);
    assert!(matches!(refused, Made::Unusable { .. }), "{refused:?}");
    assert_eq!(folder.found(), [sound(1, 1024 * 4096)]);
    remove(&folder.objects, block());
    assert_eq!(folder.found(), []);
    remove(&folder.objects, block());
}

#[test]
fn a_table_that_a_client_has_lengthened_is_committed_as_far_as_it_is_used() {
    let folder = Folder::new("long");
    assert_eq!(make(&folder.objects, identity(1), 4096, &[]), Made::Whole);
    object::truncate(folder.fd().as_fd(), 4096 + (1 << 30)).unwrap();
    assert_eq!(folder.found(), [sound(1, 1 << 39)]);
    assert_eq!(grow(&folder.objects, (block(), Guid([1; 16])), 1024 * 4096), Made::Whole);
    assert_eq!(object::stat(folder.fd().as_fd()).unwrap().allocated_bytes, 12288);
}

#[test]
fn a_table_that_is_made_anew_is_another_object_with_no_lock_held() {
    let folder = Folder::new("anew");
    assert_eq!(make(&folder.objects, identity(1), 4096, &[]), Made::Whole);
    let old = folder.fd();
    object::write_at(old.as_fd(), &[7; 8], table::word_offset(0)).unwrap();
    assert_eq!(make(&folder.objects, identity(1), 4096, &[]), Made::Whole);
    let mut word = [1; 8];
    object::read_at(folder.fd().as_fd(), &mut word, table::word_offset(0)).unwrap();
    assert_eq!(word, [0; 8]);
    assert_eq!(object::stat(old.as_fd()).unwrap().bytes, 0, "it keeps no memory");
}

#[test]
fn what_clients_do_to_a_table_is_found() {
    let folder = Folder::new("claims");
    make(&folder.objects, identity(1), 1 << 30, &[]);
    object::truncate(folder.fd().as_fd(), 8192).unwrap();
    assert_eq!(folder.found(), [sound(1, 512 * 4096)]);
    for harm in [
        |fd: OwnedFd| object::write_at(fd.as_fd(), b"x", 0).unwrap(),
        |fd: OwnedFd| object::write_at(fd.as_fd(), &[6], 16).unwrap(),
        |fd: OwnedFd| object::truncate(fd.as_fd(), 100).unwrap(),
        |fd: OwnedFd| object::truncate(fd.as_fd(), 0).unwrap(),
    ] {
        make(&folder.objects, identity(1), 4096, &[]);
        harm(folder.fd());
        assert_eq!(folder.found(), [FoundTable { block: block(), guid: None, bytes: 0 }]);
        let refused = grow(&folder.objects, (block(), Guid([1; 16])), 1 << 30);
        assert!(matches!(refused, Made::Unusable { .. }), "{refused:?}");
    }
}

#[test]
fn what_is_not_a_table_of_this_user_is_left() {
    let folder = Folder::new("foreign");
    let name = name(&folder.objects, block());
    std::fs::create_dir(folder.path.join(&name)).unwrap();
    let made = make(&folder.objects, identity(1), 4096, &[]);
    assert!(matches!(made, Made::NameTaken { .. }), "{made:?}");
    assert_eq!(folder.found(), []);
    remove(&folder.objects, block());
    assert!(folder.path.join(&name).is_dir());
}

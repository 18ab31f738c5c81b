use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Half, Membership, Owner, Region, SessionId, Span,
    Ticket,
};
use dmce_abi::name::{self, ObjectKind, ObjectName};
use dmce_shm::fence::Fence;
use dmce_shm::header::{self, BlockHeader};
use dmce_shm::record::{self, ProcessIdentity, SessionRecord};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::SessionObject;
use dmce_shm::table::{LockTableHeader, TableIdentity, object_bytes, word_offset};
use dmce_sys::object::{self, ObjectDir};
use dmce_sys::process;

use super::difference::LockFault;
use super::{Checked, Difference, check};

const INSTANCE: &str = "testchecker";
const BLOCK: u32 = 7;
const PAGES: usize = 5;
const BYTES: usize = PAGES * 4096;
const GUID: Guid = Guid([3; 16]);

/// A session's lock word: session 9, slot 2.
const HELD: u64 = 9 << 8 | 2;
const REPAIR: u64 = 1 << 30;
const LOST: u64 = 1 << 29;
const ODD: u64 = 1 << 32;

/// A folder with objects as servers make them.
struct World {
    path: PathBuf,
    dir: ObjectDir,
}

impl World {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let place = MADE.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("dmce-checker-{}-{place}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        Self { path, dir }
    }

    /// With two good copies of a block, and its table.
    fn with_two_copies() -> Self {
        let world = Self::new();
        world.copy(1, &[1, 2], 5);
        world.copy(2, &[1, 2], 5);
        world.table(&[0; PAGES]);
        world
    }

    fn name(daemon: u32, kind: ObjectKind) -> String {
        let instance = name::Instance::new(INSTANCE).unwrap();
        ObjectName { instance, daemon, kind }.to_string()
    }

    fn make(&self, daemon: u32, kind: ObjectKind) -> OwnedFd {
        self.dir.create(&Self::name(daemon, kind)).unwrap()
    }

    fn open(&self, daemon: u32, kind: ObjectKind) -> OwnedFd {
        self.dir.open_read_write(&Self::name(daemon, kind)).unwrap()
    }

    fn remove(&self, daemon: u32, kind: ObjectKind) {
        self.dir.unlink(&Self::name(daemon, kind)).unwrap();
    }

    /// A daemon's copy, whose header says which daemons have one.
    fn copy(&self, of: u32, daemons: &[u32], epoch: u64) {
        self.copy_of(of, daemons, description(epoch, region(2)));
    }

    fn copy_of(&self, of: u32, daemons: &[u32], mut description: BlockDescription) {
        let daemons: Vec<_> = daemons.iter().map(|id| daemon(*id)).collect();
        let half = Half::of(of as usize - 1).unwrap();
        description.membership = Membership::of((daemon(of), half), &daemons, None);
        let head = self.make(of, ObjectKind::Header(BLOCK));
        header::create(head.as_fd(), &BlockHeader { daemon: daemon(of), description }).unwrap();
        let data = self.make(of, ObjectKind::Data(BLOCK));
        object::write_at(data.as_fd(), &vec![0xaa; BYTES], 0).unwrap();
    }

    fn table(&self, words: &[u64]) {
        let fd = self.make(0, ObjectKind::LockTable(BLOCK));
        object::truncate(fd.as_fd(), object_bytes(BYTES as u64)).unwrap();
        let identity = TableIdentity { block: block(), guid: GUID, epoch: 1 };
        LockTableHeader::new(identity).write(fd.as_fd()).unwrap();
        for (page, word) in words.iter().enumerate() {
            self.lock(page, *word);
        }
    }

    fn lock(&self, page: usize, word: u64) {
        let fd = self.open(0, ObjectKind::LockTable(BLOCK));
        object::write_at(fd.as_fd(), &word.to_le_bytes(), word_offset(page as u64 * 4096)).unwrap();
    }

    fn flip(&self, daemon: u32, at: u64) {
        let fd = self.open(daemon, ObjectKind::Data(BLOCK));
        object::write_at(fd.as_fd(), &[0x55], at).unwrap();
    }

    /// Session 9, whose process lives or not.
    fn session(&self, lives: bool) {
        let session = SessionId::try_from(9).unwrap();
        let identity = SessionIdentity { session, guid: Guid([9; 16]) };
        let object = self.make(0, ObjectKind::Session(9));
        SessionObject::create(object, identity, Fence::Full).unwrap();
        let process = ProcessIdentity {
            pid: std::process::id(),
            // Every process has started by the end of time, and none at its beginning.
            lived_at: if lives { u64::MAX } else { 0 },
            boot_id: process::boot_id().unwrap(),
        };
        let record = SessionRecord {
            identity,
            process,
            uid: 0,
            gid: 0,
            reserved: 0,
            created_at: 0,
            pointer_bits: 64,
            copies: 1,
            name: String::new(),
        };
        record::create(self.make(0, ObjectKind::Record(9)).as_fd(), &record).unwrap();
    }

    /// Slot 2 of it has an intent.
    fn intend(&self) {
        let fd = self.open(0, ObjectKind::Session(9));
        object::write_at(fd.as_fd(), &64_u64.to_le_bytes(), 4096 + 2 * 64 + 16).unwrap();
    }

    fn check(&self) -> Checked {
        check(&self.path, INSTANCE).unwrap()
    }

    fn differences(&self) -> Vec<Difference> {
        self.check().differences
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn daemon(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

fn block() -> BlockId {
    BlockId::try_from(BLOCK).unwrap()
}

fn region(copies: u32) -> Owner {
    Owner::Region(Region {
        volume: "v".into(),
        name: "r".into(),
        uid: 0,
        gid: 0,
        mode: 0o600,
        base_pointer: 0,
        region_size: BYTES as u64,
        copies,
        created_at: 0,
        created_by: Ticket { session: Guid([1; 16]), number: 1 },
    })
}

fn of_session() -> Owner {
    Owner::Session {
        session: SessionId::try_from(9).unwrap(),
        ticket: Ticket { session: Guid([9; 16]), number: 1 },
        uid: 0,
        copies: 2,
    }
}

fn description(epoch: u64, owner: Owner) -> BlockDescription {
    BlockDescription {
        block: block(),
        guid: GUID,
        epoch,
        page_size: 4096,
        bytes_max: BYTES as u64,
        span: Span { first: block(), count: 1, guid: GUID },
        owner,
        membership: Membership::alone(),
    }
}

fn lock_fault(page: u64, condition: LockFault) -> Difference {
    Difference::Lock { block: block(), page, condition }
}

fn leftover(daemon: u32, kind: ObjectKind, why: &'static str) -> Difference {
    Difference::Leftover { object: World::name(daemon, kind), why }
}

#[test]
fn equal_copies_with_free_locks_are_sound() {
    let world = World::with_two_copies();
    let checked = world.check();
    assert_eq!(checked.differences, []);
    assert_eq!((checked.blocks, checked.good, checked.stale, checked.compared), (1, 2, 0, 5));
    world.session(true);
    // Nobody's yet: its record is empty.
    world.make(0, ObjectKind::Session(10));
    world.make(0, ObjectKind::Record(10));
    world.make(1, ObjectKind::Pool(1));
    world.make(1, ObjectKind::Lock);
    let checked = world.check();
    assert_eq!((checked.differences, checked.sessions), (vec![], 1));
}

#[test]
fn a_flipped_byte_is_found_with_its_page_and_its_daemons() {
    for page in [0, 3, PAGES as u64 - 1] {
        let world = World::with_two_copies();
        world.flip(2, page * 4096 + 4095);
        let (one, other) = (daemon(1), daemon(2));
        let found = Difference::Bytes { block: block(), page, one, other };
        assert_eq!(world.differences(), [found]);
    }
}

#[test]
fn a_page_that_a_living_intent_holds_may_differ_and_no_other() {
    let world = World::with_two_copies();
    world.session(true);
    world.flip(2, 4096);
    world.lock(1, HELD | ODD);
    let fault = LockFault::NoIntent { session: 9, slot: 2 };
    assert_eq!(world.differences(), [lock_fault(1, fault)]);
    world.intend();
    assert_eq!(world.differences(), []);
    world.flip(1, 2 * 4096);
    let (one, other) = (daemon(1), daemon(2));
    let found = Difference::Bytes { block: block(), page: 2, one, other };
    assert_eq!(world.differences(), [found]);
}

#[test]
fn a_lock_word_that_is_not_at_rest_is_found() {
    for (word, fault) in [
        (HELD, LockFault::Dead { session: 9, slot: 2 }),
        (HELD | ODD, LockFault::Dead { session: 9, slot: 2 }),
        (HELD | REPAIR, LockFault::UnderRepair),
        (ODD, LockFault::Odd),
        (LOST | ODD, LockFault::Lost),
    ] {
        let world = World::with_two_copies();
        world.lock(4, word);
        assert_eq!(world.differences(), [lock_fault(4, fault)], "{word:#x}");
    }
}

#[test]
fn a_copy_of_a_lower_epoch_that_nobody_names_is_stale_and_may_have_any_bytes() {
    let world = World::new();
    world.copy(1, &[1, 2], 5);
    world.copy(2, &[2], 6);
    world.table(&[0; PAGES]);
    world.flip(1, 0);
    let checked = world.check();
    assert_eq!((checked.differences, checked.good, checked.stale), (vec![], 1, 1));
    world.remove(1, ObjectKind::Data(BLOCK));
    let checked = world.check();
    assert_eq!((checked.differences, checked.good, checked.stale), (vec![], 1, 1));
}

#[test]
fn a_copy_that_is_named_is_good_also_if_its_own_header_is_behind() {
    let world = World::new();
    world.copy(1, &[1, 2, 3], 5);
    world.copy(2, &[2, 1], 6);
    world.table(&[0; PAGES]);
    assert_eq!(world.check().good, 2);
    world.flip(1, 0);
    let (one, other) = (daemon(2), daemon(1));
    let found = Difference::Bytes { block: block(), page: 0, one, other };
    assert_eq!(world.differences(), [found]);
}

#[test]
fn a_named_copy_that_is_gone_or_short_is_found() {
    let world = World::with_two_copies();
    object::truncate(world.open(2, ObjectKind::Data(BLOCK)).as_fd(), 4096).unwrap();
    let (one, other) = ((daemon(1), BYTES as u64), (daemon(2), 4096));
    assert_eq!(world.differences(), [Difference::Length { block: block(), one, other }]);
    world.remove(2, ObjectKind::Data(BLOCK));
    let husk = leftover(2, ObjectKind::Header(BLOCK), "there are no data");
    let missing = Difference::Missing { block: block(), epoch: 5, daemon: daemon(2) };
    assert_eq!(world.differences(), [husk, missing.clone()]);
    world.remove(2, ObjectKind::Header(BLOCK));
    assert_eq!(world.differences(), [missing]);
}

#[test]
fn headers_that_contradict_each_other_are_found() {
    let contradiction =
        Difference::Contradiction { block: block(), one: daemon(1), other: daemon(2) };
    let world = World::new();
    world.copy(1, &[1, 2], 5);
    world.copy(2, &[2, 1], 5);
    world.table(&[0; PAGES]);
    assert_eq!(world.differences(), std::slice::from_ref(&contradiction), "who is the primary");
    let world = World::new();
    world.copy(1, &[1, 2], 5);
    world.copy_of(2, &[1, 2], BlockDescription { page_size: 8192, ..description(5, region(2)) });
    world.table(&[0; PAGES]);
    assert_eq!(world.differences(), [contradiction], "what it is");
}

#[test]
fn three_copies_agree_whatever_order_their_headers_give_the_others() {
    let world = World::new();
    for of in [1, 2, 3] {
        world.copy(of, &[1, 2, 3], 5);
    }
    world.table(&[0; PAGES]);
    let checked = world.check();
    assert_eq!((checked.differences, checked.good, checked.compared), (vec![], 3, 5));
}

#[test]
fn a_table_that_is_gone_or_short_or_another_blocks_is_found() {
    let table = |why: &str| Difference::Table { block: block(), why: why.into() };
    let world = World::with_two_copies();
    let fd = world.open(0, ObjectKind::LockTable(BLOCK));
    object::truncate(fd.as_fd(), 4096 + 16).unwrap();
    let short = table("4112 bytes have no words for 20480 of the block");
    assert_eq!(world.differences(), [short]);
    let identity = TableIdentity { block: block(), guid: Guid([4; 16]), epoch: 1 };
    LockTableHeader::new(identity).write(fd.as_fd()).unwrap();
    let nobodys = leftover(0, ObjectKind::LockTable(BLOCK), "there is no block of it");
    assert_eq!(world.differences(), [nobodys, table("it is another block's")]);
    world.remove(0, ObjectKind::LockTable(BLOCK));
    assert_eq!(world.differences(), [table("there is none")]);
}

#[test]
fn what_belongs_to_nobody_is_found() {
    let world = World::new();
    world.copy_of(1, &[1, 2], description(5, of_session()));
    world.copy_of(2, &[1, 2], description(5, of_session()));
    world.table(&[0; PAGES]);
    let head = leftover(1, ObjectKind::Header(BLOCK), "its session does not live");
    assert_eq!(world.differences(), std::slice::from_ref(&head));
    world.session(true);
    assert_eq!(world.differences(), []);
    world.remove(0, ObjectKind::Record(9));
    let object = leftover(0, ObjectKind::Session(9), "there is no record");
    assert_eq!(world.differences(), [object, head]);

    let world = World::new();
    world.session(false);
    let record = leftover(0, ObjectKind::Record(9), "its process is gone");
    assert_eq!(world.differences(), [record]);
    world.remove(0, ObjectKind::Session(9));
    let alone = leftover(0, ObjectKind::Record(9), "there is no session object");
    assert_eq!(world.differences(), [alone]);

    let world = World::new();
    world.make(1, ObjectKind::Data(BLOCK));
    let data = leftover(1, ObjectKind::Data(BLOCK), "there is no header");
    assert_eq!(world.differences(), [data]);
}

#[test]
fn a_header_that_is_damaged_or_misplaced_is_found() {
    let world = World::with_two_copies();
    let head = world.open(2, ObjectKind::Header(BLOCK));
    object::write_at(head.as_fd(), &[0xff], 100).unwrap();
    let found = world.differences();
    let object = World::name(2, ObjectKind::Header(BLOCK));
    let missing = Difference::Missing { block: block(), epoch: 5, daemon: daemon(2) };
    assert!(matches!(&found[0], Difference::Unsound { object: o, .. } if *o == object));
    assert_eq!(found[1..], [missing]);

    let world = World::new();
    world.copy(1, &[1, 2], 5);
    let names = [1, 3].map(|of| World::name(of, ObjectKind::Header(BLOCK)));
    fs::rename(world.path.join(&names[0]), world.path.join(&names[1])).unwrap();
    let names = [1, 3].map(|of| World::name(of, ObjectKind::Data(BLOCK)));
    fs::rename(world.path.join(&names[0]), world.path.join(&names[1])).unwrap();
    let why = "it is another block's, or daemon's".to_owned();
    let object = World::name(3, ObjectKind::Header(BLOCK));
    assert_eq!(world.differences(), [Difference::Unsound { object, why }]);
    fs::write(world.path.join(format!("dmce.{INSTANCE}.1.else")), "").unwrap();
    assert_eq!(world.differences().len(), 2, "a name that nobody makes");
}

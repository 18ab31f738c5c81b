use std::path::PathBuf;

use dmce_abi::block::{Guid, Membership, Owner, SessionId, Span, Ticket};
use dmce_abi::wire::daemon::PoolPlace;
use dmce_sys::process;

use super::*;

const PAGE: u64 = 4096;

/// A folder of its own, removed whatever happens.
struct Folder {
    path: PathBuf,
    objects: Objects,
    sessions: Sessions,
}

impl Folder {
    fn new(label: &str) -> Self {
        let name = format!("dmce-test-objects-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let instance = Instance::new("test-objects").unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        let objects = Objects::new(dir, instance, AddrLayout::IN_SERVER);
        Self { path, objects, sessions: Sessions::new(process::boot_id().unwrap()) }
    }

    /// An object of the pool with `pages`, of which its daemon says that they are `told`.
    fn lend(&self, place: u32, pages: u64, told: u64) -> Lent {
        let name = self.objects.name(daemon().get(), ObjectKind::Pool(place));
        let fd = self.objects.folder().create(&name).unwrap();
        object::truncate(fd.as_fd(), pages * PAGE).unwrap();
        Lent { place: PoolPlace(place), bytes: told * PAGE }
    }

    fn make(&mut self, number: u32, lent: Lent, pages: u64) -> Made {
        self.objects.make_block(daemon(), lent, description(number), pages * PAGE)
    }

    /// What a client is sent of a block.
    fn sent(&self, number: u32, writable: bool) -> OwnedFd {
        let descriptor = Descriptor::Block { daemon: daemon(), block: block(number), writable };
        let opened = self.objects.open_all(&self.sessions, &[descriptor]);
        let Ok(opened) = opened else { panic!("block {number} is not opened") };
        match opened.into_iter().next() {
            Some(Passed::Opened(fd)) => fd,
            _ => panic!("block {number} is not opened for that"),
        }
    }

    fn inode(&self, number: u32) -> u64 {
        let opened = self.objects.open(daemon().get(), ObjectKind::Data(number), false);
        opened.unwrap().1.inode
    }

    fn kinds(&self) -> BTreeSet<ObjectKind> {
        self.objects.list().unwrap().remove(&daemon().get()).unwrap_or_default()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn daemon() -> DaemonId {
    DaemonId::try_from(1).unwrap()
}

fn block(number: u32) -> BlockId {
    BlockId::try_from(number).unwrap()
}

fn description(number: u32) -> BlockDescription {
    let (block, guid) = (block(number), Guid([7; 16]));
    let (session, ticket) = (SessionId::try_from(3).unwrap(), Ticket { session: guid, number: 1 });
    BlockDescription {
        block,
        guid,
        epoch: 1,
        page_size: 4096,
        bytes_max: 64 * PAGE,
        span: Span { first: block, count: 1, guid },
        owner: Owner::Session { session, ticket, uid: 0, copies: 1 },
        membership: Membership::alone(),
    }
}

#[test]
fn no_block_is_made_of_an_object_that_is_shorter_than_its_daemon_said() {
    let mut folder = Folder::new("short");
    let lent = folder.lend(1, 2, 8);
    let made = folder.make(5, lent, 4);
    let Made::Unusable { reason } = made else { panic!("{made:?}") };
    assert!(reason.contains("8192 bytes, 16384"), "{reason}");
    assert_eq!(folder.kinds(), BTreeSet::new(), "it goes, and nothing of a block is there");
    // What is long enough for this block is taken, whatever was said of the rest.
    let lent = folder.lend(2, 4, 8);
    assert_eq!(folder.make(5, lent, 4), Made::Whole);
    assert_eq!(object::stat(folder.sent(5, true).as_fd()).unwrap().bytes, 4 * PAGE);
}

#[test]
fn a_block_has_what_was_committed_of_a_longer_object() {
    let mut folder = Folder::new("long");
    let lent = folder.lend(1, 8, 8);
    assert_eq!(folder.make(5, lent, 3), Made::Whole);
    assert_eq!(folder.kinds(), BTreeSet::from([ObjectKind::Data(5), ObjectKind::Header(5)]));
    assert_eq!(object::stat(folder.sent(5, true).as_fd()).unwrap().bytes, 3 * PAGE);
}

#[test]
fn what_a_client_is_sent_is_the_block_that_it_asked_for() {
    let mut folder = Folder::new("sent");
    let inode = |fd: OwnedFd| object::stat(fd.as_fd()).unwrap().inode;
    for number in [5, 6] {
        let lent = folder.lend(number, 1, 1);
        assert_eq!(folder.make(number, lent, 1), Made::Whole);
    }
    // The one that was made before the last, the last, the last once more, and to read it.
    for (number, writable) in [(5, true), (6, true), (6, true), (6, false)] {
        let sent = folder.sent(number, writable);
        let written = object::write_at(sent.as_fd(), b"w", 0);
        assert_eq!(written.is_ok(), writable, "{number}");
        assert_eq!(inode(sent), folder.inode(number), "{number}");
    }
    let lent = folder.lend(7, 1, 1);
    assert_eq!(folder.make(7, lent, 1), Made::Whole);
    object::write_at(folder.sent(7, false).as_fd(), b"w", 0).unwrap_err();
    folder.objects.forget_made();
    assert_eq!(inode(folder.sent(7, true)), folder.inode(7));
}

#[test]
fn a_header_is_written_anew_in_place_of_its_own_block_s_and_of_no_other() {
    let mut folder = Folder::new("anew");
    let lent = folder.lend(1, 2, 2);
    assert_eq!(folder.make(5, lent, 2), Made::Whole);
    let peers = vec![DaemonId::try_from(7).unwrap()];
    let raised = BlockDescription {
        epoch: 9,
        membership: Membership { peers, ..Membership::alone() },
        ..description(5)
    };
    assert_eq!(folder.objects.rewrite_header(daemon(), raised.clone(), 0), Rewritten::Written);
    let held = folder.objects.read_headers(daemon()).held;
    assert_eq!(held.len(), 1);
    assert_eq!(held[0].description, raised);
    let another = BlockDescription { guid: Guid([8; 16]), ..raised.clone() };
    for (description, what) in [(another, "another block's"), (description(6), "data-")] {
        let rewritten = folder.objects.rewrite_header(daemon(), description, 0);
        let Rewritten::Gone { reason } = rewritten else { panic!("{rewritten:?}") };
        assert!(reason.contains(what), "{reason}");
    }
    assert_eq!(folder.objects.read_headers(daemon()).held[0].description, raised);
}

/// Its bytes are there, and who writes headers knows what it is to say.
#[test]
fn a_header_that_was_removed_is_written_anew_while_there_are_data() {
    let mut folder = Folder::new("removed");
    let lent = folder.lend(1, 2, 2);
    assert_eq!(folder.make(5, lent, 2), Made::Whole);
    let raised = BlockDescription { epoch: 9, ..description(5) };
    let remove = |folder: &Folder, kind| {
        let name = folder.objects.name(daemon().get(), kind);
        folder.objects.folder().unlink(&name).unwrap();
    };
    remove(&folder, ObjectKind::Header(5));
    assert_eq!(folder.objects.rewrite_header(daemon(), raised.clone(), 0), Rewritten::Written);
    let held = folder.objects.read_headers(daemon()).held;
    assert_eq!(held, [HeldBlock { description: raised.clone(), committed: 2 * PAGE }]);
    remove(&folder, ObjectKind::Header(5));
    remove(&folder, ObjectKind::Data(5));
    let rewritten = folder.objects.rewrite_header(daemon(), raised, 0);
    assert!(matches!(rewritten, Rewritten::Gone { .. }), "{rewritten:?}");
    assert_eq!(folder.kinds(), BTreeSet::new());
}

#[test]
fn the_header_of_a_copy_goes_if_it_is_that_ones_and_nobody_serves_its_daemon() {
    let mut folder = Folder::new("given-up");
    let lent = folder.lend(1, 2, 2);
    assert_eq!(folder.make(5, lent, 2), Made::Whole);
    let has_header = |folder: &Folder| folder.kinds().contains(&ObjectKind::Header(5));
    folder.objects.remove_header(daemon(), (block(5), Guid([8; 16])));
    assert!(has_header(&folder), "it is another block's");
    let name = folder.objects.name(daemon().get(), ObjectKind::Lock);
    let lock = OfdLock::try_exclusive(folder.objects.folder().create(&name).unwrap()).unwrap();
    folder.objects.remove_header(daemon(), (block(5), Guid([7; 16])));
    assert!(has_header(&folder), "its daemon is there");
    drop(lock);
    folder.objects.remove_header(daemon(), (block(5), Guid([7; 16])));
    assert!(!has_header(&folder));
    assert!(folder.kinds().contains(&ObjectKind::Data(5)));
    folder.objects.remove_header(daemon(), (block(5), Guid([7; 16])));
}

/// Blocks of three copies, as their descriptors travel.
#[test]
fn the_descriptors_of_all_copies_and_of_the_lock_table_are_opened_or_none() {
    let folder = Folder::new("copies");
    let objects = &folder.objects;
    let daemons = [1, 2, 3].map(|id| DaemonId::try_from(id).unwrap());
    for daemon in daemons {
        let fd = objects.folder().create(&objects.name(daemon.get(), ObjectKind::Data(5))).unwrap();
        object::commit(fd.as_fd(), 0, u64::from(daemon.get()) * PAGE).unwrap();
    }
    let identity =
        dmce_shm::table::TableIdentity { block: block(5), guid: Guid([7; 16]), epoch: 1 };
    let make = || super::super::tables::make(objects, identity, 4 * PAGE, &[]);
    assert_eq!(make(), Made::Whole);
    let session = SessionId::try_from(3).unwrap();
    let travels = |writable| {
        let data = daemons.map(|daemon| Descriptor::Block { daemon, block: block(5), writable });
        let mut all = data.to_vec();
        all.push(Descriptor::Locks { block: block(5), writable, session });
        all
    };
    for writable in [false, true] {
        let Ok(opened) = objects.open_all(&folder.sessions, &travels(writable)) else {
            panic!("not opened")
        };
        let bytes = |fd: &Passed<'_>| object::stat(fd.as_fd()).unwrap().bytes / PAGE;
        assert_eq!(opened.iter().map(bytes).collect::<Vec<_>>(), [1, 2, 3, 2]);
        assert!(opened.iter().all(|fd| object::is_writable(fd.as_fd()) == writable));
    }
    let gone = || match objects.open_all(&folder.sessions, &travels(true)) {
        Ok(_) => panic!("opened"),
        Err(failure) => failure.gone,
    };
    super::super::tables::remove(objects, block(5));
    assert_eq!(gone(), Some(Gone::Locks(block(5))));
    let name = objects.name(2, ObjectKind::Data(5));
    objects.folder().unlink(&name).unwrap();
    assert_eq!(gone(), Some(Gone::Copy(daemons[1], block(5))));
}

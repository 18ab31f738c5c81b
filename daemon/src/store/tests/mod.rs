//! The store against real shared memory: what a reader of the folder would see, and what an
//! adoption makes of it.

mod adoption;
mod lending;
mod requests;
pub(super) mod scrub;
mod seats;
mod upkeep;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dmce_abi::Status;
use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, SessionId, Span, Ticket,
};
use dmce_abi::name::{Instance, ObjectKind, ObjectName};
use dmce_abi::wire::Reply;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonNotice, DaemonRequest};
use dmce_config::{Bytes, DaemonSection};
use dmce_shm::header::BlockHeader;
use dmce_sys::object::{self, ObjectDir};

use super::adopt::Foreign;
use super::block::Spare;
use super::commit::Growth;
use super::folder::{Folder, Found, Own, ServeError};
use super::prepare::{Preparer, Task, TaskDone};
use super::{Begun, Settings, Store, StoreError};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// An instance of one test. Its objects are removed when it is dropped, so also by a panic.
pub(super) struct Fixture {
    instance: Instance,
    objects: PathBuf,
    section: DaemonSection,
}

impl Fixture {
    /// In the shared memory file system, without a pool.
    fn new() -> Self {
        Self::at(Path::new("/dev/shm"))
    }

    fn at(objects: &Path) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("test-store-{}-{number}", std::process::id());
        let section = DaemonSection {
            capacity: Bytes::mib(64),
            pool_objects: 0,
            margin: Bytes(0),
            ..DaemonSection::default()
        };
        let instance = Instance::new(&name).unwrap();
        Self { instance, objects: objects.to_owned(), section }
    }

    fn with_pool(objects: u32) -> Self {
        let mut fixture = Self::new();
        fixture.section.pool_objects = objects;
        fixture
    }

    fn open(&self) -> Store {
        let mut store = self.try_open();
        wait_until("the last store's lock is free", || {
            let served = matches!(store, Err(StoreError::Serve(ServeError::Served { .. })));
            if served {
                store = self.try_open();
            }
            !served
        });
        store.unwrap()
    }

    fn try_open(&self) -> Result<Store, StoreError> {
        Store::open(Settings {
            instance: self.instance.clone(),
            daemon: daemon(),
            objects: self.objects.clone(),
            section: self.section.clone(),
        })
    }

    /// The objects without a store.
    fn folder(&self) -> Folder {
        Folder::open(&self.objects, self.instance.clone(), daemon()).unwrap()
    }

    fn free_bytes(&self) -> u64 {
        self.folder().dir().free_bytes().unwrap()
    }

    fn path(&self, kind: ObjectKind) -> PathBuf {
        self.objects.join(self.folder().name(kind))
    }

    /// The same of another daemon, or of the broker.
    pub(super) fn path_at(&self, daemon: u32, kind: ObjectKind) -> PathBuf {
        let name = ObjectName { instance: self.instance.clone(), daemon, kind };
        self.objects.join(name.to_string())
    }

    /// What there is, lock apart, without the prefix.
    fn names(&self) -> Vec<String> {
        let prefix = self.instance.daemon_prefix(daemon().get());
        let names = self.folder().names().unwrap().into_iter();
        let tails = names.map(|name| name[prefix.len()..].to_owned());
        tails.filter(|name| name != "lock").collect()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let dir = ObjectDir::open(&self.objects).unwrap();
        for name in dir.names(&self.instance.prefix()).unwrap_or_default() {
            let path = self.objects.join(&name);
            let _ = std::fs::remove_file(&path).or_else(|_| std::fs::remove_dir(&path));
        }
    }
}

fn daemon() -> DaemonId {
    DaemonId::try_from(1).unwrap()
}

fn id(block: u32) -> BlockId {
    BlockId::try_from(block).unwrap()
}

fn description(block: u32) -> BlockDescription {
    let guid = Guid([u8::try_from(block).unwrap(); 16]);
    BlockDescription {
        block: id(block),
        guid,
        epoch: 1,
        page_size: 4096,
        bytes_max: 1 << 30,
        span: Span { first: id(block), count: 1, guid },
        owner: Owner::Session {
            session: SessionId::try_from(1).unwrap(),
            ticket: Ticket { session: guid, number: 1 },
            uid: 1000,
            copies: 1,
        },
        membership: Membership::alone(),
    }
}

fn header(block: u32) -> BlockHeader {
    BlockHeader { daemon: daemon(), description: description(block) }
}

fn create(block: u32, committed: u64) -> DaemonRequest {
    DaemonRequest::Create { description: description(block), committed }
}

fn grow(block: u32, committed: u64) -> DaemonRequest {
    DaemonRequest::Grow { block: id(block), committed }
}

fn destroy(block: u32) -> DaemonRequest {
    DaemonRequest::Destroy { block: id(block) }
}

#[expect(clippy::unnecessary_wraps, reason = "it is compared with replies")]
fn committed(committed: u64) -> Reply<DaemonAnswer> {
    Ok(DaemonAnswer::Committed { committed })
}

/// Carries a request out to its end.
fn ask(store: &mut Store, request: DaemonRequest) -> Reply<DaemonAnswer> {
    match store.begin(request) {
        Begun::Answered(reply) => reply,
        Begun::Working(job) => {
            let done = job.run(&store.folder(), &AtomicBool::new(false));
            store.finish(done, true)
        }
    }
}

/// Carries out all tasks; how many there were.
fn run_tasks(store: &mut Store) -> usize {
    let preparer = Preparer::new(true).unwrap();
    if store.is_refill_due() {
        store.refill();
    }
    let tasks = store.take_tasks();
    let count = tasks.len();
    for task in tasks {
        let done = match task {
            Task::Refill { bytes, promise } => {
                TaskDone::Refilled { result: preparer.refill(&store.folder(), bytes), promise }
            }
            Task::Prepare(mut preparation) => {
                while preparer.step(&mut preparation) {}
                preparation.end()
            }
        };
        store.finish_task(done);
    }
    count
}

/// Waits for what comes of itself. A program that another test starts has a copy of our descriptors
/// until it is executed, so locks and memory may be free a little later than we gave them up.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let watchdog = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < watchdog, "in vain: {what}");
        std::thread::yield_now();
    }
}

/// The blocks of a store with their bytes.
fn held(store: &Store) -> Vec<(u32, u64)> {
    store.held().map(|held| (held.description.block.get(), held.committed)).collect()
}

/// An object as its owner, or a client with the right to write, has it.
fn open_own(folder: &Folder, kind: ObjectKind) -> Own {
    match folder.look(kind).unwrap() {
        Found::Own(own) => own,
        other => panic!("{} is {other:?}", folder.name(kind)),
    }
}

fn open_data(store: &Store, block: u32) -> Own {
    open_own(&store.folder, ObjectKind::Data(block))
}

/// A tmpfs of one test, unmounted when it is dropped.
struct SmallTmpfs {
    path: PathBuf,
}

impl SmallTmpfs {
    /// Of so many bytes; `None`, with the reason said, where this process may not mount.
    fn mount(bytes: u64) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dmce-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let size = format!("size={bytes}");
        let options = ["-t", "tmpfs", "-o", &size, "tmpfs"];
        let mounted = run(Command::new("mount").args(options).arg(&path));
        let tmpfs = Self { path };
        match mounted {
            Ok(()) => Some(tmpfs),
            Err(reason) => {
                skip(&format!("a tmpfs cannot be mounted: {reason}"));
                None
            }
        }
    }
}

impl Drop for SmallTmpfs {
    fn drop(&mut self) {
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// Says why a test does nothing. On CI every test has to do something.
fn skip(reason: &str) {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "skipped on CI: {reason}");
    eprintln!("skipped: {reason}");
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

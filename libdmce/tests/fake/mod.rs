//! A broker inside the test: it speaks the protocol over a real socket and grants real objects, and
//! does whatever the test wants to happen to a client.
//!
//! It keeps no limits but a capacity, checks no rights, and serves one session.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::unwrap_used, reason = "part of tests alone")]

mod serve;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::wire::client::{Attach, Delete, Malloc, Map, OpeningId, RegionName};
use dmce_shm::Fence;
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::SessionObject;
use dmce_shm::table::{LockTableHeader, TableIdentity, table_bytes};
use dmce_sys::object::{self, DEFAULT_DIR, ObjectDir};
use dmce_sys::poll::EventFd;
use libdmce::{Options, Session, Status};

/// Width of a cell: blocks of 4 MiB, so that spans are small.
pub const CELL_BITS: u8 = 22;
/// Bytes of a full block.
pub const BLOCK_BYTES: u64 = 1 << CELL_BITS;

/// The broker, until it is dropped.
pub struct Fake {
    pub socket: PathBuf,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

pub struct Shared {
    state: Mutex<State>,
    stop: EventFd,
}

/// What the broker knows, and how it is to behave.
#[allow(clippy::struct_excessive_bools, reason = "each is one thing that may go wrong")]
pub struct State {
    pub blocks: BTreeMap<u32, FakeBlock>,
    pub regions: BTreeMap<RegionName, u32>,
    pub tickets: BTreeMap<u64, u32>,
    pub mallocs: Vec<Malloc>,
    pub maps: BTreeMap<u64, Map>,
    pub deletes: Vec<Delete>,
    pub damaged: Vec<BlockId>,
    /// Openings of regions: their first blocks.
    pub openings: BTreeMap<OpeningId, u32>,
    /// Every close that came, of whatever opening.
    pub closes: Vec<OpeningId>,
    /// The last that attached.
    pub attached: Option<Attach>,
    /// How many requests came, by name.
    pub asked: BTreeMap<&'static str, u32>,
    /// Committed bytes that there may be.
    pub capacity: u64,
    /// Seconds that the client may keep an empty block.
    pub idle_s: u32,
    /// Answers Attach with a refusal.
    pub refuses_attach: bool,
    /// Ends the connection after having done the next request of that name, instead of answering.
    pub dies_after: Option<&'static str>,
    /// Does not answer the next request of that name until told to ([`Fake::answer_held`]).
    pub holds: Option<&'static str>,
    /// The daemons do not answer: no region can be deleted. Whether the deletion has begun.
    pub postpones_begun: Option<bool>,
    /// Copies of what is made.
    pub copies: u32,
    /// What is found when a client calls a block with copies damaged.
    pub finds: Finds,
    /// The base pointer of every region.
    pub base_pointer: u64,
    /// Raises the generation at every Fetch, and does not answer what is asked about it.
    pub moves_at_fetch: bool,
    held: Option<Held>,
    next_block: u32,
    generation: u64,
    changes: Vec<(u64, BlockId)>,
    session: Option<FakeSession>,
    dir: ObjectDir,
}

/// An answer that was held back, with its descriptors.
pub struct Held {
    frame: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

pub struct FakeBlock {
    pub fd: OwnedFd,
    pub guid: Guid,
    pub committed: u64,
    pub bytes_max: u64,
    pub first: u32,
    pub count: u32,
    pub lost: bool,
    /// The daemons of its good copies.
    pub good: Vec<u32>,
    /// The other copies, of daemons 2 and 3.
    pub others: Vec<OwnedFd>,
    /// If there are any, or were.
    pub locks: Option<OwnedFd>,
    pub epoch: u64,
}

/// What a look at a block with copies finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finds {
    /// Nothing is wrong.
    AllGood,
    /// All good copies are as long as they should be: somebody has seen to it.
    Mended,
    /// The copy of this daemon is gone.
    Gone(u32),
    /// The lock table has to be made anew.
    HarmedTable,
}

impl FakeBlock {
    /// The object of a daemon's copy.
    pub fn copy(&self, daemon: u32) -> &OwnedFd {
        if daemon == 1 { &self.fd } else { &self.others[daemon as usize - 2] }
    }
}

struct FakeSession {
    identity: SessionIdentity,
    object: SessionObject,
    fd: OwnedFd,
    doorbell: OwnedFd,
}

impl Fake {
    pub fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("dmce-test-fake-{}-{number}.sock", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let state = State {
            blocks: BTreeMap::new(),
            regions: BTreeMap::new(),
            tickets: BTreeMap::new(),
            mallocs: Vec::new(),
            maps: BTreeMap::new(),
            deletes: Vec::new(),
            damaged: Vec::new(),
            openings: BTreeMap::new(),
            closes: Vec::new(),
            attached: None,
            asked: BTreeMap::new(),
            capacity: 1 << 30,
            idle_s: 3600,
            refuses_attach: false,
            dies_after: None,
            holds: None,
            postpones_begun: None,
            copies: 1,
            finds: Finds::AllGood,
            base_pointer: 1000,
            moves_at_fetch: false,
            held: None,
            next_block: 1,
            generation: 0,
            changes: Vec::new(),
            session: None,
            dir: ObjectDir::open(DEFAULT_DIR).unwrap(),
        };
        let shared = Shared { state: Mutex::new(state), stop: EventFd::new().unwrap() };
        let mut fake = Self { socket, shared: Arc::new(shared), server: None };
        fake.restart();
        fake
    }

    /// Serves again, with all that it knew.
    pub fn restart(&mut self) {
        assert!(self.server.is_none(), "it serves already");
        let listener = dmce_sys::socket::Listener::bind(&self.socket, 0o600).unwrap();
        let shared = Arc::clone(&self.shared);
        self.server = Some(std::thread::spawn(move || serve::run(&shared, &listener)));
    }

    /// Is gone at once, as if killed: its connections end, and nobody listens.
    pub fn die(&mut self) {
        self.state().held = None;
        if let Some(server) = self.server.take() {
            self.shared.stop.signal().unwrap();
            server.join().unwrap();
            self.shared.stop.drain().unwrap();
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }

    pub fn options(&self) -> Options {
        Options {
            socket: Some(self.socket.clone()),
            timeout_ms: 20_000,
            name: "test".into(),
            ..Options::default()
        }
    }

    /// Opens a session in each mode, one after the other, each with a broker of its own: without a
    /// budget (blocks are mapped whole where the process can), and with a small and a larger one.
    pub fn with_each_mode(mut test: impl FnMut(&mut Fake, Session)) {
        for window_budget in [0, 4 << 20, 24 << 20] {
            let mut fake = Fake::start();
            let session = Session::open(&Options { window_budget, ..fake.options() }).unwrap();
            test(&mut fake, session);
        }
    }

    /// Opens a session with a service thread, and then one without, each with a broker of its own.
    pub fn with_and_without_thread(mut test: impl FnMut(&mut Fake, Session)) {
        for no_thread in [false, true] {
            let mut fake = Fake::start();
            let session = Session::open(&Options { no_thread, ..fake.options() }).unwrap();
            test(&mut fake, session);
        }
    }

    pub fn open(&self) -> Session {
        Session::open(&self.options()).unwrap()
    }

    /// What the session says that it uses: bytes, bytes free and allocations.
    pub fn usage(&self) -> (u64, u64, u64) {
        let usage = self.state().session.as_ref().unwrap().object.usage().unwrap();
        (usage.bytes_in_use, usage.bytes_free, usage.allocations)
    }

    /// The bytes of a block's object, by another way than the client's.
    pub fn bytes_of(&self, block: u32, offset: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        object::read_at(self.state().blocks[&block].fd.as_fd(), &mut found, offset).unwrap();
        found
    }

    /// The bytes of a daemon's copy.
    pub fn copy_of(&self, block: u32, daemon: u32, offset: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        let state = self.state();
        object::read_at(state.blocks[&block].copy(daemon).as_fd(), &mut found, offset).unwrap();
        found
    }

    /// Cuts a block's lock table short under its users.
    pub fn cut_table(&self, block: u32) {
        object::truncate(self.state().blocks[&block].locks.as_ref().unwrap().as_fd(), 0).unwrap();
    }

    /// A daemon's copy is good no more: its object was removed, and who has it mapped keeps it.
    pub fn remove_copy(&self, block: u32, daemon: u32) {
        let mut state = self.state();
        let known = state.blocks.get_mut(&block).unwrap();
        known.good.retain(|good| *good != daemon);
        known.epoch += 1;
        state.publish(&[block]);
    }

    /// No copy of a block is good any more.
    pub fn tell_all_gone(&self, block: u32) {
        let mut state = self.state();
        let known = state.blocks.get_mut(&block).unwrap();
        (known.lost, known.locks) = (true, None);
        known.good.clear();
        state.publish(&[block]);
    }

    /// Changes a daemon's copy as another session does.
    pub fn put_copy(&self, block: u32, daemon: u32, offset: u64, data: &[u8]) {
        let state = self.state();
        object::write_at(state.blocks[&block].copy(daemon).as_fd(), data, offset).unwrap();
    }

    /// A block's lock table.
    pub fn table(&self, block: u32) -> OwnedFd {
        self.state().blocks[&block].locks.as_ref().unwrap().try_clone().unwrap()
    }

    /// The lock word of a page.
    pub fn word(&self, block: u32, page: u64) -> u64 {
        let mut word = [0; 8];
        object::read_at(self.table(block).as_fd(), &mut word, 4096 + 8 * page).unwrap();
        u64::from_le_bytes(word)
    }

    /// Says of a page's lock what another session would.
    pub fn set_word(&self, block: u32, page: u64, half: u32, sequence: u32) {
        let word = u64::from(sequence) << 32 | u64::from(half);
        object::write_at(self.table(block).as_fd(), &word.to_le_bytes(), 4096 + 8 * page).unwrap();
    }

    /// Whether an answer is held back.
    pub fn is_holding(&self) -> bool {
        self.state().held.is_some()
    }

    /// Cuts a daemon's copy short under its readers.
    pub fn truncate_copy(&self, block: u32, daemon: u32) {
        object::truncate(self.state().blocks[&block].copy(daemon).as_fd(), 0).unwrap();
    }

    /// Cuts a block's object short under its readers.
    pub fn truncate(&self, block: u32, bytes: u64) {
        object::truncate(self.state().blocks[&block].fd.as_fd(), bytes).unwrap();
    }

    /// Says that a block is lost, or there again with zeros.
    pub fn tell_lost(&self, block: u32, lost: bool) {
        let mut state = self.state();
        if !lost {
            let committed = state.blocks[&block].committed;
            state.blocks.get_mut(&block).unwrap().fd = state.object(committed);
        }
        state.blocks.get_mut(&block).unwrap().lost = lost;
        state.publish(&[block]);
    }

    /// The answer that is held back, to be changed.
    pub fn held(&self, change: impl FnOnce(&mut Held)) {
        change(self.state().held.as_mut().unwrap());
    }

    /// Answers the request that was held back.
    pub fn answer_held(&self) {
        self.shared.stop.signal().unwrap();
    }

    pub fn asked(&self, request: &str) -> u32 {
        self.state().asked.get(request).copied().unwrap_or(0)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.die();
    }
}

impl State {
    /// An object of that many zeros, without a name.
    fn object(&self, bytes: u64) -> OwnedFd {
        let name = format!("dmce.test-{}-fake-{}", std::process::id(), new_guid());
        let fd = self.dir.create(&name).unwrap();
        self.dir.unlink(&name).unwrap();
        object::commit(fd.as_fd(), 0, bytes).unwrap();
        fd
    }

    /// A lock table for a block of so many bytes.
    fn table(&self, block: u32, (guid, epoch): (Guid, u64), bytes: u64) -> OwnedFd {
        let fd = self.object(table_bytes(bytes));
        let block = BlockId::try_from(block).unwrap();
        LockTableHeader::new(TableIdentity { block, guid, epoch }).write(fd.as_fd()).unwrap();
        fd
    }

    /// Looks at a block that a client called damaged.
    fn look_at(&mut self, id: u32) {
        let finds = self.finds;
        let block = self.blocks.get_mut(&id).unwrap();
        let Some(locks) = &block.locks else {
            block.lost = true;
            return;
        };
        match finds {
            Finds::AllGood => return,
            Finds::Mended => {
                for daemon in &block.good {
                    object::commit(block.copy(*daemon).as_fd(), 0, block.committed).unwrap();
                }
                return;
            }
            Finds::Gone(daemon) => {
                let before = block.good.len();
                block.good.retain(|good| *good != daemon);
                if block.good.len() == before {
                    return;
                }
                block.lost = block.good.is_empty();
                block.epoch += 1;
            }
            Finds::HarmedTable => {
                if object::end(locks.as_fd()).unwrap() > 0 {
                    return;
                }
                block.epoch += 1;
                let (who, bytes) = ((block.guid, block.epoch), block.bytes_max);
                let made = self.table(id, who, bytes);
                self.blocks.get_mut(&id).unwrap().locks = Some(made);
            }
        }
        self.publish(&[id]);
    }

    fn committed(&self) -> u64 {
        self.blocks.values().map(|block| block.committed).sum()
    }

    /// Raises the generation for some blocks, and rings.
    pub fn publish(&mut self, blocks: &[u32]) {
        self.generation += 1;
        let generation = self.generation;
        let ids = blocks.iter().map(|id| (generation, BlockId::try_from(*id).unwrap()));
        self.changes.extend(ids);
        let session = self.session.as_ref().unwrap();
        session.object.publish(self.generation).unwrap();
        let doorbell = EventFd::from_fd(session.doorbell.try_clone().unwrap()).unwrap();
        doorbell.signal().unwrap();
    }

    fn set_up(&mut self) {
        let identity =
            SessionIdentity { session: SessionId::try_from(1).unwrap(), guid: new_guid() };
        let name = format!("dmce.test-{}-session-{}", std::process::id(), identity.guid);
        let fd = self.dir.create(&name).unwrap();
        self.dir.unlink(&name).unwrap();
        let copy = fd.try_clone().unwrap();
        let object = SessionObject::create(copy, identity, Fence::register()).unwrap();
        let doorbell = new_eventfd();
        self.session = Some(FakeSession { identity, object, fd, doorbell });
    }
}

/// One that no other object of this process has.
fn new_guid() -> Guid {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let mut guid = [7; 16];
    guid[..4].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    Guid(guid)
}

fn new_eventfd() -> OwnedFd {
    EventFd::new().unwrap().as_fd().try_clone_to_owned().unwrap()
}

/// Waits until something holds; the watchdog is far beyond any scheduling.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The status of a call that is to fail.
pub fn status<T: std::fmt::Debug>(done: Result<T, libdmce::Error>) -> Status {
    done.unwrap_err().status()
}

/// Numbers that a seed decides (splitmix64).
pub struct Seeded(pub u64);

impl Seeded {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.bits().to_le_bytes()).flatten().take(count).collect()
    }
}

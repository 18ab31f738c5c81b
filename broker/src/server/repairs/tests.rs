use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::AtomicU32;

use dmce_abi::AddrLayout;
use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::name::Instance;
use dmce_broker::dispatcher::{Made, SessionRecord};
use dmce_shm::fence::Fence;
use dmce_shm::lock::{LockBits, LockOwner, LockState, PageCondition};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::map::SessionMap;
use dmce_shm::session::pin::{PinClaim, PinnedRange};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};
use dmce_shm::table::TableIdentity;
use dmce_sys::clock::boot_ticks;
use dmce_sys::futex::wide;
use dmce_sys::map::{FileRange, Mapping, Populate, Protection};
use dmce_sys::object::ObjectDir;
use dmce_sys::transfer::word::Word;
use dmce_sys::{fault, process};

use super::super::objects::BROKER;
use super::*;

const PAGES: u64 = 32;
const END: u64 = PAGES * PAGE_BYTES;
const BASE: u64 = 5 << 32;
const SLOT: u8 = 200;
const CARRYING: u8 = 0;
const OLD: u8 = 1;
const NEW: u8 = 2;
/// What a page word is while its holder writes.
const WRITING: u64 = 7 << 32;

/// The process of a session. It has ended, unless it is kept.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A block with copies on two daemons, its lock table, and a session; removed whatever happens.
struct Folder {
    path: PathBuf,
    objects: Objects,
    sessions: Sessions,
    map: SessionMap,
    lived_at: u64,
    process: Option<Process>,
}

impl Folder {
    fn new(label: &str) -> Self {
        fault::install().unwrap();
        let name = format!("dmce-test-repairs-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let instance = Instance::new("test-repairs").unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        let objects = Objects::new(dir, instance, AddrLayout::IN_SERVER);
        for daemon in [1, 2] {
            let name = objects.name(daemon, ObjectKind::Data(block().get()));
            let fd = objects.folder().create(&name).unwrap();
            object::write_at(fd.as_fd(), &vec![OLD; usize::try_from(END).unwrap()], 0).unwrap();
        }
        let identity = TableIdentity { block: block(), guid: guid(), epoch: 1 };
        assert_eq!(tables::make(&objects, identity, END, &[]), Made::Whole);
        let child = Process(Command::new("sleep").arg("1000").spawn().unwrap());
        let mut sessions = Sessions::new(process::boot_id().unwrap());
        let lived_at = boot_ticks();
        sessions.create(&objects, &record(child.0.id(), lived_at)).unwrap();
        sessions.commit_undo(session()).unwrap();
        let identity = SessionIdentity { session: session(), guid: guid() };
        let map = SessionMap::map(sessions.object(session()).unwrap(), identity, Fence::Full);
        let (map, process) = (map.unwrap(), Some(child));
        Self { path, objects, sessions, map, lived_at, process }
    }

    /// The client was writing so many bytes, and dies: of the first copy some are new, or all, and
    /// half of those of the other.
    fn write(&mut self, cell: u64, bytes: u64, is_forward: bool) -> Repair {
        let intent = self.begin(cell, bytes);
        let (first, other) = (if is_forward { bytes } else { bytes / 2 }, bytes / 2);
        intent(self, is_forward);
        self.put(1, cell, first);
        if is_forward {
            self.put(2, cell, other);
        }
        let pages = cell / PAGE_BYTES..(cell + bytes).div_ceil(PAGE_BYTES);
        pages.for_each(|page| self.set_word(page, WRITING | held_by(session()).word()));
        self.die();
        self.job()
    }

    /// An operation with an intent begins, and never ends.
    fn begin(&self, cell: u64, bytes: u64) -> impl FnOnce(&Self, bool) + use<> {
        let operation = self.map.begin(usize::from(SLOT)).unwrap();
        let intent = self.map.slots()[usize::from(SLOT)].intend(BASE + cell, bytes);
        intent.begin_first(daemon(1), Undo::Absent);
        std::mem::forget((operation, intent));
        |folder, is_forward| {
            if is_forward {
                // As the writer does that is no more.
                let two = 2_u32.to_le_bytes();
                let at = 4096 + u64::from(SLOT) * 64 + 4;
                let object = folder.sessions.object(session()).unwrap();
                object::write_at(object, &two, at).unwrap();
            }
        }
    }

    fn die(&mut self) {
        self.process = None;
    }

    /// As the broker finds it.
    fn job(&self) -> Repair {
        let found = self.sessions.intents(session(), self.identity()).unwrap().unwrap();
        let [(slot, claim)] = found.claims[..] else { panic!("{found:?}") };
        job_of(slot, &claim)
    }

    fn identity(&self) -> (u32, u64) {
        let record = self.objects.open(BROKER, ObjectKind::Record(session().get()), false);
        let record = dmce_shm::record::read(record.unwrap().0.as_fd()).unwrap();
        (record.process.pid, self.lived_at)
    }

    fn repair(&self, job: &Repair) -> Repaired {
        repair(&self.objects, &self.sessions, job)
    }

    fn open(&self, daemon: u32, kind: ObjectKind) -> OwnedFd {
        self.objects.open(daemon, kind, true).unwrap().0
    }

    fn data(&self, daemon: u32) -> OwnedFd {
        self.open(daemon, ObjectKind::Data(block().get()))
    }

    fn put(&self, daemon: u32, cell: u64, bytes: u64) {
        let new = vec![NEW; usize::try_from(bytes).unwrap()];
        object::write_at(self.data(daemon).as_fd(), &new, cell).unwrap();
    }

    fn bytes(&self, daemon: u32) -> Vec<u8> {
        let fd = self.data(daemon);
        let bytes = object::end(fd.as_fd()).unwrap();
        let mut found = vec![0; usize::try_from(bytes).unwrap()];
        object::read_at(fd.as_fd(), &mut found, 0).unwrap();
        found
    }

    fn table(&self) -> OwnedFd {
        self.open(BROKER, ObjectKind::LockTable(block().get()))
    }

    fn set_word(&self, page: u64, word: u64) {
        let at = table::word_offset(page * PAGE_BYTES);
        object::write_at(self.table().as_fd(), &word.to_le_bytes(), at).unwrap();
    }

    fn word(&self, page: u64) -> LockBits {
        let mut word = [0; 8];
        let at = table::word_offset(page * PAGE_BYTES);
        object::read_at(self.table().as_fd(), &mut word, at).unwrap();
        LockBits::of_word(u64::from_le_bytes(word))
    }

    /// Whether nobody holds a page, and it is whole.
    fn is_free(&self, page: u64) -> bool {
        let word = self.word(page);
        (word.state(), word.condition()) == (LockState::Free, PageCondition::Whole)
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

fn session() -> SessionId {
    SessionId::try_from(7).unwrap()
}

fn daemon(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

fn guid() -> Guid {
    Guid([7; 16])
}

/// The word of a page that is held.
fn held_by(session: SessionId) -> LockBits {
    LockBits::of_word(u64::from(session.get()) << 8 | u64::from(SLOT))
}

fn record(pid: u32, lived_at: u64) -> SessionRecord {
    SessionRecord {
        session: session(),
        guid: guid(),
        pid,
        lived_at,
        uid: 1,
        gid: 1,
        reserved: 0,
        created_at: 1,
        pointer_bits: 64,
        copies: 2,
        name: "writes".into(),
    }
}

fn job_of(slot: u8, claim: &IntentClaim) -> Repair {
    let owner = LockOwner::new(session(), slot);
    let wreck = Wreck::new(owner, claim, claim.addr - BASE, END).unwrap();
    Repair {
        session: session(),
        slot,
        wreck,
        block: block(),
        guid: guid(),
        copies: vec![daemon(1), daemon(2)],
        committed: END,
        has_locks: true,
        carried: None,
    }
}

/// A pointer may have stored so many bytes to the first copy.
fn carry_of(cell: u64, bytes: u64) -> Repair {
    let (addr, progress) = (BASE + cell, Progress::Settled);
    let job = job_of(CARRYING, &IntentClaim { addr, bytes, progress });
    Repair { wreck: job.wreck.brought_from(daemon(1)), carried: Some((addr, bytes)), ..job }
}

fn done() -> Repaired {
    Repaired::Done { lost: vec![] }
}

#[test]
fn what_was_begun_is_rolled_back_and_what_is_on_one_copy_rolled_forward() {
    for (label, is_forward) in [("back", false), ("forward", true)] {
        let mut folder = Folder::new(label);
        // Pages whose words lie on two pages of the table, and a part of a page.
        let (cell, bytes) = (PAGE_BYTES + 100, 15 * PAGE_BYTES);
        let job = folder.write(cell, bytes, is_forward);
        let other = WRITING | held_by(SessionId::try_from(8).unwrap()).word();
        folder.set_word(20, other);
        assert_eq!(folder.repair(&job), done());
        let mut wanted = vec![OLD; usize::try_from(END).unwrap()];
        if is_forward {
            let cells = usize::try_from(cell).unwrap()..usize::try_from(cell + bytes).unwrap();
            wanted[cells].fill(NEW);
        }
        assert!(folder.bytes(1) == wanted && folder.bytes(2) == wanted, "{label}");
        assert!((0..17).all(|page| folder.is_free(page)), "{label}");
        assert_eq!(folder.word(20).word(), other, "{label}");
        // Again, after the next broker has begun: nothing is left to be done.
        assert_eq!(folder.repair(&job), done());
        folder.sessions.clear_intent(session(), SLOT);
        let found = folder.sessions.intents(session(), folder.identity()).unwrap().unwrap();
        assert_eq!((found.claims.len(), found.is_all), (0, true));
    }
}

#[test]
fn who_waits_for_a_page_of_the_dead_is_woken() {
    let mut folder = Folder::new("woken");
    let job = folder.write(0, 8, false);
    let range = FileRange { offset: 4096, bytes: 4096 };
    let table = folder.table();
    let mapping = Mapping::shared(table.as_fd(), range, Protection::ReadWrite, Populate::Yes);
    let (mapping, silence) = (mapping.unwrap(), AtomicU32::new(0));
    let heard = wide::Heard { bell: &silence, value: 0 };
    let folder = &folder;
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let word = Word::new(mapping.range(0, 8).unwrap()).unwrap();
            let held = WRITING | held_by(session()).word();
            while word.load().unwrap() == held {
                wide::wait(word, held, heard, None).unwrap();
            }
        });
        assert_eq!(folder.repair(&job), done());
        waiter.join().unwrap();
    });
}

#[test]
fn a_copy_that_is_gone_or_cut_is_named_and_not_made_longer() {
    let mut folder = Folder::new("cut");
    let job = folder.write(4 * PAGE_BYTES, PAGE_BYTES, true);
    object::truncate(folder.data(2).as_fd(), 4 * PAGE_BYTES).unwrap();
    let repaired = folder.repair(&job);
    let Repaired::Copy { daemon: found, reason } = &repaired else { panic!("{repaired:?}") };
    assert_eq!((*found, reason.as_str()), (daemon(2), "it has 16384 bytes, and is to have 20480"));
    assert_eq!(folder.bytes(2).len(), 4 * 4096);
    assert!(!folder.is_free(4), "nobody else has the page");
    folder.objects.folder().unlink(&folder.objects.name(2, ObjectKind::Data(5))).unwrap();
    let repaired = folder.repair(&job);
    assert!(matches!(repaired, Repaired::Copy { daemon: of, .. } if of == daemon(2)));
    let alone = Repair { copies: vec![daemon(1)], ..job };
    assert_eq!(folder.repair(&alone), done());
    assert!(folder.is_free(4));
}

#[test]
fn a_table_that_is_gone_cut_or_anothers_is_told_and_no_signal() {
    let mut folder = Folder::new("table");
    let job = folder.write(3 * PAGE_BYTES, 8, false);
    let is_told = |folder: &Folder, job: &Repair| match folder.repair(job) {
        Repaired::Table { reason } => reason,
        other => panic!("{other:?}"),
    };
    let other = Repair { guid: Guid([9; 16]), ..folder.job() };
    assert!(is_told(&folder, &other).contains("the lock table is of another block"));
    object::truncate(folder.table().as_fd(), 4096).unwrap();
    assert_eq!(is_told(&folder, &job), "it has 4096 bytes, and is to have 4128");
    let name = folder.objects.name(BROKER, ObjectKind::LockTable(5));
    folder.objects.folder().unlink(&name).unwrap();
    is_told(&folder, &job);
    // Without it the copies are made equal all the same.
    assert!(folder.bytes(1) != folder.bytes(2));
    let without = Repair { has_locks: false, ..job };
    assert_eq!(folder.repair(&without), done());
    assert!(folder.bytes(1) == folder.bytes(2));
}

/// With one copy left, and nothing saved.
#[test]
fn a_page_that_nothing_is_left_of_is_lost_in_this_table_or_the_next() {
    let mut folder = Folder::new("lost");
    let job = folder.write(PAGE_BYTES, 2 * PAGE_BYTES, false);
    let alone = Repair { copies: vec![daemon(1)], ..job };
    let lost = Repaired::Done { lost: vec![1, 2] };
    let without = Repair { has_locks: false, ..folder.job() };
    let without = Repair { copies: vec![daemon(1)], ..without };
    assert_eq!(folder.repair(&without), lost);
    assert_eq!(folder.repair(&alone), lost);
    let states_of =
        |folder: &Folder| (0..4).map(|page| folder.word(page).state()).collect::<Vec<_>>();
    let states = vec![LockState::Free, LockState::Lost, LockState::Lost, LockState::Free];
    assert_eq!(states, states_of(&folder));
    let identity = TableIdentity { block: block(), guid: guid(), epoch: 2 };
    assert_eq!(tables::make(&folder.objects, identity, END, &[1, 2, PAGES]), Made::Whole);
    assert_eq!(states, states_of(&folder));
    assert_eq!(folder.word(1).condition(), PageCondition::Torn);
}

#[test]
fn a_client_that_cut_its_undo_buffers_loses_its_page_and_nobody_elses() {
    let mut folder = Folder::new("undo");
    folder.write(PAGE_BYTES, 8, false);
    let progress = dmce_shm::slot::intent::Progress::First { first: 1, undo: Undo::Saved };
    let claim = IntentClaim { addr: BASE + PAGE_BYTES, bytes: 8, progress };
    let job = Repair { copies: vec![daemon(1)], ..job_of(SLOT, &claim) };
    object::truncate(folder.sessions.object(session()).unwrap(), 36_864).unwrap();
    assert_eq!(folder.repair(&job), Repaired::Done { lost: vec![1] });
    assert!((2..PAGES).all(|page| folder.is_free(page)));
}

#[test]
fn of_a_process_that_lives_only_what_it_has_abandoned_is_read() {
    let mut folder = Folder::new("lives");
    let _phase = folder.begin(0, 8);
    let found = |folder: &Folder| folder.sessions.intents(session(), folder.identity()).unwrap();
    let looked = found(&folder).unwrap();
    assert_eq!((looked.claims.len(), looked.is_all), (0, false));
    // Another of that pid started later.
    let (pid, _) = folder.identity();
    let later = folder.sessions.intents(session(), (pid, 1)).unwrap().unwrap();
    assert_eq!((later.claims.len(), later.is_all), (1, true));
    folder.die();
    let looked = found(&folder).unwrap();
    assert_eq!((looked.claims.len(), looked.is_all), (1, true));
    object::truncate(folder.sessions.object(session()).unwrap(), 5000).unwrap();
    assert!(found(&folder).is_err());
    let none = SessionId::try_from(99).unwrap();
    assert!(folder.sessions.intents(none, (1, 1)).is_none());
}

#[test]
fn what_a_pointer_stored_is_carried_and_nobody_is_kept_waiting() {
    let mut folder = Folder::new("carried");
    let (cell, bytes) = (PAGE_BYTES + 100, 10 * PAGE_BYTES);
    folder.put(1, 0, END);
    folder.die();
    assert_eq!(folder.repair(&carry_of(cell, bytes)), done());
    let mut wanted = vec![OLD; usize::try_from(END).unwrap()];
    wanted[usize::try_from(cell).unwrap()..usize::try_from(cell + bytes).unwrap()].fill(NEW);
    assert!(folder.bytes(2) == wanted);
    assert!((0..PAGES).all(|page| folder.is_free(page)));
    assert!(folder.word(1) != folder.word(0), "who reads there meanwhile reads again");
    // It says what it does, until the dispatcher has heard that it is done.
    let job = folder.job();
    let left = (job.session, job.slot, job.wreck);
    assert_eq!(left, (session(), CARRYING, carry_of(cell, bytes).wreck));
}

#[test]
fn a_page_that_somebody_holds_is_carried_later_and_those_before_it_are_free() {
    let mut folder = Folder::new("busy");
    folder.put(1, 0, END);
    folder.die();
    let job = carry_of(0, 6 * PAGE_BYTES);
    let other = WRITING | held_by(SessionId::try_from(8).unwrap()).word();
    folder.set_word(4, other);
    assert_eq!(folder.repair(&job), Repaired::Busy);
    assert!((0..PAGES).filter(|page| *page != 4).all(|page| folder.is_free(page)));
    assert_eq!(folder.word(4).word(), other);
    assert!(folder.bytes(2).iter().all(|byte| *byte == OLD));
    folder.set_word(4, 8 << 32);
    assert_eq!(folder.repair(&job), done());
    assert!(folder.bytes(2)[..6 * 4096].iter().all(|byte| *byte == NEW));
    assert!((0..PAGES).all(|page| folder.is_free(page)));
}

#[test]
fn pages_that_are_detached_or_lost_are_left_as_they_are() {
    let mut folder = Folder::new("detached");
    folder.put(1, 0, END);
    folder.die();
    let detached = 2 << 32 | 1 << 28;
    folder.set_word(1, detached);
    folder.set_word(2, LockBits::LOST.word());
    assert_eq!(folder.repair(&carry_of(0, 4 * PAGE_BYTES)), done());
    let found: Vec<u8> = folder.bytes(2).chunks(4096).take(5).map(|page| page[0]).collect();
    assert_eq!(found, [NEW, OLD, OLD, NEW, OLD]);
    assert_eq!((folder.word(1).word(), folder.word(2)), (detached, LockBits::LOST));
}

#[test]
fn what_a_broker_was_carrying_when_it_died_is_carried_by_the_next() {
    let mut folder = Folder::new("next");
    folder.put(1, 0, END);
    folder.die();
    let job = carry_of(0, 3 * PAGE_BYTES);
    // The copy is gone in the middle of it: what is locked stays so.
    object::truncate(folder.data(2).as_fd(), 2 * PAGE_BYTES).unwrap();
    assert!(matches!(folder.repair(&job), Repaired::Copy { daemon: of, .. } if of == daemon(2)));
    assert!((0..3).all(|page| !folder.is_free(page)));
    let bytes = vec![OLD; usize::try_from(END - 2 * PAGE_BYTES).unwrap()];
    object::write_at(folder.data(2).as_fd(), &bytes, 2 * PAGE_BYTES).unwrap();
    assert_eq!(folder.repair(&folder.job()), done());
    assert!(folder.bytes(2)[..3 * 4096].iter().all(|byte| *byte == NEW));
    assert!((0..PAGES).all(|page| folder.is_free(page)));
}

#[test]
fn pins_of_the_dead_are_found_and_freed() {
    let mut folder = Folder::new("pins");
    let range = |addr, writable| PinnedRange { addr, bytes: 8, writable };
    for place in 0..4 {
        let pin = folder.map.take_pin(range(BASE + place, place % 2 == 1)).unwrap();
        if place == 3 {
            folder.map.leave_pin(pin);
        }
    }
    let found = |folder: &Folder| {
        let found = folder.sessions.intents(session(), folder.identity()).unwrap().unwrap();
        (found.pins, found.is_gone)
    };
    let pin = |place: u16| PinClaim {
        place,
        range: range(BASE + u64::from(place), true),
        is_left: place == 3,
    };
    assert_eq!(found(&folder), (vec![pin(1), pin(3)], false));
    folder.die();
    folder.sessions.free_pin(session(), 1);
    assert_eq!(found(&folder), (vec![pin(3)], true));
}

use std::path::PathBuf;

use dmce_abi::AddrLayout;
use dmce_abi::block::Guid;
use dmce_abi::name::Instance;
use dmce_broker::dispatcher::SessionRecord;
use dmce_sys::object::{self, ObjectDir};
use dmce_sys::{clock, process};

use super::super::objects::Objects;
use super::*;

/// Where the mark of the first slot lies.
const MARK: u64 = 4096;

struct Rig {
    path: PathBuf,
    objects: Objects,
    sessions: Sessions,
    idles: Idles,
    events: VecDeque<Event>,
    now: Millis,
}

impl Rig {
    fn new(label: &str) -> Self {
        let name = format!("dmce-test-idles-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let instance = Instance::new("test-idles").unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        let objects = Objects::new(dir, instance, AddrLayout::IN_SERVER);
        let mut sessions = Sessions::new(process::boot_id().unwrap());
        let record = SessionRecord {
            session: session(),
            guid: Guid([1; 16]),
            pid: process::own_pid(),
            lived_at: clock::boot_ticks(),
            uid: 7,
            gid: 8,
            reserved: 0,
            created_at: 9,
            pointer_bits: 64,
            copies: 2,
            name: String::new(),
        };
        sessions.create(&objects, &record).unwrap();
        let (idles, events, now) = (Idles::default(), VecDeque::new(), Millis(5));
        Self { path, objects, sessions, idles, events, now }
    }

    fn mark(&self, mark: u32) {
        let object = self.sessions.object(session()).unwrap();
        object::write_at(object, &mark.to_le_bytes(), MARK).unwrap();
    }

    /// The bytes of the intent of that slot.
    fn intend(&self, bytes: u64) {
        let object = self.sessions.object(session()).unwrap();
        object::write_at(object, &bytes.to_le_bytes(), MARK + 16).unwrap();
    }

    fn add(&mut self) {
        self.add_of(block(), 3);
    }

    fn add_of(&mut self, block: BlockId, epoch: u64) {
        let of = (session(), block, epoch);
        self.idles.add(&self.sessions, of, (self.now, &mut self.events));
    }

    fn look(&mut self) {
        self.now = self.idles.due_at().unwrap_or(self.now);
        self.idles.tend(&self.sessions, self.now, &mut self.events);
    }

    fn is_idle(&mut self) -> bool {
        let idle = Event::Idle { session: session(), block: block(), epoch: 3 };
        self.events.pop_front() == Some(idle)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn session() -> SessionId {
    SessionId::try_from(4).unwrap()
}

fn block() -> BlockId {
    BlockId::try_from(5).unwrap()
}

fn other_block() -> BlockId {
    BlockId::try_from(6).unwrap()
}

#[test]
fn who_is_in_no_operation_is_idle_at_once() {
    let mut rig = Rig::new("none");
    rig.mark(2);
    rig.add();
    assert!(rig.is_idle() && rig.idles.due_at().is_none());
}

#[test]
fn an_operation_is_waited_for_and_the_next_one_is_not() {
    let mut rig = Rig::new("one");
    rig.mark(3);
    rig.add();
    rig.look();
    assert!(rig.events.is_empty() && rig.idles.due_at().is_some());
    rig.mark(5);
    rig.look();
    assert!(rig.is_idle() && rig.idles.due_at().is_none());
}

/// What it left is repaired when it has ended; before that nobody may lock the page anew.
#[test]
fn who_has_left_a_write_behind_is_waited_for_until_it_ends() {
    for mark in [2, 3] {
        let mut rig = Rig::new(&format!("left-{mark}"));
        rig.intend(8);
        rig.mark(mark);
        rig.add();
        rig.mark(4);
        for _ in 0..3 {
            rig.look();
            assert!(rig.events.is_empty() && rig.idles.due_at().is_some());
        }
        rig.sessions.end(&rig.objects, session());
        rig.look();
        assert!(rig.events.is_empty() && rig.idles.due_at().is_none());
    }
}

/// A client that stops in an operation is looked at for as long as it is stopped.
#[test]
fn who_stays_in_an_operation_is_looked_at_less_and_less_often() {
    let mut rig = Rig::new("stays");
    rig.mark(3);
    rig.add();
    let mut looks = Vec::new();
    for _ in 0..8 {
        let before = rig.now;
        rig.look();
        looks.push(rig.now.0 - before.0);
    }
    assert_eq!(looks, [2, 4, 8, 16, 32, 64, 64, 64]);
    // What is asked now is answered soon, if it can be.
    rig.add_of(other_block(), 3);
    let soon = rig.now.after(2);
    assert_eq!(rig.idles.due_at(), Some(soon));
    rig.now = rig.now.after(1);
    rig.add_of(other_block(), 3);
    assert_eq!(rig.idles.due_at(), Some(soon), "whoever asks puts off no look");
    rig.mark(4);
    rig.look();
    let of = |block| Event::Idle { session: session(), block, epoch: 3 };
    assert_eq!(rig.events, [of(block()), of(other_block())]);
    assert_eq!(rig.idles.due_at(), None);
}

/// Who asked for an earlier epoch would be answered by an operation that began since.
#[test]
fn of_a_block_the_latest_wait_stands_alone() {
    let mut rig = Rig::new("latest");
    rig.mark(3);
    rig.add_of(block(), 2);
    rig.mark(5);
    rig.add_of(block(), 3);
    rig.look();
    assert!(rig.events.is_empty(), "the operation that the first one waited for is over");
    rig.mark(7);
    rig.look();
    assert!(rig.is_idle() && rig.events.is_empty() && rig.idles.due_at().is_none());
    // Also where the latest has nothing to wait for.
    rig.add_of(block(), 2);
    rig.mark(8);
    rig.add();
    assert!(rig.is_idle() && rig.events.is_empty() && rig.idles.due_at().is_none());
}

#[test]
fn who_cuts_its_session_object_is_told_of_and_not_waited_for() {
    let mut rig = Rig::new("cut");
    rig.mark(1);
    rig.add();
    object::truncate(rig.sessions.object(session()).unwrap(), 4096).unwrap();
    rig.look();
    assert!(matches!(rig.events.pop_front(), Some(Event::Misused { .. })));
    assert_eq!(rig.idles.due_at(), None);
    rig.add();
    assert!(matches!(rig.events.pop_front(), Some(Event::Misused { .. })));
}

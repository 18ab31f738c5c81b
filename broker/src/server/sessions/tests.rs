use std::path::PathBuf;
use std::process::{Child, Command};

use dmce_abi::name::Instance;
use dmce_abi::{AddrLayout, Status};
use dmce_sys::clock::boot_ticks;
use dmce_sys::object::ObjectDir;

use super::super::session_objects::LEAVING_MAX;
use super::*;

/// A folder of its own, removed whatever happens.
struct Folder {
    path: PathBuf,
    objects: Objects,
}

impl Folder {
    fn new(label: &str) -> Self {
        let name = format!("dmce-test-sessions-{label}-{}", process::own_pid());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).unwrap();
        let instance = Instance::new("test-sessions").unwrap();
        let dir = ObjectDir::open(&path).unwrap();
        Self { path, objects: Objects::new(dir, instance, AddrLayout::IN_SERVER) }
    }

    fn kinds(&self) -> BTreeSet<ObjectKind> {
        self.objects.list().unwrap().remove(&BROKER).unwrap_or_default()
    }

    /// The sessions that a broker believes which finds what is there.
    fn believed(&self) -> Vec<SessionRecord> {
        let mut sessions = broker();
        let believed = sessions.take_up(&self.objects, &self.kinds());
        believed.into_iter().map(|session| session.record).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn broker() -> Sessions {
    Sessions::new(process::boot_id().unwrap())
}

fn id(number: u32) -> SessionId {
    SessionId::try_from(number).unwrap()
}

fn identity(number: u32) -> SessionIdentity {
    SessionIdentity { session: id(number), guid: Guid([u8::try_from(number).unwrap(); 16]) }
}

/// A session of this process.
fn record(number: u32) -> SessionRecord {
    SessionRecord {
        session: id(number),
        guid: identity(number).guid,
        pid: process::own_pid(),
        lived_at: boot_ticks(),
        uid: 7,
        gid: 8,
        reserved: 0,
        created_at: 9,
        pointer_bits: 64,
        copies: 1,
        name: "hold".into(),
    }
}

fn objects_of(numbers: impl IntoIterator<Item = u32>) -> BTreeSet<ObjectKind> {
    let both = |number| [ObjectKind::Session(number), ObjectKind::Record(number)];
    numbers.into_iter().flat_map(both).collect()
}

#[test]
fn a_broker_that_dies_between_any_two_steps_leaves_nothing_and_no_half_session() {
    let folder = Folder::new("steps");
    let objects = &folder.objects;

    // Prepared, and nobody's.
    let mut sessions = broker();
    sessions.prepare(objects, identity(1)).unwrap();
    assert_eq!(folder.kinds(), objects_of([1]));
    drop(sessions);
    assert_eq!(folder.believed(), []);
    assert_eq!(folder.kinds(), objects_of([]));

    // One object of the two.
    objects.folder().create(&objects.name(BROKER, ObjectKind::Session(2))).unwrap();
    objects.folder().create(&objects.name(BROKER, ObjectKind::Record(3))).unwrap();
    assert_eq!(folder.believed(), []);
    assert_eq!(folder.kinds(), objects_of([]));

    // Given to a client, ahead or not, and not answered: its process lives, it may come back.
    let mut sessions = broker();
    sessions.prepare(objects, identity(4)).unwrap();
    sessions.create(objects, &record(4)).unwrap();
    sessions.create(objects, &record(5)).unwrap();
    drop(sessions);
    let believed: Vec<SessionId> = folder.believed().iter().map(|record| record.session).collect();
    assert_eq!(believed, [id(4), id(5)]);

    // Ended, with its names still there.
    let mut sessions = broker();
    sessions.take_up(objects, &folder.kinds());
    sessions.end(objects, id(4));
    assert_eq!(folder.kinds(), objects_of([4, 5]));
    drop(sessions);
    assert_eq!(folder.believed().len(), 1);
    assert_eq!(folder.kinds(), objects_of([5]));
}

#[test]
fn a_prepared_session_is_as_one_that_is_made_when_it_is_asked_for() {
    let folder = Folder::new("same");
    let mut sessions = broker();
    sessions.prepare(&folder.objects, identity(1)).unwrap();
    for number in [1, 2] {
        sessions.create(&folder.objects, &record(number)).unwrap();
        sessions.object(id(number)).unwrap();
        sessions.doorbell(id(number)).unwrap();
        sessions.ring(id(number));
    }
    let believed = folder.believed();
    for (found, number) in believed.iter().zip([1, 2]) {
        let made = record(number);
        assert_eq!(*found, SessionRecord { lived_at: found.lived_at, ..made });
    }
    assert_eq!(believed.len(), 2);
}

#[test]
fn objects_of_sessions_that_ended_go_together_or_after_a_moment() {
    let folder = Folder::new("leaving");
    let objects = &folder.objects;
    let mut sessions = broker();
    let several = 1..=u32::try_from(LEAVING_MAX).unwrap();
    for number in several.clone() {
        sessions.create(objects, &record(number)).unwrap();
    }
    for number in several.clone() {
        assert_eq!(folder.kinds(), objects_of(several.clone()));
        sessions.end(objects, id(number));
    }
    assert_eq!(folder.kinds(), objects_of([]));

    sessions.create(objects, &record(1)).unwrap();
    sessions.end(objects, id(1));
    let due = sessions.due_at().unwrap();
    let mut events = VecDeque::new();
    sessions.tend(objects, Millis(due.0 - 1), &mut events);
    assert_eq!(folder.kinds(), objects_of([1]));
    sessions.tend(objects, due, &mut events);
    assert_eq!(folder.kinds(), objects_of([]));
    assert_eq!((sessions.due_at(), events.len()), (None, 0));
}

#[test]
fn an_id_that_is_given_again_keeps_its_new_objects() {
    let folder = Folder::new("again");
    let objects = &folder.objects;
    let mut sessions = broker();
    sessions.create(objects, &record(1)).unwrap();
    sessions.create(objects, &record(2)).unwrap();
    sessions.end(objects, id(1));
    sessions.end(objects, id(2));
    sessions.create(objects, &record(1)).unwrap();
    sessions.prepare(objects, identity(2)).unwrap();
    sessions.leave(objects);
    assert_eq!(folder.kinds(), objects_of([1]), "what is prepared goes with the broker");
    assert_eq!(folder.believed().len(), 1);
}

#[test]
fn what_has_its_name_taken_is_refused_and_leaves_nothing() {
    let folder = Folder::new("taken");
    let objects = &folder.objects;
    std::fs::create_dir(folder.path.join(objects.name(BROKER, ObjectKind::Record(1)))).unwrap();
    let mut sessions = broker();
    let refusal = sessions.prepare(objects, identity(1)).unwrap_err();
    assert_eq!(refusal.status, Status::Exists);
    sessions.end(objects, id(1));
    assert_eq!(folder.kinds(), BTreeSet::from([ObjectKind::Record(1)]));
}

/// A process that runs until it is dropped.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_process_is_found_by_its_pid_unless_it_has_the_pid_of_one_that_lived_before() {
    let mut sleeper = Sleeper(Command::new("sleep").arg("1000").spawn().unwrap());
    let pid = sleeper.0.id();
    assert!(find(pid, boot_ticks()).is_some());
    let started = process::start_time(pid).unwrap();
    assert!(find(pid, started).is_some(), "it was taken in within the tick of its start");
    assert!(find(pid, started - 1).is_none(), "the pid was another's then");
    sleeper.0.kill().unwrap();
    let mut ended = Vec::new();
    let fd = pidfd::open(pid).unwrap();
    let poller = Poller::new().unwrap();
    poller.add(fd.as_fd(), 0, Interest::READ).unwrap();
    while ended.is_empty() {
        poller.wait(None, &mut ended).unwrap();
    }
    assert!(find(pid, boot_ticks()).is_none(), "it is a zombie");
}

#[test]
fn undo_buffers_are_committed_once_and_the_session_object_stays_as_it_may_be() {
    let folder = Folder::new("undo");
    let mut sessions = broker();
    sessions.create(&folder.objects, &record(1)).unwrap();
    let allocated = |sessions: &Sessions| {
        let stat = dmce_sys::object::stat(sessions.object(id(1)).unwrap()).unwrap();
        (stat.bytes, stat.allocated_bytes)
    };
    let (bytes, before) = allocated(&sessions);
    sessions.commit_undo(id(1)).unwrap();
    let (after, committed) = allocated(&sessions);
    assert!(after == bytes && committed > before);
    sessions.commit_undo(id(1)).unwrap();
    assert_eq!(allocated(&sessions), (bytes, committed));
    sessions.all[&id(1)].made.object.check_size().unwrap();
    // Of one that is not there nothing is left to do.
    sessions.commit_undo(id(9)).unwrap();
}

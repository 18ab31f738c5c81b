//! Blocks of several copies by message: the objects of the other daemon, the lock table and the
//! seat are the test's.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;

use dmce_abi::block::{DaemonId, Half, Role};
use dmce_abi::name::ObjectName;
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest, LinkGrant, Target};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_shm::fence::Fence;
use dmce_shm::header::{self, BlockHeader};
use dmce_shm::lock::{LockBits, LockOwner};
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::SessionObject;
use dmce_shm::table::{
    LockTableHeader, TABLE_HEADER_BYTES, TableIdentity, object_bytes, word_offset,
};

use super::*;
use crate::broker::LinkEnd;

const OBJECTS: &str = "/dev/shm";
const BLOCK: u32 = 1;
const BYTES: u64 = 2 * MIB;
const ENDED: u64 = u64::MAX;

/// One of two copies.
fn copy(daemon: u32, role: Role, half: Half, epoch: u64) -> BlockHeader {
    let peers = vec![daemon_id(3 - daemon)];
    let alone = description(BLOCK);
    let Owner::Session { session, ticket, uid, .. } = alone.owner else { panic!("a session's") };
    let owner = Owner::Session { session, ticket, uid, copies: 2 };
    let membership = Membership { role, half, peers, syncing: None, since: 0, locked: false };
    let description = BlockDescription { epoch, owner, membership, ..alone };
    BlockHeader { daemon: daemon_id(daemon), description }
}

fn daemon_id(id: u32) -> DaemonId {
    DaemonId::try_from(id).unwrap()
}

/// A daemon that holds the primary of a block, of which another daemon has a copy.
struct Pair {
    broker: Broker,
    link: LinkEnd,
    dir: ObjectDir,
    seats: u32,
}

impl Pair {
    fn new() -> Self {
        let mut broker = Broker::new();
        broker.start_daemon();
        broker.accept();
        let own = copy(1, Role::Primary, Half::PRIMARY, 1);
        let create = DaemonRequest::Create { description: own.description, committed: BYTES };
        assert_eq!(broker.ask(&create), committed(BYTES));
        let guid = description(BLOCK).guid;
        let link = broker.link(5, LinkGrant { block: id(BLOCK), guid, writable: true });
        let pair = Self { broker, link, dir: ObjectDir::open(OBJECTS).unwrap(), seats: 8 };
        pair.make_mirror();
        let table = pair.dir.create(&pair.name(0, ObjectKind::LockTable(BLOCK))).unwrap();
        object::commit(table.as_fd(), 0, object_bytes(BYTES)).unwrap();
        let identity = TableIdentity { block: id(BLOCK), guid, epoch: 1 };
        LockTableHeader::new(identity).write(table.as_fd()).unwrap();
        pair
    }

    fn make_mirror(&self) {
        let data = self.dir.create(&self.name(2, ObjectKind::Data(BLOCK))).unwrap();
        object::commit(data.as_fd(), 0, BYTES).unwrap();
        self.write_header(2, 1);
    }

    /// The header of a copy, of that epoch.
    fn write_header(&self, daemon: u32, epoch: u64) {
        let (role, half) = match daemon {
            1 => (Role::Primary, Half::PRIMARY),
            _ => (Role::Copy, Half::MIRROR),
        };
        let header = copy(daemon, role, half, epoch);
        let name = self.name(daemon, ObjectKind::Header(BLOCK));
        match self.dir.open_read_write(&name) {
            Ok(there) => header::update(there.as_fd(), &header).unwrap(),
            Err(_) => header::make(&self.dir, &name, &header).unwrap(),
        }
    }

    /// This daemon's copy is syncing, and the other is the good one.
    fn sync_own(&mut self, epoch: u64) {
        let mut own = copy(1, Role::Syncing, Half::PRIMARY, epoch);
        let mut good = copy(2, Role::Primary, Half::MIRROR, epoch);
        good.description.membership.peers.clear();
        good.description.membership.syncing = Some(daemon_id(1));
        own.description.membership.peers = vec![daemon_id(2)];
        for (daemon, header) in [(1, &own), (2, &good)] {
            let there = self.open(daemon, ObjectKind::Header(BLOCK));
            header::update(there.as_fd(), header).unwrap();
        }
        self.broker.tell(&DaemonRequest::Rewritten { description: own.description });
    }

    fn name(&self, daemon: u32, kind: ObjectKind) -> String {
        ObjectName { instance: self.broker.instance.clone(), daemon, kind }.to_string()
    }

    fn path(&self, daemon: u32, kind: ObjectKind) -> PathBuf {
        Path::new(OBJECTS).join(self.name(daemon, kind))
    }

    fn open(&self, daemon: u32, kind: ObjectKind) -> File {
        File::options().read(true).write(true).open(self.path(daemon, kind)).unwrap()
    }

    /// Another daemon instead of this one, which can write no file beyond its first MiB: a store
    /// there fails after all copies were found whole.
    fn limit_daemon(&mut self) {
        self.broker.kill_daemon();
        let mut limited = Command::new("sh");
        // In units of 512 bytes; of 1,024 in some shells.
        limited.args(["-c", "trap '' XFSZ && ulimit -f 1024 && exec \"$0\" \"$@\""]);
        let command = self.broker.command();
        limited.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => limited.env(name, value),
                None => limited.env_remove(name),
            };
        }
        self.broker.start(limited.stdin(Stdio::null()).stdout(Stdio::null()));
        self.broker.accept();
        let guid = description(BLOCK).guid;
        self.link = self.broker.link(6, LinkGrant { block: id(BLOCK), guid, writable: true });
    }

    /// Cuts the lock table's words off, or makes a new one of it.
    fn set_table(&self, is_whole: bool) {
        let table = self.open(0, ObjectKind::LockTable(BLOCK));
        object::truncate(table.as_fd(), TABLE_HEADER_BYTES).unwrap();
        if is_whole {
            object::commit(table.as_fd(), 0, object_bytes(BYTES)).unwrap();
        }
    }

    /// What a copy has.
    fn bytes(&self, daemon: u32, cell: u64, bytes: usize) -> Vec<u8> {
        let mut found = vec![0; bytes];
        let data = self.open(daemon, ObjectKind::Data(BLOCK));
        object::read_at(data.as_fd(), &mut found, cell).unwrap();
        found
    }

    /// Makes a seat, and tells the daemon of it.
    fn seat(&mut self) -> SessionObject {
        self.seats += 1;
        let session = SessionId::try_from(self.seats).unwrap();
        let identity = SessionIdentity { session, guid: Guid([9; 16]) };
        let fd = self.dir.create(&self.name(0, ObjectKind::Session(self.seats))).unwrap();
        let object = SessionObject::create(fd, identity, Fence::register()).unwrap();
        object.commit_undo().unwrap();
        let (guid, cell_bits) = (identity.guid, 30);
        self.broker.tell(&DaemonRequest::Seat { session, guid, cell_bits });
        object
    }

    /// Asks until the daemon is seated.
    fn done(&self, request: &DataRequest) -> DataReply {
        loop {
            match self.link.ask(request) {
                Ok(reply) => return reply,
                Err(refusal) => assert_eq!(refusal.status, Status::Busy, "{refusal:?}"),
            }
        }
    }

    /// The next notice of that kind.
    fn notice(&mut self, is_meant: impl Fn(&DaemonNotice) -> bool) {
        loop {
            match self.broker.receive() {
                (0, DaemonMessage::Notice(notice)) if is_meant(&notice) => return,
                (0, DaemonMessage::Notice(_)) => {}
                other => panic!("a notice was awaited, and {other:?} came"),
            }
        }
    }
}

fn at(cell: u64) -> Target {
    Target { block: id(BLOCK), guid: description(BLOCK).guid, cell }
}

fn write(cell: u64, data: &[u8]) -> DataRequest {
    DataRequest::Write { at: at(cell), data: Bytes(data.to_vec()) }
}

const fn is_damaged(notice: &DaemonNotice) -> bool {
    matches!(notice, DaemonNotice::Damaged { .. })
}

#[test]
fn what_is_written_is_on_both_copies_and_leaves_no_lock_and_no_intent() {
    let mut pair = Pair::new();
    assert_eq!(pair.link.status(&write(0, b"none")), Status::Busy);
    pair.notice(|notice| *notice == DaemonNotice::Unseated { left: None });
    let seat = pair.seat();
    assert_eq!(pair.done(&write(4090, b"over a page")), DataReply::Done);
    let read = DataRequest::Read { at: at(4090), bytes: 11 };
    assert_eq!(pair.done(&read), DataReply::Bytes(Bytes(b"over a page".to_vec())));
    let add = DataRequest::Add64 { at: at(64), add: 7 };
    assert_eq!(pair.done(&add), DataReply::Word(0));
    let cas = DataRequest::Cas64 { at: at(64), expected: 7, desired: 9 };
    assert_eq!(pair.done(&cas), DataReply::Word(7));
    assert_eq!(pair.done(&cas), DataReply::Word(9), "it was not what was expected");
    for daemon in [1, 2] {
        assert_eq!(pair.bytes(daemon, 4090, 11), b"over a page");
        assert_eq!(pair.bytes(daemon, 64, 8), 9_u64.to_le_bytes());
    }
    let odd = DataRequest::Add64 { at: at(65), add: 7 };
    assert_eq!(pair.link.status(&odd), Status::Invalid);
    assert!(seat.intents().unwrap().is_empty());
    let mut words = [0; 16];
    let table = pair.open(0, ObjectKind::LockTable(BLOCK));
    object::read_at(table.as_fd(), &mut words, word_offset(0)).unwrap();
    assert_eq!((&words[..4], &words[8..12]), (&[0; 4][..], &[0; 4][..]), "both are free");
}

/// The broker asks for a part until something comes of it; how many bytes.
fn synced(pair: &mut Pair, cell: u64, bytes: u32) -> u32 {
    let request =
        DaemonRequest::Sync { block: id(BLOCK), guid: description(BLOCK).guid, cell, bytes };
    // What changes in between is a daemon that takes a seat, and a view that is made.
    for _ in 0..100 {
        match pair.broker.ask(&request) {
            Ok(DaemonAnswer::Synced { bytes: 0 }) => {}
            Ok(DaemonAnswer::Synced { bytes }) => return bytes,
            other => panic!("{other:?}"),
        }
    }
    panic!("nothing is synced at {cell:#x}");
}

#[test]
fn a_copy_that_is_syncing_gets_what_the_good_one_has_but_pages_that_somebody_holds() {
    let mut pair = Pair::new();
    let data: Vec<u8> = (0..BYTES).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let mirror = pair.open(2, ObjectKind::Data(BLOCK));
    object::write_at(mirror.as_fd(), &data, 0).unwrap();
    // Of two good copies none is to be written over.
    let guid = description(BLOCK).guid;
    let request = DaemonRequest::Sync { block: id(BLOCK), guid, cell: 0, bytes: 4096 };
    pair.seat();
    while pair.broker.ask(&request) == Ok(DaemonAnswer::Synced { bytes: 0 }) {}
    assert_eq!(pair.broker.ask(&request).unwrap_err().status, Status::NotFound);
    pair.sync_own(2);
    let seat = pair.seat();
    let mib = 1 << 20;
    assert_eq!(synced(&mut pair, 0, mib), mib);
    assert_eq!(pair.bytes(1, 0, 1 << 20), data[..1 << 20]);
    assert_eq!(pair.bytes(1, 1 << 20, 8), [0; 8]);
    // Another session's slot 3 has a page.
    let table = pair.open(0, ObjectKind::LockTable(BLOCK));
    let word = u64::from(77_u32 << 8 | 3);
    let held = (1 << 20) + 40 * 4096;
    object::write_at(table.as_fd(), &word.to_le_bytes(), word_offset(held)).unwrap();
    let until = 40 * 4096;
    assert_eq!(synced(&mut pair, 1 << 20, mib), until, "all that is before it");
    let behind = u32::try_from(BYTES - held - 4096).unwrap();
    assert_eq!(synced(&mut pair, held + 4096, behind), behind);
    // A lost page is left out.
    let lost = held;
    let word = LockBits::LOST.word().to_le_bytes();
    object::write_at(table.as_fd(), &word, word_offset(lost)).unwrap();
    let rest = 2 * 4096;
    assert_eq!(synced(&mut pair, (1 << 20) + u64::from(until) - 4096, rest), rest);
    let mut found = pair.bytes(1, 0, data.len());
    let lost = usize::try_from(lost).unwrap();
    assert_eq!(found[lost..lost + 4096], [0; 4096]);
    found[lost..lost + 4096].copy_from_slice(&data[lost..lost + 4096]);
    assert!(found == data);
    assert!(seat.intents().unwrap().is_empty());
    // What is beyond the block is not there.
    assert_eq!(synced(&mut pair, BYTES - 4096, 8192), 4096);
    for cell in [BYTES, u64::MAX] {
        let request = DaemonRequest::Sync { block: id(BLOCK), guid, cell, bytes: 4096 };
        assert_eq!(pair.broker.ask(&request), Ok(DaemonAnswer::Synced { bytes: 0 }));
    }
}

#[test]
fn a_bit_that_changes_in_a_copy_is_found_and_changed_back() {
    let mut pair = Pair::new();
    let guid = description(BLOCK).guid;
    let bytes = u32::try_from(BYTES).unwrap();
    let scrub = DaemonRequest::Scrub { block: id(BLOCK), guid, cell: 0, bytes };
    let pages = BYTES / 4096;
    let found = ScrubFound::default();
    assert_eq!(pair.broker.ask(&scrub), Ok(DaemonAnswer::Scrubbed { bytes: 0, found }));
    pair.notice(|notice| *notice == DaemonNotice::Unseated { left: None });
    pair.seat();
    // In the last page: a part may end behind one that differs.
    let cell = BYTES - 100;
    pair.done(&write(cell, b"something"));
    let checked = ScrubFound { checked: pages, ..found };
    assert_eq!(pair.broker.ask(&scrub), Ok(DaemonAnswer::Scrubbed { bytes, found: checked }));
    for daemon in [1, 2] {
        let data = pair.open(daemon, ObjectKind::Data(BLOCK));
        object::write_at(data.as_fd(), b"Something", cell).unwrap();
        let found = ScrubFound { checked: pages - 1, repaired: 1, ..found };
        assert_eq!(pair.broker.ask(&scrub), Ok(DaemonAnswer::Scrubbed { bytes, found }));
        assert_eq!(pair.bytes(daemon, cell, 9), b"something");
    }
}

#[test]
fn nobody_is_waited_for_who_has_a_page() {
    let mut pair = Pair::new();
    pair.seat();
    pair.done(&write(0, b"old"));
    let table = pair.open(0, ObjectKind::LockTable(BLOCK));
    // Another session's slot 3 writes there.
    let owner = LockOwner::new(SessionId::try_from(77).unwrap(), 3);
    let half = owner.session().unwrap().get() << 8 | u32::from(owner.slot());
    let word = u64::from(1_001_u32) << 32 | u64::from(half);
    object::write_at(table.as_fd(), &word.to_le_bytes(), word_offset(0)).unwrap();
    let read = DataRequest::Read { at: at(0), bytes: 3 };
    assert_eq!(pair.link.status(&write(0, b"new")), Status::Busy);
    assert_eq!(pair.link.status(&read), Status::Busy);
    assert_eq!(pair.link.ask(&write(4096, b"here")), Ok(DataReply::Done));
    assert_eq!(pair.bytes(2, 0, 3), b"old");
    // What was written before it is said, and is there.
    let data = [9; 8192];
    assert_eq!(pair.link.ask(&write(4096, &data)), Ok(DataReply::Done));
    object::write_at(table.as_fd(), &word.to_le_bytes(), word_offset(8192)).unwrap();
    let part = Ok(DataReply::Part { bytes: 4096 - 16 });
    assert_eq!(pair.link.ask(&write(4096 + 16, &data)), part);
    let (at, data) = (at(4096 + 16), Bytes(data.to_vec()));
    let half = DataRequest::WriteHalf { at, data: data.clone(), half: Half::PRIMARY };
    assert_eq!(pair.link.ask(&half), part);
    assert_eq!(pair.link.status(&write(8192, &data.0)), Status::Busy);
    object::write_at(table.as_fd(), &[0; 8], word_offset(0)).unwrap();
    assert_eq!(pair.done(&write(0, b"new")), DataReply::Done);
    assert_eq!((pair.bytes(1, 0, 3), pair.bytes(2, 0, 3)), (b"new".to_vec(), b"new".to_vec()));
}

#[test]
fn a_copy_that_is_gone_is_told_and_nothing_is_written_until_the_headers_agree() {
    let mut pair = Pair::new();
    let seat = pair.seat();
    pair.done(&write(0, b"both"));
    fs::remove_file(pair.path(2, ObjectKind::Data(BLOCK))).unwrap();
    assert_eq!(pair.link.status(&write(0, b"some")), Status::Busy);
    pair.notice(is_damaged);
    assert_eq!(pair.bytes(1, 0, 4), b"both");
    // One that has another's place, cut, is none; nor is it made longer.
    let other = pair.dir.create(&pair.name(2, ObjectKind::Data(BLOCK))).unwrap();
    assert_eq!(pair.link.status(&write(0, b"some")), Status::Busy);
    assert_eq!(object::end(other.as_fd()).unwrap(), 0);
    object::commit(other.as_fd(), 0, BYTES).unwrap();
    // The broker begins with a header, and dies.
    pair.write_header(2, 2);
    seat.publish(1).unwrap();
    assert_eq!(pair.link.status(&write(0, b"some")), Status::Busy);
    assert_eq!(pair.bytes(1, 0, 4), b"both");
    pair.write_header(1, 2);
    assert_eq!(pair.done(&write(0, b"some")), DataReply::Done);
    assert_eq!((pair.bytes(1, 0, 4), pair.bytes(2, 0, 4)), (b"some".to_vec(), b"some".to_vec()));
}

#[test]
fn a_seat_ends_with_its_last_generation_and_with_its_connection() {
    let mut pair = Pair::new();
    let seat = pair.seat();
    pair.done(&write(0, b"one"));
    seat.publish(ENDED).unwrap();
    assert_eq!(pair.link.status(&write(0, b"two")), Status::Busy);
    pair.notice(|notice| matches!(notice, DaemonNotice::Unseated { .. }));
    assert_eq!(pair.bytes(2, 0, 3), b"one");
    pair.seat();
    assert_eq!(pair.done(&write(0, b"two")), DataReply::Done);
    assert_eq!(pair.bytes(2, 0, 3), b"two");
    pair.broker.restart();
    pair.broker.accept();
    let guid = description(BLOCK).guid;
    pair.link = pair.broker.link(6, LinkGrant { block: id(BLOCK), guid, writable: true });
    assert_eq!(pair.link.status(&write(0, b"six")), Status::Busy);
    pair.notice(|notice| *notice == DaemonNotice::Unseated { left: None });
}

#[test]
fn a_write_that_is_given_up_is_left_to_be_repaired_also_where_its_lock_table_was_cut() {
    const BEYOND: u64 = BYTES - 8;
    let mut pair = Pair::new();
    pair.limit_daemon();
    let add = DataRequest::Add64 { at: at(BEYOND), add: 7 };
    let nothing = Ok(DataReply::Part { bytes: 0 });
    for (request, answer) in [(write(BEYOND, b"lost"), nothing), (add, Err(Status::Io))] {
        for is_whole in [true, false] {
            let seat = pair.seat();
            let session = SessionId::try_from(pair.seats).unwrap();
            pair.done(&write(0, b"both"));
            pair.set_table(is_whole);
            // It may be brought to its end.
            assert_eq!(pair.link.ask(&request).map_err(|refusal| refusal.status), answer);
            let left = Some(session);
            pair.notice(|notice| *notice == DaemonNotice::Unseated { left });
            assert_eq!(seat.intents().unwrap().len(), 1, "it is to be repaired");
            pair.set_table(true);
        }
    }
    // With another seat it goes on.
    pair.seat();
    assert_eq!(pair.done(&write(0, b"else")), DataReply::Done);
    assert_eq!((pair.bytes(1, 0, 4), pair.bytes(2, 0, 4)), (b"else".to_vec(), b"else".to_vec()));
}

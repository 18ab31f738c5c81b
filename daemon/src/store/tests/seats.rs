use std::os::fd::OwnedFd;

use dmce_abi::AddrLayout;
use dmce_abi::block::Half;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectName;
use dmce_abi::wire::data::{Bytes as Data, DataReply, DataRequest, Target};
use dmce_shm::fence::Fence;
use dmce_shm::header;
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::object::SessionObject;
use dmce_shm::table::{self, LockTableHeader, TableIdentity};

use super::super::folder::BROKER;
use super::*;

const TELL_AGAIN: Duration = Duration::from_millis(50);

fn session(id: u32) -> SessionId {
    SessionId::try_from(id).unwrap()
}

/// The broker makes a session object, and a wreck of the one before, for each time that it is told.
#[test]
fn a_seat_that_cannot_be_used_is_given_back_now_and_then() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let alone = description(1);
    let Owner::Session { session: of, ticket, uid, .. } = alone.owner else { panic!("{alone:?}") };
    let owner = Owner::Session { session: of, ticket, uid, copies: 2 };
    let description = BlockDescription { owner, ..alone };
    let guid = description.guid;
    ask(&mut store, DaemonRequest::Create { description, committed: 64 * KIB }).unwrap();
    let read = DataRequest::Read { at: Target { block: id(1), guid, cell: 0 }, bytes: 8 };
    let access = |store: &mut Store| {
        assert_eq!(store.access(&read).unwrap_err().status, Status::Busy);
        store.take_notices()
    };
    assert_eq!(access(&mut store), [DaemonNotice::Unseated { left: None }]);
    let begin = Instant::now();
    let mut told = 0;
    for number in 2..500 {
        // There is no object of that name.
        let seat = DaemonRequest::Seat { session: session(number), guid, cell_bits: 30 };
        ask(&mut store, seat).unwrap();
        told += store.take_notices().len() + access(&mut store).len();
    }
    let times = begin.elapsed().as_millis() / TELL_AGAIN.as_millis() + 1;
    assert!(told as u128 <= times, "{told} in {:?}", begin.elapsed());
    let left = [DaemonNotice::Unseated { left: Some(session(499)) }];
    // Again and again, since who was told may not have heard it.
    for _ in 0..2 {
        wait_until("the last one is given back", || access(&mut store) == left);
    }
}

/// Block 1, with a copy on this daemon and on two others, as the broker has made them.
struct Copies {
    dir: ObjectDir,
    instance: Instance,
    asked: BlockDescription,
}

impl Copies {
    const BYTES: u64 = 4 * PAGE_BYTES;

    fn object(&self, daemon: u32, kind: ObjectKind) -> OwnedFd {
        let name = ObjectName { instance: self.instance.clone(), daemon, kind }.to_string();
        self.dir.open_read_write(&name).or_else(|_| self.dir.create(&name)).unwrap()
    }

    fn data(&self, daemon: u32, word: u64) {
        let fd = self.object(daemon, ObjectKind::Data(1));
        object::commit(fd.as_fd(), 0, Self::BYTES).unwrap();
        object::write_at(fd.as_fd(), &word.to_le_bytes(), 0).unwrap();
    }

    /// Has the headers of these daemons say that the good copies are theirs.
    fn say(&self, epoch: u64, daemons: &[u32]) {
        let ids: Vec<DaemonId> =
            daemons.iter().map(|daemon| DaemonId::try_from(*daemon).unwrap()).collect();
        for &daemon in &ids {
            let half = if Some(&daemon) == ids.first() { Half::PRIMARY } else { Half::MIRROR };
            let membership = Membership::of((daemon, half), &ids, None);
            let description = BlockDescription { epoch, membership, ..self.asked.clone() };
            let header = BlockHeader { daemon, description };
            let fd = self.object(daemon.get(), ObjectKind::Header(1));
            if header::read(fd.as_fd(), AddrLayout::IN_SERVER).is_ok() {
                header::update(fd.as_fd(), &header).unwrap();
            } else {
                header::create(fd.as_fd(), &header).unwrap();
            }
        }
    }
}

/// The others may have written by what the headers say next, and this daemon looks at a copy that
/// these leave out: it was told before they were written.
#[test]
fn nothing_is_read_by_headers_that_are_others_by_now() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let alone = description(1);
    let Owner::Session { session: of, ticket, uid, .. } = alone.owner else { panic!("{alone:?}") };
    let owner = Owner::Session { session: of, ticket, uid, copies: 2 };
    let asked = BlockDescription { owner, ..alone };
    let guid = asked.guid;
    let dir = ObjectDir::open(&fixture.objects).unwrap();
    let copies = Copies { dir, instance: fixture.instance.clone(), asked: asked.clone() };
    let create = DaemonRequest::Create { description: asked, committed: Copies::BYTES };
    ask(&mut store, create).unwrap();
    for (daemon, word) in [(1, 1), (2, 2), (3, 3)] {
        copies.data(daemon, word);
    }
    copies.say(2, &[2, 1]);
    let table = copies.object(BROKER, ObjectKind::LockTable(1));
    object::commit(table.as_fd(), 0, table::object_bytes(Copies::BYTES)).unwrap();
    let identity = TableIdentity { block: id(1), guid, epoch: 2 };
    LockTableHeader::new(identity).write(table.as_fd()).unwrap();
    let seat = SessionIdentity { session: session(2), guid };
    let fd = copies.object(BROKER, ObjectKind::Session(2));
    SessionObject::create(fd, seat, Fence::register()).unwrap();
    let sit = DaemonRequest::Seat { session: seat.session, guid, cell_bits: 30 };
    ask(&mut store, sit).unwrap();
    let read = DataRequest::Read { at: Target { block: id(1), guid, cell: 0 }, bytes: 8 };
    let word = |word: u64| Ok(DataReply::Bytes(Data(word.to_le_bytes().to_vec())));
    assert_eq!(store.access(&read), word(2));
    copies.say(3, &[3, 1]);
    assert_eq!(store.access(&read).unwrap_err().status, Status::Busy);
    assert_eq!(store.access(&read), word(3));
}

//! Block 1, whose primary this daemon has: the objects of the other daemons, the lock table and the
//! session objects are the test's.

use std::os::fd::OwnedFd;

use dmce_abi::block::Half;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectName;
use dmce_abi::wire::data::{Bytes as Data, DataReply, DataRequest, Target};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_shm::fence::Fence;
use dmce_shm::header;
use dmce_shm::session::SessionIdentity;
use dmce_shm::session::map::SessionMap;
use dmce_shm::session::object::SessionObject;
use dmce_shm::table::{self, LockTableHeader, TableIdentity};

use super::super::super::folder::BROKER;
use super::super::*;

pub const PAGES: u64 = 40;
pub const BYTES: u64 = PAGES * PAGE_BYTES;
pub const CELL_BITS: u8 = 30;

pub struct Rig {
    pub store: Store,
    pub dir: ObjectDir,
    pub fixture: Fixture,
    epoch: u64,
    seats: u32,
    asked: BlockDescription,
}

impl Rig {
    /// With good copies on these daemons, of which this one is the first, and a seat.
    pub fn new(daemons: &[u32]) -> Self {
        dmce_sys::fault::install().unwrap();
        let fixture = Fixture::new();
        let mut store = fixture.open();
        let alone = description(1);
        let Owner::Session { session, ticket, uid, .. } = alone.owner else { panic!("{alone:?}") };
        let copies = u32::try_from(daemons.len()).unwrap().max(2);
        let owner = Owner::Session { session, ticket, uid, copies };
        let asked = BlockDescription { owner, ..alone };
        ask(&mut store, DaemonRequest::Create { description: asked.clone(), committed: BYTES })
            .unwrap();
        let dir = ObjectDir::open(&fixture.objects).unwrap();
        let mut rig = Self { store, dir, fixture, epoch: 1, seats: 2, asked };
        rig.say(daemons, None);
        rig.make_table();
        rig.seat();
        rig
    }

    pub fn object(&self, daemon: u32, kind: ObjectKind) -> OwnedFd {
        let name = self.name(daemon, kind);
        self.dir.open_read_write(&name).or_else(|_| self.dir.create(&name)).unwrap()
    }

    pub fn name(&self, daemon: u32, kind: ObjectKind) -> String {
        ObjectName { instance: self.fixture.instance.clone(), daemon, kind }.to_string()
    }

    pub fn data(&self, daemon: u32) -> OwnedFd {
        self.object(daemon, ObjectKind::Data(1))
    }

    pub fn table(&self) -> OwnedFd {
        self.object(BROKER, ObjectKind::LockTable(1))
    }

    /// Has the headers of the next epoch say that the good copies are these, and one is syncing.
    pub fn say(&mut self, daemons: &[u32], syncing: Option<u32>) {
        let own = self.write_headers(daemons, syncing);
        if let Some(description) = own {
            ask(&mut self.store, DaemonRequest::Rewritten { description }).unwrap();
        }
    }

    /// The same, and this daemon is not told yet; what it is to be told.
    pub fn raise_behind(&mut self, daemons: &[u32]) -> BlockDescription {
        self.write_headers(daemons, None).unwrap()
    }

    fn write_headers(&mut self, daemons: &[u32], syncing: Option<u32>) -> Option<BlockDescription> {
        self.epoch += 1;
        let daemon_id = |daemon: u32| DaemonId::try_from(daemon).unwrap();
        let ids: Vec<DaemonId> = daemons.iter().copied().map(daemon_id).collect();
        let syncing = syncing.map(daemon_id);
        let mut own = None;
        for (place, daemon) in ids.iter().copied().chain(syncing).enumerate() {
            let data = self.data(daemon.get());
            object::commit(data.as_fd(), 0, BYTES).unwrap();
            let membership = Membership::of((daemon, Half::of(place).unwrap()), &ids, syncing);
            let description =
                BlockDescription { epoch: self.epoch, membership, ..self.asked.clone() };
            let header = BlockHeader { daemon, description: description.clone() };
            let fd = self.object(daemon.get(), ObjectKind::Header(1));
            if object::end(fd.as_fd()).unwrap() > 0 {
                header::update(fd.as_fd(), &header).unwrap();
            } else {
                header::create(fd.as_fd(), &header).unwrap();
            }
            if daemon == super::daemon() {
                own = Some(description);
            }
        }
        own
    }

    /// A lock table that nobody has used.
    pub fn make_table(&mut self) {
        let _ = self.dir.unlink(&self.name(BROKER, ObjectKind::LockTable(1)));
        let table = self.table();
        object::commit(table.as_fd(), 0, table::object_bytes(BYTES)).unwrap();
        let identity = TableIdentity { block: id(1), guid: self.asked.guid, epoch: self.epoch };
        LockTableHeader::new(identity).write(table.as_fd()).unwrap();
    }

    /// A session object, and it as its session has it.
    pub fn session(&mut self) -> (SessionObject, SessionMap) {
        self.seats += 1;
        let session = SessionId::try_from(self.seats).unwrap();
        let identity = SessionIdentity { session, guid: self.asked.guid };
        let fd = self.object(BROKER, ObjectKind::Session(self.seats));
        let object = SessionObject::create(fd, identity, Fence::register()).unwrap();
        object.commit_undo().unwrap();
        let map = SessionMap::map(object.as_fd(), identity, Fence::register()).unwrap();
        (object, map)
    }

    pub fn seat(&mut self) -> SessionObject {
        let (object, _) = self.session();
        let session = SessionId::try_from(self.seats).unwrap();
        let seat = DaemonRequest::Seat { session, guid: self.asked.guid, cell_bits: CELL_BITS };
        ask(&mut self.store, seat).unwrap();
        object
    }

    pub fn at(&self, page: u64) -> Target {
        Target { block: id(1), guid: self.asked.guid, cell: cell(page) }
    }

    /// What a part is answered.
    pub fn ask_part(&mut self, cell: u64, bytes: u32) -> Reply<DaemonAnswer> {
        let (block, guid) = (id(1), self.asked.guid);
        ask(&mut self.store, DaemonRequest::Scrub { block, guid, cell, bytes })
    }

    pub fn part(&mut self, cell: u64, bytes: u32) -> (u32, ScrubFound) {
        match self.ask_part(cell, bytes) {
            Ok(DaemonAnswer::Scrubbed { bytes, found }) => (bytes, found),
            other => panic!("{other:?}"),
        }
    }

    /// What is found in the whole block, but for pages that are as they should be.
    pub fn scrub(&mut self) -> ScrubFound {
        let (mut at, mut all) = (0, ScrubFound::default());
        // A part may end before all of it was looked at.
        while at < BYTES {
            let (bytes, found) = self.part(at, u32::try_from(BYTES - at).unwrap());
            assert!(bytes > 0, "nothing is done");
            at += u64::from(bytes);
            all += found;
        }
        assert_eq!(all.pages(), PAGES, "{all:?}");
        ScrubFound { checked: 0, ..all }
    }

    /// Nothing is done, and what the broker is told meanwhile.
    pub fn put_off(&mut self) -> Vec<DaemonNotice> {
        self.store.take_notices();
        assert_eq!(self.part(0, 4096), (0, ScrubFound::default()));
        self.store.take_notices()
    }

    pub fn write(&mut self, page: u64, data: &[u8]) -> Status {
        let write = DataRequest::Write { at: self.at(page), data: Data(data.to_vec()) };
        match self.store.access(&write) {
            Ok(DataReply::Done) => Status::Ok,
            other => other.unwrap_err().status,
        }
    }

    pub fn read(&mut self, page: u64, bytes: u32) -> Result<Vec<u8>, Status> {
        match self.store.access(&DataRequest::Read { at: self.at(page), bytes }) {
            Ok(DataReply::Bytes(data)) => Ok(data.0),
            other => Err(other.unwrap_err().status),
        }
    }

    /// Changes one bit in a copy alone, behind everybody's back.
    pub fn flip(&self, daemon: u32, page: u64) {
        let (fd, at) = (self.data(daemon), cell(page) + 77);
        let mut byte = [0];
        object::read_at(fd.as_fd(), &mut byte, at).unwrap();
        object::write_at(fd.as_fd(), &[byte[0] ^ 4], at).unwrap();
    }

    pub fn page_of(&self, daemon: u32, page: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        object::read_at(self.data(daemon).as_fd(), &mut bytes, cell(page)).unwrap();
        bytes
    }

    /// The lock word of a page: its half, and its sequence.
    pub fn word(&self, page: u64) -> (u32, u32) {
        let mut word = [0; 8];
        let offset = table::word_offset(cell(page));
        object::read_at(self.table().as_fd(), &mut word, offset).unwrap();
        let [half, sequence] =
            [0, 4].map(|at| u32::from_le_bytes(*word[at..].first_chunk().unwrap()));
        (half, sequence)
    }

    pub fn set_word(&self, page: u64, (half, sequence): (u32, u32)) {
        let word = u64::from(sequence) << 32 | u64::from(half);
        let offset = table::word_offset(cell(page));
        object::write_at(self.table().as_fd(), &word.to_le_bytes(), offset).unwrap();
    }
}

pub fn cell(page: u64) -> u64 {
    page * PAGE_BYTES
}

/// The DMCE address of a page.
pub fn addr(page: u64) -> u64 {
    (1 << CELL_BITS) + cell(page)
}

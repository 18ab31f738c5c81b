//! A client that speaks to the broker in messages, so that what is tried is the command and the
//! servers and nothing of the library's own.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Fetch, Malloc, MallocKind, Map, OpeningId, RegionCreate,
    RegionName, RegionOpen, Setup,
};
use dmce_sys::object;
use libdmce::connection::Connection;

/// A session of this process.
pub struct Client {
    connection: Connection,
    /// What came with the session: held like any client does.
    _fds: Vec<OwnedFd>,
}

impl Client {
    pub fn open(socket: &Path, name: &str) -> Self {
        let mut connection = Connection::connect(socket).unwrap();
        let setup = ClientRequest::Setup(Setup {
            segment_version: SEGMENT_VERSION,
            pointer_bits: 64,
            bytes: 0,
            accept_partial: false,
            copies: 0,
            name: name.into(),
        });
        let (reply, fds) = connection.request(&setup).unwrap();
        assert!(matches!(reply, ClientReply::Ready(_)), "{reply:?}");
        Self { connection, _fds: fds }
    }

    fn ask(&mut self, request: &ClientRequest) -> (ClientReply, Vec<OwnedFd>) {
        self.connection.request(request).unwrap_or_else(|error| panic!("{request:?}: {error}"))
    }

    /// A block of the session, with so many bytes committed.
    pub fn malloc(&mut self, committed: u64) -> u32 {
        let kind = MallocKind::Heap { committed };
        let malloc = ClientRequest::Malloc(Malloc { ticket: 1, kind, page_size: 0, copies: 0 });
        match self.ask(&malloc).0 {
            ClientReply::Granted(granted) => granted.first.block.get(),
            other => panic!("{other:?}"),
        }
    }

    /// Says where the session has something mapped.
    pub fn map(&mut self, addr: u64, bytes: u64, os_address: u64) {
        let map = ClientRequest::Map(Map { addr, bytes, os_address, writable: true });
        assert_eq!(self.ask(&map).0, ClientReply::Done);
    }

    /// Makes a region in volume `v` and opens it; its bytes.
    pub fn create_region(&mut self, name: &str, region_size: u64) -> OwnedFd {
        let region = RegionName { volume: "v".into(), name: name.into() };
        let create = ClientRequest::RegionCreate(RegionCreate {
            ticket: 2,
            region,
            region_size,
            base_pointer: 0x1000,
            mode: 0o640,
            copies: 0,
            page_size: 0,
        });
        assert_eq!(self.ask(&create).0, ClientReply::Done);
        self.open_region(name)
    }

    /// Opens a region of volume `v`; its bytes.
    pub fn open_region(&mut self, name: &str) -> OwnedFd {
        let region = RegionName { volume: "v".into(), name: name.into() };
        let open = ClientRequest::RegionOpen(RegionOpen {
            opening: OpeningId(1),
            region,
            read: true,
            write: true,
        });
        let (ClientReply::Opened(opened), _) = self.ask(&open) else { panic!("not opened") };
        let fetch = ClientRequest::Fetch(Fetch { block: opened.first.block, writable: true });
        let (_, fds) = self.ask(&fetch);
        fds.into_iter().next().expect("a block that is there has a descriptor")
    }
}

/// Makes a region with a text in it, in a session that ends with the call.
pub fn write_region(socket: &Path, name: &str, text: &[u8]) {
    let region = Client::open(socket, "writer").create_region(name, 64 << 10);
    object::write_at(region.as_fd(), text, 4096).unwrap();
}

/// What [`write_region`] wrote.
pub fn read_region(socket: &Path, name: &str, bytes: usize) -> Vec<u8> {
    let region = Client::open(socket, "reader").open_region(name);
    let mut text = vec![0; bytes];
    object::read_at(region.as_fd(), &mut text, 4096).unwrap();
    text
}

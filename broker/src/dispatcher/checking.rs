//! What is wrong with a request whatever the tables say: it is refused at once, and never waits.
//!
//! # Invariants
//!
//! 1. A request that waits has passed, so that what waits is short and can be served.
//! 2. Passing promises nothing: who serves a request later looks at the tables, and at all that
//!    may have changed while it waited.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid, Region, Ticket};
use dmce_abi::limits::{REGION_BYTES_MAX, SESSION_NAME_BYTES_MAX, VOLUME_BYTES_MAX};
use dmce_abi::name;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{
    ClientRequest, Delete, Malloc, MallocKind, MallocWith, Map, RegionCreate, RegionName,
    RegionOpen, Setup,
};

use super::Dispatcher;
use super::event::ClientConn;
use super::relay::check_data;
use super::requests::refuse;

impl Dispatcher {
    /// Whether a request of this connection can be served at all.
    ///
    /// # Errors
    ///
    /// Why it cannot: `CLOSED` without a session, else mostly `INVALID`.
    pub(super) fn check_request(
        &self,
        conn: ClientConn,
        request: &ClientRequest,
    ) -> Result<(), Refusal> {
        match request {
            ClientRequest::Admin(_) | ClientRequest::Attach(_) => return Ok(()),
            ClientRequest::Setup(setup) => return self.check_setup(conn, setup),
            _ => {}
        }
        let Some(session) = self.session_of(conn).and_then(|id| self.sessions.get(id)) else {
            return refuse(Status::Closed, "this connection has no session");
        };
        match request {
            ClientRequest::Malloc(malloc) => {
                self.copies([malloc.copies, session.record.copies])?;
                self.check_malloc(malloc)
            }
            ClientRequest::MallocWith(MallocWith { malloc, policy, .. }) => {
                let policy = self.policy(*policy, None)?;
                self.copies([malloc.copies, policy.told.copies, session.record.copies])?;
                self.check_malloc(malloc)
            }
            ClientRequest::Delete(Delete { addr, .. }) => self.parts(*addr).map(|_| ()),
            ClientRequest::Map(map) => self.check_map(map),
            ClientRequest::Data(request) => check_data(request),
            ClientRequest::RegionCreate(create) => self.check_create(create),
            ClientRequest::RegionOpen(RegionOpen { read: false, write: false, .. }) => {
                refuse(Status::Invalid, "a region is opened to read or to write")
            }
            ClientRequest::RegionOpen(RegionOpen { region, .. })
            | ClientRequest::RegionFind(region) => check_region_name(region),
            _ => Ok(()),
        }
    }

    fn check_setup(&self, conn: ClientConn, setup: &Setup) -> Result<(), Refusal> {
        if let Some(session) = self.clients.get(&conn).and_then(|client| client.session) {
            return refuse(Status::Invalid, format!("this connection has session {session}"));
        }
        let theirs = setup.segment_version;
        if theirs != SEGMENT_VERSION {
            let ours = SEGMENT_VERSION;
            let text = format!("the client has segment version {theirs}, the broker {ours}");
            return refuse(Status::Version, text);
        }
        if !matches!(setup.pointer_bits, 32 | 64) {
            let text = format!("pointers of {} bits; there are 32 and 64", setup.pointer_bits);
            return refuse(Status::Invalid, text);
        }
        if !setup.name.is_empty() {
            name::check("session", &setup.name, SESSION_NAME_BYTES_MAX)
                .map_err(|error| Refusal::new(Status::Invalid, error.to_string()))?;
        }
        self.copies([setup.copies, self.config.copies]).map(|_| ())
    }

    fn check_malloc(&self, malloc: &Malloc) -> Result<(), Refusal> {
        self.page_size(malloc.page_size)?;
        let range = self.config.layout.block_bytes();
        match malloc.kind {
            MallocKind::Heap { committed } if committed > range => {
                let text = format!("{committed} bytes in a block, limit {range}");
                refuse(Status::Invalid, text)
            }
            MallocKind::Span { bytes: 0 } => refuse(Status::Invalid, "a span of 0 bytes"),
            MallocKind::Heap { .. } | MallocKind::Span { .. } => Ok(()),
        }
    }

    fn check_map(&self, map: &Map) -> Result<(), Refusal> {
        let Map { addr, bytes, os_address, .. } = *map;
        let wraps = |start: u64| start.checked_add(bytes).is_none();
        if bytes == 0 || wraps(os_address) || wraps(addr) {
            let text = format!("{bytes} bytes from {addr:#x} at {os_address:#x}");
            return refuse(Status::Invalid, text);
        }
        let parts = self.parts(addr)?;
        let block = BlockId::try_from(parts.block);
        block.map(|_| ()).map_err(|error| Refusal::new(Status::Address, error.to_string()))
    }

    fn check_create(&self, create: &RegionCreate) -> Result<(), Refusal> {
        self.page_size(create.page_size)?;
        let region = Region {
            volume: create.region.volume.clone(),
            name: create.region.name.clone(),
            uid: 0,
            gid: 0,
            mode: create.mode,
            base_pointer: create.base_pointer,
            region_size: create.region_size,
            copies: self.copies([create.copies, self.config.copies])?,
            created_at: 0,
            created_by: Ticket { session: Guid::default(), number: 0 },
        };
        region.validate().map_err(|error| Refusal::new(Status::Invalid, error.to_string()))
    }
}

/// No region has a name that none may have.
fn check_region_name(region: &RegionName) -> Result<(), Refusal> {
    let possible = name::check("volume", &region.volume, VOLUME_BYTES_MAX)
        .and_then(|()| name::check("region", &region.name, REGION_BYTES_MAX));
    possible.map_err(|error| Refusal::new(Status::NotFound, error.to_string()))
}

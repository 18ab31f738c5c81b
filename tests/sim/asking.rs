//! What a model client asks for next.

use dmce_abi::block::{BlockId, Guid};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::admin::{AdminRequest, MappingKey};
use dmce_abi::wire::client::{
    Changes, ClientRequest, Delete, Fetch, Grow, Malloc, MallocKind, MallocWith, Map, OpeningId,
    Reach, RegionCreate, RegionList, RegionName, RegionOpen, Setup, Unmap,
};

use dmce_abi::wire::data::{DataRequest, LinkId, Target};

use crate::random::Random;
use crate::view::{View, members};

/// No opening has this number: tickets and openings are counted up from 1.
const NEVER_OPENED: OpeningId = OpeningId(u64::MAX);

/// Entries of the policy table.
pub const POLICIES: u64 = 3;

/// Sizes that requests are made of.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Bits of a cell: a full block has two to the power of it.
    pub cell_bits: u8,
    /// Ids of blocks.
    pub ids: u32,
    /// Copies that the broker keeps.
    pub copies_max: u32,
    /// Whether clients mostly want to write to regions of several copies.
    pub writes: bool,
}

impl Sizes {
    const fn full(self) -> u64 {
        1 << self.cell_bits
    }

    const fn address(self, block: BlockId) -> u64 {
        (block.get() as u64) << self.cell_bits
    }

    /// Copies: as many as there may be, or, now and then, more than this broker keeps.
    fn some_copies(self, random: &mut Random) -> u32 {
        match (self.copies_max, random.below(30)) {
            (1, 0) | (2.., 0..=9) => 2,
            (2.., 10..=14) => 3,
            _ => 0,
        }
    }

    fn some_bytes(self, random: &mut Random) -> u64 {
        match random.below(6) {
            0 => 1 + random.below(self.full() * 3),
            1 => self.full(),
            2 => self.full() * (1 + random.below(3)),
            _ => 1 + random.below(self.full() / 4),
        }
    }
}

/// A region's name: there are few, so that clients meet.
fn some_region(random: &mut Random) -> RegionName {
    let volume = if random.once_in(3) { "b" } else { "a" };
    RegionName { volume: volume.into(), name: format!("r{}", random.below(6)) }
}

/// The first request of a client.
pub fn setup(random: &mut Random, sizes: Sizes) -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version: if random.once_in(40) { 77 } else { SEGMENT_VERSION },
        pointer_bits: if random.once_in(2) { 32 } else { 64 },
        bytes: if random.once_in(2) { 0 } else { sizes.some_bytes(random) },
        accept_partial: random.once_in(2),
        copies: sizes.some_copies(random),
        name: format!("client {}", random.below(100)),
    })
}

/// Any request of a client that has a session.
pub fn request(random: &mut Random, view: &mut View, sizes: Sizes) -> ClientRequest {
    if sizes.writes && !random.once_in(3) {
        return shared(random, view, sizes);
    }
    match random.below(24) {
        0..=4 => malloc(random, view, sizes),
        5 | 6 => grow(random, view, sizes),
        7..=9 => delete(random, view, sizes),
        10 | 11 => fetch(random, view, sizes),
        12 => map(random, view, sizes),
        13 => ClientRequest::Changes(Changes { since: view.generation }),
        14 => small(random, view, sizes),
        15 => region_create(random, view, sizes),
        16 | 17 => region_open(random, view),
        18 => {
            let opening = random.pick(view.openings.keys().copied());
            ClientRequest::RegionClose(opening.unwrap_or(NEVER_OPENED))
        }
        19..=21 => region_delete(random, view),
        22 => reach(random, view, sizes),
        _ => data(random, view, sizes),
    }
}

fn malloc(random: &mut Random, view: &mut View, sizes: Sizes) -> ClientRequest {
    view.ticket += 1;
    let kind = if random.once_in(2) {
        MallocKind::Heap { committed: random.below(sizes.full() / 2) }
    } else {
        MallocKind::Span { bytes: sizes.some_bytes(random) }
    };
    let page_size = match random.below(30) {
        0 => 5000,
        1..=3 => 65536,
        _ => 0,
    };
    let copies = sizes.some_copies(random);
    let malloc = Malloc { ticket: view.ticket, kind, page_size, copies };
    if random.once_in(2) {
        return ClientRequest::Malloc(malloc);
    }
    let wait_ms = match random.below(3) {
        0 => None,
        1 => Some(0),
        _ => Some(1 + u32::try_from(random.below(3000)).unwrap_or(0)),
    };
    // One more than there are.
    let policy = u32::try_from(random.below(POLICIES + 2)).unwrap_or(0);
    ClientRequest::MallocWith(MallocWith { malloc, policy, wait_ms })
}

fn grow(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let block = some_block(random, view, sizes);
    ClientRequest::Grow(Grow { block, committed: random.below(sizes.full() + sizes.full() / 8) })
}

fn delete(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let own = random.pick(view.spans.iter().map(|(first, span)| (*first, span.guid)));
    if let Some((first, guid)) = own.filter(|_| !random.once_in(15)) {
        return ClientRequest::Delete(Delete { addr: sizes.address(first), guid });
    }
    let addr = sizes.address(some_block(random, view, sizes)) + random.below(2);
    ClientRequest::Delete(Delete { addr, guid: Guid::default() })
}

fn fetch(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let block = some_block(random, view, sizes);
    ClientRequest::Fetch(Fetch { block, writable: random.once_in(2) })
}

/// A way to a block by message; perhaps the client says that its link is broken.
fn reach(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let broken = random.pick(view.links.iter().copied()).filter(|_| random.once_in(6));
    ClientRequest::Reach(Reach {
        block: some_block(random, view, sizes),
        writable: random.once_in(2),
        direct: !random.once_in(4),
        broken: broken.unwrap_or(LinkId(0)),
    })
}

fn data(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let block = some_block(random, view, sizes);
    let guid = view.spans.get(&block).map_or(Guid::default(), |span| span.guid);
    let at = Target { block, guid, cell: random.below(4096) };
    ClientRequest::Data(if random.once_in(2) {
        DataRequest::Read { at, bytes: 1 + u32::try_from(random.below(60_000)).unwrap_or(0) }
    } else {
        DataRequest::Add64 { at, add: 1 }
    })
}

fn map(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    match random.pick(view.mapped.iter().copied()) {
        Some(os_address) if random.once_in(2) => ClientRequest::Unmap(Unmap { os_address }),
        _ => ClientRequest::Map(Map {
            addr: sizes.address(some_block(random, view, sizes)) + random.below(3) * 4096,
            bytes: sizes.some_bytes(random),
            os_address: (1 + random.below(64)) << 32,
            writable: random.once_in(2),
        }),
    }
}

fn region_create(random: &mut Random, view: &mut View, sizes: Sizes) -> ClientRequest {
    view.ticket += 1;
    ClientRequest::RegionCreate(RegionCreate {
        ticket: view.ticket,
        region: some_region(random),
        region_size: sizes.some_bytes(random),
        base_pointer: 0,
        mode: [0, 0o660, 0o666, 0o644, 0o600][usize::try_from(random.below(5)).unwrap_or(0)],
        copies: sizes.some_copies(random),
        page_size: 0,
    })
}

/// What leads to a region of several copies that others write as well.
fn shared(random: &mut Random, view: &mut View, sizes: Sizes) -> ClientRequest {
    let region = RegionName { volume: "a".into(), name: format!("r{}", random.below(2)) };
    view.ticket += 1;
    let ticket = view.ticket;
    if view.openings.is_empty() && random.once_in(2) {
        let (region_size, copies) = (4096 * (1 + random.below(4)), sizes.copies_max);
        let (base_pointer, mode, page_size) = (0, 0o666, 0);
        let create =
            RegionCreate { ticket, region, region_size, base_pointer, mode, copies, page_size };
        return ClientRequest::RegionCreate(create);
    }
    if view.openings.len() > 2 {
        return ClientRequest::Stat;
    }
    let opening = OpeningId(ticket);
    ClientRequest::RegionOpen(RegionOpen { opening, region, read: true, write: true })
}

fn region_open(random: &mut Random, view: &mut View) -> ClientRequest {
    view.ticket += 1;
    let taken = random.pick(view.openings.keys().copied()).filter(|_| random.once_in(20));
    ClientRequest::RegionOpen(RegionOpen {
        opening: taken.unwrap_or(OpeningId(view.ticket)),
        region: some_region(random),
        read: !random.once_in(10),
        write: random.once_in(2),
    })
}

/// A region that the client once found or opened, be it there still or not.
fn region_delete(random: &mut Random, view: &mut View) -> ClientRequest {
    if let Some(region) = view.not_yet.pop() {
        return ClientRequest::RegionDelete(region);
    }
    match random.pick(view.keys.values().copied()) {
        Some(region) if random.once_in(2) => ClientRequest::RegionDelete(region),
        _ => ClientRequest::RegionFind(some_region(random)),
    }
}

fn small(random: &mut Random, view: &View, sizes: Sizes) -> ClientRequest {
    let none = || RegionName { volume: String::new(), name: String::new() };
    let addr = sizes.address(some_block(random, view, sizes));
    match random.below(16) {
        0 => ClientRequest::Disconnect,
        10 => ClientRequest::Policies,
        11 | 12 => ClientRequest::Events,
        1 => ClientRequest::Damaged(some_block(random, view, sizes)),
        2 => ClientRequest::RegionList(RegionList { volume: "a".into(), after: String::new() }),
        3 => ClientRequest::Admin(AdminRequest::Status),
        4 => ClientRequest::Admin(AdminRequest::Daemons { after: 0 }),
        5 => ClientRequest::Admin(AdminRequest::Blocks { after: 0 }),
        6 => ClientRequest::Admin(AdminRequest::Sessions { after: 0 }),
        7 => ClientRequest::Admin(AdminRequest::Regions { after: none() }),
        8 => ClientRequest::Admin(AdminRequest::WhereIs { addr }),
        9 => setup(random, sizes),
        15 => {
            let after = MappingKey { session: 0, os_address: 0 };
            let addr = if random.once_in(2) { 0 } else { addr };
            ClientRequest::Admin(AdminRequest::Mappings { addr, session: 0, after })
        }
        _ => ClientRequest::Stat,
    }
}

/// Mostly a block that the client may use.
fn some_block(random: &mut Random, view: &View, sizes: Sizes) -> BlockId {
    let own = view.spans.iter().flat_map(|(first, span)| members(*first, span.count));
    let open = view.openings.values().flat_map(|region| members(region.first, region.count));
    let reach: Vec<BlockId> = own.chain(open).collect();
    let known = random.pick(reach).filter(|_| !random.once_in(12));
    let any = u32::try_from(1 + random.below(u64::from(sizes.ids) - 1));
    known.or_else(|| any.ok().and_then(|id| BlockId::try_from(id).ok())).expect("ids begin with 1")
}

/// A setup that asks for nothing that could be refused.
pub fn plain_setup() -> ClientRequest {
    ClientRequest::Setup(Setup {
        segment_version: SEGMENT_VERSION,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: false,
        copies: 0,
        name: String::new(),
    })
}

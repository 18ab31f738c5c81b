//! What clients ask: sound requests with numbers that were seen, and whatever decodes.

use arbitrary::{Result, Unstructured};
use dmce_abi::block::{BlockId, Guid, SessionId};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire;
use dmce_abi::wire::client::{
    Abandon, Attach, Changes, ClientRequest, Delete, Fetch, Grow, Malloc, MallocKind, MallocWith,
    Map, Opening, OpeningId, Reach, RegionCreate, RegionKey, RegionList, RegionName, RegionOpen,
    Setup, SpanList, Unmap,
};
use dmce_abi::wire::data::{Bytes, DataRequest, LinkId, Target};
use serde::de::DeserializeOwned;

use super::world::{Seen, pick};
use crate::frames::around;

/// Cells of a block in this world, in bits.
const CELL_BITS: u32 = 14;

/// A request; none if the bytes are no message.
pub fn request(seen: &Seen, bytes: &mut Unstructured<'_>) -> Result<Option<ClientRequest>> {
    Ok(Some(match bytes.int_in_range(0..=31)? {
        0..=3 => ClientRequest::Setup(setup(bytes)?),
        4 | 5 => ClientRequest::Attach(attach(seen, bytes)?),
        6..=8 => ClientRequest::Malloc(malloc(bytes)?),
        9 => ClientRequest::MallocWith(MallocWith {
            malloc: malloc(bytes)?,
            policy: bytes.int_in_range(0..=3)?,
            wait_ms: if bytes.arbitrary()? { Some(bytes.int_in_range(0..=255)?) } else { None },
        }),
        10 => ClientRequest::Abandon(Abandon { ticket: bytes.int_in_range(0..=7)? }),
        11 => ClientRequest::Grow(Grow { block: key(seen, bytes)?.0, committed: size(bytes)? }),
        12 | 13 => {
            let (block, guid) = key(seen, bytes)?;
            ClientRequest::Delete(Delete { addr: address(block, bytes)?, guid })
        }
        14 => {
            ClientRequest::Fetch(Fetch { block: key(seen, bytes)?.0, writable: bytes.arbitrary()? })
        }
        15 => ClientRequest::Map(Map {
            addr: address(key(seen, bytes)?.0, bytes)?,
            bytes: size(bytes)?,
            os_address: bytes.int_in_range(0..=7)? << 12,
            writable: bytes.arbitrary()?,
        }),
        16 => ClientRequest::Unmap(Unmap { os_address: bytes.int_in_range(0..=7)? << 12 }),
        17 => ClientRequest::Changes(Changes { since: bytes.int_in_range(0..=15)? }),
        18 => ClientRequest::Damaged(key(seen, bytes)?.0),
        19 | 20 => ClientRequest::RegionCreate(region_create(bytes)?),
        21 | 22 => ClientRequest::RegionOpen(RegionOpen {
            opening: OpeningId(bytes.int_in_range(0..=3)?),
            region: region_name(bytes)?,
            read: bytes.arbitrary()?,
            write: bytes.arbitrary()?,
        }),
        23 => ClientRequest::RegionClose(OpeningId(bytes.int_in_range(0..=3)?)),
        24 => {
            let (first, guid) = key(seen, bytes)?;
            ClientRequest::RegionDelete(RegionKey { first, guid })
        }
        25 => ClientRequest::RegionFind(region_name(bytes)?),
        26 => ClientRequest::RegionList(RegionList { volume: "v".into(), after: String::new() }),
        27 => plain(bytes)?,
        28 => ClientRequest::Reach(Reach {
            block: key(seen, bytes)?.0,
            writable: bytes.arbitrary()?,
            direct: bytes.arbitrary()?,
            broken: LinkId(bytes.int_in_range(0..=7)?),
        }),
        29 => ClientRequest::Data(data(seen, bytes)?),
        _ => return message(bytes),
    }))
}

/// What a connection without a session needs first.
pub fn opening(seen: &Seen, bytes: &mut Unstructured<'_>) -> Result<ClientRequest> {
    if bytes.arbitrary()? {
        Ok(ClientRequest::Attach(attach(seen, bytes)?))
    } else {
        Ok(ClientRequest::Setup(setup(bytes)?))
    }
}

/// A setup that nothing is wrong with.
pub fn sound_setup() -> Setup {
    Setup {
        segment_version: SEGMENT_VERSION,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: true,
        copies: 1,
        name: "fuzz".into(),
    }
}

/// Whatever the next bytes are, if they are a message.
pub fn message<T: DeserializeOwned>(bytes: &mut Unstructured<'_>) -> Result<Option<T>> {
    let count = bytes.int_in_range(0..=63)?.min(bytes.len());
    Ok(wire::decode_body(&around(bytes.bytes(count)?, 0)).ok())
}

/// The requests that say nothing more.
fn plain(bytes: &mut Unstructured<'_>) -> Result<ClientRequest> {
    Ok(match bytes.int_in_range(0..=4)? {
        0 => ClientRequest::Stat,
        1 => ClientRequest::Disconnect,
        2 => ClientRequest::Spans(SpanList { after: bytes.int_in_range(0..=63)? }),
        3 => ClientRequest::Policies,
        _ => ClientRequest::Events,
    })
}

fn setup(bytes: &mut Unstructured<'_>) -> Result<Setup> {
    let other = bytes.ratio(1, 16)?;
    Ok(Setup {
        segment_version: if other { bytes.arbitrary()? } else { SEGMENT_VERSION },
        pointer_bits: *bytes.choose(&[64, 32, 16])?,
        bytes: size(bytes)?,
        accept_partial: bytes.arbitrary()?,
        copies: bytes.int_in_range(0..=2)?,
        name: "fuzz".into(),
    })
}

fn attach(seen: &Seen, bytes: &mut Unstructured<'_>) -> Result<Attach> {
    let (session, guid) = match pick(bytes, seen.sessions.iter().copied())? {
        Some(known) => known,
        None => (SessionId::try_from(1).expect("a small id"), Guid([1; 16])),
    };
    let mut openings = Vec::new();
    for _ in 0..bytes.int_in_range(0..=3)? {
        openings.push(Opening {
            opening: OpeningId(bytes.int_in_range(0..=3)?),
            first: key(seen, bytes)?.0,
            read: bytes.arbitrary()?,
            write: bytes.arbitrary()?,
        });
    }
    Ok(Attach { session, guid, openings })
}

fn malloc(bytes: &mut Unstructured<'_>) -> Result<Malloc> {
    let kind = if bytes.arbitrary()? {
        MallocKind::Heap { committed: size(bytes)? }
    } else {
        MallocKind::Span { bytes: size(bytes)? }
    };
    Ok(Malloc {
        ticket: bytes.int_in_range(0..=7)?,
        kind,
        page_size: *bytes.choose(&[0, 4096, 8192, 5000])?,
        copies: bytes.int_in_range(0..=2)?,
    })
}

fn region_create(bytes: &mut Unstructured<'_>) -> Result<RegionCreate> {
    Ok(RegionCreate {
        ticket: bytes.int_in_range(0..=7)?,
        region: region_name(bytes)?,
        region_size: size(bytes)?,
        base_pointer: *bytes.choose(&[0, 1 << 40, u64::MAX])?,
        mode: *bytes.choose(&[0, 0o666, 0o600, 0o1777])?,
        copies: bytes.int_in_range(0..=2)?,
        page_size: *bytes.choose(&[0, 4096])?,
    })
}

fn region_name(bytes: &mut Unstructured<'_>) -> Result<RegionName> {
    let name = *bytes.choose(&["a", "b", "c", "", "a/b"])?;
    Ok(RegionName { volume: "v".into(), name: name.into() })
}

fn data(seen: &Seen, bytes: &mut Unstructured<'_>) -> Result<DataRequest> {
    let (block, guid) = key(seen, bytes)?;
    let at = Target { block, guid, cell: size(bytes)? };
    Ok(match bytes.int_in_range(0..=3)? {
        0 => DataRequest::Read { at, bytes: bytes.arbitrary::<u16>()?.into() },
        1 => {
            let count = bytes.int_in_range(0..=32)?;
            DataRequest::Write { at, data: Bytes(vec![7; count]) }
        }
        2 => DataRequest::Add64 { at, add: 1 },
        _ => DataRequest::Wait64 { at, while_equal: 0 },
    })
}

/// A block that was seen with its GUID, one of the two, or neither.
pub fn key(seen: &Seen, bytes: &mut Unstructured<'_>) -> Result<(BlockId, Guid)> {
    let known = pick(bytes, seen.blocks.iter().copied())?;
    let any = BlockId::try_from(bytes.int_in_range(1..=24)?).expect("a small id");
    Ok(match (bytes.int_in_range(0..=7)?, known) {
        (0, Some((_, guid))) => (any, guid),
        (1, Some((block, _))) => (block, Guid([1; 16])),
        (_, Some(known)) => known,
        (_, None) => (any, Guid([1; 16])),
    })
}

/// An address in a block, mostly at its beginning.
pub fn address(block: BlockId, bytes: &mut Unstructured<'_>) -> Result<u64> {
    let cell: u64 = *bytes.choose(&[0, 0, 0, 4096, 1 << 50])?;
    Ok(u64::from(block.get()) << CELL_BITS | cell)
}

/// A number of bytes: some pages, at an edge of a block, or any.
pub fn size(bytes: &mut Unstructured<'_>) -> Result<u64> {
    let block = 1 << CELL_BITS;
    Ok(match bytes.int_in_range(0..=11)? {
        pages @ 0..=6 => pages * 4096,
        7 => block,
        8 => block + 1,
        9 => block * 3,
        10 => bytes.arbitrary::<u16>()?.into(),
        _ => bytes.arbitrary()?,
    })
}

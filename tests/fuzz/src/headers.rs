//! Headers of blocks, as daemons and brokers that start find them: any process of the service's
//! user may have written them.
//!
//! ```text
//! 0       1
//! | kind  | one after the other, for each slot that kind says is there: the slot's bytes
//! ```

use std::os::fd::AsFd;

use dmce_abi::AddrLayout;
use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, SessionId, Span, Ticket,
};
use dmce_abi::limits::PEERS_MAX;
use dmce_shm::header::{self, BlockHeader, HEADER_BYTES, HeaderError};

use crate::frames::described;
use crate::objects::{bytes_of, holding, lay_over, seal};

const PAGE: usize = 4096;
const SLOT: usize = PAGE / 2;

const _: () = assert!(PAGE as u64 == HEADER_BYTES);

/// The bytes are the object as it is found.
const RAW: u8 = 1 << 0;
/// Slot 1 is there as well, and gets the second half of the bytes.
const BOTH: u8 = 1 << 1;
/// Who wrote slot 0 died over it.
const OPEN: u8 = 1 << 2;

pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let page = if kind & RAW == 0 { forged(*kind, rest) } else { rest.to_vec() };
    let fd = holding(&page);
    match header::read(fd.as_fd(), AddrLayout::IN_SERVER) {
        Ok(header) => accepted(&page, &header),
        Err(HeaderError::NeverReady) => assert!(page.get(16..20).is_none_or(|r| r == [0; 4])),
        Err(error) => assert!(!error.is_removable() && !error.to_string().contains('\n')),
    }
}

/// A page whose checksums are right, whatever it says.
fn forged(kind: u8, rest: &[u8]) -> Vec<u8> {
    let mut page = sound();
    let (first, second) = if kind & BOTH == 0 { (rest, &[][..]) } else { halves(rest) };
    if kind & BOTH != 0 {
        page.copy_within(..SLOT, SLOT);
        let slot = &mut page[SLOT..];
        lay_over(slot, 24, second);
        seal(slot, SLOT);
    }
    let slot = &mut page[..SLOT];
    lay_over(slot, 24, first);
    seal(slot, SLOT);
    if kind & OPEN != 0 {
        slot[16..20].fill(0);
    }
    page.to_vec()
}

fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    bytes.split_at(bytes.len() / 2)
}

/// The page of a header as this release writes it.
fn sound() -> [u8; PAGE] {
    let fd = holding(&[]);
    header::create(fd.as_fd(), &plain()).expect("a plain header can be written");
    bytes_of(&fd)
}

fn plain() -> BlockHeader {
    let block = BlockId::try_from(9).expect("a small id");
    let session = SessionId::try_from(1).expect("a small id");
    let guid = Guid([7; 16]);
    BlockHeader {
        daemon: DaemonId::try_from(3).expect("a small id"),
        description: BlockDescription {
            block,
            guid,
            epoch: 1,
            page_size: 4096,
            bytes_max: 1 << 30,
            span: Span { first: block, count: 1, guid },
            owner: Owner::Session {
                session,
                ticket: Ticket { session: guid, number: 1 },
                uid: 1000,
                copies: 1,
            },
            membership: Membership::alone(),
        },
    }
}

/// What is believed can be written again, anew and as an update, and reads the same.
fn accepted(page: &[u8], header: &BlockHeader) {
    let layout = AddrLayout::IN_SERVER;
    described(&header.description);
    assert!(header.description.validate(layout.block_bytes()).is_ok());
    let Membership { peers, syncing, .. } = &header.description.membership;
    assert!(peers.len() <= PEERS_MAX && !peers.contains(&header.daemon));
    assert!(syncing.is_none_or(|daemon| daemon != header.daemon && !peers.contains(&daemon)));

    let anew = holding(&[]);
    header::create(anew.as_fd(), header).expect("what was read can be written");
    assert_eq!(header::read(anew.as_fd(), layout).ok().as_ref(), Some(header));

    let mut next = header.clone();
    next.description.epoch = header.description.epoch.checked_add(1).unwrap_or(1);
    let fd = holding(page);
    match header::update(fd.as_fd(), &next) {
        Ok(()) => assert_eq!(header::read(fd.as_fd(), layout).ok(), Some(next)),
        // The last sequence that there is was in force, and stays so.
        Err(_) => assert_eq!(header::read(fd.as_fd(), layout).ok().as_ref(), Some(header)),
    }
}

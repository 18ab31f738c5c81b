//! The session object: the one object that a client writes and a server reads (section 4).
//!
//! ```text
//! 0        64           128       4096           20480         36864                 1085440
//! | who    | generation | usage   | 256 slots    | 512 pins    | 256 undo buffers    |
//!   broker   broker       client    of 64 bytes    of 32         of 4096, sparse until the
//!                                   client         client        broker commits them; client
//! ```
//!
//! # Invariants
//!
//! 1. The broker never maps it: the client may truncate it at any moment. It reads by `pread` into
//!    its own memory and writes the generation by `pwrite` ([`object`]).
//! 2. To the broker all of it is a claim, the first page too. What it believes of a session lies in
//!    the record ([`crate::record`]).
//! 3. The client maps it whole, and only its own session's ([`map`]).

pub mod map;
pub mod object;
pub mod pin;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use dmce_abi::block::{Guid, SessionId};
use dmce_abi::limits::{PINS, SLOTS};
use dmce_abi::version::SEGMENT_VERSION;

use crate::fence::Fence;
use crate::layout::{Field, fingerprint, layout};
use crate::slot::Slot;
use pin::Pin;

/// Bytes of a session object.
pub const SESSION_BYTES: u64 = SESSION_END as u64;
/// Bytes of a slot's undo buffer: a page of a block.
pub const UNDO_BYTES: usize = 4096;

const SLOTS_OFFSET: usize = 4096;
const PINS_OFFSET: usize = SLOTS_OFFSET + SLOTS * size_of::<Slot>();
/// Where what every session needs ends, and what only writers of copies need begins.
const UNDO_OFFSET: usize = PINS_OFFSET + PINS * size_of::<Pin>();
const SESSION_END: usize = UNDO_OFFSET + SLOTS * UNDO_BYTES;

const _: () = assert!(PINS_OFFSET == 20480 && UNDO_OFFSET == 36_864 && SESSION_BYTES == 1_085_440);

const MAGIC: [u8; 8] = *b"DMCESESS";
/// The tables in `docs/shared-memory.md`: first page, slot, pin.
pub(crate) const TABLES: [&[Field]; 3] = [SessionPage::FIELDS, Slot::FIELDS, Pin::FIELDS];
const FINGERPRINT: u32 = fingerprint(&TABLES);

/// Whose session object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionIdentity {
    /// The session's id.
    pub session: SessionId,
    /// Its GUID.
    pub guid: Guid,
}

layout! {
    /// The first page, as the broker writes it and the client checks it.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    struct SessionPage, 4096 bytes {
        0 => magic: [u8; 8],
        8 => version: U32,
        12 => fingerprint: U32,
        16 => session: U32,
        20 => slots: U32,
        24 => guid: [u8; 16],
        40 => slots_offset: U32,
        44 => pins_offset: U32,
        48 => pins: U32,
        52 => undo_buffers: U32,
        56 => barrier: U32,
        60 => undo_ready: U32,
        64 => generation: U64,
        72 => reserved_behind_generation: [u8; 56],
        128 => bytes_in_use: U64,
        136 => bytes_free: U64,
        144 => allocations: U64,
        152 => reserved_behind_usage: [u8; 3944],
    }
}

/// The `undo_ready` of an object whose undo buffers are committed.
const UNDO_READY: u32 = 1;

/// The `barrier` of a broker that issues `membarrier`; 0 where both sides need full fences.
const BARRIER_MEMBARRIER: u32 = 1;

impl SessionPage {
    #[expect(clippy::cast_possible_truncation, reason = "constants of this module")]
    fn new(identity: SessionIdentity, fence: Fence) -> Self {
        let mut page = Self::new_zeroed();
        page.magic = MAGIC;
        page.version = SEGMENT_VERSION.into();
        page.fingerprint = FINGERPRINT.into();
        page.session = identity.session.get().into();
        page.slots = (SLOTS as u32).into();
        page.guid = identity.guid.0;
        page.slots_offset = (SLOTS_OFFSET as u32).into();
        page.pins_offset = (PINS_OFFSET as u32).into();
        page.pins = (PINS as u32).into();
        page.undo_buffers = (SLOTS as u32).into();
        page.barrier = match fence {
            Fence::Asymmetric => BARRIER_MEMBARRIER,
            Fence::Full => 0,
        }
        .into();
        page
    }
}

#[cfg(test)]
mod tests;

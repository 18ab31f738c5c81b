//! What a block header and a session record begin with, and how either becomes valid at one moment.
//!
//! ```text
//!  0        8         12            16      20    24
//!  | magic  | version | fingerprint | ready | crc | the rest, as far as the checksum goes ...
//! ```
//!
//! # Invariants
//!
//! 1. These 24 bytes lie at the same offsets in every segment version, so that a reader can always
//!    tell another version from damage.
//! 2. `ready` is cleared first and stored last. Whoever dies in between leaves [`Seal::Open`],
//!    never a mixture that looks valid.
//! 3. What is ready and yet not right was damaged, or is of another version; it was whole once.
//!
//! Each step is one `pwrite`. A killed process finishes the system call that it is in, and an
//! aligned word on one page is stored by one call, so there is no death within a step.

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use dmce_abi::version::SEGMENT_VERSION;

use crate::layout::layout;

layout! {
    /// The first 24 bytes.
    #[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
    pub(crate) struct Preamble, 24 bytes {
        0 => magic: [u8; 8],
        8 => version: U32,
        12 => fingerprint: U32,
        16 => ready: U32,
        20 => crc: U32,
    }
}

/// [`READY`] as the bytes that are stored last.
const READY_BYTES: [u8; 4] = READY.to_le_bytes();
pub(crate) const READY: u32 = 0x5245_4459;
const READY_OFFSET: u64 = 16;
const PREAMBLE_BYTES: usize = size_of::<Preamble>();

/// One kind of structure with a preamble.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// Its first eight bytes.
    pub magic: [u8; 8],
    /// Of its field table.
    pub fingerprint: u32,
    /// Where the checksum ends; it starts behind the preamble.
    pub checked_bytes: usize,
}

/// Whether a structure was finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// Never written, or its writer died, or is at it.
    Open,
    /// Whole and unchanged.
    Ready,
}

/// What is wrong with a structure that was ready once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// Written by another version of DMCE.
    OtherVersion { theirs: u32 },
    /// Not as it was written.
    Damaged { why: &'static str },
}

/// One write at an offset of the object.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step<'a> {
    pub offset: u64,
    pub bytes: &'a [u8],
}

impl Kind {
    /// Fills in the preamble of a structure, with `ready` left clear: [`steps`] stores that.
    pub(crate) fn fill_in(&self, structure: &mut [u8]) {
        let (head, rest) = structure.split_at_mut(PREAMBLE_BYTES);
        let preamble = Preamble {
            magic: self.magic,
            version: SEGMENT_VERSION.into(),
            fingerprint: self.fingerprint.into(),
            ready: 0.into(),
            crc: crc32c::crc32c(&rest[..self.checked_bytes - PREAMBLE_BYTES]).into(),
        };
        head.copy_from_slice(preamble.as_bytes());
    }

    /// Checks a private copy of a structure.
    pub(crate) fn examine(&self, structure: &[u8]) -> Result<Seal, Flaw> {
        let damaged = |why| Err(Flaw::Damaged { why });
        let Ok((preamble, rest)) = Preamble::ref_from_prefix(structure) else {
            return Ok(Seal::Open);
        };
        if preamble.ready == 0 {
            return Ok(Seal::Open);
        }
        if preamble.ready != READY {
            return damaged("the ready word is neither set nor clear");
        }
        if preamble.magic != self.magic {
            return damaged("the magic is not that of this object");
        }
        if preamble.version != SEGMENT_VERSION {
            return Err(Flaw::OtherVersion { theirs: preamble.version.get() });
        }
        if preamble.fingerprint != self.fingerprint {
            return damaged("the fingerprint is not that of this version");
        }
        let checked = rest.get(..self.checked_bytes - PREAMBLE_BYTES);
        match checked.map(crc32c::crc32c) {
            Some(crc) if preamble.crc == crc => Ok(Seal::Ready),
            Some(_) => damaged("the checksum does not match"),
            None => damaged("it is cut short"),
        }
    }
}

/// The writes that put a filled-in structure at `offset`, in their order.
pub(crate) fn steps(offset: u64, structure: &[u8]) -> [Step<'_>; 3] {
    let ready_at = offset + READY_OFFSET;
    [
        Step { offset: ready_at, bytes: &[0; 4] },
        Step { offset, bytes: structure },
        Step { offset: ready_at, bytes: &READY_BYTES },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIND: Kind = Kind { magic: *b"DMCETEST", fingerprint: 7, checked_bytes: 40 };

    fn ready() -> Vec<u8> {
        let mut bytes = vec![0xa5; 48];
        KIND.fill_in(&mut bytes);
        bytes[16..20].copy_from_slice(&READY_BYTES);
        bytes
    }

    #[test]
    fn ready_comes_last() {
        let mut bytes = vec![0xa5; 48];
        KIND.fill_in(&mut bytes);
        assert_eq!(KIND.examine(&bytes), Ok(Seal::Open));
        assert_eq!(KIND.examine(&ready()), Ok(Seal::Ready));
    }

    #[test]
    fn every_kind_of_flaw_is_told_apart() {
        let with = |at: usize, byte: u8| {
            let mut bytes = ready();
            bytes[at] = byte;
            KIND.examine(&bytes)
        };
        assert!(matches!(with(0, b'X'), Err(Flaw::Damaged { .. })));
        assert_eq!(with(8, 9), Err(Flaw::OtherVersion { theirs: 9 }));
        assert!(matches!(with(12, 8), Err(Flaw::Damaged { .. })));
        assert!(matches!(with(16, 0), Err(Flaw::Damaged { .. })));
        assert!(matches!(with(39, 0), Err(Flaw::Damaged { .. })));
        assert_eq!(with(40, 0), Ok(Seal::Ready));
    }

    #[test]
    fn what_is_cut_short_is_never_ready() {
        let bytes = ready();
        for end in 0..40 {
            assert_ne!(KIND.examine(&bytes[..end]), Ok(Seal::Ready), "{end} bytes");
        }
    }
}

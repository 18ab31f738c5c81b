//! Addresses of brokered memory.
//!
//! A [`DmceAddr`] names one byte of one block, in every process, for as long as the allocation
//! lives. It is never a pointer: a process adds `cell` to the base where it mapped the block.
//!
//! ```text
//!             63        48 47          30 29            0
//! IN_SERVER  |   server   |    block     |     cell      |   the default: 1 GiB blocks
//!             63        48 47        32 31              0
//! OS32       |   server   |   block    |      cell       |   4 GiB blocks
//!             63    52 51    40 39                      0
//! OS64       | server | block  |          cell           |   1 TiB blocks
//! ```
//!
//! # Invariants
//!
//! 1. An instance keeps one [`AddrLayout`] for its life; addresses of two layouts never meet.
//! 2. Server 0 is the local host [0056]. Its block 0 is reserved, so no address is zero.
//! 3. Arithmetic never wraps; whether the next block belongs to the same span is the block table's
//!    to say.

use core::fmt;
use core::num::NonZeroU64;
use core::str::FromStr;

/// How the 64 bits of an address are divided. The widths cross the wire at setup and always sum to
/// 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AddrLayout {
    block_bits: u8,
    cell_bits: u8,
}

impl AddrLayout {
    /// 65,536 servers, 262,144 blocks each, 1 GiB a block.
    pub const IN_SERVER: Self = Self { block_bits: 18, cell_bits: 30 };
    /// 65,536 servers, 65,536 blocks each, 4 GiB a block (FIG. 8).
    pub const OS32: Self = Self { block_bits: 16, cell_bits: 32 };
    /// 4,096 servers, 4,096 blocks each, 1 TiB a block (FIG. 9).
    pub const OS64: Self = Self { block_bits: 12, cell_bits: 40 };

    /// A layout of the caller's own widths.
    ///
    /// # Errors
    ///
    /// [`AddrError::Layout`] unless both ids are 1 to 32 bits wide, `cell_bits` is 12 to 48, and
    /// they sum to 64.
    pub const fn new(server_bits: u8, block_bits: u8, cell_bits: u8) -> Result<Self, AddrError> {
        let ids_fit = matches!(server_bits, 1..=32) && matches!(block_bits, 1..=32);
        let offsets_fit = matches!(cell_bits, 12..=48);
        if !ids_fit || !offsets_fit || server_bits + block_bits + cell_bits != 64 {
            return Err(AddrError::Layout { server_bits, block_bits, cell_bits });
        }
        Ok(Self { block_bits, cell_bits })
    }

    /// Width of the server field.
    #[must_use]
    pub const fn server_bits(self) -> u8 {
        64 - self.block_bits - self.cell_bits
    }

    /// Width of the block field.
    #[must_use]
    pub const fn block_bits(self) -> u8 {
        self.block_bits
    }

    /// Width of the cell field; a block holds at most `1 << cell_bits` bytes.
    #[must_use]
    pub const fn cell_bits(self) -> u8 {
        self.cell_bits
    }

    /// Bytes of a full block: the range of the cell field.
    #[must_use]
    pub const fn block_bytes(self) -> u64 {
        1 << self.cell_bits()
    }

    /// Block ids of a server, with the reserved 0 counted.
    #[must_use]
    pub const fn block_ids(self) -> u64 {
        1 << self.block_bits
    }
}

impl Default for AddrLayout {
    fn default() -> Self {
        Self::IN_SERVER
    }
}

impl fmt::Display for AddrLayout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IN_SERVER => f.write_str("in-server"),
            Self::OS32 => f.write_str("os32"),
            Self::OS64 => f.write_str("os64"),
            other => {
                write!(f, "{}/{}/{}", other.server_bits(), other.block_bits, other.cell_bits())
            }
        }
    }
}

impl FromStr for AddrLayout {
    type Err = AddrError;

    /// Reads a preset's name or widths as `S/B/C`.
    fn from_str(text: &str) -> Result<Self, AddrError> {
        match text {
            "in-server" => return Ok(Self::IN_SERVER),
            "os32" => return Ok(Self::OS32),
            "os64" => return Ok(Self::OS64),
            _ => {}
        }
        let mut widths = text.split('/').map(str::parse::<u8>);
        let (Some(Ok(server)), Some(Ok(block)), Some(Ok(cell)), None) =
            (widths.next(), widths.next(), widths.next(), widths.next())
        else {
            return Err(AddrError::NotALayout);
        };
        Self::new(server, block, cell)
    }
}

/// The fields of an address. Named, because three integers in a row are easily swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the module diagram defines the fields")]
pub struct AddrParts {
    pub server: u32,
    pub block: u32,
    pub cell: u64,
}

/// The location of one byte of brokered memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DmceAddr(NonZeroU64);

// C sees an address as `uint64_t`, with 0 for none.
const _: () = assert!(size_of::<Option<DmceAddr>>() == size_of::<u64>());

impl DmceAddr {
    /// Packs `parts` under `layout`.
    ///
    /// # Errors
    ///
    /// [`AddrError::FieldTooWide`] names the first field that does not fit;
    /// [`AddrError::Reserved`] for block 0 of server 0.
    pub fn pack(layout: AddrLayout, parts: AddrParts) -> Result<Self, AddrError> {
        let server = fit("server", parts.server.into(), layout.server_bits())?;
        let block = fit("block", parts.block.into(), layout.block_bits)?;
        let cell = fit("cell", parts.cell, layout.cell_bits())?;
        let ids = (server << layout.block_bits) | block;
        Self::from_raw(layout, (ids << layout.cell_bits()) | cell)
    }

    /// Accepts a word from C or from another process.
    ///
    /// The block may not exist: only the block table can tell.
    ///
    /// # Errors
    ///
    /// [`AddrError::Reserved`] if the word lies in block 0 of server 0.
    pub fn from_raw(layout: AddrLayout, raw: u64) -> Result<Self, AddrError> {
        if raw >> layout.cell_bits() == 0 {
            return Err(AddrError::Reserved { raw });
        }
        NonZeroU64::new(raw).map(Self).ok_or(AddrError::Reserved { raw })
    }

    /// The word that C and shared memory hold.
    #[must_use]
    pub const fn to_raw(self) -> u64 {
        self.0.get()
    }

    /// The fields of this address under `layout`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "ids are at most 32 bits wide")]
    pub fn unpack(self, layout: AddrLayout) -> AddrParts {
        let ids = self.to_raw() >> layout.cell_bits();
        AddrParts {
            server: (ids >> layout.block_bits) as u32,
            block: (ids & low_mask(layout.block_bits)) as u32,
            cell: self.to_raw() & low_mask(layout.cell_bits()),
        }
    }

    /// The address `bytes` further on, in the same block or a later one of the same server.
    ///
    /// # Errors
    ///
    /// [`AddrError::FieldTooWide`] past the last block of the server.
    pub fn checked_add(self, layout: AddrLayout, bytes: u64) -> Result<Self, AddrError> {
        let server_shift = 64 - layout.server_bits();
        let within = self.to_raw() & low_mask(server_shift);
        let moved = within.saturating_add(bytes);
        let moved = fit("block and cell", moved, server_shift)?;
        Self::from_raw(layout, (self.to_raw() & !low_mask(server_shift)) | moved)
    }
}

/// Why a word, a set of fields, or a set of widths is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum AddrError {
    /// Block 0 of server 0 stands for "no address".
    Reserved { raw: u64 },
    /// A field exceeds its width in the instance's layout.
    FieldTooWide { field: &'static str, value: u64, bits: u8 },
    /// Widths that make no layout.
    Layout { server_bits: u8, block_bits: u8, cell_bits: u8 },
    /// Text that is neither a preset nor three widths.
    NotALayout,
}

impl core::error::Error for AddrError {}

impl fmt::Display for AddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reserved { raw } => {
                write!(f, "address {raw:#x} lies in the reserved block 0 of server 0")
            }
            Self::NotALayout => {
                f.write_str("a layout is in-server, os32, os64, or three widths such as 16/18/30")
            }
            Self::FieldTooWide { field, value, bits } => {
                write!(f, "{field} {value:#x} does not fit in {bits} bits")
            }
            Self::Layout { server_bits, block_bits, cell_bits } => {
                write!(f, "widths {server_bits}/{block_bits}/{cell_bits} make no 64-bit layout")
            }
        }
    }
}

fn fit(field: &'static str, value: u64, bits: u8) -> Result<u64, AddrError> {
    if value > low_mask(bits) {
        return Err(AddrError::FieldTooWide { field, value, bits });
    }
    Ok(value)
}

const fn low_mask(bits: u8) -> u64 {
    (1 << bits) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    /// These words are in shared memory and on the wire: a change here is an ABI break.
    #[test]
    fn packs_to_the_documented_bits_and_back() {
        const WORDS: [(AddrLayout, u64); 3] = [
            (AddrLayout::IN_SERVER, 0x0007_0000_c000_0010),
            (AddrLayout::OS32, 0x0007_0003_0000_0010),
            (AddrLayout::OS64, 0x0070_0300_0000_0010),
        ];
        let parts = AddrParts { server: 7, block: 3, cell: 0x10 };
        for (layout, raw) in WORDS {
            let addr = DmceAddr::pack(layout, parts).unwrap();
            assert_eq!(addr.to_raw(), raw);
            assert_eq!(addr.unpack(layout), parts);
        }
    }

    #[test]
    fn refuses_the_reserved_block_whatever_the_cell() {
        for raw in [0, 1, (1 << 30) - 1] {
            assert_eq!(
                DmceAddr::from_raw(AddrLayout::IN_SERVER, raw),
                Err(AddrError::Reserved { raw })
            );
        }
    }

    #[test]
    fn addition_carries_into_the_next_block_but_never_into_the_next_server() {
        let layout = AddrLayout::IN_SERVER;
        let last_cell = AddrParts { server: 0, block: 1, cell: (1 << 30) - 1 };
        let next = DmceAddr::pack(layout, last_cell).unwrap().checked_add(layout, 1).unwrap();
        assert_eq!(next.unpack(layout), AddrParts { server: 0, block: 2, cell: 0 });

        let error = next.checked_add(layout, u64::MAX).unwrap_err();
        assert_eq!(error.to_string(), "block and cell 0xffffffffffffffff does not fit in 48 bits");
    }

    #[test]
    fn refuses_widths_that_do_not_sum_to_64() {
        assert!(AddrLayout::new(16, 16, 32).is_ok());
        assert_eq!("16/20/28".parse::<AddrLayout>().unwrap().to_string(), "16/20/28");
        assert_eq!("os32".parse(), Ok(AddrLayout::OS32));
        assert_eq!("16/20".parse::<AddrLayout>(), Err(AddrError::NotALayout));
        assert_eq!(
            AddrLayout::new(16, 16, 31).unwrap_err().to_string(),
            "widths 16/16/31 make no 64-bit layout"
        );
    }
}

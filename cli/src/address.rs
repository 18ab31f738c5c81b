//! Addresses as people type them, and why one means nothing.

use std::str::FromStr;

use dmce_abi::wire::admin::Location;
use dmce_abi::{AddrLayout, AddrParts, DmceAddr, Status};
use dmce_config::Bytes;

use crate::broker::{Broker, BrokerError};

/// A DMCE address, which may mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address(pub u64);

/// Text that is no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Something else than digits.
    #[error("an address is a number, decimal or hexadecimal with 0x in front")]
    NoNumber,
    /// Digits of no word.
    #[error("an address has 64 bits, and this number more")]
    TooLarge,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
        let (digits, radix) = hexadecimal.map_or((text, 10), |digits| (digits, 16));
        if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
            return Err(AddressError::NoNumber);
        }
        u64::from_str_radix(digits, radix).map(Self).map_err(|_| AddressError::TooLarge)
    }
}

/// Why nothing is found at an address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum MapError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("0x0 is the address of nothing")]
    Nothing,
    #[error(
        "{address:#x} is no address: it lies in block 0, and the first is 1, from {first:#x} on"
    )]
    Reserved { address: u64, first: u64 },
    #[error(
        "{address:#x} is of server {server}, and only addresses of this host, server 0, are known"
    )]
    OtherServer { address: u64, server: u32 },
    #[error(
        "no block that you may see has {address:#x}: there is no block {block}, \
         or it is another user's"
    )]
    NoBlock { address: u64, block: u32 },
    #[error("{address:#x} lies behind the end of block {block}, which grows to at most {}",
            .bytes.exact())]
    Behind { address: u64, block: u32, bytes: Bytes },
}

/// Where the byte of an address is.
///
/// # Errors
///
/// [`MapError`].
pub fn locate(broker: &mut Broker, address: Address) -> Result<Location, MapError> {
    let Address(address) = address;
    let layout = broker.status()?.layout;
    // A layout that this release cannot read is the broker's to apply.
    let parts = layout.parse().ok().map(|layout| parts_of(layout, address)).transpose()?;
    let location = match (broker.locate(address), parts) {
        (Err(BrokerError::Refused { status: Status::Address, .. }), Some(parts)) => {
            return Err(MapError::NoBlock { address, block: parts.block });
        }
        (found, _) => found?,
    };
    if location.cell >= location.block.bytes {
        let (block, bytes) = (location.block.block, Bytes(location.block.bytes));
        return Err(MapError::Behind { address, block, bytes });
    }
    Ok(location)
}

/// The parts of an address that may be one of this host.
fn parts_of(layout: AddrLayout, address: u64) -> Result<AddrParts, MapError> {
    if address == 0 {
        return Err(MapError::Nothing);
    }
    let Ok(parsed) = DmceAddr::from_raw(layout, address) else {
        return Err(MapError::Reserved { address, first: layout.block_bytes() });
    };
    let parts = parsed.unpack(layout);
    match parts.server {
        0 => Ok(parts),
        server => Err(MapError::OtherServer { address, server }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_digits_and_nothing_else() {
        let read = |text: &str| text.parse::<Address>().map(|Address(address)| address);
        assert_eq!(read("0x40000010"), Ok(0x4000_0010));
        assert_eq!(read("0XfFfFffffFFFFffff"), Ok(u64::MAX));
        assert_eq!(read("1073741840"), Ok(0x4000_0010));
        for text in ["", "0x", "+1", "-1", "0x+1", "1_0", " 1", "ff", "0b1", "x1", "\u{661}"] {
            assert_eq!(read(text), Err(AddressError::NoNumber), "{text:?}");
        }
        for text in ["18446744073709551616", "0x10000000000000000"] {
            assert_eq!(read(text), Err(AddressError::TooLarge), "{text:?}");
        }
    }

    #[test]
    fn an_address_is_judged_by_the_layout_of_the_instance() {
        let why = |layout, address| parts_of(layout, address).unwrap_err().to_string();
        assert_eq!(why(AddrLayout::IN_SERVER, 0), "0x0 is the address of nothing");
        let small = why(AddrLayout::OS32, 0x4000_0000);
        assert!(small.ends_with("the first is 1, from 0x100000000 on"), "{small}");
        assert!(why(AddrLayout::OS64, 1 << 52).contains("of server 1, "));
        assert_eq!(parts_of(AddrLayout::IN_SERVER, 0x4000_0011).unwrap().cell, 0x11);
    }
}

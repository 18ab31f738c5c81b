//! Records that describe themselves.
//!
//! ```text
//!   0        8        12       16        24         bytes
//!   | magic  | writer | bytes  | sequence | content .. |     rest of the place: older records
//! ```
//!
//! The content is drawn from writer, place and sequence. Places begin at no multiple of a page, and
//! those of the writers of a region take turns, so that each shares pages with another writer's.

use crate::churn::pattern;

/// Places of a writer.
pub const PLACES: u64 = 128;
/// Bytes of a place.
pub const PLACE_BYTES: u64 = 3 * 4096 + 136;
/// Bytes of a record.
pub const BYTES_MIN: u64 = 64;
pub const BYTES_MAX: u64 = PLACE_BYTES;

/// Writers of a region.
pub const LANES: u32 = 2;
/// Bytes of a region.
pub const REGION_BYTES: u64 = PLACES * LANES as u64 * PLACE_BYTES;

const MAGIC: u64 = u64::from_le_bytes(*b"RECORDED");
const HEADER_BYTES: usize = 24;

/// Where in its region a place of a writer begins.
pub const fn offset(writer: u32, place: u64) -> u64 {
    (place * LANES as u64 + (writer % LANES) as u64) * PLACE_BYTES
}

/// The record of a sequence.
pub fn make(writer: u32, place: u64, sequence: u64, bytes: u64) -> Vec<u8> {
    let length = u32::try_from(bytes).expect("a record is small");
    let mut record = Vec::with_capacity(length as usize);
    record.extend_from_slice(&MAGIC.to_le_bytes());
    record.extend_from_slice(&writer.to_le_bytes());
    record.extend_from_slice(&length.to_le_bytes());
    record.extend_from_slice(&sequence.to_le_bytes());
    let content = bytes.saturating_sub(HEADER_BYTES as u64);
    let seed = u64::from(writer) << 56 ^ place << 40 ^ sequence;
    record.extend_from_slice(&pattern(seed, content));
    record
}

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

/// What is found at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nobody has written there.
    Nothing,
    /// A whole record.
    Whole {
        /// Its sequence.
        sequence: u64,
    },
    /// Neither.
    Torn,
}

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

/// What the bytes of a place hold.
pub fn find(writer: u32, place: u64, bytes: &[u8]) -> Found {
    let Some((header, _)) = bytes.split_at_checked(HEADER_BYTES) else { return Found::Torn };
    if header.iter().all(|byte| *byte == 0) {
        return Found::Nothing;
    }
    let word = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes);
    let (Ok(length), Ok(sequence)) = (word(12), header[16..].try_into().map(u64::from_le_bytes))
    else {
        return Found::Torn;
    };
    if !(BYTES_MIN..=BYTES_MAX).contains(&length.into()) {
        return Found::Torn;
    }
    let whole = make(writer, place, sequence, length.into());
    if bytes.starts_with(&whole) { Found::Whole { sequence } } else { Found::Torn }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_record_of_the_place_is_found() {
        let bytes = usize::try_from(PLACE_BYTES).unwrap();
        let mut place = vec![0; bytes];
        assert_eq!(find(1, 7, &place), Found::Nothing);
        for (sequence, length) in [(1, BYTES_MAX), (2, 5000), (3, BYTES_MIN)] {
            let record = make(1, 7, sequence, length);
            place[..record.len()].copy_from_slice(&record);
            assert_eq!(find(1, 7, &place), Found::Whole { sequence });
            assert_eq!(find(1, 8, &place), Found::Torn, "another place");
            assert_eq!(find(2, 7, &place), Found::Torn, "another writer");
            for at in [0, 12, 16, 24, record.len() - 1] {
                let mut torn = place.clone();
                torn[at] ^= 1;
                assert_eq!(find(1, 7, &torn), Found::Torn, "{at}");
            }
        }
    }
}

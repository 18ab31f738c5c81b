//! Where GUIDs come from: SipHash-2-4-128 of a counter, keyed with the seed of the construction.
//!
//! # Invariants
//!
//! 1. Two seeds give two unrelated sequences, so GUIDs of two lives of a broker do not meet.
//! 2. Who knows GUIDs of a sequence cannot tell the others.

use dmce_abi::block::Guid;

/// A sequence of GUIDs.
#[derive(Debug)]
pub(super) struct Guids {
    key: [u64; 2],
    made: u64,
}

impl Guids {
    /// The sequence of `seed`.
    pub(super) fn new(seed: u128) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
        Self { key: [seed as u64, (seed >> 64) as u64], made: 0 }
    }

    /// The next GUID.
    pub(super) fn next(&mut self) -> Guid {
        self.made += 1;
        Guid(siphash_2_4_128(self.key, self.made))
    }
}

impl Guids {
    /// A number in the place of a GUID, for what is no secret: it tells nothing of the others.
    pub(super) fn next_number(&mut self) -> u64 {
        self.next().0.iter().fold(0, |number, byte| number << 8 ^ u64::from(*byte))
    }
}

/// The hash of one word, as of its eight little-endian bytes.
fn siphash_2_4_128(key: [u64; 2], word: u64) -> [u8; 16] {
    const BYTES_OF_A_WORD: u64 = 8 << 56;
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d ^ 0xee,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    for block in [word, BYTES_OF_A_WORD] {
        v[3] ^= block;
        rounds(&mut v, 2);
        v[0] ^= block;
    }
    v[2] ^= 0xee;
    rounds(&mut v, 4);
    let low = v[0] ^ v[1] ^ v[2] ^ v[3];
    v[1] ^= 0xdd;
    rounds(&mut v, 4);
    let high = v[0] ^ v[1] ^ v[2] ^ v[3];
    ((u128::from(high) << 64) | u128::from(low)).to_le_bytes()
}

fn rounds(v: &mut [u64; 4], count: u32) {
    for _ in 0..count {
        v[0] = v[0].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(13) ^ v[0];
        v[0] = v[0].rotate_left(32);
        v[2] = v[2].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(16) ^ v[2];
        v[0] = v[0].wrapping_add(v[3]);
        v[3] = v[3].rotate_left(21) ^ v[0];
        v[2] = v[2].wrapping_add(v[1]);
        v[1] = v[1].rotate_left(17) ^ v[2];
        v[2] = v[2].rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The reference implementation's vector for the key 00..0f and the message 00..07.
    #[test]
    fn is_the_published_hash() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        let hash = siphash_2_4_128(key, 0x0706_0504_0302_0100);
        assert_eq!(Guid(hash).to_string(), "3b62a9ba6258f5610f83e264f31497b4");
    }

    #[test]
    fn no_guid_comes_twice_and_a_seed_repeats_its_sequence() {
        let all = |seed| {
            let mut guids = Guids::new(seed);
            (0..10_000).map(|_| guids.next()).collect::<Vec<_>>()
        };
        let both: BTreeSet<_> = all(1).into_iter().chain(all(2)).collect();
        assert_eq!(both.len(), 20_000);
        assert_eq!(all(7), all(7));
    }
}

//! Places in an order that no prefetcher guesses, the same for both sides of a row.

/// Places among `1 << bits` many, from a seed.
///
/// The top bits of a linear congruential generator: a multiplication and an addition a place, so
/// that the order costs little beside the cheapest access that is measured.
#[derive(Clone, Debug)]
pub struct Places {
    state: u64,
    shift: u32,
}

impl Places {
    /// Places below `count`.
    ///
    /// # Panics
    ///
    /// If `count` is not a power of two, or 1.
    #[must_use]
    pub fn below(count: u64, seed: u64) -> Self {
        assert!(count.is_power_of_two() && count > 1, "{count} places are no power of two");
        // One step from a mixed seed, so that neighbouring seeds have nothing in common.
        let state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state, shift: 64 - count.trailing_zeros() }
    }

    /// The next place.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "it never ends, so there is no `None`")]
    pub fn next(&mut self) -> u64 {
        const FACTOR: u64 = 6_364_136_223_846_793_005;
        const STEP: u64 = 1_442_695_040_888_963_407;
        self.state = self.state.wrapping_mul(FACTOR).wrapping_add(STEP);
        self.state >> self.shift
    }
}

/// A permutation of `0 .. 1 << bits`: the order in which dependent loads go through memory.
#[inline]
#[must_use]
pub fn permuted(place: u64, bits: u32) -> u64 {
    const ODD: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93];
    let mask = (1 << bits) - 1;
    // Each step can be undone: a product with an odd number, and a shift by at least half the bits.
    let mixed = place.wrapping_mul(ODD[0]) & mask;
    let mixed = mixed ^ (mixed >> bits.div_ceil(2));
    let mixed = mixed.wrapping_mul(ODD[1]) & mask;
    mixed ^ (mixed >> bits.div_ceil(2))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn places_reach_all_of_the_range_and_differ_by_seed() {
        let mut places = Places::below(64, 1);
        let seen: BTreeSet<u64> = (0..2_000).map(|_| places.next()).collect();
        assert_eq!(seen, (0..64).collect());
        assert_ne!(Places::below(1 << 40, 1).next(), Places::below(1 << 40, 2).next());
    }

    #[test]
    fn a_permutation_meets_every_place_once() {
        for bits in [4, 13, 16] {
            let seen: BTreeSet<u64> = (0..1 << bits).map(|place| permuted(place, bits)).collect();
            assert_eq!(seen.len(), 1 << bits);
            assert_eq!(seen.last(), Some(&((1 << bits) - 1)));
        }
    }
}

//! Random numbers that a seed replays.

use std::env;

/// A generator (splitmix64) for tests: small, fast, the same on every machine.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// Begins with `seed`, or with `DMCE_TEST_SEED` where that is set; says which.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let given = env::var("DMCE_TEST_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or(seed);
        eprintln!("seed {seed} (DMCE_TEST_SEED={seed} replays it)");
        Self(seed)
    }

    /// Begins with `seed`, whatever the environment says, and says nothing: for contents.
    #[must_use]
    pub const fn quiet(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.bits() % bound
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.bits().to_le_bytes()[..chunk.len()]);
        }
    }
}

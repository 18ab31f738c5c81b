//! In which order a row goes over its memory, the same for both sides.

use crate::places::Places;
use crate::table::size;

/// Fits the first cache beside a buffer of 4 KiB.
pub const HOT_BYTES: usize = 16 << 10;

/// In which order accesses go over memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Random places in what the first cache holds.
    Hot,
    /// Random places in all of it.
    Random,
    /// One after the other.
    Sequential,
}

impl Order {
    /// What it is called in the table, over memory of so many bytes.
    #[must_use]
    pub fn text(self, bytes: usize) -> String {
        match self {
            Self::Hot => format!("hot: random in {}", size(HOT_BYTES as u64)),
            Self::Random => format!("random in {}", size(bytes as u64)),
            Self::Sequential => format!("sequential over {}", size(bytes as u64)),
        }
    }
}

/// Where accesses of so many bytes each go. All sizes are powers of two.
#[derive(Clone, Debug)]
pub struct Offsets {
    order: Order,
    access_bytes: u64,
    places: Places,
    slots: u64,
    next: u64,
}

impl Offsets {
    /// Accesses of `access_bytes` to memory of `bytes`; `seed` chooses the random order.
    ///
    /// # Panics
    ///
    /// If there are not at least two places, or not a power of two of them.
    #[must_use]
    pub fn new(order: Order, access_bytes: usize, bytes: usize, seed: u64) -> Self {
        let range = if order == Order::Hot { HOT_BYTES } else { bytes };
        let slots = (range / access_bytes) as u64;
        let places = Places::below(slots, seed);
        Self { order, access_bytes: access_bytes as u64, places, slots, next: 0 }
    }

    /// The next one.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "it never ends, so there is no `None`")]
    pub fn next(&mut self) -> u64 {
        let slot = if self.order == Order::Sequential {
            self.next += 1;
            self.next % self.slots
        } else {
            self.places.next()
        };
        slot * self.access_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn reached(order: Order, count: usize) -> BTreeSet<u64> {
        let mut offsets = Offsets::new(order, 4096, 1 << 20, 3);
        (0..count).map(|_| offsets.next()).collect()
    }

    #[test]
    fn orders_reach_what_they_say() {
        let all: BTreeSet<u64> = (0..256).map(|slot| slot * 4096).collect();
        assert_eq!(reached(Order::Sequential, 256), all);
        assert_eq!(reached(Order::Random, 10_000), all);
        assert_eq!(reached(Order::Hot, 1_000), (0..4).map(|slot| slot * 4096).collect());
    }
}

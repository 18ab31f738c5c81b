//! What random accesses go to: so many pieces of so many bytes, scattered over a region.

use crate::memory::LINE_BYTES;
use crate::places::{Places, permuted};

/// How a working set lies in the region. All are powers of two.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of all of it.
    pub bytes: u64,
    /// How many pieces there are.
    pub pieces: u64,
    /// Of each piece.
    pub piece_bytes: u64,
}

/// The memory that random accesses go to.
#[derive(Debug)]
pub struct WorkingSet {
    shape: Shape,
    starts: Vec<u64>,
}

impl WorkingSet {
    /// One of this shape; always the same.
    ///
    /// # Panics
    ///
    /// If the pieces have no bytes.
    #[must_use]
    pub fn new(shape: Shape) -> Self {
        let slots = shape.bytes / shape.piece_bytes;
        // Not the first places of the permutation: that of 0 is 0.
        let slot = |piece| permuted((slots / 3 + piece) % slots, slots.trailing_zeros());
        let starts = (0..shape.pieces).map(|piece| slot(piece) * shape.piece_bytes).collect();
        Self { shape, starts }
    }

    /// Lines of it, in a random order.
    #[must_use]
    pub fn places(&self, seed: u64) -> Places {
        let lines = self.shape.pieces * self.shape.piece_bytes / LINE_BYTES as u64;
        Places::below(lines, seed)
    }

    /// Where a line of it is in the region.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "an index of a vector")]
    #[must_use]
    pub fn offset(&self, line: u64) -> u64 {
        let byte = line * LINE_BYTES as u64;
        let piece = byte / self.shape.piece_bytes;
        self.starts[piece as usize] + byte % self.shape.piece_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_working_set_is_so_many_pieces_of_the_whole() {
        let shape = Shape { bytes: 1 << 20, pieces: 8, piece_bytes: 1 << 12 };
        let set = WorkingSet::new(shape);
        let starts: BTreeSet<u64> = set.starts.iter().copied().collect();
        assert_eq!(starts.len(), 8);
        let mut places = set.places(5);
        for _ in 0..1_000 {
            let offset = set.offset(places.next());
            assert!(offset < 1 << 20 && offset.is_multiple_of(64));
            assert!(starts.contains(&(offset & !0xfff)));
        }
    }

    #[test]
    fn one_piece_can_be_all() {
        let shape = Shape { bytes: 1 << 20, pieces: 1, piece_bytes: 1 << 20 };
        assert_eq!(WorkingSet::new(shape).offset(3), 192);
    }
}

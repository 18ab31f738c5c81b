//! What nobody finds any more, and somebody may still have found.
//!
//! # Invariants
//!
//! 1. A thing is freed when everybody has left its gate who was inside when the thing was taken
//!    out: what is buried waits for a heavy fence, and then until all the marks of that moment
//!    have passed.
//! 2. All of it is done under the depot's lock, so who has that is safe as well.

use dmce_shm::Fence;

use super::directory::BlockSlabs;
use super::gate::{self, Mark};
use super::heaps::Heaps;
use super::slab::Slab;

/// So many things are worth a fence.
const BURIED_MAX: usize = 64;

/// A thing that was taken out.
#[derive(Debug)]
#[expect(dead_code, reason = "it is kept to be dropped later")]
pub(crate) enum Gone {
    /// A slab.
    Slab(Box<Slab>),
    /// The directory's entry of a block.
    Block(Box<BlockSlabs>),
}

/// Things that were taken out.
#[derive(Debug, Default)]
pub(crate) struct Limbo {
    /// Taken out since the last fence.
    buried: Vec<Gone>,
    /// Taken out before it.
    fenced: Vec<Gone>,
    /// Who was inside then.
    marks: Vec<Mark>,
}

impl Limbo {
    /// Takes a thing in, and frees others when there are many.
    pub(crate) fn bury(&mut self, gone: Gone, heaps: &Heaps, fence: Fence) {
        // Before the fence of `settle`, and after the thing was taken out.
        heaps.count_buried();
        self.buried.push(gone);
        if self.buried.len() >= BURIED_MAX {
            self.settle(heaps, fence);
        }
    }

    /// Frees what it may. True if nothing is left.
    pub(crate) fn settle(&mut self, heaps: &Heaps, fence: Fence) -> bool {
        self.free_fenced(heaps);
        if self.fenced.is_empty() && !self.buried.is_empty() {
            gate::heavy(fence);
            self.marks = heaps.marks();
            self.fenced.append(&mut self.buried);
            self.free_fenced(heaps);
        }
        self.fenced.is_empty() && self.buried.is_empty()
    }

    fn free_fenced(&mut self, heaps: &Heaps) {
        if self.marks.iter().zip(heaps.marks()).all(|(before, now)| before.has_left(now)) {
            self.fenced.clear();
        }
    }
}

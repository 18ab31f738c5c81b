//! All heaps of a session, and what they find each other's slabs by.
//!
//! ```text
//!   0 .. SLOTS            one for each thread that has a slot: of blocks of the default kind
//!   SLOTS ..              the depot's, one for each kind
//! ```
//!
//! # Invariants
//!
//! 1. A heap, once made, stays as long as the session: a thread that ends leaves its heap to the
//!    next one that has its slot, and to who tidies up.

use std::sync::{Arc, OnceLock};

use dmce_abi::limits::SLOTS;
use dmce_shm::atomic::{AtomicUsize, Ordering};

use super::directory::Directory;
use super::gate::Mark;
use super::heap::Heap;
use super::slab::Slab;

/// Kinds of blocks that a session may have: page sizes and numbers of copies, and more.
pub(crate) const KINDS_MAX: usize = 64;

/// The heaps.
#[derive(Debug)]
pub(crate) struct Heaps {
    /// From addresses to slabs.
    pub directory: Directory,
    all: Box<[OnceLock<Box<Heap>>]>,
    /// Things that were buried.
    buried: Arc<AtomicUsize>,
}

impl Heaps {
    /// None yet.
    pub(crate) fn new(directory: Directory) -> Self {
        let all = (0..SLOTS + KINDS_MAX).map(|_| OnceLock::new()).collect();
        Self { directory, all, buried: Arc::new(AtomicUsize::new(0)) }
    }

    /// The heap of the thread that has a slot.
    #[inline]
    pub(crate) fn of_slot(&self, slot: usize) -> &Heap {
        match self.all[slot].get() {
            Some(heap) => heap,
            None => self.make(slot),
        }
    }

    /// The depot's heap for a kind.
    pub(crate) fn of_kind(&self, kind: usize) -> &Heap {
        self.make(SLOTS + kind)
    }

    /// Heaps of threads.
    pub(crate) fn threads(&self) -> impl Iterator<Item = &Heap> {
        self.all[..SLOTS].iter().filter_map(OnceLock::get).map(AsRef::as_ref)
    }

    /// Every heap.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Heap> {
        self.all.iter().filter_map(OnceLock::get).map(AsRef::as_ref)
    }

    /// The heap at a place.
    pub(crate) fn at(&self, index: u32) -> Option<&Heap> {
        self.all.get(index as usize)?.get().map(AsRef::as_ref)
    }

    /// The marks of all threads' gates, each at its slot's place.
    pub(crate) fn marks(&self) -> Vec<Mark> {
        let mark = |heap: &OnceLock<Box<Heap>>| heap.get().map_or(Mark::NEVER, |h| h.mark());
        self.all[..SLOTS].iter().map(mark).collect()
    }

    /// Tells a slab's home that objects of it were given back. A home that it no longer has tells
    /// the next.
    pub(crate) fn tell(&self, slab: &Slab) {
        if let Some(home) = self.at(slab.home()) {
            home.push_returned(slab);
        }
    }

    /// Has nobody go by what was found before ([`super::link::Memo`]). Under the depot's lock, and
    /// after what is gone was taken out.
    pub(crate) fn count_buried(&self) {
        // Release: who sees the number finds no more what was taken out.
        self.buried.fetch_add(1, Ordering::Release);
    }

    #[cold]
    fn make(&self, index: usize) -> &Heap {
        let number = u32::try_from(index).expect("there are few heaps");
        self.all[index].get_or_init(|| Box::new(Heap::new(number, Arc::clone(&self.buried))))
    }
}

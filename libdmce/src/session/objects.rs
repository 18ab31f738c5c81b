//! The quick way of small allocations: from the slabs of the calling thread, and back.
//!
//! # Invariants
//!
//! 1. But for what is marked cold, nothing here takes a lock or asks anybody. Whatever is in the
//!    way is left to [`super::memory`].
//! 2. A free is done inside the thread's gate, where it has seen that nothing is pinned, or under
//!    the lock of the pins. Who pins something counts it, waits until all gates have been left,
//!    and then looks whether it is allocated: so of a free and a map of the same bytes one sees the
//!    other.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use dmce_abi::DmceAddr;
use dmce_sys::clock::monotonic_ms;

use super::core::Core;
use super::memory::not_allocated;
use crate::alloc::{Class, Given, Heap, Taken};
use crate::error::Error;

impl Core {
    /// An object of this thread's slabs, if there is one and nothing is in the way.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    pub(super) fn take_quickly(&self, bytes: u64) -> Option<Taken> {
        if self.sizes_matter.load(Ordering::Relaxed) {
            return None;
        }
        let class = Class::natural(bytes)?;
        self.allocator().take(self.own_heap()?, class)
    }

    /// Frees the object that begins at an address, if nothing is in the way. Otherwise nothing has
    /// been done.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    pub(super) fn free_quickly(&self, addr: u64) -> bool {
        let Some(heap) = self.own_heap() else { return false };
        match self.allocator().give(heap, addr, || self.is_unpinned()) {
            Some(Given::Done) => true,
            Some(Given::Surplus) => {
                self.drain(heap);
                true
            }
            _ => false,
        }
    }

    /// Frees an object of a slab, if nothing but `may_free` is in the way. `None` if it is, and if
    /// the address is in no slab.
    #[cold]
    pub(super) fn give_object(
        &self,
        addr: DmceAddr,
        may_free: impl Fn() -> bool,
    ) -> Option<Result<(), Error>> {
        let heap = self.allocator().heap(self.slots.own()?);
        loop {
            match self.allocator().give(heap, addr.to_raw(), &may_free) {
                Some(Given::Done) => return Some(Ok(())),
                Some(Given::Surplus) => {
                    self.drain(heap);
                    return Some(Ok(()));
                }
                Some(Given::Refused) => return Some(Err(not_allocated(addr))),
                Some(Given::Biased) => self.allocator().share(addr.to_raw()),
                None if may_free() => self.heed(heap),
                Some(Given::Elsewhere) | None => return None,
            }
        }
    }

    /// Gives the slabs back that a free found the thread's heap to have too many.
    #[cold]
    #[inline(never)]
    fn drain(&self, heap: &Heap) {
        self.allocator().drain(heap, monotonic_ms());
    }

    /// Waits until the thread's gate is open, and has the service thread look at the sums again.
    #[cold]
    pub(super) fn heed(&self, heap: &Heap) {
        if self.allocator().heed(heap) {
            self.service.expect_idle(&self.link);
        }
    }

    /// Whether the application has no pointers.
    #[inline]
    pub(super) fn is_unpinned(&self) -> bool {
        self.pinned.load(Ordering::Relaxed) == 0
    }

    /// This thread's heap, if it used the session of late and may go on.
    #[inline]
    fn own_heap(&self) -> Option<&Heap> {
        if self.fork.is_forked() || self.is_closed() {
            return None;
        }
        self.slots.recent().map(|slot| self.allocator().heap(slot))
    }
}

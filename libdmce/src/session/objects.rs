//! Small allocations on their way past the gate of the calling thread, and what opens it.
//!
//! # Invariants
//!
//! 1. What [`crate::alloc::quick`] does, a call of it may do: [`Core::permits`] says so under the
//!    depot's lock, and whoever changes what that says shuts the gates afterwards.
//! 2. A free is done inside the thread's gate, or under the depot's lock by who has seen there that
//!    nothing is pinned, or under the lock of the pins. Who pins something counts it, shuts the
//!    gates, and then looks whether it is allocated: so of a free and a map of the same bytes one
//!    sees the other.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;

use dmce_abi::{DmceAddr, Status};
use dmce_sys::clock::monotonic_ms;

use super::core::Core;
use super::memory::not_allocated;
use crate::alloc::{Class, Freed, Given, Kind, Owner, Permits, Shape, Taken};
use crate::error::Error;
use crate::thread;

impl Core {
    /// An object of this thread's slabs, if its gate is open and one of them has room.
    pub(super) fn take_inside(&self, bytes: u64) -> Option<Taken> {
        let (class, key) = (Class::natural(bytes)?, self.key());
        self.allocator().take(thread::gate(key)?, key, class)
    }

    /// Allocates in blocks of a kind, if there is room.
    ///
    /// # Errors
    ///
    /// As [`Core::owner`].
    pub(super) fn try_allocate(&self, kind: Kind, shape: Shape) -> Result<Option<Taken>, Error> {
        let (owner, now) = (self.owner()?, monotonic_ms());
        let permits = || self.permits();
        let allocated = self.allocator().allocate(owner, (kind, shape), permits, now);
        self.tell_if(allocated.is_news);
        Ok(allocated.taken)
    }

    /// Frees an object of a slab, if that is permitted, or `is_held`: the caller keeps it from
    /// being pinned. `None` if it is neither, and if the address is in no slab.
    pub(super) fn free_object(&self, addr: DmceAddr, is_held: bool) -> Option<Result<(), Error>> {
        let owner = match self.owner() {
            Ok(owner) => owner?,
            Err(error) => return Some(Err(error)),
        };
        let given = match self.allocator().give(owner.gate, owner.key, addr.to_raw()) {
            Some(Given::Surplus) => {
                self.allocator().drain(owner.heap, monotonic_ms());
                Given::Done
            }
            Some(given @ (Given::Done | Given::Refused | Given::Elsewhere)) => given,
            Some(Given::Biased) | None => {
                let permits = || self.permits();
                let (object, now) = ((addr.to_raw(), is_held), monotonic_ms());
                let freed = self.allocator().free_object(owner, object, permits, now)?;
                let Freed { given, is_news } = freed;
                self.tell_if(is_news);
                given
            }
        };
        match given {
            Given::Refused => Some(Err(not_allocated(addr))),
            Given::Elsewhere => None,
            _ => Some(Ok(())),
        }
    }

    /// This thread to the allocator. `None` if there is no slot or no gate for it.
    ///
    /// # Errors
    ///
    /// [`Status::Busy`] in a signal handler that interrupted an allocation or a free.
    fn owner(&self) -> Result<Option<Owner<'_>>, Error> {
        let Some(slot) = self.slots.own() else { return Ok(None) };
        let key = self.key();
        let Some(gate) = thread::gate(key) else { return Ok(None) };
        if gate.is_inside() {
            return Err(interrupted());
        }
        Ok(Some(Owner { heap: self.allocator().heap(slot), gate, key }))
    }

    /// What threads may do past their gates. Under the depot's lock.
    fn permits(&self) -> Permits {
        let is_open = !self.is_closed();
        Permits {
            take: is_open && !self.sizes_matter.load(Ordering::Relaxed),
            give: is_open && self.pinned.load(Ordering::Relaxed) == 0,
        }
    }

    fn tell_if(&self, is_news: bool) {
        if is_news {
            self.service.expect_idle(&self.link);
        }
    }
}

#[cold]
fn interrupted() -> Error {
    Error::new(Status::Busy, "the call of this thread that a signal interrupted allocates or frees")
}

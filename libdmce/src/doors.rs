//! The doors that are open to a session: one for each thread that has a slot of its own.
//!
//! # Invariants
//!
//! 1. A door that is open to the session is here, at its owner's slot.
//! 2. When this is dropped, nobody is inside of a door to the session any more, nor will be.

use std::sync::{Mutex, PoisonError};

use dmce_shm::Fence;

use crate::alloc::{Key, heavy};
use crate::door::{Door, Ways};
use crate::table::Table;

/// The doors to a session's blocks, by the slots of their owners.
#[derive(Debug)]
pub(crate) struct Doors {
    fence: Fence,
    by_slot: Mutex<Vec<Option<&'static Door<Table>>>>,
}

impl Doors {
    /// None yet. `fence` is what the process marks slots with.
    pub(crate) const fn new(fence: Fence) -> Self {
        Self { fence, by_slot: Mutex::new(Vec::new()) }
    }

    /// Whether there may be any: who goes through one has no fence but the compiler's.
    pub(crate) fn are_allowed(&self) -> bool {
        self.fence == Fence::Asymmetric
    }

    /// Opens the calling thread's door, which it goes through with the key, unless another call is
    /// at this just now.
    ///
    /// # Safety
    ///
    /// The ways stay longer than this value; the slot is the calling thread's as long as the door.
    pub(crate) unsafe fn open(
        &self,
        (slot, door): (usize, &'static Door<Table>),
        key: Key,
        may_write: bool,
        ways: &Ways<'_, Table>,
    ) {
        // Not waited for: a signal handler may have interrupted who has it.
        let Ok(mut by_slot) = self.by_slot.try_lock() else { return };
        if !self.are_allowed() {
            return;
        }
        if by_slot.len() <= slot {
            by_slot.resize(slot + 1, None);
        }
        // The one of an ended thread, or this thread's under an earlier key. It is outside.
        if let Some(earlier) = by_slot[slot].replace(door) {
            earlier.shut();
        }
        // SAFETY: the ways stay as long as this value, which shuts the door and waits when it is
        // dropped; the slot is what the caller promises.
        unsafe { door.open(key, may_write, ways) };
    }

    /// Shuts all of them, and waits until nobody is inside. Not from inside one.
    pub(crate) fn shut_all(&self) {
        let by_slot = self.by_slot.lock().unwrap_or_else(PoisonError::into_inner);
        if by_slot.is_empty() {
            return;
        }
        by_slot.iter().flatten().for_each(|door| door.shut());
        heavy(self.fence);
        by_slot.iter().flatten().for_each(|door| door.wait_outside());
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        self.shut_all();
    }
}

//! A door that one thread goes through to the bytes of a session, with plain stores.
//!
//! It is to reads and writes what a gate ([`crate::alloc`]) is to allocations, and a word of its
//! own: what shuts gates (a pointer that is mapped, a policy, an idle heap) is not in the way of
//! data. One comparison stands for all that an access has to know of its session: that there is
//! one, that it is not a parent's, that this thread has a slot there, and that nothing but what the
//! slot tells ([`dmce_shm::slot`]) can be in the way.
//!
//! ```text
//!   states of a door's word for a wish:   0 shut          a key: open for that session
//!
//!   owner, to go through                  who ends the session
//!
//!   inside := 1                           words := 0
//!   light fence            (A)            heavy fence                             (B)
//!   word = the caller's key?              inside = 0?                             (acquire)
//!     no:  inside := 0, the slow way        no:  wait
//!     yes: mark the slot, look, access      yes: the slot, the table and the rest may go
//!   inside := 0            (release, c)
//!
//!   owner, to open it:     inside := 1, words := 0, ways := of the session, words := key,
//!                          inside := 0
//! ```
//!
//! The slot's mark tells servers, and who unmaps; being inside tells who ends the session, which
//! the slot itself ends with. So the door comes first and is left last.
//!
//! # Invariants
//!
//! 1. *One of the two sees the other.* (A) pairs with (B): the owner sees the word 0, or who ends
//!    the session sees it inside.
//! 2. A door belongs to one thread at a time. The owner alone goes inside, and stores ways and
//!    keys; anybody may store 0 to a word at any time. So a door is opened again by another
//!    session's call, and shut for the first by that.
//! 3. The slot that an open door leads to is its owner's: who gives it back shuts the door first.
//! 4. What an open door leads to is there until it was shut, and left after a heavy fence.
//! 5. A signal handler finds the door shut, or its owner inside, or all of one session's ways: it
//!    neither goes through nor opens one whose owner it interrupted inside. It may be inside a gate
//!    that this interrupts, and the other way round: neither looks at the other's words.
//!
//! Doors lie in pages that the kernel wipes in a forked child: it finds all of them shut.

use std::fmt;

use dmce_shm::Fence;
use dmce_shm::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use dmce_shm::slot::{Look, Operation, Slot};

use crate::alloc::{Key, pause};

/// What somebody goes through a door for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// To look at bytes.
    Read,
    /// To change them.
    Write,
}

/// A door of a thread, to blocks that `T` knows. On a cache line of its own.
#[repr(align(64))]
pub(crate) struct Door<T> {
    /// 1 while the owner is inside. Written by the owner alone, as all but the words.
    inside: AtomicU32,
    cell_bits: AtomicU32,
    /// The words.
    read: AtomicUsize,
    write: AtomicUsize,
    slot: AtomicPtr<Slot>,
    generation: AtomicPtr<AtomicU64>,
    known: AtomicPtr<AtomicU64>,
    table: AtomicPtr<T>,
    cell_mask: AtomicU64,
}

/// Where a door leads, for its owner.
#[derive(Debug)]
pub(crate) struct Ways<'a, T> {
    /// The owner's own.
    pub slot: &'a Slot,
    /// What is looked at after its mark.
    pub look: Look<'a>,
    /// What knows the session's blocks.
    pub table: &'a T,
    /// How its addresses are divided.
    pub cell_bits: u8,
}

/// The owner is inside. Dropping it leaves.
#[must_use = "the door is left when this is dropped"]
pub(crate) struct Inside<'a, T>(&'a Door<T>);

impl<T> Door<T> {
    /// One that is shut, as one of zeros is.
    #[cfg(all(test, loom))]
    pub(crate) fn new() -> Self {
        use std::ptr::null_mut;
        Self {
            inside: AtomicU32::new(0),
            cell_bits: AtomicU32::new(0),
            read: AtomicUsize::new(0),
            write: AtomicUsize::new(0),
            slot: AtomicPtr::new(null_mut()),
            generation: AtomicPtr::new(null_mut()),
            known: AtomicPtr::new(null_mut()),
            table: AtomicPtr::new(null_mut()),
            cell_mask: AtomicU64::new(0),
        }
    }

    /// Goes inside. For the owner. `None` if the door is not open for the key, or the owner is
    /// inside already: a signal handler interrupted it there.
    #[inline]
    pub(crate) fn enter(&self, key: Key, wish: Wish, fence: Fence) -> Option<Inside<'_, T>> {
        if self.inside.load(Ordering::Relaxed) != 0 {
            return None;
        }
        let inside = Inside(self);
        // Relaxed: who sees it waits for the next store.
        self.inside.store(1, Ordering::Relaxed);
        fence.light();
        // Relaxed: keys are stored by this thread.
        let word = self.word(wish).load(Ordering::Relaxed);
        (word == key.number()).then_some(inside)
    }

    /// Opens it for those with the key, for writing if that `may_write`. For the owner; false if
    /// that is inside. Who goes through has a light fence that is one for the compiler.
    ///
    /// # Safety
    ///
    /// The ways stay until the door was shut, and then found left ([`Door::wait_outside`]) after a
    /// heavy fence. The slot is the owner's until it is shut.
    pub(crate) unsafe fn open(&self, key: Key, may_write: bool, ways: &Ways<'_, T>) -> bool {
        if self.inside.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Each store releases those before it, for a signal handler of this thread.
        self.inside.store(1, Ordering::Release);
        self.shut();
        let Look { generation, known, .. } = ways.look;
        let cells = 1_u64.wrapping_shl(ways.cell_bits.into());
        self.cell_bits.store(ways.cell_bits.into(), Ordering::Release);
        self.cell_mask.store(cells.wrapping_sub(1), Ordering::Release);
        self.slot.store(std::ptr::from_ref(ways.slot).cast_mut(), Ordering::Release);
        self.generation.store(std::ptr::from_ref(generation).cast_mut(), Ordering::Release);
        self.known.store(std::ptr::from_ref(known).cast_mut(), Ordering::Release);
        self.table.store(std::ptr::from_ref(ways.table).cast_mut(), Ordering::Release);
        self.read.store(key.number(), Ordering::Release);
        self.write.store(if may_write { key.number() } else { 0 }, Ordering::Release);
        self.inside.store(0, Ordering::Release);
        true
    }

    /// Lets the owner no longer go through. Anybody may. Who went before is not held up.
    pub(crate) fn shut(&self) {
        self.read.store(0, Ordering::Release);
        self.write.store(0, Ordering::Release);
    }

    /// Whether it is open for a session, to the owner, who asks.
    pub(crate) fn is_open(&self, key: Key) -> bool {
        self.read.load(Ordering::Relaxed) == key.number()
    }

    /// Waits until who was inside at the last heavy fence has left.
    pub(crate) fn wait_outside(&self) {
        let mut looks = 0;
        // Acquire pairs with (c).
        while self.inside.load(Ordering::Acquire) != 0 {
            looks += 1;
            pause(looks);
        }
    }

    #[inline]
    const fn word(&self, wish: Wish) -> &AtomicUsize {
        match wish {
            Wish::Read => &self.read,
            Wish::Write => &self.write,
        }
    }
}

impl<T> Inside<'_, T> {
    /// Begins an operation in the owner's slot. `None` if something has changed, or one is in
    /// flight there already.
    #[inline]
    pub(crate) fn begin(&self, fence: Fence) -> Option<Operation<'_>> {
        // SAFETY: `open` stored the way before the word that let this thread in, and it stays while
        // that is inside (invariant 4).
        let slot = unsafe { &*self.0.slot.load(Ordering::Relaxed) };
        // SAFETY: as above.
        let generation = unsafe { &*self.0.generation.load(Ordering::Relaxed) };
        // SAFETY: as above.
        let known = unsafe { &*self.0.known.load(Ordering::Relaxed) };
        slot.try_begin(Look { generation, known, fence })
    }

    /// What knows the session's blocks.
    #[inline]
    pub(crate) fn table(&self) -> &T {
        // SAFETY: as in `begin`.
        unsafe { &*self.0.table.load(Ordering::Relaxed) }
    }

    /// The block number and the cell of an address.
    #[inline]
    pub(crate) fn split(&self, raw: u64) -> (u64, u64) {
        let cell_bits = self.0.cell_bits.load(Ordering::Relaxed);
        (raw.wrapping_shr(cell_bits), raw & self.0.cell_mask.load(Ordering::Relaxed))
    }
}

impl<T> Drop for Inside<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // Release (c): what was done inside is before it.
        self.0.inside.store(0, Ordering::Release);
    }
}

impl<T> fmt::Debug for Door<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("inside", &self.inside).finish_non_exhaustive()
    }
}

#[cfg(all(test, loom))]
mod interleavings;

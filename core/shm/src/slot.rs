//! The slot of a thread in its session object: mark, then look (section 4.1).
//!
//! ```text
//!   client, slot i                              broker, or who unmaps in the client
//!
//!   mark := odd            (release, a)         generation := g + 1, or an entry unpublished
//!   light fence            (A)                  heavy fence                             (B)
//!   generation = known?    (relaxed, acquire b) marks: which are odd?                   (acquire)
//!     no:  mark := even, pull what changed      those: again, until each has changed    (acquire)
//!     yes: load tables, load and store bytes    reclaim what the old generation used
//!   mark := even           (release, c)
//! ```
//!
//! # Invariants
//!
//! 1. *One of the two sees the other.* (A) pairs with (B): the client sees the new generation, or
//!    the other side sees the mark.
//! 2. *Nothing that was loaded before the mark is used after it*: what an operation knows, it loads
//!    while its slot is marked.
//! 3. *Idle is acknowledged.* A mark that is even, or another than at the first look, belongs to no
//!    operation that began before that look.
//!    An operation that could not come to its end leaves its intent, and with it the page locks: a
//!    server that looks is told of that too.
//! 4. A slot belongs to one thread at a time; nobody else stores to it.
//!
//! The pairs: (c), and (a) of the next operation, are acquired by who looks at the marks, so all
//! accesses of an operation that is seen to be over happen before what is reclaimed. (b) acquires
//! the store of `known` by the thread that took the changes in, so an operation that compares with
//! the new number also sees the tables of that number.
//!
//! If the thread dies anywhere here its process dies, and the mark ends with the session.
//!
//! A server reads marks by `pread`, which may copy a mark in pieces. That errs on the safe side: a
//! mark becomes odd by a change of its lowest byte alone, so a piece tells whether the slot was in
//! flight; and a mixture of two values is seen only when the mark changed after the look began.

#[cfg(not(loom))]
use dmce_abi::block::DaemonId;
use dmce_abi::limits::SLOTS;
use dmce_sys::crash::{Point, point};

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::fence::Fence;
use crate::layout::layout;

pub mod intent;

layout! {
    /// One slot. Zero is a slot that was never used.
    #[derive(Debug, Default)]
    pub struct Slot, 64 bytes {
        /// Odd while an operation is in flight. Written by the slot's thread, read by servers and
        /// by who unmaps.
        0 => mark: AtomicU32,
        /// How far the intent is: see [`intent`]. Written by the slot's thread, read by repair.
        4 => phase: AtomicU32,
        /// The first byte that the intent is about.
        8 => intent_addr: AtomicU64,
        /// How many.
        16 => intent_bytes: AtomicU64,
        /// Operations that the slot has done; a claim for the administrator.
        24 => operations: AtomicU64,
        /// The daemon whose copy the intent's operation writes first.
        32 => intent_first: AtomicU32,
        36 => reserved: [AtomicU32; 7],
    }
}

/// The bit of a mark that says "in flight".
const IN_FLIGHT: u32 = 1;

/// What an operation looks at after its mark.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// The session's generation, which the broker stores.
    pub generation: &'a AtomicU64,
    /// The generation up to which this process has taken in all changes: stored with release by
    /// the thread that did.
    pub known: &'a AtomicU64,
    /// The light half of the fence between the mark and the look.
    pub fence: Fence,
}

/// The generation is not the known one: take in what changed, then begin again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session's generation has moved")]
pub struct Moved;

/// An operation in flight. Dropping it ends it.
#[derive(Debug)]
#[must_use = "the operation ends when this is dropped"]
pub struct Operation<'a>(&'a Slot);

impl Slot {
    /// Begins an operation: marks, then looks. Two plain stores, one of them at the end, and the
    /// loads of words that are in the cache.
    ///
    /// # Errors
    ///
    /// [`Moved`]; the slot is unmarked again.
    ///
    /// # Panics
    ///
    /// If the slot is in flight already: two threads use it, or an operation began inside another.
    #[inline]
    pub fn begin(&self, look: Look<'_>) -> Result<Operation<'_>, Moved> {
        let even = self.mark.load(Ordering::Relaxed);
        assert!(!is_in_flight(even), "the slot is in use by another operation");
        self.mark_after(even, look)
    }

    /// [`Slot::begin`] where an operation may be in flight already, which then goes on alone.
    /// `None` for that, and for [`Moved`].
    #[inline]
    pub fn try_begin(&self, look: Look<'_>) -> Option<Operation<'_>> {
        let even = self.mark.load(Ordering::Relaxed);
        if is_in_flight(even) { None } else { self.mark_after(even, look).ok() }
    }

    #[inline]
    fn mark_after(&self, even: u32, look: Look<'_>) -> Result<Operation<'_>, Moved> {
        let operation = Operation(self);
        // Release (a): whoever sees this mark instead of the one before has the earlier operation
        // behind it. The next load must not be done before this store: the fence.
        self.mark.store(even | IN_FLIGHT, Ordering::Release);
        point(Point::SlotMarked);
        look.fence.light();
        // Relaxed: what comes with a new generation is asked of the broker, not loaded.
        let generation = look.generation.load(Ordering::Relaxed);
        // Acquire (b) pairs with the release of who took the changes in.
        if generation == look.known.load(Ordering::Acquire) { Ok(operation) } else { Err(Moved) }
    }

    /// Where in a slot the bytes of its intent lie.
    #[cfg(not(loom))]
    pub(crate) const INTENT_BYTES: usize = core::mem::offset_of!(Self, intent_bytes);

    /// An intent to bring bytes from the copy of `first` to the others: what is to be stored where
    /// in a slot that has none, in this order.
    #[cfg(not(loom))]
    pub(crate) fn carrying(addr: u64, bytes: u64, first: DaemonId) -> [(usize, Vec<u8>); 4] {
        use core::mem::offset_of;
        [
            (offset_of!(Self, intent_first), first.get().to_le_bytes().to_vec()),
            (offset_of!(Self, phase), intent::PAGES.to_le_bytes().to_vec()),
            (offset_of!(Self, intent_addr), addr.to_le_bytes().to_vec()),
            (Self::INTENT_BYTES, bytes.to_le_bytes().to_vec()),
        ]
    }

    /// Counts operations that were done in this slot. For the slot's own thread.
    #[inline]
    pub fn count(&self, operations: u64) {
        let before = self.operations.load(Ordering::Relaxed);
        self.operations.store(before.wrapping_add(operations), Ordering::Relaxed);
    }
}

impl Drop for Operation<'_> {
    #[inline]
    fn drop(&mut self) {
        // Relaxed: this thread's own. It is not kept instead, which would take a register for as
        // long as the operation.
        let odd = self.0.mark.load(Ordering::Relaxed);
        // Release (c): everything that the operation did is before this store.
        self.0.mark.store(odd.wrapping_add(1), Ordering::Release);
        point(Point::SlotUnmarked);
    }
}

/// The marks of all slots of a session, as one look found them.
#[derive(Clone, Debug)]
pub struct Marks {
    marks: [u32; SLOTS],
    /// Whether a slot that was in no operation had an intent: its last operation could not come to
    /// an end. Only a server looks.
    has_abandoned: bool,
}

impl Marks {
    /// Looks at the slots of this process. What is to be seen or not was stored before, with the
    /// heavy half of the fence in between.
    #[must_use]
    pub fn look(slots: &[Slot]) -> Self {
        let mut marks = [0; SLOTS];
        for (mark, slot) in marks.iter_mut().zip(slots) {
            // Acquire pairs with (a) and (c).
            *mark = slot.mark.load(Ordering::Acquire);
        }
        Self { marks, has_abandoned: false }
    }

    /// Takes the marks out of a server's own copy of the slots.
    #[cfg(not(loom))]
    pub(crate) fn of_copy(slots: &[u8]) -> Self {
        let mut marks = [0; SLOTS];
        for (mark, slot) in marks.iter_mut().zip(slots.chunks_exact(size_of::<Slot>())) {
            *mark = slot.first_chunk().map_or(0, |mark| u32::from_le_bytes(*mark));
        }
        Self { marks, has_abandoned: false }
    }

    /// The marks of such a copy, and whether an operation left its intent behind: by a copy that
    /// was begun when the first one was there. A slot that is in no operation in both, and in the
    /// same, has cleared its intent, or never will.
    #[cfg(not(loom))]
    pub(crate) fn of_copies(slots: &[u8], later: &[u8]) -> Self {
        let (first, later_marks) = (Self::of_copy(slots), Self::of_copy(later));
        let marks = first.marks.iter().zip(&later_marks.marks);
        let mut slots = marks.zip(later.chunks_exact(size_of::<Slot>()));
        let has_abandoned = slots.any(|((mark, now), slot)| {
            !is_in_flight(*mark) && mark == now && intent::IntentClaim::of_copy(slot).is_some()
        });
        Self { has_abandoned, ..first }
    }

    /// Whether some slot was in no operation and had an intent: what it was changing is half
    /// changed, and its page locks are taken, until a server repairs that.
    #[must_use]
    pub const fn has_abandoned(&self) -> bool {
        self.has_abandoned
    }

    /// Whether every operation that was in flight at this look is over at the look `now`.
    ///
    /// A slot that has gone round all 2^31 operations in between counts as in flight: that delays,
    /// and harms nobody.
    #[must_use]
    pub fn quiesced(&self, now: &Self) -> bool {
        self.waiting(now).next().is_none()
    }

    /// The slots whose operation of this look is still in flight at the look `now`.
    pub fn waiting<'a>(&'a self, now: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let pairs = self.marks.iter().zip(&now.marks).enumerate();
        pairs.filter(|(_, (before, now))| is_in_flight(**before) && before == now).map(|(i, _)| i)
    }

    /// The slots that were in flight.
    pub fn in_flight(&self) -> impl Iterator<Item = usize> + '_ {
        let marks = self.marks.iter().enumerate();
        marks.filter(|(_, mark)| is_in_flight(**mark)).map(|(index, _)| index)
    }
}

/// The operations of all slots, out of a server's own copy of them.
#[cfg(not(loom))]
pub(crate) fn operations_of_copy(slots: &[u8]) -> u64 {
    let slots = slots.chunks_exact(size_of::<Slot>());
    let counts = slots.map(|slot| {
        let count = slot[core::mem::offset_of!(Slot, operations)..].first_chunk();
        count.map_or(0, |count| u64::from_le_bytes(*count))
    });
    counts.fold(0, u64::wrapping_add)
}

const fn is_in_flight(mark: u32) -> bool {
    mark & IN_FLIGHT != 0
}

#[cfg(test)]
mod tests;

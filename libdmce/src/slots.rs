//! Which thread marks which slot of the session object.
//!
//! A thread takes a slot at its first operation and gives it back when it ends. The last slot is
//! shared, under a mutex, by threads that find none. A slot below the last also has a heap
//! ([`crate::alloc`]), which its next thread goes on with. With its first slot a thread gets the
//! gates that lead to its heaps.
//!
//! # Invariants
//!
//! 1. A slot below [`SHARED_SLOT`] belongs to one thread at a time.
//! 2. A thread that is ending has no slot of its own any more: what its other thread-locals do in
//!    their destructors goes through the shared one.
//! 3. The gates of a thread that is ending are shut before its slots are another's, and it has none
//!    any more.
//! 4. A thread that marks a slot does not block SIGBUS, unless it has begun to since its first
//!    operation.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use dmce_abi::limits::SLOTS;
use dmce_sys::fault;

use crate::alloc::KIND_BITS;
use crate::alloc::gates::Set;
use crate::thread::{self, RECENT_MAX};

/// The slot of all threads that have none.
pub(crate) const SHARED_SLOT: usize = SLOTS - 1;

const WORDS: usize = SLOTS / 64;

/// The slots of one session. Clones are of the same.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    /// Tells the sessions of this process apart; never 0, never reused.
    key: u64,
    /// Its place in [`thread::recent`].
    place: usize,
    taken: Arc<TakenSlots>,
    shared: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct TakenSlots {
    bits: [AtomicU64; WORDS],
}

thread_local! {
    /// Whether SIGBUS was unblocked in this thread.
    static IS_UNBLOCKED: Cell<bool> = const { Cell::new(false) };
    /// Every slot that this thread has, and its gates.
    static OWN: RefCell<OwnSlots> = const {
        RefCell::new(OwnSlots { slots: Vec::new(), gates: None })
    };
}

struct OwnSlots {
    slots: Vec<(Weak<TakenSlots>, usize)>,
    /// `None` before the first slot, and where there was no memory.
    gates: Option<&'static Set>,
}

impl Slots {
    /// All free.
    pub(crate) fn new() -> Self {
        static NEXT_KEY: AtomicU64 = AtomicU64::new(1);
        let key = NEXT_KEY.fetch_add(1, Ordering::Relaxed);
        let bits = [const { AtomicU64::new(0) }; WORDS];
        bits[SHARED_SLOT / 64].store(1 << (SHARED_SLOT % 64), Ordering::Relaxed);
        #[expect(clippy::cast_possible_truncation, reason = "a small remainder")]
        let place = (key % RECENT_MAX as u64) as usize;
        Self { key, place, taken: Arc::new(TakenSlots { bits }), shared: Arc::default() }
    }

    /// What gates know the session by at first: no number that another library makes up, as the
    /// bits of a kind are 0. On 32 bits it comes again after 2^30 sessions, of which the first has
    /// ended by then and shut its gates.
    pub(crate) const fn own_key(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "as said above")]
        let key = (self.key << KIND_BITS) as usize;
        // Never the key of none.
        if key == 0 { 1 << KIND_BITS } else { key }
    }

    /// This thread's own slot; `None` if there is none for it.
    #[inline]
    pub(crate) fn own(&self) -> Option<usize> {
        self.recent().or_else(|| self.find_own())
    }

    /// This thread's own slot, if it used this session of late.
    #[inline]
    pub(crate) fn recent(&self) -> Option<usize> {
        let (key, slot) = thread::recent(|recent| recent[self.place].get());
        (key == self.key).then_some(slot)
    }

    /// The right to use [`SHARED_SLOT`].
    #[cold]
    pub(crate) fn shared(&self) -> MutexGuard<'_, ()> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cold]
    fn find_own(&self) -> Option<usize> {
        if !IS_UNBLOCKED.replace(true) {
            fault::unblock();
        }
        let slot = OWN.try_with(|own| own.borrow_mut().find_or_take(&self.taken)).ok().flatten()?;
        thread::recent(|recent| recent[self.place].set((self.key, slot)));
        Some(slot)
    }
}

impl OwnSlots {
    fn find_or_take(&mut self, taken: &Arc<TakenSlots>) -> Option<usize> {
        self.slots.retain(|(session, _)| session.strong_count() > 0);
        let mine = self.slots.iter().find(|(session, _)| session.as_ptr() == Arc::as_ptr(taken));
        if let Some((_, slot)) = mine {
            return Some(*slot);
        }
        let slot = taken.take()?;
        self.slots.push((Arc::downgrade(taken), slot));
        if self.gates.is_none() {
            self.gates = Set::take();
            thread::set_gates(self.gates.map(Set::gates));
        }
        Some(slot)
    }
}

impl Drop for OwnSlots {
    fn drop(&mut self) {
        thread::recent(|recent| recent.iter().for_each(|place| place.set((0, 0))));
        thread::set_gates(None);
        if let Some(gates) = self.gates.take() {
            gates.give();
        }
        for (session, slot) in self.slots.drain(..) {
            if let Some(session) = session.upgrade() {
                session.give(slot);
            }
        }
    }
}

impl TakenSlots {
    fn take(&self) -> Option<usize> {
        for (index, word) in self.bits.iter().enumerate() {
            // Acquire pairs with the release of `give`: the mark of the slot's earlier thread is
            // even before this one adds to it.
            let taken = word.fetch_update(Ordering::Acquire, Ordering::Relaxed, |bits| {
                (bits != u64::MAX).then(|| bits | (bits + 1))
            });
            if let Ok(before) = taken {
                return Some(index * 64 + before.trailing_ones() as usize);
            }
        }
        None
    }

    fn give(&self, slot: usize) {
        self.bits[slot / 64].fetch_and(!(1 << (slot % 64)), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::thread;

    #[test]
    fn every_thread_has_its_own_until_none_is_left() {
        let slots = Slots::new();
        let threads = SLOTS + 4;
        let (all_in, all_out) = (Barrier::new(threads), Barrier::new(threads));
        let found: Vec<Option<usize>> = thread::scope(|scope| {
            let spawn = |_| {
                scope.spawn(|| {
                    let slot = slots.own();
                    assert_eq!(slots.own(), slot);
                    all_in.wait();
                    all_out.wait();
                    slot
                })
            };
            let handles: Vec<_> = (0..threads).map(spawn).collect();
            handles.into_iter().map(|handle| handle.join().unwrap()).collect()
        });
        let own: BTreeSet<usize> = found.iter().flatten().copied().collect();
        assert_eq!(own.len(), SHARED_SLOT);
        assert!(!own.contains(&SHARED_SLOT));
        assert_eq!(found.iter().filter(|slot| slot.is_none()).count(), threads - SHARED_SLOT);
    }

    #[test]
    fn the_slot_of_a_thread_that_ended_is_used_again() {
        let slots = Slots::new();
        for _ in 0..2 * SLOTS {
            let slot = thread::scope(|scope| scope.spawn(|| slots.own()).join().unwrap());
            assert_eq!(slot, Some(0));
        }
    }

    #[test]
    fn sessions_of_one_thread_do_not_share_slots() {
        let a = Slots::new();
        let mut others = std::iter::repeat_with(Slots::new);
        let b = others.find(|slots| slots.place != a.place).unwrap();
        assert_eq!(thread::scope(|s| s.spawn(|| a.own()).join().unwrap()), Some(0));
        let here = (a.own(), b.own());
        assert_eq!(here, (Some(0), Some(0)));
        assert_eq!((a.own(), b.own()), here);
        assert_eq!((a.recent(), b.recent()), here, "both are found at once");
        assert_eq!(thread::scope(|s| s.spawn(|| b.own()).join().unwrap()), Some(1));
    }
}

//! A door that one thread passes with plain stores, and that others can shut.
//!
//! A gate leads to one heap at a time, and is open for those who name its session by the right
//! key. So one comparison stands for all that a small allocation or a free has to know: that the
//! session is neither closed nor a parent's, that nobody works on the heap, and that nothing else
//! is in the way of this kind of call.
//!
//! ```text
//!   states of a gate's word for an errand:   0 shut          a key: open for that session
//!
//!   owner, to pass                         who shuts it, under the lock of the heap's depot
//!
//!   mark := odd          (release, a)      why it is shut is stored before, for who opens it
//!   light fence          (A)               words := 0
//!   word = the caller's key?               heavy fence                             (B)
//!     no:  mark := even, the slow way      mark: even, or another one than before  (acquire)
//!     yes: use the heap                      no:  later, or wait
//!   mark := even         (release, c)        yes: use the heap
//!
//!   owner, to open it, under that lock:    words := 0, heap := its own, word := key
//! ```
//!
//! What an owner outside sees of it, and one inside:
//!
//! - *Somebody shuts the gate.* Outside, it finds the word 0 and waits for the lock. Inside, it is
//!   waited for, or left alone.
//! - *The session is closed, or ends.* The same, and who opens gates refuses from then on.
//! - *The process forks.* The child finds all words 0, and the session refuses. Who forked inside,
//!   in a signal handler, goes on with its own copy of the heap, and is outside then.
//! - *The thread ends.* It has shut its gates before another may have its slot.
//! - *The thread turns to another session*, whose gate this is as well. It opens it for that one,
//!   and so shuts it for the first.
//!
//! # Invariants
//!
//! 1. *One of the two sees the other.* (A) pairs with (B): the owner sees the word 0, or the other
//!    side sees the mark.
//! 2. What the owner did inside happens before what is done behind the shut gate ((a), (c)), and
//!    that before what the owner does next, since it takes the lock to open the gate.
//! 3. A gate belongs to one thread at a time. The owner alone stores marks, heaps and keys; anybody
//!    may store 0 to a word, at any time: a gate that is shut for nothing is opened again.
//! 4. A heap has the owner of one slot, and a gate that is open leads to its owner's heap. Who
//!    gives a slot back shuts the gates first. A heap is freed when no gate leads to it any more.
//! 5. Nobody waits inside a gate: it is left after some hundred instructions. A thread that holds
//!    the depot's lock is inside none, or it would wait for itself.
//!
//! A mark also tells who frees things that threads inside of gates may have found: what was
//! unpublished before a heavy fence is found by nobody who enters after it.
//!
//! The words of a process lie in pages that the kernel wipes in a forked child ([`super::gates`]).

use std::fmt;
use std::num::NonZeroUsize;

use dmce_shm::Fence;
use dmce_shm::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use super::heap::Heap;

/// What tells the sessions of this process apart to who passes gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(NonZeroUsize);

impl Key {
    /// Of a number; 0 is none.
    #[inline]
    pub(crate) const fn new(number: usize) -> Option<Self> {
        match NonZeroUsize::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number that it was made of.
    #[inline]
    pub(crate) const fn number(self) -> usize {
        self.0.get()
    }

    /// Bits by which keys of sessions that are open at the same time mostly differ.
    #[inline]
    pub(super) const fn low_bits(self) -> usize {
        self.0.get() >> KIND_BITS
    }
}

/// The lowest bits of a key tell who has made it, so that no two are the same.
pub(crate) const KIND_BITS: u32 = 2;

/// What somebody passes a gate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    /// To allocate.
    Take,
    /// To free.
    Give,
}

/// What an owner may pass a gate for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permits {
    /// To allocate.
    pub take: bool,
    /// To free.
    pub give: bool,
}

/// The words of a gate, one for each errand.
struct Words {
    take: AtomicUsize,
    give: AtomicUsize,
}

/// A gate of a thread. On a cache line of its own.
#[repr(align(64))]
pub(crate) struct Gate {
    /// Odd while the owner is inside. Written by the owner alone.
    mark: AtomicU32,
    /// For owners whose light fence is for the compiler alone.
    words: Words,
    /// For those whose light fence is a full one, so that nobody passes without it.
    fenced: Words,
    /// Where it leads. Written by the owner alone.
    heap: AtomicPtr<Heap>,
}

/// The mark of a gate at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u32);

impl Mark {
    /// Of a gate that is not there yet.
    pub(crate) const NEVER: Self = Self(0);

    /// Whether the owner was outside.
    pub(crate) const fn is_outside(self) -> bool {
        self.0 & 1 == 0
    }

    /// Whether the owner has left, of whom this mark is, given a later one.
    pub(crate) fn has_left(self, now: Self) -> bool {
        self.is_outside() || self != now
    }
}

/// The owner is inside. Dropping it leaves.
#[derive(Debug)]
#[must_use = "the gate is left when this is dropped"]
pub(crate) struct Inside<'a> {
    gate: &'a Gate,
    even: u32,
}

impl Words {
    #[cfg(all(test, loom))]
    fn shut() -> Self {
        Self { take: AtomicUsize::new(0), give: AtomicUsize::new(0) }
    }

    #[inline]
    const fn of(&self, errand: Errand) -> &AtomicUsize {
        match errand {
            Errand::Take => &self.take,
            Errand::Give => &self.give,
        }
    }
}

impl Gate {
    /// One that is shut, as one of zeros is.
    #[cfg(all(test, loom))]
    pub(crate) fn new() -> Self {
        Self {
            mark: AtomicU32::new(0),
            words: Words::shut(),
            fenced: Words::shut(),
            heap: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// Goes inside. For the owner. `None` if the gate is not open for the key, or the owner is
    /// inside already: a signal handler interrupted it there.
    #[inline]
    pub(crate) fn enter(&self, key: Key, errand: Errand, fence: Fence) -> Option<Inside<'_>> {
        let even = self.mark.load(Ordering::Relaxed);
        if even & 1 != 0 {
            return None;
        }
        let inside = Inside { gate: self, even: even.wrapping_add(2) };
        // Release (a): whoever sees this mark in place of an earlier one has what was done inside
        // at that one behind it.
        self.mark.store(even | 1, Ordering::Release);
        fence.light();
        // Relaxed: keys are stored by this thread.
        let word = self.words_for(fence).of(errand).load(Ordering::Relaxed);
        (word == key.number()).then_some(inside)
    }

    /// Opens it for those with the key. For the owner, under the depot's lock, to its own heap
    /// there.
    pub(crate) fn open(&self, key: Key, heap: *const Heap, permits: Permits, fence: Fence) {
        self.shut();
        self.heap.store(heap.cast_mut(), Ordering::Relaxed);
        let words = self.words_for(fence);
        let word = |is_permitted| if is_permitted { key.number() } else { 0 };
        words.take.store(word(permits.take), Ordering::Relaxed);
        words.give.store(word(permits.give), Ordering::Relaxed);
    }

    /// Lets the owner no longer pass. Who passed before is not held up: a heavy fence, then a look
    /// at the mark, tell whether it is still inside.
    pub(crate) fn shut(&self) {
        for words in [&self.words, &self.fenced] {
            words.take.store(0, Ordering::Relaxed);
            words.give.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the owner, who asks, is inside.
    pub(crate) fn is_inside(&self) -> bool {
        self.mark.load(Ordering::Relaxed) & 1 != 0
    }

    /// The mark of this moment.
    pub(crate) fn mark(&self) -> Mark {
        // Acquire pairs with (a) and (c).
        Mark(self.mark.load(Ordering::Acquire))
    }

    #[inline]
    fn words_for(&self, fence: Fence) -> &Words {
        if matches!(fence, Fence::Asymmetric) { &self.words } else { &self.fenced }
    }
}

impl Inside<'_> {
    /// The heap behind the gate.
    #[inline]
    pub(crate) fn heap(&self) -> &Heap {
        let heap = self.gate.heap.load(Ordering::Relaxed);
        // SAFETY: `open` stored it before the word that let this thread in, and the heap is freed
        // only after its gate was shut and left (invariant 4).
        unsafe { &*heap }
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release (c): what was done inside is before it.
        self.gate.mark.store(self.even, Ordering::Release);
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("mark", &self.mark()).finish_non_exhaustive()
    }
}

/// The heavy half of [`Gate::enter`]'s fence.
pub(crate) fn heavy(fence: Fence) {
    while fence.heavy_process().is_err() {
        // Out of kernel memory for a moment.
        std::thread::yield_now();
    }
}

/// Waits until who was inside a gate at a moment before the last heavy fence has left it.
pub(crate) fn wait_outside(gate: &Gate) {
    let before = gate.mark();
    let mut looks = 0;
    while !before.has_left(gate.mark()) {
        looks += 1;
        pause(looks);
    }
}

/// Waits for a moment, for the `looks`th time in a row: inside a gate nobody stays, but a thread
/// may have to be scheduled first.
#[cfg(not(loom))]
pub(crate) fn pause(looks: u32) {
    match looks {
        ..100 => std::hint::spin_loop(),
        100..1_000 => std::thread::yield_now(),
        // A real-time thread cedes its processor to one of lower priority so alone.
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

#[cfg(loom)]
pub(crate) fn pause(_looks: u32) {
    loom::thread::yield_now();
}

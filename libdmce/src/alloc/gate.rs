//! A door that one thread passes with plain stores, and that others can shut.
//!
//! ```text
//!   owner                                  who shuts it, under the depot's lock
//!
//!   mark := odd          (release, a)      signals |= SHUT
//!   light fence          (A)               heavy fence                             (B)
//!   signals = 0?         (acquire, b)      mark: even, or another one than before  (acquire)
//!     no:  mark := even, wait for the lock   no:  later, or wait
//!     yes: use what is behind the gate       yes: use what is behind the gate
//!   mark := even         (release, c)      signals &= !SHUT                        (release, d)
//! ```
//!
//! # Invariants
//!
//! 1. *One of the two sees the other.* (A) pairs with (B): the owner sees the signal, or the other
//!    side sees the mark.
//! 2. What the owner did inside happens before what is done behind the shut gate ((a), (c)), and
//!    that before what the owner does next ((d), (b)).
//! 3. A gate has one owner at a time. Whoever hands it on orders the two.
//! 4. Nobody waits inside a gate: it is left after some hundred instructions. A thread that holds
//!    the depot's lock is inside none, or it would wait for itself.
//!
//! A mark also tells who frees things that threads inside of gates may have found: what was
//! unpublished before a heavy fence is found by nobody who enters after it.

use std::fmt;

use dmce_shm::Fence;
use dmce_shm::atomic::{AtomicU32, Ordering};

/// Somebody has shut the gate.
pub(crate) const SHUT: u32 = 1;
/// What is behind the gate has been summed up since its owner was there.
pub(crate) const SUMMED: u32 = 2;

/// The gate of a thread.
pub(crate) struct Gate {
    /// Odd while the owner is inside. Written by the owner alone.
    mark: AtomicU32,
    /// Why the owner has to stay outside. Written by anybody.
    signals: AtomicU32,
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
    odd: u32,
}

impl Gate {
    /// One that is open, with signals that the owner is to see at first.
    pub(crate) fn new(signals: u32) -> Self {
        Self { mark: AtomicU32::new(0), signals: AtomicU32::new(signals) }
    }

    /// Goes inside. For the owner. `None` while there are signals.
    ///
    /// # Panics
    ///
    /// If somebody is inside already: the gate has two owners, or a call began inside another.
    #[inline]
    pub(crate) fn enter(&self, fence: Fence) -> Option<Inside<'_>> {
        let even = self.mark.load(Ordering::Relaxed);
        assert!(even & 1 == 0, "a call is inside this gate already");
        let inside = Inside { gate: self, odd: even.wrapping_add(1) };
        // Release (a): whoever sees this mark in place of an earlier one has what was done inside
        // at that one behind it.
        self.mark.store(inside.odd, Ordering::Release);
        fence.light();
        // Acquire (b) pairs with the release of `lower`.
        (self.signals.load(Ordering::Acquire) == 0).then_some(inside)
    }

    /// Gives the owner signals to see. Those who entered before do not: a heavy fence, then a look
    /// at the mark, tell whether anybody is still inside.
    pub(crate) fn raise(&self, signals: u32) {
        self.signals.fetch_or(signals, Ordering::Relaxed);
    }

    /// Takes signals back; true if one of them was raised.
    pub(crate) fn lower(&self, signals: u32) -> bool {
        // Release (d): what was done behind the gate is before it.
        self.signals.fetch_and(!signals, Ordering::Release) & signals != 0
    }

    /// Whether a signal is raised.
    pub(crate) fn is_raised(&self, signal: u32) -> bool {
        self.signals.load(Ordering::Relaxed) & signal != 0
    }

    /// The mark of this moment.
    pub(crate) fn mark(&self) -> Mark {
        // Acquire pairs with (a) and (c).
        Mark(self.mark.load(Ordering::Acquire))
    }
}

impl Drop for Inside<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release (c): what was done inside is before it.
        self.gate.mark.store(self.odd.wrapping_add(1), Ordering::Release);
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
fn pause(looks: u32) {
    match looks {
        ..100 => std::hint::spin_loop(),
        100..1_000 => std::thread::yield_now(),
        // A real-time thread cedes its processor to one of lower priority so alone.
        _ => std::thread::sleep(std::time::Duration::from_micros(50)),
    }
}

#[cfg(loom)]
fn pause(_looks: u32) {
    loom::thread::yield_now();
}

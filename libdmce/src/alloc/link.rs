//! Pointers to slabs, and who may follow them.
//!
//! # Invariants
//!
//! 1. A link names a slab that [`super::limbo`] has not freed. That frees a slab when no link names
//!    it any more and everybody has left who was [`Held`] while one did.
//! 2. A memo may name a slab that is no more. It is followed only by who is held, and then sees
//!    that nothing was buried since the slab was found: what is buried later is not freed before
//!    its holder has left.

use std::marker::PhantomData;
use std::ptr;

use dmce_shm::atomic::{AtomicPtr, AtomicUsize, Ordering};

use super::gate::Inside;
use super::heap::Heap;
use super::slab::Slab;

/// Proof that no slab is freed that its holder may have found: for as long as the holder is inside
/// a gate, or has the depot's lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held<'a>(PhantomData<&'a ()>);

impl<'a> Held<'a> {
    /// By being inside a gate.
    #[inline]
    pub(crate) const fn inside(_inside: &'a Inside<'_>) -> Self {
        Self(PhantomData)
    }

    /// By having the depot's lock: whoever frees slabs has it.
    ///
    /// # Safety
    ///
    /// The lock is held for longer than what is returned lives.
    pub(crate) const unsafe fn locked() -> Self {
        Self(PhantomData)
    }
}

/// A place that may name a slab. Which thread may store to it is said where it is.
#[derive(Debug)]
pub(crate) struct Link(AtomicPtr<Slab>);

impl Link {
    /// One that names none.
    pub(crate) fn none() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// What it names.
    #[inline]
    pub(crate) fn get<'a>(&self, _held: Held<'a>) -> Option<&'a Slab> {
        // Acquire pairs with the release of whoever published the slab.
        let slab = self.0.load(Ordering::Acquire);
        // SAFETY: null, or a slab that lives at least as long as `_held` (invariant 1).
        unsafe { slab.as_ref() }
    }

    /// Has it name a slab.
    #[inline]
    pub(crate) fn set(&self, slab: Option<&Slab>) {
        self.0.store(pointer(slab), Ordering::Release);
    }

    /// Whether it names `slab`.
    #[inline]
    pub(crate) fn is(&self, slab: &Slab) -> bool {
        ptr::eq(self.0.load(Ordering::Relaxed), slab)
    }

    /// Has it name none; returns what it named.
    pub(crate) fn take<'a>(&self, _held: Held<'a>) -> Option<&'a Slab> {
        // Acquire pairs with the release in `push`.
        let slab = self.0.swap(ptr::null_mut(), Ordering::Acquire);
        // SAFETY: as in `get`.
        unsafe { slab.as_ref() }
    }

    /// Puts `slab` before what the link names: a stack that any thread may push to, and that is
    /// taken as a whole.
    pub(crate) fn push(&self, slab: &Slab, next: &Self) {
        let mut first = self.0.load(Ordering::Relaxed);
        loop {
            next.0.store(first, Ordering::Relaxed);
            let new = pointer(Some(slab));
            // Release pairs with the acquire in `take`: what was done to the slab, and its `next`.
            match self.0.compare_exchange_weak(first, new, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(found) => first = found,
            }
        }
    }
}

/// What one thread remembers of a slab that it has found in the directory.
#[derive(Debug)]
pub(crate) struct Memo {
    slab: AtomicPtr<Slab>,
    home: AtomicPtr<Heap>,
    /// Of [`Buried`].
    found: AtomicUsize,
}

/// How many things were buried when something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Buried(pub usize);

impl Memo {
    /// Of none.
    pub(crate) fn none() -> Self {
        Self {
            slab: AtomicPtr::new(ptr::null_mut()),
            home: AtomicPtr::new(ptr::null_mut()),
            found: AtomicUsize::new(0),
        }
    }

    /// The slab and its home, if nothing was buried since they were found. `now`: what was buried
    /// is looked at while `_held`.
    #[inline]
    pub(crate) fn get<'a>(
        &self,
        now: impl FnOnce() -> Buried,
        _held: Held<'a>,
    ) -> Option<(&'a Slab, &'a Heap)> {
        if now() != Buried(self.found.load(Ordering::Relaxed)) {
            return None;
        }
        // SAFETY: null, or a slab that lives at least as long as `_held` (invariant 2).
        let slab = unsafe { self.slab.load(Ordering::Relaxed).as_ref() }?;
        // SAFETY: null, or a heap, which lives as long as the session that `_held` is of.
        let home = unsafe { self.home.load(Ordering::Relaxed).as_ref() }?;
        Some((slab, home))
    }

    /// Remembers a slab and its home. `found`: from before the slab was looked for.
    pub(crate) fn set(&self, slab: &Slab, home: &Heap, found: Buried) {
        self.slab.store(pointer(Some(slab)), Ordering::Relaxed);
        self.home.store(ptr::from_ref(home).cast_mut(), Ordering::Relaxed);
        self.found.store(found.0, Ordering::Relaxed);
    }
}

fn pointer(slab: Option<&Slab>) -> *mut Slab {
    slab.map_or(ptr::null_mut(), |slab| ptr::from_ref(slab).cast_mut())
}

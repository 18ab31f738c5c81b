//! Handles: what C gets instead of pointers to our objects.
//!
//! A handle looks like a pointer to C and is never one. It names a slot of one table, and the use
//! of that slot, so that a handle that is stale, of another kind, or garbage is an error code:
//!
//! ```text
//!   63 or 31                14 13          2 1    0
//!  |          use            |    slot      | kind |     kind 1: session, 2: region
//! ```
//!
//! # Invariants
//!
//! 1. The bits of a handle are never dereferenced. They index the table and are compared with what
//!    the slot says; only then is the slot's own pointer used.
//! 2. A use of a slot is counted up and never comes again: a slot whose count is full is left
//!    empty for ever. On 32 bits that is after 2^18 uses of each of 4,096 slots.
//! 3. `object` points to a `T` of the slot's kind while `live` is a handle of that kind, and for as
//!    long after that as a [`Call`] on it is under way.
//! 4. Only who takes a handle out of `live` frees the object, after the last call has left it.

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use dmce_abi::Status;

use crate::calls::{self, Call};
use crate::failure::Failure;

const KIND_BITS: u32 = 2;
const SLOT_BITS: u32 = 12;
const USE_SHIFT: u32 = KIND_BITS + SLOT_BITS;
const USE_MAX: usize = usize::MAX >> USE_SHIFT;

/// Handles that may be open at one time in one process.
pub(crate) const HANDLES_MAX: usize = 1 << SLOT_BITS;

/// What a handle can stand for.
pub(crate) trait Object: Send + Sync + Sized + 'static {
    /// The lowest bits of its handles: 1 or 2.
    const KIND: usize;
    /// What error texts call it.
    const NAME: &'static str;
}

struct Slot {
    /// The handle that is open here, or 0. Release when it is opened; closed by compare-and-swap.
    live: AtomicUsize,
    /// A box of the kind's own type. Stored before `live`.
    object: AtomicPtr<()>,
    /// The handle that this one ends with: a region's session. 0 for none. Stored before `live`.
    parent: AtomicUsize,
    /// `use << 1 | claimed`. The claim is held from before `live` is set until the object is free.
    uses: AtomicUsize,
}

static SLOTS: [Slot; HANDLES_MAX] = [const {
    Slot {
        live: AtomicUsize::new(0),
        object: AtomicPtr::new(ptr::null_mut()),
        parent: AtomicUsize::new(0),
        uses: AtomicUsize::new(0),
    }
}; HANDLES_MAX];

/// Gives out a handle for `object`, which ends no later than the handle `parent` (0 for none).
///
/// # Errors
///
/// `NoMem` when all handles are in use; then the object comes back.
pub(crate) fn open<T: Object>(object: T, parent: usize) -> Result<usize, (T, Failure)> {
    calls::prepare();
    let Some((index, slot, used)) = claim() else {
        let text = format!("all {HANDLES_MAX} handles of this process are open");
        return Err((object, Failure::new(Status::NoMem, text)));
    };
    let handle = used << USE_SHIFT | index << KIND_BITS | T::KIND;
    slot.object.store(Box::into_raw(Box::new(object)).cast(), Ordering::Relaxed);
    slot.parent.store(parent, Ordering::Relaxed);
    // Pairs with the Acquire in `enter`.
    slot.live.store(handle, Ordering::Release);
    Ok(handle)
}

/// Takes a free slot for its next use.
fn claim() -> Option<(usize, &'static Slot, usize)> {
    SLOTS.iter().enumerate().find_map(|(index, slot)| {
        let before = slot.uses.load(Ordering::Relaxed);
        let (used, claimed) = (before >> 1, before & 1 == 1);
        if claimed || used == USE_MAX {
            return None;
        }
        let claim = (used + 1) << 1 | 1;
        // Acquire pairs with the release of the former claim: its object is gone.
        let taken = slot.uses.compare_exchange(before, claim, Ordering::Acquire, Ordering::Relaxed);
        taken.is_ok().then_some((index, slot, used + 1))
    })
}

/// A call on an open handle. The object lives as long as this does.
pub(crate) struct Visit<T> {
    object: NonNull<T>,
    _call: Call,
}

/// Begins a call on `handle`; none if it is not open. [`refusal`] tells why, apart from this, so
/// that what every call passes through fits two registers.
#[inline]
pub(crate) fn visit<T: Object>(handle: usize) -> Option<Visit<T>> {
    let call = Call::begin(handle);
    let slot = slot_of(handle);
    // Pairs with the Release in `open`: whoever sees the handle sees its object.
    if slot.live.load(Ordering::Acquire) != handle || kind_of(handle) != T::KIND {
        return None;
    }
    let object = NonNull::new(slot.object.load(Ordering::Relaxed).cast())?;
    Some(Visit { object, _call: call })
}

/// [`visit`], with the reason.
///
/// # Errors
///
/// `Invalid` for what was never a handle of this kind, `Closed` for one that is open no longer.
pub(crate) fn enter<T: Object>(handle: usize) -> Result<Visit<T>, Failure> {
    visit(handle).ok_or_else(|| refusal::<T>(handle))
}

impl<T> Deref for Visit<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: invariants 3 and 4: the slot said that the handle is open after the call had
        // begun, so whoever closes it waits for the end of this call before freeing the object.
        unsafe { self.object.as_ref() }
    }
}

/// An object whose handle is closed. Freed with this, after the last call on it has ended.
pub(crate) struct Retired<T: Object> {
    handle: usize,
    slot: &'static Slot,
    /// Whether the last call has left; not known before somebody has waited for it.
    vacant: Option<bool>,
    _object: PhantomData<T>,
}

/// Closes `handle`: calls that begin from now on answer `Closed`. Those under way go on.
///
/// # Errors
///
/// As [`enter`].
pub(crate) fn retire<T: Object>(handle: usize) -> Result<Retired<T>, Failure> {
    let slot = slot_of(handle);
    // Acquire: the object is used through what is returned.
    let closed = kind_of(handle) == T::KIND
        && slot.live.compare_exchange(handle, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
    if closed {
        Ok(Retired { handle, slot, vacant: None, _object: PhantomData })
    } else {
        Err(refusal::<T>(handle))
    }
}

/// Closes every handle of kind `T` that was opened with `parent`.
pub(crate) fn retire_children<T: Object>(parent: usize) -> Vec<Retired<T>> {
    let mut retired = Vec::new();
    for slot in &SLOTS {
        let handle = slot.live.load(Ordering::Acquire);
        // If the slot is used anew between the two loads, the handle is not the live one any more
        // and `retire` refuses it.
        if handle != 0 && slot.parent.load(Ordering::Relaxed) == parent {
            retired.extend(retire::<T>(handle));
        }
    }
    retired
}

impl<T: Object> Retired<T> {
    /// Waits until the last call on the handle has ended.
    pub(crate) fn wait(&mut self) {
        self.vacant = Some(calls::wait_until_nobody_is_inside(self.handle));
    }
}

impl<T: Object> Deref for Retired<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let object = self.slot.object.load(Ordering::Relaxed).cast_const().cast::<T>();
        // SAFETY: invariant 4: only this value frees the object, when it is dropped.
        unsafe { &*object }
    }
}

impl<T: Object> Drop for Retired<T> {
    fn drop(&mut self) {
        if self.vacant.is_none() {
            self.wait();
        }
        if self.vacant != Some(true) {
            // Nobody knows whether a call is inside: the object and its slot stay as they are.
            return;
        }
        let object = self.slot.object.load(Ordering::Relaxed).cast::<T>();
        // SAFETY: made by `Box::into_raw` in `open` for this kind; nobody is inside, none can come
        // in, and by invariant 4 nobody else frees it.
        drop(unsafe { Box::from_raw(object) });
        // Release: the next user of the slot comes after the free.
        self.slot.uses.fetch_and(!1, Ordering::Release);
    }
}

#[inline]
fn slot_of(handle: usize) -> &'static Slot {
    &SLOTS[handle >> KIND_BITS & (HANDLES_MAX - 1)]
}

#[inline]
fn kind_of(handle: usize) -> usize {
    handle & ((1 << KIND_BITS) - 1)
}

/// Why [`visit`] or [`retire`] did not take a handle.
#[cold]
pub(crate) fn refusal<T: Object>(handle: usize) -> Failure {
    let name = T::NAME;
    if handle == 0 {
        return Failure::new(Status::Invalid, format!("the {name} is NULL"));
    }
    let given_out = slot_of(handle).uses.load(Ordering::Relaxed) >> 1;
    let used = handle >> USE_SHIFT;
    if kind_of(handle) == T::KIND && (1..=given_out).contains(&used) {
        Failure::new(Status::Closed, format!("the {name} is closed"))
    } else {
        Failure::new(Status::Invalid, format!("{handle:#x} is no {name}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// Poisoned when it is dropped, so that a use after the end shows.
    struct Thing(Arc<AtomicBool>);

    impl Object for Thing {
        const KIND: usize = 1;
        const NAME: &'static str = "thing";
    }

    impl Drop for Thing {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    struct Part;

    impl Object for Part {
        const KIND: usize = 2;
        const NAME: &'static str = "part";
    }

    fn thing(parent: usize) -> (usize, Arc<AtomicBool>) {
        let ended = Arc::new(AtomicBool::new(false));
        let handle = open(Thing(Arc::clone(&ended)), parent).map_err(|(_, failure)| failure);
        (handle.unwrap(), ended)
    }

    fn status_of<T: Object>(handle: usize) -> Status {
        enter::<T>(handle).map_or_else(|failure| failure.status(), |_| Status::Ok)
    }

    #[test]
    fn an_open_handle_reaches_its_object_and_a_closed_one_says_closed() {
        let (handle, ended) = thing(0);
        assert!(!enter::<Thing>(handle).unwrap().0.load(Ordering::SeqCst));
        drop(retire::<Thing>(handle).unwrap());
        assert!(ended.load(Ordering::SeqCst));
        assert_eq!(status_of::<Thing>(handle), Status::Closed);
        assert_eq!(retire::<Thing>(handle).err().unwrap().status(), Status::Closed);
    }

    #[test]
    fn a_handle_stays_closed_when_its_slot_is_used_again() {
        let (first, _) = thing(0);
        drop(retire::<Thing>(first).unwrap());
        // Other tests open handles too, so the slot may go to one of them: that is as good.
        let others: Vec<usize> = (0..64).map(|_| thing(0).0).collect();
        assert!(!others.contains(&first));
        assert_eq!(status_of::<Thing>(first), Status::Closed);
        for other in others {
            drop(retire::<Thing>(other).unwrap());
        }
    }

    #[test]
    fn garbage_and_handles_of_another_kind_are_invalid() {
        let (handle, _) = thing(0);
        let local = 0_u64;
        let pointer = ptr::from_ref(&local).addr();
        for garbage in [0, 1, 2, 3, usize::MAX, handle + (1 << USE_SHIFT), pointer] {
            assert_eq!(status_of::<Thing>(garbage), Status::Invalid, "{garbage:#x}");
        }
        assert_eq!(status_of::<Part>(handle), Status::Invalid);
        assert_eq!(retire::<Part>(handle).err().unwrap().status(), Status::Invalid);
        drop(retire::<Thing>(handle).unwrap());
    }

    #[test]
    fn children_end_with_their_parent_and_others_do_not() {
        let (parent, _) = thing(0);
        let (stranger, _) = thing(0);
        let open_part = |parent| open(Part, parent).map_err(|(_, failure)| failure).unwrap();
        let (child, other) = (open_part(parent), open_part(stranger));
        assert_eq!(retire_children::<Part>(parent).len(), 1);
        assert_eq!(status_of::<Part>(child), Status::Closed);
        assert_eq!(status_of::<Part>(other), Status::Ok);
        drop(retire_children::<Part>(stranger));
        drop(retire::<Thing>(parent).unwrap());
        drop(retire::<Thing>(stranger).unwrap());
    }

    #[test]
    fn the_object_is_freed_only_after_the_last_call_has_left() {
        for _ in 0..200 {
            let (handle, ended) = thing(0);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| visit_until_closed(handle));
                }
                drop(retire::<Thing>(handle).unwrap());
                assert!(ended.load(Ordering::SeqCst));
            });
        }
    }

    /// Panics if the object has ended while a call was on it.
    fn visit_until_closed(handle: usize) {
        while let Ok(visit) = enter::<Thing>(handle) {
            for _ in 0..8 {
                assert!(!visit.0.load(Ordering::SeqCst), "freed under a call");
            }
        }
    }

    #[test]
    fn a_call_within_a_call_protects_both_handles() {
        let (outer, outer_ended) = thing(0);
        let (inner, inner_ended) = thing(0);
        let outer_visit = enter::<Thing>(outer).unwrap();
        drop(enter::<Thing>(inner).unwrap());
        drop(retire::<Thing>(inner).unwrap());
        assert!(inner_ended.load(Ordering::SeqCst));
        std::thread::scope(|scope| {
            let closer = scope.spawn(|| drop(retire::<Thing>(outer).unwrap()));
            while enter::<Thing>(outer).is_ok() {
                std::thread::yield_now();
            }
            assert!(!outer_ended.load(Ordering::SeqCst));
            drop(outer_visit);
            closer.join().unwrap();
        });
        assert!(outer_ended.load(Ordering::SeqCst));
    }
}

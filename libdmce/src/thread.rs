//! What is kept for each thread, in one place: finding a thread-local of a shared library is a
//! call, and the way of an access is short.
#![forbid(unsafe_code)]

use std::cell::Cell;

/// Sessions that a thread can use in turn without looking for its slot.
pub(crate) const RECENT_MAX: usize = 4;

thread_local! {
    /// Without a destructor and a constructor.
    static OWN: OwnOfThread = const { OwnOfThread {
        recent: [const { Cell::new((0, 0)) }; RECENT_MAX],
        binding: Cell::new(0),
    } };
}

struct OwnOfThread {
    recent: [Cell<(u64, usize)>; RECENT_MAX],
    binding: Cell<usize>,
}

/// Sessions that this thread used of late, by their keys, and its slots there. Each session has one
/// place.
#[inline]
pub(crate) fn recent<R>(body: impl FnOnce(&[Cell<(u64, usize)>; RECENT_MAX]) -> R) -> R {
    OWN.with(|own| body(&own.recent))
}

/// A word of this thread for whoever makes this library's calls available to another language; 0 at
/// first. It is not looked at here.
#[inline]
pub fn binding_word<R>(body: impl FnOnce(&Cell<usize>) -> R) -> R {
    OWN.with(|own| body(&own.binding))
}

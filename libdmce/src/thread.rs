//! What is kept for each thread, in one place: finding a thread-local of a shared library is a
//! call, and the way of an access is short.
#![forbid(unsafe_code)]

use std::cell::Cell;

use crate::alloc::gates::{self, Gates};
use crate::alloc::{Gate, Key};
use crate::door::Door;
use crate::table::Table;

/// Sessions that a thread can use in turn without looking for its slot.
pub(crate) const RECENT_MAX: usize = 4;

thread_local! {
    /// Without a destructor and a constructor.
    static OWN: OwnOfThread = const { OwnOfThread {
        recent: [const { Cell::new((0, 0)) }; RECENT_MAX],
        gates: Cell::new(None),
        binding: Cell::new(0),
    } };
}

struct OwnOfThread {
    recent: [Cell<(u64, usize)>; RECENT_MAX],
    gates: Cell<Option<&'static Gates>>,
    binding: Cell<usize>,
}

/// Sessions that this thread used of late, by their keys, and its slots there. Each session has one
/// place.
#[inline]
pub(crate) fn recent<R>(body: impl FnOnce(&[Cell<(u64, usize)>; RECENT_MAX]) -> R) -> R {
    OWN.with(|own| body(&own.recent))
}

/// This thread's gate for the session that has a key, if it has gates.
#[inline]
pub(crate) fn gate(key: Key) -> Option<&'static Gate> {
    OWN.with(|own| own.gates.get()).map(|gates| gates.of(key))
}

/// This thread's door to the session that has a key, if it has doors.
pub(crate) fn door(key: Key) -> Option<&'static Door<Table>> {
    OWN.with(|own| own.gates.get()).map(|gates| gates.door(key))
}

/// Shuts this thread's gate and door to the session that has a key, if it has any.
pub(crate) fn shut(key: Key) {
    if let Some(gates) = OWN.with(|own| own.gates.get()) {
        gates.of(key).shut();
        gates.door(key).shut();
    }
}

/// Gives this thread gates, or takes them away.
pub(crate) fn set_gates(gates: Option<&'static Gates>) {
    OWN.with(|own| own.gates.set(gates));
    gates::say(gates);
}

/// A word of this thread for whoever makes this library's calls available to another language; 0 at
/// first. It is not looked at here.
#[inline]
pub fn binding_word<R>(body: impl FnOnce(&Cell<usize>) -> R) -> R {
    OWN.with(|own| body(&own.binding))
}

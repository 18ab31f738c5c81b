//! What is kept for each thread, in one place: finding a thread-local of a shared library is a
//! call, and the way of an access is short.
#![forbid(unsafe_code)]

use std::cell::Cell;

use crate::alloc::gates::{self, GATES, Gates, Pair, Said};
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
        said: [const { Cell::new(None) }; GATES],
        binding: Cell::new(0),
    } };
}

struct OwnOfThread {
    recent: [Cell<(u64, usize)>; RECENT_MAX],
    gates: Cell<Option<&'static Gates>>,
    said: [Cell<Said>; GATES],
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
    pair(key).map(|pair| &pair.gate)
}

/// This thread's door to the session that has a key, if it has doors.
pub(crate) fn door(key: Key) -> Option<&'static Door<Table>> {
    pair(key).map(|pair| &pair.door)
}

/// Shuts this thread's gate and door to the session that has a key, if it has any.
pub(crate) fn shut(key: Key) {
    if let Some(gates) = OWN.with(|own| own.gates.get()) {
        gates.of(key).shut();
    }
}

/// Gives this thread gates, or takes them away.
pub(crate) fn set_gates(gates: Option<&'static Gates>) {
    if OWN.with(|own| own.gates.replace(gates)).is_some() {
        gates::say_no_more();
    }
}

/// The pair for the session that has a key, which the shortest calls find from now on.
#[inline]
fn pair(key: Key) -> Option<&'static Pair> {
    OWN.with(|own| {
        let pair = own.gates.get()?.of(key);
        gates::say(key, pair, &own.said[Gates::place_of(key)]);
        Some(pair)
    })
}

/// A word of this thread for whoever makes this library's calls available to another language; 0 at
/// first. It is not looked at here.
#[inline]
pub fn binding_word<R>(body: impl FnOnce(&Cell<usize>) -> R) -> R {
    OWN.with(|own| body(&own.binding))
}

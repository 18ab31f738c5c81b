//! The time limit of a call that has one of its own.
//!
//! A wait may have to ask the broker what has changed, for a block, or for the way to it, by
//! functions that all calls share. None of them knows how long its caller waits; this thread does.
//!
//! # Invariants
//!
//! 1. A limit makes the session's time shorter, and never longer.
//! 2. It ends with the call that set it, also by a panic.
#![forbid(unsafe_code)]

use std::cell::Cell;

use crate::connection::Deadline;

thread_local! {
    static LIMIT: Cell<Option<Deadline>> = const { Cell::new(None) };
}

/// Sets the limit back as it was.
struct Before(Option<Deadline>);

impl Drop for Before {
    fn drop(&mut self) {
        LIMIT.set(self.0);
    }
}

/// Runs `call`, in which nobody is waited for longer than until `limit`, if there is one.
pub(crate) fn within<T>(limit: Option<Deadline>, call: impl FnOnce() -> T) -> T {
    let outer = LIMIT.get();
    let _before = Before(outer);
    LIMIT.set(limit.map(|limit| outer.map_or(limit, |outer| limit.min(outer))).or(outer));
    call()
}

/// The moment, or the limit of this thread's call if that is earlier.
pub(crate) fn at_most(deadline: Deadline) -> Deadline {
    LIMIT.get().map_or(deadline, |limit| limit.min(deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_makes_time_shorter_for_as_long_as_its_call_lasts() {
        let [soon, later, last] = [10_000, 20_000, 30_000].map(Deadline::after_ms);
        assert_eq!(at_most(last), last);
        within(Some(later), || {
            assert_eq!((at_most(last), at_most(soon)), (later, soon));
            within(Some(soon), || assert_eq!(at_most(last), soon));
            within(Some(last), || assert_eq!(at_most(last), later));
            within(None, || assert_eq!(at_most(last), later));
            assert_eq!(at_most(last), later);
            let panicked = std::panic::catch_unwind(|| within(Some(soon), || panic!("by a test")));
            assert!(panicked.is_err() && at_most(last) == later);
        });
        assert_eq!(at_most(last), last);
    }
}

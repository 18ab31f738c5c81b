//! One thread at a time, with a deadline.
//!
//! Whoever has a turn may wait for the broker; the others must not wait longer for the turn than
//! they would for the broker itself. That is what a plain mutex cannot do.
#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::connection::Deadline;

/// A value that one thread at a time has.
#[derive(Debug)]
pub(crate) struct Turn<T> {
    state: Mutex<State<T>>,
    back: Condvar,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    /// How many wait for it: to wake nobody is a call of the kernel, too.
    waiting: u32,
}

/// The value, until it is dropped.
#[derive(Debug)]
pub(crate) struct Taken<'a, T> {
    turn: &'a Turn<T>,
    value: Option<T>,
}

impl<T> Turn<T> {
    /// Free.
    pub(crate) const fn new(value: T) -> Self {
        let state = State { value: Some(value), waiting: 0 };
        Self { state: Mutex::new(state), back: Condvar::new() }
    }

    /// Takes the value, waiting for it until the deadline.
    pub(crate) fn take(&self, deadline: Deadline) -> Option<Taken<'_, T>> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = state.value.take() {
                return Some(Taken { turn: self, value: Some(taken) });
            }
            let left = deadline.left()?;
            state.waiting += 1;
            let waited = self.back.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.waiting -= 1;
        }
    }

    /// Takes the value if nobody has it.
    pub(crate) fn try_take(&self) -> Option<Taken<'_, T>> {
        let taken = self.lock().value.take();
        taken.map(|value| Taken { turn: self, value: Some(value) })
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("only drop takes the value away")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("only drop takes the value away")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let mut state = self.turn.lock();
        state.value = self.value.take();
        let is_wanted = state.waiting > 0;
        drop(state);
        if is_wanted {
            self.turn.back.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn one_has_it_and_the_other_gives_up_at_the_deadline() {
        let turn = Turn::new(7);
        let taken = turn.take(Deadline::after_ms(0)).unwrap();
        assert!(turn.take(Deadline::after_ms(1)).is_none());
        assert!(turn.try_take().is_none());
        drop(taken);
        assert_eq!(*turn.try_take().unwrap(), 7);
    }

    #[test]
    fn each_of_many_gets_it() {
        let turn = Turn::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        *turn.take(Deadline::after_ms(60_000)).unwrap() += 1;
                    }
                });
            }
        });
        assert_eq!(*turn.try_take().unwrap(), 1600);
    }
}

//! One thread at a time, with a deadline.
//!
//! Whoever has a turn may wait for the broker; the others must not wait longer for the turn than
//! they would for the broker itself. That is what a plain mutex cannot do.
#![forbid(unsafe_code)]

use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::connection::Deadline;

/// A value that one thread at a time has.
#[derive(Debug)]
pub(crate) struct Turn<T> {
    value: Mutex<Option<T>>,
    back: Condvar,
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
        Self { value: Mutex::new(Some(value)), back: Condvar::new() }
    }

    /// Takes the value, waiting for it until the deadline.
    pub(crate) fn take(&self, deadline: Deadline) -> Option<Taken<'_, T>> {
        let mut value = self.value.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(taken) = value.take() {
                return Some(Taken { turn: self, value: Some(taken) });
            }
            let waited = self.back.wait_timeout(value, deadline.left()?);
            value = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the value if nobody has it.
    pub(crate) fn try_take(&self) -> Option<Taken<'_, T>> {
        let taken = self.value.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.map(|value| Taken { turn: self, value: Some(value) })
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
        *self.turn.value.lock().unwrap_or_else(PoisonError::into_inner) = self.value.take();
        self.turn.back.notify_one();
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

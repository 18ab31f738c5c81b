//! Atomics whose accesses are steps: a test decides before each which thread goes on, and which
//! one dies there.
//!
//! A thread that is in no [`run`] takes no steps: to it these are the atomics of the processor.
//!
//! A dead thread unwinds, and what its destructors store has no effect any more: of a process that
//! was killed no destructor runs.

use std::any::Any;
use std::cell::RefCell;
use std::ops::Deref;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{self, Ordering};
use std::sync::{Arc, Condvar, Mutex};

thread_local! {
    static ACTOR: RefCell<Option<Actor>> = const { RefCell::new(None) };
}

/// What a thread in a [`run`] is.
struct Actor {
    /// Stores that are left to it; none is any number.
    stores_left: Option<u64>,
    stored: u64,
    is_dead: bool,
    turns: Option<(Arc<Turns>, usize)>,
}

/// What a dead thread unwinds with.
struct Death;

/// How a [`run`] ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End<T> {
    /// With its result, after so many stores.
    Done(T, u64),
    /// It died.
    Dead,
}

/// Runs something that dies before the store that is one too many.
pub(crate) fn run<T>(stores_left: Option<u64>, act: impl FnOnce() -> T) -> End<T> {
    run_in(stores_left, None, act)
}

fn run_in<T>(
    stores_left: Option<u64>,
    turns: Option<(Arc<Turns>, usize)>,
    act: impl FnOnce() -> T,
) -> End<T> {
    let actor = Actor { stores_left, stored: 0, is_dead: false, turns };
    ACTOR.with(|own| *own.borrow_mut() = Some(actor));
    let ended = panic::catch_unwind(AssertUnwindSafe(act));
    let actor = ACTOR.with(|own| own.borrow_mut().take()).expect("it was set above");
    if let Some((turns, own)) = &actor.turns {
        turns.leave(*own);
    }
    match ended {
        Ok(result) => End::Done(result, actor.stored),
        Err(payload) if is_death(&*payload) => End::Dead,
        Err(payload) => panic::resume_unwind(payload),
    }
}

fn is_death(payload: &(dyn Any + Send)) -> bool {
    payload.is::<Death>()
}

/// What an access is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Load,
    Store,
}

/// A step of this thread. False if it is dead, so that the access has no effect.
pub(crate) fn step(access: Access) -> bool {
    let turns = ACTOR.with(|own| {
        let own = own.borrow();
        own.as_ref().filter(|actor| !actor.is_dead).and_then(|actor| actor.turns.clone())
    });
    if let Some((turns, own)) = turns {
        turns.pass(own);
    }
    let dies = ACTOR.with(|own| {
        let mut own = own.borrow_mut();
        let Some(actor) = own.as_mut() else { return Some(false) };
        if actor.is_dead {
            return None;
        }
        if access == Access::Load {
            return Some(false);
        }
        if actor.stores_left == Some(actor.stored) {
            actor.is_dead = true;
            return Some(true);
        }
        actor.stored += 1;
        Some(false)
    });
    match dies {
        None => false,
        Some(false) => true,
        Some(true) => panic::resume_unwind(Box::new(Death)),
    }
}

/// Who goes on next, by a number that a seed gives: one thread at a time.
pub(crate) struct Turns {
    state: Mutex<State>,
    passed: Condvar,
}

struct State {
    turn: usize,
    here: Vec<bool>,
    seed: u64,
}

/// Something that a thread of [`interleave`] does, and after how many stores it dies.
pub(crate) type Part<'a> = (Option<u64>, Box<dyn FnOnce() + Send + 'a>);

/// Runs all parts, in an order of their steps that the seed decides; says which died.
pub(crate) fn interleave<'a>(seed: u64, parts: Vec<Part<'a>>) -> Vec<bool> {
    let here = vec![true; parts.len()];
    let state = Mutex::new(State { turn: 0, here, seed: seed | 1 });
    let turns = Arc::new(Turns { state, passed: Condvar::new() });
    std::thread::scope(|scope| {
        let spawn = |(own, (stores_left, act)): (usize, Part<'a>)| {
            let turns = Arc::clone(&turns);
            scope.spawn(move || run_in(stores_left, Some((turns, own)), act) == End::Dead)
        };
        let threads: Vec<_> = parts.into_iter().enumerate().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().expect("no part panics")).collect()
    })
}

impl Turns {
    /// Gives the turn to anyone, and waits for the own one.
    fn pass(&self, own: usize) {
        let mut state = self.state.lock().expect("nobody panics with it");
        while state.turn != own {
            state = self.passed.wait(state).expect("nobody panics with it");
        }
        state.choose();
        if state.turn != own {
            self.passed.notify_all();
        }
        while state.turn != own {
            state = self.passed.wait(state).expect("nobody panics with it");
        }
    }

    fn leave(&self, own: usize) {
        let mut state = self.state.lock().expect("nobody panics with it");
        state.here[own] = false;
        if state.turn == own {
            state.choose();
        }
        self.passed.notify_all();
    }
}

impl State {
    fn choose(&mut self) {
        let here: Vec<usize> = (0..self.here.len()).filter(|own| self.here[*own]).collect();
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        if !here.is_empty() {
            let number = usize::try_from(self.seed >> 40).expect("24 bits");
            self.turn = here[number % here.len()];
        }
    }
}

macro_rules! stepped {
    ($name:ident, $value:ty) => {
        #[derive(Debug, Default)]
        #[repr(transparent)]
        #[allow(missing_docs, reason = "as the processor's")]
        pub struct $name(atomic::$name);

        #[allow(missing_docs, clippy::missing_errors_doc, reason = "as the processor's")]
        impl $name {
            pub const fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            pub fn load(&self, order: Ordering) -> $value {
                step(Access::Load);
                self.0.load(order)
            }

            pub fn store(&self, value: $value, order: Ordering) {
                if step(Access::Store) {
                    self.0.store(value, order);
                }
            }

            pub fn swap(&self, value: $value, order: Ordering) -> $value {
                if step(Access::Store) { self.0.swap(value, order) } else { value }
            }

            pub fn fetch_or(&self, value: $value, order: Ordering) -> $value {
                if step(Access::Store) { self.0.fetch_or(value, order) } else { value }
            }

            pub fn compare_exchange(
                &self,
                expected: $value,
                desired: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                if !step(Access::Store) {
                    return Ok(expected);
                }
                self.0.compare_exchange(expected, desired, success, failure)
            }
        }

        impl Deref for $name {
            type Target = atomic::$name;
            fn deref(&self) -> &atomic::$name {
                &self.0
            }
        }
    };
}
stepped!(AtomicU32, u32);
stepped!(AtomicU64, u64);

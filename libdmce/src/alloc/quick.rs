//! The two shortest calls there are: what a program allocates and frees without anything being in
//! the way.
//!
//! ```text
//!   thread -> its gate for the key -> heap -> slab in use, or slab that was freed from last
//! ```
//!
//! The session is named by its key alone, and only the open gate tells that there is one. So these
//! functions need no handle, no lock and no session, call nothing, and cannot panic; what they do
//! not do is left to [`crate::session`] as if they had not been called.
//!
//! # Invariants
//!
//! 1. A key that no session has, is no more, or belongs to a parent's session opens no gate.
//! 2. What is returned as done was done inside the gate; else nothing was done.

use dmce_shm::Fence;

use super::class::Class;
use super::gate::{Errand, Gate, Key};
use super::gates;
use super::link::Held;

/// Allocates `bytes` in the session that has the key. 0: nothing has been done.
#[doc(hidden)]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one of the two shortest calls there are")]
#[must_use]
pub fn malloc(key: usize, bytes: u64) -> u64 {
    let Some(class) = Class::natural(bytes) else { return 0 };
    let Some((gate, key)) = gate(key) else { return 0 };
    let Some(inside) = gate.enter(key, Errand::Take, Fence::Asymmetric) else { return 0 };
    let taken = inside.heap().take_at_once(class, Held::inside(&inside));
    taken.map_or(0, |taken| taken.addr)
}

/// Frees what begins at an address of the session that has the key. False: nothing has been done.
#[doc(hidden)]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one of the two shortest calls there are")]
#[must_use]
pub fn free(key: usize, addr: u64) -> bool {
    let Some((gate, key)) = gate(key) else { return false };
    let Some(inside) = gate.enter(key, Errand::Give, Fence::Asymmetric) else { return false };
    inside.heap().give_at_once(addr, Held::inside(&inside))
}

/// [`free`] of what that leaves: what another thread allocated.
#[doc(hidden)]
#[must_use]
pub fn free_rest(key: usize, addr: u64) -> bool {
    let Some((gate, key)) = gate(key) else { return false };
    let Some(inside) = gate.enter(key, Errand::Give, Fence::Asymmetric) else { return false };
    inside.heap().give_again(addr, Held::inside(&inside))
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
fn gate(key: usize) -> Option<(&'static Gate, Key)> {
    let key = Key::new(key)?;
    Some((&gates::of_this_thread(key)?.gate, key))
}

#[cfg(test)]
mod tests {
    use super::super::gates::{GATES, Set};
    use super::super::users::{ALL, Users, add_block, new_allocator};
    use super::super::{KIND_BITS, Kind, Moment, Owner, Shape};
    use super::*;
    use crate::thread;

    const BYTES: u64 = 48;

    /// With a slab of slot 0, of which the first object is taken.
    fn users() -> (Users, u64) {
        let users = Users::new();
        add_block(&users.allocator);
        let start = open(&users);
        (users, start)
    }

    /// Allocates so that the gate of slot 0 is open.
    fn open(users: &Users) -> u64 {
        let wish = (Kind::default(), Shape::of(BYTES, 16).unwrap());
        let allocated = users.allocator.allocate(Some(users.owner(0)), wish, || ALL, 0);
        allocated.taken.unwrap().addr
    }

    #[test]
    fn frees_what_begins_there_once_and_allocates_it_again() {
        let (users, start) = users();
        let malloc = |bytes| users.quickly(Some(0), |key| malloc(key, bytes)).unwrap();
        let free = |slot, addr| users.quickly(Some(slot), |key| free(key, addr)).unwrap();
        assert!(!free(0, start), "the slab is not known yet");
        assert!(users.free(0, start, 0));
        assert_eq!(malloc(BYTES), start);
        for near in [start + 1, start + 16, start + 47, start - 48, start + 48, 0, u64::MAX] {
            assert!(!free(0, near), "{near:#x}");
        }
        assert!(!free(1, start), "it is another thread's");
        assert!(free(0, start));
        assert!(!free(0, start), "it was freed twice");
        assert_eq!([malloc(BYTES), malloc(33)], [start, start + 48]);
        for bytes in [0, 32, 49, (32 << 10) + 1, u64::MAX] {
            assert_eq!(malloc(bytes), 0, "{bytes}");
        }
    }

    #[test]
    fn is_for_who_has_the_key_while_the_gate_is_open() {
        let (users, _) = users();
        let other = Users::new().key.number();
        let malloc_as = |key| users.quickly(Some(0), |_| malloc(key, BYTES)).unwrap();
        let look = || users.allocator.look(Moment { now: 1_000, idle_ms: 1_000 });
        let shuts: [&dyn Fn(); 3] =
            [&|| users.allocator.shut_gates(), &|| users.allocator.reclaim(0), &|| {
                assert!(look().is_some(), "it was used");
            }];
        let key = users.key.number();
        for shut in shuts {
            let wrong = [0, 1, 2, 3, other, key ^ 1, key + (GATES << KIND_BITS), !key, usize::MAX];
            assert!(wrong.iter().all(|&wrong| malloc_as(wrong) == 0));
            assert_ne!(malloc_as(key), 0);
            shut();
            assert_eq!(malloc_as(key), 0);
            open(&users);
        }
        assert_eq!(users.quickly(Some(1), |key| malloc(key, BYTES)), Some(0), "another thread");
        assert_eq!(malloc(key, BYTES), 0, "a thread without gates");
    }

    #[test]
    fn what_was_freed_from_by_others_is_freed_by_them_and_the_home_in_other_ways() {
        let (users, start) = users();
        let free = |addr| users.quickly(Some(0), |key| free(key, addr)).unwrap();
        let [second, third] = [open(&users), open(&users)];
        assert!(users.free(0, second, 0));
        assert!(users.free(1, start, 0), "another thread, which ends the bias");
        assert!(!free(third), "a plain store could meet a claim");
        assert!(users.free(0, third, 0));
        assert_eq!(users.allocator.usage().live, 0);
    }

    #[test]
    fn another_thread_frees_from_the_slab_that_it_freed_from_last_until_something_is_gone() {
        let (users, start) = users();
        let free_rest = |slot, addr| users.quickly(Some(slot), |key| free_rest(key, addr)).unwrap();
        let addrs: Vec<u64> = (0..4).map(|_| open(&users)).collect();
        assert!(!free_rest(1, addrs[0]), "the slab is not known yet");
        assert!(users.free(1, addrs[0], 0), "the way past the directory");
        for near in [addrs[0], addrs[1] + 1, start - 48, 0, u64::MAX] {
            assert!(!free_rest(1, near), "{near:#x}");
        }
        assert!(free_rest(1, addrs[1]));
        assert!(!free_rest(1, addrs[1]), "it was freed twice");
        assert!(!free_rest(0, addrs[2]), "at home");
        assert!(!free_rest(2, addrs[2]), "a thread that has not freed from it");
        assert_eq!(users.allocator.usage().live, 3);

        // Another slab goes: what was found before is not followed any more, be it there or not.
        let open_of = |slot, bytes| {
            let wish = (Kind::default(), Shape::of(bytes, 16).unwrap());
            users.allocator.allocate(Some(users.owner(slot)), wish, || ALL, 0).taken.unwrap().addr
        };
        let other = open_of(3, 32 << 10);
        assert!(users.free(3, other, 0));
        users.allocator.reclaim(0);
        open_of(1, 32 << 10);
        assert!(!free_rest(1, addrs[2]), "the slab has to be found anew");
        assert!(users.free(1, addrs[2], 0));
        assert!(free_rest(1, addrs[3]));
    }

    #[test]
    fn ends_with_the_allocator() {
        let set = Set::take().unwrap();
        let key = Key::new(7 << KIND_BITS).unwrap();
        let allocator = new_allocator();
        add_block(&allocator);
        thread::set_gates(Some(set.gates()));
        let gate = thread::gate(key).unwrap();
        let owner = Owner { heap: allocator.heap(0), gate, key };
        let wish = (Kind::default(), Shape::of(BYTES, 16).unwrap());
        let taken = allocator.allocate(Some(owner), wish, || ALL, 0).taken.unwrap();
        assert_eq!(malloc(key.number(), BYTES), taken.addr + 48);
        drop(allocator);
        assert_eq!(malloc(key.number(), BYTES), 0);
        assert!(!free(key.number(), taken.addr));
        thread::set_gates(None);
        set.give();
    }
}

//! The gates and doors of a process: a set for each thread, in pages that a forked child finds
//! wiped.
//!
//! ```text
//!   page, wiped on fork:   | 4 gates, 4 doors of a thread | 4 gates, 4 doors | ..
//!                               ^
//!   ordinary memory:          [`Set`] -> [`Set`] -> ..     one for each, in a list
//!
//!   a thread, by its number -> place in a table: | number | gates |
//! ```
//!
//! A thread has its gates as a thread-local as well. Those of a shared library are found by a call,
//! though, before which a function has to save what it was given: half of what a small allocation
//! would cost.
//!
//! # Invariants
//!
//! 1. Pages and sets are never freed, only given back, so a gate may be looked at for ever, and the
//!    list walked without a lock.
//! 2. In a forked child all gates and doors are shut: the words of all are 0. Its one thread goes
//!    on with its own set; those of the other threads stay taken.
//! 3. A place with the number of a running thread is that thread's: it alone has stored the number,
//!    after the gates, and takes it away before it ends. The place of a thread that a forked child
//!    does not have is there for a thread with the same number.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use dmce_sys::map::WipedPage;
use dmce_sys::thread;

use super::gate::{Gate, Key};
use crate::door::Door;
use crate::table::Table;

/// Gates of a thread, and doors: so many sessions it can use in turn without opening one anew.
pub(super) const GATES: usize = 4;

/// The gates of one thread, and its doors.
#[repr(C)]
pub(crate) struct Gates {
    gates: [Gate; GATES],
    doors: [Door<Table>; GATES],
}

impl Gates {
    /// The gate for the session that has a key.
    #[inline]
    pub(crate) fn of(&self, key: Key) -> &Gate {
        &self.gates[key.low_bits() % GATES]
    }

    /// The door to the session that has a key.
    #[inline]
    pub(crate) fn door(&self, key: Key) -> &Door<Table> {
        &self.doors[key.low_bits() % GATES]
    }

    /// Shuts all of them. Anybody may.
    pub(crate) fn shut(&self) {
        self.gates.iter().for_each(Gate::shut);
        self.doors.iter().for_each(Door::shut);
    }
}

/// Where a set of gates is, and whether a thread has it.
pub(crate) struct Set {
    gates: &'static Gates,
    taken: AtomicBool,
    /// The set that was made before it. Never changes once the set is in the list.
    next: AtomicPtr<Set>,
}

/// The set that was made last.
static NEWEST: AtomicPtr<Set> = AtomicPtr::new(ptr::null_mut());

impl Set {
    /// One for this thread; `None` if there is no memory for more.
    pub(crate) fn take() -> Option<&'static Self> {
        take_free().or_else(|| {
            add_page()?;
            take_free()
        })
    }

    /// Its gates.
    pub(crate) fn gates(&self) -> &'static Gates {
        self.gates
    }

    /// Gives it back. Its gates are shut, and nobody is inside.
    pub(crate) fn give(&self) {
        self.gates.shut();
        // Release pairs with the acquire in `take_free`.
        self.taken.store(false, Ordering::Release);
    }
}

/// Where a thread says which gates are its own.
struct Place {
    /// The thread's number, or one of the two below.
    thread: AtomicUsize,
    gates: AtomicPtr<Gates>,
}

/// A place that nobody has.
const FREE: usize = 0;
/// A place whose thread is about to store its number.
const CLAIMED: usize = 1;

const PLACES_BITS: u32 = 10;

static PLACES: [Place; 1 << PLACES_BITS] =
    [const { Place { thread: AtomicUsize::new(FREE), gates: AtomicPtr::new(ptr::null_mut()) } };
        1 << PLACES_BITS];

/// The gates of this thread, if it said so and no other one has its place.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
pub(crate) fn of_this_thread() -> Option<&'static Gates> {
    let thread = thread::pointer()?;
    let place = place_of(thread);
    if place.thread.load(Ordering::Relaxed) != thread {
        return None;
    }
    let gates = place.gates.load(Ordering::Relaxed);
    // SAFETY: invariant 3: this thread stored the address of a set.
    unsafe { std::hint::assert_unchecked(!gates.is_null()) };
    // SAFETY: as above, and sets are there for ever.
    Some(unsafe { &*gates })
}

/// Says which gates are this thread's, if its place is free. `None`: none any more.
pub(crate) fn say(gates: Option<&'static Gates>) {
    let Some(thread) = thread::pointer() else { return };
    let place = place_of(thread);
    let claim = |before| {
        // Acquire pairs with the release below, of who had the place before.
        let claimed =
            place.thread.compare_exchange(before, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
        claimed.is_ok()
    };
    if let Some(gates) = gates
        && (claim(thread) || claim(FREE))
    {
        place.gates.store(ptr::from_ref(gates).cast_mut(), Ordering::Relaxed);
        // Release: a signal handler of this thread finds the gates with the number.
        place.thread.store(thread, Ordering::Release);
    } else if gates.is_none() && place.thread.load(Ordering::Relaxed) == thread {
        place.thread.store(FREE, Ordering::Release);
    }
}

#[inline]
fn place_of(thread: usize) -> &'static Place {
    /// Fits an instruction.
    const FACTOR: usize = 0x1e35_a7bd;
    /// From here up all bits of a product tell, and below they tell neighbours apart.
    const SHIFT: u32 = if usize::BITS == 64 { 36 } else { usize::BITS - PLACES_BITS };
    &PLACES[thread.wrapping_mul(FACTOR) >> SHIFT & (PLACES.len() - 1)]
}

fn take_free() -> Option<&'static Set> {
    sets().find(|set| !set.taken.swap(true, Ordering::Acquire))
}

fn sets() -> impl Iterator<Item = &'static Set> {
    // Acquire pairs with the release in `push`: who finds a set sees it made.
    let newest = set_at(NEWEST.load(Ordering::Acquire));
    std::iter::successors(newest, |set| set_at(set.next.load(Ordering::Relaxed)))
}

fn set_at(pointer: *mut Set) -> Option<&'static Set> {
    // SAFETY: null, or a set that `push` leaked; all that is changed in it is atomic.
    unsafe { pointer.as_ref() }
}

/// Adds the sets of a fresh page.
#[allow(clippy::cast_ptr_alignment, reason = "a page is aligned for any gate")]
fn add_page() -> Option<()> {
    let page: &'static WipedPage = Box::leak(Box::new(WipedPage::new().ok()?));
    for place in 0..page.bytes() / size_of::<Gates>() {
        let start = page.as_ptr().wrapping_add(place * size_of::<Gates>()).cast::<Gates>();
        // SAFETY: inside the page, which is mapped for ever, at a multiple of the alignment, which
        // divides the page's. Zero is a gate that is shut, and the kernel may make it zero again
        // only in a child. What is changed in it is atomic.
        push(unsafe { &*start });
    }
    Some(())
}

fn push(gates: &'static Gates) {
    let next = AtomicPtr::new(NEWEST.load(Ordering::Relaxed));
    let set = Box::leak(Box::new(Set { gates, taken: AtomicBool::new(false), next }));
    let mut newest = set.next.load(Ordering::Relaxed);
    loop {
        set.next.store(newest, Ordering::Relaxed);
        let new = ptr::from_ref(set).cast_mut();
        match NEWEST.compare_exchange_weak(newest, new, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(found) => newest = found,
        }
    }
}

#[cfg(test)]
mod tests {
    use dmce_shm::Fence;

    use super::super::gate::{Errand, Permits};
    use super::*;

    const ALL: Permits = Permits { take: true, give: true };

    #[test]
    fn sets_are_used_again_and_come_back_shut() {
        let key = Key::new(9).unwrap();
        let set = Set::take().unwrap();
        let gate = set.gates().of(key);
        gate.open(key, ptr::null(), ALL, Fence::Full);
        assert!(gate.enter(key, Errand::Take, Fence::Full).is_some());
        set.give();
        assert!(gate.enter(key, Errand::Take, Fence::Full).is_none());
        let many: Vec<&Set> = (0..200).map(|_| Set::take().unwrap()).collect();
        let mut places: Vec<*const Gates> =
            many.iter().map(|set| ptr::from_ref(set.gates())).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), many.len());
        many.into_iter().for_each(Set::give);
    }

    #[test]
    fn a_thread_finds_what_it_said_and_no_other_one_does() {
        let of_thread = || of_this_thread().map(ptr::from_ref);
        let sets = [Set::take().unwrap(), Set::take().unwrap()];
        for set in sets {
            let gates = set.gates();
            say(Some(gates));
            // Another thread of this process may have the place.
            let found = of_thread();
            assert!(found.is_none_or(|found| ptr::eq(found, gates)));
            assert_eq!(of_thread(), found);
            let elsewhere =
                std::thread::scope(|scope| scope.spawn(|| of_this_thread().is_none()).join());
            assert!(elsewhere.unwrap());
        }
        say(None);
        assert!(of_this_thread().is_none());
        for set in sets {
            set.give();
        }
    }

    #[test]
    fn numbers_of_neighbouring_stacks_have_places_of_their_own() {
        for distance in [0x80_1000, 0x80_0000, 0x2_1000, 0x1000] {
            let starts = (0..64).map(|thread| 0x7f00_0000_usize + thread * distance);
            let mut places: Vec<*const Place> =
                starts.map(|at| ptr::from_ref(place_of(at))).collect();
            places.sort_unstable();
            places.dedup();
            assert!(places.len() >= 56, "{} places at {distance:#x}", places.len());
        }
    }

    #[test]
    fn a_forked_child_finds_every_gate_shut() {
        let key = Key::new(5).unwrap();
        let set = Set::take().unwrap();
        let gate = set.gates().of(key);
        gate.open(key, ptr::null(), ALL, Fence::Asymmetric);
        let passes = || {
            let errands = [Errand::Take, Errand::Give];
            errands.map(|errand| gate.enter(key, errand, Fence::Asymmetric).is_some())
        };
        assert_eq!(passes(), [true, true]);
        // SAFETY: the child only loads, stores and exits: nothing that a lock of another thread
        // could hold up.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            let code = i32::from(passes() == [false, false]);
            // SAFETY: ends the child at once, without running anything of the parent's.
            unsafe { libc::_exit(code) };
        }
        let mut status = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        assert_eq!(libc::WEXITSTATUS(status), 1);
        assert_eq!(passes(), [true, true]);
        set.give();
    }
}

//! The gates and doors of a process: a set for each thread, in pages that a forked child finds
//! wiped.
//!
//! ```text
//!   page, wiped on fork:   | gate, door | gate, door | gate, door | gate, door | ..
//!                            ^ a thread's: a pair for each session that it uses
//!   ordinary memory:       [`Set`] -> [`Set`] -> ..     one for each thread, in a list
//!
//!   a thread's number, a session's key -> place in a table: | number | pair |
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
//! 3. A place with the number of a running thread is that thread's, and leads to a pair of its own:
//!    it alone has stored the number, after the pair, and takes it away before it ends. Whether the
//!    pair is open for a key, only the pair tells. The place of a thread that a forked child does
//!    not have leads to a pair that stays shut, until a thread with the same number says another.

use std::cell::Cell;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

use dmce_sys::map::WipedPage;
use dmce_sys::thread;

use super::gate::{Gate, KIND_BITS, Key};
use crate::door::Door;
use crate::table::Table;

/// Gates of a thread, and doors: so many sessions it can use in turn without opening one anew.
pub(crate) const GATES: usize = 4;

/// What a thread passes on its way into a session.
#[repr(C)]
pub(crate) struct Pair {
    /// To its objects.
    pub gate: Gate,
    /// To its blocks.
    pub door: Door<Table>,
}

/// The gates of one thread, and its doors.
#[repr(C)]
pub(crate) struct Gates {
    pairs: [Pair; GATES],
}

impl Pair {
    /// Shuts both. Anybody may.
    pub(crate) fn shut(&self) {
        self.gate.shut();
        self.door.shut();
    }
}

impl Gates {
    /// The pair for the session that has a key.
    #[inline]
    pub(crate) fn of(&self, key: Key) -> &Pair {
        &self.pairs[Self::place_of(key)]
    }

    /// Which of a thread's pairs that is.
    #[inline]
    pub(crate) const fn place_of(key: Key) -> usize {
        key.low_bits() % GATES
    }

    /// Shuts all of them. Anybody may.
    pub(crate) fn shut(&self) {
        self.pairs.iter().for_each(Pair::shut);
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

/// Where a thread says which pair is its own for a session.
pub(crate) struct Place {
    /// The thread's number, or one of the two below.
    thread: AtomicUsize,
    pair: AtomicPtr<Pair>,
}

/// A place that nobody has.
const FREE: usize = 0;
/// A place whose thread is about to store its number.
const CLAIMED: usize = 1;

const PLACES_BITS: u32 = 10;

static PLACES: [Place; 1 << PLACES_BITS] =
    [const { Place { thread: AtomicUsize::new(FREE), pair: AtomicPtr::new(ptr::null_mut()) } };
        1 << PLACES_BITS];

/// The pair of this thread for a key, if it said so and no other one has its place. It may be for
/// another key.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
pub(crate) fn of_this_thread(key: Key) -> Option<&'static Pair> {
    let thread = thread::pointer()?;
    let place = place_of(thread, key);
    if place.thread.load(Ordering::Relaxed) != thread {
        return None;
    }
    let pair = place.pair.load(Ordering::Relaxed);
    // SAFETY: invariant 3: this thread stored the address of a pair.
    unsafe { std::hint::assert_unchecked(!pair.is_null()) };
    // SAFETY: as above, and sets are there for ever.
    Some(unsafe { &*pair })
}

/// Says which pair is this thread's for a key, if the place is free. `said` is the thread's own:
/// the place of the key that the pair was for before, which is given back.
#[inline]
pub(crate) fn say(key: Key, pair: &'static Pair, said: &Cell<Said>) {
    let Some(thread) = thread::pointer() else { return };
    let place = place_of(thread, key);
    if place.thread.load(Ordering::Relaxed) == thread {
        place.pair.store(ptr::from_ref(pair).cast_mut(), Ordering::Relaxed);
    } else {
        claim(thread, place, pair, said);
    }
}

/// A place that a thread has said a pair in; none at first.
pub(crate) type Said = Option<&'static Place>;

#[cold]
fn claim(thread: usize, place: &'static Place, pair: &'static Pair, said: &Cell<Said>) {
    if let Some(before) = said.replace(Some(place)) {
        before.leave(thread);
    }
    // Acquire pairs with the release in `leave`, of who had the place before.
    let claimed =
        place.thread.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
    if claimed.is_ok() {
        place.pair.store(ptr::from_ref(pair).cast_mut(), Ordering::Relaxed);
        // Release: a signal handler of this thread finds the pair with the number.
        place.thread.store(thread, Ordering::Release);
    }
}

/// Gives back all places of this thread, which is about to give its gates back.
pub(crate) fn say_no_more() {
    let Some(thread) = thread::pointer() else { return };
    // All of them: a signal handler may have said something in the middle of a `claim`.
    for place in &PLACES {
        place.leave(thread);
    }
}

impl Place {
    fn leave(&self, thread: usize) {
        if self.thread.load(Ordering::Relaxed) == thread {
            self.thread.store(FREE, Ordering::Release);
        }
    }
}

/// Neighbours in the table are for sessions that a thread uses in turn.
#[inline]
fn place_of(thread: usize, key: Key) -> &'static Place {
    /// Fits an instruction.
    const FACTOR: usize = 0x1e35_a7bd;
    /// From here up all bits of a product tell, and below they tell neighbours apart.
    const SHIFT: u32 = if usize::BITS == 64 { 36 } else { usize::BITS - PLACES_BITS };
    /// Reckoned in bytes from the first place, which saves two instructions.
    const PLACE_BITS: u32 = size_of::<Place>().trailing_zeros();
    const BYTES: usize = (PLACES.len() - 1) << PLACE_BITS;
    const _: () = assert!(size_of::<Place>().is_power_of_two());
    let of_thread = thread.wrapping_mul(FACTOR) >> (SHIFT - PLACE_BITS);
    let of_key = key.number() << (PLACE_BITS - KIND_BITS);
    let place = PLACES.as_ptr().wrapping_byte_add(of_thread.wrapping_add(of_key) & BYTES);
    // SAFETY: a whole number of places behind the first, and fewer than there are.
    unsafe { &*place }
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
        let gate = &set.gates().of(key).gate;
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
        let keys = [5, 9].map(|number| Key::new(number << 2).unwrap());
        let of_thread = |key| of_this_thread(key).map(ptr::from_ref);
        let sets = [Set::take().unwrap(), Set::take().unwrap()];
        let said = [const { Cell::new(None) }; 2];
        for set in sets {
            for (key, said) in keys.into_iter().zip(&said) {
                let pair = set.gates().of(key);
                say(key, pair, said);
                // Another thread of this process may have the place.
                let found = of_thread(key);
                assert!(found.is_none_or(|found| ptr::eq(found, pair)));
                let elsewhere = || of_this_thread(key).is_none();
                let elsewhere = std::thread::scope(|scope| scope.spawn(elsewhere).join());
                assert!(elsewhere.unwrap());
            }
        }
        say_no_more();
        assert!(keys.iter().all(|&key| of_this_thread(key).is_none()));
        for set in sets {
            set.give();
        }
    }

    #[test]
    fn a_thread_that_uses_many_sessions_in_turn_keeps_few_places() {
        let set = Set::take().unwrap();
        let said = [const { Cell::new(None) }; GATES];
        let number = thread::pointer().unwrap_or(0);
        for key in (1..5_000).map(|number| Key::new(number << 2).unwrap()) {
            say(key, set.gates().of(key), &said[Gates::place_of(key)]);
        }
        let own = PLACES.iter().filter(|place| place.thread.load(Ordering::Relaxed) == number);
        assert!(own.count() <= GATES);
        say_no_more();
        set.give();
    }

    #[test]
    fn numbers_of_neighbouring_stacks_have_places_of_their_own() {
        for (distance, keys) in [(0x80_1000, 1), (0x80_0000, 1), (0x2_1000, 1), (0x1000, 4)] {
            let threads = (0..64 / keys).map(|thread| 0x7f00_0000_usize + thread * distance);
            let each = |thread| (1..=keys).map(move |key| (thread, Key::new(key << 2).unwrap()));
            let all = threads.flat_map(each).map(|(thread, key)| place_of(thread, key));
            let mut places: Vec<*const Place> = all.map(ptr::from_ref).collect();
            places.sort_unstable();
            places.dedup();
            assert!(places.len() >= 56, "{} places at {distance:#x}", places.len());
        }
    }

    #[test]
    fn a_forked_child_finds_every_gate_shut() {
        let key = Key::new(5).unwrap();
        let set = Set::take().unwrap();
        let gate = &set.gates().of(key).gate;
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

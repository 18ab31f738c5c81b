//! The gates of a process: a set for each thread, in pages that a forked child finds wiped.
//!
//! ```text
//!   page, wiped on fork:   | 4 gates of a thread | 4 gates | ..
//!                               ^
//!   ordinary memory:          [`Set`] -> [`Set`] -> ..     one for each, in a list
//! ```
//!
//! # Invariants
//!
//! 1. Pages and sets are never freed, only given back, so a gate may be looked at for ever, and the
//!    list walked without a lock.
//! 2. In a forked child all gates are shut: the words of all are 0. Its one thread goes on with its
//!    own set; those of the other threads stay taken.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use dmce_sys::map::WipedPage;

use super::gate::{Gate, Key};

/// Gates of a thread: so many sessions it can use in turn without opening one anew.
pub(super) const GATES: usize = 4;

/// The gates of one thread.
#[repr(transparent)]
pub(crate) struct Gates([Gate; GATES]);

impl Gates {
    /// The gate for the session that has a key.
    #[inline]
    pub(crate) fn of(&self, key: Key) -> &Gate {
        &self.0[key.low_bits() % GATES]
    }

    /// Shuts all of them. Anybody may.
    pub(crate) fn shut(&self) {
        self.0.iter().for_each(Gate::shut);
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

//! A heap: the slabs that one thread allocates from, or that lie in the depot.
//!
//! ```text
//!   bin of a class:  first -> slab <-> slab <-> ..    those with room, and the one in use
//!   returned:        slab -> slab -> ..               those to which others gave objects back
//! ```
//!
//! What a thread frees of its own heap goes back to its slab; what it frees of another's goes there
//! too, by way of the slab's returned objects. So a heap's free memory is in its slabs, and no
//! object is ever kept for a thread that does not allocate its size.
//!
//! # Invariants
//!
//! 1. But for the list of returned slabs and the sums, a heap is used by its owner inside a gate
//!    that leads to it, or under the depot's lock: by the owner, or while the gate is shut. A heap
//!    of the depot is used under its lock alone.
//! 2. A slab that has room is listed in the bin of its home. Of those that have none, only the
//!    first may be. A frozen one is not listed.
//! 3. `recent` names a slab of this heap that is listed and biased.
//! 4. What is allocated is `live` of all heaps together, counted round and round, and what their
//!    slabs have not counted: who allocates counts up and who frees counts down, each in its own
//!    heap. Only the first slab of a bin and the recent one may have more or less used than was
//!    counted, so that the shortest calls need not count. Those are counted when they cease to be
//!    that, and when objects come back: so it is never more than a slab's objects.
//! 5. While the gate is shut the owner uses its heap only after [`Heap::open`], which says so in
//!    `used`: who shuts the gate, and finds the owner outside, can tell later whether it came back.

use std::ptr;
use std::sync::Arc;

use dmce_abi::limits::{PAGE_BYTES, SLOTS};
use dmce_shm::Fence;
use dmce_shm::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering, fence};

use super::class::{CLASSES, Class};
use super::gate::{self, Gate, Key, Mark, Permits};
use super::heaps::Heaps;
use super::link::{Buried, Held, Link, Memo};
use super::slab::{Slab, Taken};

/// Bytes of listed slabs that a heap may have of a class before it gives empty ones back at once.
const KEPT_BYTES: u64 = 4 << 20;
/// Slabs of a class that it may have in any case.
const KEPT_MIN: usize = 4;
/// So often the sums are read anew of a heap whose owner changes them meanwhile.
const LOOKS_MAX: u32 = 8;
/// After so many slabs of a class were freed from by others since it was tidied, new ones are
/// shared from the first.
const ENDED_MAX: usize = 4;

/// The slabs of one owner.
#[derive(Debug)]
pub(crate) struct Heap {
    /// Its place among all heaps.
    pub index: u32,
    /// The gate of its owner, or of an earlier one: null before it was opened. Stored under the
    /// depot's lock.
    gate: AtomicPtr<Gate>,
    /// Whether it was opened since it was shut to be summed up, and since it was tidied: each 0 or
    /// 1, under the depot's lock.
    used: [AtomicU8; 2],
    /// The slab that the owner freed an object of last.
    recent: Link,
    /// Another heap's, that it freed an object of last.
    foreign: Memo,
    /// Things that were buried, in all.
    buried: Arc<AtomicUsize>,
    /// Slabs with objects that others gave back. Pushed by anybody, taken by the owner.
    returned: Link,
    /// Slabs that are to be given back to their blocks.
    surplus: Link,
    /// Of each class the slab in use, and those with room behind it.
    firsts: [Link; CLASSES],
    bins: [Bin; CLASSES],
}

/// What else is to be said of a class.
#[derive(Debug)]
struct Bin {
    /// How many slabs are listed.
    listed: AtomicUsize,
    /// Objects that were allocated here less those that were freed here, as far as counted.
    live: AtomicUsize,
    /// How many slabs of it lost their bias of late. Under the depot's lock.
    ended: AtomicUsize,
}

/// A thread as the allocator of a session knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    /// Its heap.
    pub heap: &'a Heap,
    /// Its gate for the session.
    pub gate: &'static Gate,
    /// The session's key.
    pub key: Key,
}

/// Since when a heap was used or not.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Since {
    /// Since what is allocated was summed up.
    SummedUp,
    /// Since its slabs were tidied up.
    Tidied,
}

/// What became of a free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Given {
    /// Done.
    Done,
    /// Done; the heap has slabs now that are to be given back.
    Surplus,
    /// No object that is allocated begins there.
    Refused,
    /// Another heap's slab, whose bias has to be ended first.
    Biased,
    /// Nothing of a slab.
    Elsewhere,
}

impl Heap {
    /// One without slabs.
    pub(crate) fn new(index: u32, buried: Arc<AtomicUsize>) -> Self {
        let bin = || Bin {
            listed: AtomicUsize::new(0),
            live: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        };
        Self {
            index,
            gate: AtomicPtr::new(ptr::null_mut()),
            used: std::array::from_fn(|_| AtomicU8::new(0)),
            recent: Link::none(),
            foreign: Memo::none(),
            buried,
            returned: Link::none(),
            surplus: Link::none(),
            firsts: std::array::from_fn(|_| Link::none()),
            bins: std::array::from_fn(|_| bin()),
        }
    }

    /// Opens its owner's gate. Under the depot's lock. True if it is the first time since it was
    /// shut to be summed up.
    pub(crate) fn open(&self, owner: &Owner<'_>, permits: Permits, fence: Fence) -> bool {
        self.gate.store(ptr::from_ref(owner.gate).cast_mut(), Ordering::Relaxed);
        owner.gate.open(owner.key, self, permits, fence);
        self.set_used(Since::Tidied, true);
        !self.set_used(Since::SummedUp, true)
    }

    /// Shuts its owner's gate, as [`Gate::shut`] does. Under the depot's lock.
    pub(crate) fn shut(&self) {
        if let Some(gate) = self.gate() {
            gate.shut();
        }
    }

    /// Waits until its owner is outside, as [`gate::wait_outside`] does.
    pub(crate) fn wait_outside(&self) {
        if let Some(gate) = self.gate() {
            gate::wait_outside(gate);
        }
    }

    /// The mark of its owner's gate.
    pub(crate) fn mark(&self) -> Mark {
        self.gate().map_or(Mark::NEVER, Gate::mark)
    }

    fn gate(&self) -> Option<&'static Gate> {
        // SAFETY: null, or a gate that `open` was given for ever.
        unsafe { self.gate.load(Ordering::Relaxed).as_ref() }
    }

    /// Whether it was used since something. Under the depot's lock.
    pub(crate) fn is_used(&self, since: Since) -> bool {
        self.used[since as usize].load(Ordering::Relaxed) != 0
    }

    /// Says whether it was used since something, and returns what was said before. Under the
    /// depot's lock.
    pub(crate) fn set_used(&self, since: Since, is_used: bool) -> bool {
        let before = self.is_used(since);
        self.used[since as usize].store(is_used.into(), Ordering::Relaxed);
        before
    }

    /// Takes an object, if the slab in use has one: what is inlined into the call of a program. No
    /// function is called in it.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    pub(crate) fn take_at_once(&self, class: Class, held: Held<'_>) -> Option<Taken> {
        self.firsts.get(class.index())?.get(held)?.take()
    }

    /// Takes an object, if a slab has one that is listed.
    pub(crate) fn take(&self, class: Class, heaps: &Heaps, held: Held<'_>) -> Option<Taken> {
        if let Some(taken) = self.take_at_once(class, held) {
            return Some(taken);
        }
        // A heap keeps few slabs of large objects. Many that others gave back, and that it took in
        // later all at once, it would give back to their blocks, and need new ones soon.
        if u64::from(class.object_bytes()) >= PAGE_BYTES {
            self.collect(heaps, held);
        }
        while let Some(slab) = self.first(class, held) {
            if let Some(taken) = slab.take() {
                return Some(taken);
            }
            self.unlist(slab, held);
        }
        None
    }

    /// Looks for a slab with room: among those that others gave objects back to, and those that
    /// are listed. False if there is none.
    pub(crate) fn renew(&self, class: Class, heaps: &Heaps, held: Held<'_>) -> bool {
        self.collect(heaps, held);
        while let Some(slab) = self.first(class, held) {
            if slab.has_room() {
                return true;
            }
            self.unlist(slab, held);
        }
        false
    }

    /// Frees the object that begins at an address, if it is in the slab that the owner freed from
    /// last: what is inlined into the call of a program. No function is called in it. If it is
    /// false nothing has been done. A slab that is empty now is dealt with by a later
    /// [`Heap::give`].
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    #[must_use]
    pub(crate) fn give_at_once(&self, addr: u64, held: Held<'_>) -> bool {
        self.recent.get(held).is_some_and(|slab| slab.give_plainly(addr))
    }

    /// Frees the object that begins at an address.
    pub(crate) fn give(&self, addr: u64, heaps: &Heaps, held: Held<'_>) -> Given {
        let buried = self.buried();
        let Some(slab) = heaps.directory.find(addr, held) else { return Given::Elsewhere };
        if slab.home() == self.index {
            return self.give_home(slab, addr, held);
        }
        if !slab.is_shared() {
            return Given::Biased;
        }
        let Some(home) = heaps.at(slab.home()) else { return Given::Elsewhere };
        self.foreign.set(slab, home, buried);
        if self.bring_back(slab, home, addr) { Given::Done } else { Given::Refused }
    }

    /// Frees the object that begins at an address, if it is in the slab of another heap that the
    /// owner freed from last. If it is false nothing has been done.
    #[must_use]
    pub(crate) fn give_again(&self, addr: u64, held: Held<'_>) -> bool {
        let Some((slab, home)) = self.foreign.get(|| self.buried(), held) else { return false };
        slab.home() == home.index && home.index != self.index && self.bring_back(slab, home, addr)
    }

    /// Frees an object of another heap's slab, which is shared.
    fn bring_back(&self, slab: &Slab, home: &Self, addr: u64) -> bool {
        let Some(index) = slab.index_at(addr).filter(|&index| slab.claim(index)) else {
            return false;
        };
        self.count(slab.class(), -1);
        // It may have another home by now: then this one passes it on.
        if slab.put_back(index) {
            home.push_returned(slab);
        }
        true
    }

    fn buried(&self) -> Buried {
        // Acquire pairs with the release of who counts: nothing that was taken out before is found.
        Buried(self.buried.load(Ordering::Acquire))
    }

    fn give_home(&self, slab: &Slab, addr: u64, held: Held<'_>) -> Given {
        if !slab.index_at(addr).is_some_and(|index| slab.give(index)) {
            return Given::Refused;
        }
        self.settle(slab);
        let before = self.recent.get(held).filter(|before| !ptr::eq(*before, slab));
        self.recent.set(None);
        let of_before = before.map_or(Given::Done, |before| {
            self.settle(before);
            self.place(before, held)
        });
        let given = self.place(slab, held);
        if slab.is_listed() && slab.is_biased() {
            self.recent.set(Some(slab));
        }
        if of_before == Given::Surplus { of_before } else { given }
    }

    /// Lists a slab that has room again; lets one go that is empty, if there are enough others.
    fn place(&self, slab: &Slab, held: Held<'_>) -> Given {
        let class = slab.class();
        if slab.is_listed() && (!slab.is_empty() || self.firsts[class.index()].is(slab)) {
            return Given::Done;
        }
        let is_superfluous = slab.is_empty() && self.bins[class.index()].has_enough(class);
        if slab.is_empty() && (slab.is_frozen() || is_superfluous) {
            self.discard(slab, held);
            return Given::Surplus;
        }
        if !slab.is_listed() && !slab.is_frozen() {
            self.list(slab, held);
        }
        Given::Done
    }

    /// Takes in the objects that others gave back.
    pub(crate) fn collect(&self, heaps: &Heaps, held: Held<'_>) {
        let mut told = self.returned.take(held);
        while let Some(slab) = told {
            // Before the objects are taken: then somebody else may use the link.
            told = slab.next_returned.get(held);
            if slab.home() == self.index {
                slab.collect();
                self.settle(slab);
                self.place(slab, held);
            } else {
                heaps.tell(slab);
            }
        }
    }

    /// Takes a slab in that is at home here.
    pub(crate) fn adopt(&self, slab: &Slab, held: Held<'_>) {
        if slab.has_room() && !slab.is_frozen() {
            self.list(slab, held);
        }
    }

    /// Lets go of a slab of this heap, which stays at home here.
    pub(crate) fn release(&self, slab: &Slab, held: Held<'_>) {
        if slab.is_listed() {
            self.unlist(slab, held);
        }
    }

    /// Lists a slab behind the one in use.
    fn list(&self, slab: &Slab, held: Held<'_>) {
        let class = slab.class().index();
        let first = self.firsts[class].get(held);
        let place = first.map_or(&self.firsts[class], |first| &first.next);
        let behind = place.get(held);
        slab.before.set(first);
        slab.next.set(behind);
        place.set(Some(slab));
        if let Some(behind) = behind {
            behind.before.set(Some(slab));
        }
        slab.set_listed(true);
        self.bins[class].count_listed(1);
    }

    fn unlist(&self, slab: &Slab, held: Held<'_>) {
        let class = slab.class().index();
        let (before, next) = (slab.before.get(held), slab.next.get(held));
        before.map_or(&self.firsts[class], |before| &before.next).set(next);
        if let Some(next) = next {
            next.before.set(before);
        }
        slab.set_listed(false);
        self.bins[class].count_listed(-1);
        self.forget(slab);
    }

    /// Has the owner free from a slab by [`Heap::give`] alone.
    pub(crate) fn forget(&self, slab: &Slab) {
        if self.recent.is(slab) {
            self.recent.set(None);
        }
        self.settle(slab);
    }

    /// Counts what is used of a slab.
    fn settle(&self, slab: &Slab) {
        self.count(slab.class(), slab.count());
    }

    /// Lets go of an empty slab, to be given back to its block.
    pub(crate) fn discard(&self, slab: &Slab, held: Held<'_>) {
        self.release(slab, held);
        slab.next.set(self.surplus.get(held));
        self.surplus.set(Some(slab));
    }

    /// The next slab to give back.
    pub(crate) fn take_surplus<'a>(&self, held: Held<'a>) -> Option<&'a Slab> {
        let slab = self.surplus.get(held)?;
        self.surplus.set(slab.next.get(held));
        Some(slab)
    }

    /// A listed slab of a class.
    pub(crate) fn first<'a>(&self, class: Class, held: Held<'a>) -> Option<&'a Slab> {
        self.firsts[class.index()].get(held)
    }

    /// Lists a slab's objects as returned: for the home to collect.
    pub(crate) fn push_returned(&self, slab: &Slab) {
        self.returned.push(slab, &slab.next_returned);
    }

    /// Whether it is a thread's, and not the depot's.
    pub(crate) fn is_of_thread(&self) -> bool {
        (self.index as usize) < SLOTS
    }

    /// Counts objects that were allocated here, or, below 0, freed.
    pub(crate) fn count(&self, class: Class, change: isize) {
        let Bin { live, .. } = &self.bins[class.index()];
        let sum = live.load(Ordering::Relaxed).wrapping_add_signed(change);
        live.store(sum, Ordering::Relaxed);
    }

    /// Objects of each class that were allocated here less those freed here, counted round. Under
    /// the depot's lock. What the owner does at this moment may be in it or not.
    pub(crate) fn live(&self, held: Held<'_>) -> [usize; CLASSES] {
        let mut looks = 0;
        loop {
            let mark = self.mark();
            let live = self.live_at_once(held);
            // Acquire: the mark is looked at after what was read.
            fence(Ordering::Acquire);
            looks += 1;
            if looks == LOOKS_MAX || mark.is_outside() && mark == self.mark() {
                return live;
            }
        }
    }

    fn live_at_once(&self, held: Held<'_>) -> [usize; CLASSES] {
        let recent = self.recent.get(held);
        std::array::from_fn(|class| {
            let (first, live) = (self.firsts[class].get(held), &self.bins[class].live);
            let recent = recent.filter(|slab| slab.class().index() == class);
            let recent = recent.filter(|slab| first.is_none_or(|first| !ptr::eq(first, *slab)));
            let uncounted: isize = first.into_iter().chain(recent).map(Slab::uncounted).sum();
            live.load(Ordering::Relaxed).wrapping_add_signed(uncounted)
        })
    }

    /// Counts a slab that lost its bias.
    pub(crate) fn count_ended(&self, class: Class) {
        self.bins[class.index()].ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts them anew.
    pub(crate) fn forget_ended(&self, class: Class) {
        self.bins[class.index()].ended.store(0, Ordering::Relaxed);
    }

    /// Whether a new slab of a class is to be this heap's alone until others free from it.
    pub(crate) fn is_biased_to(&self, class: Class) -> bool {
        self.bins[class.index()].ended.load(Ordering::Relaxed) < ENDED_MAX
    }
}

impl Bin {
    fn has_enough(&self, class: Class) -> bool {
        let listed = self.listed.load(Ordering::Relaxed);
        listed > KEPT_MIN && listed as u64 * class.slab_bytes() > KEPT_BYTES
    }

    fn count_listed(&self, change: isize) {
        let listed = self.listed.load(Ordering::Relaxed).wrapping_add_signed(change);
        self.listed.store(listed, Ordering::Relaxed);
    }
}

//! A slab: a run of pages with objects of one size class, and the state of each object.
//!
//! ```text
//! one word an object:   LIVE                 allocated
//!                       LEAVING              freed by a thread that is about to give it back
//!                       index, or END        free: the next of the list that it is in
//!
//!              take (home)                       claim (anybody): compare and swap
//!     free -----------------> LIVE ----------------------------------> LEAVING
//!      ^  ^                    |                                         |
//!      |  +--------------------+ release (home, while biased)            | put back (home), or
//!      |                                                                 | returned (others) ..
//!      +----------------------- collect (home) <---- the returned list <-+
//! ```
//!
//! A slab has a home: the heap that allocates from it. What only the home does it does inside of
//! its gate or while that is shut, with plain loads and stores.
//!
//! # Invariants
//!
//! 1. Of all frees of one allocation exactly one wins. While the slab is *biased* only its home
//!    frees, one after the other. The bias ends while the home's gate is shut and the home outside
//!    of it ([`Slab::share`]): afterwards the home claims as all do, and before that nobody else
//!    does, so a plain store never meets a claim. It never comes back.
//! 2. LIVE becomes something else by a free alone, free becomes LIVE by the home alone. So a word
//!    that says LIVE belongs to the application, and any other refuses a free.
//! 3. `used` counts the objects that are not in the home's own list: also those that were returned
//!    and not yet collected. At 0 nobody but the home has anything to do with the slab.
//! 4. Who returns an object to an empty list of returned ones, and nobody else, tells the home.
//!    The home empties that list only when it was told. So a slab that somebody is about to tell
//!    of is in use.
//! 5. Objects from `fresh` up have never been given out.
//! 6. `counted` is how much of `used` is in the sums of its home ([`super::heap`], invariant 4).
//!    They differ by no more than the slab has objects: who collects counts.

use std::fmt;

use dmce_abi::block::BlockId;
use dmce_shm::atomic::{AtomicPtr, AtomicU8, AtomicU16, AtomicU32, Ordering};

use super::class::{Class, Divider};
use super::link::Link;
use super::pages::Run;

const LIVE: u16 = u16::MAX;
const LEAVING: u16 = u16::MAX - 1;
/// The end of a list; also the word of an object that has never been given out.
const END: u16 = u16::MAX - 2;

const BIASED: u8 = 0;
const SHARED: u8 = 1;

/// Where a slab lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// The address of its first byte.
    pub start: u64,
    /// Its block.
    pub block: BlockId,
    /// Its pages.
    pub run: Run,
    /// Whether none of its bytes was ever used.
    pub zeroed: bool,
}

/// One slab.
pub(crate) struct Slab {
    start: u64,
    words: Box<[AtomicU16]>,
    divider: Divider,
    bytes: u32,
    class: Class,
    /// The home's own list of free objects. The home's alone. An index or `END`, as wide as the
    /// processor reads at once.
    free: AtomicU32,
    /// Objects from here up were never given out. The home's alone.
    fresh: AtomicU32,
    /// The home's alone.
    used: AtomicU16,
    /// The home's alone.
    counted: AtomicU16,
    /// Whether the home's list of slabs has it. The home's alone.
    listed: AtomicU8,
    /// Whether nothing more is to be allocated from it. Stored while the home's gate is shut.
    frozen: AtomicU8,
    /// Stored under the depot's lock, while the home's gate is shut.
    bias: AtomicU8,
    /// The heap that it is at home in. Stored under the depot's lock while the gates of both are
    /// shut, or by their owner.
    home: AtomicU32,
    /// The first of the objects that others have given back. Pushed by anybody, taken by the home.
    returned: AtomicU16,
    /// The next and the one before in the home's list of slabs. The home's alone.
    pub next: Link,
    /// See `next`.
    pub before: Link,
    /// The next in the list of slabs with returned objects. Whose turn it is to tell of them.
    pub next_returned: Link,
    /// What the directory frees it by. The directory's alone.
    pub own: AtomicPtr<Self>,
    site: Site,
}

/// An object that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// The address of its first byte.
    pub addr: u64,
    /// Whether it is zero.
    pub zeroed: bool,
}

impl Slab {
    /// One with no object taken. `biased`: only its home frees, until [`Slab::share`].
    pub(crate) fn new(site: Site, class: Class, home: u32, biased: bool) -> Self {
        let objects = class.objects();
        Self {
            start: site.start,
            words: (0..objects).map(|_| AtomicU16::new(END)).collect(),
            divider: class.divider(),
            bytes: objects * class.object_bytes(),
            class,
            free: AtomicU32::new(END.into()),
            fresh: AtomicU32::new(0),
            used: AtomicU16::new(0),
            counted: AtomicU16::new(0),
            listed: AtomicU8::new(0),
            frozen: AtomicU8::new(0),
            bias: AtomicU8::new(if biased { BIASED } else { SHARED }),
            home: AtomicU32::new(home),
            returned: AtomicU16::new(END),
            next: Link::none(),
            before: Link::none(),
            next_returned: Link::none(),
            own: AtomicPtr::new(std::ptr::null_mut()),
            site,
        }
    }

    /// Takes a free object. The home's alone.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    pub(crate) fn take(&self) -> Option<Taken> {
        let index = self.free.load(Ordering::Relaxed);
        if let Some(word) = self.words.get(index as usize) {
            self.free.store(word.load(Ordering::Relaxed).into(), Ordering::Relaxed);
            return Some(self.taken(index as usize, word, false));
        }
        let index = self.fresh.load(Ordering::Relaxed);
        let word = self.words.get(index as usize)?;
        self.fresh.store(index.wrapping_add(1), Ordering::Relaxed);
        Some(self.taken(index as usize, word, self.site.zeroed))
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    fn taken(&self, index: usize, word: &AtomicU16, zeroed: bool) -> Taken {
        word.store(LIVE, Ordering::Relaxed);
        // At most the number of its objects.
        let used = self.used.load(Ordering::Relaxed).wrapping_add(1);
        self.used.store(used, Ordering::Relaxed);
        Taken { addr: self.addr_of(index), zeroed }
    }

    /// The object that begins at an address of this slab.
    #[inline]
    pub(crate) fn index_at(&self, addr: u64) -> Option<u16> {
        let (index, begins) = self.index_of(addr)?;
        begins.then_some(index)
    }

    /// The allocated object that an address is inside of: its first byte.
    pub(crate) fn live_around(&self, addr: u64) -> Option<u64> {
        let (index, _) = self.index_of(addr)?;
        self.is_live(index).then(|| self.addr_of(index.into()))
    }

    /// Whether an object is allocated.
    pub(crate) fn is_live(&self, index: u16) -> bool {
        self.words[usize::from(index)].load(Ordering::Relaxed) == LIVE
    }

    /// Frees the object that begins at an address by plain stores, and puts it back. The home's
    /// alone, while the slab is biased. If it is false no object that is allocated begins there.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "part of the two shortest calls there are")]
    #[must_use]
    pub(crate) fn give_plainly(&self, addr: u64) -> bool {
        let offset = addr.wrapping_sub(self.start);
        let index = self.divider.guess(offset);
        let Some(word) = self.words.get(index) else { return false };
        // What is an object's number is right if it gives the offset, whatever led to it.
        let begins = index as u64 * u64::from(self.divider.bytes) == offset;
        let is_live = begins && word.load(Ordering::Relaxed) == LIVE;
        if is_live {
            #[expect(clippy::cast_possible_truncation, reason = "a slab has fewer than 2^16")]
            self.put(index as u16, word);
        }
        is_live
    }

    /// Frees an object and puts it back. The home's alone. False if it is not allocated.
    pub(crate) fn give(&self, index: u16) -> bool {
        let word = &self.words[usize::from(index)];
        if !self.is_biased() {
            if !self.claim(index) {
                return false;
            }
        } else if word.load(Ordering::Relaxed) != LIVE {
            return false;
        }
        self.put(index, word);
        true
    }

    /// Frees an object for others than the home, once the slab is shared. Only one of all who try
    /// succeeds; it has to bring the object back by [`Slab::put_back`].
    pub(crate) fn claim(&self, index: u16) -> bool {
        let word = &self.words[usize::from(index)];
        // Acquire: what is done to the object from here on is after all that was done before.
        word.compare_exchange(LIVE, LEAVING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    /// Brings back an object that the caller has claimed and is not at home. True if the caller has
    /// to tell the home.
    #[must_use]
    pub(crate) fn put_back(&self, index: u16) -> bool {
        let word = &self.words[usize::from(index)];
        let mut first = self.returned.load(Ordering::Relaxed);
        loop {
            word.store(first, Ordering::Relaxed);
            // Release pairs with the acquire in `collect`: the word before the list.
            let pushed = self.returned.compare_exchange_weak(
                first,
                index,
                Ordering::Release,
                Ordering::Relaxed,
            );
            match pushed {
                Ok(_) => return first == END,
                Err(found) => first = found,
            }
        }
    }

    /// Puts what others brought back into the home's own list. For the home, when it was told. Who
    /// freed it has counted it.
    pub(crate) fn collect(&self) {
        // Acquire pairs with the releases in `put_back`; all of them, since each of those continues
        // the release sequence of the one before.
        let mut index = self.returned.swap(END, Ordering::Acquire);
        while let Some(word) = self.words.get(usize::from(index)) {
            let next = word.load(Ordering::Relaxed);
            self.put(index, word);
            let counted = self.counted.load(Ordering::Relaxed).wrapping_sub(1);
            self.counted.store(counted, Ordering::Relaxed);
            index = next;
        }
    }

    /// Objects that were allocated less those that the home freed since they were counted last, and
    /// counts them.
    pub(crate) fn count(&self) -> isize {
        let change = self.uncounted();
        self.counted.store(self.used.load(Ordering::Relaxed), Ordering::Relaxed);
        change
    }

    /// The same, without counting them.
    pub(crate) fn uncounted(&self) -> isize {
        let (used, counted) = (&self.used, &self.counted);
        isize::from(used.load(Ordering::Relaxed).cast_signed())
            - isize::from(counted.load(Ordering::Relaxed).cast_signed())
    }

    #[inline]
    fn put(&self, index: u16, word: &AtomicU16) {
        #[expect(clippy::cast_possible_truncation, reason = "an index or `END`")]
        word.store(self.free.load(Ordering::Relaxed) as u16, Ordering::Relaxed);
        self.free.store(index.into(), Ordering::Relaxed);
        // It counts the object that is put.
        let used = self.used.load(Ordering::Relaxed).wrapping_sub(1);
        self.used.store(used, Ordering::Relaxed);
    }

    /// Whether nobody but the home frees. The home's alone.
    pub(crate) fn is_biased(&self) -> bool {
        // Relaxed: the end of the bias is ordered by the gate.
        self.bias.load(Ordering::Relaxed) == BIASED
    }

    /// Lets anybody free, and the home no longer by a plain store: its gate is shut, and it is
    /// outside of that, or it asks for it.
    pub(crate) fn share(&self) {
        // Release pairs with the acquire in `is_shared`: the last plain store before the first
        // claim.
        self.bias.store(SHARED, Ordering::Release);
    }

    /// Whether anybody may claim.
    pub(crate) fn is_shared(&self) -> bool {
        self.bias.load(Ordering::Acquire) == SHARED
    }

    /// Its home.
    #[inline]
    pub(crate) fn home(&self) -> u32 {
        self.home.load(Ordering::Relaxed)
    }

    /// Gives it another home. Its bias has ended.
    pub(crate) fn move_to(&self, home: u32) {
        debug_assert!(self.is_shared(), "who frees plainly is at home");
        self.home.store(home, Ordering::Relaxed);
    }

    /// Whether an object can be taken. The home's alone.
    pub(crate) fn has_room(&self) -> bool {
        let exists =
            |index: &AtomicU32| (index.load(Ordering::Relaxed) as usize) < self.words.len();
        exists(&self.free) || exists(&self.fresh)
    }

    /// Whether no object is taken. The home's alone.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.used.load(Ordering::Relaxed) == 0
    }

    /// Whether the home's list of slabs has it.
    #[inline]
    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed) != 0
    }

    /// Says whether the home's list has it.
    pub(crate) fn set_listed(&self, listed: bool) {
        self.listed.store(listed.into(), Ordering::Relaxed);
    }

    /// Whether nothing more is to be allocated from it.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Relaxed) != 0
    }

    /// Has nothing more be allocated from it.
    pub(crate) fn freeze(&self) {
        self.frozen.store(1, Ordering::Relaxed);
    }

    /// What its objects are.
    #[inline]
    pub(crate) const fn class(&self) -> Class {
        self.class
    }

    /// Where it lies.
    pub(crate) const fn site(&self) -> Site {
        self.site
    }

    #[inline]
    fn index_of(&self, addr: u64) -> Option<(u16, bool)> {
        let offset = addr.wrapping_sub(self.start);
        if offset >= self.bytes.into() {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "less than `bytes`, as just seen")]
        Some(self.divider.object_at(offset as u32))
    }

    #[inline]
    fn addr_of(&self, index: usize) -> u64 {
        self.start.wrapping_add((index as u64).wrapping_mul(self.divider.bytes.into()))
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slab").field("site", &self.site).finish_non_exhaustive()
    }
}

//! The cache of windows: a budget of address space that all blocks of a session share.
//!
//! ```text
//!             show                        evict                    operations over
//!   FREE --------------> SHOWN -------------------------> LIMBO ------------------> FREE
//!          map over it,          block.places[window] := 0
//!          block.places[window] := place + 1
//! ```
//!
//! Who finds a window uses it until its operation is over, and pays for that with one load. A few
//! places are kept free, so that a window can be shown at once; others are evicted for the next.
//!
//! # Invariants
//!
//! 1. What a place shows changes only while it is free, and it is free only after all operations
//!    are over that may have found it.
//! 2. Found is what a block's entry names: an entry is set after the place shows its window, and
//!    cleared before the place goes to limbo.
//! 3. Nobody waits here, but [`WindowCache::shrink`], which is called outside of operations.
//!    Without a free place there is no window, and the access goes another way.
//! 4. The budget is two reservations; the second can be given up, once, for a mapping that the
//!    application needs.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmce_shm::slot::Marks;
use dmce_sys::map::{self, FileRange, MapError, MappedRange, Populate, Protection, Reservation};

use super::policy::{self, HITS_MAX, Touches};
use crate::operations::Operations;

/// Bytes of a window: a huge page, so that one entry of the page table can show it all.
pub(crate) const WINDOW_BYTES: u64 = 2 << 20;

/// The smallest budget that is worth the trouble.
pub(crate) const BUDGET_MIN: u64 = 2 * WINDOW_BYTES;
/// The largest: each window is a mapping, of which Linux gives a process some 65,000, the
/// application's own among them.
pub(crate) const BUDGET_MAX: u64 = (1 << 14) * WINDOW_BYTES;

/// One place of so many is kept free, ..
const PLACES_PER_FREE: usize = 16;
/// .. but no more than a few.
const FREE_MAX: usize = 8;
/// How many places are looked at for the one that is used least.
const LOOKS: usize = 16;

/// The windows of a session.
#[derive(Debug)]
pub(crate) struct WindowCache {
    operations: Operations,
    starts: [usize; 2],
    first: Reservation,
    second: Mutex<Option<Reservation>>,
    /// How often each place was found recently.
    hits: Box<[Hits]>,
    touches: Touches,
    places: Mutex<Places>,
    /// Places that show a window; for statistics.
    shown: AtomicUsize,
    /// Places that there are; fewer after [`WindowCache::shrink`].
    usable: AtomicUsize,
}

/// On a cache line of its own, since every hit writes it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Hits(AtomicU32);

#[derive(Debug)]
struct Places {
    /// Whose window each place shows.
    owners: Vec<Option<Owner>>,
    free: Vec<usize>,
    limbo: Vec<Limbo>,
    /// How many are to be free or in limbo.
    spare: usize,
    hand: usize,
}

/// Places that operations in flight may still use.
#[derive(Debug)]
struct Limbo {
    before: Marks,
    places: Vec<usize>,
}

#[derive(Debug)]
struct Owner {
    entries: Arc<[AtomicU32]>,
    window: u32,
}

/// Names a window of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pub serial: u32,
    pub window: u32,
}

impl Key {
    fn hash(self) -> u32 {
        let word = u64::from(self.serial) << 32 | u64::from(self.window);
        let mixed = (word ^ word >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as u32
    }
}

/// How much a window is wanted.
#[derive(Clone, Debug)]
pub(super) enum Demand {
    /// It was touched so often recently.
    Touched(u32),
    /// At once, with these cells of the block in the page table.
    Now {
        /// Cells of the window.
        populate: Range<u64>,
    },
}

impl WindowCache {
    /// A cache of at most `budget` bytes, between [`BUDGET_MIN`] and [`BUDGET_MAX`]; of half that,
    /// and so on, if this process has not so much address space left.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`] if there is not even [`BUDGET_MIN`].
    pub(crate) fn new(budget: u64, operations: &Operations) -> Result<Self, MapError> {
        // Whole windows, the same number in each half.
        let mut half = budget.clamp(BUDGET_MIN, BUDGET_MAX) / 2 / WINDOW_BYTES * WINDOW_BYTES;
        loop {
            match Self::of_halves(half, operations.clone()) {
                Err(MapError::AddressSpace { .. }) if half > BUDGET_MIN / 2 => {
                    half = (half / 2).next_multiple_of(WINDOW_BYTES);
                }
                made => return made,
            }
        }
    }

    fn of_halves(half: u64, operations: Operations) -> Result<Self, MapError> {
        let (first, second) = (reserve(half)?, reserve(half)?);
        let count = usize::try_from(2 * half / WINDOW_BYTES);
        let count = count.map_err(|_| MapError::AddressSpace { bytes: 2 * half })?;
        let places = Places {
            owners: std::iter::repeat_with(|| None).take(count).collect(),
            free: (0..count).rev().collect(),
            limbo: Vec::new(),
            spare: (count / PLACES_PER_FREE).clamp(1, FREE_MAX),
            hand: 0,
        };
        Ok(Self {
            operations,
            starts: [first.as_ptr().expose_provenance(), second.as_ptr().expose_provenance()],
            first,
            second: Mutex::new(Some(second)),
            hits: (0..count).map(|_| Hits::default()).collect(),
            touches: Touches::new(count),
            places: Mutex::new(places),
            shown: AtomicUsize::new(0),
            usable: AtomicUsize::new(count),
        })
    }

    /// The first byte of a window, if it is mapped; it is until the caller's operation is over.
    #[inline]
    pub(super) fn find(&self, entries: &[AtomicU32], window: u32) -> Option<*mut u8> {
        let entry = entries.get(window as usize)?;
        // Acquire pairs with the release in `show`.
        let place = (entry.load(Ordering::Acquire) as usize).checked_sub(1)?;
        let hits = &self.hits.get(place)?.0;
        // Not exact where threads collide, which is as good.
        let count = hits.load(Ordering::Relaxed);
        if count < HITS_MAX {
            hits.store(count + 1, Ordering::Relaxed);
        }
        Some(self.start_of(place))
    }

    /// Notes that a window was touched that is not mapped; returns how much it is wanted, if at
    /// all.
    pub(super) fn touch(&self, key: Key) -> Option<Demand> {
        if self.touches.age() {
            self.age_hits();
        }
        let touches = self.touches.note(key.hash());
        policy::pays(touches, None).then_some(Demand::Touched(touches))
    }

    /// Maps a window that was not found, if it pays and there is a place. The first byte.
    #[cold]
    pub(super) fn show(
        &self,
        entries: &Arc<[AtomicU32]>,
        key: Key,
        (fd, protection): (BorrowedFd<'_>, Protection),
        demand: &Demand,
    ) -> Option<*mut u8> {
        let mut places = match demand {
            Demand::Now { .. } => self.lock(),
            // Another thread is at it, and this access need not wait.
            Demand::Touched(_) => self.places.try_lock().ok()?,
        };
        if let Some(start) = self.find(entries, key.window) {
            return Some(start);
        }
        self.free_from_limbo(&mut places);
        if let Demand::Touched(touches) = *demand
            && places.free.len() <= places.spare
        {
            let least = self.least_used(&mut places, None).map(|(_, hits)| hits);
            if !policy::pays(touches, least) {
                return None;
            }
        }
        let place = places.free.pop();
        let start = place.and_then(|place| {
            let owner = Owner { entries: Arc::clone(entries), window: key.window };
            self.map_window(&mut places, place, owner, (fd, protection), demand)
        });
        self.evict_ahead(&mut places, place);
        drop(places);
        if let (Some(start), Demand::Now { populate }) = (start, demand) {
            fill_page_table(start, populate);
        }
        self.touches.clear(key.hash());
        start
    }

    /// Takes every window of a block away, which no operation uses any more.
    pub(super) fn forget(&self, entries: &Arc<[AtomicU32]>) {
        let mut places = self.lock();
        for entry in entries.iter() {
            // Changed under the lock alone.
            let Some(place) = (entry.load(Ordering::Relaxed) as usize).checked_sub(1) else {
                continue;
            };
            self.hide(&mut places, place);
            // Fails only for lack of kernel memory; then the window goes when another is shown.
            let _ = self.with_reservation(place, |r, at| r.clear_at(at, WINDOW_BYTES));
            places.free.push(place);
        }
    }

    /// Gives half of the budget up for other mappings of this process. False if that was done
    /// before. Not from inside an operation.
    pub(crate) fn shrink(&self) -> bool {
        let mut places = self.lock();
        let usable = places.owners.len() / 2;
        if self.usable.swap(usable, Ordering::Relaxed) == usable {
            return false;
        }
        for place in usable..places.owners.len() {
            self.hide(&mut places, place);
        }
        places.free.retain(|place| *place < usable);
        for limbo in &mut places.limbo {
            limbo.places.retain(|place| *place < usable);
        }
        // An operation may be waiting for the lock.
        drop(places);
        self.operations.wait();
        self.second.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Windows that are mapped.
    pub(crate) fn mapped(&self) -> u64 {
        self.shown.load(Ordering::Relaxed) as u64
    }

    /// Bytes of address space that windows may take.
    pub(crate) fn budget(&self) -> u64 {
        self.usable.load(Ordering::Relaxed) as u64 * WINDOW_BYTES
    }

    /// Maps a window at a free place.
    fn map_window(
        &self,
        places: &mut Places,
        place: usize,
        owner: Owner,
        (fd, protection): (BorrowedFd<'_>, Protection),
        demand: &Demand,
    ) -> Option<*mut u8> {
        let offset = u64::from(owner.window) * WINDOW_BYTES;
        let range = FileRange { offset, bytes: WINDOW_BYTES };
        let mapped = self.with_reservation(place, |reservation, at| {
            reservation.map_at(at, fd, range, protection, Populate::No).map(|_| ())
        });
        if let Err(error) = mapped {
            tracing::debug!(error = %error, "a window could not be mapped");
            places.free.push(place);
            return None;
        }
        // How often it was touched speaks for it; what is for a single pass goes first.
        let hits = if let Demand::Touched(touches) = *demand { touches.min(HITS_MAX) } else { 0 };
        self.hits[place].0.store(hits, Ordering::Relaxed);
        let named = u32::try_from(place + 1).expect("windows of an address space fit 32 bits");
        // Release pairs with the acquire of `find`.
        owner.entries[owner.window as usize].store(named, Ordering::Release);
        places.owners[place] = Some(owner);
        self.shown.fetch_add(1, Ordering::Relaxed);
        Some(self.start_of(place))
    }

    /// Lets a place be found no more.
    fn hide(&self, places: &mut Places, place: usize) {
        if let Some(former) = places.owners[place].take() {
            former.entries[former.window as usize].store(0, Ordering::Release);
            self.shown.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Sends the least used places but `kept` to limbo until enough are free or there.
    fn evict_ahead(&self, places: &mut Places, kept: Option<usize>) {
        let spare = |places: &Places| {
            let in_limbo: usize = places.limbo.iter().map(|limbo| limbo.places.len()).sum();
            places.free.len() + in_limbo
        };
        // Several at a time, because a look at the marks is a call of the kernel.
        if spare(places) > places.spare / 2 {
            return;
        }
        let mut evicted = Vec::new();
        while spare(places) + evicted.len() < places.spare {
            let Some((place, _)) = self.least_used(places, kept) else { break };
            self.hide(places, place);
            evicted.push(place);
        }
        if !evicted.is_empty() {
            places.limbo.push(Limbo { before: self.operations.look(), places: evicted });
        }
    }

    /// Frees the places in limbo that no operation can use any more.
    fn free_from_limbo(&self, places: &mut Places) {
        let Places { limbo, free, .. } = places;
        limbo.retain(|limbo| {
            let is_over = self.operations.are_over(&limbo.before);
            if is_over {
                free.extend(&limbo.places);
            }
            !is_over
        });
    }

    /// The least used of the next places but `kept` that show a window, and how often it was found.
    fn least_used(&self, places: &mut Places, kept: Option<usize>) -> Option<(usize, u32)> {
        let count = self.usable.load(Ordering::Relaxed);
        let mut least: Option<(usize, u32)> = None;
        let mut looks = 0;
        for _ in 0..count {
            let place = places.hand % count;
            places.hand = place + 1;
            if places.owners[place].is_none() || Some(place) == kept {
                continue;
            }
            let hits = self.hits[place].0.load(Ordering::Relaxed);
            if least.is_none_or(|(_, fewest)| hits < fewest) {
                least = Some((place, hits));
            }
            looks += 1;
            if looks == LOOKS {
                break;
            }
        }
        least
    }

    fn age_hits(&self) {
        for Hits(hits) in &self.hits {
            hits.store(hits.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_reservation<T>(
        &self,
        place: usize,
        change: impl FnOnce(&Reservation, u64) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let half = self.hits.len() / 2;
        let at = (place % half) as u64 * WINDOW_BYTES;
        if place < half {
            return change(&self.first, at);
        }
        let second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        match second.as_ref() {
            Some(second) => change(second, at),
            None => Err(MapError::AddressSpace { bytes: WINDOW_BYTES }),
        }
    }

    #[inline]
    fn start_of(&self, place: usize) -> *mut u8 {
        let half = self.hits.len() / 2;
        let (start, place) =
            if place < half { (self.starts[0], place) } else { (self.starts[1], place - half) };
        #[expect(clippy::cast_possible_truncation, reason = "a window fits the address space")]
        let offset = place * WINDOW_BYTES as usize;
        std::ptr::with_exposed_provenance_mut(start + offset)
    }
}

fn reserve(bytes: u64) -> Result<Reservation, MapError> {
    Reservation::aligned(bytes, WINDOW_BYTES)
}

/// Fills the page table for cells of a window, as far as the object has the pages.
fn fill_page_table(start: *mut u8, cells: &Range<u64>) {
    const PAGE: u64 = dmce_abi::limits::PAGE_BYTES;
    let first = cells.start / PAGE * PAGE;
    let bytes = cells.end.next_multiple_of(PAGE) - first;
    let (Ok(offset), Ok(bytes)) = (usize::try_from(first % WINDOW_BYTES), usize::try_from(bytes))
    else {
        return;
    };
    // SAFETY: the cells are of the window, which stays until the caller's operation is over.
    let range = unsafe { MappedRange::new(start.wrapping_add(offset), bytes) };
    // What is gone shows when it is touched, by a transfer.
    let _ = map::populate_read(range);
}

//! The cache of windows: a budget of address space that all blocks of a session share.
//!
//! ```text
//!   block.places[window] = place + 1          cache.places[place].word
//!                                              | taking | pins |
//!   find:  place? pin it; still the same? then the window stays while it is pinned
//!   take:  pins 0 -> taking; places[old] := 0; map over it; places[new] := place + 1; not taking
//! ```
//!
//! # Invariants
//!
//! 1. What a place shows changes only while its word says `taking`, which is only set when nobody
//!    has it pinned; who pins it meanwhile sees `taking`, and lets go.
//! 2. Who has a pin and *then* finds the block's entry still naming the place has the right window:
//!    entries are cleared before the place shows something else.
//! 3. Locks are per shard, and not taken when a window is found.
//! 4. The budget is two reservations; the second can be given up, once, for a mapping that the
//!    application needs.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dmce_sys::map::{self, FileRange, MapError, MappedRange, Populate, Protection, Reservation};

use super::policy::{self, HITS_MAX, Touches};

/// Bytes of a window: a huge page, so that one entry of the page table can show it all.
pub(crate) const WINDOW_BYTES: u64 = 2 << 20;

/// The smallest budget that is worth the trouble.
pub(crate) const BUDGET_MIN: u64 = 2 * WINDOW_BYTES;

const SHARDS_MAX: usize = 16;
/// A shard of few places would be full while others are empty.
const PLACES_PER_SHARD_MIN: usize = 32;
/// How many places are looked at for the one that is used least.
const LOOKS: usize = 16;

const TAKING: u32 = 1 << 31;

/// The windows of a session.
#[derive(Debug)]
pub(crate) struct WindowCache {
    starts: [usize; 2],
    first: Reservation,
    second: Mutex<Option<Reservation>>,
    places: Box<[Place]>,
    /// Places from here on are given up.
    usable: AtomicUsize,
    shards: Box<[Mutex<Shard>]>,
    mapped: AtomicUsize,
}

/// One window's place. A cache line, since every hit writes it.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place {
    /// [`TAKING`], and how many have it pinned.
    word: AtomicU32,
    /// How often it was found recently.
    hits: AtomicU32,
}

#[derive(Debug)]
struct Shard {
    /// Whose window each place of the shard shows.
    owners: Vec<Option<Owner>>,
    hand: usize,
    touches: Touches,
}

#[derive(Debug)]
struct Owner {
    places: Arc<[AtomicU32]>,
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
    /// Once it was touched often enough.
    IfItPays,
    /// Now, with these cells of the block in the page table.
    Now {
        /// Cells of the window.
        populate: Range<u64>,
    },
}

/// A window that stays as long as this.
#[derive(Debug)]
pub(super) struct View<'a> {
    place: &'a Place,
    start: *mut u8,
}

impl View<'_> {
    /// Its first byte.
    #[inline]
    pub(super) const fn start(&self) -> *mut u8 {
        self.start
    }
}

impl Drop for View<'_> {
    #[inline]
    fn drop(&mut self) {
        // Release pairs with the acquire of `Place::take`: the accesses are over.
        self.place.word.fetch_sub(1, Ordering::Release);
    }
}

impl Place {
    #[inline]
    fn pin(&self) -> bool {
        // Acquire pairs with the release of `Place::untake`.
        let before = self.word.fetch_add(1, Ordering::Acquire);
        if before & TAKING != 0 {
            self.word.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        true
    }

    fn take(&self) -> bool {
        self.word.compare_exchange(0, TAKING, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    fn untake(&self) {
        self.word.fetch_and(!TAKING, Ordering::Release);
    }
}

impl WindowCache {
    /// A cache of at most `budget` bytes; of half that, and so on, if this process has not so much
    /// address space left.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`] if there is not even [`BUDGET_MIN`].
    pub(crate) fn new(budget: u64) -> Result<Self, MapError> {
        let mut half = (budget.max(BUDGET_MIN) / 2).next_multiple_of(WINDOW_BYTES);
        loop {
            match Self::of_halves(half) {
                Err(MapError::AddressSpace { .. }) if half > BUDGET_MIN / 2 => {
                    half = (half / 2).next_multiple_of(WINDOW_BYTES);
                }
                made => return made,
            }
        }
    }

    fn of_halves(half: u64) -> Result<Self, MapError> {
        let (first, second) = (reserve(half)?, reserve(half)?);
        let windows = usize::try_from(2 * half / WINDOW_BYTES);
        let windows = windows.map_err(|_| MapError::AddressSpace { bytes: 2 * half })?;
        let shards = (windows / PLACES_PER_SHARD_MIN).clamp(1, SHARDS_MAX);
        let shard = |index: usize| {
            let places = (windows - index).div_ceil(shards);
            let owners = std::iter::repeat_with(|| None).take(places).collect();
            Mutex::new(Shard { owners, hand: 0, touches: Touches::new(places) })
        };
        Ok(Self {
            starts: [first.as_ptr().expose_provenance(), second.as_ptr().expose_provenance()],
            first,
            second: Mutex::new(Some(second)),
            places: (0..windows).map(|_| Place::default()).collect(),
            usable: AtomicUsize::new(windows),
            shards: (0..shards).map(shard).collect(),
            mapped: AtomicUsize::new(0),
        })
    }

    /// The window of a block, if it is mapped.
    #[inline]
    pub(super) fn find(&self, places: &[AtomicU32], window: u32) -> Option<View<'_>> {
        let entry = places.get(window as usize)?;
        // Acquire pairs with the release in `show`.
        let named = entry.load(Ordering::Acquire);
        let index = (named as usize).checked_sub(1)?;
        let place = &self.places[index];
        if !place.pin() {
            return None;
        }
        let view = View { place, start: self.start_of(index) };
        // Acquire: not before the pin. Another value: the place shows something else by now.
        if entry.load(Ordering::Acquire) != named {
            return None;
        }
        let hits = place.hits.load(Ordering::Relaxed);
        if hits < HITS_MAX {
            place.hits.store(hits + 1, Ordering::Relaxed);
        }
        Some(view)
    }

    /// A window that was not found, if it is to be mapped and can be.
    pub(super) fn demand(
        &self,
        places: &Arc<[AtomicU32]>,
        key: Key,
        fd: BorrowedFd<'_>,
        protection: Protection,
        demand: &Demand,
    ) -> Option<View<'_>> {
        let hash = key.hash();
        let number = hash as usize % self.shards.len();
        let mut shard = self.shard_for(number, demand)?;
        // Another thread may have mapped it meanwhile.
        if let Some(view) = self.find(places, key.window) {
            return Some(view);
        }
        if shard.touches.ages() {
            self.halve_hits(number, &shard);
        }
        let touches = match demand {
            Demand::IfItPays => shard.touches.note(hash >> 4),
            Demand::Now { .. } => u32::MAX,
        };
        if !policy::pays(touches, None) {
            return None;
        }
        let (slot, hits) = self.least_used(number, &mut shard)?;
        if !policy::pays(touches, hits) || !self.places[slot].take() {
            return None;
        }
        shard.touches.clear(hash >> 4);
        let owner = Owner { places: Arc::clone(places), window: key.window };
        // What it was touched speaks for it; what was mapped for a single pass goes first.
        let hits = if touches == u32::MAX { 0 } else { touches.min(HITS_MAX) };
        self.places[slot].hits.store(hits, Ordering::Relaxed);
        let shown = self.show(slot, &mut shard, owner, (fd, protection));
        self.places[slot].untake();
        if let Err(error) = shown {
            tracing::debug!(error = %error, "a window could not be mapped");
            return None;
        }
        drop(shard);
        let view = self.find(places, key.window)?;
        if let Demand::Now { populate } = demand {
            fill_page_table(&view, populate);
        }
        Some(view)
    }

    /// Takes every window of a block away, which nobody uses any more.
    pub(super) fn forget(&self, places: &Arc<[AtomicU32]>, serial: u32) {
        for (window, entry) in (0_u32..).zip(places.iter()) {
            if entry.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let number = Key { serial, window }.hash() as usize % self.shards.len();
            let mut shard = self.lock(number);
            // Read again under the lock: the place may have been taken for another window.
            let Some(slot) = (entry.load(Ordering::Relaxed) as usize).checked_sub(1) else {
                continue;
            };
            self.empty(slot, &mut shard);
            self.places[slot].untake();
        }
    }

    /// Gives half of the budget up for other mappings of this process. False if that was done
    /// before.
    pub(crate) fn shrink(&self) -> bool {
        let usable = self.places.len() / 2;
        if self.usable.swap(usable, Ordering::AcqRel) == usable {
            return false;
        }
        for slot in usable..self.places.len() {
            let mut shard = self.lock(slot % self.shards.len());
            // It stays taken, so that nobody ever uses it again.
            self.empty(slot, &mut shard);
        }
        self.second.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Windows that are mapped.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed) as u64
    }

    /// Bytes of address space that windows may take.
    pub(crate) fn budget(&self) -> u64 {
        self.usable.load(Ordering::Relaxed) as u64 * WINDOW_BYTES
    }

    /// The shard; for a window that need not be mapped only if nobody else has it.
    fn shard_for(&self, number: usize, demand: &Demand) -> Option<MutexGuard<'_, Shard>> {
        match demand {
            Demand::Now { .. } => Some(self.lock(number)),
            Demand::IfItPays => self.shards[number].try_lock().ok(),
        }
    }

    fn lock(&self, number: usize) -> MutexGuard<'_, Shard> {
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The least used of the next places of a shard, and how often it was hit; `None` for one that
    /// shows nothing.
    fn least_used(&self, number: usize, shard: &mut Shard) -> Option<(usize, Option<u32>)> {
        let usable = self.usable.load(Ordering::Acquire);
        let mut best: Option<(usize, Option<u32>)> = None;
        for _ in 0..LOOKS.min(shard.owners.len()) {
            let position = shard.hand;
            shard.hand = (position + 1) % shard.owners.len();
            let slot = self.slot(number, position);
            let place = &self.places[slot];
            if slot >= usable || place.word.load(Ordering::Relaxed) != 0 {
                continue;
            }
            let hits = shard.owners[position].as_ref();
            let hits = hits.map(|_| place.hits.load(Ordering::Relaxed));
            if best.is_none_or(|(_, least)| hits < least) {
                best = Some((slot, hits));
            }
            if hits.is_none() {
                break;
            }
        }
        best
    }

    /// Maps a window at a place that is taken.
    fn show(
        &self,
        slot: usize,
        shard: &mut Shard,
        owner: Owner,
        (fd, protection): (BorrowedFd<'_>, Protection),
    ) -> Result<(), MapError> {
        let position = slot / self.shards.len();
        if let Some(former) = shard.owners[position].take() {
            former.places[former.window as usize].store(0, Ordering::Release);
            self.mapped.fetch_sub(1, Ordering::Relaxed);
        }
        let range =
            FileRange { offset: u64::from(owner.window) * WINDOW_BYTES, bytes: WINDOW_BYTES };
        self.with_reservation(slot, |reservation, at| {
            reservation.map_at(at, fd, range, protection, Populate::No).map(|_| ())
        })?;
        let named = u32::try_from(slot + 1).expect("windows of an address space fit 32 bits");
        // Release pairs with the acquire of `find`.
        owner.places[owner.window as usize].store(named, Ordering::Release);
        shard.owners[position] = Some(owner);
        self.mapped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a place, waiting for its pins, and what it shows away. It stays taken.
    fn empty(&self, slot: usize, shard: &mut Shard) {
        let position = slot / self.shards.len();
        if let Some(former) = shard.owners[position].take() {
            // No new pins on this window from here on; those that there are end with their copies.
            former.places[former.window as usize].store(0, Ordering::Release);
            self.mapped.fetch_sub(1, Ordering::Relaxed);
        }
        while !self.places[slot].take() {
            std::thread::yield_now();
        }
        // Fails only for lack of kernel memory; then the window is replaced at its next use.
        let _ =
            self.with_reservation(slot, |reservation, at| reservation.clear_at(at, WINDOW_BYTES));
    }

    fn with_reservation<T>(
        &self,
        slot: usize,
        change: impl FnOnce(&Reservation, u64) -> Result<T, MapError>,
    ) -> Result<T, MapError> {
        let half = self.places.len() / 2;
        let at = (slot % half) as u64 * WINDOW_BYTES;
        if slot < half {
            return change(&self.first, at);
        }
        let second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        match second.as_ref() {
            Some(second) => change(second, at),
            None => Err(MapError::AddressSpace { bytes: WINDOW_BYTES }),
        }
    }

    fn halve_hits(&self, number: usize, shard: &Shard) {
        for position in 0..shard.owners.len() {
            let hits = &self.places[self.slot(number, position)].hits;
            hits.store(hits.load(Ordering::Relaxed) / 2, Ordering::Relaxed);
        }
    }

    /// The place that is at a position of a shard.
    fn slot(&self, number: usize, position: usize) -> usize {
        position * self.shards.len() + number
    }

    #[inline]
    fn start_of(&self, slot: usize) -> *mut u8 {
        let half = self.places.len() / 2;
        let (start, place) =
            if slot < half { (self.starts[0], slot) } else { (self.starts[1], slot - half) };
        #[expect(clippy::cast_possible_truncation, reason = "a window fits the address space")]
        let offset = place * WINDOW_BYTES as usize;
        std::ptr::with_exposed_provenance_mut(start + offset)
    }
}

fn reserve(bytes: u64) -> Result<Reservation, MapError> {
    Reservation::aligned(bytes, WINDOW_BYTES)
}

/// Fills the page table for cells of a window, as far as the object has the pages.
fn fill_page_table(view: &View<'_>, cells: &Range<u64>) {
    const PAGE: u64 = dmce_abi::limits::PAGE_BYTES;
    let first = cells.start / PAGE * PAGE;
    let bytes = cells.end.next_multiple_of(PAGE) - first;
    let (Ok(offset), Ok(bytes)) = (usize::try_from(first % WINDOW_BYTES), usize::try_from(bytes))
    else {
        return;
    };
    // SAFETY: the cells are of the window, which the view keeps.
    let range = unsafe { MappedRange::new(view.start().wrapping_add(offset), bytes) };
    // What is gone shows when it is touched, under a guard.
    let _ = map::populate_read(range);
}

//! Pinned ranges: where pointers of the application point to (section 4.2).
//!
//! # Invariants
//!
//! 1. `state` is stored last when a pin is taken and first when it is freed: a pin that is seen
//!    taken has its range.
//! 2. A pin is taken before the pointer is returned and freed after the mapping is gone. Who dies
//!    in between leaves a pin without a pointer, which ends with the session.

use std::sync::{Mutex, PoisonError};

use dmce_abi::limits::PINS;
use dmce_sys::crash::{Point, point};

use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::layout::layout;

layout! {
    /// One pin. Zero is a free one.
    pub struct Pin, 32 bytes {
        /// The first DMCE address of the range.
        0 => addr: AtomicU64,
        8 => bytes: AtomicU64,
        /// 0 free, 1 read, 2 left, 3 read and write. Written by the client, and by the broker when
        /// that is gone.
        16 => state: AtomicU32,
        20 => reserved: [AtomicU32; 3],
    }
}

impl Pin {
    /// Where in a pin its state lies.
    #[cfg(not(loom))]
    pub(super) const STATE: usize = core::mem::offset_of!(Self, state);
}

const FREE: u32 = 0;
const READ: u32 = 1;
const LEFT: u32 = 2;
const READ_WRITE: u32 = 3;

/// A range that a pointer of the application points into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinnedRange {
    /// The first DMCE address; from the broker's side a claim.
    pub addr: u64,
    /// Bytes; from the broker's side a claim.
    pub bytes: u64,
    /// Whether the pointer can write.
    pub writable: bool,
}

/// A pin that a client has taken, as the broker finds it: a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PinClaim {
    /// Which of the session's.
    pub place: u16,
    /// Its range.
    pub range: PinnedRange,
    /// Whether the pointer is gone, and what it stored is not on all copies.
    pub is_left: bool,
}

/// A taken pin, to be given back with [`SessionMap::free_pin`](super::map::SessionMap::free_pin).
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the range stays pinned until the pin is freed"]
pub struct PinId(usize);

/// All pins are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("all {PINS} pins of the session are taken")]
pub struct PinsExhausted;

/// The pins of this process's session: which are free is known here, so that threads do not race
/// for a place.
#[derive(Debug)]
pub struct Pins {
    free: Mutex<Vec<usize>>,
}

impl Pins {
    pub(super) fn new(pins: &[Pin]) -> Self {
        let is_free = |index: &usize| pins[*index].state.load(Ordering::Relaxed) == FREE;
        Self { free: Mutex::new((0..pins.len()).rev().filter(is_free).collect()) }
    }

    pub(super) fn take(&self, pins: &[Pin], range: PinnedRange) -> Result<PinId, PinsExhausted> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let index = free.pop().ok_or(PinsExhausted)?;
        let pin = &pins[index];
        pin.addr.store(range.addr, Ordering::Relaxed);
        pin.bytes.store(range.bytes, Ordering::Relaxed);
        let state = if range.writable { READ_WRITE } else { READ };
        // Release pairs with the acquire after the broker's copy: a pin that is seen taken has its
        // range.
        pin.state.store(state, Ordering::Release);
        point(Point::PinTaken);
        Ok(PinId(index))
    }

    #[expect(clippy::needless_pass_by_value, reason = "a pin is left once")]
    pub(super) fn leave(pins: &[Pin], id: PinId) {
        // Release: the accesses through the pointer are over before the pin is seen left.
        pins[id.0].state.store(LEFT, Ordering::Release);
    }

    #[expect(clippy::needless_pass_by_value, reason = "a pin is freed once")]
    pub(super) fn free(&self, pins: &[Pin], id: PinId) {
        // Release: the accesses through the pointer are over before the pin is seen free.
        pins[id.0].state.store(FREE, Ordering::Release);
        point(Point::PinFreed);
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(id.0);
    }
}

/// The pins that are taken, out of two copies that were made one after the other.
///
/// A pin counts if it is taken in both. Its range is from the later copy, so it is at least as new
/// as the state in the earlier one; a pin that was freed and taken again in between may mix two
/// ranges, which only its own client can bring about.
pub(super) fn claims(earlier: &[u8], later: &[u8]) -> Vec<PinClaim> {
    let pairs = earlier.chunks_exact(size_of::<Pin>()).zip(later.chunks_exact(size_of::<Pin>()));
    let taken = (0..).zip(pairs).filter_map(|(place, (earlier, later))| {
        let (before, now) = (Claim::of(earlier)?, Claim::of(later)?);
        let is_taken = before.state != FREE && now.state != FREE;
        // What is no state that there is is a claim to write.
        let writable = now.state != READ;
        let range = PinnedRange { addr: now.addr, bytes: now.bytes, writable };
        is_taken.then_some(PinClaim { place, range, is_left: now.state == LEFT })
    });
    taken.collect()
}

struct Claim {
    addr: u64,
    bytes: u64,
    state: u32,
}

impl Claim {
    fn of(copy: &[u8]) -> Option<Self> {
        let (addr, rest) = copy.split_first_chunk()?;
        let (bytes, rest) = rest.split_first_chunk()?;
        Some(Self {
            addr: u64::from_le_bytes(*addr),
            bytes: u64::from_le_bytes(*bytes),
            state: u32::from_le_bytes(*rest.first_chunk()?),
        })
    }
}

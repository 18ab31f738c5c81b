//! The client's side of its session object: a mapping with typed words.
//!
//! # Invariants
//!
//! 1. All words are atomics: the broker and other threads store to them at any time.
//! 2. The mapping is of the session's own object, whose size only this client could change. If it
//!    does, the signal is its own.
//! 3. `known` lives in this process alone; it never runs ahead of what the tables have taken in.

use std::mem::{align_of, offset_of};
use std::os::fd::BorrowedFd;
use std::slice;

use zerocopy::{FromZeros, IntoBytes};

use dmce_abi::limits::{PINS, SLOTS};
use dmce_abi::version::SEGMENT_VERSION;
use dmce_sys::map::{self, FileRange, MapError, MappedRange, Mapping, Populate, Protection};
use dmce_sys::object::{self, ObjectError};
use dmce_sys::transfer::{self, Gone, Store};

use super::pin::{Pin, PinId, PinnedRange, Pins, PinsExhausted};
use super::{
    BARRIER_MEMBARRIER, MAGIC, PINS_OFFSET, SESSION_BYTES, SLOTS_OFFSET, SessionIdentity,
    SessionPage, UNDO_BYTES, UNDO_OFFSET, UNDO_READY,
};
use crate::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::fence::Fence;
use crate::layout::layout;
use crate::slot::{Look, Moved, Operation, Slot};

/// The session object of this process's session, mapped.
#[derive(Debug)]
pub struct SessionMap {
    mapping: Mapping,
    pins: Pins,
    /// The generation up to which the process has taken in all changes.
    known: AtomicU64,
    /// Towards the broker.
    fence: Fence,
}

layout! {
    /// What the client uses, for the administrator. Written by the client with relaxed stores,
    /// read by the broker as a claim.
    #[derive(Debug)]
    pub struct Usage, 24 bytes {
        /// Bytes in allocations.
        0 => pub bytes_in_use: AtomicU64,
        /// Bytes free in its blocks.
        8 => pub bytes_free: AtomicU64,
        /// Allocations.
        16 => pub allocations: AtomicU64,
    }
}

const GENERATION_OFFSET: usize = offset_of!(SessionPage, generation);
const UNDO_READY_OFFSET: usize = offset_of!(SessionPage, undo_ready);
const USAGE_OFFSET: usize = offset_of!(SessionPage, bytes_in_use);

// Where the typed words lie in a mapping that is page aligned.
const _: () = {
    assert!(GENERATION_OFFSET.is_multiple_of(align_of::<AtomicU64>()));
    assert!(UNDO_READY_OFFSET.is_multiple_of(align_of::<AtomicU32>()));
    assert!(USAGE_OFFSET.is_multiple_of(align_of::<Usage>()));
    assert!(SLOTS_OFFSET.is_multiple_of(align_of::<Slot>()));
    assert!(PINS_OFFSET.is_multiple_of(align_of::<Pin>()));
    assert!(USAGE_OFFSET + size_of::<Usage>() <= SLOTS_OFFSET);
    assert!(offset_of!(SessionPage, allocations) == USAGE_OFFSET + offset_of!(Usage, allocations));
};

/// Why a session object is not the one that was announced, or could not be mapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages name the fields")]
pub enum SessionMapError {
    /// Made by a broker of another version.
    #[error("the session object is of segment version {theirs}, this release uses {ours}")]
    OtherVersion { theirs: u32, ours: u32 },
    /// Not the object of this session.
    #[error("the session object is not that of session {}: {field} differs", identity.session)]
    Foreign { identity: SessionIdentity, field: &'static str },
    /// It could not be read.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It could not be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl SessionMap {
    /// Checks and maps the object that the broker sent. The known generation is the one that it
    /// shows now.
    ///
    /// `fence` is what this process can use ([`Fence::register`]); with a broker that cannot issue
    /// barriers it becomes a full one.
    ///
    /// # Errors
    ///
    /// [`SessionMapError`].
    pub fn map(
        fd: BorrowedFd<'_>,
        identity: SessionIdentity,
        fence: Fence,
    ) -> Result<Self, SessionMapError> {
        let mut page = SessionPage::new_zeroed();
        object::read_at(fd, page.as_mut_bytes(), 0)?;
        check(&page, identity)?;
        if object::stat(fd)?.bytes != SESSION_BYTES {
            return Err(SessionMapError::Foreign { identity, field: "the size" });
        }
        let range = FileRange { offset: 0, bytes: SESSION_BYTES };
        let mapping = Mapping::shared(fd, range, Protection::ReadWrite, Populate::No)?;
        // Not the undo buffers, which would be allocated by that.
        map::populate_read(mapping.range(0, UNDO_OFFSET as u64)?)?;
        let fence = if page.barrier == BARRIER_MEMBARRIER { fence } else { Fence::Full };
        let pins = Pins::new(pins_in(&mapping));
        let known = AtomicU64::new(page.generation.get());
        Ok(Self { mapping, pins, known, fence })
    }

    /// Begins an operation in a slot: see [`Slot::begin`].
    ///
    /// # Errors
    ///
    /// [`Moved`]: take in the changes since [`SessionMap::known`], say so with
    /// [`SessionMap::settle`], and begin again.
    ///
    /// # Panics
    ///
    /// If there is no such slot, or an operation is in flight in it.
    #[inline]
    pub fn begin(&self, slot: usize) -> Result<Operation<'_>, Moved> {
        self.slots()[slot].begin(self.look())
    }

    /// What operations look at after their mark.
    #[inline]
    #[must_use]
    pub fn look(&self) -> Look<'_> {
        Look { generation: self.generation_word(), known: &self.known, fence: self.fence }
    }

    /// Whether the broker's generation is another than the known one. Not a mark. Who is told that
    /// it is not sees all that was taken in.
    #[inline]
    #[must_use]
    pub fn has_moved(&self) -> bool {
        // Acquire pairs with the release of `settle`.
        self.generation_word().load(Ordering::Relaxed) != self.known.load(Ordering::Acquire)
    }

    /// The generation up to which this process has taken in all changes.
    #[must_use]
    pub fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    /// The broker's generation: for who learns what has changed from the objects themselves.
    #[must_use]
    pub fn generation(&self) -> u64 {
        // Acquire: what was written before it was published is seen by who looks now.
        self.generation_word().load(Ordering::Acquire)
    }

    /// Says that the tables have taken in all changes up to `generation`, as the broker named it.
    /// One thread at a time takes changes in; any may say [`u64::MAX`], which no broker counts up
    /// to: no operation begins from then on, whatever is said later.
    pub fn settle(&self, generation: u64) {
        let is_open = |known| (known != u64::MAX).then_some(generation);
        // Release pairs with the acquire of `Slot::begin`.
        let _ = self.known.fetch_update(Ordering::Release, Ordering::Relaxed, is_open);
    }

    /// All slots. Which thread has which is the process's to say; [`SLOTS`]` - 1` is shared under
    /// its mutex.
    #[inline]
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        let first = self.at::<Slot>(SLOTS_OFFSET);
        // SAFETY: the mapping holds SLOTS slots from there on, aligned by the assertions above, for
        // as long as `self` is borrowed; a slot is atomics, which any process may store to, and
        // every bit pattern is one.
        unsafe { slice::from_raw_parts(first, SLOTS) }
    }

    /// The undo buffer of a slot, [`UNDO_BYTES`] long, for its thread; `None` as long as the broker
    /// has not committed it.
    #[inline]
    #[must_use]
    pub fn undo(&self, slot: u8) -> Option<MappedRange<'_>> {
        // SAFETY: as in `slots`, for one word.
        let ready = unsafe { &*self.at::<AtomicU32>(UNDO_READY_OFFSET) };
        // Acquire: the kernel stored the word after it had committed the buffers.
        if ready.load(Ordering::Acquire) != UNDO_READY {
            return None;
        }
        let offset = UNDO_OFFSET + usize::from(slot) * UNDO_BYTES;
        self.mapping.range(offset as u64, UNDO_BYTES as u64).ok()
    }

    /// Copies what a slot is about to overwrite into its undo buffer. `false` as long as the broker
    /// has not committed it.
    ///
    /// # Errors
    ///
    /// [`Gone`]: the object was cut.
    ///
    /// # Panics
    ///
    /// If it is more than [`UNDO_BYTES`].
    pub fn save(&self, slot: u8, old: &[u8]) -> Result<bool, Gone> {
        let Some(undo) = self.undo(slot) else { return Ok(false) };
        let part = undo.part(0, old.len() as u64).expect("no more than the buffer holds");
        // SAFETY: the buffer is mapped writable, and its slot's thread's, who calls; as much of
        // `old` is readable, and lies outside of the mapping.
        unsafe { transfer::store(part, old.as_ptr(), Store::Cached) }?;
        Ok(true)
    }

    /// What the client shows to the administrator.
    #[inline]
    #[must_use]
    pub fn usage(&self) -> &Usage {
        // SAFETY: as in `slots`, for one value.
        unsafe { &*self.at::<Usage>(USAGE_OFFSET) }
    }

    /// Records a range before a pointer into it is given out. Inside an operation, so that who
    /// waits for the marks sees it.
    ///
    /// # Errors
    ///
    /// [`PinsExhausted`].
    pub fn take_pin(&self, range: PinnedRange) -> Result<PinId, PinsExhausted> {
        self.pins.take(pins_in(&self.mapping), range)
    }

    /// Takes the record of a pin away after its mapping is gone.
    pub fn free_pin(&self, id: PinId) {
        self.pins.free(pins_in(&self.mapping), id);
    }

    /// Leaves a pin to the broker: its mapping is gone, and what was stored by it is not on all
    /// copies. The pin stays taken for good.
    pub fn leave_pin(&self, id: PinId) {
        Pins::leave(pins_in(&self.mapping), id);
    }

    #[inline]
    fn generation_word(&self) -> &AtomicU64 {
        // SAFETY: as in `slots`, for one word.
        unsafe { &*self.at::<AtomicU64>(GENERATION_OFFSET) }
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> *const T {
        at(&self.mapping, offset)
    }
}

fn check(page: &SessionPage, identity: SessionIdentity) -> Result<(), SessionMapError> {
    let same = |field, same: bool| {
        if same { Ok(()) } else { Err(SessionMapError::Foreign { identity, field }) }
    };
    same("the magic", page.magic == MAGIC)?;
    if page.version != SEGMENT_VERSION {
        let theirs = page.version.get();
        return Err(SessionMapError::OtherVersion { theirs, ours: SEGMENT_VERSION });
    }
    // Sizes and offsets of the tables are constants of the version, and in the fingerprint.
    let expected = SessionPage::new(identity, Fence::Full);
    same("the fingerprint", page.fingerprint == expected.fingerprint)?;
    same("the session", page.session == expected.session)?;
    same("the GUID", page.guid == expected.guid)?;
    same("the slots", (page.slots, page.slots_offset) == (expected.slots, expected.slots_offset))?;
    same("the pins", (page.pins, page.pins_offset) == (expected.pins, expected.pins_offset))?;
    same("the undo buffers", page.undo_buffers == expected.undo_buffers)
}

fn pins_in(mapping: &Mapping) -> &[Pin] {
    // SAFETY: the mapping of a session object holds PINS pins from there on, aligned by the
    // assertions above, for as long as it is borrowed; a pin is atomics of any bit pattern.
    unsafe { slice::from_raw_parts(at(mapping, PINS_OFFSET), PINS) }
}

#[inline]
fn at<T>(mapping: &Mapping, offset: usize) -> *const T {
    mapping.as_ptr().wrapping_add(offset).cast::<T>().cast_const()
}

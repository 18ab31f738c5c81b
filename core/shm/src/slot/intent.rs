//! The intent of an operation: what of a block with copies it is changing, and how far it is.
//!
//! ```text
//!             intend                        begin_first                   begin_others
//!   no bytes ---------> phase 0: the locks ------------> phase 1 or 5 ------------------> 2 or 6
//!      ^                  |       ^   ^                      |  the first copy    the others |
//!      `---- clear -------'       |   `---- settle ----------'                               |
//!                                 `----------------------- settle ---------------------------'
//! ```
//!
//! | phase | which good copies may be half written |
//! |---|---|
//! | 0 | none |
//! | 1 | the one that `intent_first` names |
//! | 2 | all but that |
//! | 3 | that one, and no other is to be written (004) |
//! | 5, 6, 7 | as 1, 2 and 3; and the undo buffer holds what the bytes were |
//! | 10 | none, but all but that copy may lack what it has: servers write each page at once |
//!
//! A write begins with the others if the first copy has the bytes already.
//!
//! # Invariants
//!
//! 1. `intent_bytes` is stored last when an intent is made and first when it is cleared: an intent
//!    with bytes has its address.
//! 2. The phase is one word. What it says of `intent_first` and of the undo buffer was stored
//!    before it.
//! 3. *An intent is made before its first lock is waited for, and cleared after the last one was
//!    given back*: who looks at the intents of the dead finds every page that they held or may
//!    have been woken for.
//!
//! Nobody but the slot's thread reads an intent while that lives. Who reads it afterwards has heard
//! of the death from the kernel, and all stores that the process has come to are in memory then, in
//! whatever order they went there: the processor stops between two instructions. So nothing but
//! the compiler could move a store past another, and each store here holds it back on both sides.

use dmce_abi::block::DaemonId;
use dmce_sys::crash::{Point, point};

use super::{Slot, is_in_flight};
use crate::atomic::{AtomicU32, AtomicU64, Ordering, compiler_fence};

const NONE: u32 = 0;
const FIRST: u32 = 1;
const OTHERS: u32 = 2;
const ALONE: u32 = 3;
#[cfg(not(loom))]
const STEP_MASK: u32 = 3;
/// Beside one of those: the undo buffer holds the bytes that the first copy had before.
const SAVED: u32 = 4;
/// As [`OTHERS`], with each page stored at once.
pub(super) const PAGES: u32 = 8 | OTHERS;

/// Whether the undo buffer of the slot holds what the first copy has before a byte is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undo {
    /// It does.
    Saved,
    /// It does not: there are other copies, or there is more than the buffer holds.
    Absent,
}

/// What the operation in flight is changing. It stays until it is cleared: who cannot come to an
/// end leaves it to repair.
#[derive(Debug)]
#[must_use = "the intent stays until it is cleared"]
pub struct Intent<'a>(&'a Slot);

impl Slot {
    /// Says what this slot's operation is about to change, before it waits for a lock.
    ///
    /// # Panics
    ///
    /// If no operation is in flight, or it has an intent already.
    #[inline]
    pub fn intend(&self, addr: u64, bytes: u64) -> Intent<'_> {
        assert!(is_in_flight(self.mark.load(Ordering::Relaxed)), "the slot has no operation");
        let before = self.intent_bytes.load(Ordering::Relaxed);
        assert!(before == 0, "the operation changes {before} bytes already");
        self.phase.put(NONE);
        self.intent_addr.put(addr);
        self.intent_bytes.put(bytes);
        point(Point::IntentSet);
        Intent(self)
    }
}

impl Intent<'_> {
    /// From here on the copy of `first` may be half written, and no other.
    #[inline]
    pub fn begin_first(&self, first: DaemonId, undo: Undo) {
        self.begin(first, FIRST, undo);
        point(Point::PhaseFirst);
    }

    /// From here on the copy of `first` may be half written, and no other will be.
    #[inline]
    pub fn begin_alone(&self, first: DaemonId, undo: Undo) {
        self.begin(first, ALONE, undo);
        point(Point::PhaseAlone);
    }

    #[inline]
    fn begin(&self, first: DaemonId, step: u32, undo: Undo) {
        self.0.intent_first.put(first.get());
        self.0.phase.put(match undo {
            Undo::Saved => step | SAVED,
            Undo::Absent => step,
        });
    }

    /// From here on the first copy has the new bytes, and the others may be half written.
    #[inline]
    pub fn begin_others(&self) {
        let saved = self.0.phase.load(Ordering::Relaxed) & SAVED;
        self.0.phase.put(OTHERS | saved);
        point(Point::PhaseOthers);
    }

    /// The copy of `first` has bytes that the others lack: from here on those may be half written.
    #[inline]
    pub fn begin_others_of(&self, first: DaemonId) {
        self.begin(first, OTHERS, Undo::Absent);
        point(Point::PhaseOthers);
    }

    /// The copy of `first` has bytes that the others lack: from here on each page of those may have
    /// them, and none is half written.
    #[inline]
    pub fn begin_pages_of(&self, first: DaemonId) {
        self.begin(first, PAGES, Undo::Absent);
        point(Point::PhaseOthers);
    }

    /// All good copies are equal: the write has come to its end, or the one that was being written
    /// is good no more.
    #[inline]
    pub fn settle(&self) {
        self.0.phase.put(NONE);
        point(Point::PhaseSettled);
    }

    /// Nothing is changed any more, and no lock held.
    #[inline]
    pub fn clear(self) {
        self.0.intent_bytes.put(0);
        point(Point::IntentCleared);
    }
}

#[cfg(all(test, not(loom)))]
impl Slot {
    /// As a server copies it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut copy = vec![0; size_of::<Self>()];
        // Not a step: whose slot it is is dead.
        let word = |word: &AtomicU32| (**word).load(Ordering::Relaxed).to_le_bytes();
        let wide = |wide: &AtomicU64| (**wide).load(Ordering::Relaxed).to_le_bytes();
        copy[4..8].copy_from_slice(&word(&self.phase));
        copy[8..16].copy_from_slice(&wide(&self.intent_addr));
        copy[16..24].copy_from_slice(&wide(&self.intent_bytes));
        copy[32..36].copy_from_slice(&word(&self.intent_first));
        copy
    }

    /// As a client stores what it likes.
    pub(crate) fn claim_for_test(&self, addr: u64, bytes: u64) {
        (*self.intent_addr).store(addr, Ordering::Relaxed);
        (*self.intent_bytes).store(bytes, Ordering::Relaxed);
    }

    /// As a server takes the intent away; and the slot of the next client.
    pub(crate) fn take_intent_away(&self) {
        (*self.intent_bytes).store(0, Ordering::Relaxed);
        (*self.mark).store(0, Ordering::Relaxed);
    }
}

/// What a dead slot said that it was changing: a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IntentClaim {
    /// The first DMCE address.
    pub addr: u64,
    /// How many bytes; not 0.
    pub bytes: u64,
    /// How far it was.
    pub progress: Progress,
}

/// How far a dead writer was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It had stored nothing, or all of it to every copy.
    Settled,
    /// Only the copy of that daemon may be half written.
    First {
        /// Whose copy was written first.
        first: u32,
        /// Whether the undo buffer holds what the bytes were.
        undo: Undo,
    },
    /// As that, and no other was to be written.
    Alone {
        /// Whose copy was written.
        first: u32,
        /// As above.
        undo: Undo,
    },
    /// All copies but that daemon's may be.
    Others {
        /// Whose copy was written first.
        first: u32,
        /// As above.
        undo: Undo,
    },
    /// Each page of all copies but that daemon's may lack what it has, or has all of it.
    Pages {
        /// Whose copy the others are made equal to.
        first: u32,
    },
    /// No phase that there is.
    Nonsense,
}

impl IntentClaim {
    /// Out of a copy of a slot; none if it was changing nothing.
    #[must_use]
    #[cfg(not(loom))]
    pub fn of_copy(slot: &[u8]) -> Option<Self> {
        use core::mem::offset_of;
        let at = |offset: usize| slot.get(offset..);
        let word = |offset| Some(u32::from_le_bytes(*at(offset)?.first_chunk()?));
        let wide = |offset| Some(u64::from_le_bytes(*at(offset)?.first_chunk()?));
        let bytes = wide(offset_of!(Slot, intent_bytes))?;
        let (phase, first) =
            (word(offset_of!(Slot, phase))?, word(offset_of!(Slot, intent_first))?);
        let undo = if phase & SAVED == 0 { Undo::Absent } else { Undo::Saved };
        let progress = match phase & STEP_MASK {
            _ if phase == PAGES => Progress::Pages { first },
            _ if phase & !(STEP_MASK | SAVED) != 0 => Progress::Nonsense,
            NONE if phase == NONE => Progress::Settled,
            FIRST => Progress::First { first, undo },
            OTHERS => Progress::Others { first, undo },
            ALONE => Progress::Alone { first, undo },
            _ => Progress::Nonsense,
        };
        let claim = Self { addr: wide(offset_of!(Slot, intent_addr))?, bytes, progress };
        (bytes != 0).then_some(claim)
    }
}

/// A store that the compiler moves past no other.
trait Put<T> {
    fn put(&self, value: T);
}

macro_rules! put {
    ($atomic:ty, $value:ty) => {
        impl Put<$value> for $atomic {
            #[inline]
            fn put(&self, value: $value) {
                // Release, and a fence behind it, towards the compiler alone: see the module.
                self.store(value, Ordering::Release);
                compiler_fence(Ordering::SeqCst);
            }
        }
    };
}
put!(AtomicU32, u32);
put!(AtomicU64, u64);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::fence::Fence;
    use crate::slot::Look;

    #[allow(clippy::unwrap_used, reason = "for tests, outside of a test function")]
    fn in_operation(test: impl FnOnce(&Slot)) {
        let (generation, known) = (AtomicU64::new(1), AtomicU64::new(1));
        let slot = Slot::default();
        let look = Look { generation: &generation, known: &known, fence: Fence::Full };
        let operation = slot.begin(look).unwrap();
        test(&slot);
        drop(operation);
    }

    #[test]
    fn a_servers_copy_tells_how_far_an_intent_was() {
        let first = DaemonId::try_from(3).unwrap();
        in_operation(|slot| {
            let claimed = || IntentClaim::of_copy(&slot.bytes());
            assert_eq!(claimed(), None);
            for undo in [Undo::Saved, Undo::Absent] {
                let intent = slot.intend(1 << 30, 64);
                let is = |progress| Some(IntentClaim { addr: 1 << 30, bytes: 64, progress });
                assert_eq!(claimed(), is(Progress::Settled));
                intent.begin_first(first, undo);
                assert_eq!(claimed(), is(Progress::First { first: 3, undo }));
                intent.begin_others();
                assert_eq!(claimed(), is(Progress::Others { first: 3, undo }));
                intent.settle();
                assert_eq!(claimed(), is(Progress::Settled));
                intent.begin_alone(first, undo);
                assert_eq!(claimed(), is(Progress::Alone { first: 3, undo }));
                intent.begin_others_of(first);
                let undo = Undo::Absent;
                assert_eq!(claimed(), is(Progress::Others { first: 3, undo }));
                intent.begin_pages_of(first);
                assert_eq!(claimed(), is(Progress::Pages { first: 3 }));
                intent.clear();
                assert_eq!(claimed(), None);
            }
        });
    }

    #[test]
    fn noise_is_an_intent_without_sense_and_a_short_copy_none() {
        for phase in [4, 8, 9, 11, u32::MAX] {
            let mut copy = vec![0xff; size_of::<Slot>()];
            copy[4..8].copy_from_slice(&phase.to_le_bytes());
            let claim = IntentClaim::of_copy(&copy).unwrap();
            assert_eq!((claim.bytes, claim.progress), (u64::MAX, Progress::Nonsense), "{phase}");
            assert_eq!(IntentClaim::of_copy(&copy[..32]), None);
        }
    }

    #[test]
    #[should_panic(expected = "the operation changes 8 bytes already")]
    fn an_operation_has_one_intent_at_a_time() {
        in_operation(|slot| {
            let _first = slot.intend(4096, 8);
            let _second = slot.intend(8192, 8);
        });
    }

    #[test]
    #[should_panic(expected = "the slot has no operation")]
    fn what_is_in_no_operation_has_no_intent() {
        let _ = Slot::default().intend(4096, 8);
    }
}

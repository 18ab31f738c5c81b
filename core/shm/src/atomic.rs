//! The atomics of the state machines: those of the processor, or of loom's model of it.
//!
//! Under `--cfg loom` the modules [`crate::slot`] and [`crate::lock`], and those of the crates
//! above that use these words, are explored over every interleaving and every value that a weak
//! memory model lets a load see.

#[cfg(not(loom))]
pub use std::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU16, AtomicUsize, Ordering, compiler_fence, fence,
};

#[cfg(not(any(loom, test)))]
pub use std::sync::atomic::{AtomicU32, AtomicU64};

/// In the tests of this crate an access is a step, before which its thread may be stopped.
#[cfg(all(test, not(loom)))]
pub use crate::stepped::{AtomicU32, AtomicU64};

#[cfg(loom)]
pub use loom::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};

/// In the model the light half of an asymmetric pair is a full fence: what the kernel makes of it
/// when the other half runs.
#[cfg(loom)]
pub fn compiler_fence(order: Ordering) {
    fence(order);
}

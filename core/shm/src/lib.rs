//! The shared memory objects of DMCE, typed: the Rust form of `docs/shared-memory.md`.
//!
//! | module | object | written by |
//! |---|---|---|
//! | [`header`] | block header | its daemon, by `pwrite` |
//! | [`session`] | session object | its client, in a mapping; the broker, by `pwrite` |
//! | [`record`] | session record | the broker, by `pwrite` |
//! | [`table`] | lock table of a block | who may write the block, in a mapping |
//!
//! [`slot`] and [`lock`] are the two state machines that several processes run on one word, each in
//! one file and explored under loom; [`fence`](mod@fence) and [`parking`] are what they stand on.
//! [`copies`] is a write to all copies of a block, and its repair.
//!
//! # Invariants
//!
//! 1. Every layout asserts its offsets at compile time and is pinned by a fingerprint, the same on
//!    32 and 64 bits.
//! 2. What another process can write is an atomic or a private copy, never a plain reference; no
//!    field of it is used before it is checked.
//! 3. Whoever dies between any two stores leaves a state that this crate names and can go on from.
//! 4. There is no policy here: what to do about a damaged header, a session that cut its object or
//!    a lock of a dead owner is decided by the crates above.

pub mod atomic;
pub mod copies;
#[cfg(all(test, not(loom)))]
mod document_tests;
pub mod fence;
#[cfg(not(loom))]
pub mod header;
#[cfg_attr(loom, allow(dead_code, reason = "the model has no layouts"))]
mod layout;
pub mod lock;
pub mod parking;
pub mod pointers;
#[cfg(not(loom))]
mod preamble;
#[cfg(not(loom))]
pub mod record;
#[cfg(not(loom))]
pub mod session;
pub mod slot;
#[cfg(all(test, not(loom)))]
mod stepped;
#[cfg(not(loom))]
pub mod table;
#[cfg(all(test, not(loom)))]
mod testing;

pub use fence::Fence;

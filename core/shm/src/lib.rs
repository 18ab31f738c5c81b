//! The shared memory objects of DMCE, typed: the Rust form of `docs/shared-memory.md`.
//!
//! | module | object | written by |
//! |---|---|---|
//! | [`header`] | block header | its daemon, by `pwrite` |
//! | [`session`] | session object | its client, in a mapping; the broker, by `pwrite` |
//! | [`record`] | session record | the broker, by `pwrite` |
//!
//! [`slot`] is the state machine that a client and the broker run on one word, explored under loom;
//! [`fence`](mod@fence) is what it stands on.
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
pub mod fence;
#[cfg(not(loom))]
pub mod header;
mod layout;
#[cfg(not(loom))]
mod preamble;
#[cfg(not(loom))]
pub mod record;
#[cfg(not(loom))]
pub mod session;
pub mod slot;

pub use fence::Fence;

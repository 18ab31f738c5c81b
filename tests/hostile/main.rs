//! Peers that lie: raw frames against a real broker, and claims in shared words.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "a test ends where something is not as it must be, and its numbers are small"
)]

mod daemons;
mod descriptors;
mod flood;
mod frames;
mod links;
mod names;
mod words;

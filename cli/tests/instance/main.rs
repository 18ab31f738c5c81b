//! The command with real servers: instances that start, fail, die in parts, and leave nothing.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test, and says where")]

mod client;
mod failed_starts;
mod failures;
mod halves;
mod harness;
mod lifecycle;
mod listings;
mod moves;
mod recovery;
mod scrub;

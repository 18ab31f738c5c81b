//! What DMCE does when nothing breaks, against real servers: each module a subject.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::large_stack_arrays,
    reason = "a test ends where something is not as it must be, and its numbers are small"
)]

mod copies_by_message;
mod limits;
mod memory;
mod messages;
mod pointers;
mod regions;
mod rights;
mod room;
mod threads;
mod transparent;
mod widths;
mod words;

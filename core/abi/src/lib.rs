//! What every part of DMCE agrees on: addresses, messages, status codes, limits, versions.
//!
//! # Invariants
//!
//! 1. No I/O, no clock, no unsafe code, nothing that differs between 32 and 64 bits.
//! 2. What crosses a process boundary has a version here, and a test that pins its bytes.
//! 3. Decoding checks syntax alone; whether a request makes sense is the receiver's to say.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod addr;
pub mod block;
pub mod limits;
pub mod name;
pub mod rate;
pub mod rounds;
pub mod status;
pub mod version;
pub mod wire;

pub use addr::{AddrError, AddrLayout, AddrParts, DmceAddr};
pub use status::Status;

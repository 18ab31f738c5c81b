//! Measurements of DMCE, each beside something that everybody knows: `make bench`.
//!
//! ```text
//! dmce-bench          starts an instance for each group of rows, measures, prints the table
//! dmce-bench-worker   the other process of a row: a client of either width, an echo, the janitor
//! ```
//!
//! # Invariants
//!
//! 1. A figure of DMCE is never alone: what it is compared with ran on the same machine in the same
//!    run, turn by turn with it ([`measure::alternate`]), on memory that both had touched before.
//! 2. DMCE is called as C programs call it: by the functions of `libdmce.h`, through pointers that
//!    the compiler cannot see behind ([`calls::Calls`]).
//! 3. Nothing outlives a run, however it ends: the kernel ends the servers with it, and a process
//!    of its own removes what they leave ([`janitor`]).
//!
//! This package is a C program written in Rust: it dereferences pointers that the interface gave
//! it, so it has `unsafe` code where the other packages beside the product have none.

pub mod affinity;
pub mod calls;
pub mod echo;
pub mod error;
pub mod host;
pub mod huge;
pub mod janitor;
pub mod losses;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod offsets;
pub mod peers;
pub mod places;
pub mod records;
pub mod redis;
pub mod report;
pub mod rows;
pub mod server;
pub mod session;
pub mod setting;
pub mod table;
pub mod worker;
pub mod working_set;

pub use error::{Error, Result};

//! What DMCE does when nothing breaks, against real servers: each module a subject.
#![forbid(unsafe_code)]

mod limits;
mod memory;
mod regions;
mod rights;
mod threads;
mod widths;

//! What DMCE reads from others, under bytes of chance.
//!
//! A [`Target`] takes any bytes as what a hostile peer sent, or left in shared memory, and fails by
//! a panic if something comes of them that must not. Two programs run the same targets:
//!
//! | what | how | where |
//! |---|---|---|
//! | the kept inputs, and a fixed number of mutations of each target's | `cargo test` | `tests/` |
//! | a search by coverage, as long as one likes | `make fuzz` | `src/bin/search.rs` |
//!
//! # Invariants
//!
//! 1. A target is a function of its bytes: no clock, no randomness, nothing that is kept between
//!    two runs. So an input that failed fails again.
//! 2. A target checks what those rely on who call the code in a server, not how it works.
//! 3. `corpus/TARGET` holds the inputs that reached something new, each as small as it was found.
#![forbid(unsafe_code)]

mod addresses;
mod configuration;
pub mod corpus;
mod dispatcher;
mod frames;
mod headers;
mod locks;
pub mod mutation;
mod names;
mod objects;
mod records;
mod sessions;

/// Something that reads what others wrote.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, which is that of its folder in `corpus`.
    pub name: &'static str,
    /// Reads the bytes. Panics if it finds what must not be.
    pub run: fn(&[u8]),
    /// Inputs longer than this reach nothing more.
    pub bytes_max: usize,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "addresses", run: addresses::run, bytes_max: 128 },
    Target { name: "configuration", run: configuration::run, bytes_max: 2048 },
    Target { name: "dispatcher", run: dispatcher::run, bytes_max: 4096 },
    Target { name: "frames", run: frames::run, bytes_max: 4096 },
    Target { name: "headers", run: headers::run, bytes_max: 4096 },
    Target { name: "locks", run: locks::run, bytes_max: 512 },
    Target { name: "names", run: names::run, bytes_max: 256 },
    Target { name: "records", run: records::run, bytes_max: 4096 },
    Target { name: "sessions", run: sessions::run, bytes_max: 1024 },
];

impl Target {
    /// The target of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        TARGETS.into_iter().find(|target| target.name == name)
    }
}

//! The C interface of DMCE: what `include/libdmce.h` declares, over the crate `libdmce`.
//!
//! The header is generated from these modules, comments included, and is what C programs read; its
//! contract in prose stands in `cbindgen.toml`. Here is what keeps that contract:
//!
//! 1. **Every call goes through [`boundary`]**: panics, handles and errors are dealt with there,
//!    and nowhere else.
//! 2. **Handles are never dereferenced** ([`handles`]): a stale one is an error code.
//! 3. **Outputs are written last** ([`arguments`]), and only by calls that succeed.
//! 4. **Structures carry their size** ([`sized`]) and have no padding ([`layout`]).
//! 5. What this release does not do is declared all the same and says so ([`later`]).
//!
//! There is no logic of memory here: that is `libdmce`'s.

#![allow(non_camel_case_types, reason = "the names are those of C")]
#![allow(clippy::missing_safety_doc, reason = "the C contract stands at the head of the header")]

mod arguments;
mod boundary;
mod calls;
mod failure;
mod handles;
mod later;
mod layout;
mod sized;

// The header has its parts in this order; empty lines keep it from being sorted.
pub mod version;

pub mod options;

pub mod session;

pub mod alloc;

pub mod access;

pub mod map;

pub mod pointer;

pub mod region;

pub mod attrs;

pub mod context;

pub mod event;

pub mod strings;

//! Other allocators, as a C program calls them: through pointers.

use std::ffi::c_void;
use std::hint::black_box;
use std::path::Path;

use crate::calls;

/// An allocator of private memory.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// What it is called in the table.
    pub name: &'static str,
    /// Its `malloc`.
    pub malloc: unsafe extern "C" fn(usize) -> *mut c_void,
    /// Its `free`.
    pub free: unsafe extern "C" fn(*mut c_void),
}

impl Peer {
    /// That of the C library.
    #[must_use]
    pub fn libc() -> Self {
        black_box(Self { name: "malloc, free (glibc)", malloc: libc::malloc, free: libc::free })
    }

    /// mimalloc, if this host has it as a shared library: as programs get it that do not bring
    /// their own.
    #[must_use]
    pub fn mimalloc() -> Option<Self> {
        let library = calls::load(Path::new("libmimalloc.so.2")).ok()?;
        let malloc = calls::symbol(library, "mi_malloc\0").ok()?;
        let free = calls::symbol(library, "mi_free\0").ok()?;
        Some(Self {
            name: "mi_malloc, mi_free",
            // SAFETY: a function of this type, by the contract of mimalloc.h.
            malloc: unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn(usize) -> *mut c_void>(
                    malloc,
                )
            },
            // SAFETY: the same.
            free: unsafe {
                std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_void)>(free)
            },
        })
    }
}

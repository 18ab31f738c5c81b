//! What comes from C, checked: pointers to outputs, texts, buffers.
//!
//! # Invariants
//!
//! 1. A pointer that is not NULL is believed: it points to what the header says, for the call.
//! 2. An output is written once, as the last thing of a call that succeeds.

use std::ffi::{CStr, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::NonNull;

use crate::failure::Failure;

/// Where a call puts a result.
pub(crate) struct Out<T>(NonNull<T>);

impl<T> Out<T> {
    /// Takes the pointer that C passed as `name`.
    ///
    /// # Safety
    ///
    /// `pointer` is NULL, or a `T` may be written there until the call returns.
    #[inline]
    pub(crate) unsafe fn new(name: &str, pointer: *mut T) -> Result<Self, Failure> {
        NonNull::new(pointer).map(Self).ok_or_else(|| null(name))
    }

    /// Writes the result.
    #[inline]
    pub(crate) fn set(self, value: T) {
        // SAFETY: `new` had the caller promise that this may be written. Unaligned, because a
        // packed struct of the program may hold it.
        unsafe { self.0.as_ptr().write_unaligned(value) }
    }
}

/// The failure of an argument that is NULL and may not be.
#[cold]
pub(crate) fn null(name: &str) -> Failure {
    Failure::invalid(format!("{name} is NULL"))
}

/// A buffer of `bytes`. It may be NULL if it is empty, as the data of an empty C++ vector is.
#[inline]
pub(crate) fn buffer<T>(pointer: *const T, bytes: usize) -> Result<(), Failure> {
    if pointer.is_null() && bytes != 0 { Err(null("buffer")) } else { Ok(()) }
}

/// A text that must be there.
///
/// # Safety
///
/// `pointer` is NULL, or points to a C string that does not change while the result is used.
pub(crate) unsafe fn text<'a>(name: &str, pointer: *const c_char) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Err(null(name));
    }
    // SAFETY: not NULL, so a C string that stays as it is, by this function's own contract.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| Failure::invalid(format!("{name} is not UTF-8 text")))
}

/// A text that may be NULL, which means the empty one.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn text_or_empty<'a>(
    name: &str,
    pointer: *const c_char,
) -> Result<&'a str, Failure> {
    if pointer.is_null() {
        return Ok("");
    }
    // SAFETY: the same contract.
    unsafe { text(name, pointer) }
}

/// A path that may be NULL. Paths are bytes, not text.
///
/// # Safety
///
/// As [`text`].
pub(crate) unsafe fn path_or_none(pointer: *const c_char) -> Option<PathBuf> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: not NULL, so a C string, by this function's own contract.
    let bytes = unsafe { CStr::from_ptr(pointer) };
    Some(OsStr::from_bytes(bytes.to_bytes()).into())
}

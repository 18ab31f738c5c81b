//! Structures that begin with their own size, so that a program and a library of different ages
//! understand each other.
//!
//! ```text
//!   program's struct  | size | a | b |            smaller: c and d have their defaults
//!   ours              | size | a | b | c | d |
//!   program's struct  | size | a | b | c | d | e  larger: fine if e is zero, else E_VERSION
//! ```
//!
//! # Invariants
//!
//! 1. Never is a byte read or written behind the size that the caller stated.
//! 2. The default of every field is zero, so what an older program does not know is not set.
//! 3. A size ends with a field: no field is taken by half, least of all a pointer.

use std::mem::MaybeUninit;
use std::ptr;

use dmce_abi::Status;

use crate::arguments::null;
use crate::failure::Failure;

/// No structure of this interface ever gets larger, so a greater size is garbage.
const SIZE_MAX: usize = 4096;

const SIZE_FIELD: usize = size_of::<u32>();

/// A structure of the interface that begins with `uint32_t size`.
///
/// # Safety
///
/// The type is `repr(C)`, has no padding, begins with the `u32` size, and any bytes make a value of
/// it, zeros included.
pub(crate) unsafe trait SizePrefixed: Copy {
    /// Its name in C.
    const NAME: &'static str;
    /// Where each field ends, rising.
    const FIELD_ENDS: &'static [usize];
}

/// Takes a structure that the caller filled.
///
/// # Errors
///
/// `Invalid` for NULL or a size that no version of the structure has; `Version` if there is more
/// in it than this version knows.
///
/// # Safety
///
/// `pointer` is NULL, or points to as many readable bytes as the size at its start says.
pub(crate) unsafe fn take<T: SizePrefixed>(pointer: *const T) -> Result<T, Failure> {
    // SAFETY: the same contract.
    let known = unsafe { known_bytes(pointer)? };
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: `known` is at most the size at the structure's start and at most that of a `T`.
    unsafe { ptr::copy_nonoverlapping(pointer.cast::<u8>(), value.as_mut_ptr().cast(), known) };
    // SAFETY: any bytes make a `T`, by the trait's contract; what was not copied is zero.
    Ok(unsafe { value.assume_init() })
}

/// Takes a structure, or its defaults where the caller passed NULL.
///
/// # Errors
///
/// As [`take`].
///
/// # Safety
///
/// As [`take`].
pub(crate) unsafe fn take_or_default<T: SizePrefixed>(pointer: *const T) -> Result<T, Failure> {
    if pointer.is_null() {
        // SAFETY: zeros make a `T`, by the trait's contract.
        return Ok(unsafe { MaybeUninit::zeroed().assume_init() });
    }
    // SAFETY: the same contract.
    unsafe { take(pointer) }
}

/// A structure of the caller that a call will fill.
pub(crate) struct Fill<T> {
    pointer: *mut T,
    known: usize,
}

impl<T: SizePrefixed> Fill<T> {
    /// Checks the caller's structure.
    ///
    /// # Errors
    ///
    /// As [`take`].
    ///
    /// # Safety
    ///
    /// `pointer` is NULL, or as many bytes as the size at its start says may be read, and written
    /// until the call returns.
    pub(crate) unsafe fn new(pointer: *mut T) -> Result<Self, Failure> {
        // SAFETY: the same contract.
        let known = unsafe { known_bytes(pointer.cast_const())? };
        Ok(Self { pointer, known })
    }

    /// Writes as much of `value` as the caller knows. The caller's size stays.
    pub(crate) fn set(self, value: &T) {
        let from = ptr::from_ref(value).cast::<u8>().wrapping_add(SIZE_FIELD);
        let to = self.pointer.cast::<u8>().wrapping_add(SIZE_FIELD);
        // SAFETY: `known` covers the size field and is within both structures, by `known_bytes`
        // and the promise that `new` was given; `value` is ours and so not the caller's.
        unsafe { ptr::copy_nonoverlapping(from, to, self.known - SIZE_FIELD) };
    }
}

/// Fills the caller's structure of `bytes` with defaults, and its size.
///
/// # Safety
///
/// `pointer` is NULL, or `bytes` bytes may be written there.
pub(crate) unsafe fn init<T: SizePrefixed>(pointer: *mut T, bytes: usize) {
    let Ok(size) = u32::try_from(bytes) else { return };
    if pointer.is_null() || bytes < SIZE_FIELD {
        return;
    }
    // SAFETY: not NULL, and so many bytes may be written, by this function's own contract.
    unsafe { ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
    // SAFETY: the structure has room for its size, as was checked above.
    unsafe { pointer.cast::<u32>().write_unaligned(size) };
}

/// How many bytes of the caller's structure this version knows.
unsafe fn known_bytes<T: SizePrefixed>(pointer: *const T) -> Result<usize, Failure> {
    if pointer.is_null() {
        return Err(null(T::NAME));
    }
    // SAFETY: not NULL, so it begins with a size, by the contract of all callers.
    let stated = unsafe { pointer.cast::<u32>().read_unaligned() };
    let ours = size_of::<T>();
    let size = usize::try_from(stated).unwrap_or(usize::MAX);
    if size > SIZE_MAX || (size < ours && !T::FIELD_ENDS.contains(&size)) {
        return Err(Failure::invalid(format!(
            "the size of {} says {size} bytes, this version has {ours}: initialise it",
            T::NAME
        )));
    }
    for at in ours..size {
        let byte = pointer.cast::<u8>().wrapping_add(at);
        // SAFETY: within the size that the structure states, so readable by the same contract.
        if unsafe { byte.read() } != 0 {
            return Err(Failure::new(
                Status::Version,
                format!("byte {at} of {} is set, this version knows {ours}", T::NAME),
            ));
        }
    }
    Ok(size.min(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Ours {
        size: u32,
        a: u32,
        b: u64,
    }

    // SAFETY: repr(C), 4 + 4 + 8 bytes without padding, integers alone.
    unsafe impl SizePrefixed for Ours {
        const NAME: &'static str = "ours";
        const FIELD_ENDS: &'static [usize] = &[4, 8, 16];
    }

    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Newer {
        known: Ours,
        c: u64,
    }

    fn taken(known: Ours) -> Result<Ours, Status> {
        // SAFETY: a whole structure; the sizes of the tests are at most its own.
        unsafe { take(&raw const known) }.map_err(|failure| failure.status())
    }

    fn taken_from_newer(newer: Newer) -> Result<Ours, Status> {
        // SAFETY: a whole structure whose size says so.
        unsafe { take((&raw const newer).cast::<Ours>()) }.map_err(|failure| failure.status())
    }

    #[test]
    fn a_smaller_structure_means_defaults_for_the_rest() {
        for (size, a, b) in [(4, 0, 0), (8, 7, 0), (16, 7, 9)] {
            assert_eq!(taken(Ours { size, a: 7, b: 9 }), Ok(Ours { size, a, b }));
        }
    }

    #[test]
    fn a_larger_structure_must_have_zeros_behind_what_is_known() {
        let known = Ours { size: 24, a: 7, b: 9 };
        assert_eq!(taken_from_newer(Newer { known, c: 0 }), Ok(known));
        assert_eq!(taken_from_newer(Newer { known, c: 1 << 63 }), Err(Status::Version));
    }

    #[test]
    fn sizes_that_no_version_has_are_refused_before_anything_is_read() {
        for size in [0, 3, 5, 12, 15, 4097, u32::MAX] {
            assert_eq!(taken(Ours { size, a: 0, b: 0 }), Err(Status::Invalid), "{size}");
        }
        // SAFETY: NULL is allowed.
        let null = unsafe { take::<Ours>(ptr::null()) };
        assert_eq!(null.err().unwrap().status(), Status::Invalid);
    }

    #[test]
    fn only_the_stated_bytes_are_filled_and_the_size_stays() {
        for (size, a, b) in [(4, 1, 2), (8, 7, 2), (16, 7, 9)] {
            let mut caller = Ours { size, a: 1, b: 2 };
            // SAFETY: a whole structure that outlives the fill.
            let fill = unsafe { Fill::new(&raw mut caller) }.map_err(|f| f.status()).unwrap();
            fill.set(&Ours { size: 99, a: 7, b: 9 });
            assert_eq!(caller, Ours { size, a, b });
        }
    }

    #[test]
    fn initialising_writes_the_callers_bytes_and_no_more() {
        let mut caller = Newer { known: Ours { size: 1, a: 1, b: 1 }, c: 1 };
        // SAFETY: fewer bytes than the structure has.
        unsafe { init(&raw mut caller.known, 8) };
        assert_eq!(caller.known, Ours { size: 8, a: 0, b: 1 });
        // SAFETY: as many bytes as the structure has.
        unsafe { init((&raw mut caller).cast::<Ours>(), 24) };
        assert_eq!((caller.known, caller.c), (Ours { size: 24, a: 0, b: 0 }, 0));
    }
}

//! Lists of texts: how they go to C, and how they come back to be freed.
//!
//! # Invariants
//!
//! 1. Each text is an allocation of its own; the array is the caller's.
//! 2. Entries behind the last text are NULL, so that freeing the whole array is right as well.

use std::ffi::{CString, c_char};
use std::ptr;

use crate::arguments::{Out, null};
use crate::failure::Failure;

/// Where a list goes: an array of the caller's, and how many texts there are in all.
pub(crate) struct List {
    names: *mut *mut c_char,
    room: usize,
    count: Out<usize>,
}

impl List {
    /// Takes the caller's array. (NULL, 0) only counts.
    ///
    /// # Errors
    ///
    /// `Invalid` for a NULL that is not allowed.
    ///
    /// # Safety
    ///
    /// `names` is NULL or an array of `list_size` pointers, `count` is NULL or a place for a
    /// number; they may be written until the call returns.
    pub(crate) unsafe fn new(
        names: *mut *mut c_char,
        list_size: usize,
        count: *mut usize,
    ) -> Result<Self, Failure> {
        if names.is_null() && list_size != 0 {
            return Err(null("names"));
        }
        // SAFETY: the same contract.
        let count = unsafe { Out::new("region_cnt", count)? };
        Ok(Self { names, room: list_size, count })
    }

    /// Gives the texts out, as many as fit, and their number.
    ///
    /// # Errors
    ///
    /// `Invalid` if one has a NUL inside; then nothing is given out.
    pub(crate) fn set(self, texts: Vec<String>) -> Result<(), Failure> {
        let all = texts.len();
        let given: Result<Vec<CString>, _> =
            texts.into_iter().take(self.room).map(CString::new).collect();
        let given = given.map_err(|_| Failure::invalid("a name has a NUL inside"))?;
        let mut rest = given.into_iter();
        for index in 0..self.room {
            let text = rest.next().map_or(ptr::null_mut(), CString::into_raw);
            // SAFETY: the array has so many entries, by the contract of `new`.
            let entry = unsafe { self.names.add(index) };
            // SAFETY: the same; entries may be written.
            unsafe { entry.write(text) };
        }
        self.count.set(all);
        Ok(())
    }
}

/// Frees the texts in an array of `count` and makes them NULL. The array itself is the caller's.
/// NULL is fine, for the array and for a text.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_strings_free(names: *mut *mut c_char, count: usize) {
    if names.is_null() {
        return;
    }
    for index in 0..count {
        // SAFETY: the C contract: the array has `count` entries.
        let entry = unsafe { names.add(index) };
        // SAFETY: the same; entries may be read and written.
        let text = unsafe { entry.replace(ptr::null_mut()) };
        if !text.is_null() {
            // SAFETY: the C contract: the entry is what this library put there, so `into_raw` made
            // it, and it has not been freed: it would be NULL.
            drop(unsafe { CString::from_raw(text) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn listed(size: usize) -> (Vec<Option<String>>, usize) {
        let mut names = vec![ptr::dangling_mut::<c_char>(); size];
        let mut count = 99;
        // SAFETY: an array of that size and a number, which outlive the call.
        let list = unsafe { List::new(names.as_mut_ptr(), size, &raw mut count) };
        list.unwrap().set(vec!["a".into(), "b".into(), "c".into()]).unwrap();
        let text = |name: &*mut c_char| {
            // SAFETY: an entry is NULL or a C string.
            let text = (!name.is_null()).then(|| unsafe { CStr::from_ptr(*name) });
            text.map(|text| text.to_str().unwrap().to_owned())
        };
        let texts = names.iter().map(text).collect();
        for _ in 0..2 {
            // SAFETY: the array as it was filled; freeing it twice is fine.
            unsafe { dmce_strings_free(names.as_mut_ptr(), size) };
            assert!(names.iter().all(|name| name.is_null()));
        }
        (texts, count)
    }

    #[test]
    fn a_short_array_is_filled_and_a_long_one_ends_with_nulls() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(listed(2), (vec![some("a"), some("b")], 3));
        assert_eq!(listed(4), (vec![some("a"), some("b"), some("c"), None], 3));
    }

    #[test]
    fn no_array_only_counts() {
        let mut count = 0;
        // SAFETY: no array, and a number that outlives the call.
        let list = unsafe { List::new(ptr::null_mut(), 0, &raw mut count) };
        list.unwrap().set(vec!["a".into()]).unwrap();
        assert_eq!(count, 1);
        // SAFETY: NULL is refused before it is used.
        assert!(unsafe { List::new(ptr::null_mut(), 1, &raw mut count) }.is_err());
    }
}

//! A header that was read, and is looked at again by its stamp: whether it still says the same.

use std::os::fd::AsFd;

use dmce_shm::header::{self, HeaderError, Stamp};
use dmce_sys::object;

use super::folder::Own;

/// The object of a header, and its stamp from before it was read.
#[derive(Debug)]
pub(super) struct Stamped {
    object: Own,
    stamp: Stamp,
}

impl Stamped {
    /// Takes the stamp of a header that is to be read.
    ///
    /// # Errors
    ///
    /// As [`header::stamp`].
    pub(super) fn before_reading(object: Own) -> Result<Self, HeaderError> {
        let stamp = header::stamp(object.as_fd())?;
        Ok(Self { object, stamp })
    }

    /// The object.
    pub(super) const fn object(&self) -> &Own {
        &self.object
    }

    /// Whether the header still says what was read.
    pub(super) fn is_current(&self) -> bool {
        // One that was removed is not written any more.
        let is_there = object::stat(self.object.as_fd()).is_ok_and(|stat| stat.links > 0);
        is_there && header::stamp(self.object.as_fd()).is_ok_and(|now| now == self.stamp)
    }
}

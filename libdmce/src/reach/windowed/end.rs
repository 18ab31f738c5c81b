//! Whether an object still reaches as far as it was committed, without a call of the kernel.
//!
//! The page of the last committed byte is mapped, and touched. When the object has been cut short
//! it is gone, and the touch an error.
//!
//! # Invariants
//!
//! 1. What is committed only grows, so a page that shows a later end than is asked for will do.
//! 2. `shown` rises after the page is there.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use dmce_sys::map::{FileRange, Populate, Protection, Reservation};
use dmce_sys::object;
use dmce_sys::transfer::{self, Store};

use crate::reach::Trouble;

const PAGE: u64 = dmce_abi::limits::PAGE_BYTES;

/// The end of an object.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Where its last page is shown; none if there is no address space for it.
    page: OnceLock<Option<Reservation>>,
    /// The end that is shown, in bytes of the object; 0 for none.
    shown: AtomicU64,
    changing: Mutex<()>,
}

impl End {
    /// Checks that the object has `committed` bytes; a part of the last page may be missing, which
    /// reads as zero.
    ///
    /// # Errors
    ///
    /// [`Trouble::Lost`], [`Trouble::Io`].
    pub(super) fn check(&self, fd: BorrowedFd<'_>, committed: u64) -> Result<(), Trouble> {
        // Acquire pairs with the release in `show`.
        if self.shown.load(Ordering::Acquire) < committed && !self.show(fd, committed) {
            return match object::end(fd) {
                Ok(end) if end >= committed => Ok(()),
                Ok(_) => Err(Trouble::Lost),
                Err(error) => Err(super::io_trouble("measure", &error)),
            };
        }
        let page = self.page.get().and_then(Option::as_ref);
        let Some(first) = page.and_then(|page| page.range(0, 1).ok()) else { return Ok(()) };
        let mut byte = 0_u8;
        // SAFETY: the byte is ours.
        Ok(unsafe { transfer::load(first, &raw mut byte, Store::Cached) }?)
    }

    /// Maps the page that ends at `committed`. False if that cannot be done.
    #[cold]
    fn show(&self, fd: BorrowedFd<'_>, committed: u64) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.shown.load(Ordering::Relaxed) >= committed {
            return true;
        }
        let page = self.page.get_or_init(|| Reservation::new(PAGE).ok());
        let last = FileRange { offset: (committed - 1) / PAGE * PAGE, bytes: PAGE };
        let mapped = page
            .as_ref()
            .is_some_and(|page| page.map_at(0, fd, last, Protection::Read, Populate::No).is_ok());
        if mapped {
            // Release pairs with the acquire in `check`.
            self.shown.store(committed, Ordering::Release);
        }
        mapped
    }
}

//! Telling a forked child from its parent without a system call.
//!
//! # Invariants
//!
//! 1. The kernel zeroes such a page in a child before the child runs. That of a [`WipeOnForkPage`]
//!    nobody else changes.

use rustix::mm::Advice;

use super::advice::advise;
use super::{MapError, Mapping, page_bytes};

/// A page of zeros that the kernel makes zero again in every forked child. Written by its owner.
#[derive(Debug)]
pub struct WipedPage {
    page: Mapping,
}

impl WipedPage {
    /// Maps the page.
    ///
    /// # Errors
    ///
    /// [`MapError::AddressSpace`], [`MapError::Unsupported`] before Linux 4.14, [`MapError::Io`].
    pub fn new() -> Result<Self, MapError> {
        let page = Mapping::private(page_bytes() as u64)?;
        advise(page.whole(), Advice::LinuxWipeOnFork, "wiping on fork")?;
        Ok(Self { page })
    }

    /// Its first byte.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.page.as_ptr()
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.page.len()
    }
}

/// A page that tells a forked child from its parent.
#[derive(Debug)]
pub struct WipeOnForkPage {
    page: WipedPage,
}

impl WipeOnForkPage {
    const MAGIC: u64 = 0x444d_4345_464f_524b;

    /// Maps the page and marks it.
    ///
    /// # Errors
    ///
    /// As [`WipedPage::new`].
    pub fn new() -> Result<Self, MapError> {
        let page = WipedPage::new()?;
        // SAFETY: the page is ours alone, writable, and aligned for any word.
        unsafe { word_of(&page).write_volatile(Self::MAGIC) };
        Ok(Self { page })
    }

    /// Whether this process is a child of the one that made the page. One load.
    #[inline]
    #[must_use]
    pub fn is_forked(&self) -> bool {
        // SAFETY: the page is mapped as long as `self` lives, and written by nobody after `new`;
        // the kernel zeroes it in a child before the child runs.
        let word = unsafe { word_of(&self.page).read_volatile() };
        word != Self::MAGIC
    }
}

#[inline]
#[allow(clippy::cast_ptr_alignment, reason = "a page is aligned for any word")]
fn word_of(page: &WipedPage) -> *mut u64 {
    page.as_ptr().cast()
}

//! One 64-bit word of an object, mapped for as long as something is done to it.
//!
//! For servers: they map nothing that clients can write, but for the page of such a word, and touch
//! it by [`crate::transfer::word`] alone, which a SIGBUS ends with an error.
//! [`crate::fault::install`] comes first.

use std::os::fd::BorrowedFd;

use crate::futex::{FutexError, wide};
use crate::map::{FileRange, MapError, Mapping, Populate, Protection, page_bytes};
use crate::transfer::Gone;
use crate::transfer::word::{WORD_BYTES, Word};

/// Why nothing was done to a word.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    /// No word of an object begins there.
    #[error("offset {offset} is no multiple of {WORD_BYTES}")]
    Unaligned {
        /// The offset.
        offset: u64,
    },
    /// The page cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The page is not there.
    #[error(transparent)]
    Gone(#[from] Gone),
    /// Those who wait cannot be woken.
    #[error(transparent)]
    Futex(#[from] FutexError),
}

/// A word of an object.
#[derive(Debug)]
pub struct ObjectWord {
    page: Mapping,
    offset: u64,
}

impl ObjectWord {
    /// Maps the page of the word at `offset`. The descriptor can read and write.
    ///
    /// # Errors
    ///
    /// [`WordError::Unaligned`], [`WordError::Map`].
    pub fn map(fd: BorrowedFd<'_>, offset: u64) -> Result<Self, WordError> {
        if !offset.is_multiple_of(WORD_BYTES as u64) {
            return Err(WordError::Unaligned { offset });
        }
        let page = page_bytes() as u64;
        let in_page = offset % page;
        let range = FileRange { offset: offset - in_page, bytes: page };
        let page = Mapping::shared(fd, range, Protection::ReadWrite, Populate::No)?;
        Ok(Self { page, offset: in_page })
    }

    /// What it is.
    ///
    /// # Errors
    ///
    /// [`WordError::Gone`].
    pub fn load(&self) -> Result<u64, WordError> {
        Ok(self.word()?.load()?)
    }

    /// Makes it `desired` if it is `expected`; returns what it was.
    ///
    /// # Errors
    ///
    /// [`WordError::Gone`]: nothing was done.
    pub fn compare_exchange(&self, expected: u64, desired: u64) -> Result<u64, WordError> {
        // SAFETY: the page is mapped writable.
        Ok(unsafe { self.word()?.compare_exchange(expected, desired) }?)
    }

    /// Adds to it; returns what it was.
    ///
    /// # Errors
    ///
    /// [`WordError::Gone`]: nothing was done.
    pub fn fetch_add(&self, add: u64) -> Result<u64, WordError> {
        // SAFETY: the page is mapped writable.
        Ok(unsafe { self.word()?.fetch_add(add) }?)
    }

    /// Wakes at most `count` of those who wait for it.
    ///
    /// # Errors
    ///
    /// [`WordError::Gone`], [`WordError::Futex`].
    pub fn wake(&self, count: u32) -> Result<(), WordError> {
        let word = self.word()?;
        // The kernel wants the page there, and so is it told where it is not.
        word.load()?;
        wide::wake(word, count)?;
        Ok(())
    }

    fn word(&self) -> Result<Word<'_>, WordError> {
        let range = self.page.range(self.offset, WORD_BYTES as u64)?;
        Ok(Word::new(range).expect("the offset was looked at, and pages are aligned"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::object;
    use crate::testing::lend;

    #[test]
    fn a_word_is_changed_in_the_object() {
        let lent = lend(2, 0);
        let word = ObjectWord::map(lent.fd.as_fd(), 4104).unwrap();
        assert_eq!(word.fetch_add(1 << 40).unwrap(), 0);
        assert_eq!(word.compare_exchange(7, 8).unwrap(), 1 << 40);
        assert_eq!(word.compare_exchange(1 << 40, 9).unwrap(), 1 << 40);
        assert_eq!(word.load().unwrap(), 9);
        let mut bytes = [0; 24];
        object::read_at(lent.fd.as_fd(), &mut bytes, 4096).unwrap();
        assert_eq!(bytes[8..16], 9_u64.to_ne_bytes());
        assert_eq!((&bytes[..8], &bytes[16..]), (&[0; 8][..], &[0; 8][..]));
        let odd = ObjectWord::map(lent.fd.as_fd(), 4).unwrap_err();
        assert_eq!(odd.to_string(), "offset 4 is no multiple of 8");
    }

    #[test]
    fn a_word_that_is_gone_is_an_error_and_no_signal() {
        crate::fault::install().unwrap();
        let lent = lend(2, 0);
        let word = ObjectWord::map(lent.fd.as_fd(), 4096).unwrap();
        lent.keep_pages(1);
        assert!(matches!(word.load(), Err(WordError::Gone(_))));
        assert!(matches!(word.fetch_add(1), Err(WordError::Gone(_))));
        assert!(matches!(word.compare_exchange(0, 1), Err(WordError::Gone(_))));
        assert!(matches!(word.wake(1), Err(WordError::Gone(_))));
        assert_eq!(object::end(lent.fd.as_fd()).unwrap(), page_bytes() as u64);
    }

    #[test]
    fn who_waits_on_another_mapping_is_woken() {
        let lent = lend(1, 0);
        let silence = AtomicU32::new(0);
        let heard = wide::Heard { bell: &silence, value: 0 };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let word = Word::new(lent.mapping.range(8, 8).unwrap()).unwrap();
                while word.load().unwrap() == 0 {
                    wide::wait(word, 0, heard, None).unwrap();
                }
            });
            let word = ObjectWord::map(lent.fd.as_fd(), 8).unwrap();
            word.fetch_add(1).unwrap();
            word.wake(u32::MAX).unwrap();
        });
    }
}

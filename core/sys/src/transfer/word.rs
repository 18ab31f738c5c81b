//! Words of 64 bits that processes of both widths change atomically.
//!
//! # Invariants
//!
//! 1. A change is one atomic instruction of the processor, or a loop of them, on the bytes that all
//!    processes share; 32-bit processes have one for 64 bits, too.
//! 2. A change that ends with [`Gone`] has not happened.
//! 3. Changes are ordered as `SeqCst` ones are.

use super::{ABSENT, Gone, Routine, Store, add_word, exchange_word, load, part_by};
use crate::map::MappedRange;

/// Bytes of a word, and its alignment.
pub const WORD_BYTES: usize = 8;

/// An aligned word of shared memory that may be gone.
#[derive(Clone, Copy, Debug)]
pub struct Word<'a> {
    range: MappedRange<'a>,
}

impl<'a> Word<'a> {
    /// The word that a range is; `None` if it has not the size and the alignment of one.
    #[must_use]
    pub fn new(range: MappedRange<'a>) -> Option<Self> {
        let is_word = range.len() == WORD_BYTES && range.as_ptr().addr().is_multiple_of(WORD_BYTES);
        is_word.then_some(Self { range })
    }

    /// Its first byte.
    #[must_use]
    pub const fn as_ptr(self) -> *mut u8 {
        self.range.as_ptr()
    }

    /// Its halves of 32 bits: the low one, and the high one.
    #[must_use]
    pub const fn halves(self) -> [*mut u32; 2] {
        #[expect(clippy::cast_ptr_alignment, reason = "a word is aligned to 8")]
        let first = self.range.as_ptr().cast::<u32>();
        let second = first.wrapping_add(1);
        if cfg!(target_endian = "little") { [first, second] } else { [second, first] }
    }

    /// What it holds.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    pub fn load(self) -> Result<u64, Gone> {
        let mut bytes = [0; WORD_BYTES];
        // SAFETY: the buffer is ours and as long. One access, since it is aligned.
        unsafe { load(self.range, bytes.as_mut_ptr(), Store::Cached) }?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Makes it `desired` if it is `expected`; returns what it was.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    ///
    /// # Safety
    ///
    /// It is mapped writable.
    pub unsafe fn compare_exchange(self, expected: u64, desired: u64) -> Result<u64, Gone> {
        // SAFETY: as the caller promises.
        unsafe { self.change(exchange_word, [expected, desired]) }
    }

    /// Adds to it, wrapping around; returns what it was.
    ///
    /// # Errors
    ///
    /// [`Gone`].
    ///
    /// # Safety
    ///
    /// It is mapped writable.
    pub unsafe fn fetch_add(self, add: u64) -> Result<u64, Gone> {
        // SAFETY: as the caller promises.
        unsafe { self.change(add_word, [add, 0]) }
    }

    /// # Safety
    ///
    /// `routine` is one of those for words, which is mapped writable.
    unsafe fn change(self, routine: Routine, mut operands: [u64; 2]) -> Result<u64, Gone> {
        let shared = self.range.as_ptr();
        let both = (shared, operands.as_mut_ptr().cast::<u8>().cast_const());
        // SAFETY: the operands are what the routines for words want, which put what they saw in
        // the place of the first; the word is writable, as the caller promises.
        unsafe { part_by(routine, both, WORD_BYTES, [shared, ABSENT]) }?;
        Ok(operands[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::lend;

    fn exchange(word: Word<'_>, expected: u64, desired: u64) -> Result<u64, Gone> {
        // SAFETY: what is lent to these tests is mapped writable.
        unsafe { word.compare_exchange(expected, desired) }
    }

    fn add(word: Word<'_>, add: u64) -> Result<u64, Gone> {
        // SAFETY: as above.
        unsafe { word.fetch_add(add) }
    }

    #[test]
    fn a_word_is_aligned_and_of_eight_bytes() {
        let lent = lend(1, 0);
        for (offset, bytes, is_word) in
            [(0, 8, true), (8, 8, true), (4, 8, false), (0, 4, false), (0, 16, false)]
        {
            let word = Word::new(lent.mapping.range(offset, bytes).unwrap());
            assert_eq!(word.is_some(), is_word, "{bytes} bytes at {offset}");
        }
    }

    #[test]
    fn changes_return_what_was_there() {
        let lent = lend(1, 0);
        let word = Word::new(lent.mapping.range(64, 8).unwrap()).unwrap();
        let high = 0xfeed_0000_0001;
        let seen = [
            exchange(word, 0, high),
            exchange(word, 0, 7),
            // The halves alone do not count.
            exchange(word, 1, 7),
            add(word, u64::from(u32::MAX)),
            add(word, u64::MAX),
        ];
        assert_eq!(seen.map(Result::unwrap), [0, high, high, high, high + u64::from(u32::MAX)]);
        assert_eq!(word.load().unwrap(), high + u64::from(u32::MAX) - 1);
        // Neighbours are as they were.
        let around = [56, 72].map(|at| Word::new(lent.mapping.range(at, 8).unwrap()).unwrap());
        assert_eq!(around.map(|word| word.load().unwrap()), [0, 0]);
    }

    #[test]
    fn no_addition_of_many_threads_is_lost() {
        const ADDITIONS: u64 = 20_000;
        let lent = lend(1, 0);
        let word = || Word::new(lent.mapping.range(8, 8).unwrap()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..ADDITIONS {
                        add(word(), 1 << 31).unwrap();
                    }
                });
                scope.spawn(|| {
                    for _ in 0..ADDITIONS {
                        let mut seen = word().load().unwrap();
                        loop {
                            let now = exchange(word(), seen, seen + 1).unwrap();
                            if now == seen {
                                break;
                            }
                            seen = now;
                        }
                    }
                });
            }
        });
        assert_eq!(word().load().unwrap(), 2 * ADDITIONS * ((1 << 31) + 1));
    }

    #[test]
    fn a_word_that_is_gone_is_told_and_raises_no_signal() {
        crate::fault::install().unwrap();
        let lent = lend(1, 0);
        lent.keep_pages(0);
        let word = Word::new(lent.mapping.range(64, 8).unwrap()).unwrap();
        let gone = Err(Gone { addr: word.as_ptr().addr() });
        assert_eq!([exchange(word, 0, 1), add(word, 1), word.load()], [gone; 3]);
    }
}

//! Words of 64 bits that processes share.
//!
//! # Invariants
//!
//! 1. A change is done once or not at all: one that ends with an error was not done, unless the
//!    error says that it may have been.
//! 2. Nobody waits inside an operation: who waits has a page of the object mapped for that alone,
//!    or asks for the word again and again.

use dmce_sys::futex::wide::{self, Heard};
use std::time::Duration;

use dmce_sys::clock::monotonic_ns;
use dmce_sys::futex::{self, FutexError, WaitOutcome};
use dmce_sys::map::{MapError, MappedRange, Mapping, page_bytes};
pub(crate) use dmce_sys::transfer::word::WORD_BYTES;
use dmce_sys::transfer::word::Word;

use super::Trouble;
use super::message::AskedBlock;
use crate::connection::Deadline;

/// What is done to a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing: it is looked at.
    None,
    /// It becomes `desired`, if it is `expected`.
    Exchange {
        /// What it has to be.
        expected: u64,
        /// What it becomes.
        desired: u64,
    },
    /// So much is added, wrapping around.
    Add(u64),
}

impl Change {
    /// What it makes of a word.
    pub(crate) const fn of(self, before: u64) -> u64 {
        match self {
            Self::Exchange { expected, desired } if expected == before => desired,
            Self::None | Self::Exchange { .. } => before,
            Self::Add(add) => before.wrapping_add(add),
        }
    }

    /// Does it; returns what the word was.
    ///
    /// # Safety
    ///
    /// The word is mapped writable, unless there is nothing to do.
    pub(super) unsafe fn apply(self, word: Word<'_>) -> Result<u64, Trouble> {
        let before = match self {
            Self::None => word.load(),
            // SAFETY: as the caller promises.
            Self::Exchange { expected, desired } => unsafe {
                word.compare_exchange(expected, desired)
            },
            // SAFETY: as the caller promises.
            Self::Add(add) => unsafe { word.fetch_add(add) },
        };
        Ok(before?)
    }
}

/// The word that a mapped range is.
pub(super) fn word_of(range: MappedRange<'_>) -> Result<Word<'_>, Trouble> {
    // Callers of the library are told of what is not aligned; no block begins at such a cell.
    Word::new(range).ok_or(Trouble::Io)
}

/// Wakes at most `count` of those who wait for a word.
pub(super) fn wake(word: Word<'_>, count: u32) -> Result<(), Trouble> {
    wide::wake(word, count).map(|_| ()).map_err(|error| of_futex(&error))
}

/// How long who waits for a word by message sleeps before it is asked for again: no daemon tells.
const ASK_AGAIN: Duration = Duration::from_millis(2);

/// A word that is waited for.
#[derive(Debug)]
pub(crate) struct Watch(Watched);

#[derive(Debug)]
enum Watched {
    /// Its page, mapped on its own.
    Mapped { page: Mapping, offset: u64 },
    /// Its daemon is asked for it.
    Asked { block: AskedBlock, cell: u64 },
}

impl Watch {
    /// Maps the page of a mapped word once more.
    pub(super) fn of(word: Word<'_>) -> Result<Self, Trouble> {
        let offset = word.as_ptr().addr() % page_bytes();
        // SAFETY: an object's mapping consists of whole pages, and so contains that of the word.
        let page = unsafe { MappedRange::new(word.as_ptr().wrapping_sub(offset), page_bytes()) };
        let page = Mapping::again(page).map_err(|error| of_map(&error))?;
        Ok(Self(Watched::Mapped { page, offset: offset as u64 }))
    }

    /// A word that is asked for.
    pub(super) const fn asked(block: AskedBlock, cell: u64) -> Self {
        Self(Watched::Asked { block, cell })
    }

    /// Has no look take longer than until then.
    pub(crate) fn until(self, limit: Option<Deadline>) -> Self {
        match self.0 {
            Watched::Asked { block, cell } => Self::asked(block.until(limit), cell),
            // Nobody is asked.
            mapped @ Watched::Mapped { .. } => Self(mapped),
        }
    }

    /// What the word is.
    pub(crate) fn look(&self) -> Result<u64, Trouble> {
        match &self.0 {
            Watched::Mapped { page, offset } => Ok(word_in(page, *offset)?.load()?),
            Watched::Asked { block, cell } => block.look(*cell, 0),
        }
    }

    /// Sleeps while the word is `expected` and the bell as it was, until a moment of the monotonic
    /// clock; may end for no reason.
    pub(crate) fn sleep(
        &self,
        expected: u64,
        heard: Heard<'_>,
        deadline_ns: Option<u64>,
    ) -> Result<WaitOutcome, Trouble> {
        let ended = match &self.0 {
            Watched::Mapped { page, offset } => {
                wide::wait(word_in(page, *offset)?, expected, heard, deadline_ns)
            }
            Watched::Asked { .. } => return nap(heard, deadline_ns),
        };
        ended.map_err(|error| of_futex(&error))
    }
}

fn word_in(page: &Mapping, offset: u64) -> Result<Word<'_>, Trouble> {
    let range = page.range(offset, WORD_BYTES as u64);
    word_of(range.map_err(|error| of_map(&error))?)
}

/// Sleeps until a word is to be asked for again, or the bell rings.
pub(crate) fn nap(heard: Heard<'_>, deadline_ns: Option<u64>) -> Result<WaitOutcome, Trouble> {
    let left = deadline_ns.map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())));
    let pause = left.map_or(ASK_AGAIN, |left| left.min(ASK_AGAIN));
    futex::wait(heard.bell, heard.value, Some(pause)).map_err(|error| of_futex(&error))
}

/// What keeps a word from being mapped.
pub(super) fn of_map(error: &MapError) -> Trouble {
    match error {
        MapError::AddressSpace { .. } => Trouble::NoAddressSpace,
        MapError::Lost => Trouble::Lost,
        error => {
            tracing::warn!(%error, "a word cannot be mapped");
            Trouble::Io
        }
    }
}

#[cold]
fn of_futex(error: &FutexError) -> Trouble {
    if matches!(error, FutexError::Lost) {
        return Trouble::Lost;
    }
    tracing::warn!(%error, "a word cannot be waited for");
    Trouble::Io
}

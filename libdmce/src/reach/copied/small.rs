//! Accesses inside one page: most are, and there is nothing to divide and little to decide.
//!
//! # Invariants
//!
//! 1. What is not common is left to the whole way: before anything was done, by doing all of it
//!    again; after that, by going on as [`Stores`].

use std::ptr;
use std::sync::atomic::Ordering::Relaxed;

use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::copies::{Batch, Beginning, Copies, Pages, Verdict, WriteError};
use dmce_shm::lock::PageLock;
use dmce_shm::parking::Deadline;
use dmce_shm::slot::intent::Undo;
use dmce_sys::prefetch;
use dmce_sys::transfer::Store;

use super::CopiedBlock;
use super::write::{Content, SAVED_BYTES, Stores, Where};
use crate::reach::{Piece, Trouble};

/// A write to all copies, as long as all can be reached.
struct Small<'a> {
    block: &'a CopiedBlock,
    piece: Piece,
    data: *const u8,
    slot: u8,
    /// The copy that could not be.
    failed: usize,
    /// What goes on with it then.
    whole: Option<Stores<'a>>,
}

impl CopiedBlock {
    /// Copies a piece out. False: nothing is certain about the buffer.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`](crate::reach::Reach::read).
    #[inline]
    pub(crate) unsafe fn read_small(&self, piece: Piece, buffer: *mut u8) -> bool {
        let Some(word) = self.only_word(piece) else { return false };
        let Some(since) = word.begin_read() else { return false };
        if self.damaged.load(Relaxed) != 0 {
            return false;
        }
        // SAFETY: as the caller promises.
        let loaded = unsafe { self.copies[0].load(piece, buffer, Store::Cached) };
        loaded.is_ok() && word.is_unchanged(since) && !self.locks.is_harmed()
    }

    /// Copies a piece in. False: nothing is certain about its bytes.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`](crate::reach::Reach::write).
    #[inline]
    pub(crate) unsafe fn write_small(&self, piece: Piece, data: *const u8) -> bool {
        let Some(word) = self.only_word(piece).filter(|_| self.good > 1) else {
            return false;
        };
        // All at once, before the lock: each locked instruction waits for what was stored before.
        prefetch::for_write(ptr::from_ref(word).cast(), size_of::<PageLock>());
        self.copies.iter().for_each(|copy| copy.expect_write(piece));
        let slot = self.slot();
        let mut small = Small { block: self, piece, data, slot, failed: 0, whole: None };
        let batch = Batch { cell: piece.cell, bytes: piece.bytes as u64, end: piece.committed };
        // Who has to wait for the page does so on the whole way.
        match self.writer_until(slot, || Deadline::PASSED).write_page(word, batch, &mut small) {
            // Once more, if the table was cut: it was done without locks then.
            Ok(()) | Err(WriteError::Unlocked(_)) => !self.locks.is_harmed(),
            Err(error) => {
                // Whoever does it again meets the same.
                let _ = self.end_of_write(small.failed, error);
                false
            }
        }
    }

    /// The word of the page that a piece is in, if it is in one.
    #[inline]
    fn only_word(&self, piece: Piece) -> Option<&PageLock> {
        let (page, at) = (piece.cell / PAGE_BYTES, piece.cell % PAGE_BYTES);
        if at + piece.bytes as u64 > PAGE_BYTES {
            return None;
        }
        self.locks.all().get(usize::try_from(page).ok()?)
    }
}

impl<'a> Small<'a> {
    #[cold]
    fn whole(&mut self) -> &mut Stores<'a> {
        let (block, piece, slot) = (self.block, self.piece, self.slot);
        // SAFETY: the data are readable as long as the write lasts, as who made this promised.
        let content = unsafe { Content::data(self.data) };
        let begin = || Stores::new(block, (piece, content), Where::All, slot);
        self.whole.get_or_insert_with(begin)
    }

    #[inline]
    fn store_to(&mut self, copy: usize) -> Result<(), Trouble> {
        let target = &self.block.copies[copy];
        // SAFETY: the block is writable and the data are readable, as who made this promised.
        let stored = unsafe { target.store(self.piece, self.data, Store::Cached) };
        if stored.is_err() {
            self.failed = copy;
        }
        stored
    }
}

impl Copies for Small<'_> {
    type Trouble = Trouble;

    #[cold]
    fn prepare(&mut self, pages: Pages) -> Result<Beginning, Trouble> {
        self.whole().prepare(pages)
    }

    #[inline]
    fn prepare_first(&mut self) -> Option<(DaemonId, Undo)> {
        let (block, piece) = (self.block, self.piece);
        if self.whole.is_some() || block.as_told().is_err() {
            return None;
        }
        let saved = match piece.bytes {
            ..=SAVED_BYTES => block.save::<SAVED_BYTES>(0, piece, self.slot),
            _ => Ok(Undo::Absent),
        };
        Some((block.copies[0].daemon, saved.ok()?))
    }

    fn rewrites(&self) -> bool {
        true
    }

    #[inline]
    fn store_first(&mut self) -> Result<(), Trouble> {
        if self.whole.is_some() {
            return self.whole().store_first();
        }
        self.store_to(0)
    }

    #[inline]
    fn store_others(&mut self) -> Result<(), Trouble> {
        if self.whole.is_some() {
            return self.whole().store_others();
        }
        (1..self.block.copies.len()).try_for_each(|copy| self.store_to(copy))
    }

    #[cold]
    fn judge(&mut self, trouble: Trouble) -> Verdict<Trouble> {
        if self.whole.is_none() {
            let failed = self.failed;
            self.whole().failed = failed;
        }
        let verdict = self.whole().judge(trouble);
        self.failed = self.whole().failed;
        verdict
    }
}

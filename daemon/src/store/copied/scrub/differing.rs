//! A page whose copies differ: what is done about it, and when nothing is.

use std::os::fd::{AsFd, BorrowedFd};

use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::lock::LockError;
use dmce_sys::object::word::{ObjectWord, WordError};
use dmce_sys::transfer::word::WORD_BYTES;
use tracing::{debug, warn};

use super::super::Failure;
use super::super::pointers::Pointers;
use super::{LOCKED_MAX, Scrub, Seen, page_in};

impl Scrub<'_> {
    /// Locks a page that differs, and does something about it.
    pub(super) fn resolve(&mut self, page: u64) -> Result<Seen, Failure> {
        if self.pointers.is_none() {
            self.pointers = self.find_pointers();
        }
        if self.pointers.is_none() {
            // It is not asked again for each page.
            self.locked = LOCKED_MAX;
            return Ok(Seen::Busy);
        }
        // Of many pages that pointers store to none is locked: they are left in any case.
        let addrs = self.addrs_of(page);
        if self.pointers.as_ref().is_some_and(|pointers| pointers.may_store(&addrs)) {
            return Ok(Seen::Pinned);
        }
        self.locked += 1;
        let desk = self.desk;
        let mut judged = Ok(Seen::Busy);
        let held = desk.writer(self.block).hold(self.batch_of(page), || {
            judged = self.judge(page);
        });
        match held {
            Ok(()) => judged,
            Err(LockError::Lost) => Ok(Seen::Lost),
            // What was done before it was given back stands.
            Err(error) => {
                debug!(block = %self.block, page, %error, "a page that differs");
                judged
            }
        }
    }

    /// Does something about a page that differs, and is locked.
    fn judge(&mut self, page: u64) -> Result<Seen, Failure> {
        // Whoever has written without one of these copies had the lock.
        if self.desk.has_moved() {
            return Err(Failure::Busy("its copies have changed a moment ago".to_owned()));
        }
        let batch = self.batch_of(page);
        let [lock] = self.desk.view.locks.words(batch.pages()) else { return Ok(Seen::Busy) };
        // Odd is what somebody scribbled.
        let Some(since) = lock.begin_read() else { return Ok(Seen::Busy) };
        if lock.is_detached() {
            return Ok(Seen::Detached);
        }
        self.read(batch)?;
        let whole = page_in(0, batch);
        if let Some(crc) = self.equal(whole.clone()) {
            return Ok(Seen::Equal(since, crc));
        }
        // Not before the copies were read.
        match self.find_pointers() {
            None => return Ok(Seen::Busy),
            Some(pointers) if pointers.may_store(&self.addrs_of(page)) => return Ok(Seen::Pinned),
            Some(_) => {}
        }
        self.confirm()?;
        if self.view().locks.is_harmed() {
            return Ok(Seen::Busy);
        }
        // What is repaired here would be copied there no more. When that is done it is found again.
        if self.view().syncing().is_some() {
            return Ok(Seen::Busy);
        }
        let known = self.quiet.crc(self.view().table, page, since);
        let Some(right) = right_of(&self.buffers, known) else {
            self.warn_of(page, "a page is lost: its copies differ", |_| true);
            lock.lose();
            return Ok(Seen::Quarantined);
        };
        self.repair(page, right)?;
        self.read(batch)?;
        Ok(self.equal(whole).map_or(Seen::Busy, |crc| Seen::Repaired(since, crc)))
    }

    /// Gives the copies of a page that are not right what the right one has.
    fn repair(&self, page: u64, right: usize) -> Result<(), Failure> {
        let bytes = &self.buffers[right];
        let wrong = |place: usize| self.buffers[place] != *bytes;
        self.warn_of(page, "a page is repaired", wrong);
        for (place, (copy, _)) in self.copies.iter().enumerate().filter(|(place, _)| wrong(*place))
        {
            let words = (page * PAGE_BYTES, &self.buffers[place][..]);
            mend(copy.as_fd(), words, bytes).map_err(|error| match error {
                WordError::Gone(_) => copy.is_cut().into(),
                error => Failure::Busy(error.to_string()),
            })?;
        }
        Ok(())
    }

    fn warn_of(&self, page: u64, what: &str, is_meant: impl Fn(usize) -> bool) {
        for (place, (copy, _)) in self.copies.iter().enumerate() {
            if is_meant(place) {
                warn!(block = %self.block, page, daemon = %copy.daemon, "{what}");
            }
        }
    }

    pub(super) fn find_pointers(&self) -> Option<Pointers> {
        let found = Pointers::of_all(self.folder);
        found.inspect_err(|error| debug!(%error, "a page that differs is left")).ok()
    }
}

/// The place of a copy that is right: one that has the known checksum, or, where none has, what
/// most of three have.
pub(super) fn right_of(copies: &[Vec<u8>], known: Option<u32>) -> Option<usize> {
    let has_known = |copy: &Vec<u8>| known.is_some_and(|crc| crc32c::crc32c(copy) == crc);
    let is_most =
        |copy: &Vec<u8>| copies.iter().filter(|other| *other == copy).count() * 2 > copies.len();
    let Some(place) = copies.iter().position(has_known) else {
        return copies.iter().position(is_most);
    };
    // Two that have one checksum and differ say nothing.
    let is_sure = copies.iter().filter(|copy| has_known(copy)).all(|copy| *copy == copies[place]);
    is_sure.then_some(place)
}

/// Makes words of an object, from a cell on, `right`, where they are what was `found`.
///
/// # Errors
///
/// [`WordError`]: some may be so by now.
pub(super) fn mend(
    fd: BorrowedFd<'_>,
    (cell, found): (u64, &[u8]),
    right: &[u8],
) -> Result<(), WordError> {
    let (found, _) = found.as_chunks::<WORD_BYTES>();
    let (right, _) = right.as_chunks::<WORD_BYTES>();
    for (at, (found, right)) in (cell..).step_by(WORD_BYTES).zip(found.iter().zip(right)) {
        if found != right {
            let [found, right] = [found, right].map(|word| u64::from_ne_bytes(*word));
            ObjectWord::map(fd, at)?.compare_exchange(found, right)?;
        }
    }
    Ok(())
}

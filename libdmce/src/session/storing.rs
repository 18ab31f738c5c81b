//! What a write pointer that locks has stored: brought to every copy, or taken back.
//!
//! # Invariants
//!
//! 1. What was stored is looked for where it was stored: in the copy that was first when the
//!    pointer was given. While that is a good one, the others get what it has.
//! 2. If it was none at some time since, it is compared with what the good ones had then, and what
//!    differs is written to them: so nothing that calls have written since is taken back. Where
//!    there was no memory to keep that, it is compared with what they have when it is brought, and
//!    what calls have written over since may be.
//! 3. The second copy says what was there before only if no copy was made since.

use std::ops::Range;

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::{DmceAddr, Status};
use dmce_shm::pointers::Wanted;
use dmce_shm::session::pin::PinnedRange;

use super::core::Core;
use super::data::Intent;
use super::parts::{Beneath, Laid};
use super::pointers::range_of;
use crate::block::Block;
use crate::error::Error;
use crate::reach::Piece;

impl Core {
    /// Brings what a write pointer stored to every copy.
    ///
    /// # Errors
    ///
    /// [`Status::Lost`] if a part of it is gone; the rest was brought.
    pub(super) fn bring(&self, pointer: *const u8, wanted: Wanted) -> Result<(), Error> {
        let range = range_of(wanted);
        let parts = self.beneath(pointer.addr());
        if parts.is_empty() {
            // In the block's own mapping: of one copy, which may have another by now, as it moves.
            return self.carry(range);
        }
        let mut lost = Ok(());
        for part in parts {
            let end = part.offset + part.bytes;
            let brought = self.bring_part(pointer, range, &part, part.offset..end);
            let is_gone = |error: &Error| matches!(error.status(), Status::Lost | Status::Address);
            if brought.as_ref().is_err_and(is_gone) {
                // Something of it is gone: the rest is found page by page.
                let mut at = part.offset;
                while at < end {
                    let until = end.min(at + PAGE_BYTES - (range.addr + at) % PAGE_BYTES);
                    match self.bring_part(pointer, range, &part, at..until) {
                        Err(error) if error.status() == Status::Address => {}
                        Err(error) if error.status() == Status::Lost => lost = Err(error),
                        brought => brought?,
                    }
                    at = until;
                }
            } else {
                brought?;
            }
            if self.is_patched(pointer.addr(), part.index) {
                let text = "what was stored by the pointer is gone with the copy beneath it";
                lost = Err(Error::new(Status::Lost, text));
            }
        }
        lost
    }

    /// [`Core::bring`] of some bytes of a part.
    fn bring_part(
        &self,
        pointer: *const u8,
        range: PinnedRange,
        part: &Beneath,
        bytes: Range<u64>,
    ) -> Result<(), Error> {
        let addr = DmceAddr::from_raw(self.layout, range.addr + bytes.start)?;
        let whole = (addr, bytes.end - bytes.start);
        // Read anew each time: a change that is taken in meanwhile may say so.
        let is_as_laid = |block: &Block| match part.primary {
            // It had one copy, which no other takes the place of while it is pinned.
            None => true,
            primary => !part.since.is_apart() && block.primary() == primary,
        };
        let carry = &mut |block: &Block, piece, _| {
            if is_as_laid(block) { block.carry(piece) } else { Ok(()) }
        };
        self.access_or_end(whole, Intent::Write, carry).map_err(|ended| ended.error)?;
        // Where the copy that was laid is gone, also by now, the others have nothing of it.
        let mut rest = Vec::new();
        let look = &mut |block: &Block, piece: Piece, done: usize| {
            if !is_as_laid(block) {
                rest.push((bytes.start + done as u64, piece.bytes));
            }
            Ok(())
        };
        self.access_or_end(whole, Intent::Write, look).map_err(|ended| ended.error)?;
        rest.into_iter().try_for_each(|piece| self.bring_from(pointer, range, part, piece))
    }

    /// Writes what a pointer stored to a piece of its own mapping to every copy, page by page.
    fn bring_from(
        &self,
        pointer: *const u8,
        range: PinnedRange,
        part: &Beneath,
        (offset, bytes): (u64, usize),
    ) -> Result<(), Error> {
        let (mut at, end) = (offset, offset + bytes as u64);
        while at < end {
            let raw = range.addr + at;
            let until = end.min(at + PAGE_BYTES - raw % PAGE_BYTES);
            let from = pointer.wrapping_add(usize::try_from(at).unwrap_or(usize::MAX));
            let mut now = vec![0; usize::try_from(until - at).unwrap_or(usize::MAX)];
            // SAFETY: the mapping is the pointer's until it is unpinned, which is after this; the
            // buffer is this function's, and as long. Who stores by the pointer meanwhile releases
            // what is still used.
            unsafe { from.copy_to_nonoverlapping(now.as_mut_ptr(), now.len()) };
            let before = self.base_of(pointer.addr(), part, at, raw, now.len())?;
            for run in runs_that_differ(&before, &now) {
                let to = DmceAddr::from_raw(self.layout, raw + run.start as u64)?;
                let data = &now[run];
                // SAFETY: the data are readable for their length.
                unsafe { self.write(to, data.as_ptr(), data.len()) }?;
            }
            at = until;
        }
        Ok(())
    }

    /// What was in a page before a pointer stored there: as it was kept when the copy beneath was
    /// lost; where that could not be, as it is.
    fn base_of(
        &self,
        pointer: usize,
        part: &Beneath,
        at: u64,
        raw: u64,
        bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        let kept = |laid: &mut Laid| laid.base(part.index, at - part.offset, bytes);
        if let Some(base) = self.with_laid(pointer, kept).flatten() {
            return Ok(base);
        }
        let (from, mut base) = (DmceAddr::from_raw(self.layout, raw)?, vec![0; bytes]);
        // SAFETY: the buffer is this function's, and so long.
        unsafe { self.read(from, base.as_mut_ptr(), bytes) }?;
        Ok(base)
    }

    /// Makes a range what it was before a write pointer was given to it.
    pub(super) fn restore(&self, pointer: *const u8, wanted: Wanted) -> Result<(), Error> {
        let range = range_of(wanted);
        let parts = self.beneath(pointer.addr());
        let is_alone = || Error::unsupported("an abort needs a second copy, which is not there");
        if parts.is_empty() || parts.iter().any(|part| part.primary.is_none()) {
            return Err(is_alone());
        }
        // All of it can be restored, before any of it is.
        for is_look in [true, false] {
            for part in &parts {
                let addr = DmceAddr::from_raw(self.layout, range.addr + part.offset)?;
                let mut lacks = false;
                let act = &mut |block: &Block, piece: Piece, _: usize| {
                    // Others may have been made of what was stored.
                    if part.since.is_mixed() {
                        lacks = true;
                        return Ok(());
                    }
                    // The copies have nothing of it, where the one that was stored to is gone.
                    if part.since.is_apart() || block.primary() != part.primary {
                        return Ok(());
                    }
                    let Some(half) = block.second_half() else {
                        lacks = true;
                        return Ok(());
                    };
                    if is_look { Ok(()) } else { block.resync(piece, half) }
                };
                self.access_or_end((addr, part.bytes), Intent::Write, act)
                    .map_err(|end| end.error)?;
                if lacks {
                    return Err(is_alone());
                }
            }
        }
        Ok(())
    }

    /// The parts of a pointer's own mapping; none of one in a block's.
    fn beneath(&self, pointer: usize) -> Vec<Beneath> {
        self.with_laid(pointer, |laid| laid.beneath()).unwrap_or_default()
    }

    fn is_patched(&self, pointer: usize, part: usize) -> bool {
        self.with_laid(pointer, |laid| laid.is_patched(part)).unwrap_or_default()
    }
}

/// The runs of bytes in which one is not the other, which is as long.
fn runs_that_differ(one: &[u8], other: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    for at in (0..one.len().min(other.len())).filter(|&at| one[at] != other[at]) {
        match runs.last_mut() {
            Some(run) if run.end == at => run.end = at + 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}

//! Copying from blocks to blocks.
//!
//! # Invariants
//!
//! 1. Ranges that overlap are copied as if by way of a third place.
//! 2. Whoever is told that it failed is told as well whether bytes were changed.

use std::ops::Range;

use dmce_abi::DmceAddr;
use dmce_sys::map::page_bytes;

use super::core::Core;
use super::data::{Ended, Intent, PIECE_BYTES, Span};
use crate::block::Backing;
use crate::error::Error;

/// The most that is copied at a time through private memory.
const BOUNCE_BYTES: usize = 256 << 10;

/// What was copied in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Copied {
    All,
    /// Some of it, before something was in the way.
    Part,
    /// It is not mapped, or gone.
    Nothing,
}

impl Core {
    /// Copies from blocks to blocks, as `memmove` does.
    pub(crate) fn copy(&self, to: DmceAddr, from: DmceAddr, bytes: u64) -> Result<(), Error> {
        self.copy_or_end(to, from, bytes).map_err(Ended::told)
    }

    /// The same, where the target is nobody's yet.
    pub(super) fn copy_to_new(
        &self,
        to: DmceAddr,
        from: DmceAddr,
        bytes: u64,
    ) -> Result<(), Error> {
        self.copy_or_end(to, from, bytes).map_err(|ended| ended.error)
    }

    fn copy_or_end(&self, to: DmceAddr, from: DmceAddr, bytes: u64) -> Result<(), Ended> {
        self.check_range(from, bytes, Intent::Read)?;
        self.check_range(to, bytes, Intent::Write)?;
        let (target, source) = (to.to_raw(), from.to_raw());
        if target == source || bytes == 0 {
            return Ok(());
        }
        let (to, from) = (Span::new(to, bytes), Span::new(from, bytes));
        if target.abs_diff(source) >= bytes {
            return self.copy_apart(to, from);
        }
        self.bounce(to, from, 0..bytes, target > source)
    }

    /// Copies ranges that do not overlap: in place where both sides are mapped.
    fn copy_apart(&self, to: Span, from: Span) -> Result<(), Ended> {
        let (mut done, mut is_begun) = (0, false);
        while done < to.bytes {
            let rest = to.bytes - done;
            let piece = self.within_block(to.at(done), rest, PIECE_BYTES);
            let piece = self.within_block(from.at(done), rest, piece);
            let copied = self.try_copy_mapped(to.at(done), from.at(done), piece);
            let copied = copied.map_err(|error| Ended { is_begun, error })?;
            is_begun |= copied == Copied::Part;
            if copied != Copied::All {
                let range = done..done + piece as u64;
                let bounced = self.bounce(to, from, range, false);
                bounced.map_err(|ended| ended.after(is_begun))?;
            }
            is_begun = true;
            done += piece as u64;
        }
        Ok(())
    }

    /// Copies between mapped blocks.
    fn try_copy_mapped(&self, to: u64, from: u64, bytes: usize) -> Result<Copied, Error> {
        let inside = self.enter()?;
        let (target, piece) = self.look_up(to, bytes, Intent::Write, &inside)?;
        let (source, source_piece) = self.look_up(from, bytes, Intent::Read, &inside)?;
        let (Backing::Mapped(mapped), Backing::Mapped(source)) = (&target.backing, &source.backing)
        else {
            return Ok(Copied::Nothing);
        };
        let Err(gone) = mapped.copy(piece, source, source_piece.cell) else {
            return Ok(Copied::All);
        };
        // The first page of either side is met before the first store.
        let page = |addr: usize| addr / page_bytes();
        let first = [mapped.pointer(piece.cell), source.pointer(source_piece.cell)];
        let is_first = first.into_iter().any(|first| page(first.addr()) == page(gone.addr));
        Ok(if is_first { Copied::Nothing } else { Copied::Part })
    }

    /// Copies a part of two ranges through private memory: from the end if `backwards`, so that
    /// bytes of an overlap are read before they are overwritten.
    fn bounce(&self, to: Span, from: Span, part: Range<u64>, backwards: bool) -> Result<(), Ended> {
        let bytes = part.end - part.start;
        let size = usize::try_from(bytes).map_or(BOUNCE_BYTES, |bytes| bytes.min(BOUNCE_BYTES));
        let mut buffer = vec![0; size];
        let mut done = 0;
        while done < bytes {
            let limit = (bytes - done).min(size as u64);
            let start = if backwards { part.end - done - limit } else { part.start + done };
            let piece = usize::try_from(limit).unwrap_or(size);
            let is_begun = done > 0;
            let (to, from) = (to.addr(self, start)?, from.addr(self, start)?);
            // SAFETY: the buffer has room for a piece.
            let read = unsafe { self.read(from, buffer.as_mut_ptr(), piece) };
            read.map_err(|error| Ended { is_begun, error })?;
            // SAFETY: the buffer holds the piece.
            let written = unsafe { self.write_or_end(to, buffer.as_ptr(), piece) };
            written.map_err(|ended| ended.after(is_begun))?;
            done += limit;
        }
        Ok(())
    }
}

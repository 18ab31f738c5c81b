//! Words of 64 bits that sessions change atomically and wait for, between processes of both widths.
//!
//! # Invariants
//!
//! 1. A change is done once: what met an obstacle and was not done is done again as a whole, and
//!    what may have been done ends with an error that says so.
//! 2. Nobody sleeps inside an operation.
//! 3. Who sleeps is woken by whoever wakes the word, and by the bell when its block is replaced or
//!    gone, or the session closed.
//! 4. Who waits asks nobody for longer than it waits, and goes on waiting after nobody has answered
//!    for as long as other calls of the session do.
#![forbid(unsafe_code)]

use dmce_abi::{DmceAddr, Status};

use super::core::Core;
use super::data::Intent;
use crate::block::{Block, Obstacle};
use crate::connection::Deadline;
use crate::error::Error;
use crate::limit::within;
use crate::reach::word::{Change, WORD_BYTES, Watch, nap};
use crate::reach::{Piece, Trouble};

impl Core {
    /// Changes a word; returns what it was.
    #[inline]
    pub(crate) fn change_word(&self, addr: DmceAddr, change: Change) -> Result<u64, Error> {
        let mut before = 0;
        let act = |block: &Block, piece: Piece| {
            before = block.change(piece, change)?;
            Ok(())
        };
        if is_aligned(addr) && self.try_quickly(addr, WORD_BYTES, Intent::Write, act) {
            return Ok(before);
        }
        self.on_word(addr, Intent::Write, &mut |block, piece| block.change(piece, change))
    }

    /// Waits while a word is `while_equal`; for ever, if `timeout_ms` is 0.
    pub(crate) fn wait_word(
        &self,
        addr: DmceAddr,
        while_equal: u64,
        timeout_ms: u32,
    ) -> Result<(), Error> {
        let limit = (timeout_ms > 0).then(|| Deadline::after_ms(timeout_ms));
        let is_over = || limit.is_some_and(|limit| limit.left().is_none());
        let in_vain = || {
            let text = format!("{:#x} was {while_equal} for {timeout_ms} ms", addr.to_raw());
            Error::new(Status::Timeout, text)
        };
        // Where somebody has to be asked, there is no time for an answer at the end.
        let is_mapped = self.ways.route().is_none();
        loop {
            let heard = self.bell.listen();
            let watch = match within(limit, || self.watch_word(addr, while_equal, limit)) {
                Ok(None) => return Ok(()),
                Ok(Some(watch)) => Some(watch),
                // Nobody has answered for as long as a call of this session waits.
                Err(error) if is_silence(&error) => None,
                Err(error) => return Err(error),
            };
            if (is_mapped || watch.is_none()) && is_over() {
                return Err(in_vain());
            }
            let until_ns = limit.map(Deadline::at_ns);
            let slept = match watch {
                Some(watch) => watch.sleep(while_equal, heard, until_ns),
                None => nap(heard, until_ns),
            };
            match slept {
                // A word that is gone is found to be so by the next look.
                Ok(_) | Err(Trouble::Lost) => {}
                Err(trouble) => return Err(Error::new(Status::Io, trouble.to_string())),
            }
            if !is_mapped && is_over() {
                return Err(in_vain());
            }
        }
    }

    /// What tells of changes of a word, if it is still `while_equal`.
    fn watch_word(
        &self,
        addr: DmceAddr,
        while_equal: u64,
        limit: Option<Deadline>,
    ) -> Result<Option<Watch>, Error> {
        self.on_word(addr, Intent::Read, &mut |block, piece| {
            // A word that is not mapped yet for the wait may not have to be.
            if !block.is_asked() && block.change(piece, Change::None)? != while_equal {
                return Ok(None);
            }
            let watch = block.watch(piece)?.until(limit);
            Ok((watch.look()? == while_equal).then_some(watch))
        })
    }

    /// Wakes at most `count` of those who wait for a word.
    pub(crate) fn wake_word(&self, addr: DmceAddr, count: u32) -> Result<(), Error> {
        self.on_word(addr, Intent::Read, &mut |block, piece| block.wake(piece, count))
    }

    /// Runs `act` on a word, until nothing is in the way.
    #[cold]
    fn on_word<T>(
        &self,
        addr: DmceAddr,
        intent: Intent,
        act: &mut dyn FnMut(&Block, Piece) -> Result<T, Obstacle>,
    ) -> Result<T, Error> {
        self.usable()?;
        if !is_aligned(addr) {
            let text = format!("{:#x} is no multiple of {WORD_BYTES}", addr.to_raw());
            return Err(Error::invalid(text));
        }
        self.check_range(addr, WORD_BYTES as u64, intent)?;
        let mut done = None;
        let act = &mut |block: &Block, piece| {
            done = Some(act(block, piece)?);
            Ok(())
        };
        // A word is changed as a whole or not at all.
        let accessed = self.access_piece(addr.to_raw(), WORD_BYTES, intent, act);
        accessed.map_err(|ended| ended.error)?;
        done.ok_or_else(|| Error::new(Status::Internal, "a word was not accessed"))
    }
}

/// Whether a look came to nothing because somebody did not answer.
const fn is_silence(error: &Error) -> bool {
    matches!(error.status(), Status::Timeout | Status::Unavailable)
}

const fn is_aligned(addr: DmceAddr) -> bool {
    addr.to_raw().is_multiple_of(WORD_BYTES as u64)
}

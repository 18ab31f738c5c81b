//! Words of 64 bits that sessions change atomically and wait for, between processes of both widths.
//!
//! # Invariants
//!
//! 1. A change is done once: what met an obstacle and was not done is done again as a whole, and
//!    what may have been done ends with an error that says so.
//! 2. Nobody sleeps inside an operation.
//! 3. Who sleeps is woken by whoever wakes the word, and by the bell when its block is replaced or
//!    gone, or the session closed.
//! 4. Who waits asks nobody for longer than it waits.
#![forbid(unsafe_code)]

use dmce_abi::{DmceAddr, Status};

use super::core::Core;
use super::data::Intent;
use crate::block::{Block, Obstacle};
use crate::connection::Deadline;
use crate::error::Error;
use crate::reach::word::{Change, WORD_BYTES, Watch};
use crate::reach::{Piece, Trouble};

/// How often the way to a word may be gone again before who waits for it gives up.
const TRIES_MAX: u32 = 1_000;

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
        let mut look = |block: &Block, piece| block.change(piece, Change::None);
        // Where somebody has to be asked, that is done below, with a limit.
        let is_mapped = self.ways.route().is_none();
        if is_mapped && self.on_word(addr, Intent::Read, &mut look)? != while_equal {
            return Ok(());
        }
        let deadline = (timeout_ms > 0).then(|| Deadline::after_ms(timeout_ms));
        let is_over = || deadline.is_some_and(|deadline| deadline.left().is_none());
        let in_vain = || {
            let text = format!("{:#x} was {while_equal} for {timeout_ms} ms", addr.to_raw());
            Error::new(Status::Timeout, text)
        };
        loop {
            let heard = self.bell.listen();
            let watch = match self.watch_word(addr, deadline)? {
                (_, now) if now != while_equal => return Ok(()),
                (watch, _) => watch,
            };
            if is_mapped && is_over() {
                return Err(in_vain());
            }
            match watch.sleep(while_equal, heard, deadline.map(Deadline::at_ns)) {
                // A word that is gone is found to be so by the next look.
                Ok(_) | Err(Trouble::Lost) => {}
                Err(trouble) => return Err(Error::new(Status::Io, trouble.to_string())),
            }
            // There is no time for an answer.
            if !is_mapped && is_over() {
                return Err(in_vain());
            }
        }
    }

    /// What a word is, and what tells of its changes.
    fn watch_word(
        &self,
        addr: DmceAddr,
        deadline: Option<Deadline>,
    ) -> Result<(Watch, u64), Error> {
        for _ in 0..TRIES_MAX {
            let mut unreached = None;
            let look = &mut |block: &Block, piece| {
                let watch = match (block.watch(piece), self.ways.route()) {
                    (Err(Obstacle::Absent), Some(route)) => {
                        unreached = Some((block.id, route));
                        return Ok(None);
                    }
                    (watch, _) => watch?.until(deadline),
                };
                let now = watch.look()?;
                Ok(Some((watch, now)))
            };
            let seen = self.on_word(addr, Intent::Read, look)?;
            match (seen, unreached) {
                (Some(seen), _) => return Ok(seen),
                (None, Some((id, route))) => {
                    let own = self.deadline();
                    let until = deadline.map_or(own, |deadline| deadline.min(own));
                    self.fetch_way_until(id, route, until)?;
                }
                (None, None) => break,
            }
        }
        Err(Error::new(Status::Internal, "the way to a word changes without end"))
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
        self.access_piece(addr.to_raw(), WORD_BYTES, intent, &mut |block, piece| {
            done = Some(act(block, piece)?);
            Ok(())
        })?;
        done.ok_or_else(|| Error::new(Status::Internal, "a word was not accessed"))
    }
}

const fn is_aligned(addr: DmceAddr) -> bool {
    addr.to_raw().is_multiple_of(WORD_BYTES as u64)
}

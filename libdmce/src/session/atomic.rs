//! Words of 64 bits that sessions change atomically and wait for, between processes of both widths.
//!
//! # Invariants
//!
//! 1. A change is done once: what met an obstacle was not done, and is done again as a whole.
//! 2. Nobody sleeps inside an operation.
//! 3. Who sleeps is woken by whoever wakes the word, and by the bell when its block is replaced or
//!    gone, or the session closed.
#![forbid(unsafe_code)]

use dmce_abi::{DmceAddr, Status};
use dmce_sys::clock::monotonic_ns;

use super::core::Core;
use super::data::Intent;
use crate::block::{Block, Obstacle};
use crate::error::Error;
use crate::reach::word::{Change, WORD_BYTES, Watch};
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
        let look = &mut |block: &Block, piece| block.change(piece, Change::None);
        if self.on_word(addr, Intent::Read, look)? != while_equal {
            return Ok(());
        }
        let wait_ns = u64::from(timeout_ms) * 1_000_000;
        let deadline = (wait_ns > 0).then(|| monotonic_ns() + wait_ns);
        loop {
            let heard = self.bell.listen();
            let look = &mut |block: &Block, piece| {
                let watch = block.watch(piece)?;
                let now = watch.look()?;
                Ok((watch, now))
            };
            let (watch, now): (Watch, u64) = self.on_word(addr, Intent::Read, look)?;
            if now != while_equal {
                return Ok(());
            }
            if deadline.is_some_and(|at| at <= monotonic_ns()) {
                let text = format!("{:#x} was {while_equal} for {timeout_ms} ms", addr.to_raw());
                return Err(Error::new(Status::Timeout, text));
            }
            match watch.sleep(while_equal, heard, deadline) {
                // A word that is gone is found to be so by the next look.
                Ok(_) | Err(Trouble::Lost) => {}
                Err(trouble) => return Err(Error::new(Status::Io, trouble.to_string())),
            }
        }
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

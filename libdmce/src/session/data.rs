//! Reading, writing, filling, comparing.
//!
//! # Invariants
//!
//! 1. Nothing is accessed before all of the range is known to be the session's, committed, of one
//!    span, and open to the access: a refused call has changed nothing.
//! 2. An operation is marked for [`PIECE_BYTES`] at most, so that whoever waits for it waits
//!    briefly.
//! 3. The fast path takes no lock but the allocator's where accesses are checked, allocates nothing
//!    and asks nobody. Whatever it meets, it leaves to the slow path, which does the whole again:
//!    every access here may be done twice.

use std::cmp::Ordering;
use std::ptr;
use std::slice;

use dmce_abi::block::{BlockId, Half};
use dmce_abi::{DmceAddr, Status};

use super::core::Core;
use crate::alloc::Place;
use crate::block::{Block, Obstacle};
use crate::door::Ways;
use crate::error::Error;
use crate::reach::{Piece, Trouble};
use crate::{quick, thread};

/// The most that one operation does.
pub(super) const PIECE_BYTES: usize = 8 << 20;

/// How often an operation may find that something changed again before it gives up.
const TRIES_MAX: u32 = 1_000;

/// What an access does to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Looks at them.
    Read,
    /// Changes them.
    Write,
}

/// Why an access did not come to its end.
#[derive(Debug)]
pub(super) struct Ended {
    /// Whether it may have changed bytes before.
    pub is_begun: bool,
    /// What was in the way.
    pub error: Error,
}

impl Ended {
    /// If something may have been changed before it began.
    pub(super) fn after(self, is_begun: bool) -> Self {
        Self { is_begun: self.is_begun || is_begun, ..self }
    }

    /// What the caller is told: a call that fails has changed no byte, or says so. The end of a
    /// session says enough.
    #[cold]
    pub(super) fn told(self) -> Error {
        let (status, text) = (self.error.status(), self.error.text());
        if !self.is_begun || status == Status::Closed {
            return self.error;
        }
        Error::new(Status::Io, format!("a part may be written; of the rest: {text} ({status})"))
    }
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self { is_begun: false, error }
    }
}

/// What is done with one piece of a range: its block, the piece, and how much was done before.
pub(super) type Act<'a> = dyn FnMut(&Block, Piece, usize) -> Result<(), Obstacle> + 'a;

impl Core {
    /// Copies out of blocks.
    ///
    /// # Safety
    ///
    /// `buffer` is writable for `bytes`.
    #[inline]
    pub(crate) unsafe fn read(
        &self,
        from: DmceAddr,
        buffer: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: the piece is all of `bytes`, for which the caller's buffer is writable. It may be
        // part of a mapped block only by the caller's own doing, as with `memcpy`.
        let read = |block: &Block, piece| unsafe { block.read(piece, buffer) };
        if self.try_quickly(from, bytes, Intent::Read, read) {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        unsafe { self.read_slowly(from, buffer, bytes) }
    }

    /// # Safety
    ///
    /// As [`Core::read`].
    #[cold]
    unsafe fn read_slowly(
        &self,
        from: DmceAddr,
        buffer: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        self.access_all(from, bytes as u64, Intent::Read, &mut |block, piece, done| {
            // SAFETY: the piece is a part of `bytes`, for which the caller's buffer is writable.
            unsafe { block.read(piece, buffer.wrapping_add(done)) }
        })
    }

    /// Copies into blocks.
    ///
    /// # Safety
    ///
    /// `data` is readable for `bytes`.
    #[inline]
    pub(crate) unsafe fn write(
        &self,
        to: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: as the caller promises.
        unsafe { self.write_or_end(to, data, bytes) }.map_err(Ended::told)
    }

    /// # Safety
    ///
    /// As [`Core::write`].
    #[inline]
    pub(super) unsafe fn write_or_end(
        &self,
        to: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<(), Ended> {
        let mut is_begun = false;
        let write = |block: &Block, piece| {
            // SAFETY: the piece is all of `bytes`, for which the caller's data is readable; the
            // block is writable, since this is a write.
            let written = unsafe { block.write(piece, data) };
            written.inspect_err(|met| is_begun = met.may_be_behind_a_part(piece))
        };
        if self.try_quickly(to, bytes, Intent::Write, write) {
            return Ok(());
        }
        // SAFETY: as the caller promises.
        unsafe { self.write_slowly(to, data, bytes, is_begun) }
    }

    /// Copies into blocks, and compares what is there then if the session verifies [0088].
    ///
    /// # Safety
    ///
    /// As [`Core::write`].
    #[cold]
    unsafe fn write_slowly(
        &self,
        to: DmceAddr,
        data: *const u8,
        bytes: usize,
        is_begun: bool,
    ) -> Result<(), Ended> {
        let write = &mut |block: &Block, piece: Piece, done| {
            let data = data.wrapping_add(done);
            // SAFETY: the piece is a part of `bytes`, for which the caller's data is readable; the
            // block is writable, since this is a write.
            unsafe { block.write(piece, data) }?;
            if !self.verify {
                return Ok(());
            }
            // SAFETY: as for the write.
            match unsafe { block.compare(piece, data) }? {
                Ordering::Equal => Ok(()),
                _ => Err(Trouble::Differs.into()),
            }
        };
        let ended = self.access_or_end((to, bytes as u64), Intent::Write, write);
        ended.map_err(|ended| ended.after(is_begun))
    }

    /// Copies out of one half.
    ///
    /// # Safety
    ///
    /// As [`Core::read`].
    pub(crate) unsafe fn read_half(
        &self,
        from: DmceAddr,
        half: Half,
        buffer: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        self.access_all(from, bytes as u64, Intent::Read, &mut |block, piece, done| {
            // SAFETY: the piece is a part of `bytes`, for which the caller's buffer is writable.
            unsafe { block.read_half(piece, half, buffer.wrapping_add(done)) }
        })
    }

    /// Copies into one half, which is read back if the session verifies [0088].
    ///
    /// # Safety
    ///
    /// As [`Core::write`].
    pub(crate) unsafe fn write_half(
        &self,
        to: DmceAddr,
        half: Half,
        data: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        self.access_all(to, bytes as u64, Intent::Write, &mut |block, piece, done| {
            let data = data.wrapping_add(done);
            // SAFETY: the piece is a part of `bytes`, for which the caller's data is readable; the
            // block is writable, since this is a write.
            unsafe { block.write_half(piece, half, data) }?;
            if !self.verify {
                return Ok(());
            }
            let mut found = vec![0; piece.bytes];
            // SAFETY: the buffer has room for the piece.
            unsafe { block.read_half(piece, half, found.as_mut_ptr()) }?;
            // SAFETY: as for the write.
            let data = unsafe { slice::from_raw_parts(data, piece.bytes) };
            if found == data { Ok(()) } else { Err(Trouble::Differs.into()) }
        })
    }

    /// Brings what one half has to all copies.
    pub(crate) fn resync(&self, at: DmceAddr, bytes: u64, half: Half) -> Result<(), Error> {
        let act = &mut |block: &Block, piece, _| block.resync(piece, half);
        self.access_all(at, bytes, Intent::Write, act)
    }

    /// Fills blocks with a byte.
    pub(crate) fn fill(&self, to: DmceAddr, byte: u8, bytes: u64) -> Result<(), Error> {
        self.access_all(to, bytes, Intent::Write, &mut |block, piece, _| block.fill(piece, byte))
    }

    /// Compares blocks with private bytes, as `memcmp` does.
    ///
    /// # Safety
    ///
    /// `data` is readable for `bytes`, and written by nobody meanwhile.
    pub(crate) unsafe fn compare(
        &self,
        at: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<Ordering, Error> {
        let mut order = (0, Ordering::Equal);
        self.access_all(at, bytes as u64, Intent::Read, &mut |block, piece, done| {
            // A piece may come twice; one behind a difference does not count.
            if order.1 == Ordering::Equal || done <= order.0 {
                // SAFETY: the piece is a part of `bytes`, for which the caller's data is readable.
                let found = unsafe { block.compare(piece, data.wrapping_add(done)) }?;
                order = (done, found);
            }
            Ok(())
        })?;
        Ok(order.1)
    }

    /// Has small accesses of this thread go through a door from now on, after one that did not, if
    /// nothing is to be checked that [`quick`] does not check. The message path has none.
    #[inline]
    pub(super) fn open_door(&self, bytes: usize) {
        if bytes <= quick::BYTES_MAX && !self.check && self.doors.are_allowed() {
            self.open_door_if_shut();
        }
    }

    #[inline(never)]
    fn open_door_if_shut(&self) {
        let key = self.key();
        let (Some(slot), Some(door)) = (self.slots.recent(), thread::door(key)) else { return };
        let Some(own) = self.map.slots().get(slot) else { return };
        if door.is_open(key) || self.ways.route().is_some() {
            return;
        }
        let (look, cell_bits) = (self.map.look(), self.cell_bits);
        let ways = Ways { slot: own, look, table: &*self.table, cell_bits };
        // SAFETY: all of it is part of this session, whose doors are dropped first; the slot is
        // this thread's until it ends, and its gates and doors are shut before that.
        unsafe { self.doors.open((slot, door), key, !self.verify, &ways) };
    }

    /// Runs `act` on a range, if it is in one block and nothing is in the way.
    #[inline]
    pub(super) fn try_quickly(
        &self,
        addr: DmceAddr,
        bytes: usize,
        intent: Intent,
        act: impl FnOnce(&Block, Piece) -> Result<(), Obstacle>,
    ) -> bool {
        let is_read_back = intent == Intent::Write && self.verify;
        if bytes > PIECE_BYTES || is_read_back {
            return false;
        }
        // Checked ones come this way, too: else no test of a debug build would. A check takes the
        // allocator's lock, which a thread of the parent may have had when this child was forked.
        let may_check = || !self.is_forked() && self.check_allocated(addr, bytes as u64).is_ok();
        if self.check && !may_check() {
            return false;
        }
        let Some(inside) = self.enter_quickly() else { return false };
        let (id, cell) = self.split(addr);
        let Some(block) = self.table.get(id, &inside) else { return false };
        if block.is_asked() {
            return false;
        }
        let Some(piece) = block.piece(cell, bytes) else { return false };
        (intent == Intent::Read || block.writable) && act(block, piece).is_ok()
    }

    /// Runs `act` on a range, piece by piece, whatever is in the way.
    #[cold]
    pub(super) fn access_all(
        &self,
        addr: DmceAddr,
        bytes: u64,
        intent: Intent,
        act: &mut Act<'_>,
    ) -> Result<(), Error> {
        self.access_or_end((addr, bytes), intent, act).map_err(Ended::told)
    }

    /// [`Core::access_all`], for who wants to know why it ended, whatever was done by then.
    pub(super) fn access_or_end(
        &self,
        (addr, bytes): (DmceAddr, u64),
        intent: Intent,
        act: &mut Act<'_>,
    ) -> Result<(), Ended> {
        self.check_range(addr, bytes, intent)?;
        let span = Span::new(addr, bytes);
        let mut done = 0;
        while done < bytes {
            let piece = self.within_block(span.at(done), bytes - done, PIECE_BYTES);
            let before = usize::try_from(done).unwrap_or(usize::MAX);
            let met = self.access_piece(span.at(done), piece, intent, &mut |block, piece| {
                act(block, piece, before)
            });
            met.map_err(|ended| ended.after(intent == Intent::Write && done > 0))?;
            done += piece as u64;
        }
        Ok(())
    }

    /// Runs `act` on a range inside one block, until nothing is in the way.
    pub(super) fn access_piece(
        &self,
        raw: u64,
        bytes: usize,
        intent: Intent,
        act: &mut dyn FnMut(&Block, Piece) -> Result<(), Obstacle>,
    ) -> Result<(), Ended> {
        let is_write = intent == Intent::Write;
        // What was asked of a daemon that is gone may be done; of what is done again, a part is.
        let (mut may_be_done, mut is_begun) = (false, false);
        for _ in 0..TRIES_MAX {
            let tried = self.try_piece(raw, bytes, intent, act);
            let tried = tried.map_err(|error| Ended { is_begun, error })?;
            let Err((piece, id, obstacle)) = tried else { return Ok(()) };
            let obstacle = match obstacle {
                Obstacle::Trouble(Trouble::Refused(Status::Timeout)) if may_be_done => {
                    Trouble::Partly.into()
                }
                met => met,
            };
            may_be_done |= is_write && obstacle == Obstacle::Trouble(Trouble::Unlinked);
            is_begun |= is_write && obstacle.may_be_behind_a_part(piece);
            self.overcome(id, obstacle).map_err(|error| Ended { is_begun, error })?;
        }
        Err(Ended { is_begun, error: restless() })
    }

    /// Runs `act` on a range inside one block; if something is in its way, says what.
    fn try_piece(
        &self,
        raw: u64,
        bytes: usize,
        intent: Intent,
        act: &mut dyn FnMut(&Block, Piece) -> Result<(), Obstacle>,
    ) -> Result<Result<(), (Piece, BlockId, Obstacle)>, Error> {
        let inside = self.enter()?;
        let (block, piece) = self.look_up(raw, bytes, intent, &inside)?;
        let id = block.id;
        let met = if block.is_asked() {
            // Who is asked for its bytes may have to be waited for: not inside an operation.
            let kept = self.table.find(id).filter(|kept| ptr::eq(&raw const **kept, block));
            drop(inside);
            kept.map_or(Err(Obstacle::Replaced), |block| act(&block, piece))
        } else {
            let met = act(block, piece);
            drop(inside);
            met
        };
        Ok(met.map_err(|obstacle| (piece, id, obstacle)))
    }

    /// The block and the piece of a range inside one block.
    pub(super) fn look_up<'a>(
        &'a self,
        raw: u64,
        bytes: usize,
        intent: Intent,
        inside: &'a super::core::Entered<'_>,
    ) -> Result<(&'a Block, Piece), Error> {
        let (id, cell) = self.split_raw(raw);
        let block = self.table.get(id, inside.operation()).ok_or_else(|| illegal(raw))?;
        let piece = block.piece(cell, bytes).ok_or_else(|| beyond(raw, bytes as u64))?;
        if intent == Intent::Write && !block.writable {
            return Err(read_only(block.id));
        }
        Ok((block, piece))
    }

    /// Checks that all of a range is the session's, committed, of one span, and open to an intent.
    ///
    /// # Errors
    ///
    /// [`Status::Address`], [`Status::Denied`]; as [`Core::enter`].
    pub(crate) fn check_range(
        &self,
        addr: DmceAddr,
        bytes: u64,
        intent: Intent,
    ) -> Result<(), Error> {
        match bytes {
            0 => self.check_place(addr, intent),
            _ => self.check_bytes(addr, bytes, intent),
        }
    }

    /// Checks that no bytes may be accessed at a place: where a byte may be, and behind the last
    /// that may, which is where loops end that go through all of an allocation.
    fn check_place(&self, addr: DmceAddr, intent: Intent) -> Result<(), Error> {
        let at = self.check_bytes(addr, 1, intent);
        let last = addr.to_raw().checked_sub(1).map(|raw| DmceAddr::from_raw(self.layout, raw));
        let (Err(_), Some(Ok(last))) = (&at, last) else { return at };
        match self.check_bytes(last, 1, intent) {
            Err(error) if error.status() == Status::Address => at,
            before => before,
        }
    }

    /// [`Core::check_range`] of a range that is not empty.
    fn check_bytes(&self, addr: DmceAddr, bytes: u64, intent: Intent) -> Result<(), Error> {
        let inside = self.enter()?;
        let (mut id, mut cell) = self.split(addr);
        let mut rest = bytes;
        loop {
            let found = self.table.get(id, inside.operation());
            let block = found.ok_or_else(|| illegal(addr.to_raw()))?;
            let room = block.committed().checked_sub(cell);
            let room = room.ok_or_else(|| beyond(addr.to_raw(), bytes))?;
            if intent == Intent::Write && !block.writable {
                return Err(read_only(block.id));
            }
            if rest <= room {
                break;
            }
            // Only a full block of a span goes on in the next one.
            let is_full = block.committed() == self.layout.block_bytes();
            if !is_full || !block.span.goes_on_after(block.id) {
                return Err(beyond(addr.to_raw(), bytes));
            }
            (id, cell, rest) = (id + 1, 0, rest - room);
        }
        drop(inside);
        if self.check { self.check_allocated(addr, bytes) } else { Ok(()) }
    }

    /// Checks a range against the allocation that it is in, where there is one.
    pub(super) fn check_allocated(&self, addr: DmceAddr, bytes: u64) -> Result<(), Error> {
        let (id, cell) = self.split(addr);
        let block = u32::try_from(id).ok().and_then(|id| BlockId::try_from(id).ok());
        let Some(block) = block else { return Err(illegal(addr.to_raw())) };
        match self.allocator().covers(Place { block, cell }, bytes) {
            Some(false) => Err(beyond(addr.to_raw(), bytes)),
            _ => Ok(()),
        }
    }

    /// How much of `bytes` from an address on is in one block, at most `limit`.
    pub(super) fn within_block(&self, raw: u64, bytes: u64, limit: usize) -> usize {
        let room = self.layout.block_bytes() - (raw & (self.layout.block_bytes() - 1));
        usize::try_from(room.min(bytes)).map_or(limit, |bytes| bytes.min(limit))
    }
}

/// A range of addresses, as plain numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u64,
    /// How many.
    pub bytes: u64,
}

impl Span {
    pub(super) const fn new(start: DmceAddr, bytes: u64) -> Self {
        Self { start: start.to_raw(), bytes }
    }

    /// The address of a byte; what is beyond the checked range wraps, and is no address.
    pub(super) const fn at(self, offset: u64) -> u64 {
        self.start.wrapping_add(offset)
    }

    pub(super) fn addr(self, core: &Core, offset: u64) -> Result<DmceAddr, Error> {
        Ok(DmceAddr::from_raw(core.layout, self.at(offset))?)
    }
}

#[cold]
fn illegal(raw: u64) -> Error {
    Error::address(format!("{raw:#x} is in no block of this session"))
}

#[cold]
fn beyond(raw: u64, bytes: u64) -> Error {
    Error::address(format!("{bytes} bytes at {raw:#x} cross an end"))
}

#[cold]
fn read_only(id: BlockId) -> Error {
    Error::new(Status::Denied, format!("block {id} is open for reading alone"))
}

#[cold]
fn restless() -> Error {
    Error::new(Status::Io, "the block is being replaced without end")
}

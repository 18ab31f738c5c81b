//! What the session knows of a block.
//!
//! # Invariants
//!
//! 1. All of it but what is committed stays as it is: a change is another [`Block`] in the table.
//! 2. What a message says of a block is checked before a [`Block`] is made of it.

mod info;

use std::cmp::Ordering;
use std::ptr;
use std::sync::atomic::{self, AtomicPtr, AtomicU64, AtomicUsize};

use dmce_abi::block::{BlockId, DaemonId, Guid, Half};
use dmce_abi::wire::client::BlockInfo;

use crate::door::Wish;
use crate::reach::copied::CopiedBlock;
use crate::reach::mapped::MappedBlock;
use crate::reach::message::AskedBlock;
use crate::reach::windowed::WindowedBlock;
use crate::reach::word::{Change, Watch};
use crate::reach::{Piece, Reach, Trouble};

pub(crate) use info::check_info;

/// A block that operations may find.
#[derive(Debug)]
pub(crate) struct Block {
    /// Its id.
    pub id: BlockId,
    /// Its GUID, if the broker has told it.
    pub guid: Option<Guid>,
    /// Its epoch, if the broker has told it.
    pub epoch: u64,
    /// Bytes that may be used. Rises when the broker says so; read by every operation.
    committed: AtomicU64,
    /// Bytes that it may grow to.
    pub bytes_max: u64,
    /// The span that it is part of.
    pub span: SpanIds,
    /// Whether operations may write. For an absent block: whether it is to be fetched so.
    pub writable: bool,
    /// Whether no pointers into it are given: its primary is about to be another.
    pub is_moving: bool,
    /// How its bytes are reached.
    pub backing: Backing,
    /// The same as that, `committed` and `writable` say, for [`Block::plain`].
    plain: Plain,
}

/// What plain loads and stores may reach, for which all of it is one comparison: nothing in a block
/// that is not mapped.
#[derive(Debug)]
struct Plain {
    start: AtomicPtr<u8>,
    /// How much of it may be read and written. Rise with `committed`.
    to_read: AtomicUsize,
    to_write: AtomicUsize,
}

/// Consecutive block ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SpanIds {
    /// The first.
    pub first: BlockId,
    /// How many.
    pub count: u32,
}

impl SpanIds {
    /// Whether the block after `block` is of the same span.
    pub(crate) const fn goes_on_after(self, block: BlockId) -> bool {
        block.get() >= self.first.get() && block.get() - self.first.get() + 1 < self.count
    }

    /// Every id.
    pub(crate) fn ids(self) -> impl Iterator<Item = BlockId> {
        let first = self.first.get();
        (first..first.saturating_add(self.count)).filter_map(|id| BlockId::try_from(id).ok())
    }
}

impl Plain {
    /// Of a block behind `backing`, of which nothing is committed yet.
    fn of(backing: &Backing) -> Self {
        let start = match backing {
            Backing::Mapped(mapped) => mapped.pointer(0),
            _ => ptr::null_mut(),
        };
        let [to_read, to_write] = [const { AtomicUsize::new(0) }; 2];
        Self { start: AtomicPtr::new(start), to_read, to_write }
    }
}

/// How the bytes of a block are reached.
#[derive(Debug)]
pub(crate) enum Backing {
    /// By load and store.
    Mapped(MappedBlock),
    /// Through windows.
    Windowed(WindowedBlock),
    /// Each copy by one of these, under page locks.
    Copied(CopiedBlock),
    /// By message.
    Asked(AskedBlock),
    /// It has to be fetched first.
    Absent,
    /// Not at all: its bytes are gone, until the broker says otherwise.
    Lost,
}

/// What an operation met in place of the block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The block has to be fetched.
    Absent,
    /// Its bytes are gone, as is known already.
    Lost,
    /// It was replaced at this moment: again.
    Replaced,
    /// Its primary is about to be another: no pointer into it is given for a moment.
    Moving,
    /// What its reach ran into.
    Trouble(Trouble),
}

impl Obstacle {
    /// [`Trouble::may_be_behind_a_part`].
    pub(crate) const fn may_be_behind_a_part(self, piece: Piece) -> bool {
        matches!(self, Self::Trouble(trouble) if trouble.may_be_behind_a_part(piece))
    }
}

impl From<Trouble> for Obstacle {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl Block {
    /// One that is fetched when it is needed.
    pub(crate) fn absent(id: BlockId, span: SpanIds, bytes: u64, writable: bool) -> Self {
        Self {
            id,
            guid: None,
            epoch: 0,
            committed: AtomicU64::new(bytes),
            bytes_max: bytes,
            span,
            writable,
            is_moving: false,
            plain: Plain::of(&Backing::Absent),
            backing: Backing::Absent,
        }
    }

    /// One as the broker described it, behind `backing`.
    pub(crate) fn of_info(info: &BlockInfo, backing: Backing) -> Self {
        let block = Self {
            id: info.block,
            guid: Some(info.guid),
            epoch: info.epoch,
            committed: AtomicU64::new(info.committed),
            bytes_max: info.bytes_max,
            span: SpanIds { first: info.span_first, count: info.span_count },
            writable: info.writable,
            is_moving: info.is_moving,
            plain: Plain::of(&backing),
            backing,
        };
        block.rise_to(info.committed);
        block
    }

    /// The same block, of which no more is used: a region ends to the byte, its object with a page.
    pub(crate) fn ending_at(mut self, bytes_max: u64) -> Self {
        self.bytes_max = self.bytes_max.min(bytes_max);
        let committed = self.committed().min(self.bytes_max);
        self.committed = AtomicU64::new(committed);
        self.plain = Plain::of(&self.backing);
        self.rise_to(committed);
        self
    }

    /// The same block with its bytes out of reach.
    pub(crate) fn without_bytes(&self, backing: Backing) -> Self {
        Self {
            id: self.id,
            guid: self.guid,
            epoch: self.epoch,
            committed: AtomicU64::new(self.committed()),
            bytes_max: self.bytes_max,
            span: self.span,
            writable: self.writable,
            is_moving: false,
            plain: Plain::of(&backing),
            backing,
        }
    }

    /// The same absent block, to be fetched for reading.
    pub(crate) fn read_only(&self) -> Self {
        Self { writable: false, ..self.without_bytes(Backing::Absent) }
    }

    /// Whether its bytes are asked for, which nobody does inside an operation.
    #[inline]
    pub(crate) const fn is_asked(&self) -> bool {
        matches!(self.backing, Backing::Asked(_))
    }

    /// It is not in the table any more.
    pub(crate) fn note_retired(&self) {
        if let Backing::Copied(copied) = &self.backing {
            copied.note_retired();
        }
    }

    /// Bytes that may be used.
    #[inline]
    pub(crate) fn committed(&self) -> u64 {
        // Acquire pairs with the release in `grow`. The bytes themselves are zero and mapped.
        self.committed.load(atomic::Ordering::Acquire)
    }

    /// Takes in that the broker committed more.
    pub(crate) fn grow(&self, committed: u64) {
        self.rise_to(committed.min(self.bytes_max));
    }

    fn rise_to(&self, committed: u64) {
        self.committed.fetch_max(committed, atomic::Ordering::Release);
        let Backing::Mapped(_) = self.backing else { return };
        // What is mapped fits a pointer.
        let bytes = usize::try_from(committed).unwrap_or(0);
        self.plain.to_read.fetch_max(bytes, atomic::Ordering::Release);
        if self.writable {
            self.plain.to_write.fetch_max(bytes, atomic::Ordering::Release);
        }
    }

    /// Lets so many bytes be used, which may be fewer than before.
    #[cfg(test)]
    pub(crate) fn set_committed(&self, committed: u64) {
        self.committed.store(0, atomic::Ordering::Relaxed);
        self.plain.to_read.store(0, atomic::Ordering::Relaxed);
        self.plain.to_write.store(0, atomic::Ordering::Relaxed);
        self.rise_to(committed);
    }

    /// The pointer to a range of a mapped block, if all of it may be used for the wish.
    #[inline]
    pub(crate) fn plain(&self, wish: Wish, cell: u64, bytes: usize) -> Option<*mut u8> {
        let end = match wish {
            Wish::Read => &self.plain.to_read,
            Wish::Write => &self.plain.to_write,
        };
        let cell = usize::try_from(cell).ok()?;
        // Acquire pairs with the release in `rise_to`.
        let rest = end.load(atomic::Ordering::Acquire).checked_sub(cell)?;
        let start = self.plain.start.load(atomic::Ordering::Relaxed);
        (bytes <= rest).then(|| start.wrapping_add(cell))
    }

    /// The piece of `bytes` from `cell` on, if all of it may be used.
    #[inline]
    pub(crate) fn piece(&self, cell: u64, bytes: usize) -> Option<Piece> {
        let committed = self.committed();
        let fits = committed.checked_sub(cell).is_some_and(|rest| bytes as u64 <= rest);
        fits.then_some(Piece { cell, bytes, committed })
    }

    /// As [`Reach::read`].
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    #[inline]
    pub(crate) unsafe fn read(&self, piece: Piece, buffer: *mut u8) -> Result<(), Obstacle> {
        match &self.backing {
            // SAFETY: as the caller promises.
            Backing::Mapped(mapped) => Ok(unsafe { mapped.read(piece, buffer) }?),
            // SAFETY: as the caller promises.
            Backing::Windowed(windowed) => Ok(unsafe { windowed.read(piece, buffer) }?),
            // SAFETY: as the caller promises.
            Backing::Copied(copied) => Ok(unsafe { copied.read(piece, buffer) }?),
            // SAFETY: as the caller promises.
            Backing::Asked(asked) => Ok(unsafe { asked.read(piece, buffer) }?),
            other => Err(other.obstacle()),
        }
    }

    /// As [`Reach::write`].
    ///
    /// # Safety
    ///
    /// As [`Reach::write`].
    #[inline]
    pub(crate) unsafe fn write(&self, piece: Piece, data: *const u8) -> Result<(), Obstacle> {
        match &self.backing {
            // SAFETY: as the caller promises.
            Backing::Mapped(mapped) => Ok(unsafe { mapped.write(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Windowed(windowed) => Ok(unsafe { windowed.write(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Copied(copied) => Ok(unsafe { copied.write(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Asked(asked) => Ok(unsafe { asked.write(piece, data) }?),
            other => Err(other.obstacle()),
        }
    }

    /// As [`Reach::fill`].
    pub(crate) fn fill(&self, piece: Piece, byte: u8) -> Result<(), Obstacle> {
        match &self.backing {
            Backing::Mapped(mapped) => Ok(mapped.fill(piece, byte)?),
            Backing::Windowed(windowed) => Ok(windowed.fill(piece, byte)?),
            Backing::Copied(copied) => Ok(copied.fill(piece, byte)?),
            Backing::Asked(asked) => Ok(asked.fill(piece, byte)?),
            other => Err(other.obstacle()),
        }
    }

    /// As [`Reach::compare`].
    ///
    /// # Safety
    ///
    /// As [`Reach::compare`].
    pub(crate) unsafe fn compare(
        &self,
        piece: Piece,
        data: *const u8,
    ) -> Result<Ordering, Obstacle> {
        match &self.backing {
            // SAFETY: as the caller promises.
            Backing::Mapped(mapped) => Ok(unsafe { mapped.compare(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Windowed(windowed) => Ok(unsafe { windowed.compare(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Copied(copied) => Ok(unsafe { copied.compare(piece, data) }?),
            // SAFETY: as the caller promises.
            Backing::Asked(asked) => Ok(unsafe { asked.compare(piece, data) }?),
            other => Err(other.obstacle()),
        }
    }

    /// [`Block::read`] of one half.
    ///
    /// # Safety
    ///
    /// As [`Reach::read`].
    pub(crate) unsafe fn read_half(
        &self,
        piece: Piece,
        half: Half,
        buffer: *mut u8,
    ) -> Result<(), Obstacle> {
        match &self.backing {
            // SAFETY: as the caller promises.
            Backing::Copied(copied) => Ok(unsafe { copied.read_half(piece, half, buffer) }?),
            // SAFETY: as the caller promises.
            Backing::Asked(asked) => Ok(unsafe { asked.read_half(piece, half, buffer) }?),
            // SAFETY: as the caller promises.
            _ if half == Half::PRIMARY => unsafe { self.read(piece, buffer) },
            other => Err(other.without_half()),
        }
    }

    /// [`Block::write`] to one half.
    ///
    /// # Safety
    ///
    /// As [`Reach::write`].
    pub(crate) unsafe fn write_half(
        &self,
        piece: Piece,
        half: Half,
        data: *const u8,
    ) -> Result<(), Obstacle> {
        match &self.backing {
            // SAFETY: as the caller promises.
            Backing::Copied(copied) => Ok(unsafe { copied.write_half(piece, half, data) }?),
            // SAFETY: as the caller promises.
            Backing::Asked(asked) => Ok(unsafe { asked.write_half(piece, half, data) }?),
            // SAFETY: as the caller promises.
            _ if half == Half::PRIMARY => unsafe { self.write(piece, data) },
            other => Err(other.without_half()),
        }
    }

    /// Brings what one half has in a piece to all copies.
    pub(crate) fn resync(&self, piece: Piece, half: Half) -> Result<(), Obstacle> {
        match &self.backing {
            Backing::Copied(copied) => Ok(copied.resync(piece, half)?),
            Backing::Asked(asked) => Ok(asked.resync(piece, half)?),
            Backing::Mapped(_) | Backing::Windowed(_) if half == Half::PRIMARY => Ok(()),
            other => Err(other.without_half()),
        }
    }

    /// Brings what was stored to a piece by a plain pointer to all copies.
    pub(crate) fn carry(&self, piece: Piece) -> Result<(), Obstacle> {
        match &self.backing {
            Backing::Mapped(_) | Backing::Windowed(_) | Backing::Asked(_) => Ok(()),
            Backing::Copied(copied) => Ok(copied.carry(piece)?),
            other => Err(other.obstacle()),
        }
    }

    /// Whose copy is written first and read, if there is more than one, or was.
    pub(crate) fn primary(&self) -> Option<DaemonId> {
        match &self.backing {
            Backing::Copied(copied) => Some(copied.primary()),
            _ => None,
        }
    }

    /// A half that is good and not the primary's.
    pub(crate) fn second_half(&self) -> Option<Half> {
        match &self.backing {
            Backing::Copied(copied) => copied.second_half(),
            _ => None,
        }
    }

    /// As [`Reach::change`].
    #[inline]
    pub(crate) fn change(&self, piece: Piece, change: Change) -> Result<u64, Obstacle> {
        match &self.backing {
            Backing::Mapped(mapped) => Ok(mapped.change(piece, change)?),
            Backing::Windowed(windowed) => Ok(windowed.change(piece, change)?),
            Backing::Copied(copied) => Ok(copied.change(piece, change)?),
            Backing::Asked(asked) => Ok(asked.change(piece, change)?),
            other => Err(other.obstacle()),
        }
    }

    /// As [`Reach::wake`].
    pub(crate) fn wake(&self, piece: Piece, count: u32) -> Result<(), Obstacle> {
        match &self.backing {
            Backing::Mapped(mapped) => Ok(mapped.wake(piece, count)?),
            Backing::Windowed(windowed) => Ok(windowed.wake(piece, count)?),
            Backing::Copied(copied) => Ok(copied.wake(piece, count)?),
            Backing::Asked(asked) => Ok(asked.wake(piece, count)?),
            other => Err(other.obstacle()),
        }
    }

    /// As [`Reach::watch`].
    pub(crate) fn watch(&self, piece: Piece) -> Result<Watch, Obstacle> {
        match &self.backing {
            Backing::Mapped(mapped) => Ok(mapped.watch(piece)?),
            Backing::Windowed(windowed) => Ok(windowed.watch(piece)?),
            Backing::Copied(copied) => Ok(copied.watch(piece)?),
            Backing::Asked(asked) => Ok(asked.watch(piece)?),
            other => Err(other.obstacle()),
        }
    }
}

impl Backing {
    /// How many descriptors it keeps.
    pub(crate) fn descriptors(&self) -> usize {
        match self {
            Self::Windowed(_) => 1,
            Self::Copied(copied) => copied.descriptors(),
            Self::Mapped(_) | Self::Asked(_) | Self::Absent | Self::Lost => 0,
        }
    }

    /// Whether one of those was used since the last call.
    pub(crate) fn take_touched(&self) -> bool {
        match self {
            Self::Windowed(windowed) => windowed.take_touched(),
            Self::Copied(copied) => copied.take_touched(),
            Self::Mapped(_) | Self::Asked(_) | Self::Absent | Self::Lost => false,
        }
    }

    /// What is met by who asks for another half than the primary of a block that has one copy.
    fn without_half(&self) -> Obstacle {
        match self {
            Self::Absent | Self::Lost => self.obstacle(),
            _ => Trouble::NoHalf.into(),
        }
    }

    /// Why bytes behind this cannot be reached, if they cannot.
    #[cold]
    fn obstacle(&self) -> Obstacle {
        if matches!(self, Self::Absent) { Obstacle::Absent } else { Obstacle::Lost }
    }
}

#[cfg(test)]
mod tests {
    use super::info::tests::info;
    use super::*;

    #[test]
    fn a_piece_ends_with_what_is_committed() {
        let block = Block::of_info(&info(), Backing::Absent);
        let end = 2 << 20;
        assert!(block.piece(0, 2 << 20).is_some());
        assert!(block.piece(end - 1, 1).is_some());
        assert!(block.piece(end - 1, 2).is_none());
        assert!(block.piece(end, 0).is_some());
        assert!(block.piece(end + 1, 0).is_none());
        assert!(block.piece(u64::MAX, 1).is_none());
        block.grow(4 << 20);
        assert!(block.piece(end, 2 << 20).is_some());
        block.grow(u64::MAX);
        assert_eq!(block.committed(), 1 << 30);
    }

    #[test]
    fn a_span_goes_on_until_its_last_block() {
        let first = BlockId::try_from(4).unwrap();
        let span = SpanIds { first, count: 3 };
        let id = |id| BlockId::try_from(id).unwrap();
        assert!(span.goes_on_after(id(4)) && span.goes_on_after(id(5)));
        assert!(!span.goes_on_after(id(6)) && !span.goes_on_after(id(3)));
        assert_eq!(span.ids().collect::<Vec<_>>(), [id(4), id(5), id(6)]);
    }
}

//! Pointers into blocks: `map` and `unmap`.
//!
//! ```text
//!   one block, mapped whole      -> a pointer into the mapping that is there
//!   several blocks, or windows   -> a mapping of its own, contiguous, part by part
//! ```
//! What is mapped as a whole, by `vmalloc` and as a region, is so too ([`super::transparent`]).
//!
//! # Invariants
//!
//! 1. A range is recorded in the session object, inside an operation, before its pointer is
//!    returned; the record goes after the mapping.
//! 2. What a pointer points into stays mapped until it is unmapped or the session closes, whatever
//!    becomes of the block.
//! 3. Nobody waits while the pins are locked but for other threads' operations. The broker is told
//!    of pointers one change behind the other (`told`): that one is gone before its addresses can
//!    be another's.
//! 4. A mapping of its own is of the blocks that the table has when its range is recorded.
//! 5. A pointer is given into memory that is allocated, which is not freed before it is unmapped.
//! 6. A pointer that can write is given for memory that may be written, and for no other.
//! 7. A pointer into a block with copies is into its primary. What is stored by it is on all copies
//!    when it is given back; where the primary's page is gone, another copy's takes its place, and
//!    when the primary is another, that ([`super::parts`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{ClientRequest, Map, Unmap};
use dmce_abi::{DmceAddr, Status};
use dmce_shm::session::pin::{PinId, PinnedRange};
use dmce_sys::map::{MapError, Reservation};

use super::core::Core;
use super::data::Intent;
use super::parts::{Due, Laid, Objects, Part};
use crate::block::{Backing, Block, Obstacle};
use crate::error::Error;
use crate::limit::within;
use crate::options::Prot;
use crate::reach::ways::of_map;

/// A range that the application has a pointer to.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(super) kind: PinKind,
    pub(super) range: PinnedRange,
    pub(super) record: PinId,
    pub(super) mapping: Held,
}

/// What a pointer was given as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PinKind {
    /// To any range: by `map`.
    Pointer,
    /// To an allocation that ends with it: by `vmalloc`.
    Transparent,
    /// To all of a region.
    Region,
    /// To a range that it locks: by `read_ptr` and `write_ptr`.
    Locked,
}

/// What the broker was told of pointers, and of which it is still to be told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    ranges: BTreeMap<usize, PinnedRange>,
    due: BTreeSet<usize>,
}

/// What keeps a pointer's memory mapped.
#[derive(Debug)]
pub(super) enum Held {
    /// The block's own mapping.
    Block { _block: Arc<Block> },
    /// A mapping for this pointer alone.
    Own(Laid),
    /// What holds it is the same pointer, given before.
    Again,
}

pub(super) type Pins = BTreeMap<usize, Vec<Pinned>>;

/// Whether a pointer is into a range of addresses.
pub(crate) fn is_pinned(pins: &Pins, addr: u64, bytes: u64) -> bool {
    pins.values().flatten().any(|pin| pin.is_into(addr, bytes))
}

/// [`is_pinned`], by a pointer that can write.
pub(crate) fn is_pinned_to_write(pins: &Pins, addr: u64, bytes: u64) -> bool {
    let writable = |pin: &&Pinned| pin.range.writable;
    pins.values().flatten().filter(writable).any(|pin| pin.is_into(addr, bytes))
}

impl PinKind {
    /// Whether it points to all of what was mapped as a whole.
    pub(super) const fn is_whole(self) -> bool {
        matches!(self, Self::Transparent | Self::Region)
    }

    /// Whether it points to a range of any allocation.
    const fn is_pointer(self) -> bool {
        matches!(self, Self::Pointer | Self::Locked)
    }
}

impl Pinned {
    /// Whether what it stores is brought from where it stores it, also when that is lost.
    fn keeps_its_copy(&self) -> bool {
        self.kind == PinKind::Locked && self.range.writable
    }

    /// Whether [`Core::unmap`] ends it.
    const fn is_unmappable(&self) -> bool {
        matches!(self.kind, PinKind::Pointer | PinKind::Region)
    }

    pub(super) fn is_into(&self, addr: u64, bytes: u64) -> bool {
        let ends = |start: u64, bytes: u64| start.saturating_add(bytes);
        self.range.addr < ends(addr, bytes) && addr < ends(self.range.addr, self.range.bytes)
    }
}

impl Core {
    pub(crate) fn map_range(
        &self,
        addr: DmceAddr,
        bytes: usize,
        prot: Prot,
    ) -> Result<*mut u8, Error> {
        self.usable()?;
        // No processor maps memory for writing alone, so WRITE without READ promises what is not.
        if bytes == 0 || !prot.contains(Prot::READ) {
            return Err(Error::invalid(format!("{bytes} bytes with rights {}", prot.bits())));
        }
        let writable = prot.contains(Prot::WRITE);
        let range = PinnedRange { addr: addr.to_raw(), bytes: bytes as u64, writable };
        self.map_of_kind(range, PinKind::Pointer)
    }

    /// A pointer to a range that may be accessed so.
    pub(super) fn map_of_kind(&self, range: PinnedRange, kind: PinKind) -> Result<*mut u8, Error> {
        let pointer = self.map_until(range, || match self.map_in_block(range, kind) {
            Ok(None) => self.map_own(range, kind, &mut None),
            Ok(Some(pointer)) => Ok(pointer),
            Err(hindrance) => Err(hindrance),
        })?;
        self.announce(pointer.addr());
        Ok(pointer)
    }

    /// Maps a range that may be accessed so, until nothing is in the way.
    pub(super) fn map_until(
        &self,
        range: PinnedRange,
        mut map: impl FnMut() -> Result<*mut u8, Hindrance>,
    ) -> Result<*mut u8, Error> {
        let intent = if range.writable { Intent::Write } else { Intent::Read };
        let addr = DmceAddr::from_raw(self.layout, range.addr)?;
        let deadline = self.deadline();
        loop {
            self.check_range(addr, range.bytes, intent)?;
            match map() {
                Ok(pointer) => return Ok(pointer),
                Err(Hindrance::Failed(error)) => return Err(error),
                Err(Hindrance::Met(id, Obstacle::Moving)) if deadline.left().is_none() => {
                    let text = format!("block {id} is being moved for longer than a call waits");
                    return Err(Error::new(Status::Timeout, text));
                }
                Err(Hindrance::Met(id, obstacle)) => self.overcome(id, obstacle)?,
            }
        }
    }

    pub(crate) fn unmap(&self, pointer: *const u8) -> Result<(), Error> {
        self.usable()?;
        let unknown = || Error::new(Status::NotFound, format!("nothing is mapped at {pointer:p}"));
        let range = self.unmappable_at(pointer.addr()).ok_or_else(unknown)?;
        let lost = match self.carry(range) {
            Err(error) if error.status() == Status::Lost => Err(error),
            carried => carried.map(Ok)?,
        };
        if !self.unpin_last(pointer.addr(), Pinned::is_unmappable) {
            return Err(unknown());
        }
        lost
    }

    /// Ends the last of the pins at a pointer that `is_it`. False if there is none.
    pub(super) fn unpin_last(&self, pointer: usize, is_it: impl Fn(&Pinned) -> bool) -> bool {
        let mut pins = self.pins();
        let Some(same) = pins.get_mut(&pointer) else { return false };
        let Some(last) = same.iter().rposition(is_it) else { return false };
        let pin = same.remove(last);
        // The broker knows of the first.
        let is_news = last == 0;
        if same.is_empty() {
            pins.remove(&pointer);
        }
        self.count_of(pin.kind).fetch_sub(1, Ordering::Relaxed);
        drop(pins);
        self.leave_place(pointer, &pin);
        let Pinned { record, mapping, .. } = pin;
        if is_news {
            self.announce(pointer);
        }
        drop(mapping);
        self.map.free_pin(record);
        true
    }

    /// Brings what was stored by a pointer to all copies. What is no memory of the session any more
    /// has none.
    ///
    /// # Errors
    ///
    /// [`Status::Lost`] if a part is lost, and with it what was stored there; the rest was carried.
    pub(super) fn carry(&self, range: PinnedRange) -> Result<(), Error> {
        if !range.writable {
            return Ok(());
        }
        match self.carry_part(range.addr, range.bytes) {
            Err(error) if is_gone(error.status()) => {}
            carried => return carried,
        }
        // Something of it is gone: the rest is found page by page.
        let (mut at, end, mut lost) = (range.addr, range.addr + range.bytes, Ok(()));
        while at < end {
            let until = end.min((at / PAGE_BYTES + 1) * PAGE_BYTES);
            match self.carry_part(at, until - at) {
                Err(error) if error.status() == Status::Address => {}
                Err(error) if error.status() == Status::Lost => lost = Err(error),
                carried => carried?,
            }
            at = until;
        }
        lost
    }

    fn carry_part(&self, addr: u64, bytes: u64) -> Result<(), Error> {
        let addr = DmceAddr::from_raw(self.layout, addr)?;
        let act = &mut |block: &Block, piece, _| block.carry(piece);
        // What was stored is there already, whatever of it is carried.
        self.access_or_end((addr, bytes), Intent::Write, act).map_err(|ended| ended.error)
    }

    /// Brings what was stored by all pointers to all copies, as far as that can be; returns the
    /// ranges of those that are left to the broker, with the records of their pointers. What ends
    /// with the session nobody will read.
    pub(super) fn carry_all(&self) -> Vec<PinnedRange> {
        let stays = |pin: &&Pinned| matches!(pin.kind, PinKind::Pointer | PinKind::Region);
        let mut ranges: Vec<PinnedRange> =
            self.pins().values().flatten().filter(stays).map(|pin| pin.range).collect();
        // All of them in the time of one call: a close is not to take that for each.
        within(Some(self.deadline()), || {
            ranges.retain(|range| {
                let carried = self.carry(*range);
                if let Err(error) = &carried {
                    let addr = range.addr;
                    tracing::warn!(addr, %error, "what a pointer stored is not carried");
                }
                // What is lost the broker has no more of.
                carried.is_err_and(|error| error.status() != Status::Lost)
            });
        });
        ranges
    }

    /// Tells the broker what became of a pointer; later, if that would mean to wait.
    pub(super) fn announce(&self, pointer: usize) {
        let mut told = self.told();
        told.due.insert(pointer);
        if !self.announce_due(&mut told) {
            drop(told);
            self.link.wake();
        }
    }

    /// Tells the broker again of every pointer: it may have forgotten. It may also have forgotten
    /// nothing, so it is told of those that are gone as well.
    pub(super) fn announce_again(&self) {
        let mut told = self.told();
        told.ranges.retain(|pointer, was| self.pinned_at(*pointer) != Some(*was));
        told.due.extend(self.pins().keys());
    }

    /// Tells the broker of the pointers that it does not know, and of those that are gone. False if
    /// something could not be told.
    pub(super) fn announce_pins(&self) -> bool {
        self.announce_due(&mut self.told())
    }

    fn announce_due(&self, told: &mut Told) -> bool {
        let due = std::mem::take(&mut told.due);
        // What is gone first: something else may be where it was.
        for &pointer in &due {
            let was = told.ranges.get(&pointer).copied();
            if was.is_none() || was == self.pinned_at(pointer) {
                continue;
            }
            let unmap = Unmap { os_address: pointer as u64 };
            if !self.link.try_tell(&ClientRequest::Unmap(unmap)) {
                told.due = due;
                return false;
            }
            told.ranges.remove(&pointer);
        }
        for pointer in due {
            let now = self.pinned_at(pointer);
            let Some(range) = now.filter(|_| !told.ranges.contains_key(&pointer)) else {
                continue;
            };
            let PinnedRange { addr, bytes, writable } = range;
            let map = Map { addr, bytes, os_address: pointer as u64, writable };
            if self.link.try_tell(&ClientRequest::Map(map)) {
                told.ranges.insert(pointer, range);
            } else {
                told.due.insert(pointer);
            }
        }
        told.due.is_empty()
    }

    /// The range that the broker is told of a pointer.
    fn pinned_at(&self, pointer: usize) -> Option<PinnedRange> {
        self.pins().get(&pointer).and_then(|same| same.first()).map(|pin| pin.range)
    }

    /// The range of a pointer that [`Core::unmap`] ends.
    fn unmappable_at(&self, pointer: usize) -> Option<PinnedRange> {
        let pins = self.pins();
        pins.get(&pointer)?.iter().rfind(|pin| pin.is_unmappable()).map(|pin| pin.range)
    }

    /// Takes every pointer back. Those into some ranges are left to the broker.
    pub(super) fn drop_pins(&self, left: &[PinnedRange]) {
        let pins = std::mem::take(&mut *self.pins());
        self.pinned.store(0, Ordering::Relaxed);
        self.spread.store(0, Ordering::Relaxed);
        for pin in pins.into_values().flatten() {
            drop(pin.mapping);
            if left.contains(&pin.range) {
                self.map.leave_pin(pin.record);
            } else {
                self.map.free_pin(pin.record);
            }
        }
    }

    /// A pointer into the mapping of a block that is mapped whole. `None` if the range needs a
    /// mapping of its own.
    fn map_in_block(
        &self,
        range: PinnedRange,
        kind: PinKind,
    ) -> Result<Option<*mut u8>, Hindrance> {
        let addr = DmceAddr::from_raw(self.layout, range.addr).map_err(Error::from)?;
        let (id, cell) = self.split(addr);
        let (mut pins, inside) = self.enter_with(|| self.pins())?;
        let block = self.table.get(id, inside.operation());
        let block = block.ok_or_else(|| Error::address(format!("{:#x} is gone", range.addr)))?;
        let fits = range.bytes <= block.committed().saturating_sub(cell);
        let pointer = match &block.backing {
            _ if !fits => return Ok(None),
            _ if block.is_moving => return Err(Hindrance::Met(block.id, Obstacle::Moving)),
            Backing::Mapped(mapped) => mapped.pointer(cell),
            Backing::Windowed(_) | Backing::Copied(_) => return Ok(None),
            Backing::Asked(_) => return Err(not_mapped().into()),
            Backing::Absent => return Err(Hindrance::Met(block.id, Obstacle::Absent)),
            Backing::Lost => return Err(Hindrance::Met(block.id, Obstacle::Lost)),
        };
        let same = |held: &Arc<Block>| std::ptr::eq(Arc::as_ptr(held), block);
        let Some(held) = self.table.find(block.id).filter(same) else {
            // Replaced at this moment: look again.
            return Err(Hindrance::Met(block.id, Obstacle::Replaced));
        };
        let record = self.record(range)?;
        drop(inside);
        let record = self.pin(range, record, kind)?;
        let pinned = Pinned { kind, range, record, mapping: Held::Block { _block: held } };
        pins.entry(pointer.expose_provenance()).or_default().push(pinned);
        Ok(Some(pointer))
    }

    /// A pointer to a mapping of its own; where address space is reserved for it, there.
    pub(super) fn map_own(
        &self,
        range: PinnedRange,
        kind: PinKind,
        site: &mut Option<Reservation>,
    ) -> Result<*mut u8, Hindrance> {
        let parts = self.open_parts(range)?;
        // Inside an operation, so that who waits for the marks sees the record.
        let (mut pins, inside) = self.enter_with(|| self.pins())?;
        let is_as_opened = |part: &Part| {
            let block = self.table.get(part.block.get().into(), inside.operation());
            let Objects { guid, epoch, .. } = part.objects;
            block.is_some_and(|block| (block.guid, block.epoch) == (Some(guid), epoch))
        };
        if let Some(other) = parts.iter().find(|part| !is_as_opened(part)) {
            return Err(Hindrance::Met(other.block, Obstacle::Replaced));
        }
        let is_moving = |part: &&Part| {
            let block = self.table.get(part.block.get().into(), inside.operation());
            block.is_some_and(|block| block.is_moving)
        };
        if let Some(moving) = parts.iter().find(is_moving) {
            return Err(Hindrance::Met(moving.block, Obstacle::Moving));
        }
        let record = self.record(range)?;
        drop(inside);
        let record = self.pin(range, record, kind)?;
        let placed = match Laid::place(&parts, range, site) {
            Err(MapError::AddressSpace { .. }) if kind.is_pointer() && self.ways.shrink() => {
                Laid::place(&parts, range, site)
            }
            placed => placed,
        };
        match placed {
            Ok((mapping, pointer)) => {
                let mapping = Held::Own(Laid::new(parts, mapping, range));
                let pinned = Pinned { kind, range, record, mapping };
                pins.entry(pointer.expose_provenance()).or_default().push(pinned);
                Ok(pointer)
            }
            Err(error) => {
                self.unpin(record, kind);
                Err(of_map(&error).into())
            }
        }
    }

    /// Keeps a range from being freed, under the lock of the pins, if it still is allocated.
    fn pin(&self, range: PinnedRange, record: PinId, kind: PinKind) -> Result<PinId, Error> {
        let is_first = self.count_of(kind).fetch_add(1, Ordering::Relaxed) == 0;
        if is_first && kind.is_pointer() {
            self.allocator().shut_gates();
        }
        let addr = DmceAddr::from_raw(self.layout, range.addr)?;
        match self.check_allocated(addr, range.bytes) {
            Ok(()) => Ok(record),
            Err(error) => {
                self.unpin(record, kind);
                Err(error)
            }
        }
    }

    fn unpin(&self, record: PinId, kind: PinKind) {
        self.count_of(kind).fetch_sub(1, Ordering::Relaxed);
        self.map.free_pin(record);
    }

    /// Where the pointers of a kind are counted.
    pub(super) const fn count_of(&self, kind: PinKind) -> &AtomicUsize {
        match kind {
            PinKind::Pointer | PinKind::Locked => &self.pinned,
            PinKind::Transparent | PinKind::Region => &self.spread,
        }
    }

    pub(super) fn record(&self, range: PinnedRange) -> Result<PinId, Error> {
        let full = |error: dmce_shm::session::pin::PinsExhausted| {
            Error::new(Status::NoMem, error.to_string())
        };
        self.map.take_pin(range).map_err(full)
    }

    /// The parts of pointers' own mappings that are of blocks with copies which have changed.
    pub(super) fn pins_into(&self, has_changed: impl Fn(BlockId) -> bool) -> Vec<Due> {
        let mut all = Vec::new();
        for (&pointer, same) in &*self.pins() {
            for pin in same {
                let Held::Own(laid) = &pin.mapping else { continue };
                if pin.keeps_its_copy() {
                    continue;
                }
                let writable = pin.range.writable;
                let due = laid.changed(&has_changed);
                all.extend(due.map(|(part, block)| Due { pointer, part, block, writable }));
            }
        }
        all
    }

    /// The parts of write pointers that lock whose blocks have changed.
    pub(super) fn write_locked_into(&self, has_changed: impl Fn(BlockId) -> bool) -> Vec<Due> {
        let mut all = Vec::new();
        for (&pointer, same) in &*self.pins() {
            for pin in same.iter().filter(|pin| pin.keeps_its_copy()) {
                let Held::Own(laid) = &pin.mapping else { continue };
                let due = laid.changed(&has_changed);
                all.extend(due.map(|(part, block)| Due { pointer, part, block, writable: true }));
            }
        }
        all
    }

    /// Does something to the mapping that a pointer has of its own, if it is still there.
    pub(super) fn with_laid<T>(
        &self,
        pointer: usize,
        act: impl FnOnce(&mut Laid) -> T,
    ) -> Option<T> {
        let mut pins = self.pins();
        let same = pins.get_mut(&pointer)?;
        let mut own = same.iter_mut().filter_map(|pin| match &mut pin.mapping {
            Held::Own(laid) => Some(laid),
            Held::Block { .. } | Held::Again => None,
        });
        own.next().map(act)
    }

    /// The same, of a pointer that was given once.
    pub(super) fn with_only_laid<T>(
        &self,
        pointer: usize,
        act: impl FnOnce(&mut Laid) -> T,
    ) -> Option<T> {
        match &mut self.pins().get_mut(&pointer)?[..] {
            [Pinned { mapping: Held::Own(laid), .. }] => Some(act(laid)),
            _ => None,
        }
    }

    pub(super) fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cold]
pub(super) fn not_mapped() -> Error {
    Error::unsupported("a session on the message path maps nothing")
}

/// Whether what a pointer is into is gone: nobody is to see what it stored.
const fn is_gone(status: Status) -> bool {
    matches!(status, Status::Address | Status::Lost)
}

/// Why a range is not mapped, or not yet.
#[derive(Debug)]
pub(super) enum Hindrance {
    Failed(Error),
    Met(BlockId, Obstacle),
}

impl From<Error> for Hindrance {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

//! Pointers into blocks: `map` and `unmap`.
//!
//! ```text
//!   one block, mapped whole      -> a pointer into the mapping that is there
//!   several blocks, or windows   -> a mapping of its own, contiguous, part by part
//! ```
//!
//! # Invariants
//!
//! 1. A range is recorded in the session object, inside an operation, before its pointer is
//!    returned; the record goes after the mapping.
//! 2. What a pointer points into stays mapped until it is unmapped or the session closes, whatever
//!    becomes of the block.
//! 3. A pointer that can write is given for memory that may be written, and for no other.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, MutexGuard, PoisonError};

use dmce_abi::block::BlockId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch, Map, Unmap};
use dmce_abi::{DmceAddr, Status};
use dmce_shm::session::pin::{PinId, PinnedRange};
use dmce_sys::map::{FileRange, MapError, Populate, Protection, Reservation};

use super::core::Core;
use super::data::Intent;
use crate::block::{Backing, Block, Obstacle};
use crate::error::Error;
use crate::options::Prot;
use crate::reach::mapped::HUGE_BYTES;
use crate::reach::ways::of_map;

/// A range that the application has a pointer to.
#[derive(Debug)]
pub(crate) struct Pinned {
    range: PinnedRange,
    record: PinId,
    mapping: Held,
    /// Whether the broker was told.
    announced: bool,
}

/// What keeps a pointer's memory mapped.
#[derive(Debug)]
enum Held {
    /// The block's own mapping.
    Block { _block: Arc<Block> },
    /// A mapping for this pointer alone.
    Own { _mapping: Reservation },
}

type Pins = BTreeMap<usize, Vec<Pinned>>;

/// Whether a pointer is into a range of addresses.
pub(crate) fn is_pinned(pins: &Pins, addr: u64, bytes: u64) -> bool {
    let ends = |start: u64, bytes: u64| start.saturating_add(bytes);
    pins.values().flatten().any(|pin| {
        pin.range.addr < ends(addr, bytes) && addr < ends(pin.range.addr, pin.range.bytes)
    })
}

impl Core {
    pub(crate) fn map_range(
        &self,
        addr: DmceAddr,
        bytes: usize,
        prot: Prot,
    ) -> Result<*mut u8, Error> {
        if bytes == 0 || prot == Prot::default() {
            return Err(Error::invalid(format!("{bytes} bytes with rights {}", prot.bits())));
        }
        let writable = prot.contains(Prot::WRITE);
        let intent = if writable { Intent::Write } else { Intent::Read };
        let range = PinnedRange { addr: addr.to_raw(), bytes: bytes as u64, writable };
        loop {
            self.check_range(addr, range.bytes, intent)?;
            let found = self.map_in_block(range);
            match found {
                Ok(Some(pointer)) => return Ok(pointer),
                Ok(None) => return self.map_own(range),
                Err(InBlock::Failed(error)) => return Err(error),
                Err(InBlock::Met(id, obstacle)) => self.overcome(id, obstacle)?,
            }
        }
    }

    pub(crate) fn unmap(&self, pointer: *const u8) -> Result<(), Error> {
        self.usable()?;
        let mut pins = self.pins();
        let unknown = || Error::new(Status::NotFound, format!("nothing is mapped at {pointer:p}"));
        let same = pins.get_mut(&pointer.addr()).ok_or_else(unknown)?;
        let pinned = same.pop().ok_or_else(unknown)?;
        let is_last = same.is_empty();
        if is_last {
            pins.remove(&pointer.addr());
        }
        let Pinned { record, mapping, announced, .. } = pinned;
        drop(mapping);
        self.map.free_pin(record);
        drop(pins);
        let unmap = Unmap { os_address: pointer.addr() as u64 };
        if is_last && announced && !self.link.try_tell(&ClientRequest::Unmap(unmap)) {
            self.chores().unmaps.push(unmap);
            self.link.wake();
        }
        Ok(())
    }

    /// Tells the broker again of every pointer: it may have forgotten.
    pub(super) fn announce_again(&self) {
        for pin in self.pins().values_mut().flatten() {
            pin.announced = false;
        }
    }

    /// Tells the broker of the pointers that it does not know. False if one could not be told.
    pub(super) fn announce_pins(&self) -> bool {
        let mut all = true;
        let mut pins = self.pins();
        for (&pointer, same) in pins.iter_mut() {
            let told = same.iter().any(|pin| pin.announced);
            if let Some(pin) = same.first_mut().filter(|_| !told) {
                let PinnedRange { addr, bytes, writable } = pin.range;
                let os_address = pointer as u64;
                let map = Map { addr, bytes, os_address, writable };
                pin.announced = self.link.try_tell(&ClientRequest::Map(map));
                all &= pin.announced;
            }
        }
        all
    }

    /// Takes every pointer back.
    pub(super) fn drop_pins(&self) {
        for pin in std::mem::take(&mut *self.pins()).into_values().flatten() {
            drop(pin.mapping);
            self.map.free_pin(pin.record);
        }
    }

    /// A pointer into the mapping of a block that is mapped whole. `None` if the range needs a
    /// mapping of its own.
    fn map_in_block(&self, range: PinnedRange) -> Result<Option<*mut u8>, InBlock> {
        let addr = DmceAddr::from_raw(self.layout, range.addr).map_err(Error::from)?;
        let (id, cell) = self.split(addr);
        let mut pins = self.pins();
        let inside = self.enter()?;
        let block = self.table.get(id, inside.operation());
        let block = block.ok_or_else(|| Error::address(format!("{:#x} is gone", range.addr)))?;
        let fits = range.bytes <= block.committed().saturating_sub(cell);
        let pointer = match &block.backing {
            _ if !fits => return Ok(None),
            Backing::Mapped(mapped) => mapped.pointer(cell),
            Backing::Windowed(_) => return Ok(None),
            Backing::Absent => return Err(InBlock::Met(block.id, Obstacle::Absent)),
            Backing::Lost => return Err(InBlock::Met(block.id, Obstacle::Lost)),
        };
        let same = |held: &Arc<Block>| std::ptr::eq(Arc::as_ptr(held), block);
        let Some(held) = self.table.find(block.id).filter(same) else {
            return Err(InBlock::Met(block.id, Obstacle::Replaced));
        };
        let record = self.record(range)?;
        drop(inside);
        let mapping = Held::Block { _block: held };
        self.enter_pin(&mut pins, pointer, Pinned { range, record, mapping, announced: false });
        Ok(Some(pointer))
    }

    /// A pointer to a mapping of its own.
    fn map_own(&self, range: PinnedRange) -> Result<*mut u8, Error> {
        let parts = self.open_parts(range)?;
        let mut pins = self.pins();
        // Inside an operation, so that who waits for the marks sees the record.
        let inside = self.enter()?;
        let record = self.record(range)?;
        drop(inside);
        let placed = match place(&parts, range) {
            Err(MapError::AddressSpace { .. }) if self.ways.shrink() => place(&parts, range),
            placed => placed,
        };
        match placed {
            Ok((mapping, pointer)) => {
                let mapping = Held::Own { _mapping: mapping };
                let pinned = Pinned { range, record, mapping, announced: false };
                self.enter_pin(&mut pins, pointer, pinned);
                Ok(pointer)
            }
            Err(error) => {
                self.map.free_pin(record);
                Err(of_map(&error))
            }
        }
    }

    fn enter_pin(&self, pins: &mut Pins, pointer: *mut u8, mut pinned: Pinned) {
        let PinnedRange { addr, bytes, writable } = pinned.range;
        let same = pins.entry(pointer.expose_provenance()).or_default();
        if same.is_empty() {
            let os_address = pointer.addr() as u64;
            let map = ClientRequest::Map(Map { addr, bytes, os_address, writable });
            pinned.announced = self.link.try_tell(&map);
            if !pinned.announced {
                self.link.wake();
            }
        }
        same.push(pinned);
    }

    fn record(&self, range: PinnedRange) -> Result<PinId, Error> {
        let full = |error: dmce_shm::session::pin::PinsExhausted| {
            Error::new(Status::NoMem, error.to_string())
        };
        self.map.take_pin(range).map_err(full)
    }

    /// The objects that a range lies in, with the range of each.
    fn open_parts(&self, range: PinnedRange) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < range.bytes {
            let addr = DmceAddr::from_raw(self.layout, range.addr + done)?;
            let (id, cell) = self.split(addr);
            let bytes = (self.layout.block_bytes() - cell).min(range.bytes - done);
            let id = u32::try_from(id).ok().and_then(|id| BlockId::try_from(id).ok());
            let id = id.ok_or_else(|| Error::address(format!("{:#x}", addr.to_raw())))?;
            parts.push(Part { fd: self.open_object(id, range.writable)?, cell, bytes });
            done += bytes;
        }
        Ok(parts)
    }

    /// A descriptor of a block's object.
    fn open_object(&self, id: BlockId, writable: bool) -> Result<OwnedFd, Error> {
        if let Some(block) = self.table.find(id)
            && let Backing::Windowed(windowed) = &block.backing
        {
            let copied = windowed.fd().try_clone_to_owned();
            return copied.map_err(|error| Error::new(Status::NoMem, error.to_string()));
        }
        let fetch = Fetch { block: id, writable };
        match self.ask(&ClientRequest::Fetch(fetch))? {
            (ClientReply::Fetched(info), _) if info.lost => {
                Err(Error::new(Status::Lost, format!("block {id} is lost")))
            }
            (ClientReply::Fetched(info), mut fds) if info.block == id => {
                fds.pop().ok_or_else(|| Error::unexpected_reply("Fetch"))
            }
            _ => Err(Error::unexpected_reply("Fetch")),
        }
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a range is not in a block's own mapping.
enum InBlock {
    Failed(Error),
    Met(BlockId, Obstacle),
}

impl From<Error> for InBlock {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A part of a range: an object, and what of it.
struct Part {
    fd: OwnedFd,
    cell: u64,
    bytes: u64,
}

/// Maps parts one behind the other; returns the pointer to the first byte.
fn place(parts: &[Part], range: PinnedRange) -> Result<(Reservation, *mut u8), MapError> {
    let protection = if range.writable { Protection::ReadWrite } else { Protection::Read };
    let first_cell = parts.first().map_or(0, |part| part.cell);
    // A large range lies as its objects do, so that the kernel can use huge pages.
    let align = if range.bytes >= 2 * HUGE_BYTES { HUGE_BYTES } else { PAGE_BYTES };
    let lead = first_cell % align;
    let reservation = Reservation::aligned(lead + range.bytes, align)?;
    let mut at = lead;
    for part in parts {
        let skip = part.cell % PAGE_BYTES;
        let object = FileRange { offset: part.cell - skip, bytes: part.bytes + skip };
        reservation.map_at(at - skip, part.fd.as_fd(), object, protection, Populate::No)?;
        at += part.bytes;
    }
    let offset = usize::try_from(lead).map_err(|_| MapError::AddressSpace { bytes: lead })?;
    let pointer = reservation.as_ptr().wrapping_add(offset);
    Ok((reservation, pointer))
}

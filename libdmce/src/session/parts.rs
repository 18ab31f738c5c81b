//! The objects beneath a pointer that has a mapping of its own, part by part.
//!
//! ```text
//!   parts opened --> laid one behind the other --> the copies of a block change:
//!                                                  the part is laid again, from the new primary
//! ```
//!
//! # Invariants
//!
//! 1. A part of a block with copies is its primary's object. The others stand in for it until the
//!    session has taken in that the primary is another. Beneath a write pointer that locks it stays
//!    the one that it was, whatever becomes of that.
//! 2. Parts are opened and laid again outside of operations, and without the lock of the pins but
//!    for the moment of the mapping.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_abi::block::{BlockId, DaemonId, Guid};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch};
use dmce_abi::{DmceAddr, Status};
use dmce_shm::session::pin::PinnedRange;
use dmce_sys::fault::{Other, StandIn};
use dmce_sys::map::{FileRange, MapError, MappedRange, Populate, Protection, Reservation};
use dmce_sys::object::{self, ObjectError};

use super::core::Core;
use super::mapping::{Hindrance, not_mapped};
use crate::block::{Backing, Obstacle, check_info};
use crate::error::Error;
use crate::reach::given::Given;
use crate::reach::mapped::HUGE_BYTES;

/// A part of a range: a block, its objects, and what of them.
pub(super) struct Part {
    pub block: BlockId,
    pub objects: Objects,
    cell: u64,
    bytes: u64,
}

/// The objects of a block.
pub(super) struct Objects {
    pub guid: Guid,
    pub epoch: u64,
    /// Whose object is mapped, of a block with copies.
    primary: Option<DaemonId>,
    fd: OwnedFd,
    others: Vec<OwnedFd>,
}

/// Parts that are mapped.
#[derive(Debug)]
pub(super) struct Laid {
    /// Before what they stand in for.
    parts: Vec<LaidPart>,
    mapping: Reservation,
}

#[derive(Debug)]
struct LaidPart {
    block: BlockId,
    guid: Guid,
    epoch: u64,
    primary: Option<DaemonId>,
    /// Where it is, and what of the object.
    at: u64,
    object: FileRange,
    /// How much of that, up to its end, is of the range.
    bytes: u64,
    /// Of a block with copies: those that are not mapped.
    others: Option<StandIn>,
    /// What the copies had that are good, when the one that is mapped was found to be no more.
    base: Option<Vec<u8>>,
    since: Arc<Since>,
    noted: Noted,
    /// Whether another object was laid while a sync brought what was stored to the one before.
    is_laid_again: bool,
}

/// What is known of the stores to a part of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Noted {
    /// Nothing: any page may have been stored to.
    Nothing,
    /// All that were not brought to all copies.
    All,
    /// Those since a sync began, which has not ended.
    Bringing,
}

/// What became of the copies of a part since it was laid. Looked at inside operations.
#[derive(Debug, Default)]
pub(super) struct Since {
    apart: AtomicBool,
    mixed: AtomicBool,
}

impl Since {
    /// Whether the copy that is laid was no good one at some time: the others have none of what was
    /// stored since.
    pub(super) fn is_apart(&self) -> bool {
        self.apart.load(Ordering::Acquire)
    }

    /// Whether the copies have changed before that: some may have been made of what was stored.
    pub(super) fn is_mixed(&self) -> bool {
        self.mixed.load(Ordering::Acquire)
    }
}

/// What a part of a range is mapped from.
#[derive(Clone, Debug)]
pub(super) struct Beneath {
    pub index: usize,
    /// Where in the range it is.
    pub offset: u64,
    pub bytes: u64,
    /// Of a block with copies: whose is mapped.
    pub primary: Option<DaemonId>,
    pub since: Arc<Since>,
}

/// A part of a pointer's mapping whose block may have another primary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    pub pointer: usize,
    pub part: usize,
    pub block: BlockId,
    pub writable: bool,
}

impl Core {
    /// The objects that a range lies in, with the range of each.
    pub(super) fn open_parts(&self, range: PinnedRange) -> Result<Vec<Part>, Hindrance> {
        let mut parts = Vec::new();
        let mut done = 0;
        while done < range.bytes {
            let addr = DmceAddr::from_raw(self.layout, range.addr + done).map_err(Error::from)?;
            let (id, cell) = self.split(addr);
            let bytes = (self.layout.block_bytes() - cell).min(range.bytes - done);
            let block = u32::try_from(id).ok().and_then(|id| BlockId::try_from(id).ok());
            let block = block.ok_or_else(|| Error::address(format!("{:#x}", addr.to_raw())))?;
            let objects = self.open_objects(block, range.writable)?;
            parts.push(Part { block, objects, cell, bytes });
            done += bytes;
        }
        Ok(parts)
    }

    /// [`Core::try_open_objects`] of a block that is fetched for it, if it is not here: from the
    /// beginning again would ask for each part of a range again.
    fn open_objects(&self, id: BlockId, writable: bool) -> Result<Objects, Hindrance> {
        loop {
            match self.try_open_objects(id, writable) {
                Err(Hindrance::Met(id, Obstacle::Absent)) => self.fetch(id)?,
                opened => return opened,
            }
        }
    }

    /// Descriptors of the objects of a block that the table has, and which block that is.
    fn try_open_objects(&self, id: BlockId, writable: bool) -> Result<Objects, Hindrance> {
        let block = self.table.find(id);
        let block = block.ok_or_else(|| Error::address(format!("block {id} is gone")))?;
        let Some(guid) = block.guid else {
            return Err(Hindrance::Met(id, Obstacle::Absent));
        };
        match &block.backing {
            Backing::Absent => return Err(Hindrance::Met(id, Obstacle::Absent)),
            Backing::Lost => return Err(Hindrance::Met(id, Obstacle::Lost)),
            Backing::Windowed(windowed) => {
                let fd = windowed.fd().try_clone_to_owned();
                let fd = fd.map_err(|error| Error::new(Status::NoMem, error.to_string()))?;
                let (epoch, primary, others) = (block.epoch, None, Vec::new());
                return Ok(Objects { guid, epoch, primary, fd, others });
            }
            Backing::Asked(_) => return Err(not_mapped().into()),
            Backing::Mapped(_) | Backing::Copied(_) => {}
        }
        let fetched = self.fetch_objects(id, guid, writable);
        if matches!(&fetched, Err(Hindrance::Met(_, Obstacle::Replaced))) {
            // The id is another block's by now: the one that was known is gone.
            self.retire(self.table.remove_same(&block));
            return Err(Error::address(format!("block {id} is gone")).into());
        }
        fetched
    }

    /// Descriptors of the objects of a block, as the broker has it now; [`Obstacle::Replaced`] if
    /// the id is another's.
    fn fetch_objects(&self, id: BlockId, guid: Guid, writable: bool) -> Result<Objects, Hindrance> {
        let fetch = Fetch { block: id, writable };
        match self.ask(&ClientRequest::Fetch(fetch))? {
            (ClientReply::Fetched(info), _) if info.block != id || info.guid != guid => {
                Err(Hindrance::Met(id, Obstacle::Replaced))
            }
            (ClientReply::Fetched(info), _) if info.lost => Err(Hindrance::Met(id, Obstacle::Lost)),
            (ClientReply::Fetched(info), fds) => {
                check_info(&info, self.layout, self.ready.block_ids)?;
                let mut others = Given::of(&info, fds)?.into_copies(&info)?;
                let primary = info.daemons().next().filter(|_| info.has_locks);
                let (fd, epoch) = (others.remove(0), info.epoch);
                Ok(Objects { guid, epoch, primary, fd, others })
            }
            _ => Err(Error::unexpected_reply("Fetch").into()),
        }
    }

    /// Keeps what the good copies have beneath write pointers that lock, where the copy that these
    /// store to is one of them no more: what differs from that later was stored by the pointer.
    /// Before any operation can write to the good ones alone.
    pub(super) fn keep_bases(&self, has_changed: impl Fn(BlockId) -> bool) {
        if self.pinned.load(Ordering::Relaxed) == 0 {
            return;
        }
        let due = self.write_locked_into(has_changed);
        if due.is_empty() {
            return;
        }
        // Those that are under way write to all of them.
        self.operations.wait();
        for Due { pointer, part, block, .. } in due {
            let guid = self.with_laid(pointer, |laid| laid.guid_if_together(part)).flatten();
            let Some(guid) = guid else { continue };
            // Not by way of the table, which only who has the right to change it can ask for more.
            let kept = self.fetch_objects(block, guid, false).and_then(|objects| {
                let read = self.with_laid(pointer, |laid| laid.keep_base(part, &objects));
                read.unwrap_or(Ok(()))
                    .map_err(|error| Error::new(Status::Io, error.to_string()).into())
            });
            if let Err(hindrance) = kept {
                tracing::warn!(%block, ?hindrance, "what is beneath a pointer is not known");
            }
        }
    }

    /// Lays pointers' parts again whose blocks have changed. What cannot be asked for now stays as
    /// it is.
    pub(super) fn redirect_pins(&self, has_changed: impl Fn(BlockId) -> bool) {
        if self.pinned.load(Ordering::Relaxed) + self.spread.load(Ordering::Relaxed) == 0 {
            return;
        }
        for due in self.pins_into(has_changed) {
            let Due { pointer, part, block, writable } = due;
            let laid = self.open_objects(block, writable).and_then(|objects| {
                let laid = self.with_laid(pointer, |laid| laid.lay(part, objects, writable));
                laid.unwrap_or(Ok(()))
                    .map_err(|error| Error::new(Status::NoMem, error.to_string()).into())
            });
            if let Err(hindrance) = laid {
                tracing::warn!(%block, ?hindrance, "a pointer stays with the copy that it had");
            }
        }
    }
}

impl Part {
    /// Where it begins in its block, and what of its object is mapped.
    const fn pages(&self) -> (u64, FileRange) {
        let skip = self.cell % PAGE_BYTES;
        (skip, FileRange { offset: self.cell - skip, bytes: self.bytes + skip })
    }
}

impl Laid {
    /// Maps parts one behind the other; returns the pointer to the first byte as well. What is
    /// reserved for them is taken, and has to be for a range that begins with a block.
    pub(super) fn place(
        parts: &[Part],
        range: PinnedRange,
        site: &mut Option<Reservation>,
    ) -> Result<(Reservation, *mut u8), MapError> {
        let (align, lead) = lead_of(parts, range);
        let mapping = match site.take() {
            Some(reserved) => reserved,
            None => Reservation::aligned(lead + range.bytes, align)?,
        };
        let mut at = lead;
        for part in parts {
            let (skip, object) = part.pages();
            let (fd, protection) = (part.objects.fd.as_fd(), protection(range.writable));
            mapping.map_at(at - skip, fd, object, protection, Populate::No)?;
            at += part.bytes;
        }
        let offset = usize::try_from(lead).map_err(|_| MapError::AddressSpace { bytes: lead })?;
        let pointer = mapping.as_ptr().wrapping_add(offset);
        Ok((mapping, pointer))
    }

    /// Parts that [`Laid::place`] has mapped.
    pub(super) fn new(parts: Vec<Part>, mapping: Reservation, range: PinnedRange) -> Self {
        let (_, mut at) = lead_of(&parts, range);
        let protection = protection(range.writable);
        let laid = parts.into_iter().map(|part| {
            let (skip, object) = part.pages();
            let start = at - skip;
            at += part.bytes;
            let Part {
                block, bytes, objects: Objects { guid, epoch, primary, others, .. }, ..
            } = part;
            let others = primary.and_then(|_| {
                // What was mapped there is in the mapping.
                let bytes = object.bytes.next_multiple_of(PAGE_BYTES);
                let range = mapping.range(start, bytes.min(mapping.len() as u64 - start)).ok()?;
                Some(StandIn::objects(range, protection, parts_of(others, object)))
            });
            LaidPart {
                block,
                guid,
                epoch,
                primary,
                at: start,
                object,
                bytes,
                others,
                base: None,
                since: Arc::default(),
                noted: Noted::Nothing,
                is_laid_again: false,
            }
        });
        Self { parts: laid.collect(), mapping }
    }

    /// Which block the first part is of.
    pub(super) fn first_guid(&self) -> Option<Guid> {
        self.parts.first().map(|part| part.guid)
    }

    /// What its parts are mapped from.
    pub(super) fn beneath(&self) -> Vec<Beneath> {
        let mut offset = 0;
        let parts = self.parts.iter().enumerate().map(|(index, part)| {
            let since = Arc::clone(&part.since);
            let LaidPart { bytes, primary, .. } = *part;
            let beneath = Beneath { index, offset, bytes, primary, since };
            offset += part.bytes;
            beneath
        });
        parts.collect()
    }

    /// Keeps what the primary has, if it is not the one that is mapped.
    fn keep_base(&mut self, index: usize, objects: &Objects) -> Result<(), ObjectError> {
        let is_it = |part: &&mut LaidPart| part.guid == objects.guid && !part.since.is_apart();
        let Some(part) = self.parts.get_mut(index).filter(is_it) else { return Ok(()) };
        if part.primary == objects.primary {
            part.since.mixed.store(true, Ordering::Release);
            return Ok(());
        }
        part.since.apart.store(true, Ordering::Release);
        let (mut base, bytes) = (Vec::new(), usize::try_from(part.object.bytes));
        if let Ok(bytes) = bytes
            && base.try_reserve_exact(bytes).is_ok()
        {
            base.resize(bytes, 0);
            object::read_at(objects.fd.as_fd(), &mut base, part.object.offset)?;
            part.base = Some(base);
        }
        Ok(())
    }

    /// The block of a part whose copy was a good one all the time.
    fn guid_if_together(&self, index: usize) -> Option<Guid> {
        self.parts.get(index).filter(|part| !part.since.is_apart()).map(|part| part.guid)
    }

    /// What is known of some bytes of a part, from its first one on, before a pointer stored there.
    pub(super) fn base(&self, index: usize, offset: u64, bytes: usize) -> Option<Vec<u8>> {
        let part = self.parts.get(index)?;
        let skip = part.object.bytes - part.bytes;
        let start = usize::try_from(skip + offset).ok()?;
        part.base.as_ref()?.get(start..start.checked_add(bytes)?).map(<[u8]>::to_vec)
    }

    /// Whether another copy's page has taken the place of one that is gone.
    pub(super) fn is_patched(&self, index: usize) -> bool {
        let others = self.parts.get(index).and_then(|part| part.others.as_ref());
        others.is_some_and(StandIn::was_used)
    }

    /// How many parts it has.
    pub(super) const fn parts_count(&self) -> usize {
        self.parts.len()
    }

    /// Where in the range a part is. Nothing, if there is no such part.
    pub(super) fn range_of(&self, index: usize) -> Range<u64> {
        let before = self.parts.iter().take(index).map(|part| part.bytes).sum();
        before..before + self.parts.get(index).map_or(0, |part| part.bytes)
    }

    /// The pages of a part that has copies.
    pub(super) fn tracked_range(&self, index: usize) -> Option<MappedRange<'_>> {
        let part = self.parts.get(index).filter(|part| part.others.is_some())?;
        self.mapping.range(part.at, part.object.bytes.next_multiple_of(PAGE_BYTES)).ok()
    }

    /// What is known of the stores to a part.
    pub(super) fn noted(&self, index: usize) -> Noted {
        self.parts.get(index).map_or(Noted::Nothing, |part| part.noted)
    }

    /// Says what is known from now on.
    pub(super) fn set_noted(&mut self, index: usize, noted: Noted) {
        if let Some(part) = self.parts.get_mut(index) {
            part.noted = noted;
        }
    }

    /// Whether another object was laid beneath a part since a sync has looked at it.
    pub(super) fn was_laid_again(&mut self, index: usize) -> bool {
        self.parts.get_mut(index).is_some_and(|part| std::mem::take(&mut part.is_laid_again))
    }

    /// What a sync has found in a part is on all copies, unless another object was laid there
    /// meanwhile.
    pub(super) fn note_brought(&mut self, index: usize) {
        if self.noted(index) == Noted::Bringing {
            self.set_noted(index, Noted::All);
        }
    }

    /// Bytes of address space that are its own.
    pub(super) const fn own_bytes(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether a page of it that is gone is found in another copy.
    pub(super) fn has_copies(&self) -> bool {
        self.parts.iter().any(|part| part.others.is_some())
    }

    /// The parts of blocks with copies that have changed.
    pub(super) fn changed(
        &self,
        has_changed: impl Fn(BlockId) -> bool,
    ) -> impl Iterator<Item = (usize, BlockId)> {
        let parts = self.parts.iter().enumerate();
        let with_copies = parts.filter(|(_, part)| part.primary.is_some());
        with_copies.map(|(index, part)| (index, part.block)).filter(move |(_, id)| has_changed(*id))
    }

    /// Lays a part again. One of another block by now is left as it is, and so is one that was laid
    /// by a later answer.
    fn lay(&mut self, index: usize, objects: Objects, writable: bool) -> Result<(), MapError> {
        let is_newer =
            |part: &&mut LaidPart| part.guid == objects.guid && part.epoch <= objects.epoch;
        let Some(part) = self.parts.get_mut(index).filter(is_newer) else { return Ok(()) };
        let Some(others) = &mut part.others else { return Ok(()) };
        let is_same = part.primary == objects.primary;
        others.renew(parts_of(objects.others, part.object), |was_used| {
            if is_same && !was_used {
                return Ok(());
            }
            let (fd, protection) = (objects.fd.as_fd(), protection(writable));
            // Nothing is noted of what is mapped anew.
            // What was stored to a stand-in is there.
            part.is_laid_again = part.noted == Noted::Bringing && !was_used;
            part.noted = Noted::Nothing;
            self.mapping.map_at(part.at, fd, part.object, protection, Populate::No).map(drop)
        })?;
        (part.epoch, part.primary) = (objects.epoch, objects.primary);
        Ok(())
    }
}

/// What of a block's copies can stand in for a part.
fn parts_of(copies: Vec<OwnedFd>, FileRange { offset, .. }: FileRange) -> Vec<Other> {
    copies.into_iter().map(|fd| Other { fd, offset }).collect()
}

/// The alignment of a range's mapping, and where in it the range begins. A large one lies as its
/// objects do, so that the kernel can use huge pages.
fn lead_of(parts: &[Part], range: PinnedRange) -> (u64, u64) {
    let first_cell = parts.first().map_or(0, |part| part.cell);
    let align = if range.bytes >= 2 * HUGE_BYTES { HUGE_BYTES } else { PAGE_BYTES };
    (align, first_cell % align)
}

const fn protection(writable: bool) -> Protection {
    if writable { Protection::ReadWrite } else { Protection::Read }
}

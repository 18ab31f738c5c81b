//! The regions that are open: their handles, and the blocks that these keep in the table.
//!
//! ```text
//!   opened:  answered -> known to the link -> the blocks in the table, a handle
//!   ended:   by its close, or otherwise: the region is being deleted, or a broker that came back
//!            does not have it -> left to the link -> its handle is told, the blocks go
//! ```
//!
//! # Invariants
//!
//! 1. The blocks of a region are in the table as long as it has a handle, to be written as long as
//!    one of them may write.
//! 2. A handle whose opening has ended answers `CLOSED`, also if the region was opened again since:
//!    what is told is told of one opening.
//! 3. An opening that ends before its handle is here ends the handle all the same.
//! 4. What the link leaves is looked at under the lock of the regions. No request is made under it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid};
use dmce_abi::wire::client::{Opened, OpeningId, RegionKey};

use super::core::{Core, busy};
use super::mapping::{is_pinned, is_pinned_to_write};
use crate::block::{Block, SpanIds};
use crate::error::Error;
use crate::table::Retired;

/// The regions that handles are open on, by their first block.
pub(crate) type OpenRegions = BTreeMap<BlockId, OpenRegion>;

/// A region that handles are open on.
#[derive(Debug)]
pub(crate) struct OpenRegion {
    guid: Guid,
    span: SpanIds,
    handles: BTreeMap<OpeningId, Handle>,
    /// Whether its blocks are in the table to be written.
    writable: bool,
}

/// What is known of a handle.
#[derive(Debug)]
struct Handle {
    writes: bool,
    /// Shared with the handle.
    is_over: Arc<AtomicBool>,
}

impl OpenRegion {
    fn is_last_writer(&self, opening: OpeningId) -> bool {
        let mut writers = self.handles.iter().filter(|(_, handle)| handle.writes);
        writers.next().is_some_and(|(first, _)| *first == opening) && writers.next().is_none()
    }
}

impl Core {
    /// Puts the blocks of a region into the table, to be fetched when they are used. Returns what
    /// tells the handle that it is over; it may be so already.
    ///
    /// # Errors
    ///
    /// [`Status::Unavailable`] if another call waits for the broker too long.
    pub(super) fn take_in(
        &self,
        opened: &Opened,
        opening: OpeningId,
        writable: bool,
    ) -> Result<Arc<AtomicBool>, Error> {
        let _turn = self.changing.take(self.deadline()).ok_or_else(busy)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let mut regions = self.regions();
        if self.link.ended_openings().remove(&opening) {
            is_over.store(true, Ordering::Release);
            return Ok(is_over);
        }
        let span = span_of(opened);
        let mut retired = self.take_namesake(&mut regions, span.first, opened.guid);
        let region = regions.entry(span.first).or_insert_with(|| OpenRegion {
            guid: opened.guid,
            span,
            handles: BTreeMap::new(),
            writable: false,
        });
        let is_first = region.handles.is_empty();
        let handle = Handle { writes: writable, is_over: Arc::clone(&is_over) };
        region.handles.insert(opening, handle);
        if !is_first && (region.writable || !writable) {
            return Ok(is_over);
        }
        region.writable = writable;
        let full = self.layout.block_bytes();
        for (place, id) in (0_u64..).zip(span.ids()) {
            // To the byte, though the last page is committed as a whole.
            let bytes = (opened.region_size - place * full).min(full);
            retired.extend(self.table.insert(Block::absent(id, span, bytes, writable)));
        }
        // Until here, so that whoever ends the opening finds the blocks.
        drop(regions);
        self.retire(retired);
        Ok(is_over)
    }

    /// Takes out a region whose first block is another region's by now.
    fn take_namesake(&self, regions: &mut OpenRegions, first: BlockId, guid: Guid) -> Retired {
        let mut retired = Retired::default();
        if regions.get(&first).is_some_and(|known| known.guid != guid)
            && let Some(gone) = regions.remove(&first)
        {
            for handle in gone.handles.values() {
                handle.is_over.store(true, Ordering::Release);
            }
            gone.span.ids().for_each(|id| retired.extend(self.table.remove(id)));
        }
        retired
    }

    /// Ends a handle whose opening the broker is still to be told to close.
    ///
    /// # Errors
    ///
    /// [`Status::Busy`] while a pointer is mapped into the `bytes` from `addr` on, and this is the
    /// region's last handle, or the last that may write and the pointer can; [`Status::Closed`] if
    /// the handle is over.
    pub(super) fn close_handle(
        &self,
        (first, opening): (BlockId, OpeningId),
        (addr, bytes): (u64, u64),
        is_over: &AtomicBool,
    ) -> Result<(), Error> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let mut regions = self.regions();
        let known = regions.get(&first).filter(|known| known.handles.contains_key(&opening));
        let is_last = known.is_some_and(|known| known.handles.len() == 1);
        if is_last && is_pinned(&pins, addr, bytes) {
            return Err(pointed_into());
        }
        // Without the right to write, what a pointer stored could not be brought to all copies.
        if known.is_some_and(|known| known.is_last_writer(opening))
            && is_pinned_to_write(&pins, addr, bytes)
        {
            return Err(pointed_into());
        }
        if is_over.swap(true, Ordering::SeqCst) {
            return Err(closed());
        }
        let retired = self.take_handle(&mut regions, first, opening);
        drop((pins, regions));
        self.retire(retired);
        Ok(())
    }

    /// Ends the handles whose openings have ended otherwise than by their close. Pointers into
    /// their regions stay, as always. Not from inside an operation.
    pub(super) fn end_handles(&self) {
        if self.link.ended_openings().is_empty() {
            return;
        }
        let mut retired = Retired::default();
        let mut regions = self.regions();
        {
            let mut ended = self.link.ended_openings();
            let handles = regions.iter().flat_map(|(first, region)| {
                region.handles.iter().map(|(opening, handle)| (*first, *opening, handle))
            });
            let mut over = Vec::new();
            // One whose handle is not here yet is left for `take_in`.
            for (first, opening, handle) in handles {
                if ended.remove(&opening) {
                    handle.is_over.store(true, Ordering::Release);
                    over.push((first, opening));
                }
            }
            drop(ended);
            for (first, opening) in over {
                tracing::debug!(block = %first, opening = opening.0, "a region is open no more");
                retired.extend(self.take_handle(&mut regions, first, opening));
            }
        }
        drop(regions);
        self.retire(retired);
    }

    /// Takes a handle away, and with the last one the blocks, or with the last that may write the
    /// right to.
    fn take_handle(
        &self,
        regions: &mut OpenRegions,
        first: BlockId,
        opening: OpeningId,
    ) -> Retired {
        let mut retired = Retired::default();
        let Some(region) = regions.get_mut(&first) else { return retired };
        if region.handles.remove(&opening).is_none() {
            return retired;
        }
        let span = region.span;
        if region.handles.is_empty() {
            regions.remove(&first);
            span.ids().for_each(|id| retired.extend(self.table.remove(id)));
        } else if region.writable && !region.handles.values().any(|handle| handle.writes) {
            region.writable = false;
            span.ids().for_each(|id| retired.extend(self.make_read_only(id)));
        }
        retired
    }

    /// Takes the right to write a block from the operations that begin from now on.
    fn make_read_only(&self, id: BlockId) -> Retired {
        while let Some(block) = self.table.find(id).filter(|block| block.writable) {
            // Who fetches it at the moment may come before.
            if let Some(retired) = self.table.replace(&block, block.read_only()) {
                return retired;
            }
        }
        Retired::default()
    }

    /// The right to write a region went with the handle that had it: the block that was to be
    /// fetched to be written is fetched to be read. False if it was to be so before.
    pub(super) fn fetch_to_read(&self, absent: &Arc<Block>) -> bool {
        if !absent.writable {
            return false;
        }
        if let Some(region) = self.regions().get_mut(&absent.span.first) {
            region.writable = false;
        }
        let read_only = absent.read_only();
        self.retire(self.table.replace(absent, read_only).unwrap_or_default());
        true
    }

    /// A region that this session has a pointer into is busy: its bytes must not go from beneath
    /// it.
    ///
    /// # Errors
    ///
    /// [`Status::Busy`].
    pub(super) fn check_region_unpinned(&self, region: RegionKey) -> Result<(), Error> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let regions = self.regions();
        let open = regions.get(&region.first).filter(|open| open.guid == region.guid);
        let Some(OpenRegion { span, .. }) = open else { return Ok(()) };
        let bytes = u64::from(span.count).saturating_mul(self.layout.block_bytes());
        if is_pinned(&pins, self.join(span.first, 0)?.to_raw(), bytes) {
            return Err(pointed_into());
        }
        Ok(())
    }

    fn regions(&self) -> MutexGuard<'_, OpenRegions> {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blocks of a region.
pub(super) const fn span_of(opened: &Opened) -> SpanIds {
    SpanIds { first: opened.first.block, count: opened.first.span_count }
}

impl Core {
    /// Whether a block is of a region that is open.
    pub(super) fn is_of_region(&self, id: BlockId) -> bool {
        let regions = self.regions();
        let last = regions.range(..=id).next_back();
        last.is_some_and(|(first, region)| id.get() - first.get() < region.span.count)
    }
}

#[cold]
pub(super) fn closed() -> Error {
    Error::new(Status::Closed, "the region is closed")
}

#[cold]
fn pointed_into() -> Error {
    Error::new(Status::Busy, "a pointer is mapped into the region")
}

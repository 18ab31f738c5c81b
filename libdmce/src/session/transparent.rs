//! Transparent memory: what is mapped as a whole, of blocks of several daemons, at consecutive OS
//! addresses (FIG. 3, 11); and where it is.
//!
//! ```text
//!   vmalloc:    address space -> blocks of its own -> laid one behind the other -> a pin
//!               -> page tables filled -> entered into the table -> the broker is told
//!   vfree:      allocation and pin go -> out of the table -> unmapped -> blocks given back
//!   region map: address space, at the base pointer if there is one -> as above, until unmapped
//! ```
//!
//! # Invariants
//!
//! 1. What is mapped as a whole begins with cell 0 of a block, at a multiple of 2 MiB and to the
//!    end of one in address space of its own; a region with a base pointer, there and with no
//!    address more than it has.
//! 2. An allocation of `vmalloc` has blocks that nothing else is in, and one pointer: both end
//!    together, and not while a pointer of `map` is into it.
//! 3. What is in the table is mapped: it is entered after, and taken out before.
//! 4. Whatever fails, address space, blocks and pin go back.

use std::fmt;
use std::mem;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::{DmceAddr, Status};
use dmce_shm::session::pin::PinnedRange;
use dmce_sys::clock::monotonic_ms;
use dmce_sys::map::{self, MapError, MappedRange, Reservation};

use super::core::Core;
use super::mapping::{Held, Hindrance, PinKind, Pinned, not_mapped};
use super::memory::Wish;
use crate::alloc::Found;
use crate::block::SpanIds;
use crate::error::Error;
use crate::options::AllocOptions;
use crate::places::{self, GRANULE_BYTES};
use crate::reach::ways::of_map;

/// Transparent memory of a session. Dropping it frees it.
pub struct VirtualMemory {
    core: Arc<Core>,
    pointer: usize,
    addr: DmceAddr,
    bytes: u64,
}

impl fmt::Debug for VirtualMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualMemory")
            .field("pointer", &self.as_ptr())
            .field("addr", &self.addr)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl VirtualMemory {
    /// Allocates it.
    pub(super) fn new(core: &Arc<Core>, bytes: u64, options: &AllocOptions) -> Result<Self, Error> {
        let (pointer, addr) = core.vmalloc(bytes, options)?;
        Ok(Self { core: Arc::clone(core), pointer, addr, bytes })
    }

    /// The first byte: zero, as all of it, until somebody stores there. It is shared memory, which
    /// calls on [`VirtualMemory::addr`] write too, of any thread.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.pointer)
    }

    /// Bytes, as asked for.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.bytes
    }

    /// Never: there is no memory of no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The address of the first byte, for every other call; `addr + i` is that of byte `i`.
    #[must_use]
    pub const fn addr(&self) -> DmceAddr {
        self.addr
    }

    /// Brings what was stored by the pointer to `bytes` bytes from an offset on to every copy.
    ///
    /// # Errors
    ///
    /// As [`crate::Session::sync`].
    pub fn sync(&self, offset: u64, bytes: u64) -> Result<(), Error> {
        let beyond = || Error::address(format!("{offset} is not in {} bytes", self.bytes));
        let offset = usize::try_from(offset).map_err(|_| beyond())?;
        let pointer = self.pointer.checked_add(offset).ok_or_else(beyond)?;
        self.core.sync(pointer, bytes)
    }

    /// The pointer, to be freed by [`crate::Session::vfree`], or with the session.
    #[must_use]
    pub fn into_raw(self) -> *mut u8 {
        let pointer = self.as_ptr();
        // SAFETY: the value is forgotten, so its part of the session is dropped here alone.
        drop(unsafe { ptr::read(&raw const self.core) });
        mem::forget(self);
        pointer
    }
}

impl Drop for VirtualMemory {
    fn drop(&mut self) {
        if self.core.is_forked() {
            // The session is the parent's: nothing is touched.
            mem::forget(Arc::clone(&self.core));
            return;
        }
        match self.core.vfree(self.pointer) {
            // It ended with the session.
            Err(error) if error.status() == Status::Closed => {}
            Err(error) => tracing::warn!(%error, "transparent memory was dropped and stays"),
            Ok(()) => {}
        }
    }
}

impl Core {
    /// Allocates blocks of their own and maps them at consecutive OS addresses.
    fn vmalloc(&self, bytes: u64, options: &AllocOptions) -> Result<(usize, DmceAddr), Error> {
        self.usable()?;
        let wish = Wish::new(self, bytes, options)?;
        self.check_span(bytes)?;
        self.check_maps()?;
        // First of all: it costs nobody anything.
        let mut site = Some(self.reserve(bytes)?);
        let addr = self.make_span(&wish)?;
        let range = PinnedRange { addr: addr.to_raw(), bytes, writable: true };
        let mapped = self.map_until(range, || self.map_own(range, PinKind::Transparent, &mut site));
        let pointer = match mapped {
            Ok(pointer) => pointer.addr(),
            Err(error) => {
                let freed = self.free_slowly(addr);
                debug_assert!(freed.is_ok() || self.is_closed(), "{freed:?}");
                return Err(error);
            }
        };
        self.take_into_use(pointer, range).inspect_err(|_| {
            let freed = self.vfree(pointer);
            debug_assert!(freed.is_ok() || self.is_closed(), "{freed:?}");
        })?;
        Ok((pointer, addr))
    }

    /// Frees what [`Core::vmalloc`] gave, with the pointer.
    pub(crate) fn vfree(&self, pointer: usize) -> Result<(), Error> {
        self.usable()?;
        let unknown = || Error::address(format!("no transparent memory begins at {pointer:#x}"));
        let (pin, gone) = {
            let mut pins = self.pins();
            let same = pins.get(&pointer).and_then(|same| same.first());
            let own = same.filter(|pin| pin.kind == PinKind::Transparent).ok_or_else(unknown)?;
            let addr = DmceAddr::from_raw(self.layout, own.range.addr)?;
            let place = self.place(addr)?;
            let bytes = self.allocator().find(place).ok_or_else(unknown)?.0.bytes();
            let mut others = pins.iter().filter(|(at, _)| **at != pointer).flat_map(|(_, p)| p);
            if others.any(|other| other.is_into(addr.to_raw(), bytes)) {
                let text = format!("a pointer is mapped into the memory at {pointer:#x}");
                return Err(Error::new(Status::Busy, text));
            }
            let freed = self.allocator().free(place, monotonic_ms());
            let Some(Found::Span(span)) = freed else { return Err(unknown()) };
            let gone = self.take_out(SpanIds { first: span.first, count: span.count });
            (pins.remove(&pointer).and_then(|mut same| same.pop()).ok_or_else(unknown)?, gone)
        };
        self.spread.fetch_sub(1, Ordering::Relaxed);
        self.leave_place(pointer, &pin);
        self.announce(pointer);
        drop(pin.mapping);
        self.map.free_pin(pin.record);
        self.service.expect_idle(&self.link);
        self.give_back(gone);
        Ok(())
    }

    /// Maps all of a region, at its base pointer if it has one; the same pointer once more if it is
    /// mapped already.
    pub(super) fn map_whole_region(
        &self,
        range: PinnedRange,
        base_pointer: u64,
    ) -> Result<*mut u8, Error> {
        self.check_maps()?;
        let (mut site, mut is_again) = (None, false);
        let pointer = self.map_until(range, || {
            if let Some(pointer) = self.map_again(range)? {
                is_again = true;
                return Ok(pointer);
            }
            if site.is_none() {
                let reserved = match base_pointer {
                    0 => self.reserve(range.bytes),
                    at => self.reserve_at(at, range.bytes),
                };
                site = Some(reserved?);
            }
            self.map_own(range, PinKind::Region, &mut site)
        })?;
        if is_again {
            return Ok(pointer);
        }
        self.take_into_use(pointer.addr(), range).inspect_err(|_| {
            let unmapped = self.unmap(pointer);
            debug_assert!(unmapped.is_ok() || self.is_closed(), "{unmapped:?}");
        })?;
        Ok(pointer)
    }

    /// The address of a byte of what is mapped as a whole.
    #[inline]
    pub(crate) fn addr_of(&self, pointer: usize) -> Result<DmceAddr, Error> {
        self.usable()?;
        let raw = match self.places.addr_of(pointer as u64) {
            Some(raw) => raw,
            None => self.addr_in_pins(pointer)?,
        };
        Ok(DmceAddr::from_raw(self.layout, raw)?)
    }

    /// Where a byte of what is mapped as a whole is.
    #[inline]
    pub(crate) fn ptr_of(&self, addr: DmceAddr) -> Result<*mut u8, Error> {
        self.usable()?;
        let os = match self.places.os_of(addr.to_raw()) {
            Some(os) => usize::try_from(os).ok(),
            None => self.os_in_pins(addr.to_raw()),
        };
        os.map(ptr::with_exposed_provenance_mut).ok_or_else(|| {
            Error::address(format!("{:#x} is not in transparent memory", addr.to_raw()))
        })
    }

    /// Brings what was stored by pointer to every copy.
    pub(crate) fn sync(&self, pointer: usize, bytes: u64) -> Result<(), Error> {
        self.usable()?;
        let beyond = || {
            Error::address(format!("{bytes} bytes at {pointer:#x} are not in transparent memory"))
        };
        let (start, range) = self.whole_before(pointer).ok_or_else(beyond)?;
        let offset = (pointer - start) as u64;
        if range.bytes.checked_sub(offset).is_none_or(|rest| bytes > rest) {
            return Err(beyond());
        }
        if bytes == 0 {
            return Ok(());
        }
        self.bring_stored((start, range), offset..offset + bytes)
    }

    /// Takes a range that was mapped out of the table, before it is unmapped.
    pub(super) fn leave_place(&self, pointer: usize, pin: &Pinned) {
        if pin.kind.is_whole()
            && let Held::Own(laid) = &pin.mapping
        {
            self.places.leave(place_of(pointer, pin.range, laid.own_bytes()));
        }
    }

    /// Address space for a mapping that shares no huge page with another.
    fn reserve(&self, bytes: u64) -> Result<Reservation, Error> {
        let whole = bytes.checked_next_multiple_of(GRANULE_BYTES);
        let whole = whole.ok_or_else(|| of_map(&MapError::AddressSpace { bytes }))?;
        self.making_space(|| Reservation::aligned(whole, GRANULE_BYTES))
    }

    /// Address space where a region is to be.
    fn reserve_at(&self, base_pointer: u64, bytes: u64) -> Result<Reservation, Error> {
        self.making_space(|| Reservation::at(base_pointer, bytes)).map_err(|error| {
            let text = format!("{bytes} bytes at {base_pointer:#x} are not free in this process");
            Error::new(error.status(), text)
        })
    }

    /// Reserves, and once more after windows were given up, if there are any.
    fn making_space(
        &self,
        reserve: impl Fn() -> Result<Reservation, MapError>,
    ) -> Result<Reservation, Error> {
        let reserved = match reserve() {
            Err(MapError::AddressSpace { .. }) if self.ways.shrink() => reserve(),
            reserved => reserved,
        };
        reserved.map_err(|error| of_map(&error))
    }

    /// The pointer to a region that is mapped already, pinned once more.
    fn map_again(&self, range: PinnedRange) -> Result<Option<*mut u8>, Hindrance> {
        let of_region = |pin: &Pinned| pin.kind == PinKind::Region && pin.range.addr == range.addr;
        if !self.pins().values().flatten().any(of_region) {
            return Ok(None);
        }
        // A pointer outlives its region, whose addresses may be another's by now.
        let first = PinnedRange { bytes: 1, ..range };
        let guid = self.open_parts(first)?.first().map(|part| part.objects.guid);
        let mut pins = self.pins();
        let is_it = |pin: &Pinned| match &pin.mapping {
            Held::Own(laid) => of_region(pin) && laid.first_guid() == guid,
            _ => false,
        };
        let found = pins.iter_mut().find(|(_, same)| same.iter().any(is_it));
        let Some((&pointer, same)) = found else { return Ok(None) };
        if same.iter().any(|pin| pin.range != range) {
            let text = format!("the region is mapped at {pointer:#x} with other rights");
            return Err(Error::new(Status::Busy, text).into());
        }
        let record = self.record(range)?;
        let (kind, mapping) = (PinKind::Region, Held::Again);
        same.push(Pinned { kind, range, record, mapping });
        self.count_of(kind).fetch_add(1, Ordering::Relaxed);
        Ok(Some(ptr::with_exposed_provenance_mut(pointer)))
    }

    /// Fills the page table of a range that was mapped, enters it, and tells the broker.
    fn take_into_use(&self, pointer: usize, range: PinnedRange) -> Result<(), Error> {
        let kept = self.with_laid(pointer, |laid| (laid.own_bytes(), laid.has_copies()));
        let Some((own_bytes, has_copies)) = kept else {
            // Only a close takes it from who does not know it yet.
            return Err(Error::closed());
        };
        match populate(pointer, range) {
            Ok(()) => {}
            // Another copy takes the place of what is gone, when it is touched.
            Err(MapError::Lost) if has_copies => {}
            Err(MapError::Lost) => return Err(of_map(&MapError::Lost)),
            Err(error) => {
                let text = format!("{} bytes could not be mapped: {error}", range.bytes);
                return Err(Error::new(Status::NoMem, text));
            }
        }
        if range.writable {
            self.track(pointer);
        }
        self.places.enter(place_of(pointer, range, own_bytes));
        self.announce(pointer);
        Ok(())
    }

    #[cold]
    fn addr_in_pins(&self, pointer: usize) -> Result<u64, Error> {
        let found = self.whole_before(pointer).and_then(|(start, range)| {
            let offset = (pointer - start) as u64;
            (offset < range.bytes).then(|| range.addr + offset)
        });
        found.ok_or_else(|| Error::address(format!("{pointer:#x} is not in transparent memory")))
    }

    #[cold]
    fn os_in_pins(&self, addr: u64) -> Option<usize> {
        let pins = self.pins();
        let mut whole = pins.iter().filter_map(|(start, same)| Some((*start, same.first()?)));
        whole.find_map(|(start, pin)| {
            let offset = addr.checked_sub(pin.range.addr)?;
            let is_there = pin.kind.is_whole() && offset < pin.range.bytes;
            usize::try_from(offset).ok().filter(|_| is_there).map(|offset| start + offset)
        })
    }

    /// What is mapped as a whole and begins at an address or is the first before it, if no other
    /// pointer is between.
    fn whole_before(&self, pointer: usize) -> Option<(usize, PinnedRange)> {
        let pins = self.pins();
        let (&start, same) = pins.range(..=pointer).next_back()?;
        let pin = same.first().filter(|pin| pin.kind.is_whole())?;
        Some((start, pin.range))
    }

    /// Checks that this session maps memory at all.
    fn check_maps(&self) -> Result<(), Error> {
        if self.ways.route().is_some() { Err(not_mapped()) } else { Ok(()) }
    }
}

/// What the table is told of a range.
const fn place_of(pointer: usize, range: PinnedRange, own_bytes: u64) -> places::Range {
    let PinnedRange { addr, bytes, .. } = range;
    places::Range { os: pointer as u64, addr, bytes, own_bytes }
}

/// Fills the page table: what was granted is there, so no page is made.
fn populate(pointer: usize, range: PinnedRange) -> Result<(), MapError> {
    let bytes = range.bytes.next_multiple_of(PAGE_BYTES);
    let bytes = usize::try_from(bytes).map_err(|_| MapError::AddressSpace { bytes })?;
    // SAFETY: a pin keeps it mapped, whose pointer nobody else knows yet.
    let mapped = unsafe { MappedRange::new(ptr::with_exposed_provenance_mut(pointer), bytes) };
    if range.writable { map::populate_write(mapped) } else { map::populate_read(mapped) }
}

//! Allocation: what the allocator decides, the broker grants, and the table learns.
//!
//! # Invariants
//!
//! 1. The allocator's lock is not held over a message; one thread at a time asks for more memory.
//! 2. An allocation that the application has pinned is neither freed nor moved: pins and
//!    allocations are looked at under the lock of the pins, but for small ones while there are no
//!    pins ([`super::objects`]). What is given back to the broker leaves the table under that lock.
//! 3. What the broker grants is in the table before it is in the allocator, and out of the
//!    allocator before it is out of the table.
//! 4. Nothing is refused for want of room while this session holds empty blocks: they go back
//!    first, and it is asked for once more.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use dmce_abi::block::{BlockId, Guid, is_page_size};
use dmce_abi::limits::{COPIES_MAX, PAGE_BYTES};
use dmce_abi::wire::client::{
    BlockInfo, ClientReply, ClientRequest, Delete, Granted, Grow, Malloc, MallocKind, MallocWith,
};
use dmce_abi::{DmceAddr, Status};
use dmce_sys::clock::monotonic_ms;

use super::core::{Core, busy};
use super::patience::{Patience, Terms};
use super::service::can_be_later;
use crate::alloc::{Found, Grown, Growth, Kind, Place, Shape, SpanAllocation, Taken, Usage};
use crate::block::{Backing, Block, SpanIds, check_info};
use crate::error::Error;
use crate::options::AllocOptions;
use crate::reach::given::Given;
use crate::reach::ways::Unreached;
use crate::table::Retired;

/// Blocks of a span that are fetched when it is granted or opened; the others at their first use.
const BLOCKS_FETCHED_AHEAD: usize = 16;

/// The alignment of what does not say.
const ALIGN: u64 = 16;

/// Memory that was allocated.
struct Made {
    addr: DmceAddr,
    zeroed: bool,
}

/// What is wanted, checked.
pub(super) struct Wish {
    pub bytes: u64,
    kind: Kind,
    align: u64,
    patience: Option<Patience>,
}

impl Wish {
    pub(super) fn new(core: &Core, bytes: u64, options: &AllocOptions) -> Result<Self, Error> {
        let AllocOptions { copies, page_size, align, .. } = *options;
        if bytes == 0 {
            return Err(Error::invalid("an allocation of no bytes"));
        }
        if options.numa_node != 0 {
            return Err(Error::unsupported("nodes are not in this release"));
        }
        if align != 0 && (!align.is_power_of_two() || align > AllocOptions::ALIGN_MAX) {
            let max = AllocOptions::ALIGN_MAX;
            let text = format!("alignment {align} is no power of two up to {max}");
            return Err(Error::invalid(text));
        }
        if page_size != 0 && !is_page_size(page_size) {
            return Err(Error::invalid(format!("no block has pages of {page_size} bytes")));
        }
        if copies > COPIES_MAX {
            return Err(Error::invalid(format!("{copies} copies, limit {COPIES_MAX}")));
        }
        let Terms { kind, align, patience } = core.terms(bytes, options)?;
        let natural = if bytes >= PAGE_BYTES { PAGE_BYTES } else { ALIGN };
        Ok(Self { bytes, kind, align: natural.max(align.into()), patience })
    }
}

impl Core {
    /// Allocates where [`crate::alloc::quick`] did not.
    #[cold]
    pub(crate) fn malloc(&self, bytes: u64) -> Result<DmceAddr, Error> {
        match self.take_inside(bytes) {
            Some(taken) => Ok(self.made(taken)?.addr),
            None => self.malloc_with(bytes, &AllocOptions::default()),
        }
    }

    /// Allocates as the options say.
    #[cold]
    pub(crate) fn malloc_with(
        &self,
        bytes: u64,
        options: &AllocOptions,
    ) -> Result<DmceAddr, Error> {
        self.usable()?;
        Ok(self.make(&Wish::new(self, bytes, options)?)?.addr)
    }

    pub(crate) fn calloc(&self, count: u64, bytes: u64) -> Result<DmceAddr, Error> {
        self.usable()?;
        let all = count.checked_mul(bytes);
        let all = all.ok_or_else(|| impossible(&format!("{count} times {bytes} bytes")))?;
        let made = match self.take_inside(all) {
            Some(taken) => self.made(taken)?,
            None => self.make(&Wish::new(self, all, &AllocOptions::default())?)?,
        };
        if !made.zeroed
            && let Err(error) = self.fill(made.addr, 0, all)
        {
            let _ = self.free_slowly(made.addr);
            return Err(error);
        }
        Ok(made.addr)
    }

    pub(crate) fn realloc(&self, old: DmceAddr, bytes: u64) -> Result<DmceAddr, Error> {
        self.usable()?;
        let (place, wish) = (self.place(old)?, Wish::new(self, bytes, &AllocOptions::default())?);
        let (kind, held) = {
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            let (found, kind) = self.allocator().find(place).ok_or_else(|| not_allocated(old))?;
            check_unpinned(&pins, old, found.bytes())?;
            if self.allocator().resize(place, bytes).is_some() {
                self.service.expect_idle(&self.link);
                return Ok(old);
            }
            (kind, found.bytes())
        };
        let made = self.make(&Wish { kind, ..wish })?;
        let moved = self.copy_to_new(made.addr, old, held.min(bytes));
        let moved = moved.and_then(|()| self.free_slowly(old));
        if let Err(error) = moved {
            let _ = self.free_slowly(made.addr);
            return Err(error);
        }
        Ok(made.addr)
    }

    /// Frees whatever begins at an address, with all that may be in the way.
    #[cold]
    pub(super) fn free_slowly(&self, addr: DmceAddr) -> Result<(), Error> {
        self.usable()?;
        let place = self.place(addr)?;
        if let Some(freed) = self.free_object(addr, false) {
            return freed;
        }
        let gone = {
            let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
            let found = self.allocator().find(place).ok_or_else(|| not_allocated(addr))?.0;
            check_unpinned(&pins, addr, found.bytes())?;
            if let Some(freed) = self.free_object(addr, true) {
                return freed;
            }
            match self.allocator().free(place, monotonic_ms()) {
                Some(Found::Span(span)) => {
                    Some(self.take_out(SpanIds { first: span.first, count: span.count }))
                }
                Some(_) => None,
                None => return Err(not_allocated(addr)),
            }
        };
        self.service.expect_idle(&self.link);
        if let Some(gone) = gone {
            self.give_back(gone);
        }
        Ok(())
    }

    pub(crate) fn usable_size(&self, addr: DmceAddr) -> Result<u64, Error> {
        self.usable()?;
        let found = self.allocator().find(self.place(addr)?);
        found.map(|(found, _)| found.bytes()).ok_or_else(|| not_allocated(addr))
    }

    /// Takes the blocks of a span out of the table.
    pub(super) fn take_out(&self, span: SpanIds) -> TakenOut {
        let guid = self.table.find(span.first).and_then(|block| block.guid);
        let mut retired = Retired::default();
        span.ids().for_each(|id| retired.extend(self.table.remove(id)));
        TakenOut { first: span.first, guid, retired }
    }

    /// Gives blocks to the broker that were taken out; later, if it is away.
    pub(super) fn give_back(&self, gone: TakenOut) {
        let TakenOut { first, guid, retired } = gone;
        self.retire(retired);
        let Ok(addr) = self.join(first, 0) else { return };
        if let Some(guid) = guid {
            let delete = Delete { addr: addr.to_raw(), guid };
            self.delete(delete);
        }
    }

    /// Gives blocks to the broker that the table does not hold; later, if it is away.
    pub(crate) fn delete(&self, delete: Delete) {
        if self.link.is_attached() {
            match self.ask(&ClientRequest::Delete(delete)) {
                Err(error) if can_be_later(error.status()) => {}
                Err(error) => {
                    let addr = delete.addr;
                    tracing::debug!(error = %error, addr, "the broker has no such block");
                    return;
                }
                Ok(_) => return,
            }
        }
        self.chores().deletes.push(delete);
        self.link.wake();
    }

    fn make(&self, wish: &Wish) -> Result<Made, Error> {
        let block_bytes = self.block_bytes_of(wish.kind);
        match Shape::within(wish.bytes, wish.align, block_bytes) {
            Some(shape) => self
                .allocate_waiting(wish, shape)
                .and_then(|taken| self.made(taken))
                .map_err(|error| self.refused(wish, error)),
            // A block begins at a multiple of every alignment, and fresh ones are zero.
            None => self.make_span(wish).map(|addr| Made { addr, zeroed: true }),
        }
    }

    /// Allocates blocks of their own.
    pub(super) fn make_span(&self, wish: &Wish) -> Result<DmceAddr, Error> {
        self.allocate_span(wish).map_err(|error| self.refused(wish, error))
    }

    /// What a caller is told whose wish was not granted.
    fn refused(&self, wish: &Wish, error: Error) -> Error {
        match error.status() {
            Status::NoSpace | Status::Quota => {
                self.events.note_refused();
                error
            }
            Status::Timeout => in_vain(wish.bytes, &error),
            _ => error,
        }
    }

    /// Checks that an instance may have so many bytes in one span.
    ///
    /// # Errors
    ///
    /// [`Status::NoSpace`].
    pub(super) fn check_span(&self, bytes: u64) -> Result<u64, Error> {
        let bytes = bytes.checked_next_multiple_of(PAGE_BYTES);
        let bytes = bytes.ok_or_else(|| impossible("so many bytes"))?;
        if bytes.div_ceil(self.layout.block_bytes()) >= self.ready.block_ids.into() {
            return Err(impossible(&format!("{bytes} bytes")));
        }
        Ok(bytes)
    }

    /// Allocates from the blocks there are; if there is no room for more, waits for a block as long
    /// as is wished. That is done without the right to ask for more, so that others may.
    fn allocate_waiting(&self, wish: &Wish, shape: Shape) -> Result<Taken, Error> {
        let allocate = || self.allocate(wish.kind, shape);
        let Some(patience) = wish.patience else { return allocate() };
        loop {
            match self.insist(patience, allocate) {
                Err(short) if is_short(short.status()) => {
                    let at_least = self.fresh_bytes(wish.kind, shape)?;
                    self.add_block(wish.kind, (at_least, at_least), Some(patience))
                        .map_err(|error| of_wait(error, &short))?;
                }
                allocated => return allocated,
            }
        }
    }

    /// Bytes that a fresh block needs for a shape.
    fn fresh_bytes(&self, kind: Kind, shape: Shape) -> Result<u64, Error> {
        let mut full = Vec::new();
        loop {
            match self.allocator().growth(kind, shape, &full).ok_or_else(too_many_kinds)? {
                Growth::Block { block, .. } => full.push(block),
                Growth::Fresh { at_least, .. } => return Ok(at_least),
            }
        }
    }

    fn made(&self, taken: Taken) -> Result<Made, Error> {
        let addr = DmceAddr::from_raw(self.layout, taken.addr);
        let addr = addr.map_err(|error| Error::new(Status::Internal, error.to_string()))?;
        Ok(Made { addr, zeroed: taken.zeroed })
    }

    fn allocate(&self, kind: Kind, shape: Shape) -> Result<Taken, Error> {
        if let Some(made) = self.try_allocate(kind, shape)? {
            return Ok(made);
        }
        let _turn = self.growing.take(self.deadline()).ok_or_else(busy)?;
        let (mut full, mut has_made_room) = (Vec::new(), false);
        loop {
            if let Some(made) = self.try_allocate(kind, shape)? {
                return Ok(made);
            }
            let growth = self.allocator().growth(kind, shape, &full);
            let growth = growth.ok_or_else(too_many_kinds)?;
            let grown = match growth {
                Growth::Fresh { at_least, wanted } => {
                    let wanted = wanted.min(self.block_bytes_of(kind)).max(at_least);
                    self.add_block(kind, (at_least, wanted), None)
                }
                Growth::Block { block, at_least, wanted } => {
                    match self.grow(kind, block, at_least, wanted) {
                        Err(error) if can_go_elsewhere(error.status()) => {
                            full.push(block);
                            Ok(())
                        }
                        grown => grown,
                    }
                }
            };
            match grown {
                Err(error) if is_short(error.status()) && !has_made_room => {
                    self.allocator().reclaim(monotonic_ms());
                    has_made_room = true;
                    if let Some(made) = self.try_allocate(kind, shape)? {
                        return Ok(made);
                    }
                    // Others may grow again where there is room now; those that are gone cannot.
                    if self.give_back_empty() {
                        full.clear();
                    }
                }
                grown => grown?,
            }
        }
    }

    /// Has a block grow by what is wanted, else by what is needed.
    fn grow(&self, kind: Kind, block: BlockId, at_least: u64, wanted: u64) -> Result<(), Error> {
        let ask = |committed| match self.ask(&ClientRequest::Grow(Grow { block, committed }))? {
            (ClientReply::Grown { committed: now }, _) if now >= committed => Ok(now),
            _ => Err(Error::unexpected_reply("Grow")),
        };
        let committed = first_or_second(wanted, at_least, ask)?;
        let _turn = self.changing.take(self.deadline()).ok_or_else(busy)?;
        let Some(entry) = self.table.find(block) else {
            return Err(Error::address(format!("block {block} is gone")));
        };
        entry.grow(committed);
        let (committed, bytes_max) = (entry.committed(), entry.bytes_max);
        let grown = Grown { block, committed, bytes_max };
        self.allocator().commit(kind, grown, monotonic_ms());
        Ok(())
    }

    /// Adds a block to the heap of a kind.
    fn add_block(
        &self,
        kind: Kind,
        (at_least, wanted): (u64, u64),
        patience: Option<Patience>,
    ) -> Result<(), Error> {
        let ask = |committed| {
            let granted = self.ask_for(MallocKind::Heap { committed }, kind, patience)?;
            if granted.0.first.committed < at_least {
                return Err(Error::unexpected_reply("Malloc"));
            }
            Ok(granted)
        };
        let (granted, given, asked_at) = first_or_second(wanted, at_least, ask)?;
        self.admit(&granted, given, asked_at)?;
        let BlockInfo { block, committed, bytes_max, .. } = granted.first;
        let fresh = Grown { block, committed, bytes_max };
        self.allocator().commit(kind, fresh, monotonic_ms());
        Ok(())
    }

    fn allocate_span(&self, wish: &Wish) -> Result<DmceAddr, Error> {
        let bytes = self.check_span(wish.bytes)?;
        let (granted, given, asked_at) = self.ask_for_span(bytes, wish)?;
        let info = granted.first;
        let whole = u64::from(info.span_count - 1).checked_mul(self.layout.block_bytes());
        let usable = whole.and_then(|whole| whole.checked_add(granted.last_committed));
        let Some(usable) = usable.filter(|&usable| usable >= bytes) else {
            return Err(Error::unexpected_reply("Malloc"));
        };
        self.admit(&granted, given, asked_at)?;
        self.allocator().add_span(SpanAllocation {
            first: info.block,
            count: info.span_count,
            bytes: usable,
            kind: wish.kind,
        });
        self.service.expect_idle(&self.link);
        self.fetch_ahead(SpanIds { first: info.block, count: info.span_count });
        self.join(info.block, 0)
    }

    /// Asks for a span; if there is no room for it, as long as is wished.
    fn ask_for_span(&self, bytes: u64, wish: &Wish) -> Result<Grant, Error> {
        let ask = |patience| self.ask_for(MallocKind::Span { bytes }, wish.kind, patience);
        let at_once = || self.ask_making_room(|| ask(None));
        let Some(patience) = wish.patience else { return at_once() };
        match self.insist(patience, at_once) {
            Err(short) if is_short(short.status()) => {
                ask(Some(patience)).map_err(|error| of_wait(error, &short))
            }
            asked => asked,
        }
    }

    /// Asks for memory, and once more if there is no room before what is empty here goes back. Not
    /// by who is growing a heap.
    pub(super) fn ask_making_room<T>(
        &self,
        ask: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        match ask() {
            Err(error) if is_short(error.status()) => {
                let Some(_turn) = self.growing.take(self.deadline()) else { return Err(error) };
                self.allocator().reclaim(monotonic_ms());
                if self.give_back_empty() { ask() } else { Err(error) }
            }
            asked => asked,
        }
    }

    /// Fetches the first blocks of a span before they are used, so that work in them needs no
    /// broker any more. What fails here is told by the access that needs it.
    pub(super) fn fetch_ahead(&self, span: SpanIds) {
        if self.ways.route().is_some() {
            // Work by message needs somebody to ask anyway.
            return;
        }
        for id in span.ids().take(BLOCKS_FETCHED_AHEAD) {
            if self.fetch(id).is_err() {
                return;
            }
        }
    }

    /// Asks the broker for blocks.
    fn ask_for(
        &self,
        kind: MallocKind,
        Kind { page_size, copies, policy }: Kind,
        patience: Option<Patience>,
    ) -> Result<Grant, Error> {
        let malloc = Malloc { ticket: self.ticket(), kind, page_size, copies };
        let with = MallocWith { malloc, policy, wait_ms: None };
        let asked_at = self.map.known();
        let (reply, fds) = match (patience, policy) {
            (Some(patience), _) => self.ask_patiently(with, patience)?,
            (None, 0) => self.ask(&ClientRequest::Malloc(malloc))?,
            (None, _) => self.ask(&ClientRequest::MallocWith(with))?,
        };
        match reply {
            ClientReply::Granted(granted) if !granted.first.lost => {
                check_info(&granted.first, self.layout, self.ready.block_ids)?;
                let is_first = granted.first.block == granted.first.span_first;
                let fits = granted.last_committed <= self.layout.block_bytes();
                if is_first && fits {
                    return Ok((granted, Given::of(&granted.first, fds)?, asked_at));
                }
                Err(Error::unexpected_reply("Malloc"))
            }
            _ => Err(Error::unexpected_reply("Malloc")),
        }
    }

    /// Puts granted blocks into the table; gives them back if this process cannot reach them.
    fn admit(&self, granted: &Granted, given: Given, asked_at: AskedAt) -> Result<(), Error> {
        let info = granted.first;
        let span = SpanIds { first: info.span_first, count: info.span_count };
        self.limit_descriptors();
        let addr = self.join(info.block, 0)?.to_raw();
        let turn = self.changing.take(self.deadline());
        let is_current = turn.is_some() && self.is_as_of(asked_at);
        let backing = match self.ways.admit(&info, given, addr) {
            // What was granted may have changed since: its first use asks again.
            Ok(_) if !is_current => Backing::Absent,
            Ok(backing) => backing,
            // Its first use has that seen to.
            Err(Unreached::Harmed(_)) => Backing::Absent,
            Err(Unreached::Failed(error)) => {
                self.delete(Delete { addr, guid: info.guid });
                return Err(error);
            }
        };
        let mut retired = self.table.insert(Block::of_info(&info, backing));
        self.note_holder(info.block);
        let last = span.count.saturating_sub(1);
        for (place, id) in (0..).zip(span.ids()).skip(1) {
            let full = self.layout.block_bytes();
            let bytes = if place == last { granted.last_committed } else { full };
            retired.extend(self.table.insert(Block::absent(id, span, bytes, true)));
        }
        self.retire(retired);
        Ok(())
    }

    /// The place of an address, wherever it is.
    pub(super) fn place(&self, addr: DmceAddr) -> Result<Place, Error> {
        let (id, cell) = self.split(addr);
        let block = u32::try_from(id).ok().and_then(|id| BlockId::try_from(id).ok());
        block.map(|block| Place { block, cell }).ok_or_else(|| not_allocated(addr))
    }

    /// What is allocated; shows it to the administrator as well.
    pub(crate) fn publish_usage(&self) -> Usage {
        let now = self.allocator().usage();
        let usage = self.map.usage();
        usage.bytes_in_use.store(now.in_use, Ordering::Relaxed);
        usage.bytes_free.store(now.committed.saturating_sub(now.in_use), Ordering::Relaxed);
        usage.allocations.store(now.live, Ordering::Relaxed);
        now
    }
}

/// Blocks that are no longer in the table, and are the broker's to take.
pub(super) struct TakenOut {
    first: BlockId,
    guid: Option<Guid>,
    retired: Retired,
}

type Grant = (Granted, Given, AskedAt);

/// The known generation when it was asked for.
type AskedAt = u64;

/// Asks for what is wanted, and if there is no room for that, for what is needed.
fn first_or_second<T>(
    wanted: u64,
    at_least: u64,
    ask: impl Fn(u64) -> Result<T, Error>,
) -> Result<T, Error> {
    match ask(wanted) {
        Err(error) if wanted > at_least && is_short(error.status()) => ask(at_least),
        asked => asked,
    }
}

/// Why a wait for room ended: if its time was over, for what it was refused before.
fn of_wait(error: Error, short: &Error) -> Error {
    match error.status() {
        Status::Timeout => Error::new(Status::Timeout, short.to_string()),
        _ => error,
    }
}

fn in_vain(bytes: u64, reason: &Error) -> Error {
    let text = format!("{bytes} bytes could not be had in time: {}", reason.text());
    Error::new(Status::Timeout, text)
}

const fn is_short(status: Status) -> bool {
    matches!(status, Status::NoSpace | Status::Quota)
}

/// Whether a block that did not grow may be passed over for another one.
const fn can_go_elsewhere(status: Status) -> bool {
    matches!(status, Status::NoSpace | Status::Address | Status::Lost)
}

/// Checks that no pointer of the application is into an allocation.
fn check_unpinned(
    pins: &BTreeMap<usize, Vec<super::mapping::Pinned>>,
    addr: DmceAddr,
    bytes: u64,
) -> Result<(), Error> {
    if super::mapping::is_pinned(pins, addr.to_raw(), bytes) {
        return Err(Error::new(Status::Busy, format!("{:#x} is mapped", addr.to_raw())));
    }
    Ok(())
}

#[cold]
fn too_many_kinds() -> Error {
    Error::invalid("too many kinds of blocks")
}

#[cold]
fn impossible(what: &str) -> Error {
    Error::new(Status::NoSpace, format!("{what} are more than any instance has"))
}

#[cold]
pub(super) fn not_allocated(addr: DmceAddr) -> Error {
    Error::address(format!("no allocation begins at {:#x}", addr.to_raw()))
}

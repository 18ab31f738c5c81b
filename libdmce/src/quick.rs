//! The shortest calls there are: what a program allocates, frees, reads and writes without anything
//! being in the way.
//!
//! ```text
//!   thread -> its door for the key -> slot, marked -> table -> block -> bytes
//! ```
//!
//! The session is named by its key alone, and only an open door ([`crate::door`]) tells that there
//! is one. So these functions need no handle and no session, and cannot panic. What they do not do
//! is left to [`crate::session`], which finds out why, and opens the door for the next time.
//!
//! # Invariants
//!
//! 1. A key that no session has, is no more, or belongs to a parent's session opens no door.
//! 2. An access that is returned as done was done inside an operation that found the session as it
//!    is known. Of another one a part may be done, and it may be done again.
//! 3. What a session checks beyond blocks and rights (allocations, what was written) is for no
//!    door: [`crate::session`] opens none then.

use dmce_shm::Fence;
use dmce_sys::map::MappedRange;
use dmce_sys::transfer::{self, Store};

use crate::alloc::{Key, gates};
use crate::block::Backing;
use crate::door::Wish;
use crate::reach::Piece;
use crate::reach::copied::CopiedBlock;

pub use crate::alloc::quick::{free, free_rest, malloc};

/// The most that is read or written at once this way: beyond, what is saved is nothing.
pub(crate) const BYTES_MAX: usize = 4096;

/// The most that is so where the rest is left to a second try.
const FIRST_BYTES_MAX: usize = 1023;

/// Whether [`read`] and [`write`] leave what is less common to [`read_rest`] and [`write_rest`]:
/// where a function without calls has registers enough to save none, and most blocks are mapped.
const HAS_REST: bool = cfg!(target_pointer_width = "64");

/// Reads in the session that has the key. False: nothing is certain about the buffer.
///
/// # Safety
///
/// `buffer` is writable for `bytes`.
#[doc(hidden)]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one of the shortest calls there are")]
#[must_use]
pub unsafe fn read(key: usize, from: u64, buffer: *mut u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    unsafe { read_what::<HAS_REST>(key, from, buffer, bytes) }
}

/// Writes in the session that has the key. False: nothing is certain about the range.
///
/// # Safety
///
/// `data` is readable for `bytes`.
#[doc(hidden)]
#[inline(always)]
#[expect(clippy::inline_always, reason = "one of the shortest calls there are")]
#[must_use]
pub unsafe fn write(key: usize, to: u64, data: *const u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    unsafe { write_what::<HAS_REST>(key, to, data, bytes) }
}

/// [`read`] of what that leaves.
///
/// # Safety
///
/// As [`read`].
#[doc(hidden)]
#[must_use]
pub unsafe fn read_rest(key: usize, from: u64, buffer: *mut u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    HAS_REST && unsafe { read_what::<false>(key, from, buffer, bytes) }
}

/// [`write`] of what that leaves.
///
/// # Safety
///
/// As [`write`].
#[doc(hidden)]
#[must_use]
pub unsafe fn write_rest(key: usize, to: u64, data: *const u8, bytes: usize) -> bool {
    // SAFETY: as the caller promises.
    HAS_REST && unsafe { write_what::<false>(key, to, data, bytes) }
}

/// # Safety
///
/// As [`read`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the shortest calls there are")]
unsafe fn read_what<const IS_FIRST: bool>(
    key: usize,
    from: u64,
    buffer: *mut u8,
    bytes: usize,
) -> bool {
    let load = |range: MappedRange<'_>| {
        // SAFETY: the range is as long as the buffer is writable. That is no part of a block but by
        // the caller's own doing, as with `memcpy`.
        unsafe { transfer::load(range, buffer, Store::Cached) }.is_ok()
    };
    let read = |block: &CopiedBlock, piece: Piece| {
        // SAFETY: as above.
        unsafe { block.read_small(piece, buffer) }
    };
    access::<IS_FIRST>((key, Wish::Read), from, bytes, load, read)
}

/// # Safety
///
/// As [`write`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the shortest calls there are")]
unsafe fn write_what<const IS_FIRST: bool>(
    key: usize,
    to: u64,
    data: *const u8,
    bytes: usize,
) -> bool {
    let store = |range: MappedRange<'_>| {
        // SAFETY: the range is as long as the data is readable, and mapped writable, since the wish
        // is to write. As for parts of blocks: see `read_what`.
        unsafe { transfer::store(range, data, Store::Cached) }.is_ok()
    };
    let write = |block: &CopiedBlock, piece: Piece| {
        // SAFETY: as above; the block is writable for the same reason.
        unsafe { block.write_small(piece, data) }
    };
    access::<IS_FIRST>((key, Wish::Write), to, bytes, store, write)
}

/// Runs `plain` on a range, if this thread has an open door, and it is all in one block and mapped;
/// of a block with copies `copied`.
#[inline(always)]
#[expect(clippy::inline_always, reason = "part of the shortest calls there are")]
fn access<const IS_FIRST: bool>(
    (key, wish): (usize, Wish),
    addr: u64,
    bytes: usize,
    plain: impl FnOnce(MappedRange<'_>) -> bool,
    copied: impl FnOnce(&CopiedBlock, Piece) -> bool,
) -> bool {
    if bytes.wrapping_sub(1) >= if IS_FIRST { FIRST_BYTES_MAX } else { BYTES_MAX } {
        return false;
    }
    let Some(key) = Key::new(key) else { return false };
    let Some(pair) = gates::of_this_thread(key) else { return false };
    let Some(inside) = pair.door.enter(key, wish, Fence::Asymmetric) else { return false };
    let Some(operation) = inside.begin(Fence::Asymmetric) else { return false };
    let (id, cell) = inside.split(addr);
    let table = inside.table();
    let start = if IS_FIRST {
        table.get_first(id, &operation).and_then(|block| block.plain(wish, cell, bytes))
    } else {
        let Some(block) = table.get(id, &operation) else { return false };
        let may = wish == Wish::Read || block.writable;
        match (&block.backing, block.piece(cell, bytes)) {
            (Backing::Mapped(_), _) => block.plain(wish, cell, bytes),
            (Backing::Windowed(windowed), Some(_)) if may => windowed.shown(cell, bytes),
            (Backing::Copied(block), Some(piece)) if may => return copied(block, piece),
            _ => None,
        }
    };
    let Some(start) = start else { return false };
    // SAFETY: what is committed of a block is inside its mapping, or what is shown of it is there
    // until the operation is over.
    plain(unsafe { MappedRange::new(start, bytes) })
}

#[cfg(test)]
pub(crate) mod tests;

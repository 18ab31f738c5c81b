//! Which transfers go past the caches.
//!
//! Those of which the destination would not stay in the caches anyway, and need not be read before
//! it is overwritten.

use dmce_sys::transfer::Store;

/// From this size on, what is read goes past the caches: what a core has of its own cache on
/// machines of today. Less is probably looked at there next.
const READ_BYTES: usize = 2 << 20;

/// From this size on, what is written does: with its source it would fill that cache.
const WRITE_BYTES: usize = 1 << 20;

/// The same in 32-bit programs: their memory is behind windows because it is large.
const WRITE_BYTES_NARROW: usize = 256 << 10;

/// What suits a transfer of `bytes` in all to the application.
#[inline]
pub(super) const fn out_of_block(bytes: usize) -> Store {
    if bytes >= READ_BYTES { Store::Streamed } else { Store::Cached }
}

/// What suits a transfer of `bytes` in all into a block.
#[inline]
pub(super) const fn into_block(bytes: usize) -> Store {
    let is_narrow = cfg!(target_pointer_width = "32");
    let limit = if is_narrow { WRITE_BYTES_NARROW } else { WRITE_BYTES };
    if bytes >= limit { Store::Streamed } else { Store::Cached }
}

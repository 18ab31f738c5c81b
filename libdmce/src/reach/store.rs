//! Which transfers go past the caches.
//!
//! Those of which the destination would not stay in the caches anyway, and need not be read before
//! it is overwritten.

use dmce_sys::transfer::Store;

/// From this size on, stores go past the caches: what a core has of its own cache on machines of
/// today.
const STREAM_BYTES: usize = 2 << 20;

/// The same for stores into blocks in 32-bit programs: their memory is behind windows because it is
/// large.
const STREAM_BYTES_NARROW: usize = 256 << 10;

/// What suits a transfer of `bytes` in all to the application.
#[inline]
pub(super) const fn out_of_block(bytes: usize) -> Store {
    if bytes >= STREAM_BYTES { Store::Streamed } else { Store::Cached }
}

/// What suits a transfer of `bytes` in all into a block.
#[inline]
pub(super) const fn into_block(bytes: usize) -> Store {
    let is_narrow = cfg!(target_pointer_width = "32");
    let limit = if is_narrow { STREAM_BYTES_NARROW } else { STREAM_BYTES };
    if bytes >= limit { Store::Streamed } else { Store::Cached }
}

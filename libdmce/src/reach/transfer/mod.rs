//! Moving bytes between the application and a mapping.
//!
//! | bytes | how |
//! |---|---|
//! | up to 64 | in registers, without a call |
//! | up to [`Store`]'s limit | `memcpy`; in 32-bit programs, whose C library is slow, `rep movsb` |
//! | more | past the caches |
//!
//! Past the caches, because the destination would not stay in them anyway, and need not be read
//! before it is overwritten. Four pages are written side by side, so that the memory controller has
//! several of its own pages open; the hardware prefetches the source.
//!
//! # Invariants
//!
//! 1. Raw pointers only: other processes may write the mapped side meanwhile. What is read then is
//!    as torn as after a `memcpy` of shared memory; nothing is decided by it here.
//! 2. After a function has returned, its stores are ordered before later ones of this thread, the
//!    non-temporal ones too.

#[cfg(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse2")))]
#[path = "x86.rs"]
mod machine;
#[cfg(not(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse2"))))]
#[path = "plain.rs"]
mod machine;

use std::cmp::Ordering;

/// Whether the stores of a transfer go past the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Through them.
    Cached,
    /// Past them.
    Streamed,
}

impl Store {
    /// From this size on, stores go past the caches: what a core has of its own cache on machines
    /// of today.
    const STREAM_BYTES: usize = 2 << 20;
    /// The same for stores into blocks in 32-bit programs: their memory is behind windows because
    /// it is large, and what their C library does otherwise is slow.
    const STREAM_BYTES_NARROW: usize = 256 << 10;

    /// What suits a transfer of `bytes` in all to the application.
    #[inline]
    pub(crate) const fn out_of_block(bytes: usize) -> Self {
        if bytes >= Self::STREAM_BYTES { Self::Streamed } else { Self::Cached }
    }

    /// What suits a transfer of `bytes` in all into a block.
    #[inline]
    pub(crate) const fn into_block(bytes: usize) -> Self {
        let is_narrow = cfg!(target_pointer_width = "32");
        let limit = if is_narrow { Self::STREAM_BYTES_NARROW } else { Self::STREAM_BYTES };
        if bytes >= limit { Self::Streamed } else { Self::Cached }
    }
}

/// Copies bytes.
///
/// # Safety
///
/// `from` is readable and `to` writable for `bytes`, and they do not overlap. A page of either that
/// is gone is what the caller guards against.
#[inline]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize, store: Store) {
    match store {
        // SAFETY: as the caller promises.
        Store::Cached => unsafe { machine::copy(to, from, bytes) },
        // SAFETY: as the caller promises.
        Store::Streamed => unsafe { machine::stream(to, from, bytes) },
    }
}

/// Fills bytes.
///
/// # Safety
///
/// `to` is writable for `bytes`.
#[inline]
pub(crate) unsafe fn fill(to: *mut u8, byte: u8, bytes: usize, store: Store) {
    match store {
        // SAFETY: as the caller promises.
        Store::Cached => unsafe { to.write_bytes(byte, bytes) },
        // SAFETY: as the caller promises.
        Store::Streamed => unsafe { machine::stream_fill(to, byte, bytes) },
    }
}

/// Compares shared bytes with private ones, as `memcmp` does: each piece is copied before it is
/// looked at, so that it cannot change in between.
///
/// # Safety
///
/// `shared` and `private` are readable for `bytes`; nobody writes `private` meanwhile.
pub(crate) unsafe fn compare(shared: *const u8, private: *const u8, bytes: usize) -> Ordering {
    const PIECE: usize = 4096;
    let mut copied = [0_u8; PIECE];
    let mut done = 0;
    while done < bytes {
        let piece = PIECE.min(bytes - done);
        let from = shared.wrapping_add(done);
        // SAFETY: `from` is readable for `piece` bytes by the caller's promise; the copy is ours.
        unsafe { copied.as_mut_ptr().copy_from_nonoverlapping(from, piece) };
        let start = private.wrapping_add(done);
        // SAFETY: readable and not written by anyone, as the caller promises.
        let expected = unsafe { std::slice::from_raw_parts(start, piece) };
        match copied[..piece].cmp(expected) {
            Ordering::Equal => done += piece,
            other => return other,
        }
    }
    Ordering::Equal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_and_cached_copies_are_the_same_at_any_alignment() {
        let byte = |i: u32| (i * 7 + i / 251).to_le_bytes()[0];
        let source: Vec<u8> = (0..100_000).map(byte).collect();
        let skips = [(0, 0), (1, 0), (0, 3), (63, 1), (64, 64), (17, 33)];
        let sizes = (0..130).chain([2047, 2048, 4097, 16_384, 16_448, 50_000, 65_536 + 127]);
        let stores = [Store::Cached, Store::Streamed];
        for ((skip_to, skip_from), store) in skips.into_iter().zip(stores.into_iter().cycle()) {
            for bytes in sizes.clone() {
                let mut found = vec![0xaa_u8; bytes + skip_to + 64];
                let to = found[skip_to..].as_mut_ptr();
                // SAFETY: both buffers are longer than that.
                unsafe { copy(to, source[skip_from..].as_ptr(), bytes, store) };
                assert_eq!(found[skip_to..skip_to + bytes], source[skip_from..skip_from + bytes]);
                assert!(found[..skip_to].iter().all(|&byte| byte == 0xaa));
                assert!(found[skip_to + bytes..].iter().all(|&byte| byte == 0xaa));
            }
        }
    }

    #[test]
    fn streamed_fills_stay_inside_their_range() {
        for (skip, bytes) in [(0, 64), (1, 64), (5, 1000), (64, 4096), (63, 1), (0, 0)] {
            let mut found = vec![0xaa_u8; skip + bytes + 64];
            // SAFETY: the buffer is longer than that.
            unsafe { fill(found[skip..].as_mut_ptr(), 0x5c, bytes, Store::Streamed) };
            assert!(found[skip..skip + bytes].iter().all(|&byte| byte == 0x5c));
            assert!(found[..skip].iter().all(|&byte| byte == 0xaa));
            assert!(found[skip + bytes..].iter().all(|&byte| byte == 0xaa));
        }
    }

    #[test]
    fn comparison_is_that_of_memcmp() {
        let a: Vec<u8> = vec![7; 10_000];
        for place in [0, 4095, 4096, 9_999] {
            let mut b = a.clone();
            b[place] = 8;
            // SAFETY: both are of that length.
            let found = unsafe { compare(a.as_ptr(), b.as_ptr(), a.len()) };
            assert_eq!(found, Ordering::Less);
            // SAFETY: both are of that length.
            let found = unsafe { compare(b.as_ptr(), a.as_ptr(), a.len()) };
            assert_eq!(found, Ordering::Greater);
        }
        // SAFETY: both are of that length.
        assert_eq!(unsafe { compare(a.as_ptr(), a.as_ptr(), a.len()) }, Ordering::Equal);
    }
}

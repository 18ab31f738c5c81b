//! Moving bytes between the application and a mapping.
//!
//! # Invariants
//!
//! 1. Raw pointers only: other processes may write the mapped side meanwhile. What is read then is
//!    as torn as after a `memcpy` of shared memory; nothing is decided by it here.
//! 2. After a function has returned, its stores are ordered before later ones of this thread, the
//!    non-temporal ones too.
//!
//! From [`STREAM_BYTES`] up, stores go past the caches: the destination would not stay in them
//! anyway, and need not be read before it is overwritten. Four pages are written side by side, so
//! that the memory controller has several of its own pages open; the hardware prefetches the
//! source.

use std::cmp::Ordering;

/// From this size on, stores go past the caches: twice a core's own cache of the machines at hand.
pub(crate) const STREAM_BYTES: usize = 4 << 20;

/// Whether a transfer of so many bytes goes past the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Through the caches.
    Cached,
    /// Past them.
    Streamed,
}

impl Store {
    /// What suits a transfer of `bytes` in all.
    #[inline]
    pub(crate) const fn for_bytes(bytes: usize) -> Self {
        if bytes >= STREAM_BYTES { Self::Streamed } else { Self::Cached }
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
        Store::Cached => unsafe { to.copy_from_nonoverlapping(from, bytes) },
        // SAFETY: as the caller promises.
        Store::Streamed => unsafe { stream::copy(to, from, bytes) },
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
        Store::Streamed => unsafe { stream::fill(to, byte, bytes) },
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

#[cfg(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse2")))]
mod stream {
    #[cfg(target_arch = "x86")]
    use std::arch::x86 as arch;
    #[cfg(target_arch = "x86_64")]
    use std::arch::x86_64 as arch;

    const LINE: usize = 64;
    const PAGE: usize = 4096;
    const PAGES: usize = 4;
    const AHEAD: usize = 2 * LINE;
    /// SSE2 is part of both targets.
    const VECTOR: usize = size_of::<arch::__m128i>();

    /// # Safety
    ///
    /// As `super::copy`.
    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
        let head = to.align_offset(LINE).min(bytes);
        // SAFETY: the head is part of the range.
        unsafe { to.copy_from_nonoverlapping(from, head) };
        let mut done = head;
        while bytes - done >= PAGES * PAGE {
            for line in (0..PAGE).step_by(LINE) {
                for page in 0..PAGES {
                    let at = done + page * PAGE + line;
                    let (to, from) = (to.wrapping_add(at), from.wrapping_add(at));
                    // SAFETY: a line inside the range; `to` is aligned since the head was.
                    unsafe { copy_line(to, from) };
                }
            }
            done += PAGES * PAGE;
        }
        fence();
        let (to, from) = (to.wrapping_add(done), from.wrapping_add(done));
        // SAFETY: the rest of the range.
        unsafe { to.copy_from_nonoverlapping(from, bytes - done) };
    }

    /// # Safety
    ///
    /// As `super::fill`.
    pub(super) unsafe fn fill(to: *mut u8, byte: u8, bytes: usize) {
        let head = to.align_offset(LINE).min(bytes);
        // SAFETY: the head is part of the range.
        unsafe { to.write_bytes(byte, head) };
        let lines = (bytes - head) / LINE;
        // SAFETY: SSE2 is part of the target.
        let vector = unsafe { arch::_mm_set1_epi8(byte.cast_signed()) };
        for at in (0..lines * LINE).step_by(VECTOR) {
            let to = to.wrapping_add(head + at).cast();
            // SAFETY: inside the range, and aligned since the head was.
            unsafe { arch::_mm_stream_si128(to, vector) };
        }
        fence();
        let done = head + lines * LINE;
        // SAFETY: the rest of the range.
        unsafe { to.wrapping_add(done).write_bytes(byte, bytes - done) };
    }

    /// # Safety
    ///
    /// A line is readable at `from` and writable at `to`, which is aligned to it.
    #[inline]
    unsafe fn copy_line(to: *mut u8, from: *const u8) {
        // SAFETY: a hint, which may be any address.
        unsafe { arch::_mm_prefetch::<{ arch::_MM_HINT_T0 }>(from.wrapping_add(AHEAD).cast()) };
        for at in (0..LINE).step_by(VECTOR) {
            // SAFETY: inside the line, which is readable.
            let vector = unsafe { arch::_mm_loadu_si128(from.wrapping_add(at).cast()) };
            // SAFETY: inside the line, which is writable and aligned.
            unsafe { arch::_mm_stream_si128(to.wrapping_add(at).cast(), vector) };
        }
    }

    /// Orders the streamed stores before whatever this thread stores next.
    fn fence() {
        // SAFETY: SSE is part of the target.
        unsafe { arch::_mm_sfence() };
    }
}

#[cfg(not(any(target_arch = "x86_64", all(target_arch = "x86", target_feature = "sse2"))))]
mod stream {
    /// # Safety
    ///
    /// As `super::copy`.
    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
        // SAFETY: as the caller promises.
        unsafe { to.copy_from_nonoverlapping(from, bytes) };
    }

    /// # Safety
    ///
    /// As `super::fill`.
    pub(super) unsafe fn fill(to: *mut u8, byte: u8, bytes: usize) {
        // SAFETY: as the caller promises.
        unsafe { to.write_bytes(byte, bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streamed_and_cached_copies_are_the_same_at_any_alignment() {
        let byte = |i: u32| (i * 7 + i / 251).to_le_bytes()[0];
        let source: Vec<u8> = (0..100_000).map(byte).collect();
        for (skip_to, skip_from) in [(0, 0), (1, 0), (0, 3), (63, 1), (64, 64), (17, 33)] {
            for bytes in [0, 1, 63, 64, 65, 16_384, 16_448, 50_000, 65_536 + 127] {
                let mut found = vec![0xaa_u8; bytes + skip_to + 64];
                let to = found[skip_to..].as_mut_ptr();
                // SAFETY: both buffers are longer than that.
                unsafe { copy(to, source[skip_from..].as_ptr(), bytes, Store::Streamed) };
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

//! Transfers on x86, with SSE2, which is part of both targets.

#[cfg(target_arch = "x86")]
use std::arch::x86 as arch;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64 as arch;

use arch::__m128i;

const VECTOR: usize = size_of::<__m128i>();
const LINE: usize = 64;
const PAGE: usize = 4096;
const PAGES: usize = 4;
const AHEAD: usize = 2 * LINE;

/// # Safety
///
/// As `super::copy`.
#[inline]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    if (VECTOR..=4 * VECTOR).contains(&bytes) {
        // SAFETY: as the caller promises, and of such a size.
        return unsafe { copy_small(to, from, bytes) };
    }
    #[cfg(target_arch = "x86")]
    if bytes >= narrow::BYTES_MIN && narrow::has_fast_strings() {
        // SAFETY: as the caller promises.
        return unsafe { narrow::copy(to, from, bytes) };
    }
    // SAFETY: as the caller promises.
    unsafe { to.copy_from_nonoverlapping(from, bytes) };
}

/// Copies 16 to 64 bytes: vectors from both ends, which may overlap each other.
///
/// # Safety
///
/// As `super::copy`; `bytes` is 16 to 64.
#[inline]
unsafe fn copy_small(to: *mut u8, from: *const u8, bytes: usize) {
    let last = bytes - VECTOR;
    // SAFETY: the first vector is inside the range.
    let first_vector = unsafe { load(from) };
    // SAFETY: the last vector is inside the range.
    let last_vector = unsafe { load(from.wrapping_add(last)) };
    if bytes > 2 * VECTOR {
        // SAFETY: the second vector is inside the range, which is longer than two.
        let second = unsafe { load(from.wrapping_add(VECTOR)) };
        // SAFETY: the last but one is inside the range, too.
        let third = unsafe { load(from.wrapping_add(last - VECTOR)) };
        // SAFETY: as for its load.
        unsafe { store(to.wrapping_add(VECTOR), second) };
        // SAFETY: as for its load.
        unsafe { store(to.wrapping_add(last - VECTOR), third) };
    }
    // SAFETY: as for its load.
    unsafe { store(to, first_vector) };
    // SAFETY: as for its load.
    unsafe { store(to.wrapping_add(last), last_vector) };
}

/// # Safety
///
/// As `super::copy`.
pub(super) unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
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
                unsafe { stream_line(to, from) };
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
pub(super) unsafe fn stream_fill(to: *mut u8, byte: u8, bytes: usize) {
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
unsafe fn stream_line(to: *mut u8, from: *const u8) {
    // SAFETY: a hint, which may be any address.
    unsafe { arch::_mm_prefetch::<{ arch::_MM_HINT_T0 }>(from.wrapping_add(AHEAD).cast()) };
    for at in (0..LINE).step_by(VECTOR) {
        // SAFETY: inside the line, which is readable.
        let vector = unsafe { load(from.wrapping_add(at)) };
        // SAFETY: inside the line, which is writable and aligned.
        unsafe { arch::_mm_stream_si128(to.wrapping_add(at).cast(), vector) };
    }
}

/// # Safety
///
/// A vector is readable at `from`.
#[inline]
unsafe fn load(from: *const u8) -> __m128i {
    // SAFETY: as the caller promises; no alignment is asked for.
    unsafe { arch::_mm_loadu_si128(from.cast()) }
}

/// # Safety
///
/// A vector is writable at `to`.
#[inline]
unsafe fn store(to: *mut u8, vector: __m128i) {
    // SAFETY: as the caller promises; no alignment is asked for.
    unsafe { arch::_mm_storeu_si128(to.cast(), vector) };
}

/// Orders the streamed stores before whatever this thread stores next.
fn fence() {
    // SAFETY: SSE is part of the target.
    unsafe { arch::_mm_sfence() };
}

/// The C library of 32-bit programs has no `memcpy` for the machines of today; the machine itself
/// has.
#[cfg(target_arch = "x86")]
mod narrow {
    use std::arch::asm;
    use std::arch::x86::__cpuid_count;
    use std::sync::OnceLock;

    /// What is smaller is not worth the start of the string instruction.
    pub(super) const BYTES_MIN: usize = 2048;

    /// Whether the processor says that its string instructions are the fastest way.
    #[inline]
    pub(super) fn has_fast_strings() -> bool {
        const LEAF: u32 = 7;
        const ERMS: u32 = 1 << 9;
        static FOUND: OnceLock<bool> = OnceLock::new();
        // The leaf is there on every processor with the instruction set of the last decade, and
        // zero on the others.
        *FOUND.get_or_init(|| __cpuid_count(LEAF, 0).ebx & ERMS != 0)
    }

    /// # Safety
    ///
    /// As `super::copy`.
    pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
        // SAFETY: copies upwards, since the direction flag is clear between instructions of Rust;
        // the register that the compiler keeps to itself is put back.
        unsafe {
            asm!(
                "xchg {from}, esi",
                "rep movsb",
                "mov esi, {from}",
                from = inout(reg) from => _,
                inout("ecx") bytes => _,
                inout("edi") to => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

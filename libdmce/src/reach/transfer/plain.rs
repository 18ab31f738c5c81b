//! Transfers on machines without a way of their own: what the compiler and the C library give.

/// # Safety
///
/// As `super::copy`.
#[inline]
pub(super) unsafe fn copy(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: as the caller promises.
    unsafe { to.copy_from_nonoverlapping(from, bytes) };
}

/// # Safety
///
/// As `super::copy`.
pub(super) unsafe fn stream(to: *mut u8, from: *const u8, bytes: usize) {
    // SAFETY: as the caller promises.
    unsafe { to.copy_from_nonoverlapping(from, bytes) };
}

/// # Safety
///
/// As `super::fill`.
pub(super) unsafe fn stream_fill(to: *mut u8, byte: u8, bytes: usize) {
    // SAFETY: as the caller promises.
    unsafe { to.write_bytes(byte, bytes) };
}

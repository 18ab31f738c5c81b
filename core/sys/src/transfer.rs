//! Moving bytes between private memory and mappings of shared objects that may be gone.
//!
//! A page of a shared object is gone when somebody truncated the file, or when the hardware lost
//! it: touching it raises SIGBUS. (Of a huge page that a file ends in, the kernel may leave the
//! rest mapped, as zeros.) Everything here that touches shared memory is one of a few routines of
//! machine code, which lie side by side. If one of them is interrupted by SIGBUS, the handler lets
//! it return there and then, with the address.
//!
//! ```text
//!   routine                                 handler, on the same thread
//!     .. loads, stores .. --- SIGBUS --->   instruction in a routine, address in what is shared?
//!                                             no:  as if we were not there
//!     gone: return addr   <---------------    yes: result := addr, instruction := gone
//! ```
//!
//! # Invariants
//!
//! 1. `Ok` means that every byte was moved. [`Gone`] means that a page was not there; what was
//!    written by then is some part of the whole.
//! 2. A SIGBUS that is not of a shared range here has the effect that it would have without us: the
//!    earlier handler runs with its own mask and flags, or the process dies of it. That holds for
//!    the private side of a copy, too.
//! 3. The handler makes no call of the kernel and takes no lock. A routine that meets nothing pays
//!    nothing for it.
//! 4. Other processes may write the shared side meanwhile: what is read then is as torn as after a
//!    `memcpy`. But an aligned access of 1, 2, 4 or 8 bytes is one access of the processor, and one
//!    of 16, 32 or 64 touches no byte twice: what another process answers to a store stays.
//! 5. After a function has returned, its stores are ordered before later ones of this thread, the
//!    ones past the caches too, unless the caller orders them itself ([`Store::Unordered`]).
//!
//! Each page that is gone costs a signal (microseconds). Accesses by an application's own pointers
//! are not covered.

use std::cmp::Ordering;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::slice;

use crate::map::{MappedRange, page_bytes};

#[cfg(target_arch = "aarch64")]
#[path = "transfer/aarch64.rs"]
mod machine;
#[cfg(target_arch = "x86")]
#[path = "transfer/x86.rs"]
mod machine;
#[cfg(target_arch = "x86_64")]
#[path = "transfer/x86_64.rs"]
mod machine;

pub mod between;
pub mod word;

/// A page of shared memory was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory at {addr:#x} is gone")]
pub struct Gone {
    /// Where it was noticed; in the range that was shared, or in the last page that it touches.
    pub addr: usize,
}

/// Whether stores go past the caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// Through them.
    Cached,
    /// Past them: for more than the caches hold.
    Streamed,
    /// As that, and ordered before later stores only by [`order`]: what is copied to several places
    /// need not wait for each of them.
    Unordered,
}

/// Orders all stores of this thread before later ones, those past the caches too.
#[inline]
pub fn order() {
    #[cfg(target_arch = "x86")]
    // SAFETY: every processor that the streaming routine runs on has the instruction.
    unsafe {
        std::arch::x86::_mm_sfence();
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every processor of this kind has the instruction.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
    std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
}

/// What is shared of a routine's ranges: at most two starts (0 for none), and how many bytes.
struct Shared {
    starts: [usize; 2],
    bytes: usize,
}

/// The alignment that the streaming routines want of the target.
const LINE: usize = 64;
/// What the streaming copy wants a multiple of.
const STREAM_UNIT: usize = 4 * 4096;
/// Looked at, or carried, at a time: all of it stays in the nearest cache meanwhile.
const PIECE_BYTES: usize = 4096;
/// From here on the string instructions of the machine are at least as fast as vectors.
const STRING_BYTES: usize = 1024;

type Routine = unsafe extern "C" fn(*mut u8, *const u8, usize, usize, usize) -> usize;
type FillRoutine = unsafe extern "C" fn(*mut u8, usize, usize, usize, usize) -> usize;

unsafe extern "C" {
    /// Any bytes.
    #[link_name = "dmce_sys_transfer_copy"]
    fn copy_vectors(to: *mut u8, from: *const u8, bytes: usize, a: usize, b: usize) -> usize;
    /// Any bytes, by the string instructions.
    #[link_name = "dmce_sys_transfer_string"]
    fn copy_string(to: *mut u8, from: *const u8, bytes: usize, a: usize, b: usize) -> usize;
    /// Multiples of [`STREAM_UNIT`] and not none, to a multiple of [`LINE`].
    #[link_name = "dmce_sys_transfer_stream"]
    fn copy_stream(to: *mut u8, from: *const u8, bytes: usize, a: usize, b: usize) -> usize;
    /// Any bytes.
    #[link_name = "dmce_sys_transfer_fill"]
    fn fill_string(to: *mut u8, byte: usize, bytes: usize, a: usize, b: usize) -> usize;
    /// Multiples of [`LINE`] and not none, to a multiple of that.
    #[link_name = "dmce_sys_transfer_stream_fill"]
    fn fill_stream(to: *mut u8, byte: usize, bytes: usize, a: usize, b: usize) -> usize;
    /// One aligned word, which is there or not as a whole: see [`word`].
    #[link_name = "dmce_sys_transfer_exchange"]
    fn exchange_word(to: *mut u8, operands: *const u8, bytes: usize, a: usize, b: usize) -> usize;
    /// As above.
    #[link_name = "dmce_sys_transfer_add"]
    fn add_word(to: *mut u8, operands: *const u8, bytes: usize, a: usize, b: usize) -> usize;

    #[link_name = "dmce_sys_transfer_begin"]
    static ROUTINES_BEGIN: u8;
    #[link_name = "dmce_sys_transfer_end"]
    static ROUTINES_END: u8;
    #[link_name = "dmce_sys_transfer_gone"]
    static LANDING: u8;
}

/// Copies shared bytes to private memory.
///
/// # Errors
///
/// [`Gone`].
///
/// # Safety
///
/// `to` is writable for as many bytes, not part of the range, and nobody else uses it.
#[inline]
pub unsafe fn load(from: MappedRange<'_>, to: *mut u8, store: Store) -> Result<(), Gone> {
    let (start, bytes) = (from.as_ptr(), from.len());
    if bytes < STRING_BYTES {
        // SAFETY: as the caller promises; the range is mapped.
        return outcome(unsafe { machine::load(start, to, bytes) });
    }
    // SAFETY: as before.
    unsafe { copy_much((to, start), bytes, [start, ABSENT], store) }
}

/// Copies private bytes to shared memory, which is mapped writable.
///
/// # Errors
///
/// [`Gone`].
///
/// # Safety
///
/// `from` is readable for as many bytes, and not part of the range, which is mapped writable.
#[inline]
pub unsafe fn store(to: MappedRange<'_>, from: *const u8, store: Store) -> Result<(), Gone> {
    let (start, bytes) = (to.as_ptr(), to.len());
    if bytes < STRING_BYTES {
        // SAFETY: as the caller promises.
        return outcome(unsafe { machine::store(start, from, bytes) });
    }
    // SAFETY: as before.
    unsafe { copy_much((start, from), bytes, [start, ABSENT], store) }
}

/// Copies between shared ranges.
///
/// # Errors
///
/// [`Gone`].
///
/// # Panics
///
/// If they differ in length.
///
/// # Safety
///
/// The ranges do not overlap; `to` is mapped writable.
pub unsafe fn copy(to: MappedRange<'_>, from: MappedRange<'_>, store: Store) -> Result<(), Gone> {
    assert_eq!(to.len(), from.len(), "a copy has two ranges of one length");
    let both = (to.as_ptr(), from.as_ptr().cast_const());
    // SAFETY: as the caller promises.
    unsafe { copy_much(both, to.len(), [to.as_ptr(), from.as_ptr()], store) }
}

/// Fills shared memory with a byte.
///
/// # Errors
///
/// [`Gone`].
///
/// # Safety
///
/// The range is mapped writable.
pub unsafe fn fill(to: MappedRange<'_>, byte: u8, store: Store) -> Result<(), Gone> {
    let fill = |routine: FillRoutine, at: usize, bytes: usize| {
        let start = to.as_ptr().wrapping_add(at);
        // SAFETY: a part of the range, which is writable as the caller promises; the parts that
        // are streamed are what that routine wants.
        let gone = unsafe { routine(start, byte.into(), bytes, start.addr(), 0) };
        outcome(gone)
    };
    let (head, lines) = match store {
        Store::Cached => (to.len(), 0),
        Store::Streamed | Store::Unordered => parts(to.as_ptr(), to.len(), LINE),
    };
    fill(fill_string, 0, head)?;
    if lines > 0 {
        fill(fill_stream, head, lines)?;
    }
    fill(fill_string, head + lines, to.len() - head - lines)
}

/// Compares shared bytes with private ones, as `memcmp` does: each piece is copied before it is
/// looked at, so that it cannot change in between.
///
/// # Errors
///
/// [`Gone`].
///
/// # Safety
///
/// `private` is readable for as many bytes, and nobody writes it meanwhile.
pub unsafe fn compare(shared: MappedRange<'_>, private: *const u8) -> Result<Ordering, Gone> {
    let mut copied = [const { MaybeUninit::<u8>::uninit() }; PIECE_BYTES];
    let mut done = 0;
    while done < shared.len() {
        let bytes = PIECE_BYTES.min(shared.len() - done);
        // SAFETY: a part of the range, which is mapped.
        let part = unsafe { MappedRange::new(shared.as_ptr().wrapping_add(done), bytes) };
        // SAFETY: the copy is ours, and at least as long.
        unsafe { load(part, copied.as_mut_ptr().cast(), Store::Cached) }?;
        // SAFETY: as many were just loaded.
        let found = unsafe { slice::from_raw_parts(copied.as_ptr().cast::<u8>(), bytes) };
        // SAFETY: a part of what is readable, and written by nobody, as the caller promises.
        let expected = unsafe { slice::from_raw_parts(private.wrapping_add(done), bytes) };
        match found.cmp(expected) {
            Ordering::Equal => done += bytes,
            other => return Ok(other),
        }
    }
    Ok(Ordering::Equal)
}

/// Lets an interrupted routine return, if `addr` is in what it accesses of shared memory.
///
/// # Safety
///
/// In a handler of SIGBUS, with the kernel's context, for a signal that an access to `addr` raised.
pub(crate) unsafe fn recover(context: *mut c_void, addr: usize) -> bool {
    // SAFETY: as the caller promises.
    let mut interrupted = unsafe { machine::Interrupted::new(context) };
    let routines = (&raw const ROUTINES_BEGIN).addr()..(&raw const ROUTINES_END).addr();
    if !routines.contains(&interrupted.instruction()) {
        return false;
    }
    // SAFETY: as was just seen.
    if !unsafe { interrupted.shared() }.touches_page_of(addr) {
        return false;
    }
    interrupted.end_with(addr, (&raw const LANDING).addr());
    true
}

const ABSENT: *mut u8 = std::ptr::null_mut();

/// Copies any bytes, of which what begins at `shared` is shared.
///
/// # Safety
///
/// `from` is readable and `to` writable for `bytes`, where they are not gone; they do not overlap.
#[inline(never)]
unsafe fn copy_much(
    (to, from): (*mut u8, *const u8),
    bytes: usize,
    shared: [*mut u8; 2],
    store: Store,
) -> Result<(), Gone> {
    let copy = |routine: Routine, at: usize, bytes: usize| {
        let shared =
            shared.map(|start| if start.is_null() { start } else { start.wrapping_add(at) });
        // SAFETY: a part of what the caller promises; the part that is streamed is what that
        // routine wants.
        unsafe { part_by(routine, (to.wrapping_add(at), from.wrapping_add(at)), bytes, shared) }
    };
    let is_long = bytes >= STRING_BYTES;
    let plain = if is_long && has_fast_strings() { copy_string } else { copy_vectors };
    let (head, units) = match store {
        Store::Cached => (bytes, 0),
        Store::Streamed | Store::Unordered => parts(to, bytes, STREAM_UNIT),
    };
    copy(plain, 0, head)?;
    if units > 0 {
        copy(copy_stream, head, units)?;
    }
    copy(plain, head + units, bytes - head - units)?;
    if units > 0 && store == Store::Streamed {
        order();
    }
    Ok(())
}

/// Has a routine copy bytes, of which what begins at `shared` is shared.
///
/// # Safety
///
/// As [`copy_much`], and `to` and `bytes` are what `routine` wants.
#[inline]
unsafe fn part_by(
    routine: Routine,
    (to, from): (*mut u8, *const u8),
    bytes: usize,
    shared: [*mut u8; 2],
) -> Result<(), Gone> {
    // SAFETY: as the caller promises.
    outcome(unsafe { routine(to, from, bytes, shared[0].addr(), shared[1].addr()) })
}

/// How many bytes come before the first line of a target, and how many then are whole units.
fn parts(to: *mut u8, bytes: usize, unit: usize) -> (usize, usize) {
    let head = to.align_offset(LINE).min(bytes);
    (head, (bytes - head) / unit * unit)
}

#[inline]
fn outcome(gone: usize) -> Result<(), Gone> {
    if gone == 0 { Ok(()) } else { Err(Gone { addr: gone }) }
}

impl Shared {
    /// Whether the page of `addr` is one of those that the ranges touch.
    fn touches_page_of(&self, addr: usize) -> bool {
        let page = addr & !(page_bytes() - 1);
        let page_end = page.saturating_add(page_bytes());
        let touches = |start: usize| page < start.saturating_add(self.bytes) && page_end > start;
        self.bytes > 0 && self.starts.into_iter().any(|start| start != 0 && touches(start))
    }
}

/// Whether the processor says that its string instructions are the fastest way.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn has_fast_strings() -> bool {
    std::arch::is_x86_feature_detected!("ermsb")
}

/// Whether the string routine is another than the one of vectors.
#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
const fn has_fast_strings() -> bool {
    false
}

#[cfg(all(test, any(target_arch = "x86", target_arch = "x86_64")))]
mod stepped;
#[cfg(test)]
mod tests;

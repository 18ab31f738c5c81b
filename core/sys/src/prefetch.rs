//! Telling the processor what is about to be written, so that it fetches that while it does other
//! things: it waits for what it has not stored yet before each locked instruction, and so for one
//! line of memory after the other.
//!
//! # Invariants
//!
//! 1. Nothing is touched: any address will do, and a page that is gone raises no signal.

/// The bytes that processors fetch at once.
const LINE: usize = 64;

/// From the next line on a processor sees by itself where a copy is going.
const LINES: usize = 4;

/// Some bytes are about to be written. Of many, the first and the last will do.
#[inline]
pub fn for_write(start: *const u8, bytes: usize) {
    fetch(start);
    let last = start.wrapping_add(bytes.saturating_sub(1));
    if (start.addr() ^ last.addr()) >= LINE {
        fetch(last);
        for offset in (1..LINES).map(|line| line * LINE).take_while(|&offset| offset < bytes) {
            fetch(start.wrapping_add(offset));
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
fn fetch(line: *const u8) {
    // SAFETY: a hint. Processors of this kind that do not take it ignore the instruction.
    unsafe {
        std::arch::asm!(
            "prefetchw byte ptr [{}]",
            in(reg) line,
            options(readonly, nostack, preserves_flags)
        );
    }
}

#[cfg(target_arch = "x86")]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
fn fetch(line: *const u8) {
    use std::arch::x86::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a hint, which all processors have that this is compiled for. That for a write some
    // of them have not.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
fn fetch(line: *const u8) {
    // SAFETY: a hint, which every processor of this kind has.
    unsafe {
        std::arch::asm!(
            "prfm pstl1keep, [{}]",
            in(reg) line,
            options(readonly, nostack, preserves_flags)
        );
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn fetch(_line: *const u8) {}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;
    use crate::map::page_bytes;

    #[test]
    fn any_address_will_do() {
        for start in [ptr::null(), ptr::without_provenance(usize::MAX), ptr::dangling()] {
            for bytes in [0, 1, LINE, LINE + 1, LINES * LINE, page_bytes(), usize::MAX] {
                for_write(start, bytes);
            }
        }
    }
}

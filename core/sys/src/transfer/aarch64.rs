//! The routines for 64-bit ARM, which has no stores past the caches that would pay here: the
//! streaming ones are the others.
//!
//! ```text
//!   arguments   x0 to, x1 from (or the byte), x2 bytes, x3 and x4 what is shared
//!   kept        x2, x3, x4
//!   result      x0: 0, or the address that is gone
//! ```

use std::arch::global_asm;
use std::ffi::c_void;

use super::Shared;

global_asm!(
    ".pushsection .text.dmce_sys_transfer, \"ax\", @progbits",
    ".globl dmce_sys_transfer_begin",
    ".hidden dmce_sys_transfer_begin",
    "dmce_sys_transfer_begin:",
    //
    ".balign 64",
    ".globl dmce_sys_transfer_copy",
    ".hidden dmce_sys_transfer_copy",
    ".globl dmce_sys_transfer_string",
    ".hidden dmce_sys_transfer_string",
    ".globl dmce_sys_transfer_stream",
    ".hidden dmce_sys_transfer_stream",
    ".type dmce_sys_transfer_copy, @function",
    "dmce_sys_transfer_copy:",
    "dmce_sys_transfer_string:",
    "dmce_sys_transfer_stream:",
    ".cfi_startproc",
    "mov x5, x2",
    "2:",
    "cmp x5, 64",
    "b.lo 3f",
    "ldp q0, q1, [x1]",
    "ldp q2, q3, [x1, 32]",
    "stp q0, q1, [x0]",
    "stp q2, q3, [x0, 32]",
    "add x1, x1, 64",
    "add x0, x0, 64",
    "sub x5, x5, 64",
    "b 2b",
    "3:",
    "cmp x5, 8",
    "b.lo 4f",
    "ldr x6, [x1], 8",
    "str x6, [x0], 8",
    "sub x5, x5, 8",
    "b 3b",
    "4:",
    "tbz x5, 2, 5f",
    "ldr w6, [x1], 4",
    "str w6, [x0], 4",
    "5:",
    "tbz x5, 1, 6f",
    "ldrh w6, [x1], 2",
    "strh w6, [x0], 2",
    "6:",
    "tbz x5, 0, 7f",
    "ldrb w6, [x1]",
    "strb w6, [x0]",
    "7:",
    "mov x0, 0",
    "ret",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_fill",
    ".hidden dmce_sys_transfer_fill",
    ".globl dmce_sys_transfer_stream_fill",
    ".hidden dmce_sys_transfer_stream_fill",
    ".type dmce_sys_transfer_fill, @function",
    "dmce_sys_transfer_fill:",
    "dmce_sys_transfer_stream_fill:",
    ".cfi_startproc",
    "mov x5, x2",
    "dup v0.16b, w1",
    "2:",
    "cmp x5, 16",
    "b.lo 3f",
    "str q0, [x0], 16",
    "sub x5, x5, 16",
    "b 2b",
    "3:",
    "cbz x5, 4f",
    "strb w1, [x0], 1",
    "sub x5, x5, 1",
    "b 3b",
    "4:",
    "mov x0, 0",
    "ret",
    ".cfi_endproc",
    //
    // What is added or expected, and what is stored then, lie at x1; what was there goes there.
    ".balign 16",
    ".globl dmce_sys_transfer_exchange",
    ".hidden dmce_sys_transfer_exchange",
    ".type dmce_sys_transfer_exchange, @function",
    "dmce_sys_transfer_exchange:",
    ".cfi_startproc",
    "ldp x5, x6, [x1]",
    "2:",
    "ldaxr x7, [x0]",
    "cmp x7, x5",
    "b.ne 3f",
    "stlxr w8, x6, [x0]",
    "cbnz w8, 2b",
    "b 4f",
    "3:",
    "clrex",
    "4:",
    "dmb ish",
    "str x7, [x1]",
    "mov x0, 0",
    "ret",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_add",
    ".hidden dmce_sys_transfer_add",
    ".type dmce_sys_transfer_add, @function",
    "dmce_sys_transfer_add:",
    ".cfi_startproc",
    "ldr x5, [x1]",
    "2:",
    "ldaxr x7, [x0]",
    "add x6, x7, x5",
    "stlxr w8, x6, [x0]",
    "cbnz w8, 2b",
    "dmb ish",
    "str x7, [x1]",
    "mov x0, 0",
    "ret",
    ".cfi_endproc",
    //
    ".globl dmce_sys_transfer_end",
    ".hidden dmce_sys_transfer_end",
    "dmce_sys_transfer_end:",
    //
    // Here the handler lets a routine go on that met a page that is gone.
    ".globl dmce_sys_transfer_gone",
    ".hidden dmce_sys_transfer_gone",
    ".type dmce_sys_transfer_gone, @function",
    "dmce_sys_transfer_gone:",
    ".cfi_startproc",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

/// Copies bytes that are shared to where they are not.
///
/// # Safety
///
/// As [`super::load`].
#[inline]
pub(super) unsafe fn load(from: *const u8, to: *mut u8, bytes: usize) -> usize {
    // SAFETY: as the caller promises.
    unsafe { super::copy_vectors(to, from, bytes, from.addr(), 0) }
}

/// Copies bytes that are not shared to where they are.
///
/// # Safety
///
/// As [`super::store`].
#[inline]
pub(super) unsafe fn store(to: *mut u8, from: *const u8, bytes: usize) -> usize {
    // SAFETY: as the caller promises.
    unsafe { super::copy_vectors(to, from, bytes, to.addr(), 0) }
}

/// What a routine was doing when a signal interrupted it.
pub(super) struct Interrupted<'a>(&'a mut libc::ucontext_t);

#[expect(
    clippy::cast_possible_truncation,
    reason = "registers are as wide as pointers, and have no sign"
)]
impl Interrupted<'_> {
    /// # Safety
    ///
    /// `context` is what the kernel passed to the signal handler that is running.
    pub(super) unsafe fn new<'a>(context: *mut c_void) -> Interrupted<'a> {
        // SAFETY: as the caller promises; nobody else uses it while the handler runs.
        Interrupted(unsafe { &mut *context.cast() })
    }

    /// The instruction that was interrupted.
    pub(super) fn instruction(&self) -> usize {
        self.0.uc_mcontext.pc as usize
    }

    /// The shared ranges of the routine that was interrupted.
    ///
    /// # Safety
    ///
    /// The instruction is in one of the routines.
    pub(super) unsafe fn shared(&self) -> Shared {
        let [bytes, first, second] = [2, 3, 4].map(|index| self.0.uc_mcontext.regs[index] as usize);
        Shared { starts: [first, second], bytes }
    }

    /// Lets the routine return `addr` when the handler returns.
    pub(super) fn end_with(&mut self, addr: usize, landing: usize) {
        self.0.uc_mcontext.regs[0] = addr as u64;
        self.0.uc_mcontext.pc = landing as u64;
    }
}

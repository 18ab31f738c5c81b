//! The routines for x86-64.
//!
//! ```text
//!               load, store                       the others, by the rules of C
//!   arguments   rdx private, r8 shared,           rdi to, rsi from (or the byte),
//!               r10 bytes                         rdx bytes, rcx and r8 what is shared
//!   kept        all but rax, r9, xmm0 to xmm3     rdx, r8, r9 (= rcx)
//!   result      rax: 0, or the address that is gone
//! ```
//!
//! Those two are called by the shortest functions there are, which get by with what C leaves them:
//! they save no register for a call that changes so few.

use std::arch::{asm, global_asm};
use std::ffi::c_void;

use super::Shared;

global_asm!(
    ".pushsection .text.dmce_sys_transfer, \"ax\", @progbits",
    ".globl dmce_sys_transfer_begin",
    ".hidden dmce_sys_transfer_begin",
    "dmce_sys_transfer_begin:",
    //
    // Up to 16 bytes at once if they are a power of two, else by halves that overlap; up to 64 by
    // vectors from both ends; more by lines of 64, the last of which ends where the range ends.
    ".macro dmce_sys_transfer_copying to, from, bytes, other, other4, other1",
    "cmp \\bytes, 16",
    "jb 3f",
    "movups xmm0, [\\from]",
    "je 22f",
    "movups xmm1, [\\from + \\bytes - 16]",
    "cmp \\bytes, 32",
    "jbe 2f",
    "cmp \\bytes, 64",
    "ja 6f",
    "movups xmm2, [\\from + 16]",
    "movups xmm3, [\\from + \\bytes - 32]",
    "movups [\\to + 16], xmm2",
    "movups [\\to + \\bytes - 32], xmm3",
    "2:",
    "movups [\\to + \\bytes - 16], xmm1",
    "22:",
    "movups [\\to], xmm0",
    "xor eax, eax",
    "ret",
    "3:",
    "cmp \\bytes, 8",
    "jb 4f",
    "mov rax, [\\from]",
    "je 23f",
    "mov \\other, [\\from + \\bytes - 8]",
    "mov [\\to + \\bytes - 8], \\other",
    "23:",
    "mov [\\to], rax",
    "xor eax, eax",
    "ret",
    "4:",
    "cmp \\bytes, 4",
    "jb 5f",
    "mov eax, [\\from]",
    "je 24f",
    "mov \\other4, [\\from + \\bytes - 4]",
    "mov [\\to + \\bytes - 4], \\other4",
    "24:",
    "mov [\\to], eax",
    "xor eax, eax",
    "ret",
    "5:",
    "cmp \\bytes, 1",
    "jb 7f",
    "je 8f",
    "cmp \\bytes, 2",
    "movzx eax, word ptr [\\from]",
    "je 25f",
    "movzx \\other4, byte ptr [\\from + 2]",
    "mov [\\to + 2], \\other1",
    "25:",
    "mov [\\to], ax",
    "jmp 7f",
    "8:",
    "movzx eax, byte ptr [\\from]",
    "mov [\\to], al",
    "7:",
    "xor eax, eax",
    "ret",
    "6:",
    "lea \\other, [\\bytes - 64]",
    "xor eax, eax",
    "9:",
    "movups xmm0, [\\from + rax]",
    "movups xmm1, [\\from + rax + 16]",
    "movups xmm2, [\\from + rax + 32]",
    "movups xmm3, [\\from + rax + 48]",
    "movups [\\to + rax], xmm0",
    "movups [\\to + rax + 16], xmm1",
    "movups [\\to + rax + 32], xmm2",
    "movups [\\to + rax + 48], xmm3",
    "add rax, 64",
    "cmp rax, \\other",
    "jb 9b",
    "movups xmm0, [\\from + \\other]",
    "movups xmm1, [\\from + \\other + 16]",
    "movups xmm2, [\\from + \\other + 32]",
    "movups xmm3, [\\from + \\other + 48]",
    "movups [\\to + \\other], xmm0",
    "movups [\\to + \\other + 16], xmm1",
    "movups [\\to + \\other + 32], xmm2",
    "movups [\\to + \\other + 48], xmm3",
    "xor eax, eax",
    "ret",
    ".endm",
    //
    // From what is shared to what is not.
    ".balign 64",
    ".globl dmce_sys_transfer_load",
    ".hidden dmce_sys_transfer_load",
    ".type dmce_sys_transfer_load, @function",
    "dmce_sys_transfer_load:",
    ".cfi_startproc",
    "dmce_sys_transfer_copying rdx, r8, r10, r9, r9d, r9b",
    ".cfi_endproc",
    //
    // The other way round.
    ".balign 64",
    ".globl dmce_sys_transfer_store",
    ".hidden dmce_sys_transfer_store",
    ".type dmce_sys_transfer_store, @function",
    "dmce_sys_transfer_store:",
    ".cfi_startproc",
    "dmce_sys_transfer_copying r8, rdx, r10, r9, r9d, r9b",
    ".cfi_endproc",
    //
    ".globl dmce_sys_transfer_general",
    ".hidden dmce_sys_transfer_general",
    "dmce_sys_transfer_general:",
    //
    ".balign 64",
    ".globl dmce_sys_transfer_copy",
    ".hidden dmce_sys_transfer_copy",
    ".type dmce_sys_transfer_copy, @function",
    "dmce_sys_transfer_copy:",
    ".cfi_startproc",
    "mov r9, rcx",
    "dmce_sys_transfer_copying rdi, rsi, rdx, rcx, ecx, cl",
    ".cfi_endproc",
    ".purgem dmce_sys_transfer_copying",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_string",
    ".hidden dmce_sys_transfer_string",
    ".type dmce_sys_transfer_string, @function",
    "dmce_sys_transfer_string:",
    ".cfi_startproc",
    "mov r9, rcx",
    "mov rcx, rdx",
    "rep movsb",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    //
    // A line of each of four pages in turn.
    ".balign 64",
    ".globl dmce_sys_transfer_stream",
    ".hidden dmce_sys_transfer_stream",
    ".type dmce_sys_transfer_stream, @function",
    "dmce_sys_transfer_stream:",
    ".cfi_startproc",
    "mov r9, rcx",
    "lea r10, [rsi + rdx]",
    "2:",
    "lea r11, [rsi + 4096]",
    "3:",
    ".set page, 0",
    ".rept 4",
    "prefetcht0 [rsi + page + 128]",
    "movups xmm0, [rsi + page]",
    "movups xmm1, [rsi + page + 16]",
    "movups xmm2, [rsi + page + 32]",
    "movups xmm3, [rsi + page + 48]",
    "movntdq [rdi + page], xmm0",
    "movntdq [rdi + page + 16], xmm1",
    "movntdq [rdi + page + 32], xmm2",
    "movntdq [rdi + page + 48], xmm3",
    ".set page, page + 4096",
    ".endr",
    "add rsi, 64",
    "add rdi, 64",
    "cmp rsi, r11",
    "jb 3b",
    "add rsi, 12288",
    "add rdi, 12288",
    "cmp rsi, r10",
    "jb 2b",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_fill",
    ".hidden dmce_sys_transfer_fill",
    ".type dmce_sys_transfer_fill, @function",
    "dmce_sys_transfer_fill:",
    ".cfi_startproc",
    "mov r9, rcx",
    "mov rcx, rdx",
    "mov eax, esi",
    "rep stosb",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_stream_fill",
    ".hidden dmce_sys_transfer_stream_fill",
    ".type dmce_sys_transfer_stream_fill, @function",
    "dmce_sys_transfer_stream_fill:",
    ".cfi_startproc",
    "mov r9, rcx",
    "movzx eax, sil",
    "imul eax, eax, 0x01010101",
    "movd xmm0, eax",
    "pshufd xmm0, xmm0, 0",
    "xor eax, eax",
    "2:",
    "movntdq [rdi + rax], xmm0",
    "movntdq [rdi + rax + 16], xmm0",
    "movntdq [rdi + rax + 32], xmm0",
    "movntdq [rdi + rax + 48], xmm0",
    "add rax, 64",
    "cmp rax, rdx",
    "jb 2b",
    "sfence",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    //
    // What is added or expected, and what is stored then, lie at rsi; what was there goes there.
    ".balign 16",
    ".globl dmce_sys_transfer_exchange",
    ".hidden dmce_sys_transfer_exchange",
    ".type dmce_sys_transfer_exchange, @function",
    "dmce_sys_transfer_exchange:",
    ".cfi_startproc",
    "mov r9, rcx",
    "mov rax, [rsi]",
    "mov r10, [rsi + 8]",
    "lock cmpxchg [rdi], r10",
    "mov [rsi], rax",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_add",
    ".hidden dmce_sys_transfer_add",
    ".type dmce_sys_transfer_add, @function",
    "dmce_sys_transfer_add:",
    ".cfi_startproc",
    "mov r9, rcx",
    "mov rax, [rsi]",
    "lock xadd [rdi], rax",
    "mov [rsi], rax",
    "xor eax, eax",
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
    "sfence",
    "ret",
    ".cfi_endproc",
    ".popsection",
);

/// Calls `load` or `store`. It changes few registers, which the compiler does not know of a call by
/// the rules of C: what is short then saves none for it.
macro_rules! call {
    ($routine:ident, $private:expr, $shared:expr, $bytes:expr) => {{
        let gone;
        asm!(
            "call {routine}",
            routine = sym $routine,
            in("rdx") $private,
            in("r8") $shared,
            in("r10") $bytes,
            lateout("rax") gone,
            lateout("r9") _,
            lateout("xmm0") _,
            lateout("xmm1") _,
            lateout("xmm2") _,
            lateout("xmm3") _,
        );
        gone
    }};
}

/// Copies bytes that are shared to where they are not.
///
/// # Safety
///
/// As [`super::load`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
pub(super) unsafe fn load(from: *const u8, to: *mut u8, bytes: usize) -> usize {
    // SAFETY: the routine is the one above, with its arguments where it has them; all that it
    // changes is named, and where it may be interrupted, too.
    unsafe { call!(load_routine, to, from, bytes) }
}

/// Copies bytes that are not shared to where they are.
///
/// # Safety
///
/// As [`super::store`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
pub(super) unsafe fn store(to: *mut u8, from: *const u8, bytes: usize) -> usize {
    // SAFETY: as in `load`.
    unsafe { call!(store_routine, from, to, bytes) }
}

unsafe extern "C" {
    /// Not by the rules of C: see above.
    #[link_name = "dmce_sys_transfer_load"]
    fn load_routine();
    /// As that.
    #[link_name = "dmce_sys_transfer_store"]
    fn store_routine();
    /// Where the routines begin that are called by the rules of C.
    #[link_name = "dmce_sys_transfer_general"]
    static GENERAL: u8;
}

/// What a routine was doing when a signal interrupted it.
pub(super) struct Interrupted<'a>(&'a mut libc::ucontext_t);

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
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
        self.register(libc::REG_RIP)
    }

    /// The shared ranges of the routine that was interrupted.
    ///
    /// # Safety
    ///
    /// The instruction is in one of the routines.
    pub(super) unsafe fn shared(&self) -> Shared {
        let first = self.register(libc::REG_R8);
        if self.instruction() < (&raw const GENERAL).addr() {
            return Shared { starts: [first, 0], bytes: self.register(libc::REG_R10) };
        }
        let starts = [self.register(libc::REG_R9), first];
        Shared { starts, bytes: self.register(libc::REG_RDX) }
    }

    /// Lets the routine return `addr` when the handler returns.
    pub(super) fn end_with(&mut self, addr: usize, landing: usize) {
        self.0.uc_mcontext.gregs[libc::REG_RAX as usize] = addr as libc::greg_t;
        self.0.uc_mcontext.gregs[libc::REG_RIP as usize] = landing as libc::greg_t;
    }

    fn register(&self, index: libc::c_int) -> usize {
        self.0.uc_mcontext.gregs[index as usize] as usize
    }
}

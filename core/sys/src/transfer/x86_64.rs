//! The routines for x86-64.
//!
//! ```text
//!   arguments   rdi to, rsi from (or the byte), rdx bytes, rcx and r8 what is shared
//!   kept        rdx, r8, r9 (= rcx)
//!   result      rax: 0, or the address that is gone
//! ```

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
    ".balign 64",
    ".globl dmce_sys_transfer_copy",
    ".hidden dmce_sys_transfer_copy",
    ".type dmce_sys_transfer_copy, @function",
    "dmce_sys_transfer_copy:",
    ".cfi_startproc",
    "mov r9, rcx",
    "cmp rdx, 16",
    "jb 3f",
    "movups xmm0, [rsi]",
    "je 22f",
    "movups xmm1, [rsi + rdx - 16]",
    "cmp rdx, 32",
    "jbe 2f",
    "cmp rdx, 64",
    "ja 6f",
    "movups xmm2, [rsi + 16]",
    "movups xmm3, [rsi + rdx - 32]",
    "movups [rdi + 16], xmm2",
    "movups [rdi + rdx - 32], xmm3",
    "2:",
    "movups [rdi + rdx - 16], xmm1",
    "22:",
    "movups [rdi], xmm0",
    "xor eax, eax",
    "ret",
    "3:",
    "cmp edx, 8",
    "jb 4f",
    "mov rax, [rsi]",
    "je 23f",
    "mov rcx, [rsi + rdx - 8]",
    "mov [rdi + rdx - 8], rcx",
    "23:",
    "mov [rdi], rax",
    "xor eax, eax",
    "ret",
    "4:",
    "cmp edx, 4",
    "jb 5f",
    "mov eax, [rsi]",
    "je 24f",
    "mov ecx, [rsi + rdx - 4]",
    "mov [rdi + rdx - 4], ecx",
    "24:",
    "mov [rdi], eax",
    "xor eax, eax",
    "ret",
    "5:",
    "test edx, edx",
    "jz 7f",
    "cmp edx, 2",
    "jb 8f",
    "movzx eax, word ptr [rsi]",
    "je 25f",
    "movzx ecx, byte ptr [rsi + 2]",
    "mov [rdi + 2], cl",
    "25:",
    "mov [rdi], ax",
    "jmp 7f",
    "8:",
    "movzx eax, byte ptr [rsi]",
    "mov [rdi], al",
    "7:",
    "xor eax, eax",
    "ret",
    "6:",
    "lea rcx, [rdx - 64]",
    "xor eax, eax",
    "9:",
    "movups xmm0, [rsi + rax]",
    "movups xmm1, [rsi + rax + 16]",
    "movups xmm2, [rsi + rax + 32]",
    "movups xmm3, [rsi + rax + 48]",
    "movups [rdi + rax], xmm0",
    "movups [rdi + rax + 16], xmm1",
    "movups [rdi + rax + 32], xmm2",
    "movups [rdi + rax + 48], xmm3",
    "add rax, 64",
    "cmp rax, rcx",
    "jb 9b",
    "movups xmm0, [rsi + rcx]",
    "movups xmm1, [rsi + rcx + 16]",
    "movups xmm2, [rsi + rcx + 32]",
    "movups xmm3, [rsi + rcx + 48]",
    "movups [rdi + rcx], xmm0",
    "movups [rdi + rcx + 16], xmm1",
    "movups [rdi + rcx + 32], xmm2",
    "movups [rdi + rcx + 48], xmm3",
    "xor eax, eax",
    "ret",
    ".cfi_endproc",
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
    "sfence",
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

/// Calls the routine that copies any bytes. It changes few registers, which the compiler does not
/// know of a call by the rules of C: what is short then saves none for it.
///
/// # Safety
///
/// As [`super::copy_any`].
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
pub(super) unsafe fn copy_vectors(
    (to, from): (*mut u8, *const u8),
    bytes: usize,
    shared: [*mut u8; 2],
) -> usize {
    let gone;
    // SAFETY: the routine is the one above, with its arguments where it has them; all that it
    // changes is named, and where it may be interrupted, too.
    unsafe {
        asm!(
            "call {routine}",
            routine = sym super::copy_vectors,
            in("rdi") to,
            in("rsi") from,
            in("rdx") bytes,
            inlateout("rcx") shared[0] => _,
            in("r8") shared[1],
            lateout("rax") gone,
            lateout("r9") _,
            lateout("xmm0") _,
            lateout("xmm1") _,
            lateout("xmm2") _,
            lateout("xmm3") _,
        );
    }
    gone
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
        let starts = [self.register(libc::REG_R9), self.register(libc::REG_R8)];
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

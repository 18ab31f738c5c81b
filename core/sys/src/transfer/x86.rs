//! The routines for 32-bit x86 with SSE2.
//!
//! ```text
//!   arguments   on the stack: to, from (or the byte), bytes, and twice what is shared
//!   kept        esp: four registers and the return address below the arguments
//!   result      eax: 0, or the address that is gone
//! ```

use std::arch::global_asm;
use std::ffi::c_void;
use std::ptr;

use super::Shared;

global_asm!(
    ".pushsection .text.dmce_sys_transfer, \"ax\", @progbits",
    //
    // The registers that a caller keeps, and the arguments.
    ".macro dmce_sys_transfer_enter",
    "push ebp",
    "push ebx",
    "push esi",
    "push edi",
    ".cfi_adjust_cfa_offset 16",
    "mov edi, [esp + 20]",
    "mov esi, [esp + 24]",
    "mov edx, [esp + 28]",
    ".endm",
    ".macro dmce_sys_transfer_leave",
    "pop edi",
    "pop esi",
    "pop ebx",
    "pop ebp",
    ".cfi_adjust_cfa_offset -16",
    "ret",
    ".cfi_adjust_cfa_offset 16",
    ".endm",
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
    "dmce_sys_transfer_enter",
    "cmp edx, 16",
    "jb 3f",
    "movups xmm0, [esi]",
    "je 22f",
    "movups xmm1, [esi + edx - 16]",
    "cmp edx, 32",
    "jbe 2f",
    "cmp edx, 64",
    "ja 6f",
    "movups xmm2, [esi + 16]",
    "movups xmm3, [esi + edx - 32]",
    "movups [edi + 16], xmm2",
    "movups [edi + edx - 32], xmm3",
    "2:",
    "movups [edi + edx - 16], xmm1",
    "22:",
    "movups [edi], xmm0",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    "3:",
    "cmp edx, 8",
    "jb 4f",
    "movq xmm0, qword ptr [esi]",
    "je 23f",
    "movq xmm1, qword ptr [esi + edx - 8]",
    "movq qword ptr [edi + edx - 8], xmm1",
    "23:",
    "movq qword ptr [edi], xmm0",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    "4:",
    "cmp edx, 4",
    "jb 5f",
    "mov eax, [esi]",
    "je 24f",
    "mov ecx, [esi + edx - 4]",
    "mov [edi + edx - 4], ecx",
    "24:",
    "mov [edi], eax",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    "5:",
    "test edx, edx",
    "jz 7f",
    "cmp edx, 2",
    "jb 8f",
    "movzx eax, word ptr [esi]",
    "je 25f",
    "movzx ecx, byte ptr [esi + 2]",
    "mov [edi + 2], cl",
    "25:",
    "mov [edi], ax",
    "jmp 7f",
    "8:",
    "movzx eax, byte ptr [esi]",
    "mov [edi], al",
    "7:",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    "6:",
    "lea ecx, [edx - 64]",
    "xor eax, eax",
    "9:",
    "movups xmm0, [esi + eax]",
    "movups xmm1, [esi + eax + 16]",
    "movups xmm2, [esi + eax + 32]",
    "movups xmm3, [esi + eax + 48]",
    "movups [edi + eax], xmm0",
    "movups [edi + eax + 16], xmm1",
    "movups [edi + eax + 32], xmm2",
    "movups [edi + eax + 48], xmm3",
    "add eax, 64",
    "cmp eax, ecx",
    "jb 9b",
    "movups xmm0, [esi + ecx]",
    "movups xmm1, [esi + ecx + 16]",
    "movups xmm2, [esi + ecx + 32]",
    "movups xmm3, [esi + ecx + 48]",
    "movups [edi + ecx], xmm0",
    "movups [edi + ecx + 16], xmm1",
    "movups [edi + ecx + 32], xmm2",
    "movups [edi + ecx + 48], xmm3",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_string",
    ".hidden dmce_sys_transfer_string",
    ".type dmce_sys_transfer_string, @function",
    "dmce_sys_transfer_string:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "mov ecx, edx",
    "rep movsb",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    // A line of each of four pages in turn.
    ".balign 64",
    ".globl dmce_sys_transfer_stream",
    ".hidden dmce_sys_transfer_stream",
    ".type dmce_sys_transfer_stream, @function",
    "dmce_sys_transfer_stream:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "lea ebx, [esi + edx]",
    "2:",
    "lea ebp, [esi + 4096]",
    "3:",
    ".set page, 0",
    ".rept 4",
    "prefetcht0 [esi + page + 128]",
    "movups xmm0, [esi + page]",
    "movups xmm1, [esi + page + 16]",
    "movups xmm2, [esi + page + 32]",
    "movups xmm3, [esi + page + 48]",
    "movntdq [edi + page], xmm0",
    "movntdq [edi + page + 16], xmm1",
    "movntdq [edi + page + 32], xmm2",
    "movntdq [edi + page + 48], xmm3",
    ".set page, page + 4096",
    ".endr",
    "add esi, 64",
    "add edi, 64",
    "cmp esi, ebp",
    "jb 3b",
    "add esi, 12288",
    "add edi, 12288",
    "cmp esi, ebx",
    "jb 2b",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_fill",
    ".hidden dmce_sys_transfer_fill",
    ".type dmce_sys_transfer_fill, @function",
    "dmce_sys_transfer_fill:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "mov ecx, edx",
    "mov eax, esi",
    "rep stosb",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    ".balign 16",
    ".globl dmce_sys_transfer_stream_fill",
    ".hidden dmce_sys_transfer_stream_fill",
    ".type dmce_sys_transfer_stream_fill, @function",
    "dmce_sys_transfer_stream_fill:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "movzx eax, byte ptr [esp + 24]",
    "imul eax, eax, 0x01010101",
    "movd xmm0, eax",
    "pshufd xmm0, xmm0, 0",
    "xor eax, eax",
    "2:",
    "movntdq [edi + eax], xmm0",
    "movntdq [edi + eax + 16], xmm0",
    "movntdq [edi + eax + 32], xmm0",
    "movntdq [edi + eax + 48], xmm0",
    "add eax, 64",
    "cmp eax, edx",
    "jb 2b",
    "sfence",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    // What is added or expected, and what is stored then, lie at esi; what was there goes there.
    ".balign 16",
    ".globl dmce_sys_transfer_exchange",
    ".hidden dmce_sys_transfer_exchange",
    ".type dmce_sys_transfer_exchange, @function",
    "dmce_sys_transfer_exchange:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "mov eax, [esi]",
    "mov edx, [esi + 4]",
    "mov ebx, [esi + 8]",
    "mov ecx, [esi + 12]",
    "lock cmpxchg8b [edi]",
    "mov [esi], eax",
    "mov [esi + 4], edx",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    //
    // The first look may be torn: then the exchange fails, and what it saw is whole.
    ".balign 16",
    ".globl dmce_sys_transfer_add",
    ".hidden dmce_sys_transfer_add",
    ".type dmce_sys_transfer_add, @function",
    "dmce_sys_transfer_add:",
    ".cfi_startproc",
    "dmce_sys_transfer_enter",
    "mov eax, [edi]",
    "mov edx, [edi + 4]",
    "2:",
    "mov ebx, eax",
    "mov ecx, edx",
    "add ebx, [esi]",
    "adc ecx, [esi + 4]",
    "lock cmpxchg8b [edi]",
    "jne 2b",
    "mov [esi], eax",
    "mov [esi + 4], edx",
    "xor eax, eax",
    "dmce_sys_transfer_leave",
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
    ".cfi_adjust_cfa_offset 16",
    "sfence",
    "dmce_sys_transfer_leave",
    ".cfi_endproc",
    ".purgem dmce_sys_transfer_enter",
    ".purgem dmce_sys_transfer_leave",
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
        self.register(libc::REG_EIP)
    }

    /// The shared ranges of the routine that was interrupted.
    ///
    /// # Safety
    ///
    /// The instruction is in one of the routines.
    pub(super) unsafe fn shared(&self) -> Shared {
        // Below are the four registers, the return address, and the first two arguments.
        let stack = ptr::with_exposed_provenance::<usize>(self.register(libc::REG_ESP));
        let arguments = stack.wrapping_add(7);
        // SAFETY: the routines leave the stack pointer alone where they touch memory, so that the
        // arguments are where they were passed.
        let [bytes, first, second] = unsafe { arguments.cast::<[usize; 3]>().read() };
        Shared { starts: [first, second], bytes }
    }

    /// Lets the routine return `addr` when the handler returns.
    pub(super) fn end_with(&mut self, addr: usize, landing: usize) {
        self.0.uc_mcontext.gregs[libc::REG_EAX as usize] = addr as libc::greg_t;
        self.0.uc_mcontext.gregs[libc::REG_EIP as usize] = landing as libc::greg_t;
    }

    fn register(&self, index: libc::c_int) -> usize {
        self.0.uc_mcontext.gregs[index as usize] as usize
    }
}

//! How many stores a transfer is: the thread is stepped through it, instruction by instruction.

use std::arch::asm;
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::*;
use crate::testing::lend;

/// What is found after each instruction where it did not store.
const UNTOUCHED: u8 = 0xee;
const BYTES_MAX: usize = 64;

static TARGET: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static BYTES: AtomicUsize = AtomicUsize::new(0);
/// Instructions that stored.
static STORES: AtomicU32 = AtomicU32::new(0);
/// The same for each byte.
static STORES_OF: [AtomicU32; BYTES_MAX] = [const { AtomicU32::new(0) }; BYTES_MAX];

/// Counts what the last instruction stored, and wipes it out.
extern "C" fn on_step(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    let mut has_stored = false;
    for (place, stores) in STORES_OF.iter().enumerate().take(BYTES.load(Relaxed)) {
        let byte = TARGET.load(Relaxed).wrapping_add(place);
        // SAFETY: a byte of the target, which is mapped while it is stepped through.
        if unsafe { byte.read_volatile() } != UNTOUCHED {
            // SAFETY: as above.
            unsafe { byte.write_volatile(UNTOUCHED) };
            stores.fetch_add(1, Relaxed);
            has_stored = true;
        }
    }
    STORES.fetch_add(has_stored.into(), Relaxed);
}

/// Has this thread trap after each instruction, or not any more.
fn step(on: bool) {
    const TRAP: usize = 0x100;
    let (flag, kept) = (if on { TRAP } else { 0 }, !TRAP);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: changes the trap flag alone; the handler is installed.
    unsafe {
        asm!("pushfq", "and [rsp], {kept}", "or [rsp], {flag}", "popfq",
            flag = in(reg) flag, kept = in(reg) kept);
    }
    #[cfg(target_arch = "x86")]
    // SAFETY: as above.
    unsafe {
        asm!("pushfd", "and [esp], {kept}", "or [esp], {flag}", "popfd",
            flag = in(reg) flag, kept = in(reg) kept);
    }
}

/// Installs the handler, for one test at a time, with nothing that it looks at.
fn install_handler() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    BYTES.store(0, Relaxed);
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: all zeros is a valid action with an empty mask.
    let action = unsafe { action.assume_init_mut() };
    action.sa_sigaction = on_step as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO;
    // SAFETY: the handler fits the flags and touches atomics and the target alone.
    assert_eq!(unsafe { libc::sigaction(libc::SIGTRAP, action, std::ptr::null_mut()) }, 0);
    one
}

#[test]
fn an_aligned_access_of_a_power_of_two_stores_no_byte_twice() {
    let _one = install_handler();
    let lent = lend(1, UNTOUCHED);
    let data = [0x5a; BYTES_MAX];
    TARGET.store(lent.mapping.as_ptr(), Relaxed);
    for bytes in [1, 2, 4, 8, 16, 32, 64] {
        let range = lent.mapping.range(0, bytes as u64).unwrap();
        BYTES.store(bytes, Relaxed);
        STORES.store(0, Relaxed);
        for stores in &STORES_OF {
            stores.store(0, Relaxed);
        }
        step(true);
        // SAFETY: the data is ours and as long, the range is mapped writable.
        let stored = unsafe { store(range, data.as_ptr(), Store::Cached) };
        step(false);
        assert_eq!(stored, Ok(()));
        let of_each: Vec<u32> = STORES_OF.iter().map(|stores| stores.load(Relaxed)).collect();
        assert_eq!(of_each[..bytes], vec![1; bytes], "{bytes} bytes");
        assert_eq!(STORES.load(Relaxed) as usize, bytes.div_ceil(16), "{bytes} bytes");
    }
}

#[test]
fn a_routine_that_is_stepped_through_ends_where_a_page_is_gone() {
    let _one = install_handler();
    crate::fault::install().unwrap();
    let lent = lend(1, UNTOUCHED);
    lent.keep_pages(0);
    let (data, range) = ([0x5a; BYTES_MAX], lent.mapping.range(0, 64).unwrap());
    step(true);
    // SAFETY: the data is ours and as long, the range is mapped writable.
    let stored = unsafe { store(range, data.as_ptr(), Store::Cached) };
    step(false);
    let Err(Gone { addr }) = stored else { panic!("{stored:?}") };
    assert!((range.as_ptr().addr()..range.as_ptr().addr() + 64).contains(&addr));
}

//! The number that the processor holds for the running thread.

/// What tells the running threads of this process apart, in one instruction; a thread that is
/// started later may have that of one that has ended. `None` where no instruction tells it.
///
/// It is the thread pointer, by which compilers find what is a thread's own. A shared library finds
/// its thread-locals by calling the loader; this it may read by itself.
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
#[must_use]
pub fn pointer() -> Option<usize> {
    own_pointer()
}

#[cfg(all(target_arch = "x86_64", target_pointer_width = "64"))]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
#[expect(clippy::unnecessary_wraps, reason = "other processors have none")]
fn own_pointer() -> Option<usize> {
    let pointer: usize;
    // SAFETY: the ABI of thread-local storage for this processor has the thread pointer there, in
    // every thread, for all of its life.
    unsafe {
        std::arch::asm!(
            "mov {}, qword ptr fs:[0]",
            out(reg) pointer,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    Some(pointer)
}

#[cfg(target_arch = "x86")]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
#[expect(clippy::unnecessary_wraps, reason = "other processors have none")]
fn own_pointer() -> Option<usize> {
    let pointer: usize;
    // SAFETY: as for 64 bits.
    unsafe {
        std::arch::asm!(
            "mov {}, dword ptr gs:[0]",
            out(reg) pointer,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    Some(pointer)
}

#[cfg(target_arch = "aarch64")]
#[inline(always)]
#[expect(clippy::inline_always, reason = "it is one instruction")]
#[expect(clippy::unnecessary_wraps, reason = "other processors have none")]
fn own_pointer() -> Option<usize> {
    let pointer: usize;
    // SAFETY: the register that the ABI of thread-local storage has the thread pointer in; programs
    // may read it.
    unsafe {
        std::arch::asm!(
            "mrs {}, tpidr_el0",
            out(reg) pointer,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    Some(pointer)
}

#[cfg(not(any(
    all(target_arch = "x86_64", target_pointer_width = "64"),
    target_arch = "x86",
    target_arch = "aarch64"
)))]
fn own_pointer() -> Option<usize> {
    None
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    #[test]
    fn running_threads_have_numbers_of_their_own_and_keep_them() {
        let all_in = Barrier::new(16);
        let numbers: BTreeSet<Option<usize>> = thread::scope(|scope| {
            let number = || {
                let number = pointer();
                all_in.wait();
                assert_eq!(pointer(), number);
                all_in.wait();
                number
            };
            let threads: Vec<_> = (0..16).map(|_| scope.spawn(number)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let tells_them_apart = !numbers.contains(&None);
        assert!(!tells_them_apart || numbers.len() == 16);
        assert!(numbers.iter().flatten().all(|&number| number > 1));
    }
}

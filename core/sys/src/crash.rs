//! A death after any step, or at a point with a name: debug builds end themselves where a test
//! wants them to.
//!
//! A *step* is what others can find after a death: a change of a shared memory object or of its
//! name, or a frame that was sent. With `DMCE_CRASH_AFTER=N` a process kills itself (`SIGKILL`)
//! right after its step N. A test that does this for N = 1, 2, .. has seen a death between any two
//! steps. What lies between two stores to a mapping has points instead ([`Point`]).
//!
//! Release builds know nothing of either.

mod points;

pub use points::{POINT_VARIABLE, Point, point};

/// Where a debug build reads after which step it ends.
pub const VARIABLE: &str = "DMCE_CRASH_AFTER";

/// A step was taken.
#[inline]
pub(crate) fn step() {
    #[cfg(debug_assertions)]
    counted::step();
}

/// Kills this process.
#[cfg(debug_assertions)]
fn end_by_signal() -> ! {
    let own = rustix::process::getpid();
    while rustix::process::kill_process(own, rustix::process::Signal::KILL).is_err() {}
    // The signal is on its way to every thread, this one included.
    loop {
        std::thread::park();
    }
}

#[cfg(debug_assertions)]
mod counted {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::VARIABLE;

    static TAKEN: AtomicU64 = AtomicU64::new(0);
    static LAST: OnceLock<u64> = OnceLock::new();

    pub(super) fn step() {
        let last = *LAST.get_or_init(|| {
            let text = std::env::var(VARIABLE).unwrap_or_default();
            text.parse().unwrap_or(u64::MAX)
        });
        if TAKEN.fetch_add(1, Ordering::Relaxed) + 1 == last {
            super::end_by_signal();
        }
    }
}

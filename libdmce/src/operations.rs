//! The operations of this process that are in flight, for those who take something from under them.
//!
//! ```text
//!   unpublish -> look at the marks -> .. -> all of them have changed: nobody uses it any more
//! ```
//!
//! # Invariants
//!
//! 1. An operation that begins after [`Operations::look`] does not find what was unpublished
//!    before.
//! 2. Nobody waits inside an operation for operations to be over: two would wait for each other.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use dmce_shm::Fence;
use dmce_shm::session::map::SessionMap;
use dmce_shm::slot::Marks;

/// How often who waits looks again at once.
const YIELDS: u32 = 1_000;
/// How long it pauses between looks from then on.
const PAUSE: Duration = Duration::from_micros(50);

/// The operations of a session in this process.
#[derive(Clone, Debug)]
pub(crate) struct Operations {
    map: Arc<SessionMap>,
    fence: Fence,
}

impl Operations {
    /// Those that mark the slots of `map`. `fence` is what this process has registered for.
    pub(crate) const fn new(map: Arc<SessionMap>, fence: Fence) -> Self {
        Self { map, fence }
    }

    /// What this process has registered for.
    pub(crate) const fn fence(&self) -> Fence {
        self.fence
    }

    /// Which are in flight now. What was unpublished before, no later one finds.
    pub(crate) fn look(&self) -> Marks {
        while self.fence.heavy_process().is_err() {
            // Out of kernel memory for a moment.
            thread::yield_now();
        }
        Marks::look(self.map.slots())
    }

    /// Whether all are over that were in flight at a look. An operation of the caller's counts.
    pub(crate) fn are_over(&self, before: &Marks) -> bool {
        before.quiesced(&Marks::look(self.map.slots()))
    }

    /// Waits until every operation is over that is in flight now. Not from inside one.
    pub(crate) fn wait(&self) {
        let before = self.look();
        // An operation is one copy of some MiB at most; its thread may have to be scheduled first.
        let mut yields = 0;
        while !self.are_over(&before) {
            if yields < YIELDS {
                yields += 1;
                thread::yield_now();
            } else {
                // A real-time thread cedes its processor to one of lower priority so alone.
                thread::sleep(PAUSE);
            }
        }
    }
}

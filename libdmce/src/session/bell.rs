//! The bell of a session: it wakes those of this process who sleep until a shared word changes, for
//! reasons that no other process tells them.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use dmce_sys::futex;
use dmce_sys::futex::wide::Heard;

/// Rung when blocks were replaced or went, and when the session is closed.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rings: AtomicU32,
}

impl Bell {
    /// What there is to be heard now. To be taken before a look at what a ring may concern.
    pub(super) fn listen(&self) -> Heard<'_> {
        Heard { bell: &self.rings, value: self.rings.load(Ordering::SeqCst) }
    }

    /// Ends every sleep that began before.
    pub(super) fn ring(&self) {
        self.rings.fetch_add(1, Ordering::SeqCst);
        if let Err(error) = futex::wake(&self.rings, u32::MAX) {
            // Private memory of this process is there; sleepers would end at their deadline.
            tracing::warn!(%error, "those who wait for words cannot be woken");
        }
    }
}

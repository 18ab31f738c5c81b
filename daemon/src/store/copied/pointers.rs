//! Where pointers of applications may store: what the session objects of the instance say.
//!
//! # Invariants
//!
//! 1. What a pointer has stored is on the primary alone until its pin is free, and that is not
//!    before it was carried to the other copies under the page lock. So who holds that, has read
//!    the copies, and asks then, finds the pin that explains why they differ.
//! 2. A pin is a claim: it keeps pages from being judged, and nothing else follows from it.

use std::ops::Range;

use dmce_abi::name::ObjectKind;
use dmce_shm::session::object::{SessionError, SessionObject};
use dmce_shm::session::pin::PinClaim;
use dmce_sys::object::ObjectError;

use super::super::folder::{BROKER, Folder, Found};

/// Ranges of addresses.
#[derive(Debug)]
pub(super) struct Pointers(Vec<Range<u64>>);

/// It is not certain where pointers store.
#[derive(Debug, thiserror::Error)]
pub(super) enum Uncertain {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("session {session}: {source}")]
    Session { session: u32, source: SessionError },
}

impl Pointers {
    /// Those of all sessions, also of those that have ended and have an object still: something of
    /// them is to be repaired, or carried.
    pub(super) fn of_all(folder: &Folder) -> Result<Self, Uncertain> {
        let mut ranges = Vec::new();
        for session in folder.sessions()? {
            let own = match folder.look_at(BROKER, ObjectKind::Session(session))? {
                Found::Own(own) => own,
                // Nothing of it was left to be carried; and what somebody else has put there is no
                // session's.
                Found::Missing | Found::Foreign { .. } => continue,
            };
            let pins = SessionObject::pins_of(own.into_fd());
            let pins = pins.map_err(|source| Uncertain::Session { session, source })?;
            let to_write = pins.into_iter().filter(|PinClaim { range, .. }| range.writable);
            ranges.extend(
                to_write.map(|PinClaim { range, .. }| {
                    range.addr..range.addr.saturating_add(range.bytes)
                }),
            );
        }
        Ok(Self(ranges))
    }

    /// Whether one may store there.
    pub(super) fn may_store(&self, addrs: &Range<u64>) -> bool {
        self.0.iter().any(|range| range.start < addrs.end && addrs.start < range.end)
    }
}

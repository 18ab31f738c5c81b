//! Charges that are no blocks: what is set aside for a request that waits, and connections.

use std::collections::BTreeMap;

use dmce_abi::block::DaemonId;

use super::{ChargeError, Ledger, count};

/// Bytes that nobody else gets: a user's, as if they were reserved.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::dispatcher) struct Aside {
    pub(super) uid: u32,
    pub(super) pieces: BTreeMap<DaemonId, u64>,
}

impl Aside {
    pub(super) fn bytes(&self) -> u64 {
        self.pieces.values().sum()
    }
}

impl Ledger {
    /// Sets bytes aside that are free, in the place of those that are. Whoever calls has checked
    /// the user's quota.
    pub(in crate::dispatcher) fn set_aside(&mut self, uid: u32, pieces: BTreeMap<DaemonId, u64>) {
        self.take_back_aside();
        for (&daemon, &bytes) in &pieces {
            self.stores.entry(daemon).or_default().reserved += bytes;
        }
        let bytes: u64 = pieces.values().sum();
        self.change_user(uid, |user| user.bytes += bytes);
        self.aside = Aside { uid, pieces };
        self.touched = true;
    }

    /// Nothing is set aside any more.
    pub(in crate::dispatcher) fn take_back_aside(&mut self) {
        let aside = std::mem::take(&mut self.aside);
        if aside.pieces.is_empty() {
            return;
        }
        for (daemon, bytes) in &aside.pieces {
            self.stores.entry(*daemon).or_default().reserved -= bytes;
        }
        self.change_user(aside.uid, |user| user.bytes -= aside.bytes());
        self.touched = true;
    }

    /// Counts a connection of the user.
    ///
    /// # Errors
    ///
    /// [`ChargeError::Count`] at the quota.
    pub(in crate::dispatcher) fn charge_connection(&mut self, uid: u32) -> Result<(), ChargeError> {
        count(uid, "connections", self.user(uid).connections, self.quota(uid).connections)?;
        self.users.entry(uid).or_default().connections += 1;
        Ok(())
    }

    /// A connection of the user is gone.
    pub(in crate::dispatcher) fn refund_connection(&mut self, uid: u32) {
        self.change_user(uid, |user| user.connections -= 1);
    }

    /// Whether a sum of a daemon has changed since the last call.
    pub(in crate::dispatcher) fn take_touched(&mut self) -> bool {
        std::mem::take(&mut self.touched)
    }
}

//! Charges for the lock tables of blocks: they count, and refuse nothing by themselves.

use dmce_shm::table::object_bytes;

use super::Ledger;

/// What the lock table of a block costs its user. No daemon holds it.
#[derive(Debug)]
#[must_use = "a charge is retired"]
pub(in crate::dispatcher) struct TableCharge {
    pub(super) bytes: u64,
    /// The user; `None` once retired, and for what nobody owns.
    pub(super) uid: Option<u32>,
}

impl Ledger {
    /// Charges the lock table of a block with so many bytes.
    pub(in crate::dispatcher) fn charge_table(
        &mut self,
        uid: Option<u32>,
        bytes: u64,
    ) -> TableCharge {
        let mut charge = TableCharge { bytes: 0, uid };
        self.resize_table(&mut charge, bytes);
        charge
    }

    /// The block has so many bytes now.
    pub(in crate::dispatcher) fn resize_table(&mut self, charge: &mut TableCharge, bytes: u64) {
        let before = std::mem::replace(&mut charge.bytes, object_bytes(bytes));
        if let Some(uid) = charge.uid {
            self.change_user(uid, |user| user.bytes = user.bytes - before + object_bytes(bytes));
        }
    }

    /// The owner has given the block up.
    pub(in crate::dispatcher) fn retire_table(&mut self, charge: &mut TableCharge) {
        if let Some(uid) = charge.uid.take() {
            self.change_user(uid, |user| user.bytes -= charge.bytes);
        }
    }
}

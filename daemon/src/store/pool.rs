//! Committed objects that nobody has seen, lent to the broker: it makes blocks of them
//! (`docs/protocol.md`, section 4.2).
//!
//! # Invariants
//!
//! 1. Nothing comes back into the pool: what a client has had is destroyed.
//! 2. Ready and under way, there are never more objects than the configuration says.
//! 3. What is in the pool is used by the broker alone, once it was told of it.

use std::collections::BTreeMap;

use dmce_abi::wire::daemon::PoolPlace;
use dmce_config::DaemonSection;
use dmce_sys::object::ObjectError;

use super::block::Spare;
use super::folder::Folder;

/// The pool of a daemon.
#[derive(Debug)]
pub struct Pool {
    object_bytes: u64,
    wanted: usize,
    ready: BTreeMap<PoolPlace, Spare>,
    /// What the broker has not been told of.
    untold: Vec<PoolPlace>,
    under_way: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new(section: &DaemonSection) -> Self {
        Self {
            object_bytes: section.pool_object_bytes.get(),
            wanted: section.pool_objects as usize,
            ready: BTreeMap::new(),
            untold: Vec::new(),
            under_way: 0,
        }
    }

    /// Bytes of one object.
    pub fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Bytes that are ready.
    pub fn bytes(&self) -> u64 {
        self.ready.values().map(Spare::bytes).sum()
    }

    /// What the broker has yet to be told of, with its bytes.
    pub fn lend(&mut self) -> Vec<(PoolPlace, u64)> {
        let untold = std::mem::take(&mut self.untold);
        let ready = untold.into_iter().filter_map(|place| Some((place, self.ready.get(&place)?)));
        ready.map(|(place, spare)| (place, spare.bytes())).collect()
    }

    /// There is another broker: it has been told of nothing. Objects that are not under their names
    /// any more are dropped: the one before has used them.
    ///
    /// # Errors
    ///
    /// [`ObjectError`] if one could not be looked at.
    pub fn lend_anew(&mut self, folder: &Folder) -> Result<(), ObjectError> {
        for (place, spare) in std::mem::take(&mut self.ready) {
            if spare.has_its_name(folder)? {
                self.ready.insert(place, spare);
            }
        }
        self.untold = self.ready.keys().copied().collect();
        Ok(())
    }

    /// The object that the broker took.
    pub fn take(&mut self, place: PoolPlace) -> Option<Spare> {
        self.ready.remove(&place)
    }

    /// Whether another object is to be made. To be followed by [`Pool::begin`].
    pub fn is_short(&self) -> bool {
        self.ready.len() + self.under_way < self.wanted
    }

    /// An object is being made.
    pub fn begin(&mut self) {
        self.under_way += 1;
    }

    /// What was being made is there, or is not.
    pub fn end(&mut self, spare: Option<Spare>) {
        self.under_way = self.under_way.checked_sub(1).expect("it was begun");
        if let Some(spare) = spare {
            self.untold.push(spare.place());
            self.ready.insert(spare.place(), spare);
        }
    }
}

//! Committed objects that nobody has seen, ready to become blocks.
//!
//! # Invariants
//!
//! 1. Nothing comes back into the pool: what a client has had is destroyed.
//! 2. Ready and under way, there are never more objects than the configuration says.

use std::collections::VecDeque;

use dmce_config::DaemonSection;

use super::block::Spare;

/// The pool of a daemon.
#[derive(Debug)]
pub struct Pool {
    object_bytes: u64,
    wanted: usize,
    ready: VecDeque<Spare>,
    under_way: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new(section: &DaemonSection) -> Self {
        Self {
            object_bytes: section.pool_object_bytes.get(),
            wanted: section.pool_objects as usize,
            ready: VecDeque::new(),
            under_way: 0,
        }
    }

    /// Bytes of one object: what is asked for may be as much.
    pub fn object_bytes(&self) -> u64 {
        self.object_bytes
    }

    /// Bytes that are ready.
    pub fn bytes(&self) -> u64 {
        self.ready.iter().map(Spare::bytes).sum()
    }

    /// The object that was ready first, for a block that has `bytes` at first. Objects whose name
    /// someone has removed are dropped.
    pub fn take(&mut self, bytes: u64) -> Option<Spare> {
        if bytes > self.object_bytes {
            return None;
        }
        while let Some(spare) = self.ready.pop_front() {
            if spare.is_named() {
                return Some(spare);
            }
        }
        None
    }

    /// An object that was taken, was not used, and that nobody has seen.
    pub fn put_back(&mut self, spare: Spare) {
        self.ready.push_front(spare);
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
        self.ready.extend(spare);
    }
}

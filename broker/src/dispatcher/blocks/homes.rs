//! Blocks by the daemons that have their copies, and by size: so one that could move from a daemon
//! to another is found without a look at those that could not.
//!
//! # Invariants
//!
//! 1. A block is here while it may be used, is not about to have other copies, and has as many as
//!    are asked for; but not while it is set aside.
//! 2. What it costs to find some does not grow with the number of blocks, but with the number of
//!    ways in which copies lie on daemons.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::limits::COPIES_MAX;

/// The daemons of the copies of a block, in the order of their numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Daemons([Option<DaemonId>; COPIES_MAX as usize]);

impl Daemons {
    fn new(of: impl Iterator<Item = DaemonId>) -> Self {
        let mut daemons = [None; COPIES_MAX as usize];
        for (place, daemon) in daemons.iter_mut().zip(of) {
            *place = Some(daemon);
        }
        daemons.sort_unstable();
        Self(daemons)
    }

    fn iter(self) -> impl Iterator<Item = DaemonId> {
        self.0.into_iter().flatten()
    }
}

/// Blocks by their bytes.
type BySize = BTreeMap<u64, BTreeSet<BlockId>>;

/// Where blocks are.
#[derive(Debug, Default)]
pub(in crate::dispatcher) struct Homes {
    of: BTreeMap<BlockId, (Daemons, u64)>,
    by_daemon: BTreeMap<DaemonId, BTreeMap<Daemons, BySize>>,
}

impl Homes {
    /// The copies of a block, of so many bytes, are there.
    pub(super) fn set(
        &mut self,
        id: BlockId,
        daemons: impl Iterator<Item = DaemonId>,
        committed: u64,
    ) {
        let home = (Daemons::new(daemons), committed);
        if self.of.get(&id) == Some(&home) {
            return;
        }
        self.remove(id);
        self.of.insert(id, home);
        for daemon in home.0.iter() {
            let all = self.by_daemon.entry(daemon).or_default();
            all.entry(home.0).or_default().entry(committed).or_default().insert(id);
        }
    }

    /// A block is not one of those.
    pub(in crate::dispatcher) fn remove(&mut self, id: BlockId) {
        let Some((daemons, committed)) = self.of.remove(&id) else { return };
        for daemon in daemons.iter() {
            let Some(all) = self.by_daemon.get_mut(&daemon) else { continue };
            let Some(by_size) = all.get_mut(&daemons) else { continue };
            let Some(blocks) = by_size.get_mut(&committed) else { continue };
            blocks.remove(&id);
            if blocks.is_empty() {
                by_size.remove(&committed);
            }
            if by_size.is_empty() {
                all.remove(&daemons);
            }
        }
    }

    /// Up to `count` blocks of up to `bytes` that are on the one daemon and not on the other: of
    /// those that lie alike, the largest.
    pub(in crate::dispatcher) fn between(
        &self,
        from: DaemonId,
        to: DaemonId,
        bytes: u64,
        count: usize,
    ) -> Vec<BlockId> {
        let all = self.by_daemon.get(&from).into_iter().flatten();
        let apart = all.filter(|(daemons, _)| daemons.iter().all(|daemon| daemon != to));
        let largest = |by_size: &BySize| {
            let fitting = by_size.range(..=bytes).rev();
            let all = fitting.flat_map(|(bytes, ids)| ids.iter().map(|id| (*bytes, *id)));
            all.take(count).collect::<Vec<_>>()
        };
        let mut found: Vec<_> = apart.flat_map(|(_, by_size)| largest(by_size)).collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        found.truncate(count);
        found.into_iter().map(|(_, id)| id).collect()
    }

    /// The daemons of a block and its bytes, if it is here.
    pub(in crate::dispatcher) fn home(&self, id: BlockId) -> Option<(Vec<DaemonId>, u64)> {
        self.of.get(&id).map(|(daemons, bytes)| (daemons.iter().collect(), *bytes))
    }
}

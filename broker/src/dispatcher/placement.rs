//! Which daemon gets a block, and where a reservation lies.
//!
//! # Invariants
//!
//! 1. Only a daemon that is up and has room is chosen. Its answer may still be that it has none:
//!    then the next is asked [0072].
//! 2. What a session reserved somewhere draws its blocks there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;

use super::Dispatcher;
use super::charge::{AccountId, Store};
use super::config::Placement;

/// What a block needs.
#[derive(Debug)]
pub(super) struct Need<'a> {
    /// Bytes, committed at once.
    pub bytes: u64,
    /// The account whose reservation may be used.
    pub account: Option<AccountId>,
    /// Daemons that have refused.
    pub refused: &'a BTreeSet<DaemonId>,
}

/// How much of a reservation a daemon has, from no use to all that is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reserved {
    Nothing,
    Part,
    All,
}

/// The part of a daemon that is taken, for comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Used {
    taken: u64,
    capacity: u64,
}

impl Ord for Used {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let scaled = |a: u64, b: u64| u128::from(a) * u128::from(b);
        scaled(self.taken, other.capacity).cmp(&scaled(other.taken, self.capacity))
    }
}

impl PartialOrd for Used {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl From<Store> for Used {
    fn from(store: Store) -> Self {
        Self { taken: store.committed + store.reserved, capacity: store.capacity }
    }
}

impl Dispatcher {
    /// The daemon for a block. `None` if none has room, or all that have refused.
    pub(super) fn place(&self, need: &Need<'_>) -> Option<DaemonId> {
        let reservation = self.ledger.reservation(need.account);
        let own = |daemon| reservation.and_then(|left| left.get(&daemon)).copied().unwrap_or(0);
        let fits = |daemon: &DaemonId| {
            let room = self.ledger.store(*daemon).free().saturating_add(own(*daemon));
            room >= need.bytes && !need.refused.contains(daemon)
        };
        let mut candidates = self.daemons.up_in_turn().filter(fits);
        if reservation.is_none() && self.config.placement == Placement::RoundRobin {
            return candidates.next();
        }
        // Of equals `min_by_key` takes the first, which is the one whose turn it is.
        candidates.min_by_key(|&daemon| {
            let reserved = match own(daemon) {
                0 => Reserved::Nothing,
                part if part < need.bytes => Reserved::Part,
                _ => Reserved::All,
            };
            (Reverse(reserved), self.load(daemon))
        })
    }

    /// Where up to `bytes` can be reserved: on as few daemons as possible, so that whole blocks
    /// fit.
    pub(super) fn place_reservation(&self, bytes: u64) -> BTreeMap<DaemonId, u64> {
        let mut daemons: Vec<_> = self.daemons.up_in_turn().collect();
        daemons.sort_by_key(|&daemon| self.load(daemon));
        let mut left = bytes;
        let mut pieces = BTreeMap::new();
        for daemon in daemons {
            let free = self.ledger.store(daemon).free();
            let piece = left.min(free - free % PAGE_BYTES);
            if piece > 0 {
                pieces.insert(daemon, piece);
                left -= piece;
            }
        }
        pieces
    }

    /// Bytes of the largest daemon that is up.
    pub(super) fn largest_up(&self) -> u64 {
        let capacities = self.daemons.up_in_turn().map(|daemon| self.ledger.store(daemon).capacity);
        capacities.max().unwrap_or(0)
    }

    /// What `least-used` compares; the same for all where daemons take turns.
    fn load(&self, daemon: DaemonId) -> Option<Used> {
        match self.config.placement {
            Placement::RoundRobin => None,
            Placement::LeastUsed => Some(self.ledger.store(daemon).into()),
        }
    }
}

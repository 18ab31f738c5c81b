//! Which daemon gets a block, and where a reservation lies.
//!
//! # Invariants
//!
//! 1. Only a daemon that is up and has room is chosen. Its answer may still be that it has none:
//!    then the next is asked [0072].
//! 2. What a session reserved somewhere draws its blocks there, before any algorithm is asked.
//! 3. A choice that is not taken up has changed nothing but the next draw.
//! 4. A daemon that has come without any block does not get all new ones because of that: at first
//!    it counts as full as the emptiest of the others.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;

use super::Dispatcher;
use super::charge::{AccountId, Store};
use super::config::Placement;
use super::daemons::Server;

/// How new a daemon is that has just come without any block.
const NEW: u64 = 1024;

/// What a block needs.
#[derive(Debug)]
pub(super) struct Need<'a> {
    /// Bytes, committed at once.
    pub bytes: u64,
    /// The account whose reservation may be used.
    pub account: Option<AccountId>,
    /// Daemons that have refused.
    pub refused: &'a BTreeSet<DaemonId>,
    /// How it is chosen.
    pub placement: Placement,
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
pub(super) struct Used {
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

impl Used {
    /// So many parts of [`NEW`] of it.
    const fn times(self, parts: u64) -> Self {
        Self { taken: self.taken / NEW * parts, ..self }
    }

    /// The same part of another capacity.
    fn of(self, capacity: u64) -> Self {
        let taken = u128::from(self.taken) * u128::from(capacity);
        let taken = taken.checked_div(self.capacity.into()).unwrap_or(0);
        Self { taken: u64::try_from(taken).unwrap_or(u64::MAX), capacity }
    }

    /// The least of it and of what the daemon held at other times.
    pub(super) fn least(self, others: impl Iterator<Item = Store>) -> Self {
        others.map(|other| Self::from(other).of(self.capacity)).fold(self, Self::min)
    }

    /// The most of the same.
    pub(super) fn most(self, others: impl Iterator<Item = Store>) -> Self {
        others.map(|other| Self::from(other).of(self.capacity)).fold(self, Self::max)
    }

    /// With so many bytes less.
    pub(super) const fn without(self, bytes: u64) -> Self {
        Self { taken: self.taken.saturating_sub(bytes), ..self }
    }

    /// With so many more.
    pub(super) const fn with(self, bytes: u64) -> Self {
        Self { taken: self.taken.saturating_add(bytes), ..self }
    }

    /// Whether it is more than another by more than so many percent of the capacities.
    pub(super) fn is_above(self, other: Self, percent: u64) -> bool {
        let [own, others] = [self.capacity, other.capacity].map(u128::from);
        let more = u128::from(self.taken) * others;
        let less = u128::from(other.taken) * own;
        more.saturating_sub(less) > (own * others).div_ceil(100) * u128::from(percent)
    }

    /// How many bytes may go to another, so that this is no less than that afterwards.
    pub(super) fn surplus_over(self, other: Self) -> u64 {
        let [own, others] = [self.capacity, other.capacity].map(u128::from);
        let (more, less) = (u128::from(self.taken) * others, u128::from(other.taken) * own);
        let bytes = more.saturating_sub(less) / (own + others).max(1);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl From<Store> for Used {
    fn from(store: Store) -> Self {
        Self { taken: store.committed + store.reserved, capacity: store.capacity }
    }
}

/// What `least-used` compares: how full, then how busy of late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Load {
    /// How much of it is taken.
    pub used: Used,
    /// What it did.
    recent: u64,
}

impl Dispatcher {
    /// The daemon for a block. `None` if none has room, or all that have refused.
    pub(super) fn place(&mut self, need: &Need<'_>) -> Option<DaemonId> {
        let reservation = self.ledger.reservation(need.account);
        let own = |daemon| reservation.and_then(|left| left.get(&daemon)).copied().unwrap_or(0);
        let reserved = |daemon| match own(daemon) {
            0 => Reserved::Nothing,
            part if part < need.bytes => Reserved::Part,
            _ => Reserved::All,
        };
        let fits = |daemon: &DaemonId| {
            let room = self.ledger.store(*daemon).free().saturating_add(own(*daemon));
            room >= need.bytes && !need.refused.contains(daemon)
        };
        let mut candidates: Vec<DaemonId> = self.daemons.up_in_turn().filter(fits).collect();
        if candidates.is_empty() {
            // What is reserved on one that is drained, and found no room elsewhere.
            let is_up = |id: &DaemonId| self.daemons.servers.get(id).is_some_and(Server::is_up);
            let has_all = |id: &DaemonId| own(*id) >= need.bytes && fits(id) && is_up(id);
            candidates = reservation.into_iter().flat_map(BTreeMap::keys).copied().collect();
            candidates.retain(has_all);
        }
        let most = candidates.iter().map(|daemon| reserved(*daemon)).max()?;
        candidates.retain(|daemon| reserved(*daemon) == most);
        self.choose(need.placement, &candidates)
    }

    /// Where up to `bytes` can be reserved: on as few daemons as possible, so that whole blocks
    /// fit, and for blocks with so many copies, on no daemon more than one of the copies takes.
    pub(super) fn place_reservation(&mut self, bytes: u64, copies: u32) -> BTreeMap<DaemonId, u64> {
        let mut rest: Vec<DaemonId> = self.daemons.up_in_turn().collect();
        let of_one = bytes.div_ceil(copies.max(1).into()).next_multiple_of(PAGE_BYTES);
        let mut left = bytes;
        let mut pieces = BTreeMap::new();
        while left > 0 {
            let free = |daemon: DaemonId| {
                let free = self.ledger.store(daemon).free();
                free - free % PAGE_BYTES
            };
            rest.retain(|daemon| free(*daemon) > 0);
            let most = left.min(of_one);
            let whole: Vec<_> = rest.iter().copied().filter(|id| free(*id) >= most).collect();
            let candidates = if whole.is_empty() { &rest } else { &whole };
            let Some(daemon) = self.choose(self.config.placement, candidates) else { break };
            let free = self.ledger.store(daemon).free();
            let piece = most.min(free - free % PAGE_BYTES);
            pieces.insert(daemon, piece);
            left -= piece;
            rest.retain(|other| *other != daemon);
        }
        pieces
    }

    /// Bytes of the largest block that could have so many copies if all known daemons were up and
    /// empty; `None` if too few are known.
    pub(super) fn capacity_for(&self, copies: u32) -> Option<u64> {
        let known = self.daemons.servers.keys().map(|&daemon| self.ledger.store(daemon).capacity);
        let mut known: Vec<u64> = known.filter(|capacity| *capacity > 0).collect();
        known.sort_unstable_by(|a, b| b.cmp(a));
        known.get(copies.saturating_sub(1) as usize).copied()
    }

    /// Bytes of the largest daemon that is up.
    pub(super) fn largest_up(&self) -> u64 {
        let capacities = self.daemons.up_in_turn().map(|daemon| self.ledger.store(daemon).capacity);
        capacities.max().unwrap_or(0)
    }

    /// One of the candidates, which come in turn, the next first.
    fn choose(&mut self, placement: Placement, candidates: &[DaemonId]) -> Option<DaemonId> {
        let first = *candidates.first()?;
        let chosen = match placement {
            Placement::RoundRobin => first,
            // Of equals `min_by_key` takes the first, which is the one whose turn it is.
            Placement::LeastUsed => {
                candidates.iter().copied().min_by_key(|&daemon| self.load(daemon))?
            }
            Placement::PowerOfTwo => {
                let one = self.draws.index(candidates.len());
                let other = self.draws.index(candidates.len() - 1);
                let other = if other >= one { other + 1 } else { other };
                let two = [candidates.get(one), candidates.get(other)];
                two.into_iter().flatten().copied().min_by_key(|&daemon| self.load(daemon))?
            }
            Placement::Weighted => self.draw_weighted(candidates).unwrap_or(first),
        };
        Some(chosen)
    }

    /// `None` if no candidate has any weight.
    fn draw_weighted(&mut self, candidates: &[DaemonId]) -> Option<DaemonId> {
        let weights = &self.config.weights;
        let weight = |daemon: &DaemonId| u64::from(weights.get(daemon).copied().unwrap_or(1));
        let mut drawn = self.draws.below(candidates.iter().map(weight).sum());
        candidates.iter().copied().find(|daemon| {
            let (weight, before) = (weight(daemon), drawn);
            drawn = drawn.saturating_sub(weight);
            before < weight
        })
    }

    /// How full and how busy a daemon is.
    pub(super) fn load(&self, daemon: DaemonId) -> Load {
        let own = Used::from(self.ledger.store(daemon));
        let used = match self.newness(daemon) {
            0 => own,
            newness => {
                let is_old = |other: &DaemonId| self.newness(*other) == 0;
                let others = self.daemons.up_in_turn().filter(is_old);
                let least = others.map(|other| Used::from(self.ledger.store(other))).min();
                own.max(least.map_or(own, |least| least.times(newness).of(own.capacity)))
            }
        };
        Load { used, recent: self.history.recent(daemon) }
    }

    /// How much is left of the time in which a daemon that came without any block is new, in parts
    /// of [`NEW`].
    fn newness(&self, daemon: DaemonId) -> u64 {
        let (now, time) = (self.now.millis, self.config.slow_start_ms);
        let server = self.daemons.servers.get(&daemon);
        let left = server
            .and_then(|server| server.empty_since)
            .map_or(0, |since| since.after(time).0.saturating_sub(now.0));
        if left == 0 { 0 } else { left.saturating_mul(NEW) / time.max(1) }
    }
}

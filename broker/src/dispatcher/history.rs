//! The usage history [0068]: for each daemon what it held, and how often it worked, at intervals.
//!
//! # Invariants
//!
//! 1. A daemon has no more samples than are configured; the oldest goes when one too many comes.
//! 2. Samples of a daemon are numbered without a gap, so that who lists them misses none that is
//!    still there.

use std::collections::{BTreeMap, VecDeque};

use dmce_abi::block::DaemonId;
use dmce_abi::wire::admin::{Operations, SampleKey, UsageRow};

use super::Dispatcher;
use super::charge::Store;
use super::timers::Timer;

/// What a daemon held at a time.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: u64,
    store: Store,
    blocks: u32,
    operations: Operations,
}

/// The samples of one daemon.
#[derive(Debug, Default)]
struct Samples {
    /// The oldest first.
    kept: VecDeque<Sample>,
    /// How many were taken in all: the number of the last.
    taken: u64,
    /// What the daemon did since.
    operations: Operations,
}

/// The samples of all daemons.
#[derive(Debug, Default)]
pub(super) struct History {
    daemons: BTreeMap<DaemonId, Samples>,
}

impl History {
    /// A daemon did something.
    pub(super) fn note(&mut self, daemon: DaemonId, count: impl FnOnce(&mut Operations)) {
        count(&mut self.daemons.entry(daemon).or_default().operations);
    }

    /// How much a daemon did since its last sample but one.
    pub(super) fn recent(&self, daemon: DaemonId) -> u64 {
        let Some(samples) = self.daemons.get(&daemon) else { return 0 };
        let before = samples.kept.back().map(|sample| sample.operations).unwrap_or_default();
        total(samples.operations) + total(before)
    }

    /// Takes a sample of a daemon; at most `limit` are kept.
    fn take(&mut self, daemon: DaemonId, limit: usize, (at, store, blocks): (u64, Store, u32)) {
        let samples = self.daemons.entry(daemon).or_default();
        let operations = std::mem::take(&mut samples.operations);
        samples.taken += 1;
        samples.kept.push_back(Sample { at, store, blocks, operations });
        while samples.kept.len() > limit {
            samples.kept.pop_front();
        }
    }

    /// The samples after one, by daemon and age.
    pub(super) fn after(&self, after: SampleKey) -> impl Iterator<Item = UsageRow> {
        self.daemons.iter().flat_map(move |(&daemon, samples)| {
            let first = samples.taken - samples.kept.len() as u64 + 1;
            let key = move |number| SampleKey { daemon: daemon.get(), sample: number };
            let skipped = match daemon.get().cmp(&after.daemon) {
                std::cmp::Ordering::Less => u64::MAX,
                std::cmp::Ordering::Equal => after.sample.saturating_add(1).saturating_sub(first),
                std::cmp::Ordering::Greater => 0,
            };
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            let later = (first..).zip(&samples.kept).skip(skipped);
            later.map(move |(number, sample)| UsageRow {
                key: key(number),
                at: sample.at,
                capacity: sample.store.capacity,
                committed: sample.store.committed,
                reserved: sample.store.reserved,
                blocks: sample.blocks,
                operations: sample.operations,
            })
        })
    }
}

impl Dispatcher {
    /// Takes a sample of every daemon, and has the next taken in time.
    pub(super) fn take_samples(&mut self) {
        let limit = self.config.usage_samples;
        if limit == 0 {
            return;
        }
        for (&daemon, server) in &self.daemons.servers {
            let blocks = u32::try_from(server.blocks.len()).unwrap_or(u32::MAX);
            let sample = (self.now.unix_s, self.ledger.store(daemon), blocks);
            self.history.take(daemon, limit, sample);
        }
        self.timers.set(Timer::Usage, self.now.millis.after(self.config.usage_ms));
    }
}

const fn total(operations: Operations) -> u64 {
    let Operations { creates, grows, destroys, refusals } = operations;
    creates + grows + destroys + refusals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_bounded_numbered_and_listed_from_any_of_them() {
        let mut history = History::default();
        let daemon = |id| DaemonId::try_from(id).unwrap();
        for at in 1..=5 {
            history.note(daemon(2), |operations| operations.creates += at);
            history.take(daemon(2), 3, (at, Store::default(), 7));
        }
        history.take(daemon(4), 3, (9, Store::default(), 0));
        let listed = |daemon, sample| -> Vec<(u32, u64, u64, u64)> {
            let rows = history.after(SampleKey { daemon, sample });
            rows.map(|row| (row.key.daemon, row.key.sample, row.at, row.operations.creates))
                .collect()
        };
        let all = [(2, 3, 3, 3), (2, 4, 4, 4), (2, 5, 5, 5), (4, 1, 9, 0)];
        assert_eq!(listed(0, 0), all);
        assert_eq!(listed(2, 1), all);
        assert_eq!(listed(2, 4), all[2..]);
        assert_eq!(listed(2, 5), all[3..]);
        assert_eq!(listed(3, u64::MAX), all[3..]);
        assert_eq!(listed(4, 1), []);
        assert_eq!(listed(4, u64::MAX - 1), []);
        assert_eq!((history.recent(daemon(2)), history.recent(daemon(9))), (5, 0));
    }
}

//! The usage history [0068]: for each daemon what it held, and how often it worked, at intervals.
//!
//! # Invariants
//!
//! 1. A daemon has no more samples than are configured; the oldest goes when one too many comes.
//! 2. Samples of a daemon are numbered without a gap, so that who lists them misses none that is
//!    still there.
//! 3. A daemon is listed from the time that it is known: before its first sample with what it has
//!    at present, as sample 0.

use std::collections::{BTreeMap, VecDeque};

use dmce_abi::block::DaemonId;
use dmce_abi::wire::admin::{Operations, SampleKey, UsageRow};

use super::Dispatcher;
use super::charge::Store;
use super::timers::Timer;

/// What a daemon held at a time.
#[derive(Clone, Copy, Debug, Default)]
struct Present {
    at: u64,
    store: Store,
    blocks: u32,
}

/// What a daemon held at a time, and did since the sample before.
#[derive(Clone, Copy, Debug)]
struct Sample {
    present: Present,
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

    /// There is a daemon.
    pub(super) fn add(&mut self, daemon: DaemonId) {
        self.daemons.entry(daemon).or_default();
    }

    /// How much a daemon did since its last sample but one.
    pub(super) fn recent(&self, daemon: DaemonId) -> u64 {
        let Some(samples) = self.daemons.get(&daemon) else { return 0 };
        let before = samples.kept.back().map(|sample| sample.operations).unwrap_or_default();
        total(samples.operations) + total(before)
    }

    /// What a daemon held in each of its last notes; `None` if there are not so many, or it was not
    /// there yet in some.
    pub(super) fn taken_of(
        &self,
        daemon: DaemonId,
        notes: usize,
    ) -> Option<impl Iterator<Item = Store>> {
        let kept = &self.daemons.get(&daemon)?.kept;
        let first = kept.len().checked_sub(notes)?;
        let last = || kept.range(first..).map(|sample| sample.present.store);
        last().all(|store| store.capacity > 0).then(last)
    }

    /// Takes a sample of a daemon; at most `limit` are kept.
    fn take(&mut self, daemon: DaemonId, limit: usize, present: Present) {
        let samples = self.daemons.entry(daemon).or_default();
        let operations = std::mem::take(&mut samples.operations);
        samples.taken += 1;
        samples.kept.push_back(Sample { present, operations });
        while samples.kept.len() > limit {
            samples.kept.pop_front();
        }
    }

    /// The samples after one, by daemon and age; `present` is what a daemon holds now.
    fn after(
        &self,
        after: SampleKey,
        present: impl Fn(DaemonId) -> Present,
    ) -> impl Iterator<Item = UsageRow> {
        self.daemons.iter().flat_map(move |(&daemon, samples)| {
            let first = samples.taken - samples.kept.len() as u64 + 1;
            let skipped = match daemon.get().cmp(&after.daemon) {
                std::cmp::Ordering::Less => u64::MAX,
                std::cmp::Ordering::Equal => after.sample.saturating_add(1).saturating_sub(first),
                std::cmp::Ordering::Greater => 0,
            };
            let skipped = usize::try_from(skipped).unwrap_or(usize::MAX);
            let is_new = samples.kept.is_empty() && daemon.get() > after.daemon;
            let operations = samples.operations;
            let now = is_new.then(|| (0, Sample { present: present(daemon), operations }));
            let kept = (first..).zip(samples.kept.iter().copied()).skip(skipped);
            now.into_iter().chain(kept).map(move |(number, sample)| sample.row(daemon, number))
        })
    }
}

impl Sample {
    const fn row(self, daemon: DaemonId, number: u64) -> UsageRow {
        let Self { present: Present { at, store, blocks }, operations } = self;
        UsageRow {
            key: SampleKey { daemon: daemon.get(), sample: number },
            at,
            capacity: store.capacity,
            committed: store.committed,
            reserved: store.reserved,
            blocks,
            operations,
        }
    }
}

impl Dispatcher {
    /// Takes a sample of every daemon, and has the next taken in time.
    pub(super) fn take_samples(&mut self) {
        let limit = self.config.usage_samples;
        if limit == 0 {
            return;
        }
        let known: Vec<_> = self.daemons.servers.keys().copied().collect();
        for daemon in known {
            self.history.take(daemon, limit, self.present(daemon));
        }
        self.timers.set(Timer::Usage, self.now.millis.after(self.config.usage_ms));
        self.rebalance_soon();
    }

    /// The usage history after a sample, by daemon and age.
    pub(super) fn usage_after(&self, after: SampleKey) -> impl Iterator<Item = UsageRow> {
        self.history.after(after, |daemon| self.present(daemon))
    }

    fn present(&self, daemon: DaemonId) -> Present {
        let blocks = self.daemons.servers.get(&daemon).map_or(0, |server| server.blocks.len());
        Present {
            at: self.now.unix_s,
            store: self.ledger.store(daemon),
            blocks: u32::try_from(blocks).unwrap_or(u32::MAX),
        }
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
            history.take(daemon(2), 3, Present { at, ..Present::default() });
        }
        history.take(daemon(4), 3, Present { at: 9, ..Present::default() });
        let listed = |daemon, sample| -> Vec<(u32, u64, u64, u64)> {
            let rows = history.after(SampleKey { daemon, sample }, |_| Present::default());
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

    #[test]
    fn a_daemon_without_a_sample_is_listed_with_what_it_has_now() {
        let mut history = History::default();
        let daemon = |id| DaemonId::try_from(id).unwrap();
        history.add(daemon(3));
        history.note(daemon(3), |operations| operations.creates += 2);
        history.take(daemon(5), 3, Present::default());
        let listed = |history: &History, daemon, sample| -> Vec<(u32, u64, u64, u64)> {
            let present = Present { at: 8, ..Present::default() };
            let rows = history.after(SampleKey { daemon, sample }, |_| present);
            rows.map(|row| (row.key.daemon, row.key.sample, row.at, row.operations.creates))
                .collect()
        };
        assert_eq!(listed(&history, 0, 0), [(3, 0, 8, 2), (5, 1, 0, 0)]);
        assert_eq!(listed(&history, 3, 0), [(5, 1, 0, 0)]);
        history.take(daemon(3), 3, Present::default());
        assert_eq!(listed(&history, 0, 0), [(3, 1, 0, 2), (5, 1, 0, 0)]);
        assert_eq!(listed(&history, 3, 0), [(3, 1, 0, 2), (5, 1, 0, 0)]);
    }
}

//! `dmce usage`: what each daemon held over time, and what it did.

use dmce_abi::wire::admin::UsageRow;
use dmce_config::Bytes;
use serde::Serialize;

use super::{Align, Row};

/// The usage history of one daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Usage {
    pub daemon: u32,
    pub samples: Vec<Sample>,
}

/// What a daemon held at a time, and did since the sample before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Sample {
    pub number: u64,
    pub at: u64,
    pub capacity: u64,
    pub committed: u64,
    pub reserved: u64,
    pub blocks: u32,
    pub creates: u64,
    pub grows: u64,
    pub destroys: u64,
    pub refusals: u64,
}

impl From<UsageRow> for Sample {
    fn from(row: UsageRow) -> Self {
        let operations = row.operations;
        Self {
            number: row.key.sample,
            at: row.at,
            capacity: row.capacity,
            committed: row.committed,
            reserved: row.reserved,
            blocks: row.blocks,
            creates: operations.creates,
            grows: operations.grows,
            destroys: operations.destroys,
            refusals: operations.refusals,
        }
    }
}

impl Usage {
    /// Puts the samples of each daemon together; they come by daemon and age.
    pub fn of(rows: Vec<UsageRow>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for row in rows {
            let daemon = row.key.daemon;
            match all.last_mut().filter(|last| last.daemon == daemon) {
                Some(last) => last.samples.push(row.into()),
                None => all.push(Self { daemon, samples: vec![row.into()] }),
            }
        }
        all
    }

    /// A sum over the history.
    fn sum(&self, count: impl Fn(&Sample) -> u64) -> String {
        self.samples.iter().map(count).sum::<u64>().to_string()
    }
}

impl Row for Usage {
    const COLUMNS: &'static [(&'static str, Align)] = &[
        ("ID", Align::Right),
        ("SECONDS", Align::Right),
        ("CAPACITY", Align::Right),
        ("COMMITTED", Align::Right),
        ("MOST", Align::Right),
        ("RESERVED", Align::Right),
        ("BLOCKS", Align::Right),
        ("CREATES", Align::Right),
        ("GROWS", Align::Right),
        ("DESTROYS", Align::Right),
        ("REFUSALS", Align::Right),
    ];

    /// What the daemon holds now, and what it did in the time of its history.
    fn cells(&self) -> Vec<String> {
        let last = self.samples.last();
        let first = self.samples.first();
        let bytes = |of: fn(&Sample) -> u64| last.map_or(Bytes(0), |last| Bytes(of(last)));
        let most = self.samples.iter().map(|sample| sample.committed).max().unwrap_or(0);
        let seconds = last.zip(first).map_or(0, |(last, first)| last.at.saturating_sub(first.at));
        vec![
            self.daemon.to_string(),
            seconds.to_string(),
            bytes(|sample| sample.capacity).to_string(),
            bytes(|sample| sample.committed).to_string(),
            Bytes(most).to_string(),
            bytes(|sample| sample.reserved).to_string(),
            last.map_or(0, |last| last.blocks).to_string(),
            self.sum(|sample| sample.creates),
            self.sum(|sample| sample.grows),
            self.sum(|sample| sample.destroys),
            self.sum(|sample| sample.refusals),
        ]
    }
}

#[cfg(test)]
mod tests {
    use dmce_abi::wire::admin::{Operations, SampleKey};

    use super::*;

    #[test]
    fn samples_of_a_daemon_are_one_history_and_a_row_tells_their_sums() {
        let row = |daemon, sample| UsageRow {
            key: SampleKey { daemon, sample },
            at: 100 + sample,
            capacity: 1 << 30,
            committed: sample << 20,
            reserved: 0,
            blocks: 2,
            operations: Operations { creates: sample, grows: 1, ..Operations::default() },
        };
        let all = Usage::of(vec![row(1, 3), row(1, 4), row(2, 1)]);
        let counts: Vec<_> = all.iter().map(|usage| (usage.daemon, usage.samples.len())).collect();
        assert_eq!(counts, [(1, 2), (2, 1)]);
        let cells = all[0].cells();
        assert_eq!(cells.len(), Usage::COLUMNS.len());
        assert_eq!(cells[..2], ["1", "1"]);
        assert_eq!(cells[3..5], ["4 MiB", "4 MiB"]);
        assert_eq!(cells[6..], ["2", "7", "2", "0", "0"]);
    }
}

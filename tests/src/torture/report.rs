//! What a campaign has seen.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What a campaign has seen. Nothing was lost, or it would have ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Misfortunes by kind.
    misfortunes: BTreeMap<&'static str, u64>,
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Calls that failed.
    pub failed: u64,
    /// Records that a writer's death has left in part, none of which was acknowledged.
    pub torn: u64,
    /// The slowest write of all.
    pub slowest: Duration,
}

impl Report {
    /// Counts a misfortune.
    pub(super) fn count(&mut self, kind: &'static str) {
        *self.misfortunes.entry(kind).or_default() += 1;
    }

    /// Misfortunes of all kinds.
    #[must_use]
    pub fn misfortunes(&self) -> u64 {
        self.misfortunes.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in &self.misfortunes {
            writeln!(f, "{count:>10} {kind}")?;
        }
        writeln!(f, "{:>10} writes acknowledged, 0 lost", self.acknowledged)?;
        writeln!(f, "{:>10} calls failed", self.failed)?;
        writeln!(f, "{:>10} writes of killed clients that are there in part", self.torn)?;
        write!(f, "{:>10.1} ms the slowest write", self.slowest.as_secs_f64() * 1e3)
    }
}

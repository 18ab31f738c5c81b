//! What a campaign has seen.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::checker::Checked;

/// What a campaign has seen. Nothing was lost and no call has failed, or it would have ended.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Misfortunes by kind.
    misfortunes: BTreeMap<&'static str, u64>,
    /// What became of the moves that were asked for, by kind.
    pub moves: BTreeMap<&'static str, u64>,
    /// Rounds, each with regions of its own.
    pub rounds: u64,
    /// Records that were acknowledged.
    pub acknowledged: u64,
    /// Records that a writer's death has left in part, none of which was acknowledged.
    pub torn: u64,
    /// Pages that were compared with another copy's.
    pub compared: u64,
    /// Copies that were found stale.
    pub stale: u64,
    /// The slowest write of all.
    pub slowest: Duration,
    /// The slowest write of those that met a copy which was lost.
    pub slowest_redirect: Duration,
}

impl Report {
    /// Counts a misfortune.
    pub(super) fn count(&mut self, kind: &'static str) {
        *self.misfortunes.entry(kind).or_default() += 1;
    }

    /// Takes in what a round has left.
    pub(super) fn add(&mut self, checked: &Checked) {
        self.compared += checked.compared;
        self.stale += checked.stale as u64;
    }

    /// Misfortunes of all kinds.
    #[must_use]
    pub fn misfortunes(&self) -> u64 {
        self.misfortunes.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kind, count) in self.misfortunes.iter().chain(&self.moves) {
            writeln!(f, "{count:>10} {kind}")?;
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        writeln!(f, "{:>10} rounds", self.rounds)?;
        writeln!(f, "{:>10} writes acknowledged, 0 lost", self.acknowledged)?;
        writeln!(f, "{:>10} calls failed", 0)?;
        writeln!(f, "{:>10} writes of killed clients that are there in part", self.torn)?;
        writeln!(f, "{:>10} pages equal on all good copies", self.compared)?;
        writeln!(f, "{:>10} copies stale", self.stale)?;
        writeln!(f, "{:>10.1} ms the slowest write", ms(self.slowest))?;
        write!(f, "{:>10.1} ms the slowest redirect", ms(self.slowest_redirect))
    }
}

//! What came of a scrub.

use dmce_abi::wire::scrub::ScrubFound;
use serde::Serialize;

use super::{Show, Table};

/// Pages that were gone through, by what they were found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct Found {
    pub checked: u64,
    pub unchecked: u64,
    pub busy: u64,
    pub pinned: u64,
    pub detached: u64,
    pub repaired: u64,
    pub quarantined: u64,
    pub lost: u64,
}

/// What `dmce scrub` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "docs/command.md explains the fields")]
pub struct ScrubResult {
    pub blocks: u32,
    #[serde(flatten)]
    pub found: Found,
}

impl From<ScrubFound> for Found {
    fn from(of: ScrubFound) -> Self {
        let ScrubFound { checked, unchecked, busy, pinned, detached, .. } = of;
        let ScrubFound { repaired, quarantined, lost, .. } = of;
        Self { checked, unchecked, busy, pinned, detached, repaired, quarantined, lost }
    }
}

impl Found {
    /// In a few words.
    pub fn text(&self) -> String {
        let Self { checked, repaired, quarantined, .. } = *self;
        format!("{checked} pages were equal, {repaired} repaired, {quarantined} found lost")
    }
}

impl ScrubResult {
    /// Whether nothing was found that nobody could repair.
    #[must_use]
    pub const fn is_well(&self) -> bool {
        self.found.quarantined == 0 && self.found.lost == 0
    }
}

impl Show for ScrubResult {
    fn text(&self) -> String {
        let Found { checked, unchecked, busy, pinned, detached, repaired, quarantined, lost } =
            self.found;
        let pages = [
            ("equal", checked),
            ("of one copy", unchecked),
            ("not compared now", busy),
            ("under pointers", pinned),
            ("that differ on purpose", detached),
            ("repaired", repaired),
            ("found lost", quarantined),
            ("lost before", lost),
        ];
        let rows = pages.into_iter().filter(|(_, pages)| *pages > 0);
        let rows = rows.map(|(name, pages)| (name, pages.to_string()));
        let blocks = [("blocks", self.blocks.to_string())];
        Table::of_fields(blocks.into_iter().chain(rows)).to_string()
    }
}

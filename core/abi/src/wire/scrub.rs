//! What comes of a scrub, as daemons tell the broker, and the broker who administers.

use core::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Pages of 4 KiB that a scrub went through. Each is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFound {
    /// All good copies were equal.
    pub checked: u64,
    /// Not compared now: somebody wrote them each time that they were looked at, or something else
    /// of the block was in the way.
    pub busy: u64,
    /// A pointer stores there: the copies differ until it is given back.
    pub pinned: u64,
    /// The copies differ, as somebody wanted it.
    pub detached: u64,
    /// Marked as lost already.
    pub lost: u64,
    /// There is one good copy: nothing to compare them with.
    pub unchecked: u64,
    /// Copies differed, and were made equal by what was known of them.
    pub repaired: u64,
    /// Copies differed, and nothing said which is right: marked as lost.
    pub quarantined: u64,
}

impl ScrubFound {
    /// All of them.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let Self { checked, busy, pinned, detached, lost, unchecked, repaired, quarantined } =
            *self;
        let all = [checked, busy, pinned, detached, lost, unchecked, repaired, quarantined];
        all.into_iter().fold(0, u64::saturating_add)
    }
}

impl AddAssign for ScrubFound {
    fn add_assign(&mut self, more: Self) {
        let add = |of: &mut u64, more: u64| *of = of.saturating_add(more);
        add(&mut self.checked, more.checked);
        add(&mut self.busy, more.busy);
        add(&mut self.pinned, more.pinned);
        add(&mut self.detached, more.detached);
        add(&mut self.lost, more.lost);
        add(&mut self.unchecked, more.unchecked);
        add(&mut self.repaired, more.repaired);
        add(&mut self.quarantined, more.quarantined);
    }
}

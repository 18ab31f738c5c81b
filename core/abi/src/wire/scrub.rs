//! What comes of a scrub, as daemons tell the broker, and the broker who administers.

use serde::{Deserialize, Serialize};

/// Pages of 4 KiB that a scrub went through. Each is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFound {
    /// All good copies were equal.
    pub checked: u32,
    /// Somebody wrote them each time that they were looked at.
    pub busy: u32,
    /// A pointer stores there: the copies differ until it is given back.
    pub pinned: u32,
    /// The copies differ, as somebody wanted it.
    pub detached: u32,
    /// Marked as lost already.
    pub lost: u32,
    /// Of a block of one copy whose pages nobody locks: there is nothing to compare them with.
    pub unchecked: u32,
    /// Copies differed, and were made equal by what was known of them.
    pub repaired: u32,
    /// Copies differed, and nothing said which is right: marked as lost.
    pub quarantined: u32,
}

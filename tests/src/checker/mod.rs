//! A checker of copies: what an instance has in shared memory, when everything is quiet.
//!
//! ```text
//!   names ---> sessions that live, with their intents
//!     |             |
//!     `---> headers, by block and GUID ---> good copies: those that the highest epoch names
//!                                             |             |
//!                        lock words ----------+----------> bytes, page by page
//! ```
//!
//! It opens everything by name, as the service user, and believes nobody: no server is asked.
//!
//! # Invariants
//!
//! 1. It changes nothing.
//! 2. What it calls a difference is one that the design rules out (docs/shared-memory.md,
//!    docs/adr/0008-two-copies.md) once nothing is under way. While something is, differences come
//!    and go: who cannot know waits until there are none ([`wait_sound`]).
//! 3. A page that a living session holds, with an intent, explains what differs in it.

mod blocks;
mod difference;
mod objects;
mod pages;
mod sessions;
#[cfg(test)]
mod tests;

use std::path::Path;

use dmce_sys::object::ObjectError;

pub use difference::{Difference, LockFault};

use crate::{Instance, WATCHDOG};
use objects::Objects;
use sessions::Sessions;

/// What there is, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Checked {
    /// Sessions that live.
    pub sessions: usize,
    /// Blocks.
    pub blocks: usize,
    /// Copies of them that are good.
    pub good: usize,
    /// Copies that are stale.
    pub stale: usize,
    /// Pages that were compared with another copy's.
    pub compared: u64,
    /// Pages that sessions which live hold, and intents of theirs.
    pub under_way: u64,
    /// What is not as it must be.
    pub differences: Vec<Difference>,
}

impl Checked {
    /// Whether a dead session has left something that is to be repaired, or is being repaired.
    #[must_use]
    pub fn awaits_repair(&self) -> bool {
        self.differences.iter().any(|difference| match difference {
            Difference::Lock { condition, .. } => {
                matches!(condition, LockFault::Dead { .. } | LockFault::UnderRepair)
            }
            Difference::Leftover { why, .. } => *why == sessions::DEAD,
            _ => false,
        })
    }

    /// Whether a copy that was lost is still called good, or the headers are about to say that it
    /// is not.
    #[must_use]
    pub fn awaits_redirect(&self) -> bool {
        self.differences.iter().any(|difference| {
            matches!(
                difference,
                Difference::Missing { .. }
                    | Difference::Length { .. }
                    | Difference::Contradiction { .. }
            )
        })
    }
}

/// Looks at all objects of an instance in a folder.
///
/// # Errors
///
/// [`ObjectError`] if one that is there could not be looked at.
pub fn check(folder: &Path, instance: &str) -> Result<Checked, ObjectError> {
    let mut checked = Checked::default();
    let objects = Objects::list(folder, instance, &mut checked.differences)?;
    let sessions = Sessions::read(&objects, &mut checked.differences)?;
    checked.sessions = sessions.count();
    checked.under_way = sessions.intents();
    blocks::check(&objects, &sessions, &mut checked)?;
    Ok(checked)
}

/// Waits until nothing is wrong with what an instance has, and nothing under way: where nobody does
/// anything any more, a page that is held is one that nobody gives back.
///
/// # Panics
///
/// If something stays wrong or under way, or could not be looked at.
#[must_use]
pub fn wait_sound(instance: &Instance) -> Checked {
    let begin = std::time::Instant::now();
    loop {
        let checked = check(instance.folder(), instance.name()).expect("own objects are looked at");
        if checked.differences.is_empty() && checked.under_way == 0 {
            return checked;
        }
        let all: Vec<_> = checked.differences.iter().map(ToString::to_string).collect();
        let (held, all) = (checked.under_way, all.join("\n"));
        assert!(begin.elapsed() < WATCHDOG, "what is there stays wrong, {held} held:\n{all}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

//! What the file system, the control group and the host could still give.
//!
//! # Invariants
//!
//! 1. What is free in the file system is asked each time. What the memory of the host is, which the
//!    kernel tells in several texts, counts for a moment and for a few bytes.
//! 2. What is not known limits nothing.

use dmce_sys::clock;
use dmce_sys::headroom::{self, LimitedBy};
use dmce_sys::object::{ObjectDir, ObjectError};

/// How long a look at the memory of the host counts, and for how many bytes. The margin is for what
/// others take meanwhile.
const SURVEY_MS: u64 = 100;
const SURVEY_BYTES: u64 = 64 << 20;

/// What the file system and the host could still give, before the margin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes free in the file system; `None` without a limit.
    pub file_system: Option<u64>,
    /// Bytes free on the host or in the control group, and which; `None` if not known.
    pub memory: Option<(u64, LimitedBy)>,
}

/// Looks at the room, and remembers for a moment what is slow to find out: the memory of the host
/// and of the control groups, which are texts of the kernel.
#[derive(Debug, Default)]
pub struct Surveyor {
    last: Option<Survey>,
}

#[derive(Debug)]
struct Survey {
    memory: (u64, LimitedBy),
    at_ms: u64,
    /// Bytes that were promised since.
    promised: u64,
}

impl Surveyor {
    /// The room for `bytes` as it is, or was a moment ago without what was promised since.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::free_bytes`].
    pub fn look(&mut self, bytes: u64, dir: &ObjectDir) -> Result<Room, ObjectError> {
        let now = clock::monotonic_ms();
        let counts = |survey: &&Survey| {
            let is_young = now.saturating_sub(survey.at_ms) < SURVEY_MS;
            is_young && survey.promised.saturating_add(bytes) <= SURVEY_BYTES
        };
        match self.last.as_ref().filter(counts) {
            Some(Survey { memory: (free, by), promised, .. }) => {
                let memory = Some((free.saturating_sub(*promised), *by));
                Ok(Room { file_system: file_system(dir)?, memory })
            }
            None => self.look_again(dir),
        }
    }

    /// The room as it is.
    ///
    /// # Errors
    ///
    /// As [`ObjectDir::free_bytes`].
    pub fn look_again(&mut self, dir: &ObjectDir) -> Result<Room, ObjectError> {
        let memory = headroom::headroom().ok().map(|found| (found.bytes, found.limited_by));
        let at_ms = clock::monotonic_ms();
        self.last = memory.map(|memory| Survey { memory, at_ms, promised: 0 });
        Ok(Room { file_system: file_system(dir)?, memory })
    }

    /// Bytes were promised.
    pub fn promised(&mut self, bytes: u64) {
        if let Some(survey) = &mut self.last {
            survey.promised = survey.promised.saturating_add(bytes);
        }
    }
}

/// Bytes free in the file system; `None` without a limit.
fn file_system(dir: &ObjectDir) -> Result<Option<u64>, ObjectError> {
    // A tmpfs without a limit says that it has no blocks, free or not.
    Ok(if dir.total_bytes()? == 0 { None } else { Some(dir.free_bytes()?) })
}

//! What plain pointers have stored and is not on all copies: found by what the kernel notes.
//!
//! ```text
//!   mapped, populated --> NOTED: clean ------ sync: the pages that were stored to -----+
//!                           ^   the scan says which, and they count as clean again     |
//!                           +----------------- they are on all copies -----------------+
//!
//!   UNKNOWN: all of a part is brought, and noted from then on. So it is after another object was
//!            laid beneath it, after a page was found gone, and after a sync that did not end.
//! ```
//!
//! # Invariants
//!
//! 1. A part is NOTED while each page that was stored to since all copies were equal is one that
//!    the kernel will list. What was listed and is not on all copies makes it UNKNOWN.
//! 2. One sync at a time: two would each be told of some of the pages.
//! 3. Nothing is brought while the pins are locked.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use dmce_abi::Status;
use dmce_abi::limits::PAGE_BYTES;
use dmce_shm::session::pin::PinnedRange;
use dmce_sys::dirty::{DirtyError, Grain, Kind, Tracker};

use super::core::Core;
use super::parts::{Laid, Noted};
use crate::error::Error;

/// How stores are noted in this session.
#[derive(Debug, Default)]
pub(crate) struct Tracking {
    /// Opened when memory with copies is first mapped as a whole.
    tracker: OnceLock<Tracker>,
    /// The right to sync.
    turn: Mutex<()>,
}

/// What is to be brought of a part of a mapping: ranges of it, from its first byte on.
struct Due {
    part: usize,
    ranges: Vec<Range<u64>>,
}

impl Tracking {
    fn tracker(&self) -> &Tracker {
        self.tracker.get_or_init(|| {
            let tracker = Tracker::open(Grain::Huge);
            if let Some(reason) = tracker.reason() {
                tracing::info!(%reason, "stores by plain pointers are not noted: syncs bring all");
            }
            tracker
        })
    }
}

impl Core {
    /// Has the stores to a mapping with copies noted, before its pointer is given. If another call
    /// was given it meanwhile, as that of a region, it may have stored already: all of it is
    /// brought then.
    pub(super) fn track(&self, pointer: usize) {
        let noted = self.with_only_laid(pointer, |laid| {
            if !laid.has_copies() {
                return Ok(());
            }
            let tracker = self.tracking.tracker();
            (0..laid.parts_count()).try_for_each(|part| note(laid, tracker, part))
        });
        if let Some(Err(error)) = noted {
            tracing::debug!(%error, "stores to a mapping are not noted");
        }
    }

    /// Brings what was stored to a range of a mapping to all copies.
    pub(super) fn bring_stored(
        &self,
        (pointer, whole): (usize, PinnedRange),
        wanted: Range<u64>,
    ) -> Result<(), Error> {
        let carry = |range: Range<u64>| {
            let (addr, bytes) = (whole.addr + range.start, range.end - range.start);
            self.carry(PinnedRange { addr, bytes, ..whole })
        };
        let opened = self.tracking.tracker.get();
        let Some(tracker) = opened.filter(|it| it.kind() == Kind::WriteProtect) else {
            return carry(wanted);
        };
        let _turn = self.tracking.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.with_laid(pointer, |laid| due_in(laid, tracker, &wanted));
        let mut lost = Ok(());
        for Due { part, ranges } in found.unwrap_or_default() {
            let (mut is_whole, is_empty) = (true, ranges.is_empty());
            for range in ranges {
                match carry(range) {
                    // What is lost was brought as far as that goes.
                    Err(error) if error.status() == Status::Lost => {
                        (is_whole, lost) = (false, Err(error));
                    }
                    carried => carried?,
                }
            }
            let noted = self.with_laid(pointer, |laid| {
                if is_whole {
                    laid.note_brought(part);
                }
                laid.was_laid_again(part)
            });
            if noted.unwrap_or_default() && !is_empty {
                let text = "what was stored by the pointer is gone with the copy beneath it";
                lost = Err(Error::new(Status::Lost, text));
            }
        }
        lost
    }
}

/// Has the stores to a part noted from now on.
fn note(laid: &mut Laid, tracker: &Tracker, part: usize) -> Result<(), DirtyError> {
    let Some(range) = laid.tracked_range(part) else { return Ok(()) };
    if tracker.kind() == Kind::Compare {
        return Ok(());
    }
    tracker.track(range)?;
    laid.set_noted(part, Noted::All);
    Ok(())
}

/// What was stored to a range of a mapping, part by part. All of a part of which that is not known,
/// which is noted from now on.
fn due_in(laid: &mut Laid, tracker: &Tracker, wanted: &Range<u64>) -> Vec<Due> {
    let mut due = Vec::new();
    for part in 0..laid.parts_count() {
        let whole = laid.range_of(part);
        let (start, end) = (whole.start.max(wanted.start), whole.end.min(wanted.end));
        if start >= end {
            continue;
        }
        if laid.tracked_range(part).is_none() {
            // Of one copy when it was mapped: it may have another by now.
            due.push(Due { part, ranges: vec![start..end; 1] });
            continue;
        }
        let scanned = match laid.noted(part) {
            Noted::All if !laid.is_patched(part) => scan(laid, tracker, part, &(start..end)).ok(),
            _ => None,
        };
        let ranges = scanned.unwrap_or_else(|| {
            let all = match note(laid, tracker, part) {
                Ok(()) => whole,
                Err(error) => {
                    tracing::debug!(%error, "stores to a part of a mapping are not noted");
                    laid.set_noted(part, Noted::Nothing);
                    start..end
                }
            };
            vec![all; 1]
        });
        // Until all of it is where it belongs.
        if laid.noted(part) == Noted::All {
            laid.set_noted(part, Noted::Bringing);
        }
        due.push(Due { part, ranges });
    }
    due
}

/// The pages of a part in a range of the mapping that were stored to.
fn scan(
    laid: &Laid,
    tracker: &Tracker,
    part: usize,
    wanted: &Range<u64>,
) -> Result<Vec<Range<u64>>, DirtyError> {
    let whole = laid.range_of(part);
    let first = (wanted.start - whole.start) / PAGE_BYTES * PAGE_BYTES;
    let last = (wanted.end - whole.start).next_multiple_of(PAGE_BYTES);
    let Some(pages) = laid.tracked_range(part) else { return Ok(Vec::new()) };
    let bytes = (last - first).min(pages.len() as u64 - first);
    let Ok(pages) = pages.part(first, bytes) else { return Ok(Vec::new()) };
    let (mut found, mut scan) = (Vec::new(), tracker.scan(pages)?);
    while let Some(runs) = scan.next_runs()? {
        found.extend(runs.iter().map(|run| {
            let start = whole.start + first + run.offset;
            start..(start + run.bytes).min(whole.end)
        }));
    }
    Ok(found)
}

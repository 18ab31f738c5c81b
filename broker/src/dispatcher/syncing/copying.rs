//! What a copy that is syncing has of the bytes of the others, and what it lacks.

use std::collections::VecDeque;
use std::ops::Range;

use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::SYNC_BYTES_MAX;

use super::pointers::Pointers;
use crate::dispatcher::event::Millis;

/// What it has, and what it lacks.
#[derive(Debug, Default)]
pub(super) struct Copying {
    /// What is behind this was not asked for yet.
    pub(super) begun: u64,
    /// What is to be copied before that, the next one first.
    pub(super) again: VecDeque<Range<u64>>,
    /// What its daemon was asked for, and has yet to answer.
    pub(super) asked: Vec<Range<u64>>,
    /// How long the last answers were awaited that brought nothing; 0 if the last one did.
    pub(super) pause_ms: u64,
    /// Until when nothing is asked for.
    pub(super) rests: Option<Millis>,
    /// What is asked for next, and when: as fast as copies may be made.
    pub(super) booked: Option<(Millis, Range<u64>)>,
    /// Whether the headers were written anew because nothing could be copied for long.
    pub(super) is_renamed: bool,
    /// Whether pointers into the block are given meanwhile.
    pub(super) pointers: Pointers,
}

impl Copying {
    /// Whether it has all of so many bytes.
    pub(super) fn is_all(&self, committed: u64) -> bool {
        let is_begun = self.begun >= committed && self.booked.is_none();
        is_begun && self.again.is_empty() && self.asked.is_empty()
    }

    /// The next part, of a block of so many bytes.
    pub(super) fn next(&mut self, committed: u64) -> Option<Range<u64>> {
        let mut range = match self.again.pop_front() {
            Some(range) => range,
            None if self.begun < committed => {
                let range = self.begun..committed;
                self.begun = committed;
                range
            }
            None => return None,
        };
        // Of a huge page no two parts.
        let most = u64::from(SYNC_BYTES_MAX);
        let end = (range.start / most + 1) * most;
        if range.end > end {
            self.again.push_front(end..range.end);
            range.end = end;
        }
        Some(range)
    }

    /// How many bytes of so many it lacks.
    pub(super) fn left(&self, committed: u64) -> u64 {
        let booked = self.booked.iter().map(|(_, part)| part);
        let parts = self.again.iter().chain(&self.asked).chain(booked);
        let parts: u64 = parts.map(|part| part.end - part.start).sum();
        parts.saturating_add(committed.saturating_sub(self.begun)).min(committed)
    }

    /// Of a part nothing was done: somebody has its first page, which comes again last.
    pub(super) fn pass_over(&mut self, part: Range<u64>) {
        let page = part.end.min((part.start / PAGE_BYTES + 1) * PAGE_BYTES);
        self.again.push_back(part.start..page);
        if page < part.end {
            self.again.push_front(page..part.end);
        }
    }
}

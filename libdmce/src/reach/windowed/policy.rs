//! Which windows are worth mapping: those that are touched more than what they would displace.
//!
//! A window costs several microseconds, an access without one about one. So a window is mapped
//! for scattered accesses only when it was touched several times, and, where another one has to go
//! for it, clearly more often than that one was used. Random accesses to far more than the budget
//! thus stay system calls, whatever the ratio of the two.
//!
//! # Invariants
//!
//! 1. Counts are of the recent past: all of them are halved now and then, and a collision in the
//!    table takes from the one that is there.
#![forbid(unsafe_code)]

/// Touches that make a window worth a free place.
const TOUCHES_FREE: u32 = 2;
/// Touches that make it worth another window's place, at least.
const TOUCHES_TAKEN: u32 = 4;
const ENTRIES: usize = 256;
const COUNT_BITS: u32 = 8;
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;

/// How often a window's hits are counted up to.
pub(super) const HITS_MAX: u32 = COUNT_MAX;

/// The recent touches of windows that are not mapped: a table of tag and count.
#[derive(Debug)]
pub(super) struct Touches {
    entries: [u32; ENTRIES],
    misses: u32,
    misses_per_age: u32,
}

impl Touches {
    /// For a part of the cache that has so many places.
    pub(super) fn new(places: usize) -> Self {
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        Self { entries: [0; ENTRIES], misses: 0, misses_per_age: places.max(64).saturating_mul(16) }
    }

    /// Notes a touch; returns how many there were recently.
    pub(super) fn note(&mut self, hash: u32) -> u32 {
        let tag = hash & !COUNT_MAX;
        let entry = &mut self.entries[(hash as usize) % ENTRIES];
        let count = *entry & COUNT_MAX;
        if *entry & !COUNT_MAX == tag {
            *entry = tag | (count + 1).min(COUNT_MAX);
        } else if count <= 1 {
            *entry = tag | 1;
        } else {
            *entry -= 1;
            return 0;
        }
        *entry & COUNT_MAX
    }

    /// Forgets the touches of a window that is mapped now.
    pub(super) fn clear(&mut self, hash: u32) {
        let entry = &mut self.entries[(hash as usize) % ENTRIES];
        if *entry & !COUNT_MAX == hash & !COUNT_MAX {
            *entry = 0;
        }
    }

    /// Counts a miss. True if it is time to halve all counts; those of this table are.
    pub(super) fn ages(&mut self) -> bool {
        self.misses += 1;
        if self.misses < self.misses_per_age {
            return false;
        }
        self.misses = 0;
        for entry in &mut self.entries {
            *entry = (*entry & !COUNT_MAX) | ((*entry & COUNT_MAX) / 2);
        }
        true
    }
}

/// Whether a window that was touched so often is worth a place where a window is, if any, that was
/// hit so often.
pub(super) const fn pays(touches: u32, hits_there: Option<u32>) -> bool {
    match hits_there {
        None => touches >= TOUCHES_FREE,
        Some(hits) => touches >= TOUCHES_TAKEN && touches > 2 * hits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_touches_count_and_a_collision_takes_from_them() {
        let mut touches = Touches::new(8);
        let (here, there) = (0x1200, 0x3400);
        assert_eq!([touches.note(here), touches.note(here), touches.note(here)], [1, 2, 3]);
        assert_eq!(touches.note(there), 0);
        assert_eq!(touches.note(here), 3);
        touches.clear(here);
        assert_eq!(touches.note(there), 1);
    }

    #[test]
    fn what_was_touched_long_ago_is_forgotten() {
        let mut touches = Touches::new(8);
        for _ in 0..8 {
            touches.note(0x700);
        }
        let mut ages = 0;
        while ages < 4 {
            ages += u32::from(touches.ages());
        }
        assert_eq!(touches.note(0x700), 1);
    }

    #[test]
    fn a_used_window_is_displaced_by_a_more_used_one_alone() {
        assert!(!pays(1, None));
        assert!(pays(2, None));
        assert!(!pays(3, Some(0)));
        assert!(pays(4, Some(0)));
        assert!(!pays(40, Some(20)));
        assert!(pays(41, Some(20)));
    }
}

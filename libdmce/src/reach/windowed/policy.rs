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

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

/// Touches that make a window worth a free place.
const TOUCHES_FREE: u32 = 2;
/// How many touches more than twice the hits of another window make it worth that one's place. With
/// fewer, chance alone would exchange windows that are used alike.
const TOUCHES_MORE: u32 = 8;
const ENTRIES: usize = 1024;
/// Counts are halved after so many misses for each place.
const MISSES_PER_PLACE: u32 = 16;
const PLACES_MIN: u32 = 32;
const COUNT_BITS: u32 = 8;
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;

/// How often a window's hits are counted up to: more would only speak for it longer when it is not
/// used any more.
pub(super) const HITS_MAX: u32 = 63;

/// The recent touches of windows that are not mapped: a table of tag and count.
///
/// Threads load and store without a lock: a touch that is lost delays a window, and nothing else.
#[derive(Debug)]
pub(super) struct Touches {
    entries: Box<[AtomicU32]>,
    misses: AtomicU32,
    misses_per_age: u32,
}

impl Touches {
    /// For a cache that has so many places.
    pub(super) fn new(places: usize) -> Self {
        let places = u32::try_from(places).unwrap_or(u32::MAX);
        Self {
            entries: (0..ENTRIES).map(|_| AtomicU32::new(0)).collect(),
            misses: AtomicU32::new(0),
            misses_per_age: places.max(PLACES_MIN).saturating_mul(MISSES_PER_PLACE),
        }
    }

    /// Notes a touch; returns how many there were recently.
    pub(super) fn note(&self, hash: u32) -> u32 {
        let (entry, tag) = (self.entry(hash), hash & !COUNT_MAX);
        let before = entry.load(Relaxed);
        let count = before & COUNT_MAX;
        let (now, noted) = if before & !COUNT_MAX == tag {
            let more = (count + 1).min(COUNT_MAX);
            (tag | more, more)
        } else if count <= 1 {
            (tag | 1, 1)
        } else {
            (before - 1, 0)
        };
        entry.store(now, Relaxed);
        noted
    }

    /// Forgets the touches of a window that is mapped now.
    pub(super) fn clear(&self, hash: u32) {
        let entry = self.entry(hash);
        if entry.load(Relaxed) & !COUNT_MAX == hash & !COUNT_MAX {
            entry.store(0, Relaxed);
        }
    }

    /// Counts a miss. True if it is time to halve all counts; those of this table are.
    pub(super) fn age(&self) -> bool {
        let misses = self.misses.load(Relaxed) + 1;
        if misses < self.misses_per_age {
            self.misses.store(misses, Relaxed);
            return false;
        }
        self.misses.store(0, Relaxed);
        for entry in &self.entries {
            let word = entry.load(Relaxed);
            entry.store((word & !COUNT_MAX) | ((word & COUNT_MAX) / 2), Relaxed);
        }
        true
    }

    /// The entry of a hash. Place and tag together tell hashes apart.
    fn entry(&self, hash: u32) -> &AtomicU32 {
        &self.entries[(hash ^ hash >> COUNT_BITS) as usize % ENTRIES]
    }
}

/// Whether a window that was touched so often is worth a place where a window is, if any, that was
/// hit so often.
pub(super) const fn pays(touches: u32, hits_there: Option<u32>) -> bool {
    match hits_there {
        None => touches >= TOUCHES_FREE,
        Some(hits) => touches > 2 * hits + TOUCHES_MORE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_touches_count_and_a_collision_takes_from_them() {
        let touches = Touches::new(8);
        // Other tags, the same place in the table.
        let (here, there) = (0x1200, 0x10_1200);
        assert_eq!([touches.note(here), touches.note(here), touches.note(here)], [1, 2, 3]);
        assert_eq!(touches.note(there), 0);
        assert_eq!(touches.note(here), 3);
        touches.clear(here);
        assert_eq!(touches.note(there), 1);
    }

    #[test]
    fn what_was_touched_long_ago_is_forgotten() {
        let touches = Touches::new(8);
        for _ in 0..8 {
            touches.note(0x700);
        }
        let mut ages = 0;
        while ages < 4 {
            ages += u32::from(touches.age());
        }
        assert_eq!(touches.note(0x700), 1);
    }

    #[test]
    fn a_used_window_is_displaced_by_a_more_used_one_alone() {
        assert!(!pays(1, None));
        assert!(pays(2, None));
        assert!(!pays(8, Some(0)));
        assert!(pays(9, Some(0)));
        assert!(!pays(48, Some(20)));
        assert!(pays(49, Some(20)));
    }

    /// A shard of the cache, as far as the policy sees it.
    struct Model {
        touches: Touches,
        /// The windows that are mapped, and their hits.
        places: Vec<Option<(u32, u32)>>,
        hits: u32,
        maps: u32,
    }

    impl Model {
        fn new(places: usize) -> Self {
            Self { touches: Touches::new(places), places: vec![None; places], hits: 0, maps: 0 }
        }

        fn access(&mut self, window: u32) {
            let found = self.places.iter_mut().flatten().find(|(shown, _)| *shown == window);
            if let Some((_, hits)) = found {
                *hits = (*hits + 1).min(HITS_MAX);
                self.hits += 1;
                return;
            }
            if self.touches.age() {
                self.places.iter_mut().flatten().for_each(|(_, hits)| *hits /= 2);
            }
            let hash = window.wrapping_mul(0x9e37_79b9);
            let count = self.touches.note(hash);
            let used = |place: &&mut Option<(u32, u32)>| place.map(|(_, hits)| hits);
            let least = self.places.iter_mut().min_by_key(used).expect("there are places");
            if pays(count, least.map(|(_, hits)| hits)) {
                self.touches.clear(hash);
                *least = Some((window, count));
                self.maps += 1;
            }
        }
    }

    #[test]
    fn random_accesses_to_more_than_fits_hardly_ever_map() {
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((seed >> 33) % below).expect("small")
        };
        for windows in [48, 64, 128, 256, 1024, 8192] {
            let mut model = Model::new(32);
            for _ in 0..200_000 {
                model.access(random(windows));
            }
            // A window costs as much as some twenty accesses: less than a tenth in all.
            assert!(model.maps < 32 + 200_000 / 250, "{} maps, {windows} windows", model.maps);
        }
    }

    #[test]
    fn what_is_used_often_is_mapped_soon_also_after_a_change() {
        let mut model = Model::new(32);
        for phase in 0..4 {
            for access in 0..20_000_u32 {
                // 24 windows take turns; now and then there is another.
                let other = access % 16 == 15;
                model.access(if other { 5_000 + access } else { phase * 100 + access % 24 });
            }
        }
        let hits = f64::from(model.hits) / 80_000.0;
        assert!(hits > 0.85, "{hits}");
    }
}

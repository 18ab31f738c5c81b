//! The OS-to-DMCE table of one session (FIG. 3, 11): where it says that it has mapped what.
//!
//! # Invariants
//!
//! 1. The entries are the session's claims. They are shown, and decide nothing.
//! 2. Their OS ranges do not overlap; their DMCE ranges may.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// The first DMCE address.
    pub addr: u64,
    /// Bytes; not 0, and neither range wraps.
    pub bytes: u64,
    /// The first OS address.
    pub os_address: u64,
    /// Whether it can be written there.
    pub writable: bool,
}

/// Why an entry is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum MappingError {
    /// The table is full.
    #[error("the session has {limit} mappings, limit {limit}")]
    Full { limit: usize },
    /// Something else is mapped there.
    #[error("{os_address:#x} is mapped already")]
    Overlap { os_address: u64 },
}

/// The entries of one session.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    by_os: BTreeMap<u64, Mapping>,
    by_addr: BTreeSet<(u64, u64)>,
}

impl Mappings {
    /// Adds an entry.
    ///
    /// # Errors
    ///
    /// [`MappingError`]; then the table is as it was.
    pub(super) fn add(&mut self, mapping: Mapping, limit: usize) -> Result<(), MappingError> {
        if self.by_os.len() >= limit {
            return Err(MappingError::Full { limit });
        }
        let end = mapping.os_address + mapping.bytes;
        if let Some((_, before)) = self.by_os.range(..end).next_back()
            && before.os_address + before.bytes > mapping.os_address
        {
            return Err(MappingError::Overlap { os_address: before.os_address });
        }
        self.by_os.insert(mapping.os_address, mapping);
        self.by_addr.insert((mapping.addr, mapping.os_address));
        Ok(())
    }

    /// Takes the entry out that begins at an OS address. `false` if there is none.
    pub(super) fn remove(&mut self, os_address: u64) -> bool {
        let Some(mapping) = self.by_os.remove(&os_address) else { return false };
        self.by_addr.remove(&(mapping.addr, os_address));
        true
    }

    /// Takes all entries out that begin in a range of DMCE addresses.
    pub(super) fn remove_range(&mut self, addrs: Range<u64>) {
        let gone: Vec<_> = self.by_addr.range((addrs.start, 0)..(addrs.end, 0)).copied().collect();
        for (_, os_address) in gone {
            self.remove(os_address);
        }
    }

    /// The entries that contain `addr`, of those that begin at `from` or later.
    pub(super) fn find(&self, from: u64, addr: u64) -> impl Iterator<Item = &Mapping> {
        let begun = self.by_addr.range((from, 0)..=(addr, u64::MAX));
        let entries = begun.filter_map(|(_, os_address)| self.by_os.get(os_address));
        entries.filter(move |mapping| addr - mapping.addr < mapping.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::test_random::Random;

    fn mapping(addr: u64, bytes: u64, os_address: u64) -> Mapping {
        Mapping { addr, bytes, os_address, writable: false }
    }

    #[test]
    fn two_entries_never_share_an_os_address_and_the_table_is_bounded() {
        let mut mappings = Mappings::default();
        mappings.add(mapping(0, 10, 100), 2).unwrap();
        for os_address in [91, 100, 109] {
            let overlap = mappings.add(mapping(50, 10, os_address), 2);
            assert_eq!(overlap, Err(MappingError::Overlap { os_address: 100 }));
        }
        mappings.add(mapping(0, 10, 110), 2).unwrap();
        assert_eq!(
            mappings.add(mapping(0, 1, 500), 2).unwrap_err().to_string(),
            "the session has 2 mappings, limit 2"
        );
        assert!(mappings.remove(100) && !mappings.remove(100));
    }

    /// Against a plain list.
    #[test]
    fn finds_every_place_of_a_byte() {
        for seed in 0..50 {
            let mut random = Random::new(seed);
            let mut mappings = Mappings::default();
            let mut model: Vec<Mapping> = Vec::new();
            for _ in 0..200 {
                let mut number = |bound| u64::from(random.below(bound));
                let entry = mapping(number(60), 1 + number(20), number(300));
                let os = |m: &Mapping| m.os_address..m.os_address + m.bytes;
                match number(8) {
                    0 => {
                        let range = entry.addr..entry.addr + entry.bytes;
                        mappings.remove_range(range.clone());
                        model.retain(|m| !range.contains(&m.addr));
                    }
                    1 | 2 => {
                        let found = model.iter().position(|m| m.os_address == entry.os_address);
                        assert_eq!(mappings.remove(entry.os_address), found.is_some());
                        found.map(|place| model.swap_remove(place));
                    }
                    _ => {
                        let apart = |m: &Mapping| {
                            os(m).end <= os(&entry).start || os(&entry).end <= os(m).start
                        };
                        let fits = model.iter().all(apart) && model.len() < 20;
                        assert_eq!(mappings.add(entry, 20).is_ok(), fits);
                        model.extend(fits.then_some(entry));
                    }
                }
                let addr = number(90);
                let mut found: Vec<u64> = mappings.find(0, addr).map(|m| m.os_address).collect();
                let contains = |m: &&Mapping| (m.addr..m.addr + m.bytes).contains(&addr);
                let mut expected: Vec<u64> =
                    model.iter().filter(contains).map(|m| m.os_address).collect();
                found.sort_unstable();
                expected.sort_unstable();
                assert_eq!(found, expected, "seed {seed}");
            }
        }
    }
}

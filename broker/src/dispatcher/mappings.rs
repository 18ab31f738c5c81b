//! The OS-to-DMCE table of one session (FIG. 3, 11): where it says that it has mapped what.
//!
//! # Invariants
//!
//! 1. The entries are the session's claims. They are shown, and decide nothing.
//! 2. One entry begins at an OS address, the last that was told. Ranges may overlap: pointers are
//!    into one mapping, or to the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

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

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the session has {limit} mappings, limit {limit}")]
pub(super) struct MappingsFull {
    limit: usize,
}

/// The entries of one session.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    by_os: BTreeMap<u64, Mapping>,
    by_addr: BTreeSet<(u64, u64)>,
}

impl Mappings {
    /// Adds an entry, in the place of the one that begins at the same OS address.
    ///
    /// # Errors
    ///
    /// [`MappingsFull`]; then the table is as it was.
    pub(super) fn add(&mut self, mapping: Mapping, limit: usize) -> Result<(), MappingsFull> {
        if !self.remove(mapping.os_address) && self.by_os.len() >= limit {
            return Err(MappingsFull { limit });
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

    /// The entries that begin behind an OS address, by that.
    pub(super) fn after(&self, os_address: u64) -> impl Iterator<Item = &Mapping> {
        self.by_os.range((Bound::Excluded(os_address), Bound::Unbounded)).map(|(_, found)| found)
    }

    /// Whether an entry reaches into a range of addresses, of those that begin at `from` or later.
    pub(super) fn reach(&self, from: u64, addrs: &Range<u64>) -> bool {
        let begun = self.by_addr.range((from, 0)..(addrs.end, 0));
        let mut entries = begun.filter_map(|(_, os_address)| self.by_os.get(os_address));
        entries.any(|mapping| mapping.addr.saturating_add(mapping.bytes) > addrs.start)
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
    fn the_last_word_about_an_os_address_counts_and_the_table_is_bounded() {
        let mut mappings = Mappings::default();
        mappings.add(mapping(50, 10, 100), 2).unwrap();
        // A pointer into the same mapping.
        mappings.add(mapping(55, 10, 105), 2).unwrap();
        assert!(mappings.find(0, 57).map(|found| found.os_address).eq([100, 105]));
        // What was there has gone.
        mappings.add(mapping(0, 10, 100), 2).unwrap();
        assert!(mappings.find(0, 57).map(|found| found.os_address).eq([105]));
        assert!(mappings.find(0, 7).map(|found| found.os_address).eq([100]));
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
                        let same = model.iter().position(|m| m.os_address == entry.os_address);
                        let fits = same.is_some() || model.len() < 20;
                        assert_eq!(mappings.add(entry, 20).is_ok(), fits);
                        same.map(|place| model.swap_remove(place));
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

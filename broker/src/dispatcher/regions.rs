//! The region table: names, attributes, who has them open, and who may.
//!
//! # Invariants
//!
//! 1. A region's first block names it for its life; a name has one region at most.
//! 2. A region without a name of its own (two were found that claimed it) is kept, and cannot be
//!    opened.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use dmce_abi::block::{BlockId, Region, SessionId};
use dmce_abi::wire::client::RegionName;

use super::event::Rights;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller<'a> {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: &'a [u32],
}

/// What `caller` may do with a region: as with a file of its owner, group and mode.
pub(super) fn rights_of(region: &Region, caller: Caller<'_>) -> Rights {
    if caller.uid == 0 {
        return Rights::ALL;
    }
    let member = caller.gid == region.gid || caller.groups.contains(&region.gid);
    let shift = match (caller.uid == region.uid, member) {
        (true, _) => 6,
        (false, true) => 3,
        (false, false) => 0,
    };
    let bits = region.mode >> shift;
    Rights { read: bits & 4 != 0, write: bits & 2 != 0 }
}

/// Whether `caller` may learn that a region is there: its owner, and who has any right.
pub(super) fn may_know(region: &Region, caller: Caller<'_>) -> bool {
    caller.uid == region.uid || rights_of(region, caller).any()
}

/// One region.
#[derive(Debug)]
pub(super) struct RegionEntry {
    /// Its attributes.
    pub attributes: Region,
    /// Sessions that have it open.
    pub opens: BTreeSet<SessionId>,
    /// Whether the name leads here.
    pub named: bool,
    /// Whether it was found without the copy that is made last, and nobody has had it open: it may
    /// never have been whole.
    pub half_made: bool,
}

impl RegionEntry {
    /// Its name.
    pub(super) fn name(&self) -> RegionName {
        RegionName { volume: self.attributes.volume.clone(), name: self.attributes.name.clone() }
    }
}

/// All regions.
#[derive(Debug, Default)]
pub(super) struct Regions {
    by_first: BTreeMap<BlockId, RegionEntry>,
    names: BTreeMap<RegionName, BlockId>,
}

impl Regions {
    /// Enters a region, and its name unless that is taken. Returns whether it got the name.
    pub(super) fn add(&mut self, first: BlockId, attributes: Region) -> bool {
        let opens = BTreeSet::new();
        let mut region = RegionEntry { attributes, opens, named: false, half_made: false };
        let name = region.name();
        region.named = !self.names.contains_key(&name);
        let named = region.named;
        if named {
            self.names.insert(name, first);
        }
        self.by_first.insert(first, region);
        named
    }

    /// Takes a region out.
    pub(super) fn remove(&mut self, first: BlockId) -> Option<RegionEntry> {
        let region = self.by_first.remove(&first)?;
        if region.named {
            self.names.remove(&region.name());
        }
        Some(region)
    }

    /// The region with that name.
    pub(super) fn by_name(&self, name: &RegionName) -> Option<BlockId> {
        self.names.get(name).copied()
    }

    /// The region that has the name of the one that begins with `first`.
    pub(super) fn namesake(&self, first: BlockId) -> Option<&RegionEntry> {
        let name = self.by_first.get(&first)?.name();
        self.by_first.get(self.names.get(&name)?)
    }

    /// The region that begins with `first`.
    pub(super) fn get(&self, first: BlockId) -> Option<&RegionEntry> {
        self.by_first.get(&first)
    }

    /// The region that begins with `first`, to change it.
    pub(super) fn get_mut(&mut self, first: BlockId) -> Option<&mut RegionEntry> {
        self.by_first.get_mut(&first)
    }

    /// Regions with a name, sorted, after `after`.
    pub(super) fn after<'a>(
        &'a self,
        after: &RegionName,
    ) -> impl Iterator<Item = (BlockId, &'a RegionEntry)> {
        let later = self.names.range((Bound::Excluded(after.clone()), Bound::Unbounded));
        later.filter_map(|(_, first)| self.by_first.get(first).map(|region| (*first, region)))
    }

    /// All regions.
    pub(super) fn all(&self) -> impl Iterator<Item = (BlockId, &RegionEntry)> {
        self.by_first.iter().map(|(first, region)| (*first, region))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_first.len()
    }

    /// Those without a name of their own.
    pub(super) fn nameless(&self) -> usize {
        self.by_first.len() - self.names.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmce_abi::block::{Guid, Ticket};

    fn region(name: &str, mode: u32) -> Region {
        Region {
            volume: "v".into(),
            name: name.into(),
            uid: 10,
            gid: 20,
            mode,
            base_pointer: 0,
            region_size: 1,
            copies: 1,
            created_at: 0,
            created_by: Ticket { session: Guid::default(), number: 0 },
        }
    }

    #[test]
    fn rights_are_those_of_a_file() {
        let rights = |mode, uid, gid, groups: &[u32]| {
            let rights = rights_of(&region("r", mode), Caller { uid, gid, groups });
            (rights.read, rights.write)
        };
        assert_eq!(rights(0o640, 10, 1, &[]), (true, true));
        assert_eq!(rights(0o640, 11, 20, &[]), (true, false));
        assert_eq!(rights(0o640, 11, 1, &[5, 20]), (true, false));
        assert_eq!(rights(0o640, 11, 1, &[5]), (false, false));
        assert_eq!(rights(0o002, 11, 1, &[]), (false, true));
        // As with a file, the owner's bits alone count for the owner.
        assert_eq!(rights(0o066, 10, 20, &[]), (false, false));
        assert_eq!(rights(0o000, 0, 0, &[]), (true, true));
    }

    #[test]
    fn the_second_claim_to_a_name_is_kept_without_it() {
        let id = |id| BlockId::try_from(id).unwrap();
        let mut regions = Regions::default();
        assert!(regions.add(id(1), region("b", 0)));
        assert!(!regions.add(id(2), region("b", 0)));
        assert!(regions.add(id(3), region("a", 0)));
        assert_eq!((regions.len(), regions.nameless()), (3, 1));
        let start = RegionName { volume: String::new(), name: String::new() };
        assert!(regions.after(&start).map(|(first, _)| first).eq([id(3), id(1)]));
        regions.remove(id(2));
        assert_eq!(regions.by_name(&regions.get(id(1)).unwrap().name()), Some(id(1)));
        assert_eq!((regions.len(), regions.nameless()), (2, 0));
    }
}

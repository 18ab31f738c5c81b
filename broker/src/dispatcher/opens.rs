//! The openings of regions of one session.
//!
//! # Invariants
//!
//! 1. Each opening has a place of its own in the session's record, so that a broker that comes back
//!    counts them right.
//! 2. An opening has the number that its client gave it. Those that only a record tells have none
//!    until the client has attached and told its own.
//! 3. What a client tells gives it no right: it only says which of the openings there are it knows.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::BlockId;
use dmce_abi::limits::GRANTS;
use dmce_abi::wire::client::{Opening, OpeningId};

use super::event::{Grant, Rights};

/// Places for grants in a record.
#[expect(clippy::cast_possible_truncation, reason = "440")]
const GRANTS_MAX: u32 = GRANTS as u32;

/// One opening.
#[derive(Clone, Copy, Debug)]
struct Open {
    number: Option<OpeningId>,
    rights: Rights,
    place: u32,
}

/// An opening that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// The region's first block.
    pub first: BlockId,
    /// The place in the record that is free again.
    pub place: u32,
}

/// How what the client knows differs from what there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Settled {
    /// The openings that it does not know, which have ended.
    pub closed: Vec<Closed>,
    /// The numbers that it told and no opening has, each once.
    pub unknown: BTreeSet<OpeningId>,
}

/// The openings of a session.
#[derive(Debug, Default)]
pub(super) struct Opens {
    by_region: BTreeMap<BlockId, Vec<Open>>,
    by_number: BTreeMap<OpeningId, BlockId>,
    places: BTreeSet<u32>,
}

impl Opens {
    /// One more opening of a region, with a number that none has. `None` if the record has no place
    /// left.
    pub(super) fn open(
        &mut self,
        number: OpeningId,
        first: BlockId,
        rights: Rights,
    ) -> Option<Grant> {
        let place = (0..GRANTS_MAX).find(|place| !self.places.contains(place))?;
        self.places.insert(place);
        self.by_number.insert(number, first);
        let open = Open { number: Some(number), rights, place };
        self.by_region.entry(first).or_default().push(open);
        Some(Grant { place, block: first, rights })
    }

    /// An opening that a record told. `false` for a place that cannot be.
    pub(super) fn adopt(&mut self, grant: Grant) -> bool {
        let Grant { place, block, rights } = grant;
        let fits = rights.any() && place < GRANTS_MAX && self.places.insert(place);
        if fits {
            let open = Open { number: None, rights, place };
            self.by_region.entry(block).or_default().push(open);
        }
        fits
    }

    /// What the opening of a number is of, and allows.
    pub(super) fn find(&self, number: OpeningId) -> Option<(BlockId, Rights)> {
        let first = *self.by_number.get(&number)?;
        let openings = self.by_region.get(&first)?;
        let open = openings.iter().find(|open| open.number == Some(number))?;
        Some((first, open.rights))
    }

    /// Ends the opening of a number, if there is one.
    pub(super) fn close(&mut self, number: OpeningId) -> Option<Closed> {
        let first = self.by_number.get(&number).copied()?;
        self.close_where(first, |open| open.number == Some(number)).pop()
    }

    /// Ends all openings of a region. Returns their places.
    pub(super) fn close_all(&mut self, first: BlockId) -> Vec<u32> {
        self.close_where(first, |_| true).into_iter().map(|closed| closed.place).collect()
    }

    /// Takes in what the client knows: those of its openings that have no number get theirs, and
    /// those that it does not know are ended.
    pub(super) fn settle(&mut self, told: &[Opening]) -> Settled {
        let mut known = BTreeSet::new();
        for opening in told {
            known.extend(self.recognize(opening));
        }
        let firsts: Vec<BlockId> = self.regions().collect();
        let unknown = |open: &Open| !known.contains(&open.place);
        let closed = firsts.into_iter().flat_map(|first| self.close_where(first, unknown));
        let closed = closed.collect();
        let numbers = told.iter().map(|opening| opening.opening);
        let unknown = numbers.filter(|number| !self.by_number.contains_key(number)).collect();
        Settled { closed, unknown }
    }

    /// The place of the opening that the client means.
    fn recognize(&mut self, told: &Opening) -> Option<u32> {
        let openings = self.by_region.get_mut(&told.first)?;
        let number = Some(told.opening);
        if self.by_number.contains_key(&told.opening) {
            return openings.iter().find(|open| open.number == number).map(|open| open.place);
        }
        let rights = Rights { read: told.read, write: told.write };
        let is_it = |open: &&mut Open| open.number.is_none() && open.rights == rights;
        let open = openings.iter_mut().find(is_it)?;
        open.number = number;
        self.by_number.insert(told.opening, told.first);
        Some(open.place)
    }

    fn close_where(&mut self, first: BlockId, ends: impl Fn(&Open) -> bool) -> Vec<Closed> {
        let Some(openings) = self.by_region.get_mut(&first) else { return Vec::new() };
        let ended: Vec<Open> = openings.extract_if(.., |open| ends(open)).collect();
        if openings.is_empty() {
            self.by_region.remove(&first);
        }
        let mut closed = Vec::new();
        for Open { number, place, .. } in ended {
            self.places.remove(&place);
            if let Some(number) = number {
                self.by_number.remove(&number);
            }
            closed.push(Closed { first, place });
        }
        closed
    }

    /// What all openings of a region together allow. No right at all if it is not open.
    pub(super) fn rights(&self, first: BlockId) -> Rights {
        let openings = self.by_region.get(&first).into_iter().flatten();
        openings.fold(Rights::default(), |all, open| all.union(open.rights))
    }

    /// The regions that are open.
    pub(super) fn regions(&self) -> impl Iterator<Item = BlockId> {
        self.by_region.keys().copied()
    }

    /// Those of them that begin with a block or a later one, in order.
    pub(super) fn regions_from(&self, first: BlockId) -> impl Iterator<Item = BlockId> {
        self.by_region.range(first..).map(|(first, _)| *first)
    }

    /// How many regions are open.
    pub(super) fn len(&self) -> usize {
        self.by_region.len()
    }

    /// The numbers of all openings, rising; 0 for those without one.
    pub(super) fn numbers(&self) -> Vec<u64> {
        let openings = self.by_region.values().flatten();
        let mut numbers: Vec<u64> =
            openings.map(|open| open.number.map_or(0, |number| number.0)).collect();
        numbers.sort_unstable();
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: Rights = Rights { read: true, write: false };

    fn id(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    fn told(number: u64, first: u32, rights: Rights) -> Opening {
        let Rights { read, write } = rights;
        Opening { opening: OpeningId(number), first: id(first), read, write }
    }

    #[test]
    fn a_close_ends_the_opening_that_it_names_and_no_other() {
        let mut opens = Opens::default();
        let write = opens.open(OpeningId(7), id(5), Rights::ALL).unwrap();
        let read = opens.open(OpeningId(8), id(5), READ).unwrap();
        assert_eq!((write.place, read.place, opens.len()), (0, 1, 1));
        assert_eq!(opens.find(OpeningId(8)), Some((id(5), READ)));
        assert_eq!(opens.close(OpeningId(7)), Some(Closed { first: id(5), place: 0 }));
        assert_eq!(opens.close(OpeningId(7)), None);
        assert_eq!(opens.rights(id(5)), READ);
        assert_eq!(opens.close(OpeningId(8)), Some(Closed { first: id(5), place: 1 }));
        assert_eq!((opens.rights(id(5)), opens.len()), (Rights::default(), 0));
    }

    #[test]
    fn a_record_bounds_the_openings_and_a_place_is_taken_once() {
        let mut opens = Opens::default();
        let grant = Grant { place: 3, block: id(5), rights: READ };
        assert!(opens.adopt(grant) && !opens.adopt(grant));
        assert!(!opens.adopt(Grant { place: GRANTS_MAX, ..grant }));
        let more = (0..).map_while(|number| opens.open(OpeningId(number), id(6), READ)).count();
        assert_eq!(more, GRANTS - 1);
        assert_eq!(opens.close_all(id(5)), [3]);
        assert_eq!(opens.open(OpeningId(1 << 40), id(6), READ).unwrap().place, 3);
    }

    #[test]
    fn what_the_client_does_not_know_is_closed_and_what_it_makes_up_is_not_opened() {
        let mut opens = Opens::default();
        for (place, rights) in [(0, READ), (1, Rights::ALL), (2, READ), (3, READ)] {
            assert!(opens.adopt(Grant { place, block: id(5), rights }));
        }
        opens.open(OpeningId(9), id(6), READ).unwrap();
        let lies = [told(4, 5, Rights { read: false, write: true }), told(9, 5, READ)];
        let truth = [told(1, 5, Rights::ALL), told(2, 5, READ), told(2, 5, READ)];
        let Settled { closed, unknown } = opens.settle(&[&lies[..], &truth[..]].concat());
        let places: Vec<_> = closed.iter().map(|closed| (closed.first, closed.place)).collect();
        assert_eq!(places, [(id(5), 2), (id(5), 3), (id(6), 4)]);
        assert_eq!(unknown, BTreeSet::from([4, 9].map(OpeningId)));
        assert_eq!(opens.find(OpeningId(1)), Some((id(5), Rights::ALL)));
        assert_eq!(opens.find(OpeningId(2)), Some((id(5), READ)));
        assert_eq!(opens.numbers(), [1, 2]);
        // Told again, nothing changes.
        assert_eq!(opens.settle(&truth), Settled::default());
    }
}

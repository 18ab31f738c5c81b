//! What must be at the places of a writer, as far as it has said.
//!
//! # Invariants
//!
//! 1. Nothing is believed of what is found: it is compared with what was there when the place was
//!    looked at last, with all that was acknowledged since over it, and with what was tried then.
//! 2. What nobody has tried to write is as it was, to the byte.
//! 3. No write fails. The last one of all is not answered if its writer was killed over it.

use std::fmt;

use dmce_abi::limits::PAGE_BYTES;

use super::record::{self, PLACE_BYTES};

/// A record, by what it is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    sequence: u64,
    bytes: u64,
}

/// What a place must hold.
#[derive(Clone, Debug)]
struct Place {
    /// What was found there last.
    found: Vec<u8>,
    /// What was acknowledged since, as far as nothing later covers it: the oldest is the longest.
    acknowledged: Vec<Record>,
}

/// What a writer's death may leave of a write that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tear {
    /// Any of its bytes: one copy is as a torn `memcpy` leaves it.
    Bytes,
    /// Any of its pages: with copies, each is as it was or as it was to be.
    Pages,
}

/// What must be at the places of a writer.
#[derive(Clone, Debug)]
pub struct Ledger {
    writer: u32,
    tear: Tear,
    places: Vec<Place>,
    /// What is tried at the moment, and where.
    tried: Option<(usize, Record)>,
    /// The highest sequence that was tried.
    highest: u64,
}

/// A place that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Bytes of the place.
    at: std::ops::Range<usize>,
    acknowledged: Vec<Record>,
    tried: Option<Record>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { at, acknowledged, tried } = self;
        write!(f, "bytes {at:?} are neither of {acknowledged:?} nor of {tried:?}, which was tried")
    }
}

impl Ledger {
    /// Of a writer that has written nothing.
    #[must_use]
    pub fn new(writer: u32, places: u64, tear: Tear) -> Self {
        let found = vec![0; usize::try_from(PLACE_BYTES).expect("a place is small")];
        let place = Place { found, acknowledged: Vec::new() };
        let places = (0..places).map(|_| place.clone()).collect();
        Self { writer, tear, places, tried: None, highest: 0 }
    }

    /// The first sequence that was never tried.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.highest + 1
    }

    /// A record is tried from now on.
    pub(super) fn begin(&mut self, place: usize, sequence: u64, bytes: u64) {
        self.tried = Some((place, Record { sequence, bytes }));
        self.highest = self.highest.max(sequence);
    }

    /// The record that was tried is there.
    pub(super) fn acknowledge(&mut self) {
        let Some((place, record)) = self.tried.take() else { return };
        let acknowledged = &mut self.places[place].acknowledged;
        acknowledged.retain(|earlier| earlier.bytes > record.bytes);
        acknowledged.push(record);
    }

    /// Compares a place with what was found there when nobody writes, which from then on is what it
    /// must hold. True if a record that nobody acknowledged is there in part.
    ///
    /// # Errors
    ///
    /// [`Loss`] if it is neither what was acknowledged last nor what was tried since.
    pub(super) fn settle(&mut self, number: u64, found: &[u8]) -> Result<bool, Loss> {
        let index = usize::try_from(number).expect("there are few places");
        let tried = self.tried.take_if(|(place, _)| *place == index).map(|(_, record)| record);
        let place = &mut self.places[index];
        let over = |bytes: &[u8], record: Record| {
            let record = record::make(self.writer, number, record.sequence, record.bytes);
            [record.as_slice(), &bytes[record.len()..]].concat()
        };
        let acknowledged = std::mem::take(&mut place.acknowledged);
        let old = acknowledged.iter().fold(place.found.clone(), |bytes, one| over(&bytes, *one));
        let new = tried.map_or_else(|| old.clone(), |record| over(&old, record));
        let offset = record::offset(self.writer, number);
        for at in self.tear.parts(offset, found.len()) {
            let has = |bytes: &[u8]| bytes[at.clone()] == found[at.clone()];
            if !has(&old) && !has(&new) {
                return Err(Loss { at, acknowledged, tried });
            }
        }
        found.clone_into(&mut place.found);
        Ok(found != old && found != new)
    }
}

impl Tear {
    /// The parts of a place that are each as they were or as they were to be.
    fn parts(self, offset: u64, bytes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let step = match self {
            Self::Bytes => 1,
            Self::Pages => usize::try_from(PAGE_BYTES).expect("a page is small"),
        };
        let mut begin = 0;
        let before = usize::try_from(offset % step as u64).expect("a page is small");
        std::iter::from_fn(move || {
            let at = begin..((begin + before) / step * step + step - before).min(bytes);
            begin = at.end;
            (!at.is_empty()).then_some(at)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::record::{BYTES_MAX, BYTES_MIN};
    use super::*;

    /// What is there after some records, by sequence and bytes.
    fn after(records: &[(u64, u64)]) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(PLACE_BYTES).unwrap()];
        for (sequence, length) in records {
            let record = record::make(1, 0, *sequence, *length);
            bytes[..record.len()].copy_from_slice(&record);
        }
        bytes
    }

    fn said(tear: Tear, records: &[(u64, u64)]) -> Ledger {
        let mut ledger = Ledger::new(1, 2, tear);
        for (sequence, length) in records {
            ledger.begin(0, *sequence, *length);
            ledger.acknowledge();
        }
        ledger
    }

    #[test]
    fn what_was_acknowledged_must_be_there_to_the_byte() {
        let records = [(1, BYTES_MAX), (2, BYTES_MIN), (3, 5000), (4, 300)];
        let there = after(&records);
        for tear in [Tear::Bytes, Tear::Pages] {
            let ledger = said(tear, &records);
            assert_eq!(ledger.clone().settle(0, &there), Ok(false));
            assert!(ledger.clone().settle(0, &after(&records[..3])).is_err());
            for at in [0, 63, 299, 300, 4999, 5000, there.len() - 1] {
                let mut other = there.clone();
                other[at] ^= 1;
                let loss = ledger.clone().settle(0, &other).unwrap_err();
                assert!(loss.at.contains(&at), "{loss}");
            }
            assert_eq!(ledger.next(), 5);
        }
    }

    #[test]
    fn what_was_tried_may_be_there_in_parts_that_are_whole() {
        let records = [(1, BYTES_MAX), (2, BYTES_MAX)];
        let (old, new) = (after(&records[..1]), after(&records));
        for (tear, torn_at, is_sound) in [
            (Tear::Bytes, 4096, true),
            (Tear::Bytes, 5000, true),
            (Tear::Pages, 5000, false),
            // The place of the second writer begins in the midst of a page.
            (Tear::Pages, 4096 - 136, true),
        ] {
            let mut ledger = said(tear, &records[..1]);
            ledger.begin(0, 2, BYTES_MAX);
            assert_eq!(ledger.clone().settle(0, &old), Ok(false));
            assert_eq!(ledger.clone().settle(0, &new), Ok(false));
            let torn = [&new[..torn_at], &old[torn_at..]].concat();
            let settled = ledger.settle(0, &torn);
            assert_eq!(settled.is_ok(), is_sound, "{tear:?} {torn_at}");
            if is_sound {
                assert_eq!(settled, Ok(true));
                // From now on it is that.
                assert_eq!(ledger.settle(0, &torn), Ok(false));
                assert!(ledger.settle(0, &new).is_err());
            }
        }
    }
}

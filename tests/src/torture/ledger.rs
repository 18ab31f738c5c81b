//! What must be at the places of a writer, as far as it has said.

use std::fmt;

use super::record::Found;

/// What a place must hold.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The sequence that was acknowledged last; 0: none.
    acknowledged: u64,
    /// Those that were tried since, and failed or were not answered: each may be there or not.
    tried: Vec<u64>,
    /// Whether a torn record was found there, so that it may hold anything until the next.
    is_torn: bool,
}

/// What must be at the places of a writer.
#[derive(Clone, Debug)]
pub struct Ledger {
    places: Vec<Place>,
    /// What is tried at the moment, and where.
    under_way: Option<(usize, u64)>,
    /// The highest sequence that was tried.
    highest: u64,
}

/// A place that does not hold what it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    found: Found,
    acknowledged: u64,
    tried: Vec<u64>,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, acknowledged, tried } = self;
        write!(f, "record {acknowledged} was acknowledged, {tried:?} were tried; {found:?}")
    }
}

impl Ledger {
    /// Of a writer that has written nothing.
    #[must_use]
    pub fn new(places: u64) -> Self {
        Self {
            places: (0..places).map(|_| Place::default()).collect(),
            under_way: None,
            highest: 0,
        }
    }

    /// The first sequence that was never tried.
    #[must_use]
    pub const fn next(&self) -> u64 {
        self.highest + 1
    }

    /// A record is tried from now on.
    pub(super) fn begin(&mut self, place: usize, sequence: u64) {
        self.under_way = Some((place, sequence));
        self.highest = self.highest.max(sequence);
        self.places[place].tried.push(sequence);
    }

    /// The record that was tried is there.
    pub(super) fn acknowledge(&mut self) {
        if let Some((place, sequence)) = self.under_way.take() {
            self.places[place] =
                Place { acknowledged: sequence, tried: Vec::new(), is_torn: false };
        }
    }

    /// Compares a place with what was found there when nobody writes, which from then on is what it
    /// must hold. True if a record that nobody acknowledged is there in part.
    ///
    /// # Errors
    ///
    /// [`Loss`] if it is neither what was acknowledged last nor what was tried since.
    pub fn settle(&mut self, place: u64, found: Found) -> Result<bool, Loss> {
        let place = usize::try_from(place).expect("there are few places");
        let Place { acknowledged, tried, is_torn } = std::mem::take(&mut self.places[place]);
        let sequence = match found {
            Found::Nothing => Some(0),
            Found::Whole { sequence } => Some(sequence),
            Found::Torn => None,
        };
        let may_be = |sequence| sequence == acknowledged || tried.contains(&sequence);
        let is_there = match sequence {
            Some(sequence) => may_be(sequence) || is_torn,
            // One copy is as a torn `memcpy` leaves it.
            None => is_torn || !tried.is_empty(),
        };
        if !is_there {
            return Err(Loss { found, acknowledged, tried });
        }
        self.under_way = None;
        let is_torn = sequence.is_none();
        self.places[place] =
            Place { acknowledged: sequence.unwrap_or(0), tried: Vec::new(), is_torn };
        Ok(is_torn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: fn(u64) -> Found = |sequence| Found::Whole { sequence };

    #[test]
    fn what_was_acknowledged_must_be_there_or_what_was_tried_since() {
        let mut ledger = Ledger::new(2);
        assert_eq!(ledger.settle(0, Found::Nothing), Ok(false));
        ledger.begin(0, 1);
        ledger.acknowledge();
        for wrong in [Found::Nothing, Found::Torn, WHOLE(2)] {
            assert!(ledger.clone().settle(0, wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(ledger.clone().settle(0, WHOLE(1)), Ok(false));
        ledger.begin(0, 2);
        for (found, is_torn) in [(WHOLE(1), false), (WHOLE(2), false), (Found::Torn, true)] {
            let mut ledger = ledger.clone();
            assert_eq!(ledger.settle(0, found), Ok(is_torn));
            // From now on it is that.
            assert_eq!(ledger.settle(0, found), Ok(is_torn));
            assert_eq!(ledger.settle(0, WHOLE(3)).is_err(), !is_torn);
        }
        assert!(ledger.settle(0, Found::Nothing).is_err());
        assert_eq!(ledger.next(), 3);
        assert!(ledger.settle(1, Found::Torn).is_err(), "nobody has tried");
    }
}

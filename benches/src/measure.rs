//! Measuring two things in turn, and what is said of the result.
//!
//! # Invariants
//!
//! 1. The two sides of a row alternate: a change of the machine's speed during the run meets both.
//! 2. The ratio of a row is the median of the ratios of its rounds, and all of them lie in the
//!    spread that is shown.
//! 3. The first round warms up and is not counted.

use std::time::Instant;

use crate::Result;

/// Seconds that an operation took on either side, round by round.
#[derive(Clone, Debug)]
pub struct Pair {
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// A figure with the range that its rounds lie in.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// Runs `ours` and `theirs` in turn, each once a round. They get the number of the round, as a
/// seed, and return the seconds of one operation.
///
/// # Errors
///
/// The first error of either.
pub fn alternate(
    rounds: u64,
    mut ours: impl FnMut(u64) -> Result<f64>,
    mut theirs: impl FnMut(u64) -> Result<f64>,
) -> Result<Pair> {
    ours(0)?;
    theirs(0)?;
    let mut pair = Pair { ours: Vec::new(), theirs: Vec::new() };
    for round in 1..=rounds {
        pair.ours.push(ours(round)?);
        pair.theirs.push(theirs(round)?);
    }
    Ok(pair)
}

/// The seconds of one of the `count` operations that `body` does.
///
/// # Errors
///
/// Those of `body`.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn time(count: u64, body: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begin = Instant::now();
    body()?;
    Ok(begin.elapsed().as_secs_f64() / count as f64)
}

/// The middle one of some values, which are at least one.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The least value that at least this share of some values does not exceed. There is at least one.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the share of a length is not negative, and far below 2^52"
)]
pub fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

impl Pair {
    /// Two figures that were taken once.
    #[must_use]
    pub fn of_one(ours: f64, theirs: f64) -> Self {
        Self { ours: vec![ours], theirs: vec![theirs] }
    }

    /// Figures that rounds have taken in turn: as many on either side.
    #[must_use]
    pub fn of_rounds(ours: Vec<f64>, theirs: Vec<f64>) -> Self {
        debug_assert_eq!(ours.len(), theirs.len(), "a round has both");
        Self { ours, theirs }
    }

    /// The rounds of both.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        let both = |one: &[f64], other: &[f64]| [one, other].concat();
        Self { ours: both(&self.ours, &other.ours), theirs: both(&self.theirs, &other.theirs) }
    }

    /// Seconds of one operation of DMCE.
    #[must_use]
    pub fn ours(&self) -> f64 {
        median(&self.ours)
    }

    /// Seconds of one operation of the other side.
    #[must_use]
    pub fn theirs(&self) -> f64 {
        median(&self.theirs)
    }

    /// How many times as fast DMCE is.
    #[must_use]
    pub fn speed(&self) -> Spread {
        self.spread(|ours, theirs| theirs / ours)
    }

    /// How many times as long DMCE takes.
    #[must_use]
    pub fn duration(&self) -> Spread {
        self.spread(|ours, theirs| ours / theirs)
    }

    /// How many seconds longer DMCE takes.
    #[must_use]
    pub fn added(&self) -> Spread {
        self.spread(|ours, theirs| ours - theirs)
    }

    fn spread(&self, compare: impl Fn(f64, f64) -> f64) -> Spread {
        let rounds = self.ours.iter().zip(&self.theirs);
        let values: Vec<f64> = rounds.map(|(&ours, &theirs)| compare(ours, theirs)).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Spread { median: median(&values), least, most }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sides_take_turns_and_the_first_round_is_not_counted() {
        let order = std::cell::RefCell::new(Vec::new());
        let ours = |round: u64| {
            order.borrow_mut().push('a');
            Ok([9.0, 1.0, 2.0, 3.0][usize::try_from(round).unwrap()])
        };
        let theirs = |_| {
            order.borrow_mut().push('b');
            Ok(2.0)
        };
        let pair = alternate(3, ours, theirs).unwrap();
        assert_eq!(order.into_inner().into_iter().collect::<String>(), "abababab");
        assert_eq!(pair.speed(), Spread { median: 1.0, least: 2.0 / 3.0, most: 2.0 });
        assert_eq!(pair.added(), Spread { median: 0.0, least: -1.0, most: 1.0 });
        assert_eq!(pair.duration().most.to_bits(), 1.5_f64.to_bits());
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]).to_bits(), 2.5_f64.to_bits());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let found = [0.0, 0.01, 0.5, 0.985, 0.99, 1.0].map(|share| percentile(&values, share));
        assert_eq!(found.map(f64::to_bits), [1.0, 1.0, 50.0, 99.0, 99.0, 100.0].map(f64::to_bits));
        assert_eq!(percentile(&[7.0], 0.99).to_bits(), 7.0_f64.to_bits());
    }
}

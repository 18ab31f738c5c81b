//! What is due when.
//!
//! # Invariants
//!
//! 1. A thing has one time at most: setting it again moves it.
//! 2. The shell is told a time only when it is another than the one it was told.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, SessionId};

use super::event::Millis;

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// The session's connection did not come back.
    Reattach(SessionId),
    /// The daemon is to be asked whether it is there.
    Sense(DaemonId),
    /// The daemon lives, and has not been heard while it was to report.
    Report(DaemonId),
    /// The headers of the block could not be written.
    Raise(BlockId),
    /// The usage of the daemons is to be noted.
    Usage,
    /// The time of the request is over that waits for room in that place.
    Patience(u64),
    /// That request may be tried again, or its turn is over.
    Rested(u64),
    /// There is more to do of what is done a part at a time.
    GoOn,
    /// The user has tokens again.
    Rate(u32),
    /// The slots of a session that has ended are to be looked at again.
    Intents(SessionId),
    /// What could not be repaired is to be tried again.
    Repair,
    /// Copies that could not be made, or filled, a moment ago are to be tried again.
    Sync,
    /// Sessions are to be prepared, if it is quiet.
    Prepare,
    /// Copies are compared on.
    Scrub,
    /// Copies of all blocks are to be compared.
    Pass,
    /// Who holds back copies is to be looked at.
    Hold,
}

/// All timers.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeSet<(Millis, Timer)>,
    at: BTreeMap<Timer, Millis>,
    told: Option<Millis>,
}

impl Timers {
    /// `timer` is due at `at`.
    pub(super) fn set(&mut self, timer: Timer, at: Millis) {
        self.cancel(timer);
        self.at.insert(timer, at);
        self.due.insert((at, timer));
    }

    /// When `timer` is due.
    pub(super) fn time_of(&self, timer: Timer) -> Option<Millis> {
        self.at.get(&timer).copied()
    }

    /// `timer` is not due any more.
    pub(super) fn cancel(&mut self, timer: Timer) {
        if let Some(at) = self.at.remove(&timer) {
            self.due.remove(&(at, timer));
        }
    }

    /// Whether `timer` is due at some time.
    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.at.contains_key(&timer)
    }

    /// Takes the next that is due at `now`.
    pub(super) fn pop(&mut self, now: Millis) -> Option<Timer> {
        let (_, timer) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.cancel(timer);
        Some(timer)
    }

    /// The time to wake at, if the shell has not been told.
    pub(super) fn news(&mut self) -> Option<Millis> {
        let next = self.due.first().map(|(at, _)| *at)?;
        if self.told == Some(next) {
            return None;
        }
        self.told = Some(next);
        self.told
    }

    /// The shell has woken: it knows of no time any more.
    pub(super) fn woken(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_is_set_again_moves_and_news_is_told_once() {
        let sense = |id| Timer::Sense(DaemonId::try_from(id).unwrap());
        let mut timers = Timers::default();
        assert_eq!(timers.news(), None);
        timers.set(sense(1), Millis(10));
        timers.set(sense(2), Millis(20));
        assert_eq!((timers.news(), timers.news()), (Some(Millis(10)), None));
        timers.set(sense(1), Millis(30));
        assert_eq!(timers.news(), Some(Millis(20)));
        timers.woken();
        assert_eq!(timers.pop(Millis(19)), None);
        assert_eq!(timers.pop(Millis(20)), Some(sense(2)));
        assert_eq!(timers.pop(Millis(20)), None);
        assert_eq!(timers.news(), Some(Millis(30)));
        timers.cancel(sense(1));
        assert_eq!(timers.pop(Millis(99)), None);
    }
}

//! Whose message a server reads next: users by turns, however many connections each has.
//!
//! ```text
//!  ready:  user 7  a b c d ..       a round:  one turn of 7,  one turn of 9
//!          user 9  z                turn:     messages of one user, up to TURN_BYTES
//! ```
//!
//! # Invariants
//!
//! 1. In one round each user who has something ready has one turn, and nobody a second one.
//! 2. A turn ends with the message that makes its bytes [`TURN_BYTES`] or more.
//! 3. What was done for a user before the round is part of that turn, which still has one message:
//!    else who does much in one way would never be read.
//! 4. The connections of a user are read in the order in which they became ready, one message of
//!    each before the next of any.

use alloc::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::limits::FRAME_BYTES_MAX;

/// Bytes of one turn: as many as the longest message has.
pub const TURN_BYTES: usize = FRAME_BYTES_MAX;

/// What a message costs beside the bytes that are moved for it: 64 small ones are a turn.
pub const MESSAGE_BYTES: usize = 1024;

/// Connections that are ready to be read, by their users.
#[derive(Debug)]
pub struct Rounds<C> {
    /// None of the queues is empty.
    ready: BTreeMap<u32, VecDeque<C>>,
    queued: BTreeSet<C>,
    /// Whose turn is still to come in this round; the first one's has begun.
    turns: VecDeque<u32>,
    spent: usize,
    /// What is spent of the turns that are still to come.
    spent_before: BTreeMap<u32, usize>,
}

impl<C> Default for Rounds<C> {
    fn default() -> Self {
        let (ready, queued, turns) = (BTreeMap::new(), BTreeSet::new(), VecDeque::new());
        Self { ready, queued, turns, spent: 0, spent_before: BTreeMap::new() }
    }
}

impl<C: Copy + Ord> Rounds<C> {
    /// A connection of a user is ready. One that is known to be keeps its place.
    pub fn arrive(&mut self, uid: u32, connection: C) {
        if self.queued.insert(connection) {
            self.ready.entry(uid).or_default().push_back(connection);
        }
    }

    /// A connection is not to be read.
    pub fn forget(&mut self, uid: u32, connection: C) {
        if !self.queued.remove(&connection) {
            return;
        }
        if let Some(queue) = self.ready.get_mut(&uid) {
            queue.retain(|other| *other != connection);
            if queue.is_empty() {
                self.ready.remove(&uid);
            }
        }
    }

    /// Whether nothing is ready.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ready.is_empty()
    }

    /// Something was done for a user that costs as much as a message, before the next round.
    pub fn charge_before(&mut self, uid: u32) {
        let spent = self.spent_before.entry(uid).or_default();
        *spent = spent.saturating_add(MESSAGE_BYTES);
    }

    /// Begins a round: those who have something ready now have their turn in it.
    pub fn begin(&mut self) {
        self.turns.clear();
        self.turns.extend(self.ready.keys());
        self.begin_turn();
    }

    fn begin_turn(&mut self) {
        let spent = self.turns.front().and_then(|uid| self.spent_before.remove(uid));
        self.spent = spent.unwrap_or(0).min(TURN_BYTES - 1);
    }

    /// The connection that one message is read of now; `None` at the end of the round. It is not
    /// ready any more until it arrives again.
    pub fn take(&mut self) -> Option<C> {
        while let Some(uid) = self.turns.front() {
            if self.spent < TURN_BYTES
                && let Some(queue) = self.ready.get_mut(uid)
                && let Some(connection) = queue.pop_front()
            {
                if queue.is_empty() {
                    self.ready.remove(uid);
                }
                self.queued.remove(&connection);
                self.spent += MESSAGE_BYTES;
                return Some(connection);
            }
            self.turns.pop_front();
            self.begin_turn();
        }
        self.spent_before.clear();
        None
    }

    /// So many bytes were moved for the message of the last connection.
    pub fn charge(&mut self, bytes: usize) {
        self.spent = self.spent.saturating_add(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const FLOOD: u32 = 1000;
    const VICTIM: u32 = 1001;

    /// A round in which each message moves so many bytes.
    fn round(rounds: &mut Rounds<u32>, bytes: usize) -> Vec<u32> {
        rounds.begin();
        let next = || {
            let connection = rounds.take()?;
            rounds.charge(bytes);
            Some(connection)
        };
        core::iter::from_fn(next).collect()
    }

    #[test]
    fn a_user_with_a_hundred_connections_has_one_turn_to_that_of_another() {
        for (bytes, turn) in [(FRAME_BYTES_MAX, 1), (TURN_BYTES / 4 - MESSAGE_BYTES, 4), (0, 64)] {
            let mut rounds = Rounds::default();
            for connection in 0..100 {
                rounds.arrive(FLOOD, connection);
            }
            rounds.arrive(VICTIM, 500);
            let expected: Vec<u32> = (0..turn).chain([500]).collect();
            assert_eq!(round(&mut rounds, bytes), expected, "{bytes} bytes");
            // Those that were not read are the next, before those that are ready again.
            for connection in (0..100).chain([500]) {
                rounds.arrive(if connection == 500 { VICTIM } else { FLOOD }, connection);
            }
            let next = (turn..2 * turn).map(|place| place % 100);
            let expected: Vec<u32> = next.chain([500]).collect();
            assert_eq!(round(&mut rounds, bytes), expected, "{bytes} bytes");
        }
    }

    #[test]
    fn what_was_done_before_the_round_is_part_of_a_users_turn_in_it_alone() {
        for (before, turn) in [(0, 64), (1, 63), (60, 4), (64, 1), (1000, 1)] {
            let mut rounds = Rounds::default();
            for connection in 0..200 {
                rounds.arrive(FLOOD, connection);
            }
            rounds.arrive(VICTIM, 500);
            for _ in 0..before {
                rounds.charge_before(FLOOD);
            }
            // Who has nothing ready has no turn that it could be part of.
            rounds.charge_before(VICTIM + 1);
            let expected: Vec<u32> = (0..turn).chain([500]).collect();
            assert_eq!(round(&mut rounds, 0), expected, "{before} before");
            rounds.arrive(VICTIM + 1, 501);
            let expected: Vec<u32> = (turn..turn + 64).chain([501]).collect();
            assert_eq!(round(&mut rounds, 0), expected, "{before} before");
        }
    }

    #[test]
    fn who_is_alone_is_read_until_nothing_is_left() {
        let mut rounds = Rounds::default();
        for connection in 0..100 {
            rounds.arrive(FLOOD, connection);
        }
        let mut read = Vec::new();
        while !rounds.is_empty() {
            read.extend(round(&mut rounds, FRAME_BYTES_MAX));
        }
        assert_eq!(read, (0..100).collect::<Vec<_>>());
        assert_eq!(round(&mut rounds, 0), []);
    }

    #[test]
    fn what_is_forgotten_is_not_read_and_takes_nobodys_place() {
        let mut rounds = Rounds::default();
        rounds.arrive(FLOOD, 1);
        rounds.arrive(FLOOD, 2);
        rounds.arrive(VICTIM, 3);
        rounds.begin();
        rounds.forget(FLOOD, 1);
        rounds.forget(FLOOD, 9);
        assert_eq!((rounds.take(), rounds.take(), rounds.take()), (Some(2), Some(3), None));
        rounds.arrive(FLOOD, 1);
        assert_eq!(round(&mut rounds, 0), [1]);
        rounds.arrive(FLOOD, 1);
        rounds.forget(FLOOD, 1);
        assert!(rounds.is_empty());
    }
}

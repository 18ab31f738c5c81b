//! Requests that wait, in the order in which they came: for complete tables, or for bytes on their
//! way back.
//!
//! # Invariants
//!
//! 1. A request waits in one queue at most, and keeps its place when it is tried in vain.
//! 2. Its connection's count of outstanding requests bounds how many wait.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::wire::client::ClientRequest;

use super::clients::ReplyTo;
use super::event::ClientConn;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Its place.
    pub place: u64,
    /// Where its answer goes.
    pub to: ReplyTo,
    /// What is asked.
    pub request: ClientRequest,
}

/// A queue of requests.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    waiters: BTreeMap<u64, Waiter>,
    by_conn: BTreeSet<(ClientConn, u64)>,
    places: u64,
}

impl Waiting {
    /// Puts a request at the end, or where it was before.
    pub(super) fn push(&mut self, to: ReplyTo, request: ClientRequest, place: Option<u64>) {
        let place = place.unwrap_or_else(|| {
            self.places += 1;
            self.places
        });
        self.by_conn.insert((to.conn, place));
        self.waiters.insert(place, Waiter { place, to, request });
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Waiter> {
        let (place, waiter) = self.waiters.pop_first()?;
        self.by_conn.remove(&(waiter.to.conn, place));
        Some(waiter)
    }

    /// Whether `place` is taken: the request was tried in vain.
    pub(super) fn holds(&self, place: u64) -> bool {
        self.waiters.contains_key(&place)
    }

    /// Forgets the requests of a connection.
    pub(super) fn drop_conn(&mut self, conn: ClientConn) {
        let places: Vec<_> = self.by_conn.range((conn, 0)..=(conn, u64::MAX)).copied().collect();
        for place in places {
            self.by_conn.remove(&place);
            self.waiters.remove(&place.1);
        }
    }

    /// Where answers are owed.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.waiters.values().map(|waiter| waiter.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatcher::event::RequestId;

    #[test]
    fn a_request_that_is_tried_in_vain_stays_first_and_a_lost_connection_leaves_nothing() {
        let to = |conn, id| ReplyTo { conn: ClientConn(conn), request_id: RequestId(id) };
        let mut waiting = Waiting::default();
        for (conn, id) in [(1, 10), (2, 20), (1, 11)] {
            waiting.push(to(conn, id), ClientRequest::Stat, None);
        }
        let first = waiting.pop().unwrap();
        assert_eq!(first.to, to(1, 10));
        assert!(!waiting.holds(first.place));
        waiting.push(first.to, first.request, Some(first.place));
        assert!(waiting.owed().eq([to(1, 10), to(2, 20), to(1, 11)]));
        waiting.drop_conn(ClientConn(1));
        assert!(waiting.owed().eq([to(2, 20)]));
        waiting.drop_conn(ClientConn(2));
        assert_eq!(waiting.owed().count(), 0);
    }
}

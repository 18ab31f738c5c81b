//! How many requests a user may make: a bucket of tokens for each, filled at the configured rate.
//!
//! ```text
//!            +------- rate ------> [ up to burst ] ---- one for each connection, or request;
//!                                        |              one for each 4 KiB begun that it moves
//!                                        | none left
//!                                        v
//!                    the connection is not read until there are some again
//! ```
//!
//! # Invariants
//!
//! 1. No request is refused for its rate: what was read is served, and the connection that brought
//!    it too early is read later.
//! 2. A user's connections are read again in the order in which they were held, so that one of them
//!    cannot keep the others from being read.
//! 3. What a request costs is known when it is read, and is paid whatever becomes of it.
//! 4. A user who has not been heard for the time that fills the bucket is forgotten.

use std::collections::{BTreeMap, VecDeque};

use super::Dispatcher;
use super::action::Action;
use super::config::Quota;
use super::event::{ClientConn, Millis};
use super::timers::Timer;

/// A request, in the unit of a bucket's level: what a rate of one a second brings in a millisecond.
const REQUEST: i64 = 1_000;

/// Bytes that are moved for one token.
const TOKEN_BYTES: usize = 4096;

/// Tokens that a connection is taken to need when it is read again: the longest message costs 15.
const BROUGHT_AT_ONCE: i64 = 16 * REQUEST;

/// One user's tokens.
#[derive(Debug)]
struct Bucket {
    level: i64,
    at: Millis,
    /// Connections that are not read, the longest held first. Some may be gone.
    held: VecDeque<ClientConn>,
}

/// A rate that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate {
    per_s: i64,
    full: i64,
}

impl Rate {
    fn of(quota: &Quota) -> Option<Self> {
        if quota.requests_per_s == u64::MAX {
            return None;
        }
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let per_s = whole(quota.requests_per_s).clamp(1, i64::MAX / REQUEST);
        let burst = match quota.requests_burst {
            u64::MAX => per_s,
            burst => whole(burst).clamp(1, i64::MAX / REQUEST),
        };
        Some(Self { per_s, full: burst.saturating_mul(REQUEST) })
    }
}

impl Bucket {
    fn fill(&mut self, rate: Rate, now: Millis) {
        let millis = i64::try_from(now.0.saturating_sub(self.at.0)).unwrap_or(i64::MAX);
        self.level = self.level.saturating_add(millis.saturating_mul(rate.per_s)).min(rate.full);
        self.at = now;
    }

    /// When there is a whole token again.
    fn ready_at(&self, rate: Rate) -> Millis {
        let lacks = (REQUEST - self.level).max(0);
        let millis = lacks / rate.per_s + i64::from(lacks % rate.per_s != 0);
        self.at.after(u64::try_from(millis.max(1)).unwrap_or(1))
    }
}

/// What is paid for so many bytes.
fn cost_of(bytes: usize) -> i64 {
    let tokens = i64::try_from(bytes.div_ceil(TOKEN_BYTES).max(1)).unwrap_or(i64::MAX);
    tokens.saturating_mul(REQUEST)
}

/// The buckets of all users whose rate is limited, and who were heard of late.
#[derive(Debug, Default)]
pub(super) struct Rates {
    buckets: BTreeMap<u32, Bucket>,
}

impl Dispatcher {
    /// A connection of a user brought something that moves so many bytes. If it was too early, it
    /// is not read for a while.
    pub(super) fn spend(&mut self, conn: ClientConn, uid: u32, bytes: usize) {
        let Some(rate) = Rate::of(&self.ledger.quota(uid)) else { return };
        let now = self.now.millis;
        if !self.rates.buckets.contains_key(&uid) {
            let ledger = &self.ledger;
            self.rates.buckets.retain(|uid, bucket| {
                let Some(rate) = Rate::of(&ledger.quota(*uid)) else { return false };
                bucket.fill(rate, now);
                bucket.level < rate.full || !bucket.held.is_empty()
            });
        }
        let new = Bucket { level: rate.full, at: now, held: VecDeque::new() };
        let bucket = self.rates.buckets.entry(uid).or_insert(new);
        bucket.fill(rate, now);
        bucket.level = bucket.level.saturating_sub(cost_of(bytes));
        if bucket.level >= 0 {
            return;
        }
        let Some(client) = self.clients.get_mut(&conn).filter(|client| !client.held) else {
            return;
        };
        client.held = true;
        bucket.held.push_back(conn);
        let at = bucket.ready_at(rate);
        self.out.push(Action::HoldClient { conn });
        if !self.timers.is_set(Timer::Rate(uid)) {
            self.timers.set(Timer::Rate(uid), at);
        }
    }

    /// A user has tokens again: as many connections are read as these are enough for, one at least.
    pub(super) fn read_again(&mut self, uid: u32) {
        let rate = Rate::of(&self.ledger.quota(uid));
        let (Some(rate), Some(bucket)) = (rate, self.rates.buckets.get_mut(&uid)) else { return };
        bucket.fill(rate, self.now.millis);
        let mut left = bucket.level;
        while left >= REQUEST {
            let Some(conn) = bucket.held.pop_front() else { return };
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            client.held = false;
            left -= BROUGHT_AT_ONCE;
            self.out.push(Action::ReadClient { conn });
        }
        if !bucket.held.is_empty() {
            self.timers.set(Timer::Rate(uid), bucket.ready_at(rate));
        }
    }

    /// Whether every connection that is held will be read again.
    ///
    /// # Errors
    ///
    /// The first that will not.
    pub(super) fn audit_rates(&self) -> Result<(), String> {
        for (conn, client) in self.clients.iter().filter(|(_, client)| client.held) {
            let uid = client.peer.uid;
            let bucket = self.rates.buckets.get(&uid);
            let waits = bucket.is_some_and(|bucket| bucket.held.contains(conn));
            if !waits || !self.timers.is_set(Timer::Rate(uid)) {
                return Err(format!("{conn:?} of user {uid} is held for ever"));
            }
        }
        Ok(())
    }
}

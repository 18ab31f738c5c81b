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

use dmce_abi::rate::{Bucket, Rate};

use super::Dispatcher;
use super::action::Action;
use super::event::{ClientConn, Millis};
use super::timers::Timer;

/// Tokens that a connection is taken to need when it is read again: the longest message costs 15.
const BROUGHT_AT_ONCE: u64 = 16;

/// One user's tokens, and who waits for some.
#[derive(Debug)]
struct User {
    bucket: Bucket,
    /// Connections that are not read, the longest held first. Some may be gone.
    held: VecDeque<ClientConn>,
}

/// All users whose rate is limited, and who were heard of late.
#[derive(Debug, Default)]
pub(super) struct Rates {
    users: BTreeMap<u32, User>,
}

impl Dispatcher {
    /// A connection of a user brought something that moves so many bytes. If it was too early, it
    /// is not read for a while.
    pub(super) fn spend(&mut self, conn: ClientConn, uid: u32, bytes: usize) {
        let rate = self.rate_of(uid);
        if !rate.is_limited() {
            return;
        }
        let now_ms = self.now.millis.0;
        if !self.rates.users.contains_key(&uid) {
            let ledger = &self.ledger;
            self.rates.users.retain(|uid, user| {
                let rate = ledger.quota(*uid).rate();
                user.bucket.fill(rate, now_ms);
                !user.bucket.is_full(rate) || !user.held.is_empty()
            });
        }
        let new = || User { bucket: Bucket::full(rate, now_ms), held: VecDeque::new() };
        let user = self.rates.users.entry(uid).or_insert_with(new);
        user.bucket.fill(rate, now_ms);
        user.bucket.spend(bytes);
        if !user.bucket.is_overdrawn() {
            return;
        }
        let Some(client) = self.clients.get_mut(&conn).filter(|client| !client.held) else {
            return;
        };
        client.held = true;
        user.held.push_back(conn);
        let at = Millis(user.bucket.ready_at_ms(rate, 1));
        self.out.push(Action::HoldClient { conn });
        if !self.timers.is_set(Timer::Rate(uid)) {
            self.timers.set(Timer::Rate(uid), at);
        }
    }

    /// A user has tokens again: as many connections are read as these are enough for, one at least.
    pub(super) fn read_again(&mut self, uid: u32) {
        let rate = self.rate_of(uid);
        let Some(user) = self.rates.users.get_mut(&uid) else { return };
        user.bucket.fill(rate, self.now.millis.0);
        let mut left = user.bucket.tokens();
        while left > 0 {
            let Some(conn) = user.held.pop_front() else { return };
            let Some(client) = self.clients.get_mut(&conn) else { continue };
            client.held = false;
            left = left.saturating_sub(BROUGHT_AT_ONCE);
            self.out.push(Action::ReadClient { conn });
        }
        if !user.held.is_empty() {
            self.timers.set(Timer::Rate(uid), Millis(user.bucket.ready_at_ms(rate, 1)));
        }
    }

    /// How much a user may ask for.
    pub(super) fn rate_of(&self, uid: u32) -> Rate {
        self.ledger.quota(uid).rate()
    }

    /// Whether every connection that is held will be read again.
    ///
    /// # Errors
    ///
    /// The first that will not.
    pub(super) fn audit_rates(&self) -> Result<(), String> {
        for (conn, client) in self.clients.iter().filter(|(_, client)| client.held) {
            let uid = client.peer.uid;
            let user = self.rates.users.get(&uid);
            let waits = user.is_some_and(|user| user.held.contains(conn));
            if !waits || !self.timers.is_set(Timer::Rate(uid)) {
                return Err(format!("{conn:?} of user {uid} is held for ever"));
            }
        }
        Ok(())
    }
}

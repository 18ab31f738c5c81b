//! Requests that wait, in the order in which they came: for complete tables, or for bytes on their
//! way back.
//!
//! # Invariants
//!
//! 1. A request waits in one queue at most, and keeps its place when it is tried in vain.
//! 2. Its connection's count of outstanding requests bounds how many wait, and a queue takes no
//!    more bytes than [`BYTES_MAX`], of one user no more than [`USER_BYTES_MAX`].

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{ClientRequest, RegionName};

use super::clients::ReplyTo;
use super::event::ClientConn;

/// Bytes of memory that all requests of a queue take.
const BYTES_MAX: usize = 16 << 20;

/// Bytes of memory that those of one user take: others wait beside them.
const USER_BYTES_MAX: usize = 4 << 20;

/// A request that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    /// Its place.
    pub place: u64,
    /// Where its answer goes.
    pub to: ReplyTo,
    /// What is asked.
    pub request: ClientRequest,
    uid: u32,
}

impl Waiter {
    /// What it costs the queue.
    fn bytes(&self) -> usize {
        size_of::<Self>() + text_bytes(&self.request)
    }
}

/// A queue of requests.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    waiters: BTreeMap<u64, Waiter>,
    by_conn: BTreeSet<(ClientConn, u64)>,
    places: u64,
    bytes: usize,
    by_user: BTreeMap<u32, usize>,
}

impl Waiting {
    /// Puts a request of a user at the end, or where it was before.
    ///
    /// # Errors
    ///
    /// `BUSY` if what waits would take too many bytes.
    pub(super) fn push(
        &mut self,
        to: ReplyTo,
        uid: u32,
        request: &ClientRequest,
        place: Option<u64>,
    ) -> Result<(), Refusal> {
        let place = place.unwrap_or(self.places + 1);
        let waiter = Waiter { place, to, request: request.clone(), uid };
        let bytes = waiter.bytes();
        let own = self.by_user.get(&uid).copied().unwrap_or(0);
        if own + bytes > USER_BYTES_MAX || self.bytes + bytes > BYTES_MAX {
            let all = self.bytes;
            let text = format!(
                "requests of {all} bytes wait, {own} of user {uid}, limits {BYTES_MAX} and \
                 {USER_BYTES_MAX}"
            );
            return Err(Refusal::new(Status::Busy, text));
        }
        self.places = self.places.max(place);
        self.bytes += bytes;
        self.by_user.insert(uid, own + bytes);
        self.by_conn.insert((to.conn, place));
        self.waiters.insert(place, waiter);
        Ok(())
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Waiter> {
        let place = *self.waiters.first_key_value()?.0;
        self.take(place)
    }

    fn take(&mut self, place: u64) -> Option<Waiter> {
        let waiter = self.waiters.remove(&place)?;
        self.by_conn.remove(&(waiter.to.conn, place));
        let bytes = waiter.bytes();
        self.bytes -= bytes;
        if let Some(own) = self.by_user.get_mut(&waiter.uid) {
            *own -= bytes;
            if *own == 0 {
                self.by_user.remove(&waiter.uid);
            }
        }
        Some(waiter)
    }

    /// Takes the first request of a connection that is one of those that are meant.
    pub(super) fn take_of(
        &mut self,
        conn: ClientConn,
        is_meant: impl Fn(&ClientRequest) -> bool,
    ) -> Option<Waiter> {
        let mut places = self.by_conn.range((conn, 0)..=(conn, u64::MAX));
        let meant = |place| self.waiters.get(place).is_some_and(|w| is_meant(&w.request));
        let place = places.find(|(_, place)| meant(place))?.1;
        self.take(place)
    }

    /// Whether `place` is taken: the request was tried in vain.
    pub(super) fn holds(&self, place: u64) -> bool {
        self.waiters.contains_key(&place)
    }

    /// Whether a request of a connection waits.
    pub(super) fn has(&self, conn: ClientConn) -> bool {
        self.by_conn.range((conn, 0)..=(conn, u64::MAX)).next().is_some()
    }

    /// Forgets the requests of a connection.
    pub(super) fn drop_conn(&mut self, conn: ClientConn) {
        let places: Vec<_> = self.by_conn.range((conn, 0)..=(conn, u64::MAX)).copied().collect();
        for (_, place) in places {
            self.take(place);
        }
    }

    /// Where answers are owed.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.waiters.values().map(|waiter| waiter.to)
    }
}

/// Bytes of the texts of a request, whose length its sender chose.
pub(super) fn text_bytes(request: &ClientRequest) -> usize {
    match request {
        ClientRequest::Setup(setup) => setup.name.len(),
        ClientRequest::RegionCreate(create) => name_bytes(&create.region),
        ClientRequest::RegionOpen(open) => name_bytes(&open.region),
        ClientRequest::RegionFind(region) => name_bytes(region),
        ClientRequest::Data(request) => request.data_bytes(),
        ClientRequest::RegionList(list) => list.volume.len() + list.after.len(),
        _ => 0,
    }
}

fn name_bytes(region: &RegionName) -> usize {
    region.volume.len() + region.name.len()
}

#[cfg(test)]
mod tests {
    use dmce_abi::wire::client::RegionList;

    use super::*;
    use crate::dispatcher::event::RequestId;

    #[test]
    fn a_request_that_is_tried_in_vain_stays_first_and_a_lost_connection_leaves_nothing() {
        let to = |conn, id| ReplyTo { conn: ClientConn(conn), request_id: RequestId(id) };
        let mut waiting = Waiting::default();
        for (conn, id) in [(1, 10), (2, 20), (1, 11)] {
            waiting.push(to(conn, id), 7, &ClientRequest::Stat, None).unwrap();
        }
        let first = waiting.pop().unwrap();
        assert_eq!(first.to, to(1, 10));
        assert!(!waiting.holds(first.place));
        waiting.push(first.to, 7, &first.request, Some(first.place)).unwrap();
        assert!(waiting.owed().eq([to(1, 10), to(2, 20), to(1, 11)]));
        waiting.drop_conn(ClientConn(1));
        assert!(waiting.owed().eq([to(2, 20)]));
        waiting.drop_conn(ClientConn(2));
        assert_eq!(waiting.owed().count(), 0);
    }
    #[test]
    fn what_waits_is_bounded_in_bytes_for_a_user_and_for_all() {
        let text = || "x".repeat(30_000);
        let request = RegionList { volume: text(), after: text() };
        let request = ClientRequest::RegionList(request);
        let mut waiting = Waiting::default();
        let mut conns = 0;
        let mut fill = |waiting: &mut Waiting, uid: u32| {
            let pushed = std::iter::from_fn(|| {
                conns += 1;
                let to = ReplyTo { conn: ClientConn(conns), request_id: RequestId(1) };
                waiting.push(to, uid, &request, None).ok()
            });
            pushed.count()
        };
        let taken = fill(&mut waiting, 0);
        assert_eq!(taken, USER_BYTES_MAX / (60_000 + size_of::<Waiter>()));
        let all: usize = taken + (1..10).map(|uid| fill(&mut waiting, uid)).sum::<usize>();
        assert_eq!(all, BYTES_MAX / (60_000 + size_of::<Waiter>()));
        // What goes makes room again.
        let first = waiting.pop().unwrap();
        waiting.drop_conn(ClientConn(2));
        waiting.push(first.to, 0, &first.request, Some(first.place)).unwrap();
        assert_eq!(fill(&mut waiting, 0), 1);
        for conn in 0..=conns {
            waiting.drop_conn(ClientConn(conn));
        }
        assert_eq!((waiting.bytes, waiting.by_user.len()), (0, 0));
    }
}

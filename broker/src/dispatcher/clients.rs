//! Connections of clients: who is at the other end, and how many answers it waits for.
//!
//! # Invariants
//!
//! 1. A request is counted as outstanding from its arrival to its one reply.
//! 2. A connection has at most one session, and a session at most one connection.

use std::collections::BTreeMap;

use dmce_abi::block::SessionId;

use super::event::{ClientConn, Peer, RequestId};

/// Where an answer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReplyTo {
    /// The connection.
    pub conn: ClientConn,
    /// The request.
    pub request_id: RequestId,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Client {
    /// Who it is.
    pub peer: Peer,
    /// When its process started, in clock ticks since boot, if that was asked.
    pub started: Option<u64>,
    /// Its session, also while that is being opened.
    pub session: Option<SessionId>,
    /// Requests without an answer.
    pub outstanding: usize,
    /// Whether it is not read, because of its user's rate.
    pub held: bool,
}

/// All connections.
pub(super) type Clients = BTreeMap<ClientConn, Client>;

//! A broker of the world: its core, and what the shell around that knows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_broker::dispatcher::{ClientConn, DaemonConn, Dispatcher, Event, Millis, RequestId};

/// What a session was at that is waited for.
#[derive(Debug)]
pub struct Waited {
    /// The marks of its slots.
    pub marks: BTreeMap<u8, u32>,
    /// Whether the block is not to be used until then.
    pub is_for_table: bool,
}

/// A broker that runs, and what its shell knows.
#[derive(Debug)]
pub struct Broker {
    /// The core.
    pub dispatcher: Dispatcher,
    /// Connections of clients, by their place in the world.
    pub clients: BTreeMap<ClientConn, usize>,
    /// The connection of whoever moves copies.
    pub admin: Option<ClientConn>,
    /// Connections of daemons, by their place in the world.
    pub daemons: BTreeMap<DaemonConn, usize>,
    /// Requests that were delivered and not answered.
    pub asked: BTreeMap<ClientConn, BTreeSet<RequestId>>,
    /// Connections that are not read.
    pub held: BTreeSet<ClientConn>,
    /// Events that the shell will deliver.
    pub soon: VecDeque<Event>,
    /// Events that come before any other: the shell knows them when it has acted.
    pub at_once: VecDeque<Event>,
    /// Sessions that may be in an operation that began before they were told of a block's epoch.
    pub idles: BTreeMap<(SessionId, BlockId, u64), Waited>,
    /// Processes that are watched.
    pub watched: BTreeMap<SessionId, u32>,
    /// Locks that are watched.
    pub locks: BTreeSet<DaemonId>,
    /// When to tick.
    pub wake_at: Option<Millis>,
}

impl Broker {
    /// Who may still use the lock table of a block that is to be made anew.
    pub fn waits_for_table(&self, block: BlockId) -> Option<SessionId> {
        let mut waited = self.idles.iter().filter(|(_, waited)| waited.is_for_table);
        waited.find(|((_, of, _), _)| *of == block).map(|((session, _, _), _)| *session)
    }
}

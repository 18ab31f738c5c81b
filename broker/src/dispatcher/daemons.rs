//! The server table: each daemon, its connection, and what it was asked.
//!
//! ```text
//!           Register            last Holds              owes an answer for suspect_ms
//!  Away ------------> Joining ----------> Up ----------------------------------> Suspected
//!    ^                   |                 |  <------------- any frame -------------|
//!    +-------------------+-----------------+----------------------------------------+
//! ```
//! One that lives and is silent for as long before its last Holds is *overdue*: shown as suspected,
//! and asked for nothing, until it is heard.
//!
//! # Invariants
//!
//! 1. A number of a request is in flight at one daemon, and is never used again.
//! 2. What is in flight was sent on the present connection. What is queued was not.
//! 3. Requests that a client waits for overtake destroys, which are sent a few at a time.
//! 4. A daemon that is away has nothing in flight, and destroys alone in its queue.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dmce_abi::block::{BlockId, DaemonId, Guid};
use dmce_abi::wire::admin::DaemonState;
use dmce_abi::wire::daemon::HeldBlock;

use super::event::{DaemonConn, Lent, Millis};

/// Creates and grows that a daemon has not answered.
const ASKED_MAX: usize = 64;

/// Destroys that a daemon has not answered: few, so that they hold nobody up.
const DESTROYS_MAX: usize = 8;

/// What a daemon is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// A block, as the block table describes it. What is lent, the shell makes it of.
    Create { block: BlockId, lent: Option<Lent> },
    /// More bytes for the block of that GUID, for the growth of that number.
    Grow { block: BlockId, guid: Guid, committed: u64, growth: u64 },
    /// The end of a block.
    Destroy { block: BlockId },
    /// The end of a stray: the block table knows nothing of it, or another by its id.
    Discard { block: BlockId },
    /// A part of its copy of a block gets what the good ones have.
    Sync { block: BlockId, guid: Guid, cell: u64, bytes: u32 },
    /// The copies of a part of a block whose primary it has are compared.
    Scrub { block: BlockId, guid: Guid, cell: u64, bytes: u32 },
    /// Whether it is there.
    Sense,
    /// The same, asked when the headers of a block had been written: when it answers, it does
    /// nothing any more that it began before.
    Fence { block: BlockId },
}

/// How the broker and a daemon are connected.
#[derive(Debug, Default)]
pub(super) enum Link {
    /// Not at all.
    #[default]
    Away,
    /// It is reporting.
    Joining {
        /// Its connection.
        conn: DaemonConn,
        /// What it reported until now.
        held: BTreeMap<BlockId, HeldBlock>,
        /// What it reported as damaged until now.
        damaged: BTreeSet<BlockId>,
    },
    /// It serves.
    Up(DaemonConn),
    /// It does not answer.
    Suspected(DaemonConn),
}

/// Who has connected as a daemon.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connected {
    /// The process.
    pub pid: u32,
    /// A moment at which it lived, in clock ticks since boot.
    pub lived_at: u64,
    /// The daemon, once it has registered.
    pub daemon: Option<DaemonId>,
}

/// One daemon.
#[derive(Debug, Default)]
pub(super) struct Server {
    /// Its connection.
    pub link: Link,
    /// Its process; 0 if there is none.
    pub pid: u32,
    /// A moment at which that lived, in clock ticks since boot.
    pub lived_at: u64,
    /// Bytes in its pool, as it said last.
    pub pool: u64,
    /// What it has lent on this connection and was not used yet, the oldest first.
    pub lent: VecDeque<Lent>,
    /// When it was last heard.
    pub heard: Millis,
    /// Its blocks, in any state but planned elsewhere.
    pub blocks: BTreeSet<BlockId>,
    /// Whether a Sense is in flight.
    pub sensed: bool,
    /// Whether all that it has is to be elsewhere.
    pub is_draining: bool,
    /// Whether it lives, and is silent while it should report.
    pub overdue: bool,
    /// Connections that ended before its last Holds, since it was up.
    pub failed_reports: u32,
    /// When it came without any block, if it did.
    pub empty_since: Option<Millis>,
    /// Blocks that it made for a broker that was dead by then: they are to go. Of each, whether its
    /// id is its own.
    pub strays: BTreeMap<BlockId, bool>,
    in_flight: BTreeMap<u64, Op>,
    destroys_in_flight: usize,
    urgent: VecDeque<Op>,
    destroys: VecDeque<BlockId>,
}

impl Server {
    /// The connection, in any state but away.
    pub(super) const fn conn(&self) -> Option<DaemonConn> {
        match self.link {
            Link::Away => None,
            Link::Joining { conn, .. } | Link::Up(conn) | Link::Suspected(conn) => Some(conn),
        }
    }

    /// Whether what it is asked now will be answered: one that is joining answers soon.
    pub(super) const fn answers(&self) -> bool {
        matches!(self.link, Link::Up(_) | Link::Joining { .. }) && !self.overdue
    }

    /// Whether it has reported, and is connected.
    pub(super) const fn hears(&self) -> bool {
        matches!(self.link, Link::Up(_) | Link::Suspected(_))
    }

    /// Whether it serves.
    pub(super) const fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether it takes new blocks.
    pub(super) const fn takes_blocks(&self) -> bool {
        self.is_up() && !self.is_draining
    }

    /// What the administrator is shown.
    pub(super) const fn state(&self) -> DaemonState {
        match self.link {
            Link::Away | Link::Joining { .. } if self.overdue => DaemonState::Suspected,
            Link::Away => DaemonState::Away,
            Link::Joining { .. } => DaemonState::Joining,
            Link::Up(_) => DaemonState::Up,
            Link::Suspected(_) => DaemonState::Suspected,
        }
    }

    /// Whether it has been asked for something and has not answered.
    pub(super) fn owes(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Whether bytes are on their way back.
    pub(super) fn is_destroying(&self) -> bool {
        self.destroys_in_flight > 0 || !self.destroys.is_empty()
    }

    /// Lets `op` wait for its turn.
    pub(super) fn push(&mut self, op: Op) {
        match op {
            Op::Destroy { block } => self.destroys.push_back(block),
            urgent => self.urgent.push_back(urgent),
        }
    }

    /// Has a block destroyed before all others that wait: a client waits for it.
    pub(super) fn push_destroy_first(&mut self, block: BlockId) {
        self.destroys.push_front(block);
    }

    /// What may be sent now, if anything; to be followed by [`Server::sent`] or dropped.
    pub(super) fn pop(&mut self) -> Option<Op> {
        if !matches!(self.link, Link::Up(_) | Link::Suspected(_)) {
            return None;
        }
        let asked = self.in_flight.len() - self.destroys_in_flight;
        if asked < ASKED_MAX
            && let Some(op) = self.urgent.pop_front()
        {
            return Some(op);
        }
        if self.destroys_in_flight < DESTROYS_MAX {
            return self.destroys.pop_front().map(|block| Op::Destroy { block });
        }
        None
    }

    /// `op` was sent under this number.
    pub(super) fn sent(&mut self, number: u64, op: Op) {
        self.destroys_in_flight += usize::from(matches!(op, Op::Destroy { .. }));
        self.sensed |= op == Op::Sense;
        self.in_flight.insert(number, op);
    }

    /// What was asked under a number and is not answered.
    pub(super) fn in_flight(&self, number: u64) -> Option<&Op> {
        self.in_flight.get(&number)
    }

    /// The request that an answer belongs to.
    pub(super) fn answered(&mut self, number: u64) -> Option<Op> {
        let op = self.in_flight.remove(&number)?;
        self.destroys_in_flight -= usize::from(matches!(op, Op::Destroy { .. }));
        self.sensed &= op != Op::Sense;
        Some(op)
    }

    /// The link is gone: destroys wait for the next one. Returns what was asked and cannot be
    /// answered any more, in the order of asking, and whether it was sent.
    pub(super) fn go_away(&mut self) -> Vec<(Op, bool)> {
        if matches!(self.link, Link::Joining { .. }) {
            self.failed_reports = self.failed_reports.saturating_add(1);
        }
        self.link = Link::Away;
        self.lent.clear();
        self.pid = 0;
        self.sensed = false;
        self.destroys_in_flight = 0;
        let mut orphans = Vec::new();
        let mut again = VecDeque::new();
        for op in std::mem::take(&mut self.in_flight).into_values() {
            match op {
                Op::Destroy { block } => again.push_back(block),
                // Strays are seen again in its next report; the rest is asked for again, if it is
                // still wanted.
                Op::Discard { .. } | Op::Sync { .. } | Op::Scrub { .. } | Op::Sense => {}
                op => orphans.push((op, true)),
            }
        }
        again.append(&mut self.destroys);
        self.destroys = again;
        let goes = |op: &Op| matches!(op, Op::Discard { .. } | Op::Sync { .. } | Op::Scrub { .. });
        let asked = self.urgent.drain(..).filter(|op| !goes(op));
        orphans.extend(asked.map(|op| (op, false)));
        orphans
    }

    /// Takes back the last grow that was not sent yet.
    pub(super) fn take_last_grow(&mut self) -> Option<Op> {
        let is_grow = |op: &Op| matches!(op, Op::Grow { .. });
        let last = self.urgent.iter().rposition(is_grow)?;
        self.urgent.remove(last)
    }

    /// The growths that it has not answered.
    pub(super) fn growths(&self) -> Vec<u64> {
        let asked = self.in_flight.values().chain(&self.urgent);
        let growths = asked.filter_map(|op| match op {
            Op::Grow { growth, .. } => Some(*growth),
            _ => None,
        });
        growths.collect()
    }

    /// The blocks of the creates that are not answered, in the order of asking.
    pub(super) fn creates(&self) -> Vec<BlockId> {
        let asked = self.in_flight.values().chain(&self.urgent);
        let creates = asked.filter_map(|op| match op {
            Op::Create { block, .. } => Some(*block),
            _ => None,
        });
        creates.collect()
    }

    /// The blocks whose destroy waits or is in flight.
    pub(super) fn destroying(&self) -> impl Iterator<Item = BlockId> {
        let sent = self.in_flight.values().filter_map(|op| match op {
            Op::Destroy { block } => Some(*block),
            _ => None,
        });
        sent.chain(self.destroys.iter().copied())
    }
}

/// All daemons, and who is connected.
#[derive(Debug, Default)]
pub(super) struct Daemons {
    /// By id.
    pub servers: BTreeMap<DaemonId, Server>,
    /// Connections.
    pub conns: BTreeMap<DaemonConn, Connected>,
    /// Daemons that must report before the tables are complete.
    pub expected: BTreeSet<DaemonId>,
    /// Daemons that were not waited for any longer: their headers were read while they lived, and
    /// they have yet to say what they hold.
    pub unconfirmed: BTreeSet<DaemonId>,
    last_placed: u32,
}

impl Daemons {
    /// The daemon of a connection.
    pub(super) fn of(&self, conn: DaemonConn) -> Option<DaemonId> {
        self.conns.get(&conn).and_then(|connected| connected.daemon)
    }

    /// Daemons that take new blocks, each once, beginning after the one that was placed on last.
    pub(super) fn up_in_turn(&self) -> impl Iterator<Item = DaemonId> {
        let up = |(id, server): (&DaemonId, &Server)| server.takes_blocks().then_some(*id);
        let turn = self.last_placed;
        let later = self.servers.iter().filter(move |(id, _)| id.get() > turn).filter_map(up);
        let first = self.servers.iter().filter(move |(id, _)| id.get() <= turn).filter_map(up);
        later.chain(first)
    }

    /// A block was placed there: the next turn is another's.
    pub(super) fn placed(&mut self, daemon: DaemonId) {
        self.last_placed = daemon.get();
    }

    /// Whether bytes are on their way back from a daemon that answers.
    pub(super) fn bytes_return(&self) -> bool {
        self.servers.values().any(|server| server.is_up() && server.is_destroying())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    fn send_all(server: &mut Server, number: &mut u64) -> Vec<u64> {
        let mut sent = Vec::new();
        while let Some(op) = server.pop() {
            *number += 1;
            server.sent(*number, op);
            sent.push(*number);
        }
        sent
    }

    #[test]
    fn destroys_are_sent_a_few_at_a_time_and_creates_overtake_them() {
        let mut server = Server { link: Link::Up(DaemonConn(1)), ..Server::default() };
        let mut number = 0;
        for id in 1..=20 {
            server.push(Op::Destroy { block: block(id) });
        }
        assert_eq!(send_all(&mut server, &mut number).len(), DESTROYS_MAX);
        server.push(Op::Create { block: block(99), lent: None });
        let create = send_all(&mut server, &mut number);
        assert_eq!(create.len(), 1);
        assert_eq!(server.answered(create[0]), Some(Op::Create { block: block(99), lent: None }));
        assert_eq!(server.answered(create[0]), None);
        assert_eq!(server.answered(1), Some(Op::Destroy { block: block(1) }));
        assert_eq!(send_all(&mut server, &mut number).len(), 1);
    }

    #[test]
    fn destroys_outlive_a_connection_in_their_order_and_nothing_else_does() {
        let mut server = Server { link: Link::Up(DaemonConn(1)), ..Server::default() };
        let mut number = 0;
        for id in 1..=10 {
            server.push(Op::Destroy { block: block(id) });
        }
        server.push(Op::Create { block: block(50), lent: None });
        send_all(&mut server, &mut number);
        let grow = || Op::Grow { block: block(51), guid: Guid::default(), committed: 1, growth: 7 };
        server.push(grow());
        let orphans = server.go_away();
        assert_eq!(orphans, [(Op::Create { block: block(50), lent: None }, true), (grow(), false)]);
        assert!(server.pop().is_none() && !server.owes());
        assert!(server.destroying().eq((1..=10).map(block)));
    }
}

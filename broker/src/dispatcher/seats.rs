//! Seats: session objects of daemons, which write blocks of several copies for clients that map
//! nothing.
//!
//! ```text
//!            Unseated              SessionCreated: Seat is sent
//!  (none) -------------> being made -------------------------> SEATED
//!    ^                       |                                    | the daemon leaves it; its
//!    |                       | its daemon goes                    | connection ends
//!    |                       v                                    v
//!    +------------------ removed        its generation is the last: a wreck, repaired as any
//! ```
//!
//! # Invariants
//!
//! 1. A daemon has one seat at most, made at its own wish or when an only copy is lent a lock table
//!    (`moving`), and of one connection: who finds the last generation in it ends no further
//!    operation, and begins none.
//! 2. The id of a seat is no session's and no wreck's. Its record says that it is a daemon's.
//! 3. When a block's copies or its lock table are others, all seats are told with the sessions,
//!    and waited for with them: any daemon may have been writing it.
//! 4. Of one process of a daemon there are `WRECKS_MAX` seats that have ended at most, whatever
//!    clients have it leave, and the one that it has: else it gets none until one is repaired.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::DaemonRequest;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::daemons::Server;
use super::event::SessionRecord;
use super::wrecks::Wreck;

/// The generation of a session that has ended: no session that lives counts up to it.
const ENDED: u64 = u64::MAX;

/// How many seats a daemon may have left that are yet to be repaired, to get another.
const WRECKS_MAX: usize = 4;

/// The session object of a daemon.
#[derive(Debug)]
struct Seat {
    record: SessionRecord,
    generation: u64,
    /// Whether the shell has made it.
    is_made: bool,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Seats {
    by_daemon: BTreeMap<DaemonId, Seat>,
    /// Who gets one when one of those that it left is repaired.
    awaiting: BTreeSet<DaemonId>,
    /// Whether their generation is to move.
    moved: bool,
}

impl Seats {
    /// The daemon whose seat has an id.
    pub(super) fn daemon_of(&self, id: SessionId) -> Option<DaemonId> {
        let mut all = self.by_daemon.iter();
        all.find(|(_, seat)| seat.record.session == id).map(|(daemon, _)| *daemon)
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_daemon.len()
    }

    /// The ids of those that a daemon may use.
    pub(super) fn ids(&self) -> impl Iterator<Item = SessionId> {
        self.by_daemon.values().filter(|seat| seat.is_made).map(|seat| seat.record.session)
    }

    /// Their generation moves with this step.
    pub(super) fn tell(&mut self) {
        self.moved = true;
    }
}

impl Dispatcher {
    /// A daemon needs a seat; `left` is the one that it had.
    pub(super) fn unseated(&mut self, daemon: DaemonId, left: Option<SessionId>) {
        match self.seats.by_daemon.get(&daemon).map(|seat| seat.record.session) {
            Some(current) if left == Some(current) => self.take_seat(daemon),
            // It has yet to read of the one that it has.
            Some(_) => return,
            None => {}
        }
        let server = self.daemons.servers.get(&daemon).filter(|server| server.hears());
        let Some((pid, lived_at)) = server.map(|server| (server.pid, server.lived_at)) else {
            return;
        };
        let of_it = |wreck: &Wreck| {
            wreck.opens().is_none() && (wreck.pid, wreck.lived_at) == (pid, lived_at)
        };
        if self.wrecks.all().filter(|(_, wreck)| of_it(wreck)).count() >= WRECKS_MAX {
            if self.seats.awaiting.insert(daemon) {
                let text = format!("daemon {daemon} has left {WRECKS_MAX} seats: repaired first");
                self.log(LogLevel::Warn, text);
            }
            return;
        }
        self.seats.awaiting.remove(&daemon);
        let Some(session) = self.next_session_id() else {
            return self.log(LogLevel::Warn, format!("no session id is free for daemon {daemon}"));
        };
        let record = SessionRecord {
            session,
            guid: self.guids.next(),
            pid,
            lived_at,
            uid: self.config.service_uid,
            gid: 0,
            reserved: 0,
            created_at: self.now.unix_s,
            pointer_bits: SessionRecord::OF_DAEMON,
            copies: 1,
            name: format!("daemon {daemon}"),
        };
        self.out.push(Action::CreateSession { record: record.clone() });
        self.seats.by_daemon.insert(daemon, Seat { record, generation: 0, is_made: false });
    }

    /// The shell has made a seat, or could not: the daemon asks again.
    pub(super) fn seat_made(&mut self, daemon: DaemonId, result: Result<(), Refusal>) {
        let Some(seat) = self.seats.by_daemon.get_mut(&daemon) else { return };
        let (session, guid) = (seat.record.session, seat.record.guid);
        if let Err(refusal) = result {
            self.seats.by_daemon.remove(&daemon);
            self.out.push(Action::EndSession { session });
            let text = format!("no session object for daemon {daemon}: {}", refusal.text);
            return self.log(LogLevel::Warn, text);
        }
        seat.is_made = true;
        let cell_bits = self.config.layout.cell_bits();
        self.tell_daemon(daemon, DaemonRequest::Seat { session, guid, cell_bits });
        self.log(LogLevel::Debug, format!("daemon {daemon} writes copies as session {session}"));
    }

    /// What was left of a seat is repaired: who waits for one may get it.
    pub(super) fn seat_repaired(&mut self) {
        for daemon in self.seats.awaiting.clone() {
            self.unseated(daemon, None);
        }
    }

    /// A daemon has left its seat, or is gone: what it was writing is repaired.
    pub(super) fn take_seat(&mut self, daemon: DaemonId) {
        self.seats.awaiting.remove(&daemon);
        let Some(Seat { record, is_made, .. }) = self.seats.by_daemon.remove(&daemon) else {
            return;
        };
        let session = record.session;
        if is_made {
            self.wreck_seat(&record);
            self.read_intents(session);
            self.locks_nothing(session);
        } else {
            // Nobody was told of it.
            self.out.push(Action::EndSession { session });
        }
    }

    /// What a daemon was writing is to be repaired. It may live, and not know yet that it is over.
    pub(super) fn wreck_seat(&mut self, record: &SessionRecord) {
        let session = record.session;
        self.out.push(Action::Publish { session, generation: ENDED });
        self.enter_wreck(record, None);
    }

    /// Somebody has changed the size of a seat, which no client has.
    pub(super) fn seat_misused(&mut self, session: SessionId, reason: &str) {
        if let Some(daemon) = self.seats.daemon_of(session) {
            let text = format!("the session object {session} of daemon {daemon}: {reason}");
            self.log(LogLevel::Warn, text);
            self.take_seat(daemon);
        }
    }

    /// Tells seats that their generation has moved.
    pub(super) fn publish_seats(&mut self) {
        if !std::mem::take(&mut self.seats.moved) {
            return;
        }
        for seat in self.seats.by_daemon.values_mut().filter(|seat| seat.is_made) {
            seat.generation += 1;
            let (session, generation) = (seat.record.session, seat.generation);
            self.out.push(Action::Publish { session, generation });
        }
    }

    /// A daemon says that something of a block is not as it should be.
    pub(super) fn damaged_copy(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get(id) else { return };
        let daemons: Vec<DaemonId> = block.copies.iter().map(|copy| copy.daemon).collect();
        let has_locks = block.locks.is_some();
        for daemon in daemons {
            self.inspect(daemon, vec![id]);
        }
        if has_locks {
            self.out.push(Action::InspectLocks { block: id });
        }
    }

    /// The daemon that is asked for the bytes of a block, if one answers: the primary's, or that of
    /// another good copy, under the same locks.
    pub(super) fn server_of(&self, id: BlockId) -> Option<(DaemonId, &Server)> {
        let block = self.blocks.get(id)?;
        let has_locks = block.locks.is_some();
        let mut named = block.copies.named().map(|copy| copy.daemon);
        let first = named.next();
        let others = named.filter(|_| has_locks);
        let up = |daemon: DaemonId| {
            let server = self.daemons.servers.get(&daemon).filter(|server| server.is_up())?;
            Some((daemon, server))
        };
        first.into_iter().chain(others).find_map(up)
    }
}

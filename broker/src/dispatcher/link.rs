//! Daemons come, report, answer, fall silent and go.
//!
//! # Invariants
//!
//! 1. Only the service's own user is a daemon, and of one id only the last that connected: its lock
//!    made it the only one.
//! 2. A report is taken in whole or not at all.
//! 3. What a daemon was asked and cannot answer any more is settled when it goes: spans are made
//!    elsewhere, growing is refused, destroying waits for its return.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::{DaemonMessage, DaemonNotice, DaemonRequest, HeldBlock, Register};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, SpanOwner};
use super::copies::CopyState;
use super::daemons::{Connected, Link, Op, Server};
use super::event::{DaemonConn, Lent, Peer, RequestId};
use super::restart::Told;
use super::sessions::SessionLink;
use super::timers::Timer;

/// Bytes that one daemon may claim to hold: far beyond a host, far below what sums could not hold.
const CAPACITY_MAX: u64 = 1 << 44;

/// Connections that may be open for each daemon that there can be: a new one may overtake the end
/// of the old one.
const CONNECTIONS_PER_DAEMON: usize = 2;

impl Dispatcher {
    pub(super) fn daemon_connected(&mut self, conn: DaemonConn, peer: &Peer) {
        let limit = self.config.limits.daemons_max * CONNECTIONS_PER_DAEMON;
        if peer.uid != self.config.service_uid {
            let reason = format!("user {} is not the service's", peer.uid);
            self.out.push(Action::CloseDaemon { conn, reason });
        } else if self.daemons.conns.len() >= limit {
            let reason = format!("there are {limit} connections of daemons, limit {limit}");
            self.out.push(Action::CloseDaemon { conn, reason });
        } else {
            let (pid, lived_at) = (peer.pid, peer.lived_at);
            self.daemons.conns.insert(conn, Connected { pid, lived_at, daemon: None });
        }
    }

    pub(super) fn daemon_message(
        &mut self,
        conn: DaemonConn,
        request_id: RequestId,
        message: DaemonMessage,
    ) {
        if !self.daemons.conns.contains_key(&conn) {
            return;
        }
        let taken = match (self.daemons.of(conn), message) {
            (None, DaemonMessage::Register(register)) => self.register(conn, &register),
            (None, _) => Err("it sent something before it registered".to_owned()),
            (Some(daemon), message) => {
                self.heard(daemon);
                self.registered_message(daemon, request_id, message)
            }
        };
        if let Err(reason) = taken {
            self.close_daemon(conn, &reason);
        }
    }

    fn registered_message(
        &mut self,
        daemon: DaemonId,
        request_id: RequestId,
        message: DaemonMessage,
    ) -> Result<(), String> {
        match message {
            DaemonMessage::Register(_) => Err("it registered twice".to_owned()),
            DaemonMessage::Holds { blocks, damaged, last } => {
                self.holds(daemon, (blocks, damaged), last)
            }
            DaemonMessage::Reply(answer) => self.answered(daemon, request_id.0, answer),
            DaemonMessage::Notice(notice) => {
                self.noticed(daemon, notice);
                Ok(())
            }
            _ => Err("it sent a message that this broker does not know".to_owned()),
        }
    }

    fn register(&mut self, conn: DaemonConn, register: &Register) -> Result<(), String> {
        let Register { daemon, instance, segment_version, capacity, .. } = register;
        let daemon = *daemon;
        if instance != self.config.instance.as_str() {
            return Err(format!("it serves instance {instance:?}, not {}", self.config.instance));
        }
        if *segment_version != SEGMENT_VERSION {
            let ours = SEGMENT_VERSION;
            return Err(format!("it has segment version {segment_version}, the broker {ours}"));
        }
        if !(PAGE_BYTES..=CAPACITY_MAX).contains(capacity) {
            return Err(format!("a capacity of {capacity} bytes, limit {CAPACITY_MAX}"));
        }
        let limit = self.config.limits.daemons_max;
        let known = self.daemons.servers.get(&daemon);
        if known.is_none() && self.daemons.servers.len() >= limit {
            return Err(format!("there are {limit} daemons, limit {limit}"));
        }
        if let Some(old) = known.and_then(Server::conn) {
            self.close_daemon(old, "the daemon has another connection");
        }
        let Some(connected) = self.daemons.conns.get_mut(&conn) else { return Ok(()) };
        connected.daemon = Some(daemon);
        let Connected { pid, lived_at, .. } = *connected;
        self.history.add(daemon);
        let server = self.daemons.servers.entry(daemon).or_default();
        server.link = Link::Joining { conn, held: BTreeMap::new(), damaged: BTreeSet::new() };
        server.pid = pid;
        server.lived_at = lived_at;
        server.heard = self.now.millis;
        server.overdue = false;
        server.is_draining = self.moves.draining.contains(&daemon);
        self.expect_report(daemon);
        let text = format!("daemon {daemon}, process {pid}, joins with {capacity} bytes");
        self.ledger.set_capacity(daemon, *capacity);
        self.log(LogLevel::Info, text);
        Ok(())
    }

    fn holds(
        &mut self,
        daemon: DaemonId,
        (blocks, damaged): (Vec<HeldBlock>, Vec<BlockId>),
        last: bool,
    ) -> Result<(), String> {
        let limit = self.config.limits.blocks_max;
        if self.restart.found.is_some() {
            self.restart.damaged.extend(&damaged);
        }
        let server = self.daemons.servers.get_mut(&daemon);
        let Some(Link::Joining { conn, held, damaged: all_damaged }) =
            server.map(|server| &mut server.link)
        else {
            return Err("it reported blocks after the last".to_owned());
        };
        let conn = *conn;
        all_damaged.extend(damaged);
        if all_damaged.len().max(self.restart.damaged.len()) > limit {
            return Err(format!("more blocks are damaged than there can be, limit {limit}"));
        }
        for block in blocks {
            let id = block.description.block;
            if held.insert(id, block).is_some() {
                return Err(format!("it reported block {id} twice"));
            }
        }
        if held.len() > limit {
            return Err(format!("it reported {} blocks, limit {limit}", held.len()));
        }
        if !last {
            return Ok(());
        }
        let (mut held, damaged) = (std::mem::take(held), std::mem::take(all_damaged));
        let strays = self.strays_of(daemon, &held);
        held.retain(|id, _| !strays.contains(id));
        self.check_report(daemon, &held)?;
        self.take_report(daemon, held, Told::ByDaemon);
        self.set_strays(daemon, strays);
        self.restart.keep_names(daemon, &damaged);
        self.refuse_grows(daemon);
        self.timers.cancel(Timer::Report(daemon));
        self.out.push(Action::ForgetLock { daemon });
        let (request_id, request) = (RequestId(0), DaemonRequest::Settled);
        self.out.push(Action::ToDaemon { conn, request_id, request });
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.link = Link::Up(conn);
            server.failed_reports = 0;
            server.empty_since = server.blocks.is_empty().then_some(self.now.millis);
        }
        let at = self.now.millis.after(self.config.sense_ms);
        self.timers.set(Timer::Sense(daemon), at);
        self.room_changed = true;
        self.log(LogLevel::Info, format!("daemon {daemon} is up"));
        self.discard_strays(daemon);
        self.pump(daemon);
        self.reported(daemon);
        self.clear_old_of(daemon);
        Ok(())
    }

    /// A daemon has more than was known when it was asked to grow blocks: what does not fit any
    /// more is refused, the last first.
    fn refuse_grows(&mut self, daemon: DaemonId) {
        while self.ledger.store(daemon).is_over() {
            let server = self.daemons.servers.get_mut(&daemon);
            let last = server.and_then(Server::take_last_grow);
            let Some(Op::Grow { growth, .. }) = last else { return };
            let text = format!("daemon {daemon} has no room left");
            self.grow_answered(daemon, growth, Err(Refusal::new(Status::NoSpace, text)));
        }
    }

    fn heard(&mut self, daemon: DaemonId) {
        let now = self.now.millis;
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        server.heard = now;
        match server.link {
            Link::Suspected(conn) => {
                server.link = Link::Up(conn);
                self.room_changed = true;
                self.log(LogLevel::Info, format!("daemon {daemon} answers again"));
            }
            Link::Joining { .. } => {
                server.overdue = false;
                self.expect_report(daemon);
            }
            Link::Away | Link::Up(_) => {}
        }
    }

    /// A daemon does not answer. What clients wait for is done without it.
    pub(super) fn suspect(&mut self, daemon: DaemonId) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let Link::Up(conn) = server.link else { return };
        server.link = Link::Suspected(conn);
        self.drop_syncs_of(daemon);
        self.scrub_without(daemon);
        let creates = self.daemons.servers.get(&daemon).map(Server::creates).unwrap_or_default();
        self.log(LogLevel::Warn, format!("daemon {daemon} does not answer: suspected"));
        self.let_nobody_wait(daemon);
        for first in self.asked_spans(daemon, &creates) {
            self.make_again(first);
        }
    }

    /// A daemon that is to report was heard: it has time again, unless it has tried before. Else it
    /// could be waited for without end.
    fn expect_report(&mut self, daemon: DaemonId) {
        let tried = self.daemons.servers.get(&daemon).is_some_and(|s| s.failed_reports > 0);
        if !tried || !self.timers.is_set(Timer::Report(daemon)) {
            let at = self.now.millis.after(self.config.suspect_ms);
            self.timers.set(Timer::Report(daemon), at);
        }
    }

    /// A daemon lives, and has not been heard for too long while it was to report.
    pub(super) fn report_overdue(&mut self, daemon: DaemonId) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        server.overdue = true;
        self.log(LogLevel::Warn, format!("daemon {daemon} does not report: suspected"));
        self.let_nobody_wait(daemon);
        if self.daemons.expected.contains(&daemon) {
            self.out.push(Action::ReadHeaders { daemon });
        }
    }

    /// Answers those who wait for a daemon that does not answer.
    fn let_nobody_wait(&mut self, daemon: DaemonId) {
        self.room_changed = true;
        self.refuse_growers_of(daemon, &away(daemon));
        self.drop_relays_of(daemon);
        self.put_deleters_off(daemon);
    }

    fn noticed(&mut self, daemon: DaemonId, notice: DaemonNotice) {
        match notice {
            DaemonNotice::Lost { block } if self.restart.found.is_some() => {
                self.restart.called_lost.insert((daemon, block));
            }
            DaemonNotice::Lost { block } => self.inspect(daemon, vec![block]),
            DaemonNotice::Excess { block, bytes } => self.excess(daemon, block, bytes),
            DaemonNotice::Lent { place, bytes } => self.lent(daemon, Lent { place, bytes }),
            DaemonNotice::Damaged { block } => self.damaged_copy(block),
            DaemonNotice::Unseated { left } => self.unseated(daemon, left),
            DaemonNotice::Foreign { object, reason } => {
                let text = format!("daemon {daemon} leaves {object:?} as it is: {reason:?}");
                self.log(LogLevel::Warn, text);
            }
            _ => self.log(LogLevel::Debug, format!("daemon {daemon} sent an unknown notice")),
        }
    }

    /// A client made an object larger than what was committed. With its own block, its session
    /// ends; of a region nobody knows who it was. Of what is made or given up, it was nobody.
    fn excess(&mut self, daemon: DaemonId, id: BlockId, bytes: u64) {
        let in_use = |block: &&Block| {
            let is_here = block.copies.of(daemon).is_some();
            is_here && block.state == BlockState::Held && self.stands(block.span)
        };
        let Some(block) = self.blocks.get(id).filter(in_use) else { return };
        let reason = format!("block {id} was made {bytes} bytes of {}", block.committed);
        let owner = self.blocks.span(block.span).map(|span| span.owner);
        self.log(LogLevel::Warn, reason.clone());
        if let Some(SpanOwner::Session(session)) = owner {
            self.misused(session, &reason);
        }
    }

    /// A client has changed the size of what it was given: its session ends.
    pub(super) fn misused(&mut self, session: SessionId, reason: &str) {
        match self.sessions.get(session).map(|session| session.link) {
            Some(SessionLink::Attached(conn)) => self.end_client(conn, reason),
            Some(_) => self.end_session(session, reason),
            None => self.seat_misused(session, reason),
        }
    }

    /// Ends a daemon's connection from this side.
    pub(super) fn close_daemon(&mut self, conn: DaemonConn, reason: &str) {
        let Some(Connected { daemon, .. }) = self.daemons.conns.remove(&conn) else { return };
        self.out.push(Action::CloseDaemon { conn, reason: reason.to_owned() });
        let who = daemon.map_or("a daemon".to_owned(), |daemon| format!("daemon {daemon}"));
        self.log(LogLevel::Warn, format!("the connection of {who} is ended: {reason}"));
        if let Some(daemon) = daemon {
            self.daemon_away(daemon, conn);
        }
    }

    pub(super) fn daemon_hung_up(&mut self, conn: DaemonConn) {
        let connected = self.daemons.conns.remove(&conn);
        let Some(daemon) = connected.and_then(|connected| connected.daemon) else { return };
        self.daemon_away(daemon, conn);
    }

    fn daemon_away(&mut self, daemon: DaemonId, conn: DaemonConn) {
        let server = self.daemons.servers.get(&daemon);
        if server.is_none_or(|server| server.conn() != Some(conn)) {
            return;
        }
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let orphans = server.go_away();
        server.overdue = self.daemons.unconfirmed.contains(&daemon);
        self.drop_syncs_of(daemon);
        self.scrub_without(daemon);
        self.forget_links_of(daemon);
        self.take_seat(daemon);
        self.timers.cancel(Timer::Sense(daemon));
        if !self.daemons.expected.contains(&daemon) {
            self.timers.cancel(Timer::Report(daemon));
        }
        self.log(LogLevel::Warn, format!("daemon {daemon} is away"));
        let creates: Vec<BlockId> = orphans.iter().filter_map(|(op, _)| created(op)).collect();
        let spans = self.asked_spans(daemon, &creates);
        for (op, sent) in orphans {
            self.orphaned(daemon, &op, sent);
        }
        for first in spans {
            self.make_again(first);
        }
        let blocks = self.daemons.servers.get(&daemon).map(|server| &server.blocks);
        let blocks = blocks.map(|blocks| blocks.iter().copied().collect());
        self.inspect(daemon, blocks.unwrap_or_default());
        self.await_lock(daemon);
        self.let_nobody_wait(daemon);
    }

    /// A request that its daemon cannot answer any more.
    fn orphaned(&mut self, daemon: DaemonId, op: &Op, sent: bool) {
        match *op {
            // It may have made the block, and is told at its return to destroy it.
            Op::Create { block, .. } if sent => self.destroy(block, daemon),
            Op::Create { block, .. } => {
                // Nobody was asked. If it is wanted still, the span is planned again as a whole.
                let copy = self.blocks.get(block).and_then(|block| block.copies.of(daemon));
                match copy.map(|copy| copy.state) {
                    Some(CopyState::Asked) => {
                        self.blocks.set_copy(block, daemon, CopyState::Planned);
                    }
                    _ => self.remove_copy(block, daemon),
                }
            }
            Op::Grow { growth, .. } => self.grow_answered(daemon, growth, Err(away(daemon))),
            Op::Fence { block } => self.fenced(block, daemon),
            Op::Destroy { .. }
            | Op::Discard { .. }
            | Op::Sync { .. }
            | Op::Scrub { .. }
            | Op::Sense => {}
        }
    }

    /// The spans of those blocks that a daemon was asked for and somebody waits for.
    fn asked_spans(&self, daemon: DaemonId, blocks: &[BlockId]) -> BTreeSet<BlockId> {
        let blocks = blocks.iter().filter_map(|id| self.blocks.get(*id));
        let is_asked = |block: &&Block| {
            block.copies.of(daemon).is_some_and(|copy| copy.state == CopyState::Asked)
        };
        blocks.filter(is_asked).map(|block| block.span).collect()
    }
}

const fn created(op: &Op) -> Option<BlockId> {
    match op {
        Op::Create { block, .. } => Some(*block),
        _ => None,
    }
}

fn away(daemon: DaemonId) -> Refusal {
    Refusal::new(Status::NoSpace, format!("daemon {daemon} does not answer"))
}

//! A broker that comes back, and daemons that do: what they report is compared with what is known.
//!
//! ```text
//!  Started: sessions by their records, ids by names, headers of daemons that nobody serves
//!     |
//!     v       each expected daemon: Holds .. last, or its lock is free and its headers are read
//!  Assembling ----------------------------------------------------> tables complete:
//!     reports are kept                        spans from their blocks, judged; openings and
//!                                             reservations restored; what the dead left
//!                                             repaired, deferred requests served
//!     |
//!     v       each daemon that comes later: reservations that found no room are refilled
//! ```
//!
//! What becomes of a span that is not whole when all have reported:
//!
//! | missing | then |
//! |---|---|
//! | the first block, no damaged header, no opening | never granted, or deleted: destroyed |
//! | anything else | that block is lost |
//!
//! For spans are made first block last and deleted first block first, so that one with its first
//! block was whole once and is not given up. A session to which a span was granted all the same
//! (its first object went while there was no broker) is told that it is lost.
//!
//! Of two regions with one name, the older is what an attempt left that was given up while its
//! daemon was away: a name is given only while nobody has it, and `created_at` rises with each
//! region. It is destroyed, unless a session has it open: then it is kept, without a name.
//!
//! Of two spans with an id in common, the one that an earlier broker made was never granted, else
//! the later broker had known of it. It is destroyed, as a stray is (`silence`).
//!
//! # Invariants
//!
//! 1. What was acknowledged and has its objects is there again, under the same ids.
//! 2. An id that any name has is not given to a new block in this life of the broker.
//! 3. What contradicts itself is kept away from everybody (*quarantined*) and named in the log; the
//!    rest starts.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, Region, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::HeldBlock;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState};
use super::charge::Charge;
use super::copies::CopyState;
use super::daemons::Link;
use super::event::{FoundContent, FoundDaemon, FoundTable, Headers, Started};
use super::timers::Timer;

/// Bytes that all blocks of one report may have: more than a host has.
const REPORT_BYTES_MAX: u64 = 1 << 52;

/// Epochs are milliseconds since the host started, and a few: what is beyond this was forged, and
/// could not be raised without end.
const EPOCH_MAX: u64 = 1 << 62;

/// What is open of a restart.
#[derive(Debug, Default)]
pub(super) struct Restart {
    /// What was reported until now, while the tables are not complete.
    pub found: Option<BTreeMap<DaemonId, Vec<HeldBlock>>>,
    /// Blocks that their daemons called lost after they had reported them.
    pub called_lost: BTreeSet<(DaemonId, BlockId)>,
    /// Ids that a name has, and no block that was reported yet: names that were there at the start,
    /// and names that others took since.
    pub names: BTreeSet<BlockId>,
    /// Names that daemons had at the start, until they have said what they hold: of what is damaged
    /// they have them still.
    pub names_of: BTreeMap<DaemonId, BTreeSet<BlockId>>,
    /// Of these, blocks that were made, and whose header is damaged.
    pub damaged: BTreeSet<BlockId>,
    /// The daemons that the headers of the highest epoch of a block name, the primary's first.
    pub named: BTreeMap<BlockId, Vec<DaemonId>>,
    /// Blocks of which a header names a copy that was syncing.
    pub syncing: BTreeSet<BlockId>,
    /// Lock tables that were found, and whose blocks have not been reported yet.
    pub tables: BTreeMap<BlockId, FoundTable>,
    /// Spans that are assembled, with the attributes of regions.
    pub assembling: BTreeMap<BlockId, Option<Region>>,
    /// Blocks that fit to nothing, with what they cost their daemon.
    pub quarantined: BTreeMap<(DaemonId, BlockId), Quarantined>,
}

/// How the broker learned what a daemon holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It said so.
    ByDaemon,
    /// The shell read its headers.
    ByHeaders,
}

/// A block that nobody may use.
#[derive(Debug)]
pub(super) struct Quarantined {
    /// Whether its id is its own: it may lie among those of another's span.
    pub has_id: bool,
    /// What it costs its daemon.
    pub charge: Charge,
}

impl Restart {
    /// A daemon has said what it holds: of other blocks it has no name any more, but of damaged
    /// ones.
    pub(super) fn keep_names(&mut self, daemon: DaemonId, damaged: &BTreeSet<BlockId>) {
        if let Some(names) = self.names_of.get_mut(&daemon) {
            names.retain(|id| damaged.contains(id));
        }
    }

    /// Whether a daemon may have something under a name that it had at the start.
    pub(super) fn is_named(&self, id: BlockId) -> bool {
        self.names_of.values().any(|names| names.contains(&id))
    }
}

impl Dispatcher {
    /// Whether every daemon that was expected has reported, or is known to be dead.
    pub(super) fn tables_complete(&self) -> bool {
        self.daemons.expected.is_empty()
    }

    pub(super) fn started(&mut self, started: Started) {
        self.epoch = self.now.millis.0.max(1);
        self.restart.found = Some(BTreeMap::new());
        let tables = started.tables.into_iter().map(|table| (table.block, table));
        self.restart.tables = tables.collect();
        for session in started.sessions {
            self.believe(session);
        }
        let mut read = Vec::new();
        for FoundDaemon { daemon, blocks, damaged, content } in started.daemons {
            self.restart.damaged.extend(damaged);
            self.history.add(daemon);
            self.daemons.servers.entry(daemon).or_default();
            self.restart.names_of.insert(daemon, blocks.iter().copied().collect());
            for id in blocks {
                if self.ids.claim(id) {
                    self.restart.names.insert(id);
                }
            }
            match content {
                FoundContent::Expected => {
                    self.daemons.expected.insert(daemon);
                    self.await_lock(daemon);
                }
                FoundContent::Read(held) => read.push((daemon, held)),
            }
        }
        for daemon in started.draining {
            self.set_draining(daemon, true);
        }
        for (daemon, held) in read {
            self.take_headers(daemon, held);
        }
        if self.tables_complete() {
            self.complete();
        } else {
            let text = format!("{} daemons have yet to report", self.daemons.expected.len());
            self.log(LogLevel::Info, text);
        }
    }

    /// Until a daemon has reported, its death is known by its lock, and its silence by the clock.
    pub(super) fn await_lock(&mut self, daemon: DaemonId) {
        let is_expected = self.daemons.expected.contains(&daemon);
        if is_expected && !self.timers.is_set(Timer::Report(daemon)) {
            let at = self.now.millis.after(self.config.suspect_ms);
            self.timers.set(Timer::Report(daemon), at);
        }
        if is_expected || self.daemons.unconfirmed.contains(&daemon) {
            self.out.push(Action::AwaitLock { daemon });
        }
    }

    /// Nobody serves a daemon any more that was to report: its headers say what it holds.
    pub(super) fn lock_free(&mut self, daemon: DaemonId, headers: Headers) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let is_awaited =
            self.daemons.expected.contains(&daemon) || self.daemons.unconfirmed.contains(&daemon);
        if !matches!(server.link, Link::Away) || !is_awaited {
            return;
        }
        server.overdue = false;
        self.timers.cancel(Timer::Report(daemon));
        self.restart.damaged.extend(headers.damaged);
        self.take_headers(daemon, headers.held);
        self.reported(daemon);
    }

    /// An expected daemon lives and does not report. Its headers say what it holds until it does.
    pub(super) fn headers_read(&mut self, daemon: DaemonId, headers: Headers) {
        if !self.daemons.expected.contains(&daemon) {
            return;
        }
        self.restart.damaged.extend(headers.damaged);
        self.take_headers(daemon, headers.held);
        self.daemons.unconfirmed.insert(daemon);
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.overdue = true;
        }
        self.reported(daemon);
    }

    /// A daemon has told all that it holds.
    pub(super) fn reported(&mut self, daemon: DaemonId) {
        let was_expected = self.daemons.expected.remove(&daemon);
        match (self.tables_complete(), was_expected) {
            (true, true) => self.complete(),
            (true, false) => {
                self.judge_spans();
                self.remove_stray_tables();
                self.refill_reservations();
            }
            (false, _) => {}
        }
    }

    /// Whether a daemon's report can be true.
    pub(super) fn check_report(
        &self,
        daemon: DaemonId,
        held: &BTreeMap<BlockId, HeldBlock>,
    ) -> Result<(), String> {
        let mut bytes: u64 = 0;
        for block in held.values() {
            self.check_held(daemon, block)?;
            bytes = bytes.saturating_add(block.committed);
        }
        if bytes > REPORT_BYTES_MAX {
            return Err(format!("it reported {bytes} bytes, limit {REPORT_BYTES_MAX}"));
        }
        Ok(())
    }

    fn check_held(&self, daemon: DaemonId, held: &HeldBlock) -> Result<(), String> {
        let HeldBlock { description, committed } = held;
        let id = description.block;
        let limit = self.config.block_ids();
        description
            .validate(self.config.layout.block_bytes())
            .map_err(|error| format!("of block {id} it reported: {error}"))?;
        if id.get() >= limit
            || description.span.count > limit - description.span.first.get().min(limit)
        {
            return Err(format!("it reported block {id}, ids are below {limit}"));
        }
        let epoch = description.epoch;
        if epoch > EPOCH_MAX {
            return Err(format!("it reported block {id} with epoch {epoch}, limit {EPOCH_MAX}"));
        }
        let membership = &description.membership;
        if membership.peers.contains(&daemon) || membership.syncing == Some(daemon) {
            return Err(format!("it reported block {id} with itself as a peer"));
        }
        let (count, limit) = (description.span.count, self.config.limits.blocks_max);
        if count as usize > limit {
            return Err(format!("it reported block {id} of a span of {count}, limit {limit}"));
        }
        if *committed > description.bytes_max || !committed.is_multiple_of(PAGE_BYTES) {
            return Err(format!("it reported block {id} with {committed} bytes"));
        }
        match self.blocks.get(id) {
            Some(block) if block.copies.is_empty() => Ok(()),
            Some(Block { guid, .. })
                if *guid != description.guid && !self.is_outlived(description) =>
            {
                let theirs = description.guid;
                Err(format!("it reported block {id} with guid {theirs}, which has {guid}"))
            }
            _ => Ok(()),
        }
    }

    /// Takes in headers that the shell has read: what cannot be is left, the rest counts.
    fn take_headers(&mut self, daemon: DaemonId, held: Vec<HeldBlock>) {
        let mut report = BTreeMap::new();
        for block in held {
            match self.check_held(daemon, &block) {
                Ok(()) => _ = report.insert(block.description.block, block),
                Err(reason) => {
                    let text = format!("daemon {daemon}: {reason}: left as it is");
                    self.log(LogLevel::Error, text);
                }
            }
        }
        let strays = self.strays_of(daemon, &report);
        report.retain(|id, _| !strays.contains(id));
        self.take_report(daemon, report, Told::ByHeaders);
        self.set_strays(daemon, strays);
    }

    /// Takes in a report that was checked: all that a daemon holds.
    pub(super) fn take_report(
        &mut self,
        daemon: DaemonId,
        held: BTreeMap<BlockId, HeldBlock>,
        told: Told,
    ) {
        if let Some(found) = &mut self.restart.found {
            found.insert(daemon, held.into_values().collect());
            return;
        }
        let server = self.daemons.servers.get(&daemon);
        let destroying: BTreeSet<BlockId> =
            server.map(|server| server.destroying().collect()).unwrap_or_default();
        let known = server.map(|server| server.blocks.clone()).unwrap_or_default();
        for id in known {
            let copy = self.blocks.get(id).and_then(|block| block.copies.of(daemon));
            match copy.map(|copy| copy.state) {
                Some(CopyState::Held) if !held.contains_key(&id) => {
                    self.missed(daemon, id, told);
                }
                Some(CopyState::Stale) if !held.contains_key(&id) => {
                    self.stale_is_gone(id, daemon);
                }
                // Its daemon refused to destroy it.
                Some(CopyState::Dying) if !destroying.contains(&id) => self.destroy(id, daemon),
                _ => {}
            }
        }
        for (id, block) in held {
            if self.restart.quarantined.contains_key(&(daemon, id)) {
                continue;
            }
            let known = self.blocks.get(id);
            let is_nowhere = known.is_some_and(|block| block.copies.is_empty());
            let is_here = known.is_some_and(|block| block.copies.of(daemon).is_some());
            match (is_nowhere, is_here) {
                (_, true) => self.refresh_copy(daemon, &block),
                (true, false) => {
                    // It was missing until now: a daemon that nobody knew of has it.
                    if !self.contradicts(&block.description) {
                        self.remove_block(id);
                    }
                    self.adopt(daemon, &block);
                }
                (false, false) => self.adopt(daemon, &block),
            }
        }
    }

    /// A report lacks a block that is in the tables.
    fn missed(&mut self, daemon: DaemonId, id: BlockId, told: Told) {
        if told == Told::ByHeaders && self.restart.damaged.contains(&id) {
            // That its header was not read says nothing about its bytes.
            return self.inspect(daemon, vec![id]);
        }
        let owner = self.blocks.span(id).map(|span| span.owner);
        let is_last = self.blocks.get(id).is_some_and(|block| block.copies.held().count() == 1);
        let is_unconfirmed = self.daemons.unconfirmed.contains(&daemon);
        let was_deleted = is_last && is_unconfirmed && !self.is_granted(id);
        match owner.filter(|_| was_deleted) {
            // Spans are deleted first block first, as the broker before this one still asked for.
            Some(owner) => {
                self.log(LogLevel::Warn, format!("span {id} is deleted: its first block is gone"));
                self.drop_from_owner(id, owner);
                self.give_up(id);
            }
            None => self.lose_copy(id, daemon, "its daemon does not have it"),
        }
    }

    /// A daemon still has a copy. It may have grown it and died before it could say so.
    pub(super) fn refresh(&mut self, id: BlockId, daemon: DaemonId, committed: u64) {
        let stamp = self.next_number();
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        if committed < copy.committed {
            let why = format!("it has {committed} bytes of {}", copy.committed);
            self.lose_copy(id, daemon, &why);
            return;
        }
        copy.committed = committed;
        // A grow that waits for this daemon is paid for already.
        let waits = if copy.grows > 0 { copy.charge.bytes() } else { 0 };
        self.ledger.force_bytes(&mut copy.charge, committed.max(waits));
        block.stamp = stamp;
        block.settle_committed();
        self.blocks.recount(id);
    }

    /// All have reported: sessions get back what they had, and what waited for that is served.
    fn complete(&mut self) {
        self.adopt_all();
        self.inspect_doubtful();
        self.judge_spans();
        self.remove_stray_tables();
        for session in self.sessions.ids() {
            self.restore_openings(session);
            self.copies_changed(session);
            self.restore_reservation(session);
        }
        self.read_wrecks();
        (self.syncs.lacks.is_due, self.moves.is_due) = (true, true);
        let (blocks, regions) = (self.blocks.len(), self.regions.len());
        let sessions = self.sessions.len();
        self.log(
            LogLevel::Info,
            format!(
                "the tables are complete: {sessions} sessions, {regions} regions, {blocks} blocks"
            ),
        );
        self.serve_deferred();
    }

    /// Whether nobody has to wait any more because this broker came back: the tables are complete,
    /// and what died with the one before is repaired, or waits for its blocks.
    pub(super) fn is_back(&self) -> bool {
        self.tables_complete() && self.wrecks.found.is_empty()
    }

    /// Serves those who waited for that.
    pub(super) fn serve_deferred(&mut self) {
        while self.is_back()
            && let Some(waiter) = self.deferred.pop()
        {
            self.route(waiter.to, &waiter.request, None);
        }
    }

    /// Looks at the objects of daemons that went before their blocks were in the tables, or were
    /// not there at all, and at those that were called lost meanwhile.
    fn inspect_doubtful(&mut self) {
        let away = self.daemons.servers.iter().filter(|(_, server)| !server.hears());
        let away: Vec<_> = away.map(|(id, server)| (*id, server.blocks.clone())).collect();
        for (daemon, blocks) in away {
            self.inspect(daemon, blocks.into_iter().collect());
        }
        for (daemon, block) in std::mem::take(&mut self.restart.called_lost) {
            self.inspect(daemon, vec![block]);
        }
    }

    /// The regions that a session had open are open again. It is told of those that are gone, and
    /// of blocks that are lost.
    fn restore_openings(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let firsts: Vec<BlockId> = session.opens.regions().collect();
        for first in firsts {
            if let Some(region) = self.regions.get_mut(first) {
                region.opens.insert(id);
                for block in self.lost_members(first) {
                    self.changed(id, block);
                }
                continue;
            }
            let Some(session) = self.sessions.get_mut(id) else { return };
            for place in session.opens.close_all(first) {
                self.out.push(Action::RevokeGrant { session: id, place });
            }
            self.changed(id, first);
        }
    }

    /// The broker before this one may have raised the epoch of a block, and died before it had told
    /// all who may use it: a session that has blocks of several copies looks at all of them anew.
    fn copies_changed(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id).filter(|session| session.restored) else {
            return;
        };
        let has_locks = |first| self.blocks.has_locks(first);
        if !session.spans.iter().copied().chain(session.opens.regions()).any(has_locks) {
            return;
        }
        if let Some(session) = self.sessions.get_mut(id) {
            session.changes.push_all();
            self.moved.insert(id);
        }
    }

    fn lost_members(&self, first: BlockId) -> Vec<BlockId> {
        let is_lost =
            |id: &BlockId| self.blocks.get(*id).is_some_and(|b| b.state == BlockState::Lost);
        match self.blocks.span(first) {
            Some(span) if span.lost > 0 => {
                self.blocks.members(first).into_iter().filter(is_lost).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A session's blocks count against its reservation first; the rest is reserved anew, as far as
    /// there is room, and what is missing when daemons come.
    fn restore_reservation(&mut self, id: SessionId) {
        let Some(session) = self.sessions.get(id) else { return };
        let wanted = session.record.reserved;
        if wanted == 0 || !self.config.static_reservation {
            return;
        }
        let (account, spans) = (session.account, session.spans.clone());
        let held = self.ledger.account(account).map_or(0, |account| account.bytes);
        let covered = wanted.min(held);
        let copies = session.record.copies;
        let pieces = self.place_reservation(wanted - covered, copies);
        let total = covered + pieces.values().sum::<u64>();
        self.ledger.fill_account(account, total, pieces);
        let mut left = covered;
        let members = spans.into_iter().flat_map(|first| self.blocks.members(first));
        for block in members.collect::<Vec<_>>() {
            let Some(block) = self.blocks.get_mut(block) else { continue };
            for copy in block.copies.iter_mut().filter(|copy| copy.named) {
                left -= self.ledger.cover(&mut copy.charge, left);
            }
        }
        if total < wanted {
            let text = format!("session {id} had {wanted} bytes reserved, and has {total} now");
            self.log(LogLevel::Warn, text);
        }
    }

    /// A daemon is up: sessions for whose reservations there was no room while it was away get what
    /// they had, before anybody else is served. Not beyond their users' quota: they may have taken
    /// memory in the meantime that no reservation pays for.
    fn refill_reservations(&mut self) {
        if !self.config.static_reservation {
            return;
        }
        for id in self.sessions.ids() {
            let Some(session) = self.sessions.get(id).filter(|session| session.restored) else {
                continue;
            };
            let (wanted, account) = (session.record.reserved, session.account);
            let copies = session.record.copies;
            let quota = self.ledger.quota_left(session.record.uid);
            let has = self.ledger.account(account).map_or(0, |account| account.total);
            let missing = wanted.saturating_sub(has).min(quota - quota % PAGE_BYTES);
            let pieces = self.place_reservation(missing, copies);
            let more = pieces.values().sum::<u64>();
            if more > 0 {
                self.ledger.fill_account(account, more, pieces);
                let text = format!("session {id} has {} of {wanted} bytes reserved", has + more);
                self.log(LogLevel::Info, text);
            }
        }
    }
}

//! Copies are made again: a block that has fewer than were asked for gets another, while its
//! clients work (docs/adr/0009).
//!
//! ```text
//!            Create               all headers name it       who knows of the block is told, and
//!  (none) ----------> MAKING ------------------> NAMING ----------------> TELLING
//!    ^                  |                          |     idle since, and nothing   |
//!    |                  | it cannot be             |     of the dead is left       v
//!    |                  v                          v                            COPYING
//!    +--------------- (none) <---------------------+-------------------------------+
//!                  all headers name it no more: its daemon is away, or its         | all of it
//!                  object is lost                                                  v
//!                                    all headers name it as a good one, under the next epoch: Held
//! ```
//!
//! # Invariants
//!
//! 1. Nothing is copied before all who write the block store to the new copy as well: each session
//!    and seat that may write it was told, and was seen without an operation that began before. Of
//!    those that have ended nothing is left to be repaired.
//! 2. What is repaired meanwhile is repaired on the good copies, and copied once more.
//! 3. A copy that is syncing is read by nobody, and nothing is repaired from it. The headers of the
//!    good copies name it, as does its own, so that daemons write it; a broker that comes back
//!    gives it up.
//! 4. Of a block one copy is made at a time. It says since which epoch it is written: who asks
//!    about an earlier copy of that daemon means another object.
//! 5. No more are made at once than the configuration says, and of blocks that lack a copy some are
//!    looked at in a step.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use dmce_abi::block::{BlockId, DaemonId, Half, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::{DaemonAnswer, SYNC_BYTES_MAX};

use super::Dispatcher;
use super::action::LogLevel;
use super::asking::Answer;
use super::blocks::{Block, BlockState, News, SpanOwner};
use super::charge::Payer;
use super::copies::{Copy, CopyState};
use super::daemons::{Op, Server};
use super::event::Millis;
use super::placement::Need;
use super::sessions::Session;
use super::timers::Timer;

/// How long until something is tried again that could not be done: at first, and at most.
const AGAIN_MS: u64 = 20;
const AGAIN_MS_MAX: u64 = 10_000;
/// The same of a copy that a daemon has refused.
const REFUSED_MS: u64 = 1_000;
const REFUSED_MS_MAX: u64 = 60_000;
/// Blocks that are looked at in a step for whether a copy can be made.
const LOOKS: usize = 64;

/// A copy that is being made.
#[derive(Debug)]
struct Sync {
    daemon: DaemonId,
    stage: Stage,
}

/// How far it is.
#[derive(Debug)]
enum Stage {
    /// Its daemon was asked for it.
    Making,
    /// Headers are being written that name it.
    Naming,
    /// These may write the block without it.
    Telling(BTreeSet<SessionId>),
    /// It gets the bytes of the others.
    Copying(Copying),
}

/// What it has, and what it lacks.
#[derive(Debug, Default)]
struct Copying {
    /// Up to here it was copied once.
    done: u64,
    /// What is to be copied, before what follows.
    again: Vec<Range<u64>>,
    /// What its daemon was asked for.
    asked: Option<Range<u64>>,
    /// Until when that is not tried that could not be done, and how long this is.
    rests: Option<(Millis, u64)>,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    by_block: BTreeMap<BlockId, Sync>,
    /// Whether some block may get a copy that could not a moment ago.
    pub is_due: bool,
    /// Where the blocks are looked at from.
    from: Option<BlockId>,
    /// Daemons that have refused a copy of a block, as long as that lacks one.
    refused: BTreeMap<(BlockId, DaemonId), Refused>,
}

/// A copy that was refused.
#[derive(Debug)]
struct Refused {
    /// Until when it is not asked for.
    until: Millis,
    /// How long that was.
    pause_ms: u64,
}

impl Copying {
    /// Whether its daemon may be asked.
    fn is_ready(&self, now: Millis) -> bool {
        self.asked.is_none() && self.rests.is_none_or(|(until, _)| until <= now)
    }

    /// The next part, of a block of so many bytes.
    fn next(&mut self, committed: u64) -> Option<Range<u64>> {
        let mut range = match self.again.pop() {
            Some(range) => range,
            None if self.done < committed => {
                let range = self.done..committed;
                self.done = committed;
                range
            }
            None => return None,
        };
        let most = range.start + u64::from(SYNC_BYTES_MAX);
        if range.end > most {
            self.again.push(most..range.end);
            range.end = most;
        }
        Some(range)
    }
}

impl Syncs {
    /// Whether a copy of a block is being made.
    pub(super) fn has(&self, id: BlockId) -> bool {
        self.by_block.contains_key(&id)
    }

    /// Daemons that are not asked for a copy of a block now.
    fn refusers_of(&self, id: BlockId, now: Millis) -> impl Iterator<Item = DaemonId> {
        let refused = self.refused.iter().filter(move |((of, _), _)| *of == id);
        let refused = refused.filter(move |(_, refused)| refused.until > now);
        refused.map(|((_, daemon), _)| *daemon)
    }

    fn stage_of(&mut self, id: BlockId) -> Option<&mut Stage> {
        self.by_block.get_mut(&id).map(|sync| &mut sync.stage)
    }
}

impl Dispatcher {
    /// Has copies made of blocks that lack some, as far as there is a place for them.
    pub(super) fn make_copies(&mut self) {
        if !std::mem::take(&mut self.syncs.is_due) || !self.tables_complete() {
            return;
        }
        let first = self.syncs.from.take();
        let lacking: Vec<BlockId> = self.blocks.degraded_from(first).take(LOOKS).collect();
        let is_all = lacking.len() < LOOKS;
        for id in lacking {
            if self.syncs.by_block.len() >= self.config.syncs_max {
                // When one of them ends.
                return;
            }
            self.make_copy(id);
            self.syncs.from = id.checked_add(1).ok();
        }
        if is_all {
            self.syncs.from = None;
        } else {
            self.sync_later();
        }
    }

    /// Blocks that lack a copy may have a place for it.
    pub(super) fn look_for_places(&mut self) {
        if self.config.syncs_max > 0 && self.blocks.has_degraded() {
            self.sync_later();
        }
    }

    fn make_copy(&mut self, id: BlockId) {
        if self.syncs.has(id) || self.growths.values().any(|growth| growth.is_of(id)) {
            return;
        }
        let Some(block) = self.blocks.get(id).filter(|block| block.state == BlockState::Held)
        else {
            return;
        };
        let (first, committed) = (block.span, block.committed);
        let has_locks = block.locks.as_ref().is_some_and(|locks| locks.covers(committed));
        if !has_locks || !self.stands(first) {
            return;
        }
        let bytes = block.copies.committed();
        let mut taken: BTreeSet<DaemonId> = block.copies.iter().map(|copy| copy.daemon).collect();
        taken.extend(self.syncs.refusers_of(id, self.now.millis));
        let half = lacking_half(block);
        let Some(payer) = self.payer_of_span(first) else { return };
        let placement = self.config.placement;
        let need = Need { bytes, account: payer.account, refused: &taken, placement };
        let Some(daemon) = self.place(&need) else { return self.clear_place(id) };
        let Ok(charge) = self.ledger.charge(payer, daemon, bytes) else { return };
        if let Some(block) = self.blocks.get_mut(id) {
            // Epochs only grow: who knows this one, or an earlier one, knows another object there.
            let (named, since) = (false, block.epoch + 1);
            let copy = Copy { since, named, ..Copy::planned((daemon, half), charge) };
            block.copies.put(usize::MAX, copy);
        }
        self.daemons.placed(daemon);
        self.syncs.by_block.insert(id, Sync { daemon, stage: Stage::Making });
        self.ask_create(id, daemon);
    }

    /// No daemon has room but some that have what was a copy once: one of those goes, so that there
    /// is a place.
    fn clear_place(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get(id) else { return };
        let is_up = |daemon| self.daemons.servers.get(&daemon).is_some_and(Server::is_up);
        let is_old =
            |copy: &&Copy| !copy.named && matches!(copy.state, CopyState::Lost | CopyState::Stale);
        let old = block.copies.iter().filter(is_old).map(|copy| copy.daemon).find(|of| is_up(*of));
        if let Some(daemon) = old {
            let text = format!("what daemon {daemon} had of block {id} makes room for a new copy");
            self.log(LogLevel::Info, text);
            self.destroy(id, daemon);
        }
    }

    /// Whether a copy that was asked for is one of those; then it is there.
    pub(super) fn copy_made(&mut self, id: BlockId, daemon: DaemonId) -> bool {
        let is_it = |sync: &&mut Sync| sync.daemon == daemon;
        let Some(sync) = self.syncs.by_block.get_mut(&id).filter(is_it) else { return false };
        let is_grown = self.growths.values().any(|growth| growth.is_of(id));
        let Some(block) = self.blocks.get_mut(id) else { return false };
        let committed = block.committed;
        let Some(copy) = block.copies.of_mut(daemon) else { return false };
        copy.state = CopyState::Syncing;
        if copy.committed < committed || is_grown || !block.state.is_usable() {
            // Nobody was told of it.
            self.syncs.by_block.remove(&id);
            self.destroy(id, daemon);
            return true;
        }
        sync.stage = Stage::Naming;
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
        true
    }

    /// Whether a copy that was refused is one of those; then there is none.
    pub(super) fn copy_refused(&mut self, id: BlockId, daemon: DaemonId) -> bool {
        let is_it = self.syncs.by_block.get(&id).is_some_and(|sync| sync.daemon == daemon);
        if is_it {
            self.syncs.by_block.remove(&id);
            self.remove_copy(id, daemon);
            let before = self.syncs.refused.get(&(id, daemon)).map(|before| before.pause_ms);
            let pause_ms = before.map_or(REFUSED_MS, |ms| (2 * ms).min(REFUSED_MS_MAX));
            let until = self.now.millis.after(pause_ms);
            self.syncs.refused.insert((id, daemon), Refused { until, pause_ms });
            self.sync_at(until);
            // Another may make it.
            self.syncs.is_due = true;
        }
        is_it
    }

    /// It was decided which copies of a block there are, and its sessions are told.
    pub(super) fn go_on_syncing(&mut self, id: BlockId) {
        self.syncs.is_due = true;
        let Some(block) = self.blocks.get(id) else { return };
        let (first, epoch) = (block.span, block.epoch);
        if let Some(Stage::Naming | Stage::Telling(_)) = self.syncs.stage_of(id) {
            let mut sessions = self.holders(first);
            // Any daemon may write the block for a client.
            sessions.extend(self.seats.ids());
            self.idles.extend(sessions.iter().map(|session| (*session, id, epoch)));
            if let Some(stage) = self.syncs.stage_of(id) {
                *stage = Stage::Telling(sessions);
            }
        }
        self.sync_on(id);
    }

    /// A session or seat does nothing to a block that began before it was told.
    pub(super) fn syncs_without(&mut self, session: SessionId, id: BlockId) {
        let stage = self.syncs.stage_of(id);
        if let Some(Stage::Telling(left)) = stage
            && left.remove(&session)
        {
            self.sync_on(id);
        }
    }

    /// The same of all blocks: it has ended.
    pub(super) fn all_sync_without(&mut self, session: SessionId) {
        for id in self.syncs.by_block.keys().copied().collect::<Vec<_>>() {
            self.syncs_without(session, id);
        }
    }

    /// Goes on with all copies that are being made.
    pub(super) fn sync_all(&mut self) {
        for id in self.syncs.by_block.keys().copied().collect::<Vec<_>>() {
            self.sync_on(id);
        }
    }

    /// What could not be done a moment ago is tried again.
    pub(super) fn sync_again(&mut self) {
        self.syncs.is_due = true;
        let now = self.now.millis;
        let blocks = &self.blocks;
        self.syncs.refused.retain(|(id, _), _| blocks.is_degraded(*id, 1));
        let refused = self.syncs.refused.values().map(|refused| refused.until);
        if let Some(next) = refused.filter(|until| *until > now).min() {
            self.sync_at(next);
        }
        let all = self.syncs.by_block.values();
        let rests = all.filter_map(|sync| match &sync.stage {
            Stage::Copying(Copying { rests: Some((until, _)), asked: None, .. }) => Some(*until),
            _ => None,
        });
        if let Some(next) = rests.filter(|until| *until > now).min() {
            self.sync_at(next);
        }
        self.sync_all();
    }

    fn sync_later(&mut self) {
        self.sync_at(self.now.millis.after(AGAIN_MS));
    }

    fn sync_at(&mut self, at: Millis) {
        if self.timers.time_of(Timer::Sync).is_none_or(|before| at < before) {
            self.timers.set(Timer::Sync, at);
        }
    }

    /// Does the next thing for a copy that is being made.
    fn sync_on(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get(id).filter(|block| block.state == BlockState::Held)
        else {
            return;
        };
        let (first, guid, committed) = (block.span, block.guid, block.committed);
        let (is_repaired, now) = (!self.wrecks.may_hold(id, first), self.now.millis);
        let Some(Sync { daemon, stage }) = self.syncs.by_block.get_mut(&id) else { return };
        let daemon = *daemon;
        match stage {
            Stage::Telling(left) if left.is_empty() && is_repaired => {
                *stage = Stage::Copying(Copying::default());
                self.sync_on(id);
            }
            Stage::Copying(copying) if copying.is_ready(now) => {
                let Some(part) = copying.next(committed) else {
                    if is_repaired {
                        self.end_sync(id, daemon);
                    }
                    return;
                };
                copying.asked = Some(part.clone());
                let bytes = u32::try_from(part.end - part.start).unwrap_or(SYNC_BYTES_MAX);
                if let Some(server) = self.daemons.servers.get_mut(&daemon) {
                    server.push(Op::Sync { block: id, guid, cell: part.start, bytes });
                }
                self.pump(daemon);
            }
            _ => {}
        }
    }

    /// A daemon has copied a part, or has not.
    pub(super) fn synced(&mut self, daemon: DaemonId, id: BlockId, answer: Answer) {
        let is_it = |sync: &&mut Sync| sync.daemon == daemon;
        let sync = self.syncs.by_block.get_mut(&id).filter(is_it);
        let Some(Sync { stage: Stage::Copying(copying), .. }) = sync else { return };
        let Some(mut part) = copying.asked.take() else { return };
        let bytes = match answer {
            Ok(DaemonAnswer::Synced { bytes }) => u64::from(bytes),
            Ok(_) => 0,
            Err(refusal) => return self.drop_sync(id, &refusal.text),
        };
        part.start += bytes;
        if !part.is_empty() {
            copying.again.push(part);
        }
        if bytes > 0 {
            copying.rests = None;
            return self.sync_on(id);
        }
        // Somebody has its pages, or its daemon has no session object yet.
        let pause_ms = copying.rests.map_or(AGAIN_MS, |(_, ms)| (2 * ms).min(AGAIN_MS_MAX));
        let until = self.now.millis.after(pause_ms);
        copying.rests = Some((until, pause_ms));
        self.sync_at(until);
    }

    /// Something was repaired on the good copies of a block.
    pub(super) fn sync_repaired(&mut self, id: BlockId, pages: Range<u64>) {
        let committed = self.blocks.get(id).map_or(0, |block| block.committed);
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) {
            let end = (pages.end * PAGE_BYTES).min(committed);
            copying.again.push(pages.start * PAGE_BYTES..end);
        }
    }

    /// A copy has all bytes of the others: it is good as soon as all headers say so.
    fn end_sync(&mut self, id: BlockId, daemon: DaemonId) {
        self.syncs.by_block.remove(&id);
        let Some(block) = self.blocks.get_mut(id) else { return };
        block.copies.name(daemon);
        block.news = News::More;
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
    }

    /// A copy that is being made is given up.
    pub(super) fn drop_sync(&mut self, id: BlockId, why: &str) {
        let Some(Sync { daemon, stage }) = self.syncs.by_block.remove(&id) else { return };
        let text = format!("the new copy of block {id} on daemon {daemon} is given up: {why}");
        self.log(LogLevel::Warn, text);
        self.syncs.is_due = true;
        if matches!(stage, Stage::Making) {
            // Its daemon answers first, so that the destroy finds what was made.
            self.blocks.set_copy(id, daemon, CopyState::Dying);
        } else {
            self.destroy(id, daemon);
            self.blocks.set_state(id, BlockState::Losing);
            self.raise(id);
        }
    }

    /// A daemon does not answer, or is away: what it was making is given up.
    pub(super) fn drop_syncs_of(&mut self, daemon: DaemonId) {
        let all = self.syncs.by_block.iter();
        let ids: Vec<BlockId> =
            all.filter(|(_, s)| s.daemon == daemon).map(|(id, _)| *id).collect();
        for id in ids {
            self.drop_sync(id, "its daemon does not answer");
        }
    }

    /// A block is lost, or was given up: no copy of it is made any more.
    pub(super) fn forget_sync(&mut self, id: BlockId) {
        let Some(Sync { daemon, stage }) = self.syncs.by_block.remove(&id) else { return };
        self.syncs.is_due = true;
        match stage {
            Stage::Making => self.blocks.set_copy(id, daemon, CopyState::Dying),
            Stage::Naming | Stage::Telling(_) | Stage::Copying(_) => self.destroy(id, daemon),
        }
    }

    /// Who pays for the blocks of a span.
    pub(super) fn payer_of_span(&self, first: BlockId) -> Option<Payer> {
        let span = self.blocks.span(first)?;
        match span.owner {
            SpanOwner::Session(session) => self.sessions.get(session).map(Session::payer),
            SpanOwner::Region => Some(Payer { uid: span.uid, account: None }),
        }
    }

    /// Each copy that is being made is one of its block's.
    pub(super) fn audit_syncs(&self) -> Result<(), String> {
        for (id, Sync { daemon, stage }) in &self.syncs.by_block {
            let block = self.blocks.get(*id);
            let copy = block.and_then(|block| block.copies.of(*daemon));
            let state = copy.filter(|copy| !copy.named).map(|copy| copy.state);
            let fits = match stage {
                Stage::Making => state == Some(CopyState::Asked),
                Stage::Naming | Stage::Telling(_) | Stage::Copying(_) => {
                    state == Some(CopyState::Syncing)
                }
            };
            if !fits {
                return Err(format!(
                    "the new copy of block {id} on {daemon} is {state:?}, {stage:?}"
                ));
            }
        }
        let is_known = |id: BlockId| self.syncs.has(id);
        let mut all = self.blocks.all().filter(|(_, block)| block.copies.syncing().is_some());
        match all.find(|(id, _)| !is_known(*id)) {
            Some((id, _)) => Err(format!("nobody makes the new copy of block {id}")),
            None => Ok(()),
        }
    }
}

/// The first half that none of those is that the headers name.
fn lacking_half(block: &Block) -> Half {
    let mut all = (0..).map_while(Half::of);
    let lacks = |half: &Half| block.copies.named().all(|copy| copy.half != *half);
    all.find(lacks).unwrap_or(Half::MIRROR)
}

//! A block gets another copy while its clients work: one that it lacks, or one in the place of
//! another, which goes then (docs/adr/0009, docs/adr/0010).
//!
//! ```text
//!            Create               all headers name it       who knows of the block is told, and
//!  (none) ----------> MAKING ------------------> NAMING ----------------> TELLING
//!    ^                  |                          |     idle since, and nothing   |
//!    |                  | it cannot be             |     of the dead is left       v
//!    |                  |                          |                            COPYING
//!    |                  v                          v    it is lost, or does        |  |
//!    +--------------- (none)       UNNAMING <-----------not grow, or is refused----+  |
//!    |                             |      ^              all of it, and no pointer is | in its way
//!    |  Destroy                    |      |                                           v
//!    +----------- LEAVING <--------+      +--- that in whose ---- all headers name it as a good
//!       who knows of the block is told,        place it is        one: Held
//!       and idle since
//! ```
//!
//! Where its daemon is away, nobody waits for what is written there: it is destroyed at once.
//!
//! # Invariants
//!
//! 1. Nothing is copied before all who write the block store to the new copy as well: each session
//!    and seat that may write it was told, and was seen without an operation that began before. Of
//!    those that have ended nothing is left to be repaired. As long as those wait that write a copy
//!    which is given up, its object stays.
//! 2. What is repaired meanwhile is repaired on the good copies, and copied once more.
//! 3. A copy that is syncing is read by nobody, and nothing is repaired from it. The headers of the
//!    good copies name it, as does its own, so that daemons write it; a broker that comes back
//!    gives it up.
//! 4. Of a block one copy is made or goes at a time. It says since which epoch it is written: who
//!    asks about an earlier copy of that daemon means another object.
//! 5. Who stands still holds up copies of blocks that it has open, and no others: one that waits
//!    takes no place among those that are made at once.
//! 6. By one writing of headers a copy becomes good and the other, in whose place it is, is none
//!    any more: a move makes no copy too many.

mod copying;
mod leaving;
mod pointers;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::admin::HeldBy;
use dmce_abi::wire::daemon::{DaemonAnswer, SYNC_BYTES_MAX};

use super::Dispatcher;
use super::asking::Answer;
use super::blocks::{Block, BlockState, News};
use super::copies::{Copy, CopyState};
use super::daemons::Op;
use super::event::Millis;
use super::lacks::Lacks;
use super::pace::Pace;
use super::timers::Timer;
use copying::Copying;

/// How long until something is tried again that could not be done: at first, and at most.
const AGAIN_MS: u64 = 20;
const AGAIN_MS_MAX: u64 = 1_000;
/// How long those who are told may take before others take the place of a copy.
const TELLING_MS: u64 = 1_000;
/// Parts that a daemon is asked for at once, so that it has another one when it has done one.
const PARTS: usize = 2;

/// A copy that is being made, or goes.
#[derive(Debug)]
struct Sync {
    daemon: DaemonId,
    /// Whose copy goes when this one is good.
    instead_of: Option<DaemonId>,
    /// Whether there was one copy before, whose pages nobody locked.
    was_plain: bool,
    /// A daemon that may be storing to that without a lock and a mark, and has yet to answer.
    fences: Option<DaemonId>,
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
    Copying(Box<Copying>),
    /// Headers are being written that do not name it any more.
    Unnaming { was_good: bool },
    /// These may still use it.
    Leaving { was_good: bool, left: BTreeSet<SessionId> },
    /// Headers are being written by which nobody locks pages of an only copy any more.
    Unlocking,
    /// These may still do so.
    Unlocked(BTreeSet<SessionId>),
}

impl Stage {
    /// Whether it is a copy that goes, and had all bytes of the others.
    const fn was_good(&self) -> bool {
        matches!(self, Self::Unnaming { was_good: true } | Self::Leaving { was_good: true, .. })
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Syncs {
    by_block: BTreeMap<BlockId, Sync>,
    /// Those of them that wait for somebody, and take no place.
    waiting: BTreeSet<BlockId>,
    /// When blocks are looked at again.
    due: BTreeSet<(Millis, BlockId)>,
    /// What is known of blocks that lack a copy.
    pub lacks: Lacks,
    /// How fast they are made.
    pub pace: Pace,
}

impl Syncs {
    /// None, to be made at a rate; 0 for as fast as it goes.
    pub(super) fn new(bytes_a_second: u64) -> Self {
        Self {
            by_block: BTreeMap::new(),
            waiting: BTreeSet::new(),
            due: BTreeSet::new(),
            lacks: Lacks::default(),
            pace: Pace::new(bytes_a_second),
        }
    }

    /// How many are being made.
    pub(super) fn len(&self) -> usize {
        self.by_block.len()
    }

    /// How many bytes a copy of a block that has so many lacks that is being made.
    pub(super) fn left(&self, id: BlockId, committed: u64) -> u64 {
        match self.by_block.get(&id).map(|sync| &sync.stage) {
            Some(Stage::Copying(copying)) => copying.left(committed),
            _ => committed,
        }
    }

    /// Whether a copy of a block is being made.
    pub(super) fn has(&self, id: BlockId) -> bool {
        self.by_block.contains_key(&id)
    }

    /// Whether one is being made that nobody was told is good.
    pub(super) fn is_made(&self, id: BlockId) -> bool {
        let sync = self.by_block.get(&id);
        sync.is_some_and(|sync| {
            let stage = &sync.stage;
            matches!(stage, Stage::Making | Stage::Naming | Stage::Telling(_) | Stage::Copying(_))
        })
    }

    /// How many go on by themselves.
    pub(super) fn going(&self) -> usize {
        self.by_block.len() - self.waiting.len()
    }

    /// The daemon of the copy of a block that goes, and had all bytes of the others: who was not
    /// told writes it.
    pub(super) fn goes_good(&self, id: BlockId) -> Option<DaemonId> {
        let sync = self.by_block.get(&id).filter(|sync| sync.stage.was_good());
        sync.map(|sync| sync.daemon)
    }

    /// The blocks of which a copy is made, or goes.
    pub(super) fn ids(&self) -> impl Iterator<Item = BlockId> {
        self.by_block.keys().copied()
    }

    /// The sessions that a copy of a block waits for, and what of them.
    pub(super) fn waits_for(&self, id: BlockId) -> Option<(BTreeSet<SessionId>, HeldBy)> {
        match &self.by_block.get(&id)?.stage {
            Stage::Telling(left) | Stage::Leaving { left, .. } | Stage::Unlocked(left) => {
                Some((left.clone(), HeldBy::Operation))
            }
            Stage::Copying(copying) => Some((copying.pointers.held_by.clone(), HeldBy::Pointer)),
            _ => None,
        }
    }

    /// Whether a copy of a block is made in the place of another.
    pub(super) fn is_replacing(&self, id: BlockId) -> bool {
        self.by_block.get(&id).is_some_and(|sync| sync.instead_of.is_some())
    }

    /// Whether some may write the only good copy of a block without its locks, and others by them.
    pub(super) fn is_half_locked(&self, id: BlockId) -> bool {
        let sync = self.by_block.get(&id).filter(|sync| sync.was_plain);
        sync.is_some_and(|sync| {
            let is_told = |stage: &Stage| matches!(stage, Stage::Naming | Stage::Telling(_));
            is_told(&sync.stage) || matches!(sync.stage, Stage::Unlocking | Stage::Unlocked(_))
        })
    }

    fn stage_of(&mut self, id: BlockId) -> Option<&mut Stage> {
        self.by_block.get_mut(&id).map(|sync| &mut sync.stage)
    }

    /// It waits for somebody, or goes on.
    fn set_waiting(&mut self, id: BlockId, waits: bool) {
        if !waits {
            self.waiting.remove(&id);
        } else if self.waiting.insert(id) {
            self.lacks.is_due = true;
        }
    }

    fn remove(&mut self, id: BlockId) -> Option<Sync> {
        self.waiting.remove(&id);
        let sync = self.by_block.remove(&id)?;
        self.lacks.is_due = true;
        Some(sync)
    }
}

impl Dispatcher {
    /// A copy is asked for; in the place of one that goes then, if that is said.
    pub(super) fn begin_sync(
        &mut self,
        id: BlockId,
        daemon: DaemonId,
        instead_of: Option<DaemonId>,
    ) {
        let (was_plain, stage) = (false, Stage::Making);
        self.syncs.by_block.insert(id, Sync { daemon, instead_of, was_plain, fences: None, stage });
        self.ask_create(id, daemon);
    }

    /// Nobody is to lock pages of an only copy any more, which has moved.
    pub(super) fn begin_unlocking(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(daemon) = block.primary() else { return };
        block.is_locked = false;
        let stage = Stage::Unlocking;
        let (instead_of, was_plain) = (None, true);
        self.syncs.by_block.insert(id, Sync { daemon, instead_of, was_plain, fences: None, stage });
        self.syncs.set_waiting(id, true);
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
    }

    /// Nothing is done any more about a copy that was made, or went.
    fn end_of_sync(&mut self, id: BlockId) -> Option<Sync> {
        self.moves.is_due = true;
        self.syncs.remove(id)
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
            self.end_of_sync(id);
            self.destroy(id, daemon);
            self.move_again(id);
            return true;
        }
        (sync.stage, sync.was_plain) = (Stage::Naming, !block.is_locked);
        block.is_locked = true;
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
        true
    }

    /// Whether a copy that was refused is one of those; then there is none.
    pub(super) fn copy_refused(&mut self, id: BlockId, daemon: DaemonId, why: &str) -> bool {
        let is_it = self.syncs.by_block.get(&id).is_some_and(|sync| sync.daemon == daemon);
        if is_it {
            self.end_of_sync(id);
            self.remove_copy(id, daemon);
            self.rest_from(id, daemon);
            self.move_failed(id, why);
        }
        is_it
    }

    /// It was decided which copies of a block there are, and its sessions are told.
    pub(super) fn go_on_syncing(&mut self, id: BlockId) {
        (self.syncs.lacks.is_due, self.moves.is_due) = (true, true);
        let Some(block) = self.blocks.get(id) else { return };
        let (first, epoch) = (block.span, block.epoch);
        let Some(Sync { daemon, stage, .. }) = self.syncs.by_block.get(&id) else { return };
        let (told, next): (_, fn(BTreeSet<SessionId>) -> Stage) = match stage {
            Stage::Making => return,
            Stage::Copying(_) => {
                self.await_pointers(id);
                return self.sync_on(id);
            }
            Stage::Naming | Stage::Telling(_) => {
                (self.users_of(first, None, false), Stage::Telling)
            }
            Stage::Unnaming { was_good: false } | Stage::Leaving { was_good: false, .. } => {
                let users = self.users_of(first, Some(*daemon), false);
                (users, |left| Stage::Leaving { was_good: false, left })
            }
            Stage::Unnaming { was_good: true } | Stage::Leaving { was_good: true, .. } => {
                let users = self.users_of(first, Some(*daemon), true);
                self.inspect_named(id);
                (users, |left| Stage::Leaving { was_good: true, left })
            }
            Stage::Unlocking | Stage::Unlocked(_) => {
                (self.users_of(first, None, true), Stage::Unlocked)
            }
        };
        self.idles.extend(told.iter().map(|session| (*session, id, epoch)));
        if let Some(stage) = self.syncs.stage_of(id) {
            *stage = next(told);
        }
        self.fence(id);
        self.sync_at(self.now.millis.after(TELLING_MS), id);
        self.sync_on(id);
    }

    /// Waits for the daemon of an only copy that nobody locked: what it stores there for a client
    /// has no mark.
    fn fence(&mut self, id: BlockId) {
        let primary = self.blocks.get(id).and_then(Block::primary);
        let server = primary.and_then(|daemon| self.daemons.servers.get_mut(&daemon));
        let Some(Sync { was_plain: true, stage: Stage::Telling(_), fences, .. }) =
            self.syncs.by_block.get_mut(&id)
        else {
            return;
        };
        *fences = primary.filter(|_| server.as_ref().is_some_and(|server| server.hears()));
        if let (Some(daemon), Some(server)) = (*fences, server) {
            server.push(Op::Fence { block: id });
            self.pump(daemon);
        }
    }

    /// A daemon does nothing any more to a block that it began before, or is away.
    pub(super) fn fenced(&mut self, id: BlockId, daemon: DaemonId) {
        let sync = self.syncs.by_block.get_mut(&id);
        if sync.is_some_and(|sync| sync.fences.take_if(|of| *of == daemon).is_some()) {
            self.sync_on(id);
        }
    }

    /// A session or seat does nothing to a block that began before it was told.
    pub(super) fn syncs_without(&mut self, session: SessionId, id: BlockId) {
        let stage = self.syncs.stage_of(id);
        if let Some(Stage::Telling(left) | Stage::Leaving { left, .. } | Stage::Unlocked(left)) =
            stage
            && left.remove(&session)
        {
            self.sync_on(id);
        }
        self.gives_no_pointers(session, id);
    }

    /// The same of all blocks: it has ended.
    pub(super) fn all_sync_without(&mut self, session: SessionId) {
        for id in self.syncs.by_block.keys().copied().collect::<Vec<_>>() {
            self.has_no_pointers(session, id);
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
        (self.syncs.lacks.is_due, self.moves.is_due) = (true, true);
        let now = self.now.millis;
        while let Some(&(at, id)) = self.syncs.due.first()
            && at <= now
        {
            self.syncs.due.pop_first();
            match self.syncs.stage_of(id) {
                Some(Stage::Telling(_)) => self.syncs.set_waiting(id, true),
                Some(Stage::Copying(copying)) => {
                    copying.rests.take_if(|until| *until <= now);
                    self.look_at_pointers(id);
                }
                _ => {}
            }
            self.sync_on(id);
        }
        self.set_sync_timer();
    }

    /// Looks at a block again then.
    pub(super) fn sync_at(&mut self, at: Millis, id: BlockId) {
        self.syncs.due.insert((at, id));
        self.set_sync_timer();
    }

    /// Looks again soon for what can be made.
    pub(super) fn sync_later(&mut self) {
        let at = self.now.millis.after(AGAIN_MS);
        if self.timers.time_of(Timer::Sync).is_none_or(|before| at < before) {
            self.timers.set(Timer::Sync, at);
        }
    }

    fn set_sync_timer(&mut self) {
        let Some(&(at, _)) = self.syncs.due.first() else { return };
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
        let is_repaired = !self.wrecks.may_hold(id, first);
        let Some(Sync { daemon, stage, fences, .. }) = self.syncs.by_block.get_mut(&id) else {
            return;
        };
        let (daemon, is_fenced) = (*daemon, fences.is_some());
        match stage {
            Stage::Telling(left) if left.is_empty() && is_repaired && !is_fenced => {
                *stage = Stage::Copying(Box::default());
                self.syncs.set_waiting(id, false);
                self.sync_on(id);
            }
            Stage::Copying(copying) => {
                let (now, mut due) = (self.now.millis, None);
                while copying.rests.is_none() && copying.asked.len() < PARTS {
                    let booked = copying.booked.take().or_else(|| {
                        let part = copying.next(committed)?;
                        let at = self.syncs.pace.book(now, part.end - part.start);
                        Some((at, part))
                    });
                    let Some((at, part)) = booked else { break };
                    if at > now {
                        due = Some(at);
                        copying.booked = Some((at, part));
                        break;
                    }
                    let bytes = u32::try_from(part.end - part.start).unwrap_or(SYNC_BYTES_MAX);
                    if let Some(server) = self.daemons.servers.get_mut(&daemon) {
                        server.push(Op::Sync { block: id, guid, cell: part.start, bytes });
                    }
                    copying.asked.push(part);
                }
                let is_all = copying.is_all(committed);
                if let Some(at) = due {
                    self.sync_at(at, id);
                }
                self.pump(daemon);
                match (is_all, is_repaired) {
                    (true, true) if self.are_pointers_gone(id) => self.end_sync(id),
                    (true, false) => self.syncs.set_waiting(id, true),
                    _ => {}
                }
            }
            // What the dead have left may be whole there alone.
            Stage::Leaving { was_good, left } if left.is_empty() && (is_repaired || !*was_good) => {
                self.goes(id, daemon);
            }
            Stage::Unlocked(left) if left.is_empty() && is_repaired => {
                self.end_of_sync(id);
                self.take_locks_back(id);
            }
            _ => {}
        }
    }

    /// A daemon has copied some of the part that begins with a cell, or nothing.
    pub(super) fn synced(&mut self, daemon: DaemonId, (id, cell): (BlockId, u64), answer: Answer) {
        let is_it = |sync: &&mut Sync| sync.daemon == daemon;
        let sync = self.syncs.by_block.get_mut(&id).filter(is_it);
        let Some(Sync { stage: Stage::Copying(copying), .. }) = sync else { return };
        let place = copying.asked.iter().position(|part| part.start == cell);
        let Some(mut part) = place.map(|place| copying.asked.remove(place)) else { return };
        let bytes = match answer {
            Ok(DaemonAnswer::Synced { bytes }) => u64::from(bytes),
            Ok(_) => 0,
            Err(refusal) => return self.drop_sync(id, &refusal.text),
        };
        part.start += bytes;
        self.syncs.pace.give_back(part.end - part.start);
        if bytes > 0 {
            self.syncs.pace.note(self.now.millis, bytes);
            copying.pause_ms = 0;
            if !part.is_empty() {
                copying.again.push_front(part);
            }
            self.syncs.set_waiting(id, false);
            return self.sync_on(id);
        }
        // Somebody has its first page, or its daemon has no session object yet.
        copying.pass_over(part);
        if copying.rests.is_some() {
            return;
        }
        copying.pause_ms = (2 * copying.pause_ms).clamp(AGAIN_MS, AGAIN_MS_MAX);
        let until = self.now.millis.after(copying.pause_ms);
        copying.rests = Some(until);
        let is_stuck = copying.pause_ms == AGAIN_MS_MAX;
        let is_first = is_stuck && !std::mem::replace(&mut copying.is_renamed, true);
        self.sync_at(until, id);
        if is_stuck {
            self.syncs.set_waiting(id, true);
        }
        if is_first && self.blocks.get(id).is_some_and(|of| of.state == BlockState::Held) {
            // A header may be damaged, of a copy that has all its bytes: who writes it sees that.
            self.blocks.set_state(id, BlockState::Losing);
            self.raise(id);
        }
    }

    /// Something was repaired on the good copies of a block.
    pub(super) fn sync_repaired(&mut self, id: BlockId, pages: Range<u64>) {
        let committed = self.blocks.get(id).map_or(0, |block| block.committed);
        if let Some(Stage::Copying(copying)) = self.syncs.stage_of(id) {
            let end = (pages.end * PAGE_BYTES).min(committed);
            copying.again.push_back(pages.start * PAGE_BYTES..end);
        }
    }

    /// A copy has all bytes of the others: it is good as soon as all headers say so, and that in
    /// whose place it is, is none any more.
    fn end_sync(&mut self, id: BlockId) {
        let Some(Sync { daemon, instead_of, .. }) = self.end_of_sync(id) else { return };
        let Some(block) = self.blocks.get_mut(id) else { return };
        let first = block.span;
        block.is_moving = false;
        let is_named = |old: &DaemonId| block.copies.named().any(|copy| copy.daemon == *old);
        if let Some(old) = instead_of.filter(is_named) {
            if let Some([old, new]) = block.copies.replace(old, daemon) {
                self.ledger.hand_over(&mut old.charge, &mut new.charge);
            }
            block.news = News::Moved;
            self.renumber_if_due(id);
            return self.begin_leaving(id, old);
        }
        block.copies.name(daemon);
        block.news = News::More;
        let payer = self.payer_of_span(first);
        let copy = self.blocks.get_mut(id).and_then(|block| block.copies.of_mut(daemon));
        if let Some(copy) = copy {
            self.ledger.pay(&mut copy.charge, payer);
        }
        self.moved_from(id);
        self.blocks.set_state(id, BlockState::Losing);
        self.raise(id);
    }

    /// Each copy that is being made is one of its block's.
    pub(super) fn audit_syncs(&self) -> Result<(), String> {
        for (id, Sync { daemon, stage, .. }) in &self.syncs.by_block {
            let block = self.blocks.get(*id);
            let copy = block.and_then(|block| block.copies.of(*daemon));
            let state = copy.filter(|copy| !copy.named).map(|copy| copy.state);
            let fits = match stage {
                Stage::Making => state == Some(CopyState::Asked),
                Stage::Naming | Stage::Telling(_) | Stage::Copying(_) => {
                    state == Some(CopyState::Syncing)
                }
                Stage::Unlocking | Stage::Unlocked(_) => copy.is_some_and(|copy| copy.named),
                Stage::Unnaming { .. } | Stage::Leaving { .. } => state == Some(CopyState::Leaving),
            };
            if !fits {
                return Err(format!(
                    "the new copy of block {id} on {daemon} is {state:?}, {stage:?}"
                ));
            }
        }
        let is_known = |id: BlockId| self.syncs.has(id);
        let is_one = |copy: &Copy| matches!(copy.state, CopyState::Syncing | CopyState::Leaving);
        let mut all = self.blocks.all().filter(|(_, block)| block.copies.iter().any(is_one));
        match all.find(|(id, _)| !is_known(*id)) {
            Some((id, _)) => Err(format!("nobody makes the new copy of block {id}")),
            None => Ok(()),
        }
    }
}

//! Copies of blocks are compared, so that it is found out that one is damaged before it is needed
//! (docs/adr/0013).
//!
//! ```text
//!          it is time, or somebody asks            the daemon of its primary is asked
//!  (none) -----------------------------> WAITING ------------------------------------> ASKED
//!    ^                                    |   ^                                           |
//!    |  behind the last block: answered   |   |  a part was gone through; or not now:     |
//!    +------------------------------------+   +-------------------------------------------+
//!                                                again in a while, some times, then the next
//! ```
//!
//! # Invariants
//!
//! 1. One part of one block is compared at a time, and over any time no more bytes, in all copies,
//!    than the configuration says, but for what is looked at again.
//! 2. A block that has lost its lock table comes first, then what somebody asked for, in turn, then
//!    what is done by itself. Who asked is answered once.
//! 3. Nobody is held up by it, and it by nobody: what cannot be compared for a while counts as
//!    busy, and is left to the next pass; of a block that lost its lock table it is tried again.
//! 4. What daemons say decides nothing here. It is counted, and logged.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::admin::{self, AdminReply};
use dmce_abi::wire::client::ClientReply;
use dmce_abi::wire::daemon::{DaemonAnswer, SYNC_BYTES_MAX};
use dmce_abi::wire::scrub::ScrubFound;

use super::Dispatcher;
use super::action::LogLevel;
use super::asking::Answer;
use super::blocks::{Block, BlockState};
use super::clients::ReplyTo;
use super::daemons::{Op, Server};
use super::event::{ClientConn, Millis};
use super::pace::Pace;
use super::requests::{Outcome, Served, refuse};
use super::timers::Timer;

/// How long until a part is tried again that could not be compared: at first.
const AGAIN_MS: u64 = 20;
/// Parts begin at multiples of this.
const PART: u64 = SYNC_BYTES_MAX as u64;
/// How often it is tried.
const TRIES: u32 = 6;
/// How long until a block that has lost its lock table is gone through again that could not be: at
/// first, and at most.
const ANEW_MS: u64 = 1_000;
const ANEW_MAX_MS: u64 = 64_000;
/// Blocks that are passed over in a step.
const LOOKS: usize = 64;

/// Blocks that are gone through.
#[derive(Debug)]
struct Pass {
    /// Who waits for it; nobody, if it is done by itself.
    asker: Option<ReplyTo>,
    /// The only block, if it is not all.
    only: Option<BlockId>,
    /// Where it goes on: in which block, or the next one that there is; or it is at its end.
    at: Option<BlockId>,
    cell: u64,
    /// Whether it waits for what is being compared.
    is_asked: bool,
    /// Whether what is next has its place in the pace, and from when on.
    booked: Option<(Part, Millis)>,
    /// How often that was tried in vain, and until when it is not tried again.
    tries: u32,
    rests: Option<Millis>,
    /// What has come of it: bytes of all copies, and blocks.
    bytes: u64,
    blocks: u32,
    found: ScrubFound,
}

/// A part of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    block: BlockId,
    daemon: DaemonId,
    cell: u64,
    bytes: u32,
    copies: u64,
}

impl Part {
    /// Bytes of all copies.
    fn cost(self, bytes: u32) -> u64 {
        u64::from(bytes).saturating_mul(self.copies)
    }
}

/// When a block is gone through again.
#[derive(Clone, Copy, Debug)]
struct Later {
    /// That moment; none while it is being gone through.
    at: Option<Millis>,
    /// For how long it was left alone last.
    wait_ms: u64,
}

/// All of it.
#[derive(Debug)]
pub(super) struct Scrubs {
    /// The first is being made. Those that nobody waits for come last.
    passes: VecDeque<Pass>,
    /// What is being compared.
    asked: Option<Part>,
    /// Blocks that have lost their lock table and could not be gone through at once.
    anew: BTreeMap<BlockId, Later>,
    pace: Pace,
    /// When all blocks were gone through last, in seconds since 1970, and what was found.
    last: (u64, ScrubFound),
    is_due: bool,
}

impl Scrubs {
    /// None, at a rate in bytes a second; 0 for as fast as it goes.
    pub(super) fn new(rate: u64) -> Self {
        let (passes, pace) = (VecDeque::new(), Pace::new(rate));
        let (asked, anew) = (None, BTreeMap::new());
        Self { passes, asked, anew, pace, last: (0, ScrubFound::default()), is_due: false }
    }

    /// Who waits for an answer.
    pub(super) fn owed(&self) -> impl Iterator<Item = ReplyTo> {
        self.passes.iter().filter_map(|pass| pass.asker)
    }

    /// Blocks of which it is not said when they are gone through again, and that are not.
    pub(super) fn forgotten(&self) -> impl Iterator<Item = BlockId> {
        let is_at_it = |id| self.passes.iter().any(|pass| pass.is_anew() && pass.only == Some(id));
        let all = self.anew.iter().filter(|(_, later)| later.at.is_none()).map(|(id, _)| *id);
        all.filter(move |id| !is_at_it(*id))
    }

    /// Whether a block is to be gone through when it is time.
    pub(super) fn waits(&self) -> bool {
        !self.is_due && self.anew.values().any(|later| later.at.is_some())
    }

    fn add(&mut self, asker: Option<ReplyTo>, only: Option<BlockId>, first: Option<BlockId>) {
        let rank = |asker: Option<ReplyTo>, only: Option<BlockId>| match (asker, only) {
            (None, Some(_)) => 0,
            (Some(_), _) => 1,
            (None, None) => 2,
        };
        let is_later = |pass: &Pass| rank(pass.asker, pass.only) > rank(asker, only);
        let place = self.passes.iter().position(is_later);
        let pass = Pass {
            asker,
            only,
            at: first,
            cell: 0,
            is_asked: false,
            booked: None,
            tries: 0,
            rests: None,
            bytes: 0,
            blocks: 0,
            found: ScrubFound::default(),
        };
        let place = place.unwrap_or(self.passes.len());
        // What it overtakes is booked again behind it.
        let overtaken = self.passes.get_mut(place).and_then(|pass| pass.booked.take());
        self.pace.give_back(overtaken.map_or(0, |(part, _)| part.cost(part.bytes)));
        self.passes.insert(place, pass);
        self.is_due = true;
    }
}

impl Pass {
    /// Whether it is of a block that has lost its lock table.
    const fn is_anew(&self) -> bool {
        self.asker.is_none() && self.only.is_some()
    }

    /// It waits for nothing any more.
    const fn hear(&mut self) -> &mut Self {
        self.is_asked = false;
        self
    }

    /// The part that was tried was not compared.
    fn failed(&mut self, now: Millis) {
        self.tries += 1;
        self.rests = Some(now.after(AGAIN_MS << self.tries.min(TRIES)));
    }

    /// It goes on in this block, from a cell on.
    const fn go_to(&mut self, id: BlockId, cell: u64) {
        (self.at, self.cell) = (Some(id), cell);
        (self.tries, self.rests) = (0, None);
    }

    /// The next thing is another block.
    fn leave(&mut self, id: BlockId) {
        self.at = id.checked_add(1).ok();
        (self.cell, self.tries, self.rests) = (0, 0, None);
    }
}

/// What a pass does next.
enum Next {
    /// This is compared.
    Compare(Part),
    /// Nothing of it can be, now.
    Rest(BlockId),
    /// A block is passed over from a cell up to another one.
    PassOver(BlockId, Range<u64>),
    /// The rest of a block is, which is lost.
    Lost(BlockId, Range<u64>),
    /// All was gone through.
    End,
}

/// Pages of a part of a block.
const fn pages(cells: &Range<u64>) -> u64 {
    cells.end.saturating_sub(cells.start).div_ceil(PAGE_BYTES)
}

impl Dispatcher {
    /// Has the copies of a block compared, or of all.
    pub(super) fn scrub_for(&mut self, to: ReplyTo, block: u32) -> Served {
        self.check_mover(to)?;
        let known = BlockId::try_from(block).ok().filter(|id| {
            let found = self.blocks.get(*id);
            found.is_some_and(|found| found.is_usable() && self.stands(found.span))
        });
        if block != 0 && known.is_none() {
            return refuse(Status::NotFound, format!("there is no block {block} that is not lost"));
        }
        self.scrubs.add(Some(to), known, known.or_else(|| self.first_block()));
        Ok(Outcome::Later)
    }

    /// Has all blocks gone through in a while, if that is wanted.
    pub(super) fn scrub_later(&mut self) {
        let every = self.config.scrub_every_ms;
        if every > 0 {
            self.timers.set(Timer::Pass, self.now.millis.after(every));
        }
    }

    /// Has all blocks gone through, unless that is being done by itself.
    pub(super) fn scrub_now(&mut self) {
        let is_it = |pass: &Pass| pass.asker.is_none() && pass.only.is_none();
        if !self.scrubs.passes.iter().any(is_it) {
            self.scrubs.add(None, None, self.first_block());
        }
    }

    /// Has a block compared before all others: with its lock table, which is another one now, went
    /// what was known of pages that are lost.
    pub(super) fn scrub_at_once(&mut self, id: BlockId) {
        self.scrubs.anew.remove(&id);
        self.scrub_soon(id);
    }

    /// Has a block compared before all others, from its beginning.
    fn scrub_soon(&mut self, id: BlockId) {
        let is_it = |pass: &&mut Pass| pass.is_anew() && pass.only == Some(id);
        match self.scrubs.passes.iter_mut().find(is_it) {
            // From its beginning, if it was begun with.
            Some(pass) => {
                (pass.at, pass.cell) = (Some(id), 0);
                self.scrubs.is_due = true;
            }
            None => self.scrubs.add(None, Some(id), Some(id)),
        }
    }

    fn first_block(&self) -> Option<BlockId> {
        self.blocks.all().next().map(|(id, _)| id)
    }

    /// What had to wait may be done.
    pub(super) const fn scrub_again(&mut self) {
        self.scrubs.is_due = true;
    }

    /// Goes on with the first pass.
    pub(super) fn scrub(&mut self) {
        if !self.tables_complete() || !std::mem::take(&mut self.scrubs.is_due) {
            return;
        }
        self.scrub_anew();
        for _ in 0..LOOKS {
            let now = self.now.millis;
            let Some(pass) = self.scrubs.passes.front().filter(|_| self.scrubs.asked.is_none())
            else {
                return;
            };
            if let Some(until) = pass.rests.filter(|until| *until > now) {
                return self.scrub_at(until);
            }
            match (self.next_of(pass), self.scrubs.passes.front_mut()) {
                (Next::Compare(part), _) => {
                    if !self.compare(part) {
                        return;
                    }
                }
                (Next::Rest(id), Some(pass)) => {
                    if pass.at != Some(id) {
                        pass.go_to(id, 0);
                    }
                    pass.failed(now);
                }
                (Next::PassOver(id, cells), Some(pass)) => {
                    pass.found.busy += pages(&cells);
                    pass.go_to(id, cells.end);
                    if cells.is_empty() {
                        pass.leave(id);
                    }
                }
                (Next::Lost(id, cells), Some(pass)) => {
                    pass.found.lost += pages(&cells);
                    pass.leave(id);
                }
                (Next::End, _) => self.end_pass(),
                (_, None) => return,
            }
        }
        self.scrubs.is_due = true;
        self.scrub_at(self.now.millis.after(1));
    }

    /// Goes on then.
    fn scrub_at(&mut self, at: Millis) {
        if self.timers.time_of(Timer::Scrub).is_none_or(|before| at < before) {
            self.timers.set(Timer::Scrub, at);
        }
    }

    /// Has blocks gone through again that have lost their lock table, and could not be.
    fn scrub_anew(&mut self) {
        let now = self.now.millis;
        let all = self.scrubs.anew.iter_mut();
        let is_due = |later: &mut Later| later.at.take_if(|at| *at <= now).is_some();
        let due = all.filter_map(|(id, later)| is_due(later).then_some(*id));
        let due: Vec<BlockId> = due.take(LOOKS).collect();
        for id in due {
            if self.blocks.get(id).is_some_and(Block::is_usable) {
                self.scrub_soon(id);
            } else {
                self.scrubs.anew.remove(&id);
            }
        }
        if let Some(at) = self.scrubs.anew.values().filter_map(|later| later.at).min() {
            self.scrub_at(at);
        }
    }

    /// What is next of a pass.
    fn next_of(&self, pass: &Pass) -> Next {
        let is_over = |id: BlockId| pass.only.is_some_and(|only| id != only);
        let next = pass.at.and_then(|at| self.blocks.from(at).next());
        let Some((id, block)) = next.filter(|(id, _)| !is_over(*id)) else { return Next::End };
        let is_it = pass.at == Some(id);
        let (cell, tries) = if is_it { (pass.cell, pass.tries) } else { (0, 0) };
        let committed = block.committed;
        if block.state == BlockState::Lost {
            return Next::Lost(id, cell..committed);
        }
        let daemon = block.primary().filter(|daemon| {
            let server = self.daemons.servers.get(daemon);
            server.is_some_and(Server::is_up) && self.stands(block.span)
        });
        let end = (cell / PART + 1).saturating_mul(PART).min(committed);
        // Whoever decides about its copies knows which are good when that is done.
        match daemon.filter(|_| block.state == BlockState::Held) {
            _ if cell >= committed => Next::PassOver(id, cell..cell),
            Some(_) if tries >= TRIES => Next::PassOver(id, cell..end),
            None if tries >= TRIES => Next::PassOver(id, cell..committed),
            None => Next::Rest(id),
            Some(daemon) => {
                let bytes = u32::try_from(end - cell).unwrap_or(SYNC_BYTES_MAX);
                // An only copy whose pages nobody locks is not read.
                let copies = if block.is_locked { block.copies.named().count() as u64 } else { 0 };
                Next::Compare(Part { block: id, daemon, cell, bytes, copies })
            }
        }
    }

    /// Has a part compared, unless it is too early.
    fn compare(&mut self, part: Part) -> bool {
        let now = self.now.millis;
        let Scrubs { passes, pace, .. } = &mut self.scrubs;
        let Some(pass) = passes.front_mut() else { return false };
        let at = match pass.booked.take() {
            Some((booked, at)) if booked == part => at,
            Some((other, _)) => {
                pace.give_back(other.cost(other.bytes));
                pace.book(now, part.cost(part.bytes))
            }
            None => pace.book(now, part.cost(part.bytes)),
        };
        if at > now {
            pass.booked = Some((part, at));
            self.scrub_at(at);
            return false;
        }
        (pass.at, pass.cell, pass.is_asked) = (Some(part.block), part.cell, true);
        self.scrubs.asked = Some(part);
        let Part { block, daemon, cell, bytes, .. } = part;
        let guid = self.blocks.get(block).map(|block| block.guid).unwrap_or_default();
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.push(Op::Scrub { block, guid, cell, bytes });
        }
        self.pump(daemon);
        true
    }

    /// A daemon has compared some of a part, or nothing.
    pub(super) fn scrubbed(
        &mut self,
        daemon: DaemonId,
        (block, cell): (BlockId, u64),
        answer: &Answer,
    ) {
        let now = self.now.millis;
        let Scrubs { passes, asked, pace, is_due, .. } = &mut self.scrubs;
        let is_it = |part: &mut Part| (part.daemon, part.block, part.cell) == (daemon, block, cell);
        let Some(part) = asked.take_if(is_it) else { return };
        *is_due = true;
        let (bytes, found) = match *answer {
            Ok(DaemonAnswer::Scrubbed { bytes, found }) => (bytes, found),
            _ => (0, ScrubFound::default()),
        };
        pace.give_back(part.cost(part.bytes.saturating_sub(bytes)));
        // Who asked for it may be gone, or have it done from the beginning.
        let asker = passes.iter_mut().find(|pass| pass.is_asked);
        let goes_on = |pass: &&mut Pass| (pass.at, pass.cell) == (Some(block), cell);
        let Some(pass) = asker.map(Pass::hear).filter(goes_on) else {
            return self.tell_damage(block, cell, found);
        };
        if bytes == 0 {
            return pass.failed(now);
        }
        pace.note(now, part.cost(bytes));
        pass.bytes = pass.bytes.saturating_add(part.cost(bytes));
        pass.found += found;
        pass.go_to(block, cell + u64::from(bytes));
        let committed = self.blocks.get(block).map_or(0, |block| block.committed);
        if pass.cell >= committed {
            pass.blocks += 1;
            pass.leave(block);
        }
        self.tell_damage(block, cell, found);
    }

    /// Says what was done about copies that differed.
    fn tell_damage(&mut self, block: BlockId, cell: u64, found: ScrubFound) {
        let ScrubFound { repaired, quarantined, .. } = found;
        if repaired + quarantined > 0 {
            let text = format!(
                "the copies of block {block} differed: {repaired} pages from {cell:#x} on are \
                 repaired, {quarantined} are lost"
            );
            self.log(LogLevel::Error, text);
        }
    }

    /// A daemon compares nothing any more: its connection is gone.
    pub(super) fn scrub_without(&mut self, daemon: DaemonId) {
        let Scrubs { passes, asked, pace, is_due, .. } = &mut self.scrubs;
        let Some(part) = asked.take_if(|part| part.daemon == daemon) else { return };
        pace.give_back(part.cost(part.bytes));
        if let Some(pass) = passes.iter_mut().find(|pass| pass.is_asked) {
            pass.hear().failed(self.now.millis);
        }
        *is_due = true;
    }

    /// All of a pass is done.
    fn end_pass(&mut self) {
        let Some(pass) = self.scrubs.passes.pop_front() else { return };
        if let Some(id) = pass.only.filter(|_| pass.is_anew()) {
            let before = self.scrubs.anew.remove(&id);
            if pass.found.busy > 0 {
                // Who is stopped with a page, or away with the primary, may be so for long.
                let longer = |later: Later| (later.wait_ms * 2).min(ANEW_MAX_MS);
                let wait_ms = before.map_or(ANEW_MS, longer);
                let at = self.now.millis.after(wait_ms);
                self.scrubs.anew.insert(id, Later { at: Some(at), wait_ms });
                self.scrub_at(at);
            }
        }
        let Pass { asker, only, blocks, found, .. } = pass;
        if only.is_none() {
            self.scrubs.last = (self.now.unix_s, found);
            let pages = found.pages();
            let text = format!(
                "{blocks} blocks of {pages} pages were gone through: {} repaired, {} lost",
                found.repaired, found.quarantined
            );
            self.log(LogLevel::Info, text);
            self.scrub_later();
        }
        if let Some(to) = asker {
            let scrubbed = AdminReply::Scrubbed { blocks, found };
            self.reply(to, Ok(ClientReply::Admin(scrubbed)), Vec::new());
        }
    }

    /// Nobody waits any more for what was asked over a connection.
    pub(super) fn cancel_scrubs(&mut self, conn: ClientConn) {
        let is_of_it = |pass: &Pass| pass.asker.is_some_and(|asker| asker.conn == conn);
        let Scrubs { passes, pace, is_due, .. } = &mut self.scrubs;
        for pass in passes.iter().filter(|pass| is_of_it(pass)) {
            let booked = pass.booked.map(|(part, _)| part);
            pace.give_back(booked.map_or(0, |part| part.cost(part.bytes)));
        }
        passes.retain(|pass| !is_of_it(pass));
        *is_due = true;
    }

    /// How far it is.
    pub(super) fn scrub_report(&self) -> admin::Scrub {
        let Scrubs { passes, pace, last, .. } = &self.scrubs;
        let of_block =
            |block: &Block| block.committed.saturating_mul(block.copies.named().count() as u64);
        let of_daemons = || {
            let stores = self.daemons.servers.keys().map(|daemon| self.ledger.store(*daemon));
            stores.map(|store| store.committed).sum()
        };
        let pass = passes.front();
        let all = pass.map(|pass| match pass.only {
            Some(only) => self.blocks.get(only).map_or(0, of_block),
            None => of_daemons(),
        });
        admin::Scrub {
            passes: u32::try_from(passes.len()).unwrap_or(u32::MAX),
            done: pass.map_or(0, |pass| pass.bytes),
            all: all.unwrap_or(0),
            rate: pace.rate(self.now.millis),
            last_at: last.0,
            last: last.1,
        }
    }
}

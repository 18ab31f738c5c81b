//! What daemons are asked, and what their answers do.
//!
//! # Invariants
//!
//! 1. An answer belongs to one request that is in flight at that daemon. One that comes twice or
//!    too late is logged and dropped.
//! 2. An answer to what was never asked, of the wrong kind, or with impossible bytes ends the
//!    daemon's connection; what it was asked is then as if it had not answered.
//! 3. What a daemon says that a block has is what is charged, be it more than was asked for.

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Membership, Owner, Region, Ticket};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonRequest};
use dmce_abi::{block, wire};

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, Span, SpanOwner};
use super::copies::CopyState;
use super::daemons::{Link, Op};
use super::event::RequestId;
use super::timers::Timer;

/// What a daemon said to a request.
pub(super) type Answer = wire::Reply<DaemonAnswer>;

impl Dispatcher {
    /// Sends a daemon what waits for it, as far as it may be asked now.
    pub(super) fn pump(&mut self, daemon: DaemonId) {
        while let Some(server) = self.daemons.servers.get_mut(&daemon) {
            let Some(conn) = server.conn() else { return };
            let Some(op) = server.pop() else { return };
            let request = match &op {
                Op::Create { block, .. } => {
                    let Some((description, committed)) = self.wanted_copy(*block, daemon) else {
                        // It was given up while it waited: nobody has made it.
                        self.remove_copy(*block, daemon);
                        continue;
                    };
                    if let Some(lent) = self.borrow(daemon, committed) {
                        self.make_of((daemon, conn), lent, description, committed);
                        continue;
                    }
                    DaemonRequest::Create { description, committed }
                }
                Op::Grow { block, committed, .. } => {
                    DaemonRequest::Grow { block: *block, committed: *committed }
                }
                Op::Destroy { block } | Op::Discard { block } => {
                    DaemonRequest::Destroy { block: *block }
                }
                &Op::Sync { block, guid, cell, bytes } => {
                    DaemonRequest::Sync { block, guid, cell, bytes }
                }
                &Op::Scrub { block, guid, cell, bytes } => {
                    DaemonRequest::Scrub { block, guid, cell, bytes }
                }
                Op::Sense | Op::Fence { .. } => DaemonRequest::Sense,
            };
            let number = self.next_number();
            if let Some(server) = self.daemons.servers.get_mut(&daemon) {
                server.sent(number, op);
            }
            self.out.push(Action::ToDaemon { conn, request_id: RequestId(number), request });
        }
    }

    /// Asks the daemon of a planned copy for it.
    pub(super) fn ask_create(&mut self, id: BlockId, daemon: DaemonId) {
        self.blocks.set_copy(id, daemon, CopyState::Asked);
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.blocks.insert(id);
            server.push(Op::Create { block: id, lent: None });
        }
        self.pump(daemon);
    }

    /// A daemon has answered.
    ///
    /// # Errors
    ///
    /// Why the daemon cannot be believed any more.
    pub(super) fn answered(
        &mut self,
        daemon: DaemonId,
        number: u64,
        answer: Answer,
    ) -> Result<(), String> {
        if number > self.number {
            return Err(format!("it answered request {number}, the last was {}", self.number));
        }
        if self.relay_answered(daemon, number, &answer)? {
            return Ok(());
        }
        let Some(server) = self.daemons.servers.get(&daemon) else { return Ok(()) };
        if let Some(op) = server.in_flight(number) {
            self.check_answer(daemon, op, &answer)?;
        }
        let server = self.daemons.servers.get_mut(&daemon);
        let Some(op) = server.and_then(|server| server.answered(number)) else {
            let text = format!("daemon {daemon} answered request {number} again, or too late");
            self.log(LogLevel::Warn, text);
            return Ok(());
        };
        match (op, answer) {
            (Op::Create { block, .. }, answer) => self.create_answered(daemon, block, answer),
            (Op::Grow { growth, .. }, answer) => {
                self.history.note(daemon, |operations| match &answer {
                    Ok(_) => operations.grows += 1,
                    Err(_) => operations.refusals += 1,
                });
                self.grow_answered(daemon, growth, answer);
            }
            (Op::Destroy { block }, Ok(_)) => {
                self.history.note(daemon, |operations| operations.destroys += 1);
                self.remove_copy(block, daemon);
                self.rebalance_soon();
            }
            // The block stays charged and its id in use: they are, until the daemon reports again.
            (Op::Destroy { block }, Err(refusal)) => {
                let text = format!("daemon {daemon} keeps block {block}: {}", refusal.text);
                if let Some(to) = self.deletions.remove(&block).and_then(|deletion| deletion.to) {
                    let refusal = Refusal::new(Status::Internal, text.clone());
                    self.reply(to, Err(refusal), Vec::new());
                }
                self.log(LogLevel::Error, text);
                self.room_changed = true;
            }
            (Op::Discard { block }, answer) => self.discarded(daemon, block, answer),
            (Op::Sync { block, cell, .. }, answer) => {
                self.synced(daemon, (block, cell), answer);
            }
            (Op::Scrub { block, cell, .. }, answer) => {
                self.scrubbed(daemon, (block, cell), &answer);
            }
            (Op::Sense, Ok(DaemonAnswer::Sensed { pool, .. })) => {
                if let Some(server) = self.daemons.servers.get_mut(&daemon) {
                    server.pool = pool;
                }
            }
            (Op::Sense, _) => {}
            (Op::Fence { block }, _) => self.fenced(block, daemon),
        }
        self.pump(daemon);
        Ok(())
    }

    /// Whether `answer` can be one to `op`. If not, what was asked is as if it were not answered.
    fn check_answer(&self, daemon: DaemonId, op: &Op, answer: &Answer) -> Result<(), String> {
        if let Op::Create { lent: Some(_), .. } = op {
            return Err(format!("it answered {answer:?} to what it was not asked"));
        }
        let Ok(said) = answer else { return Ok(()) };
        let possible = match (op, said) {
            (Op::Create { block, .. }, DaemonAnswer::Committed { committed }) => {
                self.blocks.get(*block).is_none_or(|block| {
                    let asked = block.copies.of(daemon).map_or(0, |copy| copy.charge.bytes());
                    is_possible(*committed, asked, block.bytes_max)
                })
            }
            (Op::Grow { block, committed: asked, .. }, DaemonAnswer::Committed { committed }) => {
                let block = self.blocks.get(*block);
                block.is_none_or(|block| is_possible(*committed, *asked, block.bytes_max))
            }
            (Op::Sync { bytes: asked, .. }, DaemonAnswer::Synced { bytes }) => bytes <= asked,
            (Op::Scrub { bytes: asked, .. }, DaemonAnswer::Scrubbed { bytes, found }) => {
                let is_whole = bytes == asked || u64::from(*bytes).is_multiple_of(PAGE_BYTES);
                let pages = u64::from(*bytes).div_ceil(PAGE_BYTES);
                bytes <= asked && is_whole && found.pages() == pages
            }
            (Op::Destroy { .. } | Op::Discard { .. }, DaemonAnswer::Done)
            | (Op::Sense | Op::Fence { .. }, DaemonAnswer::Sensed { .. }) => true,
            _ => false,
        };
        if possible { Ok(()) } else { Err(format!("it answered {said:?} to {op:?}")) }
    }

    pub(super) fn create_answered(&mut self, daemon: DaemonId, id: BlockId, answer: Answer) {
        let stamp = self.next_number();
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        let given_up = copy.state == CopyState::Dying;
        self.history.note(daemon, |operations| match &answer {
            Ok(_) => operations.creates += 1,
            Err(_) => operations.refusals += 1,
        });
        match answer {
            Ok(answer) => {
                if let DaemonAnswer::Committed { committed } = answer {
                    copy.committed = committed;
                    self.ledger.force_bytes(&mut copy.charge, committed);
                }
                block.stamp = stamp;
                if given_up {
                    self.destroy(id, daemon);
                } else if !self.copy_made(id, daemon) {
                    let Some(block) = self.blocks.get_mut(id) else { return };
                    let Some(copy) = block.copies.of_mut(daemon) else { return };
                    copy.state = CopyState::Held;
                    if block.copies.all_held() && !block.copies.all_say(block.epoch) {
                        // One was made elsewhere than the others have been told.
                        return self.raise(id);
                    }
                    self.usable_if_whole(id);
                    self.made_copy(id);
                }
            }
            Err(refusal) => {
                if !given_up && self.copy_refused(id, daemon, &refusal.text) {
                    let text = format!("daemon {daemon} makes no copy of block {id}");
                    return self.log(LogLevel::Warn, format!("{text}: {}", refusal.text));
                }
                let name_taken = refusal.status == Status::Exists;
                // The id of one that stands is its own.
                let stands = self.blocks.get(id).is_some_and(|block| self.stands(block.span));
                if name_taken && !stands {
                    self.withhold(id, daemon, &refusal);
                }
                match (given_up, name_taken) {
                    (true, _) => self.remove_copy(id, daemon),
                    (false, true) => self.name_anew(id, daemon),
                    (false, false) => self.ask_elsewhere(id, daemon, &refusal),
                }
            }
        }
    }

    /// If all copies of a block are there, it may be used.
    pub(super) fn usable_if_whole(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        if block.copies.all_held() {
            block.settle_committed();
            self.blocks.set_state(id, BlockState::Held);
        }
    }

    /// What a copy that is still wanted is to be, and the bytes that it is to have at first.
    fn wanted_copy(&mut self, id: BlockId, daemon: DaemonId) -> Option<(BlockDescription, u64)> {
        let description = self.describe(id, daemon)?;
        let copy = self.blocks.get_mut(id)?.copies.of_mut(daemon)?;
        if copy.state != CopyState::Asked {
            return None;
        }
        copy.epoch = description.epoch;
        Some((description, copy.charge.bytes()))
    }

    /// What the header of a copy is to say.
    pub(super) fn describe(&self, id: BlockId, daemon: DaemonId) -> Option<BlockDescription> {
        let block = self.blocks.get(id)?;
        let span = self.blocks.span(block.span)?;
        let of = block.copies.of(daemon)?;
        let (copy, syncing) = ((daemon, of.half), block.copies.syncing().map(|copy| copy.daemon));
        // One that is asked for and that no header names will be that.
        let syncing = if of.named { syncing } else { Some(daemon) };
        Some(BlockDescription {
            block: id,
            guid: block.guid,
            epoch: block.epoch,
            page_size: span.page_size,
            bytes_max: block.bytes_max,
            span: block::Span { first: block.span, count: span.count, guid: span.guid },
            owner: self.owner(block, span)?,
            membership: Membership {
                since: of.since,
                locked: block.is_locked && span.copies == 1,
                ..Membership::of(copy, &block.copies.daemons(), syncing)
            },
        })
    }

    fn owner(&self, block: &Block, span: &Span) -> Option<Owner> {
        let (session, number) = span.ticket;
        match span.owner {
            SpanOwner::Session(id) => {
                let ticket = Ticket { session, number };
                Some(Owner::Session { session: id, ticket, uid: span.uid, copies: span.copies })
            }
            SpanOwner::Region => {
                let attributes = &self.regions.get(block.span)?.attributes;
                // Until its pages are locked, nobody is to look for a lock table.
                let copies = if block.is_locked { attributes.copies } else { 1 };
                Some(Owner::Region(Region { copies, ..attributes.clone() }))
            }
        }
    }

    /// Asks a daemon whether it is there, and looks whether it owes an answer for too long.
    pub(super) fn sense(&mut self, daemon: DaemonId) {
        let now = self.now.millis;
        let Some(server) = self.daemons.servers.get(&daemon) else { return };
        let silent_since = server.heard.after(self.config.suspect_ms);
        if server.is_up() && server.owes() && silent_since <= now {
            self.suspect(daemon);
        }
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let (Link::Up(conn) | Link::Suspected(conn)) = server.link else { return };
        let at = now.after(self.config.sense_ms);
        self.timers.set(Timer::Sense(daemon), at);
        if server.sensed {
            return;
        }
        let number = self.next_number();
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.sent(number, Op::Sense);
        }
        let request = DaemonRequest::Sense;
        self.out.push(Action::ToDaemon { conn, request_id: RequestId(number), request });
    }
}

/// Whether a daemon may say that a block has `committed` bytes when `asked` were asked for.
const fn is_possible(committed: u64, asked: u64, bytes_max: u64) -> bool {
    asked <= committed && committed <= bytes_max && committed.is_multiple_of(PAGE_BYTES)
}

/// The refusal for a block whose bytes are no more.
pub(super) fn lost(block: BlockId) -> Refusal {
    Refusal::new(Status::Lost, format!("the bytes of block {block} are lost"))
}

//! A client writes a page of a region to all copies: each store is a move of its own, and it may
//! die, be stopped or be told of changes between any two.

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{Changes, ClientRequest, Fetch};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use crate::client::Client;
use crate::pages::{self, Slot};
use crate::random::Random;
use crate::view::Reach;
use crate::world::{Checked, World};

/// Slots that a client uses.
const SLOTS: u64 = 2;

/// A write came to its end.
pub const WRITTEN: &str = "written";
/// One to an only copy, without locks.
pub const WRITTEN_PLAINLY: &str = "written plainly";
/// One went on without a copy that was lost.
pub const WENT_ON: &str = "went on without a copy";
/// One could not come to its end, and its client lived.
pub const GIVEN_UP: &str = "given up";

/// How often who waits for a page, or for a decision, loses its patience: once in so many moves.
const PATIENCE: u64 = 12;

/// What comes next of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Look,
    /// To an only copy, without locks.
    Plain,
    Intend,
    Lock,
    Odd,
    Prepare,
    First,
    Others(usize),
    Settle,
    Even,
    Unlock,
    Clear,
    Unmark,
}

/// One operation of a client.
#[derive(Clone, Debug)]
pub struct Writing {
    session: (SessionId, Guid),
    slot: u8,
    block: BlockId,
    reach: Reach,
    value: u64,
    stage: Stage,
    first: Option<DaemonId>,
}

/// What is decided about a copy that cannot be had.
enum Verdict {
    Without,
    Over,
    Wait,
}

impl Client {
    /// Whether the client may begin to write: it is not giving up what it would write to.
    fn may_write(&self) -> bool {
        let Some(view) = &self.view else { return false };
        let mut asked = self.pending.values().chain(&view.again);
        let is_leaving = asked.any(|request| {
            matches!(
                request,
                ClientRequest::Disconnect
                    | ClientRequest::RegionDelete(_)
                    | ClientRequest::RegionClose(_)
            )
        });
        !is_leaving && !view.has_given_up
    }

    /// Asks for a block that it may write, and has not mapped.
    fn map_region(&mut self, random: &mut Random) {
        let Some(view) = &self.view else { return };
        let open = view.openings.values().filter(|region| region.write).map(|region| region.first);
        let unknown = random.pick(open.filter(|first| !view.reach.contains_key(first)));
        if let Some(block) = unknown.filter(|_| self.conn.is_some() && self.pending.is_empty()) {
            self.ask(ClientRequest::Fetch(Fetch { block, writable: true }));
        }
    }
}

impl World {
    /// Some client goes on with a write, or begins one.
    ///
    /// # Errors
    ///
    /// What must not happen to it.
    pub fn client_writes(&mut self, may_begin: bool) -> Checked {
        let able = |client: &Client| {
            let begins = may_begin && client.may_write();
            client.alive && !client.stopped && (client.writing.is_some() || begins)
        };
        let places = (0..self.clients.len()).filter(|place| able(&self.clients[*place]));
        let Some(place) = self.random.pick(places) else { return Ok(()) };
        let Some(mut writing) = self.clients[place].writing.take() else {
            self.begin_write(place);
            return Ok(());
        };
        let is_held = writing.stage == Stage::Unlock;
        if self.write_on(place, &mut writing)? {
            self.clients[place].writing = Some(writing);
        }
        if is_held { self.check_pages() } else { Ok(()) }
    }

    fn begin_write(&mut self, place: usize) {
        if self.random.once_in(20) {
            return self.clients[place].map_region(&mut self.random);
        }
        let Some(view) = &self.clients[place].view else { return };
        let is_open = |first: &BlockId| {
            view.openings.values().any(|region| region.write && region.first == *first)
        };
        let reach = view.reach.iter().filter(|(first, _)| is_open(first));
        let reach = reach.map(|(first, reach)| (*first, reach.clone()));
        let Some((block, reach)) = self.random.pick(reach) else { return };
        let slot = u8::try_from(self.random.below(SLOTS)).unwrap_or(0);
        let (session, guid) = ((view.session, view.guid), view.guid);
        let slots = &mut self.host.pages.slots;
        if slots.get(&(guid, slot)).is_some_and(|slot| slot.intent.is_some()) {
            return;
        }
        slots.entry((guid, slot)).or_default().mark += 1;
        let value = self.truth.next_value();
        let (stage, first) = (Stage::Look, None);
        self.clients[place].writing =
            Some(Writing { session, slot, block, reach, value, stage, first });
    }

    fn slot_mut(&mut self, writing: &Writing) -> &mut Slot {
        self.host.pages.slots.entry((writing.session.1, writing.slot)).or_default()
    }

    /// Does the next step of a write. `false` if it was the last.
    fn write_on(&mut self, place: usize, writing: &mut Writing) -> Result<bool, String> {
        if writing.stage == Stage::Look {
            return Ok(self.look(place, writing));
        }
        let is_over = matches!(writing.stage, Stage::Clear | Stage::Unmark);
        if writing.stage == Stage::Plain {
            self.store_plainly(writing);
            return Ok(true);
        }
        if !self.has_table(writing)? && !is_over {
            // The block is gone, and its table with it.
            writing.stage = Stage::Clear;
        }
        match writing.stage {
            Stage::Look | Stage::Plain => {}
            Stage::Intend | Stage::Settle | Stage::Clear => self.change_intent(writing),
            Stage::Lock | Stage::Odd | Stage::Even | Stage::Unlock => self.change_word(writing),
            Stage::Prepare => return Ok(self.prepare(place, writing)),
            Stage::First | Stage::Others(_) => return Ok(self.store_next(place, writing)),
            Stage::Unmark => {
                self.slot_mut(writing).mark += 1;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The steps of the intent but those between the copies.
    fn change_intent(&mut self, writing: &mut Writing) {
        match writing.stage {
            Stage::Intend => {
                let addr = u64::from(writing.block.get()) << self.sizes.cell_bits;
                let claim = IntentClaim { addr, bytes: PAGE_BYTES, progress: Progress::Settled };
                self.slot_mut(writing).intent = Some(claim);
                writing.stage = Stage::Lock;
            }
            Stage::Settle => {
                self.count(WRITTEN);
                self.truth.wrote(writing.reach.guid, writing.value);
                self.settle_intent(writing);
                writing.stage = Stage::Even;
            }
            _ => {
                self.slot_mut(writing).intent = None;
                writing.stage = Stage::Unmark;
            }
        }
    }

    /// The steps of the lock word.
    fn change_word(&mut self, writing: &mut Writing) {
        let table = writing.reach.table.unwrap_or_default();
        let Some(&word) = self.host.pages.words.get(&table) else { return };
        let (next, stage) = match writing.stage {
            Stage::Odd => (pages::stepped(word, true), Stage::Prepare),
            Stage::Even => (pages::stepped(word, false), Stage::Unlock),
            Stage::Unlock => (pages::given_back(word), Stage::Clear),
            _ => match pages::taken(word, writing.session.0, writing.slot) {
                Some(taken) => (taken, Stage::Odd),
                None if self.random.once_in(PATIENCE) => (word, Stage::Clear),
                None => (word, Stage::Lock),
            },
        };
        self.host.pages.words.insert(table, next);
        writing.stage = stage;
    }

    /// Stores to one copy, and says how far it is.
    fn store_next(&mut self, place: usize, writing: &mut Writing) -> bool {
        let at = if let Stage::Others(at) = writing.stage { Some(at) } else { None };
        let Some(at) = at else {
            if let Some(first) = writing.first
                && !self.store(writing, first)
            {
                return self.judge(place, writing, first);
            }
            if let Some(IntentClaim { progress, .. }) = &mut self.slot_mut(writing).intent
                && let Progress::First { first, undo } = *progress
            {
                *progress = Progress::Others { first, undo };
            }
            writing.stage = Stage::Others(0);
            return true;
        };
        match writing.reach.written(at) {
            Some(copy) if Some(copy) != writing.first && !self.store(writing, copy) => {
                return self.judge(place, writing, copy);
            }
            Some(_) => writing.stage = Stage::Others(at + 1),
            None => writing.stage = Stage::Settle,
        }
        true
    }

    /// Looks at the generation: what was known before the mark may be used, or not. `false` if not.
    fn look(&mut self, place: usize, writing: &mut Writing) -> bool {
        let client = &mut self.clients[place];
        let (session, guid) = writing.session;
        let own = self.host.records.get(&session).filter(|of| of.record.guid == guid);
        let word = own.and_then(|_| self.host.sessions.get(&session)).copied();
        let view = client.view.as_ref().filter(|view| view.guid == guid);
        let known = view.map(|view| view.generation);
        let is_known = word.is_some() && word == known;
        // What was loaded before the mark is not used: another thread may have dropped it.
        let reach = view.filter(|_| is_known).and_then(|view| view.reach.get(&writing.block));
        if let Some(reach) = reach {
            let stage = if reach.table.is_some() { Stage::Intend } else { Stage::Plain };
            (writing.reach, writing.stage) = (reach.clone(), stage);
            return true;
        }
        let is_asked = client.pending.values().any(|of| matches!(of, ClientRequest::Changes(_)));
        let asks = !is_known && client.conn.is_some() && !is_asked;
        if let Some(since) = known.filter(|_| asks) {
            client.ask(ClientRequest::Changes(Changes { since }));
        }
        self.slot_mut(writing).mark += 1;
        false
    }

    /// Whether the table that a writer has is there.
    ///
    /// # Errors
    ///
    /// There is another one of the same block.
    fn has_table(&self, writing: &Writing) -> Result<bool, String> {
        let Writing { block, reach, .. } = writing;
        let named = self.host.pages.named.get(block);
        let is_same = self.host.tables.get(block).is_some_and(|(guid, _)| *guid == reach.guid);
        let is_another = |table: u64| named.is_some_and(|named| *named != table);
        if is_same && reach.table.is_some_and(is_another) {
            return Err(format!("block {block} has another lock table, and {writing:?}"));
        }
        Ok(reach.table.is_some_and(|table| self.host.pages.words.contains_key(&table)))
    }

    /// Stores to the only copy of a block. Nobody else is kept from it.
    fn store_plainly(&mut self, writing: &mut Writing) {
        let copy = writing.reach.copies.first().copied();
        if copy.is_some_and(|copy| self.store(writing, copy)) {
            self.count(WRITTEN_PLAINLY);
            self.truth.wrote_plainly(writing.reach.guid, writing.value);
        }
        writing.stage = Stage::Unmark;
    }

    /// Begins to store: to which copy first.
    fn prepare(&mut self, place: usize, writing: &mut Writing) -> bool {
        let Some(first) = writing.reach.copies.first().copied() else {
            writing.stage = Stage::Even;
            return true;
        };
        let guid = writing.reach.guid;
        let is_saved = writing.reach.copies.len() == 1 || self.random.once_in(2);
        let found = self.host.page_mut((first, writing.block, guid)).copied();
        let Some(found) = found else { return self.judge(place, writing, first) };
        let slot = self.slot_mut(writing);
        if is_saved {
            slot.undo = found;
        }
        let undo = if is_saved { Undo::Saved } else { Undo::Absent };
        if let Some(intent) = &mut slot.intent {
            intent.progress = Progress::First { first: first.get(), undo };
        }
        self.truth.writes(guid, writing.value);
        (writing.first, writing.stage) = (Some(first), Stage::First);
        true
    }

    /// Stores to one copy. `false` if that is not there.
    fn store(&mut self, writing: &Writing, copy: DaemonId) -> bool {
        let page = self.host.page_mut((copy, writing.block, writing.reach.guid));
        page.map(|page| *page = writing.value).is_some()
    }

    /// A copy cannot be had: the writer reports the block, and waits for a decision. `false` if it
    /// does not wait any longer.
    fn judge(&mut self, place: usize, writing: &mut Writing, copy: DaemonId) -> bool {
        match self.decided(writing, copy) {
            Verdict::Without => {
                self.count(WENT_ON);
                writing.reach.leave_out(copy);
                if !matches!(writing.stage, Stage::Others(_)) {
                    self.settle_intent(writing);
                    writing.stage = Stage::Prepare;
                }
            }
            Verdict::Over => {
                self.settle_intent(writing);
                writing.stage = Stage::Even;
            }
            Verdict::Wait if self.random.once_in(PATIENCE) => {
                if writing.stage != Stage::Prepare {
                    self.give_up_session(place, writing);
                    return false;
                }
                // Nothing was stored: the write ends without having begun.
                writing.stage = Stage::Even;
            }
            Verdict::Wait => {
                let damaged = ClientRequest::Damaged(writing.block);
                let client = &mut self.clients[place];
                if client.conn.is_some() && !client.pending.values().any(|of| *of == damaged) {
                    client.ask(damaged);
                }
            }
        }
        true
    }

    /// What the broker has decided about a copy.
    fn decided(&self, writing: &Writing, copy: DaemonId) -> Verdict {
        let Some(broker) = &self.broker else { return Verdict::Wait };
        let snapshot = broker.dispatcher.snapshot();
        let block = snapshot.blocks.get(&writing.block);
        match block.filter(|block| block.guid == writing.reach.guid) {
            None if snapshot.complete => Verdict::Over,
            Some(block) if block.lost => Verdict::Over,
            Some(block) if !block.losing && !block.is_written(copy) => Verdict::Without,
            _ => Verdict::Wait,
        }
    }

    /// Nobody decided in time: the operation ends without having come to its end, and the session
    /// with it, while its process lives.
    fn give_up_session(&mut self, place: usize, writing: &Writing) {
        self.count(GIVEN_UP);
        self.note(format!("process {} gives up", self.clients[place].peer.pid));
        self.slot_mut(writing).mark += 1;
        let client = &mut self.clients[place];
        let view = client.view.as_mut().filter(|view| view.guid == writing.session.1);
        if let Some(view) = view {
            view.has_given_up = true;
            if client.conn.is_some() {
                client.ask(ClientRequest::Disconnect);
            }
        }
    }

    fn settle_intent(&mut self, writing: &Writing) {
        if let Some(intent) = &mut self.slot_mut(writing).intent {
            intent.progress = Progress::Settled;
        }
    }

    /// Good copies are equal wherever nobody holds the page, and have what was acknowledged.
    pub fn check_pages(&mut self) -> Checked {
        let Some(broker) = &self.broker else { return Ok(()) };
        let snapshot = broker.dispatcher.snapshot();
        for (id, block) in &snapshot.blocks {
            let is_shared = block.session.is_none() && !self.host.harmed.contains(&block.guid);
            if !is_shared || block.lost || block.losing || self.host.harmed_tables.contains(id) {
                continue;
            }
            let table = self.host.pages.named.get(id);
            let word = table.and_then(|table| self.host.pages.words.get(table)).copied();
            let Some(word) = word.or((block.asked == 1).then_some(0)) else { continue };
            if pages::is_lost(word) && !self.host.touched_ids.contains(id) {
                return Err(format!("the page of block {id} is lost, and nobody touched it"));
            }
            if pages::is_free(word) {
                let daemons = block.copies.iter().map(|copy| copy.daemon).collect();
                self.check_page(*id, block.guid, daemons)?;
            }
        }
        Ok(())
    }

    fn check_page(&mut self, id: BlockId, guid: Guid, daemons: Vec<DaemonId>) -> Checked {
        let page = |daemon| self.host.page_mut((daemon, id, guid)).map(|page| (daemon, *page));
        let found: Vec<_> = daemons.into_iter().filter_map(page).collect();
        let Some(&(_, value)) = found.first() else { return Ok(()) };
        let differs = found.iter().any(|(_, other)| *other != value);
        if differs && self.host.unmarked.contains(&id) {
            return Ok(());
        }
        if differs {
            return Err(format!("nobody holds the page of block {id}, and it is {found:?}"));
        }
        let pages = self.truth.page_of(guid);
        if pages.check(value) {
            return Ok(());
        }
        Err(format!("the page of block {id} is {found:?}, and was to be {pages:?}"))
    }
}

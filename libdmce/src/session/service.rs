//! What a session does on its own: attach again, take in changes, give back what is idle.
//!
//! A thread does it, or the caller by [`crate::Session::poll`]. It owes callers nothing: each call
//! that needs the broker does its own part, too.
//!
//! # Invariants
//!
//! 1. The thread handles no signal of the application's, and touches no byte of a block.
//! 2. What could not be told to the broker stays a chore until it was: also over its death, and
//!    if what is to be undone was asked of a broker that is no more.
//! 3. A session that was attached anew gives back what the broker says it has and nobody here knows
//!    of, before it tells its pointers: a broker that lists has all its tables.
//! 4. An empty block leaves the allocator while nobody is growing one, so no growth revives it.
#![forbid(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{
    Abandon, ClientReply, ClientRequest, Delete, OpeningId, SpanKey, SpanList,
};
use dmce_sys::clock::monotonic_ms;
use dmce_sys::process::without_signals;

use super::core::Core;
use super::link::Link;
use super::memory::TakenOut;
use crate::alloc::{LOOK_MS, Moment};
use crate::block::{Backing, SpanIds};
use crate::error::Error;

const THREAD_NAME: &str = "dmce";
const STACK_BYTES: usize = 128 << 10;

/// How long to wait before a broker that is away is looked for again.
const PAUSE_MIN_MS: u64 = 2;
const PAUSE_MAX_MS: u64 = 100;

/// What is still to be told to the broker.
#[derive(Debug, Default)]
pub(crate) struct Chores {
    /// Blocks to give back.
    pub deletes: Vec<Delete>,
    /// Requests for blocks and regions that nobody waits for any more.
    pub abandons: Vec<Abandon>,
    /// Blocks whose bytes could not be reached.
    pub damaged: Vec<BlockId>,
    /// Openings of regions to end.
    pub region_closes: Vec<OpeningId>,
}

impl Chores {
    const fn is_empty(&self) -> bool {
        self.deletes.is_empty()
            && self.abandons.is_empty()
            && self.damaged.is_empty()
            && self.region_closes.is_empty()
    }
}

/// The service thread.
#[derive(Debug, Default)]
pub(crate) struct Service {
    thread: Mutex<Option<JoinHandle<()>>>,
    stop: AtomicBool,
    /// Whether a look at what threads keep is due shortly already.
    expects_idle: AtomicBool,
    /// Whether the broker may know of spans that this side does not.
    spans_unsure: AtomicBool,
    pause_ms: AtomicU64,
}

impl Service {
    /// Has what threads keep, and idle blocks, looked at in time.
    pub(crate) fn expect_idle(&self, link: &Link) {
        if !self.expects_idle.swap(true, Ordering::SeqCst) {
            link.wake();
        }
    }

    /// Starts the thread.
    pub(crate) fn start(core: &Arc<Core>) -> io::Result<()> {
        let its = Arc::clone(core);
        let builder = thread::Builder::new().name(THREAD_NAME.to_owned()).stack_size(STACK_BYTES);
        let thread = without_signals(|| builder.spawn(move || its.serve()))?;
        *core.service.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Ends the thread, and waits until it has.
    pub(crate) fn end(&self, link: &Link) {
        self.stop.store(true, Ordering::SeqCst);
        link.wake();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the service thread has failed");
        }
    }
}

impl Core {
    fn serve(&self) {
        let mut ready = Vec::new();
        // A new session has nothing to do; who gives it something wakes this thread.
        let mut pause = None;
        loop {
            if let Err(error) = self.link.poller().wait(pause, &mut ready) {
                tracing::error!(error = %error, "the service thread cannot wait");
                return;
            }
            pause = self.tend();
            // After the drain in `tend`: that may have swallowed the wake which came with this.
            if self.service.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    /// Does what is to be done now. Returns how long nothing will be, if nothing happens.
    pub(crate) fn tend(&self) -> Option<Duration> {
        if self.link.drain() {
            self.events.note_rung();
        }
        self.link.tend();
        if !self.is_closed()
            && !self.link.is_attached()
            && let Err(error) = self.link.reattach(self.deadline())
        {
            let error = self.of_link(error);
            tracing::debug!(error = %error, "the broker is away");
        }
        if self.is_closed() {
            // Nothing is left to do but to end. Who waits for news is to see that.
            self.events.note_rung();
            return (!self.leave()).then_some(Duration::from_millis(PAUSE_MAX_MS));
        }
        let retry = self.retry_pause().or_else(|| {
            // What could not be done nobody would wake this thread for.
            (!self.tend_attached()).then_some(Duration::from_millis(PAUSE_MAX_MS))
        });
        let pauses = [retry, self.give_back_idle(), self.lapse_turns()];
        pauses.into_iter().flatten().min()
    }

    /// Does what needs the broker. False if something is left to be done again.
    fn tend_attached(&self) -> bool {
        if self.map.has_moved()
            && let Err(error) = self.catch_up()
        {
            tracing::debug!(error = %error, "changes could not be taken in");
        }
        if self.link.take_renewed() {
            self.end_handles();
            self.service.spans_unsure.store(true, Ordering::SeqCst);
            // This broker may know nothing of who watches or waits.
            self.events.note_renewed();
            self.announce_again();
        }
        let announced = self.settle_spans() && self.announce_pins();
        self.do_chores();
        let told = self.take_news();
        announced && told && self.chores().is_empty() && !self.map.has_moved()
    }

    /// How long to wait before the next try to attach; `None` if the session is attached.
    fn retry_pause(&self) -> Option<Duration> {
        if self.link.is_attached() {
            self.service.pause_ms.store(PAUSE_MIN_MS, Ordering::Relaxed);
            return None;
        }
        let pause = self.service.pause_ms.load(Ordering::Relaxed).max(PAUSE_MIN_MS);
        self.service.pause_ms.store((pause * 2).min(PAUSE_MAX_MS), Ordering::Relaxed);
        Some(Duration::from_millis(pause))
    }

    /// Gives back what only the broker knows of: what an earlier one was to destroy, or granted
    /// while nobody listened any more. False if it has to be done again.
    fn settle_spans(&self) -> bool {
        // What was made for who waits is to be asked for before it is taken for nobody's.
        if self.service.spans_unsure.load(Ordering::SeqCst) && !self.events.have_all_asked() {
            return false;
        }
        if !self.service.spans_unsure.swap(false, Ordering::SeqCst) {
            return true;
        }
        match self.unknown_spans() {
            Ok(unknown) => {
                self.chores().deletes.extend(unknown);
                true
            }
            Err(error) => {
                tracing::debug!(error = %error, "the broker's list of spans could not be had");
                let is_later = can_be_later(error.status());
                self.service.spans_unsure.store(is_later, Ordering::SeqCst);
                !is_later
            }
        }
    }

    fn unknown_spans(&self) -> Result<Vec<Delete>, Error> {
        let (mut unknown, mut after) = (Vec::new(), 0);
        loop {
            let list = ClientRequest::Spans(SpanList { after });
            let ClientReply::Spans { spans, more } = self.ask(&list)?.0 else {
                return Err(Error::unexpected_reply("Spans"));
            };
            let end = spans.last().map_or(0, |span| span.first.get());
            let listed = self.link.unknown_of(spans, self.deadline());
            for SpanKey { first, guid } in listed.map_err(|error| self.of_link(error))? {
                let addr = self.join(first, 0)?.to_raw();
                unknown.push(Delete { addr, guid });
            }
            // Blocks that do not rise would be asked for without end.
            match (more, end > after) {
                (false, _) => return Ok(unknown),
                (true, true) => after = end,
                (true, false) => return Err(Error::unexpected_reply("Spans")),
            }
        }
    }

    fn do_chores(&self) {
        let chores = std::mem::take(&mut *self.chores());
        if chores.is_empty() {
            return;
        }
        for delete in chores.deletes {
            if !self.do_chore(&ClientRequest::Delete(delete)) {
                self.chores().deletes.push(delete);
            }
        }
        for abandon in chores.abandons {
            if !self.do_chore(&ClientRequest::Abandon(abandon)) {
                self.chores().abandons.push(abandon);
            }
        }
        for opening in chores.region_closes {
            if !self.do_chore(&ClientRequest::RegionClose(opening)) {
                self.chores().region_closes.push(opening);
            }
        }
        for id in chores.damaged {
            if self.do_chore(&ClientRequest::Damaged(id)) {
                self.expect_word_of(id);
            } else {
                self.chores().damaged.push(id);
            }
        }
    }

    /// Tells the broker. False if it has to be told again.
    fn do_chore(&self, request: &ClientRequest) -> bool {
        match self.ask(request) {
            Err(error) if can_be_later(error.status()) => false,
            Err(error) => {
                tracing::debug!(error = %error, request = ?request, "refused");
                true
            }
            Ok(_) => true,
        }
    }

    /// The broker looks at a block that was called lost, or has a copy that could not be read: it
    /// is to be fetched again.
    fn expect_word_of(&self, id: BlockId) {
        let Some(_turn) = self.changing.take(self.deadline()) else { return };
        let Some(block) = self.table.find(id) else { return };
        let is_to_be_fetched = match &block.backing {
            Backing::Lost => true,
            Backing::Copied(copied) => copied.is_damaged(),
            _ => false,
        };
        if is_to_be_fetched {
            let absent = block.without_bytes(Backing::Absent);
            self.retire(self.table.replace(&block, absent).unwrap_or_default());
        }
    }

    /// Has the allocator give back what threads keep, shows what is in use, and gives back blocks
    /// that have been empty for long enough; returns when to look again.
    fn give_back_idle(&self) -> Option<Duration> {
        let idle_ms = u64::from(self.ready.idle_s) * 1_000;
        self.service.expects_idle.store(false, Ordering::SeqCst);
        let next_look = self.allocator().look(Moment { now: monotonic_ms(), idle_ms });
        self.publish_usage();
        if let Some(_turn) = self.growing.try_take() {
            let limit = monotonic_ms().checked_sub(idle_ms);
            if let Some(limit) = limit {
                self.give_back_empty_since(limit);
            }
        }
        let now = monotonic_ms();
        let in_ms = |due: u64| due.saturating_sub(now);
        // One that is due and still there is pinned, or somebody is growing: not at once again.
        let empty = self.allocator().empty_since();
        let empty = empty.map(|since| in_ms(since + idle_ms).max(PAUSE_MAX_MS));
        let next_look = next_look.map(in_ms);
        // Who changes the sums before a look that is far away wakes this thread for an earlier one.
        let is_soon = next_look.is_some_and(|look| look <= LOOK_MS);
        self.service.expects_idle.store(is_soon, Ordering::SeqCst);
        let pause = match (next_look, empty) {
            (Some(look), Some(empty)) => look.min(empty),
            (look, empty) => look.or(empty)?,
        };
        Some(Duration::from_millis(pause))
    }

    /// Gives all blocks back of which nothing is in use. False if there was none. For who has the
    /// right to ask for more memory.
    pub(super) fn give_back_empty(&self) -> bool {
        let any = self.give_back_empty_since(u64::MAX);
        if any {
            self.service.expect_idle(&self.link);
        }
        any
    }

    /// Gives back the blocks that have been empty since before `limit`.
    fn give_back_empty_since(&self, limit: u64) -> bool {
        let empty = self.take_empty(limit);
        let any = !empty.is_empty();
        for gone in empty {
            self.give_back(gone);
        }
        any
    }

    fn take_empty(&self, limit: u64) -> Vec<TakenOut> {
        let pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.layout.block_bytes();
        let is_pinned = |id: BlockId| {
            let addr = self.join(id, 0);
            addr.is_ok_and(|addr| super::mapping::is_pinned(&pins, addr.to_raw(), bytes))
        };
        let empty = self.allocator().take_empty(limit, is_pinned);
        empty.into_iter().map(|first| self.take_out(SpanIds { first, count: 1 })).collect()
    }

    /// Ends the session for the application.
    ///
    /// # Errors
    ///
    /// [`Status::Forked`], [`Status::Closed`].
    pub(crate) fn close(&self) -> Result<(), Error> {
        if self.is_forked() {
            return Err(Error::forked());
        }
        if self.torn_down.swap(true, Ordering::SeqCst) {
            return Err(Error::closed());
        }
        let left = self.carry_all();
        let broker_knows = self.shut();
        self.link.interrupt();
        self.events.note_rung();
        self.service.end(&self.link);
        self.operations.wait();
        // Before the broker looks at them: it waits for none of those that are gone by then.
        self.drop_pins(&left);
        if broker_knows {
            self.link.disconnect(self.deadline());
        } else {
            self.leave();
        }
        let mut retired = crate::table::Retired::default();
        for block in self.table.all() {
            retired.extend(self.table.remove(block.id));
        }
        self.retire(retired);
        Ok(())
    }
}

/// Whether what was not done is to be tried again: the broker is away, or has too much to do.
pub(super) const fn can_be_later(status: Status) -> bool {
    matches!(status, Status::Unavailable | Status::Busy | Status::NoMem)
}

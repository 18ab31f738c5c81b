//! The loop: what comes from the broker, the workers, the clock and the kernel, one by one.
//!
//! # Invariants
//!
//! 1. The loop waits in one place, for descriptors and a time; it does nothing that takes long.
//! 2. What is done for a connection that has ended is answered to nobody: what was made is undone,
//!    and a block that has grown stays larger. The next broker is told of none that still grows.
//! 3. What is done for a client by message is one frame's bytes at a time, in turn with the rest.
//! 4. A connection begins with Register, all of Holds, then notices; what the daemon learned while
//!    the broker was away is among them, and what is lent.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use dmce_abi::block::{BlockId, DaemonId};
use dmce_abi::limits::FRAME_BYTES_MAX;
use dmce_abi::name::Instance;
use dmce_abi::version::SEGMENT_VERSION;
use dmce_abi::wire::Reply;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonNotice, DaemonRequest, Register};
use dmce_config::{Bytes, DaemonSection};
use dmce_sys::map::MapError;
use dmce_sys::poll::{Interest, Notice, Poller, Ready, SignalFd};
use dmce_sys::watch::{Watch, WatchError};
use dmce_sys::{clock, priority};
use tracing::{debug, info, warn};

use crate::link::{Link, LinkError};
use crate::links::{FIRST_TOKEN, Links, NewLink};
use crate::rates::Payer;
use crate::store::{Begun, Preparer, Settings, Store, StoreError};
use crate::turns::{Asked, Asker, Turns};
use crate::workers::{Finished, StartError, Workers};

const SIGNALS: u64 = 0;
const LINK: u64 = 1;
const WORKERS: u64 = 2;
const WATCH: u64 = 3;

/// Blocks that one Holds frame lists. One takes at most 351 bytes of a frame's 65,520.
const HOLDS_PER_FRAME: usize = 128;

/// The same of damaged ones, of which there is nothing but the id: at most 5 bytes.
const DAMAGED_PER_FRAME: usize = 4096;

/// Frames of the broker, and bytes that these move, before the others get their turn.
const FRAMES_PER_TURN: usize = 64;
const BYTES_PER_TURN: usize = 4 * FRAME_BYTES_MAX;

/// How long the pool is left short before it is filled again. Who was granted an object is at work
/// then, and often wants the next: to look for room and fill pages takes the processor's and the
/// kernel's time from it, at whatever priority.
const REFILL_PAUSE_MS: u64 = 5;

/// Notices that are kept for a broker that is away.
const NOTICES_MAX: usize = 4096;

/// Why the daemon cannot serve, or not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// There is no store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There are no workers.
    #[error(transparent)]
    Workers(#[from] StartError),
    /// There is no address space to prepare pages in.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The loop cannot wait.
    #[error("waiting for events failed")]
    Poll(#[from] io::Error),
}

/// A daemon that serves.
#[derive(Debug)]
pub struct Server {
    register: Register,
    section: DaemonSection,
    store: Store,
    workers: Workers,
    turns: Turns,
    link: Link,
    links: Links,
    notices: VecDeque<DaemonNotice>,
    poller: Poller,
    signals: SignalFd,
    watch: Option<Watch>,
    tick_at_ms: u64,
    refill_at_ms: Option<u64>,
}

impl Server {
    /// Takes over what there is. `signals` was made before the first thread.
    ///
    /// # Errors
    ///
    /// [`ServerError`].
    pub fn start(
        settings: Settings,
        socket: &Path,
        signals: SignalFd,
    ) -> Result<Self, ServerError> {
        let (instance, daemon) = (settings.instance.clone(), settings.daemon);
        let section = settings.section.clone();
        // Before the lock and all sockets: nobody who waits for those waits for its release, too.
        let watch = Watch::new();
        let store = Store::open(settings)?;
        let preparer = Preparer::new(section.huge_pages)?;
        let workers = Workers::start(&store.folder(), preparer)?;
        let poller = Poller::new()?;
        poller.add(signals.as_fd(), SIGNALS, Interest::READ)?;
        poller.add(workers.wake().as_fd(), WORKERS, Interest::READ)?;
        let watch = begun(watch, &store, &poller);
        let server = Self {
            register: register(&instance, daemon, &section),
            section,
            store,
            workers,
            turns: Turns::default(),
            link: Link::new(socket.to_owned(), LINK),
            links: Links::new()?,
            notices: VecDeque::new(),
            poller,
            signals,
            watch,
            tick_at_ms: clock::monotonic_ms(),
            refill_at_ms: None,
        };
        info!(
            %daemon,
            %instance,
            blocks = server.store.held().count(),
            bytes = %Bytes(server.store.committed()),
            "serving"
        );
        Ok(server)
    }

    /// Serves until a signal says to stop. The objects stay, to be found again.
    ///
    /// # Errors
    ///
    /// [`ServerError::Poll`].
    pub fn run(mut self) -> Result<(), ServerError> {
        // The workers, which have much to do at a time, run already.
        if let Err(error) = priority::take_short_turns() {
            warn!(%error, "where processors are busy, answers take longer");
        }
        let mut ready = Vec::new();
        loop {
            self.on_time();
            self.poller.wait(Some(self.pause()), &mut ready)?;
            for &event in &ready {
                if self.on_ready(event)?.is_some() {
                    info!("stopping; the blocks stay");
                    return Ok(());
                }
            }
            self.serve_links();
            self.hand_out();
        }
    }

    /// Until something is due.
    fn pause(&self) -> Duration {
        if self.links.is_waited_for() {
            return Duration::ZERO;
        }
        let now = clock::monotonic_ms();
        let others = [self.refill_at_ms, self.links.due_ms()].into_iter().flatten();
        let due = others.fold(self.tick_at_ms, u64::min);
        let due = Duration::from_millis(due.saturating_sub(now));
        // Who ends a growth wakes the loop.
        let retry = self.link.pause(now).filter(|_| !self.store.is_growing());
        retry.map_or(due, |retry| retry.min(due))
    }

    /// Does what is due.
    fn on_time(&mut self) {
        let now = clock::monotonic_ms();
        if self.tick_at_ms <= now {
            self.store.tick();
            self.tick_at_ms = now.saturating_add(self.section.check_ms);
        }
        if self.refill_at_ms.is_some_and(|at| at <= now) {
            self.refill_at_ms = None;
            self.store.refill();
        }
        self.links.read_again(now);
        // A broker that has read a larger size from an object must not be told a smaller one.
        if !self.store.is_growing()
            && self.link.connect(now, &self.poller)
            && let Err(error) = self.introduce()
        {
            self.disconnect(&error);
        }
        self.hand_out();
    }

    /// Deals with a descriptor; the signal, if it was one to stop.
    fn on_ready(&mut self, event: Ready) -> io::Result<Option<Notice>> {
        match event.token {
            SIGNALS => {
                while let Some(notice) = self.signals.next()? {
                    match notice {
                        Notice::Terminate | Notice::Interrupt => return Ok(Some(notice)),
                        Notice::Hangup | Notice::Child => debug!(?notice, "a signal is ignored"),
                    }
                }
            }
            WORKERS => {
                for finished in self.workers.finished()? {
                    self.on_finished(finished);
                }
            }
            WATCH => self.on_removals(),
            FIRST_TOKEN.. => self.links.on_ready(event.token),
            _ => {
                if let Err(error) = self.on_frames() {
                    self.disconnect(&error);
                }
            }
        }
        Ok(None)
    }

    fn on_frames(&mut self) -> Result<(), LinkError> {
        let mut bytes = 0;
        for _ in 0..FRAMES_PER_TURN {
            if bytes >= BYTES_PER_TURN {
                break;
            }
            let Some((request_id, request, socket)) = self.link.receive()? else { break };
            if let DaemonRequest::Data(data) = &request {
                bytes += data.moved_bytes();
            }
            debug!(request_id, ?request, "asked");
            if let Some(request) = self.on_link_request(request, socket) {
                self.on_request(request_id, request)?;
            }
        }
        self.link.flush(&self.poller)
    }

    /// Deals with what concerns links; gives back what does not.
    fn on_link_request(
        &mut self,
        request: DaemonRequest,
        socket: Option<OwnedFd>,
    ) -> Option<DaemonRequest> {
        match request {
            DaemonRequest::Link { link: id, session, uid, rate, grant } => {
                let made_by = self.link.connection().unwrap_or_default();
                let socket = socket.expect("the link looks that it came");
                let payer = Payer { uid, rate };
                let new = NewLink { made_by, id, session, payer, grant };
                self.links.add(&self.poller, new, socket);
            }
            DaemonRequest::Unlink { link } => self.links.remove(&self.poller, link),
            DaemonRequest::Grant { link, grant } => self.links.grant(link, grant),
            DaemonRequest::Revoke { link, block } => self.links.revoke(link, block),
            other => return Some(other),
        }
        None
    }

    /// Serves clients over their links: one turn of each user.
    fn serve_links(&mut self) {
        let now = clock::monotonic_ms();
        self.links.begin_round();
        while let Some(token) = self.links.next_in_round() {
            if !self.links.serve(&self.poller, token, &mut self.store, now) {
                continue;
            }
            // The broker may have sent the grant already.
            if let Err(error) = self.on_frames() {
                self.disconnect(&error);
            }
            self.links.look_again(&self.poller, token, &mut self.store);
        }
    }

    fn on_request(&mut self, request_id: u64, request: DaemonRequest) -> Result<(), LinkError> {
        let connection = self.link.connection().expect("a request came by a connection");
        let asker = Asker { connection, request: request_id };
        let Some(block) = block_of(&request) else {
            if request == DaemonRequest::Settled {
                self.link.settled();
                self.links.keep_those_of(&self.poller, connection);
            }
            return self.begin(asker, request);
        };
        match self.turns.arrive(block, asker, request)? {
            Some(request) => self.begin(asker, request),
            None => Ok(()),
        }
    }

    /// Begins with a request whose block is free.
    fn begin(&mut self, asker: Asker, request: DaemonRequest) -> Result<(), LinkError> {
        if let DaemonRequest::Data(request) = request {
            let done = self.store.access(&request).map(DaemonAnswer::Data);
            return self.answer(asker, done);
        }
        match self.store.begin(request) {
            Begun::Answered(reply) => self.answer(asker, reply),
            Begun::Working(job) => {
                let cancelled = self.turns.begin(job.block(), asker, VecDeque::new());
                self.workers.submit(job, cancelled);
                Ok(())
            }
        }
    }

    fn on_finished(&mut self, finished: Finished) {
        let done = match finished {
            Finished::Task(done) => return self.store.finish_task(done),
            Finished::Job(done) => done,
        };
        if let Err(error) = self.link.check() {
            self.disconnect(&error);
        }
        let block = done.block();
        let (asker, behind) = self.turns.end(block);
        let wanted = self.link.connection() == Some(asker.connection);
        let reply = self.store.finish(done, wanted);
        let told = self.answer(asker, reply).and_then(|()| self.carry_on(block, behind));
        if let Err(error) = told.and_then(|()| self.link.flush(&self.poller)) {
            self.disconnect(&error);
        }
    }

    /// Begins with what waited for a block, up to the next job.
    fn carry_on(&mut self, block: BlockId, mut behind: VecDeque<Asked>) -> Result<(), LinkError> {
        while let Some((asker, request)) = behind.pop_front() {
            match self.store.begin(request) {
                Begun::Answered(reply) => self.answer(asker, reply)?,
                Begun::Working(job) => {
                    let cancelled = self.turns.begin(block, asker, behind);
                    self.workers.submit(job, cancelled);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Tells who asked, if they are there still and want an answer.
    fn answer(&mut self, asker: Asker, reply: Reply<DaemonAnswer>) -> Result<(), LinkError> {
        if let Err(refusal) = &reply {
            let status = refusal.status.c_name();
            info!(request = asker.request, status, text = %refusal.text, "refused");
        }
        if asker.request == 0 || self.link.connection() != Some(asker.connection) {
            return Ok(());
        }
        self.link.send(asker.request, &DaemonMessage::Reply(reply))
    }

    /// Says who this is and what it holds.
    fn introduce(&mut self) -> Result<(), LinkError> {
        self.store.look_again()?;
        self.link.send(0, &DaemonMessage::Register(self.register.clone()))?;
        let held: Vec<_> = self.store.held().collect();
        for blocks in held.chunks(HOLDS_PER_FRAME) {
            let (blocks, damaged) = (blocks.to_vec(), Vec::new());
            self.link.send(0, &DaemonMessage::Holds { blocks, damaged, last: false })?;
        }
        for damaged in self.store.damaged().chunks(DAMAGED_PER_FRAME) {
            let (blocks, damaged) = (Vec::new(), damaged.to_vec());
            self.link.send(0, &DaemonMessage::Holds { blocks, damaged, last: false })?;
        }
        let (blocks, damaged) = (Vec::new(), Vec::new());
        self.link.send(0, &DaemonMessage::Holds { blocks, damaged, last: true })?;
        for foreign in self.store.foreign().iter().take(NOTICES_MAX) {
            let (object, reason) = (foreign.object.clone(), foreign.reason.clone());
            let notice = DaemonNotice::Foreign { object, reason };
            self.link.send(0, &DaemonMessage::Notice(notice))?;
        }
        self.link.flush(&self.poller)
    }

    fn on_removals(&mut self) {
        let Some(watch) = &self.watch else { return };
        match watch.deleted() {
            Ok(removals) => {
                if removals.overflowed {
                    debug!("some removals were missed; the checks will find them");
                }
                self.store.removed(&removals);
            }
            Err(error) => {
                warn!(%error, "removals are found by the checks alone from now on");
                if let Err(error) = self.poller.remove(watch.as_fd()) {
                    debug!(%error, "the watch was not polled any more");
                }
                self.watch = None;
            }
        }
    }

    /// Hands out what the store wants done and told.
    fn hand_out(&mut self) {
        if self.store.is_refill_due() && self.refill_at_ms.is_none() {
            self.refill_at_ms = Some(clock::monotonic_ms().saturating_add(REFILL_PAUSE_MS));
        }
        self.workers.prepare(self.store.take_tasks());
        self.notices.extend(self.store.take_notices());
        let surplus = self.notices.len().saturating_sub(NOTICES_MAX);
        self.notices.drain(..surplus);
        if self.link.connection().is_none() {
            return;
        }
        let notices: Vec<_> = self.notices.drain(..).chain(self.store.lend()).collect();
        for notice in notices {
            if let Err(error) = self.link.send(0, &DaemonMessage::Notice(notice)) {
                return self.disconnect(&error);
            }
        }
        if let Err(error) = self.link.flush(&self.poller) {
            self.disconnect(&error);
        }
    }

    fn disconnect(&mut self, error: &LinkError) {
        self.turns.forget_waiting();
        self.store.unseat();
        self.link.disconnect(clock::monotonic_ms(), &self.poller, error);
    }
}

fn register(instance: &Instance, daemon: DaemonId, section: &DaemonSection) -> Register {
    Register {
        daemon,
        instance: instance.as_str().to_owned(),
        segment_version: SEGMENT_VERSION,
        capacity: section.capacity.get(),
    }
}

/// The watch on the folder. Without it, removals are noticed by the checks, only later.
fn begun(watch: Result<Watch, WatchError>, store: &Store, poller: &Poller) -> Option<Watch> {
    let begin = |watch: Watch| {
        watch.begin(store.dir())?;
        poller.add(watch.as_fd(), WATCH, Interest::READ).map_err(WatchError::Io)?;
        Ok(watch)
    };
    match watch.and_then(begin) {
        Ok(watch) => Some(watch),
        Err(error) => {
            warn!(%error, "removals are found by the checks alone");
            None
        }
    }
}

/// The block that a request is about.
fn block_of(request: &DaemonRequest) -> Option<BlockId> {
    match request {
        DaemonRequest::Create { description, .. } => Some(description.block),
        DaemonRequest::Grow { block, .. }
        | DaemonRequest::Destroy { block }
        | DaemonRequest::Sync { block, .. }
        | DaemonRequest::Scrub { block, .. }
        | DaemonRequest::Taken { block, .. } => Some(*block),
        _ => None,
    }
}

//! Somebody who has copies moved all the time, and regions have more of them or fewer, whatever
//! else happens: he is told that they have moved, or why not, or the broker dies over it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dmce_abi::limits::COPIES_MAX;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, BlockRow, CopyState, OwnerRow};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use libdmce::connection::{Connection, ConnectionError, Deadline};

use crate::Seeded;

/// The longest that a move may take: some wait for writers that are stopped, and for all to be
/// started again that were killed.
const PATIENCE_MS: u32 = 100_000;

/// How long until a broker is looked for again that is away, and until a drain is looked at again.
const LOOK: Duration = Duration::from_millis(10);

/// Looks at a drain until it is ended, be it done or not: with a daemon fewer, copies that are lost
/// are made again nowhere.
const LOOKS_MAX: u32 = 100;

/// What the two threads know.
#[derive(Debug, Default)]
struct State {
    is_wanted: bool,
    is_busy: bool,
    is_over: bool,
    counts: BTreeMap<&'static str, u64>,
    /// A move that took too long, or damage that was found.
    wrong: Option<String>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }
}

/// The mover. It stands still until it is set going.
#[derive(Debug)]
pub(super) struct Mover {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Mover {
    /// One for an instance with so many daemons, whose regions have so many copies at least.
    pub(super) fn new(socket: PathBuf, (daemons, copies): (u32, u32), seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let hand = Hand {
            shared: Arc::clone(&shared),
            random: Seeded::quiet(seed ^ 0x6d6f_7665),
            socket,
            daemons,
            copies,
            broker: None,
        };
        Self { shared, thread: Some(thread::spawn(move || hand.work())) }
    }

    /// Copies move from now on.
    pub(super) fn go_on(&self) {
        self.shared.lock().is_wanted = true;
        self.shared.changed.notify_all();
    }

    /// Waits until none moves any more that this one has asked for.
    ///
    /// # Panics
    ///
    /// If a move has taken too long, or damage was found.
    pub(super) fn pause(&self) {
        let mut state = self.shared.lock();
        state.is_wanted = false;
        while state.is_busy {
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        assert_eq!(state.wrong, None, "what must never be");
    }

    /// What has moved, and what not.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.shared.lock().counts.clone()
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // What it panicked with it has said.
            let _ = thread.join();
        }
    }
}

/// Its thread.
struct Hand {
    shared: Arc<Shared>,
    random: Seeded,
    socket: PathBuf,
    daemons: u32,
    copies: u32,
    broker: Option<Connection>,
}

impl Hand {
    fn work(mut self) {
        loop {
            let mut state = self.shared.lock();
            while !state.is_wanted && !state.is_over {
                state.is_busy = false;
                self.shared.changed.notify_all();
                state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.is_over {
                return;
            }
            state.is_busy = true;
            drop(state);
            match self.random.below(10) {
                0 => self.drain(),
                1 => self.swap(),
                2 | 3 => self.set_copies(),
                4 => self.scrub(),
                _ => self.migrate(),
            }
        }
    }

    /// Asks the broker, unless it is away.
    fn ask(&mut self, request: AdminRequest) -> Option<Result<AdminReply, String>> {
        let what = format!("{request:?}");
        if self.broker.is_none() {
            let connected = Connection::connect_until(&self.socket, Deadline::after_ms(1000));
            self.broker = connected.ok();
        }
        let Some(broker) = &mut self.broker else {
            thread::sleep(LOOK);
            return None;
        };
        let deadline = Deadline::after_ms(PATIENCE_MS);
        match broker.request_until(&ClientRequest::Admin(request), deadline) {
            Ok((ClientReply::Admin(reply), _)) => Some(Ok(reply)),
            Ok((other, _)) => panic!("{what} is answered with {other:?}"),
            Err(ConnectionError::Refused(refusal)) => Some(Err(refusal.text)),
            Err(error) => {
                if matches!(error, ConnectionError::Timeout) {
                    self.shared.lock().wrong.get_or_insert(format!("{what} takes too long"));
                }
                self.broker = None;
                None
            }
        }
    }

    fn blocks(&mut self) -> Vec<BlockRow> {
        match self.ask(AdminRequest::Blocks { after: 0 }) {
            Some(Ok(AdminReply::Blocks { rows, .. })) => rows,
            _ => Vec::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).expect("there are few")
    }

    fn any_daemon(&mut self) -> u32 {
        let drawn = self.random.below(self.daemons.into());
        1 + u32::try_from(drawn).expect("there are few daemons")
    }

    fn migrate(&mut self) {
        let rows = self.blocks();
        if rows.is_empty() {
            return thread::sleep(LOOK);
        }
        let row = &rows[self.below(rows.len())];
        let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
        let good: Vec<u32> = good.map(|copy| copy.daemon).collect();
        if good.is_empty() {
            return;
        }
        let (block, from, to) = (row.block, good[self.below(good.len())], self.any_daemon());
        if good.contains(&to) {
            return;
        }
        let answer = self.ask(AdminRequest::Migrate { block, from, to });
        self.note(answer.as_ref(), "copies that have moved");
    }

    fn swap(&mut self) {
        let rows = self.blocks();
        if rows.len() < 2 {
            return thread::sleep(LOOK);
        }
        let [one, other] = [(); 2].map(|()| rows[self.below(rows.len())].block);
        if one != other {
            let answer = self.ask(AdminRequest::Swap { one, other });
            self.note(answer.as_ref(), "pairs of copies that have changed places");
        }
    }

    /// Has a region have another number of copies; what that means for its blocks goes on.
    fn set_copies(&mut self) {
        let rows = self.blocks();
        let more = self.random.below(u64::from(COPIES_MAX - self.copies + 1));
        let copies = self.copies + u32::try_from(more).expect("a few copies");
        if let Some(row) = rows.get(self.below(rows.len().max(1)))
            && let OwnerRow::Region { region, .. } = &row.owner
        {
            let region = region.clone();
            let answer = self.ask(AdminRequest::SetCopies { region, copies });
            self.note(answer.as_ref(), "times that other copies were asked for");
        }
    }

    /// Has all copies compared: whatever happens to them, none differs that nobody writes.
    fn scrub(&mut self) {
        match self.ask(AdminRequest::Scrub { block: 0 }) {
            Some(Ok(AdminReply::Scrubbed { found, .. })) => {
                if found.repaired + found.quarantined > 0 {
                    let text = format!("a scrub finds damage: {found:?}");
                    self.shared.lock().wrong.get_or_insert(text);
                }
                *self
                    .shared
                    .lock()
                    .counts
                    .entry("pages equal when all were compared")
                    .or_default() += found.checked;
                self.shared.count("times that all copies were compared");
            }
            answer => self.note(answer.as_ref(), "times that all copies were compared"),
        }
    }

    /// Drains a daemon for a while.
    fn drain(&mut self) {
        let daemon = self.any_daemon();
        if self.ask(AdminRequest::Drain { daemon, is_draining: true }).is_none() {
            return;
        }
        let has = |row: &BlockRow| {
            row.copies.iter().any(|of| of.daemon == daemon && of.state == CopyState::Good)
        };
        let mut is_done = false;
        for _ in 0..LOOKS_MAX {
            let rows = self.blocks();
            if !rows.is_empty() && !rows.iter().any(has) {
                is_done = true;
                break;
            }
            thread::sleep(LOOK);
        }
        self.shared.count(if is_done { "drains that were done" } else { "drains that were ended" });
        // Also by the next broker, and the one after that.
        while self.ask(AdminRequest::Drain { daemon, is_draining: false }).is_none() {
            if self.shared.lock().is_over {
                return;
            }
        }
    }

    fn note(&self, answer: Option<&Result<AdminReply, String>>, what: &'static str) {
        self.shared.count(match answer {
            Some(Ok(_)) => what,
            Some(Err(_)) => "moves that could not be",
            None => "moves over which the broker went",
        });
    }
}

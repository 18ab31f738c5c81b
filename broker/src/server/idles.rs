//! Who waits until the operations of a session are over that were in flight when it was told of a
//! change.
//!
//! # Invariants
//!
//! 1. The marks are looked at after the generation was published, with the heavy half of the fence
//!    in between ([`super::sessions::Sessions::publish`]).
//! 2. A session that has left an intent behind, though it is in no operation, is waited for until
//!    it ends: what it was writing is half written, and its page locks are taken. The wreck of it
//!    is repaired.
//! 3. A session whose marks cannot be read has cut its own object: it is reported, and not waited
//!    for.
//! 4. However many blocks a session is waited for at, its marks are read once a look; and the
//!    longer it stays in an operation, the less often.
//! 5. Of a session and block the latest wait stands: who asked for an earlier one asks no more.

use std::collections::{BTreeMap, VecDeque};

use dmce_abi::block::{BlockId, SessionId};
use dmce_broker::dispatcher::{Event, Millis};
use dmce_shm::session::object::SessionError;
use dmce_shm::slot::Marks;

use super::sessions::Sessions;

/// How long until marks are looked at again that have yet to change, at first and at most: the
/// kernel has no notice for them.
const LOOK_MS: u64 = 2;
const LOOK_MS_MAX: u64 = 64;

/// One wait, for what was in flight when it began.
struct Waiting {
    epoch: u64,
    before: Marks,
}

/// A session that was in an operation.
struct Busy {
    waits: BTreeMap<BlockId, Waiting>,
    look_at: Millis,
    /// How long until the look after that.
    then_ms: u64,
}

impl Busy {
    const fn new(now: Millis) -> Self {
        Self { waits: BTreeMap::new(), look_at: now.after(LOOK_MS), then_ms: 2 * LOOK_MS }
    }

    /// Takes out what is over at a look.
    fn take_over(&mut self, marks: &Marks, now: Millis) -> Vec<(BlockId, u64)> {
        let mut over = Vec::new();
        self.waits.retain(|block, wait| {
            let is_over = !marks.has_abandoned() && wait.before.quiesced(marks);
            if is_over {
                over.push((*block, wait.epoch));
            }
            !is_over
        });
        if over.is_empty() {
            self.look_at = now.after(self.then_ms);
            self.then_ms = (2 * self.then_ms).min(LOOK_MS_MAX);
        } else {
            (self.look_at, self.then_ms) = (now.after(LOOK_MS), 2 * LOOK_MS);
        }
        over
    }

    /// Begins a wait. Whoever begins many puts off no look.
    fn wait(&mut self, block: BlockId, waiting: Waiting, now: Millis) {
        self.waits.insert(block, waiting);
        self.look_at = self.look_at.min(now.after(LOOK_MS));
        self.then_ms = 2 * LOOK_MS;
    }
}

/// All that is waited for.
#[derive(Default)]
pub struct Idles {
    busy: BTreeMap<SessionId, Busy>,
}

impl Idles {
    /// Looks at a session for the first time since it was told of a block.
    pub fn add(
        &mut self,
        sessions: &Sessions,
        (session, block, epoch): (SessionId, BlockId, u64),
        (now, events): (Millis, &mut VecDeque<Event>),
    ) {
        // One that is not there has ended, and the dispatcher knows.
        let Some(marks) = sessions.marks(session) else { return };
        match marks {
            Ok(marks) if marks.in_flight().next().is_none() && !marks.has_abandoned() => {
                self.forget(session, block);
                events.push_back(Event::Idle { session, block, epoch });
            }
            Ok(before) => {
                let busy = self.busy.entry(session).or_insert_with(|| Busy::new(now));
                busy.wait(block, Waiting { epoch, before }, now);
            }
            Err(error) => events.push_back(cut(session, &error)),
        }
    }

    /// Nobody asks any more for an earlier wait.
    fn forget(&mut self, session: SessionId, block: BlockId) {
        let Some(busy) = self.busy.get_mut(&session) else { return };
        busy.waits.remove(&block);
        if busy.waits.is_empty() {
            self.busy.remove(&session);
        }
    }

    /// When one is looked at again.
    pub fn due_at(&self) -> Option<Millis> {
        self.busy.values().map(|busy| busy.look_at).min()
    }

    /// Looks at those again whose time it is.
    pub fn tend(&mut self, sessions: &Sessions, now: Millis, events: &mut VecDeque<Event>) {
        self.busy.retain(|session, busy| {
            let session = *session;
            if busy.look_at > now {
                return true;
            }
            match sessions.marks(session) {
                None => false,
                Some(Ok(marks)) => {
                    let over = busy.take_over(&marks, now).into_iter();
                    events.extend(over.map(|(block, epoch)| Event::Idle { session, block, epoch }));
                    !busy.waits.is_empty()
                }
                Some(Err(error)) => {
                    events.push_back(cut(session, &error));
                    false
                }
            }
        });
    }
}

/// A session that has cut its object.
fn cut(session: SessionId, error: &SessionError) -> Event {
    Event::Misused { session, reason: error.to_string() }
}

#[cfg(test)]
mod tests;

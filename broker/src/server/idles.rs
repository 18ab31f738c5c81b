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

use std::collections::VecDeque;

use dmce_abi::block::{BlockId, SessionId};
use dmce_broker::dispatcher::{Event, Millis};
use dmce_shm::slot::Marks;

use super::sessions::Sessions;

/// How often marks are looked at that have yet to change: the kernel has no notice for them.
const LOOK_MS: u64 = 2;

/// One that was in an operation.
struct Waiting {
    session: SessionId,
    block: BlockId,
    epoch: u64,
    before: Marks,
}

/// All that is waited for.
#[derive(Default)]
pub struct Idles {
    waiting: Vec<Waiting>,
    look_at: Millis,
}

impl Idles {
    /// Looks at a session for the first time.
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
                events.push_back(Event::Idle { session, block, epoch });
            }
            Ok(before) => {
                self.waiting.push(Waiting { session, block, epoch, before });
                self.look_at = now.after(LOOK_MS);
            }
            Err(error) => {
                events.push_back(Event::Misused { session, reason: error.to_string() });
            }
        }
    }

    /// When they are looked at again.
    pub fn due_at(&self) -> Option<Millis> {
        (!self.waiting.is_empty()).then_some(self.look_at)
    }

    /// Looks at them again, if it is time.
    pub fn tend(&mut self, sessions: &Sessions, now: Millis, events: &mut VecDeque<Event>) {
        if self.waiting.is_empty() || self.look_at > now {
            return;
        }
        self.look_at = now.after(LOOK_MS);
        self.waiting.retain(|Waiting { session, block, epoch, before }| {
            let (session, block, epoch) = (*session, *block, *epoch);
            match sessions.marks(session) {
                None => false,
                Some(Ok(marks)) if before.quiesced(&marks) && !marks.has_abandoned() => {
                    events.push_back(Event::Idle { session, block, epoch });
                    false
                }
                Some(Ok(_)) => true,
                Some(Err(error)) => {
                    events.push_back(Event::Misused { session, reason: error.to_string() });
                    false
                }
            }
        });
    }
}

#[cfg(test)]
mod tests;

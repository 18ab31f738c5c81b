//! Sessions whose objects are made before anybody asks for one.
//!
//! ```text
//!              quiet for QUIET_MS        SessionPrepared           Setup
//!  (an id, a GUID) ---------> being made ---------------> ready ----------> a session's
//! ```
//!
//! To make two objects takes longer than all the rest of a Setup. So a few are made when nobody has
//! opened a session for a moment, and a Setup that finds one has only its record written.
//!
//! # Invariants
//!
//! 1. A prepared session is nobody's, and nobody is charged for it: [`PREPARED_MAX`] is the bound.
//!    Its record is not ready, so that a broker that comes back removes it.
//! 2. Its id is no other session's, and its GUID was told to nobody.
//! 3. Prepared ones and sessions together are never more than there may be sessions, so they take
//!    no descriptor that a session would need. Those that are being made come on top of that.
//! 4. What could not be made is tried again when another could, or after the next Setup.

use std::collections::{BTreeSet, VecDeque};

use dmce_abi::block::{Guid, SessionId};
use dmce_abi::wire::Refusal;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::event::Millis;
use super::timers::Timer;

/// How many are kept ready: as many as a service may open at once when it starts.
pub const PREPARED_MAX: usize = 16;

/// How many are made before others have their turn.
const MADE_A_TURN: usize = 4;

/// How long nobody has to have opened a session before more are made: who opens many in a row has
/// them made one by one, and is not kept waiting for those that nobody may want.
const QUIET_MS: u64 = 2;

/// The prepared sessions.
#[derive(Debug, Default)]
pub(super) struct Prepared {
    ready: VecDeque<(SessionId, Guid)>,
    making: VecDeque<(SessionId, Guid)>,
    ids: BTreeSet<SessionId>,
    quiet_at: Millis,
}

impl Prepared {
    /// Whether an id is that of a prepared one.
    pub(super) fn has(&self, id: SessionId) -> bool {
        self.ids.contains(&id)
    }

    /// How many there are, those included that are being made.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// How many are ready.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    fn take(&mut self) -> Option<(SessionId, Guid)> {
        let (id, guid) = self.ready.pop_front()?;
        self.ids.remove(&id);
        Some((id, guid))
    }
}

impl Dispatcher {
    /// The id and the GUID of the next session.
    pub(super) fn next_session(&mut self) -> Option<(SessionId, Guid)> {
        self.prepare_later();
        if let Some(prepared) = self.prepared.take() {
            return Some(prepared);
        }
        Some((self.next_session_id()?, self.guids.next()))
    }

    /// The next id that no session has, none that is prepared, no seat and no wreck.
    pub(super) fn next_session_id(&mut self) -> Option<SessionId> {
        (0..=self.prepared.len() + self.wrecks.len() + self.seats.len()).find_map(|_| {
            let id = self.sessions.next_id()?;
            let is_taken = self.prepared.has(id) || self.wrecks.has(id);
            (!is_taken && self.seats.daemon_of(id).is_none()).then_some(id)
        })
    }

    /// Has sessions made when nobody has opened one for a moment.
    pub(super) fn prepare_later(&mut self) {
        self.prepared.quiet_at = self.now.millis.after(QUIET_MS);
        if !self.timers.is_set(Timer::Prepare) {
            self.timers.set(Timer::Prepare, self.prepared.quiet_at);
        }
    }

    /// The time has come to make some, if it is quiet.
    pub(super) fn prepare(&mut self) {
        if self.now.millis < self.prepared.quiet_at {
            return self.timers.set(Timer::Prepare, self.prepared.quiet_at);
        }
        for _ in 0..MADE_A_TURN.min(self.lacking()) {
            let Some(session) = self.next_session_id() else { return };
            let guid = self.guids.next();
            self.prepared.ids.insert(session);
            self.prepared.making.push_back((session, guid));
            self.out.push(Action::PrepareSession { session, guid });
        }
    }

    /// The shell has made the objects of a session that nobody has yet, or could not.
    pub(super) fn session_prepared(&mut self, id: SessionId, result: Result<(), Refusal>) {
        let place = self.prepared.making.iter().position(|(making, _)| *making == id);
        let Some(made) = place.and_then(|place| self.prepared.making.remove(place)) else { return };
        let limit = self.config.limits.sessions_max;
        match result {
            // Somebody opened the last session that there may be, while it was made.
            Ok(()) if self.sessions_held() + self.prepared.ready.len() >= limit => {
                self.prepared.ids.remove(&id);
                self.out.push(Action::EndSession { session: id });
            }
            Ok(()) => {
                self.prepared.ready.push_back(made);
                let is_last = self.prepared.making.is_empty();
                if is_last && self.lacking() > 0 && !self.timers.is_set(Timer::Prepare) {
                    self.timers.set(Timer::Prepare, self.now.millis);
                }
            }
            Err(refusal) => {
                self.prepared.ids.remove(&id);
                self.log(LogLevel::Debug, format!("no session {id} ahead: {}", refusal.text));
                self.out.push(Action::EndSession { session: id });
            }
        }
    }

    /// Sessions, and those that have ended and are to be repaired.
    pub(super) fn sessions_held(&self) -> usize {
        self.sessions.len() + self.wrecks.len()
    }

    /// How many more may be made.
    fn lacking(&self) -> usize {
        let sessions = self.config.limits.sessions_max.saturating_sub(self.sessions_held());
        PREPARED_MAX.min(sessions).saturating_sub(self.prepared.len())
    }
}

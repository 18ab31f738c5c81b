//! The pure core: a deterministic state machine that decides everything and does nothing itself.
//!
//! ```text
//! sockets, pidfds, timers --> Event --> step(now, event) --> Actions --> system calls
//! ```
//!
//! # Invariants
//!
//! 1. No I/O, no clock, no randomness: the same construction and the same events give the same actions.
//! 2. What a peer says is checked, and is never a reason to panic.

pub mod action;
pub mod config;
pub mod event;

pub use action::{Action, Descriptor, LogLevel};
pub use config::{DispatcherConfig, Limits, Placement, Quota};
pub use event::{
    BelievedSession, ClientConn, DaemonConn, Event, FoundContent, FoundDaemon, Grant, InspectId,
    Millis, Now, Peer, RequestId, Rights, SessionRecord, Started,
};

/// The broker's state.
#[derive(Debug)]
pub struct Dispatcher {
    config: DispatcherConfig,
    seed: u128,
}

impl Dispatcher {
    /// An empty dispatcher. `seed` must be unpredictable and another at each start: GUIDs come
    /// from it.
    #[must_use]
    pub fn new(config: DispatcherConfig, seed: u128) -> Self {
        Self { config, seed }
    }

    /// Takes in `event` and appends what is to be done to `actions`.
    pub fn step(&mut self, now: Now, event: Event, actions: &mut Vec<Action>) {
        let _ = (&self.config, self.seed, now, event, actions);
    }
}

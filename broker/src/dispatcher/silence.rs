//! A daemon that lives and does not report to a broker that came back: what it holds is read from
//! its headers, and what it did meanwhile is settled when it reports.
//!
//! ```text
//!             silent for suspect_ms             HeadersRead                   last Holds
//!  expected ------------------------> overdue --------------> unconfirmed --------------> Up
//!     |                                                           |          LockFree
//!     +--- last Holds, or LockFree: never unconfirmed             +--------------------> Away
//! ```
//!
//! A daemon may finish what the broker before this one asked of it last, as soon as it goes on: no
//! client can have had an answer, for that broker was dead before this one read the first name. If
//! this one dies before it hears the daemon, the next sees by the epochs which of two blocks with
//! one id was made later.
//!
//! | when it reports | it was asked for | then |
//! |---|---|---|
//! | a block that no name at the start and no header told of | Create | *stray*: destroyed |
//! | a span without the first block that a header told of | Destroy | deleted; lost, if open |
//! | more bytes than a header told of | Grow | so many they are |
//!
//! A copy that was syncing is a stray as well, whenever it is reported: nobody knows what it lacks.
//! So is a block whose id another has by now that was made later.
//!
//! # Invariants
//!
//! 1. A stray is in no table of blocks: its id may be another's by now, on another daemon.
//! 2. An id that is a stray's own is not given before the stray is gone.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{BlockId, DaemonId, Role};
use dmce_abi::wire::daemon::HeldBlock;

use super::Dispatcher;
use super::action::LogLevel;
use super::asking::Answer;
use super::daemons::Op;
use super::ids::IdRange;

impl Dispatcher {
    /// The strays among what a daemon holds.
    pub(super) fn strays_of(
        &self,
        daemon: DaemonId,
        held: &BTreeMap<BlockId, HeldBlock>,
    ) -> BTreeSet<BlockId> {
        let known = self.daemons.servers.get(&daemon).map(|server| &server.strays);
        let quarantined = &self.restart.quarantined;
        let is_first_word = self.daemons.unconfirmed.contains(&daemon);
        let is_stray = |(id, block): (&BlockId, &HeldBlock)| {
            let in_table = self.blocks.get(*id).is_some_and(|here| {
                let is_it = here.guid == block.description.guid;
                here.copies.is_empty() || (is_it && here.copies.of(daemon).is_some())
            });
            let was_named =
                self.restart.names.contains(id) || quarantined.contains_key(&(daemon, *id));
            let is_new = is_first_word && !was_named;
            let was_stray = known.is_some_and(|strays| strays.contains_key(id));
            // The broker that had it made did not come to name it as a good one.
            let is_syncing = block.description.membership.role == Role::Syncing;
            // It was made for a broker that was dead by then, and its id given to another since.
            let is_outlived = self.is_outlived(&block.description);
            let is_one = is_new || was_stray || is_syncing || is_outlived;
            (!in_table && is_one).then_some(*id)
        };
        held.iter().filter_map(is_stray).collect()
    }

    /// A daemon, or its headers, told of all its strays. If it was silent, it is not any more.
    pub(super) fn set_strays(&mut self, daemon: DaemonId, strays: BTreeSet<BlockId>) {
        self.daemons.unconfirmed.remove(&daemon);
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        let mut before = std::mem::take(&mut server.strays);
        let mut now = BTreeMap::new();
        for id in strays {
            let has_id = before.remove(&id).unwrap_or_else(|| self.ids.claim(id));
            now.insert(id, has_id);
        }
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.strays = now;
        }
        for (id, has_id) in before {
            self.free_stray(id, has_id);
        }
    }

    /// One more block of a daemon is a stray. If the daemon is not there, its next report names it.
    pub(super) fn found_stray(&mut self, daemon: DaemonId, id: BlockId, has_id: bool) {
        let Some(server) = self.daemons.servers.get_mut(&daemon) else { return };
        server.strays.insert(id, has_id);
        if server.hears() {
            self.discard(daemon, id);
            self.pump(daemon);
        }
    }

    /// Has a daemon that reported destroy its strays.
    pub(super) fn discard_strays(&mut self, daemon: DaemonId) {
        let Some(server) = self.daemons.servers.get(&daemon) else { return };
        let strays: Vec<BlockId> = server.strays.keys().copied().collect();
        for block in strays {
            self.discard(daemon, block);
        }
    }

    fn discard(&mut self, daemon: DaemonId, block: BlockId) {
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.push(Op::Discard { block });
        }
        let text = format!("daemon {daemon} made block {block} for nobody: it is destroyed");
        self.log(LogLevel::Warn, text);
    }

    /// A daemon has destroyed a stray, or could not.
    pub(super) fn discarded(&mut self, daemon: DaemonId, id: BlockId, answer: Answer) {
        if let Err(refusal) = answer {
            let text = format!("daemon {daemon} keeps block {id}: {}", refusal.text);
            return self.log(LogLevel::Error, text);
        }
        let server = self.daemons.servers.get_mut(&daemon);
        if let Some(has_id) = server.and_then(|server| server.strays.remove(&id)) {
            self.free_stray(id, has_id);
        }
    }

    fn free_stray(&mut self, id: BlockId, has_id: bool) {
        if has_id {
            self.ids.give_back(IdRange { first: id, count: 1 });
        }
    }
}

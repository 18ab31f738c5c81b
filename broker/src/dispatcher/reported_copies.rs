//! Copies that daemons report to a broker: which of them are good.
//!
//! ```text
//!  the headers of the highest epoch name daemons
//!     |
//!     +-- reported, and named ----------------------> good; if its own header says less, it is
//!     |                                               written anew before the block is served
//!     +-- named, and reported by nobody, or without
//!     |   a byte -----------------------------------> lost
//!     +-- reported with a lower epoch, not named:
//!     |     it says that its half is syncing
//!     |     elsewhere, and that is named ---------> that is in its place by now: it goes as one
//!     |                                             that moved, when what the dead wrote first
//!     |                                             there is repaired (`syncing`)
//!     |     otherwise ----------------------------> stale: kept, shown, never read
//!     +-- with the same, and not named -------------> quarantined: it contradicts the others
//! ```
//!
//! # Invariants
//!
//! 1. A copy that the tables do not name is stale for good: only what is named when the tables are
//!    made, or was made by this broker, is good.
//! 2. What all good copies have may be used. Where the length is known, one that is longer was
//!    grown for nobody, and one that is shorter was cut while nobody looked. It is not known of a
//!    session's last block, which grows, but that it has bytes: there a copy that was cut to some
//!    looks as if the others had grown for nobody, or its client had lengthened them.

use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Half, Membership};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::HeldBlock;

use super::Dispatcher;
use super::action::LogLevel;
use super::blocks::{BlockState, News};
use super::copies::{Copy, CopyState};

impl Dispatcher {
    /// A daemon has a copy of a block that the tables know from others. `false` if it cannot be.
    pub(super) fn adopt_copy(&mut self, daemon: DaemonId, held: &HeldBlock) -> bool {
        let HeldBlock { description, committed } = held;
        let id = description.block;
        let Some(block) = self.blocks.get(id) else { return false };
        let (is_it, state, epoch) = (block.guid == description.guid, block.state, block.epoch);
        let half = description.membership.half;
        let is_twice = block.copies.held().any(|copy| copy.half == half);
        if !is_it || block.copies.of(daemon).is_some() {
            return false;
        }
        if state == BlockState::Going {
            let charge = self.ledger.force_charge(None, daemon, *committed);
            self.put_copy(id, Copy::stale((daemon, half), charge, epoch));
            self.destroy(id, daemon);
            return true;
        }
        let is_of_span = self.blocks.get(id).is_some_and(|b| b.span == description.span.first);
        if !is_of_span || !self.contradicts_nothing(held) {
            return false;
        }
        let named = self.restart.named.get(&id);
        if !named.is_some_and(|named| named.contains(&daemon)) {
            let is_replaced = self.is_replaced(id, description) && !self.syncs.has(id);
            // Headers of one epoch that do not name each other are somebody's who forged or copied.
            if description.epoch >= epoch {
                return false;
            }
            let charge = self.ledger.force_charge(None, daemon, *committed);
            let copy = Copy::stale((daemon, half), charge, description.epoch);
            let copy = Copy { since: description.membership.since, ..copy };
            if *committed == 0 {
                self.put_copy(id, Copy { state: CopyState::Lost, ..copy });
                return true;
            }
            // One that is reported later is waited for by nobody any more.
            if is_replaced && self.restart.named.contains_key(&id) {
                self.put_copy(id, Copy { state: CopyState::Leaving, ..copy });
                self.restart.syncing.insert(id);
                self.goes_since_before(id, daemon);
                return true;
            }
            self.put_copy(id, copy);
            let epochs = format!("epoch {} of {epoch}", description.epoch);
            let text = format!("daemon {daemon} has a stale copy of block {id}, {epochs}");
            self.log(LogLevel::Warn, text);
            return true;
        }
        if is_twice {
            return false;
        }
        self.note_syncing(description);
        let payer = self.payer_of(&description.owner);
        let charge = self.ledger.force_charge(payer, daemon, *committed);
        let copy = Copy::held((daemon, half), charge, description.epoch);
        self.put_copy(id, Copy { since: description.membership.since, ..copy });
        true
    }

    /// Whether a copy that the tables name was syncing in the place of one, as that one's header
    /// says.
    fn is_replaced(&self, id: BlockId, old: &BlockDescription) -> bool {
        let Membership { half, syncing, .. } = old.membership;
        let copies = self.blocks.get(id).map(|block| &block.copies);
        let new = copies.zip(syncing).and_then(|(copies, new)| copies.of(new));
        new.is_some_and(|new| new.named && new.half == half)
    }

    /// A header that names a copy which is syncing says more than there will be.
    pub(super) fn note_syncing(&mut self, found: &BlockDescription) {
        if found.membership.syncing.is_some() {
            self.restart.syncing.insert(found.block);
        }
    }

    /// Enters a copy behind the others.
    fn put_copy(&mut self, id: BlockId, copy: Copy) {
        let (daemon, stamp) = (copy.daemon, self.next_number());
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.blocks.insert(id);
        }
        if let Some(block) = self.blocks.get_mut(id) {
            block.copies.put(usize::MAX, copy);
            block.stamp = stamp;
        }
    }

    /// All have reported: the copies of a block are those that its headers name and somebody has.
    pub(super) fn judge_copies(&mut self, id: BlockId) {
        let Some(named) = self.restart.named.remove(&id) else { return };
        let Some(block) = self.blocks.get(id).filter(|block| block.state == BlockState::Held)
        else {
            return;
        };
        let asked = self.blocks.span(block.span).map_or(0, |span| span.copies);
        if block.is_locked && asked == 1 {
            self.moves.lend(id);
        }
        let Some(block) = self.blocks.get_mut(id) else { return };
        block.copies.sort_as(&named);
        let is_missing = |daemon: &DaemonId| block.copies.of(*daemon).is_none();
        let missing: Vec<DaemonId> = named.into_iter().filter(is_missing).collect();
        let is_named = self.restart.syncing.remove(&id);
        let is_even = missing.is_empty() && block.copies.all_say(block.epoch) && !is_named;
        if !missing.is_empty() {
            block.news = News::Fewer;
        }
        for &daemon in &missing {
            self.log(
                LogLevel::Error,
                format!("daemon {daemon} does not have its copy of block {id}"),
            );
            if self.daemons.servers.contains_key(&daemon) {
                let charge = self.ledger.force_charge(None, daemon, 0);
                // What it was made as its header would say: one of those that nobody else is.
                let half = self.missing_half(id);
                let copy = Copy::stale((daemon, half), charge, 0);
                let copy = Copy { state: CopyState::Lost, ..copy };
                self.put_copy(id, copy);
            }
        }
        if self.renumber_if_due(id) || !is_even {
            self.blocks.set_state(id, BlockState::Losing);
            self.raise(id);
        }
        self.blocks.recount(id);
        self.clear_old(id);
    }

    /// The first half that no copy of a block was made as.
    fn missing_half(&self, id: BlockId) -> Half {
        let is_there = |half: &Half| {
            self.blocks
                .get(id)
                .is_some_and(|block| block.copies.iter().any(|copy| copy.half == *half))
        };
        let all = (0..).map_while(Half::of);
        all.into_iter().find(|half| !is_there(half)).unwrap_or(Half::MIRROR)
    }

    /// A copy that is shorter than it must be has lost something; what all have may be used. Where
    /// nothing says what it needs, it has a page at least.
    pub(super) fn judge_lengths(&mut self, id: BlockId, needs: Option<u64>) {
        let Some(block) = self.blocks.get(id).filter(|block| block.is_usable()) else { return };
        let needs = needs.unwrap_or(PAGE_BYTES);
        let short = block.copies.held().filter(|copy| copy.committed < needs);
        let short: Vec<_> = short.map(|copy| (copy.daemon, copy.committed)).collect();
        for (daemon, committed) in short {
            self.lose_copy(id, daemon, &format!("it has {committed} bytes of {needs}"));
        }
        if let Some(block) = self.blocks.get_mut(id).filter(|block| block.is_usable()) {
            block.committed = block.copies.committed();
            self.blocks.recount(id);
        }
    }

    /// A stale copy is not there any more.
    pub(super) fn stale_is_gone(&mut self, id: BlockId, daemon: DaemonId) {
        let block = self.blocks.get_mut(id);
        let copy = block.and_then(|block| block.copies.of_mut(daemon));
        if let Some(copy) = copy.filter(|copy| copy.state != CopyState::Lost) {
            copy.state = CopyState::Lost;
            self.ledger.lose(&mut copy.charge);
            self.room_changed = true;
        }
    }

    /// A daemon reports a copy again that is in the tables.
    pub(super) fn refresh_copy(&mut self, daemon: DaemonId, held: &HeldBlock) {
        let HeldBlock { description, committed } = held;
        let id = description.block;
        let Some(block) = self.blocks.get_mut(id) else { return };
        let Some(copy) = block.copies.of_mut(daemon) else { return };
        match copy.state {
            // An earlier one, which somebody has put in the place of what is meant.
            CopyState::Held if description.membership.since != copy.since => {
                self.lose_copy(id, daemon, "an earlier object of it is there");
            }
            // A header that says less was read before it was written anew: it was there then.
            CopyState::Held => self.refresh(id, daemon, *committed),
            CopyState::Lost | CopyState::Stale if *committed == 0 => self.stale_is_gone(id, daemon),
            CopyState::Lost | CopyState::Stale if !copy.named => {
                copy.state = CopyState::Stale;
                copy.committed = *committed;
                self.ledger.force_bytes(&mut copy.charge, *committed);
                self.log(
                    LogLevel::Warn,
                    format!("the copy of block {id} on daemon {daemon} is stale"),
                );
            }
            _ => {}
        }
    }
}

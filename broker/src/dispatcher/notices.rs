//! What sessions are told unasked: that memory is short, is there again, or is lost (003).
//!
//! # Invariants
//!
//! 1. Only a session that has asked for its events once is told of them; a session that waits for
//!    room is rung all the same.
//! 2. A step tells [`TOLD_A_STEP`] sessions at most; a timer brings the next step.
//! 3. A session has no more events than [`EVENTS_QUEUED`], and one of each kind that speaks of the
//!    whole.
//! 4. Between two calls of pressure lies a time below the low mark.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::mem;
use std::ops::Bound::{self, Excluded, Unbounded};

use dmce_abi::block::{BlockId, DaemonId, SessionId};
use dmce_abi::limits::EVENTS_QUEUED;
use dmce_abi::wire::client::{ClientReply, ClientRequest, MallocKind, SessionEvent};

use super::Dispatcher;
use super::action::Action;
use super::charge::Store;
use super::requests::Outcome;

/// Sessions that one step tells.
const TOLD_A_STEP: usize = 64;

/// The events of one session.
#[derive(Debug, Default)]
pub(super) struct Events {
    watches: bool,
    queue: VecDeque<SessionEvent>,
}

impl Events {
    fn push(&mut self, event: SessionEvent) {
        let speaks_of_all =
            matches!(event, SessionEvent::Pressure { .. } | SessionEvent::Available { .. });
        if speaks_of_all {
            self.queue.retain(|other| mem::discriminant(other) != mem::discriminant(&event));
        }
        if self.queue.len() == EVENTS_QUEUED {
            self.queue.pop_front();
        }
        self.queue.push_back(event);
    }
}

/// Who is to be told what.
#[derive(Debug, Default)]
pub(super) struct Notices {
    watchers: BTreeSet<SessionId>,
    /// Of watchers that were refused for want of memory, the fewest bytes.
    short: BTreeMap<SessionId, u64>,
    pressed: BTreeSet<DaemonId>,
    all_pressed: bool,
    /// After which session the present round goes on.
    pressure_round: Option<Bound<SessionId>>,
    room_round: Option<Bound<SessionId>>,
    rung: BTreeSet<SessionId>,
}

impl Notices {
    /// A session is to look what there is.
    pub(super) fn ring(&mut self, session: SessionId) {
        self.rung.insert(session);
    }

    /// A session has ended.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.watchers.remove(&session);
        self.short.remove(&session);
        self.rung.remove(&session);
    }

    /// There is more room than there was: who was refused is to be told.
    pub(super) fn begin_room_round(&mut self) {
        self.room_round = Some(Unbounded);
    }
}

impl Dispatcher {
    /// The events of a session; from now on it is told of others.
    pub(super) fn events(&mut self, id: SessionId) -> Outcome {
        let Some(session) = self.sessions.get_mut(id) else { return Outcome::Later };
        session.events.watches = true;
        self.notices.watchers.insert(id);
        ClientReply::Events(mem::take(&mut session.events.queue).into()).into()
    }

    fn tell(&mut self, id: SessionId, event: SessionEvent) {
        let Some(session) = self.sessions.get_mut(id).filter(|s| s.events.watches) else { return };
        session.events.push(event);
        self.notices.ring(id);
    }

    /// A block of a session, or of a region that it has open, is lost.
    pub(super) fn tell_lost(&mut self, first: BlockId, block: BlockId, bytes: u64) {
        let event = SessionEvent::Lost { addr: self.address(block), bytes };
        for session in self.holders(first) {
            self.tell(session, event);
        }
    }

    /// A copy of a block of a session, or of a region that it has open, is lost; another is not.
    pub(super) fn tell_copy_lost(&mut self, first: BlockId, block: BlockId) {
        let bytes = self.blocks.get(block).map_or(0, |block| block.committed);
        let event = SessionEvent::CopyLost { addr: self.address(block), bytes };
        for session in self.holders(first) {
            self.tell(session, event);
        }
    }

    /// A block of a session, or of a region that it has open, has all its copies again.
    pub(super) fn tell_copies_restored(&mut self, first: BlockId, block: BlockId) {
        if self.blocks.is_degraded(block, 1) {
            return;
        }
        let bytes = self.blocks.get(block).map_or(0, |block| block.committed);
        let event = SessionEvent::CopiesRestored { addr: self.address(block), bytes };
        for session in self.holders(first) {
            self.tell(session, event);
        }
    }

    /// A session was refused for want of memory.
    pub(super) fn note_short(&mut self, id: SessionId, request: &ClientRequest) {
        let bytes = match request {
            ClientRequest::Malloc(malloc) => bytes_of(malloc.kind),
            ClientRequest::MallocWith(with) => bytes_of(with.malloc.kind),
            ClientRequest::Grow(grow) => {
                let held = self.blocks.get(grow.block).map_or(0, |block| block.committed);
                grow.committed.saturating_sub(held)
            }
            ClientRequest::RegionCreate(create) => create.region_size,
            _ => return,
        };
        if self.notices.watchers.contains(&id) {
            let fewest = self.notices.short.entry(id).or_insert(bytes);
            *fewest = bytes.min(*fewest);
        }
    }

    /// Looks whether memory is short, if the sums have changed.
    pub(super) fn look_at_pressure(&mut self) {
        if !self.ledger.take_touched() {
            return;
        }
        let mut all = Store::default();
        let mut begins = false;
        for (&daemon, server) in &self.daemons.servers {
            let store = self.ledger.store(daemon);
            if !server.is_up() {
                self.notices.pressed.remove(&daemon);
                continue;
            }
            all.capacity += store.capacity;
            all.committed += store.committed.saturating_add(store.reserved).min(store.capacity);
            match (self.notices.pressed.contains(&daemon), self.is_pressed(store)) {
                (false, Some(true)) => begins |= self.notices.pressed.insert(daemon),
                (true, Some(false)) => _ = self.notices.pressed.remove(&daemon),
                _ => {}
            }
        }
        match (self.notices.all_pressed, self.is_pressed(all)) {
            (false, Some(true)) => {
                begins = true;
                self.notices.all_pressed = true;
            }
            (true, Some(false)) => self.notices.all_pressed = false,
            _ => {}
        }
        if begins {
            self.notices.pressure_round = Some(Unbounded);
        }
    }

    /// Whether so much is taken that memory is short; `None` between the two marks.
    fn is_pressed(&self, store: Store) -> Option<bool> {
        let taken = u128::from(store.committed.saturating_add(store.reserved)) * 100;
        let mark = |percent: u32| u128::from(store.capacity) * u128::from(percent);
        let pressure = self.config.pressure;
        if store.capacity > 0 && taken >= mark(pressure.high_percent) {
            return Some(true);
        }
        (taken < mark(pressure.low_percent)).then_some(false)
    }

    /// Tells some of those who are to be told. Whether there are others.
    pub(super) fn go_on_with_notices(&mut self) -> bool {
        self.tell_of_pressure();
        self.tell_of_room();
        self.notices.pressure_round.is_some() || self.notices.room_round.is_some()
    }

    fn tell_of_pressure(&mut self) {
        let Some(after) = self.notices.pressure_round else { return };
        let left = self.bytes_free().0;
        let later = self.notices.watchers.range((after, Unbounded));
        let some: Vec<SessionId> = later.take(TOLD_A_STEP).copied().collect();
        self.notices.pressure_round = some.get(TOLD_A_STEP - 1).map(|last| Excluded(*last));
        for session in some {
            self.tell(session, SessionEvent::Pressure { left });
        }
    }

    fn tell_of_room(&mut self) {
        let Some(after) = self.notices.room_round else { return };
        let later = self.notices.short.range((after, Unbounded));
        let some: Vec<(SessionId, u64)> =
            later.take(TOLD_A_STEP).map(|(id, bytes)| (*id, *bytes)).collect();
        self.notices.room_round = some.get(TOLD_A_STEP - 1).map(|(last, _)| Excluded(*last));
        let (all, most) = self.bytes_free();
        for (id, bytes) in some {
            let Some(session) = self.sessions.get(id) else { continue };
            let quota = self.ledger.quota_left(session.record.uid);
            let own = self.ledger.reservation(Some(session.account));
            let own: u64 = own.map_or(0, |left| left.values().sum());
            let one_block = bytes.min(self.config.layout.block_bytes());
            let fits = most + own >= one_block && all + own >= bytes && quota + own >= bytes;
            if fits {
                self.notices.short.remove(&id);
                self.tell(id, SessionEvent::Available { bytes: (most + own).min(quota + own) });
            }
        }
    }

    /// Bytes that the daemons have left that are up: all together, and the one with most.
    fn bytes_free(&self) -> (u64, u64) {
        let free = self.daemons.up_in_turn().map(|daemon| self.ledger.store(daemon).free());
        free.fold((0, 0), |(all, most): (u64, u64), free| (all + free, most.max(free)))
    }

    /// Rings those who are to look what there is.
    pub(super) fn ring_all(&mut self) {
        for session in mem::take(&mut self.notices.rung) {
            if self.sessions.get(session).is_some() {
                self.out.push(Action::Ring { session });
            }
        }
    }
}

const fn bytes_of(kind: MallocKind) -> u64 {
    match kind {
        MallocKind::Heap { committed } => committed,
        MallocKind::Span { bytes } => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_keeps_the_last_of_what_speaks_of_all_and_forgets_the_oldest() {
        let mut events = Events::default();
        let lost = |addr| SessionEvent::Lost { addr, bytes: 4096 };
        events.push(SessionEvent::Pressure { left: 1 });
        for addr in 0..EVENTS_QUEUED as u64 {
            events.push(lost(addr));
        }
        assert_eq!(events.queue.front(), Some(&lost(0)));
        events.push(SessionEvent::Available { bytes: 5 });
        events.push(SessionEvent::Pressure { left: 2 });
        events.push(SessionEvent::Available { bytes: 6 });
        assert_eq!(events.queue.len(), EVENTS_QUEUED);
        assert_eq!(events.queue.front(), Some(&lost(2)));
        let newest = [SessionEvent::Pressure { left: 2 }, SessionEvent::Available { bytes: 6 }];
        assert!(events.queue.iter().rev().take(2).rev().eq(&newest));
    }
}

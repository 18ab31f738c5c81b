//! The block table: blocks are what daemons hold, spans are what sessions and regions own.
//!
//! ```text
//! span:   Making --> Standing --> Dying --> (none, when its last block is gone, its ids known
//!         Assembling --^ |  ^                to nobody; then the ids are given back)
//!                        +--+ a block is lost
//!
//! block:  Making --> Held <--> Losing     Going --> (none, with its last copy)
//!                     |           |         ^
//!                     +--> Lost <-+         | from any
//! ```
//! What is one daemon's of a block is a copy (`copies`).
//!
//! # Invariants
//!
//! 1. A block belongs to the span whose ids contain it. Spans do not overlap.
//! 2. The ids of a span are in use from its making until it is forgotten.
//! 3. Of a span being made, the first block is made last: where it exists, all of them existed.
//! 4. A block that is held has copies that are, and `committed` is no more than each of them has.

mod homes;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use dmce_abi::block::{BlockId, DaemonId, Guid, SessionId};

use super::copies::{Copies, CopyState};
use super::ids::IdRange;
use super::locks::LockTable;
use homes::Homes;

/// Where a block is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlockState {
    /// Not all of its copies are there yet.
    Making,
    /// It may be used.
    Held,
    /// A copy is lost, or one comes or goes that is syncing: the headers are being written anew
    /// (`raising`).
    Losing,
    /// Its bytes are gone.
    Lost,
    /// It was given up.
    Going,
}

impl BlockState {
    /// Whether the bytes of a block are there.
    pub(super) const fn is_usable(self) -> bool {
        matches!(self, Self::Held | Self::Losing)
    }
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    /// The first block of its span.
    pub span: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// The generation of its copyset.
    pub epoch: u64,
    /// Where it is in its life.
    pub state: BlockState,
    /// Bytes that it may grow to.
    pub bytes_max: u64,
    /// Bytes that may be used.
    pub committed: u64,
    /// Where it is; empty for a lost one that no daemon has.
    pub copies: Copies,
    /// Its lock table: it has one if it has several copies, and for as long as an only copy moves,
    /// or is to have others beside it.
    pub locks: Option<LockTable>,
    /// Whether who writes it locks its pages by that.
    pub is_locked: bool,
    /// The number of the last change of what a daemon has of it: an older inspection is void.
    pub stamp: u64,
    /// What its sessions have yet to be told.
    pub news: News,
    /// Whether no pointers into it are given: its primary is about to be another.
    pub is_moving: bool,
}

/// How the copies of a block have changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum News {
    /// Not so that anybody would want to know.
    #[default]
    None,
    /// There are fewer.
    Fewer,
    /// There are more.
    More,
    /// There are as many, and one is elsewhere.
    Moved,
}

impl Block {
    /// Whether its bytes are there.
    pub(super) const fn is_usable(&self) -> bool {
        self.state.is_usable()
    }

    /// The daemon of its primary.
    pub(super) fn primary(&self) -> Option<DaemonId> {
        self.copies.primary().map(|copy| copy.daemon)
    }

    /// Bytes that may be used are what all copies have, once these are there, and what the lock
    /// table has words for. They never become fewer.
    pub(super) fn settle_committed(&mut self) {
        if self.copies.all_held() {
            let locks = self.locks.as_ref().filter(|_| self.is_locked);
            let words = locks.map_or(u64::MAX, LockTable::bytes);
            self.committed = self.committed.max(self.copies.committed().min(words));
        }
    }
}

/// Whose a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanOwner {
    /// A session's.
    Session(SessionId),
    /// The region's of the same first block.
    Region,
}

/// Where a span is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SpanState {
    /// Its daemons are asked for its blocks.
    Making,
    /// Its blocks are reported to a broker that came back.
    Assembling,
    /// It may be used.
    Standing,
    /// It was given up.
    Dying,
}

/// One request of one session, as the ticket index knows it.
pub(super) type TicketKey = (Guid, u64);

/// Consecutive blocks of one owner.
#[derive(Debug)]
pub(super) struct Span {
    /// Its GUID.
    pub guid: Guid,
    /// The epoch that its blocks had at first: that of the broker that made them.
    pub epoch: u64,
    /// Blocks.
    pub count: u32,
    /// The ids that it has: at least `count`, and more than one run where some were in use.
    pub ids: Vec<IdRange>,
    /// Its page size.
    pub page_size: u32,
    /// Copies of each block that were asked for.
    pub copies: u32,
    /// Whose it is.
    pub owner: SpanOwner,
    /// The user who owns it.
    pub uid: u32,
    /// The request that made it.
    pub ticket: TicketKey,
    /// Where it is in its life.
    pub state: SpanState,
    /// Its blocks that are in the table.
    pub present: u32,
    /// Its blocks that are lost.
    pub lost: u32,
    /// Sessions that have not been told yet that it is gone.
    pub untold: BTreeSet<SessionId>,
    /// Whether it was made for a session that waited, and has not asked for it since.
    pub unclaimed: bool,
}

/// All blocks and spans.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    by_id: BTreeMap<BlockId, Block>,
    spans: BTreeMap<BlockId, Span>,
    by_user: BTreeMap<u32, BTreeSet<BlockId>>,
    tickets: BTreeMap<TicketKey, BlockId>,
    /// Lost blocks in the table.
    pub lost: u32,
    /// Blocks that may be used and have fewer copies than were asked for.
    degraded: BTreeSet<BlockId>,
    /// The same, with more.
    surplus: BTreeSet<BlockId>,
    /// Where those are that have as many.
    pub homes: Homes,
}

impl Blocks {
    /// A block.
    pub(super) fn get(&self, block: BlockId) -> Option<&Block> {
        self.by_id.get(&block)
    }

    /// A block, to change it.
    pub(super) fn get_mut(&mut self, block: BlockId) -> Option<&mut Block> {
        self.by_id.get_mut(&block)
    }

    /// The span that begins with `first`.
    pub(super) fn span(&self, first: BlockId) -> Option<&Span> {
        self.spans.get(&first)
    }

    /// The span that begins with `first`, to change it.
    pub(super) fn span_mut(&mut self, first: BlockId) -> Option<&mut Span> {
        self.spans.get_mut(&first)
    }

    /// The spans that have one of `count` ids from `first` on.
    pub(super) fn overlapping(&self, first: BlockId, count: u32) -> impl Iterator<Item = &Span> {
        let last = first.checked_add(count.saturating_sub(1)).unwrap_or(first);
        let reaches = move |start: BlockId, span: &Span| first.get() < start.get() + span.count;
        let begun = self.spans.range(..=last).rev();
        begun.take_while(move |(start, span)| reaches(**start, span)).map(|(_, span)| span)
    }

    /// Whether some span has one of `count` ids from `first` on.
    pub(super) fn overlaps(&self, first: BlockId, count: u32) -> bool {
        let Ok(last) = first.checked_add(count - 1) else { return true };
        // Spans do not overlap, so of those that begin before the end the last reaches furthest.
        let before = self.spans.range(..=last).next_back();
        before.is_some_and(|(start, span)| first.get() - start.get().min(first.get()) < span.count)
    }

    /// The first block of the span that has an id.
    pub(super) fn span_at(&self, id: BlockId) -> Option<BlockId> {
        let (first, span) = self.spans.range(..=id).next_back()?;
        (id.get() - first.get() < span.count).then_some(*first)
    }

    /// Enters a span.
    pub(super) fn add_span(&mut self, first: BlockId, span: Span) {
        self.by_user.entry(span.uid).or_default().insert(first);
        if span.ticket.1 != 0 {
            self.tickets.insert(span.ticket, first);
        }
        let before = self.spans.insert(first, span);
        assert!(before.is_none(), "a span begins with block {first} already");
    }

    /// Enters a block into its span.
    pub(super) fn add(&mut self, id: BlockId, block: Block) {
        if let Some(span) = self.spans.get_mut(&block.span) {
            span.present += 1;
            span.lost += u32::from(block.state == BlockState::Lost);
        }
        self.lost += u32::from(block.state == BlockState::Lost);
        let before = self.by_id.insert(id, block);
        assert!(before.is_none(), "there is a block {id} already");
        self.recount(id);
    }

    /// The copies of a block have changed, or their bytes, or how many are asked for: it may be one
    /// with too few, or with too many.
    pub(super) fn recount(&mut self, id: BlockId) {
        let usable = self.by_id.get(&id).filter(|block| block.is_usable());
        let order = usable.map(|block| {
            let asked = self.spans.get(&block.span).map_or(0, |span| span.copies as usize);
            block.copies.named().count().cmp(&asked)
        });
        let mut set = |set: fn(&mut Self) -> &mut BTreeSet<BlockId>, is_one: bool| {
            if is_one { set(self).insert(id) } else { set(self).remove(&id) }
        };
        set(|blocks| &mut blocks.degraded, order == Some(Ordering::Less));
        set(|blocks| &mut blocks.surplus, order == Some(Ordering::Greater));
        let block = self.by_id.get(&id).filter(|block| block.state == BlockState::Held);
        match block.filter(|_| order == Some(Ordering::Equal)) {
            Some(Block { copies, committed, .. }) => {
                self.homes.set(id, copies.named().map(|copy| copy.daemon), *committed);
            }
            None => self.homes.remove(id),
        }
    }

    /// Some of the blocks that have more copies than are asked for.
    pub(super) fn with_surplus(&self) -> impl Iterator<Item = BlockId> {
        self.surplus.iter().copied()
    }

    /// Whether one of `count` blocks from `first` on has too few copies.
    pub(super) fn is_degraded(&self, first: BlockId, count: u32) -> bool {
        let next = self.degraded.range(first..).next();
        next.is_some_and(|id| id.get() - first.get() < count)
    }

    /// The blocks that have too few copies, from one on.
    pub(super) fn degraded_from(&self, first: Option<BlockId>) -> impl Iterator<Item = BlockId> {
        let first = first.map_or(Bound::Unbounded, Bound::Included);
        self.degraded.range((first, Bound::Unbounded)).copied()
    }

    /// Whether some block has too few copies.
    pub(super) fn has_degraded(&self) -> bool {
        !self.degraded.is_empty()
    }

    /// Takes a block out.
    pub(super) fn remove(&mut self, id: BlockId) -> Option<Block> {
        self.set_state(id, BlockState::Going);
        let block = self.by_id.remove(&id)?;
        self.degraded.remove(&id);
        self.surplus.remove(&id);
        self.homes.remove(id);
        if let Some(span) = self.spans.get_mut(&block.span) {
            span.present -= 1;
        }
        Some(block)
    }

    /// Changes where a block is in its life.
    pub(super) fn set_state(&mut self, id: BlockId, state: BlockState) {
        let Some(block) = self.by_id.get_mut(&id) else { return };
        let change = |count: &mut u32, was: bool, is: bool| match (was, is) {
            (true, false) => *count -= 1,
            (false, true) => *count += 1,
            _ => {}
        };
        let (was, is) = (block.state == BlockState::Lost, state == BlockState::Lost);
        block.state = state;
        change(&mut self.lost, was, is);
        if let Some(span) = self.spans.get_mut(&block.span) {
            change(&mut span.lost, was, is);
        }
        self.recount(id);
    }

    /// Changes where the copy of a block is in its life that a daemon has.
    pub(super) fn set_copy(&mut self, id: BlockId, daemon: DaemonId, state: CopyState) {
        let block = self.by_id.get_mut(&id);
        if let Some(copy) = block.and_then(|block| block.copies.of_mut(daemon)) {
            copy.state = state;
        }
    }

    /// Takes an id from its span, which is being made or given up: it does not come back with the
    /// others. `false` if it is no span's.
    pub(super) fn withhold(&mut self, id: BlockId) -> bool {
        let span = self.span_at(id).and_then(|first| self.spans.get_mut(&first));
        let Some(span) = span else { return false };
        let holds =
            |range: &IdRange| id >= range.first && id.get() - range.first.get() < range.count;
        let Some(place) = span.ids.iter().position(holds) else { return false };
        let IdRange { first, count } = span.ids.remove(place);
        let before = id.get() - first.get();
        span.ids.extend((before > 0).then_some(IdRange { first, count: before }));
        let after = count - before - 1;
        let next = id.checked_add(1).ok().filter(|_| after > 0);
        span.ids.extend(next.map(|first| IdRange { first, count: after }));
        true
    }

    /// The owner has given a span up: its ticket and its user forget it.
    pub(super) fn disown(&mut self, first: BlockId) {
        let Some(span) = self.spans.get_mut(&first) else { return };
        span.state = SpanState::Dying;
        if let Some(firsts) = self.by_user.get_mut(&span.uid) {
            firsts.remove(&first);
            if firsts.is_empty() {
                self.by_user.remove(&span.uid);
            }
        }
        if self.tickets.get(&span.ticket) == Some(&first) {
            self.tickets.remove(&span.ticket);
        }
    }

    /// Forgets a span of which nothing is left and nobody knows. Its ids may be used again.
    pub(super) fn forget_span(&mut self, first: BlockId) -> Vec<IdRange> {
        let Some(span) = self.spans.get(&first) else { return Vec::new() };
        let over = span.state == SpanState::Dying && span.present == 0 && span.untold.is_empty();
        if !over {
            return Vec::new();
        }
        self.spans.remove(&first).map(|span| span.ids).unwrap_or_default()
    }

    /// The span that a request made.
    pub(super) fn by_ticket(&self, ticket: TicketKey) -> Option<BlockId> {
        self.tickets.get(&ticket).copied()
    }

    /// The ids of the blocks of a span that are in the table.
    pub(super) fn members(&self, first: BlockId) -> Vec<BlockId> {
        let Some(span) = self.spans.get(&first) else { return Vec::new() };
        let ids = self.by_id.range(first..).map(|(id, _)| *id);
        ids.take_while(|id| id.get() - first.get() < span.count).collect()
    }

    /// Whether who writes some block of a span locks its pages.
    pub(super) fn has_locks(&self, first: BlockId) -> bool {
        let Some(span) = self.spans.get(&first) else { return false };
        let blocks = self.by_id.range(first..).take(span.count as usize);
        let mut members = blocks.filter(|(id, _)| id.get() - first.get() < span.count);
        span.copies > 1 || members.any(|(_, block)| block.locks.is_some())
    }

    /// All blocks from an id on.
    pub(super) fn from(&self, first: BlockId) -> impl Iterator<Item = (BlockId, &Block)> {
        self.by_id.range(first..).map(|(id, block)| (*id, block))
    }

    /// All blocks.
    pub(super) fn all(&self) -> impl Iterator<Item = (BlockId, &Block)> {
        self.by_id.iter().map(|(id, block)| (*id, block))
    }

    /// All spans.
    pub(super) fn spans(&self) -> impl Iterator<Item = (BlockId, &Span)> {
        self.spans.iter().map(|(first, span)| (*first, span))
    }

    /// The first blocks of a user's spans, from the span that contains or follows `from`.
    pub(super) fn spans_of(&self, uid: u32, from: BlockId) -> impl Iterator<Item = BlockId> {
        let firsts = self.by_user.get(&uid);
        let before = firsts.and_then(|firsts| firsts.range(..from).next_back());
        let later = firsts.map(|firsts| firsts.range(from..));
        before.into_iter().chain(later.into_iter().flatten()).copied()
    }

    /// Blocks in the table.
    pub(super) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// All tickets.
    pub(super) fn tickets(&self) -> impl Iterator<Item = (&TicketKey, &BlockId)> {
        self.tickets.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(id: u32) -> BlockId {
        BlockId::try_from(id).unwrap()
    }

    fn span(count: u32, uid: u32) -> Span {
        Span {
            guid: Guid::default(),
            epoch: 1,
            count,
            ids: vec![IdRange { first: id(1), count }],
            page_size: 4096,
            copies: 1,
            owner: SpanOwner::Region,
            uid,
            ticket: (Guid::default(), 5),
            state: SpanState::Standing,
            present: 0,
            lost: 0,
            untold: BTreeSet::new(),
            unclaimed: false,
        }
    }

    fn block(span: BlockId) -> Block {
        Block {
            span,
            guid: Guid::default(),
            epoch: 1,
            state: BlockState::Held,
            bytes_max: 4096,
            committed: 4096,
            copies: Copies::default(),
            locks: None,
            is_locked: false,
            stamp: 0,
            news: News::None,
            is_moving: false,
        }
    }

    #[test]
    fn overlaps_are_found_from_both_sides() {
        let mut blocks = Blocks::default();
        blocks.add_span(id(10), span(4, 7));
        for (first, count, overlaps) in [
            (10, 1, true),
            (13, 1, true),
            (14, 9, false),
            (9, 1, false),
            (9, 2, true),
            (1, 100, true),
            (BlockId::MAX, 2, true),
        ] {
            assert_eq!(blocks.overlaps(id(first), count), overlaps, "{first} {count}");
        }
    }

    #[test]
    fn a_span_is_forgotten_when_its_last_block_and_the_last_who_knew_are_gone() {
        let mut blocks = Blocks::default();
        blocks.add_span(id(10), span(2, 7));
        blocks.add(id(10), block(id(10)));
        blocks.add(id(11), block(id(10)));
        assert_eq!(blocks.members(id(10)), [id(10), id(11)]);
        assert_eq!(blocks.by_ticket((Guid::default(), 5)), Some(id(10)));
        assert!(blocks.spans_of(7, id(11)).eq([id(10)]));
        let session = SessionId::try_from(1).unwrap();
        blocks.span_mut(id(10)).unwrap().untold.insert(session);
        blocks.disown(id(10));
        assert_eq!(blocks.by_ticket((Guid::default(), 5)), None);
        assert_eq!(blocks.spans_of(7, id(1)).count(), 0);
        blocks.remove(id(10));
        blocks.remove(id(11));
        assert!(blocks.forget_span(id(10)).is_empty());
        blocks.span_mut(id(10)).unwrap().untold.clear();
        assert_eq!(blocks.forget_span(id(10)), [IdRange { first: id(1), count: 2 }]);
        assert!(blocks.span(id(10)).is_none());
    }

    #[test]
    fn lost_blocks_are_counted_once() {
        let mut blocks = Blocks::default();
        blocks.add_span(id(10), span(1, 7));
        blocks.add(id(10), block(id(10)));
        blocks.set_state(id(10), BlockState::Lost);
        blocks.set_state(id(10), BlockState::Lost);
        assert_eq!((blocks.lost, blocks.span(id(10)).unwrap().lost), (1, 1));
        blocks.remove(id(10));
        assert_eq!((blocks.lost, blocks.span(id(10)).unwrap().lost), (0, 0));
    }
}

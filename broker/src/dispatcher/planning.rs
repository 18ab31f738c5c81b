//! The plan of a span: its ids, the places of its blocks, and what they cost, before anybody is
//! asked.
//!
//! # Invariants
//!
//! 1. A plan that fails has changed nothing.
//! 2. Every block but the last is full: as many bytes as the range of a cell.
//! 3. Each copy of a block is on another daemon, and every one is paid for.

use std::collections::BTreeSet;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Half, Region, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::ClientRequest;

use super::Dispatcher;
use super::blocks::{Block, BlockState, News, Span, SpanOwner, SpanState, TicketKey};
use super::charge::Payer;
use super::clients::ReplyTo;
use super::copies::{Copies, Copy};
use super::ids::IdRange;
use super::locks::LockTable;
use super::patience::Patient;
use super::placement::Need;
use super::policies::Terms;
use super::requests::{Failure, refuse};

/// What is to be made.
#[derive(Debug)]
pub(super) struct Order {
    /// The request.
    pub request: ClientRequest,
    /// Where the answer goes.
    pub to: ReplyTo,
    /// Who asks.
    pub session: SessionId,
    /// Which of the session's requests.
    pub ticket: TicketKey,
    /// Who pays.
    pub payer: Payer,
    /// How.
    pub terms: Terms,
    /// Bytes that are committed; not 0.
    pub bytes: u64,
    /// The region's attributes, if it is one.
    pub region: Option<Region>,
    /// Its place among those that wait for room, if it wants to.
    pub patient: Option<Patient>,
}

/// The copies of a block that have places and are paid for.
type Placed = Vec<Copy>;

/// How bytes fall into blocks.
struct Shape {
    /// Blocks.
    count: u32,
    /// Bytes of each block but the last.
    full: u64,
    /// Bytes of the last.
    last: u64,
}

impl Dispatcher {
    /// Finds ids and places for a span, pays, and enters it in the tables. Returns its first block.
    ///
    /// # Errors
    ///
    /// `NOSPACE` or `QUOTA` with the limit that it would pass.
    pub(super) fn plan(&mut self, order: &Order) -> Result<BlockId, Failure> {
        let shape = self.shape(order)?;
        let mut placed = Vec::new();
        for index in 1..=shape.count {
            let bytes = if index == shape.count { shape.last } else { shape.full };
            match self.place_planned(order, bytes) {
                Ok(block) => placed.push(block),
                Err(failure) => {
                    self.refund_all(placed);
                    return Err(failure);
                }
            }
        }
        let Some(ids) = self.ids.take(shape.count) else {
            self.refund_all(placed);
            let text = format!("no {} consecutive block ids are free", shape.count);
            return Err(Failure::NoRoom(Refusal::new(Status::NoSpace, text)));
        };
        self.enter(order, shape.count, ids, placed);
        Ok(ids.first)
    }

    /// Bytes that a block on a daemon may grow to.
    pub(super) fn bytes_max(&self, daemon: DaemonId) -> u64 {
        let capacity = self.ledger.store(daemon).capacity;
        self.config.layout.block_bytes().min(capacity - capacity % PAGE_BYTES)
    }

    fn shape(&self, order: &Order) -> Result<Shape, Failure> {
        let full = self.config.layout.block_bytes();
        let page_size = u64::from(order.terms.page_size);
        if page_size > full {
            let text = format!("a page of {page_size} bytes, blocks have {full}");
            return refuse(Status::Invalid, text);
        }
        let blocks = order.bytes.div_ceil(full);
        let limit = self.config.limits.blocks_max;
        let room = limit.saturating_sub(self.blocks.len());
        let Some(count) = u32::try_from(blocks).ok().filter(|count| *count as usize <= room) else {
            let text =
                format!("{} bytes need {blocks} blocks, {room} of {limit} are left", order.bytes);
            let refusal = Refusal::new(Status::NoSpace, text);
            let is_possible = blocks <= limit as u64;
            return Err(if is_possible { Failure::NoRoom(refusal) } else { refusal.into() });
        };
        let last = (order.bytes - full * (blocks - 1)).next_multiple_of(page_size);
        let needs = if count > 1 { full } else { last };
        let copies = order.terms.copies;
        // Of daemons that nobody has seen yet nothing is known.
        if let Some(largest) = self.capacity_for(copies).filter(|largest| needs > *largest) {
            let daemons = if copies == 1 { "daemon holds" } else { "daemons that it takes hold" };
            let text = format!(
                "{} bytes need {count} blocks of {needs} bytes, the largest {daemons} {largest}",
                order.bytes
            );
            return refuse(Status::NoSpace, text);
        }
        Ok(Shape { count, full, last })
    }

    /// Places for all copies of a block, each on another daemon.
    fn place_planned(&mut self, order: &Order, bytes: u64) -> Result<Placed, Failure> {
        let mut copies = Placed::new();
        let mut taken = BTreeSet::new();
        let halves = (0..order.terms.copies as usize).filter_map(Half::of);
        for half in halves {
            match self.place_copy(order, half, bytes, &taken) {
                Ok(copy) => {
                    taken.insert(copy.daemon);
                    copies.push(copy);
                }
                Err(failure) => {
                    self.refund_all(vec![copies]);
                    return Err(failure);
                }
            }
        }
        Ok(copies)
    }

    fn place_copy(
        &mut self,
        order: &Order,
        half: Half,
        bytes: u64,
        taken: &BTreeSet<DaemonId>,
    ) -> Result<Copy, Failure> {
        let (payer, placement) = (order.payer, order.terms.placement);
        let need = Need { bytes, account: payer.account, refused: taken, placement };
        let Some(daemon) = self.place(&need) else {
            let text = match (self.largest_up(), order.terms.copies) {
                (0, _) => "no daemon is up".to_owned(),
                (_, 1) => format!("no daemon has {bytes} bytes left"),
                (_, copies) => format!(
                    "{copies} copies of a block need as many daemons, {} have {bytes} bytes left",
                    taken.len()
                ),
            };
            return Err(Failure::NoRoom(Refusal::new(Status::NoSpace, text)));
        };
        let charge = self.ledger.charge(payer, daemon, bytes)?;
        self.daemons.placed(daemon);
        Ok(Copy::planned((daemon, half), charge))
    }

    fn refund_all(&mut self, placed: Vec<Placed>) {
        for copy in placed.into_iter().flatten() {
            self.ledger.refund(copy.charge);
        }
    }

    fn enter(&mut self, order: &Order, count: u32, ids: IdRange, placed: Vec<Placed>) {
        let first = ids.first;
        let guid = self.guids.next();
        let owner = match &order.region {
            Some(region) => {
                self.regions.add(first, region.clone());
                SpanOwner::Region
            }
            None => SpanOwner::Session(order.session),
        };
        if let Some(session) = self.sessions.get_mut(order.session) {
            match owner {
                SpanOwner::Session(_) => session.spans.insert(first),
                SpanOwner::Region => session.making_regions.insert(first),
            };
        }
        let span = Span {
            guid,
            epoch: self.epoch,
            count,
            ids: vec![ids],
            page_size: order.terms.page_size,
            copies: order.terms.copies,
            owner,
            uid: order.payer.uid,
            ticket: order.ticket,
            state: SpanState::Making,
            present: 0,
            lost: 0,
            untold: BTreeSet::new(),
            unclaimed: false,
        };
        self.blocks.add_span(first, span);
        // A block by itself is its span, and has one GUID with it.
        let single = count == 1;
        for (place, copies) in (0..).zip(placed) {
            let Ok(id) = first.checked_add(place) else { return };
            let bytes = copies.first().map_or(0, |copy| copy.charge.bytes());
            let room = copies.iter().map(|copy| self.bytes_max(copy.daemon)).min();
            let locks = (order.terms.copies > 1).then(|| {
                LockTable::planned(self.ledger.charge_table(Some(order.payer.uid), bytes), bytes)
            });
            let block = Block {
                span: first,
                guid: if single { guid } else { self.guids.next() },
                epoch: self.epoch,
                state: BlockState::Making,
                bytes_max: room.unwrap_or(0).min(order.terms.block_bytes.max(bytes)),
                committed: 0,
                copies: Copies::new(copies),
                locks,
                is_locked: order.terms.copies > 1,
                stamp: 0,
                news: News::None,
                is_moving: false,
            };
            self.blocks.add(id, block);
        }
    }
}

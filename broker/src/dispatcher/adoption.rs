//! Blocks that the broker hears of for the first time: whose they are, and whether their spans are
//! whole.
//!
//! The rules are those of `restart`.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Guid, Owner, Region};
use dmce_abi::wire::daemon::HeldBlock;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{Block, BlockState, News, Span, SpanOwner, SpanState, TicketKey};
use super::charge::{Charge, Payer};
use super::copies::{Copies, Copy};
use super::event::BelievedSession;
use super::ids::IdRange;
use super::opens::Opens;
use super::restart::Quarantined;
use super::sessions::Session;
use super::timers::Timer;

impl Dispatcher {
    /// A session that lived under the broker before this one. Its client has time to come back, if
    /// its process lives.
    pub(super) fn believe(&mut self, believed: BelievedSession) {
        let BelievedSession { record, generation, grants, lives } = believed;
        let id = record.session;
        if self.sessions.get(id).is_some() || self.wrecks.has(id) {
            self.log(LogLevel::Error, format!("there are two records of session {id}"));
            return;
        }
        let mut opens = Opens::default();
        for grant in grants {
            if !opens.adopt(grant) {
                let text = format!("the record of session {id} has an impossible {grant:?}");
                self.log(LogLevel::Warn, text);
            }
        }
        if record.is_of_daemon() {
            // It goes on with another, if it lives.
            self.wrecks.found.insert(id);
            return self.wreck_seat(&record);
        }
        if !lives {
            return self.find_wreck(&record, opens);
        }
        let deadline = self.now.millis.after(self.config.reattach_ms);
        let account = self.ledger.force_account(record.uid);
        let (pid, lived_at) = (record.pid, record.lived_at);
        let session = Session::restored(record, deadline, account, generation);
        self.sessions.add(Session { opens, ..session });
        self.timers.set(Timer::Reattach(id), deadline);
        self.out.push(Action::WatchProcess { session: id, pid, lived_at, conn: None });
    }

    /// Takes in what all have reported, the youngest first. What is older and has an id of another
    /// span was made for a broker that was dead by then: it is a stray.
    pub(super) fn adopt_all(&mut self) {
        let found = self.restart.found.take().unwrap_or_default();
        let of_daemon = |(daemon, held): (DaemonId, Vec<HeldBlock>)| {
            held.into_iter().map(move |held| (daemon, held))
        };
        let mut all: Vec<(DaemonId, HeldBlock)> = found.into_iter().flat_map(of_daemon).collect();
        all.sort_by_key(|(_, held)| Reverse(held.description.epoch));
        for (daemon, held) in all {
            if self.is_outlived(&held.description) {
                let id = held.description.block;
                let has_id = self.take_id(id);
                self.found_stray(daemon, id, has_id);
            } else {
                self.adopt(daemon, &held);
            }
        }
    }

    /// Whether a span that was made later has an id of a block's span.
    pub(super) fn is_outlived(&self, found: &BlockDescription) -> bool {
        let BlockDescription { span, epoch, .. } = found;
        let others = self.blocks.overlapping(span.first, span.count);
        others.filter(|other| other.guid != span.guid).any(|other| other.epoch > *epoch)
    }

    /// Takes in a block that is not in the tables.
    pub(super) fn adopt(&mut self, daemon: DaemonId, held: &HeldBlock) {
        let HeldBlock { description, committed } = held;
        let payer = self.payer_of(&description.owner).filter(|_| !self.was_deleted(description));
        // Another daemon may have a copy of it, or one that a span misses.
        let is_new = self.blocks.get(description.block).is_none();
        if payer.is_some() && is_new && self.fits(description) {
            let charge = self.ledger.force_charge(payer, daemon, *committed);
            self.enter_adopted(daemon, description, charge);
            return;
        }
        if self.adopt_copy(daemon, held) {
            return;
        }
        let id = description.block;
        let charge = self.ledger.force_charge(None, daemon, *committed);
        let is_region = matches!(description.owner, Owner::Region(_));
        // What is nobody's may lie in a span that is given up, and in no other.
        let home = self.blocks.span_at(id).and_then(|first| self.blocks.span(first));
        let is_dying = home.map(|span| span.state == SpanState::Dying);
        let has_id = is_dying.is_none() && self.take_id(id);
        if !is_region && is_new && (has_id || is_dying == Some(true)) {
            self.enter_orphan(daemon, description, charge);
        } else {
            let text = format!("block {id} on daemon {daemon} contradicts what is known");
            self.log(LogLevel::Error, format!("{text}: it is quarantined"));
            self.restart.quarantined.insert((daemon, id), Quarantined { has_id, charge });
        }
    }

    /// Whether a block is another than the one that a standing span misses.
    pub(super) fn contradicts(&mut self, found: &BlockDescription) -> bool {
        let stands = self.blocks.span_at(found.block).is_some_and(|first| self.stands(first));
        stands && !(self.payer_of(&found.owner).is_some() && self.fits(found))
    }

    /// Whether a copy agrees with what is known of its block and span.
    pub(super) fn contradicts_nothing(&mut self, held: &HeldBlock) -> bool {
        self.payer_of(&held.description.owner).is_some() && self.fits(&held.description)
    }

    /// Whether a block was deleted by its session: a copy whose object was gone then is back.
    fn was_deleted(&self, found: &BlockDescription) -> bool {
        let Owner::Session { session, .. } = found.owner else { return false };
        let deleted = self.sessions.get(session).map(|session| &session.deleted);
        deleted.is_some_and(|all| all.contains(&found.guid) || all.contains(&found.span.guid))
    }

    /// Who pays for a block that is found: its region's owner, or its session if that is known.
    pub(super) fn payer_of(&self, owner: &Owner) -> Option<Payer> {
        match owner {
            Owner::Session { session, ticket, .. } => {
                let session = self.sessions.get(*session)?;
                (session.record.guid == ticket.session).then(|| session.payer())
            }
            Owner::Region(region) => Some(Payer { uid: region.uid, account: None }),
        }
    }

    /// Whether a block agrees with what is known of its span. Of a new span, all ids are taken.
    fn fits(&mut self, found: &BlockDescription) -> bool {
        let first = found.span.first;
        let Some(span) = self.blocks.span(first) else {
            if self.blocks.overlaps(first, found.span.count) {
                return false;
            }
            let Some(ids) = self.take_ids(first, found.span.count) else { return false };
            self.enter_span(found, ids);
            return true;
        };
        let same_owner = match (&found.owner, span.owner) {
            (Owner::Session { session, .. }, SpanOwner::Session(owner)) => *session == owner,
            (Owner::Region(region), SpanOwner::Region) => {
                // Of copies others may be asked for since that header was written.
                let known = self.attributes(first);
                known.is_some_and(|known| {
                    *known == Region { copies: known.copies, ..region.clone() }
                })
            }
            _ => false,
        };
        same_owner
            && matches!(span.state, SpanState::Assembling | SpanState::Standing)
            && (span.guid, span.count) == (found.span.guid, found.span.count)
            && span.page_size == found.page_size
            && span.ticket == ticket_of(&found.owner)
    }

    fn attributes(&self, first: BlockId) -> Option<&Region> {
        let assembled = self.restart.assembling.get(&first).and_then(Option::as_ref);
        assembled.or_else(|| self.regions.get(first).map(|region| &region.attributes))
    }

    /// Takes an id that a name has, or that is free.
    fn take_id(&mut self, id: BlockId) -> bool {
        self.restart.names.remove(&id) || self.ids.claim(id)
    }

    /// Takes all ids of a span, or none.
    fn take_ids(&mut self, first: BlockId, count: u32) -> Option<Vec<IdRange>> {
        let mut taken = Vec::new();
        for place in 0..count {
            match first.checked_add(place) {
                Ok(id) if self.take_id(id) => taken.push(IdRange { first: id, count: 1 }),
                _ => {
                    self.restart.names.extend(taken.into_iter().map(|range| range.first));
                    return None;
                }
            }
        }
        Some(taken)
    }

    fn enter_adopted(&mut self, daemon: DaemonId, found: &BlockDescription, charge: Charge) {
        let (first, id) = (found.span.first, found.block);
        self.enter_block(daemon, found, first, charge);
        if id == first {
            self.know_copies(first, found.owner.copies());
        }
        self.restart.named.insert(id, found.membership.daemons(daemon));
        self.note_syncing(found);
        // A span that was judged already had this block missing: who holds it looks again.
        if self.stands(first) {
            self.judge_copies(id);
            self.judge_locks(id);
            self.tell_holders(first, id);
        }
    }

    /// How many copies of a region are asked for: what the newest header of its first block says.
    fn know_copies(&mut self, first: BlockId, copies: u32) {
        if let Some(span) = self.blocks.span_mut(first) {
            span.copies = copies;
        }
        if let Some(Some(region)) = self.restart.assembling.get_mut(&first) {
            region.copies = copies;
        }
        if let Some(region) = self.regions.get_mut(first) {
            region.attributes.copies = copies;
        }
        for id in self.blocks.members(first) {
            self.blocks.recount(id);
        }
        self.moves.is_due = true;
    }

    fn enter_span(&mut self, found: &BlockDescription, ids: Vec<IdRange>) {
        let first = found.span.first;
        self.restart.assembling.insert(first, region_of(&found.owner));
        let (owner, uid) = match &found.owner {
            Owner::Session { session, uid, .. } => (SpanOwner::Session(*session), *uid),
            Owner::Region(region) => (SpanOwner::Region, region.uid),
        };
        if let SpanOwner::Session(session) = owner
            && let Some(session) = self.sessions.get_mut(session)
        {
            session.spans.insert(first);
        }
        let span = Span {
            guid: found.span.guid,
            epoch: found.epoch,
            count: found.span.count,
            ids,
            page_size: found.page_size,
            copies: found.owner.copies(),
            owner,
            uid,
            ticket: ticket_of(&found.owner),
            state: SpanState::Assembling,
            present: 0,
            lost: 0,
            untold: BTreeSet::new(),
            unclaimed: false,
        };
        self.blocks.add_span(first, span);
    }

    /// A block of a session that is no more. It is destroyed by itself, whatever span it was of.
    fn enter_orphan(&mut self, daemon: DaemonId, found: &BlockDescription, charge: Charge) {
        let id = found.block;
        let dying = self.blocks.span_at(id);
        if dying.is_none() {
            let span = Span {
                guid: found.guid,
                epoch: found.epoch,
                count: 1,
                ids: vec![IdRange { first: id, count: 1 }],
                page_size: found.page_size,
                copies: found.owner.copies(),
                owner: SpanOwner::Region,
                uid: 0,
                ticket: (Guid::default(), 0),
                state: SpanState::Dying,
                present: 0,
                lost: 0,
                untold: BTreeSet::new(),
                unclaimed: false,
            };
            self.blocks.add_span(id, span);
            self.blocks.disown(id);
        }
        self.enter_block(daemon, found, dying.unwrap_or(id), charge);
        self.blocks.set_state(id, BlockState::Going);
        self.destroy(id, daemon);
    }

    fn enter_block(
        &mut self,
        daemon: DaemonId,
        found: &BlockDescription,
        first: BlockId,
        charge: Charge,
    ) {
        let is_locked = found.has_locks();
        let payer = (self.payer_of(&found.owner), charge.bytes());
        let adopt = || self.adopt_locks(found.block, found.guid, payer, found.bytes_max);
        let locks = is_locked.then(adopt);
        let (copy, since) = ((daemon, found.membership.half), found.membership.since);
        let block = Block {
            span: first,
            guid: found.guid,
            epoch: found.epoch,
            state: BlockState::Held,
            bytes_max: found.bytes_max,
            committed: charge.bytes(),
            copies: Copies::new(vec![Copy { since, ..Copy::held(copy, charge, found.epoch) }]),
            locks,
            is_locked,
            stamp: self.next_number(),
            news: News::None,
            is_moving: false,
        };
        self.blocks.add(found.block, block);
        if let Some(server) = self.daemons.servers.get_mut(&daemon) {
            server.blocks.insert(found.block);
        }
    }

    /// Judges the spans that were assembled. Of two regions with one name the younger has it.
    pub(super) fn judge_spans(&mut self) {
        let assembled = std::mem::take(&mut self.restart.assembling);
        let mut spans: Vec<(BlockId, Option<Region>)> = assembled.into_iter().collect();
        spans.sort_by_key(|(_, region)| region.as_ref().map(|region| Reverse(region.created_at)));
        for (first, region) in spans {
            let state = self.blocks.span(first).map(|span| span.state);
            if state == Some(SpanState::Assembling) {
                self.judge_span(first, region);
            }
        }
    }

    fn judge_span(&mut self, first: BlockId, region: Option<Region>) {
        let Some(span) = self.blocks.span(first) else { return };
        let (owner, count) = (span.owner, span.count);
        let present: BTreeSet<BlockId> = self.blocks.members(first).into_iter().collect();
        let all = (0..count).filter_map(|place| first.checked_add(place).ok());
        let missing: Vec<BlockId> = all.filter(|id| !present.contains(id)).collect();
        let is_damaged = self.restart.damaged.contains(&first);
        if missing.contains(&first) && !is_damaged && !self.is_granted(first) {
            self.log(LogLevel::Warn, format!("span {first} was never whole: it is destroyed"));
            self.drop_from_owner(first, owner);
            self.give_up(first);
            return;
        }
        if let Some(span) = self.blocks.span_mut(first) {
            span.state = SpanState::Standing;
        }
        let bytes = region.as_ref().map(|region| region.region_size);
        if let Some(region) = region
            && !self.enter_region(first, region)
        {
            return;
        }
        for id in missing {
            self.enter_placeholder(first, id);
        }
        let half_made = self.lacks_last(first) && !self.was_open(first);
        if let Some(region) = self.regions.get_mut(first) {
            region.half_made = half_made;
        }
        for id in present {
            self.judge_copies(id);
        }
        self.judge_sizes(first, bytes);
        for id in self.blocks.members(first) {
            self.judge_locks(id);
        }
    }

    /// Gives a region its name. `false` if it was destroyed, because a younger one has the name.
    fn enter_region(&mut self, first: BlockId, region: Region) -> bool {
        self.ledger.force_region(region.uid);
        self.created_last = self.created_last.max(region.created_at);
        let created_at = region.created_at;
        let text = format!("region {:?} of volume {:?}", region.name, region.volume);
        if self.regions.add(first, region) {
            return true;
        }
        let namesake = self.regions.namesake(first).map_or(0, |other| other.attributes.created_at);
        if created_at < namesake && !self.is_granted(first) {
            let text = format!("{text}, of block {first}, was given up: it is destroyed");
            self.log(LogLevel::Warn, text);
            self.give_up(first);
            return false;
        }
        let text = format!("{text} is there twice: the one of block {first} has no name");
        self.log(LogLevel::Error, text);
        true
    }

    /// A session loses a span. If it was granted all the same, its ids stay until the session has
    /// been told.
    pub(super) fn drop_from_owner(&mut self, first: BlockId, owner: SpanOwner) {
        let SpanOwner::Session(id) = owner else { return };
        for block in self.blocks.members(first) {
            self.changed(id, block);
        }
        let Some(session) = self.sessions.get_mut(id) else { return };
        session.spans.remove(&first);
        session.untold.insert(first);
        if let Some(span) = self.blocks.span_mut(first) {
            span.untold.insert(id);
        }
    }

    /// Whether some session has a region open. Its record said so before the region was used.
    pub(super) fn is_granted(&self, first: BlockId) -> bool {
        self.sessions.all().any(|session| session.opens.rights(first).any())
    }

    /// Whether nobody has the copy of a span that is made last: the primary of its first block.
    fn lacks_last(&self, first: BlockId) -> bool {
        let named = self.restart.named.get(&first).and_then(|named| named.first());
        let block = self.blocks.get(first);
        named.is_some_and(|last| block.is_some_and(|block| block.copies.of(*last).is_none()))
    }

    /// Whether somebody has a region open, or had it at its end.
    fn was_open(&self, first: BlockId) -> bool {
        let mut wrecks = self.wrecks.all().filter_map(|(_, wreck)| wreck.opens());
        self.is_granted(first) || wrecks.any(|opens| opens.rights(first).any())
    }

    /// A block that no daemon has: it stands in the table as lost.
    fn enter_placeholder(&mut self, first: BlockId, id: BlockId) {
        let block = Block {
            span: first,
            guid: Guid::default(),
            epoch: 0,
            state: BlockState::Held,
            bytes_max: 0,
            committed: 0,
            copies: Copies::default(),
            locks: None,
            is_locked: false,
            stamp: 0,
            news: News::None,
            is_moving: false,
        };
        self.blocks.add(id, block);
        self.lose(id, &format!("block {id} is lost: no daemon has it"));
    }

    /// Every block but the last must be full, and a region's last as long as the region needs.
    fn judge_sizes(&mut self, first: BlockId, region_bytes: Option<u64>) {
        for id in self.blocks.members(first) {
            let needs = self.bytes_needed(id, first, region_bytes);
            self.judge_lengths(id, needs);
        }
    }

    /// Bytes that a block must have for what its span promises; `None` for one that grows.
    pub(super) fn bytes_needed(
        &self,
        id: BlockId,
        first: BlockId,
        region: Option<u64>,
    ) -> Option<u64> {
        let full = self.config.layout.block_bytes();
        let place = id.get() - first.get();
        let count = self.blocks.span(first).map_or(0, |span| span.count);
        match (place + 1 < count, region) {
            (true, _) => Some(full),
            (false, Some(bytes)) => Some(bytes.saturating_sub(full * u64::from(place))),
            (false, None) => None,
        }
    }
}

fn ticket_of(owner: &Owner) -> TicketKey {
    match owner {
        Owner::Session { ticket, .. } => (ticket.session, ticket.number),
        Owner::Region(region) => (region.created_by.session, region.created_by.number),
    }
}

fn region_of(owner: &Owner) -> Option<Region> {
    match owner {
        Owner::Session { .. } => None,
        Owner::Region(region) => Some(region.clone()),
    }
}

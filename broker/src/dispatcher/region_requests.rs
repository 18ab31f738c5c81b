//! Regions (004): created, opened, closed, found, listed.
//!
//! # Invariants
//!
//! 1. Who has no right on a region is told that there is none.
//! 2. A grant is stored before its opener is answered.
//! 3. Who has a region open that is deleted is told before its blocks go, and its ids are not used
//!    again before it has listened.

use std::collections::BTreeSet;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, Region, SessionId, Ticket};
use dmce_abi::limits::{GRANTS, REGION_BYTES_MAX};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Opening, OpeningId, RegionCreate, RegionKey, RegionList,
    RegionName, RegionOpen,
};

use super::Dispatcher;
use super::action::Action;
use super::blocks::SpanState;
use super::charge::Payer;
use super::clients::ReplyTo;
use super::event::{ClientConn, Rights};
use super::opens::{Closed, Settled};
use super::planning::Order;
use super::policies::Terms;
use super::regions::{Caller, RegionEntry, may_know, rights_of};
use super::requests::{Failure, Outcome, Served, refuse};
use super::sessions::Session;

/// Bytes of names in one reply: they and their lengths fit a frame.
const NAMES_BYTES_MAX: usize = 32 * 1024;

/// Bytes of the length before a name.
const NAME_LENGTH_BYTES: usize = 2;

/// The mode of a region that does not say.
const MODE_DEFAULT: u32 = 0o600;

impl Session {
    /// Who asks, where rights are checked.
    pub(super) fn caller(&self) -> Caller<'_> {
        Caller { uid: self.record.uid, gid: self.record.gid, groups: &self.groups }
    }
}

impl Dispatcher {
    pub(super) fn region_create(
        &mut self,
        to: ReplyTo,
        id: SessionId,
        create: &RegionCreate,
    ) -> Served {
        let Some(session) = self.sessions.get(id) else { return Ok(Outcome::Later) };
        let record = &session.record;
        let ticket = (record.guid, create.ticket);
        let policy = self.policy(0, Some(create.region_size))?;
        let copies = self.copies([create.copies, policy.told.copies, self.config.region_copies])?;
        let terms = self.terms(&policy, create.page_size)?;
        let terms = Terms { block_bytes: u64::MAX, copies, ..terms };
        let region = Region {
            volume: create.region.volume.clone(),
            name: create.region.name.clone(),
            uid: record.uid,
            gid: record.gid,
            mode: if create.mode == 0 { MODE_DEFAULT } else { create.mode },
            base_pointer: create.base_pointer,
            region_size: create.region_size,
            copies,
            created_at: self.now.unix_s.max(self.created_last + 1),
            created_by: Ticket { session: ticket.0, number: ticket.1 },
        };
        region.validate().map_err(|error| Refusal::new(Status::Invalid, error.to_string()))?;
        self.wait_no_more(ticket);
        if let Some(made) = self.made_by(ticket) {
            if !self.is_half_made(made) {
                return self.region_again(to, made, &create.region);
            }
            self.give_up(made);
        }
        if self.regions.by_name(&create.region).is_some() {
            let RegionName { volume, name } = &create.region;
            let text = format!("there is a region {name:?} in volume {volume:?}");
            return refuse(Status::Exists, text);
        }
        let limit = self.config.limits.regions_max;
        if self.regions.len() >= limit {
            let text = format!("there are {limit} regions, limit {limit}");
            return refuse(Status::NoSpace, text);
        }
        self.created_last = region.created_at;
        let (uid, bytes) = (region.uid, region.region_size);
        self.ledger.charge_region(uid)?;
        let order = Order {
            request: ClientRequest::RegionCreate(create.clone()),
            to,
            session: id,
            ticket,
            payer: Payer { uid, account: None },
            terms,
            bytes,
            region: Some(region),
            patient: None,
        };
        let served = self.make(order);
        if served.is_err() {
            self.ledger.refund_region(uid);
        }
        served
    }

    /// Whether a region that an earlier broker made may never have been whole, and nobody has had
    /// it. One that lost a copy later may have what others wrote: its maker had no answer, but it
    /// has a name.
    fn is_half_made(&self, first: BlockId) -> bool {
        self.stands(first) && self.regions.get(first).is_some_and(|region| region.half_made)
    }

    /// A `RegionCreate` whose ticket made something already.
    fn region_again(&mut self, to: ReplyTo, first: BlockId, name: &RegionName) -> Served {
        if self.regions.get(first).is_none_or(|region| region.name() != *name) {
            return refuse(Status::Invalid, "the ticket made something else");
        }
        match self.blocks.span(first).map(|span| span.state) {
            Some(SpanState::Making) => self.wait_for(to, first),
            _ => Ok(ClientReply::Done.into()),
        }
    }

    pub(super) fn region_open(&mut self, id: SessionId, open: &RegionOpen) -> Served {
        let number = open.opening;
        let asked = Rights { read: open.read, write: open.write };
        if !asked.any() {
            return refuse(Status::Invalid, "a region is opened to read or to write");
        }
        let (first, rights) = self.find_region(id, &open.region)?;
        if !rights.covers(asked) {
            return refuse(Status::Denied, format!("region {:?}", open.region.name));
        }
        if self.is_losing(first) {
            return Err(Failure::Unsettled);
        }
        let Some(session) = self.sessions.get_mut(id) else { return Ok(Outcome::Later) };
        match session.opens.find(number) {
            // Repeated: its answer did not arrive.
            Some(known) if known == (first, asked) => {}
            Some((other, _)) => {
                let text = format!("opening {} is of the region of block {other}", number.0);
                return refuse(Status::Invalid, text);
            }
            None => {
                let Some(grant) = session.opens.open(number, first, asked) else {
                    let text = format!("the session has {GRANTS} regions open, limit {GRANTS}");
                    return refuse(Status::NoSpace, text);
                };
                self.out.push(Action::StoreGrant { session: id, grant });
                if let Some(region) = self.regions.get_mut(first) {
                    region.opens.insert(id);
                    region.half_made = false;
                }
            }
        }
        match self.opened(id, first, asked.write) {
            Some((opened, descriptors)) => {
                Ok(Outcome::Reply(Box::new(ClientReply::Opened(opened)), descriptors))
            }
            None => refuse(Status::Internal, format!("region of block {first} has no blocks")),
        }
    }

    /// Ends an opening, also one that is still waited for. One that is not there was ended before:
    /// by this request, which is repeated, or with its region.
    pub(super) fn region_close(
        &mut self,
        conn: ClientConn,
        id: SessionId,
        number: OpeningId,
    ) -> Outcome {
        let is_it = |request: &ClientRequest| match request {
            ClientRequest::RegionOpen(open) => open.opening == number,
            _ => false,
        };
        while let Some(waiter) = self.unsettled.take_of(conn, is_it) {
            let given_up = Refusal::new(Status::Closed, "the request was given up");
            self.reply(waiter.to, Err(given_up), Vec::new());
        }
        let session = self.sessions.get_mut(id);
        if let Some(closed) = session.and_then(|session| session.opens.close(number)) {
            self.closed(id, closed);
        }
        ClientReply::Done.into()
    }

    /// The client has told which openings it knows: the others are ended. Returns those that it
    /// told and that there are not: a deletion that an earlier broker began has ended them.
    pub(super) fn settle_openings(
        &mut self,
        id: SessionId,
        told: &[Opening],
    ) -> BTreeSet<OpeningId> {
        let Some(session) = self.sessions.get_mut(id) else { return BTreeSet::new() };
        let Settled { closed, unknown } = session.opens.settle(told);
        for closed in closed {
            self.closed(id, closed);
        }
        unknown
    }

    /// An opening of a session has ended.
    fn closed(&mut self, id: SessionId, Closed { first, place }: Closed) {
        self.out.push(Action::RevokeGrant { session: id, place });
        self.revoke_span(id, first);
        if !self.sessions.get(id).is_some_and(|session| session.opens.rights(first).any()) {
            self.unmap_span(id, first);
            if let Some(region) = self.regions.get_mut(first) {
                region.opens.remove(&id);
            }
        }
    }

    /// Which region has a name.
    pub(super) fn region_find(&self, id: SessionId, name: &RegionName) -> Served {
        let (first, _) = self.find_region(id, name)?;
        match self.blocks.span(first) {
            Some(span) => Ok(ClientReply::Found(RegionKey { first, guid: span.guid }).into()),
            None => refuse(Status::Internal, format!("region of block {first} has no blocks")),
        }
    }

    pub(super) fn region_list(&self, id: SessionId, list: &RegionList) -> Outcome {
        let Some(session) = self.sessions.get(id) else { return Outcome::Later };
        let after = RegionName { volume: list.volume.clone(), name: list.after.clone() };
        let in_volume = |region: &RegionEntry| region.attributes.volume == list.volume;
        let regions = self.regions.after(&after).take_while(|(_, region)| in_volume(region));
        let known = regions.filter(|(first, region)| {
            may_know(&region.attributes, session.caller()) && self.stands(*first)
        });
        let mut names = Vec::new();
        let mut bytes = 0;
        let mut more = false;
        for (_, region) in known {
            if bytes > NAMES_BYTES_MAX - REGION_BYTES_MAX {
                more = true;
                break;
            }
            bytes += region.attributes.name.len() + NAME_LENGTH_BYTES;
            names.push(region.attributes.name.clone());
        }
        ClientReply::Names { names, more }.into()
    }

    /// Whether a span may be used.
    pub(super) fn stands(&self, first: BlockId) -> bool {
        self.blocks.span(first).is_some_and(|span| span.state == SpanState::Standing)
    }

    /// The region of a name, and what the session may do with it.
    fn find_region(
        &self,
        session: SessionId,
        name: &RegionName,
    ) -> Result<(BlockId, Rights), Refusal> {
        let found = self.regions.by_name(name).filter(|first| self.stands(*first));
        let known = found.and_then(|first| {
            let region = &self.regions.get(first)?.attributes;
            let caller = self.sessions.get(session)?.caller();
            may_know(region, caller).then(|| (first, rights_of(region, caller)))
        });
        let RegionName { volume, name } = name;
        known.ok_or_else(|| {
            Refusal::new(Status::NotFound, format!("no region {name:?} in volume {volume:?}"))
        })
    }
}

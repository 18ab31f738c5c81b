//! What a shell finds in shared memory for a broker: what daemons made, or somebody forged.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use dmce_abi::block::{
    BlockDescription, DaemonId, Guid, Half, Membership, Owner, Region, SessionId, Span, Ticket,
};
use dmce_abi::wire::daemon::HeldBlock;
use dmce_broker::dispatcher::{
    BelievedSession, FoundContent, FoundDaemon, FoundIntents, Headers, Started,
};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::requests::{address, key, size};
use super::world::{DAEMONS, World, pick};

/// Objects of one daemon that are forged, at most.
const STORED_MAX: usize = 16;

/// Intents that a client has, at most.
const INTENTS_MAX: usize = 4;

impl World {
    /// What a broker finds that starts now.
    pub fn found(&self) -> Started {
        let believed = self.sessions.values().map(|kept| BelievedSession {
            record: kept.record.clone(),
            generation: kept.generation,
            grants: kept.grants.values().copied().collect(),
            lives: kept.lives,
        });
        let daemons = self.stores.iter().map(|(&daemon, store)| FoundDaemon {
            daemon,
            blocks: store.keys().copied().collect(),
            damaged: Vec::new(),
            content: if self.locks.contains(&daemon) {
                FoundContent::Expected
            } else {
                FoundContent::Read(store.values().cloned().collect())
            },
        });
        Started { sessions: believed.collect(), daemons: daemons.collect(), ..Started::default() }
    }

    /// What a client stored in its slots, or why that cannot be read.
    pub fn intents(&self, bytes: &mut Unstructured<'_>) -> Result<Result<FoundIntents, String>> {
        if bytes.ratio(1, 8)? {
            return Ok(Err("as the bytes say".to_owned()));
        }
        let mut claims = Vec::new();
        for _ in 0..bytes.int_in_range(0..=INTENTS_MAX)? {
            let undo = if bytes.arbitrary()? { Undo::Saved } else { Undo::Absent };
            let first = bytes.int_in_range(0..=4)?;
            let progress = match bytes.int_in_range(0..=3)? {
                0 => Progress::Settled,
                1 => Progress::First { first, undo },
                2 => Progress::Others { first, undo },
                _ => Progress::Nonsense,
            };
            let addr = address(key(&self.seen, bytes)?.0, bytes)?;
            claims.push((bytes.arbitrary()?, IntentClaim { addr, bytes: size(bytes)?, progress }));
        }
        Ok(Ok(FoundIntents { claims, is_all: bytes.arbitrary()?, ..FoundIntents::none() }))
    }

    /// What the shell reads of a daemon's headers; some may have been damaged meanwhile.
    pub fn headers_of(&self, daemon: DaemonId, bytes: &mut Unstructured<'_>) -> Result<Headers> {
        let mut headers = Headers::default();
        for (block, held) in self.stores.get(&daemon).into_iter().flatten() {
            if bytes.ratio(1, 16)? {
                headers.damaged.push(*block);
            } else {
                headers.held.push(held.clone());
            }
        }
        Ok(headers)
    }

    /// Adds what somebody forged to the objects of a daemon.
    pub fn forge(&mut self, daemon: DaemonId, bytes: &mut Unstructured<'_>) -> Result<()> {
        let held = self.claim(bytes)?;
        // What is no header that could be was left out by who read it.
        let fits = held.description.validate(self.config.layout.block_bytes()).is_ok();
        let store = self.stores.entry(daemon).or_default();
        if fits && store.len() < STORED_MAX {
            store.insert(held.description.block, held);
        }
        Ok(())
    }

    /// A block as a daemon claims it: another with something changed, or made up. No two blocks and
    /// no two spans have one GUID: only a process of the broker's own user could forge that.
    pub fn claim(&mut self, bytes: &mut Unstructured<'_>) -> Result<HeldBlock> {
        let blocks: Vec<&HeldBlock> = self.stores.values().flat_map(BTreeMap::values).collect();
        let known = pick(bytes, blocks)?.cloned();
        let mut held = match known {
            Some(known) if bytes.arbitrary()? => known,
            known => self.make_up(known.map(|held| held.description.span), bytes)?,
        };
        let description = &mut held.description;
        match bytes.int_in_range(0..=7)? {
            0 => description.guid = self.fresh_guid(),
            1 => {
                description.span.first = key(&self.seen, bytes)?.0;
                description.span.guid = self.fresh_guid();
            }
            2 => description.span.count = bytes.int_in_range(0..=5)?,
            3 => description.epoch = bytes.arbitrary()?,
            4 => description.bytes_max = size(bytes)?,
            5 => held.committed = size(bytes)?,
            _ => {}
        }
        Ok(held)
    }

    fn make_up(&mut self, span: Option<Span>, bytes: &mut Unstructured<'_>) -> Result<HeldBlock> {
        let (block, _) = key(&self.seen, bytes)?;
        let guid = self.fresh_guid();
        let alone = Span { first: block, count: 1, guid };
        let span = span.filter(|span| span.contains(block)).unwrap_or(alone);
        let session = match pick(bytes, self.seen.sessions.iter().copied())? {
            Some(known) => known,
            None => (SessionId::try_from(1).expect("a small id"), Guid([2; 16])),
        };
        let ticket = Ticket { session: session.1, number: bytes.int_in_range(0..=7)? };
        let owner = if bytes.arbitrary()? {
            let copies = bytes.int_in_range(1..=2)?;
            Owner::Session { session: session.0, ticket, uid: 1000, copies }
        } else {
            Owner::Region(region(ticket, bytes)?)
        };
        let description = BlockDescription {
            block,
            guid,
            epoch: 1 + u64::from(bytes.arbitrary::<u8>()?),
            page_size: 4096,
            bytes_max: 1 << 14,
            span,
            owner,
            membership: membership(bytes)?,
        };
        Ok(HeldBlock { description, committed: size(bytes)? })
    }

    fn fresh_guid(&mut self) -> Guid {
        self.guids += 1;
        Guid(u128::from(self.guids).to_be_bytes())
    }
}

fn region(created_by: Ticket, bytes: &mut Unstructured<'_>) -> Result<Region> {
    Ok(Region {
        volume: "v".into(),
        name: (*bytes.choose(&["a", "b"])?).into(),
        uid: 1000,
        gid: 1000,
        mode: 0o666,
        base_pointer: 0,
        region_size: size(bytes)?,
        copies: 1,
        created_at: bytes.int_in_range(0..=3)?,
        created_by,
    })
}

/// The only copy, or one of some: which, and where the others are, is made up.
fn membership(bytes: &mut Unstructured<'_>) -> Result<Membership> {
    let daemons = [daemon(bytes)?, daemon(bytes)?];
    Ok(match bytes.int_in_range(0..=5)? {
        0 => Membership::of((daemons[0], half(bytes)?), &daemons, None),
        4 => Membership::of((daemons[0], half(bytes)?), &daemons, Some(daemon(bytes)?)),
        5 => Membership { syncing: Some(daemons[0]), ..Membership::alone() },
        1 => Membership { peers: vec![daemons[0]], ..Membership::alone() },
        _ => Membership::alone(),
    })
}

fn half(bytes: &mut Unstructured<'_>) -> Result<Half> {
    let place = bytes.int_in_range(0..=2)?;
    Ok(Half::of(place).expect("a small place"))
}

/// One of the daemons that there are.
pub fn daemon(bytes: &mut Unstructured<'_>) -> Result<DaemonId> {
    let id = bytes.int_in_range(1..=DAEMONS)?;
    Ok(DaemonId::try_from(id).expect("a small id"))
}

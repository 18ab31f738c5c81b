//! What outlives every process: the objects in shared memory, and which processes there are.

use std::collections::{BTreeMap, BTreeSet};

use dmce_abi::block::{
    BlockDescription, BlockId, DaemonId, Guid, Membership, Owner, Region, Role, SessionId,
};
use dmce_abi::wire::client::RegionName;
use dmce_abi::wire::daemon::{HeldBlock, PoolPlace};
use dmce_broker::dispatcher::{
    BelievedSession, FoundContent, FoundDaemon, FoundTable, Grant, Headers, Made, Rewritten,
    SessionRecord, Started,
};

use dmce_shm::lock::LockBits;

use crate::pages::{self, Pages};
use crate::random::Random;

/// Names that another user takes at most: there are few ids.
const SQUATTED_MAX: usize = 6;

/// The header of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// Not made yet: its daemon died before.
    Missing,
    /// As it should be.
    Valid,
    /// There, and unreadable.
    Damaged,
}

/// The objects of one block.
#[derive(Clone, Debug)]
pub struct Object {
    /// What the header says, or would have said.
    pub description: BlockDescription,
    /// Bytes of the data.
    pub bytes: u64,
    /// The state of the header.
    pub header: Header,
    /// What its page is.
    pub value: u64,
}

impl Object {
    /// Whether it does not have all bytes of the good copies, as its header says.
    pub fn is_syncing(&self) -> bool {
        self.description.membership.role == Role::Syncing
    }
}

/// A session's record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its fields.
    pub record: SessionRecord,
    /// Its grants, by place.
    pub grants: BTreeMap<u32, Grant>,
}

/// The shared memory and the processes of one host.
#[derive(Debug, Default)]
pub struct Host {
    /// Blocks, by daemon.
    pub stores: BTreeMap<DaemonId, BTreeMap<BlockId, Object>>,
    /// Pool objects by daemon, with their bytes.
    pub pools: BTreeMap<DaemonId, BTreeMap<PoolPlace, u64>>,
    /// Lock tables: whose they are, and bytes of the block that they have words for.
    pub tables: BTreeMap<BlockId, (Guid, u64)>,
    /// Blocks whose lock table was harmed from outside since it was made.
    pub harmed_tables: BTreeSet<BlockId>,
    /// Blocks whose page was lost, and whose table said so and is gone: until they are scrubbed.
    pub unmarked: BTreeSet<BlockId>,
    /// Generation words of session objects.
    pub sessions: BTreeMap<SessionId, u64>,
    /// Those that nobody has yet: their records are not ready.
    pub prepared: BTreeMap<SessionId, Guid>,
    /// Session records.
    pub records: BTreeMap<SessionId, Record>,
    /// Processes that live: pid, and when they started.
    pub processes: BTreeMap<u32, u64>,
    /// Daemons whose lock is held.
    pub locks: BTreeSet<DaemonId>,
    /// Names of blocks that another user took.
    pub squatted: BTreeSet<(DaemonId, BlockId)>,
    /// Copies that were harmed from outside: they may be lost, and no others.
    pub harmed_copies: BTreeSet<(DaemonId, Guid)>,
    /// The ids of their blocks.
    pub touched_ids: BTreeSet<BlockId>,
    /// Lock words and slots.
    pub pages: Pages,
    /// Daemons that are drained.
    pub draining: BTreeSet<DaemonId>,
    /// Objects that somebody took away.
    pub taken: Vec<(DaemonId, Object)>,
    /// Blocks of which no copy was left when one was harmed: they may be lost, and no others.
    pub harmed: BTreeSet<Guid>,
    /// Their ids: of a block whose header is gone, the broker knows no more.
    pub harmed_ids: BTreeSet<BlockId>,
    /// Regions that they belong to.
    pub harmed_regions: BTreeSet<RegionName>,
}

impl Host {
    /// Harms a block: takes its object, cuts it short, or spoils its header.
    pub fn harm(&mut self, random: &mut Random) {
        let places: Vec<(DaemonId, BlockId)> = self
            .stores
            .iter()
            .flat_map(|(daemon, store)| store.keys().map(move |block| (*daemon, *block)))
            .collect();
        let Some((daemon, block)) = random.pick(places) else { return };
        let Some(object) = self.stores.get(&daemon).and_then(|store| store.get(&block)) else {
            return;
        };
        let guid = object.description.guid;
        // What is of an earlier epoch is none of the copies any more.
        let since = if object.is_syncing() { 0 } else { object.description.epoch };
        self.harmed_copies.insert((daemon, guid));
        self.touched_ids.insert(block);
        if !self.has_whole_copy(block, guid, since) {
            self.harmed.insert(guid);
            self.harmed_ids.insert(block);
            if let Owner::Region(region) = &object.description.owner {
                let (volume, name) = (region.volume.clone(), region.name.clone());
                self.harmed_regions.insert(RegionName { volume, name });
            }
        }
        let Some(store) = self.stores.get_mut(&daemon) else { return };
        let Some(object) = store.get_mut(&block) else { return };
        match random.below(3) {
            0 => object.bytes = object.bytes / 2 / 4096 * 4096,
            1 if object.header == Header::Valid => object.header = Header::Damaged,
            _ => {
                let taken = store.remove(&block).map(|object| (daemon, object));
                self.taken.extend(taken.filter(|(_, object)| object.header == Header::Valid));
            }
        }
    }

    /// Takes a copy of a region away of which another whole one is there: whose, and of what.
    pub fn lose_copy(&mut self, random: &mut Random) -> Option<(DaemonId, BlockId)> {
        let is_whole = |object: &Object| object.header == Header::Valid && !object.is_syncing();
        let others = |daemon: DaemonId, block: BlockId, guid: Guid| {
            let elsewhere = self.stores.iter().filter(|(of, _)| **of != daemon);
            let objects = elsewhere.filter_map(|(_, store)| store.get(&block));
            let whole = objects.filter(|other| other.description.guid == guid && is_whole(other));
            whole.map(|other| other.description.epoch).max()
        };
        let all = self.stores.iter().flat_map(|(daemon, store)| {
            store.iter().map(move |(block, object)| (*daemon, *block, object))
        });
        let able = all.filter(|(daemon, block, object)| {
            let BlockDescription { guid, epoch, owner, .. } = &object.description;
            let is_region = matches!(owner, Owner::Region(_));
            is_region && others(*daemon, *block, *guid).is_some_and(|other| other >= *epoch)
        });
        let places: Vec<_> = able.map(|(daemon, block, _)| (daemon, block)).collect();
        let (daemon, block) = random.pick(places)?;
        let object = self.stores.get_mut(&daemon)?.remove(&block)?;
        self.harmed_copies.insert((daemon, object.description.guid));
        self.touched_ids.insert(block);
        Some((daemon, block))
    }

    /// Brings an object back that was taken away, as it was, if another copy of its block is there,
    /// and nobody has given that up: it is no region, or one of these.
    pub fn bring_back(
        &mut self,
        random: &mut Random,
        regions: &BTreeMap<RegionName, Guid>,
    ) -> Option<DaemonId> {
        let stands = |object: &Object| match &object.description.owner {
            Owner::Session { .. } => true,
            Owner::Region(region) => {
                let name = RegionName { volume: region.volume.clone(), name: region.name.clone() };
                regions.get(&name) == Some(&object.description.span.guid)
            }
        };
        let is_free = |daemon: DaemonId, block: BlockId| {
            let store = self.stores.get(&daemon);
            let is_named = store.is_some_and(|store| store.contains_key(&block));
            !is_named && !self.squatted.contains(&(daemon, block))
        };
        // Of what was taken from one place, one object after the other, the last.
        let is_last = |daemon: DaemonId, object: &Object| {
            let BlockDescription { block, guid, epoch, .. } = object.description;
            !self.taken.iter().any(|(of, other)| {
                let BlockDescription { block: its, guid: its_guid, epoch: later, .. } =
                    other.description;
                (*of, its, its_guid) == (daemon, block, guid) && later > epoch
            })
        };
        let able = |(daemon, object): &(DaemonId, Object)| {
            let BlockDescription { block, guid, .. } = object.description;
            let is_it = is_free(*daemon, block) && is_last(*daemon, object);
            is_it && stands(object) && self.has_whole_copy(block, guid, 0)
        };
        let places: Vec<usize> =
            (0..self.taken.len()).filter(|at| able(&self.taken[*at])).collect();
        let (daemon, object) = self.taken.swap_remove(random.pick(places)?);
        self.stores.entry(daemon).or_default().insert(object.description.block, object);
        Some(daemon)
    }

    /// No block has two primaries in one epoch.
    ///
    /// # Errors
    ///
    /// The block.
    pub fn check_primaries(&self) -> Result<(), String> {
        let mut primaries = BTreeSet::new();
        for object in self.stores.values().flat_map(BTreeMap::values) {
            let BlockDescription { block, guid, epoch, membership, .. } = &object.description;
            let is_primary = membership.role == Role::Primary && object.header == Header::Valid;
            if is_primary && !primaries.insert((*guid, *epoch)) {
                return Err(format!("block {block} has two primaries in epoch {epoch}"));
            }
        }
        Ok(())
    }

    /// Whether a block has a copy that was not harmed, of that epoch or a later one.
    fn has_whole_copy(&self, block: BlockId, guid: Guid, since: u64) -> bool {
        self.stores.iter().any(|(daemon, store)| {
            let of_it = |description: &BlockDescription| {
                description.guid == guid && description.epoch >= since
            };
            let object = store.get(&block).filter(|object| of_it(&object.description));
            object.is_some_and(|object| object.header == Header::Valid && !object.is_syncing())
                && !self.harmed_copies.contains(&(*daemon, guid))
        })
    }

    /// Removes the header of a copy, if nobody serves its daemon.
    pub fn remove_header(&mut self, daemon: DaemonId, block: BlockId, guid: Guid) {
        let object = self.stores.get_mut(&daemon).and_then(|store| store.get_mut(&block));
        let is_served = self.locks.contains(&daemon);
        if let Some(object) = object.filter(|of| of.description.guid == guid && !is_served) {
            object.header = Header::Missing;
        }
    }

    /// Whether the headers of a block on these daemons are of one epoch, and say what they must.
    pub fn agree(
        &self,
        of: &BlockDescription,
        daemons: &[DaemonId],
        says: impl Fn(DaemonId, &Membership) -> bool,
    ) -> bool {
        daemons.iter().all(|daemon| {
            let object = self.stores.get(daemon).and_then(|store| store.get(&of.block));
            object.is_some_and(|Object { description: said, header, .. }| {
                *header == Header::Valid
                    && (said.guid, said.epoch) == (of.guid, of.epoch)
                    && says(*daemon, &said.membership)
            })
        })
    }

    /// Makes a lock table, in place of one that may be there.
    pub fn make_table(&mut self, block: BlockId, table: (Guid, u64), lost: &[u64]) {
        self.harmed_tables.remove(&block);
        self.tables.insert(block, table);
        let word = if lost.contains(&0) { LockBits::LOST.word() } else { 0 };
        self.pages.name_table(block, word);
    }

    /// Gives a lock table words for more bytes.
    pub fn grow_table(&mut self, block: BlockId, guid: Guid, bytes: u64) -> Made {
        match self.tables.get_mut(&block) {
            Some(table) if table.0 == guid => {
                table.1 = table.1.max(bytes);
                Made::Whole
            }
            other => Made::Unusable { reason: format!("it is {other:?}") },
        }
    }

    /// Removes a lock table.
    pub fn remove_table(&mut self, block: BlockId) {
        self.harmed_tables.remove(&block);
        self.tables.remove(&block);
        self.pages.truncate_table(block);
    }

    /// Harms a lock table: it is taken away, cut, or says of another block that it is its. Returns
    /// the GUID of the block if it said that the page is lost.
    pub fn harm_table(&mut self, random: &mut Random) -> Option<Guid> {
        let block = random.pick(self.tables.keys().copied())?;
        self.harmed_tables.insert(block);
        let says_lost =
            |table| self.pages.words.get(table).is_some_and(|word| pages::is_lost(*word));
        let is_lost = self.pages.named.get(&block).is_some_and(says_lost);
        if is_lost {
            self.unmarked.insert(block);
        }
        let table = self.tables.get_mut(&block)?;
        let guid = table.0;
        match random.below(3) {
            0 => {
                self.tables.remove(&block);
                self.pages.named.remove(&block);
            }
            1 => table.1 /= 2,
            _ => table.0 = Guid::default(),
        }
        is_lost.then_some(guid)
    }

    /// What the shell finds of a lock table.
    pub fn found_table(&self, block: BlockId) -> Option<FoundTable> {
        let (guid, bytes) = *self.tables.get(&block)?;
        Some(FoundTable { block, guid: Some(guid).filter(|guid| *guid != Guid::default()), bytes })
    }

    fn found_tables(&self) -> Vec<FoundTable> {
        self.tables.keys().filter_map(|block| self.found_table(*block)).collect()
    }

    /// A daemon looks through its names: what has no header yet, nobody was told of.
    pub fn adopt(&mut self, daemon: DaemonId) {
        let store = self.stores.entry(daemon).or_default();
        store.retain(|_, object| object.header != Header::Missing);
    }

    /// Another user takes the name of a block that a daemon does not have.
    pub fn squat(&mut self, daemon: DaemonId, block: BlockId) {
        let is_free = self.stores.get(&daemon).is_none_or(|store| !store.contains_key(&block));
        if is_free && self.squatted.len() < SQUATTED_MAX {
            self.squatted.insert((daemon, block));
        }
    }

    /// The GUID of the region of a name: of several, the one that was created last. What has no
    /// first block is none: it is what an attempt left that was given up.
    pub fn newest(&self, name: &RegionName) -> Option<Guid> {
        let objects = self.stores.values().flat_map(BTreeMap::values);
        let firsts = objects.filter(|object| {
            let BlockDescription { block, span, .. } = &object.description;
            object.header == Header::Valid && *block == span.first
        });
        let named = firsts.filter_map(|object| match &object.description.owner {
            Owner::Region(of) if named_as(of, name) => Some((of, object.description.span.guid)),
            _ => None,
        });
        named.max_by_key(|(region, _)| region.created_at).map(|(_, guid)| guid)
    }

    /// The name of a region.
    pub fn name_of(&self, guid: Guid) -> Option<RegionName> {
        let (region, _) = self.regions().find(|(_, of)| *of == guid)?;
        Some(RegionName { volume: region.volume.clone(), name: region.name.clone() })
    }

    fn regions(&self) -> impl Iterator<Item = (&Region, Guid)> {
        let objects = self.stores.values().flat_map(BTreeMap::values);
        let valid = objects.filter(|object| object.header == Header::Valid);
        valid.filter_map(|object| match &object.description.owner {
            Owner::Region(region) => Some((region, object.description.span.guid)),
            Owner::Session { .. } => None,
        })
    }

    /// Whether a region has as many objects as were asked for.
    pub fn has_all_copies(&self, guid: Guid) -> bool {
        let objects = self.stores.values().flat_map(BTreeMap::values);
        let own = objects.filter(|of| of.description.span.guid == guid);
        let own = own.filter(|of| of.header == Header::Valid && !of.is_syncing());
        let own = own.map(|of| &of.description);
        let asked = own.clone().map(|of| of.owner.copies() * of.span.count).max();
        asked.is_some_and(|asked| own.count() >= asked as usize)
    }

    /// Whether the newest header of a block says that who writes it locks its pages.
    pub fn is_locked(&self, block: BlockId) -> bool {
        let objects = self.stores.values().filter_map(|store| store.get(&block));
        let valid = objects.filter(|object| object.header == Header::Valid);
        let newest = valid.map(|object| &object.description).max_by_key(|of| of.epoch);
        newest.is_some_and(BlockDescription::has_locks)
    }

    /// Whether a region has an object.
    pub fn has_region(&self, guid: Guid) -> bool {
        self.regions().any(|(_, of)| of == guid)
    }

    /// The size of a block's data object, as the shell finds it by name.
    pub fn data_bytes(&self, daemon: DaemonId, block: BlockId) -> Option<u64> {
        self.stores.get(&daemon)?.get(&block).map(|object| object.bytes)
    }

    /// What the valid headers of a daemon say.
    pub fn held(&self, daemon: DaemonId) -> Vec<HeldBlock> {
        let objects = self.stores.get(&daemon).into_iter().flat_map(BTreeMap::values);
        let valid = objects.filter(|object| object.header == Header::Valid);
        let held = valid.map(|object| HeldBlock {
            description: object.description.clone(),
            committed: object.bytes,
        });
        held.collect()
    }

    /// What the shell reads of a daemon's headers.
    pub fn headers(&self, daemon: DaemonId) -> Headers {
        let store = self.stores.get(&daemon).into_iter().flatten();
        let damaged = store.filter(|(_, object)| object.header == Header::Damaged);
        Headers { held: self.held(daemon), damaged: damaged.map(|(id, _)| *id).collect() }
    }

    /// Blocks of which somebody has taken the newest copies away, or their headers: a broker that
    /// starts then cannot tell that what is left was left behind (docs/adr/0008-two-copies.md).
    pub fn superseded(&self) -> Vec<Guid> {
        let mut newest = BTreeMap::<Guid, (u64, u64)>::new();
        let stored = self.stores.values().flat_map(BTreeMap::values);
        let is_found = |object: &Object| object.header == Header::Valid && !object.is_syncing();
        let stored = stored.map(|object| (object, is_found(object)));
        let taken = self.taken.iter().map(|(_, object)| (object, false));
        for (object, is_found) in stored.chain(taken) {
            let BlockDescription { guid, epoch, .. } = object.description;
            let (all, found) = newest.entry(guid).or_default();
            *all = epoch.max(*all);
            *found = (*found).max(if is_found { epoch } else { 0 });
        }
        let hidden = newest.into_iter().filter(|(_, (all, found))| found < all);
        hidden.map(|(guid, _)| guid).collect()
    }

    /// Writes a header anew.
    ///
    /// # Errors
    ///
    /// An epoch that does not grow.
    pub fn rewrite(
        &mut self,
        daemon: DaemonId,
        description: BlockDescription,
        committed: u64,
    ) -> Result<Rewritten, String> {
        let store = self.stores.entry(daemon).or_default();
        let object = store.get_mut(&description.block);
        let same = |object: &&mut Object| {
            object.header == Header::Valid
                && object.description.guid == description.guid
                && object.bytes >= committed
        };
        let Some(object) = object.filter(same) else {
            return Ok(Rewritten::Gone { reason: "no such header".to_owned() });
        };
        if object.description.epoch >= description.epoch {
            return Err(format!("{:?} becomes {description:?}", object.description));
        }
        object.description = description;
        Ok(Rewritten::Written)
    }

    /// Writes a grant into a record.
    ///
    /// # Errors
    ///
    /// A place that has one already, or a session without a record.
    pub fn store_grant(&mut self, session: SessionId, grant: Grant) -> Result<(), String> {
        let Some(record) = self.records.get_mut(&session) else {
            return Err(format!("a grant for session {session}, which is none"));
        };
        match record.grants.insert(grant.place, grant) {
            None => Ok(()),
            Some(before) => Err(format!("{before:?} is overwritten by {grant:?}")),
        }
    }

    /// Frees a place of a record.
    ///
    /// # Errors
    ///
    /// A place that has no grant.
    pub fn revoke_grant(&mut self, session: SessionId, place: u32) -> Result<(), String> {
        let record = self.records.get_mut(&session);
        match record.and_then(|record| record.grants.remove(&place)) {
            Some(_) => Ok(()),
            None => Err(format!("place {place} of session {session} has no grant")),
        }
    }

    /// Stores a generation word.
    ///
    /// # Errors
    ///
    /// A word that does not move, or a session without an object.
    pub fn publish(&mut self, session: SessionId, generation: u64) -> Result<(), String> {
        match self.sessions.insert(session, generation) {
            Some(before) if before != generation => Ok(()),
            // That it has ended each broker says of what it finds.
            Some(u64::MAX) => Ok(()),
            before => Err(format!("session {session} at {before:?} is told {generation}")),
        }
    }

    /// Whether the process of a session lives.
    pub fn lives(&self, record: &SessionRecord) -> bool {
        lives(&self.processes, record)
    }

    /// What a broker finds that starts now. Objects of sessions that nobody had are removed.
    pub fn found(&mut self) -> Started {
        self.prepared.clear();
        let records = &self.records;
        self.sessions.retain(|session, _| records.contains_key(session));
        let believed = self.records.values().map(|Record { record, grants }| BelievedSession {
            record: record.clone(),
            generation: self.sessions.get(&record.session).copied().unwrap_or(0),
            grants: grants.values().copied().collect(),
            lives: self.lives(record),
        });
        let found = self.stores.iter().filter_map(|(&daemon, store)| {
            let served = self.locks.contains(&daemon);
            if store.is_empty() && !served {
                return None;
            }
            let Headers { held, damaged } = self.headers(daemon);
            let content = if served { FoundContent::Expected } else { FoundContent::Read(held) };
            let squatted = self.squatted.iter().filter(|(of, _)| *of == daemon);
            let blocks = store.keys().copied().chain(squatted.map(|(_, block)| *block)).collect();
            Some(FoundDaemon { daemon, blocks, damaged, content })
        });
        Started {
            sessions: believed.collect(),
            daemons: found.collect(),
            tables: self.found_tables(),
            draining: self.draining.clone(),
        }
    }
}

/// Whether the process of a record is there: who has its pid later started after it lived.
fn lives(processes: &BTreeMap<u32, u64>, record: &SessionRecord) -> bool {
    processes.get(&record.pid).is_some_and(|started| *started <= record.lived_at)
}

fn named_as(region: &Region, name: &RegionName) -> bool {
    region.volume == name.volume && region.name == name.name
}

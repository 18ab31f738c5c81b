//! What the store does about the requests of the broker.
//!
//! # Invariants
//!
//! 1. A request that may be repeated is: what was done already is answered as done.
//! 2. A refusal has the numbers behind it, and what it refuses has changed nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, Role};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonNotice, DaemonRequest, PoolPlace};
use dmce_abi::wire::{Refusal, Reply};
use dmce_config::Bytes;
use dmce_shm::header::{BlockHeader, HeaderError};
use dmce_shm::session::SessionIdentity;
use dmce_sys::crash::{Point, point};
use dmce_sys::object::{self, ObjectError};
use tracing::warn;

use super::adopt;
use super::block::{self, Spare};
use super::commit::{CommitError, Growth, Halted};
use super::copied::Part;
use super::ledger::{Promise, Purpose, Shortage};
use super::work::{Done, Job, Remains};
use super::{Begun, Condition, Held, Store};

/// The largest object that a block can be, by the widest cell that a layout can have.
const BLOCK_BYTES_MAX: u64 = 1 << 48;

impl Store {
    /// Begins with a request. [`DaemonRequest::Settled`], [`DaemonRequest::Taken`],
    /// [`DaemonRequest::Rewritten`] and [`DaemonRequest::Seat`] ask for nothing and are done.
    pub fn begin(&mut self, request: DaemonRequest) -> Begun {
        let begun = match request {
            DaemonRequest::Create { description, committed } => self.create(description, committed),
            DaemonRequest::Grow { block, committed } => self.grow(block, committed),
            DaemonRequest::Destroy { block } => self.destroy(block),
            DaemonRequest::Taken { place, block, committed } => {
                self.taken(place, block, committed);
                Ok(Begun::Answered(Ok(DaemonAnswer::Done)))
            }
            DaemonRequest::Rewritten { description } => {
                let block = description.block;
                self.copied.close(block);
                self.rewritten(description);
                self.raise_header(block);
                Ok(Begun::Answered(Ok(DaemonAnswer::Done)))
            }
            DaemonRequest::Seat { session, guid, cell_bits } => {
                self.sit_down(SessionIdentity { session, guid }, cell_bits);
                Ok(Begun::Answered(Ok(DaemonAnswer::Done)))
            }
            DaemonRequest::Sync { block, guid, cell, bytes } => {
                Ok(Begun::Answered(self.sync(Part { block, guid, cell, bytes })))
            }
            DaemonRequest::Scrub { block, guid, cell, bytes } => {
                Ok(Begun::Answered(self.scrub(Part { block, guid, cell, bytes })))
            }
            DaemonRequest::Sense => self.sense().map(|answer| Begun::Answered(Ok(answer))),
            DaemonRequest::Settled => Ok(Begun::Answered(Ok(DaemonAnswer::Done))),
            _ => Err(Refusal::new(Status::Unsupported, "this daemon does not know the request")),
        };
        match begun {
            Ok(Begun::Working(job)) if job.is_brief() => {
                let done = job.run(&self.folder, &AtomicBool::new(false));
                Begun::Answered(self.finish(done, true))
            }
            Ok(begun) => begun,
            Err(refusal) => Begun::Answered(Err(refusal)),
        }
    }

    /// Takes in what came of a job. If nobody waits for it any more (`wanted` is false), an object
    /// that was made is removed again: nobody was told of it. What was added to a block stays: the
    /// next broker may have read its size from the object, and have told it to clients.
    pub fn finish(&mut self, done: Done, wanted: bool) -> Reply<DaemonAnswer> {
        match done {
            Done::Made { description, result, promise } => {
                self.finish_create(*description, result, promise, wanted)
            }
            Done::Extended { block, data, growth, result, promise } => {
                let (kept, result) = keep(&data, growth, result, wanted);
                self.finish_grow((block, data), Growth { to: kept, ..growth }, result, promise)
            }
            Done::Cleared { remains, result } => {
                let Remains { block, data } = remains;
                if let Err(error) = result {
                    // Tried again by and by; the memory counts until it is gone.
                    self.remains.push(remains);
                    return Err(refusal_of_object(block, &error));
                }
                self.ledger.refund(data.bytes);
                Ok(DaemonAnswer::Done)
            }
        }
    }

    fn create(&mut self, description: BlockDescription, committed: u64) -> Result<Begun, Refusal> {
        let block = description.block;
        description
            .validate(BLOCK_BYTES_MAX)
            .map_err(|error| Refusal::new(Status::Invalid, error.to_string()))?;
        check_bytes(block, committed, description.bytes_max)?;
        if let Some(held) = self.blocks.get(&block) {
            return held.repeated(&description).map(|answer| Begun::Answered(Ok(answer)));
        }
        let is_copy = description.membership.role == Role::Syncing;
        let purpose = if is_copy { Purpose::Copy } else { Purpose::Block };
        let promise = self.promise(block, committed, purpose)?;
        Ok(Begun::Working(Job::Make { description: Box::new(description), committed, promise }))
    }

    fn finish_create(
        &mut self,
        description: BlockDescription,
        spare: Result<Spare, CommitError>,
        promise: Promise,
        wanted: bool,
    ) -> Reply<DaemonAnswer> {
        match self.publish(description, spare, wanted) {
            Ok((held, spare)) => {
                self.ledger.keep(promise);
                let (block, committed) = (held.header.description.block, held.data.bytes);
                if !spare.has_pages() {
                    let rest = Growth { from: 0, to: committed };
                    self.prepare(block, spare.into_fd(), rest, &held.gone);
                }
                self.blocks.insert(block, held);
                Ok(DaemonAnswer::Committed { committed })
            }
            Err(refusal) => {
                self.ledger.release(promise);
                Err(refusal)
            }
        }
    }

    fn publish(
        &self,
        description: BlockDescription,
        spare: Result<Spare, CommitError>,
        wanted: bool,
    ) -> Result<(Held, Spare), Refusal> {
        let block = description.block;
        let spare = spare.map_err(|error| refusal_of_commit(block, &error))?;
        if !wanted {
            spare.discard(&self.folder).map_err(|error| refusal_of_object(block, &error))?;
            return Err(refusal_of_commit(block, &CommitError::Cancelled));
        }
        let header = BlockHeader { daemon: self.folder.daemon(), description };
        let data = block::publish(&self.folder, &spare, &header)
            .map_err(|error| refusal_of_header(block, &error))?;
        Ok((Held::new(header, data), spare))
    }

    fn grow(&mut self, block: BlockId, committed: u64) -> Result<Begun, Refusal> {
        // First, so that a block that was made larger or lost is not built upon.
        let data = self.check(block).map_err(|error| refusal_of_object(block, &error))?;
        let held = self.blocks.get(&block).ok_or_else(|| no_such_block(block))?;
        let Some(data) = data else {
            return Err(lost(block));
        };
        check_bytes(block, committed, held.header.description.bytes_max)?;
        let growth = Growth { from: held.data.bytes, to: committed };
        if growth.bytes() == 0 {
            let committed = held.data.bytes;
            return Ok(Begun::Answered(Ok(DaemonAnswer::Committed { committed })));
        }
        let promise = self.promise(block, growth.bytes(), Purpose::Block)?;
        let held = self.blocks.get_mut(&block).expect("it was there a moment ago");
        held.condition = Condition::Growing;
        self.growing += 1;
        Ok(Begun::Working(Job::Extend { block, data, growth, promise }))
    }

    /// A block has `growth`, which may be less than was asked for, as `result` says.
    fn finish_grow(
        &mut self,
        (block, data): (BlockId, OwnedFd),
        growth: Growth,
        result: Result<(), CommitError>,
        promise: Promise,
    ) -> Reply<DaemonAnswer> {
        self.growing -= 1;
        let held = self.blocks.get_mut(&block).expect("a block that grows stays");
        held.condition = Condition::Whole;
        held.data.bytes = growth.to;
        let gone = Arc::clone(&held.gone);
        self.ledger.keep_part(promise, growth.bytes());
        if growth.bytes() > 0 {
            point(Point::GrowthCommitted);
            self.prepare(block, data, growth, &gone);
        }
        result.map_err(|error| refusal_of_commit(block, &error))?;
        Ok(DaemonAnswer::Committed { committed: growth.to })
    }

    fn destroy(&mut self, block: BlockId) -> Result<Begun, Refusal> {
        // Whoever made it larger is to be known before the evidence goes.
        self.check_and_log(block);
        let Some(held) = self.blocks.get(&block) else {
            // The broker may have made it of what it was lent, and have thought us dead.
            adopt::remove_unknown(&self.folder, block)
                .map_err(|error| refusal_of_object(block, &error))?;
            return Ok(Begun::Answered(Ok(DaemonAnswer::Done)));
        };
        self.folder
            .unlink(ObjectKind::Header(block.get()))
            .map_err(|error| refusal_of_object(block, &error))?;
        point(Point::HeaderUnlinked);
        held.gone.store(true, Ordering::Relaxed);
        let remains = Remains { block, data: held.data };
        self.blocks.remove(&block);
        self.open_objects.close(block);
        self.copied.close(block);
        Ok(Begun::Working(Job::Clear { remains }))
    }

    /// The broker has made a block of what it was lent, or found that it cannot.
    fn taken(&mut self, place: PoolPlace, block: BlockId, committed: u64) {
        self.refill_due = true;
        let Some(spare) = self.pool.take(place) else {
            return warn!(%block, place = place.0, "nothing was lent from this place");
        };
        if self.blocks.contains_key(&block) {
            return warn!(%block, "a block that is there was made again");
        }
        if let Err(error) = self.take_made(spare, block, committed) {
            warn!(%block, %error, "what the broker made is found at the next report");
        }
    }

    fn take_made(
        &mut self,
        spare: Spare,
        block: BlockId,
        committed: u64,
    ) -> Result<(), ObjectError> {
        let mut adopted = adopt::adopt_one(&self.folder, block)?;
        let Some((_, data)) = adopted.blocks.get_mut(&block) else {
            self.take_in(adopted);
            if spare.has_its_name(&self.folder)? {
                return spare.discard(&self.folder);
            }
            if committed > 0 {
                // It was whole when it was granted. Who removed it did so before this daemon knew
                // it, so its watch said nothing.
                warn!(%block, "a block was lost before it was known here");
                self.notices.push(DaemonNotice::Lost { block });
            }
            return Ok(());
        };
        let found = data.bytes;
        if data.inode == spare.inode() {
            // Its client may have changed the size already: what counts is what was granted.
            data.bytes = committed.min(spare.bytes());
        }
        self.take_in(adopted);
        if found != committed {
            self.check_and_log(block);
        }
        let gone = self.blocks.get(&block).map(|held| Arc::clone(&held.gone));
        if let Some(gone) = gone.filter(|_| !spare.has_pages()) {
            self.prepare(block, spare.into_fd(), Growth { from: 0, to: committed }, &gone);
        }
        Ok(())
    }

    fn sense(&mut self) -> Result<DaemonAnswer, Refusal> {
        let headroom = self
            .ledger
            .headroom(self.folder.dir())
            .map_err(|error| Refusal::new(Status::Io, error.to_string()))?;
        Ok(DaemonAnswer::Sensed { pool: self.pool.bytes(), headroom })
    }

    /// Bytes for a block that are to be committed.
    fn promise(
        &mut self,
        block: BlockId,
        bytes: u64,
        purpose: Purpose,
    ) -> Result<Promise, Refusal> {
        self.ledger
            .promise(bytes, purpose, self.folder.dir())
            .map_err(|error| refusal_of_commit(block, &error))
    }
}

impl Held {
    /// The answer to a request to create what is there.
    fn repeated(&self, description: &BlockDescription) -> Reply<DaemonAnswer> {
        let ours = &self.header.description;
        if ours.guid != description.guid {
            let (block, guid) = (ours.block, ours.guid);
            let text = format!("block {block} is there already, with the GUID {guid}");
            return Err(Refusal::new(Status::Exists, text));
        }
        if description.membership.role == Role::Syncing && ours != description {
            // What it was a copy of may have been written since.
            let text = format!("block {} is there already, as another copy", ours.block);
            return Err(Refusal::new(Status::Exists, text));
        }
        match self.condition {
            condition if condition.is_lost() => Err(lost(ours.block)),
            _ => Ok(DaemonAnswer::Committed { committed: self.data.bytes }),
        }
    }
}

/// What a block keeps of a growth: all that is committed, unless that is less than was asked for,
/// and whoever asked is there to be told that it is nothing.
fn keep(
    data: &OwnedFd,
    growth: Growth,
    result: Result<(), Halted>,
    wanted: bool,
) -> (u64, Result<(), CommitError>) {
    let Err(Halted { at, error }) = result else { return (growth.to, Ok(())) };
    if !wanted {
        return (at, Err(error));
    }
    match object::truncate(data.as_fd(), growth.from) {
        Ok(()) => (growth.from, Err(error)),
        Err(error) => (at, Err(error.into())),
    }
}

fn check_bytes(block: BlockId, committed: u64, bytes_max: u64) -> Result<(), Refusal> {
    if committed.is_multiple_of(PAGE_BYTES) && (PAGE_BYTES..=bytes_max).contains(&committed) {
        return Ok(());
    }
    let (page, max) = (Bytes(PAGE_BYTES).exact(), Bytes(bytes_max).exact());
    let text = format!("block {block} cannot have {committed} bytes: whole {page} up to {max}");
    Err(Refusal::new(Status::Invalid, text))
}

pub(super) fn no_such_block(block: BlockId) -> Refusal {
    Refusal::new(Status::NotFound, format!("there is no block {block}"))
}

pub(super) fn lost(block: BlockId) -> Refusal {
    Refusal::new(Status::Lost, format!("block {block} has lost its memory"))
}

fn refusal_of_shortage(block: BlockId, shortage: &Shortage) -> Refusal {
    Refusal::new(Status::NoSpace, format!("block {block}: {shortage}"))
}

fn refusal_of_object(block: BlockId, error: &ObjectError) -> Refusal {
    let status = match error {
        ObjectError::NoSpace { .. } => Status::NoSpace,
        ObjectError::Exists { .. } => Status::Exists,
        _ => Status::Io,
    };
    Refusal::new(status, format!("block {block}: {error}"))
}

fn refusal_of_commit(block: BlockId, error: &CommitError) -> Refusal {
    match error {
        CommitError::Shortage(shortage) => refusal_of_shortage(block, shortage),
        CommitError::Object(error) => refusal_of_object(block, error),
        CommitError::Cancelled => {
            Refusal::new(Status::Unavailable, format!("block {block}: {error}"))
        }
    }
}

fn refusal_of_header(block: BlockId, error: &HeaderError) -> Refusal {
    match error {
        HeaderError::Object(error) => refusal_of_object(block, error),
        HeaderError::Unfit { .. } => Refusal::new(Status::Invalid, error.to_string()),
        other => Refusal::new(Status::Io, format!("block {block}: {other}")),
    }
}

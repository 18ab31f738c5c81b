//! What a store does of itself: checks its blocks, keeps the pool full, has pages prepared.
//!
//! # Invariants
//!
//! 1. One call looks at a bounded number of blocks, and the next goes on where it ended.
//! 2. A loss is told once. An excess is told each time, since each time it was cut back.
//! 3. Nothing is committed here: what has to be is a [`Task`] with its promise.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dmce_abi::block::{BlockDescription, BlockId};
use dmce_abi::name::ObjectKind;
use dmce_abi::wire::daemon::DaemonNotice;
use dmce_sys::crash::{Point, point};
use dmce_sys::object::ObjectError;
use dmce_sys::watch::Removals;
use tracing::{debug, warn};

use super::adopt;
use super::block::{self, Data};
use super::check::{self, Finding};
use super::commit::Growth;
use super::folder::Found;
use super::ledger::Purpose;
use super::prepare::{Preparation, Task, TaskDone};
use super::work::Remains;
use super::{Condition, Store};

/// Blocks that one tick looks at.
const CHECKS_PER_TICK: usize = 256;

/// Blocks that are short and are reported: each of them has to be called lost after that.
const SHORT_TOLD_MAX: usize = 1024;

impl Store {
    /// Looks at the next blocks, at what could not be removed, and at the pool.
    pub fn tick(&mut self) {
        for block in self.next_to_check() {
            self.check_and_log(block);
            self.checked = Some(block);
        }
        self.remove_remains();
        self.refill_due = true;
    }

    /// Looks at what was removed by somebody else.
    pub fn removed(&mut self, removals: &Removals) {
        for name in &removals.names {
            match self.folder.kind_of(name) {
                Some(ObjectKind::Data(id)) => {
                    if let Ok(block) = BlockId::try_from(id) {
                        self.check_and_log(block);
                    }
                }
                Some(ObjectKind::Header(id)) => {
                    if let Ok(block) = BlockId::try_from(id) {
                        self.restore_header(block);
                    }
                }
                _ => {}
            }
        }
    }

    /// Has as many objects made as the pool is short of, and there is room for.
    pub fn refill(&mut self) {
        while self.pool.is_short() {
            let bytes = self.pool.object_bytes();
            match self.ledger.promise(bytes, Purpose::Upkeep, self.folder.dir()) {
                Ok(promise) => {
                    self.pool.begin();
                    self.tasks.push(Task::Refill { bytes, promise });
                }
                Err(error) => {
                    debug!(%error, "the pool is not filled");
                    return;
                }
            }
        }
    }

    /// Takes in what came of a task.
    pub fn finish_task(&mut self, done: TaskDone) {
        match done {
            TaskDone::Refilled { result, promise } => {
                self.ledger.release(promise);
                if let Err(error) = &result {
                    debug!(%error, "a pool object could not be made");
                }
                self.pool.end(result.ok());
            }
            TaskDone::Prepared { block, gone, promise } => {
                if let Some(promise) = promise {
                    self.ledger.release(promise);
                }
                let same =
                    self.blocks.get_mut(&block).filter(|held| Arc::ptr_eq(&held.gone, &gone));
                if let Some(held) = same
                    && held.condition == Condition::Mending
                {
                    held.condition = Condition::Whole;
                }
            }
        }
    }

    /// Compares a block with its object, and says what is to be said. The object, unless there is
    /// no such block or it is lost.
    pub(super) fn check(&mut self, block: BlockId) -> Result<Option<OwnedFd>, ObjectError> {
        let Some(held) = self.blocks.get_mut(&block) else { return Ok(None) };
        // A job is at the size at this moment; a loss is told once.
        if held.condition == Condition::Growing || held.condition.is_lost() {
            return Ok(None);
        }
        match check::examine(&self.folder, block, held.data)? {
            Finding::Whole(data) => Ok(Some(data.into_fd())),
            Finding::Excess { data, bytes } => {
                self.notice_excess(block, bytes);
                Ok(Some(data.into_fd()))
            }
            Finding::Holes { data, missing } => {
                let data = data.into_fd();
                if held.condition == Condition::Whole {
                    self.mend(block, &data, missing);
                }
                Ok(Some(data))
            }
            Finding::Lost { reason } => {
                held.condition = Condition::Lost;
                warn!(%block, %reason, "a block is lost");
                // The broker takes its memory for free from now on.
                self.open_objects.close(block);
                self.copied.close(block);
                self.notices.push(DaemonNotice::Lost { block });
                Ok(None)
            }
        }
    }

    pub(super) fn notice_excess(&mut self, block: BlockId, bytes: u64) {
        warn!(%block, bytes, "a client made a block larger; it was cut back");
        self.notices.push(DaemonNotice::Excess { block, bytes });
    }

    /// Has pages prepared. The newest come first: their owner is about to use them.
    pub(super) fn prepare(
        &mut self,
        block: BlockId,
        data: OwnedFd,
        rest: Growth,
        gone: &Arc<AtomicBool>,
    ) {
        let gone = Arc::clone(gone);
        self.tasks.push(Task::Prepare(Preparation { block, data, rest, gone, promise: None }));
    }

    /// Has the pages of a block brought back that a client has given away, so that those who share
    /// the block find them.
    fn mend(&mut self, block: BlockId, data: &OwnedFd, missing: u64) {
        let Some(held) = self.blocks.get_mut(&block) else { return };
        let Ok(data) = data.try_clone() else { return };
        match self.ledger.promise(missing, Purpose::Upkeep, self.folder.dir()) {
            Ok(promise) => {
                held.condition = Condition::Mending;
                let rest = Growth { from: 0, to: held.data.bytes };
                let (gone, promise) = (Arc::clone(&held.gone), Some(promise));
                self.tasks.push(Task::Prepare(Preparation { block, data, rest, gone, promise }));
            }
            Err(error) => {
                debug!(%block, missing, %error, "pages stay away that a client gave back");
            }
        }
    }

    /// Writes the header of a block again that somebody removed: without it the block would not be
    /// adopted.
    fn restore_header(&mut self, block: BlockId) {
        let Some(held) = self.blocks.get(&block) else { return };
        match self.folder.look(ObjectKind::Header(block.get())) {
            Ok(Found::Missing) => {
                warn!(%block, "the header of a block was removed; it is written again");
                match block::write_header(&self.folder, &held.header) {
                    Ok(()) => point(Point::HeaderRestored),
                    Err(error) => warn!(%block, %error, "the header of a block is gone"),
                }
            }
            Ok(_) => {}
            Err(error) => warn!(%block, %error, "the header of a block was not looked at"),
        }
    }

    /// The broker has written a header anew, as it does when the copies of a block change.
    pub(super) fn rewritten(&mut self, description: BlockDescription) {
        let held = self.blocks.get_mut(&description.block);
        let own = held.map(|held| &mut held.header.description);
        let is_newer = |own: &&mut BlockDescription| {
            own.guid == description.guid && own.epoch < description.epoch
        };
        if let Some(own) = own.filter(is_newer) {
            *own = description;
        }
    }

    /// Writes the header of a block again that says less than the broker has written: somebody
    /// removed that one, and this daemon wrote what it knew by then.
    pub(super) fn raise_header(&mut self, block: BlockId) {
        let Some(held) = self.blocks.get(&block) else { return };
        let known = &held.header.description;
        let is_older = |own: &BlockDescription| own.guid == known.guid && own.epoch < known.epoch;
        match adopt::header_of(&self.folder, block) {
            Ok(Some(found)) if is_older(&found.description) => {
                warn!(%block, epoch = found.description.epoch, "the header of a block is too old");
                if let Err(error) = block::update_header(&self.folder, &held.header) {
                    warn!(%block, %error, "the header of a block stays too old");
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => self.restore_header(block),
            Err(error) => warn!(%block, %error, "the header of a block is not as it was"),
        }
    }

    /// Takes in what a broker has written into headers that this daemon was not told of. One that
    /// cannot be read stays what it was.
    pub(super) fn read_headers_again(&mut self) {
        for block in self.blocks.keys().copied().collect::<Vec<_>>() {
            match adopt::header_of(&self.folder, block) {
                Ok(Some(header)) => self.rewritten(header.description),
                Ok(None) => self.restore_header(block),
                Err(error) => warn!(%block, %error, "the header of a block is not as it was"),
            }
        }
    }

    /// Decides anew about blocks that are lost, as a daemon that starts does: a broker that does
    /// not know of them would never have removed what is left. Those whose data are gone are
    /// forgotten; those that are short are reported, and called lost again.
    pub(super) fn look_at_lost(&mut self) -> Result<(), ObjectError> {
        let lost = self.blocks.iter().filter(|(_, held)| held.condition.is_lost());
        let lost: Vec<(BlockId, Data)> = lost.map(|(block, held)| (*block, held.data)).collect();
        let mut told = 0;
        for (block, data) in lost {
            let found = self.folder.look(ObjectKind::Data(block.get()))?;
            if matches!(found, Found::Missing) {
                self.forget_gone(block)?;
                continue;
            }
            // Its bytes are gone also where somebody has made it as long again.
            let is_short = matches!(&found, Found::Own(own)
                if own.stat.inode == data.inode && own.stat.bytes < data.bytes);
            let is_told = is_short && told < SHORT_TOLD_MAX;
            if let Some(held) = self.blocks.get_mut(&block) {
                held.condition = if is_told { Condition::Short } else { Condition::Lost };
            }
            if is_told {
                told += 1;
                self.notices.push(DaemonNotice::Lost { block });
            }
        }
        Ok(())
    }

    /// Forgets a block whose data were removed, with its header, if that tells nothing of others.
    fn forget_gone(&mut self, block: BlockId) -> Result<(), ObjectError> {
        let is_alone = |held: &super::Held| !held.header.description.has_locks();
        if self.blocks.get(&block).is_none_or(is_alone) {
            self.folder.unlink(ObjectKind::Header(block.get()))?;
        }
        self.open_objects.close(block);
        self.copied.close(block);
        if let Some(held) = self.blocks.remove(&block) {
            held.gone.store(true, Ordering::Relaxed);
            self.ledger.refund(held.data.bytes);
        }
        Ok(())
    }

    /// Tries again to remove what could not be removed.
    fn remove_remains(&mut self) {
        for remains in std::mem::take(&mut self.remains) {
            let Remains { block, data } = remains;
            match block::clear(&self.folder, block, data.inode) {
                Ok(()) => self.ledger.refund(data.bytes),
                Err(error) => {
                    debug!(%block, %error, "the rest of a block cannot be removed yet");
                    self.remains.push(remains);
                }
            }
        }
    }

    pub(super) fn check_and_log(&mut self, block: BlockId) {
        if let Err(error) = self.check(block) {
            warn!(%block, %error, "a block was not looked at");
        }
    }

    fn next_to_check(&self) -> Vec<BlockId> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let ids = |from, to| self.blocks.range((from, to)).map(|(block, _)| *block);
        let Some(checked) = self.checked else {
            return ids(Unbounded, Unbounded).take(CHECKS_PER_TICK).collect();
        };
        let behind = ids(Excluded(checked), Unbounded);
        behind.chain(ids(Unbounded, Included(checked))).take(CHECKS_PER_TICK).collect()
    }
}

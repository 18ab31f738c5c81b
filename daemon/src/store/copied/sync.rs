//! This daemon's copy of a block is syncing: it gets what the good ones have.
//!
//! ```text
//!   Sync -> batch by batch: page locks -> first good copy -> own copy -> compared -> locks back
//! ```
//!
//! # Invariants
//!
//! 1. Whoever writes the block stores to this copy as well: what is copied here and not written
//!    since is what the good copies have.
//! 2. Nobody is waited for: where a page is held, what was done until then is the answer.
//! 3. A page that is lost is left out: who makes it whole writes all of it, to this copy too.

use dmce_abi::Status;
use dmce_abi::block::{BlockId, DaemonId, Guid};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::daemon::{DaemonAnswer, SYNC_BYTES_MAX};
use dmce_abi::wire::{Refusal, Reply};
use dmce_shm::copies::Batch;
use dmce_shm::lock::LockError;
use tracing::debug;

use super::view::Copy;
use super::write::store;
use super::{Desk, Failure, Table};
use crate::store::Store;

/// What is to be synced.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The block.
    pub block: BlockId,
    /// Its GUID.
    pub guid: Guid,
    /// Where the part begins.
    pub cell: u64,
    /// Bytes of it.
    pub bytes: u32,
}

impl Store {
    /// Brings what the good copies have to a part of this daemon's, as far as nobody has its pages.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`]: no copy of this daemon is syncing there.
    pub(in crate::store) fn sync(&mut self, part: Part) -> Reply<DaemonAnswer> {
        let Part { block, guid, .. } = part;
        let own = self.folder.daemon();
        let is_it = self.blocks.get(&block).is_some_and(|b| b.header.description.guid == guid);
        if !is_it {
            return Err(not_syncing(block));
        }
        let failure = match self.at_desk(block, |desk| desk.sync(own, part)) {
            // Whoever locked by another table may have written meanwhile.
            Ok((_, Table::Gone)) => return Ok(DaemonAnswer::Synced { bytes: 0 }),
            Ok((Ok(bytes), Table::Whole)) => return Ok(DaemonAnswer::Synced { bytes }),
            Ok((Err(failure), Table::Whole)) | Err(failure) => failure,
        };
        match failure {
            Failure::Refused(refusal) => return Err(refusal),
            Failure::Unseated => self.ask_for_a_seat(),
            Failure::Damaged(text) => {
                self.copied.views.remove(&block);
                self.tell_damaged(block, &text);
            }
            failure => debug!(%block, ?failure, "nothing is synced now"),
        }
        Ok(DaemonAnswer::Synced { bytes: 0 })
    }
}

impl Desk<'_> {
    /// How many bytes of a part are those of the first good copy.
    fn sync(&self, own: DaemonId, part: Part) -> Result<u32, Failure> {
        let Part { block, cell, bytes, .. } = part;
        let target = self.view.syncing().filter(|copy| copy.daemon == own);
        let target = target.ok_or_else(|| Failure::Refused(not_syncing(block)))?;
        let until = cell.saturating_add(bytes.min(SYNC_BYTES_MAX).into()).min(self.view.committed);
        let (mut done, mut by_pages) = (cell, false);
        while done < until {
            let page_until = until.min((done / PAGE_BYTES + 1) * PAGE_BYTES);
            let until = if by_pages { page_until } else { until };
            let batch = Batch::first_of(done, until, self.view.committed);
            match self.writer(block).hold(batch, || self.copy_to(target, batch)) {
                Ok(Ok(())) => done += batch.bytes,
                Ok(Err(failure)) if done == cell => return Err(failure),
                Err(LockError::Lost) if by_pages => done += batch.bytes,
                Err(LockError::Lost) => by_pages = true,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok(u32::try_from(done.saturating_sub(cell)).expect("no more than was asked for"))
    }

    /// Brings what the first good copy has to another. The pages are locked.
    fn copy_to(&self, target: &Copy, batch: Batch) -> Result<(), Failure> {
        // Whoever has written without this copy was told after this daemon was.
        if self.seat.map.has_moved() {
            return Err(Failure::Busy("its copies have changed a moment ago".to_owned()));
        }
        let mut data = vec![0; usize::try_from(batch.bytes).expect("a batch is some pages")];
        let damaged = |error: super::view::Gone| Failure::Damaged(error.to_string());
        self.view.first().read(batch.cell, &mut data).map_err(damaged)?;
        if store(target, batch.cell, &data).map_err(damaged)? {
            return Ok(());
        }
        Err(Failure::Busy("what was stored reads back different".to_owned()))
    }
}

fn not_syncing(block: BlockId) -> Refusal {
    let text = format!("no copy of block {block}");
    Refusal::new(Status::NotFound, text)
}

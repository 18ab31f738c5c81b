//! This daemon's copy of a block is syncing: it gets what the good ones have.
//!
//! ```text
//!   Sync -> both are mapped -> batch by batch: page locks -> first good copy -> own copy ->
//!           compared -> locks back
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
use dmce_abi::wire::daemon::DaemonAnswer;
use dmce_abi::wire::{Refusal, Reply};
use dmce_shm::copies::Batch;
use dmce_shm::lock::LockError;
use dmce_sys::crash::{Point, point};
use tracing::debug;

use super::view::Gone;
use super::window::{Shut, Window};
use super::{Desk, Failure, Table};
use crate::store::Store;

/// What is to be synced, or scrubbed.
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
        self.put_off(block, failure)?;
        Ok(DaemonAnswer::Synced { bytes: 0 })
    }

    /// The broker is to ask again, and hears of it if something is to be done before that.
    pub(super) fn put_off(&mut self, block: BlockId, failure: Failure) -> Result<(), Refusal> {
        match failure {
            Failure::Refused(refusal) => return Err(refusal),
            Failure::Unseated => self.ask_for_a_seat(),
            Failure::Damaged(text) => {
                self.copied.views.remove(&block);
                self.tell_damaged(block, &text);
            }
            failure => {
                debug!(%block, ?failure, "nothing is done now");
                self.copied.forget_old(block);
            }
        }
        Ok(())
    }
}

impl Desk<'_> {
    /// How many bytes of a part are those of the first good copy.
    fn sync(&self, own: DaemonId, part: Part) -> Result<u32, Failure> {
        let Part { block, cell, bytes, .. } = part;
        let target = self.view.syncing().filter(|copy| copy.daemon == own);
        let target = target.ok_or_else(|| Failure::Refused(not_syncing(block)))?;
        let committed = self.view.committed;
        if cell >= committed || bytes == 0 {
            return Ok(0);
        }
        let until = (cell + u64::from(bytes)).min(Window::end_of(cell)).min(committed);
        let window = Window::on(cell..until, [self.view.source(), target])?;
        // Until where it goes page by page, because one of them cannot be had.
        let (mut done, mut by_pages) = (cell, cell);
        while done < until {
            let page_until = until.min((done / PAGE_BYTES + 1) * PAGE_BYTES);
            let is_page = done < by_pages;
            let batch = Batch::first_of(done, if is_page { page_until } else { until }, committed);
            let carry = || self.carry(&window, batch);
            match self.writer(block).hold(batch, carry) {
                Ok(Ok(())) => done += batch.bytes,
                Ok(Err(failure)) if done == cell => return Err(failure),
                Err(LockError::Lost) if is_page => done += batch.bytes,
                Err(_) if !is_page => by_pages = done + batch.bytes,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        window.confirm()?;
        Ok(u32::try_from(done - cell).expect("no more than was asked for"))
    }

    /// Brings what the first good copy has to the one that is syncing. The pages are locked.
    fn carry(&self, by: &Window<'_>, batch: Batch) -> Result<(), Failure> {
        // Whoever has written without this copy had the locks, as those that `write` knows.
        if self.has_moved() {
            return Err(Failure::Busy("its copies have changed a moment ago".to_owned()));
        }
        if by.carry(batch)? {
            point(Point::SyncStored);
            return Ok(());
        }
        Err(Failure::Busy("what was stored reads back different".to_owned()))
    }
}

impl From<Shut> for Failure {
    fn from(shut: Shut) -> Self {
        match shut {
            Shut::Gone(gone) => gone.into(),
            Shut::Map(error) => Self::Busy(error.to_string()),
        }
    }
}

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Self {
        Self::Damaged(gone.to_string())
    }
}

fn not_syncing(block: BlockId) -> Refusal {
    let text = format!("no copy of block {block}");
    Refusal::new(Status::NotFound, text)
}

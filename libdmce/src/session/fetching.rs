//! The blocks of the table whose bytes are here, and those that are to be fetched.
//!
//! ```text
//!   absent --- fetched ---> mapped, behind windows, with copies
//!     ^ |                      |
//!     | +-- a harmed table -+  +-- cannot be reached ---> lost, reported
//!     +---------------------+--+-- changed, or its descriptor is wanted --> absent
//! ```
//!
//! # Invariants
//!
//! 1. What the broker says of a block is checked before it is used.
//! 2. A block that holds descriptors is among the holders, once for each.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{BlockInfo, ClientReply, ClientRequest, Fetch};
use dmce_sys::clock::monotonic_ms;

use super::core::{Core, busy, unknown};
use super::holders::Holders;
use crate::block::{Backing, Block, check_info};
use crate::error::Error;
use crate::reach::given::Given;
use crate::reach::ways::Unreached;
use crate::table::Retired;

/// How long until a block is looked at again that the broker was told of.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

impl Core {
    /// Fetches a block whose bytes are not here.
    ///
    /// # Errors
    ///
    /// As [`Core::ask`]; [`Status::Address`] if the session has it no more; [`Status::NoMem`].
    pub(crate) fn fetch(&self, id: BlockId) -> Result<(), Error> {
        if let Some(route) = self.ways.route() {
            return self.fetch_way(id, route);
        }
        let _turn = self.changing.take(self.deadline()).ok_or_else(busy)?;
        let Some(absent) = self.table.find(id) else { return Err(unknown(id)) };
        if !matches!(absent.backing, Backing::Absent) {
            return Ok(());
        }
        self.limit_descriptors();
        let fetch = Fetch { block: id, writable: absent.writable };
        let (reply, fds) = match self.ask(&ClientRequest::Fetch(fetch)) {
            Err(error) if error.status() == Status::Address => {
                self.retire(self.table.remove_same(&absent));
                return Err(error);
            }
            Err(error) if error.status() == Status::Denied && self.fetch_to_read(&absent) => {
                return Ok(());
            }
            answer => answer?,
        };
        let ClientReply::Fetched(info) = reply else {
            return Err(Error::unexpected_reply("Fetch"));
        };
        check_info(&info, self.layout, self.ready.block_ids)?;
        let given = Given::of(&info, fds)?;
        match self.ways.admit(&info, given, self.join(id, 0)?.to_raw()) {
            Ok(backing) => self.put_fetched(&absent, &info, backing),
            Err(Unreached::Failed(error)) => Err(error),
            Err(Unreached::Harmed(fault)) => self.report_harm(id, &fault),
        }
    }

    /// The lock table of a block is gone: the block is to be fetched again, with another.
    ///
    /// # Errors
    ///
    /// As [`Core::ask`].
    pub(super) fn drop_harmed(&self, id: BlockId) -> Result<(), Error> {
        let Some(block) = self.table.find(id) else { return Ok(()) };
        let absent = block.without_bytes(Backing::Absent);
        let retired = self.table.replace(&block, absent).unwrap_or_default();
        drop(block);
        self.retire(retired);
        self.report_harm(id, &"a part of it is gone")
    }

    /// Has the broker look at the lock table of a block, which it makes anew.
    #[cold]
    fn report_harm(&self, id: BlockId, fault: &dyn fmt::Display) -> Result<(), Error> {
        tracing::warn!(block = %id, %fault, "the lock table is not what it should be");
        self.ask(&ClientRequest::Damaged(id))?;
        self.link.pause(LOOK_AGAIN).map_err(|error| self.of_link(error))
    }

    /// Whether nothing was told of a change since the generation was known to be this one: what was
    /// answered in between may be older than what was taken in. For who has the right to change
    /// what is known of blocks, so that this stays so until what was answered is in the table.
    pub(super) fn is_as_of(&self, asked_at: u64) -> bool {
        self.map.known() == asked_at && !self.map.has_moved()
    }

    /// Takes in what came along with another answer, if the block is still to be fetched, and no
    /// change was told since `asked_at` was the known generation. What fails here is told by the
    /// access that needs it.
    pub(super) fn take_fetched(&self, info: &BlockInfo, given: Given, asked_at: u64) {
        let Some(_turn) = self.changing.take(self.deadline()) else { return };
        if !self.is_as_of(asked_at) {
            return;
        }
        let absent = self.table.find(info.block);
        let is_wanted = |absent: &Arc<Block>| {
            matches!(absent.backing, Backing::Absent) && absent.writable == info.writable
        };
        if let Some(absent) = absent.filter(is_wanted) {
            self.limit_descriptors();
            if let Err(error) = self.put_given(&absent, info, given) {
                tracing::debug!(block = %info.block, ?error, "to be fetched again");
            }
        }
    }

    fn put_given(
        &self,
        absent: &Arc<Block>,
        info: &BlockInfo,
        given: Given,
    ) -> Result<(), Unreached> {
        let backing = self.ways.admit(info, given, self.join(info.block, 0)?.to_raw())?;
        Ok(self.put_fetched(absent, info, backing)?)
    }

    /// Puts a block in the place of the absent one, whose info was checked.
    pub(super) fn put_fetched(
        &self,
        absent: &Arc<Block>,
        info: &BlockInfo,
        backing: Backing,
    ) -> Result<(), Error> {
        let id = absent.id;
        let is_other = absent.guid.is_some_and(|guid| guid != info.guid);
        let span = (info.span_first, info.span_count);
        if is_other || info.block != id || span != (absent.span.first, absent.span.count) {
            // The id is another block's by now: the one that was known is gone.
            self.retire(self.table.remove_same(absent));
            return Err(unknown(id));
        }
        if info.lost {
            self.allocator().freeze(id, monotonic_ms());
        }
        let block = Block::of_info(info, backing).ending_at(absent.bytes_max);
        // What an earlier answer committed stays committed.
        block.grow(absent.committed());
        let retired = self.table.replace(absent, block).unwrap_or_default();
        // The absent one holds nothing that anybody waits for.
        self.retire(self.table.keep(retired));
        self.note_holder(id);
        Ok(())
    }

    /// Calls a block lost whose bytes could not be reached, and has the broker look at it.
    pub(super) fn take_damaged(&self, id: BlockId) {
        let Some(block) = self.table.find(id) else { return };
        if matches!(block.backing, Backing::Absent | Backing::Lost) {
            return;
        }
        let lost = block.without_bytes(Backing::Lost);
        let Some(retired) = self.table.replace(&block, lost) else { return };
        drop(block);
        tracing::warn!(block = %id, "bytes of a block are gone");
        self.retire(retired);
        self.allocator().freeze(id, monotonic_ms());
        self.report(id);
    }

    /// Has the broker look at a block. Waits for nobody.
    pub(super) fn report(&self, id: BlockId) {
        self.chores().damaged.push(id);
        self.link.wake();
    }

    /// Gives descriptors back where blocks behind windows hold as many as they may, those first
    /// that were not used of late.
    pub(super) fn limit_descriptors(&self) {
        let open_files = dmce_sys::limits::open_files().unwrap_or(u64::MAX);
        let limit = usize::try_from(open_files / 2).unwrap_or(usize::MAX);
        let take_touched = |block: &Block| block.backing.take_touched();
        let idle = self.holders().make_room(limit, take_touched);
        let mut retired = Retired::default();
        for block in idle {
            let absent = block.without_bytes(Backing::Absent);
            retired.extend(self.table.replace(&block, absent).unwrap_or_default());
        }
        self.retire(retired);
    }

    /// Counts a block that is new in the table once for each descriptor that it holds.
    pub(super) fn note_holder(&self, id: BlockId) {
        let Some(block) = self.table.find(id) else { return };
        for _ in 0..block.backing.descriptors() {
            self.holders().add(&block);
        }
    }

    fn holders(&self) -> MutexGuard<'_, Holders<Block>> {
        self.holders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! The epoch of a block is raised: the headers of all its copies are written anew, before anybody
//! relies on what they say.
//!
//! ```text
//!  HELD --- a copy is lost, another is good ---> LOSING --- all are written ---> HELD, one
//!                                                | ^ |                          copy fewer
//!                                                | | +--- none is left ---> LOST
//!                                                +-+ one is gone as well: raised again; or it
//!  LOSING, all are written, and the lock table has to be made anew: `locks`
//!  HELD --- a copy syncs, or has synced, or is given up over it: `syncing` ---> LOSING ---> HELD
//!  MAKING: all copies are made, one of them          could not be written: in `AGAIN_MS`
//!  elsewhere than the headers of others say
//! ```
//!
//! # Invariants
//!
//! 1. Epochs only grow, and one is written for one set of copies.
//! 2. While a block is LOSING nothing of it is granted or opened: who asks waits.
//! 3. Who may use a block is told that it changes before the first header is written, and is served
//!    when all are: a daemon may write by new headers, and who was not told would read a copy that
//!    it leaves out. What is acknowledged under the new epoch is on every copy that any header of
//!    it names.

use dmce_abi::block::{BlockDescription, BlockId, DaemonId};
use dmce_abi::wire::daemon::DaemonRequest;

use super::Dispatcher;
use super::action::{Action, LogLevel};
use super::blocks::{BlockState, News};
use super::daemons::Server;
use super::event::{RaiseId, Rewritten};
use super::timers::Timer;

/// How long until a header is written again that could not be.
pub(super) const AGAIN_MS: u64 = 100;

impl Dispatcher {
    /// Has the headers of all copies of a block name these copies, under the next epoch.
    pub(super) fn raise(&mut self, id: BlockId) {
        let raise = RaiseId(self.next_number());
        let started = self.epoch;
        let Some(block) = self.blocks.get_mut(id) else { return };
        // No lower than what is made now: so of two spans with an id in common the older is known.
        block.epoch = started.max(block.epoch + 1);
        // Of copies that were reported it may be decided yet what all have.
        let (daemons, committed) = (block.copies.written(), block.committed);
        let committed = committed.min(block.copies.committed());
        let (first, is_told) = (block.span, block.state == BlockState::Losing);
        let describe = |daemon| Some((daemon, self.describe(id, daemon)?));
        let headers: Vec<(DaemonId, BlockDescription)> =
            daemons.into_iter().filter_map(describe).collect();
        self.raises.insert(id, raise);
        self.relocks.remove(&id);
        if is_told {
            self.tell_holders(first, id);
        }
        self.out.push(Action::RaiseEpoch { raise, block: id, committed, headers });
    }

    /// The headers were written, as far as they could be.
    pub(super) fn epoch_raised(
        &mut self,
        raise: RaiseId,
        id: BlockId,
        headers: Vec<(DaemonId, Rewritten)>,
    ) {
        // The block was given up meanwhile, or raised again.
        if self.raises.get(&id) != Some(&raise) {
            return;
        }
        let mut failed = false;
        for (daemon, rewritten) in headers {
            let Some(block) = self.blocks.get_mut(id) else { return };
            let epoch = block.epoch;
            match rewritten {
                Rewritten::Written => {
                    if let Some(copy) = block.copies.of_mut(daemon) {
                        copy.epoch = epoch;
                    }
                    self.tell_rewritten(id, daemon);
                }
                Rewritten::Gone { reason } => {
                    if !self.take_back(id, daemon, &reason) {
                        self.lose_copy(id, daemon, &reason);
                    }
                }
                Rewritten::Failed { reason } => {
                    failed = true;
                    let text = format!("daemon {daemon}, header of block {id}: {reason}");
                    self.log(LogLevel::Warn, text);
                }
            }
        }
        // Otherwise another copy was lost over it.
        if self.raises.get(&id) == Some(&raise) {
            if failed {
                self.timers.set(Timer::Raise(id), self.now.millis.after(AGAIN_MS));
            } else {
                self.raises.remove(&id);
                self.raised(id);
            }
        }
    }

    /// A daemon writes the header of a copy again that somebody removes: as it is now.
    fn tell_rewritten(&mut self, id: BlockId, daemon: DaemonId) {
        let hears = self.daemons.servers.get(&daemon).is_some_and(Server::hears);
        if let Some(description) = self.describe(id, daemon).filter(|_| hears) {
            self.tell_daemon(daemon, DaemonRequest::Rewritten { description });
        }
    }

    /// Headers, or a lock table, that could not be written are to be tried again.
    pub(super) fn raise_again(&mut self, id: BlockId) {
        if self.raises.contains_key(&id) {
            self.raise(id);
        }
        self.relock_if_idle(id);
    }

    /// Nobody waits for the headers of a block any more.
    pub(super) fn forget_raise(&mut self, id: BlockId) {
        self.raises.remove(&id);
        self.relocks.remove(&id);
        self.timers.cancel(Timer::Raise(id));
        self.settled = true;
    }

    /// The headers of all copies of a block say the same.
    fn raised(&mut self, id: BlockId) {
        let Some(state) = self.blocks.get(id).map(|block| block.state) else { return };
        match state {
            BlockState::Making => {
                self.usable_if_whole(id);
                self.made_copy(id);
            }
            BlockState::Losing if self.await_locks(id) => {}
            BlockState::Losing => self.settle_losing(id),
            BlockState::Held | BlockState::Lost | BlockState::Going => {}
        }
        self.settled = true;
    }

    /// It is decided which copies of a block there are, and its lock table is there.
    pub(super) fn settle_losing(&mut self, id: BlockId) {
        let Some(block) = self.blocks.get_mut(id) else { return };
        let (first, epoch, daemons) = (block.span, block.epoch, block.copies.daemons());
        let news = std::mem::take(&mut block.news);
        self.settled = true;
        self.blocks.set_state(id, BlockState::Held);
        match news {
            News::None => {}
            News::Fewer => {
                let text = format!("block {id} is on {daemons:?} alone, epoch {epoch}");
                self.log(LogLevel::Warn, text);
                self.tell_copy_lost(first, id);
            }
            News::Moved => {
                self.log(
                    LogLevel::Info,
                    format!("block {id} is on {daemons:?} now, epoch {epoch}"),
                );
            }
            News::More => {
                let text = format!("block {id} is on {daemons:?} again, epoch {epoch}");
                self.log(LogLevel::Info, text);
                self.tell_copies_restored(first, id);
            }
        }
        self.go_on_syncing(id);
        self.clear_old(id);
        self.end_adoption(id, None);
    }

    /// Whether it is being decided which copies of a block there are.
    pub(super) fn is_losing(&self, id: BlockId) -> bool {
        self.blocks.get(id).is_some_and(|block| block.state == BlockState::Losing)
    }

    /// Serves those who waited for that.
    pub(super) fn serve_unsettled(&mut self) {
        if !std::mem::take(&mut self.settled) {
            return;
        }
        let mut waiting = std::mem::take(&mut self.unsettled);
        while let Some(waiter) = waiting.pop() {
            self.route(waiter.to, &waiter.request, None);
        }
    }
}

//! What becomes of copies that cannot be reached: the broker is asked, from within operations.
//!
//! ```text
//!   read:   reported, by a chore; the next copy is read
//!   write:  Damaged, then Fetch: who is named?  -- the copy ----> it is there, or will be
//!                      |                        -- others -----> good no more
//!                      | no answer in time
//!                      v
//!           the session is over: shut, and left when no lock of its own is held any more
//! ```
//!
//! # Invariants
//!
//! 1. Nothing here waits for operations to be over, nor for who does: the turn of the link is
//!    taken, and no other.
//! 2. A session that has given up begins no operation, and the broker learns of its end.
#![forbid(unsafe_code)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{ClientReply, ClientRequest, CopyInfo, Fetch};

use super::core::Core;
use super::link::LinkError;
use crate::connection::Deadline;
use crate::reach::copied::{Arbiter, Damage, Judgement};

/// Asks the broker of a session, as long as that is there.
#[derive(Debug)]
pub(super) struct AskBroker {
    pub core: Weak<Core>,
}

impl AskBroker {
    /// Who accesses a block of the session has it.
    fn core(&self) -> Option<Arc<Core>> {
        self.core.upgrade()
    }
}

impl Arbiter for AskBroker {
    fn report(&self, damage: Damage) {
        let Damage { block, epoch, daemon } = damage;
        tracing::warn!(%block, epoch, %daemon, "a copy cannot be read");
        if let Some(core) = self.core() {
            core.report(block);
        }
    }

    fn judge(&self, damage: Damage) -> Judgement {
        let Damage { block, epoch, daemon } = damage;
        tracing::warn!(%block, epoch, %daemon, "a copy cannot be written");
        let judged = self.core().and_then(|core| core.judge(damage));
        judged.unwrap_or(Judgement::Unknown)
    }

    fn give_up(&self, damage: Damage) {
        let Damage { block, epoch, daemon } = damage;
        tracing::error!(%block, epoch, %daemon, "a write has ended between two copies");
        if let Some(core) = self.core() {
            core.given_up.store(true, Ordering::SeqCst);
            core.shut();
            core.link.wake();
        }
    }
}

/// Who has copies of a block that are written.
enum Named {
    Copies(Vec<CopyInfo>),
    /// It is no block of this session any more.
    Nobody,
}

/// Whether a copy is the one that could not be written: its daemon may have lost that, and have got
/// another.
const fn is_it(copy: &CopyInfo, damage: Damage) -> bool {
    copy.daemon.get() == damage.daemon.get() && copy.since <= damage.epoch
}

impl Core {
    fn judge(&self, damage: Damage) -> Option<Judgement> {
        // Another call may have the link for as long as it waits, and in vain; and whoever is not
        // judged ends the session. So this has its own time after that.
        let deadline = Deadline::after_ms(self.timeout_ms.saturating_mul(2));
        match self.link.ask(&ClientRequest::Damaged(damage.block), deadline) {
            Ok(_) => {}
            Err(LinkError::Refused(error)) if error.status() == Status::Address => {
                return Some(Judgement::Dropped);
            }
            Err(_) => return None,
        }
        // The right to write it may have gone since this write began.
        let mut asked = [true, false].into_iter();
        let named = asked.find_map(|writable| self.ask_who(damage.block, writable, deadline))?;
        Some(match named {
            Named::Copies(copies) if copies.iter().any(|copy| is_it(copy, damage)) => {
                Judgement::Good
            }
            Named::Copies(_) | Named::Nobody => Judgement::Dropped,
        })
    }

    /// Whose copies of a block are written. The broker answers when that is decided.
    fn ask_who(&self, block: BlockId, writable: bool, deadline: Deadline) -> Option<Named> {
        match self.link.ask(&ClientRequest::Fetch(Fetch { block, writable }), deadline) {
            Ok((ClientReply::Fetched(info), _)) if info.block == block => {
                Some(Named::Copies(info.written().collect()))
            }
            // It was given back, or deleted.
            Err(LinkError::Refused(error)) if error.status() == Status::Address => {
                Some(Named::Nobody)
            }
            _ => None,
        }
    }

    /// Tells the broker that the session is over that has given up. False if it has to be told
    /// again. Not from inside an operation.
    pub(super) fn leave(&self) -> bool {
        if !self.given_up.swap(false, Ordering::SeqCst) {
            return true;
        }
        let is_told = self.link.disconnect(self.deadline());
        if !is_told {
            self.given_up.store(true, Ordering::SeqCst);
        }
        is_told
    }
}

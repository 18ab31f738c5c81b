//! What a plain pointer of the dead stored to the first copy is brought to the others, by the
//! broker, a batch at a time (section 4.2).
//!
//! ```text
//!   intent, phase 10    locks, odd     repair: the others from the first, even, free     gone
//!  ------|-------------------|------------------------------------------------------------|--
//!        `-- by the caller   `- a page that somebody holds: all are given back, later again
//! ```
//!
//! The broker writes as a slot of the dead: whoever dies over it leaves what the next broker
//! repairs as any other write of that slot.
//!
//! # Invariants
//!
//! 1. Nobody is waited for. What was taken is given back as it was if a page is held.
//! 2. A page that repair has begun with is not given back before it is equal.
//! 3. Pages that are detached differ on purpose, and those that are lost have nothing to be
//!    carried: both are left.

use dmce_abi::block::DaemonId;
use dmce_sys::crash::{Point, point};

use super::repair::{RepairError, Repaired, Site, Wreck, change, repair};
use crate::lock::{LockBits, LockOwner, LockState};

/// How often a page is looked at that somebody holds: most hold it for less than that takes.
const LOOKS: u32 = 64;

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Carried {
    /// All good copies are equal there, but for pages that were left.
    Done(Repaired),
    /// Somebody holds a page: nothing was done.
    Busy {
        /// Which.
        page: u64,
    },
}

/// What became of the lock of a page.
enum Taken {
    /// The slot has it.
    Own,
    /// It is not to be taken.
    Left,
    /// Somebody has it.
    Busy,
}

/// Brings the bytes of a batch from its first copy to all others. The slot of `wreck` has the
/// intent that says so already; the caller takes it away when this is done.
///
/// # Errors
///
/// [`RepairError`]. All that was done can be done again.
pub fn carry<S: Site>(
    wreck: &Wreck,
    copies: &[DaemonId],
    site: &mut S,
) -> Result<Carried, RepairError<S::Error>> {
    for page in wreck.pages() {
        match take(site, page, wreck.owner())? {
            Taken::Own => point(Point::CarryLocked),
            Taken::Left => {}
            Taken::Busy => {
                for page in wreck.pages().start..page {
                    give_back(site, page, wreck.owner())?;
                }
                return Ok(Carried::Busy { page });
            }
        }
    }
    repair(wreck, copies, site).map(Carried::Done)
}

/// Takes the lock of a page, with an odd sequence, if it is free.
fn take<S: Site>(
    site: &mut S,
    page: u64,
    owner: LockOwner,
) -> Result<Taken, RepairError<S::Error>> {
    for _ in 0..LOOKS {
        let bits = LockBits::of_word(site.word(page).map_err(RepairError::Table)?);
        // From an attempt that did not come to its end.
        if bits.taken_over(owner).is_some() {
            return Ok(Taken::Own);
        }
        if bits.is_detached() || bits.state() == LockState::Lost {
            return Ok(Taken::Left);
        }
        let Some(taken) = bits.taken_to_write(owner) else { continue };
        let (from, to) = (bits.word(), taken.word());
        if site.exchange(page, from, to).map_err(RepairError::Table)? == from {
            return Ok(Taken::Own);
        }
    }
    Ok(Taken::Busy)
}

/// Gives the lock of a page back that was not written, and wakes who waits for it.
fn give_back<S: Site>(
    site: &mut S,
    page: u64,
    owner: LockOwner,
) -> Result<(), RepairError<S::Error>> {
    if change(site, page, |bits| bits.given_back(owner))?.is_some() {
        site.wake(page).map_err(RepairError::Table)?;
    }
    Ok(())
}

//! `dmce migrate`, `swap`, `drain`, `undrain`, `region set copies`: copies move, come and go, and
//! the command waits until they have.
//!
//! # Invariants
//!
//! 1. What moves, and who holds it back, is told on the standard error, and only to a terminal
//!    while it changes; the standard output says what has moved.
//! 2. Who ends the command while a copy moves has that given up. A drain goes on without it, and so
//!    does what was asked for of a region.

use std::fmt::Write as _;
use std::thread;

use dmce_abi::wire::admin::{BlockRow, BlockState, CopyRow, CopyState};
use dmce_abi::wire::client::RegionName;
use dmce_config::Bytes;

use crate::args::{Migrate, SetCopies, Swap};
use crate::broker::{Broker, BrokerError};
use crate::error::{Error, Outcome};
use crate::progress::{LOOK, Line, watch};
use crate::show::{self, holder_text};

/// Looks after which a drain that does not go on is left to itself.
const LOOKS_MAX: u32 = 50;

/// Moves a copy of a block.
///
/// # Errors
///
/// [`Error::Broker`] where it cannot be.
pub fn migrate(broker: Broker, wanted: Migrate) -> Result<Outcome, Error> {
    let Migrate { block, to, from } = wanted;
    let look = |eye: &mut Broker| look_at(eye, &[block]);
    let (from, to) =
        watch(broker, look, move |broker| broker.migrate(block, from.unwrap_or(0), to))?;
    say(&format!("block {block} has moved from daemon {from} to {to}\n"))
}

/// Has copies of two blocks change places.
///
/// # Errors
///
/// [`Error::Broker`] where they cannot.
pub fn swap(broker: Broker, wanted: Swap) -> Result<Outcome, Error> {
    let Swap { one, other } = wanted;
    // The second moves to where the first was.
    let look = |eye: &mut Broker| look_at(eye, &[one, other]);
    let (to, from) = watch(broker, look, move |broker| broker.swap(one, other))?;
    say(&format!("block {one} is on daemon {to} now, and block {other} on daemon {from}\n"))
}

/// Has all that a daemon has move to others, and waits until it has.
///
/// # Errors
///
/// [`Error::Broker`].
pub fn drain(mut broker: Broker, daemon: u32) -> Result<Outcome, Error> {
    broker.set_draining(daemon, true)?;
    let (mut line, mut before, mut looks) = (Line::new(), None, 0);
    loop {
        let rows = broker.blocks()?;
        let has = |row: &BlockRow, is_gone: bool| {
            let is_it = |of: &CopyRow| of.daemon == daemon && has_no_bytes(*of) == is_gone;
            row.copies.iter().any(is_it)
        };
        let left: Vec<&BlockRow> = rows.iter().filter(|row| has(row, false)).collect();
        let gone = rows.iter().filter(|row| has(row, true)).count();
        // Some may be on their way to a client, or to nothing, which no row tells of.
        let all = broker.daemons()?.into_iter().find(|row| row.daemon == daemon);
        let all = all.map_or(0, |row| row.blocks as usize);
        let count = left.len().max(all.saturating_sub(gone));
        if count == 0 {
            line.end();
            return say(&format!("daemon {daemon} has no block any more, and gets none\n"));
        }
        let bytes: u64 = left.iter().map(|row| row.committed - row.left.min(row.committed)).sum();
        let lacking: u64 = left.iter().map(|row| row.left).sum();
        line.show(&format!("daemon {daemon}: {count} blocks left, {}", Bytes(bytes)));
        let now = (count, lacking);
        looks = if before == Some(now) { looks + 1 } else { 0 };
        before = Some(now);
        if looks >= LOOKS_MAX {
            line.end();
            for row in &left {
                Line::tell(&format!("block {} stays: {}", row.block, why_it_stays(row)));
            }
            say(&format!("daemon {daemon} gets no block; {count} stay until they can move\n"))?;
            return Ok(Outcome::Unwell);
        }
        thread::sleep(LOOK);
    }
}

/// Asks for so many copies of a region, and waits until it has them.
///
/// # Errors
///
/// [`Error::Broker`].
pub fn set_copies(mut broker: Broker, wanted: &SetCopies) -> Result<Outcome, Error> {
    let SetCopies { volume, name, copies } = wanted;
    let region = RegionName { volume: volume.clone(), name: name.clone() };
    let (first, count) = broker.set_copies(region.clone(), *copies)?;
    let has_as_many = |row: &BlockRow| {
        let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good).count();
        good == *copies as usize && row.copies.iter().all(|copy| copy.state != CopyState::Syncing)
    };
    let (mut line, mut before, mut looks) = (Line::new(), None, 0);
    loop {
        // A broker that died before the first header said so has forgotten it.
        let known = broker.regions()?.into_iter().find(|row| row.region == region);
        if known.is_none_or(|row| row.copies != *copies) {
            broker.set_copies(region.clone(), *copies)?;
        }
        let rows = broker.blocks()?;
        let own = |row: &&BlockRow| (first..first + count).contains(&row.block);
        let left: Vec<&BlockRow> =
            rows.iter().filter(own).filter(|row| !has_as_many(row)).collect();
        if left.is_empty() {
            line.end();
            let copies =
                if *copies == 1 { "1 copy".to_owned() } else { format!("{copies} copies") };
            return say(&format!("region {volume}/{name} has {copies}\n"));
        }
        let lacking: u64 = left.iter().map(|row| row.left).sum();
        line.show(&format!("{} of {count} blocks left, {}", left.len(), Bytes(lacking)));
        let now = (left.len(), lacking);
        looks = if before == Some(now) { looks + 1 } else { 0 };
        before = Some(now);
        if looks >= LOOKS_MAX {
            line.end();
            for row in &left {
                let why = held_back(row).unwrap_or_else(|| match row.state {
                    BlockState::Lost => "it is lost".to_owned(),
                    BlockState::Degraded => "no room, or no daemon, for another copy".to_owned(),
                    _ => "it is used, or the daemon of its primary does not serve".to_owned(),
                });
                Line::tell(&format!("block {} stays as it is: {why}", row.block));
            }
            let count = left.len();
            say(&format!("{count} blocks of region {volume}/{name} stay until that can be\n"))?;
            return Ok(Outcome::Unwell);
        }
        thread::sleep(LOOK);
    }
}

/// Lets a daemon take blocks again.
///
/// # Errors
///
/// [`Error::Broker`].
pub fn undrain(mut broker: Broker, daemon: u32) -> Result<Outcome, Error> {
    broker.set_draining(daemon, false)?;
    Ok(Outcome::Done)
}

/// Whether what a daemon has of a block is no copy any more.
const fn has_no_bytes(copy: CopyRow) -> bool {
    matches!(copy.state, CopyState::Lost | CopyState::Stale)
}

/// Why a block is where it is.
fn why_it_stays(row: &BlockRow) -> String {
    held_back(row).unwrap_or_else(|| {
        let is_lacking = row.state == BlockState::Degraded;
        let why = if is_lacking { "a copy that it lacks comes first" } else { "no room for it" };
        why.to_owned()
    })
}

/// Who holds back what is to become of a block, if anybody does.
fn held_back(row: &BlockRow) -> Option<String> {
    let holders: Vec<String> = row.held_by.iter().map(holder_text).collect();
    (!holders.is_empty()).then(|| format!("held back by {}", holders.join(", ")))
}

/// How far blocks are.
fn look_at(eye: &mut Broker, blocks: &[u32]) -> Result<String, BrokerError> {
    let mut text = String::new();
    for block in blocks {
        let Some(row) = eye.block(*block)? else { continue };
        let (left, all) = (Bytes(row.left), Bytes(row.committed));
        // Writing to a string does not fail.
        let _ = write!(text, "block {block}: {left} of {all} left");
        if !row.held_by.is_empty() {
            let _ = write!(text, ", {}", why_it_stays(&row));
        }
        text.push_str("; ");
    }
    Ok(text.trim_end_matches("; ").to_owned())
}

fn say(text: &str) -> Result<Outcome, Error> {
    Ok(show::write_out(text.as_bytes()).map(|()| Outcome::Done)?)
}

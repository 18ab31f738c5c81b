//! `dmce scrub`: the copies of blocks are compared, and the command waits until they were.
//!
//! # Invariants
//!
//! 1. How far it is, is told on the standard error, and only to a terminal; the standard output
//!    says what was found.
//! 2. Who ends the command has the comparing given up.

use dmce_config::Bytes;

use crate::args::Scrub;
use crate::broker::Broker;
use crate::error::{Error, Outcome};
use crate::progress::watch;
use crate::show;
use crate::show::scrub::ScrubResult;

/// Has the copies of a block compared, or of all.
///
/// # Errors
///
/// [`Error::Broker`].
pub fn scrub(broker: Broker, wanted: Scrub) -> Result<Outcome, Error> {
    let block = wanted.block.unwrap_or(0);
    let look = |eye: &mut Broker| {
        let scrub = eye.status()?.scrub;
        let [done, all, rate] = [scrub.done, scrub.all, scrub.rate].map(Bytes);
        Ok(format!("{done} of {all} are compared, {rate}/s"))
    };
    let (blocks, found) = watch(broker, look, move |broker| broker.scrub(block))?;
    let result = ScrubResult { blocks, found: found.into() };
    show::print(&result, wanted.listing.json)?;
    Ok(if result.is_well() { Outcome::Done } else { Outcome::Unwell })
}

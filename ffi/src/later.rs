//! Calls that are declared, so that programs can be written against them, and that this release
//! does not do.
//!
//! They check handles and NULLs as every call does, so a program's own mistakes show today, and
//! then answer `DMCE_E_UNSUPPORTED`.

use crate::arguments::null;
use crate::boundary::{self, Outcome};
use crate::failure::Failure;
use crate::region::dmce_region_t;
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

/// A pointer argument that may not be NULL: its name, and whether it is.
pub(crate) type Required = (&'static str, bool);

/// Such a call on a session.
pub(crate) fn on_session(
    handle: *const dmce_session_t,
    required: &[Required],
    text: &'static str,
) -> dmce_status_t {
    boundary::session(handle, |session| {
        all_there(required)?;
        session.check()?;
        Err(Failure::unsupported(text))
    })
}

/// Such a call on a region.
pub(crate) fn on_region(
    handle: *const dmce_region_t,
    required: &[Required],
    text: &'static str,
) -> dmce_status_t {
    boundary::region(handle, |region| {
        all_there(required)?;
        region.info()?;
        Err(Failure::unsupported(text))
    })
}

fn all_there(required: &[Required]) -> Outcome {
    match required.iter().find(|(_, is_null)| *is_null) {
        Some((name, _)) => Err(null(name)),
        None => Ok(()),
    }
}

//! Events: what happened to a session's memory, for programs that want to know.

use std::ffi::c_int;

use crate::alloc::dmce_addr_t;
use crate::boundary;
use crate::failure::Failure;
use crate::later;
use crate::session::dmce_session_t;
use crate::sized::Fill;
use crate::version::dmce_status_t;

/// `kind` of an event: the turn of a queued pointer has come.
pub const DMCE_EVENT_GRANTED: u32 = 1;
/// `kind` of an event: the daemons are short of memory.
pub const DMCE_EVENT_PRESSURE: u32 = 2;
/// `kind` of an event: memory has one copy fewer.
pub const DMCE_EVENT_COPY_LOST: u32 = 3;
/// `kind` of an event: memory has all its copies again.
pub const DMCE_EVENT_COPY_RESTORED: u32 = 4;
/// `kind` of an event: the last copy is lost.
pub const DMCE_EVENT_LOST: u32 = 5;

/// What happened, and to which range. Set `size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_event_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// `DMCE_EVENT_GRANTED`, `_PRESSURE`, `_COPY_LOST`, `_COPY_RESTORED`, `_LOST`.
    pub kind: u32,
    /// The first byte of the range.
    pub addr: dmce_addr_t,
    /// Bytes.
    pub bytes: u64,
}

const EVENTS: &str = "events are not in this release";

/// A descriptor that is readable while an event waits: fits `poll` and `epoll`. It belongs to the
/// session; do not close it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_event_fd(
    session: *mut dmce_session_t,
    fd: *mut c_int,
) -> dmce_status_t {
    later::on_session(session, &[("fd", fd.is_null())], EVENTS)
}

/// Takes the next event; `DMCE_E_NOTFOUND` when none waits. `event->size` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_event_next(
    session: *mut dmce_session_t,
    event: *mut dmce_event_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a structure that begins with its size.
        unsafe { Fill::new(event)? };
        session.check()?;
        Err(Failure::unsupported(EVENTS))
    })
}

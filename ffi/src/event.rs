//! Events: what happened to a session's memory, for programs that want to know.

use std::ffi::c_int;
use std::os::fd::AsRawFd;

use libdmce::{Event, Status};

use crate::alloc::dmce_addr_t;
use crate::arguments::Out;
use crate::boundary;
use crate::failure::Failure;
use crate::session::dmce_session_t;
use crate::sized::Fill;
use crate::version::dmce_status_t;

/// `kind` of an event: the turn of a queued pointer to `addr` has come.
pub const DMCE_EVENT_GRANTED: u32 = 1;
/// `kind` of an event: a daemon, or all together, are nearly full. `bytes`: what all have left;
/// `addr` is 0.
pub const DMCE_EVENT_PRESSURE: u32 = 2;
/// `kind` of an event: the block that begins at `addr` has one copy fewer; nothing is missing.
pub const DMCE_EVENT_COPY_LOST: u32 = 3;
/// `kind` of an event: the block that begins at `addr` has all its copies again.
pub const DMCE_EVENT_COPY_RESTORED: u32 = 4;
/// `kind` of an event: the last copy is lost, of memory of the session or of a region that it has
/// open.
pub const DMCE_EVENT_LOST: u32 = 5;
/// `kind` of an event: after a refusal for want of memory there is room again. `bytes`: what the
/// session could have in one piece; `addr` is 0.
pub const DMCE_EVENT_AVAILABLE: u32 = 6;

/// What happened, and to which range. Set `size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_event_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// `DMCE_EVENT_GRANTED`, `_PRESSURE`, `_COPY_LOST`, `_COPY_RESTORED`, `_LOST`, `_AVAILABLE`.
    /// Take other values for events of a later release.
    pub kind: u32,
    /// The first byte of the range. 0 where an event speaks of no range.
    pub addr: dmce_addr_t,
    /// Bytes.
    pub bytes: u64,
}

/// A descriptor that is readable while an event waits: fits `poll` and `epoll`. It belongs to the
/// session; do not close it, and do not use it after `dmce_close`.
///
/// Events are told from the first call of this or of `dmce_event_next` on. A session with
/// `DMCE_NO_THREAD` takes them in by `dmce_poll`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_event_fd(
    session: *mut dmce_session_t,
    fd: *mut c_int,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a descriptor.
        let out = unsafe { Out::new("fd", fd)? };
        out.set(session.event_fd()?.as_raw_fd());
        Ok(())
    })
}

/// Takes the oldest event; `DMCE_E_NOTFOUND` when none waits. `event->size` must be set. Of more
/// than 256 that wait the oldest are forgotten.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_event_next(
    session: *mut dmce_session_t,
    event: *mut dmce_event_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a structure that begins with its size.
        let fill = unsafe { Fill::new(event)? };
        let next = session.next_event()?;
        let next = next.ok_or_else(|| Failure::new(Status::NotFound, "no event waits"))?;
        let (kind, addr, bytes) = match next {
            Event::Granted { addr, bytes } => (DMCE_EVENT_GRANTED, addr.to_raw(), bytes),
            Event::Pressure { left } => (DMCE_EVENT_PRESSURE, 0, left),
            Event::Available { bytes } => (DMCE_EVENT_AVAILABLE, 0, bytes),
            Event::Lost { addr, bytes } => (DMCE_EVENT_LOST, addr.to_raw(), bytes),
            Event::CopyLost { addr, bytes } => (DMCE_EVENT_COPY_LOST, addr.to_raw(), bytes),
            Event::CopiesRestored { addr, bytes } => {
                (DMCE_EVENT_COPY_RESTORED, addr.to_raw(), bytes)
            }
            _ => return Err(Failure::unsupported("an event of a later release")),
        };
        fill.set(&dmce_event_t { size: 0, kind, addr, bytes });
        Ok(())
    })
}

//! Pointers that lock their range: shared to read, exclusive to write, with a queue (002).

use std::ffi::c_void;

use crate::alloc::dmce_addr_t;
use crate::later;
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

/// `flags` of pointers: `DMCE_E_BUSY` at once, without a place in the queue.
pub const DMCE_NOWAIT: u32 = 1;
/// `flags` of pointers: `DMCE_E_BUSY` at once, with a place in the queue; `DMCE_EVENT_GRANTED`
/// announces the turn.
pub const DMCE_QUEUE: u32 = 2;
/// `flags` of pointers: takes a range whose owner died while writing it, as it is.
pub const DMCE_TAKE_DIRTY: u32 = 4;

const POINTERS: &str = "pointers that lock are not in this release";

/// A pointer to read a range by, shared with other readers.
///
/// Without flags it waits, at most the session's `timeout_ms`. Calls of the same session nest only
/// read in read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_read_ptr(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
    flags: u32,
    pointer: *mut *const c_void,
) -> dmce_status_t {
    let _ = (addr, bytes, flags);
    later::on_session(session, &[("pointer", pointer.is_null())], POINTERS)
}

/// A pointer to write a range by, exclusive. It waits as `dmce_read_ptr` does.
///
/// After an owner died without a copy to roll back from: `DMCE_E_OWNER_DIED`, without the lock,
/// until somebody passes `DMCE_TAKE_DIRTY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_write_ptr(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
    flags: u32,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    let _ = (addr, bytes, flags);
    later::on_session(session, &[("pointer", pointer.is_null())], POINTERS)
}

/// Ends a pointer. What was written by it reaches every copy, all or nothing if the caller dies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_release_ptr(
    session: *mut dmce_session_t,
    pointer: *const c_void,
) -> dmce_status_t {
    later::on_session(session, &[("pointer", pointer.is_null())], POINTERS)
}

/// Ends a write pointer and leaves the range as it was before. Needs two copies.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_abort_ptr(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
) -> dmce_status_t {
    later::on_session(session, &[("pointer", pointer.is_null())], POINTERS)
}

/// Gives up a place in the queue for a range.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_cancel_ptr(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
) -> dmce_status_t {
    let _ = (addr, bytes);
    later::on_session(session, &[], POINTERS)
}

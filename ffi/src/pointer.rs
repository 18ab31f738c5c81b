//! Pointers that lock their range: shared to read, exclusive to write, with a queue (002).

use std::ffi::c_void;

use libdmce::{PointerOptions, PointerWait};

use crate::alloc::{addr, dmce_addr_t};
use crate::arguments::{Out, null};
use crate::boundary;
use crate::failure::Failure;
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

/// `flags` of pointers: `DMCE_E_BUSY` at once, without a place in the queue.
pub const DMCE_NOWAIT: u32 = 1;
/// `flags` of pointers: `DMCE_E_BUSY` at once, with a place in the queue; `DMCE_EVENT_GRANTED`
/// announces the turn.
pub const DMCE_QUEUE: u32 = 2;
/// `flags` of pointers: takes a range whose owner died while writing it, as it is.
pub const DMCE_TAKE_DIRTY: u32 = 4;

/// What flags say.
fn options(flags: u32) -> Result<PointerOptions, Failure> {
    let wait = match flags & !DMCE_TAKE_DIRTY {
        0 => PointerWait::InCall,
        DMCE_NOWAIT => PointerWait::Never,
        DMCE_QUEUE => PointerWait::Queued,
        _ => return Err(Failure::invalid(format!("{flags:#x} are no flags of pointers"))),
    };
    Ok(PointerOptions { wait, take_dirty: flags & DMCE_TAKE_DIRTY != 0 })
}

/// A pointer to read a range by, shared with other readers. The range is exact to the byte, and
/// stays where it is until the pointer is released.
///
/// Without flags it waits its turn behind all who asked before, at most the `timeout_ms` of the
/// session's options, for ever if that is 0. Calls of the same session nest only read in read.
/// `dmce_write` and its like do not wait for it.
///
/// With `DMCE_QUEUE` the next call for the same range takes the turn; one that nobody takes lapses
/// after the session's timeout. A call that waits for a queued range in vain has given up its
/// place. Of several pointers that begin at one byte a release ends that to the fewest bytes.
/// `DMCE_E_NOMEM`: the session has 1024 pointers, or 512 pins.
/// `DMCE_E_UNSUPPORTED` for a region in this release, and on the message path.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_read_ptr(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
    flags: u32,
    pointer: *mut *const c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        let guard = session.read_ptr(self::addr(session, addr)?, bytes, options(flags)?)?;
        out.set(guard.into_raw().cast());
        Ok(())
    })
}

/// A pointer to write a range by, exclusive. It waits as `dmce_read_ptr` does.
///
/// What is stored by it is on one copy until it is released, and stays the caller's if that copy is
/// lost meanwhile.
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
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        let guard = session.write_ptr(self::addr(session, addr)?, bytes, options(flags)?)?;
        out.set(guard.into_raw().cast());
        Ok(())
    })
}

/// Ends a pointer. What was written by it reaches every copy. `DMCE_E_LOST`: a part of that is gone
/// with the copy that it was on, whose object somebody cut; the pointer has ended all the same.
/// After any other error it has not. `DMCE_E_NOTFOUND` if it is no such pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_release_ptr(
    session: *mut dmce_session_t,
    pointer: *const c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            return Err(null("pointer"));
        }
        Ok(session.release_ptr(pointer.cast())?)
    })
}

/// Ends a write pointer and leaves the range as it was before, but for what `dmce_write` and its
/// like have written there since. Without a second copy, or if the copies have changed since, so
/// that none says what was there, `DMCE_E_UNSUPPORTED`, and the pointer has not ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_abort_ptr(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            return Err(null("pointer"));
        }
        Ok(session.abort_ptr(pointer.cast())?)
    })
}

/// Gives up a place in the queue for a range. `DMCE_E_NOTFOUND` if it has none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_cancel_ptr(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
) -> dmce_status_t {
    boundary::session(session, |session| Ok(session.cancel_ptr(self::addr(session, addr)?, bytes)?))
}

//! Reading and writing: bytes, and words that processes share.

use std::cmp::Ordering;
use std::ffi::{c_int, c_void};

use libdmce::quick;

use crate::alloc::{addr, dmce_addr_t};
use crate::arguments::{Out, buffer as check_buffer};
use crate::boundary;
use crate::session::dmce_session_t;
use crate::version::{DMCE_OK, dmce_status_t};

/// Reads `bytes` bytes into `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_read(
    session: *mut dmce_session_t,
    from: dmce_addr_t,
    buffer: *mut c_void,
    bytes: usize,
) -> dmce_status_t {
    // SAFETY: the C contract: `bytes` bytes at `buffer` may be written, as it is not NULL.
    if !buffer.is_null() && unsafe { quick::read(session.addr(), from, buffer.cast(), bytes) } {
        return DMCE_OK;
    }
    // SAFETY: the same contract.
    unsafe { read_slowly(session, from, buffer, bytes) }
}

/// # Safety
///
/// As [`dmce_read`].
#[cold]
#[inline(never)]
unsafe extern "C" fn read_slowly(
    session: *mut dmce_session_t,
    from: dmce_addr_t,
    buffer: *mut c_void,
    bytes: usize,
) -> dmce_status_t {
    // SAFETY: as in `dmce_read`.
    if !buffer.is_null() && unsafe { quick::read_rest(session.addr(), from, buffer.cast(), bytes) }
    {
        return DMCE_OK;
    }
    boundary::session(session, |session| {
        check_buffer(buffer, bytes)?;
        let from = addr(session, from)?;
        // SAFETY: the C contract: `bytes` bytes at `buffer` may be written, by nobody else
        // meanwhile; NULL only if they are none.
        unsafe { session.read_raw(from, buffer.cast(), bytes)? };
        Ok(())
    })
}

/// Writes `bytes` bytes from `buffer`. When it returns, every copy has them, unless write-back was
/// chosen. `DMCE_E_IO` says that the content of the range is undefined: also where a part was
/// written before something was in the way of the rest, which `dmce_last_error` names. A call that
/// fails otherwise has changed no byte that is not lost, but where `DMCE_MESSAGE_PATH` says so, and
/// where the session itself has ended meanwhile (`DMCE_E_CLOSED`, also of a larger write).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_write(
    session: *mut dmce_session_t,
    to: dmce_addr_t,
    buffer: *const c_void,
    bytes: usize,
) -> dmce_status_t {
    // SAFETY: the C contract: `bytes` bytes at `buffer` may be read and do not change, as it is not
    // NULL.
    if !buffer.is_null() && unsafe { quick::write(session.addr(), to, buffer.cast(), bytes) } {
        return DMCE_OK;
    }
    // SAFETY: the same contract.
    unsafe { write_slowly(session, to, buffer, bytes) }
}

/// # Safety
///
/// As [`dmce_write`].
#[cold]
#[inline(never)]
unsafe extern "C" fn write_slowly(
    session: *mut dmce_session_t,
    to: dmce_addr_t,
    buffer: *const c_void,
    bytes: usize,
) -> dmce_status_t {
    // SAFETY: as in `dmce_write`.
    if !buffer.is_null() && unsafe { quick::write_rest(session.addr(), to, buffer.cast(), bytes) } {
        return DMCE_OK;
    }
    boundary::session(session, |session| {
        check_buffer(buffer, bytes)?;
        let to = addr(session, to)?;
        // SAFETY: the C contract: `bytes` bytes at `buffer` may be read and do not change; NULL
        // only if they are none.
        unsafe { session.write_raw(to, buffer.cast(), bytes)? };
        Ok(())
    })
}

/// Copies inside the memory of the session. The two ranges may overlap, as with `memmove`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_copy(
    session: *mut dmce_session_t,
    to: dmce_addr_t,
    from: dmce_addr_t,
    bytes: u64,
) -> dmce_status_t {
    boundary::session(session, |session| {
        Ok(session.copy(addr(session, to)?, addr(session, from)?, bytes)?)
    })
}

/// Sets every byte of a range to `byte`, of which the lowest eight bits count.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_fill(
    session: *mut dmce_session_t,
    to: dmce_addr_t,
    byte: c_int,
    bytes: u64,
) -> dmce_status_t {
    let [byte, ..] = byte.to_le_bytes();
    boundary::session(session, |session| Ok(session.fill(addr(session, to)?, byte, bytes)?))
}

/// Compares a range with `buffer`. `order` gets -1, 0 or 1: the range is less, equal or greater, as
/// with `memcmp`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_compare(
    session: *mut dmce_session_t,
    a: dmce_addr_t,
    buffer: *const c_void,
    bytes: usize,
    order: *mut c_int,
) -> dmce_status_t {
    boundary::session(session, |session| {
        check_buffer(buffer, bytes)?;
        // SAFETY: the C contract: NULL, or a place for a number.
        let out = unsafe { Out::new("order", order)? };
        let a = addr(session, a)?;
        // SAFETY: as in `dmce_write`.
        let order = unsafe { session.compare_raw(a, buffer.cast(), bytes)? };
        out.set(match order {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        });
        Ok(())
    })
}

/// Makes the word at `at` `desired` if it is `expected`, on every copy, atomically among all
/// processes. `seen` gets what it was: `expected`, if it was changed. The address is a multiple of
/// 8, else `DMCE_E_INVALID`.
///
/// With `DMCE_MESSAGE_PATH` a daemon or the broker may die, or stop, between the change and its
/// answer, and nobody can know then whether the word was changed: `DMCE_E_IO` says that it may have
/// been; `DMCE_E_TIMEOUT`, where `dmce_last_error` says so, that it may be yet, when the daemon
/// goes on. After any other error, and on mapped memory after any error, it was not; but of a
/// session that ended between two copies (`DMCE_E_CLOSED`) that is decided after its end.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_cas64(
    session: *mut dmce_session_t,
    at: dmce_addr_t,
    expected: u64,
    desired: u64,
    seen: *mut u64,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a number.
        let out = unsafe { Out::new("seen", seen)? };
        let at = addr(session, at)?;
        out.set(session.cas64(at, expected, desired)?);
        Ok(())
    })
}

/// Adds to the word at `at`, wrapping around, on every copy, atomically among all processes.
/// `before` gets what it was. The address is a multiple of 8, else `DMCE_E_INVALID`.
///
/// With `DMCE_MESSAGE_PATH`, what `dmce_cas64` says of `DMCE_E_IO` and `DMCE_E_TIMEOUT` holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_add64(
    session: *mut dmce_session_t,
    at: dmce_addr_t,
    add: u64,
    before: *mut u64,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a number.
        let out = unsafe { Out::new("before", before)? };
        let at = addr(session, at)?;
        out.set(session.add64(at, add)?);
        Ok(())
    })
}

/// Waits while the word at `at`, a multiple of 8, is `while_equal`: until it changes and
/// `dmce_wake` is called, at most `timeout_ms`; 0 is for ever. `DMCE_OK` says that it was something
/// else when it was looked at; a word that changed and changed back in the meantime counts as not
/// changed. The session's own time limit does not end it, not even while the broker or a daemon
/// that has to be asked does not answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_wait64(
    session: *mut dmce_session_t,
    at: dmce_addr_t,
    while_equal: u64,
    timeout_ms: u32,
) -> dmce_status_t {
    boundary::session(session, |session| {
        let at = addr(session, at)?;
        Ok(session.wait64(at, while_equal, timeout_ms)?)
    })
}

/// Wakes at most `count` of those who wait for a word, of all processes. Whoever may read it may
/// call this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_wake(
    session: *mut dmce_session_t,
    at: dmce_addr_t,
    count: u32,
) -> dmce_status_t {
    boundary::session(session, |session| {
        let at = addr(session, at)?;
        Ok(session.wake(at, count)?)
    })
}

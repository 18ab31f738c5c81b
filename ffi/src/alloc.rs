//! Allocation.

use libdmce::{DmceAddr, Session, quick};

use crate::arguments::Out;
use crate::boundary::{self, Outcome};
use crate::failure::Failure;
use crate::options::{self, dmce_alloc_options_t};
use crate::session::dmce_session_t;
use crate::version::{DMCE_OK, dmce_status_t};

/// The location of one byte of memory, in every process. 0: none. Plain arithmetic is right inside
/// an allocation.
pub type dmce_addr_t = u64;

/// An address that C passed.
#[inline]
pub(crate) fn addr(session: &Session, raw: dmce_addr_t) -> Result<DmceAddr, Failure> {
    Ok(session.addr(raw)?)
}

/// Allocates. Memory of a new block reads as zero; reused memory may hold older bytes of this
/// session. Aligned to 16, and to a page from 4 KiB up.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_malloc(
    session: *mut dmce_session_t,
    bytes: u64,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    if !addr.is_null() {
        let found = quick::malloc(session.addr(), bytes);
        if found != 0 {
            // SAFETY: the C contract: a place for an address, as it is not NULL. Unaligned, as in
            // `Out`.
            unsafe { addr.write_unaligned(found) };
            return DMCE_OK;
        }
    }
    // SAFETY: the C contract: NULL, or a place for an address.
    unsafe { malloc_slowly(session, bytes, addr) }
}

/// # Safety
///
/// As [`allocate`].
#[cold]
#[inline(never)]
unsafe extern "C" fn malloc_slowly(
    session: *mut dmce_session_t,
    bytes: u64,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    // SAFETY: the same contract.
    unsafe { allocate(session, addr, |session| session.malloc_slowly(bytes)) }
}

/// Allocates as the options say; NULL means the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_malloc_ex(
    session: *mut dmce_session_t,
    bytes: u64,
    options: *const dmce_alloc_options_t,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for an address.
        let out = unsafe { Out::new("addr", addr)? };
        // SAFETY: the C contract: NULL, or options that begin with their size.
        let options = unsafe { options::of_alloc(options)? };
        out.set(session.malloc_with(bytes, &options)?.to_raw());
        Ok(())
    })
}

/// Allocates `count` times `bytes`, which read as zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_calloc(
    session: *mut dmce_session_t,
    count: u64,
    bytes: u64,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    // SAFETY: the C contract: NULL, or a place for an address.
    unsafe { allocate(session, addr, |session| session.calloc(count, bytes)) }
}

/// Changes the size of an allocation, which may move. If it fails, `old` stays as it was. An `old`
/// of 0 allocates.
///
/// One that moves is aligned as by `dmce_malloc`: a larger alignment that was asked for with
/// `dmce_malloc_ex` is kept only as long as the address stays the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_realloc(
    session: *mut dmce_session_t,
    old: dmce_addr_t,
    bytes: u64,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    let grow = |session: &Session| match old {
        0 => session.malloc(bytes),
        _ => session.realloc(session.addr(old)?, bytes),
    };
    // SAFETY: the C contract: NULL, or a place for an address.
    unsafe { allocate(session, addr, grow) }
}

/// Frees an allocation. 0 is fine; freeing twice is `DMCE_E_ADDRESS`, freeing what is mapped
/// `DMCE_E_BUSY`.
///
/// The session can allocate from it again at once. To the daemon go back whole blocks: those of an
/// allocation that has blocks of its own at once, one that several share when nothing in it has
/// been allocated for `broker.idle_s` of the configuration. No block shrinks before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_free(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
) -> dmce_status_t {
    if quick::free(session.addr(), addr) {
        return DMCE_OK;
    }
    free_slowly(session, addr)
}

#[cold]
#[inline(never)]
extern "C" fn free_slowly(session: *mut dmce_session_t, addr: dmce_addr_t) -> dmce_status_t {
    if quick::free_rest(session.addr(), addr) {
        return DMCE_OK;
    }
    boundary::session(session, |session| match addr {
        0 => Ok(session.check()?),
        _ => Ok(session.free_slowly(self::addr(session, addr)?)?),
    })
}

/// How many bytes an allocation really has, at least those that were asked for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_usable_size(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: *mut u64,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a number.
        let out = unsafe { Out::new("bytes", bytes)? };
        out.set(session.usable_size(self::addr(session, addr)?)?);
        Ok(())
    })
}

/// A call that gives an address.
///
/// # Safety
///
/// `addr` is NULL, or an address may be written there until the call returns.
unsafe fn allocate(
    session: *mut dmce_session_t,
    addr: *mut dmce_addr_t,
    body: impl FnOnce(&Session) -> Result<DmceAddr, libdmce::Error>,
) -> dmce_status_t {
    boundary::session(session, |session| -> Outcome {
        // SAFETY: the same contract.
        let out = unsafe { Out::new("addr", addr)? };
        out.set(body(session)?.to_raw());
        Ok(())
    })
}

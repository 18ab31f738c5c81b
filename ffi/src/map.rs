//! Pointers into the memory: pinned ranges, and transparent memory.

use std::ffi::c_void;

use libdmce::Prot;

use crate::alloc::{addr, dmce_addr_t};
use crate::arguments::{Out, null};
use crate::boundary;
use crate::failure::Failure;
use crate::options::{self, dmce_alloc_options_t};
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

/// `prot`: the memory is read.
pub const DMCE_READ: u32 = 1;
/// `prot`: the memory is written.
pub const DMCE_WRITE: u32 = 2;

const _: () = assert!(DMCE_READ == Prot::READ.bits() && DMCE_WRITE == Prot::WRITE.bits());

/// The rights that C passed.
pub(crate) fn prot(bits: u32) -> Result<Prot, Failure> {
    Prot::from_bits(bits).ok_or_else(|| Failure::invalid(format!("{bits:#x} is no prot")))
}

/// Maps a range at consecutive OS addresses. It is pinned until it is unmapped: it can neither be
/// freed nor moved. `prot` is `DMCE_READ`, or `DMCE_READ | DMCE_WRITE`. A session on the message
/// path maps nothing: `DMCE_E_UNSUPPORTED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_map(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    bytes: usize,
    prot: u32,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        let mapped = session.map(self::addr(session, addr)?, bytes, self::prot(prot)?)?;
        out.set(mapped.cast());
        Ok(())
    })
}

/// Ends a mapping, by the pointer that `dmce_map` or `dmce_region_map` gave. What was written by it
/// reaches every copy: until then it is on one of them alone, and goes with that, if its daemon
/// loses it. Another copy is beneath the pointer from then on, without what was written by it
/// before, and nobody is told but by `DMCE_EVENT_COPY_LOST`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_unmap(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            return Err(null("pointer"));
        }
        Ok(session.unmap(pointer.cast_const().cast())?)
    })
}

/// Allocates memory at consecutive OS addresses, over as many blocks of as many daemons as it
/// takes. Plain loads and stores use it, and every other call by the address that `dmce_addr_of`
/// gives. It is zero at first, begins at a multiple of 2 MiB, and ends with `dmce_vfree`, or with
/// the session. `options` may be NULL.
///
/// Stores by the pointer are in the memory at once. With several copies they are on one of them
/// alone until `dmce_sync`; if that one is lost, the pointer goes on with another, without what was
/// stored since.
///
/// `DMCE_E_NOMEM`: this process has not so much address space left in a row, or the session has 512
/// pointers of this and of `dmce_map`. Address space, and pages in tables, are all that it costs: a
/// window budget does not count it. `DMCE_E_NOSPACE`, `DMCE_E_QUOTA` as from `dmce_malloc_ex`. A
/// session on the message path maps nothing: `DMCE_E_UNSUPPORTED`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_vmalloc(
    session: *mut dmce_session_t,
    bytes: u64,
    options: *const dmce_alloc_options_t,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        // SAFETY: the C contract: NULL, or options that begin with their size.
        let options = unsafe { options::of_alloc(options)? };
        out.set(session.vmalloc(bytes, &options)?.into_raw().cast());
        Ok(())
    })
}

/// Frees what `dmce_vmalloc` gave. NULL is fine. `DMCE_E_ADDRESS` for any other pointer, and for
/// one that was freed; `DMCE_E_BUSY` while a pointer of `dmce_map` is into the memory. `dmce_free`
/// of its address is `DMCE_E_BUSY`: this is the call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_vfree(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            session.check()?;
            return Ok(());
        }
        Ok(session.vfree(pointer.cast())?)
    })
}

/// Brings stores that were made by plain pointer to every copy. The range is in what one call of
/// `dmce_vmalloc` or `dmce_region_map` gave, else `DMCE_E_ADDRESS`; 0 bytes are nothing to do,
/// where a byte may be and at the very end. What is stored meanwhile may be brought or not.
///
/// Where the kernel notes them (`dmce doctor`), the pages alone are brought that were stored to by
/// this pointer, in this process: not what a forked child stores, nor what a device still writes.
/// `DMCE_E_LOST`: the copy that was stored to has gone meanwhile, and what was stored with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_sync(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
    bytes: u64,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            return Err(null("pointer"));
        }
        Ok(session.sync(pointer.cast_const().cast(), bytes)?)
    })
}

/// The DMCE address of a byte of transparent memory: of what `dmce_vmalloc` or `dmce_region_map`
/// gave, to the byte; else `DMCE_E_ADDRESS`. May be called while other threads allocate and free:
/// of memory that is freed meanwhile it is the address that it had, or `DMCE_E_ADDRESS`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_addr_of(
    session: *mut dmce_session_t,
    pointer: *const c_void,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        if pointer.is_null() {
            return Err(null("pointer"));
        }
        // SAFETY: the C contract: NULL, or a place for an address.
        let out = unsafe { Out::new("addr", addr)? };
        out.set(session.addr_of(pointer.cast())?.to_raw());
        Ok(())
    })
}

/// The pointer to a byte of transparent memory, by its DMCE address; `DMCE_E_ADDRESS` if that is
/// not in what `dmce_vmalloc` or `dmce_region_map` gave this session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_ptr_of(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        out.set(session.ptr_of(self::addr(session, addr)?)?.cast());
        Ok(())
    })
}

//! Pointers into the memory: pinned ranges, and transparent memory.

use std::ffi::c_void;

use libdmce::Prot;

use crate::alloc::{addr, dmce_addr_t};
use crate::arguments::{Out, null};
use crate::boundary;
use crate::failure::Failure;
use crate::later;
use crate::options::dmce_alloc_options_t;
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

/// Ends a mapping, by the pointer that `dmce_map` gave. What was written by it reaches every copy:
/// until then it is on one of them alone, and goes with that, if its daemon loses it. Another copy
/// is beneath the pointer from then on, without what was written by it before, and nobody is told
/// but by `DMCE_EVENT_COPY_LOST`.
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

const TRANSPARENT: &str = "transparent memory is not in this release";

/// Allocates memory at consecutive OS addresses, over as many blocks as it takes. `options` may be
/// NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_vmalloc(
    session: *mut dmce_session_t,
    bytes: u64,
    options: *const dmce_alloc_options_t,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    let _ = (bytes, options);
    later::on_session(session, &[("pointer", pointer.is_null())], TRANSPARENT)
}

/// Frees what `dmce_vmalloc` gave. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_vfree(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
) -> dmce_status_t {
    let _ = pointer;
    later::on_session(session, &[], TRANSPARENT)
}

/// Brings stores that were made by plain pointer to every copy.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_sync(
    session: *mut dmce_session_t,
    pointer: *mut c_void,
    bytes: u64,
) -> dmce_status_t {
    let _ = bytes;
    later::on_session(session, &[("pointer", pointer.is_null())], TRANSPARENT)
}

/// The DMCE address of a byte of transparent memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_addr_of(
    session: *mut dmce_session_t,
    pointer: *const c_void,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    let required = [("pointer", pointer.is_null()), ("addr", addr.is_null())];
    later::on_session(session, &required, TRANSPARENT)
}

/// The pointer to a byte of transparent memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_ptr_of(
    session: *mut dmce_session_t,
    addr: dmce_addr_t,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    let _ = addr;
    later::on_session(session, &[("pointer", pointer.is_null())], TRANSPARENT)
}

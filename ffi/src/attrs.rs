//! The attributes of a region: a copy that is taken once and then asked by name.

use std::ffi::c_char;

use crate::arguments::null;
use crate::boundary::{self, Outcome};
use crate::failure::Failure;
use crate::later;
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

/// Stands for the attributes of a region in C. No value of it exists: see [`crate::handles`].
#[repr(C)]
pub struct dmce_attrs_t {
    _private: [u8; 0],
}

const ATTRS: &str = "attributes of regions are not in this release";

/// The attributes of a region as they are now, to be freed with `dmce_attrs_free`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_attrs(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
    attrs: *mut *mut dmce_attrs_t,
) -> dmce_status_t {
    let required =
        [("volume", volume.is_null()), ("name", name.is_null()), ("attrs", attrs.is_null())];
    later::on_session(session, &required, ATTRS)
}

/// An attribute of 64 bits. Another type is `DMCE_E_INVALID`, an unknown name `DMCE_E_NOTFOUND`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_attr_u64(
    attrs: *const dmce_attrs_t,
    attr_name: *const c_char,
    value: *mut u64,
) -> dmce_status_t {
    read(attrs, attr_name.is_null(), value.is_null())
}

/// An attribute of 32 bits, as `dmce_attr_u64`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_attr_u32(
    attrs: *const dmce_attrs_t,
    attr_name: *const c_char,
    value: *mut u32,
) -> dmce_status_t {
    read(attrs, attr_name.is_null(), value.is_null())
}

/// An attribute of 16 bits, as `dmce_attr_u64`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_attr_u16(
    attrs: *const dmce_attrs_t,
    attr_name: *const c_char,
    value: *mut u16,
) -> dmce_status_t {
    read(attrs, attr_name.is_null(), value.is_null())
}

/// A text attribute. `max_string_len` includes the NUL; what does not fit is cut, and the answer is
/// `DMCE_E_NOSPACE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_attr_str(
    attrs: *const dmce_attrs_t,
    attr_name: *const c_char,
    value: *mut c_char,
    max_string_len: usize,
) -> dmce_status_t {
    let _ = max_string_len;
    read(attrs, attr_name.is_null(), value.is_null())
}

/// Frees the attributes. NULL is fine.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_attrs_free(attrs: *mut dmce_attrs_t) {
    // None has ever been given out, so there is nothing to free.
    let _ = attrs;
}

/// No attributes are given out in this release, so none that come in can be real.
fn read(attrs: *const dmce_attrs_t, no_name: bool, no_value: bool) -> dmce_status_t {
    boundary::call(|| -> Outcome {
        if attrs.is_null() {
            return Err(null("attrs"));
        }
        if no_name {
            return Err(null("attr_name"));
        }
        if no_value {
            return Err(null("value"));
        }
        Err(Failure::invalid(format!("{attrs:?} are no attributes: {ATTRS}")))
    })
}

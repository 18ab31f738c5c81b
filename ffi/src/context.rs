//! Contexts (001 FIG. 6): a session's allocations and a blob of the caller's own, under a name.

use std::ffi::{c_char, c_void};

use crate::later;
use crate::session::dmce_session_t;
use crate::version::dmce_status_t;

const CONTEXTS: &str = "contexts are not in this release";

/// Saves the session's allocations, its transparent mappings and `bytes` bytes at `root` under a
/// name. The session goes on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_context_save(
    session: *mut dmce_session_t,
    name: *const c_char,
    root: *const c_void,
    bytes: usize,
) -> dmce_status_t {
    let required = [("name", name.is_null()), ("root", root.is_null() && bytes != 0)];
    later::on_session(session, &required, CONTEXTS)
}

/// Brings back what was saved into a session without allocations. `root` gets at most `max_bytes`
/// of the blob, `bytes` its size.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_context_restore(
    session: *mut dmce_session_t,
    name: *const c_char,
    root: *mut c_void,
    max_bytes: usize,
    bytes: *mut usize,
) -> dmce_status_t {
    let no_root = root.is_null() && max_bytes != 0;
    let required = [("name", name.is_null()), ("root", no_root), ("bytes", bytes.is_null())];
    later::on_session(session, &required, CONTEXTS)
}

/// Removes what was saved under a name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_context_delete(
    session: *mut dmce_session_t,
    name: *const c_char,
) -> dmce_status_t {
    later::on_session(session, &[("name", name.is_null())], CONTEXTS)
}

//! Objects for the tests of this crate.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use dmce_sys::object::{DEFAULT_DIR, ObjectDir};

/// A new, empty shared memory object without a name, so that nothing is left of it.
#[allow(clippy::unwrap_used, reason = "for tests, outside of a test function")]
pub(crate) fn object() -> OwnedFd {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("dmce.testshm-{}.1.pool-{number:08x}", std::process::id());
    let dir = ObjectDir::open(DEFAULT_DIR).unwrap();
    let fd = dir.create(&name).unwrap();
    dir.unlink(&name).unwrap();
    fd
}

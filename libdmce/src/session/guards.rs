//! Pointers that lock, as values: given back when they are dropped.

use std::fmt;
use std::mem;
use std::sync::Arc;
use std::thread;

use dmce_abi::DmceAddr;
#[expect(unused_imports, reason = "the documentation names it")]
use dmce_abi::Status;

use super::core::Core;
use crate::error::Error;
use crate::options::PointerOptions;

/// A range that others may read as well, and nobody has a [`WriteGuard`] for. Dropping it releases
/// it.
#[must_use = "the range is released when this is dropped"]
pub struct ReadGuard(Held);

/// A range that nobody else has a pointer to.
///
/// Dropping it releases it, so that what was stored is on every copy; while its thread unwinds it
/// aborts it, so that the range is as it was before, if there is a second copy to say that. Who
/// wants to know whether that came to its end says [`WriteGuard::release`] or
/// [`WriteGuard::abort`].
#[must_use = "the range is released when this is dropped"]
pub struct WriteGuard(Held);

struct Held {
    core: Arc<Core>,
    pointer: *mut u8,
    addr: DmceAddr,
    bytes: usize,
}

// SAFETY: the pointer is to memory that is shared between processes, and mapped until it is
// released, which any thread may do.
unsafe impl Send for Held {}
// SAFETY: as above; nothing is changed through `&self`.
unsafe impl Sync for Held {}

impl Held {
    fn take(
        core: &Arc<Core>,
        (addr, bytes): (DmceAddr, usize),
        exclusive: bool,
        options: PointerOptions,
    ) -> Result<Self, Error> {
        let pointer = core.take_pointer(addr, bytes, exclusive, options)?;
        Ok(Self { core: Arc::clone(core), pointer, addr, bytes })
    }

    /// Ends the value with a call, and not once more when it is dropped.
    fn end(self, end: impl FnOnce(&Core, *mut u8) -> Result<(), Error>) -> Result<(), Error> {
        let ended = end(&self.core, self.pointer);
        // What was not released stays the session's, as after `into_raw`.
        drop(self);
        ended
    }

    fn drop_with(&self, end: impl FnOnce(&Core, *mut u8) -> Result<(), Error>) {
        if self.core.is_forked() {
            // The session is the parent's: nothing is touched.
            mem::forget(Arc::clone(&self.core));
            return;
        }
        if let Err(error) = end(&self.core, self.pointer)
            && !self.core.is_closed()
        {
            tracing::warn!(%error, "a pointer was dropped and stays");
        }
    }

    fn fmt(&self, f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
        let mut shown = f.debug_struct(name);
        shown.field("pointer", &self.pointer).field("addr", &self.addr);
        shown.field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl fmt::Debug for ReadGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f, "ReadGuard")
    }
}

impl fmt::Debug for WriteGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f, "WriteGuard")
    }
}

impl ReadGuard {
    pub(super) fn take(
        core: &Arc<Core>,
        range: (DmceAddr, usize),
        options: PointerOptions,
    ) -> Result<Self, Error> {
        Held::take(core, range, false, options).map(Self)
    }

    /// The first byte, of shared memory: calls that write, and who has no pointer, may change it.
    #[must_use]
    pub const fn as_ptr(&self) -> *const u8 {
        self.0.pointer.cast_const()
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> DmceAddr {
        self.0.addr
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.bytes
    }

    /// Never: there is no pointer to no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// Gives it back.
    ///
    /// # Errors
    ///
    /// As [`crate::Session::release_ptr`].
    pub fn release(self) -> Result<(), Error> {
        take_held(self, |guard| &raw const guard.0).end(|core, at| core.release_pointer(at))
    }

    /// The pointer, to be released by [`crate::Session::release_ptr`], or with the session.
    #[must_use]
    pub fn into_raw(self) -> *const u8 {
        take_held(self, |guard| &raw const guard.0).pointer.cast_const()
    }
}

impl WriteGuard {
    pub(super) fn take(
        core: &Arc<Core>,
        range: (DmceAddr, usize),
        options: PointerOptions,
    ) -> Result<Self, Error> {
        Held::take(core, range, true, options).map(Self)
    }

    /// The first byte, of shared memory.
    #[must_use]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.0.pointer
    }

    /// Where it is.
    #[must_use]
    pub const fn addr(&self) -> DmceAddr {
        self.0.addr
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.bytes
    }

    /// Never: there is no pointer to no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.bytes == 0
    }

    /// Gives it back, with what was stored on every copy.
    ///
    /// # Errors
    ///
    /// As [`crate::Session::release_ptr`]. What could not be released stays the session's.
    pub fn release(self) -> Result<(), Error> {
        take_held(self, |guard| &raw const guard.0).end(|core, at| core.release_pointer(at))
    }

    /// Gives it back, with the range as it was.
    ///
    /// # Errors
    ///
    /// As [`crate::Session::abort_ptr`]. What could not be aborted stays the session's.
    pub fn abort(self) -> Result<(), Error> {
        take_held(self, |guard| &raw const guard.0).end(Core::abort_pointer)
    }

    /// The pointer, to be released by [`crate::Session::release_ptr`], or with the session.
    #[must_use]
    pub fn into_raw(self) -> *mut u8 {
        take_held(self, |guard| &raw const guard.0).pointer
    }
}

/// What a guard holds, without its end.
fn take_held<G>(guard: G, held: impl FnOnce(&G) -> *const Held) -> Held {
    let guard = mem::ManuallyDrop::new(guard);
    // SAFETY: the guard is not dropped, so what it holds is moved out of it here alone.
    unsafe { held(&guard).read() }
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        self.0.drop_with(|core, at| core.release_pointer(at));
    }
}

impl Drop for WriteGuard {
    fn drop(&mut self) {
        let is_unwinding = thread::panicking();
        self.0.drop_with(|core, at| {
            if is_unwinding && core.abort_pointer(at).is_ok() {
                return Ok(());
            }
            core.release_pointer(at)
        });
    }
}

//! A session: open, close, poll, flush, and what it says about itself.

use std::ptr;

use libdmce::{Session, Status};

use crate::arguments::Out;
use crate::boundary::{self, InSession, Outcome};
use crate::failure::Failure;
use crate::handles::{self, Object};
use crate::options::{self, dmce_options_t};
use crate::region::OpenRegion;
use crate::sized::Fill;
use crate::version::dmce_status_t;

/// Stands for a session in C. No value of it exists: see [`handles`].
#[repr(C)]
pub struct dmce_session_t {
    _private: [u8; 0],
}

/// What the handle of a session stands for.
pub(crate) struct OpenSession {
    pub(crate) session: Session,
}

impl Object for OpenSession {
    const KIND: usize = 1;
    const NAME: &'static str = "session";
}

impl InSession for OpenSession {
    fn session_handle(&self, own: usize) -> usize {
        own
    }

    fn check(&self) -> Result<(), libdmce::Error> {
        self.session.check()
    }
}

/// What a session holds and how it reaches it. Set `size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_stat_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// Width of the server field of an address.
    pub server_bits: u32,
    /// Width of the block field.
    pub block_bits: u32,
    /// Width of the cell field: a block has at most 1 << `cell_bits` bytes.
    pub cell_bits: u32,
    /// Bytes that were reserved when the session was opened.
    pub reserved_bytes: u64,
    /// Bytes of the session's allocations.
    pub allocated_bytes: u64,
    /// Bytes that the session's blocks have.
    pub committed_bytes: u64,
    /// Bytes that the user may hold in all; `UINT64_MAX` without a limit.
    pub quota_bytes: u64,
    /// The session's blocks.
    pub blocks: u64,
    /// Windows that are mapped now. 0 where blocks are mapped whole.
    pub windows: u64,
    /// Bytes of address space that the windows may take. 0 where blocks are mapped whole.
    pub window_bytes: u64,
    /// How often something that the session knew of its memory has changed.
    pub epoch: u64,
}

/// Opens a session with a broker. `options` may be NULL.
///
/// Fails without a session where less than `reserve_bytes` can be reserved, unless
/// `DMCE_ACCEPT_PARTIAL` is set and there is something; `dmce_stat` tells how much it is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_open(
    options: *const dmce_options_t,
    session: *mut *mut dmce_session_t,
) -> dmce_status_t {
    boundary::silence_panics();
    boundary::call(|| {
        // SAFETY: the C contract: NULL, or a place for a handle.
        let out = unsafe { Out::new("session", session)? };
        // SAFETY: the C contract: NULL, or options that begin with their size.
        let options = unsafe { options::of_session(options)? };
        let opened = handles::open(OpenSession { session: Session::open(&options)? }, 0);
        let handle = opened.map_err(|(unused, failure)| {
            // The caller learns why there is no session; that its end failed too adds nothing.
            let _ = unused.session.close();
            failure
        })?;
        handles::enter::<OpenSession>(handle)?.session.set_key(handle);
        out.set(ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Closes a session: frees what it allocated, closes its regions. Regions themselves stay.
///
/// The handle is closed in any case but `DMCE_E_FORKED`. Calls of other threads that are under way
/// end first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_close(session: *mut dmce_session_t) -> dmce_status_t {
    let handle = session.addr();
    boundary::closing::<OpenSession>(handle, || {
        // The visit is over with this line, or the end would wait for it.
        let state = handles::enter::<OpenSession>(handle)?.session.check();
        // A session that the broker has ended is closed all the same; a parent's is the parent's.
        match state {
            Err(error) if error.status() == Status::Forked => Err(error.into()),
            _ => end(handle),
        }
    })
}

/// Ends the session of `handle` and all that belongs to it; also what an end that failed half-way
/// has left.
pub(crate) fn end(handle: usize) -> Outcome {
    let retired = handles::retire::<OpenSession>(handle);
    let outcome = match retired {
        Ok(mut retired) => {
            // Wakes calls that wait; those that begin are refused by the handle.
            let closed = retired.session.close();
            // A region that is being opened right now has its handle when the last call has left.
            retired.wait();
            closed.map_err(Failure::from)
        }
        Err(refused) => Err(refused),
    };
    // 0 is no session, but it stands for none where handles have no other to end with.
    if handle != 0 {
        drop(handles::retire_children::<OpenRegion>(handle));
    }
    outcome
}

/// Does what the service thread would do now, for sessions with `DMCE_NO_THREAD`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_poll(session: *mut dmce_session_t) -> dmce_status_t {
    boundary::session(session, |session| Ok(session.poll()?))
}

/// Brings to the memory what write-back still holds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_flush(session: *mut dmce_session_t) -> dmce_status_t {
    boundary::session(session, |session| Ok(session.flush()?))
}

/// What the session holds. `stat->size` must be set; no more than that is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_stat(
    session: *mut dmce_session_t,
    stat: *mut dmce_stat_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a structure that begins with its size.
        let fill = unsafe { Fill::new(stat)? };
        let found = session.stat()?;
        fill.set(&dmce_stat_t {
            size: 0,
            server_bits: found.server_bits,
            block_bits: found.block_bits,
            cell_bits: found.cell_bits,
            reserved_bytes: found.reserved_bytes,
            allocated_bytes: found.allocated_bytes,
            committed_bytes: found.committed_bytes,
            quota_bytes: found.quota_bytes,
            blocks: found.blocks,
            windows: found.windows,
            window_bytes: found.window_bytes,
            epoch: found.epoch,
        });
        Ok(())
    })
}

//! A session: memory of this process in blocks of the daemons.
//!
//! ```text
//!   Session -- malloc, free .... objects   -+
//!           -- and the rest of it  memory    |
//!           -- read, write, copy  data      +-- core: slots, table, changes -- link -- broker
//!           -- cas64, wait64 .... atomic    |
//!           -- map, unmap ....... mapping   |
//!           -- vmalloc, addr_of . transparent
//!           -- region_* ......... region   -+   service: what nobody calls for
//! ```

mod arbiter;
mod atomic;
mod bell;
mod by_pointer;
mod copying;
mod core;
mod data;
mod fetching;
mod guards;
mod holders;
mod link;
mod mapping;
mod memory;
mod message;
mod objects;
mod open;
mod openings;
mod parts;
mod patience;
mod pointers;
mod region;
mod service;
mod storing;
mod tracking;
mod transparent;

use std::cmp::Ordering;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering as MemoryOrdering;

#[expect(unused_imports, reason = "the documentation names it")]
use dmce_abi::Status;
use dmce_abi::{AddrLayout, DmceAddr};

use self::core::Core;
use crate::error::Error;
use crate::events::Event;
use crate::options::{AllocOptions, Options, Prot, RegionOptions};
use crate::quick;
use crate::reach::word::Change;
use crate::stat::Stat;
pub use guards::{ReadGuard, WriteGuard};
pub use region::Region;
pub use transparent::VirtualMemory;

/// An open session. Dropping it closes it.
///
/// Calls may come from any thread at any time. In a forked child every call is
/// [`Status::Forked`], and dropping the session touches nothing of the parent's.
///
/// Errors that any call may give: [`Status::Closed`] after [`Session::close`], or when the broker
/// has ended the session; [`Status::Forked`]; [`Status::Unavailable`] if the broker is needed and
/// away for longer than the options' timeout.
pub struct Session {
    core: Arc<Core>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("session", &self.core.ready.session)
            .field("instance", &self.core.ready.instance)
            .field("is_closed", &self.core.is_closed())
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Opens a session (FIG. 13): finds a broker as the crate's page says, and reserves what is
    /// asked for.
    ///
    /// # Errors
    ///
    /// [`Status::Unavailable`] without a broker, [`Status::NoSpace`] or [`Status::Quota`] for a
    /// reservation that cannot be had, [`Status::Version`] for a broker of another release,
    /// [`Status::NoMem`], [`Status::Invalid`], [`Status::Unsupported`].
    pub fn open(options: &Options) -> Result<Self, Error> {
        Ok(Self { core: open::open(options)? })
    }

    /// Ends the session: what it allocated is freed, regions stay. Calls of other threads that wait
    /// for the broker end with [`Status::Closed`]; those that are inside of memory are waited for.
    /// Pointers of [`Session::map`] are of no more use.
    ///
    /// # Errors
    ///
    /// [`Status::Closed`] if it is closed already.
    pub fn close(&self) -> Result<(), Error> {
        self.core.close()
    }

    /// Does what the service thread would do now, for sessions without one.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn poll(&self) -> Result<(), Error> {
        self.core.usable()?;
        self.core.tend();
        self.core.usable()
    }

    /// Whether calls may be made at all.
    ///
    /// # Errors
    ///
    /// [`Status::Closed`], [`Status::Forked`].
    pub fn check(&self) -> Result<(), Error> {
        self.core.usable()
    }

    /// How the addresses of this instance are divided.
    #[must_use]
    pub fn layout(&self) -> AddrLayout {
        self.core.layout
    }

    /// The address that C holds as a number.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] for a number that is no address of any block.
    #[inline]
    pub fn addr(&self, raw: u64) -> Result<DmceAddr, Error> {
        Ok(DmceAddr::from_raw(self.core.layout, raw)?)
    }

    /// Allocates memory. Its bytes are zero, or older bytes of this session.
    ///
    /// The address is a multiple of 16, from 4 KiB up of 4 KiB.
    ///
    /// # Errors
    ///
    /// [`Status::NoSpace`], [`Status::Quota`]; [`Status::Invalid`] for 0 bytes; [`Status::NoMem`]
    /// if this process cannot reach another block.
    #[inline]
    pub fn malloc(&self, bytes: u64) -> Result<DmceAddr, Error> {
        match quick::malloc(self.core.key().number(), bytes) {
            0 => self.core.malloc(bytes),
            addr => Ok(DmceAddr::from_raw(self.core.layout, addr)?),
        }
    }

    /// Has the session answer to a key of the caller's, in place of its own: a number that is not
    /// 0, with lowest bits that are not both 0, and no other session's of this process.
    #[doc(hidden)]
    pub fn set_key(&self, key: usize) {
        self.core.key.store(key, MemoryOrdering::Relaxed);
    }

    /// [`Session::malloc`], after [`quick::malloc`] has done nothing.
    #[doc(hidden)]
    pub fn malloc_slowly(&self, bytes: u64) -> Result<DmceAddr, Error> {
        self.core.malloc(bytes)
    }

    /// [`Session::malloc`] with options.
    ///
    /// # Errors
    ///
    /// As [`Session::malloc`]; [`Status::NotFound`] for a policy that is not there;
    /// [`Status::Timeout`] if it waited for room and there was none in time.
    pub fn malloc_with(&self, bytes: u64, options: &AllocOptions) -> Result<DmceAddr, Error> {
        self.core.malloc_with(bytes, options)
    }

    /// Allocates `count` times `bytes` bytes of zeros.
    ///
    /// # Errors
    ///
    /// As [`Session::malloc`]; [`Status::NoSpace`] for a product that no number holds.
    pub fn calloc(&self, count: u64, bytes: u64) -> Result<DmceAddr, Error> {
        self.core.calloc(count, bytes)
    }

    /// Changes the size of an allocation, which may move. The bytes of the smaller size are kept.
    /// One that moves is aligned as by [`Session::malloc`]: a larger alignment that was asked for
    /// is kept only as long as the address stays the same.
    ///
    /// # Errors
    ///
    /// As [`Session::malloc`] and [`Session::free`]; the allocation is then as it was.
    pub fn realloc(&self, old: DmceAddr, bytes: u64) -> Result<DmceAddr, Error> {
        self.core.realloc(old, bytes)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] if none begins there: freed before, inside of one, or not of this
    /// session. [`Status::Busy`] while a pointer of [`Session::map`] is into it.
    #[inline]
    pub fn free(&self, addr: DmceAddr) -> Result<(), Error> {
        let key = self.core.key().number();
        if quick::free(key, addr.to_raw()) || quick::free_rest(key, addr.to_raw()) {
            return Ok(());
        }
        self.core.free_slowly(addr)
    }

    /// [`Session::free`], after [`quick::free`] has done nothing.
    #[doc(hidden)]
    pub fn free_slowly(&self, addr: DmceAddr) -> Result<(), Error> {
        self.core.free_slowly(addr)
    }

    /// The bytes of an allocation that may be used: at least those asked for.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] if no allocation begins there.
    pub fn usable_size(&self, addr: DmceAddr) -> Result<u64, Error> {
        self.core.usable_size(addr)
    }

    /// Copies bytes out. No bytes are copied where a byte may be, and from the very end of an
    /// allocation or a region.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] if not all of the range is the session's, [`Status::Lost`].
    #[inline]
    pub fn read(&self, from: DmceAddr, buffer: &mut [u8]) -> Result<(), Error> {
        let (key, bytes) = (self.core.key().number(), buffer.len());
        // SAFETY: the buffer is writable for its length.
        if unsafe { quick::read(key, from.to_raw(), buffer.as_mut_ptr(), bytes) } {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { self.read_raw(from, buffer.as_mut_ptr(), bytes) }
    }

    /// [`Session::read`] into memory that is known by its address.
    ///
    /// # Errors
    ///
    /// As [`Session::read`].
    ///
    /// # Safety
    ///
    /// `buffer` is writable for `bytes`.
    #[inline]
    pub unsafe fn read_raw(
        &self,
        from: DmceAddr,
        buffer: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: as the caller promises.
        unsafe { self.core.read(from, buffer, bytes)? };
        self.core.open_door(bytes);
        Ok(())
    }

    /// Copies bytes in; done on every copy when it returns.
    ///
    /// # Errors
    ///
    /// As [`Session::read`]; [`Status::Denied`] if the range may only be read; [`Status::Io`] if
    /// the options ask for verification and it fails: the content is then undefined.
    #[inline]
    pub fn write(&self, to: DmceAddr, data: &[u8]) -> Result<(), Error> {
        let (key, bytes) = (self.core.key().number(), data.len());
        // SAFETY: the data is readable for its length.
        if unsafe { quick::write(key, to.to_raw(), data.as_ptr(), bytes) } {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { self.write_raw(to, data.as_ptr(), bytes) }
    }

    /// [`Session::write`] from memory that is known by its address.
    ///
    /// # Errors
    ///
    /// As [`Session::write`].
    ///
    /// # Safety
    ///
    /// `data` is readable for `bytes`.
    #[inline]
    pub unsafe fn write_raw(
        &self,
        to: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        // SAFETY: as the caller promises.
        unsafe { self.core.write(to, data, bytes)? };
        self.core.open_door(bytes);
        Ok(())
    }

    /// Copies bytes from one range to another, which may overlap, as `memmove` does.
    ///
    /// # Errors
    ///
    /// As [`Session::read`] and [`Session::write`].
    pub fn copy(&self, to: DmceAddr, from: DmceAddr, bytes: u64) -> Result<(), Error> {
        self.core.copy(to, from, bytes)
    }

    /// Sets every byte of a range.
    ///
    /// # Errors
    ///
    /// As [`Session::write`].
    pub fn fill(&self, to: DmceAddr, byte: u8, bytes: u64) -> Result<(), Error> {
        self.core.fill(to, byte, bytes)
    }

    /// Compares a range with `data`, as `memcmp` does.
    ///
    /// # Errors
    ///
    /// As [`Session::read`].
    pub fn compare(&self, at: DmceAddr, data: &[u8]) -> Result<Ordering, Error> {
        // SAFETY: the data is readable for its length, and borrowed.
        unsafe { self.core.compare(at, data.as_ptr(), data.len()) }
    }

    /// [`Session::compare`] with memory that is known by its address.
    ///
    /// # Errors
    ///
    /// As [`Session::compare`].
    ///
    /// # Safety
    ///
    /// `data` is readable for `bytes`, and written by nobody meanwhile.
    pub unsafe fn compare_raw(
        &self,
        at: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<Ordering, Error> {
        // SAFETY: as the caller promises.
        unsafe { self.core.compare(at, data, bytes) }
    }

    /// Makes the word at `addr`, which is a multiple of 8, `desired` if it is `expected`, on every
    /// copy, atomically among all processes. Returns what it was: `expected`, if it was changed.
    ///
    /// # Errors
    ///
    /// As [`Session::write`]; [`Status::Invalid`] for an address that is not aligned. Nothing was
    /// changed then; but by message, [`Status::Io`] says that it may have been, since a daemon or
    /// the broker did not answer, and [`Status::Timeout`], where its text says so, that it may be
    /// yet.
    #[inline]
    pub fn cas64(&self, addr: DmceAddr, expected: u64, desired: u64) -> Result<u64, Error> {
        self.core.change_word(addr, Change::Exchange { expected, desired })
    }

    /// Adds to the word at `addr`, which is a multiple of 8, wrapping around, atomically among all
    /// processes, on every copy. Returns what it was.
    ///
    /// # Errors
    ///
    /// As [`Session::cas64`].
    #[inline]
    pub fn add64(&self, addr: DmceAddr, add: u64) -> Result<u64, Error> {
        self.core.change_word(addr, Change::Add(add))
    }

    /// Waits while the word at `addr` is `while_equal`. Whoever changes it calls
    /// [`Session::wake`]; a change that nobody tells of may be noticed at once, late or not at all.
    /// A word that was changed and changed back in the meantime counts as not changed. `timeout_ms`
    /// is in milliseconds; 0 is for ever. The session's time limit does not end it, also while the
    /// broker or a daemon that has to be asked does not answer.
    ///
    /// # Errors
    ///
    /// [`Status::Timeout`]; as [`Session::read`]; [`Status::Invalid`] for an address that is not
    /// aligned; [`Status::NoMem`] without the address space for a page; [`Status::Closed`] also if
    /// the session is closed meanwhile.
    pub fn wait64(&self, addr: DmceAddr, while_equal: u64, timeout_ms: u32) -> Result<(), Error> {
        self.core.wait_word(addr, while_equal, timeout_ms)
    }

    /// Wakes at most `count` of those who wait for a word, of all processes. May be called by
    /// whoever may read it.
    ///
    /// # Errors
    ///
    /// As [`Session::wait64`].
    pub fn wake(&self, addr: DmceAddr, count: u32) -> Result<(), Error> {
        self.core.wake_word(addr, count)
    }

    /// Waits until everything that was written is in the blocks: it is, since nothing is written
    /// back later.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn flush(&self) -> Result<(), Error> {
        self.core.usable()
    }

    /// What the session holds. Needs no broker.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn stat(&self) -> Result<Stat, Error> {
        self.core.usable()?;
        let (windows, window_bytes) = self.core.ways.windows();
        let usage = self.core.publish_usage();
        let layout = self.core.layout;
        Ok(Stat {
            server_bits: layout.server_bits().into(),
            block_bits: layout.block_bits().into(),
            cell_bits: layout.cell_bits().into(),
            reserved_bytes: self.core.ready.reserved,
            allocated_bytes: usage.in_use,
            committed_bytes: usage.committed,
            quota_bytes: self.core.ready.quota,
            blocks: usage.blocks,
            windows,
            window_bytes,
            epoch: self.core.map.known(),
        })
    }

    /// A descriptor that is readable exactly while an event waits: fits `poll` and `epoll`. The
    /// broker tells of events from the first call of this or of [`Session::next_event`] on; without
    /// a service thread they come in by [`Session::poll`].
    ///
    /// # Errors
    ///
    /// As every call; [`Status::NoMem`] without a descriptor.
    pub fn event_fd(&self) -> Result<BorrowedFd<'_>, Error> {
        self.core.event_fd()
    }

    /// Takes the oldest event; `None` if none waits. Of more than 256 the oldest are forgotten.
    ///
    /// # Errors
    ///
    /// As every call.
    pub fn next_event(&self) -> Result<Option<Event>, Error> {
        self.core.next_event()
    }

    /// Creates a region (004).
    ///
    /// # Errors
    ///
    /// [`Status::Exists`], [`Status::NoSpace`], [`Status::Quota`], [`Status::Invalid`] for a name
    /// or size that cannot be, [`Status::Unsupported`].
    pub fn region_create(
        &self,
        volume: &str,
        name: &str,
        region_size: u64,
        options: &RegionOptions,
    ) -> Result<(), Error> {
        self.core.region_create(volume, name, region_size, options)
    }

    /// Deletes a region. Handles of this session do not hinder it; they answer
    /// [`Status::Closed`] from then on, also if the broker dies over it and the region stays.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`], [`Status::Denied`]. [`Status::Busy`] while another session has it
    /// open, or if the daemon that holds its beginning stays away: then nothing is deleted.
    /// [`Status::Unavailable`] if it went away over the deletion, or the broker is: then the
    /// region may go yet.
    pub fn region_delete(&self, volume: &str, name: &str) -> Result<(), Error> {
        self.core.region_delete(volume, name)
    }

    /// Opens a region.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`], also for one that the caller neither owns nor has any right to;
    /// [`Status::Denied`] for a right that its mode does not grant.
    pub fn region_open(&self, volume: &str, name: &str, prot: Prot) -> Result<Region, Error> {
        self.core.region_open(volume, name, prot)
    }

    /// The names of a volume's regions that this user may know of, sorted.
    ///
    /// # Errors
    ///
    /// [`Status::Invalid`] for a name that no volume has.
    pub fn region_list(&self, volume: &str) -> Result<Vec<String>, Error> {
        self.core.region_list(volume)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.core.is_forked() {
            // Everything is the parent's, and locks may be held by threads that are not here.
            std::mem::forget(Arc::clone(&self.core));
            return;
        }
        // Closed before: nothing is left to do.
        let _ = self.close();
    }
}

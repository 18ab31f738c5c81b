//! A session of the C interface that closes itself, and a region of it.

mod transparent;

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use dmce::map::{DMCE_READ, DMCE_WRITE};
use dmce::options::{dmce_alloc_options_t, dmce_options_t};
use dmce::region::dmce_region_t;
use dmce::session::dmce_session_t;

use crate::calls::Calls;
use crate::memory::Area;
use crate::{Error, Result};

/// Long enough for a span of gigabytes to be committed.
const TIMEOUT_MS: u32 = 120_000;

/// How to allocate. 0 is the default of each.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    /// The page size of the block.
    pub page_size: u32,
    /// Copies.
    pub copies: u32,
}

/// An open session. Any thread may use it.
#[derive(Debug)]
pub struct Session {
    calls: Calls,
    handle: *mut dmce_session_t,
}

// SAFETY: the handle of a session may be used from any thread (`libdmce.h`).
unsafe impl Send for Session {}

// SAFETY: and from several at once.
unsafe impl Sync for Session {}

impl Session {
    /// Opens one with the broker at `socket`; `flags` as of `dmce_options_t`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn open(calls: Calls, socket: &Path, flags: u32) -> Result<Self> {
        let socket = CString::new(socket.as_os_str().as_bytes());
        let socket = socket.map_err(|error| Error::of("naming a socket", error))?;
        let mut options = MaybeUninit::<dmce_options_t>::zeroed();
        // SAFETY: the structure has the size that is passed.
        unsafe {
            (calls.dmce_options_init_sized)(options.as_mut_ptr(), size_of::<dmce_options_t>());
        }
        // SAFETY: all fields are numbers and pointers, which may be zero, and it was zeroed.
        let mut options = unsafe { options.assume_init() };
        options.socket = socket.as_ptr();
        options.timeout_ms = TIMEOUT_MS;
        options.flags = flags;
        let mut handle = ptr::null_mut();
        // SAFETY: options that live through the call, and a place for the handle.
        calls.check("dmce_open", unsafe {
            (calls.dmce_open)(&raw const options, &raw mut handle)
        })?;
        Ok(Self { calls, handle })
    }

    /// Closes it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn close(self) -> Result<()> {
        let closing = std::mem::ManuallyDrop::new(self);
        // SAFETY: an open handle, which is not used afterwards.
        closing.calls.check("dmce_close", unsafe { (closing.calls.dmce_close)(closing.handle) })
    }

    /// Allocates.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    #[inline]
    pub fn malloc(&self, bytes: u64) -> Result<u64> {
        let mut addr = 0;
        // SAFETY: an open handle and a place for the address.
        let status = unsafe { (self.calls.dmce_malloc)(self.handle, bytes, &raw mut addr) };
        self.calls.check("dmce_malloc", status)?;
        Ok(addr)
    }

    /// Allocates as `wanted` says.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn malloc_as(&self, bytes: u64, wanted: Wanted) -> Result<u64> {
        let mut options = MaybeUninit::<dmce_alloc_options_t>::zeroed();
        let size = size_of::<dmce_alloc_options_t>();
        // SAFETY: the structure has the size that is passed.
        unsafe { (self.calls.dmce_alloc_options_init_sized)(options.as_mut_ptr(), size) };
        // SAFETY: all fields are numbers and pointers, which may be zero, and it was zeroed.
        let mut options = unsafe { options.assume_init() };
        options.page_size = wanted.page_size;
        options.copies = wanted.copies;
        let mut addr = 0;
        // SAFETY: an open handle, options that live through the call, a place for the address.
        let status = unsafe {
            (self.calls.dmce_malloc_ex)(self.handle, bytes, &raw const options, &raw mut addr)
        };
        self.calls.check("dmce_malloc_ex", status)?;
        Ok(addr)
    }

    /// Frees.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    #[inline]
    pub fn free(&self, addr: u64) -> Result<()> {
        // SAFETY: an open handle.
        self.calls.check("dmce_free", unsafe { (self.calls.dmce_free)(self.handle, addr) })
    }

    /// Reads `bytes` bytes from `addr` to `to`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    ///
    /// # Safety
    ///
    /// `bytes` bytes at `to` may be written.
    #[inline]
    pub unsafe fn read(&self, addr: u64, to: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: an open handle; the rest is this function's own contract.
        let status = unsafe { (self.calls.dmce_read)(self.handle, addr, to.cast(), bytes) };
        self.calls.check("dmce_read", status)
    }

    /// Writes `bytes` bytes from `from` to `addr`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    ///
    /// # Safety
    ///
    /// `bytes` bytes at `from` may be read.
    #[inline]
    pub unsafe fn write(&self, addr: u64, from: *const u8, bytes: usize) -> Result<()> {
        // SAFETY: an open handle; the rest is this function's own contract.
        let status = unsafe { (self.calls.dmce_write)(self.handle, addr, from.cast(), bytes) };
        self.calls.check("dmce_write", status)
    }

    /// Makes the word at `addr` `desired` if it is `expected`. Returns what it was.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    #[inline]
    pub fn cas64(&self, addr: u64, expected: u64, desired: u64) -> Result<u64> {
        let (mut seen, to) = (0, self.handle);
        // SAFETY: an open handle and a place for what the word was.
        let status = unsafe { (self.calls.dmce_cas64)(to, addr, expected, desired, &raw mut seen) };
        self.calls.check("dmce_cas64", status)?;
        Ok(seen)
    }

    /// Adds to the word at `addr`. Returns what it was.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    #[inline]
    pub fn add64(&self, addr: u64, add: u64) -> Result<u64> {
        let mut before = 0;
        // SAFETY: an open handle and a place for what the word was.
        let status = unsafe { (self.calls.dmce_add64)(self.handle, addr, add, &raw mut before) };
        self.calls.check("dmce_add64", status)?;
        Ok(before)
    }

    /// Maps memory for loads and stores until the session ends.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn map(&self, addr: u64, bytes: usize) -> Result<Area> {
        let mut start = ptr::null_mut();
        let rights = DMCE_READ | DMCE_WRITE;
        // SAFETY: an open handle and a place for the pointer.
        let status =
            unsafe { (self.calls.dmce_map)(self.handle, addr, bytes, rights, &raw mut start) };
        self.calls.check("dmce_map", status)?;
        // SAFETY: what `dmce_map` gave is mapped for loads and stores; nobody else has the address.
        Ok(unsafe { Area::new(start.cast(), bytes) })
    }

    /// Ends a mapping.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn unmap(&self, area: Area) -> Result<()> {
        let start = area.start().cast();
        // SAFETY: an open handle and a pointer that `map` gave.
        self.calls.check("dmce_unmap", unsafe { (self.calls.dmce_unmap)(self.handle, start) })
    }

    /// Makes a region in the volume `bench`.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn region_create(&self, name: &RegionName, bytes: u64) -> Result<()> {
        let (volume, name) = (VOLUME.as_ptr(), name.0.as_ptr());
        // SAFETY: an open handle, C strings, and NULL for the defaults.
        let status = unsafe {
            (self.calls.dmce_region_create)(self.handle, volume, name, bytes, ptr::null())
        };
        self.calls.check("dmce_region_create", status)
    }

    /// Opens a region for reading and writing.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn region_open(&self, name: &RegionName) -> Result<Region> {
        let mut handle = ptr::null_mut();
        let rights = DMCE_READ | DMCE_WRITE;
        let (volume, name) = (VOLUME.as_ptr(), name.0.as_ptr());
        // SAFETY: an open handle, C strings, and a place for the region's handle.
        let status = unsafe {
            (self.calls.dmce_region_open)(self.handle, volume, name, rights, &raw mut handle)
        };
        self.calls.check("dmce_region_open", status)?;
        Ok(Region { calls: self.calls, handle })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: an open handle, which is not used afterwards. A failure changes nothing here: the
        // run is over, and the broker sees the process end.
        let _ = unsafe { (self.calls.dmce_close)(self.handle) };
    }
}

const VOLUME: &std::ffi::CStr = c"bench";

/// The name of a region.
#[derive(Clone, Debug)]
pub struct RegionName(CString);

impl RegionName {
    /// A name without NUL.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if there is one.
    pub fn new(name: &str) -> Result<Self> {
        CString::new(name).map(Self).map_err(|error| Error::of("naming a region", error))
    }
}

/// An open region. It ends with its session; [`Region::close`] ends it before.
#[derive(Debug)]
pub struct Region {
    calls: Calls,
    handle: *mut dmce_region_t,
}

impl Region {
    /// The address of its first byte.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn first(&self) -> Result<u64> {
        let mut addr = 0;
        // SAFETY: an open handle and a place for the address. Pointers count from 0 by default.
        let status = unsafe { (self.calls.dmce_region_addr)(self.handle, 0, &raw mut addr) };
        self.calls.check("dmce_region_addr", status)?;
        Ok(addr)
    }

    /// Closes it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`].
    pub fn close(self) -> Result<()> {
        // SAFETY: an open handle, which is not used afterwards.
        let status = unsafe { (self.calls.dmce_region_close)(self.handle) };
        self.calls.check("dmce_region_close", status)
    }
}

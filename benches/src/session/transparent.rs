//! Transparent memory of a session, and what its pointers and addresses translate to.

use std::ptr;

use super::Session;
use crate::Result;
use crate::memory::Area;

impl Session {
    /// Allocates memory at consecutive addresses of this process: a power of two of bytes.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Call`].
    pub fn vmalloc(&self, bytes: usize) -> Result<Area> {
        let mut start = ptr::null_mut();
        // SAFETY: an open handle, NULL for the defaults, and a place for the pointer.
        let status = unsafe {
            (self.calls.dmce_vmalloc)(self.handle, bytes as u64, ptr::null(), &raw mut start)
        };
        self.calls.check("dmce_vmalloc", status)?;
        // SAFETY: mapped for loads and stores until `vfree`, and nobody else has the address.
        Ok(unsafe { Area::new(start.cast(), bytes) })
    }

    /// Frees it.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Call`].
    pub fn vfree(&self, area: Area) -> Result<()> {
        let start = area.start().cast();
        // SAFETY: an open handle and a pointer that `vmalloc` gave.
        self.calls.check("dmce_vfree", unsafe { (self.calls.dmce_vfree)(self.handle, start) })
    }

    /// The address of a byte.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Call`].
    #[inline]
    pub fn addr_of(&self, pointer: *const u8) -> Result<u64> {
        let mut addr = 0;
        // SAFETY: an open handle and a place for the address.
        let status =
            unsafe { (self.calls.dmce_addr_of)(self.handle, pointer.cast(), &raw mut addr) };
        self.calls.check("dmce_addr_of", status)?;
        Ok(addr)
    }

    /// The pointer to a byte.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Call`].
    #[inline]
    pub fn ptr_of(&self, addr: u64) -> Result<*mut u8> {
        let mut pointer = ptr::null_mut();
        // SAFETY: an open handle and a place for the pointer.
        let status = unsafe { (self.calls.dmce_ptr_of)(self.handle, addr, &raw mut pointer) };
        self.calls.check("dmce_ptr_of", status)?;
        Ok(pointer.cast())
    }
}

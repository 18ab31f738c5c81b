//! skeleton
use std::cmp::Ordering;

use dmce_abi::{AddrLayout, DmceAddr};

use crate::error::Error;
use crate::options::{AllocOptions, Mirror, Options, Prot, RegionOptions};
use crate::stat::{RegionInfo, Stat};

/// A session: memory of this process in blocks of the daemons.
///
/// Calls may come from any thread. Dropping it closes it.
#[derive(Debug)]
pub struct Session {
    layout: AddrLayout,
}

fn later<T>() -> Result<T, Error> {
    Err(Error::unsupported(""))
}

#[allow(
    unused_variables,
    missing_docs,
    clippy::missing_errors_doc,
    clippy::unused_self,
    clippy::missing_safety_doc
)]
impl Session {
    pub fn open(options: &Options) -> Result<Self, Error> {
        later()
    }
    pub fn close(&self) -> Result<(), Error> {
        later()
    }
    /// Whether the session can be used: `Closed`, or `Forked` in a child of its process.
    pub fn check(&self) -> Result<(), Error> {
        later()
    }
    pub fn poll(&self) -> Result<(), Error> {
        later()
    }
    #[must_use]
    pub const fn layout(&self) -> AddrLayout {
        self.layout
    }
    pub fn addr(&self, raw: u64) -> Result<DmceAddr, Error> {
        Ok(DmceAddr::from_raw(self.layout, raw)?)
    }

    pub fn malloc(&self, bytes: u64) -> Result<DmceAddr, Error> {
        later()
    }
    pub fn malloc_with(&self, bytes: u64, options: &AllocOptions) -> Result<DmceAddr, Error> {
        later()
    }
    pub fn calloc(&self, count: u64, bytes: u64) -> Result<DmceAddr, Error> {
        later()
    }
    pub fn realloc(&self, old: DmceAddr, bytes: u64) -> Result<DmceAddr, Error> {
        later()
    }
    pub fn free(&self, addr: DmceAddr) -> Result<(), Error> {
        later()
    }
    pub fn usable_size(&self, addr: DmceAddr) -> Result<u64, Error> {
        later()
    }

    pub fn read(&self, from: DmceAddr, buffer: &mut [u8]) -> Result<(), Error> {
        later()
    }
    pub unsafe fn read_raw(
        &self,
        from: DmceAddr,
        buffer: *mut u8,
        bytes: usize,
    ) -> Result<(), Error> {
        later()
    }
    pub fn write(&self, to: DmceAddr, data: &[u8]) -> Result<(), Error> {
        later()
    }
    pub unsafe fn write_raw(
        &self,
        to: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<(), Error> {
        later()
    }
    pub fn copy(&self, to: DmceAddr, from: DmceAddr, bytes: u64) -> Result<(), Error> {
        later()
    }
    pub fn fill(&self, to: DmceAddr, byte: u8, bytes: u64) -> Result<(), Error> {
        later()
    }
    pub fn compare(&self, at: DmceAddr, data: &[u8]) -> Result<Ordering, Error> {
        later()
    }
    pub unsafe fn compare_raw(
        &self,
        at: DmceAddr,
        data: *const u8,
        bytes: usize,
    ) -> Result<Ordering, Error> {
        later()
    }
    pub fn flush(&self) -> Result<(), Error> {
        later()
    }

    pub fn map(&self, addr: DmceAddr, bytes: usize, prot: Prot) -> Result<*mut u8, Error> {
        later()
    }
    pub fn unmap(&self, pointer: *const u8) -> Result<(), Error> {
        later()
    }

    pub fn stat(&self) -> Result<Stat, Error> {
        later()
    }

    pub fn region_create(
        &self,
        volume: &str,
        name: &str,
        region_size: u64,
        options: &RegionOptions,
    ) -> Result<(), Error> {
        later()
    }
    pub fn region_delete(&self, volume: &str, name: &str) -> Result<(), Error> {
        later()
    }
    pub fn region_open(&self, volume: &str, name: &str, prot: Prot) -> Result<Region, Error> {
        later()
    }
    pub fn region_list(&self, volume: &str) -> Result<Vec<String>, Error> {
        later()
    }
}

/// An open region (004).
#[derive(Debug)]
pub struct Region {
    info: RegionInfo,
}

#[allow(
    unused_variables,
    missing_docs,
    clippy::missing_errors_doc,
    clippy::unused_self,
    clippy::missing_safety_doc
)]
impl Region {
    /// Whether the region can be used: `Closed`, or `Forked` in a child of its process.
    pub fn check(&self) -> Result<(), Error> {
        later()
    }
    pub fn close(&self) -> Result<(), Error> {
        later()
    }
    pub fn read(&self, pointer: u64, buffer: &mut [u8], mirror: Mirror) -> Result<(), Error> {
        later()
    }
    pub unsafe fn read_raw(
        &self,
        pointer: u64,
        buffer: *mut u8,
        bytes: usize,
        mirror: Mirror,
    ) -> Result<(), Error> {
        later()
    }
    pub fn write(&self, pointer: u64, data: &[u8], mirror: Mirror) -> Result<(), Error> {
        later()
    }
    pub unsafe fn write_raw(
        &self,
        pointer: u64,
        data: *const u8,
        bytes: usize,
        mirror: Mirror,
    ) -> Result<(), Error> {
        later()
    }
    pub fn addr(&self, pointer: u64) -> Result<DmceAddr, Error> {
        later()
    }
    pub fn info(&self) -> Result<RegionInfo, Error> {
        Ok(self.info)
    }
}

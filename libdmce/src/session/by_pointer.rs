//! What a session gives pointers to: mapped ranges, transparent memory, ranges that are locked.

use dmce_abi::DmceAddr;
#[expect(unused_imports, reason = "the documentation names it")]
use dmce_abi::Status;

use super::{ReadGuard, Session, VirtualMemory, WriteGuard};
use crate::error::Error;
use crate::options::{AllocOptions, PointerOptions, Prot};

impl Session {
    /// A pointer to a range, valid until [`Session::unmap`] or [`Session::close`]. What it points
    /// to is shared memory: others may write it, and a page of it that is lost raises SIGBUS.
    ///
    /// # Errors
    ///
    /// As [`Session::read`]; [`Status::Denied`] for a pointer that is to write what may only be
    /// read; [`Status::NoMem`] without the address space; [`Status::Invalid`] for no bytes, or
    /// without [`Prot::READ`]; [`Status::Unsupported`] on the message path, which maps nothing.
    pub fn map(&self, addr: DmceAddr, bytes: usize, prot: Prot) -> Result<*mut u8, Error> {
        self.core.map_range(addr, bytes, prot)
    }

    /// Ends the use of a pointer of [`Session::map`] or [`Region::map`]. One that was given several
    /// times ends with the last.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`] if it is not mapped.
    pub fn unmap(&self, pointer: *const u8) -> Result<(), Error> {
        self.core.unmap(pointer)
    }

    /// Allocates memory at consecutive OS addresses, over as many blocks of as many daemons as it
    /// takes: plain loads and stores use it, with no call. It has blocks of its own, begins at a
    /// multiple of 2 MiB, and reads as zero. A session has at most 512 pointers, of this and of
    /// [`Session::map`].
    ///
    /// With one copy, what is stored by the pointer is what [`Session::read`] reads at once. With
    /// several, it is on one of them until [`Session::sync`].
    ///
    /// # Errors
    ///
    /// As [`Session::malloc_with`]; [`Status::NoMem`] without the address space for it, or with
    /// 512 pointers; [`Status::Unsupported`] on the message path. Nothing is held then.
    pub fn vmalloc(&self, bytes: u64, options: &AllocOptions) -> Result<VirtualMemory, Error> {
        VirtualMemory::new(&self.core, bytes, options)
    }

    /// Frees what [`VirtualMemory::into_raw`] gave.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] if no transparent memory begins there; [`Status::Busy`] while a pointer
    /// of [`Session::map`] is into it.
    pub fn vfree(&self, pointer: *mut u8) -> Result<(), Error> {
        self.core.vfree(pointer.addr())
    }

    /// The address of a byte of transparent memory, or of a region that [`Region::map`] mapped: by
    /// a table of two levels, without a lock, but for the ends of a region with a base pointer. Of
    /// memory that another thread frees meanwhile it is the address that it had, or an error.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] for any other pointer.
    #[inline]
    pub fn addr_of(&self, pointer: *const u8) -> Result<DmceAddr, Error> {
        self.core.addr_of(pointer.addr())
    }

    /// The pointer to a byte of transparent memory, or of a region that [`Region::map`] mapped, in
    /// the same way.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] for an address that is mapped in neither way.
    #[inline]
    pub fn ptr_of(&self, addr: DmceAddr) -> Result<*mut u8, Error> {
        self.core.ptr_of(addr)
    }

    /// Brings what was stored by pointer to a range of transparent memory, or of a mapped region,
    /// to every copy. No bytes are brought from where a byte may be, and from the very end.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] if not all of the range is in one of these; [`Status::Lost`].
    pub fn sync(&self, pointer: *const u8, bytes: u64) -> Result<(), Error> {
        self.core.sync(pointer.addr(), bytes)
    }

    /// A range to read, shared with other readers (002). It waits its turn behind all who asked
    /// before, as the options say; of the calls of one session only reads nest in reads. Ranges are
    /// exact: the bytes beside them are another's to lock.
    ///
    /// # Errors
    ///
    /// As [`Session::map`]; [`Status::Busy`] if others are in the way and it does not wait, with a
    /// place in the queue if that was asked for; [`Status::Timeout`]; [`Status::OwnerDied`] after
    /// an owner died while it wrote there; [`Status::NoMem`] if the session has too many pointers;
    /// [`Status::Unsupported`] for a region.
    pub fn read_ptr(
        &self,
        addr: DmceAddr,
        bytes: usize,
        options: PointerOptions,
    ) -> Result<ReadGuard, Error> {
        ReadGuard::take(&self.core, (addr, bytes), options)
    }

    /// A range to write, that nobody else has a pointer to (002). Otherwise as
    /// [`Session::read_ptr`].
    ///
    /// # Errors
    ///
    /// As [`Session::read_ptr`]; [`Status::Denied`] for what may only be read.
    pub fn write_ptr(
        &self,
        addr: DmceAddr,
        bytes: usize,
        options: PointerOptions,
    ) -> Result<WriteGuard, Error> {
        WriteGuard::take(&self.core, (addr, bytes), options)
    }

    /// Releases a pointer of [`ReadGuard::into_raw`] or [`WriteGuard::into_raw`]: what a write
    /// pointer stored is on every copy.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`] if the pointer is none; [`Status::Lost`] if a part of what was stored
    /// is gone with the copy that it was stored to: it is released all the same. After any other
    /// error it is still had, and can be released again.
    pub fn release_ptr(&self, pointer: *const u8) -> Result<(), Error> {
        self.core.release_pointer(pointer)
    }

    /// Releases a write pointer with the range as it was, but for what [`Session::write`] and its
    /// like have written there since.
    ///
    /// # Errors
    ///
    /// [`Status::Unsupported`] without a second copy, or if the copies have changed since, so that
    /// none says what was there before; [`Status::Invalid`] of a read pointer,
    /// [`Status::NotFound`]. It is still had then.
    pub fn abort_ptr(&self, pointer: *mut u8) -> Result<(), Error> {
        self.core.abort_pointer(pointer)
    }

    /// Gives up the place in the queue that a range has.
    ///
    /// # Errors
    ///
    /// [`Status::NotFound`] if it has none.
    pub fn cancel_ptr(&self, addr: DmceAddr, bytes: usize) -> Result<(), Error> {
        self.core.cancel_pointer(addr, bytes)
    }
}

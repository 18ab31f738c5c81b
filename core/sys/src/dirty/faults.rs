//! The descriptor by which the kernel protects pages, and lifts the protection at a store.
//!
//! # Invariants
//!
//! 1. No fault ever waits for this process: the mode is asynchronous, and missing pages are the
//!    kernel's to fill. So the descriptor is never read.
//! 2. No event of the address space is asked for: `mmap`, `mremap` and `fork` wait for nobody.

use std::fmt;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use rustix::mm::{UserfaultfdFlags, userfaultfd};

use super::{DirtyError, Unavailable};
use crate::map::MappedRange;

/// By which way the descriptor was had. All of them do the same here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The system call for everybody (`UFFD_USER_MODE_ONLY`). That the faults of system calls
    /// would not be handed to the program does not matter: none is.
    UserMode,
    /// The device, where a filter of system calls is in the way and the device is let in.
    Device,
    /// The system call for those who have the right, or where `vm.unprivileged_userfaultfd` is 1.
    Full,
}

impl Access {
    /// All, those first that need the least.
    pub(super) const ALL: [Self; 3] = [Self::UserMode, Self::Device, Self::Full];

    fn open(self) -> Result<OwnedFd, Errno> {
        match self {
            Self::UserMode => call(UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY)),
            Self::Device => by_device(),
            Self::Full => call(UserfaultfdFlags::empty()),
        }
    }
}

/// Features of a userfaultfd, as the kernel numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features(u64);

impl Features {
    const NAMES: [(u64, &str); 4] = [
        (1 << 0, "PAGEFAULT_FLAG_WP"),
        (1 << 12, "WP_HUGETLBFS_SHMEM"),
        (1 << 13, "WP_UNPOPULATED"),
        (1 << 15, "WP_ASYNC"),
    ];
    const WANTED: Self = Self(1 << 0 | 1 << 12 | 1 << 13 | 1 << 15);
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Self::NAMES.iter().filter(|(bit, _)| self.0 & bit != 0);
        let names: Vec<&str> = names.map(|(_, name)| *name).collect();
        f.write_str(&names.join(", "))
    }
}

const DEVICE: &str = "/dev/userfaultfd";
const USER_MODE_ONLY: u32 = 1;
const API: u64 = 0xaa;
const GROUP: u8 = 0xaa;
const REGISTER_WRITE_PROTECT: u64 = 1 << 1;
const PROTECT: u64 = 1 << 0;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Handshake {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

const _: () = assert!(size_of::<Handshake>() == 24 && offset_of!(Handshake, features) == 8);
const _: () = assert!(size_of::<Range>() == 16 && offset_of!(Range, len) == 8);
const _: () = assert!(size_of::<Register>() == 32 && offset_of!(Register, mode) == 16);
const _: () = assert!(size_of::<WriteProtect>() == 24 && offset_of!(WriteProtect, mode) == 16);

const UFFDIO_API: Opcode = opcode::read_write::<Handshake>(GROUP, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(GROUP, 0x00);
// The kernel's header has these two directions, and cannot change them any more.
const UFFDIO_UNREGISTER: Opcode = opcode::read::<Range>(GROUP, 0x01);
const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(GROUP, 0x06);
const USERFAULTFD_IOC_NEW: Opcode = opcode::none(GROUP, 0x00);

// As the C compiler has them, on x86 and ARM.
const _: () = assert!(UFFDIO_API == 0xc018_aa3f_u32);
const _: () = assert!(UFFDIO_REGISTER == 0xc020_aa00_u32);
const _: () = assert!(UFFDIO_UNREGISTER == 0x8010_aa01_u32);
const _: () = assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06_u32);

/// A userfaultfd with the features that are wanted.
#[derive(Debug)]
pub(super) struct Faults {
    fd: OwnedFd,
    access: Access,
}

impl Faults {
    /// Opens one by the first of some accesses that works.
    pub(super) fn open(accesses: &[Access]) -> Result<Self, Unavailable> {
        let mut first = None;
        for &access in accesses {
            match access.open() {
                Ok(fd) => {
                    let faults = Self { fd, access };
                    faults.shake_hands()?;
                    return Ok(faults);
                }
                Err(errno) => first = first.or(Some(errno)),
            }
        }
        Err(match first.unwrap_or(Errno::NOSYS) {
            Errno::NOSYS => Unavailable::NoUserfaultfd,
            Errno::PERM | Errno::ACCESS => Unavailable::Refused,
            errno => Unavailable::Io { action: "opening a userfaultfd", source: errno.into() },
        })
    }

    pub(super) const fn access(&self) -> Access {
        self.access
    }

    /// Asks for the features; if they are refused, asks for none, to learn which there are.
    fn shake_hands(&self) -> Result<(), Unavailable> {
        let action = "asking for features of a userfaultfd";
        let failed = |errno: Errno| Unavailable::Io { action, source: errno.into() };
        match self.agree(Features::WANTED.0) {
            Ok(_) => Ok(()),
            Err(Errno::INVAL) => {
                let has = self.agree(0).map_err(failed)?;
                Err(Unavailable::Features { missing: Features(Features::WANTED.0 & !has) })
            }
            Err(errno) => Err(failed(errno)),
        }
    }

    fn agree(&self, features: u64) -> Result<u64, Errno> {
        let mut handshake = Handshake { api: API, features, ioctls: 0 };
        self.update::<UFFDIO_API, _>(&mut handshake)?;
        Ok(handshake.features)
    }

    /// Has the kernel track a range, also one that is tracked. Nothing is protected by that.
    pub(super) fn register(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        let mut register =
            Register { range: Range::of(range), mode: REGISTER_WRITE_PROTECT, ioctls: 0 };
        let (addr, bytes) = (range.as_ptr().addr(), range.len());
        self.update::<UFFDIO_REGISTER, _>(&mut register).map_err(|errno| match errno {
            Errno::PERM => DirtyError::ReadOnly { addr },
            Errno::BUSY => DirtyError::Taken { addr, bytes },
            Errno::INVAL => DirtyError::NotTrackable { addr },
            errno => of_range("registering a range", range, errno),
        })
    }

    /// Ends that, and lifts every protection of the range.
    pub(super) fn unregister(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        self.update::<UFFDIO_UNREGISTER, _>(&mut Range::of(range))
            .map_err(|errno| of_range("unregistering a range", range, errno))
    }

    /// Protects every page of a registered range, those too that have no entry yet.
    pub(super) fn protect(&self, range: MappedRange<'_>) -> Result<(), DirtyError> {
        let mut protect = WriteProtect { range: Range::of(range), mode: PROTECT };
        self.update::<UFFDIO_WRITEPROTECT, _>(&mut protect)
            .map_err(|errno| of_range("protecting a range", range, errno))
    }

    fn update<const OPCODE: Opcode, T>(&self, value: &mut T) -> Result<(), Errno> {
        loop {
            // SAFETY: the callers above pass the struct that the opcode is made of, which the
            // kernel reads and writes in its size.
            let update = unsafe { Updater::<OPCODE, T>::new(value) };
            // SAFETY: none of the four changes the content of memory: they take notes, in a
            // descriptor and in page tables, and write to the struct.
            match unsafe { ioctl::ioctl(self.fd.as_fd(), update) } {
                Err(Errno::INTR | Errno::AGAIN) => {}
                result => return result,
            }
        }
    }
}

impl Range {
    fn of(range: MappedRange<'_>) -> Self {
        Self { start: range.as_ptr().addr() as u64, len: range.len() as u64 }
    }
}

pub(super) fn of_range(action: &'static str, range: MappedRange<'_>, errno: Errno) -> DirtyError {
    let (addr, bytes) = (range.as_ptr().addr(), range.len());
    match errno {
        Errno::NOENT => DirtyError::NotTracked { addr, bytes },
        Errno::NOMEM => DirtyError::NoMemory { bytes },
        errno => DirtyError::Io { action, source: errno.into() },
    }
}

fn call(flags: UserfaultfdFlags) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is private to this module, which uses it as its invariants say.
    unsafe { userfaultfd(flags | UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK) }
}

fn by_device() -> Result<OwnedFd, Errno> {
    let errno = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    let device = File::options().read(true).write(true).open(DEVICE).map_err(errno)?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: this command takes flags by value, and makes a descriptor.
    let fd = unsafe {
        libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&device), USERFAULTFD_IOC_NEW.into(), flags)
    };
    if fd < 0 {
        return Err(errno(io::Error::last_os_error()));
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_told_by_their_names() {
        assert_eq!(Features(1 << 15 | 1 << 13).to_string(), "WP_UNPOPULATED, WP_ASYNC");
        let named = Features::NAMES.iter().fold(0, |all, (bit, _)| all | bit);
        assert_eq!(named, Features::WANTED.0);
    }

    #[test]
    fn a_kernel_that_lacks_a_feature_says_which_it_has() {
        // A feature that no kernel has.
        let fd = Access::UserMode.open().unwrap();
        let faults = Faults { fd, access: Access::UserMode };
        assert_eq!(faults.agree(Features::WANTED.0 | 1 << 63), Err(Errno::INVAL));
        let has = faults.agree(0).unwrap();
        assert_eq!(Features::WANTED.0 & !has, 0, "{has:#x}");
    }
}

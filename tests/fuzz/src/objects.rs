//! Objects that hold what somebody left in them.

use std::os::fd::{AsFd, OwnedFd};

use dmce_sys::object;
use rustix::fs::{MemfdFlags, memfd_create};

/// An object without a name that holds `bytes`.
pub fn holding(bytes: &[u8]) -> OwnedFd {
    let fd = memfd_create("dmce.test", MemfdFlags::CLOEXEC).expect("the host has memory");
    object::write_at(fd.as_fd(), bytes, 0).expect("the host has memory");
    fd
}

/// The first `N` bytes of an object, zeros where it has none.
pub fn bytes_of<const N: usize>(fd: impl AsFd) -> [u8; N] {
    let mut bytes = [0; N];
    object::read_at_most(fd.as_fd(), &mut bytes, 0).expect("an object can be read");
    bytes
}

/// Makes what begins with a preamble look finished: the checksum of the bytes as far as `end`, and
/// the word that says ready (docs/shared-memory.md, section 2).
pub fn seal(structure: &mut [u8], end: usize) {
    let checksum = crc32c::crc32c(&structure[24..end]);
    structure[16..20].copy_from_slice(&0x5245_4459_u32.to_le_bytes());
    structure[20..24].copy_from_slice(&checksum.to_le_bytes());
}

/// Lays `bytes` over what is at `from`, as far as there is room.
pub fn lay_over(structure: &mut [u8], from: usize, bytes: &[u8]) {
    let (_, behind) = structure.split_at_mut(from.min(structure.len()));
    let count = bytes.len().min(behind.len());
    behind[..count].copy_from_slice(&bytes[..count]);
}

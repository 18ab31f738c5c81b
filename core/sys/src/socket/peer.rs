//! Who is at the other end of a connection.
//!
//! # Invariants
//!
//! 1. Everything is the kernel's record of the moment of `connect` (of `listen`, seen from the
//!    client): a peer that changes its user or passes the socket on stays who it was.
//! 2. A pid may be another process's by now. The pidfd cannot.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

use super::{Socket, SocketError};

/// Who is at the other end, as the kernel recorded it at `connect` (or `listen`, seen from a
/// client).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Peer {
    /// 0 if the process is not visible in our pid namespace.
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; `gid` is not always among them.
    pub groups: Vec<u32>,
}

impl Socket {
    /// Who is at the other end.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`].
    pub fn peer(&self) -> Result<Peer, SocketError> {
        let mut credentials = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
        let fields = std::slice::from_mut(&mut credentials);
        // Not rustix's `UCred`: its pid cannot be the 0 of a process in another pid namespace.
        socket_option(&self.fd, libc::SO_PEERCRED, fields)
            .map_err(|errno| SocketError::of("peer credentials", errno))?;
        Ok(Peer {
            pid: u32::try_from(credentials.pid).unwrap_or(0),
            uid: credentials.uid,
            gid: credentials.gid,
            groups: self.peer_groups()?,
        })
    }

    /// A pidfd of the process that made the connection: it cannot be of another process that got
    /// the same pid later. `None` where the kernel lacks it (before 6.5).
    ///
    /// # Errors
    ///
    /// [`SocketError::Closed`] if that process is gone already, [`SocketError::Io`].
    pub fn peer_pidfd(&self) -> Result<Option<OwnedFd>, SocketError> {
        const SO_PEERPIDFD: i32 = 77;
        let mut raw: RawFd = -1;
        match socket_option(&self.fd, SO_PEERPIDFD, std::slice::from_mut(&mut raw)) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(_) => Ok(Some(unsafe { OwnedFd::from_raw_fd(raw) })),
            Err(Errno::NOPROTOOPT | Errno::NODATA) => Ok(None),
            // Which of the two depends on the kernel.
            Err(Errno::SRCH | Errno::INVAL) => Err(SocketError::Closed),
            Err(errno) => Err(SocketError::of("peer pidfd", errno)),
        }
    }

    fn peer_groups(&self) -> Result<Vec<u32>, SocketError> {
        const SO_PEERGROUPS: i32 = 59;
        const GROUPS_MAX: usize = 65_536;
        let mut groups = vec![0_u32; 64];
        loop {
            match socket_option(&self.fd, SO_PEERGROUPS, &mut groups) {
                Ok(bytes) => {
                    groups.truncate(bytes / size_of::<u32>());
                    return Ok(groups);
                }
                // A peer has at most this many groups (`NGROUPS_MAX`).
                Err(Errno::RANGE) if groups.len() < GROUPS_MAX => groups.resize(GROUPS_MAX, 0),
                Err(Errno::NODATA) => return Ok(Vec::new()),
                Err(errno) => return Err(SocketError::of("peer groups", errno)),
            }
        }
    }
}

/// Reads a socket option of words; returns the bytes that the kernel wrote.
pub(super) fn socket_option<T: Copy>(
    fd: &OwnedFd,
    option: i32,
    into: &mut [T],
) -> Result<usize, Errno> {
    let mut bytes = libc::socklen_t::try_from(size_of_val(into)).map_err(|_| Errno::INVAL)?;
    // SAFETY: the pointer and the length are of one live slice, of plain integers as every caller's
    // type is; the kernel writes at most that many bytes.
    let failed = unsafe {
        let value = into.as_mut_ptr().cast();
        libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, &raw mut bytes)
    };
    if failed != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(bytes as usize)
}

/// Sets a socket option of one word.
pub(super) fn set_socket_option(fd: &OwnedFd, option: i32, value: i32) -> Result<(), Errno> {
    let bytes = libc::socklen_t::try_from(size_of_val(&value)).map_err(|_| Errno::INVAL)?;
    // SAFETY: the pointer and the length are of one live word, which is only read.
    let failed = unsafe {
        let value = (&raw const value).cast();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, bytes)
    };
    if failed != 0 {
        return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    Ok(())
}

//! Connecting to a listener whose queue may be full.
//!
//! # Invariants
//!
//! 1. A limit bounds the whole call, however many signals interrupt it.
//! 2. A socket that is connected blocks, and sends without a limit, however it was connected.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, SocketAddrUnix, SocketFlags};

use super::{Socket, SocketError, seqpacket};

impl Socket {
    /// Connects to the listener at `path`; while its queue is full, waits for room in it.
    ///
    /// # Errors
    ///
    /// [`SocketError::NobodyListens`], [`SocketError::Denied`], [`SocketError::PathTooLong`],
    /// [`SocketError::Io`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        let attempt = Attempt::new(path.as_ref(), SocketFlags::empty())?;
        loop {
            match attempt.make() {
                Err(Errno::INTR) => {}
                made => return attempt.end(made),
            }
        }
    }

    /// Connects to the listener at `path`, if there is room in its queue now.
    ///
    /// # Errors
    ///
    /// As [`Socket::connect`], and [`SocketError::WouldBlock`].
    pub fn try_connect(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        let attempt = Attempt::new(path.as_ref(), SocketFlags::NONBLOCK)?;
        let made = attempt.make();
        let socket = attempt.end(made)?;
        rustix::io::ioctl_fionbio(&socket.fd, false)
            .map_err(|errno| SocketError::of("make the socket wait", errno))?;
        Ok(socket)
    }

    /// Connects to the listener at `path`; while its queue is full, waits for room in it, but not
    /// for longer than `limit`.
    ///
    /// # Errors
    ///
    /// As [`Socket::connect`], and [`SocketError::WouldBlock`] if there was no room in time.
    pub fn connect_within(path: impl AsRef<Path>, limit: Duration) -> Result<Self, SocketError> {
        let (path, begin) = (path.as_ref(), Instant::now());
        let attempt = Attempt::new(path, SocketFlags::empty())?;
        loop {
            let left = limit.saturating_sub(begin.elapsed());
            if left.is_zero() {
                return Self::try_connect(path);
            }
            attempt.limit(Some(left))?;
            match attempt.make() {
                Err(Errno::INTR) => {}
                made => {
                    attempt.limit(None)?;
                    return attempt.end(made);
                }
            }
        }
    }
}

/// A socket that is to be connected.
struct Attempt<'a> {
    fd: OwnedFd,
    path: &'a Path,
    address: SocketAddrUnix,
}

impl<'a> Attempt<'a> {
    fn new(path: &'a Path, flags: SocketFlags) -> Result<Self, SocketError> {
        let failed = |errno| SocketError::of_path("connect", path, errno);
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        Ok(Self { fd: seqpacket(flags)?, path, address })
    }

    /// How long to wait for room. There is no descriptor that tells of room in a queue, but the
    /// kernel wakes who waits in `connect`, for as long as the socket may wait to send.
    fn limit(&self, limit: Option<Duration>) -> Result<(), SocketError> {
        set_socket_timeout(&self.fd, Timeout::Send, limit)
            .map_err(|errno| SocketError::of("limit the time of a connect", errno))
    }

    fn make(&self) -> Result<(), Errno> {
        net::connect(&self.fd, &self.address)
    }

    fn end(self, made: Result<(), Errno>) -> Result<Socket, SocketError> {
        made.map_err(|errno| SocketError::of_path("connect", self.path, errno))?;
        Ok(Socket { fd: self.fd })
    }
}

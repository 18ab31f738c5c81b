//! Unix sockets that carry frames and file descriptors.
//!
//! # Invariants
//!
//! 1. `SOCK_SEQPACKET`: one send is one receive. A frame arrives whole, with all of its
//!    descriptors, or is reported as truncated.
//! 2. At most [`FDS_PER_FRAME`] descriptors travel with a frame. What a peer sends beyond that
//!    is received with the rest, since to close it may take time ([`crate::closing`]), and reported
//!    as truncated. Received descriptors are close-on-exec from the first moment.
//! 3. A dead peer is [`SocketError::Closed`] or [`SocketError::Reset`], never SIGPIPE.
//! 4. Who the peer is comes from the kernel as of the moment of `connect`, never from the peer.
//! 5. Who connects to a listener whose queue is full waits as long as it said (`connect`).
//! 6. A socket file is unlinked only if it is a socket that nobody listens on. Two starters at once
//!    could still race; the OFD lock of the instance ([`crate::lock`]) keeps them apart.
//!
//! A frame of no bytes cannot be told from the end of the connection and is never sent.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::crash;

mod connect;
mod peer;

pub use peer::Peer;

/// The most descriptors that one frame carries.
pub const FDS_PER_FRAME: usize = 64;

/// The most descriptors that the kernel lets a peer send with a frame (`SCM_MAX_FD`). There is room
/// for all of them: what does not fit is closed by the kernel while we receive.
const FDS_RECEIVED_MAX: usize = 253;

const BACKLOG: i32 = 1024;

/// The socket option of [`Listener::refuse_descriptors`].
const SO_PASSRIGHTS: i32 = 83;

/// Why a socket operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum SocketError {
    /// Nothing to receive, to accept, or no room to send, now.
    #[error("{action} would block")]
    WouldBlock { action: &'static str },
    /// The peer has closed the connection or is dead.
    #[error("the peer has closed the connection")]
    Closed,
    /// The peer has closed the connection or is dead, and has not read all that was sent.
    #[error("the peer has closed the connection with frames unread")]
    Reset,
    /// Nobody listens at the path (or there is no such path).
    #[error("nobody listens at {}", path.display())]
    NobodyListens {
        path: PathBuf,
        /// Whether there was something at the path.
        was_there: bool,
    },
    /// Somebody listens at the path already.
    #[error("{} is in use", path.display())]
    InUse { path: PathBuf },
    /// What is at the path is something else, and is left.
    #[error("{} is there and is no socket", path.display())]
    NoSocket { path: PathBuf },
    /// The kernel's permission check said no.
    #[error("access to {} is denied", path.display())]
    Denied { path: PathBuf },
    /// A path that no socket address can hold.
    #[error("{} is too long for a socket address", path.display())]
    PathTooLong { path: PathBuf },
    /// More than [`FDS_PER_FRAME`] descriptors.
    #[error("{count} descriptors do not fit a frame, {FDS_PER_FRAME} do")]
    TooManyFds { count: usize },
    /// Empty, or more than the socket's send buffer can ever hold.
    #[error("a frame of {bytes} bytes cannot be sent")]
    FrameSize { bytes: usize },
    /// Anything else that the kernel answered.
    #[error("{action} failed")]
    Io { action: &'static str, source: io::Error },
}

impl SocketError {
    fn of(action: &'static str, errno: Errno) -> Self {
        match errno {
            Errno::AGAIN => Self::WouldBlock { action },
            Errno::PIPE | Errno::NOTCONN => Self::Closed,
            Errno::CONNRESET => Self::Reset,
            other => Self::Io { action, source: other.into() },
        }
    }

    fn of_path(action: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::CONNREFUSED => Self::NobodyListens { path, was_there: true },
            Errno::NOENT => Self::NobodyListens { path, was_there: false },
            Errno::ADDRINUSE => Self::InUse { path },
            Errno::ACCESS | Errno::PERM => Self::Denied { path },
            Errno::NAMETOOLONG => Self::PathTooLong { path },
            other => Self::of(action, other),
        }
    }
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes of the frame that are in the buffer.
    pub bytes: usize,
    /// The frame was longer than the buffer, or had more descriptors than a frame may: not to be
    /// understood, the peer breaks the protocol.
    pub truncated: bool,
}

/// A listening socket at a path. Dropping it leaves the file; [`Listener::unlink`] removes it.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: Option<PathBuf>,
}

impl Listener {
    /// Listens at `path`, whose file gets the permission bits `mode` before anyone can connect.
    ///
    /// A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// [`SocketError::InUse`], [`SocketError::NoSocket`], [`SocketError::Denied`],
    /// [`SocketError::PathTooLong`], [`SocketError::NobodyListens`] (the folder does not exist),
    /// [`SocketError::Io`].
    pub fn bind(path: impl AsRef<Path>, mode: u32) -> Result<Self, SocketError> {
        let path = path.as_ref();
        let failed = |errno| SocketError::of_path("bind", path, errno);
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let fd = seqpacket(SocketFlags::NONBLOCK)?;
        match net::bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path)?;
                net::bind(&fd, &address).map_err(failed)?;
            }
            bound => bound.map_err(failed)?,
        }
        // Nobody can connect before `listen`, so the mode is there in time.
        rustix::fs::chmod(path, Mode::from_raw_mode(mode)).map_err(failed)?;
        net::listen(&fd, BACKLOG).map_err(failed)?;
        Ok(Self { fd, path: Some(path.to_owned()) })
    }

    /// Takes over a listening socket that another process (systemd) has bound.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`] if it is not a descriptor of a Unix seqpacket socket that listens.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let failed = |errno| SocketError::of("adopt listener", errno);
        let is_unix = net::sockopt::socket_domain(&fd).map_err(failed)? == AddressFamily::UNIX;
        let is_packet = net::sockopt::socket_type(&fd).map_err(failed)? == SocketType::SEQPACKET;
        if !is_unix || !is_packet || !net::sockopt::socket_acceptconn(&fd).map_err(failed)? {
            return Err(failed(Errno::PROTOTYPE));
        }
        rustix::io::ioctl_fionbio(&fd, true).map_err(failed)?;
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).map_err(failed)?;
        Ok(Self { fd, path: None })
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// [`SocketError::WouldBlock`] if nobody waits, [`SocketError::Io`] (also when this process has
    /// no descriptor left).
    pub fn accept_nonblocking(&self) -> Result<Socket, SocketError> {
        loop {
            match net::accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Socket { fd }),
                // The peer gave up meanwhile, or a signal came: look at the next.
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => return Err(SocketError::of("accept", errno)),
            }
        }
    }

    /// Has the kernel refuse frames with descriptors to who connects from now on, where it can
    /// (`SO_PASSRIGHTS`, Linux 6.16). False where it cannot.
    #[must_use]
    pub fn refuse_descriptors(&self) -> bool {
        peer::set_socket_option(&self.fd, SO_PASSRIGHTS, 0).is_ok()
    }

    /// The path, unless the socket was inherited.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Removes the socket file, so that nobody finds the listener any more.
    ///
    /// # Errors
    ///
    /// [`SocketError::Denied`], [`SocketError::NobodyListens`] (it is gone), [`SocketError::Io`].
    pub fn unlink(&self) -> Result<(), SocketError> {
        let Some(path) = &self.path else { return Ok(()) };
        rustix::fs::unlink(path).map_err(|errno| SocketError::of_path("unlink", path, errno))
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One end of a connection.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// Two connected ends.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`].
    pub fn pair() -> Result<(Self, Self), SocketError> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (a, b) = net::socketpair(AddressFamily::UNIX, kind, flags, None)
            .map_err(|errno| SocketError::of("socketpair", errno))?;
        Ok((Self { fd: a }, Self { fd: b }))
    }

    /// Takes over a connected socket, as one that came with a frame.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`] if it is not a descriptor of a Unix seqpacket socket.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let failed = |errno| SocketError::of("adopt socket", errno);
        let is_unix = net::sockopt::socket_domain(&fd).map_err(failed)? == AddressFamily::UNIX;
        let is_packet = net::sockopt::socket_type(&fd).map_err(failed)? == SocketType::SEQPACKET;
        if !is_unix || !is_packet {
            return Err(failed(Errno::PROTOTYPE));
        }
        Ok(Self { fd })
    }

    /// Whether the kernel has refused frames with descriptors to the peer from the first: its
    /// listener did so before ([`Listener::refuse_descriptors`]).
    #[must_use]
    pub fn refuses_descriptors(&self) -> bool {
        let mut allowed = [1_i32];
        peer::socket_option(&self.fd, SO_PASSRIGHTS, &mut allowed).is_ok() && allowed == [0]
    }

    /// Gives the descriptor away, as to send it with a frame.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends a frame, waiting for room.
    ///
    /// # Errors
    ///
    /// [`SocketError::Closed`], [`SocketError::TooManyFds`], [`SocketError::FrameSize`],
    /// [`SocketError::Io`].
    pub fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.send_with(frame, fds, SendFlags::empty())
    }

    /// Sends a frame if there is room for it now.
    ///
    /// # Errors
    ///
    /// As [`Socket::send`], and [`SocketError::WouldBlock`].
    pub fn try_send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), SocketError> {
        self.send_with(frame, fds, SendFlags::DONTWAIT)
    }

    /// Receives a frame, waiting for it. `fds` is emptied and gets the frame's descriptors.
    ///
    /// # Errors
    ///
    /// [`SocketError::Closed`], [`SocketError::Reset`], [`SocketError::Io`].
    pub fn recv(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Received, SocketError> {
        self.recv_with(buf, fds, RecvFlags::empty())
    }

    /// Receives a frame if one is there now. `fds` is emptied and gets the frame's descriptors, all
    /// that the peer sent, also when there is an error.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`], and [`SocketError::WouldBlock`].
    pub fn try_recv(
        &self,
        buf: &mut [u8],
        fds: &mut Vec<OwnedFd>,
    ) -> Result<Received, SocketError> {
        self.recv_with(buf, fds, RecvFlags::DONTWAIT)
    }

    /// Ends the connection in both directions: the peer and every waiting receive see
    /// [`SocketError::Closed`], whoever holds a copy of the descriptor.
    pub fn shutdown(&self) {
        // It can only fail for a socket that is not connected any more.
        let _ = net::shutdown(&self.fd, net::Shutdown::Both);
    }

    /// Asks for buffers that hold `bytes` of frames in either direction; the kernel may give less.
    ///
    /// # Errors
    ///
    /// [`SocketError::Io`].
    pub fn set_buffer_bytes(&self, bytes: u64) -> Result<(), SocketError> {
        let failed = |errno| SocketError::of("set socket buffer", errno);
        // The kernel takes a signed word and doubles it.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX).min(1 << 30);
        net::sockopt::set_socket_send_buffer_size(&self.fd, bytes).map_err(failed)?;
        net::sockopt::set_socket_recv_buffer_size(&self.fd, bytes).map_err(failed)
    }

    fn send_with(
        &self,
        frame: &[u8],
        fds: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<(), SocketError> {
        if frame.is_empty() {
            return Err(SocketError::FrameSize { bytes: 0 });
        }
        if fds.len() > FDS_PER_FRAME {
            return Err(SocketError::TooManyFds { count: fds.len() });
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "the buffer is made for {FDS_PER_FRAME} descriptors");
        }
        let flags = flags | SendFlags::NOSIGNAL;
        let parts = [IoSlice::new(frame)];
        match retry_on_intr(|| net::sendmsg(&self.fd, &parts, &mut control, flags)) {
            Ok(_) => {
                crash::step();
                Ok(())
            }
            Err(Errno::MSGSIZE) => Err(SocketError::FrameSize { bytes: frame.len() }),
            Err(errno) => Err(SocketError::of("send", errno)),
        }
    }

    fn recv_with(
        &self,
        buf: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        flags: RecvFlags,
    ) -> Result<Received, SocketError> {
        fds.clear();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_RECEIVED_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = flags | RecvFlags::CMSG_CLOEXEC;
        let received = retry_on_intr(|| {
            net::recvmsg(&self.fd, &mut [IoSliceMut::new(buf)], &mut control, flags)
        })
        .map_err(|errno| SocketError::of("receive", errno))?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received_fds) = message {
                fds.extend(received_fds);
            }
        }
        let surplus = fds.len() > FDS_PER_FRAME;
        if received.bytes == 0 {
            return Err(SocketError::Closed);
        }
        let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
        let truncated = surplus || received.flags.intersects(cut);
        Ok(Received { bytes: received.bytes.min(buf.len()), truncated })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn seqpacket(flags: SocketFlags) -> Result<OwnedFd, SocketError> {
    let flags = flags | SocketFlags::CLOEXEC;
    net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|errno| SocketError::of("socket", errno))
}

fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let in_use = || SocketError::InUse { path: path.to_owned() };
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    if !is_socket {
        return Err(SocketError::NoSocket { path: path.to_owned() });
    }
    let address =
        SocketAddrUnix::new(path).map_err(|errno| SocketError::of_path("connect", path, errno))?;
    // Nonblocking: a listener with a full backlog must not hold us, and is alive.
    let probe = seqpacket(SocketFlags::NONBLOCK)?;
    match net::connect(&probe, &address) {
        Err(Errno::CONNREFUSED) => {
            rustix::fs::unlink(path).map_err(|errno| SocketError::of_path("unlink", path, errno))
        }
        // Removed meanwhile by its owner.
        Err(Errno::NOENT) => Ok(()),
        _ => Err(in_use()),
    }
}

#[cfg(test)]
mod tests;

//! Unix sockets that carry frames and file descriptors.
//!
//! # Invariants
//!
//! 1. `SOCK_SEQPACKET`: one send is one receive. A frame arrives whole, with all of its descriptors,
//!    or is reported as truncated.
//! 2. At most [`FDS_PER_FRAME`] descriptors travel with a frame. What a peer sends beyond that never
//!    stays open here. Received descriptors are close-on-exec from the first moment.
//! 3. A dead peer is [`SocketError::Closed`], never SIGPIPE.
//! 4. Who the peer is comes from the kernel as of the moment of `connect`, never from the peer.
//! 5. A socket file is unlinked only if it is a socket that nobody listens on. Two starters at once
//!    could still race; the OFD lock of the instance ([`crate::lock`]) keeps them apart.
//!
//! A frame of no bytes cannot be told from the end of the connection and is never sent.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

/// The most descriptors that one frame carries.
pub const FDS_PER_FRAME: usize = 64;

const BACKLOG: i32 = 1024;

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
    /// Nobody listens at the path (or there is no such path).
    #[error("nobody listens at {}", path.display())]
    NobodyListens { path: PathBuf },
    /// Somebody listens at the path already, or it is not a socket.
    #[error("{} is in use", path.display())]
    InUse { path: PathBuf },
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
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => Self::Closed,
            other => Self::Io { action, source: other.into() },
        }
    }

    fn of_path(action: &'static str, path: &Path, errno: Errno) -> Self {
        let path = path.to_owned();
        match errno {
            Errno::CONNREFUSED | Errno::NOENT => Self::NobodyListens { path },
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

/// Who is at the other end, as the kernel recorded it at `connect` (or `listen`, seen from a client).
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
    /// [`SocketError::InUse`], [`SocketError::Denied`], [`SocketError::PathTooLong`],
    /// [`SocketError::NobodyListens`] (the folder does not exist), [`SocketError::Io`].
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
    /// Connects to the listener at `path`.
    ///
    /// # Errors
    ///
    /// [`SocketError::NobodyListens`], [`SocketError::Denied`], [`SocketError::PathTooLong`],
    /// [`SocketError::Io`].
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, SocketError> {
        let path = path.as_ref();
        let failed = |errno| SocketError::of_path("connect", path, errno);
        let address = SocketAddrUnix::new(path).map_err(failed)?;
        let fd = seqpacket(SocketFlags::empty())?;
        retry_on_intr(|| net::connect(&fd, &address)).map_err(failed)?;
        Ok(Self { fd })
    }

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
    /// [`SocketError::Closed`], [`SocketError::Io`].
    pub fn recv(&self, buf: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Received, SocketError> {
        self.recv_with(buf, fds, RecvFlags::empty())
    }

    /// Receives a frame if one is there now. `fds` is emptied and gets the frame's descriptors.
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

    /// A pidfd of the process that made the connection: it cannot be of another process that got the
    /// same pid later. `None` where the kernel lacks it (before 6.5).
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
            Ok(_) => Ok(()),
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_PER_FRAME))];
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
        // The buffer's slack for alignment may have let one more in.
        let surplus = fds.len() > FDS_PER_FRAME;
        fds.truncate(FDS_PER_FRAME);
        if received.bytes == 0 {
            fds.clear();
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
        return Err(in_use());
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

/// Reads a socket option of words; returns the bytes that the kernel wrote.
fn socket_option<T: Copy>(fd: &OwnedFd, option: i32, into: &mut [T]) -> Result<usize, Errno> {
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::object;
    use crate::poll::wait_readable;
    use crate::testing::TestObjects;

    /// A path for a socket that is removed on drop.
    struct SocketPath(PathBuf);

    impl SocketPath {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("dmce.test-{}-{number}.sock", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for SocketPath {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    fn open_fds() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    fn is_open(fd: RawFd) -> bool {
        // SAFETY: asks for the flags of a number; nothing is changed.
        unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
    }

    #[test]
    fn a_frame_arrives_whole_with_its_descriptors() {
        let objects = TestObjects::new("socket");
        let fd = objects.dir.create(&objects.name("a")).unwrap();
        object::write_at(fd.as_fd(), b"shared", 0).unwrap();
        let (a, b) = Socket::pair().unwrap();
        a.send(b"one", &[fd.as_fd(), fd.as_fd()]).unwrap();
        a.send(b"two", &[]).unwrap();

        let (mut buf, mut fds) = ([0; 64], Vec::new());
        let received = b.recv(&mut buf, &mut fds).unwrap();
        assert_eq!(received, Received { bytes: 3, truncated: false });
        assert_eq!((&buf[..3], fds.len()), (&b"one"[..], 2));
        let mut content = [0; 6];
        object::read_at(fds[1].as_fd(), &mut content, 0).unwrap();
        assert_eq!(&content, b"shared");
        let flags = rustix::io::fcntl_getfd(&fds[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));

        assert_eq!(b.recv(&mut buf, &mut fds).unwrap().bytes, 3);
        assert!(fds.is_empty(), "the descriptors of the frame before are closed");
        let nothing = b.try_recv(&mut buf, &mut fds);
        assert!(matches!(nothing, Err(SocketError::WouldBlock { .. })));
    }

    #[test]
    fn what_is_cut_off_is_reported() {
        let (a, b) = Socket::pair().unwrap();
        a.send(&[7; 100], &[]).unwrap();
        let (mut buf, mut fds) = ([0; 10], Vec::new());
        let received = b.recv(&mut buf, &mut fds).unwrap();
        assert_eq!(received, Received { bytes: 10, truncated: true });
    }

    #[test]
    fn as_many_descriptors_as_a_frame_takes_arrive_and_more_are_not_sent() {
        let (a, b) = Socket::pair().unwrap();
        let one = crate::poll::EventFd::new().unwrap();
        let full = [one.as_fd(); FDS_PER_FRAME];
        a.send(b"x", &full).unwrap();
        let (mut buf, mut fds) = ([0; 10], Vec::new());
        let received = b.recv(&mut buf, &mut fds).unwrap();
        assert_eq!((received.truncated, fds.len()), (false, FDS_PER_FRAME));
        let too_many = [one.as_fd(); FDS_PER_FRAME + 1];
        let refused = a.send(b"x", &too_many);
        assert!(matches!(refused, Err(SocketError::TooManyFds { count: 65 })));
    }

    #[test]
    fn surplus_descriptors_of_a_hostile_peer_are_closed() {
        const SENT: usize = 200;
        let (a, b) = Socket::pair().unwrap();
        let one = crate::poll::EventFd::new().unwrap();
        let many = [one.as_fd(); SENT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let parts = [IoSlice::new(b"x")];
        net::sendmsg(&a, &parts, &mut control, SendFlags::empty()).unwrap();

        let (mut buf, mut fds) = ([0; 10], Vec::with_capacity(SENT));
        let received = b.recv(&mut buf, &mut fds).unwrap();
        assert!(received.truncated);
        assert_eq!(fds.len(), FDS_PER_FRAME);
        let highest = fds.iter().map(AsRawFd::as_raw_fd).max().unwrap();
        fds.clear();
        // The next numbers up are where a descriptor too many would be.
        assert!(!is_open(highest + 1) || open_fds() < SENT);
    }

    #[test]
    fn a_dead_peer_is_closed_in_both_directions() {
        let (a, b) = Socket::pair().unwrap();
        a.send(b"last words", &[]).unwrap();
        drop(a);
        let (mut buf, mut fds) = ([0; 64], Vec::new());
        assert_eq!(b.recv(&mut buf, &mut fds).unwrap().bytes, 10);
        assert!(matches!(b.recv(&mut buf, &mut fds), Err(SocketError::Closed)));
        assert!(matches!(b.send(b"x", &[]), Err(SocketError::Closed)));
    }

    #[test]
    fn a_frame_without_bytes_is_refused_and_ends_the_connection_of_who_sends_it() {
        let (a, b) = Socket::pair().unwrap();
        assert!(matches!(a.send(b"", &[]), Err(SocketError::FrameSize { bytes: 0 })));
        net::send(&a, b"", SendFlags::empty()).unwrap();
        let (mut buf, mut fds) = ([0; 64], Vec::new());
        assert!(matches!(b.recv(&mut buf, &mut fds), Err(SocketError::Closed)));
    }

    #[test]
    fn a_peer_that_does_not_read_blocks_the_sender_and_no_frame_is_too_large_unnoticed() {
        let (a, b) = Socket::pair().unwrap();
        a.set_buffer_bytes(64 << 10).unwrap();
        let huge = vec![0; 16 << 20];
        assert!(matches!(a.try_send(&huge, &[]), Err(SocketError::FrameSize { .. })));
        let mut sent = 0;
        let refused = loop {
            match a.try_send(&[0; 1024], &[]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, SocketError::WouldBlock { .. }));
        let (mut buf, mut fds) = ([0; 2048], Vec::new());
        for _ in 0..sent {
            assert_eq!(b.try_recv(&mut buf, &mut fds).unwrap().bytes, 1024);
        }
    }

    #[test]
    fn a_listener_has_its_mode_and_knows_who_connects() {
        let path = SocketPath::new();
        let listener = Listener::bind(&path.0, 0o660).unwrap();
        let found = std::fs::symlink_metadata(&path.0).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&found.permissions());
        assert_eq!(mode & 0o7777, 0o660);
        let none = listener.accept_nonblocking();
        assert!(matches!(none, Err(SocketError::WouldBlock { .. })));

        let client = Socket::connect(&path.0).unwrap();
        assert!(wait_readable(listener.as_fd(), Some(Duration::from_secs(60))).unwrap());
        let server = listener.accept_nonblocking().unwrap();
        let peer = server.peer().unwrap();
        assert_eq!(peer.pid, std::process::id());
        assert_eq!(peer.uid, crate::identity::effective_uid());
        assert_eq!(peer.gid, crate::identity::effective_gid());
        let mut groups: Vec<u32> = peer.groups;
        let own = rustix::process::getgroups().unwrap();
        let mut own: Vec<u32> = own.into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.sort_unstable();
        own.sort_unstable();
        assert_eq!(groups, own);
        if let Some(pidfd) = server.peer_pidfd().unwrap() {
            assert!(!wait_readable(pidfd.as_fd(), Some(Duration::ZERO)).unwrap());
        }
        client.send(b"x", &[]).unwrap();
        let (mut buf, mut fds) = ([0; 8], Vec::new());
        assert_eq!(server.recv(&mut buf, &mut fds).unwrap().bytes, 1);
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_or_foreign_one_is_not() {
        let path = SocketPath::new();
        let first = Listener::bind(&path.0, 0o600).unwrap();
        assert!(matches!(Listener::bind(&path.0, 0o600), Err(SocketError::InUse { .. })));
        drop(first);
        let refused = Socket::connect(&path.0);
        assert!(matches!(refused, Err(SocketError::NobodyListens { .. })));
        let second = Listener::bind(&path.0, 0o600).unwrap();
        Socket::connect(&path.0).unwrap();
        second.unlink().unwrap();
        assert!(matches!(Socket::connect(&path.0), Err(SocketError::NobodyListens { .. })));

        std::fs::write(&path.0, b"precious").unwrap();
        assert!(matches!(Listener::bind(&path.0, 0o600), Err(SocketError::InUse { .. })));
        assert_eq!(std::fs::read(&path.0).unwrap(), b"precious");
        let long = Path::new("/tmp").join("x".repeat(120));
        assert!(matches!(Listener::bind(&long, 0o600), Err(SocketError::PathTooLong { .. })));
    }

    #[test]
    fn adopted_descriptors_are_checked() {
        let path = SocketPath::new();
        let listener = Listener::bind(&path.0, 0o600).unwrap();
        let copy = listener.as_fd().try_clone_to_owned().unwrap();
        assert!(Listener::from_fd(copy).unwrap().path().is_none());
        let (a, _b) = Socket::pair().unwrap();
        assert!(Listener::from_fd(a.as_fd().try_clone_to_owned().unwrap()).is_err());
        assert!(Socket::from_fd(a.into_fd()).is_ok());
        let (stream, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(Socket::from_fd(stream.into()).is_err());
        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(Socket::from_fd(file.into()).is_err());
    }

    #[test]
    fn a_shutdown_is_seen_by_the_other_end() {
        let (a, b) = Socket::pair().unwrap();
        a.shutdown();
        let (mut buf, mut fds) = ([0; 8], Vec::new());
        assert!(matches!(b.recv(&mut buf, &mut fds), Err(SocketError::Closed)));
    }
}

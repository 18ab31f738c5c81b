//! Sockets against the real kernel, hostile peers included.

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

/// How many descriptors of this process are open on a file.
fn open_on(path: &Path) -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    fds.filter(|fd| {
        let target = std::fs::read_link(fd.as_ref().unwrap().path());
        target.is_ok_and(|target| target == path)
    })
    .count()
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
fn surplus_descriptors_of_a_hostile_peer_are_received_and_reported() {
    const SENT: usize = 200;
    let objects = TestObjects::new("surplus");
    let name = objects.name("a");
    let one = objects.dir.create(&name).unwrap();
    let (a, b) = Socket::pair().unwrap();
    let many = [one.as_fd(); SENT];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SENT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
    let parts = [IoSlice::new(b"x")];
    net::sendmsg(&a, &parts, &mut control, SendFlags::empty()).unwrap();

    let (mut buf, mut fds) = ([0; 10], Vec::with_capacity(SENT));
    let received = b.recv(&mut buf, &mut fds).unwrap();
    assert!(received.truncated);
    assert_eq!(fds.len(), SENT);
    fds.clear();
    assert_eq!(open_on(&objects.dir.path().join(name)), 1);
}

#[test]
fn descriptors_of_a_frame_without_bytes_are_received() {
    let (a, b) = Socket::pair().unwrap();
    let one = crate::poll::EventFd::new().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [one.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    net::sendmsg(&a, &[], &mut control, SendFlags::empty()).unwrap();
    let (mut buf, mut fds) = ([0; 10], Vec::new());
    assert!(matches!(b.try_recv(&mut buf, &mut fds), Err(SocketError::Closed)));
    assert_eq!(fds.len(), 1);
}

#[test]
fn a_listener_that_refuses_descriptors_gets_none() {
    let path = std::env::temp_dir().join(format!("dmce-test-refuse-{}", std::process::id()));
    let listener = Listener::bind(&path, 0o600).unwrap();
    let refuses = listener.refuse_descriptors();
    let a = Socket::connect(&path).unwrap();
    let b = listener.accept_nonblocking().unwrap();
    listener.unlink().unwrap();
    assert_eq!(b.refuses_descriptors(), refuses);
    assert!(!a.refuses_descriptors());
    let one = crate::poll::EventFd::new().unwrap();
    assert_eq!(a.send(b"x", &[one.as_fd()]).is_err(), refuses);
    a.send(b"y", &[]).unwrap();
    // The other way they go as before.
    b.send(b"z", &[one.as_fd()]).unwrap();
    let (mut buf, mut fds) = ([0; 10], Vec::new());
    a.recv(&mut buf, &mut fds).unwrap();
    assert_eq!(fds.len(), 1);
}

#[test]
fn a_dead_peer_is_closed_in_both_directions() {
    let (ours, theirs) = Socket::pair().unwrap();
    theirs.send(b"last words", &[]).unwrap();
    assert!(!crate::poll::is_hung_up(ours.as_fd()).unwrap());
    drop(theirs);
    assert!(crate::poll::is_hung_up(ours.as_fd()).unwrap(), "before its frames are read");
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

/// A listener whose queue is full. Who has hung up is queued as well, and needs no descriptor.
fn full(path: &SocketPath) -> Listener {
    let listener = Listener::bind(&path.0, 0o600).unwrap();
    while Socket::try_connect(&path.0).is_ok() {}
    listener
}

#[test]
fn who_connects_to_a_full_queue_waits_as_long_as_it_said() {
    let path = SocketPath::new();
    let listener = full(&path);
    let would_block = |connected| matches!(connected, Err(SocketError::WouldBlock { .. }));
    assert!(would_block(Socket::try_connect(&path.0)));
    assert!(would_block(Socket::connect_within(&path.0, Duration::ZERO)));
    assert!(would_block(Socket::connect_within(&path.0, Duration::from_millis(1))));
    std::thread::scope(|scope| {
        let limited = || Socket::connect_within(&path.0, Duration::from_secs(3600));
        let others = [scope.spawn(limited), scope.spawn(|| Socket::connect(&path.0))];
        while !others.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            drop(listener.accept_nonblocking());
            std::thread::yield_now();
        }
        for other in others {
            other.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_socket_waits_to_send_however_it_was_connected() {
    let path = SocketPath::new();
    let _listener = Listener::bind(&path.0, 0o600).unwrap();
    let limited = Socket::connect_within(&path.0, Duration::from_secs(3600)).unwrap();
    for socket in [limited, Socket::try_connect(&path.0).unwrap()] {
        let limit = net::sockopt::socket_timeout(&socket.fd, net::sockopt::Timeout::Send);
        assert_eq!(limit.unwrap(), None);
        let flags = rustix::fs::fcntl_getfl(&socket.fd).unwrap();
        assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK));
    }
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
    assert!(matches!(Listener::bind(&path.0, 0o600), Err(SocketError::NoSocket { .. })));
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

/// Who asked, and gets no answer, knows then that nobody has read what was asked.
#[test]
fn a_peer_that_ends_before_it_has_read_all_is_told_from_one_that_ends_after() {
    let (mut buf, mut fds) = ([0; 8], Vec::new());
    for (reads, is_reset) in [(1, true), (2, false)] {
        let (a, b) = Socket::pair().unwrap();
        for frame in [b"1", b"2"] {
            a.send(frame, &[]).unwrap();
        }
        for _ in 0..reads {
            b.recv(&mut buf, &mut fds).unwrap();
        }
        drop(b);
        let ended = a.recv(&mut buf, &mut fds).unwrap_err();
        assert_eq!(matches!(ended, SocketError::Reset), is_reset, "{ended}");
        assert!(is_reset || matches!(ended, SocketError::Closed));
    }
}

//! Waiting on many descriptors, and descriptors to be woken by.
//!
//! # Invariants
//!
//! 1. Level triggered: what is not dealt with is reported again.
//! 2. A token is the caller's; after [`Poller::remove`] no later wait reports it, but a list that
//!    was filled before still may hold it.
//! 3. A signal ends a wait early with nothing ready; a time is never rounded down to a busy loop.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{self, EventfdFlags, PollFd, PollFlags, epoll};
use rustix::io::Errno;

use crate::clock::timespec;

/// How many descriptors one wait reports at most; the rest come with the next.
const EVENTS_PER_WAIT: usize = 1024;

/// What a caller wants to know of a descriptor. Hang-up is always reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    /// Reading only.
    pub const READ: Self = Self { read: true, write: false };
    /// Writing only.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const BOTH: Self = Self { read: true, write: true };
    /// Hang-up only.
    pub const NONE: Self = Self { read: false, write: false };

    fn flags(self) -> epoll::EventFlags {
        let mut flags = epoll::EventFlags::empty();
        flags.set(epoll::EventFlags::IN | epoll::EventFlags::RDHUP, self.read);
        flags.set(epoll::EventFlags::OUT, self.write);
        flags
    }
}

/// A descriptor that is ready for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What the caller gave with the descriptor.
    pub token: u64,
    /// Reading will not block (it may answer with the end or an error).
    pub readable: bool,
    /// Writing will not block.
    pub writable: bool,
    /// The other end is gone. There may still be something to read.
    pub hangup: bool,
}

/// A set of descriptors to wait for.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds a descriptor. Closing its last copy removes it; better remove it before.
    ///
    /// # Errors
    ///
    /// `AlreadyExists`, or the descriptor cannot be waited for (a regular file).
    pub fn add(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, interest.flags())?)
    }

    /// Changes token and interest of a descriptor.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is not in the set.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: u64, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::modify(&self.epoll, fd, data, interest.flags())?)
    }

    /// Removes a descriptor.
    ///
    /// # Errors
    ///
    /// `NotFound` if it is not in the set.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits until something is ready, the time is up, or a signal comes; `ready` is emptied and
    /// gets what is ready.
    ///
    /// # Errors
    ///
    /// An error of the kernel that means a broken poller.
    pub fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.map(timespec);
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_PER_WAIT];
        let events = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(Errno::INTR) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        for event in events.iter() {
            let (flags, data) = (event.flags, event.data);
            let gone = epoll::EventFlags::HUP | epoll::EventFlags::ERR;
            ready.push(Ready {
                token: data.u64(),
                readable: flags.intersects(epoll::EventFlags::IN | gone),
                writable: flags.intersects(epoll::EventFlags::OUT | epoll::EventFlags::ERR),
                hangup: flags.intersects(gone | epoll::EventFlags::RDHUP),
            });
        }
        Ok(())
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

/// Waits until a descriptor is readable or hung up. False if the time was up (or a signal came)
/// before.
///
/// # Errors
///
/// An error of the kernel.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, PollFlags::IN, timeout)
}

/// Waits until a descriptor is writable or hung up. False if the time was up (or a signal came)
/// before.
///
/// # Errors
///
/// An error of the kernel.
pub fn wait_writable(fd: BorrowedFd<'_>, timeout: Option<Duration>) -> io::Result<bool> {
    wait_for(fd, PollFlags::OUT, timeout)
}

/// Waits until a descriptor is ready for what is wanted or hung up, or `interrupt` is readable.
/// True for the latter, whatever else is.
///
/// # Errors
///
/// An error of the kernel.
pub fn wait_unless(
    fd: BorrowedFd<'_>,
    interest: Interest,
    interrupt: BorrowedFd<'_>,
    timeout: Option<Duration>,
) -> io::Result<bool> {
    let timeout = timeout.map(timespec);
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, interest.read);
    flags.set(PollFlags::OUT, interest.write);
    let mut fds =
        [PollFd::from_borrowed_fd(fd, flags), PollFd::from_borrowed_fd(interrupt, PollFlags::IN)];
    match event::poll(&mut fds, timeout.as_ref()) {
        Ok(_) => Ok(!fds[1].revents().is_empty()),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Whether the other end of a connection is gone, be there frames of it still to read or not.
///
/// # Errors
///
/// An error of the kernel.
pub fn is_hung_up(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::empty())];
    match event::poll(&mut fds, Some(&timespec(Duration::ZERO))) {
        Ok(_) => Ok(fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn wait_for(fd: BorrowedFd<'_>, flags: PollFlags, timeout: Option<Duration>) -> io::Result<bool> {
    let timeout = timeout.map(timespec);
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    match event::poll(&mut fds, timeout.as_ref()) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// A descriptor that one thread makes readable and another drains.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// One that is not signalled.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory is left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { fd: event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Takes over a descriptor that another process made, as one that came with a frame.
    ///
    /// # Errors
    ///
    /// An error of the kernel. Whether it is an eventfd shows when it is used.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd })
    }

    /// Makes it readable. Signals that nobody has drained are one.
    ///
    /// # Errors
    ///
    /// An error of the kernel.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &1_u64.to_ne_bytes())) {
            // A full counter is readable, which is all that is wanted.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Makes it unreadable; returns how often it was signalled, 0 for never.
    ///
    /// # Errors
    ///
    /// An error of the kernel, or it is no eventfd.
    pub fn drain(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut count)) {
            Ok(8) => Ok(u64::from_ne_bytes(count)),
            Ok(_) => Err(io::ErrorKind::InvalidData.into()),
            Err(Errno::AGAIN) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A signal that a daemon acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// SIGTERM: stop.
    Terminate,
    /// SIGINT: stop.
    Interrupt,
    /// SIGHUP: read the configuration again.
    Hangup,
    /// SIGCHLD: a child has ended.
    Child,
}

impl Notice {
    const ALL: [(Self, c_int); 4] = [
        (Self::Terminate, libc::SIGTERM),
        (Self::Interrupt, libc::SIGINT),
        (Self::Hangup, libc::SIGHUP),
        (Self::Child, libc::SIGCHLD),
    ];
}

/// The signals of [`Notice`] as something to poll. They stay blocked when it is dropped.
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks the signals in this thread, and in those that it starts from now on, and takes them
    /// in by descriptor. To be called before the first thread is started.
    ///
    /// # Errors
    ///
    /// No descriptor or no memory is left.
    pub fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
        // SAFETY: the pointer is to a local.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        for (_, number) in Notice::ALL {
            // SAFETY: the set was initialised above.
            unsafe { libc::sigaddset(set.as_mut_ptr(), number) };
        }
        // SAFETY: the set is initialised, and nothing is written back.
        let failed =
            unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), ptr::null_mut()) };
        if failed != 0 {
            return Err(io::Error::from_raw_os_error(failed));
        }
        let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
        // SAFETY: -1 asks for a new descriptor, and the set is initialised.
        let raw = unsafe { libc::signalfd(-1, set.as_ptr(), flags) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(raw) } })
    }

    /// The next signal that has come, if any. Signals of one kind that come close together are one.
    ///
    /// # Errors
    ///
    /// An error of the kernel.
    pub fn next(&self) -> io::Result<Option<Notice>> {
        const INFO_BYTES: usize = size_of::<libc::signalfd_siginfo>();
        let mut info = [0; INFO_BYTES];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut info)) {
            Ok(INFO_BYTES) => {}
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
        // `ssi_signo` is the first word.
        let number = u32::from_ne_bytes([info[0], info[1], info[2], info[3]]);
        let is_it = |&&(_, known): &&(Notice, c_int)| u32::try_from(known) == Ok(number);
        Ok(Notice::ALL.iter().find(is_it).map(|&(notice, _)| notice))
    }
}

impl AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::socket::Socket;

    const PATIENCE: Option<Duration> = Some(Duration::from_secs(60));

    #[test]
    fn reports_tokens_until_they_are_dealt_with_or_removed() {
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        let (a, b) = (EventFd::new().unwrap(), EventFd::new().unwrap());
        poller.add(a.as_fd(), 1, Interest::READ).unwrap();
        poller.add(b.as_fd(), u64::MAX, Interest::READ).unwrap();
        let twice = poller.add(a.as_fd(), 1, Interest::READ).unwrap_err();
        assert_eq!(twice.kind(), io::ErrorKind::AlreadyExists);
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());

        b.signal().unwrap();
        b.signal().unwrap();
        let expected = Ready { token: u64::MAX, readable: true, writable: false, hangup: false };
        for _ in 0..2 {
            poller.wait(PATIENCE, &mut ready).unwrap();
            assert_eq!(ready, [expected], "level triggered");
        }
        assert_eq!(b.drain().unwrap(), 2);
        assert_eq!(b.drain().unwrap(), 0);
        a.signal().unwrap();
        poller.remove(a.as_fd()).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        let gone = poller.remove(a.as_fd()).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn interest_can_change_and_a_hang_up_is_always_told() {
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        let (here, there) = Socket::pair().unwrap();
        poller.add(here.as_fd(), 5, Interest::BOTH).unwrap();
        poller.wait(PATIENCE, &mut ready).unwrap();
        assert_eq!(ready, [Ready { token: 5, readable: false, writable: true, hangup: false }]);
        poller.modify(here.as_fd(), 6, Interest::NONE).unwrap();
        there.send(b"x", &[]).unwrap();
        poller.wait(Some(Duration::ZERO), &mut ready).unwrap();
        assert!(ready.is_empty());
        drop(there);
        poller.wait(PATIENCE, &mut ready).unwrap();
        assert!(ready[0].hangup && ready[0].token == 6);
    }

    #[test]
    fn a_time_of_less_than_a_millisecond_is_waited_and_not_skipped() {
        let (poller, mut ready) = (Poller::new().unwrap(), Vec::new());
        let wait = Duration::from_micros(300);
        let start = std::time::Instant::now();
        poller.wait(Some(wait), &mut ready).unwrap();
        assert!(start.elapsed() >= wait);
        let event = EventFd::new().unwrap();
        assert!(!wait_readable(event.as_fd(), Some(wait)).unwrap());
        assert!(wait_writable(event.as_fd(), Some(wait)).unwrap());
        event.signal().unwrap();
        assert!(wait_readable(event.as_fd(), None).unwrap());
    }

    #[test]
    fn an_event_that_another_process_made_is_usable() {
        let (a, b) = Socket::pair().unwrap();
        let event = EventFd::new().unwrap();
        a.send(b"x", &[event.as_fd()]).unwrap();
        let (mut buf, mut fds) = ([0; 8], Vec::new());
        b.recv(&mut buf, &mut fds).unwrap();
        let theirs = EventFd::from_fd(fds.remove(0)).unwrap();
        theirs.signal().unwrap();
        assert_eq!(event.drain().unwrap(), 1);
    }

    #[test]
    fn blocked_signals_come_by_descriptor() {
        // In a thread of its own, since the signals stay blocked in it.
        let thread = std::thread::spawn(|| {
            let signals = SignalFd::new().unwrap();
            assert_eq!(signals.next().unwrap(), None);
            // SAFETY: sends a signal, which is blocked, to this thread.
            assert_eq!(unsafe { libc::raise(libc::SIGHUP) }, 0);
            assert!(wait_readable(signals.as_fd(), PATIENCE).unwrap());
            assert_eq!(signals.next().unwrap(), Some(Notice::Hangup));
            assert_eq!(signals.next().unwrap(), None);
        });
        thread.join().unwrap();
    }
}

//! A process of the lowest priority that does for a daemon what nobody waits for.
//!
//! ```text
//!   daemon, thread `prepare`                 `dmce-daemon --prepare-pages`
//!       a range of an object, its descriptor  ---->  commits it, or makes its pages
//!       done, or not                          <----
//! ```
//!
//! Why not a thread: the last thread of a process that dies gives its memory and its descriptors
//! back, and does it at its own priority. On a busy machine a daemon with a thread of the lowest
//! one would hold its sockets and its lock for seconds after it was killed, and nobody would know
//! of its death.
//!
//! # Invariants
//!
//! 1. The process has no descriptor of the daemon's but one end of a socket, its log, and those
//!    that come with requests, one at a time. So nothing of a daemon that died is held by it.
//! 2. It ends with the daemon, whose end of the socket the kernel closes; at the latest when the
//!    step is over that it is at. The signals that the daemon waits for it has blocked.
//! 3. All that it does may be done twice, or not at all. One that died or answers no more is
//!    replaced, and meanwhile the daemon does its work itself.

use std::error::Error;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dmce_sys::map::FileRange;
use dmce_sys::socket::{Socket, SocketError};
use dmce_sys::{crash, object, poll, priority, thread};
use tracing::{debug, warn};

use crate::store::{Errand, Hands, PageMaker};

/// The one argument of the process.
pub const ARGUMENT: &str = "--prepare-pages";

/// How long a step may take before the process is taken for one that does nothing more.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long after a start there is no other.
const PAUSE: Duration = Duration::from_secs(10);

const REQUEST_BYTES: usize = 17;
const DONE: u8 = 1;

/// Why something was not done in the background.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("it cannot be started: {0}")]
    Spawn(#[source] io::Error),
    #[error("it cannot be waited for: {0}")]
    Wait(#[source] io::Error),
    #[error("it has done nothing for {PATIENCE:?}")]
    Silent,
}

/// The process, as its daemon has it. Dropped, it ends.
#[derive(Debug, Default)]
pub struct Background {
    running: Option<Running>,
    started: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    socket: Socket,
    process: Child,
}

impl Hands for Background {
    fn run(&mut self, errand: Errand, fd: BorrowedFd<'_>, range: FileRange) -> Option<bool> {
        if self.running.is_none() && self.started.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        match self.ask(errand, fd, range) {
            Ok(is_done) => Some(is_done),
            Err(trouble) => {
                warn!("nothing is done in the background for a while: {trouble}");
                self.running = None;
                None
            }
        }
    }
}

impl Background {
    /// Starts it; one that cannot be started now is tried again later.
    ///
    /// Before the daemon has its lock: a process that is being started holds a copy of each
    /// descriptor until it executes its program, and the daemon may be killed meanwhile.
    pub fn start() -> Self {
        let mut background = Self::default();
        if let Err(trouble) = background.start_anew() {
            warn!("nothing is done in the background for a while: {trouble}");
        }
        background
    }

    fn start_anew(&mut self) -> Result<(), Trouble> {
        self.started = Some(Instant::now());
        self.running = Some(Running::start()?);
        Ok(())
    }

    fn ask(
        &mut self,
        errand: Errand,
        fd: BorrowedFd<'_>,
        range: FileRange,
    ) -> Result<bool, Trouble> {
        if self.running.is_none() {
            self.start_anew()?;
        }
        let Some(Running { socket, .. }) = &self.running else { return Err(Trouble::Silent) };
        socket.send(&encode(errand, range), &[fd])?;
        if !poll::wait_readable(socket.as_fd(), Some(PATIENCE)).map_err(Trouble::Wait)? {
            return Err(Trouble::Silent);
        }
        let mut answer = [0; 1];
        let received = socket.recv(&mut answer, &mut Vec::new())?;
        Ok(received.bytes == 1 && !received.truncated && answer == [DONE])
    }
}

impl Running {
    fn start() -> Result<Self, Trouble> {
        let (socket, other) = Socket::pair()?;
        // The running program, also if its file was replaced.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("dmce-daemon").arg(ARGUMENT);
        // Whose steps are counted, and who dies at a point, is the daemon.
        command.env_remove(crash::VARIABLE).env_remove(crash::POINT_VARIABLE);
        command.stdin(Stdio::from(other.into_fd())).stdout(Stdio::null());
        let process = command.spawn().map_err(Trouble::Spawn)?;
        Ok(Self { socket, process })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended of itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the process does until its daemon ends.
///
/// # Errors
///
/// Whatever keeps it from going on.
pub fn serve() -> Result<(), Box<dyn Error>> {
    thread::set_name(c"dmce-prepare");
    let socket = Socket::from_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    priority::lower_own_thread()?;
    let maker = PageMaker::new()?;
    let (mut request, mut fds) = ([0; REQUEST_BYTES], Vec::new());
    loop {
        let received = match socket.recv(&mut request, &mut fds) {
            Ok(received) => received,
            Err(SocketError::Closed | SocketError::Reset) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let is_whole = received.bytes == REQUEST_BYTES && !received.truncated;
        let asked = if is_whole { decode(&request) } else { None };
        let is_done = match (asked, fds.pop()) {
            (Some((errand, range)), Some(fd)) => act(&maker, errand, fd.as_fd(), range),
            _ => false,
        };
        match socket.send(&[u8::from(is_done)], &[]) {
            Err(SocketError::Closed | SocketError::Reset) => return Ok(()),
            sent => sent?,
        }
    }
}

fn act(maker: &PageMaker, errand: Errand, fd: BorrowedFd<'_>, range: FileRange) -> bool {
    let FileRange { offset, bytes } = range;
    let failed: Option<Box<dyn Error>> = match errand {
        Errand::Commit => object::commit(fd, offset, bytes).err().map(Into::into),
        Errand::Prepare { huge_pages } => {
            maker.prepare(fd, range, huge_pages).err().map(Into::into)
        }
    };
    if let Some(error) = &failed {
        debug!(?errand, offset, bytes, %error, "not done");
    }
    failed.is_none()
}

fn encode(errand: Errand, range: FileRange) -> [u8; REQUEST_BYTES] {
    let kind = match errand {
        Errand::Commit => 0,
        Errand::Prepare { huge_pages: false } => 1,
        Errand::Prepare { huge_pages: true } => 2,
    };
    let mut request = [kind; REQUEST_BYTES];
    request[1..9].copy_from_slice(&range.offset.to_le_bytes());
    request[9..].copy_from_slice(&range.bytes.to_le_bytes());
    request
}

fn decode(request: &[u8; REQUEST_BYTES]) -> Option<(Errand, FileRange)> {
    let errand = match request[0] {
        0 => Errand::Commit,
        1 => Errand::Prepare { huge_pages: false },
        2 => Errand::Prepare { huge_pages: true },
        _ => return None,
    };
    let offset = u64::from_le_bytes(request[1..9].try_into().ok()?);
    let bytes = u64::from_le_bytes(request[9..].try_into().ok()?);
    Some((errand, FileRange { offset, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_comes_through() {
        let range = FileRange { offset: 1 << 40, bytes: 0x1234 };
        let prepare = |huge_pages| Errand::Prepare { huge_pages };
        for errand in [Errand::Commit, prepare(false), prepare(true)] {
            assert_eq!(decode(&encode(errand, range)), Some((errand, range)));
        }
        assert_eq!(decode(&[3; REQUEST_BYTES]), None);
    }
}

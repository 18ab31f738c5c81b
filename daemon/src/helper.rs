//! A process of the lowest priority that does for a daemon what nobody waits for.
//!
//! ```text
//!   daemon, thread `prepare`                 helper, `dmce-daemon --prepare-pages`
//!       a range of an object, its descriptor  ---->  commits it, or makes its pages
//!       done, no room, or failed              <----
//! ```
//!
//! Why not a thread: the last thread of a process that dies gives its memory and its descriptors
//! back, and does it at its own priority. On a busy machine a daemon with a thread of the lowest
//! one would hold its sockets and its lock for seconds after it was killed, and nobody would know
//! of its death.
//!
//! # Invariants
//!
//! 1. The helper has no descriptor of the daemon's but one end of a socket, its log, and those that
//!    come with requests, one at a time. So nothing of a daemon that died is held by it.
//! 2. It ends with the daemon, whose end of the socket the kernel closes; at the latest when the
//!    step is over that it is at.
//! 3. All that it does may be done twice, or not at all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitCode, Stdio};

use dmce_sys::map::FileRange;
use dmce_sys::object::{self, ObjectError};
use dmce_sys::priority;
use dmce_sys::socket::{Socket, SocketError};
use tracing::{debug, warn};

use crate::store::{Answer, Errand, Hands, PageMaker};

/// The one argument of a helper.
pub const ARGUMENT: &str = "--prepare-pages";

const REQUEST_BYTES: usize = 17;

/// Why there is no helper.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// No socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No process.
    #[error("the process that prepares pages cannot be started")]
    Spawn(#[source] io::Error),
}

/// A helper, as its daemon has it. Dropped, it ends.
#[derive(Debug)]
pub struct Helper {
    socket: Socket,
    process: Child,
}

impl Helper {
    /// Starts one.
    ///
    /// # Errors
    ///
    /// [`HelperError`].
    pub fn start() -> Result<Self, HelperError> {
        let (socket, other) = Socket::pair()?;
        // The running program, also if its file was replaced.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("dmce-daemon").arg(ARGUMENT);
        command.stdin(Stdio::from(other.into_fd())).stdout(Stdio::null());
        let process = command.spawn().map_err(HelperError::Spawn)?;
        Ok(Self { socket, process })
    }

    fn ask(
        &self,
        errand: Errand,
        fd: BorrowedFd<'_>,
        range: FileRange,
    ) -> Result<Answer, SocketError> {
        self.socket.send(&encode(errand, range), &[fd])?;
        let (mut reply, mut none) = ([0; 1], Vec::new());
        let received = self.socket.recv(&mut reply, &mut none)?;
        Ok(if received.bytes == 1 { answer_of(reply[0]) } else { Answer::Failed })
    }
}

impl Hands for Helper {
    fn run(&self, errand: Errand, fd: BorrowedFd<'_>, range: FileRange) -> Option<Answer> {
        match self.ask(errand, fd, range) {
            Ok(answer) => Some(answer),
            Err(error) => {
                warn!(%error, "the process that prepares pages is gone");
                None
            }
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended of itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a helper does until its daemon ends.
pub fn run() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dmce-daemon {ARGUMENT}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
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
        let fd: Option<OwnedFd> = fds.pop();
        let asked = (received.bytes == REQUEST_BYTES).then(|| decode(&request)).flatten();
        let answer = match (asked, fd) {
            (Some((errand, range)), Some(fd)) => act(&maker, errand, fd.as_fd(), range),
            _ => Answer::Failed,
        };
        match socket.send(&[code_of(answer)], &[]) {
            Err(SocketError::Closed | SocketError::Reset) => return Ok(()),
            sent => sent?,
        }
    }
}

fn act(maker: &PageMaker, errand: Errand, fd: BorrowedFd<'_>, range: FileRange) -> Answer {
    let FileRange { offset, bytes } = range;
    match errand {
        Errand::Commit => match object::commit(fd, offset, bytes) {
            Ok(()) => Answer::Done,
            Err(ObjectError::NoSpace { .. }) => Answer::NoSpace,
            Err(_) => Answer::Failed,
        },
        Errand::Prepare { huge_pages } => match maker.prepare(fd, range, huge_pages) {
            Ok(()) => Answer::Done,
            Err(error) => {
                debug!(offset, bytes, %error, "pages are not prepared");
                Answer::Failed
            }
        },
    }
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

const fn code_of(answer: Answer) -> u8 {
    match answer {
        Answer::Done => 0,
        Answer::NoSpace => 1,
        Answer::Failed => 2,
    }
}

const fn answer_of(code: u8) -> Answer {
    match code {
        0 => Answer::Done,
        1 => Answer::NoSpace,
        _ => Answer::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_and_answered_comes_through() {
        let range = FileRange { offset: 1 << 40, bytes: 0x1234 };
        let prepare = |huge_pages| Errand::Prepare { huge_pages };
        for errand in [Errand::Commit, prepare(false), prepare(true)] {
            assert_eq!(decode(&encode(errand, range)), Some((errand, range)));
        }
        assert_eq!(decode(&[3; REQUEST_BYTES]), None);
        for answer in [Answer::Done, Answer::NoSpace, Answer::Failed] {
            assert_eq!(answer_of(code_of(answer)), answer);
        }
    }
}

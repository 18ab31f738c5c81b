//! A server of somebody else's that a row is measured beside, and connections to it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// How long a server may take until it listens.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

/// A running server, which listens at a Unix socket. Dropped, it ends; the kernel ends it with this
/// process at the latest.
#[derive(Debug)]
pub struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts `program`, which is to listen at `socket`; `None` if it is not installed.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(program: &str, arguments: &[String], socket: &Path) -> Result<Option<Self>> {
        let found = Command::new(program).arg("--version").stdout(Stdio::null()).status();
        if found.is_err() {
            return Ok(None);
        }
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", program])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::system(format!("starting {program}")))?;
        Ok(Some(Self { child, socket: socket.to_owned() }))
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A connection, as soon as it listens.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if it does not.
    pub fn connect(&self) -> Result<UnixStream> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Ok(connection) => return Ok(connection),
                Err(source) if begin.elapsed() > PATIENCE => {
                    return Err(Error::System { what: self.socket.display().to_string(), source });
                }
                Err(_) => thread::sleep(PAUSE),
            }
        }
    }

    /// Sends it `SIGKILL`, and does not wait.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().map_err(Error::system("killing a server"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.socket);
    }
}

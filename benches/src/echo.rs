//! A bare round trip over a Unix socket: what the requests of DMCE are compared with.
//!
//! The other process does nothing but send back what it gets, over a packet socket as the broker's.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use dmce_sys::socket::{Socket, SocketError};

use crate::{Error, Result};

/// Bytes of a frame: a request of the protocol is about as long.
const FRAME_BYTES: usize = 64;

/// A process that echoes. It ends with the value.
#[derive(Debug)]
pub struct Echo {
    child: Child,
    socket: Socket,
}

impl Echo {
    /// Starts `worker` as an echo.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(worker: &Path) -> Result<Self> {
        let (socket, end) = Socket::pair().map_err(|e| Error::of("making a socket pair", e))?;
        let child = Command::new(worker)
            .arg("echo")
            .stdin(end.into_fd())
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::system(format!("starting {}", worker.display())))?;
        Ok(Self { child, socket })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends frames one after the other, and waits for each.
    ///
    /// # Errors
    ///
    /// [`Error::System`] if the other process is gone.
    pub fn round_trips(&self, count: u64) -> Result<()> {
        let mut frame = [0; FRAME_BYTES];
        let mut fds = Vec::new();
        for _ in 0..count {
            self.socket.send(&frame, &[]).map_err(failed)?;
            self.socket.recv(&mut frame, &mut fds).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.socket.shutdown();
        // It ends by itself now; if it is gone already there is nothing to wait for.
        let _ = self.child.wait();
    }
}

/// The other process: echoes on its standard input until that is closed.
///
/// # Errors
///
/// [`Error::System`] if the standard input is no packet socket.
pub fn serve() -> Result<()> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(Error::system("taking the standard input"))?;
    let socket = Socket::from_fd(input).map_err(failed)?;
    let mut frame = [0; FRAME_BYTES];
    let mut fds = Vec::new();
    loop {
        match socket.recv(&mut frame, &mut fds) {
            Ok(received) => socket.send(&frame[..received.bytes], &[]).map_err(failed)?,
            Err(SocketError::Closed) => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
}

fn failed(error: SocketError) -> Error {
    Error::of("echoing", error)
}

//! A bare round trip over a Unix socket: what the requests of DMCE are compared with.
//!
//! The other process does nothing but send back what it gets, over a packet socket as the broker's.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dmce_sys::poll::{Interest, Poller};
use dmce_sys::socket::{Listener, Socket, SocketError};

use crate::{Error, Result};

/// Bytes of a frame: a request of the protocol is about as long.
pub const FRAME_BYTES: usize = 64;

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

/// A process that echoes on any number of connections, as a server with an event loop does.
#[derive(Debug)]
pub struct Switchboard {
    child: Child,
    path: PathBuf,
}

impl Switchboard {
    /// Starts `worker` as one.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn start(worker: &Path) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("dmce-bench-echo-{}", std::process::id()));
        let listener = Listener::bind(&path, 0o600).map_err(failed)?;
        let input = listener.as_fd().try_clone_to_owned();
        let child = Command::new(worker)
            .arg("switchboard")
            .stdin(input.map_err(Error::system("passing a socket on"))?)
            .stdout(Stdio::null())
            .spawn()
            .map_err(Error::system(format!("starting {}", worker.display())))?;
        Ok(Self { child, path })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// So many connections to it.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn connect(&self, count: usize) -> Result<Vec<Socket>> {
        let connect = || Socket::connect(&self.path).map_err(failed);
        std::iter::repeat_with(connect).take(count).collect()
    }

    /// Connects, sends a frame, waits for it, and closes, one time after the other.
    ///
    /// # Errors
    ///
    /// [`Error::System`].
    pub fn visits(&self, count: u64) -> Result<()> {
        let (mut frame, mut fds) = ([0; FRAME_BYTES], Vec::new());
        for _ in 0..count {
            let socket = Socket::connect(&self.path).map_err(failed)?;
            socket.send(&frame, &[]).map_err(failed)?;
            socket.recv(&mut frame, &mut fds).map_err(failed)?;
        }
        Ok(())
    }
}

impl Drop for Switchboard {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The other process: echoes on all connections to the socket on its standard input, for ever.
///
/// # Errors
///
/// [`Error::System`].
pub fn serve_many() -> Result<()> {
    let input = std::io::stdin().as_fd().try_clone_to_owned();
    let input = input.map_err(Error::system("taking the standard input"))?;
    let listener = Listener::from_fd(input).map_err(failed)?;
    let waiting = Error::system;
    let poller = Poller::new().map_err(waiting("waiting"))?;
    poller.add(listener.as_fd(), 0, Interest::READ).map_err(waiting("waiting"))?;
    let mut sockets: Vec<Option<Socket>> = vec![None];
    let (mut ready, mut frame, mut fds) = (Vec::new(), [0; FRAME_BYTES], Vec::new());
    loop {
        poller.wait(None::<Duration>, &mut ready).map_err(waiting("waiting"))?;
        for event in &ready {
            let place = usize::try_from(event.token).unwrap_or(usize::MAX);
            if place == 0 {
                let socket = listener.accept_nonblocking().map_err(failed)?;
                let token = sockets.len() as u64;
                poller.add(socket.as_fd(), token, Interest::READ).map_err(waiting("waiting"))?;
                sockets.push(Some(socket));
                continue;
            }
            let Some(Some(socket)) = sockets.get(place) else { continue };
            match socket.try_recv(&mut frame, &mut fds) {
                Ok(received) => socket.try_send(&frame[..received.bytes], &[]).map_err(failed)?,
                Err(SocketError::WouldBlock { .. }) => {}
                Err(_) => sockets[place] = None,
            }
        }
    }
}

fn failed(error: SocketError) -> Error {
    Error::of("echoing", error)
}

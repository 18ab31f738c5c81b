//! Closing descriptors that another process has passed, or may have, in a thread of its own.
//!
//! A close can wait: for the other end of a TCP connection with `SO_LINGER`, for the process behind
//! a FUSE file. Whoever is sent such a descriptor and closes it waits with it, and the descriptors
//! that nobody has received yet are closed with their connection. A server that must not wait for a
//! peer lets a [`Closer`] do both.
//!
//! # Invariants
//!
//! 1. What is handed over is closed once, in order; nobody waits for that. A connection over which
//!    nothing can be passed is closed at once: that takes less than to hand it over.
//! 2. A socket does not linger, and neither does one that still lies in the queue of a connection:
//!    those are taken out one by one, after the peer can send no more.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use crate::socket::Socket;

/// Where descriptors go to be closed. Dropped, it closes what it has and ends.
#[derive(Debug)]
pub struct Closer {
    sender: Sender<Closing>,
}

#[derive(Debug)]
enum Closing {
    Passed(Vec<OwnedFd>),
    Connection(Socket),
}

impl Closer {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The kernel has no room for another thread.
    pub fn start() -> io::Result<Self> {
        let (sender, receiver) = channel();
        thread::Builder::new().name("close".to_owned()).spawn(move || run(&receiver))?;
        Ok(Self { sender })
    }

    /// Closes descriptors that came with a frame.
    pub fn close(&self, passed: Vec<OwnedFd>) {
        if !passed.is_empty() {
            self.hand_over(Closing::Passed(passed));
        }
    }

    /// Ends a connection: the peer sees it at once.
    pub fn end(&self, connection: Socket) {
        if connection.refuses_descriptors() {
            return drop(connection);
        }
        connection.shutdown();
        self.hand_over(Closing::Connection(connection));
    }

    fn hand_over(&self, closing: Closing) {
        // The thread ends after the last sender. Had it ended before, what is returned is closed
        // here.
        drop(self.sender.send(closing));
    }
}

fn run(receiver: &Receiver<Closing>) {
    for closing in receiver {
        match closing {
            Closing::Passed(passed) => close(passed),
            Closing::Connection(connection) => {
                let mut passed = Vec::new();
                // One byte of each frame is enough. The end of the queue is an error too; so is a
                // frame of no bytes, after which there may be others.
                while connection.try_recv(&mut [0], &mut passed).is_ok() || !passed.is_empty() {
                    close(std::mem::take(&mut passed));
                }
            }
        }
    }
}

fn close(passed: Vec<OwnedFd>) {
    for fd in passed {
        // It fails for what is no socket, and that does not linger.
        let _ = rustix::net::sockopt::set_socket_linger(fd.as_fd(), None);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;
    use crate::poll::wait_readable;
    use crate::socket::{Listener, SocketError};

    /// A connection whose close waits for an hour, or until the other end reads. The other end.
    fn lingering() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        while stream.write(&[0; 4_096]).is_ok() {}
        stream.set_nonblocking(false).unwrap();
        let hour = Some(Duration::from_secs(3600));
        rustix::net::sockopt::set_socket_linger(&stream, hour).unwrap();
        (stream, other)
    }

    /// Waits until the closer has closed all that it was given before.
    fn wait_for(closer: &Closer) {
        let (a, b) = Socket::pair().unwrap();
        closer.close(vec![a.into_fd()]);
        assert!(wait_readable(b.as_fd(), Some(Duration::from_secs(60))).unwrap());
    }

    #[test]
    fn a_socket_that_was_received_does_not_linger() {
        let closer = Closer::start().unwrap();
        let (stream, _other) = lingering();
        closer.close(vec![stream.into()]);
        wait_for(&closer);
    }

    #[test]
    fn a_connection_over_which_nothing_comes_is_closed_at_once() {
        let path = std::env::temp_dir().join(format!("dmce-test-closing-{}", std::process::id()));
        let listener = Listener::bind(&path, 0o600).unwrap();
        let refuses = listener.refuse_descriptors();
        let a = Socket::connect(&path).unwrap();
        let b = listener.accept_nonblocking().unwrap();
        listener.unlink().unwrap();
        a.send(b"a frame that is not read", &[]).unwrap();
        let closer = Closer::start().unwrap();
        closer.end(b);
        // A child that another test has forked may have the connection as well, for a moment.
        assert!(wait_readable(a.as_fd(), Some(Duration::from_secs(60))).unwrap());
        let told = a.try_recv(&mut [0], &mut Vec::new());
        if refuses {
            // The frame has gone with the connection, and no thread was asked to see to it first.
            assert!(matches!(told, Err(SocketError::Reset)), "{told:?}");
        }
        assert!(a.send(b"x", &[]).is_err());
    }

    #[test]
    fn sockets_that_nobody_received_do_not_linger() {
        let closer = Closer::start().unwrap();
        let (a, b) = Socket::pair().unwrap();
        let mut others = Vec::new();
        for _ in 0..3 {
            let (stream, other) = lingering();
            a.send(b"a frame that is not read", &[stream.as_fd()]).unwrap();
            others.push(other);
        }
        closer.end(b);
        wait_for(&closer);
        assert!(a.send(b"x", &[]).is_err());
    }
}

//! A listener that rests when nobody can be taken in.
//!
//! # Invariants
//!
//! 1. A connection that cannot be taken in, for want of a descriptor or of memory, waits in the
//!    listener's queue. It is tried again after [`REST_MS`], and not at each turn of the loop.
//! 2. A rest is logged once, until somebody was taken in again.

use std::os::fd::AsFd;

use dmce_broker::dispatcher::Millis;
use dmce_sys::poll::{Interest, Poller};
use dmce_sys::socket::{Listener, Socket, SocketError};
use tracing::warn;

use super::ServerError;

/// How long nobody is taken in after one could not be.
const REST_MS: u64 = 100;

/// A listener, open or resting.
#[derive(Debug)]
pub struct Door {
    listener: Listener,
    token: u64,
    rests_until: Option<Millis>,
    logged: bool,
}

impl Door {
    /// Has `poller` say `token` when somebody waits.
    pub fn open(poller: &Poller, listener: Listener, token: u64) -> Result<Self, ServerError> {
        poller.add(listener.as_fd(), token, Interest::READ)?;
        Ok(Self { listener, token, rests_until: None, logged: false })
    }

    /// The next who waits, if anybody does and can be taken in.
    pub fn accept(&mut self, poller: &Poller, now: Millis) -> Option<Socket> {
        match self.listener.accept_nonblocking() {
            Ok(socket) => {
                self.logged = false;
                Some(socket)
            }
            Err(SocketError::WouldBlock { .. }) => None,
            Err(error) => {
                self.rest(poller, now, &error);
                None
            }
        }
    }

    /// When a rest is over, if there is one.
    pub const fn rests_until(&self) -> Option<Millis> {
        self.rests_until
    }

    /// Ends a rest that is over.
    pub fn wake(&mut self, poller: &Poller, now: Millis) {
        if self.rests_until.is_none_or(|until| now < until) {
            return;
        }
        self.rests_until = None;
        if let Err(error) = poller.modify(self.listener.as_fd(), self.token, Interest::READ) {
            warn!("a listener is not polled yet: {error}");
            self.rests_until = Some(now.after(REST_MS));
        }
    }

    /// Removes the socket's file.
    pub fn unlink(&self) {
        if let Err(error) = self.listener.unlink() {
            let path = self.listener.path().unwrap_or_else(|| "".as_ref());
            warn!("{} stays behind: {error}", path.display());
        }
    }

    fn rest(&mut self, poller: &Poller, now: Millis, error: &SocketError) {
        if !self.logged {
            let why = std::error::Error::source(error).map(ToString::to_string);
            let why = why.unwrap_or_else(|| error.to_string());
            warn!("who connects cannot be taken in and has to wait: {why}");
            self.logged = true;
        }
        match poller.modify(self.listener.as_fd(), self.token, Interest::NONE) {
            Ok(()) => self.rests_until = Some(now.after(REST_MS)),
            Err(error) => warn!("a listener cannot rest: {error}"),
        }
    }
}

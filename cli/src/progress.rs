//! What takes a while, and how far it is.

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use crate::broker::{Broker, BrokerError};
use crate::error::Error;

/// How often it is looked how far something is.
pub const LOOK: Duration = Duration::from_millis(200);

/// Has something done over one connection, and looks over another how far it is.
///
/// # Errors
///
/// Why it could not be done, or looked at.
pub fn watch<T: Send + 'static>(
    mut broker: Broker,
    mut look: impl FnMut(&mut Broker) -> Result<String, BrokerError>,
    act: impl FnOnce(&mut Broker) -> Result<T, BrokerError> + Send + 'static,
) -> Result<T, Error> {
    let mut eye = broker.again()?;
    let (tell, told) = mpsc::channel();
    // Ends with the answer, or with this process.
    thread::spawn(move || tell.send(act(&mut broker)));
    let mut line = Line::new();
    loop {
        match told.recv_timeout(LOOK) {
            Ok(done) => {
                line.end();
                return Ok(done?);
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(io::Error::other("the question was not asked").into());
            }
            Err(RecvTimeoutError::Timeout) => line.show(&look(&mut eye)?),
        }
    }
}

/// A line of a terminal that is written again and again.
pub struct Line {
    is_terminal: bool,
    is_begun: bool,
}

impl Line {
    /// Nothing is written yet.
    pub fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), is_begun: false }
    }

    /// Shows something in the place of what was shown before, on a terminal.
    pub fn show(&mut self, text: &str) {
        if self.is_terminal {
            self.is_begun = true;
            // Nobody is left to be told that the standard error is closed.
            let _ = write!(io::stderr(), "\r\x1b[K{text}");
        }
    }

    /// Tells something that stays, on a terminal or not.
    pub fn tell(text: &str) {
        let _ = writeln!(io::stderr(), "{text}");
    }

    /// Nothing is shown any more.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.is_begun) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

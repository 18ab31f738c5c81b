//! How a run of the command ends: its exit code, and at most one line of error.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use crate::address::MapError;
use crate::broker::BrokerError;
use crate::doctor::DoctorError;
use crate::down::DownError;
use crate::region::RegionError;
use crate::supervise::SuperviseError;
use crate::up::UpError;

/// What a run found, if it did what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done, and something is degraded or damaged.
    Unwell,
}

/// Why a run did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// A question to the broker.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// `dmce map`.
    #[error(transparent)]
    Map(#[from] MapError),
    /// `dmce up`.
    #[error(transparent)]
    Up(#[from] UpError),
    /// `dmce down`.
    #[error(transparent)]
    Down(#[from] DownError),
    /// `dmce region`.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// `dmce doctor`.
    #[error(transparent)]
    Doctor(#[from] DoctorError),
    /// The supervisor.
    #[error(transparent)]
    Supervise(#[from] SuperviseError),
    /// The standard output.
    #[error("the output could not be written")]
    Output(#[from] io::Error),
}

impl Outcome {
    /// The exit code that scripts see.
    pub fn exit_code(self) -> ExitCode {
        match self {
            Self::Done => ExitCode::SUCCESS,
            Self::Unwell => ExitCode::from(4),
        }
    }
}

impl Error {
    /// The exit code that scripts see.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Broker(error) | Self::Map(MapError::Broker(error)) if error.is_absence() => 3,
            _ => 1,
        }
    }

    /// The error and its causes as one line.
    pub fn line(&self) -> String {
        line_of(self)
    }
}

/// An error and its causes as one line. A cause that its error quotes already is left out.
pub fn line_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            // Writing to a text cannot fail.
            let _ = write!(line, ": {text}");
        }
        cause = error.source();
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use dmce_abi::Status;
    use std::path::PathBuf;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Chain {
        text: &'static str,
        source: Option<Box<Chain>>,
    }

    #[test]
    fn causes_follow_on_the_same_line_once() {
        let chain = |text, source| Chain { text, source };
        let cause = chain("the\nkernel says no", None);
        let quoting = chain("open: the\nkernel says no", Some(Box::new(cause)));
        let error = chain("up failed", Some(Box::new(quoting)));
        assert_eq!(line_of(&error), "up failed: open: the kernel says no");
    }

    #[test]
    fn scripts_can_tell_a_missing_broker_from_a_failure() {
        let nobody = BrokerError::Nobody { path: PathBuf::from("/b") };
        assert_eq!(nobody.to_string(), "no broker: nobody listens at /b");
        assert_eq!(Error::from(nobody).code(), 3);
        let refused = BrokerError::Refused { status: Status::Denied, text: String::new() };
        assert_eq!(Error::from(refused).code(), 1);
        let nobody = BrokerError::Nowhere { tried: vec!["/b".into(), "/c".into()] };
        assert!(nobody.to_string().contains("at /b or /c; name another by"));
        assert_eq!(Error::from(MapError::from(nobody)).code(), 3);
        assert_eq!(Error::from(MapError::Nothing).code(), 1);
        assert_eq!(Error::Usage(String::new()).code(), 2);
        assert_eq!(Error::from(io::Error::from(io::ErrorKind::StorageFull)).code(), 1);
    }
}

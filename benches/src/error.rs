//! Why a measurement could not be made. Any of these ends the run.

use std::io;

/// A result of this package.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message names the fields")]
pub enum Error {
    /// A function of the C interface failed.
    #[error("{call} answered {status}: {text}")]
    Call { call: &'static str, status: i32, text: String },
    /// The system did.
    #[error("{what}")]
    System { what: String, source: io::Error },
    /// A worker did not do what it was told.
    #[error("the worker answered {answer:?} to {command:?}")]
    Worker { command: String, answer: String },
    /// Memory did not hold what had been written.
    #[error("{found:#x} was read at {addr:#x}, {expected:#x} had been written")]
    Content { addr: u64, found: u64, expected: u64 },
    /// A program or library that the run needs is not there.
    #[error("{path} is not built")]
    NotBuilt { path: String },
}

impl Error {
    /// An error of the system, by what was tried.
    pub fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// The same, of one of the crates that wrap the system's errors.
    pub fn of(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::System { what: what.into(), source: io::Error::other(source) }
    }
}

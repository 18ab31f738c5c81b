//! The error of every call: a status that programs match, and a text with the numbers behind it.

use std::fmt;

use dmce_abi::Status;
use dmce_abi::wire::Refusal;

/// Why a call was not done.
///
/// The [`Status`] is the same that C programs get; the text names values and limits, and is for
/// people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    text: String,
}

impl Error {
    /// An error with its reason.
    #[must_use]
    pub fn new(status: Status, text: impl Into<String>) -> Self {
        Self { status, text: text.into() }
    }

    /// The code that programs match.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// The reason, with its numbers.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[cold]
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(Status::Invalid, text)
    }

    #[cold]
    pub(crate) fn address(text: impl Into<String>) -> Self {
        Self::new(Status::Address, text)
    }

    #[cold]
    pub(crate) fn closed() -> Self {
        Self::new(Status::Closed, "the session is closed")
    }

    #[cold]
    pub(crate) fn forked() -> Self {
        Self::new(Status::Forked, "the session was opened by the parent of this process")
    }

    #[cold]
    pub(crate) fn unsupported(text: impl Into<String>) -> Self {
        Self::new(Status::Unsupported, text)
    }

    /// A peer answered what its request cannot be answered with.
    #[cold]
    pub(crate) fn unexpected_reply(request: &str) -> Self {
        Self::new(
            Status::Internal,
            format!("the broker's answer does not fit the request {request}"),
        )
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            return fmt::Display::fmt(&self.status, f);
        }
        write!(f, "{}: {}", self.status, self.text)
    }
}

impl std::error::Error for Error {}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        // A peer that refuses with "success" is defective; a caller must never take it for one.
        let status = if refusal.status == Status::Ok { Status::Internal } else { refusal.status };
        Self::new(status, refusal.text)
    }
}

impl From<dmce_abi::AddrError> for Error {
    fn from(error: dmce_abi::AddrError) -> Self {
        Self::address(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_names_the_status_and_the_numbers() {
        let error = Error::new(Status::Quota, "8192 bytes asked, quota leaves 4096");
        assert_eq!(error.to_string(), "quota reached: 8192 bytes asked, quota leaves 4096");
        assert_eq!(Error::new(Status::Lost, "").to_string(), "the memory is lost");
    }

    #[test]
    fn a_refusal_is_never_success() {
        assert_eq!(Error::from(Refusal::new(Status::Ok, "")).status(), Status::Internal);
    }
}

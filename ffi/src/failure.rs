//! Why a call failed: a status that it returns, and a text that `dmce_last_error` gives.
//!
//! # Invariants
//!
//! 1. Each thread has its own text; it changes only when a call of that thread fails.
//! 2. The text is valid UTF-8 without NULs inside, and ends with one.
//! 3. It is the meaning of the status, as `dmce_strerror` has it, and, where there is more to say,
//!    a colon and the reason: the same for what this crate refuses and for what the library does.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};

use dmce_abi::Status;

use crate::version::dmce_status_t;

thread_local! {
    static LAST: RefCell<CString> = RefCell::new(CString::default());
}

/// A failed call.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    status: Status,
    text: Cow<'static, str>,
}

impl Failure {
    /// A failure with its reason and the numbers behind it, without the meaning of the status.
    #[cold]
    pub(crate) fn new(status: Status, text: impl Into<Cow<'static, str>>) -> Self {
        Self { status, text: text.into() }
    }

    /// An argument that no state of the system would make right.
    #[cold]
    pub(crate) fn invalid(text: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Status::Invalid, text)
    }

    /// What this release does not do yet, whatever the arguments.
    #[cold]
    pub(crate) fn unsupported(text: &'static str) -> Self {
        Self::new(Status::Unsupported, text)
    }

    #[cfg(test)]
    pub(crate) fn status(&self) -> Status {
        self.status
    }

    /// Keeps the text for this thread, and gives the code to return.
    #[cold]
    pub(crate) fn report(self) -> dmce_status_t {
        let text = libdmce::Error::new(self.status, self.text).to_string();
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        // The thread may be ending, or a signal handler may have interrupted this very line: the
        // status tells enough then.
        let _ = LAST.try_with(|last| last.try_borrow_mut().map(|mut last| *last = text));
        self.status.code()
    }
}

impl From<libdmce::Error> for Failure {
    #[cold]
    fn from(error: libdmce::Error) -> Self {
        Self::new(error.status(), error.text().to_owned())
    }
}

/// This thread's last text, or "". Valid until a call of this thread fails, or the thread ends.
pub(crate) fn last_text() -> *const c_char {
    let kept = LAST.try_with(|last| last.try_borrow().map(|last| last.as_ptr()).ok());
    kept.ok().flatten().unwrap_or(<&CStr>::default().as_ptr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(failure: impl Into<Failure>) -> String {
        let failure = failure.into();
        let status = failure.status();
        assert_eq!(failure.report(), status.code());
        // SAFETY: `last_text` gives a C string of this thread.
        unsafe { CStr::from_ptr(last_text()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn every_text_is_the_meaning_of_its_status_and_then_the_reason_whoever_failed() {
        for status in Status::ALL.iter().copied() {
            let meaning = status.text();
            assert_eq!(told(Failure::new(status, "7 of 5")), format!("{meaning}: 7 of 5"));
            assert_eq!(told(Failure::new(status, "")), meaning);
            let error = |text: &str| libdmce::Error::new(status, text);
            assert_eq!(told(error("7 of 5")), format!("{meaning}: 7 of 5"));
            assert_eq!(told(error("7 of 5")), error("7 of 5").to_string());
            assert_eq!(told(error("")), meaning);
        }
    }
}

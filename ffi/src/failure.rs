//! Why a call failed: a status that it returns, and a text that `dmce_last_error` gives.
//!
//! # Invariants
//!
//! 1. Each thread has its own text; it changes only when a call of that thread fails.
//! 2. The text is valid UTF-8 without NULs inside, and ends with one.

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
    /// A failure with its reason and the numbers behind it.
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
        let text = if self.text.is_empty() { self.status.text().into() } else { self.text };
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
        Self::new(error.status(), error.to_string())
    }
}

/// This thread's last text, or "". Valid until a call of this thread fails, or the thread ends.
pub(crate) fn last_text() -> *const c_char {
    let kept = LAST.try_with(|last| last.try_borrow().map(|last| last.as_ptr()).ok());
    kept.ok().flatten().unwrap_or(<&CStr>::default().as_ptr())
}

//! The one way from C into Rust and back. Every function of the interface is a call of one of
//! [`call`], [`session`], [`region`] and [`closing`]; four of them after [`libdmce::quick`], which
//! takes handles as they are, and cannot panic.
//!
//! # Invariants
//!
//! 1. No panic crosses to C, and none prints. It ends the session that it happened in, so that the
//!    broker takes back what the session had, as if the process had died; the call and all later
//!    ones of the session fail.
//! 2. A handle's object lives as long as the call that was given the handle.
//! 3. A handle that cannot be used at all (a parent's, an ended session's) is told before anything
//!    else that is wrong with the call.
//! 4. On success nothing but the outputs changes: not even the text of the last error.

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use dmce_abi::Status;

use crate::calls::{self, Call};
use crate::failure::Failure;
use crate::handles::{self, Object};
use crate::region::{OpenRegion, dmce_region_t};
use crate::session::{OpenSession, dmce_session_t};
use crate::version::{DMCE_OK, dmce_status_t};

/// What the body of a call comes to.
pub(crate) type Outcome = Result<(), Failure>;

thread_local! {
    /// Where and why this thread panicked last, as the hook saw it.
    static PANICKED: RefCell<String> = const { RefCell::new(String::new()) };
}

/// A call without a handle.
pub(crate) fn call(body: impl FnOnce() -> Outcome) -> dmce_status_t {
    let _call = Call::begin_without_handle();
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => status(outcome),
        Err(payload) => defect(&payload).report(),
    }
}

/// A call on a session.
#[inline]
pub(crate) fn session(
    handle: *const dmce_session_t,
    body: impl FnOnce(&libdmce::Session) -> Outcome,
) -> dmce_status_t {
    on(handle.addr(), |session: &OpenSession| body(&session.session))
}

/// A call on a region.
#[inline]
pub(crate) fn region(
    handle: *const dmce_region_t,
    body: impl FnOnce(&libdmce::Region) -> Outcome,
) -> dmce_status_t {
    on(handle.addr(), |region: &OpenRegion| body(&region.region))
}

/// An object whose panics end a session.
pub(crate) trait InSession: Object {
    /// The handle of that session; `own` is the object's own handle.
    fn session_handle(&self, own: usize) -> usize;

    /// Whether calls on the object may be made at all.
    fn check(&self) -> Result<(), libdmce::Error>;
}

/// A call on the object of `handle`.
#[inline]
pub(crate) fn on<T: InSession>(handle: usize, body: impl FnOnce(&T) -> Outcome) -> dmce_status_t {
    let Some(visit) = handles::visit::<T>(handle) else {
        return handles::refusal::<T>(handle).report();
    };
    let call = || body(&visit).map_err(|failure| told_first(&*visit, failure));
    match panic::catch_unwind(AssertUnwindSafe(call)) {
        Ok(outcome) => status(outcome),
        Err(payload) => {
            let session = visit.session_handle(handle);
            // Before the session ends, or that would wait for this very call.
            drop(visit);
            end_of_defect(session, &payload)
        }
    }
}

/// A call that closes `handle`, which the body does.
pub(crate) fn closing<T: InSession>(
    handle: usize,
    body: impl FnOnce() -> Outcome,
) -> dmce_status_t {
    // The visit is over with this line, or closing would wait for it.
    let Some(session) = handles::visit::<T>(handle).map(|visit| visit.session_handle(handle))
    else {
        return handles::refusal::<T>(handle).report();
    };
    let call = Call::begin_without_handle();
    match panic::catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => status(outcome),
        Err(payload) => {
            let ended = end_of_defect(session, &payload);
            drop(call);
            ended
        }
    }
}

/// What is told of a call that failed: first of all, that none could be made.
#[cold]
fn told_first<T: InSession>(object: &T, failure: Failure) -> Failure {
    object.check().map_or_else(Failure::from, |()| failure)
}

#[inline]
fn status(outcome: Outcome) -> dmce_status_t {
    match outcome {
        Ok(()) => DMCE_OK,
        Err(failure) => failure.report(),
    }
}

#[cold]
fn end_of_defect(session: usize, payload: &Box<dyn Any + Send>) -> dmce_status_t {
    let failure = defect(payload);
    // What is broken may panic again while it is being closed; it stays closed then as well.
    let ended = panic::catch_unwind(AssertUnwindSafe(|| crate::session::end(session)));
    if ended.is_err() {
        tracing::error!("closing a session after a defect failed as well");
    }
    failure.report()
}

#[cold]
fn defect(payload: &Box<dyn Any + Send>) -> Failure {
    let seen = PANICKED.with_borrow_mut(std::mem::take);
    let text = if seen.is_empty() { reason(payload.as_ref()).into_owned() } else { seen };
    tracing::error!("a defect of this library: {text}");
    Failure::new(Status::Internal, format!("a defect of this library: {text}"))
}

fn reason(payload: &(dyn Any + Send)) -> Cow<'static, str> {
    if let Some(text) = payload.downcast_ref::<&'static str>() {
        return Cow::Borrowed(text);
    }
    payload
        .downcast_ref::<String>()
        .map_or(Cow::Borrowed("no reason given"), |text| Cow::Owned(text.clone()))
}

/// Keeps panics inside calls from being printed. Panics elsewhere go on as before: a Rust program
/// that links this library has a hook of its own.
pub(crate) fn silence_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if calls::is_inside_any() {
                let place = info.location().map_or_else(String::new, |place| format!("{place}: "));
                let text = format!("{place}{}", reason(info.payload()));
                PANICKED.with_borrow_mut(|kept| *kept = text);
            } else {
                before(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::version::{DMCE_E_CLOSED, DMCE_E_INTERNAL, DMCE_E_INVALID};

    /// Belongs to no session, so that a panic has none to end.
    ///
    /// Holds whether calls may be made on it.
    struct Lonely(bool);

    /// How often somebody wanted to know the session of a panic.
    static ASKED: AtomicUsize = AtomicUsize::new(0);

    impl Object for Lonely {
        const KIND: usize = 2;
        const NAME: &'static str = "lonely";
    }

    impl InSession for Lonely {
        fn session_handle(&self, _own: usize) -> usize {
            ASKED.fetch_add(1, Ordering::SeqCst);
            0
        }

        fn check(&self) -> Result<(), libdmce::Error> {
            let closed = || libdmce::Error::new(Status::Closed, "as the test wants it");
            self.0.then_some(()).ok_or_else(closed)
        }
    }

    fn last_error() -> String {
        // SAFETY: `last_text` gives a C string of this thread.
        unsafe { CStr::from_ptr(crate::failure::last_text()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_is_an_internal_error_that_names_its_place() {
        silence_panics();
        let handle = handles::open(Lonely(true), 0).map_err(|(_, failure)| failure).unwrap();
        let status = on(handle, |_: &Lonely| panic!("number {}", 7));
        assert_eq!(status, DMCE_E_INTERNAL);
        assert!(last_error().contains("boundary.rs"), "{}", last_error());
        assert!(last_error().ends_with("number 7"), "{}", last_error());
        // The call has left the handle, so this does not wait for ever.
        drop(handles::retire::<Lonely>(handle).unwrap());
        assert_eq!(call(|| panic!("text")), DMCE_E_INTERNAL);
        assert!(last_error().ends_with("text"), "{}", last_error());
    }

    #[test]
    fn a_panic_while_a_handle_is_closed_ends_the_session_as_well() {
        silence_panics();
        let handle = handles::open(Lonely(true), 0).map_err(|(_, failure)| failure).unwrap();
        let before = ASKED.load(Ordering::SeqCst);
        assert_eq!(closing::<Lonely>(handle, || panic!("half closed")), DMCE_E_INTERNAL);
        assert!(ASKED.load(Ordering::SeqCst) > before);
        assert!(last_error().ends_with("half closed"), "{}", last_error());
        assert!(!calls::is_inside_any());
        let retire = || {
            drop(handles::retire::<Lonely>(handle)?);
            Ok(())
        };
        assert_eq!(closing::<Lonely>(handle, retire), DMCE_OK);
        assert_eq!(closing::<Lonely>(handle, || panic!("not called")), DMCE_E_CLOSED);
    }

    #[test]
    fn a_handle_that_cannot_be_used_is_told_before_what_else_is_wrong() {
        let handle = handles::open(Lonely(false), 0).map_err(|(_, failure)| failure).unwrap();
        let status = on(handle, |_: &Lonely| Err(Failure::invalid("a wrong argument")));
        assert_eq!(status, DMCE_E_CLOSED);
        assert_eq!(last_error(), "closed: as the test wants it");
        drop(handles::retire::<Lonely>(handle).unwrap());
    }

    #[test]
    fn only_a_failure_changes_the_text_and_only_of_its_thread() {
        assert_eq!(call(|| Err(Failure::invalid("first\0half"))), DMCE_E_INVALID);
        assert_eq!(last_error(), "invalid argument: first half");
        assert_eq!(call(|| Ok(())), DMCE_OK);
        assert_eq!(last_error(), "invalid argument: first half");
        let elsewhere = std::thread::spawn(|| {
            let before = last_error();
            call(|| Err(Failure::invalid("second")));
            (before, last_error())
        });
        assert_eq!(
            elsewhere.join().unwrap(),
            (String::new(), "invalid argument: second".to_owned())
        );
        assert_eq!(last_error(), "invalid argument: first half");
        assert_eq!(call(|| Err(Failure::invalid(""))), DMCE_E_INVALID);
        assert_eq!(last_error(), "invalid argument");
    }
}

//! A broker that is not there, does not answer, or takes nobody in.

mod fake;

use std::path::Path;

use dmce_sys::socket::{Listener, Socket};
use fake::{BLOCK_BYTES, Fake, status, wait_until};
use libdmce::{Options, Session, Status};

/// A listener that accepts nobody, and whose queue is full.
fn full(path: &Path) -> Listener {
    let listener = Listener::bind(path, 0o600).expect("the path is free");
    while Socket::try_connect(path).is_ok() {}
    listener
}

/// What a call answers that might hang.
fn watched<T: Send + 'static>(what: &str, call: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::spawn(call);
    wait_until(what, || thread.is_finished());
    thread.join().expect("what it asserts holds")
}

#[test]
fn a_broker_whose_queue_is_full_is_unavailable_after_the_timeout() {
    let mut fake = Fake::start();
    let options = Options { timeout_ms: 100, ..fake.options() };
    let path = options.socket.clone().unwrap();
    for no_thread in [false, true] {
        let open = Options { no_thread, ..options.clone() };
        let session = Session::open(&open).unwrap();
        fake.die();
        let listener = full(&path);
        let opened = watched("no session is opened", move || Session::open(&open));
        assert_eq!(status(opened), Status::Unavailable);
        let session = watched("a session gives up, and is closed", move || {
            assert_eq!(status(session.malloc(3 * BLOCK_BYTES)), Status::Unavailable);
            session.close().unwrap();
            session
        });
        assert_eq!(status(session.malloc(1)), Status::Closed);
        drop(listener);
        fake.restart();
    }
}

#[test]
fn what_is_no_broker_or_not_there_is_unavailable() {
    let fake = Fake::start();
    let missing = fake.socket.with_extension("none");
    let opened = Session::open(&Options { socket: Some(missing), ..fake.options() });
    assert_eq!(status(opened), Status::Unavailable);
    // Somebody who listens and never answers.
    let path = fake.socket.with_extension("mute");
    let mute = Listener::bind(&path, 0o600).unwrap();
    let options = Options { socket: Some(path), timeout_ms: 50, ..fake.options() };
    assert_eq!(status(Session::open(&options)), Status::Unavailable);
    mute.unlink().unwrap();
    assert_eq!(
        status(Session::open(&Options { name: "a/b".into(), ..fake.options() })),
        Status::Invalid
    );
}

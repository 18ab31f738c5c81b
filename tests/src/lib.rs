//! Tests of DMCE with real processes, and the harness that starts them.
//!
//! An [`Instance`] is a broker and daemons of its own, with sockets in a temporary folder and
//! objects under a name that begins with `test`. It ends with the value, and so do its objects.
//!
//! # Invariants
//!
//! 1. A test waits for a condition under a watchdog ([`wait_until`]), never for a time.
//! 2. What a test starts is ended and removed also when it fails; only own processes are signalled.
//! 3. A test that cannot run where it is says why, and fails on CI ([`cannot_run`]).
#![forbid(unsafe_code)]
#![allow(clippy::missing_panics_doc, reason = "the harness panics wherever a test has failed")]

pub mod checker;
pub mod churn;
pub mod client;
pub mod instance;
pub mod programs;
pub mod seeds;
pub mod torture;

use std::time::{Duration, Instant};

pub use client::Client;
pub use instance::{Builder, Instance};
pub use seeds::Seeded;

/// How long a condition may take before the test is called hung. Not a statement about speed.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value.
///
/// # Panics
///
/// After [`WATCHDOG`], naming `what`.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(begin.elapsed() < WATCHDOG, "gave up waiting: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// After [`WATCHDOG`], naming `what`.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    wait_for(what, || condition().then_some(()));
}

/// Says why a test does nothing on this machine.
///
/// # Panics
///
/// On CI, where nothing may be left out.
pub fn cannot_run(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "left out on CI: {why}");
    eprintln!("left out: {why}");
}

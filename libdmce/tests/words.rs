//! Words that sessions change atomically and wait for.

mod fake;

use std::sync::mpsc;
use std::thread::{self, Scope, ScopedJoinHandle};

use fake::{BLOCK_BYTES, Fake, status, wait_until};
use libdmce::{DmceAddr, Error, Options, Prot, RegionOptions, Session, Status};

/// As long as no test takes; a wait that long never ends by itself.
const LONG_MS: u32 = 600_000;

/// Waits in another thread while a word is 0, and returns when that thread sleeps.
fn sleeper<'scope>(
    scope: &'scope Scope<'scope, '_>,
    session: &'scope Session,
    word: DmceAddr,
    timeout_ms: u32,
) -> ScopedJoinHandle<'scope, Result<(), Error>> {
    let (tell, told) = mpsc::channel();
    let waiting = scope.spawn(move || {
        // SAFETY: it has no preconditions.
        tell.send(unsafe { libc::gettid() }).expect("the test listens");
        session.wait64(word, 0, timeout_ms)
    });
    let stat = format!("/proc/self/task/{}/stat", told.recv().expect("the thread has begun"));
    wait_until("the thread sleeps", || {
        // Gone, if it has ended.
        let stat = std::fs::read_to_string(&stat).unwrap_or_default();
        stat.rsplit(") ").next().is_none_or(|rest| !rest.starts_with('R'))
    });
    waiting
}

#[test]
fn changes_return_what_the_word_was() {
    Fake::with_each_mode(|_fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        for offset in [0, 8, BLOCK_BYTES - 8, BLOCK_BYTES, 2 * BLOCK_BYTES - 8] {
            let word = session.addr(span.to_raw() + offset).unwrap();
            assert_eq!(session.cas64(word, 0, u64::MAX), Ok(0));
            assert_eq!(session.cas64(word, 0, 5), Ok(u64::MAX));
            assert_eq!(session.add64(word, 3), Ok(u64::MAX));
            let mut bytes = [0; 8];
            session.read(word, &mut bytes).unwrap();
            assert_eq!(u64::from_ne_bytes(bytes), 2);
        }
        session.close().unwrap();
    });
}

#[test]
fn what_is_no_word_is_refused() {
    Fake::with_each_mode(|_fake, session| {
        let span = session.malloc(BLOCK_BYTES).unwrap();
        let refusal = |raw: u64| {
            let at = session.addr(raw).unwrap();
            let all = [
                status(session.cas64(at, 0, 1)),
                status(session.add64(at, 1)),
                status(session.wait64(at, 1, 0)),
                status(session.wake(at, 1)),
            ];
            assert!(all.iter().all(|status| *status == all[0]), "{raw:#x}: {all:?}");
            all[0]
        };
        assert_eq!(refusal(span.to_raw() + 4), Status::Invalid);
        assert_eq!(refusal(span.to_raw() + BLOCK_BYTES), Status::Address);
        session.free(span).unwrap();
        assert_eq!(refusal(span.to_raw()), Status::Address);
        session.close().unwrap();
        assert_eq!(refusal(span.to_raw()), Status::Closed);
    });
}

#[test]
fn who_may_only_read_waits_and_wakes_and_changes_nothing() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "n", BLOCK_BYTES, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "n", Prot::READ).unwrap();
    let word = region.addr(region.info().unwrap().base_pointer + 64).unwrap();
    assert_eq!(status(session.add64(word, 1)), Status::Denied);
    assert_eq!(status(session.cas64(word, 0, 1)), Status::Denied);
    assert_eq!(session.wait64(word, 1, LONG_MS), Ok(()));
    assert_eq!(status(session.wait64(word, 0, 1)), Status::Timeout);
    session.wake(word, 1).unwrap();
}

#[test]
fn a_wait_ends_with_a_change_of_either_half_and_a_wake() {
    Fake::with_each_mode(|_fake, session| {
        let word = session.malloc(64).unwrap();
        for add in [1, 1 << 32] {
            session.write(word, &[0; 8]).unwrap();
            thread::scope(|scope| {
                let all = [(); 3].map(|()| sleeper(scope, &session, word, 0));
                // Who is woken and finds the word as it was sleeps on.
                session.wake(word, u32::MAX).unwrap();
                session.add64(word, add).unwrap();
                session.wake(word, u32::MAX).unwrap();
                for waiting in all {
                    assert_eq!(waiting.join().unwrap(), Ok(()));
                }
            });
        }
        assert_eq!(session.wait64(word, 0, LONG_MS), Ok(()));
    });
}

#[test]
fn a_wait_gives_up_after_its_time() {
    Fake::with_each_mode(|_fake, session| {
        let word = session.malloc(64).unwrap();
        session.write(word, &[0; 8]).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(status(session.wait64(word, 0, 30)), Status::Timeout);
        assert!(begun.elapsed().as_millis() >= 30);
    });
}

/// What a session without a thread has to ask the broker is asked within the wait.
#[test]
fn a_wait_keeps_its_time_while_the_broker_does_not_answer() {
    for held in ["Changes", "Fetch"] {
        let fake = Fake::start();
        let session = Session::open(&Options { no_thread: true, ..fake.options() }).unwrap();
        let word = session.calloc(1, 8).unwrap();
        session.add64(word, 0).unwrap();
        fake.tell_lost(1, false);
        let asked = fake.asked(held);
        fake.state().holds = Some(held);
        assert_eq!(status(session.wait64(word, 0, 50)), Status::Timeout, "{held}");
        assert_eq!(fake.asked(held), asked + 1, "{held}");
        // What was given up disturbs nobody.
        fake.answer_held();
        assert_eq!(session.add64(word, 1), Ok(0), "{held}");
        assert_eq!(session.wait64(word, 0, 50), Ok(()), "{held}");
    }
}

#[test]
fn an_endless_wait_outlasts_the_session_s_own_time() {
    for held in ["Changes", "Fetch"] {
        let fake = Fake::start();
        let options = Options { no_thread: true, timeout_ms: 300, ..fake.options() };
        let session = Session::open(&options).unwrap();
        let word = session.calloc(1, 8).unwrap();
        session.add64(word, 0).unwrap();
        fake.tell_lost(1, false);
        let asked = fake.asked(held);
        fake.state().holds = Some(held);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| session.wait64(word, 0, 0));
            // The first was never answered, so it was given up.
            wait_until("it is asked again", || fake.asked(held) >= asked + 2);
            session.add64(word, 1).unwrap();
            session.wake(word, 1).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(()), "{held}");
        });
    }
}

#[test]
fn closing_ends_waits_for_words() {
    Fake::with_each_mode(|_fake, session| {
        let word = session.malloc(64).unwrap();
        thread::scope(|scope| {
            let waiting = sleeper(scope, &session, word, 0);
            session.close().unwrap();
            assert_eq!(status(waiting.join().unwrap()), Status::Closed);
        });
    });
}

#[test]
fn a_wait_in_a_span_that_is_freed_ends() {
    Fake::with_each_mode(|_fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        thread::scope(|scope| {
            let waiting = sleeper(scope, &session, span, 0);
            session.free(span).unwrap();
            assert_eq!(status(waiting.join().unwrap()), Status::Address);
        });
    });
}

#[test]
fn a_wait_ends_when_its_block_is_lost_and_not_when_it_was_replaced() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        thread::scope(|scope| {
            let waiting = sleeper(scope, &session, span, 0);
            // Another object, with the same word in it: the wait goes on there.
            fake.tell_lost(1, false);
            wait_until("the replacement is seen", || session.stat().unwrap().epoch > 0);
            session.add64(span, 1).unwrap();
            session.wake(span, 1).unwrap();
            assert_eq!(waiting.join().unwrap(), Ok(()));
        });
        thread::scope(|scope| {
            let second = session.addr(span.to_raw() + BLOCK_BYTES).unwrap();
            let waiting = sleeper(scope, &session, second, 0);
            fake.truncate(2, 0);
            fake.tell_lost(2, true);
            assert_eq!(status(waiting.join().unwrap()), Status::Lost);
        });
    });
}

#[test]
fn changes_are_lost_with_their_block_and_raise_no_signal() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        let second = session.addr(span.to_raw() + BLOCK_BYTES).unwrap();
        session.add64(second, 1).unwrap();
        fake.truncate(2, 0);
        assert_eq!(status(session.add64(second, 1)), Status::Lost);
        assert_eq!(status(session.cas64(second, 1, 2)), Status::Lost);
        assert_eq!(status(session.wait64(second, 1, LONG_MS)), Status::Lost);
        assert_eq!(status(session.wake(second, 1)), Status::Lost);
        assert_eq!(session.add64(span, 1), Ok(0));
    });
}

#[test]
fn a_session_that_reads_back_what_it_writes_adds_once() {
    let fake = Fake::start();
    let session = Session::open(&Options { verify: true, ..fake.options() }).unwrap();
    let word = session.malloc(64).unwrap();
    session.write(word, &[0; 8]).unwrap();
    assert_eq!(session.add64(word, 1), Ok(0));
    assert_eq!(session.add64(word, 1), Ok(1));
}

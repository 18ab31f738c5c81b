//! What breaks under a session: its broker, its memory, its process.

mod fake;

use std::cmp::Ordering;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering as Memory};

use dmce_abi::wire::client::MallocKind;
use dmce_sys::socket::{Socket, SocketError};
use fake::{BLOCK_BYTES, Fake, status, wait_until};
use libdmce::{Error, Options, Prot, RegionOptions, Session, Status};

#[test]
fn memory_is_used_on_while_the_broker_is_away_and_calls_that_need_it_wait() {
    Fake::with_each_mode(|fake, session| {
        let addr = session.malloc(1000).unwrap();
        fake.die();
        session.write(addr, &[4; 1000]).unwrap();
        assert_eq!(session.compare(addr, &[4; 1000]), Ok(Ordering::Equal));
        // What fits into the blocks that are there needs no broker.
        session.free(session.malloc(2000).unwrap()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| session.malloc(3 * BLOCK_BYTES));
            fake.restart();
            waiting.join().unwrap().unwrap();
        });
        assert!(fake.asked("Attach") >= 1);
        assert_eq!(session.compare(addr, &[4; 1000]), Ok(Ordering::Equal));
    });
}

#[test]
fn an_idle_session_is_attached_again_by_its_own_thread() {
    let mut fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(100).unwrap();
    let pointer = session.map(addr, 100, Prot::READ).unwrap();
    wait_until("the pointer is known", || !fake.state().maps.is_empty());
    fake.die();
    fake.state().maps.clear();
    fake.restart();
    wait_until("the session is attached", || fake.asked("Attach") == 1);
    // A broker that came back is told what it has forgotten.
    wait_until("the pointer is known again", || !fake.state().maps.is_empty());
    session.unmap(pointer).unwrap();
}

#[test]
fn a_broker_that_stays_away_is_unavailable_after_the_timeout() {
    let mut fake = Fake::start();
    let session = Session::open(&Options { timeout_ms: 100, ..fake.options() }).unwrap();
    let span = session.malloc(3 * BLOCK_BYTES).unwrap();
    session.write(span, b"here").unwrap();
    fake.die();
    assert_eq!(status(session.malloc(3 * BLOCK_BYTES)), Status::Unavailable);
    assert_eq!(status(session.region_list("v")), Status::Unavailable);
    // Freeing needs nobody: the broker is told when it is back.
    session.free(span).unwrap();
    assert_eq!(status(session.read(span, &mut [0])), Status::Address);
    fake.restart();
    wait_until("the span goes back", || fake.state().blocks.is_empty());
    // Closing does not wait for a broker that is away for good.
    fake.die();
    session.close().unwrap();
    assert_eq!(status(session.malloc(1)), Status::Closed);
}

#[test]
fn a_request_whose_broker_died_after_the_deed_is_repeated_and_not_done_twice() {
    let mut fake = Fake::start();
    let session = fake.open();
    fake.state().dies_after = Some("Malloc");
    std::thread::scope(|scope| {
        let granted = scope.spawn(|| session.malloc(2 * BLOCK_BYTES));
        wait_until("it is done", || fake.state().blocks.len() == 2);
        fake.die();
        fake.restart();
        let span = granted.join().unwrap().unwrap();
        assert_eq!(span.to_raw(), BLOCK_BYTES);
    });
    assert_eq!(fake.state().blocks.len(), 2);
    assert!(fake.asked("Malloc") >= 2);
}

#[test]
fn blocks_whose_caller_gave_up_go_back_and_the_late_answer_is_taken_up() {
    let fake = Fake::start();
    let session = Session::open(&Options { timeout_ms: 50, ..fake.options() }).unwrap();
    fake.state().holds = Some("Malloc");
    assert_eq!(status(session.malloc(3 * BLOCK_BYTES)), Status::Unavailable);
    wait_until("the blocks go back", || fake.state().blocks.is_empty());
    // What comes late is not left in the socket, where it would keep its descriptor open.
    let (ours, theirs) = Socket::pair().unwrap();
    fake.held(|held| held.fds = vec![theirs.as_fd().try_clone_to_owned().unwrap()]);
    drop(theirs);
    fake.answer_held();
    let (mut frame, mut fds) = ([0; 1], Vec::new());
    let is_open = |tried: Result<_, SocketError>| {
        tried.is_err_and(|error| matches!(error, SocketError::WouldBlock { .. }))
    };
    wait_until("it is closed", || !is_open(ours.try_recv(&mut frame, &mut fds)));
}

#[test]
fn blocks_whose_caller_gave_up_go_back_though_the_broker_has_died() {
    let mut fake = Fake::start();
    let session = Session::open(&Options { timeout_ms: 300, ..fake.options() }).unwrap();
    fake.state().holds = Some("Malloc");
    std::thread::scope(|scope| {
        let given_up = scope.spawn(|| session.malloc(3 * BLOCK_BYTES));
        wait_until("it is done", || !fake.state().tickets.is_empty());
        fake.die();
        assert_eq!(status(given_up.join().unwrap()), Status::Unavailable);
    });
    fake.restart();
    wait_until("the blocks go back", || fake.state().blocks.is_empty());
    // They may have gone back as what only the broker knew of.
    wait_until("the request is abandoned", || fake.asked("Abandon") >= 1);
}

/// As after a broker's death over the destruction of what was given back.
#[test]
fn what_only_the_broker_knows_of_goes_back_when_the_session_is_attached_again() {
    Fake::with_each_mode(|fake, session| {
        let kept: Vec<_> = (1..=3).map(|_| session.malloc(3 * BLOCK_BYTES).unwrap()).collect();
        let small = session.malloc(100).unwrap();
        session.region_create("v", "r", 5_000, &RegionOptions::default()).unwrap();
        let known: Vec<u32> = fake.state().blocks.keys().copied().collect();
        for bytes in [100, 2 * BLOCK_BYTES, BLOCK_BYTES] {
            fake.state().make(MallocKind::Span { bytes }).unwrap();
        }
        fake.die();
        fake.restart();
        wait_until("it is given back", || {
            fake.state().blocks.len() == known.len() && fake.asked("Delete") == 3
        });
        assert!(fake.state().blocks.keys().copied().eq(known.iter().copied()));
        for addr in kept.into_iter().chain([small]) {
            session.write(addr, &[1; 100]).unwrap();
            session.free(addr).unwrap();
        }
    });
}

#[test]
fn an_opening_whose_caller_gave_up_is_closed_and_no_other() {
    let fake = Fake::start();
    let session = Session::open(&Options { timeout_ms: 50, ..fake.options() }).unwrap();
    session.region_create("v", "r", 8192, &libdmce::RegionOptions::default()).unwrap();
    let kept = session.region_open("v", "r", Prot::READ).unwrap();
    fake.state().holds = Some("RegionOpen");
    assert_eq!(status(session.region_open("v", "r", Prot::READ)), Status::Unavailable);
    wait_until("it is closed", || fake.state().openings.len() == 1);
    fake.answer_held();
    // A close that is late, too, is repeated and ends nothing else.
    fake.state().holds = Some("RegionClose");
    let second = session.region_open("v", "r", Prot::READ).unwrap();
    second.close().unwrap();
    wait_until("it is asked again", || fake.asked("RegionClose") == 3);
    assert_eq!(fake.state().openings.len(), 1);
    kept.read(1000, &mut [0], libdmce::Mirror::Any).unwrap();
}

#[test]
fn region_requests_whose_broker_died_after_the_deed_are_repeated_and_not_done_twice() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &libdmce::RegionOptions::default()).unwrap();
    fake.state().dies_after = Some("RegionOpen");
    let first = session.region_open("v", "r", Prot::READ).unwrap();
    let second = session.region_open("v", "r", Prot::READ).unwrap();
    assert_eq!((fake.asked("RegionOpen"), fake.state().openings.len()), (3, 2));
    fake.state().dies_after = Some("RegionClose");
    first.close().unwrap();
    wait_until("it is asked again", || fake.asked("RegionClose") == 2);
    assert_eq!(fake.state().openings.len(), 1);
    fake.state().dies_after = Some("RegionDelete");
    session.region_delete("v", "r").unwrap();
    assert_eq!(fake.asked("RegionDelete"), 2);
    assert_eq!(status(second.info()), Status::Closed);
}

#[test]
fn a_delete_that_waits_for_a_daemon_keeps_no_other_call_waiting() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    fake.state().postpones_begun = Some(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| session.region_delete("v", "r"));
        wait_until("it waits", || fake.asked("RegionDelete") >= 1);
        session.malloc(3 * BLOCK_BYTES).unwrap();
        assert!(!deleting.is_finished());
        fake.state().postpones_begun = None;
        deleting.join().unwrap().unwrap();
    });
    assert_eq!(status(session.region_open("v", "r", Prot::READ)), Status::NotFound);
}

#[test]
fn a_delete_whose_daemon_stays_away_is_busy_if_nothing_is_deleted_and_else_unavailable() {
    let fake = Fake::start();
    let session = Session::open(&Options { timeout_ms: 100, ..fake.options() }).unwrap();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let open = session.region_open("v", "r", Prot::READ).unwrap();
    fake.state().postpones_begun = Some(false);
    assert_eq!(status(session.region_delete("v", "r")), Status::Busy);
    open.read(1000, &mut [0], libdmce::Mirror::Any).unwrap();
    fake.state().postpones_begun = Some(true);
    assert_eq!(status(session.region_delete("v", "r")), Status::Unavailable);
    // What has begun has ended this session's own handles.
    assert_eq!(status(open.read(1000, &mut [0], libdmce::Mirror::Any)), Status::Closed);
}

#[test]
fn a_pointer_that_comes_while_a_delete_waits_for_a_daemon_makes_the_region_busy() {
    let fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("v", "r", Prot::READ).unwrap();
    fake.state().postpones_begun = Some(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| session.region_delete("v", "r"));
        wait_until("it waits", || fake.asked("RegionDelete") >= 1);
        session.map(region.addr(1000).unwrap(), 1, Prot::READ).unwrap();
        assert_eq!(status(deleting.join().unwrap()), Status::Busy);
    });
}

#[test]
fn closing_ends_a_delete_that_waits_for_a_daemon() {
    let fake = Fake::start();
    // Longer than the watchdog waits.
    let session = Session::open(&Options { timeout_ms: 180_000, ..fake.options() }).unwrap();
    session.region_create("v", "r", 8192, &RegionOptions::default()).unwrap();
    fake.state().postpones_begun = Some(false);
    std::thread::scope(|scope| {
        let deleting = scope.spawn(|| session.region_delete("v", "r"));
        wait_until("it waits", || fake.asked("RegionDelete") >= 1);
        session.close().unwrap();
        wait_until("it is ended", || deleting.is_finished());
        assert_eq!(status(deleting.join().unwrap()), Status::Closed);
    });
    assert_eq!((fake.asked("Disconnect"), fake.state().regions.len()), (1, 1));
}

#[test]
fn a_broker_that_comes_back_is_told_the_openings_that_there_are() {
    let mut fake = Fake::start();
    let session = fake.open();
    session.region_create("v", "r", 8192, &libdmce::RegionOptions::default()).unwrap();
    session.region_create("v", "s", 8192, &libdmce::RegionOptions::default()).unwrap();
    let kept = session.region_open("v", "r", Prot::READ | Prot::WRITE).unwrap();
    let closed = session.region_open("v", "r", Prot::READ).unwrap();
    let gone = session.region_open("v", "s", Prot::READ).unwrap();
    closed.close().unwrap();
    session.region_delete("v", "s").unwrap();
    fake.die();
    fake.restart();
    wait_until("it is attached", || fake.state().attached.is_some());
    let told = fake.state().attached.take().unwrap().openings;
    let told: Vec<_> = told.iter().map(|told| (told.first.get(), told.read, told.write)).collect();
    assert_eq!(told, [(1, true, true)]);
    kept.close().unwrap();
    drop(gone);
}

#[test]
fn closing_ends_calls_that_wait_for_an_answer_and_tells_the_broker() {
    for with_broker in [true, false] {
        let mut fake = Fake::start();
        // Longer than the watchdog waits.
        let options = Options { timeout_ms: 180_000, ..fake.options() };
        let session = Session::open(&options).unwrap();
        fake.state().holds = Some("Malloc");
        std::thread::scope(|scope| {
            let session = &session;
            let waiting = scope.spawn(|| session.malloc(3 * BLOCK_BYTES));
            let next = scope.spawn(|| session.region_list("v"));
            wait_until("it waits", || fake.asked("Malloc") == 1);
            if !with_broker {
                fake.die();
            }
            let closing = scope.spawn(|| session.close());
            wait_until("it is closed", || closing.is_finished());
            assert_eq!(closing.join().unwrap(), Ok(()));
            assert_eq!(status(waiting.join().unwrap()), Status::Closed);
            let listed = next.join().unwrap();
            assert!(listed.is_ok() || status(listed) == Status::Closed);
        });
        assert_eq!(fake.asked("Disconnect"), u32::from(with_broker));
    }
}

#[test]
fn a_session_that_the_broker_does_not_know_any_more_is_closed() {
    Fake::with_each_mode(|fake, session| {
        let addr = session.malloc(100).unwrap();
        fake.state().refuses_attach = true;
        fake.die();
        fake.restart();
        wait_until("the refusal is noticed", || session.read(addr, &mut [0]).is_err());
        assert_eq!(status(session.read(addr, &mut [0])), Status::Closed);
        assert_eq!(status(session.malloc(100)), Status::Closed);
        assert_eq!(status(session.stat()), Status::Closed);
        session.close().unwrap();
        assert_eq!(status(session.close()), Status::Closed);
    });
}

#[test]
fn a_truncated_block_is_lost_alone_and_until_it_is_restored() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(3 * BLOCK_BYTES).unwrap();
        let small = session.malloc(5_000).unwrap();
        session.fill(span, 1, 3 * BLOCK_BYTES).unwrap();
        let second = session.addr(span.to_raw() + BLOCK_BYTES).unwrap();
        fake.truncate(2, 0);
        assert_eq!(status(session.read(second, &mut [0; 100])), Status::Lost);
        assert_eq!(status(session.write(second, &[0; 100])), Status::Lost);
        assert_eq!(status(session.fill(second, 0, BLOCK_BYTES)), Status::Lost);
        assert_eq!(status(session.compare(second, &[0; 100])), Status::Lost);
        assert_eq!(status(session.copy(small, second, 5_000)), Status::Lost);
        assert_eq!(status(session.copy(second, small, 5_000)), Status::Lost);
        assert_eq!(status(session.map(second, 100, Prot::READ)), Status::Lost);
        // A range that begins before it is written in part.
        let across = session.addr(second.to_raw() - 100).unwrap();
        assert_eq!(status(session.read(across, &mut [0; 200])), Status::Lost);
        assert_eq!(status(session.write(across, &[7; 200])), Status::Io);
        assert_eq!(status(session.fill(across, 7, 200)), Status::Io);
        assert_eq!(status(session.copy(across, small, 200)), Status::Io);
        wait_until("the broker hears of it", || !fake.state().damaged.is_empty());
        // Its neighbours are what they were.
        assert_eq!(session.compare(span, &[1; 5_000]), Ok(Ordering::Equal));
        session.write(small, &[2; 5_000]).unwrap();
        fake.tell_lost(2, false);
        wait_until("it is there again", || session.write(second, &[3; 100]).is_ok());
        assert_eq!(session.compare(second, &[3; 100]), Ok(Ordering::Equal));
    });
}

#[test]
fn a_copy_that_fails_has_changed_nothing_or_says_that_it_has() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        let small = session.malloc(8_000).unwrap();
        let second = session.addr(span.to_raw() + BLOCK_BYTES).unwrap();
        session.fill(small, 1, 8_000).unwrap();
        session.fill(second, 2, BLOCK_BYTES).unwrap();
        fake.truncate(2, 4096);
        match status(session.copy(small, second, 5_000)) {
            Status::Lost => {
                assert_eq!(session.compare(small, &[1; 8_000]), Ok(Ordering::Equal));
            }
            other => assert_eq!(other, Status::Io),
        }
    });
}

/// As programs do in all threads but the one that is to handle signals.
fn block_every_signal() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the pointer is to a local.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    let before = std::ptr::null_mut();
    // SAFETY: the set was initialised above, and nothing is written back.
    assert_eq!(unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before) }, 0);
}

#[test]
fn a_thread_that_blocks_every_signal_meets_a_truncated_block_as_others_do() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        session.fill(span, 1, 2 * BLOCK_BYTES).unwrap();
        fake.truncate(1, 0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                block_every_signal();
                assert_eq!(status(session.read(span, &mut [0; 100])), Status::Lost);
            });
        });
    });
}

#[test]
fn a_pointer_is_given_back_while_another_call_waits_for_the_broker() {
    let mut fake = Fake::start();
    let session = Session::open(&Options { no_thread: true, ..fake.options() }).unwrap();
    let (span, small) = (session.malloc(2 * BLOCK_BYTES).unwrap(), session.malloc(100).unwrap());
    let pointer = session.map(small, 100, Prot::READ).unwrap();
    // The second block has to be fetched again.
    fake.state().publish(&[2]);
    session.poll().unwrap();
    fake.state().moves_at_fetch = true;
    std::thread::scope(|scope| {
        let bytes = usize::try_from(2 * BLOCK_BYTES).unwrap();
        let session = &session;
        let mapping = scope
            .spawn(move || session.map(span, bytes, Prot::READ).map(<*mut u8>::expose_provenance));
        wait_until("the change is asked for", || fake.asked("Changes") > 1);
        session.unmap(pointer).unwrap();
        fake.die();
        fake.state().moves_at_fetch = false;
        fake.restart();
        // Had the pointer been given back only after this had given up, this had failed.
        mapping.join().unwrap().unwrap();
    });
}

#[test]
fn a_pointer_that_went_while_the_broker_was_away_is_taken_back() {
    let mut fake = Fake::start();
    let session = Session::open(&Options { no_thread: true, ..fake.options() }).unwrap();
    let addr = session.malloc(100).unwrap();
    let kept = session.map(addr, 50, Prot::READ).unwrap();
    let other = session.addr(addr.to_raw() + 64).unwrap();
    let gone = session.map(other, 10, Prot::READ).unwrap();
    wait_until("both are known", || fake.state().maps.len() == 2);
    fake.die();
    session.unmap(gone).unwrap();
    // It has forgotten nothing.
    fake.restart();
    wait_until("one is known", || {
        session.poll().unwrap();
        fake.state().maps.len() == 1
    });
    assert!(fake.state().maps.contains_key(&(kept.addr() as u64)));
    session.unmap(kept).unwrap();
}

#[test]
fn a_large_range_is_mapped_with_few_requests_though_nothing_of_it_is_here() {
    const BLOCKS: u32 = 20;
    Fake::with_each_mode(|fake, session| {
        let bytes = u64::from(BLOCKS) * BLOCK_BYTES;
        let span = session.malloc(bytes).unwrap();
        fake.state().publish(&(1..=BLOCKS).collect::<Vec<_>>());
        wait_until("the change is known", || {
            session.poll().unwrap();
            session.stat().unwrap().epoch == 1
        });
        let before = fake.asked("Fetch");
        let bytes = usize::try_from(bytes).unwrap();
        session.unmap(session.map(span, bytes, Prot::READ).unwrap()).unwrap();
        // One for the table and one for the mapping.
        let asked = fake.asked("Fetch") - before;
        assert!(asked <= 2 * BLOCKS, "{asked} requests");
    });
}

/// Where blocks are mapped whole no descriptor is kept, so a mapping of its own asks for one.
#[test]
#[cfg(target_pointer_width = "64")]
fn a_block_whose_id_is_anothers_by_now_is_not_mapped() {
    let fake = Fake::start();
    let session = fake.open();
    let span = session.malloc(2 * BLOCK_BYTES).unwrap();
    let bytes = usize::try_from(2 * BLOCK_BYTES).unwrap();
    session.unmap(session.map(span, bytes, Prot::READ).unwrap()).unwrap();
    fake.state().blocks.get_mut(&2).unwrap().guid.0[15] ^= 1;
    assert_eq!(status(session.map(span, bytes, Prot::READ)), Status::Address);
}

#[test]
fn nothing_is_allocated_in_a_heap_block_that_is_lost() {
    let fake = Fake::start();
    let session = fake.open();
    let addr = session.malloc(100).unwrap();
    fake.truncate(1, 0);
    assert_eq!(status(session.read(addr, &mut [0; 100])), Status::Lost);
    let other = session.malloc(100).unwrap();
    assert_ne!(addr.to_raw() / BLOCK_BYTES, other.to_raw() / BLOCK_BYTES);
    session.write(other, &[1; 100]).unwrap();
    session.free(addr).unwrap();
}

#[test]
fn readers_and_writers_go_on_while_blocks_change_under_them() {
    Fake::with_each_mode(|fake, session| {
        let span = session.malloc(2 * BLOCK_BYTES).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let (session, stop) = (&session, &stop);
                scope.spawn(move || {
                    let addr = session.addr(span.to_raw() + BLOCK_BYTES - 64 + thread * 32);
                    let addr = addr.unwrap();
                    let mut round = 0_u64;
                    while !stop.load(Memory::Relaxed) {
                        round += 1;
                        let data = [round.to_le_bytes(); 3].concat();
                        session.write(addr, &data).unwrap();
                        assert_eq!(session.compare(addr, &data), Ok(Ordering::Equal));
                    }
                });
            }
            // Each time all threads have to fetch the blocks anew.
            for _ in 0..200 {
                fake.state().publish(&[1, 2]);
                std::thread::yield_now();
            }
            stop.store(true, Memory::Relaxed);
        });
        assert!(fake.asked("Fetch") > 0);
    });
}

#[test]
fn closing_waits_for_those_who_are_inside_and_stops_the_rest() {
    Fake::with_each_mode(|_fake, session| {
        let addr = session.malloc(1 << 20).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let mut buffer = vec![0; 1 << 20];
                    let ended = loop {
                        if let Err(error) = session.read(addr, &mut buffer) {
                            break error;
                        }
                    };
                    assert_eq!(ended.status(), Status::Closed);
                });
            }
            std::thread::yield_now();
            session.close().unwrap();
        });
        assert_eq!(status(session.map(addr, 1, Prot::READ)), Status::Closed);
    });
}

#[test]
fn a_forked_child_is_refused_and_its_end_is_not_noticed() {
    Fake::with_each_mode(|fake, session| {
        let addr = session.malloc(100).unwrap();
        session.region_create("v", "r", 10_000, &libdmce::RegionOptions::default()).unwrap();
        let region = session.region_open("v", "r", Prot::READ).unwrap();
        session.write(addr, &[1; 100]).unwrap();
        // SAFETY: the child makes calls that end at the check for a fork, drops, and exits.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let forked =
                |done: Result<(), Error>| done.is_err_and(|error| error.status() == Status::Forked);
            let right = forked(session.read(addr, &mut [0; 100]))
                && forked(session.write(addr, &[2; 100]))
                && forked(session.malloc(10).map(|_| ()))
                // Told before what else is wrong with a call.
                && forked(session.malloc(0).map(|_| ()))
                && forked(session.calloc(u64::MAX, 2).map(|_| ()))
                && forked(session.map(addr, 0, Prot::READ).map(|_| ()))
                && forked(session.unmap(std::ptr::null()))
                && forked(region.write(1000, &[0], libdmce::Mirror::Any))
                && forked(region.write(0, &[0], libdmce::Mirror::Both))
                && forked(region.addr(0).map(|_| ()))
                && forked(session.region_open("", "", Prot::default()).map(|_| ()))
                && forked(session.free(addr))
                && forked(region.read(1000, &mut [0], libdmce::Mirror::Any))
                && forked(region.close())
                && forked(session.poll())
                && forked(session.stat().map(|_| ()))
                && forked(session.close());
            drop(region);
            drop(session);
            // SAFETY: ends the child without what the test's process would do at its end.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let mut ended = 0;
        // SAFETY: waits for the own child.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut ended, 0) }, child);
        assert_eq!(ended, 0, "the child was refused everywhere");
        assert_eq!(session.compare(addr, &[1; 100]), Ok(Ordering::Equal));
        session.malloc(3 * BLOCK_BYTES).unwrap();
        assert_eq!(fake.asked("Disconnect"), 0);
        assert_eq!(fake.asked("Attach"), 0);
    });
}

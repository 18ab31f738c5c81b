//! Waiting for room, policies, and events, with real servers.

use std::thread;
use std::time::Duration;

use dmce_abi::Status;
use dmce_abi::wire::admin::BlockRow;
use dmce_sys::poll::wait_readable;
use dmce_tests::client::{Signal, send, stop};
use dmce_tests::{Instance, wait_for, wait_until};
use libdmce::{AllocOptions, DmceAddr, Event, Options, Session};

const MIB: u64 = 1 << 20;

/// Nothing takes so long but what never comes.
const LONG: Duration = Duration::from_secs(60);

fn waiting(timeout_ms: u32) -> AllocOptions {
    AllocOptions { wait: true, timeout_ms, ..AllocOptions::default() }
}

/// Small daemons, to which empty blocks go back at once.
fn instance_of(daemons: u32, config: &str) -> Instance {
    let config = format!("broker.idle_s = 0\n{config}");
    Instance::builder().daemons(daemons).capacity("32MiB").config(&config).start()
}

/// Takes all there is, in large pieces.
fn fill(session: &Session) -> Vec<DmceAddr> {
    let mut held = Vec::new();
    loop {
        match session.malloc(8 * MIB) {
            Ok(addr) => held.push(addr),
            Err(error) => {
                assert_eq!(error.status(), Status::NoSpace);
                return held;
            }
        }
    }
}

#[test]
fn who_waits_is_served_when_another_session_frees() {
    let instance = instance_of(2, "");
    let holder = instance.open();
    let held = fill(&holder);
    let waiter = instance.open();
    assert_eq!(waiter.malloc(8 * MIB).unwrap_err().status(), Status::NoSpace);
    thread::scope(|scope| {
        let small = scope.spawn(|| waiter.malloc_with(64, &waiting(0)));
        let large = scope.spawn(|| waiter.malloc_with(8 * MIB, &waiting(60_000)));
        for addr in held {
            holder.free(addr).unwrap();
        }
        let (small, large) = (small.join().unwrap().unwrap(), large.join().unwrap().unwrap());
        for addr in [small, large] {
            waiter.write(addr, b"served").unwrap();
            waiter.free(addr).unwrap();
        }
    });
}

/// The call that waits has no turn: otherwise the free that it waits for could not be told.
#[test]
fn who_waits_is_served_when_its_own_session_frees() {
    for (no_thread, message_path) in [(false, false), (true, false), (false, true), (true, true)] {
        let instance = instance_of(1, "");
        let options = Options { no_thread, message_path, ..instance.options() };
        let session = Session::open(&options).unwrap();
        let held = fill(&session);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| session.malloc_with(8 * MIB, &waiting(0)));
            for addr in held {
                session.free(addr).unwrap();
            }
            let addr = waiter.join().unwrap().unwrap();
            session.write(addr, b"served").unwrap();
        });
    }
}

#[test]
fn a_wait_ends_with_its_time_and_leaves_nothing() {
    let instance = instance_of(1, "");
    let holder = instance.open();
    let held = fill(&holder);
    let blocks = instance.blocks().len();
    let waiter = instance.open();
    for bytes in [64, 8 * MIB] {
        let late = waiter.malloc_with(bytes, &waiting(20)).unwrap_err();
        assert_eq!(late.status(), Status::Timeout, "{late}");
    }
    assert_eq!(waiter.malloc_with(1 << 60, &waiting(0)).unwrap_err().status(), Status::NoSpace);
    assert_eq!(instance.blocks().len(), blocks);
    for addr in held {
        holder.free(addr).unwrap();
    }
    let room = waiter.malloc_with(4 * MIB, &waiting(60_000)).unwrap();
    waiter.free(room).unwrap();
}

#[test]
fn close_and_the_end_of_a_process_end_a_wait() {
    let instance = instance_of(1, "");
    let holder = instance.open();
    let _held = fill(&holder);
    let waiter = instance.open();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.malloc_with(8 * MIB, &waiting(0)));
        waiter.close().unwrap();
        assert_eq!(waits.join().unwrap().unwrap_err().status(), Status::Closed);
    });
    holder.close().unwrap();
    instance.wait_empty();
}

/// Two daemons that are stopped, and are not taken for dead.
fn silent() -> (Instance, [u32; 2]) {
    let config = "broker.idle_s = 0\nbroker.suspect_ms = 3600000\n";
    let instance = Instance::builder().daemons(2).capacity("512MiB").config(config).start();
    let daemons = [1, 2].map(|daemon| instance.daemon_pid(daemon).unwrap());
    (instance, daemons)
}

/// The session's own time is longer than anybody watches.
#[test]
fn a_wait_ends_with_its_time_while_daemons_say_nothing() {
    let (instance, daemons) = silent();
    for bytes in [8 * MIB, 40 * MIB] {
        let options = Options { timeout_ms: 3_600_000, ..instance.options() };
        let session = Session::open(&options).unwrap();
        session.malloc(64).unwrap();
        for daemon in daemons {
            stop(daemon);
        }
        let waiter = thread::spawn(move || {
            let late = session.malloc_with(bytes, &waiting(200)).unwrap_err();
            (session, late)
        });
        wait_until("the wait has ended", || waiter.is_finished());
        let (session, late) = waiter.join().unwrap();
        assert_eq!(late.status(), Status::Timeout, "{late}");
        assert!(late.text().contains(&bytes.to_string()), "{late}");
        for daemon in daemons {
            send(daemon, Signal::CONT);
        }
        let addr = session.malloc_with(bytes, &waiting(0)).unwrap();
        session.write(addr, b"served").unwrap();
        session.close().unwrap();
        instance.wait_empty();
    }
}

#[test]
fn a_wait_outlives_the_time_of_its_session_while_daemons_say_nothing() {
    let (instance, daemons) = silent();
    for bytes in [8 * MIB, 40 * MIB] {
        let options = Options { timeout_ms: 300, ..instance.options() };
        let session = Session::open(&options).unwrap();
        for daemon in daemons {
            stop(daemon);
        }
        thread::scope(|scope| {
            let waiter = scope.spawn(|| session.malloc_with(bytes, &waiting(0)));
            // Who does not wait gives up meanwhile, and so does the first request of who waits.
            let unheard = [(); 3].map(|()| session.malloc(8 * MIB).map_err(|error| error.status()));
            for daemon in daemons {
                send(daemon, Signal::CONT);
            }
            assert_eq!(unheard, [const { Err(Status::Unavailable) }; 3]);
            let addr = waiter.join().unwrap().unwrap();
            session.write(addr, b"served").unwrap();
        });
        session.close().unwrap();
        instance.wait_empty();
    }
}

#[test]
fn who_waited_in_vain_is_told_what_was_wanted_and_what_was_in_the_way() {
    let instance = instance_of(1, "quota.bytes = \"4MiB\"\n");
    let session = instance.open();
    let _held = session.malloc(3 * MIB).unwrap();
    let late = session.malloc_with(2 * MIB, &waiting(2_000)).unwrap_err();
    assert_eq!(late.status(), Status::Timeout, "{late}");
    let begin = format!("{} bytes could not be had in time: quota reached: ", 2 * MIB);
    assert!(late.text().starts_with(&begin), "{late}");
}

#[test]
fn a_wait_outlives_the_broker() {
    let mut instance = instance_of(1, "");
    let holder = instance.open();
    let held = fill(&holder);
    let waiter = instance.open();
    thread::scope(|scope| {
        let waits = scope.spawn(|| waiter.malloc_with(8 * MIB, &waiting(0)));
        instance.kill_broker();
        instance.start_broker();
        instance.wait_serving();
        for addr in held {
            holder.free(addr).unwrap();
        }
        let addr = waits.join().unwrap().unwrap();
        waiter.write(addr, b"served").unwrap();
    });
}

#[test]
fn a_policy_is_chosen_by_size_or_by_number() {
    let config = "[[policy]]\nup_to = 4096\npage_size = \"16KiB\"\nblock_bytes = \"4MiB\"\n\
                  align = 256\n[[policy]]\npage_size = \"64KiB\"\nplacement = \"least-used\"\n\
                  [[policy]]\nup_to = \"1MiB\"\nwait_ms = 500\n";
    let instance = Instance::builder().daemons(1).capacity("64MiB").config(config).start();
    let session = instance.open();
    let block_of = |addr: DmceAddr| -> BlockRow {
        let block = addr.to_raw() >> session.layout().cell_bits();
        let rows = instance.blocks();
        let found = rows.iter().find(|row| u64::from(row.block) == block).cloned();
        found.unwrap_or_else(|| panic!("{block} of {rows:?}"))
    };
    let small = session.malloc(100).unwrap();
    assert!(small.to_raw().is_multiple_of(256));
    let block = block_of(small);
    assert_eq!((block.page_size, block.bytes), (16384, 4 * MIB));
    assert_eq!(block_of(session.malloc(8192).unwrap()).page_size, 4096);
    let by_number = AllocOptions { policy: 2, ..AllocOptions::default() };
    let chosen = session.malloc_with(100, &by_number).unwrap();
    assert_eq!(block_of(chosen).page_size, 65536);
    // What it was made by, it keeps.
    let larger = session.realloc(chosen, 300_000).unwrap();
    assert_eq!(block_of(larger).page_size, 65536);
    let unknown = AllocOptions { policy: 4, ..AllocOptions::default() };
    assert_eq!(session.malloc_with(1, &unknown).unwrap_err().status(), Status::NotFound);
    // More small ones than a block of the policy holds go to several.
    let mut blocks = std::collections::BTreeSet::new();
    for _ in 0..2000 {
        blocks.insert(session.malloc(4096).unwrap().to_raw() >> session.layout().cell_bits());
    }
    assert!(blocks.len() > 1, "{blocks:?}");
    // The policy of this size waits, but not for long.
    let _rest = fill(&session);
    let refused = loop {
        if let Err(error) = session.malloc(512 * 1024) {
            break error;
        }
    };
    assert_eq!(refused.status(), Status::Timeout);
}

/// The next event; the descriptor tells that it is there.
fn next(session: &Session) -> Event {
    let fd = session.event_fd().unwrap();
    assert!(wait_readable(fd, Some(LONG)).unwrap(), "no event came");
    session.next_event().unwrap().expect("the descriptor was readable")
}

#[test]
fn pressure_and_room_are_told_by_a_descriptor() {
    let config = "broker.idle_s = 0\n";
    let instance = Instance::builder().daemons(1).capacity("64MiB").config(config).start();
    let watcher = instance.open();
    assert!(!wait_readable(watcher.event_fd().unwrap(), Some(Duration::ZERO)).unwrap());
    assert_eq!(watcher.next_event().unwrap(), None);
    let holder = instance.open();
    let held = fill(&holder);
    assert!(matches!(next(&watcher), Event::Pressure { left } if left < 32 * MIB));
    assert_eq!(watcher.malloc(16 * MIB).unwrap_err().status(), Status::NoSpace);
    for addr in held {
        holder.free(addr).unwrap();
    }
    assert!(matches!(next(&watcher), Event::Available { bytes } if bytes >= 16 * MIB));
    assert!(!wait_readable(watcher.event_fd().unwrap(), Some(Duration::ZERO)).unwrap());
    watcher.malloc(16 * MIB).unwrap();
}

#[test]
fn without_a_thread_events_come_by_poll_and_after_a_broker_came_back() {
    let mut instance = Instance::builder().daemons(1).capacity("64MiB").start();
    let options = Options { no_thread: true, ..instance.options() };
    let watcher = Session::open(&options).unwrap();
    assert_eq!(watcher.next_event().unwrap(), None);
    instance.kill_broker();
    instance.start_broker();
    instance.wait_serving();
    watcher.poll().unwrap();
    let holder = instance.open();
    let _held = fill(&holder);
    let event = wait_for("the event", || {
        watcher.poll().unwrap();
        let fd = watcher.event_fd().unwrap();
        wait_readable(fd, Some(Duration::ZERO)).unwrap().then(|| watcher.next_event().unwrap())
    });
    assert!(matches!(event, Some(Event::Pressure { .. })), "{event:?}");
}

#[test]
fn memory_that_is_lost_is_told() {
    let instance = Instance::builder().daemons(1).start();
    let session = instance.open();
    let addr = session.malloc(3 * MIB).unwrap();
    session.write(addr, b"here").unwrap();
    assert_eq!(session.next_event().unwrap(), None);
    let block = instance.blocks()[0].clone();
    for name in instance.objects() {
        if name.contains("data-") {
            std::fs::remove_file(instance.object(&name)).unwrap();
        }
    }
    let first = session.addr(u64::from(block.block) << session.layout().cell_bits()).unwrap();
    let lost = Event::Lost { addr: first, bytes: block.committed };
    assert_eq!(next(&session), lost);
}

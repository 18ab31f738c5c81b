//! Deaths under clients that map nothing, over links and through the broker.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use dmce_tests::client::{ROUTES, Signal, own_client, send, stop};
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{Options, Session, Status};

const BYTES: u64 = 1 << 20;

/// A client on each route, with memory that it has filled.
fn clients(instance: &Instance) -> Vec<(Client, u64)> {
    ROUTES
        .iter()
        .map(|route| {
            let mut client = Client::open_with(&own_client(), instance, route);
            let addr = client.number(format!("malloc {BYTES}")).expect("there is room");
            client.ask(format!("fill {addr} 0 {BYTES}")).expect("it is its own");
            (client, addr)
        })
        .collect()
}

/// Sockets that a process has open.
fn sockets(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("an own child");
    let targets = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

#[test]
fn a_daemon_that_comes_back_is_asked_again_and_no_call_fails() {
    let mut instance = Instance::builder().daemons(1).capacity("512MiB").start();
    let mut clients = clients(&instance);
    for round in 0..4 {
        instance.kill_daemon(1);
        for (client, addr) in &mut clients {
            client.tell(format!("check {addr} {round} {BYTES}"));
            client.tell(format!("fill {addr} {} {BYTES}", round + 1));
        }
        instance.start_daemon(1);
        for (client, _) in &mut clients {
            client.answer().unwrap();
            client.answer().unwrap();
        }
    }
    // In the middle of it, too.
    for round in 4..10 {
        for (client, addr) in &mut clients {
            for _ in 0..20 {
                client.tell(format!("check {addr} {round} {BYTES}"));
            }
            client.tell(format!("fill {addr} {} {BYTES}", round + 1));
        }
        instance.kill_daemon(1);
        instance.start_daemon(1);
        for (client, _) in &mut clients {
            for _ in 0..21 {
                client.answer().unwrap();
            }
        }
    }
    instance.wait_serving();
    drop(clients);
    instance.wait_empty();
}

#[test]
fn links_work_without_a_broker_and_with_the_next_one() {
    let mut instance = Instance::builder().daemons(2).capacity("512MiB").start();
    let mut clients = clients(&instance);
    for round in 0..4 {
        instance.kill_broker();
        let (direct, addr) = &mut clients[0];
        direct.ask(format!("check {addr} {round} {BYTES}")).unwrap();
        direct.ask(format!("fill {addr} {} {BYTES}", round + 1)).unwrap();
        direct.ask(format!("check {addr} {} {BYTES}", round + 1)).unwrap();
        let (relayed, addr) = &mut clients[1];
        relayed.tell(format!("check {addr} {round} {BYTES}"));
        relayed.tell(format!("fill {addr} {} {BYTES}", round + 1));
        instance.start_broker();
        relayed.answer().unwrap();
        relayed.answer().unwrap();
        instance.wait_serving();
        for (client, addr) in &mut clients {
            client.ask(format!("check {addr} {} {BYTES}", round + 1)).unwrap();
        }
    }
    for (client, addr) in &mut clients {
        client.ask(format!("free {addr}")).unwrap();
    }
    drop(clients);
    instance.wait_empty();
}

#[test]
fn all_servers_die_and_come_back_under_working_clients() {
    let mut instance = Instance::builder().daemons(2).capacity("512MiB").start();
    let mut clients = clients(&instance);
    for round in 0..5 {
        for (client, addr) in &mut clients {
            for _ in 0..10 {
                client.tell(format!("check {addr} {round} {BYTES}"));
            }
            client.tell(format!("fill {addr} {} {BYTES}", round + 1));
        }
        instance.kill_all();
        instance.start_all();
        for (client, _) in &mut clients {
            for _ in 0..11 {
                client.answer().unwrap();
            }
        }
    }
}

#[test]
fn the_links_of_a_client_go_with_it() {
    let instance = Instance::builder().daemons(1).start();
    let daemon = instance.daemon_pid(1).unwrap();
    let before = sockets(daemon);
    for is_killed in [true, false] {
        let mut all = clients(&instance);
        assert_eq!(sockets(daemon), before + 1, "one is linked, the other asks the broker");
        if is_killed {
            drop(all);
        } else {
            for (client, _) in &mut all {
                client.ask("close").unwrap();
            }
            wait_until("the closed session is unlinked", || sockets(daemon) == before);
        }
        wait_until("the links have ended", || sockets(daemon) == before);
        instance.wait_empty();
    }
}

#[test]
fn a_stopped_daemon_is_waited_for_until_the_time_is_over() {
    let config = "broker.sense_ms = 50\nbroker.suspect_ms = 200\n";
    let instance = Instance::builder().daemons(1).config(config).start();
    let daemon = instance.daemon_pid(1).unwrap();
    for timeout_ms in [100, 1000] {
        for route in &ROUTES {
            let mut client = Client::start(&own_client(), &instance, route);
            client.ask(format!("open {timeout_ms}")).unwrap();
            let addr = client.number("malloc 100000").unwrap();
            client.ask(format!("fill {addr} 1 100000")).unwrap();
            stop(daemon);
            for _ in 0..2 {
                assert_eq!(client.ask(format!("check {addr} 1 100000")), Err(Status::Timeout));
            }
            // Who goes on in time makes the call succeed.
            client.ask("close").unwrap();
            send(daemon, Signal::CONT);
            instance.wait_empty();
        }
    }
    for (mut client, addr) in clients(&instance) {
        stop(daemon);
        client.tell(format!("check {addr} 0 {BYTES}"));
        send(daemon, Signal::CONT);
        client.answer().unwrap();
    }
}

/// Through the broker that is known as soon as it suspects the daemon.
#[test]
fn a_change_of_a_word_of_a_stopped_daemon_is_made_once_or_not_at_all() {
    let config = "broker.sense_ms = 50\nbroker.suspect_ms = 200\n";
    let instance = Instance::builder().daemons(1).config(config).start();
    let daemon = instance.daemon_pid(1).unwrap();
    for (route, (timeout_ms, ends_with)) in
        ROUTES.iter().zip([(500, Status::Timeout), (600_000, Status::Io)])
    {
        let mut client = Client::start(&own_client(), &instance, route);
        client.ask(format!("open {timeout_ms}")).unwrap();
        let addr = client.number("malloc 4096").unwrap();
        client.ask(format!("fill {addr} 0 4096")).unwrap();
        let before = client.number(format!("raise {addr} 1")).unwrap();
        stop(daemon);
        assert_eq!(client.ask(format!("raise {addr} 1")), Err(ends_with));
        send(daemon, Signal::CONT);
        instance.wait_serving();
        let now = client.number(format!("raise {addr} 0")).unwrap();
        assert!((before + 1..=before + 2).contains(&now), "{before} and one or two are {now}");
        client.ask("close").unwrap();
        instance.wait_empty();
    }
}

/// With the session's time limit it would take longer than any test.
#[test]
fn a_wait_for_a_word_of_a_stopped_daemon_ends_with_its_own_time() {
    let instance = Instance::builder().daemons(1).start();
    let daemon = instance.daemon_pid(1).unwrap();
    for route in &ROUTES {
        let mut client = Client::start(&own_client(), &instance, route);
        client.ask("open 600000").unwrap();
        let addr = client.number("malloc 4096").unwrap();
        stop(daemon);
        // No way to the word is known, and then one over which nothing comes back.
        assert_eq!(client.ask(format!("wait {addr} 0 100")), Err(Status::Timeout));
        send(daemon, Signal::CONT);
        client.ask(format!("fill {addr} 0 4096")).unwrap();
        let before = client.number(format!("raise {addr} 1")).unwrap();
        stop(daemon);
        for _ in 0..3 {
            let wait = format!("wait {addr} {} 50", before + 1);
            assert_eq!(client.ask(wait), Err(Status::Timeout));
        }
        send(daemon, Signal::CONT);
        // What was given up is answered late, and disturbs nobody.
        assert_eq!(client.number(format!("raise {addr} 1")), Ok(before + 1));
        client.ask(format!("wait {addr} {} 60000", before + 1)).unwrap();
        let wait = format!("wait {addr} {} 20", before + 2);
        assert_eq!(client.ask(wait), Err(Status::Timeout));
        client.ask("close").unwrap();
        instance.wait_empty();
    }
}

/// Whatever the session's time limit is.
#[test]
fn an_endless_wait_for_a_word_outlasts_a_daemon_that_is_stopped() {
    let instance = Instance::builder().daemons(1).start();
    let daemon = instance.daemon_pid(1).unwrap();
    for route in &ROUTES {
        let mut waiting = Client::open(&instance);
        waiting.ask("create words shared 4096 0600").unwrap();
        waiting.ask("close").unwrap();
        let open = |timeout_ms: u32| {
            let mut client = Client::start(&own_client(), &instance, route);
            client.ask(format!("open {timeout_ms}")).unwrap();
            client.ask("ropen words shared rw").unwrap();
            client
        };
        let (mut waiting, mut other, mut writer) = (open(500), open(500), open(60_000));
        let word = writer.number("raddr 0").unwrap();
        // One has looked at the word before, and one finds no way to it.
        for is_known in [true, false] {
            if is_known {
                let seen = waiting.ask(format!("wait {word} 0 1"));
                assert!(matches!(seen, Ok(_) | Err(Status::Timeout)), "{seen:?}");
            }
            let value = writer.number(format!("raise {word} 0")).unwrap();
            stop(daemon);
            waiting.tell(format!("wait {word} {value} 0"));
            // The time of the one that waits is over before the second of these ends.
            for _ in 0..3 {
                assert_eq!(other.ask("rcheck 0 0 1"), Err(Status::Timeout));
            }
            send(daemon, Signal::CONT);
            writer.ask(format!("raise {word} 1")).unwrap();
            waiting.answer().unwrap();
        }
        for mut client in [waiting, other, writer] {
            client.ask("close").unwrap();
        }
        instance.open().region_delete("words", "shared").unwrap();
        instance.wait_empty();
    }
}

#[test]
fn a_close_ends_calls_that_wait_for_a_daemon() {
    let instance = Instance::builder().daemons(1).start();
    let daemon = instance.daemon_pid(1).unwrap();
    let options = Options { message_path: true, timeout_ms: 600_000, ..instance.options() };
    let session = Session::open(&options).unwrap();
    let addr = session.calloc(1, 8).unwrap();
    std::thread::scope(|scope| {
        let sleeping = scope.spawn(|| session.wait64(addr, 0, 0));
        stop(daemon);
        let reading = scope.spawn(|| session.read(addr, &mut [0; 8]));
        // Nothing tells that a call waits; closed a moment before, it ends the same way.
        std::thread::yield_now();
        session.close().unwrap();
        for ended in [sleeping.join().unwrap(), reading.join().unwrap()] {
            assert_eq!(ended.unwrap_err().status(), Status::Closed);
        }
    });
    send(daemon, Signal::CONT);
    instance.wait_empty();
}

/// A change whose answer is missing is either made or not, never twice, and its caller is told.
#[test]
fn additions_over_a_daemons_deaths_are_counted_once() {
    let mut instance = Instance::builder().daemons(1).start();
    let options = Options { message_path: true, ..instance.options() };
    let session = Session::open(&options).unwrap();
    let word = session.calloc(1, 8).unwrap();
    let is_over = AtomicBool::new(false);
    let (done, doubtful) = std::thread::scope(|scope| {
        let adding = scope.spawn(|| {
            let (mut done, mut doubtful) = (0, 0);
            while !is_over.load(SeqCst) {
                match session.add64(word, 1) {
                    Ok(_) => done += 1,
                    Err(error) => {
                        assert_eq!(error.status(), Status::Io, "{error}");
                        doubtful += 1;
                    }
                }
            }
            (done, doubtful)
        });
        for round in 0..12 {
            if round % 3 == 0 {
                instance.kill_broker();
                instance.start_broker();
            } else {
                instance.kill_daemon(1);
                instance.start_daemon(1);
            }
            instance.wait_serving();
        }
        is_over.store(true, SeqCst);
        adding.join().unwrap()
    });
    let sum = session.add64(word, 0).unwrap();
    assert!(done > 0);
    assert!((done..=done + doubtful).contains(&sum), "{done} done, {doubtful} doubtful, {sum}");
}

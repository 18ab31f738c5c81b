//! Another user who takes names of ours.

use std::fs::{self, File};
use std::os::unix::fs::chown;

use dmce_tests::{Client, Instance, cannot_run, wait_until};

/// A user that nobody is.
const STRANGER: u32 = 65_534;

/// Blocks and sessions of ours are named after small numbers.
const NAMES_TAKEN: u32 = 12;

/// The first sessions have their objects before anybody asks for one.
const SESSIONS_AHEAD: u32 = 16;

#[test]
fn names_that_another_user_took_cost_nobody_a_request() {
    let instance = Instance::start(1);
    let take = |daemon: u32, kind: &str, number: u32| {
        let name = format!("dmce.{}.{daemon}.{kind}-{number:08x}", instance.name());
        let path = instance.object(&name);
        File::create_new(&path).unwrap();
        chown(&path, Some(STRANGER), Some(STRANGER)).map(|()| path)
    };
    let last = format!("record-{SESSIONS_AHEAD:08x}");
    wait_until("sessions are made ahead", || {
        instance.objects().iter().any(|name| name.ends_with(&last))
    });
    let mut taken = Vec::new();
    for number in 1..=NAMES_TAKEN {
        let kinds = [
            (1, "data", 0),
            (1, "head", 0),
            (0, "session", SESSIONS_AHEAD),
            (0, "record", SESSIONS_AHEAD),
        ];
        let (daemon, kind, ahead) = kinds[number as usize % kinds.len()];
        match take(daemon, kind, ahead + number) {
            Ok(path) => taken.push(path),
            Err(_) => return cannot_run("only root can make files of another user"),
        }
    }
    let mut clients: Vec<Client> = (0..4).map(|_| Client::open(&instance)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.ask(format!("create vol r{number} 5000 0600")).unwrap();
        client.ask("hold 2").unwrap();
    }
    drop(clients);
    // The next sessions were made under the names that are free.
    let mut last = Client::open(&instance);
    for number in 0..4 {
        last.ask(format!("delete vol r{number}")).unwrap();
    }
    last.kill();
    wait_until("all is given back", || {
        let status = instance.status();
        (status.sessions, status.blocks, status.committed) == (0, 0, 0)
    });
    for path in taken {
        fs::remove_file(path).unwrap();
    }
}

#[test]
fn names_that_another_user_made_are_no_daemons() {
    let mut instance = Instance::start(1);
    let path = instance.object(&format!("dmce.{}.9.data-00000001", instance.name()));
    File::create(&path).unwrap();
    if chown(&path, Some(STRANGER), Some(STRANGER)).is_err() {
        return cannot_run("only root can make files of another user");
    }
    instance.kill_broker();
    instance.start_broker();
    instance.wait_serving();
    let daemons: Vec<u32> = instance.daemons().iter().map(|row| row.daemon).collect();
    assert_eq!(daemons, [1]);
    assert!(fs::exists(&path).unwrap(), "what is not ours is left alone");
    let mut client = Client::open(&instance);
    client.ask("hold 1").unwrap();
}

//! Another user who takes names of ours.

use std::fs::{self, File};
use std::os::unix::fs::chown;

use dmce_tests::{Client, Instance, cannot_run};

/// A user that nobody is.
const STRANGER: u32 = 65_534;

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

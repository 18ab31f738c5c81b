//! A start that fails leaves the directory and the shared memory as it found them.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::client::{read_region, write_region};
use super::harness::{Home, dmce, objects_of, run, server, wait_until};

/// The daemon that cannot start, once the broker has made its objects and its sockets.
const NO_DAEMON: &str = "until test -S \"$2/broker.sock\"; do :; done; echo no room >&2; exit 3";

/// A home whose broker is real and whose daemons end at their start.
fn without_daemons(test: &str) -> Home {
    let broker = format!("exec '{}' \"$@\"", server("dmce-broker").display());
    Home::new(test).with_servers(&[("dmce-broker", &broker), ("dmce-daemon", NO_DAEMON)])
}

/// `up` on the directory of another home's, by the command and the servers that are built.
fn up_in(home: &Home, config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmce"));
    command.args(["up", "--daemons", "2", "--capacity", "64MiB", "--dir"]).arg(&home.dir);
    command.arg("--config").arg(config);
    command
}

#[test]
fn of_a_new_directory_only_the_logs_are_left_and_any_name_starts_there() {
    let home = without_daemons("new");
    let error = home.up(&[]).failed(1);
    assert!(error.ends_with("no room"), "{error}");
    home.assert_nothing_runs();
    assert_eq!(home.files(), ["log"]);
    assert_eq!(home.objects(), [""; 0]);

    let other = Home::new("newer");
    run(&mut up_in(&home, &other.config())).done();
    assert!(!other.objects().is_empty());
    home.down(&[]).done();
    assert_eq!((home.files(), other.objects().len()), (vec!["log".to_owned()], 0));
}

#[test]
fn what_an_earlier_instance_kept_is_left_with_its_note() {
    let home = without_daemons("older");
    run(&mut up_in(&home, &home.config())).done();
    write_region(&home.socket(), "kept", b"older than the failure");
    home.down(&["--keep"]).done();
    let found =
        || (home.files(), home.objects(), fs::read(home.dir.join("instance.json")).unwrap());
    let before = found();
    run(home.bare_up_command().args(["--daemons=5", "--capacity=1GiB"])).failed(1);
    home.assert_nothing_runs();
    assert_eq!(found(), before);

    run(Command::new(env!("CARGO_BIN_EXE_dmce")).args(["up", "--dir"]).arg(&home.dir)).done();
    assert_eq!(read_region(&home.socket(), "kept", 22), b"older than the failure");
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn daemons_that_live_are_left_alone() {
    let home = without_daemons("living");
    run(&mut up_in(&home, &home.config())).done();
    write_region(&home.socket(), "held", b"held on");
    let living = [home.pid("daemon-1"), home.pid("daemon-2")];
    home.kill("broker");
    wait_until("the supervisor has ended", || home.processes().len() == 2);
    run(home.bare_up_command().arg("--daemons=3")).failed(1);
    assert_eq!([home.pid("daemon-1"), home.pid("daemon-2")], living);
    assert_eq!(home.processes().len(), 2);
    run(&mut up_in(&home, &home.config())).done();
    assert_eq!(read_region(&home.socket(), "held", 7), b"held on");
    assert_eq!([home.pid("daemon-1"), home.pid("daemon-2")], living);
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn wrong_options_leave_no_directory() {
    let home = Home::new("options");
    let wrong = || run(home.bare_up_command().arg("--capacity=5000")).failed(1);
    let error = wrong();
    assert_eq!(error, "daemon.capacity: 5000 is no multiple of 4KiB");
    let deep = home.dir.join("a/b");
    let up = ["up".as_ref(), "--capacity=1".as_ref(), "--dir".as_ref(), deep.as_os_str()];
    dmce(&up).failed(1);
    assert!(!home.dir.exists(), "{:?}", home.files());
    fs::create_dir(&home.dir).unwrap();
    fs::write(home.dir.join("mine"), "").unwrap();
    wrong();
    assert_eq!(home.files(), ["mine"]);
}

/// Killed with the command that would have cleaned up, a start leaves locks and no memory.
#[test]
fn what_holds_no_memory_hinders_no_other_name() {
    let home = Home::new("empty");
    home.up(&[]).done();
    home.down(&["--keep"]).done();
    assert!(!home.objects().is_empty(), "the locks");
    let other = Home::new("emptier");
    run(&mut up_in(&home, &other.config())).done();
    assert_eq!(home.objects(), [""; 0]);
    home.down(&[]).done();
    assert_eq!(objects_of("empty"), [""; 0]);
}

#[test]
fn a_file_where_the_socket_is_to_be_is_named_and_stays() {
    let home = Home::new("blocked");
    fs::create_dir(&home.dir).unwrap();
    let socket = home.socket();
    fs::create_dir(&socket).unwrap();
    fs::write(socket.join("mine"), "").unwrap();
    let error = home.up(&[]).failed(1);
    assert!(error.contains("broker.sock"), "{error}");
    assert_eq!(home.files(), ["broker.sock", "log"]);
    assert_eq!(home.objects(), [""; 0]);
    fs::remove_dir_all(socket).unwrap();
    home.up(&[]).done();
    home.down(&[]).done();
}

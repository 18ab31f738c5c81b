//! Servers that die, in every order.

use std::fs;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use dmce_sys::pidfd::{self, Signal};

use super::client::{read_region, write_region};
use super::harness::{Home, kill, objects_of, run, wait_gone, wait_until};

#[test]
fn after_everything_was_killed_the_next_start_finds_the_regions() {
    let home = Home::new("all");
    home.up(&[]).done();
    write_region(&home.socket(), "r", b"survives");
    for round in 0..3 {
        // By the pid files alone, the broker first or last.
        let mut servers = ["broker", "daemon-1", "daemon-2"];
        servers.rotate_left(round);
        for server in servers {
            home.kill(server);
        }
        wait_until("the supervisor has ended", || {
            // A daemon that was started again before the broker died is killed like the others.
            for server in ["daemon-1", "daemon-2"] {
                let pid = fs::read_to_string(home.dir.join(format!("{server}.pid"))).unwrap();
                let pid = pid.trim().parse().unwrap();
                if home.processes().contains(&pid) {
                    kill(pid);
                }
            }
            home.processes().is_empty()
        });
        home.up(&[]).done();
        assert_eq!(read_region(&home.socket(), "r", 8), b"survives");
        assert_eq!(home.json("status")["state"], "ok");
    }
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn a_daemon_that_dies_is_started_again_and_has_its_memory() {
    let home = Home::new("again");
    home.up(&[]).done();
    write_region(&home.socket(), "r", b"adopted");
    for server in ["daemon-1", "daemon-2", "daemon-1"] {
        let before = home.pid(server);
        kill(before);
        wait_until("another daemon serves", || {
            let text = fs::read_to_string(home.dir.join(format!("{server}.pid"))).unwrap();
            text != format!("{before}\n") && home.json("status")["daemons_up"] == 2
        });
        assert_ne!(home.pid(server), before);
        assert_eq!(read_region(&home.socket(), "r", 7), b"adopted");
    }
    assert!(home.log("supervisor").contains("SIGKILL"), "{}", home.log("supervisor"));
    home.down(&[]).done();
}

#[test]
fn a_daemon_stays_dead_if_that_is_wanted_and_the_status_says_so() {
    let home = Home::new("dead");
    home.up(&["--no-restart"]).done();
    home.kill("daemon-2");
    wait_until("the pid file is gone", || !home.dir.join("daemon-2.pid").exists());
    wait_until("the broker has noticed", || home.json("status")["daemons_up"] == 1);
    let status = home.ask(&["status", "--json"]);
    assert_eq!((status.code, &status.json()["state"]), (Some(4), &"degraded".into()));
    assert_eq!(home.json("daemons")[1]["state"], "away");
    assert_eq!(home.processes().len(), 3);
    home.down(&[]).done();
}

#[test]
fn a_broker_that_is_gone_is_started_by_the_next_up_and_daemons_that_live_are_kept() {
    let home = Home::new("broker");
    home.up(&[]).done();
    write_region(&home.socket(), "r", b"there");
    let supervisor = *home.processes().iter().find(|pid| is_supervisor(**pid)).unwrap();
    let (broker, daemons) = (home.pid("broker"), (home.pid("daemon-1"), home.pid("daemon-2")));
    kill(broker);
    wait_gone(supervisor);
    assert_eq!(home.processes().len(), 2, "the daemons");
    let error = home.ask(&["status"]).failed(3);
    assert!(error.starts_with("no broker"), "{error}");
    kill(daemons.1);

    home.up(&[]).done();
    assert_ne!(home.pid("broker"), broker);
    assert_eq!(home.pid("daemon-1"), daemons.0);
    assert_ne!(home.pid("daemon-2"), daemons.1);
    assert_eq!(read_region(&home.socket(), "r", 5), b"there");

    // One that was found alive is supervised like one that was started.
    kill(daemons.0);
    wait_until("the daemon is started again", || {
        home.json("daemons")[0]["pid"] != daemons.0 && home.json("status")["daemons_up"] == 2
    });
    home.down(&[]).done();
    home.assert_nothing_runs();
    assert_eq!(home.objects(), [""; 0]);
}

fn is_supervisor(pid: u32) -> bool {
    let line = dmce_sys::process::command_line(pid).unwrap_or_default();
    line.get(1).is_some_and(|word| word == b"supervise")
}

#[test]
fn a_stopped_daemon_and_a_dead_supervisor_hold_nothing_up() {
    let home = Home::new("stopped");
    home.up(&[]).done();
    let supervisor = *home.processes().iter().find(|pid| is_supervisor(**pid)).unwrap();
    kill(supervisor);
    let stopped = pidfd::open(home.pid("daemon-1")).unwrap();
    pidfd::signal(stopped.as_fd(), Signal::STOP).unwrap();
    home.down(&[]).done();
    home.assert_nothing_runs();
    assert_eq!(home.objects(), [""; 0]);
}

/// A process that has nothing to do with DMCE.
struct Innocent(Child);

impl Innocent {
    fn new() -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("1000").stdin(Stdio::null()).spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Innocent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn stale_pid_files_hinder_nobody_and_harm_nobody() {
    let home = Home::new("stale");
    let mut innocent = Innocent::new();
    let stale = format!("{}\n", innocent.0.id());
    fs::create_dir(&home.dir).unwrap();
    for file in ["broker.pid", "daemon-1.pid", "daemon-7.pid"] {
        fs::write(home.dir.join(file), &stale).unwrap();
    }
    fs::write(home.dir.join("broker.sock"), "not even a socket").unwrap();
    home.down(&[]).done();
    assert!(innocent.is_alive());
    assert_eq!(home.files(), ["log"; 0], "what servers would have left is gone");

    home.up(&[]).done();
    for server in ["broker", "daemon-1", "daemon-2"] {
        home.kill(server);
    }
    for file in ["broker.pid", "daemon-1.pid", "daemon-2.pid"] {
        fs::write(home.dir.join(file), &stale).unwrap();
    }
    wait_until("all have ended", || home.processes().is_empty());
    home.up(&[]).done();
    assert_ne!(home.pid("broker"), innocent.0.id());
    home.down(&[]).done();
    assert!(innocent.is_alive());
}

#[test]
fn an_instance_that_another_directory_serves_is_neither_started_nor_removed() {
    let home = Home::new("owner");
    home.up(&[]).done();
    let broker = home.pid("broker");
    let second = home.dir.with_file_name("second");
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmce"));
    command.arg("up").arg("--dir").arg(&second).arg("--config").arg(home.config());
    let error = run(&mut command).failed(1);
    assert!(error.ends_with(&format!("process {broker}")), "{error}");

    assert!(!second.exists(), "what failed at once leaves nothing");
    fs::create_dir(&second).unwrap();

    // A copy of the directory says that the instance is its own; the locks say that it is not.
    fs::copy(home.dir.join("instance.json"), second.join("instance.json")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmce"));
    let error = run(command.arg("down").arg("--dir").arg(&second)).failed(1);
    assert!(error.contains("nothing was removed"), "{error}");
    assert_eq!(home.pid("broker"), broker);
    assert_eq!(home.json("status")["state"], "ok");
    home.down(&[]).done();
    assert_eq!(objects_of(&format!("test{}-cli-owner", std::process::id())), [""; 0]);
}

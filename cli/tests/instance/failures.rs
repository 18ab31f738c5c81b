//! What goes wrong, and what scripts are told.

use std::fs;
use std::io::Read;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use dmce_sys::poll::wait_readable;
use dmce_sys::process;
use dmce_sys::socket::Listener;
use std::os::fd::AsFd;

use super::client::write_region;
use super::harness::{Home, Run, dmce, run, wait_gone, wait_until};

#[test]
fn wrong_usage_is_told_from_failure() {
    for line in [
        &[][..],
        &["fly"],
        &["up"],
        &["up", "--dir", "d", "--capacity", "3GB"],
        &["up", "--dir", "d", "--daemons", "0"],
        &["map", "here"],
        &["blocks", "--yaml"],
    ] {
        dmce(line).failed(2);
    }
    dmce(&["--version"]).done();
}

#[test]
fn a_socket_that_is_no_use_is_refused_and_one_that_is_missing_is_asked_for() {
    let nowhere = Home::new("nowhere");
    for command in ["up", "down"] {
        let dir = nowhere.dir.to_str().unwrap();
        let error = dmce(&[command, "--dir", dir, "--socket", "/s"]).failed(2);
        let why = format!("'{command}' takes --dir, and --socket has no meaning for it");
        assert!(error.starts_with(&why), "{error}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_dmce"));
    command.arg("status").env_remove("DMCE_SOCKET").env("XDG_RUNTIME_DIR", &nowhere.dir);
    let status = run(&mut command);
    // Unless the host has a service of its own.
    if status.code != Some(0) {
        let error = status.failed(3);
        assert!(error.ends_with("; name another by --socket or DMCE_SOCKET"), "{error}");
    }
}

#[test]
fn what_is_no_directory_is_called_so() {
    let home = Home::new("file");
    fs::write(&home.dir, "").unwrap();
    let error = home.up(&[]).failed(1);
    assert_eq!(error, format!("{} is not a directory", home.dir.display()));
    let error = home.down(&[]).failed(1);
    assert_eq!(error, format!("{} is not a directory", home.dir.display()));
}

#[test]
fn no_broker_is_told_from_a_broker_that_refuses() {
    let home = Home::new("absent");
    fs::create_dir(&home.dir).unwrap();
    let error = home.ask(&["status"]).failed(3);
    assert!(error.contains(home.socket().to_str().unwrap()), "{error}");
    fs::write(home.socket(), "a file").unwrap();
    home.ask(&["blocks", "--json"]).failed(3);
    fs::remove_file(home.socket()).unwrap();
    let _other_kind = UnixListener::bind(home.socket()).unwrap();
    home.ask(&["sessions"]).failed(3);
}

/// What the command makes of a peer that takes the question and answers so.
fn told_by(home: &Home, listener: &Listener, answer: Option<&[u8]>) -> Run {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            assert!(wait_readable(listener.as_fd(), None).unwrap());
            let socket = listener.accept_nonblocking().unwrap();
            socket.recv(&mut [0; 1024], &mut Vec::new()).unwrap();
            if let Some(answer) = answer {
                socket.send(answer, &[]).unwrap();
            }
        });
        home.ask(&["daemons"])
    })
}

#[test]
fn who_listens_and_is_no_broker_is_found_out() {
    let home = Home::new("impostor");
    fs::create_dir(&home.dir).unwrap();
    let listener = Listener::bind(home.socket(), 0o600).unwrap();
    let ours = u8::try_from(dmce_abi::version::WIRE_VERSION).unwrap();
    let header = |version: u8| [17, 0, 0, 0, version, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xff];
    for answer in [None, Some(&b"hello"[..]), Some(&header(ours))] {
        let error = told_by(&home, &listener, answer).failed(3);
        assert!(error.starts_with("no broker answers"), "{error}");
    }
    let error = told_by(&home, &listener, Some(&header(9))).failed(1);
    assert!(error.contains("another release: the peer speaks message version 9"), "{error}");
}

#[test]
fn an_address_of_nothing_is_a_failure_that_says_why() {
    let home = Home::new("map");
    home.up(&[]).done();
    for (address, why) in [
        ("0", "0x0 is the address of nothing"),
        ("0x10", "0x10 is no address: it lies in block 0, and the first is 1, from 0x40000000 on"),
        ("0x40000000", "no block that you may see has 0x40000000: there is no block 1"),
        (
            "0x0001000040000000",
            "0x1000040000000 is of server 1, and only addresses of this host, server 0, are known",
        ),
        ("0xffffffffffffffff", "0xffffffffffffffff is of server 65535, and only addresses of"),
    ] {
        let error = home.ask(&["map", address]).failed(1);
        assert!(error.starts_with(why), "{error}");
    }
    write_region(&home.socket(), "small", b"some");
    let first = home.json("regions")[0]["first"].as_u64().unwrap();
    let behind = first + (512 << 20);
    let error = home.ask(&["map", &behind.to_string()]).failed(1);
    let block = first >> 30;
    let why = format!("{behind:#x} lies behind the end of block {block}, which grows to at most ");
    assert!(error.starts_with(&why), "{error}");
    home.down(&[]).done();
}

#[test]
fn a_server_that_ends_at_its_start_is_quoted_and_the_others_are_stopped() {
    let broker = ("dmce-broker", "echo $$ >&2; exec sleep 1000");
    // It waits for the broker's word, which the test reads.
    let script = "until grep -q . \"$2/log/broker.log\"; do :; done
        echo begun >&2; echo 'no room for me' >&2; exit 3";
    let daemon = ("dmce-daemon", script);
    let home = Home::new("early").with_servers(&[broker, daemon]);
    let error = home.up(&[]).failed(1);
    assert!(error.contains("daemon-"), "{error}");
    assert!(error.ends_with("ended at its start (exit status: 3): no room for me"), "{error}");
    let broker = home.log("broker").trim().parse().unwrap();
    assert!(process::start_time(broker).is_err(), "the broker was stopped and reaped");
    assert_eq!(home.files(), ["log"], "no pid file is left");
    home.assert_nothing_runs();
    assert!(home.log("supervisor").contains("no room for me"));

    let broker = ("dmce-broker", "echo \"gone with: $*\" >&2; kill -TERM $$");
    let home = Home::new("signal").with_servers(&[broker, ("dmce-daemon", "exec sleep 1000")]);
    let error = home.up(&["--layout", "os32", "--copies", "2"]).failed(1);
    assert!(error.contains("broker ended at its start (signal: 15 (SIGTERM)): gone"), "{error}");
    assert!(error.ends_with("--layout os32 --copies 2"), "{error}");
}

#[test]
fn a_missing_program_is_named() {
    let home = Home::new("programs").with_servers(&[("dmce-broker", "exec sleep 1000")]);
    let mut command = home.up_command(&[]);
    let error = run(command.env("PATH", "/bin:/usr/bin")).failed(1);
    assert!(error.starts_with("dmce-daemon is neither beside dmce"), "{error}");
    home.assert_nothing_runs();
}

#[test]
fn a_start_that_is_interrupted_leaves_nothing_running() {
    let script = "echo $$ >&2; exec sleep 1000";
    let home = Home::new("cut").with_servers(&[("dmce-broker", script), ("dmce-daemon", script)]);
    let mut up = home.up_command(&[]).stderr(Stdio::piped()).spawn().unwrap();
    let servers = ["broker", "daemon-1", "daemon-2"];
    wait_until("the servers run", || servers.iter().all(|name| !home.log(name).is_empty()));
    up.kill().unwrap();
    up.wait().unwrap();
    for name in servers {
        wait_gone(home.log(name).trim().parse().unwrap());
    }
    wait_until("the supervisor has ended", || home.processes().is_empty());
    assert_eq!(home.files(), ["instance.json", "log", "up.lock"]);
}

#[test]
fn a_wrong_configuration_is_one_line_with_its_place() {
    let home = Home::new("config");
    fs::write(home.config(), "[instance]\nnmae = \"x\"\n").unwrap();
    let error = home.up(&[]).failed(1);
    assert!(error.contains("dmce.toml:2:1: "), "{error}");
    fs::write(home.config(), "limits.daemons = 1\n").unwrap();
    let error = home.up(&[]).failed(1);
    assert_eq!(error, "--daemons 2 is more than limits.daemons, which is 1");
    fs::remove_file(home.config()).unwrap();
    let error = home.up(&[]).failed(1);
    assert!(error.contains("cannot be read"), "{error}");
    assert!(!home.dir.exists());
    fs::write(home.config(), "").unwrap();
    let error = run(home.up_command(&[]).env("DMCE_BROKER_SENS_MS", "5")).failed(1);
    assert!(error.starts_with("environment variable DMCE_BROKER_SENS_MS: [broker] has no key"));
    assert!(!home.dir.exists());
    let error = run(home.up_command(&[]).env("DMCE_LOG", "nonsense=,,[[")).failed(1);
    assert!(error.contains(": DMCE_LOG is \"nonsense=,,[[\": invalid filter"), "{error}");
    run(home.up_command(&[]).env("DMCE_LOG", "").env("DMCE_DAEMON_CAPACITY", "")).done();
    home.down(&[]).done();
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dmce"))
        .arg("--help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), text.as_str()), (Some(0), ""));
}

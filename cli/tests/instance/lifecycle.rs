//! From `up` to `down`, and what is left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use libdmce::{Mirror, Options, Prot, RegionOptions, Session};
use serde_json::json;

use super::client::{read_region, write_region};
use super::harness::{Home, dmce, objects_of, run, wait_gone, wait_until};

#[test]
fn an_instance_starts_serves_and_leaves_nothing() {
    let home = Home::new("whole");
    let up = home.up(&[]).done();
    assert_eq!(up.stdout, format!("DMCE_SOCKET={}\n", home.socket().display()));
    assert_eq!(fs::metadata(&home.dir).unwrap().permissions().mode() & 0o777, 0o700);
    let running = home.processes();
    assert_eq!(running.len(), 4, "supervisor, broker, two daemons");

    let status = home.json("status");
    assert_eq!(status["state"], "ok");
    assert_eq!(status["instance"], home.objects()[0].split('.').nth(1).unwrap());
    assert_eq!((&status["daemons"], &status["daemons_up"]), (&json!(2), &json!(2)));
    assert_eq!(status["capacity"], 128 << 20);
    assert_eq!(status["pid"], home.pid("broker"));
    let daemons = home.json("daemons");
    for (place, server) in ["daemon-1", "daemon-2"].iter().enumerate() {
        assert_eq!(daemons[place]["pid"], home.pid(server));
        assert_eq!(daemons[place]["id"], place + 1);
    }

    home.down(&[]).done();
    for pid in running {
        wait_gone(pid);
    }
    assert_eq!(home.objects(), [""; 0]);
    assert_eq!(home.files(), ["log"]);
    home.down(&[]).done();
}

#[test]
fn blocks_may_be_smaller_than_the_objects_of_the_pool_by_default_are() {
    let home = Home::new("smallblocks");
    home.up(&["--layout", "24/24/16"]).done();
    assert_eq!(home.json("status")["layout"], "24/24/16");
    write_region(&home.socket(), "small", b"kept");
    let block = &home.json("blocks")[0];
    assert!(block["committed"].as_u64() <= Some(64 << 10), "{block}");
    home.down(&[]).done();
}

#[test]
fn a_directory_in_use_is_refused_with_the_broker_that_uses_it() {
    let home = Home::new("twice");
    home.up(&[]).done();
    let before = (home.pid("broker"), home.processes());
    let error = home.up(&[]).failed(1);
    assert!(error.contains("is in use"), "{error}");
    assert!(error.ends_with(&format!("process {}", before.0)), "{error}");
    // By another path it is the same directory.
    let link = home.dir.with_file_name("link");
    std::os::unix::fs::symlink(&home.dir, &link).unwrap();
    dmce(&["up".as_ref(), "--dir".as_ref(), link.as_os_str()]).failed(1);
    assert_eq!((home.pid("broker"), home.processes()), before, "the first is as it was");
    home.down(&[]).done();
}

#[test]
fn of_many_at_once_one_wins() {
    let home = Home::new("race");
    let mut codes: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4).map(|_| scope.spawn(|| home.up(&[]).code)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(1), Some(1), Some(1)]);
    assert_eq!(home.processes().len(), 4);
    assert_eq!(home.json("status")["daemons_up"], 2);
    home.down(&[]).done();
}

#[test]
fn what_was_kept_is_found_by_the_next_start_without_the_configuration() {
    let home = Home::new("keep");
    home.up(&[]).done();
    write_region(&home.socket(), "kept", b"not my memory");
    home.down(&["--keep"]).done();
    home.assert_nothing_runs();
    assert_eq!(home.files(), ["instance.json", "log"]);
    assert!(home.objects().iter().any(|name| name.contains(".data-")), "{:?}", home.objects());

    let mut command = home.up_command(&[]);
    let plain: Vec<_> = command.get_args().take(7).map(std::ffi::OsStr::to_owned).collect();
    command = std::process::Command::new(command.get_program());
    run(command.args(plain)).done();
    assert_eq!(home.json("regions")[0]["name"], "kept");
    assert_eq!(read_region(&home.socket(), "kept", 13), b"not my memory");
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn both_copies_of_what_was_kept_are_found_by_the_next_start() {
    let home = Home::new("kepttwo");
    home.up(&["--copies", "2"]).done();
    let halves = [Mirror::Primary, Mirror::Mirror];
    for (round, text) in [b"first", b"again"].into_iter().enumerate() {
        let options = Options { socket: Some(home.socket()), ..Options::default() };
        let session = Session::open(&options).unwrap();
        if round == 0 {
            let copies = RegionOptions { copies: 2, ..RegionOptions::default() };
            session.region_create("cli", "two", 100_000, &copies).unwrap();
        }
        let region = session.region_open("cli", "two", Prot::READ_WRITE).unwrap();
        for half in halves.into_iter().filter(|_| round > 0) {
            let mut found = [0; 5];
            region.read(90_000, &mut found, half).unwrap();
            assert_eq!(found, *b"first", "{half:?}");
        }
        region.write(90_000, text, Mirror::Both).unwrap();
        drop((region, session));
        home.down(&["--keep"]).done();
        home.assert_nothing_runs();
        run(&mut home.bare_up_command()).done();
        let block = &home.json("blocks")[0];
        assert_eq!((&block["state"], &home.json("status")["state"]), (&json!("ok"), &json!("ok")));
        assert_eq!(block["copies"].as_array().map(Vec::len), Some(2), "{block}");
    }
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn what_the_next_start_is_not_told_is_as_it_was() {
    let home = Home::new("told");
    home.up(&["--layout", "16/20/28"]).done();
    write_region(&home.socket(), "kept", b"bytes");
    home.down(&["--keep"]).done();
    let note = home.dir.join("instance.json");
    let text = fs::read_to_string(&note).unwrap();
    let noted: serde_json::Value = serde_json::from_str(&text).unwrap();
    let options =
        json!({ "daemons": 2, "capacity": "64MiB", "copies": null, "layout": "16/20/28" });
    assert_eq!((&noted["layout"], &noted["options"]), (&json!("16/20/28"), &options));

    run(&mut home.bare_up_command()).done();
    let status = home.json("status");
    assert_eq!((&status["layout"], &status["capacity"]), (&json!("16/20/28"), &json!(128 << 20)));
    assert_eq!(read_region(&home.socket(), "kept", 5), b"bytes");
    home.down(&["--keep"]).done();
    run(home.bare_up_command().args(["--capacity", "32MiB", "--daemons", "3"])).done();
    assert_eq!(home.json("status")["capacity"], 96 << 20);
    home.down(&["--keep"]).done();

    // A file that is given says what the options said, but for the number of daemons.
    let named = fs::read_to_string(home.config()).unwrap();
    let layout = "layout = \"16/20/28\"\n[daemon]\ncapacity = \"48MiB\"\n";
    let with_config = || run(home.bare_up_command().arg("--config").arg(home.config()));
    let error = with_config().failed(1);
    let found = "still has memory of layout 16/20/28, which in-server cannot use; ";
    assert!(error.contains(found) && error.ends_with("' removes it"), "{error}");
    assert_eq!(home.files(), ["instance.json", "log"]);
    fs::write(home.config(), named + layout).unwrap();
    with_config().done();
    assert_eq!(home.json("status")["capacity"], 144 << 20);
    assert_eq!(read_region(&home.socket(), "kept", 5), b"bytes");
    home.down(&[]).done();
    run(home.bare_up_command().args(["--daemons", "1", "--config"]).arg(home.config())).done();
    assert_eq!(home.json("status")["daemons"], 1);
    home.down(&[]).done();
}

#[test]
fn another_name_is_refused_while_memory_of_the_first_is_there() {
    let home = Home::new("rename");
    home.up(&[]).done();
    write_region(&home.socket(), "first", b"here");
    home.down(&["--keep"]).done();
    let other = format!("test{}-cli-renamed", std::process::id());
    fs::write(home.config(), format!("[instance]\nname = \"{other}\"\n")).unwrap();
    let error = home.up(&[]).failed(1);
    assert!(error.contains("still has memory of instance"), "{error}");
    home.down(&[]).done();
    home.up(&[]).done();
    assert!(!objects_of(&other).is_empty());
    home.down(&[]).done();
    assert_eq!(objects_of(&other), [""; 0]);
}

#[test]
fn without_a_configuration_the_path_names_the_instance_and_down_needs_no_directory() {
    let home = Home::without_name("path");
    home.up(&[]).done();
    let name = home.json("status")["instance"].as_str().unwrap().to_owned();
    assert!(name.starts_with('p') && name.len() == 13, "{name}");
    write_region(&home.socket(), "r", b"bytes");
    home.down(&["--keep"]).done();
    fs::remove_file(home.dir.join("instance.json")).unwrap();
    home.up(&[]).done();
    assert_eq!(read_region(&home.socket(), "r", 5), b"bytes");

    // The directory vanishes under the servers: they and the memory are found all the same.
    fs::remove_dir_all(&home.dir).unwrap();
    assert_eq!(home.processes().len(), 4);
    home.down(&[]).done();
    home.assert_nothing_runs();
    assert_eq!(objects_of(&name), [""; 0]);
}

#[test]
fn down_ends_a_start_that_is_at_work_when_it_is_through() {
    let home = Home::new("turns");
    std::thread::scope(|scope| {
        let start = scope.spawn(|| home.up(&[]).code);
        wait_until("the start is at work", || home.dir.join("up.lock").exists());
        home.down(&[]).done();
        assert_eq!(start.join().unwrap(), Some(0));
    });
    home.assert_nothing_runs();
    assert_eq!(home.objects(), [""; 0]);
}

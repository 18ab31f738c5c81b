//! A program with a plain pointer to memory of two copies, one of which goes.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use dmce_tests::Instance;

use crate::toolchain::{self, Linkage::Shared};

/// The memory of a daemon that is gone.
fn remove_memory(instance: &Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(name);
        if name.contains("data-") {
            let object = File::options().write(true).open(&path).expect("it is there");
            object.set_len(0).expect("it is our own");
        }
        fs::remove_file(path).expect("it is our own");
    }
}

#[test]
fn a_plain_pointer_goes_on_with_another_copy_when_a_daemon_goes_with_its_memory() {
    let program = toolchain::build("tests/c/lost_copy.c", "c11", Shared);
    for lost in [1, 2] {
        let builder = Instance::builder().daemons(2).capacity("128MiB").layout("16/24/24");
        let mut instance = builder.start();
        let mut command = toolchain::command(&program.path, &instance);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        instance.kill_daemon(lost);
        remove_memory(&instance, lost);
        child.stdin.take().unwrap().write_all(b"x").unwrap();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status} when daemon {lost} was lost");
    }
}

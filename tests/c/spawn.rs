//! `DMCE_SPAWN`: a program works with nothing installed as a service.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use dmce_tests::programs::program;
use dmce_tests::{WATCHDOG, cannot_run};

use crate::toolchain::Linkage::Shared;
use crate::toolchain::{self, succeed, text_of_success};

/// The service of the host, which a program finds first.
const OF_THE_HOST: &str = "/run/dmce/broker.sock";

/// A user's runtime folder, in which a private instance may be started. It ends with the value.
struct Runtime {
    folder: PathBuf,
    command: PathBuf,
}

impl Runtime {
    fn new() -> Self {
        let name = format!("test{}-spawned", std::process::id());
        let folder = std::env::temp_dir().join(format!("dmce-{name}"));
        fs::DirBuilder::new().mode(0o700).create(&folder).expect("the folder is new");
        let config = folder.join("dmce.toml");
        fs::write(&config, format!("instance.name = \"{name}\"\n")).expect("the folder is ours");
        // What starts the instance adds nothing to its name, so that is done on the way.
        let command = folder.join("dmce.sh");
        let script = format!(
            "#!/bin/sh\nexec '{}' \"$@\" --config '{}'\n",
            program("dmce").display(),
            config.display()
        );
        fs::write(&command, script).expect("the folder is ours");
        fs::set_permissions(&command, fs::Permissions::from_mode(0o700)).expect("it is ours");
        Self { folder, command }
    }

    /// Runs a program as its user would, who has no broker.
    fn run(&self, program: &Path) -> String {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &WATCHDOG.as_secs().to_string()]).arg(program);
        command.env_remove("DMCE_SOCKET").env("XDG_RUNTIME_DIR", &self.folder);
        command.env("DMCE_COMMAND", &self.command);
        let output = command.output().expect("coreutils are there");
        text_of_success("a program without a broker", &output)
    }

    fn broker_pid(&self) -> String {
        fs::read_to_string(self.folder.join("dmce/broker.pid")).expect("an instance was started")
    }

    fn down(&self) {
        let mut down = Command::new(program("dmce"));
        succeed(down.arg("down").arg("--dir").arg(self.folder.join("dmce")));
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if self.folder.join("dmce").exists() {
            self.down();
        }
        // What is left is a folder of small files.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[test]
fn a_program_without_a_broker_starts_a_private_instance_and_the_next_one_finds_it() {
    if Path::new(OF_THE_HOST).exists() {
        cannot_run("this host has a broker of its own, which programs find first");
        return;
    }
    let hello = toolchain::build("examples/c/hello.c", "c99", Shared);
    let runtime = Runtime::new();
    assert_eq!(runtime.run(&hello.path), "not my memory\nhello\n");
    let first = runtime.broker_pid();
    assert_eq!(runtime.run(&hello.path), "not my memory\nhello\n");
    assert_eq!(runtime.broker_pid(), first);
}

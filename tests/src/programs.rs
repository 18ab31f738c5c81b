//! Where the programs of the workspace are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// A server, or the command `dmce`, of this workspace.
///
/// `DMCE_TEST_PROGRAMS` names their folder; else they are beside the running test, where they are
/// built first: a test run of one package does not build the programs of the others.
///
/// # Panics
///
/// If there is no such program.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        env::var_os("DMCE_TEST_PROGRAMS").map_or_else(
            || build_beside_test(&["dmce-broker", "dmce-daemon", "dmce"]),
            PathBuf::from,
        )
    });
    let path = folder.join(name);
    assert!(path.is_file(), "{} is not built", path.display());
    path
}

/// The folder of a file that `package` is built to, of this test's own pointer width.
///
/// Where `DMCE_TEST_PROGRAMS` is set, all was built before the tests began.
///
/// # Panics
///
/// If the package does not build.
#[must_use]
pub fn folder_of(package: &str) -> PathBuf {
    if env::var_os("DMCE_TEST_PROGRAMS").is_some() {
        return beside_test();
    }
    build_beside_test(&[package])
}

fn beside_test() -> PathBuf {
    let test = env::current_exe().expect("a running test has a path");
    test.ancestors()
        .find(|folder| folder.ends_with("debug") || folder.ends_with("release"))
        .expect("a test is built in a profile's folder")
        .to_path_buf()
}

fn build_beside_test(packages: &[&str]) -> PathBuf {
    let folder = beside_test();
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet"]);
    for package in packages {
        cargo.args(["-p", package]);
    }
    if folder.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(folder.parent().expect("a profile's folder is in a target's"));
    cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
    let status = cargo.status().expect("cargo runs, since it runs this test");
    assert!(status.success(), "{packages:?} do not build");
    folder
}

/// The program of `tests/src/bin/client.rs` of the other pointer width: `DMCE_TEST_OTHER_CLIENT`.
#[must_use]
pub fn other_client() -> Option<PathBuf> {
    env::var_os("DMCE_TEST_OTHER_CLIENT").map(PathBuf::from)
}

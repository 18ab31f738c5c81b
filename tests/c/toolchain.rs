//! Builds C and C++ programs against the header and the library of this workspace, as programs of
//! the running test's own width.
//!
//! `CC` and `CXX` name other compilers than `cc` and `c++`.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use dmce_tests::programs::folder_of;
use dmce_tests::{Instance, WATCHDOG};

/// What a program needs besides that links the static library, as in libdmce.pc.
const LIBS_PRIVATE: [&str; 7] = ["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl", "-lc"];

/// The name that a program which was linked with the shared library looks for.
pub const SONAME: &str = "libdmce.so.0";

/// With which library a program is linked.
#[derive(Clone, Copy, Debug)]
pub enum Linkage {
    /// `libdmce.so`.
    Shared,
    /// `libdmce.a`.
    Static,
}

/// The root of the project.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests lie in the project")
}

/// A folder for one build; it goes with the value.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let place = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("c-{}-{place}", std::process::id());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&folder).expect("cargo's folder for tests takes folders");
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left lies in cargo's folder, and goes with `cargo clean`.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The compiler for a source file, with what every test says to it.
pub fn compiler(source: &Path) -> Command {
    let plus = source.extension().is_some_and(|extension| extension == "cpp");
    let named = env::var_os("CC").unwrap_or_else(|| "cc".into());
    with_flags(if plus { plus_plus() } else { named })
}

/// The compiler for C++.
pub fn plus_plus() -> OsString {
    env::var_os("CXX").unwrap_or_else(|| "c++".into())
}

/// A compiler with what every test says to it.
pub fn with_flags(compiler: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(compiler);
    command.args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-O1", "-g", "-pthread"]);
    command.arg("-I").arg(root().join("include"));
    command
}

/// What makes the compiler build for this test's own width.
pub fn own_width() -> Option<&'static str> {
    cfg!(target_pointer_width = "32").then_some("-m32")
}

/// A program that was built. It lies in the scratch folder.
pub struct Program {
    pub path: PathBuf,
    _scratch: Scratch,
}

/// Builds `source`, a path in the project, by the language's `standard`.
pub fn build(source: &str, standard: &str, linkage: Linkage) -> Program {
    build_by(compiler(Path::new(source)), source, standard, linkage)
}

/// [`build`], by a compiler with its flags.
pub fn build_by(mut command: Command, source: &str, standard: &str, linkage: Linkage) -> Program {
    let scratch = Scratch::new();
    let source = root().join(source);
    let path = scratch.path().join(source.file_stem().expect("a source file has a name"));
    command.arg(format!("-std={standard}")).args(own_width());
    command.arg(&source).arg("-o").arg(&path);
    let library = folder_of("dmce-ffi");
    match linkage {
        Linkage::Shared => {
            for name in ["libdmce.so", SONAME] {
                symlink(library.join("libdmce.so"), scratch.path().join(name))
                    .expect("the folder is new");
            }
            command.arg("-L").arg(scratch.path()).arg("-ldmce");
            command.arg(run_path(scratch.path()));
        }
        Linkage::Static => {
            command.arg(library.join("libdmce.a")).args(LIBS_PRIVATE);
        }
    }
    succeed(&mut command);
    Program { path, _scratch: scratch }
}

/// Where a program looks for its shared libraries.
pub fn run_path(folder: &Path) -> OsString {
    let mut argument = OsString::from("-Wl,-rpath,");
    argument.push(folder);
    argument
}

/// Runs a program against an instance, under the watchdog.
pub fn run(program: &Path, instance: &Instance, arguments: &[&str]) -> Output {
    run_with(program, instance, arguments, &[])
}

/// [`run`], with environment variables.
pub fn run_with(
    program: &Path,
    instance: &Instance,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Output {
    let mut command = self::command(program, instance);
    command.args(arguments).envs(environment.iter().copied());
    command.output().expect("coreutils are there")
}

/// A program that is to be run against an instance, under the watchdog.
pub fn command(program: &Path, instance: &Instance) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &WATCHDOG.as_secs().to_string()]).arg(program);
    command.env("DMCE_SOCKET", instance.socket());
    command
}

/// Runs a command that has to succeed; gives what it printed.
pub fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    text_of_success(&format!("{command:?}"), &output)
}

/// The output of a command that has to have succeeded.
pub fn text_of_success(what: &str, output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}{err}", output.status);
    out.into_owned()
}

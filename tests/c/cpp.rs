//! `libdmce.hpp`: sessions, pointers, vectors and guards, by both compilers.

use std::ffi::OsString;
use std::fs::{self, File};
use std::process::{Command, Output};
use std::thread::{self, ScopedJoinHandle};

use dmce_tests::client::Client;
use dmce_tests::{Builder, Instance, cannot_run};

use crate::toolchain::Linkage::Shared;
use crate::toolchain::{self, Program, root, text_of_success};

/// What a program that includes the header may ask of its compiler, besides what all tests do.
/// Templates make so much of what debuggers need that it takes half of the time.
const STRICT: [&str; 3] = ["-Wconversion", "-Wshadow", "-g0"];

const CLANG: &str = "clang++";

type Environment<'a> = &'a [(&'a str, &'a str)];

/// The compiler of all tests, and clang.
fn compilers() -> Vec<OsString> {
    let mut all = vec![toolchain::plus_plus()];
    if Command::new(CLANG).arg("--version").output().is_ok() {
        all.push(CLANG.into());
    } else {
        cannot_run("clang++ is not installed");
    }
    all
}

fn build_by(compiler: &OsString, source: &str) -> Program {
    let mut command = toolchain::with_flags(compiler);
    command.args(STRICT);
    if *compiler == CLANG {
        // With optimisation the other one has built it.
        command.arg("-O0");
    }
    toolchain::build_by(command, source, "c++17", Shared)
}

fn instance() -> Instance {
    Builder::default().daemons(2).capacity("512MiB").start()
}

/// Builds a program of this folder by every compiler, and runs it in some ways, in which the
/// compilers take turns: each at least once, against one instance.
fn passes(source: &str, runs: &[(&[&str], Environment<'_>)]) {
    let compilers = compilers();
    let build = |compiler| build_by(compiler, &format!("tests/c/{source}"));
    let (programs, instance) = thread::scope(|scope| {
        let under_way: Vec<_> = compilers.iter().map(|each| scope.spawn(|| build(each))).collect();
        let instance = instance();
        let end = |one: ScopedJoinHandle<'_, Program>| one.join().expect("it is built");
        (under_way.into_iter().map(end).collect::<Vec<_>>(), instance)
    });
    for turn in 0..runs.len().max(programs.len()) {
        let by = turn % programs.len();
        let (arguments, environment) = runs[turn % runs.len()];
        let output = toolchain::run_with(&programs[by].path, &instance, arguments, environment);
        let what = format!("{source} by {}, {arguments:?}", compilers[by].display());
        text_of_success(&what, &output);
        instance.wait_empty();
    }
}

#[cfg(target_pointer_width = "64")]
#[test]
fn each_part_of_the_header_can_be_included_alone_and_twice() {
    let folder = root().join("include/dmce");
    let parts = fs::read_dir(&folder).expect("the parts are there");
    let parts: Vec<_> = parts.map(|part| part.expect("it can be listed").path()).collect();
    assert!(parts.len() > 5, "{parts:?}");
    let scratch = toolchain::Scratch::new();
    for part in parts {
        let include = format!("#include \"{}\"", part.display());
        let source = scratch.path().join("part.cpp");
        fs::write(&source, format!("{include}\n{include}\n")).expect("the folder takes files");
        let mut compiler = toolchain::with_flags(toolchain::plus_plus());
        compiler.args(STRICT).args(["-std=c++17", "-fsyntax-only"]);
        toolchain::succeed(compiler.arg(&source));
    }
}

#[test]
fn a_pointer_of_64_bits_serves_the_algorithms_of_the_standard_library() {
    passes("ptr.cpp", &[(&[], &[]), (&[], &[("DMCE_WINDOW_BUDGET", "4MiB")])]);
}

#[test]
fn a_vector_holds_what_a_standard_one_holds_whatever_is_done_to_both() {
    let windowed = [("DMCE_WINDOW_BUDGET", "4MiB")];
    // With less window than memory each step takes several times as long.
    passes("vector.cpp", &[(&["1"], &[]), (&["2"], &[]), (&["3", "100"], &windowed)]);
}

#[test]
fn guards_end_what_they_hold_and_a_resource_gives_back_what_it_took() {
    passes("guards.cpp", &[(&[], &[])]);
}

/// A daemon goes, and its memory with it.
fn lose(instance: &mut Instance, daemon: u32) {
    let prefix = format!("dmce.{}.{daemon}.", instance.name());
    for name in instance.objects().iter().filter(|name| name.starts_with(&prefix)) {
        let path = instance.object(name);
        // What is mapped ends here too.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(0)).expect("it is our own");
        fs::remove_file(path).expect("it is our own");
    }
    instance.kill_daemon(daemon);
}

#[test]
fn what_was_flushed_is_on_the_copy_that_is_left() {
    let program = build_by(&toolchain::plus_plus(), "tests/c/copies.cpp");
    for lost in [1, 2] {
        let mut instance = instance();
        let mut client = Client::start(&program.path, &instance, &[]);
        for command in ["store", "check"] {
            assert_eq!(client.ask(command), Ok(String::new()), "{command}");
        }
        lose(&mut instance, lost);
        assert_eq!(client.ask("check"), Ok(String::new()), "without daemon {lost}");
    }
}

/// `sort` on sources of this project; with fewer bytes than wanted it takes them again.
fn sort(program: &Program, instance: &Instance, arguments: &[&str]) -> Output {
    let folder = root().join("core");
    let folder = folder.to_str().expect("the project lies at a plain path");
    toolchain::run(&program.path, instance, &[arguments, &[folder]].concat())
}

#[test]
fn sort_brings_real_records_into_order_and_loses_none() {
    let program = build_by(&toolchain::plus_plus(), "examples/cpp/sort.cpp");
    let instance = instance();
    // Nine runs, the last of them shorter, and one that is the whole.
    for arguments in [["--gib", "0.0157", "--run-mib", "2"], ["--gib", "0.001", "--run-mib", "8"]] {
        let text = text_of_success("sort", &sort(&program, &instance, &arguments));
        assert!(text.contains("out of order: 0, the same records: yes"), "{text}");
        assert!(text.contains("peak address space: "), "{text}");
        instance.wait_empty();
    }
    for wrong in [&[][..], &["--gib", "much", "."], &["--other", "1", "."], &["--gib", "1"]] {
        let output = toolchain::run(&program.path, &instance, wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let output = sort(&program, &instance, &["--gib", "4"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with("sort: dmce_realloc: no space left: "), "{error}");
    instance.wait_empty();
}

//! The examples work, and the README shows them as they are.

use std::fs;
use std::process::Output;

use dmce_tests::programs::folder_of;
use dmce_tests::{Builder, Instance};

use crate::toolchain::Linkage::{Shared, Static};
use crate::toolchain::{self, Program, root, text_of_success};

const GREETING: &str = "not my memory\nhello\n";

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn hello_greets_in_c_in_cpp_and_in_rust() {
    let instance = Instance::start(1);
    for (source, standard) in [("examples/c/hello.c", "c99"), ("examples/cpp/hello.cpp", "c++17")] {
        let hello = toolchain::build(source, standard, Shared);
        // Twice: it leaves nothing behind that would be in its way.
        for _ in 0..2 {
            let output = toolchain::run(&hello.path, &instance, &[]);
            assert_eq!(text_of_success(source, &output), GREETING);
        }
    }
    let hello = folder_of("dmce-examples").join("hello");
    let output = toolchain::run(&hello, &instance, &[]);
    assert_eq!(text_of_success("hello in Rust", &output), GREETING);
    instance.wait_empty();
}

#[test]
fn the_readme_shows_the_examples_as_they_are() {
    let readme = read("README.md");
    let c = read("examples/c/hello.c");
    let (_, c) = c.split_once("*/\n").expect("it begins with a comment");
    let behind_comment = |path: &str| -> String {
        let code = read(path);
        let code = code.lines().skip_while(|line| line.starts_with("//") || line.is_empty());
        code.flat_map(|line| [line, "\n"]).collect()
    };
    let rust = behind_comment("examples/rust/hello.rs");
    let cpp = behind_comment("examples/cpp/hello.cpp");
    for (language, code) in [("c", c), ("cpp", &cpp), ("rust", &rust)] {
        let block = format!("```{language}\n{code}```\n");
        assert!(readme.contains(&block), "README.md does not show this {language}:\n{code}");
    }
}

/// `hold`, as most programs are linked.
fn hold() -> Program {
    toolchain::build("examples/c/hold.c", "c99", Static)
}

/// An instance with room for what the tests hold.
fn instance() -> Instance {
    Builder::default().daemons(2).capacity("256MiB").start()
}

/// Runs `hold` on sources of this project; with fewer bytes than wanted it takes them again.
fn run_hold(instance: &Instance, arguments: &[&str]) -> Output {
    let folder = root().join("core");
    let folder = folder.to_str().expect("the project lies at a plain path");
    toolchain::run(&hold().path, instance, &[arguments, &[folder]].concat())
}

#[test]
fn hold_finds_every_byte_of_real_files_again() {
    let instance = instance();
    let output = run_hold(&instance, &["--gib", "0.125", "--seed", "7", "--then", "echo held"]);
    let text = text_of_success("hold", &output);
    assert!(text.starts_with("held\n"), "{text}");
    assert!(text.contains("0.12 GiB in"), "{text}");
    assert!(text.contains("WRONG                    0 pieces"), "{text}");
    instance.wait_empty();
}

#[test]
fn hold_notices_bytes_that_were_changed_behind_its_back() {
    let instance = instance();
    // The objects are ours to write in a test: a run of 64 KiB lies over pieces, whatever their
    // places, once the files fill the memory many times over.
    let damage = format!(
        "for object in /dev/shm/dmce.{}.*.data-*; do head -c 65536 /dev/urandom | \
         dd of=$object bs=64K seek=64 conv=notrunc status=none; done",
        instance.name()
    );
    let output = run_hold(&instance, &["--gib", "0.0625", "--then", &damage]);
    assert_eq!(output.status.code(), Some(1));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(err.contains("WRONG: "), "{err}");
    assert!(!out.contains("WRONG                    0 pieces"), "{out}");
}

#[test]
fn hold_says_when_there_is_no_room_and_when_it_is_misused() {
    let instance = instance();
    let output = run_hold(&instance, &["--gib", "2"]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("dmce_malloc: no space left: "), "{error}");
    instance.wait_empty();

    let hold = hold();
    for wrong in [&[][..], &["--gib", "much", "."], &["--other", "1", "."], &["--gib", "1"]] {
        assert_eq!(
            toolchain::run(&hold.path, &instance, wrong).status.code(),
            Some(2),
            "{wrong:?}"
        );
    }
}

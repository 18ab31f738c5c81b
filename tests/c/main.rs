//! Programs in C and C++, built against the header and both libraries, and run with real servers.
#![forbid(unsafe_code)]

mod cpp;
mod examples;
mod install;
mod lost_copy;
mod spawn;
mod sqlite;
mod toolchain;

use std::process::Command;

use dmce_tests::{Instance, cannot_run};

use toolchain::Linkage::{Shared, Static};
use toolchain::{Linkage, Scratch};

/// Builds and runs a program of this folder; it checks for itself, and says what was wrong.
fn passes(source: &str, standard: &str, linkage: Linkage) {
    let program = toolchain::build(&format!("tests/c/{source}"), standard, linkage);
    let instance = Instance::start(2);
    let output = toolchain::run(&program.path, &instance, &[]);
    toolchain::text_of_success(source, &output);
    instance.wait_empty();
}

#[test]
fn structures_have_the_layout_of_the_interface_on_both_widths() {
    let program = toolchain::build("tests/c/layout.c", "c11", Shared);
    toolchain::succeed(&mut Command::new(&program.path));
    for width in ["-m64", "-m32"] {
        let scratch = Scratch::new();
        let probe = scratch.path().join("probe.c");
        std::fs::write(&probe, "#include <stdint.h>\n").expect("the folder takes files");
        let compile = |source| {
            let mut compiler = toolchain::compiler(source);
            compiler.args([width, "-std=c11", "-fsyntax-only"]).arg(source);
            compiler
        };
        if compile(&probe).output().is_ok_and(|output| output.status.success()) {
            toolchain::succeed(&mut compile(&toolchain::root().join("tests/c/layout.c")));
        } else {
            cannot_run(&format!("the compiler does not take {width}"));
        }
    }
}

#[test]
fn bytes_come_back_through_the_shared_library() {
    passes("basic.c", "c99", Shared);
}

#[test]
fn bytes_come_back_through_the_static_library() {
    passes("basic.c", "c99", Static);
}

#[test]
fn transparent_memory_keeps_its_contract() {
    passes("transparent.c", "c99", Shared);
    passes("transparent.c", "c11", Static);
}

#[test]
fn bytes_come_back_through_windows() {
    let program = toolchain::build("tests/c/basic.c", "c99", Shared);
    let instance = Instance::start(1);
    let budget = [("DMCE_WINDOW_BUDGET", "16MiB")];
    let output = toolchain::run_with(&program.path, &instance, &[], &budget);
    toolchain::text_of_success("basic.c", &output);
    instance.wait_empty();
}

/// As in a release build: there is no check that sends small accesses by the long way.
#[test]
fn bytes_come_back_past_doors() {
    let unchecked = ("DMCE_CHECK", "0");
    let cases = [
        ("basic.c", "c99", vec![unchecked]),
        ("basic.c", "c99", vec![unchecked, ("DMCE_WINDOW_BUDGET", "16MiB")]),
        ("contract.c", "c11", vec![unchecked]),
        ("forked.c", "c11", vec![unchecked]),
        ("regions.c", "c11", vec![unchecked]),
    ];
    for (source, standard, environment) in cases {
        let program = toolchain::build(&format!("tests/c/{source}"), standard, Shared);
        let instance = Instance::start(2);
        let output = toolchain::run_with(&program.path, &instance, &[], &environment);
        toolchain::text_of_success(source, &output);
        instance.wait_empty();
    }
}

#[test]
fn bytes_come_back_by_message_by_both_ways() {
    let program = toolchain::build("tests/c/messages.c", "c99", Shared);
    let instance = Instance::start(2);
    for route in ["direct", "broker"] {
        let route = [("DMCE_MESSAGE_ROUTE", route)];
        let output = toolchain::run_with(&program.path, &instance, &[], &route);
        toolchain::text_of_success("messages.c", &output);
        instance.wait_empty();
    }
}

#[test]
fn the_contract_holds_through_the_shared_library() {
    passes("contract.c", "c99", Shared);
}

#[test]
fn the_contract_holds_through_the_static_library() {
    passes("contract.c", "c99", Static);
}

#[test]
fn a_forked_child_is_refused_by_every_call_whatever_else_is_wrong() {
    passes("forked.c", "c99", Shared);
}

#[test]
fn the_test_of_forked_children_makes_every_call_on_a_handle() {
    const WITHOUT_HANDLE: [&str; 13] = [
        "dmce_alloc_options_init_sized",
        "dmce_attr_str",
        "dmce_attr_u16",
        "dmce_attr_u32",
        "dmce_attr_u64",
        "dmce_attrs_free",
        "dmce_last_error",
        "dmce_open",
        "dmce_options_init_sized",
        "dmce_region_options_init_sized",
        "dmce_strerror",
        "dmce_strings_free",
        "dmce_version",
    ];
    let read = |file| std::fs::read_to_string(toolchain::root().join(file)).expect("it is there");
    let (symbols, calls) = (read("ffi/symbols.txt"), read("tests/c/forked.c"));
    let on_handles = symbols.lines().filter(|symbol| !WITHOUT_HANDLE.contains(symbol));
    let missing: Vec<_> =
        on_handles.filter(|symbol| !calls.contains(&format!("each({symbol}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn two_processes_share_a_region() {
    passes("regions.c", "c99", Shared);
}

#[test]
fn the_header_is_cpp_as_well() {
    passes("header.cpp", "c++14", Shared);
    passes("header.cpp", "c++20", Static);
}

//! What `make install` puts in place is found by pkg-config, and works from there.

#![cfg(target_pointer_width = "64")]

use std::fs;
use std::process::Command;

use dmce_tests::Instance;
use dmce_tests::programs::{folder_of, program};

use crate::toolchain::{self, SONAME, Scratch, root, succeed};

/// The folders that a make around this test chose for itself are not this one's.
const OF_AN_OUTER_MAKE: [&str; 6] =
    ["MAKEFLAGS", "MAKELEVEL", "MFLAGS", "DESTDIR", "PREFIX", "LIBDIR"];

/// Installs what was built for this test as if it were a release.
fn install(scratch: &Scratch) {
    let built = scratch.path().join("built");
    fs::create_dir(&built).expect("the folder is new");
    for name in ["dmce", "dmce-broker", "dmce-daemon"] {
        fs::hard_link(program(name), built.join(name))
            .or_else(|_| fs::copy(program(name), built.join(name)).map(drop))
            .expect("programs can be copied");
    }
    for name in ["libdmce.so", "libdmce.a"] {
        fs::copy(folder_of("dmce-ffi").join(name), built.join(name))
            .expect("libraries can be copied");
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(root()).args(["install", "PREFIX=/usr"]);
    make.arg(format!("RELEASE={}", built.display()));
    make.arg(format!("DESTDIR={}", scratch.path().display()));
    for variable in OF_AN_OUTER_MAKE {
        make.env_remove(variable);
    }
    succeed(&mut make);
}

fn pkg_config(scratch: &Scratch, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_SYSROOT_DIR", scratch.path());
    command.env("PKG_CONFIG_PATH", scratch.path().join("usr/lib/pkgconfig"));
    command.args(arguments).arg("libdmce");
    succeed(&mut command).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_program_is_built_by_pkg_config_from_what_was_installed() {
    let scratch = Scratch::new();
    install(&scratch);
    let libraries = scratch.path().join("usr/lib");
    let soname = fs::read_link(libraries.join(SONAME)).expect("the soname is a link");
    assert_eq!(soname.to_str(), Some(concat!("libdmce.so.", env!("CARGO_PKG_VERSION"))));
    assert_eq!(pkg_config(&scratch, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);

    let instance = Instance::start(1);
    let hello = root().join("examples/c/hello.c");
    for statically in [false, true] {
        let program = scratch.path().join("hello");
        let mut compiler = Command::new("cc");
        compiler.arg(&hello).arg("-o").arg(&program);
        if statically {
            let flags = pkg_config(&scratch, &["--static", "--cflags", "--libs"]);
            // With both libraries in one folder the linker takes the shared one unless told.
            compiler.args(flags.iter().map(|flag| match flag.as_str() {
                "-ldmce" => "-l:libdmce.a",
                other => other,
            }));
        } else {
            compiler.args(pkg_config(&scratch, &["--cflags", "--libs"]));
            compiler.arg(toolchain::run_path(&libraries));
        }
        succeed(&mut compiler);
        let output = toolchain::run(&program, &instance, &[]);
        toolchain::text_of_success("hello", &output);
    }
    let program = scratch.path().join("hello-cpp");
    let mut compiler = Command::new("c++");
    compiler.arg("-std=c++17").arg(root().join("examples/cpp/hello.cpp")).arg("-o").arg(&program);
    compiler.args(pkg_config(&scratch, &["--cflags", "--libs"]));
    succeed(compiler.arg(toolchain::run_path(&libraries)));
    let output = toolchain::run(&program, &instance, &[]);
    toolchain::text_of_success("hello in C++", &output);
}

#[test]
fn the_shared_library_exports_the_listed_functions_says_its_soname_and_is_never_unloaded() {
    let library = folder_of("dmce-ffi").join("libdmce.so");
    let listed = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let mut exported: Vec<&str> =
        listed.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    let committed = fs::read_to_string(root().join("ffi/symbols.txt")).expect("it is committed");
    assert_eq!(exported, committed.lines().collect::<Vec<_>>());
    let dynamic = succeed(Command::new("readelf").arg("-d").arg(&library));
    assert!(dynamic.contains(&format!("soname: [{SONAME}]")), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}

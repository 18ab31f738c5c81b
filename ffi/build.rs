//! Gives the shared library its soname.
//!
//! The number is the binary interface's, not the release's: it changes only when a program that was
//! linked before could no longer run. The Makefile installs and links the library under this name.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libdmce.so.0");
}

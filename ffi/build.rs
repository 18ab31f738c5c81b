//! Gives the shared library its soname, and keeps it in the processes that have loaded it.
//!
//! The soname's number is the binary interface's, not the release's: it changes only when a program
//! that was linked before could no longer run. The Makefile installs and links the library under
//! this name.
//!
//! It cannot be unloaded: a session leaves a signal handler and destructors of threads behind,
//! which lie in it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libdmce.so.0");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

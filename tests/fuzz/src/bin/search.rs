//! Searches for inputs by coverage, with libFuzzer: `DMCE_FUZZ_TARGET` says in which target, the
//! arguments are libFuzzer's. `make fuzz` calls it.
#![no_main]

use std::sync::OnceLock;

use dmce_fuzz::{TARGETS, Target};

static TARGET: OnceLock<Target> = OnceLock::new();

fn chosen() -> Target {
    let name = std::env::var("DMCE_FUZZ_TARGET").unwrap_or_default();
    Target::named(&name).unwrap_or_else(|| {
        let names = TARGETS.map(|target| target.name).join(", ");
        eprintln!("DMCE_FUZZ_TARGET={name} is no target, these are: {names}");
        std::process::exit(2);
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (TARGET.get_or_init(chosen).run)(data));

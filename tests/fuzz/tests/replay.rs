//! The kept inputs, and mutations of them from a fixed seed: what a change must not break, in
//! seconds and without a search. `DMCE_FUZZ_RUNS` sets how many mutations each target gets.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use dmce_fuzz::mutation::Mutator;
use dmce_fuzz::{TARGETS, Target, corpus};

const RUNS: u32 = 2_000;
const SEED: u64 = 4;

/// All kept inputs of all targets together: a corpus is for clones to carry.
const CORPUS_BYTES_MAX: usize = 512 << 10;

fn named(name: &str) -> Target {
    Target::named(name).expect("the test names a target")
}

/// Runs the target; a failure shows the input and where it came from.
fn run(target: Target, input: &[u8], origin: &str) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let kept = std::env::temp_dir().join(format!("dmce-fuzz-{}-failed", target.name));
        let place = std::fs::write(&kept, input).map(|()| kept.display().to_string());
        panic!("{} fails for {origin}, {} bytes, kept in {place:?}", target.name, input.len());
    }
}

fn replay(name: &str) {
    let target = named(name);
    let kept = corpus::inputs(target).expect("the corpus is there");
    assert!(!kept.is_empty(), "{name} has no corpus");
    for (path, input) in &kept {
        run(target, input, &path.display().to_string());
    }
    let runs = std::env::var("DMCE_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok());
    let inputs: Vec<&Vec<u8>> = kept.iter().map(|(_, input)| input).collect();
    let mut mutator = Mutator::new(SEED);
    for index in 0..runs.unwrap_or(RUNS) {
        let input = mutator.next_input(&inputs, target.bytes_max);
        run(target, &input, &format!("mutation {index} of seed {SEED}"));
    }
}

macro_rules! replays {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })+

        #[test]
        fn every_target_is_replayed_and_every_corpus_is_a_targets() {
            let mut folders: Vec<String> =
                std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"))
                    .unwrap()
                    .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                    .collect();
            folders.sort();
            assert_eq!(folders, [$(stringify!($name)),+]);
            assert_eq!(TARGETS.map(|target| target.name), [$(stringify!($name)),+]);
        }
    };
}

replays! {
    addresses configuration dispatcher frames headers locks names records sessions
}

#[test]
fn the_corpus_is_small() {
    let inputs = TARGETS.into_iter().flat_map(|target| corpus::inputs(target).unwrap());
    let bytes: usize = inputs.map(|(_, input)| input.len()).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes are kept, limit {CORPUS_BYTES_MAX}");
}

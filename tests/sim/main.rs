//! Seeded histories of a whole instance around the pure dispatcher: random clients, daemons,
//! deaths.
//!
//! A failing seed is printed with its last moves.
//!
//! | variable | does |
//! |---|---|
//! | `DMCE_SIM_SEED` | replays one seed |
//! | `DMCE_SIM_SEEDS` | how many are tried |
//! | `DMCE_SIM_FROM` | the first of them, 0 if nobody says |
//! | `DMCE_SIM_HISTORY` | how many lines a failure shows of what happened |

mod asking;
mod broker;
mod check;
mod client;
mod daemon;
mod host;
mod mending;
mod moving;
mod pages;
mod random;
mod reading;
mod serving;
mod settings;
mod shell;
mod trouble;
mod truth;
mod view;
mod world;
mod writing;

use std::collections::BTreeMap;
use std::env;
use std::panic::{self, AssertUnwindSafe};

use world::{Checked, World};

/// Seeds that are tried if nobody says how many.
const SEEDS: u64 = 150;

/// Moves of one history before it comes to rest.
const MOVES: u64 = 1500;

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// Runs one history. Returns what it ended with.
fn run(seed: u64) -> World {
    let mut world = World::new(seed);
    world.remember = number("DMCE_SIM_HISTORY").unwrap_or(world.remember);
    let history = panic::catch_unwind(AssertUnwindSafe(|| live(&mut world)));
    let error = match history {
        Ok(Ok(())) => return world,
        Ok(Err(error)) => error,
        Err(_) => "it panicked".to_owned(),
    };
    for line in &world.history {
        eprintln!("{line}");
    }
    panic!("{error}\nreplay with DMCE_SIM_SEED={seed}");
}

fn live(world: &mut World) -> Checked {
    world.start_broker()?;
    for _ in 0..MOVES {
        world.step()?;
    }
    world.rest()
}

#[test]
fn no_history_breaks_a_promise() {
    if let Some(seed) = number("DMCE_SIM_SEED") {
        run(seed);
        return;
    }
    let first = number("DMCE_SIM_FROM").unwrap_or(0);
    let seeds = number("DMCE_SIM_SEEDS").unwrap_or(SEEDS);
    let mut counts = BTreeMap::<&str, u64>::new();
    for seed in first..first + seeds {
        for (what, count) in run(seed).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{counts:?}");
    let often = [writing::WRITTEN, writing::WRITTEN_PLAINLY, reading::READ, mending::REPAIRED];
    let rare = [
        writing::WENT_ON,
        writing::GIVEN_UP,
        mending::LEVEL,
        mending::NOT_REPAIRED,
        mending::CUT_SHORT,
        world::SYNCED,
        moving::MOVED,
        moving::EVENED,
        moving::ASKED_ANEW,
        serving::SERVED,
    ];
    let few = if seeds < SEEDS { &[][..] } else { &often };
    let all = if seeds < 20 * SEEDS { few.to_vec() } else { [few, &rare].concat() };
    assert!(all.iter().all(|what| counts.contains_key(what)), "{counts:?}");
}

/// Otherwise no seed would replay.
#[test]
fn the_same_seed_gives_the_same_history() {
    for seed in 0..5 {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first.history, second.history);
        assert_eq!(first.elapsed(), second.elapsed());
    }
}

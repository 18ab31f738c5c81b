//! Campaigns: clients, daemons and the broker are killed and stopped at random, and with
//! `DMCE_TORTURE_COPIES` (1, then 2) from two on daemons lose what they hold, for
//! `DMCE_TORTURE_SECONDS` (60) together.

use std::env;
use std::time::Duration;

use dmce_tests::torture::{Plan, run};

const SECONDS: u64 = 60;

/// Copies of each region, in one campaign after the other, if `DMCE_TORTURE_COPIES` does not say.
const COPIES: [u64; 2] = [1, 2];

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")))
}

#[test]
fn what_was_acknowledged_is_there_whoever_is_killed_or_stopped_and_whatever_is_lost() {
    let seed = number("DMCE_TEST_SEED").unwrap_or(1);
    let seconds = number("DMCE_TORTURE_SECONDS").unwrap_or(SECONDS);
    let all = number("DMCE_TORTURE_COPIES").map_or(COPIES.to_vec(), |copies| vec![copies]);
    let length = Duration::from_secs(seconds) / u32::try_from(all.len()).expect("few");
    for copies in all {
        let copies = u32::try_from(copies).expect("a block has few copies");
        let report = run(Plan { seed, length, daemons: 3, copies });
        println!("seed {seed}, copies {copies}\n{report}");
        assert!(report.misfortunes() > 0 && report.acknowledged > 0, "nothing has happened");
        assert!(copies == 1 || report.compared > 0, "no copies were compared");
    }
}

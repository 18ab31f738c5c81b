//! One process of 32 bits and one of 64, on the same live memory.

use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, cannot_run};

#[test]
fn a_32_bit_and_a_64_bit_process_share_a_region() {
    let Some(other) = other_client() else {
        cannot_run("DMCE_TEST_OTHER_CLIENT names no test client of the other width");
        return;
    };
    let instance = Instance::builder().capacity("512MiB").start();
    let mut here = Client::open(&instance);
    let mut there = Client::open_with(&other, &instance, &[]);
    here.ask("create vol shared 314572800 0600").unwrap();
    here.ask("ropen vol shared rw").unwrap();
    there.ask("ropen vol shared rw").unwrap();
    for (round, pointer) in
        [0_u64, 4095, 1 << 20, (200 << 20) + 17, 314_572_800 - 70_000].into_iter().enumerate()
    {
        here.ask(format!("rfill {pointer} {round} 70000")).unwrap();
        there.ask(format!("rcheck {pointer} {round} 70000")).unwrap();
        there.ask(format!("rfill {pointer} {} 70000", round + 100)).unwrap();
        here.ask(format!("rcheck {pointer} {} 70000", round + 100)).unwrap();
    }
    // An address means the same byte in both.
    let addr = here.number("raddr 4095").unwrap();
    assert_eq!(there.number("raddr 4095"), Ok(addr));
    there.ask(format!("check {addr} 101 70000")).unwrap();
}

//! One process of 32 bits and one of 64, on the same live memory.

use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, cannot_run};
use libdmce::RegionOptions;

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

/// As much as goes in a row into what a 32-bit process can address.
#[test]
fn a_process_of_each_width_has_transparent_memory_and_a_common_region_at_one_address() {
    const BASE: u64 = 0x2000_0000;
    const REGION: u64 = 50 << 20;
    const MOST: u64 = 1 << 30;
    let Some(other) = other_client() else {
        cannot_run("DMCE_TEST_OTHER_CLIENT names no test client of the other width");
        return;
    };
    let builder = Instance::builder().daemons(3).capacity("768MiB").layout("16/22/26");
    let instance = builder.start();
    let options = RegionOptions { base_pointer: BASE, ..RegionOptions::default() };
    let session = instance.open();
    session.region_create("vol", "based", REGION, &options).unwrap();
    let mut clients =
        [Client::open(&instance), Client::open_with(&other, &instance, &[])].map(|mut client| {
            client.ask("ropen vol based rw").unwrap();
            assert_eq!(client.number("rmap rw"), Ok(BASE));
            client
        });
    for round in 0..4_u64 {
        let at = BASE + round * (REGION / 4) + 17;
        let [one, two] = &mut clients;
        let (writer, reader) = if round.is_multiple_of(2) { (one, two) } else { (two, one) };
        writer.ask(format!("pfill {at} {round} 70000")).unwrap();
        reader.ask(format!("pcheck {at} {round} 70000")).unwrap();
        assert_eq!(writer.ask(format!("addrof {at}")), reader.ask(format!("addrof {at}")));
    }
    for mut client in clients {
        let pointer = client.number(format!("vmalloc {MOST}")).unwrap();
        for offset in [0, MOST / 2 - 35_000, MOST - 70_000] {
            client.ask(format!("pfill {} {offset} 70000", pointer + offset)).unwrap();
            let addr = client.number(format!("addrof {}", pointer + offset)).unwrap();
            client.ask(format!("check {addr} {offset} 70000")).unwrap();
            assert_eq!(client.number(format!("ptrof {addr}")), Ok(pointer + offset));
        }
        client.ask(format!("vfree {pointer}")).unwrap();
    }
}

//! Everything dies, in any order, and comes back.

use dmce_abi::wire::admin::Health;
use dmce_tests::churn::pattern;
use dmce_tests::{Client, Instance, Seeded};
use libdmce::{Mirror, Prot, RegionOptions};

#[test]
fn regions_and_their_bytes_are_there_after_everything_was_killed() {
    let mut instance = Instance::builder().daemons(3).capacity("64MiB").start();
    let mut random = Seeded::new(3);
    for round in 0..5_u64 {
        let mut client = Client::open(&instance);
        client.ask("hold 4").unwrap();
        let name = format!("round-{round}");
        client.ask(format!("create vol {name} 5000000 0640")).unwrap();
        client.ask(format!("ropen vol {name} rw")).unwrap();
        client.ask(format!("rfill 0 {round} 5000000")).unwrap();
        match random.below(3) {
            0 => {
                client.kill();
                instance.kill_all();
            }
            1 => {
                instance.kill_all();
                client.kill();
            }
            _ => {
                instance.kill_daemon(2);
                client.kill();
                instance.kill_all();
            }
        }
        instance.start_all();
        let session = instance.open();
        let regions = session.region_list("vol").unwrap();
        assert_eq!(regions.len() as u64, round + 1);
        for (content, name) in regions.iter().enumerate() {
            let region = session.region_open("vol", name, Prot::READ).unwrap();
            let expected = pattern(content as u64, 5_000_000);
            let mut found = vec![0; 5_000_000];
            region.read(0, &mut found, Mirror::Any).unwrap();
            assert!(found == expected, "{name} after round {round}");
            region.close().unwrap();
        }
        assert_eq!(instance.status().state, Health::Ok);
    }
}

#[test]
fn a_live_session_finds_its_memory_again_after_all_servers_died() {
    let mut instance = Instance::builder().daemons(2).start();
    let session = instance.open();
    let addr = session.malloc(10 << 20).unwrap();
    session.fill(addr, 0x5a, 10 << 20).unwrap();
    session.region_create("vol", "mine", 100_000, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "mine", Prot::READ_WRITE).unwrap();
    for _ in 0..3 {
        instance.kill_all();
        region.write(50_000, b"while nobody serves", Mirror::Both).unwrap();
        instance.start_all();
        let same = session.compare(addr, &vec![0x5a; 10 << 20]).unwrap();
        assert_eq!(same, std::cmp::Ordering::Equal);
        let more = session.malloc(30 << 20).unwrap();
        session.fill(more, 1, 30 << 20).unwrap();
        session.free(more).unwrap();
    }
    session.close().unwrap();
    let found = instance.open().region_list("vol").unwrap();
    assert_eq!(found, ["mine"]);
}

//! A broker that comes back while a daemon lives and says nothing.

use dmce_abi::Status;
use dmce_abi::wire::admin::{BlockRow, DaemonState, Health};
use dmce_tests::client::{Signal, send, stop};
use dmce_tests::{Client, Instance, wait_until};
use libdmce::{Mirror, Options, Prot, Region, RegionOptions, Session};

const CONFIG: &str = "broker.sense_ms = 50\nbroker.suspect_ms = 300\n";

/// Regions, so that there is a block of each on both daemons.
const REGIONS: u64 = 4;

fn check_regions(client: &mut Client) {
    for number in 0..REGIONS {
        client.ask(format!("ropen vol r{number} rw")).expect("it opens");
        client.ask(format!("rcheck 0 {number} 1000000")).expect("its bytes are there");
        client.ask("rclose").expect("it closes");
    }
}

#[test]
fn a_stopped_daemon_holds_up_nobody_and_its_blocks_are_all_there_when_it_goes_on() {
    let mut instance = Instance::builder().daemons(2).config(CONFIG).start();
    let mut keeper = Client::open(&instance);
    for number in 0..REGIONS {
        keeper.ask(format!("create vol r{number} 1000000 0600")).unwrap();
        keeper.ask(format!("ropen vol r{number} rw")).unwrap();
        keeper.ask(format!("rfill 0 {number} 1000000")).unwrap();
        keeper.ask("rclose").unwrap();
    }
    let kept: Vec<u64> =
        (0..4).map(|_| keeper.number("malloc 20000000").expect("there is room")).collect();
    for (seed, addr) in kept.iter().enumerate() {
        keeper.ask(format!("fill {addr} {seed} 20000000")).unwrap();
    }
    let blocks = instance.blocks();
    let on_first = |row: &&BlockRow| row.copies.iter().any(|copy| copy.daemon == 1);
    assert!(blocks.iter().filter(on_first).count() > 1, "daemon 1 has a part of all");

    let daemon = instance.daemon_pid(1).unwrap();
    stop(daemon);
    instance.kill_broker();
    instance.start_broker();

    let mut newcomer = Client::open(&instance);
    let addr = newcomer.number("malloc 20000000").unwrap();
    newcomer.ask(format!("fill {addr} 77 20000000")).unwrap();
    newcomer.ask(format!("check {addr} 77 20000000")).unwrap();
    newcomer.ask(format!("free {addr}")).unwrap();
    newcomer.ask("create vol new 100000 0600").unwrap();
    assert_eq!(instance.daemons()[0].state, DaemonState::Suspected);
    assert_eq!(instance.status().state, Health::Degraded);
    // What lies on it is known, and there: for who had it, and for who comes.
    check_regions(&mut newcomer);
    for (seed, addr) in kept.iter().enumerate() {
        keeper.ask(format!("check {addr} {seed} 20000000")).unwrap();
    }
    let fresh = keeper.number("malloc 30000000").unwrap();
    keeper.ask(format!("fill {fresh} 9 30000000")).unwrap();
    keeper.ask(format!("free {}", kept[0])).unwrap();

    send(daemon, Signal::CONT);
    instance.wait_serving();
    let now = instance.blocks();
    let old = |row: &&BlockRow| now.contains(row);
    assert!(blocks.iter().filter(on_first).filter(old).count() > 1);
    assert_eq!(instance.status().state, Health::Ok);
    for (seed, addr) in kept.iter().enumerate().skip(1) {
        keeper.ask(format!("check {addr} {seed} 20000000")).unwrap();
    }
    keeper.ask(format!("check {fresh} 9 30000000")).unwrap();
    check_regions(&mut keeper);
    for number in 0..REGIONS {
        newcomer.ask(format!("delete vol r{number}")).unwrap();
    }
    newcomer.ask("delete vol new").unwrap();
    keeper.kill();
    newcomer.kill();
    instance.wait_empty();
}

/// What the broker before it asked for last waits in its socket.
#[test]
fn a_daemon_that_goes_on_with_requests_of_a_dead_broker_does_no_harm() {
    let mut instance = Instance::builder().daemons(2).config(CONFIG).start();
    let mut client = Client::open(&instance);
    let kept = client.number("malloc 30000000").unwrap();
    client.ask(format!("fill {kept} 1 30000000")).unwrap();
    for round in 0..8 {
        let daemon = 1 + round % 2;
        let pid = instance.daemon_pid(daemon).unwrap();
        stop(pid);
        let mut others: Vec<Client> = (0..4).map(|_| Client::open(&instance)).collect();
        for (number, other) in others.iter_mut().enumerate() {
            other.tell(format!("create vol r{round}-{number} 100000 0600"));
        }
        client.tell("malloc 30000000");
        instance.kill_broker();
        instance.start_broker();
        let addr: u64 = client.answer().unwrap().parse().unwrap();
        client.ask(format!("fill {addr} {round} 30000000")).unwrap();
        for other in &mut others {
            other.answer().unwrap();
        }
        send(pid, Signal::CONT);
        instance.wait_serving();
        client.ask(format!("check {addr} {round} 30000000")).unwrap();
        client.ask(format!("free {addr}")).unwrap();
        for (number, other) in others.iter_mut().enumerate() {
            other.ask(format!("delete vol r{round}-{number}")).unwrap();
        }
        assert_eq!(instance.status().state, Health::Ok);
    }
    client.ask(format!("check {kept} 1 30000000")).unwrap();
    client.kill();
    wait_until("all sessions have ended", || instance.status().sessions == 0);
    instance.wait_empty();
}

/// The second broker is dead before it hears what the daemon did for the first.
#[test]
fn what_a_dead_broker_asked_for_takes_nothing_from_what_the_next_one_granted() {
    let mut instance = Instance::builder().daemons(2).config(CONFIG).start();
    let mut client = Client::open(&instance);
    for round in 0..6 {
        let pid = instance.daemon_pid(1 + round % 2).unwrap();
        stop(pid);
        let mut other = Client::open(&instance);
        other.tell(format!("create vol r{round} 100000 0600"));
        client.tell("malloc 30000000");
        instance.kill_broker();
        instance.start_broker();
        let addr: u64 = client.answer().unwrap().parse().unwrap();
        client.ask(format!("fill {addr} {round} 30000000")).unwrap();
        other.answer().unwrap();
        other.ask(format!("ropen vol r{round} rw")).unwrap();
        other.ask(format!("rfill 0 {round} 100000")).unwrap();
        send(pid, Signal::CONT);
        instance.kill_broker();
        instance.start_broker();
        instance.wait_serving();
        client.ask(format!("check {addr} {round} 30000000")).unwrap();
        other.ask(format!("rcheck 0 {round} 100000")).unwrap();
        other.ask("rclose").unwrap();
        other.ask(format!("ropen vol r{round} rw")).unwrap();
        other.ask(format!("rcheck 0 {round} 100000")).unwrap();
        other.ask("rclose").unwrap();
        other.ask(format!("delete vol r{round}")).unwrap();
        client.ask(format!("free {addr}")).unwrap();
        assert_eq!(instance.status().state, Health::Ok);
    }
    client.kill();
    wait_until("all sessions have ended", || instance.status().sessions == 0);
    instance.wait_empty();
}

fn status<T>(done: Result<T, libdmce::Error>) -> Status {
    done.err().expect("it fails").status()
}

fn open(session: &Session) -> Region {
    session.region_open("vol", "r", Prot::READ_WRITE).expect("the region is there")
}

/// A broker begins a deletion, and dies before the daemon has heard of it. Those handles of the
/// session that were open at that moment are not open for the next broker.
#[test]
fn a_region_whose_deletion_died_with_the_broker_is_there_again_and_its_handles_are_not() {
    for no_thread in [false, true] {
        let config = "broker.sense_ms = 50\nbroker.suspect_ms = 60000\n";
        let mut instance = Instance::builder().daemons(1).config(config).start();
        let options = Options { timeout_ms: 2_000, no_thread, ..instance.options() };
        let session = Session::open(&options).unwrap();
        session.region_create("vol", "r", 1 << 20, &RegionOptions::default()).unwrap();
        let old = [open(&session), open(&session)];
        old[0].write(0, b"kept", Mirror::Both).unwrap();
        let addr = old[0].addr(0).unwrap();

        let daemon = instance.daemon_pid(1).unwrap();
        stop(daemon);
        assert_eq!(status(session.region_delete("vol", "r")), Status::Unavailable);
        instance.kill_broker();
        send(daemon, Signal::CONT);
        instance.start_broker();
        instance.wait_serving();

        let new = open(&session);
        for gone in &old {
            assert_eq!(status(gone.info()), Status::Closed);
            assert_eq!(status(gone.read(0, &mut [0; 4], Mirror::Any)), Status::Closed);
            assert_eq!(status(gone.write(0, b"lost", Mirror::Both)), Status::Closed);
            assert_eq!(status(gone.close()), Status::Closed);
        }
        let mut found = [0; 4];
        new.read(0, &mut found, Mirror::Any).unwrap();
        assert_eq!(&found, b"kept");
        let mut other = Client::open(&instance);
        assert_eq!(other.ask("delete vol r"), Err(Status::Busy));
        new.close().unwrap();
        assert_eq!(status(session.read(addr, &mut found)), Status::Address);
        other.ask("delete vol r").unwrap();
        other.kill();
        session.close().unwrap();
        instance.wait_empty();
    }
}

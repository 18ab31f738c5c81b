//! Clients that die or stop.

use dmce_abi::wire::admin::Health;
use dmce_tests::churn::VOLUME;
use dmce_tests::client::{Signal, own_client};
use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, Seeded, wait_until};

const KILLS: u64 = 1_000;
const AT_A_TIME: usize = 4;

/// The moment is drawn: before the session is open, in the middle of it, or well into the work; and
/// so are the width of the client and how it reaches memory. Whatever it was doing, nothing of it
/// is left but regions, and what others hold is untouched.
#[test]
fn frees_all_of_a_client_killed_at_any_point_a_thousand_times() {
    // Small blocks, so that a span is soon made.
    let builder = Instance::builder().daemons(3).capacity("512MiB").layout("16/24/24");
    let instance = builder.start();
    let mut witness = Client::open(&instance);
    let addr = witness.number("malloc 3000000").unwrap();
    witness.ask(format!("fill {addr} 42 3000000")).unwrap();
    let before = instance.status();

    let mut random = Seeded::new(0x6b69_6c6c);
    let mut alive: Vec<Client> = Vec::new();
    let programs: Vec<_> = other_client().into_iter().chain([own_client()]).collect();
    for kill in 0..KILLS {
        let program = &programs[usize::try_from(kill).unwrap() % programs.len()];
        let windows: &[_] = &[("DMCE_WINDOW_BUDGET", "8388608")];
        let windows = if random.below(2) == 0 { windows } else { &[] };
        let mut client = Client::start(program, &instance, windows);
        client.tell("open");
        let moment = random.below(4);
        if moment > 0 {
            client.answer().unwrap();
            client.tell(format!("churn {kill}"));
        }
        if moment > 1 {
            std::thread::sleep(std::time::Duration::from_micros(random.below(30_000)));
        }
        alive.push(client);
        if alive.len() == AT_A_TIME {
            let place = random.below(AT_A_TIME as u64);
            end(alive.swap_remove(usize::try_from(place).unwrap()));
        }
        if kill % 250 == 0 {
            witness.ask(format!("check {addr} 42 3000000")).unwrap();
        }
    }
    alive.into_iter().for_each(end);

    delete_all(&instance, VOLUME);
    wait_until("all that the dead held is back", || {
        let now = instance.status();
        (now.sessions, now.blocks, now.committed)
            == (before.sessions, before.blocks, before.committed)
    });
    assert_eq!(instance.status().state, Health::Ok);
    witness.ask(format!("check {addr} 42 3000000")).unwrap();
    witness.kill();
    instance.wait_empty();
}

/// Deletes all regions of a volume, as soon as those who died have closed them.
pub fn delete_all(instance: &Instance, volume: &str) {
    let mut client = Client::open(instance);
    wait_until("the dead have closed their regions", || {
        let names = client.ask(format!("list {volume}")).expect("the volume is listed");
        let mut names = names.split(' ').filter(|name| !name.is_empty());
        names.all(|name| client.ask(format!("delete {volume} {name}")).is_ok())
    });
}

/// Kills a client. If something was wrong, it has said so.
fn end(client: Client) {
    let words = client.last_words();
    assert!(words.lines().all(|line| line.trim_end() == "ok"), "{words}");
}

#[test]
fn a_stopped_client_hinders_nobody() {
    let instance = Instance::builder().daemons(2).capacity("256MiB").start();
    let mut stopped = Client::open(&instance);
    stopped.ask("create vol shared 65536 0600").unwrap();
    stopped.ask("ropen vol shared rw").unwrap();
    stopped.tell("churn 1");
    stopped.signal(Signal::STOP);

    let mut working = Client::open(&instance);
    working.ask("ropen vol shared rw").unwrap();
    for round in 0..50 {
        working.ask(format!("rfill 0 {round} 65536")).unwrap();
        working.ask(format!("rcheck 0 {round} 65536")).unwrap();
        let addr = working.number("malloc 3000000").unwrap();
        working.ask(format!("fill {addr} {round} 3000000")).unwrap();
        working.ask(format!("free {addr}")).unwrap();
    }
    working.ask("close").unwrap();
    assert_eq!(instance.status().sessions, 1);

    // It goes on as if nothing had been, and dies like any other.
    stopped.signal(Signal::CONT);
    stopped.signal(Signal::STOP);
    stopped.kill();
    working.ask("open").unwrap();
    wait_until("the dead one's region is closed", || working.ask("delete vol shared").is_ok());
    working.kill();
    instance.wait_empty();
}

/// Long enough for each to have done everything many times.
#[test]
fn working_clients_of_both_widths_and_ways_find_nothing_wrong() {
    let builder = Instance::builder().daemons(3).capacity("512MiB").layout("16/24/24");
    let instance = builder.start();
    let programs: Vec<_> = other_client().into_iter().chain([own_client()]).collect();
    let ways: [&[_]; 2] = [&[], &[("DMCE_WINDOW_BUDGET", "8388608")]];
    let mut clients = Vec::new();
    for (seed, (program, way)) in (0..).zip(programs.iter().flat_map(|p| ways.map(|way| (p, way))))
    {
        let mut client = Client::open_with(program, &instance, way);
        client.tell(format!("churn {seed} 3000"));
        clients.push(client);
    }
    for client in &mut clients {
        client.answer().unwrap();
    }
    clients.into_iter().for_each(end);
}

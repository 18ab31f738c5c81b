//! Clients that die or stop.

use dmce_abi::wire::admin::Health;
use dmce_tests::client::{Signal, own_client};
use dmce_tests::{Client, Instance, Seeded, wait_until};

const KILLS: u64 = 1_000;
const AT_A_TIME: usize = 4;

/// The moment is drawn: before the session is open, in the middle of it, or well into the work.
/// Whatever the client was doing, nothing of it is left, and what others hold is untouched.
#[test]
fn frees_all_of_a_client_killed_at_any_point_a_thousand_times() {
    let instance = Instance::builder().daemons(2).capacity("1GiB").start();
    let mut witness = Client::open(&instance);
    let addr = witness.number("malloc 3000000").unwrap();
    witness.ask(format!("fill {addr} 42 3000000")).unwrap();
    let before = instance.status();

    let mut random = Seeded::new(0x6b69_6c6c);
    let mut alive: Vec<Client> = Vec::new();
    let program = own_client();
    for kill in 0..KILLS {
        let mut client = Client::start(&program, &instance, &[]);
        client.tell("open");
        let moment = random.below(4);
        if moment > 0 {
            client.answer().unwrap();
            client.tell(format!("churn {kill}"));
        }
        if moment > 1 {
            std::thread::sleep(std::time::Duration::from_micros(random.below(6_000)));
        }
        alive.push(client);
        if alive.len() == AT_A_TIME {
            let place = random.below(AT_A_TIME as u64);
            alive.swap_remove(usize::try_from(place).unwrap()).kill();
        }
        if kill % 250 == 0 {
            witness.ask(format!("check {addr} 42 3000000")).unwrap();
        }
    }
    drop(alive);

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

//! Words that processes change atomically and hand to each other.

use std::path::PathBuf;

use dmce_tests::client::own_client;
use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, cannot_run};

/// Clients with a region of 64 MiB open: of this width and of the other if there is one, with
/// blocks mapped whole and behind windows. And the address of a word in it.
fn sharers(instance: &Instance) -> (Vec<Client>, u64) {
    let mut programs: Vec<PathBuf> = vec![own_client()];
    match other_client() {
        Some(other) => programs.push(other),
        None => cannot_run("DMCE_TEST_OTHER_CLIENT names no test client of the other width"),
    }
    let mut clients: Vec<Client> = programs
        .iter()
        .flat_map(|program| {
            [&[][..], &[("DMCE_WINDOW_BUDGET", "4MiB")]]
                .map(|env| Client::open_with(program, instance, env))
        })
        .collect();
    clients[0].ask("create vol words 67108864 0600").unwrap();
    for client in &mut clients {
        client.ask("ropen vol words rw").unwrap();
    }
    let word = clients[0].number("raddr 33554424").unwrap();
    (clients, word)
}

#[test]
fn processes_of_both_widths_count_together_and_lose_nothing() {
    const TIMES: u64 = 20_000;
    let instance = Instance::builder().capacity("256MiB").start();
    let (mut clients, word) = sharers(&instance);
    // The halves of the word are passed on the way.
    let start = u64::from(u32::MAX) - TIMES;
    let (last, others) = clients.split_last_mut().unwrap();
    assert_eq!(last.number(format!("raise {word} {start}")), Ok(0));
    for (place, client) in others.iter_mut().enumerate() {
        let way = if place % 2 == 0 { "cas" } else { "add" };
        client.tell(format!("count {word} {TIMES} {way}"));
    }
    last.ask(format!("count {word} {TIMES} cas")).unwrap();
    for client in others.iter_mut() {
        client.answer().unwrap();
    }
    let count = clients.len() as u64;
    assert_eq!(clients[0].number(format!("raise {word} 0")), Ok(start + count * TIMES));
}

#[test]
fn processes_of_both_widths_hand_a_turn_to_each_other() {
    const TIMES: u64 = 500;
    let instance = Instance::builder().capacity("256MiB").start();
    let (mut clients, word) = sharers(&instance);
    let count = clients.len() as u64;
    for (first, client) in clients.iter_mut().enumerate() {
        client.tell(format!("turns {word} {first} {count} {TIMES}"));
    }
    for client in &mut clients {
        client.answer().unwrap();
    }
    assert_eq!(clients[0].number(format!("raise {word} 0")), Ok(count * TIMES));
}

#[test]
fn a_process_that_dies_while_it_waits_hinders_nobody() {
    let instance = Instance::builder().capacity("256MiB").start();
    let (mut clients, word) = sharers(&instance);
    let mut dying = clients.pop().unwrap();
    dying.tell(format!("turns {word} 1 1 1"));
    drop(dying);
    let count = clients.len() as u64;
    for (first, client) in clients.iter_mut().enumerate() {
        client.tell(format!("turns {word} {first} {count} 50"));
    }
    for client in &mut clients {
        client.answer().unwrap();
    }
}

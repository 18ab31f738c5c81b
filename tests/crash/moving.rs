//! Copies move under clients of all kinds, and whoever dies over that.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use dmce_abi::wire::admin::{AdminReply, AdminRequest, BlockRow, CopyState};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_tests::checker::wait_sound;
use dmce_tests::client::{MESSAGE_PATH, own_client};
use dmce_tests::programs::other_client;
use dmce_tests::{Client, Instance, wait_for, wait_until};
use libdmce::connection::{Connection, ConnectionError};
use libdmce::{Mirror, Prot, Region, RegionOptions, Session};

const BYTES: u64 = 8 << 20;

pub fn start() -> Instance {
    Instance::builder().daemons(3).sync_blocks(2).start()
}

pub fn region(instance: &Instance, copies: u32) -> (Session, Region) {
    let session = instance.open();
    let options = RegionOptions { copies, ..RegionOptions::default() };
    session.region_create("vol", "moves", BYTES, &options).unwrap();
    let region = session.region_open("vol", "moves", Prot::READ_WRITE).unwrap();
    (session, region)
}

pub fn good(row: &BlockRow) -> Vec<u32> {
    let good = row.copies.iter().filter(|copy| copy.state == CopyState::Good);
    good.map(|copy| copy.daemon).collect()
}

/// Has the primary of the only block move to the daemon that comes next and has no copy. `false` if
/// the broker has died over it.
fn move_on(instance: &Instance) -> bool {
    let Some(row) = instance.try_blocks().map(|mut rows| rows.remove(0)) else { return false };
    let has = good(&row);
    let next = (0..3).map(|step| (has[0] + step) % 3 + 1).find(|daemon| !has.contains(daemon));
    let to = next.expect("three daemons are more than copies");
    let request = AdminRequest::Migrate { block: row.block, from: 0, to };
    let asked = Connection::connect(instance.socket())
        .and_then(|mut broker: Connection| broker.request(&ClientRequest::Admin(request)));
    match asked {
        Ok((ClientReply::Admin(AdminReply::Moved { .. }), _)) => true,
        Ok((other, _)) => panic!("{other:?}"),
        Err(ConnectionError::Refused(refusal)) => panic!("{}", refusal.text),
        Err(_) => false,
    }
}

/// Clients that raise a word, mapped in both widths and by message; and how often in all.
pub fn raisers(instance: &Instance, region: &Region) -> (Vec<Client>, u64) {
    raisers_by(instance, region, 3)
}

/// So many of these: without the last, none asks a daemon, whose death it would be told of.
pub fn raisers_by(instance: &Instance, region: &Region, count: usize) -> (Vec<Client>, u64) {
    const TIMES: u64 = 20_000;
    let addr = region.addr(4096).unwrap().to_raw();
    let other = other_client().unwrap_or_else(own_client);
    let by_message: &[_] = &[(MESSAGE_PATH, "1")];
    let kinds = [(own_client(), &[][..]), (other, &[][..]), (own_client(), by_message)];
    let mut clients: Vec<Client> = kinds
        .iter()
        .take(count)
        .map(|(program, environment)| Client::open_with(program, instance, environment))
        .collect();
    let mut asked = 0;
    for (client, way) in clients.iter_mut().zip(["add", "cas", "add"]) {
        client.ask("ropen vol moves rw").unwrap();
        let times = if way == "cas" { TIMES / 4 } else { TIMES };
        client.tell(format!("count {addr} {times} {way}"));
        asked += times;
    }
    (clients, asked)
}

/// A word is raised without a lock and under one.
#[test]
fn no_word_that_is_raised_while_its_block_moves_is_raised_in_vain() {
    for copies in [1, 2] {
        let instance = start();
        let (session, region) = region(&instance, copies);
        let (mut clients, asked) = raisers(&instance, &region);
        for _ in 0..40 {
            assert!(move_on(&instance));
        }
        for client in &mut clients {
            client.answer().unwrap();
        }
        assert_eq!(session.add64(region.addr(4096).unwrap(), 0).unwrap(), asked, "{copies}");
    }
}

/// Nobody asks for a move: the daemons differ, and the broker that finds it so may be a later one.
#[test]
fn no_word_is_raised_in_vain_while_blocks_move_by_themselves() {
    const EVENS: &str = "[broker]\nrebalance_percent = 2\nusage_ms = 100\n";
    for dies in [false, true] {
        let builder = Instance::builder().daemons(2).sync_blocks(2).config(EVENS);
        let mut instance = builder.start();
        let drain = |instance: &Instance, is_draining| {
            let request = AdminRequest::Drain { daemon: 2, is_draining };
            assert_eq!(instance.ask(request), Some(AdminReply::Draining { is_draining }));
        };
        drain(&instance, true);
        let (session, region) = region(&instance, 1);
        for name in ["a", "b", "c"] {
            session.region_create("vol", name, BYTES, &RegionOptions::default()).unwrap();
        }
        let (mut clients, asked) = raisers(&instance, &region);
        drain(&instance, false);
        if dies {
            instance.kill_broker();
            instance.start_broker();
        }
        let on = |daemon| {
            let rows = instance.blocks();
            rows.iter().filter(|row| good(row) == [daemon]).count()
        };
        wait_until("each has two", || (on(1), on(2)) == (2, 2));
        for client in &mut clients {
            client.answer().unwrap();
        }
        assert_eq!(session.add64(region.addr(4096).unwrap(), 0).unwrap(), asked);
        assert_eq!((on(1), on(2)), (2, 2));
    }
}

/// What is written to one half alone is in the copy that has its place.
#[test]
fn halves_that_differ_do_so_where_they_have_moved_to() {
    let instance = start();
    let (_session, region) = region(&instance, 2);
    region.write(0, &vec![1; 200_000], Mirror::Both).unwrap();
    region.write(5000, b"primary alone", Mirror::Primary).unwrap();
    region.write(100_000, b"mirror alone", Mirror::Mirror).unwrap();
    let found = |at, half| {
        let mut found = [0; 12];
        region.read(at, &mut found, half).unwrap();
        found
    };
    for _ in 0..6 {
        assert!(move_on(&instance));
        assert_eq!(found(5000, Mirror::Primary), *b"primary alon");
        assert_eq!(found(5000, Mirror::Mirror), [1; 12]);
        assert_eq!(found(100_000, Mirror::Mirror), *b"mirror alone");
        assert_eq!(found(100_000, Mirror::Primary), [1; 12]);
    }
}

/// What a pointer has stored is where the block is, when it is given back.
#[test]
fn a_pointer_holds_its_block_until_it_is_given_back_or_its_process_is_dead() {
    for dies in [false, true] {
        let instance = start();
        let (_session, region) = region(&instance, 1);
        let mut client = Client::open(&instance);
        client.ask("ropen vol moves rw").unwrap();
        let addr = client.number("raddr 8192").unwrap();
        let pointer = client.number(format!("map {addr} 4096 rw")).unwrap();
        let before = good(&instance.blocks()[0]);
        let moved = std::thread::scope(|scope| {
            let moving = scope.spawn(|| move_on(&instance));
            wait_until("it is held back", || {
                let row = instance.blocks().remove(0);
                row.held_by.iter().any(|holder| holder.pid == client.pid())
            });
            client.store(pointer, b"stored by a pointer");
            assert_eq!(good(&instance.blocks()[0]), before);
            if dies {
                client.kill();
            } else {
                client.ask(format!("unmap {pointer}")).unwrap();
            }
            moving.join().unwrap()
        });
        assert!(moved);
        assert_ne!(good(&instance.blocks()[0]), before);
        let mut found = [0; 19];
        region.read(8192, &mut found, Mirror::Any).unwrap();
        assert_eq!(found, *b"stored by a pointer", "{dies}");
    }
}

/// The broker dies after steps of a move that others can find: after each of the first, and then
/// after some of them. It answers questions meanwhile, which are steps as well.
#[test]
fn wherever_the_broker_dies_over_a_move_the_block_is_whole() {
    for copies in [1, 2] {
        let mut instance = start();
        let (session, region) = region(&instance, copies);
        region.write(0, &vec![9; 500_000], Mirror::Both).unwrap();
        let (mut deaths, mut step) = (0, 10);
        while dies_after(&mut instance, step, move_on) {
            check(&instance, &region, copies, u8::try_from(step % 250).unwrap());
            deaths += 1;
            step += 1 + deaths / 10;
        }
        assert!(deaths > 20, "{deaths} deaths over a move of {copies} copies");
        // It moves as before.
        assert!(move_on(&instance));
        check(&instance, &region, copies, 251);
        region.close().unwrap();
        session.close().unwrap();
        assert_eq!(wait_sound(&instance).good, copies as usize);
    }
}

/// Has something done under a broker that dies after so many steps. `false` if it did not come to
/// that.
pub fn dies_after(instance: &mut Instance, step: u64, act: impl Fn(&Instance) -> bool) -> bool {
    instance.kill_broker();
    instance.start_broker_with(&[("DMCE_CRASH_AFTER", step.to_string())]);
    let mut ended = wait_for("it serves, or has ended", || {
        instance.reap_one().map(Some).or_else(|| instance.is_serving().then_some(None))
    });
    if ended.is_none() && act(instance) {
        wait_until("nothing is left to be done", || {
            ended = ended.or_else(|| instance.reap_one());
            ended.is_some() || (!has_lock_table(instance) && is_at_rest(instance))
        });
    } else if ended.is_none() {
        ended = Some(wait_for("it has ended", || instance.reap_one()));
    }
    let is_dead = ended.is_some();
    // It may die yet.
    if !is_dead {
        instance.kill_broker();
    }
    instance.start_broker();
    instance.wait_serving();
    is_dead
}

/// The lock table of a block that is to have one copy.
fn has_lock_table(instance: &Instance) -> bool {
    let name = format!("dmce.{}.0.locks-", instance.name());
    let is_lent = instance.try_blocks().is_some_and(|rows| good(&rows[0]).len() == 1);
    is_lent && instance.objects().iter().any(|object| object.starts_with(&name))
}

fn is_at_rest(instance: &Instance) -> bool {
    let repair = instance.try_status().map(|status| status.repair);
    repair.is_some_and(|repair| (repair.syncing, repair.lacking) == (0, 0))
}

/// The bytes are there, and can be written; and the block comes to have the copies that it is to
/// have, and no others.
pub fn check(instance: &Instance, region: &Region, copies: u32, byte: u8) {
    region.write(500_000, &[byte; 100], Mirror::Both).unwrap();
    let mut found = vec![0; 500_100];
    region.read(0, &mut found, Mirror::Any).unwrap();
    let (first, rest) = found.split_at(500_000);
    assert!(first.iter().all(|byte| *byte == 9) && rest == [byte; 100], "{copies}, {byte}");
    wait_until("it has its copies and no others", || {
        let row = instance.blocks().remove(0);
        good(&row).len() == copies as usize && row.copies.len() == copies as usize
    });
    wait_until("no lock table is lent", || !has_lock_table(instance));
}

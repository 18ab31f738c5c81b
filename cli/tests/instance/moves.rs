//! `dmce migrate`, `swap`, `drain`, `undrain`, `region set copies`.

use libdmce::{Mirror, Options, Prot, RegionOptions, Session};

use super::harness::{Home, wait_until};

/// A session with a region of so many copies, whose bytes are all 5.
fn region(home: &Home, copies: u32) -> (Session, libdmce::Region) {
    let options = Options { socket: Some(home.socket()), ..Options::default() };
    let session = Session::open(&options).unwrap();
    let wanted = RegionOptions { copies, ..RegionOptions::default() };
    let name = format!("r{copies}");
    session.region_create("v", &name, 300_000, &wanted).unwrap();
    let region = session.region_open("v", &name, Prot::READ_WRITE).unwrap();
    region.write(0, &vec![5; 300_000], Mirror::Both).unwrap();
    (session, region)
}

/// The blocks with the daemons of their copies, as the command lists them.
fn copies(home: &Home) -> Vec<(u64, Vec<u64>)> {
    let rows = home.json("blocks");
    let of = |row: &serde_json::Value| {
        let copies = row["copies"].as_array().unwrap().iter();
        (row["id"].as_u64().unwrap(), copies.map(|of| of["daemon"].as_u64().unwrap()).collect())
    };
    rows.as_array().unwrap().iter().map(of).collect()
}

fn is_there(region: &libdmce::Region) {
    let mut found = vec![0; 300_000];
    region.read(0, &mut found, Mirror::Any).unwrap();
    assert!(found.iter().all(|byte| *byte == 5));
}

#[test]
fn copies_move_and_change_places_and_their_bytes_are_there() {
    let home = Home::new("moves");
    home.up_with(3).done();
    let (_one, only) = region(&home, 1);
    let (_two, double) = region(&home, 2);
    let before = copies(&home);
    let [(block, daemons), (other, _)] = &before[..] else { panic!("{before:?}") };
    let to = 1 + daemons[0] % 3;
    let (block, to, from) = (block.to_string(), to.to_string(), daemons[0]);
    let moved = home.ask(&["migrate", &block, "--to", &to]).done();
    assert_eq!(moved.stdout, format!("block {block} has moved from daemon {from} to {to}\n"));
    assert_eq!(copies(&home)[0].1, [to.parse::<u64>().unwrap()]);
    let there = home.ask(&["migrate", &block, "--to", &to]).failed(1);
    assert!(there.contains("has a copy of it"), "{there}");
    let none = home.ask(&["migrate", "4000", "--to", "1"]).failed(1);
    assert_eq!(none, "there is no block 4000");
    // Another than the primary.
    let [primary, mirror] = copies(&home)[1].1[..] else { panic!("two copies") };
    let third = 6 - primary - mirror;
    let (other, mirror, third) = (other.to_string(), mirror.to_string(), third.to_string());
    home.ask(&["migrate", &other, "--from", &mirror, "--to", &third]).done();
    assert_eq!(copies(&home)[1].1, [primary, third.parse().unwrap()]);
    // What changes places is on two daemons that have no copy of the other.
    home.ask(&["migrate", &block, "--to", &mirror]).done();
    home.ask(&["swap", &block, &other]).done();
    let after = copies(&home);
    assert!(after[0].1[0] == primary && after[1].1[0].to_string() == mirror, "{after:?}");
    is_there(&only);
    is_there(&double);
    assert_eq!(home.json("blocks")[0]["left"], 0);
    home.down(&[]).done();
}

#[test]
fn a_daemon_that_is_drained_has_nothing_and_stays_so_when_all_was_killed() {
    let home = Home::new("drain");
    home.up_with(3).done();
    let (one, only) = region(&home, 1);
    let (two, double) = region(&home, 2);
    for daemon in ["1", "2", "3"] {
        let drained = home.ask(&["drain", daemon]).done();
        let text = format!("daemon {daemon} has no block any more, and gets none\n");
        assert_eq!(drained.stdout, text);
        let row = &home.json("daemons")[daemon.parse::<usize>().unwrap() - 1];
        assert_eq!((&row["draining"], &row["blocks"]), (&true.into(), &0.into()));
        is_there(&only);
        is_there(&double);
        if daemon != "3" {
            home.ask(&["undrain", daemon]).done();
        }
    }
    drop((one, only, two, double));
    home.down(&["--keep"]).done();
    home.up_with(3).done();
    assert_eq!(home.json("daemons")[2]["draining"], true);
    home.ask(&["undrain", "3"]).done();
    let none = home.ask(&["drain", "9"]).failed(1);
    assert_eq!(none, "there is no daemon 9");
    home.down(&[]).done();
    assert_eq!(home.objects(), [""; 0]);
}

#[test]
fn blocks_of_daemons_that_are_full_change_places() {
    let home = Home::new("full");
    home.up(&[]).done();
    let (session, _small) = region(&home, 1);
    for name in ["a", "b"] {
        let bytes = 40 << 20;
        let wanted = RegionOptions { copies: 1, ..RegionOptions::default() };
        session.region_create("v", name, bytes, &wanted).unwrap();
    }
    let before = copies(&home);
    let [_, (one, a), (other, b)] = &before[..] else { panic!("{before:?}") };
    let [one, other, to] = [*one, *other, b[0]].map(|id| id.to_string());
    let full = home.ask(&["migrate", &one, "--to", &to]).failed(1);
    assert!(full.contains("bytes left"), "{full}");
    home.ask(&["swap", &one, &other]).done();
    let after = copies(&home);
    assert_eq!((&after[1].1, &after[2].1), (b, a));
    home.down(&[]).done();
}

#[test]
fn what_a_pointer_holds_back_is_named_and_moves_when_it_is_given_back() {
    let home = Home::new("held");
    home.up(&[]).done();
    let (session, only) = region(&home, 1);
    let daemon = copies(&home)[0].1[0];
    let pointer = session.map(only.addr(0).unwrap(), 4096, Prot::READ_WRITE).unwrap();
    let run = home.ask(&["drain", &daemon.to_string()]);
    assert_eq!(run.code, Some(4), "{run:?}");
    let who = format!("held back by process {} (session", std::process::id());
    assert!(run.stderr.contains(&who) && run.stderr.contains("a pointer"), "{run:?}");
    assert_eq!(home.json("blocks")[0]["held_by"][0]["by"], "pointer");
    session.unmap(pointer).unwrap();
    wait_until("it has moved", || copies(&home)[0].1 != [daemon]);
    is_there(&only);
    drop((session, only));
    home.down(&[]).done();
}

#[test]
fn a_region_has_as_many_copies_as_are_asked_for_while_it_is_used() {
    let home = Home::new("set");
    home.up_with(3).done();
    let (session, region) = region(&home, 1);
    let set = |copies: &str| home.ask(&["region", "set", "copies", "v", "r1", copies]);
    for count in [2, 3, 1, 3, 2] {
        let done = set(&count.to_string()).done();
        let text = if count == 1 { "1 copy".to_owned() } else { format!("{count} copies") };
        assert_eq!(done.stdout, format!("region v/r1 has {text}\n"));
        assert_eq!(copies(&home)[0].1.len(), count);
        assert_eq!(home.json("regions")[0]["copies"], count);
        is_there(&region);
        // Each half that there is has it all.
        let mut halves = [Mirror::Primary, Mirror::Mirror].into_iter().take(count);
        assert!(halves.all(|half| {
            let mut found = [0; 8];
            region.read(299_000, &mut found, half).unwrap();
            found == [5; 8]
        }));
        region.write(0, &[5; 4096], Mirror::Both).unwrap();
    }
    assert_eq!(region.read(0, &mut [0; 8], Mirror::Mirror), Ok(()));
    drop((session, region));
    home.down(&["--keep"]).done();
    home.up_with(3).done();
    assert_eq!((copies(&home)[0].1.len(), &home.json("regions")[0]["copies"]), (2, &2.into()));
    home.ask(&["region", "set", "copies", "v", "r1", "4"]).failed(2);
    let none = home.ask(&["region", "set", "copies", "v", "q", "1"]).failed(1);
    assert_eq!(none, "no region \"q\" in volume \"v\"");
    home.ask(&["drain", "3"]).done();
    let few = set("3").failed(1);
    assert_eq!(few, "3 copies of a block need as many daemons, 2 serve");
    home.down(&[]).done();
}

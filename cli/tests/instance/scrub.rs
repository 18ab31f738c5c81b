//! `dmce scrub`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use libdmce::{Mirror, Options, Prot, RegionOptions, Session};

use super::harness::Home;

const PAGES: usize = 50;

/// Flips a bit of a page in the object of some copy.
fn flip(home: &Home, page: u64) {
    let data = home.objects().into_iter().find(|name| name.contains(".data-")).unwrap();
    let path = Path::new("/dev/shm").join(data);
    let data = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, page * 4096).unwrap();
    data.write_all_at(&[byte[0] ^ 1], page * 4096).unwrap();
}

#[test]
fn what_is_damaged_is_found_and_told_and_what_is_lost_is_no_success() {
    let home = Home::new("scrub");
    home.up_with(2).done();
    assert!(home.json("status")["scrub"]["last"].is_null());
    let session =
        Session::open(&Options { socket: Some(home.socket()), ..Options::default() }).unwrap();
    let wanted = RegionOptions { copies: 2, ..RegionOptions::default() };
    session.region_create("v", "r", PAGES as u64 * 4096, &wanted).unwrap();
    let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
    region.write(0, &vec![5; PAGES * 4096], Mirror::Both).unwrap();

    let whole = home.ask(&["scrub", "--json"]).done().json();
    assert_eq!((&whole["blocks"], &whole["checked"]), (&1.into(), &PAGES.into()), "{whole}");
    flip(&home, 7);
    let block = home.json("blocks")[0]["id"].to_string();
    let text = home.ask(&["scrub", &block]).done().stdout;
    assert!(text.contains("repaired  1"), "{text}");
    assert_eq!(home.json("status")["scrub"]["last"]["checked"], PAGES, "one block is not all");

    region.write(3 * 4096, &[6; 100], Mirror::Both).unwrap();
    flip(&home, 3);
    let lost = home.ask(&["scrub"]);
    assert_eq!(lost.code, Some(4), "{}", lost.stdout);
    assert!(lost.stdout.contains("found lost  1"), "{}", lost.stdout);
    let shown = &home.json("status")["scrub"]["last"];
    assert_eq!((&shown["quarantined"], &shown["repaired"]), (&1.into(), &0.into()), "{shown}");
    let none = home.ask(&["scrub", "999"]).failed(1);
    assert!(none.contains("there is no block 999"), "{none}");
    home.down(&[]).done();
}

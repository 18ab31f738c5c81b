//! `dmce region resync`.

use libdmce::{Mirror, Options, Prot, RegionOptions, Session};

use super::harness::Home;

#[test]
fn a_resync_ends_what_writes_to_one_half_began() {
    let home = Home::new("resync");
    home.up(&[]).done();
    let options = Options { socket: Some(home.socket()), ..Options::default() };
    let session = Session::open(&options).unwrap();
    let two = RegionOptions { copies: 2, ..RegionOptions::default() };
    session.region_create("v", "r", 300_000, &two).unwrap();
    let region = session.region_open("v", "r", Prot::READ_WRITE).unwrap();
    region.write(0, &vec![1; 300_000], Mirror::Both).unwrap();
    region.write(100_000, b"mirror", Mirror::Mirror).unwrap();
    let found = |half| {
        let mut found = [0; 6];
        region.read(100_000, &mut found, half).unwrap();
        found
    };
    assert_eq!(found(Mirror::Primary), [1; 6]);
    let halves = home.json("blocks")[0]["copies"].clone();
    let names: Vec<_> = halves.as_array().unwrap().iter().map(|copy| &copy["half"]).collect();
    assert_eq!(names, ["primary", "mirror"]);
    home.ask(&["region", "resync", "v", "r", "--from", "mirror"]).done();
    assert_eq!([Mirror::Primary, Mirror::Mirror].map(found), [*b"mirror"; 2]);

    let none = home.ask(&["region", "resync", "v", "none", "--from", "mirror"]).failed(1);
    assert!(none.contains("region v/none cannot be opened"), "{none}");
    home.ask(&["region", "resync", "v", "r", "--from", "both"]).failed(2);
    home.ask(&["region", "resync", "v", "r"]).failed(2);
    let one = RegionOptions { copies: 1, ..RegionOptions::default() };
    session.region_create("v", "one", 4096, &one).unwrap();
    home.ask(&["region", "resync", "v", "one", "--from", "primary"]).done();
    let away = home.ask(&["region", "resync", "v", "one", "--from", "mirror"]).failed(1);
    assert!(away.contains("half that is asked for is away"), "{away}");
    drop((region, session));
    home.down(&[]).done();
}

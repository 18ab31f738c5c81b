//! Regions: named, shared, outliving sessions (004).

use dmce_abi::Status;
use dmce_tests::{Client, Instance};
use libdmce::{Mirror, Prot, RegionOptions};

const BOTH: Prot = Prot::READ_WRITE;

#[test]
fn a_region_outlives_its_session_and_is_found_by_name() {
    let instance = Instance::start(2);
    let maker = instance.open();
    maker.region_create("vol", "orders", 10_000, &RegionOptions::default()).unwrap();
    let region = maker.region_open("vol", "orders", BOTH).unwrap();
    region.write(9_990, b"0123456789", Mirror::Both).unwrap();
    maker.close().unwrap();

    let finder = instance.open();
    assert_eq!(finder.region_list("vol").unwrap(), ["orders"]);
    let region = finder.region_open("vol", "orders", Prot::READ).unwrap();
    let mut found = [0; 10];
    region.read(9_990, &mut found, Mirror::Any).unwrap();
    assert_eq!(&found, b"0123456789");
}

#[test]
fn pointers_run_from_the_base_to_the_last_byte() {
    let instance = Instance::start(1);
    let session = instance.open();
    let base = 0x7000_0000_0000;
    let options = RegionOptions { base_pointer: base, ..RegionOptions::default() };
    session.region_create("vol", "based", 5_000, &options).unwrap();
    let region = session.region_open("vol", "based", BOTH).unwrap();
    region.write(base + 4_999, b"!", Mirror::Both).unwrap();
    for pointer in [0, base - 1, base + 5_000] {
        let refused = region.write(pointer, b"!", Mirror::Both).unwrap_err();
        assert_eq!(refused.status(), Status::Address, "{pointer:#x}");
    }
    let crossing = region.write(base + 4_999, b"!!", Mirror::Both).unwrap_err();
    assert_eq!(crossing.status(), Status::Address);

    let addr = region.addr(base + 4_999).unwrap();
    let mut byte = [0];
    session.read(addr, &mut byte).unwrap();
    assert_eq!(&byte, b"!");
    let info = region.info().unwrap();
    assert_eq!((info.region_size, info.base_pointer, info.copies), (5_000, base, 1));
    assert_eq!(info.mirror_daemon, 0);
}

#[test]
fn the_half_that_does_not_exist_is_named() {
    let instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "single", 4096, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "single", BOTH).unwrap();
    region.write(0, b"x", Mirror::Primary).unwrap();
    let mut byte = [0];
    region.read(0, &mut byte, Mirror::Primary).unwrap();
    assert_eq!(region.read(0, &mut byte, Mirror::Mirror).unwrap_err().status(), Status::NoCopy);
    assert_eq!(region.write(0, b"x", Mirror::Mirror).unwrap_err().status(), Status::NoCopy);
    let two = RegionOptions { copies: 2, ..RegionOptions::default() };
    let refused = session.region_create("vol", "mirrored", 4096, &two).unwrap_err();
    assert_eq!(refused.status(), Status::NoSpace);
}

#[test]
fn names_are_unique_checked_and_listed_in_order() {
    let instance = Instance::start(1);
    let session = instance.open();
    let plain = RegionOptions::default();
    for name in ["pear", "apple", "fig"] {
        session.region_create("fruit", name, 4096, &plain).unwrap();
    }
    let twice = session.region_create("fruit", "fig", 4096, &plain).unwrap_err();
    assert_eq!(twice.status(), Status::Exists);
    assert_eq!(session.region_list("fruit").unwrap(), ["apple", "fig", "pear"]);
    assert!(session.region_list("no such").unwrap().is_empty());
    for (volume, name) in [("", "x"), ("x", ""), ("a/b", "x"), ("x", "new\nline")] {
        let refused = session.region_create(volume, name, 4096, &plain).unwrap_err();
        assert_eq!(refused.status(), Status::Invalid, "{volume:?} {name:?}");
    }
    let nothing = session.region_create("fruit", "none", 0, &plain).unwrap_err();
    assert_eq!(nothing.status(), Status::Invalid);
    let missing = session.region_open("fruit", "plum", BOTH).unwrap_err();
    assert_eq!(missing.status(), Status::NotFound);
}

#[test]
fn many_names_come_in_pages() {
    let instance = Instance::start(1);
    let session = instance.open();
    let name = |place: u32| format!("{place:05}-{}", "n".repeat(100));
    for place in 0..1000 {
        session.region_create("many", &name(place), 4096, &RegionOptions::default()).unwrap();
    }
    let listed = session.region_list("many").unwrap();
    assert_eq!(listed, (0..1000).map(name).collect::<Vec<_>>());
}

#[test]
fn delete_waits_for_no_one_but_refuses_while_another_has_it_open() {
    let instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "busy", 4096, &RegionOptions::default()).unwrap();
    let own = session.region_open("vol", "busy", BOTH).unwrap();
    let mut other = Client::open(&instance);
    other.ask("ropen vol busy r").unwrap();
    assert_eq!(session.region_delete("vol", "busy").unwrap_err().status(), Status::Busy);
    other.kill();
    dmce_tests::wait_until("the dead opener lets go", || {
        session.region_delete("vol", "busy").is_ok()
    });
    let mut byte = [0];
    assert_eq!(own.read(0, &mut byte, Mirror::Any).unwrap_err().status(), Status::Closed);
    assert_eq!(own.close().unwrap_err().status(), Status::Closed);
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn a_region_over_several_blocks_is_one_range() {
    let instance = Instance::builder().daemons(3).capacity("32MiB").layout("16/24/24").start();
    let session = instance.open();
    session.region_create("vol", "wide", 70 << 20, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "wide", BOTH).unwrap();
    let content: Vec<u8> = (0..40_u32 << 20).map(|place| (place % 251) as u8).collect();
    region.write(15 << 20, &content, Mirror::Both).unwrap();
    let mut found = vec![0; content.len()];
    let mut other = Client::open(&instance);
    other.ask("ropen vol wide r").unwrap();
    region.read(15 << 20, &mut found, Mirror::Any).unwrap();
    assert!(found == content);
}

#[test]
fn a_region_with_a_pointer_into_it_is_not_deleted_from_beneath_it() {
    let instance = Instance::start(1);
    let session = instance.open();
    session.region_create("vol", "pinned", 8192, &RegionOptions::default()).unwrap();
    let region = session.region_open("vol", "pinned", BOTH).unwrap();
    let pointer = session.map(region.addr(4096).unwrap(), 100, BOTH).unwrap();
    assert_eq!(session.region_delete("vol", "pinned").unwrap_err().status(), Status::Busy);
    session.unmap(pointer).unwrap();
    session.region_delete("vol", "pinned").unwrap();
}

//! Copies are compared under clients of all kinds, bits flip in them, and whoever dies over that.

#![allow(clippy::unwrap_used, reason = "for tests, outside of test functions")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use dmce_abi::Status;
use dmce_abi::wire::admin::{AdminReply, AdminRequest};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_tests::{Instance, wait_for};
use libdmce::connection::{Connection, Deadline};
use libdmce::{Mirror, Region};

use super::moving::{good, raisers, raisers_by, region};

const PAGE: u64 = 4096;
const BYTES: usize = 4096;

fn start() -> Instance {
    let config = "[broker]\nscrub_rate = \"0\"\n";
    Instance::builder().daemons(3).sync_blocks(2).config(config).start()
}

/// Has all blocks compared; nothing, if the broker dies over it.
fn try_scrub(socket: &Path) -> Option<ScrubFound> {
    let mut broker: Connection = Connection::connect(socket).ok()?;
    let request = ClientRequest::Admin(AdminRequest::Scrub { block: 0 });
    match broker.request_until(&request, Deadline::NEVER).ok()?.0 {
        ClientReply::Admin(AdminReply::Scrubbed { found, .. }) => Some(found),
        other => panic!("{other:?}"),
    }
}

fn scrub(instance: &Instance) -> ScrubFound {
    wait_for("the broker serves", || try_scrub(&instance.socket()))
}

/// Flips a bit of a page of the only block, in the copy of that place.
fn flip(instance: &Instance, place: usize, page: u64) {
    let row = instance.blocks().remove(0);
    let name = format!("dmce.{}.{}.data-{:08x}", instance.name(), good(&row)[place], row.block);
    let data = File::options().read(true).write(true).open(instance.object(&name)).unwrap();
    let mut byte = [0];
    data.read_exact_at(&mut byte, page * PAGE + 77).unwrap();
    data.write_all_at(&[byte[0] ^ 4], page * PAGE + 77).unwrap();
}

fn is_there(region: &Region, page: u64, half: Mirror) {
    let mut found = [0; BYTES];
    region.read(page * PAGE, &mut found, half).unwrap();
    assert!(found.iter().all(|byte| u64::from(*byte) == page), "page {page}");
}

/// Each page from 100 on has its number.
fn fill(region: &Region) {
    for page in 100..200 {
        let byte = u8::try_from(page).unwrap();
        region.write(page * PAGE, &[byte; BYTES], Mirror::Both).unwrap();
    }
}

#[test]
fn bits_that_flip_in_either_copy_are_found_and_repaired_while_all_kinds_of_clients_write() {
    let instance = start();
    let (session, region) = region(&instance, 2);
    fill(&region);
    let first = scrub(&instance);
    assert_eq!((first.repaired, first.quarantined), (0, 0), "{first:?}");
    let (mut clients, asked) = raisers(&instance, &region);
    for (page, place) in [(100, 0), (101, 1), (150, 0), (199, 1)] {
        flip(&instance, place, page);
    }
    let found = scrub(&instance);
    assert_eq!((found.repaired, found.quarantined, found.lost), (4, 0, 0), "{found:?}");
    for page in 100..200 {
        is_there(&region, page, Mirror::Primary);
        is_there(&region, page, Mirror::Mirror);
    }
    let again = scrub(&instance);
    assert_eq!((again.repaired, again.quarantined), (0, 0), "{again:?}");
    for client in &mut clients {
        client.answer().unwrap();
    }
    assert_eq!(session.add64(region.addr(PAGE).unwrap(), 0).unwrap(), asked);
}

/// Of a page that was written since, nobody knows which copy is right; of three, two may agree.
#[test]
fn a_page_of_which_nobody_can_tell_is_lost_until_all_of_it_is_written() {
    let instance = start();
    let (_session, region) = region(&instance, 2);
    fill(&region);
    scrub(&instance);
    region.write(120 * PAGE, &[120; BYTES], Mirror::Both).unwrap();
    flip(&instance, 1, 120);
    let found = scrub(&instance);
    assert_eq!((found.repaired, found.quarantined), (0, 1), "{found:?}");
    let mut byte = [0];
    let lost = region.read(120 * PAGE, &mut byte, Mirror::Any).unwrap_err();
    assert_eq!(lost.status(), Status::Lost);
    let found = scrub(&instance);
    assert_eq!((found.quarantined, found.lost), (0, 1), "{found:?}");
    region.write(120 * PAGE, &[120; BYTES], Mirror::Both).unwrap();
    is_there(&region, 120, Mirror::Any);
    let found = scrub(&instance);
    assert_eq!((found.quarantined, found.lost), (0, 0), "{found:?}");
}

#[test]
fn of_three_copies_two_that_agree_are_right() {
    let instance = start();
    let (_session, region) = region(&instance, 3);
    fill(&region);
    for (page, place) in [(130, 0), (131, 1), (132, 2)] {
        flip(&instance, place, page);
    }
    let found = scrub(&instance);
    assert_eq!((found.repaired, found.quarantined), (3, 0), "{found:?}");
    for page in 130..133 {
        is_there(&region, page, Mirror::Any);
        is_there(&region, page, Mirror::Mirror);
    }
}

/// Nothing that somebody writes, and no death, is taken for damage.
#[test]
fn what_is_written_while_servers_die_is_never_taken_for_damaged() {
    for copies in [2, 3] {
        let mut instance = start();
        let (session, region) = region(&instance, copies);
        let (mut clients, asked) = raisers_by(&instance, &region, 2);
        for round in 0..12 {
            let found = std::thread::scope(|scope| {
                let socket = instance.socket();
                let scrubbing = scope.spawn(move || try_scrub(&socket));
                match round % 4 {
                    3 => {
                        instance.kill_broker();
                        instance.start_broker();
                    }
                    daemon => {
                        instance.kill_daemon(daemon + 1);
                        instance.start_daemon(daemon + 1);
                    }
                }
                scrubbing.join().unwrap()
            });
            let found = found.unwrap_or_default();
            assert_eq!((found.repaired, found.quarantined, found.lost), (0, 0, 0), "{found:?}");
        }
        for client in &mut clients {
            client.answer().unwrap();
        }
        assert_eq!(session.add64(region.addr(PAGE).unwrap(), 0).unwrap(), asked);
        let found = scrub(&instance);
        let left = (found.repaired, found.quarantined, found.lost, found.busy);
        assert_eq!(left, (0, 0, 0, 0), "{found:?}");
    }
}

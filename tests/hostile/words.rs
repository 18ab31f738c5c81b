//! A client that writes nonsense where a server reads, and blows up what it was given.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;

use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Malloc, MallocKind, Setup};
use dmce_sys::object;
use dmce_tests::{Client, Instance, wait_until};
use libdmce::connection::Connection;

/// A session without the library, and its session object.
pub fn session(instance: &Instance) -> (Connection, OwnedFd) {
    let mut raw = Connection::connect(instance.socket()).unwrap();
    let setup = Setup {
        segment_version: dmce_abi::version::SEGMENT_VERSION,
        pointer_bits: 64,
        bytes: 0,
        accept_partial: false,
        copies: 0,
        name: String::new(),
    };
    let (_, mut fds) = raw.request(&ClientRequest::Setup(setup)).unwrap();
    (raw, fds.swap_remove(0))
}

/// A block of 1 MiB, and its data.
pub fn granted(raw: &mut Connection) -> (BlockId, OwnedFd) {
    let kind = MallocKind::Heap { committed: 1 << 20 };
    let malloc = Malloc { ticket: 1, kind, page_size: 0, copies: 0 };
    let (ClientReply::Granted(granted), mut fds) =
        raw.request(&ClientRequest::Malloc(malloc)).unwrap()
    else {
        panic!("a block is granted")
    };
    (granted.first.block, fds.swap_remove(0))
}

#[test]
fn a_session_object_full_of_nonsense_hurts_only_its_session() {
    let mut instance = Instance::start(1);
    let mut witness = Client::open(&instance);
    let (raw, object_fd) = session(&instance);
    object::write_at(object_fd.as_fd(), &[0xff; 36_864], 0).unwrap();
    let (cut, cut_fd) = session(&instance);
    assert_eq!(instance.sessions().len(), 3);
    object::truncate(cut_fd.as_fd(), 0).unwrap();
    // A broker that comes back reads them again.
    instance.kill_broker();
    instance.start_broker();
    instance.wait_serving();
    witness.ask("hold 3").unwrap();
    drop((raw, cut));
    wait_until("only the witness is left", || instance.status().sessions == 1);
    witness.kill();
    instance.wait_empty();
}

#[test]
fn a_client_that_makes_its_block_larger_is_ended() {
    let instance = Instance::builder().config("daemon.check_ms = 50\n").start();
    let (mut raw, _object) = session(&instance);
    let (_, fd) = granted(&mut raw);
    object::truncate(fd.as_fd(), 64 << 20).unwrap();
    object::commit(fd.as_fd(), 0, 64 << 20).unwrap();
    wait_until("its session has ended", || instance.status().sessions == 0);
    instance.wait_empty();
    assert_eq!(object::stat(fd.as_fd()).unwrap().bytes, 0);
}

#[test]
fn a_client_that_truncates_its_block_hurts_itself() {
    let instance = Instance::builder().config("daemon.check_ms = 50\n").start();
    let mut witness = Client::open(&instance);
    let (mut raw, _object) = session(&instance);
    let (_, fd) = granted(&mut raw);
    object::truncate(fd.as_fd(), 0).unwrap();
    witness.ask("hold 5").unwrap();
    drop(raw);
    witness.kill();
    instance.wait_empty();
}

#[test]
fn a_client_that_makes_its_session_object_larger_is_ended() {
    let instance = Instance::builder().config("broker.reattach_ms = 3600000\n").start();
    let mut witness = Client::open(&instance);
    let (raw, by_size) = session(&instance);
    let bytes = object::stat(by_size.as_fd()).unwrap().bytes;
    object::truncate(by_size.as_fd(), 64 << 20).unwrap();
    wait_until("its session has ended", || instance.status().sessions == 1);
    assert_eq!(object::stat(by_size.as_fd()).unwrap().bytes, bytes);
    drop(raw);

    // Detached sessions are looked at as well, and pages beyond the end.
    let (raw, by_pages) = session(&instance);
    drop(raw);
    let path = format!("/proc/{}/fd/{}", std::process::id(), by_pages.as_raw_fd());
    let mut allocate = Command::new("fallocate");
    allocate.args(["--keep-size", "--length", "64MiB", &path]);
    assert!(allocate.status().unwrap().success());
    wait_until("its session has ended", || instance.status().sessions == 1);
    let left = object::stat(by_pages.as_fd()).unwrap();
    assert!(left.allocated_bytes < 4 << 20, "{left:?}");
    witness.ask("hold 2").unwrap();
}

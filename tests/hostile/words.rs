//! A client that writes nonsense where a server reads, and blows up what it was given.

use std::os::fd::{AsFd, OwnedFd};

use dmce_abi::wire::client::{ClientReply, ClientRequest, Malloc, MallocKind, Setup};
use dmce_sys::object;
use dmce_tests::{Client, Instance, wait_until};
use libdmce::connection::Connection;

fn session(instance: &Instance) -> (Connection, OwnedFd) {
    let mut raw = Connection::connect(&instance.socket()).unwrap();
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

fn block(raw: &mut Connection) -> OwnedFd {
    let kind = MallocKind::Heap { committed: 1 << 20 };
    let malloc = Malloc { ticket: 1, kind, page_size: 0, copies: 0 };
    let (ClientReply::Granted(_), mut fds) = raw.request(&ClientRequest::Malloc(malloc)).unwrap()
    else {
        panic!("a block is granted")
    };
    fds.swap_remove(0)
}

#[test]
fn a_session_object_full_of_nonsense_hurts_only_its_session() {
    let mut instance = Instance::start(1);
    let mut witness = Client::open(&instance);
    let (raw, object_fd) = session(&instance);
    object::write_at(object_fd.as_fd(), &[0xff; 36_864], 0).unwrap();
    let (cut, cut_fd) = session(&instance);
    object::truncate(cut_fd.as_fd(), 0).unwrap();
    assert_eq!(instance.sessions().len(), 3);
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
    let fd = block(&mut raw);
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
    let fd = block(&mut raw);
    object::truncate(fd.as_fd(), 0).unwrap();
    witness.ask("hold 5").unwrap();
    drop(raw);
    witness.kill();
    instance.wait_empty();
}

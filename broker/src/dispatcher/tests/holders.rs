//! Who holds back copies for longer than the configuration allows.

use dmce_abi::wire::admin::{AdminRequest, CopyState};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Map, Unmap};

use super::copies::with_copies;
use super::rig::{GIB, MIB, Rig, config, open, region};
use super::syncing::copies;
use crate::dispatcher::{ClientConn, Started};

const LIMIT_MS: u64 = 60_000;

/// Somebody who has a region of one copy open, of another user, and a broker with a limit.
fn rig(hold_ms: u64) -> (Rig, ClientConn, u32) {
    let mut config = config();
    (config.copies_max, config.syncs_max, config.hold_ms) = (3, 2, hold_ms);
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (owner, _) = rig.session(1000);
    rig.done(owner, with_copies(region("r", MIB, 0o666), 1));
    let (conn, _) = rig.session(1001);
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    (rig, conn, opened.first.block.get())
}

fn map(rig: &mut Rig, conn: ClientConn, block: u32) {
    let addr = u64::from(block) << config().layout.cell_bits();
    let map = Map { addr, bytes: 4096, os_address: 0x1000, writable: true };
    rig.done(conn, ClientRequest::Map(map));
}

fn drain(rig: &mut Rig, daemon: u32) {
    let root = rig.connect(1, 0);
    rig.done(root, ClientRequest::Admin(AdminRequest::Drain { daemon, is_draining: true }));
}

fn wait(rig: &mut Rig, ms: u64) {
    for _ in 0..ms / 1000 {
        rig.wait(1000);
    }
}

#[test]
fn who_has_a_pointer_for_too_long_is_ended_and_what_it_held_back_moves() {
    for limit in [0, LIMIT_MS] {
        let (mut rig, conn, id) = rig(limit);
        let block = super::rig::block_id(id);
        map(&mut rig, conn, id);
        drain(&mut rig, 1);
        wait(&mut rig, LIMIT_MS - 1000);
        assert_eq!(copies(&mut rig, block), [(1, CopyState::Good)]);
        let sessions = |rig: &Rig| rig.dispatcher.snapshot().sessions.len();
        assert_eq!(sessions(&rig), 2);
        wait(&mut rig, LIMIT_MS / 2);
        if limit == 0 {
            assert_eq!((sessions(&rig), copies(&mut rig, block)[0].0), (2, 1));
        } else {
            assert_eq!((sessions(&rig), copies(&mut rig, block)[0].0), (1, 2));
        }
    }
}

#[test]
fn who_lets_go_before_has_all_the_time_again() {
    let (mut rig, conn, id) = rig(LIMIT_MS);
    map(&mut rig, conn, id);
    drain(&mut rig, 1);
    wait(&mut rig, LIMIT_MS - 10_000);
    rig.done(conn, ClientRequest::Unmap(Unmap { os_address: 0x1000 }));
    wait(&mut rig, 20_000);
    assert_eq!(copies(&mut rig, super::rig::block_id(id))[0].0, 2);
    map(&mut rig, conn, id);
    let root = rig.connect(1, 0);
    rig.done(root, ClientRequest::Admin(AdminRequest::Drain { daemon: 1, is_draining: false }));
    drain(&mut rig, 2);
    wait(&mut rig, LIMIT_MS - 10_000);
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 2);
    wait(&mut rig, 30_000);
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 1);
}

#[test]
fn who_does_not_end_an_operation_is_ended_and_the_copy_goes_on_without_it() {
    let (mut rig, _, id) = rig(LIMIT_MS);
    let block = super::rig::block_id(id);
    let root = rig.connect(1, 0);
    rig.idles = false;
    let migrate = AdminRequest::Migrate { block: id, from: 0, to: 2 };
    rig.ask_later(root, ClientRequest::Admin(migrate));
    wait(&mut rig, LIMIT_MS - 1000);
    assert_eq!(copies(&mut rig, block)[0].0, 1);
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 2);
    wait(&mut rig, LIMIT_MS / 2);
    rig.idles = true;
    wait(&mut rig, 5000);
    assert_eq!(copies(&mut rig, block)[0].0, 2);
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 1);
}

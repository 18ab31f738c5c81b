//! Stale copies that an administrator has adopted.

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::admin::{AdminReply, AdminRequest, BlockRow, BlockState, CopyState};
use dmce_abi::wire::client::{ClientReply, ClientRequest, Fetch, RegionKey};
use dmce_abi::wire::daemon::HeldBlock;

use super::copies::{rig, with_copies};
use super::rig::{GIB, MIB, Rig, daemon_id, open, region};
use crate::dispatcher::{Action, ClientConn, Event, InspectId, Rewritten};

/// A region of so many copies that a client has open, and an administrator.
struct Instance {
    rig: Rig,
    client: ClientConn,
    admin: ClientConn,
    block: BlockId,
    key: RegionKey,
}

fn instance(copies: u32) -> Instance {
    let mut rig = rig(copies);
    let (client, _) = rig.session(1000);
    rig.done(client, with_copies(region("r", MIB, 0o666), copies));
    let ClientReply::Opened(opened) = rig.done(client, open(1, "r", true)) else { panic!() };
    let admin = rig.connect(1, 0);
    let key = rig.key(client, "r");
    Instance { rig, client, admin, block: opened.first.block, key }
}

impl Instance {
    /// The object of a copy is gone, and that is seen.
    fn loses(&mut self, daemon: u32) {
        let (inspect, found) = (InspectId(u64::MAX), vec![(self.block, None)]);
        self.rig.event(Event::Inspected { inspect, daemon: daemon_id(daemon), found });
    }

    /// A daemon comes back with what it had, of so many bytes.
    fn back(&mut self, daemon: u32, committed: u64) {
        let created = &self.rig.daemons[&daemon].created;
        let description = created.iter().find(|made| made.block == self.block).unwrap().clone();
        let held = vec![HeldBlock { description: description.clone(), committed }];
        self.rig.daemon_with(daemon, 3 * GIB, held);
        self.rig.daemons.get_mut(&daemon).unwrap().created.push(description);
    }

    fn adopt(&mut self, conn: ClientConn, from: u32) -> Result<AdminReply, (Status, String)> {
        let block = self.block.get();
        let request = ClientRequest::Admin(AdminRequest::AdoptStale { block, from });
        match self.rig.ask(conn, request).expect("an answer") {
            Ok(ClientReply::Admin(reply)) => Ok(reply),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err((refusal.status, refusal.text)),
        }
    }

    fn row(&mut self) -> BlockRow {
        let request = ClientRequest::Admin(AdminRequest::Blocks { after: 0 });
        match self.rig.done(self.admin, request) {
            ClientReply::Admin(AdminReply::Blocks { rows, .. }) => rows[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    fn copies(&mut self) -> Vec<(u32, CopyState)> {
        self.row().copies.iter().map(|copy| (copy.daemon, copy.state)).collect()
    }

    fn fetched_lost(&mut self) -> bool {
        let fetch = ClientRequest::Fetch(Fetch { block: self.block, writable: true });
        match self.rig.done(self.client, fetch) {
            ClientReply::Fetched(info) => info.lost,
            other => panic!("{other:?}"),
        }
    }

    fn used(&self, daemon: u32) -> u64 {
        self.rig.dispatcher.snapshot().charged[&daemon_id(daemon)].0
    }
}

fn refused(status: Status, text: &str) -> Result<AdminReply, (Status, String)> {
    Err((status, text.to_owned()))
}

#[test]
fn a_lost_block_goes_on_with_the_stale_copy_when_an_administrator_says_so() {
    let mut of = instance(2);
    of.loses(1);
    of.back(1, MIB);
    assert_eq!(of.copies(), [(2, CopyState::Good), (1, CopyState::Stale)]);
    let text = format!("block {} is not lost: it has a good copy on daemon 2", of.block);
    assert_eq!(of.adopt(of.admin, 0), refused(Status::Exists, &text));
    of.loses(2);
    assert!(of.fetched_lost() && of.row().state == BlockState::Lost);
    let before = of.row().epoch;
    of.rig.actions.clear();
    let epoch = match of.adopt(of.admin, 0) {
        Ok(AdminReply::Adopted { daemon: 1, epoch }) => epoch,
        other => panic!("{other:?}"),
    };
    let row = of.row();
    assert_eq!((row.state, row.epoch, row.committed), (BlockState::Degraded, epoch, MIB));
    assert!(epoch > before);
    assert_eq!(of.copies(), [(1, CopyState::Good), (2, CopyState::Lost)]);
    assert!(!of.fetched_lost());
    // Its holder is told, and pays for it; the old lock table spoke of other bytes.
    let told = |action: &&Action| matches!(action, Action::Publish { .. });
    let tables =
        |action: &&Action| matches!(action, Action::MakeLocks { lost, .. } if lost.is_empty());
    assert!(of.rig.actions.iter().any(|action| told(&action)));
    assert_eq!(of.rig.actions.iter().filter(tables).count(), 1);
    assert_eq!((of.used(1), of.used(2)), (MIB, 0));
    // What the other daemon finds again is the stale one now.
    of.back(2, MIB);
    assert_eq!(of.copies(), [(1, CopyState::Good), (2, CopyState::Stale)]);
    assert_eq!(of.rig.done(of.client, super::rig::close(1)), ClientReply::Done);
    let key = of.key;
    assert_eq!(of.rig.done(of.client, ClientRequest::RegionDelete(key)), ClientReply::Done);
    assert_eq!((of.used(1), of.used(2)), (0, 0));
}

#[test]
fn what_cannot_be_adopted_is_refused_and_nothing_changes() {
    let mut of = instance(3);
    for daemon in [1, 2, 3] {
        of.loses(daemon);
    }
    let none = format!("no daemon has a stale copy of block {}", of.block);
    assert_eq!(of.adopt(of.admin, 0), refused(Status::NotFound, &none));
    of.back(1, MIB);
    of.back(2, MIB / 2);
    let several = format!("daemons 1 and 2 have stale copies of block {}: name one", of.block);
    assert_eq!(of.adopt(of.admin, 0), refused(Status::Invalid, &several));
    let other = format!("daemon 3 has no stale copy of block {}", of.block);
    assert_eq!(of.adopt(of.admin, 3), refused(Status::NotFound, &other));
    let short = "the copy of daemon 2 has 524288 bytes, and needs 1048576";
    assert_eq!(of.adopt(of.admin, 2), refused(Status::Lost, short));
    let denied = "stale copies are adopted by root and by the user of the service";
    assert_eq!(of.adopt(of.client, 1), refused(Status::Denied, denied));
    let block = AdminRequest::AdoptStale { block: of.block.get() + 1, from: 0 };
    assert_eq!(of.rig.status(of.admin, ClientRequest::Admin(block)), Status::NotFound);
    let block = AdminRequest::AdoptStale { block: 0, from: 0 };
    assert_eq!(of.rig.status(of.admin, ClientRequest::Admin(block)), Status::NotFound);
    assert_eq!(of.row().state, BlockState::Lost);
    assert!(matches!(of.adopt(of.admin, 1), Ok(AdminReply::Adopted { daemon: 1, .. })));
    assert_eq!(of.row().state, BlockState::Degraded);
}

#[test]
fn what_is_gone_when_it_is_adopted_is_lost_still_and_who_asked_is_told() {
    let mut of = instance(2);
    of.loses(1);
    of.back(1, MIB);
    of.loses(2);
    of.rig.headers_gone.insert(1);
    let text = format!("block {} on daemon 1 is lost: there is no header", of.block);
    assert_eq!(of.adopt(of.admin, 0), refused(Status::Lost, &text));
    assert_eq!((of.row().state, of.used(1)), (BlockState::Lost, 0));

    // Its region is deleted while the header is being written.
    let mut of = instance(2);
    of.loses(1);
    of.back(1, MIB);
    of.loses(2);
    of.rig.rewrites = false;
    let (block, from) = (of.block.get(), 0);
    let request = ClientRequest::Admin(AdminRequest::AdoptStale { block, from });
    let number = of.rig.ask_later(of.admin, request);
    assert_eq!(of.rig.answer(of.admin, number), None);
    assert_eq!(of.rig.done(of.client, super::rig::close(1)), ClientReply::Done);
    let key = of.key;
    of.rig.ask_later(of.client, ClientRequest::RegionDelete(key));
    let (answer, _) = of.rig.answer(of.admin, number).expect("an answer");
    assert_eq!(answer.unwrap_err().status, Status::Lost);
    let raise = of.rig.actions.iter().rev().find_map(|action| match action {
        Action::RaiseEpoch { raise, .. } => Some(*raise),
        _ => None,
    });
    let headers = vec![(daemon_id(1), Rewritten::Written)];
    let raise = raise.unwrap();
    of.rig.event(Event::EpochRaised { raise, block: of.block, headers });
}

//! What becomes of pointers of a session that has ended.

use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_shm::session::pin::{PinClaim, PinnedRange};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::copies::{rig, with_copies};
use super::rig::{MIB, Rig, daemon_id, open, region};
use crate::dispatcher::{Action, ClientConn, Event, FoundIntents, InspectId, Repair, Repaired};

const PART: u64 = 16 * PAGE_BYTES;

/// A client that has a region of two copies open to write.
struct Writer {
    rig: Rig,
    conn: ClientConn,
    session: SessionId,
    block: BlockId,
    base: u64,
}

fn writer() -> Writer {
    let mut rig = rig(2);
    let (conn, ready) = rig.session(1000);
    rig.done(conn, with_copies(region("r", MIB, 0o666), 2));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    rig.actions.clear();
    let block = opened.first.block;
    let base = rig.dispatcher.address(block);
    Writer { rig, conn, session: ready.session, block, base }
}

/// A range may begin in nothing, and reach what is there in between.
#[test]
fn what_a_range_reaches_is_carried_in_the_order_of_its_addresses() {
    let mut writer = writer();
    for (number, name) in [(2, "s"), (3, "t")] {
        writer.rig.done(writer.conn, with_copies(region(name, MIB, 0o666), 2));
        writer.rig.done(writer.conn, open(number, name, name == "t"));
    }
    writer.points(vec![pin(0, 5, u64::MAX / 2)], true);
    writer.dies();
    let carried = writer.carried();
    assert!(carried.is_sorted());
    let bytes = carried.iter().map(|(_, bytes)| bytes).sum::<u64>();
    assert_eq!((carried[0].0, bytes), (0, 2 * MIB), "one was open to read");
    assert!(!writer.is_wreck());
}

const fn pin(place: u16, addr: u64, bytes: u64) -> PinClaim {
    PinClaim { place, range: PinnedRange { addr, bytes, writable: true }, is_left: false }
}

impl Writer {
    /// It has pointers when it ends.
    fn points(&mut self, pins: Vec<PinClaim>, is_gone: bool) {
        let found = FoundIntents { pins, is_gone, ..FoundIntents::none() };
        self.rig.intents.insert(self.session, found);
    }

    fn dies(&mut self) {
        self.rig.event(Event::Died { session: self.session });
    }

    fn is_wreck(&self) -> bool {
        self.rig.dispatcher.snapshot().wrecks.contains(&self.session)
    }

    fn repaired(&mut self, repaired: Repaired) {
        self.rig.event(Event::Repaired { session: self.session, slot: 0, repaired });
    }

    /// What was carried: from where, how much.
    fn carried(&self) -> Vec<(u64, u64)> {
        let carried = self.rig.actions.iter().filter_map(|action| match action {
            Action::Repair(Repair { carried: Some((addr, bytes)), .. }) => {
                Some((addr.wrapping_sub(self.base), *bytes))
            }
            _ => None,
        });
        carried.collect()
    }

    fn freed(&self) -> Vec<u16> {
        let freed = self.rig.actions.iter().filter_map(|action| match action {
            Action::FreePin { pin, .. } => Some(*pin),
            _ => None,
        });
        freed.collect()
    }

    fn has_ended(&self) -> bool {
        self.rig.actions.contains(&Action::EndSession { session: self.session })
    }
}

#[test]
fn what_a_dead_process_pointed_to_is_carried_part_by_part() {
    let mut writer = writer();
    writer.points(vec![pin(7, writer.base + 100, PART + 200)], true);
    writer.rig.repairs = None;
    writer.dies();
    let first = PART - 100;
    assert_eq!(writer.carried(), [(100, first)]);
    assert!(writer.is_wreck() && writer.freed().is_empty());
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!(writer.carried(), [(100, first), (PART, 300)]);
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!((writer.freed(), writer.has_ended()), (vec![7], true));
    let clears = |action: &&Action| matches!(action, Action::ClearIntent { slot: 0, .. });
    assert_eq!(writer.rig.actions.iter().filter(clears).count(), 2);
    assert!(!writer.is_wreck());
}

#[test]
fn each_byte_is_carried_once_and_nothing_that_was_not_its_to_write() {
    let mut writer = writer();
    writer.rig.done(writer.conn, with_copies(region("read", MIB, 0o666), 2));
    let ClientReply::Opened(read) = writer.rig.done(writer.conn, open(2, "read", false)) else {
        panic!()
    };
    writer.rig.done(writer.conn, with_copies(region("one", MIB, 0o666), 1));
    let ClientReply::Opened(one) = writer.rig.done(writer.conn, open(3, "one", true)) else {
        panic!()
    };
    let address = |block| writer.rig.dispatcher.address(block);
    let base = writer.base;
    let pins = vec![
        pin(0, address(read.first.block), MIB),
        pin(1, address(one.first.block), MIB),
        pin(2, base + 10, 10),
        pin(3, base, 16),
        pin(4, base + MIB - 8, u64::MAX),
        pin(5, 0, 8),
        pin(6, u64::MAX - 7, 8),
        pin(7, 1 << 63, u64::MAX),
        pin(8, base + 100, 0),
    ];
    writer.points(pins, true);
    writer.dies();
    assert_eq!(writer.carried(), [(0, 20), (MIB - 8, 8)]);
    let mut freed = writer.freed();
    freed.sort_unstable();
    assert_eq!(freed, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(writer.has_ended());
}

/// What is stored by it later would be on one copy alone.
#[test]
fn a_pointer_is_carried_when_nobody_can_store_by_it_any_more() {
    let mut writer = writer();
    writer.points(vec![pin(0, writer.base, 8), pin(1, writer.base + PART, 8)], false);
    writer.rig.done(writer.conn, ClientRequest::Disconnect);
    assert!(writer.carried().is_empty() && writer.is_wreck());
    writer.rig.wait(10_000);
    assert!(writer.carried().is_empty() && writer.is_wreck());
    // One of them is left by a process that lives, and the other is freed.
    let left = PinClaim { is_left: true, ..pin(0, writer.base, 8) };
    writer.points(vec![left], false);
    writer.rig.wait(1000);
    assert_eq!((writer.carried(), writer.has_ended()), (vec![(0, 8)], true));

    let mut writer = self::writer();
    writer.points(vec![pin(0, writer.base, 8)], false);
    writer.rig.done(writer.conn, ClientRequest::Disconnect);
    writer.points(vec![pin(0, writer.base, 8)], true);
    writer.dies();
    assert_eq!((writer.carried(), writer.has_ended()), (vec![(0, 8)], true));
}

#[test]
fn a_page_that_is_held_is_tried_again_and_what_is_lost_is_decided_first() {
    let mut writer = writer();
    writer.points(vec![pin(0, writer.base, 2 * PART)], true);
    writer.rig.repairs = None;
    writer.dies();
    writer.repaired(Repaired::Busy);
    assert_eq!(writer.carried(), [(0, PART), (PART, PART)]);
    // The copy is gone: what the other has is brought to nobody, and given back.
    let reason = "it is gone".to_owned();
    writer.repaired(Repaired::Copy { daemon: daemon_id(1), reason });
    let found = vec![(writer.block, None)];
    let inspect = InspectId(u64::MAX);
    writer.rig.event(Event::Inspected { inspect, daemon: daemon_id(1), found });
    writer.rig.wait(200);
    let last = writer.rig.actions.iter().rev().find_map(|action| match action {
        Action::Repair(Repair { copies, wreck, .. }) => Some((copies.clone(), *wreck)),
        _ => None,
    });
    let (copies, wreck) = last.unwrap();
    assert_eq!((copies, wreck), (vec![daemon_id(2)], wreck.brought_from(daemon_id(2))));
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!(writer.carried().len(), 3, "there is nobody to carry the rest to");
    assert!(writer.has_ended());
}

#[test]
fn a_page_that_is_never_given_back_keeps_nothing_else_from_being_carried() {
    let mut writer = writer();
    let pins = vec![pin(7, writer.base, 3 * PART), pin(8, writer.base + 5 * PART, 8)];
    writer.points(pins, true);
    writer.rig.repairs = None;
    writer.dies();
    writer.repaired(Repaired::Busy);
    writer.repaired(Repaired::Done { lost: vec![] });
    writer.repaired(Repaired::Done { lost: vec![] });
    writer.repaired(Repaired::Done { lost: vec![] });
    let once = [(0, PART), (PART, PART), (2 * PART, PART), (5 * PART, 8)];
    assert_eq!((writer.carried(), writer.freed()), (once.to_vec(), vec![8]));
    for _ in 0..3 {
        assert!(writer.is_wreck() && !writer.has_ended());
        writer.rig.actions.clear();
        writer.rig.wait(200);
        assert_eq!(writer.carried(), [(0, PART)], "that alone, and after a while");
        writer.repaired(Repaired::Busy);
    }
    writer.rig.wait(200);
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!((writer.freed(), writer.has_ended()), (vec![7], true));
}

/// Who waits for its pages waits for this session, which may hold them.
#[test]
fn what_was_begun_is_ended_before_what_is_behind_it() {
    let mut writer = writer();
    writer.points(vec![pin(0, writer.base, 2 * PART)], true);
    writer.rig.repairs = None;
    writer.dies();
    writer.repaired(Repaired::Table { reason: "it is cut".to_owned() });
    writer.rig.wait(200);
    writer.repaired(Repaired::Busy);
    writer.rig.wait(200);
    assert_eq!(writer.carried(), [(0, PART); 3]);
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!(writer.carried().last(), Some(&(PART, PART)));
}

/// Each page of a region may be called held by whoever has the region open to write.
#[test]
fn many_pages_that_are_held_are_all_carried_in_the_end() {
    let mut writer = writer();
    let parts = 200;
    writer.rig.done(writer.conn, with_copies(region("s", parts * PART, 0o666), 2));
    let ClientReply::Opened(opened) = writer.rig.done(writer.conn, open(2, "s", true)) else {
        panic!()
    };
    writer.base = writer.rig.dispatcher.address(opened.first.block);
    writer.points(vec![pin(0, writer.base, parts * PART)], true);
    writer.rig.repairs = None;
    writer.dies();
    // Every other part is held, at first.
    let mut carried = Vec::new();
    let mut tries = 0;
    while !writer.has_ended() {
        let Some((addr, _)) = writer.carried().pop() else {
            writer.rig.wait(100);
            continue;
        };
        writer.rig.actions.clear();
        let is_held = tries < 2 * parts && (addr / PART).is_multiple_of(2);
        tries += 1;
        assert!(tries < 10 * parts, "it comes to an end");
        if is_held {
            writer.repaired(Repaired::Busy);
        } else {
            carried.push(addr);
            writer.repaired(Repaired::Done { lost: vec![] });
        }
    }
    carried.sort_unstable();
    let all: Vec<u64> = (0..parts).map(|part| part * PART).collect();
    assert_eq!((carried, writer.freed()), (all, vec![0]));
}

#[test]
fn what_a_slot_left_comes_before_what_is_carried_again() {
    let mut writer = writer();
    let (conn, ready) = writer.rig.session(1001);
    let (other, then) = writer.rig.session(1002);
    for conn in [conn, other] {
        writer.rig.done(conn, open(1, "r", true));
    }
    writer.points(vec![pin(0, writer.base, PART)], true);
    let progress = Progress::First { first: 1, undo: Undo::Absent };
    for session in [ready.session, then.session] {
        let claims = vec![(0, IntentClaim { addr: writer.base, bytes: PAGE_BYTES, progress })];
        writer.rig.intents.insert(session, FoundIntents { claims, ..FoundIntents::none() });
    }
    writer.rig.repairs = None;
    writer.dies();
    writer.repaired(Repaired::Busy);
    // The shell is at the first of them when the part that was busy is tried again.
    writer.rig.event(Event::Died { session: ready.session });
    writer.rig.wait(200);
    writer.rig.event(Event::Died { session: then.session });
    writer.rig.actions.clear();
    for session in [ready.session, then.session, writer.session] {
        let repaired = Repaired::Done { lost: vec![] };
        writer.rig.event(Event::Repaired { session, slot: 0, repaired });
    }
    let order = writer.rig.actions.iter().filter_map(|action| match action {
        Action::Repair(Repair { session, .. }) => Some(*session),
        _ => None,
    });
    assert_eq!(order.collect::<Vec<_>>(), [then.session, writer.session]);
    assert!(writer.has_ended());
}

#[test]
fn what_pointed_into_a_region_that_is_deleted_is_nobodys() {
    let mut writer = writer();
    writer.points(vec![pin(0, writer.base, MIB)], true);
    writer.rig.repairs = None;
    writer.dies();
    let (other, _) = writer.rig.session(0);
    let key = writer.rig.key(other, "r");
    writer.rig.ask_later(other, ClientRequest::RegionDelete(key));
    writer.repaired(Repaired::Done { lost: vec![] });
    assert_eq!(writer.carried().len(), 1);
    assert!(writer.has_ended());
}

#[test]
fn long_ranges_hold_up_no_other_wreck() {
    let mut writer = writer();
    let (conn, ready) = writer.rig.session(1001);
    writer.rig.done(conn, open(1, "r", true));
    writer.points(vec![pin(0, writer.base, MIB)], true);
    let pins = vec![pin(0, writer.base + MIB / 2, MIB / 2)];
    let found = FoundIntents { pins, ..FoundIntents::none() };
    writer.rig.intents.insert(ready.session, found);
    writer.rig.repairs = None;
    writer.dies();
    writer.rig.event(Event::Died { session: ready.session });
    let turns = [writer.session, ready.session, writer.session, ready.session];
    for session in turns {
        let last = writer.rig.actions.iter().rev().find_map(|action| match action {
            Action::Repair(Repair { session, .. }) => Some(*session),
            _ => None,
        });
        assert_eq!(last, Some(session));
        let repaired = Repaired::Done { lost: vec![] };
        writer.rig.event(Event::Repaired { session, slot: 0, repaired });
    }
}

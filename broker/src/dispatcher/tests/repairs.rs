//! What becomes of a session that has ended over a write to a region of several copies.

mod restarted;

use dmce_abi::Status;
use dmce_abi::block::{BlockId, SessionId};
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::admin::AdminRequest;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Opened};
use dmce_shm::slot::intent::{IntentClaim, Progress, Undo};

use super::copies::{rig, rig_that_syncs, with_copies};
use super::rig::{GIB, MIB, Rig, close, config, daemon_id, open, region, setup};
use super::syncing::idle;
use crate::dispatcher::{
    Action, ClientConn, Event, FoundIntents, FoundTable, InspectId, Limits, LogLevel, Made, Repair,
    Repaired, Rewritten, Started,
};

/// Half of the first copy is written.
const FIRST: Progress = Progress::First { first: 1, undo: Undo::Absent };

/// A client that has a region of two copies open to write.
struct Writer {
    rig: Rig,
    conn: ClientConn,
    session: SessionId,
    block: BlockId,
    opened: Opened,
}

fn writer() -> Writer {
    writer_of(rig(2))
}

fn writer_of(mut rig: Rig) -> Writer {
    let (conn, ready) = rig.session(1000);
    rig.done(conn, with_copies(region("r", MIB, 0o666), 2));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    rig.actions.clear();
    Writer { rig, conn, session: ready.session, block: opened.first.block, opened }
}

impl Writer {
    fn claim(&self, cell: u64, bytes: u64, progress: Progress) -> IntentClaim {
        IntentClaim { addr: self.rig.dispatcher.address(self.block) + cell, bytes, progress }
    }

    /// So many slots were writing a page each.
    fn writes(&mut self, slots: u8) {
        let claim = |slot| (slot, self.claim(u64::from(slot) * PAGE_BYTES, 8, FIRST));
        let claims = (0..slots).map(claim).collect();
        self.rig.intents.insert(self.session, FoundIntents { claims, ..FoundIntents::none() });
    }

    fn dies(&mut self) {
        self.rig.event(Event::Died { session: self.session });
    }

    /// The object of a copy is gone, and that is seen.
    fn loses(&mut self, daemon: u32) {
        let (inspect, found) = (InspectId(u64::MAX), vec![(self.block, None)]);
        self.rig.event(Event::Inspected { inspect, daemon: daemon_id(daemon), found });
    }

    fn repaired(&mut self, slot: u8, repaired: Repaired) {
        self.rig.event(Event::Repaired { session: self.session, slot, repaired });
    }

    fn is_wreck(&self) -> bool {
        self.rig.dispatcher.snapshot().wrecks.contains(&self.session)
    }

    /// What was done since the session began, of this.
    fn history(&self) -> Vec<&'static str> {
        let what = |action: &Action| match action {
            Action::Publish { session, .. } if *session == self.session => Some("publish"),
            Action::ReadIntents { .. } => Some("read"),
            Action::Repair(Repair { has_locks: true, .. }) => Some("repair"),
            Action::Repair(Repair { has_locks: false, .. }) => Some("level"),
            Action::ClearIntent { .. } => Some("clear"),
            Action::EndSession { session } if *session == self.session => Some("end"),
            Action::InspectLocks { .. } => Some("look at the table"),
            Action::Inspect { .. } => Some("look at a copy"),
            Action::MakeLocks { .. } => Some("make a table"),
            _ => None,
        };
        self.rig.actions.iter().filter_map(what).collect()
    }
}

fn warnings(rig: &Rig) -> Vec<&str> {
    let text = |action| match action {
        &Action::Log { level: LogLevel::Warn, ref text } => Some(text.as_str()),
        _ => None,
    };
    rig.actions.iter().filter_map(text).collect()
}

#[test]
fn a_session_ends_when_what_it_left_is_repaired_slot_by_slot() {
    let mut writer = writer();
    writer.writes(2);
    writer.rig.repairs = None;
    writer.dies();
    assert_eq!(writer.history(), ["publish", "read", "repair"]);
    assert!(writer.is_wreck() && writer.rig.dispatcher.snapshot().sessions.is_empty());
    let is_repair = |action: &&Action| matches!(action, Action::Repair(Repair { slot: 0, .. }));
    let Some(Action::Repair(Repair { block, guid, copies, committed, .. })) =
        writer.rig.actions.iter().find(is_repair)
    else {
        panic!("{:?}", writer.rig.actions)
    };
    assert_eq!((*block, *guid), (writer.block, writer.opened.first.guid));
    assert_eq!((*committed, &copies[..]), (MIB, &[daemon_id(1), daemon_id(2)][..]));
    // Of another, or of a slot that the shell is not at.
    writer.repaired(1, Repaired::Done { lost: vec![] });
    writer.repaired(0, Repaired::Done { lost: vec![] });
    assert_eq!(writer.history()[3..], ["clear", "repair"]);
    assert!(writer.is_wreck());
    writer.repaired(1, Repaired::Done { lost: vec![7] });
    assert_eq!(writer.history()[5..], ["clear", "end"]);
    assert!(!writer.is_wreck());
    writer.repaired(1, Repaired::Done { lost: vec![] });
}

#[test]
fn who_wrote_nothing_that_others_share_ends_at_once() {
    let mut rig = rig(2);
    let (owner, _) = rig.session(1000);
    rig.done(owner, with_copies(region("two", MIB, 0o666), 2));
    rig.done(owner, with_copies(region("one", MIB, 0o666), 1));
    let (reader, ready) = rig.session(1001);
    rig.done(reader, open(1, "two", false));
    rig.done(reader, open(2, "one", true));
    rig.done(reader, open(3, "two", true));
    rig.done(reader, close(3));
    rig.actions.clear();
    rig.event(Event::Died { session: ready.session });
    assert!(rig.actions.contains(&Action::EndSession { session: ready.session }));
    assert!(!rig.actions.iter().any(|action| matches!(action, Action::ReadIntents { .. })));
}

#[test]
fn a_wreck_keeps_its_id_and_counts_as_a_session_and_has_nothing_open() {
    let mut config = config();
    config.copies_max = 3;
    config.limits = Limits { sessions_max: 2, ..config.limits };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    rig.daemon(2, GIB);
    let mut writer = writer_of(rig);
    writer.rig.reads = false;
    writer.rig.done(writer.conn, ClientRequest::Disconnect);
    assert_eq!(writer.history(), ["publish", "read"]);
    let (other, _) = writer.rig.session(0);
    let conn = writer.rig.connect(900, 1001);
    let refusal = writer.rig.refused(conn, setup(0, false));
    assert_eq!(refusal.text, "there are 2 sessions, limit 2");
    // Nobody has it open: it may be deleted. What was being written goes with it.
    let key = writer.rig.key(other, "r");
    assert_eq!(writer.rig.done(other, ClientRequest::RegionDelete(key)), ClientReply::Done);
    let place = |action: &Action| matches!(action, Action::RevokeGrant { .. });
    let revoked = writer.rig.actions.iter().position(place).unwrap();
    let is_destroy = |action: &Action| matches!(action, Action::ToDaemon { .. });
    assert!(writer.rig.actions[revoked..].iter().any(is_destroy));
    assert!(!writer.is_wreck());
    let found = Ok(FoundIntents::none());
    writer.rig.event(Event::IntentsRead { session: writer.session, found });
    let conn = writer.rig.connect(901, 1000);
    assert!(matches!(writer.rig.done(conn, setup(0, false)), ClientReply::Ready(_)));
}

#[test]
fn what_the_dead_wrote_first_to_a_copy_that_goes_is_made_whole_from_there() {
    for is_there in [true, false] {
        let mut writer = writer_of(rig_that_syncs(3, 2));
        writer.rig.idles = false;
        let root = writer.rig.connect(1, 0);
        let block = writer.block.get();
        let request = AdminRequest::Migrate { block, from: 0, to: 3 };
        writer.rig.ask_later(root, ClientRequest::Admin(request));
        idle(&mut writer.rig);
        idle(&mut writer.rig);
        writer.writes(1);
        writer.rig.repairs = None;
        writer.dies();
        let last = writer.rig.actions.iter().rev().find_map(|action| match action {
            Action::Repair(Repair { copies, .. }) => Some(copies.clone()),
            _ => None,
        });
        assert_eq!(last, Some([3, 2, 1].map(daemon_id).to_vec()));
        assert_eq!(writer.rig.daemons[&1].destroyed, []);
        let reason = "it is gone".to_owned();
        let gone = Repaired::Copy { daemon: daemon_id(1), reason };
        writer.repaired(0, if is_there { Repaired::Done { lost: vec![] } } else { gone });
        assert_eq!(writer.rig.daemons[&1].destroyed, [writer.block]);
        assert_eq!(writer.is_wreck(), !is_there);
    }
}

#[test]
fn what_cannot_be_is_repaired_nowhere_and_told_once() {
    let mut writer = writer();
    let (other, _) = writer.rig.session(1001);
    writer.rig.done(other, with_copies(region("secret", MIB, 0o600), 2));
    let ClientReply::Opened(secret) = writer.rig.done(other, open(1, "secret", true)) else {
        panic!()
    };
    writer.rig.done(writer.conn, with_copies(region("read", MIB, 0o666), 2));
    let ClientReply::Opened(only_read) = writer.rig.done(writer.conn, open(2, "read", false))
    else {
        panic!()
    };
    let address = |block| writer.rig.dispatcher.address(block);
    let own = address(writer.block);
    let bad = [
        (address(secret.first.block), 8),
        (address(only_read.first.block), 8),
        (own, MIB + 1),
        (own + MIB, 8),
        (own + MIB - 4, 8),
        (own, 16 * PAGE_BYTES + 1),
        (own + 1, 16 * PAGE_BYTES),
        (own, u64::MAX),
        (u64::MAX, 8),
        (0, 8),
        (1 << 63, u64::MAX),
    ];
    let claim = |(addr, bytes)| IntentClaim { addr, bytes, progress: FIRST };
    let claims = (0..).zip(bad.into_iter().map(claim)).collect();
    writer.rig.intents.insert(writer.session, FoundIntents { claims, ..FoundIntents::none() });
    writer.rig.actions.clear();
    writer.dies();
    assert_eq!(writer.history(), ["publish", "read", "end"]);
    let warned: Vec<&str> = warnings(&writer.rig);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("left 11 intents that cannot be; slot 0: "), "{warned:?}");
}

#[test]
fn all_slots_at_once_are_repaired_one_after_another() {
    let mut writer = writer();
    let nonsense = writer.claim(0, 16 * PAGE_BYTES, Progress::Nonsense);
    let claims = (0..=u8::MAX).map(|slot| (slot, nonsense)).collect();
    writer.rig.intents.insert(writer.session, FoundIntents { claims, ..FoundIntents::none() });
    writer.rig.repairs = None;
    writer.dies();
    for slot in 0..=u8::MAX {
        let asked = writer.history().into_iter().filter(|done| *done == "repair").count();
        assert_eq!(asked, usize::from(slot) + 1);
        writer.repaired(slot, Repaired::Done { lost: vec![] });
    }
    assert_eq!(writer.history().last(), Some(&"end"));
}

#[test]
fn while_it_is_decided_which_copies_there_are_nothing_is_repaired() {
    let mut writer = writer();
    writer.writes(1);
    writer.rig.rewrites = false;
    writer.loses(1);
    writer.dies();
    assert_eq!(writer.history(), ["publish", "publish", "read"]);
    let raise = writer.rig.actions.iter().rev().find_map(|action| match action {
        Action::RaiseEpoch { raise, .. } => Some(*raise),
        _ => None,
    });
    let headers = vec![(daemon_id(2), Rewritten::Written)];
    let block = writer.block;
    writer.rig.event(Event::EpochRaised { raise: raise.unwrap(), block, headers });
    assert_eq!(writer.history()[3..], ["repair", "clear", "end"]);
    let repair = writer.rig.actions.iter().find_map(|action| match action {
        Action::Repair(Repair { copies, .. }) => Some(copies.clone()),
        _ => None,
    });
    assert_eq!(repair, Some(vec![daemon_id(2)]));
}

#[test]
fn of_a_block_that_is_lost_the_locks_are_given_back_if_there_are_any() {
    let mut writer = writer();
    writer.writes(1);
    writer.rig.rewrites = false;
    writer.loses(1);
    writer.dies();
    writer.loses(2);
    assert_eq!(writer.history()[3..], ["repair", "clear", "end"]);
    let repair = writer.rig.actions.iter().find_map(|action| match action {
        Action::Repair(Repair { copies, has_locks, .. }) => Some((copies.len(), *has_locks)),
        _ => None,
    });
    assert_eq!(repair, Some((0, true)));
    // With the table no lock is left.
    let mut writer = self::writer();
    writer.writes(1);
    writer.rig.repairs = Some(Repaired::Table { reason: "it is gone".to_owned() });
    writer.loses(1);
    writer.loses(2);
    writer.dies();
    assert_eq!(writer.history().last(), Some(&"end"));
}

/// Its session has ended, and nobody knows whether it stores.
#[test]
fn of_a_process_that_lives_slots_in_an_operation_are_waited_for() {
    let mut writer = writer();
    let claims = vec![(3, writer.claim(0, 8, FIRST))];
    let busy = FoundIntents { claims, is_all: false, is_gone: false, ..FoundIntents::none() };
    writer.rig.intents.insert(writer.session, busy);
    let (conn, reason) = (writer.conn, "nonsense".to_owned());
    writer.rig.event(Event::Hostile { conn, reason });
    // One slot has left its operation, and what it left is repaired. It is not repaired twice.
    assert_eq!(writer.history(), ["publish", "read", "repair", "clear"]);
    writer.rig.intents.get_mut(&writer.session).unwrap().claims =
        vec![(3, writer.claim(0, 8, FIRST))];
    writer.rig.wait(200);
    assert_eq!(writer.history()[4..].iter().filter(|done| **done != "read").count(), 0);
    assert!(writer.is_wreck() && writer.history().len() > 5, "{:?}", writer.history());
    let looks = writer.history().len();
    writer.rig.wait(60_000);
    assert!(writer.history().len() < looks + 300, "it is looked at more and more rarely");
    writer.writes(5);
    writer.rig.actions.clear();
    writer.dies();
    let done = writer.history();
    assert_eq!(done[..2], ["read", "repair"]);
    assert_eq!(done.iter().filter(|done| **done == "repair").count(), 4);
    assert_eq!(done.last(), Some(&"end"));
}

#[test]
fn of_a_session_that_cut_its_object_nothing_is_known() {
    let mut writer = writer();
    writer.rig.reads = false;
    writer.dies();
    let found = Err("the object is too short".to_owned());
    writer.rig.event(Event::IntentsRead { session: writer.session, found });
    assert_eq!(writer.history(), ["publish", "read", "end"]);
}

#[test]
fn a_copy_that_cannot_be_repaired_is_looked_at_and_repaired_again_or_left_out() {
    for is_lost in [false, true] {
        let mut writer = writer();
        writer.writes(1);
        let (daemon, reason) = (daemon_id(1), "somebody cut it".to_owned());
        writer.rig.repairs = Some(Repaired::Copy { daemon, reason });
        writer.dies();
        assert_eq!(writer.history(), ["publish", "read", "repair", "look at a copy"]);
        writer.rig.repairs = Some(Repaired::Done { lost: vec![] });
        if is_lost {
            writer.loses(1);
        }
        assert_eq!(writer.history().len(), 4, "not at once");
        writer.rig.wait(200);
        assert_eq!(writer.history()[4..], ["repair", "clear", "end"]);
        let copies = writer.rig.actions.iter().rev().find_map(|action| match action {
            Action::Repair(Repair { copies, .. }) => Some(copies.len()),
            _ => None,
        });
        assert_eq!(copies, Some(if is_lost { 1 } else { 2 }));
    }
}

#[test]
fn a_table_that_cannot_be_used_is_looked_at_and_if_it_is_there_used_again() {
    let mut writer = writer();
    writer.writes(1);
    writer.rig.repairs = Some(Repaired::Table { reason: "the page is gone".to_owned() });
    writer.dies();
    assert_eq!(writer.history(), ["publish", "read", "repair", "look at the table"]);
    let (block, guid) = (writer.block, Some(writer.opened.first.guid));
    let found = Some(FoundTable { block, guid, bytes: MIB });
    writer.rig.event(Event::LocksInspected { block, found });
    writer.rig.repairs = Some(Repaired::Done { lost: vec![] });
    writer.rig.wait(200);
    assert_eq!(writer.history()[4..], ["repair", "clear", "end"]);
}

#[test]
fn a_table_is_made_anew_when_what_the_dead_were_writing_is_equal_without_it() {
    let mut writer = writer();
    let (other, _) = writer.rig.session(1001);
    writer.rig.done(other, open(1, "r", true));
    writer.writes(2);
    writer.rig.repairs = Some(Repaired::Table { reason: "the page is gone".to_owned() });
    writer.rig.idles = false;
    writer.dies();
    writer.rig.actions.clear();
    let block = writer.block;
    writer.rig.event(Event::LocksInspected { block, found: None });
    // The other one may still use the old table.
    writer.rig.wait(200);
    assert_eq!(writer.history(), [] as [&str; 0]);
    writer.rig.repairs = None;
    let awaited = writer.rig.actions.iter().rev().find_map(|action| match *action {
        Action::AwaitIdle { session, epoch, .. } => Some(Event::Idle { session, block, epoch }),
        _ => None,
    });
    writer.rig.event(awaited.unwrap());
    assert_eq!(writer.history(), ["level"]);
    writer.repaired(0, Repaired::Done { lost: vec![3] });
    assert_eq!(writer.history(), ["level", "level"], "the intent stays until the table says it");
    writer.rig.makes_locks = Some(Made::Unusable { reason: "no room for words".to_owned() });
    writer.repaired(1, Repaired::Done { lost: vec![] });
    assert_eq!(writer.history(), ["level", "level", "make a table"]);
    writer.rig.makes_locks = Some(Made::Whole);
    writer.rig.wait(200);
    assert_eq!(writer.history()[3..], ["make a table", "clear", "clear", "end"]);
    let lost = writer.rig.actions.iter().rev().find_map(|action| match action {
        Action::MakeLocks { lost, .. } => Some(lost.clone()),
        _ => None,
    });
    assert_eq!(lost, Some(vec![3]));
    assert!(!writer.rig.dispatcher.snapshot().blocks[&block].losing);
}

/// It is never said to be idle: its slots are in no operation, and pages are half written.
#[test]
fn a_table_waits_for_who_has_left_a_write_behind_until_it_ends() {
    let mut writer = writer();
    writer.writes(1);
    writer.rig.idles = false;
    let block = writer.block;
    writer.rig.event(Event::LocksInspected { block, found: None });
    assert_eq!(writer.history(), ["publish"]);
    writer.rig.repairs = None;
    let conn = writer.conn;
    writer.rig.done(conn, ClientRequest::Disconnect);
    assert_eq!(writer.history()[1..], ["publish", "read", "level"]);
    writer.repaired(0, Repaired::Done { lost: vec![] });
    assert_eq!(writer.history()[4..], ["make a table", "clear", "end"]);
}

#[test]
fn a_table_waits_for_a_wreck_of_which_nothing_is_known_yet() {
    let mut writer = writer();
    writer.rig.reads = false;
    writer.dies();
    let block = writer.block;
    writer.rig.event(Event::LocksInspected { block, found: None });
    assert_eq!(writer.history(), ["publish", "read"]);
    let claims = vec![(9, writer.claim(0, 8, FIRST))];
    let found = Ok(FoundIntents { claims, ..FoundIntents::none() });
    writer.rig.intents.insert(writer.session, FoundIntents::none());
    writer.rig.event(Event::IntentsRead { session: writer.session, found });
    assert_eq!(writer.history()[2..], ["level", "make a table", "clear", "end"]);
}

/// Otherwise it would be opened for nobody, as soon as that is decided.
#[test]
fn who_gives_up_a_region_that_is_decided_on_does_not_have_it_open_afterwards() {
    let mut writer = writer();
    writer.rig.rewrites = false;
    writer.loses(1);
    let (conn, ready) = writer.rig.session(1001);
    let number = writer.rig.ask_later(conn, open(7, "r", true));
    assert!(writer.rig.answer(conn, number).is_none());
    writer.rig.done(conn, close(7));
    let (reply, _) = writer.rig.answer(conn, number).unwrap();
    assert_eq!(reply.unwrap_err().status, Status::Closed);
    writer.loses(2);
    assert!(writer.rig.dispatcher.snapshot().openings[&ready.session].is_empty());
}

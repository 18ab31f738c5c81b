//! Copies that are compared: what is asked of whom, how fast, and what is answered.

use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::admin::{AdminReply, AdminRequest};
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonRequest};
use dmce_abi::wire::scrub::ScrubFound;
use dmce_abi::wire::{Refusal, admin};

use super::copies::with_copies;
use super::rig::{GIB, MIB, Mood, Rig, config, region};
use crate::dispatcher::{Action, ClientConn, Event, RequestId, Started};

const PART: u64 = 2 * MIB;

/// Two daemons, and regions of these many MiB, of two copies each.
fn rig(rate: u64, every_ms: u64, regions: &[u64]) -> Rig {
    let mut config = config();
    (config.copies_max, config.syncs_max) = (3, 2);
    (config.scrub_rate, config.scrub_every_ms) = (rate, every_ms);
    let mut rig = Rig::started(config, Started::default());
    (1..=2).for_each(|id| rig.daemon(id, GIB));
    let (owner, _) = rig.session(1000);
    for (place, mib) in regions.iter().enumerate() {
        rig.done(owner, with_copies(region(&format!("r{place}"), mib * MIB, 0o666), 2));
    }
    rig.actions.clear();
    rig
}

fn ask(rig: &mut Rig, block: u32) -> (ClientConn, RequestId) {
    let root = rig.connect(1, 0);
    (root, rig.ask_later(root, ClientRequest::Admin(AdminRequest::Scrub { block })))
}

fn answer(
    rig: &mut Rig,
    (conn, number): (ClientConn, RequestId),
) -> Option<Result<(u32, ScrubFound), Refusal>> {
    let (reply, _) = rig.answer(conn, number)?;
    Some(reply.map(|reply| match reply {
        ClientReply::Admin(AdminReply::Scrubbed { blocks, found }) => (blocks, found),
        other => panic!("{other:?}"),
    }))
}

/// The parts that daemons were asked to compare: block, cell, bytes.
fn asked(rig: &Rig) -> Vec<(BlockId, u64, u64)> {
    let part = |action: &Action| match action {
        Action::ToDaemon { request: DaemonRequest::Scrub { block, cell, bytes, .. }, .. } => {
            Some((*block, *cell, u64::from(*bytes)))
        }
        _ => None,
    };
    rig.actions.iter().filter_map(part).collect()
}

fn status(rig: &mut Rig) -> admin::Scrub {
    let root = rig.connect(1, 0);
    match rig.done(root, ClientRequest::Admin(AdminRequest::Status)) {
        ClientReply::Admin(AdminReply::Status(report)) => report.scrub,
        other => panic!("{other:?}"),
    }
}

fn checked(pages: u64) -> ScrubFound {
    ScrubFound { checked: pages, ..ScrubFound::default() }
}

/// A daemon does all that it was asked before it is asked to compare something, and answers that.
fn tell(rig: &mut Rig, daemon: u32, answer: Result<DaemonAnswer, Refusal>) {
    while !matches!(rig.daemons[&daemon].asked[0].1, DaemonRequest::Scrub { .. }) {
        rig.obey(daemon);
    }
    let (number, _) = rig.daemons.get_mut(&daemon).unwrap().asked.remove(0);
    rig.tell(daemon, number.0, DaemonMessage::Reply(answer));
}

fn primary(rig: &mut Rig, block: u32) -> u32 {
    super::syncing::copies(rig, super::rig::block_id(block))[0].0
}

#[test]
fn all_blocks_are_gone_through_part_by_part_and_it_is_answered_what_was_found() {
    let mut rig = rig(0, 0, &[5, 1, 2]);
    let question = ask(&mut rig, 0);
    let all = answer(&mut rig, question).unwrap().unwrap();
    assert_eq!(all, (3, checked(8 * MIB / 4096)));
    let [first, second, third] = [1, 2, 3].map(super::rig::block_id);
    assert_eq!(
        asked(&rig),
        [
            (first, 0, PART),
            (first, PART, PART),
            (first, 2 * PART, MIB),
            (second, 0, MIB),
            (third, 0, PART),
        ]
    );
    let report = status(&mut rig);
    assert_eq!((report.passes, report.last_at, report.last), (0, 1000, all.1));
}

#[test]
fn one_block_is_gone_through_alone_and_none_that_is_not_there() {
    let mut rig = rig(0, 0, &[1, 3, 1]);
    let question = ask(&mut rig, 2);
    assert_eq!(answer(&mut rig, question).unwrap().unwrap(), (1, checked(3 * MIB / 4096)));
    assert!(asked(&rig).iter().all(|(id, _, _)| id.get() == 2));
    assert_eq!(status(&mut rig).last_at, 0, "it was not all");
    let root = rig.connect(1, 0);
    let none = ClientRequest::Admin(AdminRequest::Scrub { block: 9 });
    assert_eq!(rig.status(root, none.clone()), Status::NotFound);
    let user = rig.connect(5, 1000);
    assert_eq!(rig.status(user, none), Status::Denied);
}

#[test]
fn no_more_is_compared_than_the_rate_allows_in_all_copies() {
    let mut rig = rig(2 * PART, 0, &[8]);
    let question = ask(&mut rig, 0);
    // Each part is of two copies: one a second, and one at once.
    for second in 0..4 {
        assert_eq!(asked(&rig).len(), second + 1);
        assert!(answer(&mut rig, question).is_some() == (second == 3));
        rig.wait(1000);
    }
    let question = ask(&mut rig, 0);
    let report = status(&mut rig);
    assert_eq!((report.passes, report.done, report.all), (1, 2 * PART, 16 * MIB));
    assert!(report.rate > 0);
    rig.wait(5000);
    assert!(answer(&mut rig, question).is_some());
}

#[test]
fn it_is_done_by_itself_in_time_and_who_asks_comes_first() {
    let mut rig = rig(2 * PART, 60_000, &[4, 4]);
    rig.wait(59_000);
    assert!(asked(&rig).is_empty());
    rig.wait(1000);
    assert_eq!(asked(&rig).len(), 1);
    let question = ask(&mut rig, 2);
    assert_eq!(status(&mut rig).passes, 2);
    rig.wait(2000);
    assert!(answer(&mut rig, question).unwrap().is_ok());
    let blocks: Vec<u32> = asked(&rig).iter().map(|(id, _, _)| id.get()).collect();
    assert_eq!(blocks, [1, 2, 2]);
    rig.wait(4000);
    assert_eq!((asked(&rig).len(), status(&mut rig).last), (6, checked(8 * MIB / 4096)));
    rig.wait(58_000);
    assert_eq!(asked(&rig).len(), 6);
    rig.wait(7000);
    assert_eq!(asked(&rig).len(), 10);
}

#[test]
fn what_was_not_compared_is_tried_again_and_then_counts_as_busy() {
    let mut rig = rig(0, 0, &[2]);
    let daemon = primary(&mut rig, 1);
    rig.mood(daemon, Mood::Waits);
    let question = ask(&mut rig, 0);
    let nothing = DaemonAnswer::Scrubbed { bytes: 0, found: ScrubFound::default() };
    tell(&mut rig, daemon, Ok(nothing.clone()));
    assert!(rig.daemons[&daemon].asked.is_empty(), "not at once");
    rig.wait(100);
    // Half of it, and then nothing any more.
    let half = DaemonAnswer::Scrubbed { bytes: 1 << 20, found: checked(256) };
    tell(&mut rig, daemon, Ok(half));
    for _ in 0..6 {
        tell(&mut rig, daemon, Ok(nothing.clone()));
        rig.wait(1300);
    }
    let found = ScrubFound { busy: 256, ..checked(256) };
    assert_eq!(answer(&mut rig, question).unwrap().unwrap(), (0, found));
}

#[test]
fn a_daemon_that_goes_or_is_silent_is_not_waited_for() {
    for dies in [true, false] {
        let mut rig = rig(0, 0, &[2, 2]);
        let daemon = primary(&mut rig, 1);
        rig.mood(daemon, Mood::Waits);
        let question = ask(&mut rig, 0);
        assert_eq!(rig.daemons[&daemon].asked.len(), 1);
        if dies {
            rig.daemon_dies(daemon);
        }
        for _ in 0..10 {
            rig.wait(1000);
        }
        let (_, found) = answer(&mut rig, question).unwrap().unwrap();
        assert_eq!((found.busy > 0, found.pages()), (true, 1024), "{found:?}");
    }
}

#[test]
fn what_is_lost_is_counted_and_who_has_gone_is_not_answered() {
    let mut rig = rig(0, 0, &[2, 2]);
    let daemon = primary(&mut rig, 1);
    rig.mood(daemon, Mood::Waits);
    let question = ask(&mut rig, 0);
    rig.event(Event::HungUp { conn: question.0 });
    assert_eq!(status(&mut rig).passes, 0);
    let found = ScrubFound { repaired: 1, quarantined: 2, ..checked(509) };
    tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found }));
    assert!(answer(&mut rig, question).is_none());
}

/// With the table went which pages were lost.
#[test]
fn a_block_whose_lock_table_was_made_anew_is_compared_at_once_and_first() {
    let mut rig = rig(2 * PART, 0, &[4, 2]);
    let question = ask(&mut rig, 1);
    let block = super::rig::block_id(2);
    rig.event(Event::LocksInspected { block, found: None });
    rig.wait(3000);
    let blocks: Vec<u32> = asked(&rig).iter().map(|(id, _, _)| id.get()).collect();
    assert_eq!(blocks, [1, 2, 1]);
    assert!(answer(&mut rig, question).unwrap().is_ok());
}

#[test]
fn a_block_that_lost_its_table_waits_once_and_until_it_can_be_compared() {
    let mut rig = rig(0, 0, &[2]);
    let (daemon, block) = (primary(&mut rig, 1), super::rig::block_id(1));
    rig.mood(daemon, Mood::Waits);
    for _ in 0..3 {
        rig.event(Event::LocksInspected { block, found: None });
        rig.wait(100);
    }
    assert_eq!(status(&mut rig).passes, 1);
    let busy = ScrubFound { busy: 512, ..ScrubFound::default() };
    for rest in [1000, 2000] {
        tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found: busy }));
        rig.wait(rest);
    }
    tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found: checked(512) }));
    rig.actions.clear();
    rig.wait(5000);
    assert_eq!((asked(&rig).len(), status(&mut rig).passes), (0, 0));
}

/// What is held there may be so for long.
#[test]
fn a_block_that_cannot_be_compared_is_left_alone_for_longer_each_time() {
    let mut rig = rig(0, 0, &[2]);
    let (daemon, block) = (primary(&mut rig, 1), super::rig::block_id(1));
    rig.mood(daemon, Mood::Waits);
    rig.event(Event::LocksInspected { block, found: None });
    rig.wait(100);
    let busy = ScrubFound { busy: 512, ..ScrubFound::default() };
    for rest in [1, 2, 4, 8, 16, 32, 64, 64] {
        tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found: busy }));
        rig.actions.clear();
        rig.mood(daemon, Mood::Obeys);
        rig.wait(rest * 1000 - 100);
        assert_eq!(asked(&rig).len(), 0, "before {rest} s");
        rig.mood(daemon, Mood::Waits);
        rig.wait(100);
        assert_eq!(asked(&rig).len(), 1, "after {rest} s");
    }
    tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found: busy }));
    // With another table it begins with the shortest.
    rig.event(Event::LocksInspected { block, found: None });
    rig.wait(100);
    tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes: 2 << 20, found: busy }));
    rig.actions.clear();
    rig.wait(1000);
    assert_eq!(asked(&rig).len(), 1);
}

#[test]
fn a_daemon_that_lies_about_it_is_not_believed() {
    let more = ScrubFound { checked: u64::MAX, repaired: u64::MAX, ..ScrubFound::default() };
    let lies = [
        (2 << 20, more),
        (4 << 20, checked(1024)),
        (0, checked(1)),
        (1, checked(1)),
        (1 << 20, checked(255)),
    ];
    for (bytes, found) in lies {
        let mut rig = rig(0, 0, &[2]);
        let daemon = primary(&mut rig, 1);
        rig.mood(daemon, Mood::Waits);
        let _question = ask(&mut rig, 0);
        rig.actions.clear();
        tell(&mut rig, daemon, Ok(DaemonAnswer::Scrubbed { bytes, found }));
        let is_closed = |action: &Action| matches!(action, Action::CloseDaemon { .. });
        assert!(rig.actions.iter().any(is_closed), "{bytes} {found:?}");
    }
}

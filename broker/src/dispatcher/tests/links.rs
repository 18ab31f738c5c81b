use dmce_abi::Status;
use dmce_abi::block::{BlockId, Guid};
use dmce_abi::rate::Rate;
use dmce_abi::wire::client::{ClientReply, ClientRequest, Delete, Reach, Reached};
use dmce_abi::wire::daemon::{DaemonAnswer, DaemonMessage, DaemonRequest};
use dmce_abi::wire::data::{Bytes, DataReply, DataRequest, LinkGrant, LinkId, Target};

use super::rig::{GIB, MIB, Mood, Rig, block_id, close, config, heap, open, region, span};
use crate::dispatcher::{Action, ClientConn, Descriptor, Event, Quota, Started};

const NONE: LinkId = LinkId(0);

fn reach(block: BlockId, writable: bool) -> ClientRequest {
    ClientRequest::Reach(Reach { block, writable, direct: true, broken: NONE })
}

/// Reaches a block; the link, and whether it is a new one.
fn link(rig: &mut Rig, conn: ClientConn, request: ClientRequest) -> (LinkId, bool) {
    let number = rig.ask_later(conn, request);
    let (reply, descriptors) = rig.answer(conn, number).expect("an answer");
    let Ok(ClientReply::Reached(Reached { link, .. })) = reply else { panic!("{reply:?}") };
    let new = matches!(descriptors[..], [Descriptor::Link { link: its, .. }] if its == link);
    assert_eq!(new, !descriptors.is_empty());
    (link, new)
}

/// What daemons were told since the last look.
fn told(rig: &mut Rig) -> Vec<DaemonRequest> {
    let actions = std::mem::take(&mut rig.actions);
    let told = actions.into_iter().filter_map(|action| match action {
        Action::ToDaemon { request_id, request, .. } if request_id.0 == 0 => Some(request),
        _ => None,
    });
    told.collect()
}

fn target(block: BlockId, guid: Guid) -> Target {
    Target { block, guid, cell: 0 }
}

fn read(at: Target, bytes: u32) -> ClientRequest {
    ClientRequest::Data(DataRequest::Read { at, bytes })
}

fn write(at: Target, bytes: usize) -> ClientRequest {
    ClientRequest::Data(DataRequest::Write { at, data: Bytes(vec![1; bytes]) })
}

/// The daemon counts what comes over links, by what it was told with each.
#[test]
fn a_link_tells_the_rate_of_its_user() {
    let per_s = |requests_per_s| Quota { requests_per_s, ..Quota::UNLIMITED };
    let mut config = config();
    config.quota = Quota { requests_burst: 300, ..per_s(200) };
    config.quotas.extend([(1001, per_s(70)), (1002, per_s(0)), (1003, Quota::UNLIMITED)]);
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let rates = [(200, 300), (70, 70), (1, 1), (0, 0)];
    for (user, (per_s, burst)) in (1000..).zip(rates) {
        let (conn, _) = rig.session(user);
        let first = rig.granted(conn, heap(1, MIB)).first;
        // However few they are a second.
        rig.wait(5_000);
        let number = rig.ask_later(conn, reach(first.block, true));
        let (_, descriptors) = rig.answer(conn, number).expect("an answer");
        let [Descriptor::Link { uid, rate, .. }] = descriptors[..] else { panic!("no link") };
        assert_eq!((uid, rate), (user, Rate { per_s, burst }));
    }
}

#[test]
fn a_session_has_one_link_to_a_daemon_and_a_grant_for_each_block() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    let second = rig.granted(conn, heap(2, MIB)).first;
    let (number, new) = link(&mut rig, conn, reach(first.block, true));
    assert!(new && number != NONE);
    told(&mut rig);
    assert_eq!(link(&mut rig, conn, reach(second.block, false)), (number, false));
    let grant = LinkGrant { block: second.block, guid: second.guid, writable: false };
    assert_eq!(told(&mut rig), [DaemonRequest::Grant { link: number, grant }]);

    // The client has lost it.
    let broken = Reach { block: first.block, writable: true, direct: true, broken: number };
    let (other, new) = link(&mut rig, conn, ClientRequest::Reach(broken));
    assert!(new && other != number);
    assert_eq!(told(&mut rig), [DaemonRequest::Unlink { link: number }]);
    // A number of another session's link, or of none, ends nothing.
    let (stranger, _) = rig.session(1000);
    let own = rig.granted(stranger, heap(1, MIB)).first.block;
    let broken = Reach { block: own, writable: true, direct: true, broken: other };
    assert!(link(&mut rig, stranger, ClientRequest::Reach(broken)).1);
    assert!(told(&mut rig).iter().all(|request| !matches!(request, DaemonRequest::Unlink { .. })));

    let indirect = Reach { block: first.block, writable: true, direct: false, broken: NONE };
    assert_eq!(link(&mut rig, conn, ClientRequest::Reach(indirect)), (NONE, false));
}

#[test]
fn nothing_is_granted_that_a_session_may_not_reach() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    assert_eq!(rig.status(other, reach(first.block, false)), Status::Address);
    assert_eq!(rig.status(other, read(target(first.block, first.guid), 1)), Status::Address);
    rig.done(conn, region("shared", 4096, 0o604));
    let (reader, _) = rig.session(1001);
    let ClientReply::Opened(opened) = rig.done(reader, open(1, "shared", false)) else { panic!() };
    let (block, guid) = (opened.first.block, opened.first.guid);
    assert_eq!(rig.status(reader, reach(block, true)), Status::Denied);
    assert!(link(&mut rig, reader, reach(block, false)).1);
    assert_eq!(rig.status(reader, write(target(block, guid), 1)), Status::Denied);
    let bytes = ClientReply::Data(DataReply::Bytes(Bytes(vec![7; 3])));
    assert_eq!(rig.done(reader, read(target(block, guid), 3)), bytes);
    assert_eq!(rig.status(reader, read(target(block, Guid([1; 16])), 3)), Status::Address);
    assert_eq!(rig.status(reader, read(target(block_id(999), guid), 3)), Status::Address);
    assert_eq!(rig.status(reader, read(target(block, guid), 61_441)), Status::Invalid);
}

#[test]
fn grants_go_with_what_they_are_for() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    let first = rig.granted(conn, span(1, GIB + 4096)).first;
    let second = first.block.checked_add(1).unwrap();
    let (number, _) = link(&mut rig, conn, reach(first.block, true));
    link(&mut rig, conn, reach(second, true));
    rig.done(conn, region("r", 4096, 0o600));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    link(&mut rig, conn, reach(opened.first.block, true));
    told(&mut rig);

    let revoke = |block| DaemonRequest::Revoke { link: number, block };
    let addr = u64::from(first.block.get()) << 30;
    rig.done(conn, ClientRequest::Delete(Delete { addr, guid: first.guid }));
    assert_eq!(told(&mut rig), [revoke(first.block), revoke(second)]);
    rig.done(conn, close(1));
    assert_eq!(told(&mut rig), [revoke(opened.first.block)]);
    rig.event(Event::Died { session: ready.session });
    assert_eq!(told(&mut rig), [DaemonRequest::Unlink { link: number }]);
}

/// A right that went with one opening does not stay with the other.
#[test]
fn a_reader_that_was_a_writer_has_to_ask_again() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.done(conn, region("r", 4096, 0o600));
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    rig.done(conn, open(2, "r", false));
    let block = opened.first.block;
    let (number, _) = link(&mut rig, conn, reach(block, true));
    told(&mut rig);
    rig.done(conn, close(1));
    assert_eq!(told(&mut rig), [DaemonRequest::Revoke { link: number, block }]);
    assert_eq!(rig.status(conn, reach(block, true)), Status::Denied);
    link(&mut rig, conn, reach(block, false));
}

#[test]
fn a_daemon_that_does_not_answer_keeps_nobody_waiting() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    let at = target(first.block, first.guid);
    link(&mut rig, conn, reach(first.block, true));
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, read(at, 1));
    rig.wait(10_000);
    let (reply, _) = rig.answer(conn, number).expect("an answer");
    assert_eq!(reply.unwrap_err().status, Status::Unavailable);
    assert_eq!(rig.status(conn, read(at, 1)), Status::Busy);
    assert_eq!(rig.status(conn, reach(first.block, true)), Status::Busy);
    rig.daemon_dies(1);
    assert_eq!(rig.status(conn, reach(first.block, true)), Status::Busy);
}

#[test]
fn what_is_under_way_is_bounded_and_a_lie_ends_the_daemons_connection() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let first = rig.granted(conn, heap(1, MIB)).first;
    let at = target(first.block, first.guid);
    rig.mood(1, Mood::Waits);
    let mut asked = Vec::new();
    let refusal = loop {
        let number = rig.ask_later(
            conn,
            if asked.len() % 2 == 0 { write(at, 61_440) } else { read(at, 61_440) },
        );
        match rig.answer(conn, number) {
            None => asked.push(number),
            Some((reply, _)) => break reply.unwrap_err(),
        }
    };
    assert_eq!((refusal.status, asked.len()), (Status::Busy, 4));
    // Others have their own.
    let (other, _) = rig.session(1001);
    rig.mood(1, Mood::Obeys);
    let theirs = rig.granted(other, heap(1, MIB)).first;
    let done = rig.done(other, write(target(theirs.block, theirs.guid), 61_440));
    assert_eq!(done, ClientReply::Data(DataReply::Done));

    let waiting: Vec<_> = rig.daemons[&1].asked.iter().map(|(number, _)| number.0).collect();
    let answer = |reply| DaemonMessage::Reply(Ok(DaemonAnswer::Data(reply)));
    rig.tell(1, waiting[0], answer(DataReply::Done));
    assert!(rig.answer(conn, asked[0]).expect("an answer").0.is_ok());
    rig.tell(1, waiting[1], answer(DataReply::Bytes(Bytes(vec![1]))));
    for number in &asked[1..] {
        let (reply, _) = rig.answer(conn, *number).expect("an answer");
        assert_eq!(reply.unwrap_err().status, Status::Unavailable);
    }
    assert!(rig.actions.iter().any(|action| matches!(action, Action::CloseDaemon { .. })));
}

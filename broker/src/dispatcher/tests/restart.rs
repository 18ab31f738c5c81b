//! What a broker that comes back makes of what it finds.

mod incomplete;

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, Guid, Membership, Owner, Region, Span, Ticket};
use dmce_abi::wire::admin::{AdminReply, AdminRequest, Health};
use dmce_abi::wire::client::{
    Abandon, Attach, Changes, ClientReply, ClientRequest, Delete, Fetch, Map, Opening, OpeningId,
    RegionName, RegionOpen,
};
use dmce_abi::wire::daemon::HeldBlock;

use super::rig::{
    GIB, MIB, Rig, block_id, close, config, daemon_id, guid, heap, open, region, session_id, setup,
    span,
};
use crate::dispatcher::{
    Action, BelievedSession, ClientConn, Event, FoundContent, FoundDaemon, Grant, Headers, Rights,
    SessionRecord, Started,
};

const PID: u32 = 500;

pub fn believed(reserved: u64, grants: Vec<Grant>) -> BelievedSession {
    let record = SessionRecord {
        session: session_id(4),
        guid: guid(4),
        pid: PID,
        lived_at: 5,
        uid: 1000,
        gid: 1000,
        reserved,
        created_at: 1,
        pointer_bits: 64,
        copies: 1,
        name: "before".into(),
    };
    BelievedSession { record, generation: 10, grants, lives: true }
}

pub fn expected(daemon: u32, blocks: &[u32]) -> FoundDaemon {
    let blocks = blocks.iter().map(|id| block_id(*id)).collect();
    let content = FoundContent::Expected;
    FoundDaemon { daemon: daemon_id(daemon), blocks, damaged: Vec::new(), content }
}

/// Headers that the shell has read, none of them damaged.
pub fn read(held: Vec<HeldBlock>) -> Headers {
    Headers { held, damaged: Vec::new() }
}

fn guid_of(number: u32) -> Guid {
    guid(u8::try_from(number).unwrap())
}

/// Block `first + place` of a span of `count`, of session 4 and this ticket.
pub fn held(first: u32, place: u32, count: u32, ticket: u64) -> HeldBlock {
    let block = block_id(first + place);
    let span = Span { first: block_id(first), count, guid: guid_of(first) };
    let owner = Owner::Session {
        session: session_id(4),
        ticket: Ticket { session: guid(4), number: ticket },
        uid: 1000,
        copies: 1,
    };
    let own = guid_of(100 + first + place);
    let description = BlockDescription {
        block,
        guid: if count == 1 { span.guid } else { own },
        epoch: 1,
        page_size: 4096,
        bytes_max: GIB,
        span,
        owner,
        membership: Membership::alone(),
    };
    let committed = if place + 1 < count { GIB } else { MIB };
    HeldBlock { description, committed }
}

pub fn held_region(first: u32, place: u32, count: u32, created_at: u64) -> HeldBlock {
    let mut held = held(first, place, count, 0);
    held.description.owner = Owner::Region(Region {
        volume: "v".into(),
        name: "r".into(),
        uid: 1000,
        gid: 1000,
        mode: 0o600,
        base_pointer: 0,
        region_size: u64::from(count - 1) * GIB + MIB,
        copies: 1,
        created_at,
        created_by: Ticket { session: guid(9), number: created_at },
    });
    held
}

pub fn attach(rig: &mut Rig) -> ClientConn {
    attach_with(rig, Vec::new())
}

pub fn attach_with(rig: &mut Rig, openings: Vec<Opening>) -> ClientConn {
    let (conn, unknown) = attach_telling(rig, openings);
    assert_eq!(unknown, []);
    conn
}

/// Returns the openings that the broker does not have as well.
fn attach_telling(rig: &mut Rig, openings: Vec<Opening>) -> (ClientConn, Vec<OpeningId>) {
    let conn = rig.connect(PID, 1000);
    let attach = Attach { session: session_id(4), guid: guid(4), openings };
    match rig.done(conn, ClientRequest::Attach(attach)) {
        ClientReply::Ready(ready) => (conn, ready.unknown_openings),
        other => panic!("{other:?}"),
    }
}

fn state(rig: &mut Rig) -> Health {
    let conn = rig.connect(1, 0);
    match rig.done(conn, ClientRequest::Admin(AdminRequest::Status)) {
        ClientReply::Admin(AdminReply::Status(status)) => status.state,
        other => panic!("{other:?}"),
    }
}

pub fn fetched(rig: &mut Rig, conn: ClientConn, block: u32) -> Option<bool> {
    let fetch = Fetch { block: block_id(block), writable: false };
    match rig.ask(conn, ClientRequest::Fetch(fetch)).unwrap() {
        Ok(ClientReply::Fetched(info)) => Some(info.lost),
        _ => None,
    }
}

#[test]
fn a_daemon_that_dies_while_it_is_waited_for_is_known_by_its_lock() {
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![], daemons: vec![expected(1, &[])], ..Started::default() },
    );
    rig.register(1, GIB);
    rig.actions.clear();
    rig.daemon_dies(1);
    assert!(rig.actions.contains(&Action::AwaitLock { daemon: daemon_id(1) }));
    assert!(!rig.dispatcher.snapshot().complete);
    rig.event(Event::LockFree { daemon: daemon_id(1), headers: read(vec![]) });
    assert!(rig.dispatcher.snapshot().complete);
}

#[test]
fn an_id_that_any_name_has_is_not_given() {
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![], daemons: vec![expected(1, &[1, 2])], ..Started::default() },
    );
    rig.daemon(1, 3 * GIB);
    let (conn, _) = rig.session(1000);
    for ticket in 1..=3 {
        assert!(rig.granted(conn, heap(ticket, 4096)).first.block > block_id(2));
    }
}

#[test]
fn blocks_of_a_session_that_is_no_more_are_destroyed() {
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![], daemons: vec![expected(1, &[7])], ..Started::default() },
    );
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1), held(20, 0, 2, 2), held(20, 1, 2, 2)]);
    let mut destroyed = rig.daemons[&1].destroyed.clone();
    destroyed.sort_unstable();
    assert_eq!(destroyed, [7, 20, 21].map(block_id));
    assert_eq!(state(&mut rig), Health::Ok);
}

#[test]
fn a_span_without_its_first_block_was_never_granted_and_one_with_it_has_lost_the_others() {
    let sessions = vec![believed(0, vec![])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[])], ..Started::default() },
    );
    let conn = attach(&mut rig);
    let held = vec![held(16, 1, 3, 1), held(16, 2, 3, 1), held(32, 0, 2, 2)];
    rig.daemon_with(1, 3 * GIB, held);
    assert_eq!(rig.daemons[&1].destroyed, [17, 18].map(block_id));
    assert_eq!(fetched(&mut rig, conn, 32), Some(false));
    assert_eq!(fetched(&mut rig, conn, 33), Some(true));
    assert_eq!(state(&mut rig), Health::Damaged);
    // Who repeats the ticket was never answered: it is made anew, and nothing is lost any more.
    assert_eq!(rig.granted(conn, heap(2, MIB)).first.span_count, 1);
    assert_eq!(state(&mut rig), Health::Ok);
}

#[test]
fn a_session_is_told_that_a_block_is_lost_of_which_only_it_knows() {
    let sessions = vec![believed(0, vec![])];
    let mut rig =
        Rig::started(config(), Started { sessions, daemons: vec![], ..Started::default() });
    rig.daemon(1, GIB);
    let conn = attach(&mut rig);
    let fetch = ClientRequest::Fetch(Fetch { block: block_id(77), writable: false });
    assert_eq!(rig.status(conn, fetch), Status::Lost);
    let delete = Delete { addr: 77 << 30, guid: guid(1) };
    assert_eq!(rig.done(conn, ClientRequest::Delete(delete)), ClientReply::Done);
}

#[test]
fn open_regions_are_open_again_and_those_that_are_gone_are_told() {
    let grant = |place, block| Grant { place, block: block_id(block), rights: Rights::ALL };
    let grants = vec![grant(0, 8), grant(5, 8), grant(1, 90)];
    let sessions = vec![believed(0, grants)];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[8])], ..Started::default() },
    );
    rig.daemon_with(1, 3 * GIB, vec![held_region(8, 0, 1, 3)]);
    let revoke = Action::RevokeGrant { session: session_id(4), place: 1 };
    assert!(rig.actions.contains(&revoke));
    let publish = Action::Publish { session: session_id(4), generation: 11 };
    assert!(rig.actions.contains(&publish));
    let told = |number| Opening {
        opening: OpeningId(number),
        first: block_id(8),
        read: true,
        write: true,
    };
    let conn = attach_with(&mut rig, vec![told(70), told(71)]);
    let ClientReply::Changed(changed) =
        rig.done(conn, ClientRequest::Changes(Changes { since: 10 }))
    else {
        panic!()
    };
    assert_eq!(changed.blocks, [block_id(90)]);
    // Opened twice: it is closed when both are, and a repeated close counts for nothing.
    for number in [70, 70, 71] {
        assert_eq!(fetched(&mut rig, conn, 8), Some(false));
        assert_eq!(rig.done(conn, close(number)), ClientReply::Done);
    }
    assert_eq!(fetched(&mut rig, conn, 8), None);
}

/// The broker died between the deed and the answer: the client knows nothing of the opening, and
/// asks for it again.
#[test]
fn an_opening_of_which_its_client_was_not_told_ends_when_it_attaches() {
    let grant = |place| Grant { place, block: block_id(8), rights: Rights::ALL };
    let sessions = vec![believed(0, vec![grant(0), grant(1)])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[8])], ..Started::default() },
    );
    let known = Opening { opening: OpeningId(70), first: block_id(8), read: true, write: true };
    let conn = attach_with(&mut rig, vec![known]);
    let revoke = Action::RevokeGrant { session: session_id(4), place: 1 };
    assert!(rig.actions.contains(&revoke));
    let number = rig.ask_later(conn, open(71, "r", true));
    rig.daemon_with(1, 3 * GIB, vec![held_region(8, 0, 1, 3)]);
    assert!(matches!(rig.answer(conn, number), Some((Ok(ClientReply::Opened(_)), _))));
    assert_eq!(rig.dispatcher.snapshot().openings[&session_id(4)], [70, 71]);

    // One more connection, which knows of neither.
    let conn = attach(&mut rig);
    assert_eq!(rig.dispatcher.snapshot().openings[&session_id(4)], [0; 0]);
    assert_eq!(fetched(&mut rig, conn, 8), None);
}

/// A broker before this one began to delete the region, ended what it could of its openings, and
/// died before the daemon had heard of it.
#[test]
fn a_client_is_told_which_of_its_openings_there_are_not() {
    let grant = Grant { place: 1, block: block_id(8), rights: Rights::ALL };
    let sessions = vec![believed(0, vec![grant])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[8])], ..Started::default() },
    );
    let told = |number, write| Opening {
        opening: OpeningId(number),
        first: block_id(8),
        read: true,
        write,
    };
    let openings = vec![told(3, true), told(4, true), told(5, false), told(5, false)];
    let (conn, unknown) = attach_telling(&mut rig, openings);
    assert_eq!(unknown, [4, 5].map(OpeningId));
    assert_eq!(rig.dispatcher.snapshot().openings[&session_id(4)], [3]);
    rig.daemon_with(1, 3 * GIB, vec![held_region(8, 0, 1, 3)]);
    assert_eq!(rig.done(conn, close(3)), ClientReply::Done);
    assert_eq!(fetched(&mut rig, conn, 8), None);
    // It is there again, and open to who has seen that.
    assert!(matches!(rig.done(conn, open(6, "r", true)), ClientReply::Opened(_)));
    let (conn, unknown) = attach_telling(&mut rig, vec![told(4, true), told(6, true)]);
    assert_eq!(unknown, [OpeningId(4)]);
    assert_eq!(fetched(&mut rig, conn, 8), Some(false));
}

#[test]
fn a_delete_that_an_earlier_broker_did_is_done_and_harms_no_namesake() {
    let sessions = vec![believed(0, vec![])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[8])], ..Started::default() },
    );
    rig.daemon_with(1, 3 * GIB, vec![held_region(8, 0, 1, 3)]);
    let conn = attach(&mut rig);
    let namesake = rig.key(conn, "r");
    let deleted = dmce_abi::wire::client::RegionKey { guid: guid(77), ..namesake };
    assert_eq!(rig.done(conn, ClientRequest::RegionDelete(deleted)), ClientReply::Done);
    assert_eq!(rig.key(conn, "r"), namesake);
    // Who cannot have deleted it is told that there is none.
    let (other, _) = rig.session(1000);
    assert_eq!(rig.status(other, ClientRequest::RegionDelete(deleted)), Status::NotFound);
}

#[test]
fn what_a_ticket_made_is_deleted_when_its_client_has_given_it_up() {
    let sessions = vec![believed(0, vec![])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[7, 8])], ..Started::default() },
    );
    let conn = attach(&mut rig);
    let number = rig.ask_later(conn, ClientRequest::Abandon(Abandon { ticket: 5 }));
    assert_eq!(rig.answer(conn, number), None);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 4), held(8, 0, 1, 5)]);
    assert!(matches!(rig.answer(conn, number), Some((Ok(ClientReply::Done), _))));
    assert_eq!(rig.daemons[&1].destroyed, [block_id(8)]);
    assert_eq!(fetched(&mut rig, conn, 7), Some(false));
}

#[test]
fn of_two_regions_with_one_name_the_younger_was_created_when_the_older_was_gone() {
    let daemons = vec![expected(1, &[8]), expected(2, &[9])];
    let mut rig =
        Rig::started(config(), Started { sessions: vec![], daemons, ..Started::default() });
    rig.daemon_with(1, 3 * GIB, vec![held_region(8, 0, 1, 30)]);
    rig.daemon_with(2, 3 * GIB, vec![held_region(9, 0, 1, 31)]);
    assert_eq!(rig.daemons[&1].destroyed, [block_id(8)]);
    let (conn, _) = rig.session(1000);
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    assert_eq!(opened.first.block, block_id(9));
}

#[test]
fn a_region_is_lost_only_where_it_was_whole_once() {
    let outcome = |held: Vec<HeldBlock>, damaged: &[u32], grants: Vec<Grant>| {
        let mut found = expected(1, &[8, 9]);
        found.damaged = damaged.iter().map(|id| block_id(*id)).collect();
        let sessions = vec![believed(0, grants)];
        let mut rig = Rig::started(
            config(),
            Started { sessions, daemons: vec![found], ..Started::default() },
        );
        rig.daemon_with(1, 3 * GIB, held);
        let snapshot = rig.dispatcher.snapshot();
        let lost = snapshot.blocks.values().filter(|block| block.lost).count();
        (snapshot.regions.len(), lost)
    };
    let [first, second] = [0, 1].map(|place| held_region(8, place, 2, 3));
    let mut short = first.clone();
    short.committed = MIB;
    let grant = Grant { place: 0, block: block_id(8), rights: Rights::ALL };
    assert_eq!(outcome(vec![first.clone(), second.clone()], &[], vec![]), (1, 0));
    assert_eq!(outcome(vec![first], &[], vec![]), (1, 1));
    assert_eq!(outcome(vec![second.clone()], &[], vec![]), (0, 0));
    assert_eq!(outcome(vec![second.clone()], &[8], vec![]), (1, 1));
    assert_eq!(outcome(vec![second.clone()], &[], vec![grant]), (1, 1));
    assert_eq!(outcome(vec![short, second], &[], vec![]), (1, 1));
}

#[test]
fn what_contradicts_itself_is_kept_from_everybody_and_the_rest_starts() {
    let first = held_region(8, 0, 2, 3);
    let mut other = held_region(8, 1, 2, 3);
    let Owner::Region(region) = &mut other.description.owner else { panic!() };
    region.mode = 0o666;
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![], daemons: vec![expected(1, &[8, 9])], ..Started::default() },
    );
    rig.daemon_with(1, 3 * GIB, vec![first, other, held_region(30, 0, 1, 1)]);
    assert_eq!(rig.dispatcher.snapshot().quarantined, 1);
    assert!(rig.daemons[&1].destroyed.iter().all(|block| *block != block_id(9)));
    assert_eq!(state(&mut rig), Health::Damaged);
    let (conn, _) = rig.session(1000);
    rig.granted(conn, heap(1, MIB));
}

/// The span that misses it goes on to miss it, and what it costs its daemon is counted once.
#[test]
fn what_contradicts_itself_still_does_so_when_its_daemon_is_back() {
    let first = held_region(8, 0, 2, 3);
    let mut other = held_region(8, 1, 2, 3);
    let Owner::Region(region) = &mut other.description.owner else { panic!() };
    region.mode = 0o666;
    let daemons = vec![expected(1, &[8]), expected(2, &[9])];
    let mut rig =
        Rig::started(config(), Started { sessions: vec![], daemons, ..Started::default() });
    rig.daemon_with(1, 3 * GIB, vec![first]);
    for _ in 0..2 {
        rig.daemon_with(2, 3 * GIB, vec![other.clone()]);
        let snapshot = rig.dispatcher.snapshot();
        assert_eq!((snapshot.quarantined, snapshot.blocks[&block_id(9)].lost), (1, true));
        rig.daemon_dies(2);
    }
}

/// One block of two daemons is what somebody forged or copied: it must not keep the broker from
/// starting.
#[test]
fn a_block_that_another_daemon_has_as_well_is_quarantined() {
    let daemons = vec![expected(1, &[8]), expected(2, &[8]), expected(3, &[8])];
    let mut rig =
        Rig::started(config(), Started { sessions: vec![], daemons, ..Started::default() });
    for daemon in 1..=3 {
        rig.daemon_with(daemon, 3 * GIB, vec![held_region(8, 0, 1, 30)]);
    }
    assert_eq!(rig.dispatcher.snapshot().quarantined, 2);
    let destroyed = |daemon| rig.daemons[&daemon].destroyed.len();
    assert_eq!([1, 2, 3].map(destroyed), [0; 3]);
    let (conn, _) = rig.session(1000);
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    assert_eq!(opened.first.block, block_id(8));
}

#[test]
fn a_reservation_is_there_again_less_what_is_used_of_it() {
    let sessions = vec![believed(100 * MIB, vec![])];
    let mut rig = Rig::started(
        config(),
        Started { sessions, daemons: vec![expected(1, &[7])], ..Started::default() },
    );
    let conn = attach(&mut rig);
    let reserved = |rig: &mut Rig| match rig.done(conn, ClientRequest::Stat) {
        ClientReply::Stat(stat) => stat.reserved,
        other => panic!("{other:?}"),
    };
    assert_eq!(reserved(&mut rig), 100 * MIB);
    rig.daemon_with(1, 3 * GIB, vec![held(7, 0, 1, 1)]);
    assert_eq!(reserved(&mut rig), 100 * MIB);
    let charged = rig.dispatcher.snapshot().charged[&daemon_id(1)];
    assert_eq!(charged, (MIB, 99 * MIB));
    let delete = Delete { addr: 7 << 30, guid: guid(7) };
    rig.done(conn, ClientRequest::Delete(delete));
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(1)], (0, 100 * MIB));
    rig.event(Event::Died { session: session_id(4) });
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(1)], (0, 0));
}

#[test]
fn a_reservation_is_there_again_when_the_daemons_are() {
    let found = FoundDaemon {
        daemon: daemon_id(1),
        blocks: vec![block_id(7)],
        damaged: vec![],
        content: FoundContent::Read(vec![held(7, 0, 1, 1)]),
    };
    let sessions = vec![believed(100 * MIB, vec![])];
    let mut rig =
        Rig::started(config(), Started { sessions, daemons: vec![found], ..Started::default() });
    let conn = attach(&mut rig);
    let reserved = |rig: &mut Rig| match rig.done(conn, ClientRequest::Stat) {
        ClientReply::Stat(stat) => stat.reserved,
        other => panic!("{other:?}"),
    };
    assert_eq!(reserved(&mut rig), MIB);
    rig.daemon_with(1, 51 * MIB, vec![held(7, 0, 1, 1)]);
    assert_eq!(reserved(&mut rig), 51 * MIB);
    rig.daemon(2, 3 * GIB);
    assert_eq!(reserved(&mut rig), 100 * MIB);
    rig.daemon(3, 3 * GIB);
    let charged = rig.dispatcher.snapshot().charged;
    assert_eq!(charged[&daemon_id(1)], (MIB, 50 * MIB));
    assert_eq!(charged[&daemon_id(2)], (0, 49 * MIB));
    rig.event(Event::Died { session: session_id(4) });
    assert_eq!(rig.dispatcher.snapshot().charged[&daemon_id(2)], (0, 0));
}

#[test]
fn headers_that_cannot_be_are_left_and_the_rest_of_a_dead_daemon_counts() {
    let mut bad = held_region(40, 0, 1, 1);
    bad.description.epoch = 0;
    let found = FoundDaemon {
        daemon: daemon_id(1),
        blocks: vec![block_id(8), block_id(40)],
        damaged: vec![],
        content: FoundContent::Read(vec![bad, held_region(8, 0, 1, 3)]),
    };
    let mut rig = Rig::started(
        config(),
        Started { sessions: vec![], daemons: vec![found], ..Started::default() },
    );
    rig.daemon(2, GIB);
    let (conn, _) = rig.session(1000);
    let ClientReply::Opened(opened) = rig.done(conn, open(1, "r", true)) else { panic!() };
    assert_eq!((opened.first.block, opened.primary_daemon), (block_id(8), 1));
    assert_eq!(fetched(&mut rig, conn, 8), Some(false));
}

#[test]
fn what_can_never_be_served_is_refused_at_once_and_the_rest_waits() {
    let started = Started {
        sessions: vec![believed(0, vec![])],
        daemons: vec![expected(1, &[])],
        ..Started::default()
    };
    let mut rig = Rig::started(config(), started);
    let conn = attach(&mut rig);
    let long =
        |volume: &str, name: usize| RegionName { volume: volume.into(), name: "n".repeat(name) };
    let stranger = rig.connect(77, 1000);
    assert_eq!(rig.status(stranger, heap(1, MIB)), Status::Closed);
    assert_eq!(rig.status(conn, setup(0, false)), Status::Invalid);
    assert_eq!(rig.status(conn, heap(1, GIB + 1)), Status::Invalid);
    assert_eq!(rig.status(conn, span(1, 0)), Status::Invalid);
    assert_eq!(rig.status(conn, region("r", 0, 0o600)), Status::Invalid);
    assert_eq!(rig.status(conn, region(&"n".repeat(60_000), 1, 0o600)), Status::Invalid);
    let delete = Delete { addr: 1 << 60, guid: guid(1) };
    assert_eq!(rig.status(conn, ClientRequest::Delete(delete)), Status::Address);
    let map = Map { addr: 7 << 30, bytes: 0, os_address: 4096, writable: true };
    assert_eq!(rig.status(conn, ClientRequest::Map(map)), Status::Invalid);
    for name in [long("v", 60_000), long("", 1), long("a/b", 1)] {
        assert_eq!(rig.status(conn, ClientRequest::RegionFind(name)), Status::NotFound);
    }
    let neither =
        RegionOpen { opening: OpeningId(1), region: long("v", 1), read: false, write: false };
    assert_eq!(rig.status(conn, ClientRequest::RegionOpen(neither)), Status::Invalid);
    // A Setup that is refused ends its connection, now as ever.
    let ClientRequest::Setup(mut bad) = setup(0, false) else { panic!() };
    bad.name = "/".into();
    assert_eq!(rig.status(stranger, ClientRequest::Setup(bad)), Status::Invalid);
    assert!(rig.actions.iter().any(|action| matches!(action, Action::CloseClient { .. })));
    let waiting = rig.ask_later(conn, ClientRequest::RegionFind(long("v", 1)));
    assert_eq!(rig.answer(conn, waiting), None);
}

/// A broker gave an id while a daemon was silent that still was to make a block of that id for the
/// broker before, and both were killed before the daemon was heard.
#[test]
fn of_two_blocks_with_one_id_the_one_stays_that_was_made_by_the_later_broker() {
    let aged = |mut held: HeldBlock, epoch| {
        held.description.epoch = epoch;
        held
    };
    let young = aged(held(8, 0, 1, 1), 9);
    let mut same_id = vec![aged(held_region(8, 0, 1, 3), 5)];
    same_id[0].description.guid = guid(77);
    same_id[0].description.span.guid = guid(77);
    let same_span = vec![aged(held(7, 1, 3, 2), 5)];
    for old in [same_id, same_span] {
        for old_is_first in [true, false] {
            let found = vec![expected(1, &[8]), expected(2, &[8])];
            let sessions = vec![believed(0, vec![])];
            let mut rig =
                Rig::started(config(), Started { sessions, daemons: found, ..Started::default() });
            let conn = attach(&mut rig);
            if old_is_first {
                rig.daemon_with(2, 3 * GIB, old.clone());
            }
            rig.daemon_with(1, 3 * GIB, vec![young.clone()]);
            if !old_is_first {
                rig.daemon_with(2, 3 * GIB, old.clone());
            }
            assert_eq!(fetched(&mut rig, conn, 8), Some(false));
            assert_eq!(rig.daemons[&1].destroyed, []);
            assert_eq!(rig.daemons[&2].destroyed, [block_id(8)]);
            assert_eq!(rig.dispatcher.snapshot().blocks.len(), 1);
            assert_eq!(rig.dispatcher.snapshot().quarantined, 0);
        }
    }
}

use dmce_abi::Status;
use dmce_abi::block::{BlockDescription, BlockId, DaemonId};
use dmce_abi::wire::client::{Changes, ClientReply, ClientRequest, Fetch, Opened, RegionList};
use dmce_abi::wire::daemon::{DaemonRequest, HeldBlock};

use super::rig::{GIB, Mood, Rig, close, daemon_id, heap, open, region, region_name};
use crate::dispatcher::{Action, ClientConn, Rights};

fn opened(rig: &mut Rig, conn: ClientConn, number: u64, (name, write): (&str, bool)) -> Opened {
    match rig.done(conn, open(number, name, write)) {
        ClientReply::Opened(opened) => opened,
        other => panic!("{other:?}"),
    }
}

fn find(name: &str) -> ClientRequest {
    ClientRequest::RegionFind(region_name(name))
}

fn fetch(block: BlockId, writable: bool) -> ClientRequest {
    ClientRequest::Fetch(Fetch { block, writable })
}

#[test]
fn who_has_no_right_learns_no_name_and_who_has_some_is_denied_the_rest() {
    let mut rig = Rig::new(1);
    let (owner, _) = rig.session(1000);
    let (other, _) = rig.session(1001);
    rig.done(owner, region("private", 10, 0o600));
    rig.done(owner, region("public", 10, 0o604));
    let private = ClientRequest::RegionDelete(rig.key(owner, "private"));
    let public = ClientRequest::RegionDelete(rig.key(other, "public"));
    assert_eq!(rig.status(other, open(1, "private", false)), Status::NotFound);
    assert_eq!(rig.status(other, find("private")), Status::NotFound);
    assert_eq!(rig.status(other, private), Status::NotFound);
    assert_eq!(rig.status(other, open(1, "public", true)), Status::Denied);
    assert_eq!(rig.status(other, public), Status::Denied);
    let first = opened(&mut rig, other, 1, ("public", false)).first.block;
    assert!(matches!(rig.done(other, fetch(first, false)), ClientReply::Fetched(_)));
    assert_eq!(rig.status(other, fetch(first, true)), Status::Denied);
    let list = ClientRequest::RegionList(RegionList { volume: "v".into(), after: String::new() });
    let names = |reply| match reply {
        ClientReply::Names { names, more: false } => names,
        other => panic!("{other:?}"),
    };
    assert_eq!(names(rig.done(other, list.clone())), ["public"]);
    assert_eq!(names(rig.done(owner, list)), ["private", "public"]);
    assert_eq!(rig.status(other, region("public", 10, 0)), Status::Exists);
}

#[test]
fn a_grant_is_stored_before_its_opener_is_answered_and_each_close_counts() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    rig.actions.clear();
    let first = opened(&mut rig, conn, 1, ("r", true)).first.block;
    let stored = rig.actions.iter().position(|action| {
        matches!(action, Action::StoreGrant { session, grant }
            if *session == ready.session && grant.block == first && grant.rights == Rights::ALL)
    });
    let replied = rig.actions.iter().position(|action| matches!(action, Action::Reply { .. }));
    assert!(stored.unwrap() < replied.unwrap());
    opened(&mut rig, conn, 2, ("r", false));
    assert_eq!(rig.done(conn, close(1)), ClientReply::Done);
    assert!(matches!(rig.done(conn, fetch(first, false)), ClientReply::Fetched(_)));
    assert_eq!(rig.status(conn, fetch(first, true)), Status::Denied);
    assert_eq!(rig.done(conn, close(2)), ClientReply::Done);
    assert_eq!(rig.status(conn, fetch(first, false)), Status::Address);
}

#[test]
fn an_opening_is_opened_once_and_closed_once_however_often_it_is_asked() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    rig.done(conn, region("s", 10, 0o600));
    let first = opened(&mut rig, conn, 1, ("r", true));
    assert_eq!(opened(&mut rig, conn, 1, ("r", true)), first);
    assert_eq!(opened(&mut rig, conn, 2, ("r", true)), first);
    assert_eq!(rig.dispatcher.snapshot().openings[&ready.session], [1, 2]);
    assert_eq!(rig.status(conn, open(1, "s", true)), Status::Invalid);
    assert_eq!(rig.status(conn, open(1, "r", false)), Status::Invalid);
    for _ in 0..3 {
        assert_eq!(rig.done(conn, close(1)), ClientReply::Done);
        assert_eq!(rig.dispatcher.snapshot().openings[&ready.session], [2]);
    }
    assert!(matches!(rig.done(conn, fetch(first.first.block, true)), ClientReply::Fetched(_)));
    // The number is free again.
    opened(&mut rig, conn, 1, ("s", false));
}

#[test]
fn a_region_that_another_has_open_stays_and_ones_own_handle_is_told_first() {
    let mut rig = Rig::new(1);
    let (owner, ready) = rig.session(1000);
    let (other, _) = rig.session(1001);
    rig.done(owner, region("r", GIB + 1, 0o666));
    let first = opened(&mut rig, owner, 1, ("r", true)).first.block;
    opened(&mut rig, other, 1, ("r", false));
    let delete = ClientRequest::RegionDelete(rig.key(owner, "r"));
    assert_eq!(rig.status(owner, delete.clone()), Status::Busy);
    rig.done(other, close(1));
    rig.actions.clear();
    assert_eq!(rig.done(owner, delete), ClientReply::Done);
    let at = |wanted: &dyn Fn(&Action) -> bool| rig.actions.iter().position(wanted).unwrap();
    let told = at(&|a| matches!(a, Action::Publish { session, .. } if *session == ready.session));
    let destroyed = at(&|a| {
        matches!(a, Action::ToDaemon { request: DaemonRequest::Destroy { block }, .. }
            if *block == first)
    });
    assert!(told < destroyed);
    // The first block goes first: where it is, the region is.
    assert_eq!(rig.daemons[&1].destroyed[0], first);
    assert_eq!(rig.daemons[&1].destroyed.len(), 2);
    assert_eq!(rig.status(owner, fetch(first, false)), Status::Address);
}

#[test]
fn an_id_is_used_again_only_when_who_had_it_was_told() {
    let mut config = super::rig::config();
    // Four ids, of which 0 is reserved: 1, and the run 2 to 3.
    config.layout = dmce_abi::AddrLayout::new(32, 2, 30).unwrap();
    let mut rig = Rig::started(config, crate::dispatcher::Started::default());
    rig.daemon(1, 3 * GIB);
    let (conn, _) = rig.session(1000);
    rig.granted(conn, heap(1, 4096));
    rig.done(conn, region("r", GIB + 1, 0o600));
    opened(&mut rig, conn, 1, ("r", true));
    let delete = ClientRequest::RegionDelete(rig.key(conn, "r"));
    rig.done(conn, delete);
    assert_eq!(rig.refused(conn, heap(2, 4096)).text, "no 1 consecutive block ids are free");
    rig.done(conn, ClientRequest::Changes(Changes { since: 0 }));
    rig.granted(conn, heap(3, 4096));
}

#[test]
fn a_delete_is_answered_when_the_region_can_not_come_back() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    rig.mood(1, Mood::Waits);
    let delete = ClientRequest::RegionDelete(rig.key(conn, "r"));
    let number = rig.ask_later(conn, delete.clone());
    assert_eq!(rig.answer(conn, number), None);
    // Asked again, it is the same delete: who asked last is answered.
    let again = rig.ask_later(conn, delete.clone());
    assert!(matches!(rig.answer(conn, number), Some((Err(_), _))));
    rig.obey(1);
    assert!(matches!(rig.answer(conn, again), Some((Ok(ClientReply::Done), _))));
    assert_eq!(rig.status(conn, find("r")), Status::NotFound);
}

#[test]
fn a_repeated_delete_is_done_for_its_author_and_deletes_nothing_else() {
    let mut rig = Rig::new(1);
    let (author, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    rig.done(author, region("r", 10, 0o600));
    let delete = ClientRequest::RegionDelete(rig.key(author, "r"));
    rig.done(author, delete.clone());
    rig.done(other, region("r", 10, 0o600));
    let present = rig.key(other, "r");
    assert_eq!(rig.done(author, delete.clone()), ClientReply::Done);
    assert_eq!(rig.status(other, delete), Status::NotFound);
    assert_eq!(rig.key(author, "r"), present);
}

const fn not_yet(daemon: DaemonId, begun: bool) -> ClientReply {
    ClientReply::NotYet { daemon, begun }
}

#[test]
fn a_delete_without_the_daemon_of_the_first_block_does_nothing_however_often_it_is_asked() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    let key = rig.key(conn, "r");
    let delete = ClientRequest::RegionDelete(key);
    let held = HeldBlock { description: held_description(&rig), committed: 4096 };
    rig.daemon_dies(1);
    for _ in 0..3 {
        assert_eq!(rig.done(conn, delete.clone()), not_yet(daemon_id(1), false));
    }
    // Who was told so can use it, and it stays when the daemon is back.
    opened(&mut rig, conn, 1, ("r", true));
    rig.daemon_with(1, 3 * GIB, vec![held]);
    assert_eq!(rig.key(conn, "r"), key);
    assert_eq!(rig.done(conn, delete), ClientReply::Done);
    assert_eq!(rig.daemons[&1].destroyed, [key.first]);
}

fn held_description(rig: &Rig) -> BlockDescription {
    rig.daemons[&1].created[0].clone()
}

/// It has begun, and cannot be confirmed: a broker that comes back may find the region.
#[test]
fn who_deletes_is_not_kept_when_the_daemon_dies_over_it_and_is_done_when_it_is_back() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    let (other, _) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    let key = rig.key(conn, "r");
    let delete = ClientRequest::RegionDelete(key);
    let description = held_description(&rig);
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, delete.clone());
    assert_eq!(rig.answer(conn, number), None);
    rig.daemon_dies(1);
    let begun = not_yet(daemon_id(1), true);
    assert_eq!(rig.answer(conn, number).unwrap().0, Ok(begun.clone()));
    assert_eq!(rig.done(conn, delete.clone()), begun);
    // The name is free, and nobody else's delete is it.
    assert_eq!(rig.status(conn, find("r")), Status::NotFound);
    assert_eq!(rig.status(other, delete.clone()), Status::NotFound);
    rig.daemon_with(1, 3 * GIB, vec![HeldBlock { description, committed: 4096 }]);
    let number = rig.ask_later(conn, delete.clone());
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    assert_eq!(rig.answer(conn, number).unwrap().0, Ok(ClientReply::Done));
    assert_eq!(rig.done(conn, delete), ClientReply::Done);
    assert_eq!(rig.daemons[&1].destroyed, [key.first]);
}

#[test]
fn who_deletes_is_not_kept_by_a_daemon_that_falls_silent_over_it() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.done(conn, region("r", 10, 0o600));
    let delete = ClientRequest::RegionDelete(rig.key(conn, "r"));
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, delete.clone());
    rig.wait(4_000);
    assert_eq!(rig.answer(conn, number).unwrap().0, Ok(not_yet(daemon_id(1), true)));
    rig.obey(1);
    assert_eq!(rig.done(conn, delete), ClientReply::Done);
}

#[test]
fn what_a_region_may_not_be_is_refused() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    for (name, bytes, mode) in [("", 10, 0), ("a/b", 10, 0), ("r", 0, 0), ("r", 10, 0o1000)] {
        assert_eq!(rig.status(conn, region(name, bytes, mode)), Status::Invalid, "{name:?}");
    }
    assert_eq!(rig.status(conn, region("r", u64::MAX, 0)), Status::NoSpace);
    assert!(rig.dispatcher.snapshot().regions.is_empty());
}

#[test]
fn a_region_outlives_its_creator_and_one_that_was_never_finished_does_not() {
    let mut rig = Rig::new(1);
    let (conn, ready) = rig.session(1000);
    rig.done(conn, region("kept", 10, 0o600));
    rig.mood(1, Mood::Waits);
    rig.ask_later(conn, region("unfinished", 10, 0o600));
    rig.event(crate::dispatcher::Event::Died { session: ready.session });
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    let snapshot = rig.dispatcher.snapshot();
    assert_eq!((snapshot.regions.len(), snapshot.blocks.len(), snapshot.passing), (1, 1, 0));
}

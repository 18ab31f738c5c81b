use dmce_abi::Status;
use dmce_abi::block::BlockId;
use dmce_abi::wire::client::{Changes, ClientReply, ClientRequest, Fetch, Opened, RegionList};
use dmce_abi::wire::daemon::DaemonRequest;

use super::rig::{GIB, Mood, Rig, heap, open, region, region_name};
use crate::dispatcher::{Action, ClientConn, Rights};

fn opened(rig: &mut Rig, conn: ClientConn, name: &str, write: bool) -> Opened {
    match rig.done(conn, open(name, write)) {
        ClientReply::Opened(opened) => opened,
        other => panic!("{other:?}"),
    }
}

fn delete(name: &str) -> ClientRequest {
    ClientRequest::RegionDelete(region_name(name))
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
    assert_eq!(rig.status(other, open("private", false)), Status::NotFound);
    assert_eq!(rig.status(other, delete("private")), Status::NotFound);
    assert_eq!(rig.status(other, open("public", true)), Status::Denied);
    assert_eq!(rig.status(other, delete("public")), Status::Denied);
    let first = opened(&mut rig, other, "public", false).first;
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
    let first = opened(&mut rig, conn, "r", true).first;
    let stored = rig.actions.iter().position(|action| {
        matches!(action, Action::StoreGrant { session, grant }
            if *session == ready.session && grant.block == first && grant.rights == Rights::ALL)
    });
    let replied = rig.actions.iter().position(|action| matches!(action, Action::Reply { .. }));
    assert!(stored.unwrap() < replied.unwrap());
    opened(&mut rig, conn, "r", false);
    let close = ClientRequest::RegionClose(first);
    assert_eq!(rig.done(conn, close.clone()), ClientReply::Done);
    assert!(matches!(rig.done(conn, fetch(first, true)), ClientReply::Fetched(_)));
    assert_eq!(rig.done(conn, close.clone()), ClientReply::Done);
    assert_eq!(rig.status(conn, fetch(first, true)), Status::Address);
    assert_eq!(rig.status(conn, close), Status::NotFound);
}

#[test]
fn a_region_that_another_has_open_stays_and_ones_own_handle_is_told_first() {
    let mut rig = Rig::new(1);
    let (owner, ready) = rig.session(1000);
    let (other, _) = rig.session(1001);
    rig.done(owner, region("r", GIB + 1, 0o666));
    let first = opened(&mut rig, owner, "r", true).first;
    opened(&mut rig, other, "r", false);
    assert_eq!(rig.status(owner, delete("r")), Status::Busy);
    rig.done(other, ClientRequest::RegionClose(first));
    rig.actions.clear();
    assert_eq!(rig.done(owner, delete("r")), ClientReply::Done);
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
    opened(&mut rig, conn, "r", true);
    rig.done(conn, delete("r"));
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
    let number = rig.ask_later(conn, delete("r"));
    assert_eq!(rig.answer(conn, number), None);
    rig.obey(1);
    assert!(matches!(rig.answer(conn, number), Some((Ok(ClientReply::Done), _))));

    rig.mood(1, Mood::Obeys);
    rig.done(conn, region("r", 10, 0o600));
    rig.daemon_dies(1);
    assert_eq!(
        rig.refused(conn, delete("r")).text,
        "daemon 1, which has its first block, does not answer"
    );
    opened(&mut rig, conn, "r", true);
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

use dmce_abi::Status;
use dmce_abi::addr::AddrLayout;
use dmce_abi::wire::client::{
    Abandon, ClientReply, ClientRequest, Delete, Granted, Malloc, MallocKind, MallocWith,
    RegionCreate, SpanList,
};

use super::rig::{GIB, MIB, Mood, Rig, config, heap, region, span};
use super::syncing::take;
use crate::dispatcher::{Action, ClientConn, Quota, Started};

fn with(ticket: u64, bytes: u64, wait_ms: Option<u32>) -> ClientRequest {
    let malloc = Malloc { ticket, kind: MallocKind::Span { bytes }, page_size: 0, copies: 0 };
    ClientRequest::MallocWith(MallocWith { malloc, policy: 0, wait_ms })
}

fn delete(rig: &mut Rig, conn: ClientConn, granted: &Granted) {
    let addr = u64::from(granted.first.block.get()) << AddrLayout::IN_SERVER.cell_bits();
    rig.done(conn, ClientRequest::Delete(Delete { addr, guid: granted.first.guid }));
}

fn rings(rig: &Rig) -> usize {
    rig.actions.iter().filter(|action| matches!(action, Action::Ring { .. })).count()
}

/// An instance of one daemon, full but for what two sessions are given.
fn full() -> (Rig, ClientConn, ClientConn, Granted) {
    let mut rig = Rig::new(1);
    let (holder, _) = rig.session(1000);
    let (waiter, _) = rig.session(1001);
    rig.granted(holder, span(1, GIB));
    rig.granted(holder, span(2, GIB));
    let last = rig.granted(holder, span(3, GIB));
    (rig, holder, waiter, last)
}

/// 002 FIG. 5
#[test]
fn who_waits_is_rung_when_memory_came_back_and_is_granted_it_by_the_same_ticket() {
    let (mut rig, holder, waiter, last) = full();
    assert_eq!(rig.status(waiter, with(1, MIB, None)), Status::NoSpace);
    for _ in 0..2 {
        assert_eq!(rig.done(waiter, with(1, MIB, Some(0))), ClientReply::Queued);
    }
    assert_eq!(rings(&rig), 0);
    delete(&mut rig, holder, &last);
    assert_eq!(rings(&rig), 1);
    let granted = rig.granted(waiter, with(1, MIB, Some(0)));
    assert_eq!(granted.first.committed, MIB);
    assert_eq!(rig.granted(waiter, with(1, MIB, None)), granted);
}

/// It would give back what it does not know, and be granted it at the same time.
#[test]
fn what_was_made_for_who_waited_is_listed_when_it_was_asked_for() {
    let (mut rig, holder, waiter, last) = full();
    assert_eq!(rig.done(waiter, with(1, MIB, Some(0))), ClientReply::Queued);
    delete(&mut rig, holder, &last);
    let listed = rig.done(waiter, ClientRequest::Spans(SpanList { after: 0 }));
    assert!(matches!(listed, ClientReply::Spans { spans, .. } if spans.is_empty()));
    rig.granted(waiter, with(1, MIB, Some(0)));
    let listed = rig.done(waiter, ClientRequest::Spans(SpanList { after: 0 }));
    assert!(matches!(listed, ClientReply::Spans { spans, .. } if spans.len() == 1));
}

/// Else its ticket would make two spans.
#[test]
fn who_asks_for_more_than_any_daemon_holds_does_not_wait() {
    let mut rig = Rig::started(config(), Started::default());
    rig.daemon(1, 64 * MIB);
    rig.daemon(2, 32 * MIB);
    let (conn, _) = rig.session(1000);
    for bytes in [70 * MIB, 64 * MIB + 1] {
        let refusal = rig.refused(conn, with(1, bytes, Some(0)));
        assert_eq!(refusal.status, Status::NoSpace);
        assert!(refusal.text.ends_with("the largest daemon holds 67108864"), "{}", refusal.text);
    }
    // What one could hold that is away for now is waited for.
    rig.daemon_dies(1);
    assert_eq!(rig.done(conn, with(2, 60 * MIB, Some(0))), ClientReply::Queued);
}

#[test]
fn a_wait_ends_when_its_ticket_is_asked_for_without_waiting() {
    let ClientRequest::RegionCreate(create) = region("r", MIB, 0o600) else { panic!() };
    let create = ClientRequest::RegionCreate(RegionCreate { ticket: 1, ..create });
    for impatient in [with(1, MIB, None), span(1, MIB), create] {
        let (mut rig, holder, waiter, last) = full();
        assert_eq!(rig.done(waiter, with(1, 2 * GIB, Some(0))), ClientReply::Queued);
        delete(&mut rig, holder, &last);
        assert_eq!(rig.dispatcher.patients.all().count(), 1);
        rig.done(waiter, impatient);
        assert_eq!(rig.dispatcher.patients.all().count(), 0);
    }
}

#[test]
fn a_wait_ends_with_its_time_with_abandon_and_with_its_session() {
    let (mut rig, _, waiter, _) = full();
    assert_eq!(rig.done(waiter, with(1, MIB, Some(300))), ClientReply::Queued);
    rig.wait(200);
    assert_eq!((rings(&rig), rig.dispatcher.patients.all().count()), (0, 1));
    rig.wait(200);
    assert_eq!((rings(&rig), rig.dispatcher.patients.all().count()), (1, 0));

    assert_eq!(rig.done(waiter, with(2, MIB, Some(0))), ClientReply::Queued);
    rig.done(waiter, ClientRequest::Abandon(Abandon { ticket: 2 }));
    assert_eq!(rig.dispatcher.patients.all().count(), 0);

    assert_eq!(rig.done(waiter, with(3, MIB, Some(0))), ClientReply::Queued);
    rig.done(waiter, ClientRequest::Disconnect);
    assert_eq!(rig.dispatcher.patients.all().count(), 0);
}

#[test]
fn a_daemon_that_comes_and_a_quota_that_is_given_back_serve_who_waits() {
    let (mut rig, _, waiter, _) = full();
    assert_eq!(rig.done(waiter, with(1, 2 * GIB, Some(0))), ClientReply::Queued);
    rig.daemon(2, 3 * GIB);
    assert_eq!(rig.granted(waiter, with(1, 2 * GIB, Some(0))).first.span_count, 2);

    let mut config = config();
    config.quota = Quota { bytes: 3 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, span(1, 2 * MIB));
    assert_eq!(rig.done(conn, with(2, 2 * MIB, Some(0))), ClientReply::Queued);
    // The daemon has not answered yet: the quota is there, and there is room elsewhere.
    rig.mood(1, Mood::Waits);
    delete(&mut rig, conn, &granted);
    rig.mood(1, Mood::Obeys);
    rig.obey(1);
    rig.obey(1);
    assert!(matches!(rig.done(conn, with(2, 2 * MIB, Some(0))), ClientReply::Granted(_)));
    // What the quota never allows is refused at once.
    assert_eq!(rig.status(conn, with(3, 4 * MIB, Some(0))), Status::Quota);
    assert_eq!(rig.status(conn, with(4, 1 << 60, Some(0))), Status::NoSpace);
    assert_eq!(rig.status(conn, with(0, 2 * MIB, Some(0))), Status::Invalid);
}

#[test]
fn memory_that_is_lost_serves_who_waits_for_the_quota() {
    let mut config = config();
    config.quota = Quota { bytes: 3 * MIB, ..Quota::UNLIMITED };
    let mut rig = Rig::started(config, Started::default());
    rig.daemon(1, GIB);
    let (conn, _) = rig.session(1000);
    let granted = rig.granted(conn, span(1, 2 * MIB));
    assert_eq!(rig.done(conn, with(2, 2 * MIB, Some(0))), ClientReply::Queued);
    let before = rings(&rig);
    take(&mut rig, 1, granted.first.block);
    assert_eq!(rings(&rig), before + 1);
    rig.granted(conn, with(2, 2 * MIB, Some(0)));
}

/// Small requests come and go while a large one waits. Without a promise it would never be served:
/// what is freed is taken again at once.
#[test]
fn a_large_request_is_not_starved_by_small_ones() {
    let mut rig = Rig::new(1);
    let (small, _) = rig.session(1000);
    let (large, _) = rig.session(1001);
    let mut held: std::collections::VecDeque<_> =
        (0..48).map(|ticket| rig.granted(small, span(ticket + 1, 64 * MIB))).collect();
    assert_eq!(rig.done(large, with(1, GIB, Some(0))), ClientReply::Queued);
    let mut refused = 0;
    for ticket in 100..400 {
        let oldest = held.pop_front().unwrap();
        delete(&mut rig, small, &oldest);
        match rig.ask(small, span(ticket, 64 * MIB)).unwrap() {
            Ok(ClientReply::Granted(granted)) => held.push_back(granted),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => {
                assert_eq!(refusal.status, Status::NoSpace);
                refused += 1;
            }
        }
        if rings(&rig) > 0 {
            break;
        }
    }
    assert!(matches!(rig.done(large, with(1, GIB, Some(0))), ClientReply::Granted(_)));
    // Only what the large one needs was kept from the small ones.
    assert_eq!((refused, held.len()), (16, 32));
}

/// A request that nobody could serve waits, and keeps nobody else from being served.
#[test]
fn a_request_that_no_daemon_could_hold_is_not_due() {
    let mut rig = Rig::new(1);
    let (small, _) = rig.session(1000);
    let (large, _) = rig.session(1001);
    let (huge, _) = rig.session(1002);
    let mut held: std::collections::VecDeque<_> =
        (0..48).map(|ticket| rig.granted(small, span(ticket + 1, 64 * MIB))).collect();
    assert_eq!(rig.done(huge, with(1, 100 * GIB, Some(0))), ClientReply::Queued);
    assert_eq!(rig.done(large, with(1, GIB, Some(0))), ClientReply::Queued);
    for ticket in 100..400 {
        let oldest = held.pop_front().unwrap();
        delete(&mut rig, small, &oldest);
        if rings(&rig) > 0 {
            break;
        }
        held.extend(match rig.ask(small, span(ticket, 64 * MIB)).unwrap() {
            Ok(ClientReply::Granted(granted)) => Some(granted),
            _ => None,
        });
    }
    assert!(matches!(rig.done(large, with(1, GIB, Some(0))), ClientReply::Granted(_)));
    assert_eq!(rig.done(huge, with(1, 100 * GIB, Some(0))), ClientReply::Queued);
}

/// The first of them cannot be served while somebody keeps what it lacks; the second could be.
#[test]
fn those_that_are_due_have_their_turns() {
    let mut rig = Rig::new(1);
    let (keeper, _) = rig.session(1000);
    let (small, _) = rig.session(1000);
    let kept = rig.granted(keeper, span(1, GIB));
    let mut held: std::collections::VecDeque<_> =
        (0..32).map(|ticket| rig.granted(small, span(ticket + 1, 64 * MIB))).collect();
    let conns = [rig.session(1001).0, rig.session(1002).0];
    for (conn, bytes) in conns.into_iter().zip([3 * GIB, GIB]) {
        assert_eq!(rig.done(conn, with(1, bytes, Some(0))), ClientReply::Queued);
    }
    let mut served = false;
    for ticket in 100..400 {
        if let Some(oldest) = held.pop_front() {
            delete(&mut rig, small, &oldest);
        }
        if let Some(Ok(ClientReply::Granted(granted))) = rig.ask(small, span(ticket, 64 * MIB)) {
            held.push_back(granted);
        }
        rig.wait(100);
        served = matches!(rig.done(conns[1], with(1, GIB, Some(0))), ClientReply::Granted(_));
        if served {
            break;
        }
    }
    assert!(served, "the second had no turn");
    delete(&mut rig, keeper, &kept);
}

#[test]
fn what_is_set_aside_is_the_users_who_waits_and_goes_back_with_the_wait() {
    let (mut rig, holder, waiter, last) = full();
    assert_eq!(rig.done(waiter, with(1, 2 * GIB, Some(0))), ClientReply::Queued);
    for _ in 0..70 {
        rig.dispatcher.granted += 1;
    }
    delete(&mut rig, holder, &last);
    let user = |rig: &Rig| rig.dispatcher.ledger.quota_left(1001);
    assert_eq!(user(&rig), u64::MAX - GIB);
    assert_eq!(rig.status(holder, heap(9, MIB)), Status::NoSpace);
    rig.done(waiter, ClientRequest::Abandon(Abandon { ticket: 1 }));
    assert_eq!(user(&rig), u64::MAX);
    rig.granted(holder, heap(10, MIB));
}

#[test]
fn a_daemon_that_has_no_room_after_all_is_asked_again_after_a_rest() {
    let mut rig = Rig::new(1);
    rig.mood(1, Mood::Refuses);
    let (conn, _) = rig.session(1000);
    assert_eq!(rig.done(conn, with(1, MIB, Some(0))), ClientReply::Queued);
    let asked = rig.daemons[&1].created.len();
    rig.event(crate::dispatcher::Event::Tick);
    assert_eq!(rig.daemons[&1].created.len(), asked, "it rests");
    rig.wait(300);
    assert!(rig.daemons[&1].created.len() > asked);
    rig.mood(1, Mood::Obeys);
    rig.wait(300);
    assert!(matches!(rig.done(conn, with(1, MIB, Some(0))), ClientReply::Granted(_)));
}

/// A step does not try them all, and misses none.
#[test]
fn a_crowd_that_waits_is_served_to_the_last() {
    let (mut rig, holder, _, last) = full();
    let (crowd, _) = rig.session(1002);
    for ticket in 1..=200 {
        assert_eq!(rig.done(crowd, with(ticket, MIB, Some(0))), ClientReply::Queued);
    }
    delete(&mut rig, holder, &last);
    rig.wait(10_000);
    assert_eq!(rig.dispatcher.patients.all().count(), 0);
    assert_eq!(rig.dispatcher.snapshot().blocks.len(), 202);
}

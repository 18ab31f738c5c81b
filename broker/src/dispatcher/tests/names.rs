//! Somebody else has an object of a name that one of ours was to have.

use dmce_abi::Status;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::{ClientReply, ClientRequest};
use dmce_abi::wire::daemon::{DaemonMessage, DaemonRequest};

use super::rig::{GIB, MIB, Mood, Rig, config, heap, open, region, setup, span};
use crate::dispatcher::{Action, Event, Started};

/// The daemon answers its oldest request: there is something of that name.
fn name_is_taken(rig: &mut Rig) -> u32 {
    let (number, request) = rig.daemons.get_mut(&1).unwrap().asked.remove(0);
    let DaemonRequest::Create { description, .. } = request else { panic!("{request:?}") };
    let refusal = Refusal::new(Status::Exists, "dmce.test.1.data-00000001 is there");
    rig.tell(1, number.0, DaemonMessage::Reply(Err(refusal)));
    description.block.get()
}

#[test]
fn a_block_whose_name_is_taken_gets_another_id_and_that_one_is_not_tried_again() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, heap(1, MIB));
    let taken = [name_is_taken(&mut rig), name_is_taken(&mut rig)];
    assert_ne!(taken[0], taken[1]);
    rig.obey(1);
    let (reply, _) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    assert!(!taken.contains(&granted.first.block.get()));
    assert_eq!(rig.dispatcher.snapshot().charged.values().map(|of| of.0).sum::<u64>(), MIB);
    rig.mood(1, Mood::Obeys);
    rig.daemons.get_mut(&1).unwrap().created.clear();
    for ticket in 2..=8 {
        let granted = rig.granted(conn, heap(ticket, MIB));
        assert!(!taken.contains(&granted.first.block.get()));
    }
}

#[test]
fn a_span_with_a_taken_name_is_made_anew_as_a_whole_and_leaves_nothing() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, span(1, 2 * GIB + MIB));
    rig.obey(1);
    let taken = name_is_taken(&mut rig);
    rig.mood(1, Mood::Obeys);
    while !rig.daemons[&1].asked.is_empty() {
        rig.obey(1);
    }
    let (reply, _) = rig.answer(conn, number).unwrap();
    let Ok(ClientReply::Granted(granted)) = reply else { panic!("{reply:?}") };
    let first = granted.first.block.get();
    assert!(!(first..first + 3).contains(&taken));
    let snapshot = rig.dispatcher.snapshot();
    assert_eq!((snapshot.blocks.len(), snapshot.passing), (3, 0));
}

#[test]
fn a_region_whose_name_is_free_is_made_although_its_blocks_name_is_taken() {
    let mut rig = Rig::new(1);
    let (conn, _) = rig.session(1000);
    rig.mood(1, Mood::Waits);
    let number = rig.ask_later(conn, region("r", MIB, 0o600));
    name_is_taken(&mut rig);
    rig.obey(1);
    let (reply, _) = rig.answer(conn, number).unwrap();
    assert_eq!(reply.unwrap(), ClientReply::Done);
    assert!(matches!(rig.done(conn, open(1, "r", true)), ClientReply::Opened(_)));
}

/// The shell makes sessions only from `free` on.
fn open_from(free: u32) -> Option<Result<u32, Status>> {
    let mut rig = Rig::started(config(), Started::default());
    let conn = rig.connect(77, 1000);
    rig.session_names_taken = free;
    let ClientRequest::Setup(wanted) = setup(0, false) else { return None };
    let number = rig.ask_later(conn, ClientRequest::Setup(wanted));
    let ended = |action: &Action| matches!(action, Action::EndSession { .. });
    let ended = rig.actions.iter().filter(|action| ended(action)).count();
    let (reply, _) = rig.answer(conn, number)?;
    Some(match reply {
        Ok(ClientReply::Ready(ready)) => {
            assert_eq!(ended as u64, u64::from(ready.session.get()) - 1);
            rig.event(Event::HungUp { conn });
            Ok(ready.session.get())
        }
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => {
            assert!(rig.dispatcher.snapshot().sessions.is_empty());
            Err(refusal.status)
        }
    })
}

#[test]
fn a_session_whose_name_is_taken_gets_another_id_within_reason() {
    assert_eq!(open_from(1), Some(Ok(1)));
    assert_eq!(open_from(5), Some(Ok(5)));
    assert_eq!(open_from(1_000_000), Some(Err(Status::NoSpace)));
}

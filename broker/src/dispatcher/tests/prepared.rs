//! Sessions that are made before anybody asks for one.

use super::rig::{Rig, config, session_id, setup};
use crate::dispatcher::prepared::PREPARED_MAX;
use crate::dispatcher::{Action, Event, Started};

use dmce_abi::Status;
use dmce_abi::block::{Guid, SessionId};
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::ClientReply;

fn prepared(rig: &Rig) -> Vec<(SessionId, Guid)> {
    let of = |action: &Action| match action {
        Action::PrepareSession { session, guid } => Some((*session, *guid)),
        _ => None,
    };
    rig.actions.iter().filter_map(of).collect()
}

/// What a dispatcher is told when nothing comes for `millis`.
fn quiet(rig: &mut Rig, millis: u64) {
    for _ in 0..millis {
        rig.now.millis = rig.now.millis.after(1);
        rig.event(Event::Tick);
    }
}

#[test]
fn sessions_are_prepared_when_it_is_quiet_and_then_given_in_their_order() {
    let mut rig = Rig::new(1);
    assert_eq!(prepared(&rig), []);
    quiet(&mut rig, 20);
    let made = prepared(&rig);
    assert_eq!(made.len(), PREPARED_MAX);
    quiet(&mut rig, 100);
    assert_eq!(prepared(&rig).len(), PREPARED_MAX);

    for of in &made {
        let (_, ready) = rig.session(1000);
        assert_eq!((ready.session, ready.guid), *of);
    }
    // Who asks for more has them made there and then.
    let (_, ready) = rig.session(1000);
    assert!(!made.iter().any(|(id, guid)| *id == ready.session || *guid == ready.guid));
    assert_eq!(prepared(&rig).len(), PREPARED_MAX);
    quiet(&mut rig, 20);
    assert_eq!(prepared(&rig).len(), 2 * PREPARED_MAX);
}

#[test]
fn none_is_prepared_while_sessions_are_opened_one_after_the_other() {
    let mut rig = Rig::new(1);
    for _ in 0..50 {
        rig.session(1000);
        quiet(&mut rig, 1);
    }
    assert_eq!(prepared(&rig), []);
    quiet(&mut rig, 2);
    assert!(!prepared(&rig).is_empty());
}

#[test]
fn sessions_and_prepared_ones_together_keep_the_limit() {
    let mut config = config();
    config.limits.sessions_max = 3;
    let mut rig = Rig::started(config, Started::default());
    quiet(&mut rig, 20);
    assert_eq!(prepared(&rig).len(), 3);
    for uid in 1000..1003 {
        rig.session(uid);
        quiet(&mut rig, 20);
    }
    assert_eq!(prepared(&rig).len(), 3);
    let conn = rig.connect(1, 1003);
    assert_eq!(rig.status(conn, setup(0, false)), Status::NoSpace);
}

#[test]
fn what_could_not_be_prepared_is_removed_and_tried_again_after_the_next_setup() {
    let mut rig = Rig::new(1);
    rig.session_names_taken = 3;
    quiet(&mut rig, 100);
    let made = prepared(&rig);
    let ended = |id| Action::EndSession { session: session_id(id) };
    assert!(rig.actions.contains(&ended(1)) && rig.actions.contains(&ended(2)));
    let (_, ready) = rig.session(1000);
    assert_eq!((ready.session, ready.guid), made[2]);
    quiet(&mut rig, 100);
    assert!(prepared(&rig).len() > made.len());
}

#[test]
fn a_prepared_session_whose_record_cannot_be_written_gets_another_id() {
    let mut rig = Rig::new(1);
    quiet(&mut rig, 20);
    rig.session_names_taken = 17;
    let conn = rig.connect(9, 1000);
    let ClientReply::Ready(ready) = rig.done(conn, setup(0, false)) else { panic!() };
    assert_eq!(ready.session, session_id(17));
    let late = Refusal::new(Status::NoSpace, "it was not asked for");
    rig.event(Event::SessionPrepared { session: ready.session, result: Err(late) });
    assert_eq!(rig.dispatcher.snapshot().sessions.len(), 1);
}

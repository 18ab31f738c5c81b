use dmce_abi::wire::data::{DataRequest, Target};

use super::*;

const TELL_AGAIN: Duration = Duration::from_millis(50);

fn session(id: u32) -> SessionId {
    SessionId::try_from(id).unwrap()
}

/// The broker makes a session object, and a wreck of the one before, for each time that it is told.
#[test]
fn a_seat_that_cannot_be_used_is_given_back_now_and_then() {
    let fixture = Fixture::new();
    let mut store = fixture.open();
    let alone = description(1);
    let Owner::Session { session: of, ticket, uid, .. } = alone.owner else { panic!("{alone:?}") };
    let owner = Owner::Session { session: of, ticket, uid, copies: 2 };
    let description = BlockDescription { owner, ..alone };
    let guid = description.guid;
    ask(&mut store, DaemonRequest::Create { description, committed: 64 * KIB }).unwrap();
    let read = DataRequest::Read { at: Target { block: id(1), guid, cell: 0 }, bytes: 8 };
    let access = |store: &mut Store| {
        assert_eq!(store.access(&read).unwrap_err().status, Status::Busy);
        store.take_notices()
    };
    assert_eq!(access(&mut store), [DaemonNotice::Unseated { left: None }]);
    let begin = Instant::now();
    let mut told = 0;
    for number in 2..500 {
        // There is no object of that name.
        let seat = DaemonRequest::Seat { session: session(number), guid, cell_bits: 30 };
        ask(&mut store, seat).unwrap();
        told += store.take_notices().len() + access(&mut store).len();
    }
    let times = begin.elapsed().as_millis() / TELL_AGAIN.as_millis() + 1;
    assert!(told as u128 <= times, "{told} in {:?}", begin.elapsed());
    let left = [DaemonNotice::Unseated { left: Some(session(499)) }];
    // Again and again, since who was told may not have heard it.
    for _ in 0..2 {
        wait_until("the last one is given back", || access(&mut store) == left);
    }
}

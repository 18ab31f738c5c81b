use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use dmce_abi::block::DaemonId;
use dmce_sys::object as file;
use dmce_sys::transfer::{self, Store};

use super::map::{SessionMap, SessionMapError};
use super::object::{SessionError, SessionObject};
use super::pin::{PinClaim, PinnedRange};
use super::*;
use crate::slot::intent::{IntentClaim, Progress, Undo};
use crate::slot::{Marks, Moved};
use crate::testing::object;

fn identity() -> SessionIdentity {
    SessionIdentity { session: SessionId::try_from(7).unwrap(), guid: Guid([5; 16]) }
}

fn create(fence: Fence) -> SessionObject {
    SessionObject::create(object(), identity(), fence).unwrap()
}

fn pair() -> (SessionObject, SessionMap) {
    let fence = Fence::register();
    let object = create(fence);
    let map = SessionMap::map(object.as_fd(), identity(), fence).unwrap();
    (object, map)
}

fn duplicate(object: &SessionObject) -> OwnedFd {
    object.as_fd().try_clone_to_owned().unwrap()
}

#[test]
fn a_new_object_is_whole_committed_and_of_its_session() {
    let (object, map) = pair();
    object.check_size().unwrap();
    let allocated = |object: &SessionObject| file::stat(object.as_fd()).unwrap().allocated_bytes;
    assert_eq!(allocated(&object), UNDO_OFFSET as u64, "the undo buffers are sparse");
    assert!(map.undo(0).is_none());
    object.commit_undo().unwrap();
    object.check_size().unwrap();
    assert_eq!(allocated(&object), SESSION_BYTES);
    assert_eq!(object.generation().unwrap(), 0);
    assert_eq!(object.usage().unwrap(), super::object::UsageClaim::default());
    assert_eq!(object.marks().unwrap().in_flight().count(), 0);
    assert_eq!(object.pins().unwrap(), []);
    assert_eq!(map.slots().len(), SLOTS);
}

#[test]
fn an_operation_is_in_the_marks_while_it_lasts() {
    let (object, map) = pair();
    let first = map.begin(0).unwrap();
    let last = map.begin(SLOTS - 1).unwrap();
    let before = object.marks().unwrap();
    assert_eq!(before.in_flight().collect::<Vec<_>>(), [0, SLOTS - 1]);
    assert!(!before.quiesced(&object.marks().unwrap()));

    drop(first);
    assert_eq!(before.waiting(&object.marks().unwrap()).collect::<Vec<_>>(), [SLOTS - 1]);
    drop(last);
    // One that began later is not waited for.
    let _later = map.begin(0).unwrap();
    assert!(before.quiesced(&object.marks().unwrap()));
}

#[test]
fn an_operation_after_a_new_generation_moves_until_the_changes_are_settled() {
    let (object, map) = pair();
    object.publish(1 << 40).unwrap();
    assert!(map.has_moved());
    assert_eq!(map.begin(3).unwrap_err(), Moved);
    assert_eq!(object.marks().unwrap().in_flight().count(), 0, "the mark was taken back");

    map.settle(object.generation().unwrap());
    assert_eq!(map.known(), 1 << 40);
    assert!(!map.has_moved());
    drop(map.begin(3).unwrap());
}

#[test]
fn what_is_settled_after_the_end_lets_no_operation_begin() {
    let (object, map) = pair();
    map.settle(u64::MAX);
    // Somebody was taking changes in.
    map.settle(object.generation().unwrap());
    assert_eq!(map.begin(3).unwrap_err(), Moved);
}

#[test]
fn the_wait_of_who_unmaps_ends_with_the_operations_that_it_found() {
    let (_object, map) = pair();
    let look = || Marks::look(map.slots());
    assert!(look().quiesced(&look()));
    let own = map.begin(1).unwrap();
    let other = map.begin(2).unwrap();
    let before = look();
    drop(other);
    assert_eq!(before.waiting(&look()).collect::<Vec<_>>(), [1]);
    drop(own);
    // One that begins later is not waited for.
    let _later = map.begin(1).unwrap();
    assert!(before.quiesced(&look()));
}

#[test]
#[should_panic(expected = "the slot is in use")]
fn an_operation_inside_another_of_the_same_slot_is_refused() {
    let (_object, map) = pair();
    let _outer = map.begin(0).unwrap();
    let _ = map.begin(0);
}

#[test]
fn pins_are_seen_by_the_broker_until_they_are_freed() {
    let (object, map) = pair();
    let range = |addr, writable| PinnedRange { addr, bytes: 4096, writable };
    let first = map.take_pin(range(1 << 30, false)).unwrap();
    let second = map.take_pin(range(1 << 31, true)).unwrap();
    let pin = |place, range| PinClaim { place, range, is_left: false };
    let both = [pin(0, range(1 << 30, false)), pin(1, range(1 << 31, true))];
    assert_eq!(object.pins().unwrap(), both);
    map.free_pin(first);
    assert_eq!(object.pins().unwrap(), both[1..]);
    map.leave_pin(second);
    assert_eq!(object.pins().unwrap(), [PinClaim { is_left: true, ..both[1] }]);
    let third = map.take_pin(range(1 << 32, true)).unwrap();
    assert_eq!(object.pins().unwrap().len(), 2, "what is left is not taken again");
    object.free_pin(1).unwrap();
    assert_eq!(object.pins().unwrap(), [pin(0, range(1 << 32, true))]);
    map.free_pin(third);
    assert_eq!(object.pins().unwrap(), []);
}

#[test]
fn the_last_pin_is_the_last_and_a_freed_one_can_be_taken_again() {
    let (object, map) = pair();
    let range = PinnedRange { addr: 1 << 30, bytes: 1, writable: true };
    let mut taken: Vec<_> = (0..PINS).map(|_| map.take_pin(range).unwrap()).collect();
    let refused = map.take_pin(range).unwrap_err();
    assert_eq!(refused.to_string(), "all 512 pins of the session are taken");
    assert_eq!(object.pins().unwrap().len(), PINS);
    map.free_pin(taken.pop().unwrap());
    let _ = map.take_pin(range).unwrap();
}

#[test]
fn a_dead_slots_intent_and_undo_buffer_are_read_until_they_are_taken_away() {
    let (object, map) = pair();
    object.commit_undo().unwrap();
    let _idle = map.begin(4).unwrap();
    let _operation = map.begin(SLOTS - 1).unwrap();
    let first = DaemonId::try_from(2).unwrap();
    let intent = map.slots()[SLOTS - 1].intend(1 << 30, 3);
    let undo = map.undo(255).unwrap();
    assert_eq!(undo.len(), UNDO_BYTES);
    // SAFETY: the buffer is mapped writable, and the bytes are no part of it.
    unsafe { transfer::store(undo.part(0, 3).unwrap(), b"old".as_ptr(), Store::Cached) }.unwrap();
    intent.begin_first(first, Undo::Saved);

    let progress = Progress::First { first: 2, undo: Undo::Saved };
    let claim = IntentClaim { addr: 1 << 30, bytes: 3, progress };
    assert_eq!(object.intents().unwrap(), [(255, claim)]);
    let mut saved = [0; 3];
    object.undo(255, &mut saved).unwrap();
    assert_eq!(saved, *b"old");
    object.undo(254, &mut saved).unwrap();
    assert_eq!(saved, [0; 3], "each slot has its own");
    object.clear_intent(255).unwrap();
    assert_eq!(object.intents().unwrap(), []);
    let word = file::read_at(object.as_fd(), &mut saved, SESSION_BYTES - 3);
    assert!(word.is_ok(), "the last undo buffer ends the object");
}

/// A writer that gave up has left its operation, and its intent behind.
#[test]
fn of_a_client_that_lives_an_intent_counts_when_its_slot_is_in_no_operation() {
    let (object, map) = pair();
    let abandoned = map.begin(2).unwrap();
    map.slots()[2].intend(1 << 30, 8).begin_first(DaemonId::try_from(1).unwrap(), Undo::Absent);
    let writing = map.begin(3).unwrap();
    let intent = map.slots()[3].intend(1 << 31, 8);
    assert_eq!(object.abandoned_intents().unwrap(), (vec![], false));
    drop(abandoned);
    let (intents, is_all) = object.abandoned_intents().unwrap();
    let slots: Vec<_> = intents.iter().map(|(slot, claim)| (*slot, claim.addr)).collect();
    assert_eq!((slots, is_all), (vec![(2, 1 << 30)], false));
    intent.clear();
    drop(writing);
    let (intents, is_all) = object.abandoned_intents().unwrap();
    assert_eq!((intents.len(), is_all), (1, true));
}

#[test]
fn usage_is_what_the_client_shows() {
    let (object, map) = pair();
    map.usage().bytes_in_use.store(1 << 40, Ordering::Relaxed);
    map.usage().bytes_free.store(4096, Ordering::Relaxed);
    map.usage().allocations.store(3, Ordering::Relaxed);
    map.slots()[0].count(2);
    map.slots()[SLOTS - 1].count(40);
    let usage = object.usage().unwrap();
    assert_eq!((usage.bytes_in_use, usage.bytes_free), (1 << 40, 4096));
    assert_eq!((usage.allocations, usage.operations), (3, 42));
}

#[test]
fn another_sessions_object_is_not_mapped() {
    let object = create(Fence::Full);
    let other = SessionIdentity { guid: Guid([6; 16]), ..identity() };
    let error = SessionMap::map(object.as_fd(), other, Fence::Full).unwrap_err();
    assert_eq!(error.to_string(), "the session object is not that of session 7: the GUID differs");
    file::write_at(object.as_fd(), &3_u32.to_le_bytes(), 8).unwrap();
    let error = SessionMap::map(object.as_fd(), identity(), Fence::Full).unwrap_err();
    assert!(matches!(error, SessionMapError::OtherVersion { theirs: 3, ours: 2 }), "{error}");
}

#[test]
fn a_client_that_cuts_or_enlarges_its_object_gets_the_broker_an_error_and_nothing_else() {
    let object = create(Fence::Full);
    file::truncate(object.as_fd(), 5000).unwrap();
    assert!(matches!(object.check_size(), Err(SessionError::Resized { bytes: 5000, .. })));
    assert!(matches!(object.marks(), Err(SessionError::Object(_))));
    assert!(matches!(object.pins(), Err(SessionError::Object(_))));
    assert!(matches!(object.usage(), Err(SessionError::Object(_))));
    object.publish(9).unwrap();
    assert_eq!(object.generation().unwrap(), 9);
    file::truncate(object.as_fd(), 0).unwrap();
    assert!(object.generation().is_err());

    let object = create(Fence::Full);
    file::truncate(object.as_fd(), 1 << 40).unwrap();
    assert!(matches!(object.check_size(), Err(SessionError::Resized { .. })));
}

#[test]
fn a_client_that_fills_its_object_with_noise_misleads_nobody_but_itself() {
    let (object, map) = pair();
    let noise = vec![0xff; usize::try_from(SESSION_BYTES).unwrap()];
    file::write_at(object.as_fd(), &noise, 0).unwrap();
    assert_eq!(object.marks().unwrap().in_flight().count(), SLOTS);
    assert_eq!(object.pins().unwrap().len(), PINS);
    assert!(object.pins().unwrap().iter().all(|pin| pin.range.writable));
    assert_eq!(object.usage().unwrap().bytes_in_use, u64::MAX);
    assert_eq!(object.generation().unwrap(), u64::MAX);
    assert_eq!(object.intents().unwrap().len(), SLOTS);
    assert!(map.has_moved());
}

#[test]
fn a_broker_that_comes_back_goes_on_with_the_generation_and_the_fence() {
    let object = create(Fence::Asymmetric);
    object.publish(77).unwrap();
    let again = SessionObject::open(duplicate(&object), Fence::Asymmetric).unwrap();
    assert_eq!(again.generation().unwrap(), 77);
    let refused = SessionObject::open(duplicate(&object), Fence::Full);
    assert!(matches!(refused, Err(SessionError::Barrier)));

    let full = create(Fence::Full);
    for fence in [Fence::Full, Fence::Asymmetric] {
        assert!(SessionObject::open(duplicate(&full), fence).is_ok());
    }
}

/// The offsets of the table in `docs/shared-memory.md`, seen from outside.
#[test]
fn the_words_lie_where_the_document_says() {
    let (object, map) = pair();
    let word_at = |offset: u64| {
        let mut word = [0; 8];
        file::read_at(object.as_fd(), &mut word, offset).unwrap();
        u64::from_le_bytes(word)
    };
    map.usage().bytes_in_use.store(11, Ordering::Relaxed);
    map.slots()[1].count(5);
    let _pin = map.take_pin(PinnedRange { addr: 13, bytes: 17, writable: true }).unwrap();
    let _operation = map.begin(2).unwrap();
    object.publish(19).unwrap();
    assert_eq!(word_at(0), u64::from_le_bytes(*b"DMCESESS"));
    assert_eq!(word_at(16), 256 << 32 | 7);
    assert_eq!(word_at(40), 20480 << 32 | 4096);
    assert_eq!(word_at(48), 256 << 32 | 512);
    assert_eq!((word_at(64), word_at(128)), (19, 11));
    assert_eq!((word_at(4096 + 64 + 24), word_at(4096 + 128)), (5, 1));
    assert_eq!((word_at(20480), word_at(20488), word_at(20496)), (13, 17, 3));
}

#[test]
fn what_a_slot_saves_is_in_its_own_buffer_as_soon_as_there_is_one() {
    let (object, map) = pair();
    assert_eq!(map.save(3, b"old"), Ok(false));
    object.commit_undo().unwrap();
    assert_eq!(map.save(3, b"old"), Ok(true));
    let mut saved = [0; 4];
    object.undo(3, &mut saved).unwrap();
    assert_eq!(&saved, b"old\0");
    object.undo(2, &mut saved).unwrap();
    assert_eq!(saved, [0; 4]);
    assert_eq!(map.save(255, &[7; UNDO_BYTES]), Ok(true));
    object.publish(5).unwrap();
    assert_eq!((map.generation(), map.known()), (5, 0));
}

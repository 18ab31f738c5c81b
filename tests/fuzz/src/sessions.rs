//! The session object, as the broker reads what its client wrote there.
//!
//! ```text
//! 0           2           3
//! | offset /4 | so many   | bytes ..    again and again: what the client stores, and where
//! ```
//!
//! An offset behind the end is a change of the size.

use std::os::fd::AsFd;

use arbitrary::{Result, Unstructured};
use dmce_abi::block::{Guid, SessionId};
use dmce_abi::limits::{PINS, SLOTS};
use dmce_shm::Fence;
use dmce_shm::session::object::{SessionError, SessionObject};
use dmce_shm::session::pin::{PinClaim, PinnedRange};
use dmce_shm::session::{SESSION_BYTES, SessionIdentity, UNDO_BYTES};
use dmce_sys::object;

use crate::objects::{bytes_of, holding};

/// What every session needs of its object; the undo buffers follow.
const FRONT: usize = 36_864;
const USAGE_OFFSET: usize = 128;
const SLOTS_OFFSET: usize = 4096;
const PINS_OFFSET: usize = 20480;

const _: () = assert!(FRONT as u64 + SLOTS as u64 * UNDO_BYTES as u64 == SESSION_BYTES);

pub fn run(data: &[u8]) {
    let session = SessionId::try_from(7).expect("a small id");
    let identity = SessionIdentity { session, guid: Guid([9; 16]) };
    let made = SessionObject::create(holding(&[]), identity, Fence::Full);
    let object = made.expect("the host has memory");
    let before = object.marks().expect("nobody has changed it");
    // Bytes that end too soon are less that is stored.
    let _ = scribble(&object, &mut Unstructured::new(data));
    let bytes = object::end(object.as_fd()).expect("its size can be had");
    assert_eq!(object.check_size().is_ok(), bytes == SESSION_BYTES);
    object.cut().expect("an object can be cut");
    if bytes >= SESSION_BYTES {
        assert!(object.check_size().is_ok(), "what was added is gone");
        let now = object.marks().expect("the marks are there");
        assert!(before.quiesced(&now), "nothing was in flight before");
        read(&object);
    }
    adopt(&object, bytes >= SESSION_BYTES);
}

fn scribble(object: &SessionObject, bytes: &mut Unstructured<'_>) -> Result<()> {
    while !bytes.is_empty() {
        let offset = u64::from(bytes.arbitrary::<u16>()?) * 4;
        let count = usize::from(bytes.arbitrary::<u8>()?).min(bytes.len());
        let stored = bytes.bytes(count)?;
        if let Some(beyond) = offset.checked_sub(2 * FRONT as u64) {
            // About where the object ends.
            let end = SESSION_BYTES - 256 + beyond;
            object::truncate(object.as_fd(), end).expect("a client can do that");
        } else {
            object::write_at(object.as_fd(), stored, offset).expect("a client can do that");
        }
    }
    Ok(())
}

/// What the broker makes of the words is what they say, however wrong.
fn read(object: &SessionObject) {
    let copy: [u8; FRONT] = bytes_of(object.as_fd());
    let word = |at: usize| u32::from_le_bytes(array(&copy, at));
    let long = |at: usize| u64::from_le_bytes(array(&copy, at));
    let marks = object.marks().expect("the object is whole");
    let odd: Vec<usize> =
        (0..SLOTS).filter(|slot| word(SLOTS_OFFSET + slot * 64) % 2 == 1).collect();
    assert_eq!(marks.in_flight().collect::<Vec<_>>(), odd);
    assert_eq!(marks.waiting(&marks).collect::<Vec<_>>(), odd);

    let changing = |slot: &usize| long(SLOTS_OFFSET + slot * 64 + 16) != 0;
    let intents = object.intents().expect("the object is whole");
    let slots: Vec<usize> = intents.iter().map(|(slot, _)| usize::from(*slot)).collect();
    assert_eq!(slots, (0..SLOTS).filter(changing).collect::<Vec<_>>());
    for (slot, intent) in intents {
        assert_eq!(intent.addr, long(SLOTS_OFFSET + usize::from(slot) * 64 + 8));
        object.clear_intent(slot).expect("the object is whole");
    }
    assert_eq!(object.intents().expect("the object is whole"), []);

    let pin = |place: usize| {
        let at = PINS_OFFSET + place * 32;
        let state = word(at + 16);
        let range = PinnedRange { addr: long(at), bytes: long(at + 8), writable: state != 1 };
        let place = u16::try_from(place).expect("there are few");
        (state != 0).then_some(PinClaim { place, range, is_left: state == 2 })
    };
    let pins: Vec<PinClaim> = (0..PINS).filter_map(pin).collect();
    assert_eq!(object.pins().expect("the object is whole"), pins);

    let usage = object.usage().expect("the object is whole");
    let claimed = [usage.bytes_in_use, usage.bytes_free, usage.allocations];
    assert_eq!(claimed, [0, 8, 16].map(|at| long(USAGE_OFFSET + at)));
    let counts = (0..SLOTS).map(|slot| long(SLOTS_OFFSET + slot * 64 + 24));
    assert_eq!(usage.operations, counts.fold(0, u64::wrapping_add));
    assert_eq!(object.generation().expect("the object is whole"), long(64));
}

/// A broker that comes back takes the object up if it is as long as it was.
fn adopt(object: &SessionObject, whole: bool) {
    let fd = object.as_fd().try_clone_to_owned().expect("a descriptor more");
    match SessionObject::open(fd, Fence::Full) {
        Ok(object) => {
            assert!(whole);
            object.publish(u64::MAX).expect("the object is whole");
            assert_eq!(object.generation().ok(), Some(u64::MAX));
        }
        Err(SessionError::Barrier) => assert!(whole),
        Err(error) => assert!(!whole, "{error}"),
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    *bytes[at..].first_chunk().expect("the field lies in the object")
}
